//! Receives: single messages of any queues of a topic, leased to a group for a while.
//!
//! 1. Who comes first binds the group to the topic, a position in each queue, unless a consumer of RocketMQ did so when
//!    it said what it subscribes to, or asked for its queues.
//! 2. Take into the hand: queues that may have fresh messages, and messages that are due again. Nobody else finds them
//!    meanwhile, and what was taken and not given goes back, whatever becomes of the request.
//! 3. Read, and leave out what the filter does not want. What cannot be decoded becomes a dead letter in step 4.
//! 4. Give: one record says what is leased, what was passed over, and where the group goes on. The lock is held for
//!    that alone, and what changed since the reading is left out.
//! 5. Nothing: wait for a message, for one that is due, or for the end of the time, and look again.
//!
//! Due messages come first in every other look, fresh ones in the others, so neither can keep the other waiting. Of
//! one queue half of what is wanted is taken at first, so that one that has much leaves room to the others.
//!
//! A lease is in the log before it is answered, and needs not be durable: if a power cut takes it, the message is
//! delivered again earlier.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use xxhash_rust::xxh3::xxh3_64;

use super::budget::Permit;
use super::clients;
use super::cut::{self, Wanted};
use super::dead_letter::{Death, dead_letter};
use super::error::{BrokerError, RequestFault};
use super::handle::Handle;
use super::offsets::Position;
use super::query::unpacked;
use super::state::groups::GroupEntry;
use super::state::leases::{Claim, Due, Kind, Place, Ready, Repeated, Taken};
use super::state::offsets::leased::{Change, Consumer, Fresh, Gave, Giving};
use super::state::offsets::{By, Caller, Expected, NewOffset, Offsets, TopicCommit};
use super::state::topics::TopicEntry;
use super::topics::within;
use super::{Broker, before};
use crate::filter::Expression;
use crate::format::attributes::{self, DeadReason};
use crate::format::batch::{Batch, BatchError, MetaView, TagFilter};
use crate::format::state_record::{OffsetCause, OpenState};
use crate::message::{InitialPosition, LeaseId, MessageId, QueueId, QueueOffset, Timestamp};
use crate::store::{AppendError, ReadOutcome, ReadRequest, StoredRecord};
use crate::sync::lock;

/// The most messages of one receive.
pub const MAX_RECEIVE: u32 = 1_024;

/// The most bytes of messages of one receive, if there is more than one.
const MAX_BYTES: u32 = 8 << 20;

/// The longest lease: 12 hours.
pub const MAX_INVISIBLE: Duration = Duration::from_secs(12 * 60 * 60);

/// The longest wait for a message.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Bytes of the name of who gets messages that are kept.
const MAX_HOLDER: usize = 128;

/// Queues that one look takes into its hand.
const MAX_QUEUES: usize = 256;

/// Messages that one look goes through for such as are wanted, once it found too few: what is passed over costs one
/// record for so many.
const SCAN: usize = 1_024;

/// Bytes of records that it reads for that from one queue.
const SCAN_BYTES: u64 = 1 << 20;

/// So many due messages of members with other filters one look passes by.
const MAX_LEFT: usize = 1_024;

/// After a start leases that are over since before it are offered for so long at a limited rate: their consumers come
/// back all at once, and some of them to finish what they had.
const GRACE_MS: u64 = 10_000;

/// How long who found only such messages rests before he looks again.
const REST: Duration = Duration::from_secs(1);

/// Looks of one receive at messages that are all passed over, before it answers with nothing or waits.
const MAX_LOOKS: u32 = 64;

/// A receive that finds nothing listed looks at all queues once if there are no more than so many: what was
/// acknowledged before it came may not have been listed yet, for as long as the store's threads need to say so.
const FEW_QUEUES: u32 = 1_024;

/// Reads of one look that may fail before it goes on without the rest of what is due.
const MAX_FAILED: u32 = 8;

/// Queues that are looked at when a group gets messages of a topic for the first time, before others get their turn.
const BEGIN_STEP: usize = 1_024;

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveRequest<'a> {
    /// The group's name.
    pub group: &'a str,
    /// The topic's name.
    pub topic: &'a str,
    /// Which messages the group wants; the others are finished by passing over them.
    pub filter: &'a Expression,
    /// At most so many, 1 to 1 024.
    pub max_messages: u32,
    /// At most so many bytes of messages, but at least one message.
    pub max_bytes: u32,
    /// How long nobody else gets them, up to 12 hours.
    pub invisible: Duration,
    /// The client with which the leases end, if they do before their time is over: its id, as it introduced itself.
    pub client: Option<&'a str>,
    /// Who gets them, for people: a client's id, or where it is; at most 128 bytes of it are kept. Empty: not known.
    pub holder: &'a str,
    /// How long to wait for a message.
    pub wait: Duration,
    /// Names this receive among tries of the same: who tries again, as the answer was lost, gets what he was given.
    /// Empty: every one is another.
    pub attempt: &'a str,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// A message and its lease.
#[derive(Clone, Debug)]
pub struct ReceivedMessage {
    /// What finishes it, or keeps it on.
    pub handle: String,
    /// Its id.
    pub id: MessageId,
    /// Its queue.
    pub queue: QueueId,
    /// Its place there.
    pub queue_offset: QueueOffset,
    /// On the store clock.
    pub store_time: Timestamp,
    /// Which delivery of it to the group this is, from 1.
    pub delivery: u32,
    /// What the broker added to its record.
    pub attributes: Bytes,
    /// The message alone, as an uncompressed batch of one.
    pub batch: Bytes,
}

impl ReceivedMessage {
    /// What its sender said of it, and its body.
    ///
    /// # Errors
    /// It is damaged.
    pub fn parts(&self) -> Result<(MetaView<'_>, Bytes), BatchError> {
        let message = Batch::parse(&self.batch)?.messages().next();
        let (meta, body) = message.unwrap_or(Err(BatchError::Empty))?;
        Ok((meta, self.batch.slice_ref(body)))
    }

    /// The topic that it was sent to and the id that it has there, if it is a dead letter.
    pub fn dead_letter_of(&self) -> Option<(&str, MessageId)> {
        let letter = dead_letter(&self.attributes);
        letter.filter(|letter| !letter.is_back).map(|letter| (letter.topic_name, letter.id))
    }
}

/// What a receive got.
#[derive(Debug, Default)]
pub struct Received {
    /// Those of a queue in its order, but for those that were delivered before.
    pub messages: Vec<ReceivedMessage>,
    /// Keeps the answer's bytes counted until it has left.
    pub permit: Option<Permit>,
}

/// A receive that goes on.
pub(super) struct Receiver<'a> {
    pub(super) consumer: Consumer<'a>,
    ready: Arc<Ready>,
    request: &'a ReceiveRequest<'a>,
    tags: Arc<TagFilter>,
    /// Hash of the attempt.
    attempt: Option<u64>,
}

/// A message that may be given.
struct Candidate {
    place: Place,
    record: StoredRecord,
    index: u16,
    batch: Bytes,
}

/// A queue in the hand.
struct InHand {
    fresh: Fresh,
    /// So many of it may be given.
    room: usize,
    has_more: bool,
}

/// What one look has in its hand; whatever becomes of it, all goes back in the end.
struct Hand<'a> {
    offsets: &'a Offsets,
    receiver: &'a Receiver<'a>,
    queues: Vec<InHand>,
    taken: Taken,
    finished: Vec<Due>,
    again: Vec<Due>,
    candidates: Vec<Candidate>,
    /// Fresh messages that cannot be decoded, and for how many each of them stands.
    lost: Vec<(Place, u32)>,
    /// So many that are due could not be decoded, and became dead letters.
    buried: usize,
    bytes: u64,
    /// At so many no more are taken.
    max_bytes: u64,
    /// What was read is leased or passed over.
    is_given: bool,
    /// So many that are due were left for others.
    left: usize,
    /// Why the look ended before it had all that it wanted.
    stopped: Option<BrokerError>,
    /// Why a message that is due could not be read.
    failed: Option<BrokerError>,
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        for queue in &self.queues {
            self.receiver.ready.put_back(queue.fresh.queue, queue.has_more || !self.is_given);
        }
        self.offsets.put_back(self.receiver.consumer.key(), &self.taken);
    }
}

/// Somebody who was woken for a message. If he goes away before he has looked, the next one is woken in his place.
struct Woken<'a> {
    broker: &'a Broker,
    ready: Arc<Ready>,
    group: Arc<GroupEntry>,
    topic: Arc<TopicEntry>,
    has_looked: bool,
}

impl Drop for Woken<'_> {
    fn drop(&mut self) {
        if self.has_looked {
            return;
        }
        let Broker { store, state, .. } = self.broker;
        let consumer = Consumer { store, group: &self.group, topic: &self.topic };
        if self.ready.has_listed() || state.offsets.has_due(consumer, store.lease_time().get()) {
            self.ready.wake();
        }
    }
}

/// What a look came to.
enum Look {
    Found(Received),
    /// Something was passed over; there may be more.
    Passed,
    /// Something is due, for others.
    Left,
    Nothing,
}

impl Broker {
    /// Gets messages for a group, from any queues of a topic; waits for one if there is none.
    ///
    /// # Errors
    /// Nothing is leased. What was passed over stays so.
    pub async fn receive_messages(
        &self,
        request: ReceiveRequest<'_>,
    ) -> Result<Received, BrokerError> {
        check(&request)?;
        let until = before(request.deadline).min(Instant::now() + request.wait);
        let tags = match request.filter {
            Expression::Tags(tags) => Arc::new(tags.clone()),
            Expression::Sql(_) => Arc::new(TagFilter::All),
        };
        let (mut has_caught_up, mut in_front, mut looks) = (false, false, 0);
        let mut woken: Option<Woken<'_>> = None;
        loop {
            let group = self.group(request.group, request.deadline).await?;
            let topic = self.topic(request.topic, request.deadline).await?;
            let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
            self.admits(&group, request.deadline).await?;
            self.check_readable(&topic)?;
            let ready = self.begun(consumer, request.deadline).await?;
            self.check_subscription(consumer, &ready, request.filter)?;
            let attempt =
                (!request.attempt.is_empty()).then(|| xxh3_64(request.attempt.as_bytes()));
            let tags = Arc::clone(&tags);
            let receiver = Receiver { consumer, ready, request: &request, tags, attempt };
            let look = self.look_once(&receiver).await;
            if look.is_ok()
                && let Some(woken) = &mut woken
            {
                woken.has_looked = true;
            }
            let is_left = matches!(look, Ok(Look::Left));
            match look {
                Ok(Look::Found(received)) => return Ok(received),
                Ok(Look::Passed) if looks < MAX_LOOKS => {
                    looks += 1;
                    // It may have been much; others have their turn.
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Look::Passed | Look::Left | Look::Nothing) => {}
                Err(BrokerError::Rebuilding) => {
                    self.wait_for_rebuild(until).await?;
                    continue;
                }
                Err(error) => {
                    self.still_there(&topic, request.deadline).await?;
                    return Err(error);
                }
            }
            looks = 0;
            // What was acknowledged before this request came must be seen by it, dispatched or not.
            if !has_caught_up {
                has_caught_up = true;
                let caught_up = self.store.caught_up(topic.handle());
                let _ = timeout_at(before(request.deadline), caught_up).await;
                let queues = topic.handle().queues();
                if queues <= FEW_QUEUES {
                    self.list(consumer, &receiver.ready, 0..queues).await;
                }
                continue;
            }
            let may_be_more = match is_left {
                true => {
                    // It is for others, who have their turn meanwhile.
                    receiver.ready.wake();
                    self.rest(until).await
                }
                false => self.wait_for_messages(&receiver, until, in_front).await?,
            };
            if !may_be_more {
                self.still_there(&topic, request.deadline).await?;
                return Ok(Received::default());
            }
            let ready = receiver.ready;
            woken = Some(Woken { broker: self, ready, group, topic, has_looked: false });
            in_front = true;
        }
    }

    /// Waits for a while; `false`: the time is over, or the broker stops.
    async fn rest(&self, until: Instant) -> bool {
        let mut draining = self.draining.subscribe();
        if *draining.borrow_and_update() || until <= Instant::now() {
            return false;
        }
        timeout_at(until.min(Instant::now() + REST), draining.changed()).await.is_err()
    }

    /// Notes which filter is used.
    ///
    /// # Errors
    /// The members of the group use another one, and it wants them to use one.
    fn check_subscription(
        &self,
        consumer: Consumer<'_>,
        ready: &Ready,
        filter: &Expression,
    ) -> Result<(), BrokerError> {
        let one_filter = consumer.group.settings().one_filter;
        let other = lock(&ready.subscriptions).note(filter, one_filter);
        let Some((expected, is_new)) = other else { return Ok(()) };
        self.counters.filter_mismatches.add(1);
        let (expected, group, topic) = (expected.to_string(), consumer.group, consumer.topic);
        if one_filter {
            return Err(BrokerError::FilterMismatch { expected: expected.into() });
        }
        if is_new {
            let (group, topic) = (group.name(), topic.name());
            tracing::warn!(group, topic, expected, found = %filter, "members of a group use different filters");
        }
        Ok(())
    }

    /// Waits until there may be a message; `false`: the time is over, or the broker stops.
    async fn wait_for_messages(
        &self,
        receiver: &Receiver<'_>,
        until: Instant,
        in_front: bool,
    ) -> Result<bool, BrokerError> {
        let mut draining = self.draining.subscribe();
        if *draining.borrow_and_update() || until <= Instant::now() {
            return Ok(false);
        }
        let Ok(_place) = self.waiters.try_acquire() else {
            return Err(BrokerError::Overloaded { what: "parked receives" });
        };
        let Some(mut parked) = receiver.ready.park(in_front) else {
            return Err(BrokerError::Overloaded { what: "parked receives of a group" });
        };
        // Parked first, then the look: what comes in between is not missed.
        let _hurry = self.store.hurry();
        let now = self.store.lease_time().get();
        if receiver.ready.has_listed() || self.state.offsets.has_due(receiver.consumer, now) {
            return Ok(true);
        }
        self.counters.parked.add(1);
        let woken = timeout_at(until, async {
            tokio::select! {
                () = parked.woken() => true,
                _ = draining.changed() => false,
                () = self.refuses(Some(receiver.consumer.group)) => true,
            }
        });
        Ok(woken.await.unwrap_or(false))
    }

    /// Where a group looks for messages of a topic: bound to it, with all queues listed that have something.
    async fn begun(
        &self,
        consumer: Consumer<'_>,
        deadline: Instant,
    ) -> Result<Arc<Ready>, BrokerError> {
        let offsets = &self.state.offsets;
        let Consumer { group, topic, .. } = consumer;
        let ready = match offsets.ready.get(consumer.key()) {
            Some(ready) => ready,
            None => offsets.ready.make(consumer.key()),
        };
        ready.asked();
        let queues = topic.handle().queues();
        let begun = ready.begun();
        if begun >= queues {
            return Ok(ready);
        }
        while let Some(unbound) = offsets.unbound(consumer) {
            self.bind(group, topic, unbound, deadline).await?;
        }
        self.store.watch(topic.handle());
        self.list(consumer, &ready, begun..queues).await;
        ready.begin(queues);
        if group.is_dead() || topic.handle().is_dead() {
            // Made anew after it was forgotten.
            offsets.ready.forget(consumer.key());
        }
        Ok(ready)
    }

    /// Gives a group its positions in a topic if it has none yet, where it wants to begin: a consumer has said that it
    /// will ask for messages, and what is sent from then on is for it. Nothing of a group that is not there, which
    /// would begin with the first message there is.
    ///
    /// # Errors
    /// There is no such topic, or the positions cannot be stored: the first receive does it.
    pub async fn bind_group(
        &self,
        group: &str,
        topic: &str,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let Some(group) = self.state.groups.get(group) else { return Ok(()) };
        let topic = self.topic(topic, deadline).await?;
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let queues = topic.handle().queues();
        let ready = self.state.offsets.ready.get(consumer.key());
        if ready.is_some_and(|ready| ready.begun() >= queues) {
            return Ok(());
        }
        while let Some(unbound) = self.state.offsets.unbound(consumer) {
            self.bind(&group, &topic, unbound, deadline).await?;
        }
        Ok(())
    }

    /// Lists the queues, of some, that have something for a group.
    async fn list(&self, consumer: Consumer<'_>, ready: &Ready, queues: std::ops::Range<u32>) {
        let (topic, queues) = (consumer.topic.handle(), queues.collect::<Vec<_>>());
        for some in queues.chunks(BEGIN_STEP) {
            let cursors = self.state.offsets.cursors(consumer, some);
            for (queue, (cursor, room)) in some.iter().zip(cursors) {
                let (id, cursor) = (QueueId::new(*queue), QueueOffset::new(cursor));
                if self.store.queue_max(topic, id) <= cursor {
                    self.store.tell_behind(topic, id, cursor);
                } else if room > 0 {
                    ready.arrived(*queue);
                }
            }
            if queues.len() > BEGIN_STEP {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Gives a group a position in queues of a topic that is new to it: all of them with one record.
    async fn bind(
        &self,
        group: &GroupEntry,
        topic: &Arc<TopicEntry>,
        unbound: Vec<QueueId>,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let queues = topic.handle().queues();
        let begin = group.settings().initial_position;
        let is_new = unbound.len() == queues as usize;
        let (mut offsets, mut known_queues) = (Vec::new(), queues);
        if begin == InitialPosition::Earliest && is_new {
            // Queues without an offset that come after the first begin at 0: no row is needed until something moves.
            offsets.push((QueueId::ZERO, QueueOffset::ZERO));
            known_queues = 1;
        } else {
            if begin != InitialPosition::Earliest {
                let caught_up = self.store.caught_up(topic.handle());
                let _ = timeout_at(before(deadline), caught_up).await;
            }
            for queue in unbound {
                let offset = match begin {
                    InitialPosition::Earliest => QueueOffset::ZERO,
                    begin => {
                        let range = self.bounds(topic, queue, deadline).await?;
                        self.offset_of(topic, queue, range, Position::from(begin), deadline).await?
                    }
                };
                offsets.push((queue, offset));
            }
        }
        let expected = Expected::Nothing;
        let offsets = offsets.into_iter();
        let offsets = offsets.map(|(queue, offset)| NewOffset { queue, offset, expected });
        let (topic, offsets) = (Arc::clone(topic), offsets.collect());
        let commit = TopicCommit { topic, known_queues, offsets };
        let by = By { cause: OffsetCause::Commit, caller: Caller::default() };
        match self.try_commit(group, &[commit], by, deadline).await {
            // Another one was faster: what is missing now is looked at anew.
            Ok(_) | Err(BrokerError::OffsetConflict { .. } | BrokerError::OpenMessages { .. }) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Looks for messages once, and leases what it finds.
    async fn look_once(&self, receiver: &Receiver<'_>) -> Result<Look, BrokerError> {
        let request = receiver.request;
        let max_bytes = u64::from(request.max_bytes.min(self.part_bytes()));
        // The last message may go beyond what was asked for; then so must the permit.
        let mut answer_len = max_bytes;
        loop {
            let permit = self.replies.take(answer_len, before(request.deadline)).await;
            let permit = permit.ok_or(BrokerError::Overloaded { what: "bytes to answer with" })?;
            let offsets = &self.state.offsets;
            let mut hand = Hand {
                offsets,
                receiver,
                queues: Vec::new(),
                taken: Taken::default(),
                finished: Vec::new(),
                again: Vec::new(),
                candidates: Vec::new(),
                lost: Vec::new(),
                buried: 0,
                bytes: 0,
                max_bytes,
                is_given: false,
                left: 0,
                stopped: None,
                failed: None,
            };
            if let Some(attempt) = receiver.attempt {
                let now = self.store.lease_time().get();
                let mut repeated = offsets.of_attempt(receiver.consumer, attempt, now);
                if !repeated.due.is_empty() {
                    let mut rest = repeated.due.clone();
                    self.load_again(&mut hand, &rest).await?;
                    repeated.due = std::mem::take(&mut hand.again);
                    let gone: HashSet<Place> =
                        repeated.due.iter().chain(&hand.finished).map(|due| due.place).collect();
                    rest.retain(|due| !gone.contains(&due.place));
                    let look = self.give(receiver, hand, &repeated, permit).await?;
                    self.give_rest_back(receiver, &rest);
                    return Ok(look);
                }
            }
            if receiver.ready.turn().is_multiple_of(2) {
                self.gather_due(&mut hand).await?;
                self.gather_fresh(&mut hand).await?;
            } else {
                self.gather_fresh(&mut hand).await?;
                self.gather_due(&mut hand).await?;
            }
            if hand.bytes > answer_len {
                // Looked at again with a permit that is large enough: nobody holds messages, or a small permit, while
                // waiting for more.
                answer_len = hand.bytes;
                continue;
            }
            return self.give(receiver, hand, &Repeated::default(), permit).await;
        }
    }

    /// Who tries again and has less room gets fewer messages: he does not know of the rest, so others get it.
    fn give_rest_back(&self, receiver: &Receiver<'_>, rest: &[Due]) {
        if rest.is_empty() {
            return;
        }
        let now = self.store.lease_time().get();
        let change = |due: &Due| Change {
            claim: Claim { place: due.place, lease: due.open.lease, is_first: false },
            due: now,
            state: OpenState::Waiting,
            same_delivery: true,
        };
        let changes: Vec<_> = rest.iter().map(change).collect();
        match self.state.offsets.change(receiver.consumer, &changes) {
            Ok(_) => receiver.ready.wake(),
            // It comes again when its lease is over.
            Err(error) => tracing::debug!(%error, "messages of a try cannot be given back"),
        }
    }

    /// Takes messages that are due again, as many as there is room for.
    async fn gather_due(&self, hand: &mut Hand<'_>) -> Result<(), BrokerError> {
        let now = self.store.lease_time().get();
        let is_rationed = now < self.opened.get().saturating_add(GRACE_MS);
        if is_rationed {
            hand.receiver.ready.has_room_for(hand.receiver.request.max_messages);
        }
        if hand.stopped.is_some() || hand.room() == 0 {
            return Ok(());
        }
        let consumer = hand.receiver.consumer;
        // What is left for others takes no place of what can be given.
        while hand.stopped.is_none() && hand.room() > 0 && hand.left < MAX_LEFT {
            let taken = self.state.offsets.take_due(consumer, Kind::Again, now, hand.room());
            let (mut due, left) = (taken.due.clone(), hand.left);
            hand.taken.append(taken);
            if is_rationed {
                let epoch = self.store.epoch();
                let all = due.len();
                due.retain(|due| {
                    let is_old =
                        due.open.state == OpenState::Leased && due.open.lease.epoch < epoch;
                    !is_old || hand.receiver.ready.may_offer_old()
                });
                hand.left += all - due.len();
            }
            self.load_again(hand, &due).await?;
            if hand.left == left {
                break;
            }
        }
        Ok(())
    }

    /// Reads messages that are open. What cannot be read now stays as it is, and does not keep those behind it from
    /// being read; what is gone is finished.
    async fn load_again(&self, hand: &mut Hand<'_>, due: &[Due]) -> Result<(), BrokerError> {
        let (mut known, mut failures) = (None::<StoredRecord>, 0);
        for due in due {
            if hand.room() == 0 || failures >= MAX_FAILED {
                return Ok(());
            }
            let (queue, offset) = (QueueId::new(due.place.0), QueueOffset::new(due.place.1));
            let is_known = known
                .as_ref()
                .is_some_and(|known| known.queue == queue && index_in(known, offset).is_some());
            if !is_known {
                known = match self.record_of(hand.receiver.consumer.topic, due).await {
                    Ok(Stored::Record(record)) => Some(record),
                    Ok(Stored::Gone) => None,
                    Ok(Stored::Damaged) => {
                        self.bury_due(hand, *due).await;
                        known = None;
                        continue;
                    }
                    Err(error) => {
                        failures += 1;
                        hand.failed = Some(error);
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
            let wanted = cut::wanted(record, index, 1, hand.receiver.request.filter);
            let Ok(wanted) = wanted else {
                self.bury_due(hand, *due).await;
                continue;
            };
            if wanted.indexes.first() != Some(&index) {
                // It was wanted by a member whose filter is another one: it is left for him.
                if !lock(&hand.receiver.ready.subscriptions).is_only_one() {
                    hand.left += 1;
                    continue;
                }
                self.counters.filtered.add(1);
                hand.finished.push(*due);
                continue;
            }
            match cut_off(record.clone(), vec![index]).await {
                Err(error) if is_lost(&error) => self.bury_due(hand, *due).await,
                Ok(mut batches) => {
                    let Some(batch) = batches.pop() else { continue };
                    hand.bytes += bytes_of(&batch);
                    let place = due.place;
                    hand.candidates.push(Candidate { place, record: record.clone(), index, batch });
                    hand.again.push(*due);
                }
                Err(error) => {
                    failures += 1;
                    hand.failed = Some(error);
                }
            }
        }
        Ok(())
    }

    /// Makes a dead letter of a message in the hand that cannot be decoded. What cannot be one now comes again.
    async fn bury_due(&self, hand: &mut Hand<'_>, due: Due) {
        let (consumer, deadline) = (hand.receiver.consumer, hand.receiver.request.deadline);
        let buried = self.bury(consumer, due, DeadReason::Undecodable.into(), deadline).await;
        let later = |error: BrokerError| {
            tracing::warn!(%error, "a message that cannot be decoded is no dead letter yet");
            self.keep_for_later(consumer, due)
        };
        match buried.map_or_else(later, |_| Ok(())) {
            Ok(()) => hand.buried += 1,
            Err(error) => hand.failed = Some(error.into()),
        }
    }

    /// Makes dead letters of fresh messages that cannot be decoded, and were leased to nobody to keep them. What cannot
    /// be one now comes again when that lease is over.
    async fn bury_fresh(&self, receiver: &Receiver<'_>, lost: &[(Place, u32)], lease: LeaseId) {
        for (place, messages) in lost {
            let claim = Claim { place: *place, lease, is_first: true };
            let Some(mut due) = self.state.offsets.held(receiver.consumer, claim) else { continue };
            // Nobody got it.
            let open = &mut due.open;
            (open.deliveries, open.first_delivered, open.last_delivered) = (0, 0, 0);
            open.holder = 0;
            let death = Death { reason: DeadReason::Undecodable, messages: *messages };
            let buried = self.bury(receiver.consumer, due, death, receiver.request.deadline).await;
            if let Err(error) = buried {
                tracing::warn!(%error, "a message that cannot be decoded is no dead letter yet");
            }
        }
    }

    /// The record of a message, if its time is not over.
    pub(super) async fn record_at(
        &self,
        topic: &TopicEntry,
        queue: QueueId,
        offset: QueueOffset,
    ) -> Result<Stored, BrokerError> {
        let read = one_at(topic, queue, offset);
        stored(self.store.read(read).await?, offset)
    }

    /// The record of an open message. One that was delivered is kept beyond its time; one that was only passed over is
    /// not.
    pub(super) async fn record_of(
        &self,
        topic: &TopicEntry,
        due: &Due,
    ) -> Result<Stored, BrokerError> {
        let (queue, offset) = (QueueId::new(due.place.0), QueueOffset::new(due.place.1));
        if !due.was_leased() {
            return self.record_at(topic, queue, offset).await;
        }
        stored(self.store.read_kept(one_at(topic, queue, offset)).await?, offset)
    }

    /// Takes fresh messages of the queues that are listed, as many as there is room for.
    async fn gather_fresh(&self, hand: &mut Hand<'_>) -> Result<(), BrokerError> {
        let half = hand.room().div_ceil(2);
        while hand.stopped.is_none() && hand.room() > 0 && hand.queues.len() < MAX_QUEUES {
            let Some(queue) = hand.receiver.ready.take() else { break };
            let at = hand.queues.len();
            let fresh = Fresh { queue, ..Fresh::default() };
            // In the hand before anything is awaited: it goes back whatever happens.
            hand.queues.push(InHand { fresh, room: 0, has_more: true });
            let cursors = self.state.offsets.cursors(hand.receiver.consumer, &[queue]);
            let Some((cursor, room)) = cursors.first().copied() else { continue };
            if let Some(in_hand) = hand.queues.get_mut(at) {
                (in_hand.fresh.from, in_hand.fresh.to, in_hand.room) = (cursor, cursor, room);
            }
            self.read_fresh(hand, at, half.min(hand.room()), 0).await?;
        }
        let mut scan = match hand.receiver.request.filter {
            Expression::Tags(TagFilter::All) => 0,
            Expression::Tags(_) | Expression::Sql(_) => SCAN,
        };
        for at in 0..hand.queues.len() {
            let Some(InHand { has_more: true, fresh: Fresh { to: from, .. }, .. }) =
                hand.queues.get(at)
            else {
                continue;
            };
            let from = *from;
            if hand.stopped.is_none() && hand.room() > 0 {
                self.read_fresh(hand, at, hand.room(), scan).await?;
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
            filter: Arc::clone(&hand.receiver.tags),
        };
        let outcome = match self.store.read(read).await {
            Ok(outcome) => outcome,
            Err(error) => {
                hand.stopped = Some(error.into());
                return Ok(());
            }
        };
        let is_damaged = matches!(outcome, ReadOutcome::Damaged { .. });
        let (records, next, max, gone) = match outcome {
            ReadOutcome::Records { records, next, range } => (records, next, range.max, 0),
            ReadOutcome::Empty { next, range } => (Vec::new(), next, range.max, 0),
            ReadOutcome::Damaged { next, range, .. } => {
                // The first of them stands for all.
                (Vec::new(), next, range.max, next.get().saturating_sub(from + 1))
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
        let mut left = room;
        if is_damaged {
            let messages = u32::try_from(next - from).unwrap_or(u32::MAX);
            hand.lose(at, (from, 0), messages);
            left -= 1;
        }
        for record in records {
            let skip = from.saturating_sub(record.first_queue_offset.get());
            let skip = u16::try_from(skip).unwrap_or(u16::MAX);
            let first = record.first_queue_offset.get();
            if left == 0 || hand.bytes >= hand.max_bytes {
                next = first + u64::from(skip);
                break;
            }
            if is_for_others(&record, hand.receiver.consumer) {
                continue;
            }
            let wanted = cut::wanted(&record, skip, left, hand.receiver.request.filter);
            let (wanted, batches) = match wanted {
                Ok(wanted) if wanted.indexes.is_empty() => (wanted, Ok(Vec::new())),
                Ok(wanted) => {
                    let batches = cut_off(record.clone(), wanted.indexes.clone()).await;
                    (wanted, batches)
                }
                Err(error) => {
                    let most = u16::try_from(left).unwrap_or(u16::MAX);
                    let next = record.message_count.min(skip.saturating_add(most));
                    let indexes = (skip..next).collect();
                    (Wanted { indexes, next, group_hash: 0 }, Err(error))
                }
            };
            let Wanted { mut indexes, next: behind, group_hash } = wanted;
            let batches = match batches {
                Ok(batches) => batches,
                Err(error) if is_lost(&error) => {
                    tracing::error!(%error, "messages cannot be decoded");
                    left -= indexes.len();
                    for index in indexes.drain(..) {
                        hand.lose(at, (first + u64::from(index), group_hash), 1);
                    }
                    Vec::new()
                }
                Err(error) => {
                    hand.stopped = Some(error);
                    next = first + u64::from(skip);
                    break;
                }
            };
            left -= batches.len();
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
        let passed = next.saturating_sub(from).saturating_sub(gone + (room - left) as u64);
        self.counters.filtered.add(passed);
        if let Some(in_hand) = hand.queues.get_mut(at) {
            in_hand.fresh.to = in_hand.fresh.to.max(next);
            in_hand.room -= room - left;
            in_hand.has_more = next < max.get();
            if !in_hand.has_more {
                let (topic, next) = (hand.receiver.consumer.topic, QueueOffset::new(next));
                self.store.tell_behind(topic.handle(), QueueId::new(queue), next);
            }
        }
        Ok(())
    }

    /// Leases what is in the hand.
    async fn give(
        &self,
        receiver: &Receiver<'_>,
        mut hand: Hand<'_>,
        repeated: &Repeated,
        permit: Permit,
    ) -> Result<Look, BrokerError> {
        let request = receiver.request;
        let mut fresh: Vec<Fresh> =
            hand.queues.iter().map(|in_hand| in_hand.fresh.clone()).collect();
        let mut has_passed = hand.buried > 0 || fresh.iter().any(|fresh| fresh.to > fresh.from);
        let is_old_empty = hand.again.is_empty() && hand.finished.is_empty();
        let is_empty = !has_passed && is_old_empty;
        let (due, (delivered, now), gave) = loop {
            // Who finds nothing is answered with that.
            if self.is_draining() && !(is_empty && repeated.due.is_empty()) {
                return Err(BrokerError::Draining);
            }
            self.admitted(receiver.consumer.group)?;
            let now = self.store.lease_time();
            let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            // Who tries again has them since his first try.
            let delivered = repeated.delivered.unwrap_or(now);
            let most = delivered.get().saturating_add(ms(MAX_INVISIBLE));
            let giving = Giving {
                again: &hand.again,
                finished: &hand.finished,
                repeated: &repeated.due,
                fresh: &fresh,
                due: now.get().saturating_add(ms(request.invisible)).min(most),
                attempt: receiver.attempt,
                client: request.client.map_or(0, clients::hash_of),
                holder: clipped(request.holder),
            };
            match self.state.offsets.give(receiver.consumer, &giving) {
                // Those that are open already take no room, and must get done to make some.
                Ok(Gave::Limit) if has_passed && !(is_old_empty && repeated.due.is_empty()) => {
                    fresh.clear();
                    has_passed = false;
                    hand.queues.iter_mut().for_each(|in_hand| in_hand.has_more = true);
                }
                Ok(gave) => break (giving.due, (delivered, now), gave),
                Err(AppendError::NotReady) => self.space(request.deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        let (lease, mut messages) = match gave {
            Gave::Done { lease, messages } => (lease, messages),
            Gave::Limit => return Err(BrokerError::OpenLimit { limit: Offsets::MAX_OPEN }),
            // Who looks again finds out what is gone.
            Gave::Deleted => return Ok(Look::Passed),
        };
        let candidates = std::mem::take(&mut hand.candidates);
        let lost = std::mem::take(&mut hand.lost);
        let (finished, left) = (hand.finished.len(), hand.left);
        let stopped = hand.stopped.take().or(hand.failed.take());
        hand.is_given = true;
        drop(hand);
        if !lost.is_empty() {
            messages.retain(|given| lost.iter().all(|(place, _)| *place != given.place));
            self.bury_fresh(receiver, &lost, lease).await;
        }
        // Others may go on where this one left something.
        if left == 0 && self.state.offsets.has_due(receiver.consumer, now.get()) {
            receiver.ready.wake();
        }
        if messages.is_empty() {
            return match stopped {
                Some(error) => Err(error),
                None if has_passed || finished > 0 => Ok(Look::Passed),
                None if left > 0 => Ok(Look::Left),
                None => Ok(Look::Nothing),
            };
        }
        let mut by_place: std::collections::HashMap<Place, Candidate, foldhash::fast::RandomState> =
            candidates.into_iter().map(|candidate| (candidate.place, candidate)).collect();
        let received = messages.iter().filter_map(|given| {
            let candidate = by_place.remove(&given.place)?;
            let of = Given { lease, due, delivered, delivery: given.delivery };
            Some(self.received(receiver.consumer, candidate, of, given.is_first))
        });
        let messages: Vec<_> = received.collect();
        let len = messages.iter().map(|message| bytes_of(&message.batch)).sum();
        self.counters.receives.add(1);
        self.counters.received_messages.add(messages.len() as u64);
        Ok(Look::Found(Received { messages, permit: Some(permit.shrunk_to(len)) }))
    }

    fn received(
        &self,
        consumer: Consumer<'_>,
        candidate: Candidate,
        given: Given,
        is_first: bool,
    ) -> ReceivedMessage {
        let Candidate { place, record, index, batch } = candidate;
        let (queue, queue_offset) = (QueueId::new(place.0), QueueOffset::new(place.1));
        let handle = Handle {
            group: consumer.group.id(),
            topic: consumer.topic.id(),
            queue,
            offset: queue_offset,
            record_epoch: record.epoch,
            record: record.offset,
            lease: given.lease,
            is_first,
            delivery: given.delivery,
            delivered: given.delivered,
            due: Timestamp::new(given.due),
        };
        ReceivedMessage {
            handle: self.signer.text(&handle),
            id: MessageId { epoch: record.epoch, offset: record.offset, index },
            queue,
            queue_offset,
            store_time: record.store_time,
            delivery: given.delivery,
            attributes: record.attributes,
            batch,
        }
    }
}

/// What all messages of an answer have in common, and one of them.
struct Given {
    lease: LeaseId,
    due: u64,
    delivered: Timestamp,
    delivery: u32,
}

impl Hand<'_> {
    /// How many messages more are wanted.
    fn room(&self) -> usize {
        if self.bytes >= self.max_bytes {
            return 0;
        }
        let taken = self.candidates.len() + self.lost.len();
        (self.receiver.request.max_messages as usize).saturating_sub(taken)
    }

    /// Takes a fresh message of a queue that cannot be decoded: it is leased like others, and given to nobody.
    fn lose(&mut self, at: usize, message: (u64, u32), messages: u32) {
        if let Some(in_hand) = self.queues.get_mut(at) {
            self.lost.push(((in_hand.fresh.queue, message.0), messages));
            in_hand.fresh.messages.push(message);
        }
    }
}

/// What is stored of a message.
#[derive(Debug)]
pub(super) enum Stored {
    /// Its record.
    Record(StoredRecord),
    /// It was there, and cannot be read any more.
    Damaged,
    /// Nothing: it is gone.
    Gone,
}

/// What to read for the record of one message.
fn one_at(topic: &TopicEntry, queue: QueueId, offset: QueueOffset) -> ReadRequest {
    ReadRequest {
        topic: Arc::clone(topic.handle()),
        queue,
        from: offset,
        max_messages: 1,
        max_bytes: 1,
        filter: Arc::new(TagFilter::All),
    }
}

/// What a read for the message at an offset found.
fn stored(outcome: ReadOutcome, offset: QueueOffset) -> Result<Stored, BrokerError> {
    match outcome {
        ReadOutcome::Records { records, .. } => {
            Ok(records.into_iter().next().map_or(Stored::Gone, Stored::Record))
        }
        ReadOutcome::OutOfRange { range } if offset < range.min => Ok(Stored::Gone),
        ReadOutcome::Damaged { .. } => Ok(Stored::Damaged),
        ReadOutcome::Empty { next, .. } if next > offset => Ok(Stored::Gone),
        // It was delivered before, so it is there, or will be again.
        ReadOutcome::Empty { .. } | ReadOutcome::OutOfRange { .. } => Err(BrokerError::Rebuilding),
        ReadOutcome::Rebuilding => Err(BrokerError::Rebuilding),
    }
}

/// Whether a record was sent back to one group alone, and that is another one.
fn is_for_others(record: &StoredRecord, consumer: Consumer<'_>) -> bool {
    if record.attributes.is_empty() {
        return false;
    }
    let one = attributes::one_group(&record.attributes).ok().flatten();
    one.is_some_and(|one| one != consumer.group.id())
}

/// A name as far as it is kept.
fn clipped(name: &str) -> &str {
    let most = (0..=MAX_HOLDER).rev().find_map(|len| name.get(..len.min(name.len())));
    most.unwrap_or_default()
}

/// Whether messages can never be had: they become dead letters, as a group must come past them.
pub(super) fn is_lost(error: &BrokerError) -> bool {
    matches!(error, BrokerError::NotDecompressed { .. } | BrokerError::DamagedRecord { .. })
}

/// The place of a message in a record, if it is in it.
pub(super) fn index_in(record: &StoredRecord, offset: QueueOffset) -> Option<u16> {
    let index = offset.get().checked_sub(record.first_queue_offset.get())?;
    u16::try_from(index).ok().filter(|index| *index < record.message_count)
}

/// Messages of a record, on a thread of their own if that takes long.
pub(super) async fn cut_off(
    record: StoredRecord,
    indexes: Vec<u16>,
) -> Result<Vec<Bytes>, BrokerError> {
    if cut::is_compressed(&record)? {
        unpacked(spawn_blocking(move || cut::cut(&record, &indexes)).await)?
    } else {
        cut::cut(&record, &indexes)
    }
}

pub(super) fn bytes_of(batch: &Bytes) -> u64 {
    u64::try_from(batch.len()).unwrap_or(u64::MAX)
}

fn check(request: &ReceiveRequest<'_>) -> Result<(), BrokerError> {
    if request.max_messages == 0 {
        return Err(BrokerError::BadRequest { fault: RequestFault::NoMessages });
    }
    within("max_messages", request.max_messages, MAX_RECEIVE)?;
    within("max_bytes", request.max_bytes, MAX_BYTES)?;
    check_duration("invisible_ms", request.invisible, MAX_INVISIBLE)?;
    check_duration("wait_ms", request.wait, MAX_WAIT)
}

/// Refuses a time that is too long.
pub(super) fn check_duration(
    what: &'static str,
    found: Duration,
    limit: Duration,
) -> Result<(), BrokerError> {
    if found <= limit {
        return Ok(());
    }
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Err(BrokerError::TooLarge { what, found: ms(found), limit: ms(limit) })
}
