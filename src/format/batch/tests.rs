//! The batch: round trips, golden bytes, and every way in which one can lie.

use bytes::Bytes;
use proptest::prelude::*;

use super::wire::{put_bytes, put_fixed32, put_number};
use super::*;
use crate::format::testing::*;

fn batch_of(messages: &[(NewMeta<'_>, &[u8])]) -> Bytes {
    let mut builder = BatchBuilder::new();
    for (meta, body) in messages {
        builder.push(meta, body);
    }
    assert_eq!((builder.message_count(), builder.is_empty()), (messages.len(), false));
    let len = builder.len();
    let batch = builder.finish();
    assert_eq!(batch.len(), len);
    batch
}

fn check_one(meta: NewMeta<'_>, body: &[u8]) -> Result<BatchInfo, BatchError> {
    check(&batch_of(&[(meta, body)]))
}

fn full_meta() -> NewMeta<'static> {
    NewMeta {
        keys: vec!["k1", "k2"],
        tag: Some("tag"),
        properties: vec![("a", "1"), ("b", "")],
        message_group: Some("group"),
        id: Some("id-1"),
        born_ms: 1_700_000_000_000,
        encoding: 1,
        trace_context: Some("00-aa-bb-01"),
        born_host: Some("host"),
    }
}

fn sample() -> Bytes {
    let bare = NewMeta { message_group: Some("group"), ..NewMeta::default() };
    batch_of(&[(full_meta(), b"hello"), (bare, b" world")])
}

/// A batch of these encoded metas and bodies, with lengths and checksum that fit.
fn raw_batch(metas: &[&[u8]], bodies: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for meta in metas {
        put_bytes(&mut out, 1, meta);
    }
    put_number(&mut out, 3, bodies.len() as u64);
    put_fixed32(&mut out, 4, crc32c(bodies));
    put_bytes(&mut out, 5, bodies);
    out
}

fn check_meta(raw: &[u8]) -> Result<BatchInfo, BatchError> {
    check(&raw_batch(&[raw], b""))
}

fn malformed(problem: Malformed) -> Result<BatchInfo, BatchError> {
    Err(BatchError::Malformed { problem })
}

fn malformed_meta(problem: Malformed) -> Result<BatchInfo, BatchError> {
    Err(BatchError::MalformedMeta { index: 0, problem })
}

fn text_fault(field: TextField, fault: TextFault) -> Result<BatchInfo, BatchError> {
    Err(BatchError::Text { index: 0, field, fault })
}

/// Walks all of an accepted batch and compares with what `check` said.
fn assert_walks(batch: &[u8], info: &BatchInfo) {
    let walked = Batch::parse(batch).unwrap();
    assert_eq!(walked.message_count(), info.message_count);
    assert_eq!((walked.codec(), walked.bodies_len()), (info.codec.number(), info.bodies_len));
    let metas: Result<Vec<_>, _> = walked.metas().collect();
    assert_eq!(metas.unwrap().len(), usize::from(info.message_count));
    let mut room = Vec::new();
    if let Err(error) = Decompressor::new().decompress(&walked, &mut room) {
        // A change in the bodies, with a checksum that fits, is not told at the door.
        assert!(info.codec != Codec::None, "{error}");
        return;
    }
    let messages: Result<Vec<_>, _> = walked.messages_in(&room).collect();
    let messages = messages.unwrap();
    assert_eq!(messages.len(), usize::from(info.message_count));
    let bodies: Vec<_> = messages.iter().flat_map(|(_, body)| body.iter().copied()).collect();
    assert_eq!(bodies, room);
    let entries = messages.iter().map(|(meta, _)| meta.keys().count() + meta.id().iter().len());
    assert_eq!(entries.sum::<usize>(), info.index_entries as usize);
    assert_eq!(messages.iter().any(|(meta, _)| meta.tag().is_none()), info.has_untagged);
    for (meta, body) in messages {
        assert_eq!(check(&single(meta.raw(), body)).unwrap().message_count, 1);
    }
}

#[test]
fn golden_bytes() {
    assert_eq!(
        hex(&sample()),
        [
            "0a450a026b310a026b3212037461671a",
            "060a01611201311a030a016222056772",
            "6f75702a0469642d313080d095ffbc31",
            "380540014a0b30302d61612d62622d30",
            "315204686f73740a09220567726f7570",
            "3806180b25aa6594c92a0b68656c6c6f",
            "20776f726c64"
        ]
    );
    assert_eq!(tag_hash("tag"), 0x857d_5b2a_a583_6ac2);
    assert_eq!(group_hash("group"), 0x1406_ffdc);
}

#[test]
fn walk_gives_back_what_was_built() {
    let batch = sample();
    let info = check(&batch).unwrap();
    assert_walks(&batch, &info);
    let walked = Batch::parse(&batch).unwrap();
    assert_eq!((walked.bodies(), walked.bodies_crc()), (&b"hello world"[..], 0xc994_65aa));
    let messages: Vec<_> = walked.messages().map(Result::unwrap).collect();
    let (meta, body) = messages[0];
    assert_eq!((body, meta.body_len()), (&b"hello"[..], 5));
    assert_eq!(meta.keys().collect::<Vec<_>>(), ["k1", "k2"]);
    assert_eq!(meta.properties().collect::<Vec<_>>(), [("a", "1"), ("b", "")]);
    assert_eq!((meta.tag(), meta.message_group()), (Some("tag"), Some("group")));
    assert_eq!((meta.id(), meta.born_ms(), meta.encoding()), (Some("id-1"), 1_700_000_000_000, 1));
    assert_eq!((meta.trace_context(), meta.born_host()), (Some("00-aa-bb-01"), Some("host")));
    let (bare, body) = messages[1];
    assert_eq!((body, bare.tag(), bare.id()), (&b" world"[..], None, None));
    assert_eq!((bare.trace_context(), bare.born_host()), (None, None));
    assert_eq!((bare.keys().count(), bare.properties().count()), (0, 0));
}

#[test]
fn single_takes_one_message_out_byte_for_byte() {
    let batch = sample();
    let (meta, body) = Batch::parse(&batch).unwrap().messages().next().unwrap().unwrap();
    assert_eq!(single(meta.raw(), body), batch_of(&[(full_meta(), b"hello")]));
}

#[test]
fn record_of_one_carries_the_hash_and_of_several_the_mask() {
    let tagged = |tag| (NewMeta { tag, ..NewMeta::default() }, &b"x"[..]);
    let bits = |messages: &[_]| {
        let info = check(&batch_of(messages)).unwrap();
        (info.tag_bits, info.has_untagged)
    };
    let [a, b] = ["a", "b"].map(|tag| tag_mask_bit(tag_hash(tag)));
    assert_eq!(bits(&[tagged(Some("a"))]), (tag_hash("a"), false));
    assert_eq!(bits(&[tagged(None)]), (0, true));
    assert_eq!(bits(&[tagged(Some("a")), tagged(Some("b"))]), (a | b, false));
    assert_eq!(bits(&[tagged(Some("a")), tagged(None)]), (a, true));
    assert_eq!(bits(&[tagged(None), tagged(None)]), (0, true));
}

#[test]
fn info_counts_group_and_index_entries() {
    let info = check(&sample()).unwrap();
    assert_eq!((info.message_count, info.index_entries, info.bodies_len), (2, 3, 11));
    assert_eq!((info.has_message_group, info.group_hash), (true, group_hash("group")));
    let info = check_one(NewMeta::default(), b"").unwrap();
    assert_eq!((info.has_message_group, info.group_hash, info.index_entries), (false, 0, 0));
}

#[test]
fn the_checksum_of_a_batch_is_of_all_its_bytes() {
    for len in [0, 1, 4_000, 9_000, 100_000] {
        let batch = batch_of(&[(full_meta(), &vec![b'x'; len]), (full_meta(), b"second")]);
        assert_eq!(check(&batch).unwrap().checksum, crc32c(&batch), "{len}");
    }
}

#[test]
fn batch_of_empty_bodies_needs_none_of_the_fields_behind_the_metas() {
    let batch = batch_of(&[(NewMeta::default(), b""), (NewMeta::default(), b"")]);
    assert_eq!(&batch[..], [0x0a, 0, 0x0a, 0]);
    assert_walks(&batch, &check(&batch).unwrap());
    let stated = [0x0a, 0, 0x10, 0, 0x18, 0, 0x25, 0, 0, 0, 0, 0x2a, 0];
    assert_walks(&stated, &check(&stated).unwrap());
}

#[test]
fn batch_without_messages_is_refused() {
    assert_eq!(check(b""), Err(BatchError::Empty));
    assert_eq!(check(&raw_batch(&[], b"")), Err(BatchError::Empty));
    assert_eq!(Batch::parse(b"").err(), Some(BatchError::Empty));
}

#[test]
fn every_flip_in_the_bodies_is_detected() {
    let batch = sample();
    let mut turned = batch.to_vec();
    let bodies_at = batch.len() - 11;
    for bit in bodies_at * 8..batch.len() * 8 {
        turned[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(check(&turned), Err(BatchError::Checksum { expected: 0xc994_65aa, .. })));
        turned[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn flip_anywhere_is_refused_or_walks() {
    let mut turned = sample().to_vec();
    for bit in 0..turned.len() * 8 {
        turned[bit / 8] ^= 1 << (bit % 8);
        if let Ok(info) = check(&turned) {
            assert_walks(&turned, &info);
        }
        turned[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_truncation_is_detected() {
    assert_every_truncation_is_detected(&sample(), |batch| check(batch).is_ok());
}

#[test]
fn fields_of_a_batch_have_an_order_and_none_is_unknown() {
    let twice = |field| malformed(Malformed::Repeated { field });
    let behind = |field| malformed(Malformed::OutOfOrder { field });
    assert_eq!(check(&[0x0a, 0, 0x10, 0, 0x10, 0]), twice(2));
    assert_eq!(check(&[0x0a, 0, 0x18, 0, 0x18, 0]), twice(3));
    assert_eq!(check(&[0x0a, 0, 0x25, 0, 0, 0, 0, 0x25, 0, 0, 0, 0]), twice(4));
    assert_eq!(check(&[0x0a, 0, 0x2a, 0, 0x2a, 0]), twice(5));
    assert_eq!(check(&[0x0a, 0, 0x10, 0, 0x0a, 0]), behind(1));
    assert_eq!(check(&[0x0a, 0, 0x18, 0, 0x10, 0]), behind(2));
    assert_eq!(check(&[0x0a, 0, 0x30, 0]), malformed(Malformed::Unknown { field: 6 }));
    assert_eq!(check(&[0x08, 0]), malformed(Malformed::WireType { field: 1, found: 0 }));
    assert_eq!(check(&[0x0a, 0, 0x20, 0]), malformed(Malformed::WireType { field: 4, found: 0 }));
    assert_eq!(check(&[0x0a, 0, 0x13]), malformed(Malformed::WireType { field: 2, found: 3 }));
    assert_eq!(
        check(&[0x0a, 0, 0x10, 0x80, 0x80, 0x80, 0x80, 0x10]),
        malformed(Malformed::TooBig { field: 2, found: 1 << 32 })
    );
    assert_eq!(check(&[0x0a, 5, 0]), malformed(Malformed::CutShort));
}

#[test]
fn unknown_fields_of_a_meta_are_kept_and_skipped() {
    // Field 100 as varint, fixed64, bytes and fixed32, field 15 in a property, then tag "t" and key "k".
    let mut raw =
        vec![0xa0, 6, 1, 0xa1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0xa2, 6, 1, 9, 0xa5, 6, 0, 0, 0, 0];
    raw.extend_from_slice(&[
        0x1a, 8, 0x7a, 0, 0x0a, 1, b'p', 0x12, 1, b'v', 0x12, 1, b't', 0x0a, 1, b'k',
    ]);
    let batch = raw_batch(&[&raw], b"");
    assert_walks(&batch, &check(&batch).unwrap());
    let meta = Batch::parse(&batch).unwrap().metas().next().unwrap().unwrap();
    assert_eq!(meta.raw(), raw);
    assert_eq!((meta.tag(), meta.keys().collect::<Vec<_>>()), (Some("t"), vec!["k"]));
    assert_eq!(meta.properties().collect::<Vec<_>>(), [("p", "v")]);
    let group = [0xa3, 6, 0xa4, 6];
    assert_eq!(check_meta(&group), malformed_meta(Malformed::WireType { field: 100, found: 3 }));
}

#[test]
fn single_fields_of_a_meta_stand_once_even_if_empty() {
    for (field, twice) in [
        (2, &[0x12, 0, 0x12, 0][..]),
        (4, &[0x22, 0, 0x22, 0]),
        (5, &[0x2a, 0, 0x2a, 0]),
        (6, &[0x30, 0, 0x30, 0]),
        (7, &[0x38, 0, 0x38, 0]),
        (8, &[0x40, 0, 0x40, 0]),
        (9, &[0x4a, 0, 0x4a, 0]),
        (10, &[0x52, 0, 0x52, 0]),
        (1, &[0x1a, 4, 0x0a, 0, 0x0a, 0]),
        (2, &[0x1a, 4, 0x12, 0, 0x12, 0]),
    ] {
        assert_eq!(check_meta(twice), malformed_meta(Malformed::Repeated { field }));
    }
}

#[test]
fn empty_single_fields_count_as_absent() {
    let info = check_meta(&[0x12, 0, 0x22, 0, 0x2a, 0, 0x4a, 0, 0x52, 0]).unwrap();
    assert_eq!((info.has_untagged, info.has_message_group, info.index_entries), (true, false, 0));
}

#[test]
fn text_is_utf8() {
    for (field, raw) in [
        (1, &[0x0a, 1, 0xff][..]),
        (2, &[0x12, 1, 0xff]),
        (4, &[0x22, 1, 0xff]),
        (5, &[0x2a, 1, 0xff]),
        (9, &[0x4a, 1, 0xff]),
        (10, &[0x52, 1, 0xff]),
        (1, &[0x1a, 3, 0x0a, 1, 0xff]),
        (2, &[0x1a, 3, 0x12, 1, 0xff]),
    ] {
        assert_eq!(check_meta(raw), malformed_meta(Malformed::NotUtf8 { field }));
    }
}

#[test]
fn text_says_something_and_has_no_control_characters() {
    use TextFault::{Bar, Blank, ControlCharacter, Empty};
    use TextField::{Key, MessageGroup, PropertyKey, Tag};
    let key = |key| check_one(NewMeta { keys: vec![key], ..NewMeta::default() }, b"");
    let tag = |tag| check_one(NewMeta { tag: Some(tag), ..NewMeta::default() }, b"");
    let group =
        |group| check_one(NewMeta { message_group: Some(group), ..NewMeta::default() }, b"");
    let property =
        |key| check_one(NewMeta { properties: vec![(key, "\n")], ..NewMeta::default() }, b"");
    assert_eq!(key(""), text_fault(Key, Empty));
    assert_eq!(property(""), text_fault(PropertyKey, Empty));
    assert_eq!(tag(" \u{3000}"), text_fault(Tag, Blank));
    assert_eq!(group(" "), text_fault(MessageGroup, Blank));
    assert_eq!(tag("a|b"), text_fault(Tag, Bar));
    for bad in ["a\n", "\0", "a\u{7f}b", "\u{80}", "\u{9f}"] {
        assert_eq!(key(bad), text_fault(Key, ControlCharacter));
        assert_eq!(tag(bad), text_fault(Tag, ControlCharacter));
        assert_eq!(group(bad), text_fault(MessageGroup, ControlCharacter));
        assert_eq!(property(bad), text_fault(PropertyKey, ControlCharacter));
    }
    for good in ["a b", "\u{e9}\u{a0}", "\u{bf}", "日本"] {
        assert_eq!(
            [key(good), tag(good), group(good), property(good)].map(|r| r.is_ok()),
            [true; 4]
        );
    }
}

#[test]
fn messages_of_a_batch_share_one_message_group_or_none() {
    let grouped = |message_group| (NewMeta { message_group, ..NewMeta::default() }, &b""[..]);
    let mixed = |index| Err(BatchError::MixedMessageGroups { index });
    let check_groups = |groups: &[_]| {
        let messages: Vec<_> = groups.iter().copied().map(grouped).collect();
        check(&batch_of(&messages)).map(|info| info.group_hash)
    };
    assert_eq!(check_groups(&[Some("g"), Some("g")]), Ok(group_hash("g")));
    assert_eq!(check_groups(&[Some("g"), Some("g"), Some("h")]), mixed(2));
    assert_eq!(check_groups(&[Some("g"), None]), mixed(1));
    assert_eq!(check_groups(&[None, Some("g")]), mixed(1));
}

#[test]
fn lengths_that_lie_are_refused() {
    let meta = |len| [0x38, len];
    let short = raw_batch(&[&meta(2), &meta(2)], b"abc");
    assert_eq!(check(&short), Err(BatchError::BodiesSum { expected: 3, found: 4 }));
    let walk: Vec<_> = Batch::parse(&short).unwrap().messages().map(|m| m.map(|m| m.1)).collect();
    assert_eq!(walk, [Ok(&b"ab"[..]), Err(BatchError::BodiesSum { expected: 3, found: 4 })]);
    let long = raw_batch(&[&meta(2)], b"abc");
    assert_eq!(check(&long), Err(BatchError::BodiesSum { expected: 3, found: 2 }));
    let walk: Vec<_> = Batch::parse(&long).unwrap().messages().map(|m| m.map(|m| m.1)).collect();
    assert_eq!(walk, [Ok(&b"ab"[..]), Err(BatchError::BodiesSum { expected: 3, found: 2 })]);
    let stated = [0x0a, 2, 0x38, 2, 0x18, 2, 0x2a, 1, b'x'];
    assert_eq!(check(&stated), Err(BatchError::BodiesLength { expected: 2, found: 1 }));
    let wrong = [0x0a, 2, 0x38, 1, 0x18, 1, 0x2a, 1, b'x'];
    let found = crc32c(b"x");
    assert_eq!(check(&wrong), Err(BatchError::Checksum { expected: 0, found }));
}

#[test]
fn compressed_batch_is_walked_as_if_it_were_not_by_nobody() {
    for codec in [1, 2, 77] {
        let batch = [0x0a, 0, 0x10, codec];
        let refused = BatchError::Codec { codec: codec.into() };
        let walked = Batch::parse(&batch).unwrap();
        assert_eq!(walked.metas().count(), 1);
        let messages: Vec<_> = walked.messages().map(|message| message.map(|m| m.1)).collect();
        assert_eq!(messages, [Err(refused)]);
    }
}

#[test]
fn malformed_meta_ends_the_walk_with_its_index() {
    let batch = raw_batch(&[&[], &[0x12], &[]], b"");
    let walk: Vec<_> =
        Batch::parse(&batch).unwrap().metas().map(|meta| meta.map(|m| m.body_len())).collect();
    let error = BatchError::MalformedMeta { index: 1, problem: Malformed::CutShort };
    assert_eq!(walk, [Ok(0), Err(error)]);
    assert_eq!(check(&batch), Err(error));
    assert_eq!(error.to_string(), "message 1 is malformed: cut short");
}

/// Checks what is at the limit, then what is one beyond, and compares the refusal's numbers.
fn assert_limit(
    limit: u64,
    check_at: impl Fn(usize) -> Result<BatchInfo, BatchError>,
) -> BatchError {
    let at_limit = usize::try_from(limit).unwrap();
    assert!(check_at(at_limit).is_ok(), "{:?}", check_at(at_limit));
    let refused = check_at(at_limit + 1).unwrap_err();
    assert_eq!(refused.limit(), Some(limit));
    assert!(refused.to_string().contains(&limit.to_string()), "{refused}");
    refused
}

#[test]
fn limits_of_a_message() {
    let text = |len| "x".repeat(len);
    let (index, found) = (0, 4 * 1024 * 1024 + 1);
    assert_eq!(
        assert_limit(4 * 1024 * 1024, |len| check_one(NewMeta::default(), &vec![0; len])),
        BatchError::BodyTooLarge { index, limit: found - 1, found }
    );
    assert_eq!(
        assert_limit(32, |n| check_one(NewMeta { keys: vec!["k"; n], ..NewMeta::default() }, b"")),
        BatchError::TooManyKeys { index, limit: 32, found: 33 }
    );
    assert_eq!(
        assert_limit(1024, |n| check_one(
            NewMeta { keys: vec![&text(n)], ..NewMeta::default() },
            b""
        )),
        BatchError::KeyTooLong { index, limit: 1024, found: 1025 }
    );
    assert_eq!(
        assert_limit(128, |n| {
            check_one(NewMeta { properties: vec![("k", ""); n], ..NewMeta::default() }, b"")
        }),
        BatchError::TooManyProperties { index, limit: 128, found: 129 }
    );
    assert_eq!(
        assert_limit(256, |n| check_one(NewMeta { id: Some(&text(n)), ..NewMeta::default() }, b"")),
        BatchError::IdTooLong { index, limit: 256, found: 257 }
    );
    assert_eq!(
        assert_limit(63, |n| {
            check_one(NewMeta { message_group: Some(&text(n)), ..NewMeta::default() }, b"")
        }),
        BatchError::MessageGroupTooLong { index, limit: 63, found: 64 }
    );
    assert_eq!(
        assert_limit(127, |n| check_one(
            NewMeta { tag: Some(&text(n)), ..NewMeta::default() },
            b""
        )),
        BatchError::TagTooLong { index, limit: 127, found: 128 }
    );
}

#[test]
fn properties_tag_and_keys_share_one_limit() {
    let with_rest = |len: usize| {
        let value = "v".repeat(len - 3 - 5 - 2);
        let meta = NewMeta {
            tag: Some("tag"),
            keys: vec!["a", "bcde"],
            properties: vec![("pp", &value)],
            ..NewMeta::default()
        };
        check_one(meta, b"")
    };
    assert_eq!(
        assert_limit(16 * 1024, with_rest),
        BatchError::PropertiesTooLarge { index: 0, limit: 16_384, found: 16_385 }
    );
}

#[test]
fn limits_of_a_batch() {
    let empty = (NewMeta::default(), &b""[..]);
    assert_eq!(
        assert_limit(10_000, |count| check(&batch_of(&vec![empty.clone(); count]))),
        BatchError::TooManyMessages { limit: 10_000, found: 10_001 }
    );
    // Unknown fields are bounded by nothing else.
    let of_len = |len: usize| {
        let mut batch = Vec::new();
        let mut meta = Vec::new();
        put_bytes(&mut meta, 100, &vec![0; len - 11]);
        put_bytes(&mut batch, 1, &meta);
        assert_eq!(batch.len(), len);
        check(&batch)
    };
    assert_eq!(
        assert_limit(8 * 1024 * 1024, of_len),
        BatchError::BatchTooLarge { limit: 8 << 20, found: (8 << 20) + 1 }
    );
    // Four bodies of 4 MiB and one byte, as a compressed batch would state them.
    let mut meta = Vec::new();
    put_number(&mut meta, 7, 4 << 20);
    let batch = raw_batch(&[&meta, &meta, &meta, &meta, &[0x38, 1]], b"");
    assert_eq!(
        check(&batch),
        Err(BatchError::UncompressedTooLarge { index: 4, limit: 16 << 20, found: (16 << 20) + 1 })
    );
}

#[test]
fn stored_batch_may_have_more_messages_than_todays_limit() {
    let count = limits::MESSAGES + 1;
    let batch = [0x0a, 0].repeat(usize::from(count));
    assert_eq!(Batch::parse(&batch).unwrap().message_count(), count);
    let beyond = [0x0a, 0].repeat(65_536);
    let limit = 65_535;
    assert_eq!(
        Batch::parse(&beyond).err(),
        Some(BatchError::TooManyMessages { limit, found: 65_536 })
    );
    assert_eq!(Batch::parse(&beyond[2..]).unwrap().metas().count(), 65_535);
}

#[test]
fn append_set_is_bounded_by_its_segment() {
    let limits = [16 << 10, 256 << 20, 1 << 30].map(limits::append_set_len);
    assert_eq!(limits, [4 << 10, 64 << 20, 64 << 20]);
}

/// One message as `proptest` makes it: keys, tag, properties, id, born, encoding, body.
type Made = (Vec<String>, String, Vec<(String, String)>, String, u64, u32, Vec<u8>);

fn made() -> impl Strategy<Value = Made> {
    let word = "[a-z0-9é日]{1,8}";
    (
        prop::collection::vec(word, 0..4),
        "[a-c]{0,2}",
        prop::collection::vec((word, "\\PC{0,6}"), 0..4),
        "[a-f0-9]{0,32}",
        any::<u64>(),
        any::<u32>(),
        prop::collection::vec(any::<u8>(), 0..300),
    )
}

fn build(group: &str, messages: &[Made]) -> Bytes {
    let mut builder = BatchBuilder::new();
    for (keys, tag, properties, id, born_ms, encoding, body) in messages {
        let meta = NewMeta {
            keys: keys.iter().map(String::as_str).collect(),
            tag: Some(tag),
            properties: properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            message_group: Some(group),
            id: Some(id),
            born_ms: *born_ms,
            encoding: *encoding,
            ..NewMeta::default()
        };
        builder.push(&meta, body);
    }
    builder.finish()
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        if let Ok(info) = check(&bytes) {
            assert_walks(&bytes, &info);
        }
        if let Ok(batch) = Batch::parse(&bytes) {
            batch.metas().count();
            batch.messages().count();
        }
    }

    #[test]
    fn what_is_built_is_accepted_and_walks(
        group in "[a-z]{0,5}",
        messages in prop::collection::vec(made(), 1..20),
    ) {
        let batch = build(&group, &messages);
        let info = check(&batch).unwrap();
        assert_walks(&batch, &info);
        for (message, made) in Batch::parse(&batch).unwrap().messages().zip(&messages) {
            let (meta, body) = message.unwrap();
            let (keys, tag, properties, id, born_ms, encoding, made_body) = made;
            prop_assert!(meta.keys().eq(keys.iter().map(String::as_str)));
            prop_assert_eq!(meta.tag().unwrap_or_default(), tag);
            prop_assert!(meta.properties().eq(properties.iter().map(|(k, v)| (&**k, &**v))));
            prop_assert_eq!(meta.message_group().unwrap_or_default(), &group);
            prop_assert_eq!(meta.id().unwrap_or_default(), id);
            prop_assert_eq!((meta.born_ms(), meta.encoding()), (*born_ms, *encoding));
            prop_assert_eq!(body, made_body);
        }
    }

    #[test]
    fn messages_that_say_the_same_are_counted_each_and_shown_once_for_each_run(
        runs in prop::collection::vec((0..4_usize, 1..60_usize), 1..8),
    ) {
        let keyed = NewMeta { keys: vec!["k", "l"], id: Some("i"), ..NewMeta::default() };
        let tagged = NewMeta { tag: Some("t"), ..NewMeta::default() };
        let bare = NewMeta::default();
        let kinds = [(keyed, "one"), (tagged, "four"), (bare.clone(), "four"), (bare, "twelve")];
        let messages: Vec<_> = runs.iter().flat_map(|(kind, len)| [*kind].repeat(*len)).collect();
        let all = messages.iter().map(|kind| (kinds[*kind].0.clone(), kinds[*kind].1.as_bytes()));
        let batch = batch_of(&all.collect::<Vec<_>>());
        let info = check(&batch).unwrap();
        assert_walks(&batch, &info);
        let of = |kind| messages.iter().filter(|message| **message == kind).count();
        prop_assert_eq!(usize::from(info.message_count), messages.len());
        prop_assert_eq!(info.index_entries as usize, 3 * of(0));
        prop_assert_eq!(info.has_untagged, of(1) < messages.len());
        let bodies = 3 * of(0) + 4 * (of(1) + of(2)) + 6 * of(3);
        prop_assert_eq!(info.bodies_len as usize, bodies);
        let mut shown = messages;
        shown.dedup();
        let batch = Batch::parse(&batch).unwrap();
        let distinct = batch.distinct_metas().map(|meta| meta.unwrap().body_len());
        let lens = shown.iter().map(|kind| kinds[*kind].1.len() as u32);
        prop_assert_eq!(distinct.collect::<Vec<_>>(), lens.collect::<Vec<_>>());
    }

    #[test]
    fn metas_are_found_in_the_begin_of_a_batch_once_all_of_them_are_in_it(
        messages in prop::collection::vec((made(), 1..4_usize), 1..5),
    ) {
        let messages: Vec<_> =
            messages.into_iter().flat_map(|(made, times)| vec![made; times]).collect();
        let batch = build("g", &messages);
        let raw = |meta: Result<MetaView<'_>, BatchError>| meta.unwrap().raw().to_vec();
        let parsed = Batch::parse(&batch).unwrap();
        let all: Vec<_> = parsed.distinct_metas().map(raw).collect();
        let metas = parsed.metas().map(|meta| meta.unwrap().raw().as_ptr_range().end);
        let metas_end = metas.last().unwrap() as usize - batch.as_ptr() as usize;
        for len in 0..=batch.len() {
            let found = Batch::distinct_metas_in(&batch[..len], batch.len());
            let found = found.map(|metas| metas.map(raw).collect::<Vec<_>>());
            // One more byte says that something else follows.
            let is_whole = len > metas_end || len == batch.len();
            prop_assert_eq!(found, is_whole.then(|| all.clone()), "{} of {}", len, batch.len());
        }
    }

    #[test]
    fn changed_batch_is_refused_or_walks(
        messages in prop::collection::vec(made(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut batch = build("g", &messages).to_vec();
        for (at, byte) in changes {
            let at = at.index(batch.len());
            batch[at] = byte;
        }
        if let Ok(info) = check(&batch) {
            assert_walks(&batch, &info);
        }
    }
}
