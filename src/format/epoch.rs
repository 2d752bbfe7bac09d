//! The payload of an epoch record: what a start found, and the epoch that it began.
//!
//! Fields in the form of a record's attributes, each at most once:
//!
//! | tag | len    | field          | meaning                                                           |
//! | --: | -----: | -------------- | ----------------------------------------------------------------- |
//! |   1 |      8 | epoch          | of all records from here on, up to the next epoch record          |
//! |   2 |      8 | store clock    | the newest store time given, ms                                   |
//! |   3 |      4 | format version | of the store, from here on                                        |
//! |   4 |     16 | cut            | physical offset and bytes of the torn tail that this start cut; absent if none |
//! |   5 |      8 | damaged count  | ranges of damage that this start found                            |
//! |   6 | 16 × n | damaged        | the first 64 of them: physical offsets, begin and end             |
//! |   7 | 32 + 40 × n | lost | messages of the cut tail that could be read; absent if there were none |
//!
//! `lost` begins with messages, queues, first and last store time, each u64. Then comes a row for each of the 64 queues
//! with most messages: topic, queue, messages, first and last store time, each u64.
//!
//! One is appended and synced at every start, before anything else: the log alone knows its epoch.

use std::ops::Range;

use super::fields::{Field, collect, put_field};
use super::{DecodeError, FORMAT_VERSION, u64_at};
use crate::message::{Epoch, PhysicalOffset, QueueId, Timestamp, TopicId};

/// So many damaged ranges are written out; the rest is only counted.
pub const MAX_DAMAGED: usize = 64;

/// So many queues that lost messages are written out; the rest is only counted.
pub const MAX_LOST_QUEUES: usize = 64;

const EPOCH: u16 = 1;
const STORE_CLOCK: u16 = 2;
const FORMAT: u16 = 3;
const CUT: u16 = 4;
const DAMAGED_COUNT: u16 = 5;
const DAMAGED: u16 = 6;
const LOST: u16 = 7;

const LOST_LEN: usize = 4 * size_of::<u64>();
const LOST_ROW_LEN: usize = 5 * size_of::<u64>();

const PAIR_LEN: usize = 2 * size_of::<u64>();

/// A torn tail that a start cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where it began: the end of the log after the cut.
    pub at: PhysicalOffset,
    /// How many bytes were given up, from `at` on.
    pub len: u64,
}

/// What a queue lost with a torn tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostQueue {
    /// Its topic.
    pub topic: TopicId,
    /// The queue.
    pub queue: QueueId,
    /// How many messages; at least 1.
    pub messages: u64,
    /// Store time of the first of them.
    pub first: Timestamp,
    /// Store time of the last of them.
    pub last: Timestamp,
}

/// The messages in a torn tail that could still be read when it was cut. What never came to the disk is not among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many messages, in all queues.
    pub messages: u64,
    /// How many queues they were of.
    pub queue_count: u64,
    /// Store time of the first message.
    pub first: Timestamp,
    /// Store time of the last message.
    pub last: Timestamp,
    /// The [`MAX_LOST_QUEUES`] queues with most of them.
    pub queues: Vec<LostQueue>,
}

/// What a start found, and the epoch that it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRecord {
    /// Of all records from here on.
    pub epoch: Epoch,
    /// The newest store time given.
    pub store_clock: Timestamp,
    /// Of the store, from here on.
    pub format_version: u32,
    /// The torn tail that was cut.
    pub cut: Option<Cut>,
    /// How many damaged ranges were found.
    pub damaged_count: u64,
    /// The first [`MAX_DAMAGED`] of them, half-open.
    pub damaged: Vec<Range<PhysicalOffset>>,
    /// The messages that the cut took, as far as they could be read.
    pub lost: Option<Lost>,
}

impl EpochRecord {
    /// The payload. Of `damaged`, only the first [`MAX_DAMAGED`] are written.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_field(&mut out, EPOCH, &self.epoch.get().to_le_bytes());
        put_field(&mut out, STORE_CLOCK, &self.store_clock.get().to_le_bytes());
        put_field(&mut out, FORMAT, &self.format_version.to_le_bytes());
        if let Some(cut) = self.cut {
            put_field(&mut out, CUT, &pair(cut.at.get(), cut.len));
        }
        put_field(&mut out, DAMAGED_COUNT, &self.damaged_count.to_le_bytes());
        let written = self.damaged.iter().take(MAX_DAMAGED);
        let damaged: Vec<u8> =
            written.flat_map(|range| pair(range.start.get(), range.end.get())).collect();
        put_field(&mut out, DAMAGED, &damaged);
        if let Some(lost) = &self.lost {
            put_field(&mut out, LOST, &encode_lost(lost));
        }
        out
    }

    /// The record in a payload.
    ///
    /// # Errors
    /// The payload is damaged, or the store has a newer format than this build reads.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let [epoch, store_clock, format, cut, damaged_count, damaged, lost] =
            collect(payload, [EPOCH, STORE_CLOCK, FORMAT, CUT, DAMAGED_COUNT, DAMAGED, LOST])?;
        let format_version = format.u32()?;
        if !(1..=FORMAT_VERSION).contains(&format_version) {
            return Err(DecodeError::UnsupportedVersion {
                what: "store format",
                found: format_version,
                supported: FORMAT_VERSION,
            });
        }
        let record = Self {
            epoch: Epoch::new(epoch.u64()?),
            store_clock: Timestamp::new(store_clock.u64()?),
            format_version,
            cut: cut.optional().map(decode_cut).transpose()?,
            damaged_count: damaged_count.u64()?,
            damaged: decode_damaged(damaged)?,
            lost: lost.optional().map(decode_lost).transpose()?,
        };
        let written = record.damaged.len() as u64;
        if written != record.damaged_count.min(MAX_DAMAGED as u64) {
            let (what, expected) = ("count of damaged ranges", written);
            return Err(DecodeError::Length { what, expected, found: record.damaged_count });
        }
        Ok(record)
    }
}

fn pair(first: u64, second: u64) -> [u8; PAIR_LEN] {
    let pair = u128::from(first) | u128::from(second) << 64;
    pair.to_le_bytes()
}

fn unpair(bytes: &[u8]) -> Result<(u64, u64), DecodeError> {
    Ok((u64_at(bytes, 0)?, u64_at(bytes, size_of::<u64>())?))
}

fn decode_cut(field: Field<'_>) -> Result<Cut, DecodeError> {
    let (at, len) = unpair(&field.array::<PAIR_LEN>()?)?;
    Ok(Cut { at: PhysicalOffset::new(at), len })
}

fn decode_damaged(field: Field<'_>) -> Result<Vec<Range<PhysicalOffset>>, DecodeError> {
    let bytes = field.bytes()?;
    let pairs = bytes.chunks_exact(PAIR_LEN);
    if !pairs.remainder().is_empty() || pairs.len() > MAX_DAMAGED {
        return Err(field.meaningless());
    }
    pairs
        .map(|pair| {
            let (start, end) = unpair(pair)?;
            if start < end {
                Ok(PhysicalOffset::new(start)..PhysicalOffset::new(end))
            } else {
                Err(field.meaningless())
            }
        })
        .collect()
}

fn encode_lost(lost: &Lost) -> Vec<u8> {
    let mut out = Vec::with_capacity(LOST_LEN + lost.queues.len() * LOST_ROW_LEN);
    for number in [lost.messages, lost.queue_count, lost.first.get(), lost.last.get()] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for row in lost.queues.iter().take(MAX_LOST_QUEUES) {
        let queue = u64::from(row.queue.get());
        for number in [row.topic.get(), queue, row.messages, row.first.get(), row.last.get()] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    out
}

fn decode_lost(field: Field<'_>) -> Result<Lost, DecodeError> {
    let bytes = field.bytes()?;
    let (facts, rows) = bytes.split_at_checked(LOST_LEN).ok_or_else(|| field.meaningless())?;
    let rows = rows.chunks_exact(LOST_ROW_LEN);
    if !rows.remainder().is_empty() || rows.len() > MAX_LOST_QUEUES {
        return Err(field.meaningless());
    }
    let number = |bytes: &[u8], index: usize| u64_at(bytes, index * size_of::<u64>());
    let queues = rows.map(|row| {
        Ok(LostQueue {
            topic: TopicId::new(number(row, 0)?),
            queue: QueueId::new(u32::try_from(number(row, 1)?).map_err(|_| field.meaningless())?),
            messages: number(row, 2)?,
            first: Timestamp::new(number(row, 3)?),
            last: Timestamp::new(number(row, 4)?),
        })
    });
    let lost = Lost {
        messages: number(facts, 0)?,
        queue_count: number(facts, 1)?,
        first: Timestamp::new(number(facts, 2)?),
        last: Timestamp::new(number(facts, 3)?),
        queues: queues.collect::<Result<_, DecodeError>>()?,
    };
    let written = lost.queues.len() as u64;
    if written != lost.queue_count.min(MAX_LOST_QUEUES as u64) {
        let what = "count of queues that lost messages";
        return Err(DecodeError::Length { what, expected: written, found: lost.queue_count });
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::testing::*;

    fn range(start: u64, end: u64) -> Range<PhysicalOffset> {
        PhysicalOffset::new(start)..PhysicalOffset::new(end)
    }

    fn sample() -> EpochRecord {
        EpochRecord {
            epoch: Epoch::new(4),
            store_clock: Timestamp::new(1_700_000_000_000),
            format_version: 1,
            cut: Some(Cut { at: PhysicalOffset::new(0x2000), len: 0x88 }),
            damaged_count: 2,
            damaged: vec![range(0x1000, 0x1080), range(0x1800, 0x1900)],
            lost: None,
        }
    }

    fn lost(queues: u64) -> EpochRecord {
        let row = |queue| LostQueue {
            topic: TopicId::new(7),
            queue: QueueId::new(queue),
            messages: 3,
            first: Timestamp::new(100),
            last: Timestamp::new(200),
        };
        let (first, last) = (Timestamp::new(100), Timestamp::new(200));
        let rows = (0..u32::try_from(queues.min(64)).unwrap()).map(row).collect();
        let lost = Lost { messages: 3 * queues, queue_count: queues, first, last, queues: rows };
        EpochRecord { lost: Some(lost), ..sample() }
    }

    fn clean() -> EpochRecord {
        EpochRecord { cut: None, damaged_count: 0, damaged: vec![], ..sample() }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&sample().encode()),
            [
                "01000800040000000000000002000800",
                "0068e5cf8b0100000300040001000000",
                "04001000002000000000000088000000",
                "00000000050008000200000000000000",
                "06002000001000000000000080100000",
                "00000000001800000000000000190000",
                "00000000"
            ]
        );
        assert_eq!(
            hex(&clean().encode()),
            [
                "01000800040000000000000002000800",
                "0068e5cf8b0100000300040001000000",
                "05000800000000000000000006000000"
            ]
        );
    }

    #[test]
    fn golden_bytes_of_lost_messages() {
        let encoded = lost(1).encode();
        let (before, field) = encoded.split_at(sample().encode().len());
        assert_eq!(before, sample().encode());
        assert_eq!(
            hex(field),
            [
                "07004800030000000000000001000000",
                "000000006400000000000000c8000000",
                "00000000070000000000000000000000",
                "00000000030000000000000064000000",
                "00000000c800000000000000"
            ]
        );
    }

    #[test]
    fn epoch_record_survives_a_round_trip() {
        for record in [sample(), clean(), lost(1), lost(64), lost(1_000_000)] {
            assert_eq!(EpochRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn only_the_first_damaged_ranges_are_written_out() {
        let damaged: Vec<_> = (0..100).map(|n| range(n * 16, n * 16 + 8)).collect();
        let record = EpochRecord { damaged_count: 100, damaged, ..sample() };
        let read = EpochRecord::decode(&record.encode()).unwrap();
        assert_eq!(read.damaged_count, 100);
        assert_eq!(read.damaged, record.damaged[..64]);
    }

    #[test]
    fn every_truncation_is_detected() {
        let payload = sample().encode();
        assert_every_truncation_is_detected(&payload, |payload| {
            EpochRecord::decode(payload).is_ok()
        });
    }

    #[test]
    fn newer_format_is_refused_by_its_version() {
        let newer = EpochRecord { format_version: 2, ..sample() }.encode();
        assert_eq!(
            EpochRecord::decode(&newer),
            Err(DecodeError::UnsupportedVersion { what: "store format", found: 2, supported: 1 })
        );
    }

    #[test]
    fn values_without_meaning_are_named() {
        let empty_range = EpochRecord { damaged_count: 1, damaged: vec![range(8, 8)], ..sample() };
        assert_eq!(
            EpochRecord::decode(&empty_range.encode()),
            Err(DecodeError::Field { tag: DAMAGED, len: 16 })
        );
        let lie = EpochRecord { damaged_count: 3, ..sample() };
        assert_eq!(
            EpochRecord::decode(&lie.encode()),
            Err(DecodeError::Length { what: "count of damaged ranges", expected: 2, found: 3 })
        );
        let mut lie = lost(2);
        lie.lost.as_mut().unwrap().queue_count = 3;
        let what = "count of queues that lost messages";
        assert_eq!(
            EpochRecord::decode(&lie.encode()),
            Err(DecodeError::Length { what, expected: 2, found: 3 })
        );
        let mut without_epoch = sample().encode();
        without_epoch.drain(..12);
        assert_eq!(
            EpochRecord::decode(&without_epoch),
            Err(DecodeError::MissingField { tag: EPOCH })
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = EpochRecord::decode(&bytes);
            let mut fields = clean().encode();
            put_field(&mut fields, CUT, &bytes);
            let _ = EpochRecord::decode(&fields);
            let mut fields = clean().encode();
            put_field(&mut fields, LOST, &bytes);
            let _ = EpochRecord::decode(&fields);
        }
    }
}
