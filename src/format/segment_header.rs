//! The first page of a CommitLog segment.
//!
//! | at | len  | field    | meaning                                                   |
//! | -: | ---: | -------- | --------------------------------------------------------- |
//! |  0 |   24 | envelope | magic, version of the CommitLog format, length, CRC32C    |
//! | 24 |   16 | store id | of the store that the segment belongs to                  |
//! | 40 |    8 | base     | physical offset of this page                              |
//! | 48 |    8 | length   | of the segment in bytes, this page included               |
//! | 56 |    4 | salt     | initial state of the checksums of its record headers      |
//! | 60 | 4036 | zero     |                                                           |
//!
//! The page is part of the offset space: file position = physical offset − base, and the first record stands at
//! position 4096. Behind the last record stands a header's length of zeros and more to the end of their page, or the
//! end of the segment; behind those may be what the file held as an earlier segment, and no record of this one. The
//! page is redundant: file name, file length and identity give the same facts, so a damaged one is reported and does
//! not stop a start. One of another version does.

use super::envelope::{self, Envelope};
use super::record::looks_zero;
use super::{DecodeError, array_at, put, slice_at, u32_at, u64_at};
use crate::message::PhysicalOffset;

/// Bytes of the page.
pub const PAGE_LEN: usize = 4096;

const ENVELOPE: Envelope =
    Envelope { what: "segment header", magic: u32::from_le_bytes(*b"MSlg"), version: 1 };

const STORE_ID_AT: usize = envelope::LEN;
const BASE_AT: usize = STORE_ID_AT + size_of::<[u8; 16]>();
const LENGTH_AT: usize = BASE_AT + size_of::<u64>();
const SALT_AT: usize = LENGTH_AT + size_of::<u64>();
const ZERO_AT: usize = SALT_AT + size_of::<u32>();
const _: () = assert!(ZERO_AT == 60, "the segment header is a contract with existing stores");

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The store that it belongs to.
    pub store_id: [u8; 16],
    /// Where it begins.
    pub base: PhysicalOffset,
    /// Its bytes, the header page included.
    pub len: u64,
    /// Initial state of the checksums of its record headers.
    pub salt: u32,
}

impl SegmentHeader {
    /// The page.
    pub fn encode(&self) -> [u8; PAGE_LEN] {
        let mut page = [0; PAGE_LEN];
        put(&mut page, STORE_ID_AT, self.store_id);
        put(&mut page, BASE_AT, self.base.get().to_le_bytes());
        put(&mut page, LENGTH_AT, self.len.to_le_bytes());
        put(&mut page, SALT_AT, self.salt.to_le_bytes());
        ENVELOPE.seal(&mut page);
        page
    }

    /// The header in the first page of `bytes`; what follows the page is not looked at.
    ///
    /// # Errors
    /// The page is damaged, of something else, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let page = slice_at(bytes, 0, PAGE_LEN)?;
        ENVELOPE.verify(page)?;
        if !looks_zero(slice_at(page, ZERO_AT, PAGE_LEN - ZERO_AT)?) {
            return Err(DecodeError::Reserved { at: ZERO_AT });
        }
        Ok(Self {
            store_id: array_at(page, STORE_ID_AT)?,
            base: PhysicalOffset::new(u64_at(page, BASE_AT)?),
            len: u64_at(page, LENGTH_AT)?,
            salt: u32_at(page, SALT_AT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::testing::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            store_id: *b"0123456789abcdef",
            base: PhysicalOffset::new(0x1000_0000),
            len: 0x2000_0000,
            salt: 0xa1b2_c3d4,
        }
    }

    #[test]
    fn golden_bytes() {
        let page = sample().encode();
        assert_eq!(
            hex(&page[..64]),
            [
                "4d536c67010000000010000000000000",
                "da040906000000003031323334353637",
                "38396162636465660000001000000000",
                "0000002000000000d4c3b2a100000000"
            ]
        );
        assert!(looks_zero(&page[64..]));
    }

    #[test]
    fn header_survives_a_round_trip() {
        let page = sample().encode();
        assert_eq!(SegmentHeader::decode(&page), Ok(sample()));
        let more = [page.as_slice(), b"records"].concat();
        assert_eq!(SegmentHeader::decode(&more), Ok(sample()));
    }

    #[test]
    fn every_flip_and_every_truncation_is_detected() {
        let page = sample().encode();
        assert_every_flip_is_detected(&page, |page| SegmentHeader::decode(page).is_ok());
        assert_every_truncation_is_detected(&page, |page| SegmentHeader::decode(page).is_ok());
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        let mut page = sample().encode();
        page[4095] = 1;
        ENVELOPE.seal(&mut page);
        assert_eq!(SegmentHeader::decode(&page), Err(DecodeError::Reserved { at: 60 }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let _ = SegmentHeader::decode(&bytes);
        }
    }
}
