//! Streams that are cut in the middle of a frame, at every frame, both ways: nothing is lost and nothing stored twice.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstem::client::{Client, ConsumerConfig, GroupSettings, PullStreamOptions};
use mainstem::format::batch::TagFilter;
use mainstem::message::{QueueId, QueueOffset, SessionMark};
use mainstem::proto::{FlushMode, TopicConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{Server, batch, soon};

const QUEUE: QueueId = QueueId::new(0);
/// Larger than the largest frame that a broker takes, so that a batch lies in several.
const BODY: usize = 300_000;
const BATCHES: usize = 6;

/// Which way the frames go that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

/// Passes one connection on, and breaks it in the middle of its frame `n`, from 0. The handle says whether there was
/// such a frame.
async fn cut_at(server: SocketAddr, way: Way, n: usize) -> (SocketAddr, JoinHandle<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let passing = tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = tokio::net::TcpStream::connect(server).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        // The client says who it is before its first frame.
        let mut preface = [0; 24];
        from_client.read_exact(&mut preface).await.unwrap();
        to_server.write_all(&preface).await.unwrap();
        let [sent, answered] =
            [Way::ToServer, Way::ToClient].map(|this| if this == way { n } else { usize::MAX });
        // Both sockets are dropped with what was left of the frame.
        tokio::select! {
            was_cut = pass(&mut from_client, &mut to_server, sent) => was_cut,
            was_cut = pass(&mut from_server, &mut to_client, answered) => was_cut,
        }
    });
    (address, passing)
}

/// Passes frames on until `from` ends, or to the middle of frame `n`.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    n: usize,
) -> bool {
    for frame in 0.. {
        // Three bytes of length, and six more of head (RFC 9113, section 4.1).
        let mut head = [0; 9];
        if from.read_exact(&mut head).await.is_err() {
            return false;
        }
        let [high, middle, low, ..] = head;
        let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let mut payload = vec![0; len];
        if from.read_exact(&mut payload).await.is_err() {
            return false;
        }
        let mut bytes = [&head[..], &payload].concat();
        if frame == n {
            bytes.truncate(bytes.len() / 2);
        }
        if to.write_all(&bytes).await.is_err() {
            return false;
        }
        if frame == n {
            return true;
        }
    }
    false
}

/// Waits until streams that were cut cost nothing any more: no room, no place, and no connection but the rig's own.
async fn nothing_is_left_of(server: &Server) {
    for (name, left) in [
        ("arriving_bytes", 0),
        ("awaiting_room_bytes", 0),
        ("storing_bytes", 0),
        ("replying_bytes", 0),
        ("stream_names_bytes", 0),
        ("waiters", 0),
        ("connections", 1),
    ] {
        soon(server.until_metric(&format!("mainstem_{name}"), left)).await;
    }
}

/// The body of a batch of one message.
fn body(number: usize) -> String {
    format!("{number}{}", "x".repeat(BODY))
}

async fn topic(server: &Server, name: &str) {
    let flush = FlushMode::Async.into();
    server.create(name, TopicConfig { queues: 1, flush, ..TopicConfig::default() }).await;
}

/// Bodies of the next messages of a topic from `offset` on, over a stream at `client`: until there are `wanted` of
/// them, or the stream breaks.
async fn pull(client: &Client, topic: &str, offset: usize, wanted: usize) -> Vec<Bytes> {
    let options = PullStreamOptions {
        topic,
        queues: &[(QUEUE, QueueOffset::new(offset as u64))],
        max_bytes: Some(1),
        tags: "*",
        filter: &TagFilter::All,
        group: None,
        epoch: None,
    };
    let mut bodies = Vec::new();
    let Ok(mut stream) = client.pull_stream(&options).await else { return bodies };
    while bodies.len() < wanted {
        let Ok(part) = soon(stream.next()).await else { break };
        for message in part.messages().unwrap() {
            assert_eq!(message.queue_offset.get() as usize, offset + bodies.len());
            bodies.push(message.body);
        }
    }
    bodies
}

/// A sender of `BATCHES` that is cut off at frame `n`, and sends again what has no answer. Whether there was such a frame,
/// and how many batches were acknowledged before.
async fn send(server: &Server, way: Way, n: usize) -> (bool, usize) {
    let name = format!("{way:?}-{n}");
    topic(server, &name).await;
    let direct = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    let session = direct.open_session(&name).await.unwrap();
    let mark = |sequence: usize| SessionMark {
        session: session.id(),
        epoch: session.epoch(),
        sequence: sequence as u64,
    };
    let (address, passing) = cut_at(server.at.grpc, way, n).await;
    let mut receipts = Vec::new();
    let sent = async {
        let client = Client::connect(&address.to_string()).await?;
        let mut stream = client.send_stream(Some(mark(1))).await?;
        for number in 0..BATCHES {
            stream.send(&name, Some(QUEUE), batch(&[&body(number)]), &mut receipts).await?;
        }
        stream.finish(&mut receipts).await
    };
    let sent = soon(sent).await;
    let was_cut = soon(passing).await.unwrap();
    // The last frames say good-bye to a stream that has ended well.
    assert!(was_cut || sent.is_ok(), "cut {n}: {sent:?}");
    let acknowledged = receipts.len();
    // Whoever does not know sends all again that was not acknowledged, under the same numbers.
    let mut stream = direct.send_stream(Some(mark(acknowledged + 1))).await.unwrap();
    for number in acknowledged..BATCHES {
        let batch = batch(&[&body(number)]);
        stream.send(&name, Some(QUEUE), batch, &mut receipts).await.unwrap();
    }
    soon(stream.finish(&mut receipts)).await.unwrap();
    let offsets: Vec<_> = receipts.iter().map(|r| r.first_queue_offset.get()).collect();
    assert_eq!(offsets, (0..BATCHES as u64).collect::<Vec<_>>(), "cut {n}");
    let expected: Vec<_> = (0..BATCHES).map(|number| Bytes::from(body(number))).collect();
    assert!(pull(&direct, &name, 0, BATCHES).await == expected, "cut {n}");
    let described = direct.describe_topic(&name).await.unwrap();
    assert_eq!(described.queues[0].1.max.get(), BATCHES as u64, "cut {n}");
    (was_cut, acknowledged)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_is_cut_off_at_any_frame_has_a_begin_stored_and_each_batch_once_in_the_end() {
    let server = Server::start().await;
    // Settings, headers and three frames of each batch; settings, headers, acknowledgements and trailers.
    for (way, least) in [(Way::ToServer, 3 * BATCHES), (Way::ToClient, 3)] {
        let (mut cuts, mut begins) = (0, [0; BATCHES + 1]);
        loop {
            let (was_cut, acknowledged) = send(&server, way, cuts).await;
            begins[acknowledged] += 1;
            if !was_cut {
                break;
            }
            cuts += 1;
        }
        // Cut early nothing is there, cut late much.
        assert!(cuts > least, "{way:?}: {cuts} cuts");
        assert!(begins[0] > 0 && begins[BATCHES] > 0, "{way:?}: {begins:?}");
    }
    nothing_is_left_of(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_cut_off_at_any_frame_has_a_begin_and_goes_on_behind_it() {
    let server = Server::start().await;
    topic(&server, "t").await;
    let direct = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    let mut stream = direct.send_stream(None).await.unwrap();
    for number in 0..BATCHES {
        let batch = batch(&[&body(number)]);
        stream.send("t", Some(QUEUE), batch, &mut Vec::new()).await.unwrap();
    }
    stream.finish(&mut Vec::new()).await.unwrap();
    let expected: Vec<_> = (0..BATCHES).map(|number| Bytes::from(body(number))).collect();
    // Settings, headers and the request; the batches.
    for (way, least) in [(Way::ToServer, 2), (Way::ToClient, BATCHES)] {
        let (mut cuts, mut begins) = (0, [0; BATCHES + 1]);
        loop {
            let (address, passing) = cut_at(server.at.grpc, way, cuts).await;
            let mut bodies = match soon(Client::connect(&address.to_string())).await {
                Ok(client) => pull(&client, "t", 0, BATCHES).await,
                Err(_) => Vec::new(),
            };
            begins[bodies.len()] += 1;
            let was_cut = soon(passing).await.unwrap();
            assert!(was_cut || bodies.len() == BATCHES, "{way:?}, cut {cuts}");
            assert!(bodies == expected[..bodies.len()], "{way:?}, cut {cuts}");
            bodies.extend(pull(&direct, "t", bodies.len(), BATCHES - bodies.len()).await);
            assert!(bodies == expected, "{way:?}, cut {cuts}");
            if !was_cut {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > least, "{way:?}: {cuts} cuts");
        assert!(begins[0] > 0 && begins[BATCHES] > 0, "{way:?}: {begins:?}");
    }
    drop(direct);
    nothing_is_left_of(&server).await;
}

/// A consumer of `BATCHES` messages that is cut off at frame `n`, and another one that goes on. Whether there was such
/// a frame, and how many acks of the first had an answer.
async fn consume(server: &Server, way: Way, n: usize) -> (bool, usize) {
    let name = format!("t{n}");
    topic(server, &name).await;
    let direct = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    direct.create_group(&name, &GroupSettings::default()).await.unwrap();
    for number in 0..BATCHES {
        direct.send(&name, Some(QUEUE), batch(&[&body(number)])).await.unwrap();
    }
    let (address, passing) = cut_at(server.at.grpc, way, n).await;
    let (mut finished, mut came) = (BTreeSet::new(), BTreeSet::new());
    let config = ConsumerConfig { patience: Duration::ZERO, ..ConsumerConfig::default() };
    let config = ConsumerConfig { prefetch_messages: 2, ..config };
    let consumed = async {
        let client = Client::connect(&address.to_string()).await?;
        let mut consumer = client.consumer(&name, &name, config);
        for _ in 0..BATCHES {
            let leased = consumer.next().await?;
            came.insert(leased.message.queue_offset.get());
            if consumer.ack(&leased.handle).await?.done().await? {
                finished.insert(leased.message.queue_offset.get());
            }
        }
        consumer.close().await
    };
    let consumed = soon(consumed).await;
    let was_cut = soon(passing).await.unwrap();
    // The last frames say good-bye to a stream that has ended well.
    assert!(was_cut || consumed.is_ok(), "cut {n}: {consumed:?}");
    let acknowledged = finished.len();
    let mut consumer = direct.consumer(&name, &name, config);
    loop {
        let progress = direct.progress(&name, &name).await.unwrap();
        if progress.iter().all(|row| row.committed.is_some() && row.lag == 0) {
            break;
        }
        // Of acks without an answer the last one may have been done, after the look.
        let Ok(leased) = tokio::time::timeout(Duration::from_millis(50), consumer.next()).await
        else {
            continue;
        };
        let leased = leased.unwrap();
        assert!(finished.insert(leased.message.queue_offset.get()), "cut {n}: it comes again");
        came.insert(leased.message.queue_offset.get());
        assert!(consumer.ack(&leased.handle).await.unwrap().done().await.unwrap());
    }
    assert_eq!(came, (0..BATCHES as u64).collect(), "cut {n}");
    (was_cut, acknowledged)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_consumer_that_is_cut_off_at_any_frame_another_gets_all_that_is_not_acknowledged() {
    for way in [Way::ToServer, Way::ToClient] {
        let server = Arc::new(Server::start().await);
        let (mut cuts, mut begins) = (0, [0; BATCHES + 1]);
        let mut first = 0;
        while cuts == first {
            // Side by side: each waits for a second until what was leased is given to others.
            let mut side_by_side = JoinSet::new();
            for n in first..first + 12 {
                let server = Arc::clone(&server);
                side_by_side.spawn(async move { consume(&server, way, n).await });
            }
            while let Some(consumed) = soon(side_by_side.join_next()).await {
                let (was_cut, acknowledged) = consumed.unwrap();
                cuts += usize::from(was_cut);
                begins[acknowledged] += 1;
            }
            first += 12;
        }
        assert!(cuts > 2 * BATCHES, "{cuts} cuts");
        assert!(begins[0] > 0 && begins[BATCHES] > 0, "{begins:?}");
        nothing_is_left_of(&server).await;
    }
}
