//! Makes the next CommitLog segment before it is needed, so that a roll costs a swap: of a file that held a deleted
//! segment, if there is one (`spares.rs`), else of a new one.
//!
//! A new one is filled with zeros where that pays. It saves each sync the conversion of extents (60 to 170 µs, by the
//! disk) and costs the disk the segment's length once more (a second or more for a GiB): even at about 64 KiB a sync,
//! which the syncs since the last segment was made foretell. The segment is used when the one made before is full, so a
//! load that changes has what was right for the other one for two segments.

use std::time::Duration;

use super::error::SpaceError;
use super::signal::Progress;
use super::{Shared, StoreConfig};
use crate::file::disk::Disk;
use crate::file::segment::{Prefill, Segment};
use crate::file::{FileError, Operation};
use crate::format::identity::Identity;
use crate::format::names::FileKind;
use crate::format::segment_header::SegmentHeader;
use crate::message::{FlushMode, PhysicalOffset};
use crate::sync::{Arc, Ordering, lock};

/// After a failure the disk is asked again so often.
const RETRY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(3600);
/// Bytes of the log that a sync makes durable, from which on zeros cost more than they save.
const LARGE_GROUP: u64 = 64 << 10;

/// The state of the allocate worker.
pub struct AllocateWorker {
    shared: Arc<Shared>,
    /// Bytes that were written, and syncs, when the last segment was made.
    last: (u64, u64),
}

impl AllocateWorker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, last: (0, 0) }
    }

    /// Makes the next segment if there is none ready.
    pub fn step(&mut self) -> Progress {
        let shared = &self.shared;
        if shared.is_poisoned() {
            return Progress::Idle(IDLE);
        }
        let (base, written) = {
            // A roll takes the ready segment, ends the old one and lists the new one under this lock: a look in between
            // would find neither, and make a segment in the place of one that is about to be written.
            let tail = lock(&shared.tail);
            match (&*shared.ready.load(), shared.log.segments().last()) {
                (None, Some(active)) => (active.end(), tail.written()),
                _ => return Progress::Idle(IDLE),
            }
        };
        let syncs = shared.metrics.syncs.get();
        let prefill = prefill(shared.config.flush, written - self.last.0, syncs - self.last.1);
        let progress = match shared.next_segment(base, prefill) {
            Ok(segment) => {
                self.last = (written, syncs);
                *lock(&shared.no_space) = None;
                shared.ready.store(Some(Arc::new(segment)));
                Progress::Worked
            }
            Err(error) => {
                let reason = match error {
                    FileError::Full { .. } => SpaceError::Full,
                    _ => SpaceError::Refused,
                };
                let known = lock(&shared.no_space).replace(reason);
                if known != Some(reason) {
                    tracing::error!(%error, "the next segment cannot be made; appends wait for it");
                    // What is dead may make room.
                    shared.clean_asked.store(true, Ordering::Relaxed);
                    shared.clean_signal.wake();
                }
                Progress::Idle(RETRY)
            }
        };
        shared.space.notify_waiters();
        progress
    }
}

impl Shared {
    /// The segment at `base`, durable and empty.
    fn next_segment(&self, base: PhysicalOffset, prefill: Prefill) -> Result<Segment, FileError> {
        let (config, disk) = (&self.config, &*self.disk);
        if let Some(spare) = self.spares.take() {
            // Its room is taken already.
            if let Err(error) = keep_reserve(config, disk, 0) {
                self.spares.keep(vec![spare]);
                return Err(error);
            }
            let header = header_of(config, &self.identity, base);
            let dir = config.dir.join(FileKind::Segment.directory());
            match Segment::reuse(disk, &dir, spare, &header) {
                Ok(Some(segment)) => return Ok(segment),
                Ok(None) => {}
                // A disk that fails altogether says so below.
                Err(error) => tracing::warn!(%error, "a deleted segment's file is not used again"),
            }
        }
        keep_reserve(config, disk, config.segment_size)?;
        make_segment(config, &self.identity, disk, base, prefill)
    }
}

/// Refuses a segment that takes `more` bytes and would leave less than the reserve free.
fn keep_reserve(config: &StoreConfig, disk: &dyn Disk, more: u64) -> Result<(), FileError> {
    if config.disk_reserve == 0 || disk.free_space(&config.dir)? >= more + config.disk_reserve {
        return Ok(());
    }
    Err(FileError::Full { operation: Operation::Allocate, path: config.dir.clone() })
}

fn header_of(config: &StoreConfig, identity: &Identity, base: PhysicalOffset) -> SegmentHeader {
    let (store_id, salt) = (identity.store_id, identity.salt(base));
    SegmentHeader { store_id, base, len: config.segment_size, salt }
}

/// How a segment is made when so many bytes were written, and synced with so many syncs, since the last one.
fn prefill(mode: FlushMode, bytes: u64, syncs: u64) -> Prefill {
    match mode {
        FlushMode::Sync if bytes < LARGE_GROUP.saturating_mul(syncs.max(1)) => Prefill::Zeros,
        FlushMode::Sync | FlushMode::Async => Prefill::Blocks,
    }
}

/// The first segment of a log, at `base`, durable and empty.
pub(super) fn first_segment(
    config: &StoreConfig,
    identity: &Identity,
    disk: &dyn Disk,
    base: PhysicalOffset,
) -> Result<Segment, FileError> {
    make_segment(config, identity, disk, base, prefill(config.flush, 0, 0))
}

/// A new segment at `base`, durable and empty. What a failed attempt left under the temporary name is replaced.
fn make_segment(
    config: &StoreConfig,
    identity: &Identity,
    disk: &dyn Disk,
    base: PhysicalOffset,
    prefill: Prefill,
) -> Result<Segment, FileError> {
    let header = header_of(config, identity, base);
    let dir = config.dir.join(FileKind::Segment.directory());
    Segment::create(disk, &dir, &header, prefill)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_for_small_syncs_of_a_broker_that_syncs() {
        let zeros = |mode, bytes, syncs| prefill(mode, bytes, syncs) == Prefill::Zeros;
        // A start, and a log that nobody waits for.
        assert!(zeros(FlushMode::Sync, 300, 0));
        assert!(!zeros(FlushMode::Sync, 64 << 20, 0));
        assert!(zeros(FlushMode::Sync, (64 << 20) - 1, 1_024));
        assert!(!zeros(FlushMode::Sync, 64 << 20, 1_024));
        assert!(!zeros(FlushMode::Async, 300, 0) && !zeros(FlushMode::Async, 1_000, 1_000));
    }
}
