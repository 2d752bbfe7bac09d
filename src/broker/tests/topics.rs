//! Topics: their settings, what they keep, purges, and how they go.

use super::*;

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
