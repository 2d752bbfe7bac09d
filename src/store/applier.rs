//! What the store knows of the state above it.

use std::ops::Range;

use super::Topics;
use crate::format::DecodeError;
use crate::format::state_record::SessionBatch;
use crate::message::{
    PhysicalOffset, QueueId, QueueKey, QueueOffset, SessionMark, Timestamp, TopicId,
};

/// The state above the store, as far as the store has to know it: handed down at open, called in replay and for
/// snapshots.
pub trait Applier: Send + Sync + 'static {
    /// A snapshot's state, once, before any `apply`.
    ///
    /// # Errors
    /// The state cannot be decoded or contradicts itself; the open fails.
    fn restore(&self, topics: &Topics, state: &[u8]) -> Result<(), DecodeError>;

    /// A state record that ends at `end`, in log order, in replay only. What `restore` contained comes again and is to
    /// be passed over. Last may come, with the end of the log, which id of a topic is next by the messages there are.
    ///
    /// # Errors
    /// As `restore`.
    fn apply(
        &self,
        topics: &Topics,
        transitions: &[u8],
        end: PhysicalOffset,
    ) -> Result<(), DecodeError>;

    /// A batch of a producer session that was found in the log, in log order, in replay only. As with `apply`, what
    /// `restore` contained comes again.
    fn stored(&self, mark: SessionMark, batch: &SessionBatch);

    /// Records of a queue of a watched topic can be read since a moment ago. `tags` has the mask bits of all their
    /// tags, or all bits if they are not known. Called by the dispatcher and by the flush worker, so it must not block.
    fn readable(&self, queue: QueueKey, tags: u64) {
        let _ = (queue, tags);
    }

    /// What the clock of leases read last, as far as the state that was replayed knows. It goes on from there, once
    /// all is replayed: leases neither freeze nor end when the machine's clock was turned before a restart.
    fn lease_clock(&self) -> Timestamp {
        Timestamp::ZERO
    }

    /// Whether messages of a topic may be open: delivered, and not finished. Called by the clean worker of what is
    /// about to be deleted, and so is [`Applier::is_open`].
    fn has_open(&self, topic: TopicId) -> bool {
        let _ = topic;
        false
    }

    /// Whether a message is open among those of a topic in these queues, rising, at these offsets.
    fn is_open(&self, topic: TopicId, rows: &[(QueueId, Range<QueueOffset>)]) -> bool {
        let _ = (topic, rows);
        false
    }

    /// The state as it is now. Called by the seal worker and by `close`.
    fn snapshot(&self, topics: &Topics) -> StateSnapshot;
}

/// The state above the store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateSnapshot {
    /// In the form that `restore` takes.
    pub state: Vec<u8>,
    /// The end of the last state record that it contains.
    pub applied: PhysicalOffset,
}
