//! Makes the log and what is derived from it a store; owns every storage thread.
//!
//! | thread | runs | woken by |
//! | --- | --- | --- |
//! | `mainstem-dispatch` | [`DispatchWorker::step`] | an append while somebody waits or much is undispatched; else every 10 ms |
//! | `mainstem-flush` | [`FlushWorker::step`] | who waits for durability; else the flush interval |
//! | `mainstem-seal` | [`SealWorker::step`] | a finished segment, a read that misses a file |
//! | `mainstem-allocate` | [`AllocateWorker::step`] | a roll |
//! | `mainstem-clean` | [`CleanWorker::step`] | what makes messages gone; else every second |
//! | `mainstem-scrub` | [`ScrubWorker::step`] | its own rate |
//! | `mainstem-read-N` | reads that may wait for a disk | a queue |
//!
//! Append runs on its caller. A worker is a step function; its thread is a loop around it, and a test calls the steps
//! in an order of its own. All threads end in [`Store::close`] or with the last handle.
//!
//! Locks, in the order in which they may be taken: dispatcher → (queue and index shards); deletions → append; all
//! others are leaves.

mod allocate;
mod append;
mod applier;
mod arrivals;
mod checkpoint;
mod clean;
mod cold;
mod config;
mod damage;
mod dispatch;
mod diverge;
mod dump;
mod error;
mod flush;
mod image;
mod min;
pub mod offline;
mod open;
mod pins;
mod query;
mod ranges;
mod read;
mod rebuild;
mod recover;
mod repair;
mod scrub;
mod seal;
mod signal;
mod spares;
mod status;
#[cfg(test)]
mod tests;
mod topics;
mod verify;
mod waiters;
mod watermarks;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::ops::Range;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use self::append::{Class, Tail};
use self::cold::ReadPool;
use self::damage::Damage;
use self::dispatch::Dispatcher;
use self::min::Begins;
use self::open::Threads;
use self::pins::Pins;
use self::ranges::Ranges;
use self::read::{Gone, May};
pub(crate) use self::signal::Signal;
use self::spares::Spares;
use self::waiters::{ArrivalWaiters, PositionWaiters};
use self::watermarks::Marks;
use crate::clock::{Clock, SteadyClock, StoreClock};
use crate::file::disk::Disk;
use crate::file::segment::Segment;
use crate::format::identity::Identity;
use crate::log::commit_log::CommitLog;
use crate::log::consume_queue::{ConsumeQueues, Lookup, Trail};
use crate::log::index::{Coverage, Indexes};
use crate::log::paged::SealedError;
use crate::message::{
    Epoch, MessageId, PhysicalOffset, QueueId, QueueKey, QueueOffset, Timestamp, TopicId,
    TopicSettings,
};
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, fence, lock};

pub use self::allocate::AllocateWorker;
pub use self::append::{NewRecord, Placed};
pub use self::applier::{Applier, StateSnapshot};
pub use self::arrivals::Arrivals;
pub use self::clean::CleanWorker;
pub use self::config::StoreConfig;
pub use self::dispatch::DispatchWorker;
pub use self::diverge::Diverged;
pub use self::dump::{Content, Dump, Dumped, DumpedMessage};
pub use self::error::{AppendError, CloseError, OpenError, ReadError, SpaceError};
pub use self::flush::FlushWorker;
pub use self::open::Workers;
pub use self::query::{FindCursor, FindRequest, Found, FoundMessage, IncompleteReason};
use self::read::Bounds;
pub use self::read::{Ahead, QueueRange, ReadOutcome, ReadRequest, StoredRecord};
pub use self::rebuild::{Derived, RebuildError, RebuildStep, Rebuilt, rebuild};
#[cfg(test)]
pub(crate) use self::recover::MAX_SNAPSHOT;
pub use self::recover::{ReportLine, StartReport, TailCut};
pub use self::repair::{
    Adopted, Adoption, Lose, RepairError, RepairMode, RepairOrder, RepairStep, Repaired, repair,
};
pub use self::scrub::ScrubWorker;
pub use self::seal::SealWorker;
pub use self::signal::Progress;
pub(crate) use self::status::StoreMetrics;
pub use self::status::{HeldBy, StoreStatus, Unfinished};
pub use self::topics::{TopicHandle, Topics};
pub use self::verify::{Finding, FindingKind, Verified, Verifier, VerifySummary};
pub use self::waiters::Arrival;
pub use self::watermarks::Watermarks;
pub use crate::format::index::IndexKind;
pub use crate::log::index::Order;

/// At most so many segments are finished and not sealed; appends wait at the end of the next.
const MAX_UNSEALED: usize = 2;

/// The store failed or was closed before the position was durable: it may be stored or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("store is poisoned by a failed sync, or closed")]
pub struct Poisoned;

/// What all handles and workers share.
pub(crate) struct Shared {
    config: StoreConfig,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    store_clock: StoreClock,
    steady_clock: SteadyClock,
    applier: Arc<dyn Applier>,
    identity: Arc<Identity>,
    index_seed: u64,
    epoch: Epoch,
    /// What this process appended begins here: read in place. What was found is read from the disk.
    own_from: PhysicalOffset,
    /// Bytes whose segments were deleted, or are about to be.
    deleted: Ranges,
    /// Held while the record that says so is appended: a snapshot contains either both or none, and then replays the
    /// record. Taken before the append lock.
    recording_deletions: Mutex<()>,
    /// Bytes that an operator gave up.
    lost: Ranges,
    begins: Begins,
    pins: Pins,
    /// Where the newest durable image begins; [`clean::NO_IMAGE`] without one.
    newest_image: AtomicU64,
    /// What the image under way still takes of the log. Changed under the append lock, or by its end.
    room_for_image: AtomicU64,
    /// Begin of the last segment in which an image found no room; [`clean::NO_IMAGE`] without one.
    no_image_fits: AtomicU64,
    /// Damage that this start met may have taken state records: what is unknown may exist.
    state_may_be_missing: bool,
    /// Which topics keep sealed segments, as the clean worker found it last.
    held: Mutex<Vec<HeldBy>>,
    /// What stays for open messages, as the clean worker found it last.
    unfinished: Mutex<Unfinished>,
    /// The topic that the log was last said to be kept by.
    warned_of: Mutex<Option<TopicId>>,
    /// Less is free than `disk_reserve`. Relaxed: a sender that races with a change may see either.
    disk_is_short: AtomicBool,
    /// Something became gone: the clean worker looks at messages at once.
    clean_asked: AtomicBool,
    damage: Damage,
    log: CommitLog,
    queues: ConsumeQueues,
    indexes: Indexes,
    topics: Topics,
    marks: Marks,

    tail: Mutex<Tail>,
    dispatcher: Mutex<Dispatcher>,
    /// The next segment, made ahead.
    ready: ArcSwapOption<Segment>,
    spares: Spares,
    /// Why there is no next segment, after a failed attempt.
    no_space: Mutex<Option<SpaceError>>,
    /// A segment whose missing files a read asked for.
    wanted: Mutex<Option<PhysicalOffset>>,
    /// Segments whose files cannot be made again.
    given_up: Mutex<Vec<PhysicalOffset>>,
    /// Places that the disk does not give, and how often in a row.
    refused: Mutex<HashMap<(PhysicalOffset, read::Extent), u32>>,
    /// Whether there are any: a hint that spares reads the lock.
    any_refused: AtomicBool,
    /// What reads left to those that follow: for as many as went on at a time. Not held while one does.
    nearby: Mutex<Vec<read::Nearby>>,
    /// Queues of sync topics that somebody waits for, whose entries are dispatched and not flushed: by the end of the
    /// first.
    unflushed_arrivals: Mutex<dispatch::Unflushed>,
    /// Whether a topic is watched.
    is_watched: AtomicBool,
    /// How many wait for what is told of watched topics.
    hurried: AtomicUsize,

    arrivals: ArrivalWaiters,
    flush_waiters: PositionWaiters,
    dispatch_waiters: PositionWaiters,
    space: Notify,
    dispatch_signal: Signal,
    flush_signal: Signal,
    seal_signal: Signal,
    allocate_signal: Signal,
    clean_signal: Signal,
    scrub_signal: Signal,

    /// The flush worker sleeps until something is appended.
    flush_is_idle: AtomicBool,
    /// One-way: a sync failed.
    poisoned: AtomicBool,
    poison_reason: Mutex<Option<String>>,
    failed: Notify,
    closed: AtomicBool,
    draining: AtomicBool,
    stopping: AtomicBool,
    metrics: StoreMetrics,
}

impl Shared {
    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The store time of this moment; no record gets an earlier one from now on.
    fn store_time(&self) -> Timestamp {
        self.store_clock.stamp(self.clock.now())
    }

    /// A sync failed: nothing that is not flushed may be assumed stored, ever. Who waits is told that nobody knows.
    fn poison(&self, reason: &str) {
        if !self.poisoned.swap(true, Ordering::SeqCst) {
            tracing::error!(reason, "the store is poisoned; nothing is stored any more");
            *lock(&self.poison_reason) = Some(reason.to_owned());
        }
        self.flush_waiters.stop();
        self.dispatch_waiters.stop();
        self.arrivals.end_where(|_| true, Arrival::Closed);
        self.space.notify_waiters();
        self.failed.notify_waiters();
    }

    fn lookup_on_disk(
        &self,
        key: QueueKey,
        from: QueueOffset,
        out: &mut Vec<crate::format::consume_queue::QueueEntry>,
        trail: &mut Trail,
    ) -> Result<Lookup, ReadError> {
        match self.queues.lookup(key, from, 64, out, trail) {
            Ok(found) => Ok(found),
            // The file was marked missing by the lookup: it is made again.
            Err(SealedError::Damaged { base, .. }) => Ok(Lookup::Rebuilding { base }),
            Err(SealedError::File(error)) => Err(error.into()),
        }
    }

    fn find_candidates(
        &self,
        hash: u64,
        window: Range<PhysicalOffset>,
        order: Order,
        max: usize,
        out: &mut Vec<PhysicalOffset>,
    ) -> Result<Coverage, ReadError> {
        match self.indexes.find(hash, window.clone(), order, max, out) {
            Ok(coverage) => Ok(coverage),
            Err(SealedError::Damaged { base, .. }) => {
                // The file was marked missing: the second attempt passes it over and says so.
                out.clear();
                match self.indexes.find(hash, window, order, max, out) {
                    Ok(coverage) => Ok(coverage),
                    Err(SealedError::Damaged { .. }) => {
                        Ok(Coverage { incomplete: vec![base], ..Coverage::default() })
                    }
                    Err(SealedError::File(error)) => Err(error.into()),
                }
            }
            Err(SealedError::File(error)) => Err(error.into()),
        }
    }

    /// Why appends of a class cannot go on now, if they cannot.
    fn space_is_short(&self, class: Class) -> Option<Result<(), SpaceError>> {
        if self.is_poisoned() {
            return Some(Err(SpaceError::Poisoned));
        }
        if self.is_closed() {
            return Some(Err(SpaceError::Closed));
        }
        if self.is_lagging() {
            return Some(Ok(()));
        }
        if class == Class::Messages && self.disk_is_short.load(Ordering::Relaxed) {
            return Some(Err(SpaceError::Full));
        }
        if class == Class::State && self.lacks_image() {
            // The image that it waits for is under way.
            return Some(Ok(()));
        }
        if self.ready.load().is_none() {
            return Some(lock(&self.no_space).map_or(Ok(()), Err));
        }
        (!self.may_roll()).then_some(Ok(()))
    }
}

/// A store: cheap to clone, closed by [`Store::close`].
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    report: Arc<StartReport>,
    pool: Arc<ReadPool>,
    threads: Arc<Threads>,
}

/// Of [`Store::hurry`].
#[derive(Debug)]
pub struct Hurry<'a>(&'a AtomicUsize);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Store {
    /// The topics that can be written and read.
    pub fn topics(&self) -> &Topics {
        &self.shared.topics
    }

    /// Appends one record. Blocks for one write at most.
    ///
    /// Readers of async topics see it once dispatched, of sync topics once it is flushed too. It survives a power cut
    /// only after the flushed position passes its end.
    ///
    /// # Errors
    /// Nothing was stored, except in `Unknown`. `NotReady`: no space yet, await [`Store::space`], for a record of
    /// state [`Store::space_for_state`].
    pub fn append_one(&self, record: NewRecord) -> Result<Placed, AppendError> {
        self.shared.append_one(record)
    }

    /// Appends records, all or nothing: one segment, one publish.
    ///
    /// # Errors
    /// As [`Store::append_one`].
    pub fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Placed>, AppendError> {
        self.shared.append_many(records)
    }

    /// Resolves when an append of messages that got `NotReady` may be tried again.
    ///
    /// # Errors
    /// Why there will be no space: no segment can be made now, less than the reserve is free, or the store stopped.
    pub fn space(&self) -> impl Future<Output = Result<(), SpaceError>> + Send + use<> {
        self.space_for(Class::Messages)
    }

    /// The same for a record of state, which goes on below the reserve of the disk.
    ///
    /// # Errors
    /// Why there will be no space: no segment can be made now, or the store stopped.
    pub fn space_for_state(&self) -> impl Future<Output = Result<(), SpaceError>> + Send + use<> {
        self.space_for(Class::State)
    }

    fn space_for(
        &self,
        class: Class,
    ) -> impl Future<Output = Result<(), SpaceError>> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            let mut has_waited = false;
            loop {
                let notified = shared.space.notified();
                tokio::pin!(notified);
                // Registered before the look: what is released in between is not missed.
                notified.as_mut().enable();
                match shared.space_is_short(class) {
                    None => return Ok(()),
                    // What the append waited for may be over, and the rest of the last segment enough for it.
                    Some(Err(SpaceError::Full | SpaceError::Refused)) if has_waited => {
                        return Ok(());
                    }
                    Some(Err(error)) => return Err(error),
                    Some(Ok(())) => has_waited = true,
                }
                shared.allocate_signal.wake();
                shared.seal_signal.wake();
                shared.flush_signal.wake();
                shared.dispatch_signal.wake();
                shared.clean_signal.wake();
                notified.await;
            }
        }
    }

    /// Resolves when all below `end` is on stable media.
    ///
    /// # Errors
    /// The store failed before: nobody knows.
    pub fn durable(
        &self,
        end: PhysicalOffset,
    ) -> impl Future<Output = Result<(), Poisoned>> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            if shared.marks.flushed.get() >= end {
                return Ok(());
            }
            let reached = shared.flush_waiters.register(end);
            fence(Ordering::SeqCst);
            if shared.marks.flushed.get() >= end {
                return Ok(());
            }
            shared.flush_signal.wake();
            match reached.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(Poisoned),
            }
        }
    }

    /// Resolves when a record of `topic` that ends at `end` may be acknowledged: at once for an async topic, when it
    /// is durable for a sync one.
    ///
    /// # Errors
    /// As [`Store::durable`].
    pub fn acknowledged(
        &self,
        topic: &TopicHandle,
        end: PhysicalOffset,
    ) -> impl Future<Output = Result<(), Poisoned>> + Send + use<> {
        let visible = self.may_acknowledge(topic, end);
        let durable = self.durable(end);
        async move { if visible { Ok(()) } else { durable.await } }
    }

    /// Whether a record of `topic` that ends at `end` may be acknowledged now.
    pub fn may_acknowledge(&self, topic: &TopicHandle, end: PhysicalOffset) -> bool {
        self.shared.visible_end(topic) >= end
    }

    /// The end of what can be read of a queue.
    pub fn queue_max(&self, topic: &TopicHandle, queue: QueueId) -> QueueOffset {
        self.shared.queue_max(topic, queue)
    }

    /// The readable offsets of a queue, exactly: `min` is the first message that is not gone. What is not in memory is
    /// looked up by the pool.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn queue_bounds(
        &self,
        topic: &Arc<TopicHandle>,
        queue: QueueId,
    ) -> impl Future<Output = Result<QueueRange, ReadError>> + Send + use<> {
        let bounds = self.bounds(topic, queue.get()..queue.get().saturating_add(1));
        async move { bounds.await?.pop().ok_or(ReadError::Closed) }
    }

    /// The same for some of its queues, by their ids.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn bounds(
        &self,
        topic: &Arc<TopicHandle>,
        queues: Range<u32>,
    ) -> impl Future<Output = Result<Vec<QueueRange>, ReadError>> + Send + use<> {
        let (shared, topic) = (Arc::clone(&self.shared), Arc::clone(topic));
        let pool = Arc::clone(&self.pool);
        async move {
            let mut found = Vec::with_capacity(queues.len());
            for queue in queues.clone() {
                match shared.queue_range(&topic, QueueId::new(queue), May::Memory)? {
                    Bounds::Range(range) => found.push(range),
                    Bounds::NeedsDisk | Bounds::Rebuilding { .. } => break,
                }
            }
            // The rest at once: memory does not know it.
            let rest = queues.start + found.len() as u32..queues.end;
            if !rest.is_empty() {
                let bounds = move || {
                    rest.map(|queue| shared.bounds_on_disk(&topic, QueueId::new(queue))).collect()
                };
                let rest: Vec<_> = pool.run(bounds).await?;
                found.extend(rest);
            }
            Ok(found)
        }
    }

    /// The first readable message of a queue that was stored at `time` or later; the end of the queue if there is
    /// none.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn offset_at(
        &self,
        topic: &Arc<TopicHandle>,
        queue: QueueId,
        time: Timestamp,
    ) -> impl Future<Output = Result<QueueOffset, ReadError>> + Send + use<> {
        let (shared, topic) = (Arc::clone(&self.shared), Arc::clone(topic));
        let pool = Arc::clone(&self.pool);
        async move { pool.run(move || shared.offset_at(&topic, queue, time)).await }
    }

    /// Whether a reader that is at `offset` of a queue, and has heard of no epoch after `epoch`, read messages that
    /// are not there any more; then from where on. An epoch that has not begun yet parts from nothing.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn diverged(
        &self,
        topic: &Arc<TopicHandle>,
        queue: QueueId,
        offset: QueueOffset,
        epoch: Epoch,
    ) -> impl Future<Output = Result<Option<Diverged>, ReadError>> + Send + use<> {
        let (shared, topic) = (Arc::clone(&self.shared), Arc::clone(topic));
        let pool = Arc::clone(&self.pool);
        async move {
            // Nothing is written in a later one: most readers need no look.
            if epoch >= shared.epoch {
                return Ok(None);
            }
            pool.run(move || shared.diverged(&topic, queue, offset, epoch)).await
        }
    }

    /// What of a topic is gone at this moment: records that start below the place, or were stored before the time.
    pub fn expired_now(&self, topic: &TopicHandle) -> (PhysicalOffset, Timestamp) {
        let cuts = topic.topic_cuts(self.shared.store_time());
        (cuts.below, cuts.before)
    }

    /// Keeps messages of a topic longer from now on, by settings that are the same else. What is gone at this moment
    /// stays gone: records that start below the place, or were stored before the time, that this gives.
    pub fn keep_longer(
        &self,
        topic: &TopicHandle,
        settings: &TopicSettings,
    ) -> (PhysicalOffset, Timestamp) {
        let cuts = topic.keep_longer(|| self.shared.store_time(), settings);
        (cuts.below, cuts.before)
    }

    /// Gives a topic other settings while nothing is appended, so that what anybody saw of an async topic stays
    /// visible when it becomes a sync one.
    pub fn configure(&self, topic: &TopicHandle, settings: &TopicSettings) {
        let _tail = lock(&self.shared.tail);
        topic.configure(settings, self.shared.marks.appended.get());
    }

    /// Something of a topic is gone now: what can be deleted is looked for soon.
    pub fn clean_soon(&self) {
        self.shared.clean_asked.store(true, Ordering::Relaxed);
        self.shared.clean_signal.wake();
    }

    /// Reads records of a queue from an offset on. What is not in memory is read by the pool.
    ///
    /// # Errors
    /// See [`ReadError`]; damage of single records is an outcome.
    pub fn read(
        &self,
        request: ReadRequest,
    ) -> impl Future<Output = Result<ReadOutcome, ReadError>> + Send + use<> {
        self.read_by(request, Shared::read)
    }

    /// Reads here if memory has all that it takes, else where it may wait for the disk.
    fn read_by(
        &self,
        request: ReadRequest,
        read: fn(&Shared, &ReadRequest, May) -> Result<Option<ReadOutcome>, ReadError>,
    ) -> impl Future<Output = Result<ReadOutcome, ReadError>> + Send + use<> {
        let (shared, pool) = (Arc::clone(&self.shared), Arc::clone(&self.pool));
        async move {
            if let Some(outcome) = read(&shared, &request, May::Memory)? {
                return Ok(outcome);
            }
            let read = move || read(&shared, &request, May::Disk);
            // With the disk allowed there always is an answer.
            Ok(pool.run(read).await?.unwrap_or(ReadOutcome::Rebuilding))
        }
    }

    /// As [`Store::read`], for who asks for what is next again and again: once it has something, for little time. Then
    /// it reads on in the `others` of the topic, in their order, as long as each has records to give, and bytes of the
    /// request and time are left: in memory, or on the disk if it had to go there for the first. Of the first that has
    /// nothing to give there, and those behind it, nothing is told.
    ///
    /// # Errors
    /// As [`Store::read`], of the queue of the request alone.
    pub fn read_ahead<'a>(
        &self,
        request: ReadRequest,
        others: &'a [(QueueId, QueueOffset)],
    ) -> impl Future<Output = Result<(ReadOutcome, Vec<Ahead>), ReadError>> + Send + use<'a> {
        let (shared, pool) = (Arc::clone(&self.shared), Arc::clone(&self.pool));
        async move {
            if let Some(found) = shared.read_along(&request, others, May::Memory)? {
                return Ok(found);
            }
            let others = others.to_vec();
            // With the disk allowed there always is an answer.
            let rebuilding = || (ReadOutcome::Rebuilding, Vec::new());
            let read = move || shared.read_along(&request, &others, May::Disk);
            pool.run(move || Ok(read()?.unwrap_or_else(rebuilding))).await
        }
    }

    /// As [`Store::read`], of a message that was delivered and is not finished ([`Applier::is_open`]): its time may be
    /// over. What was purged is out of range, and what is not there any more.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_kept(
        &self,
        request: ReadRequest,
    ) -> impl Future<Output = Result<ReadOutcome, ReadError>> + Send + use<> {
        self.read_by(request, Shared::read_kept)
    }

    /// Resolves when the queue may have something at or behind `from`, or when there is a reason to look again.
    pub fn arrival(
        &self,
        topic: &Arc<TopicHandle>,
        queue: QueueId,
        from: QueueOffset,
    ) -> impl Future<Output = Arrival> + Send + use<> {
        let mut arrivals = self.arrivals(topic);
        async move {
            arrivals.park(0, queue, from);
            poll_fn(|cx| arrivals.poll_arrived(cx)).await.1
        }
    }

    /// For who waits at the ends of several queues of a topic.
    pub fn arrivals(&self, topic: &Arc<TopicHandle>) -> Arrivals {
        Arrivals::new(Arc::clone(&self.shared), Arc::clone(topic))
    }

    /// From now on [`Applier::readable`] is told of the topic's queues. The caller looks at them once more afterwards,
    /// and with [`Store::tell_behind`] whenever it comes to the end of one.
    pub fn watch(&self, topic: &TopicHandle) {
        topic.watch();
        self.shared.is_watched.store(true, Ordering::SeqCst);
        // As in `arrival`: whoever moves a mark does it the other way round.
        fence(Ordering::SeqCst);
    }

    /// As long as what this gives lives, each append is dispatched at once, as it is for reads that are parked:
    /// somebody waits for what [`Applier::readable`] is told. The caller looks at what it was told once more
    /// afterwards.
    pub fn hurry(&self) -> Hurry<'_> {
        self.shared.hurried.fetch_add(1, Ordering::SeqCst);
        // As in `arrival`: whoever moves a mark does it the other way round.
        fence(Ordering::SeqCst);
        self.shared.dispatch_signal.wake();
        Hurry(&self.shared.hurried)
    }

    /// If records of a queue from an offset on are there and cannot be read yet, [`Applier::readable`] is told when
    /// they can.
    pub fn tell_behind(&self, topic: &TopicHandle, queue: QueueId, from: QueueOffset) {
        self.shared.wake_when_flushed(QueueKey { topic: topic.id(), queue }, from);
    }

    /// How many readers are parked in [`Store::arrival`].
    pub fn parked(&self) -> usize {
        self.shared.arrivals.len()
    }

    /// Lets the parked reads of a topic look again: with another flush mode more may be visible at once.
    pub fn wake_readers(&self, topic: &TopicHandle) {
        let id = topic.id();
        self.shared.arrivals.end_where(|key| key.topic == id, Arrival::Readable);
    }

    /// Ends the parked reads of a topic that was deleted.
    pub fn end_arrivals(&self, topic: &TopicHandle) {
        let id = topic.id();
        self.shared.arrivals.end_where(|key| key.topic == id, Arrival::Gone);
    }

    /// Read your writes: resolves when all that may be acknowledged for `topic` now can be found by queue and key.
    pub fn caught_up(&self, topic: &TopicHandle) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        let target = shared.visible_end(topic);
        async move {
            if shared.marks.dispatched.get() >= target {
                return;
            }
            let reached = shared.dispatch_waiters.register(target);
            if let Ok(mut dispatcher) = shared.dispatcher.try_lock() {
                // One step on this thread; more is the dispatcher's.
                shared.dispatch_step(&mut dispatcher);
            }
            fence(Ordering::SeqCst);
            if shared.marks.dispatched.get() < target {
                shared.dispatch_signal.wake();
                // Stopped: the answer that follows says so.
                let _reached = reached.await;
            }
        }
    }

    /// A page of messages by key or producer's id.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn find(
        &self,
        request: FindRequest,
    ) -> impl Future<Output = Result<Found, ReadError>> + Send + use<> {
        let (shared, pool) = (Arc::clone(&self.shared), Arc::clone(&self.pool));
        async move { pool.run(move || shared.find(&request)).await }
    }

    /// The record that a message id names, if it is there and visible.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn by_id(
        &self,
        id: MessageId,
    ) -> impl Future<Output = Result<Option<StoredRecord>, ReadError>> + Send + use<> {
        self.by_id_unless(id, Gone::ByTime)
    }

    /// As [`Store::by_id`], of a message that was delivered: its time may be over. What was purged is not found, nor
    /// what is not there any more.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn by_id_kept(
        &self,
        id: MessageId,
    ) -> impl Future<Output = Result<Option<StoredRecord>, ReadError>> + Send + use<> {
        self.by_id_unless(id, Gone::ByPurge)
    }

    fn by_id_unless(
        &self,
        id: MessageId,
        gone: Gone,
    ) -> impl Future<Output = Result<Option<StoredRecord>, ReadError>> + Send + use<> {
        let (shared, pool) = (Arc::clone(&self.shared), Arc::clone(&self.pool));
        async move { pool.run(move || shared.by_id(id, gone)).await }
    }

    /// How far the store has come.
    pub fn watermarks(&self) -> Watermarks {
        self.shared.marks.view(self.shared.log.min())
    }

    /// The store time of this moment; no record gets an earlier one from now on.
    pub fn now(&self) -> Timestamp {
        self.shared.store_time()
    }

    /// The time by which leases end: it goes on evenly while the process runs, whoever turns the machine's clock.
    pub fn lease_time(&self) -> Timestamp {
        self.shared.steady_clock.at(self.shared.clock.elapsed())
    }

    /// The key that signs what clients bring back.
    pub fn handle_key(&self) -> &[u8; 32] {
        &self.shared.identity.handle_key
    }

    /// The epoch of this start.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// The mode of state, and of topics that name none.
    pub fn default_flush(&self) -> crate::message::FlushMode {
        self.shared.config.flush
    }

    /// Free bytes below which sends are refused.
    pub fn disk_reserve(&self) -> u64 {
        self.shared.config.disk_reserve
    }

    /// The longest append set, in bytes of records.
    pub fn max_append_set(&self) -> u64 {
        self.shared.config.max_append_set()
    }

    /// What the start found and did.
    pub fn start_report(&self) -> &StartReport {
        &self.report
    }

    /// Whether state may be missing that was in damaged records: those that this start met, or an earlier one, whose
    /// segments are still there.
    pub fn state_may_be_missing(&self) -> bool {
        self.shared.state_may_be_missing || self.shared.indexes.is_any_lacking()
    }

    /// A verification of all that is flushed now, files and log: see [`Verifier`].
    pub fn verifier(&self) -> Verifier {
        Verifier::of_running(&self.shared)
    }

    /// Sealed segments of which a file has to be made again and can be.
    pub(crate) fn unmade(&self) -> u64 {
        self.shared.unmade().len() as u64
    }

    /// Resolves when the store is poisoned; the text says why.
    pub fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            loop {
                let notified = shared.failed.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if let Some(reason) = &*lock(&shared.poison_reason) {
                    return reason.clone();
                }
                notified.await;
            }
        }
    }

    /// Ends all parked reads, now and later: the broker drains.
    pub fn wake_all(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        self.shared.arrivals.end_where(|_| true, Arrival::Closed);
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("watermarks", &self.watermarks()).finish_non_exhaustive()
    }
}
