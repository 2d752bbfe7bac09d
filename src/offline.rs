//! What is done to a store while no broker runs on it: verify, dump, rebuild, repair, on the files of this machine.
//!
//! Brings the disk, the clock and the broker's state to the tools of the store, which know neither a machine nor a
//! broker. Everything here blocks, and holds the lock of the data directory as long as it works.

use std::path::Path;
use std::sync::Arc;

use crate::broker::{self, NameFault};
use crate::clock::{Clock, SystemClock};
use crate::file::disk::{Disk, RealDisk};
pub use crate::store::offline::{OfflineError, StoppedStore};
pub use crate::store::{
    Adopted, Adoption, Content, Derived, Dump, Dumped, DumpedMessage, Finding, FindingKind, Lose,
    RebuildError, RebuildStep, Rebuilt, RepairError, RepairMode, RepairOrder, RepairStep, Repaired,
    Verified, Verifier, VerifySummary,
};

/// Locks the store at `dir`.
///
/// # Errors
/// See [`OfflineError`].
pub fn open(dir: &Path) -> Result<StoppedStore, OfflineError> {
    StoppedStore::open(Arc::new(RealDisk), dir)
}

/// Makes again what is derived from the log of the store at `dir`, and tells how far it is.
///
/// # Errors
/// See [`RebuildError`].
pub fn rebuild(
    dir: &Path,
    what: &[Derived],
    tell: impl FnMut(RebuildStep),
) -> Result<Rebuilt, RebuildError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let clock = Arc::new(SystemClock::new());
    let state = broker::empty_state(clock.now());
    crate::store::rebuild(&disk, clock, dir, state, what, tell)
}

/// Whether a topic may be made with this name.
///
/// # Errors
/// The first rule that the name breaks.
pub fn check_topic_name(name: &str) -> Result<(), NameFault> {
    broker::check_topic_name(name)
}

/// Carries out what an operator decided about the store at `dir`, or says what that would do. Names of topics are the
/// caller's to check, with [`check_topic_name`].
///
/// # Errors
/// See [`RepairError`].
pub fn repair(
    dir: &Path,
    order: &RepairOrder,
    tell: impl FnMut(RepairStep),
) -> Result<Repaired, RepairError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let clock = Arc::new(SystemClock::new());
    let state = broker::empty_state(clock.now());
    crate::store::repair(&disk, clock, dir, state, order, tell)
}
