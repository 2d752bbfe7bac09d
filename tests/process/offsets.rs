//! SIGKILL while groups commit: what was acknowledged is committed, also in topics with async flush, and nothing is that
//! nobody asked for.

use std::collections::BTreeMap;

use mainstem::client::{Client, Expected, GroupSettings, NewCommit};
use mainstem::message::{FlushMode, QueueId, QueueOffset};
use tokio::sync::mpsc;

use crate::support::{Home, Process, create_topics, one};

const TOPICS: [(&str, FlushMode); 2] = [("sync", FlushMode::Sync), ("async", FlushMode::Async)];
const GROUP: &str = "billing";
const QUEUES: u32 = 2;
const ROUNDS: usize = 3;
/// Acknowledged commits before a broker is killed.
const COMMITS: usize = 60;

type Place = (&'static str, u32);

/// What one consumer knows of its queue.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    acknowledged: Option<QueueOffset>,
    /// Asked for last, answered or not.
    attempted: Option<QueueOffset>,
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_commits_outlive_a_kill() {
    let home = Home::new();
    let mut committed: BTreeMap<Place, Option<QueueOffset>> = BTreeMap::new();
    for round in 0..ROUNDS {
        let process = Process::start(&home, &[]).await;
        let client = process.client().await;
        if round == 0 {
            create_topics(&client, &TOPICS, QUEUES).await;
            client.create_group(GROUP, &GroupSettings::default()).await.unwrap();
        }
        let (acknowledged, mut acknowledgements) = mpsc::channel(1_000);
        let mut consumers = Vec::new();
        for (topic, _) in TOPICS {
            for queue in 0..QUEUES {
                let known = committed.get(&(topic, queue)).copied().flatten();
                let consumer = consume(client.clone(), topic, queue, known, acknowledged.clone());
                consumers.push(((topic, queue), tokio::spawn(consumer)));
            }
        }
        for _ in 0..COMMITS {
            acknowledgements.recv().await.unwrap();
        }
        process.kill().await;
        // Whoever still commits is told by the broken connection.
        acknowledgements.close();

        let process = Process::start(&home, &[]).await;
        let client = process.client().await;
        for (place, consumer) in consumers {
            let seen = consumer.await.unwrap();
            let (topic, queue) = place;
            let found = client.committed(GROUP, topic, QueueId::new(queue)).await.unwrap();
            assert!(
                found == seen.acknowledged || found == seen.attempted,
                "{place:?}: {found:?} is committed, {seen:?}"
            );
            committed.insert(place, found);
        }
        process.stop().await;
    }
    assert!(committed.values().all(Option::is_some), "{committed:?}");
}

/// Sends and commits one message after the other until the broker is gone.
async fn consume(
    client: Client,
    topic: &'static str,
    queue: u32,
    known: Option<QueueOffset>,
    acknowledged: mpsc::Sender<()>,
) -> Seen {
    let mut seen = Seen { acknowledged: known, attempted: known };
    let queue = QueueId::new(queue);
    loop {
        let Ok(receipt) = client.send(topic, Some(queue), one(b"x")).await else { return seen };
        let offset = receipt.first_queue_offset.plus(1);
        let expected = seen.acknowledged.map_or(Expected::Nothing, Expected::Offset);
        seen.attempted = Some(offset);
        let commit = [NewCommit { topic, queue, offset, expected, known_queues: None }];
        if client.commit(GROUP, &commit).await.is_err() {
            return seen;
        }
        seen.acknowledged = Some(offset);
        if acknowledged.send(()).await.is_err() {
            return seen;
        }
    }
}
