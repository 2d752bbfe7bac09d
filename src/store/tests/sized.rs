//! What goes because the rest of its topic is as large as the topic may be.

use super::*;

/// A topic that keeps a few bytes, in segments that another topic keeps too.
fn rig_with_a_sized_topic() -> (Rig, Arc<TopicHandle>) {
    let rig = Rig::open(SimDisk::new());
    let retention = Retention { time_ms: None, bytes: Some(110_000) };
    let settings = TopicSettings::open(2, FlushMode::Async, TopicType::Mixed);
    let sized = rig.topic_with(1, TopicSettings { retention, ..settings });
    rig.topic(2, 1, FlushMode::Async);
    (rig, sized)
}

/// Where a queue begins by the retention in bytes was worked out in the background after a start: until then it began
/// where its oldest entry was.
#[test]
fn what_went_by_its_size_is_gone_from_the_first_moment_after_a_start() {
    for is_clean in [true, false] {
        let (mut rig, sized) = rig_with_a_sized_topic();
        let keeper = rig.store.topics().get(TopicId::new(2)).unwrap();
        for _ in 0..4 {
            rig.send(&keeper, 0, "k", b"stays");
            rig.fill(&sized, 0, 1);
        }
        let (min, max) = rig.range(1, 0);
        assert!(min > 50 && min + 50 < max, "{min}..{max}");
        assert_eq!(rig.store.status().deleted_segments, 0);
        let rig = match is_clean {
            true => rig.close_and_reopen(),
            false => rig.cut_power(&CrashChoice::EVERYTHING),
        };
        assert_eq!(rig.range(1, 0), (min, max), "after a clean stop: {is_clean}");
        assert_eq!(rig.range(2, 0), (0, 4));
    }
}

/// Without the file of one segment its bytes do not count, so that older ones seem to be within what is kept. What
/// went between these and the newer ones was told to be damaged.
#[test]
fn what_went_by_its_size_is_not_damage_while_a_file_of_what_is_kept_is_missing() {
    let (mut rig, sized) = rig_with_a_sized_topic();
    let keeper = rig.store.topics().get(TopicId::new(2)).unwrap();
    rig.send(&keeper, 0, "k", b"stays");
    rig.fill(&sized, 0, 6);
    assert!(rig.store.status().deleted_segments >= 2, "{:?}", rig.store.status());
    let (min, max) = rig.range(1, 0);
    let is_queue = |path: &PathBuf| path.starts_with("/data/consumequeue");
    let files: Vec<_> = rig.disk.paths().into_iter().filter(is_queue).collect();
    assert!(files.len() >= 3, "{files:?}");
    let (mut readable, mut gone) = (0, 0);
    for file in files {
        let disk = rig.disk.crash_image(&CrashChoice::EVERYTHING);
        disk.remove(&file).unwrap();
        let mut rig = Rig::open(disk);
        let sized = rig.store.topics().get(TopicId::new(1)).unwrap();
        for from in 0..max {
            match rig.read(&sized, 0, from) {
                ReadOutcome::Rebuilding => {}
                ReadOutcome::OutOfRange { range } => {
                    assert!(from < range.min.get() && range.min.get() <= min, "{range:?}");
                    gone += 1;
                }
                ReadOutcome::Records { records, .. } => {
                    assert_eq!(records[0].first_queue_offset.get(), from);
                    readable += 1;
                }
                other => panic!("{from} of {min}..{max} without {file:?}: {other:?}"),
            }
        }
        rig.settle();
        assert_eq!(rig.range(1, 0), (min, max));
    }
    assert!(readable > 0 && gone > 0, "{readable}, {gone}");
}

/// What had pushed others out was purged, and its segments deleted: counted anew, the others were within what is kept.
#[test]
fn what_went_by_its_size_does_not_come_back_when_what_lay_behind_it_is_deleted() {
    for is_clean in [true, false] {
        let (mut rig, sized) = rig_with_a_sized_topic();
        let keeper = rig.store.topics().get(TopicId::new(2)).unwrap();
        rig.send(&keeper, 0, "k", b"stays");
        for _ in 0..10 {
            rig.send(&sized, 1, "k", b"goes");
        }
        rig.fill(&sized, 0, 4);
        let (min, max) = rig.range(1, 1);
        assert_eq!((min, max), (10, 10), "gone by size");
        let queues = vec![(QueueId::new(0), QueueOffset::new(rig.range(1, 0).1))];
        let (below, before) = (PhysicalOffset::ZERO, Timestamp::ZERO);
        rig.transition(&Transition::TopicExpired {
            id: sized.id(),
            below,
            before,
            queues,
            purged: PhysicalOffset::ZERO,
        });
        rig.clean();
        assert!(rig.store.status().deleted_segments >= 2, "{:?}", rig.store.status());
        assert_eq!(rig.range(1, 1), (10, 10));
        let mut rig = match is_clean {
            true => rig.close_and_reopen(),
            false => rig.cut_power(&CrashChoice::EVERYTHING),
        };
        assert_eq!(rig.range(1, 1), (10, 10), "after a clean stop: {is_clean}");
        rig.settle();
        assert_eq!(rig.range(1, 1), (10, 10), "after a clean stop: {is_clean}");
        assert_eq!(rig.range(2, 0), (0, 1));
    }
}
