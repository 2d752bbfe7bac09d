//! The official clients of RocketMQ, from their registries, against a real broker: each program below this folder is
//! what a user of the client writes, and nothing in it knows Mainstem.
//!
//! | program | client, version | how it comes here |
//! | --- | --- | --- |
//! | `python/producer.py`, `python/consumer.py` | `rocketmq-python-client` 5.1.2 | `pip`, into an environment of its own |
//! | `java/Producing.java`, `java/Consuming.java` | `rocketmq-client-java` 5.2.0 | `mvn`, into a folder; compiled by `javac` |
//! | `rust/` | crate `rocketmq` 5.0.0 | `cargo`, a package of its own |
//!
//! A program gets an address, whether to talk TLS, and what to do. It says what it did in lines of JSON.
//!
//! | a producer that sends | does |
//! | --- | --- |
//! | `once` | 100 messages one by one, 100 at once, 20 of each of three message groups in turn, one that the topic does not take; says `done`, waits for a line, says goodbye |
//! | `steadily` | a message every 10 ms, whatever becomes of it, until a line comes |
//!
//! | a consumer that is | does |
//! | --- | --- |
//! | `simple` | what lines say: `receive MOST SECONDS`, `ack ID`, `change ID SECONDS`; tells each message that it receives |
//! | `push` | tells each message that its listener gets, which fails as often as the property `fails` of the message says |
//!
//! What came in is read over the native protocol. Where a client cannot be had, a line says SKIP; with `CI=true` that is
//! a failure. What was downloaded and built is kept in `target/tmp/conformance`.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod broker;
mod clients;
mod consuming;

use std::collections::{BTreeMap, BTreeSet};

use broker::{Broker, Home};
use clients::{Language, Program, Role, Security};
use mainstem::client::Message;
use mainstem::message::TopicType;

const MESSAGES: usize = 100;
const GROUPS: [&str; 3] = ["red", "green", "blue"];
const OF_A_GROUP: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_python_over_plain() {
    sends_once(Language::Python, Security::Plain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_python_over_tls() {
    sends_once(Language::Python, Security::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_python_over_a_kill_and_a_restart_of_the_broker() {
    sends_steadily(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_java_over_plain() {
    sends_once(Language::Java, Security::Plain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_java_over_tls() {
    sends_once(Language::Java, Security::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_java_over_a_kill_and_a_restart_of_the_broker() {
    sends_steadily(Language::Java).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_rust_over_plain() {
    sends_once(Language::Rust, Security::Plain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_rust_over_tls() {
    sends_once(Language::Rust, Security::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_in_rust_over_a_kill_and_a_restart_of_the_broker() {
    sends_steadily(Language::Rust).await;
}

/// A broker with the topics that the programs send to.
async fn broker(home: &Home) -> Broker {
    let broker = Broker::start(home, None).await;
    broker.create("plain", TopicType::Normal, 4).await;
    broker.create("ordered", TopicType::Fifo, 8).await;
    broker
}

/// Everything that `once` sends is there once, as it was sent, under the ids that the program was told; while it runs
/// operators see it, and when it has said goodbye they do not.
async fn sends_once(language: Language, security: Security) {
    let home = Home::new();
    let broker = broker(&home).await;
    let Some(mut program) =
        Program::start(language, &broker, security, Role::Producer("once")).await
    else {
        return;
    };
    let told = program.until("done").await;
    let shown = broker.clients().await;
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(shown[0].language, language.as_told());
    program.end().await;
    assert_eq!(broker.clients().await, []);

    let conflicts: Vec<_> = told.iter().filter(|line| line["kind"] == "conflict").collect();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts[0]["refused"], true, "a message of a group to a topic without groups");

    let ids: BTreeSet<_> = told.iter().filter_map(|line| line["id"].as_str()).collect();
    let (plain, ordered) = (broker.read("plain").await, broker.read("ordered").await);
    let stored: BTreeSet<_> = plain.iter().chain(&ordered).map(id).collect();
    assert_eq!(stored, ids, "the ids that the program was told");
    assert_eq!(stored.len(), 2 * MESSAGES + GROUPS.len() * OF_A_GROUP);

    for kind in ["sync", "async"] {
        let of_kind = |n: usize| {
            let body = format!("{kind}-{n}");
            let mut found = plain.iter().filter(|message| message.body == body.as_bytes());
            let (first, more) = (found.next(), found.next());
            assert!(more.is_none(), "{body} is there twice");
            first.unwrap_or_else(|| panic!("{body} is missing"))
        };
        for n in 0..MESSAGES {
            let message = of_kind(n);
            assert_eq!(message.tag.as_deref(), Some(if n % 2 == 0 { "even" } else { "odd" }));
            assert_eq!(message.keys, [format!("{kind}-key-{n}")]);
            let mut properties = message.properties.clone();
            properties.sort_unstable();
            let language = ("language".to_owned(), format!("{} ✓", language.name()));
            assert_eq!(properties, [language, ("n".to_owned(), n.to_string())]);
            assert!(message.born_time.is_some() && message.born_host.is_some(), "{message:?}");
        }
    }
    let queues: BTreeSet<_> = plain.iter().map(|message| message.queue).collect();
    assert_eq!(queues.len(), 4, "round robin");

    let mut by_group: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for message in &ordered {
        by_group.entry(message.message_group.clone().unwrap()).or_default().push(message);
    }
    for group in GROUPS {
        let messages = &by_group[group];
        let bodies: Vec<_> = messages.iter().map(|message| message.body.to_vec()).collect();
        let sent = (0..OF_A_GROUP).map(|n| format!("{group}-{n}").into_bytes());
        assert_eq!(bodies, sent.collect::<Vec<_>>(), "in the order of the sends");
        let queues: BTreeSet<_> = messages.iter().map(|message| message.queue).collect();
        assert_eq!(queues.len(), 1, "one queue for a group");
    }
}

/// A program that is never restarted goes on after its broker was killed and after it was stopped, and all that it was
/// told is stored is there.
async fn sends_steadily(language: Language) {
    let home = Home::new();
    let mut broker = broker(&home).await;
    let Some(mut program) =
        Program::start(language, &broker, Security::Plain, Role::Producer("steadily")).await
    else {
        return;
    };
    let mut acknowledged = BTreeSet::new();
    for stop in [Broker::kill, Broker::stop_well] {
        acknowledged.extend(program.acknowledged(50).await);
        let address = broker.grpc.clone();
        stop(&mut broker).await;
        broker = Broker::start(&home, Some(&address)).await;
    }
    acknowledged.extend(program.acknowledged(50).await);
    if let Language::Java = language {
        // It opens its stream again a second after the old one broke. Closed in just that moment, it would wait for the
        // new one's end for ever.
        broker.until_can_be_told(1).await;
    }
    acknowledged.extend(program.end().await.iter().filter_map(clients::acknowledged));
    let stored: BTreeSet<_> = broker.read("plain").await.iter().map(|m| id(m).to_owned()).collect();
    let missing: Vec<_> = acknowledged.difference(&stored).collect();
    assert!(missing.is_empty(), "acknowledged and not there: {missing:?}");
}

/// The producer's own id of a message.
fn id(message: &Message) -> &str {
    message.producer_id.as_deref().expect("every message of these clients has an id")
}
