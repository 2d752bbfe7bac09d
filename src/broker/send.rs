//! Sends: one batch becomes one record.
//!
//! Order of the checks: shutdown, room for the work, name, batch, its producer session, type, queue; only then is an
//! unknown topic made, so that a refused send leaves nothing behind. A batch that its session has stored before is
//! answered whatever has become of its topic. What the session says counts once more with the append.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::error::{BrokerError, RequestFault, TypeFault};
use super::route::queue_of_group;
use super::state::sessions::{Appended, Outgoing, Verdict};
use super::state::topics::{Creation, Origin, TopicEntry};
use super::{Broker, flush_deadline, names};
use crate::format::batch::{self, Batch, BatchInfo};
use crate::format::state_record::SessionBatch;
use crate::message::{
    Epoch, PhysicalOffset, QueueId, QueueOffset, SessionMark, Timestamp, TopicSettings, TopicType,
};
use crate::store::{AppendError, NewRecord, Placed};

/// A batch for a topic.
#[derive(Clone, Debug)]
pub struct SendRequest<'a> {
    /// Its name.
    pub topic: &'a str,
    /// Without it the broker chooses.
    pub queue: Option<QueueId>,
    /// One encoded batch.
    pub batch: Bytes,
    /// With it the batch is stored once, however often it is sent.
    pub session: Option<SessionMark>,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// Where a batch was stored. It is acknowledged by its topic's flush mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The queue.
    pub queue: QueueId,
    /// Of the first message.
    pub first_queue_offset: QueueOffset,
    /// Of the record.
    pub offset: PhysicalOffset,
    /// In which it was written.
    pub epoch: Epoch,
    /// On the store clock.
    pub store_time: Timestamp,
    /// Messages in the batch.
    pub message_count: u16,
    /// Whether it was stored before, by an earlier send of its producer session.
    pub is_duplicate: bool,
}

/// Where a batch is, before that may be told.
enum Sent {
    Now { topic: Arc<TopicEntry>, queue: QueueId, placed: Placed },
    Before(SessionBatch),
}

/// A batch in the log that is not acknowledged yet.
#[derive(Debug)]
pub struct StoredBatch {
    receipt: Receipt,
    /// Whose flush mode acknowledges it; `None`: the topic is gone, and of what mode it was is not known any more.
    topic: Option<Arc<TopicEntry>>,
    end: PhysicalOffset,
    bytes: u64,
}

impl Broker {
    /// Stores a batch and waits until its topic's flush mode acknowledges it. To an unknown valid name it makes the
    /// topic, if the configuration says so.
    ///
    /// # Errors
    /// Nothing was stored, unless [`BrokerError::stored`] says otherwise.
    pub async fn send(&self, request: SendRequest<'_>) -> Result<Receipt, BrokerError> {
        let deadline = request.deadline;
        let bytes = u64::try_from(request.batch.len()).unwrap_or(u64::MAX);
        let _permit =
            self.sends.try_take(bytes).ok_or(BrokerError::Overloaded { what: "bytes to store" })?;
        let stored = self.store_only(&request).await?;
        self.acknowledge(&stored, deadline).await?;
        Ok(self.acknowledged_batch(&stored))
    }

    /// The first half of [`Broker::send`]: the batch is in the log, and nothing may be told of it yet. Its bytes are
    /// counted by the caller.
    ///
    /// # Errors
    /// As [`Broker::send`], without those of the second half.
    pub async fn store_only(&self, request: &SendRequest<'_>) -> Result<StoredBatch, BrokerError> {
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let bytes = u64::try_from(request.batch.len()).unwrap_or(u64::MAX);
        // A caller whose time is up has gone; nothing is stored for him.
        if request.deadline <= Instant::now() {
            return Err(BrokerError::Overloaded { what: "requests before this one" });
        }
        names::check_new(request.topic)?;
        let info = batch::check(&request.batch)?;

        Ok(match self.store_batch(request, &info).await? {
            Sent::Now { topic, queue, placed } => StoredBatch {
                receipt: Receipt {
                    queue,
                    first_queue_offset: placed.queue_offset,
                    offset: placed.offset,
                    epoch: placed.epoch,
                    store_time: placed.store_time,
                    message_count: info.message_count,
                    is_duplicate: false,
                },
                topic: Some(topic),
                end: placed.end,
                bytes,
            },
            Sent::Before(batch) => StoredBatch {
                receipt: Receipt {
                    queue: batch.queue,
                    first_queue_offset: batch.queue_offset,
                    offset: batch.offset,
                    epoch: batch.epoch,
                    store_time: batch.store_time,
                    // It has as many as the batch that was stored, or it would have been refused.
                    message_count: info.message_count,
                    is_duplicate: true,
                },
                topic: self.state.topics.by_id(batch.topic),
                end: batch.end,
                bytes,
            },
        })
    }

    /// The second half: waits until the batch may be acknowledged.
    ///
    /// # Errors
    /// It is stored, and not durable in time, or nobody knows.
    pub fn acknowledge(
        &self,
        stored: &StoredBatch,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), BrokerError>> + Send + use<> {
        let is_visible = self.may_acknowledge(stored);
        let (durable, until) = (self.store.durable(stored.end), flush_deadline(deadline));
        async move {
            if is_visible {
                return Ok(());
            }
            match timeout_at(until, durable).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_poisoned)) => Err(BrokerError::Poisoned),
                Err(_) => Err(BrokerError::FlushTimeout),
            }
        }
    }

    /// Whether [`Broker::acknowledge`] would not wait.
    pub fn may_acknowledge(&self, stored: &StoredBatch) -> bool {
        match &stored.topic {
            Some(topic) => self.store.may_acknowledge(topic.handle(), stored.end),
            None => self.store.watermarks().flushed >= stored.end,
        }
    }

    /// Where a batch went that is acknowledged now; counts it.
    pub fn acknowledged_batch(&self, stored: &StoredBatch) -> Receipt {
        if stored.receipt.is_duplicate {
            self.counters.duplicates.add(1);
        } else {
            self.counters.sends.add(1);
            self.counters.sent_messages.add(stored.receipt.message_count.into());
            self.counters.sent_bytes.add(stored.bytes);
        }
        stored.receipt
    }

    /// Waits until a record of the topic, or state of it, that ends at `end` may be acknowledged or revealed.
    pub(super) async fn acknowledged(
        &self,
        topic: &TopicEntry,
        end: PhysicalOffset,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let acknowledged = self.store.acknowledged(topic.handle(), end);
        match timeout_at(flush_deadline(deadline), acknowledged).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_poisoned)) => Err(BrokerError::Poisoned),
            Err(_) => Err(BrokerError::FlushTimeout),
        }
    }

    /// Appends, again after each wait for room. A topic that is deleted meanwhile is looked up, or made, anew.
    async fn store_batch(
        &self,
        request: &SendRequest<'_>,
        info: &BatchInfo,
    ) -> Result<Sent, BrokerError> {
        loop {
            if let Some(mark) = &request.session
                && let Some(verdict) = self.state.sessions.verdict(mark, info.message_count)
            {
                return self.not_appended(verdict, request.deadline).await;
            }
            let topic = self.topic_for(request, info).await?;
            let queue = choose_queue(&topic, request, info)?;
            match self.append(request, info, &topic, queue) {
                Ok(Appended::Now(placed)) => return Ok(Sent::Now { topic, queue, placed }),
                Ok(Appended::Not(verdict)) => {
                    return self.not_appended(verdict, request.deadline).await;
                }
                Err(AppendError::NotReady) => self.space_for_messages(request.deadline).await?,
                // Out of the table for good: whoever sends to the name now means the next topic of that name. Still in
                // the table: the deletion failed, and the topic lives on.
                Err(AppendError::Deleted) => {
                    let _lives = self.state.topics.has(&topic);
                }
                Err(error) => return Err(error.into()),
            }
            if self.is_draining() {
                return Err(BrokerError::Draining);
            }
        }
    }

    fn append(
        &self,
        request: &SendRequest<'_>,
        info: &BatchInfo,
        topic: &TopicEntry,
        queue: QueueId,
    ) -> Result<Appended, AppendError> {
        let (handle, batch) = (topic.handle(), request.batch.clone());
        let Some(mark) = &request.session else {
            let record = NewRecord::message(handle, queue, batch, info);
            return self.store.append_one(record).map(Appended::Now);
        };
        let record = NewRecord::message_in_session(handle, queue, batch, info, mark);
        let messages = info.message_count;
        let outgoing = Outgoing { mark, topic: handle, queue, messages };
        self.state.sessions.append(&self.store, outgoing, record)
    }

    /// What a session says of a batch that it does not take. What that tells of the batches before is durable then.
    async fn not_appended(&self, verdict: Verdict, deadline: Instant) -> Result<Sent, BrokerError> {
        match verdict {
            Verdict::Stored(batch) => Ok(Sent::Before(batch)),
            Verdict::Refused { fault, until } => {
                self.durable(until, deadline).await?;
                Err(fault.into())
            }
        }
    }

    async fn topic_for(
        &self,
        request: &SendRequest<'_>,
        info: &BatchInfo,
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        if let Some(topic) = self.state.topics.get(request.topic) {
            check_fit(topic.settings(), request, info)?;
            return Ok(topic);
        }
        if self.config.auto_create_topics {
            check_fit(self.topic_defaults(), request, info)?;
            // Else the append refuses it, and the topic would be there.
            self.check_len(NewRecord::len_of_message(&request.batch, request.session.as_ref()))?;
        }
        let topic = self.make_topic(request.topic, request.deadline).await?;
        check_fit(topic.settings(), request, info)?;
        Ok(topic)
    }

    /// Whether records of so many bytes together can be appended at once.
    pub(super) fn check_len(&self, len: u64) -> Result<(), BrokerError> {
        let max = self.store.max_append_set();
        if len > max { Err(AppendError::TooLarge { len, max }.into()) } else { Ok(()) }
    }

    /// The topic of a legal name that was not found: made, if the configuration says so. Whoever is told of it waits
    /// for a record behind its creation, or for the creation itself.
    pub(super) async fn make_topic(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        if !self.config.auto_create_topics {
            self.settled(self.state.topics.applied(), deadline).await?;
            return Err(BrokerError::NoTopic { name: name.into() });
        }
        let origin = Origin::Send { limit: self.config.auto_create_limit };
        loop {
            match self.state.topics.create(&self.store, name, self.topic_defaults(), origin) {
                // The creation lies before the batch in the log, so what acknowledges the batch covers it.
                Ok((Creation::Ready(topic) | Creation::Conflict(topic), _)) => return Ok(topic),
                Ok((Creation::Limit(limit), _)) => return Err(BrokerError::TopicLimit { limit }),
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a topic of these settings takes the batch.
fn check_fit(
    settings: TopicSettings,
    request: &SendRequest<'_>,
    info: &BatchInfo,
) -> Result<(), BrokerError> {
    if !settings.access.write {
        return Err(BrokerError::Forbidden { what: "send" });
    }
    check_type(settings.topic_type, info.has_message_group)?;
    match request.queue {
        Some(_) if info.has_message_group => {
            Err(BrokerError::BadRequest { fault: RequestFault::QueueAndGroup })
        }
        Some(queue) if queue.get() >= settings.queues => Err(BrokerError::BadQueue {
            topic: request.topic.into(),
            queue,
            queues: settings.queues,
        }),
        _ => Ok(()),
    }
}

/// Whether a topic of this type takes plain messages, or those of a message group.
pub(super) fn check_type(
    topic_type: TopicType,
    has_message_group: bool,
) -> Result<(), BrokerError> {
    let fault = match (topic_type, has_message_group) {
        (TopicType::Mixed, _) | (TopicType::Normal, false) | (TopicType::Fifo, true) => {
            return Ok(());
        }
        (TopicType::Normal, true) => TypeFault::GroupOnNormal,
        (TopicType::Fifo, false) => TypeFault::NoGroupOnFifo,
        (TopicType::Delay, _) => TypeFault::PlainOnDelay,
        (TopicType::Transaction, _) => TypeFault::PlainOnTransaction,
    };
    Err(BrokerError::TypeConflict { fault })
}

/// The named queue, else that of the message group, else the next of the round robin.
fn choose_queue(
    topic: &TopicEntry,
    request: &SendRequest<'_>,
    info: &BatchInfo,
) -> Result<QueueId, BrokerError> {
    if let Some(queue) = request.queue {
        return Ok(queue);
    }
    if !info.has_message_group {
        return Ok(topic.next_queue());
    }
    // All messages of a batch have the same group.
    let batch = Batch::parse(&request.batch)?;
    let first = batch.metas().next().transpose()?;
    let group = first.and_then(|meta| meta.message_group()).unwrap_or_default();
    Ok(QueueId::new(queue_of_group(group, topic.settings().queues)))
}
