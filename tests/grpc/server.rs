//! The server around the services: health, reflection, HTTP, bounds of the port, the way it stops.

use std::time::Duration;

use mainstem::config::Config;
use mainstem::proto::{PullRequest, StatusRequest};
use mainstem::server::{self, ServerError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::{Server, batch, from, refusal, refused, soon, to};

async fn reflect(server: &Server, ask: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let stream = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    stream.into_inner().message().await.unwrap().unwrap().message_response.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_for_the_server_and_for_the_services() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel.clone());
    for name in ["", "mainstem.v1.Broker", "apache.rocketmq.v2.MessagingService"] {
        let request = HealthCheckRequest { service: name.to_owned() };
        let answer = client.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
    }
    let request = HealthCheckRequest { service: "nobody".to_owned() };
    assert_eq!(client.check(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_and_finds_their_files() {
    let server = Server::start().await;
    let listed = reflect(&server, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
    let mut names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
    names.sort();
    let wanted = [
        "apache.rocketmq.v2.MessagingService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "mainstem.v1.Admin",
        "mainstem.v1.Broker",
    ];
    assert_eq!(names, wanted);
    for (symbol, name) in [
        ("mainstem.v1.Broker", "mainstem/v1/mainstem.proto"),
        ("apache.rocketmq.v2.MessagingService", "apache/rocketmq/v2/service.proto"),
    ] {
        let symbol = MessageRequest::FileContainingSymbol(symbol.to_owned());
        let found = reflect(&server, symbol).await;
        let MessageResponse::FileDescriptorResponse(found) = found else { panic!("{found:?}") };
        let file = &found.file_descriptor_proto[0];
        assert!(file.windows(name.len()).any(|bytes| bytes == name.as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_watermarks_in_their_order() {
    let server = Server::start().await;
    let receipt = server.send(to("t", Some(0), batch(&["x"]))).await.unwrap();
    let answer = server.admin.clone().status(StatusRequest {}).await.unwrap().into_inner();
    let at = answer.watermarks.unwrap();
    assert!(at.min <= at.flushed && at.flushed <= at.appended, "{at:?}");
    assert!(at.min <= at.dispatched && at.dispatched <= at.appended, "{at:?}");
    assert!(at.flushed > receipt.physical_offset, "acknowledged by a sync topic: {at:?}");
    assert_eq!((answer.topics, answer.queues), (1, 4));
    assert_eq!(answer.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(answer.epoch, receipt.epoch);
    assert_eq!(answer.store_id.len(), 32);
    assert_eq!(answer.flush_default, "sync");
    assert!(!answer.start_report.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_tells_life_readiness_and_numbers() {
    let server = Server::start().await;
    assert_eq!(server.http("/healthz").await, ("HTTP/1.1 200 OK".into(), "alive\n".into()));
    assert_eq!(server.http("/readyz").await, ("HTTP/1.1 200 OK".into(), "ready\n".into()));
    let receipt = server.send(to("t", Some(0), batch(&["x"]))).await.unwrap();
    server.pull(from("t", 0, 0)).await.unwrap();
    for (name, value) in [
        ("mainstem_sends_total", 1),
        ("mainstem_pulls_total", 1),
        ("mainstem_pulled_messages_total", 1),
        ("mainstem_topics", 1),
        ("mainstem_queues", 4),
        ("mainstem_connections", 1),
        ("mainstem_draining", 0),
        ("mainstem_failed", 0),
        ("mainstem_no_authentication", 0),
        ("mainstem_epoch", receipt.epoch),
        ("mainstem_damaged_bytes", 0),
    ] {
        assert_eq!(server.metric(name).await, Some(value), "{name}");
    }
    let appended = server.metric("mainstem_position_bytes{mark=\"appended\"}").await;
    assert!(appended > Some(receipt.physical_offset), "{appended:?}");
    assert_eq!(server.http("/nothing").await.0, "HTTP/1.1 404 Not Found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_open_to_others_is_told() {
    for setting in ["server.listen=0.0.0.0:0", "server.http=0.0.0.0:0"] {
        let server = Server::with(&[setting]).await;
        assert_eq!(server.metric("mainstem_no_authentication").await, Some(1), "{setting}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_above_the_cap_are_closed() {
    let server = Server::with(&["server.max_connections=1"]).await;
    let mut second = TcpStream::connect(server.at.grpc).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(second.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
    server.until_metric("mainstem_connections_closed_total{reason=\"limit\"}", 1).await;
    server.send(to("t", None, batch(&["x"]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_parked_pulls_and_ends_well() {
    let server = Server::start().await;
    server.send(to("t", Some(0), batch(&["x"]))).await.unwrap();
    let mut client = server.broker.clone();
    let parked = tokio::spawn(async move {
        client.pull(PullRequest { wait_ms: 30_000, ..from("t", 0, 1) }).await
    });
    soon(server.until_metric("mainstem_waiters", 1)).await;
    let at = server.at;
    let (_data, ended) = server.stop();
    let pulled = soon(parked).await.unwrap().unwrap().into_inner();
    assert_eq!((pulled.records.len(), pulled.next_offset), (0, 1));
    soon(ended).await.unwrap().unwrap();
    for port in [at.grpc, at.http] {
        let error = TcpStream::connect(port).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_health_and_readiness_are_gone() {
    let server = Server::with(&["server.drain_timeout=20s"]).await;
    // A stream that stays open holds the drain.
    let mut health = HealthClient::new(server.channel.clone());
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let (at, http) = (server.at, server.at.http);
    let (data, ended) = server.stop();
    let next = soon(watch.message()).await.unwrap().unwrap();
    assert_eq!(next.status(), ServingStatus::NotServing);

    let mut stream = TcpStream::connect(http).await.unwrap();
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable"), "{answer}");
    assert!(answer.ends_with("draining\n"), "{answer}");

    drop((watch, health));
    soon(ended).await.unwrap().unwrap();
    TcpStream::connect(at.grpc).await.unwrap_err();
    drop(data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let data = tempfile::tempdir().unwrap();
    let sets = [
        format!("server.listen={}", taken.local_addr().unwrap()),
        "server.http=127.0.0.1:0".to_owned(),
        "store.segment_size=64MiB".to_owned(),
        format!("server.data={}", data.path().join("data").display()),
    ];
    let config = Config::load(None, &sets).unwrap();
    let error = server::run(config, std::future::pending(), None).await.unwrap_err();
    let wanted = format!("server.listen = {} cannot be listened on", taken.local_addr().unwrap());
    assert_eq!(error.to_string(), wanted);
    assert!(matches!(error, ServerError::Listen { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_time_is_up_stores_nothing() {
    let server = Server::start().await;
    let mut request = tonic::Request::new(to("t", Some(0), batch(&["x"])));
    request.metadata_mut().insert("grpc-timeout", "0n".parse().unwrap());
    let answer = server.broker.clone().send(request).await;
    // The client's own deadline may end the call first, without details.
    if let Err(status) = &answer
        && status.details().is_empty()
    {
        assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
    } else {
        assert_eq!(refusal(answer), refused(Code::ResourceExhausted, "OVERLOADED"));
    }
    tokio::time::timeout(Duration::from_secs(1), async {
        let answer = server.pull(from("t", 0, 0)).await;
        assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
    })
    .await
    .unwrap();
}
