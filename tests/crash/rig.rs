//! A store stepped by hand, and what a client does with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use mainstem::file::disk::Disk;
use mainstem::format::batch::{BatchBuilder, NewMeta, TagFilter, check};
use mainstem::format::state_record::Transition;
use mainstem::message::{
    FlushMode, MessageId, QueueId, QueueOffset, SessionMark, Timestamp, TopicId, TopicSettings,
    TopicType,
};
use mainstem::store::{
    AppendError, FindRequest, Found, IndexKind, NewRecord, OpenError, Order, Placed, ReadError,
    ReadOutcome, ReadRequest, Store, StoreConfig, StoredRecord, TopicHandle, Workers,
};
use mainstem::testing::{ManualClock, SimDisk, TopicsOnly, now};

/// The data directory on the simulated disk.
pub(crate) const DATA: &str = "/data";

/// Segments of four pages and little memory: everything rolls.
pub(crate) fn tiny() -> StoreConfig {
    StoreConfig { segment_size: 16 << 10, hot_bytes: 24 << 10, ..StoreConfig::new(DATA) }
}

/// The same, on a disk that may be filled to its last byte.
pub(crate) fn no_reserve() -> StoreConfig {
    StoreConfig { disk_reserve: 0, ..tiny() }
}

/// Splitmix64.
#[derive(Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// An open store.
pub(crate) struct Rig {
    pub(crate) applier: Arc<TopicsOnly>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Store,
    pub(crate) workers: Workers,
}

impl Rig {
    pub(crate) fn try_open(
        disk: Arc<dyn Disk>,
        config: &StoreConfig,
        wall: u64,
    ) -> Result<Self, OpenError> {
        let clock = Arc::new(ManualClock::new(Timestamp::new(wall)));
        let applier = Arc::new(TopicsOnly::default());
        let (store, workers) =
            Store::open_stepped(disk, clock.clone(), config.clone(), applier.clone())?;
        Ok(Self { applier, clock, store, workers })
    }

    pub(crate) fn open(disk: &SimDisk) -> Self {
        Self::try_open(Arc::new(disk.clone()), &tiny(), 1_000_000).unwrap()
    }

    /// Ends it as `kill -9` does: nothing is written any more.
    pub(crate) fn kill(self) {
        drop(self);
    }

    pub(crate) fn close(self) {
        let Self { store, workers, .. } = self;
        store.close_stepped(workers).unwrap();
    }

    pub(crate) fn topic(&self, id: u64) -> Option<Arc<TopicHandle>> {
        self.store.topics().get(TopicId::new(id))
    }

    /// Appends transitions and applies them, as a broker does.
    pub(crate) fn state(&self, transition: &Transition) -> Result<(Placed, Bytes), AppendError> {
        let mut payload = Vec::new();
        transition.encode_into(&mut payload);
        let placed = self.store.append_one(NewRecord::state(payload.clone()))?;
        self.applier.applied(self.store.topics(), &payload, placed.end).unwrap();
        Ok((placed, payload.into()))
    }

    pub(crate) fn create(&self, id: u64, queues: u32, flush: FlushMode) -> Arc<TopicHandle> {
        self.state(&created(id, queues, flush)).unwrap();
        self.topic(id).unwrap()
    }

    pub(crate) fn send(
        &self,
        topic: u64,
        queue: u32,
        batch: &Bytes,
    ) -> Result<Placed, AppendError> {
        self.store.append_one(self.record(topic, queue, batch))
    }

    pub(crate) fn record(&self, topic: u64, queue: u32, batch: &Bytes) -> NewRecord {
        let info = check(batch).unwrap();
        let topic = self.topic(topic).expect("the script's topic");
        NewRecord::message(&topic, QueueId::new(queue), batch.clone(), &info)
    }

    /// A batch of the script's producer session.
    pub(crate) fn send_in_session(
        &self,
        topic: u64,
        queue: u32,
        batch: &Bytes,
        mark: &SessionMark,
    ) -> Result<Placed, AppendError> {
        let info = check(batch).unwrap();
        let topic = self.topic(topic).expect("the script's topic");
        let (queue, batch) = (QueueId::new(queue), batch.clone());
        self.store.append_one(NewRecord::message_in_session(&topic, queue, batch, &info, mark))
    }

    pub(crate) fn read(
        &self,
        topic: &Arc<TopicHandle>,
        queue: u32,
        from: u64,
        max_messages: usize,
    ) -> ReadOutcome {
        self.try_read(topic, queue, from, max_messages).unwrap()
    }

    pub(crate) fn try_read(
        &self,
        topic: &Arc<TopicHandle>,
        queue: u32,
        from: u64,
        max_messages: usize,
    ) -> Result<ReadOutcome, ReadError> {
        let request = ReadRequest {
            topic: Arc::clone(topic),
            queue: QueueId::new(queue),
            from: QueueOffset::new(from),
            max_messages,
            max_bytes: 1 << 20,
            filter: Arc::new(TagFilter::All),
        };
        now(self.store.read(request)).expect("a stepped read answers at once")
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        now(self.store.failed()).is_some()
    }

    /// Where a queue begins.
    pub(crate) fn min(&self, topic: &Arc<TopicHandle>, queue: u32) -> Result<u64, ReadError> {
        let bounds = self.store.queue_bounds(topic, QueueId::new(queue));
        now(bounds).expect("a stepped look answers at once").map(|bounds| bounds.min.get())
    }

    /// All records of a queue from its begin to its end, of which none is damaged.
    pub(crate) fn read_all(&self, topic: &Arc<TopicHandle>, queue: u32) -> Vec<StoredRecord> {
        let (mut all, mut from) = (Vec::<StoredRecord>::new(), self.min(topic, queue).unwrap());
        loop {
            match self.read(topic, queue, from, 1_000) {
                ReadOutcome::Records { records, next, .. } => {
                    all.extend(records);
                    from = next.get();
                }
                ReadOutcome::Empty { next, range } => {
                    assert_eq!((next.get(), range.max.get()), (from, from), "the end of the queue");
                    return all;
                }
                other => panic!("queue {queue} of {} at {from}: {other:?}", topic.id()),
            }
        }
    }

    pub(crate) fn find(
        &self,
        topic: &Arc<TopicHandle>,
        kind: IndexKind,
        text: &str,
        order: Order,
    ) -> Found {
        self.try_find(topic, kind, text, order).unwrap()
    }

    pub(crate) fn try_find(
        &self,
        topic: &Arc<TopicHandle>,
        kind: IndexKind,
        text: &str,
        order: Order,
    ) -> Result<Found, ReadError> {
        let request = FindRequest {
            topic: Arc::clone(topic),
            kind,
            bytes: Bytes::copy_from_slice(text.as_bytes()),
            begin: Timestamp::ZERO,
            end: Timestamp::new(u64::MAX),
            order,
            limit: 10_000,
            after: None,
        };
        now(self.store.find(request)).expect("a stepped query answers at once")
    }

    pub(crate) fn by_id(&self, id: MessageId) -> Option<StoredRecord> {
        now(self.store.by_id(id)).expect("a stepped read answers at once").unwrap()
    }

    pub(crate) fn marks_are_in_order(&self) {
        let marks = self.store.watermarks();
        assert!(marks.flushed <= marks.appended, "{marks:?}");
        assert!(marks.dispatched <= marks.appended, "{marks:?}");
    }
}

pub(crate) fn created(id: u64, queues: u32, flush: FlushMode) -> Transition {
    Transition::TopicCreated {
        id: TopicId::new(id),
        name: format!("t{id}"),
        settings: TopicSettings::open(queues, flush, TopicType::Mixed),
    }
}

/// A batch of `count` messages of `len` bytes each: message `n` has the key `k<n % 5>`, the id `i<n>` and a tag or none.
pub(crate) fn batch(first: u64, count: u64, len: usize) -> Bytes {
    let mut builder = BatchBuilder::new();
    for n in first..first + count {
        let (key, id, tag) = (format!("k{}", n % 5), format!("i{n}"), format!("tag{}", n % 3));
        let meta = NewMeta {
            keys: vec![&key],
            id: Some(&id),
            tag: (n % 3 != 2).then_some(&*tag),
            ..NewMeta::default()
        };
        builder.push(&meta, format!("{n:0len$}").as_bytes());
    }
    builder.finish()
}

/// A file of the data directory.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DATA).join(name)
}

pub(crate) fn base(file: &Path) -> u64 {
    file.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

/// The files of a directory of the data directory, but those that may become another one.
pub(crate) fn files(disk: &SimDisk, dir: &str) -> Vec<PathBuf> {
    let dir = path(dir);
    let is_in =
        |path: &PathBuf| path.parent() == Some(&dir) && path.extension() != Some("tmp".as_ref());
    disk.paths().into_iter().filter(is_in).collect()
}
