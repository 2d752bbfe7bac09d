//! Receives, acks and extensions over a whole broker on a simulated disk, with a clock that the test moves.

mod bounds;
mod dead;
mod filters;
mod lost;
mod memory;
mod order;
mod refused;
mod shares;
mod tries;
mod waiting;
mod woken;

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::*;
use crate::broker::state::offsets::{Caller, Expected, Offsets};
use crate::broker::stop_clock;
use crate::broker::{
    BrokerConfig, ClientKind, CommitOffset, ExtendEntry, ExtendFault, GroupChange, Hold,
    Introduction, NewMessage, OnlySuch, Position, Receipt, RedriveFault, RedrivePage,
    RedriveRequest, Redriven, ResetRequest, Run, SendMessages, SendRequest, SettleFault,
    SettleRequest, SettledMessage, WaitingAction, WaitingMessage, WaitingPage, WaitingRequest,
};
use crate::file::Operation;
use crate::filter::Language;
use crate::format::batch::{Batch, BatchBuilder, Codec, Compressor, NewMeta};
use crate::message::{FlushMode, GroupSettings, InitialPosition, TopicSettings, TopicType};
use crate::store::StoreConfig;
use crate::testing::{
    CrashChoice, Fault, FaultRule, ManualClock, NameChoice, SimDisk, Times, WriteChoice,
};

const MINUTE: Duration = Duration::from_secs(60);

/// More queues than a receive looks at by itself.
const VERY_MANY: u32 = FEW_QUEUES + 1;

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

fn tags(text: &str) -> Expression {
    Expression::parse(Language::Tags, text).unwrap()
}

fn all() -> Expression {
    tags("*")
}

/// A receive of `g` from `t` that does not wait.
fn receive_request(filter: &Expression, max_messages: u32) -> ReceiveRequest<'_> {
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

/// Up to nine dead letters of `g`, whichever come first.
fn redrive_request() -> RedriveRequest<'static> {
    RedriveRequest {
        group: "g",
        ids: &[],
        only: OnlySuch::default(),
        max: 9,
        per_second: None,
        for_all: false,
        run: Run::Real,
        deadline: soon(),
    }
}

/// What a push consumer of `g` says of itself.
fn introduction() -> Introduction {
    Introduction {
        kind: ClientKind::PushConsumer,
        language: String::new(),
        version: String::new(),
        hostname: String::new(),
        group: Some("g".to_owned()),
        topics: Vec::new(),
        subscriptions: Vec::new(),
    }
}

fn open(disk: &SimDisk, clock: &Arc<ManualClock>) -> Arc<Broker> {
    open_as(disk, clock, BrokerConfig::default())
}

fn open_as(disk: &SimDisk, clock: &Arc<ManualClock>, config: BrokerConfig) -> Arc<Broker> {
    let store =
        StoreConfig { segment_size: 4 << 20, flush: FlushMode::Async, ..StoreConfig::new("/data") };
    Broker::open(Arc::new(disk.clone()), clock.clone(), store, config).unwrap().0
}

impl Rig {
    /// With a topic `t` and a group `g`.
    async fn new(queues: u32, settings: GroupSettings) -> Self {
        Self::with(queues, settings, BrokerConfig::default()).await
    }

    /// The same of a broker with other bounds.
    async fn with(queues: u32, settings: GroupSettings, config: BrokerConfig) -> Self {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::new(Timestamp::new(1_000_000))));
        let broker = open_as(&disk, &clock, config);
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
        self.put(queue, batch).await;
    }

    async fn send_batch(&self, batch: Bytes) -> Receipt {
        self.put(Some(QueueId::ZERO), batch).await
    }

    async fn put(&self, queue: Option<QueueId>, batch: Bytes) -> Receipt {
        let request = SendRequest { topic: "t", queue, batch, session: None, deadline: soon() };
        let receipt = self.broker.send(request).await.unwrap();
        let topic = self.broker.state.topics.get("t").unwrap();
        // A receive that waits for that has a deadline, to which a paused clock would jump.
        self.broker.store.caught_up(topic.handle()).await;
        receipt
    }

    fn request<'a>(&self, filter: &'a Expression, max_messages: u32) -> ReceiveRequest<'a> {
        receive_request(filter, max_messages)
    }

    /// Waits until so many wait for messages.
    async fn until_wait(&self, count: usize) {
        while self.broker.waiting() < count {
            tokio::task::yield_now().await;
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

/// A batch of one message that says it is compressed, and cannot be decompressed.
fn not_decompressible(tags: &[&str]) -> bytes::Bytes {
    let mut batch = BatchBuilder::new();
    for tag in tags {
        let meta = NewMeta { tag: Some(tag), keys: vec!["k"], ..NewMeta::default() };
        batch.push(&meta, &[b'x'; 4_096]);
    }
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
    /// Makes a dead letter of a message that `g` has.
    async fn give_up(&self, handle: &str) {
        self.broker.forward_to_dead_letters("g", "t", (handle, 0), soon()).await.unwrap();
    }

    /// Waits until all dead letters of `g` can be read. Returns their topic.
    async fn dead_letters(&self) -> Arc<TopicEntry> {
        let dead = self.broker.state.topics.get("%DLQ%g").unwrap();
        self.broker.store.caught_up(dead.handle()).await;
        dead
    }

    /// The dead letters of `g`, as another group reads them.
    async fn dead(&self) -> Vec<ReceivedMessage> {
        self.dead_letters().await;
        let name = "readers";
        self.broker.create_group(name, &GroupSettings::default(), soon()).await.unwrap();
        let filter = all();
        let request = self.request(&filter, 9);
        self.receive_all(ReceiveRequest { group: name, topic: "%DLQ%g", ..request }).await
    }
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
