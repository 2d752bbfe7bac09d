//! Messages by key or producer's id.
//!
//! The index gives candidates by hash; each is loaded through the gate, verified, and compared by topic and bytes, so
//! that a collision neither leaks nor uses up the page. A page ends at its limit of messages, at [`PAGE_BYTES`] of
//! records, or after [`EXAMINED`] candidates; the cursor says where the next one goes on. The upper end of the window
//! is fixed at the first page, so that what comes later does not shift the pages.

use std::ops::Range;

use bytes::Bytes;

use super::Shared;
use super::error::ReadError;
use super::read::{HeaderAt, Loaded, May, Nearby, StoredRecord};
use super::topics::TopicHandle;
use crate::format::batch::Batch;
use crate::format::index::{IndexKind, key_hash};
use crate::format::segment_header::PAGE_LEN;
use crate::log::index::Order;
use crate::message::{PhysicalOffset, Timestamp};
use crate::sync::Arc;

/// Candidates fetched from the index at a time.
const FETCH: usize = 64;
/// Candidates looked at in one page: bounds the time of a page that finds nothing in its time range.
const EXAMINED: usize = 10_000;
/// Record bytes in one page: bounds what an answer pins.
const PAGE_BYTES: usize = 4 << 20;

/// Where the next page goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FindCursor {
    /// The end of the window, fixed at the first page.
    pub window_end: PhysicalOffset,
    /// The record of the last message looked at.
    pub offset: PhysicalOffset,
    /// Its place in the record.
    pub index: u16,
}

/// What to find.
#[derive(Clone, Debug)]
pub struct FindRequest {
    /// In which topic.
    pub topic: Arc<TopicHandle>,
    /// A key or a producer's id.
    pub kind: IndexKind,
    /// Its bytes.
    pub bytes: Bytes,
    /// Store time from, inclusive.
    pub begin: Timestamp,
    /// Store time to, inclusive.
    pub end: Timestamp,
    /// Which first.
    pub order: Order,
    /// Messages in a page, at least 1.
    pub limit: usize,
    /// The cursor of the page before.
    pub after: Option<FindCursor>,
}

/// A message within its record.
#[derive(Clone, Debug)]
pub struct FoundMessage {
    /// The record that holds it.
    pub record: StoredRecord,
    /// Its place in the batch, from 0.
    pub index: u16,
}

/// Why an answer may lack messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncompleteReason {
    /// An index file is being made again.
    #[error("the index of a part of the log is being rebuilt")]
    Rebuilding,
    /// Part of the log cannot be read.
    #[error("a part of the log is damaged")]
    Damaged,
}

/// A page.
#[derive(Clone, Debug)]
pub struct Found {
    /// In the order that was asked for.
    pub messages: Vec<FoundMessage>,
    /// There may be more.
    pub next: Option<FindCursor>,
    /// Nothing that matches is missing from this page and those around it.
    pub complete: bool,
    /// Why something may be missing.
    pub reason: Option<IncompleteReason>,
}

impl Shared {
    /// One page. Blocks for the disk.
    pub(super) fn find(&self, request: &FindRequest) -> Result<Found, ReadError> {
        let readable = self.readable_end(&request.topic);
        let window_end = request.after.map_or(readable, |after| after.window_end).min(readable);
        let below = request.topic.topic_cuts(self.store_time()).below;
        let mut window = self.narrow(self.log.min().max(below)..window_end, request);
        if let Some(after) = request.after {
            match request.order {
                Order::NewestFirst => window.end = window.end.min(after.offset.plus(1)),
                Order::OldestFirst => window.start = window.start.max(after.offset),
            }
        }
        let mut page = Page {
            shared: self,
            request,
            hash: key_hash(self.index_seed, request.kind, request.topic.id(), &request.bytes),
            window_end,
            found: Found { messages: Vec::new(), next: None, complete: true, reason: None },
            bytes: 0,
            examined: 0,
            nearby: Nearby::default(),
        };
        if self.damage.overlaps(&window) {
            page.incomplete(IncompleteReason::Damaged);
        }
        page.fill(window)?;
        Ok(page.found)
    }

    /// Leaves out segments that the time range cannot touch. Store times grow along the log, so the first record of a
    /// segment tells.
    fn narrow(
        &self,
        window: Range<PhysicalOffset>,
        request: &FindRequest,
    ) -> Range<PhysicalOffset> {
        let segments = self.log.segments();
        let first_time = |segment: &crate::file::segment::Segment| {
            let first = segment.base().plus(PAGE_LEN as u64);
            if first >= window.end {
                return Some(Timestamp::new(u64::MAX));
            }
            let found = self.log.header(first, self.via(first)).ok().flatten();
            found.map(|(header, _)| header.store_time)
        };
        // An unreadable first record is taken for one that is in the range: nothing is left out by mistake.
        let begins_after =
            segments.partition_point(|s| first_time(s).is_none_or(|time| time <= request.end));
        let begins_before =
            segments.partition_point(|s| first_time(s).is_some_and(|time| time < request.begin));
        let start = begins_before
            .checked_sub(1)
            .and_then(|index| segments.get(index))
            .map_or(window.start, |segment| segment.base().max(window.start));
        let end =
            segments.get(begins_after).map_or(window.end, |segment| segment.base().min(window.end));
        start..end.max(start)
    }
}

/// A page under way.
struct Page<'a> {
    shared: &'a Shared,
    request: &'a FindRequest,
    hash: u64,
    window_end: PhysicalOffset,
    found: Found,
    bytes: usize,
    examined: usize,
    nearby: Nearby,
}

/// Whether the page goes on.
#[derive(PartialEq, Eq)]
enum Go {
    On,
    /// The page is full; its cursor is set.
    Full,
    /// Nothing further can match.
    Past,
}

impl Page<'_> {
    fn fill(&mut self, mut window: Range<PhysicalOffset>) -> Result<(), ReadError> {
        let mut candidates = Vec::with_capacity(FETCH);
        let order = self.request.order;
        while window.start < window.end {
            candidates.clear();
            let coverage = self.shared.find_candidates(
                self.hash,
                window.clone(),
                order,
                FETCH,
                &mut candidates,
            )?;
            if let Some(base) = coverage.incomplete.first() {
                self.shared.want_rebuilt(*base);
                self.incomplete(IncompleteReason::Rebuilding);
            }
            if coverage.is_lacking {
                self.incomplete(IncompleteReason::Damaged);
            }
            for at in &candidates {
                if self.examine(*at)? != Go::On {
                    return Ok(());
                }
            }
            match candidates.last() {
                Some(last) if candidates.len() == FETCH => match order {
                    Order::NewestFirst => window.end = *last,
                    Order::OldestFirst => window.start = last.plus(1),
                },
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn examine(&mut self, at: PhysicalOffset) -> Result<Go, ReadError> {
        let (request, order) = (self.request, self.request.order);
        self.examined += 1;
        let HeaderAt::Sound(header) = self.shared.header_at(at)? else {
            if self.shared.deleted.contains(at) || self.shared.lost.contains(at) {
                return Ok(Go::On);
            }
            self.incomplete(IncompleteReason::Damaged);
            return Ok(Go::On);
        };
        let time = header.store_time;
        let past = match order {
            Order::NewestFirst => time < request.begin,
            Order::OldestFirst => time > request.end,
        };
        if past {
            return Ok(Go::Past);
        }
        let is_wanted =
            header.topic == request.topic.id() && (request.begin..=request.end).contains(&time);
        if is_wanted && !self.shared.is_gone(&request.topic, &header) {
            let (topic, nearby) = (&request.topic, &mut self.nearby);
            match self.shared.load(topic, at, header.end(), May::Disk, nearby) {
                Loaded::Record(record) => {
                    if self.take(record)? == Go::Full {
                        return Ok(Go::Full);
                    }
                }
                Loaded::Damaged => self.incomplete(IncompleteReason::Damaged),
                Loaded::Refused(error) => return Err(error.into()),
                Loaded::NotYet | Loaded::NeedsDisk | Loaded::Gone | Loaded::Lost => {}
            }
        }
        if self.examined >= EXAMINED || self.bytes >= PAGE_BYTES {
            let last = match order {
                Order::NewestFirst => 0,
                Order::OldestFirst => u16::MAX,
            };
            self.end_at(at, last);
            return Ok(Go::Full);
        }
        Ok(Go::On)
    }

    /// Takes the messages of a record that match.
    fn take(&mut self, record: StoredRecord) -> Result<Go, ReadError> {
        let damaged = |_| ReadError::Damaged { at: record.offset };
        let mut matching = Vec::new();
        let batch = Batch::parse(&record.batch).map_err(damaged)?;
        // A purge may end inside a record.
        let purged = self.request.topic.purged(record.queue);
        let is_purged = |index: u16| record.first_queue_offset.plus(index.into()) < purged;
        for (index, meta) in (0_u16..).zip(batch.metas()) {
            let meta = meta.map_err(damaged)?;
            let wanted = &self.request.bytes[..];
            let matches = match self.request.kind {
                IndexKind::Key => meta.keys().any(|key| key.as_bytes() == wanted),
                IndexKind::Id => meta.id().is_some_and(|id| id.as_bytes() == wanted),
            };
            if matches && !is_purged(index) && self.is_new(record.offset, index) {
                matching.push(index);
            }
        }
        if self.request.order == Order::NewestFirst {
            matching.reverse();
        }
        if !matching.is_empty() {
            self.bytes += record.batch.len();
        }
        for index in matching {
            let offset = record.offset;
            self.found.messages.push(FoundMessage { record: record.clone(), index });
            if self.found.messages.len() >= self.request.limit {
                self.end_at(offset, index);
                return Ok(Go::Full);
            }
        }
        Ok(Go::On)
    }

    /// Whether a message was not in an earlier page.
    fn is_new(&self, offset: PhysicalOffset, index: u16) -> bool {
        self.request.after.is_none_or(|after| {
            offset != after.offset
                || match self.request.order {
                    Order::NewestFirst => index < after.index,
                    Order::OldestFirst => index > after.index,
                }
        })
    }

    fn end_at(&mut self, offset: PhysicalOffset, index: u16) {
        self.found.next = Some(FindCursor { window_end: self.window_end, offset, index });
    }

    fn incomplete(&mut self, reason: IncompleteReason) {
        self.found.complete = false;
        // Damage stays, a rebuild ends: the lasting reason is the one to know.
        if self.found.reason != Some(IncompleteReason::Damaged) {
            self.found.reason = Some(reason);
        }
    }
}
