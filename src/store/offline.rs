//! A store that no broker runs on: found, locked and read as it lies there.
//!
//! Holding a [`StoppedStore`] keeps brokers and other tools off the directory. Nothing in it is changed but the lock
//! file, which is made if it is missing. Recovery has no part in it: what a start would cut or make again is still
//! there to be looked at.

use std::path::{Path, PathBuf};

use crate::file::FileError;
use crate::file::disk::{DirLock, Disk, read_file};
use crate::file::segment::Segment;
use crate::format::DecodeError;
use crate::format::identity::{self, Identity};
use crate::format::names::{self, FileKind};
use crate::format::record::ALIGN;
use crate::format::segment_header::PAGE_LEN;
use crate::message::PhysicalOffset;
use crate::sync::Arc;

/// Why a stopped store cannot be looked at. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The directory is not there, or is no data directory.
    #[error("there is no store in {}", path.display())]
    NoStore {
        /// What was named.
        path: PathBuf,
    },
    /// A broker or another tool has it.
    #[error("data directory {} is in use by another process; stop that broker first", path.display())]
    Running {
        /// The data directory.
        path: PathBuf,
    },
    /// Neither copy of the identity can be read: without it no record can be verified.
    #[error("both {} and its copy are unreadable; restore one of them", path.display())]
    Identity {
        /// The identity file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("the store cannot be read")]
    File(#[from] FileError),
}

/// A data directory that is locked by this process, and what lies in it.
pub struct StoppedStore {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) identity: Arc<Identity>,
    /// By base.
    pub(super) segments: Vec<SegmentFile>,
    _lock: Box<dyn DirLock>,
}

/// A segment by its file.
#[derive(Clone, Debug)]
pub(super) struct SegmentFile {
    pub(super) path: PathBuf,
    pub(super) base: PhysicalOffset,
    /// Whole records, as the length of the file has it.
    pub(super) len: u64,
    /// It is open already.
    pub(super) open: Option<Arc<Segment>>,
}

impl StoppedStore {
    /// Locks the data directory at `dir` and lists its segments.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, OfflineError> {
        let no_store = || OfflineError::NoStore { path: dir.to_owned() };
        let is_store = match disk.list(dir) {
            // A lock is made only where there is something to lock.
            Ok(entries) => entries.iter().any(|entry| {
                [names::IDENTITY, names::IDENTITY_COPY].contains(&entry.name.as_str())
            }),
            Err(FileError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if !is_store {
            return Err(no_store());
        }
        let lock = disk.lock(&dir.join(names::LOCK)).map_err(|error| match error {
            FileError::Locked { .. } => OfflineError::Running { path: dir.to_owned() },
            other => other.into(),
        })?;
        let copies =
            [names::IDENTITY, names::IDENTITY_COPY].map(|name| identity_in(&*disk, dir, name));
        let sound = copies.into_iter().find_map(|copy| copy.ok().and_then(Result::ok));
        let Some(identity) = sound else {
            return Err(OfflineError::Identity { path: dir.join(names::IDENTITY) });
        };
        let segments = segments_in(&*disk, dir)?;
        Ok(Self { disk, dir: dir.to_owned(), identity: Arc::new(identity), segments, _lock: lock })
    }

    /// The begin and the end of the log, as far as there are segments.
    pub fn extent(&self) -> std::ops::Range<PhysicalOffset> {
        let begin = self.segments.first().map_or(PhysicalOffset::ZERO, |segment| segment.base);
        begin..self.segments.last().map_or(begin, SegmentFile::end)
    }
}

impl SegmentFile {
    /// Behind its last byte.
    pub(super) fn end(&self) -> PhysicalOffset {
        self.base.plus(self.len)
    }

    /// The segment, opened for reading if it is not open yet.
    pub(super) fn segment(&self, disk: &dyn Disk) -> Result<Arc<Segment>, FileError> {
        match &self.open {
            Some(segment) => Ok(Arc::clone(segment)),
            None => Ok(Arc::new(Segment::open_to_read(disk, &self.path, self.base, self.len)?)),
        }
    }
}

/// One copy of the identity, as it lies there.
pub(super) fn identity_in(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
) -> Result<Result<Identity, DecodeError>, FileError> {
    Ok(Identity::decode(&read_file(disk, &dir.join(name), identity::LEN as u64)?))
}

/// The segments of a directory by base, by the same rules as a start: what has no room for a record is none, and whole
/// records end at multiples of their alignment.
fn segments_in(disk: &dyn Disk, dir: &Path) -> Result<Vec<SegmentFile>, FileError> {
    let dir = dir.join(FileKind::Segment.directory());
    let entries = match disk.list(&dir) {
        Err(FileError::NotFound { .. }) => Vec::new(),
        entries => entries?,
    };
    let segment = |entry: crate::file::disk::DirEntry| {
        let base = FileKind::Segment.parse(&entry.name)?;
        let len = entry.len - entry.len % ALIGN;
        (len > PAGE_LEN as u64).then(|| SegmentFile {
            path: dir.join(&entry.name),
            base,
            len,
            open: None,
        })
    };
    let mut segments: Vec<_> = entries.into_iter().filter_map(segment).collect();
    segments.sort_by_key(|segment| segment.base);
    Ok(segments)
}
