//! What consumers do with their leases: finish messages, keep them on, give them back.
//!
//! | a receipt | is |
//! | --- | --- |
//! | not signed by this store, of another group or topic, of another incarnation of either | bad |
//! | of a record that is not there any more: a power cut took it, and another one may have its place | bad |
//! | of a lease | worth what `state/leases/standing.rs` says |
//!
//! A group that is disabled gets no messages; what it has it may finish. An answer waits for the flush mode of the
//! topic.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Broker;
use super::error::BrokerError;
use super::handle::Handle;
use super::receive::{MAX_INVISIBLE, MAX_RECEIVE, check_duration};
use super::state::leases::Claim;
use super::state::offsets::leased::{Change, Consumer, Settled};
use super::state::topics::TopicEntry;
use super::topics::within;
use crate::format::state_record::OpenState;
use crate::message::{GroupSettings, MessageId, PhysicalOffset, QueueId, Timestamp};
use crate::store::{AppendError, ReadError};

/// The most receipts in one request.
const MAX_RECEIPTS: u32 = MAX_RECEIVE;

/// By so much what is asked for may go beyond the longest lease, and is cut to it: who asks for all of it right after
/// the delivery cannot know how long his request is on its way.
const WAY: Duration = Duration::from_secs(10);

/// The queue of a record and the offsets of its messages.
type Places = (QueueId, Range<u64>);

/// What is to become of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It lasts so long from now on, up to 12 hours after the delivery.
    For(Duration),
    /// The message is delivered again after the group's pause for its next delivery.
    Retry,
    /// The message is delivered again after so long.
    RetryAfter(Duration),
    /// The message is delivered again after so long, and this delivery does not count: its consumer was not ready.
    Suspend(Duration),
    /// The message is delivered again at once, and this delivery does not count: nobody got it.
    Undo,
}

/// A lease that is to become another.
#[derive(Clone, Copy, Debug)]
pub struct ExtendEntry<'a> {
    /// The receipt.
    pub handle: &'a str,
    /// What is to become of it.
    pub hold: Hold,
}

/// Why a lease did not become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtendFault {
    /// The receipt is worth nothing.
    #[error("the receipt handle is not valid")]
    BadReceipt,
    /// It would last for longer than 12 hours after the delivery, and by more than the way of a request.
    #[error("a message is leased for 12 hours at most")]
    TooLong,
}

/// What became of leases, in the log, and may not be said yet.
#[derive(Debug)]
pub(super) struct Unsaid<T> {
    said: T,
    topic: Arc<TopicEntry>,
    /// It may be said once the log is durable up to here, by the topic's flush mode.
    end: PhysicalOffset,
}

impl<T> Unsaid<T> {
    /// Both: the later end is that of both.
    pub(super) fn and<U>(self, other: Unsaid<U>) -> Unsaid<(T, U)> {
        let Self { said, topic, end } = self;
        Unsaid { said: (said, other.said), topic, end: end.max(other.end) }
    }
}

/// A receipt of each entry of a request for longer leases, or why there is none.
pub(super) type Extended = Vec<Result<String, ExtendFault>>;

impl Broker {
    /// Finishes messages of a topic for a group: it does not get them any more. Of each receipt, in their order,
    /// whether its message is finished by it; the same receipt again is fine.
    ///
    /// # Errors
    /// Nothing is finished, unless [`BrokerError::stored`] says otherwise; then the same can be repeated.
    pub async fn ack(
        &self,
        group: &str,
        topic: &str,
        handles: &[&str],
        deadline: Instant,
    ) -> Result<Vec<bool>, BrokerError> {
        let unsaid = self.ack_only(group, topic, handles, deadline).await?;
        self.said(unsaid, deadline).await
    }

    /// The first half of [`Broker::ack`]: it is in the log, and nothing may be told of it yet.
    pub(super) async fn ack_only(
        &self,
        group: &str,
        topic: &str,
        handles: &[&str],
        deadline: Instant,
    ) -> Result<Unsaid<Vec<bool>>, BrokerError> {
        within("receipts", u32::try_from(handles.len()).unwrap_or(u32::MAX), MAX_RECEIPTS)?;
        let group = self.group(group, deadline).await?;
        let topic = self.topic(topic, deadline).await?;
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let claims = self.claims(consumer, handles.iter().copied()).await?;
        let worth: Vec<Claim> = claims.iter().flatten().map(Handle::claim).collect();
        let settled =
            self.settled_only(consumer, deadline, || self.state.offsets.finish(consumer, &worth));
        let settled = settled.await?;
        let finished = settled.results.iter().flatten().count();
        self.counters.acks.add(u64::try_from(finished).unwrap_or_default());
        let mut results = settled.results.into_iter();
        let result = |claim: &Option<Handle>| claim.is_some() && results.next().flatten().is_some();
        let said = claims.iter().map(result).collect();
        Ok(Unsaid { said, end: settled.end, topic })
    }

    /// Makes other leases of those of a group: longer ones, or such that end. Of each entry, in their order, the new
    /// receipt; the old one is worth nothing any more.
    ///
    /// # Errors
    /// Nothing is changed, unless [`BrokerError::stored`] says otherwise.
    pub async fn extend(
        &self,
        group: &str,
        topic: &str,
        entries: &[ExtendEntry<'_>],
        deadline: Instant,
    ) -> Result<Vec<Result<String, ExtendFault>>, BrokerError> {
        let unsaid = self.extend_only(group, topic, entries, deadline).await?;
        self.said(unsaid, deadline).await
    }

    /// The first half of [`Broker::extend`].
    pub(super) async fn extend_only(
        &self,
        group: &str,
        topic: &str,
        entries: &[ExtendEntry<'_>],
        deadline: Instant,
    ) -> Result<Unsaid<Extended>, BrokerError> {
        within("receipts", u32::try_from(entries.len()).unwrap_or(u32::MAX), MAX_RECEIPTS)?;
        for entry in entries {
            if let Hold::For(time) | Hold::RetryAfter(time) | Hold::Suspend(time) = entry.hold {
                check_duration("invisible_ms", time, MAX_INVISIBLE)?;
            }
        }
        let group = self.group(group, deadline).await?;
        let topic = self.topic(topic, deadline).await?;
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let claims = self.claims(consumer, entries.iter().map(|entry| entry.handle)).await?;
        let (now, settings) = (self.store.lease_time(), group.settings());
        let planned: Vec<Result<(Handle, Change), ExtendFault>> = claims
            .into_iter()
            .zip(entries)
            .map(|(handle, entry)| {
                let handle = handle.ok_or(ExtendFault::BadReceipt)?;
                change_of(&handle, entry.hold, now, &settings).map(|change| (handle, change))
            })
            .collect();
        let changes: Vec<Change> = planned.iter().flatten().map(|(_, change)| *change).collect();
        let settled =
            self.settled_only(consumer, deadline, || self.state.offsets.change(consumer, &changes));
        let settled = settled.await?;
        let mut results = settled.results.into_iter();
        let text = |planned: Result<(Handle, Change), ExtendFault>| {
            let (handle, change) = planned?;
            let lease = results.next().flatten().ok_or(ExtendFault::BadReceipt)?;
            let due = Timestamp::new(change.due);
            Ok(self.signer.text(&Handle { lease, due, is_first: false, ..handle }))
        };
        let said = planned.into_iter().map(text).collect();
        Ok(Unsaid { said, end: settled.end, topic })
    }

    /// The second half of both: waits until it may be said.
    ///
    /// # Errors
    /// It is in the log, and not durable in time, or nobody knows; or the topic is gone.
    pub(super) async fn said<T>(
        &self,
        unsaid: Unsaid<T>,
        deadline: Instant,
    ) -> Result<T, BrokerError> {
        self.acknowledged(&unsaid.topic, unsaid.end, deadline).await?;
        self.still_there(&unsaid.topic, deadline).await?;
        Ok(unsaid.said)
    }

    /// Settles, and waits until that may be said.
    pub(super) async fn settled_claims(
        &self,
        consumer: Consumer<'_>,
        deadline: Instant,
        settle: impl Fn() -> Result<Settled, AppendError>,
    ) -> Result<Settled, BrokerError> {
        let settled = self.settled_only(consumer, deadline, settle).await?;
        self.acknowledged(consumer.topic, settled.end, deadline).await?;
        self.still_there(consumer.topic, deadline).await?;
        Ok(settled)
    }

    /// Settles, again after each wait for room. Who waits for messages that can be delivered now is woken.
    async fn settled_only(
        &self,
        consumer: Consumer<'_>,
        deadline: Instant,
        settle: impl Fn() -> Result<Settled, AppendError>,
    ) -> Result<Settled, BrokerError> {
        let settled = loop {
            match settle() {
                Ok(settled) => break settled,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        self.wake_for(consumer, &settled);
        Ok(settled)
    }

    /// Gives back messages that were leased just now and that nobody got: they are delivered again at once, and this
    /// delivery does not count. Blocks for one append at most. Where that cannot be, they come again when their leases
    /// are over.
    pub fn give_back(&self, group: &str, topic: &str, handles: &[String]) {
        let (Some(group), Some(topic)) =
            (self.state.groups.get(group), self.state.topics.get(topic))
        else {
            return;
        };
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let (now, settings) = (self.store.lease_time(), group.settings());
        let handles = handles.iter().filter_map(|text| self.signer.handle(text));
        let handles = handles.filter(|handle| (handle.group, handle.topic) == consumer.key());
        let changes = handles.filter_map(|of| change_of(&of, Hold::Undo, now, &settings).ok());
        match self.state.offsets.change(consumer, &changes.collect::<Vec<_>>()) {
            Ok(settled) => self.wake_for(consumer, &settled),
            Err(error) => {
                let (group, topic) = (group.name(), topic.name());
                tracing::debug!(%error, group, topic, "messages that nobody got are not given back");
            }
        }
    }

    /// Wakes who waits for what can be delivered now.
    fn wake_for(&self, consumer: Consumer<'_>, settled: &Settled) {
        if settled.has_due
            && let Some(ready) = self.state.offsets.ready.get(consumer.key())
        {
            ready.wake();
        }
    }

    /// What receipts say, of this group and this topic; `None` for those that are bad.
    pub(super) async fn claims(
        &self,
        consumer: Consumer<'_>,
        handles: impl Iterator<Item = &str>,
    ) -> Result<Vec<Option<Handle>>, BrokerError> {
        let (mut claims, mut read) = (Vec::new(), HashMap::default());
        for text in handles {
            let handle = self.signer.handle(text).filter(|handle| {
                (handle.group, handle.topic) == consumer.key()
                    && handle.queue.get() < consumer.topic.handle().queues()
            });
            claims.push(match handle {
                Some(handle) if self.is_its_record(consumer.topic, &handle, &mut read).await? => {
                    Some(handle)
                }
                _ => None,
            });
        }
        Ok(claims)
    }

    /// Whether the record of a handle still has the message's place. `read` keeps the places of records of the topic
    /// that were read for it: handles of one record read it once.
    async fn is_its_record(
        &self,
        topic: &TopicEntry,
        handle: &Handle,
        read: &mut HashMap<MessageId, Option<Places>, foldhash::fast::RandomState>,
    ) -> Result<bool, BrokerError> {
        // Nothing that this process has read goes away under it but by age.
        if handle.lease.epoch >= self.store.epoch() {
            return Ok(true);
        }
        let id = MessageId { epoch: handle.record_epoch, offset: handle.record, index: 0 };
        let places = match read.get(&id) {
            Some(places) => places.clone(),
            None => {
                let record = match self.store.by_id_kept(id).await {
                    // It is gone for good.
                    Err(ReadError::Damaged { .. }) => None,
                    record => record?,
                };
                let places = record.filter(|record| record.topic == topic.id()).map(|record| {
                    let first = record.first_queue_offset.get();
                    (record.queue, first..first.saturating_add(u64::from(record.message_count)))
                });
                read.insert(id, places.clone());
                places
            }
        };
        let (queue, offset) = (handle.queue, handle.offset.get());
        Ok(places.is_some_and(|(of, offsets)| of == queue && offsets.contains(&offset)))
    }
}

/// Messages that are given back with one record.
const GIVEN_BACK: usize = 1_024;

/// Messages that were leased and do not get to anybody: given back when this is dropped, whatever becomes of the
/// request.
pub(super) struct GiveBack<'a> {
    broker: &'a Broker,
    group: &'a str,
    topic: &'a str,
    /// Their receipts.
    pub(super) left: Vec<String>,
}

impl<'a> GiveBack<'a> {
    /// Of nothing yet.
    pub(super) fn new(broker: &'a Broker, group: &'a str, topic: &'a str) -> Self {
        Self { broker, group, topic, left: Vec::new() }
    }
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        for some in self.left.chunks(GIVEN_BACK) {
            self.broker.give_back(self.group, self.topic, some);
        }
    }
}

impl Handle {
    /// What it claims.
    pub(super) fn claim(&self) -> Claim {
        let place = (self.queue.get(), self.offset.get());
        Claim { place, lease: self.lease, is_first: self.is_first }
    }
}

/// What a lease is to become.
fn change_of(
    handle: &Handle,
    hold: Hold,
    now: Timestamp,
    settings: &GroupSettings,
) -> Result<Change, ExtendFault> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (after, state, same_delivery) = match hold {
        Hold::For(time) => (ms(time), OpenState::Leased, false),
        Hold::Retry => {
            let pause = retry_delay(settings, handle.delivery);
            (pause + jitter(settings, pause, handle), OpenState::Waiting, false)
        }
        Hold::RetryAfter(time) => (ms(time), OpenState::Waiting, false),
        Hold::Suspend(time) => (ms(time), OpenState::Waiting, true),
        Hold::Undo => (0, OpenState::Waiting, true),
    };
    let mut due = now.get().saturating_add(after);
    if matches!(hold, Hold::For(_)) {
        let most = handle.delivered.get().saturating_add(ms(MAX_INVISIBLE));
        if due > most.saturating_add(ms(WAY)) || now.get() > most {
            return Err(ExtendFault::TooLong);
        }
        due = due.min(most);
    }
    // The last delivery failed: there is nothing to wait for.
    let is_last = settings.max_attempts.is_some_and(|most| handle.delivery >= most);
    let is_over = is_last && state == OpenState::Waiting && !same_delivery;
    let due = if is_over { now.get() } else { due };
    Ok(Change { claim: handle.claim(), due, state, same_delivery })
}

/// The pause after a delivery, by its number.
pub(super) fn retry_delay(settings: &GroupSettings, delivery: u32) -> u64 {
    let at = usize::try_from(delivery.saturating_sub(1)).unwrap_or(usize::MAX);
    let delays = &settings.retry_delays_ms;
    delays.get(at).or(delays.last()).copied().unwrap_or(0)
}

/// By how much a pause is longer: for each lease by another part of what the group allows, and for one by the same
/// whenever it is asked for.
fn jitter(settings: &GroupSettings, pause: u64, handle: &Handle) -> u64 {
    let most = pause.saturating_mul(settings.retry_jitter.into()) / 100;
    let words = [u64::from(handle.queue.get()), handle.offset.get(), handle.lease.number];
    let hash = xxh3_64(words.map(u64::to_le_bytes).as_flattened());
    hash % most.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Epoch, GroupId, LeaseId, QueueOffset, TopicId};

    #[test]
    fn a_lease_ends_12_hours_after_its_delivery_and_who_asks_for_all_of_them_is_not_refused() {
        const DELIVERED: u64 = 1_000_000;
        const HOURS: u64 = 12 * 60 * 60 * 1_000;
        let handle = Handle {
            group: GroupId::new(1),
            topic: TopicId::new(1),
            queue: QueueId::ZERO,
            offset: QueueOffset::ZERO,
            record_epoch: Epoch::new(1),
            record: PhysicalOffset::ZERO,
            lease: LeaseId { epoch: Epoch::new(1), number: 1 },
            is_first: true,
            delivery: 1,
            delivered: Timestamp::new(DELIVERED),
            due: Timestamp::new(DELIVERED),
        };
        let due = |since: u64, ms: u64| {
            let now = Timestamp::new(DELIVERED + since);
            let hold = Hold::For(Duration::from_millis(ms));
            let change = change_of(&handle, hold, now, &GroupSettings::default());
            change.map(|change| change.due - DELIVERED)
        };
        assert_eq!(due(0, HOURS), Ok(HOURS));
        assert_eq!(due(5, HOURS), Ok(HOURS), "the request was on its way");
        assert_eq!(due(10_000, HOURS), Ok(HOURS));
        assert_eq!(due(10_001, HOURS), Err(ExtendFault::TooLong));
        assert_eq!(due(10_001, HOURS - 10_001), Ok(HOURS));
        assert_eq!(due(HOURS - 1, 1), Ok(HOURS));
        assert_eq!(due(HOURS, 0), Ok(HOURS));
        assert_eq!(due(HOURS + 1, 0), Err(ExtendFault::TooLong), "it is over");
    }

    #[test]
    fn the_first_failure_waits_for_the_first_delay_and_the_last_one_goes_on() {
        let settings = GroupSettings { retry_delays_ms: vec![1, 5, 9], ..GroupSettings::default() };
        let delays = [0, 1, 2, 3, 4, u32::MAX].map(|delivery| retry_delay(&settings, delivery));
        assert_eq!(delays, [1, 1, 5, 9, 9, 9]);
    }
}
