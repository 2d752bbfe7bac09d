//! Throws away what is derived of a stopped store, and makes it again from the log.
//!
//! In this order: lock, check the log if snapshots are to go, remove, unlock, open by the ordinary recovery, make every
//! missing file, close. It may be killed at any time: a store without some of its derived files is what every start
//! knows how to deal with.
//!
//! The checkpoint is not removed but written anew at the open, as by every start: it alone knows how far the log was
//! durable, and without it a rotten record at the end would pass for a torn tail. Snapshots of a damaged log are not
//! removed: they may be all that still knows what was in the damaged bytes.

use std::path::Path;

use super::offline::{OfflineError, StoppedStore};
use super::verify::{FindingKind, Verifier};
use super::{Applier, CloseError, OpenError, Progress, Store, StoreConfig, Workers};
use crate::clock::Clock;
use crate::file::FileError;
use crate::file::disk::Disk;
use crate::format::names::FileKind;
use crate::format::segment_header::PAGE_LEN;
use crate::message::Epoch;
use crate::sync::Arc;

/// So often in a row the making of a file may fail: more often than a segment that the disk refuses is tried.
const ATTEMPTS: u32 = 80;

/// What is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// `consumequeue/`.
    Queues,
    /// `index/`.
    Index,
    /// `state/`.
    Snapshots,
}

impl Derived {
    /// All of it.
    pub const ALL: [Self; 3] = [Self::Queues, Self::Index, Self::Snapshots];

    const fn kind(self) -> FileKind {
        match self {
            Self::Queues => FileKind::ConsumeQueue,
            Self::Index => FileKind::Index,
            Self::Snapshots => FileKind::Snapshot,
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebuildStep {
    /// The log is looked at for damage: bytes so far, and in all.
    Checking {
        /// Read so far.
        done: u64,
        /// To read.
        total: u64,
    },
    /// The log is replayed, as by a start.
    Replaying,
    /// Segments whose files are in place, and how many have some.
    Making {
        /// In place.
        done: u64,
        /// In all.
        total: u64,
    },
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Files that were removed.
    pub removed: u64,
    /// Segments whose files were made again.
    pub segments: u64,
    /// Records that were replayed.
    pub replayed_records: u64,
    /// The epoch that the open began.
    pub epoch: Epoch,
}

/// Why not all is made again. The log is as it was; what was removed is made again by the next start, or the next try.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The directory cannot be worked on. Nothing was changed.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The log is damaged, and snapshots were to go. Nothing was changed.
    #[error(
        "the log is damaged in {places} places: its snapshots may know what is lost there, and are not removed"
    )]
    Damaged {
        /// How many damaged or unreadable places there are.
        places: u64,
    },
    /// A file could not be removed.
    #[error("what is derived cannot be removed")]
    Remove(#[source] FileError),
    /// The store does not open.
    #[error("the store does not open")]
    Open(#[from] OpenError),
    /// Some files could not be made.
    #[error("the files of {segments} segments could not be made")]
    Unmade {
        /// Of so many segments.
        segments: u64,
    },
    /// The store could not be closed in order.
    #[error("the store could not be closed in order")]
    Close(#[from] CloseError),
}

/// Makes `what` again in the stopped store at `dir`. `applier` is the state above the store, empty.
///
/// # Errors
/// See [`RebuildError`].
pub fn rebuild(
    disk: &Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: &Path,
    applier: Arc<dyn Applier>,
    what: &[Derived],
    mut tell: impl FnMut(RebuildStep),
) -> Result<Rebuilt, RebuildError> {
    let mut store = StoppedStore::open(Arc::clone(disk), dir)?;
    let segment_size = store.segments.last().map(|segment| segment.len);
    if what.contains(&Derived::Snapshots) {
        store = checked(store, &mut tell)?;
    }
    let removed = remove(&**disk, dir, what).map_err(RebuildError::Remove)?;
    drop(store);

    tell(RebuildStep::Replaying);
    let config = like_the_last(dir, segment_size);
    let (store, mut workers) = Store::open_stepped(Arc::clone(disk), clock, config, applier)?;
    let left =
        make_missing(&store, &mut workers, |done, total| tell(RebuildStep::Making { done, total }));
    if left > 0 {
        store.close_stepped(workers)?;
        return Err(RebuildError::Unmade { segments: left });
    }
    let rebuilt = Rebuilt {
        removed,
        segments: store.status().rebuilt,
        replayed_records: store.start_report().replayed_records,
        epoch: store.epoch(),
    };
    store.close_stepped(workers)?;
    Ok(rebuilt)
}

/// The configuration of an open that makes its next segment like the last one, and needs no more room than that: what
/// is kept free is for a broker that goes on.
pub(super) fn like_the_last(dir: &Path, segment_size: Option<u64>) -> StoreConfig {
    let mut config = StoreConfig { disk_reserve: 0, ..StoreConfig::new(dir) };
    let fits = |size: &u64| {
        let sizes = StoreConfig::MIN_SEGMENT_SIZE..=StoreConfig::MAX_SEGMENT_SIZE;
        sizes.contains(size) && size.is_multiple_of(PAGE_LEN as u64)
    };
    config.segment_size = segment_size.filter(fits).unwrap_or(config.segment_size);
    config
}

/// Makes every file that is missing, tells how many segments have theirs, and returns how many are left without.
pub(super) fn make_missing(
    store: &Store,
    workers: &mut Workers,
    mut tell: impl FnMut(u64, u64),
) -> u64 {
    let total = store.unmade();
    let mut failed = 0;
    loop {
        let left = store.unmade();
        tell(total.saturating_sub(left), total);
        if left == 0 {
            return 0;
        }
        match workers.seal.step() {
            Progress::Worked => failed = 0,
            Progress::Idle(_) if failed < ATTEMPTS => {
                failed += 1;
                // A snapshot may wait for it before the files have their turn.
                workers.flush.flush_all();
            }
            Progress::Idle(_) => return left,
        }
    }
}

/// The store, if its log is not damaged.
fn checked(
    store: StoppedStore,
    tell: &mut impl FnMut(RebuildStep),
) -> Result<StoppedStore, RebuildError> {
    let mut verifier = Verifier::of_log(store);
    let (mut places, total) = (0, verifier.log_len());
    loop {
        let verified = verifier.step();
        let lost = |kind| matches!(kind, FindingKind::Damaged | FindingKind::Refused);
        places += verified.findings.iter().filter(|finding| lost(finding.kind)).count() as u64;
        tell(RebuildStep::Checking { done: verifier.summary().log_bytes, total });
        if verified.is_over {
            break;
        }
    }
    match verifier.into_stopped() {
        Some((store, ..)) if places == 0 => Ok(store),
        _ => Err(RebuildError::Damaged { places }),
    }
}

/// Removes the files of `what`, whole and on their way, and counts them.
fn remove(disk: &dyn Disk, dir: &Path, what: &[Derived]) -> Result<u64, FileError> {
    let mut removed = 0;
    for kind in what.iter().map(|derived| derived.kind()) {
        let dir = dir.join(kind.directory());
        let entries = match disk.list(&dir) {
            Err(FileError::NotFound { .. }) => continue,
            entries => entries?,
        };
        for entry in entries.iter().filter(|entry| kind.parse(&entry.name).is_some()) {
            disk.unlink(&dir.join(&entry.name))?;
            removed += 1;
        }
        disk.sync_dir(&dir)?;
    }
    Ok(removed)
}
