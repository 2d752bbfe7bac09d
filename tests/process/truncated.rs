//! A power cut that takes the newest messages of an async topic, after they were read.
//!
//! No test can cut the power of the machine that it runs on. What a cut leaves is made by hand: the broker is killed while
//! nothing of these messages was synced, and one of them is wiped out of the log.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use mainstem::client::Client;
use mainstem::client::{ClientError, Pull, Pulled, Reason, TopicSettings};
use mainstem::format::batch::TagFilter;
use mainstem::message::{Epoch, FlushMode, QueueId, QueueOffset};

use crate::support::{Home, Process, one, read_all, until};

/// Nothing is flushed unless somebody waits for it.
const LAZY: [&str; 2] = ["--set", "store.flush_interval=60s"];

async fn pull_at(client: &Client, offset: u64, epoch: u64) -> Result<Pulled, ClientError> {
    let pull = Pull {
        epoch: Some(Epoch::new(epoch)),
        group: None,
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::new(offset),
        max_messages: None,
        max_bytes: None,
        wait: Duration::ZERO,
        tags: "*",
        filter: &TagFilter::All,
    };
    client.pull(&pull).await
}

#[tokio::test]
async fn a_reader_is_told_which_of_the_messages_it_read_a_power_cut_took() {
    let home = Home::new();
    let process = Process::start(&home, &LAZY).await;
    let client = process.client().await;
    let settings = || TopicSettings {
        queues: Some(1),
        flush: Some(FlushMode::Async),
        ..TopicSettings::default()
    };
    client.create_topic("t", settings()).await.unwrap();
    let queue = Some(QueueId::ZERO);
    for n in 0..20 {
        client.send("t", queue, one(format!("kept {n}").as_bytes())).await.unwrap();
    }
    // An OK to this is one for all before it.
    client.create_topic("u", settings()).await.unwrap();
    let mut receipts = Vec::new();
    for n in 0..10 {
        receipts.push(client.send("t", queue, one(format!("lost {n}").as_bytes())).await.unwrap());
    }
    until("reading all", async || {
        let read = read_all(&client, "t", 0).await;
        (read.len() == 30).then_some(())
    })
    .await;
    process.kill().await;

    let log = home.data().join("commitlog").join(format!("{:020}.log", 0));
    let log = std::fs::File::options().write(true).open(log).unwrap();
    let (from, to) = (receipts[0].first_id.offset.get(), receipts[1].first_id.offset.get());
    log.write_all_at(&vec![0; usize::try_from(to - from).unwrap()], from).unwrap();

    let process = Process::start(&home, &LAZY).await;
    let said = process.said();
    assert!(said.contains("LOST: 9 messages"), "{said}");
    assert!(said.contains("9 in t/0 (store time"), "{said}");
    let client = process.client().await;
    let status = client.status().await.unwrap();
    assert!(status.start_report.iter().any(|line| line.contains("9 in t/0")), "{status:?}");

    let refused = pull_at(&client, 30, 1).await.unwrap_err();
    let refusal = refused.refusal().expect("the broker said so");
    let next = refusal.next_offset.map(QueueOffset::get);
    assert_eq!((refusal.reason, next), (Reason::Truncated, Some(20)));
    assert_eq!(refusal.epoch, Some(Epoch::new(2)));
    assert_eq!(refusal.range.map(|range| range.max.get()), Some(20));

    // It goes on where it was told to, and hears what came instead.
    client.send("t", queue, one(b"instead")).await.unwrap();
    let pulled = pull_at(&client, 20, 2).await.unwrap();
    assert_eq!((pulled.messages.len(), pulled.epoch), (1, Epoch::new(2)));
    assert_eq!(&pulled.messages[0].body[..], b"instead");
    let still = pull_at(&client, 21, 1).await.unwrap_err();
    assert_eq!(still.reason(), Some(Reason::Truncated), "another message is there now");
    assert_eq!(pull_at(&client, 20, 1).await.unwrap().messages.len(), 1, "nothing of it is lost");

    let ahead = pull_at(&client, 20, 3).await.unwrap_err();
    assert_eq!(ahead.reason(), Some(Reason::BadRequest));
    assert!(ahead.to_string().contains("epoch 3 has not begun here, the newest is 2"), "{ahead}");
    process.stop().await;
}
