//! Committed offsets: one unit of state for each (group, topic).
//!
//! | part | read by | written |
//! | --- | --- | --- |
//! | `units` | every commit and every look at one (group, topic), without a lock of its own | at the first commit of a group to a topic; when either is forgotten |
//! | a unit's mutex | who commits to it or looks at it | by commits, replay and forgetting |
//! | `index` | who lists what a group or a topic has, snapshots | with `units` |
//! | `history` (`history.rs`) | who asks what moved a group, snapshots | with the units, by commits that are remembered |
//!
//! Lock order: the units of one commit by rising topic id, then the store's append lock, or `history`; `index`, then
//! `units`.
//!
//! A queue that its topic got after the group's first commit to the topic begins at 0, not where the group began: what
//! was sent to it before the group looked must not be passed over. So a unit keeps its *bound*: how many queues there
//! were when that commit's caller looked, as far as he says so.
//!
//! Deletion: a group or a topic is marked dead, then its record is appended, then its units are forgotten. A commit
//! looks at the mark under the unit's mutex. If it saw none, its record may lie behind the deletion; then what it
//! applied is forgotten with the unit, as replay passes over it: the group or the topic is gone there.
//!
//! A group that gets messages (`leased.rs`, `leases/`) has a position too, the same one: it moves as messages are
//! finished. So a commit is refused in a queue of which messages are open, and a reset ends their leases.
//!
//! Memory: 12 bytes for each committed queue offset, and about 200 for each (group, topic). `benches/offsets.rs`
//! prints it.
//!
//! A commit that goes forward and says nothing about itself, as those of consumers do, is not remembered: it has no
//! note, its record has no byte for it, and it does not touch `history`.

mod history;
pub(crate) mod leased;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeBounds;
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::Notify;

use super::groups::GroupEntry;
use super::leases::{Leases, ReadyTable, Size};
use super::topics::TopicEntry;
use super::{Source, append};
use crate::broker::counters::Counter;
use crate::format::state_record::{OffsetCause, OffsetMove, OffsetNote, Transition};
use crate::message::{
    Epoch, GroupId, LeaseId, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId,
};
use crate::store::{AppendError, Store};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock};

use self::history::History;
pub(crate) use self::history::{Asked, KEPT_MS};
pub use self::history::{ChangeKind, OffsetChange};

type Hasher = foldhash::fast::RandomState;

/// What a committed offset must be for a commit to take place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is.
    #[default]
    Any,
    /// None is committed.
    Nothing,
    /// This one.
    Offset(QueueOffset),
}

impl Expected {
    fn is_met(self, current: Option<QueueOffset>) -> bool {
        match self {
            Self::Any => true,
            Self::Nothing => current.is_none(),
            Self::Offset(offset) => current == Some(offset),
        }
    }
}

/// An offset to commit, checked against what its queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewOffset {
    pub(crate) queue: QueueId,
    pub(crate) offset: QueueOffset,
    pub(crate) expected: Expected,
}

/// The offsets to commit in one topic: at least one, by rising queue, no queue twice.
#[derive(Debug)]
pub(crate) struct TopicCommit {
    pub(crate) topic: Arc<TopicEntry>,
    /// Queues that the topic had when it was looked where the group begins; at least 1.
    pub(crate) known_queues: u32,
    pub(crate) offsets: Vec<NewOffset>,
}

/// Who commits or resets, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller<'a> {
    /// Where the request came from, if it came over a network.
    pub address: Option<SocketAddr>,
    /// His name, as he says; empty if he does not. At most 128 bytes without control characters.
    pub name: &'a str,
}

/// Why offsets are committed, and by whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct By<'a> {
    pub(crate) cause: OffsetCause,
    pub(crate) caller: Caller<'a>,
}

impl By<'_> {
    /// Whether what changes for it is remembered wherever it goes. A commit of nobody is only if it goes back.
    fn is_remembered(&self) -> bool {
        self.cause == OffsetCause::Reset || !self.caller.name.is_empty()
    }

    fn note(&self, at: Timestamp) -> Arc<OffsetNote> {
        let Caller { address, name } = self.caller;
        let by = (!name.is_empty()).then(|| name.into());
        Arc::new(OffsetNote { at, cause: self.cause, address, by })
    }
}

/// What became of a commit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    /// All of it is there. It may be said once the log is durable up to `end`.
    Done {
        /// Of the record, or of that which committed the same before.
        end: PhysicalOffset,
        /// What was committed before, in the order of the topics and their offsets.
        old: Vec<Option<QueueOffset>>,
    },
    /// Nothing of it is there: an expectation was not met. It may be said once the log is durable up to `applied`.
    Conflict {
        topic: TopicId,
        queue: QueueId,
        current: Option<QueueOffset>,
        applied: PhysicalOffset,
    },
    /// Nothing of it is there: messages of a queue are leased, or wait to be delivered again.
    Open { topic: TopicId, queue: QueueId },
    /// Nothing of it is there: there are too many committed offsets.
    Limit,
    /// Nothing of it is there: the group or one of the topics is being deleted.
    Deleted,
}

/// What a group has committed to a topic, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Committed {
    rows: Vec<(QueueId, QueueOffset)>,
    /// 0: nothing is committed.
    bound: u32,
    /// It may be told once the log is durable up to here.
    pub(crate) applied: PhysicalOffset,
}

impl Committed {
    /// The next offset of `queue` to consume, if one is committed. A queue that came later begins at 0.
    pub(crate) fn get(&self, queue: QueueId) -> Option<QueueOffset> {
        let found = self.rows.binary_search_by_key(&queue, |(queue, _)| *queue).ok();
        let row = found.and_then(|at| self.rows.get(at)).map(|(_, offset)| *offset);
        row.or_else(|| begins_at_zero(queue, self.bound))
    }
}

/// The offset of a queue without one, if it is a queue that came later.
fn begins_at_zero(queue: QueueId, bound: u32) -> Option<QueueOffset> {
    (bound > 0 && queue.get() >= bound).then_some(QueueOffset::ZERO)
}

/// A committed offset, in 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    queue: u32,
    low: u32,
    high: u32,
}

impl Row {
    fn new(queue: QueueId, offset: QueueOffset) -> Self {
        let (low, high) = (offset.get() as u32, (offset.get() >> u32::BITS) as u32);
        Self { queue: queue.get(), low, high }
    }

    fn offset(self) -> QueueOffset {
        QueueOffset::new(u64::from(self.low) | u64::from(self.high) << u32::BITS)
    }

    fn pair(self) -> (QueueId, QueueOffset) {
        (QueueId::new(self.queue), self.offset())
    }
}

/// One unit; guarded by its mutex.
#[derive(Debug, Default)]
struct Unit {
    /// By rising queue.
    rows: Box<[Row]>,
    /// The end of the last record that changed the unit.
    applied: PhysicalOffset,
    /// Queues that the topic had for the first commit; 0 before it.
    bound: u32,
    /// Out of the table for good: its group or its topic is gone.
    forgotten: bool,
    /// There from the first message on that the group got.
    leases: Option<Box<Leases>>,
    /// What the snapshot contained that the start began with.
    restored: PhysicalOffset,
}

impl Unit {
    fn row(&self, queue: QueueId) -> Option<Row> {
        let at = self.rows.binary_search_by_key(&queue.get(), |row| row.queue).ok()?;
        self.rows.get(at).copied()
    }

    fn get(&self, queue: QueueId) -> Option<QueueOffset> {
        let row = self.row(queue).map(Row::offset);
        row.or_else(|| begins_at_zero(queue, self.bound))
    }

    /// How many of these queues have no row yet.
    fn missing(&self, queues: impl Iterator<Item = QueueId>) -> u64 {
        queues.map(|queue| u64::from(self.row(queue).is_none())).sum()
    }

    /// Which of these offsets are changes to be remembered under `note`.
    fn moves(&self, note: &OffsetNote, offsets: &[(QueueId, QueueOffset)]) -> Vec<OffsetMove> {
        let all = note.cause == OffsetCause::Reset || note.by.is_some();
        let moves = offsets.iter().filter_map(|(queue, new)| {
            let old = self.get(*queue);
            let is_told = if all { old != Some(*new) } else { old.is_some_and(|old| *new < old) };
            is_told.then_some(OffsetMove { queue: *queue, old, new: *new })
        });
        moves.collect()
    }

    /// The one place where offsets change. `offsets` by rising queue, none twice.
    fn transition(
        &mut self,
        bound: u32,
        offsets: &[(QueueId, QueueOffset)],
        end: PhysicalOffset,
    ) -> u64 {
        self.applied = self.applied.max(end);
        if self.bound == 0 {
            self.bound = bound;
        }
        let mut unknown = 0;
        for (queue, offset) in offsets {
            match self.rows.binary_search_by_key(&queue.get(), |row| row.queue) {
                Ok(at) => {
                    if let Some(row) = self.rows.get_mut(at) {
                        *row = Row::new(*queue, *offset);
                    }
                }
                Err(_) => unknown += 1,
            }
        }
        if unknown > 0 {
            self.merge(offsets, unknown);
        }
        unknown as u64
    }

    /// Adds the rows that are not there; exactly as much memory as there are rows.
    fn merge(&mut self, offsets: &[(QueueId, QueueOffset)], unknown: usize) {
        let old = std::mem::take(&mut self.rows);
        let mut rows = Vec::with_capacity(old.len() + unknown);
        let mut old = old.iter().copied().peekable();
        for (queue, offset) in offsets {
            while let Some(row) = old.next_if(|row| row.queue < queue.get()) {
                rows.push(row);
            }
            old.next_if(|row| row.queue == queue.get());
            rows.push(Row::new(*queue, *offset));
        }
        rows.extend(old);
        self.rows = rows.into_boxed_slice();
    }
}

/// What a commit changes in one unit.
#[derive(Clone, Copy, Debug)]
struct UnitChange<'a> {
    bound: u32,
    /// By rising queue, none twice.
    offsets: &'a [(QueueId, QueueOffset)],
    note: Option<&'a Arc<OffsetNote>>,
    revoked: Option<Epoch>,
}

/// Which units there are, both ways round.
#[derive(Debug, Default)]
struct Index {
    by_group: BTreeSet<(GroupId, TopicId)>,
    by_topic: BTreeSet<(TopicId, GroupId)>,
}

/// All units.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    units: DashMap<(GroupId, TopicId), Arc<Mutex<Unit>>, Hasher>,
    index: Mutex<Index>,
    /// Rows of all units, and those that a commit under way may add. Relaxed: a limit, and a number to show.
    rows: AtomicU64,
    history: Mutex<History>,
    /// Open messages of all units. Relaxed, as `rows`.
    open: AtomicU64,
    /// Queues of all units that have as many of them as may be. Relaxed: a number to show.
    full: AtomicU64,
    /// The units that somebody has to look at, by when. Taken under a unit's mutex.
    timers: Mutex<BTreeSet<(u64, GroupId, TopicId)>>,
    /// Told when the first of them is another.
    pub(crate) timer_set: Notify,
    /// The units in which something is leased to clients for as long as they live. Taken under a unit's mutex.
    of_clients: Mutex<BTreeSet<(GroupId, TopicId)>>,
    /// What the clock of leases read last, as far as a record says so. Relaxed: a number that only grows.
    lease_clock: AtomicU64,
    /// Who looks for messages, and where.
    pub(crate) ready: ReadyTable,
    /// Messages that receives looked at to deliver them: open ones that are due, and fresh ones.
    pub(crate) looked_at: Counter,
}

impl Offsets {
    /// The most committed queue offsets there may be in all.
    pub(crate) const MAX_ROWS: u64 = 16_000_000;

    /// Bytes of one unit: its place in the maps, itself and its allocations.
    const UNIT_COST: u64 = 200;

    /// Bytes of one open message: itself, and its place in the order of what is due.
    const OPEN_COST: u64 = 160;

    /// Commits offsets of a group in several topics, by rising id and no topic twice: all of them with one record, or
    /// none. Blocks for one append at most. What is committed already appends nothing.
    ///
    /// # Errors
    /// The append's: nothing is committed. After `NotReady` await space and call again.
    pub(crate) fn commit(
        &self,
        store: &Store,
        group: &GroupEntry,
        topics: &[TopicCommit],
        by: By<'_>,
    ) -> Result<Commit, AppendError> {
        let units: Vec<_> =
            topics.iter().map(|commit| self.unit(group.id(), commit.topic.id())).collect();
        let mut locked: Vec<_> = topics.iter().zip(units.iter().map(|unit| lock(unit))).collect();
        let outcome = self.commit_locked(store, group, &mut locked, by);
        drop(locked);
        // Before the look at who holds them: of commits that fail together the last one takes the units out.
        drop(units);
        if !matches!(outcome, Ok(Commit::Done { .. })) {
            for commit in topics {
                self.discard_empty((group.id(), commit.topic.id()));
            }
        }
        outcome
    }

    fn commit_locked(
        &self,
        store: &Store,
        group: &GroupEntry,
        units: &mut [(&TopicCommit, MutexGuard<'_, Unit>)],
        by: By<'_>,
    ) -> Result<Commit, AppendError> {
        if group.is_dead() {
            return Ok(Commit::Deleted);
        }
        let (mut old, mut added, mut changes) = (Vec::new(), 0, false);
        let (mut applied, mut is_remembered) = (PhysicalOffset::ZERO, by.is_remembered());
        for (commit, unit) in units.iter() {
            if unit.forgotten || commit.topic.handle().is_dead() {
                return Ok(Commit::Deleted);
            }
            applied = applied.max(unit.applied);
            for new in &commit.offsets {
                let is_open = unit.leases.as_ref().is_some_and(|leases| leases.has_open(new.queue));
                if is_open && by.cause == OffsetCause::Commit {
                    let (topic, queue) = (commit.topic.id(), new.queue);
                    return Ok(Commit::Open { topic, queue });
                }
                changes |= is_open;
                let current = unit.get(new.queue);
                if !new.expected.is_met(current) {
                    let (topic, queue) = (commit.topic.id(), new.queue);
                    return Ok(Commit::Conflict { topic, queue, current, applied: unit.applied });
                }
                changes |= unit.row(new.queue).map(Row::offset) != Some(new.offset);
                is_remembered |= current.is_some_and(|old| new.offset < old);
                old.push(current);
            }
            added += unit.missing(commit.offsets.iter().map(|new| new.queue));
        }
        if !changes {
            return Ok(Commit::Done { end: applied, old });
        }
        if self.rows.fetch_add(added, Ordering::Relaxed) + added > Self::MAX_ROWS && added > 0 {
            self.rows.fetch_sub(added, Ordering::Relaxed);
            return Ok(Commit::Limit);
        }
        let note = is_remembered.then(|| by.note(store.now()));
        let transitions: Vec<_> = units
            .iter()
            .map(|(commit, unit)| Transition::OffsetsCommitted {
                group: group.id(),
                topic: commit.topic.id(),
                bound: match unit.bound {
                    0 => commit.known_queues,
                    known => known,
                },
                offsets: commit.offsets.iter().map(|new| (new.queue, new.offset)).collect(),
                note: note.clone(),
                // A power cut may have taken leases whose receipts are still out there: a reset ends those too.
                revoked: (unit.leases.is_some() || by.cause == OffsetCause::Reset)
                    .then(|| store.epoch()),
            })
            .collect();
        let end = append(store, &transitions).inspect_err(|_| {
            self.rows.fetch_sub(added, Ordering::Relaxed);
        })?;
        for (transition, (_, unit)) in transitions.iter().zip(units.iter_mut()) {
            if let Transition::OffsetsCommitted { topic, bound, offsets, note, revoked, .. } =
                transition
            {
                let key = (group.id(), *topic);
                let (bound, note, revoked) = (*bound, note.as_ref(), *revoked);
                let change = UnitChange { bound, offsets, note, revoked };
                self.apply(key, unit, change, end);
            }
        }
        Ok(Commit::Done { end, old })
    }

    /// Takes a commit into its unit and, if it has a note, into the history; how many rows the unit got by it. The
    /// same for one that was just appended and one that is found again.
    fn apply(
        &self,
        key: (GroupId, TopicId),
        unit: &mut Unit,
        change: UnitChange<'_>,
        end: PhysicalOffset,
    ) -> u64 {
        if let Some(note) = change.note {
            let moves = unit.moves(note, change.offsets);
            lock(&self.history).add(key, end, note, &moves);
        }
        // Wherever the group goes on now there may be messages for it.
        if let Some(ready) = self.ready.get(key) {
            change.offsets.iter().for_each(|(queue, _)| ready.moved(queue.get()));
        }
        if let Some(epoch) = change.revoked {
            let lease = LeaseId { epoch, number: end.get() };
            let leases = unit.leases.get_or_insert_default();
            let before = leases.size();
            leases.revoke(change.offsets.iter().map(|(queue, _)| *queue), lease);
            self.recount(before, leases.size());
        }
        unit.transition(change.bound, change.offsets, end)
    }

    /// What is remembered of a group in a topic and not from before `since`, newest first.
    pub(crate) fn history(
        &self,
        group: GroupId,
        topic: TopicId,
        asked: Asked,
        since: Timestamp,
    ) -> (Vec<OffsetChange>, bool) {
        lock(&self.history).list((group, topic), asked, since)
    }

    /// How many changes are remembered.
    pub(crate) fn remembered(&self) -> u64 {
        lock(&self.history).count()
    }

    /// What a group has committed to a topic; nothing if it never did.
    pub(crate) fn committed(&self, group: GroupId, topic: TopicId) -> Committed {
        let Some(unit) = self.units.get(&(group, topic)).map(|unit| Arc::clone(&unit)) else {
            return Committed::default();
        };
        let unit = lock(&unit);
        let rows = unit.rows.iter().map(|row| row.pair()).collect();
        Committed { rows, bound: unit.bound, applied: unit.applied }
    }

    /// The same of one queue, and the position up to which the log must be durable before it may be told.
    pub(crate) fn committed_of(
        &self,
        group: GroupId,
        topic: TopicId,
        queue: QueueId,
    ) -> (Option<QueueOffset>, PhysicalOffset) {
        let Some(unit) = self.units.get(&(group, topic)).map(|unit| Arc::clone(&unit)) else {
            return (None, PhysicalOffset::ZERO);
        };
        let unit = lock(&unit);
        (unit.get(queue), unit.applied)
    }

    /// Up to `limit` topics that a group has committed to, by rising id after `after`, and whether there are more.
    pub(crate) fn topics_of(
        &self,
        group: GroupId,
        after: TopicId,
        limit: usize,
    ) -> (Vec<TopicId>, bool) {
        let index = lock(&self.index);
        let first = (group, TopicId::new(after.get().saturating_add(1)));
        let mut topics = index.by_group.range(first..=(group, TopicId::new(u64::MAX)));
        let found = topics.by_ref().take(limit).map(|(_, topic)| *topic).collect();
        (found, topics.next().is_some())
    }

    /// All who wait for messages in a group's name look again, and what is due of its topics is looked at anew.
    pub(crate) fn wake_group(&self, group: GroupId) {
        let topics = (group, TopicId::ZERO)..=(group, TopicId::new(u64::MAX));
        let keys: Vec<_> = lock(&self.index).by_group.range(topics).copied().collect();
        for key in keys {
            if let Some(unit) = self.known(key)
                && let Some(leases) = &mut lock(&unit).leases
                && leases.count() > 0
            {
                self.set_timer(key, leases, 0);
            }
            if let Some(ready) = self.ready.get(key) {
                ready.wake_all();
            }
        }
    }

    /// How many queue offsets are committed.
    pub(crate) fn count(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Bytes of memory that they take, about.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let units = u64::try_from(self.units.len()).unwrap_or(u64::MAX);
        let rows = self.count() * size_of::<Row>() as u64;
        units * Self::UNIT_COST + rows + self.open() * Self::OPEN_COST
    }

    /// Forgets what a deleted group has committed.
    pub(crate) fn forget_group(&self, group: GroupId) {
        let last = (group, TopicId::new(u64::MAX));
        let keys = {
            let mut index = lock(&self.index);
            let keys = drain(&mut index.by_group, (group, TopicId::ZERO)..=last);
            for (group, topic) in &keys {
                index.by_topic.remove(&(*topic, *group));
            }
            keys
        };
        keys.into_iter().for_each(|key| self.forget(key));
    }

    /// Forgets what all groups have committed to a deleted topic.
    pub(crate) fn forget_topic(&self, topic: TopicId) {
        let last = (topic, GroupId::new(u64::MAX));
        let keys = {
            let mut index = lock(&self.index);
            let keys = drain(&mut index.by_topic, (topic, GroupId::ZERO)..=last);
            for (topic, group) in &keys {
                index.by_group.remove(&(*group, *topic));
            }
            keys
        };
        keys.into_iter().for_each(|(topic, group)| self.forget((group, topic)));
    }

    fn forget(&self, key: (GroupId, TopicId)) {
        // Before the unit: who makes one anew sees that the group or the topic is dead.
        self.ready.forget(key);
        if let Some((_, unit)) = self.units.remove(&key) {
            let mut unit = lock(&unit);
            unit.forgotten = true;
            let rows = std::mem::take(&mut unit.rows);
            self.rows.fetch_sub(rows.len() as u64, Ordering::Relaxed);
            let leases = unit.leases.take();
            let before = leases.map(|leases| leases.size()).unwrap_or_default();
            self.recount(before, Size::default());
            // Nothing comes after it: whoever adds has the unit's lock, and has seen that it is not forgotten.
            lock(&self.history).forget(key);
        }
    }

    /// The unit of a group and a topic, made if it is not there.
    fn unit(&self, group: GroupId, topic: TopicId) -> Arc<Mutex<Unit>> {
        if let Some(unit) = self.units.get(&(group, topic)) {
            return Arc::clone(&unit);
        }
        // Under the index's mutex both ways, so that whoever is in the one is in the other.
        let mut index = lock(&self.index);
        index.by_group.insert((group, topic));
        index.by_topic.insert((topic, group));
        Arc::clone(&self.units.entry((group, topic)).or_default())
    }

    /// Takes a unit out again into which nothing was ever committed: a commit made it and came to nothing.
    fn discard_empty(&self, key: (GroupId, TopicId)) {
        let mut index = lock(&self.index);
        self.units.remove_if(&key, |_, unit| {
            // The map holds it and nobody else, so nobody is about to commit to it.
            Arc::strong_count(unit) == 1 && lock(unit).bound == 0
        });
        // Also if it was forgotten meanwhile.
        if !self.units.contains_key(&key) {
            index.by_group.remove(&key);
            index.by_topic.remove(&(key.1, key.0));
        }
    }

    /// Applies a commit of a record that ends at `end`, in replay, or of a snapshot that is as of `end`. The caller
    /// has looked that group and topic are there. What a unit contains already is passed over; its last record may
    /// come again, which changes nothing.
    pub(super) fn replay(
        &self,
        key: (GroupId, TopicId),
        bound: u32,
        mut offsets: Vec<(QueueId, QueueOffset)>,
        note: Option<&Arc<OffsetNote>>,
        revoked: Option<Epoch>,
        (end, from): (PhysicalOffset, Source),
    ) {
        // As they were written; another order would break the rows.
        offsets.sort_by_key(|(queue, _)| *queue);
        offsets.dedup_by_key(|(queue, _)| *queue);
        let unit = self.unit(key.0, key.1);
        let mut unit = lock(&unit);
        if from == Source::Snapshot {
            unit.restored = end;
        } else if end <= unit.restored {
            return;
        }
        let change = UnitChange { bound, offsets: &offsets, note, revoked };
        let added = self.apply(key, &mut unit, change, end);
        self.rows.fetch_add(added, Ordering::Relaxed);
    }

    /// The same for what consumers did. What was open at a snapshot comes behind the positions of it.
    pub(super) fn replay_leases(
        &self,
        key: (GroupId, TopicId),
        transition: Transition,
        (end, from): (PhysicalOffset, Source),
    ) {
        let unit = self.unit(key.0, key.1);
        let mut unit = lock(&unit);
        if from == Source::Snapshot {
            unit.restored = end;
            let mut leases = unit.leases.take().unwrap_or_default();
            let before = leases.size();
            leases.kept(transition);
            self.recount(before, leases.size());
            self.look_again(key, &mut leases);
            unit.leases = Some(leases);
        } else if end > unit.restored {
            self.apply_all(key, &mut unit, std::slice::from_ref(&transition), end);
        }
    }

    /// Takes over what a snapshot remembers of one change.
    pub(super) fn restore_history(
        &self,
        key: (GroupId, TopicId),
        position: PhysicalOffset,
        note: &Arc<OffsetNote>,
        moves: &[OffsetMove],
    ) {
        lock(&self.history).add(key, position, note, moves);
    }

    /// Appends the transitions that make these units, by group and topic, each as of its own last record. Returns the
    /// end of the last of those.
    pub(super) fn snapshot_into(&self, out: &mut Vec<u8>) -> PhysicalOffset {
        let keys: Vec<_> = lock(&self.index).by_group.iter().copied().collect();
        let mut last = PhysicalOffset::ZERO;
        match self.lease_clock() {
            Timestamp::ZERO => {}
            at => Transition::LeaseClock { at }.encode_into(out),
        }
        for key in keys {
            let Some(unit) = self.units.get(&key).map(|unit| Arc::clone(&unit)) else { continue };
            let unit = lock(&unit);
            if unit.forgotten || unit.bound == 0 {
                continue;
            }
            let (group, topic) = key;
            let offsets = unit.rows.iter().map(|row| row.pair()).collect();
            Transition::AsOf { applied: unit.applied }.encode_into(out);
            let (bound, note, revoked) = (unit.bound, None, None);
            Transition::OffsetsCommitted { group, topic, bound, offsets, note, revoked }
                .encode_into(out);
            if let Some(leases) = &unit.leases {
                leases.keep(group, topic, out);
            }
            // Under the unit's lock: what is remembered is as of the same record.
            for (position, note, moves) in lock(&self.history).of(key) {
                Transition::OffsetHistory { group, topic, position, note, moves }.encode_into(out);
            }
            last = last.max(unit.applied);
        }
        last
    }
}

/// Takes a range out of a set.
fn drain<K: Ord + Copy>(set: &mut BTreeSet<K>, range: impl RangeBounds<K>) -> Vec<K> {
    let keys: Vec<K> = set.range(range).copied().collect();
    for key in &keys {
        set.remove(key);
    }
    keys
}
