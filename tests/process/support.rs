//! A broker process, the directory it lives in, and the words the tests are written in.

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstem::client::{Client, ClientError, Message, Pull, TopicSettings};
use mainstem::format::batch::{BatchBuilder, NewMeta, TagFilter};
use mainstem::message::{FlushMode, QueueId, QueueOffset};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{timeout, timeout_at};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_mainstem");

/// Nothing here may take so long, on the slowest machine.
const BOUND: Duration = Duration::from_secs(60);

/// Where a broker lives: its data, and what it said.
pub(crate) struct Home {
    directory: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The data directory, which the first start makes.
    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }
}

/// How long brokers live that are killed again and again: where one starts slowly longer in proportion, else they would
/// hardly ever serve.
pub(crate) struct Lives {
    slowness: f64,
}

impl Lives {
    /// What a start takes on a machine where a life is as long as is said.
    const USUAL_START: Duration = Duration::from_millis(200);

    pub(crate) fn new() -> Self {
        Self { slowness: 1.0 }
    }

    /// Starts the broker of a round, from 0, and says when its life of `ms` ends; `None`: it does not serve by then.
    pub(crate) async fn start(
        &mut self,
        home: &Home,
        round: u64,
        ms: u64,
    ) -> (Process, Option<tokio::time::Instant>) {
        let begin = tokio::time::Instant::now();
        let mut process = Process::spawn(home, &[]);
        // The first start makes the store, and the second finds what a kill left: that tells how long one takes here.
        // Later ones may be killed before they serve.
        if round < 2 {
            process.ready().await;
            let took = begin.elapsed().div_duration_f64(Self::USUAL_START);
            self.slowness = self.slowness.max(took);
        }
        let end = begin + Duration::from_millis(ms).mul_f64(self.slowness);
        let serves = round < 2 || timeout_at(end, process.ready()).await.is_ok();
        (process, serves.then_some(end))
    }
}

/// How many rounds of kills, and the seed of their rolls: what `KILL_ROUNDS` and `KILL_SEED` say.
pub(crate) fn rolls(rounds: u64) -> (u64, u64) {
    let setting = |name: &str| std::env::var(name).ok()?.parse().ok();
    let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap();
    let seed = setting("KILL_SEED").unwrap_or(since_1970.subsec_nanos().into());
    (setting("KILL_ROUNDS").unwrap_or(rounds), seed)
}

/// Makes topics of so many queues.
pub(crate) async fn create_topics(client: &Client, topics: &[(&str, FlushMode)], queues: u32) {
    for (topic, flush) in topics {
        let settings =
            TopicSettings { queues: Some(queues), flush: Some(*flush), ..TopicSettings::default() };
        client.create_topic(topic, settings).await.unwrap();
    }
}

/// A `mainstem serve`. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
    /// Where it serves, once it does.
    pub(crate) grpc: String,
    pub(crate) http: String,
}

impl Process {
    /// Starts one on free ports with small segments, and does not wait for it.
    pub(crate) fn spawn(home: &Home, args: &[&str]) -> Self {
        Self::spawn_by(Command::new(BINARY), home, args)
    }

    /// The same by a command that takes the broker's arguments. The broker ends with this process at the latest: its
    /// standard input does.
    pub(crate) fn spawn_by(mut command: Command, home: &Home, args: &[&str]) -> Self {
        let log = home.path().join("log");
        let said = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(["--set", "store.segment_size=64MiB", "--print-addresses"])
            .args(["--until-stdin-closes", "--data"])
            .arg(home.data())
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said)
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdout, log, grpc: String::new(), http: String::new() }
    }

    /// Starts one and waits until it serves.
    pub(crate) async fn start(home: &Home, args: &[&str]) -> Self {
        let mut process = Self::spawn(home, args);
        process.ready().await;
        process
    }

    /// Waits until it serves. May be dropped and called again.
    pub(crate) async fn ready(&mut self) {
        let line = soon("serving", self.stdout.next_line()).await.unwrap();
        let line = line.unwrap_or_else(|| panic!("it ended:\n{}", self.said()));
        let addresses: serde_json::Value = serde_json::from_str(&line).unwrap();
        self.grpc = addresses["grpc"].as_str().unwrap().to_owned();
        self.http = addresses["http"].as_str().unwrap().to_owned();
    }

    /// A connection of its own.
    pub(crate) async fn client(&self) -> Client {
        soon("connecting", Client::connect(&self.grpc)).await.unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        soon("ending", self.child.wait()).await.unwrap()
    }

    /// SIGTERM, and asserts that it ends with 0.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().await.code(), Some(0), "{}", self.said());
        assert_no_panic(&self.said());
    }

    /// All that the brokers of this home have said on stderr.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Status and body of a page.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        page(&self.http, path).await.unwrap()
    }

    /// Bytes of anonymous memory of the process now.
    pub(crate) fn anonymous_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap()));
        let status = status.unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// A number of `/metrics`, by its name and labels as they stand there.
    pub(crate) async fn metric(&self, name: &str) -> Option<u64> {
        let (_, text) = self.page("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

/// Status and body of a page over HTTP/1.1, from a connection of its own.
pub(crate) async fn page(server: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(server).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    soon("a page", stream.read_to_string(&mut answer)).await?;
    let broken = || std::io::Error::other(format!("not an answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status =
        head.strip_prefix("HTTP/1.1 ").and_then(|head| head.get(..3)).ok_or_else(broken)?;
    Ok((status.parse().map_err(|_| broken())?, body.to_owned()))
}

/// A start that is expected to fail: its exit code and what it said on stderr.
pub(crate) async fn refused_start(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(BINARY);
    // Flags win over settings: a test may name another address.
    command.args(["serve", "--set", "server.listen=127.0.0.1:0"]);
    command.args(["--set", "server.http=127.0.0.1:0"]).args(args);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    let output = soon("a refused start", command.output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{said}");
    assert_no_panic(&said);
    (output.status.code(), said)
}

pub(crate) fn assert_no_panic(said: &str) {
    assert!(!said.contains("panicked"), "{said}");
}

/// The result of `what`, which must come within the bound.
pub(crate) async fn soon<T>(name: impl Display, what: impl Future<Output = T>) -> T {
    match timeout(BOUND, what).await {
        Ok(result) => result,
        Err(_) => panic!("{name} took longer than {BOUND:?}"),
    }
}

/// Asks again and again until the answer is not `None`, within the bound.
pub(crate) async fn until<T>(name: impl Display, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < BOUND, "{name} did not happen within {BOUND:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A batch of one message without anything beside its body.
pub(crate) fn one(body: &[u8]) -> Bytes {
    let mut batch = BatchBuilder::new();
    batch.push(&NewMeta::default(), body);
    batch.finish()
}

/// One pull, as far as the broker gives at once.
pub(crate) async fn pull(
    client: &Client,
    topic: &str,
    queue: u32,
    offset: u64,
    wait: Duration,
) -> Result<mainstem::client::Pulled, ClientError> {
    let pull = Pull {
        epoch: None,
        group: None,
        topic,
        queue: QueueId::new(queue),
        offset: QueueOffset::new(offset),
        max_messages: None,
        max_bytes: None,
        wait,
        tags: "*",
        filter: &TagFilter::All,
    };
    client.pull(&pull).await
}

/// A queue from its first message to the end it has now, with all that was acknowledged before.
pub(crate) async fn read_all(client: &Client, topic: &str, queue: u32) -> Vec<Message> {
    read_from(client, topic, queue, 0).await
}

/// The same from `offset`, which must be there.
pub(crate) async fn read_from(
    client: &Client,
    topic: &str,
    queue: u32,
    mut offset: u64,
) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        let pulled = pull(client, topic, queue, offset, Duration::ZERO).await.unwrap();
        let is_empty = pulled.messages.is_empty();
        messages.extend(pulled.messages);
        offset = pulled.next_offset.get();
        // One that finds nothing has waited for what is not dispatched yet.
        if is_empty && offset >= pulled.range.max.get() {
            return messages;
        }
    }
}

/// The same, past what says that it is damaged: those who compare see that it is missing.
pub(crate) async fn read_past_damage(
    client: &Client,
    topic: &str,
    queue: u32,
    mut offset: u64,
) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        let pulled = match pull(client, topic, queue, offset, Duration::ZERO).await {
            Ok(pulled) => pulled,
            Err(error) => match error.refusal().and_then(|refusal| refusal.next_offset) {
                Some(next) => {
                    offset = next.get();
                    continue;
                }
                None => panic!("{error:?}"),
            },
        };
        messages.extend(pulled.messages);
        offset = pulled.next_offset.get();
        if offset >= pulled.range.max.get() {
            return messages;
        }
    }
}

/// Numbers that look random and follow from a seed (SplitMix64).
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// Says that a test asks nothing here; not captured, so that it is seen when the test passes.
pub(crate) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP: {why}");
}

/// A file system in memory of some MiB, gone with the value. `None`, and a line that says so: not without root.
pub(crate) struct Memory {
    path: PathBuf,
}

impl Memory {
    pub(crate) fn mount(path: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"], path);
        if !mounted {
            skip("this needs to mount a tmpfs, and may not");
            return None;
        }
        Some(Self { path: path.to_owned() })
    }

    pub(crate) fn make_read_only(&self) {
        assert!(mount(&["-o", "remount,ro"], &self.path));
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Lazily: a broker may still be dying.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn mount(args: &[&str], path: &Path) -> bool {
    let mount = std::process::Command::new("mount").args(args).arg(path).output();
    mount.is_ok_and(|output| output.status.success())
}
