//! Append against `pwrite` + CRC32C of the same bytes into an equal file, with as many threads.
//!
//! | case | is |
//! | --- | --- |
//! | `append/SIZE/async/THREADS` | single messages, the store without threads: append alone |
//! | `append/SIZE×100/async/THREADS` | batches of 100 messages, each one record |
//! | `…/checked` | with the check that the server makes of every batch, of which the checksum of the record comes |
//! | `…/running` | with the store's threads beside: dispatch, flush, seal, allocate share the machine |
//!
//! The batch is made ahead; the checksum of its bytes is in the timed part of all cases, its check in `checked` alone.
//! The control's bytes are those of the whole record, header and padding included. The log's segments have their blocks
//! ahead, as nobody waits for a sync, and so has the control's file, which is made anew when it is full.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use mainstem::file::segment::Prefill;
use mainstem::format::batch::check;
use mainstem::format::crc32c;
use mainstem::message::FlushMode;
use mainstem::store::StoreConfig;
use measure::rig::{Drive, PlainFile, Prepared, Rig, append_patiently, config, on_threads};
use measure::{Bench, Case, Slice};

const SIZES: [(&str, usize); 4] =
    [("100B", 100), ("1KiB", 1 << 10), ("16KiB", 16 << 10), ("1MiB", 1 << 20)];

struct Shape {
    name: String,
    messages: usize,
    body_len: usize,
    threads: u32,
    checked: bool,
    drive: Drive,
}

fn main() {
    let mut bench = Bench::start("append");
    for shape in shapes() {
        if bench.wants(&shape.name) {
            measure_shape(&mut bench, &shape);
        }
    }
    bench.finish();
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (size, body_len) in SIZES {
        for messages in [1, 100] {
            if messages * body_len > 8 << 20 {
                continue;
            }
            let times = if messages == 1 { String::new() } else { format!("×{messages}") };
            for threads in [1, 4] {
                let name = format!("append/{size}{times}/async/{threads}");
                for (suffix, checked, drive) in [
                    ("", false, Drive::Stepped),
                    ("/checked", true, Drive::Stepped),
                    ("/running", false, Drive::Threads),
                ] {
                    let name = format!("{name}{suffix}");
                    shapes.push(Shape { name, messages, body_len, threads, checked, drive });
                }
            }
        }
    }
    shapes
}

fn measure_shape(bench: &mut Bench, shape: &Shape) {
    let dir = bench.fresh_dir(&shape.name);
    let segment = bench.pick(256 << 20, 16 << 20);
    let batch = Prepared::new(shape.messages, shape.body_len, None);
    let config = StoreConfig { flush: FlushMode::Async, ..config(&dir.join("store"), segment) };
    let mut rig = Rig::open(config, shape.drive, FlushMode::Async);
    let file = PlainFile::new(&dir, segment, Prefill::Blocks);
    let len = batch.record_len();
    let threads = u64::from(shape.threads);
    let each = (bench.pick(16 << 20, 1 << 20) / len / threads).max(1);
    let (records, bytes) = (each * threads, each * threads * len);
    let messages = records as f64 * shape.messages as f64;
    let waits = AtomicU64::new(0);
    let mut subject = || {
        rig.rest();
        Slice::of(messages, bytes, || {
            on_threads(shape.threads, |thread| append(&rig, &batch, shape, thread, each, &waits));
        })
    };
    let plain = vec![0xA5; usize::try_from(len).unwrap_or(usize::MAX)];
    let mut control = || {
        file.rest(bytes);
        Slice::of(messages, bytes, || {
            on_threads(shape.threads, |_| (0..each).for_each(|_| file.append(&plain)));
        })
    };
    let is_goal = shape.body_len == 1 << 10 && shape.threads == 1;
    let case = Case {
        name: shape.name.clone(),
        control: "pwrite + CRC32C of the same bytes",
        unit: "message",
        reach: (is_goal && !shape.checked && shape.drive == Drive::Stepped).then_some(0.6),
    };
    bench.compare(&case, &mut subject, &mut control);
    let waits = waits.into_inner();
    if waits > 0 {
        bench.note(&shape.name, &format!("waited {waits} × for space"), waits.into());
    }
    if shape.threads == 1 && !shape.checked {
        let calls = usize::try_from(each).unwrap_or(usize::MAX);
        rig.rest();
        let histogram = measure::latencies(calls, |_| {
            append_patiently(&rig.store, rig.record(0, &batch));
        });
        bench.latencies(&format!("{}/call", shape.name), &histogram);
    }
    drop(rig);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

fn append(rig: &Rig, batch: &Prepared, shape: &Shape, queue: u32, times: u64, waits: &AtomicU64) {
    for _ in 0..times {
        if shape.checked {
            black_box(check(black_box(&batch.bytes)).expect("the batch is sound"));
        } else {
            black_box(crc32c(black_box(&batch.bytes)));
        }
        let record = rig.record(queue, batch);
        if shape.drive == Drive::Stepped {
            rig.store.append_one(record).expect("the record is stored");
        } else {
            let (_, waited) = append_patiently(&rig.store, record);
            waits.fetch_add(waited, Ordering::Relaxed);
        }
    }
}
