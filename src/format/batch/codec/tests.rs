//! Compressed bodies: what the door lets through, what comes out, and what a lie costs.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::wire::{put_bytes, put_fixed32, put_number};
use super::super::{BatchBuilder, NewMeta, check};
use super::*;
use crate::format::crc32c;
use crate::format::testing::hex;

/// The codecs of this build that compress.
fn built() -> Vec<Codec> {
    let is_built = |codec: &Codec| Compressor::new(*codec).is_ok();
    Codec::ALL.into_iter().skip(1).filter(is_built).collect()
}

fn builder_of<B: AsRef<[u8]>>(bodies: &[B]) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for body in bodies {
        builder.push(&NewMeta::default(), body.as_ref());
    }
    builder
}

fn compressed<B: AsRef<[u8]>>(codec: Codec, bodies: &[B]) -> Bytes {
    builder_of(bodies).finish_compressed(&mut Compressor::new(codec).unwrap())
}

/// A batch of messages with these body lengths that claims that `bodies` are theirs, with a checksum that fits.
fn claim(codec: u32, lens: &[u32], bodies: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for len in lens {
        let mut meta = Vec::new();
        put_number(&mut meta, 7, u64::from(*len));
        put_bytes(&mut out, 1, &meta);
    }
    put_number(&mut out, 2, codec.into());
    put_number(&mut out, 3, lens.iter().map(|len| u64::from(*len)).sum());
    put_fixed32(&mut out, 4, crc32c(bodies));
    put_bytes(&mut out, 5, bodies);
    out
}

/// What comes out of a batch that was let in, and that it took no more room than the batch says.
fn unpack(batch: &[u8]) -> Result<Vec<u8>, BatchError> {
    let parsed = Batch::parse(batch).unwrap();
    let mut room = Vec::new();
    let done = Decompressor::new().decompress(&parsed, &mut room);
    assert!(room.capacity() <= parsed.bodies_len() as usize);
    assert!(room.capacity() <= limits::UNCOMPRESSED_LEN);
    done.map(|()| room)
}

fn lie(codec: Codec, expected: u64, bodies: &[u8]) -> BatchError {
    BatchError::Decompression { codec, expected, found: bodies.len() as u64 }
}

const MIB: u32 = 1 << 20;

/// A zstd frame of blocks of one byte that stands for so many, without the length of what comes out.
fn runs(lens: &[u32]) -> Vec<u8> {
    // A window of 128 KiB, nothing else.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x38];
    for (index, len) in lens.iter().enumerate() {
        let is_last = u32::from(index + 1 == lens.len());
        frame.extend_from_slice(&(len << 3 | 1 << 1 | is_last).to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

/// Three letters, a match that repeats them over 27 bytes, six letters.
#[test]
fn golden_bytes_of_lz4() {
    let block = b"\x3fabc\x03\x00\x08\x60abcabc";
    let batch = claim(1, &[24, 12], block);
    assert_eq!(
        hex(&batch),
        ["0a0238180a02380c10011824256a3d1a", "d52a0e3f616263030008606162636162", "63"]
    );
    let info = check(&batch).unwrap();
    assert_eq!((info.codec, info.bodies_len, info.message_count), (Codec::Lz4, 36, 2));
    assert_eq!(unpack(&batch).unwrap(), b"abc".repeat(12));
}

/// Two runs, and the length of what comes out nowhere but in the batch.
#[test]
fn golden_bytes_of_zstd() {
    let batch = claim(2, &[3, 2], &runs(&[4, 1]));
    assert_eq!(
        hex(&batch),
        ["0a0238030a02380210021805254ab539", "132a0e28b52ffd0038220000780b0000", "78"]
    );
    let info = check(&batch).unwrap();
    assert_eq!((info.codec, info.bodies_len, info.message_count), (Codec::Zstd, 5, 2));
    if built().contains(&Codec::Zstd) {
        assert_eq!(unpack(&batch).unwrap(), b"xxxxx");
    } else {
        let refused = unpack(&batch).unwrap_err();
        assert_eq!(refused, BatchError::NotBuilt { codec: Codec::Zstd });
        let text = "this build has no zstd: it was made without the feature `zstd`";
        assert_eq!(refused.to_string(), text);
    }
}

/// As the command line tool `zstd` compresses, with its single segment that states its length.
#[test]
fn frame_of_the_reference_implementation_is_read() {
    let frame = [
        0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x49, 0x3d, 0x01, 0x00, 0xc8, 0x6f, 0x6e, 0x65, 0x20, 0x6d,
        0x65, 0x73, 0x73, 0x61, 0x67, 0x65, 0x20, 0x61, 0x6e, 0x64, 0x20, 0x61, 0x6e, 0x6f, 0x74,
        0x68, 0x65, 0x72, 0x6f, 0x72, 0x04, 0x00, 0x40, 0x15, 0x80, 0xa9, 0xc7, 0xa3, 0xda, 0xf0,
        0x8e, 0xd9, 0x04,
    ];
    let text = "one message and another message and one more message and another one more";
    let batch = claim(2, &[11, 62], &frame);
    assert_eq!(check(&batch).unwrap().bodies_len, 73);
    if built().contains(&Codec::Zstd) {
        assert_eq!(unpack(&batch).unwrap(), text.as_bytes());
    }
    let other = claim(2, &[11, 61], &frame);
    assert_eq!(check(&other), Err(lie(Codec::Zstd, 72, &frame)));
}

#[test]
fn codecs_have_the_numbers_of_the_format() {
    let numbers = Codec::ALL.map(|codec| (codec.number(), codec.name()));
    assert_eq!(numbers, [(0, "none"), (1, "lz4"), (2, "zstd")]);
    assert_eq!(Codec::from_number(2), Some(Codec::Zstd));
    assert_eq!(Codec::from_number(3), None);
    let batch = claim(3, &[1], b"x");
    assert_eq!(check(&batch), Err(BatchError::Codec { codec: 3 }));
    assert_eq!(unpack(&batch), Err(BatchError::Codec { codec: 3 }));
}

#[test]
fn batch_that_compression_does_not_make_smaller_stays_as_it_is() {
    let noise: Vec<u8> =
        (0_u32..1_000).flat_map(|n| crc32c(&n.to_le_bytes()).to_le_bytes()).collect();
    for codec in built() {
        for body in [&b""[..], b"x", b"xx", &noise] {
            let batch = compressed(codec, &[body]);
            assert_eq!(batch, builder_of(&[body]).finish(), "{codec}");
        }
        let same = [b'x'; 100];
        assert!(compressed(codec, &[same]).len() < builder_of(&[same]).len() / 2, "{codec}");
    }
    assert_eq!(compressed(Codec::None, &[[0; 100]]), builder_of(&[[0; 100]]).finish());
}

#[test]
fn compressor_and_room_serve_one_batch_after_the_other() {
    for codec in built() {
        let mut compressor = Compressor::new(codec).unwrap();
        assert_eq!(compressor.codec(), codec);
        let (mut decompressor, mut room) = (Decompressor::new(), Vec::new());
        for len in [100, 200_000, 5, 70_000, 1_000] {
            let body = b"0123456789".repeat(len);
            let batch = builder_of(&[&body]).finish_compressed(&mut compressor);
            assert_eq!(check(&batch).unwrap().codec, codec);
            decompressor.decompress(&Batch::parse(&batch).unwrap(), &mut room).unwrap();
            assert_eq!(room, body);
            assert_eq!(room.capacity().min(2_000_000), room.capacity());
        }
        // A lie leaves nothing behind that the next one meets.
        let lie = claim(codec.number(), &[9], &compressed_bodies(codec, b"0123456789"));
        assert!(decompressor.decompress(&Batch::parse(&lie).unwrap(), &mut room).is_err());
        let batch = compressed(codec, &[[7; 300]]);
        decompressor.decompress(&Batch::parse(&batch).unwrap(), &mut room).unwrap();
        assert_eq!(room, [7; 300]);
    }
}

/// As they stand in a batch, also if they are not smaller.
fn compressed_bodies(codec: Codec, bodies: &[u8]) -> Vec<u8> {
    let mut compressor = Compressor::new(codec).unwrap();
    compressor.compress(bodies, bodies.len() + 1_000).unwrap().to_vec()
}

#[test]
fn what_cannot_come_out_is_refused_at_the_door() {
    let refused = |codec: Codec, len: u32, bodies: &[u8]| {
        let error = lie(codec, len.into(), bodies);
        assert_eq!(check(&claim(codec.number(), &[len], bodies)), Err(error));
        assert_eq!(unpack(&claim(codec.number(), &[len], bodies)), Err(error));
    };
    refused(Codec::Lz4, 0, b"");
    refused(Codec::Lz4, 1, b"");
    refused(Codec::Lz4, 255 * 3 + 1, b"abc");
    assert!(check(&claim(1, &[255 * 3], b"abc")).is_ok());
    let five = runs(&[4, 1]);
    for len in [0, 4, 6] {
        refused(Codec::Zstd, len, &five);
    }
    for cut in 0..five.len() {
        refused(Codec::Zstd, 5, &five[..cut]);
    }
    refused(Codec::Zstd, 5, &[&five[..], b"x"].concat());
    refused(Codec::Zstd, 5, &five.repeat(2));
    // A dictionary, a reserved bit, a block of a type that there is not, and one that is too large.
    for (at, bits) in [(4, 1), (4, 8), (6, 6)] {
        let mut changed = five.clone();
        changed[at] |= bits;
        refused(Codec::Zstd, 5, &changed);
    }
    refused(Codec::Zstd, (128 << 10) + 1, &runs(&[(128 << 10) + 1]));
    assert_eq!(
        lie(Codec::Zstd, 5, b"xyz").to_string(),
        "bodies of 3 bytes as zstd do not decompress to the 5 that are stated"
    );
}

#[test]
fn frame_that_states_its_length_states_that_of_the_batch() {
    // A single segment with its length in 1, 2, 4 and 8 bytes, and a raw block.
    for (descriptor, stated, block) in [
        (0x20, &[5][..], 5),
        (0x60, &[44, 0], 300),
        (0xa0, &[5, 0, 0, 0], 5),
        (0xe0, &[5, 0, 0, 0, 0, 0, 0, 0], 5),
    ] {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, descriptor];
        frame.extend_from_slice(stated);
        frame.extend_from_slice(&(block << 3 | 1_u32).to_le_bytes()[..3]);
        frame.extend(std::iter::repeat_n(b'x', block as usize));
        assert_eq!(check(&claim(2, &[block], &frame)).unwrap().bodies_len, block);
        if built().contains(&Codec::Zstd) {
            assert_eq!(unpack(&claim(2, &[block], &frame)).unwrap().len(), block as usize);
        }
        let error = lie(Codec::Zstd, u64::from(block) + 1, &frame);
        assert_eq!(check(&claim(2, &[block + 1], &frame)), Err(error));
        // The frame lies about itself.
        frame[5] += 1;
        let error = lie(Codec::Zstd, u64::from(block), &frame);
        assert_eq!(check(&claim(2, &[block], &frame)), Err(error));
    }
}

#[test]
fn bomb_is_refused_above_the_limit_and_takes_no_more_room_than_the_limit_below() {
    let zeros = vec![0; 16 << 20];
    let bombs = built().into_iter().map(|codec| (codec, compressed_bodies(codec, &zeros)));
    let runs = (Codec::Zstd, runs(&[128 << 10; 128]));
    for (codec, bomb) in bombs.chain([runs]) {
        assert!(bomb.len() < 68 << 10, "{codec}: {}", bomb.len());
        let number = codec.number();
        let at_limit = claim(number, &[4 * MIB; 4], &bomb);
        assert_eq!(check(&at_limit).unwrap().bodies_len, 16 * MIB);
        if built().contains(&codec) {
            assert_eq!(unpack(&at_limit).unwrap().len(), 16 << 20, "{codec}");
        }
        let beyond = claim(number, &[4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB, 1], &bomb);
        let (index, limit, found) = (4, 16 << 20, (16 << 20) + 1);
        let refused = BatchError::UncompressedTooLarge { index, limit, found };
        assert_eq!(check(&beyond), Err(refused));
        assert_eq!(unpack(&beyond), Err(refused), "{codec}");
        // Says less than comes out.
        let modest = claim(number, &[MIB], &bomb);
        assert_eq!(unpack(&modest), Err(lie(codec, MIB.into(), &bomb)), "{codec}");
    }
    // 64 KiB of LZ4 cannot come to 16 MiB at all.
    let claimed = claim(1, &[4 * MIB; 4], &[0xff; 64 << 10]);
    assert_eq!(check(&claimed), Err(lie(Codec::Lz4, 16 << 20, &[0xff; 64 << 10])));
    let claimed = claim(1, &[4 * MIB; 4], &[0xff; 68 << 10]);
    assert_eq!(check(&claimed).unwrap().bodies_len, 16 * MIB);
    assert_eq!(unpack(&claimed), Err(lie(Codec::Lz4, 16 << 20, &[0xff; 68 << 10])));
}

fn text() -> Vec<Vec<u8>> {
    (0..40_u32).map(|n| format!("message {} of {}", n * n, n % 7).into_bytes()).collect()
}

#[test]
fn every_truncation_and_flip_of_compressed_bodies_is_bounded() {
    let bodies = text();
    let lens: Vec<u32> = bodies.iter().map(|body| body.len() as u32).collect();
    for codec in built() {
        let whole = compressed_bodies(codec, &bodies.concat());
        assert_eq!(unpack(&claim(codec.number(), &lens, &whole)).unwrap(), bodies.concat());
        for cut in 0..whole.len() {
            let found = unpack(&claim(codec.number(), &lens, &whole[..cut]));
            let expected = bodies.concat().len() as u64;
            assert_eq!(found, Err(lie(codec, expected, &whole[..cut])), "{codec}, {cut}");
        }
        let mut turned = whole.clone();
        for bit in 0..whole.len() * 8 {
            turned[bit / 8] ^= 1 << (bit % 8);
            // What comes out is other bytes or a refusal; `unpack` looks at the room.
            if let Ok(other) = unpack(&claim(codec.number(), &lens, &turned)) {
                assert_eq!(other.len(), bodies.concat().len());
            }
            turned[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

proptest! {
    #[test]
    fn bodies_survive_a_round_trip(
        bodies in prop::collection::vec(prop::collection::vec(0_u8..4, 0..400), 1..20),
    ) {
        for codec in built() {
            let batch = compressed(codec, &bodies);
            let info = check(&batch).unwrap();
            let plain = builder_of(&bodies);
            prop_assert!(batch.len() <= plain.len());
            let (codec, checksum) = (info.codec, info.checksum);
            let of_plain = check(&plain.finish()).unwrap();
            prop_assert_eq!(info, super::super::BatchInfo { codec, checksum, ..of_plain });
            prop_assert_eq!(checksum, crate::format::crc32c(&batch));
            let parsed = Batch::parse(&batch).unwrap();
            let unpacked = unpack(&batch).unwrap();
            let found: Vec<_> = parsed.messages_in(&unpacked).map(|message| message.unwrap().1).collect();
            prop_assert_eq!(&found, &bodies);
        }
    }

    #[test]
    fn arbitrary_bodies_never_panic(
        codec in 1_u32..3,
        len in 0_u32..100_000,
        bodies: Vec<u8>,
        as_frame: bool,
    ) {
        let bodies = if as_frame { [&[0x28, 0xb5, 0x2f, 0xfd][..], &bodies].concat() } else { bodies };
        let batch = claim(codec, &[len], &bodies);
        let _ = check(&batch);
        if let Ok(unpacked) = unpack(&batch) {
            prop_assert_eq!(unpacked.len(), len as usize);
        }
    }

    #[test]
    fn changed_bodies_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        len in 0_u32..2_000,
    ) {
        for codec in built() {
            let mut bodies = compressed_bodies(codec, &text().concat());
            for (at, byte) in &changes {
                let at = at.index(bodies.len());
                bodies[at] = *byte;
            }
            let _ = unpack(&claim(codec.number(), &[len], &bodies));
        }
    }
}
