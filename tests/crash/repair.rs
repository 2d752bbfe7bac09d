//! Damaged bytes are given up on an operator's word, and records without a topic get one again: with snapshots and
//! derived files, without them, and wherever it is killed.

use std::path::Path;
use std::sync::Arc;

use mainstem::file::disk::Disk;
use mainstem::format::record::{HEADER_LEN, RecordKind};
use mainstem::format::state_record::Transition;
use mainstem::message::{MessageId, PhysicalOffset, Timestamp, TopicId};
use mainstem::store::{
    Adoption, FindingKind, IncompleteReason, IndexKind, Lose, Order, ReadOutcome, RepairError,
    RepairMode, RepairOrder, Repaired, repair,
};
use mainstem::testing::{CrashChoice, ManualClock, SimDisk, TopicsOnly};

use crate::decay::{QUEUES, Written, place, send, written};
use crate::oracle::Logged;
use crate::rig::{DATA, Rig, base, batch, files, path};
use crate::verify::verify;

fn run(disk: &SimDisk, order: &RepairOrder) -> Result<Repaired, RepairError> {
    let on: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = Arc::new(ManualClock::new(Timestamp::new(1_000_000)));
    repair(&on, clock, Path::new(DATA), Arc::new(TopicsOnly::default()), order, |_| ())
}

fn all() -> RepairOrder {
    let lose = Lose { ranges: vec![], all_damaged: true };
    RepairOrder { lose, adopt: vec![], mode: RepairMode::Do }
}

fn these(begin: PhysicalOffset, end: PhysicalOffset) -> RepairOrder {
    let lose = Lose { ranges: vec![begin..end], all_damaged: false };
    RepairOrder { lose, adopt: vec![], mode: RepairMode::Do }
}

fn adopt(id: u64, name: &str) -> RepairOrder {
    let adopt = vec![Adoption { id: TopicId::new(id), name: name.to_owned() }];
    RepairOrder { lose: Lose::default(), adopt, mode: RepairMode::Do }
}

/// What is damaged of a record.
#[derive(Clone, Copy, Debug)]
enum Part {
    Header,
    Body,
}

fn damage(disk: &SimDisk, record: &Logged, part: Part) {
    let (file, at) = place(disk, record.header.physical_offset);
    let at = match part {
        Part::Header => at + 40,
        Part::Body => at + HEADER_LEN as u64 + 40,
    };
    disk.corrupt(&file, at, 1).unwrap();
}

/// Removes what is derived: all, or the queue and index files.
fn derive_again(disk: &SimDisk, dirs: &[&str]) {
    for dir in dirs {
        for file in files(disk, dir) {
            disk.remove(&file).unwrap();
        }
    }
}

/// Reads everything twice and asks for every key and id: all but `lost` is there, nothing is said of damage.
fn passes_over(disk: &SimDisk, written: &Written, lost: &[usize], what: &str) {
    let mut rig = Rig::open(disk);
    let report = rig.store.start_report();
    assert_eq!(
        (report.damaged.as_slice(), report.damage_may_hold_state),
        (&[][..], false),
        "{what}"
    );
    rig.workers.settle();
    for _ in 0..200 {
        rig.workers.scrub.step();
    }
    assert_eq!(rig.store.status().damaged, [], "{what}");
    let topic = rig.topic(1).unwrap();
    let messages: Vec<_> = written.messages().collect();
    let kept = |n: &usize| !lost.contains(n);
    let lost: Vec<_> = lost.iter().map(|n| &messages[*n].header).collect();
    for queue in 0..QUEUES {
        let expected: Vec<_> = (0..messages.len())
            .filter(kept)
            .map(|n| &messages[n].header)
            .filter(|header| header.queue.get() == queue)
            .map(|header| header.queue_offset.get())
            .collect();
        // From the begin, and from each offset on: also from inside of a gap.
        let end = expected.last().unwrap() + 1;
        for start in 0..=end {
            let (mut from, mut seen) = (start, Vec::new());
            loop {
                match rig.read(&topic, queue, from, 3) {
                    ReadOutcome::Records { records, next, .. } => {
                        seen.extend(records.iter().map(|record| record.first_queue_offset.get()));
                        from = next.get();
                    }
                    ReadOutcome::Rebuilding => rig.workers.settle(),
                    ReadOutcome::Empty { next, range } => {
                        assert_eq!(next, range.max, "{what}");
                        break;
                    }
                    other => panic!("{what}: queue {queue} from {from}: {other:?}"),
                }
            }
            let expected: Vec<_> = expected.iter().copied().filter(|at| *at >= start).collect();
            assert_eq!(seen, expected, "{what}: queue {queue} from {start}");
        }
    }
    for n in 0..messages.len() {
        for order in [Order::NewestFirst, Order::OldestFirst] {
            let found = rig.find(&topic, IndexKind::Id, &format!("i{n}"), order);
            let expected = (usize::from(kept(&n)), true, None);
            let (count, complete) = (found.messages.len(), found.complete);
            assert_eq!((count, complete, found.reason), expected, "{what}: {n}");
        }
    }
    for header in lost {
        let id = MessageId { epoch: header.epoch, offset: header.physical_offset, index: 0 };
        assert!(rig.by_id(id).is_none(), "{what}");
    }
    send(&mut rig, 0, 1_000, 100);
    rig.close();
    let (findings, summary) = verify(disk);
    assert!(summary.is_sound(), "{what}: {findings:?}");
}

#[test]
fn what_is_given_up_is_passed_over_in_silence_with_and_without_what_is_derived() {
    let written = written();
    // In a sealed segment and in the last; neighbours; the very first message, and the very last.
    for numbers in [&[20][..], &[20, 21, 22], &[0], &[69], &[0, 30, 31, 69]] {
        for part in [Part::Header, Part::Body] {
            let disk = written.copy();
            let messages: Vec<_> = written.messages().collect();
            for n in numbers {
                damage(&disk, messages[*n], part);
            }
            let what = format!("{numbers:?}, {part:?}");
            // What a start makes of it before anybody gives it up: files that say that they lack something.
            let started = disk.crash_image(&CrashChoice::EVERYTHING);
            derive_again(&started, &["consumequeue", "index", "state"]);
            let mut rig = Rig::open(&started);
            rig.workers.settle();
            let topic = rig.topic(1).unwrap();
            let found = rig.find(&topic, IndexKind::Id, "i1", Order::NewestFirst);
            assert_eq!(found.reason, Some(IncompleteReason::Damaged), "{what}");
            rig.close();
            for (disk, before) in [(disk, "at once"), (started, "after a start")] {
                let plan = RepairOrder { mode: RepairMode::Plan, ..all() };
                let (operations, planned) = (disk.operations(), run(&disk, &plan).unwrap());
                assert_eq!(disk.operations(), operations, "{what}: nothing is changed");
                let repaired = run(&disk, &all()).unwrap();
                assert_eq!((&repaired.lost, planned.epoch), (&planned.lost, None), "{what}");
                let bytes: u64 = repaired.lost.iter().map(|r| r.end.since(r.start)).sum();
                let damaged = numbers.iter().map(|n| u64::from(messages[*n].header.total_len));
                assert_eq!(bytes, damaged.sum::<u64>(), "{what}, {before}");
                assert_eq!(run(&disk, &all()).unwrap().lost, [], "{what}: once");
                for dirs in
                    [&[][..], &["index", "consumequeue"], &["consumequeue", "index", "state"]]
                {
                    let disk = disk.crash_image(&CrashChoice::EVERYTHING);
                    derive_again(&disk, dirs);
                    let what = format!("{what}, {before}, without {dirs:?}");
                    passes_over(&disk, &written, numbers, &what);
                }
            }
        }
    }
}

#[test]
fn verification_calls_it_lost_and_not_damaged() {
    let written = written();
    for dirs in [&[][..], &["state"]] {
        let disk = written.copy();
        damage(&disk, written.messages().nth(20).unwrap(), Part::Header);
        run(&disk, &all()).unwrap();
        derive_again(&disk, dirs);
        let (findings, summary) = verify(&disk);
        assert_eq!((summary.damaged, summary.is_sound()), (0, true), "{findings:?}");
        let header = &written.messages().nth(20).unwrap().header;
        let range = header.physical_offset..header.end();
        let told = findings.iter().find(|finding| finding.kind == FindingKind::Remark).unwrap();
        assert_eq!(told.range, Some(range));
        assert!(told.what.starts_with("lost: an operator gave it up"), "{findings:?}");
    }
}

/// Only the damage that was given up is silent.
#[test]
fn a_gap_that_other_damage_may_explain_is_told() {
    let written = written();
    let disk = written.copy();
    let messages: Vec<_> = written.messages().collect();
    for n in [20, 21, 22] {
        damage(&disk, messages[n], Part::Header);
    }
    derive_again(&disk, &["consumequeue", "index", "state"]);
    // The damage is one range; of it the record in the middle is given up.
    let middle = &messages[21].header;
    let repaired = run(&disk, &these(middle.physical_offset, middle.end())).unwrap();
    assert_eq!(repaired.lost, [middle.physical_offset..middle.end()]);
    assert_eq!(repaired.damaged.len(), 2, "{repaired:?}");
    derive_again(&disk, &["state"]);
    let mut rig = Rig::open(&disk);
    assert_eq!(rig.store.start_report().damaged.len(), 2);
    rig.workers.settle();
    let topic = rig.topic(1).unwrap();
    for (queue, n) in [(0, 20), (1, 21)] {
        let at = messages[n].header.queue_offset;
        match rig.read(&topic, queue, at.get(), 10) {
            ReadOutcome::Damaged { at: told, .. } => assert_eq!(told, at),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_not_damaged_is_not_lost() {
    let written = written();
    let disk = written.copy();
    let messages: Vec<_> = written.messages().map(|record| &record.header).collect();
    damage(&disk, written.messages().nth(20).unwrap(), Part::Body);
    let before = disk.operations();
    let (bad, sound) = (messages[20], messages[21]);
    match run(&disk, &these(bad.physical_offset, sound.end())) {
        Err(RepairError::Sound { at, .. }) => assert_eq!(at, sound.physical_offset),
        other => panic!("{other:?}"),
    }
    match run(&disk, &these(messages[19].physical_offset.plus(8), bad.end())) {
        Err(RepairError::Sound { at, .. }) => assert_eq!(at, messages[19].physical_offset),
        other => panic!("{other:?}"),
    }
    let segments = files(&disk, "commitlog");
    let end = base(segments.last().unwrap()) + (16 << 10);
    match run(&disk, &these(bad.physical_offset, PhysicalOffset::new(end + 8))) {
        Err(RepairError::Outside { log, .. }) => {
            assert_eq!((log.start.get(), log.end.get()), (0, end));
        }
        other => panic!("{other:?}"),
    }
    // A header page, behind which the range ends.
    match run(&disk, &these(PhysicalOffset::new(0), PhysicalOffset::new(4_096))) {
        Err(RepairError::NotDamaged { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.operations(), before, "nothing is changed");
    assert_eq!(run(&disk, &these(bad.physical_offset, bad.end())).unwrap().lost.len(), 1);
}

#[test]
fn a_segment_that_is_gone_can_be_given_up() {
    let written = written();
    for index in [0, 2] {
        let disk = written.copy();
        let gone = files(&disk, "commitlog").swap_remove(index);
        disk.remove(&gone).unwrap();
        let range = PhysicalOffset::new(base(&gone))..PhysicalOffset::new(base(&gone) + (16 << 10));
        let repaired = run(&disk, &all()).unwrap();
        assert_eq!(repaired.lost, std::slice::from_ref(&range));
        let (findings, summary) = verify(&disk);
        assert!(summary.is_sound(), "{findings:?}");
        let numbers: Vec<_> = (0..)
            .zip(written.messages())
            .filter(|(_, record)| range.contains(&record.header.physical_offset))
            .map(|(n, _)| n)
            .collect();
        passes_over(&disk, &written, &numbers, &format!("segment {index}"));
    }
}

#[test]
fn a_repair_that_is_killed_anywhere_is_done_or_not() {
    let written = written();
    let disk = written.copy();
    let record = written.messages().nth(20).unwrap();
    damage(&disk, record, Part::Header);
    derive_again(&disk, &["consumequeue", "index", "state"]);
    let mut rig = Rig::open(&disk);
    rig.workers.settle();
    rig.close();
    let whole = disk.crash_image(&CrashChoice::EVERYTHING);
    let begun = whole.operations();
    let expected = run(&whole, &all()).unwrap().lost;
    let operations = whole.operations() - begun;
    let mut done = 0;
    for operation in 0..operations {
        let cut = disk.crash_image(&CrashChoice::EVERYTHING);
        cut.crash_inside(cut.operations() + operation, 700);
        let answered = run(&cut, &all()).is_ok();
        for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING] {
            let image = cut.crash_image(&choice);
            let what = format!("cut at {operation}, {choice:?}");
            let again = run(&image, &all()).unwrap_or_else(|error| panic!("{what}: {error}")).lost;
            assert!(again.is_empty() || again == expected && !answered, "{what}");
            done += usize::from(again.is_empty());
            passes_over(&image, &written, &[20], &what);
        }
    }
    assert!(done > 0 && done < 2 * operations as usize, "{done} of {operations}");
}

/// The creation of the topic is damaged, and no snapshot knows it.
fn without_topic(written: &Written, has_snapshot: bool) -> SimDisk {
    let disk = written.copy();
    let mut log = written.log.iter();
    damage(&disk, log.find(|record| record.header.kind == RecordKind::State).unwrap(), Part::Body);
    derive_again(&disk, &["state"]);
    if has_snapshot {
        // A start that does not know the topic any more, and says so in its snapshot.
        let mut rig = Rig::open(&disk);
        assert!(rig.topic(1).is_none());
        rig.workers.settle();
        rig.close();
    }
    disk
}

#[test]
fn records_without_a_topic_get_one_again_and_its_offsets_go_on() {
    let written = written();
    for has_snapshot in [false, true] {
        for with_lose in [false, true] {
            let disk = without_topic(&written, has_snapshot);
            let what = format!("snapshot {has_snapshot}, lose {with_lose}");
            let mut order = adopt(1, "orders");
            order.lose.all_damaged = with_lose;
            let plan = RepairOrder { mode: RepairMode::Plan, ..all() };
            assert_eq!(run(&disk, &plan).unwrap().unknown, [TopicId::new(1)], "{what}");
            let repaired = run(&disk, &order).unwrap();
            let adopted = &repaired.adopted[0];
            assert_eq!((adopted.queues, repaired.unknown.len()), (QUEUES, 0), "{what}");
            for dirs in [&[][..], &["consumequeue", "index", "state"]] {
                let disk = disk.crash_image(&CrashChoice::EVERYTHING);
                derive_again(&disk, dirs);
                let mut rig = Rig::open(&disk);
                rig.workers.settle();
                let topic = rig.topic(1).unwrap();
                let all: usize = (0..QUEUES).map(|queue| rig.read_all(&topic, queue).len()).sum();
                assert_eq!(all, 70, "{what}, without {dirs:?}");
                let found = rig.find(&topic, IndexKind::Key, "k1", Order::NewestFirst);
                assert!(!found.messages.is_empty(), "{what}");
                let placed = rig.send(1, 1, &batch(900, 1, 100)).unwrap();
                assert_eq!(placed.queue_offset.get(), 35, "{what}: behind what was found");
                rig.workers.settle();
                assert_eq!(rig.read_all(&topic, 1).len(), 36, "{what}");
                rig.close();
            }
        }
    }
}

#[test]
fn only_an_id_without_a_topic_is_adopted_and_only_under_a_free_name() {
    let written = written();
    let disk = written.copy();
    match run(&disk, &adopt(1, "other")) {
        Err(RepairError::IdTaken { id, name }) => {
            assert_eq!((id, name.as_str()), (TopicId::new(1), "t1"));
        }
        other => panic!("{other:?}"),
    }
    match run(&disk, &adopt(2, "t1")) {
        Err(RepairError::NameTaken { id, .. }) => assert_eq!(id, TopicId::new(1)),
        other => panic!("{other:?}"),
    }
    match run(&disk, &adopt(2, "other")) {
        Err(RepairError::NoRecords { id }) => assert_eq!(id, TopicId::new(2)),
        other => panic!("{other:?}"),
    }
    let rig = Rig::open(&disk);
    let deleted = Transition::TopicDeleted { id: TopicId::new(1) };
    rig.state(&deleted).unwrap();
    rig.close();
    match run(&disk, &adopt(1, "other")) {
        Err(RepairError::Deleted { id }) => assert_eq!(id, TopicId::new(1)),
        other => panic!("{other:?}"),
    }
    let rig = Rig::open(&disk);
    match run(&disk, &all()) {
        Err(RepairError::Offline(error)) => {
            assert!(error.to_string().contains("in use by another process"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    rig.kill();
    assert!(disk.paths().contains(&path("identity")));
}

#[test]
fn a_segment_with_what_was_given_up_goes_when_its_messages_do() {
    let written = written();
    for is_lost in [false, true] {
        let disk = written.copy();
        damage(&disk, written.messages().nth(3).unwrap(), Part::Header);
        derive_again(&disk, &["consumequeue", "index", "state"]);
        if is_lost {
            run(&disk, &all()).unwrap();
        }
        let first = files(&disk, "commitlog").swap_remove(0);
        let mut rig = Rig::open(&disk);
        rig.workers.settle();
        let deleted = Transition::TopicDeleted { id: TopicId::new(1) };
        rig.state(&deleted).unwrap();
        rig.store.clean_soon();
        for _ in 0..20 {
            rig.clock.advance(std::time::Duration::from_secs(61));
            rig.workers.settle();
        }
        rig.close();
        assert_eq!(!files(&disk, "commitlog").contains(&first), is_lost);
        if is_lost {
            let (findings, summary) = verify(&disk);
            assert!(summary.is_sound(), "{findings:?}");
        }
    }
}
