//! Receipts whose leases a power cut took.

use std::time::Duration;

use mainstem::message::{FlushMode, GroupSettings, TopicSettings, TopicType};
use mainstem::testing::{CrashChoice, SimDisk};

use crate::consumer::{DEAD, GROUP, TOPIC, body_of};
use crate::rig::{Rig, late};
use crate::script::Setup;

/// Two messages, and their receipts, whose leases are not in the log any more.
fn lost() -> (Rig, Vec<String>) {
    let setup = Setup { segment_size: 256 << 10, flush: FlushMode::Async, auto_create: false };
    let mut rig = Rig::open(&SimDisk::new(), &setup, 1_700_000_000_000).unwrap();
    let broker = rig.broker.clone();
    let made = rig.carry(async move {
        let settings = TopicSettings::open(1, FlushMode::Async, TopicType::Mixed);
        broker.create_topic(TOPIC, settings, late()).await?;
        broker.create_group(GROUP, &GroupSettings::default(), late()).await.map(drop)
    });
    made.unwrap().unwrap();
    // It gets its positions.
    assert!(rig.receive(TOPIC, 9, Duration::from_secs(60)).unwrap().unwrap().is_empty());
    for body in ["a", "b"] {
        rig.send(0, body, None).unwrap().unwrap();
    }
    rig.settle();
    let mut handles = Vec::new();
    while handles.len() < 2 {
        let received = rig.receive(TOPIC, 9, Duration::from_secs(60)).unwrap().unwrap();
        assert!(received.iter().all(|one| ["a", "b"].contains(&body_of(&one.batch).as_str())));
        handles.extend(received.into_iter().map(|one| one.handle));
    }
    let disk = rig.kill().crash_image(&CrashChoice::NOTHING);
    (Rig::open(&disk, &setup, 1_700_000_000_000).unwrap(), handles)
}

#[test]
fn a_message_that_is_given_up_by_such_a_receipt_is_a_dead_letter_or_is_delivered_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let (mut rig, handles) = lost();
    let told = rig.forward(handles[0].clone()).unwrap();
    let (there, dead) = (rig.view(TOPIC), rig.view(DEAD));
    assert_eq!(there.open() + dead.lying.len() as u64, 2, "{told:?} {there:?} {dead:?}");
}

#[test]
fn what_lies_before_one_that_is_acknowledged_by_such_a_receipt_is_ready() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let (mut rig, handles) = lost();
    assert_eq!(rig.ack(vec![handles[1].clone()]).unwrap().unwrap(), [true]);
    assert_eq!(rig.view(TOPIC).split(), (1, 0, 0));
}
