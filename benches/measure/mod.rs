//! Measures a subject against a control in one run.
//!
//! A round is A B B A: subject, control, control, subject. Its ratio is the subject's rate by the control's. A round
//! whose two controls differ by more than [`MAX_MOVE`] is void and repeated, a bounded number of times; the figure is
//! the median of the ratios of the valid rounds. A case without enough valid rounds is printed and marked void.
//!
//! Beside the wall clock stands the process clock: CPU time that this process used, which other programs on the same
//! cores disturb much less.
//!
//! Printed are a line per case, and one line of JSON at the end with all of it. Arguments: words that a case's name
//! must contain (any of them; `=` before a word: the whole name), `--quick` for a run of seconds that shows that all works and no figure to quote.
//! `MAINSTEM_BENCH_DIR` is where data goes, by default the build's own temporary directory.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod rig;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// By how much the controls of a round may differ.
const MAX_MOVE: f64 = 0.10;
/// Valid rounds of a case.
const ROUNDS: usize = 15;
/// Fewer valid rounds than this are no result.
const MIN_ROUNDS: usize = 9;
/// Rounds that may be tried for each that is wanted.
const TRIES: usize = 4;

/// The work of one slice and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slice {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// What a rate counts: messages, or syncs.
    pub(crate) work: f64,
    pub(crate) bytes: u64,
}

impl Slice {
    /// Times `run`, which does `work` units over `bytes`.
    pub(crate) fn of(work: f64, bytes: u64, run: impl FnOnce()) -> Self {
        let (cpu, start) = (process_cpu(), Instant::now());
        run();
        Self { wall: start.elapsed(), cpu: process_cpu().saturating_sub(cpu), work, bytes }
    }

    /// Both, one after the other.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            wall: self.wall + other.wall,
            cpu: self.cpu + other.cpu,
            work: self.work + other.work,
            bytes: self.bytes + other.bytes,
        }
    }

    fn rate(&self) -> f64 {
        self.work / self.wall.as_secs_f64().max(1e-9)
    }

    fn cpu_each(&self) -> f64 {
        self.cpu.as_secs_f64() / self.work.max(1e-9)
    }
}

/// CPU time of this process so far.
pub(crate) fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// What a case asks for.
pub(crate) struct Case<'a> {
    /// Size, flush mode, concurrency: `append/1KiB/async/1`.
    pub(crate) name: String,
    /// What the control does, in words.
    pub(crate) control: &'a str,
    /// What the rate counts.
    pub(crate) unit: &'a str,
    /// The ratio to reach.
    pub(crate) reach: Option<f64>,
}

/// A bench under way.
pub(crate) struct Bench {
    name: &'static str,
    pub(crate) quick: bool,
    filters: Vec<String>,
    pub(crate) dir: PathBuf,
    results: Vec<Value>,
}

impl Bench {
    /// Reads the arguments and prints where it runs.
    pub(crate) fn start(name: &'static str) -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        // Without `--bench` this is a test run of all targets: show that it works.
        let quick = arguments.iter().any(|argument| argument == "--quick")
            || !arguments.iter().any(|argument| argument == "--bench");
        let filters = arguments.into_iter().filter(|word| !word.starts_with('-')).collect();
        let parent = std::env::var_os("MAINSTEM_BENCH_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let dir = parent.join(format!("bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the directory for data can be made");
        let bench = Self { name, quick, filters, dir, results: Vec::new() };
        let place = bench.place();
        say(&format!("{name}: {place}{}", if quick { ", quick: no figures to quote" } else { "" }));
        bench
    }

    /// Whether the case is asked for.
    pub(crate) fn wants(&self, case: &str) -> bool {
        let matches = |word: &String| match word.strip_prefix('=') {
            Some(whole) => case == whole,
            None => case.contains(word.as_str()),
        };
        self.filters.is_empty() || self.filters.iter().any(matches)
    }

    /// Rounds to be run.
    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 2 } else { ROUNDS }
    }

    /// One or the other, by how long the run may take.
    pub(crate) fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// A fresh directory for data.
    pub(crate) fn fresh_dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name.replace('/', "-"));
        if dir.exists() {
            std::fs::remove_dir_all(&dir).expect("old data can be removed");
        }
        std::fs::create_dir_all(&dir).expect("the directory for data can be made");
        dir
    }

    /// Runs the rounds of a case and prints its line.
    pub(crate) fn compare(
        &mut self,
        case: &Case<'_>,
        subject: &mut dyn FnMut() -> Slice,
        control: &mut dyn FnMut() -> Slice,
    ) {
        let wanted = self.rounds();
        self.compare_in(case, (wanted, wanted * TRIES), subject, control);
    }

    /// The same in so many rounds, of so many tries at most: for a case whose rounds are long.
    pub(crate) fn compare_in(
        &mut self,
        case: &Case<'_>,
        (wanted, most): (usize, usize),
        subject: &mut dyn FnMut() -> Slice,
        control: &mut dyn FnMut() -> Slice,
    ) {
        // Caches, tables and branch predictors are those of a broker that runs.
        subject();
        control();
        let mut all = Rounds::default();
        while all.valid.len() < wanted && all.tried() < most {
            let (first, [before, after]) = (subject(), [control(), control()]);
            all.add(first.and(subject()), before, after);
        }
        self.report(case, wanted, &mut all);
    }

    fn report(&mut self, case: &Case<'_>, wanted: usize, rounds: &mut Rounds) {
        let void = rounds.valid.len() < MIN_ROUNDS.min(wanted);
        let voided = rounds.void.len();
        if void {
            rounds.valid.append(&mut rounds.void);
        }
        let of = |value: fn(&Round) -> f64| quartiles(rounds.valid.iter().map(value).collect());
        let wall = of(|r| r.subject.rate() / r.control.rate());
        let cpu = of(|r| r.control.cpu_each() / r.subject.cpu_each());
        let rate = of(|r| r.subject.rate()).median;
        let control_rate = of(|r| r.control.rate());
        let mb = of(|r| r.subject.bytes as f64 / r.subject.wall.as_secs_f64() / 1e6).median;
        let cpu_each = of(|r| r.subject.cpu_each() * 1e9).median;
        let control_cpu = of(|r| r.control.cpu_each() * 1e9).median;
        let verdict = match (void, case.reach) {
            (true, _) => "VOID",
            (false, Some(reach)) if wall.median < reach => "below",
            (false, Some(_)) => "reached",
            (false, None) => "",
        };
        let unit = case.unit;
        say(&format!(
            "{:<34} ratio {:.3} ({:.3}-{:.3}) cpu {:.3}  {} {unit}/s {mb:.0} MB/s {} cpu/{}  control {} {unit}/s ±{:.0} % {} cpu/{}  rounds {} void {voided} {verdict}",
            case.name,
            wall.median,
            wall.low,
            wall.high,
            cpu.median,
            count(rate),
            nanos(cpu_each),
            &unit[..1],
            count(control_rate.median),
            (control_rate.high - control_rate.low) / control_rate.median * 50.0,
            nanos(control_cpu),
            &unit[..1],
            rounds.valid.len(),
        ));
        self.results.push(json!({
            "case": case.name, "control": case.control, "unit": unit, "reach": case.reach,
            "ratio": wall.median, "ratio_quartiles": [wall.low, wall.high], "cpu_ratio": cpu.median,
            "rate": rate, "bytes_per_second": mb * 1e6, "cpu_ns": cpu_each,
            "control_rate": control_rate.median, "control_cpu_ns": control_cpu,
            "rounds": rounds.valid.len(), "voided": voided, "void": void,
        }));
    }

    /// Prints the distribution of single calls.
    pub(crate) fn latencies(&mut self, case: &str, histogram: &Histogram<u64>) {
        let at = |quantile| histogram.value_at_quantile(quantile);
        let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
        let nanos = |value: u64| nanos(value as f64);
        say(&format!(
            "{case:<34} p50 {} p99 {} p999 {} max {} ({} calls)",
            nanos(p50),
            nanos(p99),
            nanos(p999),
            nanos(histogram.max()),
            histogram.len()
        ));
        self.results.push(json!({
            "case": case, "p50_ns": p50, "p99_ns": p99, "p999_ns": p999, "max_ns": histogram.max(),
            "calls": histogram.len(),
        }));
    }

    /// Prints a fact that is no ratio.
    pub(crate) fn note(&mut self, case: &str, text: &str, facts: Value) {
        say(&format!("{case:<34} {text}"));
        self.results.push(json!({ "case": case, "facts": facts }));
    }

    /// Removes the data and prints the line of JSON.
    pub(crate) fn finish(self) {
        let line = json!({
            "bench": self.name, "place": self.place(), "quick": self.quick, "results": self.results,
        });
        std::fs::remove_dir_all(&self.dir).expect("the data can be removed");
        say(&line.to_string());
    }

    fn place(&self) -> String {
        let (device, system) = mount_of(&self.dir);
        let kernel = read("/proc/sys/kernel/osrelease");
        let cpu_info = read("/proc/cpuinfo");
        let model = cpu_info
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")
                    .map(|rest| rest.trim_start_matches([' ', '\t', ':']))
            })
            .unwrap_or("?");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        format!("device {device}, {system}, Linux {}, {cores} × {model}", kernel.trim())
    }
}

/// The time of each call of `run`.
pub(crate) fn latencies(calls: usize, mut run: impl FnMut(usize)) -> Histogram<u64> {
    let minute = 60_000_000_000;
    let mut histogram = Histogram::new_with_max(minute, 3).expect("the bounds are legal");
    for call in 0..calls {
        let start = Instant::now();
        run(call);
        histogram.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    histogram
}

#[derive(Default)]
struct Rounds {
    valid: Vec<Round>,
    void: Vec<Round>,
}

struct Round {
    subject: Slice,
    control: Slice,
}

impl Rounds {
    fn tried(&self) -> usize {
        self.valid.len() + self.void.len()
    }

    fn add(&mut self, subject: Slice, before: Slice, after: Slice) {
        let (low, high) = (before.rate().min(after.rate()), before.rate().max(after.rate()));
        let round = Round { subject, control: before.and(after) };
        if high / low - 1.0 > MAX_MOVE { &mut self.void } else { &mut self.valid }.push(round);
    }
}

struct Quartiles {
    low: f64,
    median: f64,
    high: f64,
}

fn quartiles(mut values: Vec<f64>) -> Quartiles {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (values.len().saturating_sub(1) as f64 * share).round() as usize;
        values.get(index).copied().unwrap_or(f64::NAN)
    };
    Quartiles { low: at(0.25), median: at(0.5), high: at(0.75) }
}

/// Device and file system of the mount with the longest path above `dir`.
fn mount_of(dir: &Path) -> (String, String) {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = read("/proc/self/mounts");
    let mut best = ("?", "?", 0);
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        if let (Some(device), Some(point), Some(system)) =
            (fields.next(), fields.next(), fields.next())
            && dir.starts_with(point)
            && point.len() >= best.2
        {
            best = (device, system, point.len());
        }
    }
    (best.0.to_owned(), best.1.to_owned())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn count(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.2} M", rate / 1e6),
        rate if rate >= 1e4 => format!("{:.0} k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}

fn nanos(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} ms", value / 1e6),
        value if value >= 1e4 => format!("{:.1} µs", value / 1e3),
        value => format!("{value:.0} ns"),
    }
}

/// A line on standard output.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("standard output takes a line");
}
