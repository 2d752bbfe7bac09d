//! The entries of one segment in memory, by queue: 32 bytes each, in a run per queue.
//!
//! One writer, any readers; who freezes it and when it goes is not known here. Each shard has a lock over its table and
//! runs, held for at most [`COPY`] entries.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};

use foldhash::fast::RandomState;

use crate::format::consume_queue::{
    DirectoryRow, ENTRY_LEN, Origin, PackedEntry, QueueEntry, TopicRow,
};
use crate::log::{BLOCK_OVERHEAD, Packed64, SHARDS, grow, table_bytes};
use crate::message::{PhysicalOffset, QueueId, QueueKey, QueueOffset, Timestamp, TopicId};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// Entries copied under one hold of a shard's lock.
const COPY: usize = 64;

/// A queue as the key of a table: 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct CompactKey {
    pub(super) topic: Packed64,
    queue: u32,
}

impl CompactKey {
    pub(super) const fn new(key: QueueKey) -> Self {
        Self { topic: Packed64::new(key.topic.get()), queue: key.queue.get() }
    }

    pub(super) const fn key(self) -> QueueKey {
        QueueKey { topic: TopicId::new(self.topic.get()), queue: QueueId::new(self.queue) }
    }
}

impl Hash for CompactKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.topic.get());
        state.write_u32(self.queue);
    }
}

/// A structure cut by queue.
pub(super) struct Sharded<T>(pub(super) Box<[Mutex<T>]>);

impl<T: Default> Sharded<T> {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    /// The shard of a queue. There always is one: the index has as many bits as there are shards.
    #[inline]
    pub(super) fn of(&self, key: QueueKey) -> Option<&Mutex<T>> {
        const SHIFT: u32 = u64::BITS - SHARDS.ilog2();
        let mixed = key.topic.get().wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ u64::from(key.queue.get()).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        self.0.get((mixed >> SHIFT) as usize)
    }
}

/// The entries of one queue in one segment.
struct Run {
    first: QueueOffset,
    entries: Vec<PackedEntry>,
}

#[derive(Default)]
struct PartShard {
    runs: HashMap<CompactKey, Run, RandomState>,
    /// Room for entries, of all runs.
    capacity: u64,
}

/// The entries of one segment in memory. One writer, any readers.
pub(crate) struct QueuePart {
    pub(super) base: PhysicalOffset,
    /// [`NO_TIME`] until the first entry. Relaxed: who finds an entry under its shard's lock sees what was stored
    /// before.
    first_time: AtomicU64,
    /// Of queues with entries. Relaxed: a hint for when to roll.
    queue_count: AtomicU64,
    shards: Sharded<PartShard>,
}

const NO_TIME: u64 = u64::MAX;

impl QueuePart {
    /// An empty part for the segment at `base`.
    pub(crate) fn new(base: PhysicalOffset) -> Self {
        Self {
            base,
            first_time: AtomicU64::new(NO_TIME),
            queue_count: AtomicU64::new(0),
            shards: Sharded::new(),
        }
    }

    /// Adds the next entry of a queue. Entries come in the order of the log.
    pub(crate) fn put(&self, key: QueueKey, entry: &QueueEntry) {
        self.put_and_tell(key, entry);
    }

    /// Like `put`, and says whether it is the queue's first entry here.
    #[inline]
    pub(super) fn put_and_tell(&self, key: QueueKey, entry: &QueueEntry) -> bool {
        if self.first_time.load(Ordering::Relaxed) == NO_TIME {
            self.first_time.store(entry.store_time.get(), Ordering::Relaxed);
        }
        let Some(shard) = self.shards.of(key) else { return false };
        let shard = &mut *lock(shard);
        let run = match shard.runs.entry(CompactKey::new(key)) {
            Entry::Occupied(run) => run.into_mut(),
            Entry::Vacant(slot) => {
                slot.insert(Run { first: entry.queue_offset, entries: Vec::new() })
            }
        };
        let packed = PackedEntry::pack(entry, &self.origin(run.first));
        debug_assert!(
            run.entries.last().is_none_or(|last| last.end_delta() <= packed.delta()),
            "entries of a queue come in order"
        );
        let before = run.entries.capacity();
        grow(&mut run.entries);
        run.entries.push(packed);
        shard.capacity += (run.entries.capacity() - before) as u64;
        if before == 0 {
            self.queue_count.fetch_add(1, Ordering::Relaxed);
        }
        before == 0
    }

    /// The queue's offsets in this part, half-open.
    pub(crate) fn range(&self, key: QueueKey) -> Option<(QueueOffset, QueueOffset)> {
        let shard = lock(self.shards.of(key)?);
        let run = shard.runs.get(&CompactKey::new(key))?;
        let end = run.entries.last().map_or(0, PackedEntry::end_delta);
        Some((run.first, run.first.plus(end)))
    }

    /// The queue offset behind the last entry whose record ends at or below `limit`, and whether there is one; without
    /// one, the first offset in this part. `None`: the part has nothing of the queue.
    pub(super) fn readable_next(
        &self,
        key: QueueKey,
        limit: PhysicalOffset,
    ) -> Option<(QueueOffset, bool)> {
        let shard = lock(self.shards.of(key)?);
        let run = shard.runs.get(&CompactKey::new(key))?;
        let is_readable = |entry: &PackedEntry| {
            let entry = entry.unpack(&self.origin(run.first));
            entry.offset.plus(u64::from(entry.len)) <= limit
        };
        let readable = match run.entries.last() {
            Some(last) if is_readable(last) => run.entries.len(),
            _ => run.entries.partition_point(is_readable),
        };
        let last = readable.checked_sub(1).and_then(|index| run.entries.get(index));
        Some(last.map_or((run.first, false), |last| (run.first.plus(last.end_delta()), true)))
    }

    /// The first entry of the queue for which `holds`, a rule that is monotone along the queue, and whether it is the
    /// first of all here; `Some(None)`: it holds for none. `None`: the part has nothing of the queue.
    pub(super) fn first(
        &self,
        key: QueueKey,
        holds: &mut dyn FnMut(&QueueEntry) -> bool,
    ) -> Option<Option<(QueueEntry, bool)>> {
        let shard = lock(self.shards.of(key)?);
        let run = shard.runs.get(&CompactKey::new(key))?;
        let origin = self.origin(run.first);
        let index = run.entries.partition_point(|entry| !holds(&entry.unpack(&origin)));
        let found = run.entries.get(index).map(|entry| entry.unpack(&origin));
        Some(found.map(|entry| (entry, index == 0)))
    }

    /// How many queues have entries here.
    pub(super) fn queue_count(&self) -> u64 {
        self.queue_count.load(Ordering::Relaxed)
    }

    /// Appends to `out` at most `max` entries of the queue: those that end behind `from`.
    pub(crate) fn get(
        &self,
        key: QueueKey,
        from: QueueOffset,
        out: &mut Vec<QueueEntry>,
        max: usize,
    ) {
        let Some(shard) = self.shards.of(key) else { return };
        let (mut left, mut index) = (max, None);
        while left > 0 {
            let shard = lock(shard);
            let Some(run) = shard.runs.get(&CompactKey::new(key)) else { return };
            let start = index.unwrap_or_else(|| run.find(from));
            let entries = run.entries.get(start..).unwrap_or_default();
            let entries = entries.get(..left.min(COPY)).unwrap_or(entries);
            if entries.is_empty() {
                return;
            }
            let origin = self.origin(run.first);
            out.extend(entries.iter().map(|entry| entry.unpack(&origin)));
            left -= entries.len();
            index = Some(start + entries.len());
        }
    }

    /// What it takes of memory, tables and unused room included.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let shard_bytes = |shard: &Mutex<PartShard>| {
            let shard = lock(shard);
            table_bytes(shard.runs.capacity(), size_of::<(CompactKey, Run)>())
                + shard.capacity * ENTRY_LEN as u64
                + shard.runs.len() as u64 * BLOCK_OVERHEAD
        };
        let empty = size_of::<Self>() + SHARDS * size_of::<Mutex<PartShard>>();
        empty as u64 + self.shards.0.iter().map(shard_bytes).sum::<u64>()
    }

    /// The store time of its first entry.
    pub(super) fn first_time(&self) -> Timestamp {
        match self.first_time.load(Ordering::Relaxed) {
            NO_TIME => Timestamp::ZERO,
            time => Timestamp::new(time),
        }
    }

    fn origin(&self, first: QueueOffset) -> Origin {
        Origin { base: self.base, first, first_time: self.first_time() }
    }

    /// All queues with entries here, sorted, and where their entries will stand in the file.
    pub(crate) fn queues(&self) -> Vec<DirectoryRow> {
        let mut rows = Vec::new();
        for shard in &self.shards.0 {
            let shard = lock(shard);
            rows.extend(shard.runs.iter().map(|(key, run)| DirectoryRow {
                key: key.key(),
                entries: u32::try_from(run.entries.len()).unwrap_or(u32::MAX),
                first: run.first,
                next: run.first.plus(run.entries.last().map_or(0, PackedEntry::end_delta)),
                start: 0,
            }));
        }
        rows.sort_unstable_by_key(|row| row.key);
        let mut start = 0;
        for row in &mut rows {
            row.start = start;
            start += u64::from(row.entries);
        }
        rows
    }

    /// Shows all entries of the queues of `rows` in their order, a few at a time, no lock held meanwhile.
    pub(super) fn each_entry<E>(
        &self,
        rows: &[DirectoryRow],
        mut show: impl FnMut(&DirectoryRow, &PackedEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut copy = Vec::with_capacity(COPY);
        for row in rows {
            let Some(shard) = self.shards.of(row.key) else { continue };
            let mut index = 0;
            loop {
                copy.clear();
                let shard = lock(shard);
                if let Some(run) = shard.runs.get(&CompactKey::new(row.key)) {
                    copy.extend(run.entries.iter().skip(index).take(COPY));
                }
                drop(shard);
                if copy.is_empty() {
                    break;
                }
                index += copy.len();
                copy.iter().try_for_each(|entry| show(row, entry))?;
            }
        }
        Ok(())
    }

    /// What the part holds of each topic, sorted as `rows` are.
    pub(super) fn topics(&self, rows: &[DirectoryRow]) -> Vec<TopicRow> {
        let mut topics: Vec<TopicRow> = Vec::new();
        let counted = self.each_entry(rows, |row, entry| {
            if topics.last().is_none_or(|last| last.topic != row.key.topic) {
                topics.push(TopicRow::empty(row.key.topic));
            }
            if let Some(topic) = topics.last_mut() {
                topic.add(&entry.unpack(&self.origin(row.first)));
            }
            Ok::<(), std::convert::Infallible>(())
        });
        match counted {
            Ok(()) => topics,
        }
    }
}

impl Run {
    /// The index of the first entry that ends behind `from`.
    fn find(&self, from: QueueOffset) -> usize {
        let delta = from.get().saturating_sub(self.first.get());
        find_in_order(self.entries.len() as u64, delta, |index| {
            Ok::<_, std::convert::Infallible>(self.entries.get(index as usize).copied())
        })
        .map_or(0, |index| index as usize)
    }
}

/// The index of the first of `count` entries in order that ends behind `delta`. Looks first where it stands if every
/// record has one message and none is unreadable.
pub(super) fn find_in_order<E>(
    count: u64,
    delta: u64,
    mut entry: impl FnMut(u64) -> Result<Option<PackedEntry>, E>,
) -> Result<u64, E> {
    let (mut low, mut high) = (0, count);
    let mut probe = delta.min(count.saturating_sub(1));
    while low < high {
        match entry(probe)? {
            Some(found) if found.end_delta() > delta => {
                high = probe;
                if found.delta() <= delta {
                    break;
                }
            }
            _ => low = probe + 1,
        }
        probe = low + (high - low) / 2;
    }
    Ok(high)
}
