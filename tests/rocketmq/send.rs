//! SendMessage.

use bytes::Bytes;
use mainstem::proto::query_messages_request::{ByProducerId, Selector};
use mainstem::proto::rocketmq::{
    Code, Digest, DigestType, Encoding, Message, MessageType, Resource, SystemProperties,
};
use mainstem::proto::{self, PullRequest, QueryMessagesRequest, TopicType};
use prost::Message as _;

use crate::support::{Server, code, codes, message, request, resource, with};

/// What is stored in a queue from 0 on, each record a batch.
async fn stored(server: &Server, topic: &str, queue: u32) -> Vec<proto::Batch> {
    let mut client = proto::broker_client::BrokerClient::new(server.channel.clone());
    let (mut offset, mut batches) = (0, Vec::new());
    // Until there is nothing: only such an answer waits for what was acknowledged and is not dispatched.
    loop {
        let topic = topic.to_owned();
        let asked = PullRequest { topic, queue, offset, ..PullRequest::default() };
        let answer = client.pull(asked).await.unwrap().into_inner();
        if answer.records.is_empty() {
            return batches;
        }
        let decode = |record: proto::Record| proto::Batch::decode(record.batch).unwrap();
        batches.extend(answer.records.into_iter().map(decode));
        offset = answer.next_offset;
    }
}

/// A message with properties, of so many and so long ones.
fn with_properties(properties: &[(&str, &str)]) -> Message {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Message { user_properties: properties.iter().map(owned).collect(), ..message("t", "1") }
}

fn with_body(len: usize) -> Message {
    Message { body: vec![7; len].into(), ..message("t", "1") }
}

fn in_seconds(seconds: i64) -> Option<prost_types::Timestamp> {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    Some(prost_types::Timestamp { seconds: i64::try_from(now).unwrap() + seconds, nanos: 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_message_says_is_stored_with_it() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let mut sent = with("t", "any id, of any length", |system| {
        system.tag = Some("a tag".to_owned());
        system.keys = vec!["one key".to_owned(), String::new(), "another".to_owned()];
        system.body_encoding = Encoding::Gzip.into();
        system.trace_context = Some("00-abc-def-01".to_owned());
        system.born_timestamp = Some(prost_types::Timestamp { seconds: 5, nanos: 7_999_999 });
        system.queue_id = 3;
    });
    sent.user_properties =
        [("region", "eu"), ("empty", "")].map(|(k, v)| (k.into(), v.into())).into();
    sent.body = Bytes::from_static(b"\x1f\x8b not really compressed");
    let answer = server.send(vec![sent.clone()]).await;
    assert_eq!(code(&answer.status), Code::Ok);
    let [entry] = &answer.entries[..] else { panic!("{answer:?}") };
    assert_eq!(code(&entry.status), Code::Ok);
    assert_eq!((entry.message_id.as_str(), entry.offset), ("any id, of any length", 0));
    assert_eq!((entry.transaction_id.as_str(), entry.recall_handle.as_str()), ("", ""));

    let [batch] = &stored(&server, "t", 0).await[..] else { panic!("one record") };
    assert_eq!(batch.bodies, sent.body);
    let [meta] = &batch.metas[..] else { panic!("one message") };
    assert_eq!(meta.keys, ["one key", "another"]);
    assert_eq!((meta.tag.as_str(), meta.id.as_str()), ("a tag", "any id, of any length"));
    assert_eq!((meta.born_ms, meta.encoding), (5_007, 1));
    assert_eq!(meta.trace_context, "00-abc-def-01");
    assert_eq!(meta.born_host, "producer.example");
    let mut properties: Vec<_> =
        meta.properties.iter().map(|p| (p.key.as_str(), p.value.as_str())).collect();
    properties.sort_unstable();
    assert_eq!(properties, [("empty", ""), ("region", "eu")]);

    let selector = Selector::ProducerId(ByProducerId {
        topic: "t".to_owned(),
        id: "any id, of any length".to_owned(),
    });
    let asked =
        QueryMessagesRequest { selector: Some(selector), ..QueryMessagesRequest::default() };
    let mut client = proto::broker_client::BrokerClient::new(server.channel.clone());
    assert_eq!(client.query_messages(asked).await.unwrap().into_inner().messages.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_say_where_it_was_made_was_made_by_its_sender() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    assert_eq!(
        server.code_of(vec![with("t", "1", |system| system.born_host.clear())]).await,
        Code::Ok
    );
    assert_eq!(stored(&server, "t", 0).await[0].metas[0].born_host, "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_has_its_code() {
    let server = Server::start().await;
    let long = "x".repeat(16_385 - "key".len());
    let many: Vec<_> = (0..129).map(|n| (format!("k{n}"), String::new())).collect();
    let many: Vec<_> = many.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let tagged = |tag: &str| with("t", "1", |system| system.tag = Some(tag.to_owned()));
    let keyed = |key: &str| with("t", "1", |system| system.keys = vec![key.to_owned()]);
    let grouped =
        |group: &str| with("t", "1", |system| system.message_group = Some(group.to_owned()));
    let lite = |name: &str| with("t", "1", |system| system.lite_topic = Some(name.to_owned()));
    for (case, messages, expected) in [
        ("no message", vec![], Code::MessageCorrupted),
        ("no topic", vec![Message { topic: None, ..message("t", "1") }], Code::IllegalTopic),
        ("a dot in the topic", vec![message("a.b", "1")], Code::IllegalTopic),
        ("a long topic", vec![message(&"x".repeat(128), "1")], Code::IllegalTopic),
        ("a topic of the system", vec![message("TBW102", "1")], Code::IllegalTopic),
        ("two topics", vec![message("t", "1"), message("u", "2")], Code::MessageCorrupted),
        ("an empty body", vec![with_body(0)], Code::MessageBodyEmpty),
        ("a body above 4 MiB", vec![with_body((4 << 20) + 1)], Code::MessageBodyTooLarge),
        ("129 properties", vec![with_properties(&many)], Code::MessagePropertiesTooLarge),
        (
            "a reserved key",
            vec![with_properties(&[("UNIQ_KEY", "")])],
            Code::IllegalMessagePropertyKey,
        ),
        (
            "a line in a value",
            vec![with_properties(&[("k", "\n")])],
            Code::IllegalMessagePropertyKey,
        ),
        (
            "a C1 control",
            vec![with_properties(&[("k\u{85}", "")])],
            Code::IllegalMessagePropertyKey,
        ),
        ("a blank tag", vec![tagged(" ")], Code::IllegalMessageTag),
        ("a bar in the tag", vec![tagged("a|b")], Code::IllegalMessageTag),
        ("a tab in the tag", vec![tagged("a\tb")], Code::IllegalMessageTag),
        ("a blank key", vec![keyed(" ")], Code::IllegalMessageKey),
        ("a zero in the key", vec![keyed("a\0")], Code::IllegalMessageKey),
        ("16 KiB and 1", vec![with_properties(&[("key", &long)])], Code::MessagePropertiesTooLarge),
        ("no id", vec![message("t", "")], Code::IllegalMessageId),
        ("a blank id", vec![message("t", " ")], Code::IllegalMessageId),
        (
            "33 keys",
            vec![with("t", "1", |s| s.keys = vec!["k".to_owned(); 33])],
            Code::IllegalMessageKey,
        ),
        ("a key above 1 KiB", vec![keyed(&"x".repeat(1_025))], Code::IllegalMessageKey),
        ("a tag above 127 bytes", vec![tagged(&"x".repeat(128))], Code::IllegalMessageTag),
        ("an id above 256 bytes", vec![message("t", &"x".repeat(257))], Code::IllegalMessageId),
        ("a blank group", vec![grouped(" ")], Code::IllegalMessageGroup),
        ("a group of 64 bytes", vec![grouped(&"x".repeat(64))], Code::IllegalMessageGroup),
        ("a control in the group", vec![grouped("\u{7f}")], Code::IllegalMessageGroup),
        ("a blank lite topic", vec![lite("")], Code::IllegalLiteTopic),
        ("a dot in the lite topic", vec![lite("a.b")], Code::IllegalLiteTopic),
        ("a long lite topic", vec![lite(&"x".repeat(65))], Code::IllegalLiteTopic),
    ] {
        let answer = server.send(messages).await;
        assert_eq!((code(&answer.status), answer.entries), (expected, vec![]), "{case}");
    }
    for (case, sent) in [
        ("a body of 4 MiB", with_body(4 << 20)),
        ("128 properties", with_properties(&many[..128])),
        ("16 KiB", with_properties(&[("key", &long[1..])])),
        ("a key of the system that is not reserved", with_properties(&[("TRACE_CONTEXT", "x")])),
        ("reserved in another case", with_properties(&[("keys", "x")])),
        ("an empty tag", tagged("")),
        ("an empty key", keyed("")),
        ("an empty group", grouped("")),
        ("a group of 63 bytes", grouped(&"x".repeat(63))),
        ("an id of 256 bytes", message("t", &"x".repeat(256))),
    ] {
        assert_eq!(server.code_of(vec![sent]).await, Code::Ok, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_delivery_and_of_transactions_have_their_bounds() {
    let server = Server::start().await;
    let checked_after = |seconds| {
        with("t", "1", |system| {
            system.message_type = MessageType::Transaction.into();
            system.orphaned_transaction_recovery_duration =
                Some(prost_types::Duration { seconds, nanos: 0 });
        })
    };
    let delivered_in =
        |seconds| with("t", "1", |system| system.delivery_timestamp = in_seconds(seconds));
    let days = 24 * 60 * 60;
    for (sent, expected) in [
        (checked_after(3_601), Code::BadRequest),
        (delivered_in(40 * days + 60), Code::IllegalDeliveryTime),
    ] {
        let answer = server.send(vec![sent]).await;
        assert_eq!((code(&answer.status), answer.entries), (expected, vec![]));
    }
    for sent in [checked_after(3_600), delivered_in(40 * days - 60)] {
        assert_eq!(codes(&server.send(vec![sent]).await), [Code::NotImplemented]);
    }
}

/// Each case breaks its rule and all behind it.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_that_is_broken_answers_for_the_request() {
    let server = Server::with(&["broker.auto_create_topics=false"]).await;
    server.create("fifo", TopicType::Fifo, 1).await;
    let mut wrong = message("a.b", "");
    wrong.body = Bytes::new();
    wrong.user_properties = [("KEYS".to_owned(), String::new())].into();
    let system = wrong.system_properties.as_mut().unwrap();
    let digest = Digest { r#type: DigestType::Md5.into(), checksum: "00".to_owned() };
    system.body_digest = Some(digest);
    system.tag = Some(" ".to_owned());
    system.keys = vec!["x".repeat(16_384), " ".to_owned()];
    system.delivery_timestamp = in_seconds(1 << 40);
    system.message_group = Some(" ".to_owned());
    system.lite_topic = Some(" ".to_owned());
    fn system_of(message: &mut Message) -> &mut SystemProperties {
        message.system_properties.as_mut().unwrap()
    }
    type Repair = fn(&mut Message);
    let repairs: &[(Code, Repair)] = &[
        (Code::IllegalTopic, |m| m.topic = Some(resource("unknown"))),
        (Code::MessageBodyEmpty, |m| m.body = vec![0; (4 << 20) + 1].into()),
        (Code::MessageBodyTooLarge, |m| m.body = "body".into()),
        (Code::MessageCorrupted, |m| system_of(m).body_digest = None),
        (Code::IllegalMessagePropertyKey, |m| m.user_properties.clear()),
        (Code::IllegalMessageTag, |m| system_of(m).tag = None),
        (Code::IllegalMessageKey, |m| system_of(m).keys[1] = "x".to_owned()),
        (Code::MessagePropertiesTooLarge, |m| system_of(m).keys.clear()),
        (Code::IllegalMessageId, |m| system_of(m).message_id = "1".to_owned()),
        (Code::IllegalDeliveryTime, |m| system_of(m).delivery_timestamp = None),
        (Code::IllegalMessageGroup, |m| system_of(m).message_group = None),
        (Code::IllegalLiteTopic, |m| system_of(m).lite_topic = None),
        (Code::TopicNotFound, |m| m.topic = Some(resource("fifo"))),
        (Code::MessagePropertyConflictWithType, |m| {
            system_of(m).message_group = Some("g".to_owned());
        }),
        (Code::Ok, |_| ()),
    ];
    for (expected, repair) in repairs {
        assert_eq!(server.code_of(vec![wrong.clone()]).await, *expected);
        repair(&mut wrong);
    }
}

/// Those that no other case has before a rule behind them, and those of two messages.
#[tokio::test(flavor = "multi_thread")]
async fn rules_about_a_request_come_before_those_about_a_message_and_these_message_by_message() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let many: Vec<_> = (0..129).map(|n| (format!("k{n}"), String::new())).collect();
    let mut too_many = with_body(0);
    too_many.user_properties = many.into_iter().chain([("KEYS".into(), String::new())]).collect();
    let empty = too_many.clone();
    too_many.body = "body".into();
    let mut reserved = too_many.clone();
    reserved.user_properties.retain(|key, _| key == "KEYS");
    let recovered_in = |seconds, id: &str| {
        with("t", id, |system| {
            system.message_type = MessageType::Transaction.into();
            system.delivery_timestamp = in_seconds(41 * 24 * 60 * 60);
            system.orphaned_transaction_recovery_duration =
                Some(prost_types::Duration { seconds, nanos: 0 });
            system.message_group = Some(" ".to_owned());
        })
    };
    let late = with("t", "1", |system| system.lite_topic = Some(" ".to_owned()));
    for (case, messages, expected) in [
        ("none", vec![], Code::MessageCorrupted),
        ("the first topic", vec![message("a.b", "1"), message("u", "2")], Code::IllegalTopic),
        ("two topics", vec![with_body(0), message("u", "")], Code::MessageCorrupted),
        ("the body before the properties", vec![empty], Code::MessageBodyEmpty),
        ("how many before which", vec![too_many], Code::MessagePropertiesTooLarge),
        ("which", vec![reserved], Code::IllegalMessagePropertyKey),
        ("the id before the recovery", vec![recovered_in(3_601, "")], Code::IllegalMessageId),
        ("the recovery before the delivery", vec![recovered_in(3_601, "1")], Code::BadRequest),
        ("the delivery", vec![recovered_in(3_600, "1")], Code::IllegalDeliveryTime),
        ("the first message", vec![late.clone(), with_body(0)], Code::IllegalLiteTopic),
        ("the first message", vec![with_body(0), late], Code::MessageBodyEmpty),
    ] {
        assert_eq!(server.code_of(messages).await, expected, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_the_one_of_its_digest_is_refused() {
    let server = Server::start().await;
    let digested = |kind: DigestType, checksum: &str| {
        let digest = Digest { r#type: kind.into(), checksum: checksum.to_owned() };
        let mut sent = with("t", "1", |system| system.body_digest = Some(digest));
        sent.body = "abc".into();
        vec![sent]
    };
    // "abc" by zlib's crc32, RFC 1321 and FIPS 180-1.
    for (kind, checksum, expected) in [
        (DigestType::Crc32, "352441C2", Code::Ok),
        (DigestType::Crc32, "891568578", Code::Ok),
        (DigestType::Crc32, "352441C3", Code::MessageCorrupted),
        (DigestType::Md5, "900150983CD24FB0D6963F7D28E17F72", Code::Ok),
        (DigestType::Md5, "800150983CD24FB0D6963F7D28E17F72", Code::MessageCorrupted),
        (DigestType::Sha1, "A9993E364706816ABA3E25717850C26C9CD0D89D", Code::Ok),
        (DigestType::Sha1, "", Code::MessageCorrupted),
        (DigestType::Unspecified, "anything", Code::Ok),
    ] {
        let answer = server.code_of(digested(kind, checksum)).await;
        assert_eq!(answer, expected, "{kind:?} {checksum}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_5_mib_reaches_the_check_of_its_length() {
    let server = Server::start().await;
    assert_eq!(server.code_of(vec![with_body(5 << 20)]).await, Code::MessageBodyTooLarge);
    assert_eq!(server.code_of(vec![with_body(4_194_304)]).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_beyond_32_mib_is_refused_by_the_transport() {
    let server = Server::start().await;
    let messages = vec![with_body(4 << 20); 9];
    let asked = request(mainstem::proto::rocketmq::SendMessageRequest { messages });
    let error = server.calls.clone().send_message(asked).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_one_request_are_stored_one_by_one_in_their_order_or_not_at_all() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let three = ["1", "2", "3"].map(|id| message("t", id));
    let answer = server.send(three.to_vec()).await;
    assert_eq!(code(&answer.status), Code::Ok);
    let told: Vec<_> =
        answer.entries.iter().map(|entry| (entry.message_id.as_str(), entry.offset)).collect();
    assert_eq!(told, [("1", 0), ("2", 1), ("3", 2)]);
    assert_eq!(stored(&server, "t", 0).await.len(), 3, "a record for each");

    let answer = server.send(vec![message("t", "4"), message("t", " ")]).await;
    assert_eq!((code(&answer.status), answer.entries), (Code::IllegalMessageId, vec![]));
    assert_eq!(stored(&server, "t", 0).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_chooses_the_queue_whatever_the_client_says() {
    let server = Server::start().await;
    server.create("plain", TopicType::Normal, 4).await;
    for id in ["1", "2", "3", "4"] {
        let sent = with("plain", id, |system| system.queue_id = 2);
        assert_eq!(server.code_of(vec![sent]).await, Code::Ok);
    }
    for queue in 0..4 {
        assert_eq!(stored(&server, "plain", queue).await.len(), 1, "round robin: queue {queue}");
    }

    server.create("ordered", TopicType::Fifo, 8).await;
    // Both in one request and in two, and where Apache RocketMQ would put them: order-1 in queue 3, order-2 in 2.
    let of_group = |group: &str, id: &str, queue_id| {
        with("ordered", id, |system| {
            system.message_group = Some(group.to_owned());
            system.queue_id = queue_id;
        })
    };
    let answer = server.send(vec![of_group("order-1", "1", 0), of_group("order-2", "2", 0)]).await;
    assert_eq!(answer.entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [0, 0]);
    let answer = server.send(vec![of_group("order-1", "3", 5)]).await;
    assert_eq!(answer.entries[0].offset, 1);
    let ids = |batches: Vec<proto::Batch>| {
        batches.into_iter().map(|batch| batch.metas[0].id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(stored(&server, "ordered", 3).await), ["1", "3"]);
    assert_eq!(ids(stored(&server, "ordered", 2).await), ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_takes_messages_of_its_type_alone_and_a_mixed_one_all() {
    let server = Server::start().await;
    server.create("normal", TopicType::Normal, 1).await;
    server.create("fifo", TopicType::Fifo, 1).await;
    server.create("mixed", TopicType::Mixed, 1).await;
    let plain = |topic: &str| vec![message(topic, "1")];
    let ordered =
        |topic: &str| vec![with(topic, "1", |system| system.message_group = Some("g".to_owned()))];
    for (sent, expected) in [
        (plain("normal"), Code::Ok),
        (ordered("normal"), Code::MessagePropertyConflictWithType),
        (plain("fifo"), Code::MessagePropertyConflictWithType),
        (ordered("fifo"), Code::Ok),
        (plain("mixed"), Code::Ok),
        (ordered("mixed"), Code::Ok),
    ] {
        assert_eq!(server.code_of(sent).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_of_messages_that_are_not_there_yet_are_refused_in_their_entry() {
    let server = Server::start().await;
    server.create("normal", TopicType::Normal, 1).await;
    let kinds: [fn(&mut SystemProperties); 4] = [
        |system| system.delivery_timestamp = in_seconds(60),
        |system| system.message_type = MessageType::Transaction.into(),
        |system| system.priority = Some(0),
        |system| system.lite_topic = Some("lite".to_owned()),
    ];
    for kind in kinds {
        let answer = server.send(vec![message("mixed", "1"), with("mixed", "2", kind)]).await;
        assert_eq!(code(&answer.status), Code::MultipleResults);
        assert_eq!(codes(&answer), [Code::Ok, Code::NotImplemented]);
        assert_eq!(answer.entries[1].message_id, "");
        let alone = server.send(vec![with("mixed", "2", kind)]).await;
        assert_eq!(
            (code(&alone.status), codes(&alone)),
            (Code::NotImplemented, vec![Code::NotImplemented])
        );
        let refused = server.send(vec![with("normal", "2", kind)]).await;
        let told = (code(&refused.status), codes(&refused));
        assert_eq!(told, (Code::MessagePropertyConflictWithType, vec![]));
    }
    assert_eq!(stored(&server, "normal", 0).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_makes_an_unknown_topic_and_is_refused_where_none_is_made() {
    let server = Server::start().await;
    assert_eq!(server.code_of(vec![message("new", "1")]).await, Code::Ok);
    // Legal, but the broker's own.
    assert_eq!(server.code_of(vec![message("%DLQ%g", "1")]).await, Code::IllegalTopic);
    let server = Server::with(&["broker.auto_create_topics=false"]).await;
    assert_eq!(server.code_of(vec![message("new", "1")]).await, Code::TopicNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_cannot_be_written_is_forbidden_once_the_type_fits() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let config = proto::TopicConfig {
        access: proto::Access::ReadOnly.into(),
        ..proto::TopicConfig::default()
    };
    let name = "t".to_owned();
    let asked = proto::UpdateTopicRequest { name, config: Some(config), force: false };
    server.admin.clone().update_topic(asked).await.unwrap();
    assert_eq!(server.code_of(vec![message("t", "1")]).await, Code::Forbidden);
    let ordered = with("t", "1", |system| system.message_group = Some("g".to_owned()));
    assert_eq!(server.code_of(vec![ordered]).await, Code::MessagePropertyConflictWithType);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_belongs_to_the_topic_of_a_request_and_names_no_other_topic() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let of = |namespace: &str, id: &str| {
        let resource_namespace = namespace.to_owned();
        let topic = Some(Resource { resource_namespace, name: "t".to_owned() });
        Message { topic, ..message("t", id) }
    };
    assert_eq!(server.code_of(vec![of("a", "1"), of("b", "2")]).await, Code::MessageCorrupted);
    assert_eq!(server.code_of(vec![of("a", "1")]).await, Code::Ok);
    assert_eq!(server.code_of(vec![of("b", "2")]).await, Code::Ok);
    assert_eq!(stored(&server, "t", 0).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_id_is_stored_as_often_as_it_is_sent() {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    for offset in 0..2 {
        let answer = server.send(vec![message("t", "the same")]).await;
        assert_eq!((answer.entries[0].offset, code(&answer.status)), (offset, Code::Ok));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ok_of_a_sync_topic_is_on_the_disk() {
    let server = Server::with(&["store.flush=sync"]).await;
    assert_eq!(server.code_of(vec![message("t", "1"), message("t", "2")]).await, Code::Ok);
    let status = server.admin.clone().status(proto::StatusRequest {}).await.unwrap().into_inner();
    let at = status.watermarks.unwrap();
    assert_eq!(at.flushed, at.appended);
}
