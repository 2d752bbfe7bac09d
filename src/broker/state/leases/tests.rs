//! Random runs of consumers beside a naive model: what is in memory, what a replay of the log makes of it, and what a
//! snapshot with the records behind it makes of it are the same; and no promise of the state is ever broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::broker::state::State;
use crate::broker::state::groups::GroupCreation;
use crate::broker::state::offsets::leased::{Change, Consumer, Fresh, Gave, Giving};
use crate::broker::state::offsets::{By, Caller, Commit, Expected, NewOffset, TopicCommit};
use crate::broker::state::topics::{Creation, Origin, TopicEntry};
use crate::format::DecodeError;
use crate::format::state_record::{OffsetCause, SessionBatch};
use crate::message::{
    Epoch, FlushMode, GroupSettings, PhysicalOffset, SessionMark, TopicSettings, TopicType,
};
use crate::store::{Applier, StateSnapshot, Store, StoreConfig, Topics, Workers};
use crate::sync::{Mutex, lock};
use crate::testing::{CrashChoice, ManualClock, SimDisk};

const QUEUES: u32 = 2;
const MOST: u32 = 3;

/// The state, and the records that a start replayed.
struct Recorder {
    state: State,
    replayed: Mutex<Vec<(Vec<u8>, PhysicalOffset)>>,
}

impl Applier for Recorder {
    fn restore(&self, topics: &Topics, state: &[u8]) -> Result<(), DecodeError> {
        self.state.restore(topics, state)
    }

    fn apply(
        &self,
        topics: &Topics,
        payload: &[u8],
        end: PhysicalOffset,
    ) -> Result<(), DecodeError> {
        lock(&self.replayed).push((payload.to_vec(), end));
        self.state.apply(topics, payload, end)
    }

    fn lease_clock(&self) -> Timestamp {
        self.state.lease_clock()
    }

    fn stored(&self, mark: SessionMark, batch: &SessionBatch) {
        self.state.stored(mark, batch);
    }

    fn snapshot(&self, topics: &Topics) -> StateSnapshot {
        self.state.snapshot(topics)
    }
}

struct Rig {
    disk: SimDisk,
    applier: Arc<Recorder>,
    clock: Arc<ManualClock>,
    store: Store,
    workers: Workers,
}

impl Rig {
    fn open(disk: SimDisk, clock: Arc<ManualClock>) -> Self {
        let applier = Arc::new(Recorder { state: State::new(0), replayed: Mutex::default() });
        let config = StoreConfig { segment_size: 256 << 10, ..StoreConfig::new("/data") };
        let (store, workers) =
            Store::open_stepped(Arc::new(disk.clone()), clock.clone(), config, applier.clone())
                .unwrap();
        Self { disk, applier, clock, store, workers }
    }

    fn new(ordered: bool) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::new(1_000)));
        let mut rig = Self::open(SimDisk::new(), clock);
        let state = &rig.applier.state;
        let settings = TopicSettings::open(QUEUES, FlushMode::Async, TopicType::Mixed);
        let topic = state.topics.create(&rig.store, "t", settings, Origin::Asked).unwrap().0;
        assert!(matches!(topic, Creation::Ready(_)), "{topic:?}");
        let settings =
            GroupSettings { ordered, max_attempts: Some(MOST), ..GroupSettings::default() };
        let group = state.groups.create(&rig.store, "g", &settings).unwrap().0;
        assert!(matches!(group, GroupCreation::Ready(_)), "{group:?}");
        let done = rig.reset(&[(0, 0)], OffsetCause::Commit);
        assert!(matches!(done, Commit::Done { .. }), "{done:?}");
        rig.workers.settle();
        rig
    }

    /// What is there now is there after a kill; after a power cut perhaps not.
    fn again(&mut self, power_cut: Option<u64>) {
        let choice = match power_cut {
            Some(seed) => CrashChoice::random(seed, self.disk.pending_counts()),
            None => CrashChoice::EVERYTHING,
        };
        *self = Self::open(self.disk.crash_image(&choice), Arc::clone(&self.clock));
    }

    fn with<T>(&self, work: impl FnOnce(Consumer<'_>) -> T) -> T {
        let group = self.applier.state.groups.get("g").unwrap();
        let topic = self.topic();
        work(Consumer { store: &self.store, group: &group, topic: &topic })
    }

    fn topic(&self) -> Arc<TopicEntry> {
        self.applier.state.topics.get("t").unwrap()
    }

    fn now(&self) -> u64 {
        self.store.lease_time().get()
    }

    fn reset(&self, positions: &[(u32, u64)], cause: OffsetCause) -> Commit {
        let state = &self.applier.state;
        let offsets = positions.iter().map(|(queue, offset)| NewOffset {
            queue: QueueId::new(*queue),
            offset: QueueOffset::new(*offset),
            expected: Expected::Any,
        });
        let commit =
            TopicCommit { topic: self.topic(), known_queues: 1, offsets: offsets.collect() };
        let by = By { cause, caller: Caller::default() };
        let group = state.groups.get("g").unwrap();
        state.offsets.commit(&self.store, &group, &[commit], by).unwrap()
    }

    fn position(&self, queue: u32) -> u64 {
        let (group, topic) = self.with(|consumer| consumer.key());
        let queue = QueueId::new(queue);
        self.applier.state.offsets.committed_of(group, topic, queue).0.unwrap().get()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.applier.state.snapshot(self.store.topics()).state
    }
}

/// What consumers do. Messages without end lie in each queue; which message group one is of follows from its offset.
#[derive(Clone, Debug)]
enum Step {
    /// Due ones up to so many, then so many fresh ones of a queue, of which those at these places are not wanted.
    Receive {
        due: usize,
        queue: u32,
        fresh: u64,
        unwanted: u64,
        lasts: u64,
        /// Hash of a client with which the leases end, or 0.
        client: u64,
        /// What is done with receipts between the look and the giving.
        meanwhile: Meanwhile,
    },
    /// Receipts, by their places among all that were ever given out.
    Ack(Vec<usize>),
    Change(Vec<usize>, u64, bool, bool),
    Lose(u64),
    Reset(u32, u64),
    Wait(u64),
    Snapshot,
    Kill,
    PowerCut(u64),
    Flush,
}

/// What others do while somebody reads what he is about to be given.
#[derive(Clone, Debug)]
enum Meanwhile {
    Nothing,
    Ack(Vec<usize>),
    Change(Vec<usize>, u64, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let places = || prop::collection::vec(0_usize..60, 1..4);
    let meanwhile = || {
        prop_oneof![
            4 => Just(Meanwhile::Nothing),
            1 => places().prop_map(Meanwhile::Ack),
            1 => (places(), 0_u64..60, any::<bool>())
                .prop_map(|(places, after, leased)| Meanwhile::Change(places, after, leased)),
        ]
    };
    let receive = (0_usize..4, 0..QUEUES, 0_u64..6, any::<u64>(), 1_u64..50, 0_u64..3, meanwhile());
    prop_oneof![
        8 => receive.prop_map(|(due, queue, fresh, unwanted, lasts, client, meanwhile)| {
            Step::Receive { due, queue, fresh, unwanted, lasts, client, meanwhile }
        }),
        6 => places().prop_map(Step::Ack),
        3 => (places(), 0_u64..60, any::<bool>(), any::<bool>())
            .prop_map(|(places, after, leased, same)| Step::Change(places, after, leased, same)),
        1 => (1_u64..3).prop_map(Step::Lose),
        1 => (0..QUEUES, 0_u64..12).prop_map(|(queue, to)| Step::Reset(queue, to)),
        3 => (1_u64..40).prop_map(Step::Wait),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => Just(Step::Flush),
    ]
}

/// The message group of a message, 0 without one: some have none.
fn group_of(offset: u64) -> u32 {
    u32::try_from(offset % 3).unwrap()
}

/// What is true of a message, without cursors and positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Open {
        lease: LeaseId,
        deliveries: u32,
        due: u64,
        same: bool,
        ahead: bool,
        renewed: bool,
        client: u64,
    },
    /// By this lease; `None`: passed over.
    Finished { by: Option<LeaseId>, renewed: bool },
}

/// The naive model: every message that was ever looked at, and the place behind the last of each queue.
#[derive(Clone, Debug, Default)]
struct Model {
    messages: BTreeMap<Place, Truth>,
    ends: BTreeMap<u32, u64>,
    /// Leases up to this one are over.
    revoked: BTreeMap<u32, LeaseId>,
}

impl Model {
    fn position(&self, queue: u32) -> u64 {
        let of_queue = self.messages.range((queue, 0)..(queue + 1, 0));
        let mut open = of_queue.filter(|(_, truth)| matches!(truth, Truth::Open { .. }));
        open.next().map_or(self.end(queue), |((_, offset), _)| *offset)
    }

    fn end(&self, queue: u32) -> u64 {
        self.ends.get(&queue).copied().unwrap_or(0)
    }

    fn lock(place: Place) -> (u32, u32) {
        // Message groups are of the topic; those without one of the queue.
        match group_of(place.1) {
            0 => (place.0 + 1, 0),
            group => (0, group),
        }
    }

    /// Open messages of the message group of a place.
    fn of_lock(&self, place: Place) -> Vec<(Place, Truth)> {
        let same = |(other, truth): &(&Place, &Truth)| {
            matches!(truth, Truth::Open { .. }) && Self::lock(**other) == Self::lock(place)
        };
        self.messages.iter().filter(same).map(|(place, truth)| (*place, *truth)).collect()
    }

    /// What may be delivered again now.
    fn may_be_due(&self, place: Place, now: u64, ordered: bool) -> bool {
        let Some(Truth::Open { due, deliveries, same, .. }) = self.messages.get(&place) else {
            return false;
        };
        let next = deliveries + u32::from(!same || *deliveries == 0);
        if next > MOST || *due > now {
            return false;
        }
        !ordered
            || self.of_lock(place).iter().all(|(_, truth)| match truth {
                Truth::Open { due, ahead, .. } => *ahead || *due <= now,
                Truth::Finished { .. } => true,
            })
    }
}

/// A receipt that was given out, and of which epoch.
#[derive(Clone, Copy, Debug)]
struct Receipt(Claim);

struct Game {
    rig: Rig,
    model: Model,
    receipts: Vec<Receipt>,
    snapshots: Vec<Vec<u8>>,
    ordered: bool,
}

impl Game {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Receive { due, queue, fresh, unwanted, lasts, client, meanwhile } => {
                let how = (*unwanted, *lasts, *client);
                self.receive(*due, (*queue, *fresh), how, meanwhile);
            }
            Step::Lose(client) => self.lose(*client),
            Step::Ack(places) => self.ack(places),
            Step::Change(places, after, leased, same) => {
                self.change(places, *after, *leased, *same);
            }
            Step::Reset(queue, to) => {
                let appended = self.rig.store.watermarks().appended;
                let done = self.rig.reset(&[(*queue, *to)], OffsetCause::Reset);
                let Commit::Done { end, .. } = done else { panic!("{done:?}") };
                let is_said = self.rig.store.watermarks().appended > appended;
                // Where it is already, with nothing open: nothing is said, and receipts are worth what they were.
                let mut of_queue =
                    self.model.messages.iter().filter(|(place, _)| place.0 == *queue);
                let is_open = of_queue.any(|(_, truth)| matches!(truth, Truth::Open { .. }));
                let is_there = !is_open && self.model.end(*queue) == *to;
                // At its begin it may never have been committed, which is something else: the model does not tell these
                // apart, least of all after a power cut.
                assert!(is_said != is_there || is_there && *to == 0, "{queue} to {to}");
                if !is_said {
                    return self.check();
                }
                let number = end.get();
                self.model.messages.retain(|place, _| place.0 != *queue);
                self.model.ends.insert(*queue, *to);
                let lease = LeaseId { epoch: self.rig.store.epoch(), number };
                let revoked = self.model.revoked.entry(*queue).or_default();
                *revoked = lease.max(*revoked);
            }
            Step::Wait(ms) => self.rig.clock.advance(Duration::from_millis(*ms)),
            Step::Snapshot => self.snapshots.push(self.rig.snapshot()),
            Step::Flush => self.rig.workers.settle(),
            Step::Kill => self.restart(None),
            Step::PowerCut(seed) => self.restart(Some(*seed)),
        }
        self.check();
    }

    fn receive(
        &mut self,
        room: usize,
        (queue, count): (u32, u64),
        (unwanted, lasts, client): (u64, u64, u64),
        meanwhile: &Meanwhile,
    ) {
        let (offsets, now) = (&self.rig.applier.state.offsets, self.rig.now());
        let (filter, of_any) = (1 + u32::try_from(now % 3).unwrap(), (Kind::Again, Line::Any));
        let mut taken = Taken::default();
        for line in [Line::Own(filter), Line::New(filter), Line::Left(filter)] {
            let (line, room) = ((Kind::Again, line), room - taken.due.len());
            taken.append(self.rig.with(|consumer| offsets.take_due(consumer, line, now, room)));
        }
        for due in &taken.due {
            let is_due = self.model.may_be_due(due.place, now, self.ordered);
            assert!(is_due, "{due:?} of {:?}", self.model);
        }
        if !self.ordered {
            let all = self.model.messages.keys();
            let all = all.filter(|place| self.model.may_be_due(**place, now, false)).count();
            assert_eq!(taken.due.len(), all.min(room), "whatever is due is found");
        }
        // In the hand of one, and of nobody else.
        let others = self.rig.with(|consumer| offsets.take_due(consumer, of_any, now, 99));
        assert!(others.due.iter().all(|due| !taken.due.contains(due)));
        self.rig.with(|consumer| offsets.put_back(consumer.key(), &others, now));

        let from = self.rig.with(|consumer| offsets.cursors(consumer, &[queue]))[0].0;
        assert_eq!(from, self.model.end(queue));
        let wanted = (from..from + count).filter(|offset| unwanted >> (offset % 64) & 1 == 0);
        let fresh = Fresh {
            kept: Vec::new(),
            queue,
            from,
            to: from + count,
            messages: wanted.map(|offset| (offset, group_of(offset))).collect(),
        };
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Ack(places) => self.ack(places),
            Meanwhile::Change(places, after, leased) => self.change(places, *after, *leased, false),
        }
        let offsets = &self.rig.applier.state.offsets;
        let before = self.model.clone();
        let is_as_it_was = |due: &&Due| match before.messages.get(&due.place) {
            Some(Truth::Open { lease, .. }) => *lease == due.open.lease,
            _ => false,
        };
        // Some are left for others; every third one is not wanted any more.
        let is_left = |due: &&Due| lasts % 4 == 3 && due.lock() % 2 == 1;
        let (left, mine): (Vec<_>, Vec<_>) = taken.due.iter().partition(is_left);
        let (finished, again): (Vec<Due>, Vec<_>) =
            mine.into_iter().copied().partition(|due| due.place.1 % 3 == 2);
        let left: Vec<_> = left.into_iter().map(|due| (*due, filter % 3)).collect();
        let giving = Giving {
            again: &again,
            finished: &finished,
            repeated: &[],
            fresh: std::slice::from_ref(&fresh),
            due: now + lasts,
            attempt: None,
            client,
            holder: ["one", "two", ""][(now % 3) as usize],
            filters: (filter, 0),
        };
        let gave = self.rig.with(|consumer| offsets.give(consumer, &giving)).unwrap();
        let Gave::Done { lease, messages } = gave else { panic!("{gave:?}") };
        taken.left = left;
        self.rig.with(|consumer| offsets.put_back(consumer.key(), &taken, now));

        for due in finished.iter().filter(is_as_it_was) {
            let Some(Truth::Open { lease, renewed, .. }) = self.model.messages.get(&due.place)
            else {
                panic!("{due:?}")
            };
            let finished = Truth::Finished { by: Some(*lease), renewed: *renewed };
            self.model.messages.insert(due.place, finished);
        }
        let given: BTreeSet<Place> = messages.iter().map(|message| message.place).collect();
        assert_eq!(given.len(), messages.len());
        for message in &messages {
            let place = message.place;
            let (deliveries, renewed) = match before.messages.get(&place) {
                Some(Truth::Open { deliveries, same, lease, .. }) => {
                    (deliveries + u32::from(!same || *deliveries == 0), *lease > LeaseId::default())
                }
                None => (1, false),
                other => panic!("{other:?} was given again"),
            };
            assert_eq!((message.delivery, message.is_first), (deliveries, !renewed));
            let (due, same, ahead) = (now + lasts, false, false);
            let open = Truth::Open { lease, deliveries, due, same, ahead, renewed, client };
            self.model.messages.insert(place, open);
            self.receipts.push(Receipt(Claim { place, lease, is_first: message.is_first }));
        }
        // What was read from elsewhere is left out.
        let end = if before.end(queue) == from { from + count } else { from };
        for offset in from..end {
            let place = (queue, offset);
            if given.contains(&place) {
                continue;
            }
            let is_wanted = fresh.messages.iter().any(|(wanted, _)| *wanted == offset);
            assert!(!is_wanted || self.ordered, "an unordered group gets what it wants");
            let (lease, deliveries, due, same) = (LeaseId::default(), 0, 0, false);
            let (ahead, renewed, client) = (true, false, 0);
            let truth = match is_wanted {
                true => Truth::Open { lease, deliveries, due, same, ahead, renewed, client },
                false => Truth::Finished { by: None, renewed: false },
            };
            self.model.messages.insert(place, truth);
        }
        let known = self.model.ends.entry(queue).or_default();
        *known = (*known).max(end);
        if self.ordered {
            self.check_order(&before, &messages.iter().map(|m| m.place).collect::<Vec<_>>(), now);
        }
    }

    /// No message of a message group is given while an earlier one is open with somebody else.
    fn check_order(&self, before: &Model, given: &[Place], now: u64) {
        let mut seen = BTreeSet::new();
        for place in given {
            seen.insert(*place);
            for (other, truth) in self.model.of_lock(*place) {
                if other.0 == place.0 && other.1 < place.1 {
                    assert!(seen.contains(&other), "{other:?} comes before {place:?}");
                }
                if !given.contains(&other) {
                    let Truth::Open { due, ahead, .. } = truth else { continue };
                    assert!(ahead || due <= now, "{other:?} is with somebody else: {before:?}");
                }
            }
        }
    }

    fn claims(&self, places: &[usize]) -> Vec<Claim> {
        let known = places.iter().filter_map(|place| {
            let back = self.receipts.len().checked_sub(place + 1)?;
            self.receipts.get(back)
        });
        known.map(|receipt| receipt.0).collect()
    }

    fn standing(&self, claim: &Claim) -> Standing {
        let now = self.rig.store.epoch();
        let is_old = claim.lease.epoch < now;
        let revoked = self.model.revoked.get(&claim.place.0).copied().unwrap_or_default();
        if claim.lease <= revoked && revoked > LeaseId::default() {
            return Standing::Stale;
        }
        match self.model.messages.get(&claim.place) {
            Some(Truth::Open { lease, .. }) => {
                match claim.lease == *lease || is_old && claim.lease > *lease {
                    true => Standing::Held,
                    false => Standing::Stale,
                }
            }
            Some(Truth::Finished { by, renewed }) => {
                let is_its_own = match (by, renewed) {
                    (Some(by), true) => claim.lease == *by || is_old && claim.lease > *by,
                    _ => claim.is_first,
                };
                if is_its_own { Standing::Finished } else { Standing::Stale }
            }
            None if claim.place.1 < self.model.end(claim.place.0) => match claim.is_first {
                true => Standing::Finished,
                false => Standing::Stale,
            },
            None if is_old => Standing::Lost,
            None => Standing::Stale,
        }
    }

    fn ack(&mut self, places: &[usize]) {
        let claims = self.claims(places);
        let expected: Vec<_> = claims.iter().map(|claim| self.standing(claim)).collect();
        let offsets = &self.rig.applier.state.offsets;
        let settled = self.rig.with(|consumer| offsets.finish(consumer, &claims)).unwrap();
        for ((claim, standing), result) in claims.iter().zip(expected).zip(&settled.results) {
            let place = claim.place;
            match standing {
                Standing::Held => {
                    assert!(result.is_some(), "{claim:?}");
                    if let Some(Truth::Open { lease, renewed, .. }) =
                        self.model.messages.get(&place).copied()
                    {
                        let finished = Truth::Finished { by: Some(lease), renewed };
                        self.model.messages.insert(place, finished);
                    }
                }
                Standing::Finished => assert!(result.is_some(), "{claim:?}"),
                Standing::Stale => assert_eq!(*result, None, "{claim:?} of {:?}", self.model),
                Standing::Lost if result.is_some() => {
                    let end = self.model.end(place.0);
                    for offset in end..place.1 {
                        let (lease, deliveries, due, same) = (LeaseId::default(), 0, 0, false);
                        let (ahead, renewed, client) = (true, false, 0);
                        let open =
                            Truth::Open { lease, deliveries, due, same, ahead, renewed, client };
                        self.model.messages.entry((place.0, offset)).or_insert(open);
                    }
                    let finished = Truth::Finished { by: None, renewed: false };
                    self.model.messages.insert(place, finished);
                    self.model.ends.insert(place.0, end.max(place.1 + 1));
                }
                Standing::Lost => assert!(self.ordered, "there is room: {claim:?}"),
            }
        }
    }

    fn change(&mut self, places: &[usize], after: u64, leased: bool, same: bool) {
        let claims = self.claims(places);
        let now = self.rig.now();
        let state = if leased { OpenState::Leased } else { OpenState::Waiting };
        let changes: Vec<_> = claims
            .iter()
            .map(|claim| Change { claim: *claim, due: now + after, state, same_delivery: same })
            .collect();
        let offsets = &self.rig.applier.state.offsets;
        let settled = self.rig.with(|consumer| offsets.change(consumer, &changes)).unwrap();
        let mut changed = BTreeSet::new();
        for (claim, result) in claims.iter().zip(settled.results) {
            let is_held = self.standing(claim) == Standing::Held && changed.insert(claim.place);
            assert_eq!(result.is_some(), is_held, "{claim:?}");
        }
        let lease = LeaseId { epoch: self.rig.store.epoch(), number: settled.end.get() };
        for place in changed {
            let Some(Truth::Open { deliveries, .. }) = self.model.messages.get(&place).copied()
            else {
                panic!("{place:?}")
            };
            let (due, ahead, renewed, client) = (now + after, false, true, 0);
            let deliveries = deliveries.max(1);
            let open = Truth::Open { lease, deliveries, due, same, ahead, renewed, client };
            self.model.messages.insert(place, open);
            self.receipts.push(Receipt(Claim { place, lease, is_first: false }));
        }
    }

    /// What was leased to a client is due, and whoever has a receipt may still use it.
    fn lose(&mut self, lost: u64) {
        let (offsets, now) = (&self.rig.applier.state.offsets, self.rig.now());
        self.rig.with(|consumer| {
            offsets.lose_clients(consumer, &[lost]).unwrap();
            assert!(!offsets.clients_of(consumer.key()).contains(&lost));
        });
        for truth in self.model.messages.values_mut() {
            if let Truth::Open { due, client, .. } = truth
                && *client == lost
            {
                (*due, *client) = (now.min(*due), 0);
            }
        }
    }

    fn restart(&mut self, power_cut: Option<u64>) {
        let before = self.rig.snapshot();
        self.rig.again(power_cut);
        let is_whole = self.rig.snapshot() == before;
        assert!(is_whole || power_cut.is_some(), "a kill takes nothing");
        self.snapshots.clear();
        if !is_whole {
            // What a power cut left is the prefix of what there was: the model begins there, with what is seen.
            self.relearn();
        }
    }

    /// Takes over what is there. Receipts stay, also those of which the log knows nothing any more.
    fn relearn(&mut self) {
        let (group, topic) = self.rig.with(|consumer| consumer.key());
        let mut out = Vec::new();
        self.rig.applier.state.offsets.snapshot_into(&mut out);
        let _ = (group, topic);
        self.model = Model::default();
        for queue in 0..QUEUES {
            let cursors = self
                .rig
                .with(|consumer| self.rig.applier.state.offsets.cursors(consumer, &[queue]));
            self.model.ends.insert(queue, cursors[0].0);
        }
        for transition in crate::format::state_record::transitions(&out) {
            let Transition::LeasesKept { open, ended, revoked, .. } = transition.unwrap() else {
                continue;
            };
            for row in revoked {
                self.model.revoked.insert(row.queue.get(), row.lease);
            }
            for row in ended {
                let finished = Truth::Finished { by: Some(row.lease), renewed: true };
                self.model.messages.insert((row.queue.get(), row.offset.get()), finished);
            }
            for row in open {
                let open = Truth::Open {
                    lease: row.lease,
                    deliveries: row.deliveries,
                    due: row.due.get(),
                    same: row.same_delivery,
                    ahead: row.state == OpenState::Ahead,
                    renewed: row.renewed,
                    client: row.client,
                };
                self.model.messages.insert((row.queue.get(), row.offset.get()), open);
            }
        }
    }

    fn check(&self) {
        for queue in 0..QUEUES {
            let position = self.rig.position(queue);
            assert_eq!(position, self.model.position(queue), "queue {queue} of {:?}", self.model);
        }
        let (group, topic) = self.rig.with(|consumer| consumer.key());
        let offsets = &self.rig.applier.state.offsets;
        let position = |queue| self.rig.position(queue);
        let positions: BTreeMap<_, _> = (0..QUEUES).map(|q| (q, position(q))).collect();
        offsets.check((group, topic), |queue| positions[&queue]);
    }
}

fn run(steps: &[Step], ordered: bool) {
    let mut game = Game {
        rig: Rig::new(ordered),
        model: Model::default(),
        receipts: Vec::new(),
        snapshots: Vec::new(),
        ordered,
    };
    for step in steps {
        game.step(step);
    }
    // The log alone, and any snapshot with the records behind it, make the same of it.
    let whole = game.rig.snapshot();
    let snapshots = std::mem::take(&mut game.snapshots);
    game.rig.again(None);
    let again = game.rig;
    assert_eq!(again.snapshot(), whole);
    let records = std::mem::take(&mut *lock(&again.applier.replayed));
    for snapshot in snapshots {
        let (state, topics) = (State::new(0), Topics::default());
        state.restore(&topics, &snapshot).unwrap();
        for (payload, end) in &records {
            state.apply(&topics, payload, *end).unwrap();
        }
        assert_eq!(state.snapshot(&topics).state, whole);
        assert_eq!(state.offsets.open(), again.applier.state.offsets.open());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_consumers_hold_is_what_the_log_says(
        steps in prop::collection::vec(step(), 1..60),
        ordered: bool,
    ) {
        run(&steps, ordered);
    }
}

#[test]
fn who_keeps_a_message_on_that_another_is_about_to_get_keeps_those_behind_it_back_too() {
    let receive = |due, fresh, meanwhile| {
        // Of the first six the second and the fifth: those of one message group.
        let (queue, unwanted, lasts, client) = (0, 0b101_101, 10, 0);
        Step::Receive { due, queue, fresh, unwanted, lasts, client, meanwhile }
    };
    let keeps_on = Meanwhile::Change(vec![1], 50, true);
    let steps = [receive(0, 6, Meanwhile::Nothing), Step::Wait(20), receive(4, 0, keeps_on)];
    run(&steps, true);
}

#[test]
fn a_reset_to_the_begin_of_a_queue_that_a_power_cut_took_revokes_what_was_leased_before() {
    let receive = |due, queue, fresh, unwanted, lasts, client| {
        let meanwhile = Meanwhile::Nothing;
        Step::Receive { due, queue, fresh, unwanted, lasts, client, meanwhile }
    };
    let steps = [
        receive(0, 1, 3, 777_208_490_842_587_592, 1, 0),
        receive(0, 0, 1, 11_102_940_621_406_081_958, 1, 0),
        receive(0, 0, 3, 18_119_949_194_560_223_712, 1, 0),
        receive(0, 0, 5, 169_464_468_626_616_848, 1, 0),
        receive(0, 0, 0, 3_242_186, 28, 0),
        receive(0, 0, 2, 9_015_413_473_342_409_732, 45, 1),
        Step::PowerCut(9_448_304_841_469_344_349),
        Step::Reset(1, 0),
        Step::Ack(vec![52, 0]),
        receive(1, 1, 0, 1_722_391_415_857_706_487, 45, 1),
        Step::Ack(vec![45, 11, 52]),
    ];
    run(&steps, false);
}

#[test]
fn ten_million_finished_messages_behind_one_that_is_stuck_cost_one_open_message() {
    let mut leases = Leases::default();
    let lease = LeaseId { epoch: Epoch::new(1), number: 100 };
    let run = |first, count| Run { queue: QueueId::ZERO, first: QueueOffset::new(first), count };
    let given = |leases: &mut Leases, first: u64, count: u32| {
        let runs = [GivenRun { run: run(first, count), delivery: 1, group_hash: 0 }];
        leases.given(
            Given {
                holder: "",
                lease,
                at: Timestamp::ZERO,
                due: 9,
                attempt: None,
                client: 0,
                cursors: &[],
                runs: &runs,
            },
            |_| 0,
        )
    };
    given(&mut leases, 0, 1);
    let mut position = Vec::new();
    for batch in 0..10_000_u64 {
        given(&mut leases, 1 + batch * 1_000, 1_000);
        position = leases.finished(&[run(1 + batch * 1_000, 1_000)], None);
    }
    assert_eq!(position, [(QueueId::ZERO, QueueOffset::ZERO)]);
    assert_eq!((leases.count(), leases.size()), (1, Size { rows: 1, full: 0 }));
    assert_eq!(leases.cursor(0, 0), 10_000_001);
    let mut kept = Vec::new();
    leases.keep(GroupId::new(1), TopicId::new(1), &mut kept);
    assert!(kept.len() < 160, "{}", kept.len());
    assert_eq!(
        leases.finished(&[run(0, 1)], None),
        [(QueueId::ZERO, QueueOffset::new(10_000_001))]
    );
}
