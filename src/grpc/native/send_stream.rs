//! SendStream: batches in, acknowledgements out.
//!
//! Whatever has arrived is stored before the stream looks who may be acknowledged, and all who may are told with one
//! answer: on a busy stream neither costs a wake-up of its own.
//!
//! A stream has one of few places. One of which nothing comes for [`WHOLE`](crate::grpc::pace::WHOLE) never was meant;
//! one that has sent is a producer's, and keeps its place however long it is idle.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use hyper::body::Body as HttpBody;
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, skip_field};
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::StdError;

use super::send::wire;
use super::status::{self, Part};
use crate::broker::{
    Broker, BrokerError, Permit, RequestFault, SendRequest, StoredBatch, check_topic_name,
};
use crate::grpc::raw::{Messages, Out, refusal};
use crate::message::{QueueId, SessionId, SessionMark};
use crate::proto::{SendStreamRequest, SendStreamResponse};
use crate::wire::framed;

/// Batches of a stream that are stored and not acknowledged. As many as a session remembers.
const IN_FLIGHT: usize = 64;
/// Numbers of topics end here.
const TOPICS: u32 = 1 << 16;
/// The field of a request that opens a topic, in the proto.
const OPEN: u32 = 1;
/// Bytes of names that each stream may keep without asking.
const FREE_NAMES: u64 = 2 << 10;
/// Bytes of names that it asks for at a time.
const MORE_NAMES: u64 = 4 << 10;
/// What a name costs beside its own bytes, about.
const NAME_COST: u64 = 72;
/// What an acknowledgement costs beside its own bytes until it has left, about.
const ACKNOWLEDGEMENT_COST: u64 = 256;
/// How long a batch may wait for room; the disk has its own time.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// One stream.
struct SendStream {
    broker: Arc<Broker>,
    /// By their numbers.
    topics: HashMap<u32, Arc<str>>,
    /// Bytes of names that are not counted yet may be kept.
    names_left: u64,
    /// Those that are counted.
    names: Option<Permit>,
    session: Option<(SessionId, u64)>,
    /// Whether the first request is still to come.
    is_new: bool,
    /// Of the next batch.
    sequence: u64,
    /// Stored, in the order of the stream; the last has the sequence before `sequence`.
    unacknowledged: VecDeque<StoredBatch>,
    /// The last acknowledgement; its list is used again.
    told: SendStreamResponse,
    /// Once somebody waits for it: when the oldest of them may be acknowledged.
    oldest: Option<Acknowledgement>,
}

type Acknowledgement = Pin<Box<dyn Future<Output = Result<(), BrokerError>> + Send>>;

/// What a stream waits for.
enum Event {
    Received(Result<Option<SendStreamRequest>, Status>),
    /// The oldest batch may be acknowledged, or never will.
    Oldest(Result<(), BrokerError>),
    Draining,
}

/// A request as it is decoded: with at most one topic more than there are numbers, which is refused. An empty one is
/// two bytes long and many times that in memory.
#[derive(Debug, Default)]
struct Bounded(SendStreamRequest);

impl prost::Message for Bounded {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.0.encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag == OPEN && self.0.open.len() > TOPICS as usize {
            return skip_field(wire_type, tag, buf, ctx);
        }
        self.0.merge_field(tag, wire_type, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Why a stream takes nothing more.
enum End {
    /// A batch, or what came in its place, is refused: those before it are still acknowledged.
    Refused(Status),
    /// The oldest batch will never be acknowledged, so none behind it.
    Unacknowledged(Status),
}

impl From<Status> for End {
    fn from(refused: Status) -> Self {
        Self::Refused(refused)
    }
}

/// Runs a stream to its end.
///
/// # Errors
/// Of the first batch that was refused, or could not be acknowledged.
pub(super) async fn run<B>(
    broker: Arc<Broker>,
    mut messages: Messages<B>,
    out: Out,
) -> Result<(), Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let _place = broker.begin_send_stream().map_err(|error| refusal(&broker, &error))?;
    let mut stream = SendStream {
        broker: Arc::clone(&broker),
        topics: HashMap::new(),
        names_left: FREE_NAMES,
        names: None,
        session: None,
        is_new: true,
        sequence: 1,
        // Grows with the first batches: a stream that is only open keeps as little as it can.
        unacknowledged: VecDeque::new(),
        told: SendStreamResponse::default(),
        oldest: None,
    };
    let mut drained = pin!(broker.drained());
    let ended = loop {
        let may_receive = stream.unacknowledged.len() < IN_FLIGHT;
        let is_new = stream.is_new;
        let received = async {
            if is_new {
                messages.begins().await?;
            }
            messages.next().await
        };
        let event = tokio::select! {
            biased;
            received = received, if may_receive => {
                Event::Received(received.map(|request| request.map(|Bounded(request)| request)))
            }
            acknowledged = stream.oldest() => Event::Oldest(acknowledged),
            () = drained.as_mut() => Event::Draining,
        };
        messages.pause();
        let stored = match event {
            Event::Received(Ok(None)) => break Ok(()),
            Event::Received(Err(status)) => Err(status.into()),
            Event::Received(Ok(Some(request))) => {
                stream.take_all(request, &mut messages, &out).await
            }
            Event::Oldest(Ok(())) => Ok(()),
            Event::Oldest(Err(error)) => Err(stream.unacknowledged(&error)),
            Event::Draining => Err(refusal(&broker, &BrokerError::Draining).into()),
        };
        let refused = match stored {
            Ok(()) => None,
            Err(End::Refused(status)) => Some(status),
            // Its status names the batch: it is not acknowledged behind that, however it came to be durable.
            Err(End::Unacknowledged(status)) => return Err(status),
        };
        stream.acknowledge(&out).await;
        if let Some(status) = refused {
            break Err(status);
        }
    };
    stream.finish(&out).await.and(ended)
}

impl SendStream {
    /// Takes a request, and all behind it that is there already, as long as there is room for batches.
    async fn take_all<B>(
        &mut self,
        request: SendStreamRequest,
        messages: &mut Messages<B>,
        out: &Out,
    ) -> Result<(), End>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<StdError>,
    {
        self.take(request, out).await?;
        while self.unacknowledged.len() < IN_FLIGHT
            && let Some(Bounded(request)) = messages.ready()?
        {
            self.take(request, out).await?;
        }
        // The next may be long in coming: until one of those in flight is acknowledged.
        messages.done();
        Ok(())
    }

    async fn take(&mut self, request: SendStreamRequest, out: &Out) -> Result<(), End> {
        match self.prepare(&request) {
            Ok(Some(topic)) => self.store(&topic, request, out).await,
            Ok(None) => Ok(()),
            Err(error) => Err(self.refused(&error, self.sequence).into()),
        }
    }

    /// Takes what a request says of the stream. The topic of its batch, if it has one.
    fn prepare(&mut self, request: &SendStreamRequest) -> Result<Option<Arc<str>>, BrokerError> {
        let is_new = std::mem::take(&mut self.is_new);
        if let Some(mark) = request.session {
            if !is_new {
                return Err(bad(RequestFault::LateSession));
            }
            self.session = Some((SessionId::new(mark.id), mark.epoch));
            self.sequence = mark.sequence;
        }
        for open in &request.open {
            self.open(open.number, &open.topic)?;
        }
        if request.batch.is_empty() {
            return Ok(None);
        }
        let number = request.topic;
        let topic = self.topics.get(&number);
        topic.cloned().map(Some).ok_or_else(|| bad(RequestFault::NotOpened { number }))
    }

    /// Stores a batch. While it waits for room, those before it are acknowledged.
    async fn store(
        &mut self,
        topic: &str,
        request: SendStreamRequest,
        out: &Out,
    ) -> Result<(), End> {
        let (broker, sequence) = (Arc::clone(&self.broker), self.sequence);
        let mark = |(session, epoch)| SessionMark { session, epoch, sequence };
        let request = SendRequest {
            topic,
            queue: request.queue.map(QueueId::new),
            batch: request.batch,
            session: self.session.map(mark),
            deadline: Instant::now() + BATCH_TIMEOUT,
        };
        let mut storing = pin!(broker.store_only(&request));
        let stored = loop {
            tokio::select! {
                biased;
                stored = storing.as_mut() => break stored,
                acknowledged = self.oldest() => {
                    acknowledged.map_err(|error| self.unacknowledged(&error))?;
                    self.acknowledge(out).await;
                }
                // Nothing of it is stored: it waits for room, or for what it must not tell yet.
                () = broker.drained() => break Err(BrokerError::Draining),
            }
        };
        let stored = stored.map_err(|error| self.refused(&error, sequence))?;
        self.sequence = sequence.saturating_add(1);
        self.unacknowledged.push_back(stored);
        Ok(())
    }

    fn open(&mut self, number: u32, topic: &str) -> Result<(), BrokerError> {
        if number >= TOPICS || self.topics.contains_key(&number) {
            return Err(bad(RequestFault::TopicNumber { number, limit: TOPICS }));
        }
        // Now, not with its first batch: what a stream keeps is bounded by the length of a name.
        check_topic_name(topic)?;
        let len = NAME_COST + u64::try_from(topic.len()).unwrap_or(u64::MAX);
        if self.names_left < len {
            let more = self.broker.keep_names(MORE_NAMES)?;
            self.names_left += MORE_NAMES;
            Permit::add(&mut self.names, more);
        }
        self.names_left = self.names_left.saturating_sub(len);
        self.topics.insert(number, topic.into());
        Ok(())
    }

    /// Resolves when the oldest batch may be acknowledged; never without one. May be dropped and called again: its time
    /// goes on from the first call.
    async fn oldest(&mut self) -> Result<(), BrokerError> {
        let Some(stored) = self.unacknowledged.front() else { return pending().await };
        if self.broker.may_acknowledge(stored) {
            return Ok(());
        }
        let broker = &self.broker;
        let oldest = self.oldest.get_or_insert_with(|| {
            Box::pin(broker.acknowledge(stored, Instant::now() + BATCH_TIMEOUT))
        });
        let acknowledged = oldest.await;
        self.oldest = None;
        acknowledged
    }

    /// Acknowledges all that may be, and counts it until it has left.
    async fn acknowledge(&mut self, out: &Out) {
        self.told.receipts.clear();
        while let Some(stored) = self.unacknowledged.front()
            && self.broker.may_acknowledge(stored)
        {
            self.told.receipts.push(wire(self.broker.acknowledged_batch(stored)));
            self.unacknowledged.pop_front();
            self.oldest = None;
        }
        if !self.told.receipts.is_empty() {
            self.told.acked_to = self.oldest_sequence().saturating_sub(1);
            let frame = framed(&self.told);
            let cost = u64::try_from(frame.len()).unwrap_or(u64::MAX) + ACKNOWLEDGEMENT_COST;
            // It does not wait behind the answers of those who do not read: without room it goes out uncounted, and who
            // leaves it unread loses his connection, as there is hardly any room.
            out.put([frame], self.broker.try_reply(cost)).await;
        }
    }

    fn oldest_sequence(&self) -> u64 {
        let waiting = u64::try_from(self.unacknowledged.len()).unwrap_or(u64::MAX);
        self.sequence.saturating_sub(waiting)
    }

    /// Counts the refusal of a batch and words it for the wire.
    fn refused(&self, error: &BrokerError, sequence: u64) -> Status {
        self.broker.counters().refused(error.reason());
        status::of_part(error, Part { sequence: Some(sequence), queue: None })
    }

    fn unacknowledged(&self, error: &BrokerError) -> End {
        End::Unacknowledged(self.refused(error, self.oldest_sequence()))
    }

    /// Acknowledges what is stored, as it becomes durable.
    async fn finish(&mut self, out: &Out) -> Result<(), Status> {
        while !self.unacknowledged.is_empty() {
            let oldest = self.oldest().await;
            oldest.map_err(|error| self.refused(&error, self.oldest_sequence()))?;
            self.acknowledge(out).await;
        }
        Ok(())
    }
}

fn bad(fault: RequestFault) -> BrokerError {
    BrokerError::BadRequest { fault }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use std::convert::Infallible;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;
    use crate::broker::BrokerConfig;
    use crate::clock::SystemClock;
    use crate::file::disk::RealDisk;
    use crate::format::batch::{BatchBuilder, NewMeta};
    use crate::grpc::outgoing::Outgoing;
    use crate::grpc::raw::answer;
    use crate::proto::send_stream_request::Open;
    use crate::store::StoreConfig;
    use crate::wire::Frames;

    /// One frame, if there is one, and then nothing more for ever.
    struct Silent(Option<Bytes>);

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.take().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
        }
    }

    fn broker(config: BrokerConfig) -> (Arc<Broker>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let clock = Arc::new(SystemClock::new());
        (Broker::open(Arc::new(RealDisk), clock, store, config).unwrap().0, dir)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_sends_nothing_gives_its_place_back_and_one_that_has_sent_keeps_it() {
        let (broker, _dir) = broker(BrokerConfig::default());
        let stream = |frame: Option<Bytes>| {
            let messages = Messages::new(Silent(frame), Arc::clone(&broker), 64 << 10);
            run(Arc::clone(&broker), messages, Out::default())
        };
        let open = Open { number: 1, topic: "t".to_owned() };
        let sent = SendStreamRequest { open: vec![open], ..SendStreamRequest::default() };
        let begun = Instant::now();
        let mut idle = pin!(stream(Some(framed(&sent))));
        let short = Duration::from_secs(1);
        assert!(tokio::time::timeout(short, idle.as_mut()).await.is_err());
        let refused = stream(None).await.unwrap_err();
        assert_eq!(refused.message(), "the request did not arrive whole within 30s");
        assert_eq!(begun.elapsed().as_secs(), 31);
        assert_eq!(broker.send_streams(), 1, "the idle one's");
        let hour = Duration::from_secs(3_600);
        assert!(tokio::time::timeout(hour, idle.as_mut()).await.is_err(), "it goes on");
        assert_eq!(broker.send_streams(), 1);
        broker.drain();
        let ended = idle.await.unwrap_err();
        assert_eq!((ended.code(), broker.send_streams()), (tonic::Code::Unavailable, 0));
        broker.close().unwrap();
    }

    /// Those who do not read their answers held up all who send.
    #[tokio::test]
    async fn a_stream_is_acknowledged_while_others_have_all_the_room_of_answers() {
        const REPLIES: u64 = 1 << 20;
        let replies = BrokerConfig { inflight_reply_bytes: REPLIES, ..BrokerConfig::default() };
        let (broker, _dir) = broker(replies);
        let mut batch = BatchBuilder::new();
        batch.push(&NewMeta::default(), b"one book");
        let sent = SendStreamRequest {
            open: vec![Open { number: 0, topic: "t".to_owned() }],
            queue: Some(0),
            batch: batch.finish(),
            ..SendStreamRequest::default()
        };
        let acknowledged = async |others: Option<Permit>| {
            let body = Silent(Some(framed(&sent)));
            let messages = Messages::new(body, Arc::clone(&broker), 64 << 10);
            let answer = answer(Outgoing::new(), |out| run(Arc::clone(&broker), messages, out));
            let mut body = answer.into_body();
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let mut frames = Frames::default();
            frames.push(frame.unwrap().unwrap().into_data().unwrap());
            let taken = broker.in_work().replies;
            drop(others);
            let told = frames.message::<SendStreamResponse>(1 << 10).unwrap().unwrap();
            (told.acked_to, told.receipts[0].first_queue_offset, taken)
        };
        assert_eq!(acknowledged(None).await, (1, 0, 1 << 10));
        assert_eq!(broker.in_work().replies, 0, "its stream has ended");
        let others = broker.try_reply(REPLIES);
        assert_eq!(acknowledged(others).await, (1, 1, REPLIES));
        assert_eq!(broker.in_work().replies, 0);
        broker.close().unwrap();
    }

    #[test]
    fn a_request_opens_at_most_one_topic_more_than_there_are_numbers() {
        let sent = SendStreamRequest {
            open: vec![Open::default(); 100_000],
            batch: Bytes::from_static(b"behind them"),
            ..SendStreamRequest::default()
        };
        let Bounded(received) = Bounded::decode(&sent.encode_to_vec()[..]).unwrap();
        assert_eq!(received.open.len(), TOPICS as usize + 1);
        assert_eq!(received.batch, sent.batch);
        let few = SendStreamRequest { open: vec![Open::default(); 3], ..sent };
        assert_eq!(Bounded::decode(&few.encode_to_vec()[..]).unwrap().0, few);
    }
}
