//! Leases that the broker keeps for as long as their client lives: what push consumers have.

use std::time::Duration;

use mainstem::proto::rocketmq::settings::PubSub;
use mainstem::proto::rocketmq::{
    ClientType, Code, HeartbeatRequest, NotifyClientTerminationRequest, ReceiveMessageRequest,
    Settings, Subscription,
};
use mainstem::proto::{Client, ListClientsRequest, TopicType};

use crate::consumer::{Consumer, attempt, bodies, handle, seconds, system};
use crate::receive::send;
use crate::support::{Server, code, request_of, resource};

const PUSH: &str = "push@1@0@a";

fn renewed(consumer: &Consumer<'_>) -> ReceiveMessageRequest {
    // Clients in C++ say both.
    ReceiveMessageRequest { auto_renew: true, ..consumer.asks() }
}

fn settings() -> Settings {
    let subscription = Subscription { group: Some(resource("g")), ..Subscription::default() };
    Settings {
        client_type: Some(ClientType::PushConsumer.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..Settings::default()
    }
}

async fn goodbye(server: &Server, id: &str) {
    let asked = NotifyClientTerminationRequest { group: Some(resource("g")) };
    let answer = server.calls.clone().notify_client_termination(request_of(id, asked)).await;
    assert_eq!(code(&answer.unwrap().into_inner().status), Code::Ok);
}

/// The next delivery of a message that somebody else has.
/// Long before a client counts as silent.
async fn until_free(consumer: &Consumer<'_>) -> Vec<mainstem::proto::rocketmq::Message> {
    for _ in 0..5 {
        let answer = consumer.receive(consumer.asks()).await;
        if answer.code == Code::Ok {
            return answer.messages;
        }
        assert_eq!(answer.code, Code::MessageNotFound);
    }
    panic!("nothing came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_consumer_has_comes_again_when_it_says_goodbye() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    send(&server, "t", &["one"]).await;
    let push = Consumer { id: PUSH, ..Consumer::new(&server, "g", "t") };
    let other = Consumer::new(&server, "g", "t");
    let mut stream = server.telemetry(PUSH, "JAVA").await;
    stream.ask(settings()).await;
    let got = push.get_by(1, renewed(&push)).await;
    assert_eq!(system(&got[0]).invisible_duration, seconds(3 * 60 * 60));
    other.gets_nothing().await;
    goodbye(&server, PUSH).await;
    let again = until_free(&other).await;
    assert_eq!((bodies(&again), attempt(&again[0])), (vec!["one"], 2));
    assert_eq!(other.ack(&[handle(&got[0])]).await.0, Code::InvalidReceiptHandle);
    other.finish(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_put_off_by_its_client_does_not_end_with_it() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    send(&server, "t", &["kept", "given back"]).await;
    let push = Consumer { id: PUSH, ..Consumer::new(&server, "g", "t") };
    let other = Consumer::new(&server, "g", "t");
    let got = push.get_by(2, renewed(&push)).await;
    // A receive of a push consumer that nobody knows makes it known: what it gives back waits, and is no longer lease.
    assert_eq!(push.hold(handle(&got[1]), 60).await.0, Code::Ok);
    goodbye(&server, PUSH).await;
    assert_eq!(bodies(&until_free(&other).await), ["kept"]);
    other.gets_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_receives_is_known_by_that() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let push = Consumer { id: PUSH, ..Consumer::new(&server, "g", "t") };
    let simple = Consumer { id: "simple@1@0@a", ..Consumer::new(&server, "g", "t") };
    push.look(renewed(&push)).await;
    simple.look(simple.asks()).await;
    let asked = ListClientsRequest::default();
    let clients = server.admin.clone().list_clients(asked).await.unwrap().into_inner().clients;
    let told =
        |client: &Client| (client.id.clone(), client.kind().as_str_name(), client.group.clone());
    assert_eq!(
        clients.iter().map(told).collect::<Vec<_>>(),
        [
            (PUSH.to_owned(), "PUSH_CONSUMER", "g".to_owned()),
            ("simple@1@0@a".to_owned(), "SIMPLE_CONSUMER", "g".to_owned()),
        ]
    );
    let beat = HeartbeatRequest { group: Some(resource("g")), client_type: 0 };
    let answer = server.calls.clone().heartbeat(request_of(PUSH, beat)).await.unwrap();
    assert_eq!(code(&answer.into_inner().status), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_consumer_has_stays_its_own_over_a_restart_of_the_broker() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    send(&server, "t", &["one"]).await;
    let push = Consumer { id: PUSH, ..Consumer::new(&server, "g", "t") };
    let got = push.get_by(1, renewed(&push)).await;
    let handle = handle(&got[0]).to_owned();
    let server = server.again().await;
    let other = Consumer::new(&server, "g", "t");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    other.gets_nothing().await;
    let push = Consumer { id: PUSH, ..Consumer::new(&server, "g", "t") };
    assert_eq!(push.ack(&[&handle]).await.0, Code::Ok);
}
