//! SendStream: batches in, acknowledgements out.
//!
//! Whatever has arrived is stored before the stream looks who may be acknowledged, and all who may are told with one
//! answer: on a busy stream neither costs a wake-up of its own.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body as HttpBody;
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::StdError;

use super::send::wire;
use super::status::{self, Part};
use crate::broker::{
    Broker, BrokerError, RequestFault, SendRequest, StoredBatch, check_topic_name,
};
use crate::grpc::raw::{Messages, Out, refusal};
use crate::message::{QueueId, SessionId, SessionMark};
use crate::proto::{SendStreamRequest, SendStreamResponse};
use crate::wire::framed;

/// Batches of a stream that are stored and not acknowledged. As many as a session remembers.
const IN_FLIGHT: usize = 64;
/// Numbers of topics end here.
const TOPICS: u32 = 1 << 16;
/// How long a batch may wait for room; the disk has its own time.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// One stream.
struct SendStream {
    broker: Arc<Broker>,
    /// By their numbers.
    topics: HashMap<u32, String>,
    session: Option<(SessionId, u64)>,
    /// Whether the first request is still to come.
    is_new: bool,
    /// Of the next batch.
    sequence: u64,
    /// Stored, in the order of the stream; the last has the sequence before `sequence`.
    unacknowledged: VecDeque<StoredBatch>,
}

/// What a stream waits for.
enum Event {
    Received(Result<Option<SendStreamRequest>, Status>),
    /// The oldest batch may be acknowledged, or never will.
    Oldest(Result<(), BrokerError>),
    Draining,
}

/// Runs a stream to its end.
///
/// # Errors
/// Of the first batch that was refused, or could not be acknowledged.
pub(super) async fn run<B>(
    broker: Arc<Broker>,
    mut messages: Messages<B>,
    out: Out,
) -> Result<(), Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let mut stream = SendStream {
        broker: Arc::clone(&broker),
        topics: HashMap::new(),
        session: None,
        is_new: true,
        sequence: 1,
        unacknowledged: VecDeque::with_capacity(IN_FLIGHT),
    };
    let mut drained = pin!(broker.drained());
    let ended = loop {
        let may_receive = stream.unacknowledged.len() < IN_FLIGHT;
        let event = tokio::select! {
            biased;
            received = messages.next(), if may_receive => Event::Received(received),
            acknowledged = stream.oldest() => Event::Oldest(acknowledged),
            () = drained.as_mut() => Event::Draining,
        };
        let stored = match event {
            Event::Received(Ok(None)) => break Ok(()),
            Event::Received(Err(status)) => Err(status),
            Event::Received(Ok(Some(request))) => stream.take_all(request, &mut messages).await,
            Event::Oldest(Ok(())) => Ok(()),
            Event::Oldest(Err(error)) => return Err(stream.refused_oldest(&error)),
            Event::Draining => Err(refusal(&broker, &BrokerError::Draining)),
        };
        stream.acknowledge(&out).await;
        if let Err(status) = stored {
            break Err(status);
        }
    };
    stream.finish(&out).await.and(ended)
}

impl SendStream {
    /// Takes a request, and all behind it that is there already, as long as there is room for batches.
    async fn take_all<B>(
        &mut self,
        request: SendStreamRequest,
        messages: &mut Messages<B>,
    ) -> Result<(), Status>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<StdError>,
    {
        self.take(request).await?;
        while self.unacknowledged.len() < IN_FLIGHT
            && let Some(request) = messages.ready()?
        {
            self.take(request).await?;
        }
        Ok(())
    }

    async fn take(&mut self, request: SendStreamRequest) -> Result<(), Status> {
        let sequence = self.sequence;
        let is_new = std::mem::take(&mut self.is_new);
        match self.try_take(request, is_new).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.broker.counters().refused(error.reason());
                Err(of_batch(&error, sequence.max(self.sequence)))
            }
        }
    }

    async fn try_take(
        &mut self,
        request: SendStreamRequest,
        is_new: bool,
    ) -> Result<(), BrokerError> {
        if let Some(mark) = request.session {
            if !is_new {
                return Err(bad(RequestFault::LateSession));
            }
            self.session = Some((SessionId::new(mark.id), mark.epoch));
            self.sequence = mark.sequence;
        }
        for open in request.open {
            self.open(open.number, open.topic)?;
        }
        if request.batch.is_empty() {
            return Ok(());
        }
        let number = request.topic;
        let topic = self.topics.get(&number);
        let topic = topic.ok_or_else(|| bad(RequestFault::NotOpened { number }))?;
        let sequence = self.sequence;
        let mark = |(session, epoch)| SessionMark { session, epoch, sequence };
        let stored = self
            .broker
            .store_only(&SendRequest {
                topic,
                queue: request.queue.map(QueueId::new),
                batch: request.batch,
                session: self.session.map(mark),
                deadline: Instant::now() + BATCH_TIMEOUT,
            })
            .await?;
        self.sequence = sequence.saturating_add(1);
        self.unacknowledged.push_back(stored);
        Ok(())
    }

    fn open(&mut self, number: u32, topic: String) -> Result<(), BrokerError> {
        if number >= TOPICS || self.topics.contains_key(&number) {
            return Err(bad(RequestFault::TopicNumber { number, limit: TOPICS }));
        }
        // Now, not with its first batch: what a stream keeps is bounded by the length of a name.
        check_topic_name(&topic)?;
        self.topics.insert(number, topic);
        Ok(())
    }

    /// Resolves when the oldest batch may be acknowledged; never without one.
    async fn oldest(&self) -> Result<(), BrokerError> {
        match self.unacknowledged.front() {
            Some(stored) => self.broker.acknowledge(stored, Instant::now() + BATCH_TIMEOUT).await,
            None => pending().await,
        }
    }

    /// Acknowledges all that may be.
    async fn acknowledge(&mut self, out: &Out) {
        let mut receipts = Vec::new();
        while let Some(stored) = self.unacknowledged.front()
            && self.broker.may_acknowledge(stored)
        {
            receipts.push(wire(self.broker.acknowledged_batch(stored)));
            self.unacknowledged.pop_front();
        }
        if !receipts.is_empty() {
            let acked_to = self.oldest_sequence().saturating_sub(1);
            out.put([framed(&SendStreamResponse { acked_to, receipts })]).await;
        }
    }

    fn oldest_sequence(&self) -> u64 {
        let waiting = u64::try_from(self.unacknowledged.len()).unwrap_or(u64::MAX);
        self.sequence.saturating_sub(waiting)
    }

    fn refused_oldest(&self, error: &BrokerError) -> Status {
        self.broker.counters().refused(error.reason());
        of_batch(error, self.oldest_sequence())
    }

    /// Acknowledges what is stored, as it becomes durable.
    async fn finish(&mut self, out: &Out) -> Result<(), Status> {
        while !self.unacknowledged.is_empty() {
            self.oldest().await.map_err(|error| self.refused_oldest(&error))?;
            self.acknowledge(out).await;
        }
        Ok(())
    }
}

fn of_batch(error: &BrokerError, sequence: u64) -> Status {
    status::of_part(error, Part { sequence: Some(sequence), queue: None })
}

fn bad(fault: RequestFault) -> BrokerError {
    BrokerError::BadRequest { fault }
}
