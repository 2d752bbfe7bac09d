//! What the model found, each as the shortest story that shows it.

use mainstem::format::state_record::Transition;
use mainstem::message::{
    FlushMode, QueueId, QueueOffset, Retention, TopicId, TopicSettings, TopicType,
};
use mainstem::store::{AppendError, Arrival, ReadOutcome};
use mainstem::testing::{SimDisk, now};

use crate::rig::{Rig, batch, tiny};

/// A batch whose record takes exactly so many bytes: header 128, then the batch, which is a few bytes longer than the
/// body.
fn batch_for_a_record_of(len: u64) -> bytes::Bytes {
    (0..len as usize)
        .map(|body| batch(0, 1, body))
        .find(|batch| 128 + batch.len() as u64 == len)
        .unwrap()
}

/// The dispatcher walked on from the end of such a record to the header page of the next segment, took that for a
/// record, and poisoned the store.
#[test]
fn a_record_that_ends_exactly_with_its_segment_is_dispatched_sealed_and_recovered() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let topic = rig.create(1, 1, FlushMode::Async);
    rig.workers.settle();
    let mut count = 0;
    for _ in 0..4 {
        let max = rig.store.max_append_set();
        let left = loop {
            let appended = rig.store.watermarks().appended.get();
            let left = tiny().segment_size - appended % tiny().segment_size;
            if left <= max - 500 {
                break left;
            }
            rig.send(1, 0, &batch(0, 1, 500)).unwrap();
            count += 1;
        };
        let arrival = rig.store.arrival(&topic, QueueId::ZERO, QueueOffset::new(count));
        let placed = rig.send(1, 0, &batch_for_a_record_of(left)).unwrap();
        assert_eq!(
            placed.end.get() % tiny().segment_size,
            0,
            "the segment is full to the last byte"
        );
        count += 1;
        rig.workers.dispatch.step();
        rig.marks_are_in_order();
        assert_eq!(now(arrival), Some(Arrival::Readable));
        assert_eq!(rig.read_all(&topic, 0).len() as u64, count);
        // Full, and the next one is not begun: as good a place to die as any.
        rig.kill();
        rig = Rig::open(&disk);
        rig.workers.settle();
        assert_eq!(rig.read_all(&rig.topic(1).unwrap(), 0).len() as u64, count);
        rig.send(1, 0, &batch(0, 1, 500)).unwrap();
        count += 1;
        rig.workers.settle();
        assert!(!rig.is_poisoned());
    }
    let topic = rig.topic(1).unwrap();
    assert_eq!(rig.read_all(&topic, 0).len() as u64, count);
}

/// The dispatcher noted for the flush only those who were parked when it passed; who parked behind it slept until its
/// own deadline.
#[test]
fn a_reader_that_parks_between_dispatch_and_flush_is_woken_by_the_flush() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let topic = rig.create(1, 1, FlushMode::Sync);
    rig.workers.settle();
    rig.send(1, 0, &batch(0, 1, 100)).unwrap();
    rig.workers.dispatch.step();
    let mut arrival = Box::pin(rig.store.arrival(&topic, QueueId::ZERO, QueueOffset::ZERO));
    assert_eq!(now(arrival.as_mut()), None, "not durable, not readable");
    rig.workers.flush.flush_all();
    assert_eq!(now(arrival.as_mut()), Some(Arrival::Readable));
}

/// What is gone by the retention in bytes was worked out by the cleaning alone. Until it ran after a start, queues began
/// at 0 again, and what was in deleted segments was said to be damaged.
#[test]
fn what_is_gone_by_its_bytes_is_gone_from_the_first_moment_after_a_start() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let retention = Retention { time_ms: None, bytes: Some(30_000) };
    let settings =
        TopicSettings { retention, ..TopicSettings::open(1, FlushMode::Async, TopicType::Mixed) };
    let (id, name) = (TopicId::new(1), "t".to_owned());
    rig.state(&Transition::TopicCreated { id, name, settings }).unwrap();
    let (mut min, mut gone, mut lagging) = (0, 0, 0);
    for round in 0..400 {
        match rig.send(1, 0, &batch(round, 1, 1_000)) {
            Ok(_) => {}
            Err(AppendError::NotReady) => rig.workers.settle(),
            Err(error) => panic!("{error}"),
        }
        // The checkpoint does not yet say what is sealed.
        rig.workers.dispatch.step();
        rig.workers.flush.flush_all();
        rig.workers.seal.step();
        rig.workers.allocate.step();
        rig.store.clean_soon();
        rig.workers.clean.step();
        let before = rig.min(&rig.topic(1).unwrap(), 0).unwrap();
        assert!(before >= min, "{before} {min}");
        lagging += u64::from(before > min);
        min = before;
        if round % 7 == 0 {
            rig.kill();
            rig = Rig::open(&disk);
            let topic = rig.topic(1).unwrap();
            let after = rig.min(&topic, 0).unwrap();
            assert!(after >= min, "it began at {min}, and at {after} after a start");
            min = after;
            if min > 0 {
                let ReadOutcome::OutOfRange { range } = rig.read(&topic, 0, 0, 10) else {
                    panic!("what is gone is nothing else");
                };
                assert_eq!(range.min.get(), min);
                gone += 1;
            }
        }
    }
    rig.workers.settle();
    assert!(gone > 10 && lagging > 10, "{gone} {lagging}");
    let kept = rig.read_all(&rig.topic(1).unwrap(), 0);
    let bytes: u64 = kept.iter().map(|record| record.batch.len() as u64 + 128).sum();
    assert!((30_000..90_000).contains(&bytes), "{bytes}");
}
