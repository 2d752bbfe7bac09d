//! Runs a script on a broker and on the reference, and compares them.
//!
//! What a request changes is decided by the rules before it is made. It takes place when its record is appended, which
//! is seen at the end of the log: exactly the requests append that must. What was appended since the start is kept as a
//! list of events, so that after a power cut the broker's state can be looked for among the prefixes of that list.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use mainstem::broker::{Broker, BrokerError, ResetQueue, Stored as Left};
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{FlushMode, GroupSettings, TopicSettings};
use mainstem::store::StoredRecord;
use mainstem::testing::{CrashChoice, SimDisk, now};

use crate::rig::{Dice, Request, Rig, bare};
use crate::script::{Op, Setup};
use crate::world::{Effect, Event, World};

/// The least that a record takes in the log.
const RECORD: u64 = 128;

/// What a request that changes something is answered with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Done,
    Topic(u64, TopicSettings),
    /// So many messages; `None`: not counted.
    Purged(Option<u64>),
    Stored {
        queue: u32,
        first: u64,
        count: u64,
        time: u64,
        epoch: u64,
        is_duplicate: bool,
    },
    Group(u64, GroupSettings),
    Session {
        id: u64,
        epoch: u64,
        last: u64,
    },
    Reset(Vec<ResetQueue>),
}

/// An answer, and where in the log a batch is.
pub(crate) type Outcome = Result<(Answer, Option<u64>), BrokerError>;

/// Up to where the log must be on stable media before an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    Nothing,
    /// The request's own record.
    Own,
    /// All records about topics.
    Topics,
    /// All records about groups.
    Groups,
    At(u64),
}

/// What a request must come to.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) effects: Vec<Effect>,
    pub(crate) answer: Result<Answer, BrokerError>,
    pub(crate) wait: Wait,
    /// In a session: whose and which.
    pub(crate) batch: Option<(u64, u64, u64)>,
    /// Of a batch: its topic and what is in it.
    pub(crate) sent: Option<(u64, Bytes)>,
}

/// A request whose record is appended, and which was not answered yet.
struct Flying {
    request: Request<Outcome>,
    answer: Result<Answer, BrokerError>,
    flushed: u64,
    sent: Option<(u64, Bytes)>,
}

/// A place in a queue, in the epoch in which it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) topic: u64,
    pub(crate) queue: u32,
    pub(crate) first: u64,
    pub(crate) epoch: u64,
}

impl Place {
    pub(crate) fn of(topic: u64, record: &StoredRecord) -> Self {
        Self {
            topic,
            queue: record.queue.get(),
            first: record.first_queue_offset.get(),
            epoch: record.epoch.get(),
        }
    }
}

/// What anybody has seen at a place, over all starts: never anything else.
#[derive(Default)]
pub(crate) struct Ledger(BTreeMap<Place, (u64, Bytes)>);

impl Ledger {
    pub(crate) fn saw(&mut self, place: Place, offset: u64, batch: &Bytes) {
        let known = self.0.entry(place).or_insert_with(|| (offset, batch.clone()));
        assert!(*known == (offset, batch.clone()), "{place:?} was given twice");
    }

    pub(crate) fn offset(&self, place: &Place) -> Option<u64> {
        self.0.get(place).map(|(offset, _)| *offset)
    }
}

/// Proof that the interesting things happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(pub(crate) BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn note(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }
}

pub(crate) struct Model {
    pub(crate) setup: Setup,
    rig: Option<Rig>,
    /// As of the start, and what was appended since.
    base: World,
    events: Vec<Event>,
    /// Both together.
    pub(crate) world: World,
    pub(crate) wall: u64,
    pub(crate) epoch: u64,
    flying: Vec<Flying>,
    /// Where queues of topics with a retention in bytes were seen to begin.
    pub(crate) floors: BTreeMap<(u64, u32), u64>,
    pub(crate) ledger: Ledger,
    /// Messages of the batch that a session stored last under a sequence.
    pub(crate) counts: BTreeMap<(u64, u64), u64>,
    /// The power goes at some operation to come, and then as this seed says.
    power_off: Option<u64>,
    pub(crate) sent: u64,
    pub(crate) tally: Tally,
}

/// A batch of so many messages that nobody looks at.
pub(crate) fn filler(count: u64) -> Bytes {
    let mut builder = BatchBuilder::new();
    for _ in 0..count {
        builder.push(&NewMeta::default(), b"filler");
    }
    builder.finish()
}

/// Runs a script.
pub(crate) fn run(setup: Setup, ops: &[Op]) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let wall = 1_700_000_000_000;
    let mut model = Model {
        setup,
        rig: Some(Rig::open(&SimDisk::new(), &setup, wall).unwrap()),
        base: World::default(),
        events: Vec::new(),
        world: World::default(),
        wall,
        epoch: 1,
        flying: Vec::new(),
        floors: BTreeMap::new(),
        ledger: Ledger::default(),
        counts: BTreeMap::new(),
        power_off: None,
        sent: 0,
        tally: Tally::default(),
    };
    for op in ops {
        model.run(op);
        if model.rig().disk.is_off() {
            model.lose_power(model.power_off.unwrap_or_default(), None);
        }
    }
    model.run(&Op::Look);
    model.run(&Op::Kill { bare: false });
    model.run(&Op::Stop);
    model.run(&Op::Look);
    model.tally
}

impl Model {
    pub(crate) fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    pub(crate) fn rig_mut(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap()
    }

    /// A step of the machine; one of a client or an operator is made by the rules.
    fn run(&mut self, op: &Op) {
        match op {
            Op::Look => {
                self.land();
                let Some(seen) = self.seen() else { return };
                self.differs(&seen, &self.world).unwrap_or_else(|why| panic!("{why}"));
                self.tally.note("looks at everything", 1);
            }
            Op::Work { steps, seed } => {
                let mut dice = Dice(*seed);
                (0..*steps).for_each(|_| self.rig_mut().step(&mut dice));
                self.poll_flying();
                self.refresh();
            }
            Op::Settle => {
                self.rig_mut().settle();
                self.refresh();
            }
            Op::Wait(ms) => {
                self.wall += ms;
                self.rig().clock.advance(std::time::Duration::from_millis(*ms));
            }
            Op::Stop => {
                self.spare();
                self.land();
                self.count_work();
                let disk = self.rig.take().unwrap().stop();
                self.start(&disk);
                self.kept_all();
            }
            Op::Kill { bare: is_bare } => {
                self.spare();
                self.tally.note("requests cut off by a kill", self.flying.len() as u64);
                self.flying.clear();
                self.count_work();
                let disk = self.rig.take().unwrap().kill();
                if *is_bare {
                    bare(&disk);
                }
                self.start(&disk);
                if *is_bare && self.world.topics.values().any(|topic| topic.least_bytes.is_some()) {
                    // How many bytes are in a segment is known again when its files are made again.
                    self.rig_mut().settle();
                }
                self.kept_all();
            }
            Op::Cut { seed, again } => self.lose_power(*seed, *again),
            Op::PowerOff { operations, bytes, seed } => {
                let disk = &self.rig().disk;
                disk.crash_inside(disk.operations() + operations, *bytes);
                self.power_off = Some(*seed);
            }
            request => self.request(request),
        }
    }

    /// The power does not go after all.
    fn spare(&mut self) {
        self.rig().disk.crash_at(u64::MAX);
        self.power_off = None;
    }

    fn count_work(&mut self) {
        let store = self.rig().broker.status().store;
        self.tally.note("segments deleted", store.deleted_segments);
        self.tally.note("images taken", store.images);
    }

    // ---- requests

    /// The answer of a request that changes nothing, once no file is being made again for it. `None`: the power went.
    pub(crate) fn ask<T: 'static, F>(
        &mut self,
        make: impl Fn(Arc<Broker>) -> F,
    ) -> Option<Result<T, BrokerError>>
    where
        F: Future<Output = Result<T, BrokerError>> + 'static,
    {
        for _ in 0..5 {
            if self.rig().disk.is_off() {
                return None;
            }
            let request = make(Arc::clone(&self.rig().broker));
            let answer = self.rig_mut().answer(request)?;
            if self.rig().disk.is_off() {
                return None;
            }
            match answer {
                Err(BrokerError::Rebuilding) => {
                    self.tally.note("answers while a file is made again", 1);
                    self.rig_mut().settle();
                }
                answer => return Some(answer),
            }
        }
        panic!("a file is never made again");
    }

    /// Makes a request that may change something. With `leave` it is left alone once its record is appended.
    pub(crate) fn execute(
        &mut self,
        plan: Plan,
        make: impl Fn(Arc<Broker>) -> Request<Outcome>,
        leave: bool,
    ) {
        // It went while others were helped.
        if self.rig().disk.is_off() {
            return;
        }
        let mut request = make(Arc::clone(&self.rig().broker));
        let (mut within, mut outcome) = (None::<(u64, u64)>, None);
        for round in 0.. {
            let before = self.rig().appended();
            let (answer, has_appended) = self.rig().look_at(&mut request);
            if has_appended {
                let begin = within.map_or(before, |(begin, _)| begin);
                within = Some((begin, self.rig().appended()));
            }
            if let Some(Err(BrokerError::Rebuilding)) = answer
                && within.is_none()
            {
                self.rig_mut().settle();
                request = make(Arc::clone(&self.rig().broker));
                continue;
            }
            if answer.is_some() {
                outcome = answer;
                break;
            }
            let is_appended = within.is_some() && plan.effects.len() == 1;
            if leave && is_appended || !self.rig_mut().helped(round) {
                break;
            }
        }
        self.made(plan, within, outcome, request);
    }

    /// Takes over what a request has done by now, and looks at its answer, if it has one.
    fn made(
        &mut self,
        plan: Plan,
        within: Option<(u64, u64)>,
        outcome: Option<Outcome>,
        request: Request<Outcome>,
    ) {
        let is_off = self.rig().disk.is_off();
        if is_off && !matches!(outcome, Some(Ok(_))) {
            let is_unknown = match &outcome {
                Some(Err(error)) => error.stored() == Left::Unknown,
                Some(Ok(_)) | None => false,
            };
            // Written in part, or of several records some: it may be there or not.
            let within = match within {
                Some(within) if plan.effects.len() == 1 => Some(within),
                Some((begin, _)) => Some((begin, u64::MAX)),
                None if is_unknown => Some((self.rig().appended(), u64::MAX)),
                None => None,
            };
            self.tally.note("requests cut off by a power cut", 1);
            if let Some(within) = within {
                self.happened(&plan, within);
            }
            return;
        }
        assert_eq!(
            within.is_some(),
            !plan.effects.is_empty(),
            "appended {within:?}, planned {plan:?}, got {outcome:?}"
        );
        if let Some(within) = within {
            self.happened(&plan, within);
        }
        let end = within.map_or(0, |(_, end)| end);
        let flushed = match plan.wait {
            Wait::Nothing => 0,
            Wait::Own => end,
            Wait::Topics => self.world.topics_applied,
            Wait::Groups => self.world.groups_applied,
            Wait::At(end) => end,
        };
        let Plan { answer, sent, .. } = plan;
        match outcome {
            Some(outcome) => self.check(outcome, &answer, flushed, sent),
            None => self.flying.push(Flying { request, answer, flushed, sent }),
        }
    }

    fn happened(&mut self, plan: &Plan, within: (u64, u64)) {
        for effect in &plan.effects {
            let event = Event { within, effect: effect.clone() };
            self.world.apply(&event);
            self.events.push(event);
        }
        if let Some((session, sequence, count)) = plan.batch {
            self.counts.insert((session, sequence), count);
        }
    }

    fn check(
        &mut self,
        outcome: Outcome,
        wanted: &Result<Answer, BrokerError>,
        flushed: u64,
        sent: Option<(u64, Bytes)>,
    ) {
        match (&outcome, wanted) {
            // Its queue files are being made again, and it does not wait for them.
            (Ok((Answer::Purged(None), _)), Ok(Answer::Purged(_))) => {}
            (Ok((answer, offset)), Ok(wanted)) => {
                assert_eq!(answer, wanted);
                if let (Answer::Stored { queue, first, epoch, .. }, Some(offset)) = (answer, offset)
                    && let Some((topic, batch)) = sent
                {
                    let place = Place { topic, queue: *queue, first: *first, epoch: *epoch };
                    self.ledger.saw(place, *offset, &batch);
                }
            }
            (Err(error), Err(wanted)) => {
                let told = |error: &BrokerError| (error.reason(), error.to_string());
                // How many bytes were too many is the record's own business.
                if !matches!(wanted, BrokerError::TooLarge { .. }) {
                    assert_eq!(told(error), told(wanted));
                }
                assert_eq!(error.reason(), wanted.reason());
                self.tally.note("refusals", 1);
            }
            _ => panic!("got {outcome:?}, but it must be {wanted:?}"),
        }
        let now = self.rig().flushed();
        assert!(now >= flushed, "answered when {now} was durable, not {flushed}: {outcome:?}");
    }

    /// Looks at the requests under way without helping them.
    fn poll_flying(&mut self) {
        for mut flying in std::mem::take(&mut self.flying) {
            if self.rig().disk.is_off() {
                return;
            }
            match now(flying.request.as_mut()) {
                Some(outcome) if !self.rig().disk.is_off() => {
                    self.check(outcome, &flying.answer, flying.flushed, flying.sent);
                }
                Some(_) => {}
                None => self.flying.push(flying),
            }
        }
    }

    /// Helps the requests under way until they are answered.
    pub(crate) fn land(&mut self) {
        for round in 0.. {
            self.poll_flying();
            if self.flying.is_empty() || !self.rig_mut().helped(round) {
                return;
            }
        }
    }

    /// Notes where the queues begin that have a retention in bytes: the cleaning may have moved that on.
    pub(crate) fn refresh(&mut self) {
        let topics = self.world.topics.iter().filter(|(_, topic)| topic.least_bytes.is_some());
        let topics: Vec<_> = topics.map(|(name, topic)| (*name, topic.clone())).collect();
        for (name, topic) in topics {
            if self.rig().disk.is_off() {
                return;
            }
            let Some(ranges) = self.ranges(name) else { return };
            for (queue, (min, max)) in (0..).zip(ranges) {
                self.check_min(&topic, queue, (min, max))
                    .unwrap_or_else(|why| panic!("{name}/{queue}: {why}"));
                let exact = topic.min(queue, self.wall).min(max);
                let known = self.floors.entry((topic.id, queue)).or_default();
                let moved = min > exact.max(*known);
                *known = min;
                self.tally.note("queues that begin later by their bytes", moved.into());
            }
        }
    }

    /// Where a queue begins and ends, with nothing under way.
    pub(crate) fn range(&self, topic: &str, queue: u32) -> (u64, u64) {
        let topic = &self.world.topics[topic];
        let max = topic.queues[queue as usize].next();
        (self.min(topic.id, topic.min(queue, self.wall), queue).min(max), max)
    }

    pub(crate) fn min(&self, topic: u64, exact: u64, queue: u32) -> u64 {
        self.floors.get(&(topic, queue)).copied().unwrap_or(0).max(exact)
    }

    pub(crate) fn is_sync(&self) -> bool {
        self.setup.flush == FlushMode::Sync
    }

    // ---- starts

    fn start(&mut self, disk: &SimDisk) {
        let rig = Rig::open(disk, &self.setup, self.wall).unwrap();
        let status = rig.broker.status();
        assert!(status.store.damaged.is_empty(), "{:?}", rig.broker.start_report());
        assert!(status.epoch.get() > self.epoch, "epochs rise");
        self.epoch = status.epoch.get();
        self.rig = Some(rig);
        self.tally.note("starts", 1);
    }

    /// After a stop or a kill: everything is as it was.
    fn kept_all(&mut self) {
        let Some(seen) = self.seen() else { panic!("the power is on") };
        self.differs(&seen, &self.world).unwrap_or_else(|why| panic!("after the start: {why}"));
        self.begin();
    }

    /// From here on nothing can be lost any more.
    fn begin(&mut self) {
        self.world.started();
        self.base = self.world.clone();
        self.events.clear();
        self.refresh();
    }

    /// A power cut, and the next start. Whatever is there then is what some prefix of the log comes to, and nothing is
    /// missing from it that was durable.
    fn lose_power(&mut self, seed: u64, again: Option<u64>) {
        self.tally.note("power cuts", 1);
        self.count_work();
        self.power_off = None;
        self.flying.clear();
        let flushed = self.rig().flushed();
        let disk = self.rig.take().unwrap().kill();
        let cut = |disk: &SimDisk, seed| {
            disk.crash_image(&CrashChoice::random(seed, disk.pending_counts()))
        };
        let mut image = cut(&disk, seed);
        let mut end = None;
        if let Some(operations) = again {
            // What one start finds, seen on a copy.
            let copy = image.crash_image(&CrashChoice::EVERYTHING);
            end = Some(Rig::open(&copy, &self.setup, self.wall).unwrap().appended());
            image.crash_at(operations);
            // Whether it comes up or not.
            drop(Rig::open(&image, &self.setup, self.wall));
            image = cut(&image, seed.rotate_left(7));
        }
        self.start(&image);
        self.floors.clear();

        let end = end.unwrap_or_else(|| self.rig().appended());
        let durable = self.events.iter().take_while(|event| event.within.1 <= flushed).count();
        // Behind it there is the record of the start.
        let possible = self.events.iter().take_while(|event| event.within.0 + 2 * RECORD <= end);
        let possible = possible.count().max(durable);
        let Some(seen) = self.seen() else { panic!("the power is on") };
        let mut worlds = vec![self.base.clone()];
        for event in &self.events[..possible] {
            let mut next = worlds[worlds.len() - 1].clone();
            next.apply(event);
            worlds.push(next);
        }
        let differences: Vec<_> = (durable..=possible)
            .rev()
            .map(|kept| (kept, self.differs(&seen, &worlds[kept])))
            .collect();
        let found = differences.iter().find(|(_, difference)| difference.is_ok());
        let Some((kept, _)) = found else {
            panic!("no prefix is there, of {durable} to {possible} events: {differences:#?}");
        };
        let lost = self.events.len() - kept;
        self.tally.note("changes lost by power cuts", lost as u64);
        self.tally.note("changes kept that were not durable", (kept - durable) as u64);
        self.world = worlds.swap_remove(*kept);
        self.begin();
    }
}
