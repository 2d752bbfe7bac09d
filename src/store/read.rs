//! The way out of the log: by queue offset, or by place.
//!
//! [`Shared::load`] is the one place where records leave the store, and holds the one gate: a record leaves only if it
//! ends at or below `readable_end`, the lower of `dispatched` and what the topic's flush mode makes visible.
//!
//! | bytes | are read | by |
//! | --- | --- | --- |
//! | what this process appended lately (`hot_bytes`) | in place, through the mapping | the caller's thread |
//! | all others | with `pread` | a bounded pool of threads |
//!
//! Either way every checksum is verified before a byte is handed out.
//!
//! What is gone by retention, purge or age is not read any more: `min.rs` says where a queue begins.
//!
//! A record that fails its checksum is damaged. One that the disk does not give may be sound: the read fails and can be
//! tried again, and only after [`REFUSALS`] of them in a row the place counts as damaged, so that a reader comes past a
//! sector that is gone for good. The first read that succeeds there ends that. Headers read alone are counted apart:
//! that a header can be read says nothing of the body behind it. What is known to be damaged is so from the first
//! refusal on; a record that fails its checksum becomes known (`damage.rs`).
//!
//! What an operator gave up is passed over in silence: records that lie in it, and offsets that no entry has any more
//! if it lies between the entries around them, and no known damage does.

use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};

use super::Shared;
use super::error::ReadError;
use super::min::Min;
use super::topics::TopicHandle;
use crate::file::FileError;
use crate::format::batch::TagFilter;
use crate::format::consume_queue::{EntryFlags, QueueEntry};
use crate::format::record::{HEADER_LEN, RecordHeader};
use crate::log::commit_log::{ReadRecord, Via};
use crate::log::consume_queue::{Lookup, Trail};
use crate::log::window::Window;
use crate::message::{
    Epoch, MessageId, PhysicalOffset, QueueId, QueueKey, QueueOffset, Timestamp, TopicId,
};
use crate::sync::{Arc, Ordering, lock};

/// Entries looked up at a time.
const LOOKUP: usize = 64;
/// Entries that a filter may pass over in one call: bounds the time of a call that finds nothing.
const SCAN_BUDGET: usize = 20_000;

/// How long a look of a stream lasts, counted from its begin, once it has read [`MANY_ALONE`]; no other queue is begun
/// later. Records that lie all over the log take microseconds each: who has got some of them can send those while the
/// next are read. What lies together, and other queues that have little, go out with fewer hops between threads and
/// fewer answers.
const READ_FOR: Duration = Duration::from_micros(500);
/// Records with a read of the disk each: so many, and a look is taken for one of records that lie all over the log. One
/// that began with such a read, as each does, and goes on with neighbours is not: to begin again would cost it more.
const MANY_ALONE: u32 = 16;

/// So many reads of a place must the disk refuse before it counts as damaged.
const REFUSALS: u32 = 8;
/// Places that are remembered as refused, one for each [`Extent`]; beyond, all are forgotten, and asked for again.
const MAX_REFUSED: usize = 1_024;

/// The readable offsets of a queue: `min` is the first, `max` the next to become readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRange {
    /// The first that can be read.
    pub min: QueueOffset,
    /// One behind the last that can be read.
    pub max: QueueOffset,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// Of which topic.
    pub topic: Arc<TopicHandle>,
    /// Of which queue.
    pub queue: QueueId,
    /// The first offset wanted.
    pub from: QueueOffset,
    /// Messages at most, but at least one record.
    pub max_messages: usize,
    /// Record bytes at most, but at least one record.
    pub max_bytes: usize,
    /// Records that cannot match are left out.
    pub filter: Arc<TagFilter>,
}

/// A record as it was stored, all checksums verified.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// In which it was written.
    pub epoch: Epoch,
    /// Where it starts.
    pub offset: PhysicalOffset,
    /// Of its first message.
    pub first_queue_offset: QueueOffset,
    /// Messages in it.
    pub message_count: u16,
    /// On the store clock.
    pub store_time: Timestamp,
    /// Its queue.
    pub queue: QueueId,
    /// Its topic.
    pub topic: TopicId,
    /// What the broker added.
    pub attributes: Bytes,
    /// What the producer sent, byte for byte.
    pub batch: Bytes,
    /// Whether its bytes lie in the mapping of the log: then they cost no memory of their own.
    pub is_in_place: bool,
}

/// What a read found.
#[derive(Clone, Debug)]
pub enum ReadOutcome {
    /// Whole records in queue order; the first may begin below the wanted offset.
    Records {
        /// At least one.
        records: Vec<StoredRecord>,
        /// Where to go on.
        next: QueueOffset,
        /// The readable offsets, as of this read.
        range: QueueRange,
    },
    /// Nothing, yet.
    Empty {
        /// Where to go on: moved past what the filter left out.
        next: QueueOffset,
        /// The readable offsets, as of this read.
        range: QueueRange,
    },
    /// The offset lies outside the readable ones.
    OutOfRange {
        /// The readable offsets.
        range: QueueRange,
    },
    /// What was stored at `at` cannot be read any more.
    Damaged {
        /// The first unreadable offset.
        at: QueueOffset,
        /// The next offset that can be tried.
        next: QueueOffset,
        /// The readable offsets.
        range: QueueRange,
    },
    /// The queue's entries in a segment are being rebuilt; try again.
    Rebuilding,
}

/// Records of another queue that were read along, and where to go on in it.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// The queue.
    pub queue: QueueId,
    /// At least one, in queue order.
    pub records: Vec<StoredRecord>,
    /// Where to go on.
    pub next: QueueOffset,
    /// The readable offsets, as of this read.
    pub range: QueueRange,
}

/// By what messages are gone that are asked for by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// By all that makes them gone: retention, purge and age.
    ByTime,
    /// By purge alone: who has had them before may still want them, as long as they are there.
    ByPurge,
}

/// Where a read may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum May {
    /// In memory only: the caller's thread must not wait for a disk.
    Memory,
    /// On the disk too.
    Disk,
}

/// What a read keeps for the one that follows: of the log and of the queues' files. Who reads one queue after the
/// other, in the order in which they got their records, finds most of it here.
#[derive(Default)]
pub(super) struct Nearby {
    window: Window,
    trail: Trail,
}

/// A record that was let out, or why not.
pub(super) enum Loaded {
    Record(StoredRecord),
    /// Not visible yet.
    NotYet,
    Damaged,
    /// An operator gave it up.
    Lost,
    /// Its segment was deleted meanwhile.
    Gone,
    NeedsDisk,
    /// The disk does not give it now.
    Refused(FileError),
}

/// How far a read goes, at most to the end of what was asked for.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// To its end.
    Whole,
    /// Of a stream: see [`READ_FOR`].
    Until(Instant),
    /// The same in another queue, when there is something already that waits for it.
    Along(Instant),
}

/// How much of a record was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Extent {
    Header,
    Whole,
}

/// What is where a header was expected.
pub(super) enum HeaderAt {
    Sound(RecordHeader),
    /// No sound header starts there.
    Nothing,
    /// The disk refused it for so long that what is there counts as damaged.
    Lost,
}

impl Shared {
    /// All below this may be acknowledged for `topic`.
    pub(super) fn visible_end(&self, topic: &TopicHandle) -> PhysicalOffset {
        // `flushed` before `appended`, so that it is not seen ahead.
        let flushed = self.marks.flushed.get();
        topic.visible_end(self.marks.appended.get(), flushed)
    }

    /// Records of `topic` leave the store below this.
    pub(super) fn readable_end(&self, topic: &TopicHandle) -> PhysicalOffset {
        self.visible_end(topic).min(self.marks.dispatched.get())
    }

    /// How bytes at `at` are read.
    pub(super) fn via(&self, at: PhysicalOffset) -> Via {
        let recent = self.marks.appended.get().get().saturating_sub(self.config.hot_bytes);
        if at >= self.own_from && at.get() >= recent { Via::Mapping } else { Via::Disk }
    }

    /// The record at `at` of `topic`: the gate.
    pub(super) fn load(
        &self,
        topic: &TopicHandle,
        at: PhysicalOffset,
        end: PhysicalOffset,
        may: May,
        nearby: &mut Nearby,
    ) -> Loaded {
        if end > self.readable_end(topic) {
            return Loaded::NotYet;
        }
        let via = self.via(at);
        if via == Via::Disk && may == May::Memory {
            return Loaded::NeedsDisk;
        }
        let found = self.log.read(at, end, via, &mut nearby.window);
        // Here and not below: what the disk refuses for long enough looks the same there, and may be sound.
        if matches!(found, Ok(ReadRecord::Damaged)) {
            self.found_damage(at..end);
        }
        match self.asked(at, Extent::Whole, found) {
            Ok(ReadRecord::Whole(header, body))
                if header.topic == topic.id() && header.end() == end =>
            {
                Loaded::Record(stored(&header, body, via))
            }
            // Told apart after the read: a segment goes at any time.
            Ok(ReadRecord::Damaged) if self.deleted.contains(at) => Loaded::Gone,
            Ok(ReadRecord::Damaged) if self.lost.covers(&(at..end)) => Loaded::Lost,
            Ok(ReadRecord::Whole(..) | ReadRecord::Damaged) => {
                self.metrics.damaged_reads.increment();
                Loaded::Damaged
            }
            Err(error) => Loaded::Refused(error),
        }
    }

    /// Whether what is missing between two entries of a queue, in these bytes, was given up and is nothing else.
    fn is_given_up(&self, between: &Range<PhysicalOffset>) -> bool {
        self.lost.overlaps(between) && !self.damage.overlaps(between)
    }

    /// Whether entries that lay in these bytes went with a deleted segment.
    fn is_deleted(&self, between: &Range<PhysicalOffset>) -> bool {
        self.deleted.overlaps(between) && !self.damage.overlaps(between)
    }

    /// The header at `at`.
    pub(super) fn header_at(&self, at: PhysicalOffset) -> Result<HeaderAt, FileError> {
        let found = self.log.header(at, self.via(at)).map(|found| match found {
            Some((header, _)) => HeaderAt::Sound(header),
            None => HeaderAt::Nothing,
        });
        self.asked(at, Extent::Header, found)
    }

    /// Counts what the disk refuses at `at`, and takes it for damaged after [`REFUSALS`].
    fn asked<T: Unreadable>(
        &self,
        at: PhysicalOffset,
        extent: Extent,
        answer: Result<T, FileError>,
    ) -> Result<T, FileError> {
        match answer {
            Ok(found) => {
                if self.any_refused.load(Ordering::Relaxed) {
                    let mut refused = lock(&self.refused);
                    refused.remove(&(at, Extent::Header));
                    if extent == Extent::Whole {
                        refused.remove(&(at, Extent::Whole));
                    }
                    self.any_refused.store(!refused.is_empty(), Ordering::Relaxed);
                }
                Ok(found)
            }
            Err(error) => {
                tracing::error!(%error, offset = at.get(), "the log cannot be read");
                let mut refused = lock(&self.refused);
                if refused.len() >= MAX_REFUSED && !refused.contains_key(&(at, extent)) {
                    refused.clear();
                }
                let times = refused.entry((at, extent)).or_default();
                *times = times.saturating_add(1);
                let is_known = self.damage.contains(at) || self.lost.contains(at);
                let is_lost = is_known || *times > REFUSALS;
                self.any_refused.store(true, Ordering::Relaxed);
                if is_lost { Ok(T::UNREADABLE) } else { Err(error) }
            }
        }
    }

    /// The end of what can be read of a queue.
    pub(super) fn queue_max(&self, topic: &TopicHandle, queue: QueueId) -> QueueOffset {
        let key = QueueKey { topic: topic.id(), queue };
        self.queues.readable_next(key, self.readable_end(topic))
    }

    /// The readable offsets of a queue.
    pub(super) fn queue_range(
        &self,
        topic: &TopicHandle,
        queue: QueueId,
        may: May,
    ) -> Result<Bounds, ReadError> {
        // The begin first: what becomes readable meanwhile is behind it.
        Ok(match self.queue_min(topic, queue, may)? {
            Min::At(min) => {
                let max = self.queue_max(topic, queue);
                // All of it may be gone, also what cannot be read yet.
                Bounds::Range(QueueRange { min: min.min(max), max })
            }
            Min::NeedsDisk => Bounds::NeedsDisk,
            Min::Rebuilding { base } => Bounds::Rebuilding { base },
        })
    }

    /// Runs a read with what an earlier one left, if it may look where that is of use.
    fn with_nearby<T>(&self, may: May, read: impl FnOnce(&mut Nearby) -> T) -> T {
        match may {
            May::Memory => read(&mut Nearby::default()),
            May::Disk => {
                let mut nearby = lock(&self.nearby).pop().unwrap_or_default();
                let answer = read(&mut nearby);
                // What is below it may be found damaged or go meanwhile. Pages have names that are used once.
                nearby.window.forget();
                lock(&self.nearby).push(nearby);
                answer
            }
        }
    }

    /// As [`Shared::read`], with what an earlier read left.
    fn read_with(
        &self,
        request: &ReadRequest,
        pace: Pace,
        may: May,
        nearby: &mut Nearby,
    ) -> Result<Option<ReadOutcome>, ReadError> {
        let range = match self.queue_range(&request.topic, request.queue, may)? {
            Bounds::Range(range) => range,
            Bounds::NeedsDisk => return Ok(None),
            Bounds::Rebuilding { base } => {
                self.want_rebuilt(base);
                return Ok(Some(ReadOutcome::Rebuilding));
            }
        };
        if request.from < range.min || request.from > range.max {
            return Ok(Some(ReadOutcome::OutOfRange { range }));
        }
        let (found, messages, bytes) = (Vec::new(), 0, 0);
        let mut read =
            Read { shared: self, request, pace, may, nearby, range, found, messages, bytes };
        let stop = read.run()?;
        read.answer(stop)
    }

    /// As `read`, of a message that was delivered and is not finished: its time may be over. What was purged is gone.
    pub(super) fn read_kept(
        &self,
        request: &ReadRequest,
        may: May,
    ) -> Result<Option<ReadOutcome>, ReadError> {
        self.with_nearby(may, |nearby| self.read_kept_with(request, may, nearby))
    }

    fn read_kept_with(
        &self,
        request: &ReadRequest,
        may: May,
        nearby: &mut Nearby,
    ) -> Result<Option<ReadOutcome>, ReadError> {
        let range = match self.read_with(request, Pace::Whole, may, nearby)? {
            Some(ReadOutcome::OutOfRange { range }) if request.from < range.min => range,
            outcome => return Ok(outcome),
        };
        let topic = &request.topic;
        let gone = Ok(Some(ReadOutcome::OutOfRange { range }));
        if topic.is_dead() || request.from < topic.purged(request.queue) {
            return gone;
        }
        let of_kept = QueueRange { min: request.from, ..range };
        let (pace, found, messages, bytes) = (Pace::Whole, Vec::new(), 0, 0);
        let range = of_kept;
        let mut read =
            Read { shared: self, request, pace, may, nearby, range, found, messages, bytes };
        let stop = read.run()?;
        if read.found.iter().any(|record| record.offset < topic.purged_below()) {
            return gone;
        }
        read.answer(stop)
    }

    /// Reads records. `None`: the answer is on the disk, and the caller may not look there.
    pub(super) fn read(
        &self,
        request: &ReadRequest,
        may: May,
    ) -> Result<Option<ReadOutcome>, ReadError> {
        self.with_nearby(may, |nearby| self.read_with(request, Pace::Whole, may, nearby))
    }

    /// Reads, not for long; then in others, as far as [`READ_FOR`] and the bytes go, and up to the first that has no
    /// records to give there: what there is to say of it meets who asks for it.
    pub(super) fn read_along(
        &self,
        request: &ReadRequest,
        others: &[(QueueId, QueueOffset)],
        may: May,
    ) -> Result<Option<(ReadOutcome, Vec<Ahead>)>, ReadError> {
        self.read_along_until(request, others, Instant::now() + READ_FOR, may)
    }

    /// As [`Shared::read_along`], for another time.
    pub(super) fn read_along_until(
        &self,
        request: &ReadRequest,
        others: &[(QueueId, QueueOffset)],
        until: Instant,
        may: May,
    ) -> Result<Option<(ReadOutcome, Vec<Ahead>)>, ReadError> {
        self.with_nearby(may, |nearby| self.read_along_with(request, others, until, may, nearby))
    }

    fn read_along_with(
        &self,
        request: &ReadRequest,
        others: &[(QueueId, QueueOffset)],
        until: Instant,
        may: May,
        nearby: &mut Nearby,
    ) -> Result<Option<(ReadOutcome, Vec<Ahead>)>, ReadError> {
        let first = self.read_with(request, Pace::Until(until), may, nearby)?;
        let Some(first) = first else { return Ok(None) };
        let mut ahead = Vec::new();
        let ReadOutcome::Records { records, .. } = &first else { return Ok(Some((first, ahead))) };
        let mut left = request.max_bytes.saturating_sub(bytes_of(records));
        // Any read gives a whole record, whether it fits or not: others are mostly as large as this one.
        let mut largest = records.iter().map(len_of).max().unwrap_or(0);
        let mut request = request.clone();
        for &(queue, from) in others {
            if left < largest || Instant::now() > until {
                break;
            }
            (request.queue, request.from, request.max_bytes) = (queue, from, left);
            let read = self.read_with(&request, Pace::Along(until), may, nearby);
            let Ok(Some(ReadOutcome::Records { records, next, range })) = read else { break };
            let Some(rest) = left.checked_sub(bytes_of(&records)) else { break };
            left = rest;
            largest = largest.max(records.iter().map(len_of).max().unwrap_or(0));
            ahead.push(Ahead { queue, records, next, range });
        }
        Ok(Some((first, ahead)))
    }

    /// The record that a message id names, if it is there and visible.
    pub(super) fn by_id(
        &self,
        id: MessageId,
        gone: Gone,
    ) -> Result<Option<StoredRecord>, ReadError> {
        let at = id.offset;
        if at >= self.marks.dispatched.get() {
            return Ok(None);
        }
        let header = match self.header_at(at)? {
            HeaderAt::Sound(header) => header,
            HeaderAt::Lost | HeaderAt::Nothing if self.lost.contains(at) => return Ok(None),
            // Whether a record of this id was there cannot be known; that it never was must not be said.
            HeaderAt::Lost => return Err(ReadError::Damaged { at }),
            HeaderAt::Nothing if self.deleted.contains(at) => return Ok(None),
            HeaderAt::Nothing if self.damage.contains(at) => return Err(ReadError::Damaged { at }),
            HeaderAt::Nothing => return Ok(None),
        };
        if header.epoch != id.epoch || id.index >= header.message_count {
            return Ok(None);
        }
        let Some(topic) = self.topics.get(header.topic) else {
            return Ok(None);
        };
        // A purge may end inside the record.
        let is_purged = header.queue_offset.plus(id.index.into()) < topic.purged(header.queue);
        let is_gone = match gone {
            Gone::ByTime => self.is_gone(&topic, &header),
            Gone::ByPurge => at < topic.purged_below(),
        };
        if is_purged || is_gone {
            return Ok(None);
        }
        match self.load(&topic, at, header.end(), May::Disk, &mut Nearby::default()) {
            Loaded::Record(record) => Ok(Some(record)),
            Loaded::Damaged => Err(ReadError::Damaged { at }),
            Loaded::Refused(error) => Err(error.into()),
            Loaded::NotYet | Loaded::NeedsDisk | Loaded::Gone | Loaded::Lost => Ok(None),
        }
    }

    /// Whether the messages of a record are gone by retention, purge or age.
    pub(super) fn is_gone(&self, topic: &TopicHandle, header: &RecordHeader) -> bool {
        let cuts = topic.cuts(header.queue, self.store_time());
        let queue_end = header.queue_offset.plus(header.message_count.into());
        cuts.is_gone(header.physical_offset, header.store_time, queue_end)
    }
}

/// The readable offsets of a queue, if they are known.
pub(super) enum Bounds {
    Range(QueueRange),
    /// Ask again where the disk may be read.
    NeedsDisk,
    /// A file has to be rebuilt first.
    Rebuilding {
        base: PhysicalOffset,
    },
}

/// What stands for bytes that the disk does not give any more.
trait Unreadable {
    const UNREADABLE: Self;
}

impl Unreadable for ReadRecord {
    const UNREADABLE: Self = Self::Damaged;
}

impl Unreadable for HeaderAt {
    const UNREADABLE: Self = Self::Lost;
}

/// Bytes of the log that a record takes, but for the zeros behind it.
fn len_of(record: &StoredRecord) -> usize {
    HEADER_LEN + record.attributes.len() + record.batch.len()
}

fn bytes_of(records: &[StoredRecord]) -> usize {
    records.iter().map(len_of).sum()
}

/// Of a body that is as long as the header says.
fn stored(header: &RecordHeader, mut body: Bytes, via: Via) -> StoredRecord {
    let attributes = body.slice(..header.attributes_len as usize);
    body.advance(attributes.len());
    StoredRecord {
        epoch: header.epoch,
        offset: header.physical_offset,
        first_queue_offset: header.queue_offset,
        message_count: header.message_count,
        store_time: header.store_time,
        queue: header.queue,
        topic: header.topic,
        attributes,
        batch: body,
        is_in_place: via == Via::Mapping,
    }
}

/// What lies between two entries of a queue.
enum Around {
    /// These bytes, none if nothing was given up or deleted; and the entry behind them, if there is one.
    Known { between: Range<PhysicalOffset>, behind: Option<QueueEntry> },
    /// Ask again where the disk may be read.
    NeedsDisk,
    /// A file has to be rebuilt first.
    Rebuilding { base: PhysicalOffset },
}

/// One read under way.
struct Read<'a> {
    shared: &'a Shared,
    request: &'a ReadRequest,
    pace: Pace,
    may: May,
    nearby: &'a mut Nearby,
    range: QueueRange,
    found: Vec<StoredRecord>,
    messages: usize,
    bytes: usize,
}

/// Why a read ended, and where to go on.
enum Stop {
    /// Enough, or nothing more to be had now.
    At(QueueOffset),
    Damage {
        at: QueueOffset,
        next: QueueOffset,
    },
    Rebuilding {
        at: QueueOffset,
    },
    /// What is there went while it was read.
    Gone {
        at: QueueOffset,
    },
    NeedsDisk {
        at: QueueOffset,
    },
    Refused {
        at: QueueOffset,
        error: FileError,
    },
}

impl Read<'_> {
    fn run(&mut self) -> Result<Stop, ReadError> {
        let key = QueueKey { topic: self.request.topic.id(), queue: self.request.queue };
        let queues = &self.shared.queues;
        let mut entries = Vec::with_capacity(LOOKUP);
        let mut next = self.request.from;
        let mut scanned = 0;
        while next < self.range.max && scanned < self.scan_budget() {
            entries.clear();
            let lookup = match self.may {
                May::Memory => queues.lookup_hot(key, next, LOOKUP, &mut entries),
                May::Disk => {
                    let trail = &mut self.nearby.trail;
                    self.shared.lookup_on_disk(key, next, &mut entries, trail)?
                }
            };
            match lookup {
                Lookup::Found => {}
                Lookup::AtEnd { next: end } | Lookup::BelowFirst { first: end } => {
                    // Offsets below the readable end without entries: their records cannot be read.
                    let end = end.max(next.plus(1));
                    match self.pass_gap(key, next, end)? {
                        None => next = end,
                        Some(stop) => return Ok(stop),
                    }
                    continue;
                }
                Lookup::Rebuilding { base } => {
                    self.shared.want_rebuilt(base);
                    return Ok(Stop::Rebuilding { at: next });
                }
                Lookup::NeedsDisk => return Ok(Stop::NeedsDisk { at: next }),
            }
            scanned += entries.len();
            for entry in &entries {
                if entry.queue_offset > next
                    && let Some(stop) = self.pass_gap(key, next, entry.queue_offset)?
                {
                    return Ok(stop);
                }
                next = next.max(entry.queue_offset);
                match self.take(entry, next)? {
                    None => next = entry.queue_end(),
                    Some(stop) => return Ok(stop),
                }
            }
        }
        Ok(Stop::At(next))
    }

    /// What was found already does not wait while all of another queue is passed over: that queue's turn comes.
    fn scan_budget(&self) -> usize {
        let has_nothing = self.found.is_empty();
        if has_nothing && matches!(self.pace, Pace::Along(_)) { LOOKUP } else { SCAN_BUDGET }
    }

    /// Whether what was found is to go out before there is more of it.
    fn is_late(&self) -> bool {
        match self.pace {
            Pace::Whole => false,
            Pace::Until(until) | Pace::Along(until) => {
                self.nearby.window.alone() >= MANY_ALONE && Instant::now() > until
            }
        }
    }

    /// Takes one entry into the answer or passes over it. `Some`: the read ends before it.
    fn take(&mut self, entry: &QueueEntry, next: QueueOffset) -> Result<Option<Stop>, ReadError> {
        let behind = Stop::Damage { at: next, next: entry.queue_end() };
        let end = entry.offset.plus(u64::from(entry.len));
        if entry.flags.contains(EntryFlags::DAMAGED) {
            let is_lost = self.shared.lost.covers(&(entry.offset..end));
            return Ok((!is_lost).then_some(behind));
        }
        let may_match = self.request.filter.may_match(
            entry.tag_bits,
            entry.flags.contains(EntryFlags::TAG_IS_MASK),
            entry.flags.contains(EntryFlags::HAS_UNTAGGED),
        );
        if !may_match && end <= self.shared.readable_end(&self.request.topic) {
            return Ok(None);
        }
        let full = self.messages + usize::from(entry.messages) > self.request.max_messages
            || self.bytes + entry.len as usize > self.request.max_bytes;
        if !self.found.is_empty() && (full || self.is_late()) {
            return Ok(Some(Stop::At(next)));
        }
        let topic = &self.request.topic;
        Ok(match self.shared.load(topic, entry.offset, end, self.may, self.nearby) {
            Loaded::Record(record) => {
                self.bytes += entry.len as usize;
                self.messages += usize::from(entry.messages);
                self.found.push(record);
                None
            }
            Loaded::NotYet => Some(Stop::At(next)),
            Loaded::Damaged => Some(behind),
            Loaded::Lost => None,
            Loaded::Gone => Some(Stop::Gone { at: next }),
            Loaded::NeedsDisk => Some(Stop::NeedsDisk { at: next }),
            Loaded::Refused(error) => Some(Stop::Refused { at: next, error }),
        })
    }

    /// Why there is nothing from `at` to `next`: it is gone, or it cannot be read. `None`: an operator gave it up, or
    /// all up to the end is gone; the read goes on at `next`.
    fn pass_gap(
        &self,
        key: QueueKey,
        at: QueueOffset,
        next: QueueOffset,
    ) -> Result<Option<Stop>, ReadError> {
        let (topic, queue) = (&self.request.topic, self.request.queue);
        Ok(match self.shared.queue_min(topic, queue, self.may)? {
            Min::At(min) if min > at => Some(Stop::Gone { at }),
            Min::NeedsDisk => Some(Stop::NeedsDisk { at }),
            Min::At(_) | Min::Rebuilding { .. } => match self.around(key, at, next)? {
                Around::Known { between, .. } if self.shared.is_given_up(&between) => None,
                Around::Known { between, behind } if self.shared.is_deleted(&between) => {
                    // Whatever says so is not known yet, such as how many bytes there are behind it.
                    behind.map(|entry| {
                        self.shared.begins_at(key, &entry);
                        Stop::Gone { at }
                    })
                }
                Around::Known { .. } => Some(Stop::Damage { at, next }),
                Around::NeedsDisk => Some(Stop::NeedsDisk { at }),
                Around::Rebuilding { base } => {
                    self.shared.want_rebuilt(base);
                    Some(Stop::Rebuilding { at })
                }
            },
        })
    }

    /// The bytes between the entries on both sides of the offsets from `at` to `next`, which have none.
    fn around(
        &self,
        key: QueueKey,
        at: QueueOffset,
        next: QueueOffset,
    ) -> Result<Around, ReadError> {
        // Nothing can explain the gap: the entries need not be looked for.
        if self.shared.lost.list().is_empty() && self.shared.deleted.list().is_empty() {
            let between = PhysicalOffset::ZERO..PhysicalOffset::ZERO;
            return Ok(Around::Known { between, behind: None });
        }
        let behind = match self.entry_from(key, next)? {
            Ok(entry) => entry,
            Err(unknown) => return Ok(unknown),
        };
        let end = behind.map_or(self.shared.marks.dispatched.get(), |entry| entry.offset);
        // The entry before: the greatest offset from which the first entry is not that behind the gap. It mostly is
        // the last one before `at`; a read that begins inside of the gap halves its way there.
        let (mut low, mut high) = (0, at.get());
        let mut begin = PhysicalOffset::ZERO;
        let mut probe = high.saturating_sub(1);
        while low < high {
            match self.entry_from(key, QueueOffset::new(probe))? {
                Ok(Some(entry)) if entry.queue_offset < at => {
                    begin = begin.max(entry.offset.plus(u64::from(entry.len)));
                    low = entry.queue_end().get().max(probe + 1);
                }
                Ok(_) => high = probe,
                Err(unknown) => return Ok(unknown),
            }
            probe = low + high.saturating_sub(low) / 2;
        }
        Ok(Around::Known { between: begin..end, behind })
    }

    /// The first entry of the queue that covers `from` or is behind it.
    fn entry_from(
        &self,
        key: QueueKey,
        from: QueueOffset,
    ) -> Result<Result<Option<QueueEntry>, Around>, ReadError> {
        let mut entries = Vec::with_capacity(LOOKUP);
        let mut from = from;
        loop {
            let lookup = match self.shared.queues.lookup_hot(key, from, 1, &mut entries) {
                Lookup::NeedsDisk if self.may == May::Memory => return Ok(Err(Around::NeedsDisk)),
                Lookup::NeedsDisk => {
                    let trail = &mut Trail::default();
                    self.shared.lookup_on_disk(key, from, &mut entries, trail)?
                }
                found => found,
            };
            match lookup {
                Lookup::Found => return Ok(Ok(entries.first().copied())),
                Lookup::BelowFirst { first } if first > from => from = first,
                Lookup::AtEnd { .. } | Lookup::BelowFirst { .. } => return Ok(Ok(None)),
                Lookup::NeedsDisk => return Ok(Err(Around::NeedsDisk)),
                Lookup::Rebuilding { base } => return Ok(Err(Around::Rebuilding { base })),
            }
        }
    }

    /// What was found goes out first; the reason for the stop meets the next read.
    fn answer(self, stop: Stop) -> Result<Option<ReadOutcome>, ReadError> {
        let range = self.range;
        let next = match stop {
            Stop::At(next) => next,
            Stop::Damage { at, next } if self.found.is_empty() => {
                return Ok(Some(ReadOutcome::Damaged { at, next, range }));
            }
            Stop::Rebuilding { .. } if self.found.is_empty() => {
                return Ok(Some(ReadOutcome::Rebuilding));
            }
            Stop::NeedsDisk { .. } if self.found.is_empty() => return Ok(None),
            // The queue begins further on now.
            Stop::Gone { at } if self.found.is_empty() => {
                let request = self.request;
                return Ok(
                    match self.shared.queue_range(&request.topic, request.queue, self.may)? {
                        Bounds::Range(range) if at < range.min => {
                            Some(ReadOutcome::OutOfRange { range })
                        }
                        Bounds::Range(range) => Some(ReadOutcome::Empty { next: at, range }),
                        Bounds::NeedsDisk => None,
                        Bounds::Rebuilding { .. } => Some(ReadOutcome::Rebuilding),
                    },
                );
            }
            Stop::Refused { error, .. } if self.found.is_empty() => return Err(error.into()),
            Stop::Damage { at, .. }
            | Stop::Rebuilding { at }
            | Stop::Gone { at }
            | Stop::NeedsDisk { at }
            | Stop::Refused { at, .. } => at,
        };
        // What was let out is readable, also what became so since the range was looked at.
        let range = QueueRange { max: range.max.max(next), ..range };
        Ok(Some(if self.found.is_empty() {
            ReadOutcome::Empty { next, range }
        } else {
            ReadOutcome::Records { records: self.found, next, range }
        }))
    }
}
