//! Segments behind one physical offset: find, read, walk. Passive: who may write where is the store's business.
//!
//! The segment list is swapped as a whole (a roll adds one, recovery removes some); readers hold an `Arc` of what they
//! found, so that a segment outlives its removal from the list.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::{Buf as _, Bytes};

use super::window::{self, Window};
use crate::file::FileError;
use crate::file::segment::Segment;
use crate::format::identity::Identity;
use crate::format::record::{HEADER_LEN, RecordHeader, verify_body};
use crate::format::segment_header::PAGE_LEN;
use crate::message::PhysicalOffset;

/// What is at an offset where a record was expected.
#[derive(Debug)]
pub(crate) enum ReadRecord {
    /// A verified record: its header, and its bytes behind the header (attributes, payload).
    Whole(RecordHeader, Bytes),
    /// No sound record starts here.
    Damaged,
}

/// How bytes are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// In place, through the mapping: for bytes that this process wrote lately.
    Mapping,
    /// By `pread`: for all others. Blocks for the disk.
    Disk,
}

/// Below this, bytes read through the mapping are copied: a slice that keeps a segment mapped costs more.
const COPY_BELOW: usize = 2 << 10;

/// All segments of a store.
pub(crate) struct CommitLog {
    /// Ordered by base.
    segments: ArcSwap<Vec<Arc<Segment>>>,
    identity: Arc<Identity>,
}

impl CommitLog {
    /// A log of `segments`, ordered by base.
    pub(crate) fn new(segments: Vec<Arc<Segment>>, identity: Arc<Identity>) -> Self {
        Self { segments: ArcSwap::from_pointee(segments), identity }
    }

    /// The segments as they are now, ordered by base.
    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.segments.load_full()
    }

    /// The segment that covers `offset`.
    pub(crate) fn segment_at(&self, offset: PhysicalOffset) -> Option<Arc<Segment>> {
        let segments = self.segments.load();
        let after = segments.partition_point(|segment| segment.base() <= offset);
        let segment = segments.get(after.checked_sub(1)?)?;
        (offset < segment.end()).then(|| Arc::clone(segment))
    }

    /// Adds the next segment. Under the append lock only.
    pub(crate) fn push(&self, segment: Arc<Segment>) {
        self.segments.rcu(|segments| {
            let mut segments = Vec::clone(segments);
            segments.push(Arc::clone(&segment));
            segments
        });
    }

    /// Forgets the segments behind the one at `base`. Recovery only.
    pub(crate) fn truncate_after(&self, base: PhysicalOffset) {
        let mut segments = Vec::clone(&self.segments.load());
        segments.retain(|segment| segment.base() <= base);
        self.segments.store(Arc::new(segments));
    }

    /// Forgets the segment at `base`, which is deleted: who reads it goes on, nobody finds it any more.
    pub(crate) fn remove(&self, base: PhysicalOffset) {
        self.segments.rcu(|segments| {
            let mut segments = Vec::clone(segments);
            segments.retain(|segment| segment.base() != base);
            segments
        });
    }

    /// The first byte of the log.
    pub(crate) fn min(&self) -> PhysicalOffset {
        self.segments.load().first().map_or(PhysicalOffset::ZERO, |segment| segment.base())
    }

    /// The salt of the header checksums of a segment.
    pub(crate) fn salt(&self, segment: &Segment) -> u32 {
        self.identity.salt(segment.base())
    }

    /// The segment that covers `at`, for a walk over what this process wrote.
    pub(crate) fn fresh(&self, at: PhysicalOffset) -> Option<FreshSegment> {
        let segment = self.segment_at(at)?;
        let salt = self.salt(&segment);
        Some(FreshSegment { segment, salt })
    }

    /// The header at `at`, checksum verified, and its segment. `None`: no sound header starts there.
    ///
    /// # Errors
    /// The disk does not give the bytes: they may be sound.
    pub(crate) fn header(
        &self,
        at: PhysicalOffset,
        via: Via,
    ) -> Result<Option<(RecordHeader, Arc<Segment>)>, FileError> {
        let Some(segment) = self.segment_at(at) else { return Ok(None) };
        let first = segment.base().plus(PAGE_LEN as u64);
        if at < first || segment.end().since(at) < HEADER_LEN as u64 {
            return Ok(None);
        }
        let salt = self.salt(&segment);
        let mut buffer = [0; HEADER_LEN];
        let in_place = match via {
            Via::Mapping => segment.slice(at, HEADER_LEN),
            Via::Disk => None,
        };
        let decoded = match in_place {
            Some(bytes) => RecordHeader::decode(bytes, at, salt),
            None => {
                segment.read_exact(at, &mut buffer)?;
                RecordHeader::decode(&buffer, at, salt)
            }
        };
        let header = decoded.ok().filter(|header| header.end() <= segment.end());
        Ok(header.map(|header| (header, segment)))
    }

    /// The record from `at` to `end`, all checksums verified; a sound one that ends elsewhere is given too. What is
    /// read of the disk goes by way of `window`, which the caller keeps for the reads that follow.
    ///
    /// # Errors
    /// As [`CommitLog::header`].
    pub(crate) fn read(
        &self,
        at: PhysicalOffset,
        end: PhysicalOffset,
        via: Via,
        window: &mut Window,
    ) -> Result<ReadRecord, FileError> {
        // Mostly it is what it is said to be: one read of the disk instead of two, or none.
        if via == Via::Disk
            && let Some(record) = self.read_whole(at, end, window)?
        {
            return Ok(record);
        }
        let Some((header, segment)) = self.header(at, via)? else {
            return Ok(ReadRecord::Damaged);
        };
        let start = at.plus(HEADER_LEN as u64);
        let len = header.attributes_len as usize + header.payload_len as usize;
        let in_place = match via {
            Via::Mapping if len < COPY_BELOW => {
                segment.slice(start, len).map(Bytes::copy_from_slice)
            }
            Via::Mapping => segment.bytes(start, len),
            Via::Disk => None,
        };
        let body = match in_place {
            Some(body) => body,
            None => {
                // The length was checked against the segment's end by `header`.
                Bytes::from(segment.read_vec(start, len)?)
            }
        };
        Ok(match verify_body(&header, &body) {
            Ok(_) => ReadRecord::Whole(header, body),
            Err(_) => ReadRecord::Damaged,
        })
    }

    /// The record from `at` to `end`, in one read of the disk at most. `None`: no sound record lies just there.
    fn read_whole(
        &self,
        at: PhysicalOffset,
        end: PhysicalOffset,
        window: &mut Window,
    ) -> Result<Option<ReadRecord>, FileError> {
        let Some(segment) = self.segment_at(at) else { return Ok(None) };
        let is_within = at >= segment.base().plus(PAGE_LEN as u64) && end <= segment.end();
        let len = usize::try_from(end.get().saturating_sub(at.get())).unwrap_or(usize::MAX);
        if !is_within || len < HEADER_LEN {
            return Ok(None);
        }
        let mut alone = Vec::new();
        let bytes = match window.get(&segment, at, len)? {
            Some(bytes) => bytes,
            None => {
                alone = segment.read_vec(at, len)?;
                &alone
            }
        };
        let Ok(header) = RecordHeader::decode(bytes, at, self.salt(&segment)) else {
            return Ok(None);
        };
        let body_end = HEADER_LEN + header.attributes_len as usize + header.payload_len as usize;
        let Some(body) = bytes.get(HEADER_LEN..body_end).filter(|_| header.end() == end) else {
            return Ok(None);
        };
        if verify_body(&header, body).is_err() {
            return Ok(None);
        }
        // The window is for others too.
        let body = if alone.is_empty() {
            Bytes::copy_from_slice(body)
        } else {
            alone.truncate(body_end);
            let mut body = Bytes::from(alone);
            body.advance(HEADER_LEN);
            body
        };
        Ok(Some(ReadRecord::Whole(header, body)))
    }
}

/// The first bytes of a record that are read together: its header, and mostly all that says something about its
/// messages.
const BEGIN: u64 = 2 << 10;

/// A segment whose published bytes are walked: what is the same for all its records is looked up once. It reads
/// copies of the first bytes of records: a page of the mapping for each would cost more than all else in the walk.
pub(crate) struct FreshSegment {
    segment: Arc<Segment>,
    salt: u32,
}

impl FreshSegment {
    /// Its first byte.
    pub(crate) fn base(&self) -> PhysicalOffset {
        self.segment.base()
    }

    /// The offset behind its last byte.
    pub(crate) fn end(&self) -> PhysicalOffset {
        self.segment.end()
    }

    /// The header at `at`, checksum verified. `None`: no sound header was published there. Reads by way of `window`,
    /// one [of fresh bytes](Window::of_fresh), which the caller keeps for the reads that follow.
    ///
    /// # Errors
    /// It is not in memory any more, and the disk does not give it.
    pub(crate) fn header(
        &self,
        at: PhysicalOffset,
        window: &mut Window,
    ) -> Result<Option<RecordHeader>, FileError> {
        let left = self.segment.published().get().saturating_sub(at.get());
        let bytes = window.get(&self.segment, at, left.min(BEGIN) as usize)?.unwrap_or_default();
        let header = RecordHeader::decode(bytes, at, self.salt).ok();
        Ok(header.filter(|header| header.end() <= self.end()))
    }

    /// What `read` makes of the first bytes of the payload of a record in it, which are not verified: of those that
    /// were read with its header, else of more. `None` if that is what it says of both.
    ///
    /// # Errors
    /// As [`FreshSegment::header`].
    pub(crate) fn read_payload_begin<T>(
        &self,
        header: &RecordHeader,
        window: &mut Window,
        mut read: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, FileError> {
        let before = HEADER_LEN as u64 + u64::from(header.attributes_len);
        let (start, all) = (header.physical_offset.plus(before), header.payload_len as usize);
        for most in [BEGIN.saturating_sub(before) as usize, window::LONGEST] {
            let begin = window.get(&self.segment, start, all.min(most))?;
            if let Some(made) = read(begin.unwrap_or_default()) {
                return Ok(Some(made));
            }
        }
        Ok(None)
    }

    /// The payload of a record in it, not verified.
    pub(crate) fn payload(&self, header: &RecordHeader) -> Option<&[u8]> {
        let before = HEADER_LEN as u64 + u64::from(header.attributes_len);
        self.segment.slice(header.physical_offset.plus(before), header.payload_len as usize)
    }
}
