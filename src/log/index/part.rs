//! The key entries of one segment in memory: a chain per hash.
//!
//! The entries of a hash are a chain from the newest to the oldest. Each node also knows its depth and a
//! node further down (a skew-binary jump, as in a random access list), so that a window far down a chain of a million
//! is found in some forty steps, from either end, and an answer costs no more memory than its length.
//!
//! One writer, any readers; who freezes it and when it goes is not known here. Each shard has a lock over its table and
//! nodes, held for at most [`STEPS`] nodes of an answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::ops::Range;

use foldhash::fast::RandomState;

use super::Order;
use crate::format::index::{ALIGN, IndexEntry, Sections};
use crate::log::{BLOCK_OVERHEAD, Packed64, SHARDS, grow, table_bytes};
use crate::message::PhysicalOffset;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// Nodes copied under one hold of a shard's lock.
const STEPS: usize = 64;
/// Entries of one key copied at a time while a part is written.
const WRITE_STEPS: usize = 1024;

/// A hash as the key of a table: 8 bytes, aligned to four.
#[derive(Clone, Copy, PartialEq, Eq)]
struct HashKey(Packed64);

impl Hash for HashKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.get());
    }
}

/// One entry in memory: 16 bytes.
#[derive(Clone, Copy)]
struct Node {
    /// Record start minus the segment's base, in units of 8 bytes.
    position: u32,
    /// The next older node of the hash; the oldest names itself.
    previous: u32,
    /// An older node, further down the deeper this one is; the oldest names itself.
    jump: u32,
    /// How many nodes are older.
    depth: u32,
}

#[derive(Default)]
struct PartShard {
    /// The newest node of each hash.
    heads: HashMap<HashKey, u32, RandomState>,
    nodes: Vec<Node>,
}

impl PartShard {
    fn node(&self, index: u32) -> Option<Node> {
        self.nodes.get(index as usize).copied()
    }

    fn put(&mut self, hash: u64, position: u32) {
        // A segment holds fewer records than fit 32 bits.
        let Ok(index) = u32::try_from(self.nodes.len()) else { return };
        let oldest = Node { position, previous: index, jump: index, depth: 0 };
        let (newest, nodes) = (self.heads.entry(HashKey(Packed64::new(hash))), &self.nodes);
        let node = |index: u32| nodes.get(index as usize).copied().unwrap_or(oldest);
        let added = match newest {
            Entry::Vacant(slot) => {
                slot.insert(index);
                oldest
            }
            Entry::Occupied(mut slot) => {
                let previous = node(*slot.get());
                debug_assert!(
                    previous.position <= position,
                    "entries come in the order of the log"
                );
                if previous.position == position {
                    return;
                }
                let below = node(previous.jump);
                let lowest = node(below.jump);
                let is_even = previous.depth - below.depth == below.depth - lowest.depth;
                let jump = if is_even { below.jump } else { *slot.get() };
                let depth = previous.depth + 1;
                Node { position, previous: slot.insert(index), jump, depth }
            }
        };
        grow(&mut self.nodes);
        self.nodes.push(added);
    }

    /// The newest node of the chain from `index` down for which `is_down` holds, which then holds for all older ones.
    fn descend(&self, mut index: u32, is_down: impl Fn(&Node) -> bool) -> Option<(u32, Node)> {
        loop {
            let node = self.node(index)?;
            if is_down(&node) {
                return Some((index, node));
            }
            if node.depth == 0 {
                return None;
            }
            let jump = self.node(node.jump)?;
            index = if is_down(&jump) { node.previous } else { node.jump };
        }
    }

    /// The nodes to answer with, as the newest of them and their count.
    fn select(
        &self,
        hash: u64,
        window: &Range<u64>,
        order: Order,
        max: usize,
    ) -> Option<(u32, usize)> {
        let head = *self.heads.get(&HashKey(Packed64::new(hash)))?;
        let (newest, node) = self.descend(head, |node| u64::from(node.position) < window.end)?;
        let older = self.descend(newest, |node| u64::from(node.position) < window.start);
        let oldest_depth = older.map_or(0, |(_, older)| older.depth + 1);
        let count = (node.depth + 1).checked_sub(oldest_depth)? as usize;
        match order {
            Order::NewestFirst => Some((newest, count.min(max))),
            Order::OldestFirst if count <= max => Some((newest, count)),
            Order::OldestFirst => {
                let last = oldest_depth.saturating_add(u32::try_from(max).unwrap_or(u32::MAX));
                let (index, _) = self.descend(newest, |node| node.depth < last)?;
                Some((index, max))
            }
        }
    }
}

/// The entries of one segment in memory. One writer, any readers.
pub(crate) struct IndexPart {
    pub(super) base: PhysicalOffset,
    /// What the segment held could not be read whole. Set before the part is read by anybody else.
    is_lacking: AtomicBool,
    /// By the top bits of the hash, so that one after the other is the order of the file.
    shards: Box<[Mutex<PartShard>]>,
}

impl IndexPart {
    /// An empty part for the segment at `base`.
    pub(crate) fn new(base: PhysicalOffset) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { base, is_lacking: AtomicBool::new(false), shards }
    }

    /// Some of the segment cannot be read: entries may be lacking.
    pub(crate) fn mark_lacking(&self) {
        self.is_lacking.store(true, Ordering::Release);
    }

    /// Whether entries may be lacking.
    pub(super) fn is_lacking(&self) -> bool {
        self.is_lacking.load(Ordering::Acquire)
    }

    /// Adds a record that has a key of this hash. Records come in the order of the log; the same hash again for the
    /// same record changes nothing.
    pub(crate) fn put(&self, hash: u64, at: PhysicalOffset) {
        debug_assert!(at >= self.base, "a record belongs to its segment");
        let position = at.get().saturating_sub(self.base.get()) / ALIGN;
        debug_assert!(u32::try_from(position).is_ok(), "a distance within a segment fits 32 bits");
        let Some(shard) = self.shard(hash) else { return };
        lock(shard).put(hash, u32::try_from(position).unwrap_or(u32::MAX));
    }

    /// Appends to `out` at most `max` records with this hash in the window.
    pub(crate) fn find(
        &self,
        hash: u64,
        window: &Range<PhysicalOffset>,
        order: Order,
        max: usize,
        out: &mut Vec<PhysicalOffset>,
    ) {
        self.find_positions(hash, &relative(self.base, window), order, max, |position| {
            out.push(absolute(self.base, position));
        });
    }

    fn find_positions(
        &self,
        hash: u64,
        window: &Range<u64>,
        order: Order,
        max: usize,
        mut found: impl FnMut(u32),
    ) {
        let Some(shard) = self.shard(hash) else { return };
        let selected = lock(shard).select(hash, window, order, max);
        let Some((mut index, mut left)) = selected else { return };
        // Nodes never change once they are there, so the walk may pause anywhere.
        let mut oldest_last = Vec::new();
        while left > 0 {
            let shard = lock(shard);
            for _ in 0..left.min(STEPS) {
                let Some(node) = shard.node(index) else { return };
                match order {
                    Order::NewestFirst => found(node.position),
                    Order::OldestFirst => oldest_last.push(node.position),
                }
                index = node.previous;
            }
            left = left.saturating_sub(STEPS);
        }
        oldest_last.into_iter().rev().for_each(found);
    }

    /// What it takes of memory, tables and unused room included.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let shard_bytes = |shard: &Mutex<PartShard>| {
            let shard = lock(shard);
            table_bytes(shard.heads.capacity(), size_of::<(HashKey, u32)>())
                + (shard.nodes.capacity() * size_of::<Node>()) as u64
                + BLOCK_OVERHEAD
        };
        let empty = size_of::<Self>() + SHARDS * size_of::<Mutex<PartShard>>();
        empty as u64 + self.shards.iter().map(shard_bytes).sum::<u64>()
    }

    fn shard(&self, hash: u64) -> Option<&Mutex<PartShard>> {
        const SHIFT: u32 = u64::BITS - SHARDS.ilog2();
        self.shards.get((hash >> SHIFT) as usize)
    }

    pub(super) fn entries(&self) -> u64 {
        self.shards.iter().map(|shard| lock(shard).nodes.len() as u64).sum()
    }

    /// For each bucket the index of its first entry, and behind them the count of all.
    pub(super) fn bucket_starts(&self, sections: &Sections) -> Vec<u32> {
        let mut starts = vec![0_u32; sections.buckets() as usize + 1];
        for shard in &self.shards {
            let shard = lock(shard);
            for (hash, head) in &shard.heads {
                // Counted one row further on: the sum up to a row is then what lies before its bucket.
                let row = sections.bucket(hash.0.get()) as usize + 1;
                if let (Some(count), Some(node)) = (starts.get_mut(row), shard.node(*head)) {
                    *count += node.depth + 1;
                }
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        starts
    }

    /// Shows all entries in the order of the file, no lock held meanwhile.
    pub(super) fn each_entry<E>(
        &self,
        mut show: impl FnMut(IndexEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut positions = Vec::new();
        for shard in &self.shards {
            let mut hashes: Vec<u64> = lock(shard).heads.keys().map(|hash| hash.0.get()).collect();
            hashes.sort_unstable();
            for hash in hashes {
                let mut window = 0..u64::MAX;
                loop {
                    positions.clear();
                    self.find_positions(
                        hash,
                        &window,
                        Order::OldestFirst,
                        WRITE_STEPS,
                        |position| {
                            positions.push(position);
                        },
                    );
                    positions
                        .iter()
                        .try_for_each(|position| show(IndexEntry { hash, position: *position }))?;
                    match positions.last() {
                        Some(last) if positions.len() == WRITE_STEPS => {
                            window.start = u64::from(*last) + 1;
                        }
                        _ => break,
                    }
                }
            }
        }
        Ok(())
    }
}

/// The units of a segment whose record starts lie in the window.
pub(super) fn relative(base: PhysicalOffset, window: &Range<PhysicalOffset>) -> Range<u64> {
    let units = |at: PhysicalOffset| at.get().saturating_sub(base.get()).div_ceil(ALIGN);
    units(window.start)..units(window.end)
}

pub(super) fn absolute(base: PhysicalOffset, position: u32) -> PhysicalOffset {
    PhysicalOffset::new(base.get().saturating_add(u64::from(position) * ALIGN))
}
