//! What a broker can be told. The store's part is [`crate::store::StoreConfig`].

use crate::message::Retention;

/// Options of the broker room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Whether a send to an unknown valid name creates the topic.
    pub auto_create_topics: bool,
    /// Whether a receive in the name of an unknown valid group creates it, where clients have no call for that.
    pub auto_create_groups: bool,
    /// How many topics, and how many groups, may be made that way while the process runs.
    pub auto_create_limit: u32,
    /// Bytes of batches that may be in work at once, from their arrival until their answer.
    pub inflight_send_bytes: u64,
    /// Bytes of answers to pulls and queries that may be on their way out at once.
    pub inflight_reply_bytes: u64,
    /// Pulls that may be parked at the end of a queue at once.
    pub max_waiters: u32,
    /// How long a topic keeps its messages that is made without a retention of its own.
    pub retention: Retention,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            auto_create_topics: true,
            auto_create_groups: true,
            auto_create_limit: 1_000,
            inflight_send_bytes: 256 << 20,
            inflight_reply_bytes: 256 << 20,
            max_waiters: 100_000,
            // As Apache RocketMQ.
            retention: Retention { time_ms: Some(72 * 60 * 60 * 1_000), bytes: None },
        }
    }
}
