//! Very many clients, and connections that bring frames of HTTP/2 by hand: what they cost is bounded, and others are
//! served.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use mainstem::client::{Client, Filter, GroupSettings, Receive};
use mainstem::message::QueueId;
use mainstem::proto::rocketmq::messaging_service_client::MessagingServiceClient;
use mainstem::proto::rocketmq::settings::PubSub;
use mainstem::proto::rocketmq::telemetry_command::Command;
use mainstem::proto::rocketmq::{
    ClientType, Resource, Settings, Subscription, SubscriptionEntry, TelemetryCommand,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use crate::support::{Home, Process, assert_no_panic, one, soon, until};

const MIB: u64 = 1 << 20;

/// Sends and receives, as others do meanwhile.
async fn served(client: &Client) {
    client.create_group("others", &GroupSettings::default()).await.unwrap();
    soon("a send", client.send("others", Some(QueueId::ZERO), one(b"one"))).await.unwrap();
    let receive = Receive {
        group: "others",
        topic: "others",
        filter: Filter::All,
        max_messages: 32,
        invisible: Duration::from_secs(60),
        wait: Duration::from_secs(10),
        attempt: "",
    };
    let got = soon("a receive", client.receive(&receive)).await.unwrap();
    assert!(!got.is_empty());
    let handles: Vec<_> = got.iter().map(|one| one.handle.as_str()).collect();
    let finished = soon("an ack", client.ack("others", "others", &handles)).await.unwrap();
    assert!(finished.iter().all(|finished| *finished));
}

type Telemetry = (mpsc::Sender<TelemetryCommand>, Streaming<TelemetryCommand>);

/// The stream of a push consumer of group `g` that has said who it is, and was answered.
async fn introduce(channel: &Channel, n: usize) -> Telemetry {
    let resource = |name: &str| Some(Resource { name: name.to_owned(), ..Resource::default() });
    let (commands, outgoing) = mpsc::channel(1);
    let subscription = Subscription {
        group: resource("g"),
        subscriptions: vec![SubscriptionEntry { topic: resource("t"), expression: None }],
        ..Subscription::default()
    };
    let settings = Settings {
        client_type: Some(ClientType::PushConsumer.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..Settings::default()
    };
    let command = Some(Command::Settings(settings));
    commands.send(TelemetryCommand { status: None, command }).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("x-mq-client-id", format!("host@1@{n}@a").parse().unwrap());
    let answers = MessagingServiceClient::new(channel.clone()).telemetry(request).await.unwrap();
    let mut answers = answers.into_inner();
    assert!(!is_ordered(&mut answers).await);
    (commands, answers)
}

/// What the next settings say of the group.
async fn is_ordered(answers: &mut Streaming<TelemetryCommand>) -> bool {
    let told = soon("settings", answers.message()).await.unwrap().unwrap();
    let Some(Command::Settings(settings)) = told.command else { panic!("{told:?}") };
    let Some(PubSub::Subscription(of)) = settings.pub_sub else { panic!("{settings:?}") };
    of.fifo.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_telemetry_streams_cost_little_and_hear_of_a_change_while_others_are_served() {
    const CONNECTIONS: usize = 50;
    const STREAMS: usize = 200;
    const CLIENTS: u64 = (CONNECTIONS * STREAMS) as u64;
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    served(&client).await;
    let before = process.anonymous_memory();
    let mut opening = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{}", process.grpc)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        opening.spawn(async move {
            let mut streams = Vec::new();
            for n in 0..STREAMS {
                streams.push(introduce(&channel, connection * STREAMS + n).await);
            }
            streams
        });
    }
    let mut streams = Vec::new();
    while let Some(opened) = opening.join_next().await {
        streams.extend(opened.unwrap());
        served(&client).await;
    }
    assert_eq!(process.metric("mainstem_clients").await, Some(CLIENTS));
    // Measured: a third of that in a build that is not optimized.
    let bound = CLIENTS * (16 << 10) + CONNECTIONS as u64 * MIB;
    let memory = process.anonymous_memory().saturating_sub(before);
    assert!(memory <= bound, "{memory} of {bound}");
    let ordered = GroupSettings { ordered: Some(true), ..GroupSettings::default() };
    client.create_group("g", &ordered).await.unwrap();
    for (_, answers) in &mut streams {
        assert!(is_ordered(answers).await);
    }
    served(&client).await;
    let memory = process.anonymous_memory().saturating_sub(before);
    assert!(memory <= bound, "{memory} of {bound}");
    drop(streams);
    until("the end of all connections", async || {
        let left = process.metric("mainstem_connections").await.unwrap();
        (left <= 1).then_some(())
    })
    .await;
    served(&client).await;
    assert_no_panic(&process.said());
    process.stop().await;
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// Reasons of HTTP/2.
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame of HTTP/2.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        Self { kind, flags, stream, payload: payload.to_vec() }
    }

    /// The client wants this call no more.
    fn taken_back(stream: u32) -> Self {
        let mut payload = Vec::new();
        payload.put_u32(CANCEL);
        Self { kind: RST_STREAM, flags: 0, stream, payload }
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.put_uint(self.payload.len() as u64, 3);
        out.extend([self.kind, self.flags]);
        out.put_u32(self.stream);
        out.extend_from_slice(&self.payload);
    }

    /// Why a stream, or the connection, was ended by the server.
    fn reason(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GO_AWAY => 4,
            _ => return None,
        };
        Some((&self.payload[at..]).get_u32())
    }
}

/// The headers of a Telemetry call, with more behind them, as HPACK has them without any compression.
fn headers(more: &[(&str, &str)]) -> Vec<u8> {
    // `:method: POST` and `:scheme: http` of the static table.
    let mut block = vec![0x83, 0x86];
    let path = "/apache.rocketmq.v2.MessagingService/Telemetry";
    let usual = [
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-mq-client-id", "host@1@0@a"),
    ];
    for (name, value) in usual.iter().chain(more) {
        block.push(0);
        for text in [name, value] {
            // A length of 7 bits, and of more.
            match text.len() {
                len @ 0..127 => block.push(u8::try_from(len).unwrap()),
                len => {
                    block.push(127);
                    let mut left = len - 127;
                    while left >= 128 {
                        block.push(u8::try_from(left % 128).unwrap() | 128);
                        left /= 128;
                    }
                    block.push(u8::try_from(left).unwrap());
                }
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A connection over which frames go by hand.
struct Raw(TcpStream);

impl Raw {
    async fn open(process: &Process) -> Self {
        let mut stream = TcpStream::connect(&process.grpc).await.unwrap();
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        Frame::new(SETTINGS, 0, 0, &[]).put(&mut hello);
        Frame::new(SETTINGS, ACK, 0, &[]).put(&mut hello);
        stream.write_all(&hello).await.unwrap();
        Self(stream)
    }

    /// Sends as long as the server takes it.
    async fn send(&mut self, frames: impl IntoIterator<Item = Frame>) {
        let mut bytes = Vec::new();
        frames.into_iter().for_each(|frame| frame.put(&mut bytes));
        let _ = soon("a write", self.0.write_all(&bytes)).await;
    }

    /// The next frame; `None`: the connection has ended.
    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        soon("a frame", self.0.read_exact(&mut head)).await.ok()?;
        let mut payload = vec![0; (&head[..3]).get_uint(3) as usize];
        soon("a frame", self.0.read_exact(&mut payload)).await.ok()?;
        let stream = (&head[5..]).get_u32();
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The first headers of a call's answer, or its end without any.
    async fn answer(&mut self, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            if frame.stream == stream && [HEADERS, RST_STREAM].contains(&frame.kind) {
                return frame;
            }
        }
    }

    /// All up to the end of the connection.
    async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

/// Each costs the server the work of a call, and its client nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_that_are_taken_back_ends_its_connection_and_no_other() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    served(&client).await;
    let before = process.anonymous_memory();
    for _ in 0..5 {
        let mut raw = Raw::open(&process).await;
        let block = headers(&[]);
        let calls = (0..10_000).map(|n| 2 * n + 1).flat_map(|stream| {
            [Frame::new(HEADERS, END_HEADERS, stream, &block), Frame::taken_back(stream)]
        });
        raw.send(calls).await;
        let told: Vec<_> = raw.rest().await.iter().filter_map(Frame::reason).collect();
        // What it had not read when it ended may take its last words along.
        assert!(told.is_empty() || told.last() == Some(&ENHANCE_YOUR_CALM), "{told:?}");
        served(&client).await;
    }
    let memory = process.anonymous_memory().saturating_sub(before);
    assert!(memory < 32 * MIB, "{memory}");
    until("the end of all connections", async || {
        let left = process.metric("mainstem_connections").await.unwrap();
        (left <= 1).then_some(())
    })
    .await;
    assert_no_panic(&process.said());
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_256_calls_at_once_and_another_one_when_one_of_them_ends() {
    const MOST: u32 = 256;
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let mut raw = Raw::open(&process).await;
    let block = headers(&[]);
    let call = |n: u32| Frame::new(HEADERS, END_HEADERS, 2 * n + 1, &block);
    raw.send((0..MOST).map(call)).await;
    let (mut answered, mut refused) = (0, Vec::new());
    while answered < MOST {
        let frame = raw.next().await.unwrap();
        answered += u32::from(frame.kind == HEADERS);
        assert_eq!(frame.reason(), None, "{frame:?}");
    }
    raw.send((MOST..MOST + 44).map(call)).await;
    while refused.len() < 44 {
        let frame = raw.next().await.unwrap();
        assert_ne!(frame.kind, HEADERS, "{frame:?}");
        refused.extend(frame.reason().map(|reason| (frame.stream, reason)));
    }
    let expected: Vec<_> = (MOST..MOST + 44).map(|n| (2 * n + 1, REFUSED_STREAM)).collect();
    assert_eq!(refused, expected);
    served(&client).await;
    raw.send([Frame::taken_back(1), call(MOST + 44)]).await;
    assert_eq!(raw.answer(2 * (MOST + 44) + 1).await.kind, HEADERS);
    drop(raw);
    assert_no_panic(&process.said());
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_16_kib_are_refused_and_those_without_an_end_end_their_connection() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    served(&client).await;
    let mut raw = Raw::open(&process).await;
    let long = "x".repeat(12 << 10);
    raw.send([Frame::new(HEADERS, END_HEADERS, 1, &headers(&[("a", &long)]))]).await;
    // 200 of the static table.
    let (ok, first) = (0x88, raw.answer(1).await);
    assert_eq!((first.kind, first.payload[0]), (HEADERS, ok));
    let block = headers(&[("a", &long), ("b", &long)]);
    let (begin, rest) = block.split_at(16 << 10);
    let begin = Frame::new(HEADERS, 0, 3, begin);
    raw.send([begin, Frame::new(CONTINUATION, END_HEADERS, 3, rest)]).await;
    // 431, which is none of the static table, or the end of the call alone.
    let refused = raw.answer(3).await;
    assert!(refused.kind == RST_STREAM || refused.payload[0] != ok, "{refused:?}");

    let before = process.anonymous_memory();
    let mut raw = Raw::open(&process).await;
    raw.send([Frame::new(HEADERS, 0, 1, &headers(&[]))]).await;
    // 64 MiB.
    let field = headers(&[("a", &long)]).split_off(headers(&[]).len());
    raw.send((0..5_000).map(|_| Frame::new(CONTINUATION, 0, 1, &field))).await;
    let told: Vec<_> = raw.rest().await.iter().filter_map(Frame::reason).collect();
    assert!(told.is_empty() || told.last() == Some(&ENHANCE_YOUR_CALM), "{told:?}");
    let memory = process.anonymous_memory().saturating_sub(before);
    assert!(memory < 16 * MIB, "{memory}");
    served(&client).await;
    assert_no_panic(&process.said());
    process.stop().await;
}
