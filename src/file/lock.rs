//! The exclusive lock on a data directory, on which mappings rely (M4): `flock` on a lock file.
//!
//! The kernel ties the lock to the open file description, so it ends with the process however that dies, a second
//! handle in the same process is refused too, and a lock file that was left behind means nothing.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::{Errno, retry_on_intr};

use super::disk::DirLock;
use super::{FileError, Operation};

/// The lock file's descriptor; closing it releases the lock.
#[derive(Debug)]
struct RealLock {
    _file: OwnedFd,
}

impl DirLock for RealLock {}

/// Locks the file at `path`, which is made if missing; answers at once.
pub(super) fn acquire(path: &Path) -> Result<Box<dyn DirLock>, FileError> {
    let refused = |errno| FileError::refused(Operation::Lock, path, errno);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = retry_on_intr(|| open(path, flags, Mode::from_raw_mode(0o600))).map_err(refused)?;
    match retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(Box::new(RealLock { _file: file })),
        Err(Errno::WOULDBLOCK) => Err(FileError::Locked { path: path.to_path_buf() }),
        Err(errno) => Err(refused(errno)),
    }
}
