//! Reads a whole store and says what is wrong with it. Changes nothing on the disk.
//!
//! | what | is compared with |
//! | --- | --- |
//! | identity and its copy | each other |
//! | header page of a segment | file name, file size, identity |
//! | segments | 0 at the begin, the end of the one before; what was deleted is not missed |
//! | records | their checksums and places; epochs, append sets and queue offsets with those before (`order.rs`) |
//! | `.cq` and `.idx` of a segment | the same files made in memory from the segment; of a damaged segment their own checksums alone, since they may know more than it |
//! | snapshots | their checksum, the end of the log, the queue offsets at its end |
//! | checkpoint | its checksums, the end of the log |
//!
//! An invalid place is damage if it was durable once: below what checkpoint or snapshot vouch for, or below what a
//! later record claims, and unless an operator gave it up. Behind that, it is a torn tail, which the next start cuts: a
//! remark. A running store is read up to what was flushed when the verification began; what it finds damaged joins the
//! known damage, and a derived file that is wrong is made again.
//!
//! Whoever holds a [`Verifier`] calls its steps, at a rate of his own, on a thread that may wait for the disk. A step
//! reads about [`PIECE`] bytes of the log, or one derived file. Memory: the entries of one segment, and the next offset
//! of each queue.

mod beside;
mod files;
mod finding;
mod known;
mod order;
mod segment;
mod wrong;

use std::ops::Range;

pub use self::finding::{Finding, FindingKind, VerifySummary};
pub(super) use self::known::Known;
use self::order::Order;
use super::Shared;
use super::offline::{SegmentFile, StoppedStore};
use super::recover::MAX_SNAPSHOT;
use crate::file::disk::Disk;
use crate::file::segment::Segment;
use crate::format::DecodeError;
use crate::format::identity::Identity;
use crate::format::names::FileKind;
use crate::format::record::HEADER_LEN;
use crate::format::snapshot::QueuePosition;
use crate::log::consume_queue::{ConsumeQueues, QueuePart};
use crate::log::index::{IndexPart, Indexes};
use crate::log::walk::SegmentWalk;
use crate::message::{PhysicalOffset, QueueKey, QueueOffset};
use crate::sync::Arc;

/// Bytes of the log that a step reads; more if a record or a gap is longer.
const PIECE: u64 = 1 << 20;
/// Messages of one gap that are told one by one.
const MAX_LOST: usize = 1_000;

/// What a step did.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Bytes read from the disk.
    pub bytes: u64,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Nothing is left to read.
    pub is_over: bool,
}

/// A verification under way.
pub struct Verifier {
    disk: Arc<dyn Disk>,
    dir: std::path::PathBuf,
    identity: Arc<Identity>,
    segments: Vec<SegmentFile>,
    /// Where to stop reading, and who is to hear of damage: of a running store.
    running: Option<(PhysicalOffset, Arc<Shared>)>,
    /// The lock of a stopped store.
    stopped: Option<StoppedStore>,
    /// Whether queue and index files are read too.
    with_files: bool,
    queues: ConsumeQueues,
    indexes: Indexes,
    stage: Stage,
    known: Known,
    order: Order,
    /// All below was durable once.
    durable: PhysicalOffset,
    /// All below has its files.
    sealed: PhysicalOffset,
    /// The end of the last sound record.
    tail: PhysicalOffset,
    /// Of the newest sound snapshot: its file, how far it reaches, and where it says that the queues stand.
    positions: Option<(String, PhysicalOffset, Vec<QueuePosition>)>,
    /// Wrong places of which it is not known yet whether they were durable.
    undecided: Vec<Wrong>,
    hashes: Vec<u64>,
    found: Vec<Finding>,
    summary: VerifySummary,
}

/// What is read next.
enum Stage {
    Facts,
    /// What records of the segment of this index say of others.
    Known(usize),
    /// The segment of this index.
    Segment(usize),
    Log(Box<Walking>),
    Queues(Box<Walked>),
    Index(Box<Walked>),
    End,
    Over,
}

/// A segment of which records are read.
struct Walking {
    index: usize,
    segment: Arc<Segment>,
    walk: SegmentWalk,
    parts: Option<(QueuePart, IndexPart)>,
    wrongs: Vec<Wrong>,
    is_cached: bool,
}

/// A segment of which all records were read.
struct Walked {
    index: usize,
    parts: Option<(QueuePart, IndexPart)>,
    wrongs: Vec<Wrong>,
}

/// Bytes that hold no sound record.
struct Wrong {
    range: Range<PhysicalOffset>,
    reason: DecodeError,
    /// The unused end of the segment: zeros, as an append leaves them behind it, and no record to the end.
    is_free: bool,
    is_refused: bool,
    /// Whose messages are in it, as far as known, and how many more.
    lost: Vec<Lost>,
    more_lost: u64,
    /// The header is sound, so that `lost` is what it says.
    has_header: bool,
}

struct Lost {
    range: Range<PhysicalOffset>,
    key: QueueKey,
    offsets: Range<QueueOffset>,
}

impl Verifier {
    /// Verifies a store that no broker runs on; it stays locked until the verification is dropped.
    pub fn of_stopped(store: StoppedStore) -> Self {
        let (disk, dir) = (Arc::clone(&store.disk), store.dir.clone());
        let (identity, segments) = (Arc::clone(&store.identity), store.segments.clone());
        Self::new(disk, dir, identity, segments, None, Some(store))
    }

    /// As [`Verifier::of_stopped`], without the queue and index files.
    pub(super) fn of_log(store: StoppedStore) -> Self {
        Self { with_files: false, ..Self::of_stopped(store) }
    }

    /// The store that was verified, still locked, and what was learnt of it: what state says, and where each queue
    /// that has records stands.
    pub(super) fn into_stopped(self) -> Option<(StoppedStore, Known, Vec<QueuePosition>)> {
        let positions = self.order.positions();
        self.stopped.map(|store| (store, self.known, positions))
    }

    /// Verifies a running store as it stands now.
    pub(super) fn of_running(shared: &Arc<Shared>) -> Self {
        let segments = shared.log.segments();
        let dir = shared.config.dir.join(FileKind::Segment.directory());
        let segments = segments.iter().map(|segment| SegmentFile {
            path: dir.join(FileKind::Segment.name(segment.base())),
            base: segment.base(),
            len: segment.len(),
            open: Some(Arc::clone(segment)),
        });
        let flushed = shared.marks.flushed.get();
        let running = Some((flushed, Arc::clone(shared)));
        let (disk, dir) = (Arc::clone(&shared.disk), shared.config.dir.clone());
        Self::new(disk, dir, Arc::clone(&shared.identity), segments.collect(), running, None)
    }

    fn new(
        disk: Arc<dyn Disk>,
        dir: std::path::PathBuf,
        identity: Arc<Identity>,
        segments: Vec<SegmentFile>,
        running: Option<(PhysicalOffset, Arc<Shared>)>,
        stopped: Option<StoppedStore>,
    ) -> Self {
        let begin = segments.first().map_or(PhysicalOffset::ZERO, |segment| segment.base);
        let in_dir = |kind: FileKind| dir.join(kind.directory());
        let store_id = identity.store_id;
        Self {
            queues: ConsumeQueues::new(Arc::clone(&disk), in_dir(FileKind::ConsumeQueue), store_id),
            indexes: Indexes::new(Arc::clone(&disk), in_dir(FileKind::Index), store_id),
            stage: Stage::Facts,
            known: Known::default(),
            order: Order::new(begin == PhysicalOffset::ZERO),
            durable: running.as_ref().map_or(PhysicalOffset::ZERO, |(until, _)| *until),
            sealed: running
                .as_ref()
                .map_or(PhysicalOffset::ZERO, |(_, shared)| shared.marks.sealed.get()),
            tail: begin,
            positions: None,
            undecided: Vec::new(),
            hashes: Vec::new(),
            found: Vec::new(),
            summary: VerifySummary::default(),
            disk,
            dir,
            identity,
            segments,
            running,
            stopped,
            with_files: true,
        }
    }

    /// Reads a piece. Blocks for the disk.
    pub fn step(&mut self) -> Verified {
        let bytes = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Facts => self.facts(),
            Stage::Known(index) => self.learn(index),
            Stage::Segment(index) => self.enter(index),
            Stage::Log(walking) => self.walk(walking),
            Stage::Queues(walked) => self.check_queues(walked),
            Stage::Index(walked) => self.check_index(*walked),
            Stage::End => {
                self.end();
                0
            }
            Stage::Over => 0,
        };
        let findings = std::mem::take(&mut self.found);
        findings.iter().for_each(|finding| self.summary.count(finding));
        Verified { bytes, findings, is_over: matches!(self.stage, Stage::Over) }
    }

    /// What was read and found so far.
    pub fn summary(&self) -> &VerifySummary {
        &self.summary
    }

    /// Bytes of the log that are to be read in all; `summary` tells how many were.
    pub fn log_len(&self) -> u64 {
        self.segments.iter().map(|segment| self.stop_in(segment).since(segment.base)).sum()
    }

    /// Where the reading of a segment ends.
    fn stop_in(&self, segment: &SegmentFile) -> PhysicalOffset {
        match &self.running {
            Some((until, _)) => segment.end().min(*until).max(segment.base),
            None => segment.end(),
        }
    }

    fn tell(&mut self, kind: FindingKind, file: String, what: impl Into<String>) {
        let (range, queue, offsets, what) = (None, None, None, what.into());
        self.found.push(Finding { kind, file, range, queue, offsets, what });
    }
}

/// The file of a segment, from the data directory on.
fn names_of(kind: FileKind, base: PhysicalOffset) -> String {
    format!("{}/{}", kind.directory(), kind.name(base))
}

const _: () = assert!(HEADER_LEN as u64 <= PIECE, "a step moves on");
