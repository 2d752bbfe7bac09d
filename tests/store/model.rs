//! The model, and the steps that are made on it and on a store alike.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstem::file::disk::{Disk, RealDisk};
use mainstem::format::batch::{Batch, BatchBuilder, BatchInfo, NewMeta, TagFilter, check};
use mainstem::format::state_record::Transition;
use mainstem::message::{
    FlushMode, MessageId, PhysicalOffset, QueueId, QueueOffset, Retention, Timestamp, TopicId,
    TopicSettings, TopicType,
};
use mainstem::store::{
    AppendError, Arrival, FindRequest, IncompleteReason, IndexKind, NewRecord, Order, Placed,
    ReadError, ReadOutcome, ReadRequest, StoreConfig, StoredRecord, TopicHandle,
};
use mainstem::testing::{CrashChoice, SimDisk, now};

use crate::rig::{DATA, Dice, Rig, created};

const KEYS: [&str; 6] = ["alpha", "beta", "gamma", "delta", "a", "b"];
const TAGS: [&str; 4] = ["red", "green", "blue", "red2"];

#[derive(Clone)]
struct Message {
    keys: Vec<&'static str>,
    id: Option<String>,
    tag: Option<&'static str>,
}

#[derive(Clone)]
struct Record {
    topic: u64,
    queue: u32,
    first: u64,
    messages: Vec<Message>,
    batch: Bytes,
    info: BatchInfo,
    placed: Placed,
}

impl Record {
    fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }
}

struct Topic {
    settings: TopicSettings,
    /// What was visible when the mode last went from async to sync.
    floor: PhysicalOffset,
    next: Vec<u64>,
    /// Purged: whole, below this place; queue by queue, below these offsets.
    below: PhysicalOffset,
    purged: Vec<u64>,
    /// Where queues were seen to begin.
    min: Vec<u64>,
}

type Parked = Pin<Box<dyn Future<Output = Arrival>>>;

/// A store and what it must show.
struct Model {
    dice: Dice,
    disk: Where,
    config: StoreConfig,
    rig: Option<Rig>,
    /// In log order.
    records: Vec<Record>,
    topics: BTreeMap<u64, Topic>,
    next_topic: u64,
    dead: Vec<Arc<TopicHandle>>,
    parked: Vec<(u64, u32, u64, Parked)>,
    sent: u64,
    wall: u64,
    highest_wall: u64,
    last_time: u64,
    epoch: u64,
    seen: Seen,
}

/// Proof that the interesting things happened.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    appended: u64,
    not_ready: u64,
    reads: u64,
    disk_reads: u64,
    pages: u64,
    rebuilding: u64,
    woken: u64,
    starts: u64,
    deleted: u64,
    segments: usize,
    /// Segments that went because nothing in them was alive.
    freed: u64,
    images: u64,
    /// Starts whose state came from an image alone.
    from_image: u64,
    /// Looks for an offset by time.
    by_time: u64,
    /// Offsets that were asked for and were gone.
    gone: u64,
}

enum Where {
    Simulated(SimDisk),
    Real(tempfile::TempDir),
}

impl Where {
    fn disk(&self) -> Arc<dyn Disk> {
        match self {
            Self::Simulated(disk) => Arc::new(disk.clone()),
            Self::Real(_) => Arc::new(RealDisk),
        }
    }

    fn dir(&self) -> PathBuf {
        match self {
            Self::Simulated(_) => DATA.into(),
            Self::Real(dir) => dir.path().join("store"),
        }
    }

    fn delete_derived(&self) {
        for dir in ["consumequeue", "index", "state"] {
            let path = self.dir().join(dir);
            for entry in self.disk().list(&path).unwrap() {
                self.disk().unlink(&path.join(entry.name)).unwrap();
            }
        }
        // There may be none yet.
        let _missing = self.disk().unlink(&self.dir().join("checkpoint"));
    }
}

impl Model {
    fn new(seed: u64, disk: Where) -> Self {
        let mut dice = Dice(seed);
        let config = StoreConfig {
            segment_size: dice.pick(&[16 << 10, 32 << 10, 64 << 10]),
            unsealed_memory: dice.pick(&[700, 3_000, 64 << 20]),
            hot_bytes: dice.pick(&[4 << 10, 24 << 10, 1 << 20]),
            ..StoreConfig::new(disk.dir())
        };
        let mut model = Self {
            dice,
            disk,
            config,
            rig: None,
            records: Vec::new(),
            topics: BTreeMap::new(),
            next_topic: 1,
            dead: Vec::new(),
            parked: Vec::new(),
            sent: 0,
            wall: 1_700_000_000_000,
            highest_wall: 1_700_000_000_000,
            last_time: 0,
            epoch: 0,
            seen: Seen::default(),
        };
        model.open();
        model
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    fn rig_mut(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap()
    }

    fn open(&mut self) {
        let rig = Rig::try_open(self.disk.disk(), &self.config, self.wall).unwrap();
        // The record of the start has a time too.
        self.last_time = self.last_time.max(self.wall);
        assert!(rig.store.status().damaged.is_empty());
        let report = rig.store.start_report();
        assert_eq!((report.damaged.len(), &report.cut), (0, &None), "{report}");
        self.epoch += 1;
        assert_eq!(rig.store.epoch().get(), self.epoch);
        let live: Vec<_> = rig
            .applier
            .live()
            .iter()
            .map(|transition| match transition {
                Transition::TopicCreated { id, settings, .. } => (id.get(), *settings),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected: Vec<_> =
            self.topics.iter().map(|(id, topic)| (*id, topic.settings)).collect();
        assert_eq!(live, expected);
        let from_image = report.remarks.iter().any(|remark| remark.contains("image"));
        self.seen.from_image += u64::from(from_image);
        for topic in self.topics.values_mut() {
            topic.floor = PhysicalOffset::ZERO;
        }
        self.seen.starts += 1;
        self.rig = Some(rig);
    }

    fn any_topic(&mut self) -> Option<(u64, u32)> {
        let ids: Vec<u64> = self.topics.keys().copied().collect();
        if ids.is_empty() {
            return None;
        }
        let id = self.dice.pick(&ids);
        let queues = self.topics[&id].next.len() as u64;
        Some((id, self.dice.below(queues) as u32))
    }

    fn visible_end(&self, topic: u64) -> PhysicalOffset {
        let marks = self.rig().store.watermarks();
        match self.topics[&topic].settings.flush {
            FlushMode::Sync => marks.flushed.max(self.topics[&topic].floor),
            FlushMode::Async => marks.appended,
        }
    }

    fn readable_end(&self, topic: u64) -> PhysicalOffset {
        self.visible_end(topic).min(self.rig().store.watermarks().dispatched)
    }

    /// One behind the last offset that a reader may have.
    fn max_offset(&self, topic: u64, queue: u32) -> u64 {
        let end = self.readable_end(topic);
        self.of_queue(topic, queue)
            .take_while(|record| record.placed.end <= end)
            .last()
            .map_or(0, Record::end)
    }

    fn of_queue(&self, topic: u64, queue: u32) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.topic == topic && record.queue == queue)
    }

    /// Before which store time messages of a topic are gone, as the store says; checked against what the clocks were.
    fn gone_before(&self, topic: u64) -> u64 {
        let handle = self.rig().topic(topic).unwrap();
        let (below, before) = self.rig().store.expired_now(&handle);
        assert_eq!(below, self.topics[&topic].below);
        let retention = self.topics[&topic].settings.retention.time_ms;
        let oldest = |now: u64| match retention {
            Some(ms) => (now - now % 1_000).saturating_sub(ms),
            None => 0,
        };
        let (_, floor, _) = handle.expired();
        let before = before.get();
        assert!(before >= oldest(self.last_time.max(self.wall)).max(floor.get()), "{before}");
        assert!(before <= oldest(self.highest_wall).max(floor.get()), "{before}");
        before
    }

    fn is_gone(&self, record: &Record, before: u64) -> bool {
        let topic = &self.topics[&record.topic];
        record.placed.offset < topic.below
            || record.placed.store_time.get() < before
            || record.end() <= topic.purged[record.queue as usize]
    }

    /// Where a queue begins.
    fn min_offset(&self, topic: u64, queue: u32) -> u64 {
        let before = self.gone_before(topic);
        let purged = self.topics[&topic].purged[queue as usize];
        let first = self.of_queue(topic, queue).find(|record| !self.is_gone(record, before));
        let next = self.topics[&topic].next[queue as usize];
        first.map_or(next, |record| record.first.max(purged)).min(self.max_offset(topic, queue))
    }

    /// The readable offsets, by the store and by the model; `None` while a file is being rebuilt.
    fn bounds(&mut self, topic: u64, queue: u32) -> Option<(u64, u64)> {
        let handle = self.rig().topic(topic).unwrap();
        let bounds = match now(self.rig().store.queue_bounds(&handle, QueueId::new(queue))).unwrap()
        {
            Ok(bounds) => (bounds.min.get(), bounds.max.get()),
            Err(ReadError::Rebuilding) => {
                self.seen.rebuilding += 1;
                self.rig_mut().workers.settle();
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let expected = (self.min_offset(topic, queue), self.max_offset(topic, queue));
        assert_eq!(bounds, expected, "queue {queue} of {topic}");
        Some(bounds)
    }

    // ---- steps

    fn step(&mut self) {
        match self.dice.below(104) {
            0..=34 => self.append(),
            35..=54 => self.work(),
            55..=69 => self.read(),
            70..=79 => self.find(),
            80..=82 => self.by_id(),
            83..=86 => self.park(),
            87 | 88 => self.turn_the_clock(),
            89..=91 => self.create(),
            92 => self.delete(),
            93 | 94 => self.ask_for_nonsense(),
            95 => self.restart(),
            96 => self.update(),
            97 => self.purge(),
            98 => self.clean(),
            99 => self.by_time(),
            _ => self.acknowledge(),
        }
        self.rig().marks_are_in_order();
        if let Some((topic, queue)) = self.any_topic() {
            let handle = self.rig().topic(topic).unwrap();
            let max = self.rig().store.queue_max(&handle, QueueId::new(queue));
            assert_eq!(max.get(), self.max_offset(topic, queue), "queue {queue} of {topic}");
            if let Some((min, _)) = self.bounds(topic, queue) {
                let seen = &mut self.topics.get_mut(&topic).unwrap().min[queue as usize];
                assert!(min >= *seen, "queue {queue} of {topic} began at {seen}, now at {min}");
                *seen = min;
            }
        }
        self.wake();
    }

    fn message(&mut self) -> Message {
        let keys = (0..self.dice.below(3)).map(|_| self.dice.pick(&KEYS)).collect();
        self.sent += 1;
        let id = (!self.dice.one_in(3)).then(|| format!("id-{}", self.sent / 2));
        let tag = (!self.dice.one_in(3)).then(|| self.dice.pick(&TAGS));
        Message { keys, id, tag }
    }

    fn new_record(&mut self, topic: u64, queue: u32, most: u64) -> (Record, NewRecord) {
        let count = if self.dice.one_in(3) { 1 + self.dice.below(5) } else { 1 };
        let mut builder = BatchBuilder::new();
        let mut messages = Vec::new();
        for _ in 0..count {
            let message = self.message();
            let len = self.dice.below(most / count) as usize;
            let meta = NewMeta {
                keys: message.keys.clone(),
                id: message.id.as_deref(),
                tag: message.tag,
                ..NewMeta::default()
            };
            builder.push(&meta, format!("{:0len$}", self.sent).as_bytes());
            messages.push(message);
        }
        let batch = builder.finish();
        let info = check(&batch).unwrap();
        let handle = self.rig().topic(topic).unwrap();
        let new = NewRecord::message(&handle, QueueId::new(queue), batch.clone(), &info);
        let placed = Placed {
            offset: PhysicalOffset::ZERO,
            end: PhysicalOffset::ZERO,
            queue_offset: QueueOffset::ZERO,
            store_time: Timestamp::ZERO,
            epoch: self.rig().store.epoch(),
        };
        (Record { topic, queue, first: 0, messages, batch, info, placed }, new)
    }

    fn append(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return self.create() };
        if self.dice.one_in(4) {
            let count = 1 + self.dice.below(4);
            let set: Vec<_> = (0..count)
                .map(|_| {
                    let (topic, queue) = self.any_topic().unwrap_or((topic, queue));
                    self.new_record(topic, queue, 600)
                })
                .collect();
            let (records, new): (Vec<_>, Vec<_>) = set.into_iter().unzip();
            let outcome = self.rig().store.append(new);
            self.appended(records, outcome);
        } else {
            let (record, new) = self.new_record(topic, queue, 3_000);
            let outcome = self.rig().store.append_one(new).map(|placed| vec![placed]);
            self.appended(vec![record], outcome);
        }
    }

    fn appended(&mut self, records: Vec<Record>, outcome: Result<Vec<Placed>, AppendError>) {
        let placed = match outcome {
            Ok(placed) => placed,
            Err(AppendError::NotReady) => return self.make_room(),
            Err(error) => panic!("{error}: {:?}", now(self.rig().store.failed())),
        };
        assert_eq!(placed.len(), records.len());
        for (mut record, placed) in records.into_iter().zip(placed) {
            self.stamped(placed);
            let next = &mut self.topics.get_mut(&record.topic).unwrap().next[record.queue as usize];
            assert_eq!(placed.queue_offset.get(), *next, "offsets without holes");
            assert_eq!(placed.epoch.get(), self.epoch);
            assert!(self.records.last().is_none_or(|last| last.placed.end <= placed.offset));
            record.first = *next;
            *next = record.end().max(*next + record.messages.len() as u64);
            record.placed = placed;
            self.records.push(record);
            self.seen.appended += 1;
        }
    }

    /// The store clock follows the wall and never steps back. A refused append may have moved it, too.
    fn stamped(&mut self, placed: Placed) {
        let time = placed.store_time.get();
        assert!(time >= self.last_time.max(self.wall), "{time}");
        assert!(time <= self.highest_wall, "{time}");
        self.last_time = time;
    }

    /// No room: the workers have something to do, and then there is.
    fn make_room(&mut self) {
        self.seen.not_ready += 1;
        if self.dice.one_in(3) {
            return;
        }
        self.rig_mut().workers.settle();
        assert_eq!(now(self.rig().store.space()), Some(Ok(())));
    }

    fn work(&mut self) {
        let which = self.dice.below(12);
        let workers = &mut self.rig_mut().workers;
        match which {
            0..=3 => {
                workers.dispatch.step();
            }
            4 | 5 => {
                workers.flush.step();
            }
            6 | 7 => workers.flush.flush_all(),
            8 | 9 => {
                workers.seal.step();
            }
            10 => {
                workers.allocate.step();
            }
            _ => workers.settle(),
        }
    }

    fn filter(&mut self) -> TagFilter {
        match self.dice.below(4) {
            0 => TagFilter::parse(self.dice.pick(&TAGS)).unwrap(),
            1 => TagFilter::parse("red || blue").unwrap(),
            _ => TagFilter::All,
        }
    }

    fn read(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return };
        let Some((min, max)) = self.bounds(topic, queue) else { return };
        let from = match self.dice.one_in(3) {
            true => self.dice.below(max + 3),
            false => min + self.dice.below(max - min + 3),
        };
        let before = self.gone_before(topic);
        let filter = Arc::new(self.filter());
        let max_messages = self.dice.pick(&[1, 3, 10, 1_000]);
        let max_bytes = self.dice.pick(&[1, 2_000, 10_000, 1 << 20]);
        let request = ReadRequest {
            topic: self.rig().topic(topic).unwrap(),
            queue: QueueId::new(queue),
            from: QueueOffset::new(from),
            max_messages,
            max_bytes,
            filter: Arc::clone(&filter),
        };
        let outcome = now(self.rig().store.read(request)).unwrap().unwrap();
        self.seen.reads += 1;
        let expected: Vec<&Record> = self
            .of_queue(topic, queue)
            .filter(|record| record.end() > from && record.end() <= max)
            .filter(|record| !self.is_gone(record, before))
            .filter(|record| {
                let BatchInfo { tag_bits, has_untagged, .. } = record.info;
                let may = filter.may_match(tag_bits, record.messages.len() > 1, has_untagged);
                let does = record.messages.iter().any(|message| filter.matches(message.tag));
                assert!(may || !does, "a filter never leaves out what matches");
                may
            })
            .collect();
        match outcome {
            ReadOutcome::OutOfRange { range } => {
                assert!(from > max || from < min);
                self.seen.gone += u64::from(from < min);
                assert_eq!((range.min.get(), range.max.get()), (min, max));
            }
            ReadOutcome::Empty { next, range } => {
                assert_eq!((expected.len(), next.get(), range.max.get()), (0, max, max));
            }
            ReadOutcome::Records { records, next, range } => {
                assert_eq!((range.min.get(), range.max.get()), (min, max));
                let (mut messages, mut bytes) = (0, 0);
                assert!(records.len() <= expected.len(), "more than there is");
                for (found, expected) in records.iter().zip(&expected) {
                    same(found, expected);
                    messages += expected.messages.len();
                    bytes += expected.placed.end.since(expected.placed.offset) as usize;
                }
                let is_within = messages <= max_messages && bytes <= max_bytes;
                assert!(records.len() == 1 || is_within, "limits of more than one record");
                let last = records.len() - 1;
                assert!(next.get() >= expected[last].end());
                let resumes = expected.get(last + 1).map_or(max, |record| record.first);
                assert!(next.get() <= resumes, "nothing is passed over");
            }
            ReadOutcome::Rebuilding => {
                self.seen.rebuilding += 1;
                self.rig_mut().workers.settle();
            }
            damaged @ ReadOutcome::Damaged { .. } => panic!("{damaged:?}"),
        }
        let oldest = self.rig().store.watermarks().appended.get();
        let hot = oldest.saturating_sub(self.config.hot_bytes);
        let is_cold =
            self.of_queue(topic, queue).any(|r| r.first == from && r.placed.offset.get() < hot);
        self.seen.disk_reads += u64::from(is_cold);
    }

    fn find(&mut self) {
        let Some((topic, _)) = self.any_topic() else { return };
        let (kind, text) = if self.dice.one_in(2) {
            (IndexKind::Key, self.dice.pick(&KEYS).to_owned())
        } else {
            (IndexKind::Id, format!("id-{}", self.dice.below(self.sent / 2 + 1)))
        };
        let (begin, end) = if self.dice.one_in(2) {
            (0, u64::MAX)
        } else {
            let times: Vec<u64> =
                self.records.iter().map(|record| record.placed.store_time.get()).collect();
            if times.is_empty() {
                return;
            }
            let (one, other) = (self.dice.pick(&times), self.dice.pick(&times));
            (one.min(other), one.max(other))
        };
        let order = self.dice.pick(&[Order::OldestFirst, Order::NewestFirst]);
        let limit = self.dice.pick(&[1, 2, 7, 1_000]);
        let readable = self.readable_end(topic);
        let before = self.gone_before(topic);
        let mut expected: Vec<(PhysicalOffset, u16)> = Vec::new();
        for record in self.records.iter().filter(|record| record.topic == topic) {
            let time = record.placed.store_time.get();
            let is_gone = self.is_gone(record, before);
            if record.placed.end > readable || time < begin || time > end || is_gone {
                continue;
            }
            for (index, message) in (0..).zip(&record.messages) {
                let matches = match kind {
                    IndexKind::Key => message.keys.contains(&&*text),
                    IndexKind::Id => message.id.as_deref() == Some(&text),
                };
                let purged = self.topics[&topic].purged[record.queue as usize];
                if matches && record.first + u64::from(index) >= purged {
                    expected.push((record.placed.offset, index));
                }
            }
        }
        if order == Order::NewestFirst {
            expected.reverse();
        }
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let request = FindRequest {
                topic: self.rig().topic(topic).unwrap(),
                kind,
                bytes: Bytes::from(text.clone()),
                begin: Timestamp::new(begin),
                end: Timestamp::new(end),
                order,
                limit,
                after,
            };
            let page = now(self.rig().store.find(request)).unwrap().unwrap();
            if !page.complete {
                assert_eq!(page.reason, Some(IncompleteReason::Rebuilding));
                self.seen.rebuilding += 1;
                self.rig_mut().workers.settle();
                return;
            }
            self.seen.pages += 1;
            assert!(page.messages.len() <= limit);
            found.extend(page.messages.iter().map(|found| (found.record.offset, found.index)));
            after = page.next;
            if after.is_none() {
                break;
            }
            // What comes between two pages does not shift them.
            if self.dice.one_in(4) {
                self.append();
                self.work();
            }
        }
        assert_eq!(
            found, expected,
            "{kind:?} {text} of topic {topic}, {order:?}, pages of {limit}"
        );
    }

    fn by_id(&mut self) {
        if self.records.is_empty() {
            return;
        }
        let index = self.dice.below(self.records.len() as u64) as usize;
        let record = &self.records[index];
        let place = index as u64 % record.messages.len() as u64;
        let id = MessageId {
            epoch: record.placed.epoch,
            offset: record.placed.offset,
            index: place as u16,
        };
        let found = self.rig().by_id(id);
        let is_readable = self.topics.contains_key(&record.topic)
            && record.placed.end <= self.readable_end(record.topic)
            && !self.is_gone(record, self.gone_before(record.topic))
            && record.first + place >= self.topics[&record.topic].purged[record.queue as usize];
        assert_eq!(found.is_some(), is_readable, "{id}");
        if let Some(found) = found {
            same(&found, record);
        }
        let wrong = MessageId { index: record.messages.len() as u16, ..id };
        assert!(self.rig().by_id(wrong).is_none());
        let inside = MessageId { offset: id.offset.plus(8), ..id };
        assert!(self.rig().by_id(inside).is_none());
    }

    /// Parks a reader behind what it can read.
    fn park(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return };
        let from = self.max_offset(topic, queue);
        let handle = self.rig().topic(topic).unwrap();
        let arrival =
            self.rig().store.arrival(&handle, QueueId::new(queue), QueueOffset::new(from));
        self.parked.push((topic, queue, from, Box::pin(arrival)));
    }

    /// Whoever can read something has been woken.
    fn wake(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for (topic, queue, from, mut arrival) in std::mem::take(&mut self.parked) {
            match arrival.as_mut().poll(&mut context) {
                Poll::Ready(Arrival::Readable) => self.seen.woken += 1,
                Poll::Ready(Arrival::Gone) => assert!(!self.topics.contains_key(&topic)),
                Poll::Ready(Arrival::Closed) => panic!("nobody closed the store"),
                Poll::Pending => {
                    assert!(self.topics.contains_key(&topic), "readers of a deleted topic go");
                    let max = self.max_offset(topic, queue);
                    assert!(max <= from, "a reader at {from} sleeps and could read up to {max}");
                    self.parked.push((topic, queue, from, arrival));
                }
            }
        }
    }

    fn turn_the_clock(&mut self) {
        match self.dice.below(4) {
            0 => self.wall = self.wall.saturating_sub(3_600_000),
            1 => self.wall += 31 * 24 * 3_600_000,
            _ => self.wall += self.dice.below(5_000),
        }
        let (wall, by) = (self.wall, self.dice.below(300));
        self.highest_wall = self.highest_wall.max(wall);
        self.rig().clock.advance(Duration::from_millis(by));
        self.rig().clock.set_wall(Timestamp::new(wall));
    }

    fn transition(&mut self, transition: &Transition) -> bool {
        match self.rig().state(transition) {
            Ok((placed, _)) => {
                self.stamped(placed);
                true
            }
            Err(AppendError::NotReady) => {
                self.make_room();
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn create(&mut self) {
        if self.topics.len() >= 4 {
            return;
        }
        let (id, queues) = (self.next_topic, 1 + self.dice.below(3) as u32);
        let flush = self.dice.pick(&[FlushMode::Sync, FlushMode::Async]);
        self.next_topic += 1;
        if self.transition(&created(id, queues, flush)) {
            let none = vec![0; queues as usize];
            self.topics.insert(
                id,
                Topic {
                    settings: TopicSettings::open(queues, flush, TopicType::Mixed),
                    floor: PhysicalOffset::ZERO,
                    next: none.clone(),
                    below: PhysicalOffset::ZERO,
                    purged: none.clone(),
                    min: none,
                },
            );
        }
    }

    /// More queues, another mode, another retention. What is gone by the old one stays gone.
    fn update(&mut self) {
        let Some((topic, _)) = self.any_topic() else { return };
        let settings = self.topics[&topic].settings;
        let time_ms = self.dice.pick(&[None, Some(1_000), Some(8_000), Some(40 * 24 * 3_600_000)]);
        let settings = TopicSettings {
            queues: settings.queues + u32::from(settings.queues < 5 && self.dice.one_in(2)),
            flush: self.dice.pick(&[FlushMode::Sync, FlushMode::Async]),
            retention: Retention { time_ms, bytes: None },
            ..settings
        };
        let before = Timestamp::new(self.gone_before(topic));
        let (id, below) = (TopicId::new(topic), PhysicalOffset::ZERO);
        let gone = Transition::TopicExpired { id, below, before, queues: vec![] };
        if !self.transition(&gone) {
            return;
        }
        let handle = self.rig().topic(topic).unwrap();
        let was_async = handle.flush() == FlushMode::Async;
        if self.transition(&Transition::TopicUpdated { id, settings }) {
            self.rig().store.wake_readers(&handle);
            let appended = self.rig().store.watermarks().appended;
            let known = self.topics.get_mut(&topic).unwrap();
            if was_async {
                known.floor = appended;
            }
            known.settings = settings;
            for list in [&mut known.next, &mut known.purged, &mut known.min] {
                list.resize(settings.queues as usize, 0);
            }
        }
    }

    fn purge(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return };
        let (id, mut queues) = (TopicId::new(topic), Vec::new());
        let mut below = PhysicalOffset::ZERO;
        if self.dice.one_in(3) {
            below = self.rig().store.watermarks().appended;
        } else {
            let upto = self.dice.below(self.max_offset(topic, queue) + 1);
            queues.push((QueueId::new(queue), QueueOffset::new(upto)));
        }
        let transition =
            Transition::TopicExpired { id, below, before: Timestamp::ZERO, queues: queues.clone() };
        if self.transition(&transition) {
            let known = self.topics.get_mut(&topic).unwrap();
            known.below = known.below.max(below);
            for (queue, upto) in queues {
                let purged = &mut known.purged[queue.get() as usize];
                *purged = (*purged).max(upto.get());
            }
        }
    }

    fn clean(&mut self) {
        self.rig().store.clean_soon();
        for _ in 0..self.dice.below(12) {
            self.rig_mut().workers.clean.step();
            if self.dice.one_in(4) {
                self.work();
            }
        }
    }

    /// The first offset stored then or later, for times of records, between them, before and behind all.
    fn by_time(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return };
        let Some((min, max)) = self.bounds(topic, queue) else { return };
        let times: Vec<u64> =
            self.records.iter().map(|record| record.placed.store_time.get()).collect();
        let some = if times.is_empty() { 0 } else { self.dice.pick(&times) };
        let time = self.dice.pick(&[0, some, some + 1, some.saturating_sub(1), u64::MAX]);
        let handle = self.rig().topic(topic).unwrap();
        let asked = self.rig().store.offset_at(&handle, QueueId::new(queue), Timestamp::new(time));
        let found = match now(asked).unwrap() {
            Ok(found) => found.get(),
            Err(ReadError::Rebuilding) => return self.rig_mut().workers.settle(),
            Err(error) => panic!("{error}"),
        };
        let late = self.of_queue(topic, queue).find(|record| {
            record.placed.store_time.get() >= time && record.end() > min && record.end() <= max
        });
        let expected = late.map_or(max, |record| record.first.max(min));
        assert_eq!(found, expected, "time {time} in queue {queue} of {topic}, {min} to {max}");
        self.seen.by_time += 1;
    }

    fn delete(&mut self) {
        let Some((topic, _)) = self.any_topic() else { return };
        let handle = self.rig().topic(topic).unwrap();
        handle.kill();
        if !self.transition(&Transition::TopicDeleted { id: TopicId::new(topic) }) {
            handle.unkill();
            return;
        }
        self.rig().store.end_arrivals(&handle);
        self.topics.remove(&topic);
        self.dead.push(handle);
        self.seen.deleted += 1;
    }

    fn ask_for_nonsense(&mut self) {
        let Some((topic, _)) = self.any_topic() else { return };
        let handle = self.rig().topic(topic).unwrap();
        let batch = crate::rig::batch(0, 1, 10);
        let info = check(&batch).unwrap();
        let record = |topic, queue| NewRecord::message(topic, queue, batch.clone(), &info);
        let queue = QueueId::new(handle.queues());
        match self.rig().store.append_one(record(&handle, queue)) {
            Err(AppendError::NoSuchQueue { queues }) => assert_eq!(queues, handle.queues()),
            other => panic!("{other:?}"),
        }
        if let Some(dead) = self.dead.last() {
            match self.rig().store.append_one(record(dead, QueueId::ZERO)) {
                Err(AppendError::Deleted) => {}
                other => panic!("{other:?}"),
            }
        }
        let max = self.rig().store.max_append_set();
        let big = crate::rig::batch(0, 1, max as usize);
        let info = check(&big).unwrap();
        match self.rig().store.append_one(NewRecord::message(&handle, QueueId::ZERO, big, &info)) {
            Err(AppendError::TooLarge { max: found, .. }) => assert_eq!(found, max),
            other => panic!("{other:?}"),
        }
    }

    /// An acknowledgement comes when what it is for is visible.
    fn acknowledge(&mut self) {
        let Some(last) = self.records.last().cloned() else { return };
        let Some(handle) = self.rig().topic(last.topic) else { return };
        let answer = now(self.rig().store.acknowledged(&handle, last.placed.end));
        let is_visible = last.placed.end <= self.visible_end(last.topic);
        assert_eq!(answer, is_visible.then_some(Ok(())));
        if now(self.rig().store.caught_up(&handle)).is_some() {
            let marks = self.rig().store.watermarks();
            assert!(marks.dispatched >= self.visible_end(last.topic));
        }
    }

    fn restart(&mut self) {
        self.parked.clear();
        self.dead.clear();
        let rig = self.rig.take().unwrap();
        let status = rig.store.status();
        self.seen.segments = self.seen.segments.max(status.segments);
        self.seen.freed += status.deleted_segments;
        self.seen.images += status.images;
        let is_clean = self.dice.one_in(2);
        if is_clean {
            rig.close();
        } else {
            rig.kill();
            if let Where::Simulated(disk) = &self.disk
                && self.dice.one_in(2)
            {
                self.disk = Where::Simulated(disk.crash_image(&CrashChoice::EVERYTHING));
            }
        }
        let is_bare = self.dice.one_in(4);
        if is_bare {
            self.disk.delete_derived();
        }
        self.open();
        assert_eq!(self.rig().store.start_report().clean, is_clean && !is_bare);
        let marks = self.rig().store.watermarks();
        assert!(marks.flushed == marks.appended || marks.dispatched < marks.appended);
        self.rig_mut().workers.dispatch.step();
    }

    /// Everything, when everything is done.
    fn compare(&mut self) {
        self.rig_mut().workers.settle();
        let marks = self.rig().store.watermarks();
        assert_eq!((marks.flushed, marks.dispatched), (marks.appended, marks.appended));
        for (id, topic) in &self.topics {
            let handle = self.rig().topic(*id).unwrap();
            for queue in 0..topic.next.len() as u32 {
                let found = self.rig().read_all(&handle, queue);
                let before = self.gone_before(*id);
                let expected: Vec<_> = self
                    .of_queue(*id, queue)
                    .filter(|record| !self.is_gone(record, before))
                    .collect();
                assert_eq!(found.len(), expected.len());
                found.iter().zip(expected).for_each(|(found, expected)| same(found, expected));
            }
        }
        assert!(self.rig().store.status().unsealed <= 3);
        self.seen.segments = self.seen.segments.max(self.rig().store.status().segments);
    }

    fn run(mut self, steps: usize) -> Seen {
        for _ in 0..steps {
            self.step();
        }
        self.compare();
        self.restart();
        self.compare();
        if let Where::Simulated(disk) = &self.disk {
            assert_eq!(disk.rewritten_under_readers(), 0, "what was published never changes");
        }
        self.seen
    }
}

fn same(found: &StoredRecord, expected: &Record) {
    assert_eq!(found.batch, expected.batch);
    assert_eq!(
        (
            found.offset,
            found.first_queue_offset.get(),
            found.message_count,
            found.store_time,
            found.epoch,
            found.queue.get(),
            found.topic.get()
        ),
        (
            expected.placed.offset,
            expected.first,
            expected.info.message_count,
            expected.placed.store_time,
            expected.placed.epoch,
            expected.queue,
            expected.topic
        )
    );
    assert_eq!(Batch::parse(&found.batch).unwrap().message_count(), found.message_count);
}

fn given_seed() -> Option<u64> {
    std::env::var("SEED").ok().map(|text| text.parse().unwrap())
}

fn simulated() -> Where {
    Where::Simulated(SimDisk::new())
}

#[test]
fn a_store_on_the_simulated_disk_shows_what_the_model_shows() {
    let mut total = Seen::default();
    let seeds = given_seed().map_or(0..150, |seed| seed..seed + 1);
    for seed in seeds {
        println!("SEED={seed}");
        let seen = Model::new(seed, simulated()).run(600);
        total.not_ready += seen.not_ready;
        total.rebuilding += seen.rebuilding;
        total.woken += seen.woken;
        total.disk_reads += seen.disk_reads;
        total.deleted += seen.deleted;
        total.starts += seen.starts;
        total.pages += seen.pages;
        total.appended += seen.appended;
        total.segments = total.segments.max(seen.segments);
        total.freed += seen.freed;
        total.images += seen.images;
        total.from_image += seen.from_image;
        total.by_time += seen.by_time;
        total.gone += seen.gone;
    }
    println!("{total:?}");
    if given_seed().is_none() {
        let Seen { not_ready, rebuilding, woken, disk_reads, deleted, starts, segments, .. } =
            total;
        let Seen { freed, images, from_image, by_time, gone, .. } = total;
        for (what, count) in [
            ("appends without room", not_ready),
            ("answers while rebuilding", rebuilding),
            ("readers woken", woken),
            ("reads of cold records", disk_reads),
            ("topics deleted", deleted),
            ("starts", starts),
            ("segments", segments as u64),
            ("segments deleted", freed),
            ("images taken", images),
            ("starts from an image", from_image),
            ("offsets by time", by_time),
            ("reads of what is gone", gone),
        ] {
            assert!(count > 10, "{what}: {count}");
        }
    }
}

#[test]
fn a_store_on_the_real_disk_shows_what_the_model_shows() {
    for seed in given_seed().map_or(1_000..1_008, |seed| seed..seed + 1) {
        println!("SEED={seed}");
        Model::new(seed, Where::Real(tempfile::tempdir().unwrap())).run(400);
    }
}

#[test]
fn random_cases_for_as_long_as_asked() {
    let minutes: f64 =
        std::env::var("FAULT_MINUTES").ok().map_or(0.0, |text| text.parse().unwrap());
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    let mut seed = u64::from_le_bytes(bytes) >> 1;
    while Instant::now() < until {
        println!("SEED={seed}");
        Model::new(seed, simulated()).run(600);
        seed += 1;
    }
}
