//! Acks, changes and dead letters that the log does not take.

use super::*;
use crate::broker::Stored;

/// What is asked of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Ack,
    Change(Hold),
    Forward,
}

const ALL: [Ask; 5] = [
    Ask::Ack,
    Ask::Change(Hold::For(Duration::from_secs(600))),
    Ask::Change(Hold::RetryAfter(Duration::ZERO)),
    Ask::Change(Hold::Suspend(Duration::from_secs(600))),
    Ask::Forward,
];

impl Rig {
    /// Asks it; the new receipt of a change.
    async fn ask(&self, ask: Ask, handle: &str) -> Result<Option<String>, BrokerError> {
        let broker = &self.broker;
        match ask {
            Ask::Ack => {
                assert_eq!(broker.ack("g", "t", &[handle], soon()).await?, [true]);
                Ok(None)
            }
            Ask::Change(hold) => {
                let entries = [ExtendEntry { handle, hold }];
                let mut changed = broker.extend("g", "t", &entries, soon()).await?;
                Ok(Some(changed.remove(0).unwrap()))
            }
            Ask::Forward => {
                broker.forward_to_dead_letters("g", "t", (handle, 0), soon()).await?;
                Ok(None)
            }
        }
    }

    /// Of its first segment: those that are made ahead are written by a thread of their own.
    fn fail_writes_of_the_log(&self, times: Times) {
        self.disk.fail(FaultRule {
            operation: Operation::Write,
            path_contains: Some("00000000000000000000.log".to_owned()),
            nth: 1,
            times,
            error: Fault::Eio,
        });
    }
}

/// Success used to be the answer of others, and the message came again all the same.
#[tokio::test]
async fn what_the_log_does_not_take_is_an_error_and_the_message_comes_again() {
    for ask in ALL {
        let rig = Rig::new(1, GroupSettings::default()).await;
        rig.send_to(0, "a").await;
        // Its topic is there, so that what fails is the one record of all.
        let other = rig.receive(1).await.remove(0).handle;
        rig.ask(Ask::Forward, &other).await.unwrap();
        rig.send_to(0, "b").await;
        let handle = rig.receive(1).await.remove(0).handle;
        let dead = rig.broker.counters().dead_letters.get();
        rig.fail_writes_of_the_log(Times::Once);
        let refused = rig.ask(ask, &handle).await.unwrap_err();
        assert!(matches!(refused, BrokerError::Write(_)), "{ask:?}: {refused:?}");
        assert_eq!(refused.stored(), Stored::No, "{ask:?}");
        assert_eq!(rig.seen(1).await, [], "{ask:?}: its lease is as it was");
        assert_eq!(rig.broker.counters().dead_letters.get(), dead);
        rig.pass(MINUTE);
        // And over a stop, as the log has it.
        let rig = rig.again();
        rig.pass(Duration::from_secs(10));
        assert_eq!(rig.seen(1).await, [of(0, 1, 2, "b")], "{ask:?}");
        assert_eq!(rig.dead().await.len(), 1, "{ask:?}");
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn what_failed_can_be_asked_again_and_is_done_once() {
    for ask in ALL {
        let rig = Rig::new(1, GroupSettings::default()).await;
        rig.send_to(0, "a").await;
        let handle = rig.receive(1).await.remove(0).handle;
        rig.fail_writes_of_the_log(Times::Once);
        let refused = rig.ask(ask, &handle).await.unwrap_err();
        assert!(matches!(refused, BrokerError::Write(_)), "{ask:?}: {refused:?}");
        let changed = rig.ask(ask, &handle).await.unwrap();
        let is_visible = ask == Ask::Change(Hold::RetryAfter(Duration::ZERO));
        let expected = if is_visible { vec![of(0, 0, 2, "a")] } else { Vec::new() };
        assert_eq!(rig.seen(1).await, expected, "{ask:?}");
        rig.pass(MINUTE / 2);
        assert_eq!(rig.seen(1).await, [], "{ask:?}");
        match changed {
            // Once more is fine, and says the same.
            None => assert_eq!(rig.ask(ask, &handle).await.unwrap(), None),
            Some(changed) => {
                assert_eq!(rig.ack(&[&handle]).await, [false], "{ask:?}: another took its place");
                assert_eq!(rig.ack(&[&changed]).await, [!is_visible], "{ask:?}");
            }
        }
        let dead = if ask == Ask::Forward { 1 } else { 0 };
        assert_eq!(rig.broker.counters().dead_letters.get(), dead, "{ask:?}");
        rig.broker.close().unwrap();
    }
}

/// What is in the log and not on the disk is no success for who asked for the disk.
#[tokio::test]
async fn what_cannot_be_made_durable_is_not_said_to_be_done_and_comes_again_after_a_power_cut() {
    for ask in ALL {
        let rig = Rig::new(1, GroupSettings::default()).await;
        let sync =
            crate::broker::TopicChanges { flush: Some(FlushMode::Sync), ..Default::default() };
        rig.broker.update_topic("t", &sync, crate::message::Force::No, soon()).await.unwrap();
        rig.send_to(0, "a").await;
        let handle = rig.receive(1).await.remove(0).handle;
        rig.disk.fail(FaultRule {
            operation: Operation::Sync,
            path_contains: Some("commitlog".to_owned()),
            nth: 1,
            times: Times::Always,
            error: Fault::Eio,
        });
        let refused = rig.ask(ask, &handle).await.unwrap_err();
        assert_eq!(refused.stored(), Stored::Unknown, "{ask:?}: {refused:?}");
        let nothing = CrashChoice { names: NameChoice::All, writes: WriteChoice::None, torn: None };
        let disk = rig.disk.crash_image(&nothing);
        let broker = open(&disk, &rig.clock);
        let rig = Rig { broker, clock: rig.clock, disk };
        rig.pass(MINUTE);
        rig.pass(Duration::from_secs(10));
        let bodies: Vec<_> = rig.seen(1).await.into_iter().map(|seen| (seen.1, seen.3)).collect();
        assert_eq!(bodies, [(0, "a".to_owned())], "{ask:?}");
        rig.broker.close().unwrap();
    }
}
