//! Messages by key among a million keys: hits and misses, in memory and in sealed files.
//!
//! One record of 100 bytes per key, keys asked for in a scattered order. `hot`: all entries are in memory. `sealed`:
//! they are in the files of finished segments, cached by the kernel, and a query crosses all of them. The control looks
//! the key up in a `HashMap` and reads the record by `pread` with its CRC32C; for a miss the look-up is all.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::cell::Cell;
use std::collections::HashMap;
use std::hint::black_box;

use bytes::Bytes;
use mainstem::file::segment::Prefill;
use mainstem::format::crc32c;
use mainstem::message::{FlushMode, Timestamp};
use mainstem::store::{FindRequest, IndexKind, Order};
use mainstem::testing::now;
use measure::rig::{Drive, PlainFile, Prepared, Rig, append_patiently, config, key};
use measure::{Bench, Case, Slice, latencies};

fn main() {
    let mut bench = Bench::start("query");
    let keys = bench.pick(1_000_000, 20_000);
    for (place, segment) in [("hot", 1 << 30), ("sealed", bench.pick(64 << 20, 1 << 20))] {
        let names = ["hit", "miss"].map(|what| format!("query/1M/{what}/{place}"));
        if names.iter().any(|name| bench.wants(name)) {
            measure_place(&mut bench, place, segment, keys, &names);
        }
    }
    bench.finish();
}

fn measure_place(bench: &mut Bench, place: &str, segment: u64, keys: u64, names: &[String; 2]) {
    let dir = bench.fresh_dir(place);
    let mut config = config(&dir.join("store"), segment);
    config.unsealed_memory = 1 << 30;
    config.hot_bytes = 1 << 30;
    let mut rig = Rig::open(config, Drive::Stepped, FlushMode::Async);
    let mut places = HashMap::new();
    for number in 0..keys {
        let batch = Prepared::new(1, 100, Some(number));
        let (placed, _) = append_patiently(&rig.store, rig.record((number % 4) as u32, &batch));
        places.insert(key(number), (placed.offset.get(), batch.record_len()));
        if number % 1_000 == 0 {
            rig.rest();
        }
    }
    rig.rest();
    if place == "sealed" {
        let workers = rig.workers.as_mut();
        workers.expect("the store is stepped").settle();
    }
    let status = rig.store.status();
    let text = format!("{keys} keys, {} segments, {} unsealed", status.segments, status.unsealed);
    bench.note(&format!("query/1M/{place}"), &text, serde_json::json!({ "keys": keys }));
    // Of the sealed ones: the last segment is not.
    let asked = if place == "sealed" { keys - keys / 8 } else { keys };
    let file = PlainFile::new(&dir, bench.pick(512 << 20, 32 << 20), Prefill::Zeros);
    for (what, name) in ["hit", "miss"].into_iter().zip(names) {
        if !bench.wants(name) {
            continue;
        }
        let ask = |number: u64| ask(&rig, what, number % asked);
        measure_queries(bench, name, &ask, &|number| control(&places, &file, what, number % asked));
    }
    drop(rig);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

fn measure_queries(bench: &mut Bench, name: &str, ask: &dyn Fn(u64), control: &dyn Fn(u64)) {
    let queries = bench.pick(5_000_u64, 200);
    let next = Cell::new(0_u64);
    // Steps by a prime, so that neighbours in the log are not asked for one after the other.
    let scattered = || next.replace(next.get() + 7_919 * 13);
    let slice = |run: &dyn Fn(u64)| {
        Slice::of(queries as f64, 0, || (0..queries).for_each(|_| run(scattered())))
    };
    let what = "HashMap, then pread + CRC32C of the record if there is one";
    let case = Case { name: name.to_owned(), control: what, unit: "query", reach: None };
    bench.compare(&case, &mut || slice(ask), &mut || slice(control));
    let calls = bench.pick(50_000, 500);
    let histogram = latencies(calls, |_| ask(scattered()));
    bench.latencies(&format!("{name}/call"), &histogram);
}

fn ask(rig: &Rig, what: &str, number: u64) {
    let key = if what == "hit" { key(number) } else { format!("absent-{number:010}") };
    let request = FindRequest {
        topic: std::sync::Arc::clone(&rig.topic),
        kind: IndexKind::Key,
        bytes: Bytes::from(key),
        begin: Timestamp::ZERO,
        end: Timestamp::new(u64::MAX),
        order: Order::NewestFirst,
        limit: 10,
        after: None,
    };
    let answer = now(rig.store.find(request)).expect("a stepped store answers at once");
    let found = answer.unwrap_or_else(|error| panic!("{error}"));
    assert!(found.complete, "no file is missing");
    assert_eq!(found.messages.len(), usize::from(what == "hit"), "number {number}");
}

fn control(places: &HashMap<String, (u64, u64)>, file: &PlainFile, what: &str, number: u64) {
    let key = if what == "hit" { key(number) } else { format!("absent-{number:010}") };
    if let Some((at, len)) = places.get(&key) {
        let mut record = vec![0; usize::try_from(*len).unwrap_or(usize::MAX)];
        file.read(&mut record, *at);
        black_box(crc32c(&record));
    }
}
