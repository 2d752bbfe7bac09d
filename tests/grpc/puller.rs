//! The client's puller: what it hands out over broken connections, restarts and retention.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstem::client::{Client, ClientError, OnGone, Part, Puller, PullerConfig, Purge, Reason};
use mainstem::format::batch::NewMeta;
use mainstem::message::{QueueId, QueueOffset};
use mainstem::proto::{FlushMode, TopicConfig};

use crate::proxy::Proxy;
use crate::support::{Server, batch, batch_with, soon, to};

const QUEUES: u32 = 3;

fn all() -> Vec<(QueueId, QueueOffset)> {
    (0..QUEUES).map(|queue| (QueueId::new(queue), QueueOffset::ZERO)).collect()
}

async fn started() -> Server {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: QUEUES, ..TopicConfig::default() }).await;
    server
}

async fn client(server: &Server) -> Client {
    Client::connect(&server.at.grpc.to_string()).await.unwrap()
}

/// A batch of two to a queue, with a text that tells its number.
async fn send(server: &Server, n: u32) {
    let bodies = [format!("{n} one"), format!("{n} two")];
    let batch = batch(&[bodies[0].as_str(), bodies[1].as_str()]);
    server.send(to("t", Some(n % QUEUES), batch)).await.unwrap();
}

/// What was sent as `send` does it, by queue.
fn expected(count: u32) -> BTreeMap<u32, Vec<String>> {
    let mut expected = BTreeMap::<u32, Vec<String>>::new();
    for n in 0..count {
        expected.entry(n % QUEUES).or_default().extend([format!("{n} one"), format!("{n} two")]);
    }
    expected
}

/// Adds a part's bodies; each message must be the next of its queue.
fn add(found: &mut BTreeMap<u32, Vec<String>>, part: &Part) {
    let found = found.entry(part.queue.get()).or_default();
    part.for_each(|message| {
        assert_eq!(message.queue_offset.get(), found.len() as u64, "{}", message.queue);
        found.push(String::from_utf8(message.body.to_vec()).unwrap());
    })
    .unwrap();
    assert_eq!(part.next_offset.get(), found.len() as u64);
}

async fn next(puller: &mut Puller) -> Result<Part, ClientError> {
    soon(puller.next()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_comes_once_and_in_order_though_connections_break_anywhere() {
    let server = started().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    let config = PullerConfig { max_bytes: 100, ..PullerConfig::default() };
    let mut puller = client.puller("t", &all(), config).await.unwrap();
    let mut found = BTreeMap::new();
    let mut sent = 0;
    // How many bytes come between two sends is not the same twice.
    while sent < 150 || proxy.cuts() < 10 {
        let n = sent;
        sent += 1;
        send(&server, n).await;
        if n % 3 == 0 {
            // Somewhere in the next answers, also in the middle of one.
            proxy.cut_after(u64::from(n) * 7 % 311);
        }
        if n % 2 == 0 {
            add(&mut found, &next(&mut puller).await.unwrap());
        }
    }
    while found != expected(sent) {
        add(&mut found, &next(&mut puller).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_not_waited_for_is_not_lost() {
    let server = started().await;
    let client = client(&server).await;
    let mut puller = client.puller("t", &all(), PullerConfig::default()).await.unwrap();
    let mut found = BTreeMap::new();
    for n in 0..60 {
        send(&server, n).await;
        if let Ok(part) =
            tokio::time::timeout(Duration::from_micros(u64::from(n) * 50), puller.next()).await
        {
            add(&mut found, &part.unwrap());
        }
    }
    while found != expected(60) {
        add(&mut found, &next(&mut puller).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_puller_goes_on_when_the_broker_comes_back() {
    let server = started().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    let mut puller = client.puller("t", &all(), PullerConfig::default()).await.unwrap();
    let mut found = BTreeMap::new();
    for n in 0..9 {
        send(&server, n).await;
    }
    while found != expected(9) {
        add(&mut found, &next(&mut puller).await.unwrap());
    }
    let (data, ended) = server.stop();
    let waiting = tokio::spawn(async move {
        let part = next(&mut puller).await;
        (puller, part)
    });
    soon(ended).await.unwrap().unwrap();
    let server = Server::on(data, &[]).await;
    proxy.lead_to(server.at.grpc);
    for n in 9..20 {
        send(&server, n).await;
    }
    let (mut puller, part) = waiting.await.unwrap();
    add(&mut found, &part.unwrap());
    while found != expected(20) {
        add(&mut found, &next(&mut puller).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_told_when_patience_ends_and_the_place_is_kept() {
    let server = started().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    let config = PullerConfig { patience: Duration::from_millis(200), ..PullerConfig::default() };
    let mut puller = client.puller("t", &all(), config).await.unwrap();
    send(&server, 0).await;
    let mut found = BTreeMap::new();
    add(&mut found, &next(&mut puller).await.unwrap());
    proxy.refuse();
    let error = next(&mut puller).await.unwrap_err();
    assert!(matches!(error, ClientError::NoAnswer { .. }), "{error:?}");
    assert_eq!(puller.position(QueueId::ZERO), Some(QueueOffset::new(2)));
    proxy.lead_to(server.at.grpc);
    send(&server, 1).await;
    add(&mut found, &next(&mut puller).await.unwrap());
    assert_eq!(found, expected(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_reader_has_all_of_its_patience_for_each_trouble() {
    let server = started().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    let patience = Duration::from_millis(2_100);
    let config = PullerConfig { patience, ..PullerConfig::default() };
    let mut puller = client.puller("t", &all(), config).await.unwrap();
    let waiting = tokio::spawn(async move { next(&mut puller).await });
    // Each stream stands for longer than the patience, and brings nothing.
    for _ in 0..2 {
        tokio::time::sleep(patience + Duration::from_millis(500)).await;
        proxy.cut();
    }
    send(&server, 0).await;
    let part = waiting.await.unwrap().unwrap();
    assert_eq!(part.next_offset.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_messages_are_gone_a_puller_does_as_it_was_told() {
    let server = started().await;
    let client = client(&server).await;
    for n in 0..12 {
        send(&server, n).await;
    }
    let queue = QueueId::new(1);
    let up_to = Some(QueueOffset::new(4));
    client.purge_topic("t", Purge::Queue { queue, up_to }).await.unwrap();
    for (on_gone, at) in [(OnGone::Earliest, 4), (OnGone::Latest, 8)] {
        let config = PullerConfig { on_gone, ..PullerConfig::default() };
        let mut puller = client.puller("t", &[(queue, QueueOffset::ZERO)], config).await.unwrap();
        if on_gone == OnGone::Latest {
            // It waits at the end until there is more.
            let waits = tokio::time::timeout(Duration::from_millis(50), puller.next()).await;
            assert!(waits.is_err());
            send(&server, 13).await;
        }
        let part = next(&mut puller).await.unwrap();
        assert_eq!(part.messages().unwrap()[0].queue_offset.get(), at);
    }
    let begin = [(queue, QueueOffset::ZERO)];
    let mut puller = client.puller("t", &begin, PullerConfig::default()).await.unwrap();
    let error = next(&mut puller).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::OffsetOutOfRange));
    assert_eq!(puller.position(queue), Some(QueueOffset::ZERO));
    puller.seek(queue, QueueOffset::new(5));
    let part = next(&mut puller).await.unwrap();
    // The record begins before it; the message there was not asked for.
    assert_eq!(part.messages().unwrap()[0].queue_offset.get(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tags_and_what_was_not_asked_for_are_dropped_also_within_a_batch() {
    let server = started().await;
    let client = client(&server).await;
    for tag in ["red", "blue"] {
        let meta = NewMeta { tag: Some(tag), ..NewMeta::default() };
        server.send(to("t", Some(0), batch_with(&["a", "b", "c"], &meta))).await.unwrap();
    }
    let config = PullerConfig { tags: "blue".to_owned(), ..PullerConfig::default() };
    let begin = [(QueueId::ZERO, QueueOffset::new(4))];
    let mut puller = client.puller("t", &begin, config).await.unwrap();
    let messages = next(&mut puller).await.unwrap().messages().unwrap();
    let told: Vec<_> = messages.iter().map(|m| (m.queue_offset.get(), &m.body[..])).collect();
    assert_eq!(told, [(4, &b"b"[..]), (5, b"c")]);

    let config = PullerConfig { tags: "||".to_owned(), ..PullerConfig::default() };
    let error = client.puller("t", &begin, config).await.unwrap_err();
    assert!(matches!(error, ClientError::BadTags { .. }), "{error:?}");
}

/// Of one that is not read the broker sends as much ahead as it was told, and what a stream has waiting beside.
#[tokio::test(flavor = "multi_thread")]
async fn a_puller_fetches_ahead_what_it_was_told_and_no_more() {
    const MIB: u64 = 1 << 20;
    let server = Server::start().await;
    let flush = FlushMode::Async.into();
    server.create("t", TopicConfig { queues: 1, flush, ..TopicConfig::default() }).await;
    let body = "x".repeat(1 << 20);
    for _ in 0..48 {
        server.send(to("t", Some(0), batch(&[body.as_str()]))).await.unwrap();
    }
    let client = client(&server).await;
    let begin = [(QueueId::ZERO, QueueOffset::ZERO)];
    let pulled = async || server.metric("mainstem_pulled_bytes_total").await.unwrap();
    for prefetch in [MIB, 16 * MIB] {
        let before = pulled().await;
        let prefetch_bytes = u32::try_from(prefetch).unwrap();
        let config = PullerConfig { prefetch_bytes, ..PullerConfig::default() };
        let mut puller = client.puller("t", &begin, config).await.unwrap();
        let first = next(&mut puller).await.unwrap();
        assert_eq!(first.batches().count(), 1);
        // Enough, and no more for a while.
        let settled = async {
            let (mut ahead, mut now) = (0, pulled().await - before);
            while now < prefetch || now != ahead {
                ahead = now;
                tokio::time::sleep(Duration::from_millis(300)).await;
                now = pulled().await - before;
            }
            ahead
        };
        let ahead = soon(settled).await;
        // The first, one that has begun to leave, and 1 MiB that waits in the broker with the part that it ends within.
        assert!(ahead <= prefetch + 5 * MIB, "{ahead} for {prefetch}");
        let mut seen = 1;
        while seen < 48 {
            seen += next(&mut puller).await.unwrap().batches().count();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_slower_than_the_senders_of_single_small_messages_keeps_its_connection() {
    const MESSAGES: u64 = 1_000;
    let server = Server::start().await;
    let flush = FlushMode::Async.into();
    server.create("t", TopicConfig { queues: 1, flush, ..TopicConfig::default() }).await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    let begin = [(QueueId::ZERO, QueueOffset::ZERO)];
    // The least there is, so that it is soon full.
    let config = PullerConfig { prefetch_bytes: 64 << 10, ..PullerConfig::default() };
    let mut puller = client.puller("t", &begin, config).await.unwrap();
    let body = "x".repeat(50);
    let mut seen = Vec::new();
    for n in 0..MESSAGES {
        server.send(to("t", Some(0), batch(&[body.as_str()]))).await.unwrap();
        if n == 0 {
            // From now on the stream stands at the end of the queue, and each message is a frame of its own.
            let part = next(&mut puller).await.unwrap();
            part.for_each(|message| seen.push(message.queue_offset.get())).unwrap();
        }
    }
    while (seen.len() as u64) < MESSAGES {
        let part = next(&mut puller).await.unwrap();
        part.for_each(|message| seen.push(message.queue_offset.get())).unwrap();
    }
    assert!(seen.into_iter().eq(0..MESSAGES));
    assert_eq!(proxy.connections(), 2, "the client's and the puller's");
}
