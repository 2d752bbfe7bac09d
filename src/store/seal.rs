//! Turns the entries of a finished segment into its `.cq` and `.idx` files, takes snapshots, and rebuilds files that
//! are missing or damaged.
//!
//! | step | waits for | then |
//! | --- | --- | --- |
//! | seal | the segment is dispatched and flushed to its end | write aside, sync, rename; `sealed` moves |
//! | snapshot | `flushed` has passed all that is in it | write aside, sync, rename; older ones go |
//! | rebuild | nothing else to do; what a read asked for comes first | walk the segment, write as above |
//!
//! All of it is derived from the log: an error costs time at the next start, or keeps entries in memory longer, and is
//! tried again.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Shared;
use super::dispatch::derive;
use super::image;
use super::signal::Progress;
use crate::file::FileError;
use crate::file::disk::write_file_atomically;
use crate::file::segment::Segment;
use crate::format::names::FileKind;
use crate::format::segment_header::PAGE_LEN;
use crate::format::snapshot::Snapshot;
use crate::log::consume_queue::QueuePart;
use crate::log::index::IndexPart;
use crate::log::walk::{SegmentWalk, Step};
use crate::message::PhysicalOffset;
use crate::sync::{Arc, Ordering, lock};

/// How many snapshots are kept: the newest, and one to fall back to.
const SNAPSHOTS_KEPT: usize = 2;
/// After an error the disk is asked again so often.
const RETRY: Duration = Duration::from_secs(1);
/// A prepared snapshot waits for the next flush, which nobody may ask for.
const AWAIT_FLUSH: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_secs(3600);
/// A segment that the disk does not give whole is walked so often before its files are made without the rest: what they
/// lack stays lacking when the disk is well again.
const REBUILD_ATTEMPTS: u32 = 60;

/// The bytes of a snapshot.
struct Prepared {
    reach: PhysicalOffset,
    bytes: Vec<u8>,
}

impl From<Snapshot> for Prepared {
    fn from(snapshot: Snapshot) -> Self {
        Self { reach: snapshot.reach, bytes: snapshot.encode() }
    }
}

/// The state of the seal worker.
pub struct SealWorker {
    shared: Arc<Shared>,
    /// Taken, but some of what it contains is not flushed yet.
    prepared: Option<Prepared>,
    /// Rebuilds in a row to which the disk refused a part of the log.
    refused: u32,
}

impl SealWorker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, prepared: None, refused: 0 }
    }

    /// Seals, writes a snapshot or rebuilds: the first that can be done.
    pub fn step(&mut self) -> Progress {
        if self.shared.is_poisoned() {
            return Progress::Idle(IDLE);
        }
        match self.try_step() {
            Ok(progress) => progress,
            Err(error) => {
                tracing::warn!(%error, "sealing or rebuilding failed; it is tried again");
                Progress::Idle(RETRY)
            }
        }
    }

    fn try_step(&mut self) -> Result<Progress, FileError> {
        if let Some(segment) = self.shared.sealable() {
            self.shared.seal(&segment)?;
            // One at a time: they may be large.
            self.prepared = None;
            self.prepared = Some(self.shared.take_snapshot().into());
            return Ok(Progress::Worked);
        }
        let mut refused = Ok(Progress::Idle(IDLE));
        if let Some(snapshot) = &self.prepared {
            if self.shared.marks.flushed.get() < snapshot.reach {
                return Ok(Progress::Idle(AWAIT_FLUSH));
            }
            match self.shared.write_snapshot(snapshot) {
                Ok(()) => {
                    self.prepared = None;
                    self.shared.remove_old_snapshots()?;
                    return Ok(Progress::Worked);
                }
                // It is tried again; meanwhile what is missing has its turn.
                Err(error) => refused = Err(error),
            }
        }
        let missing = self.shared.missing();
        if let Some(base) = missing {
            self.refused += 1;
            self.shared.rebuild(base, self.refused >= REBUILD_ATTEMPTS)?;
            self.refused = 0;
            if self.shared.unmade().is_empty() {
                // How many bytes they hold of which topic is known again.
                self.shared.clean_asked.store(true, Ordering::Relaxed);
                self.shared.clean_signal.wake();
            }
            return Ok(Progress::Worked);
        }
        refused
    }

    /// Takes and writes a snapshot of all there is. For a clean stop: everything is flushed and dispatched.
    pub fn snapshot_now(&mut self) {
        self.prepared = None;
        let snapshot = Prepared::from(self.shared.take_snapshot());
        if self.shared.marks.flushed.get() < snapshot.reach {
            return;
        }
        let written = self.shared.write_snapshot(&snapshot);
        if let Err(error) = written.and_then(|()| self.shared.remove_old_snapshots()) {
            tracing::warn!(%error, "snapshot not written; the next start replays more");
        }
    }
}

impl Shared {
    /// The next segment to seal, if it is whole and durable.
    fn sealable(&self) -> Option<Arc<Segment>> {
        let sealed = self.marks.sealed.get();
        // Not by its base: a segment may be gone, or shorter than it was.
        let segment = self.log.segments().iter().find(|s| s.end() > sealed).map(Arc::clone)?;
        let whole = self.marks.dispatched.get() > segment.end();
        (whole && self.marks.flushed.get() >= segment.end()).then_some(segment)
    }

    /// Whether another segment may be finished: at most two are finished and not sealed.
    pub(super) fn may_roll(&self) -> bool {
        let sealed = self.marks.sealed.get();
        let unsealed = self.log.segments().iter().filter(|s| s.base() >= sealed).count();
        unsealed <= super::MAX_UNSEALED
    }

    fn seal(&self, segment: &Segment) -> Result<(), FileError> {
        let (base, end) = (segment.base(), segment.end());
        self.queues.seal(base, end)?;
        self.indexes.seal(base, end)?;
        self.marks.sealed.advance(end);
        self.space.notify_waiters();
        self.flush_signal.wake();
        self.clean_signal.wake();
        Ok(())
    }

    /// What a start needs beside the unsealed segments. Positions are copied a shard at a time, also while a step of
    /// the dispatcher is under way, and topics come and go beside it: all that can be in it, or was left out because of
    /// it, was appended before `reach` is looked at, last of all. Replay from `offset` meets some of it again, which
    /// changes nothing.
    pub(super) fn take_snapshot(&self) -> Snapshot {
        let state = self.applier.snapshot(&self.topics);
        let sealed = self.marks.sealed.get();
        let deleted = {
            let _recording = lock(&self.recording_deletions);
            self.deleted.list().to_vec()
        };
        let mut queues = self.queues.positions();
        queues.sort_unstable_by_key(|position| position.key);
        // In place, and once for each topic: there may be a million queues.
        let deleted_topics: Vec<_> = queues
            .chunk_by(|a, b| a.key.topic == b.key.topic)
            .filter_map(|queues| queues.first().map(|position| position.key.topic))
            .filter(|topic| self.topics.get(*topic).is_none())
            .collect();
        queues.retain(|position| deleted_topics.binary_search(&position.key.topic).is_err());
        // Behind damage a topic may be unknown without being deleted: then what is known of its queues stays.
        if self.damage.is_empty() {
            self.queues.remove_topics(&deleted_topics);
        }
        let lost = self.lost.list().to_vec();
        let reach = self.marks.appended.get();
        Snapshot {
            offset: sealed,
            epoch: self.epoch,
            applied: state.applied,
            reach,
            store_clock: self.store_clock.last(),
            deleted,
            lost,
            state: state.state,
            queues,
        }
    }

    fn write_snapshot(&self, snapshot: &Prepared) -> Result<(), FileError> {
        if let Err(error) = image::check_len(snapshot.bytes.len() as u64) {
            // The ones before it stay: a start reads them, and replays more.
            tracing::error!(%error, "the state is too large for a snapshot");
            return Ok(());
        }
        let dir = self.config.dir.join(FileKind::Snapshot.directory());
        let name = FileKind::Snapshot.name(snapshot.reach);
        write_file_atomically(&*self.disk, &dir, &name, &snapshot.bytes)
    }

    fn remove_old_snapshots(&self) -> Result<(), FileError> {
        let dir = self.config.dir.join(FileKind::Snapshot.directory());
        let mut kept: Vec<_> = self
            .disk
            .list(&dir)?
            .into_iter()
            .filter(|entry| FileKind::Snapshot.parse(&entry.name).is_some())
            .collect();
        let surplus = kept.len().saturating_sub(SNAPSHOTS_KEPT);
        for old in kept.drain(..surplus) {
            self.disk.unlink(&dir.join(&old.name))?;
        }
        Ok(())
    }

    /// A segment whose `.cq` or `.idx` has to be made again; what a read asked for first.
    fn missing(&self) -> Option<PhysicalOffset> {
        let wanted = lock(&self.wanted).take();
        let missing = self.unmade();
        wanted.filter(|base| missing.contains(base)).or_else(|| missing.first().copied())
    }

    /// The segments whose `.cq` or `.idx` has to be made again and can be, by base.
    pub(super) fn unmade(&self) -> BTreeSet<PhysicalOffset> {
        let missing = self.queues.missing().into_iter().chain(self.indexes.missing());
        let given_up = lock(&self.given_up);
        missing.map(|(base, _)| base).filter(|base| !given_up.contains(base)).collect()
    }

    /// Asks for the files of the segment at `base` before others.
    pub(super) fn want_rebuilt(&self, base: PhysicalOffset) {
        *lock(&self.wanted) = Some(base);
        self.seal_signal.wake();
    }

    /// Walks a sealed segment and writes both of its files anew. `in_part`: also if the disk refuses some of it.
    fn rebuild(&self, base: PhysicalOffset, in_part: bool) -> Result<(), FileError> {
        // A file that is made for a segment that goes meanwhile would stay behind.
        let pin = self.pins.pin(base);
        let Some(segment) = pin.as_ref().and_then(|_| self.log.segment_at(base)) else {
            // The segment itself is gone: nothing to rebuild from.
            lock(&self.given_up).push(base);
            return Ok(());
        };
        let (queues, index, refusal) = self.parts_of(&segment)?;
        match refusal {
            Some(error) if !in_part => return Err(error),
            Some(error) => tracing::error!(%error, "rebuilt without what cannot be read"),
            None => {}
        }
        self.queues.rebuilt(base, segment.end(), &queues)?;
        self.indexes.rebuilt(base, segment.end(), &index)?;
        self.metrics.rebuilt.increment();
        tracing::info!(segment = base.get(), "queue and index files rebuilt");
        Ok(())
    }

    /// The entries of a segment, and why some may be missing.
    fn parts_of(
        &self,
        segment: &Arc<Segment>,
    ) -> Result<(QueuePart, IndexPart, Option<FileError>), FileError> {
        let base = segment.base();
        let (queues, index) = (QueuePart::new(base), IndexPart::new(base));
        let mut hashes = Vec::new();
        let from = base.plus(PAGE_LEN as u64);
        let mut walk = SegmentWalk::new(Arc::clone(segment), self.log.salt(segment), from);
        loop {
            let at = walk.at();
            match walk.step()? {
                Step::End => return Ok((queues, index, walk.take_refusal())),
                // A finished segment ends with a filler, or without room for one.
                // What an operator gave up is not missed.
                Step::Gap { end, .. } => {
                    if !self.lost.covers(&(at..end)) {
                        index.mark_lacking();
                    }
                    if end >= segment.end() {
                        return Ok((queues, index, walk.take_refusal()));
                    }
                }
                Step::Record { header, body } => {
                    let body = body.is_ok().then(|| walk.body(&header));
                    if body.is_none() && !self.lost.covers(&(at..header.end())) {
                        index.mark_lacking();
                    }
                    if let Some(derived) = derive(self.index_seed, &header, body, &mut hashes) {
                        for hash in derived.hashes {
                            index.put(*hash, header.physical_offset);
                        }
                        queues.put(derived.key, &derived.entry);
                    }
                }
            }
        }
    }

    /// Removes what an interrupted write left behind.
    pub(super) fn remove_temporaries(&self) -> Result<(), FileError> {
        for kind in FileKind::ALL {
            let dir = self.config.dir.join(kind.directory());
            for entry in self.disk.list(&dir)? {
                if crate::format::names::parse_temporary(&entry.name).is_some() {
                    self.disk.unlink(&dir.join(&entry.name))?;
                }
            }
        }
        Ok(())
    }
}
