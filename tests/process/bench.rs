//! `mainstem bench` against a broker and a control of its own: figures come out, and nothing stays behind.

use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::support::{BINARY, Home, Process, soon, until};

/// A bench with its temporary directory in `home`.
fn spawn(home: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(BINARY);
    command.arg("bench").args(args).args(["-o", "json"]).env("TMPDIR", home);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a short run says, after a check that nothing of it is left.
async fn run(what: &[&str]) -> Value {
    let home = tempfile::tempdir().unwrap();
    let short = ["--duration", "1s", "--rounds", "1", "--warm-up", "0s", "--payload", "100"];
    let child = spawn(home.path(), &[what, &short].concat());
    let output = soon("a bench", child.wait_with_output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said, "", "nobody watches");
    assert_nothing_left(home.path()).await;
    let run: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(run["subject"]["acks"].as_u64().unwrap() > 0, "{run}");
    assert!(run["subject"]["messages_per_second"].as_f64().unwrap() > 0.0, "{run}");
    if run["config"]["control"].as_bool().unwrap() {
        assert!(run["ratio"].as_f64().unwrap() > 0.0, "{run}");
        assert!(run["control"]["latency_us"]["p50"].is_u64(), "{run}");
    }
    assert!(run["subject"]["cpu_ns_per_message"].is_f64(), "{run}");
    let series = run["subject"]["series"].as_array().unwrap();
    assert!(series.len() >= 20, "ten points for each of two turns at least: {}", series.len());
    run
}

/// No file, and no process that works on one.
async fn assert_nothing_left(home: &Path) {
    let left: Vec<_> = std::fs::read_dir(home).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(left.is_empty(), "{left:?}");
    let home = home.to_str().unwrap();
    until("the end of all processes", async || processes(home).is_empty().then_some(())).await;
}

/// The processes that were started with `home` as their temporary directory.
fn processes(home: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Another user's, or gone.
        let Ok(environ) = std::fs::read(entry.path().join("environ")) else { continue };
        let tmpdir = format!("TMPDIR={home}");
        if environ.split(|byte| *byte == 0).any(|variable| variable == tmpdir.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

#[tokio::test]
async fn a_bench_of_sends_brings_figures_and_leaves_nothing() {
    let run = run(&["send"]).await;
    assert_eq!(run["ratio_of"], "rate");
    assert_eq!(run["config"]["batch"], 100);
    let options = ["--in-flight", "4", "--producers", "3", "--keys", "2", "--flush", "sync"];
    let spread =
        ["--compression", "lz4", "--distribution", "zipf", "--queues", "5", "--batch", "7"];
    let run = self::run(&[&["send"], &options[..], &spread].concat()).await;
    let config = &run["config"];
    let numbers = ["in_flight", "producers", "keys", "queues", "batch"].map(|n| config[n].as_u64());
    assert_eq!(numbers, [4, 3, 2, 5, 7].map(Some));
    let words = ["flush", "compression", "distribution"].map(|n| config[n].as_str());
    assert_eq!(words, ["sync", "lz4", "zipf"].map(Some));
}

#[tokio::test]
async fn the_highest_rate_is_found_at_which_answers_come_in_time() {
    for what in ["send", "e2e"] {
        // On a busy machine too: of whatever it can do, it can do a hundredth in time.
        let search = ["--find-rate", "--p99", "100ms", "--no-control"];
        let found = run(&[&[what], &search[..]].concat()).await;
        assert_eq!((&found["ratio"], found["ratio_of"].as_str()), (&Value::Null, Some("rate")));
        let p99 = found["subject"]["latency_us"]["p99"].as_u64().unwrap();
        assert!(p99 <= 100_100, "{what}: {p99} us");
    }
}

#[tokio::test]
async fn a_run_is_shown_beside_an_earlier_one_and_says_in_what_it_differs() {
    let home = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let short = ["--duration", "200ms", "--rounds", "1", "--warm-up", "0s", "--no-control"];
    let bench = async |more: &[&str]| {
        let output = spawn(home.path(), &[&short, more].concat()).wait_with_output();
        let output = soon("a bench", output).await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        (output.stdout, String::from_utf8(output.stderr).unwrap())
    };
    let (json, _) = bench(&[]).await;
    std::fs::write(path("before.json"), json).unwrap();
    let beside = ["--compare", &path("before.json"), "--report", &path("run.html")];
    let (_, said) = bench(&beside).await;
    assert!(
        said.starts_with("messages/s ") && said.ends_with(" % from the earlier run\n"),
        "{said}"
    );
    let page = std::fs::read_to_string(path("run.html")).unwrap();
    assert!(page.contains("broker, earlier") && !page.contains("another one"), "{page}");
    let (_, said) = bench(&[&beside[..], &["--batch", "10"]].concat()).await;
    assert!(said.ends_with("the earlier run was another one; it differs in: batch\n"), "{said}");
    let page = std::fs::read_to_string(path("run.html")).unwrap();
    assert!(page.contains("The earlier run was another one; it differs in: batch"), "{page}");
}

#[tokio::test]
async fn a_bench_of_pulls_brings_figures_and_leaves_nothing() {
    let run = run(&["pull", "--queues", "3", "--fill", "4MiB", "--distribution", "zipf"]).await;
    assert_eq!(run["config"]["what"], "pull");
    assert_eq!(run["config"]["distribution"], "zipf");
    // A batch of some 13 KB for each queue, and as many by the distribution: two turns read all of it at least once.
    let run =
        self::run(&["pull", "--queues", "100", "--fill", "1", "--distribution", "zipf"]).await;
    assert!(run["subject"]["messages"].as_u64().unwrap() >= 2 * 100 * 100, "{run}");
}

#[tokio::test]
async fn a_bench_of_queries_brings_figures_and_leaves_nothing() {
    let run = run(&["query", "--fill", "1MiB", "--topics", "2"]).await;
    assert_eq!(run["config"]["keys"], 1);
}

#[tokio::test]
async fn a_bench_from_end_to_end_at_a_fixed_rate_brings_latencies_and_leaves_nothing() {
    let run = run(&["e2e", "--rate", "2000", "--queues", "2"]).await;
    assert_eq!(run["ratio_of"], "median_latency");
    assert_eq!(run["config"]["rate"]["fixed"], 2000.0);
}

#[tokio::test]
async fn a_bench_from_end_to_end_reads_more_topics_than_a_connection_has_streams() {
    let run = run(&["e2e", "--rate", "2000", "--topics", "300"]).await;
    assert_eq!(run["config"]["topics"], 300);
}

#[tokio::test]
async fn a_bench_that_is_interrupted_leaves_nothing() {
    let (home, pages) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let report = pages.path().join("run.html");
    let mut child =
        spawn(home.path(), &["--duration", "60s", "--report", report.to_str().unwrap()]);
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    // The bench, its broker and its control.
    let all = async || (processes(home.path().to_str().unwrap()).len() == 3).then_some(());
    until("all processes", all).await;
    kill_process(pid, Signal::INT).unwrap();
    let mut said = String::new();
    soon("its words", child.stderr.take().unwrap().read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "error: interrupted; what the run started is gone\n");
    assert_eq!(soon("its end", child.wait()).await.unwrap().code(), Some(1));
    assert_nothing_left(home.path()).await;
    assert!(!report.exists(), "no page without figures");
}

#[tokio::test]
async fn a_bench_says_which_of_its_servers_has_ended_and_nothing_of_those_that_run() {
    for (server, command) in [("broker", "serve"), ("control", "no-op-server")] {
        let home = tempfile::tempdir().unwrap();
        let child = spawn(home.path(), &["--duration", "1s", "--warm-up", "0s"]);
        let all = async || {
            let of = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let is =
                |pid: &i32| of(pid).split(|byte| *byte == 0).any(|arg| arg == command.as_bytes());
            let found = processes(home.path().to_str().unwrap());
            found.iter().copied().find(is).filter(|_| found.len() == 3)
        };
        let pid = Pid::from_raw(until("all processes", all).await).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let output = soon("a bench", child.wait_with_output()).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with(&format!("error: the {server} has ended; its last words: ")),
            "{said}"
        );
        assert_nothing_left(home.path()).await;
    }
    let home = tempfile::tempdir().unwrap();
    let search = ["--find-rate", "--p99", "1us", "--duration", "100ms", "--warm-up", "0s"];
    let child = spawn(home.path(), &[&search[..], &["--no-control"]].concat());
    let output = soon("a bench", child.wait_with_output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "error: at no rate that was tried 99 % of the answers come within 1µs\n");
}

#[tokio::test]
async fn a_report_that_cannot_be_written_costs_no_run() {
    let home = tempfile::tempdir().unwrap();
    let report = home.path().join("nowhere").join("run.html");
    let child = spawn(home.path(), &["--duration", "1h", "--report", report.to_str().unwrap()]);
    let output = soon("a bench", child.wait_with_output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: cannot write "), "{said}");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert_nothing_left(home.path()).await;
}

#[tokio::test]
async fn a_bench_of_another_broker_takes_its_topics_away_again() {
    let home = Home::new();
    let broker = Process::start(&home, &[]).await;
    let temporary = tempfile::tempdir().unwrap();
    let args = ["--server", &broker.grpc, "--duration", "200ms", "--rounds", "1", "--no-control"];
    let args = [&["send", "--topics", "40", "--payload", "100", "--warm-up", "0s"][..], &args];
    let output = spawn(temporary.path(), &args.concat()).wait_with_output();
    let output = soon("a bench", output).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let run: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(run["subject"]["messages"].as_u64().unwrap() > 0);
    assert_eq!(
        (&run["ratio"], &run["subject"]["cpu_ns_per_message"]),
        (&Value::Null, &Value::Null)
    );
    let client = broker.client().await;
    assert_eq!(soon("a list", client.topics("")).await.unwrap().0, []);
    broker.stop().await;
}

#[tokio::test]
async fn a_bench_of_another_broker_speaks_tls_to_it_and_trusts_whom_it_is_told_to() {
    let home = Home::new();
    let broker = Process::start(&home, &["--set", "tls.plain=false"]).await;
    let certificate = home.data().join("tls").join("certificate.pem");
    let temporary = tempfile::tempdir().unwrap();
    let short = ["--duration", "200ms", "--rounds", "1", "--warm-up", "0s", "--payload", "100"];
    let to = ["--server", &broker.grpc, "--ca", certificate.to_str().unwrap()];
    let loads =
        [&["send"][..], &["pull", "--fill", "1MiB"], &["query", "--fill", "1MiB"], &["e2e"]];
    for load in loads {
        let child = spawn(temporary.path(), &[load, &short, &to].concat());
        let output = soon("a bench", child.wait_with_output()).await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let run: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(run["subject"]["messages"].as_u64().unwrap() > 0, "{run}");
        // The control is its own, and does without.
        assert!(run["ratio"].as_f64().unwrap() > 0.0, "{run}");
        assert_eq!(run["config"]["authorities"], Value::Null);
    }
    let other = Home::new();
    let stranger = Process::start(&other, &["--set", "tls.plain=false"]).await;
    let other = other.data().join("tls").join("certificate.pem");
    let to = ["--server", &broker.grpc, "--ca", other.to_str().unwrap()];
    let child = spawn(temporary.path(), &[&["send"][..], &short, &to].concat());
    let output = soon("a bench", child.wait_with_output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(4), 0), "{said}");
    assert!(said.contains("certificate"), "{said}");
    stranger.stop().await;
    broker.stop().await;
}

#[tokio::test]
async fn a_bench_of_a_broker_that_hangs_ends_at_the_second_interrupt() {
    let home = Home::new();
    let broker = Process::start(&home, &[]).await;
    let temporary = tempfile::tempdir().unwrap();
    let args = ["--server", &broker.grpc, "--duration", "60s", "--no-control", "--topics", "3"];
    let mut child = spawn(temporary.path(), &args);
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    let client = broker.client().await;
    let all = async || (client.topics("").await.unwrap().0.len() == 3).then_some(());
    until("all topics", all).await;
    broker.signal(Signal::STOP);
    let ended = async || {
        // As often as it takes: one that comes before it listens again is not noticed.
        let _ = kill_process(pid, Signal::INT);
        child.try_wait().unwrap()
    };
    let status = until("its end", ended).await;
    broker.signal(Signal::CONT);
    assert_eq!(status.code(), Some(1));
    broker.stop().await;
}
