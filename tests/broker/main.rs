//! The whole broker against one simple reference: random scripts of everything that clients and operators can ask for,
//! of work in the background, of time that passes, of stops, kills and power cuts at any operation of the disk.
//!
//! | file | holds |
//! | --- | --- |
//! | `script.rs` | steps, and how they are drawn |
//! | `world.rs` | the reference: what the changes in a log come to |
//! | `rules.rs`, `rules/` | what a request that changes something must come to |
//! | `reads.rs` | pulls and queries, and what they must show |
//! | `seen.rs` | everything that a broker shows, and whether a world explains it |
//! | `model.rs` | both side by side; what must be left after a start |
//! | `rig.rs` | a broker stepped by hand |
//! | `consumer.rs` | what consumers and operators of a group ask for, for stories |
//! | `buried.rs` | a story of its own: the power goes while messages become dead letters and come back |
//! | `leases.rs`, `pool.rs` | random lives of a group, and what must be true of its messages |
//! | `looked.rs` | a story of its own: how much receives look at when message groups are stuck |
//! | `full.rs` | a story of its own: a full disk, and commits until they are refused |
//! | `gone.rs` | a story of its own: a deletion and those who read meanwhile |
//! | `grown.rs` | a story of its own: offsets are reset while a topic gets queues |
//! | `ids.rs` | a story of its own: ids of topics when the record that gave one rots |
//! | `rotten.rs` | a story of its own: records of a group's deliveries that rot |
//! | `sets.rs` | a story of its own: several messages in one call, and power cuts at every write of it |
//! | `undecoded.rs` | a story of its own: a group comes to what cannot be decoded, and is interrupted |
//!
//! Nothing runs beside the test, so a script always does the same, and a seed always draws the same scripts. One that
//! fails is made shorter and printed. `PROPTEST_CASES` asks for so many others, `SEED` for those of one seed.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod buried;
mod consumer;
mod full;
mod gone;
mod grown;
mod ids;
mod leases;
mod looked;
mod lost;
mod model;
mod pool;
mod reads;
mod rig;
mod rotten;
mod rules;
mod script;
mod seen;
mod sets;
mod undecoded;
mod world;

use std::cell::RefCell;

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use model::Tally;

/// Of which everything that there is to see is seen.
const CASES: u32 = 600;

fn seed(is_fixed: bool) -> u64 {
    let mut bytes = [0; 8];
    match std::env::var("SEED") {
        Ok(given) => return given.parse().unwrap(),
        Err(_) if is_fixed => {}
        Err(_) => getrandom::fill(&mut bytes).unwrap(),
    }
    u64::from_le_bytes(bytes)
}

#[test]
fn a_broker_does_what_a_simple_reference_does_through_stops_kills_and_power_cuts() {
    let is_fixed = std::env::var_os("PROPTEST_CASES").is_none();
    let seed = seed(is_fixed);
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if is_fixed {
        config.cases = CASES;
    }
    let cases = config.cases;
    println!("SEED={seed} PROPTEST_CASES={cases}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);

    let total = RefCell::new(Tally::default());
    let strategy = (script::setup(), script::script());
    let tested = TestRunner::new_with_rng(config, rng).run(&strategy, |(setup, ops)| {
        for (what, count) in model::run(setup, &ops).0 {
            total.borrow_mut().note(what, count);
        }
        Ok(())
    });
    match tested {
        Ok(()) => {}
        Err(TestError::Fail(reason, (setup, ops))) => {
            ops.iter().for_each(|op| println!("{op:?}"));
            panic!("{reason}, with SEED={seed} PROPTEST_CASES={cases}, {setup:?} and this script");
        }
        Err(aborted) => panic!("{aborted}"),
    }
    let total = total.into_inner();
    for (what, count) in &total.0 {
        println!("{count:8} {what}");
        assert!(cases < CASES || *count > 0, "{what}: {count}");
    }
}
