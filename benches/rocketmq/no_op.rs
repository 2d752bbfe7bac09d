//! The control: the same service, which does nothing with what it gets.

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use mainstem::proto::rocketmq as v2;
use mainstem::proto::rocketmq::messaging_service_server::{
    MessagingService, MessagingServiceServer,
};
use mainstem::proto::rocketmq::receive_message_response::Content;
use tokio::net::TcpListener;
use tokio_stream::Iter;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::{BODY, TOPIC};

/// Serves connections with the frames and windows of the broker.
pub(crate) async fn no_op(listener: TcpListener) {
    let service = MessagingServiceServer::new(NoOp).max_decoding_message_size(32 << 20);
    let routes = Routes::new(service).prepare();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection comes");
        stream.set_nodelay(true).expect("it is a connection");
        let service = TowerToHyperService::new(routes.clone());
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(256 << 10)
            .max_concurrent_streams(256)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection);
    }
}

/// Answers sends, receives and acks, and nothing else.
struct NoOp;

type Nothing<T> = tokio_stream::Empty<Result<T, Status>>;

fn nothing<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this server is measured in other calls"))
}

/// A message as the broker delivers the ones of this bench.
fn delivered() -> v2::Message {
    let system_properties = Some(v2::SystemProperties {
        message_id: "01".repeat(17),
        body_digest: Some(v2::Digest {
            r#type: v2::DigestType::Md5.into(),
            checksum: "0".repeat(32),
        }),
        body_encoding: v2::Encoding::Identity.into(),
        message_type: v2::MessageType::Normal.into(),
        born_timestamp: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 0 }),
        born_host: "bench".to_owned(),
        store_timestamp: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 0 }),
        store_host: "127.0.0.1:8081".to_owned(),
        receipt_handle: Some("x".repeat(131)),
        queue_offset: Some(1),
        invisible_duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        delivery_attempt: Some(1),
        ..v2::SystemProperties::default()
    });
    let topic = Some(v2::Resource { name: TOPIC.to_owned(), ..v2::Resource::default() });
    let body = vec![7; BODY].into();
    v2::Message { topic, system_properties, body, ..v2::Message::default() }
}

#[tonic::async_trait]
impl MessagingService for NoOp {
    async fn send_message(
        &self,
        request: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Status> {
        let ok = || Some(v2::Status { code: v2::Code::Ok.into(), message: "OK".to_owned() });
        let messages = request.into_inner().messages.into_iter();
        let entries = messages.map(|message| v2::SendResultEntry {
            status: ok(),
            message_id: message.system_properties.map(|own| own.message_id).unwrap_or_default(),
            ..v2::SendResultEntry::default()
        });
        let entries = entries.collect();
        Ok(Response::new(v2::SendMessageResponse { status: ok(), entries }))
    }

    async fn query_route(
        &self,
        _: Request<v2::QueryRouteRequest>,
    ) -> Result<Response<v2::QueryRouteResponse>, Status> {
        nothing()
    }

    async fn heartbeat(
        &self,
        _: Request<v2::HeartbeatRequest>,
    ) -> Result<Response<v2::HeartbeatResponse>, Status> {
        nothing()
    }

    async fn query_assignment(
        &self,
        _: Request<v2::QueryAssignmentRequest>,
    ) -> Result<Response<v2::QueryAssignmentResponse>, Status> {
        nothing()
    }

    type ReceiveMessageStream =
        Iter<std::vec::IntoIter<Result<v2::ReceiveMessageResponse, Status>>>;

    async fn receive_message(
        &self,
        request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<Self::ReceiveMessageStream>, Status> {
        let most = usize::try_from(request.into_inner().batch_size).unwrap_or_default();
        let messages = std::iter::repeat_n(Content::Message(delivered()), most);
        let now = prost_types::Timestamp { seconds: 1_790_000_000, nanos: 0 };
        let ok = v2::Status { code: v2::Code::Ok.into(), message: "OK".to_owned() };
        let contents = std::iter::once(Content::Status(ok))
            .chain(messages)
            .chain([Content::DeliveryTimestamp(now)]);
        let frames =
            contents.map(|content| Ok(v2::ReceiveMessageResponse { content: Some(content) }));
        Ok(Response::new(tokio_stream::iter(frames.collect::<Vec<_>>())))
    }

    async fn ack_message(
        &self,
        request: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Status> {
        let ok = || Some(v2::Status { code: v2::Code::Ok.into(), message: "OK".to_owned() });
        let entries = request.into_inner().entries.into_iter();
        let entries = entries.map(|entry| v2::AckMessageResultEntry {
            message_id: entry.message_id,
            receipt_handle: entry.receipt_handle,
            status: ok(),
        });
        let entries = entries.collect();
        Ok(Response::new(v2::AckMessageResponse { status: ok(), entries }))
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        _: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<v2::ForwardMessageToDeadLetterQueueResponse>, Status> {
        nothing()
    }

    type PullMessageStream = Nothing<v2::PullMessageResponse>;

    async fn pull_message(
        &self,
        _: Request<v2::PullMessageRequest>,
    ) -> Result<Response<Self::PullMessageStream>, Status> {
        nothing()
    }

    async fn update_offset(
        &self,
        _: Request<v2::UpdateOffsetRequest>,
    ) -> Result<Response<v2::UpdateOffsetResponse>, Status> {
        nothing()
    }

    async fn get_offset(
        &self,
        _: Request<v2::GetOffsetRequest>,
    ) -> Result<Response<v2::GetOffsetResponse>, Status> {
        nothing()
    }

    async fn query_offset(
        &self,
        _: Request<v2::QueryOffsetRequest>,
    ) -> Result<Response<v2::QueryOffsetResponse>, Status> {
        nothing()
    }

    async fn end_transaction(
        &self,
        _: Request<v2::EndTransactionRequest>,
    ) -> Result<Response<v2::EndTransactionResponse>, Status> {
        nothing()
    }

    type TelemetryStream = Nothing<v2::TelemetryCommand>;

    async fn telemetry(
        &self,
        _: Request<Streaming<v2::TelemetryCommand>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        nothing()
    }

    async fn notify_client_termination(
        &self,
        _: Request<v2::NotifyClientTerminationRequest>,
    ) -> Result<Response<v2::NotifyClientTerminationResponse>, Status> {
        nothing()
    }

    async fn change_invisible_duration(
        &self,
        _: Request<v2::ChangeInvisibleDurationRequest>,
    ) -> Result<Response<v2::ChangeInvisibleDurationResponse>, Status> {
        nothing()
    }

    async fn recall_message(
        &self,
        _: Request<v2::RecallMessageRequest>,
    ) -> Result<Response<v2::RecallMessageResponse>, Status> {
        nothing()
    }

    async fn sync_lite_subscription(
        &self,
        _: Request<v2::SyncLiteSubscriptionRequest>,
    ) -> Result<Response<v2::SyncLiteSubscriptionResponse>, Status> {
        nothing()
    }
}
