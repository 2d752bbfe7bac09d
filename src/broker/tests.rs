//! What a broker refuses before it does any work, and what it does under a shutdown.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::clock::SystemClock;
use crate::file::disk::RealDisk;
use crate::format::batch::{BatchBuilder, NewMeta};
use crate::message::{QueueId, QueueOffset, SessionMark, TopicType};

/// A broker on a directory of its own, which has to outlive it.
fn broker(config: BrokerConfig) -> (Arc<Broker>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
    let clock = Arc::new(SystemClock::new());
    let (broker, _) = Broker::open(Arc::new(RealDisk), clock, store, config).unwrap();
    (broker, dir)
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
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 10,
        max_bytes: 1024,
        wait: Duration::from_secs(30),
        tags: "",
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

#[tokio::test]
async fn an_answer_larger_than_asked_for_is_counted_with_its_own_size() {
    let config = BrokerConfig { inflight_reply_bytes: 64 << 10, ..BrokerConfig::default() };
    let (broker, _dir) = broker(config);
    broker.send(to("t", 48 << 10)).await.unwrap();
    let request = PullRequest {
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 1,
        max_bytes: 1,
        wait: Duration::ZERO,
        tags: "",
        deadline: soon(),
    };
    let pulled = broker.pull(request).await.unwrap();
    assert!(broker.replies.try_take(32 << 10).is_none());
    drop(pulled);
    assert!(broker.replies.try_take(64 << 10).is_some());
    broker.close().unwrap();
}

#[tokio::test]
async fn a_deletion_marks_the_topic_dead_and_removes_it_from_the_store() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let topic = broker.create_topic("t", SETTINGS, soon()).await.unwrap();
    assert!(!topic.handle().is_dead());
    broker.delete_topic("t", soon()).await.unwrap();
    assert!(topic.handle().is_dead());
    assert!(broker.store.topics().get(topic.id()).is_none());
    assert!(!broker.state.topics.has(&topic));
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
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 1,
        max_bytes: 8 << 20,
        wait: Duration::ZERO,
        tags: "",
        deadline: soon(),
    };
    let pulled = broker.pull(request).await.unwrap();
    assert_eq!(pulled.records.len(), 1);
    assert!(broker.replies.try_take(60 << 10).is_some());
    drop(pulled);
    broker.close().unwrap();
}

/// A batch of a producer session.
fn marked<'a>(topic: &'a str, session: &SessionState, sequence: u64) -> SendRequest<'a> {
    let mark = SessionMark { session: session.id, epoch: session.epoch, sequence };
    SendRequest { session: Some(mark), ..to(topic, 10) }
}

fn on(dir: &tempfile::TempDir, flush: FlushMode) -> Arc<Broker> {
    let data = dir.path().join("data");
    let store = StoreConfig { segment_size: 4 << 20, flush, ..StoreConfig::new(data) };
    let clock = Arc::new(SystemClock::new());
    Broker::open(Arc::new(RealDisk), clock, store, BrokerConfig::default()).unwrap().0
}

#[tokio::test]
async fn a_retry_after_the_broker_died_is_answered_with_the_first_place_and_stores_nothing() {
    for flush in [FlushMode::Sync, FlushMode::Async] {
        let dir = tempfile::tempdir().unwrap();
        let broker = on(&dir, flush);
        let session = broker.open_session("p", soon()).await.unwrap();
        let mut first = Vec::new();
        for sequence in 1..=70 {
            first.push(broker.send(marked("t", &session, sequence)).await.unwrap());
        }
        let appended = broker.status().watermarks.appended;
        // As `kill -9`: nothing is flushed, no snapshot, no clean mark.
        drop(broker);

        let broker = on(&dir, flush);
        let began = broker.status().watermarks.appended;
        assert!(began > appended, "the new epoch has a record");
        for (sequence, first) in (1..).zip(first).skip(6) {
            let again = broker.send(marked("t", &session, sequence)).await.unwrap();
            assert_eq!(again, Receipt { is_duplicate: true, ..first });
        }
        let too_old = broker.send(marked("t", &session, 6)).await;
        let Err(BrokerError::Session(fault)) = too_old else { panic!("{too_old:?}") };
        assert_eq!(fault, SessionFault::TooOld { oldest: 7, found: 6 });
        assert_eq!(broker.status().watermarks.appended, began, "nothing was stored");
        let next = broker.send(marked("t", &session, 71)).await.unwrap();
        assert_eq!((next.first_queue_offset.get(), next.is_duplicate), (70, false));
        broker.close().unwrap();
    }
}

/// An epoch that was given out while it could still be lost would be given to a second producer after a power cut.
#[tokio::test]
async fn an_opening_is_durable_before_its_answer_in_async_mode_too() {
    let dir = tempfile::tempdir().unwrap();
    let broker = on(&dir, FlushMode::Async);
    for epoch in 1..4 {
        broker.send(to("t", 10)).await.unwrap();
        let session = broker.open_session("p", soon()).await.unwrap();
        assert_eq!(session.epoch, epoch);
        let marks = broker.status().watermarks;
        assert_eq!(marks.flushed, marks.appended);
    }
    broker.close().unwrap();
}

#[tokio::test]
async fn a_draining_broker_gives_no_sessions_and_closes_none() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let session = broker.open_session("p", soon()).await.unwrap();
    broker.drain();
    let opened = broker.open_session("q", soon()).await;
    assert!(matches!(opened, Err(BrokerError::Draining)), "{opened:?}");
    let closed = broker.close_session("p", None, soon()).await;
    assert!(matches!(closed, Err(BrokerError::Draining)), "{closed:?}");
    let sent = broker.send(marked("t", &session, 1)).await;
    assert!(matches!(sent, Err(BrokerError::Draining)), "{sent:?}");
    assert_eq!(broker.describe_session("p", soon()).await.unwrap().session.last_sequence, 0);
    broker.close().unwrap();
}

#[tokio::test]
async fn an_idle_session_is_closed_when_another_is_opened_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
    let clock = Arc::new(crate::testing::ManualClock::new(crate::message::Timestamp::new(1_000)));
    let config = BrokerConfig::default();
    let (broker, _) = Broker::open(Arc::new(RealDisk), clock.clone(), store, config).unwrap();
    let session = broker.open_session("old", soon()).await.unwrap();
    clock.advance(Duration::from_secs(6 * 24 * 3600));
    broker.send(marked("t", &session, 1)).await.unwrap();
    clock.advance(Duration::from_secs(6 * 24 * 3600));
    broker.open_session("new", soon()).await.unwrap();
    let described = broker.describe_session("old", soon()).await.unwrap();
    assert_eq!(described.idle, Duration::from_secs(6 * 24 * 3600), "since its last batch");

    clock.advance(Duration::from_secs(24 * 3600));
    broker.open_session("newer", soon()).await.unwrap();
    let page = broker.list_sessions("", 10, soon()).await.unwrap();
    let names: Vec<_> = page.sessions.iter().map(|shown| shown.session.name.as_ref()).collect();
    assert_eq!(names, ["new", "newer"]);
    assert_eq!(broker.counters().idle_sessions.get(), 1);
    let sent = broker.send(marked("t", &session, 2)).await;
    assert!(matches!(sent, Err(BrokerError::Session(SessionFault::Unknown))), "{sent:?}");
    broker.close().unwrap();
}
