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
//!
//! One is appended and synced at every start, before anything else: the log alone knows its epoch.

use std::ops::Range;

use super::fields::{Field, collect, put_field};
use super::{DecodeError, FORMAT_VERSION, u64_at};
use crate::message::{Epoch, PhysicalOffset, Timestamp};

/// So many damaged ranges are written out; the rest is only counted.
pub const MAX_DAMAGED: usize = 64;

const EPOCH: u16 = 1;
const STORE_CLOCK: u16 = 2;
const FORMAT: u16 = 3;
const CUT: u16 = 4;
const DAMAGED_COUNT: u16 = 5;
const DAMAGED: u16 = 6;

const PAIR_LEN: usize = 2 * size_of::<u64>();

/// A torn tail that a start cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where it began: the end of the log after the cut.
    pub at: PhysicalOffset,
    /// How many bytes were given up, from `at` on.
    pub len: u64,
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
        out
    }

    /// The record in a payload.
    ///
    /// # Errors
    /// The payload is damaged, or the store has a newer format than this build reads.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let [epoch, store_clock, format, cut, damaged_count, damaged] =
            collect(payload, [EPOCH, STORE_CLOCK, FORMAT, CUT, DAMAGED_COUNT, DAMAGED])?;
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
        }
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
    fn epoch_record_survives_a_round_trip() {
        for record in [sample(), clean()] {
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
        }
    }
}
