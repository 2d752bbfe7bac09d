//! The power goes at every operation of the disk while messages become dead letters, are delivered now instead of
//! later, and go back to their topic: each message is always in one place, once.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstem::broker::{Hold, WaitingAction};
use mainstem::file::Operation;
use mainstem::format::attributes::DeadReason;
use mainstem::message::{FlushMode, GroupSettings, MessageId, TopicSettings, TopicType};
use mainstem::testing::{CrashChoice, NameChoice, SimDisk, WriteChoice};

use crate::consumer::{DEAD, GROUP, TOPIC, Told, View, body_of};
use crate::rig::{Dice, Rig, bare, late};
use crate::script::Setup;

const WALL: u64 = 1_700_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);
const MESSAGES: [&str; 6] = ["m0", "m1", "m2", "m3", "m4", "m5"];

/// What becomes of messages, one after the other, and why and after how many deliveries they are dead letters.
const STEPS: usize = 5;
const DEATHS: [(&str, DeadReason, u32); 4] = [
    ("m1", DeadReason::Operator, 1),
    ("m2", DeadReason::Operator, 1),
    ("m3", DeadReason::Attempts, 2),
    ("m4", DeadReason::GivenUp, 1),
];

/// A disk on which three messages wait, one was delivered as often as may be, and two are with somebody; and the ids
/// and receipts of all.
struct Begin {
    disk: SimDisk,
    setup: Setup,
    known: BTreeMap<String, (MessageId, String)>,
}

fn done<T>(told: Told<T>) -> T {
    told.unwrap().unwrap()
}

fn copy(disk: &SimDisk) -> SimDisk {
    disk.crash_image(&CrashChoice::EVERYTHING)
}

impl Begin {
    fn new(flush: FlushMode) -> Self {
        let setup = Setup { segment_size: 256 << 10, flush, auto_create: false };
        let mut rig = Rig::open(&SimDisk::new(), &setup, WALL).unwrap();
        let broker = rig.broker.clone();
        let made = rig.carry(async move {
            let settings = TopicSettings::open(2, flush, TopicType::Mixed);
            broker.create_topic(TOPIC, settings, late()).await?;
            let settings = GroupSettings {
                max_attempts: Some(2),
                retry_delays_ms: vec![60_000],
                ..GroupSettings::default()
            };
            broker.create_group(GROUP, &settings, late()).await.map(drop)
        });
        done(made);
        for (queue, body) in (0..).zip(MESSAGES) {
            done(rig.send(queue % 2, body, None));
        }
        let mut known = BTreeMap::new();
        let mut take = |rig: &mut Rig| {
            loop {
                let received = done(rig.receive(TOPIC, 9, HOUR));
                if received.is_empty() {
                    break;
                }
                for message in received {
                    known.insert(body_of(&message.batch), (message.id, message.handle));
                }
            }
            known.clone()
        };
        let first = take(&mut rig);
        done(rig.hold(first["m3"].1.clone(), Hold::RetryAfter(Duration::ZERO))).unwrap();
        let known = take(&mut rig);
        for body in ["m0", "m1", "m2", "m3"] {
            done(rig.hold(known[body].1.clone(), Hold::Retry)).unwrap();
        }
        rig.settle();
        Self { disk: copy(&rig.stop()), setup, known }
    }

    fn open(&self, disk: &SimDisk) -> Rig {
        Rig::open(disk, &self.setup, WALL).unwrap()
    }

    /// Makes the steps, as far as the power lasts. So many were answered well.
    fn play(&self, rig: &mut Rig, mut between: impl FnMut(&mut Rig)) -> usize {
        let id = |body: &str| self.known[body].0;
        let mut dice = Dice(7);
        for step in 0..STEPS {
            let is_done = match step {
                0 => {
                    let settled = rig.settle_waiting(vec![id("m0")], WaitingAction::Retry);
                    settled.and_then(Result::ok).map(|all| all.iter().all(|of| of.fault.is_none()))
                }
                1 => {
                    let ids = vec![id("m1"), id("m2")];
                    let settled = rig.settle_waiting(ids, WaitingAction::DeadLetter);
                    settled.and_then(Result::ok).map(|all| all.iter().all(|of| of.fault.is_none()))
                }
                2 => rig.tend(),
                3 => rig.forward(self.known["m4"].1.clone()).map(|told| told.is_ok()),
                _ => rig.redrive(2).and_then(Result::ok).map(|all| all.len() == 2),
            };
            if rig.disk.is_off() {
                return step;
            }
            assert_eq!(is_done, Some(true), "step {step}");
            between(rig);
            for _ in 0..dice.below(6) {
                rig.step(&mut dice);
            }
        }
        STEPS
    }

    /// What must be true of any disk that the power left; of the steps these many are there for sure.
    fn check(&self, disk: &SimDisk, sure: usize, case: &str) -> (usize, usize) {
        let mut rig = self.open(disk);
        let (there, dead) = (rig.view(TOPIC), rig.view(DEAD));
        let found = accounted(&there, &dead, sure, case);

        // A replay makes the same of it, with and without what is derived from the log.
        let disk = rig.kill();
        let without = copy(&disk);
        bare(&without);
        for other in [copy(&disk), without] {
            let mut other = self.open(&other);
            other.settle();
            assert_eq!(
                (other.view(TOPIC), other.view(DEAD)),
                (there.clone(), dead.clone()),
                "{case}"
            );
        }

        // Whoever receives everything gets each message once, from one of the two topics.
        let mut rig = self.open(&disk);
        rig.clock.advance(2 * HOUR);
        assert_eq!(rig.tend(), Some(true), "{case}");
        let mut bodies = Vec::new();
        for topic in [TOPIC, DEAD] {
            while let received = done_or_gone(rig.receive(topic, 9, 4 * HOUR))
                && !received.is_empty()
            {
                for message in received {
                    assert!(message.delivery <= 2, "{case}: {message:?}");
                    bodies.push(body_of(&message.batch));
                }
            }
        }
        bodies.sort();
        assert_eq!(bodies, MESSAGES, "{case}");
        found
    }
}

/// Nothing from a topic that is not there.
fn done_or_gone<T: Default>(told: Told<T>) -> T {
    match told.unwrap() {
        Err(mainstem::broker::BrokerError::NoTopic { .. }) => T::default(),
        told => told.unwrap(),
    }
}

/// How many messages are dead letters, and how many of them are back.
fn accounted(there: &View, dead: &View, sure: usize, case: &str) -> (usize, usize) {
    let mut buried = BTreeMap::new();
    for lying in &dead.lying {
        let (reason, deliveries, redriven, is_back) = lying.history.unwrap();
        assert_eq!((redriven, is_back), (0, false), "{case}: {lying:?}");
        let before = buried.insert(lying.body.as_str(), (reason, deliveries));
        assert_eq!(before, None, "{case}: {lying:?} is there twice");
    }
    let count = buried.len();
    // One after the other, so those are there that were first.
    let expected: BTreeMap<_, _> =
        DEATHS[..count].iter().map(|(body, reason, times)| (*body, (*reason, *times))).collect();
    assert_eq!(buried, expected, "{case}");

    let (back, sent): (Vec<_>, Vec<_>) = there.lying.iter().partition(|of| of.history.is_some());
    let mut bodies: Vec<_> = sent.iter().map(|of| of.body.as_str()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, MESSAGES, "{case}: what was sent stays where it is");
    let mut back: Vec<_> = back.iter().map(|of| (of.body.as_str(), of.history.unwrap())).collect();
    back.sort_unstable_by_key(|(body, _)| *body);
    let gone_back =
        |(body, reason, times): &(&'static str, _, _)| (*body, (*reason, *times, 1, true));
    assert_eq!(back, DEATHS[..back.len()].iter().map(gone_back).collect::<Vec<_>>(), "{case}");
    assert!(back.is_empty() || count == DEATHS.len(), "{case}");

    // Counts agree with it.
    let waiting = MESSAGES.iter().take(4).filter(|body| !buried.contains_key(*body)).count();
    assert_eq!(there.waiting.len(), waiting, "{case}: {:?}", there.waiting);
    let is_held = u64::from(!buried.contains_key("m4"));
    let (ready, leased, paused) = there.split();
    assert_eq!(leased, 1 + is_held, "{case}");
    assert_eq!(ready + paused, (waiting + back.len()) as u64, "{case}");
    assert_eq!(dead.open(), (count - back.len()) as u64, "{case}");
    let m0 = there.waiting.iter().find(|of| (of.queue.get(), of.queue_offset.get()) == (0, 0));
    let pause = m0.unwrap().due_in_ms;
    assert!(pause == 0 || pause == 60_000, "{case}: {pause}");

    // What the broker did by itself was told to nobody.
    let least = [0, 0, 2, 2, 4, 4][sure];
    assert!(count >= least, "{case}: {count} of {least} dead letters that were told");
    assert!(sure == 0 || pause == 0, "{case}: a retry that was told");
    assert!(sure < STEPS || back.len() == 2, "{case}: messages went back, and that was told");
    (count, back.len())
}

fn cut_everywhere(flush: FlushMode) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let begin = Begin::new(flush);
    // The whole of it; after each step a kill leaves what the broker shows.
    let disk = copy(&begin.disk);
    let mut rig = begin.open(&disk);
    let first = disk.operations();
    let played = begin.play(&mut rig, |_| {});
    assert_eq!(played, STEPS);
    let (last, journal) = (disk.operations(), disk.journal());
    let live = (rig.view(TOPIC), rig.view(DEAD));
    assert_eq!(accounted(&live.0, &live.1, STEPS, "live"), (4, 2));
    drop(rig);
    let mut rig = begin.open(&copy(&begin.disk));
    begin.play(&mut rig, |rig| {
        let live = (rig.view(TOPIC), rig.view(DEAD));
        let left = copy(&rig.disk);
        let mut again = begin.open(&left);
        assert_eq!((again.view(TOPIC), again.view(DEAD)), live);
    });

    let (mut images, mut seen) = (0, BTreeMap::<(usize, usize), u32>::new());
    for operation in first..=last {
        let is_write =
            journal.get(operation as usize).is_some_and(|(call, _)| *call == Operation::Write);
        for inside in if is_write { &[0, 90, 700][..] } else { &[0] } {
            let disk = copy(&begin.disk);
            let mut rig = begin.open(&disk);
            disk.crash_inside(operation, *inside);
            let told = begin.play(&mut rig, |_| {});
            let pending = disk.pending_counts();
            let mut dice = Dice(operation);
            let writes = WriteChoice::Prefix(dice.below(pending.versions as u64 + 1) as usize);
            let part = CrashChoice { names: NameChoice::All, writes, torn: None };
            let random = CrashChoice::random(dice.roll(), pending);
            for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING, part, random] {
                // What was told in sync mode is durable; else it is there if all lands that was written.
                let is_sure = flush == FlushMode::Sync || choice == CrashChoice::EVERYTHING;
                let sure = if is_sure { told } else { 0 };
                let case = format!(
                    "{flush:?}, cut at {operation} in {inside} of {first}..{last}, {choice:?}"
                );
                let found = begin.check(&disk.crash_image(&choice), sure, &case);
                *seen.entry(found).or_default() += 1;
                images += 1;
            }
        }
    }
    eprintln!("{flush:?}: {} operations, {images} images, {seen:?}", last - first);
    for found in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2)] {
        assert!(seen.contains_key(&found), "{found:?} of {seen:?}");
    }
}

#[test]
fn a_power_cut_leaves_each_message_in_its_group_or_among_the_dead_letters_and_told_is_durable() {
    cut_everywhere(FlushMode::Sync);
}

#[test]
fn a_power_cut_leaves_each_message_in_its_group_or_among_the_dead_letters_in_async_mode_too() {
    cut_everywhere(FlushMode::Async);
}
