//! A full disk, and commits that go on until they are refused: what is purged then makes room, without a restart.

use std::time::Duration;

use mainstem::broker::{BrokerError, Caller, CommitOffset, Expected, Purge, Reason, SendRequest};
use mainstem::message::{FlushMode, GroupSettings, QueueId, QueueOffset, TopicSettings, TopicType};
use mainstem::testing::SimDisk;

use crate::model::filler;
use crate::rig::{Request, Rig, late};
use crate::script::Setup;

const WALL: u64 = 1_700_000_000_000;

/// Groups at the begin, and as many as there will be: so does the image grow.
const GROUPS: u64 = 40;

/// The answer of a request, helped by the workers. `None`: it waits for room, and nobody makes any.
fn answer<T>(rig: &mut Rig, mut request: Request<Result<T, BrokerError>>) -> Option<T> {
    for _ in 0..50 {
        match rig.look_at(&mut request).0 {
            Some(Ok(done)) => return Some(done),
            Some(Err(error)) => {
                assert_eq!(error.reason(), Reason::NoSpace, "{error}");
                return None;
            }
            None => rig.settle(),
        }
    }
    None
}

fn send(rig: &mut Rig) -> Option<()> {
    let broker = rig.broker.clone();
    let request = async move {
        let (topic, queue) = ("t", Some(QueueId::ZERO));
        let request =
            SendRequest { topic, queue, batch: filler(90), session: None, deadline: late() };
        broker.send(request).await.map(drop)
    };
    answer(rig, Box::pin(request))
}

fn commit(rig: &mut Rig, group: u64, offset: u64) -> Option<()> {
    let broker = rig.broker.clone();
    let request = async move {
        let commit = CommitOffset {
            topic: "t",
            queue: QueueId::ZERO,
            offset: QueueOffset::new(offset),
            expected: Expected::Any,
            known_queues: None,
        };
        let (group, caller) = (format!("g{group}"), Caller { address: None, name: "ann" });
        broker.commit_offsets(&group, &[commit], caller, late()).await
    };
    answer(rig, Box::pin(request))
}

/// Time goes on by enough to ask the disk again.
fn later(rig: &mut Rig) {
    rig.clock.advance(Duration::from_secs(2));
    rig.settle();
}

#[test]
fn commits_on_a_full_disk_leave_room_for_what_ends_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    // With a clean stop, a kill and no start between the full disk and the commits.
    for start in 0..3 {
        let disk = SimDisk::new();
        let setup = Setup { segment_size: 256 << 10, flush: FlushMode::Sync, auto_create: false };
        let mut rig = Rig::open(&disk, &setup, WALL).unwrap();
        let broker = rig.broker.clone();
        let made = async move {
            let settings = TopicSettings::open(1, FlushMode::Sync, TopicType::Mixed);
            broker.create_topic("t", settings, late()).await?;
            for group in 0..GROUPS {
                let group = format!("g{group}");
                broker.create_group(&group, &GroupSettings::default(), late()).await?;
            }
            Ok(())
        };
        answer(&mut rig, Box::pin(made)).unwrap();
        // What is reserved is another test's.
        disk.set_capacity(Some((512 << 20) + (3 << 20)));
        later(&mut rig);
        let mut sent = 0;
        while send(&mut rig).is_some() {
            sent += 1;
            later(&mut rig);
        }
        assert!(sent > 100, "{sent}");
        match start {
            0 => {}
            1 => rig = Rig::open(&rig.stop(), &setup, WALL).unwrap(),
            _ => rig = Rig::open(&rig.kill(), &setup, WALL).unwrap(),
        }
        later(&mut rig);
        assert!(send(&mut rig).is_none());

        let mut commits = 0;
        while commit(&mut rig, commits % GROUPS, commits % sent).is_some() {
            commits += 1;
            assert!(commits < 10_000, "commits are never refused");
        }
        assert!(commits > 20, "{commits}");
        later(&mut rig);
        assert!(commit(&mut rig, 0, 1).is_none(), "time alone makes no room");
        let deleted = rig.broker.status().store.deleted_segments;

        let broker = rig.broker.clone();
        let purge = async move { broker.purge_topic("t", Purge::Topic, late()).await };
        answer(&mut rig, Box::pin(purge)).unwrap();
        later(&mut rig);
        let status = rig.broker.status().store;
        assert!(status.deleted_segments > deleted + 5, "{status:?}");
        later(&mut rig);
        send(&mut rig).unwrap();
        commit(&mut rig, 0, 1).unwrap();

        // Nothing of the state went with the segments.
        let rig = Rig::open(&rig.kill(), &setup, WALL).unwrap();
        assert_eq!(rig.broker.group_counts().0, GROUPS);
    }
}
