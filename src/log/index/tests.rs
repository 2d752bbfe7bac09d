//! The index against a model: memory, files, and both together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::file::sim::SimDisk;
use crate::format::pages::PAGE_LEN;

const STORE: [u8; 16] = [7; 16];
const SEGMENT: u64 = 1 << 30;
const ALL: Range<PhysicalOffset> = PhysicalOffset::ZERO..PhysicalOffset::new(u64::MAX);

fn disk() -> Arc<dyn Disk> {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("index")).unwrap();
    Arc::new(disk)
}

fn indexes(disk: &Arc<dyn Disk>) -> Indexes {
    Indexes::new(disk.clone(), "index".into(), STORE)
}

fn base(segment: u64) -> PhysicalOffset {
    PhysicalOffset::new(segment * SEGMENT)
}

/// Spreads small numbers over the hashes; 0 stays 0.
fn hash(key: u64) -> u64 {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn flip(disk: &dyn Disk, path: &str, position: u64) {
    let file = disk.open(Path::new(path), crate::file::disk::Access::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, position).unwrap();
    file.write_at(&[std::io::IoSlice::new(&[byte[0] ^ 4])], position).unwrap();
}

fn offsets(raw: impl IntoIterator<Item = u64>) -> Vec<PhysicalOffset> {
    raw.into_iter().map(PhysicalOffset::new).collect()
}

fn find(
    indexes: &Indexes,
    key: u64,
    order: Order,
    max: usize,
) -> (Vec<PhysicalOffset>, Vec<PhysicalOffset>) {
    let mut out = offsets([1]);
    let coverage = indexes.find(hash(key), ALL, order, max, &mut out).unwrap();
    (out, coverage.incomplete)
}

#[derive(Clone, Debug)]
enum Step {
    Put { keys: Vec<u64>, skip: u64 },
    Roll,
    Seal { which: prop::sample::Index },
    Find { key: u64, window: (u64, u64), newest_first: bool, max: usize },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || prop_oneof![3 => Just(0_u64), 3 => Just(u64::MAX), 5 => 1..20_u64];
    prop_oneof![
        50 => (prop::collection::vec(key(), 0..4), 0..3_u64)
            .prop_map(|(keys, skip)| Step::Put { keys, skip }),
        4 => Just(Step::Roll),
        4 => any::<prop::sample::Index>().prop_map(|which| Step::Seal { which }),
        30 => (key(), (0..=1000_u64, 0..=1000_u64), any::<bool>(), 0..40_usize).prop_map(
            |(key, window, newest_first, max)| Step::Find { key, window, newest_first, max }
        ),
        1 => Just(Step::Reopen),
    ]
}

struct Model {
    disk: Arc<dyn Disk>,
    indexes: Indexes,
    entries: BTreeMap<u64, Vec<PhysicalOffset>>,
    log: Vec<(u64, PhysicalOffset)>,
    offset: u64,
    segment: u64,
}

impl Model {
    fn new() -> Self {
        let disk = disk();
        let indexes = indexes(&disk);
        indexes.start_part(base(0));
        Self { disk, indexes, entries: BTreeMap::new(), log: Vec::new(), offset: 0, segment: 0 }
    }

    fn put(&mut self, keys: Vec<u64>, skip: u64) {
        let at = PhysicalOffset::new(self.offset + skip * 8);
        for key in keys {
            self.indexes.put(hash(key), at);
            self.log.push((hash(key), at));
            let known = self.entries.entry(key).or_default();
            if known.last() != Some(&at) {
                known.push(at);
            }
        }
        self.offset = at.get() + 8;
    }

    fn seal(&mut self, segment: u64) {
        self.indexes.seal(base(segment), base(segment + 1)).unwrap();
    }

    fn reopen(&mut self) {
        (0..self.segment).for_each(|segment| self.seal(segment));
        self.indexes = indexes(&self.disk);
        for segment in 0..self.segment {
            assert!(self.indexes.adopt_sealed(base(segment), base(segment + 1)).unwrap());
        }
        self.indexes.start_part(base(self.segment));
        let active = self.log.iter().filter(|(_, at)| *at >= base(self.segment));
        active.for_each(|(hash, at)| self.indexes.put(*hash, *at));
    }

    /// A thousandth of the log's used ranges, as an offset.
    fn offset_at(&self, thousandth: u64) -> PhysicalOffset {
        let all: Vec<_> = self.log.iter().map(|(_, at)| at.get()).collect();
        match all.get(all.len() * thousandth as usize / 1000) {
            // Also between records.
            Some(at) => PhysicalOffset::new(at + thousandth % 3),
            None => PhysicalOffset::new(u64::MAX),
        }
    }

    fn check(&self, key: u64, window: (u64, u64), order: Order, max: usize) {
        let window = self.offset_at(window.0)..self.offset_at(window.1);
        let entries = self.entries.get(&key).map_or(&[][..], Vec::as_slice);
        let inside = entries.iter().copied().filter(|at| window.contains(at));
        let mut expected: Vec<_> = inside.collect();
        if order == Order::NewestFirst {
            expected.reverse();
        }
        expected.truncate(max);
        let mut out = Vec::new();
        let coverage = self.indexes.find(hash(key), window, order, max, &mut out).unwrap();
        assert_eq!((out, coverage), (expected, Coverage::default()));
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Put { keys, skip } => self.put(keys, skip),
            Step::Roll => {
                self.segment += 1;
                self.offset = base(self.segment).get();
                self.indexes.start_part(base(self.segment));
            }
            Step::Seal { which } if self.segment > 0 => {
                self.seal(which.index(self.segment as usize) as u64);
            }
            Step::Seal { .. } => {}
            Step::Find { key, window, newest_first, max } => {
                let order = if newest_first { Order::NewestFirst } else { Order::OldestFirst };
                self.check(key, window, order, max);
            }
            Step::Reopen => self.reopen(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn finds_what_was_put_wherever_it_is_now(steps in prop::collection::vec(step(), 1..400)) {
        let mut model = Model::new();
        steps.into_iter().for_each(|step| model.run(step));
    }
}

#[test]
fn hot_key_pages_in_both_orders_in_memory_and_in_files() {
    const COUNT: u64 = 100_000;
    let disk = disk();
    let indexes = indexes(&disk);
    for segment in 0..2 {
        indexes.start_part(base(segment));
        for index in 0..COUNT {
            let at = base(segment).plus(index * 128);
            indexes.put(hash(1), at);
            indexes.put(hash(2 + index), at);
        }
    }
    indexes.start_part(base(2));
    for sealed in 0..3 {
        for order in [Order::OldestFirst, Order::NewestFirst] {
            let mut window = ALL;
            let (mut page, mut seen) = (Vec::new(), Vec::new());
            loop {
                indexes.find(hash(1), window.clone(), order, 1000, &mut page).unwrap();
                let Some(last) = page.last() else { break };
                match order {
                    Order::OldestFirst => window.start = last.plus(1),
                    Order::NewestFirst => window.end = *last,
                }
                assert!(page.len() <= 1000 && page.capacity() <= 2000);
                seen.append(&mut page);
            }
            if order == Order::NewestFirst {
                seen.reverse();
            }
            let expected = (0..2 * COUNT).map(|i| i / COUNT * SEGMENT + i % COUNT * 128);
            assert_eq!(seen, offsets(expected), "{sealed} sealed, {order:?}");
        }
        // The hot key does not get in the way of the others.
        for key in [2, 500, COUNT + 1] {
            let expected = offsets([(key - 2) * 128, SEGMENT + (key - 2) * 128]);
            assert_eq!(find(&indexes, key, Order::OldestFirst, 10), (expected, vec![]));
        }
        assert_eq!(find(&indexes, COUNT + 2, Order::OldestFirst, 10), (vec![], vec![]));
        if sealed < 2 {
            indexes.seal(base(sealed), base(sealed + 1)).unwrap();
        }
    }
}

/// Three sealed segments with key 1 in each, and an empty part.
fn three(disk: &Arc<dyn Disk>) -> Indexes {
    let indexes = indexes(disk);
    for segment in 0..3 {
        indexes.start_part(base(segment));
        for index in 0..2000 {
            indexes.put(hash(index), base(segment).plus(index * 128));
        }
    }
    indexes.start_part(base(3));
    (0..3).for_each(|segment| indexes.seal(base(segment), base(segment + 1)).unwrap());
    indexes
}

#[test]
fn coverage_names_missing_files_of_what_was_walked_only() {
    let indexes = three(&disk());
    let at = |segment: u64| segment * SEGMENT + 128;
    indexes.mark_missing(base(1), base(2));
    assert_eq!(indexes.missing(), [(base(1), base(2))]);
    let oldest = Order::OldestFirst;
    assert_eq!(find(&indexes, 1, oldest, 1), (offsets([at(0)]), vec![]));
    assert_eq!(find(&indexes, 1, oldest, 9), (offsets([at(0), at(2)]), vec![base(1)]));
    let newest = Order::NewestFirst;
    assert_eq!(find(&indexes, 1, newest, 1), (offsets([at(2)]), vec![]));
    assert_eq!(find(&indexes, 1, newest, 2), (offsets([at(2), at(0)]), vec![base(1)]));
    assert_eq!(find(&indexes, 1, newest, 0), (vec![], vec![]));
    let mut out = Vec::new();
    let coverage = indexes.find(hash(1), base(2)..base(3), oldest, 9, &mut out).unwrap();
    assert_eq!((out, coverage), (offsets([at(2)]), Coverage::default()));
}

#[test]
fn only_what_the_window_crosses_is_lacking() {
    let disk = disk();
    let indexes = three(&disk);
    indexes.mark_lacking(&(base(3)..base(4)));
    indexes.start_part(base(4));
    let lacking = |indexes: &Indexes, window: Range<u64>, order| {
        let window = PhysicalOffset::new(window.start)..PhysicalOffset::new(window.end);
        let coverage = indexes.find(hash(1), window, order, 9, &mut Vec::new()).unwrap();
        coverage.is_lacking
    };
    let check = |indexes: &Indexes, what: &str| {
        for order in [Order::OldestFirst, Order::NewestFirst] {
            for (window, expected) in [
                (0..5 * SEGMENT, true),
                (0..3 * SEGMENT, false),
                (0..3 * SEGMENT + 1, true),
                (4 * SEGMENT - 1..5 * SEGMENT, true),
                (4 * SEGMENT..5 * SEGMENT, false),
            ] {
                let found = lacking(indexes, window.clone(), order);
                assert_eq!(found, expected, "{what}, {window:?}, {order:?}");
            }
        }
    };
    check(&indexes, "in memory");
    indexes.seal(base(3), base(4)).unwrap();
    check(&indexes, "in its file");
    let again = self::indexes(&disk);
    (0..4).for_each(|n| assert!(again.adopt_sealed(base(n), base(n + 1)).unwrap()));
    check(&again, "adopted");
}

#[test]
fn damaged_page_is_found_by_the_read_that_needs_it_and_the_file_is_rebuilt() {
    let path = format!("index/{SEGMENT:020}.idx");
    let pages = {
        let disk = disk();
        three(&disk);
        disk.list(Path::new("index")).unwrap()[1].len / PAGE_LEN as u64
    };
    assert!(pages > 6, "{pages}");
    for page in 1..pages {
        let disk = disk();
        let indexes = three(&disk);
        flip(&*disk, &path, page * PAGE_LEN as u64 + 100);
        let (mut errors, mut out) = (Vec::new(), Vec::new());
        for key in 0..2000 {
            match indexes.find(hash(key), ALL, Order::OldestFirst, 9, &mut out) {
                Ok(coverage) if errors.is_empty() => assert_eq!(coverage, Coverage::default()),
                Ok(coverage) => assert_eq!(coverage.incomplete, [base(1)]),
                Err(error) => errors.push(error),
            }
        }
        let [SealedError::Damaged { base: damaged, page: found }] = errors[..] else {
            panic!("one error, then incomplete: {errors:?}")
        };
        assert_eq!((damaged, found), (base(1), page));
        let part = IndexPart::new(base(1));
        (0..2000).for_each(|index| part.put(hash(index), base(1).plus(index * 128)));
        indexes.rebuilt(base(1), base(2), &part).unwrap();
        assert_eq!(indexes.missing(), []);
        assert_eq!(find(&indexes, 1, Order::OldestFirst, 9).0.len(), 3);
    }
}

#[test]
fn adopts_only_the_file_of_this_segment_of_this_store() {
    let disk = disk();
    three(&disk);
    let path = format!("index/{SEGMENT:020}.idx");
    let adopts = |end| indexes(&disk).adopt_sealed(base(1), end).unwrap();
    assert!(adopts(base(2)));
    assert!(!adopts(base(3)), "another end");
    let other = Indexes::new(disk.clone(), "index".into(), [8; 16]);
    assert!(!other.adopt_sealed(base(1), base(2)).unwrap(), "another store");
    for position in 0..PAGE_LEN as u64 {
        flip(&*disk, &path, position);
        assert!(!adopts(base(2)), "header byte {position}");
        flip(&*disk, &path, position);
    }
    disk.rename(Path::new(&path), Path::new("index/00000000000000000000.idx")).unwrap();
    assert!(!indexes(&disk).adopt_sealed(base(0), base(1)).unwrap(), "another segment");
}

#[test]
fn memory_is_what_the_cost_says() {
    for count in [20_000_u64, 60_000, 115_000, 200_000] {
        let part = IndexPart::new(base(0));
        let empty = part.memory_bytes();
        (0..count).for_each(|index| part.put(hash(index), base(0).plus(index * 8)));
        let each = (part.memory_bytes() - empty) / count;
        assert!(each <= ENTRY_COST, "{count} hashes: {each}");
    }
    let part = IndexPart::new(base(0));
    let empty = part.memory_bytes();
    (0..100_000).for_each(|index| part.put(7, base(0).plus(index * 8)));
    assert!(part.memory_bytes() - empty <= 100_000 * 20 + 1000);
}

#[test]
fn readers_find_every_record_while_parts_come_and_go() {
    let disk = disk();
    let indexes = indexes(&disk);
    indexes.start_part(base(0));
    indexes.put(hash(3), base(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for order in [Order::OldestFirst, Order::NewestFirst] {
            let (indexes, done) = (&indexes, &done);
            scope.spawn(move || {
                let (mut out, mut before) = (Vec::new(), 0);
                while !done.load(Ordering::Relaxed) {
                    indexes.find(hash(3), ALL, order, usize::MAX, &mut out).unwrap();
                    if order == Order::NewestFirst {
                        out.reverse();
                    }
                    let whole = (0..out.len() as u64).map(|i| i / 100 * SEGMENT + i % 100 * 8);
                    assert_eq!(out, offsets(whole));
                    assert!(out.len() >= before, "what was found is found again");
                    before = out.len();
                }
            });
        }
        for segment in 0..30_u64 {
            for index in u64::from(segment == 0)..100 {
                indexes.put(hash(3), base(segment).plus(index * 8));
            }
            indexes.start_part(base(segment + 1));
            if segment % 2 == 1 {
                indexes.seal(base(segment - 1), base(segment)).unwrap();
                indexes.seal(base(segment), base(segment + 1)).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
