//! What was delivered and is not finished stays beyond its time: over a broker whose storage threads are stepped by
//! hand.

use std::pin::pin;

use super::*;
use crate::broker::{
    ExtendEntry, Hold, Position, ReceiveRequest, ReceivedMessage, ResetRequest, Run, SettleRequest,
    WaitingAction, WaitingRequest,
};
use crate::file::disk::Disk as _;
use crate::filter::{Expression, Language};
use crate::format::batch::Batch;
use crate::message::GroupSettings;
use crate::store::{Unfinished, Workers};
use crate::testing::{CrashChoice, ManualClock, SimDisk, now};

const SEGMENT: u64 = 64 << 10;
/// What the topic keeps.
const TIME: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

struct Rig {
    disk: SimDisk,
    clock: Arc<ManualClock>,
    broker: Arc<Broker>,
    workers: Workers,
    keep_unfinished: u64,
    /// The topic of what fills segments.
    filler: &'static str,
}

fn open(disk: &SimDisk, clock: &Arc<ManualClock>, keep_unfinished: u64) -> (Arc<Broker>, Workers) {
    let store = StoreConfig {
        segment_size: SEGMENT,
        hot_bytes: SEGMENT,
        flush: FlushMode::Async,
        disk_reserve: SEGMENT,
        keep_unfinished,
        ..StoreConfig::new("/data")
    };
    let config = BrokerConfig::default();
    Broker::open_stepped(Arc::new(disk.clone()), clock.clone(), store, config).unwrap()
}

fn stays(segments: u64) -> Unfinished {
    Unfinished { segments, bytes: segments * SEGMENT }
}

fn expired(time_ms: Option<u64>, bytes: Option<u64>) -> TopicSettings {
    let settings = TopicSettings::open(2, FlushMode::Async, TopicType::Mixed);
    TopicSettings { retention: Retention { time_ms, bytes }, ..settings }
}

impl Rig {
    /// With a topic `t` that keeps messages for ten seconds, and groups `g` and `h`.
    fn new() -> Self {
        Self::with(1 << 30, expired(Some(10_000), None))
    }

    fn with(keep_unfinished: u64, settings: TopicSettings) -> Self {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::new(Timestamp::new(1_000_000))));
        let (broker, workers) = open(&disk, &clock, keep_unfinished);
        let filler = "f";
        let mut rig = Self { disk, clock, broker, workers, keep_unfinished, filler };
        for name in ["t", filler] {
            let create = async |broker: &Broker| broker.create_topic(name, settings, soon()).await;
            rig.run(create).unwrap();
        }
        for name in ["g", "h"] {
            let group = GroupSettings {
                retry_delays_ms: vec![MINUTE.as_millis() as u64],
                ..Default::default()
            };
            rig.run(async |broker| broker.create_group(name, &group, soon()).await.map(drop))
                .unwrap();
        }
        rig
    }

    /// The answer of a request, for which the storage threads work as long as it takes.
    fn run<T>(&mut self, request: impl AsyncFnOnce(&Broker) -> T) -> T {
        let broker = Arc::clone(&self.broker);
        let mut answer = pin!(request(&broker));
        for _ in 0..100 {
            if let Some(answer) = now(answer.as_mut()) {
                return answer;
            }
            self.workers.dispatch.step();
            self.workers.flush.flush_all();
            self.workers.flush.step();
            self.workers.seal.step();
            self.workers.allocate.step();
        }
        panic!("a request waits for ever");
    }

    fn send(&mut self, body: &str) {
        self.send_to("t", 0, body);
    }

    fn send_to(&mut self, topic: &str, queue: u32, body: &str) {
        let mut batch = BatchBuilder::new();
        batch.push(&NewMeta::default(), body.as_bytes());
        let (queue, batch) = (Some(QueueId::new(queue)), batch.finish());
        let request = SendRequest { topic, queue, batch, session: None, deadline: soon() };
        self.run(async |broker| broker.send(request).await).unwrap();
    }

    /// Sends to another queue until so many segments more are finished and sealed.
    fn fill(&mut self, segments: u64) {
        let begun = |rig: &Self| rig.broker.status().watermarks.appended.get() / SEGMENT;
        let wanted = begun(self) + segments;
        let body = "x".repeat(4_000);
        while begun(self) < wanted {
            self.send_to(self.filler, 1, &body);
            self.workers.settle();
        }
    }

    /// A message that `g` has, and the rest of its segment.
    fn stuck(&mut self, body: &str) -> ReceivedMessage {
        self.send(body);
        let mut received = self.receive("g");
        assert_eq!(received.iter().map(seen).collect::<Vec<_>>().last().unwrap().2, body);
        self.fill(1);
        received.pop().unwrap()
    }

    /// All of queue 0 that a group can have: queue 1 is passed over.
    fn receive(&mut self, group: &str) -> Vec<ReceivedMessage> {
        self.receive_of(group, "t")
    }

    fn receive_of(&mut self, group: &str, topic: &str) -> Vec<ReceivedMessage> {
        let filter = Expression::parse(Language::Tags, "*").unwrap();
        let mut all = Vec::new();
        loop {
            let request = ReceiveRequest {
                group,
                topic,
                filter: &filter,
                max_messages: 100,
                max_bytes: 1 << 20,
                invisible: MINUTE,
                client: None,
                holder: "somebody",
                wait: Duration::ZERO,
                attempt: "",
                deadline: soon(),
            };
            let got = self.run(async |broker| broker.receive_messages(request).await).unwrap();
            if got.messages.is_empty() {
                return all;
            }
            let (of_zero, others): (Vec<_>, Vec<_>) =
                got.messages.into_iter().partition(|message| message.queue == QueueId::ZERO);
            let handles: Vec<_> = others.iter().map(|message| message.handle.as_str()).collect();
            assert_eq!(self.ack(group, &handles), vec![true; handles.len()]);
            all.extend(of_zero);
        }
    }

    fn ack(&mut self, group: &str, handles: &[&str]) -> Vec<bool> {
        if handles.is_empty() {
            return Vec::new();
        }
        self.run(async |broker| broker.ack(group, "t", handles, soon()).await).unwrap()
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// What is dead goes; what stays for messages that are not finished.
    fn clean(&mut self) -> Unfinished {
        self.workers.settle();
        self.broker.store.clean_soon();
        self.workers.settle();
        self.broker.status().store.unfinished
    }

    fn gone(&self) -> u64 {
        self.broker.counters().gone.get()
    }

    fn deleted(&self) -> u64 {
        self.broker.status().store.deleted_segments
    }

    fn again(self) -> Self {
        let Self { disk, clock, broker, workers, keep_unfinished, filler } = self;
        broker.close_stepped(workers).unwrap();
        drop(broker);
        let (broker, workers) = open(&disk, &clock, keep_unfinished);
        Self { disk, clock, broker, workers, keep_unfinished, filler }
    }

    /// The disk as a cut of the power leaves it, if nothing landed that was not synced.
    fn cut_power(self) -> Self {
        let Self { disk, clock, broker, workers, keep_unfinished, filler } = self;
        let disk = disk.crash_image(&CrashChoice::NOTHING);
        std::mem::forget((broker, workers));
        let (broker, workers) = open(&disk, &clock, keep_unfinished);
        Self { disk, clock, broker, workers, keep_unfinished, filler }
    }
}

/// Offset, delivery, body.
fn seen(message: &ReceivedMessage) -> (u64, u32, String) {
    let batch = Batch::parse(&message.batch).unwrap();
    let (_, body) = batch.messages_in(batch.bodies()).next().unwrap().unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    (message.queue_offset.get(), message.delivery, body)
}

fn of(offset: u64, delivery: u32, body: &str) -> (u64, u32, String) {
    (offset, delivery, body.to_owned())
}

fn all_seen(messages: &[ReceivedMessage]) -> Vec<(u64, u32, String)> {
    let mut all: Vec<_> = messages.iter().map(seen).collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_message_that_waits_outlives_its_time_and_its_segment_goes_once_it_is_finished() {
    let mut rig = Rig::new();
    rig.stuck("a");
    rig.fill(2);
    rig.pass(2 * TIME);
    assert_eq!(rig.clean(), stays(1));
    assert_eq!(rig.deleted(), 2, "the segments in which nothing is open");
    let topic = rig.broker.state.topics.get("t").unwrap();
    let range = rig
        .run(async |broker| broker.store.queue_bounds(topic.handle(), QueueId::ZERO).await)
        .unwrap();
    assert_eq!((range.min.get(), range.max.get()), (1, 1), "nobody else sees it any more");

    rig.pass(MINUTE);
    assert_eq!(rig.clean(), stays(1));
    let second = rig.receive("g");
    assert_eq!(all_seen(&second), [of(0, 2, "a")]);
    assert_eq!(rig.clean(), stays(1), "it is leased");
    assert_eq!(rig.gone(), 0);
    let deleted = rig.deleted();
    assert_eq!(rig.ack("g", &[&second[0].handle]), [true]);
    assert_eq!(rig.clean(), stays(0));
    assert_eq!(rig.deleted(), deleted + 1);
    assert_eq!((rig.gone(), rig.broker.status().store.unfinished_deleted), (0, 0));
}

#[tokio::test]
async fn a_message_that_waits_outlives_the_size_of_its_topic_also_when_that_grows_but_no_purge() {
    let mut rig = Rig::with(1 << 30, expired(None, Some(1 << 20)));
    rig.filler = "t";
    rig.stuck("a");
    rig.fill(24);
    assert_eq!(rig.clean(), stays(1));
    assert!(rig.deleted() >= 2, "{}", rig.deleted());
    let changes = TopicChanges { retention_bytes: Some(Keep::All), ..TopicChanges::default() };
    rig.run(async |broker| broker.update_topic("t", &changes, Force::No, soon()).await.map(drop))
        .unwrap();
    rig.pass(MINUTE);
    assert_eq!(all_seen(&rig.receive("g")), [of(0, 2, "a")]);
    let mut rig = rig.again();
    rig.pass(MINUTE);
    assert_eq!(all_seen(&rig.receive("g")), [of(0, 3, "a")]);
    assert_eq!(rig.clean(), stays(1));

    let gone = rig.gone();
    rig.run(async |broker| broker.purge_topic("t", Purge::Topic, soon()).await.map(drop)).unwrap();
    assert_eq!(rig.clean(), stays(0));
    rig.pass(MINUTE);
    assert_eq!(all_seen(&rig.receive("g")), []);
    assert_eq!(rig.gone(), gone + 1);
}

#[tokio::test]
async fn a_purge_is_remembered_over_a_restart_as_what_nothing_outlives() {
    for whole in [true, false] {
        let mut rig = Rig::new();
        rig.send("a");
        assert_eq!(rig.receive("g").len(), 1);
        let what = match whole {
            true => Purge::Topic,
            false => Purge::Queue { queue: QueueId::ZERO, up_to: None },
        };
        rig.run(async |broker| broker.purge_topic("t", what, soon()).await.map(drop)).unwrap();
        // It lies in a segment that is there.
        let mut rig = rig.again();
        rig.pass(2 * MINUTE);
        assert_eq!(all_seen(&rig.receive("g")), []);
        assert_eq!(rig.gone(), 1, "the whole topic: {whole}");
    }
}

#[tokio::test]
async fn what_ends_a_lease_ends_what_stays_for_it() {
    for end in ["buried", "reset", "group deleted", "topic deleted"] {
        let mut rig = Rig::new();
        let stuck = rig.stuck("a");
        rig.pass(2 * TIME);
        assert_eq!(rig.clean(), stays(1), "{end}");
        let deleted = rig.deleted();
        let handle = &stuck.handle;
        match end {
            "buried" => {
                let forward = async |broker: &Broker| {
                    broker.forward_to_dead_letters("g", "t", (handle, 0), soon()).await
                };
                rig.run(forward).unwrap();
                rig.workers.settle();
                let dead = rig.broker.state.topics.get("%DLQ%g").unwrap();
                let range = rig.run(async |broker| {
                    broker.store.queue_bounds(dead.handle(), QueueId::ZERO).await
                });
                assert_eq!(range.unwrap().max.get(), 1);
            }
            "reset" => {
                let request = ResetRequest {
                    group: "g",
                    topic: "t",
                    queue: None,
                    to: Position::Latest,
                    caller: Default::default(),
                    run: Run::Real,
                };
                rig.run(async |broker| broker.reset_offsets(request, soon()).await.map(drop))
                    .unwrap();
            }
            "group deleted" => {
                rig.run(async |broker| broker.delete_group("g", soon()).await).unwrap()
            }
            _ => rig.run(async |broker| broker.delete_topic("t", soon()).await).unwrap(),
        }
        assert_eq!(rig.clean(), stays(0), "{end}");
        assert!(rig.deleted() > deleted, "{end}");
        assert_eq!(rig.gone(), 0, "{end}");
    }
}

#[tokio::test]
async fn beyond_its_bound_the_oldest_segments_go_and_their_messages_count_as_gone() {
    for (quota, kept) in [(2 * SEGMENT + 1, 2), (SEGMENT, 1), (0, 0)] {
        let mut rig = Rig::with(quota, expired(Some(10_000), None));
        let bodies = ["a", "b", "c", "d"];
        for body in bodies {
            rig.stuck(body);
        }
        rig.pass(2 * TIME);
        assert_eq!(rig.clean(), stays(kept), "{quota}");
        let status = rig.broker.status().store;
        assert_eq!((status.unfinished_deleted, status.deleted_segments), (4 - kept, 4 - kept));
        rig.pass(MINUTE);
        let wanted: Vec<_> =
            (0..).zip(bodies).skip(4 - kept as usize).map(|(n, body)| of(n, 2, body)).collect();
        assert_eq!(all_seen(&rig.receive("g")), wanted);
        assert_eq!(rig.gone(), 4 - kept, "{quota}");
    }
}

#[tokio::test]
async fn on_a_full_disk_the_oldest_go_one_a_second_until_there_is_space() {
    let mut rig = Rig::new();
    for body in ["a", "b", "c"] {
        rig.stuck(body);
    }
    rig.pass(2 * TIME);
    assert_eq!(rig.clean(), stays(3));
    // A state image is there that makes all of it safe to go.
    rig.fill(2);
    rig.pass(2 * TIME);
    assert_eq!(rig.clean(), stays(3));
    rig.disk.set_capacity(Some(SEGMENT));
    for left in [2, 1] {
        rig.pass(Duration::from_secs(1));
        rig.workers.settle();
        assert!(rig.broker.status().store.disk_is_short);
        assert_eq!(rig.broker.status().store.unfinished, stays(left));
        rig.workers.settle();
        assert_eq!(
            rig.broker.status().store.unfinished,
            stays(left),
            "not before a second is over"
        );
    }
    rig.disk.set_capacity(None);
    rig.pass(MINUTE);
    assert_eq!(rig.clean(), stays(1));
    assert_eq!(rig.broker.status().store.unfinished_deleted, 2);
    assert_eq!(all_seen(&rig.receive("g")), [of(2, 2, "c")]);
    assert_eq!(rig.gone(), 2);
}

#[tokio::test]
async fn on_a_full_disk_what_another_image_lets_go_goes_before_what_is_not_finished() {
    let mut rig = Rig::new();
    rig.stuck("a");
    rig.fill(2);
    rig.pass(2 * TIME);
    assert_eq!(rig.clean(), stays(1));
    let deleted = rig.deleted();
    // Dead behind the newest image, and nothing in it that is not finished.
    rig.fill(2);
    rig.pass(2 * TIME);
    let much = 1 << 40;
    rig.disk.set_capacity(Some(much));
    let used = much - rig.disk.free_space(std::path::Path::new("/data")).unwrap();
    rig.disk.set_capacity(Some(used + SEGMENT / 2));
    rig.workers.settle();
    assert!(rig.deleted() > deleted, "{deleted}");
    assert!(!rig.broker.status().store.disk_is_short);
    assert_eq!(rig.broker.status().store.unfinished, stays(1));
    assert_eq!(rig.broker.status().store.unfinished_deleted, 0);
}

#[tokio::test]
async fn what_stays_stays_over_a_stop_and_over_a_cut_of_the_power() {
    for is_clean in [true, false] {
        let mut rig = Rig::new();
        let stuck = rig.stuck("a");
        rig.pass(2 * TIME);
        rig.workers.settle();
        let mut rig = if is_clean { rig.again() } else { rig.cut_power() };
        rig.fill(1);
        rig.pass(2 * TIME);
        assert_eq!(rig.clean(), stays(1), "clean: {is_clean}");
        let mut rig = if is_clean { rig.again() } else { rig.cut_power() };
        assert_eq!(rig.clean(), stays(1), "clean: {is_clean}");
        let hold = [ExtendEntry { handle: &stuck.handle, hold: Hold::Retry }];
        rig.run(async |broker| broker.extend("g", "t", &hold, soon()).await)
            .unwrap()
            .remove(0)
            .unwrap();
        assert_eq!(rig.clean(), stays(1), "clean: {is_clean}");
        rig.pass(MINUTE);
        let second = rig.receive("g");
        assert_eq!(all_seen(&second), [of(0, 2, "a")]);
        let mut rig = if is_clean { rig.again() } else { rig };
        assert_eq!(rig.ack("g", &[&second[0].handle]), [true], "a receipt of before the start");
        assert_eq!(rig.clean(), stays(0), "clean: {is_clean}");
        assert_eq!(rig.gone(), 0);
    }
}

#[tokio::test]
async fn what_one_of_two_groups_has_not_finished_stays_and_comes_to_that_one_alone() {
    let mut rig = Rig::new();
    rig.send("a");
    let (of_g, of_h) = (rig.receive("g"), rig.receive("h"));
    rig.fill(1);
    rig.pass(2 * TIME);
    assert_eq!(rig.ack("g", &[&of_g[0].handle]), [true]);
    assert_eq!(rig.clean(), stays(1));
    rig.pass(MINUTE);
    assert_eq!(all_seen(&rig.receive("g")), []);
    let second = rig.receive("h");
    assert_eq!(all_seen(&second), [of(0, 2, "a")]);
    assert_eq!(rig.ack("h", &[&of_h[0].handle]), [false]);
    assert_eq!(rig.ack("h", &[&second[0].handle]), [true]);
    assert_eq!(rig.clean(), stays(0));
}

#[tokio::test]
async fn what_was_never_delivered_goes_when_its_time_is_over() {
    let mut rig = Rig::new();
    rig.stuck("a");
    rig.send("unread");
    rig.fill(1);
    rig.pass(2 * TIME);
    assert_eq!(rig.clean(), stays(1));
    assert_eq!(rig.deleted(), 1, "that of what nobody had");
    rig.pass(MINUTE);
    assert_eq!(all_seen(&rig.receive("g")), [of(0, 2, "a")]);
    assert_eq!(rig.gone(), 1);
}

#[tokio::test]
async fn what_stays_is_listed_and_found_by_its_id_and_becomes_a_dead_letter_with_its_body() {
    let mut rig = Rig::new();
    rig.stuck("a");
    rig.pass(2 * TIME);
    assert_eq!(rig.clean(), stays(1));
    rig.pass(MINUTE);
    let age = rig.run(async |broker| broker.progress("g", "t", 0, 1, soon()).await);
    let age = age.unwrap()[0].lag_ms.unwrap();
    assert!((80_000..81_000).contains(&age), "{age}");
    let (group, topic, deadline) = ("g", "t", soon());
    let request = WaitingRequest { group, topic, after: None, limit: 9, deadline };
    let page = rig.run(async |broker| broker.list_waiting(&request).await).unwrap();
    let ids = [page.messages[0].id.unwrap()];
    let by_id = rig.run(async |broker| broker.store.by_id(ids[0]).await).unwrap();
    assert!(by_id.is_none(), "nobody else finds it");
    let action = WaitingAction::DeadLetter;
    let request = SettleRequest { group, topic, ids: &ids, max: 0, action, deadline };
    let settled = rig.run(async |broker| broker.settle_waiting(&request).await).unwrap();
    assert_eq!(settled.iter().map(|one| one.fault).collect::<Vec<_>>(), [None]);
    assert_eq!(rig.clean(), stays(0));
    let dead = rig.receive_of("h", "%DLQ%g");
    assert_eq!(all_seen(&dead), [of(0, 1, "a")]);
    assert_eq!(rig.gone(), 0);
}

#[tokio::test]
async fn after_its_last_delivery_what_stays_becomes_a_dead_letter_with_its_body() {
    let mut rig = Rig::new();
    let once = GroupSettings { max_attempts: Some(1), ..GroupSettings::default() };
    rig.run(async |broker| broker.create_group("once", &once, soon()).await.map(drop)).unwrap();
    rig.send("a");
    assert_eq!(rig.receive("once").len(), 1);
    rig.fill(1);
    rig.pass(2 * TIME);
    assert_eq!(rig.clean(), stays(1));
    rig.pass(MINUTE);
    rig.run(async |broker| broker.tend_due().await);
    assert_eq!(rig.clean(), stays(0));
    let dead = rig.receive_of("h", "%DLQ%once");
    assert_eq!(all_seen(&dead), [of(0, 1, "a")]);
    assert_eq!(rig.gone(), 0);
}

#[tokio::test]
async fn what_the_disk_has_no_room_for_as_a_dead_letter_stays_and_becomes_one_later() {
    let mut rig = Rig::new();
    let pause = MINUTE.as_millis() as u64;
    let once = GroupSettings {
        max_attempts: Some(1),
        retry_delays_ms: vec![pause],
        ..GroupSettings::default()
    };
    rig.run(async |broker| broker.create_group("once", &once, soon()).await.map(drop)).unwrap();
    for body in ["a", "b"] {
        rig.send(body);
    }
    let received = rig.receive("once");
    let give_up = async |broker: &Broker| {
        broker.forward_to_dead_letters("once", "t", (&received[0].handle, 0), soon()).await
    };
    let waiting = async |broker: &Broker| {
        let (group, topic, deadline) = ("once", "t", soon());
        let request = WaitingRequest { group, topic, after: None, limit: 9, deadline };
        let page = broker.list_waiting(&request).await.unwrap();
        page.messages.iter().map(|one| (one.deliveries, one.due_in_ms)).collect::<Vec<_>>()
    };
    rig.disk.set_capacity(Some(SEGMENT));
    rig.pass(Duration::from_secs(1));
    rig.workers.settle();
    assert!(rig.broker.status().store.disk_is_short);
    let refused = rig.run(give_up).unwrap_err();
    assert_eq!(refused.reason(), Reason::NoSpace);
    rig.pass(MINUTE);
    assert!(!rig.run(async |broker| broker.tend_due().await));
    assert_eq!(rig.run(waiting), [(1, pause), (1, 0)], "put off, and the next not tried");
    assert_eq!(rig.receive("once").len(), 0, "delivered as often as may be");
    rig.disk.set_capacity(None);
    rig.pass(MINUTE);
    rig.workers.settle();
    assert!(rig.run(async |broker| broker.tend_due().await));
    assert_eq!(rig.run(waiting), []);
    let dead = rig.receive_of("h", "%DLQ%once");
    assert_eq!(all_seen(&dead), [of(0, 1, "b"), of(1, 1, "a")], "as they were due");
}

/// The next segment is not there yet, whatever the disk has room for.
#[tokio::test(start_paused = true)]
async fn dead_letters_that_the_log_has_no_room_for_yet_stay_due_and_are_waited_for_once_for_all() {
    const GROUPS: u64 = 3;
    let mut rig = Rig::new();
    let names: Vec<_> = (0..GROUPS).map(|number| format!("once-{number}")).collect();
    let once = GroupSettings {
        max_attempts: Some(1),
        retry_delays_ms: vec![12 * 60 * 60 * 1_000],
        ..GroupSettings::default()
    };
    rig.send("a");
    for name in &names {
        rig.run(async |broker| broker.create_group(name, &once, soon()).await.map(drop)).unwrap();
        assert_eq!(rig.receive(name).len(), 1);
    }
    rig.pass(MINUTE);
    // Without the thread that makes segments.
    let broker = Arc::clone(&rig.broker);
    for len in [10_000, 1_000, 100, 1] {
        let deadline = || Instant::now() + Duration::from_millis(100);
        while broker.send(SendRequest { deadline: deadline(), ..to("f", len) }).await.is_ok() {}
    }
    let start = Instant::now();
    assert!(!broker.tend_due().await);
    let waited = start.elapsed();
    assert!(waited <= 2 * Duration::from_secs(2), "{waited:?}, and one waits for two seconds");
    assert_eq!(broker.counters().dead_letters.get(), 0);
    rig.workers.settle();
    assert!(rig.run(async |broker| broker.tend_due().await));
    assert_eq!(broker.counters().dead_letters.get(), GROUPS);
}
