//! Which messages of a group are for which of its members.

use super::*;
use crate::broker::state::leases::{Kind, Line, MAX_OPEN_IN_QUEUE, id_of};
use crate::message::TopicId;
use crate::message::{Epoch, PhysicalOffset};

#[tokio::test(start_paused = true)]
async fn what_the_filter_does_not_want_is_finished_by_passing_over_it() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let queue = Some(QueueId::ZERO);
    // Two tags of one Java hash, in one record and in records of their own.
    let messages = [("1", Some("Aa"), None), ("2", Some("BB"), None), ("3", None, None)];
    rig.store(queue, &messages, None).await;
    for message in messages {
        rig.store(queue, &[message], None).await;
    }
    let filter = tags("BB");
    let received = rig.receive_all(rig.request(&filter, 9)).await;
    let got: Vec<_> = received.iter().map(seen).collect();
    assert_eq!(got, [of(0, 1, 1, "2"), of(0, 4, 1, "2")]);
    assert_eq!(rig.committed(0).await, 1);
    assert_eq!(rig.ack(&[&received[0].handle]).await, [true]);
    assert_eq!(rig.committed(0).await, 4);
    // One that is not wanted any more is finished when its turn comes again.
    rig.pass(MINUTE);
    let filter = Expression::parse(Language::Sql, "TAGS = 'Aa'").unwrap();
    assert!(rig.receive_all(rig.request(&filter, 9)).await.is_empty());
    assert_eq!(rig.committed(0).await, 4, "somebody else may want it");
    tokio::time::advance(Duration::from_secs(601)).await;
    assert!(rig.receive_all(rig.request(&filter, 9)).await.is_empty());
    assert_eq!(rig.committed(0).await, 6);
    assert_eq!(rig.broker.counters().filtered.get(), 5);
    let rig = rig.again();
    assert_eq!(rig.committed(0).await, 6);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_the_filter_passes_over_costs_few_records_however_few_messages_are_wanted() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let queue = Some(QueueId::ZERO);
    for number in 0..3_000 {
        let tag = if number % 1_000 == 999 { "wanted" } else { "other" };
        rig.store(queue, &[("x", Some(tag), None)], None).await;
    }
    assert_eq!(rig.receive(1).await.len(), 1);
    let appended = || rig.broker.store.watermarks().appended;
    let filter = Expression::parse(Language::Sql, "TAGS = 'wanted'").unwrap();
    for (max_bytes, offset) in [(1 << 20, 999), (1, 1_999), (1 << 20, 2_999)] {
        let before = appended();
        let request = ReceiveRequest { max_bytes, ..rig.request(&filter, 1) };
        let received = rig.broker.receive_messages(request).await.unwrap().messages;
        let got: Vec<_> = received.iter().map(seen).collect();
        assert_eq!(got, [of(0, offset, 1, "x")]);
        let len = appended().since(before);
        assert!(len < 2_000, "{len} bytes of state records");
    }
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_one_member_was_given_is_not_finished_by_the_filter_of_another() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let queue = Some(QueueId::ZERO);
    rig.store(queue, &[("a", Some("a"), None), ("b", Some("b"), None)], None).await;
    let (any, a, b) = (tags("a || b"), tags("a"), tags("b"));
    let first = rig.receive_all(rig.request(&any, 1)).await.remove(0);
    rig.hold(&first.handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
    // A member with another filter passes it by, waits, and gets what is for him.
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&b, 1) };
    let second = rig.broker.receive_messages(waiting).await.unwrap().messages.remove(0);
    assert_eq!(seen(&second), of(0, 1, 1, "b"));
    let start = Instant::now();
    assert!(rig.broker.receive_messages(waiting).await.unwrap().messages.is_empty());
    assert_eq!(start.elapsed(), Duration::from_secs(20));
    let again = rig.receive_all(rig.request(&a, 9)).await;
    assert_eq!(again.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 2, "a")]);
    assert_eq!(rig.broker.counters().filtered.get(), 0);
    assert!(rig.broker.counters().filter_mismatches.get() >= 2);
    // Who is alone with his filter for long enough decides.
    rig.hold(&again[0].handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
    tokio::time::advance(Duration::from_secs(601)).await;
    assert!(rig.receive_all(rig.request(&b, 9)).await.is_empty());
    assert_eq!(rig.broker.counters().filtered.get(), 1);
    assert!(rig.receive_all(rig.request(&a, 9)).await.is_empty());
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_group_may_refuse_members_with_another_filter_as_long_as_the_first_is_in_use() {
    let rig = Rig::new(
        1,
        GroupSettings { other_filters: OtherFilters::Refuse, ..GroupSettings::default() },
    )
    .await;
    rig.send_to(0, "x").await;
    let (a, all) = (tags("a"), all());
    assert!(rig.receive_all(rig.request(&all, 1)).await.len() == 1);
    let refused = rig.broker.receive_messages(rig.request(&a, 1)).await;
    let Err(BrokerError::FilterMismatch { expected }) = refused else { panic!("{refused:?}") };
    assert_eq!(expected.as_ref(), "*");
    tokio::time::advance(MINUTE + Duration::from_secs(1)).await;
    assert!(rig.broker.receive_messages(rig.request(&a, 1)).await.unwrap().messages.is_empty());
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_is_due_and_nobody_wants_is_not_looked_at_again_and_again() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "one").await;
    assert_eq!(rig.receive(1).await.len(), 1);
    rig.pass(2 * MINUTE);
    assert!(rig.broker.tend_due().await);
    assert_eq!(rig.broker.state.offsets.next_timer(), None);
    assert_eq!(rig.seen(1).await, [(0, 0, 2, "one".to_owned())]);
    rig.broker.close().unwrap();
}

// Not on a paused clock: while the storage threads work that would go on to the end of the wait.
#[tokio::test]
async fn who_waits_for_a_tag_sleeps_while_others_come_and_passes_them_over_with_the_first_of_his() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let filter = tags("a");
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
    let parked = || rig.broker.counters().parked.get();
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        for _ in 0..50 {
            rig.store(Some(QueueId::ZERO), &[("other", Some("b"), None)], None).await;
            rig.store(Some(QueueId::ZERO), &[("none", None, None)], None).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(parked(), 1, "he was not woken");
        rig.store(Some(QueueId::ZERO), &[("his", Some("a"), None)], None).await;
    });
    let received = received.unwrap().messages;
    assert_eq!(received.iter().map(seen).collect::<Vec<_>>(), [of(0, 100, 1, "his")]);
    assert_eq!(parked(), 1);
    assert_eq!(rig.broker.counters().filtered.get(), 100);
    // Others that were listed before he came are passed over at once.
    rig.store(Some(QueueId::ZERO), &[("other", Some("b"), None)], None).await;
    assert!(rig.receive_all(rig.request(&filter, 9)).await.is_empty());
    assert_eq!(rig.broker.counters().filtered.get(), 101);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_due_for_a_member_with_another_filter_wakes_him_and_nobody_again_and_again() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let (any, a, b) = (tags("a || b"), tags("a"), tags("b"));
    rig.store(Some(QueueId::ZERO), &[("b", Some("b"), None)], None).await;
    let first = rig.receive_all(rig.request(&any, 1)).await.remove(0);
    let wait = Duration::from_secs(20);
    let of_a = ReceiveRequest { wait, ..rig.request(&a, 1) };
    let of_b = ReceiveRequest { wait, ..rig.request(&b, 1) };
    let (receives, start) = (&rig.broker, Instant::now());
    let all = async {
        let many: [_; 4] = std::array::from_fn(|_| receives.receive_messages(of_a));
        let [one, two, three, four] = many;
        tokio::join!(one, two, three, four)
    };
    let his = async {
        let received = rig.broker.receive_messages(of_b).await.unwrap().messages;
        assert_eq!(received.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 2, "b")]);
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        rig.hold(&received[0].handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
    };
    let back = async {
        rig.until_wait(5).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.hold(&first.handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
    };
    let (others, (), ()) = tokio::join!(all, his, back);
    for received in [others.0, others.1, others.2, others.3] {
        assert!(received.unwrap().messages.is_empty());
    }
    // It is due for 19 s: one of the four looks each second.
    let parked = rig.broker.counters().parked.get();
    assert!(parked < 5 + 2 * 20, "{parked}");
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_a_group_goes_on_to_another_filter_each_member_gets_what_its_own_wants() {
    let roll = OtherFilters::Roll;
    for settings in [GroupSettings::default(), ordered()] {
        let is_ordered = settings.ordered;
        let rig = Rig::new(1, GroupSettings { other_filters: roll, ..settings }).await;
        let (old, new, third) = (tags("a || both"), tags("b || both"), tags("c"));
        let (of_old, of_new) = (rig.request(&old, 9), rig.request(&new, 9));
        assert!(rig.receive_all(of_old).await.is_empty());
        assert!(rig.receive_all(of_new).await.is_empty());
        let refused = rig.broker.receive_messages(rig.request(&third, 9)).await;
        assert!(matches!(refused, Err(BrokerError::FilterMismatch { .. })), "{refused:?}");
        let queue = (!is_ordered).then_some(QueueId::ZERO);
        let [a, b, both, none] =
            [("a", Some("a")), ("b", Some("b")), ("both", Some("both")), ("none", None)]
                .map(|(body, tag)| (body, tag, is_ordered.then_some(body)));
        rig.store(queue, &[a], None).await;
        rig.store(queue, &[b], None).await;
        rig.store(queue, &[both], None).await;
        rig.store(queue, &[none], None).await;
        let got: Vec<_> = rig.receive_all(of_new).await.iter().map(seen).collect();
        assert_eq!(got, [of(0, 1, 1, "b"), of(0, 2, 1, "both")]);
        assert_eq!(rig.broker.counters().filtered.get(), 1, "what none of the two wants");
        // It is kept over a start too, where each has to come again before anything of his is passed over.
        let rig = rig.again();
        let (of_old, of_new) = (rig.request(&old, 9), rig.request(&new, 9));
        let first = rig.receive_all(of_old).await;
        assert_eq!(first.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 1, "a")]);
        rig.ack(&[&first[0].handle]).await;
        assert!(rig.receive_all(of_new).await.is_empty());
        // What is kept for nobody who comes is passed over in the end.
        rig.store(queue, &[a], None).await;
        assert!(rig.receive_all(of_new).await.is_empty());
        assert_eq!(rig.broker.counters().filtered.get(), 0);
        tokio::time::advance(Duration::from_secs(181)).await;
        assert!(rig.receive_all(of_new).await.is_empty());
        assert_eq!(rig.broker.counters().filtered.get(), 1);
        rig.broker.close().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn in_an_ordered_group_what_is_kept_for_others_holds_what_comes_behind_it() {
    let settings = GroupSettings { other_filters: OtherFilters::Roll, ..ordered() };
    let rig = Rig::new(1, settings).await;
    let (old, new) = (tags("a"), tags("b"));
    let (of_old, of_new) = (rig.request(&old, 9), rig.request(&new, 9));
    assert!(rig.receive_all(of_old).await.is_empty());
    assert!(rig.receive_all(of_new).await.is_empty());
    for (body, tag) in [("1", "a"), ("2", "b"), ("3", "a")] {
        rig.store(None, &[(body, Some(tag), Some("group"))], None).await;
    }
    assert!(rig.receive_all(of_new).await.is_empty(), "the first is not for him");
    let first = rig.receive_all(of_old).await;
    assert_eq!(first.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 1, "1")]);
    assert!(rig.receive_all(of_new).await.is_empty());
    rig.ack(&[&first[0].handle]).await;
    assert!(rig.receive_all(of_old).await.is_empty());
    let second = rig.receive_all(of_new).await;
    assert_eq!(second.iter().map(seen).collect::<Vec<_>>(), [of(0, 1, 1, "2")]);
    rig.ack(&[&second[0].handle]).await;
    let third = rig.receive_all(of_old).await;
    assert_eq!(third.iter().map(seen).collect::<Vec<_>>(), [of(0, 2, 1, "3")]);
    rig.ack(&[&third[0].handle]).await;
    assert_eq!(rig.committed(0).await, 3);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_no_filter_in_use_wants_is_finished_though_several_are_in_use() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let [gone, b, c] = ["a", "b", "c"].map(tags);
    rig.store(Some(QueueId::ZERO), &[("a", Some("a"), None); 20], None).await;
    assert_eq!(rig.receive_all(rig.request(&gone, 20)).await.len(), 20);
    rig.pass(MINUTE);
    for _ in 0..21 {
        for filter in [&b, &c] {
            assert!(rig.receive_all(rig.request(filter, 9)).await.is_empty());
        }
        assert_eq!(rig.broker.counters().filtered.get(), 0, "its members may come back for it");
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    assert!(rig.receive_all(rig.request(&b, 9)).await.is_empty());
    assert_eq!(rig.broker.counters().filtered.get(), 20);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn members_that_all_find_what_is_for_none_of_them_do_not_wake_each_other_for_ever() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let [gone, a, b] = ["z", "a", "b"].map(tags);
    rig.store(Some(QueueId::ZERO), &[("z", Some("z"), None)], None).await;
    let had = rig.receive_all(rig.request(&gone, 1)).await.remove(0);
    let wait = Duration::from_secs(10);
    let waiting = |filter| ReceiveRequest { wait, ..rig.request(filter, 1) };
    let (one, two) = tokio::join!(
        async {
            let received = rig.broker.receive_messages(waiting(&a));
            let (received, ()) = tokio::join!(received, async {
                rig.until_wait(2).await;
                rig.hold(&had.handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
            });
            received
        },
        rig.broker.receive_messages(waiting(&b)),
    );
    assert!(one.unwrap().messages.is_empty() && two.unwrap().messages.is_empty());
    let parked = rig.broker.counters().parked.get();
    assert!(parked <= 2 + 3 * 10, "{parked}");
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_a_filter_costs_and_cannot_compare_is_counted_for_the_group_and_the_topic() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let queue = Some(QueueId::ZERO);
    let messages = [("a", Some("12"), None), ("b", Some("cheap"), None), ("c", None, None)];
    rig.store(queue, &messages, None).await;
    rig.store(queue, &[("d", Some("dear"), None)], None).await;
    let filters = async || {
        let described = rig.broker.describe_group("g", TopicId::new(0), 9, soon()).await;
        described.unwrap().topics.remove(0).filters
    };
    let filter = Expression::parse(Language::Sql, "TAGS > 10").unwrap();
    // A look that comes to nothing looks at all of them too.
    rig.broker.state.offsets.pretend_open(Offsets::MAX_OPEN);
    let refused = rig.broker.receive_messages(rig.request(&filter, 9)).await;
    assert!(matches!(refused, Err(BrokerError::OpenLimit { .. })), "{refused:?}");
    rig.broker.state.offsets.pretend_open(0);
    let received = rig.receive_all(rig.request(&filter, 9)).await;
    assert_eq!(received.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 1, "a")]);
    let told = filters().await;
    assert_eq!(told.filters, ["TAGS > 10"]);
    assert_eq!((told.faults, told.last_fault.as_str()), (2, "TAGS"));
    assert_eq!(rig.broker.counters().filter_faults.get(), 2);
    assert!(told.steps >= 4, "{told:?}");
    // One that comes again is looked at again; who wants all costs nothing, and another group has its own count.
    rig.pass(MINUTE);
    assert_eq!(rig.receive_all(rig.request(&filter, 9)).await.len(), 1);
    let again = filters().await;
    assert!(again.steps > told.steps, "{again:?}");
    assert_eq!((again.faults, again.mismatches), (2, 0));
    rig.broker.create_group("other", &GroupSettings::default(), soon()).await.unwrap();
    let every = all();
    let others = ReceiveRequest { group: "other", ..rig.request(&every, 9) };
    assert_eq!(rig.receive_all(others).await.len(), 4);
    rig.pass(MINUTE);
    assert_eq!(rig.receive_all(rig.request(&every, 9)).await.len(), 1);
    assert_eq!(filters().await.steps, again.steps);
    let described = rig.broker.describe_group("other", TopicId::new(0), 9, soon()).await.unwrap();
    let told = &described.topics[0].filters;
    assert_eq!((told.steps, told.faults, told.last_fault.as_str()), (0, 0, ""));
    rig.broker.close().unwrap();
}

/// Time goes on, on the clock of leases too, and who does not ask meanwhile is forgotten.
async fn pause(rig: &Rig, time: Duration) {
    rig.pass(time);
    for _ in 0..4 {
        tokio::time::advance(time / 4).await;
        rig.broker.tend_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_comes_for_a_while_each_time_is_through_with_what_its_filter_does_not_want() {
    // By the filters that are known from one time to the next, or else by how long a message waits.
    for (minutes, times) in [(5, 3), (120, 12)] {
        let rig = Rig::new(1, GroupSettings::default()).await;
        let (both, a) = (tags("a || b"), tags("a"));
        rig.store(Some(QueueId::ZERO), &[("b", Some("b"), None)], None).await;
        assert_eq!(rig.receive_all(rig.request(&both, 1)).await.len(), 1);
        let mut left = 0;
        while rig.broker.counters().filtered.get() == 0 {
            pause(&rig, minutes * MINUTE).await;
            assert!(rig.receive_all(rig.request(&a, 9)).await.is_empty());
            left += 1;
            assert!(left <= times + 1, "{left} times of {minutes} minutes");
        }
        assert!(left > 1, "they had no time to come back");
        assert_eq!(rig.committed(0).await, 1);
        rig.broker.close().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn which_version_of_a_filter_is_the_older_one_does_not_turn_round_in_a_pause() {
    let settings = GroupSettings { other_filters: OtherFilters::Roll, ..GroupSettings::default() };
    let rig = Rig::new(1, settings).await;
    let (old, new) = (tags("a"), tags("b"));
    let come = async |filter| rig.broker.receive_messages(rig.request(filter, 1)).await;
    come(&old).await.unwrap();
    pause(&rig, MINUTE).await;
    come(&new).await.unwrap();
    come(&old).await.unwrap();
    pause(&rig, 8 * MINUTE).await;
    for _ in 0..5 {
        come(&new).await.unwrap();
        let of_old = come(&old).await;
        pause(&rig, MINUTE).await;
        if let Err(error) = of_old {
            assert!(matches!(error, BrokerError::FilterMismatch { .. }), "{error}");
            come(&new).await.unwrap();
            rig.broker.close().unwrap();
            return;
        }
    }
    panic!("both are served for ever");
}

/// Leases messages with a tag, as many as fit into some records, to who asks with it; nobody acknowledges them.
async fn leased(rig: &Rig, filter: &Expression, tag: &str, messages: usize) {
    for _ in 0..messages / 50 {
        rig.store(Some(QueueId::ZERO), &[(tag, Some(tag), None); 50], None).await;
    }
    let mut got = 0;
    while got < messages {
        let received = rig.broker.receive_messages(rig.request(filter, 1_000)).await.unwrap();
        assert!(!received.messages.is_empty());
        got += received.messages.len();
    }
}

/// The most receives for which a message waits that is due.
const RECEIVES: usize = 5;

#[tokio::test(start_paused = true)]
async fn however_much_is_due_for_others_a_retry_waits_for_few_receives() {
    // The others go on asking, or are gone since a while.
    for goes_on in [true, false] {
        let rig = Rig::new(1, GroupSettings::default()).await;
        let (a, b) = (tags("a"), tags("b"));
        leased(&rig, &a, "a", 4_500).await;
        rig.pass(MINUTE);
        tokio::time::advance(2 * MINUTE).await;
        rig.store(Some(QueueId::ZERO), &[("b", Some("b"), None)], None).await;
        let mut got = Vec::new();
        while got.is_empty() {
            got = rig.receive_all(rig.request(&b, 1)).await;
        }
        for delivery in 2..9 {
            rig.hold(&got[0].handle, Hold::RetryAfter(Duration::from_secs(1))).await.unwrap();
            rig.pass(Duration::from_secs(1));
            if goes_on {
                assert_eq!(rig.receive_all(rig.request(&a, 1)).await.len(), 1);
            }
            got.clear();
            for _ in 0..RECEIVES {
                got.extend(rig.receive_all(rig.request(&b, 1)).await);
            }
            let seen: Vec<_> = got.iter().map(seen).collect();
            assert_eq!(seen, [of(0, 4_500, delivery, "b")], "{goes_on}");
        }
        assert_eq!(rig.broker.counters().filtered.get(), 0);
        // They are still there, for who comes back.
        assert_eq!(rig.receive_all(rig.request(&a, 1_000)).await.len(), 1_000);
        rig.broker.close().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_the_old_version_does_not_keep_retries_of_the_new_one_waiting() {
    let settings = GroupSettings { other_filters: OtherFilters::Roll, ..GroupSettings::default() };
    let rig = Rig::new(1, settings).await;
    let (old, new) = (tags("a"), tags("b"));
    let come = async |filter, most| rig.receive_all(rig.request(filter, most)).await;
    assert!(come(&old, 1).await.is_empty() && come(&new, 1).await.is_empty());
    for _ in 0..60 {
        rig.store(Some(QueueId::ZERO), &[("a", Some("a"), None); 50], None).await;
    }
    rig.store(Some(QueueId::ZERO), &[("b", Some("b"), None)], None).await;
    let mut got = Vec::new();
    while got.is_empty() {
        got = come(&new, 1).await;
    }
    for delivery in 2..9 {
        rig.hold(&got[0].handle, Hold::RetryAfter(Duration::from_secs(1))).await.unwrap();
        rig.pass(Duration::from_secs(1));
        assert_eq!(come(&old, 1).await.len(), 1, "it is slow");
        got.clear();
        for _ in 0..RECEIVES {
            got.extend(come(&new, 1).await);
        }
        assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(0, 3_000, delivery, "b")]);
    }
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_leased_before_a_start_is_found_behind_what_is_for_others() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let (a, b, both) = (tags("a"), tags("b"), tags("a || b"));
    leased(&rig, &a, "a", 4_500).await;
    leased(&rig, &b, "b", 500).await;
    rig.pass(2 * MINUTE);
    let rig = rig.again();
    rig.pass(MINUTE);
    assert_eq!(rig.receive_all(rig.request(&a, 1)).await.len(), 1);
    let mut got = 0;
    for _ in 0..RECEIVES {
        let request = rig.request(&b, 100);
        got += rig.broker.receive_messages(request).await.unwrap().messages.len();
    }
    assert!(got >= 100, "{got}");
    // The next version wants both, and has not to wait until nobody uses the old one.
    let mut got = 0;
    for _ in 0..RECEIVES {
        let request = rig.request(&both, 1_000);
        got += rig.broker.receive_messages(request).await.unwrap().messages.len();
    }
    assert!(got >= 4_000, "{got}");
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_new_version_goes_on_in_a_full_queue_once_the_old_one_has_not_asked_for_a_minute() {
    let settings = GroupSettings { other_filters: OtherFilters::Roll, ..GroupSettings::default() };
    let rig = Rig::new(1, settings).await;
    let (old, new) = (tags("a"), tags("b"));
    let come = async |filter, most| rig.receive_all(rig.request(filter, most)).await;
    assert!(come(&old, 1).await.is_empty() && come(&new, 1).await.is_empty());
    for _ in 0..MAX_OPEN_IN_QUEUE / 500 {
        rig.store(Some(QueueId::ZERO), &[("a", Some("a"), None); 500], None).await;
    }
    rig.store(Some(QueueId::ZERO), &[("b", Some("b"), None)], None).await;
    for _ in 0..3 {
        assert!(come(&new, 1).await.is_empty(), "all that may be kept of a queue is");
    }
    assert_eq!(come(&old, 1).await.len(), 1);
    tokio::time::advance(MINUTE + Duration::from_secs(1)).await;
    let waiting = ReceiveRequest { wait: Duration::from_secs(2), ..rig.request(&new, 1) };
    let got = rig.broker.receive_messages(waiting).await.unwrap().messages;
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(0, 10_000, 1, "b")]);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_was_at_work_when_something_was_left_for_him_does_not_sleep_on_it() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let [a, b, c] = ["a", "b", "c"].map(tags);
    let mut handles = Vec::new();
    for (filter, tag) in [(&a, "a"), (&b, "b"), (&c, "c")] {
        rig.store(Some(QueueId::ZERO), &[(tag, Some(tag), None)], None).await;
        let had = rig.receive_all(rig.request(filter, 1)).await.remove(0);
        handles.push(had.handle);
    }
    let retry = async |handle: &str| {
        rig.hold(handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
    };
    let request = rig.request(&b, 1);
    let (group, topic) = (rig.broker.group("g", soon()), rig.broker.topic("t", soon()));
    let (group, topic) = (group.await.unwrap(), topic.await.unwrap());
    let consumer = Consumer { store: &rig.broker.store, group: &group, topic: &topic };
    let ready = rig.broker.state.offsets.ready.get(consumer.key()).unwrap();
    let receiver = Receiver {
        consumer,
        ready,
        request: &request,
        filter: id_of(&b),
        tags: Arc::new(TagFilter::All),
        others: Vec::new(),
        attempt: None,
        max_open: MAX_OPEN_IN_QUEUE,
    };
    let start = Instant::now();
    let wait = async || {
        let until = start + Duration::from_secs(20);
        rig.broker.wait_for_messages(&receiver, until, false, &mut true).await.unwrap()
    };
    // One leaves what is for another one, who has looked already and does not wait yet.
    retry(&handles[2]).await;
    assert!(matches!(rig.broker.look_once(&receiver).await, Ok(Look::Left)));
    retry(&handles[1]).await;
    assert!(rig.receive_all(rig.request(&a, 1)).await.is_empty());
    assert!(wait().await);
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Somebody has it in his hand while the other one looks, and leaves it once he waits.
    let offsets = &rig.broker.state.offsets;
    let now = rig.broker.store.lease_time().get();
    let of_any = (Kind::Again, Line::Any);
    let taken = offsets.take_due(consumer, of_any, now, 9);
    assert_eq!(taken.due.len(), 2);
    assert!(matches!(rig.broker.look_once(&receiver).await, Ok(Look::Nothing)));
    let (waited, ()) = tokio::join!(wait(), async {
        rig.until_wait(1).await;
        offsets.put_back(consumer.key(), &taken, now);
        assert!(rig.receive_all(rig.request(&a, 1)).await.is_empty());
    });
    assert!(waited);
    assert_eq!(start.elapsed(), Duration::ZERO);
    let got = rig.receive_all(request).await;
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(0, 1, 2, "b")]);
    // What is for the third one keeps nobody of the others awake.
    assert!(!rig.broker.state.offsets.has_due_for(consumer, receiver.filter, now));
    rig.broker.close().unwrap();
}

/// It used to be as if nobody had left it, and all were told of it again.
#[tokio::test]
async fn what_was_left_is_still_left_after_a_look_that_came_to_nothing() {
    for settings in [GroupSettings::default(), ordered()] {
        let rig = Rig::new(2, settings).await;
        let tags = |text| Expression::parse(Language::Tags, text).unwrap();
        let (a, b) = (tags("a"), tags("b"));
        rig.store(Some(QueueId::ZERO), &[("a", Some("a"), None)], None).await;
        assert_eq!(rig.receive_all(rig.request(&a, 1)).await.len(), 1);
        rig.pass(MINUTE);
        let (group, topic) = (rig.broker.group("g", soon()), rig.broker.topic("t", soon()));
        let (group, topic) = (group.await.unwrap(), topic.await.unwrap());
        let consumer = Consumer { store: &rig.broker.store, group: &group, topic: &topic };
        let offsets = &rig.broker.state.offsets;
        let is_new = || offsets.has_due_for(consumer, id_of(&b), consumer.store.lease_time().get());
        assert!(is_new());
        assert!(rig.receive_all(rig.request(&b, 1)).await.is_empty());
        assert!(!is_new(), "left for the other one");
        rig.store(Some(QueueId::new(1)), &[("b", Some("b"), None)], None).await;
        offsets.pretend_open(Offsets::MAX_OPEN);
        for _ in 0..4 {
            let refused = rig.broker.receive_messages(rig.request(&b, 9)).await;
            assert!(matches!(refused, Err(BrokerError::OpenLimit { .. })), "{refused:?}");
            assert!(!is_new());
        }
        offsets.pretend_open(1);
        let got = rig.receive_all(rig.request(&b, 9)).await;
        assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(1, 0, 1, "b")]);
        let got = rig.receive_all(rig.request(&a, 9)).await;
        assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 2, "a")]);
        rig.broker.close().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_since_another_had_what_is_left_for_him_in_his_hand_gets_it_when_that_one_goes() {
    let rig = Rig::new(2, GroupSettings::default()).await;
    let tags = |text| Expression::parse(Language::Tags, text).unwrap();
    let (a, b) = (tags("a"), tags("b"));
    rig.store(Some(QueueId::ZERO), &[("a", Some("a"), None)], None).await;
    assert_eq!(rig.receive_all(rig.request(&a, 1)).await.len(), 1);
    rig.pass(MINUTE);
    assert!(rig.receive_all(rig.request(&b, 1)).await.is_empty());
    // It takes some time to decompress what comes again.
    let large = "0".repeat(4 << 20);
    let record = [(large.as_str(), Some("b"), None); 2];
    rig.store(Some(QueueId::new(1)), &record, Some(Codec::Lz4)).await;
    let both = ReceiveRequest { max_bytes: 8 << 20, ..rig.request(&b, 4) };
    let both = rig.broker.receive_messages(both).await.unwrap().messages;
    assert_eq!((both.len(), rig.ack(&[&both[1].handle]).await), (2, vec![true]));
    rig.pass(MINUTE);
    let (group, topic) = (rig.broker.group("g", soon()), rig.broker.topic("t", soon()));
    let (group, topic) = (group.await.unwrap(), topic.await.unwrap());
    let consumer = Consumer { store: &rig.broker.store, group: &group, topic: &topic };
    let now = rig.broker.store.lease_time().get();
    let is_there = || rig.broker.state.offsets.has_due_for(consumer, id_of(&a), now);
    let mut looks;
    loop {
        for other in 0..2 {
            let place = (Epoch::new(0), PhysicalOffset::new(other));
            rig.broker.unpacked.put(place, vec![0; 16 << 20].into());
        }
        looks = Box::pin(rig.broker.receive_messages(rig.request(&b, 1)));
        match crate::testing::now(looks.as_mut()) {
            // In some looks what others left comes first.
            None if is_there() => {}
            None => break,
            // Decompressed before anybody could wait for it: once more.
            Some(got) => {
                let got = got.unwrap().messages;
                rig.broker.give_back("g", "t", &[got[0].handle.clone()]);
            }
        }
    }
    let waits = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&a, 1) };
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waits), async {
        while rig.broker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        drop(looks);
    });
    let got = received.unwrap().messages;
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 2, "a")]);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn members_with_different_filters_get_all_retries_without_a_rest() {
    const EACH: usize = 40;
    for settings in [GroupSettings::default(), ordered()] {
        let settings = GroupSettings { max_attempts: None, ..settings };
        let rig = Rig::new(1, settings).await;
        let filters = ["a", "b", "c"].map(tags);
        let is_ordered = rig.broker.group("g", soon()).await.unwrap().settings().ordered;
        let mut handles = Vec::new();
        for (filter, tag) in filters.iter().zip(["a", "b", "c"]) {
            for number in 0..EACH {
                let body = format!("{tag}{number}");
                let message = (body.as_str(), Some(tag), is_ordered.then_some(body.as_str()));
                rig.store((!is_ordered).then_some(QueueId::ZERO), &[message], None).await;
            }
            while handles.len() % EACH != 0 || handles.last().is_none_or(|(of, _)| *of != tag) {
                let received = rig.receive_all(rig.request(filter, 9)).await;
                handles.extend(received.into_iter().map(|one| (tag, one.handle)));
            }
        }
        // Each filter has the messages that it names; all come back three times.
        let done = std::cell::Cell::new(0);
        let member = async |filter: &Expression| {
            let wait = Duration::from_secs(30);
            while done.get() < 3 * EACH {
                let waiting = ReceiveRequest { wait, ..rig.request(filter, 2) };
                for message in rig.broker.receive_messages(waiting).await.unwrap().messages {
                    tokio::task::yield_now().await;
                    if message.delivery < 4 {
                        let hold = Hold::RetryAfter(Duration::ZERO);
                        rig.hold(&message.handle, hold).await.unwrap();
                    } else {
                        assert_eq!(rig.ack(&[&message.handle]).await, [true]);
                        done.set(done.get() + 1);
                    }
                }
                if done.get() == 3 * EACH {
                    rig.broker.drain();
                }
            }
        };
        let give_back = async {
            rig.until_wait(6).await;
            for (_, handle) in &handles {
                rig.hold(handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
            }
        };
        let start = Instant::now();
        let tend = rig.broker.tend_leases();
        let [a, b, c] = &filters;
        let members = async {
            tokio::join!(
                member(a),
                member(b),
                member(c),
                member(a),
                member(b),
                member(c),
                give_back
            )
        };
        tokio::select! {
            _ = members => {}
            () = tend => {}
        }
        assert_eq!(done.get(), 3 * EACH);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}
