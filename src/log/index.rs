//! Key hash to physical offsets: where the records are that may have a key.
//!
//! | where                | what                                                                  | who                     |
//! | -------------------- | --------------------------------------------------------------------- | ----------------------- |
//! | parts                | the entries of one unsealed segment, in memory; the newest one grows  | dispatcher, readers     |
//! | sealed `.idx` files  | the entries of one finished segment, never changed                    | seal worker, readers    |
//!
//! What comes out are candidates: two keys may share a hash, so the caller compares with the record. A part is frozen
//! by the start of the next one and written to a file while readers keep using it; the file is listed before the part
//! leaves, and readers look at parts first, so an entry is always found in one of them.
//!
//! One `put` at a time; everything else from any thread. `find`, `seal`, `rebuilt` and `adopt_sealed` do I/O, never
//! under a lock. Locks: a shard of a part, held for at most 64 nodes of an answer.

mod part;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use self::part::IndexPart;
use self::part::{absolute, relative};

use super::paged::{
    FileCheck, FileState, PageError, Pages, Reader, Scrubbed, SealedError, SealedFiles,
};
use super::parts::Parts;
use crate::file::FileError;
use crate::file::disk::Disk;
use crate::format::index::{BUCKET_LEN, ENTRY_LEN, IndexEntry, Sections};
use crate::format::pages::Kind;
use crate::message::PhysicalOffset;

/// Memory of an entry, at most, in the long run: its node with unused room, and the slot of a hash of its own.
pub(crate) const ENTRY_COST: u64 = 50;

/// Which candidates come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The end of the log first.
    NewestFirst,
    /// The start of the log first.
    OldestFirst,
}

/// What a search could not see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Segments of the part of the window that was walked whose files have to be rebuilt first, in the order walked.
    pub(crate) incomplete: Vec<PhysicalOffset>,
    /// A segment of that part is damaged: it may have held entries that nobody knows.
    pub(crate) is_lacking: bool,
}

/// The key entries of a store.
pub(crate) struct Indexes {
    parts: Parts<IndexPart>,
    files: SealedFiles,
}

impl Indexes {
    /// No segments. `dir` is where the `.idx` files are; it must exist before a file is written.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, store_id: [u8; 16]) -> Self {
        Self { parts: Parts::new(), files: SealedFiles::new(disk, dir, store_id, Kind::Index) }
    }

    /// The entries of the segment at `base` follow; the part before is frozen. Bases grow.
    pub(crate) fn start_part(&self, base: PhysicalOffset) {
        self.parts.start(base, IndexPart::new(base));
    }

    /// Adds a record that has a key of this hash to the newest part. By the dispatcher only, in the order of the log;
    /// the same hash again for the same record changes nothing.
    pub(crate) fn put(&self, hash: u64, at: PhysicalOffset) {
        self.put_all(&[hash], at);
    }

    /// As `put`, for all hashes of a record.
    pub(crate) fn put_all(&self, hashes: &[u64], at: PhysicalOffset) {
        if !hashes.is_empty() {
            self.parts.with_newest(|newest| {
                hashes.iter().for_each(|hash| newest.part.put(*hash, at));
            });
        }
    }

    /// Writes the file of the part at `base`, which ends at `end` and is not the newest. Readers use the file from then
    /// on, and the part's memory goes with its last reader, once all older parts are sealed too. Nothing to do if there
    /// is no such part. The caller has made the log durable up to `end`.
    ///
    /// # Errors
    /// The part stays in memory; call again.
    pub(crate) fn seal(&self, base: PhysicalOffset, end: PhysicalOffset) -> Result<(), FileError> {
        let Some(part) = self.parts.get(base) else { return Ok(()) };
        self.write(&part, end)?;
        self.parts.retire(base);
        Ok(())
    }

    /// Takes the `.idx` file of a finished segment, without reading more than its header page. `false`: there is none
    /// that is right and known to this build, rebuild it.
    pub(crate) fn adopt_sealed(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
    ) -> Result<bool, FileError> {
        self.files.adopt(base, end)
    }

    /// The finished segment has no usable file. Searches that cross it say so until it is `rebuilt`.
    pub(crate) fn mark_missing(&self, base: PhysicalOffset, end: PhysicalOffset) {
        self.files.mark_missing(base, end);
    }

    /// The file of the segment at `base` turned out wrong: see [`SealedFiles::found_wrong`].
    pub(crate) fn found_wrong(&self, base: PhysicalOffset) -> bool {
        self.files.found_wrong(base)
    }

    /// The segments whose files have to be rebuilt: those marked, and those that reads found damaged or gone.
    pub(crate) fn missing(&self) -> Vec<(PhysicalOffset, PhysicalOffset)> {
        let segments = self.files.segments();
        let missing = segments.iter().filter(|segment| segment.state == FileState::Missing);
        missing.map(|segment| (segment.base, segment.end)).collect()
    }

    /// Verifies pages of the segment's file: see [`SealedFiles::scrub`].
    pub(crate) fn scrub(
        &self,
        base: PhysicalOffset,
        from: u64,
        max: u64,
    ) -> Result<Scrubbed, SealedError> {
        self.files.scrub(base, from, max)
    }

    /// Writes the file of a finished segment from a part made by walking the segment again.
    ///
    /// # Errors
    /// The segment stays missing.
    pub(crate) fn rebuilt(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
        part: &IndexPart,
    ) -> Result<(), FileError> {
        debug_assert_eq!(part.base, base, "the part is the segment's");
        self.write(part, end)
    }

    /// Candidates for a key: the records in the window, in the order asked for, at most `max`, into `out`, which is
    /// cleared first. Segments are walked until `max` are found. May block on I/O.
    ///
    /// # Errors
    /// A file could not be read. If it is damaged or gone the segment is missing from now on: the next search that
    /// crosses it says so.
    pub(crate) fn find(
        &self,
        hash: u64,
        window: Range<PhysicalOffset>,
        order: Order,
        max: usize,
        out: &mut Vec<PhysicalOffset>,
    ) -> Result<Coverage, SealedError> {
        out.clear();
        let mut coverage = Coverage::default();
        let parts = self.parts.list();
        // Behind the parts: a part that was gone has its file in place.
        let segments = self.files.segments();
        let sealed = match parts.first() {
            Some(oldest) => segments.partition_point(|segment| segment.base < oldest.base),
            None => segments.len(),
        };
        let start = segments.partition_point(|segment| segment.end <= window.start);
        let end = segments.partition_point(|segment| segment.base < window.end).min(sealed);
        let segments = segments.get(start..end).unwrap_or_default();
        let mut find = |step: Step<'_>, out: &mut Vec<PhysicalOffset>| {
            let left = max - out.len();
            match step {
                Step::Part(part) => {
                    coverage.is_lacking |= part.is_lacking();
                    part.find(hash, &window, order, left, out);
                }
                Step::File(segment) if segment.state == FileState::Missing => {
                    coverage.incomplete.push(segment.base);
                }
                Step::File(segment) => {
                    coverage.is_lacking |= segment.state == FileState::Lacking;
                    self.files.read(segment, &mut Pages::default(), |file| {
                        find_sealed(file, hash, &window, order, left, out)
                    })?;
                }
            }
            Ok::<bool, SealedError>(out.len() < max)
        };
        // A part reaches to the next one. Those outside of the window have nothing to give, and nothing to say.
        let first = parts.partition_point(|listed| listed.base <= window.start).saturating_sub(1);
        let behind = parts.partition_point(|listed| listed.base < window.end);
        let parts = parts.get(first..behind).unwrap_or_default();
        let files = segments.iter().map(Step::File);
        let mut walk = files.chain(parts.iter().map(|listed| Step::Part(&listed.part)));
        if max > 0 {
            while let Some(step) = match order {
                Order::OldestFirst => walk.next(),
                Order::NewestFirst => walk.next_back(),
            } {
                if !find(step, out)? {
                    break;
                }
            }
        }
        Ok(coverage)
    }

    /// These bytes of the log cannot be read: searches that cross the parts they lie in say so from now on, also of the
    /// files that are made of them. A part reaches to the next one. Recovery only.
    pub(crate) fn mark_lacking(&self, range: &Range<PhysicalOffset>) {
        let parts = self.parts.list();
        let ends = parts.iter().skip(1).map(|listed| Some(listed.base)).chain([None]);
        for (listed, end) in parts.iter().zip(ends) {
            if listed.base < range.end && end.is_none_or(|end| range.start < end) {
                listed.part.mark_lacking();
            }
        }
    }

    /// Whether the sealed segment at `base` has a file that was made when not all of the segment could be read.
    pub(crate) fn is_lacking(&self, base: PhysicalOffset) -> bool {
        let segments = self.files.segments();
        let index = segments.partition_point(|segment| segment.base < base);
        let segment = segments.get(index).filter(|segment| segment.base == base);
        segment.is_some_and(|segment| segment.state == FileState::Lacking)
    }

    /// Whether the sealed segment at `base` has its file, made when all of the segment could be read.
    pub(crate) fn is_whole(&self, base: PhysicalOffset) -> bool {
        let segments = self.files.segments();
        let index = segments.partition_point(|segment| segment.base < base);
        let segment = segments.get(index).filter(|segment| segment.base == base);
        segment.is_some_and(|segment| segment.state == FileState::Present)
    }

    /// Whether every sealed segment has such a file.
    pub(crate) fn are_whole(&self) -> bool {
        self.files.segments().iter().all(|segment| segment.state == FileState::Present)
    }

    /// Whether the file of any sealed segment was made when not all of the segment could be read.
    pub(crate) fn is_any_lacking(&self) -> bool {
        self.files.segments().iter().any(|segment| segment.state == FileState::Lacking)
    }

    /// The segment at `base` is deleted: its file goes, and no search crosses it any more.
    ///
    /// # Errors
    /// The file may still be there; no search crosses it all the same.
    pub(crate) fn delete(&self, base: PhysicalOffset) -> Result<(), FileError> {
        self.files.delete(base)
    }

    /// What the parts take of memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.parts.list().iter().map(|listed| listed.part.memory_bytes()).sum()
    }

    fn write(&self, part: &IndexPart, end: PhysicalOffset) -> Result<(), FileError> {
        let sections = sections_of(part);
        let header = sections.header(self.files.store_id(), part.base, end);
        self.files.write(&header, |file| stream(part, &sections, |bytes| file.push(bytes)))
    }

    /// Reads the `.idx` file of a segment whole, listed or not, and compares it with the entries in `part`, or verifies
    /// its pages alone. Changes nothing. With the result come the bytes read.
    pub(crate) fn check(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
        part: Option<&IndexPart>,
    ) -> Result<(FileCheck, u64), FileError> {
        self.files.check(base, end, |file| {
            let Some(part) = part else { return Ok(()) };
            let sections = sections_of(part);
            file.header(&sections.header(self.files.store_id(), part.base, end));
            stream(part, &sections, |bytes| file.push(bytes))
        })
    }
}

/// The sections of the file of `part`.
fn sections_of(part: &IndexPart) -> Sections {
    Sections { is_lacking: part.is_lacking(), ..Sections::with(part.entries()) }
}

/// The stream of the file of `part`, piece by piece.
fn stream<E>(
    part: &IndexPart,
    sections: &Sections,
    mut push: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let starts = part.bucket_starts(sections);
    starts.iter().try_for_each(|start| push(&start.to_le_bytes()))?;
    part.each_entry(|entry| push(&entry.encode()))
}

/// Where a search looks next.
enum Step<'a> {
    File(&'a super::paged::SealedSegment),
    Part(&'a IndexPart),
}

/// Appends at most `max` records of the file with this hash in the window.
fn find_sealed(
    file: &mut Reader<'_>,
    hash: u64,
    window: &Range<PhysicalOffset>,
    order: Order,
    max: usize,
    out: &mut Vec<PhysicalOffset>,
) -> Result<(), PageError> {
    let sections = Sections::of(file.header()).map_err(|_| PageError::Damaged { page: 0 })?;
    let base = file.header().base;
    let window = relative(base, window);
    let bucket = sections.bucket(hash);
    let start = u64::from(u32::from_le_bytes(file.row::<BUCKET_LEN>(sections.bucket_at(bucket))?));
    let end =
        u64::from(u32::from_le_bytes(file.row::<BUCKET_LEN>(sections.bucket_at(bucket + 1))?));
    if start > end || end > sections.entries {
        // A file that contradicts itself was not written by us.
        return Err(PageError::Damaged { page: 0 });
    }
    let first = lower_bound(file, &sections, start..end, (hash, window.start))?;
    let behind = lower_bound(file, &sections, first..end, (hash, window.end))?;
    let count = (behind - first).min(max as u64);
    let mut take = |index: u64| {
        out.push(absolute(base, entry(file, &sections, index)?.position));
        Ok::<(), PageError>(())
    };
    match order {
        Order::OldestFirst => (first..first + count).try_for_each(&mut take),
        Order::NewestFirst => (behind - count..behind).rev().try_for_each(&mut take),
    }
}

fn entry(file: &mut Reader<'_>, sections: &Sections, index: u64) -> Result<IndexEntry, PageError> {
    let bytes = file.row::<ENTRY_LEN>(sections.entry_at(index))?;
    IndexEntry::decode(&bytes).map_err(|_| PageError::Damaged { page: 0 })
}

/// The first entry of the run that is not before (hash, position), or the run's end.
fn lower_bound(
    file: &mut Reader<'_>,
    sections: &Sections,
    run: Range<u64>,
    bound: (u64, u64),
) -> Result<u64, PageError> {
    let Range { start: mut low, end: mut high } = run;
    while low < high {
        let middle = low + (high - low) / 2;
        let found = entry(file, sections, middle)?;
        if (found.hash, u64::from(found.position)) < bound {
            low = middle + 1
        } else {
            high = middle
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests;
