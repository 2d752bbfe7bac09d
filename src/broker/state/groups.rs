//! The group table: one unit of state.
//!
//! | part | read by | written |
//! | --- | --- | --- |
//! | `by_name`, `by_id` | every request that names a group, without an allocation | under the unit's mutex |
//! | `unit` | listing, creation, update, deletion, snapshot | by the transition function alone |
//! | an entry's settings | every pull that names the group | under the unit's mutex and the entry's own |
//!
//! Lock order: the topic table's mutex, this unit's, an entry's settings; then the store's append lock. Whenever the
//! unit's mutex is free, a group is marked dead if and only if it is out of the table.
//!
//! Memory: about 300 bytes for a group and its name, and eight for each pause of its own retry delays; groups with the
//! settings of the default share them. `benches/offsets.rs` prints it.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::Notify;

use super::append;
use crate::format::state_record::Transition;
use crate::message::{GroupId, GroupSettings, InitialPosition, OtherFilters, PhysicalOffset};
use crate::store::{AppendError, Store};
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

type Hasher = foldhash::fast::RandomState;

/// A consumer group, from its creation until it is deleted and whoever still holds it lets go.
#[derive(Debug)]
pub struct GroupEntry {
    name: Arc<str>,
    id: GroupId,
    settings: Mutex<Arc<GroupSettings>>,
    /// Set before the deletion is appended, so that no commit of the group takes effect behind it.
    dead: AtomicBool,
    /// Told when the group is disabled or deleted: who is parked in its name looks again.
    changed: Notify,
}

impl GroupEntry {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its incarnation.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// What it is now.
    pub fn settings(&self) -> Arc<GroupSettings> {
        Arc::clone(&lock(&self.settings))
    }

    /// Whether it is being deleted, or was.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Whether its consumers get messages.
    pub(crate) fn is_enabled(&self) -> bool {
        lock(&self.settings).enabled
    }

    /// Told when the group is disabled or deleted.
    pub(crate) fn changed(&self) -> &Notify {
        &self.changed
    }

    fn group(&self) -> Group {
        Group { name: Arc::clone(&self.name), id: self.id, settings: self.settings() }
    }
}

/// A group at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// Its incarnation; another one after a delete.
    pub id: GroupId,
    /// What it was then.
    pub settings: Arc<GroupSettings>,
}

/// What of a group's settings is to become another; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupChange {
    /// Whether its consumers get messages.
    pub enabled: Option<bool>,
    /// Whether messages of one message group are delivered one after the other.
    pub ordered: Option<bool>,
    /// What becomes of a member that comes with another filter.
    pub other_filters: Option<OtherFilters>,
    /// Deliveries of one message; `Some(None)` is without a limit.
    pub max_attempts: Option<Option<u32>>,
    /// The pauses between them, in milliseconds.
    pub retry_delays_ms: Option<Vec<u64>>,
    /// By how much of itself a pause may be longer, in percent.
    pub retry_jitter: Option<u32>,
    /// Where it begins on a topic that is new to it.
    pub initial_position: Option<InitialPosition>,
}

impl GroupChange {
    /// `settings` with the change in them.
    #[must_use]
    pub fn applied_to(&self, settings: &GroupSettings) -> GroupSettings {
        let delays = self.retry_delays_ms.as_ref().unwrap_or(&settings.retry_delays_ms);
        GroupSettings {
            enabled: self.enabled.unwrap_or(settings.enabled),
            ordered: self.ordered.unwrap_or(settings.ordered),
            other_filters: self.other_filters.unwrap_or(settings.other_filters),
            max_attempts: self.max_attempts.unwrap_or(settings.max_attempts),
            retry_delays_ms: delays.clone(),
            retry_jitter: self.retry_jitter.unwrap_or(settings.retry_jitter),
            initial_position: self.initial_position.unwrap_or(settings.initial_position),
        }
    }
}

/// What became of a group's creation.
#[derive(Debug)]
pub(crate) enum GroupCreation {
    /// There is such a group now, with these settings.
    Ready(Group),
    /// There is one with other settings.
    Conflict,
    /// There are too many.
    Limit(u64),
}

/// The unit.
#[derive(Debug)]
pub(crate) struct GroupTable {
    by_name: DashMap<Arc<str>, Arc<GroupEntry>, Hasher>,
    by_id: DashMap<GroupId, Arc<GroupEntry>, Hasher>,
    unit: Mutex<Unit>,
    /// The settings that most groups have, once.
    common: Arc<GroupSettings>,
}

/// Guarded by the unit's mutex.
#[derive(Debug)]
struct Unit {
    names: BTreeMap<Arc<str>, Arc<GroupEntry>>,
    /// The next id to give; never moves back.
    next: GroupId,
    /// The end of the last record that changed the unit.
    applied: PhysicalOffset,
    /// What the snapshot contained that the start began with.
    restored: PhysicalOffset,
    /// Groups that were made because somebody named them, since the start, and are there.
    made_by_use: HashSet<GroupId>,
}

impl GroupTable {
    /// The id that the next group gets.
    pub(crate) fn next_id(&self) -> GroupId {
        lock(&self.unit).next
    }

    /// The most groups there may be.
    pub(crate) const MAX_GROUPS: usize = 1_000_000;

    /// An empty table.
    pub(crate) fn new() -> Self {
        Self {
            by_name: DashMap::default(),
            by_id: DashMap::default(),
            unit: Mutex::new(Unit {
                names: BTreeMap::new(),
                next: GroupId::new(1),
                applied: PhysicalOffset::ZERO,
                restored: PhysicalOffset::ZERO,
                made_by_use: HashSet::new(),
            }),
            common: Arc::new(GroupSettings::default()),
        }
    }

    /// The group of a name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<GroupEntry>> {
        self.by_name.get(name).map(|entry| Arc::clone(&entry))
    }

    /// The group of an id.
    pub(crate) fn by_id(&self, id: GroupId) -> Option<Arc<GroupEntry>> {
        self.by_id.get(&id).map(|entry| Arc::clone(&entry))
    }

    /// Whether there is a group of this id.
    pub(crate) fn has_id(&self, id: GroupId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Whether `group` is still in the table, once no deletion is half done.
    pub(crate) fn has(&self, group: &GroupEntry) -> bool {
        let _unit = lock(&self.unit);
        self.by_id.contains_key(&group.id)
    }

    /// How many groups there are.
    pub(crate) fn count(&self) -> u64 {
        u64::try_from(lock(&self.unit).names.len()).unwrap_or(u64::MAX)
    }

    /// Up to `limit` groups with names after `after`, in byte order, whether there are more, and the position up to
    /// which the log must be durable before anybody may hear of it.
    pub(crate) fn list(&self, after: &str, limit: usize) -> (Vec<Group>, bool, PhysicalOffset) {
        let unit = lock(&self.unit);
        let mut names = unit.names.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let groups = names.by_ref().take(limit).map(|(_, entry)| entry.group()).collect();
        (groups, names.next().is_some(), unit.applied)
    }

    /// The position up to which the log must be durable before anybody may hear what the table holds.
    pub(crate) fn applied(&self) -> PhysicalOffset {
        lock(&self.unit).applied
    }

    /// Makes a group unless there is one. Blocks for one append at most.
    ///
    /// The answer may be given once the log is durable up to the returned position.
    ///
    /// # Errors
    /// The append's: the table is unchanged. After `NotReady` await space and call again.
    pub(crate) fn create(
        &self,
        store: &Store,
        name: &str,
        settings: &GroupSettings,
    ) -> Result<(GroupCreation, PhysicalOffset), AppendError> {
        let mut unit = lock(&self.unit);
        if let Some(entry) = unit.names.get(name) {
            let group = entry.group();
            let made = match *group.settings == *settings {
                true => GroupCreation::Ready(group),
                false => GroupCreation::Conflict,
            };
            return Ok((made, unit.applied));
        }
        self.make(&mut unit, store, name, settings)
    }

    /// The group of a name, made as groups are that nobody has set up if there is none, unless `limit` were made that
    /// way since the start. Blocks for one append at most.
    ///
    /// The answer may be given once the log is durable up to the returned position.
    ///
    /// # Errors
    /// The append's: the table is unchanged. After `NotReady` await space and call again.
    pub(crate) fn find_or_make(
        &self,
        store: &Store,
        name: &str,
        limit: u32,
    ) -> Result<(GroupCreation, PhysicalOffset), AppendError> {
        let mut unit = lock(&self.unit);
        if let Some(entry) = unit.names.get(name) {
            return Ok((GroupCreation::Ready(entry.group()), unit.applied));
        }
        if unit.made_by_use.len() >= limit as usize {
            return Ok((GroupCreation::Limit(limit.into()), unit.applied));
        }
        let (made, end) = self.make(&mut unit, store, name, &self.common)?;
        if let GroupCreation::Ready(group) = &made {
            unit.made_by_use.insert(group.id);
        }
        Ok((made, end))
    }

    fn make(
        &self,
        unit: &mut Unit,
        store: &Store,
        name: &str,
        settings: &GroupSettings,
    ) -> Result<(GroupCreation, PhysicalOffset), AppendError> {
        if unit.names.len() >= Self::MAX_GROUPS {
            let limit = u64::try_from(Self::MAX_GROUPS).unwrap_or(u64::MAX);
            return Ok((GroupCreation::Limit(limit), unit.applied));
        }
        let id = unit.next;
        let settings = self.shared(settings.clone());
        let group = Group { name: name.into(), id, settings: Arc::clone(&settings) };
        let (name, settings) = (name.to_owned(), (*settings).clone());
        let transition = Transition::GroupCreated { id, name, settings };
        let end = append(store, std::slice::from_ref(&transition))?;
        self.transition(unit, transition, end);
        Ok((GroupCreation::Ready(group), end))
    }

    /// Changes what a group is; `None` if there is none of that name. Blocks for one append at most. A change that
    /// changes nothing appends nothing. Who is parked in the name of a group that is disabled is told at once; the
    /// answer may be given once the log is durable up to the returned position.
    ///
    /// # Errors
    /// The append's: the group is unchanged. After `NotReady` await space and call again.
    pub(crate) fn update(
        &self,
        store: &Store,
        name: &str,
        change: &GroupChange,
    ) -> Result<(Option<Group>, PhysicalOffset), AppendError> {
        let mut unit = lock(&self.unit);
        let Some(entry) = unit.names.get(name).map(Arc::clone) else {
            return Ok((None, unit.applied));
        };
        let old = entry.settings();
        let settings = change.applied_to(&old);
        if settings == *old {
            return Ok((Some(entry.group()), unit.applied));
        }
        let transition = Transition::GroupUpdated { id: entry.id, settings };
        let end = append(store, std::slice::from_ref(&transition))?;
        self.transition(&mut unit, transition, end);
        Ok((Some(entry.group()), end))
    }

    /// Deletes a group and returns its id; `None` if there is none of that name. Blocks for one append at most. Who is
    /// parked in its name is told at once. The caller then forgets its offsets; the answer may be given once the log
    /// is durable up to the returned position.
    ///
    /// # Errors
    /// The append's: the group lives on. After `NotReady` await space and call again.
    pub(crate) fn delete(
        &self,
        store: &Store,
        name: &str,
    ) -> Result<(Option<GroupId>, PhysicalOffset), AppendError> {
        let mut unit = lock(&self.unit);
        let Some(entry) = unit.names.get(name).map(Arc::clone) else {
            return Ok((None, unit.applied));
        };
        // Before the append: a commit that has not seen the mark yet is undone when the offsets are forgotten.
        entry.dead.store(true, Ordering::Release);
        let transition = Transition::GroupDeleted { id: entry.id };
        match append(store, std::slice::from_ref(&transition)) {
            Ok(end) => {
                self.transition(&mut unit, transition, end);
                unit.made_by_use.remove(&entry.id);
                Ok((Some(entry.id), end))
            }
            Err(error) => {
                entry.dead.store(false, Ordering::Release);
                Err(error)
            }
        }
    }

    /// The one place where the unit changes: right after the append of the record in normal running, and in replay.
    /// `end` is that of the record. Returns the group that a creation put an end to: its name is given again, so its
    /// deletion is a record that cannot be read.
    fn transition(
        &self,
        unit: &mut Unit,
        transition: Transition,
        end: PhysicalOffset,
    ) -> Option<GroupId> {
        unit.applied = unit.applied.max(end);
        let mut replaced = None;
        match transition {
            Transition::GroupCreated { id, name, settings } => {
                replaced = unit.names.get(name.as_str()).map(|old| old.id).filter(|old| *old != id);
                if let Some(old) = replaced {
                    self.remove(unit, old);
                }
                unit.next = unit.next.max(GroupId::new(id.get() + 1));
                let name: Arc<str> = name.into();
                let entry = Arc::new(GroupEntry {
                    name: Arc::clone(&name),
                    id,
                    settings: Mutex::new(self.shared(settings)),
                    dead: AtomicBool::new(false),
                    changed: Notify::new(),
                });
                self.by_id.insert(id, Arc::clone(&entry));
                self.by_name.insert(Arc::clone(&name), Arc::clone(&entry));
                unit.names.insert(name, entry);
            }
            Transition::GroupUpdated { id, settings } => {
                let entry = self.by_id.get(&id)?;
                let enabled = settings.enabled;
                *lock(&entry.settings) = self.shared(settings);
                if !enabled {
                    entry.changed.notify_waiters();
                }
            }
            Transition::GroupDeleted { id } => self.remove(unit, id),
            Transition::NextGroupId { next } => unit.next = unit.next.max(next),
            // Of other units.
            _ => {}
        }
        replaced
    }

    /// Takes a group out for good.
    fn remove(&self, unit: &mut Unit, id: GroupId) {
        let Some((_, entry)) = self.by_id.remove(&id) else { return };
        self.by_name.remove(&entry.name);
        unit.names.remove(&entry.name);
        entry.dead.store(true, Ordering::Release);
        entry.changed.notify_waiters();
    }

    /// Applies a transition of a record that ends at `end`, in replay. What a snapshot contained already changes
    /// nothing: the whole table is as of one position. Returns the group that a creation put an end to.
    pub(super) fn replay(&self, transition: Transition, end: PhysicalOffset) -> Option<GroupId> {
        let mut unit = lock(&self.unit);
        if end <= unit.restored {
            return None;
        }
        self.transition(&mut unit, transition, end)
    }

    /// Applies a transition of a snapshot that is as of `applied`.
    pub(super) fn restore(&self, transition: Transition, applied: PhysicalOffset) {
        let mut unit = lock(&self.unit);
        unit.restored = unit.restored.max(applied);
        self.transition(&mut unit, transition, applied);
    }

    /// Appends the transitions that make this table out of an empty one: creations by rising id, then the counter.
    /// Returns the end of the last record in them.
    pub(super) fn snapshot_into(&self, out: &mut Vec<u8>) -> PhysicalOffset {
        let unit = lock(&self.unit);
        Transition::AsOf { applied: unit.applied }.encode_into(out);
        let mut entries: Vec<_> = unit.names.values().collect();
        entries.sort_unstable_by_key(|entry| entry.id);
        for entry in entries {
            let name = entry.name.as_ref().to_owned();
            let settings = (*entry.settings()).clone();
            Transition::GroupCreated { id: entry.id, name, settings }.encode_into(out);
        }
        Transition::NextGroupId { next: unit.next }.encode_into(out);
        unit.applied
    }

    /// The settings to keep: those that most groups have are kept once.
    fn shared(&self, settings: GroupSettings) -> Arc<GroupSettings> {
        if settings == *self.common { Arc::clone(&self.common) } else { Arc::new(settings) }
    }
}
