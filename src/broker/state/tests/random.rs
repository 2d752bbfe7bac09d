//! Random runs beside a model: what there is in memory, what a replay makes of the records, and any snapshot with all
//! records over it are the same.

use proptest::prelude::*;

use super::*;
use crate::broker::state::groups::GroupChange;
use crate::message::InitialPosition;

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
                retry_jitter: 0,
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
                    Commit::Open { .. } => panic!("nobody has messages"),
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
