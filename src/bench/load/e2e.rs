//! Senders at a fixed rate, and readers that wait at the ends of the queues.
//!
//! Each body begins with the moment at which its batch was to be sent, in nanoseconds since the begin of the turn. A
//! batch is recorded once, when it reaches its reader; acknowledgements only make room.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::drive::{Ack, Batches};
use super::pull::messages;
use super::send::{self, Stream};
use super::{DRAIN, Load, Share, join};
use crate::bench::config::STAMP;
use crate::bench::recorder::{Recorded, Recorder};
use crate::bench::spread::{Dice, Spread};
use crate::bench::{Address, BenchError};
use crate::client::{Client, Position, PullStream, PullStreamOptions};
use crate::format::batch::{Batch, BatchBuilder, NewMeta, TagFilter};
use crate::message::{QueueId, QueueOffset};
use crate::sync::{AtomicU64, Ordering};

/// Streams of pulls of one connection: a server lets it have 256 calls at once, and there are questions too.
const STREAMS: usize = 250;

/// A stream into which stamped batches go.
struct Stamping {
    load: Load,
    stream: Stream,
    spread: Spread,
    body: Vec<u8>,
    begin: Instant,
    /// Messages of all streams.
    sent: Arc<AtomicU64>,
}

impl Batches for Stamping {
    async fn send(&mut self, _: u64, intended: Instant) -> Result<(), BenchError> {
        let stamp = intended.saturating_duration_since(self.begin).as_nanos();
        let stamp = u64::try_from(stamp).unwrap_or(u64::MAX).to_le_bytes();
        if let Some(begin) = self.body.first_chunk_mut::<STAMP>() {
            *begin = stamp;
        }
        let mut batch = BatchBuilder::new();
        for _ in 0..self.load.config.batch {
            batch.push(&NewMeta::default(), &self.body);
        }
        let target = self.load.target(self.spread.next());
        self.stream.send(target, batch.finish()).await?;
        self.sent.fetch_add(self.load.config.batch.into(), Ordering::Release);
        Ok(())
    }

    async fn acked(&mut self) -> Result<u64, BenchError> {
        self.stream.acked().await
    }
}

/// What came to readers, for whoever waits for the last of it.
#[derive(Default)]
struct Arrivals {
    messages: AtomicU64,
    more: Notify,
}

impl Arrivals {
    async fn reach(&self, messages: u64) {
        loop {
            // Asked for before the look: what arrives in between wakes it.
            let more = self.more.notified();
            if self.messages.load(Ordering::Acquire) >= messages {
                return;
            }
            more.await;
        }
    }
}

/// A turn.
pub(super) async fn turn(
    load: &Load,
    server: &Address,
    rate: Option<f64>,
    length: Duration,
) -> Result<Recorded, BenchError> {
    let config = &load.config;
    let mut streams = Vec::new();
    for _ in 0..config.producers {
        streams.push(Stream::open(server).await?);
    }
    let pulls = pulls(load, server).await?;
    let recorder = load.recorder(length);
    let arrivals = Arc::new(Arrivals::default());
    let mut reading = JoinSet::new();
    for pull in pulls {
        reading.spawn(read(pull, Arc::clone(&arrivals), Arc::clone(&recorder)));
    }
    let sent = Arc::new(AtomicU64::new(0));
    let mut sending = JoinSet::new();
    for (stream, number) in streams.into_iter().zip(0..) {
        let batches = Stamping {
            load: load.clone(),
            stream,
            spread: load.spread(number),
            body: Dice::new(0).bytes(config.payload),
            begin: recorder.started(),
            sent: Arc::clone(&sent),
        };
        let (load, recorder) = (load.clone(), Arc::clone(&recorder));
        sending.spawn(send::produce(load, batches, Ack::MakesRoom, number, rate, recorder));
    }
    join(sending).await?;
    let sent = sent.load(Ordering::Acquire);
    tokio::select! {
        // Readers end by a failure only.
        failed = join(reading) => failed?,
        arrived = timeout(DRAIN, arrivals.reach(sent)) => {
            arrived.map_err(|_| BenchError::Silent)?;
        }
    }
    Ok(recorder.finish())
}

/// Streams that begin where each queue ends now: the turns before left their messages there.
async fn pulls(load: &Load, server: &Address) -> Result<Vec<PullStream>, BenchError> {
    let shares = load.shares();
    // As many connections as senders have, unless they have too few streams.
    let wanted = usize::try_from(load.config.producers).unwrap_or(1);
    let mut readers = Vec::new();
    for _ in 0..wanted.max(shares.len().div_ceil(STREAMS)) {
        readers.push(server.connect().await?);
    }
    let mut pulls = Vec::new();
    // Of one topic: its shares stand together, and each topic is asked once.
    let (mut topic, mut ends) = ("", HashMap::new());
    for (share, client) in shares.iter().zip(readers.iter().cycle()) {
        if topic != share.topic {
            topic = &share.topic;
            ends = client.offsets_at(topic, Position::Latest).await?.into_iter().collect();
        }
        pulls.push(from_the_end(client, share, &ends).await?);
    }
    Ok(pulls)
}

async fn from_the_end(
    client: &Client,
    share: &Share,
    ends: &HashMap<QueueId, QueueOffset>,
) -> Result<PullStream, BenchError> {
    let end = |queue: &QueueId| ends.get(queue).map(|end| (*queue, *end));
    let queues: Vec<_> = share.queues.iter().filter_map(end).collect();
    let options = PullStreamOptions {
        topic: &share.topic,
        queues: &queues,
        max_bytes: None,
        tags: "*",
        filter: &TagFilter::All,
        group: None,
        epoch: None,
    };
    Ok(client.pull_stream(&options).await?)
}

/// Reads until it is dropped.
async fn read(
    mut pull: PullStream,
    arrivals: Arc<Arrivals>,
    recorder: Arc<Recorder>,
) -> Result<(), BenchError> {
    loop {
        let part = pull.next().await?;
        for (_, batch) in part.batches() {
            let batch = Batch::parse(batch)?;
            let stamp = batch.bodies().first_chunk::<STAMP>().ok_or(BenchError::NotFound)?;
            let since = Duration::from_nanos(u64::from_le_bytes(*stamp));
            recorder.answered(recorder.started() + since, batch.message_count().into());
        }
        // Release: whoever sees them sees what was recorded of them.
        arrivals.messages.fetch_add(messages(&part), Ordering::Release);
        arrivals.more.notify_waiters();
    }
}
