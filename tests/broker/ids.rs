//! Ids of topics are given once, also when the record that gave one rots.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use mainstem::broker::{BrokerError, PullRequest, SendRequest};
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{FlushMode, QueueId, QueueOffset, TopicId, TopicSettings, TopicType};
use mainstem::testing::SimDisk;

use crate::rig::{Request, Rig, late};
use crate::script::Setup;

const SETUP: Setup = Setup { segment_size: 64 << 10, flush: FlushMode::Sync, auto_create: false };

/// The answer of a request.
fn done<T>(rig: &mut Rig, request: impl Future<Output = T> + 'static) -> T {
    let mut request: Request<T> = Box::pin(request);
    for round in 0.. {
        if let (Some(answer), _) = rig.look_at(&mut request) {
            return answer;
        }
        assert!(rig.helped(round), "the power is on");
    }
    unreachable!("a request ends")
}

fn create(rig: &mut Rig, name: &'static str) -> TopicId {
    let broker = rig.broker.clone();
    let settings = TopicSettings::open(1, FlushMode::Sync, TopicType::Mixed);
    done(rig, async move { broker.create_topic(name, settings, late()).await }).unwrap().id()
}

/// Sends a message and returns its offset.
fn send(rig: &mut Rig, topic: &'static str, body: &'static str) -> u64 {
    let broker = rig.broker.clone();
    let mut batch = BatchBuilder::new();
    batch.push(&NewMeta::default(), body.as_bytes());
    let request = SendRequest {
        topic,
        queue: Some(QueueId::ZERO),
        batch: batch.finish(),
        session: None,
        deadline: late(),
    };
    let sent = done(rig, async move { broker.send(request).await }).unwrap();
    sent.first_queue_offset.get()
}

/// The batches of a queue from its begin on.
fn pull(rig: &mut Rig, topic: &'static str) -> Result<Vec<Bytes>, BrokerError> {
    let broker = rig.broker.clone();
    let request = PullRequest {
        topic,
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 100,
        max_bytes: 1 << 20,
        wait: Duration::ZERO,
        tags: "*",
        epoch: None,
        group: None,
        deadline: late(),
    };
    let pulled = done(rig, async move { broker.pull(request).await })?;
    Ok(pulled.records.into_iter().map(|record| record.batch).collect())
}

/// The next topic got the id, and with it the messages that were there; its own could not be read.
#[test]
fn the_id_of_a_topic_whose_creation_rots_is_not_given_to_another() {
    // Its time stands still: nobody drives it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, &SETUP, 1_000_000).unwrap();
    create(&mut rig, "first");
    let disk = rig.stop();
    // Behind the snapshot.
    let mut rig = Rig::open(&disk, &SETUP, 1_000_000).unwrap();
    let old = create(&mut rig, "rotten");
    for offset in 0..3 {
        assert_eq!(send(&mut rig, "rotten", "old"), offset);
    }
    rig.settle();
    let disk = rig.kill();
    let log = disk.paths().into_iter().find(|path| path.ends_with("00000000000000000000.log"));
    let log = log.unwrap();
    let bytes = disk.durable_bytes(&log).unwrap();
    let at = bytes.windows(6).position(|bytes| bytes == b"rotten").unwrap();
    disk.corrupt(&log, at as u64, 1).unwrap();

    let mut rig = Rig::open(&disk, &SETUP, 1_000_000).unwrap();
    assert!(pull(&mut rig, "rotten").is_err(), "nothing knows it");
    let new = create(&mut rig, "new");
    assert!(new > old, "{new} after {old}");
    assert_eq!(pull(&mut rig, "new").unwrap(), Vec::<Bytes>::new());
    assert_eq!(send(&mut rig, "new", "mine"), 0);
    assert_eq!(pull(&mut rig, "new").unwrap().len(), 1);
    // The counter is kept by what the next start goes by.
    let disk = rig.stop();
    let mut rig = Rig::open(&disk, &SETUP, 1_000_000).unwrap();
    assert_eq!(pull(&mut rig, "new").unwrap().len(), 1);
    assert!(create(&mut rig, "last") > new);
}
