//! Bounds, resets, clocks and starts.

use super::*;
use crate::message::LeaseId;

#[tokio::test]
async fn a_group_begins_where_it_says_in_all_queues_at_once() {
    let latest =
        GroupSettings { initial_position: InitialPosition::Latest, ..GroupSettings::default() };
    let rig = Rig::new(2, latest).await;
    rig.send_to(0, "before").await;
    assert_eq!(rig.seen(9).await, []);
    rig.send_to(0, "a").await;
    rig.send_to(1, "b").await;
    let rig = rig.again();
    assert_eq!(rig.seen(9).await, [of(0, 1, 1, "a"), of(1, 0, 1, "b")]);
    // A queue that comes later begins at 0.
    let more = crate::broker::TopicChanges { queues: Some(3), ..Default::default() };
    rig.broker.update_topic("t", &more, crate::message::Force::No, soon()).await.unwrap();
    rig.send_to(2, "c").await;
    assert_eq!(rig.seen(9).await, [of(2, 0, 1, "c")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn how_long_a_group_is_behind_is_the_age_of_its_first_open_message() {
    let rig = Rig::new(2, GroupSettings::default()).await;
    let lag = async |rig: &Rig| {
        let rows = rig.broker.progress("g", "t", 0, 9, soon()).await.unwrap();
        rows.iter().map(|row| row.lag_ms).collect::<Vec<_>>()
    };
    assert_eq!(lag(&rig).await, [None, None]);
    rig.send_to(1, "a").await;
    rig.pass(MINUTE);
    rig.send_to(1, "b").await;
    assert_eq!(lag(&rig).await, [None, Some(60_000)]);
    let received = rig.receive_all(rig.request(&all(), 2)).await;
    assert_eq!(rig.ack(&[&received[1].handle]).await, [true]);
    assert_eq!(lag(&rig).await, [None, Some(60_000)], "the first one is leased, and not finished");
    assert_eq!(rig.ack(&[&received[0].handle]).await, [true]);
    assert_eq!(lag(&rig).await, [None, None]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_reset_ends_leases_and_a_commit_must_not() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    for body in ["a", "b", "c"] {
        rig.send_to(0, body).await;
    }
    let first = rig.receive(2).await;
    assert_eq!(rig.ack(&[&first[0].handle]).await, [true]);
    let commit = crate::broker::CommitOffset {
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::new(3),
        expected: Expected::Any,
        known_queues: None,
    };
    let refused = rig.broker.commit_offsets("g", &[commit], Caller::default(), soon()).await;
    assert!(matches!(refused, Err(BrokerError::OpenMessages { .. })), "{refused:?}");
    let reset = ResetRequest {
        group: "g",
        topic: "t",
        queue: None,
        to: Position::Earliest,
        caller: Caller::default(),
        run: Run::Real,
    };
    rig.broker.reset_offsets(reset, soon()).await.unwrap();
    let handles: Vec<_> = first.iter().map(|message| message.handle.as_str()).collect();
    assert_eq!(rig.ack(&handles).await, [false, false]);
    let rig = rig.again();
    assert_eq!(rig.ack(&handles).await, [false, false], "nor after a restart");
    assert_eq!(rig.seen(9).await, [of(0, 0, 1, "a"), of(0, 1, 1, "b"), of(0, 2, 1, "c")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_is_purged_is_not_delivered_again() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    for body in ["a", "b", "c"] {
        rig.send_to(0, body).await;
    }
    let first = rig.receive(2).await;
    let purge =
        crate::broker::Purge::Queue { queue: QueueId::ZERO, up_to: Some(QueueOffset::new(1)) };
    rig.broker.purge_topic("t", purge, soon()).await.unwrap();
    rig.pass(MINUTE);
    assert_eq!(rig.seen(9).await, [of(0, 1, 2, "b"), of(0, 2, 1, "c")]);
    assert_eq!(rig.committed(0).await, 1);
    assert_eq!(rig.ack(&[&first[0].handle]).await, [true], "it was its only lease");
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn turning_the_clock_neither_ends_leases_nor_keeps_them() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "a").await;
    assert_eq!(rig.receive(1).await.len(), 1);
    rig.clock.set_wall(Timestamp::new(900_000_000));
    assert_eq!(rig.seen(1).await, []);
    rig.clock.set_wall(Timestamp::new(1));
    rig.pass(MINUTE);
    assert_eq!(rig.seen(1).await, [of(0, 0, 2, "a")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_clock_that_was_turned_back_keeps_no_lease_over_a_restart() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "a").await;
    rig.pass(10 * 60 * MINUTE);
    rig.clock.set_wall(Timestamp::new(1_000_000));
    assert_eq!(rig.seen(1).await, [of(0, 0, 1, "a")]);
    let rig = rig.again();
    assert_eq!(rig.seen(1).await, []);
    rig.pass(MINUTE);
    assert_eq!(rig.seen(1).await, [of(0, 0, 2, "a")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_receive_of_nothing_and_of_too_much_is_refused() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let filter = all();
    let none = rig.broker.receive_messages(rig.request(&filter, 0)).await;
    let fault = RequestFault::NoMessages;
    assert!(matches!(none, Err(BrokerError::BadRequest { fault: f }) if f == fault), "{none:?}");
    for request in [
        rig.request(&filter, MAX_RECEIVE + 1),
        ReceiveRequest { invisible: MAX_INVISIBLE + MINUTE, ..rig.request(&filter, 1) },
        ReceiveRequest { wait: MAX_WAIT + MINUTE, ..rig.request(&filter, 1) },
        ReceiveRequest { max_bytes: MAX_BYTES + 1, ..rig.request(&filter, 1) },
    ] {
        let refused = rig.broker.receive_messages(request).await;
        assert!(matches!(refused, Err(BrokerError::TooLarge { .. })), "{refused:?}");
    }
    let unknown = ReceiveRequest { group: "nobody", ..rig.request(&filter, 1) };
    let refused = rig.broker.receive_messages(unknown).await;
    assert!(matches!(refused, Err(BrokerError::UnknownGroup { .. })), "{refused:?}");
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_message_that_cannot_be_read_now_does_not_keep_those_behind_it_from_being_delivered() {
    let ordered = GroupSettings { max_attempts: None, ..ordered() };
    for settings in [GroupSettings::default(), ordered] {
        let rig = Rig::new(1, settings).await;
        rig.send_ordered("a", "1").await;
        rig.send_ordered("b", "2").await;
        rig.send_ordered("a", "3").await;
        assert_eq!(rig.receive(9).await.len(), 3);
        rig.pass(MINUTE);
        // What was read by a start lies on the disk.
        let rig = rig.again();
        rig.pass(Duration::from_secs(10));
        let is_ordered = rig.broker.state.groups.get("g").unwrap().settings().ordered;
        rig.disk.fail(FaultRule {
            operation: Operation::Read,
            path_contains: Some("commitlog".to_owned()),
            nth: 1,
            times: Times::Once,
            error: Fault::Eio,
        });
        let filter = all();
        let received = rig.broker.receive_messages(rig.request(&filter, 9)).await.unwrap();
        let mut got: Vec<_> = received.messages.iter().map(|one| seen(one).3).collect();
        got.sort();
        assert_eq!(got, if is_ordered { vec!["2"] } else { vec!["2", "3"] });
        let rest: Vec<_> = rig.receive(9).await.iter().map(|one| seen(one).3).collect();
        assert_eq!(rest, if is_ordered { vec!["1", "3"] } else { vec!["1"] });
        rig.pass(MINUTE);
        // Nothing else is there: it says why.
        rig.disk.fail(FaultRule {
            operation: Operation::Read,
            path_contains: Some("commitlog".to_owned()),
            nth: 1,
            times: Times::Always,
            error: Fault::Eio,
        });
        let refused = rig.broker.receive_messages(rig.request(&filter, 9)).await;
        assert!(refused.is_err(), "{refused:?}");
        rig.disk.clear_faults();
        assert_eq!(rig.receive(9).await.len(), 3);
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn receipts_of_one_record_from_before_a_power_cut_read_it_once() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.store(Some(QueueId::ZERO), &vec![("x", None, None); 100], None).await;
    let received = rig.receive(100).await;
    let handles: Vec<_> = received.iter().map(|one| one.handle.as_str()).collect();
    assert_eq!(handles.len(), 100);
    let all = CrashChoice { names: NameChoice::All, writes: WriteChoice::All, torn: None };
    let disk = rig.disk.crash_image(&all);
    let broker = open(&disk, &rig.clock);
    let before = disk.calls(Operation::Read);
    assert_eq!(broker.ack("g", "t", &handles, soon()).await.unwrap(), [true; 100]);
    let reads = disk.calls(Operation::Read) - before;
    assert!((1..10).contains(&reads), "{reads}");
    broker.close().unwrap();
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_commit_that_goes_back_lists_its_queue() {
    let rig = Rig::new(VERY_MANY, GroupSettings::default()).await;
    rig.send_to(7, "a").await;
    let handle = rig.receive(1).await.remove(0).handle;
    assert_eq!(rig.ack(&[&handle]).await, [true]);
    assert_eq!(rig.seen(9).await, []);
    let back = CommitOffset {
        topic: "t",
        queue: QueueId::new(7),
        offset: QueueOffset::ZERO,
        expected: Expected::Any,
        known_queues: None,
    };
    rig.broker.commit_offsets("g", &[back], Caller::default(), soon()).await.unwrap();
    assert_eq!(rig.seen(9).await, [of(7, 0, 1, "a")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn as_many_receipts_as_a_request_takes_can_be_repeated_though_all_were_kept_on() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.store(Some(QueueId::ZERO), &vec![("x", None, None); 1_000], None).await;
    let mut kept_on = Vec::new();
    for message in rig.receive(1_000).await {
        kept_on.push(rig.hold(&message.handle, Hold::For(MINUTE)).await.unwrap());
    }
    assert_eq!(kept_on.len(), 1_000);
    let handles: Vec<_> = kept_on.iter().map(String::as_str).collect();
    for _ in 0..2 {
        assert_eq!(rig.ack(&handles).await, [true; 1_000]);
    }
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn after_a_start_one_of_five_places_is_for_what_was_leased_before_it_for_ten_seconds() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    for n in 0..40 {
        rig.send_to(0, &n.to_string()).await;
    }
    let received = rig.receive(20).await;
    assert_eq!(received.len(), 20);
    rig.hold(&received[19].handle, Hold::RetryAfter(Duration::from_secs(1))).await.unwrap();
    rig.pass(MINUTE);
    let rig = rig.again();
    let filter = all();
    let request = rig.request(&filter, 10);
    let mut first = rig.broker.receive_messages(request).await.unwrap().messages;
    first.retain(|one| one.delivery == 2);
    // One that waited for its time is not held back.
    let mut offsets: Vec<_> = first.iter().map(|one| one.queue_offset.get()).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, [0, 1, 19]);
    let mut again = 0;
    for _ in 0..5 {
        let received = rig.broker.receive_messages(request).await.unwrap().messages;
        again += received.iter().filter(|one| one.delivery == 2).count();
    }
    assert_eq!(again, 10);
    rig.pass(Duration::from_secs(10));
    let rest = rig.receive(9).await;
    assert_eq!(rest.len(), 7, "all that is left");
    assert!(rest.iter().all(|one| one.delivery == 2));
    rig.broker.close().unwrap();
}

/// Leases by which clock; whether clients live by the runtime's.
#[tokio::test(start_paused = true)]
async fn what_is_leased_to_a_client_for_as_long_as_it_lives_ends_with_it_and_can_still_be_acked() {
    let rig =
        Rig::new(1, GroupSettings { max_attempts: Some(2), ..GroupSettings::default() }).await;
    for body in ["a", "b", "c"] {
        rig.send_to(0, body).await;
    }
    let known = |rig: &Rig, id: &str| {
        assert!(rig.broker.introduce_client(id, introduction(), None, None));
    };
    let filter = all();
    let hours = 3 * 60 * MINUTE;
    let get = async |rig: &Rig, id| {
        let request = rig.request(&filter, 1);
        let request = ReceiveRequest { client: Some(id), invisible: hours, ..request };
        rig.broker.receive_messages(request).await.unwrap().messages.remove(0)
    };
    known(&rig, "one");
    known(&rig, "two");
    let first = get(&rig, "one").await;
    let second = get(&rig, "two").await;
    let third = get(&rig, "two").await;
    // Who says how long he goes on is not bound to his client any more.
    let third = rig.hold(&third.handle, Hold::For(hours)).await.unwrap();
    rig.pass(2 * 60 * MINUTE);
    assert!(rig.broker.tend_clients());
    assert_eq!(rig.seen(9).await, []);
    assert!(rig.broker.forget_client("two"));
    // As long as after a start, nobody is taken for gone who was never heard of.
    tokio::time::advance(MINUTE + Duration::from_secs(1)).await;
    assert!(rig.broker.client_lives("one").is_some());
    assert!(rig.broker.tend_clients());
    assert_eq!(rig.seen(9).await, [of(0, 1, 2, "b")]);
    assert_eq!(rig.ack(&[&second.handle]).await, [false], "somebody else has it");
    // After a start the leases are still those of the client, which has a minute to come back.
    let rig = rig.again();
    assert!(rig.broker.tend_clients());
    assert_eq!(rig.seen(9).await, []);
    tokio::time::advance(MINUTE + Duration::from_secs(1)).await;
    assert!(rig.broker.tend_clients());
    assert_eq!(rig.ack(&[&first.handle]).await, [true], "until somebody else has it");
    assert_eq!(rig.seen(9).await, []);
    assert_eq!(rig.ack(&[&third]).await, [true]);
    assert!(rig.broker.tend_clients());
    assert_eq!(rig.broker.state.offsets.with_clients(), []);
    rig.broker.close().unwrap();
}

/// However long its client lives: a program that hangs is alive too.
#[tokio::test(start_paused = true)]
async fn what_a_client_has_for_as_long_as_it_lives_ends_with_the_time_that_was_said() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "a").await;
    assert!(rig.broker.introduce_client("one", introduction(), None, None));
    let filter = all();
    let hours = 3 * 60 * MINUTE;
    let request = rig.request(&filter, 1);
    let request = ReceiveRequest { client: Some("one"), invisible: hours, ..request };
    assert_eq!(rig.broker.receive_messages(request).await.unwrap().messages.len(), 1);
    let look = async |rig: &Rig| {
        assert!(rig.broker.client_lives("one").is_some());
        assert!(rig.broker.tend_clients());
        rig.seen(1).await
    };
    rig.pass(hours - Duration::from_millis(1));
    assert_eq!(look(&rig).await, []);
    rig.pass(Duration::from_millis(1));
    assert_eq!(look(&rig).await, [of(0, 0, 2, "a")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn at_the_bound_of_open_messages_fresh_ones_wait_until_some_are_finished() {
    use crate::broker::state::leases::MAX_OPEN_IN_QUEUE;
    let rig = Rig::new(1, GroupSettings::default()).await;
    let messages = vec![("x", None, None); 1_000];
    for _ in 0..11 {
        rig.store(Some(QueueId::ZERO), &messages, None).await;
    }
    let mut first = Vec::new();
    for _ in 0..MAX_OPEN_IN_QUEUE / 1_000 {
        first.extend(rig.receive(1_000).await);
    }
    assert_eq!(first.len(), MAX_OPEN_IN_QUEUE);
    assert_eq!(rig.receive(1_000).await.len(), 0);
    assert_eq!(rig.ack(&[&first[77].handle]).await, [true]);
    assert!(!rig.receive(1).await.is_empty());
    rig.broker.close().unwrap();
}

/// What lies behind 10 000 messages of one message group is not looked for, and is given once fewer are before it.
#[tokio::test]
async fn behind_so_many_messages_of_one_message_group_others_wait_which_is_told_until_they_are_fewer()
 {
    use crate::broker::state::leases::MAX_OPEN_IN_QUEUE;
    const STUCK: usize = MAX_OPEN_IN_QUEUE + 1_000;
    let rig = Rig::new(1, ordered()).await;
    let messages = vec![("stuck", None, Some("a")); 1_000];
    for _ in 0..STUCK / 1_000 {
        rig.store(None, &messages, None).await;
    }
    rig.send_ordered("b", "other").await;
    let mut out = rig.receive(1).await;
    assert_eq!((out.len(), rig.broker.full_queues()), (1, 0));
    assert_eq!(rig.seen(1_000).await, []);
    assert_eq!(rig.broker.full_queues(), 1);
    // A start finds it so, and another group of the topic has bounds of its own.
    let rig = rig.again();
    rig.broker.create_group("h", &ordered(), soon()).await.unwrap();
    let filter = all();
    let others = ReceiveRequest { group: "h", ..rig.request(&filter, 1) };
    assert_eq!(rig.broker.receive_messages(others).await.unwrap().messages.len(), 1);
    assert_eq!(rig.broker.full_queues(), 1);
    let mut finished = 0;
    let behind = loop {
        let handles: Vec<_> = out.iter().map(|one| one.handle.as_str()).collect();
        assert_eq!(rig.ack(&handles).await, vec![true; handles.len()]);
        finished += handles.len();
        out = rig.receive(500).await;
        assert!(!out.is_empty(), "{finished} are finished");
        if let Some(at) = out.iter().position(|one| seen(one).3 == "other") {
            break out.remove(at);
        }
        assert!(finished <= STUCK - MAX_OPEN_IN_QUEUE + 500, "it is near enough");
    };
    assert!(finished > STUCK - MAX_OPEN_IN_QUEUE, "{finished}: it was beyond the bound");
    assert_eq!((behind.queue_offset.get(), behind.delivery), (STUCK as u64, 1));
    assert_eq!(rig.broker.full_queues(), 0);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn queues_at_the_bound_of_open_messages_are_counted_until_they_are_not() {
    use crate::broker::state::leases::MAX_OPEN_IN_QUEUE;
    let rig = Rig::new(2, GroupSettings::default()).await;
    let messages = vec![("x", None, None); 1_000];
    for queue in [0, 1] {
        for _ in 0..MAX_OPEN_IN_QUEUE / 1_000 {
            rig.store(Some(QueueId::new(queue)), &messages, None).await;
        }
    }
    let mut got = Vec::new();
    while got.len() < 2 * MAX_OPEN_IN_QUEUE {
        got.extend(rig.receive(1_000).await);
    }
    assert_eq!(rig.broker.full_queues(), 2);
    assert_eq!(rig.ack(&[&got[0].handle]).await, [true]);
    assert_eq!(rig.broker.full_queues(), 1);
    let rig = rig.again();
    assert_eq!(rig.broker.full_queues(), 1);
    let full = 1 - got[0].queue.get();
    let (caller, run) = (Caller::default(), Run::Real);
    let (group, topic, queue, to) = ("g", "t", Some(QueueId::new(full)), Position::Earliest);
    let reset = ResetRequest { group, topic, queue, to, caller, run };
    rig.broker.reset_offsets(reset, soon()).await.unwrap();
    assert_eq!(rig.broker.full_queues(), 0);
    let mut again = 0;
    while again < MAX_OPEN_IN_QUEUE {
        again += rig.receive(1_000).await.len();
    }
    assert_eq!(rig.broker.full_queues(), 1);
    rig.broker.delete_group("g", soon()).await.unwrap();
    assert_eq!(rig.broker.full_queues(), 0);
    rig.broker.close().unwrap();
}

/// Every wait is ended by a message, so a wake-up that is lost is an answer without one.
#[tokio::test]
async fn at_the_bound_of_all_open_messages_retries_and_acks_go_on_and_nobody_takes_the_rest_alone()
{
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.broker.create_group("h", &GroupSettings::default(), soon()).await.unwrap();
    for body in ["a", "b", "c", "d", "e"] {
        rig.send_to(0, body).await;
    }
    let filter = all();
    let request = rig.request(&filter, 9);
    let other = ReceiveRequest { group: "h", max_messages: 2, ..request };
    assert_eq!(rig.receive(2).await.len(), 2);
    rig.broker.state.offsets.pretend_open(Offsets::MAX_OPEN);
    for request in [request, other] {
        let refused = rig.broker.receive_messages(request).await;
        assert!(matches!(refused, Err(BrokerError::OpenLimit { .. })), "{refused:?}");
    }
    rig.pass(MINUTE);
    // With fresh messages behind them, in whichever order a look takes them.
    for delivery in [2, 3] {
        let again = rig.broker.receive_messages(request).await.unwrap().messages;
        let got: Vec<_> = again.iter().map(seen).collect();
        assert_eq!(got, [of(0, 0, delivery, "a"), of(0, 1, delivery, "b")]);
        rig.pass(MINUTE);
    }
    let last = rig.broker.receive_messages(request).await.unwrap().messages;
    // A receipt of before a power cut, whose lease the log has lost, of a message behind others.
    let (group, topic) = (rig.broker.state.groups.get("g"), rig.broker.state.topics.get("t"));
    let (group, topic) = (group.unwrap(), topic.unwrap());
    let consumer = Consumer { store: &rig.broker.store, group: &group, topic: &topic };
    let held = rig.broker.signer.handle(&last[0].handle).unwrap().claim();
    let lost = Claim { place: (0, 3), lease: LeaseId::default(), is_first: true };
    let settled = rig.broker.state.offsets.finish(consumer, &[held, lost]).unwrap();
    assert_eq!(settled.results, [Some(held.lease), None]);
    assert_eq!(rig.committed(0).await, 1);

    // It may have no more than it leaves to others.
    rig.broker.state.offsets.pretend_open(Offsets::MAX_OPEN - 3);
    let refused = rig.broker.receive_messages(request).await;
    assert!(matches!(refused, Err(BrokerError::OpenLimit { .. })), "{refused:?}");
    assert_eq!(rig.broker.receive_messages(other).await.unwrap().messages.len(), 2);
    rig.broker.state.offsets.pretend_open(9);
    assert_eq!(rig.receive(9).await.len(), 3);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_delivery_to_a_consumer_that_was_not_ready_does_not_count() {
    let rig =
        Rig::new(1, GroupSettings { max_attempts: Some(1), ..GroupSettings::default() }).await;
    rig.send_to(0, "one").await;
    let first = rig.receive(1).await;
    let held = rig.hold(&first[0].handle, Hold::Suspend(MINUTE)).await.unwrap();
    assert_eq!(rig.ack(&[&first[0].handle]).await, [false]);
    assert_eq!(rig.seen(1).await, []);
    rig.pass(MINUTE);
    assert_eq!(rig.seen(1).await, [(0, 0, 1, "one".to_owned())]);
    assert_eq!(rig.ack(&[&held]).await, [false]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn an_unknown_group_is_made_by_its_use_as_often_as_that_may_be() {
    let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::new(Timestamp::new(1_000_000))));
    let store = || StoreConfig { segment_size: 4 << 20, ..StoreConfig::new("/data") };
    let open = |config| Broker::open(Arc::new(disk.clone()), clock.clone(), store(), config);
    let config = BrokerConfig { auto_create_limit: 1, ..BrokerConfig::default() };
    let broker = open(config).unwrap().0;
    broker.open_group("a", soon()).await.unwrap();
    broker.open_group("a", soon()).await.unwrap();
    let error = broker.open_group("b", soon()).await.unwrap_err();
    assert!(matches!(error, BrokerError::GroupLimit { limit: 1 }), "{error}");
    let error = broker.open_group("a.b", soon()).await.unwrap_err();
    assert!(matches!(error, BrokerError::BadGroupName(_)), "{error}");
    assert_eq!(broker.group_counts().0, 1);
    broker.close().unwrap();
    drop(broker);
    let config = BrokerConfig { auto_create_groups: false, ..BrokerConfig::default() };
    let broker = open(config).unwrap().0;
    broker.open_group("a", soon()).await.unwrap();
    let error = broker.open_group("b", soon()).await.unwrap_err();
    assert!(matches!(error, BrokerError::UnknownGroup { .. }), "{error}");
    broker.close().unwrap();
}
