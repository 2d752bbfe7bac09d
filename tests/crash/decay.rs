//! Bytes and files change while nobody looks: what is derived is made again, of the log only what is damaged is lost,
//! and what is of another build or another store is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstem::file::Operation;
use mainstem::format::crc32c_with;
use mainstem::format::identity::Identity;
use mainstem::format::record::{HEADER_LEN, RecordHeader, RecordKind};
use mainstem::format::segment_header::{PAGE_LEN, SegmentHeader};
use mainstem::message::{FlushMode, PhysicalOffset};
use mainstem::store::{
    AppendError, IncompleteReason, IndexKind, OpenError, Order, ReadOutcome, StartReport,
};
use mainstem::testing::{CrashChoice, Fault, FaultRule, SimDisk, Times};

use crate::oracle::{Logged, agrees, walk};
use crate::rig::{Dice, Rig, base, batch, files, path, tiny};

pub(crate) const QUEUES: u32 = 2;

/// A store of some eight segments, of which the older ones are sealed; every record has one message.
pub(crate) struct Written {
    pub(crate) disk: SimDisk,
    pub(crate) log: Vec<Logged>,
}

/// Sends until it fits, stepping the workers.
pub(crate) fn send(rig: &mut Rig, queue: u32, n: u64, len: usize) {
    for _ in 0..20 {
        match rig.send(1, queue, &batch(n, 1, len)) {
            Ok(_) => return,
            Err(AppendError::NotReady) => rig.workers.settle(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("there never is room");
}

pub(crate) fn written() -> Written {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, QUEUES, FlushMode::Sync);
    for n in 0..70 {
        send(&mut rig, n as u32 % QUEUES, n, 1_000 + (n as usize % 3) * 300);
        if n % 5 == 0 {
            rig.workers.settle();
        }
    }
    rig.workers.settle();
    rig.close();
    let log = walk(&disk, &"written");
    assert!(files(&disk, "commitlog").len() >= 8 && files(&disk, "index").len() >= 5);
    Written { disk, log }
}

impl Written {
    pub(crate) fn copy(&self) -> SimDisk {
        self.disk.crash_image(&CrashChoice::EVERYTHING)
    }

    /// A copy without snapshots and checkpoint, so that a start walks the whole log.
    fn bare(&self) -> SimDisk {
        let disk = self.copy();
        for path in files(&disk, "state") {
            disk.remove(&path).unwrap();
        }
        disk.remove(&path("checkpoint")).unwrap();
        disk
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = &Logged> {
        self.log.iter().filter(|record| record.header.kind == RecordKind::Message)
    }
}

fn try_open(disk: &SimDisk) -> Result<Rig, OpenError> {
    Rig::try_open(Arc::new(disk.clone()), &tiny(), 1_000_000)
}

fn refusal(disk: &SimDisk) -> OpenError {
    match try_open(disk) {
        Ok(rig) => panic!("opened: {}", rig.store.start_report()),
        Err(error) => error,
    }
}

/// What may become of a file.
const DECAYS: [&str; 8] =
    ["gone", "empty", "short by one", "half", "longer", "garbage", "a page of zeros", "a flip"];

fn decay(disk: &SimDisk, path: &Path, how: &str, seed: u64) {
    let len = disk.durable_bytes(path).unwrap().len() as u64;
    let mut dice = Dice(seed);
    match how {
        "gone" => disk.remove(path).unwrap(),
        "empty" => disk.truncate(path, 0).unwrap(),
        "short by one" => disk.truncate(path, len - 1).unwrap(),
        "half" => disk.truncate(path, len / 2).unwrap(),
        "longer" => disk.truncate(path, len + 4096).unwrap(),
        "garbage" => {
            let bytes: Vec<u8> = (0..len).map(|_| dice.roll() as u8).collect();
            disk.overwrite(path, 0, &bytes).unwrap();
        }
        "a page of zeros" => {
            let page = dice.below(len.div_ceil(4096)) * 4096;
            let zeros = vec![0; (len - page).min(4096) as usize];
            disk.overwrite(path, page, &zeros).unwrap();
        }
        _ => disk.corrupt(path, dice.below(len), 1 << dice.below(8)).unwrap(),
    }
}

/// Opens, reads and asks for everything twice (what is found damaged is made again in between), and compares.
pub(crate) fn loses_nothing(disk: &SimDisk, log: &[Logged], what: &str) {
    let mut rig = try_open(disk).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let report = rig.store.start_report();
    assert_eq!((report.damaged.len(), &report.cut), (0, &None), "{what}");
    rig.workers.settle();
    let topic = rig.topic(1).unwrap_or_else(|| panic!("{what}: the topic is there"));
    for queue in 0..QUEUES {
        let mut from = 0;
        loop {
            match rig.read(&topic, queue, from, 1_000) {
                ReadOutcome::Records { next, .. } => from = next.get(),
                ReadOutcome::Rebuilding => rig.workers.settle(),
                ReadOutcome::Empty { .. } => break,
                other => panic!("{what}: {other:?}"),
            }
        }
    }
    for key in 0..5 {
        for _ in 0..10 {
            let found = rig.find(&topic, IndexKind::Key, &format!("k{key}"), Order::NewestFirst);
            if found.complete {
                break;
            }
            assert_eq!(found.reason, Some(IncompleteReason::Rebuilding), "{what}");
            rig.workers.settle();
        }
    }
    agrees(&rig, log, 1, &what);
    send(&mut rig, 0, 1_000, 100);
}

#[test]
fn what_is_derived_is_made_again_however_it_decayed() {
    let written = written();
    let mut cases = 0;
    for dir in ["consumequeue", "index", "state"] {
        for file in files(&written.disk, dir) {
            for how in DECAYS {
                let seeds = if how == "a flip" { 12 } else { 1 };
                for seed in 0..seeds {
                    let disk = written.copy();
                    decay(&disk, &file, how, seed);
                    loses_nothing(&disk, &written.log, &format!("{}: {how}", file.display()));
                    cases += 1;
                }
            }
        }
    }
    for how in DECAYS {
        let disk = written.copy();
        decay(&disk, &path("checkpoint"), how, 3);
        loses_nothing(&disk, &written.log, &format!("checkpoint: {how}"));
    }
    assert!(cases > 200, "{cases}");
}

/// Sets the version of a page file or an enveloped structure, and makes its checksum right again.
fn set_version(disk: &SimDisk, file: &Path, range: std::ops::Range<usize>, is_paged: bool) {
    let mut bytes = disk.durable_bytes(file).unwrap()[range.clone()].to_vec();
    bytes[4] = 9;
    if is_paged {
        let checksum = crc32c_with(0, &[&bytes[..4092]]);
        bytes[4092..].copy_from_slice(&checksum.to_le_bytes());
    } else {
        bytes[16..20].fill(0);
        let checksum = crc32c_with(u32::MAX, &[&bytes]);
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
    }
    disk.overwrite(file, range.start as u64, &bytes).unwrap();
}

#[test]
fn derived_files_of_an_unknown_version_are_made_again() {
    let written = written();
    let disk = written.copy();
    for file in files(&disk, "consumequeue").into_iter().chain(files(&disk, "index")) {
        set_version(&disk, &file, 0..4096, true);
    }
    for file in files(&disk, "state") {
        let len = disk.durable_bytes(&file).unwrap().len();
        set_version(&disk, &file, 0..len, false);
    }
    let sealed = files(&disk, "consumequeue").len();
    for slot in [0..4096, 4096..8192] {
        set_version(&disk, &path("checkpoint"), slot, false);
    }
    let rig = try_open(&disk).unwrap();
    let StartReport { rebuilding, remarks, clean, .. } = rig.store.start_report().clone();
    assert!(rebuilding + 3 >= sealed && rebuilding > 1, "{rebuilding} of {sealed}");
    assert!(!clean);
    assert!(remarks.iter().any(|remark| remark.contains("version 9")), "{remarks:?}");
    rig.kill();
    loses_nothing(&disk, &written.log_now(&disk), "unknown versions");
}

impl Written {
    /// The log of a disk on which starts added their records.
    fn log_now(&self, disk: &SimDisk) -> Vec<Logged> {
        walk(disk, &"log")
    }
}

#[test]
fn one_copy_of_the_identity_is_enough() {
    let written = written();
    let names = ["identity", "identity.copy"].map(path);
    for file in &names {
        for (how, seed) in DECAYS.iter().flat_map(|how| (0..4).map(move |seed| (how, seed))) {
            let disk = written.copy();
            decay(&disk, file, how, seed);
            let rig = try_open(&disk).unwrap();
            let remarks = rig.store.start_report().remarks.join("\n");
            assert!(remarks.contains("identity was missing or damaged"), "{how}: {remarks}");
            rig.kill();
            let [one, other] = names.each_ref().map(|file| disk.durable_bytes(file).unwrap());
            assert_eq!(one, other, "{how}: the copy is restored");
            loses_nothing(&disk, &walk(&disk, how), how);
        }
    }
    let disk = written.copy();
    names.iter().for_each(|file| disk.remove(file).unwrap());
    match refusal(&disk) {
        OpenError::Identity { path } => assert_eq!(path, names[0]),
        other => panic!("{other:?}"),
    }
    assert_eq!(files(&disk, "commitlog").len(), files(&written.disk, "commitlog").len());
}

#[test]
fn the_header_page_of_a_segment_is_redundant() {
    let written = written();
    for file in files(&written.disk, "commitlog") {
        for (position, xor) in [(0, 1), (30, 0x80), (45, 4), (55, 1), (57, 2), (4_095, 1)] {
            let disk = written.copy();
            disk.corrupt(&file, position, xor).unwrap();
            let rig = try_open(&disk).unwrap();
            let remarks = rig.store.start_report().remarks.join("\n");
            assert!(remarks.contains("header page of"), "{remarks}");
            drop(rig);
        }
        for disk in [written.copy(), written.bare()] {
            disk.overwrite(&file, 0, &[0; PAGE_LEN]).unwrap();
            let mut rig = try_open(&disk).unwrap();
            rig.workers.settle();
            agrees(&rig, &written.log, 3, &file.display());
        }
    }
}

/// The segment file that holds `at`, and where in it.
pub(crate) fn place(disk: &SimDisk, at: PhysicalOffset) -> (PathBuf, u64) {
    let file =
        files(disk, "commitlog").into_iter().rev().find(|file| base(file) <= at.get()).unwrap();
    let position = at.get() - base(&file);
    (file, position)
}

/// What can be read of a queue: batches by offset, and the offsets that answer with damage.
pub(crate) fn readable(
    rig: &mut Rig,
    queue: u32,
) -> (Vec<(u64, bytes::Bytes)>, BTreeSet<u64>, u64) {
    let topic = rig.topic(1).unwrap();
    let (mut found, mut damaged, mut from) = (Vec::new(), BTreeSet::new(), 0);
    loop {
        match rig.read(&topic, queue, from, 1_000) {
            ReadOutcome::Records { records, next, .. } => {
                found.extend(records.into_iter().map(|r| (r.first_queue_offset.get(), r.batch)));
                from = next.get();
            }
            ReadOutcome::Damaged { at, next, .. } => {
                assert!(at.get() == from && next > at);
                damaged.extend(at.get()..next.get());
                from = next.get();
            }
            ReadOutcome::Rebuilding => rig.workers.settle(),
            ReadOutcome::Empty { range, .. } => return (found, damaged, range.max.get()),
            other => panic!("{other:?}"),
        }
    }
}

/// Every record but those at `lost` is served, those are told as damaged, queries say that they miss something, and the
/// store goes on.
fn loses_only(written: &Written, disk: &SimDisk, lost: &[PhysicalOffset], what: &str) {
    let mut rig = try_open(disk).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(rig.store.start_report().cut, None, "{what}: nothing is cut");
    for round in 0..2 {
        rig.workers.settle();
        for queue in 0..QUEUES {
            let of_queue =
                || written.messages().filter(move |record| record.header.queue.get() == queue);
            let (found, damaged, max) = readable(&mut rig, queue);
            let sound: Vec<_> = of_queue()
                .filter(|record| !lost.contains(&record.header.physical_offset))
                .map(|record| (record.header.queue_offset.get(), record.payload.clone()))
                .collect();
            let gone: BTreeSet<u64> = of_queue()
                .filter(|record| lost.contains(&record.header.physical_offset))
                .map(|record| record.header.queue_offset.get())
                // A gap at the end of a queue shows with the next entry.
                .filter(|offset| round == 1 || *offset < max)
                .collect();
            assert_eq!(found[..sound.len()], sound, "{what}, round {round}: all others");
            assert_eq!(damaged, gone, "{what}, round {round}: those alone");
        }
        if round == 0 {
            // Enough to roll and to seal what is damaged.
            for n in 0..30 {
                send(&mut rig, n as u32 % QUEUES, 1_000 + n, 1_500);
                rig.workers.settle();
            }
            assert!(rig.store.status().unsealed <= 3, "{what}: sealing goes on");
            rig.workers.settle();
            rig.kill();
            rig = try_open(disk).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        }
    }
}

#[test]
fn a_damaged_record_is_lost_alone_and_says_so() {
    let written = written();
    let total = written.messages().count();
    let mut dice = Dice(11);
    for (index, record) in written.messages().enumerate() {
        let header = &record.header;
        let is_last_of_queue = index + QUEUES as usize >= total;
        let body = HEADER_LEN as u64 + dice.below(header.payload_len.into());
        for (part, position) in [("header", dice.below(HEADER_LEN as u64)), ("body", body)] {
            for (start, disk) in [("snapshot", written.copy()), ("walk", written.bare())] {
                // Nothing but the record itself tells that this offset was given.
                if is_last_of_queue && part == "header" && start == "walk" {
                    continue;
                }
                // Without a checkpoint nothing vouches for the last burst.
                if index + 12 >= total && start == "walk" {
                    continue;
                }
                let (file, at) = place(&disk, header.physical_offset);
                disk.corrupt(&file, at + position, 1 << dice.below(8)).unwrap();
                let what = format!("{part} of record {index}, {start}");
                loses_only(&written, &disk, &[header.physical_offset], &what);
            }
        }
    }
}

#[test]
fn queries_that_cross_damage_say_that_they_are_incomplete() {
    let written = written();
    for (index, record) in written.messages().enumerate().step_by(9) {
        for position in [40, HEADER_LEN as u64 + 300] {
            let disk = written.copy();
            let (file, at) = place(&disk, record.header.physical_offset);
            disk.corrupt(&file, at + position, 2).unwrap();
            let mut rig = try_open(&disk).unwrap();
            rig.workers.settle();
            let topic = rig.topic(1).unwrap();
            let key = format!("k{}", index % 5);
            let found = rig.find(&topic, IndexKind::Key, &key, Order::OldestFirst);
            assert!(!found.complete, "record {index}, byte {position}");
            assert_eq!(found.reason, Some(IncompleteReason::Damaged));
            assert_eq!(found.messages.len(), 13, "all but one");
            let id = format!("i{index}");
            let found = rig.find(&topic, IndexKind::Id, &id, Order::OldestFirst);
            assert_eq!((found.messages.len(), found.complete), (0, false));
        }
    }
}

/// The file that was made again lacked the keys of the damaged record, and queries took it for whole.
#[test]
fn an_index_made_again_over_damage_says_at_every_later_start_that_it_lacks_something() {
    let written = written();
    let sealed = files(&written.disk, "index").len();
    let (index, record) = written.messages().enumerate().nth(20).unwrap();
    assert!(record.header.end().get() < base(&files(&written.disk, "commitlog")[sealed - 1]));
    for position in [40, HEADER_LEN as u64 + 300] {
        let disk = written.copy();
        let (file, at) = place(&disk, record.header.physical_offset);
        disk.corrupt(&file, at + position, 2).unwrap();
        for part in ["index", "consumequeue"] {
            files(&disk, part).iter().for_each(|file| disk.remove(file).unwrap());
        }
        for start in 0..3 {
            let mut rig = try_open(&disk).unwrap();
            rig.workers.settle();
            let what = format!("byte {position}, start {start}");
            assert_eq!(rig.store.start_report().rebuilding > 0, start == 0, "{what}");
            let topic = rig.topic(1).unwrap();
            let key = format!("k{}", index % 5);
            let found = rig.find(&topic, IndexKind::Key, &key, Order::OldestFirst);
            let why = (found.complete, found.reason);
            assert_eq!(why, (false, Some(IncompleteReason::Damaged)), "{what}");
            assert_eq!(found.messages.len(), 13, "{what}: all but one");
            rig.close();
        }
    }
}

#[test]
fn queues_made_again_over_damage_tell_that_record_alone_at_every_later_start() {
    let written = written();
    let sealed = files(&written.disk, "index").len();
    let end = base(&files(&written.disk, "commitlog")[sealed - 1]);
    let in_files = written.messages().filter(|record| record.header.end().get() <= end);
    for (index, record) in in_files.enumerate() {
        for position in [40, HEADER_LEN as u64 + 300] {
            let disk = written.copy();
            let (file, at) = place(&disk, record.header.physical_offset);
            disk.corrupt(&file, at + position, 2).unwrap();
            for part in ["index", "consumequeue"] {
                files(&disk, part).iter().for_each(|file| disk.remove(file).unwrap());
            }
            for start in 0..2 {
                let mut rig = try_open(&disk).unwrap();
                rig.workers.settle();
                let what = format!("record {index}, byte {position}, start {start}");
                for queue in 0..QUEUES {
                    let (found, damaged, _) = readable(&mut rig, queue);
                    let of_queue = written.messages().filter(|r| r.header.queue.get() == queue);
                    let (gone, sound): (Vec<_>, Vec<_>) = of_queue
                        .partition(|r| r.header.physical_offset == record.header.physical_offset);
                    let gone: BTreeSet<_> =
                        gone.iter().map(|r| r.header.queue_offset.get()).collect();
                    assert_eq!(damaged, gone, "{what}: that one alone");
                    let offset = |r: &&Logged| r.header.queue_offset.get();
                    let sound: Vec<_> =
                        sound.iter().map(|r| (offset(r), r.payload.clone())).collect();
                    assert_eq!(found, sound, "{what}: all others");
                }
                rig.close();
            }
        }
    }
}

/// What the disk did not give when the files were made is not in them, also when the disk is well again.
#[test]
fn files_made_of_a_segment_that_the_disk_gives_in_part_say_that_they_lack_something() {
    let written = written();
    let segment = files(&written.disk, "commitlog").swap_remove(2);
    let range = base(&segment)..base(&segment) + tiny().segment_size;
    let of_it = |record: &&Logged| range.contains(&record.header.physical_offset.get());
    let lost: Vec<_> = written.messages().filter(of_it).collect();
    let disk = written.copy();
    for part in ["index", "consumequeue"] {
        disk.remove(&files(&disk, part)[2]).unwrap();
    }
    let mut rig = try_open(&disk).unwrap();
    let name = segment.to_str().unwrap().to_owned();
    disk.fail(FaultRule {
        operation: Operation::Read,
        path_contains: Some(name),
        nth: 1,
        times: Times::Always,
        error: Fault::Eio,
    });
    let find = |rig: &Rig, key: usize| {
        let topic = rig.topic(1).unwrap();
        rig.try_find(&topic, IndexKind::Key, &format!("k{key}"), Order::OldestFirst).unwrap()
    };
    // It may pass: the files are not made at once.
    let mut attempts = 0;
    while find(&rig, 0).reason == Some(IncompleteReason::Rebuilding) {
        rig.workers.settle();
        attempts += 1;
        assert!(attempts < 100, "it is not tried for ever");
    }
    assert!(attempts > 10, "{attempts}");
    for start in 0..3 {
        for key in 0..5 {
            let found = find(&rig, key);
            let why = (found.complete, found.reason);
            assert_eq!(why, (false, Some(IncompleteReason::Damaged)), "start {start}, key {key}");
            let all = written.messages().enumerate();
            let sound = all.filter(|(n, record)| n % 5 == key && !of_it(record)).count();
            assert_eq!(found.messages.len(), sound, "start {start}, key {key}");
        }
        for queue in 0..QUEUES {
            let gone = lost.iter().map(|record| &record.header);
            let gone = gone.filter(|header| header.queue.get() == queue);
            let gone: BTreeSet<_> = gone.map(|header| header.queue_offset.get()).collect();
            assert_eq!(readable(&mut rig, queue).1, gone, "start {start}");
        }
        disk.clear_faults();
        rig.close();
        rig = try_open(&disk).unwrap();
        rig.workers.settle();
    }
}

#[test]
fn a_page_of_zeros_in_the_middle_of_the_log_costs_the_records_in_it() {
    let written = written();
    let bases: Vec<_> = files(&written.disk, "commitlog");
    for file in &bases[..bases.len() - 3] {
        for page in 1..4 {
            let start = base(file) + page * 4_096;
            let lost: Vec<_> = written
                .messages()
                .map(|record| &record.header)
                .filter(|header| {
                    header.physical_offset.get() < start + 4_096 && header.end().get() > start
                })
                .map(|header| header.physical_offset)
                .collect();
            let disk = written.copy();
            disk.overwrite(file, page * 4_096, &[0; 4_096]).unwrap();
            loses_only(&written, &disk, &lost, &format!("page {page} of {}", file.display()));
        }
    }
}

/// A sealed mark or a walk that looks for the segment at an offset stands still where the segment is gone.
#[test]
fn a_missing_segment_is_damage_and_the_rest_is_served() {
    let written = written();
    let segments = files(&written.disk, "commitlog");
    let last = segments.iter().rposition(|file| {
        written.messages().any(|record| record.header.physical_offset.get() >= base(file))
    });
    for (index, file) in segments.iter().enumerate().take(last.unwrap()).skip(1) {
        for (start, disk) in [("snapshot", written.copy()), ("walk", written.bare())] {
            for how in ["gone", "empty", "short"] {
                let disk = disk.crash_image(&CrashChoice::EVERYTHING);
                let from = match how {
                    "gone" => {
                        disk.remove(file).unwrap();
                        0
                    }
                    "empty" => {
                        disk.truncate(file, 100).unwrap();
                        0
                    }
                    _ => {
                        disk.truncate(file, 9_001).unwrap();
                        9_000
                    }
                };
                let range = base(file) + from..base(file) + tiny().segment_size;
                let what = format!("segment {index} {how}, {start}");
                let rig = try_open(&disk).unwrap();
                let damaged = &rig.store.start_report().damaged;
                assert!(
                    damaged.iter().any(|damaged| damaged.end.get() == range.end),
                    "{what}: {damaged:?}"
                );
                rig.kill();
                let lost: Vec<_> = written
                    .messages()
                    .map(|record| &record.header)
                    .filter(|header| {
                        header.end().get() > range.start && header.physical_offset.get() < range.end
                    })
                    .map(|header| header.physical_offset)
                    .collect();
                loses_only(&written, &disk, &lost, &what);
            }
        }
    }
}

#[test]
fn the_end_of_the_log_that_is_gone_is_damage_and_its_offsets_are_not_given_again() {
    let written = written();
    let end = written.log.last().unwrap().header.end();
    let (last, _) = place(&written.disk, written.log.last().unwrap().header.physical_offset);
    let disk = written.copy();
    for file in files(&disk, "commitlog").iter().filter(|file| base(file) >= base(&last)) {
        disk.remove(file).unwrap();
    }
    let mut rig = try_open(&disk).unwrap();
    let report = rig.store.start_report().clone();
    let gone = PhysicalOffset::new(base(&last))..end;
    assert_eq!(report.damaged, std::slice::from_ref(&gone));
    let lost: Vec<_> = written
        .messages()
        .filter(|record| gone.contains(&record.header.physical_offset))
        .map(|record| record.header.physical_offset)
        .collect();
    let count = written.messages().filter(|record| record.header.queue.get() == 0).count() as u64;
    let placed = rig.send(1, 0, &batch(500, 1, 100)).unwrap();
    assert!(placed.offset >= end, "{placed:?}");
    assert_eq!(placed.queue_offset.get(), count, "the snapshot knows the next offset");
    rig.workers.settle();
    rig.kill();
    assert!(!lost.is_empty());
    loses_only(&written, &disk, &lost, "the end is gone");
}

#[test]
fn what_another_build_wrote_is_refused_and_left_as_it_is() {
    let written = written();
    let identity =
        Identity::decode(&written.disk.durable_bytes(&path("identity")).unwrap()).unwrap();
    let active = files(&written.disk, "commitlog")
        .into_iter()
        .rev()
        .find(|file| {
            written.log.iter().any(|record| record.header.physical_offset.get() >= base(file))
        })
        .unwrap();
    let salt = identity.salt(PhysicalOffset::new(base(&active)));
    let record = written
        .log
        .iter()
        .find(|record| record.header.physical_offset.get() >= base(&active))
        .unwrap();

    // A segment of a newer format.
    let disk = written.copy();
    set_version(&disk, &active, 0..PAGE_LEN, false);
    match refusal(&disk) {
        OpenError::Newer { path, found, supported } => {
            assert_eq!((path, found, supported), (active.clone(), 9, 1));
        }
        other => panic!("{other:?}"),
    }

    // A segment of another store.
    let disk = written.copy();
    let header = SegmentHeader::decode(&disk.durable_bytes(&active).unwrap()).unwrap();
    let foreign = SegmentHeader { store_id: [7; 16], ..header };
    disk.overwrite(&active, 0, &foreign.encode()).unwrap();
    match refusal(&disk) {
        OpenError::Foreign { path } => assert_eq!(path, active),
        other => panic!("{other:?}"),
    }

    // A newer identity.
    let disk = written.copy();
    let len = disk.durable_bytes(&path("identity")).unwrap().len();
    set_version(&disk, &path("identity"), 0..len, false);
    match refusal(&disk) {
        OpenError::Newer { found, .. } => assert_eq!(found, 9),
        other => panic!("{other:?}"),
    }

    // Records in their own place with a right checksum, of another version, kind and flag.
    for (what, at, value) in [("version", 4, 2), ("kind", 5, 9), ("flags", 7, 1), ("zeros", 120, 1)]
    {
        let disk = written.copy();
        let (file, position) = place(&disk, record.header.physical_offset);
        let mut header = record.header.encode(salt);
        header[at] = value;
        header[12..16].fill(0);
        let checksum = crc32c_with(salt, &[&header]);
        header[12..16].copy_from_slice(&checksum.to_le_bytes());
        disk.overwrite(&file, position, &header).unwrap();
        let before = disk.durable_bytes(&file).unwrap();
        match refusal(&disk) {
            OpenError::NotUnderstood { at, .. } => {
                assert_eq!(at, record.header.physical_offset, "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
        assert!(disk.durable_bytes(&file).unwrap() == before, "{what}: nothing is cut");
    }

    // An epoch record of a newer store format, and a transition that nobody here knows.
    let newer = |disk: &SimDisk, header: &RecordHeader, payload: &[u8]| {
        let payload_crc = crc32c_with(u32::MAX, &[payload]);
        let salt = identity.salt(PhysicalOffset::new(base(&place(disk, header.physical_offset).0)));
        let header = RecordHeader { payload_crc, ..*header }.encode(salt);
        let (file, position) = place(disk, PhysicalOffset::new(record_at(&header)));
        disk.overwrite(&file, position, &[&header[..], payload].concat()).unwrap();
    };
    for kind in [RecordKind::Epoch, RecordKind::State] {
        let disk = written.bare();
        let old = written.log.iter().find(|record| record.header.kind == kind).unwrap();
        let mut payload = old.payload.to_vec();
        match kind {
            // epoch u64, store clock u64, then tag 3 of four bytes; each with four bytes of tag and length.
            RecordKind::Epoch => payload[28] = 2,
            _ => payload[0] = 99,
        }
        newer(&disk, &old.header, &payload);
        match refusal(&disk) {
            OpenError::NotUnderstood { at, source } => {
                assert_eq!(at, old.header.physical_offset, "{source}");
            }
            other => panic!("{kind:?}: {other:?}"),
        }
    }
}

/// The physical offset in an encoded header.
fn record_at(header: &[u8; HEADER_LEN]) -> u64 {
    u64::from_le_bytes(header[32..40].try_into().unwrap())
}

#[test]
fn a_derived_file_that_cannot_be_read_does_not_keep_the_store_from_starting() {
    let written = written();
    for part in ["consumequeue/", "index/", "state/"] {
        let disk = written.copy();
        disk.fail(FaultRule {
            operation: Operation::Read,
            path_contains: Some(part.to_owned()),
            nth: 1,
            times: Times::Always,
            error: Fault::Eio,
        });
        let rig = try_open(&disk).unwrap_or_else(|error| panic!("{part}: {error:?}"));
        assert_eq!(rig.store.start_report().damaged, [], "{part}");
        rig.kill();
        disk.clear_faults();
        loses_nothing(&disk, &walk(&disk, &part), part);
    }
}

#[test]
fn what_another_store_left_behind_is_not_taken_into_a_new_one() {
    let written = written();
    let disk = written.copy();
    for file in files(&disk, "commitlog") {
        disk.remove(&file).unwrap();
    }
    for name in ["identity", "identity.copy"] {
        disk.remove(&path(name)).unwrap();
    }
    let mut rig = try_open(&disk).unwrap();
    let report = rig.store.start_report().clone();
    assert!(report.created, "{report}");
    assert_eq!((report.damaged, report.replayed_records, rig.store.epoch().get()), (vec![], 0, 1));
    assert!(rig.topic(1).is_none());
    rig.create(1, QUEUES, FlushMode::Sync);
    send(&mut rig, 0, 0, 100);
    rig.workers.settle();
    agrees(&rig, &walk(&disk, &"new"), 1, &"new");
}

/// The damage began below what the checkpoint vouched for and ended above it; the log was cut in between, with all
/// that later records proved to have been durable.
#[test]
fn damage_across_the_end_of_what_the_checkpoint_vouches_for_costs_nothing_behind_it() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    rig.workers.settle();
    rig.close();
    let mut rig = Rig::open(&disk);
    let placed: Vec<_> = (0..9)
        .map(|n| {
            let placed = rig.send(1, 0, &batch(n, 1, 1_000)).unwrap();
            rig.workers.flush.flush_all();
            placed
        })
        .collect();
    rig.kill();
    let page = 4_096..8_192;
    disk.overwrite(&files(&disk, "commitlog")[0], page.start, &[0; 4_096]).unwrap();
    let mut rig = Rig::open(&disk);
    let first = placed.iter().position(|placed| placed.offset.get() >= page.end).unwrap();
    let report = rig.store.start_report().clone();
    assert_eq!(report.damaged, [PhysicalOffset::new(page.start)..placed[first].offset]);
    assert_eq!(report.cut, None);
    rig.workers.settle();
    let (found, damaged, max) = readable(&mut rig, 0);
    let sound: Vec<_> = (first as u64..9).map(|n| (n, batch(n, 1, 1_000))).collect();
    assert_eq!((found, max), (sound, 9));
    assert_eq!(damaged, (0..first as u64).collect());
}
