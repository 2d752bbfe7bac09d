//! What consumers cost.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mainstem::client::{Client, ConsumerConfig, Filter, GroupSettings, Receive, TopicSettings};
use mainstem::message::{FlushMode, TopicType};
use mainstem::proto::rocketmq::receive_message_response::Content;
use mainstem::proto::rocketmq::settings::PubSub;
use mainstem::proto::rocketmq::telemetry_command::Command;
use mainstem::proto::rocketmq::{self as v2, Code};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::measure::{Bench, Case, Slice};
use crate::server::{NO_OP, Server};
use crate::{BODY, TOPIC, connect, with_headers};

type Caller = v2::messaging_service_client::MessagingServiceClient<tonic::transport::Channel>;

/// Messages of one receive, and of one ack.
const BATCH: usize = 32;
/// Messages of one send, where only their being there counts.
const TOGETHER: usize = 512;

/// Queues of a topic, but where their number is the subject.
const QUEUES: u32 = 8;
/// As many as a topic may have.
const MANY_QUEUES: u32 = 65_536;

/// Bodies of messages of which there are very many.
const SMALL: usize = 100;

fn resource(name: &str) -> Option<v2::Resource> {
    Some(v2::Resource { name: name.to_owned(), ..v2::Resource::default() })
}

fn whole(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

async fn make(server: &Server, topic: &str, queues: u32, group: &GroupSettings) {
    let client = Client::connect(&server.address).await.expect("the broker listens");
    let settings = TopicSettings {
        flush: Some(FlushMode::Async),
        topic_type: Some(TopicType::Mixed),
        queues: Some(queues),
        ..TopicSettings::default()
    };
    client.create_topic(topic, settings).await.expect("the topic is made");
    client.create_group(topic, group).await.expect("the group is made");
}

/// Stores messages with these message groups, each in a record of its own.
async fn fill(
    caller: &mut Caller,
    topic: &str,
    body: usize,
    groups: impl Iterator<Item = Option<String>>,
) {
    let mut messages = groups.enumerate().map(|(n, message_group)| v2::Message {
        topic: resource(topic),
        body: vec![7; body].into(),
        system_properties: Some(v2::SystemProperties {
            message_id: format!("01{n:032X}"),
            born_host: "bench".to_owned(),
            message_group,
            ..v2::SystemProperties::default()
        }),
        ..v2::Message::default()
    });
    loop {
        let messages: Vec<_> = messages.by_ref().take(TOGETHER).collect();
        if messages.is_empty() {
            return;
        }
        let request = with_headers(v2::SendMessageRequest { messages }, "host@1@0@fill");
        let answer = caller.send_message(request).await.expect("it is answered").into_inner();
        assert_eq!(answer.status.expect("there is one").code(), Code::Ok);
    }
}

/// A receive, for the group of the topic's name.
fn asks(topic: &str) -> v2::ReceiveMessageRequest {
    v2::ReceiveMessageRequest {
        group: resource(topic),
        message_queue: Some(v2::MessageQueue {
            topic: resource(topic),
            ..v2::MessageQueue::default()
        }),
        filter_expression: Some(v2::FilterExpression {
            r#type: v2::FilterType::Tag.into(),
            expression: "*".to_owned(),
        }),
        batch_size: BATCH as i32,
        invisible_duration: whole(3_600),
        long_polling_timeout: whole(20),
        ..v2::ReceiveMessageRequest::default()
    }
}

async fn receive(caller: &mut Caller, topic: &str) -> Vec<v2::Message> {
    let mut request = with_headers(asks(topic), "host@1@0@bench");
    request.set_timeout(Duration::from_millis(300));
    let mut frames = caller.receive_message(request).await.expect("it is answered").into_inner();
    let mut messages = Vec::new();
    while let Some(frame) = frames.message().await.expect("it ends well") {
        if let Some(Content::Message(message)) = frame.content {
            messages.push(message);
        }
    }
    messages
}

fn handle(message: &v2::Message) -> &str {
    let system = message.system_properties.as_ref().expect("every message has them");
    system.receipt_handle.as_deref().expect("every message has one")
}

async fn ack(caller: &mut Caller, topic: &str, messages: &[v2::Message]) {
    let entry = |message: &v2::Message| v2::AckMessageEntry {
        receipt_handle: handle(message).to_owned(),
        ..v2::AckMessageEntry::default()
    };
    let entries = messages.iter().map(entry).collect();
    let asked = v2::AckMessageRequest { group: resource(topic), topic: resource(topic), entries };
    let answer = caller.ack_message(with_headers(asked, "host@1@0@bench")).await;
    let status = answer.expect("it is answered").into_inner().status;
    assert_eq!(status.expect("there is one").code(), Code::Ok);
}

/// Compares receives of 32 messages with an ack of all of them, from so many callers.
pub(crate) fn receives(bench: &mut Bench, name: String, callers: usize, workers: usize) {
    let dir = bench.fresh_dir(&name);
    let runtime = Runtime::new().expect("a runtime starts");
    let mut broker = Server::start(workers, &dir.display().to_string());
    let mut no_op = Server::start(workers, NO_OP);
    runtime.block_on(make(&broker, TOPIC, QUEUES, &GroupSettings::default()));
    let messages = bench.pick(40_000, 2_000);
    let [to_broker, to_no_op] =
        [&broker, &no_op].map(|server| runtime.block_on(connect(&server.address, callers)));
    let mut filler = to_broker[0].clone();
    let control = "the same service, which gives the same message again and again";
    let case = Case { name, control, unit: "message", reach: None };
    let mut subject = || {
        // As many more as the others may hold when one looks for his last.
        let spare = BATCH * callers;
        runtime.block_on(async {
            let groups = std::iter::repeat_n(None, messages + spare);
            fill(&mut filler, TOPIC, BODY, groups).await;
        });
        slice(&runtime, &mut broker, &to_broker, TOPIC, messages)
    };
    bench.compare(&case, &mut subject, &mut || {
        slice(&runtime, &mut no_op, &to_no_op, TOPIC, messages)
    });
    drop((broker, no_op));
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// Compares one consumer of a topic with very many queues to one of a topic with few: what the other queues cost where
/// they are empty, and what it costs that each message lies in another queue.
pub(crate) fn queues(bench: &mut Bench, name: &str) {
    let dir = bench.fresh_dir(name);
    let runtime = Runtime::new().expect("a runtime starts");
    let mut broker = Server::start(2, &dir.display().to_string());
    runtime.block_on(async {
        make(&broker, "few", QUEUES, &GroupSettings::default()).await;
        make(&broker, "many", MANY_QUEUES, &GroupSettings::default()).await;
    });
    let callers = runtime.block_on(connect(&broker.address, 1));
    let messages = bench.pick(20_000, 1_000);
    for (what, message_groups) in
        [("few of them with messages", Some(QUEUES as usize)), ("each message in another", None)]
    {
        let run = RefCell::new(|topic: &'static str| {
            let group = |n: usize| message_groups.map(|groups| (n % groups).to_string());
            let mut filler = callers[0].clone();
            let groups = (0..messages + BATCH).map(group);
            runtime.block_on(fill(&mut filler, topic, BODY, groups));
            slice(&runtime, &mut broker, &callers, topic, messages)
        });
        let control = "a topic with 8 queues";
        let name = format!("{name}/{what}");
        let case = Case { name, control, unit: "message", reach: None };
        let (subject, control) = (|| run.borrow_mut()("many"), || run.borrow_mut()("few"));
        bench.compare(&case, &mut { subject }, &mut { control });
    }
    drop(broker);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// Lets all callers together receive and finish so many messages.
fn slice(
    runtime: &Runtime,
    server: &mut Server,
    callers: &[Caller],
    topic: &'static str,
    messages: usize,
) -> Slice {
    let before = server.cpu();
    let slice = Slice::of(messages as f64, (messages * BODY) as u64, || {
        let left = Arc::new(AtomicI64::new(messages as i64));
        runtime.block_on(async {
            let mut all = JoinSet::new();
            for caller in callers {
                let (mut caller, left) = (caller.clone(), Arc::clone(&left));
                all.spawn(async move {
                    while left.load(Ordering::Relaxed) > 0 {
                        let messages = receive(&mut caller, topic).await;
                        left.fetch_sub(messages.len() as i64, Ordering::Relaxed);
                        if !messages.is_empty() {
                            ack(&mut caller, topic, &messages).await;
                        }
                    }
                });
            }
            while let Some(caller) = all.join_next().await {
                caller.expect("no caller fails");
            }
        });
    });
    Slice { cpu: server.cpu().saturating_sub(before), ..slice }
}

/// One consumer over the native protocol: a receive of 32 and an ack of all of them, call after call; and a stream that
/// brings as many messages and acks as it can.
pub(crate) fn native(bench: &mut Bench, name: &str) {
    let dir = bench.fresh_dir(name);
    let runtime = Runtime::new().expect("a runtime starts");
    let mut broker = Server::start(2, &dir.display().to_string());
    let messages = bench.pick(200_000, 2_000);
    runtime.block_on(async {
        let mut filler = connect(&broker.address, 1).await.remove(0);
        for topic in ["calls", "stream"] {
            make(&broker, topic, QUEUES, &GroupSettings::default()).await;
            fill(&mut filler, topic, BODY, std::iter::repeat_n(None, messages)).await;
        }
    });
    let mut facts = serde_json::Map::new();
    let mut texts = Vec::new();
    for topic in ["calls", "stream"] {
        let (cpu, start) = (broker.cpu(), Instant::now());
        runtime.block_on(async {
            let client = Client::connect(&broker.address).await.expect("the broker listens");
            match topic {
                "calls" => by_calls(&client, topic, messages).await,
                _ => on_a_stream(&client, topic, messages).await,
            }
        });
        let (wall, cpu) = (start.elapsed(), broker.cpu().saturating_sub(cpu));
        let rate = messages as f64 / wall.as_secs_f64();
        let cpu_ns = cpu.as_nanos() as f64 / messages as f64;
        texts
            .push(format!("{topic}: {rate:.0} messages a second, {cpu_ns:.0} ns of CPU time each"));
        facts.insert(topic.to_owned(), json!({ "messages_per_second": rate, "cpu_ns": cpu_ns }));
    }
    bench.note(name, &texts.join("; "), facts.into());
    drop(broker);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

async fn by_calls(client: &Client, topic: &str, messages: usize) {
    let receive = Receive {
        group: topic,
        topic,
        filter: Filter::All,
        max_messages: BATCH as u32,
        invisible: Duration::from_secs(3_600),
        wait: Duration::from_secs(1),
        attempt: "",
    };
    let mut left = messages;
    while left > 0 {
        let leased = client.receive(&receive).await.expect("messages come");
        let handles: Vec<_> = leased.iter().map(|leased| leased.handle.as_str()).collect();
        let finished = client.ack(topic, topic, &handles).await.expect("it is answered");
        assert!(finished.iter().all(|finished| *finished), "each is finished");
        left -= leased.len();
    }
}

async fn on_a_stream(client: &Client, topic: &str, messages: usize) {
    let invisible = Duration::from_secs(3_600);
    let config = ConsumerConfig { invisible, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(topic, topic, config);
    for _ in 0..messages {
        let leased = consumer.next().await.expect("a message comes");
        consumer.ack(&leased.handle).await.expect("it is taken");
    }
    consumer.close().await.expect("all is settled");
    let rows = client.progress(topic, topic).await.expect("it is answered");
    assert_eq!(rows.iter().map(|row| row.lag).sum::<u64>(), 0, "each is finished");
}

/// From the begin of a send to the message in the hand of a receive that was parked.
pub(crate) fn wake_ups(bench: &mut Bench, name: &str) {
    let dir = bench.fresh_dir(name);
    let runtime = Runtime::new().expect("a runtime starts");
    let broker = Server::start(2, &dir.display().to_string());
    let calls = bench.pick(2_000, 50);
    let (mut woken, mut sent) = (histogram(), histogram());
    runtime.block_on(async {
        make(&broker, TOPIC, QUEUES, &GroupSettings::default()).await;
        let mut sender = connect(&broker.address, 1).await.remove(0);
        let mut receiver = connect(&broker.address, 1).await.remove(0);
        for _ in 0..calls {
            let request = with_headers(asks(TOPIC), "host@1@0@bench");
            let frames = receiver.receive_message(request).await.expect("it is answered");
            let mut frames = frames.into_inner();
            // It is parked long before.
            tokio::time::sleep(Duration::from_millis(3)).await;
            let start = Instant::now();
            fill(&mut sender, TOPIC, BODY, std::iter::once(None)).await;
            sent.saturating_record(nanos(start));
            let mut got = Vec::new();
            while let Some(frame) = frames.message().await.expect("it ends well") {
                if let Some(Content::Message(message)) = frame.content {
                    woken.saturating_record(nanos(start));
                    got.push(message);
                }
            }
            ack(&mut receiver, TOPIC, &got).await;
        }
    });
    bench.latencies("wake-up/send to receive", &woken);
    bench.latencies("wake-up/send to its answer", &sent);
    drop(broker);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("the bounds are legal")
}

fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Streams that a connection has open at once.
const STREAMS: usize = 200;

/// What receives that wait and clients that say nothing take.
pub(crate) fn memory(bench: &mut Bench, name: &str) {
    let dir = bench.fresh_dir(name);
    let runtime = Runtime::new().expect("a runtime starts");
    let mut broker = Server::start(2, &dir.display().to_string());
    let count: usize = bench.pick(10_000, 400);
    runtime.block_on(async {
        make(&broker, TOPIC, QUEUES, &GroupSettings::default()).await;
        let mut callers = Vec::new();
        for _ in 0..count.div_ceil(STREAMS) {
            let mut caller = connect(&broker.address, 1).await.remove(0);
            // What a connection takes for itself is there.
            assert_eq!(receive(&mut caller, TOPIC).await.len(), 0);
            callers.push(caller);
        }
        let start = broker.memory();
        let mut parked = Vec::new();
        for n in 0..count {
            let asked = with_headers(asks(TOPIC), &format!("host@1@{n}@parked"));
            let frames = callers[n / STREAMS].receive_message(asked).await;
            parked.push(frames.expect("it is answered").into_inner());
        }
        settle().await;
        let taken = broker.memory().saturating_sub(start);
        let cpu = broker.cpu();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let cpu = broker.cpu().saturating_sub(cpu).as_secs_f64() / 5.0 * 100.0;
        tell(bench, "memory/parked receive", count, taken, cpu);
        drop(parked);
        settle().await;

        let start = broker.memory();
        let mut streams = Vec::new();
        for n in 0..count {
            streams.push(introduce(&mut callers[n / STREAMS], n).await);
        }
        settle().await;
        let taken = broker.memory().saturating_sub(start);
        let cpu = broker.cpu();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let cpu = broker.cpu().saturating_sub(cpu).as_secs_f64() / 5.0 * 100.0;
        tell(bench, "memory/idle client", count, taken, cpu);
    });
    drop(broker);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// The server is done with what it was asked.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

fn tell(bench: &mut Bench, case: &str, count: usize, taken: u64, cpu: f64) {
    let each = taken / count as u64;
    let text =
        format!("{each} bytes for each of {count}; {cpu:.2} % of a core while nothing is done");
    bench.note(case, &text, json!({ "count": count, "bytes_each": each, "cpu_percent": cpu }));
}

type Telemetry = (mpsc::Sender<v2::TelemetryCommand>, tonic::Streaming<v2::TelemetryCommand>);

/// The stream of a client that has said who it is, and was answered.
async fn introduce(caller: &mut Caller, n: usize) -> Telemetry {
    let (commands, outgoing) = mpsc::channel(1);
    let subscription = v2::Subscription {
        group: resource(TOPIC),
        subscriptions: vec![v2::SubscriptionEntry {
            topic: resource(TOPIC),
            expression: asks(TOPIC).filter_expression,
        }],
        ..v2::Subscription::default()
    };
    let settings = v2::Settings {
        client_type: Some(v2::ClientType::PushConsumer.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..v2::Settings::default()
    };
    let command = Some(Command::Settings(settings));
    commands.send(v2::TelemetryCommand { status: None, command }).await.expect("it is read");
    let request = with_headers(ReceiverStream::new(outgoing), &format!("host@1@{n}@idle"));
    let mut answers = caller.telemetry(request).await.expect("it is answered").into_inner();
    let told = answers.next().await.expect("it is answered").expect("it is well");
    assert_eq!(told.status.expect("there is one").code(), Code::Ok);
    (commands, answers)
}

/// Messages of each message group: the first one gets stuck, or not, and the others wait for it.
const OF_A_GROUP: usize = 2;

/// Rounds, and how many of them may be tried: each is four times so many messages.
const LONG_ROUNDS: (usize, usize) = (3, 4);

/// What 1 % of message groups that get stuck at their first message cost the others: CPU time, and messages that are
/// looked at, for each of the others that is delivered.
pub(crate) fn stuck(bench: &mut Bench, name: &str) {
    let dir = bench.fresh_dir(name);
    let runtime = Runtime::new().expect("a runtime starts");
    let mut server = Server::start(2, &dir.display().to_string());
    let groups: usize = bench.pick(100_000, 2_000);
    let mut topics = 0..;
    let broker = RefCell::new(&mut server);
    // Of the runs without and with such groups: messages looked at, and others delivered.
    let mut looked = [(0, 0); 2];
    let mut run = |stuck_of_a_hundred: usize| {
        let topic = format!("stuck-{}", topics.next().unwrap_or(0));
        let mut broker = broker.borrow_mut();
        let mut caller = runtime.block_on(async {
            let ordered = GroupSettings { ordered: Some(true), ..GroupSettings::default() };
            make(&broker, &topic, QUEUES, &ordered).await;
            let mut caller = connect(&broker.address, 1).await.remove(0);
            let all = (0..OF_A_GROUP * groups).map(|n| Some((n % groups).to_string()));
            fill(&mut caller, &topic, SMALL, all).await;
            caller
        });
        let is_stuck = |message: &v2::Message| {
            let system = message.system_properties.as_ref().expect("every message has them");
            let group =
                system.message_group.as_deref().and_then(|group| group.parse::<usize>().ok());
            group.is_some_and(|group| group % 100 < stuck_of_a_hundred)
        };
        let others = OF_A_GROUP * groups / 100 * (100 - stuck_of_a_hundred);
        let (before, examined) = (broker.cpu(), broker.counter("looked_at"));
        let slice = Slice::of(others as f64, (others * SMALL) as u64, || {
            let mut left = others;
            runtime.block_on(async {
                while left > 0 {
                    let (_, done): (Vec<_>, Vec<_>) =
                        receive(&mut caller, &topic).await.into_iter().partition(&is_stuck);
                    if !done.is_empty() {
                        ack(&mut caller, &topic, &done).await;
                    }
                    left -= done.len();
                }
            });
        });
        let cpu = broker.cpu().saturating_sub(before);
        let (sum, delivered) = &mut looked[usize::from(stuck_of_a_hundred > 0)];
        *sum += broker.counter("looked_at") - examined;
        *delivered += others as u64;
        Slice { cpu, ..slice }
    };
    let run = RefCell::new(&mut run);
    let control = "the same without any that is stuck";
    let case_name = format!("{name}/1 of 100");
    let case = Case { name: case_name, control, unit: "message", reach: None };
    let rounds = bench.pick(LONG_ROUNDS, (1, 2));
    bench.compare_in(&case, rounds, &mut || run.borrow_mut()(1), &mut || run.borrow_mut()(0));
    let [without, with] = looked.map(|(looked, delivered)| looked as f64 / delivered as f64);
    let text = format!(
        "{with:.4} messages looked at for each that is delivered, {without:.4} without: {:.4} times as many",
        with / without,
    );
    let facts = json!({ "looked_at_each": with, "control_looked_at_each": without });
    bench.note(&format!("{name}/looked at"), &text, facts);
    drop(server);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}
