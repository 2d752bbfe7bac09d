//! Reads: how far one goes, and what it leaves to the next.

use std::time::Instant;

use super::*;

/// Reads in other queues along, as streams do, and takes its time.
fn read_ahead(
    rig: &Rig,
    request: &ReadRequest,
    others: &[(QueueId, QueueOffset)],
) -> (ReadOutcome, Vec<Ahead>) {
    let until = Instant::now() + Duration::from_secs(3_600);
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
        let request = ReadRequest { max_bytes, ..whole(topic, 0, 0) };
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
    let request = whole(&topic, 0, 0);
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
fn a_look_at_records_all_over_the_log_ends_in_time_and_the_next_goes_on_where_it_ended() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 3, FlushMode::Async);
    let bodies = numbered(50, 10);
    for body in &bodies {
        rig.send(&topic, 0, "k", body);
        // They do not lie beside each other.
        rig.send(&topic, 1, "k", &[0; 6_000]);
        rig.settle();
    }
    rig.send(&topic, 2, "k", b"little");
    rig.settle();
    let others = [(QueueId::new(2), QueueOffset::ZERO)];
    let (over, far) = (Instant::now(), Instant::now() + Duration::from_secs(3_600));
    let look = |from, until| {
        let request = whole(&topic, 0, from);
        let look = rig.store.shared.read_along_until(&request, &others, until, May::Disk);
        let (first, ahead) = look.unwrap().unwrap();
        let ReadOutcome::Records { records, next, range } = first else { panic!("{first:?}") };
        assert_eq!(range.max.get(), 50);
        let found: Vec<_> = records.iter().map(|record| body(&record.batch)).collect();
        (found, next.get(), ahead.len())
    };
    assert_eq!(look(0, far), (bodies.clone(), 50, 1));
    let (mut found, mut ends) = (Vec::new(), Vec::new());
    while found.len() < bodies.len() {
        let (more, next, along) = look(found.len() as u64, over);
        found.extend(more);
        assert_eq!((found.len() as u64, along), (next, 0));
        ends.push(next);
    }
    // Some in any case: a slow disk would be asked for one at a time, a busy machine would take a hop for each.
    assert_eq!(ends, [16, 32, 48, 50]);
    assert_eq!(found, bodies);
    // A pull by itself waits for what it asked for.
    match rig.store.shared.read(&whole(&topic, 0, 0), May::Disk).unwrap().unwrap() {
        ReadOutcome::Records { records, .. } => assert_eq!(records.len(), 50),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_look_at_neighbours_does_not_end_before_it_has_what_was_asked_for() {
    let mut rig = Rig::open_with(SimDisk::new(), StoreConfig { hot_bytes: 0, ..config() });
    let topic = rig.topic(1, 2, FlushMode::Async);
    for body in &numbered(200, 900) {
        rig.send(&topic, 0, "k", body);
        rig.settle();
    }
    let (request, over) = (whole(&topic, 0, 0), Instant::now());
    let look = rig.store.shared.read_along_until(&request, &[], over, May::Disk);
    match look.unwrap().unwrap().0 {
        ReadOutcome::Records { records, next, .. } => {
            assert_eq!((records.len(), next.get()), (200, 200));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_queue_in_which_nothing_matches_is_not_passed_over_while_what_others_have_waits() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 3, FlushMode::Async);
    let send = |queue, tag, count| {
        for _ in 0..count {
            let mut builder = BatchBuilder::new();
            builder.push(&NewMeta { tag: Some(tag), ..NewMeta::default() }, b"x");
            let batch = builder.finish();
            let info = check(&batch).unwrap();
            let record = NewRecord::message(&topic, QueueId::new(queue), batch, &info);
            rig.store.append_one(record).unwrap();
        }
    };
    for (queue, others) in [(0, 0), (1, 10), (2, 100)] {
        send(queue, "other", others);
        send(queue, "wanted", 1);
    }
    rig.settle();
    let filter = Arc::new(TagFilter::parse("wanted").unwrap());
    let request = |queue| ReadRequest { filter: Arc::clone(&filter), ..whole(&topic, queue, 0) };
    let others = [1, 2].map(|queue| (QueueId::new(queue), QueueOffset::ZERO));
    let (_, ahead) = read_ahead(&rig, &request(0), &others);
    let ahead: Vec<_> = ahead.iter().map(|a| (a.queue.get(), a.next.get())).collect();
    assert_eq!(ahead, [(1, 11)]);
    // In its own turn it is.
    let (first, _) = read_ahead(&rig, &request(2), &[]);
    assert!(matches!(first, ReadOutcome::Records { next, .. } if next.get() == 101), "{first:?}");
}
