//! How the store fails, one enum per operation. Each says what state the failure leaves behind.

use std::path::PathBuf;

use crate::file::FileError;
use crate::format::DecodeError;
use crate::message::{Epoch, PhysicalOffset};

/// Why an append was not acknowledged. Nothing was stored, except in `Unknown`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The set can never be stored.
    #[error("append set of {len} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Bytes that the records would occupy.
        len: u64,
        /// The most that a set may occupy.
        max: u64,
    },
    /// There is no such queue.
    #[error("the topic has {queues} queues")]
    NoSuchQueue {
        /// How many there are.
        queues: u32,
    },
    /// No room for the next record yet: await `space`, then append again.
    #[error("no space for the next record yet")]
    NotReady,
    /// The topic was deleted.
    #[error("topic is deleted")]
    Deleted,
    /// The write failed and was undone; the store goes on.
    #[error("write failed at {at}")]
    Write {
        /// Where the write began.
        at: PhysicalOffset,
        /// What the disk said.
        #[source]
        source: std::sync::Arc<FileError>,
    },
    /// The write failed and could not be undone; the store is poisoned.
    #[error("append at {at} may or may not be stored")]
    Unknown {
        /// Where the write began.
        at: PhysicalOffset,
    },
    /// An earlier sync failed: nothing is stored any more.
    #[error("store is poisoned by a failed sync")]
    Poisoned,
    /// The store is closed.
    #[error("store is closed")]
    Closed,
}

/// Why there is no space, as `space` answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// The next segment cannot be made: the disk is full. It is tried again once a second.
    #[error("the disk has no room for the next segment")]
    Full,
    /// The next segment cannot be made: the disk refuses.
    #[error("the disk refuses to make the next segment")]
    Refused,
    /// The store is closed.
    #[error("store is closed")]
    Closed,
    /// A sync failed.
    #[error("store is poisoned by a failed sync")]
    Poisoned,
}

/// Why a read has no answer. Nothing is changed by it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk failed, or what it gave is not what was written.
    #[error("record at {at} cannot be read")]
    Damaged {
        /// Where the record starts.
        at: PhysicalOffset,
    },
    /// A file could not be read.
    #[error("reading the store failed")]
    File(#[source] std::sync::Arc<FileError>),
    /// A file that is needed has to be made again first.
    #[error("a queue file that is needed is being rebuilt")]
    Rebuilding,
    /// More reads wait for the disk than are let in.
    #[error("too many reads wait for the disk")]
    Overloaded,
    /// The store is closed.
    #[error("store is closed")]
    Closed,
}

impl From<FileError> for ReadError {
    fn from(error: FileError) -> Self {
        Self::File(std::sync::Arc::new(error))
    }
}

/// Why a store cannot be opened. The data directory is as it was, or as a recovery that was cut short left it: the
/// next open goes on.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A configured value is out of its range.
    #[error("{key} = {value} is outside of {range}")]
    Config {
        /// The option.
        key: &'static str,
        /// What it was set to.
        value: u64,
        /// What is allowed.
        range: &'static str,
    },
    /// Another process has it.
    #[error(
        "data directory {} is in use by another process; stop that broker or choose another directory", path.display()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The parent of the data directory does not exist.
    #[error("parent directory of {} does not exist; make it first", path.display())]
    NoParent {
        /// The data directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot open the store")]
    File(#[from] FileError),
    /// Syncing what was found failed: nothing on this disk may be trusted until it is checked.
    #[error("cannot make the found log durable")]
    Sync(#[source] FileError),
    /// Written by a newer version.
    #[error(
        "{} has format version {found}, this build reads up to {supported}; use a newer mainstem", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that this build knows.
        supported: u32,
    },
    /// A record needs something that this build does not know.
    #[error("record at {at} needs what this build does not know; use a newer mainstem")]
    NotUnderstood {
        /// Where the record starts.
        at: PhysicalOffset,
        /// What is not known.
        #[source]
        source: DecodeError,
    },
    /// There is a log, but neither copy of the identity can be read.
    #[error("both {} and its copy are unreadable; restore one of them", path.display())]
    Identity {
        /// The identity file.
        path: PathBuf,
    },
    /// The segment belongs to another store.
    #[error("{} belongs to another store; remove it from this directory", path.display())]
    Foreign {
        /// The segment.
        path: PathBuf,
    },
    /// Two segments claim the same bytes.
    #[error("{} overlaps the segment before it", path.display())]
    Overlap {
        /// The later one.
        path: PathBuf,
    },
    /// A state record or snapshot contradicts what came before it.
    #[error("state at {at} cannot be applied")]
    State {
        /// The end of the record, or the snapshot's offset.
        at: PhysicalOffset,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The last segment is full, and the next cannot be made.
    #[error("no room to begin an epoch in {}; free some space and start again", path.display())]
    NoRoom {
        /// The data directory.
        path: PathBuf,
        /// Why there is no next segment.
        #[source]
        source: SpaceError,
    },
    /// The first append of the new epoch failed.
    #[error("cannot begin epoch {epoch}")]
    Epoch {
        /// The epoch.
        epoch: Epoch,
        /// Why.
        #[source]
        source: AppendError,
    },
    /// A storage thread could not be started.
    #[error("cannot start a storage thread")]
    Thread(#[source] std::io::Error),
}

/// Why a clean stop is not clean. What was acknowledged is as safe as its flush mode says.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The last sync failed, or an earlier one.
    #[error("the store is poisoned: {reason}")]
    Poisoned {
        /// What failed.
        reason: String,
    },
}
