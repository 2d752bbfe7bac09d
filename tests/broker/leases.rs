//! Random lives of a group: receives, acks, extensions, messages given back, given up, delivered now or buried by an
//! operator, sent back, time that passes, stops, kills and power cuts; against what must be true of its messages.
//!
//! After each step what the broker shows is what the reference is. After a power cut it is what the reference was
//! once, behind everything that was acknowledged in sync mode or was flushed; receipts of leases that were lost are
//! worth what they still can be.
//!
//! `PROPTEST_CASES` asks for so many others, `SEED` for those of one seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstem::broker::{BrokerError, Hold, RedriveFault, SettleFault, WaitingAction};
use mainstem::format::attributes::DeadReason;
use mainstem::message::{FlushMode, GroupSettings, MessageId, TopicSettings, TopicType};
use mainstem::testing::{CrashChoice, SimDisk};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::consumer::{DEAD, GROUP, TOPIC, Told, View, body_of};
use crate::model::Tally;
use crate::pool::{DELAYS, Fate, MOST, Open, Place, Pool, Receipt, Serial, Worth};
use crate::rig::{Dice, Rig, bare, late};
use crate::script::Setup;

const QUEUES: u32 = 2;
const WALL: u64 = 1_700_000_000_000;
const CASES: u32 = 100;

/// After a start old leases are offered at a limited rate for so long.
const GRACE_MS: u64 = 10_000;

const MESSAGE_GROUPS: [Option<&str>; 4] = [None, Some("a"), Some("b"), Some("c")];

/// What is done with a lease.
#[derive(Clone, Copy, Debug)]
enum Keep {
    For(u64),
    Retry,
    RetryAfter(u64),
    Suspend(u64),
    Undo,
}

/// A step. Receipts are named by how long ago they were got, messages by their number.
#[derive(Clone, Debug)]
enum Op {
    Send {
        queue: u32,
        message_group: usize,
        count: u32,
    },
    Receive {
        max: u32,
        ms: u64,
    },
    /// Until there is nothing more.
    ReceiveAll(u64),
    Ack(Vec<usize>),
    Hold(usize, Keep),
    /// By who could not give them to anybody.
    GiveBack(Vec<usize>),
    Forward(usize),
    /// These, or without any whichever come first.
    Operator(Vec<usize>, WaitingAction),
    Tend,
    Redrive(u32),
    Wait(u64),
    Work {
        steps: u32,
        seed: u64,
    },
    Settle,
    Stop,
    Kill {
        bare: bool,
    },
    Cut(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let some = |most| prop::collection::vec(0_usize..12, 0..most);
    let ms = || prop_oneof![0_u64..100, 1_000_u64..40_000];
    let keep = prop_oneof![
        2 => ms().prop_map(Keep::For),
        3 => Just(Keep::Retry),
        1 => ms().prop_map(Keep::RetryAfter),
        1 => ms().prop_map(Keep::Suspend),
        1 => Just(Keep::Undo),
    ];
    let action = prop_oneof![Just(WaitingAction::Retry), Just(WaitingAction::DeadLetter)];
    prop_oneof![
        6 => (0..QUEUES, 0..MESSAGE_GROUPS.len(), 1_u32..4)
            .prop_map(|(queue, message_group, count)| Op::Send { queue, message_group, count }),
        6 => (1_u32..6, ms()).prop_map(|(max, ms)| Op::Receive { max, ms }),
        1 => ms().prop_map(Op::ReceiveAll),
        6 => some(5).prop_map(Op::Ack),
        5 => (0_usize..8, keep).prop_map(|(receipt, keep)| Op::Hold(receipt, keep)),
        1 => some(3).prop_map(Op::GiveBack),
        2 => (0_usize..8).prop_map(Op::Forward),
        2 => (some(4), action).prop_map(|(messages, action)| Op::Operator(messages, action)),
        3 => Just(Op::Tend),
        2 => (1_u32..4).prop_map(Op::Redrive),
        6 => prop_oneof![0_u64..3_000, 3_000_u64..60_000].prop_map(Op::Wait),
        2 => (1_u32..12, any::<u64>()).prop_map(|(steps, seed)| Op::Work { steps, seed }),
        1 => Just(Op::Settle),
        1 => Just(Op::Stop),
        1 => any::<bool>().prop_map(|bare| Op::Kill { bare }),
        2 => any::<u64>().prop_map(Op::Cut),
    ]
}

/// What the messages were behind some record, which begins here or behind.
struct Then {
    begin: u64,
    end: u64,
    pool: Pool,
}

struct Life {
    setup: Setup,
    rig: Option<Rig>,
    now: u64,
    /// Number of the start, and when it was.
    start: (u64, u64),
    pool: Pool,
    /// As of the start, and behind each record since.
    then: Vec<Then>,
    /// So many of them cannot be lost any more: they were acknowledged in sync mode.
    sure: usize,
    receipts: Vec<Receipt>,
    last_serial: Serial,
    sent: u32,
    delivered: BTreeSet<String>,
    tally: Tally,
}

/// Where what a start has replayed ends, but for what is between records.
fn replayed(rig: &Rig) -> u64 {
    let told = rig.broker.start_report()[0].to_string();
    let (_, told) = told.split_once(" records (").unwrap();
    let (bytes, from) = told.split_once(" bytes) from offset ").unwrap();
    bytes.parse::<u64>().unwrap() + from.parse::<u64>().unwrap()
}

fn done<T>(told: Told<T>) -> T {
    told.unwrap().unwrap()
}

impl Life {
    fn new(flush: FlushMode, ordered: bool) -> Self {
        let setup = Setup { segment_size: 256 << 10, flush, auto_create: false };
        let mut rig = Rig::open(&SimDisk::new(), &setup, WALL).unwrap();
        let broker = rig.broker.clone();
        let made = rig.carry(async move {
            let settings = TopicSettings::open(QUEUES, flush, TopicType::Mixed);
            broker.create_topic(TOPIC, settings, late()).await?;
            let settings = GroupSettings {
                ordered,
                max_attempts: Some(MOST),
                retry_delays_ms: DELAYS.to_vec(),
                ..GroupSettings::default()
            };
            broker.create_group(GROUP, &settings, late()).await.map(drop)
        });
        done(made);
        rig.settle();
        let pool = Pool { ordered, ..Pool::default() };
        let end = rig.appended();
        Self {
            setup,
            rig: Some(rig),
            now: WALL,
            start: (1, WALL),
            then: vec![Then { begin: 0, end, pool: pool.clone() }],
            pool,
            sure: 1,
            receipts: Vec::new(),
            last_serial: 0,
            sent: 0,
            delivered: BTreeSet::new(),
            tally: Tally::default(),
        }
    }

    fn rig(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap()
    }

    fn serial(&mut self) -> Serial {
        self.last_serial += 1;
        self.last_serial
    }

    /// Makes a request that turns the messages into these, one after the other.
    fn now_are(&mut self, begin: u64, pools: Vec<Pool>) {
        let end = self.rig().appended();
        for pool in pools {
            self.pool = pool.clone();
            self.then.push(Then { begin, end, pool });
        }
    }

    /// What was done until now was told by a request that waits for the disk.
    fn told(&mut self) {
        if self.setup.flush == FlushMode::Sync {
            self.sure = self.then.len();
        }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Send { queue, message_group, count } => {
                for _ in 0..*count {
                    self.send(*queue, MESSAGE_GROUPS[*message_group]);
                }
            }
            Op::Receive { max, ms } => {
                self.receive(*max, *ms);
            }
            Op::ReceiveAll(ms) => {
                // Longer than this takes: what is given is not due again meanwhile.
                let (now, mut got) = (self.now, BTreeSet::new());
                let all = self.pool.deliverable(now);
                while let more = self.receive(9, ms + 1)
                    && !more.is_empty()
                {
                    got.extend(more);
                }
                if !self.pool.ordered && now >= self.start.1 + GRACE_MS {
                    assert_eq!(got, all, "all that can be delivered is found");
                    self.tally.note("receives of all there is", 1);
                }
            }
            Op::Ack(back) => self.ack(back),
            Op::Hold(back, keep) => self.hold(*back, *keep),
            Op::GiveBack(back) => self.give_back(back),
            Op::Forward(back) => self.forward(*back),
            Op::Operator(numbers, action) => self.operator(numbers, *action),
            Op::Tend => self.tend(),
            Op::Redrive(max) => self.redrive(*max),
            Op::Wait(ms) => {
                self.now += ms;
                self.rig().clock.advance(Duration::from_millis(*ms));
            }
            Op::Work { steps, seed } => {
                let mut dice = Dice(*seed);
                (0..*steps).for_each(|_| self.rig().step(&mut dice));
            }
            Op::Settle => self.rig().settle(),
            Op::Stop => {
                let disk = self.rig.take().unwrap().stop();
                self.open(&disk);
                self.begin_anew();
            }
            Op::Kill { bare: is_bare } => {
                let disk = self.rig.take().unwrap().kill();
                if *is_bare {
                    bare(&disk);
                }
                self.open(&disk);
                self.rig().settle();
                self.begin_anew();
            }
            Op::Cut(seed) => self.cut(*seed),
        }
        self.check().unwrap_or_else(|why| panic!("{why}"));
    }

    fn open(&mut self, disk: &SimDisk) {
        self.rig = Some(Rig::open(disk, &self.setup, self.now).unwrap());
        self.start = (self.start.0 + 1, self.now);
    }

    /// What a start has found is durable.
    fn begin_anew(&mut self) {
        let end = self.rig().appended();
        self.then = vec![Then { begin: 0, end, pool: self.pool.clone() }];
        self.sure = 1;
    }

    fn cut(&mut self, seed: u64) {
        let (flushed, appended) = (self.rig().flushed(), self.rig().appended());
        let disk = self.rig.take().unwrap().kill();
        // As far as the log is there, by what a start says of it; on a copy all of it is.
        let whole = disk.crash_image(&CrashChoice::EVERYTHING);
        let missing = appended - replayed(&Rig::open(&whole, &self.setup, self.now).unwrap());
        let choice = CrashChoice::random(seed, disk.pending_counts());
        self.open(&disk.crash_image(&choice));
        let end = replayed(self.rig()) + missing;
        assert!(end >= flushed, "{end} of {flushed} bytes that were flushed are left");
        let least = self.then.iter().take_while(|then| then.end <= end).count();
        assert!(least >= self.sure, "{least} of {} changes that were told are left", self.sure);
        // Of what one request did with several records perhaps a part.
        let possible = self.then.iter().take_while(|then| then.begin < end).count();
        let (views, mut reasons) = (self.views(), Vec::new());
        let kept = (least..=possible.max(least)).rev().find(|kept| {
            let found = self.differs(&self.then[kept - 1].pool, &views);
            found.map_err(|why| reasons.push(why)).is_ok()
        });
        let Some(kept) = kept else { panic!("no state of before is there: {reasons:#?}") };
        self.tally.note("power cuts", 1);
        self.tally.note("changes lost by power cuts", (self.then.len() - kept) as u64);
        self.pool = self.then[kept - 1].pool.clone();
        self.begin_anew();
    }

    // ---- what clients do

    fn send(&mut self, queue: u32, message_group: Option<&'static str>) {
        let (begin, body) = (self.rig().appended(), format!("m{}", self.sent));
        self.sent += 1;
        let placed = done(self.rig().send(queue, &body, message_group));
        let mut pool = self.pool.clone();
        pool.send(placed, body, message_group, None);
        self.now_are(begin, vec![pool]);
        self.told();
        self.tally.note("messages sent", 1);
    }

    fn receive(&mut self, max: u32, ms: u64) -> Vec<Place> {
        let begin = self.rig().appended();
        let received = done(self.rig().receive(TOPIC, max, Duration::from_millis(ms)));
        if received.is_empty() {
            // It may have got its positions.
            return Vec::new();
        }
        assert!(received.len() <= max as usize);
        let (serial, now, mut pool) = (self.serial(), self.now, self.pool.clone());
        let mut given = Vec::new();
        for message in received {
            let place = (message.queue.get(), message.queue_offset.get());
            let body = body_of(&message.batch);
            let known = pool.messages.get(&place);
            assert_eq!(known.map(|known| &known.body), Some(&body), "{place:?}");
            let is_first = known.is_some_and(|known| known.fate == Fate::New);
            given.push((place, message.delivery));
            self.delivered.insert(format!("{body} {place:?}"));
            self.receipts.push(Receipt {
                handle: message.handle,
                place,
                body,
                serial,
                start: self.start.0,
                is_first,
                delivery: message.delivery,
            });
        }
        pool.give(&given, serial, now, now + ms);
        let again = given.iter().filter(|(_, delivery)| *delivery > 1).count();
        self.tally.note("deliveries", given.len() as u64);
        self.tally.note("deliveries again", again as u64);
        self.now_are(begin, vec![pool]);
        given.into_iter().map(|(place, _)| place).collect()
    }

    fn receipt(&self, back: usize) -> Option<Receipt> {
        self.receipts.get(self.receipts.len().checked_sub(back + 1)?).cloned()
    }

    fn worth(&self, receipt: &Receipt) -> Worth {
        self.pool.worth(receipt, self.start.0)
    }

    fn ack(&mut self, back: &[usize]) {
        let receipts: Vec<_> = back.iter().filter_map(|back| self.receipt(*back)).collect();
        let begin = self.rig().appended();
        let handles = receipts.iter().map(|of| of.handle.clone()).collect();
        let acked = done(self.rig().ack(handles));
        let mut pool = self.pool.clone();
        for (receipt, acked) in receipts.iter().zip(acked) {
            let worth = self.worth(receipt);
            let expected = match worth {
                Worth::Held | Worth::Finished => Some(true),
                Worth::Nothing => Some(false),
                // An ordered group may have something before it.
                Worth::Lost => None,
            };
            assert!(expected.is_none_or(|of| of == acked), "{receipt:?}: {worth:?}, and {acked}");
            if acked {
                pool.finish(receipt.place);
            }
            self.tally.note(
                match worth {
                    Worth::Held => "acks",
                    Worth::Finished => "acks again",
                    Worth::Lost => "acks of leases that a power cut took",
                    Worth::Nothing => "acks by stale receipts",
                },
                1,
            );
        }
        if self.rig().appended() != begin {
            self.now_are(begin, vec![pool]);
        }
        self.told();
    }

    /// The lease that a hold makes of one.
    fn held(&self, receipt: &Receipt, keep: Keep) -> Open {
        let (now, delivery) = (self.now, receipt.delivery);
        let at = (delivery.max(1) - 1) as usize;
        let (after, same, is_leased) = match keep {
            Keep::For(ms) => (ms, false, true),
            Keep::Retry => (DELAYS.get(at).copied().unwrap_or(DELAYS[1]), false, false),
            Keep::RetryAfter(ms) => (ms, false, false),
            Keep::Suspend(ms) => (ms, true, false),
            Keep::Undo => (0, true, false),
        };
        let is_over = delivery >= MOST && !same && !is_leased;
        let due = if is_over { now } else { now + after };
        let deliveries = match self.pool.messages[&receipt.place].fate {
            Fate::Open(open) => open.deliveries,
            // Nobody got it, as far as the log knows.
            Fate::New => 1,
            Fate::Over(_) => panic!("{receipt:?} holds nothing"),
        };
        Open { serial: self.last_serial, due, deliveries, same, is_leased }
    }

    fn hold(&mut self, back: usize, keep: Keep) {
        let Some(receipt) = self.receipt(back) else { return };
        let hold = match keep {
            Keep::For(ms) => Hold::For(Duration::from_millis(ms)),
            Keep::Retry => Hold::Retry,
            Keep::RetryAfter(ms) => Hold::RetryAfter(Duration::from_millis(ms)),
            Keep::Suspend(ms) => Hold::Suspend(Duration::from_millis(ms)),
            Keep::Undo => Hold::Undo,
        };
        let begin = self.rig().appended();
        let held = done(self.rig().hold(receipt.handle.clone(), hold));
        let worth = self.worth(&receipt);
        let is_right = worth == Worth::Lost || held.is_ok() == (worth == Worth::Held);
        assert!(is_right, "{receipt:?}, {worth:?}: {held:?}");
        let Ok(handle) = held else { return };
        let serial = self.serial();
        let open = self.held(&receipt, keep);
        let mut pool = self.pool.clone();
        pool.keep(receipt.place, open);
        self.now_are(begin, vec![pool]);
        self.told();
        let start = self.start.0;
        self.receipts.push(Receipt { handle, serial, start, is_first: false, ..receipt });
        self.tally.note("leases that became others", 1);
    }

    fn give_back(&mut self, back: &[usize]) {
        let receipts = back.iter().filter_map(|back| self.receipt(*back));
        // It does not say what it did.
        let receipts: Vec<_> = receipts.filter(|of| self.worth(of) != Worth::Lost).collect();
        let handles: Vec<_> = receipts.iter().map(|of| of.handle.clone()).collect();
        let begin = self.rig().appended();
        let broker = self.rig().broker.clone();
        broker.give_back(GROUP, TOPIC, &handles);
        if self.rig().appended() == begin {
            let is_held = |of: &&Receipt| self.worth(of) == Worth::Held;
            assert_eq!(receipts.iter().filter(is_held).count(), 0);
            return;
        }
        let _ = self.serial();
        let mut pool = self.pool.clone();
        for receipt in receipts.iter().filter(|of| self.worth(of) == Worth::Held) {
            let open = self.held(receipt, Keep::Undo);
            pool.keep(receipt.place, open);
        }
        self.now_are(begin, vec![pool]);
    }

    fn forward(&mut self, back: usize) {
        let Some(receipt) = self.receipt(back) else { return };
        let begin = self.rig().appended();
        let worth = self.worth(&receipt);
        let told = self.rig().forward(receipt.handle.clone()).unwrap();
        let mut pool = self.pool.clone();
        match worth {
            Worth::Held => {
                told.unwrap();
                pool.bury(receipt.place, DeadReason::GivenUp);
                self.now_are(begin, vec![pool]);
                self.tally.note("messages given up", 1);
            }
            Worth::Finished => told.unwrap(),
            // It was passed over since, so its lease is in force.
            Worth::Lost if told.is_ok() => {
                pool.bury(receipt.place, DeadReason::GivenUp);
                self.now_are(begin, vec![pool]);
                self.tally.note("messages given up by leases that a power cut took", 1);
            }
            Worth::Nothing | Worth::Lost => {
                assert!(matches!(told, Err(BrokerError::BadReceipt)), "{worth:?}: {told:?}");
                return;
            }
        }
        self.told();
    }

    // ---- what operators and the broker do

    fn operator(&mut self, numbers: &[usize], action: WaitingAction) {
        let view = self.rig().view(TOPIC);
        let lying = |number: &usize| view.lying.get(number % view.lying.len().max(1));
        let mut seen = BTreeSet::new();
        let chosen = numbers.iter().filter_map(lying).filter(|of| seen.insert(of.id));
        let chosen: Vec<_> = chosen.map(|of| ((of.queue, of.offset), of.id)).collect();
        let (now, begin) = (self.now, self.rig().appended());
        let ids: Vec<MessageId> = chosen.iter().map(|(_, id)| *id).collect();
        let settled = done(self.rig().settle_waiting(ids.clone(), action));
        let places: Vec<Place> = match ids.is_empty() {
            false => chosen.iter().map(|(place, _)| *place).collect(),
            true => {
                let all = action == WaitingAction::DeadLetter;
                let wanted = |place: &Place, open: &Open| {
                    self.pool.is_waiting(*place, now) && (all || open.due > now)
                };
                self.pool.open().filter(|(at, _, open)| wanted(at, open)).map(|of| of.0).collect()
            }
        };
        let found: Vec<_> = settled
            .iter()
            .map(|of| {
                let (queue, offset) = of.place.unwrap();
                ((queue.get(), offset.get()), of.fault)
            })
            .collect();
        let expected = places.iter().map(|place| {
            let is_waiting = self.pool.is_waiting(*place, now);
            (*place, (!is_waiting).then_some(SettleFault::NotWaiting))
        });
        assert_eq!(found, expected.collect::<Vec<_>>(), "{action:?}");
        let serial = self.serial();
        let (mut pool, mut pools) = (self.pool.clone(), Vec::new());
        for place in places {
            let Fate::Open(open) = self.pool.messages[&place].fate else { continue };
            if !self.pool.is_waiting(place, now) {
                continue;
            }
            match action {
                WaitingAction::DeadLetter => {
                    pool.bury(place, DeadReason::Operator);
                    pools.push(pool.clone());
                    self.tally.note("messages buried by an operator", 1);
                }
                WaitingAction::Retry if open.due > now => {
                    let message = pool.get_mut(place);
                    message.renewed = true;
                    message.fate = Fate::Open(Open { serial, due: now, is_leased: false, ..open });
                    self.tally.note("messages delivered now", 1);
                }
                WaitingAction::Retry => {}
            }
        }
        if action == WaitingAction::Retry && self.rig().appended() != begin {
            pools.push(pool);
        }
        let is_any = !pools.is_empty();
        self.now_are(begin, pools);
        if is_any {
            self.told();
        }
    }

    fn tend(&mut self) {
        let begin = self.rig().appended();
        assert_eq!(self.rig().tend(), Some(true));
        if self.setup.flush == FlushMode::Sync {
            // Nobody waited for the disk, and what is not durable is not seen.
            self.rig().settle();
        }
        let (now, mut pool) = (self.now, self.pool.clone());
        // In which order is not said: by what lies there.
        let known = pool.letters.len();
        let lying: Vec<_> = self.rig().view(DEAD).lying.into_iter().skip(known).collect();
        let mut pools = Vec::new();
        for letter in &lying {
            let places = pool.exhausted(now);
            let place = places.iter().find(|at| pool.messages[at].body == letter.body);
            let Some(place) = place else { panic!("{letter:?} is none of {places:?}: {pool:?}") };
            pool.bury(*place, DeadReason::Attempts);
            pools.push(pool.clone());
        }
        assert_eq!(pool.exhausted(now), [], "all of them are dead letters now");
        self.tally.note("messages delivered too often", lying.len() as u64);
        self.now_are(begin, pools);
    }

    fn redrive(&mut self, max: u32) {
        let begin = self.rig().appended();
        let ids: BTreeMap<_, _> =
            self.rig().view(DEAD).lying.iter().zip(0..).map(|(of, at)| (of.id, at)).collect();
        let redriven = done(self.rig().redrive(max));
        assert!(redriven.len() <= max as usize);
        let (mut pool, mut pools) = (self.pool.clone(), Vec::new());
        for one in &redriven {
            assert_eq!(one.fault, None::<RedriveFault>);
            let at: usize = ids[&one.id];
            let letter = &mut pool.letters[at];
            assert!(!letter.is_back, "{letter:?} went back twice");
            letter.is_back = true;
            let letter = letter.clone();
            // That of a message group is the one in which it was.
            let history = Some((letter.reason, letter.deliveries, letter.redriven + 1));
            pool.send(letter.from, letter.body, letter.message_group, history);
            pools.push(pool.clone());
            self.tally.note("dead letters that went back", 1);
        }
        let is_any = !pools.is_empty();
        self.now_are(begin, pools);
        if is_any {
            self.told();
        }
    }

    // ---- what must be true

    fn views(&mut self) -> (View, View) {
        (self.rig().view(TOPIC), self.rig().view(DEAD))
    }

    fn check(&mut self) -> Result<(), String> {
        let views = self.views();
        self.differs(&self.pool, &views)
    }

    /// Whether that is what the broker shows.
    fn differs(&self, pool: &Pool, (there, dead): &(View, View)) -> Result<(), String> {
        let same = |what: &str, is_same: bool, found: &dyn std::fmt::Debug| match is_same {
            true => Ok(()),
            false => Err(format!("{what}: {found:?} of {pool:?} at {}", self.now)),
        };
        let lying: Vec<_> = there
            .lying
            .iter()
            .map(|of| ((of.queue, of.offset), of.body.as_str(), of.history))
            .collect();
        let expected: Vec<_> = pool
            .messages
            .iter()
            .map(|(place, of)| {
                let history = of.history.map(|(reason, times, back)| (reason, times, back, true));
                (*place, of.body.as_str(), history)
            })
            .collect();
        same("messages", lying == expected, &lying)?;
        let letters: Vec<_> =
            dead.lying.iter().map(|of| (of.body.as_str(), of.history.unwrap())).collect();
        let expected: Vec<_> = pool
            .letters
            .iter()
            .map(|of| (of.body.as_str(), (of.reason, of.deliveries, of.redriven, false)))
            .collect();
        same("dead letters", letters == expected, &letters)?;
        let left = pool.letters.iter().filter(|of| !of.is_back).count() as u64;
        same("dead letters that are left", dead.open() == left, &dead.progress)?;
        for progress in &there.progress {
            let queue = progress.queue.get();
            let next = pool.position(queue);
            same("position", progress.next.get() == next, &progress)?;
            let (ready, leased, waiting) = pool.split(queue, self.now);
            let found = (progress.ready, progress.leased, progress.waiting);
            // What an ordered group passed over waits, and is new to the reference.
            let is_same = match pool.ordered {
                false => found == (ready, leased, waiting),
                true => {
                    let all = ready + waiting == found.0 + found.2;
                    all && found.1 == leased && found.2 >= waiting
                }
            };
            same("split", is_same, &(queue, found, (ready, leased, waiting)))?;
        }
        let waiting: Vec<_> = there
            .waiting
            .iter()
            .map(|of| ((of.queue.get(), of.queue_offset.get()), of.deliveries, of.due_in_ms))
            .collect();
        let open = pool.open().filter(|(place, ..)| pool.is_waiting(*place, self.now));
        let expected: Vec<_> = open
            .map(|(place, _, open)| (place, open.deliveries, open.due.saturating_sub(self.now)))
            .collect();
        same("what waits", waiting == expected, &waiting)
    }

    /// Everything comes to its end.
    fn finish(&mut self) {
        for _ in 0..40 {
            self.run(&Op::Wait(60_000));
            self.run(&Op::Tend);
            let mut got = 0;
            while let more = self.receive(9, 30_000)
                && !more.is_empty()
            {
                let back: Vec<_> = (0..more.len()).collect();
                self.ack(&back);
                got += more.len();
            }
            let is_over = |of: &crate::pool::Message| matches!(of.fate, Fate::Over(_));
            if got == 0 && self.pool.messages.values().all(is_over) {
                self.run(&Op::Kill { bare: true });
                assert_eq!(self.receive(9, 1), []);
                return;
            }
        }
        panic!("messages are never delivered: {:?}", self.pool);
    }
}

fn live(flush: FlushMode, ordered: bool, ops: &[Op]) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let mut life = Life::new(flush, ordered);
    for op in ops {
        life.run(op);
    }
    life.finish();
    life.tally
}

#[test]
fn what_a_group_gets_and_settles_is_what_a_simple_reference_says_through_kills_and_power_cuts() {
    let is_fixed = std::env::var_os("PROPTEST_CASES").is_none();
    let seed = crate::seed(is_fixed);
    let mut config =
        Config { failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    if is_fixed {
        config.cases = CASES;
    }
    let cases = config.cases;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let total = RefCell::new(Tally::default());
    let flush = prop_oneof![Just(FlushMode::Sync), Just(FlushMode::Async)];
    let strategy = (flush, any::<bool>(), prop::collection::vec(op(), 1..80));
    let tested = TestRunner::new_with_rng(config, rng).run(&strategy, |(flush, ordered, ops)| {
        for (what, count) in live(flush, ordered, &ops).0 {
            total.borrow_mut().note(what, count);
        }
        Ok(())
    });
    match tested {
        Ok(()) => {}
        Err(TestError::Fail(reason, (flush, ordered, ops))) => {
            ops.iter().for_each(|op| eprintln!("{op:?}"));
            panic!(
                "{reason}, with SEED={seed} PROPTEST_CASES={cases}, {flush:?}, ordered {ordered} \
                 and this script"
            );
        }
        Err(aborted) => panic!("{aborted}"),
    }
    for (what, count) in &total.into_inner().0 {
        eprintln!("{count:8} {what}");
        assert!(cases < CASES || *count > 0, "{what}: {count}");
    }
}
