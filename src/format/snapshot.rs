//! A state snapshot: what replay of the log up to one place would give. The same bytes, cut into parts, are a state
//! image in the log itself.
//!
//! |  at | len       | field          | meaning                                                      |
//! | --: | --------: | -------------- | ------------------------------------------------------------ |
//! |   0 |        24 | envelope       | magic, version, length, CRC32C                               |
//! |  24 |         8 | offset         | replay from here; all below is contained                     |
//! |  32 |         8 | epoch          | in which it was taken                                        |
//! |  40 |         8 | applied        | end of the last state record in the broker's state           |
//! |  48 |         8 | reach          | end of the log when it was taken: nothing in it lies behind  |
//! |  56 |         8 | store clock    | the newest store time given, ms                              |
//! |  64 |         8 | deleted count  |                                                              |
//! |  72 |         8 | lost count     |                                                              |
//! |  80 |         8 | segment count  |                                                              |
//! |  88 |         8 | topic count    | of topics that have queues in it                             |
//! |  96 |         8 | queue count    |                                                              |
//! | 104 |         8 | state len      | in bytes                                                     |
//! | 112 | 16 × count | deleted ranges | bytes of the log that were deleted: begin, end, sorted      |
//! |   … | 16 × count | lost ranges    | bytes that an operator gave up: begin, end, sorted          |
//! |   … | 8 × count | segments       | bases that queues point at, sorted                           |
//! |   … |           | topics         | id u64, count of its queues u32, then its queues, see below  |
//! |   … | state len | state          | the broker's, opaque here                                    |
//!
//! One queue, 20 bytes; there may be a million of them, and an image of them every few segments:
//!
//! | at | len | field         | meaning                                                          |
//! | -: | --: | ------------- | ---------------------------------------------------------------- |
//! |  0 |   4 | queue         | id                                                               |
//! |  4 |   8 | next          | queue offset that its next message gets                          |
//! | 12 |   4 | first segment | index of the first segment with a message of it among `segments` |
//! | 16 |   4 | last segment  | index of the last one                                            |
//!
//! It is derived: a missing, damaged or unknown one costs a longer replay. Whether it reaches beyond the recovered end
//! of the log, and is to be ignored for that, is the store's test.

use std::collections::BTreeSet;
use std::ops::Range;

use super::envelope::{self, Envelope};
use super::{DecodeError, put, slice_at, u32_at, u64_at};
use crate::message::{Epoch, PhysicalOffset, QueueId, QueueKey, QueueOffset, Timestamp, TopicId};

const ENVELOPE: Envelope =
    Envelope { what: "snapshot", magic: u32::from_le_bytes(*b"MSsn"), version: 2 };

const OFFSET_AT: usize = envelope::LEN;
const EPOCH_AT: usize = OFFSET_AT + size_of::<u64>();
const APPLIED_AT: usize = EPOCH_AT + size_of::<u64>();
const REACH_AT: usize = APPLIED_AT + size_of::<u64>();
const STORE_CLOCK_AT: usize = REACH_AT + size_of::<u64>();
const DELETED_COUNT_AT: usize = STORE_CLOCK_AT + size_of::<u64>();
const LOST_COUNT_AT: usize = DELETED_COUNT_AT + size_of::<u64>();
const SEGMENT_COUNT_AT: usize = LOST_COUNT_AT + size_of::<u64>();
const TOPIC_COUNT_AT: usize = SEGMENT_COUNT_AT + size_of::<u64>();
const QUEUE_COUNT_AT: usize = TOPIC_COUNT_AT + size_of::<u64>();
const STATE_LEN_AT: usize = QUEUE_COUNT_AT + size_of::<u64>();
const CONTENTS_AT: usize = STATE_LEN_AT + size_of::<u64>();
const _: () = assert!(CONTENTS_AT == 112, "the snapshot is a contract between releases");

const RANGE_LEN: usize = 2 * size_of::<u64>();
const SEGMENT_LEN: usize = size_of::<u64>();
const TOPIC_LEN: usize = size_of::<u64>() + size_of::<u32>();

const NEXT_AT: usize = size_of::<u32>();
const FIRST_SEGMENT_AT: usize = NEXT_AT + size_of::<u64>();
const LAST_SEGMENT_AT: usize = FIRST_SEGMENT_AT + size_of::<u32>();
const QUEUE_LEN: usize = LAST_SEGMENT_AT + size_of::<u32>();
const _: () = assert!(QUEUE_LEN == 20, "the snapshot is a contract between releases");

/// Where one queue stands: what cannot be known without all of its past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePosition {
    /// Which queue.
    pub key: QueueKey,
    /// The queue offset of its next message.
    pub next: QueueOffset,
    /// Base of the first segment with a message of it; that may be deleted since.
    pub first_segment: PhysicalOffset,
    /// Base of the last one.
    pub last_segment: PhysicalOffset,
}

/// State at one place of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Replay starts here; all below is contained. Records from here to `reach` may be contained.
    pub offset: PhysicalOffset,
    /// In which it was taken.
    pub epoch: Epoch,
    /// End of the last state record that `state` contains.
    pub applied: PhysicalOffset,
    /// The end of the log when it was taken: nothing that is contained lies behind it. A log that ends before it makes
    /// the snapshot void.
    pub reach: PhysicalOffset,
    /// The newest store time given.
    pub store_clock: Timestamp,
    /// Bytes of the log that were deleted, sorted and apart from each other.
    pub deleted: Vec<Range<PhysicalOffset>>,
    /// Bytes of the log that an operator gave up, sorted and apart from each other.
    pub lost: Vec<Range<PhysicalOffset>>,
    /// The broker's state: opaque here.
    pub state: Vec<u8>,
    /// Every queue that ever had a message, sorted by key.
    pub queues: Vec<QueuePosition>,
}

impl Snapshot {
    /// The bytes of the file, or of an image. They take the place of the state in memory, which may be most of them and
    /// hundreds of MB.
    pub fn encode(self) -> Vec<u8> {
        // A set, since a million queues point at a few segments; filled one by one, since `collect` sorts a copy.
        let mut bases = BTreeSet::new();
        bases
            .extend(self.queues.iter().flat_map(|queue| [queue.first_segment, queue.last_segment]));
        let bases: Vec<PhysicalOffset> = bases.into_iter().collect();
        let topics = self.queues.chunk_by(|a, b| a.key.topic == b.key.topic);
        let topic_count = topics.clone().count();
        let len = CONTENTS_AT
            + (self.deleted.len() + self.lost.len()) * RANGE_LEN
            + bases.len() * SEGMENT_LEN
            + topic_count * TOPIC_LEN
            + self.queues.len() * QUEUE_LEN;
        let mut bytes = Vec::with_capacity(len);
        bytes.resize(CONTENTS_AT, 0);
        for (at, number) in [
            (OFFSET_AT, self.offset.get()),
            (EPOCH_AT, self.epoch.get()),
            (APPLIED_AT, self.applied.get()),
            (REACH_AT, self.reach.get()),
            (STORE_CLOCK_AT, self.store_clock.get()),
            (DELETED_COUNT_AT, self.deleted.len() as u64),
            (LOST_COUNT_AT, self.lost.len() as u64),
            (SEGMENT_COUNT_AT, bases.len() as u64),
            (TOPIC_COUNT_AT, topic_count as u64),
            (QUEUE_COUNT_AT, self.queues.len() as u64),
            (STATE_LEN_AT, self.state.len() as u64),
        ] {
            put(&mut bytes, at, number.to_le_bytes());
        }
        for range in self.deleted.iter().chain(&self.lost) {
            bytes.extend_from_slice(&range.start.get().to_le_bytes());
            bytes.extend_from_slice(&range.end.get().to_le_bytes());
        }
        for base in &bases {
            bytes.extend_from_slice(&base.get().to_le_bytes());
        }
        // A log of 4 billion segments does not fit its offsets.
        let index = |base| bases.partition_point(|known| *known < base) as u32;
        for queues in topics {
            let topic = queues.first().map_or(TopicId::ZERO, |queue| queue.key.topic);
            bytes.extend_from_slice(&topic.get().to_le_bytes());
            // Queues are counted in 32 bits.
            bytes.extend_from_slice(&(queues.len() as u32).to_le_bytes());
            for queue in queues {
                bytes.extend_from_slice(&queue.key.queue.get().to_le_bytes());
                bytes.extend_from_slice(&queue.next.get().to_le_bytes());
                bytes.extend_from_slice(&index(queue.first_segment).to_le_bytes());
                bytes.extend_from_slice(&index(queue.last_segment).to_le_bytes());
            }
        }
        let (head, mut bytes) = (bytes, self.state);
        bytes.splice(0..0, head);
        ENVELOPE.seal(&mut bytes);
        bytes
    }

    /// The snapshot in the bytes of the file.
    ///
    /// # Errors
    /// `bytes` are not one intact snapshot of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        ENVELOPE.verify(bytes)?;
        let count = |at: usize| u64_at(bytes, at);
        // Nothing is allocated by a count before the bytes have shown that it does not lie.
        let expected = [
            (count(DELETED_COUNT_AT)?, RANGE_LEN),
            (count(LOST_COUNT_AT)?, RANGE_LEN),
            (count(SEGMENT_COUNT_AT)?, SEGMENT_LEN),
            (count(TOPIC_COUNT_AT)?, TOPIC_LEN),
            (count(QUEUE_COUNT_AT)?, QUEUE_LEN),
            (count(STATE_LEN_AT)?, 1),
        ]
        .iter()
        .fold(0, |sum: u64, (count, len)| sum.saturating_add(count.saturating_mul(*len as u64)));
        let mut rest = slice_at(bytes, CONTENTS_AT, bytes.len().saturating_sub(CONTENTS_AT))?;
        let found = rest.len() as u64;
        if expected != found {
            return Err(DecodeError::Length { what: "snapshot contents", expected, found });
        }
        let deleted = ranges(take(&mut rest, count(DELETED_COUNT_AT)?, RANGE_LEN)?)?;
        let lost = ranges(take(&mut rest, count(LOST_COUNT_AT)?, RANGE_LEN)?)?;
        let bases = take(&mut rest, count(SEGMENT_COUNT_AT)?, SEGMENT_LEN)?;
        let mut queues = Vec::with_capacity(count(QUEUE_COUNT_AT)? as usize);
        for _ in 0..count(TOPIC_COUNT_AT)? {
            let topic = take(&mut rest, 1, TOPIC_LEN)?;
            let (id, count) = (TopicId::new(u64_at(topic, 0)?), u32_at(topic, size_of::<u64>())?);
            let rows = take(&mut rest, count.into(), QUEUE_LEN)?;
            for row in rows.chunks_exact(QUEUE_LEN) {
                queues.push(decode_queue(id, row, bases)?);
            }
        }
        if queues.len() as u64 != count(QUEUE_COUNT_AT)? {
            return Err(DecodeError::Length {
                what: "count of queues",
                expected: count(QUEUE_COUNT_AT)?,
                found: queues.len() as u64,
            });
        }
        Ok(Self {
            offset: PhysicalOffset::new(count(OFFSET_AT)?),
            epoch: Epoch::new(count(EPOCH_AT)?),
            applied: PhysicalOffset::new(count(APPLIED_AT)?),
            reach: PhysicalOffset::new(count(REACH_AT)?),
            store_clock: Timestamp::new(count(STORE_CLOCK_AT)?),
            deleted,
            lost,
            state: rest.to_vec(),
            queues,
        })
    }
}

/// Takes `count` things of `len` bytes off the front.
fn take<'a>(rest: &mut &'a [u8], count: u64, len: usize) -> Result<&'a [u8], DecodeError> {
    let needed = count.saturating_mul(len as u64);
    let found = rest.len() as u64;
    let wanted = usize::try_from(needed).unwrap_or(usize::MAX);
    let Some((taken, behind)) = rest.split_at_checked(wanted) else {
        return Err(DecodeError::TooShort { needed, found });
    };
    *rest = behind;
    Ok(taken)
}

fn ranges(bytes: &[u8]) -> Result<Vec<Range<PhysicalOffset>>, DecodeError> {
    let mut ranges: Vec<Range<PhysicalOffset>> = Vec::with_capacity(bytes.len() / RANGE_LEN);
    for row in bytes.chunks_exact(RANGE_LEN) {
        let (start, end) = (u64_at(row, 0)?, u64_at(row, size_of::<u64>())?);
        if start >= end || ranges.last().is_some_and(|last| last.end.get() > start) {
            return Err(DecodeError::Length { what: "range", expected: start, found: end });
        }
        ranges.push(PhysicalOffset::new(start)..PhysicalOffset::new(end));
    }
    Ok(ranges)
}

fn decode_queue(topic: TopicId, row: &[u8], bases: &[u8]) -> Result<QueuePosition, DecodeError> {
    let base = |at: usize| {
        let index = u32_at(row, at)? as usize;
        u64_at(bases, index.saturating_mul(SEGMENT_LEN)).map(PhysicalOffset::new)
    };
    Ok(QueuePosition {
        key: QueueKey { topic, queue: QueueId::new(u32_at(row, 0)?) },
        next: QueueOffset::new(u64_at(row, NEXT_AT)?),
        first_segment: base(FIRST_SEGMENT_AT)?,
        last_segment: base(LAST_SEGMENT_AT)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::testing::*;

    fn queue(topic: u64, queue: u32) -> QueuePosition {
        QueuePosition {
            key: QueueKey { topic: TopicId::new(topic), queue: QueueId::new(queue) },
            next: QueueOffset::new(topic * 1000 + u64::from(queue)),
            first_segment: PhysicalOffset::new(0x1000_0000),
            last_segment: PhysicalOffset::new(0x2000_0000),
        }
    }

    fn range(start: u64, end: u64) -> Range<PhysicalOffset> {
        PhysicalOffset::new(start)..PhysicalOffset::new(end)
    }

    fn sample() -> Snapshot {
        Snapshot {
            offset: PhysicalOffset::new(0x2000_1000),
            epoch: Epoch::new(3),
            applied: PhysicalOffset::new(0x2000_1080),
            reach: PhysicalOffset::new(0x2000_2000),
            store_clock: Timestamp::new(1_700_000_000_000),
            deleted: vec![range(0, 0x1000_0000), range(0x1800_0000, 0x1c00_0000)],
            lost: vec![range(0x2000_1000, 0x2000_1100)],
            state: b"state".to_vec(),
            queues: vec![queue(1, 0), queue(7, 2), queue(7, 3)],
        }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&sample().encode()),
            [
                "4d53736e020000000901000000000000",
                "7e6e7356000000000010002000000000",
                "03000000000000008010002000000000",
                "00200020000000000068e5cf8b010000",
                "02000000000000000100000000000000",
                "02000000000000000200000000000000",
                "03000000000000000500000000000000",
                "00000000000000000000001000000000",
                "00000018000000000000001c00000000",
                "00100020000000000011002000000000",
                "00000010000000000000002000000000",
                "01000000000000000100000000000000",
                "e8030000000000000000000001000000",
                "07000000000000000200000002000000",
                "5a1b0000000000000000000001000000",
                "030000005b1b00000000000000000000",
                "010000007374617465",
            ]
        );
    }

    #[test]
    fn snapshot_survives_a_round_trip() {
        let empty =
            Snapshot { deleted: vec![], lost: vec![], state: vec![], queues: vec![], ..sample() };
        for snapshot in [sample(), empty] {
            assert_eq!(Snapshot::decode(&snapshot.clone().encode()), Ok(snapshot));
        }
    }

    #[test]
    fn the_state_is_not_copied() {
        let mut state = Vec::with_capacity(1 << 20);
        state.extend_from_slice(b"state");
        let place = state.as_ptr();
        let bytes = Snapshot { state, ..sample() }.encode();
        assert_eq!(bytes.as_ptr(), place);
        assert_eq!(bytes, sample().encode());
    }

    #[test]
    fn every_flip_and_every_truncation_is_detected() {
        let bytes = sample().encode();
        assert_every_flip_is_detected(&bytes, |bytes| Snapshot::decode(bytes).is_ok());
        assert_every_truncation_is_detected(&bytes, |bytes| Snapshot::decode(bytes).is_ok());
    }

    #[test]
    fn counts_that_lie_are_refused_before_anything_is_allocated() {
        for (at, value) in [
            (QUEUE_COUNT_AT, u64::MAX),
            (QUEUE_COUNT_AT, 4),
            (DELETED_COUNT_AT, 1 << 60),
            (STATE_LEN_AT, 90),
        ] {
            let mut bytes = sample().encode();
            put(&mut bytes, at, value.to_le_bytes());
            ENVELOPE.seal(&mut bytes);
            assert!(matches!(
                Snapshot::decode(&bytes),
                Err(DecodeError::Length { what: "snapshot contents", .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, sealed: bool) {
            if sealed && bytes.len() >= envelope::LEN {
                ENVELOPE.seal(&mut bytes);
            }
            let _ = Snapshot::decode(&bytes);
        }
    }
}
