//! The hand of one look: what it takes of a group's messages, reads, and leaves.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Receiver;
use crate::broker::Broker;
use crate::broker::budget::Room;
use crate::broker::cut::{self, Most, Stored, Wanted, bytes_of, index_in, is_lost};
use crate::broker::dead_letter::Lost;
use crate::broker::error::BrokerError;
use crate::broker::state::leases::{
    Due, FilterCost, FilterId, Kind, Line, MAX_OPEN_IN_QUEUE, Past, Place, Taken,
};
use crate::broker::state::offsets::Offsets;
use crate::broker::state::offsets::leased::{Consumer, Fresh};
use crate::filter::Expression;
use crate::format::attributes::{self, DeadReason};
use crate::format::batch::TagFilter;
use crate::format::state_record::OpenState;
use crate::message::{QueueId, QueueOffset};
use crate::store::{ReadOutcome, ReadRequest, StoredRecord};
use crate::sync::lock;

/// Queues that one look takes into its hand.
const MAX_QUEUES: usize = 256;

/// After so many queues whose messages find no room in memory a look goes on in no other.
const MAX_LACKING: usize = 8;

/// Messages that one look goes through for such as are wanted, once it found too few: what is passed over costs one
/// record for so many.
const SCAN: usize = 1_024;

/// Bytes of records that it reads for that from one queue.
const SCAN_BYTES: u64 = 1 << 20;

/// So many due messages that are not for this one now, in all lines but his own, one look goes through; and so many in
/// his own, of which all are for him but those that are gone.
const MAX_PASSED: usize = 1_024;

/// So many that were left already one look goes through again.
const MAX_AGAIN: usize = 128;

/// Reads of one look that may fail before it goes on without the rest of what is due.
const MAX_FAILED: u32 = 8;

/// How long a queue stays held up before anybody tries again.
const HELD_UP_MS: u64 = 1_000;

/// A message that may be given.
pub(super) struct Candidate {
    pub(super) place: Place,
    pub(super) record: StoredRecord,
    pub(super) index: u16,
    pub(super) batch: Bytes,
}

/// A queue in the hand.
pub(super) struct InHand {
    pub(super) fresh: Fresh,
    /// So many of it may be given.
    pub(super) room: usize,
    pub(super) has_more: bool,
    /// What comes next cannot be decoded, and is for another look.
    pub(super) is_before_lost: bool,
    /// Nor can it be buried now.
    pub(super) is_held_up: bool,
}

/// What one look has in its hand; whatever becomes of it, all goes back in the end.
pub(super) struct Hand<'a> {
    pub(super) offsets: &'a Offsets,
    pub(super) receiver: &'a Receiver<'a>,
    pub(super) queues: Vec<InHand>,
    pub(super) taken: Taken,
    pub(super) finished: Vec<Due>,
    pub(super) again: Vec<Due>,
    pub(super) candidates: Vec<Candidate>,
    /// So many times messages that could not be decoded became dead letters.
    pub(super) buried: usize,
    /// Dead letters of fresh messages cannot be made now.
    pub(super) cannot_bury: bool,
    pub(super) bytes: u64,
    /// For these bytes, and for what is decompressed.
    pub(super) memory: Room<'a>,
    /// At so many no more are taken.
    pub(super) max_bytes: u64,
    /// What was read is leased or passed over.
    pub(super) is_given: bool,
    /// So many that are due were left for others.
    pub(super) left: usize,
    /// Some that nobody had left before were, and there may be more of those.
    pub(super) is_cut: bool,
    /// Reads of what is due that failed.
    failures: u32,
    /// Fresh messages of so many queues found no room in memory.
    lacking: usize,
    /// What its filter did.
    pub(super) cost: FilterCost<'a>,
    /// Why the look ended before it had all that it wanted.
    pub(super) stopped: Option<BrokerError>,
    /// Why a message that is due could not be read.
    pub(super) failed: Option<BrokerError>,
    /// Why a queue is held up.
    pub(super) held_up: Option<BrokerError>,
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        let now = self.receiver.consumer.store.lease_time().get();
        for queue in &self.queues {
            let (ready, number) = (&self.receiver.ready, queue.fresh.queue);
            if queue.is_held_up {
                ready.hold_up(number, now.saturating_add(HELD_UP_MS));
            } else {
                ready.put_back(number, queue.has_more || !self.is_given);
            }
        }
        if self.queues.iter().any(|queue| queue.is_held_up) {
            // Whoever waits tries again in a second; this one may have something else.
            self.receiver.ready.wake_unless_one_rests();
        }
        if !self.is_given {
            // What could not be compared counts with the look that comes to something; the work was done.
            (self.cost.faults, self.cost.last_fault) = (0, None);
            // Nobody was told of it. What others had left stays so.
            self.taken.left.clear();
        }
        if !matches!(self.receiver.request.filter, Expression::Tags(TagFilter::All)) {
            self.receiver.ready.filtered(&self.cost);
        }
        self.offsets.put_back(self.receiver.consumer.key(), &self.taken, now);
        if self.is_given {
            return;
        }
        // Who looked meanwhile did not find it.
        let of_others: HashSet<FilterId> =
            self.taken.was_left.iter().map(|due| due.open.filter).collect();
        for filter in of_others {
            match filter {
                0 => self.receiver.ready.wake_unless_one_rests(),
                filter => self.receiver.ready.wake_for(filter),
            }
        }
    }
}

impl<'a> Hand<'a> {
    pub(super) fn new(
        offsets: &'a Offsets,
        receiver: &'a Receiver<'a>,
        (memory, max_bytes): (Room<'a>, u64),
    ) -> Self {
        Self {
            offsets,
            receiver,
            queues: Vec::new(),
            taken: Taken::default(),
            finished: Vec::new(),
            again: Vec::new(),
            candidates: Vec::new(),
            buried: 0,
            cannot_bury: false,
            bytes: 0,
            memory,
            max_bytes,
            is_given: false,
            left: 0,
            is_cut: false,
            failures: 0,
            lacking: 0,
            cost: FilterCost::default(),
            stopped: None,
            failed: None,
            held_up: None,
        }
    }

    /// How many messages more are wanted.
    pub(super) fn room(&self) -> usize {
        if self.bytes >= self.max_bytes {
            return 0;
        }
        (self.receiver.request.max_messages as usize).saturating_sub(self.candidates.len())
    }

    /// Bytes of memory that it takes to have anything at all, if there was something and no room for it.
    pub(super) fn lacks(&self) -> Option<u64> {
        let has_passed = self.queues.iter().any(|queue| queue.fresh.to > queue.fresh.from);
        let is_empty = self.candidates.is_empty() && self.finished.is_empty() && self.buried == 0;
        let lacks = self.memory.lacks();
        lacks.filter(|_| is_empty && !has_passed && self.stopped.is_none())
    }

    /// How many messages that are due were looked at and are not given.
    fn passed(&self) -> usize {
        self.left + self.finished.len() + self.buried
    }

    /// For whom something of what was taken is left, now or still.
    pub(super) fn left_for(&self) -> HashSet<FilterId> {
        let done: HashSet<Place> =
            self.again.iter().chain(&self.finished).map(|due| due.place).collect();
        let still = self.taken.was_left.iter().filter(|due| !done.contains(&due.place));
        let still = still.map(|due| due.open.filter);
        self.taken.left.iter().map(|(_, of)| *of).chain(still).collect()
    }

    /// Leaves a message that is due to members with another filter, 0 if none is known.
    fn leave(&mut self, due: Due, filter: FilterId) {
        self.left += 1;
        self.taken.left.push((due, filter));
    }
}

impl Broker {
    /// Takes messages that are due again, as many as there is room for.
    pub(super) async fn gather_due(
        &self,
        hand: &mut Hand<'_>,
        own_first: bool,
    ) -> Result<(), BrokerError> {
        let filter = hand.receiver.filter;
        let own = (Line::Own(filter), MAX_PASSED);
        let new = (Line::New(filter), MAX_PASSED);
        let left = (Line::Left(filter), MAX_AGAIN);
        for (line, most) in if own_first { [own, new, left] } else { [new, left, own] } {
            self.gather_line(hand, line, hand.passed() + most).await?;
        }
        Ok(())
    }

    /// Takes what is due in some lines, until so many were passed by. What is not given takes no place of what can be.
    async fn gather_line(
        &self,
        hand: &mut Hand<'_>,
        line: Line,
        until: usize,
    ) -> Result<(), BrokerError> {
        let (now, is_rationed) = (self.store.lease_time().get(), self.is_rationed());
        let consumer = hand.receiver.consumer;
        let left = hand.left;
        while hand.stopped.is_none() && hand.room() > 0 && hand.failures < MAX_FAILED {
            if hand.memory.lacks().is_some() {
                // More would find none either, or take what these wait for.
                break;
            }
            let room = hand.room().min(until.saturating_sub(hand.passed()));
            let taken = self.state.offsets.take_due(consumer, (Kind::Again, line), now, room);
            if taken.due.is_empty() {
                hand.taken.append(taken);
                hand.is_cut |= room == 0 && matches!(line, Line::New(_)) && hand.left > left;
                break;
            }
            let mut due = taken.due.clone();
            hand.taken.append(taken);
            if is_rationed {
                self.ration(hand, &mut due);
            }
            self.load_again(hand, &due).await?;
        }
        Ok(())
    }

    /// Leaves out what may not be offered yet of leases from before the start, and what comes behind it in its message
    /// group.
    fn ration(&self, hand: &mut Hand<'_>, due: &mut Vec<Due>) {
        let (epoch, consumer) = (self.store.epoch(), hand.receiver.consumer);
        let is_ordered = consumer.group.settings().ordered;
        let mut refused = HashSet::new();
        due.retain(|due| {
            let is_old = due.open.state == OpenState::Leased && due.open.lease.epoch < epoch;
            if is_ordered && refused.contains(&due.lock()) {
                return false;
            }
            let may = !is_old || hand.receiver.ready.may_offer_old();
            if !may {
                if is_ordered {
                    refused.insert(due.lock());
                }
                hand.leave(*due, 0);
            }
            may
        });
    }

    /// Reads messages that are open. What cannot be read now, or finds no room, stays as it is, and does not keep those
    /// behind it from being read; what is gone is finished.
    pub(super) async fn load_again(
        &self,
        hand: &mut Hand<'_>,
        due: &[Due],
    ) -> Result<(), BrokerError> {
        let (mut known, mut is_known_lost) = (None::<StoredRecord>, false);
        // Message groups of an ordered group of which something stays: what comes behind it does too.
        let is_ordered = hand.receiver.consumer.group.settings().ordered;
        let mut stays = HashSet::new();
        for due in due {
            if hand.room() == 0 || hand.failures >= MAX_FAILED {
                return Ok(());
            }
            if is_ordered && stays.contains(&due.lock()) {
                continue;
            }
            let (queue, offset) = (QueueId::new(due.place.0), QueueOffset::new(due.place.1));
            let is_known = known
                .as_ref()
                .is_some_and(|known| known.queue == queue && index_in(known, offset).is_some());
            if !is_known {
                is_known_lost = false;
                known = match self.record_of(hand.receiver.consumer.topic, due).await {
                    Ok(Stored::Record(record) | Stored::Undecodable(record)) => Some(record),
                    Ok(Stored::Gone) => None,
                    Ok(Stored::Damaged) => {
                        self.bury_due(hand, *due, Stored::Damaged).await;
                        known = None;
                        continue;
                    }
                    Err(error) => {
                        hand.failures += 1;
                        hand.failed = Some(error);
                        stays.insert(due.lock());
                        known = None;
                        continue;
                    }
                };
            }
            let found = known.as_ref().and_then(|record| Some((record, index_in(record, offset)?)));
            let Some((record, index)) = found else {
                self.counters.gone.add(1);
                hand.finished.push(*due);
                continue;
            };
            if is_for_others(record, hand.receiver.consumer) {
                hand.finished.push(*due);
                continue;
            }
            let filters = (hand.receiver.request.filter, [].as_slice());
            let most = Most { messages: 1, open: 1, bytes: u64::MAX };
            let wanted = cut::wanted(record, index, most, filters);
            let Ok(wanted) = wanted else {
                let stored = Stored::Undecodable(record.clone());
                self.bury_due(hand, *due, stored).await;
                continue;
            };
            hand.cost.add(&wanted.cost);
            if wanted.indexes.first() != Some(&index) {
                // It is kept for members that want it, those included that may come back for what they were given.
                let past = self.past_of(hand, due);
                if let Some(filter) = left_for(hand.receiver, record, index, past) {
                    hand.leave(*due, filter);
                    stays.insert(due.lock());
                    continue;
                }
                self.counters.filtered.add(1);
                hand.finished.push(*due);
                continue;
            }
            if is_known_lost {
                let stored = Stored::Undecodable(record.clone());
                self.bury_due(hand, *due, stored).await;
                continue;
            }
            let bytes = hand.bytes.saturating_add(wanted.bytes);
            match self.cut_off(record, &[index], (&mut hand.memory, bytes)).await {
                Ok(None) => {
                    stays.insert(due.lock());
                }
                Err(error) if is_lost(&error) => {
                    tracing::error!(%error, "messages cannot be decoded");
                    is_known_lost = true;
                    let stored = Stored::Undecodable(record.clone());
                    self.bury_due(hand, *due, stored).await;
                }
                Ok(Some(mut batches)) => {
                    let Some(batch) = batches.pop() else { continue };
                    hand.bytes += bytes_of(&batch);
                    let place = due.place;
                    hand.candidates.push(Candidate { place, record: record.clone(), index, batch });
                    hand.again.push(*due);
                }
                Err(error) => {
                    hand.failures += 1;
                    hand.failed = Some(error);
                    stays.insert(due.lock());
                }
            }
        }
        Ok(())
    }

    /// What has become of an open message that somebody does not want.
    fn past_of(&self, hand: &Hand<'_>, due: &Due) -> Past {
        let was_delivered = due.was_leased();
        let cursor = || self.state.offsets.cursors(hand.receiver.consumer, &[due.place.0]);
        let is_full = !was_delivered && cursor().iter().any(|(_, open)| *open >= MAX_OPEN_IN_QUEUE);
        let since = due.open.due.max(self.opened.get());
        let waits = self.store.lease_time().get().saturating_sub(since);
        Past { was_delivered, is_full, waits: Duration::from_millis(waits) }
    }

    /// Makes a dead letter of a message in the hand that cannot be decoded. What cannot be one now comes again.
    async fn bury_due(&self, hand: &mut Hand<'_>, due: Due, stored: Stored) {
        let (consumer, deadline) = (hand.receiver.consumer, hand.receiver.request.deadline);
        let death = DeadReason::Undecodable.into();
        let buried = match stored {
            // Read once more: what is on the disk may be sound.
            Stored::Damaged => self.bury(consumer, due, death, deadline).await,
            stored => self.bury_stored(consumer, due, (stored, death), deadline).await,
        };
        let later = |error: BrokerError| {
            tracing::warn!(%error, "a message that cannot be decoded is no dead letter yet");
            self.keep_for_later(consumer, due)
        };
        match buried.map_or_else(later, |_| Ok(())) {
            Ok(()) => hand.buried += 1,
            Err(error) => hand.failed = Some(error.into()),
        }
    }

    /// Takes fresh messages of the queues that are listed, as many as there is room for.
    pub(super) async fn gather_fresh(&self, hand: &mut Hand<'_>) -> Result<(), BrokerError> {
        let half = hand.room().div_ceil(2);
        let goes_on = |hand: &Hand<'_>| hand.stopped.is_none() && hand.room() > 0;
        while goes_on(hand) && hand.queues.len() < MAX_QUEUES && hand.lacking < MAX_LACKING {
            let now = self.store.lease_time().get();
            let Some(queue) = hand.receiver.ready.take(now) else { break };
            let at = hand.queues.len();
            let fresh = Fresh { queue, ..Fresh::default() };
            // In the hand before anything is awaited: it goes back whatever happens.
            hand.queues.push(InHand {
                fresh,
                room: 0,
                has_more: true,
                is_before_lost: false,
                is_held_up: false,
            });
            let cursors = self.state.offsets.cursors(hand.receiver.consumer, &[queue]);
            let Some((cursor, open)) = cursors.first().copied() else { continue };
            let room = hand.receiver.max_open.saturating_sub(open);
            if let Some(in_hand) = hand.queues.get_mut(at) {
                (in_hand.fresh.from, in_hand.fresh.to, in_hand.room) = (cursor, cursor, room);
            }
            self.read_fresh(hand, at, half.min(hand.room()), 0).await?;
        }
        let has_filter = !matches!(hand.receiver.request.filter, Expression::Tags(TagFilter::All));
        let mut scan = SCAN;
        for at in 0..hand.queues.len() {
            let in_hand = hand.queues.get(at);
            let Some(InHand { has_more: true, is_before_lost: false, fresh, .. }) = in_hand else {
                continue;
            };
            let from = fresh.to;
            // What is passed over is not for this group, or not what it wants.
            let is_passed = fresh.messages.is_empty() && fresh.to > fresh.from;
            if goes_on(hand) && hand.lacking == 0 {
                let through = if has_filter || is_passed { scan } else { 0 };
                self.read_fresh(hand, at, hand.room(), through).await?;
                let to = hand.queues.get(at).map_or(from, |queue| queue.fresh.to);
                scan = scan.saturating_sub(usize::try_from(to - from).unwrap_or(usize::MAX));
            }
        }
        Ok(())
    }

    /// Reads on in a queue that is in the hand: `room` messages, or through `scan` for as many that are wanted.
    async fn read_fresh(
        &self,
        hand: &mut Hand<'_>,
        at: usize,
        room: usize,
        scan: usize,
    ) -> Result<(), BrokerError> {
        let Some(in_hand) = hand.queues.get_mut(at) else { return Ok(()) };
        let room = room.min(in_hand.room);
        if room == 0 {
            // It is listed again when messages of it are finished.
            in_hand.has_more = false;
            return Ok(());
        }
        let (queue, from) = (in_hand.fresh.queue, in_hand.fresh.to);
        let room_bytes = hand.max_bytes.saturating_sub(hand.bytes);
        let room_bytes = if scan > room { room_bytes.max(SCAN_BYTES) } else { room_bytes };
        let read = ReadRequest {
            topic: Arc::clone(hand.receiver.consumer.topic.handle()),
            queue: QueueId::new(queue),
            from: QueueOffset::new(from),
            max_messages: room.max(scan),
            max_bytes: usize::try_from(room_bytes).unwrap_or(usize::MAX).max(1),
            filter: match hand.receiver.others.as_slice() {
                [] => Arc::clone(&hand.receiver.tags),
                [_, ..] => Arc::new(TagFilter::All),
            },
        };
        let mut outcome = self.store.read(read.clone()).await;
        if let Ok(ReadOutcome::Damaged { .. }) = outcome {
            // Once more, as others are passed over with it: what is on the disk may be sound.
            outcome = self.store.read(read).await;
        }
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                hand.stopped = Some(error.into());
                return Ok(());
            }
        };
        let (records, next, max, gone) = match outcome {
            ReadOutcome::Records { records, next, range } => (records, next, range.max, 0),
            ReadOutcome::Empty { next, range } => (Vec::new(), next, range.max, 0),
            ReadOutcome::Damaged { at: first, next, range } => {
                let (first, to) = (first.get().max(from), next.get());
                // What is in front of them the filter does not want.
                self.counters.filtered.add(first - from);
                in_hand.fresh.to = first;
                // One stands for all.
                let messages = u32::try_from(to.saturating_sub(first)).unwrap_or(u32::MAX);
                let lost = Lost {
                    stored: Stored::Damaged,
                    letters: [(first, messages)].into(),
                    fresh: Fresh { queue, from: first, to, ..Fresh::default() },
                    kept_for: 0,
                };
                self.pass_lost(hand, at, (lost, None), range.max.get()).await;
                return Ok(());
            }
            ReadOutcome::OutOfRange { range } => {
                let next = range.min.max(QueueOffset::new(from));
                (Vec::new(), next, range.max, next.get() - from)
            }
            ReadOutcome::Rebuilding => {
                hand.stopped = Some(BrokerError::Rebuilding);
                return Ok(());
            }
        };
        let mut next = next.get();
        let (mut left, mut kept) = (room, 0);
        let open = in_hand.room;
        let mut lost = None;
        for record in records {
            let skip = from.saturating_sub(record.first_queue_offset.get());
            let skip = u16::try_from(skip).unwrap_or(u16::MAX);
            let first = record.first_queue_offset.get();
            if left == 0 || room - left + kept >= open || hand.bytes >= hand.max_bytes {
                next = first + u64::from(skip);
                break;
            }
            if is_for_others(&record, hand.receiver.consumer) {
                continue;
            }
            let filters = (hand.receiver.request.filter, hand.receiver.others.as_slice());
            let most = Most {
                messages: left,
                open: open - (room - left) - kept,
                bytes: hand.max_bytes - hand.bytes,
            };
            let wanted = cut::wanted(&record, skip, most, filters);
            let is_known = wanted.is_ok();
            let (wanted, batches) = match wanted {
                Ok(wanted) if wanted.indexes.is_empty() => (wanted, Ok(Some(Vec::new()))),
                Ok(wanted) => {
                    let room = (&mut hand.memory, hand.bytes.saturating_add(wanted.bytes));
                    let batches = self.cut_off(&record, &wanted.indexes, room).await;
                    (wanted, batches)
                }
                Err(error) => {
                    let most = u16::try_from(left).unwrap_or(u16::MAX);
                    let next = record.message_count.min(skip.saturating_add(most));
                    let indexes = (skip..next).collect();
                    (Wanted { indexes, next, ..Wanted::default() }, Err(error))
                }
            };
            let Wanted { indexes, kept: of_others, next: behind, group_hash, cost, .. } = wanted;
            hand.cost.add(&cost);
            let batches = match batches {
                Ok(Some(batches)) => batches,
                // For who has room for it; what lies behind it waits for that.
                Ok(None) => {
                    hand.lacking += 1;
                    next = first + u64::from(skip);
                    break;
                }
                Err(error) if is_lost(&error) => {
                    tracing::error!(%error, "messages cannot be decoded");
                    let offset = |index: u16| first + u64::from(index);
                    let kept = of_others.iter().map(|index| (offset(*index), group_hash));
                    let (kept, to) = (kept.collect(), offset(behind));
                    next = offset(skip);
                    let fresh = Fresh { queue, from: next, to, kept, ..Fresh::default() };
                    let letters = indexes.iter().map(|index| (offset(*index), 1)).collect();
                    let (stored, kept_for) =
                        (Stored::Undecodable(record), hand.receiver.kept_for());
                    let of_them = Lost { stored, letters, fresh, kept_for };
                    lost = Some((of_them, is_known.then_some(group_hash)));
                    break;
                }
                Err(error) => {
                    hand.stopped = Some(error);
                    next = first + u64::from(skip);
                    break;
                }
            };
            left -= batches.len();
            kept += of_others.len();
            if let Some(in_hand) = hand.queues.get_mut(at) {
                let places = of_others.iter().map(|index| first + u64::from(*index));
                in_hand.fresh.kept.extend(places.map(|place| (place, group_hash)));
            }
            for (index, batch) in indexes.into_iter().zip(batches) {
                let place = (queue, first + u64::from(index));
                hand.bytes += bytes_of(&batch);
                hand.candidates.push(Candidate { place, record: record.clone(), index, batch });
                if let Some(in_hand) = hand.queues.get_mut(at) {
                    in_hand.fresh.messages.push((place.1, group_hash));
                }
            }
            if behind < record.message_count {
                next = first + u64::from(behind);
                break;
            }
        }
        self.counters.gone.add(gone);
        let passed = next.saturating_sub(from).saturating_sub(gone + (room - left + kept) as u64);
        self.counters.filtered.add(passed);
        if let Some(in_hand) = hand.queues.get_mut(at) {
            in_hand.fresh.to = in_hand.fresh.to.max(next);
            in_hand.room -= room - left + kept;
        }
        match lost {
            Some(lost) => self.pass_lost(hand, at, lost, max.get()).await,
            None => self.was_read(hand, at, max.get()),
        }
        Ok(())
    }

    /// Notes whether a queue in the hand, which ends at `max`, has more than was read.
    pub(super) fn was_read(&self, hand: &mut Hand<'_>, at: usize, max: u64) {
        let Some(in_hand) = hand.queues.get_mut(at) else { return };
        let (queue, next) = (in_hand.fresh.queue, in_hand.fresh.to);
        in_hand.has_more = next < max;
        if !in_hand.has_more {
            let (topic, next) = (hand.receiver.consumer.topic, QueueOffset::new(next));
            self.store.tell_behind(topic.handle(), QueueId::new(queue), next);
        }
    }
}

/// For whom of the other members of the group a message of a record is left.
fn left_for(
    receiver: &Receiver<'_>,
    record: &StoredRecord,
    index: u16,
    past: Past,
) -> Option<FilterId> {
    let Some(meta) = cut::meta(record, index) else { return Some(0) };
    lock(&receiver.ready.subscriptions).left_for(receiver.request.filter, &meta, past)
}

/// Whether a record was sent back to one group alone, and that is another one.
fn is_for_others(record: &StoredRecord, consumer: Consumer<'_>) -> bool {
    if record.attributes.is_empty() {
        return false;
    }
    let one = attributes::one_group(&record.attributes).ok().flatten();
    one.is_some_and(|one| one != consumer.group.id())
}
