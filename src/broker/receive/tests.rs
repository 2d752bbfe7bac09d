//! Receives, acks and extensions over a whole broker on a simulated disk, with a clock that the test moves.

use std::collections::BTreeSet;

use super::*;
use crate::broker::state::leases::Claim;
use crate::broker::{
    BrokerConfig, ClientKind, CommitOffset, ExtendEntry, ExtendFault, GroupChange, Hold,
    Introduction, NewMessage, Position, RedriveFault, RedriveRequest, Redriven, ResetRequest, Run,
    SendMessages, SendRequest, SettleFault, SettleRequest, SettledMessage, WaitingAction,
    WaitingMessage, WaitingPage, WaitingRequest,
};
use crate::file::Operation;
use crate::filter::Language;
use crate::format::batch::{Batch, BatchBuilder, Codec, Compressor, NewMeta};
use crate::message::{FlushMode, GroupSettings, TopicSettings, TopicType};
use crate::store::StoreConfig;
use crate::testing::{
    CrashChoice, Fault, FaultRule, ManualClock, NameChoice, SimDisk, Times, WriteChoice,
};

const MINUTE: Duration = Duration::from_secs(60);

struct Rig {
    broker: Arc<Broker>,
    clock: Arc<ManualClock>,
    disk: SimDisk,
}

/// What a message is to a test: queue, offset, delivery, body.
type Seen = (u32, u64, u32, String);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn all() -> Expression {
    Expression::parse(Language::Tags, "*").unwrap()
}

fn open(disk: &SimDisk, clock: &Arc<ManualClock>) -> Arc<Broker> {
    let store =
        StoreConfig { segment_size: 4 << 20, flush: FlushMode::Async, ..StoreConfig::new("/data") };
    let config = BrokerConfig::default();
    Broker::open(Arc::new(disk.clone()), clock.clone(), store, config).unwrap().0
}

impl Rig {
    /// With a topic `t` and a group `g`.
    async fn new(queues: u32, settings: GroupSettings) -> Self {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::new(Timestamp::new(1_000_000))));
        let broker = open(&disk, &clock);
        let topic = TopicSettings::open(queues, FlushMode::Async, TopicType::Mixed);
        broker.create_topic("t", topic, soon()).await.unwrap();
        broker.create_group("g", &settings, soon()).await.unwrap();
        Self { broker, clock, disk }
    }

    /// The same after a stop and a start.
    fn again(self) -> Self {
        self.broker.close().unwrap();
        let Self { broker, clock, disk } = self;
        drop(broker);
        Self { broker: open(&disk, &clock), clock, disk }
    }

    async fn send_to(&self, queue: u32, body: &str) {
        let queue = Some(QueueId::new(queue));
        self.store(queue, &[(body, None, None)], None).await;
    }

    async fn store(
        &self,
        queue: Option<QueueId>,
        messages: &[(&str, Option<&str>, Option<&str>)],
        codec: Option<Codec>,
    ) {
        let mut batch = BatchBuilder::new();
        for (body, tag, message_group) in messages {
            let meta = NewMeta { tag: *tag, message_group: *message_group, ..NewMeta::default() };
            batch.push(&meta, body.as_bytes());
        }
        let batch = match codec {
            Some(codec) => batch.finish_compressed(&mut Compressor::new(codec).unwrap()),
            None => batch.finish(),
        };
        let request = SendRequest { topic: "t", queue, batch, session: None, deadline: soon() };
        self.broker.send(request).await.unwrap();
        let topic = self.broker.state.topics.get("t").unwrap();
        self.broker.store.caught_up(topic.handle()).await;
    }

    fn request<'a>(&self, filter: &'a Expression, max_messages: u32) -> ReceiveRequest<'a> {
        ReceiveRequest {
            group: "g",
            topic: "t",
            filter,
            max_messages,
            max_bytes: 1 << 20,
            invisible: MINUTE,
            client: None,
            holder: "somebody",
            wait: Duration::ZERO,
            attempt: "",
            deadline: soon(),
        }
    }

    async fn receive(&self, max_messages: u32) -> Vec<ReceivedMessage> {
        let filter = all();
        self.receive_all(self.request(&filter, max_messages)).await
    }

    /// One receive may get a part: what is listed when it looks. So as many as it takes.
    async fn receive_all(&self, mut request: ReceiveRequest<'_>) -> Vec<ReceivedMessage> {
        let mut all = Vec::new();
        while request.max_messages > 0 {
            let more = self.broker.receive_messages(request).await.unwrap().messages;
            if more.is_empty() {
                break;
            }
            request.max_messages -= u32::try_from(more.len()).unwrap();
            all.extend(more);
        }
        all
    }

    async fn seen(&self, max_messages: u32) -> Vec<Seen> {
        let mut seen: Vec<_> = self.receive(max_messages).await.iter().map(seen).collect();
        seen.sort();
        seen
    }

    async fn ack(&self, handles: &[&str]) -> Vec<bool> {
        self.broker.ack("g", "t", handles, soon()).await.unwrap()
    }

    async fn hold(&self, handle: &str, hold: Hold) -> Result<String, ExtendFault> {
        let entries = [ExtendEntry { handle, hold }];
        self.broker.extend("g", "t", &entries, soon()).await.unwrap().remove(0)
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn committed(&self, queue: u32) -> u64 {
        let queue = QueueId::new(queue);
        self.broker.committed_offset("g", "t", queue, soon()).await.unwrap().next.get()
    }
}

fn seen(message: &ReceivedMessage) -> Seen {
    let batch = Batch::parse(&message.batch).unwrap();
    let (_, body) = batch.messages_in(batch.bodies()).next().unwrap().unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    (message.queue.get(), message.queue_offset.get(), message.delivery, body)
}

fn of(queue: u32, offset: u64, delivery: u32, body: &str) -> Seen {
    (queue, offset, delivery, body.to_owned())
}

#[tokio::test]
async fn each_message_is_leased_once_and_finished_for_good() {
    let rig = Rig::new(2, GroupSettings::default()).await;
    for (queue, body) in [(0, "a"), (1, "b"), (0, "c")] {
        rig.send_to(queue, body).await;
    }
    let first = rig.receive(2).await;
    assert_eq!(first.len(), 2);
    let rest = rig.receive(9).await;
    let mut got: Vec<_> = first.iter().chain(&rest).map(seen).collect();
    got.sort();
    assert_eq!(got, [of(0, 0, 1, "a"), of(0, 1, 1, "c"), of(1, 0, 1, "b")]);
    assert_eq!(rig.seen(9).await, []);

    // In any order; the position is that of the first that is not finished.
    let handle = |seen_as: &Seen| {
        let messages = first.iter().chain(&rest);
        messages.clone().find(|message| seen(message) == *seen_as).unwrap().handle.clone()
    };
    let (a, b, c) = (handle(&got[0]), handle(&got[2]), handle(&got[1]));
    assert_eq!(rig.ack(&[&c]).await, [true]);
    assert_eq!((rig.committed(0).await, rig.committed(1).await), (0, 0));
    assert_eq!(rig.ack(&[&a, &b, &a, "nonsense"]).await, [true, true, true, false]);
    assert_eq!((rig.committed(0).await, rig.committed(1).await), (2, 1));

    rig.pass(2 * MINUTE);
    let rig = rig.again();
    assert_eq!(rig.seen(9).await, []);
    assert_eq!(rig.ack(&[&a, &b, &c]).await, [true; 3], "the same acks again");
    assert_eq!((rig.committed(0).await, rig.committed(1).await), (2, 1));
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_lease_that_is_over_is_given_again_and_only_the_last_one_counts() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "a").await;
    rig.send_to(0, "b").await;
    let first = rig.receive(9).await;
    rig.pass(MINUTE - Duration::from_millis(1));
    assert_eq!(rig.seen(9).await, []);
    rig.pass(Duration::from_millis(1));
    // Late, and nobody else has it.
    assert_eq!(rig.ack(&[&first[0].handle]).await, [true]);
    let second = rig.receive(9).await;
    assert_eq!(second.iter().map(seen).collect::<Vec<_>>(), [of(0, 1, 2, "b")]);
    assert_eq!(rig.ack(&[&first[1].handle]).await, [false], "somebody else has it");
    let rig = rig.again();
    assert_eq!(rig.seen(9).await, [], "leases outlive a restart");
    assert_eq!(rig.ack(&[&first[1].handle, &second[0].handle]).await, [false, true]);
    assert_eq!(rig.ack(&[&first[1].handle, &second[0].handle]).await, [false, true]);
    assert_eq!(rig.committed(0).await, 2);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn a_lease_is_kept_on_or_given_back_by_a_new_receipt() {
    let settings =
        GroupSettings { retry_delays_ms: vec![10_000, 30_000], ..GroupSettings::default() };
    let rig = Rig::new(1, settings).await;
    rig.send_to(0, "a").await;
    let first = rig.receive(1).await.remove(0).handle;
    rig.pass(MINUTE / 2);
    let kept = rig.hold(&first, Hold::For(MINUTE)).await.unwrap();
    assert_eq!(rig.ack(&[&first]).await, [false], "another one took its place");
    assert_eq!(rig.hold(&first, Hold::Retry).await, Err(ExtendFault::BadReceipt));
    rig.pass(MINUTE - Duration::from_millis(1));
    assert_eq!(rig.seen(1).await, []);

    let back = rig.hold(&kept, Hold::Retry).await.unwrap();
    rig.pass(Duration::from_secs(9));
    assert_eq!(rig.seen(1).await, [], "the first pause of the group");
    rig.pass(Duration::from_secs(1));
    let second = rig.receive(1).await.remove(0);
    assert_eq!(seen(&second), of(0, 0, 2, "a"));
    assert_eq!(rig.ack(&[&back]).await, [false]);
    let again = rig.hold(&second.handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
    assert_eq!(rig.ack(&[&second.handle]).await, [false]);
    let third = rig.receive(1).await.remove(0);
    assert_eq!(seen(&third), of(0, 0, 3, "a"));
    let _ = again;

    rig.hold(&third.handle, Hold::Undo).await.unwrap();
    let same = rig.receive(1).await.remove(0);
    assert_eq!(seen(&same), of(0, 0, 3, "a"), "that delivery did not count");
    let long = Duration::from_secs(12 * 60 * 60);
    let held = rig.hold(&same.handle, Hold::For(long)).await.unwrap();
    rig.pass(MINUTE);
    assert_eq!(rig.hold(&held, Hold::For(long)).await, Err(ExtendFault::TooLong));
    assert_eq!(rig.ack(&[&held]).await, [true]);
    assert_eq!(rig.committed(0).await, 1);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn receipts_are_good_for_their_group_and_topic_alone() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let topic = TopicSettings::open(1, FlushMode::Async, TopicType::Mixed);
    rig.broker.create_topic("u", topic, soon()).await.unwrap();
    rig.broker.create_group("h", &GroupSettings::default(), soon()).await.unwrap();
    rig.send_to(0, "a").await;
    let handle = rig.receive(1).await.remove(0).handle;
    for (group, topic) in [("h", "t"), ("g", "u")] {
        let acked = rig.broker.ack(group, topic, &[&handle], soon()).await.unwrap();
        assert_eq!(acked, [false], "{group} {topic}");
    }
    // Made again under the same name, they are others.
    rig.broker.delete_group("g", soon()).await.unwrap();
    rig.broker.create_group("g", &GroupSettings::default(), soon()).await.unwrap();
    assert_eq!(rig.ack(&[&handle]).await, [false]);
    let again = rig.receive(1).await.remove(0);
    assert_eq!(seen(&again), of(0, 0, 1, "a"));
    rig.broker.delete_topic("t", soon()).await.unwrap();
    rig.broker.create_topic("t", topic, soon()).await.unwrap();
    assert_eq!(rig.ack(&[&again.handle]).await, [false]);
    assert_eq!(rig.seen(1).await, []);
    rig.broker.close().unwrap();
}

#[tokio::test]
async fn messages_come_alone_whatever_record_they_lie_in() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    let queue = Some(QueueId::ZERO);
    let messages: Vec<_> = ["a", "b", "c", "d", "e"].map(|body| (body, None, None)).to_vec();
    rig.store(queue, &messages, None).await;
    rig.store(queue, &messages, Some(Codec::Lz4)).await;
    let mut got = Vec::new();
    for count in [2, 2, 2, 4] {
        let received = rig.receive(count).await;
        assert_eq!(received.len(), count as usize);
        got.extend(received);
    }
    let bodies: String = got.iter().map(|message| seen(message).3).collect();
    assert_eq!(bodies, "abcdeabcde");
    let offsets: Vec<_> = got.iter().map(|message| message.queue_offset.get()).collect();
    assert_eq!(offsets, (0..10).collect::<Vec<_>>());
    let ids: BTreeSet<_> = got.iter().map(|message| message.id).collect();
    assert_eq!(ids.len(), 10);
    rig.broker.close().unwrap();
}

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
    let filter = Expression::parse(Language::Tags, "BB").unwrap();
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
    let tags = |text| Expression::parse(Language::Tags, text).unwrap();
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
    let rig = Rig::new(1, GroupSettings { one_filter: true, ..GroupSettings::default() }).await;
    rig.send_to(0, "x").await;
    let tags = |text| Expression::parse(Language::Tags, text).unwrap();
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
async fn who_waits_is_woken_by_a_message_and_by_one_that_comes_back() {
    let rig = Rig::new(4, GroupSettings::default()).await;
    assert_eq!(rig.seen(1).await, []);
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        while rig.broker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        rig.send_to(3, "a").await;
    });
    let first = received.unwrap().messages;
    assert_eq!(first.iter().map(seen).collect::<Vec<_>>(), [of(3, 0, 1, "a")]);
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        while rig.broker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        rig.hold(&first[0].handle, Hold::RetryAfter(Duration::ZERO)).await.unwrap();
    });
    let second = received.unwrap().messages;
    assert_eq!(second.iter().map(seen).collect::<Vec<_>>(), [of(3, 0, 2, "a")]);
    // Neither a disabled group nor a broker that stops keeps anybody waiting.
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        while rig.broker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
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
            let request = ReceiveRequest {
                holder: "",
                group: "g",
                topic: "t",
                filter: &filter,
                max_messages: 8,
                max_bytes: 1 << 20,
                invisible: MINUTE,
                client: None,
                wait: Duration::from_secs(20),
                attempt: "",
                deadline: soon(),
            };
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
        while rig.broker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        (0..3).for_each(|_| rig.broker.tend_idle());
        rig.send_to(3, "c").await;
    });
    let received: Vec<_> = received.unwrap().messages.iter().map(seen).collect();
    assert_eq!(received, [of(3, 0, 1, "c")]);
    rig.broker.close().unwrap();
}

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

/// An ordered group: `retries` pauses of a minute.
fn ordered() -> GroupSettings {
    GroupSettings {
        ordered: true,
        retry_delays_ms: vec![60_000],
        max_attempts: Some(2),
        ..GroupSettings::default()
    }
}

impl Rig {
    async fn send_ordered(&self, message_group: &str, body: &str) {
        self.store(None, &[(body, None, Some(message_group))], None).await;
    }

    /// Bodies and deliveries, in the order in which they come.
    async fn bodies(&self, max_messages: u32) -> (Vec<(String, u32)>, Vec<String>) {
        let received = self.receive(max_messages).await;
        let handles = received.iter().map(|message| message.handle.clone()).collect();
        (received.iter().map(|message| (seen(message).3, message.delivery)).collect(), handles)
    }
}

fn bodies(wanted: &[(&str, u32)]) -> Vec<(String, u32)> {
    wanted.iter().map(|(body, delivery)| ((*body).to_owned(), *delivery)).collect()
}

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

/// A batch of one message that says it is compressed, and cannot be decompressed.
fn not_decompressible(tag: &str) -> bytes::Bytes {
    let mut batch = BatchBuilder::new();
    let meta = NewMeta { tag: Some(tag), keys: vec!["k"], ..NewMeta::default() };
    batch.push(&meta, &[b'x'; 4_096]);
    let batch = batch.finish_compressed(&mut Compressor::new(Codec::Lz4).unwrap());
    let bodies = Batch::parse(&batch).unwrap().bodies().to_vec();
    let mut bytes = batch.to_vec();
    let crc = crate::format::crc32c(&bodies).to_le_bytes();
    let at = bytes.windows(4).position(|four| four == crc).unwrap();
    let len = bytes.len();
    bytes[len - bodies.len() / 2..].fill(0xff);
    let crc = crate::format::crc32c(&bytes[len - bodies.len()..]).to_le_bytes();
    bytes[at..at + 4].copy_from_slice(&crc);
    bytes.into()
}

impl Rig {
    /// The dead letters of `g`, as another group reads them.
    async fn dead(&self) -> Vec<ReceivedMessage> {
        let dead = self.broker.state.topics.get("%DLQ%g").unwrap();
        self.broker.store.caught_up(dead.handle()).await;
        let name = "readers";
        self.broker.create_group(name, &GroupSettings::default(), soon()).await.unwrap();
        let filter = all();
        let request = self.request(&filter, 9);
        self.receive_all(ReceiveRequest { group: name, topic: "%DLQ%g", ..request }).await
    }
}

#[tokio::test]
async fn what_cannot_be_decompressed_is_a_dead_letter_without_body_that_does_not_go_back() {
    for settings in [GroupSettings::default(), ordered()] {
        let rig = Rig::new(1, settings).await;
        rig.send_to(0, "1").await;
        let batch = not_decompressible("tag");
        let request = SendRequest {
            topic: "t",
            queue: Some(QueueId::ZERO),
            batch,
            session: None,
            deadline: soon(),
        };
        let lost = rig.broker.send(request).await.unwrap();
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
        let request = RedriveRequest {
            group: "g",
            ids: &[],
            max: 9,
            for_all: false,
            run: Run::Real,
            deadline: soon(),
        };
        let redriven = rig.broker.redrive(&request).await.unwrap();
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
        async move { broker.forward_to_dead_letters("g", "t", &handle, soon()).await }
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
            rig.broker.forward_to_dead_letters("g", "t", &handle, soon()).await.unwrap();
        }
        let topic = rig.broker.state.topics.get("%DLQ%g").unwrap();
        rig.broker.store.caught_up(topic.handle()).await;
        let filter = all();
        let dead = ReceiveRequest { topic: "%DLQ%g", ..rig.request(&filter, 9) };
        let mut handles = Vec::new();
        for delivery in 1..=5 {
            let messages = rig.receive_all(dead).await;
            let both = [of(0, 0, delivery, "a"), of(0, 1, delivery, "b")];
            assert_eq!(messages.iter().map(seen).collect::<Vec<_>>(), both);
            if delivery == 4 {
                let given_up = messages[0].handle.as_str();
                let again = rig.broker.forward_to_dead_letters("g", "%DLQ%g", given_up, soon());
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

/// More queues than a receive looks at by itself.
const VERY_MANY: u32 = FEW_QUEUES + 1;

#[tokio::test]
async fn a_full_queue_goes_on_when_its_messages_became_dead_letters() {
    use crate::broker::state::offsets::leased::MAX_OPEN_IN_QUEUE;
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
async fn who_waits_finds_what_other_settings_of_the_group_let_him_have() {
    let rig = Rig::new(1, ordered()).await;
    rig.send_ordered("a", "a1").await;
    assert_eq!(rig.bodies(1).await.0, bodies(&[("a1", 1)]));
    rig.send_ordered("a", "a2").await;
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        while rig.broker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let change = GroupChange { ordered: Some(false), ..GroupChange::default() };
        rig.broker.update_group("g", &change, soon()).await.unwrap();
    });
    let second = received.unwrap().messages;
    assert_eq!(second.iter().map(seen).collect::<Vec<_>>(), [of(0, 1, 1, "a2")]);
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
            let forwarded = rig.broker.forward_to_dead_letters("g", topic, &message.handle, soon());
            forwarded.await.unwrap();
        }
    }
    rig.broker.delete_topic("gone", soon()).await.unwrap();

    let redrive = async |rig: &Rig, ids: &[MessageId], max, run| {
        let deadline = soon();
        let request = RedriveRequest { group: "g", ids, max, for_all: false, run, deadline };
        rig.broker.redrive(&request).await.unwrap()
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
    assert_eq!((history.is_back, history.id.index), (true, 0));
    assert_eq!(history.last_client, "somebody");
    let left = redrive(&rig, &[], 9, Run::Real).await;
    assert_eq!(faults(&left), [Some(RedriveFault::NoTopic)], "it stays, and can be tried again");
    assert_eq!(rig.broker.counters().redriven.get(), 1, "since the start");
    let none = RedriveRequest {
        group: "nobody",
        ids: &[],
        max: 1,
        for_all: false,
        run: Run::Dry,
        deadline: soon(),
    };
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
        rig.broker.forward_to_dead_letters("g", "t", &message.handle, soon()).await.unwrap();
        let redrive = RedriveRequest {
            group: "g",
            ids: &[],
            max: 9,
            for_all,
            run: Run::Real,
            deadline: soon(),
        };
        assert_eq!(rig.broker.redrive(&redrive).await.unwrap().len(), 1);
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

#[tokio::test]
async fn the_timer_wakes_who_waits_when_a_lease_is_over() {
    let rig = Rig::new(1, GroupSettings::default()).await;
    rig.send_to(0, "a").await;
    assert_eq!(rig.receive(1).await.len(), 1);
    let filter = all();
    let waiting = ReceiveRequest { wait: Duration::from_secs(20), ..rig.request(&filter, 9) };
    let (received, ()) = tokio::join!(rig.broker.receive_messages(waiting), async {
        while rig.broker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        rig.pass(MINUTE);
        rig.broker.tend_due().await;
    });
    let second = received.unwrap().messages;
    assert_eq!(second.iter().map(seen).collect::<Vec<_>>(), [of(0, 0, 2, "a")]);
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
        let introduction = Introduction {
            kind: ClientKind::PushConsumer,
            language: String::new(),
            version: String::new(),
            hostname: String::new(),
            group: Some("g".to_owned()),
            topics: Vec::new(),
            subscriptions: Vec::new(),
        };
        assert!(rig.broker.introduce_client(id, introduction, None, None));
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

#[tokio::test]
async fn at_the_bound_of_open_messages_fresh_ones_wait_until_some_are_finished() {
    use crate::broker::state::offsets::leased::MAX_OPEN_IN_QUEUE;
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
                let request = ReceiveRequest {
                    holder: "",
                    group: "g",
                    topic: "t",
                    filter: &filter,
                    max_messages: 3,
                    max_bytes: 1 << 20,
                    invisible: MINUTE,
                    client: None,
                    wait: Duration::from_secs(25),
                    attempt: "",
                    deadline: soon(),
                };
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
            let request = ReceiveRequest {
                holder: "",
                group: "g",
                topic: "t",
                filter: &filter,
                max_messages: 8,
                max_bytes: 1 << 20,
                invisible: MINUTE,
                client: None,
                wait: Duration::from_secs(25),
                attempt: "",
                deadline: soon(),
            };
            broker.receive_messages(request).await.unwrap().messages.len()
        });
    }
    while rig.broker.waiting() < 10_000 {
        tokio::task::yield_now().await;
    }
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
        while rig.broker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
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
