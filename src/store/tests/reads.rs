//! Reads: how far one goes, and what it leaves to the next.

use super::*;

/// Reads in other queues along, as streams do, and takes its time.
fn read_ahead(
    rig: &Rig,
    request: &ReadRequest,
    others: &[(QueueId, QueueOffset)],
) -> (ReadOutcome, Vec<Ahead>) {
    let until = std::time::Instant::now() + Duration::from_secs(3_600);
    let read = |may| rig.store.shared.read_along_until(request, others, until, may).unwrap();
    read(May::Memory).or_else(|| read(May::Disk)).unwrap()
}

#[test]
fn a_read_goes_on_in_other_queues_as_far_as_its_bytes_go_in_memory_and_off_the_disk() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 8, FlushMode::Async);
    for queue in [0, 1, 2, 4, 5, 6] {
        rig.send(&topic, queue, "k", &[queue as u8; 1_000]);
    }
    rig.settle();
    let others = [1, 2, 3, 4, 5, 6].map(|queue| (QueueId::new(queue), QueueOffset::ZERO));
    let read = |rig: &Rig, topic: &Arc<TopicHandle>, max_bytes| {
        let request = ReadRequest {
            topic: Arc::clone(topic),
            queue: QueueId::ZERO,
            from: QueueOffset::ZERO,
            max_messages: 10,
            max_bytes,
            filter: Arc::new(TagFilter::All),
        };
        let (first, ahead) = read_ahead(rig, &request, &others);
        assert!(matches!(first, ReadOutcome::Records { next, .. } if next.get() == 1));
        let each = ahead.into_iter().map(|ahead| {
            let queue = ahead.queue.get();
            assert_eq!((ahead.next.get(), ahead.range.max.get(), ahead.records.len()), (1, 1, 1));
            assert_eq!(body(&ahead.records[0].batch), [queue as u8; 1_000]);
            queue
        });
        each.collect::<Vec<_>>()
    };
    // Queue 3 has nothing to give: it must not be passed over.
    let wanted = [(1 << 20, &[1, 2][..]), (2_500, &[1]), (1, &[])];
    let reads_along = |rig: &Rig, topic: &Arc<TopicHandle>| {
        for (max_bytes, all) in wanted {
            assert_eq!(read(rig, topic, max_bytes), all);
        }
    };
    reads_along(&rig, &topic);

    let rig = rig.close_and_reopen();
    reads_along(&rig, &rig.store.topics().get(TopicId::new(1)).unwrap());
}

#[test]
fn queues_that_got_their_records_in_turn_are_read_with_few_reads_of_the_disk() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 40, FlushMode::Async);
    for queue in 0..40 {
        rig.send(&topic, queue, "k", &[queue as u8; 900]);
    }
    rig.settle();
    let rig = rig.close_and_reopen();
    let topic = rig.store.topics().get(TopicId::new(1)).unwrap();
    let others: Vec<_> = (1..40).map(|n| (QueueId::new(n), QueueOffset::ZERO)).collect();
    let request = ReadRequest {
        topic,
        queue: QueueId::ZERO,
        from: QueueOffset::ZERO,
        max_messages: 10,
        max_bytes: 1 << 20,
        filter: Arc::new(TagFilter::All),
    };
    let before = rig.disk.calls(Operation::Read);
    let (_, ahead) = read_ahead(&rig, &request, &others);
    let reads = rig.disk.calls(Operation::Read) - before;
    for (ahead, n) in ahead.iter().zip(1_u8..) {
        assert_eq!(body(&ahead.records[0].batch), [n; 900]);
    }
    assert_eq!(ahead.len(), 39);
    // One alone, then 16 KiB and what follows of some 40; the queues were put in memory by the start.
    assert!(reads <= 4, "{reads} reads for 40 records");
}

#[test]
fn a_read_finds_the_pages_of_the_queues_files_that_the_one_before_it_left() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 3, FlushMode::Async);
    for queue in 0..2 {
        rig.send(&topic, queue, "k", b"x");
    }
    rig.fill(&topic, 2, 2);
    let reads_of = |queue| {
        let before = rig.disk.calls(Operation::Read);
        assert!(matches!(rig.read(&topic, queue, 0), ReadOutcome::Records { .. }));
        rig.disk.calls(Operation::Read) - before
    };
    // A page for the queue's row and its entry, and the record.
    assert_eq!(reads_of(0), 2);
    assert_eq!(reads_of(1), 1);
}

#[test]
fn a_read_does_not_see_what_an_earlier_one_had_of_the_log() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 2, FlushMode::Async);
    let placed: Vec<_> = numbered(9, 900).iter().map(|b| rig.send(&topic, 0, "k", b)).collect();
    rig.fill(&topic, 1, 2);
    assert_eq!(rig.bodies(&topic, 0).len(), 9);
    let log = Path::new("/data/commitlog/00000000000000000000.log");
    rig.disk.corrupt(log, placed[8].offset.get() + 500, 0x40).unwrap();
    match rig.read(&topic, 0, 8) {
        ReadOutcome::Damaged { at, .. } => assert_eq!(at.get(), 8),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_behind_a_read_is_found_by_the_next_though_it_was_read_along() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 1, FlushMode::Async);
    let nearby = &mut Nearby::default();
    for n in 0..6_u8 {
        let placed = rig.send(&topic, 0, "k", &[n; 900]);
        rig.settle();
        let (at, shared) = (placed.offset, &rig.store.shared);
        assert_eq!(shared.via(at), Via::Disk);
        // Whatever lies behind the record before, its place was looked at before it was written.
        match shared.load(&topic, at, placed.end, May::Disk, nearby) {
            Loaded::Record(record) => assert_eq!(body(&record.batch), [n; 900]),
            _ => panic!("record {n} is not found"),
        }
    }
}

#[test]
fn a_read_that_has_taken_its_time_ends_with_what_it_has_and_the_next_goes_on_there() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 1, FlushMode::Async);
    let bodies = numbered(200, 10);
    for body in &bodies {
        rig.send(&topic, 0, "k", body);
    }
    rig.settle();
    let read = |from, until| {
        let request = ReadRequest {
            topic: Arc::clone(&topic),
            queue: QueueId::ZERO,
            from: QueueOffset::new(from),
            max_messages: 1_000,
            max_bytes: 1 << 20,
            filter: Arc::new(TagFilter::All),
        };
        let nearby = &mut Nearby::default();
        match rig.store.shared.read_with(&request, until, May::Disk, nearby).unwrap() {
            Some(ReadOutcome::Records { records, next, range }) => {
                assert_eq!(range.max.get(), 200);
                (records.iter().map(|record| body(&record.batch)).collect::<Vec<_>>(), next.get())
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read(0, None), (bodies.clone(), 200));
    let (over, mut found) = (Some(std::time::Instant::now()), Vec::new());
    let mut ends = Vec::new();
    while found.len() < bodies.len() {
        let (more, next) = read(found.len() as u64, over);
        found.extend(more);
        assert_eq!(found.len() as u64, next);
        ends.push(next);
    }
    // It looks at the clock each time it looks up entries, once it has something.
    assert_eq!(ends, [64, 128, 192, 200]);
    assert_eq!(found, bodies);
}
