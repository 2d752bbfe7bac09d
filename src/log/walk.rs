//! A walk over one segment as the disk has it: records verified whole, and the gaps between them.
//!
//! Used by recovery and by the rebuild of `.cq` and `.idx` files. Reads by `pread` in large pieces; a page that the
//! disk refuses is replaced by bytes that verify as nothing, so that it shows as a gap.

use std::ops::Range;
use std::sync::Arc;

use crate::file::FileError;
use crate::file::segment::Segment;
use crate::format::DecodeError;
use crate::format::record::{HEADER_LEN, MAGIC, RecordHeader, RecordKind, verify_body};
use crate::message::PhysicalOffset;

/// Bytes per read; a longer record is read in one piece.
const PIECE: usize = 1 << 20;
const PAGE: usize = 4 << 10;
/// What stands for a page that cannot be read: not zero, and no header.
const UNREADABLE: u8 = 0xEE;
const STEP: usize = 8;

/// What the walk met.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A record with a sound header; `body` tells whether attributes and payload verified.
    Record { header: RecordHeader, body: Result<(), DecodeError> },
    /// Bytes without a sound header, up to the next record or the end of the segment.
    Gap {
        end: PhysicalOffset,
        /// What was wrong at its begin.
        reason: DecodeError,
        /// Its begin is as an append leaves the end of the log: zeros up to [`mark_end`].
        is_marked: bool,
    },
    /// A filler, or no room for a header: the next record is in the next segment.
    End,
}

/// To where every append that ends at `at` leaves zeros behind it: a header's length, and the rest of the page in which
/// that ends. They tell the end of the log from what the file held before.
pub(crate) fn mark_end(at: PhysicalOffset, segment_end: PhysicalOffset) -> PhysicalOffset {
    let end = at.get().saturating_add(HEADER_LEN as u64).next_multiple_of(PAGE as u64);
    PhysicalOffset::new(end).min(segment_end)
}

/// The walk.
pub(crate) struct SegmentWalk {
    segment: Arc<Segment>,
    salt: u32,
    at: PhysicalOffset,
    /// Bytes of the segment from `buffer_at` on.
    buffer: Vec<u8>,
    buffer_at: PhysicalOffset,
    /// The first refusal of the disk, which shows as a gap.
    refused: Option<FileError>,
    /// The pages that the disk refused, in order, neighbours as one: not more than the segment has.
    unread: Vec<Range<PhysicalOffset>>,
}

impl SegmentWalk {
    /// A walk from `from`, where a record is expected to start.
    pub(crate) fn new(segment: Arc<Segment>, salt: u32, from: PhysicalOffset) -> Self {
        let buffer_at = from;
        let (buffer, refused, unread) = (Vec::new(), None, Vec::new());
        Self { segment, salt, at: from, buffer, buffer_at, refused, unread }
    }

    /// Where the next step starts.
    pub(crate) fn at(&self) -> PhysicalOffset {
        self.at
    }

    /// Why some of what was walked shows as a gap although it may be sound: the disk did not give it.
    pub(crate) fn take_refusal(&mut self) -> Option<FileError> {
        self.refused.take()
    }

    /// Whether the disk refused some of `range`: then what is wrong there may be sound.
    pub(crate) fn is_unread(&self, range: &Range<PhysicalOffset>) -> bool {
        let behind = self.unread.partition_point(|page| page.end <= range.start);
        self.unread.get(behind).is_some_and(|page| page.start < range.end)
    }

    /// The bytes behind the header of the record that the last step met at `header`.
    pub(crate) fn body(&self, header: &RecordHeader) -> &[u8] {
        let start = header.physical_offset.plus(HEADER_LEN as u64);
        let skip = usize::try_from(start.since(self.buffer_at)).unwrap_or(usize::MAX);
        let len = header.attributes_len as usize + header.payload_len as usize;
        self.buffer.get(skip..).and_then(|rest| rest.get(..len)).unwrap_or_default()
    }

    /// The next step.
    pub(crate) fn step(&mut self) -> Result<Step, FileError> {
        let at = self.at;
        if self.segment.end().since(at) < HEADER_LEN as u64 {
            return Ok(Step::End);
        }
        let header = match self.header_at(at)? {
            Ok(header) => header,
            Err(reason) => return self.gap(reason),
        };
        if header.kind == RecordKind::Filler {
            return Ok(Step::End);
        }
        self.at = header.end();
        let body = verify_body(
            &header,
            self.bytes(at.plus(HEADER_LEN as u64), {
                header.attributes_len as usize + header.payload_len as usize
            })?,
        );
        Ok(Step::Record { header, body: body.map(|_| ()) })
    }

    fn header_at(
        &mut self,
        at: PhysicalOffset,
    ) -> Result<Result<RecordHeader, DecodeError>, FileError> {
        let (salt, left) = (self.salt, self.segment.end().since(at));
        Ok(RecordHeader::decode(self.bytes(at, HEADER_LEN)?, at, salt).and_then(|header| {
            if u64::from(header.total_len) <= left {
                return Ok(header);
            }
            Err(DecodeError::TooShort { needed: u64::from(header.total_len), found: left })
        }))
    }

    /// Looks for the next sound header, in steps of 8 bytes.
    fn gap(&mut self, reason: DecodeError) -> Result<Step, FileError> {
        let mark_len = mark_end(self.at, self.segment.end()).since(self.at);
        let mark = self.bytes(self.at, usize::try_from(mark_len).unwrap_or(usize::MAX))?;
        let is_marked = mark.iter().all(|byte| *byte == 0);
        while self.at < self.segment.end() {
            let at = self.at;
            let left = usize::try_from(self.segment.end().since(at)).unwrap_or(usize::MAX);
            let bytes = self.bytes(at, left.min(PIECE))?;
            let piece_end = at.plus(bytes.len() as u64);
            // Most gaps are the untouched end of the active segment. No early exit, so that it runs at memory speed.
            if bytes.iter().fold(0, |all, byte| all | byte) == 0 {
                self.at = piece_end;
                continue;
            }
            // A body may hold a magic in each of its steps: from one to the next no byte is read again.
            while let Some(candidate) = self.magic_before(piece_end) {
                self.at = candidate;
                let fits = self.segment.end().since(candidate) >= HEADER_LEN as u64;
                if fits && self.header_at(candidate)?.is_ok() {
                    return Ok(Step::Gap { end: candidate, reason, is_marked });
                }
                self.at = candidate.plus(STEP as u64);
            }
            self.at = piece_end;
        }
        Ok(Step::Gap { end: self.at, reason, is_marked })
    }

    /// The next magic from here on in what is buffered before `end`. The header may lie beyond it.
    fn magic_before(&self, end: PhysicalOffset) -> Option<PhysicalOffset> {
        let magic = MAGIC.to_le_bytes();
        let offset =
            |at: PhysicalOffset| usize::try_from(at.get().checked_sub(self.buffer_at.get())?).ok();
        let bytes = self.buffer.get(offset(self.at)?..offset(end)?)?;
        let steps = bytes.chunks(STEP).position(|chunk| chunk.starts_with(&magic))?;
        Some(self.at.plus((steps * STEP) as u64))
    }

    /// `len` bytes at `at`, which lie inside the segment.
    fn bytes(&mut self, at: PhysicalOffset, len: usize) -> Result<&[u8], FileError> {
        let buffered_end = self.buffer_at.plus(self.buffer.len() as u64);
        if at < self.buffer_at || at.plus(len as u64) > buffered_end {
            let left = usize::try_from(self.segment.end().since(at)).unwrap_or(usize::MAX);
            self.buffer.clear();
            self.buffer.resize(len.max(PIECE).min(left), 0);
            self.buffer_at = at;
            if self.segment.read_exact(at, &mut self.buffer).is_err() {
                self.read_by_pages();
            }
        }
        let skip = usize::try_from(at.since(self.buffer_at)).unwrap_or(usize::MAX);
        Ok(self.buffer.get(skip..).and_then(|rest| rest.get(..len)).unwrap_or_default())
    }

    /// Reads what can be read when a large read failed.
    fn read_by_pages(&mut self) {
        let mut at = self.buffer_at;
        for page in self.buffer.chunks_mut(PAGE) {
            if let Err(error) = self.segment.read_exact(at, page) {
                page.fill(UNREADABLE);
                self.refused.get_or_insert(error);
                let end = at.plus(page.len() as u64);
                match self.unread.last_mut() {
                    Some(last) if last.end >= at => last.end = last.end.max(end),
                    _ => self.unread.push(at..end),
                }
            }
            at = at.plus(page.len() as u64);
        }
    }
}
