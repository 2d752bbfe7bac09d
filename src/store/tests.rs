//! The store as a whole, stepped by hand on the simulated disk, and with its threads on the real one.

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
        let request = ReadRequest {
            topic: Arc::clone(topic),
            queue: QueueId::new(queue),
            from: QueueOffset::new(from),
            max_messages: 1_000,
            max_bytes: 1 << 20,
            filter: Arc::new(TagFilter::All),
        };
        now(self.store.read(request)).unwrap().unwrap()
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
fn a_read_goes_on_in_other_queues_as_far_as_its_bytes_go_in_memory_and_off_the_disk() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 8, FlushMode::Async);
    for queue in [0, 1, 2, 4, 5, 6] {
        rig.send(&topic, queue, "k", &[queue as u8; 1_000]);
    }
    rig.settle();
    let others = [1, 2, 3, 4, 5, 6].map(|queue| (QueueId::new(queue), QueueOffset::ZERO));
    let read = |rig: &Rig, topic: &Arc<TopicHandle>, max_bytes| {
        let request = ReadRequest {
            topic: Arc::clone(topic),
            queue: QueueId::ZERO,
            from: QueueOffset::ZERO,
            max_messages: 10,
            max_bytes,
            filter: Arc::new(TagFilter::All),
        };
        let (first, ahead) = now(rig.store.read_ahead(request, &others)).unwrap().unwrap();
        assert!(matches!(first, ReadOutcome::Records { next, .. } if next.get() == 1));
        let each = ahead.into_iter().map(|ahead| {
            let queue = ahead.queue.get();
            assert_eq!((ahead.next.get(), ahead.range.max.get(), ahead.records.len()), (1, 1, 1));
            assert_eq!(body(&ahead.records[0].batch), [queue as u8; 1_000]);
            queue
        });
        each.collect::<Vec<_>>()
    };
    // Queue 3 has nothing to give: it must not be passed over.
    let wanted = [(1 << 20, &[1, 2][..]), (2_500, &[1]), (1, &[])];
    let reads_along = |rig: &Rig, topic: &Arc<TopicHandle>| {
        for (max_bytes, all) in wanted {
            // It may be over sooner: where the clock says so.
            let mut most = Vec::new();
            for _ in 0..100 {
                let found = read(rig, topic, max_bytes);
                assert!(all.starts_with(&found), "{found:?} of {all:?}");
                most = if found.len() > most.len() { found } else { most };
            }
            assert_eq!(most, all);
        }
    };
    reads_along(&rig, &topic);

    let rig = rig.close_and_reopen();
    reads_along(&rig, &rig.store.topics().get(TopicId::new(1)).unwrap());
}

#[test]
fn queues_that_got_their_records_in_turn_are_read_with_few_reads_of_the_disk() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 40, FlushMode::Async);
    for queue in 0..40 {
        rig.send(&topic, queue, "k", &[queue as u8; 900]);
    }
    rig.settle();
    let rig = rig.close_and_reopen();
    let topic = rig.store.topics().get(TopicId::new(1)).unwrap();
    let others: Vec<_> = (1..40).map(|n| (QueueId::new(n), QueueOffset::ZERO)).collect();
    let request = ReadRequest {
        topic,
        queue: QueueId::ZERO,
        from: QueueOffset::ZERO,
        max_messages: 10,
        max_bytes: 1 << 20,
        filter: Arc::new(TagFilter::All),
    };
    // It may be over sooner: where the clock says so, on a busy machine many times in a row.
    let (mut reads, mut tries, begun) = (u64::MAX, 0, std::time::Instant::now());
    while tries < 100 || (reads == u64::MAX && begun.elapsed() < Duration::from_secs(30)) {
        tries += 1;
        let before = rig.disk.calls(Operation::Read);
        let (_, ahead) = now(rig.store.read_ahead(request.clone(), &others)).unwrap().unwrap();
        for (ahead, n) in ahead.iter().zip(1_u8..) {
            assert_eq!(body(&ahead.records[0].batch), [n; 900]);
        }
        if ahead.len() == 39 {
            reads = reads.min(rig.disk.calls(Operation::Read) - before);
        }
    }
    // One alone, then 16 KiB and what follows of some 40; the queues were put in memory by the start.
    assert!(reads <= 4, "{reads} reads for 40 records");
}

#[test]
fn a_read_finds_the_pages_of_the_queues_files_that_the_one_before_it_left() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 3, FlushMode::Async);
    for queue in 0..2 {
        rig.send(&topic, queue, "k", b"x");
    }
    rig.fill(&topic, 2, 2);
    let reads_of = |queue| {
        let before = rig.disk.calls(Operation::Read);
        assert!(matches!(rig.read(&topic, queue, 0), ReadOutcome::Records { .. }));
        rig.disk.calls(Operation::Read) - before
    };
    // A page for the queue's row and its entry, and the record.
    assert_eq!(reads_of(0), 2);
    assert_eq!(reads_of(1), 1);
}

#[test]
fn a_read_does_not_see_what_an_earlier_one_had_of_the_log() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 2, FlushMode::Async);
    let placed: Vec<_> = numbered(9, 900).iter().map(|b| rig.send(&topic, 0, "k", b)).collect();
    rig.fill(&topic, 1, 2);
    assert_eq!(rig.bodies(&topic, 0).len(), 9);
    let log = Path::new("/data/commitlog/00000000000000000000.log");
    rig.disk.corrupt(log, placed[8].offset.get() + 500, 0x40).unwrap();
    match rig.read(&topic, 0, 8) {
        ReadOutcome::Damaged { at, .. } => assert_eq!(at.get(), 8),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_behind_a_read_is_found_by_the_next_though_it_was_read_along() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 1, FlushMode::Async);
    let nearby = &mut Nearby::default();
    for n in 0..6_u8 {
        let placed = rig.send(&topic, 0, "k", &[n; 900]);
        rig.settle();
        let (at, shared) = (placed.offset, &rig.store.shared);
        assert_eq!(shared.via(at), Via::Disk);
        // Whatever lies behind the record before, its place was looked at before it was written.
        match shared.load(&topic, at, placed.end, May::Disk, nearby) {
            Loaded::Record(record) => assert_eq!(body(&record.batch), [n; 900]),
            _ => panic!("record {n} is not found"),
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

impl Rig {
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
}

#[test]
fn a_reader_learns_from_where_on_a_power_cut_took_what_it_read() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 2, FlushMode::Async);
    for body in numbered(20, 100) {
        rig.send(&topic, 0, "k", &body);
        rig.send(&topic, 1, "k", &body);
    }
    rig.sync();
    for body in numbered(10, 101) {
        rig.send(&topic, 0, "k", &body);
    }
    rig.dispatch();
    assert_eq!(rig.bodies(&topic, 0).len(), 30, "read before they were durable");
    assert_eq!(rig.diverged(&topic, 0, 31, 1), None, "its own epoch");

    let mut rig = rig.cut_power(&CrashChoice::NOTHING);
    let topic = rig.only_topic();
    let of_epoch_1 = |rig: &Rig, topic: &_, queue, at| rig.diverged(topic, queue, at, 1);
    let expected =
        [(0, 30, Some(20)), (0, 21, Some(20)), (0, 20, None), (0, 0, None), (1, 20, None)];
    for (queue, at, at_most) in expected {
        assert_eq!(of_epoch_1(&rig, &topic, queue, at), at_most, "queue {queue} at {at}");
    }
    // Other messages at their offsets, in the epoch that took them and in a later one.
    for body in numbered(15, 102) {
        rig.send(&topic, 0, "k", &body);
    }
    rig.settle();
    assert_eq!(of_epoch_1(&rig, &topic, 0, 30), Some(20));
    let rig = rig.close_and_reopen();
    let topic = rig.only_topic();
    rig.send(&topic, 1, "k", b"later");
    for (queue, at, at_most) in expected {
        assert_eq!(of_epoch_1(&rig, &topic, queue, at), at_most, "queue {queue} at {at}");
    }
    assert_eq!(rig.diverged(&topic, 0, 35, 2), None, "a clean stop takes nothing");
    assert_eq!(rig.diverged(&topic, 0, 36, 2), Some(35), "this one was never there");
}

/// Against what a reader remembers, message by message.
#[test]
fn what_a_reader_is_told_is_lost_is_where_its_memory_and_the_queue_part() {
    let mut found = 0;
    for seed in 0..40_u64 {
        let mut state = seed;
        let mut below = |limit: u64| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            xxhash_rust::xxh3::xxh3_64(&state.to_le_bytes()) % limit
        };
        let mut rig = Rig::open(SimDisk::new());
        let created = rig.topic(1, 2, FlushMode::Async);
        drop(created);
        rig.sync();
        let mut memories: Vec<(u64, u32, Vec<Vec<u8>>)> = Vec::new();
        let mut serial = 0_u32;
        for step in 0..60 {
            match below(10) {
                0..=5 => {
                    let topic = rig.only_topic();
                    for _ in 0..below(12) {
                        serial += 1;
                        let body = format!("{serial:0len$}", len = 1 + below(4_000) as usize);
                        let queue = below(2) as u32;
                        let batch = batch("k", body.as_bytes());
                        let info = check(&batch).unwrap();
                        let record = NewRecord::message(&topic, QueueId::new(queue), batch, &info);
                        if rig.store.append_one(record.clone()).is_err() {
                            // No room: the workers make it.
                            rig.settle();
                            rig.store.append_one(record).unwrap();
                        }
                    }
                }
                6 => rig.sync(),
                7 => rig = rig.close_and_reopen(),
                _ => {
                    let pending = rig.disk.pending_counts();
                    rig = rig.cut_power(&CrashChoice::random(below(u64::MAX), pending));
                }
            }
            rig.dispatch();
            let topic = rig.only_topic();
            let epoch = rig.store.epoch().get();
            let now: Vec<_> = (0..2).map(|queue| rig.bodies(&topic, queue)).collect();
            for (seen, queue, memory) in &memories {
                let now = &now[*queue as usize];
                let parts = memory.iter().zip(now).position(|(old, new)| old != new);
                let parts = parts.or((memory.len() > now.len()).then_some(now.len()));
                let told = rig.diverged(&topic, *queue, memory.len(), *seen);
                assert_eq!(
                    told,
                    parts.map(|at| at as u64),
                    "seed {seed}, step {step}, epoch {seen}"
                );
                found += usize::from(told.is_some());
            }
            for (queue, bodies) in now.into_iter().enumerate() {
                memories.push((epoch, queue as u32, bodies));
            }
        }
    }
    assert!(found > 100, "power cuts must have taken something: {found}");
}

#[test]
fn a_start_says_which_messages_went_with_a_torn_tail() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 3, FlushMode::Async);
    rig.send(&topic, 0, "k", &[1; 5_000]);
    rig.sync();
    let first = rig.store.now();
    rig.clock.advance(Duration::from_millis(7));
    let torn = rig.send(&topic, 2, "k", &[2; 9_000]);
    for _ in 0..3 {
        rig.send(&topic, 1, "k", &[3; 5_000]);
    }
    // All of it came to the disk but the first of its pages.
    let everything = CrashChoice::EVERYTHING;
    let choice = CrashChoice { writes: crate::testing::WriteChoice::AllButFirst, ..everything };
    let rig = rig.cut_power(&choice);
    let report = rig.store.start_report();
    let lost = report.lost.as_ref().expect("messages were lost");
    let rows: Vec<_> =
        lost.queues.iter().map(|row| (row.topic.get(), row.queue.get(), row.messages)).collect();
    assert_eq!(report.cut.as_ref().map(|cut| cut.at), Some(torn.offset));
    assert_eq!((lost.messages, lost.queue_count), (3, 1));
    assert_eq!(rows, [(1, 1, 3)], "the header of the first is not there: of it nothing is known");
    assert_eq!(
        (lost.first, lost.last),
        (Timestamp::new(first.get() + 7), Timestamp::new(first.get() + 7))
    );
    let text = report.to_string();
    assert!(text.contains("LOST: 3 messages"), "{text}");
    assert!(text.contains("3 in #1/1 (store time"), "{text}");
}

/// A topic that keeps a few bytes, in segments that another topic keeps too.
fn rig_with_a_sized_topic() -> (Rig, Arc<TopicHandle>) {
    let rig = Rig::open(SimDisk::new());
    let retention = Retention { time_ms: None, bytes: Some(110_000) };
    let settings = TopicSettings::open(2, FlushMode::Async, TopicType::Mixed);
    let sized = rig.topic_with(1, TopicSettings { retention, ..settings });
    rig.topic(2, 1, FlushMode::Async);
    (rig, sized)
}

/// Where a queue begins by the retention in bytes was worked out in the background after a start: until then it began
/// where its oldest entry was.
#[test]
fn what_went_by_its_size_is_gone_from_the_first_moment_after_a_start() {
    for is_clean in [true, false] {
        let (mut rig, sized) = rig_with_a_sized_topic();
        let keeper = rig.store.topics().get(TopicId::new(2)).unwrap();
        for _ in 0..4 {
            rig.send(&keeper, 0, "k", b"stays");
            rig.fill(&sized, 0, 1);
        }
        let (min, max) = rig.range(1, 0);
        assert!(min > 50 && min + 50 < max, "{min}..{max}");
        assert_eq!(rig.store.status().deleted_segments, 0);
        let rig = match is_clean {
            true => rig.close_and_reopen(),
            false => rig.cut_power(&CrashChoice::EVERYTHING),
        };
        assert_eq!(rig.range(1, 0), (min, max), "after a clean stop: {is_clean}");
        assert_eq!(rig.range(2, 0), (0, 4));
    }
}

/// Without the file of one segment its bytes do not count, so that older ones seem to be within what is kept. What
/// went between these and the newer ones was told to be damaged.
#[test]
fn what_went_by_its_size_is_not_damage_while_a_file_of_what_is_kept_is_missing() {
    let (mut rig, sized) = rig_with_a_sized_topic();
    let keeper = rig.store.topics().get(TopicId::new(2)).unwrap();
    rig.send(&keeper, 0, "k", b"stays");
    rig.fill(&sized, 0, 6);
    assert!(rig.store.status().deleted_segments >= 2, "{:?}", rig.store.status());
    let (min, max) = rig.range(1, 0);
    let is_queue = |path: &PathBuf| path.starts_with("/data/consumequeue");
    let files: Vec<_> = rig.disk.paths().into_iter().filter(is_queue).collect();
    assert!(files.len() >= 3, "{files:?}");
    let (mut readable, mut gone) = (0, 0);
    for file in files {
        let disk = rig.disk.crash_image(&CrashChoice::EVERYTHING);
        disk.remove(&file).unwrap();
        let mut rig = Rig::open(disk);
        let sized = rig.store.topics().get(TopicId::new(1)).unwrap();
        for from in 0..max {
            match rig.read(&sized, 0, from) {
                ReadOutcome::Rebuilding => {}
                ReadOutcome::OutOfRange { range } => {
                    assert!(from < range.min.get() && range.min.get() <= min, "{range:?}");
                    gone += 1;
                }
                ReadOutcome::Records { records, .. } => {
                    assert_eq!(records[0].first_queue_offset.get(), from);
                    readable += 1;
                }
                other => panic!("{from} of {min}..{max} without {file:?}: {other:?}"),
            }
        }
        rig.settle();
        assert_eq!(rig.range(1, 0), (min, max));
    }
    assert!(readable > 0 && gone > 0, "{readable}, {gone}");
}

/// What had pushed others out was purged, and its segments deleted: counted anew, the others were within what is kept.
#[test]
fn what_went_by_its_size_does_not_come_back_when_what_lay_behind_it_is_deleted() {
    for is_clean in [true, false] {
        let (mut rig, sized) = rig_with_a_sized_topic();
        let keeper = rig.store.topics().get(TopicId::new(2)).unwrap();
        rig.send(&keeper, 0, "k", b"stays");
        for _ in 0..10 {
            rig.send(&sized, 1, "k", b"goes");
        }
        rig.fill(&sized, 0, 4);
        let (min, max) = rig.range(1, 1);
        assert_eq!((min, max), (10, 10), "gone by size");
        let queues = vec![(QueueId::new(0), QueueOffset::new(rig.range(1, 0).1))];
        let (below, before) = (PhysicalOffset::ZERO, Timestamp::ZERO);
        rig.transition(&Transition::TopicExpired {
            id: sized.id(),
            below,
            before,
            queues,
            purged: PhysicalOffset::ZERO,
        });
        rig.clean();
        assert!(rig.store.status().deleted_segments >= 2, "{:?}", rig.store.status());
        assert_eq!(rig.range(1, 1), (10, 10));
        let mut rig = match is_clean {
            true => rig.close_and_reopen(),
            false => rig.cut_power(&CrashChoice::EVERYTHING),
        };
        assert_eq!(rig.range(1, 1), (10, 10), "after a clean stop: {is_clean}");
        rig.settle();
        assert_eq!(rig.range(1, 1), (10, 10), "after a clean stop: {is_clean}");
        assert_eq!(rig.range(2, 0), (0, 1));
    }
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

/// Zeros double what the disk writes. A sync is faster for them, but few syncs make no difference.
#[test]
fn a_segment_is_filled_with_zeros_only_where_syncs_are_small() {
    const LEN: u64 = 1 << 20;
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { segment_size: LEN, ..config() });
    let topic = rig.topic(1, 1, FlushMode::Sync);
    let writes = |rig: &Rig| {
        let of_new_segments = |(operation, path): &(Operation, PathBuf)| {
            *operation == Operation::Write
                && path.extension().is_some_and(|end| end == "tmp")
                && path.parent().is_some_and(|dir| dir.ends_with("commitlog"))
        };
        rig.disk.journal().iter().filter(|call| of_new_segments(call)).count()
    };
    rig.settle();
    // Sixteen calls for the zeros, one for the header: of the first segment, and of the one made ahead.
    assert_eq!(writes(&rig), 2 * 17);
    // How the segment is made that is next once a segment was filled.
    let mut next = |sends_a_sync: usize| {
        let segments = |rig: &Rig| rig.store.watermarks().appended.get() / LEN;
        let (before, begun) = (writes(&rig), segments(&rig));
        while segments(&rig) == begun {
            for _ in 0..sends_a_sync {
                rig.send(&topic, 0, "k", &[7; 10_000]);
            }
            rig.sync();
        }
        writes(&rig) - before
    };
    assert_eq!([next(1), next(6)], [17, 17], "a header and zeros behind groups of up to 61 KB");
    assert_eq!([next(7), next(7)], [1, 1], "a header alone behind groups of 71 KB");
    assert_eq!([next(1), next(1)], [17, 17], "zeros again");
}

/// The list of all segments was held: one that was deleted meanwhile was in use, and became no other.
#[test]
fn a_sync_holds_no_segment_but_those_that_it_makes_durable() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    rig.settle();
    rig.fill(&topic, 0, 2);
    rig.sync();
    let flushed = rig.store.watermarks().appended;
    while rig.store.watermarks().appended.get() / config().segment_size == 2 {
        rig.send(&topic, 0, "k", &[7; 1_000]);
    }
    let held = flush::unsynced(&rig.store.shared.log, flushed, rig.store.watermarks().appended);
    let bases: Vec<_> = held.iter().map(|segment| segment.base().get() >> 16).collect();
    assert_eq!(bases, [2, 3]);
    let all = rig.store.shared.log.segments();
    let unused: Vec<_> = all.iter().map(Segment::is_unused).collect();
    assert_eq!(unused, [true, true, false, false]);
}

/// Who let go of a deleted segment last waited for the file system to free it: mostly the flush worker, and with it all
/// who waited for a sync.
#[test]
fn who_still_reads_a_deleted_segment_does_not_have_to_free_it() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    rig.settle();
    rig.fill(&topic, 0, 3);
    let first = rig.store.shared.log.segment_at(PhysicalOffset::ZERO).unwrap();
    let slice = first.bytes(PhysicalOffset::new(8_192), 4).unwrap();
    let known = Arc::downgrade(&first);
    let (id, below) = (topic.id(), rig.store.watermarks().appended);
    let (before, queues, purged) = (Timestamp::ZERO, Vec::new(), PhysicalOffset::ZERO);
    rig.transition(&Transition::TopicExpired { id, below, before, queues, purged });
    rig.clean();
    let status = rig.store.status();
    assert_eq!((status.deleted_segments, status.spare_segments), (3, 2), "{status:?}");
    let name = FileKind::Segment.name(PhysicalOffset::ZERO);
    assert!(!rig.disk.paths().iter().any(|path| path.ends_with(&name)), "its file is unlinked");
    drop(first);
    rig.workers.as_mut().unwrap().clean.step();
    assert!(known.upgrade().is_some(), "there is a slice of it");
    drop(slice);
    assert!(known.upgrade().is_some(), "it was not freed with its last slice");
    rig.workers.as_mut().unwrap().clean.step();
    assert!(known.upgrade().is_none(), "the clean worker lets it go");
}

/// The look came before the seal, and the next one a minute later: so long sends were refused for want of space.
#[test]
fn while_space_is_short_what_is_dead_goes_as_soon_as_its_segment_is_sealed() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    rig.settle();
    while rig.store.watermarks().appended.get() <= config().segment_size {
        rig.send(&topic, 0, "k", &[7; 1_000]);
    }
    rig.disk.set_capacity(Some(1 << 20));
    rig.clock.advance(Duration::from_secs(2));
    // It says at once that there is no room for another segment.
    rig.workers.as_mut().unwrap().allocate.step();
    let (id, below) = (topic.id(), rig.store.watermarks().appended);
    let (before, queues) = (Timestamp::ZERO, Vec::new());
    rig.transition(&Transition::TopicExpired {
        id,
        below,
        before,
        queues,
        purged: PhysicalOffset::ZERO,
    });
    rig.store.clean_soon();
    while rig.workers.as_mut().unwrap().clean.step() == Progress::Worked {}
    let status = rig.store.status();
    assert!(status.disk_is_short && status.unsealed == 2, "{status:?}");
    rig.settle();
    assert_eq!(rig.store.status().deleted_segments, 1, "{:?}", rig.store.status());
}

#[test]
fn no_image_is_written_that_no_start_would_read() {
    assert!(image::check_len(MAX_SNAPSHOT).is_ok());
    let refused = image::check_len(MAX_SNAPSHOT + 1);
    assert!(matches!(refused, Err(AppendError::TooLarge { max: MAX_SNAPSHOT, .. })));
}

/// While an image waited for room nothing was looked at, so what would have made the room stayed for good.
#[test]
fn while_an_image_waits_for_room_what_lies_before_the_last_one_goes() {
    let mut rig = Rig::open(SimDisk::new());
    let [first, second, third] = [1, 2, 3].map(|id| rig.topic(id, 1, FlushMode::Async));
    for id in 100..300 {
        rig.topic(id, 1, FlushMode::Async);
    }
    let expire = |rig: &mut Rig, topic: &TopicHandle| {
        let (id, below) = (topic.id(), rig.store.watermarks().appended);
        let (before, queues) = (Timestamp::ZERO, Vec::new());
        rig.transition(&Transition::TopicExpired {
            id,
            below,
            before,
            queues,
            purged: PhysicalOffset::ZERO,
        });
        rig.clean();
    };
    rig.fill(&first, 0, 3);
    rig.fill(&second, 0, 2);
    // An image is taken for what is dead.
    rig.disk.set_capacity(Some(8 << 20));
    rig.clock.advance(Duration::from_secs(2));
    expire(&mut rig, &second);
    let status = rig.store.status();
    let (newest, deleted) = (status.newest_image.unwrap(), status.deleted_segments);
    assert!(deleted >= 1 && newest.get() > 4 * config().segment_size, "{status:?}");
    rig.disk.set_capacity(None);
    rig.clock.advance(Duration::from_secs(2));
    rig.settle();
    rig.fill(&third, 0, 2);

    // The next segment is the last one, and the state is too much for it.
    for id in 300..1_600 {
        rig.topic(id, 1, FlushMode::Async);
        rig.settle();
    }
    rig.disk.set_capacity(Some(1 << 20));
    rig.clock.advance(Duration::from_secs(2));
    rig.settle();
    let last = rig.store.status().segments + 1;
    while rig.store.status().segments < last {
        rig.store.append_one(NewRecord::state(vec![0; 800])).unwrap();
        rig.settle();
    }
    let appended = rig.store.watermarks().appended;
    rig.clean();
    assert_eq!(rig.store.watermarks().appended, appended, "no part of it is written");
    let images = rig.store.status().images;
    expire(&mut rig, &third);
    assert_eq!(rig.store.status().images, images, "there is no room for it");
    assert_eq!(rig.store.status().deleted_segments, deleted);
    // These lie before the image that there is.
    first.expire(newest, Timestamp::ZERO, &[]);
    rig.clean();
    assert!(rig.store.status().deleted_segments >= deleted + 2, "{:?}", rig.store.status());
    // And with room the other one is taken.
    rig.disk.set_capacity(None);
    rig.clock.advance(Duration::from_secs(2));
    rig.settle();
    assert!(rig.store.status().images > images, "{:?}", rig.store.status());
    rig.clean();
    assert!(rig.store.status().deleted_segments >= deleted + 4, "{:?}", rig.store.status());
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
