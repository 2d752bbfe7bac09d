//! SIGKILL at random times under producers with sessions: every batch is there once, and none is missing.
//!
//! A batch is a function of its producer and its sequence, as if it came from an outbox. After a kill a producer repeats
//! what has no answer, or dies with the broker and asks its session where to go on. `KILL_ROUNDS` and `KILL_SEED` as in
//! `kill.rs`.

use std::time::Duration;

use bytes::Bytes;
use mainstem::client::{Client, Session};
use mainstem::message::{FlushMode, QueueId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::support::{Dice, Home, Lives, Process, create_topics, one, read_all, rolls, soon};

const TOPICS: [(&str, FlushMode); 2] = [("sync", FlushMode::Sync), ("async", FlushMode::Async)];
const PRODUCERS: u32 = 4;
const ROUNDS: u64 = 5;
/// A broker is killed after 200 ms and something below this.
const LIFE_MS: u64 = 800;

/// The broker of a round, if there is one.
#[derive(Clone)]
enum Scene {
    Down,
    Up { round: u64, client: Box<Client> },
    Over,
}

/// What a producer knows.
#[derive(Debug, Default)]
struct Ledger {
    /// Its last batch with an OK.
    acknowledged: u64,
    /// Batches whose OK said that they had been stored before.
    duplicates: u64,
    /// Openings of its name.
    openings: u64,
}

/// Two producers for each topic, each to a queue of its own.
fn place(producer: u32) -> (&'static str, QueueId) {
    let (topic, _) = TOPICS[producer as usize % TOPICS.len()];
    (topic, QueueId::new(producer / 2))
}

fn name(producer: u32) -> String {
    format!("producer {producer}")
}

fn body(producer: u32, sequence: u64) -> Vec<u8> {
    format!("{producer}:{sequence}").into_bytes()
}

fn batch(producer: u32, sequence: u64) -> Bytes {
    one(&body(producer, sequence))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_a_broker_stores_every_batch_of_a_session_once() {
    let (rounds, seed) = rolls(ROUNDS);
    println!("KILL_SEED={seed} KILL_ROUNDS={rounds}");

    let home = Home::new();
    let mut dice = Dice::new(seed);
    let (scene, scenes) = watch::channel(Scene::Down);
    let mut producers = JoinSet::new();
    for producer in 0..PRODUCERS {
        let (dice, scenes) = (Dice::new(dice.roll()), scenes.clone());
        producers.spawn(async move { (producer, produce(producer, dice, scenes).await) });
    }
    let (mut round, mut kills) = (0, 0);
    let mut lives = Lives::new();
    while round < rounds {
        assert!(kills < rounds * 5 + 5, "the broker hardly ever serves");
        let life = 200 + dice.below(LIFE_MS);
        let (process, end) = lives.start(&home, round, life).await;
        if let Some(end) = end {
            let client = process.client().await;
            if round == 0 {
                create_topics(&client, &TOPICS, 2).await;
            }
            scene.send_replace(Scene::Up { round, client: Box::new(client) });
            round += 1;
            // Not a synchronisation: this is the random moment of the kill.
            sleep_until(end.max(Instant::now() + Duration::from_millis(dice.below(300)))).await;
        }
        process.kill().await;
        scene.send_replace(Scene::Down);
        kills += 1;
    }
    scene.send_replace(Scene::Over);
    let mut ledgers = Vec::new();
    while let Some(ended) = soon("a producer's end", producers.join_next()).await {
        ledgers.push(ended.unwrap());
    }

    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let mut all = 0;
    for (producer, ledger) in &ledgers {
        let (topic, queue) = place(*producer);
        let messages = read_all(&client, topic, queue.get()).await;
        let last = messages.len() as u64;
        let expected: Vec<_> = (1..=last).map(|sequence| body(*producer, sequence)).collect();
        let found: Vec<_> = messages.into_iter().map(|message| message.body.to_vec()).collect();
        assert!(found == expected, "{producer}: each batch once, in order, {ledger:?}");
        assert!(ledger.acknowledged <= last, "{producer}: acknowledged and lost, {ledger:?}");
        let session = client.describe_session(&name(*producer)).await.unwrap();
        assert_eq!((session.last_sequence, session.epoch >= ledger.openings), (last, true));
        all += last;
    }
    println!("{kills} kills, {all} batches, {ledgers:?}");
    assert!(all > 50, "too little was sent to say anything");
    process.stop().await;
}

/// Waits for a broker of a later round than the last one. `None`: it is over.
async fn broker(scene: &mut watch::Receiver<Scene>, last: Option<u64>) -> Option<(u64, Client)> {
    let other = |scene: &Scene| match scene {
        Scene::Down => false,
        Scene::Up { round, .. } => Some(*round) != last,
        Scene::Over => true,
    };
    match &*scene.wait_for(other).await.ok()? {
        Scene::Up { round, client } => Some((*round, Client::clone(client))),
        _ => None,
    }
}

async fn produce(producer: u32, mut dice: Dice, mut scene: watch::Receiver<Scene>) -> Ledger {
    let (topic, queue) = place(producer);
    let mut ledger = Ledger::default();
    let mut kept: Option<Session> = None;
    let mut last = None;
    while let Some((round, client)) = broker(&mut scene, last).await {
        last = Some(round);
        let mut session = match kept.take() {
            Some(mut session) if dice.below(2) == 0 => {
                session.reconnect(client);
                session
            }
            // It died with the broker, and knows of its batches what the session knows.
            _ => match client.open_session(&name(producer)).await {
                Ok(session) => session,
                Err(_) => continue,
            },
        };
        ledger.openings = ledger.openings.max(session.epoch());
        assert!(session.next_sequence() > ledger.acknowledged, "{ledger:?}");
        session.set_patience(Duration::from_millis(150));
        loop {
            let sequence = session.next_sequence();
            let sent = match session.settle().await {
                Ok(Some(receipt)) => Ok(receipt),
                Ok(None) => session.send(topic, Some(queue), batch(producer, sequence)).await,
                Err(error) => Err(error),
            };
            let Ok(receipt) = sent else { break };
            assert_eq!(receipt.first_queue_offset.get(), sequence - 1);
            ledger.acknowledged = sequence;
            ledger.duplicates += u64::from(receipt.is_duplicate);
        }
        kept = Some(session);
    }
    ledger
}
