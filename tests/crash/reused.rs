//! The file of a deleted segment becomes another one, and what it held stands behind the end of the log.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstem::file::Operation;
use mainstem::format::identity::Identity;
use mainstem::format::record::{HEADER_LEN, RecordHeader, RecordKind, record_len};
use mainstem::format::segment_header::PAGE_LEN;
use mainstem::format::state_record::Transition;
use mainstem::message::{FlushMode, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};
use mainstem::store::offline::StoppedStore;
use mainstem::store::{AppendError, Dump, Dumped, Placed, ReadOutcome, StoreConfig};
use mainstem::testing::{
    CrashChoice, Fault, FaultRule, NameChoice, SimDisk, Times, Torn, WriteChoice,
};

use crate::oracle::{self, Logged};
use crate::power_cut::{EVERY, Effort, cut_everywhere};
use crate::rig::{DATA, Dice, Rig, batch, files, path, tiny};
use crate::script::{self, Run, Step};

const SEGMENT: u64 = 16 << 10;
const LEN: usize = 700;

/// A random script in which nothing is kept for long.
pub(crate) fn random(seed: u64, len: usize) -> Vec<Step> {
    let mut dice = Dice(seed ^ 0x5EED);
    let mut steps = Vec::new();
    for step in script::random(seed, len) {
        steps.push(step);
        if dice.one_in(9) {
            steps.extend([1, 2].map(|topic| Step::Purge { topic, queue: None }));
            match dice.below(3) {
                0 => steps.extend([Step::Dispatch, Step::Flush, Step::Seal, Step::Clean(5)]),
                _ => steps.push(Step::Settle),
            }
        }
    }
    steps
}

/// How often the file of a segment was kept, and how often one became another segment.
fn uses(disk: &SimDisk) -> (usize, usize) {
    let (mut given, mut taken) = (0, 0);
    let mut spares = HashSet::new();
    for (call, path) in disk.journal() {
        if call != Operation::Rename {
            continue;
        }
        if path.extension() == Some("log".as_ref()) {
            given += 1;
            spares.insert(path);
        } else if spares.remove(&path.with_extension("")) {
            taken += 1;
        }
    }
    (given, taken)
}

/// A store whose active segment was others before, with a topic of one queue.
fn reused() -> (SimDisk, Rig) {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    for n in 0.. {
        match rig.send(1, 0, &batch(n, 1, LEN)) {
            Ok(_) => {}
            Err(AppendError::NotReady) => rig.workers.settle(),
            Err(error) => panic!("{error}"),
        }
        if n % 10 == 9 {
            purge(&mut rig);
        }
        let tail = rig.store.watermarks().appended;
        let used = tail.get() % SEGMENT;
        let has_room = (5_000..7_500).contains(&used);
        if has_room && uses(&disk).1 > 5 && is_old(&active(&disk), used + 2 * PAGE_LEN as u64) {
            break;
        }
    }
    rig.workers.settle();
    (disk, rig)
}

fn purge(rig: &mut Rig) {
    let (below, before) = (rig.store.watermarks().appended, Timestamp::ZERO);
    let (id, purged) = (TopicId::new(1), below);
    let expired = Transition::TopicExpired { id, below, before, queues: vec![], purged };
    rig.state(&expired).unwrap();
    rig.store.clean_soon();
    rig.workers.settle();
}

/// The bytes of the segment with the end of the log.
fn active(disk: &SimDisk) -> Vec<u8> {
    let identity = Identity::decode(&disk.durable_bytes(&path("identity")).unwrap()).unwrap();
    let has_records = |bytes: &Vec<u8>, base: u64| {
        let at = PhysicalOffset::new(base + PAGE_LEN as u64);
        let salt = identity.salt(PhysicalOffset::new(base));
        RecordHeader::decode(&bytes[PAGE_LEN..], at, salt).is_ok()
    };
    let files = files(disk, "commitlog").into_iter().rev();
    let mut found = files.map(|file| (crate::rig::base(&file), disk.durable_bytes(&file).unwrap()));
    found.find(|(base, bytes)| has_records(bytes, *base)).unwrap().1
}

fn active_file(tail: PhysicalOffset) -> (std::path::PathBuf, u64) {
    let base = tail.get() / SEGMENT * SEGMENT;
    (path("commitlog").join(format!("{base:020}.log")), base)
}

fn is_old(bytes: &[u8], from: u64) -> bool {
    bytes[from as usize..].iter().any(|byte| *byte != 0)
}

fn opened(disk: &SimDisk) -> (Rig, Vec<Logged>) {
    let mut rig = Rig::open(disk);
    rig.workers.settle();
    (rig, oracle::walk(disk, &"opened"))
}

fn messages(log: &[Logged]) -> Vec<PhysicalOffset> {
    let is_message = |record: &&Logged| record.header.kind == RecordKind::Message;
    log.iter().filter(is_message).map(|record| record.header.physical_offset).collect()
}

/// Equal sizes, so that headers stand where headers stood, and all is gone as soon as it is sealed.
#[test]
fn files_that_are_used_again_and_again_keep_what_was_acknowledged_wherever_the_power_goes() {
    let mut steps = vec![
        Step::Create { topic: 1, queues: 1, flush: FlushMode::Sync },
        Step::Create { topic: 2, queues: 1, flush: FlushMode::Async },
    ];
    let send = |topic| Step::Send { topic, queue: 0, count: 1, len: LEN };
    for round in 0..12 {
        for n in 0..6 {
            steps.extend([send(1), send(2)]);
            match n {
                1 => steps.extend([Step::Allocate, Step::Dispatch, Step::Flush]),
                3 => steps.extend([Step::Allocate, Step::Seal, Step::Read]),
                _ => {}
            }
        }
        steps.extend([1, 2].map(|topic| Step::Purge { topic, queue: None }));
        steps.extend([Step::Dispatch, Step::Flush, Step::Seal, Step::Clean(4), Step::Dispatch]);
        match round % 4 {
            0 => steps.extend([Step::Flush, Step::Clean(3), Step::Flush, Step::Clean(2)]),
            3 => steps.extend([Step::Settle, Step::CloseAndReopen]),
            _ => steps.push(Step::Settle),
        }
    }
    let mut run = Run::start(SimDisk::new(), &tiny());
    run.run(&steps);
    let (given, taken) = uses(&run.disk);
    assert!(given > 5 && taken > 3, "{given} {taken}");
    assert_eq!(run.disk.rewritten_under_readers(), 0);
    // Many operations, each after all before it: less is tried at each.
    let effort = Effort { random: 4, follow: 40 };
    let tally = cut_everywhere("reused", &tiny(), &steps, effort);
    assert!(tally.operations > 150 && tally.followed > 50, "{tally:?}");
}

#[test]
fn random_scripts_that_keep_little_keep_every_promise_at_every_cut() {
    let mut taken = 0;
    for seed in 0..2 {
        let steps = random(seed, 90);
        let mut run = Run::start(SimDisk::new(), &tiny());
        run.run(&steps);
        assert_eq!(run.disk.rewritten_under_readers(), 0);
        taken += uses(&run.disk).1;
        cut_everywhere(&format!("reused, random {seed}"), &tiny(), &steps, EVERY);
    }
    assert!(taken > 3, "{taken}");
}

/// What was flushed ends in zeros, also where it ends with its page: so nothing is told of as torn.
#[test]
fn the_end_of_the_log_is_found_where_a_record_ends_with_its_page_and_old_bytes_follow() {
    for short_of_it in [0, 8, 120, 128, 136] {
        let (disk, mut rig) = reused();
        let tail = rig.store.watermarks().appended.get();
        let page_end = (tail + 2_000).next_multiple_of(PAGE_LEN as u64) - short_of_it;
        let fits = |len: &usize| tail + record_len(0, batch(0, 1, *len).len()) == page_end;
        let len = (0..8_000).find(fits).unwrap();
        let placed = rig.send(1, 0, &batch(0, 1, len)).unwrap();
        assert_eq!(placed.end.get(), page_end);
        rig.workers.flush.flush_all();
        for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING] {
            let image = disk.crash_image(&choice);
            let (file, base) = active_file(placed.end);
            let bytes = image.durable_bytes(&file).unwrap();
            let at = (placed.end.get() - base) as usize;
            assert_eq!(bytes[at..at + HEADER_LEN], [0; HEADER_LEN]);
            assert!(is_old(&bytes, at as u64), "it held another segment");
            let (rig, log) = opened(&image);
            let report = rig.store.start_report();
            assert_eq!(
                (&report.cut, &report.lost, report.clean),
                (&None, &None, false),
                "{report}"
            );
            assert_eq!(messages(&log).last(), Some(&placed.offset));
        }
    }
}

/// Fills the segment with the end of the log until so many bytes are left. A next one is ready.
fn fill(rig: &Rig, left: u64) -> Placed {
    loop {
        let tail = rig.store.watermarks().appended.get();
        let end = tail.next_multiple_of(SEGMENT) - left;
        let fits = |len: &usize| tail + record_len(0, batch(0, 1, *len).len()) == end;
        // A set is at most a quarter of a segment.
        if let Some(len) = (0..3_000).find(fits) {
            return rig.send(1, 0, &batch(0, 1, len)).unwrap();
        }
        rig.send(1, 0, &batch(0, 1, LEN)).unwrap();
    }
}

/// Without it no record of the start has a place, and no image, behind which alone segments are deleted.
#[test]
fn an_unclean_start_keeps_the_segment_that_is_ready_so_that_a_short_disk_can_end() {
    for left in [0, 8, 64, 128, 200, 1_000, 2_000] {
        for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING] {
            let (disk, mut rig) = reused();
            let placed = fill(&rig, left);
            rig.workers.flush.flush_all();
            rig.kill();
            let image = disk.crash_image(&choice);
            let (active, base) = active_file(placed.offset);
            let (ready, next) = active_file(PhysicalOffset::new(base + SEGMENT));
            assert_eq!(files(&image, "commitlog").last(), Some(&ready));
            assert!(
                is_old(&image.durable_bytes(&ready).unwrap(), 0x3000),
                "it was another segment"
            );
            // Less is free than the reserve: no segment can be made.
            let used: u64 =
                image.paths().iter().map(|p| image.durable_bytes(p).unwrap().len() as u64).sum();
            image.set_capacity(Some(used + (64 << 10)));
            let mut rig = Rig::try_open(Arc::new(image.clone()), &tiny(), 1_000_000)
                .unwrap_or_else(|error| panic!("{left} left: {error}"));
            let report = rig.store.start_report().clone();
            assert_eq!((&report.cut, &report.lost, &report.remarks[..]), (&None, &None, &[][..]));
            assert!(!image.journal().contains(&(Operation::Unlink, ready)), "{left} left");
            rig.workers.settle();
            assert!(rig.store.status().disk_is_short);
            // What is written for it takes the log into the next segment.
            let mut purges = 0;
            while files(&image, "commitlog").contains(&active) {
                purge(&mut rig);
                purges += 1;
                assert!(purges < 10, "{left} left: nothing is deleted");
            }
            // Its records stand where the others stood.
            assert!(rig.store.watermarks().appended.get() > next, "{left} left");
            let log = oracle::walk(&image, &format!("{left} left"));
            assert!(log.iter().all(|record| record.header.physical_offset.get() > next));
        }
    }
}

/// A header of now, with the body of another segment behind it.
#[test]
fn a_record_whose_body_is_of_an_earlier_segment_is_cut_off_whole() {
    for keep in [HEADER_LEN, HEADER_LEN + 8, 400, 800] {
        let (disk, mut rig) = reused();
        rig.workers.flush.flush_all();
        let before = rig.store.watermarks().appended;
        let placed = rig.send(1, 0, &batch(0, 1, LEN)).unwrap();
        let torn = Some(Torn { version: 0, keep });
        let choice = CrashChoice { names: NameChoice::All, writes: WriteChoice::None, torn };
        let image = disk.crash_image(&choice);
        let (file, base) = active_file(placed.offset);
        let bytes = image.durable_bytes(&file).unwrap();
        assert!(is_old(&bytes, placed.end.get() - base));
        let (rig, log) = opened(&image);
        let report = rig.store.start_report();
        let cut = report.cut.as_ref().unwrap();
        assert_eq!((cut.at, placed.offset), (before, before));
        // What the earlier segment left behind it is no part of it.
        assert!(cut.len <= placed.end.since(placed.offset), "{report}");
        assert_eq!(report.lost.as_ref().unwrap().messages, 1);
        assert!(!messages(&log).contains(&placed.offset));
        assert_eq!(report.damaged, []);
    }
}

/// The header decays, or never lands, and of the page that it is in more than that is there.
#[test]
fn a_last_record_without_its_header_is_told_of_as_torn_and_not_taken_for_the_end() {
    for zeros in [HEADER_LEN, 512] {
        let (disk, mut rig) = reused();
        rig.workers.flush.flush_all();
        let placed = rig.send(1, 0, &batch(0, 1, LEN)).unwrap();
        let image = disk.crash_image(&CrashChoice::EVERYTHING);
        let (file, base) = active_file(placed.offset);
        image.overwrite(&file, placed.offset.get() - base, &vec![0; zeros]).unwrap();
        let (rig, log) = opened(&image);
        let report = rig.store.start_report();
        let cut = report.cut.as_ref().unwrap_or_else(|| panic!("{zeros}: {report}"));
        assert_eq!(cut.at, placed.offset);
        assert!(!messages(&log).contains(&placed.offset));
        assert_eq!(report.damaged, []);
        rig.kill();
        assert_eq!(opened(&image).0.store.start_report().cut, None);
    }
}

/// The last durable record decays; what the file held before is no torn tail.
#[test]
fn a_last_durable_record_that_is_damaged_is_damage_alone() {
    let (disk, mut rig) = reused();
    let placed = rig.send(1, 0, &batch(0, 1, LEN)).unwrap();
    rig.workers.settle();
    rig.close();
    let (file, base) = active_file(placed.offset);
    let end = placed.end.get();
    assert!(is_old(&disk.durable_bytes(&file).unwrap(), end - base));
    for zeros in [1, HEADER_LEN] {
        let image = disk.crash_image(&CrashChoice::NOTHING);
        image.overwrite(&file, placed.offset.get() - base, &vec![0; zeros]).unwrap();
        let rig = Rig::open(&image);
        let report = rig.store.start_report();
        assert_eq!((&report.cut, &report.lost), (&None, &None), "{report}");
        assert_eq!(report.damaged, [placed.offset..placed.end], "{report}");
    }
}

/// In a segment that the log has left, nothing is free: what looks so held a record.
#[test]
fn a_last_record_of_a_segment_that_is_full_is_shown_as_a_gap_where_it_decays() {
    let (disk, mut rig) = reused();
    let placed = fill(&rig, 0);
    rig.workers.settle();
    let next = rig.send(1, 0, &batch(0, 1, LEN)).unwrap();
    rig.workers.settle();
    rig.close();
    let dump = |disk: &SimDisk| -> Vec<Dumped> {
        let store = StoppedStore::open(Arc::new(disk.clone()), Path::new(DATA)).unwrap();
        // Not from the record on: what a dump begins with may be the middle of one.
        Dump::of(store, PhysicalOffset::ZERO..PhysicalOffset::new(u64::MAX))
            .map(Result::unwrap)
            .collect()
    };
    let is_record = |dumped: &Dumped| matches!(dumped, Dumped::Record { .. });
    let whole = dump(&disk);
    assert!(whole.iter().all(is_record), "the unused end is not shown: {whole:?}");
    let (file, base) = active_file(placed.offset);
    let len = placed.end.since(placed.offset) as usize;
    disk.overwrite(&file, placed.offset.get() - base, &vec![0; len]).unwrap();
    let shown = dump(&disk);
    assert_eq!(shown.len(), whole.len());
    let gap = shown.iter().position(|dumped| !is_record(dumped)).unwrap();
    let Dumped::Gap { range, .. } = &shown[gap] else { panic!("{shown:?}") };
    assert_eq!(*range, placed.offset..placed.end);
    let is_next = |dumped: &Dumped| match dumped {
        Dumped::Record { header, .. } => header.physical_offset == next.offset,
        Dumped::Gap { .. } => false,
    };
    assert!(shown[gap + 1..].iter().all(is_record) && shown[gap + 1..].iter().any(is_next));
}

/// Whatever call fails on a file's way from one segment to the next: sends go on, no file is left beside the segments
/// and the spares that are known, and a start after it finds all that was acknowledged.
#[test]
fn a_failed_call_on_the_way_from_one_segment_to_the_next_costs_that_file_alone() {
    let calls = [
        (Operation::Len, ".log"),
        (Operation::Rename, ".log.tmp"),
        (Operation::Rename, ".log"),
        (Operation::Allocate, ".log.tmp"),
        (Operation::Write, ".log.tmp"),
        (Operation::Sync, ".log.tmp"),
        (Operation::Open, ".log.tmp"),
    ];
    for (operation, path) in calls {
        for nth in 1..4 {
            let (disk, mut rig) = reused();
            disk.fail(FaultRule {
                operation,
                path_contains: Some(path.to_owned()),
                nth,
                times: Times::Once,
                error: Fault::Eio,
            });
            let what = format!("{operation:?} {nth} of {path}");
            let mut last = None;
            for n in 0..150 {
                match rig.send(1, 0, &batch(n, 1, LEN)) {
                    Ok(placed) => last = Some(placed),
                    Err(AppendError::NotReady) => {
                        rig.clock.advance(Duration::from_secs(1));
                        rig.workers.settle();
                    }
                    Err(error) => panic!("{what}: {error}"),
                }
                if n % 10 == 9 {
                    purge(&mut rig);
                }
            }
            rig.workers.flush.flush_all();
            let temporaries = disk
                .paths()
                .iter()
                .filter(|path| path.to_string_lossy().ends_with(".log.tmp"))
                .count();
            assert_eq!(temporaries, rig.store.status().spare_segments, "{what}");
            rig.kill();
            let (rig, log) = opened(&disk.crash_image(&CrashChoice::NOTHING));
            let report = rig.store.start_report();
            assert_eq!((&report.cut, &report.lost, &report.damaged[..]), (&None, &None, &[][..]));
            assert_eq!(messages(&log).last().copied(), last.map(|placed| placed.offset), "{what}");
        }
    }
}

/// As above, and nothing of it lands: not the zeros behind it either. What stands there then lines up, header by
/// header, with what was never flushed.
#[test]
fn records_of_an_earlier_segment_that_line_up_with_the_end_are_none() {
    #[derive(Clone, Copy, Debug)]
    enum At {
        /// At the end, as if the zeros behind it had not landed.
        End,
        /// Behind them.
        Mark,
        /// A filler at the end.
        Filler,
    }
    for (what, is_same_salt) in
        [At::End, At::Mark, At::Filler].map(|at| [(at, false), (at, true)]).concat()
    {
        let (disk, mut rig) = reused();
        rig.workers.flush.flush_all();
        let tail = rig.store.watermarks().appended;
        let image = disk.crash_image(&CrashChoice::NOTHING);
        let identity = Identity::decode(&image.durable_bytes(&path("identity")).unwrap()).unwrap();
        let before = oracle::walk(&image, &what_of(what as u8));
        let sample = before.iter().rfind(|r| r.header.kind == RecordKind::Message).unwrap();
        let (file, base) = active_file(tail);
        // Two uses of the file ago.
        let old_base = PhysicalOffset::new(base - 2 * SEGMENT);
        let salt_of = if is_same_salt { PhysicalOffset::new(base) } else { old_base };
        let salt = identity.salt(salt_of);
        let mut at = tail.get() - base;
        if let At::Mark = what {
            at = (at + HEADER_LEN as u64).next_multiple_of(PAGE_LEN as u64);
        }
        let mut bytes = Vec::new();
        let len = u64::from(sample.header.total_len);
        let end = SEGMENT - at;
        while end - bytes.len() as u64 >= len && !matches!(what, At::Filler) {
            let place = old_base.plus(at + bytes.len() as u64);
            let header = RecordHeader { physical_offset: place, ..sample.header };
            let start = bytes.len();
            bytes.extend(header.encode(salt));
            bytes.extend_from_slice(&sample.payload);
            bytes.resize(start + len as usize, 0);
        }
        let left = end - bytes.len() as u64;
        let filler = RecordHeader {
            kind: RecordKind::Filler,
            total_len: left as u32,
            payload_len: 0,
            attributes_len: 0,
            physical_offset: old_base.plus(at + bytes.len() as u64),
            ..sample.header
        };
        if left >= HEADER_LEN as u64 {
            bytes.extend(filler.encode(salt));
        }
        image.overwrite(&file, at, &bytes).unwrap();

        let (mut rig, log) = opened(&image);
        let report = rig.store.start_report().clone();
        let is_marked = matches!(what, At::Mark);
        assert_eq!(report.cut.is_none(), is_marked, "{what:?}: {report}");
        assert_eq!((&report.lost, &report.damaged[..]), (&None, &[][..]), "{what:?}: {report}");
        if let Some(cut) = &report.cut {
            assert_eq!(cut.at, tail);
            let kept = image.durable_bytes(cut.kept_in.as_ref().unwrap()).unwrap();
            assert_eq!(kept.len() as u64, cut.len);
        }
        assert_eq!(messages(&log), messages(&before), "{what:?}");
        // The same again, and again after more: none comes up behind what is appended.
        let copy = image.crash_image(&CrashChoice::EVERYTHING);
        assert_eq!(opened(&copy).0.store.start_report().cut, None, "{what:?}");
        let sent: Vec<_> = (0..3).map(|n| rig.send(1, 0, &batch(n, 1, LEN)).unwrap()).collect();
        rig.workers.flush.flush_all();
        let (_, log) = opened(&image.crash_image(&CrashChoice::NOTHING));
        let expected: Vec<_> =
            messages(&before).into_iter().chain(sent.iter().map(|placed| placed.offset)).collect();
        assert_eq!(messages(&log), expected, "{what:?}");
    }
}

fn what_of(number: u8) -> String {
    format!("before the start of case {number}")
}

/// What is appended and not flushed goes, page by page, and what comes back is another segment's.
#[test]
fn a_cut_in_a_file_with_old_bytes_leaves_an_unbroken_beginning_and_is_told_once() {
    let (disk, mut rig) = reused();
    rig.workers.flush.flush_all();
    let tail = rig.store.watermarks().appended;
    let before = messages(&oracle::walk(&disk, &"before"));
    let sent: Vec<Placed> = (0..5).map(|n| rig.send(1, 0, &batch(n, 1, LEN)).unwrap()).collect();
    let pending = disk.pending_counts();
    let (file, base) = active_file(tail);
    let mut torn = 0;
    for seed in 0..400 {
        let choice = CrashChoice::random(seed, pending);
        let image = disk.crash_image(&choice);
        let written = image.durable_bytes(&file).unwrap();
        let (rig, log) = opened(&image);
        let found = messages(&log);
        let count = found.len() - before.len();
        assert_eq!(found[..before.len()], before, "{choice:?}");
        let kept: Vec<_> = sent[..count].iter().map(|placed| placed.offset).collect();
        assert_eq!(found[before.len()..], kept, "{choice:?}");
        let report = rig.store.start_report();
        let end = count.checked_sub(1).map_or(tail, |last| sent[last].end).get() - base;
        let mark = (end + HEADER_LEN as u64).next_multiple_of(PAGE_LEN as u64).min(SEGMENT);
        // A page of the log that did not land at all is as it was; of any other there is something to tell.
        let is_torn = is_old(&written[..mark as usize], end);
        let is_told = is_torn || report.lost.is_some();
        assert_eq!(report.cut.is_some(), is_told, "{choice:?}: {report}");
        torn += usize::from(is_torn);
        if let Some(cut) = &report.cut {
            assert!(cut.at == tail.max(PhysicalOffset::new(base + end)), "{report}");
            assert!(cut.len <= 64 << 10, "{report}");
        }
        let lost = report.lost.as_ref().map_or(0, |lost| lost.messages);
        assert!(lost as usize + count <= sent.len(), "{report}");
        rig.kill();
        let again = opened(&image).0;
        assert_eq!(again.store.start_report().cut, None, "{choice:?}");
    }
    assert!(torn > 50, "{torn}");
}

/// Of the zeros that end the log a bit decays: nothing is lost, and it is told once.
#[test]
fn zeros_behind_the_log_that_decay_cost_nothing() {
    for at in [0, HEADER_LEN as u64, u64::MAX] {
        let (disk, mut rig) = reused();
        let placed = rig.send(1, 0, &batch(0, 1, LEN)).unwrap();
        rig.workers.flush.flush_all();
        rig.kill();
        let image = disk.crash_image(&CrashChoice::NOTHING);
        let (file, base) = active_file(placed.offset);
        let end = placed.end.get() - base;
        let mark = (end + HEADER_LEN as u64).next_multiple_of(PAGE_LEN as u64);
        image.corrupt(&file, (end.saturating_add(at)).min(mark - 1), 4).unwrap();
        let (rig, log) = opened(&image);
        let report = rig.store.start_report();
        assert_eq!(messages(&log).last(), Some(&placed.offset));
        assert_eq!((&report.lost, &report.damaged[..]), (&None, &[][..]), "{report}");
        assert_eq!(report.cut.as_ref().map(|cut| cut.at), Some(placed.end), "{report}");
        rig.kill();
        assert_eq!(opened(&image).0.store.start_report().cut, None);
    }
}

/// A slice outlives its segment, and must not show another.
#[test]
fn a_file_that_is_still_read_does_not_become_another_segment() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let topic = rig.create(1, 1, FlushMode::Sync);
    let large = batch(0, 1, 3_000);
    rig.send(1, 0, &large).unwrap();
    rig.workers.settle();
    let ReadOutcome::Records { records, .. } = rig.read(&topic, 0, 0, 1) else {
        panic!("a record")
    };
    let first = files(&disk, "commitlog")[0].clone();
    for n in 1..200 {
        if let Err(AppendError::NotReady) = rig.send(1, 0, &batch(n, 1, LEN)) {
            rig.workers.settle();
        }
        if n % 10 == 0 {
            purge(&mut rig);
        }
    }
    let journal = disk.journal();
    assert!(journal.contains(&(Operation::Unlink, first.clone())));
    assert!(!journal.contains(&(Operation::Rename, first)));
    assert!(uses(&disk).1 > 5, "others do: {:?}", uses(&disk));
    assert_eq!(records[0].batch, large);
    assert_eq!(disk.rewritten_under_readers(), 0);
}

/// A start would come to the bad sector behind the end of the log, and go no further.
#[test]
fn a_file_that_the_disk_did_not_give_once_does_not_become_another_segment() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    let topic = rig.create(1, 1, FlushMode::Sync);
    let send = |rig: &mut Rig, count: u64| {
        for n in 0..count {
            if let Err(AppendError::NotReady) = rig.send(1, 0, &batch(n, 1, LEN)) {
                rig.workers.settle();
            }
        }
        rig.workers.settle();
    };
    send(&mut rig, 60);
    let all = files(&disk, "commitlog");
    let (first, second) = (all[0].clone(), all[1].clone());
    disk.fail(FaultRule {
        operation: Operation::Read,
        path_contains: Some(first.file_name().unwrap().to_string_lossy().into_owned()),
        nth: 1,
        times: Times::Once,
        error: Fault::Eio,
    });
    rig.try_read(&topic, 0, 0, 1).unwrap_err();
    disk.clear_faults();
    purge(&mut rig);
    send(&mut rig, 60);
    let journal = disk.journal();
    assert!(journal.contains(&(Operation::Unlink, first.clone())));
    assert!(!journal.contains(&(Operation::Rename, first)), "it is not kept");
    assert!(journal.contains(&(Operation::Rename, second)), "others are");
}

/// The one page that did not land is that with the filler: the log ends well there, and goes on behind it.
#[test]
fn messages_in_a_later_segment_are_counted_as_lost_also_where_the_log_ends_well() {
    let (disk, mut rig) = reused();
    rig.create(2, 1, FlushMode::Async);
    let placed = fill(&rig, 136);
    rig.workers.flush.flush_all();
    rig.workers.settle();
    let before = disk.crash_image(&CrashChoice::NOTHING);
    let sent: Vec<_> = (0..3).map(|n| rig.send(2, 0, &batch(n, 1, LEN)).unwrap()).collect();
    let (file, base) = active_file(placed.offset);
    assert!(sent.iter().all(|sent| sent.offset.get() > base + SEGMENT), "they are in the next");
    rig.kill();
    let image = disk.crash_image(&CrashChoice::EVERYTHING);
    // Of the segment that is full, the page with the filler is as it was.
    let page = (placed.end.get() - base) / PAGE_LEN as u64 * PAGE_LEN as u64;
    let was = &before.durable_bytes(&file).unwrap()[page as usize..];
    image.overwrite(&file, page, was).unwrap();
    let (rig, log) = opened(&image);
    let report = rig.store.start_report();
    assert_eq!(report.lost.as_ref().map(|lost| lost.messages), Some(3), "{report}");
    assert_eq!((&report.cut, &report.damaged[..]), (&None, &[][..]), "{report}");
    assert_eq!(messages(&log).last(), Some(&placed.offset));
    rig.kill();
    let again = opened(&image).0;
    assert_eq!((&again.store.start_report().cut, &again.store.start_report().lost), (&None, &None));
}

#[test]
fn spares_are_two_at_most_and_do_not_outlive_the_process() {
    let (disk, mut rig) = reused();
    let spares = |disk: &SimDisk| {
        disk.paths().iter().filter(|p| p.extension() == Some("tmp".as_ref())).count()
    };
    for n in 0..100 {
        if let Err(AppendError::NotReady) = rig.send(1, 0, &batch(n, 1, LEN)) {
            rig.workers.settle();
        }
    }
    rig.workers.settle();
    purge(&mut rig);
    assert_eq!((rig.store.status().spare_segments, spares(&disk)), (2, 2));
    rig.kill();
    let image = disk.crash_image(&CrashChoice::NOTHING);
    assert_eq!(spares(&image), 2);
    let rig = Rig::open(&image);
    assert_eq!((rig.store.status().spare_segments, spares(&image)), (0, 0));
    assert_eq!(spares(&image.crash_image(&CrashChoice::NOTHING)), 0, "durably");
    rig.kill();
    let (disk, mut rig) = reused();
    purge(&mut rig);
    assert!(spares(&disk) > 0);
    rig.close();
    assert_eq!(spares(&disk.crash_image(&CrashChoice::NOTHING)), 0, "a clean stop leaves none");
}

#[test]
fn a_disk_that_is_short_gets_the_bytes_of_spares_back() {
    let disk = SimDisk::new();
    let config = StoreConfig { disk_reserve: 64 << 10, ..tiny() };
    let mut rig = Rig::try_open(Arc::new(disk.clone()), &config, 1_000_000).unwrap();
    rig.create(1, 1, FlushMode::Sync);
    for n in 0..100 {
        if let Err(AppendError::NotReady) = rig.send(1, 0, &batch(n, 1, LEN)) {
            rig.workers.settle();
        }
    }
    purge(&mut rig);
    assert_eq!(rig.store.status().spare_segments, 2);
    let used: u64 = disk.paths().iter().map(|p| disk.durable_bytes(p).unwrap().len() as u64).sum();
    disk.set_capacity(Some(used + (40 << 10)));
    rig.clock.advance(Duration::from_secs(1));
    // One that cannot be unlinked is not forgotten.
    disk.fail(FaultRule {
        operation: Operation::Unlink,
        path_contains: Some(".tmp".to_owned()),
        nth: 1,
        times: Times::Always,
        error: Fault::Eio,
    });
    rig.workers.clean.step();
    assert_eq!(rig.store.status().spare_segments, 2);
    assert!(rig.store.status().disk_is_short);
    disk.clear_faults();
    rig.clock.advance(Duration::from_secs(1));
    rig.workers.clean.step();
    assert_eq!(rig.store.status().spare_segments, 0);
    assert!(!rig.store.status().disk_is_short, "two segments are more than was missing");
    // What is deleted while it is short is not kept.
    disk.set_capacity(Some(used - (20 << 10)));
    rig.clock.advance(Duration::from_secs(1));
    purge(&mut rig);
    assert!(rig.store.status().disk_is_short);
    assert_eq!(rig.store.status().spare_segments, 0);
}

#[test]
fn a_segment_of_another_size_is_not_used_again() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk);
    rig.create(1, 1, FlushMode::Sync);
    for n in 0..60 {
        if let Err(AppendError::NotReady) = rig.send(1, 0, &batch(n, 1, LEN)) {
            rig.workers.settle();
        }
    }
    rig.close();
    let larger = StoreConfig { segment_size: 2 * SEGMENT, ..tiny() };
    let mut rig = Rig::try_open(Arc::new(disk.clone()), &larger, 1_000_000).unwrap();
    for n in 0..60 {
        if let Err(AppendError::NotReady) = rig.send(1, 0, &batch(n, 1, LEN)) {
            rig.workers.settle();
        }
    }
    purge(&mut rig);
    let status = rig.store.status();
    assert!(status.deleted_segments > 4, "{status:?}");
    let lens: Vec<_> = disk
        .paths()
        .iter()
        .filter(|path| path.extension() == Some("tmp".as_ref()))
        .map(|path| disk.durable_bytes(path).unwrap().len() as u64)
        .collect();
    assert!(lens.iter().all(|len| *len == 2 * SEGMENT), "{lens:?}");
    let topic = rig.topic(1).unwrap();
    assert_eq!(rig.min(&topic, 0).unwrap(), rig.store.queue_max(&topic, QueueId::ZERO).get());
    assert!(rig.store.queue_max(&topic, QueueId::ZERO) > QueueOffset::ZERO);
}
