//! What a verification says of a stopped store: nothing of a sound one, and of a damaged one exactly what is damaged. It
//! changes nothing.

use std::path::Path;
use std::sync::Arc;

use mainstem::file::Operation;
use mainstem::format::record::HEADER_LEN;
use mainstem::message::{PhysicalOffset, QueueKey};
use mainstem::store::offline::{OfflineError, StoppedStore};
use mainstem::store::{Finding, FindingKind, Verifier, VerifySummary};
use mainstem::testing::{CrashChoice, Fault, FaultRule, SimDisk, Times};

use crate::decay::{QUEUES, Written, place, send, written};
use crate::rig::{Rig, base, batch, files, path};

fn open(disk: &SimDisk) -> Result<StoppedStore, OfflineError> {
    StoppedStore::open(Arc::new(disk.clone()), Path::new(crate::rig::DATA))
}

/// All that is found, and the summary. Asserts that nothing is changed.
pub(crate) fn verify(disk: &SimDisk) -> (Vec<Finding>, VerifySummary) {
    let before = disk.operations();
    let mut verifier = Verifier::of_stopped(open(disk).unwrap());
    let mut findings = Vec::new();
    for _ in 0..10_000 {
        let verified = verifier.step();
        findings.extend(verified.findings);
        if verified.is_over {
            assert_eq!(disk.operations(), before, "nothing is changed");
            return (findings, verifier.summary().clone());
        }
    }
    panic!("a verification never ends");
}

fn kinds(findings: &[Finding]) -> Vec<FindingKind> {
    findings.iter().map(|finding| finding.kind).collect()
}

/// Segments that have files.
fn sealed(written: &Written) -> usize {
    files(&written.disk, "index").len()
}

#[test]
fn of_a_sound_store_all_is_read_and_nothing_found() {
    let written = written();
    let (findings, summary) = verify(&written.disk);
    assert_eq!(findings, []);
    assert!(summary.is_sound());
    assert_eq!(summary.records, written.log.len() as u64);
    assert_eq!(summary.messages, 70);
    assert_eq!(summary.derived_files, 2 * sealed(&written) as u64);
    let segments = files(&written.disk, "commitlog");
    let bytes: usize =
        segments.iter().map(|file| written.disk.durable_bytes(file).unwrap().len()).sum();
    let counted = (summary.segments, summary.log_bytes);
    assert_eq!(counted, (segments.len() as u64, bytes as u64));
}

#[test]
fn a_store_that_was_killed_is_sound() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, QUEUES, mainstem::message::FlushMode::Sync);
    for n in 0..40 {
        send(&mut rig, n as u32 % QUEUES, n, 1_000);
        if n % 3 == 0 {
            rig.workers.settle();
        }
        let image = disk.crash_image(&CrashChoice::EVERYTHING);
        let (findings, summary) = verify(&image);
        assert_eq!((findings, summary.is_sound()), (vec![], true), "after message {n}");
        let image = disk.crash_image(&CrashChoice::NOTHING);
        assert_eq!(verify(&image).0, [], "after message {n}, nothing that was not flushed");
    }
}

#[test]
fn a_damaged_record_is_named_with_its_place_and_its_queue() {
    let written = written();
    let sealed_end = base(&files(&written.disk, "commitlog")[sealed(&written)]);
    let total = written.messages().count();
    for (index, record) in written.messages().enumerate() {
        let header = &record.header;
        // Nothing vouches for the last burst but the checkpoint, which ends with it.
        assert!(index < total);
        let range = header.physical_offset..header.end();
        let key = QueueKey { topic: header.topic, queue: header.queue };
        let offsets = header.queue_offset..header.queue_offset.plus(1);
        let is_sealed = header.end().get() <= sealed_end;
        for (part, position) in [("header", 40), ("body", HEADER_LEN as u64 + 300)] {
            let what = format!("{part} of record {index}");
            let disk = written.copy();
            let (file, at) = place(&disk, header.physical_offset);
            disk.corrupt(&file, at + position, 2).unwrap();
            let (findings, summary) = verify(&disk);
            let name = |finding: &Finding| file.ends_with(&finding.file);
            assert!(findings.iter().all(name), "{what}: {findings:?}");
            let (first, rest) = findings.split_first().unwrap();
            assert_eq!(first.kind, FindingKind::Damaged, "{what}");
            assert_eq!(first.range, Some(range.clone()), "{what}");
            let whose = match (part, is_sealed) {
                ("body", _) => {
                    assert_eq!(rest, [], "{what}");
                    first
                }
                (_, true) => {
                    assert_eq!(kinds(rest), [FindingKind::Lost], "{what}");
                    assert_eq!(rest[0].range, Some(range.clone()), "{what}");
                    &rest[0]
                }
                // Only the log knew.
                _ => {
                    assert_eq!((rest, first.queue), (&[][..], None), "{what}");
                    continue;
                }
            };
            assert_eq!(whose.queue, Some(key), "{what}");
            assert_eq!(whose.offsets, Some(offsets.clone()), "{what}");
            assert_eq!((summary.damaged, summary.damaged_bytes), (1, range.end.since(range.start)));
            assert!(!summary.is_sound());
        }
    }
}

#[test]
fn a_derived_file_that_does_not_verify_is_named_alone() {
    let written = written();
    for part in ["consumequeue", "index", "state"] {
        for file in files(&written.disk, part) {
            let len = written.disk.durable_bytes(&file).unwrap().len() as u64;
            for position in [4, len / 2, len - 1] {
                let disk = written.copy();
                disk.corrupt(&file, position, 1).unwrap();
                let (findings, summary) = verify(&disk);
                let what = format!("byte {position} of {}: {findings:?}", file.display());
                assert_eq!(kinds(&findings), [FindingKind::Derived], "{what}");
                assert!(file.ends_with(&findings[0].file), "{what}");
                assert_eq!((summary.derived, summary.damaged), (1, 0), "{what}");
            }
        }
    }
}

#[test]
fn a_derived_file_that_verifies_and_says_something_else_is_named() {
    let written = written();
    let record = written.messages().nth(20).unwrap();
    // Files that were made while a record was damaged, beside a log that is whole.
    let damaged = written.copy();
    let (segment, at) = place(&damaged, record.header.physical_offset);
    damaged.corrupt(&segment, at + 40, 2).unwrap();
    let number = files(&damaged, "commitlog").iter().position(|file| *file == segment).unwrap();
    for part in ["consumequeue", "index"] {
        let file = files(&damaged, part).swap_remove(number);
        let made = damaged.crash_image(&CrashChoice::EVERYTHING);
        made.remove(&file).unwrap();
        let mut rig = Rig::open(&made);
        rig.workers.settle();
        rig.close();
        let bytes = made.durable_bytes(&file).unwrap();
        let disk = written.copy();
        disk.truncate(&file, bytes.len() as u64).unwrap();
        disk.overwrite(&file, 0, &bytes).unwrap();
        let (findings, _) = verify(&disk);
        assert_eq!(kinds(&findings), [FindingKind::Derived], "{part}: {findings:?}");
        assert!(findings[0].what.contains("something else than the log"), "{findings:?}");
    }
}

#[test]
fn files_that_are_missing_are_named() {
    let written = written();
    for part in ["consumequeue", "index"] {
        let disk = written.copy();
        let file = files(&disk, part).swap_remove(1);
        disk.remove(&file).unwrap();
        let (findings, _) = verify(&disk);
        assert_eq!(kinds(&findings), [FindingKind::Derived], "{part}: {findings:?}");
        assert_eq!(findings[0].what, "it is missing");
    }
    let disk = written.copy();
    disk.remove(&path("checkpoint")).unwrap();
    assert_eq!(kinds(&verify(&disk).0), [FindingKind::Remark]);
    let disk = written.copy();
    let gone = files(&disk, "commitlog").swap_remove(2);
    disk.remove(&gone).unwrap();
    let (findings, _) = verify(&disk);
    let range = PhysicalOffset::new(base(&gone))..PhysicalOffset::new(base(&gone) + (16 << 10));
    assert_eq!(kinds(&findings), [FindingKind::Damaged], "{findings:?}");
    assert_eq!(findings[0].range, Some(range));
}

#[test]
fn what_is_redundant_is_named_and_costs_nothing_else() {
    let written = written();
    let segment = files(&written.disk, "commitlog").swap_remove(1);
    for (file, position) in [(path("identity"), 30), (path("identity.copy"), 50), (segment, 40)] {
        let disk = written.copy();
        disk.corrupt(&file, position, 1).unwrap();
        let (findings, summary) = verify(&disk);
        assert_eq!(kinds(&findings), [FindingKind::Redundant], "{findings:?}");
        assert_eq!((summary.redundant, summary.is_sound()), (1, false));
    }
}

#[test]
fn one_bad_slot_of_the_checkpoint_is_a_remark_and_two_are_not() {
    let written = written();
    let disk = written.copy();
    disk.corrupt(&path("checkpoint"), 40, 1).unwrap();
    let (findings, summary) = verify(&disk);
    assert_eq!((kinds(&findings), summary.is_sound()), (vec![FindingKind::Remark], true));
    disk.corrupt(&path("checkpoint"), 4_096 + 40, 1).unwrap();
    assert_eq!(kinds(&verify(&disk).0), [FindingKind::Derived; 2]);
}

#[test]
fn the_end_of_the_log_that_is_gone_is_damage() {
    let written = written();
    let end = written.log.last().unwrap().header.end();
    let (last, _) = place(&written.disk, written.log.last().unwrap().header.physical_offset);
    let disk = written.copy();
    for file in files(&disk, "commitlog").iter().filter(|file| base(file) >= base(&last)) {
        disk.remove(file).unwrap();
    }
    let (findings, _) = verify(&disk);
    assert_eq!(kinds(&findings), [FindingKind::Damaged], "{findings:?}");
    assert_eq!(findings[0].range, Some(PhysicalOffset::new(base(&last))..end));
}

#[test]
fn a_torn_tail_is_a_remark() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, mainstem::message::FlushMode::Async);
    rig.workers.settle();
    let placed = rig.send(1, 0, &batch(0, 1, 500)).unwrap();
    let image = disk.crash_image(&CrashChoice::EVERYTHING);
    let segment = files(&image, "commitlog").swap_remove(0);
    image.corrupt(&segment, placed.offset.get() + 300, 1).unwrap();
    let (findings, summary) = verify(&image);
    assert_eq!((kinds(&findings), summary.is_sound()), (vec![FindingKind::Remark], true));
    assert!(findings[0].what.starts_with(&format!("a torn tail from {} on", placed.offset)));
}

#[test]
fn what_the_disk_refuses_is_told_as_that() {
    let written = written();
    let disk = written.copy();
    let file = files(&disk, "commitlog").swap_remove(1);
    disk.fail(FaultRule {
        operation: Operation::Read,
        path_contains: Some(file.to_str().unwrap().to_owned()),
        // Behind the header page.
        nth: 2,
        times: Times::Count(2),
        error: Fault::Eio,
    });
    let (findings, summary) = verify(&disk);
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::Refused), "{findings:?}");
    assert_eq!((summary.damaged, summary.is_sound()), (0, false), "{findings:?}");
}

#[test]
fn where_no_store_is_or_a_broker_runs_nothing_is_verified() {
    let disk = SimDisk::new();
    assert!(matches!(open(&disk), Err(OfflineError::NoStore { .. })));
    assert_eq!(disk.paths(), Vec::<std::path::PathBuf>::new(), "nothing is made");
    let rig = Rig::open(&disk);
    assert!(matches!(open(&disk), Err(OfflineError::Running { .. })));
    rig.close();
    let held = open(&disk).unwrap();
    assert!(matches!(open(&disk), Err(OfflineError::Running { .. })));
    drop(held);
    for name in ["identity", "identity.copy"] {
        disk.corrupt(&path(name), 30, 1).unwrap();
    }
    assert!(matches!(open(&disk), Err(OfflineError::Identity { .. })));
}

/// Nobody compared the begin of the log with 0.
#[test]
fn the_begin_of_the_log_that_is_gone_is_damage() {
    let written = written();
    let disk = written.copy();
    let segments = files(&disk, "commitlog");
    for file in &segments[..2] {
        disk.remove(file).unwrap();
    }
    for path in files(&disk, "state") {
        let disk = disk.crash_image(&CrashChoice::EVERYTHING);
        disk.remove(&path).unwrap();
        let (findings, summary) = verify(&disk);
        let damaged: Vec<_> =
            findings.iter().filter(|finding| finding.kind == FindingKind::Damaged).collect();
        assert_eq!((summary.is_sound(), damaged.len()), (false, 1), "{findings:?}");
        let range = PhysicalOffset::ZERO..PhysicalOffset::new(base(&segments[2]));
        assert_eq!(damaged[0].range, Some(range));
    }
}
