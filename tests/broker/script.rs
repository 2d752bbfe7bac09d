//! Scripts: what clients, operators, time and bad luck do to a broker, one step after the other.
//!
//! A step names topics, groups and sessions by a few names, whether they are there or not, and places by shares of
//! what is there when its turn comes. So each part of a script is a script, and a failing one can be made shorter.

use proptest::prelude::*;

use mainstem::message::FlushMode;

pub(crate) const TOPICS: [&str; 3] = ["ta", "tb", "tc"];
pub(crate) const GROUPS: [&str; 2] = ["ga", "gb"];
pub(crate) const SESSIONS: [&str; 2] = ["pa", "pb"];
pub(crate) const KEYS: [&str; 4] = ["k0", "k1", "k2", "k3"];
pub(crate) const TAGS: [&str; 3] = ["red", "green", "blue"];

pub(crate) const SECOND: u64 = 1_000;
pub(crate) const DAY: u64 = 24 * 3_600 * SECOND;

/// A place between the begin of a queue and a little beyond its end, in 65 536ths; high values are the end itself.
pub(crate) type Share = u16;

/// A broker's configuration, as far as scripts differ in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) segment_size: u64,
    pub(crate) flush: FlushMode,
    pub(crate) auto_create: bool,
}

/// What a topic is made with, or changed to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicWish {
    pub(crate) queues: u32,
    pub(crate) flush: FlushMode,
    /// 0: mixed, 1: normal, 2: FIFO.
    pub(crate) kind: u8,
    /// 38: no reads; 39: no writes; below: everything.
    pub(crate) access: u8,
    pub(crate) keep_ms: Option<u64>,
    pub(crate) keep_bytes: Option<u64>,
}

/// A batch of a producer session, relative to what the session expects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) session: usize,
    /// So many epochs below the current one; more than there were: one above.
    pub(crate) epochs_back: u64,
    pub(crate) ahead: i64,
    /// A batch that is sent again has its old number of messages, or another one.
    pub(crate) same_count: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) messages: u16,
    /// Bytes of the first body.
    pub(crate) len: usize,
    /// Picks keys, ids and tags.
    pub(crate) seed: u64,
    pub(crate) grouped: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    Any,
    Nothing,
    /// What is committed, or something else.
    Current,
    Else(Share),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) topic: usize,
    pub(crate) queue: u32,
    pub(crate) to: Share,
    pub(crate) wanted: Wanted,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Where {
    Earliest,
    Latest,
    /// The time of some message, so many ms earlier or later.
    Time(Share, i64),
    Offset(Share),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupWish {
    pub(crate) enabled: bool,
    pub(crate) attempts: u32,
    pub(crate) begin: Where,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    CreateTopic(usize, TopicWish),
    UpdateTopic {
        topic: usize,
        wish: TopicWish,
        force: bool,
    },
    DeleteTopic(usize),
    Purge {
        topic: usize,
        queue: Option<u32>,
        up_to: Option<Share>,
    },
    Send {
        topic: usize,
        queue: u32,
        batch: Batch,
        mark: Option<Mark>,
        leave: bool,
    },
    /// So many KiB of large batches.
    Flood {
        topic: usize,
        kib: u64,
    },
    /// So many small batches of a session.
    Burst {
        topic: usize,
        session: usize,
        batches: u32,
    },
    CreateGroup(usize, GroupWish),
    UpdateGroup(usize, GroupWish),
    DeleteGroup(usize),
    Commit {
        group: usize,
        rows: Vec<Row>,
        leave: bool,
    },
    Reset {
        group: usize,
        topic: usize,
        queue: Option<u32>,
        to: Where,
        dry: bool,
    },
    OpenSession(usize),
    /// By its holder, by one of an earlier epoch, by whoever.
    CloseSession {
        session: usize,
        holder: Option<u64>,
    },
    Pull {
        topic: usize,
        queue: u32,
        from: Share,
        messages: u32,
        bytes: u32,
        tag: u8,
        group: u8,
    },
    Query {
        topic: usize,
        key: usize,
        newest_first: bool,
        limit: u32,
    },
    ById {
        topic: usize,
        queue: u32,
        at: Share,
    },
    /// A look at everything.
    Look,
    /// So many steps of the storage threads.
    Work {
        steps: u32,
        seed: u64,
    },
    /// All that they have to do.
    Settle,
    /// Milliseconds.
    Wait(u64),
    Stop,
    /// `bare`: without anything that is derived from the log.
    Kill {
        bare: bool,
    },
    /// The power goes now; `again`: and once more so many operations after the next start began.
    Cut {
        seed: u64,
        again: Option<u64>,
    },
    /// The power goes at the operation after so many, in a write after so many bytes.
    PowerOff {
        operations: u64,
        bytes: usize,
        seed: u64,
    },
}

fn flush() -> impl Strategy<Value = FlushMode> {
    prop_oneof![Just(FlushMode::Sync), Just(FlushMode::Async)]
}

pub(crate) fn setup() -> impl Strategy<Value = Setup> {
    (prop_oneof![3 => Just(16_u64 << 10), 1 => Just(64 << 10)], flush(), prop::bool::weighted(0.8))
        .prop_map(|(segment_size, flush, auto_create)| Setup { segment_size, flush, auto_create })
}

fn topic_wish() -> impl Strategy<Value = TopicWish> {
    let kind = prop_oneof![12 => Just(0_u8), 1 => Just(1), 1 => Just(2)];
    let keep_ms = prop_oneof![
        4 => Just(None), 1 => Just(Some(SECOND)), 1 => Just(Some(8 * SECOND)), 1 => Just(Some(DAY)),
    ];
    let keep_bytes = prop_oneof![4 => Just(None), 1 => Just(Some(1_u64 << 20))];
    (1_u32..4, flush(), kind, 0_u8..40, keep_ms, keep_bytes).prop_map(
        |(queues, flush, kind, access, keep_ms, keep_bytes)| TopicWish {
            queues,
            flush,
            kind,
            access,
            keep_ms,
            keep_bytes,
        },
    )
}

/// 3: mostly none that is there.
fn queue() -> impl Strategy<Value = u32> {
    prop_oneof![12 => 0_u32..3, 1 => Just(3)]
}

fn batch() -> impl Strategy<Value = Batch> {
    let len = prop_oneof![6 => 0_usize..300, 3 => 300_usize..3_000, 1 => 3_000_usize..5_000];
    (1_u16..4, len, any::<u64>(), prop::bool::weighted(0.1))
        .prop_map(|(messages, len, seed, grouped)| Batch { messages, len, seed, grouped })
}

fn mark() -> impl Strategy<Value = Mark> {
    let back = prop_oneof![10 => Just(0_u64), 1 => Just(1), 1 => Just(u64::MAX)];
    let ahead = prop_oneof![8 => Just(0_i64), 4 => -4_i64..0, 1 => -80_i64..0, 1 => 1_i64..3];
    let session = prop_oneof![5 => Just(0_usize), 1 => Just(1)];
    (session, back, ahead, prop::bool::weighted(0.9)).prop_map(
        |(session, epochs_back, ahead, same_count)| Mark {
            session,
            epochs_back,
            ahead,
            same_count,
        },
    )
}

fn place() -> impl Strategy<Value = Where> {
    prop_oneof![
        Just(Where::Earliest),
        Just(Where::Latest),
        (any::<Share>(), -1_i64..2).prop_map(|(share, by)| Where::Time(share, by)),
        any::<Share>().prop_map(Where::Offset),
    ]
}

fn group_wish() -> impl Strategy<Value = GroupWish> {
    (prop::bool::weighted(0.8), 1_u32..3, place())
        .prop_map(|(enabled, attempts, begin)| GroupWish { enabled, attempts, begin })
}

fn row() -> impl Strategy<Value = Row> {
    let wanted = prop_oneof![
        4 => Just(Wanted::Any),
        1 => Just(Wanted::Nothing),
        3 => Just(Wanted::Current),
        1 => any::<Share>().prop_map(Wanted::Else),
    ];
    let topic = prop_oneof![3 => Just(0_usize), 2 => Just(1), 1 => Just(2)];
    (topic, queue(), any::<Share>(), wanted).prop_map(|(topic, queue, to, wanted)| Row {
        topic,
        queue,
        to,
        wanted,
    })
}

/// A step of a client or an operator.
fn request() -> impl Strategy<Value = Op> {
    // Not all alike, so that some live long.
    let topic = || prop_oneof![6 => Just(0_usize), 2 => Just(1), 1 => Just(2)];
    let group = || prop_oneof![5 => Just(0_usize), 1 => Just(1)];
    let session = || prop_oneof![5 => Just(0_usize), 1 => Just(1)];
    let leave = || prop::bool::weighted(0.3);
    let maybe_queue = || prop::option::of(queue());
    prop_oneof![
        4 => (prop_oneof![Just(0_usize), Just(1), Just(2)], topic_wish())
            .prop_map(|(topic, wish)| Op::CreateTopic(topic, wish)),
        4 => (topic(), topic_wish(), any::<bool>())
            .prop_map(|(topic, wish, force)| Op::UpdateTopic { topic, wish, force }),
        1 => topic().prop_map(Op::DeleteTopic),
        3 => (topic(), maybe_queue(), prop::option::of(any::<Share>()))
            .prop_map(|(topic, queue, up_to)| Op::Purge { topic, queue, up_to }),
        24 => (topic(), queue(), batch(), prop::option::weighted(0.5, mark()), leave()).prop_map(
            |(topic, queue, batch, mark, leave)| Op::Send { topic, queue, batch, mark, leave }),
        1 => (topic(), prop_oneof![3 => 1_u64..200, 1 => 1_000_u64..1_800])
            .prop_map(|(topic, kib)| Op::Flood { topic, kib }),
        1 => (topic(), session(), 1_u32..80).prop_map(|(topic, session, batches)| Op::Burst {
            topic, session, batches
        }),
        3 => (group(), group_wish()).prop_map(|(group, wish)| Op::CreateGroup(group, wish)),
        2 => (group(), group_wish()).prop_map(|(group, wish)| Op::UpdateGroup(group, wish)),
        1 => group().prop_map(Op::DeleteGroup),
        8 => (group(), prop::collection::vec(row(), 1..3), leave())
            .prop_map(|(group, rows, leave)| Op::Commit { group, rows, leave }),
        4 => (group(), topic(), maybe_queue(), place(), prop::bool::weighted(0.3))
            .prop_map(|(group, topic, queue, to, dry)| Op::Reset { group, topic, queue, to, dry }),
        4 => session().prop_map(Op::OpenSession),
        1 => (session(), prop::option::of(0_u64..2))
            .prop_map(|(session, holder)| Op::CloseSession { session, holder }),
        10 => (topic(), queue(), any::<Share>(), 1_u32..20, 1_u32..20_000, 0_u8..6, 0_u8..6)
            .prop_map(|(topic, queue, from, messages, bytes, tag, group)| Op::Pull {
                topic, queue, from, messages, bytes, tag, group
            }),
        5 => (topic(), 0..KEYS.len(), any::<bool>(), 1_u32..30)
            .prop_map(|(topic, key, newest_first, limit)| Op::Query {
                topic, key, newest_first, limit
            }),
        2 => (topic(), queue(), any::<Share>())
            .prop_map(|(topic, queue, at)| Op::ById { topic, queue, at }),
    ]
}

/// A step of the machine.
fn fate() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Look),
        12 => (1_u32..12, any::<u64>()).prop_map(|(steps, seed)| Op::Work { steps, seed }),
        2 => Just(Op::Settle),
        6 => prop_oneof![
            6 => (1_u64..3 * SECOND).prop_map(Op::Wait),
            2 => Just(Op::Wait(61 * SECOND)),
            2 => (1_u64..8).prop_map(|days| Op::Wait(days * DAY)),
        ],
        2 => Just(Op::Stop),
        3 => any::<bool>().prop_map(|bare| Op::Kill { bare }),
        4 => (any::<u64>(), prop::option::weighted(0.3, 0_u64..30))
            .prop_map(|(seed, again)| Op::Cut { seed, again }),
        4 => (0_u64..20, prop_oneof![Just(0_usize), 1_usize..5_000], any::<u64>())
            .prop_map(|(operations, bytes, seed)| Op::PowerOff { operations, bytes, seed }),
    ]
}

/// Something to work with, in most cases; then anything.
pub(crate) fn script() -> impl Strategy<Value = Vec<Op>> {
    let begin = (topic_wish(), topic_wish(), group_wish(), 0_usize..5).prop_map(
        |(first, second, group, without)| {
            let mut ops = vec![
                Op::CreateTopic(0, TopicWish { access: 0, ..first }),
                Op::CreateTopic(1, second),
                Op::CreateGroup(0, GroupWish { enabled: true, ..group }),
                Op::OpenSession(0),
            ];
            if without < ops.len() {
                ops.remove(without);
            }
            ops
        },
    );
    let then = prop::collection::vec(prop_oneof![4 => request(), 1 => fate()], 1..200);
    (begin, then).prop_map(|(mut begin, mut then)| {
        begin.append(&mut then);
        begin
    })
}
