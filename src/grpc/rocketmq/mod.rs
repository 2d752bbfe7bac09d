//! `apache.rocketmq.v2.MessagingService`, the protocol of RocketMQ 5: check, ask the broker, convert.
//!
//! | file | calls |
//! | --- | --- |
//! | `route.rs` | QueryRoute, QueryAssignment |
//! | `send.rs` | SendMessage |
//! | `clients.rs` | Heartbeat, NotifyClientTermination |
//! | [`telemetry`] | Telemetry |
//! | `convert.rs`, `digest.rs` | none: names, and what makes a message one that can be stored |
//! | `settings.rs` | none: what a client is told about how to behave |
//! | [`status`] | none: what a refusal looks like on the wire |
//!
//! Every call names its client in a header first of all. What is not there yet is answered `NOT_IMPLEMENTED`, in the
//! form of the call that it is.
//!
//! A message becomes a record with a batch of one, so both protocols see the same messages.

mod clients;
mod convert;
mod digest;
mod route;
mod send;
mod settings;
pub(super) mod status;
pub(super) mod telemetry;

use std::sync::Arc;

use tokio_stream::Iter;
use tonic::codegen::http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use self::route::Advertised;
use self::status::Refusal;
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
        let id = text("x-mq-client-id").unwrap_or_default();
        if id.trim().is_empty() {
            let fault = "the header x-mq-client-id is missing";
            return Err(Refusal::new(v2::Code::ClientIdRequired, fault));
        }
        if id.len() > MAX_CLIENT_ID {
            let fault = "the header x-mq-client-id is longer than 1024 bytes";
            return Err(Refusal::new(v2::Code::BadRequest, fault));
        }
        let word = |name| text(name).map(cut).unwrap_or_default();
        Ok(Self { id, language: word("x-mq-language"), version: word("x-mq-client-version") })
    }

    fn of_call(metadata: &'a MetadataMap) -> Result<Self, Refusal> {
        Self::of(metadata.as_ref())
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

    async fn receive_message(
        &self,
        request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<Self::ReceiveMessageStream>, Status> {
        use v2::receive_message_response::Content;

        let status = self.later(&request, "ReceiveMessage is not there yet");
        let now_ms = self.broker.now().get();
        let delivered = Some(Content::DeliveryTimestamp(timestamp(now_ms)));
        Ok(Response::new(frames(vec![
            v2::ReceiveMessageResponse { content: status.map(Content::Status) },
            v2::ReceiveMessageResponse { content: delivered },
        ])))
    }

    async fn ack_message(
        &self,
        request: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Status> {
        let status = self.later(&request, "AckMessage is not there yet");
        Ok(Response::new(v2::AckMessageResponse { status, entries: Vec::new() }))
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        request: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<v2::ForwardMessageToDeadLetterQueueResponse>, Status> {
        let status = self.later(&request, "ForwardMessageToDeadLetterQueue is not there yet");
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

    /// Never called: [`telemetry::answer`] answers before.
    async fn telemetry(
        &self,
        _request: Request<tonic::Streaming<v2::TelemetryCommand>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        Err(Status::unimplemented("the call has a way of its own"))
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
        let status = self.later(&request, "ChangeInvisibleDuration is not there yet");
        // Clients go on with the handle that they find here, whatever the status is.
        let receipt_handle = request.into_inner().receipt_handle;
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

/// A time for the wire.
fn timestamp(ms: u64) -> prost_types::Timestamp {
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    // Below a thousand million.
    let nanos = (ms % 1_000) as i32 * 1_000_000;
    prost_types::Timestamp { seconds, nanos }
}

/// A number of seconds for the wire.
fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}
