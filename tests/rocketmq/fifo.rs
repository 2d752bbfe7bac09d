//! Ordered groups: one message of a message group after the other.

use std::collections::{BTreeMap, BTreeSet};

use mainstem::proto::rocketmq::{Code, Message, ReceiveMessageRequest};
use mainstem::proto::{GroupConfig, TopicType};

use crate::consumer::{Consumer, attempt, bodies, body, handle, system};
use crate::support::{Server, with};

/// A server with a topic of so many queues, messages of message groups in it, and an ordered group `g`.
async fn with_messages(queues: u32, messages: &[(&str, &str)]) -> Server {
    let server = Server::start().await;
    server.create("t", TopicType::Mixed, queues).await;
    let ordered = GroupConfig { ordered: Some(true), ..GroupConfig::default() };
    server.create_group("g", ordered).await;
    for (group, body) in messages {
        assert_eq!(server.code_of(vec![of_group(group, body)]).await, Code::Ok);
    }
    // A receive gets what is in the queues when it looks: then all of it is.
    Consumer::new(&server, "reader", "t").get(messages.len()).await;
    server
}

fn of_group(group: &str, body: &str) -> Message {
    let mut one = with("t", body, |system| {
        system.message_group = Some(group.to_owned()).filter(|group| !group.is_empty());
    });
    one.body = body.to_owned().into();
    one
}

fn tries(consumer: &Consumer<'_>, attempt: &str) -> ReceiveMessageRequest {
    ReceiveMessageRequest { attempt_id: Some(attempt.to_owned()), ..consumer.asks() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_group_waits_until_all_of_it_that_was_given_is_finished_and_others_do_not() {
    let all = [("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3")];
    let server = with_messages(1, &all).await;
    let (consumer, other) = (Consumer::new(&server, "g", "t"), Consumer::new(&server, "g", "t"));
    let two = ReceiveMessageRequest { batch_size: 2, ..tries(&consumer, "one") };
    let first = consumer.receive(two).await.messages;
    assert_eq!(bodies(&first), ["a1", "a2"]);
    // Of the same queue, and behind.
    let second = other.receive(tries(&other, "two")).await;
    assert_eq!(bodies(&second.messages), ["b1"]);
    assert_eq!(other.look(tries(&other, "three")).await.code, Code::MessageNotFound);
    consumer.finish(&first[..1]).await;
    assert_eq!(other.look(tries(&other, "three")).await.code, Code::MessageNotFound);
    consumer.finish(&first[1..]).await;
    assert_eq!(bodies(&other.receive(tries(&other, "three")).await.messages), ["a3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_try_gets_the_same_messages_with_new_handles_and_the_same_attempts() {
    for queues in [1, 4] {
        let server = with_messages(queues, &[("a", "a1"), ("a", "a2")]).await;
        for group in ["g", "plain"] {
            let consumer = Consumer::new(&server, group, "t");
            let first = consumer.receive(tries(&consumer, "a try")).await.messages;
            assert_eq!(bodies(&first), ["a1", "a2"], "{group}");
            let other = consumer.look(tries(&consumer, "another")).await;
            assert_eq!(other.code, Code::MessageNotFound, "{group}");
            let again = consumer.receive(tries(&consumer, "a try")).await.messages;
            assert_eq!(bodies(&again), ["a1", "a2"], "{group}");
            for (first, again) in first.iter().zip(&again) {
                assert_eq!((attempt(first), attempt(again)), (1, 1));
                assert_ne!(handle(first), handle(again));
                assert_eq!(consumer.ack(&[handle(first)]).await.0, Code::InvalidReceiptHandle);
            }
            consumer.finish(&again).await;
            let after = consumer.look(tries(&consumer, "a try")).await;
            assert_eq!(after.code, Code::MessageNotFound, "{group}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_ack_of_the_first_it_goes_on_at_the_second_which_alone_counts_an_attempt() {
    let server = with_messages(1, &[("a", "a1"), ("a", "a2"), ("a", "a3")]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let two = ReceiveMessageRequest { batch_size: 2, ..tries(&consumer, "one") };
    let first = consumer.receive(two).await.messages;
    consumer.finish(&first[..1]).await;
    assert_eq!(consumer.hold(handle(&first[1]), 0).await.0, Code::Ok);
    let again = consumer.receive(tries(&consumer, "two")).await.messages;
    let told: Vec<_> = again.iter().map(|one| (body(one), attempt(one))).collect();
    assert_eq!(told, [("a2", 2), ("a3", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_group_goes_on_behind_a_dead_letter_and_waits_for_one_that_was_put_off() {
    let server = with_messages(1, &[("a", "a1"), ("a", "a2"), ("a", "a3")]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let one = || ReceiveMessageRequest { batch_size: 1, ..consumer.asks() };
    let first = consumer.get_by(1, one()).await;
    let (code, handle_of_first) = consumer.hold(handle(&first[0]), 60).await;
    assert_eq!(code, Code::Ok);
    consumer.gets_nothing().await;
    // As clients do with what failed as often as it may.
    assert_eq!(consumer.forward(&handle_of_first).await, Code::Ok);
    let second = consumer.get_by(1, one()).await;
    assert_eq!(bodies(&second), ["a2"]);
    let dead = Consumer::new(&server, "of-the-dead", "%DLQ%g");
    assert_eq!(bodies(&dead.get(1).await), ["a1"]);
    consumer.finish(&second).await;
    assert_eq!(bodies(&consumer.get_by(1, one()).await), ["a3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_filter_does_not_want_holds_nobody_up() {
    let server = with_messages(1, &[]).await;
    let tagged = |tag: &str, body: &str| {
        let mut one = of_group("a", body);
        one.system_properties.as_mut().unwrap().tag = Some(tag.to_owned());
        one
    };
    for one in [tagged("no", "a1"), tagged("yes", "a2"), tagged("no", "a3"), tagged("yes", "a4")] {
        assert_eq!(server.code_of(vec![one]).await, Code::Ok);
    }
    Consumer::new(&server, "reader", "t").get(4).await;
    let consumer = Consumer::new(&server, "g", "t");
    let asked = ReceiveMessageRequest {
        filter_expression: crate::consumer::tags("yes"),
        ..consumer.asks()
    };
    let got = consumer.get_by(2, asked).await;
    assert_eq!(bodies(&got), ["a2", "a4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_without_a_message_group_keep_the_order_of_their_queue() {
    let server = with_messages(1, &[("", "1"), ("", "2"), ("a", "a1"), ("", "3")]).await;
    let consumer = Consumer::new(&server, "g", "t");
    let one = || ReceiveMessageRequest { batch_size: 1, ..consumer.asks() };
    let first = consumer.get_by(1, one()).await;
    assert_eq!(bodies(&first), ["1"]);
    assert_eq!(bodies(&consumer.get_by(1, one()).await), ["a1"]);
    consumer.gets_nothing().await;
    consumer.finish(&first).await;
    let rest = consumer.get(2).await;
    assert_eq!(bodies(&rest), ["2", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_consumer_that_names_a_queue_is_served_from_all_and_keeps_the_order() {
    let groups = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let sent: Vec<_> =
        [1, 2].iter().flat_map(|n| groups.map(|group| (group, format!("{group}{n}")))).collect();
    let sent: Vec<_> = sent.iter().map(|(group, body)| (*group, body.as_str())).collect();
    let server = with_messages(4, &sent).await;
    let consumer = Consumer::new(&server, "g", "t");
    let mut asked = ReceiveMessageRequest { batch_size: 1, ..consumer.asks() };
    asked.message_queue.as_mut().unwrap().id = 3;
    let (mut queues, mut got) = (BTreeSet::new(), BTreeMap::<_, Vec<_>>::new());
    for _ in &sent {
        let one = consumer.get_by(1, asked.clone()).await;
        queues.insert(system(&one[0]).queue_id);
        got.entry(body(&one[0])[..1].to_owned()).or_default().push(body(&one[0])[1..].to_owned());
        consumer.finish(&one).await;
    }
    assert!(queues.len() > 1, "{queues:?}");
    assert_eq!(got.len(), groups.len());
    assert!(got.values().all(|of_group| of_group == &["1", "2"]), "{got:?}");
}
