//! AckMessage, ChangeInvisibleDuration, ForwardMessageToDeadLetterQueue: what becomes of what was received.

use std::time::{Duration, Instant};

use mainstem::proto::rocketmq::{
    self as v2, AckMessageRequest, ChangeInvisibleDurationRequest, ClientType, Code,
    HeartbeatRequest, ReceiveMessageRequest,
};
use mainstem::proto::{
    self, DeleteGroupRequest, DeleteTopicRequest, GroupConfig, RetryDelays, TopicType,
};
use tonic::Request;

use crate::consumer::{Consumer, attempt, bodies, body, handle, seconds, system};
use crate::receive::send;
use crate::support::{Server, code, message, request, request_of, resource, soon, with};

/// A server with a topic of one queue and these messages in it.
async fn with_messages(bodies: &[&str]) -> Server {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    send(&server, "t", bodies).await;
    server
}

fn attempts(most: u32, delays_ms: &[u64]) -> GroupConfig {
    GroupConfig {
        max_attempts: Some(most),
        retry_delays: Some(RetryDelays { ms: delays_ms.to_vec() }),
        ..GroupConfig::default()
    }
}

/// Another text of the same length, with another character at a place.
fn forged(handle: &str, at: usize) -> String {
    let mut bytes = handle.as_bytes().to_vec();
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_never_comes_again_and_the_same_ack_again_is_fine() {
    let server = with_messages(&["one", "two"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(2).await;
    assert_eq!(consumer.ack(&[handle(&got[0])]).await, (Code::Ok, vec![Code::Ok]));
    assert_eq!(consumer.ack(&[handle(&got[0])]).await, (Code::Ok, vec![Code::Ok]));
    let twice = [handle(&got[1]), handle(&got[1])];
    assert_eq!(consumer.ack(&twice).await, (Code::Ok, vec![Code::Ok; 2]), "in one request too");
    consumer.gets_nothing().await;
    let other = Consumer::new(&server, "other", "t");
    assert_eq!(other.get(2).await.len(), 2, "each group for itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_acknowledged_comes_again_with_another_handle_and_a_higher_attempt() {
    let server = with_messages(&["one"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let asked = ReceiveMessageRequest { invisible_duration: seconds(10), ..consumer.asks() };
    let began = Instant::now();
    let first = consumer.get_by(1, asked).await;
    assert_eq!(attempt(&first[0]), 1);
    let mut second = Vec::new();
    while second.is_empty() {
        second = consumer.receive(consumer.asks()).await.messages;
    }
    let passed = began.elapsed();
    assert!(passed >= Duration::from_secs(10), "{passed:?}");
    assert_eq!((attempt(&second[0]), body(&second[0])), (2, "one"));
    assert_eq!(system(&second[0]).message_id, system(&first[0]).message_id);
    assert_eq!(system(&second[0]).queue_offset, system(&first[0]).queue_offset);
    assert_ne!(handle(&second[0]), handle(&first[0]));
    let stale = consumer.ack(&[handle(&first[0])]).await;
    assert_eq!(stale, (Code::InvalidReceiptHandle, vec![Code::InvalidReceiptHandle]));
    consumer.finish(&second).await;
    let replayed = consumer.ack(&[handle(&first[0]), handle(&second[0])]).await;
    assert_eq!(
        replayed,
        (Code::MultipleResults, vec![Code::InvalidReceiptHandle, Code::Ok]),
        "finished by another lease"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_of_good_and_bad_handles_has_an_entry_for_each_in_their_order() {
    let server = with_messages(&["one", "two"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(2).await;
    let bad = forged(handle(&got[0]), 20);
    let codes = consumer.ack(&[&bad, handle(&got[1]), ""]).await;
    let expected = vec![Code::InvalidReceiptHandle, Code::Ok, Code::InvalidReceiptHandle];
    assert_eq!(codes, (Code::MultipleResults, expected));
    let codes = consumer.ack(&[&bad, "x"]).await;
    assert_eq!(codes, (Code::InvalidReceiptHandle, vec![Code::InvalidReceiptHandle; 2]));
    assert_eq!(consumer.ack(&[]).await, (Code::InternalServerError, vec![]));
    let many = vec!["x"; 1_024];
    assert_eq!(consumer.ack(&many).await.1, vec![Code::InvalidReceiptHandle; 1_024]);
    let entry = v2::AckMessageEntry::default();
    let asked = AckMessageRequest {
        group: Some(resource("g")),
        topic: Some(resource("t")),
        entries: vec![entry; 1_025],
    };
    let answer = server.calls.clone().ack_message(request(asked)).await.unwrap().into_inner();
    assert_eq!((code(&answer.status), answer.entries.len()), (Code::BadRequest, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_handle_but_the_groups_own_of_the_topic_and_its_last_one_is_worth_anything() {
    let server = with_messages(&["one"]).await;
    server.create("u", TopicType::Normal, 1).await;
    send(&server, "u", &["of another topic"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(1).await;
    let good = handle(&got[0]);
    let thief = Consumer::new(&server, "thief", "t");
    let stolen = thief.get(1).await;
    let other = Consumer::new(&server, "g", "u");
    let of_other = other.get(1).await;
    let bad: Vec<String> = [handle(&stolen[0]), handle(&of_other[0]), "", "x", "ü", "null"]
        .iter()
        .map(|bad| (*bad).to_owned())
        .chain((0..good.len()).step_by(7).map(|at| forged(good, at)))
        .chain([good[1..].to_owned(), format!("{good}A"), good.to_lowercase(), "A".repeat(1 << 16)])
        .collect();
    for bad in &bad {
        let name = &bad[..bad.len().min(200)];
        assert_eq!(consumer.ack(&[bad]).await.0, Code::InvalidReceiptHandle, "{name}");
        let (code, back) = consumer.hold(bad, 0).await;
        assert_eq!((code, &back), (Code::InvalidReceiptHandle, bad), "{name}");
        assert_eq!(consumer.forward(bad).await, Code::InvalidReceiptHandle, "{name}");
    }
    for of_wrong in [&thief, &other] {
        assert_eq!(of_wrong.ack(&[good]).await.0, Code::InvalidReceiptHandle);
        assert_eq!(of_wrong.hold(good, 0).await.0, Code::InvalidReceiptHandle);
        assert_eq!(of_wrong.forward(good).await, Code::InvalidReceiptHandle);
    }
    // Nothing of all that has changed the lease.
    consumer.gets_nothing().await;
    assert_eq!(consumer.ack(&[good]).await.0, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_succeed_says_so_to_clients_that_else_try_for_ever() {
    let server = with_messages(&["one", "two"]).await;
    server.create("u", TopicType::Normal, 1).await;
    send(&server, "u", &["one"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(2).await;
    let of_u = Consumer::new(&server, "g", "u");
    let handle_of_u = handle(&of_u.get(1).await[0]).to_owned();
    let worthless = async |consumer: &Consumer<'_>, handle: &str| {
        let codes = consumer.ack(&[handle]).await;
        assert_eq!(codes, (Code::InvalidReceiptHandle, vec![Code::InvalidReceiptHandle]));
        assert_eq!(consumer.hold(handle, 1).await.0, Code::InvalidReceiptHandle);
        assert_eq!(consumer.forward(handle).await, Code::InvalidReceiptHandle);
    };
    let nowhere = Consumer::new(&server, "g", "nowhere");
    worthless(&nowhere, handle(&got[0])).await;
    let nobody = Consumer::new(&server, "nobody", "t");
    worthless(&nobody, handle(&got[0])).await;
    let delete = DeleteTopicRequest { name: "u".to_owned() };
    server.admin.clone().delete_topic(delete).await.unwrap();
    worthless(&of_u, &handle_of_u).await;
    server.create("u", TopicType::Normal, 1).await;
    send(&server, "u", &["of the new one"]).await;
    worthless(&of_u, &handle_of_u).await;
    assert_eq!(bodies(&of_u.get(1).await), ["of the new one"]);
    let delete = DeleteGroupRequest { name: "g".to_owned() };
    server.admin.clone().delete_group(delete).await.unwrap();
    worthless(&consumer, handle(&got[0])).await;
    assert_eq!(consumer.get(2).await.len(), 2, "another group of the same name");
    worthless(&consumer, handle(&got[0])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_looked_at_first_and_an_ack_has_its_entries_all_the_same() {
    let server = with_messages(&["one"]).await;
    for (group, topic, expected) in [
        ("g", "a.b", Code::IllegalTopic),
        ("g", "", Code::IllegalTopic),
        ("a.b", "t", Code::IllegalConsumerGroup),
        ("", "t", Code::IllegalConsumerGroup),
        ("a.b", "a.b", Code::IllegalTopic),
    ] {
        let consumer = Consumer::new(&server, group, topic);
        assert_eq!(consumer.ack(&["x"]).await, (expected, vec![expected]), "{group} {topic}");
        assert_eq!(consumer.hold("x", 0).await, (expected, "x".to_owned()));
        assert_eq!(consumer.forward("x").await, expected);
    }
    let entries = vec![v2::AckMessageEntry::default()];
    let unnamed = AckMessageRequest { entries, ..AckMessageRequest::default() };
    let mut calls = server.calls.clone();
    let answer = calls.ack_message(Request::new(unnamed)).await.unwrap().into_inner();
    assert_eq!(code(&answer.status), Code::ClientIdRequired);
    assert_eq!(answer.entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_gives_a_new_handle_and_the_old_one_is_worth_nothing() {
    let server = with_messages(&["one"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(1).await;
    let (code, longer) = consumer.hold(handle(&got[0]), 60).await;
    assert_eq!(code, Code::Ok);
    assert_ne!(longer, handle(&got[0]));
    assert_eq!(consumer.ack(&[handle(&got[0])]).await.0, Code::InvalidReceiptHandle);
    consumer.gets_nothing().await;
    // No time makes it visible at once; and so does none at all.
    assert_eq!(consumer.hold(&longer, 0).await.0, Code::Ok);
    let second = consumer.get(1).await;
    assert_eq!(attempt(&second[0]), 2, "a longer lease is no attempt, a new delivery is");
    let none = ChangeInvisibleDurationRequest {
        invisible_duration: None,
        ..consumer.changes(handle(&second[0]), 0)
    };
    assert_eq!(consumer.change(none).await.0, Code::Ok);
    let third = consumer.get(1).await;
    assert_eq!(attempt(&third[0]), 3);
    let (_, later) = consumer.hold(handle(&third[0]), 1).await;
    consumer.gets_nothing().await;
    let fourth = consumer.get(1).await;
    assert_eq!(attempt(&fourth[0]), 4);
    assert_eq!(consumer.ack(&[&later]).await.0, Code::InvalidReceiptHandle);
    consumer.finish(&fourth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_for_0_s_to_12_h_and_one_that_is_refused_leaves_the_lease() {
    let server = with_messages(&["one"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(1).await;
    let good = handle(&got[0]);
    for after in [-1, 43_201, i64::MIN, i64::MAX] {
        let (code, back) = consumer.hold(good, after).await;
        assert_eq!((code, back.as_str()), (Code::IllegalInvisibleTime, good), "{after}");
    }
    // Some time went by since its delivery: it ends 12 hours after that.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (code, longest) = consumer.hold(good, 43_200).await;
    assert_eq!(code, Code::Ok);
    assert_eq!(consumer.hold(&longest, 43_100).await.0, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_with_suspend_does_not_count_the_delivery() {
    let server = with_messages(&["one"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(1).await;
    let suspended = ChangeInvisibleDurationRequest {
        suspend: Some(true),
        ..consumer.changes(handle(&got[0]), 0)
    };
    assert_eq!(consumer.change(suspended).await.0, Code::Ok);
    assert_eq!(attempt(&consumer.get(1).await[0]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_consumer_gives_back_for_the_last_time_is_a_dead_letter_at_once() {
    let server = with_messages(&["one"]).await;
    server.create_group("g", attempts(2, &[1])).await;
    let consumer = Consumer { id: "push@1@0@a", ..Consumer::new(&server, "g", "t") };
    // Said again after a restart by its heartbeats, before its settings.
    let beat = HeartbeatRequest {
        group: Some(resource("g")),
        client_type: ClientType::PushConsumer.into(),
    };
    server.calls.clone().heartbeat(request_of(consumer.id, beat)).await.unwrap();
    let got = consumer.get(1).await;
    assert_eq!(consumer.hold(handle(&got[0]), 0).await.0, Code::Ok);
    let again = consumer.get(1).await;
    assert_eq!(attempt(&again[0]), 2);
    assert_eq!(consumer.hold(handle(&again[0]), 3_600).await.0, Code::Ok);
    let dead = Consumer::new(&server, "reader", "%DLQ%g");
    until_there(&dead).await;
    let dead = dead.get(1).await;
    assert_eq!(body(&dead[0]), "one");
}

/// Waits until a topic is there.
async fn until_there(consumer: &Consumer<'_>) {
    let asked = v2::QueryAssignmentRequest {
        topic: Some(resource(consumer.topic)),
        group: Some(resource(consumer.group)),
        endpoints: None,
    };
    soon(async {
        loop {
            let mut calls = consumer.server.calls.clone();
            let answer = calls.query_assignment(request(asked.clone())).await.unwrap();
            match code(&answer.into_inner().status) {
                Code::TopicNotFound => tokio::time::sleep(Duration::from_millis(10)).await,
                other => return assert_eq!(other, Code::Ok),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_delivered_as_often_as_it_may_be_is_a_dead_letter_with_its_origin() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let mut sent = with("t", "its id", |system| {
        system.tag = Some("a".to_owned());
        system.keys = vec!["k".to_owned()];
    });
    sent.user_properties = [("p".to_owned(), "v".to_owned())].into();
    assert_eq!(server.code_of(vec![sent.clone()]).await, Code::Ok);
    server.create_group("g", attempts(17, &[1])).await;
    let consumer = Consumer::new(&server, "g", "t");
    for expected in 1..=17 {
        let got = consumer.get(1).await;
        assert_eq!(attempt(&got[0]), expected);
        assert_eq!(consumer.hold(handle(&got[0]), 0).await.0, Code::Ok);
    }
    consumer.gets_nothing().await;
    for reader in ["g", "reader"] {
        let dead = Consumer::new(&server, reader, "%DLQ%g");
        until_there(&dead).await;
        let got = dead.get(1).await;
        let of = system(&got[0]);
        let origin = of.dead_letter_queue.as_ref().unwrap();
        assert_eq!((origin.topic.as_str(), origin.message_id.as_str()), ("t", "its id"));
        assert_eq!((of.tag.as_deref(), &of.keys[..]), (Some("a"), &["k".to_owned()][..]));
        assert_eq!((&got[0].body, &got[0].user_properties), (&sent.body, &sent.user_properties));
        assert_eq!((attempt(&got[0]), got[0].topic.as_ref().unwrap().name.as_str()), (1, "%DLQ%g"));
        dead.finish(&got).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_given_up_is_a_dead_letter_at_once_and_the_same_again_is_fine() {
    let server = with_messages(&["one", "two"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(2).await;
    assert_eq!(consumer.forward(handle(&got[0])).await, Code::Ok);
    assert_eq!(consumer.forward(handle(&got[0])).await, Code::Ok);
    assert_eq!(consumer.ack(&[handle(&got[0])]).await.0, Code::Ok, "it is finished by this lease");
    let dead = Consumer::new(&server, "reader", "%DLQ%g");
    assert_eq!(bodies(&dead.get(1).await), ["one"]);
    dead.gets_nothing().await;
    consumer.finish(&got[1..]).await;
    consumer.gets_nothing().await;
    // Nobody sends there but the broker.
    assert_eq!(server.code_of(vec![message("%DLQ%g", "1")]).await, Code::IllegalTopic);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_keeps_how_often_its_consumer_says_that_it_tried_and_how_often_it_was_delivered()
 {
    let server = with_messages(&["17", "none", "negative", "too many"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(4).await;
    assert_eq!(bodies(&got), ["17", "none", "negative", "too many"]);
    for (message, tries) in got.iter().zip([17, 0, -1, i32::MAX]) {
        assert_eq!(consumer.forward_after(tries, handle(message)).await, Code::Ok);
    }
    let mut client = proto::broker_client::BrokerClient::new(server.channel.clone());
    let asked = proto::ReceiveRequest {
        group: "g".to_owned(),
        topic: "%DLQ%g".to_owned(),
        max_messages: 9,
        wait_ms: 5_000,
        ..proto::ReceiveRequest::default()
    };
    let mut told = Vec::new();
    while told.len() < 4 {
        let messages = client.receive(asked.clone()).await.unwrap().into_inner().messages;
        assert!(!messages.is_empty(), "{told:?}");
        let letters = messages.iter().map(|message| message.dead_letter.as_ref().unwrap());
        told.extend(letters.map(|letter| (letter.told_tries, letter.deliveries)));
    }
    assert_eq!(told, [(17, 1), (0, 1), (0, 1), (1_000_000, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_disabled_may_finish_what_it_has() {
    let server = with_messages(&["one"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(1).await;
    let config = Some(GroupConfig { enabled: Some(false), ..GroupConfig::default() });
    let update = mainstem::proto::UpdateGroupRequest { name: "g".to_owned(), config };
    server.admin.clone().update_group(update).await.unwrap();
    assert_eq!(consumer.look(consumer.asks()).await.code, Code::Forbidden);
    let (code, handle) = consumer.hold(handle(&got[0]), 60).await;
    assert_eq!(code, Code::Ok);
    assert_eq!(consumer.ack(&[&handle]).await.0, Code::Ok);
}
