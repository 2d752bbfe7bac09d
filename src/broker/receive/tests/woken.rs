//! Each thing that makes a message deliverable ends the wait of who is parked.

use super::*;
use crate::broker::TopicChanges;
use crate::message::{Access, Force};

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Source {
    NewMessage,
    MessageOfANewQueue,
    LeaseOver,
    PauseOver,
    GivenBackForNoTime,
    NotHandedOver,
    ClientGone,
    ResetBack,
    CommitBack,
    OperatorsRetry,
    Redriven,
    NotOrderedAnyMore,
    FirstOfItsGroupAcked,
    FirstOfItsGroupGivenUp,
    FirstOfItsGroupExhausted,
}

const ALL: [Source; 15] = [
    Source::NewMessage,
    Source::MessageOfANewQueue,
    Source::LeaseOver,
    Source::PauseOver,
    Source::GivenBackForNoTime,
    Source::NotHandedOver,
    Source::ClientGone,
    Source::ResetBack,
    Source::CommitBack,
    Source::OperatorsRetry,
    Source::Redriven,
    Source::NotOrderedAnyMore,
    Source::FirstOfItsGroupAcked,
    Source::FirstOfItsGroupGivenUp,
    Source::FirstOfItsGroupExhausted,
];

const CLIENT: &str = "a client";

impl Source {
    fn is_of_order(self) -> bool {
        use Source::{
            FirstOfItsGroupAcked, FirstOfItsGroupExhausted, FirstOfItsGroupGivenUp,
            NotOrderedAnyMore,
        };
        matches!(
            self,
            FirstOfItsGroupAcked
                | FirstOfItsGroupExhausted
                | FirstOfItsGroupGivenUp
                | NotOrderedAnyMore
        )
    }

    fn group(self) -> GroupSettings {
        let pause = GroupSettings { retry_delays_ms: vec![60_000], ..GroupSettings::default() };
        match self {
            Self::FirstOfItsGroupExhausted => GroupSettings { max_attempts: Some(1), ..ordered() },
            _ if self.is_of_order() => ordered(),
            _ => pause,
        }
    }

    /// What comes of it.
    fn expected(self) -> Seen {
        match self {
            Self::NewMessage => of(0, 1, 1, "second"),
            Self::MessageOfANewQueue => of(1, 0, 1, "second"),
            Self::NotHandedOver | Self::ResetBack | Self::CommitBack => of(0, 0, 1, "first"),
            // In a place of its own.
            Self::Redriven => of(0, 1, 1, "first"),
            _ if self.is_of_order() => of(0, 1, 1, "second"),
            _ => of(0, 0, 2, "first"),
        }
    }

    async fn happens(self, rig: &Rig, handle: &str) {
        let broker = &rig.broker;
        match self {
            Self::NewMessage => rig.send_to(0, "second").await,
            Self::MessageOfANewQueue => {
                let grown = TopicChanges { queues: Some(2), ..TopicChanges::default() };
                broker.update_topic("t", &grown, Force::No, soon()).await.unwrap();
                rig.send_to(1, "second").await;
            }
            Self::LeaseOver | Self::PauseOver | Self::FirstOfItsGroupExhausted => {
                rig.pass(MINUTE);
                assert!(broker.tend_due().await);
            }
            Self::GivenBackForNoTime => {
                rig.hold(handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
            }
            Self::NotHandedOver => broker.give_back("g", "t", &[handle.to_owned()]),
            Self::ClientGone => {
                assert!(broker.forget_client(CLIENT));
                assert!(broker.tend_clients());
            }
            Self::ResetBack => {
                let (caller, run) = (Caller::default(), Run::Real);
                let (group, topic, queue, to) = ("g", "t", None, Position::Earliest);
                let reset = ResetRequest { group, topic, queue, to, caller, run };
                broker.reset_offsets(reset, soon()).await.unwrap();
            }
            Self::CommitBack => {
                let back = CommitOffset {
                    topic: "t",
                    queue: QueueId::ZERO,
                    offset: QueueOffset::ZERO,
                    expected: Expected::Any,
                    known_queues: None,
                };
                broker.commit_offsets("g", &[back], Caller::default(), soon()).await.unwrap();
            }
            Self::OperatorsRetry => {
                let (action, deadline) = (WaitingAction::Retry, soon());
                let (group, topic, ids, max) = ("g", "t", [].as_slice(), 1);
                let retry = SettleRequest { group, topic, ids, max, action, deadline };
                assert_eq!(broker.settle_waiting(&retry).await.unwrap().len(), 1);
            }
            Self::Redriven => {
                let redrive = RedriveRequest { max: 1, ..redrive_request() };
                assert_eq!(broker.redrive(&redrive).await.unwrap().dead_letters.len(), 1);
            }
            Self::NotOrderedAnyMore => {
                let change = GroupChange { ordered: Some(false), ..GroupChange::default() };
                broker.update_group("g", &change, soon()).await.unwrap();
            }
            Self::FirstOfItsGroupAcked => assert_eq!(rig.ack(&[handle]).await, [true]),
            Self::FirstOfItsGroupGivenUp => {
                rig.give_up(handle).await;
            }
        }
    }
}

/// A rig whose group has received the first message of a source, and what it has of it.
async fn prepared(source: Source) -> (Rig, String) {
    let rig = Rig::new(1, source.group()).await;
    match source.is_of_order() {
        true => {
            for body in ["first", "second"] {
                rig.send_ordered("a message group", body).await;
            }
        }
        false => rig.send_to(0, "first").await,
    }
    assert!(rig.broker.introduce_client(CLIENT, introduction(), None, None));
    let filter = all();
    let client = matches!(source, Source::ClientGone).then_some(CLIENT);
    let request = ReceiveRequest { client, ..rig.request(&filter, 1) };
    let received = rig.broker.receive_messages(request).await.unwrap().messages;
    assert_eq!(received.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 1, "first")], "{source:?}");
    let handle = received[0].handle.clone();
    match source {
        Source::PauseOver | Source::OperatorsRetry => {
            rig.hold(&handle, Hold::Retry).await.unwrap();
        }
        Source::NewMessage
        | Source::MessageOfANewQueue
        | Source::ResetBack
        | Source::CommitBack => assert_eq!(rig.ack(&[&handle]).await, [true]),
        Source::Redriven => {
            rig.give_up(&handle).await;
        }
        _ => {}
    }
    (rig, handle)
}

/// A wait that nothing ends ends without a message.
#[tokio::test]
async fn whatever_makes_a_message_deliverable_ends_the_wait_for_one() {
    for source in ALL {
        let (rig, handle) = prepared(source).await;
        let filter = all();
        let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 1) };
        let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
            rig.until_wait(1).await;
            source.happens(&rig, &handle).await;
        });
        let received: Vec<_> = received.unwrap().messages.iter().map(seen).collect();
        assert_eq!(received, [source.expected()], "{source:?}");
        rig.broker.close().unwrap();
    }
}

/// Nobody waits in a group that is disabled, or for a topic that cannot be read: who did is told so, and who comes when
/// it can be again finds what was sent meanwhile.
#[tokio::test]
async fn what_may_not_be_received_ends_the_wait_and_is_there_once_it_may_be() {
    let rig = Rig::new(VERY_MANY, GroupSettings::default()).await;
    assert_eq!(rig.seen(1).await, []);
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 1) };
    let set = async |of_group: bool, may: bool| {
        if of_group {
            let change = GroupChange { enabled: Some(may), ..GroupChange::default() };
            rig.broker.update_group("g", &change, soon()).await.unwrap();
        } else {
            let access = Some(Access { read: may, write: true });
            let change = TopicChanges { access, ..TopicChanges::default() };
            rig.broker.update_topic("t", &change, Force::No, soon()).await.unwrap();
        }
    };
    for (of_group, queue) in [(true, 7), (false, 9)] {
        let (refused, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
            rig.until_wait(1).await;
            set(of_group, false).await;
        });
        match refused {
            Err(BrokerError::GroupDisabled { .. }) if of_group => {}
            Err(BrokerError::Forbidden { what: "read" }) if !of_group => {}
            other => panic!("{other:?}"),
        }
        rig.send_to(queue, "meanwhile").await;
        set(of_group, true).await;
        let received = rig.broker.receive_messages(waiting).await.unwrap().messages;
        let received: Vec<_> = received.iter().map(seen).collect();
        assert_eq!(received, [of(queue, 0, 1, "meanwhile")]);
    }
    rig.broker.close().unwrap();
}
