//! The store as a whole, stepped by hand on the simulated disk, and with its threads on the real one.

mod lost;
mod reads;
mod segments;
mod sized;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::read::{Loaded, May, Nearby};
use super::*;
use crate::clock::ManualClock;
use crate::file::Operation;
use crate::format::batch::{BatchBuilder, NewMeta, TagFilter, check};
use crate::format::names::FileKind;
use crate::format::record::record_len;
use crate::format::state_record::Transition;
use crate::log::commit_log::Via;
use crate::message::{
    FlushMode, Retention, SessionId, SessionMark, TopicId, TopicSettings, TopicType,
};
use crate::testing::{CrashChoice, SimDisk, TopicsOnly, now};

struct Rig {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    applier: Arc<TopicsOnly>,
    store: Store,
    workers: Option<Workers>,
}

fn config() -> StoreConfig {
    StoreConfig { segment_size: 64 << 10, ..StoreConfig::new("/data") }
}

impl Rig {
    fn open(disk: SimDisk) -> Self {
        Self::open_with(disk, config())
    }

    fn open_with(disk: SimDisk, config: StoreConfig) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::new(1_000_000_000)));
        let applier = Arc::new(TopicsOnly::default());
        let (store, workers) =
            Store::open_stepped(Arc::new(disk.clone()), clock.clone(), config, applier.clone())
                .unwrap();
        Self { disk, clock, applier, store, workers: Some(workers) }
    }

    fn settle(&mut self) {
        self.workers.as_mut().unwrap().settle();
    }

    fn topic(&self, id: u64, queues: u32, flush: FlushMode) -> Arc<TopicHandle> {
        self.topic_with(id, TopicSettings::open(queues, flush, TopicType::Mixed))
    }

    fn topic_with(&self, id: u64, settings: TopicSettings) -> Arc<TopicHandle> {
        let (id, name) = (TopicId::new(id), format!("t{id}"));
        self.transition(&Transition::TopicCreated { id, name, settings });
        self.store.topics().get(id).unwrap()
    }

    fn transition(&self, transition: &Transition) {
        let mut payload = Vec::new();
        transition.encode_into(&mut payload);
        let placed = self.store.append_one(NewRecord::state(payload.clone())).unwrap();
        self.applier.applied(self.store.topics(), &payload, placed.end).unwrap();
    }

    /// The first offset of a queue and the next to be readable.
    fn range(&self, topic: u64, queue: u32) -> (u64, u64) {
        let topic = self.store.topics().get(TopicId::new(topic)).unwrap();
        let range = now(self.store.queue_bounds(&topic, QueueId::new(queue))).unwrap().unwrap();
        (range.min.get(), range.max.get())
    }

    /// Sends to a queue until so many segments more are finished and sealed.
    fn fill(&mut self, topic: &Arc<TopicHandle>, queue: u32, segments: u64) {
        let begun = |rig: &Self| rig.store.watermarks().appended.get() / config().segment_size;
        let wanted = begun(self) + segments;
        while begun(self) < wanted {
            self.send(topic, queue, "k", &[7; 1_000]);
            self.settle();
        }
        self.clean();
    }

    fn clean(&mut self) {
        self.store.clean_soon();
        self.settle();
    }

    fn send(&self, topic: &Arc<TopicHandle>, queue: u32, key: &str, body: &[u8]) -> Placed {
        let batch = batch(key, body);
        let info = check(&batch).unwrap();
        self.store.append_one(NewRecord::message(topic, QueueId::new(queue), batch, &info)).unwrap()
    }

    fn read(&self, topic: &Arc<TopicHandle>, queue: u32, from: u64) -> ReadOutcome {
        now(self.store.read(whole(topic, queue, from))).unwrap().unwrap()
    }

    /// All bodies of a queue, read to its end.
    fn bodies(&self, topic: &Arc<TopicHandle>, queue: u32) -> Vec<Vec<u8>> {
        let (mut bodies, mut from) = (Vec::new(), 0);
        loop {
            match self.read(topic, queue, from) {
                ReadOutcome::Records { records, next, .. } => {
                    for record in records {
                        assert_eq!(record.first_queue_offset.get(), bodies.len() as u64);
                        bodies.push(body(&record.batch));
                    }
                    from = next.get();
                }
                ReadOutcome::Empty { next, range } => {
                    assert_eq!((next.get(), range.max.get()), (from, from));
                    return bodies;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn find(&self, topic: &Arc<TopicHandle>, key: &str) -> Vec<Vec<u8>> {
        let request = FindRequest {
            topic: Arc::clone(topic),
            kind: IndexKind::Key,
            bytes: Bytes::copy_from_slice(key.as_bytes()),
            begin: Timestamp::ZERO,
            end: Timestamp::new(u64::MAX),
            order: Order::OldestFirst,
            limit: 1_000,
            after: None,
        };
        let found = now(self.store.find(request)).unwrap().unwrap();
        assert!(found.complete, "{:?}", found.reason);
        found.messages.iter().map(|message| body(&message.record.batch)).collect()
    }

    /// Makes all of the log durable.
    fn sync(&mut self) {
        let durable = self.store.durable(self.store.watermarks().appended);
        self.settle();
        now(durable).unwrap().unwrap();
    }

    fn dispatch(&mut self) {
        let dispatch = &mut self.workers.as_mut().unwrap().dispatch;
        while dispatch.step() == Progress::Worked {}
    }

    fn diverged(&self, topic: &Arc<TopicHandle>, queue: u32, at: usize, epoch: u64) -> Option<u64> {
        let offset = QueueOffset::new(at as u64);
        let asked = self.store.diverged(topic, QueueId::new(queue), offset, Epoch::new(epoch));
        now(asked).unwrap().unwrap().map(|diverged| diverged.at.get())
    }

    fn only_topic(&self) -> Arc<TopicHandle> {
        self.store.topics().get(TopicId::new(1)).unwrap()
    }

    /// The disk as a cut of the power may leave it now, opened again.
    fn cut_power(self, choice: &CrashChoice) -> Self {
        let disk = self.disk.crash_image(choice);
        std::mem::forget(self.store);
        std::mem::forget(self.workers);
        Self::open(disk)
    }

    fn close_and_reopen(mut self) -> Self {
        self.store.close_stepped(self.workers.take().unwrap()).unwrap();
        Self::open(self.disk.clone())
    }
}

fn batch(key: &str, body: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(&NewMeta { keys: vec![key], ..NewMeta::default() }, body);
    builder.finish()
}

fn body(batch: &[u8]) -> Vec<u8> {
    crate::format::batch::Batch::parse(batch).unwrap().bodies().to_vec()
}

/// A request for all of a queue from `from` on.
fn whole(topic: &Arc<TopicHandle>, queue: u32, from: u64) -> ReadRequest {
    ReadRequest {
        topic: Arc::clone(topic),
        queue: QueueId::new(queue),
        from: QueueOffset::new(from),
        max_messages: 1_000,
        max_bytes: 1 << 20,
        filter: Arc::new(TagFilter::All),
    }
}

fn numbered(count: usize, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("{n:0len$}").into_bytes()).collect()
}

#[test]
fn what_was_sent_comes_back_in_order_and_by_key() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 2, FlushMode::Async);
    let sent = numbered(200, 1_000);
    for (n, body) in sent.iter().enumerate() {
        rig.send(&topic, n as u32 % 2, &format!("k{}", n % 10), body);
        if n % 7 == 0 {
            rig.settle();
        }
    }
    rig.settle();
    let even: Vec<_> = sent.iter().step_by(2).cloned().collect();
    assert_eq!(rig.bodies(&topic, 0), even);
    let third: Vec<_> = sent.iter().skip(3).step_by(10).cloned().collect();
    assert_eq!(rig.find(&topic, "k3"), third);
    assert!(rig.store.status().segments > 3, "the log must have rolled");

    let rig = rig.close_and_reopen();
    let topic = rig.store.topics().get(TopicId::new(1)).unwrap();
    assert_eq!(rig.bodies(&topic, 0), even);
    assert_eq!(rig.find(&topic, "k3"), third);
    assert_eq!(rig.send(&topic, 0, "new", b"x").queue_offset.get(), 100);
    assert!(rig.store.start_report().clean);
}

#[test]
fn keys_are_indexed_however_far_they_reach_into_their_batches() {
    let config = StoreConfig { segment_size: 1 << 20, ..config() };
    let mut rig = Rig::open_with(SimDisk::new(), config);
    let topic = rig.topic(1, 1, FlushMode::Async);
    // Within what is read with the header, within what is read then, beyond that, and small ones close together.
    let counts = [1, 10, 100, 300, 12, 1, 1, 1, 1, 1, 1, 1, 130, 16, 17, 18, 19, 20];
    let key = |batch: usize, message: usize| format!("{batch}/{message:0100}");
    let calls = |rig: &Rig| [Operation::Read, Operation::ReadFresh].map(|of| rig.disk.calls(of));
    let [reads, fresh] = calls(&rig);
    for (n, count) in counts.into_iter().enumerate() {
        let keys: Vec<_> = (0..count).map(|message| key(n, message)).collect();
        let mut builder = BatchBuilder::new();
        for key in &keys {
            builder.push(&NewMeta { keys: vec![key.as_str()], ..NewMeta::default() }, b"12345678");
        }
        let batch = builder.finish();
        let info = check(&batch).unwrap();
        rig.store.append_one(NewRecord::message(&topic, QueueId::ZERO, batch, &info)).unwrap();
        if n % 4 == 3 {
            rig.settle();
        }
    }
    rig.settle();
    let [reads_then, fresh_then] = calls(&rig);
    assert_eq!(reads_then, reads, "what is dispatched is in memory");
    let most = 2 * counts.len() as u64;
    assert!(fresh_then - fresh <= most, "two of each at most: {}", fresh_then - fresh);
    for (n, count) in counts.into_iter().enumerate() {
        for message in [0, count - 1] {
            assert_eq!(rig.find(&topic, &key(n, message)).len(), 1, "batch {n}, message {message}");
        }
    }
}

#[test]
fn a_sync_topic_shows_a_record_only_once_it_is_flushed_an_async_one_at_once() {
    let rig = &mut Rig::open(SimDisk::new());
    let sync = rig.topic(1, 1, FlushMode::Sync);
    let asynchronous = rig.topic(2, 1, FlushMode::Async);
    let mut workers = rig.workers.take().unwrap();
    for n in 0..10_u8 {
        rig.send(&sync, 0, "s", &[n]);
        rig.send(&asynchronous, 0, "a", &[n]);
    }
    workers.dispatch.step();
    assert_eq!(rig.store.queue_max(&sync, QueueId::new(0)).get(), 0);
    assert_eq!(rig.bodies(&asynchronous, 0).len(), 10);
    assert_eq!(rig.find(&sync, "s").len(), 0);
    assert_eq!(rig.find(&asynchronous, "a").len(), 10);
    workers.flush.flush_all();
    assert_eq!(rig.bodies(&sync, 0).len(), 10);
    assert_eq!(rig.find(&sync, "s").len(), 10);
    let before = rig.store.watermarks();
    assert_eq!((before.appended, before.appended), (before.dispatched, before.flushed));
}

#[test]
fn a_power_cut_takes_only_what_was_not_flushed() {
    for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING] {
        let mut rig = Rig::open(SimDisk::new());
        let topic = rig.topic(1, 1, FlushMode::Async);
        let sent = numbered(50, 1_000);
        for body in &sent[..40] {
            rig.send(&topic, 0, "k", body);
        }
        rig.settle();
        for body in &sent[40..] {
            rig.send(&topic, 0, "k", body);
        }
        let mut rig = rig.cut_power(&choice);
        rig.settle();
        let topic = rig.store.topics().get(TopicId::new(1)).unwrap();
        let found = rig.bodies(&topic, 0);
        assert!(found.len() >= 40, "{choice:?}");
        assert_eq!(found, sent[..found.len()], "{choice:?}");
        assert_eq!(rig.find(&topic, "k"), found);
        assert!(!rig.store.start_report().clean);
        assert_eq!(rig.store.epoch().get(), 2);
        assert_eq!(
            rig.send(&topic, 0, "k", b"next").queue_offset.get(),
            found.len() as u64,
            "{choice:?}"
        );
    }
}

#[test]
fn a_flipped_bit_in_the_middle_costs_that_record_alone() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Sync);
    let sent = numbered(30, 1_000);
    let placed: Vec<_> = sent.iter().map(|body| rig.send(&topic, 0, "k", body)).collect();
    rig.settle();
    // Long enough for the checkpoint to vouch for the burst.
    rig.clock.advance(Duration::from_millis(60));
    rig.settle();
    let log = Path::new("/data/commitlog/00000000000000000000.log");
    rig.disk.corrupt(log, placed[10].offset.get() + 500, 0x40).unwrap();
    let rig = rig.cut_power(&CrashChoice::EVERYTHING);
    let topic = rig.store.topics().get(TopicId::new(1)).unwrap();
    assert_eq!(rig.store.start_report().damaged, [placed[10].offset..placed[10].end]);
    match rig.read(&topic, 0, 10) {
        ReadOutcome::Damaged { at, next, range } => {
            assert_eq!((at.get(), next.get(), range.max.get()), (10, 11, 30));
        }
        other => panic!("{other:?}"),
    }
    match rig.read(&topic, 0, 11) {
        ReadOutcome::Records { records, .. } => assert_eq!(records.len(), 19),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.send(&topic, 0, "k", b"on").queue_offset.get(), 30);
}

#[test]
fn a_failed_sync_poisons_the_store_for_good() {
    use crate::file::Operation;
    use crate::testing::{Fault, FaultRule, Times};

    let rig = &mut Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Sync);
    let mut workers = rig.workers.take().unwrap();
    workers.settle();
    rig.disk.fail(FaultRule {
        operation: Operation::Sync,
        path_contains: Some("commitlog".to_owned()),
        nth: 1,
        times: Times::Once,
        error: Fault::Eio,
    });
    let placed = rig.send(&topic, 0, "k", b"unknown");
    let durable = rig.store.durable(placed.end);
    workers.flush.flush_all();
    assert_eq!(now(durable), Some(Err(Poisoned)));
    let flushed = rig.store.watermarks().flushed;
    workers.flush.flush_all();
    assert_eq!(rig.store.watermarks().flushed, flushed, "no sync is tried again");
    let batch = batch("k", b"later");
    let info = check(&batch).unwrap();
    let later = NewRecord::message(&topic, QueueId::new(0), batch, &info);
    assert!(matches!(rig.store.append_one(later), Err(AppendError::Poisoned)));
    assert!(now(rig.store.failed()).is_some());
}

#[test]
fn deleting_all_that_is_derived_changes_nothing() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(7, 3, FlushMode::Async);
    let sent = numbered(400, 900);
    for (n, body) in sent.iter().enumerate() {
        rig.send(&topic, n as u32 % 3, &format!("k{}", n % 50), body);
        rig.settle();
    }
    let disk = rig.disk.clone();
    rig.store.close_stepped(rig.workers.take().unwrap()).unwrap();
    for path in disk.paths() {
        let text = path.to_string_lossy().into_owned();
        if ["consumequeue/", "index/", "state/", "checkpoint"].iter().any(|d| text.contains(d)) {
            disk.remove(&path).unwrap();
        }
    }
    let mut rig = Rig::open(disk);
    assert!(rig.store.start_report().rebuilding > 0);
    rig.settle();
    let topic = rig.store.topics().get(TopicId::new(7)).unwrap();
    for queue in 0..3 {
        let expected: Vec<_> = sent.iter().skip(queue).step_by(3).cloned().collect();
        assert_eq!(rig.bodies(&topic, queue as u32), expected);
    }
    let expected: Vec<_> = sent.iter().skip(9).step_by(50).cloned().collect();
    assert_eq!(rig.find(&topic, "k9"), expected);
}

#[test]
fn a_clock_that_jumps_back_does_not_move_store_time_back() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    let first = rig.send(&topic, 0, "k", b"a");
    rig.clock.set_wall(Timestamp::new(first.store_time.get() - 3_600_000));
    let second = rig.send(&topic, 0, "k", b"b");
    assert_eq!(second.store_time, first.store_time);
    assert_eq!(rig.store.status().clock_behind, Duration::from_secs(3_600));
    rig.clock.advance(Duration::from_secs(3_540));
    assert_eq!(rig.store.status().clock_behind, Duration::from_secs(60));
    rig.clock.set_wall(Timestamp::new(first.store_time.get() - 3_600_000));
    rig.settle();
    let rig = rig.close_and_reopen();
    let topic = rig.store.topics().get(TopicId::new(1)).unwrap();
    assert!(rig.send(&topic, 0, "k", b"c").store_time >= first.store_time);
    assert_eq!(rig.store.status().clock_behind, Duration::ZERO);
    rig.clock.set_wall(Timestamp::new(first.store_time.get() - 60_000));
    assert_eq!(rig.store.status().clock_behind, Duration::from_secs(60), "of what the log knows");
}

#[test]
fn a_store_with_threads_on_the_real_disk_survives_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { segment_size: 1 << 20, ..StoreConfig::new(dir.path().join("s")) };
    let sent = numbered(3_000, 1_000);
    for round in 0..2 {
        let clock = Arc::new(crate::clock::SystemClock::new());
        let applier = Arc::new(TopicsOnly::default());
        let disk = Arc::new(crate::file::disk::RealDisk);
        let (store, report) =
            Store::open(disk.clone(), clock, config.clone(), applier.clone()).unwrap();
        let locked = Store::open(
            disk,
            Arc::new(crate::clock::SystemClock::new()),
            config.clone(),
            Arc::new(TopicsOnly::default()),
        );
        assert!(matches!(locked, Err(OpenError::Locked { .. })));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        if round == 0 {
            assert!(report.created);
            let mut payload = Vec::new();
            Transition::TopicCreated {
                id: TopicId::new(1),
                name: "t".to_owned(),
                settings: TopicSettings::open(1, FlushMode::Sync, TopicType::Mixed),
            }
            .encode_into(&mut payload);
            let placed = store.append_one(NewRecord::state(payload.clone())).unwrap();
            applier.applied(store.topics(), &payload, placed.end).unwrap();
            let topic = store.topics().get(TopicId::new(1)).unwrap();
            let mut end = placed.end;
            for body in &sent {
                let batch = batch("k", body);
                let info = check(&batch).unwrap();
                let record = NewRecord::message(&topic, QueueId::new(0), batch, &info);
                end = loop {
                    match store.append_one(record.clone()) {
                        Ok(placed) => break placed.end,
                        Err(AppendError::NotReady) => {
                            runtime.block_on(store.space()).unwrap();
                        }
                        Err(error) => panic!("{error}"),
                    }
                };
            }
            runtime.block_on(store.acknowledged(&topic, end)).unwrap();
            assert!(store.watermarks().flushed >= end);
        }
        let topic = store.topics().get(TopicId::new(1)).unwrap();
        runtime.block_on(store.caught_up(&topic));
        let (mut from, mut count) = (0, 0);
        while count < sent.len() {
            let request = ReadRequest {
                topic: Arc::clone(&topic),
                queue: QueueId::new(0),
                from: QueueOffset::new(from),
                max_messages: 100,
                max_bytes: 1 << 20,
                filter: Arc::new(TagFilter::All),
            };
            match runtime.block_on(store.read(request)).unwrap() {
                ReadOutcome::Records { records, next, .. } => {
                    for record in records {
                        assert_eq!(body(&record.batch), sent[count]);
                        count += 1;
                    }
                    from = next.get();
                }
                other => panic!("round {round} at {from}: {other:?}"),
            }
        }
        store.close().unwrap();
    }
}

/// The walk stood at the base of the next segment, found no record in its header page, and poisoned the store.
#[test]
fn a_record_that_ends_with_its_segment_is_followed_by_the_next_segment() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    let left = |rig: &Rig| {
        let appended = rig.store.watermarks().appended.get();
        (appended.next_multiple_of(64 << 10) - appended) as usize
    };
    let overhead = record_len(0, batch("k", &[7; 1_000]).len()) as usize - 1_000;
    let mut sent = 0;
    // With a next segment behind it, this one is filled to its end.
    rig.settle();
    while left(&rig) > 4_000 {
        rig.send(&topic, 0, "k", &[7; 1_000]);
        sent += 1;
    }
    rig.send(&topic, 0, "k", &vec![7; left(&rig) - overhead]);
    assert_eq!(left(&rig), 0);
    rig.settle();
    rig.send(&topic, 0, "k", b"next");
    rig.settle();
    assert_eq!(rig.bodies(&topic, 0).len(), sent + 2);
}

#[test]
fn what_the_broker_says_of_a_large_batch_is_covered_by_the_checksum_of_its_record() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    let batch = batch("k", &[7; 12_000]);
    let mark = SessionMark { session: SessionId::new(1), epoch: 1, sequence: 1 };
    let info = check(&batch).unwrap();
    let record = NewRecord::message_in_session(&topic, QueueId::ZERO, batch, &info, &mark);
    rig.store.append_one(record).unwrap();
    rig.settle();
    assert_eq!(rig.bodies(&topic, 0), [[7; 12_000]]);
}

#[test]
fn an_append_wakes_the_dispatcher_as_long_as_somebody_is_in_a_hurry() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    rig.settle();
    let signal = |rig: &Rig| rig.store.shared.dispatch_signal.take();
    signal(&rig);
    let hurry = rig.store.hurry();
    assert!(rig.store.shared.dispatch_signal.take(), "what is there is dispatched");
    rig.send(&topic, 0, "k", b"one");
    assert!(signal(&rig));
    drop(hurry);
    rig.send(&topic, 0, "k", b"two");
    assert!(!signal(&rig));
}
