//! Consumers: what their users see of what is delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstem::client::GroupSettings;
use mainstem::format::batch::NewMeta;
use serde_json::{Value, json};

use crate::broker::{Broker, Home};
use crate::clients::{self, Language, Program, Role, Security, Wants};
use crate::{GROUPS, MESSAGES, OF_A_GROUP, broker};

/// A test of each language for each of what its client can.
macro_rules! tests {
    ($($name:ident: $what:ident($($of:expr),*);)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $what($($of),*).await;
            }
        )*
    };
}

use Language::{Java, Python, Rust};
use Security::{Plain, Tls};

tests! {
    a_simple_consumer_in_python_over_plain: receives_all(Python, Plain);
    a_simple_consumer_in_python_over_tls: receives_all(Python, Tls);
    a_simple_consumer_in_java_over_plain: receives_all(Java, Plain);
    a_simple_consumer_in_java_over_tls: receives_all(Java, Tls);
    a_simple_consumer_in_rust_over_plain: receives_all(Rust, Plain);
    a_simple_consumer_in_rust_over_tls: receives_all(Rust, Tls);

    tags_and_sql_in_python: filters(Python);
    tags_and_sql_in_java: filters(Java);
    tags_and_sql_in_rust: filters(Rust);

    a_message_that_comes_again_in_python: comes_again(Python);
    a_message_that_comes_again_in_java: comes_again(Java);
    a_message_that_comes_again_in_rust: comes_again(Rust);

    a_push_consumer_in_python_over_plain: listens(Python, Plain);
    a_push_consumer_in_python_over_tls: listens(Python, Tls);
    a_push_consumer_in_java_over_plain: listens(Java, Plain);
    a_push_consumer_in_java_over_tls: listens(Java, Tls);

    a_dead_letter_in_rust: dies(Rust);

    an_ordered_push_consumer_in_python: listens_in_order(Python);
    an_ordered_push_consumer_in_java: listens_in_order(Java);

    two_push_consumers_of_a_group_in_python: push_consumers_share(Python);
    two_push_consumers_of_a_group_in_java: push_consumers_share(Java);
    two_simple_consumers_of_a_group_in_rust: simple_consumers_share(Rust);

    a_push_consumer_in_python_over_a_kill_and_a_restart_of_the_broker: listens_over_restarts(Python);
    a_push_consumer_in_java_over_a_kill_and_a_restart_of_the_broker: listens_over_restarts(Java);
    a_simple_consumer_in_rust_over_a_kill_and_a_restart_of_the_broker: receives_over_restarts(Rust);
}

fn ordered() -> GroupSettings {
    GroupSettings { ordered: Some(true), ..GroupSettings::default() }
}

/// So many deliveries, a second apart.
fn attempts(most: u32) -> GroupSettings {
    GroupSettings {
        max_attempts: Some(Some(most)),
        retry_delays_ms: Some(vec![1_000]),
        ..GroupSettings::default()
    }
}

fn text<'a>(message: &'a Value, field: &str) -> &'a str {
    message[field].as_str().unwrap_or_else(|| panic!("{field} of {message}"))
}

fn bodies(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| text(message, "body")).collect()
}

/// All that the producer of the same language sends comes as it was sent, the messages of a group in their order, and
/// nothing comes twice once it is acknowledged.
async fn receives_all(language: Language, security: Security) {
    let home = Home::new();
    let broker = broker(&home).await;
    broker.create_group("in-order", &ordered()).await;
    let once = Role::Producer("once");
    let Some(mut producer) = Program::start(language, &broker, security, once).await else {
        return;
    };
    let told = producer.until("done").await;
    producer.end().await;
    let start = async |wants| {
        Program::start(language, &broker, security, Role::Simple(wants)).await.expect("as before")
    };
    let mut consumer = start(Wants::all("plain", "plain")).await;
    let got = consumer.get(2 * MESSAGES).await;
    consumer.finish(&got).await;
    let by_id: BTreeMap<_, _> = got.iter().map(|message| (text(message, "id"), message)).collect();
    assert_eq!(by_id.len(), 2 * MESSAGES);
    for sent in
        told.iter().filter(|line| ["sync", "async"].iter().any(|kind| line["kind"] == *kind))
    {
        let (kind, n) = (text(sent, "kind"), sent["n"].as_u64().unwrap());
        let message = by_id[text(sent, "id")];
        assert_eq!(text(message, "body"), format!("{kind}-{n}"));
        assert_eq!(text(message, "tag"), if n % 2 == 0 { "even" } else { "odd" });
        assert_eq!(message["keys"], json!([format!("{kind}-key-{n}")]));
        let language = format!("{} ✓", language.name());
        assert_eq!(message["properties"], json!({ "n": n.to_string(), "language": language }));
        assert_eq!((text(message, "topic"), &message["attempt"]), ("plain", &json!(1)));
        assert_eq!(message["group"], Value::Null);
    }
    let mut in_order = start(Wants::all("in-order", "ordered")).await;
    let mut by_group: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut count = 0;
    while count < GROUPS.len() * OF_A_GROUP {
        let messages = in_order.receive(30).await;
        for message in &messages {
            let group = text(message, "group").to_owned();
            by_group.entry(group).or_default().push(text(message, "body").to_owned());
        }
        in_order.finish(&messages).await;
        count += messages.len();
    }
    for group in GROUPS {
        let sent: Vec<_> = (0..OF_A_GROUP).map(|n| format!("{group}-{n}")).collect();
        assert_eq!(by_group[group], sent);
    }
    assert_eq!(consumer.receive(30).await, [] as [Value; 0], "all is acknowledged");
    consumer.end().await;
    in_order.end().await;
}

/// Each consumer gets what its expression says.
async fn filters(language: Language) {
    let home = Home::new();
    let broker = broker(&home).await;
    for n in 0..12_u32 {
        let (tag, n) = (["a", "b", "ab"][n as usize % 3], n.to_string());
        let properties = vec![("n", n.as_str()), ("color", "red")];
        let meta = NewMeta { tag: Some(tag), properties, id: Some(&n), ..NewMeta::default() };
        broker.send("plain", &meta, &n).await;
    }
    for (group, filter, expected) in [
        ("tags", ["tag", "a || b"], vec!["0", "1", "3", "4", "6", "7", "9", "10"]),
        ("sql", ["sql", "n BETWEEN 3 AND 5 AND color = 'red'"], vec!["3", "4", "5"]),
        ("tag-in-sql", ["sql", "TAGS = 'ab' AND n > 5"], vec!["8", "11"]),
    ] {
        let wants = Wants { group, topic: "plain", filter };
        let role = Role::Simple(wants);
        let Some(mut consumer) = Program::start(language, &broker, Plain, role).await else {
            return;
        };
        let got = consumer.get(expected.len()).await;
        consumer.finish(&got).await;
        let (mut got, mut expected) = (bodies(&got), expected);
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected, "{filter:?}");
        consumer.end().await;
    }
}

/// A message that is not acknowledged comes again with the next attempt, after the time that the consumer says last.
async fn comes_again(language: Language) {
    let home = Home::new();
    let broker = broker(&home).await;
    broker.send("plain", &NewMeta { id: Some("one"), ..NewMeta::default() }, "one").await;
    let role = Role::Simple(Wants::all("group", "plain"));
    let Some(mut consumer) = Program::start(language, &broker, Plain, role).await else {
        return;
    };
    // The client for Rust has no way to change the time.
    let can_change = !matches!(language, Rust);
    let mut got = Vec::new();
    while got.is_empty() {
        got = consumer.receive(if can_change { 60 } else { 10 }).await;
    }
    assert_eq!((text(&got[0], "body"), &got[0]["attempt"]), ("one", &json!(1)));
    if can_change {
        assert!(consumer.can("change one 1").await);
    }
    let mut again = Vec::new();
    while again.is_empty() {
        again = consumer.receive(60).await;
    }
    assert_eq!((text(&again[0], "body"), &again[0]["attempt"]), ("one", &json!(2)));
    if can_change {
        assert!(consumer.can("change one 120").await, "by the handle of the last delivery");
        assert_eq!(consumer.receive(30).await, [] as [Value; 0]);
    }
    assert!(consumer.can("ack one").await, "by the last handle");
    consumer.end().await;
}

/// A listener gets all messages; what it fails at comes again until it succeeds or is a dead letter, which the same
/// client reads.
async fn listens(language: Language, security: Security) {
    let home = Home::new();
    let broker = broker(&home).await;
    broker.create_group("push", &attempts(3)).await;
    for n in 0..20 {
        let fails = match n {
            3 => "2",
            5 => "99",
            _ => "0",
        };
        let (id, key) = (n.to_string(), format!("key {n}"));
        let meta = NewMeta {
            id: Some(&id),
            properties: vec![("fails", fails), ("color", "red")],
            tag: Some("a"),
            keys: vec![&key],
            ..NewMeta::default()
        };
        broker.send("plain", &meta, &format!("body {n}")).await;
    }
    let role = Role::Push(Wants::all("push", "plain"));
    let Some(mut consumer) = Program::start(language, &broker, security, role).await else {
        return;
    };
    let mut tries: BTreeMap<String, Vec<(u64, bool)>> = BTreeMap::new();
    // Two more of each of those that fail.
    for _ in 0..24 {
        let message = consumer.heard().await;
        let failed = message["failed"].as_bool().unwrap();
        let tries = tries.entry(text(&message, "id").to_owned()).or_default();
        tries.push((message["attempt"].as_u64().unwrap(), failed));
        let id = text(&message, "id");
        assert_eq!(text(&message, "body"), format!("body {id}"));
        assert_eq!((text(&message, "tag"), text(&message, "topic")), ("a", "plain"));
        assert_eq!(message["keys"], json!([format!("key {id}")]));
        let fails = if id == "3" {
            "2"
        } else if id == "5" {
            "99"
        } else {
            "0"
        };
        assert_eq!(message["properties"], json!({ "fails": fails, "color": "red" }));
    }
    for n in 0..20 {
        let expected: &[_] = match n {
            3 => &[(1, true), (2, true), (3, false)],
            5 => &[(1, true), (2, true), (3, true)],
            _ => &[(1, false)],
        };
        assert_eq!(tries[&n.to_string()], expected, "{n}");
    }
    let told = broker.clients().await;
    assert_eq!(told.iter().map(|one| one.group.as_deref()).collect::<Vec<_>>(), [Some("push")]);
    broker.until_there("%DLQ%push").await;
    let role = Role::Simple(Wants::all("reader", "%DLQ%push"));
    let mut reader = Program::start(language, &broker, security, role).await.expect("as before");
    let dead = reader.get(1).await;
    assert_eq!((text(&dead[0], "id"), text(&dead[0], "body")), ("5", "body 5"));
    assert_eq!(dead[0]["properties"], json!({ "fails": "99", "color": "red" }));
    assert_eq!((text(&dead[0], "tag"), &dead[0]["attempt"]), ("a", &json!(1)));
    assert_eq!(dead[0]["keys"], json!(["key 5"]));
    reader.finish(&dead).await;
    reader.end().await;
    leave(language, security, consumer).await;
}

/// What a simple consumer does not acknowledge as often as its group allows is a dead letter, which the same client reads.
async fn dies(language: Language) {
    let home = Home::new();
    let broker = broker(&home).await;
    broker.create_group("once", &attempts(1)).await;
    let meta = NewMeta {
        id: Some("one"),
        properties: vec![("color", "red")],
        tag: Some("a"),
        keys: vec!["key"],
        ..NewMeta::default()
    };
    broker.send("plain", &meta, "body").await;
    let role = Role::Simple(Wants::all("once", "plain"));
    let Some(mut consumer) = Program::start(language, &broker, Plain, role).await else {
        return;
    };
    let mut got = Vec::new();
    while got.is_empty() {
        got = consumer.receive(10).await;
    }
    assert_eq!((text(&got[0], "body"), &got[0]["attempt"]), ("body", &json!(1)));
    broker.until_there("%DLQ%once").await;
    assert_eq!(consumer.receive(10).await, [] as [Value; 0], "once, and not again");
    assert!(!consumer.can("ack one").await, "it is a dead letter");
    let role = Role::Simple(Wants::all("reader", "%DLQ%once"));
    let mut reader = Program::start(language, &broker, Plain, role).await.expect("as before");
    let dead = reader.get(1).await;
    let expected = Value::from_iter([
        ("topic", json!("%DLQ%once")),
        ("attempt", json!(1)),
        ("body", json!("body")),
        ("group", Value::Null),
        ("id", json!("one")),
        ("keys", json!(["key"])),
        ("kind", json!("message")),
        ("properties", json!({ "color": "red" })),
        ("tag", json!("a")),
    ]);
    assert_eq!(dead, [expected]);
    reader.finish(&dead).await;
    reader.end().await;
    consumer.end().await;
}

/// Ends a push consumer, which has heard nothing more. The one for Java waits for the end of its last receive, up to 20
/// s: that is tried once, over plain.
async fn leave(language: Language, security: Security, consumer: Program) {
    if !matches!((language, security), (Java, Tls)) {
        assert_eq!(consumer.end().await, [] as [Value; 0], "nothing came that should not");
    }
}

/// An ordered listener gets each message group in its order, tries again what it fails at before the next comes, and
/// gives up what fails too often.
async fn listens_in_order(language: Language) {
    let home = Home::new();
    let broker = broker(&home).await;
    let settings = GroupSettings { ordered: Some(true), ..attempts(3) };
    broker.create_group("push", &settings).await;
    let mut expected: BTreeMap<&str, Vec<(String, bool)>> = BTreeMap::new();
    for n in 0..OF_A_GROUP {
        for group in GROUPS {
            let body = format!("{group}-{n}");
            let fails = match body.as_str() {
                "red-5" => 1,
                "green-7" => 99,
                _ => 0,
            };
            let tries = expected.entry(group).or_default();
            tries.extend((0..3).map(|at| (body.clone(), at < fails)).take(3.min(fails + 1)));
            let fails = fails.to_string();
            let properties = vec![("fails", fails.as_str())];
            let meta = NewMeta {
                id: Some(&body),
                message_group: Some(group),
                properties,
                ..NewMeta::default()
            };
            broker.send("ordered", &meta, &body).await;
        }
    }
    let role = Role::Push(Wants::all("push", "ordered"));
    let Some(mut consumer) = Program::start(language, &broker, Plain, role).await else {
        return;
    };
    let mut tries: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
    for _ in 0..expected.values().map(Vec::len).sum::<usize>() {
        let message = consumer.heard().await;
        let of_group = tries.entry(text(&message, "group").to_owned()).or_default();
        of_group.push((text(&message, "body").to_owned(), message["failed"].as_bool().unwrap()));
    }
    for group in GROUPS {
        assert_eq!(tries[group], expected[group], "{group}");
    }
    broker.until_there("%DLQ%push").await;
    let dead = broker.read("%DLQ%push").await;
    let dead: Vec<_> = dead.iter().map(|message| message.body.clone()).collect();
    assert_eq!(dead, ["green-7"]);
    leave(language, Tls, consumer).await;
}

/// Two consumers of a group get all messages between them, none twice.
async fn push_consumers_share(language: Language) {
    let home = Home::new();
    let broker = broker(&home).await;
    let start = || Program::start(language, &broker, Plain, Role::Push(Wants::all("g", "plain")));
    let (Some(mut first), Some(mut second)) = (start().await, start().await) else { return };
    let (mut of_first, mut of_second) = (Vec::new(), Vec::new());
    let mut sent = BTreeSet::new();
    loop {
        // A listener that has started hears nothing yet for some seconds.
        let is_enough = sent.len() >= 2 * MESSAGES && !of_first.is_empty() && !of_second.is_empty();
        if is_enough && of_first.len() + of_second.len() >= sent.len() {
            break;
        }
        tokio::select! {
            message = first.heard() => of_first.push(text(&message, "body").to_owned()),
            message = second.heard() => of_second.push(text(&message, "body").to_owned()),
            () = tokio::time::sleep(Duration::from_millis(5)), if !is_enough => {
                let body = sent.len().to_string();
                let meta = NewMeta { id: Some(&body), ..NewMeta::default() };
                broker.send("plain", &meta, &body).await;
                sent.insert(body);
            }
        }
    }
    leave(language, Tls, first).await;
    leave(language, Tls, second).await;
    shared(&of_first, &of_second, &sent);
}

async fn simple_consumers_share(language: Language) {
    let home = Home::new();
    let broker = broker(&home).await;
    let start = || Program::start(language, &broker, Plain, Role::Simple(Wants::all("g", "plain")));
    let (Some(mut first), Some(mut second)) = (start().await, start().await) else { return };
    let sent: BTreeSet<_> = (0..2 * MESSAGES).map(|n| n.to_string()).collect();
    for body in &sent {
        broker.send("plain", &NewMeta { id: Some(body), ..NewMeta::default() }, body).await;
    }
    let (mut of_first, mut of_second) = (Vec::new(), Vec::new());
    while of_first.len() + of_second.len() < sent.len() {
        for (consumer, got) in [(&mut first, &mut of_first), (&mut second, &mut of_second)] {
            let messages = consumer.receive(30).await;
            consumer.finish(&messages).await;
            got.extend(bodies(&messages).iter().map(|body| (*body).to_owned()));
        }
    }
    first.end().await;
    second.end().await;
    shared(&of_first, &of_second, &sent);
}

fn shared(of_first: &[String], of_second: &[String], sent: &BTreeSet<String>) {
    assert!(!of_first.is_empty() && !of_second.is_empty(), "{of_first:?} {of_second:?}");
    assert_eq!(of_first.len() + of_second.len(), sent.len(), "none twice");
    assert_eq!(of_first.iter().chain(of_second).cloned().collect::<BTreeSet<_>>(), *sent);
}

/// What came of a run over restarts: the last attempt at each message.
#[derive(Default)]
struct Came(BTreeMap<String, u64>);

impl Came {
    /// It is as it was sent, and no attempt is counted back.
    fn note(&mut self, message: &Value) {
        let n: u64 = text(&message["properties"], "n").parse().unwrap();
        assert_eq!(text(message, "body"), format!("steady-{n}"));
        assert_eq!(text(message, "tag"), if n.is_multiple_of(2) { "even" } else { "odd" });
        assert_eq!(message["keys"], json!([format!("steady-key-{n}")]));
        assert_eq!((text(message, "topic"), &message["group"]), ("plain", &Value::Null));
        let attempt = message["attempt"].as_u64().unwrap();
        let last = self.0.insert(text(message, "id").to_owned(), attempt).unwrap_or(0);
        // A client that repeats a try gets the same delivery again.
        assert!(attempt >= last.max(1), "{message}, after attempt {last}");
    }

    fn has_all(&self, sent: &BTreeSet<String>) -> bool {
        sent.iter().all(|id| self.0.contains_key(id))
    }
}

/// What a producer was told is stored comes to a listener, over a kill -9 and a stop of the broker; once all of it is
/// finished, nothing of it comes again after another kill.
async fn listens_over_restarts(language: Language) {
    let home = Home::new();
    let broker = broker(&home).await;
    let role = Role::Push(Wants::all("g", "plain"));
    let Some(mut consumer) = Program::start(language, &broker, Plain, role).await else { return };
    let (mut broker, sent) = over_restarts(language, &home, broker).await;
    let mut came = Came::default();
    while !came.has_all(&sent) {
        came.note(&consumer.heard().await);
    }
    // What comes more than once is told before it is finished.
    while !broker.has_finished("g", "plain").await {
        let next = tokio::time::timeout(Duration::from_millis(10), consumer.heard());
        if let Ok(message) = next.await {
            came.note(&message);
        }
    }
    while let Ok(message) = tokio::time::timeout(Duration::from_secs(1), consumer.heard()).await {
        came.note(&message);
    }
    let address = broker.grpc.clone();
    broker.kill().await;
    let broker = Broker::start(&home, Some(&address)).await;
    broker.send("plain", &NewMeta { id: Some("last"), ..NewMeta::default() }, "last").await;
    assert_eq!(text(&consumer.heard().await, "id"), "last");
    leave(language, Tls, consumer).await;
    drop(broker);
}

/// The same of a consumer that acknowledges by itself: what it was told is finished never comes again.
async fn receives_over_restarts(language: Language) {
    let home = Home::new();
    let broker = broker(&home).await;
    let role = Role::Simple(Wants::all("g", "plain"));
    let Some(mut consumer) = Program::start(language, &broker, Plain, role).await else { return };
    let run = over_restarts(language, &home, broker);
    let mut run = std::pin::pin!(run);
    let (mut sent, mut came, mut finished) = (None, Came::default(), BTreeSet::new());
    let mut broker: Option<Broker> = None;
    loop {
        let mut round = Box::pin(async {
            for message in consumer.receive(30).await {
                came.note(&message);
                let id = text(&message, "id");
                assert!(!finished.contains(id), "{message} came again after its ack");
                // The broker may be gone just now: then the message comes again, or was finished all the same.
                if consumer.can(&format!("ack {id}")).await {
                    finished.insert(id.to_owned());
                }
            }
        });
        loop {
            tokio::select! {
                () = &mut round => break,
                (alive, all) = &mut run, if sent.is_none() => (broker, sent) = (Some(alive), Some(all)),
            }
        }
        drop(round);
        if let (Some(broker), Some(sent)) = (&broker, &sent)
            && came.has_all(sent)
            && broker.has_finished("g", "plain").await
        {
            break;
        }
    }
    assert!(finished.len() > 100, "{} were acknowledged", finished.len());
    let mut broker = broker.expect("it runs when all is sent");
    let address = broker.grpc.clone();
    broker.kill().await;
    let broker = Broker::start(&home, Some(&address)).await;
    broker.send("plain", &NewMeta { id: Some("last"), ..NewMeta::default() }, "last").await;
    let mut last = Vec::new();
    while last.is_empty() {
        last = consumer.receive(30).await;
    }
    assert_eq!(bodies(&last), ["last"], "and nothing that is finished");
    consumer.end().await;
    drop(broker);
}

/// Runs a producer over a kill and a stop of the broker. The one that runs then, and what the producer was told is
/// stored.
async fn over_restarts(
    language: Language,
    home: &Home,
    mut broker: Broker,
) -> (Broker, BTreeSet<String>) {
    let role = Role::Producer("steadily");
    let mut producer = Program::start(language, &broker, Plain, role).await.expect("as before");
    let mut sent = BTreeSet::new();
    for stop in [Broker::kill, Broker::stop_well] {
        sent.extend(producer.acknowledged(50).await);
        let address = broker.grpc.clone();
        stop(&mut broker).await;
        broker = Broker::start(home, Some(&address)).await;
    }
    sent.extend(producer.acknowledged(50).await);
    if let Java = language {
        // See the test of producers. The consumer's stream is no sign of the producer's.
        broker.until_can_be_told(2).await;
    }
    sent.extend(producer.end().await.iter().filter_map(clients::acknowledged));
    (broker, sent)
}
