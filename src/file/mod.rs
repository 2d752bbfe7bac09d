//! Files, and the fence around the one place with `unsafe`.
//!
//! Invariants, cited by number where they are relied on:
//!
//! - **M1 read-only**: nothing is ever stored through a mapping; writing is `pwritev` through [`disk`], on blocks that
//!   were allocated before.
//! - **M2 publish**: bytes below the published position never change; the appender stores it with Release, readers
//!   load with Acquire and form slices only below it.
//! - **M3 life**: the mapping is in an `Arc`; every `Bytes` handed out owns a clone; deleting takes the name away, the
//!   last drop unmaps.
//! - **M4 exclusion**: the directory lock is held while any file is mapped; files are truncated only at open.
//! - **M5 nothing in place**: a sealed file is never changed; what has to change is written aside, synced and renamed.
//!   The file of a deleted segment may become another one once nobody maps it any more (M3) and its name is gone,
//!   durably.
//!
//! | file      | owns                                                                            |
//! | --------- | ------------------------------------------------------------------------------- |
//! | `disk`    | the door to the operating system: traits, the real disk, helpers over both      |
//! | `sim`     | the simulated disk: what a power cut or a failing device leaves behind (tests)  |
//! | `mapping` | read-only mappings, the only `unsafe`                                           |
//! | `segment` | one fixed-size CommitLog file: write, publish, read, sync                       |
//! | `lock`    | the exclusive lock on the data directory                                        |
//!
//! No threads here: every call runs on its caller's, and may block on the device.

pub mod disk;
mod lock;
pub mod mapping;
pub mod segment;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::{fmt, io};

use rustix::io::Errno;

/// What was asked of the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Make a directory.
    CreateDir,
    /// List a directory.
    List,
    /// Create a file, or empty the one that stands there.
    Create,
    /// Open an existing file.
    Open,
    /// Ask for a file's length.
    Len,
    /// Reserve real blocks.
    Allocate,
    /// Write bytes.
    Write,
    /// Read bytes.
    Read,
    /// Read bytes that were written lately, which mostly are in memory.
    ReadFresh,
    /// Make written bytes durable.
    Sync,
    /// Forget cached pages.
    DropCache,
    /// Map for reading.
    Map,
    /// Give a file another name.
    Rename,
    /// Remove a name.
    Unlink,
    /// Make names durable.
    SyncDir,
    /// Ask for random bytes.
    Random,
    /// Ask for free space.
    FreeSpace,
    /// Lock the data directory.
    Lock,
}

impl fmt::Display for Operation {
    /// The word between "cannot" and a path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateDir => "make the directory",
            Self::List => "list",
            Self::Create => "create",
            Self::Open => "open",
            Self::Len => "tell the length of",
            Self::Allocate => "reserve blocks for",
            Self::Write => "write",
            Self::Read | Self::ReadFresh => "read",
            Self::Sync => "sync",
            Self::DropCache => "drop the cache of",
            Self::Map => "map",
            Self::Rename => "rename",
            Self::Unlink => "remove",
            Self::SyncDir => "sync the directory",
            Self::Random => "get random bytes",
            Self::FreeSpace => "tell the free space of",
            Self::Lock => "lock",
        })
    }
}

/// A refused file operation. Nothing is known to have happened, except where the operation's own doc says more.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file or directory.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// What was looked for.
        path: PathBuf,
    },
    /// The file system has no room (ENOSPC, EDQUOT).
    #[error("cannot {operation} {}: no space left on the device", path.display())]
    Full {
        /// What was tried.
        operation: Operation,
        /// On which file.
        path: PathBuf,
    },
    /// Another process holds the lock.
    #[error("{} is locked by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The file is shorter than what was asked of it.
    #[error("{} ends before position {end}", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// The end of the range that was wanted.
        end: u64,
    },
    /// The file is longer than what its reader takes.
    #[error("{} has {len} bytes, more than the {max} that are read", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// The reader's limit.
        max: u64,
    },
    /// Anything else that the operating system said.
    #[error("cannot {operation} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        operation: Operation,
        /// On which file.
        path: PathBuf,
        /// What the operating system said. No source: a log line that tells of the error must not leave it out.
        cause: io::Error,
    },
}

impl FileError {
    /// What an error number means here.
    fn refused(operation: Operation, path: &Path, errno: Errno) -> Self {
        let path = path.to_path_buf();
        match errno {
            Errno::NOENT => Self::NotFound { path },
            Errno::NOSPC | Errno::DQUOT => Self::Full { operation, path },
            errno => Self::Io { operation, path, cause: errno.into() },
        }
    }
}
