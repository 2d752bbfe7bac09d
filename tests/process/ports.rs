//! What a broker says over HTTP, and what becomes of those who talk nonsense to it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Dice, Home, Process, assert_no_panic, one, read_all, soon, until};

/// The values of an OpenMetrics text by name and labels; panics at a line that is none.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut values = BTreeMap::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            let kind = words.next().unwrap();
            assert!(["HELP", "TYPE", "UNIT", "EOF"].contains(&kind), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let bare = name.split('{').next().unwrap();
        assert!(bare.starts_with("mainstem_"), "{line}");
        assert!(bare.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
        let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert_eq!(values.insert(name.to_owned(), value), None, "twice: {line}");
    }
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_tell_of_life_readiness_and_watermarks() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    for _ in 0..10 {
        client.send("orders", None, one(&[7; 1000])).await.unwrap();
    }
    assert_eq!(process.page("/healthz").await, (200, "alive\n".to_owned()));
    assert_eq!(process.page("/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(process.page("/nothing").await.0, 404);

    let appended = client.status().await.unwrap().appended.get();
    let mark = |name: &str| format!("mainstem_position_bytes{{mark=\"{name}\"}}");
    let values = until("dispatch and flush", async || {
        let (status, text) = process.page("/metrics").await;
        assert_eq!(status, 200);
        let values = parse(&text);
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let caught_up = ["appended", "dispatched", "flushed"]
            .iter()
            .all(|name| values[&mark(name)] >= appended as f64);
        caught_up.then_some(values)
    })
    .await;
    assert_eq!(values[&mark("min")], 0.0);
    for (name, value) in [
        ("mainstem_sends_total", 10.0),
        ("mainstem_sent_messages_total", 10.0),
        ("mainstem_topics", 1.0),
        ("mainstem_queues", 4.0),
        ("mainstem_epoch", 1.0),
        ("mainstem_draining", 0.0),
        ("mainstem_failed", 0.0),
        ("mainstem_damaged_bytes", 0.0),
        ("mainstem_no_authentication", 0.0),
    ] {
        assert_eq!(values.get(name), Some(&value), "{name}");
    }
    process.stop().await;
}

/// What `talk` gets back before the broker closes the connection, or the reset instead.
async fn answer_to(process: &Process, talk: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(&process.grpc).await.unwrap();
    // The broker may close before it has heard all.
    let _ = stream.write_all(talk).await;
    let mut answer = Vec::new();
    let _ = soon("the end of the connection", stream.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_talks_nonsense_is_cut_off_and_the_others_are_served() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // Half a preface, and no more: cut off by a deadline, while the rest goes on beside it.
    let mut half = TcpStream::connect(&process.grpc).await.unwrap();
    half.write_all(&preface[..12]).await.unwrap();

    let mut dice = Dice::new(42);
    let garbage: Vec<u8> = (0..8192).map(|_| dice.roll().to_le_bytes()[0]).collect();
    for talk in [garbage.as_slice(), b"\0", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"] {
        assert_eq!(answer_to(&process, talk).await, b"", "{:?}", &talk[..talk.len().min(12)]);
    }
    // Behind a right preface: HTTP/2 says GOAWAY (type 7) before it closes.
    let mut talk = preface.to_vec();
    talk.extend(&garbage);
    let answer = answer_to(&process, &talk).await;
    let frames = frames(&answer);
    assert!(frames.is_empty() || frames.contains(&7), "{frames:?}");

    for _ in 0..3 {
        client.send("orders", None, one(b"served")).await.unwrap();
    }
    let mut rest = Vec::new();
    let _ = soon("the deadline of the preface", half.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    let mut found = 0;
    for queue in 0..4 {
        found += read_all(&client, "orders", queue).await.len();
    }
    assert_eq!(found, 3);
    // Nobody of them is still counted.
    until("the count of connections", async || {
        (process.metric("mainstem_connections").await == Some(1)).then_some(())
    })
    .await;
    assert_no_panic(&process.said());
    process.stop().await;
}

/// The types of the HTTP/2 frames in `bytes`.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [a, b, c, kind, ..] = *bytes {
        types.push(kind);
        let len = [a, b, c].into_iter().fold(0, |len, byte| len << 8 | usize::from(byte));
        bytes = bytes.get(9 + len..).unwrap_or_default();
    }
    types
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_silent_connections_keeps_nobody_out() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(&process.grpc).await.unwrap());
    }
    let client = process.client().await;
    soon("a send", client.send("orders", None, one(b"served"))).await.unwrap();
    drop(crowd);
    let nobody = async || {
        tokio::time::sleep(Duration::from_millis(20)).await;
        (process.metric("mainstem_connections").await == Some(1)).then_some(())
    };
    until("the crowd's end", nobody).await;
    process.stop().await;
}
