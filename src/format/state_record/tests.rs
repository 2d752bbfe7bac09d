//! Transitions: their bytes, what is refused, and what is skipped.

use proptest::prelude::*;

use super::*;
use crate::format::testing::*;
use crate::message::OtherFilters;
use crate::message::{Access, FlushMode, InitialPosition, LeaseId, Retention, TopicType};

fn created(flush: FlushMode, topic_type: TopicType) -> Transition {
    let name = "orders".to_owned();
    let settings = TopicSettings::open(4, flush, topic_type);
    Transition::TopicCreated { id: TopicId::new(7), name, settings }
}

fn samples() -> Vec<Transition> {
    vec![
        created(FlushMode::Sync, TopicType::Mixed),
        Transition::TopicDeleted { id: TopicId::new(7) },
        Transition::NextTopicId { next: TopicId::new(8) },
    ]
}

fn run_of(list: &[Transition]) -> Vec<u8> {
    let mut out = Vec::new();
    for transition in list {
        transition.encode_into(&mut out);
    }
    out
}

fn read(run: &[u8]) -> Result<Vec<Transition>, DecodeError> {
    transitions(run).collect()
}

/// One transition of any kind and fields.
fn raw(kind: u16, fields: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, value) in fields {
        put_field(&mut out, *tag, value);
    }
    let len = u32::try_from(out.len()).unwrap().to_le_bytes();
    [&kind.to_le_bytes()[..], &[0, 0], &len, &out].concat()
}

#[test]
fn golden_bytes() {
    assert_eq!(
        hex(&run_of(&samples())),
        [
            "01000000280000000100080007000000",
            "00000000020006006f72646572730300",
            "04000400000004000100010500010005",
            "020000000c0000000100080007000000",
            "00000000030000000c00000001000800",
            "0800000000000000"
        ]
    );
}

#[test]
fn transitions_survive_a_round_trip() {
    use TopicType::{Delay, Fifo, Mixed, Normal, Transaction};
    let mut list = samples();
    for topic_type in [Normal, Fifo, Delay, Transaction, Mixed] {
        list.push(created(FlushMode::Async, topic_type));
    }
    assert_eq!(read(&run_of(&list)), Ok(list));
    assert_eq!(read(b""), Ok(vec![]));
}

#[test]
fn every_truncation_is_detected_or_ends_between_two_transitions() {
    let whole = run_of(&samples());
    let ends = [1, 2].map(|count| run_of(&samples()[..count]).len());
    for len in 1..whole.len() {
        assert_eq!(read(&whole[..len]).is_ok(), ends.contains(&len), "cut to {len} bytes");
    }
}

#[test]
fn unknown_kind_is_refused_after_what_stands_before_it() {
    let run = [run_of(&samples()), raw(99, &[]), run_of(&samples())].concat();
    let read: Vec<_> = transitions(&run).skip(3).collect();
    assert_eq!(read, [Err(DecodeError::UnknownTransition { kind: 99 })]);
}

#[test]
fn unknown_field_is_skipped_unless_it_must_be_understood() {
    let id = 7_u64.to_le_bytes();
    let deleted = Transition::TopicDeleted { id: TopicId::new(7) };
    assert_eq!(read(&raw(2, &[(0x7fff, b"x"), (1, &id)])), Ok(vec![deleted]));
    assert_eq!(
        read(&raw(2, &[(1, &id), (0x8001, b"x")])),
        Err(DecodeError::UnknownRequired { tag: 0x8001 })
    );
}

#[test]
fn field_without_meaning_is_named() {
    let id = 7_u64.to_le_bytes();
    assert_eq!(read(&raw(2, &[])), Err(DecodeError::MissingField { tag: 1 }));
    assert_eq!(read(&raw(2, &[(1, b"x")])), Err(DecodeError::Field { tag: 1, len: 1 }));
    assert_eq!(read(&raw(3, &[(1, &id), (1, &id)])), Err(DecodeError::RepeatedField { tag: 1 }));
    let with = |name: &[u8], flush: u8, topic_type: u8| {
        let queues = 4_u32.to_le_bytes();
        read(&raw(1, &[(1, &id), (2, name), (3, &queues), (4, &[flush]), (5, &[topic_type])]))
    };
    assert_eq!(with(b"orders", 2, 2), Ok(vec![created(FlushMode::Async, TopicType::Fifo)]));
    assert_eq!(with(b"\xff", 1, 1), Err(DecodeError::Field { tag: 2, len: 1 }));
    assert_eq!(with(b"a", 0, 1), Err(DecodeError::Field { tag: 4, len: 1 }));
    assert_eq!(with(b"a", 1, 6), Err(DecodeError::Field { tag: 5, len: 1 }));
}

#[test]
fn reserved_bytes_must_be_zero() {
    let mut run = run_of(&samples());
    run[ZERO_AT] = 1;
    assert_eq!(read(&run), Err(DecodeError::Reserved { at: 2 }));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, kind in 0_u16..28) {
        let _ = read(&bytes);
        let whole: Vec<_> = (1..10).map(|tag| (tag, &bytes[..bytes.len().min(100)])).collect();
        let _ = read(&raw(kind, &whole));
        let number = 7_u64.to_le_bytes();
        let some: Vec<_> = (1..4).map(|tag| (tag, &number[..])).chain([(4, &bytes[..])]).collect();
        let _ = read(&raw(kind, &some));
        let _ = Transition::decode(kind, &bytes);
    }
}

/// One of every kind, with all of its fields.
fn every_kind() -> Vec<Transition> {
    let at = PhysicalOffset::new;
    let settings = TopicSettings {
        queues: 8,
        flush: FlushMode::Async,
        topic_type: TopicType::Fifo,
        access: Access { read: true, write: false },
        retention: Retention { time_ms: Some(60_000), bytes: Some(1 << 30) },
    };
    let group = GroupSettings {
        enabled: false,
        ordered: true,
        other_filters: OtherFilters::Warn,
        max_attempts: None,
        retry_delays_ms: vec![1_000, 5_000],
        retry_jitter: 0,
        initial_position: InitialPosition::Time(Timestamp::new(9)),
    };
    let rows = vec![(QueueId::new(0), QueueOffset::new(5)), (QueueId::new(3), QueueOffset::new(9))];
    let batch = SessionBatch {
        topic: TopicId::new(7),
        queue: QueueId::new(1),
        messages: 2,
        queue_offset: QueueOffset::new(3),
        offset: at(4096),
        end: at(4400),
        epoch: Epoch::new(5),
        store_time: Timestamp::new(6),
    };
    let ranges = vec![at(0)..at(4096), at(8192)..at(12288)];
    let (id, name, session) = (GroupId::new(2), "billing".to_owned(), SessionId::new(3));
    vec![
        Transition::TopicUpdated { id: TopicId::new(7), settings },
        Transition::TopicExpired {
            id: TopicId::new(7),
            below: at(4096),
            before: Timestamp::new(77),
            queues: rows.clone(),
            purged: at(0),
        },
        Transition::GroupCreated { id, name: name.clone(), settings: group.clone() },
        Transition::GroupUpdated { id, settings: GroupSettings { enabled: true, ..group } },
        Transition::GroupDeleted { id },
        Transition::NextGroupId { next: GroupId::new(3) },
        Transition::OffsetsCommitted {
            group: id,
            topic: TopicId::new(7),
            bound: 4,
            offsets: rows,
            note: None,
            revoked: None,
        },
        Transition::SessionOpened {
            id: session,
            name: name.clone(),
            epoch: 2,
            at: Timestamp::new(8),
        },
        Transition::SessionKept {
            id: session,
            name,
            epoch: 2,
            at: Timestamp::new(8),
            last_sequence: 9,
            batches: vec![batch],
        },
        Transition::SessionClosed { id: session },
        Transition::NextSessionId { next: SessionId::new(4) },
        Transition::AsOf { applied: at(4400) },
        Transition::SegmentsDeleted { ranges: ranges.clone() },
        Transition::RangesLost { ranges },
        Transition::ImageBegun,
        Transition::ImagePart { begin: at(4096), number: 1, bytes: b"part".to_vec() },
        Transition::ImageEnded { begin: at(4096), parts: 2, len: 100 },
        Transition::QueuesFound { topic: TopicId::new(7), queues: vec![position(3)] },
    ]
}

fn note(cause: OffsetCause) -> Arc<OffsetNote> {
    Arc::new(OffsetNote {
        at: Timestamp::new(77),
        cause,
        address: Some("10.0.0.1:4000".parse().unwrap()),
        by: Some("me@here".into()),
    })
}

fn moved(queue: u32, old: Option<u64>, new: u64) -> OffsetMove {
    let (queue, old) = (QueueId::new(queue), old.map(QueueOffset::new));
    OffsetMove { queue, old, new: QueueOffset::new(new) }
}

/// A commit with a note, and the history of one change.
fn remembered() -> Vec<Transition> {
    let (group, topic) = (GroupId::new(2), TopicId::new(7));
    let note = note(OffsetCause::Reset);
    vec![
        Transition::OffsetsCommitted {
            group,
            topic,
            bound: 4,
            offsets: vec![(QueueId::new(3), QueueOffset::new(9))],
            note: Some(Arc::clone(&note)),
            revoked: None,
        },
        Transition::OffsetHistory {
            group,
            topic,
            position: PhysicalOffset::new(4400),
            note,
            moves: vec![moved(1, Some(5), 9), moved(2, None, 6)],
        },
    ]
}

fn position(queue: u32) -> FoundQueue {
    FoundQueue {
        queue: QueueId::new(queue),
        next: QueueOffset::new(9),
        first_segment: PhysicalOffset::new(4096),
        last_segment: PhysicalOffset::new(8192),
    }
}

#[test]
fn golden_bytes_of_later_kinds() {
    let mut all = run_of(&every_kind());
    assert_eq!(hex(&all), GOLDEN_KINDS);
    // The settings of a topic that says nothing special are as they were before there were more.
    all.clear();
    created(FlushMode::Sync, TopicType::Mixed).encode_into(&mut all);
    assert_eq!(all.len(), 48);
    // So it is with what is gone and was not purged.
    all.clear();
    let (id, below, before) = (TopicId::new(7), PhysicalOffset::new(4096), Timestamp::ZERO);
    Transition::TopicExpired { id, below, before, queues: vec![], purged: below }
        .encode_into(&mut all);
    assert_eq!(
        hex(&all),
        [
            "05000000240000000100080007000000",
            "00000000020008000010000000000000",
            "050008000010000000000000",
        ]
    );
}

#[test]
fn golden_bytes_of_what_is_remembered_of_offsets() {
    assert_eq!(hex(&run_of(&remembered())), GOLDEN_REMEMBERED);
}

/// What consumers do, and what a snapshot keeps of it.
fn of_consumers() -> Vec<Transition> {
    let (group, topic, epoch) = (GroupId::new(2), TopicId::new(7), Epoch::new(5));
    let (queue, due) = (QueueId::new(3), Timestamp::new(77));
    let lease = LeaseId { epoch, number: 4400 };
    let run = Run { queue, first: QueueOffset::new(9), count: 2 };
    let last = LastLease { queue, offset: QueueOffset::new(9), lease };
    vec![
        Transition::LeasesGiven {
            group,
            topic,
            epoch,
            at: Timestamp::new(70),
            due,
            attempt: Some(8),
            client: 12,
            holder: "me".to_owned(),
            cursors: vec![(queue, QueueOffset::new(11))],
            runs: vec![GivenRun { run, delivery: 1, group_hash: 6 }],
        },
        Transition::MessagesFinished { group, topic, epoch: None, runs: vec![run] },
        Transition::MessagesFinished { group, topic, epoch: Some(epoch), runs: vec![run] },
        Transition::LeasesChanged {
            group,
            topic,
            epoch,
            at: Timestamp::new(71),
            leases: vec![ChangedLease {
                queue,
                offset: QueueOffset::new(9),
                state: OpenState::Waiting,
                same_delivery: true,
                due,
            }],
        },
        Transition::LeasesKept {
            group,
            topic,
            cursors: vec![(queue, QueueOffset::new(11))],
            open: vec![OpenMessage {
                queue,
                offset: QueueOffset::new(9),
                state: OpenState::Leased,
                same_delivery: false,
                renewed: true,
                due,
                lease,
                deliveries: 2,
                group_hash: 6,
                client: 12,
                first_delivered: Timestamp::new(6),
                last_delivered: Timestamp::new(7),
                holder: 14,
            }],
            ended: vec![last],
            revoked: vec![last],
            tried: vec![Tried {
                queue,
                first: QueueOffset::new(9),
                last: QueueOffset::new(10),
                lease,
                attempt: 8,
                delivered: Timestamp::new(7),
            }],
            holders: vec!["me".to_owned(), "you".to_owned()],
        },
        Transition::ClientsLost { group, topic, due, clients: vec![12, 13] },
        Transition::LeaseClock { at: Timestamp::new(71) },
        Transition::GroupUpdated {
            id: group,
            settings: GroupSettings {
                other_filters: OtherFilters::Roll,
                retry_jitter: 20,
                ..GroupSettings::default()
            },
        },
        Transition::OffsetsCommitted {
            group,
            topic,
            bound: 4,
            offsets: vec![(queue, QueueOffset::new(9))],
            note: None,
            revoked: Some(epoch),
        },
    ]
}

#[test]
fn golden_bytes_of_what_consumers_do() {
    let run = run_of(&of_consumers());
    assert_eq!(read(&run), Ok(of_consumers()));
    assert_eq!(hex(&run), GOLDEN_CONSUMERS);
}

#[test]
fn rows_of_consumers_that_mean_nothing_are_named() {
    let id = 7_u64.to_le_bytes();
    let error = |tag, len| Err(DecodeError::Field { tag, len });
    let finished = |count: u32, first: u64| {
        let row = [&[0; 4][..], &count.to_le_bytes(), &first.to_le_bytes()].concat();
        read(&raw(24, &[(1, &id), (2, &id), (3, &row)])).map(|_| ())
    };
    assert_eq!(finished(1, 5), Ok(()));
    assert_eq!(finished(0, 5), error(3, 16), "no message");
    assert_eq!(finished(2, u64::MAX - 1), error(3, 16), "behind the last offset");
    let changed = |word: u32| {
        let row = [&[0; 4][..], &word.to_le_bytes(), &[0; 16]].concat();
        read(&raw(25, &[(1, &id), (2, &id), (3, &id), (4, &row), (5, &id)])).map(|_| ())
    };
    assert_eq!([changed(1), changed(2 + 256)], [Ok(()), Ok(())]);
    for word in [0, 3, 512, 1 << 16] {
        assert_eq!(changed(word), error(4, 24), "{word}");
    }
    let tried = |zero: u32, first: u64, last: u64| {
        let range = [first.to_le_bytes(), last.to_le_bytes()].concat();
        let row = [&[0; 4][..], &zero.to_le_bytes(), &range, &[0; 32]].concat();
        read(&raw(26, &[(1, &id), (2, &id), (7, &row)])).map(|_| ())
    };
    assert_eq!(tried(0, 5, 5), Ok(()));
    assert_eq!([tried(1, 5, 5), tried(0, 6, 5)], [error(7, 56), error(7, 56)]);
}

#[test]
fn very_many_leases_become_several_transitions_that_mean_the_same() {
    let (group, topic, epoch) = (GroupId::new(2), TopicId::new(7), Epoch::new(5));
    let runs: Vec<_> = (0..3_000)
        .map(|n| Run { queue: QueueId::new(n), first: QueueOffset::new(9), count: 1 })
        .collect();
    let given: Vec<_> =
        runs.iter().map(|run| GivenRun { run: *run, delivery: 1, group_hash: 0 }).collect();
    // Where the group was in a queue, and where it is.
    let pair = |n| [7, 9].map(|offset| (QueueId::new(n), QueueOffset::new(offset)));
    let cursors: Vec<_> = (0..2_500).flat_map(pair).collect();
    let transition = Transition::LeasesGiven {
        group,
        topic,
        epoch,
        at: Timestamp::new(1),
        due: Timestamp::new(1),
        attempt: None,
        client: 0,
        holder: String::new(),
        cursors: cursors.clone(),
        runs: given.clone(),
    };
    let (mut found, mut found_cursors) = (Vec::new(), Vec::new());
    for transition in read(&run_of(&[transition])).unwrap() {
        let Transition::LeasesGiven { runs, cursors: of_part, .. } = transition else { panic!() };
        assert!(of_part.chunks(2).all(|pair| pair[0].0 == pair[1].0), "none is cut");
        found.extend(runs);
        found_cursors.extend(of_part);
        assert!(found.is_empty() || found_cursors.len() == cursors.len(), "cursors come first");
    }
    assert_eq!((found, found_cursors), (given, cursors));
    let mut found = Vec::new();
    let finished = Transition::MessagesFinished { group, topic, epoch: None, runs: runs.clone() };
    for transition in read(&run_of(&[finished])).unwrap() {
        let Transition::MessagesFinished { runs, .. } = transition else { panic!() };
        found.extend(runs);
    }
    assert_eq!(found, runs);
}

#[test]
fn half_a_note_and_one_without_meaning_are_named() {
    let (id, queues) = (7_u64.to_le_bytes(), 4_u32.to_le_bytes());
    let committed = |note: &[(u16, &[u8])]| {
        let fields = [&[(1, &id[..]), (2, &id), (3, &queues), (4, b"")], note].concat();
        read(&raw(10, &fields)).map(|_| ())
    };
    assert_eq!(committed(&[]), Ok(()));
    assert_eq!(committed(&[(5, &id), (6, &[1])]), Ok(()));
    assert_eq!(committed(&[(5, &id)]), Err(DecodeError::MissingField { tag: 6 }));
    assert_eq!(committed(&[(8, b"me")]), Err(DecodeError::MissingField { tag: 5 }));
    let error = |tag, len| Err(DecodeError::Field { tag, len });
    assert_eq!(committed(&[(5, &id), (6, &[3])]), error(6, 1));
    assert_eq!(committed(&[(5, &id), (6, &[1]), (7, b"nowhere")]), error(7, 7));
    assert_eq!(committed(&[(5, &id), (6, &[1]), (8, b"\xff")]), error(8, 1));
}

#[test]
fn every_kind_survives_a_round_trip() {
    let mut list = every_kind();
    list.extend(remembered());
    let alone = OffsetNote { address: None, by: None, ..(*note(OffsetCause::Commit)).clone() };
    list.push(Transition::OffsetHistory {
        group: GroupId::new(2),
        topic: TopicId::new(7),
        position: PhysicalOffset::new(4400),
        note: Arc::new(alone),
        moves: vec![],
    });
    let latest = GroupSettings { initial_position: InitialPosition::Latest, ..Default::default() };
    list.push(Transition::GroupUpdated { id: GroupId::new(2), settings: latest });
    list.push(Transition::TopicExpired {
        id: TopicId::new(7),
        below: PhysicalOffset::ZERO,
        before: Timestamp::ZERO,
        queues: vec![],
        purged: PhysicalOffset::new(1),
    });
    assert_eq!(read(&run_of(&list)), Ok(list));
}

#[test]
fn very_many_rows_become_several_transitions_that_mean_the_same() {
    let rows: Vec<_> = (0..65_536).map(|n| (QueueId::new(n), QueueOffset::new(7))).collect();
    let (group, topic) = (GroupId::new(1), TopicId::new(2));
    let noted = note(OffsetCause::Reset);
    let run = run_of(&[Transition::OffsetsCommitted {
        group,
        topic,
        bound: 9,
        offsets: rows.clone(),
        note: Some(Arc::clone(&noted)),
        revoked: None,
    }]);
    let mut found = Vec::new();
    for transition in read(&run).unwrap() {
        let Transition::OffsetsCommitted { offsets, bound: 9, note, .. } = transition else {
            panic!()
        };
        assert_eq!(note.as_ref(), Some(&noted));
        found.extend(offsets);
    }
    assert_eq!(found, rows);
    let moves: Vec<_> =
        (0..65_536).map(|n| moved(n, n.is_multiple_of(2).then_some(5), 7)).collect();
    let history = Transition::OffsetHistory {
        group,
        topic,
        position: PhysicalOffset::new(4400),
        note: noted,
        moves: moves.clone(),
    };
    let mut found = Vec::new();
    for transition in read(&run_of(&[history])).unwrap() {
        let Transition::OffsetHistory { moves, .. } = transition else { panic!() };
        found.extend(moves);
    }
    assert_eq!(found, moves);
    let ranges: Vec<_> =
        (0..5_000).map(|n| PhysicalOffset::new(n * 32)..PhysicalOffset::new(n * 32 + 16)).collect();
    let run = run_of(&[Transition::SegmentsDeleted { ranges: ranges.clone() }]);
    let mut found = Vec::new();
    for transition in read(&run).unwrap() {
        let Transition::SegmentsDeleted { ranges } = transition else { panic!() };
        found.extend(ranges);
    }
    assert_eq!(found, ranges);
    let positions: Vec<_> = (0..65_536).map(position).collect();
    let topic = TopicId::new(7);
    let run = run_of(&[Transition::QueuesFound { topic, queues: positions.clone() }]);
    let mut found = Vec::new();
    for transition in read(&run).unwrap() {
        let Transition::QueuesFound { queues, .. } = transition else { panic!() };
        found.extend(queues);
    }
    assert_eq!(found, positions);
}

#[test]
fn rows_that_are_cut_short_and_ranges_without_a_byte_are_named() {
    let id = 7_u64.to_le_bytes();
    let error = |tag, len| Err(DecodeError::Field { tag, len });
    assert_eq!(read(&raw(5, &[(1, &id), (4, &[0; 13])])), error(4, 13));
    assert_eq!(read(&raw(16, &[(1, &[7; 16])])), error(1, 16));
    let bound = 1_u32.to_le_bytes();
    assert_eq!(read(&raw(10, &[(1, &id), (2, &id), (3, &bound), (4, &[0; 11])])), error(4, 11));
    assert_eq!(read(&raw(21, &[(1, &id), (2, &[0; 27])])), error(2, 27));
    let rows = vec![0; 65 * SESSION_ROW_LEN];
    let kept = [(1, &id[..]), (2, b"a"), (3, &id), (4, &id), (5, &id), (6, &rows)];
    assert_eq!(read(&raw(12, &kept)), error(6, rows.len()));
}

const GOLDEN_KINDS: [&str; 54] = [
    "040000003b0000000100080007000000",
    "00000000030004000800000004000100",
    "02050001000206000100010700080060",
    "ea000000000000080008000000004000",
    "00000005000000400000000100080007",
    "00000000000000020008000010000000",
    "000000030008004d0000000000000004",
    "00180000000000050000000000000003",
    "00000009000000000000000600000049",
    "00000001000800020000000000000002",
    "00070062696c6c696e67030001000204",
    "0004000000000005001000e803000000",
    "00000088130000000000000600010003",
    "07000800090000000000000007000000",
    "3e000000010008000200000000000000",
    "03000100030400040000000000050010",
    "00e80300000000000088130000000000",
    "00060001000307000800090000000000",
    "0000080000000c000000010008000200",
    "000000000000090000000c0000000100",
    "080003000000000000000a0000003c00",
    "00000100080002000000000000000200",
    "08000700000000000000030004000400",
    "00000400180000000000050000000000",
    "00000300000009000000000000000b00",
    "00002f00000001000800030000000000",
    "00000200070062696c6c696e67030008",
    "00020000000000000004000800080000",
    "00000000000c00000077000000010008",
    "0003000000000000000200070062696c",
    "6c696e67030008000200000000000000",
    "04000800080000000000000005000800",
    "09000000000000000600380007000000",
    "00000000010000000200000003000000",
    "00000000001000000000000030110000",
    "00000000050000000000000006000000",
    "000000000d0000000c00000001000800",
    "03000000000000000e0000000c000000",
    "0100080004000000000000000f000000",
    "0c000000010008003011000000000000",
    "10000000240000000100200000000000",
    "00000000001000000000000000200000",
    "00000000003000000000000011000000",
    "24000000010020000000000000000000",
    "00100000000000000020000000000000",
    "00300000000000001200000000000000",
    "130000001c0000000100080000100000",
    "00000000020004000100000003000400",
    "70617274140000002000000001000800",
    "00100000000000000200040002000000",
    "03000800640000000000000015000000",
    "2c000000010008000700000000000000",
    "02001c00030000000900000000000000",
    "00100000000000000020000000000000",
];

const GOLDEN_REMEMBERED: [&str; 15] = [
    "0a0000005d0000000100080002000000",
    "00000000020008000700000000000000",
    "030004000400000004000c0003000000",
    "0900000000000000050008004d000000",
    "00000000060001000207000d0031302e",
    "302e302e313a34303030080007006d65",
    "40686572651600000079000000010008",
    "00020000000000000002000800070000",
    "00000000000300080030110000000000",
    "00040014000100000005000000000000",
    "00090000000000000009000c00020000",
    "000600000000000000050008004d0000",
    "0000000000060001000207000d003130",
    "2e302e302e313a34303030080007006d",
    "654068657265",
];

const GOLDEN_CONSUMERS: [&str; 61] = [
    "17000000860000000100080002000000",
    "00000000020008000700000000000000",
    "03000800050000000000000004000800",
    "4d0000000000000005000c0003000000",
    "0b000000000000000600180003000000",
    "02000000090000000000000001000000",
    "06000000070008000800000000000000",
    "080008000c0000000000000009000800",
    "46000000000000000a0002006d651800",
    "00002c00000001000800020000000000",
    "00000200080007000000000000000300",
    "10000300000002000000090000000000",
    "00001800000038000000010008000200",
    "00000000000002000800070000000000",
    "00000300100003000000020000000900",
    "00000000000004000800050000000000",
    "0000190000004c000000010008000200",
    "00000000000002000800070000000000",
    "00000300080005000000000000000400",
    "18000300000002010000090000000000",
    "00004d00000000000000050008004700",
    "0000000000001a0000000b0100000100",
    "08000200000000000000020008000700",
    "00000000000003000c00030000000b00",
    "00000000000004005000030000000102",
    "000009000000000000004d0000000000",
    "00000500000000000000301100000000",
    "000002000000060000000c0000000000",
    "00000600000000000000070000000000",
    "00000e00000000000000050020000300",
    "00000000000009000000000000000500",
    "00000000000030110000000000000600",
    "20000300000000000000090000000000",
    "00000500000000000000301100000000",
    "00000700380003000000000000000900",
    "0000000000000a000000000000000500",
    "00000000000030110000000000000800",
    "00000000000007000000000000000800",
    "0700026d6503796f751b000000380000",
    "00010008000200000000000000020008",
    "000700000000000000030008004d0000",
    "0000000000040010000c000000000000",
    "000d000000000000001c0000000c0000",
    "00010008004700000000000000070000",
    "00ba0000000100080002000000000000",
    "00030001000904000400110000000500",
    "9000e803000000000000881300000000",
    "00001027000000000000307500000000",
    "000060ea000000000000c0d401000000",
    "000020bf02000000000080a903000000",
    "0000e093040000000000407e05000000",
    "0000a068060000000000005307000000",
    "0000603d080000000000c02709000000",
    "0000804f12000000000040771b000000",
    "000080ee36000000000000dd6d000000",
    "0000060001000108000400140000000a",
    "0000003c000000010008000200000000",
    "00000002000800070000000000000003",
    "0004000400000004000c000300000009",
    "00000000000000090008000500000000",
    "000000",
];
