//! The bounds of the state, reached for real: what is one too many is refused with the limit in the refusal, nothing is
//! lost, and after a deletion there is room again; a start finds all of it.

use std::sync::Arc;

use bytes::Bytes;
use mainstem::broker::{
    Broker, BrokerConfig, BrokerError, Caller, CommitOffset, Expected, Reason, SendRequest,
    TopicChanges,
};
use mainstem::clock::SystemClock;
use mainstem::file::disk::RealDisk;
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{
    FlushMode, Force, GroupSettings, QueueId, QueueOffset, TopicId, TopicSettings, TopicType,
};
use mainstem::store::StoreConfig;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::life::{runtime, soon};

const TOPICS: u64 = 1_000_000;
const QUEUES: u64 = 16_000_000;
const GROUPS: u64 = 1_000_000;
const OFFSETS: u64 = 16_000_000;
/// The most queues of a topic.
const WIDE: u32 = 65_536;
/// The most offsets in a commit.
const COMMIT: usize = 10_000;

/// A broker, closed and opened again at will.
struct Rig {
    dir: TempDir,
    runtime: Runtime,
    broker: Arc<Broker>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = open(&dir);
        Self { dir, runtime: runtime(), broker }
    }

    fn reopened(self) -> Self {
        self.broker.close().unwrap();
        let Self { dir, runtime, broker } = self;
        drop(broker);
        let broker = open(&dir);
        Self { dir, runtime, broker }
    }

    fn create_topic(&self, name: &str, queues: u32) -> Result<(), BrokerError> {
        let made = self.broker.create_topic(name, settings(queues), soon());
        self.runtime.block_on(made).map(|_| ())
    }

    fn delete_topic(&self, name: &str) {
        self.runtime.block_on(self.broker.delete_topic(name, soon())).unwrap();
    }

    fn widen_topic(&self, name: &str, queues: u32) -> Result<(), BrokerError> {
        let changes = TopicChanges { queues: Some(queues), ..TopicChanges::default() };
        let widened = self.broker.update_topic(name, &changes, Force::No, soon());
        self.runtime.block_on(widened).map(|_| ())
    }

    fn has_topic(&self, name: &str) -> bool {
        match self.runtime.block_on(self.broker.describe_topic(name, 0, 1, soon())) {
            Ok(_) => true,
            Err(BrokerError::NoTopic { .. }) => false,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    fn send(&self, topic: &str) -> Result<(), BrokerError> {
        let mut batch = BatchBuilder::new();
        batch.push(&NewMeta::default(), b"x");
        let batch: Bytes = batch.finish();
        let request = SendRequest { topic, queue: None, batch, session: None, deadline: soon() };
        self.runtime.block_on(self.broker.send(request)).map(|_| ())
    }

    fn create_group(&self, name: &str) -> Result<(), BrokerError> {
        let settings = GroupSettings::default();
        let made = self.broker.create_group(name, &settings, soon());
        self.runtime.block_on(made).map(|_| ())
    }

    fn delete_group(&self, name: &str) {
        self.runtime.block_on(self.broker.delete_group(name, soon())).unwrap();
    }

    fn has_group(&self, name: &str) -> bool {
        let described = self.broker.describe_group(name, TopicId::ZERO, 1, soon());
        match self.runtime.block_on(described) {
            Ok(_) => true,
            Err(BrokerError::UnknownGroup { .. }) => false,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    fn commit(&self, group: &str, queues: std::ops::Range<u32>) -> Result<(), BrokerError> {
        let offset = |queue| CommitOffset {
            topic: "t",
            queue: QueueId::new(queue),
            offset: QueueOffset::ZERO,
            expected: Expected::Any,
            known_queues: None,
        };
        let offsets: Vec<_> = queues.map(offset).collect();
        for offsets in offsets.chunks(COMMIT) {
            self.runtime.block_on(self.broker.commit_offsets(
                group,
                offsets,
                Caller::default(),
                soon(),
            ))?;
        }
        Ok(())
    }

    fn committed(&self, group: &str, queue: u32) -> Option<QueueOffset> {
        let queue = QueueId::new(queue);
        let found = self.broker.committed_offset(group, "t", queue, soon());
        match self.runtime.block_on(found) {
            Ok(progress) => progress.committed,
            Err(BrokerError::OffsetNotFound { .. }) => None,
            Err(error) => panic!("{group}: {error}"),
        }
    }

    /// Topics and their queues, groups and committed offsets.
    fn counts(&self) -> [u64; 4] {
        let status = self.broker.status();
        let (groups, offsets, _) = self.broker.group_counts();
        [status.topics, status.queues, groups, offsets]
    }
}

fn open(dir: &TempDir) -> Arc<Broker> {
    let store =
        StoreConfig { flush: FlushMode::Async, ..StoreConfig::new(dir.path().join("data")) };
    let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
    Broker::open(disk, clock, store, BrokerConfig::default()).unwrap().0
}

fn settings(queues: u32) -> TopicSettings {
    TopicSettings::open(queues, FlushMode::Async, TopicType::Mixed)
}

/// Holds that a refusal names the limit, in its words too.
fn assert_full(answer: Result<(), BrokerError>, reason: Reason, limit: u64) {
    let error = answer.unwrap_err();
    assert_eq!((error.reason(), error.limit()), (reason, Some(limit)), "{error}");
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
}

#[test]
fn a_million_topics_can_be_made_and_one_more_once_one_is_deleted() {
    let rig = Rig::new();
    let name = |number: u64| format!("topic-{number:07}");
    for number in 0..TOPICS {
        rig.create_topic(&name(number), 1).unwrap();
    }
    let full = |answer| assert_full(answer, Reason::TopicLimit, TOPICS);
    full(rig.create_topic("more", 1));
    full(rig.send("more"));
    assert_eq!(rig.counts(), [TOPICS, TOPICS, 0, 0]);

    // What is there works on.
    rig.create_topic(&name(7), 1).unwrap();
    rig.send(&name(7)).unwrap();
    rig.delete_topic(&name(0));
    rig.create_topic("more", 1).unwrap();
    full(rig.create_topic("still-more", 1));

    let rig = rig.reopened();
    assert_eq!(rig.counts(), [TOPICS, TOPICS, 0, 0]);
    assert!(!rig.has_topic(&name(0)) && rig.has_topic("more"));
    assert!((1..TOPICS).step_by(997).all(|number| rig.has_topic(&name(number))));
    full(rig.create_topic("still-more", 1));
    rig.broker.close().unwrap();
}

#[test]
fn sixteen_million_queues_can_be_made_and_more_once_a_topic_is_deleted() {
    let rig = Rig::new();
    let (topics, left) = (QUEUES / u64::from(WIDE), (QUEUES % u64::from(WIDE)) as u32);
    for topic in 0..topics {
        rig.create_topic(&format!("wide-{topic}"), WIDE).unwrap();
    }
    let full = |answer| assert_full(answer, Reason::TopicLimit, QUEUES);
    full(rig.create_topic("rest", left + 1));
    rig.create_topic("rest", left).unwrap();
    full(rig.create_topic("more", 1));
    full(rig.widen_topic("rest", left + 1));
    assert_eq!(rig.counts(), [topics + 1, QUEUES, 0, 0]);

    rig.send("rest").unwrap();
    rig.delete_topic("wide-0");
    rig.widen_topic("rest", left + 1).unwrap();
    full(rig.create_topic("more", WIDE));
    rig.create_topic("more", WIDE - 1).unwrap();
    let rig = rig.reopened();
    assert_eq!(rig.counts(), [topics + 1, QUEUES, 0, 0]);
    full(rig.create_topic("still-more", 1));
    rig.broker.close().unwrap();
}

#[test]
fn a_million_groups_can_be_made_and_one_more_once_one_is_deleted() {
    let rig = Rig::new();
    let name = |number: u64| format!("group-{number:07}");
    for number in 0..GROUPS {
        rig.create_group(&name(number)).unwrap();
    }
    let full = |answer| assert_full(answer, Reason::GroupLimit, GROUPS);
    full(rig.create_group("more"));
    assert_eq!(rig.counts(), [0, 0, GROUPS, 0]);

    rig.create_group(&name(7)).unwrap();
    rig.delete_group(&name(0));
    rig.create_group("more").unwrap();
    full(rig.create_group("still-more"));

    let rig = rig.reopened();
    assert_eq!(rig.counts(), [0, 0, GROUPS, 0]);
    assert!(!rig.has_group(&name(0)) && rig.has_group("more"));
    assert!((1..GROUPS).step_by(997).all(|number| rig.has_group(&name(number))));
    full(rig.create_group("still-more"));
    rig.broker.close().unwrap();
}

#[test]
fn sixteen_million_offsets_can_be_committed_and_more_once_a_group_is_deleted() {
    let rig = Rig::new();
    rig.create_topic("t", WIDE).unwrap();
    let (groups, left) = (OFFSETS / u64::from(WIDE), (OFFSETS % u64::from(WIDE)) as u32);
    let name = |number: u64| format!("group-{number}");
    for number in 0..=groups {
        rig.create_group(&name(number)).unwrap();
    }
    for number in 0..groups {
        rig.commit(&name(number), 0..WIDE).unwrap();
    }
    let last = name(groups);
    rig.commit(&last, 0..left - 1).unwrap();
    let full = |answer| assert_full(answer, Reason::OffsetLimit, OFFSETS);
    full(rig.commit(&last, left - 1..left + 1));
    assert_eq!(rig.committed(&last, left - 1), None, "nothing of a refused commit is there");
    rig.commit(&last, left - 1..left).unwrap();
    full(rig.commit(&last, left..left + 1));
    assert_eq!(rig.counts(), [1, u64::from(WIDE), groups + 1, OFFSETS]);

    // What is committed can be committed again.
    rig.commit(&last, 0..left).unwrap();
    rig.delete_group(&name(0));
    rig.commit(&last, left..left + 1).unwrap();

    let rig = rig.reopened();
    let offsets = OFFSETS - u64::from(WIDE) + 1;
    assert_eq!(rig.counts(), [1, u64::from(WIDE), groups, offsets]);
    for number in 1..groups {
        assert_eq!(rig.committed(&name(number), WIDE - 1), Some(QueueOffset::ZERO));
    }
    assert_eq!(rig.committed(&last, left), Some(QueueOffset::ZERO));
    assert_eq!(rig.committed(&last, left + 1), None);
    rig.broker.close().unwrap();
}
