//! Bytes change under a running store: the scrub, or the first read, finds the damage and tells of it; all else goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mainstem::file::Operation;
use mainstem::format::record::{HEADER_LEN, RecordHeader};
use mainstem::message::MessageId;
use mainstem::store::{
    IncompleteReason, IndexKind, Order, Progress, ReadError, ReadOutcome, StoreConfig,
};
use mainstem::testing::{Fault, FaultRule, SimDisk, Times, now};

use crate::decay::{QUEUES, Written, place, readable, send, written};
use crate::oracle::agrees;
use crate::rig::{Rig, base, files, tiny};

fn open(disk: &SimDisk, scrub_rate: u64) -> Rig {
    let config = StoreConfig { scrub_rate, ..tiny() };
    let mut rig = Rig::try_open(Arc::new(disk.clone()), &config, 1_000_000).unwrap();
    rig.workers.settle();
    rig
}

/// As fast as it can, until it has nothing to do.
fn pass(rig: &mut Rig) -> Duration {
    for _ in 0..10_000 {
        if let Progress::Idle(limit) = rig.workers.scrub.step() {
            return limit;
        }
    }
    panic!("a pass never ends");
}

/// The records in sealed segments, with their place among all messages.
fn sealed(written: &Written) -> impl Iterator<Item = (usize, &RecordHeader)> {
    let count = files(&written.disk, "index").len();
    let end = base(&files(&written.disk, "commitlog")[count]);
    let messages = written.messages().map(|record| &record.header).enumerate();
    messages.filter(move |(_, header)| header.end().get() <= end)
}

#[test]
fn a_sound_store_is_read_whole_and_then_once_a_day() {
    let written = written();
    let disk = written.copy();
    let mut rig = open(&disk, u64::MAX);
    assert_eq!(rig.store.status().scrubbed_at, None);
    let rest = pass(&mut rig);
    assert_eq!(rest, Duration::from_secs(24 * 3600));
    let status = rig.store.status();
    let log: u64 = sealed(&written).map(|(_, header)| u64::from(header.total_len)).sum();
    let derived = files(&disk, "index").into_iter().chain(files(&disk, "consumequeue"));
    let derived: u64 = derived.map(|file| disk.durable_bytes(&file).unwrap().len() as u64).sum();
    assert!(
        status.scrubbed_bytes >= log + derived,
        "{} of {log} + {derived}",
        status.scrubbed_bytes
    );
    assert_eq!((status.scrub_passes, status.damage_found, status.rebuilt), (1, 0, 0));
    assert_eq!((status.scrubbed_at.map(|at| at.get()), status.damaged), (Some(1_000_000), vec![]));
    let bytes = status.scrubbed_bytes;

    rig.clock.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(pass(&mut rig), Duration::from_secs(1));
    assert_eq!(rig.store.status().scrubbed_bytes, bytes);
    rig.clock.advance(Duration::from_secs(1));
    pass(&mut rig);
    assert_eq!(
        (rig.store.status().scrub_passes, rig.store.status().scrubbed_bytes),
        (2, 2 * bytes)
    );
    agrees(&rig, &logged(&disk), 1, &"after two passes");
}

fn logged(disk: &SimDisk) -> Vec<crate::oracle::Logged> {
    crate::oracle::walk(disk, &"log")
}

#[test]
fn the_scrub_keeps_to_its_rate_and_rests_when_it_is_off() {
    let written = written();
    let mut rig = open(&written.copy(), 8 << 10);
    assert_eq!(rig.workers.scrub.step(), Progress::Worked);
    let read = rig.store.status().scrubbed_bytes;
    let due = Duration::from_nanos(read * 1_000_000_000 / (8 << 10));
    assert_eq!(rig.workers.scrub.step(), Progress::Idle(due));
    // The clock of the test counts in milliseconds.
    rig.clock.advance(due + Duration::from_millis(1));
    assert_eq!(rig.workers.scrub.step(), Progress::Worked);

    let mut rig = open(&written.copy(), 0);
    assert!(matches!(rig.workers.scrub.step(), Progress::Idle(_)));
    assert_eq!(rig.store.status().scrubbed_bytes, 0);
}

#[test]
fn a_record_that_rots_while_the_store_runs_is_found_and_told_and_all_else_is_served() {
    let written = written();
    for (index, header) in sealed(&written).step_by(3) {
        for position in [40, HEADER_LEN as u64 + 300] {
            let what = format!("record {index}, byte {position}");
            let disk = written.copy();
            let mut rig = open(&disk, u64::MAX);
            let (file, at) = place(&disk, header.physical_offset);
            disk.corrupt(&file, at + position, 2).unwrap();
            assert_eq!(rig.store.status().damaged, [], "{what}: nobody has looked");
            pass(&mut rig);
            let status = rig.store.status();
            assert_eq!(status.damaged, [header.physical_offset..header.end()], "{what}");
            assert_eq!((status.damage_found, status.rebuilt), (1, 0), "{what}");

            let topic = rig.topic(1).unwrap();
            let queue = header.queue.get();
            match rig.read(&topic, queue, header.queue_offset.get(), 1) {
                ReadOutcome::Damaged { at, next, .. } => {
                    assert_eq!((at, next), (header.queue_offset, at.plus(1)), "{what}");
                }
                other => panic!("{what}: {other:?}"),
            }
            for queue in 0..QUEUES {
                let (found, damaged, _) = readable(&mut rig, queue);
                let gone = |h: &RecordHeader| h.physical_offset == header.physical_offset;
                let of_queue = || written.messages().filter(|r| r.header.queue.get() == queue);
                let sound: Vec<_> = of_queue()
                    .filter(|record| !gone(&record.header))
                    .map(|record| (record.header.queue_offset.get(), record.payload.clone()))
                    .collect();
                let lost: BTreeSet<_> = of_queue()
                    .filter(|record| gone(&record.header))
                    .map(|record| record.header.queue_offset.get())
                    .collect();
                assert_eq!((found, damaged), (sound, lost), "{what}, queue {queue}");
            }
            let key = format!("k{}", index % 5);
            let found = rig.find(&topic, IndexKind::Key, &key, Order::OldestFirst);
            let why = (found.complete, found.reason, found.messages.len());
            assert_eq!(why, (false, Some(IncompleteReason::Damaged), 13), "{what}");
            let id = MessageId { epoch: header.epoch, offset: header.physical_offset, index: 0 };
            match now(rig.store.by_id(id)).unwrap() {
                Err(ReadError::Damaged { at }) => assert_eq!(at, header.physical_offset),
                other => panic!("{what}: {other:?}"),
            }
            rig.clock.advance(Duration::from_secs(24 * 3600));
            pass(&mut rig);
            assert_eq!(rig.store.status().damage_found, 1, "{what}: told once");
            assert_eq!(rig.store.status().scrub_passes, 2, "{what}");
        }
    }
}

#[test]
fn a_read_that_meets_damage_makes_it_known() {
    let written = written();
    let (_, header) = sealed(&written).nth(20).unwrap();
    for position in [40, HEADER_LEN as u64 + 300] {
        let disk = written.copy();
        let rig = open(&disk, 0);
        let (file, at) = place(&disk, header.physical_offset);
        disk.corrupt(&file, at + position, 2).unwrap();
        let topic = rig.topic(1).unwrap();
        for _ in 0..2 {
            let read = rig.read(&topic, header.queue.get(), header.queue_offset.get(), 1);
            assert!(matches!(read, ReadOutcome::Damaged { .. }), "{read:?}");
            let status = rig.store.status();
            assert_eq!(status.damaged, [header.physical_offset..header.end()]);
            assert_eq!(status.damage_found, 1);
        }
    }
}

#[test]
fn a_derived_file_that_rots_while_the_store_runs_is_made_again_and_nothing_is_lost() {
    let written = written();
    for part in ["consumequeue", "index"] {
        for file in files(&written.disk, part) {
            let len = written.disk.durable_bytes(&file).unwrap().len() as u64;
            for position in [len - 4_000, 9, len - 1] {
                let what = format!("byte {position} of {}", file.display());
                let disk = written.copy();
                let mut rig = open(&disk, u64::MAX);
                disk.corrupt(&file, position, 0x10).unwrap();
                pass(&mut rig);
                rig.workers.settle();
                let status = rig.store.status();
                assert_eq!((status.damaged, status.damage_found), (vec![], 0), "{what}");
                assert_eq!(status.rebuilt, 1, "{what}");
                let same = disk.durable_bytes(&file).unwrap();
                assert_eq!(same, written.disk.durable_bytes(&file).unwrap(), "{what}");
                agrees(&rig, &logged(&disk), 2, &what);
            }
        }
    }
}

#[test]
fn a_derived_file_that_is_gone_is_made_again() {
    let written = written();
    for part in ["consumequeue", "index"] {
        let disk = written.copy();
        let mut rig = open(&disk, u64::MAX);
        let file = files(&disk, part).swap_remove(1);
        disk.remove(&file).unwrap();
        pass(&mut rig);
        rig.workers.settle();
        assert_eq!(rig.store.status().rebuilt, 1, "{part}");
        assert!(files(&disk, part).contains(&file), "{part}");
    }
}

/// It may be sound: reads of it are refused until they are not.
#[test]
fn what_the_disk_refuses_to_the_scrub_is_not_damage() {
    let written = written();
    let disk = written.copy();
    let mut rig = open(&disk, u64::MAX);
    let file = files(&disk, "commitlog").swap_remove(1);
    disk.fail(FaultRule {
        operation: Operation::Read,
        path_contains: Some(file.to_str().unwrap().to_owned()),
        nth: 1,
        times: Times::Count(3),
        error: Fault::Eio,
    });
    // A record behind the refused pages, but read together with them.
    let behind = |header: &RecordHeader| header.physical_offset.get() > base(&file) + (12 << 10);
    let (_, header) = sealed(&written).find(|(_, header)| behind(header)).unwrap();
    let (_, at) = place(&disk, header.physical_offset);
    disk.corrupt(&file, at + HEADER_LEN as u64 + 9, 1).unwrap();
    pass(&mut rig);
    let damaged = rig.store.status().damaged;
    assert_eq!(damaged, [header.physical_offset..header.end()], "that one alone");
    assert_eq!(rig.store.status().scrub_passes, 1);
}

#[test]
fn the_scrub_leaves_out_what_is_read_in_place() {
    let written = written();
    let disk = written.copy();
    let config = StoreConfig { scrub_rate: u64::MAX, hot_bytes: 1 << 30, ..tiny() };
    let mut rig = Rig::try_open(Arc::new(disk.clone()), &config, 1_000_000).unwrap();
    pass(&mut rig);
    let read = rig.store.status().scrubbed_bytes;
    for n in 0..60 {
        send(&mut rig, 0, 500 + n, 1_000);
        rig.workers.settle();
    }
    let sealed = [&written.disk, &disk].map(|disk| files(disk, "index").len());
    assert!(sealed[1] > sealed[0] + 3, "{sealed:?}");
    rig.clock.advance(Duration::from_secs(24 * 3600));
    pass(&mut rig);
    let status = rig.store.status();
    assert_eq!((status.scrub_passes, status.scrubbed_bytes), (2, 2 * read));
}
