//! Group commit against a loop of `pwrite` + CRC32C + `fdatasync` with the same group size.
//!
//! N tasks each append 1 KiB to a sync topic and wait until it is durable, again and again, on one runtime thread
//! beside the store's own threads. What a group comes to (messages by syncs) is measured first; the control then
//! writes and syncs groups of just that size on one thread. The rate counts syncs. `…/full` compares messages a second
//! with a loop of full groups of N: what the waiters would get if no sync ever started with a part of them. The
//! control's file is filled with zeros in all cases, the log's segments where groups are small (`store/allocate.rs`).
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mainstem::file::segment::Prefill;
use mainstem::message::FlushMode;
use measure::rig::{Drive, PlainFile, Prepared, QUEUES, Rig, config};
use measure::{Bench, Case, Slice, process_cpu};
use tokio::runtime::Runtime;

fn main() {
    let mut bench = Bench::start("flush");
    for waiters in [1, 10, 100, 1_000] {
        let name = format!("flush/1KiB/sync/{waiters}");
        if bench.wants(&name) {
            measure_waiters(&mut bench, &name, waiters);
        }
    }
    bench.finish();
}

fn measure_waiters(bench: &mut Bench, name: &str, waiters: u32) {
    let dir = bench.fresh_dir(name);
    let segment = bench.pick(256 << 20, 32 << 20);
    let config = config(&dir.join("store"), segment);
    let rig = Arc::new(Rig::open(config, Drive::Threads, FlushMode::Sync));
    let batch = Prepared::new(1, 1 << 10, None);
    let len = usize::try_from(batch.record_len()).unwrap_or(usize::MAX);
    let time = bench.pick(Duration::from_millis(150), Duration::from_millis(30));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_time().build().expect("a runtime starts");
    let run = || run_waiters(&runtime, &rig, &batch, waiters, time);

    let probe = run();
    let group = (probe.messages as f64 / probe.syncs as f64).round().max(1.0) as usize;
    let facts = serde_json::json!({ "messages_per_sync": group });
    bench.note(name, &format!("{group} messages a sync"), facts);

    let file = PlainFile::new(&dir, segment, Prefill::Zeros);
    let reach = (waiters >= 10).then_some(0.8);
    let control = "pwrite + CRC32C + fdatasync of groups of the same size, one thread";
    let case = Case { name: name.to_owned(), control, unit: "sync", reach };
    bench.compare(&case, &mut || run().slice(|ran| ran.syncs, len), &mut || {
        run_control(&file, group, len, time).slice(|ran| ran.syncs, len)
    });
    if group != waiters as usize {
        let (name, control) = (format!("{name}/full"), "the same loop with groups of all waiters");
        let case = Case { name, control, unit: "message", reach: None };
        bench.compare(&case, &mut || run().slice(|ran| ran.messages, len), &mut || {
            run_control(&file, waiters as usize, len, time).slice(|ran| ran.messages, len)
        });
    }
    let ran = run();
    bench.latencies(&format!("{name}/wait"), &ran.waits);
    drop(rig);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

struct Ran {
    wall: Duration,
    cpu: Duration,
    messages: u64,
    syncs: u64,
    waits: Histogram<u64>,
}

impl Ran {
    fn slice(&self, work: impl Fn(&Self) -> u64, len: usize) -> Slice {
        let bytes = self.messages * len as u64;
        Slice { wall: self.wall, cpu: self.cpu, work: work(self) as f64, bytes }
    }
}

fn run_waiters(
    runtime: &Runtime,
    rig: &Arc<Rig>,
    batch: &Prepared,
    waiters: u32,
    time: Duration,
) -> Ran {
    let syncs = rig.store.status().syncs;
    let (cpu, start) = (process_cpu(), Instant::now());
    let end = start + time;
    let messages = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..waiters)
        .map(|waiter| {
            let (rig, batch, messages) = (Arc::clone(rig), batch.clone(), Arc::clone(&messages));
            runtime.spawn(async move {
                let mut waits = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    match rig.store.append_one(rig.record(waiter % QUEUES, &batch)) {
                        Ok(placed) => rig.store.durable(placed.end).await.expect("it is durable"),
                        Err(mainstem::store::AppendError::NotReady) => {
                            rig.store.space().await.expect("there will be space");
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    }
                    messages.fetch_add(1, Ordering::Relaxed);
                    waits.push(begun.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits = Histogram::new_with_max(60_000_000_000, 3).expect("the bounds are legal");
    for task in tasks {
        for wait in runtime.block_on(task).expect("no waiter panics") {
            waits.saturating_record(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    Ran {
        wall: start.elapsed(),
        cpu: process_cpu().saturating_sub(cpu),
        messages: messages.load(Ordering::Relaxed),
        syncs: rig.store.status().syncs - syncs,
        waits,
    }
}

fn run_control(file: &PlainFile, group: usize, len: usize, time: Duration) -> Ran {
    let bytes = vec![0xA5; group * len];
    let waits = Histogram::new_with_max(60_000_000_000, 3).expect("the bounds are legal");
    let (cpu, start) = (process_cpu(), Instant::now());
    let mut syncs = 0;
    while start.elapsed() < time {
        file.rest(bytes.len() as u64);
        file.append(&bytes);
        file.sync();
        syncs += 1;
    }
    let messages = syncs * group as u64;
    Ran { wall: start.elapsed(), cpu: process_cpu().saturating_sub(cpu), messages, syncs, waits }
}
