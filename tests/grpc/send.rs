//! Sends and their limits.

use mainstem::format::batch::NewMeta;
use mainstem::proto::{self, TopicConfig, TopicType};
use tonic::Code;

use crate::support::{
    Server, batch, batch_with, detail, from, honest, refusal, refused, soon, to, wire,
};

fn of_type(kind: TopicType, queues: u32) -> TopicConfig {
    TopicConfig { queues, r#type: kind.into(), ..TopicConfig::default() }
}

fn in_group(group: &str) -> NewMeta<'_> {
    NewMeta { message_group: Some(group), ..NewMeta::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_is_pulled_byte_for_byte() {
    let server = Server::start().await;
    let mut sent = honest(b"a body with \0 and \xff in it");
    sent.metas[0].keys = vec!["k 1".to_owned(), "k2".to_owned()];
    sent.metas[0].tag = "blue".to_owned();
    sent.metas[0].properties = vec![proto::Property { key: "p".to_owned(), value: String::new() }];
    sent.metas[0].id = "id-1".to_owned();
    sent.metas[0].born_ms = 1;
    sent.metas[0].encoding = 1;
    sent.metas[0].trace_context = "00-ab".to_owned();
    sent.metas[0].born_host = "host".to_owned();
    let bytes = wire(&sent);

    let receipt = server.send(to("t", Some(2), bytes.clone())).await.unwrap();
    assert_eq!((receipt.queue, receipt.first_queue_offset, receipt.count), (2, 0, 1));

    let pulled = server.pull(from("t", 2, 0)).await.unwrap();
    assert_eq!(pulled.records.len(), 1);
    let record = &pulled.records[0];
    assert_eq!(record.batch, bytes);
    assert_eq!(record.physical_offset, receipt.physical_offset);
    assert_eq!(record.epoch, receipt.epoch);
    assert_eq!(record.store_time_ms, receipt.store_time_ms);
    assert_eq!((record.first_queue_offset, record.count), (0, 1));
    assert_eq!(pulled.next_offset, 1);
    assert_eq!(pulled.range, Some(proto::OffsetRange { min: 0, max: 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_of_a_message_are_kept_and_those_of_a_batch_refused() {
    let server = Server::start().await;
    // Field 99 as a varint, behind everything else of the only meta.
    let unknown = [0x98, 0x06, 0x07];
    let plain = honest(b"x");
    let mut meta = prost::Message::encode_to_vec(&plain.metas[0]);
    meta.extend_from_slice(&unknown);
    let rest = proto::Batch { metas: Vec::new(), ..plain.clone() };
    let mut bytes = vec![0x0a, u8::try_from(meta.len()).unwrap()];
    bytes.extend_from_slice(&meta);
    bytes.extend_from_slice(&prost::Message::encode_to_vec(&rest));
    server.send(to("t", Some(0), bytes.clone().into())).await.unwrap();
    let pulled = server.pull(from("t", 0, 0)).await.unwrap();
    assert_eq!(pulled.records[0].batch, bytes);

    let mut bytes = prost::Message::encode_to_vec(&plain);
    bytes.extend_from_slice(&unknown);
    let answer = server.send(to("t", Some(0), bytes.into())).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_BATCH"));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_batch_follow_each_other_without_holes() {
    let server = Server::start().await;
    server.send(to("t", Some(0), batch(&["a", "b", "c"]))).await.unwrap();
    let second = server.send(to("t", Some(0), batch(&["d"]))).await.unwrap();
    assert_eq!(second.first_queue_offset, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_to_an_unknown_valid_name_makes_the_topic() {
    let server = Server::start().await;
    server.send(to("fresh", None, batch(&["x"]))).await.unwrap();
    let request = proto::DescribeTopicRequest { name: "fresh".to_owned(), ..Default::default() };
    let described = server.admin.clone().describe_topic(request).await.unwrap().into_inner();
    let config = described.topic.unwrap().config.unwrap();
    assert_eq!((config.queues, config.r#type()), (4, TopicType::Mixed));
    assert_eq!(config.flush(), proto::FlushMode::Sync);
    assert_eq!(described.queues.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_topics_are_made_by_sends() {
    let server = Server::with(&["broker.auto_create_limit=2"]).await;
    server.send(to("a", None, batch(&["x"]))).await.unwrap();
    server.send(to("b", None, batch(&["x"]))).await.unwrap();
    let status = server.send(to("c", None, batch(&["x"]))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let why = detail(&status);
    assert_eq!((why.reason.as_str(), why.limit), ("TOPIC_LIMIT", Some(2)));
    server.send(to("a", None, batch(&["x"]))).await.unwrap();
    server.create("c", TopicConfig::default()).await;
    server.send(to("c", None, batch(&["x"]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_auto_creation_an_unknown_topic_is_refused() {
    let server = Server::with(&["broker.auto_create_topics=false"]).await;
    let answer = server.send(to("t", None, batch(&["x"]))).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_send_makes_no_topic() {
    let server = Server::start().await;
    let lying = proto::Batch { bodies_len: 7, ..honest(b"x") };
    server.send(to("t", None, wire(&lying))).await.unwrap_err();
    server.send(to("t", Some(4), batch(&["x"]))).await.unwrap_err();
    server.send(to("t", Some(0), batch_with(&["x"], &in_group("g")))).await.unwrap_err();
    let list = proto::ListTopicsRequest::default();
    let topics = server.admin.clone().list_topics(list).await.unwrap().into_inner().topics;
    assert_eq!(topics, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_cannot_be_topics_are_refused() {
    let server = Server::start().await;
    let long = "x".repeat(128);
    for name in
        ["", "a b", "a/b", "größe", "%RETRY%g", "TBW102", "BenchmarkTest", "rmq_sys_x", &long]
    {
        let answer = server.send(to(name, None, batch(&["x"]))).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"), "{name}");
    }
    server.send(to(&long[1..], None, batch(&["x"]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_the_topic_does_not_have_is_refused() {
    let server = Server::start().await;
    server.create("t", of_type(TopicType::Mixed, 3)).await;
    server.send(to("t", Some(2), batch(&["x"]))).await.unwrap();
    for queue in [3, u32::MAX] {
        let answer = server.send(to("t", Some(queue), batch(&["x"]))).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_QUEUE"), "{queue}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_batches_go_round() {
    let server = Server::start().await;
    server.create("t", of_type(TopicType::Normal, 3)).await;
    let mut queues = Vec::new();
    for _ in 0..6 {
        queues.push(server.send(to("t", None, batch(&["x"]))).await.unwrap().queue);
    }
    assert_eq!(queues[..3], queues[3..], "the round repeats");
    queues.sort_unstable();
    assert_eq!(queues, [0, 0, 1, 1, 2, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_group_stays_in_the_queue_that_rocketmq_would_choose() {
    let server = Server::start().await;
    server.create("t", of_type(TopicType::Fifo, 16)).await;
    for (group, queue) in
        [("a", 0), ("order-1", 3), ("order-2", 11), ("group-0001", 7), ("用户42", 13)]
    {
        for _ in 0..2 {
            let batch = batch_with(&["x", "y"], &in_group(group));
            assert_eq!(server.send(to("t", None, batch)).await.unwrap().queue, queue, "{group}");
        }
    }
    let answer = server.send(to("t", Some(0), batch_with(&["x"], &in_group("a")))).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_take_only_messages_of_their_type() {
    let server = Server::start().await;
    let types = [
        ("normal", TopicType::Normal, true, false),
        ("fifo", TopicType::Fifo, false, true),
        ("mixed", TopicType::Mixed, true, true),
        ("delay", TopicType::Delay, false, false),
        ("transaction", TopicType::Transaction, false, false),
    ];
    for (name, kind, takes_plain, takes_grouped) in types {
        server.create(name, of_type(kind, 4)).await;
        for (takes, meta) in [(takes_plain, NewMeta::default()), (takes_grouped, in_group("g"))] {
            let answer = server.send(to(name, None, batch_with(&["x"], &meta))).await;
            if takes {
                assert_eq!(answer.unwrap().count, 1, "{name}");
            } else {
                let expected = refused(Code::InvalidArgument, "TYPE_CONFLICT");
                assert_eq!(refusal(answer), expected, "{name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_with_its_limit() {
    let server = Server::start().await;
    let text = |len: usize| "x".repeat(len);
    let (key, id, tag, group) = (text(1025), text(257), text(128), text(64));
    let body = text((4 << 20) + 1);
    let value = text(16 << 10);
    let plain = NewMeta::default;
    let cases: [(bytes::Bytes, u64); 8] = [
        (batch(&[&body]), 4 << 20),
        (batch_with(&["x"], &NewMeta { keys: vec![&key], ..plain() }), 1024),
        (batch_with(&["x"], &NewMeta { keys: vec!["k"; 33], ..plain() }), 32),
        (batch_with(&["x"], &NewMeta { id: Some(&id), ..plain() }), 256),
        (batch_with(&["x"], &NewMeta { tag: Some(&tag), ..plain() }), 127),
        (batch_with(&["x"], &NewMeta { message_group: Some(&group), ..plain() }), 63),
        (batch_with(&["x"], &NewMeta { properties: vec![("k", &value)], ..plain() }), 16 << 10),
        (batch(&vec!["x"; 10_001]), 10_000),
    ];
    for (number, (batch, limit)) in cases.into_iter().enumerate() {
        let status = server.send(to("t", None, batch)).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "case {number}: {status:?}");
        let why = detail(&status);
        assert_eq!((why.reason.as_str(), why.limit), ("TOO_LARGE", Some(limit)), "case {number}");
    }
    let largest = text(4 << 20);
    server.send(to("t", None, batch(&[&largest]))).await.unwrap();
    let status = server.send(to("t", None, batch(&[&largest, &largest]))).await.unwrap_err();
    assert_eq!(detail(&status).limit, Some(8 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transport_refuses_requests_above_nine_mebibytes() {
    let server = Server::start().await;
    let huge = bytes::Bytes::from(vec![0; 9 << 20]);
    let status = server.send(to("t", None, huge)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let why = detail(&status);
    assert_eq!((why.reason.as_str(), why.limit), ("TOO_LARGE", Some(9 << 20)));
    server.send(to("t", None, batch(&["x"]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_decoded_is_refused_with_details() {
    /// A `SendRequest` whose topic is bytes, so that it need not be UTF-8.
    #[derive(Clone, PartialEq, prost::Message)]
    struct AnyTopic {
        #[prost(bytes = "vec", tag = "1")]
        topic: Vec<u8>,
    }
    let server = Server::start().await;
    let mut raw = tonic::client::Grpc::new(server.channel.clone());
    raw.ready().await.unwrap();
    let status = raw
        .unary(
            tonic::Request::new(AnyTopic { topic: vec![0xff, 0xfe] }),
            tonic::codegen::http::uri::PathAndQuery::from_static("/mainstem.v1.Broker/Send"),
            tonic_prost::ProstCodec::<AnyTopic, proto::SendResponse>::default(),
        )
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(detail(&status).reason, "BAD_REQUEST");
}

/// 2 bytes each on the wire, a hundred in memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_very_many_entries_is_refused_before_it_is_decoded() {
    let server = Server::start().await;
    let handles = vec![String::new(); 1 << 22];
    let asked = proto::AckRequest { handles, ..proto::AckRequest::default() };
    let status = server.broker.clone().ack(asked).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(detail(&status).reason, "BAD_REQUEST");
    assert!(status.message().contains("more than 131072 fields"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_lie_are_refused() {
    let server = Server::start().await;
    let honest = || honest(b"twelve bytes");
    let with = |change: fn(&mut proto::Batch)| {
        let mut batch = honest();
        change(&mut batch);
        wire(&batch)
    };
    let cases = [
        (with(|b| b.bodies_crc ^= 1), "CHECKSUM"),
        (with(|b| b.codec = 2), "BAD_BATCH"),
        (with(|b| b.codec = 3), "CODEC"),
        (with(|b| b.bodies_len -= 1), "BAD_BATCH"),
        (with(|b| b.metas[0].body_len += 1), "BAD_BATCH"),
        (with(|b| b.metas.clear()), "BAD_BATCH"),
        (with(|b| b.metas[0].keys = vec![String::new()]), "BAD_BATCH"),
        (with(|b| b.metas[0].tag = "a|b".to_owned()), "BAD_BATCH"),
        (bytes::Bytes::new(), "BAD_BATCH"),
        (bytes::Bytes::from_static(b"\xff\xff\xff\xff"), "BAD_BATCH"),
        // A key that is not UTF-8.
        (bytes::Bytes::from_static(b"\x0a\x03\x0a\x01\xff"), "BAD_BATCH"),
    ];
    for (number, (batch, reason)) in cases.into_iter().enumerate() {
        let answer = server.send(to("t", None, batch)).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, reason), "case {number}");
    }
    let mut mixed = mainstem::format::batch::BatchBuilder::new();
    mixed.push(&in_group("a"), b"x");
    mixed.push(&in_group("b"), b"x");
    let answer = server.send(to("t", None, mixed.finish())).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_BATCH"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_counted_under_its_reason() {
    let server = Server::start().await;
    server.send(to("", None, batch(&["x"]))).await.unwrap_err();
    server.send(to("t", None, batch(&["x", "y"]))).await.unwrap();
    let refusals = "mainstem_refusals_total{reason=\"BAD_NAME\"}";
    assert_eq!(server.metric(refusals).await, Some(1));
    assert_eq!(server.metric("mainstem_sends_total").await, Some(1));
    assert_eq!(server.metric("mainstem_sent_messages_total").await, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_sends_fill_a_queue_without_holes_or_repeats() {
    let server = Server::start().await;
    server.create("t", of_type(TopicType::Normal, 1)).await;
    let mut sends = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let mut client = server.broker.clone();
        sends.spawn(async move {
            let request = to("t", Some(0), batch(&["a", "b", "c"]));
            client.send(request).await.unwrap().into_inner().first_queue_offset
        });
    }
    let mut offsets = soon(sends.join_all()).await;
    offsets.sort_unstable();
    assert_eq!(offsets, (0..64).map(|n| n * 3).collect::<Vec<_>>());
}
