//! Telemetry: settings, and what ends a stream.

use std::time::{Duration, Instant};

use mainstem::proto::rocketmq::retry_policy::Strategy;
use mainstem::proto::rocketmq::settings::PubSub;
use mainstem::proto::rocketmq::{
    self as v2, Address, AddressScheme, ClientType, Code, Endpoints, FilterExpression, FilterType,
    Language, Metric, Publishing, Resource, RetryPolicy, Settings, Subscription, SubscriptionEntry,
    TelemetryCommand, Ua,
};
use mainstem::proto::{
    DeleteGroupRequest, GroupConfig, RetryDelays, TopicConfig, TopicType, UpdateGroupRequest,
    UpdateTopicRequest,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::Channel;

use crate::support::{CLIENT, Server, Telemetry, code, soon};

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn in_namespace(name: &str) -> Resource {
    Resource { resource_namespace: "ns".to_owned(), name: name.to_owned() }
}

/// What clients say of themselves whatever they are, and what the broker has to overrule.
fn common() -> Settings {
    let addresses = vec![Address { host: "localhost".to_owned(), port: 8081 }];
    let access_point = Endpoints { scheme: AddressScheme::DomainName.into(), addresses };
    Settings {
        access_point: Some(access_point),
        request_timeout: Some(seconds(3)),
        user_agent: Some(Ua {
            language: Language::Java.into(),
            version: "5.2.1".to_owned(),
            platform: "Linux".to_owned(),
            hostname: "producer.example".to_owned(),
        }),
        backoff_policy: Some(RetryPolicy { max_attempts: 99, strategy: None }),
        metric: Some(Metric { on: true, endpoints: None }),
        ..Settings::default()
    }
}

pub(crate) fn producer(topics: &[&str]) -> Settings {
    let publishing = Publishing {
        topics: topics.iter().map(|name| in_namespace(name)).collect(),
        max_body_size: 1,
        validate_message_type: false,
    };
    let client_type = Some(ClientType::Producer.into());
    Settings { client_type, pub_sub: Some(PubSub::Publishing(publishing)), ..common() }
}

pub(crate) fn consumer(group: &str, topics: &[&str]) -> Settings {
    let expression =
        Some(FilterExpression { r#type: FilterType::Tag.into(), expression: "a || b".to_owned() });
    let entry = |name: &&str| SubscriptionEntry {
        topic: Some(in_namespace(name)),
        expression: expression.clone(),
    };
    let subscription = Subscription {
        group: Some(in_namespace(group)),
        subscriptions: topics.iter().map(entry).collect(),
        fifo: Some(true),
        receive_batch_size: Some(1),
        long_polling_timeout: Some(seconds(1)),
        ..Subscription::default()
    };
    let client_type = Some(ClientType::PushConsumer.into());
    Settings { client_type, pub_sub: Some(PubSub::Subscription(subscription)), ..common() }
}

fn subscription(settings: &Settings) -> &Subscription {
    match &settings.pub_sub {
        Some(PubSub::Subscription(subscription)) => subscription,
        other => panic!("{other:?}"),
    }
}

fn is_ordered(settings: &Settings) -> bool {
    subscription(settings).fifo.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_client_id_gets_a_status_alone_and_ends_well() {
    let server = Server::start().await;
    let (_commands, outgoing) = tokio::sync::mpsc::channel::<TelemetryCommand>(1);
    let asked = Request::new(ReceiverStream::new(outgoing));
    let mut answers = server.calls.clone().telemetry(asked).await.unwrap().into_inner();
    let first = soon(answers.message()).await.unwrap().unwrap();
    assert_eq!((code(&first.status), first.command), (Code::ClientIdRequired, None));
    assert_eq!(soon(answers.message()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_before_the_client_sends_and_the_end_of_its_half_ends_the_stream() {
    let server = Server::start().await;
    // It returns with the headers: nothing was sent by then.
    let mut telemetry = soon(server.telemetry(CLIENT, "RUST")).await;
    assert!(telemetry.is_silent().await);
    let Telemetry { commands, mut answers } = telemetry;
    drop(commands);
    assert_eq!(soon(answers.message()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_is_told_its_own_settings_with_the_brokers_words_in_them() {
    let server = Server::start().await;
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    let own = producer(&["t", "u"]);
    let told = telemetry.ask(own.clone()).await;
    let backoff = v2::ExponentialBackoff {
        initial: Some(prost_types::Duration { seconds: 0, nanos: 10_000_000 }),
        max: Some(seconds(1)),
        multiplier: 2.0,
    };
    let expected = Settings {
        backoff_policy: Some(RetryPolicy {
            max_attempts: 3,
            strategy: Some(Strategy::ExponentialBackoff(backoff)),
        }),
        metric: Some(Metric { on: false, endpoints: None }),
        pub_sub: Some(PubSub::Publishing(Publishing {
            topics: vec![in_namespace("t"), in_namespace("u")],
            max_body_size: 4_194_304,
            validate_message_type: true,
        })),
        ..own.clone()
    };
    assert_eq!(told, expected);
    assert_eq!(telemetry.ask(own.clone()).await, expected, "and again");
    let mut took = Vec::new();
    for client in ["a", "b", "c", "d", "e"] {
        let mut another = server.telemetry(client, "JAVA").await;
        let asked = Instant::now();
        assert_eq!(another.ask(own.clone()).await, expected);
        took.push(asked.elapsed());
    }
    // Ten times what is promised, and the best: it tells an answer from what comes by itself after a while.
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    let none = telemetry.ask(producer(&[])).await;
    let Some(PubSub::Publishing(publishing)) = none.pub_sub else { panic!("of a producer") };
    assert_eq!(publishing.topics, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_is_told_how_its_group_is_and_how_to_receive() {
    let server = Server::start().await;
    let mut telemetry = server.telemetry(CLIENT, "PYTHON").await;
    let own = consumer("g", &["t"]);
    let told = telemetry.ask(own.clone()).await;
    let minutes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 60, 120].map(|n| n * 60);
    let next = [&[1, 5, 10, 30][..], &minutes].concat().into_iter().map(seconds).collect();
    let expected = Settings {
        backoff_policy: Some(RetryPolicy {
            max_attempts: 17,
            strategy: Some(Strategy::CustomizedBackoff(v2::CustomizedBackoff { next })),
        }),
        metric: Some(Metric { on: false, endpoints: None }),
        pub_sub: Some(PubSub::Subscription(Subscription {
            fifo: Some(false),
            receive_batch_size: Some(32),
            long_polling_timeout: Some(seconds(20)),
            lite_subscription_quota: Some(2_000),
            max_lite_topic_size: Some(64),
            ..subscription(&own).clone()
        })),
        ..own
    };
    assert_eq!(told, expected);
    for kind in
        [ClientType::SimpleConsumer, ClientType::LitePushConsumer, ClientType::LiteSimpleConsumer]
    {
        let told = telemetry.ask(Settings { client_type: Some(kind.into()), ..consumer("g", &[]) });
        assert_eq!(subscription(&told.await).lite_subscription_quota, Some(2_000), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_told_again_when_the_group_changes() {
    let server = Server::start().await;
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    assert!(!is_ordered(&telemetry.ask(consumer("g", &["t"])).await));
    let ordered = GroupConfig { ordered: Some(true), ..GroupConfig::default() };
    server.create_group("g", ordered).await;
    assert!(is_ordered(&telemetry.settings().await));

    let changes = GroupConfig {
        max_attempts: Some(3),
        retry_delays: Some(RetryDelays { ms: vec![1_500] }),
        ..GroupConfig::default()
    };
    let asked = UpdateGroupRequest { name: "g".to_owned(), config: Some(changes) };
    server.admin.clone().update_group(asked).await.unwrap();
    let policy = telemetry.settings().await.backoff_policy.unwrap();
    let next = vec![seconds(2)];
    let strategy = Some(Strategy::CustomizedBackoff(v2::CustomizedBackoff { next }));
    assert_eq!(policy, RetryPolicy { max_attempts: 3, strategy });

    let asked = DeleteGroupRequest { name: "g".to_owned() };
    server.admin.clone().delete_group(asked).await.unwrap();
    assert!(!is_ordered(&telemetry.settings().await));

    server.create_group("another", GroupConfig::default()).await;
    assert!(telemetry.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_told_again_when_a_named_topic_changes_but_not_what_cpp_has_heard() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let mut java = server.telemetry("java", "JAVA").await;
    let mut cpp = server.telemetry("cpp", "CPP").await;
    let told = java.ask(producer(&["t"])).await;
    cpp.ask(producer(&["t"])).await;
    let config = TopicConfig { r#type: TopicType::Mixed.into(), ..TopicConfig::default() };
    let asked = UpdateTopicRequest { name: "t".to_owned(), config: Some(config), force: false };
    server.admin.clone().update_topic(asked).await.unwrap();
    assert_eq!(java.settings().await, told);
    assert!(cpp.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_go_to_the_stream_whose_settings_came_last_and_then_to_the_one_before() {
    let server = Server::start().await;
    let mut first = server.telemetry(CLIENT, "RUST").await;
    let mut second = server.telemetry(CLIENT, "RUST").await;
    first.ask(consumer("g", &[])).await;
    second.ask(consumer("g", &[])).await;
    let ordered = GroupConfig { ordered: Some(true), ..GroupConfig::default() };
    server.create_group("g", ordered).await;
    assert!(is_ordered(&second.settings().await));
    assert!(first.is_silent().await, "both stay open, one is told");

    let Telemetry { commands, mut answers } = second;
    drop(commands);
    assert_eq!(soon(answers.message()).await.unwrap(), None);
    let asked = DeleteGroupRequest { name: "g".to_owned() };
    server.admin.clone().delete_group(asked).await.unwrap();
    assert!(!is_ordered(&first.settings().await));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_make_no_sense_end_the_stream_with_invalid_argument() {
    let server = Server::start().await;
    let wrong = |change: fn(&mut Subscription)| {
        let mut subscription = subscription(&consumer("g", &["t"])).clone();
        change(&mut subscription);
        Settings { pub_sub: Some(PubSub::Subscription(subscription)), ..consumer("g", &["t"]) }
    };
    let sql = |subscription: &mut Subscription| {
        let expression = "a = ".to_owned();
        let filter = FilterExpression { r#type: FilterType::Sql.into(), expression };
        subscription.subscriptions[0].expression = Some(filter);
    };
    for (case, settings) in [
        ("neither", common()),
        ("a topic with a dot", producer(&["a.b"])),
        ("a subscription to such a one", consumer("g", &["a.b"])),
        ("a group with a dot", consumer("a.b", &["t"])),
        ("no group", wrong(|subscription| subscription.group = None)),
        ("a filter that cannot be read", wrong(sql)),
        ("a producer with subscriptions", Settings { client_type: Some(1), ..consumer("g", &[]) }),
        (
            "properties of the system",
            Settings {
                client_properties: [("rocketmq.x".to_owned(), String::new())].into(),
                ..producer(&[])
            },
        ),
    ] {
        let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
        telemetry.tell(settings).await;
        let ended = soon(telemetry.answers.message()).await;
        assert_eq!(ended.unwrap_err().code(), tonic::Code::InvalidArgument, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_commands_that_nobody_gave_are_passed_over() {
    use v2::telemetry_command::Command;

    let server = Server::start().await;
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    for command in [
        None,
        Some(Command::VerifyMessageResult(v2::VerifyMessageResult { nonce: "1".to_owned() })),
        Some(Command::ThreadStackTrace(v2::ThreadStackTrace::default())),
        Some(Command::ReconnectEndpointsCommand(v2::ReconnectEndpointsCommand::default())),
    ] {
        telemetry.commands.send(TelemetryCommand { status: None, command }).await.unwrap();
    }
    telemetry.ask(producer(&["t"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_node_is_told_its_first_settings_twice() {
    let server = Server::start().await;
    let mut telemetry = server.telemetry(CLIENT, "HTTP").await;
    // With three topics it asks for three routes, and starts when it has settings behind the last of them.
    let topics = ["t", "u", "v"];
    let began = Instant::now();
    let told = telemetry.ask(producer(&topics)).await;
    for topic in topics {
        crate::route::is_found(&server, topic).await;
    }
    assert_eq!(telemetry.settings().await, told);
    assert!(began.elapsed() < Duration::from_secs(5), "else it gives up");
    assert_eq!(telemetry.ask(producer(&topics)).await, told);
    let more = tokio::time::timeout(Duration::from_millis(1_500), telemetry.answers.message());
    assert!(more.await.is_err(), "the first ones alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_when_the_broker_stops() {
    let server = Server::with(&["server.drain_timeout=20s"]).await;
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    telemetry.ask(consumer("g", &[])).await;
    let stopped = tokio::spawn(server.stop());
    assert_eq!(soon(telemetry.answers.message()).await.unwrap(), None);
    soon(stopped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_more_topics_than_a_client_may_have_end_the_stream() {
    let server = Server::start().await;
    let names: Vec<_> = (0..1_025).map(|n| format!("t{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    telemetry.ask(producer(&names[1..])).await;
    telemetry.tell(producer(&names)).await;
    let ended = soon(telemetry.answers.message()).await;
    assert_eq!(ended.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_group_reaches_a_thousand_clients() {
    let server = Server::start().await;
    let mut streams = Vec::new();
    for n in 0..1_000 {
        // A connection carries 256 calls.
        let channel = match n % 200 {
            0 => server.connect().await,
            _ => streams.last().map(|(channel, _)| Channel::clone(channel)).unwrap(),
        };
        let mut stream = server.telemetry_over(&channel, &format!("client-{n}"), "GO").await;
        stream.ask(consumer("g", &["t"])).await;
        streams.push((channel, stream));
    }
    let ordered = GroupConfig { ordered: Some(true), ..GroupConfig::default() };
    server.create_group("g", ordered).await;
    for (_, stream) in &mut streams {
        assert!(is_ordered(&stream.settings().await));
    }
}
