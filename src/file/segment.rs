//! One fixed-size file of the CommitLog: write, publish, read, sync.
//!
//! A segment is made whole before it gets its name: temporary name, real blocks, zeros if wanted, header page, sync,
//! rename, sync of the directory. From then on its length never changes. When it is deleted and nobody reads it any
//! more, its file may get a temporary name again and become another segment, with what it held behind the first page
//! of records. Positions are given as physical offsets; the file position is the offset minus the segment's base, and
//! the header page counts.
//!
//! - One descriptor for writing and syncing, from `open` on: the kernel reports a failed write-back once per
//!   descriptor, a fresh one could miss it.
//! - Written only at and above the published end, published only after the write, read in place only below it (M1,
//!   M2). The store calls `write_all` and `publish` under its append lock; the rest is for any thread.
//! - It does not know records, retries no sync, and does not remember that one failed: its owner does.

use std::fmt;
use std::io::IoSlice;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use bytes::Bytes;

use super::FileError;
use super::disk::{self, Access, Disk, DiskFile, ZEROS};
use super::mapping::Mapping;
use crate::format::names::{self, FileKind};
use crate::format::segment_header::{PAGE_LEN, SegmentHeader};
use crate::message::PhysicalOffset;

/// How a new segment's blocks are prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefill {
    /// Written with zeros: a sync after an append is nearly twice as fast, as it has no extents to convert.
    Zeros,
    /// Reserved only.
    Blocks,
}

/// The file of a deleted segment, under a temporary name: what it holds is of no use, its blocks and pages are.
#[derive(Debug)]
pub struct Spare {
    name: String,
    len: u64,
}

impl Spare {
    /// Removes the file. Durable with a sync of the directory.
    pub fn unlink(&self, disk: &dyn Disk, dir: &Path) -> Result<(), FileError> {
        disk.unlink(&dir.join(&self.name))
    }
}

/// An open segment.
pub struct Segment {
    file: Arc<dyn DiskFile>,
    mapping: Arc<Mapping>,
    base: PhysicalOffset,
    /// The disk did not give a part of it once.
    was_refused: AtomicBool,
}

impl Segment {
    /// Makes the segment that `header` describes in `dir`. When it returns, the segment survives a power cut.
    ///
    /// # Errors
    /// There is no such segment, except after an error of `SyncDir`, or of opening it again: then it may be there.
    pub fn create(
        disk: &dyn Disk,
        dir: &Path,
        header: &SegmentHeader,
        prefill: Prefill,
    ) -> Result<Self, FileError> {
        let name = FileKind::Segment.name(header.base);
        disk::put_in_place(disk, dir, &name, |file| {
            file.allocate(header.len)?;
            if prefill == Prefill::Zeros {
                write_zeros(file, header.len)?;
            }
            disk::write_all_at(file, &header.encode(), 0)
        })?;
        // A descriptor under the final name, so that errors tell it. All was synced, none can be missed by it.
        Self::open(disk, &dir.join(name), header.base, header.len)
    }

    /// As [`Segment::create`], of a spare whose name is durable. Behind the header page and a page of zeros stands
    /// what the file held. `None`: the file has a second name by now, and is not the caller's alone; this one is gone.
    ///
    /// # Errors
    /// As there. The spare is gone, or under a temporary name.
    ///
    /// # Panics
    /// If the spare has another length: a broken invariant.
    pub fn reuse(
        disk: &dyn Disk,
        dir: &Path,
        spare: Spare,
        header: &SegmentHeader,
    ) -> Result<Option<Self>, FileError> {
        assert!(spare.len == header.len, "a spare keeps its length");
        let name = FileKind::Segment.name(header.base);
        let aside = dir.join(&spare.name);
        // Who copied the directory by links meanwhile has the file too.
        let links = disk.open(&aside, Access::Read).and_then(|file| file.links());
        if !matches!(links, Ok(1)) {
            let unlinked = spare.unlink(disk, dir);
            return links.and(unlinked).map(|()| None);
        }
        disk::put_again_in_place(disk, dir, &aside, &name, |file| {
            // They are there, unless somebody punched holes.
            file.allocate(header.len)?;
            let header = header.encode();
            let mut pages = [IoSlice::new(&header), IoSlice::new(&ZEROS[..PAGE_LEN])];
            disk::write_all_vectored_at(file, &mut pages, 0)
        })?;
        Self::open(disk, &dir.join(name), header.base, header.len).map(Some)
    }

    /// Whether the caller alone has the segment, and nobody a slice of it. So it stays if nobody finds it any more.
    pub fn is_unused(segment: &Arc<Self>) -> bool {
        if Arc::strong_count(segment) != 1 {
            return false;
        }
        // Who had the segment may have made slices of it before.
        fence(Ordering::Acquire);
        Arc::strong_count(&segment.mapping) == 1
    }

    /// Gives up a deleted segment and keeps its file, under a temporary name: durable with a sync of the directory,
    /// and not to be written to before. `None`: slices of it are still read, the file has another name or length, or a
    /// read of it failed once; then it is as it was.
    ///
    /// # Errors
    /// The file is as it was, or gone.
    pub fn into_spare(self, disk: &dyn Disk, dir: &Path) -> Result<Option<Spare>, FileError> {
        let Self { file, mapping, base, was_refused } = self;
        let len = mapping.len();
        // Ends the mapping. Who has a slice has a part in it, and nobody can get one any more (M2, M3).
        let is_unread = Arc::into_inner(mapping).is_some();
        // A start would come to what the disk does not give, behind the end of the log, and go no further.
        let is_sound = !was_refused.into_inner();
        if !is_unread || !is_sound || file.links()? != 1 || file.len()? != len {
            return Ok(None);
        }
        let name = FileKind::Segment.name(base);
        let aside = names::temporary(&name);
        let spare = Spare { name: aside, len };
        match disk.rename(&dir.join(name), &dir.join(&spare.name)) {
            Ok(()) => Ok(Some(spare)),
            // It may have been done all the same, and nobody would know the file by that name.
            Err(error) => match spare.unlink(disk, dir) {
                Ok(()) | Err(_) => Err(error),
            },
        }
    }

    /// Opens the segment at `path` for reading and writing. Its header is the caller's to check. Nothing is published.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        base: PhysicalOffset,
        len: u64,
    ) -> Result<Self, FileError> {
        Self::open_for(disk, path, Access::ReadWrite, base, len)
    }

    /// As [`Segment::open`], for reading alone: of a store that nobody writes to.
    pub fn open_to_read(
        disk: &dyn Disk,
        path: &Path,
        base: PhysicalOffset,
        len: u64,
    ) -> Result<Self, FileError> {
        Self::open_for(disk, path, Access::Read, base, len)
    }

    fn open_for(
        disk: &dyn Disk,
        path: &Path,
        access: Access,
        base: PhysicalOffset,
        len: u64,
    ) -> Result<Self, FileError> {
        let file = disk.open(path, access)?;
        let mapping = Arc::new(file.map(len)?);
        Ok(Self { file, mapping, base, was_refused: AtomicBool::new(false) })
    }

    /// The physical offset of its first byte, which is the header's.
    pub fn base(&self) -> PhysicalOffset {
        self.base
    }

    /// Bytes, with the header page.
    #[expect(clippy::len_without_is_empty, reason = "a segment has a header page")]
    pub fn len(&self) -> u64 {
        self.mapping.len()
    }

    /// The physical offset behind its last byte: the base of the next segment.
    pub fn end(&self) -> PhysicalOffset {
        self.base.plus(self.len())
    }

    /// Writes all `buffers` one after the other at `at`, 1024 a call; uses `buffers` up. Readers see nothing of it
    /// before `publish`, a power cut may keep any part of it before `sync`. May block.
    ///
    /// # Errors
    /// Any part may have been written.
    ///
    /// # Panics
    /// If the range is not wholly between the published end and the end of the segment: a broken invariant.
    pub fn write_all(
        &self,
        buffers: &mut [IoSlice<'_>],
        at: PhysicalOffset,
    ) -> Result<(), FileError> {
        let position = self.position(at);
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        assert!(position >= self.mapping.published(), "published bytes never change");
        assert!(len <= self.len().saturating_sub(position), "a write ends within its segment");
        disk::write_all_vectored_at(&*self.file, buffers, position)
    }

    /// Makes the bytes below `end` readable in place, for all threads. They never change again. Never moves back.
    ///
    /// # Panics
    /// If `end` lies outside of the segment: a broken invariant.
    pub fn publish(&self, end: PhysicalOffset) {
        self.mapping.publish(self.position(end));
    }

    /// The end of what can be read in place; the base, if nothing.
    pub fn published(&self) -> PhysicalOffset {
        self.base.plus(self.mapping.published())
    }

    /// `len` published bytes at `at`, in place. `None` unless all of them are published and in this segment. Touching
    /// them may wait for the device where they are not cached.
    pub fn slice(&self, at: PhysicalOffset, len: usize) -> Option<&[u8]> {
        self.mapping.slice(at.get().checked_sub(self.base.get())?, len)
    }

    /// As [`Segment::slice`], owned: without a copy, the mapping lives as long as the last clone (M3), also after the
    /// segment was closed and unlinked.
    pub fn bytes(&self, at: PhysicalOffset, len: usize) -> Option<Bytes> {
        let at = at.get().checked_sub(self.base.get())?;
        self.mapping.slice(at, len)?;
        Some(Bytes::from_owner(Published { mapping: Arc::clone(&self.mapping), at, len }))
    }

    /// Fills `buffer` from `at` by `pread`, published or not. May block.
    ///
    /// # Errors
    /// `TooShort` if the range is not wholly in the file, or starts before it.
    pub fn read_exact(&self, at: PhysicalOffset, buffer: &mut [u8]) -> Result<(), FileError> {
        self.read_by(at, |file, position| disk::read_exact_at(file, buffer, position))
    }

    /// The `len` bytes at `at`: as [`Segment::read_exact`], and cheaper where there is no buffer yet.
    ///
    /// # Errors
    /// As [`Segment::read_exact`].
    pub fn read_vec(&self, at: PhysicalOffset, len: usize) -> Result<Vec<u8>, FileError> {
        self.read_by(at, |file, position| disk::read_vec_at(file, len, position))
    }

    /// As [`Segment::read_exact`], of what was written lately and is in memory still. For a few bytes here and there: a
    /// copy of them costs less than a page of the mapping, which the kernel has to fill in and to take away again.
    ///
    /// # Errors
    /// As [`Segment::read_exact`].
    pub fn read_fresh(&self, at: PhysicalOffset, buffer: &mut [u8]) -> Result<(), FileError> {
        self.read_by(at, |file, position| disk::read_fresh_exact_at(file, buffer, position))
    }

    fn read_by<T>(
        &self,
        at: PhysicalOffset,
        read: impl FnOnce(&dyn DiskFile, u64) -> Result<T, FileError>,
    ) -> Result<T, FileError> {
        let Some(position) = at.get().checked_sub(self.base.get()) else {
            return Err(FileError::TooShort { path: self.file.path().to_path_buf(), end: 0 });
        };
        let read = read(&*self.file, position);
        if read.is_err() {
            self.was_refused.store(true, Ordering::Relaxed);
        }
        read
    }

    /// Makes durable what was written before the call. Blocks.
    ///
    /// # Errors
    /// Final: what was not durable before may never be, whatever a later sync says.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync()
    }

    /// Forgets cached pages that are clean, so that the next read is of what the device has.
    pub fn drop_cache(&self) -> Result<(), FileError> {
        self.file.drop_cache(0..self.len())
    }

    /// As [`Segment::drop_cache`], of the pages that lie wholly in a part of it.
    pub fn drop_cache_of(&self, range: Range<PhysicalOffset>) -> Result<(), FileError> {
        self.file.drop_cache(self.position(range.start)..self.position(range.end))
    }

    /// The file position of `at`.
    fn position(&self, at: PhysicalOffset) -> u64 {
        assert!(self.base <= at && at <= self.end(), "the offset lies in this segment");
        at.since(self.base)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("path", &self.file.path())
            .field("base", &self.base)
            .field("mapping", &self.mapping)
            .finish()
    }
}

/// The owner of a zero-copy read.
struct Published {
    mapping: Arc<Mapping>,
    at: u64,
    len: usize,
}

impl AsRef<[u8]> for Published {
    fn as_ref(&self) -> &[u8] {
        // Always there: it was when the owner was made, and the published end never moves back.
        self.mapping.slice(self.at, self.len).unwrap_or_default()
    }
}

/// Writes zeros over the whole file, 64 KiB at a call. The kernel caches what one call wrote as one large folio and
/// walks all its blocks in each later write to it: after calls of 1 MiB an append of 1 KiB took 2.4 µs, after 64 KiB
/// 1.0 µs; calls below slow down appends of 100 KiB.
fn write_zeros(file: &dyn DiskFile, len: u64) -> Result<(), FileError> {
    let mut position = 0;
    while position < len {
        let turn = (len - position).min(ZEROS.len() as u64);
        disk::write_all_at(file, &ZEROS[..turn as usize], position)?;
        position += turn;
    }
    Ok(())
}
