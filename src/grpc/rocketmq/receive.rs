//! ReceiveMessage.
//!
//! | frame | when |
//! | --- | --- |
//! | a status | first of all, always one: with anything but `OK` no message follows |
//! | a message | for each, in a frame of its own: some clients take 4 MiB at most |
//! | the time of delivery | last of all, always |
//!
//! The headers of the answer go out before anything is looked for: some clients wait for them alone.
//!
//! A request is refused by the first rule that it breaks, in this order:
//!
//! | rule | code |
//! | --- | --- |
//! | the topic's and the group's name | `ILLEGAL_TOPIC`, `ILLEGAL_CONSUMER_GROUP` |
//! | 10 s to 12 h of leases, unless the broker renews them | `ILLEGAL_INVISIBLE_TIME` |
//! | the filter | `ILLEGAL_FILTER_EXPRESSION` |
//! | at least one message; more than 32 are 32 | `BAD_REQUEST` |
//! | the name of the try, at most 256 bytes | `BAD_REQUEST` |
//! | the topic is there, and can be read | `TOPIC_NOT_FOUND`, `FORBIDDEN` |
//! | the group is there or may be made, and is enabled | `CONSUMER_GROUP_NOT_FOUND`, `FORBIDDEN` |
//!
//! Which queue a request names does not matter: all are served.
//!
//! A client that goes away while it waits leaves nothing behind. What was leased for one and not handed to its
//! connection is given back, and that delivery does not count; all of the answer is if the leases last for as long as
//! the client lives.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::Body as HttpBody;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{StdError, http};

use super::deliver::Delivery;
use super::status::{self, Refusal};
use super::{Caller, clients, convert, time};
use crate::broker::{Broker, BrokerError, ReceiveRequest, Received};
use crate::filter::Expression;
use crate::grpc::deadline_of;
use crate::grpc::outgoing::Outgoing;
use crate::grpc::raw::{self, Last, Messages, Out};
use crate::grpc::serve::Ends;
use crate::proto::rocketmq::receive_message_response::Content;
use crate::proto::rocketmq::{Code, FilterExpression, ReceiveMessageResponse, Resource, Status};
use crate::wire::put_framed;

/// Bytes of a request: a group, a topic, and a filter that is longer than it may be.
const MAX_REQUEST: usize = 4 << 20;

/// Bytes of the name of a try.
const MAX_ATTEMPT: usize = 256;

/// The most messages of an answer.
const MAX_MESSAGES: u32 = 32;

/// The most bytes of messages of an answer, if there is more than one.
const MAX_BYTES: u32 = 4 << 20;

/// The shortest lease, unless the broker renews it.
const MIN_INVISIBLE: Duration = Duration::from_secs(10);

/// The longest lease that the broker renews, for as long as its client lives.
const RENEWED: Duration = Duration::from_secs(3 * 60 * 60);

/// The same, of a client that is one too many to be known.
const NOT_RENEWED: Duration = Duration::from_secs(60);

/// How long a receive waits.
const MIN_POLL: Duration = Duration::from_secs(5);
const MAX_POLL: Duration = Duration::from_secs(20);

/// What a client that does not say how long to wait leaves for the answer's way: half of what it gives other calls.
const WAY: Duration = Duration::from_millis(1_500);

/// From this version on clients know the code of a poll that is too short.
const KNOWS_POLLING_TIME: &str = "5.0.3";

/// Bytes that are handed over at once: beyond them each message is its own piece.
const PIECE: usize = 64 << 10;

/// The answer of the call, whose body does the work.
pub(super) fn answer<B>(
    broker: &Arc<Broker>,
    outgoing: &Outgoing,
    ends: Option<Ends>,
    request: http::Request<B>,
) -> http::Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    let broker = Arc::clone(broker);
    let until = deadline_of(request.headers());
    let (parts, body) = request.into_parts();
    let messages = Messages::new(body, Arc::clone(&broker), MAX_REQUEST);
    // Behind what went out before it, if there is something.
    let of_defect = Arc::clone(&broker);
    let panicked = move || Last { message: ended(status::defect(), &of_defect), ended: Ok(()) };
    raw::answer_or(outgoing.clone(), panicked, move |out| async move {
        let answered = match Caller::of(&parts.headers) {
            Err(refusal) => Err(refusal.tell(&broker)),
            Ok(caller) => match messages.only().await {
                Err(error) => Err(status::of_transport(&error)),
                Ok(request) => match receive(&broker, caller, ends, until, request).await {
                    Err(refusal) => Err(refusal.tell(&broker)),
                    Ok(None) => Err(status::nothing()),
                    Ok(Some(found)) => Ok(found),
                },
            },
        };
        match answered {
            Ok(found) => found.leave(&broker, &out).await,
            Err(status) => out.put([ended(status, &broker)], None).await,
        }
        Ok(())
    })
}

/// A request, without what nobody looks at: a queue names its broker with a list of addresses, and an entry of two
/// bytes would be many times that in memory.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    group: Option<Resource>,
    #[prost(message, optional, tag = "2")]
    message_queue: Option<Queue>,
    #[prost(message, optional, tag = "3")]
    filter_expression: Option<FilterExpression>,
    #[prost(int32, tag = "4")]
    batch_size: i32,
    #[prost(message, optional, tag = "5")]
    invisible_duration: Option<prost_types::Duration>,
    #[prost(bool, tag = "6")]
    auto_renew: bool,
    #[prost(message, optional, tag = "7")]
    long_polling_timeout: Option<prost_types::Duration>,
    #[prost(string, optional, tag = "8")]
    attempt_id: Option<String>,
}

/// A queue of it.
#[derive(Clone, PartialEq, prost::Message)]
struct Queue {
    #[prost(message, optional, tag = "1")]
    topic: Option<Resource>,
}

/// What was leased, and for whom.
struct Found {
    group: String,
    topic: String,
    /// Its leases last for as long as the client lives.
    is_bound: bool,
    delivery: Delivery,
    received: Received,
}

/// What a request asks for: all that is kept of it while it waits.
struct Asked {
    /// As the client named it.
    resource: Option<Resource>,
    topic: String,
    group: String,
    /// `None`: for as long as the client lives.
    lease: Option<Duration>,
    filter: Arc<Expression>,
    max_messages: u32,
    attempt: String,
    poll: Option<prost_types::Duration>,
}

impl Asked {
    fn of(broker: &Broker, request: Request) -> Result<Self, Refusal> {
        let resource = request.message_queue.and_then(|queue| queue.topic);
        let topic = convert::topic(resource.as_ref())?.to_owned();
        let group = convert::group(request.group.as_ref())?.to_owned();
        let lease = match request.auto_renew {
            true => None,
            false => Some(time::lease(request.invisible_duration.as_ref(), MIN_INVISIBLE)?),
        };
        let filter = convert::expression(broker, request.filter_expression.as_ref())?;
        let max_messages = u32::try_from(request.batch_size).ok().filter(|most| *most > 0);
        let Some(max_messages) = max_messages.map(|most| most.min(MAX_MESSAGES)) else {
            return Err(Refusal::new(Code::BadRequest, "a receive asks for one message at least"));
        };
        let attempt = request.attempt_id.unwrap_or_default();
        if attempt.len() > MAX_ATTEMPT {
            let fault =
                format!("the attempt id has {} bytes; {MAX_ATTEMPT} is the most", attempt.len());
            return Err(Refusal::new(Code::BadRequest, fault));
        }
        let poll = request.long_polling_timeout;
        Ok(Self { resource, topic, group, lease, filter, max_messages, attempt, poll })
    }
}

/// Waits for messages and leases them; `None`: there were none.
async fn receive(
    broker: &Broker,
    caller: Caller<'_>,
    ends: Option<Ends>,
    until: Instant,
    request: Request,
) -> Result<Option<Found>, Refusal> {
    let Asked {
        resource,
        topic: topic_name,
        group,
        lease: asked,
        filter,
        max_messages,
        attempt,
        poll,
    } = Asked::of(broker, request)?;
    // Looked for first: that there is no such topic is said before anything of the group.
    let entry = broker.known_topic(&topic_name, until).await?;
    if !entry.settings().access.read {
        return Err(BrokerError::Forbidden { what: "read" }.into());
    }
    broker.open_group(&group, until).await?;
    let is_known = clients::receives(broker, caller, &group, ends, asked.is_none());
    let (invisible, client) = match asked {
        Some(asked) => (asked, None),
        None if is_known => (RENEWED, Some(caller.id)),
        None => (NOT_RENEWED, None),
    };
    let poll = Poll::of(poll.as_ref(), until);
    let received = broker
        .receive_messages(ReceiveRequest {
            group: &group,
            topic: &topic_name,
            filter: &filter,
            max_messages,
            max_bytes: MAX_BYTES,
            invisible,
            client,
            holder: caller.id,
            wait: poll.wait,
            attempt: &attempt,
            deadline: until,
        })
        .await?;
    if received.messages.is_empty() {
        return poll.over(caller).map(|()| None);
    }
    let store_host = ends.map(|ends| ends.local.to_string()).unwrap_or_default();
    let delivery = Delivery { topic: resource, store_host, invisible: time::wire(invisible) };
    let is_bound = client.is_some();
    Ok(Some(Found { group, topic: topic_name, is_bound, delivery, received }))
}

/// How long a receive waits.
struct Poll {
    wait: Duration,
    /// The client does not say how long, and stops waiting sooner than any receive may end.
    is_too_short: bool,
}

impl Poll {
    /// The wait that a client asks for, or else what its deadline leaves; never beyond the deadline, which the broker
    /// keeps.
    fn of(asked: Option<&prost_types::Duration>, until: Instant) -> Self {
        let left = until.saturating_duration_since(Instant::now());
        let wait = match asked {
            Some(asked) => time::of(asked).unwrap_or_default(),
            None => left.saturating_sub(WAY),
        };
        let is_too_short = asked.is_none() && left < MIN_POLL;
        Self { wait: wait.clamp(MIN_POLL, MAX_POLL), is_too_short }
    }

    /// It has ended without a message.
    ///
    /// # Errors
    /// It could not last as long as a poll does.
    fn over(&self, caller: Caller<'_>) -> Result<(), Refusal> {
        if !self.is_too_short {
            return Ok(());
        }
        let code = match caller.version < KNOWS_POLLING_TIME {
            true => Code::BadRequest,
            false => Code::IllegalPollingTime,
        };
        let fault = "no message, and the deadline leaves less than 5 s to wait for one";
        Err(Refusal::new(code, fault))
    }
}

impl Found {
    /// Sends it all, and gives back what the client was not there for any more.
    async fn leave(self, broker: &Broker, out: &Out) {
        let Self { group, topic, is_bound, delivery, received } = self;
        let Received { messages, mut permit, .. } = received;
        let handles = messages.iter().map(|message| message.handle.clone()).collect();
        let mut left = Left { broker, group, topic, is_bound, handles, handed: 0 };
        let mut frames = BytesMut::new();
        put(&mut frames, Content::Status(status::ok()));
        let mut waiting = 0;
        for message in messages {
            match delivery.message(message) {
                Ok(message) => put(&mut frames, Content::Message(message)),
                // Its lease ends, and in the end it is a dead letter.
                Err(error) => tracing::error!(%error, "a message cannot be delivered"),
            }
            waiting += 1;
            if frames.len() >= PIECE {
                out.put([frames.split().freeze()], None).await;
                left.handed += std::mem::take(&mut waiting);
            }
        }
        put_end(&mut frames, broker);
        out.put([frames.freeze()], permit.take()).await;
        left.handed += waiting;
    }
}

/// Messages of which some may not have been handed over when the client goes away.
struct Left<'a> {
    broker: &'a Broker,
    group: String,
    topic: String,
    is_bound: bool,
    /// In the order in which they are handed over.
    handles: Vec<String>,
    handed: usize,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        let left = self.handles.get(self.handed..).filter(|left| !left.is_empty());
        // What was handed over may have been thrown away with the rest, by a client that lives on: then nobody would
        // get it for hours.
        let left = if self.is_bound { left.and(self.handles.get(..)) } else { left };
        if let Some(left) = left {
            self.broker.give_back(&self.group, &self.topic, left);
        }
    }
}

fn put(frames: &mut BytesMut, content: Content) {
    put_framed(frames, &ReceiveMessageResponse { content: Some(content) });
}

/// An answer without messages.
fn ended(status: Status, broker: &Broker) -> Bytes {
    let mut frames = BytesMut::new();
    put(&mut frames, Content::Status(status));
    put_end(&mut frames, broker);
    frames.freeze()
}

/// The last frame.
fn put_end(frames: &mut BytesMut, broker: &Broker) {
    put(frames, Content::DeliveryTimestamp(time::stamp(broker.now().get())));
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::task::{Context, Poll as Polled};

    use hyper::body::Frame;
    use prost::Message as _;

    use super::*;
    use crate::broker::stop_clock;
    use crate::broker::{BrokerConfig, MAX_CLIENTS, SendRequest};
    use crate::clock::SystemClock;
    use crate::file::disk::RealDisk;
    use crate::format::batch::{BatchBuilder, NewMeta};
    use crate::message::{FlushMode, Timestamp, TopicSettings, TopicType};
    use crate::proto::rocketmq as v2;
    use crate::store::StoreConfig;
    use crate::testing::{ManualClock, SimDisk};
    use crate::wire::Frames;

    /// A request that panics as soon as it is looked at.
    struct Panics;

    impl HttpBody for Panics {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Polled<Option<Result<Frame<Bytes>, Infallible>>> {
            panic!("on purpose")
        }
    }

    #[tokio::test]
    async fn a_panic_in_a_receive_is_a_status_in_its_answer_and_no_error_of_the_call() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let clock = Arc::new(SystemClock::new());
        let broker = Broker::open(Arc::new(RealDisk), clock, store, BrokerConfig::default());
        let broker = broker.unwrap().0;
        let request = http::Request::builder().header("x-mq-client-id", "a").body(Panics).unwrap();
        let mut body = answer(&broker, &Outgoing::new(), None, request).into_body();
        let mut frames = Frames::default();
        let trailers = loop {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            match frame.into_data() {
                Ok(data) => frames.push(data),
                Err(frame) => break frame.into_trailers().unwrap(),
            }
        };
        assert_eq!(trailers["grpc-status"], "0");
        let mut next = || frames.message::<ReceiveMessageResponse>(1 << 10).unwrap();
        let Some(Content::Status(status)) = next().unwrap().content else { panic!("no status") };
        assert_eq!(status.code(), Code::InternalServerError);
        assert_eq!(status.message, "the call failed in a way that is a defect");
        let last = next().unwrap().content;
        assert!(matches!(last, Some(Content::DeliveryTimestamp(_))), "{last:?}");
        assert_eq!(next().map(|more| more.encoded_len()), None);
        broker.close().unwrap();
    }

    #[test]
    fn of_a_request_nothing_is_kept_that_nobody_looks_at() {
        let resource = |name: &str| Resource { name: name.to_owned(), ..Resource::default() };
        let duration = |seconds| Some(prost_types::Duration { seconds, nanos: 7 });
        let filter = FilterExpression { r#type: 2, expression: "a = 1".to_owned() };
        let endpoints =
            v2::Endpoints { scheme: 1, addresses: vec![v2::Address::default(); 1 << 20] };
        let broker = v2::Broker { endpoints: Some(endpoints), ..v2::Broker::default() };
        let queue = v2::MessageQueue {
            topic: Some(resource("t")),
            id: 3,
            broker: Some(broker),
            accept_message_types: vec![1; 1 << 20],
            ..v2::MessageQueue::default()
        };
        let sent = v2::ReceiveMessageRequest {
            group: Some(resource("g")),
            message_queue: Some(queue),
            filter_expression: Some(filter.clone()),
            batch_size: 5,
            invisible_duration: duration(11),
            auto_renew: true,
            long_polling_timeout: duration(22),
            attempt_id: Some("try".to_owned()),
        };
        let sent = sent.encode_to_vec();
        assert!((3 << 20..MAX_REQUEST).contains(&sent.len()), "{}", sent.len());
        let request = Request::decode(&sent[..]).unwrap();
        let wanted = Request {
            group: Some(resource("g")),
            message_queue: Some(Queue { topic: Some(resource("t")) }),
            filter_expression: Some(filter),
            batch_size: 5,
            invisible_duration: duration(11),
            auto_renew: true,
            long_polling_timeout: duration(22),
            attempt_id: Some("try".to_owned()),
        };
        assert_eq!(request, wanted);
    }

    /// A push consumer is served whether there is room to know it or not. Nobody could tell when one that is not known
    /// is gone: what it has comes again after a minute, and not after hours.
    #[tokio::test(start_paused = true)]
    async fn what_is_leased_to_a_client_that_is_one_too_many_to_be_known_comes_again_after_a_minute()
     {
        let clock = Arc::new(ManualClock::new(Timestamp::new(1_000_000)));
        let (segment_size, flush) = (4 << 20, FlushMode::Async);
        let store = StoreConfig { segment_size, flush, ..StoreConfig::new("/data") };
        let disk = Arc::new(SimDisk::new());
        let broker = Broker::open(disk, clock.clone(), store, BrokerConfig::default()).unwrap().0;
        let soon = || Instant::now() + Duration::from_secs(30);
        let topic = TopicSettings::open(1, FlushMode::Async, TopicType::Normal);
        broker.create_topic("t", topic, soon()).await.unwrap();
        let asks = async |id| {
            let resource = |name: &str| Resource { name: name.to_owned(), ..Resource::default() };
            let request = Request {
                group: Some(resource("g")),
                message_queue: Some(Queue { topic: Some(resource("t")) }),
                batch_size: 1,
                auto_renew: true,
                ..Request::default()
            };
            let caller = Caller { id, language: "JAVA", version: "5.0.7" };
            receive(&broker, caller, None, soon(), request).await.unwrap()
        };
        // Of messages that are there, or about to be.
        let gets = async |id| {
            let _stopped = stop_clock();
            asks(id).await.unwrap()
        };
        let send = async || {
            let mut batch = BatchBuilder::new();
            batch.push(&NewMeta::default(), b"x");
            let (queue, batch) = (None, batch.finish());
            let request = SendRequest { topic: "t", queue, batch, session: None, deadline: soon() };
            broker.send(request).await.unwrap();
        };
        send().await;
        let known = gets("known").await;
        assert_eq!((known.is_bound, known.delivery.invisible), (true, time::wire(RENEWED)));
        for other in 1..MAX_CLIENTS {
            let caller = Caller { id: &other.to_string(), language: "", version: "" };
            assert!(clients::receives(&broker, caller, "g", None, true));
        }
        send().await;
        let unknown = gets("one too many").await;
        assert_eq!(
            (unknown.is_bound, unknown.delivery.invisible),
            (false, time::wire(NOT_RENEWED))
        );
        assert_eq!(broker.clients(), MAX_CLIENTS);
        let of = |found: &Found| {
            let message = &found.received.messages[0];
            (message.queue_offset.get(), message.delivery)
        };
        assert_eq!((of(&known), of(&unknown)), ((0, 1), (1, 1)));
        clock.advance(Duration::from_millis(59_999));
        assert!(broker.tend_clients() & broker.tend_due().await);
        assert!(asks("1").await.is_none());
        clock.advance(Duration::from_millis(1));
        assert_eq!(of(&gets("1").await), (1, 2));
        assert!(asks("2").await.is_none(), "what the known one has is its own");
        broker.close().unwrap();
    }

    fn wait(asked: Option<u64>, left: u64) -> (u64, bool) {
        let asked = asked.map(|seconds| time::wire(Duration::from_secs(seconds)));
        let poll = Poll::of(asked.as_ref(), Instant::now() + Duration::from_secs(left));
        (poll.wait.as_secs(), poll.is_too_short)
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_lasts_from_5_to_20_s_and_without_a_word_as_long_as_the_deadline_leaves() {
        // As Java and Python, the clients of Rust, one in a hurry, Go's simple consumers.
        assert_eq!(wait(Some(20), 23), (20, false));
        assert_eq!(wait(Some(40), 40), (20, false));
        assert_eq!(wait(Some(1), 4), (5, false));
        assert_eq!(wait(None, 13), (11, false));
        assert_eq!(wait(None, 60), (20, false));
        assert_eq!(wait(None, 5), (5, false));
        assert_eq!(wait(None, 2), (5, true));
    }

    #[test]
    fn a_poll_that_is_too_short_has_a_code_that_the_client_knows() {
        let code = |is_too_short, version| {
            let caller = Caller { id: "a", language: "GO", version };
            Poll { wait: MIN_POLL, is_too_short }.over(caller).map_err(|refusal| refusal.code)
        };
        assert_eq!(code(false, "5.0.0"), Ok(()));
        assert_eq!(code(true, "5.0.3"), Err(Code::IllegalPollingTime));
        assert_eq!(code(true, "5.2.1"), Err(Code::IllegalPollingTime));
        for old in ["", "1.0.8", "5.0.0"] {
            assert_eq!(code(true, old), Err(Code::BadRequest), "{old}");
        }
    }
}
