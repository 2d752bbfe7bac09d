//! The queues against a model: memory, files, and both together.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::file::Operation;
use crate::file::sim::{Fault, FaultRule, SimDisk, Times};
use crate::format::consume_queue::EntryFlags;
use crate::format::consume_queue::TopicRow;
use crate::format::names::FileKind;
use crate::format::pages::{CONTENT_LEN, PAGE_LEN};
use crate::message::{QueueId, Timestamp};

const STORE: [u8; 16] = [7; 16];
const SEGMENT: u64 = 1 << 20;

fn disk() -> Arc<dyn Disk> {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("consumequeue")).unwrap();
    Arc::new(disk)
}

fn queues(disk: &Arc<dyn Disk>) -> ConsumeQueues {
    ConsumeQueues::new(disk.clone(), "consumequeue".into(), STORE)
}

fn base(segment: u64) -> PhysicalOffset {
    PhysicalOffset::new(segment * SEGMENT)
}

fn key(topic: u64, queue: u32) -> QueueKey {
    QueueKey { topic: TopicId::new(topic), queue: QueueId::new(queue) }
}

fn at(offset: u64) -> QueueOffset {
    QueueOffset::new(offset)
}

/// Behind all entries of the queue.
fn next_offset(queues: &ConsumeQueues, key: QueueKey) -> QueueOffset {
    queues.readable_next(key, PhysicalOffset::new(u64::MAX))
}

fn entry(offset: u64, queue_offset: u64, messages: u16) -> QueueEntry {
    QueueEntry {
        offset: PhysicalOffset::new(offset),
        len: 128,
        queue_offset: at(queue_offset),
        messages,
        flags: EntryFlags::from_bits((offset >> 7) as u16 & 15),
        store_time: Timestamp::new(1_000_000 + offset),
        group_hash: offset as u32 ^ 0x55,
        tag_bits: offset.wrapping_mul(0x9E37_79B9_7F4A_7C15),
    }
}

/// Flips a bit of a file.
fn flip(disk: &dyn Disk, path: &str, position: u64) {
    let file = disk.open(Path::new(path), crate::file::disk::Access::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, position).unwrap();
    file.write_at(&[std::io::IoSlice::new(&[byte[0] ^ 4])], position).unwrap();
}

fn look(queues: &ConsumeQueues, key: QueueKey, from: u64) -> (Lookup, Vec<QueueEntry>) {
    let mut out = vec![entry(0, 0, 1)];
    let found = queues.lookup(key, at(from), 1000, &mut out, &mut Trail::default()).unwrap();
    (found, out)
}

/// One sealed segment per number, each with the entries given, and an empty active part behind them.
fn sealed(disk: &Arc<dyn Disk>, segments: &[&[(QueueKey, QueueEntry)]]) -> ConsumeQueues {
    let queues = queues(disk);
    for (index, entries) in segments.iter().enumerate() {
        queues.start_part(base(index as u64));
        entries.iter().for_each(|(key, entry)| queues.put(*key, entry));
    }
    queues.start_part(base(segments.len() as u64));
    for index in 0..segments.len() as u64 {
        queues.seal(base(index), base(index + 1)).unwrap();
    }
    queues
}

#[derive(Clone, Debug)]
enum Step {
    Put { queue: u32, messages: u16, gap: u64 },
    Roll,
    Seal { which: prop::sample::Index },
    Look { queue: u32, from: prop::sample::Index, max: usize },
    Reopen,
    Lose { which: prop::sample::Index },
}

fn step() -> impl Strategy<Value = Step> {
    let gap = prop_oneof![9 => Just(0_u64), 1 => 1..4_u64];
    let messages = prop_oneof![3 => Just(1_u16), 1 => 1..5_u16];
    let index = any::<prop::sample::Index>;
    prop_oneof![
        60 => (0..6_u32, messages, gap)
            .prop_map(|(queue, messages, gap)| Step::Put { queue, messages, gap }),
        5 => Just(Step::Roll),
        4 => index().prop_map(|which| Step::Seal { which }),
        30 => (0..7_u32, index(), 1..200_usize)
            .prop_map(|(queue, from, max)| Step::Look { queue, from, max }),
        1 => Just(Step::Reopen),
        1 => index().prop_map(|which| Step::Lose { which }),
    ]
}

/// What the queues should say: all entries by queue, and where each segment's begin.
struct Model {
    disk: Arc<dyn Disk>,
    queues: ConsumeQueues,
    entries: BTreeMap<QueueKey, Vec<QueueEntry>>,
    log: Vec<(QueueKey, QueueEntry)>,
    end: u64,
    segment: u64,
    sealed: Vec<bool>,
    /// Kept over all lookups, whatever becomes of the files in between.
    trail: RefCell<Trail>,
}

impl Model {
    fn new() -> Self {
        let disk = disk();
        let queues = queues(&disk);
        queues.start_part(base(0));
        let (entries, log) = (BTreeMap::new(), Vec::new());
        let (sealed, trail) = (Vec::new(), RefCell::default());
        Self { disk, queues, entries, log, end: 0, segment: 0, sealed, trail }
    }

    fn put(&mut self, queue: u32, messages: u16, gap: u64) {
        let key = key(1 + u64::from(queue % 2), queue);
        let run = self.entries.entry(key).or_default();
        let next = run.last().map_or(0, |last| last.queue_end().get());
        let entry = entry(self.end, next + gap, messages);
        run.push(entry);
        self.log.push((key, entry));
        self.queues.put(key, &entry);
        self.end += 128;
    }

    fn roll(&mut self) {
        self.sealed.push(false);
        self.segment += 1;
        self.end = self.segment * SEGMENT;
        self.queues.start_part(base(self.segment));
    }

    fn seal(&mut self, segment: usize) {
        self.queues.seal(base(segment as u64), base(segment as u64 + 1)).unwrap();
        self.sealed[segment] = true;
    }

    fn of_segment(&self, segment: u64) -> impl Iterator<Item = &(QueueKey, QueueEntry)> {
        self.log.iter().filter(move |(_, entry)| entry.offset.get() / SEGMENT == segment)
    }

    /// The file goes, a lookup is told once, then the file is made anew.
    fn lose(&mut self, segment: u64) {
        let path = format!("consumequeue/{:020}.cq", segment * SEGMENT);
        self.disk.unlink(Path::new(&path)).unwrap();
        self.queues.mark_missing(base(segment), base(segment + 1));
        assert_eq!(self.queues.missing(), [(base(segment), base(segment + 1))]);
        let part = QueuePart::new(base(segment));
        self.of_segment(segment).for_each(|(key, entry)| part.put(*key, entry));
        self.queues.rebuilt(base(segment), base(segment + 1), &part).unwrap();
        assert_eq!(self.queues.missing(), []);
    }

    fn reopen(&mut self) {
        (0..self.sealed.len()).for_each(|segment| self.seal(segment));
        let positions = self.queues.positions();
        self.queues = queues(&self.disk);
        // Its files are called otherwise.
        self.trail = RefCell::default();
        for segment in 0..self.segment {
            assert!(self.queues.adopt_sealed(base(segment), base(segment + 1)).unwrap());
        }
        positions.into_iter().for_each(|position| self.queues.restore_position(position));
        self.queues.start_part(base(self.segment));
        self.of_segment(self.segment).for_each(|(key, entry)| self.queues.put(*key, entry));
    }

    fn check(&self, queue: u32, from: prop::sample::Index, max: usize) {
        let key = key(1 + u64::from(queue % 2), queue);
        let entries = self.entries.get(&key).map_or(&[][..], Vec::as_slice);
        let next = entries.last().map_or(at(0), QueueEntry::queue_end);
        let from = at(from.index(next.get() as usize + 3) as u64);
        let index = entries.partition_point(|entry| entry.queue_end() <= from);
        let expected = match entries.first() {
            _ if from >= next => Lookup::AtEnd { next },
            Some(first) if from < first.queue_offset => {
                Lookup::BelowFirst { first: first.queue_offset }
            }
            _ => Lookup::Found,
        };
        assert_eq!(next_offset(&self.queues, key), next);
        let mut out = Vec::new();
        let trail = &mut self.trail.borrow_mut();
        assert_eq!(self.queues.lookup(key, from, max, &mut out, trail).unwrap(), expected);
        let mut hot = Vec::new();
        match self.queues.lookup_hot(key, from, max, &mut hot) {
            Lookup::NeedsDisk => {
                assert!(self.sealed.iter().any(|sealed| *sealed), "all is in memory");
                assert_eq!(hot, []);
            }
            found => assert_eq!((found, &hot), (expected, &out)),
        }
        if expected == Lookup::Found {
            assert_eq!(out, entries[index..][..out.len()]);
            let segment = entries[index].offset.get() / SEGMENT;
            let here = entries[index..].iter().take_while(|e| e.offset.get() / SEGMENT == segment);
            assert_eq!(out.len(), here.count().min(max), "all of the segment, as far as asked");
        } else {
            assert_eq!(out, []);
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Put { queue, messages, gap } => self.put(queue, messages, gap),
            Step::Roll => self.roll(),
            Step::Seal { which } if !self.sealed.is_empty() => {
                self.seal(which.index(self.sealed.len()));
            }
            Step::Look { queue, from, max } => self.check(queue, from, max),
            Step::Reopen => self.reopen(),
            Step::Lose { which } => {
                let files = (0..self.segment).filter(|s| self.sealed[*s as usize]);
                let files: Vec<u64> = files.collect();
                if !files.is_empty() {
                    self.lose(files[which.index(files.len())]);
                }
            }
            Step::Seal { .. } => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn queues_say_what_was_put_wherever_it_is_now(steps in prop::collection::vec(step(), 1..400)) {
        let mut model = Model::new();
        steps.into_iter().for_each(|step| model.run(step));
    }
}

#[test]
fn unknown_queue_is_at_its_end() {
    let queues = queues(&disk());
    assert_eq!(look(&queues, key(1, 1), 0), (Lookup::AtEnd { next: at(0) }, vec![]));
    assert_eq!(look(&queues, key(1, 1), 5), (Lookup::AtEnd { next: at(0) }, vec![]));
}

#[test]
fn tail_that_is_unreadable_is_an_end_behind_the_offset() {
    let disk = disk();
    let queues = sealed(&disk, &[&[(key(1, 0), entry(0, 0, 2))]]);
    let position = queues.positions()[0];
    queues.restore_position(QueuePosition { next: at(9), ..position });
    assert_eq!(look(&queues, key(1, 0), 2), (Lookup::AtEnd { next: at(9) }, vec![]));
    assert_eq!(look(&queues, key(1, 0), 1).0, Lookup::Found);
}

#[test]
fn deleted_topics_leave_no_positions_and_their_neighbours_alone() {
    let queues = queues(&disk());
    queues.start_part(base(0));
    for queue in 0..100 {
        queues.put(key(1, queue), &entry(u64::from(queue) * 256, 0, 1));
        queues.put(key(2, queue), &entry(u64::from(queue) * 256 + 128, 0, 1));
        queues.put(key(3, queue), &entry(u64::from(queue) * 256 + 192, 0, 1));
    }
    queues.remove_topics(&[]);
    assert_eq!(queues.positions().len(), 300);
    queues.remove_topics(&[TopicId::new(1), TopicId::new(3)]);
    assert_eq!(next_offset(&queues, key(1, 5)), at(0));
    assert_eq!(next_offset(&queues, key(3, 5)), at(0));
    assert_eq!(next_offset(&queues, key(2, 5)), at(1));
    assert_eq!(queues.positions().len(), 100);
}

#[test]
fn positions_say_the_next_offset_and_the_segments_of_a_queue() {
    let disk = disk();
    let queues =
        sealed(&disk, &[&[(key(1, 0), entry(0, 0, 2))], &[(key(1, 1), entry(SEGMENT, 0, 1))]]);
    queues.put(key(1, 0), &entry(2 * SEGMENT, 2, 3));
    queues.put(key(1, 2), &entry(2 * SEGMENT + 128, 0, 1));
    let position = |queue, next, first, last| QueuePosition {
        key: key(1, queue),
        next: at(next),
        first_segment: base(first),
        last_segment: base(last),
    };
    let mut positions = queues.positions();
    positions.sort_by_key(|position| position.key);
    assert_eq!(positions, [position(0, 5, 0, 2), position(1, 1, 1, 1), position(2, 1, 2, 2)]);
}

#[test]
fn missing_file_stops_only_lookups_that_need_it() {
    let disk = disk();
    let (a, b) = (key(1, 0), key(1, 1));
    let queues = sealed(
        &disk,
        &[
            &[(a, entry(0, 0, 1)), (b, entry(128, 0, 1))],
            &[(a, entry(SEGMENT, 1, 1))],
            &[(a, entry(2 * SEGMENT, 2, 1)), (b, entry(2 * SEGMENT + 128, 1, 1))],
        ],
    );
    queues.mark_missing(base(1), base(2));
    assert_eq!(look(&queues, a, 0), (Lookup::Found, vec![entry(0, 0, 1)]));
    assert_eq!(look(&queues, a, 1), (Lookup::Rebuilding { base: base(1) }, vec![]));
    assert_eq!(look(&queues, a, 2), (Lookup::Found, vec![entry(2 * SEGMENT, 2, 1)]));
    assert_eq!(look(&queues, b, 0), (Lookup::Found, vec![entry(128, 0, 1)]));
    assert_eq!(look(&queues, b, 1), (Lookup::Found, vec![entry(2 * SEGMENT + 128, 1, 1)]));
    queues.mark_missing(base(0), base(1));
    assert_eq!(look(&queues, a, 0), (Lookup::Rebuilding { base: base(0) }, vec![]));
    queues.mark_missing(base(2), base(3));
    assert_eq!(look(&queues, a, 2), (Lookup::Rebuilding { base: base(0) }, vec![]));
}

#[test]
fn gap_before_what_is_found_needs_no_file_behind_it() {
    let disk = disk();
    let a = key(1, 0);
    let segments: [&[(QueueKey, QueueEntry)]; 3] =
        [&[(a, entry(0, 0, 1))], &[(a, entry(SEGMENT, 2, 1))], &[(a, entry(2 * SEGMENT, 3, 1))]];
    let queues = sealed(&disk, &segments);
    queues.mark_missing(base(2), base(3));
    assert_eq!(look(&queues, a, 1), (Lookup::Found, vec![entry(SEGMENT, 2, 1)]));
}

#[test]
fn damage_seen_in_a_file_that_was_replaced_meanwhile_concerns_nobody() {
    let disk = disk();
    let queues = sealed(&disk, &[&one_segment()]);
    let before = queues.files.segments();
    let part = QueuePart::new(base(0));
    one_segment().iter().for_each(|(key, entry)| part.put(*key, entry));
    queues.rebuilt(base(0), base(1), &part).unwrap();
    let read = |_: &mut Reader<'_>| Err::<(), _>(PageError::Damaged { page: 1 });
    let error = queues.files.read(&before[0], &mut Pages::default(), read).unwrap_err();
    assert_eq!(error.to_string(), "sealed file of the segment at 0 is damaged in page 1");
    assert_eq!(queues.missing(), []);
}

#[test]
fn gap_at_a_missing_file_is_not_taken_for_an_unreadable_record() {
    let disk = disk();
    let a = key(1, 0);
    let segments: [&[(QueueKey, QueueEntry)]; 3] =
        [&[(a, entry(0, 0, 1))], &[(a, entry(SEGMENT, 1, 1))], &[]];
    let queues = sealed(&disk, &segments);
    queues.put(a, &entry(3 * SEGMENT, 3, 1));
    // Offset 2 was never put: the next entry shows it.
    assert_eq!(look(&queues, a, 2), (Lookup::Found, vec![entry(3 * SEGMENT, 3, 1)]));
    queues.mark_missing(base(2), base(3));
    assert_eq!(look(&queues, a, 2), (Lookup::Rebuilding { base: base(2) }, vec![]));
    assert_eq!(look(&queues, a, 3), (Lookup::Found, vec![entry(3 * SEGMENT, 3, 1)]));
}

/// Two topics, 150 queues, 40 entries in one of them, one segment.
fn one_segment() -> Vec<(QueueKey, QueueEntry)> {
    let mut entries = Vec::new();
    for round in 0..40_u64 {
        for queue in (0..150).filter(|queue| round < 2 || *queue == 77) {
            let offset = entries.len() as u64 * 128;
            entries.push((key(1 + u64::from(queue) % 2, queue), entry(offset, round, 1)));
        }
    }
    entries
}

#[test]
fn sealed_file_has_the_sections_it_says() {
    let disk = disk();
    let entries = one_segment();
    sealed(&disk, &[&entries]);
    let path = Path::new("consumequeue/00000000000000000000.cq");
    let file = disk.open(path, crate::file::disk::Access::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    let header = crate::format::pages::Header::decode(Kind::ConsumeQueue, &bytes).unwrap();
    let sections = Sections::of(&header).unwrap();
    let count = entries.len() as u64;
    let first_time = Timestamp::new(1_000_000);
    assert_eq!(sections, Sections { first_time, queues: 150, topics: 2, entries: count });
    let mut stream = Vec::new();
    for (number, page) in bytes.chunks(PAGE_LEN).enumerate().skip(1) {
        let content = crate::format::pages::verify(page, number as u64, header.salt()).unwrap();
        stream.extend_from_slice(content);
    }
    assert!(stream.len() as u64 - header.stream_len < CONTENT_LEN as u64);
    let row =
        |index| DirectoryRow::decode(&stream[sections.directory_row_at(index) as usize..]).unwrap();
    assert_eq!(
        row(1),
        DirectoryRow { key: key(1, 2), entries: 2, first: at(0), next: at(2), start: 2 }
    );
    assert_eq!(row(75).key, key(2, 1));
    let topic = TopicRow::decode(&stream[sections.topic_row_at(1) as usize..]).unwrap();
    let newest = Timestamp::new(1_000_000 + (count - 1) * 128);
    let messages = 150 + 38;
    assert_eq!(topic, TopicRow { topic: TopicId::new(2), messages, bytes: messages * 128, newest });
}

#[test]
fn damaged_page_is_found_by_the_read_that_needs_it_and_the_file_is_rebuilt() {
    let entries = one_segment();
    let path = "consumequeue/00000000000000000000.cq";
    let pages = {
        let disk = disk();
        sealed(&disk, &[&entries]);
        disk.list(Path::new("consumequeue")).unwrap()[0].len / PAGE_LEN as u64
    };
    assert!(pages > 4, "{pages}");
    for page in 1..pages {
        let disk = disk();
        let queues = sealed(&disk, &[&entries]);
        flip(&*disk, path, page * PAGE_LEN as u64 + 100);
        let mut out = Vec::new();
        let mut errors = Vec::new();
        for queue in 0..150 {
            match queues.lookup(
                key(1 + u64::from(queue) % 2, queue),
                at(0),
                1000,
                &mut out,
                &mut Trail::default(),
            ) {
                Ok(Lookup::Rebuilding { base: missing }) => assert_eq!(missing, base(0)),
                Ok(found) => assert_eq!((found, errors.len()), (Lookup::Found, 0)),
                Err(error) => errors.push(error),
            }
        }
        let [SealedError::Damaged { base: damaged, page: found }] = errors[..] else {
            panic!("one error, then rebuilding: {errors:?}")
        };
        assert_eq!((damaged, found), (base(0), page));
        assert_eq!(queues.missing(), [(base(0), base(1))]);
        let part = QueuePart::new(base(0));
        entries.iter().for_each(|(key, entry)| part.put(*key, entry));
        queues.rebuilt(base(0), base(1), &part).unwrap();
        assert_eq!(queues.missing(), []);
        assert_eq!(look(&queues, key(2, 77), 39).1.len(), 1);
    }
}

#[test]
fn adopts_only_the_whole_file_of_this_segment_of_this_store() {
    let disk = disk();
    sealed(&disk, &[&one_segment()]);
    let path = "consumequeue/00000000000000000000.cq";
    let adopts = |queues: &ConsumeQueues, end| queues.adopt_sealed(base(0), end).unwrap();
    assert!(adopts(&queues(&disk), base(1)));
    assert!(!adopts(&queues(&disk), base(2)), "another end");
    let other = ConsumeQueues::new(disk.clone(), "consumequeue".into(), [8; 16]);
    assert!(!adopts(&other, base(1)), "another store");
    assert!(!queues(&disk).adopt_sealed(base(1), base(2)).unwrap(), "no file");
    for position in 0..PAGE_LEN as u64 {
        flip(&*disk, path, position);
        assert!(!adopts(&queues(&disk), base(1)), "header byte {position}");
        flip(&*disk, path, position);
    }
    assert!(adopts(&queues(&disk), base(1)));
    let len = disk.list(Path::new("consumequeue")).unwrap()[0].len;
    let whole = disk.open(Path::new(path), crate::file::disk::Access::Read).unwrap();
    let mut bytes = vec![0; len as usize];
    whole.read_at(&mut bytes, 0).unwrap();
    for cut in [0, 1, 4095, 4096, len - 4096, len - 1] {
        let file = disk.create(Path::new(path)).unwrap();
        file.write_at(&[std::io::IoSlice::new(&bytes[..cut as usize])], 0).unwrap();
        assert!(!adopts(&queues(&disk), base(1)), "cut to {cut}");
    }
}

#[test]
fn file_that_is_gone_is_damage_then_rebuilding() {
    let disk = disk();
    let queues = sealed(&disk, &[&one_segment()]);
    disk.unlink(Path::new("consumequeue/00000000000000000000.cq")).unwrap();
    let error =
        queues.lookup(key(2, 77), at(0), 1, &mut Vec::new(), &mut Trail::default()).unwrap_err();
    assert_eq!(error.to_string(), "sealed file of the segment at 0 is damaged in page 0");
    assert_eq!(look(&queues, key(2, 77), 0).0, Lookup::Rebuilding { base: base(0) });
}

#[test]
fn many_segments_are_read_through_few_open_files() {
    let disk = disk();
    let a = key(1, 0);
    let segments: Vec<_> =
        (0..600).map(|segment| [(a, entry(segment * SEGMENT, segment, 1))]).collect();
    let segments: Vec<_> = segments.iter().map(<[_; 1]>::as_slice).collect();
    let queues = sealed(&disk, &segments);
    for from in (0..600).chain((0..600).rev()) {
        assert_eq!(look(&queues, a, from), (Lookup::Found, vec![entry(from * SEGMENT, from, 1)]));
    }
    assert_eq!(queues.files.open_files(), 256);
}

/// Of 5 000 queues, each of which has an entry in each segment. The files are open.
fn sixteen_segments() -> (SimDisk, ConsumeQueues) {
    let sim = SimDisk::new();
    sim.create_dir(Path::new("consumequeue")).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let segments: Vec<Vec<_>> = (0..16)
        .map(|segment| {
            let offset = |queue| segment * SEGMENT + u64::from(queue) * 128;
            (0..5_000).map(|queue| (key(1, queue), entry(offset(queue), segment, 1))).collect()
        })
        .collect();
    let segments: Vec<_> = segments.iter().map(Vec::as_slice).collect();
    let queues = sealed(&disk, &segments);
    // Opens the files.
    (0..16).for_each(|from| assert_eq!(look(&queues, key(1, 0), from).0, Lookup::Found));
    (sim, queues)
}

#[test]
fn a_queue_that_is_read_through_many_segments_costs_two_pages_of_each_and_its_neighbour_none() {
    let (sim, queues) = sixteen_segments();
    let (mut out, mut trail) = (Vec::new(), Trail::default());
    let mut reads_of = |queue| {
        let before = sim.calls(Operation::Read);
        for from in 0..16 {
            let found = queues.lookup(key(1, queue), at(from), 1, &mut out, &mut trail).unwrap();
            assert_eq!((found, out[0].queue_offset), (Lookup::Found, at(from)));
        }
        sim.calls(Operation::Read) - before
    };
    // The first search begins in the middle of a directory; all others know the row.
    assert_eq!(reads_of(3_333), 1 + 16 * 2);
    assert_eq!(reads_of(3_334), 0);
}

#[test]
fn the_search_for_the_segment_of_an_offset_begins_where_the_last_queue_was_found() {
    let (sim, queues) = sixteen_segments();
    let (mut out, mut trail) = (Vec::new(), Trail::default());
    let mut reads_of = |queue, from| {
        let before = sim.calls(Operation::Read);
        let found = queues.lookup(key(1, queue), at(from), 1, &mut out, &mut trail).unwrap();
        assert_eq!((found, out[0].queue_offset), (Lookup::Found, at(from)));
        sim.calls(Operation::Read) - before
    };
    // A row of each segment that halving looks at: of a directory in the middle, then of the queue; and the entry.
    assert_eq!(reads_of(1_000, 3), 1 + 4 + 1);
    // What is behind it lies in the next one, which was looked at on the way.
    assert_eq!(reads_of(1_000, 4), 1);
    // So it goes on, and other queues begin where this one did. A row may lie on two pages.
    for (queue, from) in [(1_000, 5), (3_000, 3), (3_000, 4), (4_500, 3), (4_500, 4)] {
        assert!(reads_of(queue, from) <= 3, "{queue} from {from}");
    }
    // Who asks for something else is a look behind halving, at two pages each.
    for (queue, from) in [(200, 0), (2_000, 15), (300, 15), (2_500, 0), (2_500, 0), (400, 7)] {
        assert!(reads_of(queue, from) <= 2 * (1 + 4 + 1), "{queue} from {from}");
    }
}

#[test]
fn a_file_that_cannot_be_opened_keeps_no_search_from_others() {
    let sim = SimDisk::new();
    sim.create_dir(Path::new("consumequeue")).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let (a, b) = (key(1, 0), key(1, 1));
    let segments: Vec<_> =
        (0..3).map(|n| [(a, entry(n * SEGMENT, n, 1)), (b, entry(n * SEGMENT, n, 1))]).collect();
    let segments: Vec<_> = segments.iter().map(<[_; 2]>::as_slice).collect();
    let queues = sealed(&disk, &segments);
    // Somebody found his begin in the last one, whose file is not open any more.
    let (mut out, mut trail) = (Vec::new(), Trail::default());
    trail.found(a, &queues.files.segments()[2], at(3));
    sim.fail(FaultRule {
        operation: Operation::Open,
        path_contains: Some(FileKind::ConsumeQueue.name(base(2))),
        nth: 1,
        times: Times::Always,
        error: Fault::Eio,
    });
    let mut look = || queues.lookup(b, at(0), 1, &mut out, &mut trail);
    assert!(matches!(look(), Err(SealedError::File(_))));
    assert_eq!(look().unwrap(), Lookup::Found);
}

/// The row of `key` among those of `keys`, and how many were looked at, `guess` first.
fn found(keys: &[QueueKey], key: QueueKey, guess: Option<u64>) -> (Option<u64>, u32) {
    let mut looked_at = 0;
    let row = search(keys.len() as u64, key, guess, |at| {
        looked_at += 1;
        let (first, next) = (QueueOffset::ZERO, QueueOffset::new(1));
        let key = keys[usize::try_from(at).unwrap()];
        Ok::<_, ()>(DirectoryRow { key, entries: 1, first, next, start: at })
    });
    let row = row.unwrap();
    assert!(row.as_ref().is_none_or(|(at, row)| *at == row.start));
    (row.map(|(at, _)| at), looked_at)
}

#[test]
fn a_queue_is_found_in_a_large_directory_by_few_looks_and_one_that_is_not_there_is_not() {
    let dense = |topics: u64, queues: u32| {
        (0..topics).flat_map(move |topic| (0..queues).map(move |queue| key(topic, queue)))
    };
    let squares = (0..60_000_u32).map(|n| key(7, (n / 7) * (n / 7)));
    let far = (0..5_000).map(|n| key(n % 3, (n as u32).wrapping_mul(2_654_435_761)));
    for (keys, most) in [
        (dense(1, 62_500).collect::<Vec<_>>(), 2),
        (dense(16, 62_500).collect(), 6),
        (dense(50_000, 4).collect(), 19),
        (dense(1, 1).chain(dense(9, 2)).collect(), 8),
        (squares.collect(), 2 * 14),
        (far.collect(), 2 * 13),
    ] {
        let mut keys = keys;
        keys.sort_unstable();
        keys.dedup();
        let every = keys.len() / 997 + 1;
        for (at, key) in keys.iter().enumerate().step_by(every) {
            let number = at as u64;
            let (row, looked_at) = found(&keys, *key, None);
            assert_eq!(row, Some(number));
            assert!(looked_at <= most, "{looked_at} of {} for {key:?}", keys.len());
            assert_eq!(found(&keys, *key, Some(number)), (Some(number), 1));
            // A wrong guess costs a look, and how far it was off may cost as much as if there had been none.
            for wrong in [0, number.saturating_sub(1), number + 1, number / 2, u64::MAX] {
                let (row, looked_at) = found(&keys, *key, Some(wrong));
                assert_eq!(row, Some(number));
                assert!(looked_at <= most + 2, "{looked_at} for {key:?}, {wrong} guessed");
            }
            let next = QueueKey { queue: QueueId::new(key.queue.get().wrapping_add(1)), ..*key };
            if keys.get(at + 1) != Some(&next) && next > *key {
                assert_eq!(found(&keys, next, None).0, None);
                assert_eq!(found(&keys, next, Some(number + 1)).0, None);
            }
        }
        assert_eq!(found(&keys, key(u64::MAX, 0), None).0, None);
    }
    assert_eq!(found(&[], key(0, 0), Some(0)), (None, 0));
}

#[test]
fn memory_is_what_the_costs_say() {
    for count in [1_000_u64, 5_000, 20_000, 60_000] {
        let queues = queues(&disk());
        let empty = queues.memory_bytes();
        for queue in 0..count {
            queues.restore_position(QueuePosition {
                key: key(queue / 4, queue as u32 % 4),
                next: at(0),
                first_segment: base(0),
                last_segment: base(0),
            });
        }
        let idle = (queues.memory_bytes() - empty) / count;
        // A shard has a table of its own, and the smallest ones are coarse.
        assert!(idle <= if count < 5_000 { 128 } else { 95 }, "{count} idle queues: {idle}");
        let before = queues.memory_bytes();
        queues.start_part(base(0));
        for round in 0..4 {
            for queue in 0..count {
                let offset = (round * count + queue) * 8;
                queues.put(key(queue / 4, queue as u32 % 4), &entry(offset, round, 1));
            }
            let each = (queues.memory_bytes() - before) / count;
            assert!(each <= QUEUE_COST + 10, "{count} queues, entry {round}: {each}");
        }
    }
    let queues = queues(&disk());
    queues.start_part(base(0));
    let empty = queues.memory_bytes();
    for offset in 0..100_000 {
        queues.put(key(1, 0), &entry(offset * 8, offset, 1));
    }
    assert!(queues.memory_bytes() - empty <= 100_000 * ENTRY_COST + 1000);
}

#[test]
fn readers_find_every_offset_below_the_next_one_while_parts_come_and_go() {
    let disk = disk();
    let queues = queues(&disk);
    queues.start_part(base(0));
    let done = AtomicBool::new(false);
    let keys: Vec<_> = (0..5).map(|queue| key(1, queue)).collect();
    std::thread::scope(|scope| {
        for reader in 0..2_u64 {
            let (queues, done, keys) = (&queues, &done, &keys);
            scope.spawn(move || {
                let (mut out, mut turn) = (Vec::new(), reader);
                while !done.load(Ordering::Relaxed) {
                    for key in keys {
                        let next = next_offset(queues, *key).get();
                        if next == 0 {
                            continue;
                        }
                        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let from = at((turn >> 33) % next);
                        let found =
                            queues.lookup(*key, from, 10, &mut out, &mut Trail::default()).unwrap();
                        assert_eq!((found, out[0].queue_offset), (Lookup::Found, from));
                    }
                }
            });
        }
        for segment in 0..30_u64 {
            for index in 0..2_000 {
                let (queue, offset) = (index % 5, segment * SEGMENT + index * 128);
                let queue_offset = segment * 400 + index / 5;
                queues.put(keys[queue as usize], &entry(offset, queue_offset, 1));
            }
            queues.start_part(base(segment + 1));
            if segment % 2 == 1 {
                queues.seal(base(segment - 1), base(segment)).unwrap();
                queues.seal(base(segment), base(segment + 1)).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
