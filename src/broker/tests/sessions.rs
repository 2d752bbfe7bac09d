//! Sessions of producers, over deaths of the broker too.

use super::*;

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
