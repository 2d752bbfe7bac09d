//! The way into the log. One lock, one write, one publish.
//!
//! Append runs on the caller's own thread. Senders that meet wait at one mutex, `tail`: the end of the log, next queue
//! offsets and the memory for laying out a set. It is taken after a unit of broker state and before no other lock.
//!
//! Under it: refuse what cannot be stored; store time; offsets; header checksums; one write; one publish of `appended`
//! with Release. Queue offsets advance only after the write succeeded, so there are no holes. A write that failed is
//! undone with zeros; only if that fails too is the store poisoned.
//!
//! Sharing one write between senders that meet was measured with 4 threads, and gained nothing.

use std::io::IoSlice;

use bytes::Bytes;

use super::Shared;
use super::error::{AppendError, SpaceError};
use super::topics::TopicHandle;
use crate::file::FileError;
use crate::file::segment::Segment;
use crate::format::batch::BatchInfo;
use crate::format::record::{
    ALIGN, HEADER_LEN, RecordFlags, RecordHeader, RecordKind, payload_crc, record_len,
};
use crate::format::segment_header::PAGE_LEN;
use crate::format::{attributes, crc32c, crc32c_behind};
use crate::log::walk::mark_end;
use crate::log::{consume_queue, index};
use crate::message::{
    Epoch, PhysicalOffset, QueueId, QueueOffset, SessionMark, Timestamp, TopicId,
};
use crate::sync::{Arc, Ordering, fence, lock};

/// So many undispatched bytes wake the dispatcher even if nobody waits for them.
const WAKE_DISPATCH: u64 = 1 << 20;
/// The unit in which bytes are first touched, so that a write never makes the kernel read before it.
const PAGE: u64 = 4 << 10;
/// Store times in queue entries are 32-bit milliseconds from the segment's first record; 30 days is well below.
const MAX_SEGMENT_AGE_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// A shorter run is copied into one buffer: that costs less than what the kernel does for a list of small ones.
const GATHER_BELOW: u64 = 8 << 10;
/// Undispatched bytes above which appends wait: the dispatcher is slower than the senders.
const MAX_UNDISPATCHED: u64 = 64 << 20;

/// Entry bytes times this are what queues can cost at most, were every entry a queue's first.
const QUEUE_TO_ENTRY_COST: u64 = consume_queue::QUEUE_COST / consume_queue::ENTRY_COST + 1;
/// A record's place in its set is 16 bits; callers bound what they put into one request far below.
const MAX_SET_RECORDS: usize = u16::MAX as usize;

static ZEROS: [u8; PAGE as usize + HEADER_LEN] = [0; PAGE as usize + HEADER_LEN];

/// A record to append. What the log adds (offsets, time, checksums of the header) is not in it yet.
#[derive(Clone, Debug)]
pub struct NewRecord {
    kind: RecordKind,
    topic: Option<Arc<TopicHandle>>,
    queue: QueueId,
    flags: RecordFlags,
    message_count: u16,
    tag_bits: u64,
    group_hash: u32,
    index_entries: u32,
    attributes: Bytes,
    payload: Bytes,
    payload_crc: u32,
    class: Class,
}

/// What a record may use of the last segment there is, when no other can be made behind it.
///
/// A full disk must be able to end by what users delete: what makes room always finds room. Deletions need an image
/// behind what they delete, so one is taken as soon as a segment is the last one (`clean.rs`), and until it stands
/// there the state of users gets no more than messages do. From then on a deletion needs nothing but its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Epochs and deletions of segments: all of it.
    Own,
    /// What users do to make room: all but a 64th.
    Relief,
    /// Images: all but a 32nd.
    Image,
    /// State, so that acknowledgements and ends go on: as much, once an image stands in the segment or has no room
    /// there; before, all but an eighth.
    State,
    /// Messages: all but an eighth.
    Messages,
}

impl Class {
    fn kept_free(self, segment_len: u64) -> u64 {
        match self {
            Self::Own => 0,
            Self::Relief => segment_len / 64,
            Self::Image | Self::State => segment_len / 32,
            Self::Messages => segment_len / 8,
        }
    }
}

impl NewRecord {
    /// A record of messages: `batch` as it was checked, `info` what the check found. Its checksum becomes the record's.
    pub fn message(
        topic: &Arc<TopicHandle>,
        queue: QueueId,
        batch: Bytes,
        info: &BatchInfo,
    ) -> Self {
        debug_assert_eq!(info.checksum, crc32c(&batch), "what was found in this batch");
        let mut flags = RecordFlags::default();
        if info.has_untagged {
            flags = flags.with(RecordFlags::HAS_UNTAGGED);
        }
        if info.has_message_group {
            flags = flags.with(RecordFlags::HAS_MESSAGE_GROUP);
        }
        Self {
            kind: RecordKind::Message,
            topic: Some(Arc::clone(topic)),
            queue,
            flags,
            message_count: info.message_count,
            tag_bits: info.tag_bits,
            group_hash: info.group_hash,
            index_entries: info.index_entries,
            attributes: Bytes::new(),
            payload_crc: info.checksum,
            payload: batch,
            class: Class::Messages,
        }
    }

    /// The same, of a batch that belongs to a producer session.
    pub fn message_in_session(
        topic: &Arc<TopicHandle>,
        queue: QueueId,
        batch: Bytes,
        info: &BatchInfo,
        mark: &SessionMark,
    ) -> Self {
        let attributes = Bytes::from(attributes::of_session(mark));
        Self::message_with(topic, queue, batch, info, attributes)
    }

    /// The same, of a batch of which the broker says something in attributes.
    pub fn message_with(
        topic: &Arc<TopicHandle>,
        queue: QueueId,
        batch: Bytes,
        info: &BatchInfo,
        attributes: Bytes,
    ) -> Self {
        let payload_crc = crc32c_behind(crc32c(&attributes), &batch, info.checksum);
        Self { attributes, payload_crc, ..Self::message(topic, queue, batch, info) }
    }

    /// Bytes of the record of a batch, which belongs to a producer session or to none.
    pub fn len_of_message(batch: &[u8], mark: Option<&SessionMark>) -> u64 {
        let attributes = mark.map(attributes::of_session).unwrap_or_default();
        record_len(attributes.len(), batch.len())
    }

    /// A record of the broker's own state: a run of transitions.
    pub fn state(transitions: Vec<u8>) -> Self {
        Self::internal(RecordKind::State, transitions, Class::State)
    }

    /// The same, of what makes room on a full disk: it finds some where other state does not any more.
    pub fn relief(transitions: Vec<u8>) -> Self {
        Self::internal(RecordKind::State, transitions, Class::Relief)
    }

    /// A record of a state image.
    pub(super) fn image(transitions: Vec<u8>) -> Self {
        Self::internal(RecordKind::State, transitions, Class::Image)
    }

    /// A record of a deletion of segments.
    pub(super) fn own(transitions: Vec<u8>) -> Self {
        Self::internal(RecordKind::State, transitions, Class::Own)
    }

    /// The record that begins an epoch.
    pub(super) fn epoch(payload: Vec<u8>) -> Self {
        Self::internal(RecordKind::Epoch, payload, Class::Own)
    }

    fn internal(kind: RecordKind, payload: Vec<u8>, class: Class) -> Self {
        Self {
            kind,
            topic: None,
            queue: QueueId::ZERO,
            flags: RecordFlags::NO_QUEUE_OFFSET,
            message_count: 0,
            tag_bits: 0,
            group_hash: 0,
            index_entries: 0,
            attributes: Bytes::new(),
            payload_crc: payload_crc(&[], &payload),
            payload: Bytes::from(payload),
            class,
        }
    }

    fn len(&self) -> u64 {
        record_len(self.attributes.len(), self.payload.len())
    }

    /// Zeros behind the payload.
    fn padding_len(&self) -> usize {
        let used = HEADER_LEN + self.attributes.len() + self.payload.len();
        used.next_multiple_of(ALIGN as usize) - used
    }

    /// What its entries will occupy in memory until their segment is sealed.
    fn entry_bytes(&self) -> u64 {
        if self.class != Class::Messages {
            return 0;
        }
        consume_queue::ENTRY_COST + u64::from(self.index_entries) * index::ENTRY_COST
    }
}

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its first byte.
    pub offset: PhysicalOffset,
    /// The byte behind it: durable once `flushed` is here.
    pub end: PhysicalOffset,
    /// Of its first message; 0 for a record without one.
    pub queue_offset: QueueOffset,
    /// On the store clock.
    pub store_time: Timestamp,
    /// In which it was written.
    pub epoch: Epoch,
}

/// What a set asks of the segment.
#[derive(Clone, Copy)]
struct Need {
    len: u64,
    entry_bytes: u64,
    class: Class,
}

impl Need {
    fn of(records: &[NewRecord]) -> Self {
        let add = |need: Self, record: &NewRecord| Self {
            len: need.len + record.len(),
            entry_bytes: need.entry_bytes + record.entry_bytes(),
            class: need.class.max(record.class),
        };
        records.iter().fold(Self { len: 0, entry_bytes: 0, class: Class::Own }, add)
    }
}

/// The end of the log, and what only its writer knows. The append lock is the mutex around it.
pub(super) struct Tail {
    segment: Arc<Segment>,
    end: PhysicalOffset,
    /// All below was written by this life of the segment, by zeros if not by records. Behind it may be anything: a file
    /// may have been another segment before.
    touched: PhysicalOffset,
    epoch: Epoch,
    /// What the entries of this segment occupy in memory, as estimated from what was appended.
    entry_bytes: u64,
    /// Of the segment's first record.
    first_time: Option<Timestamp>,
    /// Bytes of records appended since the start.
    written: u64,
    scratch: Scratch,
}

/// Memory that appends use again and again.
#[derive(Default)]
struct Scratch {
    headers: Vec<[u8; HEADER_LEN]>,
    placed: Vec<Placed>,
    buffers: Vec<IoSlice<'static>>,
    gathered: Vec<u8>,
}

impl Scratch {
    /// Copies records, each behind its header, and `padding` zeros into `gathered`.
    fn gather(&mut self, records: &[NewRecord], padding: u64) {
        self.gathered.clear();
        for (record, header) in records.iter().zip(&self.headers) {
            self.gathered.extend_from_slice(header);
            self.gathered.extend_from_slice(&record.attributes);
            self.gathered.extend_from_slice(&record.payload);
            self.gathered.extend_from_slice(&ZEROS[..record.padding_len()]);
        }
        self.gathered.extend_from_slice(&ZEROS[..padding as usize]);
    }

    /// Writes records, each behind its header, and `padding` zeros from where they are.
    fn write_vectored(
        &mut self,
        records: &[NewRecord],
        padding: u64,
        segment: &Segment,
        start: PhysicalOffset,
    ) -> Result<(), FileError> {
        let mut buffers = recycle(std::mem::take(&mut self.buffers));
        for (record, header) in records.iter().zip(&self.headers) {
            let pad = &ZEROS[..record.padding_len()];
            let parts = [header, &record.attributes[..], &record.payload[..], pad];
            buffers.extend(parts.into_iter().filter(|part| !part.is_empty()).map(IoSlice::new));
        }
        if padding > 0 {
            buffers.push(IoSlice::new(&ZEROS[..padding as usize]));
        }
        let written = segment.write_all(&mut buffers, start);
        self.buffers = recycle(buffers);
        written
    }
}

impl Tail {
    /// A tail at `end` in `segment`. What stands behind it may be anything but a sound header.
    pub(super) fn new(
        segment: Arc<Segment>,
        end: PhysicalOffset,
        epoch: Epoch,
        first_time: Option<Timestamp>,
        entry_bytes: u64,
    ) -> Self {
        // What a cut left of the page behind the end is not known.
        let touched = end;
        let (written, scratch) = (0, Scratch::default());
        Self { segment, end, touched, epoch, entry_bytes, first_time, written, scratch }
    }

    /// Bytes of records appended since the start.
    pub(super) fn written(&self) -> u64 {
        self.written
    }
}

/// Aborts the process if a panic that began behind it unwinds past it: the tail may be half changed.
pub(super) struct AbortOnPanic {
    /// A panic is on its way already, and what is dropped on it appends.
    is_panicking: bool,
}

impl AbortOnPanic {
    pub(super) fn new() -> Self {
        Self { is_panicking: std::thread::panicking() }
    }
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.is_panicking {
            std::process::abort();
        }
    }
}

impl Shared {
    /// Appends one record.
    pub(super) fn append_one(&self, record: NewRecord) -> Result<Placed, AppendError> {
        self.append_set(std::slice::from_ref(&record), |placed| match placed {
            [one] => *one,
            _ => unreachable!("one record has one place"),
        })
    }

    /// Appends `records`, all or nothing.
    pub(super) fn append_many(&self, records: Vec<NewRecord>) -> Result<Vec<Placed>, AppendError> {
        self.append_set(&records, <[Placed]>::to_vec)
    }

    /// Appends a set, and shows where its records went.
    fn append_set<T>(
        &self,
        records: &[NewRecord],
        show: impl FnOnce(&[Placed]) -> T,
    ) -> Result<T, AppendError> {
        let need = Need::of(records);
        self.admit(records, need)?;
        let shown = {
            let mut tail = lock(&self.tail);
            let _guard = AbortOnPanic::new();
            let stored = self.store_set(&mut tail, records, need);
            stored.map(|()| show(&tail.scratch.placed))
        };
        self.wake_after_append();
        shown
    }

    /// What can be refused without the lock.
    fn admit(&self, records: &[NewRecord], need: Need) -> Result<(), AppendError> {
        let (len, max) = (need.len, self.config.max_append_set());
        if len > max {
            return Err(AppendError::TooLarge { len, max });
        }
        debug_assert!(records.len() <= MAX_SET_RECORDS, "a set's records are counted in 16 bits");
        for record in records {
            if let Some(topic) = &record.topic
                && topic.next_offset(record.queue).is_none()
            {
                return Err(AppendError::NoSuchQueue { queues: topic.queues() });
            }
        }
        let is_short = need.class == Class::Messages && self.disk_is_short.load(Ordering::Relaxed);
        if is_short || self.is_lagging() {
            return Err(AppendError::NotReady);
        }
        Ok(())
    }

    /// Whether flush or dispatch are so far behind that senders wait for them.
    pub(super) fn is_lagging(&self) -> bool {
        let view = self.marks.view(PhysicalOffset::ZERO);
        view.appended.since(view.flushed) > self.config.max_unflushed
            || view.appended.since(view.dispatched) > MAX_UNDISPATCHED
    }

    /// Stores a set in the current segment, or at the begin of the next.
    fn store_set(
        &self,
        tail: &mut Tail,
        records: &[NewRecord],
        need: Need,
    ) -> Result<(), AppendError> {
        self.refusal(records)?;
        let stamp = self.store_time();
        if !self.fits(tail, stamp, need) {
            // A set is at most a quarter of a segment: the next has room for it.
            self.roll(tail)?;
        }
        self.write_set(tail, stamp, records, need)
    }

    /// Why a set cannot be stored, wherever the tail is.
    fn refusal(&self, records: &[NewRecord]) -> Result<(), AppendError> {
        if self.is_poisoned() {
            return Err(AppendError::Poisoned);
        }
        if self.is_closed() {
            return Err(AppendError::Closed);
        }
        let dead = |record: &NewRecord| record.topic.as_ref().is_some_and(|topic| topic.is_dead());
        if records.iter().any(dead) {
            return Err(AppendError::Deleted);
        }
        Ok(())
    }

    /// Whether a set can be written to the current segment.
    fn fits(&self, tail: &Tail, stamp: Timestamp, need: Need) -> bool {
        let too_old =
            tail.first_time.is_some_and(|first| stamp.get() - first.get() > MAX_SEGMENT_AGE_MS);
        let mut entry_bytes = tail.entry_bytes + need.entry_bytes;
        // A queue's first entry in a segment costs more than the others; only the dispatcher knows which those are.
        if entry_bytes * QUEUE_TO_ENTRY_COST > self.config.unsealed_memory {
            entry_bytes += self.queues.queues_in(tail.segment.base()) * consume_queue::QUEUE_COST;
        }
        let memory_full = entry_bytes > self.config.unsealed_memory;
        let empty = tail.end == tail.segment.base().plus(PAGE_LEN as u64);
        let (end, limit) = (tail.end.get() + need.len, tail.segment.end().get());
        // Until there is a next segment, this one may be the last for long.
        let has_room = end + self.kept_free(&tail.segment, need.class) <= limit
            || end <= limit && self.ready.load().is_some();
        // Entries are of messages alone.
        let is_over = need.class == Class::Messages && (memory_full || too_old);
        has_room && (empty || !is_over)
    }

    /// What a class leaves of the last segment.
    fn kept_free(&self, last: &Segment, class: Class) -> u64 {
        let for_image = self.room_for_image.load(Ordering::Relaxed);
        match class {
            Class::Own | Class::Relief | Class::Image => class.kept_free(last.len()),
            Class::State if self.reserve_is_open(last) => class.kept_free(last.len()) + for_image,
            Class::State | Class::Messages => Class::Messages.kept_free(last.len()) + for_image,
        }
    }

    /// Whether the state of users may go into the reserve of the last segment.
    pub(super) fn reserve_is_open(&self, last: &Segment) -> bool {
        self.newest_image().is_some_and(|begin| begin >= last.base())
            || self.no_image_fits.load(Ordering::Relaxed) == last.base().get()
    }

    /// Keeps so many bytes free for an image under way. `false`: they are not there, and no other segment is.
    pub(super) fn keep_for_image(&self, len: u64) -> bool {
        let tail = lock(&self.tail);
        let segment = &tail.segment;
        let need = len + Class::Image.kept_free(segment.len());
        let left = segment.end().since(tail.end);
        let fits = need <= left
            || self.ready.load().as_ref().is_some_and(|next| {
                // While space is short there may be none behind the next either.
                !self.space_is_wanted() || need <= left + next.len() - PAGE_LEN as u64
            });
        self.room_for_image.store(if fits { len } else { 0 }, Ordering::Relaxed);
        if !fits && self.is_full() {
            self.no_image_fits(segment);
        }
        fits
    }

    /// Opens the reserve of the last segment to state: nothing is gained by one that is too small.
    pub(super) fn no_image_fits(&self, last: &Segment) {
        self.no_image_fits.store(last.base().get(), Ordering::Relaxed);
        self.space.notify_waiters();
    }

    /// Whether there is no room for a segment behind the last.
    pub(super) fn is_full(&self) -> bool {
        *lock(&self.no_space) == Some(SpaceError::Full)
    }

    /// Ends the current segment and goes on in the next.
    fn roll(&self, tail: &mut Tail) -> Result<(), AppendError> {
        if !self.may_roll() {
            return Err(AppendError::NotReady);
        }
        let Some(next) = self.ready.swap(None) else {
            // After a failure the worker asks the disk again by its own clock, not once per refused send.
            if lock(&self.no_space).is_none() {
                self.allocate_signal.wake();
            }
            return Err(AppendError::NotReady);
        };
        if let Err(error) = self.end_segment(tail) {
            self.ready.store(Some(next));
            return Err(error);
        }
        self.log.push(Arc::clone(&next));
        tail.end = next.base().plus(PAGE_LEN as u64);
        tail.touched = tail.end;
        tail.segment = next;
        tail.entry_bytes = 0;
        tail.first_time = None;
        self.marks.appended.advance(tail.end);
        self.allocate_signal.wake();
        Ok(())
    }

    /// Writes the filler record, if a header fits; zeros mark the end where it does not.
    fn end_segment(&self, tail: &mut Tail) -> Result<(), AppendError> {
        let segment = Arc::clone(&tail.segment);
        let left = segment.end().since(tail.end);
        if left >= HEADER_LEN as u64 {
            let filler = RecordHeader {
                kind: RecordKind::Filler,
                flags: RecordFlags::NO_QUEUE_OFFSET,
                // Segments are at most 1 GiB.
                total_len: u32::try_from(left).unwrap_or(u32::MAX),
                payload_crc: 0,
                attributes_len: 0,
                payload_len: 0,
                queue: QueueId::ZERO,
                physical_offset: tail.end,
                queue_offset: QueueOffset::ZERO,
                store_time: self.store_clock.last(),
                topic: TopicId::ZERO,
                tag_bits: 0,
                epoch: tail.epoch,
                group_hash: 0,
                durable_lag: durable_lag(tail.end, self.marks.flushed.get()),
                message_count: 0,
                set_index: 0,
                set_count: 1,
            };
            let header = filler.encode(self.log.salt(&segment));
            let end = tail.end.plus(HEADER_LEN as u64);
            let page_end = PhysicalOffset::new(end.get().next_multiple_of(PAGE)).min(segment.end());
            let padding = if end > tail.touched { page_end.since(end) } else { 0 };
            let mut buffers = [IoSlice::new(&header), IoSlice::new(&ZEROS[..padding as usize])];
            if let Err(source) = segment.write_all(&mut buffers, tail.end) {
                return Err(self.undo(&segment, tail.end, page_end.max(tail.touched), source));
            }
        }
        segment.publish(segment.end());
        Ok(())
    }

    /// Writes a set that fits, and publishes it.
    fn write_set(
        &self,
        tail: &mut Tail,
        stamp: Timestamp,
        records: &[NewRecord],
        need: Need,
    ) -> Result<(), AppendError> {
        let segment = Arc::clone(&tail.segment);
        let start = tail.end;
        let end = self.lay_out(tail, stamp, records);
        let marked = end.plus(HEADER_LEN as u64);
        let page_end = mark_end(end, segment.end());
        let padding =
            if marked.min(segment.end()) > tail.touched { page_end.since(end) } else { 0 };
        let written = if end.since(start) + padding < GATHER_BELOW {
            tail.scratch.gather(records, padding);
            segment.write_all(&mut [IoSlice::new(&tail.scratch.gathered)], start)
        } else {
            tail.scratch.write_vectored(records, padding, &segment, start)
        };
        if let Err(source) = written {
            for record in records.iter().rev() {
                if let Some(next) = record.next_offset() {
                    next.fetch_sub(u64::from(record.message_count), Ordering::Relaxed);
                }
            }
            return Err(self.undo(&segment, start, page_end.max(tail.touched), source));
        }
        segment.publish(end);
        tail.end = end;
        tail.touched = tail.touched.max(if padding > 0 { page_end } else { end });
        tail.entry_bytes += need.entry_bytes;
        tail.written += need.len;
        tail.first_time = tail.first_time.or(Some(stamp));
        self.marks.appended.advance(end);
        Ok(())
    }

    /// Gives every record its place, and encodes the headers. Returns the end of the last.
    fn lay_out(&self, tail: &mut Tail, stamp: Timestamp, records: &[NewRecord]) -> PhysicalOffset {
        let salt = self.log.salt(&tail.segment);
        let flushed = self.marks.flushed.get();
        let mut at = tail.end;
        tail.scratch.headers.clear();
        tail.scratch.placed.clear();
        let set_count = u16::try_from(records.len()).unwrap_or(u16::MAX);
        for (set_index, record) in records.iter().enumerate() {
            let len = record.len();
            let queue_offset = record.next_offset().map_or(0, |next| {
                next.fetch_add(u64::from(record.message_count), Ordering::Relaxed)
            });
            let header = RecordHeader {
                kind: record.kind,
                flags: record.flags,
                // `admit` bounds a set by 64 MiB.
                total_len: u32::try_from(len).unwrap_or(u32::MAX),
                payload_crc: record.payload_crc,
                attributes_len: u32::try_from(record.attributes.len()).unwrap_or(u32::MAX),
                payload_len: u32::try_from(record.payload.len()).unwrap_or(u32::MAX),
                queue: record.queue,
                physical_offset: at,
                queue_offset: QueueOffset::new(queue_offset),
                store_time: stamp,
                topic: record.topic.as_ref().map_or(TopicId::ZERO, |topic| topic.id()),
                tag_bits: record.tag_bits,
                epoch: tail.epoch,
                group_hash: record.group_hash,
                durable_lag: durable_lag(at, flushed),
                message_count: record.message_count,
                set_index: u16::try_from(set_index).unwrap_or(u16::MAX),
                set_count,
            };
            tail.scratch.headers.push(header.encode(salt));
            tail.scratch.placed.push(Placed {
                offset: at,
                end: at.plus(len),
                queue_offset: header.queue_offset,
                store_time: stamp,
                epoch: tail.epoch,
            });
            at = at.plus(len);
        }
        at
    }

    /// Writes zeros over what a failed write may have touched and syncs them, so that no recovery finds half a set. If
    /// that fails, nobody knows what is on the disk: the store is poisoned.
    fn undo(
        &self,
        segment: &Segment,
        start: PhysicalOffset,
        end: PhysicalOffset,
        source: FileError,
    ) -> AppendError {
        let mut at = start;
        let zeroed = loop {
            if at >= end {
                break segment.sync();
            }
            let len = end.since(at).min(ZEROS.len() as u64);
            if let Err(error) = segment.write_all(&mut [IoSlice::new(&ZEROS[..len as usize])], at) {
                break Err(error);
            }
            at = at.plus(len);
        };
        match zeroed {
            Ok(()) => AppendError::Write { at: start, source: Arc::new(source) },
            Err(error) => {
                self.poison(&format!("undoing a failed write at {start}: {error}"));
                AppendError::Unknown { at: start }
            }
        }
    }

    /// Wakes the dispatcher if it sleeps and somebody waits for it or much is undispatched.
    fn wake_after_append(&self) {
        // Appended first, then the look at who sleeps or waits; they do it the other way round.
        fence(Ordering::SeqCst);
        let view = self.marks.view(PhysicalOffset::ZERO);
        if view.appended.since(view.dispatched) >= WAKE_DISPATCH
            || self.arrivals.len() > 0
            || self.hurried.load(Ordering::SeqCst) > 0
            || !self.dispatch_waiters.is_empty()
        {
            self.dispatch_signal.wake();
        }
        let is_much = view.appended.since(view.flushed) >= self.config.flush_bytes;
        let is_first = self.flush_is_idle.load(Ordering::Relaxed)
            && self.flush_is_idle.swap(false, Ordering::SeqCst);
        if is_much || is_first {
            self.flush_signal.wake();
        }
    }
}

impl NewRecord {
    fn next_offset(&self) -> Option<&crate::sync::AtomicU64> {
        self.topic.as_ref()?.next_offset(self.queue)
    }
}

/// How far behind `at` the flushed mark was. Capped: a claim may be too modest, never too bold.
fn durable_lag(at: PhysicalOffset, flushed: PhysicalOffset) -> u32 {
    u32::try_from(at.since(flushed)).unwrap_or(u32::MAX)
}

/// Empties a list of buffers and keeps its memory, for buffers of another lifetime.
fn recycle<'a>(mut buffers: Vec<IoSlice<'_>>) -> Vec<IoSlice<'a>> {
    buffers.clear();
    buffers.into_iter().map(|_| IoSlice::new(&[])).collect()
}
