//! What a broker refuses before it does any work, and what it does under a shutdown.

pub(crate) mod stopped_clock;
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

/// The begins of some queues.
fn begins(queues: u32) -> Vec<PullStart> {
    let begin = |queue| PullStart { queue: QueueId::new(queue), offset: QueueOffset::ZERO };
    (0..queues).map(begin).collect()
}

/// A stream of `t` whose answers have about so many bytes.
fn stream_of(queues: &[PullStart], max_bytes: u32) -> PullStreamRequest<'_> {
    PullStreamRequest { topic: "t", queues, max_bytes, tags: "", epoch: None, group: None }
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
async fn a_stream_reads_queues_along_in_their_turns_in_memory_and_off_the_disk() {
    const QUEUES: u32 = 40;
    const BATCHES: u64 = 3;
    let of_disk = cold_broker(BrokerConfig::default());
    let of_memory = broker(BrokerConfig::default());
    for (broker, _dir) in [of_disk, of_memory] {
        let settings = TopicSettings::open(QUEUES, FlushMode::Async, TopicType::Normal);
        broker.create_topic("t", settings, soon()).await.unwrap();
        for _ in 0..BATCHES {
            for queue in 0..QUEUES {
                let send = SendRequest { queue: Some(QueueId::new(queue)), ..to("t", 5_000) };
                broker.send(send).await.unwrap();
            }
        }
        let last = PullRequest {
            epoch: None,
            topic: "t",
            queue: QueueId::new(QUEUES - 1),
            offset: QueueOffset::new(BATCHES - 1),
            max_messages: 1,
            max_bytes: 1,
            wait: Duration::from_secs(10),
            tags: "",
            group: None,
            deadline: soon(),
        };
        assert_eq!(broker.pull(last).await.unwrap().records.len(), 1, "all is dispatched");
        let starts = begins(QUEUES);
        // A queue whole, and some of the next ones.
        let request = stream_of(&starts, 100_000);
        let mut stream = broker.pull_stream(request).await.unwrap();
        let (mut most, mut turns) = (0, Vec::new());
        let mut next = vec![0; QUEUES as usize];
        while next.iter().sum::<u64>() < u64::from(QUEUES) * BATCHES {
            let Parts { parts, permit } = stream.next().await.unwrap();
            assert!(permit.is_some());
            let mut len = 0;
            for (queue, pulled) in &parts {
                let next = next.get_mut(queue.get() as usize).unwrap();
                for record in &pulled.records {
                    assert_eq!(record.first_queue_offset.get(), *next, "of queue {queue}");
                    *next += 1;
                    len += record.batch.len() as u64;
                }
                assert_eq!((pulled.next.get(), pulled.range.max.get()), (*next, BATCHES));
                turns.push(queue.get());
            }
            most = most.max(parts.len());
            let counted = broker.in_work().replies;
            assert!((len..=100_000 + 8 * 1_024).contains(&counted), "{counted} for {len}");
            drop((parts, permit));
            assert_eq!(broker.in_work().replies, 0, "nothing is kept beside");
        }
        assert!(turns.iter().copied().take(QUEUES as usize).eq(0..QUEUES), "{turns:?}");
        assert!(most > 1, "nothing was read along");
        let counters = broker.counters();
        assert_eq!(counters.pulled_messages.get(), u64::from(QUEUES) * BATCHES + 1);
        assert_eq!(counters.pulls.get(), turns.len() as u64 + 1);
        broker.close().unwrap();
    }
}

/// More queues than the runtime lets a task look at in one go, and each told of once.
#[tokio::test]
async fn a_stream_at_the_ends_of_its_queues_is_woken_by_each_and_leaves_nobody_parked() {
    const QUEUES: u32 = 256;
    let (broker, _dir) = broker(BrokerConfig::default());
    let settings = TopicSettings::open(QUEUES, FlushMode::Async, TopicType::Normal);
    broker.create_topic("t", settings, soon()).await.unwrap();
    let starts = begins(QUEUES);
    let request = stream_of(&starts, 100_000);
    let mut stream = broker.pull_stream(request).await.unwrap();
    for (round, queues) in [vec![255], vec![0, 200, 128], vec![200]].into_iter().enumerate() {
        let sends = async {
            while broker.store.parked() < QUEUES as usize {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for queue in &queues {
                let send = SendRequest { queue: Some(QueueId::new(*queue)), ..to("t", 10) };
                broker.send(send).await.unwrap();
            }
        };
        let reads = async {
            let mut read = Vec::new();
            while read.len() < queues.len() {
                for (queue, pulled) in stream.next().await.unwrap().parts {
                    assert_eq!((pulled.records.len(), pulled.next), (1, pulled.range.max));
                    read.push(queue.get());
                }
            }
            read
        };
        let ((), mut read) = tokio::join!(sends, reads);
        read.sort_unstable();
        let mut expected = queues.clone();
        expected.sort_unstable();
        assert_eq!(read, expected, "of round {round}");
    }
    assert_eq!(broker.store.parked(), QUEUES as usize);
    drop(stream);
    assert_eq!(broker.store.parked(), 0);
    broker.close().unwrap();
}

#[tokio::test]
async fn a_stream_ends_with_its_topic_whatever_it_has_read() {
    let (broker, _dir) = cold_broker(BrokerConfig::default());
    let settings = TopicSettings::open(8, FlushMode::Async, TopicType::Normal);
    broker.create_topic("t", settings, soon()).await.unwrap();
    for queue in 0..8 {
        let send = SendRequest { queue: Some(QueueId::new(queue)), ..to("t", 5_000) };
        broker.send(send).await.unwrap();
    }
    let starts = begins(8);
    let request = stream_of(&starts, 100_000);
    let mut stream = broker.pull_stream(request).await.unwrap();
    let read = stream.next().await.unwrap();
    broker.delete_topic("t", soon()).await.unwrap();
    // What goes out already is whole.
    assert!(read.parts.iter().all(|(_, pulled)| pulled.records.len() == 1));
    let end = stream.next().await;
    assert!(
        matches!(&end, Err(PullStreamError { error: BrokerError::NoTopic { .. }, .. })),
        "{end:?}"
    );
    broker.close().unwrap();
}

/// What a reader meets, beside a writer, of purges in front of it and behind it.
#[tokio::test]
async fn a_stream_that_is_overtaken_by_a_purge_ends_there_and_one_that_is_not_goes_on() {
    const MESSAGES: u64 = 400;
    for cold in [false, true] {
        let config = BrokerConfig::default();
        let (broker, _dir) = if cold { cold_broker(config) } else { broker(config) };
        let settings = TopicSettings::open(2, FlushMode::Async, TopicType::Normal);
        for topic in ["t", "u"] {
            broker.create_topic(topic, settings, soon()).await.unwrap();
        }
        let numbered = |topic: &'static str, n: u64| {
            let mut batch = BatchBuilder::new();
            batch.push(&NewMeta::default(), format!("{topic}{n}").as_bytes());
            SendRequest { batch: batch.finish(), ..to(topic, 0) }
        };
        for n in 0..MESSAGES / 4 {
            broker.send(numbered("t", n)).await.unwrap();
        }
        // The reader begins behind the writer.
        let topic = broker.state.topics.get("t").unwrap();
        broker.store.caught_up(topic.handle()).await;
        let writes = async {
            for n in 0..MESSAGES / 4 {
                broker.send(numbered("u", n)).await.unwrap();
            }
            for n in MESSAGES / 4..MESSAGES {
                broker.send(numbered("u", n)).await.unwrap();
                broker.send(numbered("t", n)).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let purge = async |up_to| {
            let what = Purge::Queue { queue: QueueId::ZERO, up_to: Some(QueueOffset::new(up_to)) };
            broker.purge_topic("t", what, soon()).await.unwrap();
        };
        let reads = async {
            let (mut at, mut gone, mut ended) = (0, 0, 0);
            while at < MESSAGES {
                let queues = [(0, at), (1, 0)].map(|(queue, offset)| PullStart {
                    queue: QueueId::new(queue),
                    offset: QueueOffset::new(offset),
                });
                // A few records.
                let request = stream_of(&queues, 500);
                let mut stream = broker.pull_stream(request).await.unwrap();
                while at < MESSAGES {
                    match stream.next().await {
                        Ok(Parts { parts, .. }) => {
                            for (queue, pulled) in &parts {
                                assert_eq!(*queue, QueueId::ZERO);
                                for record in &pulled.records {
                                    let n = record.first_queue_offset.get();
                                    assert_eq!(n, at, "without a hole");
                                    assert!(n >= gone, "{n} of what was purged up to {gone}");
                                    assert_eq!(record.batch, numbered("t", n).batch);
                                    at = n + 1;
                                }
                            }
                            // Behind the reader, which goes on; or, now and then, in front of it.
                            gone = if at % 50 < 10 { MESSAGES.min(at + 3) } else { at };
                            let range = parts.iter().map(|(_, pulled)| pulled.range.max.get());
                            gone = gone.min(range.max().unwrap_or(0));
                            purge(gone).await;
                        }
                        Err(end) => {
                            assert_eq!(end.queue, Some(QueueId::ZERO));
                            let BrokerError::OffsetOutOfRange { offset, range, .. } = end.error
                            else {
                                panic!("{end:?}");
                            };
                            assert_eq!((offset.get(), range.min.get()), (at, gone));
                            at = gone;
                            ended += 1;
                            break;
                        }
                    }
                }
            }
            ended
        };
        let ((), ended) = tokio::join!(writes, reads);
        assert!(ended > 0, "none was overtaken");
        let other = PullRequest {
            epoch: None,
            topic: "u",
            queue: QueueId::ZERO,
            offset: QueueOffset::ZERO,
            max_messages: 1_000,
            max_bytes: 1 << 20,
            wait: Duration::ZERO,
            tags: "",
            group: None,
            deadline: soon(),
        };
        let kept = broker.pull(other).await.unwrap();
        assert_eq!((kept.records.len() as u64, kept.range.min.get()), (MESSAGES, 0));
        broker.close().unwrap();
    }
}

/// What is made by the name of what was deleted is another topic.
#[tokio::test]
async fn a_stream_at_the_end_of_a_topic_that_is_deleted_and_made_again_ends_and_reads_nothing_of_it()
 {
    for cold in [false, true] {
        let config = BrokerConfig::default();
        let (broker, _dir) = if cold { cold_broker(config) } else { broker(config) };
        let settings = TopicSettings::open(1, FlushMode::Async, TopicType::Normal);
        broker.create_topic("t", settings, soon()).await.unwrap();
        broker.send(to("t", 100)).await.unwrap();
        let queues = begins(1);
        let request = stream_of(&queues, 1_000);
        let mut stream = broker.pull_stream(request).await.unwrap();
        let read = stream.next().await.unwrap();
        assert_eq!(read.parts[0].1.records.len(), 1);
        let next = async {
            let end = stream.next().await.unwrap_err();
            assert!(matches!(end.error, BrokerError::NoTopic { .. }), "{end:?}");
        };
        let again = async {
            while broker.store.parked() == 0 {
                tokio::task::yield_now().await;
            }
            broker.delete_topic("t", soon()).await.unwrap();
            broker.create_topic("t", settings, soon()).await.unwrap();
            broker.send(to("t", 7)).await.unwrap();
        };
        tokio::join!(again, next);
        let mut of_new = broker.pull_stream(request).await.unwrap();
        let read = of_new.next().await.unwrap();
        assert_eq!(read.parts[0].1.records[0].batch, batch(7));
        broker.close().unwrap();
    }
}

/// It was passed over again and again, as long as the others had something on the disk.
#[tokio::test]
async fn a_stream_ends_in_the_turn_of_the_queue_that_cannot_be_read_on_whatever_the_others_have() {
    let (broker, _dir) = cold_broker(BrokerConfig::default());
    let settings = TopicSettings::open(8, FlushMode::Async, TopicType::Normal);
    broker.create_topic("t", settings, soon()).await.unwrap();
    for _ in 0..4 {
        for queue in 0..8 {
            let send = SendRequest { queue: Some(QueueId::new(queue)), ..to("t", 5_000) };
            broker.send(send).await.unwrap();
        }
    }
    let last = PullRequest {
        epoch: None,
        topic: "t",
        queue: QueueId::new(7),
        offset: QueueOffset::new(3),
        max_messages: 1,
        max_bytes: 1,
        wait: Duration::from_secs(10),
        tags: "",
        group: None,
        deadline: soon(),
    };
    assert_eq!(broker.pull(last).await.unwrap().records.len(), 1, "all is dispatched");
    let starts: Vec<_> = (0..8)
        .map(|queue| {
            let offset = QueueOffset::new(if queue == 3 { 1_000 } else { 0 });
            PullStart { queue: QueueId::new(queue), offset }
        })
        .collect();
    // Two records of a queue, never all of it.
    let request = stream_of(&starts, 11_000);
    let mut stream = broker.pull_stream(request).await.unwrap();
    let mut turns = Vec::new();
    let end = loop {
        match stream.next().await {
            Ok(Parts { parts, .. }) => turns.extend(parts.iter().map(|(queue, _)| queue.get())),
            Err(end) => break end,
        }
    };
    assert_eq!(turns, [0, 1, 2]);
    assert_eq!(end.queue, Some(QueueId::new(3)));
    assert!(matches!(end.error, BrokerError::OffsetOutOfRange { .. }), "{end:?}");
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

async fn update(
    broker: &Broker,
    changes: TopicChanges,
    force: Force,
) -> Result<TopicSettings, BrokerError> {
    Ok(broker.update_topic("t", &changes, force, soon()).await?.settings())
}

#[tokio::test]
async fn a_topic_gets_more_queues_which_begin_at_zero() {
    let (broker, _dir) = broker(BrokerConfig::default());
    broker.create_topic("t", SETTINGS, soon()).await.unwrap();
    let more = TopicChanges { queues: Some(3), ..TopicChanges::default() };
    let updated = update(&broker, more, Force::No).await.unwrap();
    assert_eq!(updated, TopicSettings { queues: 3, ..SETTINGS });
    assert_eq!(broker.status().queues, 3);
    let queue = Some(QueueId::new(2));
    let receipt = broker.send(SendRequest { queue, ..to("t", 1) }).await.unwrap();
    assert_eq!(receipt.first_queue_offset, QueueOffset::ZERO);

    let before = broker.store.watermarks().appended;
    assert_eq!(update(&broker, more, Force::No).await.unwrap(), updated);
    assert_eq!(broker.store.watermarks().appended, before, "nothing changed, so nothing is stored");

    let fewer = TopicChanges { queues: Some(2), ..TopicChanges::default() };
    let refused = update(&broker, fewer, Force::Yes).await.unwrap_err();
    let said = "the topic has 3 queues and cannot have fewer; make another topic with fewer";
    assert_eq!((refused.reason(), refused.to_string().as_str()), (Reason::BadRequest, said));
    broker.close().unwrap();
}

#[tokio::test]
async fn the_order_of_a_fifo_topic_is_broken_by_force_alone() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let fifo = TopicSettings { topic_type: TopicType::Fifo, ..SETTINGS };
    broker.create_topic("t", fifo, soon()).await.unwrap();
    let none = TopicChanges::default();
    for (changes, wanted) in [
        (TopicChanges { queues: Some(2), ..none }, TopicSettings { queues: 2, ..fifo }),
        (
            TopicChanges { topic_type: Some(TopicType::Normal), ..none },
            TopicSettings { queues: 2, ..SETTINGS },
        ),
    ] {
        let refused = update(&broker, changes, Force::No).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::NeedsForce, "{changes:?}");
        assert_eq!(update(&broker, changes, Force::Yes).await.unwrap(), wanted);
    }
    let fifo_again = TopicChanges { topic_type: Some(TopicType::Fifo), ..none };
    let updated = update(&broker, fifo_again, Force::No).await.unwrap();
    assert_eq!(updated, TopicSettings { queues: 2, ..fifo });
    broker.close().unwrap();
}

#[tokio::test]
async fn what_was_visible_of_an_async_topic_stays_visible_when_it_becomes_a_sync_one() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3_600);
    let store = StoreConfig {
        segment_size: 4 << 20,
        flush: FlushMode::Async,
        flush_interval: hour,
        ..StoreConfig::new(dir.path().join("data"))
    };
    let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
    let (broker, _) = Broker::open(disk, clock, store, BrokerConfig::default()).unwrap();
    let topic = TopicSettings { flush: FlushMode::Async, ..SETTINGS };
    let topic = broker.create_topic("t", topic, soon()).await.unwrap();
    for _ in 0..3 {
        broker.send(to("t", 1)).await.unwrap();
    }
    broker.store.caught_up(topic.handle()).await;
    // Past the service, which would wait for the disk.
    let sync = TopicChanges { flush: Some(FlushMode::Sync), ..TopicChanges::default() };
    let (_, end) = broker.state.topics.update(&broker.store, "t", &sync, Force::No).unwrap();
    assert!(broker.store.watermarks().flushed < end, "nothing is flushed yet");
    assert_eq!(topic.handle().flush(), FlushMode::Sync);
    let max = broker.store.queue_max(topic.handle(), QueueId::ZERO);
    assert_eq!(max, QueueOffset::new(3));

    let receipt = broker.send(to("t", 1)).await.unwrap();
    assert!(broker.store.watermarks().flushed > receipt.offset, "an OK waits from now on");
    broker.close().unwrap();
}

#[tokio::test]
async fn access_is_asked_on_every_path_and_by_those_who_wait() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let receipt = broker.send(to("t", 1)).await.unwrap();
    let parked = tokio::spawn({
        let broker = Arc::clone(&broker);
        async move { broker.pull(pull_at(1, Duration::from_secs(30))).await }
    });
    while broker.store.parked() == 0 {
        tokio::task::yield_now().await;
    }
    let access = |read, write| TopicChanges {
        access: Some(Access { read, write }),
        ..TopicChanges::default()
    };
    update(&broker, access(false, true), Force::No).await.unwrap();
    let parked = parked.await.unwrap().unwrap_err();
    assert_eq!(parked.to_string(), "the topic's access does not let clients read");
    let pulled = broker.pull(pull_at(0, Duration::ZERO)).await.unwrap_err();
    assert_eq!(pulled.reason(), Reason::Forbidden);
    let id = crate::message::MessageId { epoch: receipt.epoch, offset: receipt.offset, index: 0 };
    let queue = QueueId::ZERO;
    for selector in [
        Selector::Key { topic: "t", key: "k" },
        Selector::ProducerId { topic: "t", id: "i" },
        Selector::MessageId(id),
        Selector::Place { topic: "t", queue, offset: QueueOffset::ZERO },
    ] {
        let found = broker.query(query_for(selector)).await.unwrap_err();
        assert_eq!(found.reason(), Reason::Forbidden, "{selector:?}");
    }
    broker.send(to("t", 1)).await.unwrap();

    update(&broker, access(true, false), Force::No).await.unwrap();
    let sent = broker.send(to("t", 1)).await.unwrap_err();
    assert_eq!(sent.to_string(), "the topic's access does not let clients send");
    let pulled = broker.pull(pull_at(0, Duration::ZERO)).await.unwrap();
    assert_eq!(pulled.records[0].offset, receipt.offset);
    assert_eq!(broker.query(query_for(Selector::MessageId(id))).await.unwrap().messages.len(), 1);
    broker.close().unwrap();
}

fn query_for(selector: Selector<'_>) -> QueryRequest<'_> {
    let (begin, end, page_token) = (None, None, "");
    let (order, limit) = (Order::NewestFirst, 1);
    QueryRequest { selector, begin, end, order, limit, page_token, deadline: soon() }
}

#[tokio::test]
async fn what_is_gone_stays_gone_when_messages_are_kept_longer() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let retention = Retention { time_ms: Some(60_000), bytes: None };
    let topic = TopicSettings { retention, ..SETTINGS };
    let topic = broker.create_topic("t", topic, soon()).await.unwrap();
    let (_, gone) = broker.store.expired_now(topic.handle());
    assert!(gone > Timestamp::ZERO);

    let longer =
        TopicChanges { retention_time: Some(Keep::UpTo(120_000)), ..TopicChanges::default() };
    let updated = update(&broker, longer, Force::No).await.unwrap();
    assert_eq!(updated.retention, Retention { time_ms: Some(120_000), bytes: None });
    let (_, then, _) = topic.handle().expired();
    assert!(then >= gone);
    assert_eq!(broker.store.expired_now(topic.handle()).1, then);

    let ever = TopicChanges { retention_time: Some(Keep::All), ..TopicChanges::default() };
    let updated = update(&broker, ever, Force::No).await.unwrap();
    assert_eq!(updated.retention, Retention::default());
    assert_eq!(broker.store.expired_now(topic.handle()).1, then);
    broker.close().unwrap();
}

#[tokio::test]
async fn a_retention_is_within_its_range() {
    let (broker, _dir) = broker(BrokerConfig::default());
    broker.create_topic("t", SETTINGS, soon()).await.unwrap();
    let none = TopicChanges::default();
    for (changes, said) in [
        (
            TopicChanges { retention_time: Some(Keep::UpTo(999)), ..none },
            "a topic keeps messages for 1000 ms to 3155760000000 ms (1 second to 100 years), or \
             for ever, not for 999 ms",
        ),
        (
            TopicChanges { retention_bytes: Some(Keep::UpTo((1 << 60) + 1)), ..none },
            "a topic keeps 1048576 to 1152921504606846976 bytes (1 MiB to 1 EiB), or as many as \
             there are, not 1152921504606846977",
        ),
    ] {
        let refused = update(&broker, changes, Force::Yes).await.unwrap_err();
        assert_eq!((refused.reason(), refused.to_string().as_str()), (Reason::BadRequest, said));
        let made = broker.create_topic("u", changes.on(SETTINGS), soon()).await.unwrap_err();
        assert_eq!(made.to_string(), said);
    }
    for limit in [*RETENTION_MS.start(), *RETENTION_MS.end()] {
        let changes = TopicChanges { retention_time: Some(Keep::UpTo(limit)), ..none };
        let updated = update(&broker, changes, Force::No).await.unwrap();
        assert_eq!(updated.retention.time_ms, Some(limit));
    }
    broker.close().unwrap();
}

#[tokio::test]
async fn a_topic_made_without_a_retention_gets_the_default() {
    let (made_by_send, _dir) = broker(BrokerConfig::default());
    made_by_send.send(to("t", 1)).await.unwrap();
    let retention = Retention { time_ms: Some(72 * 60 * 60 * 1_000), bytes: None };
    let topic = made_by_send.state.topics.get("t").unwrap();
    assert_eq!(topic.settings().retention, retention);
    assert_eq!(made_by_send.topic_defaults().retention, retention);
    made_by_send.close().unwrap();

    let retention = Retention { time_ms: None, bytes: Some(5 << 20) };
    let (other, _dir) = broker(BrokerConfig { retention, ..BrokerConfig::default() });
    other.send(to("t", 1)).await.unwrap();
    assert_eq!(other.state.topics.get("t").unwrap().settings().retention, retention);
    other.close().unwrap();
}

#[tokio::test]
async fn a_purge_is_recorded_and_refused_beyond_the_end() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let topic = TopicSettings { queues: 2, ..SETTINGS };
    let topic = broker.create_topic("t", topic, soon()).await.unwrap();
    for _ in 0..3 {
        broker.send(to("t", 1)).await.unwrap();
    }
    let queue = |queue, up_to: Option<u64>| Purge::Queue {
        queue: QueueId::new(queue),
        up_to: up_to.map(QueueOffset::new),
    };
    let purge = |what| broker.purge_topic("t", what, soon());
    match purge(queue(0, Some(4))).await {
        Err(BrokerError::OffsetOutOfRange { offset, range, .. }) => {
            assert_eq!((offset.get(), range.max.get()), (4, 3));
        }
        other => panic!("{other:?}"),
    }
    let refused = purge(queue(2, None)).await.unwrap_err();
    assert_eq!(refused.to_string(), "queue 2 does not exist, topic t has 2");
    let refused = broker.purge_topic("u", Purge::Topic, soon()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::UnknownTopic);
    let before = broker.store.watermarks().appended;
    assert_eq!(purge(queue(0, Some(0))).await.unwrap(), Some(0));
    assert_eq!(purge(queue(1, None)).await.unwrap(), Some(0));
    assert_eq!(broker.store.watermarks().appended, before, "there was nothing to do");

    purge(queue(0, Some(2))).await.unwrap();
    purge(queue(0, None)).await.unwrap();
    let row = |offset| vec![(QueueId::ZERO, QueueOffset::new(offset))];
    assert_eq!(topic.handle().expired(), (PhysicalOffset::ZERO, Timestamp::ZERO, row(3)));
    let before = broker.store.watermarks().appended;
    purge(Purge::Topic).await.unwrap();
    assert_eq!(topic.handle().expired(), (before, Timestamp::ZERO, row(3)));
    assert!(broker.store.watermarks().flushed > before, "on stable media before the OK");
    broker.close().unwrap();
}

/// Opens the broker again, without its snapshots if so wanted, and compares its state.
fn reopened(broker: Arc<Broker>, dir: &tempfile::TempDir, with_snapshots: bool) -> Arc<Broker> {
    use crate::store::Applier as _;
    let state = broker.state.snapshot(broker.store.topics()).state;
    broker.close().unwrap();
    drop(broker);
    if !with_snapshots {
        std::fs::remove_dir_all(dir.path().join("data/state")).unwrap();
    }
    let store = StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
    let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
    let (broker, _) = Broker::open(disk, clock, store, BrokerConfig::default()).unwrap();
    assert_eq!(broker.state.snapshot(broker.store.topics()).state, state);
    broker
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 12,
        ..proptest::prelude::ProptestConfig::default()
    })]

    #[test]
    fn replay_gives_the_topics_of_a_random_run(
        steps in proptest::collection::vec(proptest::prelude::any::<[u8; 6]>(), 1..40),
        with_snapshots: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut broker, dir) = broker(BrokerConfig::default());
            for step in steps {
                random_step(&broker, step).await;
                if step[0] % 16 == 0 {
                    broker = reopened(broker, &dir, with_snapshots);
                }
            }
            reopened(broker, &dir, with_snapshots).close().unwrap();
        });
    }
}

/// Something done to one of three topics. Refusals are fine: the state is what is compared.
async fn random_step(broker: &Broker, [what, which, a, b, c, d]: [u8; 6]) {
    let name = ["a", "b", "c"][usize::from(which) % 3];
    let keep = |n: u8, least: u64| match n % 4 {
        0 => None,
        1 => Some(Keep::All),
        _ => Some(Keep::UpTo(least + u64::from(n))),
    };
    let changes = TopicChanges {
        queues: (a % 2 == 0).then_some(u32::from(a) + 1),
        flush: (b % 3 == 0).then_some(FlushMode::Async),
        topic_type: (b % 5 == 0).then_some(TopicType::Fifo),
        access: (b % 7 == 0).then_some(Access { read: b > 99, write: true }),
        retention_time: keep(c, 1_000),
        retention_bytes: keep(d, 1 << 20),
    };
    let force = if what > 127 { Force::Yes } else { Force::No };
    match what % 6 {
        0 => drop(broker.create_topic(name, changes.on(SETTINGS), soon()).await),
        1 | 2 => drop(broker.update_topic(name, &changes, force, soon()).await),
        3 => drop(broker.send(SendRequest { queue: None, ..to(name, 9) }).await),
        4 if a % 2 == 0 => drop(broker.purge_topic(name, Purge::Topic, soon()).await),
        4 => {
            let queue = QueueId::new(u32::from(b) % 3);
            drop(broker.purge_topic(name, Purge::Queue { queue, up_to: None }, soon()).await);
        }
        _ if a % 3 == 0 => drop(broker.delete_topic(name, soon()).await),
        _ => {}
    }
}

/// Retention may overtake a reader before he commits; a reset to the begin of a queue finds the first message that is
/// there. What is gone is neither lag nor skipped.
#[tokio::test]
async fn what_was_read_can_be_committed_when_it_is_gone_and_counts_as_nothing() {
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
        known_queues: None,
    };
    broker.commit_offsets("g", &[commit(1)], Caller::default(), soon()).await.unwrap();
    let topic = broker.state.topics.get("t").unwrap();
    let purged = [(QueueId::ZERO, QueueOffset::new(3))];
    topic.handle().expire(crate::message::PhysicalOffset::ZERO, Timestamp::ZERO, &purged);
    let range = QueueRange { min: QueueOffset::new(3), max: QueueOffset::new(5) };

    broker.commit_offsets("g", &[commit(2)], Caller::default(), soon()).await.unwrap();
    let now = broker.progress("g", "t", 0, 1, soon()).await.unwrap();
    assert_eq!((now[0].committed, now[0].range), (Some(QueueOffset::new(2)), range));
    assert_eq!(now[0].lag(), 2);
    let refused = broker.commit_offsets("g", &[commit(6)], Caller::default(), soon()).await;
    let refused = refused.unwrap_err();
    let BrokerError::CommitOutOfRange { range: told, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(told, range);
    let reset = |to| ResetRequest {
        group: "g",
        topic: "t",
        queue: Some(QueueId::ZERO),
        to,
        caller: Caller::default(),
        run: Run::Real,
    };
    let moved = broker.reset_offsets(reset(Position::Earliest), soon()).await.unwrap();
    assert_eq!((moved[0].from, moved[0].new), (QueueOffset::new(2), range.min));
    assert_eq!((moved[0].again(), moved[0].skipped()), (0, 0));
    let refused = broker.reset_offsets(reset(Position::Offset(QueueOffset::new(2))), soon()).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::OffsetOutOfRange);
    broker.commit_offsets("g", &[commit(0)], Caller::default(), soon()).await.unwrap();
    let moved = broker.reset_offsets(reset(Position::Latest), soon()).await.unwrap();
    assert_eq!((moved[0].again(), moved[0].skipped()), (0, 2));
    let moved = broker.reset_offsets(reset(Position::Earliest), soon()).await.unwrap();
    assert_eq!((moved[0].again(), moved[0].skipped()), (2, 0));
    let moved = broker.reset_offsets(reset(Position::Time(Timestamp::ZERO)), soon()).await;
    assert_eq!(moved.unwrap()[0].new, range.min);
    broker.close().unwrap();
}

/// A group that begins at the end: what a queue got that came between the look and the first commit was passed over.
#[tokio::test]
async fn a_queue_that_came_after_the_look_begins_at_its_first_message() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let initial_position = crate::message::InitialPosition::Latest;
    let latest = crate::message::GroupSettings { initial_position, ..Default::default() };
    let wide = TopicSettings { queues: 3, ..broker.topic_defaults() };
    fn of(topic: &str, queue: u32, known_queues: Option<u32>) -> CommitOffset<'_> {
        let (queue, offset, expected) = (QueueId::new(queue), QueueOffset::ZERO, Expected::Any);
        CommitOffset { topic, queue, offset, expected, known_queues }
    }
    let cases = [
        (vec![(0, None)], [Some(0), None, None]),
        (vec![(0, Some(1))], [Some(0), Some(0), Some(0)]),
        (vec![(0, Some(2)), (1, None)], [Some(0), Some(0), Some(0)]),
        (vec![(0, Some(2)), (1, Some(1))], [Some(0), Some(0), Some(0)]),
        (vec![(0, Some(9))], [Some(0), None, None]),
        (vec![(0, Some(0))], [Some(0), Some(0), Some(0)]),
        (vec![(0, Some(2))], [Some(0), None, Some(0)]),
    ];
    for (number, (commits, wanted)) in cases.into_iter().enumerate() {
        let (topic, group) = (format!("t{number}"), format!("g{number}"));
        broker.create_topic(&topic, wide, soon()).await.unwrap();
        broker.create_group(&group, &latest, soon()).await.unwrap();
        let name = topic.as_str();
        let commits: Vec<_> =
            commits.into_iter().map(|(queue, known)| of(name, queue, known)).collect();
        broker.commit_offsets(&group, &commits, Caller::default(), soon()).await.unwrap();
        let now = broker.progress(&group, &topic, 0, 9, soon()).await.unwrap();
        let now: Vec<_> = now.iter().map(|queue| queue.committed.map(QueueOffset::get)).collect();
        assert_eq!(now, wanted, "{commits:?}");
    }
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
        caller: Caller::default(),
        run: Run::Dry,
    };
    broker.create_group("g", &crate::message::GroupSettings::default(), soon()).await.unwrap();
    let planned = broker.reset_offsets(dry, soon()).await.unwrap();
    let expected = stored.iter().take_while(|earlier| **earlier < stored[10]).count();
    assert_eq!(planned[0].new, QueueOffset::new(expected as u64));
    broker.close().unwrap();
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
