//! A topic gets queues while offsets are reset: each queue, also one that came meanwhile, has its place afterwards.

use std::time::Duration;

use mainstem::broker::{
    BrokerError, Caller, CommitOffset, Expected, Position, ResetQueue, ResetRequest, Run,
    SendRequest, TopicChanges,
};
use mainstem::message::{
    FlushMode, Force, GroupSettings, InitialPosition, QueueId, QueueOffset, Timestamp,
    TopicSettings, TopicType,
};
use mainstem::testing::SimDisk;

use crate::model::filler;
use crate::rig::{Request, Rig, late};
use crate::script::Setup;

const WALL: u64 = 1_700_000_000_000;
const OLD: u32 = 2;
const NEW: u32 = 4;
/// Messages in each of the old queues, a second between two.
const SENT: u64 = 6;

type Answer<T> = Request<Result<T, BrokerError>>;

fn done<T>(rig: &mut Rig, mut request: Answer<T>) -> T {
    for round in 0.. {
        if let Some(answer) = rig.look_at(&mut request).0 {
            return answer.unwrap();
        }
        rig.helped(round);
    }
    unreachable!("it helps for a thousand rounds at most")
}

fn reset(rig: &Rig, to: Position, run: Run) -> Answer<Vec<ResetQueue>> {
    let broker = rig.broker.clone();
    Box::pin(async move {
        let (queue, caller) = (None, Caller::default());
        let request = ResetRequest { group: "g", topic: "t", queue, to, caller, run };
        broker.reset_offsets(request, late()).await
    })
}

fn grow(rig: &Rig) -> Answer<()> {
    let broker = rig.broker.clone();
    let changes = TopicChanges { queues: Some(NEW), ..TopicChanges::default() };
    Box::pin(async move { broker.update_topic("t", &changes, Force::No, late()).await.map(drop) })
}

fn send(rig: &Rig, queue: u32) -> Answer<()> {
    let broker = rig.broker.clone();
    Box::pin(async move {
        let (topic, queue) = ("t", Some(QueueId::new(queue)));
        let request =
            SendRequest { topic, queue, batch: filler(1), session: None, deadline: late() };
        broker.send(request).await.map(drop)
    })
}

/// The group commits to the first queue.
fn commit(rig: &Rig) -> Answer<()> {
    let broker = rig.broker.clone();
    Box::pin(async move {
        let commit = CommitOffset {
            topic: "t",
            queue: QueueId::ZERO,
            offset: QueueOffset::new(1),
            expected: Expected::Any,
            known_queues: None,
        };
        broker.commit_offsets("g", &[commit], Caller::default(), late()).await
    })
}

/// What the group has committed to each queue.
fn committed(rig: &mut Rig) -> Vec<Option<u64>> {
    let broker = rig.broker.clone();
    let progress = async move { broker.progress("g", "t", 0, 10, late()).await };
    let progress = done(rig, Box::pin(progress));
    progress.iter().map(|queue| queue.committed.map(QueueOffset::get)).collect()
}

/// A topic, and a group that begins at the end of a queue wherever nothing is committed.
fn begun() -> Rig {
    let setup = Setup { segment_size: 64 << 10, flush: FlushMode::Sync, auto_create: false };
    let mut rig = Rig::open(&SimDisk::new(), &setup, WALL).unwrap();
    let broker = rig.broker.clone();
    done(
        &mut rig,
        Box::pin(async move {
            let settings = TopicSettings::open(OLD, FlushMode::Sync, TopicType::Mixed);
            broker.create_topic("t", settings, late()).await?;
            let initial_position = InitialPosition::Latest;
            let settings = GroupSettings { initial_position, ..GroupSettings::default() };
            broker.create_group("g", &settings, late()).await.map(drop)
        }),
    );
    for _ in 0..SENT {
        rig.clock.advance(Duration::from_secs(1));
        for queue in 0..OLD {
            let request = send(&rig, queue);
            done(&mut rig, request);
        }
    }
    rig
}

#[test]
fn a_reset_beside_a_topic_that_grows_leaves_each_queue_a_place() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let at = |second: u64| Position::Time(Timestamp::new(WALL + 1_000 * second));
    let cases = [
        (Position::Earliest, 0),
        (Position::Latest, SENT),
        (at(0), 0),
        (at(3), 2),
        (at(SENT + 100), SENT),
    ];
    let mut grown_inside = 0;
    for (to, expected) in cases {
        // The growth comes before the reset, or after so many looks at it; a message comes to
        // each new queue at once.
        for looks in 0..6 {
            let mut rig = begun();
            let dry = reset(&rig, to, Run::Dry);
            let planned = done(&mut rig, dry);
            let new: Vec<_> = planned.iter().map(|row| row.new.get()).collect();
            assert_eq!(new, vec![expected; OLD as usize], "{to:?}");
            assert_eq!(committed(&mut rig), vec![None; OLD as usize], "a dry run changes nothing");
            // Not durable yet: a reset has to wait before it tells of it.
            let mut commit = commit(&rig);
            assert!(rig.look_at(&mut commit).0.is_none());
            let (mut dry, mut real) = (reset(&rig, to, Run::Dry), reset(&rig, to, Run::Real));
            let (mut dry_rows, mut rows) = (None, None);
            for _ in 0..looks {
                dry_rows = dry_rows.or_else(|| rig.look_at(&mut dry).0);
                rows = rows.or_else(|| rig.look_at(&mut real).0);
                if rows.is_none() {
                    rig.helped(0);
                }
            }
            grown_inside += u32::from(looks > 0 && rows.is_none());
            // The update waits for the flush; it is in force at once.
            let mut growth = grow(&rig);
            assert!(rig.look_at(&mut growth).0.is_none());
            for queue in OLD..NEW {
                assert!(rig.look_at(&mut send(&rig, queue)).0.is_none());
            }
            let dry_rows = dry_rows.unwrap_or_else(|| Ok(done(&mut rig, dry))).unwrap();
            let rows = rows.unwrap_or_else(|| Ok(done(&mut rig, real))).unwrap();
            done(&mut rig, growth);

            let case = format!("{to:?}, grown after {looks} looks");
            for rows in [&dry_rows, &rows] {
                let old = rows.iter().take(OLD as usize);
                assert!(old.clone().all(|row| row.new.get() == expected), "{case}: {rows:?}");
                assert_eq!(old.count(), OLD as usize, "{case}");
            }
            let places = committed(&mut rig);
            assert_eq!(places.len(), NEW as usize);
            assert_eq!(places[..OLD as usize], [Some(expected); OLD as usize], "{case}");
            // Those which the reset knew are where it says, the others begin at their first message.
            for (queue, place) in places.iter().enumerate().skip(OLD as usize) {
                let told = rows.get(queue).map_or(0, |row| row.new.get());
                assert_eq!(*place, Some(told), "{case}, queue {queue}");
            }
        }
    }
    assert!(grown_inside >= 5, "{grown_inside} resets met the growth");
}
