//! Requests that no client would send.

use bytes::{Buf as _, BufMut as _, Bytes};
use mainstem::proto::rocketmq::receive_message_response::Content;
use mainstem::proto::rocketmq::{
    self as v2, Code, Message, QueryRouteRequest, ReceiveMessageRequest, ReceiveMessageResponse,
    SendMessageRequest, Status,
};
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::consumer::{Consumer, handle, sql};
use crate::support::{Server, code, message, request, resource};

/// Every unary call.
const CALLS: &[&str] = &[
    "QueryRoute",
    "Heartbeat",
    "SendMessage",
    "QueryAssignment",
    "AckMessage",
    "ForwardMessageToDeadLetterQueue",
    "UpdateOffset",
    "GetOffset",
    "QueryOffset",
    "EndTransaction",
    "NotifyClientTermination",
    "ChangeInvisibleDuration",
    "RecallMessage",
    "SyncLiteSubscription",
];

/// The bytes of a message as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, bytes: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        out.put(bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// All answers of unary calls hold a status in field 1.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

/// Numbers that look random and follow from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// A request that is right, or nearly, or not at all.
fn some_request(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = match dice.below(3) {
        0 => (0..dice.below(64)).map(|_| dice.roll().to_le_bytes()[0]).collect(),
        1 => SendMessageRequest { messages: vec![message("t", "1"), Message::default()] }
            .encode_to_vec(),
        _ => QueryRouteRequest { topic: Some(resource("t")), endpoints: None }.encode_to_vec(),
    };
    spoil(dice, &mut bytes);
    bytes
}

/// Other bytes in some places, or in none.
fn spoil(dice: &mut Dice, bytes: &mut [u8]) {
    for _ in 0..dice.below(4) {
        if !bytes.is_empty() {
            let at = dice.below(bytes.len());
            bytes[at] = dice.roll().to_le_bytes()[0];
        }
    }
}

/// How many requests, by the variable with which the model tests are told how long to go on.
fn rounds(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_128)
}

/// Words of conditions, and what is none.
const SCRAPS: [&str; 16] = [
    "a",
    " = ",
    "'x'",
    "(",
    ")",
    " AND ",
    " OR ",
    "NOT ",
    " IN ",
    " BETWEEN ",
    "1e9",
    "-",
    "'",
    "--",
    " IS NULL",
    "ü",
];

/// A receive that finds no topic, unless it is spoiled before; with a condition of whatever words.
fn some_receive(dice: &mut Dice) -> Vec<u8> {
    let text: String = (0..dice.below(40)).map(|_| SCRAPS[dice.below(SCRAPS.len())]).collect();
    let queue = v2::MessageQueue { topic: Some(resource("none")), ..v2::MessageQueue::default() };
    let mut bytes = ReceiveMessageRequest {
        group: Some(resource("g")),
        message_queue: Some(queue),
        filter_expression: sql(&text),
        batch_size: 1,
        invisible_duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..ReceiveMessageRequest::default()
    }
    .encode_to_vec();
    spoil(dice, &mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bytes_of_a_receive_make_it_fail_and_its_first_frame_is_a_status() {
    let server = Server::start().await;
    let (seed, mut seen) = (seed(), std::collections::BTreeSet::new());
    let mut dice = Dice(seed);
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    for round in 0..rounds(1_000) {
        let bytes = some_receive(&mut dice);
        let path = "/apache.rocketmq.v2.MessagingService/ReceiveMessage".parse().unwrap();
        grpc.ready().await.unwrap();
        let case = format!("{seed}/{round} {bytes:?}");
        let frames = grpc.server_streaming(request(Bytes::from(bytes)), path, Raw).await;
        let mut frames = frames.unwrap_or_else(|error| panic!("{case}: {error}")).into_inner();
        let mut contents = Vec::new();
        while let Some(frame) =
            frames.message().await.unwrap_or_else(|error| panic!("{case}: {error}"))
        {
            contents.push(ReceiveMessageResponse::decode(frame).unwrap().content);
        }
        let Some(Some(Content::Status(status))) = contents.first() else {
            panic!("{case}: {contents:?}")
        };
        assert!(!matches!(status.code(), Code::Unspecified | Code::Ok), "{case}: {status:?}");
        assert_ne!(status.code(), Code::InternalServerError, "{case}");
        seen.insert(status.code().as_str_name());
    }
    for code in ["TOPIC_NOT_FOUND", "ILLEGAL_FILTER_EXPRESSION", "BAD_REQUEST"] {
        assert!(seen.contains(code), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_receipt_but_one_that_was_given_out_settles_anything() {
    let server = Server::start().await;
    server.create("t", mainstem::proto::TopicType::Mixed, 1).await;
    assert_eq!(code(&server.send(vec![message("t", "1")]).await.status), Code::Ok);
    let consumer = Consumer::new(&server, "g", "t");
    let got = consumer.get(1).await;
    let good = handle(&got[0]).to_owned();
    let mut dice = Dice(seed());
    for _ in 0..rounds(1_000) {
        let mut bytes = good.clone().into_bytes();
        match dice.below(4) {
            0 => bytes.truncate(dice.below(bytes.len())),
            1 => bytes.push(b'A' + dice.roll().to_le_bytes()[0] % 26),
            2 => bytes = (0..dice.below(200)).map(|_| dice.roll().to_le_bytes()[0] % 128).collect(),
            _ => spoil(&mut dice, &mut bytes),
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text == good {
            continue;
        }
        let found = match dice.below(3) {
            0 => consumer.ack(&[&text]).await.0,
            1 => consumer.hold(&text, 60).await.0,
            _ => consumer.forward(&text).await,
        };
        assert_eq!(found, Code::InvalidReceiptHandle, "{text:?}");
    }
    assert_eq!(consumer.ack(&[&good]).await.0, Code::Ok, "nothing has become of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bytes_of_a_request_make_a_unary_call_fail() {
    let server = Server::start().await;
    let seed = seed();
    let mut dice = Dice(seed);
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    for round in 0..rounds(2_000) {
        let (call, bytes) = (CALLS[dice.below(CALLS.len())], some_request(&mut dice));
        let path = format!("/apache.rocketmq.v2.MessagingService/{call}").parse().unwrap();
        grpc.ready().await.unwrap();
        let answer = grpc.unary(request(Bytes::from(bytes.clone())), path, Raw).await;
        let answer = answer.unwrap_or_else(|error| panic!("{seed}/{round} {call}: {error}"));
        let answer = Answer::decode(answer.into_inner()).unwrap();
        assert_ne!(code(&answer.status), Code::Unspecified, "{seed}/{round} {call} {bytes:?}");
        assert_ne!(code(&answer.status), Code::InternalServerError, "{seed}/{round} {call}");
    }
}
