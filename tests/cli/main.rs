//! The command line as a person sees it: what it prints, where, and how it ends.
//!
//! The files beside this one are sessions: commands, their output, `[..]` where a text differs from run to run. Each
//! runs against its own broker; `TRYCMD=overwrite cargo test --test cli` writes them anew.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use fake::Fake;

const BINARY: &str = env!("CARGO_BIN_EXE_mainstem");

fn session(file: &str, server: &str) {
    trycmd::TestCases::new()
        .register_bin("mainstem", std::path::Path::new(BINARY))
        .env("MAINSTEM_SERVER", server)
        .insert_var("[SERVER]", server.to_owned())
        .unwrap()
        .case(file);
}

#[test]
fn every_command_explains_itself() {
    session("tests/cli/help.trycmd", "127.0.0.1:1");
}

#[test]
fn without_a_broker_the_cause_and_the_cure_are_named() {
    session("tests/cli/no_broker.trycmd", "127.0.0.1:1");
}

#[test]
fn topics_are_made_listed_shown_and_deleted() {
    session("tests/cli/topics.trycmd", &Fake::start().to_string());
}

#[test]
fn messages_are_sent_read_and_found() {
    session("tests/cli/messages.trycmd", &Fake::start().to_string());
}

#[test]
fn producer_sessions_send_again_what_has_no_answer_and_are_listed_shown_and_closed() {
    session("tests/cli/sessions.trycmd", &Fake::start().to_string());
}

#[test]
fn clients_of_rocketmq_are_listed_and_shown() {
    session("tests/cli/clients.trycmd", &Fake::start().to_string());
}

#[test]
fn faults_are_told_with_their_exit_codes() {
    session("tests/cli/faults.trycmd", &Fake::start().to_string());
}

#[test]
fn a_broker_verifies_its_store_and_what_needs_a_stopped_one_says_so() {
    session("tests/cli/store.trycmd", &Fake::start().to_string());
}

#[test]
fn a_stopped_store_is_verified_shown_and_rebuilt() {
    let mut broker = RealBroker::start();
    let data = broker.directory.path().join("data");
    let data = data.to_str().unwrap();
    for (body, key) in [("one book", "order-1"), ("two pens", "order-2")] {
        let send = ["send", "-t", "orders", body, "--key", key, "--tag", "paid", "--queue", "0"];
        assert_eq!(mainstem(&broker.grpc, &send, "").2, Some(0));
    }
    for command in ["verify", "dump", "rebuild"] {
        let (stdout, stderr, code) = mainstem("", &["store", command, "--data", data], "");
        let expected = format!(
            "error: data directory {data} is in use by another process; stop that broker first"
        );
        assert!(stderr.starts_with(&expected), "{stderr}");
        assert_eq!((stdout.as_str(), code), ("", Some(1)), "{command}");
    }
    let repair = ["store", "repair", "--lose", "all", "--data", data];
    let (stdout, stderr, code) = mainstem("", &repair, "");
    assert!(stderr.contains("is in use by another process; stop that broker first"), "{stderr}");
    assert_eq!((stdout.as_str(), code), ("", Some(1)));
    drop(broker.child.stdin.take());
    assert_eq!(broker.child.wait().unwrap().code(), Some(0));

    let (stdout, stderr, code) = mainstem("", &["store", "verify", "--data", data], "");
    let expected = "sound                  yes\n\
        segments               2, 134217728 bytes of the log read\n\
        records                4 with 2 messages\n\
        queue and index files  0 sound\n";
    assert_eq!((stdout.as_str(), stderr.as_str(), code), (expected, "", Some(0)));

    let json = |args: &[&str]| -> Vec<serde_json::Value> {
        let (stdout, stderr, code) = mainstem("", &[args, &["-o", "jsonl"]].concat(), "");
        assert_eq!((stderr.as_str(), code), ("", Some(0)));
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let dumped = json(&["store", "dump", "--data", data]);
    let kinds: Vec<_> = dumped.iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["epoch", "state", "message", "message"]);
    assert_eq!(dumped[2]["messages"][0]["keys"][0], "order-1");
    assert_eq!((&dumped[2]["check"], &dumped[2]["queue_offset"]), (&"ok".into(), &0.into()));
    let messages = json(&["store", "dump", "--data", data, "--kind", "message", "-n", "1"]);
    assert_eq!(messages, [dumped[2].clone()]);
    let offset = |row: &serde_json::Value| row["offset"].as_u64().unwrap();
    let inside = (offset(&dumped[2]) + 5).to_string();
    assert_eq!(json(&["store", "dump", "--data", data, "--from", &inside]), [dumped[3].clone()]);
    let table = mainstem("", &["store", "dump", "--data", data, "--kind", "state"], "").0;
    assert!(table.lines().nth(1).unwrap().contains("TopicCreated"), "{table}");

    let (stdout, stderr, code) = mainstem("", &["store", "rebuild", "--data", data], "");
    let expected = "files removed                         1\n\
        segments whose files were made again  0\n\
        records replayed                      4\n\
        epoch begun                           2\n";
    assert_eq!((stdout.as_str(), stderr.as_str(), code), (expected, "", Some(0)));

    // A byte of the second body.
    let log = std::path::Path::new(data).join("commitlog/00000000000000000000.log");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[usize::try_from(offset(&dumped[3])).unwrap() + 140] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let verify = ["store", "verify", "--data", data, "-o", "jsonl"];
    let (stdout, stderr, code) = mainstem("", &verify, "");
    assert!(stderr.starts_with("error: the store is not sound: "), "{stderr}");
    assert_eq!(code, Some(1));
    let lines: Vec<serde_json::Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [finding, summary] = lines.as_slice() else { panic!("{stdout}") };
    assert_eq!(finding["kind"], "damaged");
    assert_eq!(finding["file"], "commitlog/00000000000000000000.log");
    assert_eq!(finding["begin"], dumped[3]["offset"]);
    let whose = (&finding["topic_id"], &finding["queue"], &finding["first_offset"]);
    assert_eq!(whose, (&1.into(), &0.into(), &1.into()));
    assert_eq!(
        (&summary["summary"]["damaged"], &summary["summary"]["sound"]),
        (&1.into(), &false.into())
    );
    let (_, stderr, code) = mainstem("", &["store", "rebuild", "--data", data], "");
    assert!(stderr.contains("snapshots may know what is lost there"), "{stderr}");
    assert_eq!(code, Some(1));

    let (begin, end) = (offset(&dumped[3]), finding["end"].as_u64().unwrap());
    let (first, bytes) = (offset(&dumped[2]), format!("{begin}..{end}"));
    let lose =
        |range: &str| mainstem("", &["store", "repair", "--data", data, "--lose", range], "");
    let expected = format!(
        "error: bytes {first}..{end} hold a sound record, at {first}: `mainstem store verify --data` \
         names what is damaged\n"
    );
    assert_eq!(lose(&format!("{first}..{end}")), (String::new(), expected, Some(1)));
    let dry = mainstem("", &["store", "repair", "--data", data, "--lose", "all", "--dry-run"], "");
    assert_eq!(dry, (format!("would be lost  bytes {bytes}\n"), String::new(), Some(0)));
    let expected = format!(
        "lost                                  bytes {bytes}\n\
         segments whose files were made again  0\n\
         epoch begun                           3\n"
    );
    assert_eq!(lose(&bytes), (expected, String::new(), Some(0)));
    let again = json(&["store", "repair", "--data", data, "--lose", &bytes]);
    assert_eq!((&again[0]["lost"], &again[0]["epoch"]), (&serde_json::json!([]), &4.into()));
    let (stdout, stderr, code) = mainstem("", &verify, "");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let told: serde_json::Value = serde_json::from_str(stdout.lines().next().unwrap()).unwrap();
    assert_eq!((&told["kind"], &told["begin"]), (&"remark".into(), &begin.into()));
    let taken = ["store", "repair", "--data", data, "--adopt", "1=books"];
    let (stdout, stderr, code) = mainstem("", &taken, "");
    let expected = "error: topic 1 is there, it is orders: `mainstem store dump --data` shows of which \
        topic a record is\n";
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("", expected, Some(1)));
    for (args, why) in [
        (&["--lose", "7..7"][..], "END is the first byte behind the range"),
        (&["--lose", "some"], "give BEGIN..END in bytes, or all"),
        (&["--adopt", "1=a b"], "a topic's name is made of letters"),
        (&[], "required"),
    ] {
        let (_, stderr, code) =
            mainstem("", &[&["store", "repair", "--data", data], args].concat(), "");
        assert!(stderr.contains(why), "{stderr}");
        assert_eq!(code, Some(2));
    }
}

#[test]
fn compressed_records_are_sent_pulled_found_verified_and_shown() {
    let mut broker = RealBroker::start();
    let data = broker.directory.path().join("data");
    let data = data.to_str().unwrap();
    let input: String = (0..50)
        .map(|number| format!("{{\"key\":\"k{number}\",\"body\":\"line {number}\"}}\n"))
        .collect();
    let send = |compression| {
        let send = ["send", "-t", "lines", "--queue", "0", "--jsonl", "-", "--batch", "25"];
        mainstem(&broker.grpc, &[&send[..], &["--compression", compression]].concat(), &input)
    };
    let (stdout, stderr, code) = send("lz4");
    assert!(stdout.ends_with("50 messages in 2 records\n"), "{stdout}");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let (_, stderr, code) = send("zstd");
    if cfg!(feature = "zstd") {
        assert_eq!((stderr.as_str(), code), ("", Some(0)));
    } else {
        let expected = "error: this build has no zstd: it was made without the feature `zstd`\n";
        assert_eq!((stderr.as_str(), code), (expected, Some(1)));
    }
    let bodies = |args: &[&str]| -> Vec<String> {
        let (stdout, stderr, code) = mainstem(&broker.grpc, &[args, &["-o", "jsonl"]].concat(), "");
        assert_eq!((stderr.as_str(), code), ("", Some(0)));
        let message = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        stdout.lines().map(|line| message(line)["body"].as_str().unwrap().to_owned()).collect()
    };
    let expected: Vec<_> = (0..50).map(|number| format!("line {number}")).collect();
    let query = ["query", "-t", "lines", "--key", "k30", "--oldest-first"];
    assert_eq!(bodies(&query)[0], "line 30");
    assert_eq!(bodies(&["pull", "-t", "lines", "-n", "50"]), expected);
    drop(broker.child.stdin.take());
    assert_eq!(broker.child.wait().unwrap().code(), Some(0));

    let (stdout, stderr, code) = mainstem("", &["store", "verify", "--data", data], "");
    assert!(stdout.starts_with("sound                  yes\n"), "{stdout}");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let dump = ["store", "dump", "--data", data, "--kind", "message"];
    let (stdout, ..) = mainstem("", &[&dump[..], &["-o", "jsonl"]].concat(), "");
    let codecs: Vec<_> = stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["codec"].clone())
        .collect();
    let expected: &[&str] =
        if cfg!(feature = "zstd") { &["lz4", "lz4", "zstd", "zstd"] } else { &["lz4", "lz4"] };
    assert_eq!(codecs, expected);
    let (stdout, ..) = mainstem("", &dump, "");
    assert!(stdout.lines().nth(1).unwrap().ends_with("lz4: keys k0 body 6 B; 24 more"), "{stdout}");
}

#[test]
fn a_real_broker_answers_every_command() {
    let broker = RealBroker::start();
    session("tests/cli/broker.trycmd", &broker.grpc);
}

#[test]
fn health_ends_with_zero_if_the_broker_serves_and_with_one_if_what_answers_is_none() {
    let broker = RealBroker::start();
    let health = |http: &str, format| mainstem("", &["health", "--http", http, "-o", format], "");
    let expected = ("ready\n".to_owned(), String::new(), Some(0));
    assert_eq!(health(&broker.http, "table"), expected);
    let line = format!("{{\"http\":\"{}\",\"says\":[\"ready\"]}}\n", broker.http);
    assert_eq!(health(&broker.http, "jsonl"), (line, String::new(), Some(0)));
    // The gRPC port speaks HTTP/2 alone, and says so.
    let (stdout, stderr, code) = health(&broker.grpc, "table");
    assert_eq!((stdout.as_str(), code), ("", Some(1)), "{stderr}");
    let expected =
        format!("error: {} is not ready: This port speaks gRPC over HTTP/2.", broker.grpc);
    assert!(stderr.starts_with(&expected), "{stderr}");
}

#[test]
fn health_ends_with_one_if_nothing_comes_back() {
    // The kernel accepts for a listener that never does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let http = listener.local_addr().unwrap().to_string();
    let (stdout, stderr, code) = mainstem("", &["health", "--http", &http], "");
    let expected = format!("error: {http} did not answer within 3s\n");
    assert_eq!((stdout.as_str(), stderr, code), ("", expected, Some(1)));
}

#[test]
fn groups_commit_reset_and_go_on_where_they_were() {
    let broker = RealBroker::start();
    session("tests/cli/groups.trycmd", &broker.grpc);
}

#[test]
fn consumers_of_a_group_receive_and_acknowledge_its_messages() {
    let broker = RealBroker::start();
    session("tests/cli/receive.trycmd", &broker.grpc);
}

#[test]
fn a_broker_that_is_told_to_stop_ends_with_zero() {
    let mut broker = RealBroker::start();
    assert_eq!(mainstem(&broker.grpc, &["send", "-t", "orders", "hello"], "").2, Some(0));
    // The end of its standard input is the word to stop.
    drop(broker.child.stdin.take());
    assert_eq!(broker.child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_address_that_is_taken_is_named_with_a_cure() {
    let broker = RealBroker::start();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let args = ["serve", "--data", data.to_str().unwrap(), "--listen", &broker.grpc];
    let (stdout, stderr, code) = mainstem(&broker.grpc, &args, "");
    let last = stderr.lines().last().unwrap();
    let expected = format!(
        "error: cannot listen on {} (Address already in use (os error 98)): is a broker running \
         there? Name another address with --listen",
        broker.grpc
    );
    assert_eq!((stdout.as_str(), last, code), ("", expected.as_str(), Some(1)));
}

#[test]
fn the_demo_holds_every_promise_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(BINARY)
        .args(["demo", "-o", "json"])
        .env("TMPDIR", directory.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((stderr.as_str(), output.status.code()), ("", Some(0)));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// `mainstem serve` on free ports in a directory of its own, gone with the test.
struct RealBroker {
    child: Child,
    grpc: String,
    http: String,
    directory: tempfile::TempDir,
}

impl RealBroker {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(BINARY)
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(["--set", "store.segment_size=64MiB"])
            .args(["--print-addresses", "--until-stdin-closes", "--data"])
            .arg(directory.path().join("data"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addresses: serde_json::Value = serde_json::from_str(&line).unwrap();
        let grpc = addresses["grpc"].as_str().unwrap().to_owned();
        let http = addresses["http"].as_str().unwrap().to_owned();
        Self { child, grpc, http, directory }
    }
}

impl Drop for RealBroker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mainstem(server: &str, args: &[&str], input: &str) -> (String, String, Option<i32>) {
    let mut child = Command::new(BINARY)
        .args(args)
        .env("MAINSTEM_SERVER", server)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

#[test]
fn lines_of_standard_input_come_back_in_their_order() {
    let server = Fake::start().to_string();
    let input: String = (0..2_500).map(|number| format!("line {number}\n")).collect();
    let send = ["send", "-t", "numbers", "--queue", "0", "--lines", "-", "--batch", "100"];
    let (stdout, stderr, code) = mainstem(&server, &send, &input);
    let expected = "TOPIC    QUEUE  MESSAGES  NEXT OFFSET\n\
        numbers  0      2500      2500\n\n2500 messages in 25 records\n";
    assert_eq!((stdout.as_str(), stderr.as_str(), code), (expected, "", Some(0)));

    let (stdout, stderr, code) = mainstem(&server, &["pull", "-t", "numbers", "-o", "jsonl"], "");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let bodies: Vec<String> = stdout
        .lines()
        .map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).unwrap();
            message["body"].as_str().unwrap().to_owned()
        })
        .collect();
    let expected: Vec<String> = (0..2_500).map(|number| format!("line {number}")).collect();
    assert_eq!(bodies, expected);
}

#[test]
fn what_pull_writes_is_what_send_reads() {
    let server = Fake::start().to_string();
    let input = concat!(
        r#"{"key":"a","tag":"t","properties":{"p":"1","q":"2"},"body":"first"}"#,
        "\n\n",
        r#"{"keys":["b","c"],"producer_id":"mine","message_group":"g","born_time":"2026-07-01T12:00:00Z","body_base64":"/wA="}"#,
        "\n",
    );
    let (_, stderr, code) = mainstem(&server, &["send", "-t", "one", "--jsonl", "-"], input);
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let (first, _, _) = mainstem(&server, &["pull", "-t", "one", "-o", "jsonl"], "");
    let (_, stderr, code) = mainstem(&server, &["send", "-t", "two", "--jsonl", "-"], &first);
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let (second, _, _) = mainstem(&server, &["pull", "-t", "two", "-o", "jsonl"], "");

    let content = |text: &str| -> Vec<serde_json::Value> {
        text.lines()
            .map(|line| {
                let mut message: serde_json::Value = serde_json::from_str(line).unwrap();
                for field in ["id", "topic", "queue", "offset", "store_time"] {
                    message.as_object_mut().unwrap().remove(field).unwrap();
                }
                message
            })
            .collect()
    };
    assert_eq!(content(&first), content(&second));
    assert_eq!(content(&first).len(), 2);
}

#[test]
fn a_reader_that_leaves_ends_the_command_quietly() {
    let server = Fake::start().to_string();
    let input: String = (0..5_000).map(|number| format!("line {number}\n")).collect();
    let send = ["send", "-t", "numbers", "--lines", "-", "--batch", "1000"];
    assert_eq!(mainstem(&server, &send, &input).2, Some(0));

    let mut child = Command::new(BINARY)
        .args(["pull", "-t", "numbers", "-o", "jsonl"])
        .env("MAINSTEM_SERVER", &server)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stderr.as_slice(), output.status.code()), (&b""[..], Some(0)));
}

#[test]
fn pull_waits_for_what_is_not_there_yet() {
    let server = Fake::start().to_string();
    assert_eq!(mainstem(&server, &["topic", "create", "later", "--queues", "1"], "").2, Some(0));
    let args =
        ["pull", "-t", "later", "--from", "latest", "-n", "1", "--wait", "1m", "-o", "jsonl"];
    let reader = Command::new(BINARY)
        .args(args)
        .env("MAINSTEM_SERVER", &server)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Whether the reader is there before or after the first of them, one of them it sees.
    let sender = std::thread::spawn({
        let server = server.clone();
        move || {
            for _ in 0..50 {
                assert_eq!(mainstem(&server, &["send", "-t", "later", "hello"], "").2, Some(0));
            }
        }
    });
    let output = reader.wait_with_output().unwrap();
    sender.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let message: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(message["body"], "hello");
}

#[test]
fn a_reader_of_a_group_that_was_moved_by_another_ends_and_says_so() {
    let broker = RealBroker::start();
    let run = |args: &[&str]| {
        let (stdout, stderr, code) = mainstem(&broker.grpc, args, "");
        assert_eq!((stderr.as_str(), code), ("", Some(0)), "{args:?}");
        stdout
    };
    run(&["topic", "create", "orders", "--queues", "1"]);
    run(&["group", "create", "billing"]);
    run(&["send", "-t", "orders", "first"]);
    let reader = Command::new(BINARY)
        .args(["pull", "-t", "orders", "-g", "billing", "--commit", "--wait", "1m"])
        .env("MAINSTEM_SERVER", &broker.grpc)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let committed = || run(&["offset", "show", "-g", "billing", "-t", "orders", "-o", "jsonl"]);
    while !committed().contains(r#""committed":1"#) {}
    run(&["offset", "commit", "-g", "billing", "-t", "orders", "--queue", "0", "--offset", "0"]);
    run(&["send", "-t", "orders", "second"]);
    let output = reader.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = "error: the committed offset of queue 0 of topic orders is 0, which was not \
        expected: another reader of the group or a reset moved it; `mainstem offset show` shows \
        where it is\n";
    assert_eq!((stderr.as_str(), output.status.code()), (expected, Some(1)));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
    assert!(committed().contains(r#""committed":0"#));
}
