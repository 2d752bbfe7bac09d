//! What the clients do that cannot be run here: Go, C++, C# and Node.js, call by call; and what the one for Rust does
//! unlike the others.

use std::time::Duration;

use mainstem::proto::rocketmq::settings::PubSub;
use mainstem::proto::rocketmq::{
    ClientType, Code, HeartbeatRequest, ReceiveMessageRequest, Settings, Subscription,
    SubscriptionEntry,
};
use mainstem::proto::{GroupConfig, TopicType};
use tonic::Request;

use crate::consumer::{Consumer, all_of, attempt, bodies, handle, seconds, tags};
use crate::receive::send;
use crate::support::{Server, code, request_of, resource, with};

fn settings(kind: ClientType) -> Settings {
    let topic = Some(resource("t"));
    let subscriptions = vec![SubscriptionEntry { topic, expression: tags("*") }];
    let group = Some(resource("g"));
    let subscription = Subscription { group, subscriptions, ..Subscription::default() };
    Settings {
        client_type: Some(kind.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..Settings::default()
    }
}

async fn beat(server: &Server, id: &str, kind: ClientType) -> Code {
    let asked = HeartbeatRequest { group: Some(resource("g")), client_type: kind.into() };
    let answer = server.calls.clone().heartbeat(request_of(id, asked)).await.unwrap();
    code(&answer.into_inner().status)
}

async fn with_messages(bodies: &[&str]) -> Server {
    let server = Server::start().await;
    server.create("t", TopicType::Mixed, 8).await;
    send(&server, "t", bodies).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn go_says_no_polling_time_and_beats_without_a_name_once_its_stream_broke() {
    let server = with_messages(&["one"]).await;
    let go = Consumer { id: "go@1@0@a", ..Consumer::new(&server, "g", "t") };
    let mut stream = server.telemetry(go.id, "GO").await;
    stream.ask(settings(ClientType::SimpleConsumer)).await;
    let asked = || ReceiveMessageRequest { long_polling_timeout: None, ..go.asks() };
    let got = go.get_by(1, asked()).await;
    go.finish(&got).await;
    // 3 s for other calls, and 3.6 s to wait.
    let began = std::time::Instant::now();
    let empty = all_of(go.frames(asked(), Duration::from_millis(6_600)).await).await;
    assert_eq!(empty.code, Code::MessageNotFound);
    assert!(began.elapsed() >= Duration::from_millis(4_900), "{:?}", began.elapsed());
    drop(stream);
    let unnamed = Request::new(HeartbeatRequest::default());
    let answer = server.calls.clone().heartbeat(unnamed).await.unwrap().into_inner();
    assert_eq!(code(&answer.status), Code::ClientIdRequired);
    assert_eq!(beat(&server, go.id, ClientType::SimpleConsumer).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn cpp_takes_batch_and_wait_from_its_settings_and_says_a_time_with_auto_renew() {
    let server = with_messages(&["one"]).await;
    let cpp = Consumer { id: "host@1#0_1", ..Consumer::new(&server, "g", "t") };
    let mut stream = server.telemetry(cpp.id, "CPP").await;
    let told = stream.ask(settings(ClientType::PushConsumer)).await;
    let Some(PubSub::Subscription(told)) = told.pub_sub else { panic!("{told:?}") };
    assert_eq!((told.receive_batch_size, told.long_polling_timeout), (Some(32), seconds(20)));
    let asked = ReceiveMessageRequest {
        auto_renew: true,
        invisible_duration: seconds(30),
        long_polling_timeout: None,
        batch_size: told.receive_batch_size.unwrap(),
        ..cpp.asks()
    };
    let got = cpp.get_by(1, asked).await;
    cpp.finish(&got).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csharp_goes_on_without_its_stream_when_the_broker_was_started_again() {
    let server = with_messages(&["one", "two"]).await;
    let id = "host@1@0@csharp";
    let push = Consumer { id, ..Consumer::new(&server, "g", "t") };
    let mut stream = server.telemetry(id, "DOTNET").await;
    stream.ask(settings(ClientType::PushConsumer)).await;
    let renewed = |of: &Consumer<'_>| ReceiveMessageRequest { auto_renew: true, ..of.asks() };
    let one = ReceiveMessageRequest { batch_size: 1, ..renewed(&push) };
    let got = push.get_by(1, one).await;
    drop(stream);
    let server = server.again().await;
    let push = Consumer { id, ..Consumer::new(&server, "g", "t") };
    assert_eq!(beat(&server, id, ClientType::PushConsumer).await, Code::Ok);
    push.finish(&got).await;
    let rest = push.get_by(1, renewed(&push)).await;
    // What its listener fails at it gives back, for the pause that it knows.
    assert_eq!(push.hold(handle(&rest[0]), 1).await.0, Code::Ok);
    let again = push.get_by(1, renewed(&push)).await;
    assert_eq!(attempt(&again[0]), 2);
    push.finish(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_asks_queue_0_alone_gives_back_for_no_time_and_gives_up_a_fifo_message_at_once() {
    let bodies_of_all: Vec<_> = (0..16).map(|n| format!("{n:02}")).collect();
    let server = with_messages(&bodies_of_all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let id = "host@1@0@node";
    let node = Consumer { id, ..Consumer::new(&server, "g", "t") };
    let mut stream = server.telemetry(id, "HTTP").await;
    stream.ask(settings(ClientType::PushConsumer)).await;
    let asked = || ReceiveMessageRequest { auto_renew: true, ..node.asks() };
    let got = node.get_by(16, asked()).await;
    let mut told = bodies(&got);
    told.sort_unstable();
    assert_eq!(told, bodies_of_all);
    assert_eq!(node.hold(handle(&got[0]), 0).await.0, Code::Ok);
    let again = node.get_by(1, asked()).await;
    assert_eq!((attempt(&again[0]), &again[0].body), (2, &got[0].body));
    node.finish(&again).await;
    node.finish(&got[1..]).await;

    let ordered = GroupConfig { ordered: Some(true), ..GroupConfig::default() };
    server.create_group("ordered", ordered).await;
    for n in 0..2 {
        let one = with("t", &n.to_string(), |system| system.message_group = Some("a".to_owned()));
        assert_eq!(server.code_of(vec![one]).await, Code::Ok);
    }
    let fifo = Consumer { id, ..Consumer::new(&server, "ordered", "t") };
    let of_group = || ReceiveMessageRequest { batch_size: 1, ..fifo.asks() };
    // The others have no message group, and are one group for each queue.
    let mut given_up = 0;
    while given_up < 2 {
        for one in fifo.receive(of_group()).await.messages {
            let is_of_group = one.system_properties.as_ref().unwrap().message_group.is_some();
            match is_of_group {
                true => assert_eq!(fifo.forward(handle(&one)).await, Code::Ok),
                false => fifo.finish(std::slice::from_ref(&one)).await,
            }
            given_up += usize::from(is_of_group);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_beats_before_its_settings_waits_as_long_as_its_deadline_and_reads_the_first_entry() {
    let server = with_messages(&["one"]).await;
    let rust = Consumer { id: "host@1#0", ..Consumer::new(&server, "g", "t") };
    assert_eq!(beat(&server, rust.id, ClientType::SimpleConsumer).await, Code::Ok);
    let asked = || ReceiveMessageRequest {
        long_polling_timeout: seconds(40),
        invisible_duration: seconds(15),
        ..rust.asks()
    };
    let frames = rust.frames(asked(), Duration::from_secs(40)).await;
    let got = all_of(frames).await.messages;
    // Its client takes nothing for a success but this, and looks at the first entry without asking.
    assert_eq!(rust.ack(&[handle(&got[0])]).await, (Code::Ok, vec![Code::Ok]));
    let waiting = rust.frames(asked(), Duration::from_secs(40)).await;
    send(&server, "t", &["two"]).await;
    assert_eq!(bodies(&all_of(waiting).await.messages), ["two"]);
}
