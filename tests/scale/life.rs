//! One life of a broker with very many queues, in a process of its own.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstem::broker::{
    Broker, BrokerConfig, Order, PullRequest, QueryRequest, Selector, SendRequest,
};
use mainstem::clock::SystemClock;
use mainstem::file::disk::RealDisk;
use mainstem::format::batch::{Batch, BatchBuilder, NewMeta};
use mainstem::message::{FlushMode, QueueId, QueueOffset, TopicSettings, TopicType};
use mainstem::store::StoreConfig;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Queues of a topic.
pub(crate) const QUEUES: u32 = 1_000;
/// Before a line that the test reads.
pub(crate) const MARK: &str = "life says ";
/// Which life: the variable that says so.
pub(crate) const NAME: &str = "MAINSTEM_SCALE_LIFE";
/// Where the store is: the variable that says so.
pub(crate) const DIR: &str = "MAINSTEM_SCALE_DIR";

/// Nothing here may take so long, on the slowest machine.
const BOUND: Duration = Duration::from_secs(300);
/// Every queue gets so many messages in the first life.
const ROUNDS: u64 = 2;
const BODY_LEN: usize = 100;

/// How many topics there are.
pub(crate) fn topics() -> u32 {
    std::env::var("SCALE_TOPICS").map_or(1_000, |topics| topics.parse().unwrap())
}

#[test]
#[ignore = "a life of the broker in `main.rs`, which starts it in a process of its own"]
fn a_broker_lives() {
    let (Ok(name), Some(dir)) = (std::env::var(NAME), std::env::var_os(DIR)) else { return };
    let mut life = Life::open(Path::new(&dir));
    match name.as_str() {
        "first" => {
            life.make_topics();
            life.write_all();
        }
        "second" => life.write_some(),
        _ => {}
    }
    if name != "first" {
        life.count_all();
    }
    life.use_it();
    life.rest();
    say(&life.facts);
    // Until the test lets go, or kills.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    if name == "third" {
        life.delete_some();
    }
    let began = Instant::now();
    life.broker.close().unwrap();
    say(&json!({ "close_seconds": began.elapsed().as_secs_f64() }));
}

struct Life {
    runtime: Runtime,
    broker: Arc<Broker>,
    /// Some topics have another message in each queue.
    has_more: bool,
    facts: Value,
}

impl Life {
    fn open(dir: &Path) -> Self {
        let runtime = runtime();
        let before = anonymous();
        let began = Instant::now();
        let config = StoreConfig { flush: FlushMode::Async, ..StoreConfig::new(dir) };
        let clock = Arc::new(SystemClock::new());
        let opened = Broker::open(Arc::new(RealDisk), clock, config, BrokerConfig::default());
        let (broker, report) = opened.unwrap();
        let facts = json!({
            "clean": report.clean,
            "open_seconds": began.elapsed().as_secs_f64(),
            "open_memory": anonymous().saturating_sub(before),
            "replayed_bytes": report.replayed_bytes,
        });
        Self { runtime, broker, has_more: !report.created, facts }
    }

    fn make_topics(&mut self) {
        let (before, began) = (anonymous(), Instant::now());
        for topic in 0..topics() {
            let settings = TopicSettings::open(QUEUES, FlushMode::Async, TopicType::Normal);
            let name = name(topic);
            let made = self.broker.create_topic(&name, settings, soon());
            self.runtime.block_on(made).unwrap();
        }
        self.facts["create_seconds"] = began.elapsed().as_secs_f64().into();
        let each = anonymous().saturating_sub(before) / u64::from(topics());
        self.facts["bytes_per_idle_topic_of_1000_queues"] = each.into();
    }

    /// A message into each queue of each topic, and then another.
    fn write_all(&mut self) {
        let (before, began) = (anonymous(), Instant::now());
        let half = topics() / 2;
        let peak = std::thread::scope(|scope| {
            let writers = [0..half, half..topics()].map(|topics| {
                let broker = &self.broker;
                scope.spawn(move || {
                    let runtime = runtime();
                    let mut peak = 0;
                    for round in 0..ROUNDS {
                        for topic in topics.clone() {
                            runtime.block_on(write_topic(broker, topic, round));
                            peak = anonymous().max(peak);
                        }
                    }
                    peak
                })
            });
            writers.map(|writer| writer.join().unwrap()).into_iter().max().unwrap()
        });
        self.facts["write_seconds"] = began.elapsed().as_secs_f64().into();
        self.facts["memory_while_written"] = peak.into();
        self.facts["memory_before"] = before.into();
    }

    fn write_some(&mut self) {
        let mut more = 0;
        for topic in (0..topics()).filter(|topic| has_more(*topic)) {
            self.runtime.block_on(write_topic(&self.broker, topic, ROUNDS));
            more += u64::from(QUEUES);
        }
        self.facts["more"] = more.into();
    }

    /// What is left of their queues goes with the next snapshot, which closing takes.
    fn delete_some(&mut self) {
        for topic in (0..topics()).filter(|topic| has_more(*topic)) {
            let name = name(topic);
            self.runtime.block_on(self.broker.delete_topic(&name, soon())).unwrap();
        }
    }

    fn expected(&self, topic: u32) -> u64 {
        ROUNDS + u64::from(self.has_more && has_more(topic))
    }

    /// Asks every queue how many messages it has.
    fn count_all(&mut self) {
        let began = Instant::now();
        self.facts["messages"] = self.runtime.block_on(self.count()).into();
        self.facts["describe_seconds"] = began.elapsed().as_secs_f64().into();
    }

    /// Reads some queues whole, finds some keys.
    fn use_it(&mut self) {
        let began = Instant::now();
        self.runtime.block_on(self.read_some());
        self.facts["use_seconds"] = began.elapsed().as_secs_f64().into();
    }

    async fn count(&self) -> u64 {
        let mut messages = 0;
        for topic in 0..topics() {
            let name = name(topic);
            let described = self.broker.describe_topic(&name, 0, QUEUES, soon()).await.unwrap();
            assert_eq!(described.queues.len(), QUEUES as usize);
            for queue in described.queues {
                assert_eq!(queue.range.min, QueueOffset::ZERO);
                assert_eq!(queue.range.max.get(), self.expected(topic));
                messages += queue.range.max.get();
            }
        }
        messages
    }

    async fn read_some(&self) {
        let mut dice = Dice(7);
        for _ in 0..2_000 {
            let topic = dice.below(topics());
            self.read_queue(topic, dice.below(QUEUES)).await;
        }
        for _ in 0..200 {
            let (topic, queue) = (dice.below(topics()), dice.below(QUEUES / 100) * 100);
            self.find(topic, &key(queue), self.expected(topic) as usize).await;
        }
        for topic in 0..20_u32.min(topics()) {
            self.find(topic, "absent", 0).await;
        }
    }

    async fn read_queue(&self, topic: u32, queue: u32) {
        let (name, wanted) = (name(topic), self.expected(topic));
        let mut request = PullRequest {
            epoch: None,
            topic: &name,
            queue: QueueId::new(queue),
            offset: QueueOffset::ZERO,
            max_messages: 100,
            max_bytes: 1 << 20,
            wait: Duration::ZERO,
            tags: "",
            group: None,
            deadline: soon(),
        };
        let mut number = 0;
        while number < wanted {
            let pulled = self.broker.pull(request).await.unwrap();
            assert!(pulled.next > request.offset, "{topic}/{queue} ends at {number}");
            for record in &pulled.records {
                let batch = Batch::parse(&record.batch).unwrap();
                assert_eq!(batch.bodies(), body(topic, queue, number));
                number += 1;
            }
            request.offset = pulled.next;
        }
        assert_eq!(number, wanted);
    }

    async fn find(&self, topic: u32, key: &str, wanted: usize) {
        let name = name(topic);
        let request = QueryRequest {
            selector: Selector::Key { topic: &name, key },
            begin: None,
            end: None,
            order: Order::NewestFirst,
            limit: 10,
            page_token: "",
            deadline: soon(),
        };
        let page = self.broker.query(request).await.unwrap();
        assert_eq!(page.incomplete, None);
        assert_eq!(page.messages.len(), wanted, "{name}: {key}");
    }

    /// Waits until all that is finished is sealed, and looks at what the process holds then.
    fn rest(&mut self) {
        let began = Instant::now();
        let is_at_rest = || {
            let status = self.broker.status();
            let marks = status.watermarks;
            status.store.unsealed == 1
                && marks.dispatched == marks.appended
                && marks.flushed == marks.appended
                && threads_are_asleep()
        };
        while !is_at_rest() {
            assert!(began.elapsed() < BOUND, "the store never comes to rest");
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = self.broker.status();
        let memory = anonymous();
        let facts = &mut self.facts;
        facts["rest_seconds"] = began.elapsed().as_secs_f64().into();
        facts["topics"] = status.topics.into();
        facts["memory"] = memory.into();
        facts["bytes_per_queue"] = (memory / status.queues.max(1)).into();
        facts["entry_memory"] = status.store.entry_memory.into();
        facts["segments"] = status.store.segments.into();
        facts["images"] = status.store.images.into();
        facts["image_bytes"] = status.store.image_bytes.into();
        facts["appended"] = status.watermarks.appended.get().into();
        facts["descriptors"] = std::fs::read_dir("/proc/self/fd").unwrap().count().into();
        facts["mappings"] = read("/proc/self/maps").lines().count().into();
    }
}

/// Every hundredth topic has another message in each queue.
fn has_more(topic: u32) -> bool {
    topic.is_multiple_of(100)
}

/// A message into each queue; into every hundredth one with a key.
async fn write_topic(broker: &Broker, topic: u32, number: u64) {
    let name = name(topic);
    for queue in 0..QUEUES {
        let key = queue.is_multiple_of(100).then(|| key(queue));
        let meta = NewMeta { keys: key.as_deref().into_iter().collect(), ..NewMeta::default() };
        let mut batch = BatchBuilder::new();
        batch.push(&meta, &body(topic, queue, number));
        let batch: Bytes = batch.finish();
        let queue = Some(QueueId::new(queue));
        let request = SendRequest { topic: &name, queue, batch, session: None, deadline: soon() };
        let receipt = broker.send(request).await.unwrap();
        assert_eq!(receipt.first_queue_offset.get(), number);
    }
}

fn name(topic: u32) -> String {
    format!("topic-{topic:04}")
}

fn key(queue: u32) -> String {
    format!("key-{queue:04}")
}

fn body(topic: u32, queue: u32, number: u64) -> Vec<u8> {
    let mut body = format!("{topic}/{queue}/{number};").into_bytes();
    body.resize(BODY_LEN, b'.');
    body
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + BOUND
}

fn say(facts: &Value) {
    // The line may begin behind one of the harness that has not ended.
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{MARK}{facts}").unwrap();
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Anonymous memory that this process holds, in bytes.
fn anonymous() -> u64 {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Whether no storage thread runs or waits for the disk.
fn threads_are_asleep() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.map(Result::unwrap).all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // "1 (name) S …": a name may hold anything, the state stands behind its end.
        let (name, rest) = stat.rsplit_once(") ").unwrap_or_default();
        !name.contains("(mainstem-") || rest.starts_with('S')
    })
}

/// Numbers that look random and follow from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((mixed >> 32) * u64::from(bound)) >> 32) as u32
    }
}
