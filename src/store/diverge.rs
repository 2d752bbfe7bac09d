//! Where a reader's memory of a queue and the queue part: after a power cut the log may end earlier than what was read
//! of an async topic, and other messages are then stored at the same queue offsets.
//!
//! A reader knows the epoch of the broker that it last heard of. All it read was written in that epoch or before, and
//! what is left of that lies before the first record of a later epoch: epochs never fall along the log, and each start
//! begins one with a durable record. So the two part where the first record of a later epoch begins in the queue. No
//! table of epochs is kept for this: every record says its own, and few readers ask, once each after a start.
//!
//! | asked of a queue | is answered |
//! | --- | --- |
//! | a reader's offset at or below its first record of a later epoch | nothing it read is lost |
//! | an offset behind it, or behind the end if there is none | the place where they part |
//! | an offset at or below the first message that is there | nothing: what lay before is gone for all |
//! | the epoch of a record on the way cannot be read | as if it were later: what was read comes again, none is left out |

use super::Shared;
use super::error::ReadError;
use super::read::{HeaderAt, QueueRange};
use super::topics::TopicHandle;
use crate::file::FileError;
use crate::format::consume_queue::QueueEntry;
use crate::log::consume_queue::First;
use crate::message::{Epoch, QueueId, QueueKey, QueueOffset};

/// A queue that lost what a reader had read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diverged {
    /// The first offset at which another message is now, or will be.
    pub at: QueueOffset,
    /// What can be pulled.
    pub range: QueueRange,
}

impl Shared {
    /// Whether a reader that is at `offset`, and has heard of no epoch after `epoch`, read what is not there any more.
    /// Blocks for the disk.
    pub(super) fn diverged(
        &self,
        topic: &TopicHandle,
        queue: QueueId,
        offset: QueueOffset,
        epoch: Epoch,
    ) -> Result<Option<Diverged>, ReadError> {
        let range = self.bounds_on_disk(topic, queue)?;
        if offset <= range.min {
            return Ok(None);
        }
        let key = QueueKey { topic: topic.id(), queue };
        let mut refused = None;
        let mut is_later = |entry: &QueueEntry| self.is_later(entry, epoch, &mut refused);
        let first = match self.queues.first_hot(key, &mut is_later) {
            First::NeedsDisk => self.first_on_disk(key, &mut is_later)?,
            found => found,
        };
        if let Some(error) = refused {
            return Err(error.into());
        }
        let at = match first {
            First::Entry { entry, .. } => entry.queue_offset.max(range.min).min(range.max),
            First::None { .. } => range.max,
            First::NeedsDisk => return Err(ReadError::Rebuilding),
            First::Rebuilding { base } => {
                self.want_rebuilt(base);
                return Err(ReadError::Rebuilding);
            }
        };
        Ok((offset > at).then_some(Diverged { at, range }))
    }

    fn is_later(&self, entry: &QueueEntry, epoch: Epoch, refused: &mut Option<FileError>) -> bool {
        // What this process wrote needs no look: it is of the current epoch.
        if entry.offset >= self.own_from {
            return self.epoch > epoch;
        }
        match self.header_at(entry.offset) {
            Ok(HeaderAt::Sound(header)) => header.epoch > epoch,
            Ok(HeaderAt::Nothing | HeaderAt::Lost) => true,
            Err(error) => {
                refused.get_or_insert(error);
                true
            }
        }
    }
}
