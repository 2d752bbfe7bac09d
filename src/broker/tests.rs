//! What a broker refuses before it does any work, and what it does under a shutdown.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::clock::SystemClock;
use crate::file::disk::RealDisk;
use crate::format::batch::{BatchBuilder, NewMeta};
use crate::message::{QueueId, QueueOffset, Timestamp, TopicType};

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
    SendRequest { topic, queue: Some(QueueId::ZERO), batch: batch(len), deadline: soon() }
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
        group: None,
        deadline: soon(),
    };
    let pulled = broker.pull(request).await.unwrap();
    assert_eq!(pulled.records.len(), 1);
    assert!(broker.replies.try_take(60 << 10).is_some());
    drop(pulled);
    broker.close().unwrap();
}

/// What of a queue was purged cannot be committed any more; a reset to its begin finds the first message that is there.
#[tokio::test]
async fn below_the_first_message_nothing_is_committed_and_nothing_is_moved() {
    let (broker, _dir) = broker(BrokerConfig::default());
    for _ in 0..5 {
        broker.send(to("t", 1)).await.unwrap();
    }
    broker.create_group("g", &crate::message::GroupSettings::default(), soon()).await.unwrap();
    let commit = |offset| CommitOffset {
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::new(offset),
        expected: Expected::Any,
    };
    broker.commit_offsets("g", &[commit(1)], soon()).await.unwrap();
    let topic = broker.state.topics.get("t").unwrap();
    let purged = [(QueueId::ZERO, QueueOffset::new(3))];
    topic.handle().expire(crate::message::PhysicalOffset::ZERO, Timestamp::ZERO, &purged);
    let range = QueueRange { min: QueueOffset::new(3), max: QueueOffset::new(5) };

    let refused = broker.commit_offsets("g", &[commit(2)], soon()).await.unwrap_err();
    let BrokerError::CommitOutOfRange { range: told, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(told, range);
    // What was committed before stays as it was, and is behind.
    let now = broker.progress("g", "t", 0, 1, soon()).await.unwrap();
    assert_eq!((now[0].committed, now[0].range), (Some(QueueOffset::new(1)), range));
    assert_eq!(now[0].lag(), 4);
    let reset = |to| ResetRequest {
        group: "g",
        topic: "t",
        queue: Some(QueueId::ZERO),
        to,
        run: Run::Real,
    };
    let moved = broker.reset_offsets(reset(Position::Earliest), soon()).await.unwrap();
    assert_eq!((moved[0].from, moved[0].new), (QueueOffset::new(1), range.min));
    let moved = broker.reset_offsets(reset(Position::Time(Timestamp::ZERO)), soon()).await;
    assert_eq!(moved.unwrap()[0].new, range.min);
    broker.close().unwrap();
}

/// Every time between the first message and behind the last: the first message that was stored then or later.
#[tokio::test]
async fn a_time_is_the_offset_of_the_first_message_stored_then_or_later() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let mut stored = Vec::new();
    for _ in 0..20 {
        stored.push(broker.send(to("t", 1)).await.unwrap().store_time);
    }
    let (first, last) = (stored[0].get(), stored[19].get());
    for time in first - 1..=last + 1 {
        let at = Position::Time(Timestamp::new(time));
        let found = broker.offsets_at("t", QueueId::ZERO, 1, at, soon()).await.unwrap();
        let expected = stored.iter().take_while(|stored| stored.get() < time).count();
        assert_eq!(found[0].offset, QueueOffset::new(expected as u64), "{time} of {stored:?}");
    }
    let dry = ResetRequest {
        group: "g",
        topic: "t",
        queue: Some(QueueId::ZERO),
        to: Position::Time(stored[10]),
        run: Run::Dry,
    };
    broker.create_group("g", &crate::message::GroupSettings::default(), soon()).await.unwrap();
    let planned = broker.reset_offsets(dry, soon()).await.unwrap();
    let expected = stored.iter().take_while(|earlier| **earlier < stored[10]).count();
    assert_eq!(planned[0].new, QueueOffset::new(expected as u64));
    broker.close().unwrap();
}
