//! What retention costs: where a queue begins, and the deletion of many segments.
//!
//! | row | says |
//! | --- | --- |
//! | `retention/1M/bounds/hot` | the first and last offset of a queue among a million, all of them in memory |
//! | `retention/1M/bounds/sealed` | the same from files of sealed segments, cached by the kernel; each queue once |
//! | `retention/1M/bounds/again` | the same of a thousand queues, again and again |
//! | `retention/delete/100` | from the deletion of a topic until its 100 segments are gone, the state image included |
//! | `retention/delete/read/alone`, `…/beside` | a read of a message in a sealed segment before that, and meanwhile |
//!
//! Messages are kept for a day, so that each question has to find the first message that is younger. Queues are asked
//! for in a scattered order. Segments that are deleted are of 64 MiB, with real blocks and few records.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mainstem::format::batch::TagFilter;
use mainstem::message::{FlushMode, QueueId, QueueOffset, Retention, TopicSettings, TopicType};
use mainstem::store::{Progress, ReadOutcome, ReadRequest, Store, TopicHandle, Workers};
use mainstem::testing::now;
use measure::rig::{Drive, Prepared, Rig, append_patiently, config};
use measure::{Bench, latencies};
use serde_json::json;

/// Segments that are deleted.
const DEAD: u64 = 100;
const DAY_MS: u64 = 24 * 3600 * 1000;

fn main() {
    let mut bench = Bench::start("retention");
    for place in ["hot", "sealed"] {
        let name = format!("retention/1M/bounds/{place}");
        if bench.wants(&name) {
            measure_bounds(&mut bench, &name, place);
        }
    }
    if bench.wants("retention/delete/100") {
        measure_deletion(&mut bench);
    }
    bench.finish();
}

fn measure_bounds(bench: &mut Bench, name: &str, place: &str) {
    let dir = bench.fresh_dir(name);
    let is_hot = place == "hot";
    let segment =
        if is_hot { bench.pick(1 << 30, 64 << 20) } else { bench.pick(64 << 20, 4 << 20) };
    let mut config = config(&dir.join("store"), segment);
    config.flush = FlushMode::Async;
    if is_hot {
        config.unsealed_memory = 1 << 30;
    }
    let (topics, queues) = bench.pick((1_000, 1_000), (20, 1_000));
    let mut rig = Rig::open(config, Drive::Stepped, FlushMode::Async);
    let retention = Retention { time_ms: Some(DAY_MS), bytes: None };
    let settings = TopicSettings::open(queues, FlushMode::Async, TopicType::Mixed);
    let topics = rig.fill_queues(topics, TopicSettings { retention, ..settings });
    if !is_hot {
        // Behind them: what is active holds none of them.
        fill_segments(&mut rig, 2);
        rig.workers.as_mut().expect("the store is stepped").settle();
    }
    let status = rig.store.status();
    let text = format!("{} segments, {} unsealed", status.segments, status.unsealed);
    bench.note(name, &text, json!({ "segments": status.segments, "unsealed": status.unsealed }));

    let count = topics.len() * queues as usize;
    let ask = |number: usize| {
        let topic = topics.get(number % topics.len()).expect("there are topics");
        let queue = QueueId::new((number / topics.len()) as u32 % queues);
        let range = now(rig.store.queue_bounds(topic, queue)).expect("a stepped store answers");
        let range = range.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((range.min.get(), range.max.get()), (0, 1), "queue {number}");
    };
    // By a prime: each queue once, neighbours not one after the other.
    let calls = bench.pick(200_000, 2_000);
    bench.latencies(name, &latencies(calls, |call| ask(call * 7_919 % count)));
    if !is_hot {
        let again = latencies(calls, |call| ask(call % 1_000));
        bench.latencies("retention/1M/bounds/again", &again);
    }
    drop(rig);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// Appends until so many segments more are finished.
fn fill_segments(rig: &mut Rig, count: u64) {
    let batch = Prepared::new(1, 100, None);
    let segment = rig.config.segment_size;
    let until = (rig.store.watermarks().appended.get() / segment + count) * segment;
    let mut number = 0;
    while rig.store.watermarks().appended.get() < until {
        append_patiently(&rig.store, rig.record(number % 4, &batch));
        number += 1;
        if number % 100 == 0 {
            rig.rest();
        }
    }
    rig.rest();
}

fn measure_deletion(bench: &mut Bench) {
    let dir = bench.fresh_dir("delete");
    let mut config = config(&dir.join("store"), bench.pick(64 << 20, 1 << 20));
    config.flush = FlushMode::Async;
    // Few records, so that the bench is done soon.
    config.unsealed_memory = 64 << 10;
    // All is read from the disk.
    config.hot_bytes = 0;
    let mut rig = Rig::open(config, Drive::Stepped, FlushMode::Async);
    fill_segments(&mut rig, DEAD);
    let queues = 1_000;
    let settings = TopicSettings::open(queues, FlushMode::Async, TopicType::Mixed);
    let live = rig.fill_queues(1, settings).pop().expect("the topic is made");
    rig.workers.as_mut().expect("the store is stepped").settle();

    let store = rig.store.clone();
    let mut readers = [Reader::new(&live), Reader::new(&live)];
    let [alone, beside] = &mut readers;
    let window = Duration::from_millis(bench.pick(500, 20));
    let start = Instant::now();
    alone.read_while(&store, || start.elapsed() < window);
    rig.delete_topic();
    let (took, free) = delete(&mut rig, &store, beside);
    let status = store.status();
    let text = format!(
        "{} segments in {:.1} ms, {:.0} MB given back",
        status.deleted_segments,
        took.as_secs_f64() * 1e3,
        free as f64 / 1e6
    );
    let facts = json!({
        "segments": status.deleted_segments, "seconds": took.as_secs_f64(), "bytes": status.deleted_bytes,
    });
    bench.note("retention/delete/100", &text, facts);
    for (name, reader) in ["alone", "beside"].into_iter().zip(&readers) {
        bench.latencies(&format!("retention/delete/read/{name}"), &reader.reads);
    }
    drop(rig);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// Steps the workers until the segments of the deleted topic are gone, while `reader` reads.
fn delete(rig: &mut Rig, store: &Store, reader: &mut Reader) -> (Duration, u64) {
    let before = store.status();
    let Workers { dispatch, flush, clean, .. } =
        rig.workers.as_mut().expect("the store is stepped");
    let done = AtomicBool::new(false);
    let is_done = || done.load(Ordering::Acquire);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done() {
                pause(dispatch.step());
            }
        });
        scope.spawn(|| {
            while !is_done() {
                pause(flush.step());
            }
        });
        let cleaned = scope.spawn(|| {
            let start = Instant::now();
            store.clean_soon();
            while store.status().deleted_segments < before.deleted_segments + DEAD {
                pause(clean.step());
            }
            let took = start.elapsed();
            done.store(true, Ordering::Release);
            took
        });
        reader.read_while(store, || !is_done());
        let took = cleaned.join().expect("the segments are deleted");
        (took, store.status().deleted_bytes - before.deleted_bytes)
    })
}

/// Sleeps as a worker's thread would that nobody wakes, but not for long.
fn pause(progress: Progress) {
    if let Progress::Idle(limit) = progress {
        std::thread::sleep(limit.min(Duration::from_millis(10)));
    }
}

/// Reads one queue's first message after the other, in a scattered order.
struct Reader {
    topic: Arc<TopicHandle>,
    reads: Histogram<u64>,
    filter: Arc<TagFilter>,
    next: u32,
}

impl Reader {
    fn new(topic: &Arc<TopicHandle>) -> Self {
        let minute = 60_000_000_000;
        Self {
            topic: Arc::clone(topic),
            reads: Histogram::new_with_max(minute, 3).expect("the bounds are legal"),
            filter: Arc::new(TagFilter::All),
            next: 0,
        }
    }

    fn read_while(&mut self, store: &Store, goes_on: impl Fn() -> bool) {
        while goes_on() {
            self.next += 7_919;
            let request = ReadRequest {
                topic: Arc::clone(&self.topic),
                queue: QueueId::new(self.next % self.topic.queues()),
                from: QueueOffset::ZERO,
                max_messages: 1,
                max_bytes: 1 << 20,
                filter: Arc::clone(&self.filter),
            };
            let start = Instant::now();
            let outcome = now(store.read(request)).expect("a stepped store answers at once");
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.reads.saturating_record(nanos);
            match black_box(outcome) {
                Ok(ReadOutcome::Records { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
