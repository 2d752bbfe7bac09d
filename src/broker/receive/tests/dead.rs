//! What becomes a dead letter, what goes back, and what waits for another delivery.

use super::*;
use crate::format::attributes::{self, DeadReason};

#[tokio::test]
async fn what_was_delivered_too_often_becomes_a_dead_letter_once_and_lets_the_next_come() {
    let rig = Rig::new(1, ordered()).await;
    rig.send_ordered("a", "a1").await;
    rig.send_ordered("a", "a2").await;
    let mut last = String::new();
    for delivery in [1, 2] {
        let (got, mut handles) = rig.bodies(1).await;
        assert_eq!(got, bodies(&[("a1", delivery)]));
        last = handles.remove(0);
        rig.pass(MINUTE);
    }
    assert_eq!(rig.bodies(9).await.0, [], "a1 is first, and was delivered twice");
    assert!(rig.broker.tend_due().await);
    assert_eq!(rig.ack(&[&last]).await, [false], "it is a dead letter");
    assert_eq!(rig.bodies(9).await.0, bodies(&[("a2", 1)]));
    let rig = rig.again();
    assert!(rig.broker.tend_due().await);
    let filter = all();
    rig.broker.create_group("readers", &GroupSettings::default(), soon()).await.unwrap();
    let dead = ReceiveRequest { group: "readers", topic: "%DLQ%g", ..rig.request(&filter, 9) };
    let dead = rig.broker.receive_messages(dead).await.unwrap().messages;
    assert_eq!(dead.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 1, "a1")]);
    let letter = crate::format::attributes::dead_letter(&dead[0].attributes).unwrap().unwrap();
    assert_eq!((letter.topic_name, letter.queue_offset.get(), letter.deliveries), ("t", 0, 2));
    let delivered = [letter.first_delivered.get(), letter.last_delivered.get()];
    assert_eq!((delivered, letter.last_client), ([1_000_000, 1_060_000], "somebody"));
    assert_eq!(letter.reason, crate::format::attributes::DeadReason::Attempts);
    assert_eq!(rig.committed(0).await, 1);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_cannot_be_decompressed_is_a_dead_letter_without_body_that_does_not_go_back() {
    for settings in [GroupSettings::default(), ordered()] {
        let rig = Rig::new(1, settings).await;
        rig.send_to(0, "1").await;
        let lost = rig.send_batch(not_decompressible(&["tag"])).await;
        rig.send_to(0, "3").await;
        let mut got = Vec::new();
        for _ in 0..2 {
            let received = rig.receive(9).await;
            got.extend(received.iter().map(|one| seen(one).3));
            let handles: Vec<_> = received.iter().map(|one| one.handle.as_str()).collect();
            rig.ack(&handles).await;
        }
        assert_eq!(got, ["1", "3"]);
        assert_eq!(rig.committed(0).await, 3, "nothing of it is open");
        assert_eq!(rig.broker.counters().gone.get(), 0);

        let rig = rig.again();
        let dead = rig.dead().await;
        assert_eq!(dead.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 1, "")]);
        let (meta, _) = dead[0].parts().unwrap();
        assert_eq!((meta.tag(), meta.keys().collect::<Vec<_>>()), (Some("tag"), vec!["k"]));
        let letter = attributes::dead_letter(&dead[0].attributes).unwrap().unwrap();
        assert_eq!(letter.reason, DeadReason::Undecodable);
        assert_eq!((letter.queue_offset.get(), letter.deliveries, letter.messages), (1, 0, 1));
        assert_eq!((letter.id.epoch, letter.id.offset), (lost.epoch, lost.offset));
        let request = redrive_request();
        let redriven = rig.broker.redrive(&request).await.unwrap().dead_letters;
        assert_eq!(redriven[0].fault, Some(RedriveFault::NoBody));
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_dead_letter_that_says_where_it_was_and_of_a_run_there_is_one() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "first").await;
    assert_eq!(rig.receive(1).await.len(), 1);
    let run = [("run", None, None); 3];
    rig.store(Some(QueueId::ZERO), &run, None).await;
    rig.send_to(0, "behind").await;
    rig.pass(MINUTE);
    let Rig { broker, clock, disk } = rig;
    broker.close().unwrap();
    drop(broker);
    let log = disk.paths().into_iter().find(|path| path.ends_with("00000000000000000000.log"));
    let log = log.unwrap();
    let bytes = disk.durable_bytes(&log).unwrap();
    for body in [b"first".as_slice(), b"runrunrun"] {
        let at = bytes.windows(body.len()).position(|bytes| bytes == body).unwrap();
        disk.corrupt(&log, at as u64, 1).unwrap();
    }
    let rig = Rig { broker: open(&disk, &clock), clock, disk };
    assert_eq!(rig.seen(9).await, [of(0, 4, 1, "behind")]);
    assert_eq!(rig.committed(0).await, 4);
    let dead = rig.dead().await;
    let letters: Vec<_> = dead
        .iter()
        .map(|one| {
            assert_eq!(seen(one).3, "");
            let letter = attributes::dead_letter(&one.attributes).unwrap().unwrap();
            assert_eq!(letter.reason, DeadReason::Undecodable);
            assert_eq!((letter.topic_name, letter.id.offset.get()), ("t", 0));
            (letter.queue_offset.get(), letter.deliveries, letter.messages)
        })
        .collect();
    // The first one was delivered before.
    assert_eq!(BTreeSet::from_iter(letters), BTreeSet::from([(0, 1, 1), (1, 0, 3)]));
    assert_eq!(rig.broker.counters().gone.get(), 2, "those that the run's dead letter stands for");
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_message_that_is_given_up_is_a_dead_letter_whoever_asks_twice() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "a").await;
    let handle = rig.receive(1).await.remove(0).handle;
    let forward = |handle: String| {
        let broker = Arc::clone(&rig.broker);
        async move { broker.forward_to_dead_letters("g", "t", (&handle, 0), soon()).await }
    };
    let bad = forward("nonsense".to_owned()).await;
    assert!(matches!(bad, Err(BrokerError::BadReceipt)), "{bad:?}");
    forward(handle.clone()).await.unwrap();
    forward(handle.clone()).await.unwrap();
    assert_eq!(rig.committed(0).await, 1);
    assert_eq!(rig.broker.counters().dead_letters.get(), 1);
    let dead = rig.broker.describe_topic("%DLQ%g", 0, 9, soon()).await.unwrap();
    assert_eq!(dead.queues[0].range.max.get(), 1);
    // Nobody else stores there.
    let mut batch = BatchBuilder::new();
    batch.push(&NewMeta::default(), b"x");
    let batch = batch.finish();
    let send = SendRequest { topic: "%DLQ%g", queue: None, batch, session: None, deadline: soon() };
    let sent = rig.broker.send(send).await;
    assert!(matches!(sent, Err(BrokerError::BadName(_))), "{sent:?}");
    let one = NewMessage { meta: NewMeta::default(), body: b"x" };
    let several = SendMessages { topic: "%DLQ%g", messages: &[one], deadline: soon() };
    let sent = rig.broker.send_messages(&several).await;
    assert!(matches!(sent, Err(BrokerError::Forbidden { .. })), "{sent:?}");
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_fails_among_a_groups_own_dead_letters_stays_there_and_keeps_nothing_back() {
    for settings in [ordered(), GroupSettings { ordered: false, ..ordered() }] {
        let rig = Rig::new(1, settings).await;
        rig.send_to(0, "a").await;
        rig.send_to(0, "b").await;
        for handle in rig.bodies(2).await.1 {
            rig.give_up(&handle).await;
        }
        let topic = rig.dead_letters().await;
        let month = Duration::from_secs(30 * 24 * 60 * 60).as_millis() as u64;
        assert_eq!(topic.settings().retention.time_ms, Some(month));
        let filter = all();
        let dead = ReceiveRequest { topic: "%DLQ%g", ..rig.request(&filter, 9) };
        let mut handles = Vec::new();
        for delivery in 1..=5 {
            let messages = rig.receive_all(dead).await;
            let both = [of(0, 0, delivery, "a"), of(0, 1, delivery, "b")];
            assert_eq!(messages.iter().map(seen).collect::<Vec<_>>(), both);
            if delivery == 4 {
                let given_up = messages[0].handle.as_str();
                let again =
                    rig.broker.forward_to_dead_letters("g", "%DLQ%g", (given_up, 0), soon());
                again.await.unwrap();
            }
            handles = messages.into_iter().map(|message| message.handle).collect();
            rig.pass(MINUTE);
            assert!(rig.broker.tend_due().await);
        }
        let handles = [handles[0].as_str(), handles[1].as_str()];
        assert_eq!(rig.broker.ack("g", "%DLQ%g", &handles, soon()).await.unwrap(), [true; 2]);
        assert!(rig.receive_all(dead).await.is_empty());
        assert_eq!(rig.broker.counters().dead_letters.get(), 2);
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn a_full_queue_goes_on_when_its_messages_became_dead_letters() {
    use crate::broker::state::leases::MAX_OPEN_IN_QUEUE;
    let once = GroupSettings { max_attempts: Some(1), ..GroupSettings::default() };
    let rig = Rig::new(VERY_MANY, once).await;
    let messages = vec![("x", None, None); 1_000];
    for _ in 0..MAX_OPEN_IN_QUEUE / 1_000 {
        rig.store(Some(QueueId::ZERO), &messages, None).await;
    }
    rig.send_to(0, "last").await;
    let mut got = 0;
    while got < MAX_OPEN_IN_QUEUE {
        got += rig.receive(1_000).await.len();
    }
    assert_eq!(rig.seen(9).await, []);
    rig.pass(MINUTE);
    assert!(rig.broker.tend_due().await);
    let last = of(0, u64::try_from(MAX_OPEN_IN_QUEUE).unwrap(), 1, "last");
    assert_eq!(rig.seen(9).await, [last]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn dead_letters_go_back_once_and_those_that_cannot_stay() {
    let rig = Rig::new(2, GroupSettings::default()).await;
    let other = TopicSettings::open(1, FlushMode::Async, TopicType::Mixed);
    rig.broker.create_topic("gone", other, soon()).await.unwrap();
    for (topic, bodies) in [("t", ["a", "b", "c"].as_slice()), ("gone", &["d"])] {
        for body in bodies {
            let mut batch = BatchBuilder::new();
            let meta = NewMeta { tag: Some("x"), keys: vec!["k"], ..NewMeta::default() };
            batch.push(&meta, body.as_bytes());
            let (queue, batch) = (Some(QueueId::ZERO), batch.finish());
            let request = SendRequest { topic, queue, batch, session: None, deadline: soon() };
            rig.broker.send(request).await.unwrap();
        }
        let filter = all();
        let receive = ReceiveRequest { topic, ..rig.request(&filter, 9) };
        for message in rig.receive_all(receive).await {
            let forwarded =
                rig.broker.forward_to_dead_letters("g", topic, (&message.handle, 3), soon());
            forwarded.await.unwrap();
        }
    }
    rig.broker.delete_topic("gone", soon()).await.unwrap();

    let redrive = async |rig: &Rig, ids: &[MessageId], max, run| {
        let request = RedriveRequest { ids, max, run, ..redrive_request() };
        rig.broker.redrive(&request).await.unwrap().dead_letters
    };
    let planned = redrive(&rig, &[], 9, Run::Dry).await;
    let faults = |all: &[Redriven]| all.iter().map(|one| one.fault).collect::<Vec<_>>();
    assert_eq!(faults(&planned), [None, None, None, Some(RedriveFault::NoTopic)]);
    assert_eq!(rig.seen(9).await, [], "nothing went");
    // One that was chosen, then the first of those that are left.
    let second = planned[1].id;
    let chosen = redrive(&rig, &[second], 9, Run::Real).await;
    assert_eq!(chosen, [Redriven { id: second, topic: "t".into(), fault: None }]);
    assert_eq!(redrive(&rig, &[second], 9, Run::Real).await, [], "it is no dead letter any more");
    let first = redrive(&rig, &[], 1, Run::Real).await;
    assert_eq!(first, [Redriven { id: planned[0].id, topic: "t".into(), fault: None }]);
    let rig = rig.again();
    let rest = redrive(&rig, &[], 9, Run::Real).await;
    assert_eq!(faults(&rest), [None, Some(RedriveFault::NoTopic)]);
    let received = rig.receive(9).await;
    let mut back: Vec<_> = received.iter().map(seen).collect();
    back.sort();
    assert_eq!(back, [of(0, 3, 1, "b"), of(0, 4, 1, "a"), of(0, 5, 1, "c")]);
    let batch = Batch::parse(&received[0].batch).unwrap();
    let meta = batch.metas().next().unwrap().unwrap();
    assert_eq!((meta.tag(), meta.keys().collect::<Vec<_>>()), (Some("x"), vec!["k"]));
    assert_eq!(received[0].dead_letter_of(), None);
    let history = dead_letter(&received[0].attributes).unwrap();
    assert_eq!((history.reason, history.redriven), (DeadReason::GivenUp, 1));
    assert_eq!((history.is_back, history.id.index, history.told_tries), (true, 0, 3));
    assert_eq!(history.last_client, "somebody");
    let left = redrive(&rig, &[], 9, Run::Real).await;
    assert_eq!(faults(&left), [Some(RedriveFault::NoTopic)], "it stays, and can be tried again");
    assert_eq!(rig.broker.counters().redriven.get(), 1, "since the start");
    let none = RedriveRequest { group: "nobody", max: 1, run: Run::Dry, ..redrive_request() };
    assert!(matches!(rig.broker.redrive(&none).await, Err(BrokerError::UnknownGroup { .. })));
    let many = RedriveRequest { max: MAX_RECEIVE + 1, ..none };
    assert!(matches!(rig.broker.redrive(&many).await, Err(BrokerError::TooLarge { .. })));
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_waits_is_shown_and_delivered_now_or_buried_as_an_operator_says() {
    let settings =
        GroupSettings { retry_delays_ms: vec![60_000, 600_000], ..GroupSettings::default() };
    let rig = Rig::new(1, settings).await;
    for body in ["a", "b", "c", "d"] {
        rig.send_to(0, body).await;
    }
    let waiting = async |rig: &Rig, after: Option<u64>, limit| {
        let after = after.map(|offset| (QueueId::ZERO, QueueOffset::new(offset)));
        let deadline = soon();
        let request = WaitingRequest { group: "g", topic: "t", after, limit, deadline };
        rig.broker.list_waiting(&request).await.unwrap()
    };
    assert_eq!(waiting(&rig, None, 9).await, WaitingPage::default());
    let received = rig.receive(9).await;
    assert_eq!(waiting(&rig, None, 9).await, WaitingPage::default(), "somebody has them");
    for message in &received[..3] {
        rig.hold(&message.handle, Hold::Retry).await.unwrap();
    }
    rig.pass(Duration::from_secs(20));
    let rig = rig.again();
    let page = waiting(&rig, None, 2).await;
    assert_eq!((page.due, page.waiting, page.more), (0, 3, true));
    assert_eq!((page.oldest_ms, page.next_due_in_ms), (Some(20_000), Some(40_000)));
    let expected = WaitingMessage {
        id: Some(received[0].id),
        queue: QueueId::ZERO,
        queue_offset: QueueOffset::ZERO,
        deliveries: 1,
        due_in_ms: 40_000,
        first_delivered: Timestamp::new(1_000_000),
        last_delivered: Timestamp::new(1_000_000),
        last_client: "somebody".into(),
    };
    assert_eq!((page.messages.len(), &page.messages[0]), (2, &expected));
    let rest = waiting(&rig, Some(1), 2).await;
    assert_eq!((rest.messages.len(), rest.messages[0].id), (1, Some(received[2].id)));
    assert!(!rest.more);

    let settle = async |rig: &Rig, ids: &[MessageId], max, action| {
        let (group, topic, deadline) = ("g", "t", soon());
        let request = SettleRequest { group, topic, ids, max, action, deadline };
        rig.broker.settle_waiting(&request).await.unwrap()
    };
    let ids: Vec<_> = received.iter().map(|one| one.id).collect();
    let of = |at: u64, fault| SettledMessage {
        id: Some(ids[at as usize]),
        place: Some((QueueId::ZERO, QueueOffset::new(at))),
        fault,
    };
    let wanted = [ids[3], ids[1], ids[3], ids[1]];
    let retry = settle(&rig, &wanted, 1, WaitingAction::Retry).await;
    assert_eq!(retry, [of(3, Some(SettleFault::NotWaiting)), of(1, None)], "each once, in order");
    let again = settle(&rig, &[ids[1], ids[3]], 1, WaitingAction::Retry).await;
    assert_eq!(again, [of(1, None), of(3, Some(SettleFault::NotWaiting))]);
    let page = waiting(&rig, None, 9).await;
    assert_eq!((page.due, page.waiting, page.messages[1].due_in_ms), (1, 2, 0));
    assert_eq!(rig.seen(9).await, [super::tests::of(0, 1, 2, "b")]);
    let buried = settle(&rig, &[ids[0]], 9, WaitingAction::DeadLetter).await;
    assert_eq!(buried, [of(0, None)]);
    let again = settle(&rig, &[ids[0]], 9, WaitingAction::DeadLetter).await;
    assert_eq!(again, [of(0, Some(SettleFault::NotWaiting))]);
    assert_eq!(settle(&rig, &[], 9, WaitingAction::Retry).await, [of(2, None)]);
    assert_eq!(settle(&rig, &[], 9, WaitingAction::Retry).await, [], "it can be delivered already");
    assert_eq!(settle(&rig, &[], 9, WaitingAction::DeadLetter).await, [of(2, None)]);
    let letters = rig.dead().await;
    let reasons: Vec<_> = letters
        .iter()
        .map(|one| (seen(one).3, dead_letter(&one.attributes).unwrap().reason))
        .collect();
    let expected = [("a".to_owned(), DeadReason::Operator), ("c".to_owned(), DeadReason::Operator)];
    assert_eq!(reasons, expected);
    // The group's own dead letters are none twice.
    let filter = all();
    let own = ReceiveRequest { topic: "%DLQ%g", ..rig.request(&filter, 1) };
    let own = rig.broker.receive_messages(own).await.unwrap().messages.remove(0);
    rig.pass(MINUTE);
    let request = SettleRequest {
        group: "g",
        topic: "%DLQ%g",
        ids: &[own.id],
        max: 1,
        action: WaitingAction::DeadLetter,
        deadline: soon(),
    };
    let refused = rig.broker.settle_waiting(&request).await.unwrap();
    assert_eq!(refused[0].fault, Some(SettleFault::IsDeadLetter));
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn pauses_of_messages_that_failed_together_end_apart_within_the_jitter_of_the_group() {
    for (retry_jitter, differ) in [(0, 1), (50, 2)] {
        let settings = GroupSettings {
            retry_delays_ms: vec![10_000],
            retry_jitter,
            ..GroupSettings::default()
        };
        let rig = Rig::new(1, settings).await;
        rig.store(Some(QueueId::ZERO), &vec![("x", None, None); 20], None).await;
        for message in rig.receive(20).await {
            rig.hold(&message.handle, Hold::Retry).await.unwrap();
        }
        let (group, topic, deadline) = ("g", "t", soon());
        let request = WaitingRequest { group, topic, after: None, limit: 20, deadline };
        let page = rig.broker.list_waiting(&request).await.unwrap();
        let pauses: BTreeSet<_> = page.messages.iter().map(|one| one.due_in_ms).collect();
        assert!(pauses.len() >= differ, "{pauses:?}");
        let most = 10_000 + 100 * u64::from(retry_jitter);
        assert!(pauses.iter().all(|pause| (10_000..=most).contains(pause)), "{pauses:?}");
        let change = GroupChange { retry_jitter: Some(101), ..GroupChange::default() };
        let refused = rig.broker.update_group("g", &change, soon()).await;
        assert!(matches!(refused, Err(BrokerError::TooLarge { limit: 100, .. })), "{refused:?}");
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn what_goes_back_is_for_its_group_unless_all_are_to_get_it_and_keeps_its_history() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.broker.create_group("other", &GroupSettings::default(), soon()).await.unwrap();
    let filter = all();
    let others = ReceiveRequest { group: "other", ..rig.request(&filter, 9) };
    rig.send_to(0, "a").await;
    assert_eq!(rig.receive_all(others).await.len(), 1);
    for (for_all, redriven) in [(false, 1), (true, 2)] {
        let message = rig.receive(1).await.remove(0);
        rig.give_up(&message.handle).await;
        let redrive = RedriveRequest { for_all, ..redrive_request() };
        assert_eq!(rig.broker.redrive(&redrive).await.unwrap().dead_letters.len(), 1);
        let received = rig.receive_all(others).await;
        assert_eq!(received.len(), usize::from(for_all), "{for_all}");
        let message = rig.receive(1).await.remove(0);
        assert_eq!(seen(&message), of(0, redriven.into(), 1, "a"));
        let history = dead_letter(&message.attributes).unwrap();
        assert_eq!((history.redriven, history.is_back), (redriven, true));
        assert_eq!(rig.hold(&message.handle, Hold::Undo).await.map(|_| ()), Ok(()));
    }
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_cannot_be_decompressed_is_tried_once_for_all_of_its_messages() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_batch(not_decompressible(&["tag"; 100])).await;
    rig.send_to(0, "behind").await;
    assert_eq!(rig.seen(200).await, [of(0, 100, 1, "behind")]);
    assert_eq!(rig.broker.counters().unpacked.get(), 1);
    assert_eq!(rig.broker.counters().dead_letters.get(), 100);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_record_is_decompressed_once_however_few_of_its_messages_are_taken_at_a_time() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let bodies: Vec<_> = (0..50).map(|n| format!("{n:0>1000}")).collect();
    let messages: Vec<_> = bodies.iter().map(|body| (body.as_str(), None, None)).collect();
    rig.store(Some(QueueId::ZERO), &messages, Some(Codec::Lz4)).await;
    for delivery in [1, 2] {
        let mut seen = Vec::new();
        for _ in 0..50 {
            seen.extend(rig.seen(1).await);
        }
        seen.sort();
        let all = bodies.iter().zip(0..).map(|(body, n)| of(0, n, delivery, body));
        assert_eq!(seen, all.collect::<Vec<_>>());
        rig.pass(MINUTE);
    }
    assert_eq!(rig.broker.counters().unpacked.get(), 1);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_went_back_to_one_group_costs_the_others_few_records() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.broker.create_group("other", &GroupSettings::default(), soon()).await.unwrap();
    let filter = all();
    // With a time of its own each: threads that work let the paused clock go on.
    let others = |most| ReceiveRequest { group: "other", ..rig.request(&filter, most) };
    assert!(rig.receive_all(others(1)).await.is_empty());
    for n in 0..200 {
        rig.send_to(0, &n.to_string()).await;
        let message = rig.receive(1).await.remove(0);
        rig.give_up(&message.handle).await;
    }
    assert_eq!(rig.receive_all(others(200)).await.len(), 200);
    let redrive = RedriveRequest { max: 200, ..redrive_request() };
    assert_eq!(rig.broker.redrive(&redrive).await.unwrap().dead_letters.len(), 200);
    let topic = rig.broker.state.topics.get("t").unwrap();
    rig.broker.store.caught_up(topic.handle()).await;
    let before = rig.broker.store.watermarks().appended;
    assert!(rig.receive_all(others(1)).await.is_empty());
    let len = rig.broker.store.watermarks().appended.since(before);
    assert!(len < 2_000, "{len} bytes of state records");
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_dead_letters_those_of_a_reason_a_key_and_a_time_go_back_and_no_more_in_a_second_than_may()
 {
    let rig = Rig::new(1, GroupSettings::default()).await;
    for (body, key) in [("a", "k"), ("b", "k"), ("c", "l"), ("d", "k"), ("e", "k")] {
        let mut batch = BatchBuilder::new();
        batch.push(&NewMeta { keys: vec![key], ..NewMeta::default() }, body.as_bytes());
        rig.send_batch(batch.finish()).await;
        // Each dies at another time, and one of them by another hand.
        rig.pass(MINUTE);
        let message = rig.receive(1).await.remove(0);
        if body == "b" {
            rig.hold(&message.handle, Hold::RetryAfter(MINUTE)).await.unwrap();
            let request = SettleRequest {
                group: "g",
                topic: "t",
                ids: &[message.id],
                max: 1,
                action: WaitingAction::DeadLetter,
                deadline: soon(),
            };
            let buried = rig.broker.settle_waiting(&request).await.unwrap();
            assert_eq!(buried[0].fault, None);
        } else {
            rig.give_up(&message.handle).await;
        }
    }
    rig.dead_letters().await;
    let redrive = async |only: OnlySuch<'_>, max, per_second, run| {
        let (per_second, deadline) =
            (NonZeroU32::new(per_second), Instant::now() + Duration::from_secs(15));
        let request = RedriveRequest { only, max, per_second, run, deadline, ..redrive_request() };
        rig.broker.redrive(&request).await.unwrap()
    };
    let all = redrive(OnlySuch::default(), 9, 0, Run::Dry).await;
    assert!(!all.more);
    let ids: Vec<_> = all.dead_letters.iter().map(|one| one.id).collect();
    let planned = async |only| {
        let page = redrive(only, 9, 0, Run::Dry).await;
        page.dead_letters
            .iter()
            .map(|one| ids.iter().position(|id| *id == one.id).unwrap())
            .collect::<Vec<_>>()
    };
    let read = rig.dead().await;
    let died: Vec<_> =
        ids.iter().map(|id| read.iter().find(|one| one.id == *id).unwrap().store_time).collect();
    assert!(died.is_sorted_by(|one, next| one < next), "{died:?}");
    let any = OnlySuch::default();
    assert_eq!(planned(OnlySuch { reason: Some(DeadReason::Operator), ..any }).await, [1]);
    assert_eq!(planned(OnlySuch { reason: Some(DeadReason::GivenUp), ..any }).await, [0, 2, 3, 4]);
    assert_eq!(planned(OnlySuch { key: Some("l"), ..any }).await, [2]);
    let (since, until) = (Some(died[1]), Some(died[3]));
    assert_eq!(planned(OnlySuch { since, ..any }).await, [1, 2, 3, 4]);
    assert_eq!(planned(OnlySuch { until, ..any }).await, [0, 1, 2, 3]);
    let key = Some("k");
    let both = OnlySuch { reason: Some(DeadReason::GivenUp), key, since, until };
    assert_eq!(planned(both).await, [3]);
    // One in a second. The clock may jump while a thread of the store is waited for, so this is no less, not just so.
    let start = Instant::now();
    let page = redrive(OnlySuch { key, ..any }, 3, 1, Run::Real).await;
    assert_eq!((page.dead_letters.len(), page.more), (3, true));
    assert!(start.elapsed() >= Duration::from_secs(3));
    let start = Instant::now();
    let page = redrive(any, 9, 1, Run::Real).await;
    assert_eq!((page.dead_letters.len(), page.more), (2, false));
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(redrive(any, 9, 1, Run::Real).await, RedrivePage::default());
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_redrive_at_a_limited_rate_ends_before_its_callers_time_and_the_next_one_goes_on() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    for body in 0..20 {
        rig.send_to(0, &body.to_string()).await;
        let message = rig.receive(1).await.remove(0);
        rig.give_up(&message.handle).await;
    }
    rig.dead_letters().await;
    let (mut went, start) = (Vec::new(), Instant::now());
    loop {
        let request = RedriveRequest {
            max: 100,
            per_second: NonZeroU32::new(1),
            deadline: Instant::now() + Duration::from_secs(15),
            ..redrive_request()
        };
        let page = rig.broker.redrive(&request).await.unwrap();
        assert!(page.dead_letters.iter().all(|one| one.fault.is_none()));
        went.push(page.dead_letters.len());
        if !page.more {
            break;
        }
    }
    // Twelve seconds of fifteen, as three are the disk's.
    assert_eq!(went, [12, 8]);
    assert!(start.elapsed() >= Duration::from_secs(20));
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_held_a_redrive_up_is_not_made_up_for_by_going_faster_than_may_be() {
    const LETTERS: u32 = 6;
    let rig = Rig::new(1, GroupSettings::default()).await;
    for body in 0..LETTERS {
        rig.send_to(0, &body.to_string()).await;
        let message = rig.receive(1).await.remove(0);
        rig.give_up(&message.handle).await;
    }
    rig.dead_letters().await;
    let request =
        RedriveRequest { max: LETTERS, per_second: NonZeroU32::new(1), ..redrive_request() };
    // It has no room to look at them until all of them might have gone.
    let others = rig.broker.replies.try_take(u64::MAX).unwrap();
    let (page, held_until) = tokio::join!(rig.broker.redrive(&request), async {
        tokio::time::sleep(2 * Duration::from_secs(LETTERS.into())).await;
        drop(others);
        Instant::now()
    });
    assert_eq!(page.unwrap().dead_letters.len(), LETTERS as usize);
    assert!(held_until.elapsed() >= Duration::from_secs(u64::from(LETTERS) - 1));
    rig.broker.close().unwrap();
}

/// The disk is short of space from now on, or not any more.
pub(super) async fn set_short(rig: &Rig, is_short: bool) {
    rig.disk.set_capacity(is_short.then_some(1));
    rig.pass(Duration::from_secs(2));
    while rig.broker.status().store.disk_is_short != is_short {
        rig.broker.store.clean_soon();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The same after a stop and a start between which a byte of the log was changed, or changed back.
pub(super) fn damaged(rig: Rig, body: &[u8], at: &mut Option<u64>) -> Rig {
    let Rig { broker, clock, disk } = rig;
    broker.close().unwrap();
    drop(broker);
    let log = disk.paths().into_iter().find(|path| path.ends_with("00000000000000000000.log"));
    let log = log.unwrap();
    let bytes = disk.durable_bytes(&log).unwrap();
    let found = || bytes.windows(body.len()).position(|bytes| bytes == body).unwrap() as u64;
    disk.corrupt(&log, *at.get_or_insert_with(found), 1).unwrap();
    Rig { broker: open(&disk, &clock), clock, disk }
}

#[tokio::test]
async fn what_nobody_had_and_cannot_be_a_dead_letter_yet_loses_no_delivery_by_that() {
    let settings = GroupSettings {
        other_filters: OtherFilters::Roll,
        max_attempts: Some(1),
        retry_delays_ms: vec![10_000],
        ..GroupSettings::default()
    };
    let rig = Rig::new(1, settings).await;
    let (old, new) = (tags("a"), tags("b"));
    for filter in [&old, &new] {
        assert!(rig.receive_all(rig.request(filter, 1)).await.is_empty());
    }
    rig.store(Some(QueueId::ZERO), &[("kept for the old one", Some("a"), None)], None).await;
    assert!(rig.receive_all(rig.request(&new, 1)).await.is_empty());
    let mut at = None;
    let rig = damaged(rig, b"kept for", &mut at);
    set_short(&rig, true).await;
    assert!(rig.broker.receive_messages(rig.request(&old, 1)).await.unwrap().messages.is_empty());
    assert_eq!(rig.broker.counters().dead_letters.get(), 0);
    set_short(&rig, false).await;
    let rig = damaged(rig, b"", &mut at);
    rig.pass(MINUTE);
    assert!(rig.broker.tend_due().await);
    assert_eq!(rig.broker.counters().dead_letters.get(), 0);
    let got: Vec<_> = rig.receive_all(rig.request(&old, 1)).await.iter().map(seen).collect();
    assert_eq!(got, [of(0, 0, 1, "kept for the old one")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_run_that_cannot_be_read_and_cannot_be_a_dead_letter_yet_loses_none_of_its_messages() {
    for is_sound_later in [true, false] {
        let settings = GroupSettings { retry_delays_ms: vec![10_000], ..GroupSettings::default() };
        let rig = Rig::new(1, settings).await;
        rig.store(Some(QueueId::ZERO), &[("run", None, None); 3], None).await;
        rig.send_to(0, "behind").await;
        let mut at = None;
        let rig = damaged(rig, b"runrunrun", &mut at);
        set_short(&rig, true).await;
        assert_eq!(rig.seen(9).await, [of(0, 3, 1, "behind")]);
        assert_eq!(rig.committed(0).await, 0);
        set_short(&rig, false).await;
        let rig = if is_sound_later { damaged(rig, b"", &mut at) } else { rig };
        rig.pass(Duration::from_secs(40));
        let wanted: Vec<_> = (0..3).map(|offset| of(0, offset, 1, "run")).collect();
        assert_eq!(rig.seen(9).await, if is_sound_later { wanted } else { Vec::new() });
        if is_sound_later {
            assert_eq!(rig.broker.counters().dead_letters.get(), 0);
        } else {
            for one in rig.dead().await {
                let letter = attributes::dead_letter(&one.attributes).unwrap().unwrap();
                assert_eq!((letter.messages, letter.last_client), (1, ""));
                let delivered = [letter.first_delivered.get(), letter.last_delivered.get()];
                assert_eq!(delivered, [0, 0], "nobody had it");
            }
            assert_eq!(rig.broker.counters().dead_letters.get(), 3);
        }
        assert_eq!(rig.broker.counters().gone.get(), 0);
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn a_dead_letter_is_chosen_behind_more_others_than_a_member_may_have_open() {
    use crate::broker::state::leases::MAX_OPEN_IN_QUEUE;
    let rig = Rig::new(1, GroupSettings::default()).await;
    let messages = vec![("x", None, None); 1_000];
    for _ in 0..MAX_OPEN_IN_QUEUE / 1_000 {
        rig.store(Some(QueueId::ZERO), &messages, None).await;
        let received = rig.receive(1_000).await;
        let entry = |one: &ReceivedMessage| (one.handle.clone(), Hold::RetryAfter(MINUTE));
        let entries: Vec<_> = received.iter().map(entry).collect();
        let entries = entries.iter().map(|(handle, hold)| ExtendEntry { handle, hold: *hold });
        let held = rig.broker.extend("g", "t", &entries.collect::<Vec<_>>(), soon()).await.unwrap();
        assert!(held.len() == 1_000 && held.iter().all(Result::is_ok));
        let bury = SettleRequest {
            group: "g",
            topic: "t",
            ids: &[],
            max: 1_000,
            action: WaitingAction::DeadLetter,
            deadline: soon(),
        };
        assert_eq!(rig.broker.settle_waiting(&bury).await.unwrap().len(), 1_000);
    }
    rig.send_to(0, "the last one").await;
    let last = rig.receive(1).await.remove(0).handle;
    rig.give_up(&last).await;
    rig.dead_letters().await;
    let only = OnlySuch { reason: Some(DeadReason::GivenUp), ..OnlySuch::default() };
    let redrive = RedriveRequest { only, ..redrive_request() };
    let page = rig.broker.redrive(&redrive).await.unwrap();
    assert_eq!((page.dead_letters.len(), page.more), (1, false));
    assert_eq!(page.dead_letters[0].fault, None);
    // The others are given back: who reads dead letters gets them.
    let filter = all();
    let dead = ReceiveRequest { topic: "%DLQ%g", ..rig.request(&filter, 10) };
    let read = rig.broker.receive_messages(dead).await.unwrap().messages;
    assert_eq!((read.len(), read[0].queue_offset.get(), read[0].delivery), (10, 0, 1));
    rig.broker.close().unwrap();
}
