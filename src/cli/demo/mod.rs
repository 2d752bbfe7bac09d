//! `mainstem demo`: everything the broker promises, seen at work in some seconds.
//!
//! | step | what is checked |
//! | --- | --- |
//! | start | a broker of the same executable, on free ports, in a temporary directory |
//! | send | the packages of this program's own `Cargo.lock`, one record each; generated messages in batches |
//! | read | all of it comes back in order, byte for byte |
//! | find | a key finds its messages and no others |
//! | kill | SIGKILL while producers run; a new broker on the same directory and port |
//! | check | each acknowledged message is there once, nothing that was not sent, and the rest as before |
//!
//! A message is identified by (producer, sequence). A send that was not answered is not repeated under its number:
//! such a message may be there, once, or not.
//!
//! The broker and the directory go on every way out, also on Ctrl-C: both are owned by guards of [`run`]. With
//! `--keep` they are left, after everything else is done.

mod crash;
mod material;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use tokio::task::JoinSet;

use self::material::{Package, Stamp};
use self::report::{Left, Measured, Report};
use super::error::{Exit, Failure};
use super::output::{Output, Progress};
use super::{interrupted, patiently};
use crate::child::{self, Addresses, ChildError, Directory, Life, Server};
use crate::client::{Client, Message, Order, Pull, Query, Receipt, Selector, TopicSettings};
use crate::format::batch::{BatchBuilder, NewMeta, TagFilter};
use crate::message::{QueueId, QueueOffset};

const PACKAGES: &str = "demo-packages";
const GENERATED: &str = "demo-generated";
/// Generated messages, and how they are sent.
const MESSAGES: u64 = 200_000;
const SENDERS: u32 = 8;
const BATCH: u64 = 100;
const EACH: u64 = MESSAGES / SENDERS as u64;
/// Keys looked for among the generated messages.
const KEYS: u64 = 200;

/// How the demo ends.
#[derive(Debug, Args)]
#[command(after_help = "Takes about ten seconds and 600 MB in the temporary directory (TMPDIR). \
    Ends with 0 only if every promise held.")]
pub(crate) struct DemoArgs {
    /// Leave the broker up and say how to reach it
    #[arg(long)]
    keep: bool,
}

/// Runs the command.
pub(crate) async fn run(args: DemoArgs, output: &mut Output) -> anyhow::Result<()> {
    // Dropped in reverse order: first the broker, then its directory.
    let mut directory = Directory::create("demo")?;
    let mut report = Report::default();
    let mut broker = None;
    tokio::select! {
        result = play(directory.path(), args.keep, &mut broker, &mut report) => {
            result.map_err(|error| explain(error, directory.path()))?;
        }
        result = interrupted() => {
            result.context("cannot wait for signals")?;
            return Err(Failure::new(Exit::Failed, "interrupted; the broker is gone").into());
        }
    }
    let broker = broker.context("the demo ended without a broker")?;
    if args.keep {
        report.left = Some(Left::new(&broker, directory.path()));
        broker.leave();
        directory.keep();
    } else {
        broker.stop().await;
    }
    output.one(&report, || report.table())?;
    if report.held() {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "a promise did not hold, see above").into())
    }
}

/// Starts a broker on the data in `directory` and waits until it is ready; without `addresses` on free ports.
async fn start(
    directory: &Path,
    addresses: Option<&Addresses>,
    keep: bool,
) -> Result<Server, ChildError> {
    let free = Addresses::free();
    let wanted = addresses.unwrap_or(&free);
    let data = directory.join("data").display().to_string();
    // It says what room it needs, and gives it back.
    let mut command = vec!["serve", "--data", &data, "--set", "store.disk_reserve=0"];
    command.extend(["--listen", &wanted.grpc, "--http", &wanted.http, "--print-addresses"]);
    let life = if keep { Life::Kept } else { Life::Owned };
    Server::start(&command, &log_path(directory), life).await
}

fn log_path(directory: &Path) -> PathBuf {
    directory.join("broker.log")
}

/// Adds the broker's last words to an error: they are gone with the directory.
fn explain(error: anyhow::Error, directory: &Path) -> anyhow::Error {
    match child::last_words(&log_path(directory)) {
        Some(words) => error.context(format!("the broker said: {words}")),
        None => error,
    }
}

/// The whole play, in the order of the table of the file. The broker lies in `broker` at every moment.
async fn play(
    directory: &Path,
    keep: bool,
    broker: &mut Option<Server>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let packages = material::packages()?;
    let started = Instant::now();
    let running = broker.insert(start(directory, None, keep).await?);
    let addresses = running.addresses().clone();
    report.step("start", "a broker on free ports", Measured::once(started.elapsed()));
    let client = Client::connect(&addresses.grpc).await?;
    let settings = TopicSettings { queues: Some(SENDERS), ..TopicSettings::default() };
    for topic in [GENERATED, crash::TOPIC] {
        client.create_topic(topic, settings).await?;
    }
    client.create_topic(PACKAGES, TopicSettings::default()).await?;

    let places = send_packages(&client, &packages, report).await?;
    send_generated(&client, report).await?;
    for scene in [Scene::BeforeKill, Scene::AfterKill] {
        if scene == Scene::AfterKill {
            crash::run(directory, keep, broker, &client, report).await?;
        }
        read_packages(&client, &packages, &places, scene, report).await?;
        read_generated(&client, scene, report).await?;
        find(&client, &packages, scene, report).await?;
    }
    Ok(())
}

/// When something is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// By the broker that stored it.
    BeforeKill,
    /// By the one that found it.
    AfterKill,
}

impl Scene {
    fn names(self, before: &'static str, after: &'static str) -> &'static str {
        match self {
            Self::BeforeKill => before,
            Self::AfterKill => after,
        }
    }
}

/// Sends each package as its own record; returns where each one went.
async fn send_packages(
    client: &Client,
    packages: &[Package],
    report: &mut Report,
) -> anyhow::Result<Vec<Receipt>> {
    let progress = Progress::start("sending packages", Some(packages.len() as u64));
    let mut measured = Measured::start();
    let mut places = Vec::with_capacity(packages.len());
    for package in packages {
        let mut batch = BatchBuilder::new();
        let meta = NewMeta {
            keys: vec![&package.name],
            tag: Some(package.tag),
            born_ms: super::time::now().get(),
            ..NewMeta::default()
        };
        batch.push(&meta, package.entry.as_bytes());
        let batch = batch.finish();
        let sent = Instant::now();
        places.push(
            patiently(|| client.send(PACKAGES, None, batch.clone()))
                .await
                .context("cannot send the packages")?,
        );
        measured.call(sent.elapsed(), 1);
        progress.add(1);
    }
    report.step("send", "packages of Cargo.lock, one at a time", measured.end());
    Ok(places)
}

/// Sends the generated messages: every sender has its queue and waits for each answer.
async fn send_generated(client: &Client, report: &mut Report) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::start("sending generated messages", Some(MESSAGES)));
    let mut measured = Measured::start();
    let mut senders = JoinSet::new();
    for producer in 0..SENDERS {
        let (client, progress) = (client.clone(), Arc::clone(&progress));
        senders.spawn(async move {
            let mut own = Measured::start();
            for first in (0..EACH).step_by(usize::try_from(BATCH)?) {
                let batch = generated_batch(producer, first..first + BATCH);
                let queue = Some(QueueId::new(producer));
                let sent = Instant::now();
                patiently(|| client.send(GENERATED, queue, batch.clone())).await?;
                own.call(sent.elapsed(), BATCH);
                progress.add(BATCH);
            }
            anyhow::Ok(own)
        });
    }
    while let Some(sender) = senders.join_next().await {
        measured.add(&sender?.context("cannot send the generated messages")?);
    }
    report.step("send", "generated, 1 KiB, in batches of 100, 8 senders", measured.end());
    Ok(())
}

fn generated_batch(producer: u32, sequences: std::ops::Range<u64>) -> Bytes {
    let mut batch = BatchBuilder::new();
    let born_ms = super::time::now().get();
    for sequence in sequences {
        let stamp = Stamp { producer, sequence };
        let key = stamp.key();
        let meta = NewMeta { keys: vec![&key], born_ms, ..NewMeta::default() };
        batch.push(&meta, &stamp.body());
    }
    batch.finish()
}

/// Reads the packages back: each at the place its receipt named.
async fn read_packages(
    client: &Client,
    packages: &[Package],
    places: &[Receipt],
    scene: Scene,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut measured = Measured::start();
    let mut wrong = 0_u64;
    let mut queues: Vec<QueueId> = places.iter().map(|place| place.queue).collect();
    queues.sort_unstable();
    queues.dedup();
    for queue in queues {
        // Sent one after the other, so the packages of a queue lie in the order of the file.
        let mut expected = packages.iter().zip(places).filter(|(_, place)| place.queue == queue);
        let own = read_queue(client, PACKAGES, queue, |message| {
            let right = expected.next().is_some_and(|(package, place)| {
                message.queue_offset == place.first_queue_offset
                    && message.id == place.first_id
                    && message.body == package.entry.as_bytes()
                    && message.keys == [package.name.as_str()]
                    && message.tag.as_deref() == Some(package.tag)
            });
            wrong += u64::from(!right);
        })
        .await?;
        wrong += expected.count() as u64;
        measured.add(&own);
    }
    report.step(scene.names("read", "read again"), "packages", measured.end());
    report.check(
        scene.names(
            "packages come back in order, byte for byte",
            "packages are the same after the kill",
        ),
        wrong == 0,
        format!("{} messages, {wrong} wrong", packages.len()),
    );
    Ok(())
}

/// Reads the generated messages back, all queues at once.
async fn read_generated(client: &Client, scene: Scene, report: &mut Report) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::start("reading them back", Some(MESSAGES)));
    let mut measured = Measured::start();
    let mut readers = JoinSet::new();
    for producer in 0..SENDERS {
        let (client, progress) = (client.clone(), Arc::clone(&progress));
        readers.spawn(async move {
            let mut sequence = 0;
            let mut wrong = 0_u64;
            let own = read_queue(&client, GENERATED, QueueId::new(producer), |message| {
                let stamp = Stamp { producer, sequence };
                let right =
                    message.queue_offset.get() == sequence && stamp.is_body_of(&message.body);
                wrong += u64::from(!right);
                sequence += 1;
                progress.add(1);
            })
            .await?;
            anyhow::Ok((own, wrong + EACH.abs_diff(sequence)))
        });
    }
    let mut wrong = 0;
    while let Some(reader) = readers.join_next().await {
        let (own, own_wrong) = reader??;
        measured.add(&own);
        wrong += own_wrong;
    }
    report.step(scene.names("read", "read again"), "generated, 8 readers", measured.end());
    report.check(
        scene.names(
            "generated messages come back in order, byte for byte",
            "generated messages are the same after the kill",
        ),
        wrong == 0,
        format!("{MESSAGES} messages, {wrong} wrong"),
    );
    Ok(())
}

/// Reads a queue from its first message to the end it has at the moment.
async fn read_queue(
    client: &Client,
    topic: &str,
    queue: QueueId,
    mut visit: impl FnMut(&Message),
) -> anyhow::Result<Measured> {
    let mut measured = Measured::start();
    let mut offset = QueueOffset::ZERO;
    loop {
        let pull = Pull {
            epoch: None,
            group: None,
            topic,
            queue,
            offset,
            max_messages: Some(10_000),
            max_bytes: None,
            wait: Duration::ZERO,
            tags: "*",
            filter: &TagFilter::All,
        };
        let asked = Instant::now();
        let pulled = patiently(|| client.pull(&pull))
            .await
            .with_context(|| format!("cannot read queue {queue} of {topic}"))?;
        measured.call(asked.elapsed(), pulled.messages.len() as u64);
        pulled.messages.iter().for_each(&mut visit);
        // Only an empty answer is the end: the broker gives it when all that was acknowledged before can be read.
        if pulled.next_offset <= offset {
            return Ok(measured.end());
        }
        offset = pulled.next_offset;
    }
}

/// Looks for every package and for generated messages spread over all of them.
async fn find(
    client: &Client,
    packages: &[Package],
    scene: Scene,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut measured = Measured::start();
    let mut wrong = 0_u64;
    for package in packages {
        let found = find_key(client, PACKAGES, &package.name, &mut measured).await?;
        let expected: Vec<&str> = packages
            .iter()
            .filter(|other| other.name == package.name)
            .map(|other| other.entry.as_str())
            .collect();
        let right = found
            .iter()
            .map(|message| &message.body[..])
            .eq(expected.iter().map(|entry| entry.as_bytes()));
        wrong += u64::from(!right);
    }
    for number in 0..KEYS {
        let producer = u32::try_from(number % u64::from(SENDERS))?;
        let stamp = Stamp { producer, sequence: (number * (EACH / KEYS) + 7) % EACH };
        let found = find_key(client, GENERATED, &stamp.key(), &mut measured).await?;
        let right = matches!(found.as_slice(), [one] if stamp.is_body_of(&one.body));
        wrong += u64::from(!right);
    }
    let keys = packages.len() as u64 + KEYS;
    report.step(scene.names("find", "find again"), "messages by key", measured.end());
    report.check(
        scene
            .names("a key finds its messages and no others", "a key finds the same after the kill"),
        wrong == 0,
        format!("{keys} keys, {wrong} wrong"),
    );
    Ok(())
}

async fn find_key(
    client: &Client,
    topic: &str,
    key: &str,
    measured: &mut Measured,
) -> anyhow::Result<Vec<Message>> {
    let query = Query {
        selector: Selector::Key { topic, key },
        begin: None,
        end: None,
        order: Order::OldestFirst,
        limit: 100,
        page: String::new(),
    };
    let asked = Instant::now();
    let found = patiently(|| client.query(&query))
        .await
        .with_context(|| format!("cannot find the key {key}"))?;
    measured.call(asked.elapsed(), found.messages.len() as u64);
    if let Some(reason) = found.incomplete {
        anyhow::bail!("the answer for the key {key} is incomplete ({reason})");
    }
    Ok(found.messages)
}
