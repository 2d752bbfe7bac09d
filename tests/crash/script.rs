//! A fixed list of steps, and the ledger of what they appended, acknowledged and gave out.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use mainstem::format::batch::check;
use mainstem::format::state_record::Transition;
use mainstem::message::{
    FlushMode, PhysicalOffset, QueueId, QueueOffset, Retention, SessionId, SessionMark, Timestamp,
    TopicId, TopicSettings,
};
use mainstem::store::{
    AppendError, OpenError, Placed, Poisoned, ReadError, ReadOutcome, StoreConfig, TopicHandle,
};
use mainstem::testing::{CrashChoice, SimDisk};

use crate::oracle::{self, Logged, agrees, live_topics};
use crate::rig::{Dice, Rig, base, batch, created, files};

/// What a script does next.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create {
        topic: u64,
        queues: u32,
        flush: FlushMode,
    },
    Delete {
        topic: u64,
    },
    /// One record of so many messages of so many bytes.
    Send {
        topic: u64,
        queue: u32,
        count: u64,
        len: usize,
    },
    /// As `Send`, as the next batch of the script's producer session.
    SendInSession {
        topic: u64,
        queue: u32,
        len: usize,
    },
    /// One append set: topic, queue, bytes of each record.
    Set(Vec<(u64, u32, usize)>),
    /// Everything of a topic, or of one of its queues.
    Purge {
        topic: u64,
        queue: Option<u32>,
    },
    /// A topic keeps its messages for so many milliseconds, and gets another queue.
    Keep {
        topic: u64,
        ms: u64,
    },
    /// Looks for what is dead, and takes so many steps.
    Clean(usize),
    Dispatch,
    /// Everything that is appended.
    Flush,
    /// What the flush worker finds due.
    FlushIfDue,
    Seal,
    Allocate,
    /// All workers until none has anything to do.
    Settle,
    Tick(u64),
    SetWall(u64),
    /// Reads every queue to its end.
    Read,
    CloseAndReopen,
}

/// A record that was appended.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    offset: PhysicalOffset,
    pub(crate) end: PhysicalOffset,
    epoch: u64,
    /// Which append it came in.
    set: usize,
    topic: u64,
    queue: u32,
    queue_offset: u64,
    flush: FlushMode,
    messages: u64,
    store_time: Timestamp,
    payload: Bytes,
    pub(crate) acknowledged: bool,
    /// A reader got it.
    given: bool,
}

impl Event {
    fn is_gone(&self, rig: &Rig, topic: &TopicHandle) -> bool {
        let ((below, before), (_, _, purged)) = (rig.store.expired_now(topic), topic.expired());
        let end = self.queue_offset + self.messages;
        let is_purged = |(queue, offset): &(QueueId, _)| {
            queue.get() == self.queue && QueueOffset::new(end) <= *offset
        };
        self.offset < below || self.store_time < before || purged.iter().any(is_purged)
    }
}

/// What clients know.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    /// In log order.
    pub(crate) events: Vec<Event>,
    /// The records of an append that nobody knows the outcome of. It is the last of the ledger's life of the store.
    unknown: Vec<(u64, u32, Bytes)>,
    /// The highest epoch that was served.
    epoch: u64,
    /// The highest flushed position that was seen.
    flushed: PhysicalOffset,
    sets: usize,
    sent: u64,
    /// Of the last batch of the producer session.
    last_sequence: u64,
    /// Sends refused for want of space.
    pub(crate) not_ready: usize,
    /// Sends that a fault refused.
    pub(crate) refused: usize,
}

type Ack = Pin<Box<dyn Future<Output = Result<(), Poisoned>>>>;

/// A script under way.
pub(crate) struct Run {
    pub(crate) disk: SimDisk,
    config: StoreConfig,
    /// None once the store did not open again.
    pub(crate) rig: Option<Rig>,
    pub(crate) ledger: Ledger,
    waiting: Vec<(PhysicalOffset, Ack)>,
    wall: u64,
    /// Calls fail: a store may refuse to open or to read.
    pub(crate) is_faulty: bool,
}

impl Run {
    /// Opens a store that the ledger knows nothing of yet.
    pub(crate) fn start(disk: SimDisk, config: &StoreConfig) -> Self {
        Self::begin(disk, config, false)
    }

    /// As `start`, on a disk of which calls fail.
    pub(crate) fn start_faulty(disk: SimDisk, config: &StoreConfig) -> Self {
        Self::begin(disk, config, true)
    }

    fn begin(disk: SimDisk, config: &StoreConfig, is_faulty: bool) -> Self {
        let mut run = Self {
            disk,
            config: config.clone(),
            rig: None,
            ledger: Ledger::default(),
            waiting: Vec::new(),
            wall: 1_000_000,
            is_faulty,
        };
        // The power may go before there is a store.
        let _failed = run.reopen();
        run
    }

    fn reopen(&mut self) -> Result<(), OpenError> {
        let rig = Rig::try_open(Arc::new(self.disk.clone()), &self.config, self.wall)?;
        assert!(rig.store.epoch().get() > self.ledger.epoch, "the epoch is raised at every start");
        self.ledger.epoch = rig.store.epoch().get();
        self.rig = Some(rig);
        Ok(())
    }

    /// Runs steps until the power goes.
    pub(crate) fn run(&mut self, steps: &[Step]) {
        for step in steps {
            if self.disk.is_off() || self.rig.is_none() {
                return;
            }
            self.step(step);
            self.notice();
        }
    }

    /// Sees which acknowledgements came and how far the store says it is.
    pub(crate) fn notice(&mut self) {
        let Some(rig) = &self.rig else { return };
        rig.marks_are_in_order();
        self.ledger.flushed = self.ledger.flushed.max(rig.store.watermarks().flushed);
        let mut context = Context::from_waker(Waker::noop());
        let events = &mut self.ledger.events;
        self.waiting.retain_mut(|(end, ack)| match ack.as_mut().poll(&mut context) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                if outcome.is_ok()
                    && let Ok(index) = events.binary_search_by_key(&*end, |event| event.end)
                {
                    events[index].acknowledged = true;
                }
                false
            }
        });
    }

    /// Whether somebody was not answered yet.
    pub(crate) fn unanswered(&self) -> usize {
        self.waiting.len()
    }

    fn step(&mut self, step: &Step) {
        let Some(rig) = &mut self.rig else { return };
        match step {
            Step::Create { topic, queues, flush } => {
                self.transition(&created(*topic, *queues, *flush));
            }
            Step::Delete { topic } => {
                let Some(handle) = rig.topic(*topic) else { return };
                handle.kill();
                if !self.transition(&Transition::TopicDeleted { id: TopicId::new(*topic) }) {
                    handle.unkill();
                }
            }
            Step::Send { topic, queue, count, len } => {
                if rig.topic(*topic).is_none() {
                    return;
                }
                let batch = batch(self.ledger.sent, *count, *len);
                self.ledger.sent += count;
                let outcome = rig.send(*topic, *queue, &batch).map(|placed| vec![placed]);
                self.appended(vec![(*topic, *queue, batch)], outcome);
            }
            Step::SendInSession { topic, queue, len } => {
                if rig.topic(*topic).is_none() {
                    return;
                }
                let batch = batch(self.ledger.sent, 1, *len);
                self.ledger.sent += 1;
                let sequence = self.ledger.last_sequence + 1;
                let mark = SessionMark { session: SessionId::new(1), epoch: 1, sequence };
                let sent = rig.send_in_session(*topic, *queue, &batch, &mark);
                // A refused batch takes no number. One that nobody knows of is the last of this life.
                if sent.is_ok() {
                    self.ledger.last_sequence = sequence;
                }
                self.appended(vec![(*topic, *queue, batch)], sent.map(|placed| vec![placed]));
            }
            Step::Set(records) => {
                let records: Vec<_> = records
                    .iter()
                    .filter(|(topic, ..)| rig.topic(*topic).is_some())
                    .map(|(topic, queue, len)| {
                        self.ledger.sent += 1;
                        (*topic, *queue, batch(self.ledger.sent - 1, 1, *len))
                    })
                    .collect();
                let new =
                    records.iter().map(|(topic, queue, batch)| rig.record(*topic, *queue, batch));
                let outcome = rig.store.append(new.collect());
                self.appended(records, outcome);
            }
            Step::Purge { topic, queue } => {
                let Some(handle) = rig.topic(*topic) else { return };
                let (id, mut below) = (TopicId::new(*topic), rig.store.watermarks().appended);
                let mut queues = Vec::new();
                if let Some(queue) = queue {
                    below = PhysicalOffset::ZERO;
                    let queue = QueueId::new(*queue);
                    queues.push((queue, rig.store.queue_max(&handle, queue)));
                }
                let before = Timestamp::ZERO;
                self.transition(&Transition::TopicExpired {
                    id,
                    below,
                    before,
                    queues,
                    purged: below,
                });
            }
            Step::Keep { topic, ms } => {
                let Some(handle) = rig.topic(*topic) else { return };
                let settings = rig.applier.live().into_iter().find_map(|created| match created {
                    Transition::TopicCreated { id, settings, .. } if id == handle.id() => {
                        Some(settings)
                    }
                    _ => None,
                });
                let Some(settings) = settings else { return };
                let retention = Retention { time_ms: Some(*ms), bytes: None };
                let queues = settings.queues + 1;
                let settings = TopicSettings { queues, retention, ..settings };
                self.transition(&Transition::TopicUpdated { id: handle.id(), settings });
            }
            Step::Clean(steps) => {
                rig.store.clean_soon();
                for _ in 0..*steps {
                    rig.workers.clean.step();
                }
            }
            Step::Dispatch => {
                rig.workers.dispatch.step();
            }
            Step::Flush => rig.workers.flush.flush_all(),
            Step::FlushIfDue => {
                rig.workers.flush.step();
            }
            Step::Seal => {
                rig.workers.seal.step();
            }
            Step::Allocate => {
                rig.workers.allocate.step();
            }
            Step::Settle => rig.workers.settle(),
            Step::Tick(ms) => {
                self.wall += ms;
                rig.clock.advance(Duration::from_millis(*ms));
            }
            Step::SetWall(ms) => {
                self.wall = *ms;
                rig.clock.set_wall(Timestamp::new(*ms));
            }
            Step::Read => self.read(),
            Step::CloseAndReopen => {
                if let Some(rig) = self.rig.take() {
                    let Rig { store, workers, .. } = rig;
                    let closed = store.close_stepped(workers);
                    let is_off = self.disk.is_off();
                    self.ledger.flushed = self.ledger.flushed.max(store.watermarks().flushed);
                    drop(store);
                    if self.is_faulty && closed.is_err() {
                        // The process ends here.
                        return;
                    }
                    let opened = self.reopen();
                    assert!(
                        is_off
                            || self.is_faulty
                            || self.disk.is_off()
                            || (closed.is_ok() && opened.is_ok()),
                        "{closed:?}, {opened:?}"
                    );
                }
            }
        }
    }

    fn transition(&mut self, transition: &Transition) -> bool {
        let Some(rig) = &self.rig else { return false };
        match rig.state(transition) {
            Ok((placed, payload)) => {
                self.record(vec![(0, 0, payload)], vec![placed]);
                true
            }
            Err(error) => {
                let mut payload = Vec::new();
                transition.encode_into(&mut payload);
                self.failed(vec![(0, 0, payload.into())], &error);
                false
            }
        }
    }

    fn appended(
        &mut self,
        records: Vec<(u64, u32, Bytes)>,
        outcome: Result<Vec<Placed>, AppendError>,
    ) {
        match outcome {
            Ok(placed) => self.record(records, placed),
            Err(error) => self.failed(records, &error),
        }
    }

    fn failed(&mut self, records: Vec<(u64, u32, Bytes)>, error: &AppendError) {
        match error {
            AppendError::NotReady => self.ledger.not_ready += 1,
            AppendError::Unknown { .. } => self.ledger.unknown = records,
            AppendError::Write { .. } | AppendError::Poisoned => self.ledger.refused += 1,
            other => panic!("{other}"),
        }
    }

    fn record(&mut self, records: Vec<(u64, u32, Bytes)>, placed: Vec<Placed>) {
        let Some(rig) = &self.rig else { return };
        self.ledger.sets += 1;
        assert_eq!(records.len(), placed.len());
        for ((topic, queue, payload), placed) in records.into_iter().zip(placed) {
            // State has the default mode.
            let mut flush = FlushMode::Sync;
            if topic != 0 {
                let handle = rig.topic(topic).unwrap();
                flush = handle.flush();
                let ack = rig.store.acknowledged(&handle, placed.end);
                self.waiting.push((placed.end, Box::pin(ack)));
            }
            self.ledger.events.push(Event {
                offset: placed.offset,
                end: placed.end,
                epoch: placed.epoch.get(),
                set: self.ledger.sets,
                topic,
                queue,
                queue_offset: placed.queue_offset.get(),
                flush,
                messages: if topic == 0 {
                    0
                } else {
                    check(&payload).unwrap().message_count.into()
                },
                store_time: placed.store_time,
                payload,
                acknowledged: false,
                given: false,
            });
        }
    }

    fn outcome(&self, read: Result<ReadOutcome, ReadError>) -> Option<ReadOutcome> {
        match read {
            Ok(outcome) => Some(outcome),
            Err(_) if self.is_faulty => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads every queue and compares what comes with what was sent.
    fn read(&mut self) {
        let Some(rig) = &self.rig else { return };
        for transition in rig.applier.live() {
            let Transition::TopicCreated { id, settings, .. } = transition else { continue };
            let topic = rig.topic(id.get()).unwrap();
            for queue in 0..settings.queues {
                let Ok(mut from) = rig.min(&topic, queue) else { continue };
                while let Some(ReadOutcome::Records { records, next, .. }) =
                    self.outcome(rig.try_read(&topic, queue, from, 7))
                {
                    from = next.get();
                    for record in records {
                        let event = self
                            .ledger
                            .events
                            .iter_mut()
                            .find(|event| event.offset == record.offset)
                            .expect("a reader gets what was sent");
                        assert_eq!(event.payload, record.batch);
                        assert_eq!(event.queue_offset, record.first_queue_offset.get());
                        event.given = true;
                    }
                }
            }
        }
    }

    /// Takes the disk as the cut left it and opens it. The ledger forgets what is rightly gone.
    pub(crate) fn after_cut(
        &self,
        image: SimDisk,
        choice: &CrashChoice,
        case: &dyn Display,
    ) -> Self {
        let mut run = Self {
            disk: image,
            config: self.config.clone(),
            rig: None,
            ledger: self.ledger.clone(),
            waiting: Vec::new(),
            wall: self.wall,
            is_faulty: false,
        };
        if let Err(error) = run.reopen() {
            panic!("{case}: {error:?}");
        }
        let rig = run.rig.as_mut().unwrap();
        let report = rig.store.start_report();
        assert_eq!(report.damaged, [], "{case}: a power cut damages nothing that was durable");
        rig.workers.settle();
        run.check(choice == &CrashChoice::EVERYTHING, case);
        let log = oracle::walk(&run.disk, case);
        oracle::sessions_agree(run.rig.as_ref().unwrap(), &log, case);
        // The producer goes on where the log ends.
        let last = log.iter().rev().find_map(|record| record.session);
        run.ledger.last_sequence = last.map_or(0, |mark| mark.sequence);
        run
    }

    /// Compares a settled store, its log and the ledger, and brings the ledger to what is there.
    pub(crate) fn check(&mut self, all: bool, case: &dyn Display) {
        let rig = self.rig.as_ref().unwrap();
        let log = oracle::walk(&self.disk, case);
        let seed = Dice(log.len() as u64 ^ self.ledger.sent << 8).roll();
        agrees(rig, &log, seed, case);
        let found: Vec<&Logged> = log.iter().filter(|record| !oracle::is_own(record)).collect();
        let ledger = &mut self.ledger;
        // What was in deleted segments was dead. Where those are, the log has holes.
        let present: Vec<_> =
            files(&self.disk, "commitlog").iter().map(|file| base(file)).collect();
        let len = self.config.segment_size;
        let is_present = |at: u64| present.iter().any(|base| (*base..base + len).contains(&at));
        let log_end = found.last().map_or(0, |last| last.header.end().get());
        ledger.events.retain(|event| {
            let is_deleted = event.end.get() <= log_end && !is_present(event.offset.get());
            if let Some(topic) = rig.topic(event.topic).filter(|_| is_deleted) {
                assert!(event.is_gone(rig, &topic), "{case}: deleted and alive: {event:?}");
            }
            !is_deleted
        });
        for (record, event) in found.iter().zip(&ledger.events) {
            let header = &record.header;
            assert_eq!(record.payload, event.payload, "{case}: bytes at {}", event.offset);
            assert_eq!(
                (
                    header.physical_offset,
                    header.epoch.get(),
                    header.topic.get(),
                    header.queue.get(),
                    header.queue_offset.get()
                ),
                (event.offset, event.epoch, event.topic, event.queue, event.queue_offset),
                "{case}"
            );
        }
        for missing in ledger.events.iter().skip(found.len()) {
            let is_durable = missing.end <= ledger.flushed;
            assert!(!is_durable, "{case}: flushed and lost: {missing:?}");
            let is_sync = missing.flush == FlushMode::Sync;
            assert!(!(is_sync && missing.acknowledged), "{case}: sync and lost: {missing:?}");
            assert!(!(is_sync && missing.given), "{case}: read and lost: {missing:?}");
            assert!(!all, "{case}: the process died, the disk did not: {missing:?}");
        }
        let cut = found.len().min(ledger.events.len());
        if let (Some(last), Some(first_lost)) =
            (cut.checked_sub(1).and_then(|last| ledger.events.get(last)), ledger.events.get(cut))
        {
            assert_ne!(last.set, first_lost.set, "{case}: half an append set");
        }
        // What nobody knew is there as a whole or not at all.
        let extra = found.get(ledger.events.len()..).unwrap_or_default();
        if !extra.is_empty() {
            assert_eq!(extra.len(), ledger.unknown.len(), "{case}: records that nobody sent");
        }
        ledger.events.truncate(cut);
        ledger.sets += 1;
        for (record, (topic, queue, payload)) in extra.iter().zip(ledger.unknown.drain(..)) {
            let header = &record.header;
            assert_eq!(
                (header.topic.get(), header.queue.get(), &record.payload),
                (topic, queue, &payload),
                "{case}: a record that nobody sent"
            );
            ledger.events.push(Event {
                offset: header.physical_offset,
                end: header.end(),
                epoch: header.epoch.get(),
                set: ledger.sets,
                topic,
                queue,
                queue_offset: header.queue_offset.get(),
                flush: FlushMode::Sync,
                messages: header.message_count.into(),
                store_time: header.store_time,
                payload,
                acknowledged: false,
                given: false,
            });
        }
        ledger.unknown.clear();
        // Recovery made all durable.
        ledger.flushed = rig.store.watermarks().flushed;
    }

    /// A topic that can be sent to, with one of its queues.
    pub(crate) fn any_queue(&self) -> Option<(u64, u32)> {
        let rig = self.rig.as_ref()?;
        let live = rig.applier.live();
        live.iter().find_map(|transition| match transition {
            Transition::TopicCreated { id, settings, .. } => Some((id.get(), settings.queues - 1)),
            _ => None,
        })
    }
}

/// Records of the log without the store's own, for comparing two starts.
pub(crate) fn without_epochs(log: Vec<Logged>) -> Vec<Logged> {
    log.into_iter().filter(|record| !oracle::is_own(record)).collect()
}

/// A random script: topics 1 (sync) and 2 (async), and later ones that come and go.
pub(crate) fn random(seed: u64, len: usize) -> Vec<Step> {
    let mut dice = Dice(seed);
    let mut steps = vec![
        Step::Create { topic: 1, queues: 2, flush: FlushMode::Sync },
        Step::Create { topic: 2, queues: 1, flush: FlushMode::Async },
    ];
    let (mut newest, mut live) = (2, vec![1, 2]);
    let sizes = [40, 700, 700, 700, 1_500, 3_000];
    while steps.len() < len {
        let topic = dice.pick(&live);
        let queue = if topic == 2 { 0 } else { dice.below(2) as u32 };
        steps.push(match dice.below(29) {
            26..=28 => Step::SendInSession { topic, queue, len: dice.pick(&sizes) },
            0..=7 => Step::Send { topic, queue, count: 1, len: dice.pick(&sizes) },
            8 => Step::Send { topic, queue, count: 3, len: 200 },
            9 | 10 => Step::Set(
                (0..1 + dice.below(4)).map(|_| (topic, queue, dice.pick(&sizes[..2]))).collect(),
            ),
            11 | 12 => Step::Dispatch,
            13 | 14 => Step::Flush,
            15 => Step::FlushIfDue,
            16 => Step::Seal,
            17 => Step::Allocate,
            18 => Step::Read,
            19 if dice.one_in(4) => Step::SetWall(dice.below(2_000_000)),
            19 => Step::Tick(dice.below(120)),
            20 if dice.one_in(3) => Step::CloseAndReopen,
            20 => Step::Settle,
            21 => Step::Purge { topic, queue: (topic != 2).then_some(queue) },
            22 if dice.one_in(2) => Step::Purge { topic, queue: None },
            22 if topic != 2 => Step::Keep { topic, ms: dice.pick(&[1_000, 3_000]) },
            22..=25 => Step::Clean(1 + dice.below(8) as usize),
            _ if dice.one_in(2) && live.len() > 2 => Step::Delete { topic: live.remove(2) },
            _ => {
                newest += 1;
                live.push(newest);
                let flush = dice.pick(&[FlushMode::Sync, FlushMode::Async]);
                Step::Create { topic: newest, queues: 2, flush }
            }
        });
    }
    steps
}

/// What the log holds of topics at its end.
pub(crate) fn topics_of(log: &[Logged]) -> usize {
    live_topics(log).len()
}
