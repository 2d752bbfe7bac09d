//! What is known of each queue beside its entries: 24 bytes, in blocks of queues of a topic whose ids follow each
//! other. Who goes from one queue to the next finds both in the same lines of memory.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::part::{CompactKey, Sharded};
use crate::format::snapshot::QueuePosition;
use crate::log::{BLOCK_OVERHEAD, Packed64, SHARDS, table_bytes};
use crate::message::{PhysicalOffset, QueueId, QueueKey, QueueOffset, TopicId};
use crate::sync::{Mutex, lock};

/// Queues of a block.
const BLOCK: u32 = 16;

/// What outlives the parts.
#[derive(Clone, Copy)]
pub(super) struct Position {
    /// At least of what is sealed or was restored; the parts know what follows, so that an entry need not come here.
    next: Packed64,
    first_segment: Packed64,
    last_segment: Packed64,
}

impl Position {
    /// Of a queue never heard of: it ends before it begins.
    const NONE: Self = Self {
        next: Packed64::new(0),
        first_segment: Packed64::new(u64::MAX),
        last_segment: Packed64::new(0),
    };

    const fn is_some(&self) -> bool {
        self.first_segment.get() <= self.last_segment.get()
    }

    pub(super) const fn next(&self) -> QueueOffset {
        QueueOffset::new(self.next.get())
    }

    pub(super) const fn first_segment(&self) -> PhysicalOffset {
        PhysicalOffset::new(self.first_segment.get())
    }

    pub(super) const fn last_segment(&self) -> PhysicalOffset {
        PhysicalOffset::new(self.last_segment.get())
    }

    /// Takes over what `other` says. Nothing moves back.
    fn advance(&mut self, other: &QueuePosition) {
        self.next = Packed64::new(self.next.get().max(other.next.get()));
        let first = self.first_segment.get().min(other.first_segment.get());
        self.first_segment = Packed64::new(first);
        let last = self.last_segment.get().max(other.last_segment.get());
        let last = last.max(other.first_segment.get());
        self.last_segment = Packed64::new(last);
    }
}

#[derive(Default)]
struct Shard {
    /// By topic and number of the block; each as long as its highest queue needs.
    blocks: HashMap<CompactKey, Vec<Position>, RandomState>,
    /// Queues that are known.
    queues: usize,
    /// Positions there is room for, of all blocks.
    capacity: usize,
}

/// The positions of all queues of a store.
pub(super) struct Positions(Sharded<Shard>);

impl Positions {
    pub(super) fn new() -> Self {
        Self(Sharded::new())
    }

    pub(super) fn get(&self, key: QueueKey) -> Option<Position> {
        let (block, within) = place(key);
        let shard = lock(self.0.of(block)?);
        let position = shard.blocks.get(&CompactKey::new(block))?.get(within)?;
        position.is_some().then_some(*position)
    }

    /// Tells what is known of a queue, which may be new. Nothing moves back.
    pub(super) fn advance(&self, known: &QueuePosition) {
        let (block, within) = place(known.key);
        let Some(shard) = self.0.of(block) else { return };
        let shard = &mut *lock(shard);
        let positions = shard.blocks.entry(CompactKey::new(block)).or_default();
        if positions.len() <= within {
            let before = positions.capacity();
            // For topics of one queue, of eight, and of many: no room that is never used.
            let room = (within + 1).next_power_of_two().saturating_sub(positions.len());
            positions.reserve_exact(room);
            positions.resize(within + 1, Position::NONE);
            shard.capacity += positions.capacity() - before;
        }
        let Some(position) = positions.get_mut(within) else { return };
        shard.queues += usize::from(!position.is_some());
        position.advance(known);
    }

    /// A queue's messages are sealed up to `next`, if it is known.
    pub(super) fn sealed(&self, key: QueueKey, next: QueueOffset) {
        let (block, within) = place(key);
        let Some(shard) = self.0.of(block) else { return };
        let mut shard = lock(shard);
        let position = shard.blocks.get_mut(&CompactKey::new(block));
        if let Some(position) = position.and_then(|positions| positions.get_mut(within)) {
            position.next = Packed64::new(position.next.get().max(next.get()));
        }
    }

    /// All queues, in no order. Those of each shard are shown to `complete` once more, no lock held.
    pub(super) fn all(&self, mut complete: impl FnMut(&mut QueuePosition)) -> Vec<QueuePosition> {
        // At once: what a vector of a million leaves behind while it grows stays with the allocator.
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.0.0 {
            let before = all.len();
            let shard = lock(shard);
            all.extend(shard.blocks.iter().flat_map(|(block, positions)| {
                let known = positions.iter().zip(0..).filter(|(position, _)| position.is_some());
                known.map(|(position, within)| QueuePosition {
                    key: key_of(*block, within),
                    next: position.next(),
                    first_segment: position.first_segment(),
                    last_segment: position.last_segment(),
                })
            }));
            drop(shard);
            all.iter_mut().skip(before).for_each(&mut complete);
        }
        all
    }

    /// How many queues are known.
    pub(super) fn len(&self) -> usize {
        self.0.0.iter().map(|shard| lock(shard).queues).sum()
    }

    /// Forgets the queues of topics, which are sorted.
    pub(super) fn remove_topics(&self, topics: &[TopicId]) {
        for shard in &self.0.0 {
            let shard = &mut *lock(shard);
            let (queues, capacity) = (&mut shard.queues, &mut shard.capacity);
            shard.blocks.retain(|block, positions| {
                let stays = topics.binary_search(&TopicId::new(block.topic.get())).is_err();
                if !stays {
                    *queues -= positions.iter().filter(|position| position.is_some()).count();
                    *capacity -= positions.capacity();
                }
                stays
            });
        }
    }

    /// What it takes of memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        let of_shard = |shard: &Mutex<Shard>| {
            let shard = lock(shard);
            let slot = size_of::<(CompactKey, Vec<Position>)>();
            table_bytes(shard.blocks.capacity(), slot)
                + shard.blocks.len() as u64 * BLOCK_OVERHEAD
                + (shard.capacity * size_of::<Position>()) as u64
        };
        let shards = self.0.0.iter().map(of_shard).sum::<u64>();
        (SHARDS * size_of::<Mutex<Shard>>()) as u64 + shards
    }
}

/// The block of a queue, named like a queue, and its place there.
const fn place(key: QueueKey) -> (QueueKey, usize) {
    let queue = key.queue.get();
    let block = QueueKey { topic: key.topic, queue: QueueId::new(queue / BLOCK) };
    (block, (queue % BLOCK) as usize)
}

/// The queue at a place of a block.
const fn key_of(block: CompactKey, within: u32) -> QueueKey {
    let block = block.key();
    // No more than the queue's id was.
    let queue = block.queue.get().wrapping_mul(BLOCK).wrapping_add(within);
    QueueKey { topic: block.topic, queue: QueueId::new(queue) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn known(topic: u64, queue: u32, next: u64, segments: (u64, u64)) -> QueuePosition {
        QueuePosition {
            key: QueueKey { topic: TopicId::new(topic), queue: QueueId::new(queue) },
            next: QueueOffset::new(next),
            first_segment: PhysicalOffset::new(segments.0),
            last_segment: PhysicalOffset::new(segments.1),
        }
    }

    fn all(positions: &Positions) -> Vec<QueuePosition> {
        let mut all = positions.all(|_| ());
        all.sort_by_key(|position| position.key);
        all
    }

    #[test]
    fn queues_between_those_that_are_known_are_not_known() {
        let positions = Positions::new();
        for queue in [0, 15, 16, 40, u32::MAX] {
            positions.advance(&known(7, queue, 1, (0, 0)));
        }
        let told: Vec<_> = all(&positions).iter().map(|known| known.key.queue.get()).collect();
        assert_eq!((told, positions.len()), (vec![0, 15, 16, 40, u32::MAX], 5));
        positions.sealed(known(7, 3, 0, (0, 0)).key, QueueOffset::new(9));
        assert!(positions.get(known(7, 3, 0, (0, 0)).key).is_none());
        positions.remove_topics(&[TopicId::new(7)]);
        assert_eq!((all(&positions).len(), positions.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn what_was_told_of_a_queue_is_what_a_plain_map_has(
            told in prop::collection::vec((0..3_u64, 0..70_u32, 0..9_u64, 0..4_u64, 0..4_u64), 0..200),
            gone in 0..4_u64,
        ) {
            let positions = Positions::new();
            let mut model = BTreeMap::<QueueKey, QueuePosition>::new();
            for (topic, queue, next, one, other) in told {
                let told = known(topic, queue, next, (one.min(other), one.max(other)));
                positions.advance(&told);
                let entry = model.entry(told.key).or_insert(told);
                entry.next = entry.next.max(told.next);
                entry.first_segment = entry.first_segment.min(told.first_segment);
                entry.last_segment = entry.last_segment.max(told.last_segment);
            }
            positions.remove_topics(&[TopicId::new(gone)]);
            model.retain(|key, _| key.topic != TopicId::new(gone));
            prop_assert_eq!(all(&positions), model.values().copied().collect::<Vec<_>>());
            prop_assert_eq!(positions.len(), model.len());
            for queue in 0..80 {
                let key = known(1, queue, 0, (0, 0)).key;
                let next = positions.get(key).map(|position| position.next());
                prop_assert_eq!(next, model.get(&key).map(|known| known.next));
            }
        }
    }
}
