//! `apache.rocketmq.v2.MessagingService`, the protocol of RocketMQ 5: check, ask the broker, convert.
//!
//! | file | calls |
//! | --- | --- |
//! | `route.rs` | QueryRoute, QueryAssignment |
//! | `send.rs` | SendMessage |
//! | `receive.rs`, `deliver.rs` | ReceiveMessage; a message on its way |
//! | `settle.rs` | AckMessage, ChangeInvisibleDuration, ForwardMessageToDeadLetterQueue |
//! | `clients.rs` | Heartbeat, NotifyClientTermination |
//! | `telemetry.rs` | Telemetry |
//! | `convert.rs`, `digest.rs`, `time.rs` | none: names, and what makes a message one that can be stored |
//! | `settings.rs` | none: what a client is told about how to behave |
//! | [`status`] | none: what a refusal looks like on the wire |
//!
//! Every call names its client in a header first of all. What is not there yet is answered `NOT_IMPLEMENTED`, in the
//! form of the call that it is.
//!
//! A message becomes a record with a batch of one, so both protocols see the same messages.

mod clients;
mod convert;
mod deliver;
mod digest;
mod receive;
mod route;
mod send;
mod settings;
mod settle;
pub(super) mod status;
mod telemetry;
mod time;

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Body as HttpBody;
use tokio_stream::Iter;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderName};
use tonic::codegen::{StdError, http};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use self::route::Advertised;
use self::status::Refusal;
use super::outgoing::Outgoing;
use super::serve::Ends;
use crate::broker::Broker;
use crate::proto::rocketmq as v2;
use crate::proto::rocketmq::messaging_service_server::{MessagingService, MessagingServiceServer};

/// What the paths of the service's calls begin with.
pub(super) const PATH: &str = "/apache.rocketmq.v2.MessagingService/";

/// The largest request.
const MAX_REQUEST: usize = 32 << 20;

/// Bytes of a client's id at most.
const MAX_CLIENT_ID: usize = 1_024;

/// Bytes that are kept of what a client calls itself besides.
const MAX_WORD: usize = 64;

/// The service.
#[derive(Debug)]
pub(super) struct RocketMq {
    broker: Arc<Broker>,
    advertised: Advertised,
}

/// The service, over a broker. `advertised` is the address that clients are told, if it is not the one they used.
pub(super) fn service(
    broker: Arc<Broker>,
    advertised: Option<&str>,
) -> MessagingServiceServer<RocketMq> {
    let service = RocketMq { broker, advertised: Advertised::new(advertised) };
    MessagingServiceServer::new(service).max_decoding_message_size(MAX_REQUEST)
}

/// Calls whose answers are streams that last.
#[derive(Clone, Copy, Debug)]
pub(super) enum RawCall {
    /// ReceiveMessage.
    Receive,
    /// Telemetry.
    Telemetry,
}

const RAW: &str = "the call has a way of its own";

impl RawCall {
    /// The call of a path, if it is one of these.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path.strip_prefix(PATH)? {
            "ReceiveMessage" => Some(Self::Receive),
            "Telemetry" => Some(Self::Telemetry),
            _ => None,
        }
    }

    /// The answer, whose body does the work.
    pub(super) fn answer<B>(
        self,
        broker: &Arc<Broker>,
        outgoing: &Outgoing,
        ends: Option<Ends>,
        request: http::Request<B>,
    ) -> http::Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<StdError>,
    {
        match self {
            Self::Receive => receive::answer(broker, outgoing, ends, request),
            Self::Telemetry => telemetry::answer(broker, outgoing, ends, request),
        }
    }
}

/// Headers of every call: names that are parsed once.
static CLIENT_ID: HeaderName = HeaderName::from_static("x-mq-client-id");
static LANGUAGE: HeaderName = HeaderName::from_static("x-mq-language");
static VERSION: HeaderName = HeaderName::from_static("x-mq-client-version");

/// Who calls, as the headers of a call say it.
#[derive(Clone, Copy, Debug)]
struct Caller<'a> {
    id: &'a str,
    /// As he calls it himself; nothing depends on its spelling but where a client is known to need more.
    language: &'a str,
    version: &'a str,
}

impl<'a> Caller<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let id = Self::check(headers)?;
        let word = |name| text(name).map(cut).unwrap_or_default();
        Ok(Self { id, language: word(&LANGUAGE), version: word(&VERSION) })
    }

    fn of_call(metadata: &'a MetadataMap) -> Result<Self, Refusal> {
        Self::of(metadata.as_ref())
    }

    /// The client's id, for calls that ask for no more than that there is one.
    fn check(headers: &'a HeaderMap) -> Result<&'a str, Refusal> {
        let id = headers.get(&CLIENT_ID).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if id.trim().is_empty() {
            let fault = "the header x-mq-client-id is missing";
            return Err(Refusal::new(v2::Code::ClientIdRequired, fault));
        }
        if id.len() > MAX_CLIENT_ID {
            let fault = "the header x-mq-client-id is longer than 1024 bytes";
            return Err(Refusal::new(v2::Code::BadRequest, fault));
        }
        Ok(id)
    }
}

/// As much of a text as is kept.
fn cut(text: &str) -> &str {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    text.split_at(ends.take_while(|end| *end <= MAX_WORD).last().unwrap_or(0)).0
}

/// Frames of an answer that are all there.
type Frames<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

fn frames<T>(frames: Vec<T>) -> Frames<T> {
    tokio_stream::iter(frames.into_iter().map(Ok).collect::<Vec<_>>())
}

impl RocketMq {
    /// The status of a refusal, which it counts.
    fn refuse(&self, refusal: Refusal) -> Option<v2::Status> {
        Some(refusal.tell(&self.broker))
    }

    /// The status of a call that is not there yet.
    fn later<T>(&self, request: &Request<T>, what: &'static str) -> Option<v2::Status> {
        let refusal = match Caller::of_call(request.metadata()) {
            Ok(_) => Refusal::later(what),
            Err(refusal) => refusal,
        };
        self.refuse(refusal)
    }
}

#[tonic::async_trait]
impl MessagingService for RocketMq {
    async fn query_route(
        &self,
        request: Request<v2::QueryRouteRequest>,
    ) -> Result<Response<v2::QueryRouteResponse>, Status> {
        let answer = route::query_route(&self.broker, &self.advertised, request).await;
        Ok(Response::new(answer.unwrap_or_else(|refusal| v2::QueryRouteResponse {
            status: self.refuse(refusal),
            ..v2::QueryRouteResponse::default()
        })))
    }

    async fn heartbeat(
        &self,
        request: Request<v2::HeartbeatRequest>,
    ) -> Result<Response<v2::HeartbeatResponse>, Status> {
        let status = match clients::heartbeat(&self.broker, &request) {
            Ok(()) => Some(status::ok()),
            Err(refusal) => self.refuse(refusal),
        };
        Ok(Response::new(v2::HeartbeatResponse { status }))
    }

    async fn send_message(
        &self,
        request: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Status> {
        let answer = send::send(&self.broker, request).await;
        Ok(Response::new(answer.unwrap_or_else(|refusal| v2::SendMessageResponse {
            status: self.refuse(refusal),
            ..v2::SendMessageResponse::default()
        })))
    }

    async fn query_assignment(
        &self,
        request: Request<v2::QueryAssignmentRequest>,
    ) -> Result<Response<v2::QueryAssignmentResponse>, Status> {
        let answer = route::query_assignment(&self.broker, &self.advertised, request).await;
        Ok(Response::new(answer.unwrap_or_else(|refusal| v2::QueryAssignmentResponse {
            status: self.refuse(refusal),
            ..v2::QueryAssignmentResponse::default()
        })))
    }

    type ReceiveMessageStream = Frames<v2::ReceiveMessageResponse>;

    /// Never called: [`RawCall`] answers before.
    async fn receive_message(
        &self,
        _request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<Self::ReceiveMessageStream>, Status> {
        Err(Status::unimplemented(RAW))
    }

    async fn ack_message(
        &self,
        request: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Status> {
        Ok(Response::new(settle::ack(&self.broker, request).await))
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        request: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<v2::ForwardMessageToDeadLetterQueueResponse>, Status> {
        let status = match settle::forward(&self.broker, &request).await {
            Ok(()) => Some(status::ok()),
            Err(refusal) => self.refuse(refusal),
        };
        Ok(Response::new(v2::ForwardMessageToDeadLetterQueueResponse { status }))
    }

    type PullMessageStream = Frames<v2::PullMessageResponse>;

    async fn pull_message(
        &self,
        request: Request<v2::PullMessageRequest>,
    ) -> Result<Response<Self::PullMessageStream>, Status> {
        use v2::pull_message_response::Content;

        let status = self.later(&request, "PullMessage is not there yet");
        let content = status.map(Content::Status);
        Ok(Response::new(frames(vec![v2::PullMessageResponse { content }])))
    }

    async fn update_offset(
        &self,
        request: Request<v2::UpdateOffsetRequest>,
    ) -> Result<Response<v2::UpdateOffsetResponse>, Status> {
        let status = self.later(&request, "UpdateOffset is not there yet");
        Ok(Response::new(v2::UpdateOffsetResponse { status }))
    }

    async fn get_offset(
        &self,
        request: Request<v2::GetOffsetRequest>,
    ) -> Result<Response<v2::GetOffsetResponse>, Status> {
        let status = self.later(&request, "GetOffset is not there yet");
        Ok(Response::new(v2::GetOffsetResponse { status, offset: 0 }))
    }

    async fn query_offset(
        &self,
        request: Request<v2::QueryOffsetRequest>,
    ) -> Result<Response<v2::QueryOffsetResponse>, Status> {
        let status = self.later(&request, "QueryOffset is not there yet");
        Ok(Response::new(v2::QueryOffsetResponse { status, offset: 0 }))
    }

    async fn end_transaction(
        &self,
        request: Request<v2::EndTransactionRequest>,
    ) -> Result<Response<v2::EndTransactionResponse>, Status> {
        let status = self.later(&request, "EndTransaction is not there yet");
        Ok(Response::new(v2::EndTransactionResponse { status }))
    }

    type TelemetryStream = Frames<v2::TelemetryCommand>;

    /// Never called: [`RawCall`] answers before.
    async fn telemetry(
        &self,
        _request: Request<tonic::Streaming<v2::TelemetryCommand>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        Err(Status::unimplemented(RAW))
    }

    async fn notify_client_termination(
        &self,
        request: Request<v2::NotifyClientTerminationRequest>,
    ) -> Result<Response<v2::NotifyClientTerminationResponse>, Status> {
        let status = match clients::goodbye(&self.broker, &request) {
            Ok(()) => Some(status::ok()),
            Err(refusal) => self.refuse(refusal),
        };
        Ok(Response::new(v2::NotifyClientTerminationResponse { status }))
    }

    async fn change_invisible_duration(
        &self,
        request: Request<v2::ChangeInvisibleDurationRequest>,
    ) -> Result<Response<v2::ChangeInvisibleDurationResponse>, Status> {
        let (status, receipt_handle) = match settle::change(&self.broker, &request).await {
            Ok(handle) => (Some(status::ok()), handle),
            // Clients go on with the handle that they find here, whatever the status is.
            Err(refusal) => (self.refuse(refusal), request.into_inner().receipt_handle),
        };
        Ok(Response::new(v2::ChangeInvisibleDurationResponse { status, receipt_handle }))
    }

    async fn recall_message(
        &self,
        request: Request<v2::RecallMessageRequest>,
    ) -> Result<Response<v2::RecallMessageResponse>, Status> {
        let status = self.later(&request, "RecallMessage is not there yet");
        Ok(Response::new(v2::RecallMessageResponse { status, message_id: String::new() }))
    }

    async fn sync_lite_subscription(
        &self,
        request: Request<v2::SyncLiteSubscriptionRequest>,
    ) -> Result<Response<v2::SyncLiteSubscriptionResponse>, Status> {
        let status = self.later(&request, "SyncLiteSubscription is not there yet");
        Ok(Response::new(v2::SyncLiteSubscriptionResponse { status }))
    }
}
