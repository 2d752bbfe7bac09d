//! Dead letters: what was delivered as often as its group allows, or is given up by its consumer, goes into the topic
//! `%DLQ%` and the group's name.
//!
//! One append set holds the copy and the end of the lease: both are there or none. The copy is the message as it was
//! sent, with where it comes from and why in its record's attributes. If it cannot be stored, the message stays where
//! it is and is tried again after the group's last pause: nothing is dropped.
//!
//! What no consumer can be given becomes one too, when the group comes to it:
//!
//! | of the message can be read | its dead letter |
//! | --- | --- |
//! | all but the body, which cannot be decompressed | says what its sender said of it, and has an empty body |
//! | nothing: its record is damaged | says where it was, and nothing else |
//! | nothing, nor of those behind it | is one for the run of them, and says how many they are |
//!
//! Of such fresh messages nothing is leased. One append set holds their dead letters and that the group goes on behind
//! them: killed anywhere, it has both or comes to them again.
//!
//! The bytes that cannot be decoded stay where they are, as long as their topic keeps them; the dead letter names the
//! place. It does not go back to its topic, for an empty message was never sent.
//!
//! The topic is made with the first dead letter: one queue, kept for 30 days. Nobody sends to it but the broker, and
//! anybody may read it like another topic. What fails there for its own group stays there, or it would come back for
//! ever.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Broker;
use super::budget::Permit;
use super::cut::{Stored, index_in, is_lost};
use super::error::BrokerError;
use super::handle::Handle;
use super::settle::retry_delay;
use super::state::leases::{Claim, Due, FilterId, Place};
use super::state::offsets::Offsets;
use super::state::offsets::leased::{Change, Consumer, DEAD_LETTERS, FinishedBy, Fresh, Passing};
use super::state::topics::{Creation, Origin as MadeBy, TopicEntry};
use crate::format::attributes::{self, DeadLetter, DeadReason};
use crate::format::batch::{self, Batch, MetaView, NewMeta};
use crate::format::state_record::OpenState;
use crate::message::{
    Access, Epoch, MessageId, PhysicalOffset, QueueId, QueueOffset, Retention, Timestamp,
    TopicSettings, TopicType,
};
use crate::store::{AppendError, NewRecord};

/// How long dead letters are kept: 30 days.
const RETENTION_MS: u64 = 30 * 24 * 60 * 60 * 1_000;

/// Dead letters of one append set.
const MAX_LETTERS: usize = 64;

/// Why a message is to be a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Death {
    pub(super) reason: DeadReason,
    /// How many messages it stands for.
    pub(super) messages: u32,
    /// How often its consumer has tried it, as it says itself; 0: it said nothing.
    pub(super) told_tries: u32,
}

impl From<DeadReason> for Death {
    fn from(reason: DeadReason) -> Self {
        Self { reason, messages: 1, told_tries: 0 }
    }
}

/// Fresh messages of a queue that cannot be decoded.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) stored: Stored,
    /// Offset of each that becomes a dead letter, rising, and for how many messages it stands.
    pub(super) letters: VecDeque<(u64, u32)>,
    /// What is passed over with them, and what stays open. None of it is given.
    pub(super) fresh: Fresh,
    /// For members with this filter, 0 if none is known.
    pub(super) kept_for: FilterId,
}

/// What a group knows of a message that is to be a dead letter.
struct Life<'a> {
    place: Place,
    deliveries: u32,
    /// When it was delivered first and last; 0: never.
    delivered: [u64; 2],
    last_client: &'a str,
}

/// What became of a message that is to be a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buried {
    /// It is one, or there is nothing left of it.
    Done { end: PhysicalOffset },
    /// Its lease was not in force any more, or its group goes on elsewhere, or it was to be one because its record
    /// could not be read and it can.
    Stale,
}

impl Broker {
    /// Makes a dead letter of a message that its consumer gives up after `told_tries` of its own, which are kept in it
    /// and count for nothing; 0: it does not say. The same receipt again is fine.
    ///
    /// # Errors
    /// [`BrokerError::BadReceipt`]: its lease is not in force. Else the message is as it was, unless
    /// [`BrokerError::stored`] says otherwise; then the same can be repeated.
    pub async fn forward_to_dead_letters(
        &self,
        group: &str,
        topic: &str,
        (handle, told_tries): (&str, u32),
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let group = self.group(group, deadline).await?;
        let topic = self.topic(topic, deadline).await?;
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let claims = self.claims(consumer, [handle].into_iter()).await?;
        let claim = claims.into_iter().flatten().next();
        let claim = claim.as_ref().map(Handle::claim).ok_or(BrokerError::BadReceipt)?;
        if let Some(due) = self.state.offsets.held(consumer, claim) {
            if consumer.is_of_dead_letters() {
                // It is one already: it stays, and comes again after a while.
                let change = self.later(consumer, due);
                let change = || self.state.offsets.change(consumer, &[change]);
                self.settled_claims(consumer, deadline, change).await?;
                return Ok(());
            }
            let death = Death { told_tries, ..DeadReason::GivenUp.into() };
            match self.bury(consumer, due, death, deadline).await? {
                Buried::Done { end } => {
                    self.durable_dead_letter(consumer, end, deadline).await?;
                    return Ok(());
                }
                Buried::Stale => return Err(BrokerError::BadReceipt),
            }
        }
        // Finished by this lease: it is one already, or the message was acknowledged. What a power cut took the lease
        // of is delivered again.
        match self.state.offsets.finished(consumer, claim) {
            Some(end) => self.durable_dead_letter(consumer, end, deadline).await,
            None => Err(BrokerError::BadReceipt),
        }
    }

    /// Waits until a dead letter may be acknowledged by both topics.
    pub(super) async fn durable_dead_letter(
        &self,
        consumer: Consumer<'_>,
        end: PhysicalOffset,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        self.acknowledged(consumer.topic, end, deadline).await?;
        match self.state.topics.get(&name_of(consumer.group.name())) {
            Some(dead) => self.acknowledged(&dead, end, deadline).await,
            None => Ok(()),
        }
    }

    /// Makes a dead letter of an open message.
    pub(super) async fn bury(
        &self,
        consumer: Consumer<'_>,
        due: Due,
        death: Death,
        deadline: Instant,
    ) -> Result<Buried, BrokerError> {
        let stored = self.record_of(consumer.topic, &due).await?;
        self.bury_stored(consumer, due, (stored, death), deadline).await
    }

    /// The same with what is stored of it.
    pub(super) async fn bury_stored(
        &self,
        consumer: Consumer<'_>,
        due: Due,
        (stored, death): (Stored, Death),
        deadline: Instant,
    ) -> Result<Buried, BrokerError> {
        let client = self.state.offsets.holder(consumer.key(), &due.open).unwrap_or_default();
        let is_unseen = death.reason == DeadReason::Undecodable && due.open.last_delivered == 0;
        let life = Life {
            place: due.place,
            // Put off is not delivered.
            deliveries: if is_unseen { 0 } else { due.open.deliveries },
            delivered: [due.open.first_delivered, due.open.last_delivered],
            last_client: &client,
        };
        let letter = self.letter(consumer, &stored, life, (death, deadline)).await?;
        loop {
            // Whoever could not read it before can do so now.
            if matches!(letter, Letter::Sound) {
                return Ok(Buried::Stale);
            }
            let record = self.record_of_letter(consumer, &letter, deadline).await?;
            let record = record.into_iter().collect();
            let by = match death.reason {
                DeadReason::GivenUp => FinishedBy::Holder,
                DeadReason::Attempts | DeadReason::Undecodable | DeadReason::Operator => {
                    FinishedBy::Broker
                }
            };
            match self.state.offsets.bury(consumer, due, by, record) {
                Ok(Some(end)) => {
                    let counter = match letter {
                        Letter::Copy { .. } => &self.counters.dead_letters,
                        Letter::Nothing | Letter::Sound => &self.counters.gone,
                    };
                    counter.add(1);
                    if let Some(ready) = self.state.offsets.ready.get(consumer.key())
                        && self.state.offsets.has_due(consumer, self.store.lease_time().get())
                    {
                        ready.wake();
                    }
                    return Ok(Buried::Done { end });
                }
                Ok(None) => return Ok(Buried::Stale),
                Err(AppendError::NotReady) => self.space_for_messages(deadline).await?,
                // The topic of dead letters was deleted meanwhile: another one is made.
                Err(AppendError::Deleted) if !consumer.topic.handle().is_dead() => {
                    tokio::task::yield_now().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes dead letters of fresh messages that cannot be decoded. One append set holds those of some of them and that
    /// the group has come past these; `lost` is what is left to do. `Stale`: the group goes on elsewhere by now, or
    /// the time is over and some are left.
    ///
    /// # Errors
    /// What is left is as it was, unless [`BrokerError::stored`] says otherwise.
    pub(super) async fn bury_fresh(
        &self,
        consumer: Consumer<'_>,
        lost: &mut Lost,
        deadline: Instant,
    ) -> Result<Buried, BrokerError> {
        let (mut most, mut buried) = (MAX_LETTERS, Buried::Stale);
        while lost.fresh.from < lost.fresh.to {
            let some: Vec<_> = lost.letters.iter().take(most).copied().collect();
            let mut records = Vec::with_capacity(some.len());
            for (offset, messages) in &some {
                let place = (lost.fresh.queue, *offset);
                let life = Life { place, deliveries: 0, delivered: [0; 2], last_client: "" };
                let death = Death { messages: *messages, ..DeadReason::Undecodable.into() };
                let letter = self.letter(consumer, &lost.stored, life, (death, deadline)).await?;
                records.extend(self.record_of_letter(consumer, &letter, deadline).await?);
            }
            let (letters, messages) = (records.len() as u64, some.iter().map(|(_, of)| *of));
            let messages: u64 = messages.map(u64::from).sum();
            let fresh = &lost.fresh;
            let to = lost.letters.get(some.len()).map_or(fresh.to, |(offset, _)| *offset);
            let kept = fresh.kept.iter().take_while(|(offset, _)| *offset < to);
            let kept: Vec<_> = kept.copied().collect();
            let (count, queue, from) = (kept.len(), fresh.queue, fresh.from);
            let part = Fresh { queue, from, to, kept, ..Fresh::default() };
            match self.state.offsets.bury_fresh(consumer, (&part, lost.kept_for), records) {
                Ok(Passing::Done { end }) => {
                    self.counters.dead_letters.add(letters);
                    self.counters.gone.add(messages.saturating_sub(letters));
                    let passed = (to - from).saturating_sub(messages + count as u64);
                    self.counters.filtered.add(passed);
                    lost.letters.drain(..some.len());
                    lost.fresh.kept.drain(..count);
                    lost.fresh.from = to;
                    buried = Buried::Done { end };
                    tokio::task::yield_now().await;
                    if to < lost.fresh.to && deadline <= Instant::now() {
                        return Ok(Buried::Stale);
                    }
                }
                Ok(Passing::Moved) => return Ok(Buried::Stale),
                Ok(Passing::Limit) => {
                    return Err(BrokerError::OpenLimit { limit: Offsets::MAX_OPEN });
                }
                Err(AppendError::NotReady) if letters == 0 => self.space(deadline).await?,
                Err(AppendError::NotReady) => self.space_for_messages(deadline).await?,
                Err(AppendError::TooLarge { .. }) if some.len() > 1 => most = some.len() / 2,
                // As with one.
                Err(AppendError::Deleted) if !consumer.topic.handle().is_dead() => {
                    tokio::task::yield_now().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(buried)
    }

    /// What is to be stored of a letter, if anything is.
    async fn record_of_letter(
        &self,
        consumer: Consumer<'_>,
        letter: &Letter,
        deadline: Instant,
    ) -> Result<Option<NewRecord>, BrokerError> {
        let Letter::Copy { batch, attributes, .. } = letter else { return Ok(None) };
        let dead = self.dead_letter_topic(consumer.group.name(), deadline).await?;
        let info = batch::check(batch)?;
        let (batch, attributes) = (batch.clone(), attributes.clone());
        let record =
            NewRecord::message_with(dead.handle(), QueueId::ZERO, batch, &info, attributes);
        Ok(Some(record))
    }

    /// The copy of a message, and what is said of it.
    async fn letter(
        &self,
        consumer: Consumer<'_>,
        stored: &Stored,
        life: Life<'_>,
        (Death { mut reason, messages, told_tries }, deadline): (Death, Instant),
    ) -> Result<Letter, BrokerError> {
        let offset = QueueOffset::new(life.place.1);
        let (record, is_undecodable) = match stored {
            Stored::Gone => return Ok(Letter::Nothing),
            Stored::Damaged => (None, true),
            Stored::Undecodable(record) => (Some(record), true),
            Stored::Record(record) => (Some(record), false),
        };
        let (mut copy, mut permit) = (None, None);
        let mut id = MessageId { epoch: Epoch::new(0), offset: PhysicalOffset::ZERO, index: 0 };
        let (mut redriven, mut store_time) = (0, Timestamp::ZERO);
        if let Some(record) = record {
            let Some(index) = index_in(record, offset) else { return Ok(Letter::Nothing) };
            id = MessageId { epoch: record.epoch, offset: record.offset, index };
            store_time = record.store_time;
            let before = attributes::dead_letter(&record.attributes).ok().flatten();
            redriven = before.map_or(0, |before| before.redriven);
            if !is_undecodable {
                // Its record can be read after all. Whether its body can be had is found out by who looks again: he who
                // asks here has messages in his hand, and waits for no room.
                if reason == DeadReason::Undecodable {
                    return Ok(Letter::Sound);
                }
                (copy, permit) = match self.cut_one_off(record, index, deadline).await {
                    Ok(cut) => cut,
                    Err(error) if is_lost(&error) => {
                        tracing::error!(%error, "a message cannot be decoded");
                        (None, None)
                    }
                    Err(error) => return Err(error),
                };
            }
            if copy.is_none() {
                reason = DeadReason::Undecodable;
                copy = Some(without_body(&record.batch, index));
            }
        } else {
            reason = DeadReason::Undecodable;
        }
        // Of a dead letter none is made for the same group: it would not end.
        if reason == DeadReason::Undecodable && consumer.is_of_dead_letters() {
            return Ok(Letter::Nothing);
        }
        let batch = copy.unwrap_or_else(|| batch::one(&NewMeta::default(), b""));
        let origin = DeadLetter {
            reason,
            deliveries: life.deliveries,
            messages,
            topic: consumer.topic.id(),
            queue: QueueId::new(life.place.0),
            queue_offset: offset,
            id,
            store_time,
            topic_name: consumer.topic.name(),
            first_delivered: Timestamp::new(life.delivered[0]),
            last_delivered: Timestamp::new(life.delivered[1]),
            last_client: life.last_client,
            redriven,
            is_back: false,
            told_tries,
        };
        let attributes = Bytes::from(attributes::of_dead_letter(&origin));
        Ok(Letter::Copy { batch, attributes, _permit: permit })
    }

    /// Keeps a message that cannot become a dead letter now, until the group's last pause is over.
    ///
    /// # Errors
    /// The append's: it is as it was.
    pub(super) fn keep_for_later(
        &self,
        consumer: Consumer<'_>,
        due: Due,
    ) -> Result<(), AppendError> {
        self.state.offsets.change(consumer, &[self.later(consumer, due)]).map(|_| ())
    }

    fn later(&self, consumer: Consumer<'_>, due: Due) -> Change {
        let settings = consumer.group.settings();
        let pause = retry_delay(&settings, u32::MAX);
        Change {
            claim: Claim { place: due.place, lease: due.open.lease, is_first: false },
            due: self.store.lease_time().get().saturating_add(pause.max(1_000)),
            state: OpenState::Waiting,
            // Nobody got what was only passed over: the first delivery is still to come.
            same_delivery: due.open.same_delivery || due.open.deliveries == 0,
        }
    }

    /// The topic of a group's dead letters, made if it is not there.
    async fn dead_letter_topic(
        &self,
        group: &str,
        deadline: Instant,
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        let name = name_of(group);
        if let Some(topic) = self.state.topics.get(&name) {
            return Ok(topic);
        }
        let retention = Retention { time_ms: Some(RETENTION_MS), bytes: None };
        let open = TopicSettings::open(1, self.default_flush, TopicType::Mixed);
        // Nobody sends there: the broker's own appends do not ask.
        let access = Access { write: false, ..open.access };
        let settings = TopicSettings { retention, access, ..open };
        loop {
            match self.state.topics.create(&self.store, &name, settings, MadeBy::Asked) {
                Ok((Creation::Ready(topic) | Creation::Conflict(topic), _)) => return Ok(topic),
                Ok((Creation::Limit(limit), _)) => return Err(BrokerError::TopicLimit { limit }),
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What there is to know of a dead letter, or of a message that was one, by the attributes of its record.
pub fn dead_letter(attributes: &[u8]) -> Option<DeadLetter<'_>> {
    attributes::dead_letter(attributes).ok().flatten()
}

/// The name of the topic of a group's dead letters.
pub(super) fn name_of(group: &str) -> String {
    format!("{DEAD_LETTERS}{group}")
}

/// What is to be stored of a dead letter.
enum Letter {
    /// The copy of the message.
    Copy {
        batch: Bytes,
        /// Of its record.
        attributes: Bytes,
        /// Keeps its bytes counted until it is stored.
        _permit: Option<Permit>,
    },
    /// There is nothing left of it, or it may not become one.
    Nothing,
    /// It was to be one because its record cannot be read, and it can.
    Sound,
}

/// A message of a batch as far as it can be read: what its sender said of it, without its body.
fn without_body(bytes: &Bytes, index: u16) -> Bytes {
    let batch = Batch::parse(bytes).ok();
    let meta = batch.as_ref().and_then(|batch| batch.metas().nth(index.into())?.ok());
    let of = |meta: &MetaView<'_>| {
        let meta = NewMeta {
            keys: meta.keys().collect(),
            tag: meta.tag(),
            properties: meta.properties().collect(),
            message_group: meta.message_group(),
            id: meta.id(),
            born_ms: meta.born_ms(),
            encoding: 0,
            trace_context: meta.trace_context(),
            born_host: meta.born_host(),
        };
        batch::one(&meta, b"")
    };
    meta.as_ref().map_or_else(|| batch::one(&NewMeta::default(), b""), of)
}
