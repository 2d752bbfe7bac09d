//! Producers and readers that live through the deaths of brokers, and write down what they saw.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstem::client::{Client, ClientError, OffsetRange, Purge, Retry, Stored, TopicSettings};
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{FlushMode, Force, Keep, QueueId, QueueOffset, Retention, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::history::{History, Outcome, Purged, Read, Seen, Send, Stamp, Told};
use crate::support::{Dice, pull, read_past_damage, soon};

/// A topic of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) flush: FlushMode,
    pub(crate) retention: Retention,
    /// Whether its messages are large, so that segments are finished now and then.
    pub(crate) is_heavy: bool,
    /// Whether somebody purges it.
    pub(crate) is_purged: bool,
}

impl Subject {
    /// A topic of small messages that keeps them.
    pub(crate) const fn keeping(name: &'static str, flush: FlushMode) -> Self {
        let retention = Retention { time_ms: None, bytes: None };
        Self { name, flush, retention, is_heavy: false, is_purged: false }
    }
}

/// Topics that keep everything.
pub(crate) const TOPICS: [Subject; 2] =
    [Subject::keeping("sync", FlushMode::Sync), Subject::keeping("async", FlushMode::Async)];
pub(crate) const QUEUES: u32 = 2;
/// For each topic.
const PRODUCERS: u8 = 2;

/// Producers for each topic, a reader for each queue, and who purges.
pub(crate) struct Load {
    scene: watch::Sender<Scene>,
    producers: JoinSet<Vec<Send>>,
    readers: JoinSet<(Vec<Seen>, Vec<Told>)>,
    purgers: JoinSet<Vec<Purged>>,
}

impl Load {
    /// They wait for a broker.
    pub(crate) fn start(dice: &mut Dice, subjects: &[Subject]) -> Self {
        let (scene, scenes) = watch::channel(Scene::Down);
        let (mut producers, mut readers) = (JoinSet::new(), JoinSet::new());
        let mut purgers = JoinSet::new();
        let mut number = 0;
        for subject in subjects {
            for _ in 0..PRODUCERS {
                let producer = number + if subject.is_heavy { Stamp::FIRST_HEAVY } else { 0 };
                let dice = Dice::new(dice.roll());
                producers.spawn(produce(subject.name, producer, dice, scenes.clone()));
                number += 1;
            }
            for queue in 0..QUEUES {
                let dice = Dice::new(dice.roll());
                readers.spawn(follow(subject.name, queue, dice, scenes.clone()));
            }
            if subject.is_purged {
                purgers.spawn(purge(subject.name, Dice::new(dice.roll()), scenes.clone()));
            }
        }
        Self { scene, producers, readers, purgers }
    }

    /// There is a broker, another one than before.
    pub(crate) fn up(&self, round: u64, client: Client) {
        self.scene.send_replace(Scene::Up { round, client: Box::new(client) });
    }

    /// There is none.
    pub(crate) fn down(&self) {
        self.scene.send_replace(Scene::Down);
    }

    /// Ends it while there is no broker, and adds what was seen to `history`.
    pub(crate) async fn end(mut self, history: &mut History) {
        self.scene.send_replace(Scene::Over);
        while let Some(sends) = soon("a producer's end", self.producers.join_next()).await {
            history.sends.extend(sends.unwrap());
        }
        while let Some(read) = soon("a reader's end", self.readers.join_next()).await {
            let (seen, told) = read.unwrap();
            history.seen.extend(seen);
            history.told.extend(told);
        }
        while let Some(purges) = soon("a purger's end", self.purgers.join_next()).await {
            history.purges.extend(purges.unwrap());
        }
    }
}

pub(crate) async fn create_topics(client: &Client, subjects: &[Subject]) {
    for Subject { name, flush, retention, .. } in subjects {
        let keep = |limit: Option<u64>| Some(limit.map_or(Keep::All, Keep::UpTo));
        let settings = TopicSettings {
            queues: Some(QUEUES),
            flush: Some(*flush),
            retention_time: keep(retention.time_ms),
            retention_bytes: keep(retention.bytes),
            ..TopicSettings::default()
        };
        client.create_topic(name, settings).await.unwrap();
    }
}

/// Adds to `history` where each queue begins and ends.
pub(crate) async fn look_at_ranges(client: &Client, subjects: &[Subject], history: &mut History) {
    for Subject { name, .. } in subjects {
        let asked = Instant::now();
        let described = client.describe_topic(name).await.unwrap();
        for (queue, range) in described.queues {
            history.told.push(told(name, queue.get(), range, asked));
        }
    }
}

/// Reads every queue from its beginning to its end: the last word of `history`. From now on nothing goes by itself.
pub(crate) async fn read_last(client: &Client, subjects: &[Subject], history: &mut History) {
    for Subject { name, retention, .. } in subjects {
        history.retention.insert(name, *retention);
        let all = TopicSettings {
            retention_time: Some(Keep::All),
            retention_bytes: Some(Keep::All),
            ..TopicSettings::default()
        };
        client.update_topic(name, all, Force::No).await.unwrap();
    }
    look_at_ranges(client, subjects, history).await;
    let begins = history.begins();
    for Subject { name, .. } in subjects {
        for queue in 0..QUEUES {
            let begin = begins.get(&(*name, queue)).copied().unwrap_or_default();
            let messages = read_past_damage(client, name, queue, begin).await;
            history.last.extend(messages.iter().map(|message| Read::of(name, message)));
        }
    }
}

fn told(topic: &'static str, queue: u32, range: OffsetRange, asked: Instant) -> Told {
    let returned = Instant::now();
    let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap();
    let time = Timestamp::new(u64::try_from(since_1970.as_millis()).unwrap());
    let (min, max) = (range.min.get(), range.max.get());
    Told { topic, queue, min, max, asked, returned, time }
}

/// Acknowledged sends to a topic.
pub(crate) fn acknowledged(history: &History, topic: &str) -> usize {
    let stored = |send: &&Send| matches!(send.outcome, Outcome::Stored { .. });
    history.sends.iter().filter(stored).filter(|send| send.topic == topic).count()
}

/// Asserts that one honest store can have shown all this.
pub(crate) fn assert_honest(history: &History) {
    let findings = history.findings();
    let some = &findings[..findings.len().min(20)];
    assert!(findings.is_empty(), "{} findings: {some:#?}", findings.len());
}

/// Whether there is a broker.
#[derive(Clone)]
enum Scene {
    Down,
    Up { round: u64, client: Box<Client> },
    Over,
}

/// Waits for a broker of a later round than the last one. `None`: it is over.
async fn broker(scene: &mut watch::Receiver<Scene>, last: Option<u64>) -> Option<(u64, Client)> {
    let other = |scene: &Scene| match scene {
        Scene::Down => false,
        Scene::Up { round, .. } => Some(*round) != last,
        Scene::Over => true,
    };
    let scene = scene.wait_for(other).await.ok()?;
    match &*scene {
        Scene::Up { round, client } => Some((*round, Client::clone(client))),
        _ => None,
    }
}

/// One send after the other: one message or several, to a queue by name or to any.
async fn produce(
    topic: &'static str,
    producer: u8,
    mut dice: Dice,
    mut scene: watch::Receiver<Scene>,
) -> Vec<Send> {
    let mut sends = Vec::new();
    let mut sequence = 0;
    let mut repeat = None;
    let mut last = None;
    while let Some((round, client)) = broker(&mut scene, last).await {
        last = Some(round);
        loop {
            let (first, count) = repeat.take().unwrap_or_else(|| {
                let most = if producer < Stamp::FIRST_HEAVY { 7 } else { 2 };
                let count = if dice.below(3) == 0 { 2 + dice.below(most) } else { 1 };
                let first = Stamp { producer, sequence };
                sequence += u32::try_from(count).unwrap();
                (first, u32::try_from(count).unwrap())
            });
            let queue = dice.below(u64::from(QUEUES) + 1);
            let queue = u32::try_from(queue).ok().filter(|queue| *queue < QUEUES);
            let invoked = Instant::now();
            let mut send = Send {
                topic,
                first,
                count,
                bytes: 0,
                invoked,
                returned: invoked,
                outcome: Outcome::Unknown,
            };
            let batch = batch(&send);
            send.bytes = batch.len() as u64;
            let answer = client.send(topic, queue.map(QueueId::new), batch).await;
            send.returned = Instant::now();
            send.outcome = match &answer {
                Ok(receipt) => {
                    assert_eq!(receipt.count, count);
                    let first = receipt.first_queue_offset.get();
                    Outcome::Stored { queue: receipt.queue.get(), first, time: receipt.store_time }
                }
                Err(error) => error.stored().into(),
            };
            sends.push(send);
            let Err(error) = answer else { continue };
            // Half of what has no answer is sent again, as a producer would that prefers twice to never.
            if error.stored() == Stored::Unknown && dice.below(2) == 0 {
                repeat = Some((first, count));
            }
            match pause(&error) {
                Some(pause) => sleep(pause).await,
                None => break,
            }
        }
    }
    sends
}

fn batch(send: &Send) -> Bytes {
    let mut batch = BatchBuilder::new();
    for stamp in send.stamps() {
        let keys = stamp.keys();
        let keys = keys.iter().map(String::as_str).collect();
        batch.push(&NewMeta { keys, ..NewMeta::default() }, &stamp.body());
    }
    batch.finish()
}

/// How long to wait before this broker is asked again; `None`: it is gone.
fn pause(error: &ClientError) -> Option<Duration> {
    let refusal = error.refusal()?;
    match refusal.retry() {
        Retry::After(pause) => Some(pause),
        Retry::Unsafe => Some(Duration::from_millis(10)),
        Retry::Never => panic!("{refusal:?}"),
    }
}

/// Reads a queue with long polling, goes back now and then, goes on where it begins by now; returns what it saw and was
/// told.
async fn follow(
    topic: &'static str,
    queue: u32,
    mut dice: Dice,
    mut scene: watch::Receiver<Scene>,
) -> (Vec<Seen>, Vec<Told>) {
    let (mut seen, mut ranges) = (Vec::new(), Vec::new());
    let mut last = None;
    let mut next = 0;
    while let Some((round, client)) = broker(&mut scene, last).await {
        last = Some(round);
        loop {
            let goes_back = dice.below(10) == 0;
            let offset = if goes_back { dice.below(next + 1) } else { next };
            let asked = Instant::now();
            match pull(&client, topic, queue, offset, Duration::from_millis(500)).await {
                Ok(pulled) => {
                    let reads = pulled.messages.iter().map(|message| Read::of(topic, message));
                    seen.extend(reads.map(|read| Seen { read, asked }));
                    ranges.push(told(topic, queue, pulled.range, asked));
                    if !goes_back {
                        next = pulled.next_offset.get();
                    }
                }
                Err(error) => {
                    if let Some(range) = error.refusal().and_then(|refusal| refusal.range) {
                        ranges.push(told(topic, queue, range, asked));
                        next = next.max(range.min.get());
                        continue;
                    }
                    match pause(&error) {
                        Some(pause) => sleep(pause).await,
                        None => break,
                    }
                }
            }
        }
    }
    (seen, ranges)
}

/// Purges a topic now and then: a queue up to an offset, a queue, or all of it. Returns what was not refused.
async fn purge(
    topic: &'static str,
    mut dice: Dice,
    mut scene: watch::Receiver<Scene>,
) -> Vec<Purged> {
    let mut purges = Vec::new();
    let mut last = None;
    while let Some((round, client)) = broker(&mut scene, last).await {
        last = Some(round);
        loop {
            sleep(Duration::from_millis(20 + dice.below(200))).await;
            let Ok(described) = client.describe_topic(topic).await else { break };
            let queue = usize::try_from(dice.below(u64::from(QUEUES))).unwrap();
            let (queue, range) = described.queues[queue];
            let what = match dice.below(4) {
                0 => Purge::Topic,
                1 => Purge::Queue { queue, up_to: None },
                _ => {
                    let there = range.max.get().saturating_sub(range.min.get());
                    let up_to = range.min.get() + dice.below(there + 1);
                    Purge::Queue { queue, up_to: Some(QueueOffset::new(up_to)) }
                }
            };
            let invoked = Instant::now();
            let answer = client.purge_topic(topic, what).await;
            let (returned, is_acknowledged) = (Instant::now(), answer.is_ok());
            purges.push(Purged { topic, what, invoked, returned, is_acknowledged });
            if let Err(error) = answer {
                match pause(&error) {
                    Some(pause) => sleep(pause).await,
                    None => break,
                }
            }
        }
    }
    purges
}
