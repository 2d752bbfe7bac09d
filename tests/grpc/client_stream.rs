//! The client's end of SendStream: order, bounds, and how a stream ends.

use bytes::Bytes;
use mainstem::client::{Client, ClientError, Reason, Receipt, SendStream, Stored};
use mainstem::message::{QueueId, SessionMark};
use mainstem::proto::{FlushMode, TopicConfig};

use crate::support::{Server, batch, soon};

const QUEUE: Option<QueueId> = Some(QueueId::new(0));

async fn client(server: &Server) -> Client {
    Client::connect(&server.at.grpc.to_string()).await.unwrap()
}

/// All messages of a queue.
async fn bodies(client: &Client, topic: &str) -> Vec<Bytes> {
    let filter = mainstem::format::batch::TagFilter::All;
    let (mut bodies, mut offset) = (Vec::new(), mainstem::message::QueueOffset::ZERO);
    loop {
        let pull = mainstem::client::Pull {
            topic,
            queue: QueueId::new(0),
            offset,
            max_messages: None,
            max_bytes: None,
            wait: std::time::Duration::ZERO,
            tags: "*",
            filter: &filter,
            group: None,
            epoch: None,
        };
        let pulled = client.pull(&pull).await.unwrap();
        if pulled.messages.is_empty() {
            return bodies;
        }
        bodies.extend(pulled.messages.into_iter().map(|message| message.body));
        offset = pulled.next_offset;
    }
}

async fn one_queue(server: &Server, topic: &str) {
    let flush = FlushMode::Async.into();
    server.create(topic, TopicConfig { queues: 1, flush, ..TopicConfig::default() }).await;
}

/// Reads a stream that the broker ends to its end.
async fn ended(stream: &mut SendStream, receipts: &mut Vec<Receipt>) -> ClientError {
    loop {
        if let Err(error) = soon(stream.acknowledged(receipts)).await {
            return error;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_the_client_waits_at_its_bound_and_brings_every_receipt_in_order() {
    let server = Server::start().await;
    for topic in ["a", "b"] {
        one_queue(&server, topic).await;
    }
    let client = client(&server).await;
    let mut stream = client.send_stream(None).await.unwrap();
    let mut receipts = Vec::new();
    // The last bodies are larger than a frame and than the connection's buffer.
    let len = |n: u32| if n % 100 == 99 { 2 << 20 } else { 3 };
    let body = |n: u32| format!("{n:03}{}", "x".repeat(len(n)));
    for n in 0..500_u32 {
        let topic = ["a", "b"][n as usize % 2];
        let sent = stream.send(topic, QUEUE, batch(&[&body(n)]), &mut receipts);
        assert_eq!(soon(sent).await.unwrap(), u64::from(n) + 1);
        assert_eq!(stream.in_flight() + receipts.len(), n as usize + 1);
        assert!(stream.in_flight() <= SendStream::IN_FLIGHT);
    }
    assert!(receipts.len() >= 500 - SendStream::IN_FLIGHT);
    soon(stream.finish(&mut receipts)).await.unwrap();
    let offsets: Vec<_> = receipts.iter().map(|r| r.first_queue_offset.get()).collect();
    assert_eq!(offsets, (0..500).map(|n| n / 2).collect::<Vec<_>>());
    for (topic, first) in [("a", 0), ("b", 1)] {
        let expected: Vec<_> = (first..500).step_by(2).map(|n| Bytes::from(body(n))).collect();
        assert!(bodies(&client, topic).await == expected, "{topic}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_ends_the_clients_stream_with_its_number_and_the_broker_keeps_what_was_before()
 {
    let server = Server::start().await;
    one_queue(&server, "t").await;
    let client = client(&server).await;
    let session = client.open_session("p").await.unwrap();
    let mark = SessionMark {
        session: session.id(),
        epoch: session.epoch(),
        sequence: session.next_sequence(),
    };
    let mut stream = client.send_stream(Some(mark)).await.unwrap();
    let mut receipts = Vec::new();
    for (body, queue) in [("a", 0), ("b", 0), ("c", 7), ("d", 0)] {
        let queue = Some(QueueId::new(queue));
        stream.send("t", queue, batch(&[body]), &mut receipts).await.unwrap();
    }
    let error = ended(&mut stream, &mut receipts).await;
    assert_eq!(error.reason(), Some(Reason::BadQueue));
    assert_eq!((error.refusal().unwrap().sequence, error.stored()), (Some(3), Stored::No));
    assert_eq!((receipts.len(), stream.acked_to(), stream.in_flight()), (2, 2, 2));
    let over = stream.send("t", QUEUE, batch(&["e"]), &mut receipts).await.unwrap_err();
    assert_eq!(over.to_string(), format!("no answer from {}", server.at.grpc));

    // The session goes on with the number of the batch that was refused.
    let mut stream = client.send_stream(Some(SessionMark { sequence: 2, ..mark })).await.unwrap();
    let mut again = Vec::new();
    for body in ["b", "d"] {
        stream.send("t", QUEUE, batch(&[body]), &mut again).await.unwrap();
    }
    soon(stream.finish(&mut again)).await.unwrap();
    assert_eq!(again[0], Receipt { is_duplicate: true, ..receipts[1] });
    assert_eq!(bodies(&client, "t").await, ["a", "b", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_no_stream_can_carry_is_refused_before_it_leaves() {
    let server = Server::start().await;
    let client = client(&server).await;
    let mut stream = client.send_stream(None).await.unwrap();
    let mut receipts = Vec::new();
    let empty = stream.send("t", None, Bytes::new(), &mut receipts).await.unwrap_err();
    assert_eq!((empty.reason(), empty.stored()), (Some(Reason::BadBatch), Stored::No));
    assert_eq!(stream.send("t", None, batch(&["x"]), &mut receipts).await.unwrap(), 1);
    soon(stream.finish(&mut receipts)).await.unwrap();
    assert_eq!(receipts.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_is_cancelled_and_the_next_one_goes_on() {
    let server = Server::start().await;
    one_queue(&server, "t").await;
    let client = client(&server).await;
    for _ in 0..3 {
        let mut stream = client.send_stream(None).await.unwrap();
        let mut receipts = Vec::new();
        stream.send("t", QUEUE, batch(&["x"]), &mut receipts).await.unwrap();
        soon(stream.acknowledged(&mut receipts)).await.unwrap();
        assert_eq!(receipts.len(), 1);
    }
    assert_eq!(bodies(&client, "t").await.len(), 3);
    // Without a broker there is no stream.
    let (_data, stopped) = server.stop();
    soon(stopped).await.unwrap().unwrap();
    let error = client.send_stream(None).await.unwrap_err();
    assert_eq!(error.stored(), Stored::No, "{error:?}");
}
