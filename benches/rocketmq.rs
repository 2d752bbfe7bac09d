//! Sends over the protocol of RocketMQ, one message a call, against a server of the same service that stores nothing.
//!
//! Both servers are processes of their own, with as many workers, the same frames and windows; what is compared is the
//! CPU time of the server for a call (`cpu` in the line: control by subject, at least 0.83 is wanted). The load is in
//! this process: callers who each wait for their answer, 16 at most on a connection.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::io::{BufRead as _, BufReader, Write as _, stdin, stdout};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use mainstem::client::{Client, TopicSettings};
use mainstem::config::Config;
use mainstem::message::FlushMode;
use mainstem::proto::rocketmq as v2;
use mainstem::proto::rocketmq::messaging_service_client::MessagingServiceClient;
use mainstem::proto::rocketmq::messaging_service_server::{
    MessagingService, MessagingServiceServer,
};
use mainstem::server;
use measure::{Bench, Case, Slice, process_cpu};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// Of a server's process.
const SERVER: &str = "--server";
const NO_OP: &str = "no-op";
const TOPIC: &str = "bench";
const BODY: usize = 1 << 10;
/// Callers that share a connection.
const TOGETHER: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, workers, what] = arguments.as_slice()
        && word == SERVER
    {
        return serve(workers.parse().expect("it is a number"), what);
    }
    let mut bench = Bench::start("rocketmq");
    for workers in [1, 2] {
        for callers in [1, 16, 64] {
            let name = format!("send/1KiB/{callers}callers/{workers}workers");
            if bench.wants(&name) {
                sends(&mut bench, name, callers, workers);
            }
        }
    }
    bench.finish();
}

/// Compares sends from so many callers.
fn sends(bench: &mut Bench, name: String, callers: usize, workers: usize) {
    let dir = bench.fresh_dir(&name);
    let runtime = Runtime::new().expect("a runtime starts");
    let mut broker = Server::start(workers, &dir.display().to_string());
    let mut no_op = Server::start(workers, NO_OP);
    runtime.block_on(async {
        let client = Client::connect(&broker.address).await.expect("the broker listens");
        let flush = Some(FlushMode::Async);
        let settings = TopicSettings { flush, ..TopicSettings::default() };
        client.create_topic(TOPIC, settings).await.expect("the topic is made");
    });
    let calls = bench.pick(if callers == 1 { 5_000 } else { 20_000 }, 320) / callers;
    let [to_broker, to_no_op] =
        [&broker, &no_op].map(|server| runtime.block_on(connect(&server.address, callers)));
    let control = "the same service, which decodes, counts and answers";
    let case = Case { name, control, unit: "call", reach: None };
    bench.compare(&case, &mut || slice(&runtime, &mut broker, &to_broker, calls), &mut || {
        slice(&runtime, &mut no_op, &to_no_op, calls)
    });
    drop((broker, no_op));
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}

/// One client for each caller.
async fn connect(address: &str, callers: usize) -> Vec<MessagingServiceClient<Channel>> {
    let mut clients = Vec::new();
    for _ in 0..callers.div_ceil(TOGETHER) {
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("it is an address");
        let channel = endpoint.tcp_nodelay(true).connect().await.expect("the server listens");
        clients.extend(
            (0..callers.min(TOGETHER)).map(|_| MessagingServiceClient::new(channel.clone())),
        );
    }
    clients
}

/// Lets every caller make so many calls.
fn slice(
    runtime: &Runtime,
    server: &mut Server,
    clients: &[MessagingServiceClient<Channel>],
    calls: usize,
) -> Slice {
    let work = (clients.len() * calls) as f64;
    let bytes = (clients.len() * calls * BODY) as u64;
    let before = server.cpu();
    let slice = Slice::of(work, bytes, || {
        runtime.block_on(async {
            let mut callers = JoinSet::new();
            for (number, client) in clients.iter().enumerate() {
                let mut client = client.clone();
                callers.spawn(async move {
                    for call in 0..calls {
                        let answer = client.send_message(request(number, call)).await;
                        let status = answer.expect("it is answered").into_inner().status;
                        assert_eq!(status.expect("there is one").code(), v2::Code::Ok);
                    }
                });
            }
            while let Some(caller) = callers.join_next().await {
                caller.expect("no caller fails");
            }
        });
    });
    Slice { cpu: server.cpu().saturating_sub(before), ..slice }
}

/// A send of one message, as official clients make it.
fn request(caller: usize, call: usize) -> Request<v2::SendMessageRequest> {
    let system_properties = Some(v2::SystemProperties {
        message_id: format!("01{caller:016X}{call:016X}"),
        message_type: v2::MessageType::Normal.into(),
        born_timestamp: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 0 }),
        born_host: "bench".to_owned(),
        ..v2::SystemProperties::default()
    });
    let topic = Some(v2::Resource { name: TOPIC.to_owned(), ..v2::Resource::default() });
    let body = vec![caller as u8; BODY].into();
    let message = v2::Message { topic, system_properties, body, ..v2::Message::default() };
    let mut request = Request::new(v2::SendMessageRequest { messages: vec![message] });
    let headers = request.metadata_mut();
    headers.insert("x-mq-client-id", "host@1@0@bench".parse().expect("it is ASCII"));
    headers.insert("x-mq-language", "RUST".parse().expect("it is ASCII"));
    request
}

/// A server's process, which tells its CPU time when it is asked.
struct Server {
    child: Child,
    lines: BufReader<ChildStdout>,
    address: String,
}

impl Server {
    fn start(workers: usize, what: &str) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.args([SERVER, &workers.to_string(), what]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("a server starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut server = Self { child, lines, address: String::new() };
        server.address = server.hear();
        server
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the server says something");
        line.trim_end().to_owned()
    }

    fn cpu(&mut self) -> Duration {
        let input = self.child.stdin.as_mut().expect("it is piped");
        input.write_all(b"\n").expect("the server listens");
        Duration::from_nanos(self.hear().parse().expect("it is a number"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // The bench is over for it, however it ends.
        let _ended = self.child.wait();
    }
}

/// A server's process: says where it listens, then its CPU time for each line, until there are no more lines.
fn serve(workers: usize, what: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let broker = match what {
        NO_OP => {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
            let listener = listener.expect("a port is free");
            say(&listener.local_addr().expect("it has one").to_string());
            runtime.spawn(no_op(listener));
            None
        }
        dir => {
            let sets = [
                format!("server.data={dir}/data"),
                "server.listen=127.0.0.1:0".to_owned(),
                "server.http=127.0.0.1:0".to_owned(),
            ];
            let config = Config::load(None, &sets).expect("the configuration is sound");
            let spawned = runtime.block_on(server::spawn(config)).expect("a broker starts");
            say(&spawned.listening().grpc.to_string());
            Some(spawned)
        }
    };
    for line in stdin().lock().lines() {
        line.expect("a line is text");
        say(&process_cpu().as_nanos().to_string());
    }
    if let Some(broker) = broker {
        runtime.block_on(broker.stop()).expect("the broker stops");
    }
}

fn say(line: &str) {
    writeln!(stdout(), "{line}").expect("the bench listens");
}

/// Serves connections with the frames and windows of the broker.
async fn no_op(listener: TcpListener) {
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

/// Answers sends, and nothing else.
struct NoOp;

type Nothing<T> = tokio_stream::Empty<Result<T, Status>>;

fn nothing<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this server takes messages alone"))
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

    type ReceiveMessageStream = Nothing<v2::ReceiveMessageResponse>;

    async fn receive_message(
        &self,
        _: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<Self::ReceiveMessageStream>, Status> {
        nothing()
    }

    async fn ack_message(
        &self,
        _: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Status> {
        nothing()
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
