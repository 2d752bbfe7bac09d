//! How one receive is shared out: among queues, and among fresh messages and those that come again.

use super::*;

impl Rig {
    /// What one receive gets, and not as many as it takes.
    async fn one_receive(&self, max_messages: u32) -> Vec<Seen> {
        let filter = all();
        let received = self.broker.receive_messages(self.request(&filter, max_messages)).await;
        received.unwrap().messages.iter().map(seen).collect()
    }

    async fn send_many(&self, queue: u32, count: usize) {
        self.store(Some(QueueId::new(queue)), &vec![("x", None, None); count], None).await;
    }
}

fn of_queue(seen: &[Seen], queue: u32) -> usize {
    seen.iter().filter(|message| message.0 == queue).count()
}

#[tokio::test]
async fn a_queue_that_has_much_leaves_half_of_a_receive_to_the_others() {
    for settings in [GroupSettings::default(), ordered()] {
        let rig = Rig::new(2, settings).await;
        rig.send_many(0, 1_000).await;
        rig.send_many(1, 5).await;
        let first = rig.one_receive(10).await;
        assert_eq!((of_queue(&first, 0), of_queue(&first, 1)), (5, 5));
        rig.broker.close().unwrap();
    }
    // What they do not take is its own.
    let rig = Rig::new(2, GroupSettings::default()).await;
    rig.send_many(0, 1_000).await;
    rig.send_many(1, 2).await;
    let first = rig.one_receive(10).await;
    assert_eq!((of_queue(&first, 0), of_queue(&first, 1)), (8, 2));
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_receive_goes_through_the_queues_until_it_has_all_and_the_next_begins_behind_it() {
    let rig = Rig::new(4, GroupSettings::default()).await;
    for queue in 0..4 {
        rig.send_many(queue, 6).await;
    }
    let mut queues = Vec::new();
    for _ in 0..8 {
        queues.extend(rig.one_receive(1).await.into_iter().map(|message| message.0));
    }
    assert_eq!(queues, [0, 1, 2, 3, 0, 1, 2, 3]);
    let rest = rig.one_receive(16).await;
    assert_eq!([0, 1, 2, 3].map(|queue| of_queue(&rest, queue)), [4; 4]);
    rig.broker.close().unwrap();
}

/// Messages that fail again and again, more than there ever is room for.
#[tokio::test]
async fn of_two_receives_each_has_fresh_messages_and_such_that_come_again_whatever_there_is_of_them()
 {
    for settings in [GroupSettings::default(), GroupSettings { ordered: true, ..ordered() }] {
        let settings = GroupSettings { max_attempts: None, ..settings };
        let rig = Rig::new(40, settings).await;
        for queue in 0..20 {
            rig.send_many(queue, 10).await;
        }
        assert_eq!(rig.receive(200).await.len(), 200);
        rig.pass(MINUTE);
        for queue in 20..40 {
            rig.send_many(queue, 10).await;
        }
        let (mut again, mut fresh) = (0, 0);
        for _ in 0..10 {
            let two = [rig.one_receive(10).await, rig.one_receive(10).await];
            let count =
                |delivery| two.iter().flatten().filter(|message| message.2 == delivery).count();
            assert_eq!(count(1) + count(2), 20, "{two:?}");
            assert!(count(1) > 0 && count(2) > 0, "{two:?}");
            (fresh, again) = (fresh + count(1), again + count(2));
        }
        assert!(fresh >= 100, "{fresh} fresh ones, {again} that came again");
        rig.broker.close().unwrap();
    }
}
