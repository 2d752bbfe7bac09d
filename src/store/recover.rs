//! From what is found in the data directory to a log that can be appended to.
//!
//! The CommitLog is the truth; queues, index and state are brought to it, never the other way round. The walk reads
//! with `pread` after the unsealed segments were synced and their cached pages dropped, so that what is served later
//! is really on the disk.
//!
//! `durable` is the highest of the checkpoint's flushed position and of every durable claim in a sound header. At an
//! invalid record at X:
//!
//! | found | X < durable | X >= durable |
//! | --- | --- | --- |
//! | header sound, body not | damage: the entry stays, marked | torn: cut at X |
//! | no sound header, a later record at Y | damage up to Y, or up to `durable` if that is first, then cut | torn: cut at X |
//! | no sound header to the end | damage up to `durable`, the tail is there | torn, or the clean end if the zeros of an append are there |
//! | a record of a lower epoch than before | as no sound header | stale: as no sound header |
//! | an append set that does not end | kept | cut at its first record |
//! | the disk does not give the bytes | damage | the start is refused: they may be sound |
//! | a sound header of an unknown kind or version | the start is refused | the start is refused |
//!
//! Whether a claim of a *later* record lies beyond X is found by reading on to the end before anything is cut. A cut
//! copies what it removes to `quarantine/` (bounded), writes zeros over it, removes later segments and syncs. Each of
//! these writes may be the last before the power goes: the next start finds the same table.
//!
//! Behind the tail there may be anything. The file may have been another segment before, whose bytes are still there;
//! after a power cut each page behind the last sync is old, new or a mixture. All that counts is what verifies there:
//!
//! - A header says its own physical offset. What an earlier segment left in a file says lower ones: a file gets a
//!   higher base with each use, as its segment is deleted only when the log is durable beyond it. So none of it
//!   verifies, whatever its salt, nor does a copy of it in a message. A header that a sender guesses needs the salt of
//!   a segment that is not begun: 32 bits.
//! - What an earlier life of the same segment left says an epoch that is lower than that of the record which begins
//!   this life, and which is durable before any other: stale. And a cut ends behind the last sound header there is, so
//!   none is left behind a new tail.
//!
//! Every append writes a header's length of zeros behind it and fills their page with them, in the same write. Zeros
//! at X up to there, with no sound header behind them in the segment, are the end that an append left. Anything else
//! is told as torn, to where something verifies; where nothing does, to the first page of zeros, or at most 64 KiB:
//! nobody knows how much of it was written last. Messages in later segments are counted as lost either way. One loss
//! is silent: of a last record that was not durable, the whole pages that its header is in did not land, and nothing
//! behind it verifies, in this segment and later ones. Then all looks as if it had not been sent.

mod find;
mod report;
mod tail;
mod take;

use std::ops::Range;
use std::path::Path;

use self::find::{
    found_segments, load_identity, newest_snapshot, open_segments, set_aside, start_state,
};
pub use self::report::{ReportLine, StartReport, TailCut};
use self::take::HeldRecord;
use super::Applier;
use super::StoreConfig;
use super::append::NewRecord;
use super::checkpoint::CheckpointFile;
use super::error::OpenError;
use super::ranges::Ranges;
use super::topics::Topics;
use crate::file::FileError;
use crate::file::disk::Disk;
use crate::file::segment::Segment;
use crate::format::DecodeError;
use crate::format::FORMAT_VERSION;
use crate::format::checkpoint::Checkpoint;
use crate::format::epoch::{Cut, EpochRecord, MAX_DAMAGED};
use crate::format::identity::Identity;
use crate::format::names::{self, FileKind};
use crate::format::record::HEADER_LEN;
use crate::format::segment_header::PAGE_LEN;
use crate::format::snapshot::Snapshot;
use crate::format::state_record::Transition;
use crate::log::commit_log::CommitLog;
use crate::log::consume_queue::ConsumeQueues;
use crate::log::index::Indexes;
use crate::log::walk::{SegmentWalk, Step, mark_end};
use crate::message::{Epoch, PhysicalOffset, Timestamp, TopicId};
use crate::sync::Arc;

/// Of what a cut removes, so much is kept aside.
const QUARANTINE_BYTES: usize = 16 << 20;
/// The rest of the last segment is looked at and zeroed in pieces of so many bytes.
const CLEAR_PIECE: usize = 1 << 20;
/// Of what is cut and does not verify, at most so many bytes are taken for written: more than an epoch record.
const TORN_LOOK: u64 = 64 << 10;
/// No snapshot and no state image is written or read beyond this: above what the limits of the broker's state come to.
pub(crate) const MAX_SNAPSHOT: u64 = 5 << 30;

/// What recovery hands to the store.
pub(super) struct Recovered {
    pub(super) identity: Arc<Identity>,
    pub(super) log: CommitLog,
    pub(super) queues: ConsumeQueues,
    pub(super) indexes: Indexes,
    /// The end of the log, in the last segment.
    pub(super) tail: PhysicalOffset,
    /// An empty segment behind the last one, made ahead before.
    pub(super) ready: Option<Arc<Segment>>,
    pub(super) sealed: PhysicalOffset,
    pub(super) epoch: Epoch,
    pub(super) store_clock: Timestamp,
    /// Of the first record in the last segment.
    pub(super) first_time: Option<Timestamp>,
    /// Bytes that the entries of the last segment occupy in memory, as the append lock counts them.
    pub(super) entry_bytes: u64,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) deleted: Ranges,
    pub(super) lost: Ranges,
    /// Where the newest state image begins that is known to be whole and durable.
    pub(super) newest_image: Option<PhysicalOffset>,
    pub(super) report: StartReport,
}

/// Makes the data directory and its subdirectories if they are missing.
pub(super) fn make_directories(disk: &dyn Disk, dir: &Path) -> Result<(), OpenError> {
    disk.create_dir(dir).map_err(|error| match error {
        FileError::NotFound { .. } => OpenError::NoParent { path: dir.to_owned() },
        other => other.into(),
    })
}

/// Brings the store in `config.dir` to a state that can be appended to. The directory is locked by the caller.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    config: &StoreConfig,
    topics: &Topics,
    applier: &dyn Applier,
) -> Result<Recovered, OpenError> {
    for kind in FileKind::ALL {
        disk.create_dir(&config.dir.join(kind.directory()))?;
    }
    disk.create_dir(&config.dir.join(names::QUARANTINE_DIR))?;
    let mut report = StartReport::default();
    let found = found_segments(&**disk, config)?;
    let identity = Arc::new(load_identity(&**disk, config, found.is_empty(), &mut report)?);
    let segments = open_segments(&**disk, &found, &identity, &mut report)?;
    report.segments = segments.len();
    // A store that is made now has none: what lies there is of another one.
    let checkpoint = match report.created {
        true => None,
        false => CheckpointFile::read(&**disk, &config.dir)?,
    };
    report.clean = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.clean);
    // What the checkpoint vouches for was there, if it is gone now too.
    let log_end = segments
        .last()
        .map(|segment| segment.end())
        .max(checkpoint.as_ref().map(|checkpoint| checkpoint.flushed))
        .unwrap_or_default();
    let mut void = Vec::new();
    let snapshot = newest_snapshot(&**disk, config, log_end, &mut report, &mut void)?;

    let queues = ConsumeQueues::new(
        Arc::clone(disk),
        config.dir.join(FileKind::ConsumeQueue.directory()),
        identity.store_id,
    );
    let indexes = Indexes::new(
        Arc::clone(disk),
        config.dir.join(FileKind::Index.directory()),
        identity.store_id,
    );
    let log = CommitLog::new(segments, Arc::clone(&identity));
    let (snapshot, newest_image) = start_state(&log, snapshot, checkpoint.as_ref(), &mut report)?;
    let mut recovery = Recovery {
        config,
        topics,
        applier,
        seed: identity.index_seed(),
        queues: &queues,
        indexes: &indexes,
        log: &log,
        // A snapshot gets its name only when all in it is flushed.
        durable: checkpoint
            .as_ref()
            .map_or(PhysicalOffset::ZERO, |c| c.flushed)
            .max(snapshot.as_ref().map_or(PhysicalOffset::ZERO, |s| s.reach)),
        claims_read: false,
        clean_end: checkpoint.as_ref().filter(|c| c.clean).map(|c| c.flushed),
        epoch: checkpoint.as_ref().map_or(Epoch::ZERO, |c| c.epoch),
        store_clock: Timestamp::ZERO,
        set: Vec::new(),
        hashes: Vec::new(),
        unsealed_from: PhysicalOffset::ZERO,
        first_time: None,
        entry_bytes: 0,
        epoch_walked: Epoch::ZERO,
        newest_topic: TopicId::ZERO,
        empty: Vec::new(),
        deleted: Ranges::default(),
        lost: Ranges::default(),
        missing: Vec::new(),
        report: &mut report,
    };
    let sealed = recovery.adopt_sealed(checkpoint.as_ref(), snapshot.as_ref())?;
    let start = recovery.restore(snapshot, sealed)?;
    recovery.sync_unsealed()?;
    let end = recovery.walk(start)?;
    let (epoch, store_clock) = (recovery.epoch, recovery.store_clock);
    let (first_time, entry_bytes) = (recovery.first_time, recovery.entry_bytes);
    let mut newest_topic = recovery.newest_topic;
    recovery.settle_damage();
    let (tail, ready) = recovery.settle_tail(&**disk, end)?;
    // Where it ends is not known here.
    let newest_image = newest_image
        .filter(|begin| recovery.report.damaged.iter().all(|range| range.end <= *begin));
    let (deleted, lost) = (recovery.deleted, recovery.lost);
    // Only now: a start that is refused changes as little as it can.
    set_aside(&**disk, config, &void, &mut report)?;
    for position in queues.positions() {
        newest_topic = newest_topic.max(position.key.topic);
        topics.restore_next(position.key.topic, position.key.queue, position.next);
    }
    if newest_topic > TopicId::ZERO && topics.get(newest_topic).is_none() {
        // The record that made it may be damaged. Its messages are there, so its id is not given again.
        let mut payload = Vec::new();
        let next = TopicId::new(newest_topic.get().saturating_add(1));
        Transition::NextTopicId { next }.encode_into(&mut payload);
        let applied = applier.apply(topics, &payload, tail);
        applied.map_err(|source| OpenError::State { at: tail, source })?;
    }
    Ok(Recovered {
        identity,
        log,
        queues,
        indexes,
        tail,
        ready,
        sealed,
        epoch: Epoch::new(epoch.get() + 1),
        store_clock,
        first_time,
        entry_bytes,
        checkpoint,
        deleted,
        lost,
        newest_image,
        report,
    })
}

/// The record that begins the epoch of this start, and says what the start found.
pub(super) fn epoch_record(report: &StartReport, store_clock: Timestamp) -> NewRecord {
    let record = EpochRecord {
        epoch: report.epoch,
        store_clock,
        format_version: FORMAT_VERSION,
        cut: report.cut.as_ref().map(|cut| Cut { at: cut.at, len: cut.len }),
        damaged_count: report.damaged.len() as u64,
        damaged: report.damaged.iter().take(MAX_DAMAGED).cloned().collect(),
        lost: report.lost.clone(),
    };
    NewRecord::epoch(record.encode())
}

/// Where the walk came to.
struct WalkEnd {
    tail: PhysicalOffset,
    /// Why the bytes behind are not part of the log, if there are any.
    reason: Option<DecodeError>,
    /// It is as an append left it: zeros up to `mark_end` follow, and no sound header in this segment.
    is_marked: bool,
}

struct Recovery<'a> {
    config: &'a StoreConfig,
    topics: &'a Topics,
    applier: &'a dyn Applier,
    seed: u64,
    queues: &'a ConsumeQueues,
    indexes: &'a Indexes,
    log: &'a CommitLog,
    /// All below was durable once.
    durable: PhysicalOffset,
    /// Where the last clean stop left the end of the log, if that was the last stop.
    clean_end: Option<PhysicalOffset>,
    /// Whether the claims of all later records are in `durable`.
    claims_read: bool,
    epoch: Epoch,
    store_clock: Timestamp,
    set: Vec<HeldRecord>,
    hashes: Vec<u64>,
    /// Segments from here on have their entries in memory.
    unsealed_from: PhysicalOffset,
    first_time: Option<Timestamp>,
    entry_bytes: u64,
    /// The highest epoch of a walked record: a lower one behind it is left from an earlier life of its bytes.
    epoch_walked: Epoch,
    /// The highest id of a topic that a walked message is of.
    newest_topic: TopicId,
    /// Segments behind the tail that begin as they were made, with zeros, and have no sound header.
    /// They may be written to, whatever stands in them: as behind a tail, none of it is ever taken for a record.
    empty: Vec<PhysicalOffset>,
    deleted: Ranges,
    lost: Ranges,
    /// Whole segments that are not there: deleted, or damage. Known at the end of the walk.
    missing: Vec<Range<PhysicalOffset>>,
    report: &'a mut StartReport,
}

impl Recovery<'_> {
    /// Takes over the files of sealed segments; those that are missing or unusable are made again later.
    fn adopt_sealed(
        &mut self,
        checkpoint: Option<&Checkpoint>,
        snapshot: Option<&Snapshot>,
    ) -> Result<PhysicalOffset, OpenError> {
        let claimed = checkpoint
            .map_or(PhysicalOffset::ZERO, |c| c.sealed_end)
            .max(snapshot.map_or(PhysicalOffset::ZERO, |s| s.offset));
        let segments = self.log.segments();
        // Without anything to go by, only the last segments are taken into memory: those that may be finished and not
        // sealed, the active one, and one made ahead. What lies before them was sealed, hence flushed: no tail is
        // there.
        let in_memory = segments.len().saturating_sub(super::MAX_UNSEALED + 2);
        let bounded = segments.get(in_memory).map_or(PhysicalOffset::ZERO, |s| s.base());
        // A claim that no segment boundary answers to is not one of this log.
        let claimed = segments
            .iter()
            .map(|s| s.end())
            .filter(|end| *end <= claimed)
            .max()
            .unwrap_or(PhysicalOffset::ZERO);
        self.unsealed_from =
            claimed.max(bounded).max(segments.first().map_or(PhysicalOffset::ZERO, |s| s.base()));
        for segment in segments.iter().filter(|s| s.base() < self.unsealed_from) {
            let (base, end) = (segment.base(), segment.end());
            let queues = self.queues.adopt_sealed(base, end)?;
            let index = self.indexes.adopt_sealed(base, end)?;
            if !queues {
                self.queues.mark_missing(base, end);
            }
            if !index {
                self.indexes.mark_missing(base, end);
            }
            self.report.rebuilding += usize::from(!queues || !index);
        }
        Ok(self.unsealed_from)
    }

    /// Restores the snapshot. Returns where the walk starts.
    fn restore(
        &mut self,
        snapshot: Option<Snapshot>,
        sealed: PhysicalOffset,
    ) -> Result<PhysicalOffset, OpenError> {
        let Some(snapshot) = snapshot else {
            if self.log.min() > PhysicalOffset::ZERO {
                self.missing.push(PhysicalOffset::ZERO..self.log.min());
            }
            return Ok(self.log.min());
        };
        self.deleted.add(&snapshot.deleted);
        self.lost.add(&snapshot.lost);
        if self.log.min() > PhysicalOffset::ZERO {
            self.missing.push(PhysicalOffset::ZERO..self.log.min());
        }
        self.applier
            .restore(self.topics, &snapshot.state)
            .map_err(|source| OpenError::State { at: snapshot.offset, source })?;
        for position in &snapshot.queues {
            self.queues.restore_position(*position);
        }
        self.epoch = self.epoch.max(snapshot.epoch);
        self.store_clock = snapshot.store_clock;
        Ok(snapshot.offset.min(sealed).max(self.log.min()))
    }

    /// Makes durable what the page cache may still hold, and forgets it, so that the walk reads the disk.
    fn sync_unsealed(&self) -> Result<(), OpenError> {
        for segment in self.log.segments().iter().filter(|s| s.base() >= self.unsealed_from) {
            segment.sync().map_err(OpenError::Sync)?;
            // A hint: without it the walk reads the same bytes from memory.
            if let Err(error) = segment.drop_cache() {
                tracing::debug!(%error, "cached pages stay");
            }
        }
        Ok(())
    }

    fn walk(&mut self, start: PhysicalOffset) -> Result<WalkEnd, OpenError> {
        self.report.replayed_from = start;
        let segments = self.log.segments();
        let mut before: Option<&Arc<Segment>> = None;
        let mut end = WalkEnd { tail: start, reason: None, is_marked: true };
        for segment in segments.iter() {
            if let Some(before) = before
                && before.end() != segment.base()
            {
                // A whole segment is gone. What lies behind it cannot have been torn from the tail.
                self.missing.push(before.end()..segment.base());
            }
            before = Some(segment);
            if segment.end() <= start {
                continue;
            }
            let first = segment.base().plus(PAGE_LEN as u64);
            if segment.base() >= self.unsealed_from {
                self.queues.start_part(segment.base());
                self.indexes.start_part(segment.base());
            }
            (self.first_time, self.entry_bytes) = (None, 0);
            match self.walk_segment(segment, first.max(start))? {
                SegmentEnd::Rolled => end.tail = segment.end(),
                SegmentEnd::Tail(tail) => return Ok(tail),
            }
        }
        self.release_set()?;
        if end.tail < self.durable {
            // The end of the log is gone, and it was durable: none of its offsets is given again.
            self.report.damage_may_hold_state = true;
            self.damage(end.tail..self.durable);
            end.tail = self.durable;
        }
        Ok(end)
    }

    fn walk_segment(
        &mut self,
        segment: &Arc<Segment>,
        from: PhysicalOffset,
    ) -> Result<SegmentEnd, OpenError> {
        let mut walk = SegmentWalk::new(Arc::clone(segment), self.log.salt(segment), from);
        loop {
            let at = walk.at();
            if self.is_clean_end(segment, at)? {
                return Ok(SegmentEnd::Tail(WalkEnd { tail: at, reason: None, is_marked: true }));
            }
            match walk.step()? {
                Step::End => return Ok(SegmentEnd::Rolled),
                Step::Record { header, .. } if header.epoch < self.epoch_walked => {
                    let newest = self.epoch_walked;
                    let reason = DecodeError::StaleEpoch { found: header.epoch, newest };
                    if self.is_torn(&mut walk, at, header.end())? {
                        return Ok(self.cut(at, reason, false));
                    }
                    self.damage(at..header.end());
                }
                Step::Record { header, body: Err(reason) } => {
                    if self.is_torn(&mut walk, at, header.end())? {
                        return Ok(self.cut(at, reason, false));
                    }
                    self.take(&header, None)?;
                    self.damage(at..header.end());
                }
                Step::Record { header, body: Ok(()) } => {
                    self.take(&header, Some(walk.body(&header)))?;
                }
                // A sound header in its own place, from a newer build: not damage, and never to be cut.
                Step::Gap {
                    reason:
                        source @ (DecodeError::UnsupportedVersion { .. }
                        | DecodeError::Kind { .. }
                        | DecodeError::Flags { .. }
                        | DecodeError::Reserved { .. }),
                    ..
                } => return Err(OpenError::NotUnderstood { at, source }),
                Step::Gap { end, reason, is_marked } => {
                    if self.is_torn(&mut walk, at, end)? {
                        let is_marked = is_marked && end >= segment.end();
                        return Ok(self.cut(at, reason, is_marked));
                    }
                    // What was durable is kept, also of a set whose rest is in the gap.
                    self.release_set()?;
                    self.report.damage_may_hold_state = true;
                    self.damage(at..end.min(self.durable));
                    if self.durable < end {
                        let is_marked = end >= segment.end() && mark_stands(segment, self.durable);
                        return Ok(self.cut(self.durable, reason, is_marked));
                    }
                    if end >= segment.end() {
                        return Ok(SegmentEnd::Rolled);
                    }
                }
            }
        }
    }

    /// Whether a clean stop left the end of the log at `at`, and nothing was appended since: then no record lies
    /// behind, and it need not be read. A start that was cut short may have begun to write its epoch record there;
    /// without the begin of it, what it left is as good as nothing.
    fn is_clean_end(&mut self, active: &Segment, at: PhysicalOffset) -> Result<bool, OpenError> {
        let left = active.end().since(at);
        // Without room for a header the log goes on in the next segment.
        if self.clean_end != Some(at) || !self.set.is_empty() || left < HEADER_LEN as u64 {
            return Ok(false);
        }
        if !mark_stands(active, at) {
            return Ok(false);
        }
        let segments = self.log.segments();
        let behind = segments.iter().map(|s| s.base()).filter(|base| *base > active.base());
        self.empty.extend(behind);
        Ok(true)
    }

    /// Whether an invalid record at `at` was never durable. `gap`: the bytes from `at` to here hold no record. If any
    /// of them may be cut off, the claims of all later records are read first.
    ///
    /// An error: the disk did not give bytes that would be cut off. They may be sound.
    fn is_torn(
        &mut self,
        walk: &mut SegmentWalk,
        at: PhysicalOffset,
        gap: PhysicalOffset,
    ) -> Result<bool, OpenError> {
        if gap > self.durable && !self.claims_read {
            self.claims_read = true;
            self.read_claims(gap)?;
        }
        match walk.take_refusal() {
            Some(error) if gap > self.durable => Err(error.into()),
            Some(error) => {
                self.report
                    .remarks
                    .push(format!("the disk does not give the log at {at}: {error}"));
                Ok(false)
            }
            None => Ok(at >= self.durable),
        }
    }

    fn read_claims(&mut self, from: PhysicalOffset) -> Result<(), OpenError> {
        for segment in self.log.segments().iter().filter(|s| s.end() > from) {
            let first = segment.base().plus(PAGE_LEN as u64).max(from);
            let mut walk = SegmentWalk::new(Arc::clone(segment), self.log.salt(segment), first);
            loop {
                let at = walk.at();
                let step = walk.step()?;
                if let Some(error) = walk.take_refusal() {
                    return Err(error.into());
                }
                match step {
                    Step::End => break,
                    Step::Gap { end, is_marked, .. } => {
                        let base = segment.base();
                        let is_whole = at == base.plus(PAGE_LEN as u64) && end >= segment.end();
                        if is_whole && is_marked {
                            self.empty.push(base);
                        }
                        if end >= segment.end() {
                            break;
                        }
                    }
                    Step::Record { header, .. } if header.epoch >= self.epoch_walked => {
                        self.durable = self.durable.max(header.durable_claim());
                    }
                    Step::Record { .. } => {}
                }
            }
        }
        Ok(())
    }

    /// The log ends at `at`, or at the begin of an append set that is not whole there.
    fn cut(&mut self, at: PhysicalOffset, reason: DecodeError, is_marked: bool) -> SegmentEnd {
        let broken = self.set.first().map(|first| first.header.physical_offset);
        self.set.clear();
        let (tail, is_marked) = match broken {
            Some(begin) => (begin, false),
            None => (at, is_marked),
        };
        SegmentEnd::Tail(WalkEnd { tail, reason: Some(reason), is_marked })
    }

    /// Tells what was deleted, or given up, from damage.
    fn settle_damage(&mut self) {
        for missing in std::mem::take(&mut self.missing) {
            for range in self.deleted.without(&missing) {
                self.report.damage_may_hold_state = true;
                self.damage(range);
            }
        }
        let mut damaged = std::mem::take(&mut self.report.damaged);
        damaged.sort_unstable_by_key(|range| range.start);
        for range in damaged {
            // What was deleted meanwhile is not missed, also where it was damaged.
            let left = self.lost.without(&range);
            self.report.damaged.extend(left.iter().flat_map(|left| self.deleted.without(left)));
        }
        if self.report.damaged.is_empty() {
            self.report.damage_may_hold_state = false;
        }
        // What lies below is sealed: its file was made when it was whole, or says that it lacks something.
        for range in self.report.damaged.iter().filter(|range| range.end > self.unsealed_from) {
            self.indexes.mark_lacking(range);
        }
    }

    fn damage(&mut self, range: Range<PhysicalOffset>) {
        match self.report.damaged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.report.damaged.push(range),
        }
    }
}

/// Whether zeros stand at `at` as an append that ends there leaves them.
fn mark_stands(segment: &Segment, at: PhysicalOffset) -> bool {
    let len = mark_end(at, segment.end()).since(at);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    segment.read_exact(at, &mut bytes).is_ok() && bytes.iter().all(|byte| *byte == 0)
}

/// How a segment ended.
enum SegmentEnd {
    /// With a filler, or without room for a header: the log goes on in the next.
    Rolled,
    /// The log ends in it.
    Tail(WalkEnd),
}
