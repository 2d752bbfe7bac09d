//! What is in `deploy/`: the unit, the image and the configuration are in step with the binary.
//!
//! What the systems themselves can check here, they check: `systemd-analyze` reads the unit, and the binary runs with
//! the arguments that unit and image give it. No image is built. Without `systemd-analyze` a line says SKIP, but in
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

/// An instruction of the Dockerfile and what it says.
fn image() -> Vec<(String, String)> {
    let split = |line: &String| {
        let (name, said) = line.split_once(' ').unwrap();
        (name.to_owned(), said.trim().to_owned())
    };
    lines(&read("deploy/Dockerfile")).iter().map(split).collect()
}

/// What the last instruction of this name says; the last one is the image's.
fn said(image: &[(String, String)], name: &str) -> String {
    let found = image.iter().rev().find(|(instruction, _)| instruction == name);
    found.unwrap_or_else(|| panic!("the image has no {name}")).1.clone()
}

/// Words of the form that starts a program without a shell.
fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
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

#[test]
fn the_binary_takes_the_arguments_of_the_image_and_checks_its_health() {
    let image = image();
    assert_eq!(words(&said(&image, "ENTRYPOINT")), ["mainstem"]);
    let health = said(&image, "HEALTHCHECK");
    let (options, check) = health.split_once("CMD ").unwrap();
    let check = words(check);
    assert_eq!(check[0], "mainstem");
    let timeout = options.split(' ').find_map(|option| option.strip_prefix("--timeout="));
    assert!(span(timeout.unwrap()) > Duration::from_secs(3), "longer than the check itself");
    serve(&words(&said(&image, "CMD")), |http| {
        let asked = Command::new(BINARY).args(&check[1..]).args(["--http", http]).output();
        let asked = asked.unwrap();
        assert_eq!((asked.stdout.as_slice(), asked.status.code()), (&b"ready\n"[..], Some(0)));
    });
}

#[test]
fn the_image_is_small_not_roots_and_keeps_its_data() {
    let image = image();
    let stages: Vec<_> = image.iter().filter(|(name, _)| name == "FROM").collect();
    assert_eq!(stages.len(), 2, "one that builds, one that runs: {stages:?}");
    assert!(stages[0].1.ends_with(" AS builder") && stages[1].1.ends_with("-slim"), "{stages:?}");
    let binary =
        ("COPY".to_owned(), format!("--from=builder /src/target/release/mainstem {INSTALLED}"));
    assert!(image.contains(&binary), "{image:?}");

    let user = said(&image, "USER");
    let (uid, gid) = user.split_once(':').unwrap();
    assert!(uid.parse::<u32>().unwrap() > 0 && gid.parse::<u32>().unwrap() > 0, "{user}");
    assert_eq!(said(&image, "VOLUME"), DATA);
    assert_eq!(said(&image, "STOPSIGNAL"), "SIGTERM");

    let command = words(&said(&image, "CMD"));
    let value = |flag: &str| {
        let at = command.iter().position(|word| word == flag).unwrap();
        command[at + 1].clone()
    };
    assert_eq!((value("--config").as_str(), value("--data").as_str()), (CONFIG, DATA));
    let defaults = Config::default().server;
    let (grpc, http) = (defaults.listen.port(), defaults.http.port());
    assert_eq!(said(&image, "EXPOSE"), format!("{grpc} {http}"));
    assert_eq!(value("--listen"), format!("0.0.0.0:{grpc}"));
    // The port that `mainstem health` asks unless it is told another.
    assert_eq!(value("--http"), format!("0.0.0.0:{http}"));
}

#[test]
fn the_builder_gets_what_is_there_and_what_it_needs() {
    let ignored = lines(&read(".dockerignore"));
    assert_eq!(ignored[0], "*");
    let sent: Vec<_> = ignored[1..].iter().map(|line| line.strip_prefix('!').unwrap()).collect();
    for path in &sent {
        assert!(project(path).exists(), "{path}");
    }
    // The benches are named in the manifest, which cannot be read without them.
    for path in ["Cargo.toml", "Cargo.lock", "build.rs", "src", "proto", "benches"] {
        assert!(sent.contains(&path), "{path}");
    }
    for (_, said) in image().iter().filter(|(name, said)| name == "COPY" && !said.starts_with('-'))
    {
        let from = said.split(' ').next().unwrap();
        assert!(from == "." || sent.contains(&from), "{from}");
    }
}
