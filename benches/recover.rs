//! Opening a store after an unclean stop with 128 MiB unsealed, and after a clean one.
//!
//! The store is made, and opened again and again, by processes of their own that end without closing it; each opening
//! drops the cached pages of what it reads, as every start does. The control reads as many bytes of a plain file, its
//! cached pages dropped too, in pieces of 1 MiB with their CRC32C.
//!
//! | case | opens | beside |
//! | --- | --- | --- |
//! | `recover/128MiB/…` | what is not sealed, and nothing else | that read of a plain file |
//! | `recover/4GiB/unclean` | the same behind 4 GiB of sealed segments | the same behind 1 GiB |
//! | `recover/4GiB/image` | those 4 GiB without snapshots: from the image in the log | with them |
//!
//! Before each opening of a store with sealed segments the cached pages of all its files are dropped.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstem::clock::SystemClock;
use mainstem::file::disk::{Access, Disk as _, RealDisk};
use mainstem::file::segment::Prefill;
use mainstem::format::crc32c;
use mainstem::message::FlushMode;
use mainstem::store::Store;
use mainstem::testing::TopicsOnly;
use measure::rig::{Drive, PlainFile, Prepared, Rig, append_patiently, config};
use measure::{Bench, Case, Slice, process_cpu, say};

const SEGMENT: u64 = 256 << 20;
/// Of a quick run, which shows that all works.
const QUICK_SEGMENT: u64 = 4 << 20;
/// Openings from an image, and as many with a snapshot.
const IMAGE_ROUNDS: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "child-make", dir, segment, sealed, bytes] => {
            return make(Path::new(dir), number(segment), number(sealed), number(bytes));
        }
        [_, "child-open", dir, segment, stop] => {
            return open(Path::new(dir), number(segment), stop);
        }
        _ => {}
    }
    let mut bench = Bench::start("recover");
    for stop in ["unclean", "clean"] {
        let name = format!("recover/128MiB/{stop}");
        if bench.wants(&name) {
            measure_stop(&mut bench, name, stop);
        }
    }
    let names = ["recover/4GiB/unclean", "recover/4GiB/image"];
    if names.iter().any(|name| bench.wants(name)) {
        measure_sealed(&mut bench, names);
    }
    bench.finish();
}

fn number(argument: &str) -> u64 {
    argument.parse().expect("a number")
}

/// Two stores that differ in what they have sealed.
fn measure_sealed(bench: &mut Bench, [unclean, image]: [&str; 2]) {
    let segment = bench.pick(SEGMENT, QUICK_SEGMENT);
    let [large, small] = [16, 4].map(|sealed| Sealed::make(bench, segment, sealed));
    if bench.wants(unclean) {
        let case = Case {
            name: unclean.to_owned(),
            control: "1 GiB sealed, as much that is not",
            unit: "open",
            reach: Some(1.0 / 1.3),
        };
        let slice = |opened: Opened| Slice {
            wall: opened.wall,
            cpu: opened.cpu,
            work: 1.0,
            bytes: segment / 2,
        };
        bench.compare(&case, &mut || slice(large.open()), &mut || slice(small.open()));
        for (sealed, store) in [("4GiB", &large), ("1GiB", &small)] {
            let opened = store.open();
            let name = format!("recover/{sealed}/unclean");
            let text = format!("{:.1} ms; {}", opened.wall.as_secs_f64() * 1e3, opened.report);
            bench.note(&name, &text, serde_json::json!({ "report": opened.report }));
        }
    }
    if bench.wants(image) {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let mut report = String::new();
        for round in 0..bench.pick(IMAGE_ROUNDS, 1) {
            let mut snapshot = || with.push(large.open().wall.as_secs_f64());
            if round % 2 == 0 {
                snapshot();
            }
            let opened = large.without_snapshots(|| large.open());
            without.push(opened.wall.as_secs_f64());
            report = opened.report;
            if round % 2 == 1 {
                snapshot();
            }
        }
        let [with, without] = [with, without].map(median);
        let text = format!(
            "{:.1} ms from the image, {:.1} ms from a snapshot; {report}",
            without * 1e3,
            with * 1e3
        );
        let facts = serde_json::json!({ "image": without, "snapshot": with, "report": report });
        bench.note(image, &text, facts);
    }
    for store in [large, small] {
        std::fs::remove_dir_all(store.dir).expect("the data can be removed");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A store that was not closed: so many sealed segments, and half a segment that is not.
struct Sealed {
    dir: PathBuf,
    segment: String,
}

impl Sealed {
    fn make(bench: &Bench, segment: u64, sealed: u64) -> Self {
        let dir = bench.fresh_dir(&format!("sealed-{sealed}"));
        let segment_text = segment.to_string();
        child(&[
            "child-make",
            &dir.join("store").to_string_lossy(),
            &segment_text,
            &sealed.to_string(),
            &(segment / 2).to_string(),
        ]);
        Self { dir, segment: segment_text }
    }

    fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    fn open(&self) -> Opened {
        drop_cache_below(&self.store());
        child(&["child-open", &self.store().to_string_lossy(), &self.segment, "unclean"])
    }

    /// Runs `then` while the snapshots are elsewhere.
    fn without_snapshots<T>(&self, then: impl FnOnce() -> T) -> T {
        let (snapshots, aside) = (self.store().join("state"), self.dir.join("aside"));
        std::fs::rename(&snapshots, &aside).expect("the snapshots can be moved");
        let done = then();
        std::fs::remove_dir_all(&snapshots).expect("what this opening left can be removed");
        std::fs::rename(&aside, &snapshots).expect("the snapshots can be moved back");
        done
    }
}

fn drop_cache_below(dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("the directory can be listed") {
        let path = entry.expect("the directory can be listed").path();
        if path.is_dir() {
            drop_cache_below(&path);
        } else {
            let file = RealDisk.open(&path, Access::Read).expect("the file opens");
            file.drop_cache(0..u64::MAX).expect("the cache is dropped");
        }
    }
}

fn measure_stop(bench: &mut Bench, name: String, stop: &str) {
    let dir = bench.fresh_dir(&name);
    let bytes: u64 = bench.pick(128 << 20, 4 << 20);
    let store = dir.join("store");
    let segment = SEGMENT.to_string();
    child(&["child-make", &store.to_string_lossy(), &segment, "0", &bytes.to_string()]);
    let file = PlainFile::new(&dir, bytes, Prefill::Zeros);
    let opened = || child(&["child-open", &store.to_string_lossy(), &segment, stop]);
    // The first opening of a store that was not closed is an unclean one in either case.
    let first = opened();
    bench.note(
        &name,
        &format!("first: {}", first.report),
        serde_json::json!({ "report": first.report }),
    );
    let case = Case {
        name,
        control: "pread + CRC32C of as many bytes, not cached",
        unit: "byte",
        reach: None,
    };
    bench.compare(
        &case,
        &mut || {
            let opened = opened();
            let work = bytes as f64;
            Slice { wall: opened.wall, cpu: opened.cpu, work, bytes }
        },
        &mut || {
            file.drop_cache();
            let mut piece = vec![0; 1 << 20];
            Slice::of(bytes as f64, bytes, || {
                for at in (0..bytes).step_by(piece.len()) {
                    file.read(&mut piece, at);
                    std::hint::black_box(crc32c(&piece));
                }
            })
        },
    );
    let last = opened();
    let text = format!("opened in {:.1} ms; {}", last.wall.as_secs_f64() * 1e3, last.report);
    let facts = serde_json::json!({ "seconds": last.wall.as_secs_f64(), "report": last.report });
    bench.note(&case.name, &text, facts);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

struct Opened {
    wall: Duration,
    cpu: Duration,
    report: String,
}

/// Runs this program again with `arguments`, and reads the line that it prints.
fn child(arguments: &[&str]) -> Opened {
    let program: PathBuf = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program).args(arguments).output().expect("the child runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut fields = line.splitn(3, ' ');
    let mut nanos = || {
        let field = fields.next().and_then(|field| field.parse().ok());
        Duration::from_nanos(field.unwrap_or_default())
    };
    let (wall, cpu) = (nanos(), nanos());
    Opened { wall, cpu, report: fields.next().unwrap_or_default().to_owned() }
}

/// Appends so many segments of batches, and seals them; then `bytes` of messages of 1 KiB with a key each, makes them
/// durable, and ends without closing.
fn make(dir: &Path, segment: u64, sealed: u64, bytes: u64) {
    let mut rig = Rig::open(config(dir, segment), Drive::Stepped, FlushMode::Sync);
    let mut number = 0;
    while rig.store.watermarks().appended.get() < sealed * segment {
        let batch = Prepared::new(100, 1 << 10, Some(number));
        append_patiently(&rig.store, rig.record((number % 4) as u32, &batch));
        number += 100;
        rig.rest();
    }
    rig.workers.as_mut().expect("the store is stepped").settle();
    while rig.store.watermarks().appended.get() < sealed * segment + bytes {
        let batch = Prepared::new(1, 1 << 10, Some(number));
        append_patiently(&rig.store, rig.record((number % 4) as u32, &batch));
        number += 1;
        if number % 1_000 == 0 {
            rig.rest();
        }
    }
    let status = rig.store.status();
    assert_eq!((status.segments - status.unsealed) as u64, sealed, "what is finished is sealed");
    rig.workers.as_mut().expect("the store is stepped").flush.flush_all();
    std::process::exit(0);
}

/// Opens the store, prints what that took, and ends: without closing, or with it.
fn open(dir: &Path, segment: u64, stop: &str) {
    let (cpu, start) = (process_cpu(), Instant::now());
    let disk = Arc::new(RealDisk);
    let clock = Arc::new(SystemClock::new());
    let (store, report) =
        Store::open(disk, clock, config(dir, segment), Arc::new(TopicsOnly::default()))
            .unwrap_or_else(|error| panic!("{error}"));
    let (wall, cpu) = (start.elapsed(), process_cpu().saturating_sub(cpu));
    let report = report.to_string().replace('\n', "; ");
    if stop == "clean" {
        store.close().expect("the store closes");
    }
    say(&format!("{} {} {report}", wall.as_nanos(), cpu.as_nanos()));
    std::process::exit(0);
}
