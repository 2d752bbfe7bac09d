//! SendStream: batch after batch, acknowledged in order, ended by the first that is refused.

use bytes::Bytes;
use mainstem::proto::send_stream_request::Open;
use mainstem::proto::{
    FlushMode, OpenSessionRequest, SendResponse, SendStreamRequest, SendStreamResponse,
    SessionMark, TopicConfig,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::compressed::claim;
use crate::support::{Server, batch, detail, from, soon};

/// A stream, both ways.
struct Stream {
    send: mpsc::Sender<SendStreamRequest>,
    answers: Streaming<SendStreamResponse>,
    receipts: Vec<SendResponse>,
    acked_to: u64,
}

impl Stream {
    async fn open(server: &Server) -> Self {
        let (send, requests) = mpsc::channel(1_000);
        let answers = server.broker.clone().send_stream(ReceiverStream::new(requests)).await;
        let answers = answers.unwrap().into_inner();
        Self { send, answers, receipts: Vec::new(), acked_to: 0 }
    }

    async fn send(&self, request: SendStreamRequest) {
        self.send.send(request).await.unwrap();
    }

    /// Reads answers until `count` batches are acknowledged.
    async fn acked(&mut self, count: usize) -> &[SendResponse] {
        while self.receipts.len() < count {
            let answer = soon(self.answers.message()).await.unwrap().expect("the stream ended");
            self.take(answer);
        }
        &self.receipts
    }

    fn take(&mut self, answer: SendStreamResponse) {
        assert!(!answer.receipts.is_empty());
        self.receipts.extend(answer.receipts);
        self.acked_to = answer.acked_to;
    }

    /// Closes this side, and reads to the end.
    async fn end(self) -> (Vec<SendResponse>, Result<(), Status>) {
        let Self { send, mut answers, mut receipts, .. } = self;
        drop(send);
        loop {
            match soon(answers.message()).await {
                Ok(Some(answer)) => receipts.extend(answer.receipts),
                Ok(None) => return (receipts, Ok(())),
                Err(status) => return (receipts, Err(status)),
            }
        }
    }

    /// The same of a stream that the broker ends.
    async fn ended(self) -> (Vec<SendResponse>, Status) {
        let Self { send: _open, mut answers, mut receipts, .. } = self;
        loop {
            match soon(answers.message()).await {
                Ok(answer) => receipts.extend(answer.expect("it ended with OK").receipts),
                Err(status) => return (receipts, status),
            }
        }
    }
}

fn open(topics: &[&str]) -> SendStreamRequest {
    let open =
        topics.iter().zip(0..).map(|(topic, number)| Open { number, topic: (*topic).into() });
    SendStreamRequest { open: open.collect(), ..SendStreamRequest::default() }
}

fn to(topic: u32, queue: u32, batch: Bytes) -> SendStreamRequest {
    SendStreamRequest { topic, queue: Some(queue), batch, ..SendStreamRequest::default() }
}

fn queues(queues: u32, flush: FlushMode) -> TopicConfig {
    TopicConfig { queues, flush: flush.into(), ..TopicConfig::default() }
}

/// All of a queue. An empty answer is the end: that one has waited for all that was acknowledged.
async fn bodies(server: &Server, topic: &str, queue: u32) -> Vec<u8> {
    let (mut bodies, mut offset) = (Vec::new(), 0);
    loop {
        let pulled = server.pull(from(topic, queue, offset)).await.unwrap();
        if pulled.records.is_empty() {
            return bodies;
        }
        for record in pulled.records {
            let batch = <mainstem::proto::Batch as prost::Message>::decode(record.batch).unwrap();
            bodies.extend_from_slice(&batch.bodies);
        }
        offset = pulled.next_offset;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_to_several_topics_are_stored_and_acknowledged_in_the_order_of_the_stream() {
    let server = Server::start().await;
    server.create("sync", queues(2, FlushMode::Sync)).await;
    server.create("async", queues(2, FlushMode::Async)).await;
    let mut stream = Stream::open(&server).await;
    stream.send(open(&["sync", "async"])).await;
    for n in 0..100_u32 {
        let body = format!("{:02}", n);
        stream.send(to(n % 2, n / 2 % 2, batch(&[&body]))).await;
    }
    let receipts = stream.acked(100).await.to_vec();
    assert_eq!(stream.acked_to, 100);
    let places: Vec<_> = receipts.iter().map(|receipt| receipt.physical_offset).collect();
    assert!(places.is_sorted(), "{places:?}");
    for (n, receipt) in (0_u32..).zip(&receipts) {
        let place = (receipt.queue, receipt.first_queue_offset, receipt.count);
        assert_eq!(place, (n / 2 % 2, u64::from(n / 4), 1), "batch {n}");
    }
    let (rest, ended) = stream.end().await;
    assert_eq!((rest.len(), ended.is_ok()), (100, true), "{ended:?}");
    for (topic, first) in [("sync", 0), ("async", 1)] {
        for queue in 0..2 {
            let numbers = (first + 2 * queue..100).step_by(4);
            let expected: String = numbers.map(|n| format!("{n:02}")).collect();
            assert_eq!(bodies(&server, topic, queue).await, expected.as_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_refused_batch_ends_the_stream_and_nothing_behind_it_is_stored() {
    let server = Server::start().await;
    server.create("t", queues(1, FlushMode::Sync)).await;
    let stream = Stream::open(&server).await;
    stream.send(SendStreamRequest { batch: batch(&["a"]), ..open(&["t"]) }).await;
    stream.send(to(0, 0, batch(&["b"]))).await;
    stream.send(to(0, 7, batch(&["c"]))).await;
    stream.send(to(0, 0, batch(&["d"]))).await;
    let (receipts, status) = stream.ended().await;
    assert_eq!(receipts.len(), 2, "what came before is acknowledged");
    let detail = detail(&status);
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!((detail.reason.as_str(), detail.sequence), ("BAD_QUEUE", Some(3)));
    assert_eq!(bodies(&server, "t", 0).await, b"ab");
    assert_eq!(server.metric("mainstem_refusals_total{reason=\"BAD_QUEUE\"}").await, Some(1));
}

/// As with a call of its own: nothing of it is stored, and nothing behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_one_ends_its_stream_by_its_reason() {
    let server = Server::start().await;
    server.create("t", queues(1, FlushMode::Async)).await;
    let broken = || Bytes::from_static(b"no batch");
    for (bad, reason) in [
        (claim(3, 3, b"xyz"), "CODEC"),
        (claim(1, 766, b"xyz"), "BAD_BATCH"),
        (claim(2, 3, b"xyz"), "BAD_BATCH"),
        (broken(), "BAD_BATCH"),
    ] {
        let stream = Stream::open(&server).await;
        stream.send(open(&["t"])).await;
        stream.send(to(0, 0, bad)).await;
        // It may have ended by now.
        let _ = stream.send.send(to(0, 0, batch(&["x"]))).await;
        let (receipts, status) = stream.ended().await;
        let detail = detail(&status);
        assert_eq!((receipts.len(), status.code()), (0, Code::InvalidArgument), "{reason}");
        assert_eq!((detail.reason.as_str(), detail.sequence), (reason, Some(1)));
    }
    assert_eq!(bodies(&server, "t", 0).await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_must_not_bring_is_named_and_ends_it() {
    let server = Server::start().await;
    server.create("t", queues(1, FlushMode::Async)).await;
    let opened = || open(&["t"]);
    let number = |number: u32| SendStreamRequest {
        open: vec![Open { number, topic: "t".to_owned() }],
        ..SendStreamRequest::default()
    };
    let mark = Some(SessionMark { id: 1, epoch: 1, sequence: 1 });
    let late = SendStreamRequest { session: mark, ..SendStreamRequest::default() };
    let cases = [
        (to(3, 0, batch(&["x"])), "no topic was opened under number 3 on this stream"),
        (number(0), "number 0 of a topic is in use on this stream, or not below 65536"),
        (number(65_536), "number 65536 of a topic is in use on this stream, or not below 65536"),
        (late, "a producer session is named in the first request of a stream alone"),
    ];
    for (request, said) in cases {
        let stream = Stream::open(&server).await;
        stream.send(opened()).await;
        stream.send(request).await;
        // It may have ended by now.
        let _ = stream.send.send(to(0, 0, batch(&["x"]))).await;
        let (receipts, status) = stream.ended().await;
        let detail = detail(&status);
        assert_eq!((receipts.len(), status.message()), (0, said));
        assert_eq!((detail.reason.as_str(), detail.sequence), ("BAD_REQUEST", Some(1)));
    }
    // The sequence is the one that the batch would have had, also where none has that.
    let stream = Stream::open(&server).await;
    let session = Some(SessionMark { id: 1, epoch: 1, sequence: 0 });
    stream.send(SendStreamRequest { session, ..to(3, 0, batch(&["x"])) }).await;
    let (_, status) = stream.ended().await;
    assert_eq!(detail(&status).sequence, Some(0));
    // A name is looked at when it is opened: a stream keeps no long ones.
    let stream = Stream::open(&server).await;
    stream.send(open(&[&"x".repeat(1 << 20)])).await;
    let (_, status) = stream.ended().await;
    assert_eq!(detail(&status).limit, Some(127));
    assert_eq!(bodies(&server, "t", 0).await, b"");
    // An empty stream is one that ends well.
    let (receipts, ended) = Stream::open(&server).await.end().await;
    assert_eq!((receipts.len(), ended.is_ok()), (0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_over_another_stream_and_stores_nothing_twice() {
    let server = Server::start().await;
    server.create("t", queues(1, FlushMode::Sync)).await;
    let request = OpenSessionRequest { name: "p".to_owned() };
    let session = server.broker.clone().open_session(request).await.unwrap().into_inner();
    let begin = |sequence| SendStreamRequest {
        session: Some(SessionMark { id: session.id, epoch: session.epoch, sequence }),
        ..open(&["t"])
    };
    let mut first = Stream::open(&server).await;
    first.send(begin(1)).await;
    for body in ["a", "b", "c"] {
        first.send(to(0, 0, batch(&[body]))).await;
    }
    let stored = first.acked(3).await.to_vec();
    assert_eq!(first.acked_to, 3);
    drop(first);

    let mut second = Stream::open(&server).await;
    second.send(begin(2)).await;
    for body in ["b", "c", "d"] {
        second.send(to(0, 0, batch(&[body]))).await;
    }
    let again = second.acked(3).await.to_vec();
    assert_eq!(second.acked_to, 4);
    let duplicate = |receipt: &SendResponse| SendResponse { duplicate: true, ..*receipt };
    assert_eq!(again[..2], [duplicate(&stored[1]), duplicate(&stored[2])]);
    assert_eq!((again[2].first_queue_offset, again[2].duplicate), (3, false));
    assert_eq!(bodies(&server, "t", 0).await, b"abcd");
    drop(second);

    // A gap ends the stream, and says which batch is missing.
    let third = Stream::open(&server).await;
    third.send(begin(6)).await;
    third.send(to(0, 0, batch(&["f"]))).await;
    let (receipts, status) = third.ended().await;
    let detail = detail(&status);
    assert_eq!((receipts.len(), detail.reason.as_str()), (0, "SEQUENCE_GAP"));
    assert_eq!((detail.sequence, detail.expected_sequence), (Some(6), Some(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_stream_may_have_in_flight_is_known_again_on_the_next_one() {
    const IN_FLIGHT: u64 = 64;
    let server = Server::start().await;
    server.create("t", queues(1, FlushMode::Async)).await;
    let request = OpenSessionRequest { name: "p".to_owned() };
    let session = server.broker.clone().open_session(request).await.unwrap().into_inner();
    let mark = SessionMark { id: session.id, epoch: session.epoch, sequence: 1 };
    let mut before = Vec::new();
    for is_repeated in [false, true] {
        let mut stream = Stream::open(&server).await;
        stream.send(SendStreamRequest { session: Some(mark), ..open(&["t"]) }).await;
        for n in 0..IN_FLIGHT {
            stream.send(to(0, 0, batch(&[&format!("{n:02}")]))).await;
        }
        let receipts = stream.acked(IN_FLIGHT as usize).await.to_vec();
        assert!(receipts.iter().all(|receipt| receipt.duplicate == is_repeated));
        let places: Vec<_> =
            receipts.iter().map(|at| (at.first_queue_offset, at.physical_offset)).collect();
        if is_repeated {
            assert_eq!(places, before);
        }
        before = places;
    }
    let expected: String = (0..IN_FLIGHT).map(|n| format!("{n:02}")).collect();
    assert_eq!(bodies(&server, "t", 0).await, expected.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_streams_after_their_last_acknowledgement() {
    let server = Server::start().await;
    server.create("t", queues(1, FlushMode::Sync)).await;
    let mut stream = Stream::open(&server).await;
    stream.send(SendStreamRequest { batch: batch(&["a"]), ..open(&["t"]) }).await;
    stream.acked(1).await;
    let idle = Stream::open(&server).await;
    let (_data, ended) = server.stop();
    for stream in [stream, idle] {
        let (_, status) = stream.ended().await;
        let detail = detail(&status);
        assert_eq!((status.code(), detail.reason.as_str()), (Code::Unavailable, "DRAINING"));
        assert_eq!(detail.sequence, None);
    }
    soon(ended).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_above_the_limit_ends_the_stream_before_it_has_arrived() {
    let server = Server::start().await;
    let stream = Stream::open(&server).await;
    stream.send(to(0, 0, Bytes::from(vec![0; 10 << 20]))).await;
    let (_, status) = stream.ended().await;
    let detail = detail(&status);
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!((detail.reason.as_str(), detail.limit), ("TOO_LARGE", Some(9 << 20)));
}

/// 64 KiB of names were free for each stream, of as many streams as there may be calls.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_keeps_is_counted_from_its_first_names_on_and_comes_back_with_its_end() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.send(SendStreamRequest { batch: batch(&["a"]), ..open(&["t"]) }).await;
    stream.acked(1).await;
    assert_eq!(server.metric("mainstem_stream_names_bytes").await, Some(0));
    let name = |number: u32| Open { number, topic: format!("{number:0>100}") };
    let more = to(0, 0, batch(&["b"]));
    stream.send(SendStreamRequest { open: (1..=30).map(name).collect(), ..more }).await;
    stream.acked(2).await;
    // 172 bytes each, 2 KiB free, the others in steps of 4 KiB.
    assert_eq!(server.metric("mainstem_stream_names_bytes").await, Some(4 << 10));
    assert_eq!(server.metric("mainstem_send_streams").await, Some(1));
    assert!(stream.end().await.1.is_ok());
    server.until_metric("mainstem_stream_names_bytes", 0).await;
    server.until_metric("mainstem_send_streams", 0).await;
}
