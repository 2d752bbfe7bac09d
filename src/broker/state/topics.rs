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

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;

use super::append;
use crate::format::state_record::Transition;
use crate::message::{PhysicalOffset, QueueId, Timestamp, TopicId, TopicSettings};
use crate::store::{AppendError, Store, TopicHandle, Topics};
use crate::sync::{Mutex, lock};

type Hasher = foldhash::fast::RandomState;

/// A topic, from its creation until it is deleted and whoever still holds it lets go.
#[derive(Debug)]
pub struct TopicEntry {
    name: Arc<str>,
    settings: TopicSettings,
    handle: Arc<TopicHandle>,
    /// The next queue of the round robin. Relaxed: any spread will do.
    next_queue: AtomicU32,
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

    /// What it was made with.
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
    /// `end` is that of the record.
    fn transition(
        &self,
        unit: &mut Unit,
        topics: &Topics,
        transition: Transition,
        end: PhysicalOffset,
    ) {
        unit.applied = unit.applied.max(end);
        match transition {
            Transition::TopicCreated { id, name, settings } => {
                unit.next = unit.next.max(TopicId::new(id.get() + 1));
                let name: Arc<str> = name.into();
                let entry = Arc::new(TopicEntry {
                    name: Arc::clone(&name),
                    settings,
                    handle: topics.register(id, &settings),
                    next_queue: AtomicU32::new(unit.first_turn(id)),
                });
                unit.queues += u64::from(settings.queues);
                self.by_id.insert(id, Arc::clone(&entry));
                self.by_name.insert(Arc::clone(&name), Arc::clone(&entry));
                unit.names.insert(name, entry);
            }
            Transition::TopicDeleted { id } => {
                let Some((_, entry)) = self.by_id.remove(&id) else { return };
                self.by_name.remove(&entry.name);
                unit.names.remove(&entry.name);
                unit.queues -= u64::from(entry.settings.queues);
                topics.remove(id);
            }
            Transition::NextTopicId { next } => unit.next = unit.next.max(next),
            // Of other units.
            _ => {}
        }
    }

    /// Applies a transition of a record that ends at `end`, in replay. What a snapshot contained already changes
    /// nothing: the whole table is as of one position.
    pub(super) fn replay(&self, topics: &Topics, transition: Transition, end: PhysicalOffset) {
        let mut unit = lock(&self.unit);
        if end > unit.restored {
            self.transition(&mut unit, topics, transition, end);
        }
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
                Transition::TopicExpired { id, below, before, queues }.encode_into(out);
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

    fn first_turn(&self, id: TopicId) -> u32 {
        // A multiplicative hash spreads neighbouring ids; only the high half is well mixed.
        let mixed = (id.get() ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        u32::try_from(mixed >> 32).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::message::{FlushMode, TopicType};
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
}
