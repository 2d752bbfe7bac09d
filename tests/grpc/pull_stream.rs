//! Streams of pulls: what comes, in which order, what ends them.

use std::collections::BTreeMap;

use bytes::Bytes;
use mainstem::format::batch::NewMeta;
use mainstem::proto::pull_stream_request::Start;
use mainstem::proto::{
    self, CreateGroupRequest, GroupConfig, OffsetRange, PullStreamRequest, PullStreamResponse,
    TopicConfig, UpdateGroupRequest,
};
use tonic::{Code, Status, Streaming};

use crate::support::{Server, batch, batch_with, detail, from, soon, to};

const WAITERS: &str = "mainstem_waiters";

fn starts(queues: impl IntoIterator<Item = u32>) -> PullStreamRequest {
    let queues = queues.into_iter().map(|queue| Start { queue, offset: 0 }).collect();
    PullStreamRequest { topic: "t".to_owned(), queues, ..PullStreamRequest::default() }
}

async fn open(
    server: &Server,
    request: PullStreamRequest,
) -> Result<Streaming<PullStreamResponse>, Status> {
    let mut client = server.broker.clone().max_decoding_message_size(64 << 20);
    client.pull_stream(request).await.map(tonic::Response::into_inner)
}

async fn next(stream: &mut Streaming<PullStreamResponse>) -> Result<PullStreamResponse, Status> {
    soon(stream.message()).await.map(|message| message.expect("a stream has no end of its own"))
}

/// What a stream says of its end.
async fn end(stream: &mut Streaming<PullStreamResponse>) -> (Code, proto::Error) {
    loop {
        if let Err(status) = next(stream).await {
            assert!(!status.details().is_empty(), "{status:?}");
            return (status.code(), detail(&status));
        }
    }
}

async fn refusal(server: &Server, request: PullStreamRequest) -> (Code, String, Option<u32>) {
    let (code, why) = end(&mut open(server, request).await.unwrap()).await;
    (code, why.reason, why.queue)
}

async fn topic(server: &Server, queues: u32) {
    server.create("t", TopicConfig { queues, ..TopicConfig::default() }).await;
}

/// Batches by queue, from as many records as are wanted; each begins where the one before has ended.
async fn batches(
    stream: &mut Streaming<PullStreamResponse>,
    next_of: &mut BTreeMap<u32, u64>,
    count: usize,
) -> BTreeMap<u32, Vec<Bytes>> {
    let mut found = BTreeMap::<u32, Vec<Bytes>>::new();
    let mut seen = 0;
    while seen < count {
        let part = next(stream).await.unwrap();
        let at = next_of.entry(part.queue).or_default();
        for record in part.records {
            assert_eq!(record.first_queue_offset, *at, "queue {}", part.queue);
            *at += u64::from(record.count);
            found.entry(part.queue).or_default().push(record.batch);
            seen += 1;
        }
        assert_eq!(part.next_offset, *at);
        assert!(part.range.unwrap().max >= *at && part.epoch == 1);
    }
    assert_eq!(seen, count);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn all_queues_come_byte_for_byte_and_go_on_with_what_is_stored_later() {
    let server = Server::start().await;
    topic(&server, 4).await;
    let mut sent = BTreeMap::<u32, Vec<Bytes>>::new();
    let mut next_of = BTreeMap::new();
    let mut stream = open(&server, starts(0..3)).await.unwrap();
    // Sizes around what is copied, what is a slice, and what is larger than a frame and than an answer.
    let sizes = [1, 100, 8 << 10, 100 << 10, 300 << 10, 3 << 20, 5];
    for round in 0..3_u32 {
        for (n, size) in (0..).zip(sizes) {
            let queue = (n + round) % 4;
            let body = format!("{round}{n}").repeat(size).split_off(size);
            let batch = batch(&[&body, "second"]);
            server.send(to("t", Some(queue), batch.clone())).await.unwrap();
            if queue < 3 {
                sent.entry(queue).or_default().push(batch);
            }
        }
        let count = sent.values().map(Vec::len).sum();
        assert_eq!(batches(&mut stream, &mut next_of, count).await, std::mem::take(&mut sent));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_take_turns() {
    let server = Server::start().await;
    topic(&server, 2).await;
    for queue in [0, 0, 0, 0, 1, 1] {
        server.send(to("t", Some(queue), batch(&["body"]))).await.unwrap();
    }
    let mut caught_up = open(&server, starts([0, 1])).await.unwrap();
    batches(&mut caught_up, &mut BTreeMap::new(), 6).await;
    let mut stream =
        open(&server, PullStreamRequest { max_bytes: 1, ..starts([0, 1]) }).await.unwrap();
    let mut order = Vec::new();
    for _ in 0..6 {
        let part = next(&mut stream).await.unwrap();
        assert_eq!(part.records.len(), 1, "at least one record, and no more than fit");
        order.push(part.queue);
    }
    assert_eq!(order, [0, 1, 0, 1, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_any_of_its_queues_wakes_a_stream_that_waits() {
    let server = Server::start().await;
    topic(&server, 256).await;
    let mut stream = open(&server, starts((0..256).rev())).await.unwrap();
    soon(server.until_metric(WAITERS, 256)).await;
    let mut next_of = BTreeMap::new();
    for queue in [255, 0, 77, 77] {
        let sent = batch(&["late"]);
        server.send(to("t", Some(queue), sent.clone())).await.unwrap();
        let found = batches(&mut stream, &mut next_of, 1).await;
        assert_eq!(found, [(queue, vec![sent])].into());
    }
    drop(stream);
    soon(server.until_metric(WAITERS, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_match_are_left_out_and_passed() {
    let server = Server::start().await;
    topic(&server, 1).await;
    for tag in ["red", "blue", "red", "blue", "blue"] {
        let meta = NewMeta { tag: Some(tag), ..NewMeta::default() };
        server.send(to("t", Some(0), batch_with(&[tag], &meta))).await.unwrap();
    }
    let mut stream =
        open(&server, PullStreamRequest { tags: "red".to_owned(), ..starts([0]) }).await.unwrap();
    let mut offsets = Vec::new();
    while offsets.len() < 2 {
        let part = next(&mut stream).await.unwrap();
        offsets.extend(part.records.iter().map(|record| record.first_queue_offset));
    }
    assert_eq!(offsets, [0, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_is_not_beyond_the_end_and_what_is_names_its_queue() {
    let server = Server::start().await;
    topic(&server, 3).await;
    for _ in 0..20 {
        let stored = server.send(to("t", Some(1), batch(&["body"]))).await.unwrap();
        let start = Start { queue: 1, offset: stored.first_queue_offset };
        let request = PullStreamRequest { queues: vec![start], ..starts([]) };
        let part = next(&mut open(&server, request).await.unwrap()).await.unwrap();
        assert_eq!(part.records[0].first_queue_offset, stored.first_queue_offset);
    }
    let queues = vec![Start { queue: 0, offset: 0 }, Start { queue: 1, offset: 21 }];
    let mut stream = open(&server, PullStreamRequest { queues, ..starts([]) }).await.unwrap();
    let (code, why) = end(&mut stream).await;
    assert_eq!((code, why.reason.as_str()), (Code::OutOfRange, "OFFSET_OUT_OF_RANGE"));
    assert_eq!((why.queue, why.range), (Some(1), Some(OffsetRange { min: 0, max: 20 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_for_is_refused_by_its_reason() {
    let server = Server::start().await;
    topic(&server, 300).await;
    let bad = |request| refusal(&server, request);
    let invalid = |reason: &str, queue| (Code::InvalidArgument, reason.to_owned(), queue);
    assert_eq!(bad(starts([])).await, invalid("BAD_REQUEST", None));
    assert_eq!(bad(starts([0, 1, 0])).await, invalid("BAD_REQUEST", None));
    assert_eq!(bad(starts([0, 300])).await, invalid("BAD_QUEUE", Some(300)));
    let too_large = (Code::OutOfRange, "TOO_LARGE".to_owned(), None);
    assert_eq!(bad(starts(0..257)).await, too_large);
    let max_bytes = (8 << 20) + 1;
    assert_eq!(bad(PullStreamRequest { max_bytes, ..starts([0]) }).await, too_large);
    let tags = "||".to_owned();
    assert_eq!(bad(PullStreamRequest { tags, ..starts([0]) }).await, invalid("BAD_REQUEST", None));
    let epoch = 2;
    let ahead = bad(PullStreamRequest { epoch, ..starts([7]) }).await;
    assert_eq!(ahead, invalid("BAD_REQUEST", Some(7)));
    let unknown = |reason: &str| (Code::NotFound, reason.to_owned(), None);
    let topic = "nobody".to_owned();
    assert_eq!(bad(PullStreamRequest { topic, ..starts([0]) }).await, unknown("UNKNOWN_TOPIC"));
    let group = "nobody".to_owned();
    assert_eq!(bad(PullStreamRequest { group, ..starts([0]) }).await, unknown("UNKNOWN_GROUP"));
    assert_eq!(server.metric(WAITERS).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_may_wait_are_refused_and_places_come_back() {
    let server = Server::with(&["broker.max_waiters=10"]).await;
    topic(&server, 8).await;
    let first = open(&server, starts(0..8)).await.unwrap();
    soon(server.until_metric(WAITERS, 8)).await;
    let overloaded = (Code::ResourceExhausted, "OVERLOADED".to_owned(), None);
    assert_eq!(refusal(&server, starts(0..3)).await, overloaded);
    let mut second = open(&server, starts(0..2)).await.unwrap();
    server.send(to("t", Some(1), batch(&["body"]))).await.unwrap();
    next(&mut second).await.unwrap();
    drop(first);
    soon(server.until_metric(WAITERS, 2)).await;
    let mut third = open(&server, starts([1, 4])).await.unwrap();
    next(&mut third).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_topic_is_deleted_or_its_group_disabled() {
    let server = Server::start().await;
    topic(&server, 2).await;
    let config = Some(GroupConfig::default());
    let group = CreateGroupRequest { name: "g".to_owned(), config };
    server.admin.clone().create_group(group).await.unwrap();
    let of_group = PullStreamRequest { group: "g".to_owned(), ..starts([0, 1]) };
    let mut of_group = open(&server, of_group).await.unwrap();
    let mut of_topic = open(&server, starts([0, 1])).await.unwrap();
    soon(server.until_metric(WAITERS, 4)).await;

    let config = GroupConfig { enabled: Some(false), ..GroupConfig::default() };
    let disabled = UpdateGroupRequest { name: "g".to_owned(), config: Some(config) };
    server.admin.clone().update_group(disabled).await.unwrap();
    let (code, why) = end(&mut of_group).await;
    assert_eq!((code, why.reason.as_str()), (Code::PermissionDenied, "GROUP_DISABLED"));

    server.delete("t").await;
    let (code, why) = end(&mut of_topic).await;
    assert_eq!((code, why.reason.as_str()), (Code::NotFound, "UNKNOWN_TOPIC"));
    soon(server.until_metric(WAITERS, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_streams_that_wait_and_those_that_are_not_read() {
    let server = Server::start().await;
    topic(&server, 2).await;
    for _ in 0..20 {
        server.send(to("t", Some(1), batch(&[&"x".repeat(1 << 20)]))).await.unwrap();
    }
    let mut waits = open(&server, starts([0])).await.unwrap();
    let mut is_not_read = open(&server, starts([1])).await.unwrap();
    soon(server.until_metric(WAITERS, 2)).await;
    let (_data, ended) = server.stop();
    let (code, why) = end(&mut waits).await;
    assert_eq!((code, why.reason.as_str()), (Code::Unavailable, "DRAINING"));
    // It takes its answers while the connection is being closed: what of them it gets is the network's affair.
    let why = loop {
        if let Err(status) = next(&mut is_not_read).await {
            break status;
        }
    };
    if why.details().is_empty() {
        assert_eq!(why.code(), Code::Unknown, "the connection broke: {why:?}");
    } else {
        assert_eq!((why.code(), detail(&why).reason.as_str()), (Code::Unavailable, "DRAINING"));
    }
    soon(ended).await.unwrap().unwrap();
}

/// Each used to keep what its request counted for, so many of them kept the senders out.
#[tokio::test(flavor = "multi_thread")]
async fn pulls_and_streams_that_wait_count_for_nothing_that_arrives() {
    let server = Server::start().await;
    topic(&server, 1).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(open(&server, starts([0])).await.unwrap());
    }
    let mut broker = server.broker.clone();
    let parked = tokio::spawn(async move {
        let request = proto::PullRequest { wait_ms: 30_000, ..from("t", 0, 0) };
        broker.pull(request).await
    });
    server.until_metric(WAITERS, 6).await;
    assert_eq!(server.metric("mainstem_arriving_bytes").await, Some(0));
    drop(streams);
    parked.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_records_is_bounded_by_what_a_filter_and_all_queues_need() {
    let server = Server::start().await;
    topic(&server, 1).await;
    let many = PullStreamRequest { queues: vec![Start::default(); 40_000], ..starts([]) };
    assert_eq!(refusal(&server, many).await.1, "TOO_LARGE");
}
