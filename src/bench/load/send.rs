//! Batches over streams, one connection for each producer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::drive::{Ack, Batches, Drive};
use super::{Load, join};
use crate::bench::pace::{Pace, Timer};
use crate::bench::recorder::{Recorded, Recorder};
use crate::bench::spread::Spread;
use crate::bench::{Address, BenchError};
use crate::client::{Receipt, SendStream};
use crate::message::QueueId;

/// A stream with a connection of its own.
pub(super) struct Stream {
    stream: SendStream,
    /// Nobody looks at them.
    receipts: Vec<Receipt>,
}

impl Stream {
    /// To `server`.
    pub(super) async fn open(server: &Address) -> Result<Self, BenchError> {
        let stream = server.connect().await?.send_stream(None).await?;
        Ok(Self { stream, receipts: Vec::new() })
    }

    /// Sends a batch to a queue of a topic. Waits while too many are under way.
    pub(super) async fn send(
        &mut self,
        (topic, queue): (&str, QueueId),
        batch: Bytes,
    ) -> Result<(), BenchError> {
        self.receipts.clear();
        self.stream.send(topic, Some(queue), batch, &mut self.receipts).await?;
        Ok(())
    }

    /// How many batches are acknowledged. Waits for news; may be dropped.
    pub(super) async fn acked(&mut self) -> Result<u64, BenchError> {
        self.receipts.clear();
        self.stream.acknowledged(&mut self.receipts).await?;
        Ok(self.stream.acked_to())
    }
}

/// A stream and what goes into it.
struct Producer {
    load: Load,
    stream: Stream,
    spread: Spread,
}

impl Batches for Producer {
    async fn send(&mut self, n: u64, _: Instant) -> Result<(), BenchError> {
        let target = self.load.target(self.spread.next());
        let batches = &self.load.batches;
        let index = usize::try_from(n).unwrap_or_default() % batches.len().max(1);
        let batch = batches.get(index).cloned().unwrap_or_default();
        self.stream.send(target, batch).await
    }

    async fn acked(&mut self) -> Result<u64, BenchError> {
        self.stream.acked().await
    }
}

/// A turn.
pub(super) async fn turn(
    load: &Load,
    server: &Address,
    rate: Option<f64>,
    length: Duration,
) -> Result<Recorded, BenchError> {
    let mut producers = Vec::new();
    for producer in 0..load.config.producers {
        producers.push(Producer {
            load: load.clone(),
            stream: Stream::open(server).await?,
            spread: load.spread(producer),
        });
    }
    let recorder = load.recorder(length);
    let mut tasks = JoinSet::new();
    for (producer, number) in producers.into_iter().zip(0..) {
        let (load, recorder) = (load.clone(), Arc::clone(&recorder));
        tasks.spawn(produce(load, producer, Ack::IsRecorded, number, rate, recorder));
    }
    join(tasks).await?;
    Ok(recorder.finish())
}

/// Runs one of the producers to the end of the turn.
pub(super) async fn produce(
    load: Load,
    mut batches: impl Batches,
    ack: Ack,
    number: u32,
    rate: Option<f64>,
    recorder: Arc<Recorder>,
) -> Result<(), BenchError> {
    let config = &load.config;
    let rate = rate.map(|messages| messages / f64::from(config.batch));
    let drive = Drive {
        ack,
        pace: Pace::of(rate, recorder.started(), number, config.producers),
        in_flight: usize::try_from(config.in_flight).unwrap_or(1),
        messages: config.batch.into(),
        recorder: &recorder,
    };
    drive.run(&mut batches, &mut Timer::new()).await
}
