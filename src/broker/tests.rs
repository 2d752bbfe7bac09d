//! What a broker refuses before it does any work, and what it does under a shutdown.

mod offsets;
mod sessions;
pub(crate) mod stopped_clock;
mod streams;
mod topics;
mod unfinished;

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::clock::SystemClock;
use crate::file::disk::RealDisk;
use crate::format::batch::{BatchBuilder, Codec, Compressor, NewMeta};
use crate::message::{
    Access, Force, Keep, MessageId, QueueId, QueueOffset, Retention, SessionMark, Timestamp,
    TopicType,
};

/// A broker on a directory of its own, which has to outlive it.
fn broker(config: BrokerConfig) -> (Arc<Broker>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig::new(dir.path().join("data"));
    (open(store, config), dir)
}

/// One that reads everything off the disk.
fn cold_broker(config: BrokerConfig) -> (Arc<Broker>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig { hot_bytes: 0, ..StoreConfig::new(dir.path().join("data")) };
    (open(store, config), dir)
}

fn open(store: StoreConfig, config: BrokerConfig) -> Arc<Broker> {
    let store = StoreConfig { segment_size: 4 << 20, ..store };
    let clock = Arc::new(SystemClock::new());
    Broker::open(Arc::new(RealDisk), clock, store, config).unwrap().0
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn batch(len: usize) -> Bytes {
    let mut batch = BatchBuilder::new();
    batch.push(&NewMeta::default(), &vec![b'x'; len]);
    batch.finish()
}

fn to(topic: &str, len: usize) -> SendRequest<'_> {
    SendRequest {
        topic,
        queue: Some(QueueId::ZERO),
        batch: batch(len),
        session: None,
        deadline: soon(),
    }
}

/// A batch of a producer session.
fn marked<'a>(topic: &'a str, session: &SessionState, sequence: u64) -> SendRequest<'a> {
    let mark = SessionMark { session: session.id, epoch: session.epoch, sequence };
    SendRequest { session: Some(mark), ..to(topic, 10) }
}

const SETTINGS: TopicSettings = TopicSettings::open(1, FlushMode::Sync, TopicType::Normal);

#[tokio::test]
async fn a_draining_broker_refuses_what_would_append_and_still_reads() {
    let (broker, _dir) = broker(BrokerConfig::default());
    broker.send(to("t", 1)).await.unwrap();
    broker.drain();
    let sent = broker.send(to("t", 1)).await;
    assert!(matches!(sent, Err(BrokerError::Draining)), "{sent:?}");
    let made = broker.create_topic("u", SETTINGS, soon()).await;
    assert!(matches!(made, Err(BrokerError::Draining)), "{made:?}");
    let deleted = broker.delete_topic("t", soon()).await;
    assert!(matches!(deleted, Err(BrokerError::Draining)), "{deleted:?}");
    let mut request = PullRequest {
        epoch: None,
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 10,
        max_bytes: 1024,
        wait: Duration::from_secs(30),
        tags: "",
        group: None,
        deadline: soon(),
    };
    assert_eq!(broker.pull(request).await.unwrap().next, QueueOffset::new(1));
    request.offset = QueueOffset::new(1);
    let began = Instant::now();
    assert_eq!(broker.pull(request).await.unwrap().records.len(), 0);
    assert!(began.elapsed() < Duration::from_secs(5), "nobody is parked any more");
    broker.close().unwrap();
}

#[tokio::test]
async fn sends_beyond_the_bytes_in_work_are_refused_before_any_work() {
    let config = BrokerConfig { inflight_send_bytes: 64 << 10, ..BrokerConfig::default() };
    let (broker, _dir) = broker(config);
    let others = broker.sends.try_take(60 << 10).unwrap();
    let sent = broker.send(to("t", 8 << 10)).await;
    assert!(matches!(sent, Err(BrokerError::Overloaded { .. })), "{sent:?}");
    assert!(broker.state.topics.get("t").is_none());
    drop(others);
    broker.send(to("t", 8 << 10)).await.unwrap();
    broker.close().unwrap();
}

#[tokio::test]
async fn nothing_is_stored_for_a_caller_whose_time_is_up() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let sent = broker.send(SendRequest { deadline: Instant::now(), ..to("t", 1) }).await;
    assert!(matches!(sent, Err(BrokerError::Overloaded { .. })), "{sent:?}");
    assert!(broker.state.topics.get("t").is_none());
    broker.close().unwrap();
}

/// A batch may be within the limits and too large for the segments: the refused send used to make its topic.
#[tokio::test]
async fn a_batch_that_is_too_large_for_the_segments_makes_no_topic() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let session = broker.open_session("p", soon()).await.unwrap();
    let appended = broker.status().watermarks.appended;
    for request in
        [to("t", 1 << 20), SendRequest { batch: batch(1 << 20), ..marked("t", &session, 1) }]
    {
        let sent = broker.send(request).await;
        let Err(BrokerError::TooLarge { what: "append set", limit, .. }) = sent else {
            panic!("{sent:?}");
        };
        assert_eq!(limit, 1 << 20, "a quarter of a segment");
    }
    assert!(broker.state.topics.get("t").is_none());
    assert_eq!(broker.status().watermarks.appended, appended);
    broker.close().unwrap();
}

#[tokio::test]
async fn an_answer_larger_than_asked_for_is_counted_with_its_own_size() {
    let config = BrokerConfig { inflight_reply_bytes: 64 << 10, ..BrokerConfig::default() };
    let (broker, _dir) = cold_broker(config);
    broker.send(to("t", 48 << 10)).await.unwrap();
    let request = PullRequest {
        epoch: None,
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 1,
        max_bytes: 1,
        wait: Duration::ZERO,
        tags: "",
        group: None,
        deadline: soon(),
    };
    let pulled = broker.pull(request).await.unwrap();
    assert!(broker.replies.try_take(32 << 10).is_none());
    drop(pulled);
    assert!(broker.replies.try_take(64 << 10).is_some());
    broker.close().unwrap();
}

#[tokio::test]
async fn what_must_not_wait_behind_the_answers_of_others_is_counted_if_there_is_room() {
    let config = BrokerConfig { inflight_reply_bytes: 64 << 10, ..BrokerConfig::default() };
    let (broker, _dir) = broker(config);
    let others = broker.reply(64 << 10).await.unwrap();
    assert!(broker.try_reply(300).is_none());
    drop(others);
    let counted = broker.try_reply(300);
    assert_eq!((counted.is_some(), broker.in_work().replies), (true, 1 << 10));
    drop(counted);
    assert_eq!(broker.in_work().replies, 0);
    broker.close().unwrap();
}

/// Readers that take their time used to keep the others from reading, though what waited for them was no memory.
#[tokio::test]
async fn what_goes_out_as_it_lies_in_the_log_is_not_counted() {
    let config = BrokerConfig { inflight_reply_bytes: 64 << 10, ..BrokerConfig::default() };
    let (broker, _dir) = broker(config);
    broker.send(to("t", 48 << 10)).await.unwrap();
    broker.send(to("t", SPLICED / 2)).await.unwrap();
    let at = |offset| PullRequest {
        epoch: None,
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::new(offset),
        max_messages: 1,
        max_bytes: 1,
        wait: Duration::ZERO,
        tags: "",
        group: None,
        deadline: soon(),
    };
    let large = broker.pull(at(0)).await.unwrap();
    assert_eq!((large.records.len(), broker.in_work().replies), (1, 1 << 10));
    let small = broker.pull(at(1)).await.unwrap();
    assert_eq!((small.records.len(), broker.in_work().replies), (1, 6 << 10));
    drop((large, small));
    assert_eq!(broker.in_work().replies, 0);
    broker.close().unwrap();
}

/// Ten thousand records of 20 bytes counted for 200 KB, and took 3 MB.
#[tokio::test]
async fn an_answer_of_small_records_counts_for_what_surrounds_them_too() {
    let (broker, _dir) = broker(BrokerConfig::default());
    for _ in 0..400 {
        broker.send(to("t", 1)).await.unwrap();
    }
    let pull = PullRequest {
        epoch: None,
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 400,
        max_bytes: 1 << 20,
        wait: Duration::ZERO,
        tags: "",
        group: None,
        deadline: soon(),
    };
    let pulled = broker.pull(pull).await.unwrap();
    let replies = broker.in_work().replies;
    // The last ones may not be dispatched yet.
    let count = u64::try_from(pulled.records.len()).unwrap();
    assert!(count > 0);
    assert!((count * 256..=count * 320 + 1_024).contains(&replies), "{count}: {replies}");
    broker.close().unwrap();
}

/// Sends to sync topics with deadlines of up to 100 ms used to be stored and answered as "unknown", every one of them.
#[test]
fn a_short_deadline_leaves_time_to_wait_for_the_disk() {
    let now = Instant::now();
    let short = now + Duration::from_millis(80);
    assert!(before(short) >= now + Duration::from_millis(60));
    assert!(before(short) <= short);
    let long = now + Duration::from_secs(10);
    assert_eq!(before(long), long - REPLY_RESERVE);
    assert_eq!(before(now), now);
}

/// Every pull on its way used to hold its whole `max_bytes`, 4 MiB by default, so that 64 of them kept all others
/// waiting.
#[tokio::test]
async fn a_small_answer_holds_its_own_bytes_only() {
    let config = BrokerConfig { inflight_reply_bytes: 64 << 10, ..BrokerConfig::default() };
    let (broker, _dir) = broker(config);
    broker.send(to("t", 100)).await.unwrap();
    let request = PullRequest {
        epoch: None,
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 1,
        max_bytes: 8 << 20,
        wait: Duration::ZERO,
        tags: "",
        group: None,
        deadline: soon(),
    };
    let pulled = broker.pull(request).await.unwrap();
    assert_eq!(pulled.records.len(), 1);
    assert!(broker.replies.try_take(60 << 10).is_some());
    drop(pulled);
    broker.close().unwrap();
}

/// What compressed messages come to is known only when they are met; a page used to have room for what was stored.
#[tokio::test]
async fn the_room_for_decompressing_is_counted_with_the_answers() {
    let config = BrokerConfig { inflight_reply_bytes: 64 << 20, ..BrokerConfig::default() };
    let (broker, _dir) = broker(config);
    let mut batch = BatchBuilder::new();
    for _ in 0..4 {
        batch.push(&NewMeta { keys: vec!["k"], ..NewMeta::default() }, &vec![0; 4 << 20]);
    }
    let batch = batch.finish_compressed(&mut Compressor::new(Codec::Lz4).unwrap());
    let sent = broker.send(SendRequest { batch, ..to("t", 0) }).await.unwrap();
    let id = MessageId { epoch: sent.epoch, offset: sent.offset, index: 2 };
    let place = Selector::Place { topic: "t", queue: QueueId::ZERO, offset: QueueOffset::new(2) };
    for selector in [Selector::Key { topic: "t", key: "k" }, Selector::MessageId(id), place] {
        let request = |deadline| QueryRequest {
            selector,
            begin: None,
            end: None,
            order: Order::NewestFirst,
            limit: 1,
            page_token: "",
            deadline,
        };
        // Room for a page, not for what comes out of the record.
        let others = broker.replies.try_take(50 << 20).unwrap();
        let answer = broker.query(request(Instant::now() + Duration::from_millis(300))).await;
        assert!(matches!(answer, Err(BrokerError::Overloaded { .. })), "{answer:?}");
        drop(others);
        let page = broker.query(request(soon())).await.unwrap();
        assert!(page.messages[0].batch.len() > 4 << 20);
        let left = broker.replies.try_take(59 << 20);
        assert!(left.is_some(), "only the answer is counted on its way");
        drop((page, left));
        assert!(broker.replies.try_take(64 << 20).is_some());
    }
    broker.close().unwrap();
}

fn pull_at(offset: u64, wait: Duration) -> PullRequest<'static> {
    PullRequest {
        epoch: None,
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::new(offset),
        max_messages: 10,
        max_bytes: 1024,
        wait,
        tags: "",
        group: None,
        deadline: soon(),
    }
}

fn query_for(selector: Selector<'_>) -> QueryRequest<'_> {
    let (begin, end, page_token) = (None, None, "");
    let (order, limit) = (Order::NewestFirst, 1);
    QueryRequest { selector, begin, end, order, limit, page_token, deadline: soon() }
}

#[tokio::test]
async fn what_streams_of_batches_keep_is_bounded_however_many_are_opened() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let mut places: Vec<_> = (0..16_384).map(|_| broker.begin_send_stream().unwrap()).collect();
    let refused = broker.begin_send_stream().unwrap_err();
    assert_eq!(refused.reason(), Reason::Overloaded);
    assert_eq!(broker.send_streams(), 16_384);
    places.pop();
    assert!(broker.begin_send_stream().is_ok());
    drop(places);
    assert_eq!(broker.send_streams(), 0);
    broker.close().unwrap();
}
