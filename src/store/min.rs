//! Where a queue begins: at its first message that is not gone.
//!
//! Worked out when somebody asks, and remembered until the message that it begins with goes too; so it costs nothing
//! while nobody asks. What makes messages gone only grows (see [`Cuts`]), so the begin never moves back. By its age a
//! message goes at most [`STEP`] late.
//!
//! | of a queue | its begin |
//! | --- | --- |
//! | nothing can be gone, and no segment was deleted | 0 |
//! | an entry is not gone | its first message, or the purged offset if that lies within |
//! | all is gone | its end |
//!
//! If its oldest entry is not gone, and its offset is not 0, then what was before it went with a deleted segment.
//! Without a deleted byte before it, or with damage behind those, it is damage, and the queue begins where it always
//! began.

use std::collections::HashMap;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use super::Shared;
use super::error::ReadError;
use super::read::May;
use super::topics::{Cuts, TopicHandle};
use crate::format::consume_queue::QueueEntry;
use crate::log::consume_queue::First;
use crate::log::paged::SealedError;
use crate::message::{PhysicalOffset, QueueId, QueueKey, QueueOffset, Timestamp};
use crate::sync::{Mutex, lock};

/// Ages are looked at in such steps, so that a queue of which something goes every millisecond is not searched as
/// often.
pub(super) const STEP_MS: u64 = 1_000;

const SHARDS: usize = 16;
/// Begins that a shard remembers; beyond, all of it is forgotten, and worked out again.
const REMEMBERED: usize = 8_192;

/// Where a queue begins, if that is known.
pub(super) enum Min {
    At(QueueOffset),
    /// Ask again where the disk may be read.
    NeedsDisk,
    /// A file has to be rebuilt first.
    Rebuilding {
        base: PhysicalOffset,
    },
}

/// The entry that a queue was found to begin with.
#[derive(Clone, Copy)]
struct Begin {
    min: QueueOffset,
    queue_end: QueueOffset,
    offset: PhysicalOffset,
    time: Timestamp,
}

impl Begin {
    fn of(entry: &QueueEntry) -> Self {
        let (min, queue_end) = (entry.queue_offset, entry.queue_end());
        Self { min, queue_end, offset: entry.offset, time: entry.store_time }
    }
}

/// The begins that were asked for lately.
pub(super) struct Begins {
    hasher: RandomState,
    shards: [Mutex<HashMap<QueueKey, Begin, RandomState>>; SHARDS],
}

impl Begins {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::default(), shards: Default::default() }
    }

    fn get(&self, key: QueueKey, cuts: &Cuts) -> Option<QueueOffset> {
        let begin = *lock(self.shard(key)?).get(&key)?;
        let is_gone = cuts.is_gone(begin.offset, begin.time, begin.queue_end);
        (!is_gone).then(|| begin.min.max(cuts.purged))
    }

    fn put(&self, key: QueueKey, begin: Begin) {
        let Some(shard) = self.shard(key) else { return };
        let mut shard = lock(shard);
        if shard.len() >= REMEMBERED && !shard.contains_key(&key) {
            shard.clear();
        }
        shard.insert(key, begin);
    }

    fn shard(&self, key: QueueKey) -> Option<&Mutex<HashMap<QueueKey, Begin, RandomState>>> {
        let hash = usize::try_from(self.hasher.hash_one(key) >> 32).unwrap_or_default();
        self.shards.get(hash % SHARDS)
    }
}

impl Shared {
    /// Where the queue begins.
    pub(super) fn queue_min(
        &self,
        topic: &TopicHandle,
        queue: QueueId,
        may: May,
    ) -> Result<Min, ReadError> {
        let key = QueueKey { topic: topic.id(), queue };
        let cuts = topic.cuts(queue, self.store_time());
        // What went with a deleted segment is gone, also while no cut says so any more.
        if cuts == Cuts::default() && self.deleted.list().is_empty() {
            return Ok(Min::At(QueueOffset::ZERO));
        }
        if let Some(min) = self.begins.get(key, &cuts) {
            return Ok(Min::At(min));
        }
        let mut is_alive =
            |entry: &QueueEntry| !cuts.is_gone(entry.offset, entry.store_time, entry.queue_end());
        let first = match (self.queues.first_hot(key, &mut is_alive), may) {
            (First::NeedsDisk, May::Memory) => return Ok(Min::NeedsDisk),
            (First::NeedsDisk, May::Disk) => self.first_on_disk(key, &mut is_alive)?,
            (found, _) => found,
        };
        Ok(match first {
            First::Entry { entry, is_oldest } => {
                let is_damage = is_oldest && !self.deleted_before(entry.offset);
                let min = if is_damage { QueueOffset::ZERO } else { entry.queue_offset };
                let min = min.max(cuts.purged);
                self.begins.put(key, Begin { min, ..Begin::of(&entry) });
                Min::At(min)
            }
            First::None { next } => Min::At(next),
            First::NeedsDisk => Min::NeedsDisk,
            First::Rebuilding { base } => Min::Rebuilding { base },
        })
    }

    /// All before this entry of the queue is gone, as a reader has found.
    pub(super) fn begins_at(&self, key: QueueKey, entry: &QueueEntry) {
        self.begins.put(key, Begin::of(entry));
    }

    /// The first entry of a queue for which a monotone rule holds. Blocks for the disk.
    pub(super) fn first_on_disk(
        &self,
        key: QueueKey,
        holds: &mut dyn FnMut(&QueueEntry) -> bool,
    ) -> Result<First, ReadError> {
        match self.queues.first(key, holds) {
            Ok(found) => Ok(found),
            // The file was marked missing by the look: it is made again.
            Err(SealedError::Damaged { base, .. }) => Ok(First::Rebuilding { base }),
            Err(SealedError::File(error)) => Err(error.into()),
        }
    }

    /// Whether what a queue had before its oldest entry, which is at `offset`, went with deleted segments. What is
    /// damaged between them and the entry may have held it as well.
    fn deleted_before(&self, offset: PhysicalOffset) -> bool {
        let deleted = self.deleted.list();
        let before = deleted.iter().rev().find(|range| range.start < offset);
        before
            .is_some_and(|range| range.end >= offset || !self.damage.overlaps(&(range.end..offset)))
    }

    /// The first readable offset of a queue that was stored at `time` or later; its end if there is none. Blocks for
    /// the disk.
    pub(super) fn offset_at(
        &self,
        topic: &TopicHandle,
        queue: QueueId,
        time: Timestamp,
    ) -> Result<QueueOffset, ReadError> {
        let range = self.bounds_on_disk(topic, queue)?;
        let key = QueueKey { topic: topic.id(), queue };
        let mut is_late = |entry: &QueueEntry| entry.store_time >= time;
        let first = match self.queues.first_hot(key, &mut is_late) {
            First::NeedsDisk => self.first_on_disk(key, &mut is_late)?,
            found => found,
        };
        match first {
            First::Entry { entry, .. } => Ok(entry.queue_offset.max(range.min).min(range.max)),
            First::None { .. } => Ok(range.max),
            First::NeedsDisk => Err(ReadError::Rebuilding),
            First::Rebuilding { base } => {
                self.want_rebuilt(base);
                Err(ReadError::Rebuilding)
            }
        }
    }

    /// The readable offsets of a queue. Blocks for the disk.
    pub(super) fn bounds_on_disk(
        &self,
        topic: &TopicHandle,
        queue: QueueId,
    ) -> Result<super::read::QueueRange, ReadError> {
        match self.queue_range(topic, queue, May::Disk)? {
            super::read::Bounds::Range(range) => Ok(range),
            super::read::Bounds::NeedsDisk => Err(ReadError::Rebuilding),
            super::read::Bounds::Rebuilding { base } => {
                self.want_rebuilt(base);
                Err(ReadError::Rebuilding)
            }
        }
    }
}
