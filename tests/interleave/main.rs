//! Interleavings of the store's threads, as many as the time allows, chosen at random by shuttle:
//! `cargo test --features shuttle --test interleave`.
//!
//! The whole store runs on the simulated disk, its workers stepped by threads of the test. A waiter that is never woken
//! is a deadlock, which shuttle reports with the schedule that leads to it. `SEED` sets the first schedule.

#![cfg(feature = "shuttle")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use mainstem::format::batch::{BatchBuilder, NewMeta, TagFilter, check};
use mainstem::format::state_record::Transition;
use mainstem::message::{FlushMode, QueueId, QueueOffset, Timestamp, TopicId, TopicType};
use mainstem::store::{
    AppendError, Arrival, NewRecord, Placed, ReadOutcome, ReadRequest, Store, StoreConfig,
    TopicHandle, Workers,
};
use mainstem::testing::{Alarm, ManualClock, SimDisk, TopicsOnly, now};
use shuttle::future::block_on;
use shuttle::scheduler::RandomScheduler;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread::{self, JoinHandle};

/// Explores so many random schedules. (Schedules of few preemptions starve the workers, which look for work in turns.)
fn explore(schedules: usize, test: impl Fn() + Send + Sync + 'static) {
    let seed = std::env::var("SEED").ok().map_or(1, |text| text.parse().unwrap());
    println!("SEED={seed}");
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(1_000_000);
    config.silence_warnings = true;
    shuttle::Runner::new(RandomScheduler::new_from_seed(seed, schedules), config).run(test);
}

struct Rig {
    store: Store,
    topic: Arc<TopicHandle>,
    disk: SimDisk,
    workers: Workers,
}

fn open(flush: FlushMode) -> Rig {
    let disk = SimDisk::new();
    let config = StoreConfig { segment_size: 16 << 10, ..StoreConfig::new("/data") };
    let applier = Arc::new(TopicsOnly::default());
    let clock = Arc::new(ManualClock::new(Timestamp::new(1_000)));
    let (store, mut workers) =
        Store::open_stepped(Arc::new(disk.clone()), clock, config, applier.clone()).unwrap();
    let mut payload = Vec::new();
    let (id, name, topic_type) = (TopicId::new(1), "t".to_owned(), TopicType::Mixed);
    Transition::TopicCreated { id, name, queues: 1, flush, topic_type }.encode_into(&mut payload);
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
    let Workers { mut dispatch, flush: mut flusher, mut seal, mut allocate } = workers;
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
        work(&store, &sent, total, move || drop(dispatch.step())),
        work(&store, &sent, total, move || flusher.flush_all()),
        work(&store, &sent, total, move || drop(allocate.step())),
        work(&store, &sent, total, move || drop(seal.step())),
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

/// Work is handed over by a counter, the sleeper is woken by the signal alone.
#[test]
fn a_sleeper_never_misses_work() {
    explore(20_000, || {
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
