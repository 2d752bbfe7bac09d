//! Clients that take and give nothing back: what they cost is bounded, and the others are served.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame};
use mainstem::client::{Client, GroupSettings, TopicSettings};
use mainstem::format::batch::{BatchBuilder, Codec, Compressor, NewMeta};
use mainstem::message::QueueId;
use mainstem::proto::broker_client::BrokerClient;
use mainstem::proto::pull_stream_request::Start;
use mainstem::proto::receive_request::Filter;
use mainstem::proto::{PullRequest, PullStreamRequest, ReceiveRequest, SendStreamRequest};
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::{Service as _, http};
use tonic::transport::{Channel, Endpoint};

use crate::support::{Home, Process, assert_no_panic, one, read_all, read_from, soon, until};

const MIB: u64 = 1 << 20;

/// A request that brings pieces as long as they are taken.
struct Pieces {
    /// Taken from behind.
    pieces: Vec<Bytes>,
    /// Whether it ends then; else nothing more comes, for ever.
    ends: bool,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.pieces.pop() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// Begins a call whose first message says that it is `len` bytes long, and brings `count` pieces of it of as many bytes
/// as are said; each is a DATA frame.
async fn begin(
    channel: &mut Channel,
    call: &str,
    len: u32,
    (count, bytes): (usize, usize),
) -> Result<http::Response<Body>, tonic::transport::Error> {
    let mut prefix = BytesMut::new();
    prefix.put_u8(0);
    prefix.put_u32(len);
    let mut pieces = vec![Bytes::from(vec![0; bytes]); count];
    pieces.push(prefix.freeze());
    unfinished(channel, call, pieces).await
}

/// Makes a call of one request and takes nothing of its answer, as long as that is kept. The request ends: where one
/// does not and its answer cannot leave, h2 0.4 ends its connection with a stream too many in its books, which a debug
/// assertion of it calls a defect.
async fn ask(
    channel: &mut Channel,
    call: &str,
    request: &impl prost::Message,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(request.encoded_len()).unwrap());
    request.encode(&mut bytes).unwrap();
    bring(channel, call, Pieces { pieces: vec![bytes.freeze()], ends: true }).await
}

/// Begins a call that brings `pieces`, the last first, and never ends.
async fn unfinished(
    channel: &mut Channel,
    call: &str,
    pieces: Vec<Bytes>,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    bring(channel, call, Pieces { pieces, ends: false }).await
}

async fn bring(
    channel: &mut Channel,
    call: &str,
    body: Pieces,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    let mut request = http::Request::new(Body::new(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = format!("/mainstem.v1.Broker/{call}").parse().unwrap();
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
    channel.call(request).await
}

/// How a call ends, before or behind its answer.
async fn status(answer: http::Response<Body>) -> tonic::Status {
    let (head, mut body) = answer.into_parts();
    if let Some(status) = tonic::Status::from_header_map(&head.headers) {
        return status;
    }
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        if let Ok(trailers) = frame.unwrap().unwrap().into_trailers() {
            return tonic::Status::from_header_map(&trailers).unwrap();
        }
    }
}

async fn connect(process: &Process) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", process.grpc)).unwrap();
    endpoint.connect().await.unwrap()
}

/// A value of a metric that is always there.
async fn gauge(process: &Process, name: &str) -> u64 {
    process.metric(name).await.unwrap()
}

/// Sends to one queue, as others do meanwhile; each is acknowledged.
async fn served(client: &Client, count: u64) {
    for n in 0..count {
        let sent = client.send("others", Some(QueueId::ZERO), one(&[7; 500]));
        soon("a send", sent).await.unwrap_or_else(|error| panic!("{n}: {error:?}"));
    }
}

/// Each connection sends as much as it may and never ends what it began.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_with_full_windows_stay_within_the_stated_memory() {
    const CONNECTIONS: u64 = 1_000;
    let home = Home::new();
    let process = Process::start(&home, &["--set", "broker.inflight_sends=64MiB"]).await;
    let client = process.client().await;
    served(&client, 1).await;
    let before = process.anonymous_memory();
    let mut begun = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut channel = connect(&process).await;
        begun.spawn(async move {
            // As much as the windows of a connection ever take: two streams of 8 MiB.
            let mut answers = Vec::new();
            for _ in 0..2 {
                let full = (128, 64 << 10);
                answers.push(begin(&mut channel, "SendStream", 8 << 20, full).await);
            }
            (channel, answers)
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = begun.join_next().await {
        answers.push(answer.unwrap());
    }
    let mut most = 0;
    let windows = gauge(&process, "mainstem_windows_bytes").await;
    assert!(windows <= 1_024 * MIB + CONNECTIONS * (64 << 10), "{windows}");
    // For longer than who brings nothing keeps his room.
    for _ in 0..40 {
        served(&client, 5).await;
        let arriving = gauge(&process, "mainstem_arriving_bytes").await;
        assert!(arriving <= 48 * MIB, "{arriving}");
        let memory = process.anonymous_memory().saturating_sub(before);
        most = most.max(memory);
        // Each connection has buffers of its own beside its window.
        let bound = windows + 64 * MIB + 9 * MIB + CONNECTIONS * (512 << 10);
        assert!(memory <= bound, "{memory} of {bound}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(most > windows / 2, "{most} of {windows}: the windows were not full");
    drop(answers);
    until("the end of all connections", async || {
        let left = gauge(&process, "mainstem_connections").await;
        let arriving = gauge(&process, "mainstem_arriving_bytes").await;
        (left <= 1 && arriving == 0).then_some(())
    })
    .await;
    let windows = gauge(&process, "mainstem_windows_bytes").await;
    assert!(windows <= 16 * MIB, "{windows}");
    served(&client, 1).await;
    // The last is there once it is dispatched.
    until("all that was sent", async || {
        (read_all(&client, "others", 0).await.len() == 202).then_some(())
    })
    .await;
    assert_no_panic(&process.said());
    process.stop().await;
}

/// A batch of exactly so many bytes, all of whose bodies are of this one.
fn sized(len: usize, byte: u8) -> Bytes {
    let of = |last: usize| {
        let mut batch = BatchBuilder::new();
        for body in [3 << 20, 3 << 20, last] {
            batch.push(&NewMeta::default(), &vec![byte; body]);
        }
        batch.finish()
    };
    let batch = of(len - (6 << 20) - 1_000);
    let batch = of(len - (6 << 20) - 1_000 + (len - batch.len()));
    assert_eq!(batch.len(), len);
    batch
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_the_largest_size_on_many_streams_are_each_stored_once_while_others_are_served()
{
    const LARGEST: usize = 8 << 20;
    const STREAMS: u32 = 8;
    const EACH: u8 = 5;
    let home = Home::new();
    let process = Process::start(&home, &["--set", "broker.inflight_sends=64MiB"]).await;
    let client = process.client().await;
    served(&client, 1).await;
    let settings = TopicSettings { queues: Some(STREAMS), ..TopicSettings::default() };
    client.create_topic("large", settings).await.unwrap();
    let before = process.anonymous_memory();
    let mut senders = JoinSet::new();
    for queue in 0..STREAMS {
        let client = process.client().await;
        senders.spawn(async move {
            let mut stream = client.send_stream(None).await.unwrap();
            let mut receipts = Vec::new();
            for n in 0..EACH {
                let batch = sized(LARGEST, queue as u8 * EACH + n);
                stream
                    .send("large", Some(QueueId::new(queue)), batch, &mut receipts)
                    .await
                    .unwrap();
            }
            stream.finish(&mut receipts).await.unwrap();
            let offsets: Vec<_> =
                receipts.iter().map(|receipt| receipt.first_queue_offset.get()).collect();
            assert_eq!(offsets, [0, 3, 6, 9, 12]);
        });
    }
    // What a connection that has ended had is free, and with the allocator for a while.
    let mut windows = 0;
    while !senders.is_empty() {
        windows = windows.max(gauge(&process, "mainstem_windows_bytes").await);
        served(&client, 1).await;
        let arriving = gauge(&process, "mainstem_arriving_bytes").await;
        assert!(arriving <= 48 * MIB, "{arriving}");
        let waiting = gauge(&process, "mainstem_awaiting_room_bytes").await;
        assert!(waiting <= u64::from(STREAMS) * (256 << 10), "{waiting}");
        let memory = process.anonymous_memory().saturating_sub(before);
        assert!(memory <= windows + 96 * MIB, "{memory}, windows {windows}");
        let tenth = Duration::from_millis(100);
        while let Ok(Some(sent)) = tokio::time::timeout(tenth, senders.join_next()).await {
            sent.unwrap();
        }
    }
    let mut stream = client.send_stream(None).await.unwrap();
    let mut receipts = Vec::new();
    let beyond = sized(LARGEST + 1, 0);
    let sent = stream.send("large", Some(QueueId::ZERO), beyond, &mut receipts).await;
    let refused = match sent {
        Ok(_) => stream.finish(&mut receipts).await.unwrap_err(),
        Err(refused) => refused,
    };
    assert!(refused.to_string().contains("8388608"), "{refused}");
    for queue in 0..STREAMS {
        let read = until("all of a queue", async || {
            let read = read_all(&client, "large", queue).await;
            (read.len() >= 3 * usize::from(EACH)).then_some(read)
        });
        let bytes: Vec<_> = read.await.iter().map(|message| message.body[0]).collect();
        let first = queue as u8 * EACH;
        let expected: Vec<_> = (first..first + EACH).flat_map(|byte| [byte; 3]).collect();
        assert_eq!(bytes, expected);
    }
    assert_no_panic(&process.said());
    process.stop().await;
}

/// Sends what is counted while it arrives; one that finds no room is sent again.
async fn large_ones_are_served(client: &Client) {
    until("room for a send", async || {
        client.send("others", Some(QueueId::ZERO), one(&[7; 100 << 10])).await.ok()
    })
    .await;
}

/// Each frame used to count for a KiB: these calls held three times what may be arriving.
#[tokio::test(flavor = "multi_thread")]
async fn requests_in_frames_of_a_byte_keep_nobody_out() {
    const CALLS: u64 = 20;
    let home = Home::new();
    let process = Process::start(&home, &["--set", "broker.inflight_sends=16MiB"]).await;
    let client = process.client().await;
    let mut begun = JoinSet::new();
    for call in ["SendStream", "Send"] {
        for _ in 0..CALLS {
            // Each on a connection of its own: HTTP/2 ends one with too many tiny frames that nobody has read yet.
            let mut channel = connect(&process).await;
            begun.spawn(async move {
                let answer = begin(&mut channel, call, 8 << 20, (5_000, 1)).await;
                (channel, answer)
            });
        }
    }
    let arriving = 2 * CALLS * (5 << 10);
    until("all of it", async || {
        let now = gauge(&process, "mainstem_arriving_bytes").await;
        assert!(now <= arriving, "{now}");
        (now == arriving).then_some(())
    })
    .await;
    large_ones_are_served(&client).await;
    assert_no_panic(&process.said());
    drop(begun);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_half_sent_lose_their_room_when_others_need_it() {
    let home = Home::new();
    let process = Process::start(&home, &["--set", "broker.inflight_sends=16MiB"]).await;
    let client = process.client().await;
    for call in ["Send", "SendStream"] {
        let mut begun = JoinSet::new();
        for _ in 0..20 {
            let mut channel = connect(&process).await;
            begun.spawn(async move {
                let answer = begin(&mut channel, call, 8 << 20, (16, 64 << 10)).await.unwrap();
                status(answer).await
            });
        }
        let mut slow = 0;
        while slow == 0 {
            let answer = soon("an answer", begun.join_next()).await.unwrap().unwrap();
            match answer.message() {
                "too many requests that arrive slowly at once" => slow += 1,
                _ => assert_eq!(answer.code(), tonic::Code::ResourceExhausted, "{answer:?}"),
            }
        }
        large_ones_are_served(&client).await;
    }
    assert_no_panic(&process.said());
    process.stop().await;
}

/// Each used to keep what its request counted for, and what came behind it.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_wait_for_messages_hold_nothing_of_their_requests() {
    const STREAMS: u64 = 200;
    let home = Home::new();
    let process = Process::start(&home, &["--set", "broker.inflight_sends=16MiB"]).await;
    let client = process.client().await;
    served(&client, 1).await;
    let queues = vec![Start { queue: 0, offset: 0 }];
    let request = PullStreamRequest { topic: "others".to_owned(), queues, ..Default::default() };
    let mut message = request.encode_to_vec();
    // A field that nobody knows.
    prost::encoding::bytes::encode(1_000, &vec![0; 60 << 10], &mut message);
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap());
    bytes.put_slice(&message);
    bytes.put_slice(&[0; 100 << 10]);
    let bytes = bytes.freeze();
    let channel = connect(&process).await;
    let mut answers = Vec::new();
    for _ in 0..STREAMS {
        let call = unfinished(&mut channel.clone(), "PullStream", vec![bytes.clone()]).await;
        answers.push(call.unwrap());
    }
    until("all to wait", async || {
        let waiting = gauge(&process, "mainstem_waiters").await;
        (waiting == STREAMS).then_some(())
    })
    .await;
    assert_eq!(gauge(&process, "mainstem_arriving_bytes").await, 0);
    large_ones_are_served(&client).await;
    drop(answers);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_take_nothing_hold_a_bounded_part_of_it_and_the_others_read_on() {
    const READERS: u64 = 100;
    let home = Home::new();
    let process = Process::start(&home, &["--set", "broker.inflight_replies=64MiB"]).await;
    let client = process.client().await;
    let mut builder = BatchBuilder::new();
    for _ in 0..100 {
        builder.push(&NewMeta::default(), &[9; 10 << 10]);
    }
    let batch = builder.finish();
    for _ in 0..32 {
        client.send("t", Some(QueueId::ZERO), batch.clone()).await.unwrap();
    }
    until("all that was sent", async || {
        (read_all(&client, "t", 0).await.len() == 3_200).then_some(())
    })
    .await;
    let before = process.anonymous_memory();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let queues = vec![Start { queue: 0, offset: 0 }];
        let request = PullStreamRequest { topic: "t".to_owned(), queues, ..Default::default() };
        let mut broker = BrokerClient::new(connect(&process).await);
        readers.push(broker.pull_stream(request).await.unwrap());
    }
    for _ in 0..10 {
        assert_eq!(read_all(&client, "t", 0).await.len(), 3_200);
        let replying = gauge(&process, "mainstem_replying_bytes").await;
        assert!(replying <= 64 * MIB, "{replying}");
        let memory = process.anonymous_memory().saturating_sub(before);
        // What goes out of the log's mapping is no memory of the process; what a stream may have waiting is bounded.
        let bound = READERS * (1 << 20) + 64 * MIB;
        assert!(memory <= bound, "{memory} of {bound}");
    }
    // Whoever begins to take again gets all of it.
    let mut stream = readers.pop().unwrap().into_inner();
    let mut messages = 0;
    while messages < 3_200 {
        let part = soon("a part", stream.message()).await.unwrap().unwrap();
        messages += part.records.iter().map(|record| record.count).sum::<u32>();
    }
    drop((readers, stream));
    until("the end of the streams", async || {
        (gauge(&process, "mainstem_replying_bytes").await == 0).then_some(())
    })
    .await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_takes_no_acknowledgements_is_not_read_from_and_loses_nothing() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let batch = one(&[7; 40_000]);
    let requests = tokio_stream::iter((0..20_000_u32).map(move |n| {
        counted.fetch_add(1, Ordering::Relaxed);
        let open = mainstem::proto::send_stream_request::Open { number: 0, topic: "t".to_owned() };
        SendStreamRequest {
            open: if n == 0 { vec![open] } else { Vec::new() },
            queue: Some(0),
            batch: batch.clone(),
            ..Default::default()
        }
    }));
    // Hardly any window for answers, so that some wait soon.
    let endpoint = Endpoint::from_shared(format!("http://{}", process.grpc)).unwrap();
    let channel = endpoint.initial_stream_window_size(1_000).connect().await.unwrap();
    let mut broker = BrokerClient::new(channel);
    let mut answers = broker.send_stream(requests).await.unwrap().into_inner();
    let mut before = 0;
    until("the sender to stand still", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(Ordering::Relaxed);
        (std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await;
    assert!(before < 20_000, "all was taken from a sender that takes nothing");
    assert!(gauge(&process, "mainstem_replying_bytes").await > 0, "what waits for him is counted");
    served(&client, 20).await;
    let mut acked = 0;
    let end = loop {
        match soon("an answer", answers.message()).await {
            Ok(Some(answer)) => {
                for receipt in answer.receipts {
                    assert_eq!(receipt.first_queue_offset, acked);
                    acked += 1;
                }
                assert_eq!(answer.acked_to, acked);
            }
            end => break end,
        }
    };
    assert!(matches!(end, Ok(None)), "{end:?}");
    assert_eq!(acked, 20_000);
    until("nothing to wait to leave", async || {
        (gauge(&process, "mainstem_replying_bytes").await == 0).then_some(())
    })
    .await;
    // An acknowledgement says that the log has them; their queue shows them a moment later.
    let rest = until("the last messages", async || {
        let rest = read_from(&client, "t", 0, 19_990).await;
        (rest.len() >= 10).then_some(rest)
    })
    .await;
    assert_eq!(rest.len(), 10);
    process.stop().await;
}

/// Such answers were one piece each that HTTP/2 took whole for a window of one byte: nobody counted them any more, 2 GiB
/// of one connection.
#[tokio::test(flavor = "multi_thread")]
async fn many_calls_of_one_connection_that_lets_a_byte_of_each_answer_come_stay_counted_and_bounded()
 {
    const CALLS: usize = 250;
    let home = Home::new();
    let process = Process::start(&home, &["--set", "broker.inflight_replies=16MiB"]).await;
    let client = process.client().await;
    // Small records: they are gathered, copied.
    let batch = one(&[9; 4 << 10]);
    for _ in 0..512 {
        client.send("t", Some(QueueId::ZERO), batch.clone()).await.unwrap();
    }
    until("all that was sent", async || {
        (read_all(&client, "t", 0).await.len() == 512).then_some(())
    })
    .await;
    for call in ["Pull", "PullStream"] {
        let before = process.anonymous_memory();
        let endpoint = Endpoint::from_shared(format!("http://{}", process.grpc)).unwrap();
        let channel = endpoint.initial_stream_window_size(1).connect().await.unwrap();
        let mut asked = JoinSet::new();
        for _ in 0..CALLS {
            let mut channel = channel.clone();
            asked.spawn(async move {
                let topic = "t".to_owned();
                if call == "PullStream" {
                    let queues = vec![Start { queue: 0, offset: 0 }];
                    let request = PullStreamRequest { topic, queues, ..Default::default() };
                    ask(&mut channel, call, &request).await
                } else {
                    let request = PullRequest { topic, max_bytes: 2 << 20, ..Default::default() };
                    ask(&mut channel, call, &request).await
                }
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = asked.join_next().await {
            answers.push(answer.unwrap().unwrap());
        }
        // Who takes nothing while others need his room loses his connection.
        let mut most = (0, 0);
        until("the end of the connection", async || {
            let replying = gauge(&process, "mainstem_replying_bytes").await;
            most.0 = most.0.max(replying);
            // While they hold it, not while it comes back: then the allocator keeps some.
            if replying >= 14 * MIB {
                most.1 = most.1.max(process.anonymous_memory().saturating_sub(before));
            }
            (gauge(&process, "mainstem_connections").await == 1 && replying == 0).then_some(())
        })
        .await;
        let (replying, memory) = most;
        assert!((14 * MIB..=16 * MIB).contains(&replying), "{call}: {replying}");
        // Records that are being read, and what the allocator keeps, come on top. Uncounted, it was twice that.
        let bound = u64::try_from(CALLS).unwrap() * MIB / 2;
        assert!(memory <= bound, "{call}: {memory} of {bound}");
        drop(answers);
        assert_eq!(read_all(&client, "t", 0).await.len(), 512);
    }
    process.stop().await;
}

/// Each asks for a message of a byte, and 16 MiB have to be decompressed for it: that used to be done for all at once,
/// and counted nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn bombs_in_many_queues_with_as_many_receives_stay_counted_and_bounded() {
    const QUEUES: u32 = 64;
    let home = Home::new();
    let process = Process::start(&home, &["--set", "broker.inflight_replies=32MiB"]).await;
    let client = process.client().await;
    let settings = TopicSettings { queues: Some(QUEUES), ..TopicSettings::default() };
    client.create_topic("bombs", settings).await.unwrap();
    client.create_group("g", &GroupSettings::default()).await.unwrap();
    let mut builder = BatchBuilder::new();
    for len in [1, 4 << 20, 4 << 20, 4 << 20, (4 << 20) - 1] {
        let meta = NewMeta { tag: (len == 1).then_some("small"), ..NewMeta::default() };
        builder.push(&meta, &vec![0; len]);
    }
    let bomb = builder.finish_compressed(&mut Compressor::new(Codec::Lz4).unwrap());
    assert!(bomb.len() < 128 << 10, "{} bytes", bomb.len());
    let before = process.anonymous_memory();
    let mut receives = JoinSet::new();
    for _ in 0..QUEUES {
        let mut broker = BrokerClient::new(connect(&process).await);
        receives.spawn(async move {
            let mut request = tonic::Request::new(ReceiveRequest {
                group: "g".to_owned(),
                topic: "bombs".to_owned(),
                max_messages: 1,
                max_bytes: 1,
                wait_ms: 30_000,
                filter: Some(Filter::Tags("small".to_owned())),
                ..Default::default()
            });
            request.set_timeout(Duration::from_secs(120));
            broker.receive(request).await.unwrap().into_inner().messages
        });
    }
    until("all to wait", async || {
        (gauge(&process, "mainstem_waiters").await == u64::from(QUEUES)).then_some(())
    })
    .await;
    for queue in 0..QUEUES {
        client.send("bombs", Some(QueueId::new(queue)), bomb.clone()).await.unwrap();
    }
    let mut queues = std::collections::BTreeSet::new();
    while queues.len() < QUEUES as usize {
        served(&client, 1).await;
        let replying = gauge(&process, "mainstem_replying_bytes").await;
        let kept = gauge(&process, "mainstem_kept_unpacked_bytes").await;
        assert!(replying <= 32 * MIB && kept <= 32 * MIB, "{replying}, {kept}");
        let memory = process.anonymous_memory().saturating_sub(before);
        // What is counted, what the allocator keeps, and what so many connections and receives cost.
        let bound = 2 * 64 * MIB + u64::from(QUEUES) * (512 << 10);
        assert!(memory <= bound, "{memory} of {bound}");
        while let Some(messages) = receives.try_join_next() {
            for message in messages.unwrap() {
                assert_eq!((message.delivery, message.queue_offset), (1, 0));
                assert!(queues.insert(message.queue), "{} came twice", message.queue);
            }
        }
    }
    until("the end of the answers", async || {
        (gauge(&process, "mainstem_replying_bytes").await == 0).then_some(())
    })
    .await;
    assert_no_panic(&process.said());
    process.stop().await;
}
