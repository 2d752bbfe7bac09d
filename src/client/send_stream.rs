//! Batches one after the other, without waiting for the answer to each: the client's end of `SendStream`.
//!
//! A request is a few bytes of header and the caller's batch, two frames of a hand-made body: no batch is copied. What
//! is handed over and not acknowledged is bounded by [`SendStream::IN_FLIGHT`] batches; who sends more waits. There is
//! no task: answers are read by whoever
//! waits for one.

use std::collections::HashMap;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use tonic::{Code, Status};

use super::raw::{self, Answers, Requests};
use super::{AnswerError, Client, ClientError, Reason, Receipt, Refusal, receipt};
use crate::message::{QueueId, SessionMark};
use crate::proto;
use crate::proto::send_stream_request::Open;
use crate::wire::{PREFIX, put_prefix};

/// Field 5 of a request, of bytes.
const BATCH_TAG: u8 = 5 << 3 | 2;
/// Headers are cut out of pieces of this size.
const HEADS: usize = 4 << 10;
/// The largest answer that is understood: [`SendStream::IN_FLIGHT`] receipts and much room.
const MAX_ANSWER: usize = 64 << 10;
/// Where the call is.
const PATH: &str = "/mainstem.v1.Broker/SendStream";

/// A stream of batches to one broker. Dropped, it ends at once, and what is not acknowledged may be stored or not.
///
/// All futures may be dropped: nothing is lost or handed over twice.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let data = format!("server.data={}", dir.path().join("data").display());
/// # let sets = ["server.listen=127.0.0.1:0", "server.http=127.0.0.1:0", "store.segment_size=64MiB", &data];
/// # let config = mainstem::config::Config::load(None, &sets.map(str::to_owned))?;
/// # let server = mainstem::server::spawn(config).await?;
/// # let server_address = server.listening().grpc.to_string();
/// use mainstem::client::Client;
/// use mainstem::format::batch::{BatchBuilder, NewMeta};
/// use mainstem::message::QueueId;
///
/// let client = Client::connect(&server_address).await?;
/// let mut stream = client.send_stream(None).await?;
/// let mut receipts = Vec::new();
/// for n in 0..100 {
///     let mut batch = BatchBuilder::new();
///     batch.push(&NewMeta::default(), format!("pen {n}").as_bytes());
///     // Waits for acknowledgements only while 64 batches have none.
///     stream.send("orders", Some(QueueId::ZERO), batch.finish(), &mut receipts).await?;
/// }
/// stream.finish(&mut receipts).await?;
/// let offsets: Vec<_> = receipts.iter().map(|receipt| receipt.first_queue_offset.get()).collect();
/// assert_eq!(offsets, (0..100).collect::<Vec<_>>());
/// # server.stop().await?;
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
pub struct SendStream {
    client: Client,
    requests: Requests,
    state: State,
    /// Room that headers are cut from.
    heads: BytesMut,
    /// Their numbers on this stream.
    topics: HashMap<Box<str>, u32>,
    /// Of the next batch.
    next: u64,
    /// Of the newest batch that is acknowledged.
    acked_to: u64,
}

/// What there is of answers.
enum State {
    Reading(Answers),
    /// It has ended with OK.
    Complete,
    /// It has ended in any other way, which was told.
    Broken,
}

impl Client {
    /// Opens a stream of batches. All of its batches belong to the producer session of `session`, if there is one, from
    /// its sequence on; else they are counted from 1.
    ///
    /// # Errors
    /// There is no broker, or it knows no such calls.
    pub async fn send_stream(
        &self,
        session: Option<SessionMark>,
    ) -> Result<SendStream, ClientError> {
        let requests = Requests::default();
        // At once: a broker does not wait for long for a stream that says nothing.
        let mark = |mark: SessionMark| proto::SessionMark {
            id: mark.session.get(),
            epoch: mark.epoch,
            sequence: mark.sequence,
        };
        let hello = proto::SendStreamRequest { session: session.map(mark), ..Default::default() };
        let mut first = BytesMut::with_capacity(PREFIX + hello.encoded_len());
        put_prefix(&mut first, hello.encoded_len());
        // The buffer grows as needed, so it is never too short.
        let _ = hello.encode(&mut first);
        requests.put([first.freeze()]);
        let answers = raw::call(self.channel.clone(), PATH, requests.body(), MAX_ANSWER)
            .await
            .map_err(|status| ClientError::from_status(&self.server, status))?;
        let next = session.map_or(1, |mark| mark.sequence);
        Ok(SendStream {
            client: self.clone(),
            requests,
            state: State::Reading(answers),
            heads: BytesMut::new(),
            topics: HashMap::new(),
            next,
            acked_to: next.saturating_sub(1),
        })
    }
}

impl SendStream {
    /// Batches that may be under way: as many as a broker remembers the places of.
    pub const IN_FLIGHT: usize = 64;
    /// Topics that a stream can send to.
    pub const TOPICS: usize = 1 << 16;

    /// Hands a batch over, one encoded `Batch` as of [`Client::send`], and returns its number. Waits while
    /// [`IN_FLIGHT`](Self::IN_FLIGHT) are under way; the receipts that come meanwhile go to `receipts`, in the order of
    /// the batches.
    ///
    /// # Errors
    /// An empty batch, and a topic beyond [`TOPICS`](Self::TOPICS), are refused here (`BadBatch`, `TopicLimit`, with
    /// the batch's number): nothing was handed over, and the stream goes on. All others are as of
    /// [`SendStream::acknowledged`], and this batch was not handed over.
    pub async fn send(
        &mut self,
        topic: &str,
        queue: Option<QueueId>,
        batch: Bytes,
        receipts: &mut Vec<Receipt>,
    ) -> Result<u64, ClientError> {
        while self.room() == 0 {
            self.acknowledged(receipts).await?;
        }
        self.put(topic, queue, batch)
    }

    /// Batches that [`SendStream::send`] takes without waiting.
    pub fn room(&self) -> usize {
        Self::IN_FLIGHT.saturating_sub(self.in_flight())
    }

    /// Batches that are handed over and not acknowledged.
    pub fn in_flight(&self) -> usize {
        let newest = self.next.saturating_sub(1);
        usize::try_from(newest.saturating_sub(self.acked_to)).unwrap_or(usize::MAX)
    }

    /// The number of the newest batch that is acknowledged, with all before it.
    pub fn acked_to(&self) -> u64 {
        self.acked_to
    }

    /// Whether it can send to a topic: it knows it, or has a number left for it.
    pub fn takes(&self, topic: &str) -> bool {
        self.topics.len() < Self::TOPICS || self.topics.contains_key(topic)
    }

    /// Waits for acknowledgements, and adds their receipts to `receipts` in the order of the batches; at least one.
    /// With nothing under way it waits for the end of the stream.
    ///
    /// # Errors
    /// The stream is over; receipts that came before are added all the same. `Refused`: [`Refusal::sequence`] is the
    /// number of the batch that was refused, if one was; what came before it is acknowledged, and nothing behind it is
    /// stored. With [`Stored::Unknown`](super::Stored::Unknown) and without an answer nothing is known of what is not
    /// acknowledged.
    pub async fn acknowledged(&mut self, receipts: &mut Vec<Receipt>) -> Result<(), ClientError> {
        let before = receipts.len();
        poll_fn(|cx| self.poll_answer(cx, receipts)).await?;
        if receipts.len() > before {
            return Ok(());
        }
        // The broker has said OK to an end that nobody asked for.
        Err(self.no_answer("the stream ended"))
    }

    /// Says that no batch follows, and waits until all are acknowledged.
    ///
    /// # Errors
    /// As of [`SendStream::acknowledged`].
    pub async fn finish(mut self, receipts: &mut Vec<Receipt>) -> Result<(), ClientError> {
        self.requests.finish();
        loop {
            let before = receipts.len();
            poll_fn(|cx| self.poll_answer(cx, receipts)).await?;
            if receipts.len() > before {
                continue;
            }
            return match self.in_flight() {
                0 => Ok(()),
                _ => Err(self.no_answer("the stream ended before its batches were acknowledged")),
            };
        }
    }

    /// Hands a batch over for which there is room.
    pub(super) fn put(
        &mut self,
        topic: &str,
        queue: Option<QueueId>,
        batch: Bytes,
    ) -> Result<u64, ClientError> {
        if !matches!(self.state, State::Reading(_)) {
            return Err(self.no_answer("the stream is over"));
        }
        if batch.is_empty() {
            return Err(self.refused(Reason::BadBatch, "a batch without messages", None));
        }
        let mut open = Vec::new();
        let number = match self.topics.get(topic) {
            Some(number) => *number,
            None if self.topics.len() >= Self::TOPICS => {
                let limit = Some(Self::TOPICS as u64);
                return Err(self.refused(Reason::TopicLimit, "too many topics on a stream", limit));
            }
            None => {
                let number = u32::try_from(self.topics.len()).unwrap_or(u32::MAX);
                self.topics.insert(topic.into(), number);
                open.push(Open { number, topic: topic.to_owned() });
                number
            }
        };
        let head = self.head(open, number, queue, batch.len());
        let sequence = self.next;
        self.next = self.next.saturating_add(1);
        self.requests.put([head, batch]);
        Ok(sequence)
    }

    /// Everything of a request but its batch.
    fn head(
        &mut self,
        open: Vec<Open>,
        topic: u32,
        queue: Option<QueueId>,
        batch_len: usize,
    ) -> Bytes {
        let queue = queue.map(QueueId::get);
        let batch = Bytes::new();
        let request = proto::SendStreamRequest { open, session: None, topic, queue, batch };
        let head_len = request.encoded_len() + 1 + prost::length_delimiter_len(batch_len);
        if self.heads.capacity() < PREFIX + head_len {
            self.heads.reserve(HEADS.max(PREFIX + head_len));
        }
        let heads = &mut self.heads;
        put_prefix(heads, head_len + batch_len);
        // The buffer grows as needed, so it is never too short.
        let _ = request.encode(heads);
        heads.put_u8(BATCH_TAG);
        let _ = prost::encode_length_delimiter(batch_len, heads);
        heads.split().freeze()
    }

    /// Takes the answers that are there. Ready without a receipt: the stream has ended with OK.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        receipts: &mut Vec<Receipt>,
    ) -> Poll<Result<(), ClientError>> {
        let before = receipts.len();
        loop {
            let answers = match &mut self.state {
                State::Reading(answers) => answers,
                State::Complete => return Poll::Ready(Ok(())),
                State::Broken => return Poll::Ready(Err(self.no_answer("the stream is over"))),
            };
            let answer = match answers.poll_next::<proto::SendStreamResponse>(cx) {
                Poll::Pending if receipts.len() > before => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(answer) => answer,
            };
            match answer {
                Ok(Some(answer)) => self.acknowledge(&answer, receipts)?,
                Ok(None) => self.over(State::Complete),
                Err(status) => {
                    self.over(State::Broken);
                    return Poll::Ready(Err(ClientError::from_status(&self.client.server, status)));
                }
            }
        }
    }

    fn acknowledge(
        &mut self,
        answer: &proto::SendStreamResponse,
        receipts: &mut Vec<Receipt>,
    ) -> Result<(), ClientError> {
        let count = answer.receipts.len();
        let newest = self.acked_to.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if newest != answer.acked_to || count > self.in_flight() {
            self.over(State::Broken);
            let what = "an answer acknowledges other batches than those under way";
            return Err(self.client.bad_answer(AnswerError::Stream { what }));
        }
        self.acked_to = newest;
        receipts.extend(answer.receipts.iter().map(receipt));
        Ok(())
    }

    fn over(&mut self, state: State) {
        self.state = state;
        self.requests.cancel();
    }

    fn no_answer(&self, what: &'static str) -> ClientError {
        let source = Box::new(Status::cancelled(what));
        ClientError::NoAnswer { server: self.client.server.to_string(), source }
    }

    fn refused(&self, reason: Reason, message: &str, limit: Option<u64>) -> ClientError {
        let refusal = Refusal::new(Code::InvalidArgument, reason, message.to_owned());
        ClientError::Refused(Box::new(Refusal { limit, sequence: Some(self.next), ..refusal }))
    }
}

impl std::fmt::Debug for SendStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendStream")
            .field("server", &self.client.server)
            .field("next", &self.next)
            .field("acked_to", &self.acked_to)
            .finish_non_exhaustive()
    }
}
