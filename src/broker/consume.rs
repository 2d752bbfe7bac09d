//! Streams of messages: leases out as far as the consumer has given credits, receipts in.
//!
//! | of a stream | rule |
//! | --- | --- |
//! | credits of messages | never are more leased |
//! | credits of bytes | the last message may go beyond; what is beyond is taken from the next credits |
//! | while it has both | one receive is under way, which waits as any other does |
//! | its leases | end with it, about a second later: `clients.rs`; what did not leave at once |
//! | what it settles | is in the log in the order of its requests, and answered in that order once that may be said |
//!
//! A stream has no task: it works while it is asked for what is next. Nothing that waits here is lost when the question
//! is dropped and asked again.

use std::collections::VecDeque;
use std::future::{pending, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::Broker;
use super::budget::Permit;
use super::clients::LastingStream;
use super::cut::bytes_of;
use super::error::BrokerError;
use super::receive::check_duration;
use super::receive::{By, MAX_INVISIBLE, MAX_RECEIVE, MAX_WAIT, ReceiveRequest, Received};
use super::settle::{ExtendEntry, Extended};
use super::topics::within;
use crate::filter::Expression;

/// The most credits of messages that a stream may have at once.
pub const MAX_CREDIT_MESSAGES: u32 = 10_000;

/// The most credits of bytes.
pub const MAX_CREDIT_BYTES: u32 = 64 << 20;

/// Messages of one answer: others of the group have their turn between two.
const PART: u32 = 256;

/// Bytes of one answer, but for its last message.
const PART_BYTES: u32 = 1 << 20;

/// How long one receive may take, beside the time that it waits for messages.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a settlement may wait for room in the log and for the disk.
const SETTLING: Duration = Duration::from_secs(10);

/// How often a stream without credits looks whether group and topic are there.
const LOOK: Duration = Duration::from_secs(1);

/// How long a stream rests that can get no messages until some are finished, or until there is room in the log.
const REST: Duration = Duration::from_millis(100);

/// What the text of a filter costs once it is parsed, about.
const FILTER_COST: u64 = 8;

/// What a stream costs beside its texts, about.
const STREAM_COST: u64 = 2 << 10;

/// Of which messages a stream is.
#[derive(Debug)]
pub struct ConsumeRequest {
    /// The group's name.
    pub group: String,
    /// The topic's name.
    pub topic: String,
    /// Which messages the group wants; the others are finished by passing over them.
    pub filter: Expression,
    /// How long the text of the filter was.
    pub filter_len: usize,
    /// How long nobody else gets a message, up to 12 hours, unless the stream ends.
    pub invisible: Duration,
    /// Who gets them, for people: see [`ReceiveRequest::holder`].
    pub holder: String,
}

/// What was settled with one request.
#[derive(Debug)]
pub struct Settlement {
    /// The request's number.
    pub number: u64,
    /// Of each receipt, in their order, whether its message is finished by it.
    pub finished: Vec<bool>,
    /// Of each lease that was to become another, in their order, the new receipt.
    pub extended: Extended,
    /// Keeps the bytes of the answer counted until it has left.
    pub permit: Option<Permit>,
}

/// What a stream has next.
#[derive(Debug)]
pub enum Consumed {
    /// Messages, leased.
    Messages(Received),
    /// All that may be said by now of what was settled: one at least.
    Settled(Vec<Settlement>),
}

/// Why a stream ended.
#[derive(Debug)]
pub struct ConsumeError {
    /// The number of the request that it is about, if it is about one.
    pub number: Option<u64>,
    /// What it was.
    pub error: BrokerError,
}

impl From<BrokerError> for ConsumeError {
    fn from(error: BrokerError) -> Self {
        Self { number: None, error }
    }
}

/// What the consumer is ready to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Credits {
    messages: u32,
    /// Below 0 by what the last message went beyond.
    bytes: i64,
}

impl Credits {
    fn add(&mut self, messages: u32, bytes: u32) -> Result<(), BrokerError> {
        let messages = self.messages.saturating_add(messages);
        let bytes = self.bytes.saturating_add(i64::from(bytes));
        within("credits of messages", messages, MAX_CREDIT_MESSAGES)?;
        let positive = u32::try_from(bytes.max(0)).unwrap_or(u32::MAX);
        within("credits of bytes", positive, MAX_CREDIT_BYTES)?;
        *self = Self { messages, bytes };
        Ok(())
    }

    /// As much of them as one receive takes; `None`: one of the two is used up.
    fn part(&self) -> Option<(u32, u32)> {
        let messages = self.messages.min(PART).min(MAX_RECEIVE);
        let bytes = self.bytes.clamp(0, i64::from(PART_BYTES));
        let bytes = u32::try_from(bytes).unwrap_or(PART_BYTES);
        (messages > 0 && bytes > 0).then_some((messages, bytes))
    }

    fn spend(&mut self, received: &Received) {
        let count = u32::try_from(received.messages.len()).unwrap_or(u32::MAX);
        let bytes: u64 = received.messages.iter().map(|message| bytes_of(&message.batch)).sum();
        self.messages = self.messages.saturating_sub(count);
        self.bytes = self.bytes.saturating_sub_unsigned(bytes);
    }
}

type Receiving = Pin<Box<dyn Future<Output = Result<Received, BrokerError>> + Send>>;
type Settling = Pin<Box<dyn Future<Output = Result<Settlement, ConsumeError>> + Send>>;

/// What a receive of the stream needs for as long as it lasts.
#[derive(Debug)]
struct Asked {
    of: ConsumeRequest,
    lasting: LastingStream,
}

/// Messages of an answer that has not left. If it never does they come again at once, and that delivery does not count:
/// nobody got them.
#[derive(Debug)]
pub struct OnTheirWay {
    broker: Arc<Broker>,
    asked: Arc<Asked>,
    handles: Vec<String>,
}

impl OnTheirWay {
    /// They have left.
    pub fn arrived(mut self) {
        self.handles.clear();
    }
}

impl Drop for OnTheirWay {
    fn drop(&mut self) {
        if !self.handles.is_empty() {
            self.broker.give_back(&self.asked.of.group, &self.asked.of.topic, &self.handles);
        }
    }
}

/// A stream of messages to one consumer.
pub struct ConsumeStream {
    broker: Arc<Broker>,
    asked: Arc<Asked>,
    credits: Credits,
    /// The one that is under way.
    receiving: Option<Receiving>,
    /// In the log, in the order of the requests.
    settling: VecDeque<Settling>,
    _names: Permit,
    _place: OwnedSemaphorePermit,
}

impl Broker {
    /// A place for one more stream of messages.
    ///
    /// # Errors
    /// So many are open already that no more are.
    pub(crate) fn consume_place(&self) -> Result<OwnedSemaphorePermit, BrokerError> {
        let place = Arc::clone(&self.consume_streams).try_acquire_owned();
        place.map_err(|_| BrokerError::Overloaded { what: "streams of messages" })
    }

    /// Begins a stream at a place that was taken for it, without credits. Its leases end with it.
    ///
    /// # Errors
    /// As [`Broker::receive_messages`]; and all streams together keep too many names.
    pub(crate) async fn consume(
        self: &Arc<Self>,
        place: OwnedSemaphorePermit,
        request: ConsumeRequest,
    ) -> Result<ConsumeStream, BrokerError> {
        check_duration("invisible_ms", request.invisible, MAX_INVISIBLE)?;
        let wide = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
        let filter = wide(request.filter_len).saturating_mul(FILTER_COST);
        let texts = wide(request.group.len() + request.topic.len());
        let names = self.keep_names(STREAM_COST.saturating_add(filter).saturating_add(texts))?;
        let number = self.consume_count.fetch_add(1, Ordering::Relaxed);
        // No client calls itself so, and no stream of another start.
        let id = format!("\0stream {} {number}", self.store.epoch().get());
        let lasting = self.clients.lasting(id);
        let stream = ConsumeStream {
            broker: Arc::clone(self),
            asked: Arc::new(Asked { of: request, lasting }),
            credits: Credits::default(),
            receiving: None,
            settling: VecDeque::new(),
            _names: names,
            _place: place,
        };
        is_open(self, &stream.asked.of).await?;
        Ok(stream)
    }

    /// How many streams of messages are open.
    pub fn consume_streams(&self) -> usize {
        super::CONSUME_STREAMS.saturating_sub(self.consume_streams.available_permits())
    }
}

impl ConsumeStream {
    /// The consumer is ready to take so many more. A receive that is under way does not get more by it.
    ///
    /// # Errors
    /// It would have more than [`MAX_CREDIT_MESSAGES`] or [`MAX_CREDIT_BYTES`]; it has what it had.
    pub fn add_credits(&mut self, messages: u32, bytes: u32) -> Result<(), BrokerError> {
        // What a receive under way may bring is still among them.
        self.credits.add(messages, bytes)
    }

    /// The consumer takes no more: what is not leased by now stays.
    pub fn end_credits(&mut self) {
        self.credits = Credits::default();
        self.receiving = None;
    }

    /// Nobody asks for what is next for a while: others of the group get what comes meanwhile.
    pub fn rest(&mut self) {
        // What it holds or was woken for is passed on when it is dropped.
        self.receiving = None;
    }

    /// Messages of these receipts are about to leave.
    pub fn on_their_way(&self, handles: Vec<String>) -> OnTheirWay {
        OnTheirWay { broker: Arc::clone(&self.broker), asked: Arc::clone(&self.asked), handles }
    }

    /// Requests whose settlements are not said.
    pub fn unsaid(&self) -> usize {
        self.settling.len()
    }

    /// Finishes messages, and then makes other leases of those of others: it is in the log when this returns, and said
    /// by [`ConsumeStream::next`], also of nothing. `len` is what the request has of bytes: they are counted until the
    /// answer is gone.
    ///
    /// # Errors
    /// As [`Broker::ack`] and [`Broker::extend`]; then what came before it may be in the log.
    pub async fn settle(
        &mut self,
        number: u64,
        handles: &[&str],
        entries: &[ExtendEntry<'_>],
        len: u64,
    ) -> Result<(), BrokerError> {
        let (broker, of) = (Arc::clone(&self.broker), Arc::clone(&self.asked));
        let settling = decide(broker, of, number, handles, entries, len);
        let mut settling = pin!(settling);
        let settling = tokio::select! {
            biased;
            settling = &mut settling => settling?,
            // It has to be waited for.
            () = ready(()) => {
                self.rest();
                settling.await?
            }
        };
        self.settling.push_back(settling);
        Ok(())
    }

    /// What is next; waits until there is something. Dropped while it waits, it loses nothing.
    ///
    /// # Errors
    /// The stream is at its end: a settlement cannot be said, or no messages can be had any more.
    pub async fn next(&mut self) -> Result<Consumed, ConsumeError> {
        tokio::select! {
            biased;
            settled = said(&mut self.settling) => Ok(Consumed::Settled(settled?)),
            received = received(&self.broker, &self.asked, &mut self.credits, &mut self.receiving) => {
                Ok(Consumed::Messages(received?))
            }
        }
    }

    /// The same of settlements alone.
    ///
    /// # Errors
    /// One cannot be said.
    pub async fn next_settled(&mut self) -> Result<Vec<Settlement>, ConsumeError> {
        said(&mut self.settling).await
    }
}

/// Puts into the log what settles these; the rest is to wait until that may be said.
async fn decide(
    broker: Arc<Broker>,
    of: Arc<Asked>,
    number: u64,
    handles: &[&str],
    entries: &[ExtendEntry<'_>],
    len: u64,
) -> Result<Settling, BrokerError> {
    let deadline = Instant::now() + SETTLING;
    let (group, topic) = (of.of.group.as_str(), of.of.topic.as_str());
    let permit = Some(broker.receive_later(len, deadline).await?);
    let settlement = move |finished, extended| Settlement { number, finished, extended, permit };
    let failed = move |error| ConsumeError { number: Some(number), error };
    let settling: Settling = match (handles.is_empty(), entries.is_empty()) {
        (true, true) => Box::pin(async move { Ok(settlement(Vec::new(), Vec::new())) }),
        (true, false) => {
            let unsaid = broker.extend_only(group, topic, entries, deadline).await?;
            Box::pin(async move {
                let extended = broker.said(unsaid, deadline).await.map_err(failed)?;
                Ok(settlement(Vec::new(), extended))
            })
        }
        (false, true) => {
            let unsaid = broker.ack_only(group, topic, handles, deadline).await?;
            Box::pin(async move {
                let finished = broker.said(unsaid, deadline).await.map_err(failed)?;
                Ok(settlement(finished, Vec::new()))
            })
        }
        (false, false) => {
            let acks = broker.ack_only(group, topic, handles, deadline).await?;
            let extended = broker.extend_only(group, topic, entries, deadline).await?;
            let unsaid = acks.and(extended);
            Box::pin(async move {
                let (finished, extended) = broker.said(unsaid, deadline).await.map_err(failed)?;
                Ok(settlement(finished, extended))
            })
        }
    };
    Ok(settling)
}

/// Refuses where no messages can be had.
async fn is_open(broker: &Broker, of: &ConsumeRequest) -> Result<(), BrokerError> {
    let deadline = Instant::now() + PATIENCE;
    let group = broker.group(&of.group, deadline).await?;
    broker.topic(&of.topic, deadline).await?;
    broker.admits(&group, deadline).await
}

/// All that may be said by now, once the first may be.
async fn said(settling: &mut VecDeque<Settling>) -> Result<Vec<Settlement>, ConsumeError> {
    if settling.is_empty() {
        return pending().await;
    }
    poll_fn(|cx| {
        let mut all = Vec::new();
        while let Some(first) = settling.front_mut() {
            match first.as_mut().poll(cx) {
                Poll::Ready(Ok(settlement)) => all.push(settlement),
                // Told with the next question, behind what can be said.
                Poll::Ready(Err(error)) if all.is_empty() => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => {
                    *first = Box::pin(async { Err(error) });
                    break;
                }
                Poll::Pending => break,
            }
            settling.pop_front();
        }
        if all.is_empty() { Poll::Pending } else { Poll::Ready(Ok(all)) }
    })
    .await
}

/// Messages, as soon as there are credits and some are there.
async fn received(
    broker: &Arc<Broker>,
    asked: &Arc<Asked>,
    credits: &mut Credits,
    receiving: &mut Option<Receiving>,
) -> Result<Received, BrokerError> {
    loop {
        let under_way = match receiving {
            Some(receiving) => receiving,
            None => match credits.part() {
                Some(part) => receiving.insert(receive(broker, asked, part)),
                None => {
                    sleep(LOOK).await;
                    is_open(broker, &asked.of).await?;
                    continue;
                }
            },
        };
        let received = under_way.as_mut().await;
        *receiving = None;
        match received {
            Ok(received) if received.messages.is_empty() => {
                if broker.is_draining() {
                    return Err(BrokerError::Draining);
                }
            }
            Ok(received) => {
                credits.spend(&received);
                return Ok(received);
            }
            // What this stream has must get finished to make room, so it goes on.
            // And what is short because of others does not end the leases of this one.
            Err(
                BrokerError::OpenLimit { .. }
                | BrokerError::NoSpace
                | BrokerError::Full(_)
                | BrokerError::Overloaded { .. },
            ) => sleep(REST).await,
            Err(error) => return Err(error),
        }
    }
}

/// A receive of so many messages and bytes at most.
fn receive(
    broker: &Arc<Broker>,
    asked: &Arc<Asked>,
    (max_messages, max_bytes): (u32, u32),
) -> Receiving {
    let (broker, asked) = (Arc::clone(broker), Arc::clone(asked));
    Box::pin(async move {
        let Asked { of, lasting } = &*asked;
        let request = ReceiveRequest {
            group: &of.group,
            topic: &of.topic,
            filter: &of.filter,
            max_messages,
            max_bytes,
            invisible: of.invisible,
            client: Some(lasting.id()),
            holder: &of.holder,
            wait: MAX_WAIT,
            attempt: "",
            deadline: Instant::now() + MAX_WAIT + PATIENCE,
        };
        // What keeps a queue from being read does not end the leases of messages of others.
        broker.receive_as(request, By::Member).await
    })
}

impl std::fmt::Debug for ConsumeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsumeStream")
            .field("asked", &self.asked)
            .field("credits", &self.credits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{BrokerConfig, Language, SendRequest};
    use crate::clock::SystemClock;
    use crate::file::disk::RealDisk;
    use crate::format::batch::{BatchBuilder, NewMeta};
    use crate::message::{FlushMode, GroupSettings, TopicSettings, TopicType};
    use crate::store::StoreConfig;

    /// A stream of a topic with so many messages.
    async fn stream(count: usize) -> (ConsumeStream, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
        let (broker, _) = Broker::open(disk, clock, store, BrokerConfig::default()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let topic = TopicSettings::open(1, FlushMode::Async, TopicType::Mixed);
        broker.create_topic("t", topic, deadline).await.unwrap();
        broker.create_group("g", &GroupSettings::default(), deadline).await.unwrap();
        let mut batch = BatchBuilder::new();
        (0..count).for_each(|_| {
            batch.push(&NewMeta::default(), b"x");
        });
        let (topic, batch) = ("t", batch.finish());
        let send = SendRequest { topic, queue: None, batch, session: None, deadline };
        broker.send(send).await.unwrap();
        let request = ConsumeRequest {
            group: "g".to_owned(),
            topic: "t".to_owned(),
            filter: Expression::parse(Language::Tags, "").unwrap(),
            filter_len: 0,
            invisible: PATIENCE,
            holder: "somebody".to_owned(),
        };
        let place = broker.consume_place().unwrap();
        (broker.consume(place, request).await.unwrap(), dir)
    }

    fn settlement(number: u64) -> Settlement {
        Settlement { number, finished: vec![true], extended: Vec::new(), permit: None }
    }

    fn numbers(consumed: Consumed) -> Vec<u64> {
        match consumed {
            Consumed::Settled(all) => all.iter().map(|settlement| settlement.number).collect(),
            Consumed::Messages(received) => panic!("{received:?}"),
        }
    }

    #[tokio::test]
    async fn messages_do_not_wait_for_what_may_not_be_said_yet() {
        let (mut stream, _dir) = stream(3).await;
        stream.settling.push_back(Box::pin(pending()));
        stream.settling.push_back(Box::pin(async { Ok(settlement(2)) }));
        stream.add_credits(3, 1_000).unwrap();
        let mut count = 0;
        while count < 3 {
            let Consumed::Messages(received) = stream.next().await.unwrap() else {
                panic!("the second is told before the first");
            };
            count += received.messages.len();
        }
        assert_eq!((count, stream.unsaid()), (3, 2));
        stream.settling[0] = Box::pin(async { Ok(settlement(1)) });
        assert_eq!(numbers(stream.next().await.unwrap()), [1, 2], "with one answer");
        stream.broker.close().unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_said_is_told_behind_what_can_and_by_its_number() {
        let (mut stream, _dir) = stream(1).await;
        let failed = ConsumeError { number: Some(2), error: BrokerError::FlushTimeout };
        stream.settling.push_back(Box::pin(async { Ok(settlement(1)) }));
        stream.settling.push_back(Box::pin(async { Err(failed) }));
        stream.settling.push_back(Box::pin(async { Ok(settlement(3)) }));
        assert_eq!(numbers(stream.next().await.unwrap()), [1]);
        let failed = stream.next().await.unwrap_err();
        assert_eq!(failed.number, Some(2));
        assert!(matches!(failed.error, BrokerError::FlushTimeout));
        stream.broker.close().unwrap();
    }

    #[tokio::test]
    async fn there_are_so_many_streams_and_each_gives_its_place_and_its_names_back() {
        let (stream, _dir) = stream(1).await;
        let broker = Arc::clone(&stream.broker);
        let count = crate::broker::CONSUME_STREAMS;
        let mut places: Vec<_> = (1..count).map(|_| broker.consume_place().unwrap()).collect();
        assert_eq!(broker.consume_streams(), count);
        let refused = broker.consume_place().unwrap_err();
        assert!(matches!(refused, BrokerError::Overloaded { .. }), "{refused}");
        assert!(places.pop().is_some() && broker.consume_place().is_ok());
        assert!(broker.in_work().names > 0);
        drop(stream);
        drop(places);
        assert_eq!((broker.consume_streams(), broker.in_work().names), (0, 0));
        broker.close().unwrap();
    }

    #[test]
    fn credits_are_added_up_to_their_most_and_one_refusal_changes_nothing() {
        let mut credits = Credits::default();
        assert_eq!(credits.part(), None);
        credits.add(3, 0).unwrap();
        assert_eq!(credits.part(), None, "without bytes");
        credits.add(MAX_CREDIT_MESSAGES - 3, MAX_CREDIT_BYTES).unwrap();
        assert_eq!(credits.part(), Some((PART, PART_BYTES)));
        let before = credits;
        for (messages, bytes) in [(1, 0), (0, 1), (u32::MAX, u32::MAX)] {
            let refused = credits.add(messages, bytes).unwrap_err();
            assert!(matches!(refused, BrokerError::TooLarge { .. }), "{refused}");
            assert_eq!(credits, before);
        }
    }

    #[test]
    fn what_goes_beyond_the_credits_of_bytes_is_taken_from_the_next() {
        let mut credits = Credits { messages: 5, bytes: -10 };
        assert_eq!(credits.part(), None);
        credits.add(0, 10).unwrap();
        assert_eq!(credits.part(), None);
        credits.add(0, 7).unwrap();
        assert_eq!(credits.part(), Some((5, 7)));
    }
}
