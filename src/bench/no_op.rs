//! The control: a server of the same API that does nothing with what it gets.
//!
//! | call | what it does |
//! | --- | --- |
//! | `SendStream` | decodes each request, counts its messages, acknowledges all that has arrived with one answer |
//! | `PullStream` | sends the same prepared bytes again and again, not even encoded anew; as a relay, what was sent |
//! | `QueryMessages` | gives the same message |
//! | `QueryOffsets` | as a relay, the ends of the queues |
//! | all else | UNIMPLEMENTED |
//!
//! HTTP/2 and runtime are set up as the broker's are: a connection and its calls are one task. They end with the
//! process.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tonic::codegen::http;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::config::Compression;
use super::load::sample;
use super::relay::{Reader, Relay, RelayError, Topic};
use crate::child::Addresses;
use crate::format::batch::{Batch, BatchError};
use crate::grpc::calls::Calls;
use crate::grpc::listen;
use crate::proto;
use crate::proto::broker_server::{Broker, BrokerServer};
use crate::wire;

/// The largest request: a batch of 8 MiB and what surrounds it.
const MAX_REQUEST: usize = 9 << 20;
/// Answers to batches that are told together, as the broker tells them.
const TOGETHER: usize = 64;
/// Bytes of a part of a stream of pulls, as the broker's.
const PART: usize = 1 << 20;
const PULL_STREAM: &str = "/mainstem.v1.Broker/PullStream";

/// What a no-op server does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoOp {
    /// Bytes of a message's body in what it gives to readers.
    pub(crate) payload: usize,
    /// Messages of a batch in it.
    pub(crate) batch: u32,
    /// How its bodies are compressed.
    pub(crate) compression: Compression,
    /// Queues of a topic, as a relay says.
    pub(crate) queues: u32,
    /// Batches of a queue, in what it gives to readers.
    pub(crate) filled: u64,
    /// Gives readers what was sent instead.
    pub(crate) relay: bool,
}

/// Serves on a free port until `stop` resolves. `started` is told the address.
///
/// # Errors
/// The port cannot be opened, or there is no room for what it gives to readers.
pub(crate) async fn serve(
    no_op: NoOp,
    started: impl FnOnce(Addresses),
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    started(Addresses { grpc: listener.local_addr()?.to_string(), http: String::new() });
    let prepared = Prepared::new(no_op).map_err(std::io::Error::other)?;
    let accept = async {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = TowerToHyperService::new(prepared.clone());
            let io = TokioIo::new(stream);
            tokio::spawn(async move {
                let mut calls = Calls::default();
                let served = listen::settings(listen::CONNECTION_WINDOW, calls.taken_by())
                    .serve_connection(io, service);
                calls.run_with(pin!(served)).await
            });
        }
    };
    tokio::select! {
        failed = accept => failed,
        () = stop => Ok(()),
    }
}

struct Service {
    /// What a query finds.
    found: Bytes,
    relay: Option<Arc<Relay>>,
}

/// Answers pulls with the same bytes again and again; all else goes to the service.
#[derive(Clone)]
struct Prepared {
    routes: Routes,
    /// `None`: the service answers pulls too.
    part: Option<Bytes>,
}

impl Prepared {
    fn new(no_op: NoOp) -> Result<Self, BatchError> {
        let batch = sample(no_op.payload, no_op.batch, no_op.compression)?;
        let prepared = (!no_op.relay).then(|| parts(no_op, &batch));
        let relay = no_op.relay.then(|| Arc::new(Relay::new(no_op.queues)));
        let found = sample(no_op.payload, 1, Compression::None)?;
        let service = BrokerServer::new(Service { found, relay })
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(usize::MAX);
        Ok(Self { routes: Routes::new(service).prepare(), part: prepared })
    }
}

impl tower::Service<http::Request<Incoming>> for Prepared {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        tower::Service::<http::Request<Incoming>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        match &self.part {
            Some(part) if request.uri().path() == PULL_STREAM => {
                let body = tonic::body::Body::new(Endless(part.clone()));
                let mut response = http::Response::new(body);
                let grpc = http::HeaderValue::from_static("application/grpc");
                response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
                Box::pin(ready(Ok(response)))
            }
            _ => Box::pin(self.routes.call(request)),
        }
    }
}

/// A body of the same bytes, until nobody takes them any more.
struct Endless(Bytes);

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(self.0.clone()))))
    }
}

/// What comes to a reader of a relay.
struct Relayed(Arc<Reader>);

impl Stream for Relayed {
    type Item = Result<proto::PullStreamResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next(cx).map(|taken| {
            let queue = taken.first().map_or(0, |handed| handed.queue);
            let records =
                taken.into_iter().map(|handed| record(handed.first, handed.count, handed.batch));
            Some(Ok(part(queue, records.collect())))
        })
    }
}

fn refused(error: RelayError) -> Status {
    match error {
        RelayError::TooManyQueues | RelayError::Behind => {
            Status::resource_exhausted(error.to_string())
        }
        RelayError::NoQueue { .. } | RelayError::NotTheEnd { .. } => {
            Status::out_of_range(error.to_string())
        }
    }
}

/// What a reader of queues with so many batches is sent: a part for each queue, until they are [`PART`] bytes.
fn parts(no_op: NoOp, batch: &Bytes) -> Bytes {
    let all = (PART / batch.len().max(1)).max(1);
    let together = usize::try_from(no_op.filled).unwrap_or(usize::MAX).clamp(1, all);
    let first = |index: usize| index as u64 * u64::from(no_op.batch);
    let queues = (0..no_op.queues.max(1)).cycle().take(all / together);
    let parts = queues.map(|queue| {
        let records = (0..together).map(|index| record(first(index), no_op.batch, batch.clone()));
        wire::framed(&part(queue, records.collect()))
    });
    parts.flatten().collect()
}

/// Records of a queue as a part of a stream.
fn part(queue: u32, records: Vec<proto::Record>) -> proto::PullStreamResponse {
    let next_offset =
        records.last().map_or(0, |last| last.first_queue_offset + u64::from(last.count));
    // There is always more.
    let range = Some(proto::OffsetRange { min: 0, max: u64::MAX });
    proto::PullStreamResponse { queue, records, next_offset, range, epoch: 1 }
}

fn record(first_queue_offset: u64, count: u32, batch: Bytes) -> proto::Record {
    proto::Record { epoch: 1, first_queue_offset, count, batch, ..Default::default() }
}

fn count(batch: &[u8]) -> Result<u32, Status> {
    match Batch::parse(batch) {
        Ok(batch) => Ok(batch.message_count().into()),
        Err(error) => Err(Status::invalid_argument(error.to_string())),
    }
}

/// The answers to a stream of batches.
struct Acks {
    requests: Streaming<proto::SendStreamRequest>,
    acked_to: u64,
    offset: u64,
    relay: Option<Arc<Relay>>,
    /// By their numbers, for a relay.
    topics: HashMap<u32, Arc<Topic>>,
}

impl Acks {
    fn take(
        &mut self,
        request: proto::SendStreamRequest,
    ) -> Result<Option<proto::SendResponse>, Status> {
        if let Some(relay) = &self.relay {
            for open in request.open {
                let topic = relay.topic(&open.topic).map_err(refused)?;
                self.topics.insert(open.number, topic);
            }
        }
        if request.batch.is_empty() {
            return Ok(None);
        }
        let count = count(&request.batch)?;
        let queue = request.queue.unwrap_or_default();
        if self.relay.is_some() {
            let topic = self.topics.get(&request.topic);
            let topic =
                topic.ok_or_else(|| Status::invalid_argument("no topic has this number"))?;
            topic.put(queue, request.batch, count).map_err(refused)?;
        }
        let first_queue_offset = self.offset;
        self.offset += u64::from(count);
        self.acked_to += 1;
        Ok(Some(proto::SendResponse { queue, first_queue_offset, count, ..Default::default() }))
    }
}

impl Stream for Acks {
    type Item = Result<proto::SendStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut receipts = Vec::new();
        while receipts.len() < TOGETHER {
            let request = match Pin::new(&mut self.requests).poll_next(cx) {
                Poll::Ready(Some(Ok(request))) => request,
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(None) if receipts.is_empty() => return Poll::Ready(None),
                Poll::Pending if receipts.is_empty() => return Poll::Pending,
                // The end is asked for again.
                Poll::Ready(None) | Poll::Pending => break,
            };
            match self.take(request) {
                Ok(receipt) => receipts.extend(receipt),
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
        }
        let acked_to = self.acked_to;
        Poll::Ready(Some(Ok(proto::SendStreamResponse { acked_to, receipts })))
    }
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a server that does nothing has no state"))
}

#[tonic::async_trait]
impl Broker for Service {
    type SendStreamStream = Acks;
    type PullStreamStream = Relayed;

    async fn send(
        &self,
        _: Request<proto::SendRequest>,
    ) -> Result<Response<proto::SendResponse>, Status> {
        not_here()
    }

    async fn send_stream(
        &self,
        request: Request<Streaming<proto::SendStreamRequest>>,
    ) -> Result<Response<Acks>, Status> {
        Ok(Response::new(Acks {
            requests: request.into_inner(),
            acked_to: 0,
            offset: 0,
            relay: self.relay.clone(),
            topics: HashMap::new(),
        }))
    }

    async fn pull(
        &self,
        _: Request<proto::PullRequest>,
    ) -> Result<Response<proto::PullResponse>, Status> {
        not_here()
    }

    async fn pull_stream(
        &self,
        request: Request<proto::PullStreamRequest>,
    ) -> Result<Response<Self::PullStreamStream>, Status> {
        // Without a relay the call does not come here: see `Prepared`.
        let Some(relay) = &self.relay else { return not_here() };
        let request = request.into_inner();
        let topic = relay.topic(&request.topic).map_err(refused)?;
        let starts = request.queues.into_iter().map(|start| (start.queue, start.offset));
        Ok(Response::new(Relayed(topic.read(starts).map_err(refused)?)))
    }

    type ConsumeStream = tokio_stream::Empty<Result<proto::ConsumeResponse, Status>>;

    async fn consume(
        &self,
        _: Request<tonic::Streaming<proto::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        Err(Status::unimplemented("consume"))
    }

    async fn receive(
        &self,
        _: Request<proto::ReceiveRequest>,
    ) -> Result<Response<proto::ReceiveResponse>, Status> {
        Err(Status::unimplemented("receive"))
    }

    async fn ack(
        &self,
        _: Request<proto::AckRequest>,
    ) -> Result<Response<proto::AckResponse>, Status> {
        Err(Status::unimplemented("ack"))
    }

    async fn extend(
        &self,
        _: Request<proto::ExtendRequest>,
    ) -> Result<Response<proto::ExtendResponse>, Status> {
        Err(Status::unimplemented("extend"))
    }

    async fn query_messages(
        &self,
        _: Request<proto::QueryMessagesRequest>,
    ) -> Result<Response<proto::QueryMessagesResponse>, Status> {
        let found = proto::FoundMessage {
            message_id: "1-0-0".to_owned(),
            batch: self.found.clone(),
            ..Default::default()
        };
        let messages = vec![found];
        let answer =
            proto::QueryMessagesResponse { messages, complete: true, ..Default::default() };
        Ok(Response::new(answer))
    }

    async fn open_session(
        &self,
        _: Request<proto::OpenSessionRequest>,
    ) -> Result<Response<proto::OpenSessionResponse>, Status> {
        not_here()
    }

    async fn close_session(
        &self,
        _: Request<proto::CloseSessionRequest>,
    ) -> Result<Response<proto::CloseSessionResponse>, Status> {
        not_here()
    }

    async fn commit_offsets(
        &self,
        _: Request<proto::CommitOffsetsRequest>,
    ) -> Result<Response<proto::CommitOffsetsResponse>, Status> {
        not_here()
    }

    async fn committed_offsets(
        &self,
        _: Request<proto::CommittedOffsetsRequest>,
    ) -> Result<Response<proto::CommittedOffsetsResponse>, Status> {
        not_here()
    }

    async fn query_offsets(
        &self,
        request: Request<proto::QueryOffsetsRequest>,
    ) -> Result<Response<proto::QueryOffsetsResponse>, Status> {
        let Some(relay) = &self.relay else { return not_here() };
        let request = request.into_inner();
        let topic = relay.topic(&request.topic).map_err(refused)?;
        let ends = topic.ends(request.first_queue, request.limit).into_iter();
        let queues =
            ends.map(|(queue, offset)| proto::QueueOffset { queue, offset, ..Default::default() });
        let queues = queues.collect();
        Ok(Response::new(proto::QueryOffsetsResponse { queues }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;
    use prost::Message as _;

    use super::*;

    /// The queues of all parts, and the messages of each.
    fn sent(queues: u32, filled: u64) -> Vec<(u32, u64)> {
        let (payload, batch, compression) = (1 << 10, 100, Compression::None);
        let no_op = NoOp { payload, batch, compression, queues, filled, relay: false };
        let mut rest = parts(no_op, &sample(payload, batch, compression).unwrap());
        let mut found = Vec::new();
        while !rest.is_empty() {
            rest.advance(1);
            let len = rest.get_u32();
            let part = rest.split_to(usize::try_from(len).unwrap());
            let part = proto::PullStreamResponse::decode(part).unwrap();
            found.push((part.queue, part.next_offset));
        }
        found
    }

    #[test]
    fn a_part_holds_no_more_than_a_queue_does() {
        assert_eq!(sent(1, 1_000), [(0, 1_000)], "a mebibyte");
        assert_eq!(sent(3, 4), [(0, 400), (1, 400)]);
        assert_eq!(sent(1_000_000, 1).len(), 10);
        assert_eq!(sent(2, 0)[..3], [(0, 100), (1, 100), (0, 100)]);
    }
}
