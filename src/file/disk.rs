//! The one door to the operating system: every file operation of the store passes [`Disk`] or [`DiskFile`].
//!
//! [`RealDisk`] is Linux through rustix; the simulated disk of `sim` stands in its place in tests. The free functions
//! are built on the traits, so both disks run them. An interrupted call (EINTR) is repeated here and never seen above;
//! no other error is retried, and a failed sync least of all: the kernel reports it once and then forgets the pages.

use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{self as sys, Advice, AtFlags, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::{Errno, pread, pwrite, pwritev, retry_on_intr};

use super::mapping::Mapping;
use super::{FileError, Operation, lock};
use crate::format::names::temporary;

/// Buffers that one `write_at` takes: Linux' IOV_MAX.
pub const MAX_BUFFERS: usize = 1024;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Without its directory. Names that are not UTF-8 are left out of listings.
    pub name: String,
    /// Of the file, in bytes.
    pub len: u64,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    ReadWrite,
}

/// Held while the process owns the data directory; dropping it releases the lock.
pub trait DirLock: Send + Sync {}

/// A file system. All paths are absolute or relative to the process.
pub trait Disk: Send + Sync + 'static {
    /// Makes a directory with mode 0700 and syncs its parent. One that exists is fine. The parent must exist.
    fn create_dir(&self, path: &Path) -> Result<(), FileError>;
    /// The files of a directory (not its subdirectories), sorted by name.
    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, FileError>;
    /// A new empty file with mode 0600 for reading and writing; an old one of that name is truncated.
    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, FileError>;
    /// An existing file.
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn DiskFile>, FileError>;
    /// Renames within one directory, replacing what stands there. Durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError>;
    /// Removes a name. Durable after `sync_dir`. Open files and mappings stay readable.
    fn unlink(&self, path: &Path) -> Result<(), FileError>;
    /// Makes the names of a directory durable.
    fn sync_dir(&self, path: &Path) -> Result<(), FileError>;
    /// Fills `bytes` with random ones that nobody can guess.
    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), FileError>;
    /// Bytes that this process may still write to the file system of `path`.
    fn free_space(&self, path: &Path) -> Result<u64, FileError>;
    /// Takes the exclusive lock on a directory by its lock file, which is made if missing.
    /// `FileError::Locked` if another process (or another handle of this one) holds it.
    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, FileError>;
}

/// An open file. Methods may be called from any thread at once.
#[expect(clippy::len_without_is_empty, reason = "asking for the length may fail")]
pub trait DiskFile: Send + Sync {
    /// The path under which it was opened.
    fn path(&self) -> &Path;
    /// Bytes.
    fn len(&self) -> Result<u64, FileError>;
    /// Names that the file has. What is written to a file with several shows under all of them.
    fn links(&self) -> Result<u64, FileError>;
    /// Reserves real blocks so that the file is `len` bytes long; new bytes read as zeros.
    fn allocate(&self, len: u64) -> Result<(), FileError>;
    /// One write of at most the first [`MAX_BUFFERS`] buffers at a position: returns how many bytes were taken, at
    /// least 1 unless `buffers` is empty. After an error any part may have been written.
    fn write_at(&self, buffers: &[IoSlice<'_>], position: u64) -> Result<usize, FileError>;
    /// One read at a position: returns how many bytes were read, 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<usize, FileError>;
    /// As [`DiskFile::read_at`], into the room that `out` has behind its bytes, which nobody has to fill with zeros
    /// first; 0 also without room.
    fn read_into_room_at(&self, out: &mut Vec<u8>, position: u64) -> Result<usize, FileError> {
        let len = out.len();
        out.resize(out.capacity(), 0);
        let read = self.read_at(&mut out[len..], position);
        out.truncate(len + read.as_ref().map_or(0, |read| *read));
        read
    }
    /// As [`DiskFile::read_at`], of what was written lately: mostly the device is not asked, for it is in memory.
    fn read_fresh_at(&self, buffer: &mut [u8], position: u64) -> Result<usize, FileError> {
        self.read_at(buffer, position)
    }
    /// Makes all that was written durable. After an error nothing unsynced may be assumed durable, ever.
    fn sync(&self) -> Result<(), FileError>;
    /// Forgets the clean cached pages that lie wholly in `range`, so that the next read comes from the device.
    fn drop_cache(&self, range: Range<u64>) -> Result<(), FileError>;
    /// Maps the first `len` bytes for reading; `FileError::TooShort` if the file has fewer. They follow later writes
    /// (one page cache).
    fn map(&self, len: u64) -> Result<Mapping, FileError>;
}

/// Writes all of `bytes` at `position`, continuing short writes. After an error any part may have been written.
pub fn write_all_at(file: &dyn DiskFile, bytes: &[u8], position: u64) -> Result<(), FileError> {
    write_all_vectored_at(file, &mut [IoSlice::new(bytes)], position)
}

/// Writes all bytes of `buffers` at `position`, [`MAX_BUFFERS`] at a call, continuing short writes; uses `buffers` up.
/// After an error any part may have been written.
pub fn write_all_vectored_at(
    file: &dyn DiskFile,
    mut buffers: &mut [IoSlice<'_>],
    mut position: u64,
) -> Result<(), FileError> {
    // Skips empty buffers in front, so that a write of nothing is never issued.
    IoSlice::advance_slices(&mut buffers, 0);
    while !buffers.is_empty() {
        let turn = buffers.len().min(MAX_BUFFERS);
        let written = file.write_at(&buffers[..turn], position)?;
        if written == 0 {
            return Err(FileError::Io {
                operation: Operation::Write,
                path: file.path().to_path_buf(),
                cause: io::ErrorKind::WriteZero.into(),
            });
        }
        position += written as u64;
        IoSlice::advance_slices(&mut buffers, written);
    }
    Ok(())
}

/// Fills `buffer` from `position`. `FileError::TooShort` if the file ends before.
pub fn read_exact_at(
    file: &dyn DiskFile,
    buffer: &mut [u8],
    position: u64,
) -> Result<(), FileError> {
    fill_at(file, buffer, position, |buffer, position| file.read_at(buffer, position))
}

/// The `len` bytes at `position`. `FileError::TooShort` if the file ends before.
pub fn read_vec_at(file: &dyn DiskFile, len: usize, position: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = position.saturating_add(bytes.len() as u64);
        if file.read_into_room_at(&mut bytes, at)? == 0 {
            let end = position.saturating_add(len as u64);
            return Err(FileError::TooShort { path: file.path().to_path_buf(), end });
        }
    }
    // There may have been more room.
    bytes.truncate(len);
    Ok(bytes)
}

/// As [`read_exact_at`], by [`DiskFile::read_fresh_at`].
pub fn read_fresh_exact_at(
    file: &dyn DiskFile,
    buffer: &mut [u8],
    position: u64,
) -> Result<(), FileError> {
    fill_at(file, buffer, position, |buffer, position| file.read_fresh_at(buffer, position))
}

fn fill_at(
    file: &dyn DiskFile,
    mut buffer: &mut [u8],
    mut position: u64,
    read: impl Fn(&mut [u8], u64) -> Result<usize, FileError>,
) -> Result<(), FileError> {
    let end = position.saturating_add(buffer.len() as u64);
    while !buffer.is_empty() {
        let read = read(buffer, position)?;
        if read == 0 {
            return Err(FileError::TooShort { path: file.path().to_path_buf(), end });
        }
        position += read as u64;
        buffer = &mut buffer[read..];
    }
    Ok(())
}

/// Puts a file with these contents at `dir/name`, replacing what stands there. When it returns, the file survives a
/// power cut; whenever it stops, a reader finds either the old file or the whole new one.
///
/// # Errors
/// What stood there is still there, except after an error of `Rename` or `SyncDir`: then it is one or the other.
pub fn write_file_atomically(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<(), FileError> {
    put_in_place(disk, dir, name, |file| write_all_at(file, bytes, 0))
}

/// Makes a file under a temporary name, lets `fill` write it, and gives it its name only when it is durable: whoever
/// finds the name finds the whole file.
pub(super) fn put_in_place(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&dyn DiskFile) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let aside = dir.join(temporary(name));
    let made = disk.create(&aside);
    name_when_durable(disk, dir, &aside, name, made, fill)
}

/// As [`put_in_place`], of a file that is there under the temporary name `aside` already. Its name is durable.
pub(super) fn put_again_in_place(
    disk: &dyn Disk,
    dir: &Path,
    aside: &Path,
    name: &str,
    fill: impl FnOnce(&dyn DiskFile) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let found = disk.open(aside, Access::ReadWrite);
    name_when_durable(disk, dir, aside, name, found, fill)
}

fn name_when_durable(
    disk: &dyn Disk,
    dir: &Path,
    aside: &Path,
    name: &str,
    file: Result<Arc<dyn DiskFile>, FileError>,
    fill: impl FnOnce(&dyn DiskFile) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let named = file.and_then(|file| {
        fill(&*file)?;
        file.sync()?;
        disk.rename(aside, &dir.join(name))
    });
    match named {
        Ok(()) => disk.sync_dir(dir),
        // Gives back the space. A name that stays behind is harmless, the next try or start replaces it, so the
        // first error is the one to tell.
        Err(error) => match disk.unlink(aside) {
            Ok(()) | Err(_) => Err(error),
        },
    }
}

/// The whole file. `FileError::TooLong`, before anything is read, if it has more than `max_len` bytes.
pub fn read_file(disk: &dyn Disk, path: &Path, max_len: u64) -> Result<Vec<u8>, FileError> {
    let file = disk.open(path, Access::Read)?;
    let len = file.len()?;
    let too_long = || FileError::TooLong { path: path.to_path_buf(), len, max: max_len };
    if len > max_len {
        return Err(too_long());
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| too_long())?];
    read_exact_at(&*file, &mut bytes, 0)?;
    Ok(bytes)
}

/// What holds a data directory. The store runs on any; the caller may warn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Ext4 (and its elders ext2 and ext3, which share the number).
    Ext4,
    /// XFS.
    Xfs,
    /// Memory: nothing survives a power cut.
    Tmpfs,
    /// Not one of those that the store was measured and tested on.
    Other {
        /// As `statfs` tells it.
        magic: u64,
    },
}

/// Which file system holds `path`.
pub fn file_system(path: &Path) -> Result<FileSystem, FileError> {
    // Numbers of linux/magic.h.
    let facts = retry_on_intr(|| sys::statfs(path))
        .map_err(|errno| FileError::refused(Operation::FreeSpace, path, errno))?;
    Ok(match facts.f_type as u64 {
        0xEF53 => FileSystem::Ext4,
        0x5846_5342 => FileSystem::Xfs,
        0x0102_1994 => FileSystem::Tmpfs,
        magic => FileSystem::Other { magic },
    })
}

/// The operating system's own files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> Result<(), FileError> {
        match retry_on_intr(|| sys::mkdir(path, Mode::from_raw_mode(0o700))) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(FileError::refused(Operation::CreateDir, path, errno)),
        }
        // Also when it exists: who made it may have died before this line.
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => self.sync_dir(Path::new(".")),
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, FileError> {
        let refused = |errno| FileError::refused(Operation::List, path, errno);
        let dir = open_dir(path).map_err(refused)?;
        let mut entries = Vec::new();
        for entry in sys::Dir::read_from(&dir).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let facts = match sys::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(facts) => facts,
                // Unlinked since the directory was read.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(refused(errno)),
            };
            if FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile {
                let len = u64::try_from(facts.st_size).unwrap_or(0);
                entries.push(DirEntry { name: name.to_owned(), len });
            }
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, FileError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        RealFile::open(Operation::Create, path, flags)
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn DiskFile>, FileError> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        RealFile::open(Operation::Open, path, flags)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        retry_on_intr(|| sys::rename(from, to))
            .map_err(|errno| FileError::refused(Operation::Rename, from, errno))
    }

    fn unlink(&self, path: &Path) -> Result<(), FileError> {
        retry_on_intr(|| sys::unlink(path))
            .map_err(|errno| FileError::refused(Operation::Unlink, path, errno))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), FileError> {
        open_dir(path)
            .and_then(|dir| retry_on_intr(|| sys::fsync(&dir)))
            .map_err(|errno| FileError::refused(Operation::SyncDir, path, errno))
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), FileError> {
        getrandom::fill(bytes).map_err(|error| FileError::Io {
            operation: Operation::Random,
            path: PathBuf::new(),
            cause: std::io::Error::other(error),
        })
    }

    fn free_space(&self, path: &Path) -> Result<u64, FileError> {
        let facts = retry_on_intr(|| sys::statvfs(path))
            .map_err(|errno| FileError::refused(Operation::FreeSpace, path, errno))?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, FileError> {
        lock::acquire(path)
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry_on_intr(|| sys::open(path, flags, Mode::empty()))
}

/// One descriptor.
struct RealFile {
    path: PathBuf,
    fd: OwnedFd,
}

impl RealFile {
    fn open(
        operation: Operation,
        path: &Path,
        flags: OFlags,
    ) -> Result<Arc<dyn DiskFile>, FileError> {
        let mode = Mode::from_raw_mode(0o600);
        let fd = retry_on_intr(|| sys::open(path, flags | OFlags::CLOEXEC, mode))
            .map_err(|errno| FileError::refused(operation, path, errno))?;
        Ok(Arc::new(Self { path: path.to_path_buf(), fd }))
    }

    fn refused(&self, operation: Operation, errno: Errno) -> FileError {
        FileError::refused(operation, &self.path, errno)
    }

    /// What `allocate` is where the file system cannot reserve: written zeros.
    fn fill_up(&self, len: u64) -> Result<(), FileError> {
        let mut position = self.len()?;
        while position < len {
            let turn = (len - position).min(ZEROS.len() as u64);
            write_all_at(self, &ZEROS[..turn as usize], position)?;
            position += turn;
        }
        Ok(())
    }
}

/// A source of zeros to write.
pub(super) static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl DiskFile for RealFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64, FileError> {
        let facts = sys::fstat(&self.fd).map_err(|errno| self.refused(Operation::Len, errno))?;
        Ok(u64::try_from(facts.st_size).unwrap_or(0))
    }

    fn links(&self) -> Result<u64, FileError> {
        let facts = sys::fstat(&self.fd).map_err(|errno| self.refused(Operation::Len, errno))?;
        Ok(facts.st_nlink)
    }

    fn allocate(&self, len: u64) -> Result<(), FileError> {
        if len == 0 {
            return Ok(());
        }
        match retry_on_intr(|| sys::fallocate(&self.fd, FallocateFlags::empty(), 0, len)) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.fill_up(len),
            Err(errno) => Err(self.refused(Operation::Allocate, errno)),
        }
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], position: u64) -> Result<usize, FileError> {
        let buffers = &buffers[..buffers.len().min(MAX_BUFFERS)];
        // The kernel spends a tenth of a small write on the list of its buffers.
        let written = match buffers {
            [buffer] => retry_on_intr(|| pwrite(&self.fd, buffer, position)),
            _ => retry_on_intr(|| pwritev(&self.fd, buffers, position)),
        };
        written.map_err(|errno| self.refused(Operation::Write, errno))
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<usize, FileError> {
        retry_on_intr(|| pread(&self.fd, &mut *buffer, position))
            .map_err(|errno| self.refused(Operation::Read, errno))
    }

    fn read_into_room_at(&self, out: &mut Vec<u8>, position: u64) -> Result<usize, FileError> {
        if out.len() == out.capacity() {
            return Ok(0);
        }
        retry_on_intr(|| pread(&self.fd, spare_capacity(&mut *out), position))
            .map_err(|errno| self.refused(Operation::Read, errno))
    }

    fn sync(&self) -> Result<(), FileError> {
        retry_on_intr(|| sys::fdatasync(&self.fd))
            .map_err(|errno| self.refused(Operation::Sync, errno))
    }

    fn drop_cache(&self, range: Range<u64>) -> Result<(), FileError> {
        // A length of nothing is to the end of the file for the kernel, and one that is negative to it an error.
        let end = range.end.min(i64::MAX as u64);
        let Some(len) = NonZeroU64::new(end.saturating_sub(range.start)) else {
            return Ok(());
        };
        retry_on_intr(|| sys::fadvise(&self.fd, range.start, Some(len), Advice::DontNeed))
            .map_err(|errno| self.refused(Operation::DropCache, errno))
    }

    fn map(&self, len: u64) -> Result<Mapping, FileError> {
        // A mapped page beyond the end of the file is a SIGBUS for its reader.
        if self.len()? < len {
            return Err(FileError::TooShort { path: self.path.clone(), end: len });
        }
        Mapping::of_file(&self.fd, len).map_err(|cause| FileError::Io {
            operation: Operation::Map,
            path: self.path.clone(),
            cause,
        })
    }
}
