//! Every byte on disk and nothing else: pure functions over slices. No file, no thread, no clock, no allocation on the
//! paths that every message takes.
//!
//! | file | layout | frozen |
//! | --- | --- | --- |
//! | [`record`] | a CommitLog record: header of 128 bytes, attributes, payload | yes |
//! | [`attributes`] | what the broker adds to a record of messages | yes |
//! | [`batch`] | the payload of a message record, and the one table of limits | yes |
//! | [`state_record`] | the payload of a state record: transitions of the broker's own state | yes |
//! | [`epoch`] | the payload of an epoch record: one per start | yes |
//! | [`segment_header`] | the first page of a CommitLog segment | yes |
//! | [`identity`] | who this store is, and its secrets | yes |
//! | [`checkpoint`] | what is known to be durable; derived | by version |
//! | [`snapshot`] | broker state and queue positions at one place of the log; derived | by version |
//! | [`pages`] | pages of 4 KiB with a checksum each, which `.cq` and `.idx` files are made of; derived | by version |
//! | [`consume_queue`] | the `.cq` file: directory, topic facts, entries of 32 bytes; derived | by version |
//! | [`index`] | the `.idx` file: buckets, entries, the key hash; derived | by version |
//! | [`names`] | directories and file names, both directions | yes |
//!
//! All integers are little-endian. A frozen layout is a contract with existing stores: it grows by new tags, kinds and
//! versions, never by a new meaning of old bytes. A derived one may be rebuilt from the log, so its version may rise.
//!
//! Foreign bytes are never indexed: every access is checked, and decoding arbitrary bytes ends in a value or in an
//! error that names the damage.

#![deny(clippy::indexing_slicing)]

pub mod attributes;
pub mod batch;
pub mod checkpoint;
pub mod consume_queue;
mod envelope;
pub mod epoch;
mod fields;
pub mod identity;
pub mod index;
pub mod names;
pub mod pages;
pub mod record;
pub mod segment_header;
pub mod snapshot;
pub mod state_record;

use crc_fast::{CrcAlgorithm, Digest};

use crate::message::PhysicalOffset;

/// The version of the store's format as a whole, written into every epoch record.
pub const FORMAT_VERSION: u32 = 1;

/// Why bytes are not what they should be. Decoding never panics, changes nothing, and names the damage it met first.
///
/// In checksum variants `expected` is what the bytes say and `found` what they sum up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the structure does.
    #[error("{needed} bytes are needed, {found} are there")]
    TooShort {
        /// Bytes that the structure needs, as far as it could be read.
        needed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// Something else begins here.
    #[error("magic {found:#010x} is of something else")]
    Magic {
        /// What stands in its place.
        found: u32,
    },
    /// The header of a record is damaged.
    #[error("header checksum is {found:#010x}, expected {expected:#010x}")]
    HeaderCrc {
        /// What the header says.
        expected: u32,
        /// What it sums up to.
        found: u32,
    },
    /// The attributes or the payload of a record are damaged.
    #[error("payload checksum is {found:#010x}, expected {expected:#010x}")]
    PayloadCrc {
        /// What the header says.
        expected: u32,
        /// What attributes and payload sum up to.
        found: u32,
    },
    /// A page or a file is damaged.
    #[error("checksum of the {what} is {found:#010x}, expected {expected:#010x}")]
    FileCrc {
        /// Which structure.
        what: &'static str,
        /// What it says.
        expected: u32,
        /// What it sums up to.
        found: u32,
    },
    /// A page of a derived file is damaged.
    #[error("page {page} is damaged")]
    PageCrc {
        /// Which page of the file, from 0.
        page: u64,
    },
    /// A record from an earlier life of its bytes, behind newer ones.
    #[error("record of epoch {found} behind one of epoch {newest}")]
    StaleEpoch {
        /// Its epoch.
        found: crate::message::Epoch,
        /// The highest before it.
        newest: crate::message::Epoch,
    },
    /// An intact record of another place.
    #[error("record says it is at {found}, it was read at {expected}")]
    Offset {
        /// Where it was read.
        expected: PhysicalOffset,
        /// Where it says it is.
        found: PhysicalOffset,
    },
    /// Intact, but written by another release.
    #[error("{what} has version {found}, this build reads {supported}")]
    UnsupportedVersion {
        /// Which structure.
        what: &'static str,
        /// The version that stands in it.
        found: u32,
        /// The version that this build reads.
        supported: u32,
    },
    /// A kind of record that this build does not know.
    #[error("record kind {found} is unknown")]
    Kind {
        /// The kind that stands in it.
        found: u8,
    },
    /// A flag that this build does not know.
    #[error("flags {found:#x} have unknown bits")]
    Flags {
        /// All flags that stand there.
        found: u32,
    },
    /// Two lengths or counts contradict each other.
    #[error("{what} is {found}, expected {expected}")]
    Length {
        /// Which length or count.
        what: &'static str,
        /// What the rest of the structure asks for.
        expected: u64,
        /// What stands there.
        found: u64,
    },
    /// Bytes that must be zero are not.
    #[error("reserved bytes at {at} are not zero")]
    Reserved {
        /// From the start of the structure.
        at: usize,
    },
    /// A place in an append set that does not exist.
    #[error("record {index} of an append set of {count}")]
    AppendSet {
        /// The record's place, from 0.
        index: u16,
        /// Records in the set.
        count: u16,
    },
    /// A list of attributes or fields ends inside one.
    #[error("attribute at {at} is cut short")]
    Attribute {
        /// From the start of the list.
        at: usize,
    },
    /// A kind of transition that this build does not know: it must not start on this log.
    #[error("transition kind {kind} is unknown")]
    UnknownTransition {
        /// The kind that stands there.
        kind: u16,
    },
    /// A field that must be understood, and this build does not know it.
    #[error("field {tag:#06x} is unknown and must be understood")]
    UnknownRequired {
        /// Its tag, top bit included.
        tag: u16,
    },
    /// A field that must be there is not.
    #[error("field {tag} is missing")]
    MissingField {
        /// Its tag.
        tag: u16,
    },
    /// A field that may be there once is there twice.
    #[error("field {tag} is repeated")]
    RepeatedField {
        /// Its tag.
        tag: u16,
    },
    /// A field of the wrong length, or with a value that means nothing.
    #[error("field {tag} of {len} bytes has no meaning")]
    Field {
        /// Its tag.
        tag: u16,
        /// Bytes of its value.
        len: usize,
    },
}

/// CRC32C (Castagnoli) of `bytes`. Of nothing it is 0.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_with(u32::MAX, &[bytes])
}

/// CRC32C of `parts`, one after the other, from another initial state than the usual all ones.
///
/// Bytes that moved to a place with another initial state no longer verify there.
pub fn crc32c_with(initial: u32, parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, initial.into());
    for part in parts {
        digest.update(part);
    }
    // The sum of a 32-bit CRC has 32 bits.
    digest.finalize() as u32
}

/// CRC32C of what has the CRC32C `first`, and `second` behind it, whose own CRC32C is known. `second` is read again
/// only where that costs less than a sum without its bytes: below 8 KiB.
pub fn crc32c_behind(first: u32, second: &[u8], known: u32) -> u32 {
    if second.len() < JOIN_FROM {
        return crc32c_with(!first, &[second]);
    }
    // A CRC is the remainder of a polynomial, and so many bytes behind it multiply that by `x` to the power of their
    // bits. What the initial state and the last inversion do to either is cancelled by the other.
    let (mut moved, mut power) = (first, X_TO_8);
    let mut len = second.len();
    while len > 0 {
        if len & 1 == 1 {
            moved = times(moved, power);
        }
        power = times(power, power);
        len >>= 1;
    }
    moved ^ known
}

/// About as many bytes are summed up in the time that it takes to join two sums.
const JOIN_FROM: usize = 8 << 10;
/// CRC32C's polynomial but for its highest term. Bit 31 is the coefficient of 1, bit 0 that of `x` to the power of 31.
const CASTAGNOLI: u32 = 0x82f6_3b78;
const X_TO_8: u32 = 1 << (31 - 8);

/// The product of two polynomials modulo CRC32C's.
fn times(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for bit in (0..32).rev() {
        // Masks, no branches: the bits are as good as random.
        product ^= b & 0_u32.wrapping_sub((a >> bit) & 1);
        b = (b >> 1) ^ (CASTAGNOLI & 0_u32.wrapping_sub(b & 1));
    }
    product
}

/// `len` bytes from `at` on.
#[inline]
pub(crate) fn slice_at(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], DecodeError> {
    let short = || DecodeError::TooShort {
        needed: (at as u64).saturating_add(len as u64),
        found: bytes.len() as u64,
    };
    bytes.get(at..).and_then(|rest| rest.get(..len)).ok_or_else(short)
}

/// The `N` bytes from `at` on.
#[inline]
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], DecodeError> {
    match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(chunk) => Ok(*chunk),
        None => Err(DecodeError::TooShort {
            needed: (at as u64).saturating_add(N as u64),
            found: bytes.len() as u64,
        }),
    }
}

/// The little-endian number at `at`.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, DecodeError> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

/// The little-endian number at `at`.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, DecodeError> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

/// The little-endian number at `at`.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Result<u64, DecodeError> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

/// Writes `value` at `at`.
///
/// # Panics
/// If `out` ends before it: layouts are written into buffers of their own size.
#[inline]
pub(crate) fn put<const N: usize>(out: &mut [u8], at: usize, value: [u8; N]) {
    let slot = out.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
    assert!(slot.is_some(), "a layout is written into a buffer of its size");
    if let Some(slot) = slot {
        *slot = value;
    }
}

/// What the tests of all layouts share.
#[cfg(test)]
pub(crate) mod testing {
    /// Lower-case hex, 16 bytes a line.
    pub(crate) fn hex(bytes: &[u8]) -> Vec<String> {
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.chunks(16).map(line).collect()
    }

    /// Asserts that `accepts` is false for `bytes` with any single bit turned, and true as they are.
    pub(crate) fn assert_every_flip_is_detected(bytes: &[u8], accepts: impl Fn(&[u8]) -> bool) {
        assert!(accepts(bytes), "the original must be accepted");
        let mut turned = bytes.to_vec();
        for bit in 0..bytes.len() * 8 {
            turned[bit / 8] ^= 1 << (bit % 8);
            assert!(!accepts(&turned), "bit {} of byte {} was turned", bit % 8, bit / 8);
            turned[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// Asserts that `accepts` is false for every proper prefix of `bytes`.
    pub(crate) fn assert_every_truncation_is_detected(
        bytes: &[u8],
        accepts: impl Fn(&[u8]) -> bool,
    ) {
        assert!(accepts(bytes), "the original must be accepted");
        for len in 0..bytes.len() {
            assert!(!accepts(&bytes[..len]), "cut to {len} bytes");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// CRC32C bit by bit, from its definition.
    fn slow_crc32c(initial: u32, bytes: &[u8]) -> u32 {
        !bytes.iter().fold(initial, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
            })
        })
    }

    #[test]
    fn crc32c_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    proptest! {
        #[test]
        fn crc32c_equals_its_definition(initial: u32, bytes: Vec<u8>, cut: prop::sample::Index) {
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(crc32c_with(initial, &[head, tail]), slow_crc32c(initial, &bytes));
        }

        #[test]
        fn joined_checksums_are_those_of_the_joined_bytes(
            first in prop::collection::vec(any::<u8>(), 0..100),
            some in prop::collection::vec(any::<u8>(), 1..100),
            len in prop_oneof![0_usize..100, JOIN_FROM - 9..JOIN_FROM + 9, 0_usize..300_000],
        ) {
            let second: Vec<u8> = some.iter().copied().cycle().take(len).collect();
            let joined = crc32c_behind(crc32c(&first), &second, crc32c(&second));
            prop_assert_eq!(joined, crc32c_with(u32::MAX, &[&first, &second]));
        }
    }

    #[test]
    fn reading_beyond_the_end_names_what_is_needed() {
        assert_eq!(u32_at(&[1, 0, 0, 0, 9], 0), Ok(1));
        assert_eq!(u32_at(&[0; 5], 2), Err(DecodeError::TooShort { needed: 6, found: 5 }));
        assert_eq!(u16_at(&[0; 5], 7), Err(DecodeError::TooShort { needed: 9, found: 5 }));
        assert_eq!(
            slice_at(&[0; 5], usize::MAX, 2),
            Err(DecodeError::TooShort { needed: u64::MAX, found: 5 })
        );
    }
}
