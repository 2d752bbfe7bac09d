//! Reads of hot data by queue against a copy and a checksum of the same bytes.
//!
//! The subject reads a queue from its begin to its end in answers of 1 MiB, every checksum verified. The control
//! computes the CRC32C of as many bytes of memory, in pieces of one record, and copies those below 2 KiB.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::hint::black_box;
use std::sync::Arc;

use mainstem::format::batch::TagFilter;
use mainstem::format::crc32c;
use mainstem::message::{FlushMode, QueueId, QueueOffset};
use mainstem::store::{ReadOutcome, ReadRequest};
use mainstem::testing::now;
use measure::rig::{Drive, Prepared, Rig, append_patiently, config};
use measure::{Bench, Case, Slice};

/// As the store does.
const COPY_BELOW: usize = 2 << 10;

fn main() {
    let mut bench = Bench::start("pull");
    for (size, messages, body_len) in
        [("1KiB", 1, 1 << 10), ("1KiB×100", 100, 1 << 10), ("16KiB", 1, 16 << 10)]
    {
        let name = format!("pull/{size}/hot");
        if bench.wants(&name) {
            measure_size(&mut bench, name, messages, body_len);
        }
    }
    bench.finish();
}

fn measure_size(bench: &mut Bench, name: String, messages: usize, body_len: usize) {
    let dir = bench.fresh_dir(&name);
    let config = config(&dir.join("store"), bench.pick(256 << 20, 16 << 20));
    let mut rig = Rig::open(config, Drive::Stepped, FlushMode::Async);
    let batch = Prepared::new(messages, body_len, None);
    let records = bench.pick(32 << 20, 2 << 20) / batch.record_len();
    for _ in 0..records {
        append_patiently(&rig.store, rig.record(0, &batch));
    }
    rig.rest();
    let (work, bytes) = ((records * messages as u64) as f64, records * batch.record_len());
    let mut subject = || Slice::of(work, bytes, || assert_eq!(read_all(&rig), work as u64));
    let record = batch.bytes.len();
    let memory: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
    let mut control = || {
        Slice::of(work, bytes, || {
            for piece in memory.chunks(record) {
                if piece.len() < COPY_BELOW {
                    black_box(piece.to_vec());
                }
                black_box(crc32c(piece));
            }
        })
    };
    let control_name = "CRC32C of the same bytes, small records copied";
    let case = Case { name, control: control_name, unit: "message", reach: None };
    bench.compare(&case, &mut subject, &mut control);
    drop(rig);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// Reads the queue to its end and counts the messages.
fn read_all(rig: &Rig) -> u64 {
    let filter = Arc::new(TagFilter::All);
    let (mut messages, mut from) = (0, QueueOffset::ZERO);
    loop {
        let request = ReadRequest {
            topic: Arc::clone(&rig.topic),
            queue: QueueId::ZERO,
            from,
            max_messages: usize::MAX,
            max_bytes: 1 << 20,
            filter: Arc::clone(&filter),
        };
        match now(rig.store.read(request)).expect("hot reads are answered at once") {
            Ok(ReadOutcome::Records { records, next, .. }) => {
                messages += records.iter().map(|r| u64::from(r.message_count)).sum::<u64>();
                black_box(&records);
                from = next;
            }
            Ok(ReadOutcome::Empty { .. }) => return messages,
            other => panic!("{other:?}"),
        }
    }
}
