//! Snapshots beside what goes on: they contain nothing that a power cut may still take, one that cannot be written keeps
//! nothing else from its turn, and those of another log make room.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mainstem::file::Operation;
use mainstem::format::DecodeError;
use mainstem::format::state_record::{SessionBatch, Transition};
use mainstem::message::{FlushMode, PhysicalOffset, SessionMark, Timestamp, TopicId};
use mainstem::store::{Applier, NewRecord, Progress, StateSnapshot, Store, Topics};
use mainstem::testing::{CrashChoice, Fault, FaultRule, ManualClock, SimDisk, Times, TopicsOnly};

use crate::decay::{loses_nothing, send, written};
use crate::rig::{Rig, base, batch, files, path, tiny};

/// What happens beside a snapshot.
type Then = Box<dyn FnOnce(&TopicsOnly) + Send>;

/// Topics whose state is copied, and then something else happens before the queues are.
#[derive(Default)]
struct Hooked {
    topics: TopicsOnly,
    then: Mutex<Option<Then>>,
}

impl Applier for Hooked {
    fn restore(&self, topics: &Topics, state: &[u8]) -> Result<(), DecodeError> {
        self.topics.restore(topics, state)
    }

    fn apply(&self, topics: &Topics, run: &[u8], end: PhysicalOffset) -> Result<(), DecodeError> {
        self.topics.apply(topics, run, end)
    }

    fn stored(&self, mark: SessionMark, batch: &SessionBatch) {
        self.topics.stored(mark, batch);
    }

    fn snapshot(&self, topics: &Topics) -> StateSnapshot {
        let snapshot = self.topics.snapshot(topics);
        let then = self.then.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(then) = then {
            then(&self.topics);
        }
        snapshot
    }
}

/// The state was copied with the topic in it, the queues without: after the power cut took the deletion back, the
/// offsets of its queue were given again.
#[test]
fn a_deletion_beside_a_snapshot_that_a_power_cut_takes_back_costs_no_queue_its_end() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    rig.create(2, 1, FlushMode::Sync);
    rig.close();

    let applier = Arc::new(Hooked::default());
    let clock = Arc::new(ManualClock::new(Timestamp::new(1_000_000)));
    let on = Arc::new(disk.clone());
    let (store, mut workers) = Store::open_stepped(on, clock, tiny(), applier.clone()).unwrap();
    workers.settle();
    let send = |topic: u64, n: u64| {
        let topic = store.topics().get(TopicId::new(topic)).unwrap();
        let batch = batch(n, 1, 1_000);
        let info = mainstem::format::batch::check(&batch).unwrap();
        let queue = mainstem::message::QueueId::ZERO;
        store.append_one(NewRecord::message(&topic, queue, batch, &info)).unwrap()
    };
    for n in 0..3 {
        send(1, n);
    }
    for n in 3.. {
        if send(2, n).offset.get() > tiny().segment_size {
            break;
        }
    }
    while workers.dispatch.step() == Progress::Worked {}
    workers.flush.flush_all();
    let deleting = store.clone();
    *applier.then.lock().unwrap() = Some(Box::new(move |topics| {
        let mut payload = Vec::new();
        Transition::TopicDeleted { id: TopicId::new(1) }.encode_into(&mut payload);
        let placed = deleting.append_one(NewRecord::state(payload.clone())).unwrap();
        topics.applied(deleting.topics(), &payload, placed.end).unwrap();
    }));
    for _ in 0..3 {
        workers.seal.step();
    }
    assert!(applier.then.lock().unwrap().is_none(), "a snapshot was taken");

    let mut rig = Rig::open(&disk.crash_image(&CrashChoice::NOTHING));
    rig.workers.settle();
    let topic = rig.topic(1).expect("the deletion was not durable");
    assert_eq!(rig.read_all(&topic, 0).len(), 3);
    assert_eq!(rig.send(1, 0, &batch(9, 1, 10)).unwrap().queue_offset.get(), 3);
}

fn always(operation: Operation, part: &str) -> FaultRule {
    let path_contains = Some(part.to_owned());
    FaultRule { operation, path_contains, nth: 1, times: Times::Always, error: Fault::Eio }
}

/// A store of which a queue file is missing and a snapshot is due.
fn with_missing_file_and_due_snapshot() -> (SimDisk, Rig) {
    let written = written();
    let disk = written.copy();
    disk.remove(&files(&disk, "consumequeue")[1]).unwrap();
    let mut rig = Rig::open(&disk);
    assert_eq!(rig.store.start_report().rebuilding, 1);
    let sealed = files(&disk, "index").len();
    for n in 1_000.. {
        while rig.workers.dispatch.step() == Progress::Worked {}
        rig.workers.flush.flush_all();
        rig.workers.allocate.step();
        if rig.send(1, 0, &batch(n, 1, 1_000)).is_err() {
            break;
        }
    }
    rig.workers.seal.step();
    assert_eq!((rig.store.status().rebuilt, files(&disk, "index").len()), (0, sealed + 1));
    (disk, rig)
}

#[test]
fn a_snapshot_that_cannot_be_written_keeps_no_file_from_being_made_again() {
    let (disk, mut rig) = with_missing_file_and_due_snapshot();
    disk.fail(always(Operation::Create, "/state/"));
    for _ in 0..20 {
        rig.workers.flush.flush_all();
        rig.workers.seal.step();
    }
    assert_eq!(rig.store.status().rebuilt, 1);
    disk.clear_faults();
    let before = files(&disk, "state");
    rig.workers.settle();
    assert_ne!(files(&disk, "state"), before, "it is written when it can be");
}

#[test]
fn a_snapshot_is_written_once_also_while_old_ones_cannot_be_removed() {
    let (disk, mut rig) = with_missing_file_and_due_snapshot();
    disk.fail(always(Operation::Unlink, "/state/"));
    let writes = |disk: &SimDisk| {
        let journal = disk.journal();
        let is_rename = |(operation, path): &&(Operation, std::path::PathBuf)| {
            *operation == Operation::Rename && path.starts_with(Path::new("/data/state"))
        };
        journal.iter().filter(is_rename).count()
    };
    let before = writes(&disk);
    for _ in 0..200 {
        rig.workers.flush.flush_all();
        rig.workers.seal.step();
    }
    assert!(rig.store.status().rebuilt > 0);
    let sealed = files(&disk, "index").len() as u64;
    assert!(sealed > 0 && writes(&disk) - before <= 3, "{}", writes(&disk) - before);
}

/// They stood for the newest for ever: what a start wrote was removed at once, and once the log had grown beyond them
/// they were taken for its own.
#[test]
fn snapshots_that_reach_beyond_the_log_make_room_for_its_own() {
    let written = written();
    let disk = written.copy();
    let void = files(&disk, "state");
    let segments = files(&disk, "commitlog");
    let reach = void.iter().map(|file| base(file)).min().unwrap();
    for file in segments.iter().filter(|file| base(file) + tiny().segment_size >= reach) {
        disk.remove(file).unwrap();
    }
    disk.remove(&path("checkpoint")).unwrap();
    let mut rig = Rig::open(&disk);
    let remarks = rig.store.start_report().remarks.join("\n");
    assert_eq!(remarks.matches("reaches beyond the log").count(), void.len(), "{remarks}");
    assert!(files(&disk, "state").iter().all(|file| !void.contains(file)));
    for file in &void {
        let aside = path("quarantine").join(file.file_name().unwrap());
        let bytes = written.disk.durable_bytes(file).unwrap();
        assert_eq!(disk.durable_bytes(&aside).unwrap(), bytes, "kept aside");
    }
    rig.workers.settle();
    send(&mut rig, 0, 1_000, 100);
    rig.close();
    assert!(!files(&disk, "state").is_empty());
    let rig = Rig::open(&disk);
    let report = rig.store.start_report();
    assert!(!report.remarks.iter().any(|remark| remark.contains("snapshot")), "{report:?}");
    rig.close();
    let log = crate::oracle::walk(&disk, &"after");
    loses_nothing(&disk, &log, "after");
}
