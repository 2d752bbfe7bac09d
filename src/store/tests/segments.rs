//! How segments are made, deleted and made again.

use super::*;

/// Zeros double what the disk writes. A sync is faster for them, but few syncs make no difference.
#[test]
fn a_segment_is_filled_with_zeros_only_where_syncs_are_small() {
    const LEN: u64 = 1 << 20;
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { segment_size: LEN, ..config() });
    let topic = rig.topic(1, 1, FlushMode::Sync);
    let writes = |rig: &Rig| {
        let of_new_segments = |(operation, path): &(Operation, PathBuf)| {
            *operation == Operation::Write
                && path.extension().is_some_and(|end| end == "tmp")
                && path.parent().is_some_and(|dir| dir.ends_with("commitlog"))
        };
        rig.disk.journal().iter().filter(|call| of_new_segments(call)).count()
    };
    rig.settle();
    // Sixteen calls for the zeros, one for the header: of the first segment, and of the one made ahead.
    assert_eq!(writes(&rig), 2 * 17);
    // How the segment is made that is next once a segment was filled.
    let mut next = |sends_a_sync: usize| {
        let segments = |rig: &Rig| rig.store.watermarks().appended.get() / LEN;
        let (before, begun) = (writes(&rig), segments(&rig));
        while segments(&rig) == begun {
            for _ in 0..sends_a_sync {
                rig.send(&topic, 0, "k", &[7; 10_000]);
            }
            rig.sync();
        }
        writes(&rig) - before
    };
    assert_eq!([next(1), next(6)], [17, 17], "a header and zeros behind groups of up to 61 KB");
    assert_eq!([next(7), next(7)], [1, 1], "a header alone behind groups of 71 KB");
    assert_eq!([next(1), next(1)], [17, 17], "zeros again");
}

/// The list of all segments was held: one that was deleted meanwhile was in use, and became no other.
#[test]
fn a_sync_holds_no_segment_but_those_that_it_makes_durable() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    rig.settle();
    rig.fill(&topic, 0, 2);
    rig.sync();
    let flushed = rig.store.watermarks().appended;
    while rig.store.watermarks().appended.get() / config().segment_size == 2 {
        rig.send(&topic, 0, "k", &[7; 1_000]);
    }
    let held = flush::unsynced(&rig.store.shared.log, flushed, rig.store.watermarks().appended);
    let bases: Vec<_> = held.iter().map(|segment| segment.base().get() >> 16).collect();
    assert_eq!(bases, [2, 3]);
    let all = rig.store.shared.log.segments();
    let unused: Vec<_> = all.iter().map(Segment::is_unused).collect();
    assert_eq!(unused, [true, true, false, false]);
}

/// Who let go of a deleted segment last waited for the file system to free it: mostly the flush worker, and with it all
/// who waited for a sync.
#[test]
fn who_still_reads_a_deleted_segment_does_not_have_to_free_it() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    rig.settle();
    rig.fill(&topic, 0, 3);
    let first = rig.store.shared.log.segment_at(PhysicalOffset::ZERO).unwrap();
    let slice = first.bytes(PhysicalOffset::new(8_192), 4).unwrap();
    let known = Arc::downgrade(&first);
    let (id, below) = (topic.id(), rig.store.watermarks().appended);
    let (before, queues, purged) = (Timestamp::ZERO, Vec::new(), PhysicalOffset::ZERO);
    rig.transition(&Transition::TopicExpired { id, below, before, queues, purged });
    rig.clean();
    let status = rig.store.status();
    assert_eq!((status.deleted_segments, status.spare_segments), (3, 2), "{status:?}");
    let name = FileKind::Segment.name(PhysicalOffset::ZERO);
    assert!(!rig.disk.paths().iter().any(|path| path.ends_with(&name)), "its file is unlinked");
    drop(first);
    rig.workers.as_mut().unwrap().clean.step();
    assert!(known.upgrade().is_some(), "there is a slice of it");
    drop(slice);
    assert!(known.upgrade().is_some(), "it was not freed with its last slice");
    rig.workers.as_mut().unwrap().clean.step();
    assert!(known.upgrade().is_none(), "the clean worker lets it go");
}

/// The look came before the seal, and the next one a minute later: so long sends were refused for want of space.
#[test]
fn while_space_is_short_what_is_dead_goes_as_soon_as_its_segment_is_sealed() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 1, FlushMode::Async);
    rig.settle();
    while rig.store.watermarks().appended.get() <= config().segment_size {
        rig.send(&topic, 0, "k", &[7; 1_000]);
    }
    rig.disk.set_capacity(Some(1 << 20));
    rig.clock.advance(Duration::from_secs(2));
    // It says at once that there is no room for another segment.
    rig.workers.as_mut().unwrap().allocate.step();
    let (id, below) = (topic.id(), rig.store.watermarks().appended);
    let (before, queues) = (Timestamp::ZERO, Vec::new());
    rig.transition(&Transition::TopicExpired {
        id,
        below,
        before,
        queues,
        purged: PhysicalOffset::ZERO,
    });
    rig.store.clean_soon();
    while rig.workers.as_mut().unwrap().clean.step() == Progress::Worked {}
    let status = rig.store.status();
    assert!(status.disk_is_short && status.unsealed == 2, "{status:?}");
    rig.settle();
    assert_eq!(rig.store.status().deleted_segments, 1, "{:?}", rig.store.status());
}

#[test]
fn no_image_is_written_that_no_start_would_read() {
    assert!(image::check_len(MAX_SNAPSHOT).is_ok());
    let refused = image::check_len(MAX_SNAPSHOT + 1);
    assert!(matches!(refused, Err(AppendError::TooLarge { max: MAX_SNAPSHOT, .. })));
}

/// While an image waited for room nothing was looked at, so what would have made the room stayed for good.
#[test]
fn while_an_image_waits_for_room_what_lies_before_the_last_one_goes() {
    let mut rig = Rig::open(SimDisk::new());
    let [first, second, third] = [1, 2, 3].map(|id| rig.topic(id, 1, FlushMode::Async));
    for id in 100..300 {
        rig.topic(id, 1, FlushMode::Async);
    }
    let expire = |rig: &mut Rig, topic: &TopicHandle| {
        let (id, below) = (topic.id(), rig.store.watermarks().appended);
        let (before, queues) = (Timestamp::ZERO, Vec::new());
        rig.transition(&Transition::TopicExpired {
            id,
            below,
            before,
            queues,
            purged: PhysicalOffset::ZERO,
        });
        rig.clean();
    };
    rig.fill(&first, 0, 3);
    rig.fill(&second, 0, 2);
    // An image is taken for what is dead.
    rig.disk.set_capacity(Some(8 << 20));
    rig.clock.advance(Duration::from_secs(2));
    expire(&mut rig, &second);
    let status = rig.store.status();
    let (newest, deleted) = (status.newest_image.unwrap(), status.deleted_segments);
    assert!(deleted >= 1 && newest.get() > 4 * config().segment_size, "{status:?}");
    rig.disk.set_capacity(None);
    rig.clock.advance(Duration::from_secs(2));
    rig.settle();
    rig.fill(&third, 0, 2);

    // The next segment is the last one, and the state is too much for it.
    for id in 300..1_600 {
        rig.topic(id, 1, FlushMode::Async);
        rig.settle();
    }
    rig.disk.set_capacity(Some(1 << 20));
    rig.clock.advance(Duration::from_secs(2));
    rig.settle();
    let last = rig.store.status().segments + 1;
    while rig.store.status().segments < last {
        rig.store.append_one(NewRecord::state(vec![0; 800])).unwrap();
        rig.settle();
    }
    let appended = rig.store.watermarks().appended;
    rig.clean();
    assert_eq!(rig.store.watermarks().appended, appended, "no part of it is written");
    let images = rig.store.status().images;
    expire(&mut rig, &third);
    assert_eq!(rig.store.status().images, images, "there is no room for it");
    assert_eq!(rig.store.status().deleted_segments, deleted);
    // These lie before the image that there is.
    first.expire(newest, Timestamp::ZERO, &[]);
    rig.clean();
    assert!(rig.store.status().deleted_segments >= deleted + 2, "{:?}", rig.store.status());
    // And with room the other one is taken.
    rig.disk.set_capacity(None);
    rig.clock.advance(Duration::from_secs(2));
    rig.settle();
    assert!(rig.store.status().images > images, "{:?}", rig.store.status());
    rig.clean();
    assert!(rig.store.status().deleted_segments >= deleted + 4, "{:?}", rig.store.status());
}
