//! What the benches have in common: a store, batches to append to it, and the plain file that stands for the control.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mainstem::clock::SystemClock;
use mainstem::file::disk::{Access, Disk, RealDisk};
use mainstem::file::segment::Prefill;
use mainstem::format::batch::{BatchBuilder, BatchInfo, NewMeta, check};
use mainstem::format::crc32c;
use mainstem::format::record::record_len;
use mainstem::format::state_record::Transition;
use mainstem::message::{FlushMode, QueueId, TopicId, TopicSettings, TopicType};
use mainstem::store::{
    AppendError, NewRecord, Placed, Progress, Store, StoreConfig, TopicHandle, Workers,
};
use mainstem::testing::TopicsOnly;

/// Queues of the benches' topic.
pub(crate) const QUEUES: u32 = 4;

/// A store with one topic, or more.
pub(crate) struct Rig {
    pub(crate) store: Store,
    pub(crate) topic: Arc<TopicHandle>,
    /// Of a stepped store.
    pub(crate) workers: Option<Workers>,
    pub(crate) config: StoreConfig,
    applier: Arc<TopicsOnly>,
    /// The segment, counted from the log's begin, that was active at the last rest.
    segment: u64,
}

/// Who runs the workers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drive {
    /// The bench, between slices.
    Stepped,
    /// The store's own threads.
    Threads,
}

/// A configuration whose bounds do not stop a stepped store between two rests.
pub(crate) fn config(dir: &Path, segment_size: u64) -> StoreConfig {
    StoreConfig { segment_size, max_unflushed: 4 << 30, ..StoreConfig::new(dir) }
}

impl Rig {
    /// Opens a new store.
    pub(crate) fn open(config: StoreConfig, drive: Drive, flush: FlushMode) -> Self {
        let applier = Arc::new(TopicsOnly::default());
        let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
        let (store, workers) = match drive {
            Drive::Stepped => {
                let opened = Store::open_stepped(disk, clock, config.clone(), applier.clone());
                let (store, workers) = opened.expect("the store opens");
                (store, Some(workers))
            }
            Drive::Threads => {
                let opened = Store::open(disk, clock, config.clone(), applier.clone());
                (opened.expect("the store opens").0, None)
            }
        };
        let settings = TopicSettings::open(QUEUES, flush, TopicType::Mixed);
        let topic = make_topic(&store, &applier, TopicId::new(1), settings);
        let mut rig = Self { store, topic, workers, config, applier, segment: 0 };
        rig.rest();
        rig
    }

    /// Makes so many topics, and stores a message of 100 bytes in each of their queues: one queue of each topic after
    /// the other, so that every segment has queues of all topics.
    pub(crate) fn fill_queues(
        &mut self,
        topics: u32,
        settings: TopicSettings,
    ) -> Vec<Arc<TopicHandle>> {
        let topics: Vec<_> = (2..)
            .take(topics as usize)
            .map(|id| make_topic(&self.store, &self.applier, TopicId::new(id), settings))
            .collect();
        let batch = Prepared::new(1, 100, None);
        for queue in (0..settings.queues).map(QueueId::new) {
            for topic in &topics {
                let record = NewRecord::message(topic, queue, batch.bytes.clone(), &batch.info);
                append_patiently(&self.store, record);
            }
            self.rest();
        }
        topics
    }

    /// Deletes the topic that [`Rig::record`] is for.
    pub(crate) fn delete_topic(&self) {
        let mut payload = Vec::new();
        Transition::TopicDeleted { id: self.topic.id() }.encode_into(&mut payload);
        let placed = self.store.append_one(NewRecord::state(payload.clone()));
        let end = placed.expect("the deletion is stored").end;
        self.applier.applied(self.store.topics(), &payload, end).expect("the deletion is sound");
    }

    /// A record of `batch` for a queue, checksum included.
    pub(crate) fn record(&self, queue: u32, batch: &Prepared) -> NewRecord {
        NewRecord::message(&self.topic, QueueId::new(queue), batch.bytes.clone(), &batch.info)
    }

    /// Lets the workers of a stepped store do what is due, so that the next slice meets none of it.
    pub(crate) fn rest(&mut self) {
        let Some(workers) = &mut self.workers else { return };
        workers.allocate.step();
        while workers.dispatch.step() == Progress::Worked {}
        let segment = self.store.watermarks().appended.get() / self.config.segment_size;
        if segment != self.segment {
            self.segment = segment;
            workers.settle();
        }
    }
}

/// Appends, and waits where the store has no room yet. Answers how often it waited.
pub(crate) fn append_patiently(store: &Store, record: NewRecord) -> (Placed, u64) {
    let mut waits = 0;
    loop {
        match store.append_one(record.clone()) {
            Ok(placed) => return (placed, waits),
            Err(AppendError::NotReady) => {
                waits += 1;
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                let space = runtime.expect("a runtime starts").block_on(store.space());
                space.expect("there will be space");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn make_topic(
    store: &Store,
    applier: &TopicsOnly,
    id: TopicId,
    settings: TopicSettings,
) -> Arc<TopicHandle> {
    let name = format!("bench-{id}");
    let mut payload = Vec::new();
    Transition::TopicCreated { id, name, settings }.encode_into(&mut payload);
    let placed = store.append_one(NewRecord::state(payload.clone())).expect("the topic is stored");
    applier.applied(store.topics(), &payload, placed.end).expect("the topic is sound");
    store.topics().get(id).expect("the topic is known")
}

/// A batch as a sender has it in hand.
#[derive(Clone)]
pub(crate) struct Prepared {
    pub(crate) bytes: Bytes,
    pub(crate) info: BatchInfo,
}

impl Prepared {
    /// `messages` with a body of `body_len` bytes each, and a key each if `first_key` says from which number on.
    pub(crate) fn new(messages: usize, body_len: usize, first_key: Option<u64>) -> Self {
        let body: Vec<u8> = (0..body_len).map(|at| (at * 31 + at / 251) as u8).collect();
        let mut batch = BatchBuilder::new();
        for message in 0..messages {
            let key = first_key.map(|first| key(first + message as u64));
            let meta = NewMeta { keys: key.as_deref().into_iter().collect(), ..NewMeta::default() };
            batch.push(&meta, &body);
        }
        let bytes = batch.finish();
        let info = check(&bytes).expect("the batch is sound");
        Self { bytes, info }
    }

    /// Bytes of its record.
    pub(crate) fn record_len(&self) -> u64 {
        record_len(0, self.bytes.len())
    }
}

/// The key of a number.
pub(crate) fn key(number: u64) -> String {
    format!("order-{number:010}")
}

/// A file like a segment: as long, written from its begin to its end, again and again.
pub(crate) struct PlainFile {
    file: File,
    path: PathBuf,
    len: u64,
    prefill: Prefill,
    next: Mutex<u64>,
}

impl PlainFile {
    /// Makes it: real blocks, zeros if wanted, synced.
    pub(crate) fn new(dir: &Path, len: u64, prefill: Prefill) -> Self {
        let path = dir.join("plain");
        let made = RealDisk.create(&path).expect("the file is made");
        made.allocate(len).expect("the file gets its blocks");
        let file = File::options().read(true).write(true).open(&path).expect("the file opens");
        if prefill == Prefill::Zeros {
            let zeros = vec![0; 64 << 10];
            for position in (0..len).step_by(zeros.len()) {
                file.write_all_at(&zeros, position).expect("zeros are written");
            }
        }
        file.sync_all().expect("the file is synced");
        Self { file, path, len, prefill, next: Mutex::new(0) }
    }

    /// Makes room for `bytes` more: back to the begin if they do not fit, all of it as a new segment is.
    pub(crate) fn rest(&self, bytes: u64) {
        let mut next = self.next.lock().expect("no writer panicked");
        if *next + bytes > self.len {
            if self.prefill == Prefill::Blocks {
                self.file.set_len(0).expect("the file gives its blocks back");
                let same = RealDisk.open(&self.path, Access::ReadWrite).expect("the file opens");
                same.allocate(self.len).expect("the file gets its blocks");
            }
            self.sync();
            *next = 0;
        }
    }

    /// Computes the checksum of `bytes` and writes them at the next offset.
    pub(crate) fn append(&self, bytes: &[u8]) {
        std::hint::black_box(crc32c(std::hint::black_box(bytes)));
        let at = {
            let mut next = self.next.lock().expect("no writer panicked");
            *next += bytes.len() as u64;
            *next - bytes.len() as u64
        };
        self.file.write_all_at(bytes, at).expect("the bytes are written");
    }

    /// Syncs it.
    pub(crate) fn sync(&self) {
        self.file.sync_data().expect("the file is synced");
    }

    /// Fills `buffer` from `at`.
    pub(crate) fn read(&self, buffer: &mut [u8], at: u64) {
        self.file.read_exact_at(buffer, at).expect("the bytes are read");
    }

    /// Forgets its cached pages.
    pub(crate) fn drop_cache(&self) {
        let file = RealDisk.open(&self.path, Access::Read);
        file.expect("the file opens").drop_cache(0..u64::MAX).expect("the cache is dropped");
    }
}

/// Runs `each` on `threads` threads at once, or here if there is one; ends when all have ended.
pub(crate) fn on_threads(threads: u32, each: impl Fn(u32) + Sync) {
    if threads == 1 {
        return each(0);
    }
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let each = &each;
            scope.spawn(move || each(thread));
        }
    });
}
