//! A disk that is full or almost, and one that fails a sync.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstem::client::{
    Client, ClientError, Expected, Filter, GroupSettings, Hold, NewCommit, Purge, Reason, Receive,
    Stored, TopicSettings,
};
use mainstem::message::{FlushMode, QueueId, QueueOffset};
use tokio::process::Command;
use tonic::Code;

use crate::support::{
    BINARY, Home, Memory, Process, assert_no_panic, one, pull, read_all, read_from, skip, soon,
    until,
};

const MIB: usize = 1 << 20;
const TOPIC: &str = "filled";
/// Longer than a test takes.
const LATER: Duration = Duration::from_secs(3_600);
/// Sends go on until there is no room at all.
const FILL: &[&str] = &["--set", "store.disk_reserve=0"];

fn body(number: u64) -> Vec<u8> {
    let mut body = vec![b'x'; MIB];
    body[..8].copy_from_slice(&number.to_le_bytes());
    body
}

async fn send(client: &Client, number: u64) -> Result<(), ClientError> {
    client.send(TOPIC, Some(QueueId::new(0)), one(&body(number))).await.map(|_| ())
}

/// Sends until there is no room; returns how many were stored in all.
async fn fill(client: &Client, mut stored: u64) -> u64 {
    loop {
        assert!(stored < 400, "more was stored than there is room for");
        match send(client, stored).await {
            Ok(()) => stored += 1,
            Err(error) => {
                let refusal = error.refusal().unwrap_or_else(|| panic!("{error:?}"));
                assert_eq!(
                    (refusal.code, refusal.reason, refusal.stored),
                    (Code::ResourceExhausted, Reason::NoSpace, Stored::No),
                    "{refusal:?}"
                );
                assert!(refusal.retry_after.is_some(), "{refusal:?}");
                return stored;
            }
        }
    }
}

/// Asserts that all that was stored, and no more, is there in its order.
async fn assert_stored(client: &Client, stored: u64) {
    assert_stored_from(client, 0, stored).await;
}

/// The same of a queue whose messages below `first` are gone.
async fn assert_stored_from(client: &Client, first: u64, end: u64) {
    let messages = read_from(client, TOPIC, 0, first).await;
    assert_eq!(messages.len() as u64, end - first);
    for (number, message) in (first..).zip(messages) {
        assert_eq!(message.queue_offset.get(), number);
        assert!(message.body == body(number), "message {number}");
    }
    if let Some(gone) = first.checked_sub(1) {
        let error = pull(client, TOPIC, 0, gone, Duration::ZERO).await.unwrap_err();
        let refusal = error.refusal().unwrap_or_else(|| panic!("{error:?}"));
        let min = refusal.range.map(|range| range.min.get());
        assert_eq!((refusal.reason, min), (Reason::OffsetOutOfRange, Some(first)), "{refusal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_sends_serves_reads_and_takes_sends_again_when_there_is_space() {
    for (flush, drops) in [(FlushMode::Sync, false), (FlushMode::Async, true)] {
        let home = Home::new();
        // Two segments of 64 MiB, and what is beside them; the ballast leaves no room for a third one.
        let Some(_memory) = Memory::mount(&home.data(), 240) else { return };
        let ballast = home.data().join("ballast");
        std::fs::write(&ballast, vec![1; 100 * MIB]).unwrap();
        let process = Process::start(&home, FILL).await;
        let client = process.client().await;
        let settings =
            TopicSettings { queues: Some(1), flush: Some(flush), ..TopicSettings::default() };
        client.create_topic(TOPIC, settings).await.unwrap();

        let stored = fill(&client, 0).await;
        assert!(stored > 100, "{stored}");
        assert_stored(&client, stored).await;
        assert_eq!(process.page("/healthz").await.0, 200);
        let refusals = process.metric("mainstem_refusals_total{reason=\"NO_SPACE\"}").await;
        assert!(refusals > Some(0), "{:?}", process.page("/metrics").await);
        // Full, it can be stopped, or killed, and started.
        let process = if drops {
            process.kill().await;
            Process::start(&home, FILL).await
        } else {
            process
        };
        let client = process.client().await;
        assert_stored(&client, stored).await;

        std::fs::remove_file(&ballast).unwrap();
        until("a send with space", async || send(&client, stored).await.ok()).await;
        assert_stored(&client, stored + 1).await;
        process.stop().await;
    }
}

/// The files of the log's segments, in their order.
fn segments(home: &Home) -> Vec<PathBuf> {
    let files = std::fs::read_dir(home.data().join("commitlog")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension() == Some("log".as_ref())).collect();
    files.sort();
    files
}

/// Free bytes, as the file system has it.
fn free(home: &Home) -> u64 {
    let stat = rustix::fs::statvfs(home.data()).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_reserve_all_but_sends_goes_on_and_a_purge_makes_room_for_sends() {
    const SEGMENT: u64 = 64 << 20;
    const RESERVE: u64 = 64 << 20;
    for mode in ["sync", "async"] {
        let home = Home::new();
        // Three segments and what is beside them; a fourth one would go below the reserve.
        let Some(_memory) = Memory::mount(&home.data(), 320) else { return };
        let flush = format!("store.flush={mode}");
        let args = ["--set", "store.disk_reserve=64MiB", "--set", &flush];
        let process = Process::start(&home, &args).await;
        let client = process.client().await;
        let settings = TopicSettings { queues: Some(1), ..TopicSettings::default() };
        for topic in [TOPIC, "spare", "dropped"] {
            client.create_topic(topic, settings).await.unwrap();
        }
        client.create_group("readers", &GroupSettings::default()).await.unwrap();
        client.create_group("workers", &GroupSettings::default()).await.unwrap();
        client.send("spare", None, one(b"work")).await.unwrap();
        client.send("spare", None, one(b"more")).await.unwrap();
        client.send("dropped", None, one(b"goes with its topic")).await.unwrap();

        // Unlike a full disk: what is free at the end is what is to be kept free.
        let stored = fill(&client, 0).await;
        assert!(stored > 160, "{stored}");
        assert!(free(&home) >= RESERVE, "{} bytes free", free(&home));
        assert_eq!(segments(&home).len(), 3, "{:?}", segments(&home));
        assert_stored(&client, stored).await;

        // Somebody else writes to the same disk, and takes of the reserve.
        let taken = free(&home) - RESERVE / 2;
        std::fs::write(home.data().join("ballast"), vec![1; usize::try_from(taken).unwrap()])
            .unwrap();
        until("a short disk", async || client.status().await.unwrap().disk_is_short.then_some(()))
            .await;
        assert_eq!(fill(&client, stored).await, stored);
        let error = client.send("spare", None, one(b"small")).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::NoSpace), "also a small one: {error:?}");
        assert_stored(&client, stored).await;
        for offset in 1..=100 {
            let (queue, offset) = (QueueId::new(0), QueueOffset::new(offset));
            let commit = NewCommit {
                topic: TOPIC,
                queue,
                offset,
                expected: Expected::Any,
                known_queues: None,
            };
            client.commit("readers", &[commit]).await.unwrap();
        }
        let work = Receive {
            group: "workers",
            topic: "spare",
            filter: Filter::All,
            max_messages: 1,
            invisible: Duration::from_secs(600),
            wait: Duration::ZERO,
            attempt: "",
        };
        let done = client.receive(&work).await.unwrap().remove(0);
        assert_eq!((&done.message.body[..], done.delivery), (&b"work"[..], 1));
        assert_eq!(client.ack("workers", "spare", &[&done.handle]).await.unwrap(), [true]);
        let more = client.receive(&work).await.unwrap().remove(0).handle;
        let more = client.extend("workers", "spare", &[(&more, Hold::For(LATER))]).await.unwrap();
        let more = more[0].as_deref().unwrap();
        assert_eq!(client.ack("workers", "spare", &[more]).await.unwrap(), [true]);
        client.delete_topic("dropped").await.unwrap();
        client.create_topic("made", settings).await.unwrap();

        // What stays lies in the last segment, so the two before it can go.
        let (kept, before, was) = (stored - 20, free(&home), segments(&home));
        let what = Purge::Queue { queue: QueueId::new(0), up_to: Some(QueueOffset::new(kept)) };
        assert_eq!(client.purge_topic(TOPIC, what).await.unwrap(), Some(kept));
        let what = Purge::Queue { queue: QueueId::new(0), up_to: Some(QueueOffset::new(2)) };
        assert_eq!(client.purge_topic("spare", what).await.unwrap(), Some(2));
        until("the files to go", async || {
            let gone = was[..2].iter().all(|file| !file.exists());
            gone.then_some(())
        })
        .await;
        until("space", async || {
            // The next segment is made as soon as there is room for it.
            let new = segments(&home).iter().filter(|file| !was.contains(file)).count() as u64;
            (free(&home) + new * SEGMENT >= before + 2 * SEGMENT - (1 << 20)).then_some(())
        })
        .await;
        for beside in ["consumequeue", "index"] {
            let files = std::fs::read_dir(home.data().join(beside)).unwrap().count();
            assert_eq!(files, 0, "{beside}: both sealed segments are gone");
        }

        until("a send with space", async || send(&client, stored).await.ok()).await;
        let stored = fill(&client, stored + 1).await;
        assert_stored_from(&client, kept, stored).await;
        let status = client.status().await.unwrap();
        assert_eq!((status.epoch.get(), status.deleted_segments), (1, 2), "without a restart");
        let (left, min) = (segments(&home), status.min);
        assert!(min.get() >= 2 * SEGMENT, "{min}");

        process.kill().await;
        let process = Process::start(&home, &args).await;
        let client = process.client().await;
        assert_stored_from(&client, kept, stored).await;
        assert!(was[..2].iter().all(|file| !file.exists()), "{:?}", segments(&home));
        assert!(left.iter().all(|file| file.exists()), "{:?}", segments(&home));
        let status = client.status().await.unwrap();
        assert_eq!((status.min, status.damaged), (min, vec![]));
        let committed = client.committed("readers", TOPIC, QueueId::new(0)).await.unwrap();
        assert_eq!(committed, Some(QueueOffset::new(100)));
        assert_eq!(client.receive(&work).await.unwrap(), [], "all of it is done");
        let worked = client.committed("workers", "spare", QueueId::new(0)).await.unwrap();
        assert_eq!(worked, Some(QueueOffset::new(2)));
        let (topics, _) = client.topics("").await.unwrap();
        let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
        assert_eq!(names, [TOPIC, "made", "spare"]);
        process.stop().await;
    }
}

/// strace that lets the syncs of one broker fail from the `when`th of a thread on.
fn failing_sync(log: &Path, when: &str) -> Option<Command> {
    let mut is_there = std::process::Command::new("strace");
    is_there.args(["-qq", "-o", "/dev/null", "true"]);
    if !is_there.output().is_ok_and(|output| output.status.success()) {
        skip("this needs strace, and the right to use it");
        return None;
    }
    let mut command = Command::new("strace");
    command.args(["-f", "--seccomp-bpf", "-qq", "-e", "trace=fdatasync", "-e"]);
    command.arg(format!("inject=fdatasync:error=EIO:when={when}"));
    command.arg("-o").arg(log).arg(BINARY);
    Some(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_the_process_with_74_and_the_next_start_recovers() {
    // Counted per thread; the one that flushes comes to its twelfth under load.
    for flush in [FlushMode::Sync, FlushMode::Async] {
        let home = Home::new();
        let Some(command) = failing_sync(&home.path().join("strace"), "12+") else { return };
        let mut process = Process::spawn_by(command, &home, &[]);
        process.ready().await;
        let client = process.client().await;
        let settings =
            TopicSettings { queues: Some(1), flush: Some(flush), ..TopicSettings::default() };
        client.create_topic(TOPIC, settings).await.unwrap();
        let mut stored = 0;
        let error = soon("the failure", async {
            loop {
                match send(&client, stored).await {
                    Ok(()) => stored += 1,
                    Err(error) => return error,
                }
                assert!(stored < 10_000, "the sync never failed");
                if flush == FlushMode::Async {
                    // As slowly as an interval: each flush takes little.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
        let error = error.await;
        match flush {
            // Its bytes are in the log, and nobody knows whether on the disk.
            FlushMode::Sync => assert_eq!(error.stored(), Stored::Unknown, "{error:?}"),
            FlushMode::Async => {
                assert!(matches!(error.reason(), Some(Reason::Poisoned) | None), "{error:?}");
            }
        }
        assert_eq!(process.ended().await.code(), Some(74), "{}", process.said());
        let said = process.said();
        assert_no_panic(&said);
        assert!(said.contains("Input/output error"), "it says what failed: {said}");
        let last = said.lines().last().unwrap();
        let expected =
            "error: a sync of the log failed; what was not acknowledged may or may not be stored";
        assert!(last.starts_with(expected), "{said}");
        assert!(
            last.ends_with("check the disk, then start the broker again: it recovers"),
            "{said}"
        );
        drop(process);

        let process = Process::start(&home, &[]).await;
        let client = process.client().await;
        let report = client.status().await.unwrap().start_report;
        assert!(report[0].starts_with("opened after an unclean stop"), "{report:?}");
        let messages = read_all(&client, TOPIC, 0).await;
        assert!(messages.len() as u64 >= stored, "{} of {stored}", messages.len());
        for (number, message) in (0..).zip(messages) {
            assert!(message.body == body(number), "message {number}");
        }
        client.send(TOPIC, None, one(b"on it goes")).await.unwrap();
        process.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_at_the_start_ends_it_with_74() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    process.client().await.send(TOPIC, None, one(b"hello")).await.unwrap();
    process.kill().await;
    let Some(command) = failing_sync(&home.path().join("strace"), "1+") else { return };
    let mut process = Process::spawn_by(command, &home, &[]);
    let status = process.ended().await;
    let said = process.said();
    assert_eq!(status.code(), Some(74), "{said}");
    assert_no_panic(&said);
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("error: cannot make the found log durable: cannot sync "), "{said}");
    let end = ": Input/output error (os error 5): check the disk, then start the broker again: it recovers";
    assert!(last.ends_with(end), "{said}");
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let mut found = 0;
    for queue in 0..4 {
        found += read_all(&client, TOPIC, queue).await.len();
    }
    assert_eq!(found, 1);
    process.stop().await;
}
