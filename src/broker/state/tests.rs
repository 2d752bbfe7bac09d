//! The state as a function of the log.
//!
//! | file | holds |
//! | --- | --- |
//! | this one | groups and offsets over a store of their own; single cases of commits |
//! | `random.rs` | random runs of them beside a model |
//! | `lasting.rs` | all units, retention and power cuts |

mod lasting;
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::groups::{GroupChange, GroupCreation};
use super::offsets::{
    Asked, By, Caller, ChangeKind, Commit, Expected, KEPT_MS, NewOffset, OffsetChange, TopicCommit,
};
use super::topics::{Creation, Deletion, Origin};
use super::*;
use crate::format::state_record::OffsetCause;
use crate::message::{
    FlushMode, GroupId, GroupSettings, QueueId, QueueOffset, Timestamp, TopicId, TopicSettings,
    TopicType,
};
use crate::store::{StoreConfig, Workers};
use crate::sync::{Mutex, lock};
use crate::testing::{ManualClock, SimDisk};

const QUEUES: u32 = 5;

/// The state behind a store, and what a start replayed.
#[derive(Debug)]
struct Recorder {
    state: State,
    replayed: Mutex<Vec<(Vec<u8>, PhysicalOffset)>>,
}

impl Applier for Recorder {
    fn restore(&self, topics: &Topics, state: &[u8]) -> Result<(), DecodeError> {
        self.state.restore(topics, state)
    }

    fn apply(
        &self,
        topics: &Topics,
        payload: &[u8],
        end: PhysicalOffset,
    ) -> Result<(), DecodeError> {
        lock(&self.replayed).push((payload.to_vec(), end));
        self.state.apply(topics, payload, end)
    }

    fn stored(&self, mark: SessionMark, batch: &SessionBatch) {
        self.state.stored(mark, batch);
    }

    fn snapshot(&self, topics: &Topics) -> StateSnapshot {
        self.state.snapshot(topics)
    }
}

/// A consumer, as it commits as it goes.
const READER: By<'_> =
    By { cause: OffsetCause::Commit, caller: Caller { address: None, name: "" } };

fn person(name: &str) -> Caller<'_> {
    Caller { address: Some("10.0.0.1:4000".parse().unwrap()), name }
}

struct Rig {
    applier: Arc<Recorder>,
    clock: Arc<ManualClock>,
    store: Store,
    _workers: Workers,
}

impl Rig {
    fn open(disk: &SimDisk) -> Self {
        let applier = Arc::new(Recorder { state: State::new(0), replayed: Mutex::new(Vec::new()) });
        let clock = Arc::new(ManualClock::new(Timestamp::new(1_000)));
        let config = StoreConfig { segment_size: 4 << 20, ..StoreConfig::new("/data") };
        let opened =
            Store::open_stepped(Arc::new(disk.clone()), clock.clone(), config, applier.clone())
                .unwrap();
        Self { applier, clock, store: opened.0, _workers: opened.1 }
    }

    fn state(&self) -> &State {
        &self.applier.state
    }

    fn snapshot(&self) -> Vec<u8> {
        self.state().snapshot(self.store.topics()).state
    }

    fn create_topic(&self, name: &str) -> TopicId {
        let settings = TopicSettings::open(QUEUES, FlushMode::Async, TopicType::Mixed);
        let made = self.state().topics.create(&self.store, name, settings, Origin::Asked).unwrap();
        match made.0 {
            Creation::Ready(topic) => topic.id(),
            other => panic!("{other:?}"),
        }
    }

    fn delete_topic(&self, name: &str) {
        if let Deletion::Done(id) = self.state().topics.delete(&self.store, name).unwrap().0 {
            self.state().offsets.forget_topic(id);
        }
    }

    fn create_group(&self, name: &str, settings: &GroupSettings) -> Option<GroupId> {
        match self.state().groups.create(&self.store, name, settings).unwrap().0 {
            GroupCreation::Ready(group) => Some(group.id),
            GroupCreation::Conflict => None,
            other @ GroupCreation::Limit(_) => panic!("{other:?}"),
        }
    }

    fn delete_group(&self, name: &str) {
        if let Some(id) = self.state().groups.delete(&self.store, name).unwrap().0 {
            self.state().offsets.forget_group(id);
        }
    }

    fn commit(&self, group: &str, offsets: &BTreeMap<(String, u32), (u64, Expected)>) -> Commit {
        self.commit_by(group, offsets, READER)
    }

    /// Commits what can be committed: topics that are not there are left out.
    fn commit_by(
        &self,
        group: &str,
        offsets: &BTreeMap<(String, u32), (u64, Expected)>,
        by: By<'_>,
    ) -> Commit {
        let Some(group) = self.state().groups.get(group) else { return Commit::Deleted };
        let mut commits: Vec<TopicCommit> = Vec::new();
        for ((name, queue), (offset, expected)) in offsets {
            let Some(topic) = self.state().topics.get(name) else { continue };
            let new = NewOffset {
                queue: QueueId::new(*queue),
                offset: QueueOffset::new(*offset),
                expected: *expected,
            };
            match commits.last_mut() {
                Some(last) if last.topic.id() == topic.id() => last.offsets.push(new),
                _ => commits.push(TopicCommit { topic, known_queues: QUEUES, offsets: vec![new] }),
            }
        }
        commits.sort_unstable_by_key(|commit| commit.topic.id());
        if commits.is_empty() {
            return Commit::Deleted;
        }
        self.state().offsets.commit(&self.store, &group, &commits, by).unwrap()
    }

    /// What is remembered and not too old, by the names of group and topic, oldest first.
    fn history(&self) -> BTreeMap<(String, String, u32), Vec<Moved>> {
        let all = self.history_since(Timestamp::ZERO);
        let count: usize = all.values().map(Vec::len).sum();
        assert_eq!(self.state().offsets.remembered(), count as u64, "of nothing that is gone");
        self.history_since(Timestamp::new(self.store.now().get().saturating_sub(KEPT_MS)))
    }

    fn history_since(&self, since: Timestamp) -> BTreeMap<(String, String, u32), Vec<Moved>> {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let (groups, _, _) = self.state().groups.list("", 1_000);
        for group in groups {
            for id in self.state().offsets.topics_of(group.id, TopicId::ZERO, 1_000).0 {
                let topic = self.state().topics.by_id(id).unwrap();
                // Pages of two: every place is the end of a page in some run.
                let mut asked = Asked { limit: 2, ..Asked::default() };
                loop {
                    let (page, more) = self.state().offsets.history(group.id, id, asked, since);
                    asked.after = page.last().map(|last| (last.position, last.queue));
                    for change in page {
                        let queue = change.queue.get();
                        let key = (group.name.to_string(), topic.name().to_owned(), queue);
                        found.entry(key).or_default().insert(0, moved(change));
                    }
                    if !more {
                        break;
                    }
                }
            }
        }
        found
    }

    /// Every committed offset by the names of its group and its topic.
    fn committed(&self) -> BTreeMap<(String, String, u32), u64> {
        let mut found = BTreeMap::new();
        let (groups, more, _) = self.state().groups.list("", 1_000);
        assert!(!more);
        for group in groups {
            let (ids, more) = self.state().offsets.topics_of(group.id, TopicId::ZERO, 1_000);
            assert!(!more);
            for id in ids {
                let topic = self.state().topics.by_id(id).unwrap();
                let committed = self.state().offsets.committed(group.id, id);
                for queue in 0..QUEUES {
                    let one = self.state().offsets.committed_of(group.id, id, QueueId::new(queue));
                    assert_eq!(one, (committed.get(QueueId::new(queue)), committed.applied));
                    if let Some(offset) = one.0 {
                        let key = (group.name.to_string(), topic.name().to_owned(), queue);
                        found.insert(key, offset.get());
                    }
                }
            }
        }
        found
    }

    /// The state that replay makes of the log alone, and the records that it read.
    fn replayed(self, disk: &SimDisk) -> (Self, Vec<(Vec<u8>, PhysicalOffset)>) {
        drop(self);
        let rig = Self::open(disk);
        let records = std::mem::take(&mut *lock(&rig.applier.replayed));
        (rig, records)
    }
}

/// Kind, old, new, by whom, when.
type Moved = (ChangeKind, Option<u64>, u64, String, u64);

fn moved(change: OffsetChange) -> Moved {
    let (old, new) = (change.old.map(QueueOffset::get), change.new.get());
    (change.kind, old, new, change.by.map_or_else(String::new, String::from), change.at.get())
}

/// A commit that has not seen the mark of a deletion may lie behind it in the log, where replay passes over it.
#[test]
fn commits_beside_deletions_end_as_the_log_says() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk);
    let commits = |thread: u64| {
        for round in 0..300 {
            let offset = (thread * 1_000 + round, Expected::Any);
            let offsets: BTreeMap<_, _> = ["a", "b"]
                .into_iter()
                .flat_map(|topic| (0..3).map(move |queue| ((topic.to_owned(), queue), offset)))
                .collect();
            rig.commit(if thread.is_multiple_of(2) { "x" } else { "y" }, &offsets);
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || commits(thread));
        }
        for _ in 0..100 {
            for topic in ["a", "b"] {
                rig.create_topic(topic);
            }
            for group in ["x", "y"] {
                rig.create_group(group, &GroupSettings::default());
            }
            rig.delete_topic("a");
            rig.delete_group("x");
        }
    });
    let (whole, committed) = (rig.snapshot(), rig.committed());
    assert_eq!(rig.state().offsets.count(), committed.len() as u64);
    let history = rig.history();
    let (again, _) = rig.replayed(&disk);
    assert_eq!(again.committed(), committed);
    assert_eq!(again.history(), history);
    assert_eq!(again.snapshot(), whole);
}

#[test]
fn a_queue_that_came_after_the_first_commit_begins_at_zero() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk);
    let (topic, group) = (rig.create_topic("a"), "x");
    let id = rig.create_group(group, &GroupSettings::default()).unwrap();
    let commit = |queue, offset, expected| {
        rig.commit(group, &BTreeMap::from([(("a".to_owned(), queue), (offset, expected))]))
    };
    let get = |queue| rig.state().offsets.committed_of(id, topic, QueueId::new(queue)).0;
    assert_eq!((get(0), get(QUEUES)), (None, None));
    commit(1, 7, Expected::Nothing);
    assert_eq!((get(0), get(1)), (None, Some(QueueOffset::new(7))));

    let more = TopicSettings::open(QUEUES + 2, FlushMode::Async, TopicType::Mixed);
    rig.store.topics().get(topic).unwrap().configure(&more, PhysicalOffset::ZERO);
    assert_eq!((get(0), get(QUEUES)), (None, Some(QueueOffset::ZERO)));
    let conflict = commit(QUEUES, 3, Expected::Nothing);
    assert!(matches!(conflict, Commit::Conflict { current: Some(QueueOffset::ZERO), .. }));
    let done = commit(QUEUES, 3, Expected::Offset(QueueOffset::ZERO));
    assert!(matches!(done, Commit::Done { .. }), "{done:?}");
    let whole = rig.snapshot();
    let (again, _) = rig.replayed(&disk);
    assert_eq!(again.snapshot(), whole);
    let last = again.state().offsets.committed_of(id, topic, QueueId::new(QUEUES + 1)).0;
    assert_eq!(last, Some(QueueOffset::ZERO));
}

#[test]
fn what_is_committed_already_appends_nothing() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk);
    rig.create_topic("a");
    rig.create_group("x", &GroupSettings::default());
    let offsets = BTreeMap::from([(("a".to_owned(), 2), (0, Expected::Any))]);
    let first = rig.commit("x", &offsets);
    let appended = rig.store.watermarks().appended;
    let Commit::Done { end, old } = first else { panic!("{first:?}") };
    assert_eq!((end, old), (appended, vec![None]));
    let again = rig.commit("x", &offsets);
    assert_eq!(again, Commit::Done { end, old: vec![Some(QueueOffset::ZERO)] });
    assert_eq!(rig.store.watermarks().appended, appended);
}

#[test]
fn a_reset_of_all_queues_is_one_record_whatever_their_number() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk);
    let settings = TopicSettings::open(65_536, FlushMode::Async, TopicType::Mixed);
    rig.state().topics.create(&rig.store, "wide", settings, Origin::Asked).unwrap();
    rig.create_group("x", &GroupSettings::default());
    // Every other queue first, so that the rest is merged in between.
    let all = |step: usize, offset| -> BTreeMap<_, _> {
        let queues = (0..65_536).step_by(step);
        queues.map(|queue| (("wide".to_owned(), queue), (offset, Expected::Any))).collect()
    };
    rig.commit("x", &all(2, 1));
    rig.commit("x", &all(1, 2));
    assert_eq!(rig.state().offsets.count(), 65_536);
    let whole = rig.snapshot();
    let (again, records) = rig.replayed(&disk);
    assert_eq!(records.len(), 4);
    assert_eq!(again.snapshot(), whole);
}

#[test]
fn a_commit_that_comes_to_nothing_leaves_no_unit_behind() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk);
    let topic = rig.create_topic("a");
    let group = rig.create_group("x", &GroupSettings::default()).unwrap();
    let expected = Expected::Offset(QueueOffset::new(9));
    let conflict = rig.commit("x", &BTreeMap::from([(("a".to_owned(), 0), (1, expected))]));
    let applied = PhysicalOffset::ZERO;
    let none = Commit::Conflict { topic, queue: QueueId::ZERO, current: None, applied };
    assert_eq!(conflict, none);
    let offsets = &rig.state().offsets;
    assert_eq!(offsets.topics_of(group, TopicId::ZERO, 10), (vec![], false));
    assert_eq!((offsets.count(), offsets.memory_bytes()), (0, 0));
}

#[test]
fn one_offset_among_very_many_is_a_record_of_its_own_size() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk);
    let settings = TopicSettings::open(65_536, FlushMode::Async, TopicType::Mixed);
    rig.state().topics.create(&rig.store, "wide", settings, Origin::Asked).unwrap();
    rig.create_group("x", &GroupSettings::default());
    let all = (0..65_536).map(|queue| (("wide".to_owned(), queue), (1, Expected::Any)));
    rig.commit("x", &all.collect());
    let before = rig.store.watermarks().appended;
    rig.commit("x", &BTreeMap::from([(("wide".to_owned(), 40_000), (2, Expected::Any))]));
    let len = rig.store.watermarks().appended.since(before);
    assert!(len < 400, "{len}");
}
