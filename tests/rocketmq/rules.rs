//! That `tests/RULES.md` speaks of tests that are there.

use std::collections::BTreeSet;
use std::path::Path;

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
