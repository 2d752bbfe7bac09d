//! Receives: single messages of any queues of a topic, leased to a group for a while.
//!
//! 1. Who comes first binds the group to the topic, a position in each queue, unless a consumer of RocketMQ did so when
//!    it said what it subscribes to, or asked for its queues.
//! 2. Take into the hand: queues that may have fresh messages, and messages that are due again. Nobody else finds them
//!    meanwhile, and what was taken and not given goes back, whatever becomes of the request.
//! 3. Read, and leave out what the filter does not want, and what there is no room for to decompress. What cannot be
//!    decoded becomes a dead letter if it is the first that a queue has; else a look goes so far and no further.
//! 4. Give: one record says what is leased, what was passed over, and where the group goes on. The lock is held for
//!    that alone, and what changed since the reading is left out.
//! 5. Nothing: wait for a message, for one that is due, or for the end of the time, and look again.
//!
//! Due messages come first in every other look, fresh ones in the others, so neither can keep the other waiting; and of
//! the due ones those that are for this filter come first in every other of those. Of one queue half of what is wanted
//! is taken at first, so that one that has much leaves room to the others.
//!
//! Where nothing else is there than what finds no room, a receive waits for that room with nothing in its hand.
//!
//! A lease is in the log before it is answered, and needs not be durable: if a power cut takes it, the message is
//! delivered again earlier.
//!
//! | file | holds |
//! | --- | --- |
//! | this one | a receive from its request to its answer, and its waiting |
//! | `begin.rs` | a group's first positions in a topic, and where it looks first |
//! | `hand.rs` | steps 2 and 3: what one look takes, reads and leaves |
//! | `lost.rs` | of step 3: fresh messages that cannot be decoded |
//! | `give.rs` | step 4: what of it is leased, and the messages of the answer |

mod begin;
mod give;
mod hand;
mod lost;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use xxhash_rust::xxh3::xxh3_64;

use self::hand::Hand;
use super::budget::{Permit, Room};
use super::dead_letter::dead_letter;
use super::error::{BrokerError, RequestFault};
use super::state::groups::GroupEntry;
use super::state::leases::{
    Claim, Due, FilterId, MAX_OPEN_IN_QUEUE, Mismatch, Place, Ready, Repeated, Wish, id_of,
};
use super::state::offsets::leased::{Change, Consumer};
use super::state::topics::TopicEntry;
use super::topics::within;
use super::{Broker, before};
use crate::filter::Expression;
use crate::format::batch::{Batch, BatchError, MetaView, TagFilter};
use crate::format::state_record::OpenState;
use crate::message::{MessageId, OtherFilters, QueueId, QueueOffset, Timestamp};
use crate::sync::lock;

/// The most messages of one receive.
pub const MAX_RECEIVE: u32 = 1_024;

/// The most bytes of messages of one receive, if there is more than one.
const MAX_BYTES: u32 = 8 << 20;

/// The longest lease: 12 hours.
pub const MAX_INVISIBLE: Duration = Duration::from_secs(12 * 60 * 60);

/// The longest wait for a message.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// How long somebody rests who found only messages that are not for him now, before he looks at them again.
const REST: Duration = Duration::from_secs(1);

/// After a start leases that are over since before it are offered for so long at a limited rate: their consumers come
/// back all at once, and some of them to finish what they had.
const GRACE_MS: u64 = 10_000;

/// Looks of one receive at messages that are all passed over, before it answers with nothing or waits.
const MAX_LOOKS: u32 = 64;

/// A receive that finds nothing listed looks at all queues once if there are no more than so many: what was
/// acknowledged before it came may not have been listed yet, for as long as the store's threads need to say so.
const FEW_QUEUES: u32 = 1_024;

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
    /// There are none, and this keeps a queue from being read, as he has tried.
    held_up: Option<BrokerError>,
    /// There are none, and there may be some in a queue that is held up.
    pub(super) is_held_up: bool,
}

impl Received {
    /// The same for who wants to know why there are none.
    ///
    /// # Errors
    /// What keeps a queue from being read.
    pub(super) fn or_why(self) -> Result<Self, BrokerError> {
        match self.held_up {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
}

/// A receive that goes on.
pub(super) struct Receiver<'a> {
    pub(super) consumer: Consumer<'a>,
    ready: Arc<Ready>,
    request: &'a ReceiveRequest<'a>,
    filter: FilterId,
    tags: Arc<TagFilter>,
    /// Filters of other members; what they want and this one does not is kept for them.
    others: Vec<Arc<Expression>>,
    /// Hash of the attempt.
    attempt: Option<u64>,
    /// Fresh messages of a queue are taken while it has fewer than so many that are open.
    max_open: usize,
}

impl Receiver<'_> {
    fn wish(&self) -> Wish {
        Wish { filter: self.filter, tags: self.tags.mask() }
    }

    /// The filter of the members for whom messages are kept, 0 if there are several.
    fn kept_for(&self) -> FilterId {
        match self.others.as_slice() {
            [other] => id_of(other),
            [] | [_, ..] => 0,
        }
    }
}

/// Somebody who was woken for a message. If he goes away before he has looked, the next one is woken in his place.
struct Woken<'a> {
    broker: &'a Broker,
    ready: Arc<Ready>,
    group: Arc<GroupEntry>,
    topic: Arc<TopicEntry>,
    filter: FilterId,
    /// He was the one who looks again each second at what was left.
    rested: bool,
    has_looked: bool,
}

impl Drop for Woken<'_> {
    fn drop(&mut self) {
        if self.has_looked {
            return;
        }
        let Broker { store, state, .. } = self.broker;
        let consumer = Consumer { store, group: &self.group, topic: &self.topic };
        let now = store.lease_time().get();
        let has_due = || state.offsets.has_due_for(consumer, self.filter, now);
        if self.rested || self.ready.has_listed() || self.ready.has_held_up() || has_due() {
            self.ready.wake_instead(self.filter);
        }
    }
}

/// Who receives.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    /// A member of the group, whose filter is compared with those of the others.
    Member,
    /// The broker itself, while fewer than so many messages of a queue are open.
    Broker { max_open: usize },
}

/// What a look came to.
enum Look {
    Found(Received),
    /// Something was passed over; there may be more.
    Passed,
    /// Something is due, and not for this one now: for members with another filter, or for whoever asks when more of it
    /// may be offered.
    Left,
    /// Nothing but queues that nobody gets on in, for this reason.
    HeldUp(BrokerError),
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
        self.receive_as(request, By::Member).await?.or_why()
    }

    /// The same for somebody, to whom it is no fault that a queue cannot be read.
    pub(super) async fn receive_as(
        &self,
        request: ReceiveRequest<'_>,
        by: By,
    ) -> Result<Received, BrokerError> {
        let max_open = match by {
            By::Member => MAX_OPEN_IN_QUEUE,
            By::Broker { max_open } => max_open,
        };
        check(&request)?;
        let until = before(request.deadline).min(Instant::now() + request.wait);
        let tags = match request.filter {
            Expression::Tags(tags) => Arc::new(tags.clone()),
            Expression::Sql(_) => Arc::new(TagFilter::All),
        };
        let filter = id_of(request.filter);
        let (mut has_caught_up, mut in_front, mut looks, mut is_counted) = (false, false, 0, false);
        let (mut is_other, mut rested, mut held_up) = (false, false, None);
        let mut woken: Option<Woken<'_>> = None;
        loop {
            let group = self.group(request.group, request.deadline).await?;
            let topic = self.topic(request.topic, request.deadline).await?;
            let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
            self.admits(&group, request.deadline).await?;
            self.check_readable(&topic)?;
            let ready = self.begun(consumer, request.deadline).await?;
            let others = match by {
                By::Member => {
                    self.check_subscription(consumer, &ready, request.filter, &mut is_other)?
                }
                By::Broker { .. } => Vec::new(),
            };
            let attempt =
                (!request.attempt.is_empty()).then(|| xxh3_64(request.attempt.as_bytes()));
            let tags = Arc::clone(&tags);
            let request = &request;
            let receiver =
                Receiver { consumer, ready, request, filter, tags, others, attempt, max_open };
            if !std::mem::replace(&mut is_counted, true) && self.is_rationed() {
                receiver.ready.has_room_for(request.max_messages);
            }
            let look = self.look_once(&receiver).await;
            if let (Some(woken), Ok(look)) = (&mut woken, &look) {
                // There may be more behind what was passed over.
                woken.has_looked = !matches!(look, Look::Passed);
            }
            let mut has_left = false;
            match look {
                Ok(Look::Found(received)) => {
                    // There may be more of what was left: somebody else looks at it from now on.
                    if rested {
                        receiver.ready.wake_unless_one_rests();
                    }
                    return Ok(received);
                }
                Ok(Look::Passed) if looks < MAX_LOOKS && Instant::now() < request.deadline => {
                    looks += 1;
                    // It may have been much; others have their turn.
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Look::Left) => has_left = true,
                Ok(Look::HeldUp(error)) => (held_up, has_left) = (Some(error), true),
                Ok(Look::Passed | Look::Nothing) => {}
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
                    self.list(consumer, &receiver.ready, 0..queues, max_open).await;
                }
                continue;
            }
            let waited = self.wait_for_messages(&receiver, until, in_front, &mut has_left).await;
            if !matches!(waited, Ok(true)) && has_left {
                receiver.ready.wake_unless_one_rests();
            }
            if !waited? {
                self.still_there(&topic, request.deadline).await?;
                // Somebody may have got past it meanwhile.
                let is_held_up = receiver.ready.has_held_up();
                let held_up = held_up.filter(|_| is_held_up);
                return Ok(Received { held_up, is_held_up, ..Received::default() });
            }
            let ready = receiver.ready;
            (in_front, rested) = (true, has_left);
            let (broker, has_looked) = (self, false);
            woken = Some(Woken { broker, ready, group, topic, filter, rested, has_looked });
        }
    }

    /// Notes which filter is used. Returns the other ones for whose members messages are kept. A receive that uses
    /// another one is counted once, however often it looks: `is_other` says that this one was.
    ///
    /// # Errors
    /// The members of the group use another one, and this one is refused.
    fn check_subscription(
        &self,
        consumer: Consumer<'_>,
        ready: &Ready,
        filter: &Expression,
        is_other: &mut bool,
    ) -> Result<Vec<Arc<Expression>>, BrokerError> {
        let rule = consumer.group.settings().other_filters;
        let mut subscriptions = lock(&ready.subscriptions);
        let mismatch = subscriptions.note(filter, rule);
        let others = match rule {
            OtherFilters::Roll => subscriptions.others(filter),
            OtherFilters::Warn | OtherFilters::Refuse => Vec::new(),
        };
        let Some(Mismatch { expected, is_new, is_refused }) = mismatch else { return Ok(others) };
        if !std::mem::replace(is_other, true) {
            subscriptions.count_mismatch();
            self.counters.filter_mismatches.add(1);
        }
        drop(subscriptions);
        let (expected, group, topic) = (expected.to_string(), consumer.group, consumer.topic);
        if is_refused {
            return Err(BrokerError::FilterMismatch { expected: expected.into() });
        }
        if is_new {
            let (group, topic) = (group.name(), topic.name());
            tracing::warn!(group, topic, expected, found = %filter, "members of a group use different filters");
        }
        Ok(others)
    }

    /// Waits until there may be a message; `false`: the time is over, or the broker stops. Who left something does not
    /// look at that again for a second, and then only one of the group; so does who waits behind a queue that is held
    /// up, which is noted in `has_left`.
    async fn wait_for_messages(
        &self,
        receiver: &Receiver<'_>,
        until: Instant,
        in_front: bool,
        has_left: &mut bool,
    ) -> Result<bool, BrokerError> {
        let mut draining = self.draining.subscribe();
        if *draining.borrow_and_update() || until <= Instant::now() {
            return Ok(false);
        }
        let Ok(_place) = self.waiters.try_acquire() else {
            return Err(BrokerError::Overloaded { what: "parked receives" });
        };
        let ready = &receiver.ready;
        let Some(mut parked) = ready.park(in_front, receiver.wish()) else {
            return Err(BrokerError::Overloaded { what: "parked receives of a group" });
        };
        // Parked first, then the look: what comes in between is not missed.
        let _hurry = self.store.hurry();
        let now = self.store.lease_time().get();
        let offsets = &self.state.offsets;
        if offsets.has_due_for(receiver.consumer, receiver.filter, now) || ready.has_listed() {
            return Ok(true);
        }
        // Parked before this too: who ends his rest, or holds a queue up, wakes somebody else.
        *has_left |= ready.has_held_up();
        let mut resting = if *has_left { ready.rest() } else { None };
        self.counters.parked.add(1);
        let end = match &resting {
            Some(_) => until.min(Instant::now() + REST),
            None => until,
        };
        let woken = timeout_at(end, async {
            tokio::select! {
                () = parked.woken() => true,
                _ = draining.changed() => false,
                () = self.refuses(Some(receiver.consumer.group)) => true,
            }
        });
        let woken = woken.await;
        let has_rested = woken.is_err() && end < until;
        let looks = woken.unwrap_or(has_rested);
        if let Some(resting) = resting.take_if(|_| looks) {
            resting.looks_himself();
            if has_rested {
                ready.try_held_up();
            }
        }
        Ok(looks)
    }

    /// Whether leases from before the start are offered at a limited rate now.
    fn is_rationed(&self) -> bool {
        self.store.lease_time().get() < self.opened.get().saturating_add(GRACE_MS)
    }

    /// Looks for messages once, and leases what it finds.
    async fn look_once(&self, receiver: &Receiver<'_>) -> Result<Look, BrokerError> {
        let request = receiver.request;
        let max_bytes = u64::from(request.max_bytes.min(self.part_bytes()));
        // The last message may go beyond what was asked for, and what is compressed takes more: then so must the
        // permit.
        let mut answer_len = max_bytes;
        loop {
            let permit = self.replies.take(answer_len, before(request.deadline)).await;
            let permit = permit.ok_or(BrokerError::Overloaded { what: "bytes to answer with" })?;
            let offsets = &self.state.offsets;
            let memory = Room::new(&self.replies, Some(permit));
            let mut hand = Hand::new(offsets, receiver, (memory, max_bytes));
            if let Some(attempt) = receiver.attempt {
                let now = self.store.lease_time().get();
                let mut repeated = offsets.of_attempt(receiver.consumer, attempt, now);
                if !repeated.due.is_empty() {
                    let mut rest = repeated.due.clone();
                    self.load_again(&mut hand, &rest).await?;
                    if let Some(lacks) = hand.lacks() {
                        answer_len = lacks;
                        continue;
                    }
                    repeated.due = std::mem::take(&mut hand.again);
                    if receiver.consumer.group.settings().ordered {
                        only_in_order(&mut repeated.due, &hand.finished, &rest);
                    }
                    let gone: HashSet<Place> =
                        repeated.due.iter().chain(&hand.finished).map(|due| due.place).collect();
                    rest.retain(|due| !gone.contains(&due.place));
                    let look = self.give(receiver, hand, &repeated).await?;
                    self.give_rest_back(receiver, &rest);
                    return Ok(look);
                }
            }
            let turn = receiver.ready.turn();
            let own_first = !turn.is_multiple_of(4);
            if turn.is_multiple_of(2) {
                self.gather_due(&mut hand, own_first).await?;
                self.gather_fresh(&mut hand).await?;
            } else {
                self.gather_fresh(&mut hand).await?;
                self.gather_due(&mut hand, own_first).await?;
            }
            if let Some(lacks) = hand.lacks() {
                // Looked at again with a permit that is large enough: nobody holds messages, or a small permit, while
                // waiting for more.
                answer_len = lacks;
                continue;
            }
            return self.give(receiver, hand, &Repeated::default()).await;
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
}

/// Leaves out what comes behind a message of its message group that is neither given again nor finished.
fn only_in_order(again: &mut Vec<Due>, finished: &[Due], all: &[Due]) {
    let done: HashSet<Place> = again.iter().chain(finished).map(|due| due.place).collect();
    let mut missing = HashMap::new();
    for due in all.iter().filter(|due| !done.contains(&due.place)) {
        let first = missing.entry(due.lock()).or_insert(due.place);
        *first = due.place.min(*first);
    }
    again.retain(|due| missing.get(&due.lock()).is_none_or(|first| due.place < *first));
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
