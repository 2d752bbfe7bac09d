//! The topic table: one unit of state.
//!
//! | part | read by | written |
//! | --- | --- | --- |
//! | `by_name`, `by_id` | every request, without an allocation | under the unit's mutex |
//! | `unit` | listing, creation, deletion, snapshot | by the transition function alone |
//!
//! Lock order: the unit's mutex, then the store's append lock. A snapshot takes the whole table under its mutex, so all
//! of it is as of one position, and replay passes over what ends at or below that.
//!
//! Whenever the unit's mutex is free, a topic is marked dead in the store if and only if it is out of the table.
//!
//! An entry never changes: an update puts another one of the same incarnation in its place. Who holds an entry may have
//! the settings of a moment ago; who must have those of now asks again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;

use super::append;
use crate::format::state_record::Transition;
use crate::message::{
    Access, FlushMode, Force, Keep, PhysicalOffset, QueueId, QueueOffset, Retention, Timestamp,
    TopicId, TopicSettings, TopicType,
};
use crate::store::{AppendError, Store, TopicHandle, Topics};
use crate::sync::{Mutex, lock};

type Hasher = foldhash::fast::RandomState;

/// What is wanted of a topic; `None`: as it is, or the broker's default for a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicChanges {
    /// 1 to 65 536, and not fewer than before.
    pub queues: Option<u32>,
    /// What acknowledgements wait for from now on.
    pub flush: Option<FlushMode>,
    /// What messages it takes from now on.
    pub topic_type: Option<TopicType>,
    /// What clients may do with it from now on.
    pub access: Option<Access>,
    /// Milliseconds that messages are kept.
    pub retention_time: Option<Keep>,
    /// Bytes of records that are kept.
    pub retention_bytes: Option<Keep>,
}

impl TopicChanges {
    /// These settings, changed.
    #[must_use]
    pub fn on(&self, settings: TopicSettings) -> TopicSettings {
        let Retention { time_ms, bytes } = settings.retention;
        TopicSettings {
            queues: self.queues.unwrap_or(settings.queues),
            flush: self.flush.unwrap_or(settings.flush),
            topic_type: self.topic_type.unwrap_or(settings.topic_type),
            access: self.access.unwrap_or(settings.access),
            retention: Retention {
                time_ms: self.retention_time.map_or(time_ms, Keep::limit),
                bytes: self.retention_bytes.map_or(bytes, Keep::limit),
            },
        }
    }
}

/// A topic with the settings of one moment.
#[derive(Debug)]
pub struct TopicEntry {
    name: Arc<str>,
    settings: TopicSettings,
    handle: Arc<TopicHandle>,
    /// The next queue of the round robin, of all entries of the incarnation. Relaxed: any spread will do.
    next_queue: Arc<AtomicU32>,
}

impl TopicEntry {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its incarnation.
    pub fn id(&self) -> TopicId {
        self.handle.id()
    }

    /// What it is.
    pub fn settings(&self) -> TopicSettings {
        self.settings
    }

    /// The store's side of it.
    pub(crate) fn handle(&self) -> &Arc<TopicHandle> {
        &self.handle
    }

    /// The queue for the next batch without a message group.
    pub(crate) fn next_queue(&self) -> QueueId {
        let turn = self.next_queue.fetch_add(1, Ordering::Relaxed);
        QueueId::new(turn.checked_rem(self.settings.queues).unwrap_or_default())
    }
}

/// Who wants a topic made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An administrator.
    Asked,
    /// A send to an unknown name; at most so many topics may come to be that way.
    Send {
        /// The most there may be.
        limit: u32,
    },
}

/// What became of a creation.
#[derive(Debug)]
pub(crate) enum Creation {
    /// There is such a topic now, with these settings.
    Ready(Arc<TopicEntry>),
    /// There is one with other settings.
    Conflict(Arc<TopicEntry>),
    /// There are too many.
    Limit(u64),
}

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// It is gone.
    Done(TopicId),
    /// There is none of that name.
    Unknown,
}

/// What became of an update.
#[derive(Debug)]
pub(crate) enum Update {
    /// It is so now, or was before.
    Done(Arc<TopicEntry>),
    /// There is none of that name.
    Unknown,
    /// It has so many queues, which is more than were asked for.
    Fewer(u32),
    /// Message groups would go to other queues, or would not count any more.
    BreaksOrder,
    /// There are too many queues.
    Limit(u64),
}

/// What of a topic is to be purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purged {
    /// Everything that is stored by now.
    Topic,
    /// The messages of a queue below an offset.
    Queue(QueueId, QueueOffset),
}

/// The unit.
#[derive(Debug)]
pub(crate) struct TopicTable {
    by_name: DashMap<Arc<str>, Arc<TopicEntry>, Hasher>,
    by_id: DashMap<TopicId, Arc<TopicEntry>, Hasher>,
    unit: Mutex<Unit>,
}

/// Guarded by the unit's mutex.
#[derive(Debug)]
struct Unit {
    names: BTreeMap<Arc<str>, Arc<TopicEntry>>,
    /// The next id to give; never moves back.
    next: TopicId,
    /// The end of the last record that changed the unit.
    applied: PhysicalOffset,
    /// What the snapshot contained that the start began with.
    restored: PhysicalOffset,
    /// Topics that sends have made since the start.
    made_by_sends: u32,
    queues: u64,
    /// Where round robins start; drawn anew for every topic.
    seed: u64,
}

impl TopicTable {
    /// The most queues there may be in all: each costs eight bytes before its first message.
    pub(crate) const MAX_QUEUES: u64 = 16_000_000;

    /// The most topics there may be.
    pub(crate) const MAX_TOPICS: usize = 1_000_000;

    /// The id that the next topic gets.
    pub(crate) fn next_id(&self) -> TopicId {
        lock(&self.unit).next
    }

    /// An empty table. Round robins start where `seed` says.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            by_name: DashMap::default(),
            by_id: DashMap::default(),
            unit: Mutex::new(Unit {
                names: BTreeMap::new(),
                next: TopicId::new(1),
                applied: PhysicalOffset::ZERO,
                restored: PhysicalOffset::ZERO,
                made_by_sends: 0,
                queues: 0,
                seed,
            }),
        }
    }

    /// The topic of a name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<TopicEntry>> {
        self.by_name.get(name).map(|entry| Arc::clone(&entry))
    }

    /// The topic of an id, unless it was deleted.
    pub(crate) fn by_id(&self, id: TopicId) -> Option<Arc<TopicEntry>> {
        self.by_id.get(&id).map(|entry| Arc::clone(&entry))
    }

    /// Whether `topic` is still in the table, once no deletion is half done.
    pub(crate) fn has(&self, topic: &TopicEntry) -> bool {
        let _unit = lock(&self.unit);
        self.by_id.contains_key(&topic.id())
    }

    /// How many topics there are, and how many queues they have together.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let unit = lock(&self.unit);
        (u64::try_from(unit.names.len()).unwrap_or(u64::MAX), unit.queues)
    }

    /// As if the topics had so many queues together; for tests.
    #[cfg(test)]
    pub(crate) fn pretend_queues(&self, queues: u64) {
        lock(&self.unit).queues = queues;
    }

    /// Up to `limit` topics with names after `after`, in byte order, whether there are more, and the position up to
    /// which the log must be durable before anybody may hear of it.
    pub(crate) fn list(
        &self,
        after: &str,
        limit: usize,
    ) -> (Vec<Arc<TopicEntry>>, bool, PhysicalOffset) {
        let unit = lock(&self.unit);
        let mut names = unit.names.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let topics = names.by_ref().take(limit).map(|(_, entry)| Arc::clone(entry)).collect();
        (topics, names.next().is_some(), unit.applied)
    }

    /// The position up to which the log must be durable before anybody may hear what the table holds.
    pub(crate) fn applied(&self) -> PhysicalOffset {
        lock(&self.unit).applied
    }

    /// Makes a topic unless there is one. Blocks for one append at most.
    ///
    /// The answer may be given once the log is durable up to the returned position.
    ///
    /// # Errors
    /// The append's: the table is unchanged. After `NotReady` await space and call again.
    pub(crate) fn create(
        &self,
        store: &Store,
        name: &str,
        settings: TopicSettings,
        origin: Origin,
    ) -> Result<(Creation, PhysicalOffset), AppendError> {
        let mut unit = lock(&self.unit);
        if let Some(entry) = unit.names.get(name) {
            let entry = Arc::clone(entry);
            let made = match origin {
                Origin::Asked if entry.settings != settings => Creation::Conflict(entry),
                Origin::Asked | Origin::Send { .. } => Creation::Ready(entry),
            };
            return Ok((made, unit.applied));
        }
        if let Some(limit) = unit.limit_reached(origin, settings.queues) {
            return Ok((Creation::Limit(limit), unit.applied));
        }

        let transition =
            Transition::TopicCreated { id: unit.next, name: name.to_owned(), settings };
        let end = append(store, std::slice::from_ref(&transition))?;
        let id = unit.next;
        self.transition(&mut unit, store.topics(), transition, end);
        if origin != Origin::Asked {
            unit.made_by_sends += 1;
        }
        // The transition has just put it there.
        match self.by_id(id) {
            Some(entry) => Ok((Creation::Ready(entry), end)),
            None => Err(AppendError::Deleted),
        }
    }

    /// Changes a topic. Blocks for an append, and for one that runs already. In force from now on; the answer may be
    /// given once the log is durable up to the returned position.
    ///
    /// # Errors
    /// The append's: the topic is as it was. After `NotReady` await space and call again.
    pub(crate) fn update(
        &self,
        store: &Store,
        name: &str,
        changes: &TopicChanges,
        force: Force,
    ) -> Result<(Update, PhysicalOffset), AppendError> {
        let mut unit = lock(&self.unit);
        let Some(entry) = unit.names.get(name).map(Arc::clone) else {
            return Ok((Update::Unknown, unit.applied));
        };
        let (old, new) = (entry.settings, changes.on(entry.settings));
        if let Some(refused) = unit.refusal(&old, &new, force) {
            return Ok((refused, unit.applied));
        }
        if old == new {
            return Ok((Update::Done(entry), unit.applied));
        }

        let (id, handle) = (entry.id(), &entry.handle);
        let mut transitions = Vec::new();
        let retention = wider(old.retention, new.retention);
        if retention != old.retention {
            // What is gone stays gone. From the clock's reading on nobody may see more go by the old retention, or that
            // would come back: so what is kept longer holds before the record is appended. What is kept shorter holds
            // only once it is: if it is not, nothing may have gone by it.
            let settings = TopicSettings { retention, ..old };
            let (below, before) = store.keep_longer(handle, &settings);
            let (queues, purged) = (Vec::new(), PhysicalOffset::ZERO);
            transitions.push(Transition::TopicExpired { id, below, before, queues, purged });
        }
        transitions.push(Transition::TopicUpdated { id, settings: new });
        let end = append(store, &transitions).inspect_err(|_| {
            handle.configure(&old, PhysicalOffset::ZERO);
        })?;
        // The transition knows the end of the record only, and there may be messages behind it by now.
        store.configure(handle, &new);
        for transition in transitions {
            self.transition(&mut unit, store.topics(), transition, end);
        }
        if old.access.read && !new.access.read {
            store.end_arrivals(handle);
        }
        let entry = unit.names.get(name).map_or(entry, Arc::clone);
        Ok((Update::Done(entry), end))
    }

    /// Purges messages of a topic: they are gone from now on. Blocks for one append at most. Durable once the log is up
    /// to the returned position. `None`: there is no such topic.
    ///
    /// # Errors
    /// The append's: everything is there. After `NotReady` await space and call again.
    pub(crate) fn purge(
        &self,
        store: &Store,
        id: TopicId,
        what: Purged,
    ) -> Result<Option<PhysicalOffset>, AppendError> {
        let mut unit = lock(&self.unit);
        if !self.by_id.contains_key(&id) {
            return Ok(None);
        }
        let (below, queues) = match what {
            Purged::Topic => (store.watermarks().appended, Vec::new()),
            Purged::Queue(queue, offset) => (PhysicalOffset::ZERO, vec![(queue, offset)]),
        };
        let (before, purged) = (Timestamp::ZERO, below);
        let transition = Transition::TopicExpired { id, below, before, queues, purged };
        let end = append(store, std::slice::from_ref(&transition))?;
        self.transition(&mut unit, store.topics(), transition, end);
        Ok(Some(end))
    }

    /// Deletes a topic. Blocks for one append at most. Sends, pulls and queries refuse it from now on; the answer may
    /// be given once the log is durable up to the returned position.
    ///
    /// # Errors
    /// The append's: the topic lives on. After `NotReady` await space and call again.
    pub(crate) fn delete(
        &self,
        store: &Store,
        name: &str,
    ) -> Result<(Deletion, PhysicalOffset), AppendError> {
        let mut unit = lock(&self.unit);
        let Some(entry) = unit.names.get(name).map(Arc::clone) else {
            return Ok((Deletion::Unknown, unit.applied));
        };
        // Marked before the record is appended: no message of the topic lies behind its deletion in the log.
        entry.handle.kill();
        let transition = Transition::TopicDeleted { id: entry.id() };
        match append(store, std::slice::from_ref(&transition)) {
            Ok(end) => {
                self.transition(&mut unit, store.topics(), transition, end);
                store.end_arrivals(&entry.handle);
                Ok((Deletion::Done(entry.id()), end))
            }
            Err(error) => {
                entry.handle.unkill();
                Err(error)
            }
        }
    }

    /// The one place where the unit changes: right after the append of the record in normal running, and in replay.
    /// `end` is that of the record. Returns the topic that a creation put an end to: its name is given again, so its
    /// deletion is a record that cannot be read.
    fn transition(
        &self,
        unit: &mut Unit,
        topics: &Topics,
        transition: Transition,
        end: PhysicalOffset,
    ) -> Option<TopicId> {
        unit.applied = unit.applied.max(end);
        let mut replaced = None;
        match transition {
            Transition::TopicCreated { id, name, settings } => {
                replaced =
                    unit.names.get(name.as_str()).map(|old| old.id()).filter(|old| *old != id);
                if let Some(old) = replaced {
                    self.remove(unit, topics, old);
                }
                unit.next = unit.next.max(TopicId::new(id.get() + 1));
                let entry = Arc::new(TopicEntry {
                    name: name.into(),
                    settings,
                    handle: topics.register(id, &settings),
                    next_queue: Arc::new(AtomicU32::new(unit.first_turn(id))),
                });
                unit.queues += u64::from(settings.queues);
                self.put(unit, entry);
            }
            Transition::TopicUpdated { id, settings } => {
                let old = self.by_id(id)?;
                old.handle.configure(&settings, end);
                unit.queues -= u64::from(old.settings.queues);
                unit.queues += u64::from(settings.queues);
                let entry = TopicEntry {
                    name: Arc::clone(&old.name),
                    settings,
                    handle: Arc::clone(&old.handle),
                    next_queue: Arc::clone(&old.next_queue),
                };
                self.put(unit, Arc::new(entry));
            }
            Transition::TopicExpired { id, below, before, queues, purged } => {
                let entry = self.by_id(id)?;
                entry.handle.purge(purged);
                entry.handle.expire(below, before, &queues);
            }
            Transition::TopicDeleted { id } => self.remove(unit, topics, id),
            Transition::NextTopicId { next } => unit.next = unit.next.max(next),
            // Of other units.
            _ => {}
        }
        replaced
    }

    /// Takes a topic out for good.
    fn remove(&self, unit: &mut Unit, topics: &Topics, id: TopicId) {
        let Some((_, entry)) = self.by_id.remove(&id) else { return };
        self.by_name.remove(&entry.name);
        unit.names.remove(&entry.name);
        unit.queues -= u64::from(entry.settings.queues);
        topics.remove(id);
    }

    /// Puts an entry in, in place of an earlier one of its incarnation.
    fn put(&self, unit: &mut Unit, entry: Arc<TopicEntry>) {
        self.by_id.insert(entry.id(), Arc::clone(&entry));
        self.by_name.insert(Arc::clone(&entry.name), Arc::clone(&entry));
        unit.names.insert(Arc::clone(&entry.name), entry);
    }

    /// Applies a transition of a record that ends at `end`, in replay. What a snapshot contained already changes
    /// nothing: the whole table is as of one position. Returns the topic that a creation put an end to.
    pub(super) fn replay(
        &self,
        topics: &Topics,
        transition: Transition,
        end: PhysicalOffset,
    ) -> Option<TopicId> {
        let mut unit = lock(&self.unit);
        // A counter that stands there already is no change: the table stays as of its last one.
        let is_known = matches!(transition, Transition::NextTopicId { next } if next <= unit.next);
        if end <= unit.restored || is_known {
            return None;
        }
        self.transition(&mut unit, topics, transition, end)
    }

    /// Applies a transition of a snapshot that is as of `applied`.
    pub(super) fn restore(&self, topics: &Topics, transition: Transition, applied: PhysicalOffset) {
        let mut unit = lock(&self.unit);
        unit.restored = unit.restored.max(applied);
        self.transition(&mut unit, topics, transition, applied);
    }

    /// Appends the transitions that make this table out of an empty one: creations by rising id, then the counter.
    /// Returns the end of the last record in them.
    pub(super) fn snapshot_into(&self, out: &mut Vec<u8>) -> PhysicalOffset {
        let unit = lock(&self.unit);
        Transition::AsOf { applied: unit.applied }.encode_into(out);
        let mut entries: Vec<_> = unit.names.values().collect();
        entries.sort_unstable_by_key(|entry| entry.id());
        for entry in entries {
            let (id, settings) = (entry.id(), entry.settings);
            let name = entry.name.as_ref().to_owned();
            Transition::TopicCreated { id, name, settings }.encode_into(out);
            let (below, before, queues) = entry.handle.expired();
            if below > PhysicalOffset::ZERO || before > Timestamp::ZERO || !queues.is_empty() {
                let purged = entry.handle.purged_below();
                Transition::TopicExpired { id, below, before, queues, purged }.encode_into(out);
            }
        }
        Transition::NextTopicId { next: unit.next }.encode_into(out);
        unit.applied
    }
}

impl Unit {
    fn limit_reached(&self, origin: Origin, queues: u32) -> Option<u64> {
        if self.queues + u64::from(queues) > TopicTable::MAX_QUEUES {
            return Some(TopicTable::MAX_QUEUES);
        }
        if self.names.len() >= TopicTable::MAX_TOPICS {
            return u64::try_from(TopicTable::MAX_TOPICS).ok();
        }
        match origin {
            Origin::Send { limit } if self.made_by_sends >= limit => Some(limit.into()),
            Origin::Asked | Origin::Send { .. } => None,
        }
    }

    /// Why a topic cannot go from `old` to `new`, if it cannot.
    fn refusal(&self, old: &TopicSettings, new: &TopicSettings, force: Force) -> Option<Update> {
        if new.queues < old.queues {
            return Some(Update::Fewer(old.queues));
        }
        let was_fifo = old.topic_type == TopicType::Fifo;
        let breaks_order = new.queues > old.queues || new.topic_type != old.topic_type;
        if was_fifo && breaks_order && force == Force::No {
            return Some(Update::BreaksOrder);
        }
        let queues = self.queues - u64::from(old.queues) + u64::from(new.queues);
        (queues > TopicTable::MAX_QUEUES).then_some(Update::Limit(TopicTable::MAX_QUEUES))
    }

    fn first_turn(&self, id: TopicId) -> u32 {
        // A multiplicative hash spreads neighbouring ids; only the high half is well mixed.
        let mixed = (id.get() ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        u32::try_from(mixed >> 32).unwrap_or_default()
    }
}

/// What keeps all that one of them keeps.
fn wider(one: Retention, other: Retention) -> Retention {
    let longer = |one: Option<u64>, other: Option<u64>| Some(one?.max(other?));
    Retention { time_ms: longer(one.time_ms, other.time_ms), bytes: longer(one.bytes, other.bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::State;
    use super::*;
    use crate::store::Applier as _;

    const SETTINGS: TopicSettings = TopicSettings::open(3, FlushMode::Async, TopicType::Fifo);

    fn created(id: u64, name: &str) -> Vec<u8> {
        let mut out = Vec::new();
        Transition::TopicCreated {
            id: TopicId::new(id),
            name: name.to_owned(),
            settings: SETTINGS,
        }
        .encode_into(&mut out);
        out
    }

    fn deleted(id: u64) -> Vec<u8> {
        let mut out = Vec::new();
        Transition::TopicDeleted { id: TopicId::new(id) }.encode_into(&mut out);
        out
    }

    fn replayed(records: &[Vec<u8>]) -> (State, Topics) {
        let (state, topics) = (State::new(0), Topics::default());
        for (record, end) in records.iter().zip(1..) {
            state.apply(&topics, record, PhysicalOffset::new(end * 100)).unwrap();
        }
        (state, topics)
    }

    fn names(state: &State) -> Vec<(String, u64)> {
        let (topics, more, _) = state.topics.list("", 100);
        assert!(!more);
        topics.iter().map(|t| (t.name().to_owned(), t.id().get())).collect()
    }

    #[test]
    fn replay_ends_where_the_records_lead() {
        let (table, topics) =
            replayed(&[created(1, "a"), created(2, "b"), deleted(1), created(3, "a")]);
        assert_eq!(names(&table), [("a".to_owned(), 3), ("b".to_owned(), 2)]);
        assert_eq!(table.topics.counts(), (2, 6));
        assert_eq!(table.topics.applied(), PhysicalOffset::new(400));
        assert!(topics.get(TopicId::new(1)).is_none());
        assert_eq!(table.topics.get("a").unwrap().settings(), SETTINGS);
    }

    #[test]
    fn a_snapshot_restores_the_table_and_never_frees_an_id() {
        let (table, known) =
            replayed(&[created(1, "z"), created(2, "b"), created(3, "c"), deleted(3)]);
        let snapshot = table.snapshot(&known);
        assert_eq!(snapshot.applied, PhysicalOffset::new(400));

        let (restored, topics) = (State::new(0), Topics::default());
        restored.restore(&topics, &snapshot.state).unwrap();
        assert_eq!(names(&restored), names(&table));
        assert_eq!(lock(&restored.topics.unit).next, TopicId::new(4));
        assert_eq!(restored.snapshot(&topics).state, snapshot.state);
    }

    #[test]
    fn replay_of_records_that_a_snapshot_holds_changes_nothing() {
        let records = [created(1, "a"), created(2, "b"), deleted(1), created(3, "a")];
        let (table, known) = replayed(&records);
        let snapshot = table.snapshot(&known);

        let (restored, topics) = (State::new(0), Topics::default());
        restored.restore(&topics, &snapshot.state).unwrap();
        for (record, end) in records.iter().zip(1..) {
            restored.apply(&topics, record, PhysicalOffset::new(end * 100)).unwrap();
        }
        assert_eq!(names(&restored), names(&table));
        assert_eq!(restored.topics.counts(), table.topics.counts());
        assert_eq!(restored.snapshot(&topics).state, snapshot.state);
    }

    #[test]
    fn listing_goes_on_after_a_name() {
        let (table, _) = replayed(&[created(1, "a"), created(2, "b"), created(3, "c")]);
        let (first, more, _) = table.topics.list("", 2);
        assert_eq!(first.iter().map(|t| t.name()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(more);
        let (rest, more, _) = table.topics.list("b", 2);
        assert_eq!(rest.iter().map(|t| t.name()).collect::<Vec<_>>(), ["c"]);
        assert!(!more);
    }

    #[test]
    fn round_robin_visits_every_queue() {
        let (table, _) = replayed(&[created(1, "a")]);
        let topic = table.topics.get("a").unwrap();
        let mut turns: Vec<_> = (0..3).map(|_| topic.next_queue().get()).collect();
        turns.sort_unstable();
        assert_eq!(turns, [0, 1, 2]);
    }

    fn encoded(transitions: &[Transition]) -> Vec<u8> {
        let mut out = Vec::new();
        transitions.iter().for_each(|transition| transition.encode_into(&mut out));
        out
    }

    #[test]
    fn an_update_replaces_the_settings_and_keeps_the_incarnation() {
        let settings = TopicSettings {
            queues: 5,
            flush: FlushMode::Sync,
            topic_type: TopicType::Mixed,
            access: Access { read: true, write: false },
            retention: Retention { time_ms: Some(60_000), bytes: Some(1 << 20) },
        };
        let update = encoded(&[Transition::TopicUpdated { id: TopicId::new(1), settings }]);
        let (state, topics) = replayed(&[created(1, "a"), created(2, "b"), update]);
        assert_eq!(names(&state), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert_eq!(state.topics.counts(), (2, 8));
        for topic in [state.topics.get("a").unwrap(), state.topics.by_id(TopicId::new(1)).unwrap()]
        {
            assert_eq!(topic.settings(), settings);
        }
        let handle = topics.get(TopicId::new(1)).unwrap();
        assert_eq!((handle.queues(), handle.flush()), (5, FlushMode::Sync));
    }

    #[test]
    fn transitions_of_a_topic_that_is_gone_change_nothing() {
        let id = TopicId::new(1);
        let (below, before) = (PhysicalOffset::new(900), Timestamp::ZERO);
        let late = encoded(&[
            Transition::TopicExpired { id, below, before, queues: Vec::new(), purged: below },
            Transition::TopicUpdated { id, settings: TopicSettings { queues: 9, ..SETTINGS } },
        ]);
        let (state, topics) = replayed(&[created(1, "a"), deleted(1), created(2, "a"), late]);
        assert_eq!(names(&state), [("a".to_owned(), 2)]);
        assert_eq!(state.topics.counts(), (1, 3));
        let expired = topics.get(TopicId::new(2)).unwrap().expired();
        assert_eq!(expired, (PhysicalOffset::ZERO, Timestamp::ZERO, Vec::new()));
    }

    /// What an update makes shorter used to hold before its record was appended: where that failed, messages could have
    /// gone by a retention that was never in force.
    #[test]
    fn before_an_update_is_recorded_each_limit_is_the_wider_one() {
        let keep = |time_ms, bytes| Retention { time_ms, bytes };
        for (old, new, wider_one) in [
            (keep(None, None), keep(Some(5), Some(5)), keep(None, None)),
            (keep(Some(5), Some(5)), keep(Some(5), Some(5)), keep(Some(5), Some(5))),
            (keep(Some(5), Some(5)), keep(Some(4), Some(6)), keep(Some(5), Some(6))),
            (keep(Some(5), Some(5)), keep(None, Some(4)), keep(None, Some(5))),
            (keep(Some(5), None), keep(Some(6), Some(4)), keep(Some(6), None)),
            (keep(Some(5), None), keep(Some(4), None), keep(Some(5), None)),
        ] {
            assert_eq!(wider(old, new), wider_one, "{old:?} {new:?}");
            assert_eq!(wider(new, old), wider_one, "{old:?} {new:?}");
        }
    }

    /// A change of a few topics, some of which are gone at the time or come later.
    fn change() -> impl Strategy<Value = Transition> {
        let id = (1..6_u64).prop_map(TopicId::new);
        let limit = prop::option::of(1..1_000_u64);
        let settings = (1..9_u32, any::<bool>(), any::<[bool; 2]>(), limit.clone(), limit)
            .prop_map(|(queues, is_async, [read, write], time_ms, bytes)| TopicSettings {
                queues,
                flush: if is_async { FlushMode::Async } else { FlushMode::Sync },
                topic_type: TopicType::Normal,
                access: Access { read, write },
                retention: Retention { time_ms, bytes },
            });
        let row = (0..9_u32, 1..99_u64)
            .prop_map(|(queue, offset)| (QueueId::new(queue), QueueOffset::new(offset)));
        let rows = prop::collection::vec(row, 0..3);
        prop_oneof![
            2 => (id.clone(), settings.clone()).prop_map(|(id, settings)| {
                Transition::TopicCreated { id, name: format!("t{id}"), settings }
            }),
            4 => (id.clone(), settings)
                .prop_map(|(id, settings)| Transition::TopicUpdated { id, settings }),
            4 => (id.clone(), 0..999_u64, 0..999_u64, rows).prop_map(|(id, below, before, queues)| {
                let purged = PhysicalOffset::new(before.min(below));
                let (below, before) = (PhysicalOffset::new(below), Timestamp::new(before));
                Transition::TopicExpired { id, below, before, queues, purged }
            }),
            1 => id.prop_map(|id| Transition::TopicDeleted { id }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        #[test]
        fn a_snapshot_and_all_records_give_the_state_of_all_records(
            changes in prop::collection::vec(change(), 1..40),
            taken_after in 0..40_usize,
        ) {
            // An id is given once, and queues are never taken away: what the unit itself would not write, is left out.
            let mut queues = BTreeMap::new();
            let mut records = Vec::new();
            for mut change in changes {
                match &mut change {
                    Transition::TopicCreated { id, .. } if queues.contains_key(id) => continue,
                    Transition::TopicCreated { id, settings, .. } => {
                        queues.insert(*id, settings.queues);
                    }
                    Transition::TopicUpdated { id, settings } => {
                        let known = queues.get(id).copied().unwrap_or_default();
                        settings.queues = settings.queues.max(known);
                        queues.entry(*id).and_modify(|queues| *queues = settings.queues);
                    }
                    _ => {}
                }
                records.push(encoded(&[change]));
            }
            let (whole, topics) = replayed(&records);
            let (early, early_topics) = replayed(&records[..taken_after.min(records.len())]);

            let (restored, restored_topics) = (State::new(0), Topics::default());
            restored.restore(&restored_topics, &early.snapshot(&early_topics).state).unwrap();
            for (record, end) in records.iter().zip(1..) {
                restored.apply(&restored_topics, record, PhysicalOffset::new(end * 100)).unwrap();
            }
            prop_assert_eq!(restored.snapshot(&restored_topics), whole.snapshot(&topics));
            prop_assert_eq!(restored.topics.counts(), whole.topics.counts());
        }
    }
}
