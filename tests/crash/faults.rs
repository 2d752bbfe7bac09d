//! One call fails, for every call of a script and every kind of call: then the store is right or refuses.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstem::file::{FileError, Operation};
use mainstem::format::state_record::Transition;
use mainstem::message::{FlushMode, MessageId, Timestamp, TopicId};
use mainstem::store::{
    AppendError, CloseError, IncompleteReason, IndexKind, OpenError, Order, Poisoned, ReadError,
    ReadOutcome, SpaceError, StoreConfig,
};
use mainstem::testing::{CrashChoice, Fault, FaultRule, SimDisk, Times, Torn, now};

use crate::oracle;
use crate::rig::{DATA, Rig, batch, no_reserve, tiny};
use crate::script::{Run, Step, without_epochs};

const EVERYTHING: &CrashChoice = &CrashChoice::EVERYTHING;
const NOTHING: &CrashChoice = &CrashChoice::NOTHING;

struct Case<'a>(&'a FaultRule, &'a str);

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FaultRule { operation, nth, times, error, .. } = self.0;
        write!(f, "{error:?} at {operation:?} {nth}, {times:?}, {}", self.1)
    }
}

/// Every kind of call, and every file: sends, sets, rolls, seals, snapshots, a clean stop and a start.
fn script() -> Vec<Step> {
    let mut steps = vec![
        Step::Create { topic: 1, queues: 1, flush: FlushMode::Sync },
        Step::Create { topic: 2, queues: 1, flush: FlushMode::Async },
    ];
    for n in 0..9 {
        steps.extend([
            Step::Send { topic: 1, queue: 0, count: 1, len: 1_400 },
            Step::Set(vec![(1, 0, 700), (2, 0, 700)]),
            Step::Dispatch,
            Step::FlushIfDue,
            Step::Send { topic: 2, queue: 0, count: 2, len: 700 },
        ]);
        match n % 3 {
            0 => steps.extend([Step::Allocate, Step::Read]),
            1 => steps.push(Step::Settle),
            _ => steps.extend([Step::Delete { topic: 3 }, Step::Seal]),
        }
        if n == 5 {
            steps.extend([
                Step::CloseAndReopen,
                Step::Create { topic: 3, queues: 1, flush: FlushMode::Sync },
            ]);
        }
    }
    steps.extend([Step::Settle, Step::Read]);
    steps
}

const OPERATIONS: [Operation; 17] = [
    Operation::CreateDir,
    Operation::List,
    Operation::Create,
    Operation::Open,
    Operation::Len,
    Operation::Allocate,
    Operation::Write,
    Operation::Read,
    Operation::ReadFresh,
    Operation::Sync,
    Operation::DropCache,
    Operation::Map,
    Operation::Rename,
    Operation::Unlink,
    Operation::SyncDir,
    Operation::FreeSpace,
    Operation::Lock,
];

#[test]
fn one_failing_call_leaves_a_store_that_is_right_or_refuses() {
    let steps = script();
    let sound = SimDisk::new();
    Run::start(sound.clone(), &tiny()).run(&steps);
    let (mut cases, mut poisoned, mut refused, mut unopened) = (0, 0, 0, 0);
    for operation in OPERATIONS {
        let errors: &[Fault] = match operation {
            Operation::Write => &[Fault::Eio, Fault::Enospc, Fault::ShortWrite(100)],
            Operation::Create | Operation::Allocate | Operation::Sync => {
                &[Fault::Eio, Fault::Enospc]
            }
            _ => &[Fault::Eio],
        };
        for nth in 1..=sound.calls(operation) {
            for (times, error) in
                errors.iter().flat_map(|error| [(Times::Once, error), (Times::Always, error)])
            {
                let rule = FaultRule { operation, path_contains: None, nth, times, error: *error };
                println!("{}", Case(&rule, ""));
                let run = fail(&rule, &steps);
                cases += 1;
                poisoned += usize::from(run.rig.as_ref().is_some_and(Rig::is_poisoned));
                refused += run.ledger.refused;
                unopened += usize::from(run.rig.is_none());
                recovers(run, &rule);
            }
        }
    }
    println!("{cases} faults: {poisoned} poisoned, {refused} appends refused, {unopened} unopened");
    assert!(cases > 500 && poisoned > 50 && refused > 50 && unopened > 50);
}

/// Runs the script with the fault, and a while on.
fn fail(rule: &FaultRule, steps: &[Step]) -> Run {
    let disk = SimDisk::new();
    disk.fail(rule.clone());
    let mut run = Run::start_faulty(disk.clone(), &tiny());
    run.run(steps);
    if let Some(rig) = &mut run.rig {
        let flushed = rig.store.watermarks().flushed;
        disk.clear_faults();
        rig.workers.settle();
        if rig.is_poisoned() {
            let case = Case(rule, "poisoned");
            assert_eq!(rig.store.watermarks().flushed, flushed, "{case}: flushed stands still");
            let later = rig.topic(1).map(|_| rig.send(1, 0, &batch(0, 1, 10)));
            let is_refused = matches!(later, None | Some(Err(AppendError::Poisoned)));
            assert!(is_refused, "{case}: {later:?}");
            run.notice();
            assert_eq!(run.unanswered(), 0, "{case}: who waited is told");
        } else if rig.store.start_report().damaged.is_empty() {
            // The device is well again, and so is the store, without a restart.
            run.is_faulty = false;
            run.run(&[
                Step::Settle,
                Step::Send { topic: 2, queue: 0, count: 1, len: 700 },
                Step::Settle,
            ]);
            run.check(true, &Case(rule, "goes on"));
            assert_eq!(run.unanswered(), 0, "{}: everybody is told", Case(rule, "goes on"));
        }
    }
    run
}

/// Whatever the fault did, the next start, of the process or of the machine, keeps the promises.
fn recovers(mut run: Run, rule: &FaultRule) {
    // A failed sync may lose what was not flushed; every other fault loses nothing of what was accepted.
    let loses = rule.operation == Operation::Sync;
    let all = if loses { NOTHING } else { EVERYTHING };
    let is_damaged =
        run.rig.as_ref().is_some_and(|rig| !rig.store.start_report().damaged.is_empty());
    run.rig = None;
    run.disk.clear_faults();
    if is_damaged {
        // What could not be read at a start is missing from what was derived then; not from the log.
        delete_derived(&run.disk);
    }
    let cut = run.disk.crash_image(NOTHING);
    run.after_cut(cut, NOTHING, &Case(rule, "then a power cut"));
    let restarted = run.after_cut(run.disk.clone(), all, &Case(rule, "then a restart"));
    let log = without_epochs(oracle::walk(&restarted.disk, &Case(rule, "")));
    let copy = restarted.disk.crash_image(NOTHING);
    let again = restarted.after_cut(copy, EVERYTHING, &Case(rule, "and another"));
    assert!(log == without_epochs(oracle::walk(&again.disk, &Case(rule, ""))));
}

fn delete_derived(disk: &SimDisk) {
    for path in disk.paths() {
        let text = path.to_string_lossy().into_owned();
        if ["consumequeue/", "index/", "state/"].iter().any(|part| text.contains(part)) {
            disk.remove(&path).unwrap();
        }
    }
}

fn rule(operation: Operation, part: &str, nth: u64, times: Times, error: Fault) -> FaultRule {
    FaultRule { operation, path_contains: Some(part.to_owned()), nth, times, error }
}

#[test]
fn a_failed_sync_is_final_and_the_next_start_recovers() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let topic = rig.create(1, 1, FlushMode::Sync);
    rig.send(1, 0, &batch(0, 1, 500)).unwrap();
    rig.workers.settle();
    let placed = rig.send(1, 0, &batch(1, 1, 500)).unwrap();
    let waiting = rig.store.acknowledged(&topic, placed.end);
    let flushed = rig.store.watermarks().flushed;
    disk.fail(rule(Operation::Sync, "commitlog", 1, Times::Once, Fault::Eio));
    rig.workers.flush.flush_all();
    assert_eq!(now(waiting), Some(Err(Poisoned)));
    rig.workers.settle();
    rig.workers.flush.flush_all();
    assert_eq!(rig.store.watermarks().flushed, flushed, "no later sync counts");
    assert_eq!(now(rig.store.durable(placed.end)), Some(Err(Poisoned)));
    assert_eq!(now(rig.store.space()), Some(Err(SpaceError::Poisoned)));
    assert!(matches!(rig.send(1, 0, &batch(2, 1, 500)), Err(AppendError::Poisoned)));
    let Rig { store, workers, .. } = rig;
    let reason = match store.close_stepped(workers) {
        Err(CloseError::Poisoned { reason }) => reason,
        Ok(()) => panic!("a poisoned store does not close cleanly"),
    };
    assert!(reason.contains("sync of the log"), "{reason}");
    drop(store);

    let rig = Rig::open(&disk);
    assert!(!rig.store.start_report().clean);
    let topic = rig.topic(1).unwrap();
    let found: Vec<Bytes> = rig.read_all(&topic, 0).into_iter().map(|r| r.batch).collect();
    assert_eq!(found, [batch(0, 1, 500)], "the unacknowledged one went with its pages");
    assert_eq!(rig.send(1, 0, &batch(3, 1, 500)).unwrap().queue_offset.get(), 1);
}

#[test]
fn a_full_disk_is_told_and_sends_go_on_after_room_returns_without_a_restart() {
    let disk = SimDisk::new();
    // The clock stands still, so free space is not asked for again: what is reserved is another test's.
    let open = || Rig::try_open(Arc::new(disk.clone()), &no_reserve(), 1_000_000).unwrap();
    let mut rig = open();
    rig.create(1, 1, FlushMode::Sync);
    rig.workers.settle();
    let used: u64 =
        disk.paths().iter().map(|path| disk.durable_bytes(path).unwrap().len() as u64).sum();
    disk.set_capacity(Some(used + 5_000));
    let mut sent = 0;
    let error = loop {
        match rig.send(1, 0, &batch(sent, 1, 1_000)) {
            Ok(_) => sent += 1,
            Err(error) => {
                rig.workers.settle();
                if rig.store.watermarks().appended == rig.store.watermarks().flushed
                    && now(rig.store.space()) != Some(Ok(()))
                {
                    break error;
                }
            }
        }
    };
    assert!(matches!(error, AppendError::NotReady), "{error}");
    assert_eq!(now(rig.store.space()), Some(Err(SpaceError::Full)));
    assert!(sent > 10, "what was made ahead is used up first");
    // Reads, and a state change that still fits, go on.
    let topic = rig.topic(1).unwrap();
    assert_eq!(rig.read_all(&topic, 0).len() as u64, sent);

    // A store that is full can be stopped and started.
    rig.kill();
    let mut rig = open();
    rig.workers.settle();
    let topic = rig.topic(1).unwrap();
    assert_eq!(rig.read_all(&topic, 0).len() as u64, sent);

    disk.set_capacity(None);
    rig.workers.settle();
    assert_eq!(now(rig.store.space()), Some(Ok(())));
    assert_eq!(rig.send(1, 0, &batch(sent, 1, 1_000)).unwrap().queue_offset.get(), sent);
    rig.workers.settle();
    assert_eq!(rig.read_all(&topic, 0).len() as u64, sent + 1);
}

/// Sends until the store says that there is no room; returns how many more were stored.
fn fill(rig: &mut Rig, topic: u64, mut sent: u64) -> u64 {
    for _ in 0..10_000 {
        match rig.send(topic, 0, &batch(sent, 1, 1_000)) {
            Ok(_) => sent += 1,
            Err(AppendError::NotReady) => {
                rig.workers.settle();
                if now(rig.store.space()) == Some(Err(SpaceError::Full)) {
                    return sent;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the disk is never full");
}

/// Purges a topic whole, as a broker does.
fn purge(rig: &Rig, topic: u64) {
    let (id, below) = (TopicId::new(topic), rig.store.watermarks().appended);
    let (before, queues) = (Timestamp::ZERO, vec![]);
    rig.state(&Transition::TopicExpired { id, below, before, queues, purged: below }).unwrap();
}

#[test]
fn on_a_full_disk_state_goes_on_and_a_purge_makes_room_for_sends_without_a_restart() {
    for reserve in [0, 40 << 10] {
        let disk = SimDisk::new();
        let config = StoreConfig { disk_reserve: reserve, ..tiny() };
        let open =
            |disk: &SimDisk| Rig::try_open(Arc::new(disk.clone()), &config, 1_000_000).unwrap();
        let mut rig = open(&disk);
        rig.create(1, 1, FlushMode::Sync);
        rig.create(2, 1, FlushMode::Sync);
        rig.workers.settle();
        disk.set_capacity(Some(400 << 10));
        let kept = 3;
        for n in 0..kept {
            rig.send(2, 0, &batch(n, 1, 1_000)).unwrap();
        }
        let sent = fill(&mut rig, 1, kept);
        assert!(sent > 100, "{sent}");
        // Sends are refused, reads go on, and so does state: in the part of the last segment that is kept for it.
        assert!(matches!(rig.send(1, 0, &batch(sent, 1, 1_000)), Err(AppendError::NotReady)));
        let topic = rig.topic(1).unwrap();
        assert_eq!(rig.read_all(&topic, 0).len() as u64, sent - kept);
        for id in 3..8 {
            rig.create(id, 1, FlushMode::Sync);
        }
        // Full, it can be killed and started.
        rig.kill();
        let mut rig = open(&disk);
        rig.workers.settle();
        assert!(matches!(rig.send(1, 0, &batch(sent, 1, 1_000)), Err(AppendError::NotReady)));
        purge(&rig, 1);
        rig.store.clean_soon();
        rig.workers.settle();
        // As the clock goes on, the disk is asked again.
        rig.clock.advance(Duration::from_secs(2));
        rig.workers.settle();
        assert_eq!(now(rig.store.space()), Some(Ok(())), "{:?}", rig.store.status());
        assert!(rig.store.status().deleted_segments > 5, "{:?}", rig.store.status());
        let topic = rig.topic(1).unwrap();
        assert_eq!(rig.read_all(&topic, 0).len(), 0);
        let placed = rig.send(1, 0, &batch(sent, 1, 1_000)).unwrap();
        assert_eq!(placed.queue_offset.get(), sent - kept, "no offset is given again");
        rig.workers.settle();
        let other = rig.topic(2).unwrap();
        assert_eq!(rig.read_all(&other, 0).len() as u64, kept, "what is alive stays");
        assert_eq!(rig.read_all(&topic, 0).len(), 1);
        assert!(rig.topic(7).is_some());
    }
}

#[test]
fn below_the_reserve_sends_are_refused_and_taken_again_when_there_is_space() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Async);
    rig.workers.settle();
    rig.send(1, 0, &batch(0, 1, 100)).unwrap();
    // Somebody else fills the disk; what was made ahead is there all the same.
    disk.set_capacity(Some(200 << 20));
    rig.clock.advance(Duration::from_secs(1));
    rig.workers.clean.step();
    assert!(matches!(rig.send(1, 0, &batch(1, 1, 100)), Err(AppendError::NotReady)));
    assert_eq!(now(rig.store.space()), Some(Err(SpaceError::Full)));
    assert!(rig.store.status().disk_is_short);
    rig.create(2, 1, FlushMode::Async);
    // State that waited for something else may go on too.
    assert_eq!(now(rig.store.space_for_state()), Some(Ok(())));
    disk.set_capacity(None);
    rig.clock.advance(Duration::from_secs(1));
    rig.workers.clean.step();
    assert!(!rig.store.status().disk_is_short);
    assert_eq!(rig.send(1, 0, &batch(1, 1, 100)).unwrap().queue_offset.get(), 1);
}

#[test]
fn a_torn_tail_on_a_full_disk_does_not_keep_the_store_from_starting() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    rig.workers.settle();
    rig.send(1, 0, &batch(0, 1, 3_000)).unwrap();
    // The header lands, what is behind it does not.
    let torn = Torn { version: 0, keep: 1_000 };
    let writes = mainstem::testing::WriteChoice::None;
    let names = mainstem::testing::NameChoice::All;
    let image = disk.crash_image(&CrashChoice { names, writes, torn: Some(torn) });
    image.set_capacity(Some(0));
    let rig = Rig::open(&image);
    let cut = rig.store.start_report().cut.clone().unwrap();
    assert_eq!(cut.kept_in, None);
    let remarks = &rig.store.start_report().remarks;
    assert!(remarks.iter().any(|remark| remark.contains("no space left")), "{remarks:?}");
}

#[test]
fn a_failed_write_is_undone_and_the_next_append_takes_its_place() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let topic = rig.create(1, 2, FlushMode::Async);
    rig.workers.settle();
    let first = rig.send(1, 0, &batch(0, 1, 600)).unwrap();
    // 200 bytes of the set are written, then the device fails.
    disk.fail(rule(Operation::Write, "commitlog", 1, Times::Once, Fault::ShortWrite(200)));
    disk.fail(rule(Operation::Write, "commitlog", 2, Times::Once, Fault::Eio));
    let set = (1..4).map(|n| rig.record(1, n % 2, &batch(n.into(), 1, 600))).collect();
    match rig.store.append(set) {
        Err(AppendError::Write { at, .. }) => assert_eq!(at, first.end),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.store.watermarks().appended, first.end);
    let next = rig.send(1, 0, &batch(9, 1, 100)).unwrap();
    assert_eq!((next.offset, next.queue_offset.get()), (first.end, 1), "no hole");
    for choice in [NOTHING, EVERYTHING] {
        let mut rig = Rig::open(&disk.crash_image(choice));
        rig.workers.settle();
        let topic = rig.topic(1).unwrap();
        let found: Vec<Bytes> = rig.read_all(&topic, 0).into_iter().map(|r| r.batch).collect();
        let sent = [batch(0, 1, 600), batch(9, 1, 100)];
        assert_eq!(found, sent[..found.len()], "{choice:?}");
        assert_eq!(rig.read_all(&topic, 1).len(), 0, "{choice:?}: nothing of the failed set");
    }
    rig.workers.settle();
    assert_eq!(rig.read_all(&topic, 0).len(), 2);
}

#[test]
fn a_failed_write_that_cannot_be_undone_is_unknown_and_poisons() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Async);
    rig.workers.settle();
    disk.fail(rule(Operation::Write, "commitlog", 1, Times::Always, Fault::Eio));
    let at = rig.store.watermarks().appended;
    match rig.send(1, 0, &batch(0, 1, 600)) {
        Err(AppendError::Unknown { at: found }) => assert_eq!(found, at),
        other => panic!("{other:?}"),
    }
    disk.clear_faults();
    assert!(matches!(rig.send(1, 0, &batch(1, 1, 600)), Err(AppendError::Poisoned)));
    assert!(now(rig.store.failed()).unwrap().contains("undoing a failed write"));
}

/// As the kernel does it after an error of the device: what changes the disk fails from then on, what reads does not.
#[test]
fn a_file_system_that_goes_read_only_ends_sends_alone_and_after_a_remount_all_is_there() {
    let changes = [
        Operation::CreateDir,
        Operation::Create,
        Operation::Allocate,
        Operation::Write,
        Operation::Rename,
        Operation::Unlink,
    ];
    for flush in [FlushMode::Sync, FlushMode::Async] {
        let disk = SimDisk::new();
        let mut rig = Rig::open(&disk);
        let topic = rig.create(1, 1, flush);
        for n in 0..30 {
            while let Err(AppendError::NotReady) = rig.send(1, 0, &batch(n, 1, 600)) {
                rig.workers.settle();
            }
        }
        rig.workers.settle();
        for operation in changes {
            let (times, error) = (Times::Always, Fault::Erofs);
            disk.fail(FaultRule { operation, path_contains: None, nth: 1, times, error });
        }
        // Half of a record may be there and cannot be taken back.
        let sent = rig.send(1, 0, &batch(30, 1, 600));
        assert!(matches!(sent, Err(AppendError::Unknown { .. })), "{flush:?}: {sent:?}");
        assert!(now(rig.store.failed()).unwrap().contains("Read-only file system"));
        rig.workers.settle();
        assert_eq!(rig.read_all(&topic, 0).len(), 30, "{flush:?}: readers go on");
        let Rig { store, workers, .. } = rig;
        store.close_stepped(workers).unwrap_err();
        drop(store);
        let started = Rig::try_open(Arc::new(disk.clone()), &tiny(), 1_000_000);
        let error = format!("{:?}", started.err().expect("nothing can be written"));
        assert!(error.contains("Read-only file system"), "{flush:?}: {error}");

        disk.clear_faults();
        for disk in [disk.crash_image(NOTHING), disk] {
            let mut rig = Rig::open(&disk);
            rig.workers.settle();
            let topic = rig.topic(1).unwrap();
            assert_eq!(rig.read_all(&topic, 0).len(), 30, "{flush:?}");
            rig.send(1, 0, &batch(30, 1, 600)).unwrap();
            rig.workers.settle();
            assert_eq!(rig.read_all(&topic, 0).len(), 31, "{flush:?}");
        }
    }
}

#[test]
fn a_page_of_the_log_that_cannot_be_read_costs_what_is_in_it() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let topic = rig.create(1, 1, FlushMode::Sync);
    for n in 0..40 {
        while let Err(error) = rig.send(1, 0, &batch(n, 1, 1_000)) {
            assert!(matches!(error, AppendError::NotReady), "{error}");
            rig.workers.settle();
        }
    }
    rig.workers.settle();
    disk.fail(rule(
        Operation::Read,
        "commitlog/00000000000000000000",
        1,
        Times::Always,
        Fault::Eio,
    ));
    // At first it may pass.
    for _ in 0..8 {
        assert!(matches!(rig.try_read(&topic, 0, 0, 10), Err(ReadError::File(_))));
    }
    match rig.read(&topic, 0, 0, 10) {
        ReadOutcome::Damaged { at, range, .. } => {
            assert_eq!((at.get(), range.max.get()), (0, 40));
        }
        other => panic!("{other:?}"),
    }
    match rig.read(&topic, 0, 39, 10) {
        ReadOutcome::Records { records, .. } => assert_eq!(records.len(), 1),
        other => panic!("{other:?}"),
    }
    disk.clear_faults();
    assert_eq!(rig.read_all(&topic, 0).len(), 40, "nothing was given up");
    assert!(disk.paths().iter().all(|path| path.starts_with(DATA)));
}

/// A refused read was answered as damage, with an offset to go on at: a consumer left sound messages behind.
#[test]
fn a_read_that_the_disk_refuses_once_is_an_error_and_loses_nothing() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    let placed: Vec<_> = (0..5).map(|n| rig.send(1, 0, &batch(n, 1, 500)).unwrap()).collect();
    rig.workers.settle();
    rig.close();
    let mut rig = Rig::open(&disk);
    rig.workers.settle();
    let topic = rig.topic(1).unwrap();
    // One record is one read.
    disk.fail(rule(Operation::Read, "commitlog", 1, Times::Once, Fault::Eio));
    let refused = rig.try_read(&topic, 0, 0, 1).unwrap_err();
    assert!(matches!(refused, ReadError::File(_)), "{refused}");
    assert_eq!(rig.read_all(&topic, 0).len(), 5);
    let id = MessageId { epoch: placed[2].epoch, offset: placed[2].offset, index: 0 };
    disk.fail(rule(Operation::Read, "commitlog", 1, Times::Once, Fault::Eio));
    assert!(matches!(now(rig.store.by_id(id)), Some(Err(ReadError::File(_)))));
    assert!(rig.by_id(id).is_some());
    // The second comes with what lies behind it. If that is refused it is read alone; if that is refused too, what was
    // found before it goes out, and the refusal meets the next read.
    for (times, all) in [(Times::Once, 5), (Times::Count(2), 1)] {
        disk.fail(rule(Operation::Read, "commitlog", 2, times, Fault::Eio));
        match rig.try_read(&topic, 0, 0, 100).unwrap() {
            ReadOutcome::Records { records, next, .. } => {
                assert_eq!((records.len(), next.get()), (all, all as u64));
            }
            other => panic!("{other:?}"),
        }
        disk.clear_faults();
    }
    disk.fail(rule(Operation::Read, "commitlog", 1, Times::Once, Fault::Eio));
    assert!(matches!(rig.try_read(&topic, 0, 1, 100), Err(ReadError::File(_))));
    assert_eq!(rig.read_all(&topic, 0).len(), 5);
}

#[test]
fn a_place_that_the_disk_refuses_for_good_counts_as_damaged_until_it_can_be_read() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    for n in 0..3 {
        rig.send(1, 0, &batch(n, 1, 500)).unwrap();
    }
    rig.workers.settle();
    rig.close();
    let mut rig = Rig::open(&disk);
    rig.workers.settle();
    let topic = rig.topic(1).unwrap();
    disk.fail(rule(Operation::Read, "commitlog", 1, Times::Always, Fault::Eio));
    for attempt in 0..8 {
        let refused = rig.try_read(&topic, 0, 0, 1);
        assert!(matches!(refused, Err(ReadError::File(_))), "{attempt}: {refused:?}");
    }
    match rig.try_read(&topic, 0, 0, 1).unwrap() {
        ReadOutcome::Damaged { at, next, .. } => assert_eq!((at.get(), next.get()), (0, 1)),
        other => panic!("{other:?}"),
    }
    disk.clear_faults();
    assert_eq!(rig.read_all(&topic, 0).len(), 3);
    disk.fail(rule(Operation::Read, "commitlog", 1, Times::Once, Fault::Eio));
    assert!(rig.try_read(&topic, 0, 0, 1).is_err(), "it is counted anew");
}

/// Each look at the header, which can be read, began the count of the body anew: queries and reads by id were refused
/// for ever.
#[test]
fn a_record_whose_body_the_disk_refuses_for_good_is_passed_by_every_kind_of_read() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    let placed = rig.send(1, 0, &batch(0, 1, 500)).unwrap();
    rig.send(1, 0, &batch(1, 1, 500)).unwrap();
    rig.workers.settle();
    rig.close();
    let id = MessageId { epoch: placed.epoch, offset: placed.offset, index: 0 };
    for kind in ["pull", "query", "by id", "pull among queries"] {
        let mut rig = Rig::open(&disk);
        rig.workers.settle();
        let topic = rig.topic(1).unwrap();
        // `Some`: an answer, and whether it tells of damage.
        let ask = |kind: &str| match kind {
            "query" => match rig.try_find(&topic, IndexKind::Id, "i0", Order::OldestFirst) {
                Ok(found) => Some(found.reason == Some(IncompleteReason::Damaged)),
                Err(ReadError::File(_)) => None,
                Err(error) => panic!("{error}"),
            },
            "by id" => match now(rig.store.by_id(id)).unwrap() {
                Ok(found) => Some(found.is_none()),
                Err(ReadError::Damaged { at }) => Some(at == placed.offset),
                Err(ReadError::File(_)) => None,
                Err(error) => panic!("{error}"),
            },
            _ => match rig.try_read(&topic, 0, 0, 1) {
                Ok(ReadOutcome::Damaged { at, next, .. }) => Some((at.get(), next.get()) == (0, 1)),
                Ok(ReadOutcome::Records { .. }) => Some(false),
                Err(ReadError::File(_)) => None,
                other => panic!("{other:?}"),
            },
        };
        // The index is in memory. The last reads of an answer: the header (not of a pull), the record.
        let reads = |kind: &str| {
            let before = disk.calls(Operation::Read);
            assert_eq!(ask(kind), Some(false), "{kind}: sound");
            disk.calls(Operation::Read) - before
        };
        let (asked, of_query) = (reads(kind), reads("query"));
        let refuse =
            |nth| disk.fail(rule(Operation::Read, "commitlog", nth, Times::Once, Fault::Eio));
        for attempt in 0..8 {
            refuse(asked);
            assert_eq!(ask(kind), None, "{kind}, attempt {attempt}");
            if kind == "pull among queries" && attempt < 4 {
                disk.clear_faults();
                refuse(of_query - 1);
                assert_eq!(ask("query"), None, "only its header, {attempt}");
            }
            disk.clear_faults();
        }
        refuse(asked);
        assert_eq!(ask(kind), Some(true), "{kind}: damaged");
        disk.clear_faults();
        assert_eq!(ask(kind), Some(false), "{kind}: sound again");
        refuse(asked);
        assert_eq!(ask(kind), None, "{kind}: counted anew");
        disk.clear_faults();
        rig.kill();
    }
}

/// It was answered as an id that was never given.
#[test]
fn a_message_whose_header_the_disk_refuses_for_good_is_damaged_and_not_unknown() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    let placed = rig.send(1, 0, &batch(0, 1, 500)).unwrap();
    rig.workers.settle();
    rig.close();
    let mut rig = Rig::open(&disk);
    rig.workers.settle();
    let id = MessageId { epoch: placed.epoch, offset: placed.offset, index: 0 };
    let by_id = || now(rig.store.by_id(id)).unwrap();
    disk.fail(rule(Operation::Read, "commitlog", 1, Times::Always, Fault::Eio));
    for attempt in 0..8 {
        let refused = by_id();
        assert!(matches!(refused, Err(ReadError::File(_))), "{attempt}: {refused:?}");
    }
    match by_id() {
        Err(ReadError::Damaged { at }) => assert_eq!(at, placed.offset),
        other => panic!("{other:?}"),
    }
    disk.clear_faults();
    assert!(by_id().unwrap().is_some());
}

/// The checkpoint vouches for what is durable: were it to name more, what a power cut took from an async topic would be
/// damage, with offsets that nothing can fill, and not a tail that was cut.
#[test]
fn a_checkpoint_vouches_for_nothing_that_is_not_flushed() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Async);
    for n in 0..3 {
        rig.send(1, 0, &batch(n, 1, 500)).unwrap();
    }
    rig.workers.settle();
    let unflushed = rig.send(1, 0, &batch(3, 1, 500)).unwrap();
    let marks = rig.store.watermarks();
    assert_eq!((marks.flushed, marks.appended), (unflushed.offset, unflushed.end));
    rig.workers.flush.record(false);
    // Of the unflushed record nothing lands, or its header and some of its body.
    let torn = Some(Torn { version: 0, keep: 300 });
    let torn = CrashChoice { torn, ..CrashChoice::NOTHING };
    for (what, choice) in [("nothing", NOTHING), ("a part", &torn)] {
        let mut rig = Rig::open(&disk.crash_image(choice));
        let report = rig.store.start_report().clone();
        assert_eq!(report.damaged, [], "{what}: {report}");
        let cut = report.cut.as_ref().map(|cut| cut.at);
        let expected = (what == "a part").then_some(unflushed.offset);
        assert_eq!(cut, expected, "{what}: {report}");
        rig.workers.settle();
        let topic = rig.topic(1).unwrap();
        let found: Vec<_> = rig.read_all(&topic, 0).into_iter().map(|r| r.batch).collect();
        assert_eq!(found, [0, 1, 2].map(|n| batch(n, 1, 500)), "{what}");
        let next = rig.send(1, 0, &batch(4, 1, 500)).unwrap();
        assert_eq!(next.queue_offset, unflushed.queue_offset, "{what}: no hole");
    }
}

/// A tail that the disk does not give may be sound: zeros in its place would lose what only a restart was to survive.
#[test]
fn a_tail_that_cannot_be_read_is_not_cut_off() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Async);
    rig.workers.settle();
    for n in 0..5 {
        rig.send(1, 0, &batch(n, 1, 1_000)).unwrap();
    }
    rig.kill();
    for nth in 1..4 {
        disk.fail(rule(Operation::Read, "commitlog", nth, Times::Always, Fault::Eio));
        match Rig::try_open(std::sync::Arc::new(disk.clone()), &tiny(), 1_000_000) {
            Err(OpenError::File(FileError::Io { operation: Operation::Read, .. })) => {}
            Err(error) => panic!("{nth}: {error:?}"),
            Ok(rig) => panic!("{nth}: {}", rig.store.start_report()),
        }
        disk.clear_faults();
    }
    // The device gives up twice, for the large read and for the first page of it, and is well again.
    for nth in 1..8 {
        let disk = disk.crash_image(EVERYTHING);
        disk.fail(rule(Operation::Read, "commitlog", nth, Times::Count(2), Fault::Eio));
        let opened = Rig::try_open(std::sync::Arc::new(disk.clone()), &tiny(), 1_000_000);
        drop(opened);
        disk.clear_faults();
        let mut rig = Rig::open(&disk);
        rig.workers.settle();
        assert_eq!(rig.read_all(&rig.topic(1).unwrap(), 0).len(), 5, "from read {nth} on");
    }
    let mut rig = Rig::open(&disk);
    rig.workers.settle();
    assert_eq!(rig.read_all(&rig.topic(1).unwrap(), 0).len(), 5);
}
