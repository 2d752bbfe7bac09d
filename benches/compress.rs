//! What compression costs for each message: batches of 100 messages of 1 KiB of JSON, of which LZ4 leaves two fifths and
//! zstd a quarter.
//!
//! `page`: all messages of a record, each cut out as a batch of its own, as a page of a query does. `one`: the message
//! in the middle alone. `build`: a batch is made. The control does the same without a codec. zstd needs
//! `--features zstd`.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::fmt::Write as _;
use std::hint::black_box;

use bytes::Bytes;
use mainstem::format::batch::{
    Batch, BatchBuilder, Codec, Compressor, Decompressor, NewMeta, single,
};
use mainstem::format::crc32c;
use measure::{Bench, Case, Slice};

const MESSAGES: usize = 100;

fn main() {
    let mut bench = Bench::start("compress");
    let bodies: Vec<String> = (0..MESSAGES).map(body).collect();
    let plain = builder(&bodies).finish();
    for codec in [Codec::Lz4, Codec::Zstd] {
        let Ok(mut compressor) = Compressor::new(codec) else { continue };
        let compressed = builder(&bodies).finish_compressed(&mut compressor);
        let (len, whole) = (compressed.len(), plain.len());
        let text = format!("{len} of {whole} bytes");
        bench.note(&format!("compress/{codec}"), &text, serde_json::json!({ "bytes": len }));
        for (what, wanted) in [("page", 0..MESSAGES), ("one", 50..51)] {
            let name = format!("{what}/1KiB×100/{codec}");
            let (mut decompressor, mut room) = (Decompressor::new(), Vec::new());
            let (mut again, mut no_room) = (Decompressor::new(), Vec::new());
            compare(
                &mut bench,
                &name,
                wanted.len(),
                "the same of an uncompressed batch",
                [
                    &mut || cut(&compressed, wanted.clone(), &mut decompressor, &mut room),
                    &mut || cut(&plain, wanted.clone(), &mut again, &mut no_room),
                ],
            );
        }
        let name = format!("build/1KiB×100/{codec}");
        compare(
            &mut bench,
            &name,
            MESSAGES,
            "the same without compression",
            [
                &mut || drop(black_box(builder(&bodies).finish_compressed(&mut compressor))),
                &mut || drop(black_box(builder(&bodies).finish())),
            ],
        );
    }
    bench.finish();
}

fn compare(
    bench: &mut Bench,
    name: &str,
    messages: usize,
    control: &str,
    [subject, plain]: [&mut dyn FnMut(); 2],
) {
    if !bench.wants(name) {
        return;
    }
    let times = bench.pick(2_000, 20);
    let slice = |run: &mut dyn FnMut()| {
        Slice::of((times * messages) as f64, 0, || (0..times).for_each(|_| run()))
    };
    let case = Case { name: name.to_owned(), control, unit: "messages", reach: None };
    bench.compare(&case, &mut || slice(subject), &mut || slice(plain));
}

/// Cuts messages out of a batch, as `broker/query.rs` does.
fn cut(
    batch: &Bytes,
    wanted: std::ops::Range<usize>,
    decompressor: &mut Decompressor,
    room: &mut Vec<u8>,
) {
    let batch = Batch::parse(batch).expect("it was built");
    let bodies = if batch.codec() == 0 {
        batch.bodies()
    } else {
        decompressor.decompress(&batch, room).expect("it was compressed");
        room
    };
    let (skipped, count) = (wanted.start, wanted.len());
    for message in batch.messages_in(bodies).skip(skipped).take(count) {
        let (meta, body) = message.expect("it was built");
        black_box(single(meta.raw(), body));
    }
}

fn builder(bodies: &[String]) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for (number, body) in bodies.iter().enumerate() {
        let key = format!("order-{number}");
        let meta = NewMeta { keys: vec![&key], tag: Some("paid"), ..NewMeta::default() };
        builder.push(&meta, body.as_bytes());
    }
    builder
}

/// 1 KiB of JSON with names that come again and values that do not.
fn body(number: usize) -> String {
    let mut body = String::from("{");
    for field in 0_u64.. {
        let value = crc32c(&(number as u64 * 1_000 + field).to_le_bytes());
        let _ = write!(body, "\"field-{field}\":\"{:x}\",\"state-{field}\":{},", value, value % 7);
        if body.len() > 1_023 {
            break;
        }
    }
    body.truncate(1_023);
    body.push('}');
    body
}
