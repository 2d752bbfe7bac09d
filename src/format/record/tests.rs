//! The record: golden bytes, round trips, truncation, flipped bits.

use proptest::prelude::*;

use super::*;
use crate::format::testing::*;

const SALT: u32 = 0xa1b2_c3d4;
const AT: PhysicalOffset = PhysicalOffset::new(0x1000_1000);

fn attributes_of(list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, value) in list {
        put_attribute(&mut out, *tag, value).unwrap();
    }
    out
}

fn header_of(attributes: &[u8], payload: &[u8]) -> RecordHeader {
    RecordHeader {
        kind: RecordKind::Message,
        flags: RecordFlags::HAS_UNTAGGED.with(RecordFlags::HAS_MESSAGE_GROUP),
        total_len: record_len(attributes.len(), payload.len()).try_into().unwrap(),
        payload_crc: payload_crc(attributes, payload),
        attributes_len: attributes.len().try_into().unwrap(),
        payload_len: payload.len().try_into().unwrap(),
        queue: QueueId::new(3),
        physical_offset: AT,
        queue_offset: QueueOffset::new(0x42),
        store_time: Timestamp::new(1_700_000_000_000),
        topic: TopicId::new(9),
        tag_bits: 0x0102_0304_0506_0708,
        epoch: Epoch::new(5),
        group_hash: 0x1122_3344,
        durable_lag: 0x1000,
        message_count: 2,
        set_index: 1,
        set_count: 4,
    }
}

fn filler(total_len: u32) -> RecordHeader {
    RecordHeader { kind: RecordKind::Filler, total_len, ..header_of(b"", b"") }
}

/// Header, attributes and payload, without padding.
fn record_of(attributes: &[u8], payload: &[u8]) -> Vec<u8> {
    [&header_of(attributes, payload).encode(SALT), attributes, payload].concat()
}

fn decode_record(bytes: &[u8]) -> Result<(RecordHeader, Vec<u8>, Vec<u8>), DecodeError> {
    let header = RecordHeader::decode(bytes, AT, SALT)?;
    let (attributes, payload) = verify_body(&header, &bytes[HEADER_LEN..])?;
    Ok((header, attributes.to_vec(), payload.to_vec()))
}

/// Turns the header's bytes at `at` into `value` and makes its checksum right again.
fn forge<const N: usize>(header: &RecordHeader, at: usize, value: [u8; N]) -> [u8; HEADER_LEN] {
    let mut bytes = header.encode(SALT);
    put(&mut bytes, at, value);
    put(&mut bytes, HEADER_CRC_AT, [0; 4]);
    let crc = crc32c_with(SALT, &[&bytes]);
    put(&mut bytes, HEADER_CRC_AT, crc.to_le_bytes());
    bytes
}

#[test]
fn golden_bytes() {
    let attributes = attributes_of(&[(1, b"ab"), (0x8002, b"")]);
    assert_eq!(
        hex(&record_of(&attributes, b"payload")),
        [
            "4d53545201010600980000004c8f4934",
            "1b7b6e5a0a0000000700000003000000",
            "00100010000000004200000000000000",
            "0068e5cf8b0100000900000000000000",
            "08070605040302010500000000000000",
            "44332211001000000200010004000000",
            "00000000000000000000000000000000",
            "00000000000000000000000000000000",
            "010002006162028000007061796c6f61",
            "64"
        ]
    );
    assert_eq!(
        hex(&filler(4096).encode(SALT)[..32]),
        ["4d53545201040600001000005c195b41", "00000000000000000000000003000000"]
    );
}

#[test]
fn record_survives_a_round_trip() {
    let attributes = attributes_of(&[(7, b"value")]);
    let header = header_of(&attributes, b"payload");
    let bytes = record_of(&attributes, b"payload");
    assert_eq!(decode_record(&bytes), Ok((header, attributes, b"payload".to_vec())));
    assert_eq!(header.end(), PhysicalOffset::new(0x1000_1000 + 144));
    assert_eq!(header.durable_claim(), PhysicalOffset::new(0x1000_0000));
    assert!(header.tag_is_mask());
}

#[test]
fn every_flip_and_every_truncation_is_detected() {
    let bytes = record_of(&attributes_of(&[(7, b"value")]), b"payload");
    assert_every_flip_is_detected(&bytes, |bytes| decode_record(bytes).is_ok());
    assert_eq!(
        RecordHeader::decode(&bytes[..127], AT, SALT),
        Err(DecodeError::TooShort { needed: 128, found: 127 })
    );
    let header = RecordHeader::decode(&bytes, AT, SALT).unwrap();
    for len in 0..bytes.len() - HEADER_LEN {
        let body = &bytes[HEADER_LEN..][..len];
        let needed = if len < 9 { 9 } else { 16 };
        let found = len as u64;
        assert_eq!(verify_body(&header, body), Err(DecodeError::TooShort { needed, found }));
    }
}

#[test]
fn padding_is_not_looked_at() {
    let mut bytes = record_of(b"", b"odd");
    bytes.extend_from_slice(&[0xff; 5]);
    assert_eq!(bytes.len() as u64, record_len(0, 3));
    assert!(decode_record(&bytes).is_ok());
}

#[test]
fn record_of_another_place_or_segment_is_refused() {
    let bytes = record_of(b"", b"payload");
    let elsewhere = AT.plus(8);
    assert_eq!(
        RecordHeader::decode(&bytes, elsewhere, SALT),
        Err(DecodeError::Offset { expected: elsewhere, found: AT })
    );
    assert!(matches!(
        RecordHeader::decode(&bytes, AT, SALT + 1),
        Err(DecodeError::HeaderCrc { .. })
    ));
    assert_eq!(RecordHeader::decode(&[0; 128], AT, SALT), Err(DecodeError::Magic { found: 0 }));
}

proptest! {
    /// The checksum of the same bytes is another for each salt; and where two segments have the same, their offsets
    /// differ.
    #[test]
    fn a_header_passes_in_its_own_segment_alone(other_salt: u32, offset in 0..1_u64 << 50) {
        let header = header_of(b"", b"x").encode(SALT);
        prop_assume!(other_salt != SALT);
        prop_assert!(RecordHeader::decode(&header, AT, other_salt).is_err());
        let found = RecordHeader::decode(&header, PhysicalOffset::new(offset), SALT);
        if offset != AT.get() {
            let expected = PhysicalOffset::new(offset);
            prop_assert_eq!(found, Err(DecodeError::Offset { expected, found: AT }));
        }
    }
}

#[test]
fn newer_version_is_told_apart_from_damage() {
    let header = header_of(b"", b"");
    let decode = |bytes: &[u8]| RecordHeader::decode(bytes, AT, SALT);
    assert_eq!(
        decode(&forge(&header, VERSION_AT, [2])),
        Err(DecodeError::UnsupportedVersion { what: "record", found: 2, supported: 1 })
    );
    let mut damaged = header.encode(SALT);
    damaged[VERSION_AT] = 2;
    assert!(matches!(decode(&damaged), Err(DecodeError::HeaderCrc { .. })));
}

#[test]
fn intact_header_that_makes_no_sense_is_refused() {
    let decode = |bytes: [u8; HEADER_LEN]| RecordHeader::decode(&bytes, AT, SALT).unwrap_err();
    let record_length =
        |expected, found| DecodeError::Length { what: "record length", expected, found };
    let header = header_of(b"", b"");
    assert_eq!(decode(forge(&header, KIND_AT, [5])), DecodeError::Kind { found: 5 });
    assert_eq!(decode(forge(&header, FLAGS_AT, [8])), DecodeError::Flags { found: 8 });
    assert_eq!(decode(forge(&header, ZERO_AT, [1])), DecodeError::Reserved { at: 94 });
    assert_eq!(decode(forge(&header, 127, [1])), DecodeError::Reserved { at: 94 });
    assert_eq!(decode(forge(&header, TOTAL_LEN_AT, [136])), record_length(128, 136));
    assert_eq!(
        decode(forge(&header, PAYLOAD_LEN_AT, [0xff; 4])),
        record_length(128 + (1 << 32), 128)
    );
    assert_eq!(
        decode(forge(&header, SET_INDEX_AT, [4])),
        DecodeError::AppendSet { index: 4, count: 4 }
    );
    assert_eq!(
        decode(forge(&header, MESSAGE_COUNT_AT, [0])),
        DecodeError::Length { what: "message count", expected: 1, found: 0 }
    );
}

#[test]
fn filler_covers_any_aligned_length_and_holds_nothing() {
    let decode = |bytes: [u8; HEADER_LEN]| RecordHeader::decode(&bytes, AT, SALT);
    let record_length =
        |expected, found| Err(DecodeError::Length { what: "record length", expected, found });
    for total_len in [128, 136, 1 << 30] {
        let filler = filler(total_len);
        assert_eq!(decode(filler.encode(SALT)), Ok(filler));
        assert_eq!(filler.end(), AT.plus(total_len.into()));
    }
    let filler = filler(128);
    assert_eq!(decode(forge(&filler, TOTAL_LEN_AT, [120])), record_length(128, 120));
    assert_eq!(decode(forge(&filler, TOTAL_LEN_AT, [129])), record_length(136, 129));
    assert_eq!(
        decode(forge(&filler, PAYLOAD_LEN_AT, [1])),
        Err(DecodeError::Length { what: "length inside a filler", expected: 0, found: 1 })
    );
}

#[test]
fn record_length_is_rounded_up_to_eight() {
    let lengths = [(0, 0), (0, 1), (4, 4), (5, 4)].map(|(a, p)| record_len(a, p));
    assert_eq!(lengths, [128, 136, 136, 144]);
}

#[test]
fn attributes_are_listed_in_order_and_a_cut_list_names_where() {
    let list = attributes_of(&[(1, b"ab"), (2, b""), (1, b"c")]);
    let tags: Vec<_> = attributes(&list).map(|a| a.map(|a| (a.tag, a.value))).collect();
    assert_eq!(tags, [Ok((1, &b"ab"[..])), Ok((2, b"")), Ok((1, b"c"))]);
    let cut: Vec<_> = attributes(&list[..14]).map(|a| a.map(|a| a.tag)).collect();
    assert_eq!(cut, [Ok(1), Ok(2), Err(DecodeError::Attribute { at: 10 })]);
    assert_eq!(attributes(b"").next(), None);
}

#[test]
fn attributes_that_are_cut_short_refuse_the_body() {
    let header = header_of(&[1, 0, 9], b"");
    assert_eq!(verify_body(&header, &[1, 0, 9]), Err(DecodeError::Attribute { at: 0 }));
}

#[test]
fn only_tags_with_the_top_bit_must_be_understood() {
    let list = attributes_of(&[(1, b""), (0x8002, b""), (0x8003, b"")]);
    assert_eq!(unknown_required(&list, &[]), Some(0x8002));
    assert_eq!(unknown_required(&list, &[0x8002]), Some(0x8003));
    assert_eq!(unknown_required(&list, &[0x8002, 0x8003]), None);
}

#[test]
fn attribute_longer_than_its_length_field_is_refused() {
    let mut out = Vec::new();
    assert_eq!(put_attribute(&mut out, 1, &[0; 65_535]), Ok(()));
    assert_eq!(
        put_attribute(&mut out, 1, &[0; 65_536]),
        Err(AttributeTooLong { tag: 1, len: 65_536 })
    );
    assert_eq!(out.len(), 4 + 65_535);
}

#[test]
fn one_bit_anywhere_is_not_zero() {
    let mut bytes = [0; 1100];
    assert!(looks_zero(&bytes) && looks_zero(&[]));
    for at in 0..bytes.len() {
        bytes[at] = 0x80;
        assert!(!looks_zero(&bytes), "byte {at}");
        bytes[at] = 0;
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), forged: bool) {
        if forged && bytes.len() >= HEADER_LEN {
            put(&mut bytes, MAGIC_AT, MAGIC.to_le_bytes());
            put(&mut bytes, VERSION_AT, [VERSION]);
            put(&mut bytes, PHYSICAL_OFFSET_AT, AT.get().to_le_bytes());
            put(&mut bytes, HEADER_CRC_AT, [0; 4]);
            let crc = crc32c_with(SALT, &[&bytes[..HEADER_LEN]]);
            put(&mut bytes, HEADER_CRC_AT, crc.to_le_bytes());
        }
        let _ = decode_record(&bytes);
        for attribute in attributes(&bytes) {
            let _ = attribute;
        }
        let _ = unknown_required(&bytes, &[]);
    }

    #[test]
    fn what_was_put_is_listed(list: Vec<(u16, Vec<u8>)>) {
        let mut bytes = Vec::new();
        for (tag, value) in &list {
            prop_assert_eq!(put_attribute(&mut bytes, *tag, value), Ok(()));
        }
        let read: Result<Vec<_>, _> =
            attributes(&bytes).map(|a| a.map(|a| (a.tag, a.value.to_vec()))).collect();
        prop_assert_eq!(read, Ok(list));
    }
}
