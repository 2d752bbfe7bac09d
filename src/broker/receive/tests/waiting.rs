//! Who waits, who is woken, and what that costs.

use super::*;

#[tokio::test]
async fn who_waits_is_woken_by_a_message_and_by_one_that_comes_back() {
    let rig = Rig::new(4, GroupSettings::default()).await;
    assert_eq!(rig.seen(1).await, []);
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        rig.send_to(3, "a").await;
    });
    let first = received.unwrap().messages;
    assert_eq!(first.iter().map(seen).collect::<Vec<_>>(), [of(3, 0, 1, "a")]);
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        rig.hold(&first[0].handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
    });
    let second = received.unwrap().messages;
    assert_eq!(second.iter().map(seen).collect::<Vec<_>>(), [of(3, 0, 2, "a")]);
    // Neither a disabled group nor a broker that stops keeps anybody waiting.
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        let change = GroupChange { enabled: Some(false), ..GroupChange::default() };
        rig.broker.update_group("g", &change, soon()).await.unwrap();
    });
    assert!(matches!(received, Err(BrokerError::GroupDisabled { .. })), "{received:?}");
    assert_eq!(rig.ack(&[&second[0].handle]).await, [true], "what it has it may finish");
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn who_is_woken_and_goes_away_before_he_took_anything_wakes_the_next() {
    let rig = Rig::new(2, GroupSettings::default()).await;
    let wait = || {
        let broker = Arc::clone(&rig.broker);
        async move {
            let filter = all();
            let request =
                ReceiveRequest { wait: Duration::from_secs(20), ..receive_request(&filter, 8) };
            broker.receive_messages(request).await.unwrap().messages
        }
    };
    let waiting = |count: usize| {
        let broker = Arc::clone(&rig.broker);
        async move {
            while broker.waiting() != count {
                tokio::task::yield_now().await;
            }
        }
    };
    rig.send_to(0, "a").await;
    let mut handle = rig.receive(1).await.remove(0).handle;
    for is_back in [true, false] {
        let first = tokio::spawn(wait());
        waiting(1).await;
        let second = tokio::spawn(wait());
        waiting(2).await;
        // No bytes to answer with: the first is woken, and waits for some.
        let free = rig.broker.replies.free();
        let all_bytes = rig.broker.replies.take(free, soon()).await.unwrap();
        let (queue, delivery) = match is_back {
            true => {
                rig.hold(&handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
                (0, 2)
            }
            false => {
                rig.send_to(1, "a").await;
                (1, 1)
            }
        };
        waiting(1).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        drop(all_bytes);
        let mut received = second.await.unwrap();
        let got: Vec<_> = received.iter().map(seen).collect();
        assert_eq!(got, [of(queue, 0, delivery, "a")]);
        handle = received.remove(0).handle;
        assert_eq!(rig.ack(&[&handle]).await, [true]);
    }
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_group_that_does_not_ask_for_a_while_costs_arrivals_nothing_and_gets_all_when_it_asks() {
    let rig = Rig::new(4, GroupSettings::default()).await;
    rig.send_to(1, "a").await;
    let first = rig.receive(9).await;
    let topic = rig.broker.state.topics.get("t").unwrap();
    let key = (rig.broker.state.groups.get("g").unwrap().id(), topic.id());
    let is_there = || rig.broker.state.offsets.ready.get(key).is_some();
    rig.broker.tend_idle();
    assert_eq!((is_there(), topic.handle().is_watched()), (true, true));
    rig.broker.tend_idle();
    assert_eq!((is_there(), topic.handle().is_watched()), (false, false));
    rig.send_to(2, "b").await;
    assert_eq!(rig.ack(&[&first[0].handle]).await, [true]);
    assert!(!is_there(), "neither an arrival nor an ack brings it back");
    assert_eq!(rig.seen(9).await, [of(2, 0, 1, "b")]);
    assert_eq!((is_there(), topic.handle().is_watched()), (true, true));
    // Who waits is not idle.
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        (0..3).for_each(|_| rig.broker.tend_idle());
        rig.send_to(3, "c").await;
    });
    let received: Vec<_> = received.unwrap().messages.iter().map(seen).collect();
    assert_eq!(received, [of(3, 0, 1, "c")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn who_waits_finds_what_other_settings_of_the_group_let_him_have() {
    let rig = Rig::new(1, ordered()).await;
    rig.send_ordered("a", "a1").await;
    assert_eq!(rig.bodies(1).await.0, bodies(&[("a1", 1)]));
    rig.send_ordered("a", "a2").await;
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        let change = GroupChange { ordered: Some(false), ..GroupChange::default() };
        rig.broker.update_group("g", &change, soon()).await.unwrap();
    });
    let second = received.unwrap().messages;
    assert_eq!(second.iter().map(seen).collect::<Vec<_>>(), [of(0, 1, 1, "a2")]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn the_timer_wakes_who_waits_when_a_lease_is_over() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "a").await;
    assert_eq!(rig.receive(1).await.len(), 1);
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        rig.pass(MINUTE);
        rig.broker.tend_due().await;
    });
    let second = received.unwrap().messages;
    assert_eq!(second.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 2, "a")]);
    rig.broker.close().unwrap();
}

async fn share(flush: FlushMode, settings: GroupSettings, queues: u32) {
    const CONSUMERS: usize = 12;
    const MESSAGES: usize = 1_500;
    let rig = Rig::new(queues, settings).await;
    let change = crate::broker::TopicChanges { flush: Some(flush), ..Default::default() };
    rig.broker.update_topic("t", &change, crate::message::Force::No, soon()).await.unwrap();
    let seen = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let mut tasks = Vec::new();
    for _ in 0..CONSUMERS {
        let (broker, seen) = (Arc::clone(&rig.broker), Arc::clone(&seen));
        tasks.push(tokio::spawn(async move {
            let filter = all();
            loop {
                let request =
                    ReceiveRequest { wait: Duration::from_secs(25), ..receive_request(&filter, 3) };
                let received = match broker.receive_messages(request).await {
                    Err(BrokerError::Draining) => return,
                    received => received.unwrap().messages,
                };
                if received.is_empty() {
                    assert!(broker.is_draining(), "a wake-up is lost");
                    return;
                }
                for message in &received {
                    let place = (message.queue, message.queue_offset);
                    assert!(seen.lock().unwrap().insert(place), "{place:?} was given twice");
                }
                let handles: Vec<_> = received.iter().map(|one| one.handle.as_str()).collect();
                let acked = broker.ack("g", "t", &handles, soon()).await.unwrap();
                assert!(acked.iter().all(|acked| *acked));
            }
        }));
    }
    for number in 0..MESSAGES {
        let group = format!("{}", number % 7);
        rig.send_ordered(&group, "x").await;
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    while seen.lock().unwrap().len() < MESSAGES && !tasks.iter().any(|task| task.is_finished()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.broker.drain();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(seen.lock().unwrap().len(), MESSAGES);
    let progress = rig.broker.progress("g", "t", 0, 99, soon()).await.unwrap();
    assert_eq!(progress.iter().map(crate::broker::QueueProgress::lag).sum::<u64>(), 0);
    rig.broker.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn consumers_that_wait_share_all_messages_and_none_is_given_twice() {
    share(FlushMode::Async, GroupSettings::default(), 4).await;
    share(FlushMode::Sync, GroupSettings::default(), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn consumers_of_an_ordered_group_share_all_messages_too() {
    share(FlushMode::Async, ordered(), 2).await;
    share(FlushMode::Sync, ordered(), 3).await;
}

#[tokio::test]
async fn one_message_ends_one_wait_however_many_there_are() {
    let rig = Rig::new(2, GroupSettings::default()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let broker = Arc::clone(&rig.broker);
        tasks.spawn(async move {
            let filter = all();
            let request =
                ReceiveRequest { wait: Duration::from_secs(25), ..receive_request(&filter, 8) };
            broker.receive_messages(request).await.unwrap().messages.len()
        });
    }
    rig.until_wait(10_000).await;
    let parked = rig.broker.counters().parked.get();
    rig.send_to(1, "a").await;
    assert_eq!(tasks.join_next().await.unwrap().unwrap(), 1);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.broker.waiting(), 9_999);
    assert_eq!(rig.broker.counters().parked.get(), parked, "nobody else looked");
    rig.broker.drain();
    let mut rest = 0;
    while let Some(got) = tasks.join_next().await {
        rest += got.unwrap();
    }
    assert_eq!(rest, 0);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn work_is_found_among_very_many_queues_without_a_look_at_the_others() {
    let rig = Rig::new(65_536, GroupSettings::default()).await;
    rig.send_to(9, "before").await;
    assert_eq!(rig.seen(9).await, [of(9, 0, 1, "before")]);
    let filter = all();
    for queue in [65_535, 0, 40_000] {
        let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
        let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
            rig.send_to(queue, "a").await;
        });
        let got = received.unwrap().messages;
        assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(queue, 0, 1, "a")]);
        assert_eq!(rig.ack(&[&got[0].handle]).await, [true]);
    }
    assert_eq!(rig.broker.group_counts().1, 4, "a position for each queue that moved");
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_nobody_got_is_given_back_at_once_and_wakes_who_waits() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    for body in ["one", "two", "three"] {
        rig.send_to(0, body).await;
    }
    let got = rig.receive(3).await;
    let handles: Vec<_> = got.iter().map(|message| message.handle.clone()).collect();
    let filter = all();
    let waiting = ReceiveRequest { wait: MINUTE / 2, ..rig.request(&filter, 3) };
    let (waited, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        rig.broker.give_back("g", "t", &handles[1..]);
    });
    let waited: Vec<_> = waited.unwrap().messages.iter().map(seen).collect();
    assert_eq!(waited, [(0, 1, 1, "two".to_owned()), (0, 2, 1, "three".to_owned())]);
    assert_eq!(rig.ack(&[&handles[0], &handles[1]]).await, [true, false]);
    // Of a group or a topic that is not there, and what is no handle.
    rig.broker.give_back("nobody", "t", &handles);
    rig.broker.give_back("g", "nowhere", &handles);
    rig.broker.give_back("g", "t", &["garbage".to_owned()]);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_may_not_have_old_leases_yet_gets_a_new_message_at_once() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "old").await;
    assert_eq!(rig.receive(1).await.len(), 1);
    rig.pass(MINUTE);
    let rig = rig.again();
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(5), ..rig.request(&filter, 1) };
    let (stopped, start) = (stop_clock(), Instant::now());
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        rig.until_wait(1).await;
        rig.send_to(0, "new").await;
    });
    drop(stopped);
    let received = received.unwrap().messages;
    assert_eq!(received.iter().map(seen).collect::<Vec<_>>(), [of(0, 1, 1, "new")]);
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Nor does he look again and again meanwhile.
    assert!(rig.broker.receive_messages(waiting).await.unwrap().messages.is_empty());
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    let parked = rig.broker.counters().parked.get();
    assert!(parked <= 7, "{parked}");
    rig.broker.close().unwrap();
}

/// Messages whose leases from before a start are over are offered a few at a time: who passes them over is told by no
/// timer when they may be had.
#[tokio::test(start_paused = true)]
async fn who_finds_something_and_leaves_more_to_anybody_has_another_look_after_that() {
    for is_first_look in [true, false] {
        // Others come first in the one look, and new ones in the other.
        for turn in 0..2 {
            let rig = Rig::new(1, GroupSettings::default()).await;
            rig.store(Some(QueueId::ZERO), &[("old", Some("b"), None)], None).await;
            assert_eq!(rig.receive(1).await.len(), 1);
            rig.pass(MINUTE - Duration::from_secs(1));
            let rig = rig.again();
            for _ in 0..turn {
                rig.send_to(0, "one look").await;
                assert_eq!(rig.seen(1).await, [of(0, 1, 1, "one look")]);
            }
            let (a, b) = (tags("a"), tags("b"));
            let wait = Duration::from_secs(25);
            let finds = ReceiveRequest { wait, ..rig.request(&a, 1) };
            let sleeps = ReceiveRequest { wait, ..rig.request(&b, 1) };
            let send = async || {
                rig.store(Some(QueueId::ZERO), &[("new", Some("a"), None)], None).await;
            };
            let stopped = stop_clock();
            let found = async {
                if is_first_look {
                    // Who finds it comes when the other one waits already, and neither knew of what is over.
                    rig.until_wait(1).await;
                    rig.pass(Duration::from_secs(1));
                    send().await;
                }
                let found = rig.broker.receive_messages(finds).await.unwrap().messages;
                assert_eq!(found.iter().map(seen).collect::<Vec<_>>(), [of(0, 1 + turn, 1, "new")]);
                // From now on as much of it as there is may be had.
                rig.pass(Duration::from_secs(10));
                drop(stopped);
            };
            let slept = async {
                if !is_first_look {
                    // Both left it: the first one looks each second, and the other one sleeps.
                    rig.until_wait(1).await;
                }
                rig.broker.receive_messages(sleeps).await.unwrap().messages
            };
            let sent = async {
                if !is_first_look {
                    rig.until_wait(2).await;
                    send().await;
                }
            };
            if !is_first_look {
                rig.pass(Duration::from_secs(1));
            }
            let start = Instant::now();
            let (slept, (), ()) = tokio::join!(slept, found, sent);
            let slept: Vec<_> = slept.iter().map(seen).collect();
            assert_eq!(slept, [of(0, 0, 2, "old")], "{is_first_look} {turn}");
            assert!(start.elapsed() < wait, "{:?}", start.elapsed());
            rig.broker.close().unwrap();
        }
    }
}
