//! Records of a group's deliveries that rot: the start says so, and the group gets again what it has finished rather
//! than miss what it has not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstem::broker::{Caller, Position, ResetRequest, Run};
use mainstem::message::{
    FlushMode, GroupSettings, InitialPosition, QueueOffset, TopicSettings, TopicType,
};
use mainstem::testing::SimDisk;

use crate::consumer::{GROUP, TOPIC, body_of};
use crate::rig::{Rig, late};
use crate::script::Setup;

const SETUP: Setup = Setup { segment_size: 256 << 10, flush: FlushMode::Sync, auto_create: false };
const WALL: u64 = 1_700_000_000_000;
const MINUTE: Duration = Duration::from_secs(60);

/// What was done, each with where its record lies.
struct Life {
    disk: SimDisk,
    steps: Vec<(&'static str, u64)>,
    sent: BTreeSet<String>,
    finished: BTreeSet<String>,
}

/// Up to `count` messages, and their receipts.
fn receive(rig: &mut Rig, count: u32) -> BTreeMap<String, String> {
    let received = rig.receive(TOPIC, count, MINUTE).unwrap().unwrap();
    received.into_iter().map(|one| (body_of(&one.batch), one.handle)).collect()
}

/// The middle of what was written since.
fn rotten_at(rig: &mut Rig, begun: &mut u64) -> u64 {
    rig.settle();
    let end = rig.appended();
    assert!(end > *begun, "nothing was appended");
    let middle = *begun + (end - *begun) / 2;
    *begun = end;
    middle
}

/// All that comes to the group, which finishes it.
fn receive_all(rig: &mut Rig) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for _ in 0..9 {
        for (body, handle) in receive(rig, 9) {
            assert_eq!(rig.ack(vec![handle]).unwrap().unwrap(), [true]);
            all.insert(body);
        }
        rig.clock.advance(MINUTE);
        rig.settle();
    }
    all
}

/// A group that receives and acknowledges, or has said only that it will.
fn live(begin: InitialPosition, ordered: bool, is_idle: bool) -> Life {
    let mut rig = Rig::open(&SimDisk::new(), &SETUP, WALL).unwrap();
    let broker = rig.broker.clone();
    let made = rig.carry(async move {
        let settings = TopicSettings::open(1, FlushMode::Sync, TopicType::Mixed);
        broker.create_topic(TOPIC, settings, late()).await?;
        let settings =
            GroupSettings { initial_position: begin, ordered, ..GroupSettings::default() };
        broker.create_group(GROUP, &settings, late()).await.map(drop)
    });
    made.unwrap().unwrap();
    rig.settle();
    let mut steps = Vec::new();
    let mut begun = rig.appended();
    assert!(receive(&mut rig, 9).is_empty());
    steps.push(("its positions", rotten_at(&mut rig, &mut begun)));
    let sent: BTreeSet<_> = ["0", "1", "2", "3", "4", "5"].map(str::to_owned).into();
    for body in &sent {
        rig.send(0, body, Some(body)).unwrap().unwrap();
    }
    rig.settle();
    begun = rig.appended();
    if is_idle {
        return Life { disk: rig.kill(), steps, sent, finished: BTreeSet::new() };
    }
    let first = receive(&mut rig, 2);
    steps.push(("the first two", rotten_at(&mut rig, &mut begun)));
    let second = receive(&mut rig, 2);
    steps.push(("the next two", rotten_at(&mut rig, &mut begun)));
    assert_eq!((first.len(), second.len()), (2, 2));
    let mut finished = BTreeSet::new();
    for (name, (body, handle)) in
        ["the ack of one", "the ack of another", "the ack of a third"].into_iter().zip(
            [second.iter().next(), first.iter().next_back(), second.iter().next_back()]
                .map(Option::unwrap),
        )
    {
        assert_eq!(rig.ack(vec![handle.clone()]).unwrap().unwrap(), [true]);
        finished.insert(body.clone());
        steps.push((name, rotten_at(&mut rig, &mut begun)));
    }
    // What is durable behind it makes damage of it.
    rig.send(0, "last", None).unwrap().unwrap();
    rig.settle();
    let sent = sent.into_iter().chain(["last".to_owned()]).collect();
    Life { disk: rig.kill(), steps, sent, finished }
}

#[test]
fn a_group_whose_records_rot_gets_messages_again_and_misses_none() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let begins = [InitialPosition::Earliest, InitialPosition::Latest];
    let lives = begins
        .into_iter()
        .flat_map(|begin| [(begin, false, false), (begin, true, false), (begin, false, true)]);
    for (begin, ordered, is_idle) in lives {
        for rotten in 0..live(begin, ordered, is_idle).steps.len() {
            let life = live(begin, ordered, is_idle);
            let (name, at) = life.steps[rotten];
            let case = format!("{begin:?}, ordered: {ordered}, idle: {is_idle}, {name}");
            let log = life
                .disk
                .paths()
                .into_iter()
                .find(|path| path.ends_with("00000000000000000000.log"));
            life.disk.corrupt(&log.unwrap(), at, 1).unwrap();
            let mut rig = Rig::open(&life.disk, &SETUP, WALL).unwrap();
            let report: Vec<_> =
                rig.broker.start_report().iter().map(ToString::to_string).collect();
            let report = report.join("\n");
            assert!(report.contains("groups may get messages again"), "{case}: {report}");
            let got = receive_all(&mut rig);
            let mut wanted = life.sent.difference(&life.finished);
            assert!(wanted.all(|one| got.contains(one)), "{case}: only {got:?} came");
            // From then on it is as ever, though the next start meets the same damage.
            let mut rig = Rig::open(&rig.kill(), &SETUP, WALL + 3_600_000).unwrap();
            assert_eq!(receive_all(&mut rig), BTreeSet::new(), "{case}");
        }
    }
}

/// What was acknowledged of six messages before the group was taken back, where to, and how many it got then.
const BACK: [(usize, u64, u32); 5] = [(6, 0, 2), (6, 3, 1), (3, 1, 2), (3, 4, 1), (0, 2, 2)];

/// It used to be where it was before, with what it was to get again behind it.
#[test]
fn a_group_that_was_taken_back_by_a_record_that_rots_gets_what_it_was_taken_back_for() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    for ((acked, to, again), ordered) in
        BACK.into_iter().flat_map(|case| [false, true].map(|ordered| (case, ordered)))
    {
        let case = format!("{acked} acked, back to {to}, {again} again, ordered: {ordered}");
        let Life { disk, mut sent, .. } = live(InitialPosition::Earliest, ordered, true);
        let mut rig = Rig::open(&disk, &SETUP, WALL).unwrap();
        let got: Vec<_> = receive(&mut rig, 9).into_iter().collect();
        assert_eq!(got.len(), 6);
        let mut finished: BTreeSet<_> =
            got.iter().take(acked).map(|(body, _)| body.clone()).collect();
        let handles: Vec<_> = got.into_iter().take(acked).map(|(_, handle)| handle).collect();
        assert_eq!(rig.ack(handles).unwrap().unwrap(), vec![true; acked]);
        rig.settle();
        let mut begun = rig.appended();
        let broker = rig.broker.clone();
        let reset = rig.carry(async move {
            let request = ResetRequest {
                group: GROUP,
                topic: TOPIC,
                queue: None,
                to: Position::Offset(QueueOffset::new(to)),
                caller: Caller::default(),
                run: Run::Real,
            };
            broker.reset_offsets(request, late()).await.map(drop)
        });
        reset.unwrap().unwrap();
        let at = rotten_at(&mut rig, &mut begun);
        // From there on it is to get all again.
        finished.retain(|body| body.parse::<u64>().unwrap() < to);
        for (body, handle) in receive(&mut rig, again) {
            assert_eq!(rig.ack(vec![handle]).unwrap().unwrap(), [true]);
            finished.insert(body);
        }
        assert_eq!(finished.len(), (to as usize).min(acked) + again as usize, "{case}");
        rig.send(0, "last", None).unwrap().unwrap();
        sent.insert("last".to_owned());
        rig.settle();
        let disk = rig.kill();
        let log = disk.paths().into_iter().find(|path| path.ends_with("00000000000000000000.log"));
        disk.corrupt(&log.unwrap(), at, 1).unwrap();
        let mut rig = Rig::open(&disk, &SETUP, WALL).unwrap();
        let report: Vec<_> = rig.broker.start_report().iter().map(ToString::to_string).collect();
        let report = report.join("\n");
        assert!(report.contains("groups may get messages again"), "{case}: {report}");
        let got = receive_all(&mut rig);
        let is_wanted = |body: &&String| {
            let offset = body.parse::<u64>().unwrap_or(u64::MAX);
            offset >= to && !finished.contains(*body)
        };
        let mut wanted = sent.iter().filter(is_wanted);
        assert!(wanted.all(|one| got.contains(one)), "{case}: only {got:?} came");
        let mut rig = Rig::open(&rig.kill(), &SETUP, WALL + 3_600_000).unwrap();
        assert_eq!(receive_all(&mut rig), BTreeSet::new(), "{case}");
    }
}
