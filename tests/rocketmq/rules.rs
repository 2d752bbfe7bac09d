//! That `tests/RULES.md` speaks of tests that are there, and of all that must be held.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

/// What must have a row: behaviours that clients see, and rules behind them. Not yet those of messages that are
/// delivered later, of transactions, of lite topics and of pulls.
const BEHAVIOURS: [RangeInclusive<u32>; 4] = [1..=8, 11..=33, 36..=56, 64..=69];
const RULES: [(&str, RangeInclusive<u32>); 12] = [
    ("GEN", 1..=10),
    ("POP", 1..=28),
    ("GRP", 1..=13),
    ("FIFO", 1..=12),
    ("FIFO", 14..=16),
    ("TOP", 7..=8),
    ("RTY", 1..=3),
    ("DLQ", 1..=8),
    ("FLT", 1..=8),
    ("SND", 1..=8),
    ("BAT", 1..=2),
    ("BAT", 4..=5),
];

/// The tests that a row names: its file, and the function in it.
fn named(row: &str) -> Vec<(&str, &str)> {
    let cell = row.rsplit('|').nth(1).unwrap_or_default();
    let mut tests = Vec::new();
    for part in cell.split(';') {
        let (file, functions) = part.split_once("`: ").expect("a file and its tests");
        let file = file.trim().trim_start_matches('`');
        tests
            .extend(functions.split(',').map(|function| (file, function.trim().trim_matches('`'))));
    }
    tests
}

#[test]
fn every_test_that_the_list_of_rules_names_is_there_and_every_test_here_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(root.join("tests/RULES.md")).unwrap();
    let is_row =
        |line: &&str| line.starts_with("| ") && !line.starts_with("| No.") && !line.contains("---");
    let named: Vec<_> = rules.lines().filter(is_row).flat_map(named).collect();
    assert!(named.len() > 50, "{} tests", named.len());
    for (file, function) in &named {
        let text = ["tests", "src"]
            .iter()
            .find_map(|room| std::fs::read_to_string(root.join(room).join(file)).ok());
        let text = text.unwrap_or_else(|| panic!("there is no file {file}"));
        // Or a line of a macro that makes tests.
        let names = [format!("fn {function}("), format!("    {function}: ")];
        assert!(names.iter().any(|name| text.contains(name)), "{file} has no test {function}");
    }
    let named: BTreeSet<_> = named.iter().map(|(_, function)| (*function).to_owned()).collect();
    for entry in std::fs::read_dir(root.join("tests/rocketmq")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.windows(2) {
            let is_test = pair[0].starts_with("#[tokio::test");
            let name = pair[1].strip_prefix("async fn ").and_then(|rest| rest.split('(').next());
            if let Some(name) = name.filter(|_| is_test) {
                assert!(named.contains(name), "tests/RULES.md does not say what {name} holds");
            }
        }
    }
}

#[test]
fn every_behaviour_and_every_rule_has_a_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(root.join("tests/RULES.md")).unwrap();
    let numbers = rules.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let there: BTreeSet<_> = numbers.flat_map(|numbers| numbers.split(", ")).collect();
    let behaviours = BEHAVIOURS.into_iter().flatten().map(|number| format!("B{number}"));
    let rules = RULES
        .into_iter()
        .flat_map(|(of, numbers)| numbers.map(move |number| format!("{of}-{number}")));
    let missing: Vec<_> =
        behaviours.chain(rules).filter(|number| !there.contains(number.as_str())).collect();
    assert!(missing.is_empty(), "tests/RULES.md has no row for {missing:?}");
}
