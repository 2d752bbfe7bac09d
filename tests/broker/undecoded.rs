//! A group comes to fresh messages that cannot be decoded while the power goes, its consumer goes away, or the log has
//! no room: none of them is finished without its dead letter.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstem::broker::{
    BrokerError, Expression, Language, PullRequest, ReceiveRequest, ReceivedMessage, SendRequest,
    dead_letter,
};
use mainstem::file::Operation;
use mainstem::format::attributes::DeadReason;
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{FlushMode, GroupSettings, QueueId, QueueOffset, TopicSettings, TopicType};
use mainstem::testing::{CrashChoice, NameChoice, SimDisk, WriteChoice};

use crate::consumer::{DEAD, GROUP, TOPIC, body_of};
use crate::rig::{Dice, Request, Rig, bare, late};
use crate::script::Setup;

const WALL: u64 = 1_700_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);
const SEGMENT: u64 = 64 << 10;
const SETUP: Setup = Setup { segment_size: SEGMENT, flush: FlushMode::Async, auto_create: false };
/// What is no concern of the group.
const FILLER: &str = "f";

/// Offset of the one dead letter, and how many messages it stands for.
const LETTER: [(u64, u32); 1] = [(0, 3)];

fn copy(disk: &SimDisk) -> SimDisk {
    disk.crash_image(&CrashChoice::EVERYTHING)
}

async fn send(
    broker: &mainstem::broker::Broker,
    topic: &str,
    batch: Vec<u8>,
) -> Result<(), BrokerError> {
    let (queue, batch) = (Some(QueueId::ZERO), batch.into());
    let request = SendRequest { topic, queue, batch, session: None, deadline: late() };
    broker.send(request).await.map(drop)
}

fn single(body: &[u8]) -> Vec<u8> {
    let mut batch = BatchBuilder::new();
    batch.push(&NewMeta::default(), body);
    batch.finish().to_vec()
}

/// A disk with a record of three messages that rotted and a message behind them, and a group that is yet to come there.
fn begin() -> SimDisk {
    let mut rig = Rig::open(&SimDisk::new(), &SETUP, WALL).unwrap();
    let broker = rig.broker.clone();
    let made = rig.carry(async move {
        let settings = TopicSettings::open(1, FlushMode::Async, TopicType::Mixed);
        for topic in [TOPIC, FILLER] {
            broker.create_topic(topic, settings, late()).await?;
        }
        let settings = GroupSettings { retry_delays_ms: vec![1_000], ..GroupSettings::default() };
        broker.create_group(GROUP, &settings, late()).await.map(drop)
    });
    made.unwrap().unwrap();
    // It gets its positions.
    assert!(rig.receive(TOPIC, 9, HOUR).unwrap().unwrap().is_empty());
    rig.settle();
    let broker = rig.broker.clone();
    let sent = rig.carry(async move {
        let mut batch = BatchBuilder::new();
        for _ in 0..3 {
            batch.push(&NewMeta::default(), &[b'r'; 200]);
        }
        send(&broker, TOPIC, batch.finish().to_vec()).await?;
        send(&broker, TOPIC, single(b"behind")).await
    });
    sent.unwrap().unwrap();
    rig.settle();
    let disk = copy(&rig.stop());
    let paths = disk.paths().into_iter();
    let log = paths.into_iter().find(|path| path.ends_with("00000000000000000000.log")).unwrap();
    let bytes = disk.durable_bytes(&log).unwrap();
    let at = bytes.windows(9).position(|bytes| bytes == b"rrrrrrrrr").unwrap();
    disk.corrupt(&log, at as u64, 1).unwrap();
    disk
}

/// Offset of each dead letter, and how many messages it stands for.
fn letters(rig: &mut Rig) -> Vec<(u64, u32)> {
    rig.settle();
    let broker = rig.broker.clone();
    let pulled = rig.answer(async move {
        let pull = PullRequest {
            topic: DEAD,
            queue: QueueId::ZERO,
            offset: QueueOffset::ZERO,
            max_messages: 1_000,
            max_bytes: 1 << 20,
            wait: Duration::ZERO,
            tags: "",
            epoch: None,
            group: None,
            deadline: late(),
        };
        broker.pull(pull).await
    });
    let records = match pulled.unwrap() {
        Err(BrokerError::NoTopic { .. }) => Vec::new(),
        pulled => pulled.unwrap().records,
    };
    let mut letters: Vec<_> = records
        .iter()
        .map(|record| {
            let letter = dead_letter(&record.attributes).unwrap();
            assert_eq!((letter.reason, letter.deliveries), (DeadReason::Undecodable, 0));
            assert_eq!((letter.topic_name, letter.last_client), (TOPIC, ""));
            (letter.queue_offset.get(), letter.messages)
        })
        .collect();
    letters.sort_unstable();
    letters
}

/// How many messages the group has not finished.
fn open(rig: &mut Rig) -> u64 {
    let broker = rig.broker.clone();
    let progress =
        rig.answer(async move { broker.progress(GROUP, TOPIC, 0, 1, late()).await.unwrap() });
    progress.unwrap().iter().map(|of| of.ready + of.leased + of.waiting).sum()
}

/// All that the group gets, by and by, and finishes.
fn receive_all(rig: &mut Rig) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..6 {
        for message in rig.receive(TOPIC, 9, HOUR).unwrap().unwrap() {
            all.push(body_of(&message.batch));
            assert_eq!(rig.ack(vec![message.handle]).unwrap().unwrap(), [true]);
        }
        rig.clock.advance(HOUR);
        rig.settle();
    }
    assert_eq!(open(rig), 0);
    all
}

/// The group comes past the messages and finishes what is behind them, as far as the power lasts.
fn play(rig: &mut Rig) -> Option<()> {
    loop {
        let got = rig.receive(TOPIC, 9, HOUR)?.ok()?;
        if let Some(message) = got.into_iter().next() {
            assert_eq!(body_of(&message.batch), "behind");
            return rig.ack(vec![message.handle])?.ok().map(drop);
        }
    }
}

#[test]
fn a_power_cut_leaves_what_cannot_be_decoded_to_its_group_or_with_all_of_its_dead_letters() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let begin = begin();
    let disk = copy(&begin);
    let mut rig = Rig::open(&disk, &SETUP, WALL).unwrap();
    let first = disk.operations();
    play(&mut rig).unwrap();
    let (last, journal) = (disk.operations(), disk.journal());
    assert_eq!(letters(&mut rig), LETTER);
    let mut seen = BTreeMap::<usize, u32>::new();
    for operation in first..=last {
        let is_write =
            journal.get(operation as usize).is_some_and(|(call, _)| *call == Operation::Write);
        for inside in if is_write { &[0, 90, 400][..] } else { &[0] } {
            let disk = copy(&begin);
            let mut rig = Rig::open(&disk, &SETUP, WALL).unwrap();
            disk.crash_inside(operation, *inside);
            let _ = play(&mut rig);
            let pending = disk.pending_counts();
            let mut dice = Dice(operation);
            let writes = WriteChoice::Prefix(dice.below(pending.versions as u64 + 1) as usize);
            let part = CrashChoice { names: NameChoice::All, writes, torn: None };
            let random = CrashChoice::random(dice.roll(), pending);
            for choice in [CrashChoice::NOTHING, CrashChoice::EVERYTHING, part, random] {
                let case = format!("cut at {operation} in {inside}, {choice:?}");
                let disk = disk.crash_image(&choice);
                let mut rig = Rig::open(&disk, &SETUP, WALL).unwrap();
                let there = letters(&mut rig);
                assert!(there.is_empty() || there == LETTER, "{case}: {there:?}");
                let open = open(&mut rig);
                assert_eq!(open > 1, there.is_empty(), "{case}: {open} are open");
                *seen.entry(there.len()).or_default() += 1;
                let disk = rig.kill();
                bare(&disk);
                let mut rig = Rig::open(&disk, &SETUP, WALL).unwrap();
                let got = receive_all(&mut rig);
                assert!(got.is_empty() && open == 0 || got == ["behind"], "{case}: {got:?}");
                assert_eq!(letters(&mut rig), LETTER, "{case}");
            }
        }
    }
    assert_eq!(seen.len(), 2, "both sides of the cut: {seen:?}");
}

/// What ends a receive for which the log has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its caller goes away.
    Gone,
    /// Its time does.
    Time,
}

/// A receive that nobody helps.
fn receiving(rig: &Rig) -> Request<Result<Vec<ReceivedMessage>, BrokerError>> {
    let broker = rig.broker.clone();
    Box::pin(async move {
        let filter = Expression::parse(Language::Tags, "*").unwrap();
        let request = ReceiveRequest {
            group: GROUP,
            topic: TOPIC,
            filter: &filter,
            max_messages: 9,
            max_bytes: 1 << 20,
            invisible: HOUR,
            client: None,
            holder: "somebody",
            wait: Duration::ZERO,
            attempt: "",
            deadline: late(),
        };
        broker.receive_messages(request).await.map(|received| received.messages)
    })
}

/// Sends something of a length. `false`: it waits for room, and goes away.
fn send_filler(rig: &mut Rig, len: u64) -> bool {
    let (broker, body) = (rig.broker.clone(), vec![b'x'; len as usize]);
    let mut sending: Request<_> =
        Box::pin(async move { send(&broker, FILLER, single(&body)).await });
    let sent = rig.look_at(&mut sending).0;
    rig.dispatch();
    sent.is_some_and(|sent| sent.map(|()| true).unwrap())
}

/// Where the log ends, or nearly so, as long as nobody makes another segment.
fn end_of_log(disk: &SimDisk) -> u64 {
    let mut rig = Rig::open(&copy(disk), &SETUP, WALL).unwrap();
    for len in [2_000, 200, 20, 1] {
        while send_filler(&mut rig, len) {}
    }
    rig.appended()
}

/// Fills the log up to its end but for so much.
fn fill(rig: &mut Rig, end: u64, left: u64) {
    while let free = end - rig.appended()
        && free > left + 400
    {
        assert!(send_filler(rig, (free - left - 400).min(2_000)));
    }
}

#[test]
fn a_receive_without_room_for_dead_letters_that_ends_leaves_all_that_cannot_be_decoded() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    // It never yields, and all that it polls is to be polled.
    runtime.block_on(tokio::task::unconstrained(async {
        let (begin, mut waited) = (begin(), [0, 0]);
        let log_end = end_of_log(&begin);
        for (end, left) in [End::Gone, End::Time]
            .into_iter()
            .flat_map(|end| (0..60).map(move |step| (end, step * 40)))
        {
            let case = format!("{end:?}, {left} bytes");
            let mut rig = Rig::open(&copy(&begin), &SETUP, WALL).unwrap();
            rig.dispatch();
            fill(&mut rig, log_end, left);
            let mut receive = receiving(&rig);
            for _ in 0..20 {
                if rig.look_at(&mut receive).0.is_some() {
                    break;
                }
                waited[usize::from(end == End::Time)] += 1;
                if end == End::Gone {
                    break;
                }
                tokio::time::advance(Duration::from_secs(1)).await;
                rig.dispatch();
            }
            drop(receive);
            // Killed there, and going on.
            let mut killed = Rig::open(&copy(&rig.disk), &SETUP, WALL).unwrap();
            for rig in [&mut rig, &mut killed] {
                rig.settle();
                assert_eq!(receive_all(rig), ["behind"], "{case}");
                let letters = letters(rig);
                let places = letters.iter().flat_map(|(at, of)| *at..at + u64::from(*of));
                assert_eq!(places.collect::<Vec<_>>(), [0, 1, 2], "{case}: {letters:?}");
                if end == End::Gone {
                    assert_eq!(letters, LETTER, "{case}");
                }
            }
        }
        assert!(!waited.contains(&0), "receives waited for room: {waited:?}");
    }));
}
