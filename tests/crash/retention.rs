//! What retention gives back, and what it must not, while something else is wrong.

use std::sync::Arc;
use std::time::Duration;

use mainstem::file::Operation;
use mainstem::format::record::RecordKind;
use mainstem::format::state_record::{Transition, transitions};
use mainstem::message::{
    FlushMode, PhysicalOffset, QueueId, Retention, Timestamp, TopicId, TopicSettings, TopicType,
};
use mainstem::store::{AppendError, FindingKind, Progress, ReadOutcome, StoreConfig};
use mainstem::testing::{CrashChoice, Fault, FaultRule, SimDisk, Times};

use crate::decay::{place, written};
use crate::oracle::walk;
use crate::rig::{Rig, batch, files, path, tiny};

/// Sends until the log has so many segments more, and settles.
fn fill(rig: &mut Rig, topic: u64, queue: u32, segments: u64) {
    let begun = |rig: &Rig| rig.store.watermarks().appended.get() / tiny().segment_size;
    let wanted = begun(rig) + segments;
    for n in 0.. {
        if begun(rig) >= wanted {
            return;
        }
        match rig.send(topic, queue, &batch(n, 1, 1_000)) {
            Ok(_) | Err(AppendError::NotReady) => rig.workers.settle(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn clean(rig: &mut Rig) {
    rig.store.clean_soon();
    rig.workers.settle();
}

fn delete(rig: &Rig, topic: u64) {
    rig.state(&Transition::TopicDeleted { id: TopicId::new(topic) }).unwrap();
}

fn rule(operation: Operation, part: &str, times: Times) -> FaultRule {
    let path_contains = Some(part.to_owned());
    FaultRule { operation, path_contains, nth: 1, times, error: Fault::Eio }
}

/// The next start does not meet the damage any more, and took the topic for one that was deleted.
#[test]
fn messages_of_a_topic_that_went_with_damage_stay_through_every_later_start() {
    let written = written();
    let disk = written.copy();
    let created = written.log.iter().find(|record| record.header.kind == RecordKind::State);
    let (file, at) = place(&disk, created.unwrap().header.physical_offset);
    disk.corrupt(&file, at + 40, 1).unwrap();
    for file in ["consumequeue", "index", "state"].iter().flat_map(|dir| files(&disk, dir)) {
        disk.remove(&file).unwrap();
    }
    let held = files(&disk, "commitlog");
    for start in 0..3 {
        let mut rig = Rig::open(&disk);
        let report = rig.store.start_report();
        assert_eq!(!report.damaged.is_empty(), start == 0, "{report}");
        assert!(rig.topic(1).is_none());
        if rig.topic(2).is_none() {
            rig.create(2, 1, FlushMode::Sync);
        }
        fill(&mut rig, 2, 0, 10);
        for _ in 0..5 {
            rig.clock.advance(Duration::from_secs(61));
            clean(&mut rig);
        }
        assert!(rig.store.status().newest_image.is_some(), "an image was taken");
        assert_eq!(rig.store.status().deleted_segments, 0, "start {start}");
        rig.close();
    }
    let left = files(&disk, "commitlog");
    let data = |file: &&std::path::PathBuf| {
        written.messages().any(|record| place(&disk, record.header.physical_offset).0 == **file)
    };
    assert!(held.iter().filter(data).all(|file| left.contains(file)));
}

/// The first attempt to record it failed; the next one took it for recorded.
#[test]
fn what_went_by_its_size_stays_gone_when_the_first_record_of_it_fails() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let settings = TopicSettings::open(2, FlushMode::Sync, TopicType::Mixed);
    let retention = Retention { time_ms: None, bytes: Some(27_500) };
    let (id, settings) = (TopicId::new(1), TopicSettings { retention, ..settings });
    rig.state(&Transition::TopicCreated { id, name: "t1".to_owned(), settings }).unwrap();
    rig.create(2, 1, FlushMode::Sync);
    rig.send(2, 0, &batch(0, 1, 10)).unwrap();
    for n in 0..10 {
        rig.send(1, 1, &batch(n, 1, 10)).unwrap();
    }
    fill(&mut rig, 1, 0, 6);
    clean(&mut rig);
    let sized = rig.topic(1).unwrap();
    assert_eq!(rig.min(&sized, 1).unwrap(), 10, "gone by size");
    let end = rig.store.queue_max(&sized, QueueId::ZERO);
    let (below, before, queues) =
        (PhysicalOffset::ZERO, Timestamp::ZERO, vec![(QueueId::ZERO, end)]);
    rig.state(&Transition::TopicExpired {
        id,
        below,
        before,
        queues,
        purged: PhysicalOffset::ZERO,
    })
    .unwrap();
    let deleted = rig.store.status().deleted_segments;
    disk.fail(rule(Operation::Write, "commitlog", Times::Once));
    let appended = rig.store.watermarks().appended;
    rig.store.clean_soon();
    rig.workers.clean.step();
    assert_eq!(rig.store.watermarks().appended, appended, "the record failed");
    disk.clear_faults();
    for _ in 0..10 {
        rig.workers.clean.step();
        rig.workers.flush.flush_all();
    }
    assert!(rig.store.status().deleted_segments > deleted, "{:?}", rig.store.status());
    assert_eq!(rig.min(&sized, 1).unwrap(), 10);
    let rig = Rig::open(&disk.crash_image(&CrashChoice::EVERYTHING));
    let sized = rig.topic(1).unwrap();
    assert_eq!(rig.min(&sized, 1).unwrap(), 10, "after a kill");
}

/// An error in a look: the next one came a minute later, and as long as one file was bad nothing went.
#[test]
fn an_error_in_one_file_keeps_no_other_segment_and_not_for_a_minute() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    fill(&mut rig, 1, 0, 3);
    clean(&mut rig);
    let active = rig.store.watermarks().appended.get() / tiny().segment_size * tiny().segment_size;
    let bad = path(&format!("consumequeue/{active:020}.cq"));
    disk.fail(rule(Operation::Open, &bad.to_string_lossy(), Times::Always));
    fill(&mut rig, 1, 0, 2);
    assert!(files(&disk, "consumequeue").contains(&bad));
    delete(&rig, 1);
    rig.store.clean_soon();
    for _ in 0..5 {
        rig.clock.advance(Duration::from_secs(2));
        rig.workers.settle();
    }
    assert_eq!(rig.store.status().deleted_segments, 4, "all but that of the bad file");
    disk.clear_faults();
    rig.clock.advance(Duration::from_secs(2));
    rig.workers.settle();
    assert_eq!(rig.store.status().deleted_segments, 5);
}

/// A store with an image, whose parts lie in a sealed segment, and the place of the first of them.
fn with_image() -> (SimDisk, PhysicalOffset) {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    rig.create(2, 1, FlushMode::Sync);
    fill(&mut rig, 1, 0, 3);
    delete(&rig, 1);
    clean(&mut rig);
    assert!(rig.store.status().deleted_segments > 0);
    let begin = rig.store.status().newest_image.unwrap();
    fill(&mut rig, 2, 0, 3);
    assert_eq!(rig.store.status().newest_image, Some(begin));
    rig.close();
    let log = walk(&disk, &"with an image");
    let part = log.iter().find(|record| {
        let is_part = |transition| matches!(transition, Ok(Transition::ImagePart { .. }));
        record.header.kind == RecordKind::State && transitions(&record.payload).any(is_part)
    });
    (disk, part.unwrap().header.physical_offset)
}

#[test]
fn an_image_that_is_known_to_be_damaged_is_not_relied_upon() {
    let (disk, part) = with_image();
    let (file, at) = place(&disk, part);
    // Nobody has read it yet.
    let config = StoreConfig { scrub_rate: u64::MAX, ..tiny() };
    let mut rig = Rig::try_open(Arc::new(disk.clone()), &config, 1_000_000).unwrap();
    rig.workers.settle();
    let begin = rig.store.status().newest_image.expect("it is sound so far");
    disk.corrupt(&file, at + 200, 1).unwrap();
    for _ in 0..10_000 {
        if rig.workers.scrub.step() != Progress::Worked {
            break;
        }
    }
    assert_eq!(rig.store.status().damaged.len(), 1);
    assert_eq!(rig.store.status().newest_image, None);
    // With the next one what is gone goes.
    delete(&rig, 2);
    clean(&mut rig);
    assert!(rig.store.status().newest_image.is_some_and(|newest| newest > begin));
    assert!(rig.store.status().deleted_segments > 0);
    rig.kill();

    // A start finds that out too, where no snapshot stands in for it.
    let (disk, _) = with_image();
    disk.corrupt(&file, at + 200, 1).unwrap();
    for file in files(&disk, "state") {
        disk.remove(&file).unwrap();
    }
    let rig = Rig::open(&disk);
    assert_eq!(rig.store.status().newest_image, None);
}

/// Once anything was ever deleted, what is damaged at the begin of a queue was told to have expired.
#[test]
fn damage_at_the_begin_of_a_queue_is_damage_also_when_segments_before_it_were_deleted() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    rig.create(2, 1, FlushMode::Sync);
    fill(&mut rig, 1, 0, 3);
    delete(&rig, 1);
    clean(&mut rig);
    assert!(rig.store.status().deleted_segments >= 2);
    let first = rig.send(2, 0, &batch(0, 1, 1_000)).unwrap();
    for n in 1..4 {
        rig.send(2, 0, &batch(n, 1, 1_000)).unwrap();
    }
    rig.workers.settle();
    rig.close();
    let (file, at) = place(&disk, first.offset);
    disk.corrupt(&file, at + 40, 1).unwrap();
    let rig = Rig::open(&disk);
    assert_eq!(rig.store.start_report().damaged, [first.offset..first.end]);
    let topic = rig.topic(2).unwrap();
    match rig.read(&topic, 0, 0, 10) {
        ReadOutcome::Damaged { at, next, range } => {
            let told = (at.get(), next.get(), range.min.get(), range.max.get());
            assert_eq!(told, (0, 1, 0, 4));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.min(&topic, 0).unwrap(), 0);
}

/// A verification met a segment between its queue file and itself, and told that a file is missing that nobody can make
/// again.
#[test]
fn a_segment_that_is_deleted_beside_a_verification_lacks_nothing() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    rig.create(2, 1, FlushMode::Sync);
    fill(&mut rig, 1, 0, 4);
    clean(&mut rig);
    let mut verifier = rig.store.verifier();
    verifier.step();
    // A deletion that comes no further than the queue file.
    disk.fail(rule(Operation::Unlink, "/index/", Times::Always));
    let queues = files(&disk, "consumequeue");
    delete(&rig, 1);
    clean(&mut rig);
    assert!(
        files(&disk, "consumequeue").len() < queues.len() && files(&disk, "commitlog").len() > 4
    );
    let mut findings = Vec::new();
    for _ in 0..10_000 {
        let verified = verifier.step();
        findings.extend(verified.findings);
        if verified.is_over {
            break;
        }
    }
    findings.retain(|finding| finding.kind != FindingKind::Remark);
    assert_eq!(findings, []);
    disk.clear_faults();
}
