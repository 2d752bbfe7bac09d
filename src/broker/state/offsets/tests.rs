//! What is left of offsets when something around them fails; and how much all state comes to at its limits.

use super::history::MAX_CHANGES;
use super::*;
use crate::broker::state::State;
use crate::broker::state::groups::GroupTable;
use crate::broker::state::sessions::MAX_SESSIONS;
use crate::broker::state::topics::TopicTable;
use crate::format::state_record::{OpenMessage, OpenState, SESSION_WINDOW, SessionBatch};
use crate::message::{Epoch, FlushMode, GroupSettings, SessionId, TopicSettings, TopicType};
use crate::store::{Applier as _, MAX_SNAPSHOT, Topics};

const KEY: (GroupId, TopicId) = (GroupId::new(1), TopicId::new(1));

fn len(transition: &Transition) -> u64 {
    let mut out = Vec::new();
    transition.encode_into(&mut out);
    out.len() as u64
}

fn topic_created(id: u64, name: String) -> Transition {
    let settings = TopicSettings::open(3, FlushMode::Async, TopicType::Mixed);
    Transition::TopicCreated { id: TopicId::new(id), name, settings }
}

fn group_created(id: u64, name: String, settings: GroupSettings) -> Transition {
    Transition::GroupCreated { id: GroupId::new(id), name, settings }
}

fn committed(group: u64, topic: u64, queues: u32, note: Option<Arc<OffsetNote>>) -> Transition {
    let offsets = (0..queues).map(|queue| (QueueId::new(queue), QueueOffset::new(7))).collect();
    let (group, topic) = (GroupId::new(group), TopicId::new(topic));
    Transition::OffsetsCommitted { group, topic, bound: 3, offsets, note, revoked: None }
}

/// The records one after the other, each of one transition.
fn replayed(records: &[Transition]) -> (State, Topics) {
    let (state, topics) = (State::new(0), Topics::default());
    for (record, end) in records.iter().zip(1..) {
        let mut payload = Vec::new();
        record.encode_into(&mut payload);
        state.apply(&topics, &payload, PhysicalOffset::new(end * 100)).unwrap();
    }
    (state, topics)
}

/// Each of them saw that the other holds the unit, and left it to the other.
#[test]
fn of_commits_that_fail_together_the_last_takes_their_unit_out() {
    let offsets = Offsets::default();
    let (first, second) = (offsets.unit(KEY.0, KEY.1), offsets.unit(KEY.0, KEY.1));
    drop(first);
    offsets.discard_empty(KEY);
    assert_eq!(offsets.topics_of(KEY.0, TopicId::ZERO, 9), (vec![KEY.1], false), "it is in use");
    drop(second);
    offsets.discard_empty(KEY);
    assert_eq!(offsets.topics_of(KEY.0, TopicId::ZERO, 9), (Vec::new(), false));
    assert_eq!(offsets.memory_bytes(), 0);
    // Nothing is taken out into which something was committed.
    let rows = vec![(QueueId::ZERO, QueueOffset::new(5))];
    offsets.replay(KEY, 1, rows, None, None, (PhysicalOffset::new(1), Source::Log));
    offsets.discard_empty(KEY);
    assert_eq!(offsets.committed(KEY.0, KEY.1).get(QueueId::ZERO), Some(QueueOffset::new(5)));
}

/// The record of the deletion cannot be read, so replay meets a second topic or group of the same name.
#[test]
fn a_name_that_is_made_again_ends_what_had_it_before() {
    let name = || "n".to_owned();
    let (state, topics) = replayed(&[
        topic_created(1, name()),
        group_created(1, name(), GroupSettings::default()),
        committed(1, 1, 2, None),
        topic_created(2, name()),
    ]);
    assert_eq!((state.topics.counts(), state.offsets.count()), ((1, 3), 0));
    assert!(topics.get(TopicId::new(1)).is_none() && topics.get(TopicId::new(2)).is_some());
    assert!(state.topics.by_id(TopicId::new(1)).is_none());

    let (state, topics) = replayed(&[
        topic_created(1, name()),
        group_created(1, name(), GroupSettings::default()),
        committed(1, 1, 2, None),
        group_created(2, name(), GroupSettings::default()),
        committed(1, 1, 1, None),
        committed(2, 1, 3, None),
    ]);
    assert_eq!((state.groups.count(), state.offsets.count()), (1, 3));
    assert!(!state.groups.has_id(GroupId::new(1)) && state.groups.has_id(GroupId::new(2)));
    // So the snapshot is that of a log without the damage.
    let (restored, known) = (State::new(0), Topics::default());
    let snapshot = state.snapshot(&topics).state;
    restored.restore(&known, &snapshot).unwrap();
    assert_eq!(restored.snapshot(&known).state, snapshot);
    assert_eq!((restored.groups.count(), restored.offsets.count()), (1, 3));
}

/// A snapshot or an image above the bound would be written and then not read.
#[test]
fn state_at_all_of_its_limits_fits_into_a_snapshot() {
    let as_of = len(&Transition::AsOf { applied: PhysicalOffset::ZERO });
    let expired = |queues: u64| {
        let queues = (0..queues).map(|_| (QueueId::ZERO, QueueOffset::ZERO)).collect();
        let (below, before, purged) =
            (PhysicalOffset::new(1), Timestamp::new(1), PhysicalOffset::new(1));
        len(&Transition::TopicExpired { id: TopicId::ZERO, below, before, queues, purged })
    };
    let topic = len(&topic_created(1, "t".repeat(255))) + expired(0);
    let topics = TopicTable::MAX_TOPICS as u64 * topic
        + TopicTable::MAX_QUEUES * (expired(1_001) - expired(1)).div_ceil(1_000);

    let retry_delays_ms = vec![12 * 60 * 60 * 1_000; 64];
    let settings = GroupSettings { retry_delays_ms, ..GroupSettings::default() };
    let group = len(&group_created(1, "g".repeat(120), settings));
    let groups = GroupTable::MAX_GROUPS as u64 * group;

    // Each of them of a group and a topic of its own.
    let offsets = Offsets::MAX_ROWS * (as_of + len(&committed(1, 1, 1, None)));
    let note = By {
        cause: OffsetCause::Reset,
        caller: Caller { address: Some("[::1]:65535".parse().unwrap()), name: &"b".repeat(128) },
    }
    .note(Timestamp::ZERO);
    let moves = vec![OffsetMove {
        queue: QueueId::ZERO,
        old: Some(QueueOffset::ZERO),
        new: QueueOffset::ZERO,
    }];
    let (group, topic, position) = (KEY.0, KEY.1, PhysicalOffset::ZERO);
    let history = len(&Transition::OffsetHistory { group, topic, position, note, moves });
    let history = MAX_CHANGES as u64 * history;

    // Each of them of a queue and a unit of its own.
    let open = OpenMessage {
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        state: OpenState::Leased,
        same_delivery: false,
        renewed: false,
        due: Timestamp::ZERO,
        lease: LeaseId::default(),
        deliveries: 1,
        group_hash: 0,
        client: 0,
        first_delivered: Timestamp::ZERO,
        last_delivered: Timestamp::ZERO,
        holder: 0,
    };
    let kept = Transition::LeasesKept {
        group,
        topic,
        cursors: vec![(QueueId::ZERO, QueueOffset::ZERO)],
        open: vec![open],
        ended: Vec::new(),
        revoked: Vec::new(),
        tried: Vec::new(),
        holders: Vec::new(),
    };
    let mut named = kept.clone();
    if let Transition::LeasesKept { holders, .. } = &mut named {
        holders.push("h".repeat(128));
    }
    // A name takes the place of an open message.
    let most = len(&kept).max(len(&named).div_ceil(2));
    // And every queue reset once.
    let leases = Offsets::MAX_OPEN * most + Offsets::MAX_ROWS * 32;

    let batch = SessionBatch {
        topic: TopicId::ZERO,
        queue: QueueId::ZERO,
        messages: 1,
        queue_offset: QueueOffset::ZERO,
        offset: PhysicalOffset::ZERO,
        end: PhysicalOffset::ZERO,
        epoch: Epoch::ZERO,
        store_time: Timestamp::ZERO,
    };
    let session = Transition::SessionKept {
        id: SessionId::new(1),
        name: "s".repeat(255),
        epoch: 1,
        at: Timestamp::ZERO,
        last_sequence: 1,
        batches: vec![batch; SESSION_WINDOW],
    };
    let sessions = MAX_SESSIONS as u64 * (as_of + len(&session));

    // Where each queue stands, and each topic in front of its queues: see `format::snapshot`.
    let positions = TopicTable::MAX_QUEUES * 20 + TopicTable::MAX_TOPICS as u64 * 12;
    // The log's own: head, deleted ranges, bases of segments.
    let store = 16 << 20;
    let all = topics + groups + offsets + leases + history + sessions + positions + store;
    assert!(all < MAX_SNAPSHOT, "{all}");
    assert!(offsets > 1 << 30, "more than what once was the bound: {offsets}");
}
