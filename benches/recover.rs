//! Opening a store after an unclean stop with 128 MiB unsealed, and after a clean one.
//!
//! The store is made, and opened again and again, by processes of their own that end without closing it; each opening
//! drops the cached pages of what it reads, as every start does. The control reads as many bytes of a plain file, its
//! cached pages dropped too, in pieces of 1 MiB with their CRC32C.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstem::clock::SystemClock;
use mainstem::file::disk::RealDisk;
use mainstem::format::crc32c;
use mainstem::message::FlushMode;
use mainstem::store::Store;
use mainstem::testing::TopicsOnly;
use measure::rig::{Drive, PlainFile, Prepared, Rig, append_patiently, config};
use measure::{Bench, Case, Slice, process_cpu, say};

const SEGMENT: u64 = 256 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "child-make", dir, bytes] => return make(Path::new(dir), bytes),
        [_, "child-open", dir, stop] => return open(Path::new(dir), stop),
        _ => {}
    }
    let mut bench = Bench::start("recover");
    for stop in ["unclean", "clean"] {
        let name = format!("recover/128MiB/{stop}");
        if bench.wants(&name) {
            measure_stop(&mut bench, name, stop);
        }
    }
    bench.finish();
}

fn measure_stop(bench: &mut Bench, name: String, stop: &str) {
    let dir = bench.fresh_dir(&name);
    let bytes: u64 = bench.pick(128 << 20, 4 << 20);
    let store = dir.join("store");
    child(&["child-make", &store.to_string_lossy(), &bytes.to_string()]);
    let file = PlainFile::new(&dir, bytes);
    let opened = || child(&["child-open", &store.to_string_lossy(), stop]);
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

/// Appends `bytes` of messages of 1 KiB with a key each, makes them durable, and ends without closing.
fn make(dir: &Path, bytes: &str) {
    let bytes: u64 = bytes.parse().expect("a number of bytes");
    let mut rig = Rig::open(config(dir, SEGMENT), Drive::Stepped, FlushMode::Sync);
    let mut number = 0;
    while rig.store.watermarks().appended.get() < bytes {
        let batch = Prepared::new(1, 1 << 10, Some(number));
        append_patiently(&rig.store, rig.record((number % 4) as u32, &batch));
        number += 1;
        if number % 1_000 == 0 {
            rig.rest();
        }
    }
    rig.workers.as_mut().expect("the store is stepped").flush.flush_all();
    std::process::exit(0);
}

/// Opens the store, prints what that took, and ends: without closing, or with it.
fn open(dir: &Path, stop: &str) {
    let (cpu, start) = (process_cpu(), Instant::now());
    let disk = Arc::new(RealDisk);
    let clock = Arc::new(SystemClock::new());
    let (store, report) =
        Store::open(disk, clock, config(dir, SEGMENT), Arc::new(TopicsOnly::default()))
            .unwrap_or_else(|error| panic!("{error}"));
    let (wall, cpu) = (start.elapsed(), process_cpu().saturating_sub(cpu));
    let report = report.to_string().replace('\n', "; ");
    if stop == "clean" {
        store.close().expect("the store closes");
    }
    say(&format!("{} {} {report}", wall.as_nanos(), cpu.as_nanos()));
    std::process::exit(0);
}
