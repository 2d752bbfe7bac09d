//! Allocations of a broker's process for messages in and out, over native streams, in steady state.
//!
//! The broker is this process, whose allocator counts; the client is a process of its own. Counted is everything that
//! happens in this process between two words of the client: with the dispatcher, the flushes and, for sends, whole
//! segments. The same is counted while nobody sends anything for as long, to tell what the broker does by itself.
//! Of what is pulled the most lies in sealed segments, so its bytes are read into memory.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::alloc::System;
use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::process::Stdio;
use std::time::Instant;

use bytes::Bytes;
use mainstem::client::{Client, PullStreamOptions, TopicSettings};
use mainstem::config::Config;
use mainstem::format::batch::TagFilter;
use mainstem::message::{FlushMode, QueueId, QueueOffset};
use mainstem::server;
use measure::Bench;
use measure::rig::Prepared;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Of the client's process.
const CLIENT: &str = "--client";
const TOPIC: &str = "counted";
/// The most for a batch. None is made for a message: batches have a hundred messages and more.
const MOST: f64 = 8.0;
const QUEUE: QueueId = QueueId::ZERO;

/// What a client does.
#[derive(Clone)]
struct Job {
    /// `send` or `pull`.
    what: String,
    server: String,
    /// Messages of a batch.
    batch: usize,
    /// Bytes of a message.
    body: usize,
    /// Messages before the count, and those that are counted.
    messages: [usize; 2],
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    if arguments.next().is_some_and(|argument| argument == CLIENT) {
        return runtime.block_on(Job::parse(&arguments.collect::<Vec<_>>()).run());
    }
    let mut bench = Bench::start("allocations");
    for (size, batch, body) in [("1KiB×100", 100, 1 << 10), ("128B×750", 750, 128)] {
        let name = format!("stream/{size}");
        if bench.wants(&name) {
            runtime.block_on(count(&mut bench, &name, batch, body));
        }
    }
    bench.finish();
}

/// Counts the sends, the pulls and the idle time of one shape of messages.
async fn count(bench: &mut Bench, name: &str, batch: usize, body: usize) {
    let dir = bench.fresh_dir(name);
    let sets = [
        format!("server.data={}", dir.display()),
        "server.listen=127.0.0.1:0".to_owned(),
        "server.http=127.0.0.1:0".to_owned(),
    ];
    let config = Config::load(None, &sets).expect("the configuration is sound");
    let spawned = server::spawn(config).await.expect("a broker starts");
    let server = spawned.listening().grpc.to_string();
    let client = Client::connect(&server).await.expect("the broker listens");
    let settings = TopicSettings {
        queues: Some(1),
        flush: Some(FlushMode::Async),
        ..TopicSettings::default()
    };
    client.create_topic(TOPIC, settings).await.expect("the topic is made");
    let counted = bench.pick(1_000_000, 30_000);
    let messages = [bench.pick(300_000, 10_000), counted];
    for what in ["send", "pull"] {
        let job = Job { what: what.to_owned(), server: server.clone(), batch, body, messages };
        let mut child = Counted::start(&job).await;
        let (region, start) = (Region::new(COUNTED), Instant::now());
        child.go_on().await;
        let (work, length) = (region.change(), start.elapsed());
        child.end().await;
        let region = Region::new(COUNTED);
        tokio::time::sleep(length).await;
        let idle = region.change();
        let each = |count: usize| count as f64 / counted as f64;
        let batches = counted.div_ceil(batch);
        let a_batch = work.allocations as f64 / batches as f64;
        assert!(a_batch < MOST, "{what}: {work:?} for {batches} batches");
        bench.note(
            &format!("{name}/{what}"),
            &format!(
                "{:.4} allocations, {:.4} reallocations, {:.0} B a message; {:.2} allocations a batch; \
                 {} allocations in as long a time without work",
                each(work.allocations),
                each(work.reallocations),
                each(work.bytes_allocated),
                work.allocations as f64 / batches as f64,
                idle.allocations,
            ),
            json!({
                "messages": counted, "batches": batches, "allocations": work.allocations,
                "reallocations": work.reallocations, "bytes": work.bytes_allocated,
                "idle_allocations": idle.allocations, "seconds": length.as_secs_f64(),
            }),
        );
    }
    drop(client);
    spawned.stop().await.expect("the broker stops");
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// A client's process that stands still before what is counted.
struct Counted {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Counted {
    /// Returns when all is warm.
    async fn start(job: &Job) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.arg(CLIENT).args(job.arguments()).kill_on_drop(true);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("a client starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut counted = Self { child, lines };
        counted.hear("warm").await;
        counted
    }

    /// Lets it do what is counted, and returns when it has.
    async fn go_on(&mut self) {
        self.tell().await;
        self.hear("done").await;
    }

    async fn end(mut self) {
        self.tell().await;
        let status = self.child.wait().await.expect("the client ends");
        assert!(status.success(), "{status}");
    }

    async fn tell(&mut self) {
        let input = self.child.stdin.as_mut().expect("it is piped");
        input.write_all(b"\n").await.expect("the client listens");
    }

    async fn hear(&mut self, expected: &str) {
        let line = self.lines.next_line().await.expect("the client says something");
        assert_eq!(line.as_deref(), Some(expected));
    }
}

impl Job {
    fn arguments(&self) -> Vec<String> {
        let [warm, counted] = self.messages;
        let numbers = [self.batch, self.body, warm, counted].map(|number| number.to_string());
        [self.what.clone(), self.server.clone()].into_iter().chain(numbers).collect()
    }

    fn parse(arguments: &[String]) -> Self {
        let number = |at: usize| arguments[at].parse().expect("it is a number");
        Self {
            what: arguments[0].clone(),
            server: arguments[1].clone(),
            batch: number(2),
            body: number(3),
            messages: [number(4), number(5)],
        }
    }

    /// The client's process.
    async fn run(self) {
        let client = Client::connect(&self.server).await.expect("the broker listens");
        match self.what.as_str() {
            "send" => self.send(&client).await,
            "pull" => self.pull(&client).await,
            what => panic!("{what}"),
        }
    }

    async fn send(&self, client: &Client) {
        let batch: Bytes = Prepared::new(self.batch, self.body, None).bytes;
        let mut stream = client.send_stream(None).await.expect("a stream begins");
        for (messages, word) in self.messages.into_iter().zip(["warm", "done"]) {
            let mut receipts = Vec::new();
            for _ in 0..messages.div_ceil(self.batch) {
                receipts.clear();
                let sent = stream.send(TOPIC, Some(QUEUE), batch.clone(), &mut receipts).await;
                sent.expect("it is stored");
            }
            while stream.in_flight() > 0 {
                stream.acknowledged(&mut receipts).await.expect("it is stored");
            }
            say(word);
        }
    }

    async fn pull(&self, client: &Client) {
        let options = PullStreamOptions {
            topic: TOPIC,
            queues: &[(QUEUE, QueueOffset::ZERO)],
            max_bytes: None,
            tags: "*",
            filter: &TagFilter::All,
            group: None,
            epoch: None,
        };
        let mut stream = client.pull_stream(&options).await.expect("a stream begins");
        let (mut pulled, mut wanted) = (0, 0);
        for (messages, word) in self.messages.into_iter().zip(["warm", "done"]) {
            wanted += messages;
            // All that was sent is there; a part may bring more than is wanted, and that counts for what follows.
            while pulled < wanted {
                let part = stream.next().await.expect("there is more");
                part.for_each(|_| pulled += 1).expect("batches are sound");
            }
            say(word);
        }
    }
}

/// Says a word to the broker's process, and waits for its answer.
fn say(word: &str) {
    writeln!(stdout(), "{word}").expect("the broker listens");
    stdin().lock().read_line(&mut String::new()).expect("the broker answers");
}
