//! Streams of pulls: the turns of their queues, and how they end.

use super::*;

/// The begins of some queues.
fn begins(queues: u32) -> Vec<PullStart> {
    let begin = |queue| PullStart { queue: QueueId::new(queue), offset: QueueOffset::ZERO };
    (0..queues).map(begin).collect()
}

/// A stream of `t` whose answers have about so many bytes.
fn stream_of(queues: &[PullStart], max_bytes: u32) -> PullStreamRequest<'_> {
    PullStreamRequest { topic: "t", queues, max_bytes, tags: "", epoch: None, group: None }
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
