//! The power goes at every operation of every script, and leaves everything that it can leave.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use mainstem::file::Operation;
use mainstem::message::FlushMode;
use mainstem::store::StoreConfig;
use mainstem::testing::{CrashChoice, NameChoice, PendingCounts, SimDisk, Torn, WriteChoice};

use crate::oracle;
use crate::reused;
use crate::rig::{Dice, tiny};
use crate::script::{Run, Step, random, topics_of, without_epochs};

/// Where and how a cut happened; printed with every failure.
struct Case<'a> {
    script: &'a str,
    operation: u64,
    choice: &'a CrashChoice,
    phase: &'a str,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { script, operation, choice, phase } = self;
        write!(f, "script {script}, cut at operation {operation}, {choice:?}, {phase}")
    }
}

/// How much is tried at each cut.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Random choices beside those that are always tried.
    pub(crate) random: u64,
    /// One image in so many is also reopened, rebuilt, appended to and cut again.
    pub(crate) follow: u64,
}

pub(crate) const EVERY: Effort = Effort { random: 12, follow: 8 };

#[derive(Default, Debug)]
pub(crate) struct Tally {
    pub(crate) operations: u64,
    images: u64,
    different: u64,
    pub(crate) followed: u64,
}

/// Everything that may be left, as far as it is worth trying: nothing, all, every prefix, all but one, every subset of
/// few, random subsets of many, torn pages, mixtures.
fn choices(pending: PendingCounts, seed: u64, effort: Effort) -> Vec<CrashChoice> {
    let mut dice = Dice(seed);
    let PendingCounts { versions, names } = pending;
    let mut all = vec![CrashChoice::NOTHING, CrashChoice::EVERYTHING];
    let mut add = |names, writes, torn| all.push(CrashChoice { names, writes, torn });
    let mut some_names = {
        let mut dice = dice.clone();
        move || match dice.below(4) {
            0 => NameChoice::None,
            1 => NameChoice::All,
            2 => NameChoice::Prefix(dice.below(names as u64 + 1) as usize),
            _ => NameChoice::Subset { seed: dice.roll() },
        }
    };
    for end in 0..=versions.min(40) {
        add(some_names(), WriteChoice::Prefix(end), None);
    }
    for end in 0..=names {
        add(NameChoice::Prefix(end), WriteChoice::All, None);
        add(NameChoice::Prefix(end), WriteChoice::None, None);
    }
    if versions > 0 {
        add(NameChoice::All, WriteChoice::AllButFirst, None);
        add(NameChoice::All, WriteChoice::AllButLast, None);
        add(some_names(), WriteChoice::AllButFirst, None);
        let torn = dice.below(versions as u64) as usize;
        for sector in 1..8 {
            let torn = Torn { version: torn, keep: sector * 512 };
            add(NameChoice::All, WriteChoice::Prefix(torn.version), Some(torn));
        }
        for _ in 0..3 {
            let version = dice.below(versions as u64) as usize;
            let torn = Some(Torn { version, keep: dice.below(4096) as usize });
            add(NameChoice::All, WriteChoice::Prefix(version), torn);
            add(NameChoice::All, WriteChoice::All, torn);
        }
        for grain in [4096, 512, 1] {
            add(NameChoice::All, WriteChoice::Mixed { seed: dice.roll(), grain }, None);
        }
    }
    if versions <= 5 {
        for mask in 0..1 << versions {
            add(NameChoice::All, WriteChoice::Mask(mask), None);
        }
    } else if versions <= 8 {
        for _ in 0..32 {
            add(NameChoice::All, WriteChoice::Mask(dice.below(1 << versions)), None);
        }
    } else {
        for _ in 0..8 {
            add(some_names(), WriteChoice::Subset { seed: dice.roll() }, None);
        }
    }
    for _ in 0..effort.random {
        all.push(CrashChoice::random(dice.roll(), pending));
    }
    all
}

/// What tells two images apart.
fn fingerprint(disk: &SimDisk) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in disk.paths() {
        let bytes = disk.durable_bytes(&path).unwrap();
        path.hash(&mut hasher);
        xxhash_rust::xxh3::xxh3_64(&bytes).hash(&mut hasher);
    }
    hasher.finish()
}

/// Runs `steps` up to each of its operations, and checks all that a cut there may leave.
pub(crate) fn cut_everywhere(
    script: &str,
    config: &StoreConfig,
    steps: &[Step],
    effort: Effort,
) -> Tally {
    let mut whole = Run::start(SimDisk::new(), config);
    whole.run(steps);
    assert!(whole.rig.is_some(), "{script}: the script runs to its end");
    let operations = whole.disk.operations();
    let journal = whole.disk.journal();
    let mut tally = Tally { operations, ..Tally::default() };
    for operation in 0..=operations {
        let disk = SimDisk::new();
        // Every other write is torn by the cut itself.
        let is_write =
            journal.get(operation as usize).is_some_and(|(call, _)| *call == Operation::Write);
        let inside = if is_write && operation % 2 == 0 { 700 } else { 0 };
        disk.crash_inside(operation, inside);
        let mut run = Run::start(disk, config);
        run.run(steps);
        let mut seen = HashSet::new();
        let seed = operation ^ (steps.len() as u64) << 32;
        for choice in choices(run.disk.pending_counts(), seed, effort) {
            tally.images += 1;
            let image = run.disk.crash_image(&choice);
            // All that landed must be looked at as such, whatever else is the same.
            if !seen.insert(fingerprint(&image)) && choice != CrashChoice::EVERYTHING {
                continue;
            }
            tally.different += 1;
            let case = |phase| Case { script, operation, choice: &choice, phase };
            let follow = tally.different.is_multiple_of(effort.follow);
            let copy = follow.then(|| image.crash_image(&CrashChoice::EVERYTHING));
            let after = run.after_cut(image, &choice, &case("recovered"));
            if let Some(copy) = copy {
                tally.followed += 1;
                is_sound(&copy, &case("verified as the cut left it"));
                cut_the_recovery(&run, &copy, &choice, &case);
                follow_up(after, &case, tally.followed);
            }
        }
    }
    eprintln!("{script}: {tally:?}");
    tally
}

/// A cut damages nothing: a verification that looks before any start finds a torn tail at most.
fn is_sound(image: &SimDisk, case: &dyn fmt::Display) {
    if ["identity", "identity.copy"].map(crate::rig::path).iter().all(|p| image.paths().contains(p))
    {
        let (findings, summary) = crate::verify::verify(image);
        assert!(summary.is_sound(), "{case}: {findings:?}");
    }
}

/// Depth 2: the power goes again while the store recovers.
fn cut_the_recovery<'a>(
    run: &Run,
    image: &SimDisk,
    choice: &CrashChoice,
    case: &impl Fn(&'a str) -> Case<'a>,
) {
    let whole = image.crash_image(&CrashChoice::EVERYTHING);
    let begun = whole.operations();
    run.after_cut(whole.clone(), &CrashChoice::NOTHING, &case("depth 1"));
    let operations = whole.operations() - begun;
    let mut dice = Dice(operations ^ begun);
    for _ in 0..2 {
        let again = image.crash_image(&CrashChoice::EVERYTHING);
        again.crash_inside(dice.below(operations), dice.below(2_000) as usize);
        let started =
            crate::rig::Rig::try_open(std::sync::Arc::new(again.clone()), &tiny(), 1_000_000);
        if let Ok(mut rig) = started {
            rig.workers.settle();
        }
        for second in [
            CrashChoice::NOTHING,
            CrashChoice::EVERYTHING,
            CrashChoice::random(dice.roll(), again.pending_counts()),
        ] {
            let image = again.crash_image(&second);
            let all =
                if *choice == CrashChoice::EVERYTHING { choice } else { &CrashChoice::NOTHING };
            let phase = format!("then cut while recovering, {second:?}");
            run.after_cut(image, all, &Also(case(""), &phase));
        }
    }
}

/// A case and what came after.
struct Also<'a>(Case<'a>, &'a str);

impl fmt::Display for Also<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, self.1)
    }
}

/// A recovered store: recovering again changes nothing, nor does deleting all that is derived; it takes more, and
/// survives another cut.
fn follow_up<'a>(mut run: Run, case: &impl Fn(&'a str) -> Case<'a>, seed: u64) {
    let everything = &CrashChoice::EVERYTHING;
    let before = without_epochs(oracle::walk(&run.disk, &case("before the second recovery")));

    // The same again.
    let copy = run.disk.crash_image(everything);
    let second = run.after_cut(copy, everything, &case("second recovery"));
    let report = second.rig.as_ref().unwrap().store.start_report();
    assert_eq!(report.cut, None, "{}", case("second recovery cuts nothing"));
    let after = without_epochs(oracle::walk(&second.disk, &case("after the second recovery")));
    assert!(before == after, "{}", case("second recovery changes nothing"));

    // Without what is derived.
    let copy = run.disk.crash_image(everything);
    for path in copy.paths() {
        let text = path.to_string_lossy().into_owned();
        let derived = ["consumequeue/", "index/", "state/", "checkpoint", "quarantine/"];
        if derived.iter().any(|part| text.contains(part)) {
            copy.remove(&path).unwrap();
        }
    }
    run.after_cut(copy, everything, &case("all derived files deleted"));

    // On and on: records as long as those that were cut.
    let Some((topic, queue)) = run.any_queue() else { return };
    let mut dice = Dice(seed);
    for round in 0..2 {
        let send = Step::Send { topic, queue, count: 1, len: 700 };
        let flushed = dice.below(4) as usize;
        run.run(&vec![send.clone(); flushed]);
        run.run(&[Step::Flush]);
        run.run(&vec![send.clone(); dice.below(5) as usize]);
        run.run(&vec![Step::SendInSession { topic, queue, len: 300 }; dice.below(4) as usize]);
        if round == 0 {
            run.run(&[Step::Allocate, Step::Dispatch, Step::Set(vec![(topic, queue, 700); 3])]);
        }
        let pending = run.disk.pending_counts();
        let next = match dice.below(3) {
            0 => CrashChoice::NOTHING,
            1 => CrashChoice { torn: None, ..CrashChoice::random(dice.roll(), pending) },
            _ => CrashChoice::random(dice.roll(), pending),
        };
        let phase = format!(", appended to and cut again: {next:?}");
        let image = run.disk.crash_image(&next);
        run = run.after_cut(image, &next, &Also(case("round "), &phase));
    }
}

fn send(topic: u64, len: usize) -> Step {
    Step::Send { topic, queue: 0, count: 1, len }
}

#[test]
fn small_sends_of_equal_size_that_roll_keep_what_was_acknowledged() {
    let mut steps = vec![Step::Create { topic: 1, queues: 1, flush: FlushMode::Sync }];
    for n in 0..40 {
        steps.push(send(1, 700));
        match n % 4 {
            1 => steps.extend([Step::Dispatch, Step::Flush, Step::Read]),
            3 => steps.extend([Step::Allocate, Step::Seal, Step::FlushIfDue]),
            _ => {}
        }
    }
    steps.extend([Step::Settle, Step::Read, Step::Tick(100), Step::FlushIfDue]);
    let tally = cut_everywhere("equal sizes", &tiny(), &steps, EVERY);
    assert!(tally.operations > 100 && tally.followed > 50, "{tally:?}");
}

#[test]
fn append_sets_and_batches_in_sync_and_async_topics_come_whole_or_not_at_all() {
    let mut steps = vec![
        Step::Create { topic: 1, queues: 2, flush: FlushMode::Sync },
        Step::Create { topic: 2, queues: 1, flush: FlushMode::Async },
    ];
    for n in 0..12 {
        steps.extend([
            Step::Set(vec![(1, 0, 600), (2, 0, 600), (1, 1, 900)]),
            Step::Send { topic: 2, queue: 0, count: 4, len: 300 },
        ]);
        match n % 3 {
            0 => steps.extend([Step::Dispatch, Step::Read, Step::FlushIfDue]),
            1 => steps.extend([Step::Allocate, Step::Tick(110), Step::FlushIfDue]),
            _ => steps.extend([Step::Seal, Step::Dispatch, Step::Seal, Step::Allocate]),
        }
    }
    cut_everywhere("sets", &tiny(), &steps, EVERY);
}

#[test]
fn topics_come_and_go_across_seals_snapshots_and_a_clean_stop() {
    let mut steps = Vec::new();
    for topic in 1..9 {
        let flush = if topic % 2 == 0 { FlushMode::Async } else { FlushMode::Sync };
        steps.extend([
            Step::Create { topic, queues: 2, flush },
            send(topic, 1_500),
            Step::Send { topic, queue: 1, count: 2, len: 700 },
            send(topic, 700),
        ]);
        if topic > 2 {
            steps.push(Step::Delete { topic: topic - 2 });
        }
        steps.extend([Step::Dispatch, Step::Read, Step::Allocate]);
        match topic % 4 {
            1 => steps.extend([Step::Flush, Step::Seal, Step::Seal]),
            2 => steps.push(Step::Settle),
            3 => steps.extend([Step::CloseAndReopen, Step::Read]),
            _ => steps.extend([Step::Tick(60), Step::FlushIfDue]),
        }
    }
    cut_everywhere("topics", &tiny(), &steps, EVERY);
}

/// A log may hold two finished segments that are neither flushed nor sealed, the active one and one made ahead; without
/// a checkpoint that says what is sealed, recovery must not take the oldest of them for a sealed one.
#[test]
fn four_segments_that_were_never_flushed_are_recovered_to_a_prefix() {
    let mut steps = vec![
        Step::Create { topic: 1, queues: 1, flush: FlushMode::Sync },
        Step::Create { topic: 2, queues: 1, flush: FlushMode::Async },
        Step::Flush,
    ];
    for _ in 0..2 {
        for _ in 0..24 {
            steps.extend([send(2, 1_500), Step::Allocate, Step::Dispatch]);
        }
        // No room: two finished segments are unsealed.
        steps.extend([send(1, 3_000), send(1, 3_000), send(2, 1_500), Step::Read, Step::Settle]);
    }
    let mut run = Run::start(SimDisk::new(), &tiny());
    run.run(&steps);
    assert!(run.ledger.not_ready > 10, "{} sends found no room", run.ledger.not_ready);
    cut_everywhere("no room", &tiny(), &steps, EVERY);
}

#[test]
fn segments_that_roll_for_their_memory_are_recovered() {
    let config = StoreConfig { unsealed_memory: 900, ..tiny() };
    let mut steps = vec![Step::Create { topic: 1, queues: 2, flush: FlushMode::Sync }];
    for n in 0..24 {
        steps.push(Step::Send { topic: 1, queue: n % 2, count: 2, len: 50 });
        if n % 3 == 2 {
            steps.extend([Step::Allocate, Step::Dispatch, Step::Flush, Step::Seal]);
        }
    }
    cut_everywhere("memory", &config, &steps, EVERY);
}

/// Three topics share the log. One is deleted, one purged, one is kept for seconds only; segments go, images are taken,
/// and the power goes at each of the writes of that.
#[test]
fn what_is_dead_is_deleted_and_nothing_else_wherever_the_power_goes() {
    let mut steps = vec![
        Step::Create { topic: 1, queues: 2, flush: FlushMode::Sync },
        Step::Create { topic: 2, queues: 1, flush: FlushMode::Async },
        Step::Create { topic: 3, queues: 1, flush: FlushMode::Sync },
        Step::Keep { topic: 3, ms: 1_000 },
    ];
    for round in 0..9 {
        for n in 0..3 {
            steps.extend([send(1, 900), send(2, 1_500), send(3, 700)]);
            steps.push(Step::Send { topic: 1, queue: 1, count: 2, len: 300 });
            steps.extend([Step::Allocate, Step::Dispatch]);
            if n == 1 {
                steps.extend([Step::Flush, Step::Seal, Step::Seal]);
            }
        }
        steps.push(Step::Tick(600));
        match round {
            2 => steps.push(Step::Purge { topic: 1, queue: Some(0) }),
            3 => steps.push(Step::Purge { topic: 1, queue: None }),
            5 => steps.push(Step::Delete { topic: 2 }),
            6 => steps.push(Step::Create { topic: 2 + 2, queues: 1, flush: FlushMode::Sync }),
            7 => steps.push(Step::Purge { topic: 1, queue: Some(1) }),
            _ => {}
        }
        steps.extend([Step::Clean(3), Step::Flush, Step::Seal, Step::Clean(3), Step::Read]);
        if round % 4 == 3 {
            steps.push(Step::CloseAndReopen);
        }
    }
    let mut run = Run::start(SimDisk::new(), &tiny());
    run.run(&steps);
    let status = run.rig.as_ref().unwrap().store.status();
    assert!(status.newest_image.is_some(), "{status:?}");
    assert!(run.rig.as_ref().unwrap().store.watermarks().min.get() > 0, "{status:?}");
    let tally = cut_everywhere("retention", &tiny(), &steps, EVERY);
    assert!(tally.operations > 150 && tally.followed > 50, "{tally:?}");
}

/// What replay hands to the state is all that a producer session is after a cut: it is what the log holds, no more and
/// no less, whatever lies in snapshots.
#[test]
fn the_batches_of_a_producer_session_are_replayed_as_the_log_holds_them() {
    let mut steps = vec![
        Step::Create { topic: 1, queues: 2, flush: FlushMode::Sync },
        Step::Create { topic: 2, queues: 1, flush: FlushMode::Async },
    ];
    for n in 0..14 {
        steps.extend([
            Step::SendInSession { topic: 1, queue: n % 2, len: 700 },
            Step::SendInSession { topic: 2, queue: 0, len: 900 },
            send(2, 400),
            Step::SendInSession { topic: 2, queue: 0, len: 40 },
        ]);
        match n % 5 {
            0 => steps.extend([Step::Dispatch, Step::Flush]),
            1 => steps.extend([Step::Allocate, Step::Tick(110), Step::FlushIfDue]),
            2 => steps.extend([Step::Settle, Step::Read]),
            3 => steps.push(Step::CloseAndReopen),
            _ => steps.extend([Step::Dispatch, Step::Flush, Step::Seal, Step::Seal]),
        }
    }
    cut_everywhere("session", &tiny(), &steps, EVERY);
}

#[test]
fn random_scripts_keep_every_promise_at_every_cut() {
    let minutes: f64 =
        std::env::var("FAULT_MINUTES").ok().map_or(0.0, |text| text.parse().unwrap());
    for seed in 0..8 {
        cut_everywhere(&format!("random {seed}"), &tiny(), &random(seed, 110), EVERY);
    }
    let given = std::env::var("SEED").ok().map(|text| text.parse::<u64>().unwrap());
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut seed = given.unwrap_or_else(|| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    });
    let mut is_given = given.is_some();
    while is_given || Instant::now() < until {
        println!("SEED={seed}");
        let effort = Effort { random: 30, follow: 6 };
        let steps = match seed % 2 {
            0 => random(seed, 160),
            _ => reused::random(seed, 120),
        };
        let tally = cut_everywhere(&format!("SEED={seed}"), &tiny(), &steps, effort);
        assert!(tally.images > 0);
        (seed, is_given) = (Dice(seed).roll(), false);
    }
}

#[test]
fn a_clean_stop_leaves_nothing_to_lose() {
    let mut run = Run::start(SimDisk::new(), &tiny());
    run.run(&random(7, 120));
    run.run(&[Step::CloseAndReopen]);
    let rig = run.rig.as_ref().unwrap();
    assert!(rig.store.start_report().clean);
    let image = run.disk.crash_image(&CrashChoice::NOTHING);
    let case = Case { script: "clean", operation: 0, choice: &CrashChoice::NOTHING, phase: "" };
    let after = run.after_cut(image, &CrashChoice::EVERYTHING, &case);
    assert!(topics_of(&oracle::walk(&after.disk, &case)) > 0);
}
