//! What all calls have in common: the header that names the client, where refusals stand, what is not there yet.

use mainstem::proto::rocketmq::messaging_service_client::MessagingServiceClient;
use mainstem::proto::rocketmq::{
    self as v2, Code, HeartbeatRequest, SendMessageRequest, TelemetryCommand,
};
use tonic::Request;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Server, code, message, request, resource, soon};

/// Calls a unary method with and without the header, and gives both codes.
macro_rules! both {
    ($server:expr, $method:ident, $request:expr) => {{
        let mut calls = $server.calls.clone();
        let named = calls.$method(request($request)).await.unwrap().into_inner();
        let unnamed = calls.$method(Request::new($request)).await.unwrap().into_inner();
        (stringify!($method), code(&named.status), code(&unnamed.status))
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_call_without_a_client_id_is_answered_with_a_status_and_what_is_not_there_says_so()
{
    let server = Server::start().await;
    let group = || Some(resource("g"));
    let topic = || Some(resource("t"));
    let heartbeat = HeartbeatRequest { group: None, client_type: 1 };
    let calls = [
        both!(server, query_route, v2::QueryRouteRequest { topic: topic(), endpoints: None }),
        both!(server, heartbeat, heartbeat.clone()),
        both!(server, send_message, SendMessageRequest { messages: vec![message("t", "1")] }),
        both!(
            server,
            query_assignment,
            v2::QueryAssignmentRequest { topic: topic(), group: group(), endpoints: None }
        ),
        both!(
            server,
            notify_client_termination,
            v2::NotifyClientTerminationRequest { group: None }
        ),
    ];
    for (call, named, unnamed) in calls {
        assert_eq!((named, unnamed), (Code::Ok, Code::ClientIdRequired), "{call}");
    }
    let calls = [
        both!(server, ack_message, v2::AckMessageRequest::default()),
        both!(
            server,
            forward_message_to_dead_letter_queue,
            v2::ForwardMessageToDeadLetterQueueRequest::default()
        ),
        both!(server, change_invisible_duration, v2::ChangeInvisibleDurationRequest::default()),
    ];
    for (call, named, unnamed) in calls {
        assert_eq!((named, unnamed), (Code::IllegalTopic, Code::ClientIdRequired), "{call}");
    }
    let calls = [
        both!(server, update_offset, v2::UpdateOffsetRequest::default()),
        both!(server, get_offset, v2::GetOffsetRequest::default()),
        both!(server, query_offset, v2::QueryOffsetRequest::default()),
        both!(server, end_transaction, v2::EndTransactionRequest::default()),
        both!(server, recall_message, v2::RecallMessageRequest::default()),
        both!(server, sync_lite_subscription, v2::SyncLiteSubscriptionRequest::default()),
    ];
    for (call, named, unnamed) in calls {
        assert_eq!((named, unnamed), (Code::NotImplemented, Code::ClientIdRequired), "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_there_yet_says_so_in_its_first_frame_and_ends_well() {
    let server = Server::start().await;
    let mut calls = server.calls.clone();
    let asked = request(v2::PullMessageRequest::default());
    let mut stream = calls.pull_message(asked).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let Some(v2::pull_message_response::Content::Status(status)) = first.content else {
        panic!("{first:?}")
    };
    assert_eq!(status.code(), Code::NotImplemented);
    assert_eq!(stream.message().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_client_calls_its_language_and_however_it_signs_it_is_served() {
    let server = Server::start().await;
    for (language, signature) in [
        (None, None),
        (
            Some("HTTP"),
            Some("MQv2-HMAC-SHA1 Credential=, SignedHeaders=x-mq-date-time, Signature="),
        ),
        (Some("NODE_JS"), Some("garbage")),
        (Some("Brainfuck 2"), None),
        (Some(""), None),
    ] {
        let mut asked = request(SendMessageRequest { messages: vec![message("t", "1")] });
        asked.metadata_mut().remove("x-mq-language");
        for (name, value) in [("x-mq-language", language), ("authorization", signature)] {
            if let Some(value) = value {
                asked.metadata_mut().insert(name, value.parse().unwrap());
            }
        }
        let answer = server.calls.clone().send_message(asked).await.unwrap().into_inner();
        assert_eq!(code(&answer.status), Code::Ok, "{language:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_does_not_exist_is_an_error_of_the_transport() {
    let server = Server::start().await;
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let path = "/apache.rocketmq.v2.MessagingService/Nothing".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<TelemetryCommand, TelemetryCommand>::default();
    let answer = grpc.unary(request(TelemetryCommand::default()), path, codec).await;
    assert_eq!(answer.unwrap_err().code(), tonic::Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_decoded_is_answered_with_a_status() {
    let server = Server::start().await;
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let path = "/apache.rocketmq.v2.MessagingService/Heartbeat".parse().unwrap();
    // Its field 1 is a text where the service expects a message with fields.
    let codec = tonic_prost::ProstCodec::<v2::AckMessageEntry, v2::HeartbeatResponse>::default();
    let message_id = "\u{7f}".to_owned();
    let asked = request(v2::AckMessageEntry { message_id, ..v2::AckMessageEntry::default() });
    let answer: v2::HeartbeatResponse = grpc.unary(asked, path, codec).await.unwrap().into_inner();
    assert_eq!(code(&answer.status), Code::BadRequest);
}

/// 2 bytes each on the wire, hundreds in memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_very_many_entries_is_refused_before_it_is_decoded() {
    let server = Server::start().await;
    let answer = server.send(vec![v2::Message::default(); 1 << 22]).await;
    assert_eq!((code(&answer.status), answer.entries.len()), (Code::BadRequest, 0));
    let said = answer.status.unwrap().message;
    assert!(said.contains("more than 131072 fields"), "{said}");
    let asked = v2::AckMessageRequest {
        entries: vec![v2::AckMessageEntry::default(); 1 << 20],
        ..v2::AckMessageRequest::default()
    };
    let answer = server.calls.clone().ack_message(request(asked)).await.unwrap().into_inner();
    assert_eq!(code(&answer.status), Code::BadRequest);
    // Where they lie makes no difference.
    let keys = vec![String::new(); 1 << 20];
    let system_properties = Some(v2::SystemProperties { keys, ..v2::SystemProperties::default() });
    let one = v2::Message { system_properties, ..message("t", "1") };
    let answer = server.send(vec![one]).await;
    assert_eq!((code(&answer.status), answer.entries.len()), (Code::BadRequest, 0));
    let addresses = vec![v2::Address::default(); 1 << 20];
    let endpoints = Some(v2::Endpoints { addresses, ..v2::Endpoints::default() });
    let asked = v2::QueryRouteRequest { topic: Some(resource("t")), endpoints };
    let answer = server.calls.clone().query_route(request(asked)).await.unwrap().into_inner();
    assert_eq!(code(&answer.status), Code::BadRequest);
    assert_eq!(code(&server.send(vec![message("t", "1")]).await.status), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_finds_too_much_in_work_is_told_to_pause_in_a_status() {
    let server = Server::with(&["broker.inflight_sends=16MiB"]).await;
    let mut big = message("t", "1");
    big.body = vec![7; 4 << 20].into();
    // Together more than may be arriving.
    let answer = server.send(vec![big; 4]).await;
    assert_eq!(code(&answer.status), Code::TooManyRequests);
    assert_eq!(answer.entries, []);
    assert_eq!(code(&server.send(vec![message("t", "1")]).await.status), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_told_by_health_beside_the_native_one() {
    let server = Server::start().await;
    let service = "apache.rocketmq.v2.MessagingService".to_owned();
    let asked = HealthCheckRequest { service };
    let answer = HealthClient::new(server.channel.clone()).check(asked).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_serves_tls_too() {
    let server = Server::start().await;
    let certificate = std::fs::read(server.data.path().join("data/tls/certificate.pem")).unwrap();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(certificate))
        .domain_name("localhost");
    let endpoint = Channel::from_shared(format!("https://{}", server.at.grpc)).unwrap();
    let secured = soon(endpoint.tls_config(tls).unwrap().connect()).await.unwrap();
    for channel in [secured, server.channel.clone()] {
        let asked = request(HeartbeatRequest { group: None, client_type: 1 });
        let answer = MessagingServiceClient::new(channel).heartbeat(asked).await.unwrap();
        assert_eq!(code(&answer.into_inner().status), Code::Ok);
    }
}
