//! Fresh messages that cannot be decoded, and what keeps them from becoming dead letters.

use super::dead::{damaged, set_short};
use super::*;
use crate::broker::state::topics::TopicTable;
use crate::broker::{ConsumeRequest, Consumed};
use crate::format::attributes::{self, DeadReason};

impl Rig {
    /// With three messages that cannot be read in queue 0, and one behind them.
    async fn with_run(queues: u32, settings: GroupSettings) -> Self {
        let rig = Self::new(queues, settings).await;
        rig.store(Some(QueueId::ZERO), &[("run", None, None); 3], None).await;
        rig.send_to(0, "behind").await;
        damaged(rig, b"runrunrun", &mut None)
    }

    async fn fails(&self) -> BrokerError {
        let filter = all();
        self.broker.receive_messages(self.request(&filter, 9)).await.unwrap_err()
    }

    /// Offset of each dead letter, and how many messages it stands for.
    async fn letters(&self) -> Vec<(u64, u32)> {
        let dead = self.dead().await;
        let letters = dead.iter().map(|one| {
            let letter = attributes::dead_letter(&one.attributes).unwrap().unwrap();
            let never = [letter.first_delivered, letter.last_delivered].map(Timestamp::get);
            assert_eq!((letter.reason, never), (DeadReason::Undecodable, [0, 0]));
            (letter.queue_offset.get(), letter.messages)
        });
        letters.collect()
    }
}

fn roomy() -> GroupSettings {
    GroupSettings { retry_delays_ms: vec![10_000], ..GroupSettings::default() }
}

#[tokio::test]
async fn of_a_run_there_is_one_dead_letter_whatever_lies_in_front_of_it() {
    let (first, other) = (("first", Some("a"), None), ("other", Some("b"), None));
    let filter = Expression::parse(Language::Tags, "a").unwrap();
    for in_front in [[].as_slice(), &[first], &[other, other], &[first, other, other]] {
        let rig = Rig::new(1, roomy()).await;
        let queue = Some(QueueId::ZERO);
        for one in in_front {
            rig.store(queue, &[*one], None).await;
        }
        rig.store(queue, &[("run", Some("a"), None); 3], None).await;
        rig.store(queue, &[("behind", Some("a"), None)], None).await;
        let rig = damaged(rig, b"runrunrun", &mut None);
        let got = rig.receive_all(rig.request(&filter, 9)).await;
        let got: Vec<_> = got.iter().map(|one| seen(one).3).collect();
        let wanted = in_front.iter().filter(|one| **one == first).map(|(body, ..)| *body);
        assert_eq!(got, wanted.chain(["behind"]).collect::<Vec<_>>());
        assert_eq!(rig.letters().await, [(in_front.len() as u64, 3)]);
        let counters = rig.broker.counters();
        let counted = [&counters.dead_letters, &counters.gone, &counters.filtered];
        let others = in_front.iter().filter(|one| **one == other).count() as u64;
        assert_eq!(counted.map(|of| of.get()), [1, 2, others]);
        // It says the same wherever it is looked at, and stays.
        let dead = rig.broker.describe_topic("%DLQ%g", 0, 9, soon()).await.unwrap();
        assert_eq!(dead.queues[0].range.max.get(), 1);
        let redrive = RedriveRequest {
            group: "g",
            ids: &[],
            max: 9,
            only: OnlySuch { reason: Some(DeadReason::Undecodable), ..OnlySuch::default() },
            per_second: None,
            for_all: false,
            run: Run::Real,
            deadline: soon(),
        };
        for _ in 0..2 {
            let page = rig.broker.redrive(&redrive).await.unwrap();
            let faults: Vec<_> = page.dead_letters.iter().map(|one| one.fault).collect();
            assert_eq!(faults, [Some(RedriveFault::NoBody)]);
        }
        rig.broker.close().unwrap();
    }
}

/// They used to be leased, and those that then could not be opened were finished for nothing.
#[tokio::test]
async fn at_the_bound_of_all_open_messages_a_run_has_its_dead_letter_or_stays() {
    let rig = Rig::with_run(1, roomy()).await;
    rig.broker.state.offsets.pretend_open(Offsets::MAX_OPEN);
    let refused = rig.fails().await;
    assert!(matches!(refused, BrokerError::OpenLimit { .. }), "{refused:?}");
    assert_eq!((rig.broker.counters().dead_letters.get(), rig.committed(0).await), (1, 3));
    rig.broker.state.offsets.pretend_open(0);
    assert_eq!(rig.letters().await, [(0, 3)]);
    assert_eq!(rig.seen(9).await, [of(0, 3, 1, "behind")]);
    rig.broker.close().unwrap();

    let rig = Rig::with_run(1, roomy()).await;
    rig.broker.state.offsets.pretend_open(Offsets::MAX_OPEN - 2);
    set_short(&rig, true).await;
    let refused = rig.fails().await;
    assert!(matches!(refused, BrokerError::Full(_)), "{refused:?}");
    assert_eq!(rig.committed(0).await, 0);
    rig.broker.state.offsets.pretend_open(0);
    set_short(&rig, false).await;
    assert_eq!(rig.seen(9).await, [of(0, 3, 1, "behind")]);
    assert_eq!((rig.letters().await, rig.committed(0).await), (vec![(0, 3)], 3));
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn an_ordered_group_stays_in_front_of_a_run_without_a_dead_letter_and_gets_what_else_there_is()
 {
    let rig = Rig::with_run(2, ordered()).await;
    set_short(&rig, true).await;

    let refused = rig.fails().await;
    assert!(matches!(refused, BrokerError::Full(_)), "{refused:?}");
    set_short(&rig, false).await;
    rig.send_to(1, "other").await;
    set_short(&rig, true).await;
    let filter = all();
    let got = rig.broker.receive_messages(rig.request(&filter, 9)).await.unwrap().messages;
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(1, 0, 1, "other")]);
    assert_eq!((rig.committed(0).await, rig.broker.counters().dead_letters.get()), (0, 0));
    set_short(&rig, false).await;
    assert_eq!(rig.seen(9).await, [of(0, 3, 1, "behind")]);
    assert_eq!(rig.letters().await, [(0, 3)]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn without_a_topic_for_dead_letters_a_run_is_lost_to_nobody_and_all_are_told() {
    for settings in [roomy(), ordered()] {
        let is_ordered = settings.ordered;
        let rig = Rig::with_run(1, settings).await;
        rig.broker.state.topics.pretend_queues(TopicTable::MAX_QUEUES);
        if is_ordered {
            let refused = rig.fails().await;
            assert!(matches!(refused, BrokerError::TopicLimit { .. }), "{refused:?}");
        } else {
            // Each waits by itself, and keeps nothing back.
            assert_eq!(rig.seen(9).await, [of(0, 3, 1, "behind")]);
        }
        assert_eq!(rig.committed(0).await, 0);
        rig.broker.state.topics.pretend_queues(1);
        rig.pass(Duration::from_secs(20));
        let rest = if is_ordered { vec![of(0, 3, 1, "behind")] } else { Vec::new() };
        assert_eq!(rig.seen(9).await, rest);
        let each = if is_ordered { vec![(0, 3)] } else { vec![(0, 1), (1, 1), (2, 1)] };
        assert_eq!(rig.letters().await, each);
        let gone = if is_ordered { 2 } else { 0 };
        assert_eq!(rig.broker.counters().gone.get(), gone);
        rig.broker.close().unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_decompressed_and_be_no_dead_letter_yet_is_not_overtaken_in_its_message_group()
 {
    let rig = Rig::new(1, ordered()).await;
    rig.send_batch(not_decompressible(&["tag"; 3])).await;
    rig.send_to(0, "behind").await;
    set_short(&rig, true).await;
    assert_eq!(rig.seen(9).await, []);
    assert_eq!(rig.broker.counters().dead_letters.get(), 0);
    set_short(&rig, false).await;
    let mut got = Vec::new();
    for _ in 0..4 {
        rig.pass(MINUTE);
        got.extend(rig.seen(1).await);
    }
    assert_eq!(got[0], of(0, 3, 1, "behind"));
    assert_eq!(rig.letters().await, [(0, 1), (1, 1), (2, 1)]);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn what_others_want_of_a_record_that_cannot_be_decompressed_is_a_dead_letter_once_too() {
    let settings = GroupSettings { other_filters: OtherFilters::Roll, ..roomy() };
    let rig = Rig::new(1, settings).await;
    let tags = |text| Expression::parse(Language::Tags, text).unwrap();
    let (some, others) = (tags("a"), tags("b"));
    for filter in [&some, &others] {
        assert!(rig.receive_all(rig.request(filter, 1)).await.is_empty());
    }
    // More than one append set holds.
    let record: Vec<_> = (0..300).map(|at| ["a", "b", "c"][at % 3]).collect();
    rig.send_batch(not_decompressible(&record)).await;
    rig.store(Some(QueueId::ZERO), &[("behind", Some("a"), None)], None).await;
    let got = rig.receive_all(rig.request(&some, 200)).await;
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(0, 300, 1, "behind")]);
    assert_eq!(rig.broker.counters().dead_letters.get(), 100);
    assert_eq!(rig.broker.counters().filtered.get(), 100);
    assert!(rig.receive_all(rig.request(&others, 200)).await.is_empty());
    let counters = rig.broker.counters();
    assert_eq!((counters.dead_letters.get(), counters.gone.get()), (200, 0));
    assert_eq!(rig.committed(0).await, 300);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn of_a_groups_own_dead_letters_what_cannot_be_read_is_passed_over_without_another() {
    let rig = Rig::new(1, roomy()).await;
    for body in ["the rotten one", "the next one"] {
        rig.send_to(0, body).await;
        let given_up = rig.receive(1).await.remove(0).handle;
        rig.broker.forward_to_dead_letters("g", "t", (&given_up, 0), soon()).await.unwrap();
    }
    let Rig { broker, clock, disk } = rig;
    broker.close().unwrap();
    let log = disk.paths().into_iter().find(|path| path.ends_with("00000000000000000000.log"));
    let bytes = disk.durable_bytes(&log.unwrap()).unwrap();
    let body = b"the rotten one";
    let mut at = bytes.windows(body.len()).rposition(|bytes| bytes == body).map(|at| at as u64);
    let rig = damaged(Rig { broker, clock, disk }, body, &mut at);
    let filter = all();
    let dead = ReceiveRequest { topic: "%DLQ%g", ..rig.request(&filter, 9) };
    let got = rig.receive_all(dead).await;
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(0, 1, 1, "the next one")]);
    let counters = rig.broker.counters();
    assert_eq!((counters.dead_letters.get(), counters.gone.get()), (0, 1));
    rig.broker.close().unwrap();
}

/// One of a group tries, and neither the others nor who has other messages are disturbed by that.
#[tokio::test(start_paused = true)]
async fn a_run_that_cannot_be_buried_is_tried_each_second_whoever_waits_and_passed_once_it_can_be()
{
    let rig = Rig::with_run(1, ordered()).await;
    rig.broker.state.topics.pretend_queues(TopicTable::MAX_QUEUES);
    let topic = rig.broker.topic("t", soon()).await.unwrap();
    let group = rig.broker.group("g", soon()).await.unwrap();
    let consumer = Consumer { store: &rig.broker.store, group: &group, topic: &topic };
    let ready = rig.broker.begun(consumer, soon()).await.unwrap();
    let parked = |wait: u64| {
        let broker = Arc::clone(&rig.broker);
        tokio::spawn(async move {
            let (filter, deadline) = (all(), Instant::now() + MINUTE);
            let request = ReceiveRequest {
                group: "g",
                topic: "t",
                filter: &filter,
                max_messages: 9,
                max_bytes: 1 << 20,
                invisible: MINUTE,
                client: None,
                holder: "somebody",
                wait: Duration::from_secs(wait),
                attempt: "",
                deadline,
            };
            broker.receive_messages(request).await.map(|received| received.messages)
        })
    };
    let start = Instant::now();
    let waiting: Vec<_> = (0..50).map(|_| parked(5)).collect();
    let mut told = 0;
    for answer in waiting {
        match answer.await.unwrap() {
            Err(BrokerError::TopicLimit { .. }) => told += 1,
            other => assert_eq!(other.unwrap().len(), 0),
        }
    }
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(told > 0, "nobody learns why");
    // Each looks when he comes, and once more for what was acknowledged by then.
    let looks = ready.turn();
    assert!((103..=200).contains(&looks), "{looks} looks of 50 in five seconds");

    let waiting = parked(20);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished());
    rig.broker.state.topics.pretend_queues(1);
    let got = waiting.await.unwrap().unwrap();
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), [of(0, 3, 1, "behind")]);
    assert_eq!(rig.letters().await, [(0, 3)]);
    rig.broker.close().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_with_other_queues_while_a_run_cannot_be_buried() {
    let rig = Rig::with_run(2, ordered()).await;
    rig.broker.state.topics.pretend_queues(TopicTable::MAX_QUEUES);
    rig.send_to(1, "other").await;
    let request = ConsumeRequest {
        group: "g".to_owned(),
        topic: "t".to_owned(),
        filter: all(),
        filter_len: 0,
        invisible: MINUTE,
        holder: "somebody".to_owned(),
    };
    let place = rig.broker.consume_place().unwrap();
    let mut stream = rig.broker.consume(place, request).await.unwrap();
    stream.add_credits(100, 1 << 20).unwrap();
    let mut next = async || match stream.next().await.unwrap() {
        Consumed::Messages(mut received) => received.messages.remove(0),
        Consumed::Settled(settled) => panic!("{settled:?}"),
    };
    let other = next().await;
    assert_eq!(seen(&other), of(1, 0, 1, "other"));
    // As long as a receive of the stream waits, and longer.
    let more = tokio::time::timeout(2 * MAX_WAIT, next()).await;
    assert!(more.is_err(), "{more:?}");
    // What it has is still its own.
    assert_eq!(rig.ack(&[&other.handle]).await, [true]);
    rig.send_to(1, "another").await;
    assert_eq!(seen(&next().await), of(1, 1, 1, "another"));
    rig.broker.state.topics.pretend_queues(1);
    assert_eq!(seen(&next().await), of(0, 3, 1, "behind"));
    drop(stream);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_group_that_goes_on_behind_what_held_it_up_gets_what_is_there_at_once() {
    let rig = Rig::with_run(1, ordered()).await;
    rig.broker.state.topics.pretend_queues(TopicTable::MAX_QUEUES);
    assert!(matches!(rig.fails().await, BrokerError::TopicLimit { .. }));
    // Within a second nobody tries again.
    assert_eq!(rig.seen(9).await, []);
    let (caller, run) = (Caller::default(), Run::Real);
    let to = Position::Latest;
    let (group, topic, queue) = ("g", "t", None);
    let reset = ResetRequest { group, topic, queue, to, caller, run };
    rig.broker.reset_offsets(reset, soon()).await.unwrap();
    rig.send_to(0, "new").await;
    assert_eq!(rig.seen(9).await, [of(0, 4, 1, "new")]);
    rig.broker.close().unwrap();
}
