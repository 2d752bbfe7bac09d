//! What is done to a server in one turn. The server is an address: the broker and the control get the same.
//!
//! | file | load |
//! | --- | --- |
//! | `send.rs` | batches over streams; `drive.rs` says when |
//! | `pull.rs` | readers from the begin to the end, again and again |
//! | `query.rs` | lanes that look for keys |
//! | `e2e.rs` | senders, and readers that wait |
//!
//! Every turn makes its connections before its clock starts. Its tasks are owned by a `JoinSet`: they end with it.

mod drive;
mod e2e;
mod pull;
mod query;
mod send;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::config::{Compression, Config, Distribution, What};
use super::recorder::{Recorded, Recorder};
use super::spread::{Dice, Spread};
use super::{Address, BenchError};
use crate::format::batch::{BatchBuilder, BatchError, Compressor, NewMeta};
use crate::message::QueueId;

/// Batches that differ, so that not one of them alone is in the caches.
const VARIETY: u64 = 16;
/// Queues of one stream of pulls.
const QUEUES_TOGETHER: usize = 256;
/// How long answers are waited for after the end of a turn.
const DRAIN: Duration = Duration::from_secs(10);

/// One batch as readers of a bench find it: `messages` bodies of `payload` bytes.
///
/// # Errors
/// The codec has no room.
pub(super) fn sample(
    payload: usize,
    messages: u32,
    compression: Compression,
) -> Result<Bytes, BatchError> {
    let mut dice = Dice::new(0);
    let mut batch = BatchBuilder::new();
    for _ in 0..messages {
        batch.push(&NewMeta::default(), &body(&mut dice, payload, compression));
    }
    finish(batch, compression)
}

fn body(dice: &mut Dice, len: usize, compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => dice.bytes(len),
        Compression::Lz4 | Compression::Zstd => dice.text(len),
    }
}

fn finish(batch: BatchBuilder, compression: Compression) -> Result<Bytes, BatchError> {
    match compression {
        Compression::None => Ok(batch.finish()),
        Compression::Lz4 | Compression::Zstd => {
            Ok(batch.finish_compressed(&mut Compressor::new(compression.codec())?))
        }
    }
}

/// The key of message `message`; each of its keys has a number.
fn key(message: u64, number: u32) -> String {
    format!("k{message}-{number}")
}

/// A batch whose messages have keys from message `first` on.
fn keyed(config: &Config, first: u64) -> Result<Bytes, BatchError> {
    let mut dice = Dice::new(first);
    let mut batch = BatchBuilder::new();
    for message in first..first + u64::from(config.batch) {
        let keys: Vec<String> = (0..config.keys).map(|number| key(message, number)).collect();
        let keys = keys.iter().map(String::as_str).collect();
        let body = body(&mut dice, config.payload, config.compression);
        batch.push(&NewMeta { keys, ..NewMeta::default() }, &body);
    }
    finish(batch, config.compression)
}

/// Queues of a topic that are read together.
struct Share {
    topic: String,
    queues: Vec<QueueId>,
}

/// What every turn of a run has in common.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) config: Arc<Config>,
    /// Their names.
    pub(super) topics: Arc<[String]>,
    /// Told of every answer.
    pub(super) told: Arc<dyn Fn(u64) + Send + Sync>,
    batches: Arc<[Bytes]>,
}

impl Load {
    /// A load on topics whose names begin with `prefix`.
    pub(super) fn new(
        config: Arc<Config>,
        prefix: &str,
        told: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Self, BenchError> {
        let topics = (0..config.topics).map(|topic| format!("{prefix}-{topic}")).collect();
        let batches = (0..VARIETY).map(|n| keyed(&config, n * u64::from(config.batch)));
        let batches = batches.collect::<Result<_, _>>()?;
        Ok(Self { config, topics, told, batches })
    }

    /// Stores what pulls and queries are to find, over all queues in turn, and tells of every acknowledgement.
    pub(super) async fn fill(&self, server: &Address) -> Result<(), BenchError> {
        let mut stream = send::Stream::open(server).await?;
        let (batches, messages) = (self.config.filled_batches(), u64::from(self.config.batch));
        let (mut sent, mut acked) = (0, 0);
        let (targets, mut spread) = (self.config.targets(), self.spread(0));
        let zipf = self.config.distribution == Distribution::Zipf;
        while acked < batches {
            if sent < batches && sent - acked < VARIETY {
                let drawn = if zipf && sent >= targets { spread.next() } else { sent % targets };
                let target = self.target(drawn);
                stream.send(target, keyed(&self.config, sent * messages)?).await?;
                sent += 1;
                continue;
            }
            let news = stream.acked().await?;
            (self.told)((news - acked) * messages);
            acked = news;
        }
        Ok(())
    }

    /// One turn. `rate`: messages a second; `None`: as fast as answers come.
    pub(super) async fn turn(
        &self,
        server: &Address,
        rate: Option<f64>,
        length: Duration,
    ) -> Result<Recorded, BenchError> {
        match self.config.what {
            What::Send => send::turn(self, server, rate, length).await,
            What::Pull => pull::turn(self, server, length).await,
            What::Query => query::turn(self, server, rate, length).await,
            What::E2e => e2e::turn(self, server, rate, length).await,
        }
    }

    fn recorder(&self, length: Duration) -> Arc<Recorder> {
        Arc::new(Recorder::start(length, Arc::clone(&self.told)))
    }

    /// Topic and queue of a target.
    fn target(&self, target: u64) -> (&str, QueueId) {
        let topics = u64::from(self.config.topics);
        let topic = usize::try_from(target % topics).ok().and_then(|index| self.topics.get(index));
        let queue = u32::try_from(target / topics).unwrap_or_default();
        (topic.map_or("", String::as_str), QueueId::new(queue))
    }

    /// All queues, in shares for readers.
    fn shares(&self) -> Vec<Share> {
        let queues: Vec<_> = (0..self.config.queues).map(QueueId::new).collect();
        let of = |topic: &String| {
            let topic = topic.clone();
            queues
                .chunks(QUEUES_TOGETHER)
                .map(move |queues| Share { topic: topic.clone(), queues: queues.to_vec() })
        };
        self.topics.iter().flat_map(of).collect()
    }

    /// The choices of one of the producers.
    fn spread(&self, producer: u32) -> Spread {
        Spread::new(self.config.distribution, self.config.targets(), producer.into())
    }
}

/// Waits until all tasks have ended.
///
/// # Errors
/// Of the first that failed; the others are dropped with the set.
async fn join(mut tasks: JoinSet<Result<(), BenchError>>) -> Result<(), BenchError> {
    while let Some(task) = tasks.join_next().await {
        task.map_err(|_| BenchError::Lost)??;
    }
    Ok(())
}
