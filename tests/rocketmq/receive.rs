//! ReceiveMessage: what is delivered, in which frames, and what a request must be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstem::client::Client;
use mainstem::format::batch::{self, NewMeta};
use mainstem::proto::position::{At, Edge};
use mainstem::proto::rocketmq::receive_message_response::Content;
use mainstem::proto::rocketmq::{
    self as v2, Address, AddressScheme, Code, DigestType, Encoding, Endpoints, Message,
    MessageType, QueryAssignmentRequest, ReceiveMessageRequest,
};
use mainstem::proto::{
    Access, DeleteTopicRequest, GroupConfig, ListGroupsRequest, Position, TopicConfig, TopicType,
    UpdateGroupRequest, UpdateTopicRequest,
};
use tonic::Request;

use crate::consumer::{
    Consumer, all_of, attempt, bodies, body, handle, seconds, sql, system, tags,
};
use crate::support::{Server, code, message, request, resource, soon, with};

/// Sends messages with these bodies, one by one.
pub(crate) async fn send(server: &Server, topic: &str, bodies: &[&str]) {
    for (at, body) in bodies.iter().enumerate() {
        let mut one = message(topic, &format!("id {at}"));
        one.body = Bytes::copy_from_slice(body.as_bytes());
        assert_eq!(server.code_of(vec![one]).await, Code::Ok);
    }
}

/// Messages with tags.
async fn send_tagged(server: &Server, topic: &str, all: &[(&str, Option<&str>)]) {
    let messages = all.iter().map(|(body, tag)| {
        let mut one = with(topic, body, |system| system.tag = tag.map(str::to_owned));
        one.body = Bytes::copy_from_slice(body.as_bytes());
        one
    });
    assert_eq!(server.code_of(messages.collect()).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_delivered_as_it_was_sent_with_all_that_clients_read() {
    let server = Server::start().await;
    server.create("t", TopicType::Mixed, 1).await;
    send(&server, "t", &["before"]).await;
    let mut sent = with("t", "any id", |system| {
        system.tag = Some("a tag".to_owned());
        system.keys = vec!["one key".to_owned(), "another".to_owned()];
        system.body_encoding = Encoding::Gzip.into();
        system.trace_context = Some("00-abc-def-01".to_owned());
        system.born_timestamp = Some(prost_types::Timestamp { seconds: 5, nanos: 7_000_000 });
        system.message_group = Some("orders of 用户42".to_owned());
    });
    sent.user_properties =
        [("region", "eu"), ("empty", ""), ("鍵", "値")].map(|(k, v)| (k.into(), v.into())).into();
    // As gzip writes it: nobody between producer and consumer looks into it.
    sent.body = Bytes::from_static(
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03KTH\xcaO\xa9T(\xc9H,QHT((\xcaO)MN-RH\xce\xcf-(J-.NM\x01\x00\xb8G\
          \xc0t!\x00\x00\x00",
    );
    assert_eq!(server.code_of(vec![sent.clone()]).await, Code::Ok);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();

    let consumer = Consumer::new(&server, "g", "t");
    let mut asked = consumer.asks();
    let named = asked.message_queue.as_mut().unwrap().topic.as_mut().unwrap();
    named.resource_namespace = "a namespace".to_owned();
    let got = consumer.get_by(2, asked).await;
    let [before, got] = &got[..] else { panic!("{got:?}") };
    assert_eq!((body(before), system(before).message_type()), ("before", MessageType::Normal));
    assert_eq!(got.topic.as_ref().unwrap().name, "t");
    assert_eq!(got.topic.as_ref().unwrap().resource_namespace, "a namespace");
    assert_eq!((&got.body, &got.user_properties), (&sent.body, &sent.user_properties));
    let of = system(got);
    assert_eq!((of.message_id.as_str(), of.tag.as_deref()), ("any id", Some("a tag")));
    assert_eq!(of.keys, ["one key", "another"]);
    let digest = of.body_digest.as_ref().unwrap();
    assert_eq!(digest.r#type(), DigestType::Md5);
    assert_eq!(digest.checksum, "210D350C8CD90B8EE8E5EC517A151BDF", "md5sum");
    assert_eq!((of.body_encoding(), of.message_type()), (Encoding::Gzip, MessageType::Fifo));
    assert_eq!(of.born_timestamp, sent.system_properties.as_ref().unwrap().born_timestamp);
    assert_eq!(of.born_host, "producer.example");
    let stored = of.store_timestamp.as_ref().unwrap();
    assert!(u64::try_from(stored.seconds).unwrap().abs_diff(now) < 60, "{stored:?}");
    assert_eq!(of.store_host, server.at.grpc.to_string());
    assert_eq!((of.queue_id, of.queue_offset), (0, Some(1)));
    assert_eq!((of.invisible_duration, of.delivery_attempt), (seconds(30), Some(1)));
    assert_eq!(of.message_group.as_deref(), Some("orders of 用户42"));
    assert_eq!(of.trace_context.as_deref(), Some("00-abc-def-01"));
    assert_eq!((of.dead_letter_queue.as_ref(), of.delivery_timestamp), (None, None));
    assert!((1..=256).contains(&handle(got).len()) && handle(got) != handle(before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_the_other_protocol_has_all_that_clients_would_miss() {
    let server = Server::start().await;
    server.create("t", TopicType::Mixed, 1).await;
    let client = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    client.send("t", None, batch::one(&NewMeta::default(), b"bare")).await.unwrap();
    let got = Consumer::new(&server, "g", "t").get(1).await;
    let of = system(&got[0]);
    assert!(!of.message_id.is_empty() && !handle(&got[0]).is_empty());
    assert_eq!(of.body_encoding(), Encoding::Identity);
    assert_eq!(of.body_digest.as_ref().unwrap().checksum.len(), 32);
    assert!(of.born_timestamp.as_ref().unwrap().seconds > 1_700_000_000);
    assert_eq!((of.tag.as_ref(), of.keys.len(), attempt(&got[0])), (None, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_poll_lasts_from_5_to_20_s_and_says_that_there_is_no_message() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 4).await;
    let consumer = Consumer::new(&server, "g", "t");
    let asked = ReceiveMessageRequest { long_polling_timeout: seconds(1), ..consumer.asks() };
    let began = Instant::now();
    let answer = all_of(consumer.frames(asked, Duration::from_secs(20)).await).await;
    assert_eq!((answer.code, answer.messages.len()), (Code::MessageNotFound, 0));
    assert!(began.elapsed() >= Duration::from_millis(4_900), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_before_there_is_a_message_and_one_that_comes_ends_the_wait() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 4).await;
    let consumer = Consumer::new(&server, "g", "t");
    let mut took = Vec::new();
    for _ in 0..5 {
        let frames = consumer.frames(consumer.asks(), Duration::from_secs(8)).await;
        send(&server, "t", &["late"]).await;
        let sent = Instant::now();
        let answer = all_of(frames).await;
        took.push(sent.elapsed());
        assert_eq!((answer.code, bodies(&answer.messages)), (Code::Ok, vec!["late"]));
        consumer.finish(&answer.messages).await;
    }
    // Ten times what is promised, and the best: it tells being woken from the end of the wait, which is one of 5 s.
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_is_answered_before_its_caller_stops_waiting() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let consumer = Consumer::new(&server, "g", "t");
    // A client whose user waits for a shorter time than a poll lasts.
    let hurried = consumer.look(consumer.asks()).await;
    assert_eq!(hurried.code, Code::MessageNotFound);
    // One that does not say how long to wait, and leaves less than a poll lasts.
    let silent = ReceiveMessageRequest { long_polling_timeout: None, ..consumer.asks() };
    assert_eq!(consumer.look(silent.clone()).await.code, Code::IllegalPollingTime);
    send(&server, "t", &["there"]).await;
    assert_eq!(consumer.look(silent).await.code, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_queue_is_named_all_are_served() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 8).await;
    let sent: Vec<_> = (0..24).map(|n| format!("{n:02}")).collect();
    send(&server, "t", &sent.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let consumer = Consumer::new(&server, "g", "t");
    // As clients of Node.js do, which know queue 0 alone.
    let mut asked = consumer.asks();
    asked.message_queue.as_mut().unwrap().broker =
        Some(v2::Broker { name: "another".to_owned(), id: 3, endpoints: None });
    let got = consumer.get_by(24, asked).await;
    let mut got: Vec<_> = got.iter().map(|one| (system(one).queue_id, body(one))).collect();
    got.sort_unstable();
    let queues: BTreeMap<i32, usize> = got.iter().fold(BTreeMap::new(), |mut all, (queue, _)| {
        *all.entry(*queue).or_default() += 1;
        all
    });
    assert_eq!(queues, (0..8).map(|queue| (queue, 3)).collect());
    let mut got: Vec<_> = got.iter().map(|(_, body)| *body).collect();
    got.sort_unstable();
    assert_eq!(got, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_gives_at_most_32_messages_and_as_many_as_it_asks_for() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let all: Vec<_> = (0..100).map(|n| message("t", &n.to_string())).collect();
    assert_eq!(server.code_of(all).await, Code::Ok);
    let consumer = Consumer::new(&server, "g", "t");
    for (asked, expected) in [(1_000, 32), (i32::MAX, 32), (5, 5), (1, 1)] {
        let asked = ReceiveMessageRequest { batch_size: asked, ..consumer.asks() };
        assert_eq!(consumer.receive(asked).await.messages.len(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_has_its_code_and_the_first_one_that_is_broken_answers() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    server.create("closed", TopicType::Normal, 1).await;
    let access = Access::WriteOnly.into();
    let closed = UpdateTopicRequest {
        name: "closed".to_owned(),
        config: Some(TopicConfig { access, ..TopicConfig::default() }),
        ..UpdateTopicRequest::default()
    };
    server.admin.clone().update_topic(closed).await.unwrap();
    let off = GroupConfig { enabled: Some(false), ..GroupConfig::default() };
    server.create_group("off", off).await;
    let consumer = Consumer::new(&server, "g", "t");

    type Break = fn(&mut ReceiveMessageRequest);
    let topic = |asked: &mut ReceiveMessageRequest, name: &str| {
        asked.message_queue.as_mut().unwrap().topic = Some(resource(name));
    };
    // In the order in which they are looked at, so that each one wins over all behind it.
    let broken: [(Break, Code); 12] = [
        (|asked| asked.message_queue = None, Code::IllegalTopic),
        (|asked| asked.group = Some(resource("a.b")), Code::IllegalConsumerGroup),
        (|asked| asked.invisible_duration = seconds(9), Code::IllegalInvisibleTime),
        (|asked| asked.invisible_duration = seconds(43_201), Code::IllegalInvisibleTime),
        (|asked| asked.invisible_duration = None, Code::IllegalInvisibleTime),
        (|asked| asked.filter_expression = sql(""), Code::IllegalFilterExpression),
        (|asked| asked.filter_expression = sql("a = "), Code::IllegalFilterExpression),
        (|asked| asked.batch_size = 0, Code::BadRequest),
        (|asked| asked.batch_size = i32::MIN, Code::BadRequest),
        (|asked| asked.attempt_id = Some("x".repeat(257)), Code::BadRequest),
        (
            |asked| asked.message_queue.as_mut().unwrap().topic = Some(resource("nowhere")),
            Code::TopicNotFound,
        ),
        (|asked| asked.group = Some(resource("off")), Code::Forbidden),
    ];
    for (at, (first, expected)) in broken.iter().enumerate() {
        let mut alone = consumer.asks();
        first(&mut alone);
        assert_eq!(consumer.look(alone).await.code, *expected, "rule {at} alone");
        for (later, (second, code)) in broken.iter().enumerate().skip(at + 1) {
            let mut both = consumer.asks();
            second(&mut both);
            first(&mut both);
            // Some of them change the same field: then there is only one rule broken.
            let answer = consumer.look(both).await.code;
            assert!(answer == *expected || answer == *code && later == at, "{at} and {later}");
        }
    }
    for name in ["a.b", "TBW102", &"x".repeat(128), "rmq_sys_x"] {
        let mut asked = consumer.asks();
        topic(&mut asked, name);
        assert_eq!(consumer.look(asked).await.code, Code::IllegalTopic, "{name}");
    }
    for name in ["", "CID_RMQ_SYS_x", &"x".repeat(121)] {
        let asked = ReceiveMessageRequest { group: Some(resource(name)), ..consumer.asks() };
        assert_eq!(consumer.look(asked).await.code, Code::IllegalConsumerGroup, "{name}");
    }
    let mut asked = consumer.asks();
    topic(&mut asked, "closed");
    assert_eq!(consumer.look(asked).await.code, Code::Forbidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_auto_renew_any_invisible_time_is_taken() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    send(&server, "t", &["one"]).await;
    let consumer = Consumer::new(&server, "g", "t");
    for invisible in [None, seconds(0), seconds(1), seconds(-1), seconds(i64::MAX)] {
        let asked = ReceiveMessageRequest {
            auto_renew: true,
            invisible_duration: invisible,
            ..consumer.asks()
        };
        let got = consumer.receive(asked).await;
        assert_eq!(got.code, Code::Ok, "{invisible:?}");
        assert_eq!(consumer.hold(handle(&got.messages[0]), 0).await.0, Code::Ok);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_that_names_no_client_or_is_no_request_is_refused_in_its_frames() {
    let server = Server::start().await;
    let unnamed = Request::new(ReceiveMessageRequest::default());
    let answer = server.calls.clone().receive_message(unnamed).await.unwrap().into_inner();
    assert_eq!(all_of(answer).await.code, Code::ClientIdRequired);

    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let path = "/apache.rocketmq.v2.MessagingService/ReceiveMessage";
    let codec =
        tonic_prost::ProstCodec::<v2::AckMessageEntry, v2::ReceiveMessageResponse>::default();
    // Its field 1 is a text where the service expects a message with fields.
    let message_id = "\u{7f}".to_owned();
    let asked = request(v2::AckMessageEntry { message_id, ..v2::AckMessageEntry::default() });
    let path = path.parse().unwrap();
    let answer = grpc.server_streaming(asked, path, codec).await.unwrap().into_inner();
    assert_eq!(all_of(answer).await.code, Code::BadRequest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_is_long_or_deep_is_refused_and_one_that_compares_text_with_numbers_is_not() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let mut one = message("t", "1");
    one.user_properties = [("a".to_owned(), "text".to_owned())].into();
    assert_eq!(server.code_of(vec![one]).await, Code::Ok);
    let consumer = Consumer::new(&server, "g", "t");
    let long = format!("a = '{}'", "x".repeat(1 << 20));
    let deep = format!("{}a = 1{}", "(".repeat(10_000), ")".repeat(10_000));
    let huge = format!("a = '{}'", "x".repeat(5 << 20));
    for (text, expected) in [
        (&long, Code::IllegalFilterExpression),
        (&deep, Code::IllegalFilterExpression),
        (&huge, Code::PayloadTooLarge),
    ] {
        let asked = ReceiveMessageRequest { filter_expression: sql(text), ..consumer.asks() };
        let answer = consumer.receive(asked).await;
        assert_eq!(answer.code, expected, "{}", &text[..20]);
        assert!(answer.text.len() < 1_000, "{} bytes of words", answer.text.len());
    }
    let tags_of =
        |text: &str| ReceiveMessageRequest { filter_expression: tags(text), ..consumer.asks() };
    let many = vec!["x"; 20_000].join("||");
    assert_eq!(consumer.look(tags_of(&many)).await.code, Code::IllegalFilterExpression);
    // Not known, so not delivered, and no error.
    let asked = ReceiveMessageRequest { filter_expression: sql("a > 3"), ..consumer.asks() };
    assert_eq!(consumer.look(asked).await.code, Code::MessageNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_compared_as_text_and_sql_by_properties() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let all = [
        ("1", Some("a")),
        ("2", Some("b")),
        ("3", Some("ab")),
        ("4", None),
        ("5", Some("Aa")),
        ("6", Some("BB")),
    ];
    send_tagged(&server, "t", &all).await;
    let bodies_of = async |group: &str, filter, count| {
        let consumer = Consumer::new(&server, group, "t");
        let asked = ReceiveMessageRequest { filter_expression: filter, ..consumer.asks() };
        let got = consumer.get_by(count, asked.clone()).await;
        assert_eq!(consumer.look(asked).await.code, Code::MessageNotFound);
        bodies(&got).iter().map(|body| (*body).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(bodies_of("two", tags(" a || b "), 2).await, ["1", "2"]);
    assert_eq!(bodies_of("hash", tags("Aa"), 1).await, ["5"], "`BB` has the same hash");
    assert_eq!(bodies_of("all", tags("*"), 6).await, ["1", "2", "3", "4", "5", "6"]);
    assert_eq!(bodies_of("nothing-said", tags(""), 6).await.len(), 6);
    assert_eq!(bodies_of("no-filter", None, 6).await.len(), 6);

    let mut messages: Vec<Message> = (0..4).map(|n| message("t", &n.to_string())).collect();
    for (n, one) in messages.iter_mut().enumerate() {
        one.body = n.to_string().into();
        one.user_properties = [("n".to_owned(), n.to_string())].into();
    }
    server.create("sql", TopicType::Normal, 1).await;
    for one in &mut messages {
        one.topic = Some(resource("sql"));
    }
    assert_eq!(server.code_of(messages).await, Code::Ok);
    let consumer = Consumer::new(&server, "g", "sql");
    let asked =
        ReceiveMessageRequest { filter_expression: sql("n BETWEEN 1 AND 2"), ..consumer.asks() };
    assert_eq!(bodies(&consumer.get_by(2, asked).await), ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_makes_its_group_and_says_that_there_is_none_where_groups_are_not_made() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    send(&server, "t", &["sent before the group was there"]).await;
    let consumer = Consumer::new(&server, "new", "t");
    assert_eq!(consumer.get(1).await.len(), 1);
    let groups = server.admin.clone().list_groups(ListGroupsRequest::default()).await.unwrap();
    let groups: Vec<_> = groups.into_inner().groups.into_iter().map(|group| group.name).collect();
    assert_eq!(groups, ["new"]);
    // A topic that is not there makes none.
    let nowhere = Consumer::new(&server, "newer", "nowhere");
    assert_eq!(nowhere.look(nowhere.asks()).await.code, Code::TopicNotFound);
    let groups = server.admin.clone().list_groups(ListGroupsRequest::default()).await.unwrap();
    assert_eq!(groups.into_inner().groups.len(), 1);

    let server = Server::with(&["broker.auto_create_groups=false"]).await;
    server.create("t", TopicType::Normal, 1).await;
    let consumer = Consumer::new(&server, "g", "t");
    assert_eq!(consumer.look(consumer.asks()).await.code, Code::ConsumerGroupNotFound);
    server.create_group("g", GroupConfig::default()).await;
    assert_eq!(consumer.look(consumer.asks()).await.code, Code::MessageNotFound);

    let server = Server::with(&["broker.auto_create_limit=1"]).await;
    server.create("t", TopicType::Normal, 1).await;
    for (group, expected) in
        [("a", Code::MessageNotFound), ("b", Code::TooManyRequests), ("a", Code::MessageNotFound)]
    {
        let consumer = Consumer::new(&server, group, "t");
        assert_eq!(consumer.look(consumer.asks()).await.code, expected, "{group}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_while_it_waits_takes_nothing_with_it() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let consumer = Consumer::new(&server, "g", "t");
    for _ in 0..20 {
        // Its headers are there, so it is being served.
        drop(consumer.frames(consumer.asks(), Duration::from_secs(8)).await);
    }
    let waiting = consumer.frames(consumer.asks(), Duration::from_secs(8)).await;
    send(&server, "t", &["one"]).await;
    let answer = all_of(waiting).await;
    assert_eq!(bodies(&answer.messages), ["one"]);
    assert_eq!(attempt(&answer.messages[0]), 1, "nobody got it before");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_that_went_away_was_not_sent_is_delivered_again_at_once_and_not_counted() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    // Together far more than a connection takes before its client reads.
    let large =
        |n: usize| Message { body: vec![7; 1 << 20].into(), ..message("t", &n.to_string()) };
    for n in 0..3 {
        assert_eq!(server.code_of(vec![large(n)]).await, Code::Ok);
    }
    let consumer = Consumer::new(&server, "g", "t");
    let mut frames = consumer.frames(consumer.asks(), Duration::from_secs(8)).await;
    let first = soon(frames.message()).await.unwrap().unwrap();
    assert!(matches!(first.content, Some(Content::Status(_))), "{first:?}");
    drop(frames);
    // At least the last one never left; whatever did, comes again when its lease is over.
    let again = consumer.receive(consumer.asks()).await;
    assert_eq!(again.code, Code::Ok);
    for one in &again.messages {
        assert_eq!(attempt(one), 1, "{}", system(one).message_id);
    }
    assert_eq!(system(again.messages.last().unwrap()).message_id, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_push_consumer_that_went_away_in_an_answer_all_of_it_is_delivered_again() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let large =
        |n: usize| Message { body: vec![7; 1 << 20].into(), ..message("t", &n.to_string()) };
    for n in 0..3 {
        assert_eq!(server.code_of(vec![large(n)]).await, Code::Ok);
    }
    let consumer = Consumer::new(&server, "g", "t");
    let asked = ReceiveMessageRequest { auto_renew: true, ..consumer.asks() };
    let mut frames = consumer.frames(asked, Duration::from_secs(8)).await;
    let first = soon(frames.message()).await.unwrap().unwrap();
    assert!(matches!(first.content, Some(Content::Status(_))), "{first:?}");
    drop(frames);
    let mut again = Vec::new();
    while again.len() < 3 {
        let answer = consumer.receive(consumer.asks()).await;
        assert_eq!(answer.code, Code::Ok);
        again.extend(answer.messages);
    }
    let mut ids: Vec<_> = again.iter().map(|one| system(one).message_id.clone()).collect();
    ids.sort();
    assert_eq!(ids, ["0", "1", "2"]);
    assert!(again.iter().all(|one| attempt(one) == 1), "none of them counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_receive_ends_with_what_happens_to_its_topic_its_group_and_the_broker() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let consumer = Consumer::new(&server, "g", "t");
    let parked = async || consumer.frames(consumer.asks(), Duration::from_secs(8)).await;
    let disabled = parked().await;
    // The group is there once the receive has made it.
    while server
        .admin
        .clone()
        .list_groups(ListGroupsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .groups
        .is_empty()
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let set = async |enabled| {
        let config = Some(GroupConfig { enabled: Some(enabled), ..GroupConfig::default() });
        let request = UpdateGroupRequest { name: "g".to_owned(), config };
        server.admin.clone().update_group(request).await.unwrap();
    };
    set(false).await;
    assert_eq!(all_of(disabled).await.code, Code::Forbidden);
    set(true).await;
    let topicless = parked().await;
    let delete = DeleteTopicRequest { name: "t".to_owned() };
    server.admin.clone().delete_topic(delete).await.unwrap();
    assert_eq!(all_of(topicless).await.code, Code::TopicNotFound);
    server.create("t", TopicType::Normal, 1).await;
    let stopped = parked().await;
    let answer = tokio::spawn(all_of(stopped));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let calls = server.calls.clone();
    server.stop().await;
    drop(calls);
    assert_eq!(answer.await.unwrap().code, Code::MessageNotFound);
}

/// Of two that come there is a place for one, whoever it is.
#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_place_to_wait_in_is_told_to_pause_and_leaves_nothing_behind() {
    let server = Server::with(&["broker.max_waiters=1"]).await;
    server.create("t", TopicType::Normal, 1).await;
    let consumer = Consumer::new(&server, "g", "t");
    let asked = ReceiveMessageRequest { long_polling_timeout: seconds(20), ..consumer.asks() };
    let frames = async || consumer.frames(asked.clone(), Duration::from_secs(25)).await;
    let mut waits = tokio::task::JoinSet::new();
    for body in ["first", "second"] {
        for _ in 0..2 {
            waits.spawn(all_of(frames().await));
        }
        let refused = soon(waits.join_next()).await.unwrap().unwrap();
        assert_eq!((refused.code, refused.messages.len()), (Code::TooManyRequests, 0));
        // However often somebody tries, the one who waits keeps his place.
        for _ in 0..3 {
            let refused = all_of(frames().await).await;
            assert_eq!(refused.code, Code::TooManyRequests, "{refused:?}");
        }
        send(&server, "t", &[body]).await;
        let answer = soon(waits.join_next()).await.unwrap().unwrap();
        assert_eq!(answer.code, Code::Ok);
        assert_eq!(bodies(&answer.messages), [body]);
        assert_eq!(attempt(&answer.messages[0]), 1, "nobody had it before");
        consumer.finish(&answer.messages).await;
    }
    consumer.gets_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_nobody_knows_since_a_restart_receive_as_before() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    send(&server, "t", &["one"]).await;
    let consumer = Consumer { id: "nobody@1@1@x", ..Consumer::new(&server, "g", "t") };
    let got = consumer.get(1).await;
    consumer.finish(&got).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_begins_where_it_says_when_a_consumer_subscribes_or_asks_for_its_queues() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let latest = Position { at: Some(At::Edge(Edge::Latest.into())) };
    let config = GroupConfig { initial_position: Some(latest), ..GroupConfig::default() };
    for group in ["told", "assigned", "late"] {
        server.create_group(group, config.clone()).await;
    }
    send(&server, "t", &["before"]).await;
    let mut stream = server.telemetry("told", "JAVA").await;
    stream.ask(crate::telemetry::consumer("told", &["t"])).await;
    let asked = QueryAssignmentRequest {
        topic: Some(resource("t")),
        group: Some(resource("assigned")),
        endpoints: Some(Endpoints {
            scheme: AddressScheme::IPv4.into(),
            addresses: vec![Address { host: "10.1.1.2".to_owned(), port: 7001 }],
        }),
    };
    let answer = server.calls.clone().query_assignment(request(asked)).await.unwrap().into_inner();
    assert_eq!(code(&answer.status), Code::Ok);
    send(&server, "t", &["behind"]).await;
    for group in ["told", "assigned"] {
        let got = Consumer::new(&server, group, "t").get(1).await;
        assert_eq!(bodies(&got), ["behind"], "{group}");
    }
    Consumer::new(&server, "late", "t").gets_nothing().await;
}
