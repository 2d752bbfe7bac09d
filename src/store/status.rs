//! The store as an operator sees it, and what it counts for that.

use std::ops::Range;
use std::time::Duration;

use super::Store;
use crate::message::{PhysicalOffset, Timestamp, TopicId};
use crate::sync::{AtomicU64, Ordering, lock};

/// Counts what has no other trace.
#[derive(Debug, Default)]
pub(crate) struct StoreMetrics {
    pub(crate) syncs: Counter,
    pub(crate) damaged_reads: Counter,
    pub(crate) damage_found: Counter,
    pub(crate) scrubbed_bytes: Counter,
    pub(crate) scrub_passes: Counter,
    /// Wall time of the last complete pass of the scrub, 0 before the first. Relaxed: it orders nothing.
    pub(crate) scrubbed_at: AtomicU64,
    pub(crate) rebuilt: Counter,
    pub(crate) deleted_segments: Counter,
    pub(crate) deleted_bytes: Counter,
    /// Segments that were deleted with open messages in them.
    pub(crate) unfinished_deleted: Counter,
    pub(crate) images: Counter,
    pub(crate) image_bytes: Counter,
}

/// A number that only grows. Relaxed: it orders nothing.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The store as an operator sees it.
#[derive(Clone, Debug)]
pub struct StoreStatus {
    /// CommitLog segments.
    pub segments: usize,
    /// Those whose entries are in memory, the active one included.
    pub unsealed: usize,
    /// Bytes that may still be written to the file system; 0 if it does not say.
    pub disk_free: u64,
    /// Byte ranges of the log that cannot be read, as far as the start, reads and the scrub have met them.
    pub damaged: Vec<Range<PhysicalOffset>>,
    /// Of this store.
    pub store_id: [u8; 16],
    /// Memory of the entries of unsealed segments and of queue positions, in bytes.
    pub entry_memory: u64,
    /// Successful syncs of the log since open.
    pub syncs: u64,
    /// Reads that met damage since open.
    pub damaged_reads: u64,
    /// Queue and index files made again since open.
    pub rebuilt: u64,
    /// Segments deleted since open.
    pub deleted_segments: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Segments that stay beyond retention, as a message in them was delivered and is not finished.
    pub unfinished: Unfinished,
    /// Segments deleted since open though there was one: there were too many of them, or no space.
    pub unfinished_deleted: u64,
    /// State images taken since open.
    pub images: u64,
    /// Their bytes.
    pub image_bytes: u64,
    /// Where the newest durable state image begins.
    pub newest_image: Option<PhysicalOffset>,
    /// Which topics keep sealed segments, most segments first; a segment counts for the one that keeps it for longest.
    pub held: Vec<HeldBy>,
    /// Segments that work under way keeps from being deleted.
    pub pinned_segments: usize,
    /// Files of deleted segments that are kept to become the next ones: each takes the bytes of one.
    pub spare_segments: usize,
    /// Less is free than `disk_reserve`: sends are refused.
    pub disk_is_short: bool,
    /// How far wall time is behind the store clock, which stands still until it has caught up: somebody turned the
    /// machine's clock back.
    pub clock_behind: Duration,
    /// Damaged ranges of the log that were met since open and were not known before.
    pub damage_found: u64,
    /// Bytes that the scrub has read since open.
    pub scrubbed_bytes: u64,
    /// Passes over all finished segments that the scrub has completed since open.
    pub scrub_passes: u64,
    /// When the last of them ended, by the machine's clock.
    pub scrubbed_at: Option<Timestamp>,
}

/// How much of the log stays for messages that were delivered and are not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Sealed segments in which nothing else is alive.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How much of the log a topic keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBy {
    /// Its incarnation.
    pub topic: TopicId,
    /// Sealed segments that stay for it.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Facts for operators.
    pub fn status(&self) -> StoreStatus {
        let shared = &self.shared;
        let segments = shared.log.segments();
        let sealed = shared.marks.sealed.get();
        StoreStatus {
            segments: segments.len(),
            unsealed: segments.iter().filter(|segment| segment.base() >= sealed).count(),
            disk_free: shared.disk.free_space(&shared.config.dir).unwrap_or_default(),
            damaged: Vec::clone(&shared.damage.ranges()),
            store_id: shared.identity.store_id,
            entry_memory: shared.queues.memory_bytes() + shared.indexes.memory_bytes(),
            syncs: shared.metrics.syncs.get(),
            damaged_reads: shared.metrics.damaged_reads.get(),
            rebuilt: shared.metrics.rebuilt.get(),
            deleted_segments: shared.metrics.deleted_segments.get(),
            deleted_bytes: shared.metrics.deleted_bytes.get(),
            unfinished: *lock(&shared.unfinished),
            unfinished_deleted: shared.metrics.unfinished_deleted.get(),
            images: shared.metrics.images.get(),
            image_bytes: shared.metrics.image_bytes.get(),
            newest_image: shared.newest_image(),
            held: lock(&shared.held).clone(),
            pinned_segments: shared.pins.count(),
            spare_segments: shared.spares.count(),
            disk_is_short: shared.disk_is_short.load(Ordering::Relaxed),
            clock_behind: shared.store_clock.ahead_of(shared.clock.now()),
            damage_found: shared.metrics.damage_found.get(),
            scrubbed_bytes: shared.metrics.scrubbed_bytes.get(),
            scrub_passes: shared.metrics.scrub_passes.get(),
            scrubbed_at: match shared.metrics.scrubbed_at.load(Ordering::Relaxed) {
                0 => None,
                at => Some(Timestamp::new(at)),
            },
        }
    }
}
