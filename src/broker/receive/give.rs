//! What of a look is leased, and the messages of its answer.

use std::time::Duration;

use super::hand::{Candidate, Hand};
use super::{Look, MAX_INVISIBLE, Received, ReceivedMessage, Receiver};
use crate::broker::cut::bytes_of;
use crate::broker::error::BrokerError;
use crate::broker::handle::Handle;
use crate::broker::state::leases::{Place, Repeated};
use crate::broker::state::offsets::Offsets;
use crate::broker::state::offsets::leased::{Consumer, Fresh, Gave, Giving};
use crate::broker::{Broker, clients};
use crate::message::{LeaseId, MessageId, QueueId, QueueOffset, Timestamp};
use crate::store::AppendError;

/// Bytes of the name of who gets messages that are kept.
const MAX_HOLDER: usize = 128;

impl Broker {
    /// Leases what is in the hand.
    pub(super) async fn give(
        &self,
        receiver: &Receiver<'_>,
        mut hand: Hand<'_>,
        repeated: &Repeated,
    ) -> Result<Look, BrokerError> {
        let request = receiver.request;
        let mut fresh: Vec<Fresh> =
            hand.queues.iter().map(|in_hand| in_hand.fresh.clone()).collect();
        let mut has_passed = hand.buried > 0 || fresh.iter().any(|fresh| fresh.to > fresh.from);
        let is_old_empty = hand.again.is_empty() && hand.finished.is_empty();
        let is_empty = !has_passed && is_old_empty;
        let kept_for = receiver.kept_for();
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
                filters: (receiver.filter, kept_for),
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
        let (lease, messages) = match gave {
            Gave::Done { lease, messages } => (lease, messages),
            Gave::Limit => return Err(BrokerError::OpenLimit { limit: Offsets::MAX_OPEN }),
            // Who looks again finds out what is gone.
            Gave::Deleted => return Ok(Look::Passed),
        };
        let candidates = std::mem::take(&mut hand.candidates);
        let has_left = hand.left > 0;
        let has_passed = has_passed || !hand.finished.is_empty() || hand.is_cut;
        let left_for = hand.left_for();
        let has_kept = fresh.iter().any(|fresh| !fresh.kept.is_empty());
        let stopped = hand.stopped.take().or(hand.failed.take());
        let permit = hand.memory.permit.take();
        let held_up = hand.held_up.take().filter(|_| hand.queues.iter().any(|of| of.is_held_up));
        hand.is_given = true;
        self.counters.filter_faults.add(hand.cost.faults);
        drop(hand);
        let is_left_to_any = left_for.contains(&0);
        // Once it is back: who has that filter and does not wait yet looks for it before he does.
        let left_for = left_for.into_iter().chain(has_kept.then_some(kept_for));
        left_for.filter(|of| *of != 0).for_each(|of| receiver.ready.wake_for(of));
        // Others may go on where this one stopped.
        let (offsets, filter) = (&self.state.offsets, receiver.filter);
        if offsets.has_due_for(receiver.consumer, filter, now.get()) {
            receiver.ready.wake_instead(filter);
        }
        let mut by_place: std::collections::HashMap<Place, Candidate, foldhash::fast::RandomState> =
            candidates.into_iter().map(|candidate| (candidate.place, candidate)).collect();
        let received = messages.iter().filter_map(|given| {
            let candidate = by_place.remove(&given.place)?;
            let of = Given { lease, due, delivered, delivery: given.delivery };
            Some(self.received(receiver.consumer, candidate, of, given.is_first))
        });
        let messages: Vec<_> = received.collect();
        if messages.is_empty() {
            return match (stopped, held_up) {
                (Some(error), _) => Err(error),
                _ if has_passed => Ok(Look::Passed),
                (None, Some(error)) => Ok(Look::HeldUp(error)),
                _ if has_left => Ok(Look::Left),
                _ => Ok(Look::Nothing),
            };
        }
        // Nobody is told when that may be had: somebody else looks at it from now on.
        if is_left_to_any {
            receiver.ready.wake();
        }
        let len = messages.iter().map(|message| bytes_of(&message.batch)).sum();
        self.counters.receives.add(1);
        self.counters.received_messages.add(messages.len() as u64);
        let permit = permit.map(|all| all.shrunk_to(len));
        Ok(Look::Found(Received { messages, permit, ..Received::default() }))
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

/// A name as far as it is kept.
fn clipped(name: &str) -> &str {
    let most = (0..=MAX_HOLDER).rev().find_map(|len| name.get(..len.min(name.len())));
    most.unwrap_or_default()
}
