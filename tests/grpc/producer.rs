//! The producer of the client: what was accepted is stored once, in order, whatever becomes of its connections.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstem::client::{
    Accept, Client, OnFailure, Partition, Producer, ProducerConfig, ProducerError, Pull, Reason,
    Retry, Stored, TopicSettings,
};
use mainstem::format::batch::{Codec, NewMeta, TagFilter};
use mainstem::message::{Access, FlushMode, QueueId, QueueOffset};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::proxy::Proxy;
use crate::support::{Server, from, soon};

/// Long enough for every restart of a test, short enough for its clock.
const MINUTE: Duration = Duration::from_secs(60);

async fn connect(at: std::net::SocketAddr) -> Client {
    soon(Client::connect(&at.to_string())).await.unwrap()
}

async fn topic(client: &Client, name: &str, queues: u32, flush: FlushMode) {
    let settings =
        TopicSettings { queues: Some(queues), flush: Some(flush), ..TopicSettings::default() };
    client.create_topic(name, settings).await.unwrap();
}

/// What a queue holds: the key of each message, and its body.
async fn queue(client: &Client, topic: &str, queue: u32) -> Vec<(String, String)> {
    let (mut all, mut offset) = (Vec::new(), QueueOffset::ZERO);
    loop {
        let pull = Pull {
            topic,
            queue: QueueId::new(queue),
            offset,
            max_messages: None,
            max_bytes: None,
            wait: Duration::ZERO,
            tags: "*",
            filter: &TagFilter::All,
            group: None,
            epoch: None,
        };
        let pulled = client.pull(&pull).await.unwrap();
        if pulled.messages.is_empty() {
            return all;
        }
        for message in pulled.messages {
            let key = message.keys.first().cloned().unwrap_or_default();
            all.push((key, String::from_utf8(message.body.to_vec()).unwrap()));
        }
        offset = pulled.next_offset;
    }
}

async fn bodies(client: &Client, topic: &str) -> Vec<String> {
    queue(client, topic, 0).await.into_iter().map(|(_, body)| body).collect()
}

async fn send(producer: &Producer, topic: &str, body: &str) -> Result<Accept, ProducerError> {
    producer.send(topic, &NewMeta::default(), body.as_bytes()).await
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    soon(wait).await;
}

/// What ended a batch, of the broker's reasons.
fn reason(error: &ProducerError) -> Option<Reason> {
    match error {
        ProducerError::NotStored(error) => error.reason(),
        _ => None,
    }
}

/// Numbers that follow from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// Tasks send by key while connections break at random bytes and the server restarts; each message is there once, those
/// of a key in one queue and in order.
async fn sends_once_and_in_order(seed: u64) {
    const TASKS: usize = 4;
    const KEYS: usize = 5;
    const MESSAGES: usize = 600;
    const QUEUES: u32 = 3;
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let server = Server::start().await;
    let proxy = Arc::new(Proxy::start(server.at.grpc).await);
    let direct = connect(server.at.grpc).await;
    topic(&direct, "t", QUEUES, FlushMode::Async).await;
    let config = ProducerConfig {
        batch_bytes: 4 << 10,
        batch_messages: 1 + random.below(20) as usize,
        linger: Duration::from_millis(random.below(2)),
        in_flight: 1 + random.below(64) as usize,
        memory: 1 << 20,
        back_off: Duration::from_millis(1),
        patience: MINUTE,
        partition: Partition::ByKey,
        ..ProducerConfig::default()
    };
    eprintln!("{config:?}");
    let producer = connect(proxy.address()).await.producer(config).await.unwrap();

    let has_ended = Arc::new(AtomicBool::new(false));
    let breaks = tokio::spawn({
        let (proxy, has_ended) = (Arc::clone(&proxy), Arc::clone(&has_ended));
        async move {
            while !has_ended.load(Ordering::SeqCst) {
                let before = proxy.cuts();
                if random.below(4) == 0 {
                    proxy.cut_after(random.below(3_000));
                } else {
                    proxy.cut_after_sent(200 + random.below(60_000));
                }
                while proxy.cuts() == before && !has_ended.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let producer = producer.clone();
        tasks.spawn(async move {
            let mut accepted = Vec::new();
            for n in 0..MESSAGES {
                let (key, body) = (format!("{task}-{}", n % KEYS), format!("{n:0200}"));
                let meta = NewMeta { keys: vec![&key], ..NewMeta::default() };
                accepted.push(producer.send("t", &meta, body.as_bytes()).await.unwrap());
                if n % 50 == 0 {
                    accepted[n].stored().await.unwrap();
                }
            }
            for accepted in &accepted {
                accepted.stored().await.unwrap();
            }
        });
    }
    // In the middle of it all the server stops and comes back at another port.
    until(|| proxy.cuts() >= 2).await;
    let (data, stopped) = server.stop();
    stopped.await.unwrap().unwrap();
    let server = Server::on(data, &[]).await;
    proxy.lead_to(server.at.grpc);
    tokio::time::timeout(MINUTE, tasks.join_all()).await.expect("took too long");
    has_ended.store(true, Ordering::SeqCst);
    breaks.await.unwrap();
    assert!(proxy.cuts() >= 4, "{} cuts", proxy.cuts());
    soon(producer.close()).await.unwrap();

    let direct = connect(server.at.grpc).await;
    let mut seen: BTreeMap<String, (u32, Vec<String>)> = BTreeMap::new();
    for number in 0..QUEUES {
        for (key, body) in queue(&direct, "t", number).await {
            let (at, bodies) = seen.entry(key).or_insert((number, Vec::new()));
            assert_eq!(*at, number, "a key is in one queue");
            bodies.push(body);
        }
    }
    assert_eq!(seen.len(), TASKS * KEYS);
    for (key, (_, bodies)) in seen {
        let of_key: usize = key.split('-').nth(1).unwrap().parse().unwrap();
        let expected: Vec<_> =
            (of_key..MESSAGES).step_by(KEYS).map(|n| format!("{n:0200}")).collect();
        assert_eq!(bodies, expected, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_key_are_stored_once_and_in_order_over_broken_connections_and_a_restart() {
    for seed in 1..=6 {
        sends_once_and_in_order(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_fails_its_messages_alone_and_what_was_behind_it_is_sent_again() {
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    topic(&client, "open", 1, FlushMode::Async).await;
    let access = Some(Access { read: true, write: false });
    client
        .create_topic("shut", TopicSettings { access, ..TopicSettings::default() })
        .await
        .unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&told);
    let on_failure = OnFailure::new(move |failure| {
        let failure = (failure.topic.to_owned(), failure.messages, reason(failure.error));
        hear.lock().unwrap().push(failure);
    });
    let config = ProducerConfig {
        batch_messages: 2,
        linger: Duration::from_secs(3_600),
        on_failure: Some(on_failure),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await.unwrap();
    let mut accepted = Vec::new();
    for n in 0..100 {
        let topic = if n / 2 % 5 == 3 { "shut" } else { "open" };
        accepted.push((topic, send(&producer, topic, &n.to_string()).await.unwrap()));
    }
    let lost = soon(producer.flush()).await.unwrap_err();
    assert_eq!((lost.messages, reason(&lost.first)), (20, Some(Reason::Forbidden)));
    let mut expected = Vec::new();
    for (n, (topic, accepted)) in accepted.iter().enumerate() {
        match (*topic, soon(accepted.stored()).await) {
            ("open", Ok(receipt)) => {
                assert_eq!(receipt.queue_offset.get(), expected.len() as u64);
                assert_eq!(u64::from(receipt.id.index), receipt.queue_offset.get() % 2);
                expected.push(n.to_string());
            }
            ("shut", Err(error)) => {
                assert_eq!(reason(&error), Some(Reason::Forbidden));
                assert_eq!(error.stored(), Stored::No);
            }
            (topic, outcome) => panic!("{n} to {topic}: {outcome:?}"),
        }
    }
    assert_eq!(bodies(&client, "open").await, expected);
    let one = ("shut".to_owned(), 2, Some(Reason::Forbidden));
    assert_eq!(*told.lock().unwrap(), vec![one; 10]);
    // It was told once.
    soon(producer.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_panics_is_not_called_again_and_the_producer_goes_on() {
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let on_failure = OnFailure::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        panic!("as a listener may");
    });
    let config = ProducerConfig {
        batch_messages: 1,
        on_failure: Some(on_failure),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await.unwrap();
    let mut refused = Vec::new();
    for _ in 0..3 {
        refused.push(send(&producer, "no name", "x").await.unwrap());
    }
    for refused in refused {
        let error = soon(refused.stored()).await.unwrap_err();
        assert_eq!(reason(&error), Some(Reason::BadName));
    }
    soon(send(&producer, "t", "a").await.unwrap().stored()).await.unwrap();
    assert_eq!(soon(producer.close()).await.unwrap_err().messages, 3);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(bodies(&client, "t").await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_name_is_taken_by_another_fails_for_good() {
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let config = || ProducerConfig { session: Some("p".to_owned()), ..ProducerConfig::default() };
    let first = client.producer(config()).await.unwrap();
    soon(send(&first, "t", "a").await.unwrap().stored()).await.unwrap();
    let second = client.producer(config()).await.unwrap();
    let accepted = send(&first, "t", "late").await.unwrap();
    let fenced = soon(accepted.stored()).await.unwrap_err();
    assert_eq!((reason(&fenced), fenced.stored()), (Some(Reason::Fenced), Stored::No));
    let refused = send(&first, "t", "later").await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::Fenced));
    assert_eq!(soon(first.close()).await.unwrap_err().messages, 1);
    soon(send(&second, "t", "b").await.unwrap().stored()).await.unwrap();
    soon(second.close()).await.unwrap();
    assert_eq!(bodies(&client, "t").await, ["a", "b"]);
    // A name that was chosen stays; one that a producer made for itself goes with it.
    let names = async || {
        let (sessions, _) = client.sessions("").await.unwrap();
        sessions.into_iter().map(|session| session.name).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["p"]);
    let own = client.producer(ProducerConfig::default()).await.unwrap();
    assert_eq!(names().await.len(), 2);
    soon(own.close()).await.unwrap();
    assert_eq!(names().await, ["p"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_more_than_the_memory_holds_waits_until_there_is_room() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = connect(proxy.address()).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let config = ProducerConfig {
        memory: 1 << 20,
        patience: MINUTE,
        back_off: Duration::from_millis(1),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await.unwrap();
    proxy.refuse();
    let accepted = Arc::new(AtomicUsize::new(0));
    let sending = tokio::spawn({
        let (producer, accepted) = (producer.clone(), Arc::clone(&accepted));
        async move {
            for n in 0..40 {
                send(&producer, "t", &format!("{n:060000}")).await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    until(|| accepted.load(Ordering::SeqCst) == 17).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 17, "one more would be more than 1 MiB");
    // A send that is given up on while it waits is not accepted.
    let waits = Duration::from_millis(1);
    assert!(tokio::time::timeout(waits, send(&producer, "t", &"x".repeat(60_000))).await.is_err());
    proxy.lead_to(server.at.grpc);
    soon(sending).await.unwrap();
    soon(producer.close()).await.unwrap();
    let direct = connect(server.at.grpc).await;
    let expected: Vec<_> = (0..40).map(|n| format!("{n:060000}")).collect();
    assert!(bodies(&direct, "t").await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_full_of_what_lingers_is_sent_for_whoever_waits_for_it() {
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let config = ProducerConfig {
        memory: 1 << 20,
        linger: Duration::from_secs(3_600),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await.unwrap();
    // No group has as much as a batch, and all together have more than the memory.
    for n in 0..40 {
        let group = n.to_string();
        let meta = NewMeta { message_group: Some(&group), ..NewMeta::default() };
        let body = format!("{n:060000}");
        soon(producer.send("t", &meta, body.as_bytes())).await.unwrap();
    }
    soon(producer.close()).await.unwrap();
    let expected: Vec<_> = (0..40).map(|n| format!("{n:060000}")).collect();
    assert!(bodies(&client, "t").await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_sends_what_lingers_and_so_does_the_drop_of_the_last_clone() {
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    topic(&client, "t", 1, FlushMode::Sync).await;
    let config = || ProducerConfig {
        linger: Duration::from_secs(3_600),
        compression: Codec::Lz4,
        ..ProducerConfig::default()
    };
    let producer = client.producer(config()).await.unwrap();
    let clone = producer.clone();
    for n in 0..10 {
        send(&producer, "t", &format!("{n:01000}")).await.unwrap();
    }
    soon(producer.close()).await.unwrap();
    assert_eq!(bodies(&client, "t").await.len(), 10);
    // Compressed: the ten bodies are much alike.
    let stored = server.pull(from("t", 0, 0)).await.unwrap().records.remove(0).batch;
    let stored = mainstem::format::batch::Batch::parse(&stored).unwrap();
    assert_eq!((stored.codec(), stored.message_count()), (Codec::Lz4.number(), 10));
    let refused = send(&clone, "t", "x").await.unwrap_err();
    assert_eq!(refused.to_string(), "the producer is closed");

    let producer = client.producer(config()).await.unwrap();
    let accepted = send(&producer, "t", &format!("{:01000}", 10)).await.unwrap();
    drop(producer);
    soon(accepted.stored()).await.unwrap();
    let expected: Vec<_> = (0..11).map(|n| format!("{n:01000}")).collect();
    assert_eq!(bodies(&client, "t").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_answer_in_time_fails_as_unsettled_and_the_next_messages_are_stored() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = connect(proxy.address()).await;
    let direct = connect(server.at.grpc).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let config = ProducerConfig {
        linger: Duration::ZERO,
        patience: Duration::from_secs(2),
        back_off: Duration::from_millis(1),
        session: Some("p".to_owned()),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await.unwrap();
    soon(send(&producer, "t", "a").await.unwrap().stored()).await.unwrap();
    // The batch arrives, its acknowledgement does not, and nobody can be reached.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = nobody.local_addr().unwrap();
    drop(nobody);
    proxy.lead_to(dead);
    proxy.cut_after(1);
    let unsettled = send(&producer, "t", "b").await.unwrap();
    until(|| proxy.cuts() == 1).await;
    let error = soon(unsettled.stored()).await.unwrap_err();
    assert_eq!(
        (error.stored(), error.to_string().as_str()),
        (Stored::Unknown, "it may or may not be stored")
    );
    // By now it knows that there is no stream.
    let expired = send(&producer, "t", "c").await.unwrap();
    let error = soon(expired.stored()).await.unwrap_err();
    assert_eq!((error.stored(), error.to_string().as_str()), (Stored::No, "not sent within 2s"));
    proxy.lead_to(server.at.grpc);
    let accepted = send(&producer, "t", "d").await.unwrap();
    soon(accepted.stored()).await.unwrap();
    assert_eq!(soon(producer.close()).await.unwrap_err().messages, 2);
    assert_eq!(bodies(&direct, "t").await, ["a", "b", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_without_an_answer_are_as_many_as_was_said() {
    const IN_FLIGHT: usize = 3;
    let server = Server::start().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = connect(proxy.address()).await;
    let direct = connect(server.at.grpc).await;
    topic(&client, "t", 1, FlushMode::Sync).await;
    let config = ProducerConfig {
        batch_messages: 1,
        in_flight: IN_FLIGHT,
        patience: MINUTE,
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await.unwrap();
    soon(send(&producer, "t", "0").await.unwrap().stored()).await.unwrap();
    // The next ones are stored, and have no answer.
    proxy.hold(true);
    for n in 1..=10 {
        send(&producer, "t", &n.to_string()).await.unwrap();
    }
    let all_of_them = async { while bodies(&direct, "t").await.len() < 1 + IN_FLIGHT {} };
    soon(all_of_them).await;
    // Not a synchronisation: in this time more would come, if any did.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bodies(&direct, "t").await.len(), 1 + IN_FLIGHT);
    proxy.hold(false);
    soon(producer.close()).await.unwrap();
    let expected: Vec<_> = (0..=10).map(|n| n.to_string()).collect();
    assert_eq!(bodies(&direct, "t").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_without_a_key_go_to_the_queues_of_their_topic_in_turn() {
    const QUEUES: u32 = 4;
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    topic(&client, "t", QUEUES, FlushMode::Async).await;
    let linger = Duration::from_secs(60);
    let config = ProducerConfig { batch_messages: 5, linger, ..ProducerConfig::default() };
    let producer = client.producer(config).await.unwrap();
    for n in 0..100 {
        send(&producer, "t", &n.to_string()).await.unwrap();
    }
    soon(producer.close()).await.unwrap();
    for number in 0..QUEUES {
        let bodies = queue(&client, "t", number).await;
        let numbers: Vec<usize> = bodies.iter().map(|(_, body)| body.parse().unwrap()).collect();
        // Five batches of five, a round of all queues from one to the next.
        assert_eq!(numbers.len(), 25, "queue {number}");
        for batches in numbers.chunks(5).collect::<Vec<_>>().windows(2) {
            assert_eq!(batches[1][0], batches[0][0] + 5 * QUEUES as usize, "queue {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_message_needs_its_topic_and_a_grouped_one_goes_where_the_broker_sends_its_group() {
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    let config = ProducerConfig { partition: Partition::ByKey, ..ProducerConfig::default() };
    let producer = client.producer(config).await.unwrap();
    let keyed = NewMeta { keys: vec!["k"], ..NewMeta::default() };
    let refused = producer.send("none", &keyed, b"x").await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::UnknownTopic));
    topic(&client, "t", 16, FlushMode::Async).await;
    // As RocketMQ's brokers send them.
    for (group, queue) in [("a", 0), ("order-1", 3), ("order-2", 11)] {
        let meta = NewMeta { message_group: Some(group), ..keyed.clone() };
        let accepted = producer.send("t", &meta, b"x").await.unwrap();
        assert_eq!(soon(accepted.stored()).await.unwrap().queue, QueueId::new(queue), "{group}");
    }
    soon(producer.close()).await.unwrap();
}

/// Leads to a server on these data from now on.
async fn begin_on(proxy: &Proxy, data: TempDir) -> (Server, Client) {
    let server = Server::on(data, &[]).await;
    proxy.lead_to(server.at.grpc);
    let direct = connect(server.at.grpc).await;
    (server, direct)
}

/// Stops a server, and takes a copy of its data.
async fn stop_and_copy(proxy: &Proxy, server: Server) -> (TempDir, TempDir) {
    proxy.refuse();
    let (data, stopped) = server.stop();
    soon(stopped).await.unwrap().unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_all(data.path(), copy.path());
    (data, copy)
}

fn copy_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_all(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

fn patient(session: Option<&str>) -> ProducerConfig {
    ProducerConfig {
        linger: Duration::ZERO,
        back_off: Duration::from_millis(1),
        patience: MINUTE,
        session: session.map(str::to_owned),
        ..ProducerConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_goes_on_where_the_broker_is_when_acknowledged_batches_were_lost() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = connect(proxy.address()).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let producers = [
        client.producer(patient(None)).await.unwrap(),
        client.producer(patient(Some("p"))).await.unwrap(),
    ];
    let store = async |body: &str| {
        for producer in &producers {
            soon(send(producer, "t", body).await.unwrap().stored()).await.unwrap();
        }
    };
    store("a").await;
    let (data, as_it_was) = stop_and_copy(&proxy, server).await;
    let (server, _) = begin_on(&proxy, data).await;
    // As a power cut would, the broker forgets these, and their numbers.
    store("lost").await;
    store("lost too").await;
    let _lost = stop_and_copy(&proxy, server).await;
    let (_server, direct) = begin_on(&proxy, as_it_was).await;
    store("b").await;
    store("c").await;
    assert_eq!(bodies(&direct, "t").await, ["a", "a", "b", "b", "c", "c"]);
    for producer in producers {
        soon(producer.close()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_goes_on_when_the_broker_has_lost_the_opening_of_its_session() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = connect(proxy.address()).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let first = client.producer(patient(Some("p"))).await.unwrap();
    soon(send(&first, "t", "a").await.unwrap().stored()).await.unwrap();
    soon(first.close()).await.unwrap();
    let (data, as_it_was) = stop_and_copy(&proxy, server).await;
    let (server, _) = begin_on(&proxy, data).await;
    let second = client.producer(patient(Some("p"))).await.unwrap();
    let _lost = stop_and_copy(&proxy, server).await;
    let (_server, direct) = begin_on(&proxy, as_it_was).await;
    // Its epoch is above the broker's.
    for body in ["b", "c"] {
        soon(send(&second, "t", body).await.unwrap().stored()).await.unwrap();
    }
    soon(second.close()).await.unwrap();
    assert_eq!(bodies(&direct, "t").await, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_session_was_closed_begins_a_new_one_and_does_not_repeat_what_may_be_stored()
 {
    let server = Server::start().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = connect(proxy.address()).await;
    let direct = connect(server.at.grpc).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let producer = client.producer(patient(Some("p"))).await.unwrap();
    soon(send(&producer, "t", "a").await.unwrap().stored()).await.unwrap();
    direct.close_session("p").await.unwrap();
    soon(send(&producer, "t", "b").await.unwrap().stored()).await.unwrap();

    // Stored, but the producer does not hear of it before its session is forgotten.
    proxy.swallow();
    let unsettled = send(&producer, "t", "c").await.unwrap();
    until(|| proxy.cuts() == 1).await;
    let last = async || direct.describe_session("p").await.unwrap().last_sequence;
    soon(async { while last().await < 2 {} }).await;
    direct.close_session("p").await.unwrap();
    proxy.lead_to(server.at.grpc);
    let error = soon(unsettled.stored()).await.unwrap_err();
    assert_eq!((error.stored(), error.retry()), (Stored::Unknown, Retry::Unsafe));
    soon(send(&producer, "t", "d").await.unwrap().stored()).await.unwrap();
    assert_eq!(soon(producer.close()).await.unwrap_err().messages, 1);
    assert_eq!(bodies(&direct, "t").await, ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_without_a_name_takes_its_session_back_from_an_opening_of_its_own_that_came_late()
 {
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    topic(&client, "t", 1, FlushMode::Async).await;
    let producer = client.producer(patient(None)).await.unwrap();
    soon(send(&producer, "t", "a").await.unwrap().stored()).await.unwrap();
    let (sessions, _) = client.sessions("").await.unwrap();
    let late = client.open_session(&sessions[0].name).await.unwrap();
    assert_eq!((late.epoch(), late.next_sequence()), (2, 2));
    soon(send(&producer, "t", "b").await.unwrap().stored()).await.unwrap();
    soon(producer.close()).await.unwrap();
    assert_eq!(bodies(&client, "t").await, ["a", "b"]);
    assert_eq!(client.sessions("").await.unwrap().0, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_key_a_topic_that_was_made_again_with_fewer_queues_is_asked_for_its_queues_again() {
    let server = Server::start().await;
    let client = connect(server.at.grpc).await;
    topic(&client, "t", 16, FlushMode::Async).await;
    let config = ProducerConfig { partition: Partition::ByKey, ..patient(None) };
    let producer = client.producer(config).await.unwrap();
    let send = async |key: &str| {
        let meta = NewMeta { keys: vec![key], ..NewMeta::default() };
        let accepted = producer.send("t", &meta, key.as_bytes()).await.unwrap();
        soon(accepted.stored()).await
    };
    let keys = ["a", "b", "c", "d", "e", "f"].map(str::to_owned);
    let mut elsewhere = None;
    for key in &keys {
        if send(key).await.unwrap().queue != QueueId::ZERO {
            elsewhere = Some(key);
        }
    }
    let elsewhere = elsewhere.unwrap();
    client.delete_topic("t").await.unwrap();
    topic(&client, "t", 1, FlushMode::Async).await;
    let error = send(elsewhere).await.unwrap_err();
    assert_eq!((reason(&error), error.stored()), (Some(Reason::BadQueue), Stored::No));
    assert_eq!(send(elsewhere).await.unwrap().queue, QueueId::ZERO);
    assert_eq!(soon(producer.close()).await.unwrap_err().messages, 1);
    assert_eq!(bodies(&client, "t").await, [elsewhere.as_str()]);
}
