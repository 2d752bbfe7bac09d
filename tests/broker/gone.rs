//! A topic or a group is deleted while others read: they hear of it once it is durable, as who deletes does.

use std::time::Duration;

use mainstem::broker::{Broker, BrokerError, PullRequest, PullStart, PullStreamRequest, Reason};
use mainstem::message::{FlushMode, GroupSettings, QueueId, QueueOffset, TopicSettings, TopicType};
use mainstem::testing::SimDisk;

use crate::rig::{Request, Rig, late};
use crate::script::Setup;

const WAIT: Duration = Duration::from_secs(30);

fn pull(wait: Duration) -> PullRequest<'static> {
    PullRequest {
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: 1,
        max_bytes: 1 << 10,
        wait,
        tags: "",
        epoch: None,
        group: Some("g"),
        deadline: late(),
    }
}

/// Until the first answer or the end.
async fn stream(broker: std::sync::Arc<Broker>) -> Result<(), BrokerError> {
    let queues = [PullStart { queue: QueueId::ZERO, offset: QueueOffset::ZERO }];
    let request = PullStreamRequest {
        topic: "t",
        queues: &queues,
        max_bytes: 1 << 10,
        tags: "",
        epoch: None,
        group: Some("g"),
    };
    let mut stream = broker.pull_stream(request).await.map_err(|ended| ended.error)?;
    stream.next().await.map(drop).map_err(|ended| ended.error)
}

/// All of the ways to read: parked before the deletion, and begun behind it.
fn readers(rig: &Rig, wait: Duration) -> Vec<Request<Result<(), BrokerError>>> {
    let (one, other) = (rig.broker.clone(), rig.broker.clone());
    vec![Box::pin(async move { one.pull(pull(wait)).await.map(drop) }), Box::pin(stream(other))]
}

#[test]
fn a_deletion_is_told_to_who_reads_once_it_is_durable() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    for (reason, is_topic) in [(Reason::UnknownTopic, true), (Reason::UnknownGroup, false)] {
        let setup = Setup { segment_size: 64 << 10, flush: FlushMode::Sync, auto_create: false };
        let mut rig = Rig::open(&SimDisk::new(), &setup, 1_700_000_000_000).unwrap();
        let broker = rig.broker.clone();
        let mut made: Request<Result<(), BrokerError>> = Box::pin(async move {
            let settings = TopicSettings::open(1, FlushMode::Sync, TopicType::Mixed);
            broker.create_topic("t", settings, late()).await?;
            broker.create_group("g", &GroupSettings::default(), late()).await.map(drop)
        });
        let mut round = 0;
        while rig.look_at(&mut made).0.is_none() {
            rig.helped(round);
            round += 1;
        }
        rig.settle();

        let mut all = readers(&rig, WAIT);
        for reader in &mut all {
            // Twice: the first look waits for the dispatcher.
            for _ in 0..2 {
                assert!(rig.look_at(reader).0.is_none(), "there is nothing to read");
                rig.dispatch();
            }
        }
        assert_eq!(rig.broker.counters().parked.get(), 2);
        let broker = rig.broker.clone();
        let mut deletion: Request<Result<(), BrokerError>> = Box::pin(async move {
            match is_topic {
                true => broker.delete_topic("t", late()).await,
                false => broker.delete_group("g", late()).await,
            }
        });
        assert!(rig.look_at(&mut deletion).0.is_none(), "it waits for the flush");
        rig.dispatch();
        all.extend(readers(&rig, Duration::ZERO));
        for reader in &mut all {
            for _ in 0..3 {
                let told = rig.look_at(reader).0;
                assert!(told.is_none(), "{told:?}, which a power cut can take back");
            }
        }
        assert!(rig.flushed() < rig.appended());
        rig.settle();
        for reader in &mut all {
            let told = rig.look_at(reader).0.unwrap().unwrap_err();
            assert_eq!(told.reason(), reason, "{told}");
        }
        rig.look_at(&mut deletion).0.unwrap().unwrap();
    }
}
