//! A state image of a store with a million queues: how large it is, how long it takes, and whom it disturbs.
//!
//! | row | says |
//! | --- | --- |
//! | `image/1M/bytes` | its bytes, for each queue, and as a share of what is written between two images |
//! | `image/1M/take` | from its begin until it is durable, median |
//! | `image/1M/append/alone`, `…/beside` | the time of an append before an image was begun, and while one was taken |
//!
//! The bench steps the store's workers on threads of its own, so that an image is begun when it says so; an image is
//! due once eight segments are sealed behind the last. Appends are of 100 bytes, one every 10 µs, to queues in a
//! scattered order. What is alone and what is beside is measured in turns.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mainstem::message::{FlushMode, QueueId, TopicSettings, TopicType};
use mainstem::store::{NewRecord, Progress, Store, TopicHandle, Workers};
use measure::Bench;
use measure::rig::{Drive, Prepared, Rig, append_patiently, config};
use serde_json::json;

/// Finished segments between two images.
const IMAGE_SEGMENTS: u64 = 8;
/// Of the default configuration.
const DEFAULT_SEGMENT: u64 = 256 << 20;
/// Between two appends.
const PACE: Duration = Duration::from_micros(10);

fn main() {
    let mut bench = Bench::start("image");
    if bench.wants("image/1M") {
        measure_images(&mut bench);
    }
    bench.finish();
}

fn measure_images(bench: &mut Bench) {
    let dir = bench.fresh_dir("image");
    let segment = bench.pick(64 << 20, 4 << 20);
    let mut config = config(&dir.join("store"), segment);
    config.flush = FlushMode::Async;
    let (topics, queues) = bench.pick((1_000, 1_000), (20, 1_000));
    let mut rig = Rig::open(config, Drive::Stepped, FlushMode::Async);
    let settings = TopicSettings::open(queues, FlushMode::Async, TopicType::Mixed);
    let topics = rig.fill_queues(topics, settings);
    let memory = rig.store.status().entry_memory;

    let (mut alone, mut beside) = (Load::new(), Load::new());
    let (mut seconds, mut bytes) = (Vec::new(), 0);
    let window = Duration::from_millis(bench.pick(1_000, 20));
    for _ in 0..bench.pick(5, 1) {
        fill_until_due(&mut rig, segment);
        let (took, len) = take_image(&mut rig, &topics, window, &mut alone, &mut beside);
        seconds.push(took.as_secs_f64());
        bytes = len;
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    let count = topics.len() as u64 * u64::from(queues);
    let each = bytes as f64 / count as f64;
    let share = bytes as f64 / (IMAGE_SEGMENTS * DEFAULT_SEGMENT) as f64 * 100.0;
    let text = format!(
        "{bytes} bytes, {each:.1} for each of {count} queues, {share:.2} % of 8 segments of 256 MiB"
    );
    let facts = json!({ "bytes": bytes, "queues": count, "share_percent": share });
    bench.note("image/1M/bytes", &text, facts);
    let text = format!("{:.0} ms, {} images", median * 1e3, seconds.len());
    bench.note("image/1M/take", &text, json!({ "seconds": seconds }));
    let text = format!("{memory} bytes of positions and entries");
    bench.note("image/1M/memory", &text, json!({ "entry_memory": memory }));
    for (name, load) in [("alone", alone), ("beside", beside)] {
        let name = format!("image/1M/append/{name}");
        bench.latencies(&name, &load.appends);
        let text = format!("at most {} bytes appended and not dispatched", load.max_lag);
        bench.note(&name, &text, json!({ "max_lag_bytes": load.max_lag }));
    }
    drop(rig);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// Appends until an image is due, and seals what is finished; takes none.
fn fill_until_due(rig: &mut Rig, segment: u64) {
    let batch = Prepared::new(100, 1 << 10, None);
    let until = rig.store.watermarks().appended.get() + (IMAGE_SEGMENTS + 1) * segment;
    let mut number = 0;
    while rig.store.watermarks().appended.get() < until {
        append_patiently(&rig.store, rig.record(number % 4, &batch));
        number += 1;
        let workers = rig.workers.as_mut().expect("the store is stepped");
        seal_all(workers, number % 64 == 0);
    }
    seal_all(rig.workers.as_mut().expect("the store is stepped"), true);
}

/// Steps all workers but the one that takes images.
fn seal_all(workers: &mut Workers, flush: bool) {
    loop {
        if flush {
            workers.flush.flush_all();
        }
        let dispatched = workers.dispatch.step();
        let sealed = workers.seal.step();
        let allocated = workers.allocate.step();
        if [dispatched, sealed, allocated].iter().all(|step| *step != Progress::Worked) {
            return;
        }
    }
}

/// Appends for a while, then while an image is taken. Answers how long that took, and its bytes.
fn take_image(
    rig: &mut Rig,
    topics: &[Arc<TopicHandle>],
    window: Duration,
    alone: &mut Load,
    beside: &mut Load,
) -> (Duration, u64) {
    let store = rig.store.clone();
    let before = store.status();
    let Workers { dispatch, flush, allocate, clean, .. } =
        rig.workers.as_mut().expect("the store is stepped");
    let (begun, done, over) =
        (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    let is_set = |flag: &AtomicBool| flag.load(Ordering::Acquire);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_set(&over) {
                pause(dispatch.step());
            }
        });
        scope.spawn(|| {
            while !is_set(&over) {
                allocate.step();
                pause(flush.step());
            }
        });
        let taken = scope.spawn(|| {
            while !is_set(&begun) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let start = Instant::now();
            while store.status().images == before.images {
                pause(clean.step());
            }
            done.store(true, Ordering::Release);
            start.elapsed()
        });
        let start = Instant::now();
        alone.append_while(&store, topics, || start.elapsed() < window);
        begun.store(true, Ordering::Release);
        beside.append_while(&store, topics, || !is_set(&done));
        over.store(true, Ordering::Release);
        let took = taken.join().expect("the image is taken");
        (took, store.status().image_bytes - before.image_bytes)
    })
}

/// Sleeps as a worker's thread would that nobody wakes, but not for long.
fn pause(progress: Progress) {
    if let Progress::Idle(limit) = progress {
        std::thread::sleep(limit.min(Duration::from_millis(10)));
    }
}

/// What appends met.
struct Load {
    appends: Histogram<u64>,
    max_lag: u64,
    batch: Prepared,
    next: usize,
}

impl Load {
    fn new() -> Self {
        let minute = 60_000_000_000;
        let appends = Histogram::new_with_max(minute, 3).expect("the bounds are legal");
        Self { appends, max_lag: 0, batch: Prepared::new(1, 100, None), next: 0 }
    }

    fn append_while(
        &mut self,
        store: &Store,
        topics: &[Arc<TopicHandle>],
        goes_on: impl Fn() -> bool,
    ) {
        let mut due = Instant::now();
        while goes_on() {
            // By a prime, so that neighbours are not written one after the other.
            self.next += 7_919;
            let topic = topics.get(self.next % topics.len()).expect("there are topics");
            let queue = (self.next / topics.len()) as u32 % topic.queues();
            let (bytes, info) = (self.batch.bytes.clone(), &self.batch.info);
            let record = NewRecord::message(topic, QueueId::new(queue), bytes, info);
            let start = Instant::now();
            append_patiently(store, record);
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.appends.saturating_record(nanos);
            let marks = store.watermarks();
            let lag = marks.appended.get().saturating_sub(marks.dispatched.get());
            self.max_lag = self.max_lag.max(lag);
            due += PACE;
            // Behind by more than a moment: what was missed is not made up for.
            due = due.max(Instant::now() - PACE);
            while Instant::now() < due {
                std::hint::spin_loop();
            }
        }
    }
}
