//! What is in `deploy/`: the unit and the configuration are in step with the binary.
//!
//! What the systems themselves can check here, they check: `systemd-analyze` reads the unit, and the binary runs with
//! the arguments that the unit gives it. Without `systemd-analyze` a line says SKIP, but in
//! continuous integration (`CI=true`) that is a failure: `.ci/run` installs it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mainstem::config::Config;

const BINARY: &str = env!("CARGO_BIN_EXE_mainstem");
const INSTALLED: &str = "/usr/local/bin/mainstem";
const CONFIG: &str = "/etc/mainstem/mainstem.toml";
const DATA: &str = "/var/lib/mainstem";

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(project(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Lines that are continued with `\` put together, without comments.
fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        match line.strip_suffix('\\') {
            Some(part) => open.push_str(part),
            None => lines.push(std::mem::take(&mut open) + line),
        }
    }
    lines.retain(|line| !line.trim().is_empty());
    lines
}

/// The values of the unit's keys; a key may stand there more than once.
fn unit() -> BTreeMap<String, Vec<String>> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines(&read("deploy/mainstem.service")) {
        if let Some((key, value)) = line.split_once('=') {
            values.entry(key.to_owned()).or_default().push(value.to_owned());
        }
    }
    values
}

fn only(unit: &BTreeMap<String, Vec<String>>, key: &str) -> String {
    let values = unit.get(key).unwrap_or_else(|| panic!("the unit has no {key}"));
    assert_eq!(values.len(), 1, "{key}");
    values[0].clone()
}

/// `60s`, `6min` and the like.
fn span(text: &str) -> Duration {
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" | "min" => 60,
        unit => panic!("{unit}"),
    };
    Duration::from_secs(digits.parse::<u64>().unwrap() * unit)
}

/// Runs `systemd-analyze`, or says why not.
fn analyze(args: &[&str], file: &Path) -> Option<Output> {
    match Command::new("systemd-analyze").args(args).arg(file).output() {
        Ok(output) => Some(output),
        Err(error) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
            panic!("systemd-analyze cannot be run ({error}): apt-get install systemd")
        }
        Err(_) => {
            // Past the capture of the test, so that it is seen when the test passes.
            let _ = writeln!(std::io::stderr(), "SKIP: this needs systemd-analyze");
            None
        }
    }
}

#[test]
fn systemd_finds_no_problem_in_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    // It asks whether the program is there.
    let text = read("deploy/mainstem.service").replace(INSTALLED, BINARY);
    let file = directory.path().join("mainstem.service");
    fs::write(&file, text).unwrap();
    let Some(output) = analyze(&["verify", "--recursive-errors=no"], &file) else { return };
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((said.as_str(), output.status.code()), ("", Some(0)));
}

#[test]
fn the_unit_leaves_the_process_little_to_see_and_do() {
    // Ten times the exposure that may not be passed; what is left is that it serves the network.
    let args = ["security", "--offline=true", "--no-pager", "--threshold=15"];
    let Some(output) = analyze(&args, &project("deploy/mainstem.service")) else { return };
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
}

#[test]
fn the_unit_waits_as_long_as_the_broker_may_take() {
    let unit = unit();
    assert_eq!(only(&unit, "Type"), "notify");
    assert_eq!(only(&unit, "NotifyAccess"), "main");
    let stop = span(&only(&unit, "TimeoutStopSec"));
    let drain = |seconds: u64| {
        Config::load(None, &[format!("server.drain_timeout={seconds}s")]).map(|_config| ())
    };
    // A minute stays for the flush and the snapshot.
    let longest = stop.as_secs() - 60;
    drain(longest).unwrap();
    drain(longest + 1).unwrap_err();
    // The broker asks for more time every ten seconds.
    assert!(span(&only(&unit, "TimeoutStartSec")) >= Duration::from_secs(60));
    assert!(span(&only(&unit, "WatchdogSec")) >= Duration::from_secs(30));
}

#[test]
fn the_unit_starts_again_unless_the_configuration_is_wrong() {
    let unit = unit();
    assert_eq!(only(&unit, "Restart"), "on-failure");
    assert_eq!(only(&unit, "RestartPreventExitStatus"), "2");
    let window = span(&only(&unit, "StartLimitIntervalSec"));
    let starts: u32 = only(&unit, "StartLimitBurst").parse().unwrap();
    // Starts that fail at once reach the limit, so that they end.
    assert!(span(&only(&unit, "RestartSec")) * starts < window);
}

/// Runs the binary with the arguments of an installation, in a directory of its own and on free ports, until it serves;
/// returns the address of its pages, and whether it ended well.
fn serve(args: &[String], ask: impl FnOnce(&str)) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let config = project("deploy/mainstem.toml");
    let mut command = Command::new(BINARY);
    for arg in args {
        match arg.as_str() {
            CONFIG => command.arg(&config),
            DATA => command.arg(&data),
            arg if arg.contains(":80") => command.arg("127.0.0.1:0"),
            arg => command.arg(arg),
        };
    }
    // Those that the arguments leave to the file and its defaults.
    command.args(["--set", "server.listen=127.0.0.1:0", "--set", "server.http=127.0.0.1:0"]);
    command.args(["--set", "store.segment_size=64MiB", "--print-addresses"]);
    command.arg("--until-stdin-closes").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addresses: serde_json::Value = serde_json::from_str(&line).unwrap();
    ask(addresses["http"].as_str().unwrap());
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(data.join("commitlog").is_dir(), "the data is where it was said to be");
}

#[test]
fn the_binary_takes_the_arguments_of_the_unit() {
    let start = only(&unit(), "ExecStart");
    let mut words = start.split(' ').map(str::to_owned);
    assert_eq!(words.next().as_deref(), Some(INSTALLED));
    let words: Vec<_> = words.collect();
    assert!(words.windows(2).any(|pair| pair == ["--config", CONFIG]), "{words:?}");
    assert!(words.windows(2).any(|pair| pair == ["--data", DATA]), "{words:?}");
    assert_eq!(only(&unit(), "StateDirectory"), DATA.strip_prefix("/var/lib/").unwrap());
    serve(&words, |_http| {});
}
