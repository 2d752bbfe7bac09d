//! Makes the log durable. One worker, no mode.
//!
//! While anybody waits for durability it syncs all that is appended, publishes `flushed`, releases whom that reaches,
//! and starts again: what came meanwhile is the next group. Else it syncs every `flush_interval` or `flush_bytes`.
//!
//! `flushed` moves only by a sync that returned success. A failed sync is final: the store is poisoned, who waits is
//! told that nobody knows, and the process ends.
//!
//! It also writes the checkpoint: when a segment was finished or sealed, and when nothing was appended for
//! [`CHECKPOINT_IDLE`] after a sync, so that an acknowledged burst is vouched for.

use std::time::Duration;

use super::Shared;
use super::checkpoint::CheckpointFile;
use super::signal::Progress;
use crate::file::segment::Segment;
use crate::log::commit_log::CommitLog;
use crate::message::PhysicalOffset;
use crate::sync::{Arc, Ordering, fence};

/// A sync without a successor for so long is recorded in the checkpoint.
const CHECKPOINT_IDLE: Duration = Duration::from_millis(50);
/// How long the worker sleeps when nothing is appended.
const IDLE: Duration = Duration::from_secs(1);

/// The segments with bytes between both. No others are held while the disk works: one that is deleted meanwhile is in
/// nobody's use, and becomes the next (`spares.rs`).
pub(super) fn unsynced(
    log: &CommitLog,
    flushed: PhysicalOffset,
    target: PhysicalOffset,
) -> Vec<Arc<Segment>> {
    let is_unsynced = |segment: &&Arc<Segment>| segment.end() > flushed && segment.base() < target;
    log.segments().iter().filter(is_unsynced).map(Arc::clone).collect()
}

/// The state of the flush worker.
pub struct FlushWorker {
    shared: Arc<Shared>,
    checkpoint: CheckpointFile,
    /// When the oldest unflushed byte was first seen, on the process clock.
    unflushed_since: Option<Duration>,
    last_sync: Duration,
    /// What the newest checkpoint says.
    recorded: (PhysicalOffset, PhysicalOffset, Option<PhysicalOffset>),
}

impl FlushWorker {
    pub(super) fn new(shared: Arc<Shared>, checkpoint: CheckpointFile) -> Self {
        let recorded = (PhysicalOffset::ZERO, PhysicalOffset::ZERO, None);
        Self { shared, checkpoint, unflushed_since: None, last_sync: Duration::ZERO, recorded }
    }

    /// Syncs if that is due, else records a checkpoint if that is due.
    pub fn step(&mut self) -> Progress {
        let shared = Arc::clone(&self.shared);
        if shared.is_poisoned() {
            return Progress::Idle(IDLE);
        }
        let now = shared.clock.elapsed();
        let (flushed, appended) = (shared.marks.flushed.get(), shared.marks.appended.get());
        if appended == flushed {
            self.unflushed_since = None;
            let progress = self.checkpoint_if_due(now);
            // The next append ends the sleep, so that the flush interval counts from it. Said first, looked at then.
            shared.flush_is_idle.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let is_idle = shared.marks.appended.get() == appended;
            return if is_idle { progress } else { Progress::Worked };
        }
        let since = *self.unflushed_since.get_or_insert(now);
        let waited = now.saturating_sub(since);
        let due = !shared.flush_waiters.is_empty()
            || appended.since(flushed) >= shared.config.flush_bytes
            || waited >= shared.config.flush_interval;
        if !due {
            return Progress::Idle(shared.config.flush_interval - waited);
        }
        self.sync(flushed, appended);
        Progress::Worked
    }

    /// Syncs all that is appended now, waiters or not. For a clean stop.
    pub fn flush_all(&mut self) {
        let (flushed, appended) =
            (self.shared.marks.flushed.get(), self.shared.marks.appended.get());
        if flushed < appended && !self.shared.is_poisoned() {
            self.sync(flushed, appended);
        }
    }

    fn sync(&mut self, flushed: PhysicalOffset, target: PhysicalOffset) {
        let shared = Arc::clone(&self.shared);
        for segment in unsynced(&shared.log, flushed, target) {
            if let Err(error) = segment.sync() {
                shared.poison(&format!("sync of the log at {flushed}: {error}"));
                return;
            }
        }
        shared.marks.flushed.advance(target);
        shared.metrics.syncs.increment();
        shared.flush_waiters.release(target);
        shared.wake_flushed_arrivals(target);
        shared.space.notify_waiters();
        self.unflushed_since = None;
        self.last_sync = shared.clock.elapsed();
        let recorded_segment = shared.log.segment_at(self.recorded.0).map(|s| s.base());
        if recorded_segment != shared.log.segment_at(target).map(|s| s.base()) {
            // A roll: the seal worker can go on, and the finished segment is vouched for.
            shared.seal_signal.wake();
            self.record(false);
        }
    }

    fn checkpoint_if_due(&mut self, now: Duration) -> Progress {
        let current = self.current();
        if current == self.recorded {
            return Progress::Idle(IDLE);
        }
        let idle = now.saturating_sub(self.last_sync);
        let is_only_flushed = (current.1, current.2) == (self.recorded.1, self.recorded.2);
        if idle < CHECKPOINT_IDLE && is_only_flushed {
            return Progress::Idle(CHECKPOINT_IDLE - idle);
        }
        self.record(false);
        Progress::Worked
    }

    /// What a checkpoint would say now. The image before the flushed position: an image counts once it is flushed.
    fn current(&self) -> (PhysicalOffset, PhysicalOffset, Option<PhysicalOffset>) {
        let (marks, image) = (&self.shared.marks, self.shared.newest_image());
        (marks.flushed.get(), marks.sealed.get(), image)
    }

    /// Writes the checkpoint. `clean`: nothing comes after it in this process.
    pub fn record(&mut self, clean: bool) {
        self.recorded = self.current();
        let (flushed, sealed, image) = self.recorded;
        let epoch = self.shared.epoch;
        if let Err(error) = self.checkpoint.write(flushed, epoch, sealed, image, clean) {
            // Derived: the log is as safe without it, only the next start has less to go by.
            tracing::warn!(%error, "checkpoint not written");
        }
    }
}
