//! What is derived is thrown away and made again, wherever it is killed; and the log is shown record by record.

use std::path::Path;
use std::sync::Arc;

use mainstem::file::disk::Disk;
use mainstem::format::record::{HEADER_LEN, RecordKind};
use mainstem::message::{PhysicalOffset, Timestamp};
use mainstem::store::offline::StoppedStore;
use mainstem::store::{
    Content, Derived, Dump, Dumped, RebuildError, RebuildStep, Rebuilt, rebuild,
};
use mainstem::testing::{CrashChoice, ManualClock, SimDisk, TopicsOnly};

use crate::decay::{loses_nothing, place, written};
use crate::oracle::{Logged, walk};
use crate::rig::{DATA, Rig, base, batch, files, tiny};

fn run(
    disk: &SimDisk,
    what: &[Derived],
    tell: impl FnMut(RebuildStep),
) -> Result<Rebuilt, RebuildError> {
    let on: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock = Arc::new(ManualClock::new(Timestamp::new(1_000_000)));
    rebuild(&on, clock, Path::new(DATA), Arc::new(TopicsOnly::default()), what, tell)
}

#[test]
fn what_is_derived_is_the_same_after_it_was_thrown_away() {
    let written = written();
    let disk = written.copy();
    let derived = |disk: &SimDisk| {
        let files = ["consumequeue", "index"].into_iter().flat_map(|part| files(disk, part));
        files.map(|file| (file.clone(), disk.durable_bytes(&file).unwrap())).collect::<Vec<_>>()
    };
    let before = derived(&disk);
    let mut steps = Vec::new();
    let rebuilt = run(&disk, &Derived::ALL, |step| steps.push(step)).unwrap();
    let sealed = before.len() as u64 / 2;
    assert!(rebuilt.removed > 2 * sealed, "{rebuilt:?}");
    assert!(rebuilt.segments > 0 && rebuilt.segments <= sealed, "{rebuilt:?}");
    assert_eq!(rebuilt.replayed_records, written.log.len() as u64, "the whole log");
    assert!(matches!(steps[0], RebuildStep::Checking { .. }), "{steps:?}");
    let last = RebuildStep::Making { done: rebuilt.segments, total: rebuilt.segments };
    assert_eq!(steps.last(), Some(&last));
    let after = derived(&disk);
    let both = after.iter().filter(|(file, _)| before.iter().any(|(known, _)| known == file));
    assert!(both.eq(before.iter().take(after.len())), "byte for byte");
    assert!(crate::verify::verify(&disk).1.is_sound());
    loses_nothing(&disk, &walk(&disk, &"rebuilt"), "rebuilt");
}

#[test]
fn a_part_alone_can_be_made_again() {
    let written = written();
    for (what, gone) in [(Derived::Queues, "consumequeue"), (Derived::Index, "index")] {
        let disk = written.copy();
        let count = files(&disk, gone).len() as u64;
        let rebuilt = run(&disk, &[what], |_| ()).unwrap();
        assert_eq!((rebuilt.removed, rebuilt.segments), (count, count));
        assert!(crate::verify::verify(&disk).1.is_sound());
    }
    let disk = written.copy();
    let rebuilt = run(&disk, &[Derived::Snapshots], |_| ()).unwrap();
    assert_eq!((rebuilt.removed, rebuilt.segments), (2, 0));
    assert_eq!(files(&disk, "state").len(), 1);
    loses_nothing(&disk, &walk(&disk, &"snapshots"), "snapshots");
}

#[test]
fn a_rebuild_that_is_killed_anywhere_costs_nothing() {
    let written = written();
    let whole = written.copy();
    let begun = whole.operations();
    run(&whole, &Derived::ALL, |_| ()).unwrap();
    let operations = whole.operations() - begun;
    assert!(operations > 30, "{operations}");
    for operation in 0..operations {
        let disk = written.copy();
        disk.crash_inside(disk.operations() + operation, 700);
        let outcome = run(&disk, &Derived::ALL, |_| ());
        // Without the snapshot and the checkpoint of the close, its last ten operations, it is done all the same.
        let is_last = operation + 12 > operations;
        assert!(disk.is_off() && (outcome.is_err() || is_last), "cut at {operation}");
        for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING] {
            let image = disk.crash_image(&choice);
            let what = format!("cut at {operation}, {choice:?}");
            run(&image, &Derived::ALL, |_| ()).unwrap_or_else(|error| panic!("{what}: {error}"));
            loses_nothing(&image, &walk(&image, &what), &what);
        }
    }
}

/// A snapshot may be all that still knows of a topic whose record is damaged.
#[test]
fn snapshots_of_a_damaged_log_are_kept() {
    let written = written();
    let state = written.log.iter().find(|record| record.header.kind == RecordKind::State).unwrap();
    let disk = written.copy();
    let (file, at) = place(&disk, state.header.physical_offset);
    disk.corrupt(&file, at + HEADER_LEN as u64 + 3, 1).unwrap();
    let before = files(&disk, "state");
    match run(&disk, &Derived::ALL, |_| ()) {
        Err(RebuildError::Damaged { places }) => assert_eq!(places, 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(files(&disk, "state"), before);
    assert_eq!(files(&disk, "index"), files(&written.disk, "index"), "nothing is removed");
    let rebuilt = run(&disk, &[Derived::Queues, Derived::Index], |_| ()).unwrap();
    assert!(rebuilt.segments > 0);
}

#[test]
fn snapshots_of_a_log_whose_begin_is_gone_are_kept() {
    let written = written();
    let disk = written.copy();
    disk.remove(&files(&disk, "commitlog")[0]).unwrap();
    let before = files(&disk, "state");
    match run(&disk, &Derived::ALL, |_| ()) {
        Err(RebuildError::Damaged { places }) => assert_eq!(places, 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(files(&disk, "state"), before);
}

/// The reserve is for a broker that goes on: a rebuild may be what makes room for one.
#[test]
fn a_rebuild_works_on_a_disk_with_less_than_the_reserve() {
    let written = written();
    let disk = written.copy();
    let mut rig = Rig::open(&disk);
    rig.workers.settle();
    // But for a header, so that the next record needs a segment.
    let left = |rig: &Rig| {
        let appended = rig.store.watermarks().appended.get();
        appended.next_multiple_of(tiny().segment_size) - appended
    };
    let used = |rig: &Rig, len: usize| {
        let placed = rig.send(1, 0, &batch(1_000, 1, len)).unwrap();
        placed.end.since(placed.offset)
    };
    let overhead = used(&rig, 1_000) - 1_000;
    while left(&rig) > 3_000 {
        used(&rig, 1_000);
        rig.workers.settle();
    }
    used(&rig, (left(&rig) - overhead - HEADER_LEN as u64) as usize);
    assert_eq!(left(&rig), HEADER_LEN as u64);
    rig.workers.settle();
    rig.close();
    // No segment is ready behind it.
    let last = files(&disk, "commitlog").pop().unwrap();
    disk.remove(&last).unwrap();
    disk.set_capacity(Some(8 << 20));
    let rebuilt = run(&disk, &Derived::ALL, |_| ()).unwrap();
    assert!(rebuilt.segments > 0);
}

fn dump(disk: &SimDisk, from: u64, to: u64) -> Vec<Dumped> {
    let store = StoppedStore::open(Arc::new(disk.clone()), Path::new(DATA)).unwrap();
    let range = PhysicalOffset::new(from)..PhysicalOffset::new(to);
    Dump::of(store, range).map(Result::unwrap).collect()
}

fn offsets(dumped: &[Dumped]) -> Vec<PhysicalOffset> {
    let offset = |dumped: &Dumped| match dumped {
        Dumped::Record { header, content } => {
            assert!(content.is_ok(), "{content:?}");
            header.physical_offset
        }
        Dumped::Gap { .. } => panic!("{dumped:?}"),
    };
    dumped.iter().map(offset).collect()
}

fn places<'a>(log: impl Iterator<Item = &'a Logged>) -> Vec<PhysicalOffset> {
    log.map(|record| record.header.physical_offset).collect()
}

#[test]
fn every_record_is_shown_with_what_it_holds() {
    let written = written();
    let before = written.disk.operations();
    let all = dump(&written.disk, 0, u64::MAX);
    assert_eq!(written.disk.operations(), before, "nothing is changed");
    assert_eq!(offsets(&all), places(written.log.iter()));
    for (dumped, logged) in all.iter().zip(&written.log) {
        let Dumped::Record { header, content: Ok(content) } = dumped else { panic!("{dumped:?}") };
        assert_eq!(*header, logged.header);
        match (header.kind, content) {
            (RecordKind::Message, Content::Messages { messages, .. }) => {
                let [message] = messages.as_slice() else { panic!("{messages:?}") };
                assert!(message.id.as_ref().unwrap().starts_with('i'));
                assert!(message.keys[0].starts_with('k'));
                assert!(message.body_len >= 1_000);
            }
            (RecordKind::State, Content::State(changes)) => {
                assert!(changes[0].contains("TopicCreated") && changes[0].contains("t1"));
            }
            (RecordKind::Epoch, Content::Epoch(words)) => {
                assert_eq!(words, "epoch 1 begins, format 1");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_part_of_the_log_begins_with_the_next_sound_header() {
    let written = written();
    let record = &written.messages().nth(20).unwrap().header;
    let (begin, end) = (record.physical_offset.get(), record.end().get());
    assert_eq!(offsets(&dump(&written.disk, begin, begin + 1)), [record.physical_offset]);
    assert_eq!(offsets(&dump(&written.disk, begin + 1, end)), []);
    let behind = written.log.iter().filter(|logged| logged.header.physical_offset.get() > begin);
    let expected = places(behind);
    assert_eq!(offsets(&dump(&written.disk, begin + 1, u64::MAX)), expected);
    assert_eq!(offsets(&dump(&written.disk, end - 3, u64::MAX)), expected);
    let last = base(files(&written.disk, "commitlog").last().unwrap());
    assert!(dump(&written.disk, last + (1 << 20), u64::MAX).is_empty());
}

#[test]
fn damage_is_shown_where_it_is() {
    let written = written();
    let nth = |n| &written.messages().nth(n).unwrap().header;
    let (before, record) = (nth(19), nth(20));
    let disk = written.copy();
    let (file, at) = place(&disk, record.physical_offset);
    disk.corrupt(&file, at + 40, 1).unwrap();
    let shown = dump(&disk, before.physical_offset.get(), record.end().get());
    let [Dumped::Record { .. }, Dumped::Gap { range, reason }] = shown.as_slice() else {
        panic!("{shown:?}")
    };
    assert_eq!(*range, record.physical_offset..record.end());
    assert!(reason.contains("header checksum"), "{reason}");
    let disk = written.copy();
    disk.corrupt(&file, at + HEADER_LEN as u64 + 40, 1).unwrap();
    let shown = dump(&disk, record.physical_offset.get(), record.end().get());
    let [Dumped::Record { header, content: Err(reason) }] = shown.as_slice() else {
        panic!("{shown:?}")
    };
    assert_eq!(header, record);
    assert!(reason.to_string().contains("payload checksum"), "{reason}");
}
