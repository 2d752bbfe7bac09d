//! A state snapshot: what replay of the log up to one place would give.
//!
//! | at | len       | field       | meaning                                                        |
//! | -: | --------: | ----------- | -------------------------------------------------------------- |
//! |  0 |        24 | envelope    | magic, version, length, CRC32C                                 |
//! | 24 |         8 | offset      | replay from here; all below is contained                       |
//! | 32 |         8 | epoch       | in which it was taken                                          |
//! | 40 |         8 | applied     | end of the last state record in the broker's state             |
//! | 48 |         8 | reach       | end of the last record of any kind that is contained           |
//! | 56 |         8 | store clock | the newest store time given, ms                                |
//! | 64 |         8 | queue count |                                                                |
//! | 72 |         8 | state len   | in bytes                                                       |
//! | 80 | 40 × count | queues     | see below                                                      |
//! |  … | state len | state       | the broker's, opaque here                                      |
//!
//! One queue:
//!
//! | at | len | field         | meaning                                          |
//! | -: | --: | ------------- | ------------------------------------------------ |
//! |  0 |   8 | topic         | id                                               |
//! |  8 |   4 | queue         | id                                               |
//! | 12 |   4 | zero          |                                                  |
//! | 16 |   8 | next          | queue offset that its next message gets          |
//! | 24 |   8 | first segment | base of the first segment with a message of it   |
//! | 32 |   8 | last segment  | base of the last one                             |
//!
//! It is derived: a missing, damaged or unknown one costs a longer replay. Whether it reaches beyond the recovered end
//! of the log, and is to be ignored for that, is the store's test.

use super::envelope::{self, Envelope};
use super::{DecodeError, put, slice_at, u32_at, u64_at};
use crate::message::{Epoch, PhysicalOffset, QueueId, QueueKey, QueueOffset, Timestamp, TopicId};

const ENVELOPE: Envelope =
    Envelope { what: "snapshot", magic: u32::from_le_bytes(*b"MSsn"), version: 1 };

const OFFSET_AT: usize = envelope::LEN;
const EPOCH_AT: usize = OFFSET_AT + size_of::<u64>();
const APPLIED_AT: usize = EPOCH_AT + size_of::<u64>();
const REACH_AT: usize = APPLIED_AT + size_of::<u64>();
const STORE_CLOCK_AT: usize = REACH_AT + size_of::<u64>();
const QUEUE_COUNT_AT: usize = STORE_CLOCK_AT + size_of::<u64>();
const STATE_LEN_AT: usize = QUEUE_COUNT_AT + size_of::<u64>();
const QUEUES_AT: usize = STATE_LEN_AT + size_of::<u64>();
const _: () = assert!(QUEUES_AT == 80, "the snapshot is a contract between releases");

const TOPIC_AT: usize = 0;
const QUEUE_AT: usize = TOPIC_AT + size_of::<u64>();
const QUEUE_ZERO_AT: usize = QUEUE_AT + size_of::<u32>();
const NEXT_AT: usize = QUEUE_ZERO_AT + size_of::<u32>();
const FIRST_SEGMENT_AT: usize = NEXT_AT + size_of::<u64>();
const LAST_SEGMENT_AT: usize = FIRST_SEGMENT_AT + size_of::<u64>();
const QUEUE_LEN: usize = LAST_SEGMENT_AT + size_of::<u64>();
const _: () = assert!(QUEUE_LEN == 40, "the snapshot is a contract between releases");

/// Where one queue stands: what cannot be known without all of its past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePosition {
    /// Which queue.
    pub key: QueueKey,
    /// The queue offset of its next message.
    pub next: QueueOffset,
    /// Base of the first segment with a message of it.
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
    /// End of the last record of any kind that is contained: a log that ends before it makes the snapshot void.
    pub reach: PhysicalOffset,
    /// The newest store time given.
    pub store_clock: Timestamp,
    /// The broker's state: opaque here.
    pub state: Vec<u8>,
    /// Every queue that has a message, in any order.
    pub queues: Vec<QueuePosition>,
}

impl Snapshot {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let len = QUEUES_AT + self.queues.len() * QUEUE_LEN + self.state.len();
        let mut bytes = Vec::with_capacity(len);
        bytes.resize(QUEUES_AT, 0);
        put(&mut bytes, OFFSET_AT, self.offset.get().to_le_bytes());
        put(&mut bytes, EPOCH_AT, self.epoch.get().to_le_bytes());
        put(&mut bytes, APPLIED_AT, self.applied.get().to_le_bytes());
        put(&mut bytes, REACH_AT, self.reach.get().to_le_bytes());
        put(&mut bytes, STORE_CLOCK_AT, self.store_clock.get().to_le_bytes());
        put(&mut bytes, QUEUE_COUNT_AT, (self.queues.len() as u64).to_le_bytes());
        put(&mut bytes, STATE_LEN_AT, (self.state.len() as u64).to_le_bytes());
        for queue in &self.queues {
            bytes.extend_from_slice(&encode_queue(queue));
        }
        bytes.extend_from_slice(&self.state);
        ENVELOPE.seal(&mut bytes);
        bytes
    }

    /// The snapshot in the bytes of the file.
    ///
    /// # Errors
    /// `bytes` are not one intact snapshot of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        ENVELOPE.verify(bytes)?;
        let queue_count = u64_at(bytes, QUEUE_COUNT_AT)?;
        let state_len = u64_at(bytes, STATE_LEN_AT)?;
        let contents = slice_at(bytes, QUEUES_AT, bytes.len().saturating_sub(QUEUES_AT))?;
        // Nothing is allocated by a count before the bytes have shown that it does not lie.
        let expected = queue_count.saturating_mul(QUEUE_LEN as u64).saturating_add(state_len);
        let found = contents.len() as u64;
        if expected != found {
            return Err(DecodeError::Length { what: "snapshot contents", expected, found });
        }
        let state_at = contents.len() - state_len as usize;
        let (queues, state) = contents.split_at_checked(state_at).unwrap_or_default();
        Ok(Self {
            offset: PhysicalOffset::new(u64_at(bytes, OFFSET_AT)?),
            epoch: Epoch::new(u64_at(bytes, EPOCH_AT)?),
            applied: PhysicalOffset::new(u64_at(bytes, APPLIED_AT)?),
            reach: PhysicalOffset::new(u64_at(bytes, REACH_AT)?),
            store_clock: Timestamp::new(u64_at(bytes, STORE_CLOCK_AT)?),
            state: state.to_vec(),
            queues: queues.chunks_exact(QUEUE_LEN).map(decode_queue).collect::<Result<_, _>>()?,
        })
    }
}

fn encode_queue(queue: &QueuePosition) -> [u8; QUEUE_LEN] {
    let mut bytes = [0; QUEUE_LEN];
    put(&mut bytes, TOPIC_AT, queue.key.topic.get().to_le_bytes());
    put(&mut bytes, QUEUE_AT, queue.key.queue.get().to_le_bytes());
    put(&mut bytes, NEXT_AT, queue.next.get().to_le_bytes());
    put(&mut bytes, FIRST_SEGMENT_AT, queue.first_segment.get().to_le_bytes());
    put(&mut bytes, LAST_SEGMENT_AT, queue.last_segment.get().to_le_bytes());
    bytes
}

fn decode_queue(bytes: &[u8]) -> Result<QueuePosition, DecodeError> {
    if u32_at(bytes, QUEUE_ZERO_AT)? != 0 {
        return Err(DecodeError::Reserved { at: QUEUE_ZERO_AT });
    }
    Ok(QueuePosition {
        key: QueueKey {
            topic: TopicId::new(u64_at(bytes, TOPIC_AT)?),
            queue: QueueId::new(u32_at(bytes, QUEUE_AT)?),
        },
        next: QueueOffset::new(u64_at(bytes, NEXT_AT)?),
        first_segment: PhysicalOffset::new(u64_at(bytes, FIRST_SEGMENT_AT)?),
        last_segment: PhysicalOffset::new(u64_at(bytes, LAST_SEGMENT_AT)?),
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

    fn sample() -> Snapshot {
        Snapshot {
            offset: PhysicalOffset::new(0x2000_1000),
            epoch: Epoch::new(3),
            applied: PhysicalOffset::new(0x2000_1080),
            reach: PhysicalOffset::new(0x2000_2000),
            store_clock: Timestamp::new(1_700_000_000_000),
            state: b"state".to_vec(),
            queues: vec![queue(1, 0), queue(7, 3)],
        }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&sample().encode()),
            [
                "4d53736e01000000a500000000000000",
                "a8bb3cb2000000000010002000000000",
                "03000000000000008010002000000000",
                "00200020000000000068e5cf8b010000",
                "02000000000000000500000000000000",
                "01000000000000000000000000000000",
                "e8030000000000000000001000000000",
                "00000020000000000700000000000000",
                "03000000000000005b1b000000000000",
                "00000010000000000000002000000000",
                "7374617465",
            ]
        );
    }

    #[test]
    fn snapshot_survives_a_round_trip() {
        let empty = Snapshot { state: vec![], queues: vec![], ..sample() };
        for snapshot in [sample(), empty] {
            assert_eq!(Snapshot::decode(&snapshot.encode()), Ok(snapshot));
        }
    }

    #[test]
    fn every_flip_and_every_truncation_is_detected() {
        let bytes = sample().encode();
        assert_every_flip_is_detected(&bytes, |bytes| Snapshot::decode(bytes).is_ok());
        assert_every_truncation_is_detected(&bytes, |bytes| Snapshot::decode(bytes).is_ok());
    }

    #[test]
    fn counts_that_lie_are_refused_before_anything_is_allocated() {
        for (at, value) in [(QUEUE_COUNT_AT, u64::MAX), (QUEUE_COUNT_AT, 3), (STATE_LEN_AT, 90)] {
            let mut bytes = sample().encode();
            put(&mut bytes, at, value.to_le_bytes());
            ENVELOPE.seal(&mut bytes);
            assert!(matches!(
                Snapshot::decode(&bytes),
                Err(DecodeError::Length { what: "snapshot contents", found: 85, .. })
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
