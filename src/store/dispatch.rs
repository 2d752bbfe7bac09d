//! CommitLog → ConsumeQueues and Index.
//!
//! A walk over record headers from `dispatched` to `appended`; there is no other way by which an entry gets into a
//! queue or the index of fresh bytes. A step covers at most [`STEP_BYTES`] or one larger record and runs under the
//! dispatcher's mutex, by its thread or by a reader that must wait. It does not wait for a disk as long as it keeps up:
//! fresh bytes are in the page cache, entries in memory.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Shared;
use super::signal::Progress;
use crate::format::batch::{Batch, BatchError, MetaView, tag_mask_bit};
use crate::format::consume_queue::{EntryFlags, QueueEntry};
use crate::format::index::{IndexKind, KeyHasher};
use crate::format::record::{HEADER_LEN, RecordFlags, RecordHeader, RecordKind, verify_body};
use crate::format::segment_header::PAGE_LEN;
use crate::log::commit_log::FreshSegment;
use crate::log::consume_queue::Lookup;
use crate::log::window::Window;
use crate::message::{PhysicalOffset, QueueKey, QueueOffset, TopicId};
use crate::sync::{Arc, Ordering, fence, lock};

/// A step covers at most so many bytes, or one larger record.
const STEP_BYTES: u64 = 1 << 20;
/// How often the thread looks when nobody wakes it.
const LOOK: Duration = Duration::from_millis(10);

/// The state behind the dispatcher's mutex.
#[derive(Debug)]
pub(super) struct Dispatcher {
    hashes: Vec<u64>,
    window: Window,
    /// The step under way has entered a segment.
    has_entered: bool,
    /// What the step under way put into queues.
    put: Vec<Put>,
}

impl Default for Dispatcher {
    fn default() -> Self {
        Self { hashes: Vec::new(), window: Window::of_fresh(), has_entered: false, put: Vec::new() }
    }
}

/// A record that was put into its queue, for who waits for it.
#[derive(Debug)]
struct Put {
    key: QueueKey,
    /// Behind the record.
    end: PhysicalOffset,
    tags: u64,
}

/// The dispatch thread's handle on its work.
pub struct DispatchWorker {
    shared: Arc<Shared>,
}

impl DispatchWorker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Dispatches one step of what is appended.
    pub fn step(&mut self) -> Progress {
        if self.shared.dispatch_step(&mut lock(&self.shared.dispatcher)) {
            Progress::Worked
        } else {
            Progress::Idle(LOOK)
        }
    }
}

/// The entry of a record's queue.
pub(super) fn queue_entry(header: &RecordHeader) -> QueueEntry {
    let mut flags = EntryFlags::default();
    if header.message_count > 1 {
        flags = flags.with(EntryFlags::TAG_IS_MASK);
    }
    if header.flags.contains(RecordFlags::HAS_UNTAGGED) {
        flags = flags.with(EntryFlags::HAS_UNTAGGED);
    }
    if header.flags.contains(RecordFlags::HAS_MESSAGE_GROUP) {
        flags = flags.with(EntryFlags::HAS_MESSAGE_GROUP);
    }
    QueueEntry {
        offset: header.physical_offset,
        len: header.total_len,
        queue_offset: header.queue_offset,
        messages: header.message_count,
        flags,
        store_time: header.store_time,
        group_hash: header.group_hash,
        tag_bits: header.tag_bits,
    }
}

/// The mask bits of the tags of a record's messages, whether it holds one or several; none if no message has a tag.
fn tag_mask(header: &RecordHeader) -> u64 {
    match header.tag_is_mask() {
        true => header.tag_bits,
        false if header.flags.contains(RecordFlags::HAS_UNTAGGED) => 0,
        false => tag_mask_bit(header.tag_bits),
    }
}

/// The queue that a record belongs to, if it is in one.
pub(super) fn queue_key(header: &RecordHeader) -> Option<QueueKey> {
    let in_queue =
        header.kind == RecordKind::Message && !header.flags.contains(RecordFlags::NO_QUEUE_OFFSET);
    in_queue.then_some(QueueKey { topic: header.topic, queue: header.queue })
}

/// The distinct hashes under which the index finds the messages of `batch`: each key and each producer's id.
pub(super) fn index_hashes(
    seed: u64,
    header: &RecordHeader,
    batch: &[u8],
    hashes: &mut Vec<u64>,
) -> Result<(), BatchError> {
    hashes_of(seed, header.topic, Batch::parse(batch)?.distinct_metas(), hashes)
}

fn hashes_of<'a>(
    seed: u64,
    topic: TopicId,
    metas: impl Iterator<Item = Result<MetaView<'a>, BatchError>>,
    hashes: &mut Vec<u64>,
) -> Result<(), BatchError> {
    hashes.clear();
    let [keys, ids] = [IndexKind::Key, IndexKind::Id].map(|kind| KeyHasher::new(seed, kind, topic));
    for meta in metas {
        let meta = meta?;
        hashes.extend(meta.keys().map(|key| keys.hash(key.as_bytes())));
        hashes.extend(meta.id().map(|id| ids.hash(id.as_bytes())));
    }
    if hashes.len() > 1 {
        hashes.sort_unstable();
        hashes.dedup();
    }
    Ok(())
}

impl Shared {
    /// Walks one step. False: there was nothing to do.
    pub(super) fn dispatch_step(&self, dispatcher: &mut Dispatcher) -> bool {
        let (start, appended) = (self.marks.dispatched.get(), self.marks.appended.get());
        if start == appended {
            return false;
        }
        let mut at = start;
        dispatcher.put.clear();
        'walk: while at < appended && at.since(start) < STEP_BYTES {
            let Some(segment) = self.log.fresh(at) else { break };
            while at < appended.min(segment.end()) && at.since(start) < STEP_BYTES {
                let Some(next) = self.dispatch_record(dispatcher, &segment, at) else {
                    // What was put before it must not be put again by the next step.
                    break 'walk;
                };
                at = next;
            }
        }
        if at == start {
            return false;
        }
        self.marks.dispatched.advance(at);
        // Behind the mark, or the worker looks too early and sleeps on.
        if std::mem::take(&mut dispatcher.has_entered) {
            self.seal_signal.wake();
        }
        // Who parks registers first and looks at the mark then; the mark moves first and the table is looked at then.
        fence(Ordering::SeqCst);
        self.dispatch_waiters.release(at);
        if self.arrivals.len() > 0 || self.is_watched.load(Ordering::SeqCst) {
            self.wake_arrived(&dispatcher.put);
        }
        self.space.notify_waiters();
        true
    }

    /// Puts the entries of the record at `at`, and says where the next one starts. `None`: the log cannot be walked,
    /// the store is poisoned.
    fn dispatch_record(
        &self,
        dispatcher: &mut Dispatcher,
        segment: &FreshSegment,
        at: PhysicalOffset,
    ) -> Option<PhysicalOffset> {
        if at == segment.base() {
            // The record before ended exactly with its segment.
            return Some(self.begin_part(dispatcher, at));
        }
        if segment.end().since(at) < HEADER_LEN as u64 {
            return Some(self.begin_part(dispatcher, segment.end()));
        }
        let header = match segment.header(at, &mut dispatcher.window) {
            Ok(Some(header)) => header,
            Ok(None) => {
                self.poison(&format!("fresh bytes at {at} do not hold a record"));
                return None;
            }
            Err(error) => {
                self.poison(&format!("fresh bytes at {at} cannot be read: {error}"));
                return None;
            }
        };
        if header.kind == RecordKind::Filler {
            return Some(self.begin_part(dispatcher, segment.end()));
        }
        if let Some(key) = queue_key(&header) {
            if let Err(reason) = self.fresh_hashes(dispatcher, segment, &header) {
                self.poison(&format!("fresh batch at {at} cannot be walked: {reason}"));
                return None;
            }
            self.indexes.put_all(&dispatcher.hashes, at);
            self.queues.put(key, &queue_entry(&header));
            dispatcher.put.push(Put { key, end: header.end(), tags: tag_mask(&header) });
        }
        Some(header.end())
    }

    /// As [`index_hashes`], of a record of a segment that is walked.
    fn fresh_hashes(
        &self,
        dispatcher: &mut Dispatcher,
        segment: &FreshSegment,
        header: &RecordHeader,
    ) -> Result<(), String> {
        let Dispatcher { hashes, window, .. } = dispatcher;
        let (seed, topic) = (self.index_seed, header.topic);
        // The batch was checked before it was appended.
        let read = segment.read_payload_begin(header, window, |begin| {
            let metas = Batch::distinct_metas_in(begin, header.payload_len as usize)?;
            Some(hashes_of(seed, topic, metas, hashes))
        });
        let done = match (read, segment.payload(header)) {
            (Err(error), _) => return Err(error.to_string()),
            (Ok(Some(done)), _) => done,
            (Ok(None), Some(batch)) => index_hashes(seed, header, batch, hashes),
            (Ok(None), None) => return Err("it ends behind what was published".to_owned()),
        };
        done.map_err(|error| error.to_string())
    }

    /// The walk enters the segment at `base`: what it found so far is whole, and can be sealed once it is flushed.
    fn begin_part(&self, dispatcher: &mut Dispatcher, base: PhysicalOffset) -> PhysicalOffset {
        self.queues.start_part(base);
        self.indexes.start_part(base);
        dispatcher.has_entered = true;
        base.plus(PAGE_LEN as u64)
    }

    /// Wakes who waits for the queues of records that were just dispatched; for a sync topic after its flush.
    fn wake_arrived(&self, dispatched: &[Put]) {
        // Of the topic that was looked up last: records of a topic often come together.
        let mut known = (TopicId::ZERO, false);
        for Put { key, end, tags } in dispatched {
            if known.0 != key.topic {
                let topic = self.topics.get(key.topic);
                known = (key.topic, topic.is_some_and(|topic| topic.is_watched()));
            }
            if known.1 || self.arrivals.has(*key) {
                self.wake_when_visible(*end, *key, *tags);
            }
        }
    }

    fn wake_when_visible(&self, end: PhysicalOffset, key: QueueKey, tags: u64) {
        let visible =
            self.topics.get(key.topic).is_none_or(|topic| end <= self.visible_end(&topic));
        if visible {
            self.announce(key, tags);
        } else {
            lock(&self.unflushed_arrivals).note(key, end, tags);
            // The flush may have passed `end` between the look and the push.
            self.wake_flushed_arrivals(self.marks.flushed.get());
        }
    }

    /// Something of a queue can be read, with these tags among others.
    fn announce(&self, key: QueueKey, tags: u64) {
        self.arrivals.wake(key);
        if self.is_watched.load(Ordering::SeqCst) {
            self.applier.readable(key, tags);
        }
    }

    /// For a reader that parks behind the dispatcher: if what it waits for is dispatched already, only the flush is
    /// left to wake it.
    pub(super) fn wake_when_flushed(&self, key: QueueKey, from: QueueOffset) {
        let mut entries = Vec::new();
        // What is not in memory is sealed, hence flushed.
        if self.queues.lookup_hot(key, from, 1, &mut entries) == Lookup::Found {
            // Above the mark the dispatcher is still at it, and finds the reader parked.
            let dispatched = self.marks.dispatched.get();
            let ends = entries.iter().map(|entry| entry.offset.plus(u64::from(entry.len)));
            let mut unflushed = lock(&self.unflushed_arrivals);
            // What comes behind the first is not looked at: it may have any tags.
            ends.filter(|end| *end <= dispatched)
                .for_each(|end| unflushed.note(key, end, u64::MAX));
            drop(unflushed);
            // As above.
            self.wake_flushed_arrivals(self.marks.flushed.get());
        }
    }

    /// Wakes who waits for queues of sync topics whose entries are durable now.
    pub(super) fn wake_flushed_arrivals(&self, flushed: PhysicalOffset) {
        // One at a time: announcing takes other locks.
        loop {
            let reached = lock(&self.unflushed_arrivals).reached(flushed);
            let Some((key, tags)) = reached else { return };
            self.announce(key, tags);
        }
    }
}

/// Queues with entries that are dispatched and not flushed, and the end of the first unflushed record of each, with
/// the tags of all that was noted since. Who is woken by it and finds the queue at its end looks for the next one when
/// he parks. What a record or a flush costs does not depend on how many queues there are that a flush did not reach.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    ends: HashMap<QueueKey, (PhysicalOffset, u64)>,
    /// The same by their ends; no two records have one.
    by_end: BTreeMap<PhysicalOffset, QueueKey>,
}

impl Unflushed {
    fn note(&mut self, key: QueueKey, end: PhysicalOffset, mut tags: u64) {
        if let Some((first, known)) = self.ends.get_mut(&key) {
            *known |= tags;
            if *first <= end {
                return;
            }
            tags = *known;
            self.by_end.remove(first);
        }
        self.ends.insert(key, (end, tags));
        self.by_end.insert(end, key);
    }

    /// Takes a queue out whose first record is flushed, by the order of the records.
    fn reached(&mut self, flushed: PhysicalOffset) -> Option<(QueueKey, u64)> {
        let first = self.by_end.first_entry().filter(|first| *first.key() <= flushed)?;
        let key = first.remove();
        let (_, tags) = self.ends.remove(&key)?;
        Some((key, tags))
    }
}

/// What a verified record puts into queues and index; used by the walks of recovery and rebuild, which read from the
/// disk and therefore verify bodies too.
pub(super) struct Derived<'a> {
    pub(super) key: QueueKey,
    pub(super) entry: QueueEntry,
    pub(super) hashes: &'a [u64],
}

/// Derives the entries of a record from its bytes; `body` is `None` if they are damaged: the entry says so.
pub(super) fn derive<'a>(
    seed: u64,
    header: &RecordHeader,
    body: Option<&[u8]>,
    hashes: &'a mut Vec<u64>,
) -> Option<Derived<'a>> {
    let key = queue_key(header)?;
    let mut entry = queue_entry(header);
    hashes.clear();
    let sound = body
        .and_then(|body| verify_body(header, body).ok())
        .is_some_and(|(_, batch)| index_hashes(seed, header, batch, hashes).is_ok());
    if !sound {
        entry.flags = entry.flags.with(EntryFlags::DAMAGED);
    }
    Some(Derived { key, entry, hashes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::QueueId;

    #[test]
    fn a_queue_is_told_of_once_when_its_first_unflushed_record_is_flushed() {
        let key = |queue| QueueKey { topic: TopicId::new(1), queue: QueueId::new(queue) };
        let at = PhysicalOffset::new;
        let mut unflushed = Unflushed::default();
        for (queue, end, tags) in [(1, 30, 1), (2, 20, 2), (1, 40, 4), (3, 50, 8), (2, 10, 16)] {
            unflushed.note(key(queue), at(end), tags);
        }
        assert_eq!(unflushed.reached(at(9)), None);
        let mut reached =
            |end| std::iter::from_fn(|| unflushed.reached(at(end))).collect::<Vec<_>>();
        assert_eq!(reached(20), [(key(2), 18)], "at its first record");
        assert_eq!(reached(49), [(key(1), 5)], "its second record is found by who was woken");
        assert_eq!(reached(60), [(key(3), 8)]);
        assert_eq!(reached(u64::MAX), []);
        unflushed.note(key(2), at(70), 0);
        assert_eq!(unflushed.reached(at(70)), Some((key(2), 0)));
        assert!(unflushed.ends.is_empty() && unflushed.by_end.is_empty());
    }
}
