//! What receives decompress is counted with their answers, and who finds no room for it waits with nothing in his hand.

use std::fmt::Debug;

use super::*;
use crate::message::{Epoch, PhysicalOffset};

const MIB: u64 = 1 << 20;

/// What may be answered with.
const ROOM: u64 = 64 * MIB;

/// What others have of it: what is left is enough for any message, and not for what comes out of a [`bomb`].
const OF_OTHERS: u64 = 50 * MIB;

async fn rig(queues: u32, settings: GroupSettings) -> Rig {
    Rig::with(queues, settings, BrokerConfig { inflight_reply_bytes: ROOM, ..Default::default() })
        .await
}

/// 64 KiB that come to 16 MiB, in four messages.
fn bomb() -> Bytes {
    bomb_of(&[4 << 20; 4])
}

/// The same, and the first of five is small and says so.
fn bomb_with_a_small_one() -> Bytes {
    bomb_of(&[1, 4 << 20, 4 << 20, 4 << 20, (4 << 20) - 1])
}

fn bomb_of(lens: &[usize]) -> Bytes {
    let mut batch = BatchBuilder::new();
    for len in lens {
        let meta = NewMeta { tag: (*len == 1).then_some("small"), ..NewMeta::default() };
        batch.push(&meta, &vec![b'0'; *len]);
    }
    batch.finish_compressed(&mut Compressor::new(Codec::Lz4).unwrap())
}

impl Rig {
    /// Makes the broker forget what it decompressed lately.
    fn forget_unpacked(&self) {
        for other in 0..2 {
            let place = (Epoch::new(0), PhysicalOffset::new(other));
            self.broker.unpacked.put(place, vec![0; 16 << 20].into());
        }
        assert_eq!(self.broker.in_work().unpacked, 32 * MIB);
    }

    /// What is refused as long as others have their room, and is done when they have not.
    async fn with_room_alone<T: Debug>(
        &self,
        work: impl AsyncFn(Instant) -> Result<T, BrokerError>,
    ) -> T {
        self.forget_unpacked();
        let unpacked = self.broker.counters().unpacked.get();
        let others = self.broker.replies.try_take(OF_OTHERS).unwrap();
        let refused = work(Instant::now() + Duration::from_millis(300)).await;
        let Err(BrokerError::Overloaded { what: "bytes to answer with" }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(self.broker.in_work().replies, OF_OTHERS);
        assert_eq!(self.broker.counters().unpacked.get(), unpacked);
        drop(others);
        let done = work(soon()).await.unwrap();
        assert_eq!(self.broker.counters().unpacked.get(), unpacked + 1);
        done
    }
}

/// Offset and delivery of each.
fn places(received: &Received) -> Vec<(u64, u32)> {
    received.messages.iter().map(|one| (one.queue_offset.get(), one.delivery)).collect()
}

/// One who asked for a byte used to have 16 MiB decompressed of which nobody knew.
#[tokio::test]
async fn the_room_for_decompressing_is_counted_with_the_answers_of_receives() {
    let rig = rig(1, GroupSettings::default()).await;
    rig.put(Some(QueueId::ZERO), bomb()).await;
    let filter = all();
    let receive = async |attempt: &str, deadline| {
        let request = rig.request(&filter, 9);
        let request = ReceiveRequest { max_bytes: 1, attempt, deadline, ..request };
        rig.broker.receive_messages(request).await
    };
    let only_the_answer_is_counted = |received: Received| {
        assert!(received.messages[0].batch.len() > 4 << 20);
        let counted = rig.broker.in_work().replies;
        assert!((4 * MIB..5 * MIB).contains(&counted), "{counted}");
        drop(received);
        assert_eq!(rig.broker.in_work().replies, 0);
    };
    // Fresh ones.
    let received = rig.with_room_alone(async |deadline| receive("a", deadline).await).await;
    assert_eq!(places(&received), [(0, 1)], "no lease was left behind");
    only_the_answer_is_counted(received);
    // Those of a try that is repeated.
    let received = rig.with_room_alone(async |deadline| receive("a", deadline).await).await;
    assert_eq!(places(&received), [(0, 1)], "the lease was as it was");
    let handle = received.messages[0].handle.clone();
    only_the_answer_is_counted(received);
    assert_eq!(rig.ack(&[&handle]).await, [true]);
    // Those that are due again.
    assert_eq!(receive("", soon()).await.unwrap().messages.len(), 1);
    assert_eq!(receive("", soon()).await.unwrap().messages.len(), 1);
    assert_eq!(receive("", soon()).await.unwrap().messages.len(), 1);
    rig.pass(MINUTE);
    let received = rig.with_room_alone(async |deadline| receive("", deadline).await).await;
    assert_eq!(places(&received), [(1, 2)], "no delivery was counted");
    only_the_answer_is_counted(received);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn the_room_for_decompressing_is_counted_while_a_dead_letter_is_made() {
    let rig = rig(1, GroupSettings::default()).await;
    rig.put(Some(QueueId::ZERO), bomb_with_a_small_one()).await;
    let handle = rig.receive(1).await.remove(0).handle;
    let bury =
        async |deadline| rig.broker.forward_to_dead_letters("g", "t", (&handle, 0), deadline).await;
    rig.with_room_alone(bury).await;
    assert_eq!((rig.broker.in_work().replies, rig.dead().await.len()), (0, 1));
    rig.broker.close().unwrap();
}

/// It used to be put off to the end of the last pause, and its message group with it.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_finds_no_room_is_one_as_soon_as_there_is_some_and_lets_the_next_come() {
    let settings = GroupSettings {
        max_attempts: Some(1),
        retry_delays_ms: vec![12 * 60 * 60 * 1_000],
        ..ordered()
    };
    let rig = rig(1, settings).await;
    rig.put(Some(QueueId::ZERO), bomb_with_a_small_one()).await;
    assert_eq!(rig.seen(1).await, [of(0, 0, 1, "0")]);
    rig.pass(MINUTE);
    rig.forget_unpacked();
    let others = rig.broker.replies.try_take(OF_OTHERS).unwrap();
    for _ in 0..3 {
        assert!(!rig.broker.tend_due().await);
        assert_eq!(rig.broker.counters().dead_letters.get(), 0);
    }
    drop(others);
    assert!(rig.broker.tend_due().await);
    assert_eq!(rig.broker.counters().dead_letters.get(), 1);
    let next = rig.receive(1).await;
    assert_eq!((next[0].queue_offset.get(), next[0].delivery), (1, 1));
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn dead_letters_that_find_no_room_keep_those_of_other_groups_waiting_once_and_not_each() {
    const GROUPS: u64 = 5;
    let rig = rig(2, GroupSettings::default()).await;
    rig.put(Some(QueueId::ZERO), bomb_with_a_small_one()).await;
    rig.send_to(1, "needs little").await;
    let once = GroupSettings { max_attempts: Some(1), ..GroupSettings::default() };
    let filter = all();
    for number in 0..GROUPS {
        let group = format!("g{number}");
        rig.broker.create_group(&group, &once, soon()).await.unwrap();
        let request = ReceiveRequest { group: &group, ..rig.request(&filter, 2) };
        let got: Vec<_> = rig.receive_all(request).await.iter().map(seen).collect();
        assert_eq!(got, [of(0, 0, 1, "0"), of(1, 0, 1, "needs little")]);
    }
    rig.pass(MINUTE);
    rig.forget_unpacked();
    let others = rig.broker.replies.try_take(OF_OTHERS).unwrap();
    let start = Instant::now();
    assert!(!rig.broker.tend_due().await);
    let waited = start.elapsed();
    assert!(waited <= 2 * Duration::from_secs(2), "{waited:?}, and one waits for two seconds");
    assert_eq!(rig.broker.counters().dead_letters.get(), GROUPS, "what needs little went on");
    drop(others);
    assert!(rig.broker.tend_due().await);
    assert_eq!(rig.broker.counters().dead_letters.get(), 2 * GROUPS);
    assert_eq!(rig.broker.in_work().replies, 0);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn in_an_ordered_group_no_dead_letter_comes_before_one_of_its_message_group_that_finds_no_room()
 {
    let rig = rig(1, GroupSettings { max_attempts: Some(1), ..ordered() }).await;
    rig.put(Some(QueueId::ZERO), bomb_with_a_small_one()).await;
    rig.store(Some(QueueId::ZERO), &[("behind", Some("small"), None)], None).await;
    let filter = tags("small");
    let got: Vec<_> = rig.receive_all(rig.request(&filter, 2)).await.iter().map(seen).collect();
    assert_eq!(got, [of(0, 0, 1, "0"), of(0, 5, 1, "behind")]);
    rig.pass(MINUTE);
    rig.forget_unpacked();
    let others = rig.broker.replies.try_take(OF_OTHERS).unwrap();
    assert!(!rig.broker.tend_due().await);
    assert_eq!(rig.broker.counters().dead_letters.get(), 0);
    drop(others);
    assert!(rig.broker.tend_due().await);
    let dead: Vec<_> = rig.dead().await.iter().map(seen).collect();
    assert_eq!(dead, [of(0, 0, 1, "0"), of(0, 1, 1, "behind")]);
    rig.broker.close().unwrap();
}

/// More than one look leaves.
#[tokio::test(start_paused = true)]
async fn however_many_dead_letters_of_a_group_find_no_room_all_are_made_once_there_is_some() {
    const QUEUES: u32 = 20;
    let rig = rig(QUEUES, GroupSettings { max_attempts: Some(1), ..Default::default() }).await;
    for queue in 0..QUEUES {
        rig.put(Some(QueueId::new(queue)), bomb_with_a_small_one()).await;
    }
    let filter = tags("small");
    assert_eq!(rig.receive_all(rig.request(&filter, QUEUES)).await.len(), QUEUES as usize);
    rig.pass(MINUTE);
    rig.forget_unpacked();
    let others = rig.broker.replies.try_take(OF_OTHERS).unwrap();
    for _ in 0..3 {
        assert!(!rig.broker.tend_due().await);
        assert_eq!(rig.broker.counters().dead_letters.get(), 0);
    }
    drop(others);
    assert!(rig.broker.tend_due().await);
    assert_eq!(rig.broker.counters().dead_letters.get(), u64::from(QUEUES));
    assert_eq!(rig.broker.state.offsets.next_timer(), None);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_receive_takes_no_more_of_a_record_than_it_asks_for_but_for_the_last_message() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let bodies: Vec<_> = (0..10).map(|n| format!("{n:0>1000}")).collect();
    let messages: Vec<_> = bodies.iter().map(|body| (body.as_str(), None, None)).collect();
    let filter = all();
    for codec in [None, Some(Codec::Lz4)] {
        rig.store(Some(QueueId::ZERO), &messages, codec).await;
        let mut counts = Vec::new();
        for max_bytes in [1, 1_500, 4_500, 4_500] {
            let request = ReceiveRequest { max_bytes, ..rig.request(&filter, 9) };
            counts.push(rig.broker.receive_messages(request).await.unwrap().messages.len());
        }
        assert_eq!(counts, [1, 2, 5, 2], "{codec:?}");
    }
    rig.broker.close().unwrap();
}

/// Twice: the messages are fresh, and then they are due again.
#[tokio::test]
async fn without_room_to_decompress_the_others_are_given_and_nobody_is_overtaken() {
    for settings in [GroupSettings::default(), GroupSettings { max_attempts: None, ..ordered() }] {
        let rig = rig(3, settings).await;
        rig.put(Some(QueueId::ZERO), bomb()).await;
        for (queue, body) in [(0, "behind"), (1, "alone"), (2, "alone")] {
            rig.send_to(queue, body).await;
        }
        let is_ordered = rig.broker.state.groups.get("g").unwrap().settings().ordered;
        // Of a queue in order nothing more is given while something of it is out.
        let count = if is_ordered { 3 } else { 7 };
        let filter = all();
        let request = rig.request(&filter, 9);
        let request = ReceiveRequest { max_bytes: MAX_BYTES, ..request };
        for delivery in [1, 2] {
            rig.forget_unpacked();
            let others = rig.broker.replies.try_take(OF_OTHERS).unwrap();
            let mut early = rig.broker.receive_messages(request).await.unwrap().messages;
            let deadline = Instant::now() + Duration::from_millis(300);
            let refused = rig.broker.receive_messages(ReceiveRequest { deadline, ..request }).await;
            assert!(matches!(refused, Err(BrokerError::Overloaded { .. })), "{refused:?}");
            // Room for what is asked for comes when the others go, and ends the wait of who is there.
            let (late, ()) = tokio::join!(rig.broker.receive_messages(request), async {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                drop(others);
            });
            let mut late = late.unwrap().messages;
            while late.len() + early.len() < count {
                let more = rig.broker.receive_messages(request).await.unwrap().messages;
                assert!(!more.is_empty());
                late.extend(more);
            }
            early.sort_by_key(|one| (one.queue, one.queue_offset));
            let places = |all: &[ReceivedMessage]| -> Vec<_> {
                all.iter().map(|one| (one.queue.get(), one.queue_offset.get())).collect()
            };
            let (early_places, late_places) = (places(&early), places(&late));
            // What was given once lies apart, so that of a group without order one comes early.
            let alone = match delivery == 2 && !is_ordered {
                true => vec![(0, 4), (1, 0), (2, 0)],
                false => vec![(1, 0), (2, 0)],
            };
            assert_eq!(early_places, alone, "{delivery}, ordered: {is_ordered}");
            let rest = (0..5).map(|at| (0, at)).filter(|at| !alone.contains(at));
            let rest: Vec<_> = rest.take(count - alone.len()).collect();
            assert_eq!(late_places, rest, "{delivery}, ordered: {is_ordered}");
            assert!(early.iter().chain(&late).all(|one| one.delivery == delivery));
            assert_eq!(rig.broker.in_work().replies, 0);
            rig.pass(MINUTE);
        }
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn who_waits_for_room_to_decompress_and_goes_away_leaves_it_to_the_next() {
    let rig = rig(1, GroupSettings::default()).await;
    let wait = || {
        let broker = Arc::clone(&rig.broker);
        let wait = Duration::from_secs(20);
        tokio::spawn(async move {
            let filter = all();
            let request = ReceiveRequest { max_bytes: 1, wait, ..receive_request(&filter, 4) };
            broker.receive_messages(request).await.unwrap()
        })
    };
    let parked = async |count: usize| {
        while rig.broker.waiting() != count {
            tokio::task::yield_now().await;
        }
    };
    let first = wait();
    parked(1).await;
    let second = wait();
    parked(2).await;
    let others = rig.broker.replies.try_take(OF_OTHERS).unwrap();
    rig.put(Some(QueueId::ZERO), bomb()).await;
    parked(0).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.broker.counters().unpacked.get(), 0);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    drop(others);
    assert_eq!(places(&second.await.unwrap()), [(0, 1)]);
    assert_eq!(rig.broker.in_work().replies, 0);
    rig.broker.close().unwrap();
}

/// They used to be decompressed all at once, by as many threads as there may be. What is wanted of each is a byte, so
/// that what is counted is what is decompressed.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn bombs_in_many_queues_are_decompressed_within_the_bound_and_others_are_served() {
    const QUEUES: u32 = 24;
    const MESSAGES: usize = QUEUES as usize;
    let rig = rig(QUEUES, GroupSettings::default()).await;
    let topic = TopicSettings::open(1, FlushMode::Async, TopicType::Mixed);
    rig.broker.create_topic("u", topic, soon()).await.unwrap();
    let mut receivers = tokio::task::JoinSet::new();
    for _ in 0..MESSAGES {
        let broker = Arc::clone(&rig.broker);
        receivers.spawn(async move {
            let filter = tags("small");
            let request = ReceiveRequest {
                max_bytes: 1,
                wait: Duration::from_secs(25),
                deadline: Instant::now() + Duration::from_secs(120),
                ..receive_request(&filter, 1)
            };
            let received = broker.receive_messages(request).await.unwrap();
            received.messages.iter().map(|one| (one.queue, one.delivery)).collect::<Vec<_>>()
        });
    }
    rig.until_wait(MESSAGES).await;
    let bomb = bomb_with_a_small_one();
    for queue in 0..QUEUES {
        rig.put(Some(QueueId::new(queue)), bomb.clone()).await;
    }
    let most = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (broker, seen) = (Arc::clone(&rig.broker), Arc::clone(&most));
    let looks = tokio::spawn(async move {
        loop {
            seen.fetch_max(broker.in_work().replies, std::sync::atomic::Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let filter = all();
    let (mut served, mut got) = (0, BTreeSet::new());
    while got.len() < MESSAGES {
        let mut batch = BatchBuilder::new();
        batch.push(&NewMeta::default(), b"other");
        let batch = batch.finish();
        let send = SendRequest { topic: "u", queue: None, batch, session: None, deadline: soon() };
        rig.broker.send(send).await.unwrap();
        let request = ReceiveRequest { topic: "u", ..rig.request(&filter, 1) };
        let request = ReceiveRequest { wait: Duration::from_secs(20), ..request };
        served += rig.broker.receive_messages(request).await.unwrap().messages.len();
        while let Some(received) = receivers.try_join_next() {
            for (queue, delivery) in received.unwrap() {
                assert_eq!(delivery, 1);
                assert!(got.insert(queue), "{queue} was given twice");
            }
        }
    }
    looks.abort();
    let most = most.load(std::sync::atomic::Ordering::Relaxed);
    assert!((16 * MIB..=ROOM).contains(&most), "{most}");
    assert!(served > 0);
    assert!(rig.broker.in_work().unpacked <= 32 * MIB);
    assert_eq!(rig.broker.counters().unpacked.get(), u64::from(QUEUES));
    rig.broker.close().unwrap();
}
