//! How much receives look at, counted: message groups that are stuck cost the others nothing.

use std::time::Duration;

use mainstem::message::{FlushMode, GroupSettings, TopicSettings, TopicType};
use mainstem::testing::SimDisk;

use crate::consumer::{GROUP, TOPIC, body_of};
use crate::rig::{Rig, late};
use crate::script::Setup;

const MESSAGE_GROUPS: usize = 100;
const OF_A_GROUP: usize = 3;

/// Messages looked at until all were delivered and acknowledged but those of the message groups that are stuck; and
/// how many were.
fn run(stuck: usize) -> (u64, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let setup = Setup { segment_size: 4 << 20, flush: FlushMode::Async, auto_create: false };
    let mut rig = Rig::open(&SimDisk::new(), &setup, 1_700_000_000_000).unwrap();
    let broker = rig.broker.clone();
    let made = rig.carry(async move {
        let settings = TopicSettings::open(4, FlushMode::Async, TopicType::Mixed);
        broker.create_topic(TOPIC, settings, late()).await?;
        let settings = GroupSettings { ordered: true, ..GroupSettings::default() };
        broker.create_group(GROUP, &settings, late()).await.map(drop)
    });
    made.unwrap().unwrap();
    for n in 0..OF_A_GROUP * MESSAGE_GROUPS {
        let of = (n % MESSAGE_GROUPS).to_string();
        rig.send(0, &of, Some(&of)).unwrap().unwrap();
    }
    let others = OF_A_GROUP * (MESSAGE_GROUPS - stuck);
    let mut left = others;
    while left > 0 {
        let received = rig.receive(TOPIC, 8, Duration::from_secs(3_600)).unwrap().unwrap();
        assert!(!received.is_empty(), "{left} are left");
        let is_done = |body: String| body.parse::<usize>().unwrap() >= stuck;
        let done = received.iter().filter(|message| is_done(body_of(&message.batch)));
        let handles: Vec<_> = done.map(|message| message.handle.clone()).collect();
        left -= handles.len();
        if !handles.is_empty() {
            assert!(rig.ack(handles).unwrap().unwrap().iter().all(|acked| *acked));
        }
    }
    (rig.broker.looked_at(), others)
}

#[test]
fn message_groups_that_are_stuck_cost_hardly_a_look_more_for_each_message_of_the_others() {
    let (looked, others) = run(0);
    assert_eq!((looked, others), (300, 300), "each once");
    let (looked, others) = run(1);
    assert_eq!(others, 297);
    // Those of the one that is stuck were looked at once, and never again.
    assert_eq!(looked, 300);
    assert!(looked as f64 / others as f64 <= 1.05);
}
