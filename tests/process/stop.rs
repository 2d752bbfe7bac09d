//! SIGTERM: drain, flush, a clean mark, exit code 0.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::history::History;
use crate::load::{Load, TOPICS, acknowledged, assert_honest, create_topics, read_last};
use crate::support::{BINARY, Dice, Home, Process, assert_no_panic, page, until};

/// The settings that a silent client needs: the HTTP/2 preface and an empty SETTINGS frame.
const SILENT: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_ends_with_zero_and_keeps_what_was_acknowledged() {
    let home = Home::new();
    let mut history = History::default();
    let load = Load::start(&mut Dice::new(1), &TOPICS);
    let mut rounds = 0..3;
    for round in rounds.by_ref() {
        let mut process = Process::start(&home, &["--set", "server.drain_timeout=5s"]).await;
        let client = process.client().await;
        let status = client.status().await.unwrap();
        let report = &status.start_report[0];
        if round == 0 {
            create_topics(&client, &TOPICS).await;
        } else {
            let clean = format!("opened after a clean stop, epoch {}:", round + 1);
            assert!(report.starts_with(&clean), "{report}");
        }
        let before = client.status().await.unwrap().appended;
        load.up(round, client.clone());
        until("some load", async || {
            let appended = client.status().await.unwrap().appended;
            (appended.since(before) > 4 << 20).then_some(())
        })
        .await;

        let asked = Instant::now();
        process.signal(Signal::TERM);
        assert_eq!(process.ended().await.code(), Some(0), "{}", process.said());
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(15), "the stop took {took:?}");
        assert_no_panic(&process.said());
        load.down();
    }
    load.end(&mut history).await;

    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let report = client.status().await.unwrap().start_report;
    assert!(report[0].starts_with("opened after a clean stop, epoch 4:"), "{report:?}");
    assert_eq!(report.len(), 1, "nothing else to tell: {report:?}");
    read_last(&client, &TOPICS, &mut history).await;
    assert_honest(&history);
    for topic in TOPICS {
        assert!(acknowledged(&history, topic.name) > 20, "{topic:?}: too little was sent");
    }
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_drains_lives_and_is_not_ready() {
    let home = Home::new();
    let mut process = Process::start(&home, &[]).await;
    let http = process.http.clone();
    assert_eq!(process.page("/healthz").await, (200, "alive\n".to_owned()));
    assert_eq!(process.page("/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(process.metric("mainstem_draining").await, Some(0));
    // A connection that answers nothing: the drain waits for it.
    let mut silent = TcpStream::connect(&process.grpc).await.unwrap();
    silent.write_all(SILENT).await.unwrap();
    until("the connection", async || {
        (process.metric("mainstem_connections").await == Some(1)).then_some(())
    })
    .await;

    process.signal(Signal::TERM);
    let drained = until("the drain", async || {
        let (status, text) = page(&http, "/readyz").await.unwrap();
        (status != 200).then_some((status, text))
    });
    assert_eq!(drained.await, (503, "draining\n".to_owned()));
    let mut health = Command::new(BINARY);
    let asked = health.args(["health", "--http", &http]).output().await.unwrap();
    let said = String::from_utf8(asked.stderr).unwrap();
    let expected = format!("error: {http} is not ready: draining (503 Service Unavailable)\n");
    assert_eq!((said, asked.status.code()), (expected, Some(1)));
    assert_eq!(process.page("/healthz").await, (200, "alive\n".to_owned()));
    assert_eq!(process.metric("mainstem_draining").await, Some(1));
    TcpStream::connect(&process.grpc).await.unwrap_err();
    drop(silent);
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_ends_is_cut_off_after_the_drain_timeout() {
    let home = Home::new();
    let mut process = Process::start(&home, &["--set", "server.drain_timeout=300ms"]).await;
    let mut silent = TcpStream::connect(&process.grpc).await.unwrap();
    silent.write_all(SILENT).await.unwrap();
    until("the connection", async || {
        (process.metric("mainstem_connections").await == Some(1)).then_some(())
    })
    .await;
    process.signal(Signal::TERM);
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.said());
    assert!(process.said().contains("connections did not finish in time"), "{}", process.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_drain_at_once_and_the_next_start_recovers() {
    let home = Home::new();
    let mut process = Process::start(&home, &[]).await;
    let http = process.http.clone();
    let mut silent = TcpStream::connect(&process.grpc).await.unwrap();
    silent.write_all(SILENT).await.unwrap();
    until("the connection", async || {
        (process.metric("mainstem_connections").await == Some(1)).then_some(())
    })
    .await;
    process.signal(Signal::TERM);
    until("the drain", async || (page(&http, "/readyz").await.unwrap().0 == 503).then_some(()))
        .await;
    // Signals that come nearly at once are one wish to stop, so the second is given until it is heard.
    until("the end", async || {
        if process.has_ended() {
            return Some(());
        }
        process.signal(Signal::TERM);
        None
    })
    .await;
    assert_eq!(process.ended().await.code(), Some(1), "{}", process.said());
    let process = Process::start(&home, &[]).await;
    let report = process.client().await.status().await.unwrap().start_report;
    assert!(report[0].starts_with("opened after an unclean stop, epoch 2:"), "{report:?}");
    process.stop().await;
}
