//! Groups that get one message of a message group after the other.

use super::*;

#[tokio::test]
async fn a_message_group_waits_for_its_own_messages_and_for_no_others() {
    let rig = Rig::new(1, ordered()).await;
    for (group, body) in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3"), ("b", "b2")] {
        rig.send_ordered(group, body).await;
    }
    // A run of one message group goes to one consumer.
    let (first, held) = rig.bodies(2).await;
    assert_eq!(first, bodies(&[("a1", 1), ("a2", 1)]));
    // Others get what does not wait for it.
    let (second, of_b) = rig.bodies(9).await;
    assert_eq!(second, bodies(&[("b1", 1), ("b2", 1)]));
    assert_eq!(rig.bodies(9).await.0, []);
    // Only the one that is not finished comes again, and what is behind it after it.
    assert_eq!(rig.ack(&[&held[0]]).await, [true]);
    assert_eq!(rig.bodies(9).await.0, []);
    rig.hold(&held[1], Hold::Retry).await.unwrap();
    let rig = rig.again();
    assert_eq!(rig.ack(&[&of_b[0], &of_b[1]]).await, [true, true]);
    rig.pass(MINUTE - Duration::from_millis(1));
    assert_eq!(rig.bodies(9).await.0, [], "the pause holds the message group");
    rig.pass(Duration::from_millis(1));
    let (again, held) = rig.bodies(9).await;
    assert_eq!(again, bodies(&[("a2", 2), ("a3", 1)]));
    let handles: Vec<&str> = held.iter().map(String::as_str).collect();
    assert_eq!(rig.ack(&handles).await, [true, true]);
    assert_eq!(rig.committed(0).await, 5);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn messages_without_a_message_group_are_one_group_for_each_queue() {
    let rig = Rig::new(2, ordered()).await;
    for (queue, body) in [(0, "x1"), (0, "x2"), (1, "y1")] {
        rig.send_to(queue, body).await;
    }
    rig.send_ordered("a", "a1").await;
    let (first, held) = rig.bodies(1).await;
    assert_eq!(first, bodies(&[("x1", 1)]));
    let (mut others, _) = rig.bodies(9).await;
    others.sort();
    assert_eq!(others, bodies(&[("a1", 1), ("y1", 1)]));
    assert_eq!(rig.ack(&[&held[0]]).await, [true]);
    assert_eq!(rig.bodies(9).await.0, bodies(&[("x2", 1)]));
    rig.broker.close().unwrap();
}
