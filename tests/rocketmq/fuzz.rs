//! Requests that no client would send.

use bytes::{Buf as _, BufMut as _, Bytes};
use mainstem::proto::rocketmq::{Code, Message, QueryRouteRequest, SendMessageRequest, Status};
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

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
    for _ in 0..dice.below(4) {
        if !bytes.is_empty() {
            let at = dice.below(bytes.len());
            bytes[at] = dice.roll().to_le_bytes()[0];
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bytes_of_a_request_make_a_unary_call_fail() {
    let server = Server::start().await;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_128);
    let mut dice = Dice(seed);
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    for round in 0..2_000 {
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
