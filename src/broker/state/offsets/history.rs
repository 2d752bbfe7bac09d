//! What is remembered of changes of committed offsets: who moved a group, when, from where to where.
//!
//! | change of a queue's offset | is remembered |
//! | --- | --- |
//! | by a reset | yes |
//! | to a lower one | yes |
//! | by a commit whose caller gives a name | yes |
//! | by any other commit | no: there are thousands a second. The next entry tells how far they had gone |
//!
//! | bound | what goes |
//! | --- | --- |
//! | [`MAX_OF_QUEUE`] changes of one queue for one group | its oldest |
//! | [`KEPT_MS`] before the newest change of all | the older ones; whoever asks does not see those that are as old by then |
//! | [`MAX_CHANGES`] changes in all | the oldest of all |
//!
//! It is part of the units of [`super`]: what happens to a unit happens to its history under the unit's lock, in
//! normal running as in replay. So both come to the same, with one exception. At [`MAX_CHANGES`] a group or a topic may
//! be deleted just while others move; how many of the oldest changes make room then depends on who comes first.
//!
//! **Memory**, measured: 240 bytes for a change of one queue, if many are of one step, which is one record. One that is
//! a step of its own takes 370, with the longest name 480. So at [`MAX_CHANGES`] it is 64 MB at most. If all of that
//! is of one group in one topic, a page takes 20 ms under the lock, and a snapshot 80 ms under the unit's too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::format::state_record::{OffsetCause, OffsetMove, OffsetNote};
use crate::message::{GroupId, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};

/// The most changes of one queue for one group.
const MAX_OF_QUEUE: usize = 100;

/// How long a change is remembered: 7 days.
pub(crate) const KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// The most changes in all: two resets of the widest topic.
pub(super) const MAX_CHANGES: usize = 1 << 17;

/// How a group came to go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A commit, forward or the first one, whose caller gave a name.
    Commit,
    /// A commit of a lower offset than before.
    Rewind,
    /// A reset, to wherever.
    Reset,
}

/// A change of a queue's committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetChange {
    /// The queue.
    pub queue: QueueId,
    /// When, on the store clock.
    pub at: Timestamp,
    /// How.
    pub kind: ChangeKind,
    /// What was committed before.
    pub old: Option<QueueOffset>,
    /// What was from then on.
    pub new: QueueOffset,
    /// Where the request came from, if it came over a network.
    pub address: Option<SocketAddr>,
    /// Who did it, as he said himself.
    pub by: Option<Box<str>>,
    /// The end of the record that says it.
    pub position: PhysicalOffset,
}

/// Which changes of a group in a topic are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    /// Of which queue; `None`: of all.
    pub(crate) queue: Option<QueueId>,
    /// Those behind this one, in the order in which they are told.
    pub(crate) after: Option<(PhysicalOffset, QueueId)>,
    /// At most so many.
    pub(crate) limit: usize,
}

/// One change of one queue, in the order of the log.
type Place = (PhysicalOffset, GroupId, TopicId, QueueId);

#[derive(Debug)]
struct Row {
    /// Shared by all rows of the same step.
    note: Arc<OffsetNote>,
    old: Option<QueueOffset>,
    new: QueueOffset,
}

impl Row {
    fn change(&self, position: PhysicalOffset, queue: QueueId) -> OffsetChange {
        let Self { note, old, new } = self;
        let kind = match note.cause {
            OffsetCause::Reset => ChangeKind::Reset,
            OffsetCause::Commit if old.is_some_and(|old| *new < old) => ChangeKind::Rewind,
            OffsetCause::Commit => ChangeKind::Commit,
        };
        let (at, address, by) = (note.at, note.address, note.by.clone());
        OffsetChange { queue, at, kind, old: *old, new: *new, address, by, position }
    }
}

/// All that is remembered; guarded by its mutex.
#[derive(Debug)]
pub(super) struct History {
    rows: BTreeMap<Place, Row>,
    /// The same places, by queue.
    by_queue: BTreeSet<(GroupId, TopicId, QueueId, PhysicalOffset)>,
    max_changes: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), by_queue: BTreeSet::new(), max_changes: MAX_CHANGES }
    }
}

impl History {
    /// Remembers one step of a group in a topic, and forgets what is too much by it. The same step again changes
    /// nothing.
    pub(super) fn add(
        &mut self,
        (group, topic): (GroupId, TopicId),
        position: PhysicalOffset,
        note: &Arc<OffsetNote>,
        moves: &[OffsetMove],
    ) {
        for &OffsetMove { queue, old, new } in moves {
            self.rows
                .insert((position, group, topic, queue), Row { note: Arc::clone(note), old, new });
            self.by_queue.insert((group, topic, queue, position));
            let mut of_queue = self.by_queue.range(all_of(group, topic, queue, queue));
            if let Some(&(.., oldest)) = of_queue.next()
                && of_queue.count() >= MAX_OF_QUEUE
            {
                self.remove((oldest, group, topic, queue));
            }
        }
        let newest = self.rows.last_key_value().map_or(Timestamp::ZERO, |(_, row)| row.note.at);
        let since = newest.get().saturating_sub(KEPT_MS);
        while let Some((place, row)) = self.rows.first_key_value()
            && (row.note.at.get() < since || self.rows.len() > self.max_changes)
        {
            self.remove(*place);
        }
    }

    fn remove(&mut self, place: Place) {
        let (position, group, topic, queue) = place;
        self.rows.remove(&place);
        self.by_queue.remove(&(group, topic, queue, position));
    }

    /// Forgets a group in a topic.
    pub(super) fn forget(&mut self, (group, topic): (GroupId, TopicId)) {
        let range = all_of(group, topic, QueueId::ZERO, LAST_QUEUE);
        let places: Vec<_> = self.by_queue.range(range).copied().collect();
        for (group, topic, queue, position) in places {
            self.remove((position, group, topic, queue));
        }
    }

    /// What is asked for and not from before `since`, newest first, of one step by rising queue; and whether there is
    /// more.
    pub(super) fn list(
        &self,
        (group, topic): (GroupId, TopicId),
        asked: Asked,
        since: Timestamp,
    ) -> (Vec<OffsetChange>, bool) {
        let (first, last) = asked.queue.map_or((QueueId::ZERO, LAST_QUEUE), |queue| (queue, queue));
        let after = asked.after.map(|(position, queue)| (Reverse(position), queue));
        let places = self.by_queue.range(all_of(group, topic, first, last));
        let mut places: Vec<_> = places
            .map(|(.., queue, position)| (Reverse(*position), *queue))
            .filter(|place| after.is_none_or(|after| *place > after))
            .collect();
        places.sort_unstable();
        let changes = places.into_iter().filter_map(|(Reverse(position), queue)| {
            let row = self.rows.get(&(position, group, topic, queue))?;
            (row.note.at >= since).then(|| row.change(position, queue))
        });
        let mut changes: Vec<_> = changes.take(asked.limit.saturating_add(1)).collect();
        let more = changes.len() > asked.limit;
        changes.truncate(asked.limit);
        (changes, more)
    }

    /// The steps of a group in a topic, in the order of the log.
    pub(super) fn of(
        &self,
        (group, topic): (GroupId, TopicId),
    ) -> Vec<(PhysicalOffset, Arc<OffsetNote>, Vec<OffsetMove>)> {
        let places = self.by_queue.range(all_of(group, topic, QueueId::ZERO, LAST_QUEUE));
        let mut places: Vec<_> = places.map(|(.., queue, position)| (*position, *queue)).collect();
        places.sort_unstable();
        let mut steps: Vec<(PhysicalOffset, Arc<OffsetNote>, Vec<OffsetMove>)> = Vec::new();
        for (position, queue) in places {
            let Some(row) = self.rows.get(&(position, group, topic, queue)) else { continue };
            let change = OffsetMove { queue, old: row.old, new: row.new };
            match steps.last_mut() {
                Some((last, _, moves)) if *last == position => moves.push(change),
                _ => steps.push((position, Arc::clone(&row.note), vec![change])),
            }
        }
        steps
    }

    /// How many changes there are.
    pub(super) fn count(&self) -> u64 {
        self.rows.len() as u64
    }
}

const LAST_QUEUE: QueueId = QueueId::new(u32::MAX);

/// All changes of some queues.
fn all_of(
    group: GroupId,
    topic: TopicId,
    first: QueueId,
    last: QueueId,
) -> std::ops::RangeInclusive<(GroupId, TopicId, QueueId, PhysicalOffset)> {
    let end = PhysicalOffset::new(u64::MAX);
    (group, topic, first, PhysicalOffset::ZERO)..=(group, topic, last, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::new(1);
    const TOPIC: TopicId = TopicId::new(2);

    fn small(max_changes: usize) -> History {
        History { max_changes, ..History::default() }
    }

    /// A step at `position`, a millisecond for each byte, that moves `queues` of `topic` there.
    fn add(history: &mut History, position: u64, topic: u64, queues: std::ops::Range<u32>) {
        let cause = OffsetCause::Reset;
        let note = OffsetNote { at: Timestamp::new(position), cause, address: None, by: None };
        let new = QueueOffset::new(position);
        let moves: Vec<_> =
            queues.map(|queue| OffsetMove { queue: QueueId::new(queue), old: None, new }).collect();
        let key = (GROUP, TopicId::new(topic));
        history.add(key, PhysicalOffset::new(position), &Arc::new(note), &moves);
    }

    /// Position and queue of what is told, and whether there is more.
    fn told(history: &History, asked: Asked) -> (Vec<(u64, u32)>, bool) {
        let (changes, more) = history.list((GROUP, TOPIC), asked, Timestamp::ZERO);
        let told = changes.iter().map(|change| (change.position.get(), change.queue.get()));
        (told.collect(), more)
    }

    fn all(history: &History) -> Vec<(u64, u32)> {
        told(history, Asked { limit: 1_000, ..Asked::default() }).0
    }

    #[test]
    fn of_a_queue_the_last_hundred_are_kept_and_other_queues_lose_nothing() {
        let mut history = History::default();
        add(&mut history, 1, 2, 0..2);
        for position in 2..=MAX_OF_QUEUE as u64 {
            add(&mut history, position, 2, 0..1);
        }
        assert_eq!(all(&history).len(), MAX_OF_QUEUE + 1);
        for position in 101..150 {
            add(&mut history, position, 2, 0..1);
        }
        let of_queue = Asked { queue: Some(QueueId::ZERO), limit: 1_000, ..Asked::default() };
        let kept: Vec<_> = (50..150).rev().map(|position| (position, 0)).collect();
        assert_eq!(told(&history, of_queue), (kept, false));
        assert_eq!(all(&history).last(), Some(&(1, 1)));
        assert_eq!(history.count(), history.by_queue.len() as u64);
    }

    #[test]
    fn what_is_a_week_older_than_the_newest_goes_and_whoever_asks_later_sees_less() {
        let mut history = History::default();
        add(&mut history, 1_000, 2, 0..1);
        add(&mut history, 2_000, 2, 0..1);
        add(&mut history, 1_000 + KEPT_MS, 3, 0..1);
        assert_eq!(all(&history), [(2_000, 0), (1_000, 0)]);
        add(&mut history, 1_001 + KEPT_MS, 3, 0..1);
        assert_eq!(all(&history), [(2_000, 0)]);
        let asked = Asked { limit: 10, ..Asked::default() };
        for (since, count) in [(2_000, 1), (2_001, 0)] {
            let (told, more) = history.list((GROUP, TOPIC), asked, Timestamp::new(since));
            assert_eq!((told.len(), more), (count, false));
        }
    }

    #[test]
    fn of_all_the_oldest_goes_first_whoever_adds() {
        let mut history = small(4);
        add(&mut history, 10, 2, 0..2);
        add(&mut history, 20, 2, 5..6);
        add(&mut history, 30, 3, 0..2);
        assert_eq!(all(&history), [(20, 5), (10, 1)]);
        add(&mut history, 40, 3, 2..4);
        assert_eq!((all(&history), history.count()), (vec![], 4));
        // More than there may be, in one step: the queues with the highest numbers stay.
        add(&mut history, 50, 2, 0..9);
        assert_eq!(all(&history), [(50, 5), (50, 6), (50, 7), (50, 8)]);
    }

    #[test]
    fn pages_are_newest_first_and_within_a_step_by_queue() {
        let mut history = History::default();
        add(&mut history, 10, 2, 0..3);
        add(&mut history, 20, 2, 1..3);
        let whole = [(20, 1), (20, 2), (10, 0), (10, 1), (10, 2)];
        assert_eq!(all(&history), whole);
        for limit in 1..6 {
            let (mut pages, mut after) = (Vec::new(), None);
            loop {
                let (page, more) = told(&history, Asked { limit, after, queue: None });
                assert_eq!(more, pages.len() + page.len() < whole.len());
                after = page.last().map(|(position, queue)| {
                    (PhysicalOffset::new(*position), QueueId::new(*queue))
                });
                pages.extend(page);
                if !more {
                    break;
                }
            }
            assert_eq!(pages, whole, "by {limit}");
        }
    }

    #[test]
    fn the_same_step_again_changes_nothing_and_a_forgotten_topic_takes_only_its_own() {
        let mut history = History::default();
        add(&mut history, 10, 2, 0..3);
        add(&mut history, 10, 2, 0..3);
        add(&mut history, 20, 3, 0..3);
        assert_eq!(history.count(), 6);
        history.forget((GROUP, TopicId::new(3)));
        assert_eq!((all(&history).len(), history.count()), (3, 3));
        history.forget((GROUP, TOPIC));
        assert_eq!((history.count(), history.by_queue.len()), (0, 0));
    }

    #[test]
    fn a_commit_to_a_lower_offset_is_a_rewind_and_a_reset_is_one_wherever_it_goes() {
        let kind = |cause, old: Option<u64>, new| {
            let note = OffsetNote { at: Timestamp::ZERO, cause, address: None, by: None };
            let (old, new) = (old.map(QueueOffset::new), QueueOffset::new(new));
            Row { note: Arc::new(note), old, new }.change(PhysicalOffset::ZERO, QueueId::ZERO).kind
        };
        assert_eq!(kind(OffsetCause::Commit, Some(3), 2), ChangeKind::Rewind);
        assert_eq!(kind(OffsetCause::Commit, Some(3), 4), ChangeKind::Commit);
        assert_eq!(kind(OffsetCause::Commit, None, 0), ChangeKind::Commit);
        assert_eq!(kind(OffsetCause::Reset, Some(3), 2), ChangeKind::Reset);
        assert_eq!(kind(OffsetCause::Reset, None, 2), ChangeKind::Reset);
    }
}
