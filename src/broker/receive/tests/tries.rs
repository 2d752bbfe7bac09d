//! Receives that are tried again.

use super::*;

#[tokio::test]
async fn who_tries_a_receive_again_gets_the_same_messages_with_new_receipts() {
    for settings in [ordered(), GroupSettings::default()] {
        let rig = Rig::new(1, settings).await;
        for body in ["1", "2", "3"] {
            rig.send_ordered("a", body).await;
        }
        let filter = all();
        let tried = ReceiveRequest { attempt: "one", ..rig.request(&filter, 2) };
        let first = rig.broker.receive_messages(tried).await.unwrap().messages;
        assert_eq!(rig.ack(&[&first[0].handle]).await, [true]);
        let rig = rig.again();
        let tried = ReceiveRequest { attempt: "one", ..rig.request(&filter, 9) };
        let again = rig.broker.receive_messages(tried).await.unwrap().messages;
        assert_eq!(again.iter().map(seen).collect::<Vec<_>>(), [of(0, 1, 1, "2")]);
        assert_eq!(rig.ack(&[&first[1].handle]).await, [false], "the new one took its place");
        assert_eq!(rig.ack(&[&again[0].handle]).await, [true]);
        let other = ReceiveRequest { attempt: "two", ..tried };
        let other = rig.broker.receive_messages(other).await.unwrap().messages;
        assert_eq!(other.iter().map(seen).collect::<Vec<_>>(), [of(0, 2, 1, "3")]);
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn a_try_is_remembered_by_its_queues_however_many_message_groups_it_got() {
    let rig = Rig::new(1, ordered()).await;
    let groups: Vec<_> = (0..40 * 32).map(|number| format!("{number}")).collect();
    for group in &groups {
        rig.send_ordered(group, "x").await;
    }
    let (filter, mut first) = (all(), Vec::new());
    for number in 0..40 {
        let attempt = format!("{number}");
        let request = ReceiveRequest { attempt: &attempt, ..rig.request(&filter, 32) };
        let received = rig.broker.receive_messages(request).await.unwrap().messages;
        assert_eq!(received.len(), 32);
        first.extend(received);
    }
    let rig = rig.again();
    for number in [0, 7, 39, 7, 7] {
        let attempt = format!("{number}");
        let request = ReceiveRequest { attempt: &attempt, ..rig.request(&filter, 32) };
        let again = rig.broker.receive_messages(request).await.unwrap().messages;
        let [before, again] = [&first[number * 32..][..32], &again]
            .map(|messages| messages.iter().map(seen).collect::<Vec<_>>());
        assert_eq!(again, before, "{number}");
    }
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_try_that_is_repeated_does_not_keep_messages_for_longer_than_may_be() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "a").await;
    let filter = all();
    let hours = |hours: u64| Duration::from_secs(hours * 60 * 60);
    let tried = ReceiveRequest { attempt: "one", invisible: hours(8), ..rig.request(&filter, 1) };
    let mut last = rig.broker.receive_messages(tried).await.unwrap().messages.remove(0);
    for _ in 0..2 {
        rig.pass(hours(4));
        let again = rig.broker.receive_messages(tried).await.unwrap().messages.remove(0);
        assert_eq!(seen(&again), of(0, 0, 1, "a"));
        last = again;
    }
    // Four are left of the twelve since it was delivered.
    let extended = rig.hold(&last.handle, Hold::For(hours(5))).await;
    assert_eq!(extended, Err(ExtendFault::TooLong));
    rig.pass(hours(4) - Duration::from_millis(1));
    assert_eq!(rig.seen(1).await, []);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.seen(1).await, [of(0, 0, 2, "a")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn who_tries_again_with_less_room_leaves_the_rest_to_others() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    for body in ["1", "2", "3"] {
        rig.send_to(0, body).await;
    }
    let filter = all();
    let tried = ReceiveRequest { attempt: "one", ..rig.request(&filter, 9) };
    assert_eq!(rig.broker.receive_messages(tried).await.unwrap().messages.len(), 3);
    let less = ReceiveRequest { max_messages: 1, ..tried };
    let again = rig.broker.receive_messages(less).await.unwrap().messages;
    assert_eq!(again.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 1, "1")]);
    assert_eq!(rig.seen(9).await, [of(0, 1, 1, "2"), of(0, 2, 1, "3")], "that one did not count");
    rig.broker.close().unwrap();
}
