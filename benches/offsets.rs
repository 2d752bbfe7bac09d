//! Commits of offsets against plain appends of records of the same bytes.
//!
//! The subject is `Broker::commit_offsets` as a request calls it: names looked up, offsets checked against their
//! queues, decided, appended, applied, and acknowledged by the topic's flush mode. The control appends the state
//! record that such a commit appends, to the same store, with as many at once, and waits for the same. So the ratio is
//! what the broker costs over its log. The rate counts commits.
//!
//! At the end: memory of groups and of committed offsets, as the process sees it (anonymous resident memory before and
//! after making them, without the log that made them), and how much more it is at most while a snapshot of them is
//! taken and written. No segment is finished before that, or a snapshot under way would count as theirs.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mainstem::broker::{Broker, BrokerConfig, Caller, CommitOffset, Expected, SendRequest};
use mainstem::clock::SystemClock;
use mainstem::file::disk::RealDisk;
use mainstem::format::state_record::Transition;
use mainstem::message::{
    FlushMode, GroupId, GroupSettings, QueueId, QueueOffset, TopicId, TopicSettings, TopicType,
};
use mainstem::store::{AppendError, NewRecord};
use measure::rig::{Drive, Prepared, Rig, config};
use measure::{Bench, Case, Slice, process_cpu, say};
use tokio::runtime::Runtime;

const GROUP: &str = "bench";
const TOPIC: &str = "bench";
const QUEUES: u32 = 64;
/// Messages of a queue: as many offsets can be committed.
const MESSAGES: u64 = 1_000;

fn main() {
    let mut bench = Bench::start("offsets");
    for (flush, mode) in [(FlushMode::Async, "async"), (FlushMode::Sync, "sync")] {
        for queues in [1, QUEUES] {
            for callers in [1, 64] {
                let name = format!("commit/{queues}queues/{mode}/{callers}");
                if bench.wants(&name) {
                    measure_commits(&mut bench, &name, flush, queues, callers);
                }
            }
        }
    }
    if bench.wants("memory") {
        measure_memory(&mut bench);
    }
    bench.finish();
}

fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_time().build().expect("a runtime starts")
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(60)
}

fn measure_commits(bench: &mut Bench, name: &str, flush: FlushMode, queues: u32, callers: u32) {
    let dir = bench.fresh_dir(name);
    let segment = bench.pick(256 << 20, 32 << 20);
    let runtime = runtime();
    let mut store = config(&dir.join("broker"), segment);
    store.flush = flush;
    let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
    let opened = Broker::open(disk, clock, store, BrokerConfig::default());
    let (broker, _) = opened.expect("the broker opens");
    runtime.block_on(prepare(&broker, flush, callers));
    let rig = Arc::new(Rig::open(config(&dir.join("log"), segment), Drive::Threads, flush));

    let time = bench.pick(Duration::from_millis(150), Duration::from_millis(30));
    let len = record(0, queues, 0).len();
    let run = |call: Call| {
        let (cpu, start) = (process_cpu(), Instant::now());
        let (end, done) = (start + time, Arc::new(AtomicU64::new(0)));
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let (done, call) = (Arc::clone(&done), call.clone());
                runtime.spawn(async move {
                    let mut round = 0;
                    while Instant::now() < end {
                        round += 1;
                        call.run(caller, queues, round % (MESSAGES + 1)).await;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for task in tasks {
            runtime.block_on(task).expect("no caller panics");
        }
        let work = done.load(Ordering::Relaxed);
        Slice {
            wall: start.elapsed(),
            cpu: process_cpu().saturating_sub(cpu),
            work: work as f64,
            bytes: work * len as u64,
        }
    };
    let control = "appends of the same state records, acknowledged in the same way";
    let case = Case { name: name.to_owned(), control, unit: "commit", reach: None };
    let (commit, append) = (Call::Commit(Arc::clone(&broker)), Call::Append(Arc::clone(&rig)));
    bench.compare(&case, &mut || run(commit.clone()), &mut || run(append.clone()));
    broker.close().expect("the broker closes");
    // Ends the threads of the other store, which would go on making files.
    drop((append, rig));
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// A topic with messages, and a group for each caller.
async fn prepare(broker: &Broker, flush: FlushMode, callers: u32) {
    let settings = TopicSettings::open(QUEUES, flush, TopicType::Mixed);
    broker.create_topic(TOPIC, settings, soon()).await.expect("the topic is made");
    let messages = usize::try_from(MESSAGES).unwrap_or(usize::MAX);
    for queue in 0..QUEUES {
        let batch = Prepared::new(messages, 1, None).bytes;
        let queue = Some(QueueId::new(queue));
        let request = SendRequest { topic: TOPIC, queue, batch, session: None, deadline: soon() };
        broker.send(request).await.expect("the messages are stored");
    }
    for caller in 0..callers {
        let settings = GroupSettings::default();
        let name = format!("{GROUP}-{caller}");
        broker.create_group(&name, &settings, soon()).await.expect("the group is made");
    }
}

/// What a caller does again and again.
#[derive(Clone)]
enum Call {
    Commit(Arc<Broker>),
    Append(Arc<Rig>),
}

impl Call {
    async fn run(&self, caller: u32, queues: u32, offset: u64) {
        match self {
            Self::Commit(broker) => {
                let group = format!("{GROUP}-{caller}");
                let offsets: Vec<_> = (0..queues)
                    .map(|queue| CommitOffset {
                        topic: TOPIC,
                        queue: QueueId::new(queue),
                        offset: QueueOffset::new(offset),
                        expected: Expected::Any,
                        known_queues: None,
                    })
                    .collect();
                broker
                    .commit_offsets(&group, &offsets, Caller::default(), soon())
                    .await
                    .expect("it is committed");
            }
            Self::Append(rig) => {
                let payload = record(caller, queues, offset);
                let placed = loop {
                    match rig.store.append_one(NewRecord::state(payload.clone())) {
                        Ok(placed) => break placed,
                        Err(AppendError::NotReady) => {
                            rig.store.space().await.expect("there will be space");
                        }
                        Err(error) => panic!("{error}"),
                    }
                };
                let acknowledged = rig.store.acknowledged(&rig.topic, placed.end);
                acknowledged.await.expect("it is acknowledged");
            }
        }
    }
}

/// The state record of a commit.
fn record(caller: u32, queues: u32, offset: u64) -> Vec<u8> {
    let offset = |queue| (QueueId::new(queue), QueueOffset::new(offset));
    let transition = Transition::OffsetsCommitted {
        group: GroupId::new(u64::from(caller) + 1),
        topic: TopicId::new(1),
        bound: QUEUES,
        offsets: (0..queues).map(offset).collect(),
        note: None,
        revoked: None,
    };
    let mut payload = Vec::new();
    transition.encode_into(&mut payload);
    payload
}

/// Makes groups, then lets each commit one queue, then the other queues too.
fn measure_memory(bench: &mut Bench) {
    let groups: u32 = bench.pick(200_000, 5_000);
    let dir = bench.fresh_dir("memory");
    let runtime = runtime();
    let mut store = config(&dir.join("broker"), 1 << 30);
    store.flush = FlushMode::Async;
    let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
    let opened = Broker::open(disk, clock, store, BrokerConfig::default());
    let (broker, _) = opened.expect("the broker opens");
    runtime.block_on(async {
        let settings = TopicSettings::open(QUEUES, FlushMode::Async, TopicType::Mixed);
        broker.create_topic(TOPIC, settings, soon()).await.expect("the topic is made");
    });
    let commit = |queues: u32| {
        for group in 0..groups {
            let offsets: Vec<_> = (0..queues)
                .map(|queue| CommitOffset {
                    topic: TOPIC,
                    queue: QueueId::new(queue),
                    offset: QueueOffset::ZERO,
                    expected: Expected::Any,
                    known_queues: None,
                })
                .collect();
            let name = name(group);
            let commit = broker.commit_offsets(&name, &offsets, Caller::default(), soon());
            runtime.block_on(commit).expect("it is committed");
        }
    };
    let empty = anonymous();
    for group in 0..groups {
        let (name, settings) = (name(group), GroupSettings::default());
        let made = broker.create_group(&name, &settings, soon());
        runtime.block_on(made).expect("the group is made");
    }
    let made = anonymous();
    commit(1);
    let one = anonymous();
    commit(QUEUES);
    let all = anonymous();
    let each = |more: u64, count: u64| more as f64 / count as f64;
    let groups = u64::from(groups);
    let group = each(made.saturating_sub(empty), groups);
    let unit = each(one.saturating_sub(made), groups);
    let row = each(all.saturating_sub(one), groups * u64::from(QUEUES - 1));
    let (_, committed, told) = broker.group_counts();
    let segments = broker.status().store.segments;
    assert_eq!(segments, 1, "a snapshot was taken on the way");
    let peak = peak_during(|| broker.close().expect("the broker closes"));
    let snapshot = peak.saturating_sub(all);
    let facts = serde_json::json!({
        "groups": groups, "group_bytes": group, "unit_bytes": unit, "offset_bytes": row,
        "committed": committed, "snapshot_bytes": snapshot,
    });
    let text = format!(
        "{group:.0} B a group with a name of 12 bytes, {unit:.0} B its first committed offset of \
         a topic, {row:.1} B each further one"
    );
    bench.note("memory", &text, facts);
    say(&format!("{:<34} {committed} committed, the broker says {told} B", "memory"));
    let file = largest_file(&dir.join("broker/state"));
    say(&format!("{:<34} a snapshot of {file} B: at most {snapshot} B more", "memory"));
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// The most anonymous memory while `work` runs, as far as a look every millisecond sees it.
fn peak_during(work: impl FnOnce()) -> u64 {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = anonymous();
            while !ended.load(Ordering::Relaxed) {
                peak = anonymous().max(peak);
                std::thread::sleep(Duration::from_millis(1));
            }
            peak
        });
        work();
        ended.store(true, Ordering::Relaxed);
        watcher.join().expect("the watcher does not panic")
    })
}

fn largest_file(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).max().unwrap_or_default()
}

fn name(group: u32) -> String {
    format!("group-{group:06}")
}

/// Anonymous resident memory of this process, in bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}
