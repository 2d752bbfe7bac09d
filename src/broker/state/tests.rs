//! Groups and offsets as a function of the log: after random runs the state in memory is that of a model, that of a
//! replay of the records, and that of any snapshot with all records over it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::groups::{GroupChange, GroupCreation};
use super::offsets::{
    Asked, By, Caller, ChangeKind, Commit, Expected, KEPT_MS, NewOffset, OffsetChange, TopicCommit,
};
use super::topics::{Creation, Deletion, Origin};
use super::*;
use crate::format::state_record::OffsetCause;
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

#[derive(Clone, Debug)]
enum Step {
    CreateTopic(String),
    DeleteTopic(String),
    CreateGroup(String, GroupSettings),
    UpdateGroup(String, GroupChange),
    DeleteGroup(String),
    /// By somebody with a name or without one.
    Commit(String, BTreeMap<(String, u32), (u64, Expected)>, OffsetCause, &'static str),
    /// So many hours go by.
    Wait(u64),
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
    let cause = prop_oneof![3 => Just(OffsetCause::Commit), 1 => Just(OffsetCause::Reset)];
    let name = prop_oneof![2 => Just(""), 1 => Just("ann"), 1 => Just("bob")];
    let commit = (group_name(), offsets, cause, name)
        .prop_map(|(group, offsets, cause, name)| Step::Commit(group, offsets, cause, name));
    prop_oneof![
        2 => topic_name().prop_map(Step::CreateTopic),
        1 => topic_name().prop_map(Step::DeleteTopic),
        2 => (group_name(), settings()).prop_map(|(name, settings)| Step::CreateGroup(name, settings)),
        1 => (group_name(), change).prop_map(|(name, change)| Step::UpdateGroup(name, change)),
        1 => group_name().prop_map(Step::DeleteGroup),
        8 => commit,
        1 => (1_u64..90).prop_map(Step::Wait),
        1 => Just(Step::Snapshot),
    ]
}

/// What there is to see by name, without logs and units.
#[derive(Default)]
struct Model {
    topics: BTreeSet<String>,
    groups: BTreeMap<String, GroupSettings>,
    committed: BTreeMap<(String, String, u32), u64>,
    history: BTreeMap<(String, String, u32), Vec<Moved>>,
}

impl Model {
    fn forget(&mut self, is_gone: impl Fn(&str, &str) -> bool) {
        self.committed.retain(|(group, topic, _), _| !is_gone(group, topic));
        self.history.retain(|(group, topic, _), _| !is_gone(group, topic));
    }

    /// What of the history is not too old by now.
    fn remembered(&self, now: Timestamp) -> BTreeMap<(String, String, u32), Vec<Moved>> {
        let mut history = self.history.clone();
        history.values_mut().for_each(|all| all.retain(|moved| moved.4 + KEPT_MS >= now.get()));
        history.retain(|_, moved| !moved.is_empty());
        history
    }

    /// Whether the commit takes place; if so it does.
    fn commit(
        &mut self,
        group: &str,
        offsets: &BTreeMap<(String, u32), (u64, Expected)>,
        (cause, name): (OffsetCause, &str),
        now: Timestamp,
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
            let old = self.committed.insert(key(topic, *queue), *offset);
            let kind = match cause {
                OffsetCause::Reset => ChangeKind::Reset,
                OffsetCause::Commit if old.is_some_and(|old| *offset < old) => ChangeKind::Rewind,
                OffsetCause::Commit => ChangeKind::Commit,
            };
            if old != Some(*offset) && (kind != ChangeKind::Commit || !name.is_empty()) {
                let moved = (kind, old, *offset, name.to_owned(), now.get());
                self.history.entry(key(topic, *queue)).or_default().push(moved);
            }
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
                model.forget(|_, topic| topic == name);
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
                model.forget(|group, _| group == name);
            }
            Step::Commit(group, offsets, cause, name) => {
                let by = By { cause: *cause, caller: person(name) };
                let done = match rig.commit_by(group, offsets, by) {
                    Commit::Done { .. } => Some(true),
                    Commit::Conflict { .. } => Some(false),
                    Commit::Deleted => None,
                    Commit::Limit => panic!("far below the limit"),
                };
                let by = (*cause, *name);
                assert_eq!(done, model.commit(group, offsets, by, rig.store.now()));
            }
            Step::Wait(hours) => rig.clock.advance(Duration::from_secs(hours * 3_600)),
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
        let now = rig.store.now();
        prop_assert_eq!(rig.history(), model.remembered(now));
        prop_assert_eq!(settings_of(&rig), model.groups.clone());
        prop_assert_eq!(rig.state().offsets.count(), model.committed.len() as u64);
        let whole = rig.snapshot();

        let (again, records) = rig.replayed(&disk);
        prop_assert_eq!(&again.snapshot(), &whole);
        prop_assert_eq!(again.committed(), model.committed.clone());
        again.clock.advance(Duration::from_millis(now.get() - 1_000));
        prop_assert_eq!(again.history(), model.remembered(now));
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

/// All units over one store of tiny segments: the state outlives the segments that it was written in, and wherever the
/// power goes, what is there afterwards was the state once, and is no older than what was durable.
mod lasting {
    use super::*;
    use crate::broker::state::sessions::{Appended, Closing, Opening, Outgoing};
    use crate::broker::state::topics::{Purged, TopicChanges};
    use crate::clock::Clock as _;
    use crate::format::batch::{self, BatchBuilder, NewMeta};
    use crate::message::{Force, Keep};
    use crate::store::OpenError;
    use crate::testing::CrashChoice;

    /// A change of the state, or something that makes the log longer or shorter.
    #[derive(Clone, Copy, Debug)]
    enum Op {
        CreateTopic(&'static str),
        /// Gets another queue, and keeps its messages for so many milliseconds.
        UpdateTopic(&'static str, u64),
        PurgeQueue(&'static str, u32),
        DeleteTopic(&'static str),
        CreateGroup(&'static str),
        UpdateGroup(&'static str, u32),
        DeleteGroup(&'static str),
        /// The same offset in every queue of two topics.
        Commit(&'static str, [&'static str; 2], u64),
        /// The same as a reset, by somebody with this name.
        Reset(&'static str, [&'static str; 2], u64, &'static str),
        OpenSession(&'static str),
        /// The next batch of a session.
        SendInSession(&'static str, &'static str),
        CloseSession(&'static str),
        Send(&'static str),
        Flush,
        Seal,
        Tick,
        Clean,
    }

    struct Life {
        disk: SimDisk,
        clock: Arc<ManualClock>,
        state: Arc<State>,
        store: Store,
        workers: Workers,
    }

    impl Life {
        fn open(disk: &SimDisk, wall: Timestamp) -> Result<Self, OpenError> {
            let (clock, state) = (Arc::new(ManualClock::new(wall)), Arc::new(State::new(0)));
            // Segments of four pages: everything rolls.
            let config = StoreConfig {
                segment_size: 16 << 10,
                hot_bytes: 24 << 10,
                ..StoreConfig::new("/data")
            };
            let (store, workers) =
                Store::open_stepped(Arc::new(disk.clone()), clock.clone(), config, state.clone())?;
            Ok(Self { disk: disk.clone(), clock, state, store, workers })
        }

        /// Ends it as `kill -9` does and starts it again without anything that is derived from the log.
        fn killed_bare(self) -> Self {
            let Self { disk, clock, state, store, workers } = self;
            drop((state, store, workers));
            for path in disk.paths() {
                let text = path.to_string_lossy().into_owned();
                let derived = ["consumequeue/", "index/", "state/", "checkpoint"];
                if derived.iter().any(|part| text.contains(part)) {
                    disk.remove(&path).unwrap();
                }
            }
            Self::open(&disk, clock.now()).unwrap()
        }

        fn everything(&self) -> Vec<u8> {
            self.state.snapshot(self.store.topics()).state
        }

        /// The next offset of each queue, by the name of its topic.
        fn next_offsets(&self) -> BTreeMap<(String, u32), u64> {
            let (topics, _, _) = self.state.topics.list("", 1_000);
            let mut next = BTreeMap::new();
            for topic in topics {
                for queue in 0..topic.settings().queues {
                    let max = self.store.queue_max(topic.handle(), QueueId::new(queue));
                    next.insert((topic.name().to_owned(), queue), max.get());
                }
            }
            next
        }

        /// Waits for room as often as there is none. The end of what was appended, if anything was.
        fn step(&mut self, op: Op) -> Result<Option<PhysicalOffset>, AppendError> {
            loop {
                match self.try_step(op) {
                    Err(AppendError::NotReady) if !self.disk.is_off() => self.workers.settle(),
                    outcome => return outcome,
                }
            }
        }

        fn commit(
            &self,
            group: &str,
            topics: [&str; 2],
            offset: u64,
            by: By<'_>,
        ) -> Result<PhysicalOffset, AppendError> {
            let (state, store) = (&self.state, &self.store);
            let mut commits: Vec<_> = topics
                .iter()
                .map(|name| {
                    let topic = state.topics.get(name).unwrap();
                    let offset = QueueOffset::new(offset);
                    let offsets = (0..topic.settings().queues)
                        .map(|queue| NewOffset {
                            queue: QueueId::new(queue),
                            offset,
                            expected: Expected::Any,
                        })
                        .collect();
                    TopicCommit { known_queues: topic.settings().queues, topic, offsets }
                })
                .collect();
            commits.sort_unstable_by_key(|commit| commit.topic.id());
            let group = state.groups.get(group).unwrap();
            match state.offsets.commit(store, &group, &commits, by)? {
                Commit::Done { end, .. } => Ok(end),
                other => panic!("{other:?}"),
            }
        }

        fn try_step(&mut self, op: Op) -> Result<Option<PhysicalOffset>, AppendError> {
            let (state, store) = (&self.state, &self.store);
            Ok(Some(match op {
                Op::CreateTopic(name) => {
                    let settings = TopicSettings::open(2, FlushMode::Async, TopicType::Mixed);
                    state.topics.create(store, name, settings, Origin::Asked)?.1
                }
                Op::UpdateTopic(name, ms) => {
                    let queues = state.topics.get(name).unwrap().settings().queues;
                    let changes = TopicChanges {
                        queues: Some(queues + 1),
                        retention_time: Some(Keep::UpTo(ms)),
                        ..TopicChanges::default()
                    };
                    state.topics.update(store, name, &changes, Force::No)?.1
                }
                Op::PurgeQueue(name, queue) => {
                    let (topic, queue) = (state.topics.get(name).unwrap(), QueueId::new(queue));
                    let max = store.queue_max(topic.handle(), queue);
                    state.topics.purge(store, topic.id(), Purged::Queue(queue, max))?.unwrap()
                }
                Op::DeleteTopic(name) => {
                    let (deletion, end) = state.topics.delete(store, name)?;
                    if let Deletion::Done(id) = deletion {
                        state.offsets.forget_topic(id);
                    }
                    end
                }
                Op::CreateGroup(name) => {
                    state.groups.create(store, name, &GroupSettings::default())?.1
                }
                Op::UpdateGroup(name, attempts) => {
                    let change = GroupChange {
                        max_attempts: Some(Some(attempts)),
                        ..GroupChange::default()
                    };
                    state.groups.update(store, name, &change)?.1
                }
                Op::DeleteGroup(name) => {
                    let (deleted, end) = state.groups.delete(store, name)?;
                    state.offsets.forget_group(deleted.unwrap());
                    end
                }
                Op::Commit(group, topics, offset) => self.commit(group, topics, offset, READER)?,
                Op::Reset(group, topics, offset, name) => {
                    let by = By { cause: OffsetCause::Reset, caller: person(name) };
                    self.commit(group, topics, offset, by)?
                }
                Op::OpenSession(name) => match state.sessions.open(store, name)? {
                    Opening::Done { end, .. } => end,
                    Opening::Full => panic!("there is room"),
                },
                Op::SendInSession(name, topic) => {
                    let session = state.sessions.get(name).0.unwrap();
                    let mark = SessionMark {
                        session: session.id,
                        epoch: session.epoch,
                        sequence: session.last_sequence + 1,
                    };
                    let topic = state.topics.get(topic).unwrap();
                    let (queue, batch) = (QueueId::new(1), batch_of(300));
                    let info = batch::check(&batch).unwrap();
                    let outgoing =
                        Outgoing { mark: &mark, topic: topic.handle(), queue, messages: 1 };
                    let record =
                        NewRecord::message_in_session(topic.handle(), queue, batch, &info, &mark);
                    match state.sessions.append(store, outgoing, record)? {
                        Appended::Now(placed) => placed.end,
                        other @ Appended::Not(_) => panic!("{other:?}"),
                    }
                }
                Op::CloseSession(name) => {
                    let (closing, end) = state.sessions.close(store, name, None)?;
                    assert!(matches!(closing, Closing::Done), "{closing:?}");
                    end
                }
                Op::Send(topic) => {
                    let topic = state.topics.get(topic).unwrap();
                    let batch = batch_of(1_500);
                    let info = batch::check(&batch).unwrap();
                    let record = NewRecord::message(topic.handle(), QueueId::ZERO, batch, &info);
                    store.append_one(record)?.end
                }
                Op::Flush => {
                    self.workers.flush.flush_all();
                    return Ok(None);
                }
                Op::Seal => {
                    self.workers.dispatch.step();
                    self.workers.flush.flush_all();
                    self.workers.seal.step();
                    return Ok(None);
                }
                Op::Tick => {
                    self.clock.advance(Duration::from_millis(600));
                    return Ok(None);
                }
                Op::Clean => {
                    store.clean_soon();
                    for _ in 0..4 {
                        self.workers.clean.step();
                    }
                    return Ok(None);
                }
            }))
        }
    }

    fn batch_of(len: usize) -> bytes::Bytes {
        let mut builder = BatchBuilder::new();
        builder.push(&NewMeta::default(), &vec![7; len]);
        builder.finish()
    }

    /// Every transition that there is, then messages that are soon over, until what it was written in is
    /// gone, and every transition again, of some names for the second time.
    fn script() -> Vec<Op> {
        let mut ops = vec![
            Op::CreateTopic("kept"),
            Op::CreateTopic("short"),
            Op::UpdateTopic("short", 1_000),
            Op::CreateGroup("g"),
            Op::CreateGroup("h"),
            Op::Commit("g", ["kept", "short"], 0),
            Op::Flush,
            Op::OpenSession("p"),
            Op::OpenSession("q"),
            Op::SendInSession("p", "short"),
            Op::SendInSession("q", "short"),
            Op::UpdateGroup("h", 3),
            Op::Commit("h", ["kept", "short"], 9),
            Op::Commit("h", ["kept", "short"], 8),
            Op::Reset("h", ["kept", "short"], 1, "ann"),
            Op::CreateTopic("gone"),
            Op::CreateGroup("gone"),
            Op::Commit("gone", ["gone", "kept"], 1),
            Op::Reset("gone", ["gone", "kept"], 0, ""),
            Op::Commit("gone", ["gone", "kept"], 1),
            Op::DeleteTopic("gone"),
            Op::DeleteGroup("gone"),
        ];
        for round in 0..12 {
            for n in 0..8 {
                ops.push(Op::Send("short"));
                if n == 3 {
                    ops.push(Op::SendInSession("p", "short"));
                }
            }
            ops.extend([Op::Seal, Op::Seal, Op::Tick, Op::Clean, Op::Seal, Op::Clean]);
            match round {
                3 => ops.extend([Op::PurgeQueue("short", 1), Op::UpdateGroup("h", 4)]),
                5 => ops.extend([Op::CreateTopic("gone"), Op::CreateGroup("gone")]),
                6 => ops.extend([
                    Op::Commit("gone", ["gone", "short"], 2),
                    Op::Reset("gone", ["gone", "short"], 1, "bob"),
                    Op::Reset("g", ["kept", "short"], 3, "bob"),
                ]),
                7 => ops.extend([Op::CloseSession("q"), Op::OpenSession("p")]),
                8 => ops.extend([Op::UpdateTopic("kept", 9_000), Op::DeleteTopic("gone")]),
                9 => ops.extend([Op::DeleteGroup("gone"), Op::OpenSession("q")]),
                _ => {}
            }
        }
        ops
    }

    /// Steps that can be made one after the other, on a few names.
    fn random(mut seed: u64, count: usize) -> Vec<Op> {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        // Splitmix64.
        let mut below = |end: u64| {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)) % end
        };
        let (mut topics, mut groups, mut sessions) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut ops = vec![Op::CreateTopic("short"), Op::UpdateTopic("short", 900)];
        while ops.len() < count {
            let name = NAMES[below(3) as usize];
            let other = NAMES[below(3) as usize];
            let is_commit = groups.contains(name) && topics.contains(other);
            match below(24) {
                0 | 1 if topics.insert(name) => ops.push(Op::CreateTopic(name)),
                2 if topics.contains(name) => ops.push(Op::UpdateTopic(name, 500 + below(5_000))),
                3 if topics.contains(name) => {
                    ops.extend([Op::Seal, Op::PurgeQueue(name, below(2) as u32)]);
                }
                4 if below(2) == 0 && topics.remove(name) => ops.push(Op::DeleteTopic(name)),
                5 if groups.insert(name) => ops.push(Op::CreateGroup(name)),
                6 if groups.contains(name) => ops.push(Op::UpdateGroup(name, 1 + below(9) as u32)),
                7 if below(2) == 0 && groups.remove(name) => ops.push(Op::DeleteGroup(name)),
                8 | 9 if is_commit => ops.push(Op::Commit(name, [other, "short"], below(1_000))),
                10 if is_commit => {
                    ops.push(Op::Reset(name, [other, "short"], below(1_000), NAMES[0]));
                }
                11 => {
                    sessions.insert(name);
                    ops.push(Op::OpenSession(name));
                }
                12 | 13 if sessions.contains(name) => ops.push(Op::SendInSession(name, "short")),
                14 if below(3) == 0 && sessions.remove(name) => ops.push(Op::CloseSession(name)),
                15 => ops.push(Op::Flush),
                16 => ops.extend([Op::Seal, Op::Seal, Op::Tick, Op::Clean]),
                17..=20 => ops.push(Op::Send("short")),
                21 if topics.contains(name) => ops.push(Op::Send(name)),
                _ => {}
            }
        }
        ops
    }

    /// The state before the first step and after each, and the ends of what was appended up to there. It ends with the
    /// first refusal.
    #[derive(Default)]
    struct Lived {
        states: Vec<Vec<u8>>,
        ends: Vec<PhysicalOffset>,
    }

    fn live(life: &mut Life, ops: &[Op]) -> Lived {
        let (mut lived, mut end) = (Lived::default(), PhysicalOffset::ZERO);
        let mut note = |life: &Life, end| {
            lived.states.push(life.everything());
            lived.ends.push(end);
        };
        note(life, end);
        for op in ops {
            match life.step(*op) {
                Ok(appended) => end = appended.map_or(end, |appended| end.max(appended)),
                Err(_) if life.disk.is_off() => break,
                Err(error) => panic!("{op:?}: {error}"),
            }
            note(life, end);
        }
        lived
    }

    #[test]
    fn topics_groups_offsets_and_sessions_outlive_the_segments_they_were_written_in() {
        let disk = SimDisk::new();
        let mut life = Life::open(&disk, Timestamp::new(1_000_000)).unwrap();
        let ops = script();
        let first = ops.iter().position(|op| matches!(op, Op::DeleteGroup(_))).unwrap() + 1;
        let lived = live(&mut life, &ops);
        assert_eq!(lived.states.len(), ops.len() + 1);
        let (min, written) = (life.store.watermarks().min, lived.ends[first]);
        assert!(min > written, "the log begins at {min}, the first transitions end at {written}");
        let (whole, next) = (life.everything(), life.next_offsets());
        assert!(next[&("short".to_owned(), 0)] >= 96, "{next:?}");

        // Two starts: the second has nothing of what the first one derived.
        for _ in 0..2 {
            life = life.killed_bare();
            assert_eq!(life.everything(), whole);
            assert_eq!(life.next_offsets(), next);
        }
        let group = life.state.groups.get("h").unwrap();
        assert_eq!(group.settings().max_attempts, Some(4));
        let topic = life.state.topics.get("kept").unwrap();
        let committed = life.state.offsets.committed_of(group.id(), topic.id(), QueueId::ZERO).0;
        assert_eq!(committed, Some(QueueOffset::new(1)));
        let asked = Asked { queue: Some(QueueId::ZERO), limit: 9, ..Asked::default() };
        let of_queue = life.state.offsets.history(group.id(), topic.id(), asked, Timestamp::ZERO).0;
        let who: Vec<_> = of_queue.iter().map(|change| moved(change.clone())).collect();
        let (reset, rewind) = (ChangeKind::Reset, ChangeKind::Rewind);
        let at = who[0].4;
        let expected =
            [(reset, Some(8), 1, "ann".to_owned(), at), (rewind, Some(9), 8, String::new(), at)];
        assert_eq!(who, expected);
        assert_eq!(of_queue[0].address, person("ann").address);
        let session = life.state.sessions.get("p").0.unwrap();
        assert_eq!((session.epoch, session.last_sequence), (2, 13));
        assert!(life.state.topics.get("gone").is_none() && life.state.groups.get("gone").is_none());
    }

    /// Cuts the power at every so many operations of a script; how many it has, and whether segments were deleted.
    fn cut_everywhere(script: &str, ops: &[Op], every: usize) -> (u64, bool) {
        let wall = Timestamp::new(1_000_000);
        let disk = SimDisk::new();
        let mut life = Life::open(&disk, wall).unwrap();
        let whole = live(&mut life, ops);
        let (operations, mut reached) = (disk.operations(), 0);
        for operation in (0..=operations).step_by(every) {
            let disk = SimDisk::new();
            disk.crash_inside(operation, if operation.is_multiple_of(2) { 700 } else { 0 });
            let (mut durable, mut tried, mut now) = (0, 0, wall);
            if let Ok(mut life) = Life::open(&disk, wall) {
                let lived = live(&mut life, ops);
                let flushed = life.store.watermarks().flushed;
                durable = lived.ends.partition_point(|end| *end <= flushed) - 1;
                // The step that was refused may be there.
                (tried, now) = (lived.ends.len().min(ops.len()), life.clock.now());
            }
            reached = reached.max(durable);
            let pending = disk.pending_counts();
            let random = (0..3).map(|n| CrashChoice::random(operation * 3 + n, pending));
            for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING].into_iter().chain(random)
            {
                let case =
                    format!("script {script}, cut at {operation} of {operations}, {choice:?}");
                let life = Life::open(&disk.crash_image(&choice), now)
                    .unwrap_or_else(|error| panic!("{case}: {error}"));
                let found = life.everything();
                assert!(
                    whole.states[durable..=tried].contains(&found),
                    "{case}: not a state after steps {durable} to {tried}; it is one after {:?}",
                    whole.states.iter().position(|state| *state == found)
                );
                let again = life.killed_bare();
                assert_eq!(again.everything(), found, "{case}: without what is derived");
            }
        }
        assert!(
            2 * reached > ops.len(),
            "script {script}: {reached} of {} steps were durable",
            ops.len()
        );
        (operations, life.store.watermarks().min > PhysicalOffset::ZERO)
    }

    #[test]
    fn after_a_power_cut_the_state_is_one_that_was_and_no_older_than_what_was_durable() {
        let (operations, is_cleaned) = cut_everywhere("all transitions", &script(), 1);
        assert!(operations > 300 && is_cleaned, "{operations}");
        let mut cleaned = 0;
        for seed in 0..6 {
            let ops = random(seed, 160);
            let (_, is_cleaned) = cut_everywhere(&format!("random {seed}"), &ops, 5);
            cleaned += u64::from(is_cleaned);
        }
        assert!(cleaned > 2, "segments were deleted in {cleaned} of the random scripts");
    }
}
