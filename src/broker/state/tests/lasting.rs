//! All units over one store of tiny segments: the state outlives the segments that it was written in, and wherever the
//! power goes, what is there afterwards was the state once, and is no older than what was durable.

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
            Op::CreateGroup(name) => state.groups.create(store, name, &GroupSettings::default())?.1,
            Op::UpdateGroup(name, attempts) => {
                let change =
                    GroupChange { max_attempts: Some(Some(attempts)), ..GroupChange::default() };
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
                let outgoing = Outgoing { mark: &mark, topic: topic.handle(), queue, messages: 1 };
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
        for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING].into_iter().chain(random) {
            let case = format!("script {script}, cut at {operation} of {operations}, {choice:?}");
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
