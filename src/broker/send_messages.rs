//! Sends of single messages: each becomes a record of its own, all of a request are stored or none.
//!
//! Order of the checks: shutdown, deadline, batches, room for the work, topic, types, access. The types come before the
//! access, other than for a batch: clients of RocketMQ see this order. An unknown topic is made once nothing else can
//! refuse the request.
//!
//! Every message goes to the queue of its own message group, else to the next of the round robin. All records are one
//! append: in the log they follow each other, and one flush acknowledges them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::error::BrokerError;
use super::route::queue_of_group;
use super::send::{Receipt, check_type};
use super::state::topics::TopicEntry;
use super::{Broker, names};
use crate::format::batch::{self, BatchError, BatchInfo, NewMeta};
use crate::message::{PhysicalOffset, QueueId};
use crate::store::{AppendError, NewRecord, Placed};

/// A message to be stored by itself.
#[derive(Clone, Debug)]
pub struct NewMessage<'a> {
    /// All but its body.
    pub meta: NewMeta<'a>,
    /// What it carries.
    pub body: &'a [u8],
}

/// Messages for one topic.
#[derive(Clone, Debug)]
pub struct SendMessages<'a> {
    /// Its name.
    pub topic: &'a str,
    /// At least one, at most 10 000.
    pub messages: &'a [NewMessage<'a>],
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// A message in the form in which it is stored.
struct Encoded<'a> {
    batch: Bytes,
    info: BatchInfo,
    message_group: Option<&'a str>,
}

impl Broker {
    /// Stores messages and waits until their topic's flush mode acknowledges them. Returns where they went, in their
    /// order. For an unknown valid name it makes the topic, if the configuration says so.
    ///
    /// # Errors
    /// Nothing was stored, unless [`BrokerError::stored`] says otherwise. The text of a batch's fault counts messages
    /// from 0 of one.
    pub async fn send_messages(
        &self,
        request: &SendMessages<'_>,
    ) -> Result<Vec<Receipt>, BrokerError> {
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        // A caller whose time is up has gone; nothing is stored for him.
        if request.deadline <= Instant::now() {
            return Err(BrokerError::Overloaded { what: "requests before this one" });
        }
        let (encoded, bytes) = encode(request.messages)?;
        let _permit =
            self.sends.try_take(bytes).ok_or(BrokerError::Overloaded { what: "bytes to store" })?;

        let (topic, receipts, end) = loop {
            let topic = self.topic_for_messages(request, &encoded).await?;
            match self.append_messages(&topic, &encoded) {
                Ok((receipts, end)) => break (topic, receipts, end),
                Err(AppendError::NotReady) => self.space_for_messages(request.deadline).await?,
                // As for a batch: the next topic of that name, or the deletion failed.
                Err(AppendError::Deleted) => {
                    let _lives = self.state.topics.has(&topic);
                }
                Err(error) => return Err(error.into()),
            }
            if self.is_draining() {
                return Err(BrokerError::Draining);
            }
        };
        self.acknowledged(&topic, end, request.deadline).await?;
        self.counters.sends.add(u64::try_from(receipts.len()).unwrap_or(u64::MAX));
        self.counters.sent_messages.add(u64::try_from(receipts.len()).unwrap_or(u64::MAX));
        self.counters.sent_bytes.add(bytes);
        Ok(receipts)
    }

    /// The topic of a name, as it is told to clients: an unknown one is made if the configuration says so and the name
    /// can be given. It is durable by the broker's default mode then.
    ///
    /// # Errors
    /// There is none, and none was made.
    pub async fn open_topic(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        let topic = match self.state.topics.get(name) {
            Some(topic) => topic,
            None => self.make_named_topic(name, deadline).await?,
        };
        self.settled(self.state.topics.applied(), deadline).await?;
        Ok(topic)
    }

    /// The topic of a name.
    ///
    /// # Errors
    /// There is none, or what it is is not durable in time.
    pub async fn known_topic(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        let topic = self.topic(name, deadline).await?;
        self.settled(self.state.topics.applied(), deadline).await?;
        Ok(topic)
    }

    /// Makes a topic if its name is one that can be given; what is there under another name was made by the broker.
    async fn make_named_topic(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        if names::check_new(name).is_err() {
            names::check_addressed(name)?;
            return self.topic(name, deadline).await;
        }
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        self.make_topic(name, deadline).await
    }

    async fn topic_for_messages(
        &self,
        request: &SendMessages<'_>,
        encoded: &[Encoded<'_>],
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        let topic = match self.state.topics.get(request.topic) {
            Some(topic) => topic,
            None => {
                let len = |one: &Encoded<'_>| NewRecord::len_of_message(&one.batch, None);
                self.check_len(encoded.iter().map(len).sum())?;
                self.make_named_topic(request.topic, request.deadline).await?
            }
        };
        let settings = topic.settings();
        for one in encoded {
            check_type(settings.topic_type, one.info.has_message_group)?;
        }
        if !settings.access.write {
            return Err(BrokerError::Forbidden { what: "send" });
        }
        Ok(topic)
    }

    /// Appends all of them, and returns where they went and the end of the last one.
    fn append_messages(
        &self,
        topic: &TopicEntry,
        encoded: &[Encoded<'_>],
    ) -> Result<(Vec<Receipt>, PhysicalOffset), AppendError> {
        let queues = topic.settings().queues;
        let record = |one: &Encoded<'_>| {
            let queue = match one.message_group {
                Some(group) => QueueId::new(queue_of_group(group, queues)),
                None => topic.next_queue(),
            };
            let batch = one.batch.clone();
            (queue, NewRecord::message(topic.handle(), queue, batch, &one.info))
        };
        if let [one] = encoded {
            let (queue, record) = record(one);
            let placed = self.store.append_one(record)?;
            return Ok((vec![receipt(queue, &placed)], placed.end));
        }
        let (queues, records): (Vec<_>, Vec<_>) = encoded.iter().map(record).unzip();
        let placed = self.store.append(records)?;
        let receipts = queues.iter().zip(&placed).map(|(queue, placed)| receipt(*queue, placed));
        let end = placed.last().map(|placed| placed.end).unwrap_or_default();
        Ok((receipts.collect(), end))
    }
}

/// Each message as a batch of one, checked; and their bytes together.
fn encode<'a>(messages: &[NewMessage<'a>]) -> Result<(Vec<Encoded<'a>>, u64), BrokerError> {
    let limit = u64::from(batch::limits::MESSAGES);
    let found = u64::try_from(messages.len()).unwrap_or(u64::MAX);
    if found == 0 {
        return Err(BatchError::Empty.into());
    }
    if found > limit {
        return Err(BatchError::TooManyMessages { limit, found }.into());
    }
    let mut bytes = 0;
    let mut encoded = Vec::with_capacity(messages.len());
    for message in messages {
        let batch = batch::one(&message.meta, message.body);
        let info = batch::check(&batch)?;
        bytes += u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let message_group = message.meta.message_group.filter(|_| info.has_message_group);
        encoded.push(Encoded { batch, info, message_group });
    }
    Ok((encoded, bytes))
}

fn receipt(queue: QueueId, placed: &Placed) -> Receipt {
    Receipt {
        queue,
        first_queue_offset: placed.queue_offset,
        offset: placed.offset,
        epoch: placed.epoch,
        store_time: placed.store_time,
        message_count: 1,
        is_duplicate: false,
    }
}
