//! SIGKILL at random times under producers of the client library: each message is stored once, those of a key in order.
//!
//! Producers and their tasks know of no kill: their connections lead through a door that stays where it is. `KILL_ROUNDS`
//! and `KILL_SEED` as in `kill.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mainstem::client::{Client, Partition, Producer, ProducerConfig};
use mainstem::format::batch::NewMeta;
use mainstem::message::FlushMode;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::support::{Dice, Home, Lives, Process, create_topics, read_all, rolls, soon};

const TOPICS: [(&str, FlushMode); 2] = [("sync", FlushMode::Sync), ("async", FlushMode::Async)];
const QUEUES: u32 = 3;
const TASKS: usize = 2;
const KEYS: usize = 5;
const ROUNDS: u64 = 5;
/// A broker is killed after 200 ms and something below this.
const LIFE_MS: u64 = 800;

/// An address whose connections lead to the broker of the moment, if there is one.
async fn door(broker: watch::Receiver<Option<String>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = broker.borrow().clone();
            tokio::spawn(async move {
                // A broker that is gone ends the connection, like one that dies.
                if let Some(to) = to
                    && let Ok(mut broker) = TcpStream::connect(to).await
                {
                    let _ = copy_bidirectional(&mut client, &mut broker).await;
                }
            });
        }
    });
    address
}

/// Messages whose tasks have heard that they are stored.
type Heard = Arc<AtomicUsize>;

/// Sends by key until it is `over`, a hundred messages ahead of what it has `heard` of; how many.
async fn produce(
    producer: Producer,
    topic: &str,
    task: usize,
    over: watch::Receiver<bool>,
    heard: Heard,
) -> usize {
    let mut accepted = Vec::new();
    while !*over.borrow() {
        let n = accepted.len();
        let (key, body) = (format!("{task}-{}", n % KEYS), n.to_string());
        let meta = NewMeta { keys: vec![&key], ..NewMeta::default() };
        accepted.push(producer.send(topic, &meta, body.as_bytes()).await.unwrap());
        if let Some(before) = n.checked_sub(100) {
            accepted[before].stored().await.unwrap();
            heard.fetch_add(1, Ordering::SeqCst);
        }
    }
    for accepted in &accepted {
        accepted.stored().await.unwrap();
    }
    accepted.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_a_broker_stores_each_message_of_a_producer_once_and_in_order() {
    let (rounds, seed) = rolls(ROUNDS);
    println!("KILL_SEED={seed} KILL_ROUNDS={rounds}");

    let home = Home::new();
    let mut dice = Dice::new(seed);
    let (broker, brokers) = watch::channel(None);
    let (over, is_over) = watch::channel(false);
    let door = door(brokers).await.to_string();
    let mut tasks = JoinSet::new();
    let heard = Heard::default();
    // How much more in each life, the last one's aside.
    let mut grown = Vec::new();
    let (mut round, mut kills, mut before) = (0, 0, 0);
    let mut lives = Lives::new();
    while round < rounds {
        assert!(kills < rounds * 5 + 5, "the broker hardly ever serves");
        let life = 200 + dice.below(LIFE_MS);
        let (process, end) = lives.start(&home, round, life).await;
        if let Some(end) = end {
            before = heard.load(Ordering::SeqCst);
            broker.send_replace(Some(process.grpc.clone()));
            if round == 0 {
                let client = soon("connecting", Client::connect(&door)).await.unwrap();
                create_topics(&client, &TOPICS, QUEUES).await;
                for (topic, _) in TOPICS {
                    let config = ProducerConfig {
                        batch_messages: 20,
                        back_off: Duration::from_millis(10),
                        // No kill is to fail anything, on the slowest machine.
                        patience: Duration::from_secs(600),
                        partition: Partition::ByKey,
                        ..ProducerConfig::default()
                    };
                    let producer = client.producer(config).await.unwrap();
                    for task in 0..TASKS {
                        let (producer, is_over) = (producer.clone(), is_over.clone());
                        let heard = Arc::clone(&heard);
                        tasks.spawn(async move {
                            (topic, task, produce(producer, topic, task, is_over, heard).await)
                        });
                    }
                }
            }
            round += 1;
            // Not a synchronisation: this is the random moment of the kill.
            sleep_until(end.max(Instant::now() + Duration::from_millis(dice.below(300)))).await;
        }
        process.kill().await;
        broker.send_replace(None);
        kills += 1;
        grown.push(heard.load(Ordering::SeqCst) - before);
    }

    let process = Process::start(&home, &[]).await;
    over.send_replace(true);
    broker.send_replace(Some(process.grpc.clone()));
    let mut sent = BTreeMap::new();
    while let Some(ended) = soon("a task's end", tasks.join_next()).await {
        let (topic, task, count) = ended.unwrap();
        sent.insert((topic, task), count);
    }
    let client = process.client().await;
    for (topic, _) in TOPICS {
        let mut found: BTreeMap<String, (u32, Vec<String>)> = BTreeMap::new();
        for queue in 0..QUEUES {
            for message in read_all(&client, topic, queue).await {
                let key = message.keys[0].clone();
                let (at, bodies) = found.entry(key).or_insert((queue, Vec::new()));
                assert_eq!(*at, queue, "{topic}: a key is in one queue");
                bodies.push(String::from_utf8(message.body.to_vec()).unwrap());
            }
        }
        for task in 0..TASKS {
            for key in 0..KEYS {
                let expected: Vec<_> =
                    (key..sent[&(topic, task)]).step_by(KEYS).map(|n| n.to_string()).collect();
                let found = found.remove(&format!("{task}-{key}")).map(|(_, bodies)| bodies);
                assert!(found == Some(expected), "{topic}, {task}-{key}: each once, in order");
            }
        }
        assert!(found.is_empty(), "{topic}: nobody sent {found:?}");
    }
    println!("{kills} kills, {sent:?}, {grown:?}");
    // Of one life alone, or of the last, nobody would have found the broker again.
    assert!(grown.iter().filter(|count| **count > 0).count() > 1, "{grown:?}");
    process.stop().await;
}
