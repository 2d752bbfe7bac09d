//! Interleavings of the store's threads, as many as the time allows, chosen at random by shuttle:
//! `cargo test --features shuttle --test interleave`.
//!
//! The whole store runs on the simulated disk, its workers stepped by threads of the test. A waiter that is never woken
//! is a deadlock, which shuttle reports with the schedule that leads to it. `SEED` sets the first schedule.

#![cfg(feature = "shuttle")]
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstem::broker::{Broker, BrokerConfig, BrokerError, PullRequest, SendRequest, TopicChanges};
use mainstem::file::Operation;
use mainstem::format::batch::{BatchBuilder, NewMeta, TagFilter, check};
use mainstem::format::state_record::Transition;
use mainstem::message::{
    FlushMode, Force, Keep, QueueId, QueueOffset, Retention, Timestamp, TopicId, TopicSettings,
    TopicType,
};
use mainstem::store::{
    AppendError, Arrival, NewRecord, Placed, ReadOutcome, ReadRequest, Store, StoreConfig,
    TopicHandle, Workers,
};
use mainstem::testing::{
    Alarm, CrashChoice, Fault, FaultRule, ManualClock, SimDisk, Times, TopicsOnly, now,
};
use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread::{self, JoinHandle};
use tokio::time::Instant;

/// Explores so many random schedules.
fn explore(schedules: usize, test: impl Fn() + Send + Sync + 'static) {
    run(RandomScheduler::new_from_seed(seed(), schedules), test);
}

/// Explores schedules in which a thread runs on and on and stops at three moments, the worst ones too: what random ones
/// hardly ever do. Not for tests whose threads look for work in turns, those starve.
fn explore_few_switches(schedules: usize, test: impl Fn() + Send + Sync + 'static) {
    run(PctScheduler::new_from_seed(seed(), 3, schedules), test);
}

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().map_or(1, |text| text.parse().unwrap());
    println!("SEED={seed}");
    seed
}

fn run(scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(1_000_000);
    config.silence_warnings = true;
    shuttle::Runner::new(scheduler, config).run(test);
}

struct Rig {
    store: Store,
    topic: Arc<TopicHandle>,
    disk: SimDisk,
    workers: Workers,
}

fn open_with_topics(disk: &SimDisk) -> (Arc<TopicsOnly>, (Store, Workers)) {
    let config = StoreConfig { segment_size: 16 << 10, ..StoreConfig::new("/data") };
    let applier = Arc::new(TopicsOnly::default());
    let clock = Arc::new(ManualClock::new(Timestamp::new(1_000)));
    let disk = Arc::new(disk.clone());
    (applier.clone(), Store::open_stepped(disk, clock, config, applier).unwrap())
}

fn open_on(disk: &SimDisk) -> (Store, Workers) {
    open_with_topics(disk).1
}

fn open(flush: FlushMode) -> Rig {
    let disk = SimDisk::new();
    let (applier, (store, mut workers)) = open_with_topics(&disk);
    let mut payload = Vec::new();
    let (id, name) = (TopicId::new(1), "t".to_owned());
    let settings = TopicSettings::open(1, flush, TopicType::Mixed);
    Transition::TopicCreated { id, name, settings }.encode_into(&mut payload);
    let placed = store.append_one(NewRecord::state(payload.clone())).unwrap();
    applier.applied(store.topics(), &payload, placed.end).unwrap();
    workers.settle();
    let topic = store.topics().get(id).unwrap();
    Rig { store, topic, disk, workers }
}

fn batch(n: usize, len: usize) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(&NewMeta::default(), format!("{n:0len$}").as_bytes());
    builder.finish()
}

fn record(topic: &Arc<TopicHandle>, n: usize, len: usize) -> NewRecord {
    let batch = batch(n, len);
    let info = check(&batch).unwrap();
    NewRecord::message(topic, QueueId::ZERO, batch, &info)
}

/// Appends, and waits for room as often as there is none.
fn append(store: &Store, topic: &Arc<TopicHandle>, set: &[usize], len: usize) -> Vec<Placed> {
    loop {
        match store.append(set.iter().map(|n| record(topic, *n, len)).collect()) {
            Ok(placed) => return placed,
            Err(AppendError::NotReady) => block_on(store.space()).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn read(store: &Store, topic: &Arc<TopicHandle>, from: u64) -> ReadOutcome {
    let request = ReadRequest {
        topic: Arc::clone(topic),
        queue: QueueId::ZERO,
        from: QueueOffset::new(from),
        max_messages: 100,
        max_bytes: 1 << 20,
        filter: Arc::new(TagFilter::All),
    };
    now(store.read(request)).unwrap().unwrap()
}

/// Steps a worker until all is appended, dispatched and flushed. Who still sleeps then sleeps for ever.
fn work(
    store: &Store,
    sent: &Arc<AtomicUsize>,
    total: usize,
    mut step: impl FnMut() + Send + 'static,
) -> JoinHandle<()> {
    let (store, sent) = (store.clone(), sent.clone());
    thread::spawn(move || {
        loop {
            let is_last = sent.load(Ordering::SeqCst) == total;
            step();
            let marks = store.watermarks();
            if is_last && marks.flushed == marks.appended && marks.dispatched == marks.appended {
                return;
            }
            thread::yield_now();
        }
    })
}

/// Two senders, a reader that follows, and every worker on a thread of its own: the reader gets each record once, at
/// its offset, and is never left asleep; whoever waits for durability or for room is told.
fn send_and_follow(flush: FlushMode, len: usize) {
    const SENDERS: usize = 2;
    const EACH: usize = 3;
    let total = SENDERS * (EACH + EACH / 2);
    let Rig { store, topic, disk, workers } = open(flush);
    let Workers { mut dispatch, flush: mut flusher, mut seal, mut allocate, .. } = workers;
    let sent = Arc::new(AtomicUsize::new(0));

    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (store, topic, sent) = (store.clone(), topic.clone(), sent.clone());
            thread::spawn(move || {
                let mut all = Vec::new();
                for n in 0..EACH {
                    let first = (sender * EACH + n) * 2;
                    let set = if n % 2 == 0 { vec![first] } else { vec![first, first + 1] };
                    let placed = append(&store, &topic, &set, len);
                    sent.fetch_add(set.len(), Ordering::SeqCst);
                    let end = placed.last().unwrap().end;
                    block_on(store.acknowledged(&topic, end)).unwrap();
                    assert!(flush == FlushMode::Async || store.watermarks().flushed >= end);
                    block_on(store.caught_up(&topic));
                    assert!(store.watermarks().dispatched >= end);
                    all.extend(set.into_iter().zip(placed));
                }
                all
            })
        })
        .collect();
    let reader = {
        let (store, topic) = (store.clone(), topic.clone());
        thread::spawn(move || {
            let mut found = Vec::new();
            while found.len() < total {
                let from = found.len() as u64;
                match read(&store, &topic, from) {
                    ReadOutcome::Records { records, next, range } => {
                        assert!(next <= range.max);
                        found.extend(records);
                    }
                    ReadOutcome::Empty { .. } => {
                        let arrival = store.arrival(&topic, QueueId::ZERO, QueueOffset::new(from));
                        assert_eq!(block_on(arrival), Arrival::Readable);
                    }
                    other => panic!("{other:?}"),
                }
            }
            found
        })
    };
    let workers = [
        work(&store, &sent, total, move || {
            dispatch.step();
        }),
        work(&store, &sent, total, move || flusher.flush_all()),
        work(&store, &sent, total, move || {
            allocate.step();
        }),
        work(&store, &sent, total, move || {
            seal.step();
        }),
    ];
    let mut placed: Vec<_> =
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
    let found = reader.join().unwrap();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    placed.sort_by_key(|(_, placed)| placed.offset);
    assert_eq!(found.len(), total);
    for (index, (found, (n, placed))) in found.iter().zip(placed).enumerate() {
        assert_eq!(found.first_queue_offset.get(), index as u64, "offsets are dense");
        assert_eq!((found.offset, found.first_queue_offset), (placed.offset, placed.queue_offset));
        assert_eq!(found.batch, batch(n, len));
    }
    assert_eq!(disk.rewritten_under_readers(), 0, "what was published never changes");

    // What the process saw is what the files hold.
    drop(store);
    let again = disk.crash_image(&CrashChoice::EVERYTHING);
    let (store, _workers) = open_on(&again);
    let topic = store.topics().get(TopicId::new(1)).unwrap();
    match read(&store, &topic, 0) {
        ReadOutcome::Records { records, .. } => {
            assert!(records.iter().map(|r| r.offset).eq(found.iter().map(|r| r.offset)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_that_follows_two_senders_of_a_sync_topic_gets_every_record_and_sleeps_through_none() {
    explore(4_000, || send_and_follow(FlushMode::Sync, 100));
}

#[test]
fn a_reader_that_follows_two_senders_of_an_async_topic_gets_every_record_and_sleeps_through_none() {
    explore(4_000, || send_and_follow(FlushMode::Async, 100));
}

#[test]
fn senders_that_roll_segments_meet_the_allocating_worker_and_lose_nothing() {
    explore(4_000, || send_and_follow(FlushMode::Async, 1_700));
}

/// The record passes the dispatcher and the flush while the reader is about to sleep.
#[test]
fn a_reader_that_parks_while_a_record_is_on_its_way_is_woken() {
    for flush in [FlushMode::Sync, FlushMode::Async] {
        explore_few_switches(4_000, move || {
            let Rig { store, topic, workers, .. } = open(flush);
            let Workers { mut dispatch, flush: mut flusher, .. } = workers;
            append(&store, &topic, &[0], 100);
            let reader = {
                let (store, topic) = (store.clone(), topic.clone());
                thread::spawn(move || {
                    block_on(store.arrival(&topic, QueueId::ZERO, QueueOffset::ZERO))
                })
            };
            let steps = [
                thread::spawn(move || {
                    dispatch.step();
                }),
                thread::spawn(move || flusher.flush_all()),
            ];
            steps.into_iter().for_each(|step| step.join().unwrap());
            assert_eq!(reader.join().unwrap(), Arrival::Readable);
        });
    }
}

/// Work is handed over by a counter, the sleeper is woken by the signal alone.
#[test]
fn a_sleeper_never_misses_work() {
    explore_few_switches(20_000, || {
        let (alarm, work) = (Arc::new(Alarm::default()), Arc::new(AtomicUsize::new(0)));
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (alarm, work) = (alarm.clone(), work.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        work.fetch_add(1, Ordering::SeqCst);
                        alarm.wake();
                    }
                })
            })
            .collect();
        let mut done = 0;
        while done < 4 {
            let all = work.load(Ordering::SeqCst);
            if all == done {
                alarm.sleep();
            }
            done = all;
        }
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
    });
}

/// The snapshot counted entries of the step under way and took its name from the step before: after the power cut the
/// queue went on behind messages that were never durable.
#[test]
fn a_snapshot_beside_a_step_of_the_dispatcher_contains_nothing_that_a_power_cut_takes() {
    explore_few_switches(4_000, || {
        let Rig { store, topic, disk, workers } = open(FlushMode::Async);
        let Workers { mut dispatch, flush: mut flusher, mut seal, mut allocate, .. } = workers;
        // A segment that can be sealed, of which all is durable; behind it no message yet that says where the queue is.
        let mut sent = 0;
        while store.watermarks().appended.get() < 13 << 10 {
            store.append_one(record(&topic, sent, 1_700)).unwrap();
            sent += 1;
        }
        let mut payload = Vec::new();
        for _ in 0..190 {
            Transition::NextTopicId { next: TopicId::new(2) }.encode_into(&mut payload);
        }
        store.append_one(NewRecord::state(payload)).unwrap();
        assert!(store.watermarks().appended.get() > 16 << 10);
        allocate.step();
        dispatch.step();
        flusher.flush_all();
        for n in sent..sent + 2 {
            store.append_one(record(&topic, n, 100)).unwrap();
        }
        let steps = [
            thread::spawn(move || {
                dispatch.step();
            }),
            thread::spawn(move || {
                for _ in 0..3 {
                    seal.step();
                }
            }),
        ];
        steps.into_iter().for_each(|step| step.join().unwrap());
        let (again, _workers) = open_on(&disk.crash_image(&CrashChoice::NOTHING));
        let topic = again.topics().get(TopicId::new(1)).unwrap();
        let placed = again.append_one(record(&topic, sent, 100)).unwrap();
        assert_eq!(placed.queue_offset.get(), sent as u64, "behind what was durable");
    });
}

/// A broker with a message that is 30 s old in a topic with this retention.
struct Aged {
    broker: Arc<Broker>,
    clock: Arc<ManualClock>,
    disk: SimDisk,
    workers: Workers,
}

fn late() -> Instant {
    Instant::now() + Duration::from_secs(24 * 3_600)
}

fn aged(retention: Retention) -> Aged {
    let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::new(Timestamp::new(1_000_000))));
    // Nobody waits for a flush.
    let flush = FlushMode::Async;
    let store = StoreConfig { segment_size: 16 << 10, flush, ..StoreConfig::new("/data") };
    let (broker, mut workers) = Broker::open_stepped(
        Arc::new(disk.clone()),
        clock.clone(),
        store,
        BrokerConfig { retention, ..BrokerConfig::default() },
    )
    .unwrap();
    let (queue, session, deadline) = (Some(QueueId::ZERO), None, late());
    let settings =
        TopicSettings { retention, ..TopicSettings::open(1, FlushMode::Async, TopicType::Mixed) };
    now(broker.create_topic("t", settings, late())).unwrap().unwrap();
    let request = SendRequest { topic: "t", queue, batch: batch(1, 1_000), session, deadline };
    now(broker.send(request)).unwrap().unwrap();
    workers.settle();
    clock.advance(Duration::from_secs(30));
    Aged { broker, clock, disk, workers }
}

/// Whether the message can be read.
fn is_there(broker: &Broker) -> bool {
    let request = PullRequest {
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 1,
        max_bytes: 1 << 20,
        wait: Duration::ZERO,
        tags: "",
        epoch: None,
        group: None,
        deadline: late(),
    };
    match now(broker.pull(request)).unwrap() {
        Ok(pulled) => pulled.records.len() == 1,
        Err(BrokerError::OffsetOutOfRange { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

const KEPT_A_MINUTE: Retention = Retention { time_ms: Some(60_000), bytes: Some(1 << 20) };

/// A limit that is made shorter used to hold before its record was appended; where that failed, whoever looked in
/// between saw messages gone that are there, and a segment could be deleted.
#[test]
fn an_update_that_fails_hides_no_message_at_any_moment() {
    let _runtime = runtime();
    let _entered = _runtime.enter();
    let shorter =
        TopicChanges { retention_time: Some(Keep::UpTo(10_000)), ..TopicChanges::default() };
    // One limit grows and the other shrinks.
    let mixed = TopicChanges { retention_bytes: Some(Keep::All), ..shorter };
    for changes in [shorter, mixed] {
        explore(2_000, move || {
            let Aged { broker, disk, workers, .. } = aged(KEPT_A_MINUTE);
            let Workers { mut clean, .. } = workers;
            disk.fail(write_fault());
            let update = {
                let broker = Arc::clone(&broker);
                thread::spawn(move || {
                    block_on(broker.update_topic("t", &changes, Force::No, late())).map(drop)
                })
            };
            let reader = {
                let broker = Arc::clone(&broker);
                thread::spawn(move || (0..6).all(|_| is_there(&broker)))
            };
            for _ in 0..3 {
                clean.step();
            }
            assert!(reader.join().unwrap(), "the message was gone for a moment");
            let failed = update.join().unwrap().unwrap_err();
            assert!(matches!(failed, BrokerError::Write(_)), "{failed}");
            assert!(is_there(&broker));
        });
    }
}

/// Its message passes the old limit while the longer one is on its way: what anybody saw go never comes back, whether
/// the update fails or not.
#[test]
fn what_went_beside_an_update_to_a_longer_retention_stays_gone() {
    let _runtime = runtime();
    let _entered = _runtime.enter();
    let longer =
        TopicChanges { retention_time: Some(Keep::UpTo(90_000)), ..TopicChanges::default() };
    for fails in [false, true] {
        explore(2_000, move || {
            let Aged { broker, clock, disk, .. } = aged(KEPT_A_MINUTE);
            if fails {
                disk.fail(write_fault());
            }
            let update = {
                let broker = Arc::clone(&broker);
                thread::spawn(move || {
                    now(broker.update_topic("t", &longer, Force::No, late()))
                        .map(|done| done.map(drop))
                })
            };
            let reader = {
                let broker = Arc::clone(&broker);
                thread::spawn(move || (0..6).map(|_| is_there(&broker)).collect::<Vec<_>>())
            };
            clock.advance(Duration::from_secs(31));
            let updated = update.join().unwrap();
            let mut seen = reader.join().unwrap();
            seen.push(is_there(&broker));
            assert!(seen.is_sorted_by(|one, other| one >= other), "{seen:?}");
            match updated {
                // It waits for the flush, and is in force.
                None => assert!(!fails),
                Some(done) => {
                    assert!(fails && matches!(done, Err(BrokerError::Write(_))), "{done:?}");
                    assert_eq!(seen.last(), Some(&false), "the old limit holds");
                }
            }
        });
    }
}

/// Nobody drives it: no timer ever fires.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// The next write of the log fails.
fn write_fault() -> FaultRule {
    FaultRule {
        operation: Operation::Write,
        path_contains: Some("commitlog".to_owned()),
        nth: 1,
        times: Times::Once,
        error: Fault::Enospc,
    }
}
