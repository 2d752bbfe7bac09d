//! Producers and readers that live through the deaths of brokers, and write down what they saw.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstem::client::{Client, ClientError, Retry, Stored, TopicSettings};
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{FlushMode, QueueId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::history::{History, Outcome, Place, Read, Send, Stamp};
use crate::support::{Dice, pull, read_past_damage, soon};

pub(crate) const TOPICS: [(&str, FlushMode); 2] =
    [("sync", FlushMode::Sync), ("async", FlushMode::Async)];
pub(crate) const QUEUES: u32 = 2;
const PRODUCERS: u8 = 4;

/// Two producers for each topic, a reader for each queue.
pub(crate) struct Load {
    scene: watch::Sender<Scene>,
    producers: JoinSet<Vec<Send>>,
    readers: JoinSet<(Vec<Read>, Vec<Place>)>,
}

impl Load {
    /// They wait for a broker.
    pub(crate) fn start(dice: &mut Dice) -> Self {
        let (scene, scenes) = watch::channel(Scene::Down);
        let mut producers = JoinSet::new();
        for producer in 0..PRODUCERS {
            let (topic, _) = TOPICS[usize::from(producer) * TOPICS.len() / usize::from(PRODUCERS)];
            producers.spawn(produce(topic, producer, Dice::new(dice.roll()), scenes.clone()));
        }
        let mut readers = JoinSet::new();
        for (topic, _) in TOPICS {
            for queue in 0..QUEUES {
                readers.spawn(follow(topic, queue, Dice::new(dice.roll()), scenes.clone()));
            }
        }
        Self { scene, producers, readers }
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
            let (seen, ends) = read.unwrap();
            history.seen.extend(seen);
            history.ends.extend(ends);
        }
    }
}

pub(crate) async fn create_topics(client: &Client) {
    for (topic, flush) in TOPICS {
        let settings =
            TopicSettings { queues: Some(QUEUES), flush: Some(flush), ..TopicSettings::default() };
        client.create_topic(topic, settings).await.unwrap();
    }
}

/// Reads every queue from its beginning to its end: the last word of `history`.
pub(crate) async fn read_last(client: &Client, history: &mut History) {
    for (topic, _) in TOPICS {
        for queue in 0..QUEUES {
            let messages = read_past_damage(client, topic, queue).await;
            history.last.extend(messages.iter().map(|message| Read::of(topic, message)));
        }
    }
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
                let count = if dice.below(3) == 0 { 2 + dice.below(7) } else { 1 };
                let first = Stamp { producer, sequence };
                sequence += u32::try_from(count).unwrap();
                (first, u32::try_from(count).unwrap())
            });
            let queue = dice.below(u64::from(QUEUES) + 1);
            let queue = u32::try_from(queue).ok().filter(|queue| *queue < QUEUES);
            let invoked = Instant::now();
            let mut send =
                Send { topic, first, count, invoked, returned: invoked, outcome: Outcome::Unknown };
            let batch = batch(&send);
            let answer = client.send(topic, queue.map(QueueId::new), batch).await;
            send.returned = Instant::now();
            send.outcome = match &answer {
                Ok(receipt) => {
                    assert_eq!(receipt.count, count);
                    let first = receipt.first_queue_offset.get();
                    Outcome::Stored { queue: receipt.queue.get(), first }
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

/// Reads a queue with long polling, goes back now and then; returns what it saw and the ends it was told.
async fn follow(
    topic: &'static str,
    queue: u32,
    mut dice: Dice,
    mut scene: watch::Receiver<Scene>,
) -> (Vec<Read>, Vec<Place>) {
    let (mut seen, mut ends) = (Vec::new(), Vec::new());
    let mut last = None;
    let mut next = 0;
    while let Some((round, client)) = broker(&mut scene, last).await {
        last = Some(round);
        loop {
            let goes_back = dice.below(10) == 0;
            let offset = if goes_back { dice.below(next + 1) } else { next };
            match pull(&client, topic, queue, offset, Duration::from_millis(500)).await {
                Ok(pulled) => {
                    seen.extend(pulled.messages.iter().map(|message| Read::of(topic, message)));
                    ends.push(Place { topic, queue, offset: pulled.range.max.get() });
                    if !goes_back {
                        next = pulled.next_offset.get();
                    }
                }
                Err(error) => match pause(&error) {
                    Some(pause) => sleep(pause).await,
                    None => break,
                },
            }
        }
    }
    (seen, ends)
}
