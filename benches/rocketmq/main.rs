//! Sends, receives and acks over the protocol of RocketMQ, against a server of the same service that stores nothing.
//!
//! Both servers are processes of their own, with as many workers, the same frames and windows; what is compared is the
//! CPU time of the server for a call, or for a message (`cpu` in the line: control by subject, at least 0.83 is wanted).
//! The load is in this process: callers who each wait for their answer, 16 at most on a connection.
//!
//! Beside that: what one consumer of the native protocol gets and acknowledges, by calls and on a stream; how soon a
//! parked receive has the message that is sent, what parked receives and idle clients take of the server's memory, what
//! it costs that a topic has very many queues, and what message groups that are stuck cost the others.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

#[path = "../measure/mod.rs"]
mod measure;
mod no_op;
mod receives;
mod server;

use mainstem::client::{Client, TopicSettings};
use mainstem::message::FlushMode;
use mainstem::proto::rocketmq as v2;
use mainstem::proto::rocketmq::messaging_service_client::MessagingServiceClient;
use measure::{Bench, Case, Slice};
use server::{NO_OP, SERVER, Server};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::Channel;

const TOPIC: &str = "bench";
const BODY: usize = 1 << 10;
/// As the `mainstem` command has it: both servers, and the load.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Callers that share a connection.
const TOGETHER: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, workers, what] = arguments.as_slice()
        && word == SERVER
    {
        return server::serve(workers.parse().expect("it is a number"), what);
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
    for workers in [1, 2] {
        for callers in [1, 16] {
            let name = format!("receive+ack/1KiB/{callers}callers/{workers}workers");
            if bench.wants(&name) {
                receives::receives(&mut bench, name, callers, workers);
            }
        }
    }
    for (name, case) in [
        ("wake-up", receives::wake_ups as fn(&mut Bench, &str)),
        ("memory", receives::memory),
        ("native receive+ack/1KiB/2workers", receives::native),
        ("65536 queues", receives::queues),
        ("stuck message groups", receives::stuck),
    ] {
        if bench.wants(name) {
            case(&mut bench, name);
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
    with_headers(v2::SendMessageRequest { messages: vec![message] }, "host@1@0@bench")
}

/// A request of a client.
fn with_headers<T>(message: T, client: &str) -> Request<T> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    headers.insert("x-mq-client-id", client.parse().expect("it is ASCII"));
    headers.insert("x-mq-language", "RUST".parse().expect("it is ASCII"));
    request
}
