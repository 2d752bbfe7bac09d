//! What a group holds of a topic: the messages between its position and where it goes on that are not finished.
//!
//! ```text
//!            position                        cursor
//! finished      │ open  finished  open  …      │  never offered
//! ──────────────┼──────────────────────────────┼──────────────►
//! ```
//!
//! The position of a queue is its committed offset (`offsets.rs`): there is one, and not a second one for leases.
//! Behind it lies the first open message; without one it is the cursor. Between the two everything is open or
//! finished, so a finished message costs nothing: ten million of them behind one that is stuck are one open message.
//!
//! | an open message | means |
//! | --- | --- |
//! | ahead | passed over: others of its message group come first |
//! | leased | somebody has it; due when his time is over |
//! | waiting | it was given back; due when its pause is over |
//!
//! Leases run out without a record: what is due can be delivered again, and the record of that delivery says so. Until
//! then whoever had it last may still finish it.
//!
//! | file | holds |
//! | --- | --- |
//! | this one | open messages, and the one place where they change |
//! | `filtered.rs` | what the filters of a group did |
//! | `order.rs` | what can be delivered again, and when |
//! | `ready.rs` | which queues may have fresh messages, and who waits for some |
//! | `standing.rs` | what a lease is worth by now |
//! | `subscriptions.rs` | which filters the members of a group use |
//!
//! All of it is guarded by the mutex of its (group, topic), and changes by the transitions of records alone. Of
//! messages that had more than one lease, the last 4 096 that were finished are remembered, each with the lease that
//! did it; of all others the receipt says whether its lease was the only one.

mod filtered;
mod order;
mod ready;
mod standing;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

pub(crate) use self::filtered::{FilterCost, FilterWork};
pub(crate) use self::order::{FilterId, Kind, Line, Lock, Place, Rule};
use self::order::{Order, Seen, lock_of};
pub(crate) use self::ready::{ANY_TAG, Ready, ReadyTable, Wish};
pub(crate) use self::standing::{Claim, Standing};
pub(crate) use self::subscriptions::{Mismatch, Past, id_of};
use crate::broker::clients::hash_of;
use crate::format::state_record::{
    ChangedLease, GivenRun, LastLease, OpenMessage, OpenState, Run, Transition, Tried,
};
use crate::message::{GroupId, LeaseId, QueueId, QueueOffset, Timestamp, TopicId};

type Hasher = foldhash::fast::RandomState;

/// So many messages that had more than one lease are remembered after their end: those of some requests.
const ENDED: usize = 4_096;

/// So much is remembered of what tries of receives got: one row for each try and queue.
const TRIED: usize = 1_024;

/// Open messages that are looked at for what a try got.
const LOOK: usize = 1 << 16;

/// Rows of one transition of a snapshot.
const KEPT_ROWS: usize = 800;

/// Names in it.
const KEPT_NAMES: usize = 200;

/// Open messages of one queue for one group: at so many no fresh ones are given, until some are finished.
pub(crate) const MAX_OPEN_IN_QUEUE: usize = 10_000;

/// An open message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) state: OpenState,
    pub(crate) same_delivery: bool,
    pub(crate) renewed: bool,
    /// On the store clock, in ms.
    pub(crate) due: u64,
    pub(crate) lease: LeaseId,
    pub(crate) deliveries: u32,
    pub(crate) group_hash: u32,
    /// Hash of the client with which its lease ends, 0 without one.
    pub(crate) client: u64,
    /// On the clock of leases, in ms; 0: never.
    pub(crate) first_delivered: u64,
    pub(crate) last_delivered: u64,
    /// Hash of who got it last, 0 if he is not known.
    pub(crate) holder: u64,
    /// The filter of who got it last, or of whom it was left for. Not known after a start.
    pub(crate) filter: FilterId,
}

impl Open {
    fn seen(&self) -> Seen {
        let Self { state, due, group_hash, filter, .. } = *self;
        Seen { state, due, group_hash, filter, next_delivery: self.next_delivery() }
    }

    /// Whether it was delivered and nobody has it.
    pub(crate) fn is_waiting(&self, now: u64) -> bool {
        match self.state {
            OpenState::Ahead => false,
            OpenState::Leased => self.due <= now,
            OpenState::Waiting => true,
        }
    }

    /// Which delivery the next one is.
    pub(crate) fn next_delivery(&self) -> u32 {
        let more = u32::from(!self.same_delivery || self.deliveries == 0);
        self.deliveries.saturating_add(more)
    }
}

/// Somebody who got open messages.
#[derive(Debug, Default)]
struct Holder {
    name: Arc<str>,
    /// So many he was the last to get.
    open: u64,
}

/// A queue with open messages.
#[derive(Debug)]
struct Queue {
    cursor: u64,
    open: BTreeMap<u64, Open>,
}

/// How many open messages there are of each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenCount {
    /// They can be delivered again now.
    pub(crate) due: u64,
    /// Somebody has them.
    pub(crate) leased: u64,
    /// They wait for their time, or for others.
    pub(crate) waiting: u64,
}

/// What was delivered and nobody has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitingCount {
    /// So many can be delivered again now.
    pub(crate) due: u64,
    /// So many wait for their time.
    pub(crate) waiting: u64,
    /// The earliest first delivery of them.
    pub(crate) oldest: Option<u64>,
    /// When the first of those that wait is due.
    pub(crate) next_due: Option<u64>,
}

impl WaitingCount {
    /// One more that waits.
    pub(crate) fn add(&mut self, open: &Open, now: u64) {
        match open.due <= now {
            true => self.due += 1,
            false => {
                self.waiting += 1;
                self.next_due = self.next_due.into_iter().chain([open.due]).min();
            }
        }
        // One that was passed over and kept on by its last lease may not have been delivered that anybody knows of.
        let first = Some(open.first_delivered).filter(|first| *first > 0);
        self.oldest = self.oldest.into_iter().chain(first).min();
    }
}

/// A message that is due, in the hand of who takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) place: Place,
    pub(crate) open: Open,
}

impl Due {
    /// Whether it was delivered before.
    pub(crate) fn was_leased(&self) -> bool {
        self.open.state != OpenState::Ahead
    }

    /// Its message group, to an ordered group.
    pub(crate) fn lock(&self) -> Lock {
        lock_of(self.place.0, self.open.group_hash)
    }
}

/// What a try of a receive got and still has.
#[derive(Debug, Default)]
pub(crate) struct Repeated {
    pub(crate) due: Vec<Due>,
    /// When it got that first, if there is anything.
    pub(crate) delivered: Option<Timestamp>,
}

/// What a try of a receive gets with a record, and got before.
#[derive(Debug)]
struct Tries {
    attempt: u64,
    /// By their queue and lease, when it got them first.
    before: HashMap<(QueueId, LeaseId), Timestamp, Hasher>,
    /// By queue: the first and the last, and when it got them first, if that was before.
    now: Vec<(QueueId, u64, u64, Option<Timestamp>)>,
    /// Where a queue is in `now`.
    at: HashMap<QueueId, usize, Hasher>,
}

impl Tries {
    /// It gets a run of messages, the first of which had a lease before.
    fn add(&mut self, queue: QueueId, (first, last): (u64, u64), lease: Option<LeaseId>) {
        let delivered = lease.and_then(|lease| self.before.get(&(queue, lease)).copied());
        let at = *self.at.entry(queue).or_insert(self.now.len());
        match self.now.get_mut(at) {
            Some((_, known_first, known_last, known)) => {
                *known_first = first.min(*known_first);
                *known_last = last.max(*known_last);
                *known = (*known).into_iter().chain(delivered).min();
            }
            None => self.now.push((queue, first, last, delivered)),
        }
    }
}

/// What was taken into the hand.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Messages, those of a message group in their order.
    pub(crate) due: Vec<Due>,
    /// Message groups that are to be put back.
    locks: Vec<Lock>,
    /// Those of them that are for others: for members with this filter, 0 if none is known.
    pub(crate) left: Vec<(Due, FilterId)>,
    /// Those that somebody had left before.
    pub(crate) was_left: Vec<Due>,
}

impl Taken {
    /// Takes more into the hand.
    pub(crate) fn append(&mut self, mut more: Self) {
        self.due.append(&mut more.due);
        self.locks.append(&mut more.locks);
        self.left.append(&mut more.left);
        self.was_left.append(&mut more.was_left);
    }
}

/// What leases come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Rows that are kept, of open messages and of what is remembered.
    pub(crate) rows: u64,
    /// Queues with so many open messages that no fresh ones are given.
    pub(crate) full: u64,
}

/// What a group holds of a topic.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// Those with open messages.
    queues: HashMap<u32, Queue, Hasher>,
    count: u64,
    full: u64,
    /// The last end of each message that is remembered; oldest first, with those that came again.
    ended: HashMap<Place, LeaseId, Hasher>,
    ends: VecDeque<(Place, LeaseId)>,
    /// The last lease that a reset of the queue revoked.
    revoked: BTreeMap<u32, LeaseId>,
    /// What was given for tries of receives, oldest first.
    tried: VecDeque<Tried>,
    /// What is leased to clients for as long as they live, by client.
    of_clients: HashMap<u64, BTreeSet<Place>, Hasher>,
    /// Who got open messages last, by hash.
    holders: HashMap<u64, Holder, Hasher>,
    /// Queues of which a replay met no record that says what became of the next messages: it is damaged. The group is
    /// where it was before, and gets again what later records say that it got. One that was taken back by a damaged
    /// record shows by the next of these too, which begins before where it was: see `go_back`.
    behind: HashSet<u32, Hasher>,
    /// Made when somebody asks what is due.
    order: Option<Order>,
    /// When the broker's timer looks here next.
    pub(crate) timer: Option<u64>,
    /// The filter of who is given messages, and that of whom others are kept for, while a record of it is applied.
    pub(super) given_to: (FilterId, FilterId),
}

impl Leases {
    /// How many open messages there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// What they come to.
    pub(crate) fn size(&self) -> Size {
        let remembered = self.ends.len() + self.tried.len() + self.holders.len();
        Size { rows: self.count + remembered as u64, full: self.full }
    }

    /// How many open messages there are of one queue.
    pub(crate) fn count_in(&self, queue: u32) -> usize {
        self.queues.get(&queue).map_or(0, |queue| queue.open.len())
    }

    /// Whether there are any of it.
    pub(crate) fn has_open(&self, queue: QueueId) -> bool {
        self.queues.contains_key(&queue.get())
    }

    /// Whether any of it in these queues, rising, at these offsets was delivered to somebody.
    pub(crate) fn has_delivered(&self, rows: &[(QueueId, Range<QueueOffset>)]) -> bool {
        let has = |of_queue: &Queue, offsets: &Range<QueueOffset>| {
            let offsets = offsets.start.get()..offsets.end.get();
            of_queue.open.range(offsets).any(|(_, open)| open.state != OpenState::Ahead)
        };
        if self.queues.len() < rows.len() {
            return self.queues.iter().any(|(queue, of_queue)| {
                let at = rows.binary_search_by_key(queue, |(of, _)| of.get()).ok();
                at.and_then(|at| rows.get(at)).is_some_and(|(_, offsets)| has(of_queue, offsets))
            });
        }
        let of_row = |queue: &QueueId| self.queues.get(&queue.get());
        rows.iter()
            .any(|(queue, offsets)| of_row(queue).is_some_and(|of_queue| has(of_queue, offsets)))
    }

    /// An open message.
    pub(crate) fn get(&self, (queue, offset): Place) -> Option<&Open> {
        self.queues.get(&queue)?.open.get(&offset)
    }

    /// Where the group goes on with fresh messages of a queue at `position`.
    pub(crate) fn cursor(&self, queue: u32, position: u64) -> u64 {
        self.queues.get(&queue).map_or(position, |queue| queue.cursor)
    }

    /// How the open messages of a queue stand with a group that is ordered or not.
    pub(crate) fn count_by_state(&self, queue: u32, (ordered, now): (bool, u64)) -> OpenCount {
        let mut count = OpenCount::default();
        for open in self.queues.get(&queue).into_iter().flat_map(|queue| queue.open.values()) {
            match open.state {
                OpenState::Ahead if ordered => count.waiting += 1,
                // Nothing comes before it.
                OpenState::Ahead => count.due += 1,
                _ if open.due <= now => count.due += 1,
                OpenState::Leased => count.leased += 1,
                OpenState::Waiting => count.waiting += 1,
            }
        }
        count
    }

    /// The queues with open messages, from one on.
    pub(crate) fn open_queues(&self, from: u32) -> Vec<u32> {
        let mut queues: Vec<_> =
            self.queues.keys().copied().filter(|queue| *queue >= from).collect();
        queues.sort_unstable();
        queues
    }

    /// What of a queue was delivered and nobody has, from an offset on.
    pub(crate) fn waiting(&self, queue: u32, from: u64, now: u64) -> impl Iterator<Item = Due> {
        let open = self.queues.get(&queue).into_iter().flat_map(move |of| of.open.range(from..));
        let open = open.map(move |(offset, open)| Due { place: (queue, *offset), open: *open });
        open.filter(move |due| due.open.is_waiting(now))
    }

    /// Messages were delivered, or passed over: all at once. Positions are those of before; returns those of after.
    pub(super) fn given(
        &mut self,
        given: Given<'_>,
        position: impl Fn(u32) -> u64,
    ) -> Vec<(QueueId, QueueOffset)> {
        let has_line =
            |filter: &FilterId| self.order.as_ref().is_none_or(|order| order.has_line(*filter));
        let to = Some(self.given_to.0).filter(has_line).unwrap_or_default();
        let kept_for = Some(self.given_to.1).filter(has_line).unwrap_or_default();
        let holder = self.know(given.holder);
        let (mut touched, mut tried) = (Vec::new(), given.attempt.map(|of| self.tried_by(of)));
        for (at, (queue, cursor)) in given.cursors.iter().enumerate() {
            if given.cursors.get(at + 1).is_some_and(|(next, _)| next == queue) {
                let (queue, from) = (queue.get(), cursor.get());
                let known = self.cursor(queue, position(queue));
                match from > known {
                    true => self.behind.insert(queue),
                    false => self.behind.remove(&queue),
                };
                if from < known {
                    self.go_back(queue, from, given.lease);
                }
            }
            if self.behind.contains(&queue.get()) {
                continue;
            }
            let of_queue = self.queue(queue.get(), position(queue.get()));
            of_queue.cursor = of_queue.cursor.max(cursor.get());
            touched.push(queue.get());
        }
        for row in given.runs {
            let (queue, first) = (row.run.queue.get(), row.run.first.get());
            let end = first.saturating_add(u64::from(row.run.count));
            if self.behind.contains(&queue) && end > self.cursor(queue, position(queue)) {
                continue;
            }
            let of_queue = self.queue(queue, position(queue));
            of_queue.cursor = of_queue.cursor.max(end);
            touched.push(queue);
            let state = if row.delivery == 0 { OpenState::Ahead } else { OpenState::Leased };
            let before = self.get((queue, first)).map(|open| open.lease);
            for offset in first..end {
                let open = self.get((queue, offset));
                let (before, first) =
                    (open.map(|open| open.lease), open.map(|open| open.first_delivered));
                let is_leased = state == OpenState::Leased;
                let at = if is_leased { given.at.get() } else { 0 };
                let open = Open {
                    state,
                    same_delivery: false,
                    renewed: row.delivery > 1
                        || before.is_some_and(|lease| lease > LeaseId::default()),
                    // What is passed over can be given from now on.
                    due: if is_leased { given.due } else { given.at.get() },
                    lease: if is_leased { given.lease } else { LeaseId::default() },
                    deliveries: row.delivery,
                    group_hash: row.group_hash,
                    client: if is_leased { given.client } else { 0 },
                    first_delivered: match first {
                        Some(first) if first > 0 && is_leased => first,
                        _ => at,
                    },
                    last_delivered: at,
                    holder: if is_leased { holder } else { 0 },
                    filter: if is_leased { to } else { kept_for },
                };
                self.put((queue, offset), open);
            }
            if let Some(tried) = &mut tried
                && state == OpenState::Leased
            {
                tried.add(row.run.queue, (first, end - 1), before);
            }
        }
        if let Some(tried) = tried {
            self.remember_tried(tried, &given);
        }
        self.forget_unless_open(holder);
        self.settled(touched)
    }

    /// The group is through with messages: by their last leases, or in spite of them by the broker. Positions as with
    /// `given`.
    pub(super) fn finished(
        &mut self,
        runs: &[Run],
        by_broker: Option<LeaseId>,
    ) -> Vec<(QueueId, QueueOffset)> {
        let mut touched = Vec::new();
        for run in runs {
            let queue = run.queue.get();
            let end = run.first.get().saturating_add(u64::from(run.count));
            for offset in run.first.get()..end {
                let Some(open) = self.take_out((queue, offset)) else { continue };
                if open.renewed || by_broker.is_some() {
                    let (queue, offset) = (run.queue, QueueOffset::new(offset));
                    let lease = by_broker.unwrap_or(open.lease);
                    self.remember_end(LastLease { queue, offset, lease });
                }
            }
            touched.push(queue);
        }
        self.settled(touched)
    }

    /// Leases become others.
    pub(super) fn changed(&mut self, lease: LeaseId, leases: &[ChangedLease]) {
        for change in leases {
            let place = (change.queue.get(), change.offset.get());
            let Some(open) = self.get(place) else { continue };
            let open = Open {
                state: change.state,
                same_delivery: change.same_delivery,
                renewed: true,
                due: change.due.get(),
                lease,
                // Passed over again after a power cut, and then found to be in somebody's hands.
                deliveries: open.deliveries.max(1),
                // Whoever says how long it lasts does so himself from then on.
                client: 0,
                ..*open
            };
            self.put(place, open);
        }
    }

    /// Clients are gone since `due`: their leases are over, and can still be acknowledged like others that are.
    pub(super) fn lost(&mut self, clients: &[u64], due: u64) {
        for client in clients {
            for place in self.of_clients.get(client).cloned().unwrap_or_default() {
                let Some(open) = self.get(place).copied() else { continue };
                self.put(place, Open { due: open.due.min(due), client: 0, ..open });
            }
        }
    }

    /// The clients that messages are leased to for as long as they live.
    pub(crate) fn clients(&self) -> impl Iterator<Item = u64> {
        self.of_clients.keys().copied()
    }

    /// The group goes on elsewhere in these queues: nothing of them is open any more, and no lease up to this one is
    /// in force.
    pub(super) fn revoke(&mut self, queues: impl Iterator<Item = QueueId>, lease: LeaseId) {
        for queue in queues {
            self.behind.remove(&queue.get());
            self.revoked.insert(queue.get(), lease);
            self.ended.retain(|place, _| place.0 != queue.get());
            self.ends.retain(|(place, _)| place.0 != queue.get());
            self.tried.retain(|tried| tried.queue != queue);
            let Some(of_queue) = self.queues.remove(&queue.get()) else { continue };
            self.count -= of_queue.open.len() as u64;
            self.full -= u64::from(of_queue.open.len() >= MAX_OPEN_IN_QUEUE);
            for (offset, open) in of_queue.open {
                self.let_go((queue.get(), offset), open);
            }
        }
    }

    /// A record that took the group back in a queue, to `from` or before, is damaged: it gets again what comes from
    /// there on. What is open in front of it stays so, as nothing says that it is finished. As after that record,
    /// nothing that was leased before this one is in force; what else was lost with it comes once more.
    fn go_back(&mut self, queue: u32, from: u64, lease: LeaseId) {
        let before = LeaseId { number: lease.number.saturating_sub(1), ..lease };
        self.revoked.insert(queue, before);
        let of_queue = self.queue(queue, from);
        of_queue.cursor = from;
        let fresh: Vec<_> = of_queue.open.range(from..).map(|(offset, _)| *offset).collect();
        for offset in fresh {
            self.take_out((queue, offset));
        }
        self.ended.retain(|place, _| place.0 != queue || place.1 < from);
        self.ends.retain(|(place, _)| place.0 != queue || place.1 < from);
    }

    /// A part of a snapshot.
    pub(super) fn kept(&mut self, transition: Transition) {
        let Transition::LeasesKept { cursors, open, ended, revoked, tried, holders, .. } =
            transition
        else {
            return;
        };
        for name in holders {
            self.know(&name);
        }
        for (queue, cursor) in cursors {
            self.queue(queue.get(), cursor.get()).cursor = cursor.get();
        }
        for row in open {
            self.queue(row.queue.get(), row.offset.get().saturating_add(1));
            let one = Open {
                state: row.state,
                same_delivery: row.same_delivery,
                renewed: row.renewed,
                due: row.due.get(),
                lease: row.lease,
                deliveries: row.deliveries,
                group_hash: row.group_hash,
                client: row.client,
                first_delivered: row.first_delivered.get(),
                last_delivered: row.last_delivered.get(),
                holder: row.holder,
                filter: 0,
            };
            self.put((row.queue.get(), row.offset.get()), one);
        }
        ended.into_iter().for_each(|ended| self.remember_end(ended));
        self.revoked.extend(revoked.iter().map(|row| (row.queue.get(), row.lease)));
        self.tried.extend(tried);
    }

    /// The transitions of a snapshot, in parts of a bounded size.
    pub(super) fn keep(&self, group: GroupId, topic: TopicId, out: &mut Vec<u8>) {
        let mut queues: Vec<_> = self.queues.iter().collect();
        queues.sort_unstable_by_key(|(queue, _)| **queue);
        let cursors: Vec<_> = queues
            .iter()
            .map(|(queue, of_queue)| (QueueId::new(**queue), QueueOffset::new(of_queue.cursor)))
            .collect();
        let open: Vec<_> = queues
            .iter()
            .flat_map(|(queue, of_queue)| {
                of_queue.open.iter().map(|(offset, open)| kept_row((**queue, *offset), open))
            })
            .collect();
        let ended: Vec<_> = self
            .ends
            .iter()
            .map(|((queue, offset), lease)| LastLease {
                queue: QueueId::new(*queue),
                offset: QueueOffset::new(*offset),
                lease: *lease,
            })
            .collect();
        let revoked: Vec<_> = self
            .revoked
            .iter()
            .map(|(queue, lease)| LastLease {
                queue: QueueId::new(*queue),
                offset: QueueOffset::ZERO,
                lease: *lease,
            })
            .collect();
        let tried: Vec<_> = self.tried.iter().copied().collect();
        let mut holders: Vec<_> =
            self.holders.values().map(|holder| holder.name.to_string()).collect();
        holders.sort_unstable();
        let most = [cursors.len(), open.len(), ended.len(), revoked.len(), tried.len()];
        // One at least: it says that there are receipts in the world.
        let parts = most.into_iter().max().unwrap_or_default().div_ceil(KEPT_ROWS);
        let parts = parts.max(holders.len().div_ceil(KEPT_NAMES)).max(1);
        for part in 0..parts {
            let names = holders.chunks(KEPT_NAMES).nth(part).unwrap_or_default();
            Transition::LeasesKept {
                group,
                topic,
                cursors: part_of(&cursors, part),
                open: part_of(&open, part),
                ended: part_of(&ended, part),
                revoked: part_of(&revoked, part),
                tried: part_of(&tried, part),
                holders: names.to_vec(),
            }
            .encode_into(out);
        }
    }

    /// Puts what is open in the order of a rule, if it is in another.
    pub(crate) fn arrange(&mut self, rule: Rule) {
        if self.order.as_ref().is_some_and(|order| order.rule() == rule) {
            return;
        }
        let mut order = Order::new(rule);
        for (queue, of_queue) in &mut self.queues {
            for (offset, open) in &mut of_queue.open {
                open.filter = Some(open.filter).filter(|of| order.has_line(*of)).unwrap_or(0);
                order.insert((*queue, *offset), open.seen());
            }
        }
        self.order = Some(order);
    }

    /// Whether something can be delivered by now that who has a filter finds at once: what is for him, or what nobody
    /// left.
    pub(crate) fn has_due_for(&self, filter: FilterId, now: u64) -> bool {
        let due = |line| self.order.as_ref().and_then(|order| order.first_of(line));
        let due = [Line::Own(filter), Line::New(filter)].map(due);
        due.into_iter().flatten().any(|due| due <= now)
    }

    /// When the first of a kind is due, of those that nobody has in his hand or left.
    pub(crate) fn first_due(&self, kind: Kind) -> Option<u64> {
        self.order.as_ref()?.first_due(kind)
    }

    /// When somebody has to look: at what can be delivered behind `now`, and at what is exhausted.
    pub(crate) fn next_look(&self, now: u64) -> Option<u64> {
        let order = self.order.as_ref()?;
        let looks = [order.first_due_after(now), order.first_due(Kind::Exhausted)];
        looks.into_iter().flatten().min()
    }

    /// Takes up to `room` messages of a kind that are due into the hand.
    pub(crate) fn take_due(&mut self, of: (Kind, Line), now: u64, room: usize) -> Taken {
        let mut taken = Taken::default();
        while taken.due.len() < room {
            let Some((lock, places)) = self.order.as_mut().and_then(|order| order.take(of, now))
            else {
                break;
            };
            taken.locks.extend(lock);
            for place in places.into_iter().take(room - taken.due.len()) {
                let open = self.get(place).copied();
                taken.due.extend(open.map(|open| Due { place, open }));
            }
        }
        if matches!(of.1, Line::Left(_)) {
            taken.was_left.clone_from(&taken.due);
        }
        taken
    }

    /// Puts back what is in the hand and not given since; what was left, now or before, and is as it was, for whom it
    /// was left for.
    pub(crate) fn put_back(&mut self, taken: &Taken, now: u64) {
        let Some(order) = &mut self.order else { return };
        let is_ordered = order.rule().ordered;
        for due in taken.due.iter().filter(|_| !is_ordered) {
            let of_queue = self.queues.get(&due.place.0);
            if let Some(open) = of_queue.and_then(|queue| queue.open.get(&due.place.1)) {
                order.insert(due.place, open.seen());
            }
        }
        let was_left = taken.was_left.iter().map(|due| (due, due.open.filter));
        for (due, filter) in taken.left.iter().map(|(due, of)| (due, *of)).chain(was_left) {
            let of_queue = self.queues.get_mut(&due.place.0);
            let open = of_queue.and_then(|queue| queue.open.get_mut(&due.place.1));
            let Some(open) = open.filter(|open| **open == due.open) else { continue };
            if !is_ordered {
                order.remove(due.place, open.seen());
            }
            let filter = Some(filter).filter(|of| order.has_line(*of)).unwrap_or_default();
            let left = Open { filter, ..*open };
            if order.leave(due.place, left.seen(), now) {
                *open = left;
            }
        }
        taken.locks.iter().for_each(|lock| order.put_back(*lock));
    }

    /// What a message waits for, if the group is ordered.
    pub(crate) fn lock_if_ordered(&self, queue: u32, group_hash: u32) -> Option<Lock> {
        let is_ordered = self.order.as_ref().is_some_and(|order| order.rule().ordered);
        is_ordered.then(|| lock_of(queue, group_hash))
    }

    /// The open messages of a message group in the order in which they come.
    pub(crate) fn sequence(&self, lock: Lock) -> impl Iterator<Item = Place> {
        self.order.iter().flat_map(move |order| order.sequence(lock))
    }

    /// How many messages of a message group are open.
    pub(crate) fn open_of(&self, lock: Lock) -> usize {
        self.order.as_ref().map_or(0, |order| order.open_of(lock))
    }

    /// Whether it is known what is due.
    pub(crate) fn has_order(&self) -> bool {
        self.order.is_some()
    }

    /// The messages that were given for a try of a receive and are still leased to it.
    pub(crate) fn of_attempt(&self, attempt: u64, now: u64) -> Repeated {
        let (mut found, mut left) = (Repeated::default(), LOOK);
        for tried in self.tried.iter().filter(|tried| tried.attempt == attempt) {
            let queue = tried.queue.get();
            let Some(of_queue) = self.queues.get(&queue) else { continue };
            let mut is_found = false;
            for (offset, open) in
                of_queue.open.range(tried.first.get()..=tried.last.get()).take(left)
            {
                left -= 1;
                let is_leased = open.state == OpenState::Leased && open.due > now;
                if open.lease == tried.lease && is_leased {
                    found.due.push(Due { place: (queue, *offset), open: *open });
                    is_found = true;
                }
            }
            if is_found {
                let known = found.delivered.get_or_insert(tried.delivered);
                *known = tried.delivered.min(*known);
            }
        }
        found.due.sort_unstable_by_key(|due| due.place);
        found
    }

    /// What a try of a receive got before.
    fn tried_by(&self, attempt: u64) -> Tries {
        let before = self.tried.iter().filter(|tried| tried.attempt == attempt);
        let before = before.map(|tried| ((tried.queue, tried.lease), tried.delivered)).collect();
        Tries { attempt, before, now: Vec::new(), at: HashMap::default() }
    }

    /// Remembers what a try got: one row for each queue, in place of those that it got before and gets once more.
    fn remember_tried(&mut self, tries: Tries, given: &Given<'_>) {
        let Tries { attempt, before, now, .. } = tries;
        for (queue, first, last, delivered) in now {
            // A large record is applied in parts when it is found again.
            let parts = self.tried.iter_mut().rev().take_while(|tried| tried.lease == given.lease);
            let (first, last) = (QueueOffset::new(first), QueueOffset::new(last));
            let delivered = delivered.unwrap_or(given.at);
            if let Some(tried) = parts.into_iter().find(|tried| tried.queue == queue) {
                tried.first = first.min(tried.first);
                tried.last = last.max(tried.last);
                tried.delivered = delivered.min(tried.delivered);
                continue;
            }
            if self.tried.len() >= TRIED {
                self.tried.pop_front();
            }
            let lease = given.lease;
            self.tried.push_back(Tried { queue, first, last, lease, attempt, delivered });
        }
        if before.is_empty() {
            return;
        }
        let now = self.tried.iter().rev().take_while(|tried| tried.lease == given.lease);
        let now: HashMap<_, _, Hasher> =
            now.map(|tried| (tried.queue, (tried.first, tried.last))).collect();
        self.tried.retain(|old| {
            let is_replaced = |(first, last)| first <= old.first && old.last <= last;
            let is_old = old.attempt == attempt && old.lease != given.lease;
            !(is_old && now.get(&old.queue).copied().is_some_and(is_replaced))
        });
    }

    fn remember_end(&mut self, ended: LastLease) {
        if self.ends.len() >= ENDED
            && let Some((place, lease)) = self.ends.pop_front()
            && self.ended.get(&place) == Some(&lease)
        {
            self.ended.remove(&place);
        }
        let LastLease { queue, offset, lease } = ended;
        let place = (queue.get(), offset.get());
        self.ended.insert(place, lease);
        self.ends.push_back((place, lease));
    }

    /// The name of who got an open message last, if it is known.
    pub(crate) fn holder(&self, open: &Open) -> Option<Arc<str>> {
        self.holders.get(&open.holder).map(|holder| Arc::clone(&holder.name))
    }

    /// The hash of somebody's name, which is known from now on; 0 of none.
    fn know(&mut self, name: &str) -> u64 {
        if name.is_empty() {
            return 0;
        }
        let hash = hash_of(name);
        let known = self.holders.entry(hash).or_default();
        if known.name.is_empty() {
            known.name = name.into();
        }
        hash
    }

    /// Names of which nothing is open are not kept.
    fn forget_unless_open(&mut self, holder: u64) {
        if self.holders.get(&holder).is_some_and(|holder| holder.open == 0) {
            self.holders.remove(&holder);
        }
    }

    fn queue(&mut self, queue: u32, position: u64) -> &mut Queue {
        self.queues
            .entry(queue)
            .or_insert_with(|| Queue { cursor: position, open: BTreeMap::new() })
    }

    fn put(&mut self, place: Place, open: Open) {
        let Some(of_queue) = self.queues.get_mut(&place.0) else { return };
        let old = of_queue.open.insert(place.1, open);
        self.count += u64::from(old.is_none());
        self.full += u64::from(old.is_none() && of_queue.open.len() == MAX_OPEN_IN_QUEUE);
        if open.holder != 0 {
            self.holders.entry(open.holder).or_default().open += 1;
        }
        if let Some(old) = old {
            self.let_go(place, old);
        }
        if open.client != 0 {
            self.of_clients.entry(open.client).or_default().insert(place);
        }
        if let Some(order) = &mut self.order {
            order.insert(place, open.seen());
        }
    }

    /// What is made from an open message is without it.
    fn let_go(&mut self, place: Place, open: Open) {
        if let Some(of_client) = self.of_clients.get_mut(&open.client) {
            of_client.remove(&place);
            if of_client.is_empty() {
                self.of_clients.remove(&open.client);
            }
        }
        if let Some(holder) = self.holders.get_mut(&open.holder) {
            holder.open = holder.open.saturating_sub(1);
            self.forget_unless_open(open.holder);
        }
        if let Some(order) = &mut self.order {
            order.remove(place, open.seen());
        }
    }

    fn take_out(&mut self, place: Place) -> Option<Open> {
        let of_queue = self.queues.get_mut(&place.0)?;
        let open = of_queue.open.remove(&place.1)?;
        self.count -= 1;
        self.full -= u64::from(of_queue.open.len() + 1 == MAX_OPEN_IN_QUEUE);
        self.let_go(place, open);
        Some(open)
    }

    /// The positions of queues that were touched; those without open messages are let go.
    fn settled(&mut self, mut touched: Vec<u32>) -> Vec<(QueueId, QueueOffset)> {
        touched.sort_unstable();
        touched.dedup();
        let mut positions = Vec::with_capacity(touched.len());
        for queue in touched {
            let Some(of_queue) = self.queues.get(&queue) else { continue };
            let first = of_queue.open.keys().next().copied();
            let at = first.unwrap_or(of_queue.cursor);
            positions.push((QueueId::new(queue), QueueOffset::new(at)));
            if first.is_none() {
                self.queues.remove(&queue);
            }
        }
        if self.queues.is_empty() {
            // Nobody has anything that he could get once more.
            self.tried.clear();
        }
        positions
    }

    /// Whether every promise of the state holds; for tests.
    #[cfg(test)]
    pub(crate) fn check(&self, position: impl Fn(u32) -> u64) {
        let (mut count, mut full) = (0, 0);
        for (queue, of_queue) in &self.queues {
            let first = of_queue.open.keys().next().copied();
            assert_eq!(Some(position(*queue)), first, "the position is the first open message");
            assert!(of_queue.open.keys().all(|offset| *offset < of_queue.cursor));
            count += of_queue.open.len() as u64;
            full += u64::from(of_queue.open.len() >= MAX_OPEN_IN_QUEUE);
        }
        assert_eq!((count, full), (self.count, self.full));
        let of_clients: BTreeSet<_> = self
            .of_clients
            .iter()
            .flat_map(|(client, places)| places.iter().map(|place| (*client, *place)))
            .collect();
        let open = self.queues.iter().flat_map(|(queue, of_queue)| {
            of_queue.open.iter().map(|(offset, open)| (open.client, (*queue, *offset)))
        });
        assert_eq!(of_clients, open.filter(|(client, _)| *client != 0).collect());
        let mut of_holders = HashMap::<u64, u64, Hasher>::default();
        for open in self.queues.values().flat_map(|of_queue| of_queue.open.values()) {
            *of_holders.entry(open.holder).or_default() += u64::from(open.holder != 0);
        }
        of_holders.remove(&0);
        let known: HashMap<u64, u64, Hasher> =
            self.holders.iter().map(|(hash, holder)| (*hash, holder.open)).collect();
        assert_eq!(known, of_holders, "each holder has what is his");
        if let Some(order) = &self.order {
            let mut again = Self { order: None, ..Self::default() };
            for (queue, of_queue) in &self.queues {
                again.queue(*queue, of_queue.cursor);
                for (offset, open) in &of_queue.open {
                    again.put((*queue, *offset), *open);
                }
            }
            again.arrange(order.rule());
            for kind in [Kind::Again, Kind::Exhausted] {
                let first = match kind {
                    // With those that were left.
                    Kind::Again => order.first_of(Line::Any),
                    Kind::Exhausted => order.first_due(kind),
                };
                assert_eq!(again.first_due(kind), first, "the order is that of the messages");
            }
        }
    }
}

/// What the record of a delivery says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    pub(crate) lease: LeaseId,
    pub(crate) at: Timestamp,
    pub(crate) due: u64,
    pub(crate) attempt: Option<u64>,
    pub(crate) client: u64,
    pub(crate) holder: &'a str,
    pub(crate) cursors: &'a [(QueueId, QueueOffset)],
    pub(crate) runs: &'a [GivenRun],
}

fn kept_row((queue, offset): Place, open: &Open) -> OpenMessage {
    OpenMessage {
        queue: QueueId::new(queue),
        offset: QueueOffset::new(offset),
        state: open.state,
        same_delivery: open.same_delivery,
        renewed: open.renewed,
        due: Timestamp::new(open.due),
        lease: open.lease,
        deliveries: open.deliveries,
        group_hash: open.group_hash,
        client: open.client,
        first_delivered: Timestamp::new(open.first_delivered),
        last_delivered: Timestamp::new(open.last_delivered),
        holder: open.holder,
    }
}

fn part_of<T: Clone>(rows: &[T], part: usize) -> Vec<T> {
    rows.chunks(KEPT_ROWS).nth(part).unwrap_or_default().to_vec()
}
