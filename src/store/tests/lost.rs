//! What a power cut took, and who is told.

use super::*;

#[test]
fn a_reader_learns_from_where_on_a_power_cut_took_what_it_read() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 2, FlushMode::Async);
    for body in numbered(20, 100) {
        rig.send(&topic, 0, "k", &body);
        rig.send(&topic, 1, "k", &body);
    }
    rig.sync();
    for body in numbered(10, 101) {
        rig.send(&topic, 0, "k", &body);
    }
    rig.dispatch();
    assert_eq!(rig.bodies(&topic, 0).len(), 30, "read before they were durable");
    assert_eq!(rig.diverged(&topic, 0, 31, 1), None, "its own epoch");

    let mut rig = rig.cut_power(&CrashChoice::NOTHING);
    let topic = rig.only_topic();
    let of_epoch_1 = |rig: &Rig, topic: &_, queue, at| rig.diverged(topic, queue, at, 1);
    let expected =
        [(0, 30, Some(20)), (0, 21, Some(20)), (0, 20, None), (0, 0, None), (1, 20, None)];
    for (queue, at, at_most) in expected {
        assert_eq!(of_epoch_1(&rig, &topic, queue, at), at_most, "queue {queue} at {at}");
    }
    // Other messages at their offsets, in the epoch that took them and in a later one.
    for body in numbered(15, 102) {
        rig.send(&topic, 0, "k", &body);
    }
    rig.settle();
    assert_eq!(of_epoch_1(&rig, &topic, 0, 30), Some(20));
    let rig = rig.close_and_reopen();
    let topic = rig.only_topic();
    rig.send(&topic, 1, "k", b"later");
    for (queue, at, at_most) in expected {
        assert_eq!(of_epoch_1(&rig, &topic, queue, at), at_most, "queue {queue} at {at}");
    }
    assert_eq!(rig.diverged(&topic, 0, 35, 2), None, "a clean stop takes nothing");
    assert_eq!(rig.diverged(&topic, 0, 36, 2), Some(35), "this one was never there");
}

/// Against what a reader remembers, message by message.
#[test]
fn what_a_reader_is_told_is_lost_is_where_its_memory_and_the_queue_part() {
    let mut found = 0;
    for seed in 0..40_u64 {
        let mut state = seed;
        let mut below = |limit: u64| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            xxhash_rust::xxh3::xxh3_64(&state.to_le_bytes()) % limit
        };
        let mut rig = Rig::open(SimDisk::new());
        let created = rig.topic(1, 2, FlushMode::Async);
        drop(created);
        rig.sync();
        let mut memories: Vec<(u64, u32, Vec<Vec<u8>>)> = Vec::new();
        let mut serial = 0_u32;
        for step in 0..60 {
            match below(10) {
                0..=5 => {
                    let topic = rig.only_topic();
                    for _ in 0..below(12) {
                        serial += 1;
                        let body = format!("{serial:0len$}", len = 1 + below(4_000) as usize);
                        let queue = below(2) as u32;
                        let batch = batch("k", body.as_bytes());
                        let info = check(&batch).unwrap();
                        let record = NewRecord::message(&topic, QueueId::new(queue), batch, &info);
                        if rig.store.append_one(record.clone()).is_err() {
                            // No room: the workers make it.
                            rig.settle();
                            rig.store.append_one(record).unwrap();
                        }
                    }
                }
                6 => rig.sync(),
                7 => rig = rig.close_and_reopen(),
                _ => {
                    let pending = rig.disk.pending_counts();
                    rig = rig.cut_power(&CrashChoice::random(below(u64::MAX), pending));
                }
            }
            rig.dispatch();
            let topic = rig.only_topic();
            let epoch = rig.store.epoch().get();
            let now: Vec<_> = (0..2).map(|queue| rig.bodies(&topic, queue)).collect();
            for (seen, queue, memory) in &memories {
                let now = &now[*queue as usize];
                let parts = memory.iter().zip(now).position(|(old, new)| old != new);
                let parts = parts.or((memory.len() > now.len()).then_some(now.len()));
                let told = rig.diverged(&topic, *queue, memory.len(), *seen);
                assert_eq!(
                    told,
                    parts.map(|at| at as u64),
                    "seed {seed}, step {step}, epoch {seen}"
                );
                found += usize::from(told.is_some());
            }
            for (queue, bodies) in now.into_iter().enumerate() {
                memories.push((epoch, queue as u32, bodies));
            }
        }
    }
    assert!(found > 100, "power cuts must have taken something: {found}");
}

#[test]
fn a_start_says_which_messages_went_with_a_torn_tail() {
    let mut rig = Rig::open(SimDisk::new());
    let topic = rig.topic(1, 3, FlushMode::Async);
    rig.send(&topic, 0, "k", &[1; 5_000]);
    rig.sync();
    let first = rig.store.now();
    rig.clock.advance(Duration::from_millis(7));
    let torn = rig.send(&topic, 2, "k", &[2; 9_000]);
    for _ in 0..3 {
        rig.send(&topic, 1, "k", &[3; 5_000]);
    }
    // All of it came to the disk but the first of its pages.
    let everything = CrashChoice::EVERYTHING;
    let choice = CrashChoice { writes: crate::testing::WriteChoice::AllButFirst, ..everything };
    let rig = rig.cut_power(&choice);
    let report = rig.store.start_report();
    let lost = report.lost.as_ref().expect("messages were lost");
    let rows: Vec<_> =
        lost.queues.iter().map(|row| (row.topic.get(), row.queue.get(), row.messages)).collect();
    assert_eq!(report.cut.as_ref().map(|cut| cut.at), Some(torn.offset));
    assert_eq!((lost.messages, lost.queue_count), (3, 1));
    assert_eq!(rows, [(1, 1, 3)], "the header of the first is not there: of it nothing is known");
    assert_eq!(
        (lost.first, lost.last),
        (Timestamp::new(first.get() + 7), Timestamp::new(first.get() + 7))
    );
    let text = report.to_string();
    assert!(text.contains("LOST: 3 messages"), "{text}");
    assert!(text.contains("3 in #1/1 (store time"), "{text}");
}
