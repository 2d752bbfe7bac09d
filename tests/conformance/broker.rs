//! A broker process, and what an operator does with it.

use std::fs::File;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use mainstem::client::{Client, ConnectedClient, GroupSettings, Message, Pull, TopicSettings};
use mainstem::format::batch::{self, NewMeta, TagFilter};
use mainstem::message::{QueueOffset, TopicType};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// The broker that is tried: another one than the tests were built with, if this names one.
fn binary() -> PathBuf {
    std::env::var_os("MAINSTEM_BINARY").unwrap_or(env!("CARGO_BIN_EXE_mainstem").into()).into()
}

/// Nothing here may take so long, on the slowest machine.
const BOUND: Duration = Duration::from_secs(120);

/// Where a broker lives.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }
}

/// A broker that serves. Dropping it kills it.
pub(crate) struct Broker {
    child: Child,
    _stdout: Lines<BufReader<ChildStdout>>,
    /// Where it serves.
    pub(crate) grpc: String,
    client: Client,
    home: PathBuf,
    /// What TLS clients have to trust.
    pub(crate) certificate: PathBuf,
}

impl Broker {
    /// Starts one, on a free port or on that of one before it.
    pub(crate) async fn start(home: &Home, address: Option<&str>) -> Self {
        let mut command = Command::new(binary());
        command
            .args(["serve", "--listen", address.unwrap_or("127.0.0.1:0")])
            .args(["--http", "127.0.0.1:0", "--set", "store.segment_size=64MiB"])
            .args(["--print-addresses", "--until-stdin-closes", "--data"])
            .arg(home.data())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(
                File::options()
                    .create(true)
                    .append(true)
                    .open(home.0.path().join("broker.log"))
                    .unwrap(),
            )
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = soon("serving", stdout.next_line()).await.unwrap().expect("it serves");
        let addresses: serde_json::Value = serde_json::from_str(&line).unwrap();
        let grpc = addresses["grpc"].as_str().unwrap().to_owned();
        let client = soon("connecting", Client::connect(&grpc)).await.unwrap();
        let certificate = home.data().join("tls/certificate.pem");
        let home = home.0.path().to_owned();
        Self { child, _stdout: stdout, grpc, client, home, certificate }
    }

    /// Where a process beside it says what it has to say.
    pub(crate) fn path_of(&self, who: &str) -> PathBuf {
        self.home.join(format!("{who}.log"))
    }

    /// The same, to write there.
    pub(crate) fn log_of(&self, who: &str) -> File {
        File::options().create(true).append(true).open(self.path_of(who)).unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async { self.child.kill().await.unwrap() })
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop_well(&mut self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async {
            drop(self.child.stdin.take());
            assert_eq!(soon("stopping", self.child.wait()).await.unwrap().code(), Some(0));
        })
    }

    pub(crate) async fn create(&self, name: &str, topic_type: TopicType, queues: u32) {
        let (queues, topic_type) = (Some(queues), Some(topic_type));
        let settings = TopicSettings { queues, topic_type, ..TopicSettings::default() };
        self.client.create_topic(name, settings).await.unwrap();
    }

    pub(crate) async fn create_group(&self, name: &str, settings: &GroupSettings) {
        self.client.create_group(name, settings).await.unwrap();
    }

    /// Stores a message.
    pub(crate) async fn send(&self, topic: &str, meta: &NewMeta<'_>, body: &str) {
        self.client.send(topic, None, batch::one(meta, body.as_bytes())).await.unwrap();
    }

    /// Waits until there is a topic of this name.
    pub(crate) async fn until_there(&self, topic: &str) {
        soon("a topic", async {
            while self.client.describe_topic(topic).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Whether a group has finished all messages of a topic.
    pub(crate) async fn has_finished(&self, group: &str, topic: &str) -> bool {
        let rows = self.client.progress(group, topic).await.unwrap();
        rows.iter().all(|row| row.lag + row.ready + row.leased + row.waiting == 0)
    }

    /// Who is connected.
    pub(crate) async fn clients(&self) -> Vec<ConnectedClient> {
        self.client.clients("").await.unwrap().0
    }

    /// Waits until so many clients have a stream over which they can get commands.
    pub(crate) async fn until_can_be_told(&self, clients: usize) {
        soon("a stream", async {
            while self.clients().await.iter().filter(|client| client.streams > 0).count() < clients
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// All messages of a topic, queue by queue in order.
    pub(crate) async fn read(&self, topic: &str) -> Vec<Message> {
        let queues = self.client.describe_topic(topic).await.unwrap().queues;
        let mut messages = Vec::new();
        for (queue, range) in queues {
            let mut offset = QueueOffset::ZERO;
            while offset < range.max {
                let pull = Pull {
                    epoch: None,
                    group: None,
                    topic,
                    queue,
                    offset,
                    max_messages: None,
                    max_bytes: None,
                    wait: Duration::ZERO,
                    tags: "*",
                    filter: &TagFilter::All,
                };
                let pulled = self.client.pull(&pull).await.unwrap();
                messages.extend(pulled.messages);
                offset = pulled.next_offset;
            }
        }
        messages
    }
}

/// The result of `what`, which must come within the bound.
pub(crate) async fn soon<T>(name: &str, what: impl Future<Output = T>) -> T {
    match timeout(BOUND, what).await {
        Ok(result) => result,
        Err(_) => panic!("{name} took longer than {BOUND:?}"),
    }
}
