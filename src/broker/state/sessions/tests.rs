//! Sessions against a plain model, over a real store on the simulated disk; and what replay does with what it meets.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::State;
use super::super::topics::{Creation, Origin};
use super::*;
use crate::clock::Clock;
use crate::format::batch::{self, BatchBuilder, NewMeta};
use crate::format::state_record::{SESSION_WINDOW, transitions};
use crate::message::{Epoch, QueueOffset, TopicId, TopicSettings, TopicType};
use crate::store::{Applier as _, StoreConfig, Topics, Workers};
use crate::testing::{CrashChoice, ManualClock, SimDisk};

const DATA: &str = "/data";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A store stepped by hand, and the state above it.
struct Rig {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    state: Arc<State>,
    store: Store,
    workers: Workers,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self::on(SimDisk::new(), Timestamp::new(1_000_000));
        for (name, flush) in [("sync", FlushMode::Sync), ("async", FlushMode::Async)] {
            let settings = TopicSettings::open(2, flush, TopicType::Mixed);
            let made = rig.state.topics.create(&rig.store, name, settings, Origin::Asked).unwrap();
            assert!(matches!(made.0, Creation::Ready(_)));
        }
        rig.workers.settle();
        rig
    }

    /// The power goes: what is not flushed is there or not, as the seed says.
    fn cut(self, seed: u64) -> Self {
        let choice = CrashChoice::random(seed, self.disk.pending_counts());
        let image = self.disk.crash_image(&choice);
        Self::on(image, self.clock.now())
    }

    fn on(disk: SimDisk, wall: Timestamp) -> Self {
        let clock = Arc::new(ManualClock::new(wall));
        let state = Arc::new(State::new(0));
        // Segments of four pages: everything rolls.
        let config =
            StoreConfig { segment_size: 16 << 10, hot_bytes: 24 << 10, ..StoreConfig::new(DATA) };
        let (store, workers) =
            Store::open_stepped(Arc::new(disk.clone()), clock.clone(), config, state.clone())
                .unwrap();
        Self { disk, clock, state, store, workers }
    }

    /// Ends it as `kill -9` does and starts it again; without what is derived from the log if `bare`.
    fn killed(self, bare: bool) -> Self {
        let Self { disk, clock, state, store, workers } = self;
        let wall = clock.now();
        drop((state, store, workers));
        if bare {
            for path in disk.paths() {
                let text = path.to_string_lossy().into_owned();
                if ["consumequeue/", "index/", "state/", "checkpoint"]
                    .iter()
                    .any(|p| text.contains(p))
                {
                    disk.remove(&path).unwrap();
                }
            }
        }
        Self::on(disk, wall)
    }

    fn stopped(self) -> Self {
        let Self { disk, clock, state, store, workers } = self;
        store.close_stepped(workers).unwrap();
        drop((state, store));
        Self::on(disk, clock.now())
    }

    fn everything(&self) -> Vec<u8> {
        self.state.snapshot(self.store.topics()).state
    }

    fn open(&mut self, name: &str) -> (SessionState, usize) {
        loop {
            match self.state.sessions.open(&self.store, name) {
                Ok(Opening::Done { session, closed, .. }) => return (session, closed.len()),
                Ok(Opening::Full) => panic!("there is room"),
                Err(AppendError::NotReady) => self.workers.settle(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn close(&mut self, name: &str) -> Closing {
        loop {
            match self.state.sessions.close(&self.store, name, None) {
                Ok((closing, _)) => return closing,
                Err(AppendError::NotReady) => self.workers.settle(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn send(&mut self, mark: &SessionMark, messages: u16, topic: &str) -> Result<Place, Verdict> {
        let topic = self.state.topics.get(topic).unwrap();
        let batch = batch_of(messages);
        let info = batch::check(&batch).unwrap();
        let queue = QueueId::new(1);
        loop {
            let batch = batch.clone();
            let record = NewRecord::message_in_session(topic.handle(), queue, batch, &info, mark);
            let outgoing = Outgoing { mark, topic: topic.handle(), queue, messages };
            match self.state.sessions.append(&self.store, outgoing, record) {
                Ok(Appended::Now(placed)) => return Ok((placed.offset, placed.queue_offset)),
                Ok(Appended::Not(verdict)) => return Err(verdict),
                Err(AppendError::NotReady) => self.workers.settle(),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

type Place = (PhysicalOffset, QueueOffset);

fn batch_of(messages: u16) -> Bytes {
    let mut builder = BatchBuilder::new();
    for _ in 0..messages {
        builder.push(&NewMeta::default(), &[7; 300]);
    }
    builder.finish()
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Op {
    Open(usize),
    Close(usize),
    /// So many below the current epoch, so far from the next sequence, so many messages, to the sync topic or not.
    Send {
        name: usize,
        epochs_back: u64,
        ahead: i64,
        messages: u16,
        sync: bool,
    },
    /// So many batches in a row.
    Burst {
        name: usize,
        count: u64,
    },
    Days(u32),
    Settle,
    Kill {
        bare: bool,
    },
    Stop,
    Cut {
        seed: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..NAMES.len();
    prop_oneof![
        3 => name.clone().prop_map(Op::Open),
        1 => name.clone().prop_map(Op::Close),
        12 => (name.clone(), prop_oneof![8 => Just(0_u64), 1 => Just(1), 1 => Just(u64::MAX)],
            prop_oneof![6 => Just(0_i64), 2 => -4_i64..0, 1 => -80_i64..0, 1 => 1_i64..3], 1_u16..4,
            any::<bool>())
            .prop_map(|(name, epochs_back, ahead, messages, sync)| Op::Send {
                name, epochs_back, ahead, messages, sync
            }),
        1 => (name, 1_u64..90).prop_map(|(name, count)| Op::Burst { name, count }),
        1 => (1_u32..9).prop_map(Op::Days),
        1 => Just(Op::Settle),
        1 => any::<bool>().prop_map(|bare| Op::Kill { bare }),
        1 => Just(Op::Stop),
        1 => any::<u64>().prop_map(|seed| Op::Cut { seed }),
    ]
}

/// A session as its producers remember it.
#[derive(Debug)]
struct Known {
    id: SessionId,
    epoch: u64,
    /// By sequence from 1: messages and place.
    stored: Vec<(u16, Place)>,
    used: Timestamp,
    /// The end of the log when it was first opened.
    since: PhysicalOffset,
}

#[derive(Debug, Default)]
struct Model {
    open: BTreeMap<&'static str, Known>,
    /// A power cut may bring them back.
    closed: Vec<(&'static str, Known)>,
    ids: u64,
}

impl Model {
    fn close(&mut self, name: &'static str) -> bool {
        let closed = self.open.remove(name).map(|known| (name, known));
        let was_open = closed.is_some();
        self.closed.extend(closed);
        was_open
    }

    fn opened(&mut self, name: &'static str, got: &SessionState, closed: usize, store: &Store) {
        let now = store.now();
        let is_idle = |known: &Known| now.get() - known.used.get() >= 7 * 86_400_000;
        let idle = self.open.iter().filter(|(other, known)| **other != name && is_idle(known));
        let idle: Vec<&str> = idle.map(|(other, _)| *other).collect();
        assert_eq!(closed, idle.len(), "idle sessions are closed");
        for idle in idle {
            self.close(idle);
        }
        let since = store.watermarks().appended;
        let ids = &mut self.ids;
        let known = self.open.entry(name).or_insert_with(|| {
            *ids += 1;
            Known { id: SessionId::new(*ids), epoch: 0, stored: Vec::new(), used: now, since }
        });
        known.epoch += 1;
        known.used = now;
        let expected = (known.id, known.epoch, known.stored.len() as u64);
        assert_eq!((got.id, got.epoch, got.last_sequence), expected);
    }

    /// Takes over what a power cut has left. Nothing that was flushed is gone.
    fn cut(&mut self, rig: &Rig, flushed: PhysicalOffset) {
        let found = rig.state.sessions.list("", 100).0;
        let mut known: BTreeMap<SessionId, (&'static str, Known)> = BTreeMap::new();
        for (name, session) in std::mem::take(&mut self.open) {
            assert!(
                session.since > flushed || found.iter().any(|found| found.id == session.id),
                "{name} was opened durably, and is gone"
            );
            known.insert(session.id, (name, session));
        }
        for (name, session) in self.closed.drain(..) {
            known.insert(session.id, (name, session));
        }
        for found in &found {
            let (name, mut session) = known.remove(&found.id).expect("it was opened once");
            assert_eq!(name, found.name.as_ref());
            assert!(found.epoch <= session.epoch);
            let durable = session.stored.iter().filter(|(_, (at, _))| *at < flushed).count();
            let left = found.last_sequence as usize;
            assert!(durable <= left && left <= session.stored.len(), "{durable} {left}");
            session.stored.truncate(left);
            (session.epoch, session.used) = (found.epoch, found.used);
            self.open.insert(name, session);
        }
        let next = transitions(&rig.everything()).find_map(|transition| match transition {
            Ok(Transition::NextSessionId { next }) => Some(next.get()),
            _ => None,
        });
        self.ids = next.unwrap() - 1;
    }

    /// Checks what a send came to, and remembers what it stored.
    fn sent(
        &mut self,
        name: &str,
        mark: &SessionMark,
        messages: u16,
        got: Result<Place, Verdict>,
        now: Timestamp,
    ) {
        let fault = |fault| Err(Some(fault));
        let known = self.open.get_mut(name);
        let expected: Result<Option<Place>, Option<SessionFault>> = match &known {
            None => fault(SessionFault::Unknown),
            Some(known) => {
                let (expected, found) = (known.stored.len() as u64 + 1, mark.sequence);
                let oldest = expected.saturating_sub(64).max(1);
                let current = known.epoch;
                if mark.epoch < current {
                    fault(SessionFault::Fenced { current })
                } else if mark.epoch > current {
                    fault(SessionFault::Ahead { current })
                } else if found == 0 {
                    fault(SessionFault::NoSequence)
                } else if found > expected {
                    fault(SessionFault::Gap { expected, found })
                } else if found == expected {
                    Ok(None)
                } else if found < oldest {
                    fault(SessionFault::TooOld { oldest, found })
                } else {
                    let (stored, place) = known.stored[found as usize - 1];
                    if stored == messages {
                        Ok(Some(place))
                    } else {
                        fault(SessionFault::Reused {
                            sequence: found,
                            stored: stored.into(),
                            found: messages.into(),
                        })
                    }
                }
            }
        };
        match (expected, got) {
            (Ok(None), Ok(place)) => {
                let known = known.unwrap();
                known.stored.push((messages, place));
                known.used = now;
            }
            (Ok(Some(place)), Err(Verdict::Stored(batch))) => {
                assert_eq!((batch.offset, batch.queue_offset), place, "the first place");
            }
            (Err(Some(expected)), Err(Verdict::Refused { fault, .. })) => {
                assert_eq!(fault, expected);
            }
            (expected, got) => panic!("{mark:?}: expected {expected:?}, got {got:?}"),
        }
    }

    fn mark(&self, name: &str, epochs_back: u64, ahead: i64) -> SessionMark {
        let Some(known) = self.open.get(name) else {
            // Never given, or given and closed.
            let session = SessionId::new(self.ids + u64::from(ahead > 0) * 100);
            let is_of_another = self.open.values().any(|known| known.id == session);
            let session = if is_of_another { SessionId::new(1_000) } else { session };
            return SessionMark { session, epoch: 1, sequence: 1 };
        };
        let next = known.stored.len() as i64 + 1;
        SessionMark {
            session: known.id,
            // Further back than all there were: one ahead.
            epoch: known.epoch.checked_sub(epochs_back).unwrap_or(known.epoch + 1),
            sequence: (next + ahead).max(0) as u64,
        }
    }
}

fn run(ops: &[Op]) {
    let mut rig = Rig::new();
    let mut model = Model::default();
    for op in ops {
        match op.clone() {
            Op::Open(name) => {
                let (session, closed) = rig.open(NAMES[name]);
                model.opened(NAMES[name], &session, closed, &rig.store);
            }
            Op::Close(name) => {
                let expected = if model.close(NAMES[name]) {
                    Closing::Done
                } else {
                    Closing::Refused(SessionFault::Unknown)
                };
                assert_eq!(rig.close(NAMES[name]), expected);
            }
            Op::Send { name, epochs_back, ahead, messages, sync } => {
                let mark = model.mark(NAMES[name], epochs_back, ahead);
                let got = rig.send(&mark, messages, if sync { "sync" } else { "async" });
                model.sent(NAMES[name], &mark, messages, got, rig.store.now());
            }
            Op::Burst { name, count } => {
                for _ in 0..count {
                    let mark = model.mark(NAMES[name], 0, 0);
                    let got = rig.send(&mark, 1, "async");
                    model.sent(NAMES[name], &mark, 1, got, rig.store.now());
                }
            }
            Op::Days(days) => rig.clock.advance(DAY * days),
            Op::Settle => rig.workers.settle(),
            Op::Kill { bare } => {
                let before = rig.everything();
                rig = rig.killed(bare);
                assert!(rig.everything() == before, "replay leads to the state that was");
            }
            Op::Stop => {
                let before = rig.everything();
                rig = rig.stopped();
                assert!(rig.everything() == before, "the snapshot is the state that was");
            }
            Op::Cut { seed } => {
                let flushed = rig.store.watermarks().flushed;
                rig = rig.cut(seed);
                model.cut(&rig, flushed);
            }
        }
        let named: Vec<_> = rig.state.sessions.list("", 100).0;
        let known = model.open.iter().map(|(name, known)| SessionState {
            name: (*name).into(),
            id: known.id,
            epoch: known.epoch,
            last_sequence: known.stored.len() as u64,
            used: known.used,
        });
        assert_eq!(named, known.collect::<Vec<_>>());
        assert_eq!(rig.state.sessions.count(), model.open.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn sessions_do_what_a_plain_model_does_through_kills_and_stops(
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        run(&ops);
    }
}

fn mark(session: u64, epoch: u64, sequence: u64) -> SessionMark {
    SessionMark { session: SessionId::new(session), epoch, sequence }
}

fn opened(id: u64, name: &str, epoch: u64) -> Transition {
    let (id, name) = (SessionId::new(id), name.to_owned());
    Transition::SessionOpened { id, name, epoch, at: Timestamp::new(5) }
}

fn closed(id: u64) -> Transition {
    Transition::SessionClosed { id: SessionId::new(id) }
}

fn at(end: u64) -> PhysicalOffset {
    PhysicalOffset::new(end)
}

/// A batch whose record ends there.
fn stored(end: u64) -> SessionBatch {
    SessionBatch {
        topic: TopicId::new(1),
        queue: QueueId::ZERO,
        messages: 1,
        queue_offset: QueueOffset::new(end),
        offset: at(end - 100),
        end: at(end),
        epoch: Epoch::new(1),
        store_time: Timestamp::new(end),
    }
}

/// What replay meets.
#[derive(Clone, Debug)]
enum Met {
    Changed(Transition),
    Stored(SessionMark),
}

fn replay(state: &State, topics: &Topics, log: &[Met]) {
    for (met, end) in log.iter().zip(1..) {
        match met {
            Met::Changed(transition) => {
                let mut bytes = Vec::new();
                transition.encode_into(&mut bytes);
                state.apply(topics, &bytes, at(end * 100)).unwrap();
            }
            Met::Stored(mark) => state.stored(*mark, &stored(end * 100)),
        }
    }
}

fn replayed(log: &[Met]) -> (State, Topics) {
    let (state, topics) = (State::new(0), Topics::default());
    replay(&state, &topics, log);
    (state, topics)
}

fn some_log() -> Vec<Met> {
    vec![
        Met::Changed(opened(1, "a", 1)),
        Met::Stored(mark(1, 1, 1)),
        Met::Changed(opened(2, "b", 1)),
        Met::Stored(mark(1, 1, 2)),
        Met::Stored(mark(2, 1, 1)),
        Met::Changed(opened(1, "a", 2)),
        Met::Changed(closed(2)),
        Met::Stored(mark(1, 2, 3)),
        Met::Changed(opened(3, "b", 1)),
        Met::Stored(mark(3, 1, 1)),
    ]
}

#[test]
fn replay_over_any_snapshot_of_the_past_ends_in_the_same_state() {
    let log = some_log();
    let (whole, topics) = replayed(&log);
    let expected = whole.snapshot(&topics);
    for len in 0..=log.len() {
        let (past, topics) = replayed(&log[..len]);
        let snapshot = past.snapshot(&topics);
        let (restored, topics) = (State::new(0), Topics::default());
        restored.restore(&topics, &snapshot.state).unwrap();
        assert_eq!(restored.snapshot(&topics), snapshot, "{len} records");
        replay(&restored, &topics, &log);
        assert_eq!(restored.snapshot(&topics), expected, "{len} records");
    }
}

#[test]
fn a_snapshot_whose_sessions_are_as_of_later_than_its_table_is_replayed_to_the_same_state() {
    // The table after two records, its sessions later: as if they had been used while the snapshot was made.
    let log = some_log();
    let (whole, topics) = replayed(&log);
    let expected = whole.snapshot(&topics);
    let (early, topics) = replayed(&log[..3]);
    let table: Vec<_> = transitions(&early.snapshot(&topics).state).map(Result::unwrap).collect();
    let (late, topics) = replayed(&log[..6]);
    let sessions = late.snapshot(&topics).state;
    let sessions: Vec<_> = transitions(&sessions).map(Result::unwrap).collect();
    let of_table = |t: &&Transition| matches!(t, Transition::NextSessionId { .. });
    let mut mixed = Vec::new();
    let mut as_of = PhysicalOffset::ZERO;
    for transition in &sessions {
        if let Transition::AsOf { applied } = transition {
            as_of = *applied;
        } else if matches!(transition, Transition::SessionKept { .. }) {
            Transition::AsOf { applied: as_of }.encode_into(&mut mixed);
            transition.encode_into(&mut mixed);
        }
    }
    Transition::AsOf { applied: at(300) }.encode_into(&mut mixed);
    table.iter().find(of_table).unwrap().encode_into(&mut mixed);

    let (restored, topics) = (State::new(0), Topics::default());
    restored.restore(&topics, &mixed).unwrap();
    replay(&restored, &topics, &log);
    assert_eq!(restored.snapshot(&topics), expected);
}

#[test]
fn a_session_that_was_closed_before_the_snapshot_does_not_come_back() {
    let log = [
        Met::Changed(opened(1, "a", 1)),
        Met::Stored(mark(1, 1, 1)),
        Met::Changed(opened(1, "a", 2)),
        Met::Changed(closed(1)),
    ];
    let (state, topics) = replayed(&log);
    let snapshot = state.snapshot(&topics);
    let (restored, topics) = (State::new(0), Topics::default());
    restored.restore(&topics, &snapshot.state).unwrap();
    replay(&restored, &topics, &log[2..]);
    assert_eq!(restored.sessions.count(), 0);
    assert_eq!(restored.snapshot(&topics), snapshot);
}

#[test]
fn batches_of_unknown_sessions_and_of_older_epochs_change_nothing() {
    let log = [Met::Changed(opened(1, "a", 3)), Met::Stored(mark(1, 3, 1))];
    let (state, topics) = replayed(&log);
    let before = state.snapshot(&topics);
    state.stored(mark(1, 2, 2), &stored(900));
    state.stored(mark(1, 3, 1), &stored(1_000));
    assert_eq!(state.snapshot(&topics), before);
    state.stored(mark(9, 1, 1), &stored(1_100));
    assert_eq!(state.sessions.count(), 1);
}

/// Behind damage the opening of a session may be missing while its batches are there: were its id given again, its
/// producer's batches would be taken for those of the new one.
#[test]
fn the_id_of_a_session_whose_opening_is_damaged_is_not_given_again() {
    let mut rig = Rig::new();
    rig.state.stored(mark(41, 1, 1), &stored(900));
    assert_eq!(rig.open("a").0.id, SessionId::new(42));
}

#[test]
fn behind_a_damaged_batch_the_ones_before_are_too_old() {
    let log = [
        Met::Changed(opened(1, "a", 1)),
        Met::Stored(mark(1, 1, 1)),
        Met::Stored(mark(1, 1, 3)),
        Met::Stored(mark(1, 1, 4)),
    ];
    let (state, _) = replayed(&log);
    let verdict = |sequence| state.sessions.verdict(&mark(1, 1, sequence), 1);
    let too_old = |found| {
        let fault = SessionFault::TooOld { oldest: 3, found };
        Some(Verdict::Refused { fault, until: PhysicalOffset::ZERO })
    };
    assert_eq!(verdict(1), too_old(1));
    assert_eq!(verdict(2), too_old(2));
    assert_eq!(verdict(3), Some(Verdict::Stored(stored(300))));
    assert_eq!(verdict(4), Some(Verdict::Stored(stored(400))));
    assert_eq!(verdict(5), None);
}

#[test]
fn a_window_holds_64_batches_and_no_memory_beyond() {
    let mut unit = Unit::new();
    for sequence in 1..1_000 {
        unit.stored(sequence, &stored(sequence * 100));
        assert!(unit.window.len() <= SESSION_WINDOW);
        assert!(unit.window.capacity() <= SESSION_WINDOW, "{}", unit.window.capacity());
    }
    assert_eq!(size_of::<SessionBatch>(), 56);
}

#[test]
fn a_name_is_1_to_255_bytes_without_control_characters() {
    assert_eq!(check_name("Größe 7/b"), Ok(()));
    assert_eq!(check_name(&"x".repeat(255)), Ok(()));
    let too_long = SessionFault::NameTooLong { len: 256, limit: 255 };
    assert_eq!(check_name(&"x".repeat(256)), Err(too_long));
    assert_eq!(check_name(""), Err(SessionFault::NameEmpty));
    assert_eq!(check_name("a\nb"), Err(SessionFault::NameCharacter { found: '\n' }));
}

#[test]
fn a_full_table_refuses_another_name_until_sessions_are_idle_and_takes_its_own_names() {
    let mut rig = Rig::new();
    let at = rig.store.now();
    for id in 1..=MAX_SESSIONS as u64 {
        let name = format!("{id:05}");
        let opened = Transition::SessionOpened { id: SessionId::new(id), name, epoch: 1, at };
        rig.state.sessions.replay(opened, PhysicalOffset::new(1));
    }
    assert!(matches!(rig.state.sessions.open(&rig.store, "new"), Ok(Opening::Full)));
    assert_eq!(rig.open("00007").0.epoch, 2);

    rig.clock.advance(DAY * 7 - Duration::from_millis(1));
    assert_eq!(rig.open("00007").0.epoch, 3);
    rig.clock.advance(Duration::from_millis(1));
    let (session, closed) = rig.open("new");
    assert_eq!(session.id, SessionId::new(MAX_SESSIONS as u64 + 1));
    assert_eq!((closed, rig.state.sessions.count()), (64, MAX_SESSIONS - 63));
    // Every opening goes on with its search where the last one ended, and closes a bounded number.
    for round in 0..2_000 {
        assert!(rig.open("new").1 <= 64, "{round}");
    }
    let left: Vec<_> = rig.state.sessions.list("", 10).0;
    let names: Vec<_> = left.iter().map(|session| session.name.as_ref()).collect();
    assert_eq!(names, ["00007", "new"], "what is not idle stays");
}

#[test]
fn a_session_is_closed_by_its_holder_only_while_he_holds_it() {
    let mut rig = Rig::new();
    let first = rig.open("a").0;
    let second = rig.open("a").0;
    assert_eq!((first.id, second.epoch), (second.id, 2));
    let close = |id: SessionId, epoch| {
        rig.state.sessions.close(&rig.store, "a", Some((id, epoch))).unwrap().0
    };
    assert_eq!(close(first.id, 1), Closing::Refused(SessionFault::Fenced { current: 2 }));
    assert_eq!(close(first.id, 3), Closing::Refused(SessionFault::Ahead { current: 2 }));
    assert_eq!(close(SessionId::new(9), 2), Closing::Refused(SessionFault::Unknown));
    assert_eq!(close(first.id, 2), Closing::Done);
    assert_eq!(close(first.id, 2), Closing::Refused(SessionFault::Unknown));
    let anew = rig.open("a").0;
    assert_eq!((anew.epoch, anew.last_sequence), (1, 0));
    assert!(anew.id > first.id);
    let refused = rig.send(&mark(first.id.get(), 2, 1), 1, "sync");
    assert_eq!(refused, Err(UNKNOWN));
}

#[test]
fn what_a_refusal_tells_waits_for_the_batches_of_sync_topics() {
    let mut rig = Rig::new();
    rig.open("a");
    rig.send(&mark(1, 1, 1), 1, "async").unwrap();
    let gap = |rig: &mut Rig| match rig.send(&mark(1, 1, 9), 1, "sync") {
        Err(Verdict::Refused { fault: SessionFault::Gap { expected, .. }, until }) => {
            (expected, until)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(gap(&mut rig), (2, PhysicalOffset::ZERO));
    let placed = rig.send(&mark(1, 1, 2), 1, "sync").unwrap();
    let (expected, until) = gap(&mut rig);
    assert_eq!(expected, 3);
    assert!(until > placed.0);
}
