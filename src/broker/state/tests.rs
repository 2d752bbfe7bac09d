//! Groups and offsets as a function of the log: after random runs the state in memory is that of a model, that of a
//! replay of the records, and that of any snapshot with all records over it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::groups::{GroupChange, GroupCreation};
use super::offsets::{Commit, Expected, NewOffset, TopicCommit};
use super::topics::{Creation, Deletion, Origin};
use super::*;
use crate::message::{
    FlushMode, GroupId, GroupSettings, InitialPosition, QueueId, QueueOffset, Timestamp, TopicId,
    TopicSettings, TopicType,
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

struct Rig {
    applier: Arc<Recorder>,
    store: Store,
    _workers: Workers,
}

impl Rig {
    fn open(disk: &SimDisk) -> Self {
        let applier = Arc::new(Recorder { state: State::new(0), replayed: Mutex::new(Vec::new()) });
        let clock = Arc::new(ManualClock::new(Timestamp::new(1_000)));
        let config = StoreConfig { segment_size: 4 << 20, ..StoreConfig::new("/data") };
        let opened =
            Store::open_stepped(Arc::new(disk.clone()), clock, config, applier.clone()).unwrap();
        Self { applier, store: opened.0, _workers: opened.1 }
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

    /// Commits what can be committed: topics that are not there are left out.
    fn commit(&self, group: &str, offsets: &BTreeMap<(String, u32), (u64, Expected)>) -> Commit {
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
                _ => commits.push(TopicCommit { topic, offsets: vec![new] }),
            }
        }
        commits.sort_unstable_by_key(|commit| commit.topic.id());
        if commits.is_empty() {
            return Commit::Deleted;
        }
        self.state().offsets.commit(&self.store, &group, &commits).unwrap()
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

#[derive(Clone, Debug)]
enum Step {
    CreateTopic(String),
    DeleteTopic(String),
    CreateGroup(String, GroupSettings),
    UpdateGroup(String, GroupChange),
    DeleteGroup(String),
    Commit(String, BTreeMap<(String, u32), (u64, Expected)>),
    Snapshot,
}

fn topic_name() -> impl Strategy<Value = String> {
    "[abc]"
}

fn group_name() -> impl Strategy<Value = String> {
    "[xyz]"
}

fn settings() -> impl Strategy<Value = GroupSettings> {
    prop_oneof![
        3 => Just(GroupSettings::default()),
        1 => (any::<bool>(), prop::option::of(1_u32..9), 0_u64..99).prop_map(|(ordered, most, ms)| {
            GroupSettings {
                ordered,
                max_attempts: most,
                retry_delays_ms: vec![ms],
                initial_position: InitialPosition::Time(Timestamp::new(ms)),
                ..GroupSettings::default()
            }
        }),
    ]
}

fn expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        6 => Just(Expected::Any),
        1 => Just(Expected::Nothing),
        1 => (0_u64..4).prop_map(|offset| Expected::Offset(QueueOffset::new(offset))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // Offsets of all sizes, so that both halves of a row are used.
    let offset = prop_oneof![0_u64..4, any::<u64>()];
    let offsets = prop::collection::btree_map(
        (topic_name(), 0..QUEUES),
        (offset, expected()),
        1..(2 * QUEUES as usize),
    );
    let change = (prop::option::of(any::<bool>()), prop::option::of(prop::option::of(1_u32..9)))
        .prop_map(|(enabled, max_attempts)| GroupChange {
            enabled,
            max_attempts,
            ..GroupChange::default()
        });
    prop_oneof![
        2 => topic_name().prop_map(Step::CreateTopic),
        1 => topic_name().prop_map(Step::DeleteTopic),
        2 => (group_name(), settings()).prop_map(|(name, settings)| Step::CreateGroup(name, settings)),
        1 => (group_name(), change).prop_map(|(name, change)| Step::UpdateGroup(name, change)),
        1 => group_name().prop_map(Step::DeleteGroup),
        8 => (group_name(), offsets).prop_map(|(name, offsets)| Step::Commit(name, offsets)),
        1 => Just(Step::Snapshot),
    ]
}

/// What there is to see by name, without logs and units.
#[derive(Default)]
struct Model {
    topics: BTreeSet<String>,
    groups: BTreeMap<String, GroupSettings>,
    committed: BTreeMap<(String, String, u32), u64>,
}

impl Model {
    /// Whether the commit takes place; if so it does.
    fn commit(
        &mut self,
        group: &str,
        offsets: &BTreeMap<(String, u32), (u64, Expected)>,
    ) -> Option<bool> {
        let key = |topic: &str, queue: u32| (group.to_owned(), topic.to_owned(), queue);
        let known: Vec<_> =
            offsets.iter().filter(|((topic, _), _)| self.topics.contains(topic)).collect();
        if !self.groups.contains_key(group) || known.is_empty() {
            return None;
        }
        let is_met = |((topic, queue), (_, expected)): &(&(String, u32), &(u64, Expected))| {
            let current = self.committed.get(&key(topic, *queue));
            match expected {
                Expected::Any => true,
                Expected::Nothing => current.is_none(),
                Expected::Offset(offset) => current == Some(&offset.get()),
            }
        };
        if !known.iter().all(is_met) {
            return Some(false);
        }
        for ((topic, queue), (offset, _)) in known {
            self.committed.insert(key(topic, *queue), *offset);
        }
        Some(true)
    }
}

/// Makes the steps on both; gives the snapshots that were taken on the way.
fn run(rig: &Rig, steps: &[Step]) -> (Model, Vec<Vec<u8>>) {
    let (mut model, mut snapshots) = (Model::default(), Vec::new());
    for step in steps {
        match step {
            Step::CreateTopic(name) => {
                rig.create_topic(name);
                model.topics.insert(name.clone());
            }
            Step::DeleteTopic(name) => {
                rig.delete_topic(name);
                model.topics.remove(name);
                model.committed.retain(|(_, topic, _), _| topic != name);
            }
            Step::CreateGroup(name, settings) => {
                let made = rig.create_group(name, settings);
                let known = model.groups.entry(name.clone()).or_insert_with(|| settings.clone());
                assert_eq!(made.is_some(), known == settings);
            }
            Step::UpdateGroup(name, change) => {
                let (group, _) = rig.state().groups.update(&rig.store, name, change).unwrap();
                let known = model.groups.get_mut(name);
                assert_eq!(group.is_some(), known.is_some());
                if let Some(known) = known {
                    *known = change.applied_to(known);
                }
            }
            Step::DeleteGroup(name) => {
                rig.delete_group(name);
                model.groups.remove(name);
                model.committed.retain(|(group, _, _), _| group != name);
            }
            Step::Commit(group, offsets) => {
                let done = match rig.commit(group, offsets) {
                    Commit::Done { .. } => Some(true),
                    Commit::Conflict { .. } => Some(false),
                    Commit::Deleted => None,
                    Commit::Limit => panic!("far below the limit"),
                };
                assert_eq!(done, model.commit(group, offsets));
            }
            Step::Snapshot => snapshots.push(rig.snapshot()),
        }
    }
    (model, snapshots)
}

fn settings_of(rig: &Rig) -> BTreeMap<String, GroupSettings> {
    let (groups, _, _) = rig.state().groups.list("", 1_000);
    groups.iter().map(|group| (group.name.to_string(), (*group.settings).clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_state_is_what_the_log_says_however_it_is_read(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let disk = SimDisk::new();
        let rig = Rig::open(&disk);
        let (model, mut snapshots) = run(&rig, &steps);
        prop_assert_eq!(rig.committed(), model.committed.clone());
        prop_assert_eq!(settings_of(&rig), model.groups.clone());
        prop_assert_eq!(rig.state().offsets.count(), model.committed.len() as u64);
        let whole = rig.snapshot();

        let (again, records) = rig.replayed(&disk);
        prop_assert_eq!(&again.snapshot(), &whole);
        prop_assert_eq!(again.committed(), model.committed);
        prop_assert_eq!(again.state().offsets.count(), again.committed().len() as u64);

        snapshots.push(whole.clone());
        for snapshot in snapshots {
            let (state, topics) = (State::new(0), Topics::default());
            state.restore(&topics, &snapshot).unwrap();
            for (payload, end) in &records {
                state.apply(&topics, payload, *end).unwrap();
            }
            prop_assert_eq!(state.snapshot(&topics).state, whole.clone());
        }
    }
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
    let (again, _) = rig.replayed(&disk);
    assert_eq!(again.committed(), committed);
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
