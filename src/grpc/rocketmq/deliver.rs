//! A message on its way to a consumer: what its sender said of it, and what this delivery is.
//!
//! Clients fall over when an id, a digest, an encoding, a time of birth or a handle is missing, so there is always one:
//! what a producer of the other protocol does not say is made up from what the broker knows.

use bytes::Bytes;
use prost_types::Duration;

use super::{digest, time};
use crate::broker::{BatchError, MetaView, ReceivedMessage};
use crate::proto::rocketmq::{
    DeadLetterQueue, Encoding, Message, MessageType, Resource, SystemProperties,
};

/// What all messages of an answer have in common.
pub(super) struct Delivery {
    /// The topic as the consumer named it.
    pub(super) topic: Option<Resource>,
    /// Where the call arrived, for people.
    pub(super) store_host: String,
    /// How long nobody else gets them.
    pub(super) invisible: Duration,
}

impl Delivery {
    /// The message as it goes out.
    ///
    /// # Errors
    /// It is damaged.
    pub(super) fn message(&self, received: ReceivedMessage) -> Result<Message, BatchError> {
        let (meta, body) = received.parts()?;
        let properties = meta.properties().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let user_properties = properties.collect();
        let system_properties = Some(self.system_properties(&received, &meta, &body));
        Ok(Message { topic: self.topic.clone(), user_properties, system_properties, body })
    }

    fn system_properties(
        &self,
        received: &ReceivedMessage,
        meta: &MetaView<'_>,
        body: &Bytes,
    ) -> SystemProperties {
        let stored_ms = received.store_time.get();
        let born_ms = Some(meta.born_ms()).filter(|ms| *ms > 0).unwrap_or(stored_ms);
        let message_id = meta.id().map_or_else(|| received.id.to_string(), str::to_owned);
        let encoding = if meta.encoding() == 1 { Encoding::Gzip } else { Encoding::Identity };
        let is_fifo = meta.message_group().is_some();
        let message_type = if is_fifo { MessageType::Fifo } else { MessageType::Normal };
        let dead_letter_queue = received.dead_letter_of().map(|(topic, id)| DeadLetterQueue {
            topic: topic.to_owned(),
            message_id: meta.id().map_or_else(|| id.to_string(), str::to_owned),
        });
        SystemProperties {
            tag: meta.tag().map(str::to_owned),
            keys: meta.keys().map(str::to_owned).collect(),
            message_id,
            body_digest: Some(digest::of(body)),
            body_encoding: encoding.into(),
            message_type: message_type.into(),
            born_timestamp: Some(time::stamp(born_ms)),
            born_host: meta.born_host().unwrap_or_default().to_owned(),
            store_timestamp: Some(time::stamp(stored_ms)),
            store_host: self.store_host.clone(),
            receipt_handle: Some(received.handle.clone()),
            // Queues are fewer than 2³¹.
            queue_id: i32::try_from(received.queue.get()).unwrap_or(i32::MAX),
            queue_offset: Some(i64::try_from(received.queue_offset.get()).unwrap_or(i64::MAX)),
            invisible_duration: Some(self.invisible),
            delivery_attempt: Some(i32::try_from(received.delivery).unwrap_or(i32::MAX)),
            message_group: meta.message_group().map(str::to_owned),
            trace_context: meta.trace_context().map(str::to_owned),
            dead_letter_queue,
            ..SystemProperties::default()
        }
    }
}
