//! From a directory to a running store and back: open, the storage threads, close.
//!
//! Open: lock → recover → the record of the new epoch, durable → checkpoint → threads. Close: refuse appends → end the
//! threads → flush → dispatch → snapshot → checkpoint with the clean mark → release the lock.

use std::thread::JoinHandle;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::append::{self, Tail};
use super::checkpoint::CheckpointFile;
use super::clean::NO_IMAGE;
use super::cold::ReadPool;
use super::damage::Damage;
use super::dispatch::Dispatcher;
use super::min::Begins;
use super::pins::Pins;
use super::signal::Signal;
use super::spares::Spares;
use super::topics::Topics;
use super::waiters::{ArrivalWaiters, PositionWaiters};
use super::watermarks::Marks;
use super::{
    AllocateWorker, AppendError, Applier, CleanWorker, CloseError, DispatchWorker, FlushWorker,
    OpenError, Progress, ScrubWorker, SealWorker, Shared, StartReport, Store, StoreConfig,
    StoreMetrics, allocate, recover,
};
use crate::clock::{Clock, SteadyClock, StoreClock};
use crate::file::FileError;
use crate::file::disk::{DirLock, Disk};
use crate::format::names;
use crate::format::segment_header::PAGE_LEN;
use crate::message::PhysicalOffset;
use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock};

/// The storage threads and what ends with them.
pub(super) struct Threads {
    shared: Arc<Shared>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    dispatch: Option<JoinHandle<DispatchWorker>>,
    flush: Option<JoinHandle<FlushWorker>>,
    seal: Option<JoinHandle<SealWorker>>,
    allocate: Option<JoinHandle<AllocateWorker>>,
    clean: Option<JoinHandle<CleanWorker>>,
    scrub: Option<JoinHandle<ScrubWorker>>,
    lock: Option<Box<dyn DirLock>>,
}

/// The workers of a store that is stepped by hand.
pub struct Workers {
    /// CommitLog → queues and index.
    pub dispatch: DispatchWorker,
    /// Durability and checkpoint.
    pub flush: FlushWorker,
    /// Sealed files and snapshots.
    pub seal: SealWorker,
    /// The next segment.
    pub allocate: AllocateWorker,
    /// Retention, state images, free space.
    pub clean: CleanWorker,
    /// Damage, looked for.
    pub scrub: ScrubWorker,
}

impl Store {
    /// Opens the store in `config.dir`, made if it is missing, and starts its threads. Blocks for recovery: as long as
    /// it takes to read what was not sealed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: StoreConfig,
        applier: Arc<dyn Applier>,
    ) -> Result<(Self, StartReport), OpenError> {
        let threads = config.read_threads.max(1);
        let (store, workers, lock) = Self::recover(disk, clock, config, applier, threads)?;
        store.start(workers, lock).map_err(OpenError::Thread)?;
        let report = StartReport::clone(&store.report);
        Ok((store, report))
    }

    /// Opens a store without threads: its workers are stepped by the caller, reads run on the caller.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_stepped(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: StoreConfig,
        applier: Arc<dyn Applier>,
    ) -> Result<(Self, Workers), OpenError> {
        let (store, workers, dir_lock) = Self::recover(disk, clock, config, applier, 0)?;
        lock(&store.threads.running).lock = Some(dir_lock);
        Ok((store, workers))
    }

    fn recover(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: StoreConfig,
        applier: Arc<dyn Applier>,
        read_threads: usize,
    ) -> Result<(Self, Workers, Box<dyn DirLock>), OpenError> {
        check(&config)?;
        recover::make_directories(&*disk, &config.dir)?;
        let lock_path = config.dir.join(names::LOCK);
        let dir_lock = disk.lock(&lock_path).map_err(|error| match error {
            FileError::Locked { .. } => OpenError::Locked { path: config.dir.clone() },
            other => other.into(),
        })?;
        let topics = Topics::default();
        let found = recover::recover(&disk, &config, &topics, &*applier)?;
        let checkpoint = CheckpointFile::open(&*disk, &config.dir, found.checkpoint.as_ref())?;

        let mut report = found.report;
        report.epoch = found.epoch;
        let mut segment = found.log.segment_at(found.tail);
        let mut tail = found.tail;
        let mut ready = found.ready;
        if segment.is_none() {
            let next = match ready.take() {
                Some(next) => next,
                None => Arc::new(allocate::first_segment(&config, &found.identity, &*disk, tail)?),
            };
            tail = next.base().plus(PAGE_LEN as u64);
            found.log.push(Arc::clone(&next));
            found.queues.start_part(next.base());
            found.indexes.start_part(next.base());
            segment = Some(next);
        }
        let Some(segment) = segment else {
            unreachable!("a segment was found or made");
        };
        segment.publish(tail);
        let tail_lock =
            Mutex::new(Tail::new(segment, tail, found.epoch, found.first_time, found.entry_bytes));
        let shared = Arc::new(Shared {
            index_seed: found.identity.index_seed(),
            identity: found.identity,
            epoch: found.epoch,
            own_from: tail,
            deleted: found.deleted,
            recording_deletions: Mutex::new(()),
            lost: found.lost,
            begins: Begins::new(),
            pins: Pins::default(),
            newest_image: AtomicU64::new(found.newest_image.map_or(NO_IMAGE, PhysicalOffset::get)),
            room_for_image: AtomicU64::new(0),
            no_image_fits: AtomicU64::new(NO_IMAGE),
            state_may_be_missing: report.damage_may_hold_state,
            held: Mutex::default(),
            unfinished: Mutex::default(),
            warned_of: Mutex::new(None),
            disk_is_short: AtomicBool::new(false),
            clean_asked: AtomicBool::new(false),
            damage: Damage::new(&report.damaged),
            log: found.log,
            queues: found.queues,
            indexes: found.indexes,
            topics,
            marks: Marks::starting_at(tail, found.sealed),
            tail: tail_lock,
            dispatcher: Mutex::new(Dispatcher::default()),
            ready: ArcSwapOption::new(ready),
            spares: Spares::default(),
            no_space: Mutex::new(None),
            wanted: Mutex::new(None),
            given_up: Mutex::new(Vec::new()),
            refused: Mutex::default(),
            any_refused: AtomicBool::new(false),
            nearby: Mutex::default(),
            unflushed_arrivals: Mutex::default(),
            is_watched: AtomicBool::new(false),
            hurried: AtomicUsize::new(0),
            arrivals: ArrivalWaiters::new(),
            flush_waiters: PositionWaiters::default(),
            dispatch_waiters: PositionWaiters::default(),
            space: Notify::new(),
            dispatch_signal: Signal::default(),
            flush_signal: Signal::default(),
            seal_signal: Signal::default(),
            allocate_signal: Signal::default(),
            clean_signal: Signal::default(),
            scrub_signal: Signal::default(),
            flush_is_idle: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            poison_reason: Mutex::new(None),
            failed: Notify::new(),
            closed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            metrics: StoreMetrics::default(),
            config,
            disk,
            store_clock: StoreClock::starting_at(found.store_clock),
            steady_clock: SteadyClock::starting_at(
                found.store_clock.max(clock.now()).max(applier.lease_clock()),
                clock.elapsed(),
            ),
            clock,
            applier,
        });
        shared.remove_temporaries()?;
        let mut workers = Workers {
            dispatch: DispatchWorker::new(Arc::clone(&shared)),
            flush: FlushWorker::new(Arc::clone(&shared), checkpoint),
            seal: SealWorker::new(Arc::clone(&shared)),
            allocate: AllocateWorker::new(Arc::clone(&shared)),
            clean: CleanWorker::new(Arc::clone(&shared)),
            scrub: ScrubWorker::new(Arc::clone(&shared)),
        };
        begin_epoch(&shared, &mut workers, &report)?;
        workers.clean.count_at_start();
        let store = Self {
            pool: Arc::new(ReadPool::start(read_threads).map_err(OpenError::Thread)?),
            threads: Arc::new(Threads {
                shared: Arc::clone(&shared),
                running: Mutex::new(Running::default()),
            }),
            report: Arc::new(report),
            shared,
        };
        Ok((store, workers, dir_lock))
    }

    fn start(&self, workers: Workers, dir_lock: Box<dyn DirLock>) -> std::io::Result<()> {
        let Workers { dispatch, flush, seal, allocate, clean, scrub } = workers;
        let mut running = lock(&self.threads.running);
        running.lock = Some(dir_lock);
        running.dispatch =
            Some(self.run("mainstem-dispatch", dispatch, DispatchWorker::step, |shared| {
                &shared.dispatch_signal
            })?);
        running.flush = Some(
            self.run("mainstem-flush", flush, FlushWorker::step, |shared| &shared.flush_signal)?,
        );
        running.seal =
            Some(self.run("mainstem-seal", seal, SealWorker::step, |shared| &shared.seal_signal)?);
        running.allocate =
            Some(self.run("mainstem-allocate", allocate, AllocateWorker::step, |shared| {
                &shared.allocate_signal
            })?);
        running.clean = Some(
            self.run("mainstem-clean", clean, CleanWorker::step, |shared| &shared.clean_signal)?,
        );
        running.scrub = Some(
            self.run("mainstem-scrub", scrub, ScrubWorker::step, |shared| &shared.scrub_signal)?,
        );
        Ok(())
    }

    /// A thread that steps `worker` until the store stops, and gives it back then.
    fn run<W: Send + 'static>(
        &self,
        name: &str,
        mut worker: W,
        step: fn(&mut W) -> Progress,
        signal: fn(&Shared) -> &Signal,
    ) -> std::io::Result<JoinHandle<W>> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _guard = append::AbortOnPanic::new();
            while !shared.stopping.load(Ordering::Acquire) {
                if let Progress::Idle(limit) = step(&mut worker) {
                    signal(&shared).sleep(limit);
                }
            }
            worker
        })
    }

    /// Refuses further appends, makes all durable, writes snapshot and checkpoint, ends the threads and releases the
    /// directory. Blocks. A second call finds nothing to do.
    ///
    /// # Errors
    /// The store was poisoned, or the last sync failed: no clean stop is recorded.
    pub fn close(&self) -> Result<(), CloseError> {
        self.wake_all();
        self.pool.stop();
        self.threads.stop()
    }

    /// Closes a store that is stepped by hand.
    ///
    /// # Errors
    /// As [`Store::close`].
    pub fn close_stepped(&self, mut workers: Workers) -> Result<(), CloseError> {
        self.wake_all();
        self.shared.refuse_appends();
        let closed = self.shared.finish(&mut workers.flush, &mut workers.seal);
        lock(&self.threads.running).lock = None;
        closed
    }
}

impl Shared {
    /// No append begins after this; those under way are done when it returns.
    fn refuse_appends(&self) {
        self.closed.store(true, Ordering::Release);
        drop(lock(&self.tail));
        self.space.notify_waiters();
    }

    /// Flush → dispatch → snapshot → checkpoint.
    fn finish(&self, flush: &mut FlushWorker, seal: &mut SealWorker) -> Result<(), CloseError> {
        flush.flush_all();
        {
            let mut dispatcher = lock(&self.dispatcher);
            while self.dispatch_step(&mut dispatcher) {}
        }
        if !self.is_poisoned() {
            seal.snapshot_now();
            flush.record(true);
            self.unlink_spares();
            while self.free_unused_segment() {}
        }
        let outcome = match &*lock(&self.poison_reason) {
            None => Ok(()),
            Some(reason) => Err(CloseError::Poisoned { reason: reason.clone() }),
        };
        self.flush_waiters.stop();
        self.dispatch_waiters.stop();
        outcome
    }
}

impl Threads {
    fn stop(&self) -> Result<(), CloseError> {
        let shared = &self.shared;
        shared.refuse_appends();
        shared.stopping.store(true, Ordering::Release);
        let mut running = lock(&self.running);
        for signal in [
            &shared.dispatch_signal,
            &shared.flush_signal,
            &shared.seal_signal,
            &shared.allocate_signal,
            &shared.clean_signal,
            &shared.scrub_signal,
        ] {
            signal.wake();
        }
        // A storage thread that panics ends the process, so each gives its worker back.
        let _dispatch = running.dispatch.take().map(JoinHandle::join);
        let _allocate = running.allocate.take().map(JoinHandle::join);
        let _clean = running.clean.take().map(JoinHandle::join);
        let _scrub = running.scrub.take().map(JoinHandle::join);
        let workers = (
            running.flush.take().and_then(|thread| thread.join().ok()),
            running.seal.take().and_then(|thread| thread.join().ok()),
        );
        let outcome = match workers {
            (Some(mut flush), Some(mut seal)) => shared.finish(&mut flush, &mut seal),
            _ => Ok(()),
        };
        running.lock = None;
        outcome
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // That the store is poisoned was told when it was: here it could follow the last words of the process.
        let (Ok(()) | Err(CloseError::Poisoned { .. })) = self.stop();
    }
}

fn check(config: &StoreConfig) -> Result<(), OpenError> {
    let size = config.segment_size;
    let in_range = (StoreConfig::MIN_SEGMENT_SIZE..=StoreConfig::MAX_SEGMENT_SIZE).contains(&size);
    if !in_range || !size.is_multiple_of(PAGE_LEN as u64) {
        let range = "16 KiB to 1 GiB in steps of 4 KiB";
        return Err(OpenError::Config { key: "segment_size", value: size, range });
    }
    Ok(())
}

/// Appends the record of this start and makes it durable before anything else is appended.
fn begin_epoch(
    shared: &Arc<Shared>,
    workers: &mut Workers,
    report: &StartReport,
) -> Result<(), OpenError> {
    let epoch = shared.epoch;
    let mut attempts = 0;
    loop {
        let record = recover::epoch_record(report, shared.store_clock.last());
        match shared.append_one(record) {
            Ok(_) => break,
            // No room in the last segment: make the next, and seal what is finished.
            Err(AppendError::NotReady) if attempts < 8 => {
                attempts += 1;
                workers.allocate.step();
                workers.flush.flush_all();
                while workers.dispatch.step() == Progress::Worked {}
                workers.seal.step();
                if let Some(source) = *lock(&shared.no_space) {
                    return Err(OpenError::NoRoom { path: shared.config.dir.clone(), source });
                }
            }
            Err(source) => return Err(OpenError::Epoch { epoch, source }),
        }
    }
    workers.flush.flush_all();
    if shared.is_poisoned() {
        return Err(OpenError::Epoch { epoch, source: AppendError::Poisoned });
    }
    workers.flush.record(false);
    Ok(())
}
