//! Telemetry: a stream in both directions that stays open as long as its client lives.
//!
//! | the client sends | the broker answers |
//! | --- | --- |
//! | nothing yet | the headers of the answer, for which some clients wait before they send |
//! | settings | the settings that hold, with `OK`, each time; beside the code the text says where the group uses other filters |
//! | settings with neither topics nor subscriptions, or with illegal ones | the stream ends, INVALID_ARGUMENT |
//! | anything else | nothing |
//! | the end of its half | the end of the stream |
//! | what shows a defect | the stream ends, INTERNAL |
//!
//! A filter that is none of the group's is no reason for another code, nor for the end of the stream, even where its
//! receives are refused: some clients drop settings without `OK`, or do not come back, and the group may use this
//! filter soon. The receives say it with a code of their own.
//!
//! Unasked the settings come again when the client's group changes, or a topic that it has named. The broker ends a
//! stream when it stops and never before: some clients do not come back.
//!
//! | bound | value | when it is reached |
//! | --- | --- | --- |
//! | a message | [`MAX_COMMAND`] | the stream ends |
//! | topics or subscriptions of a client | [`MAX_TOPICS`] | the stream ends |
//! | settings of all streams that are longer than [`FREE`] | those of all streams' names | the stream ends |
//! | answers under way | one | nothing more is received until it is taken |

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body as HttpBody;
use prost::Message as _;
use tokio::time::{Instant, sleep_until};
use tonic::body::Body;
use tonic::codegen::{StdError, http};

use super::clients::{self, kind};
use super::status::{self, Refusal};
use super::{Caller, convert, cut, settings};
use crate::broker::{
    Broker, ClientKind, ClientStream, FilterKind, Introduction, Permit, Subscription as Subscribed,
};
use crate::filter::Language;
use crate::grpc::outgoing::Outgoing;
use crate::grpc::raw::{self, Last, Messages, Out};
use crate::grpc::serve::Ends;
use crate::message::GroupSettings;
use crate::proto::rocketmq::settings::PubSub;
use crate::proto::rocketmq::telemetry_command::Command;
use crate::proto::rocketmq::{Code, Settings, SubscriptionEntry, TelemetryCommand};
use crate::wire::framed;

/// Bytes of a message.
const MAX_COMMAND: usize = 256 << 10;

/// Topics that a producer, subscriptions that a consumer may name.
const MAX_TOPICS: usize = 1_024;

/// Bytes of settings that nobody counts.
const FREE: usize = 4 << 10;

/// What a client's properties may be: the table of the protocol's documents.
const MAX_PROPERTIES: usize = 32;
const MAX_PROPERTY_KEY: usize = 64;
const MAX_PROPERTY_VALUE: usize = 256;
const MAX_PROPERTIES_LEN: usize = 4 << 10;

/// How long after its first settings a client of Node.js is told them again. It may miss the first ones while it still
/// looks for its topics, and does not ask again for minutes.
const AGAIN: Duration = Duration::from_secs(1);

/// How clients of Node.js and of C++ call their language.
const NODE: &str = "HTTP";
const CPP: &str = "CPP";

/// Bytes of what it is told of filters, about; at least one of them is told whole.
const MAX_NOTICE: usize = 4 << 10;

/// How long a client waits for its answer while its group gets places in the topics that it subscribes to: those that
/// are left get them with the first receive.
const SUBSCRIBE: Duration = Duration::from_secs(1);

/// How long the look at a group may take.
const LOOK: Duration = Duration::from_secs(10);

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
    let (parts, body) = request.into_parts();
    let messages = Messages::new(body, Arc::clone(&broker), MAX_COMMAND);
    // As with every refusal that this stream ends with.
    let panicked = || Last { message: Bytes::new(), ended: Err(status::defect_ends_stream()) };
    raw::answer_or(outgoing.clone(), panicked, move |out| async move {
        let caller = match Caller::of(&parts.headers) {
            Ok(caller) => caller,
            Err(refusal) => {
                let status = Some(refusal.tell(&broker));
                out.put([framed(&TelemetryCommand { status, command: None })], None).await;
                return Ok(());
            }
        };
        let stream = broker.open_client_stream(caller.id);
        let session = Session { broker: &broker, caller, ends, stream, out };
        session.run(messages).await
    })
}

/// One stream.
struct Session<'a> {
    broker: &'a Broker,
    caller: Caller<'a>,
    ends: Option<Ends>,
    stream: ClientStream,
    out: Out,
}

/// What the client has told last.
struct Told {
    own: Settings,
    group: Option<String>,
    /// As it was when the client last heard of it.
    shown: Option<Arc<GroupSettings>>,
    _bytes: Option<Permit>,
}

impl Session<'_> {
    async fn run<B>(self, mut messages: Messages<B>) -> Result<(), tonic::Status>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<StdError>,
    {
        let mut drained = pin!(self.broker.drained());
        let mut told: Option<Told> = None;
        let mut again: Option<Instant> = None;
        loop {
            let at = again.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                () = &mut drained => return Ok(()),
                command = messages.next::<TelemetryCommand>() => {
                    let Some(command) = command? else { return Ok(()) };
                    // Answers to commands: nobody waits for one yet.
                    let Some(Command::Settings(own)) = command.command else { continue };
                    let is_first = told.is_none();
                    match self.hear(own).await {
                        Ok(heard) => told = Some(heard),
                        Err(refusal) => return Err(refusal.end_stream(self.broker)),
                    }
                    if is_first && self.caller.language == NODE {
                        again = Some(Instant::now() + AGAIN);
                    }
                }
                () = self.stream.changed() => self.tell_change(&mut told).await?,
                () = sleep_until(at), if again.is_some() => {
                    again = None;
                    self.tell(&mut told, false).await?;
                }
            }
        }
    }

    /// Takes what the client says of itself, and answers it.
    async fn hear(&self, own: Settings) -> Result<Told, Refusal> {
        let introduction = introduction(&own, self.caller)?;
        let group = introduction.group.clone();
        let named = introduction.subscriptions.iter().map(|one| one.topic.clone());
        let topics: Vec<_> = named.collect();
        let len = own.encoded_len();
        let bytes = match len {
            0..=FREE => None,
            _ => Some(self.broker.keep_names(u64::try_from(len).unwrap_or(u64::MAX))?),
        };
        let peer = self.ends.map(|ends| ends.peer);
        // Before the look at the group: what changes from now on is told. One client too many is served all the same.
        let _is_known =
            self.broker.introduce_client(self.caller.id, introduction, peer, Some(&self.stream));
        let deadline = Instant::now() + SUBSCRIBE;
        for topic in &topics {
            if let Some(group) = &group
                && Instant::now() < deadline
            {
                clients::subscribes(self.broker, group, topic, deadline).await;
            }
        }
        let mut told = Told { own, group, shown: None, _bytes: bytes };
        self.answer(&mut told).await?;
        Ok(told)
    }

    /// Tells the client how to behave.
    async fn answer(&self, told: &mut Told) -> Result<(), Refusal> {
        let group = self.group(told).await?;
        let settings = settings::answer(&told.own, &group);
        told.shown = Some(group);
        let status = Some(status::ok_but(&self.other_filters(told)));
        let command = Some(Command::Settings(settings));
        self.out.put([framed(&TelemetryCommand { status, command })], None).await;
        Ok(())
    }

    /// What there is to say of filters that others of the group do not use.
    fn other_filters(&self, told: &Told) -> Vec<String> {
        let (Some(group), Some(PubSub::Subscription(subscription))) =
            (&told.group, &told.own.pub_sub)
        else {
            return Vec::new();
        };
        let (mut notices, mut len) = (Vec::new(), 0);
        for entry in &subscription.subscriptions {
            // Both were looked at when the settings came.
            let Ok(topic) = convert::topic(entry.topic.as_ref()) else { continue };
            let filter = convert::expression(self.broker, entry.expression.as_ref());
            let Ok(filter) = filter else { continue };
            let Some(other) = self.broker.other_filter(group, topic, &filter) else { continue };
            if len >= MAX_NOTICE {
                notices.push("and of other topics".to_owned());
                break;
            }
            let what = match other.is_refused {
                true => "receives are refused:",
                false => "members want different messages:",
            };
            let notice =
                format!("{what} of topic {topic} the group uses the filter {}", other.expected);
            len += notice.len();
            notices.push(notice);
        }
        notices
    }

    async fn tell_change(&self, told: &mut Option<Told>) -> Result<(), tonic::Status> {
        // What a client in C++ is told twice it keeps twice.
        self.tell(told, self.caller.language == CPP).await
    }

    /// Tells the client again, with `if_new` only what it has not heard yet.
    async fn tell(&self, told: &mut Option<Told>, if_new: bool) -> Result<(), tonic::Status> {
        let Some(told) = told else { return Ok(()) };
        let told_again = async {
            if if_new && told.shown.as_ref() == Some(&self.group(told).await?) {
                return Ok(());
            }
            self.answer(told).await
        };
        match told_again.await {
            Ok(()) => Ok(()),
            Err(refusal) => Err(refusal.end_stream(self.broker)),
        }
    }

    async fn group(&self, told: &Told) -> Result<Arc<GroupSettings>, Refusal> {
        let Some(group) = &told.group else { return Ok(Arc::default()) };
        let known = self.broker.group_settings(group, Instant::now() + LOOK).await?;
        Ok(known.unwrap_or_default())
    }
}

/// What a client says of itself.
///
/// # Errors
/// It says nothing that makes sense.
fn introduction(own: &Settings, caller: Caller<'_>) -> Result<Introduction, Refusal> {
    check_properties(own)?;
    let agent = own.user_agent.as_ref();
    let hostname = agent.map_or("", |agent| cut(&agent.hostname)).to_owned();
    let nobody = Introduction {
        kind: ClientKind::Producer,
        language: caller.language.to_owned(),
        version: caller.version.to_owned(),
        hostname,
        group: None,
        topics: Vec::new(),
        subscriptions: Vec::new(),
    };
    match &own.pub_sub {
        Some(PubSub::Publishing(publishing)) => {
            check_count(publishing.topics.len())?;
            let topics = publishing.topics.iter().map(|topic| convert::topic(Some(topic)));
            let topics = topics.map(|topic| topic.map(str::to_owned)).collect::<Result<_, _>>()?;
            Ok(Introduction { topics, ..nobody })
        }
        Some(PubSub::Subscription(subscription)) => {
            let kind = kind(own.client_type()).filter(|kind| *kind != ClientKind::Producer);
            let Some(kind) = kind else {
                let fault = format!("{} has no subscriptions", own.client_type().as_str_name());
                return Err(Refusal::new(Code::UnrecognizedClientType, fault));
            };
            let group = Some(convert::group(subscription.group.as_ref())?.to_owned());
            check_count(subscription.subscriptions.len())?;
            let subscriptions = subscription.subscriptions.iter().map(subscribed);
            let subscriptions = subscriptions.collect::<Result<_, _>>()?;
            Ok(Introduction { kind, group, subscriptions, ..nobody })
        }
        None => {
            let fault = "settings are of a producer, with its topics, or of a consumer";
            Err(Refusal::new(Code::BadRequest, fault))
        }
    }
}

fn subscribed(entry: &SubscriptionEntry) -> Result<Subscribed, Refusal> {
    let topic = convert::topic(entry.topic.as_ref())?.to_owned();
    let (language, expression) = convert::filter(entry.expression.as_ref())?;
    let kind = match language {
        Language::Tags => FilterKind::Tags,
        Language::Sql => FilterKind::Sql,
    };
    Ok(Subscribed { topic, kind, expression: expression.to_owned() })
}

fn check_count(topics: usize) -> Result<(), Refusal> {
    if topics > MAX_TOPICS {
        let fault = format!("{topics} topics exceed the limit of {MAX_TOPICS} of a client");
        return Err(Refusal::new(Code::BadRequest, fault));
    }
    Ok(())
}

fn check_properties(own: &Settings) -> Result<(), Refusal> {
    let is_legal = |(key, value): (&String, &String)| {
        let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        key.starts_with(|first: char| first.is_ascii_alphabetic())
            && key.len() <= MAX_PROPERTY_KEY
            && key.bytes().all(part)
            && !key.starts_with("rocketmq.")
            && value.len() <= MAX_PROPERTY_VALUE
    };
    let properties = &own.client_properties;
    let len: usize = properties.iter().map(|(key, value)| key.len() + value.len()).sum();
    if properties.len() > MAX_PROPERTIES
        || len > MAX_PROPERTIES_LEN
        || !properties.iter().all(is_legal)
    {
        let fault = "a client has 32 properties at most, with short keys of their own";
        return Err(Refusal::new(Code::InvalidClientProperties, fault));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;
    use crate::broker::BrokerConfig;
    use crate::clock::SystemClock;
    use crate::file::disk::RealDisk;
    use crate::proto::rocketmq::Publishing;
    use crate::store::StoreConfig;
    use crate::wire::Frames;

    /// Frames that are all there, and of nothing more for ever.
    struct Silent(VecDeque<Bytes>);

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_on_which_nobody_says_anything_stays_open_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let clock = Arc::new(SystemClock::new());
        let broker = Broker::open(Arc::new(RealDisk), clock, store, BrokerConfig::default());
        let broker = broker.unwrap().0;
        let publishing = Publishing::default();
        let own = Settings { pub_sub: Some(PubSub::Publishing(publishing)), ..Settings::default() };
        let command = TelemetryCommand { status: None, command: Some(Command::Settings(own)) };
        let request = http::Request::builder().header("x-mq-client-id", "a");
        let request = request.body(Silent([framed(&command)].into())).unwrap();
        let mut body = answer(&broker, &Outgoing::new(), None, request).into_body();
        let mut next = async || {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            let mut frames = Frames::default();
            frames.push(frame.into_data().expect("the stream has ended"));
            frames.message::<TelemetryCommand>(MAX_COMMAND).unwrap().unwrap().command
        };
        let first = next().await;
        assert!(matches!(first, Some(Command::Settings(_))), "{first:?}");
        let day = Duration::from_secs(24 * 60 * 60);
        assert!(tokio::time::timeout(day, next()).await.is_err());
        assert_eq!(broker.describe_client("a").unwrap().streams, 1, "nobody has forgotten it");
        drop(body);
        assert_eq!(broker.describe_client("a").unwrap().streams, 0);
        broker.close().unwrap();
    }

    /// A request that panics as soon as it is looked at.
    struct Panics;

    impl HttpBody for Panics {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            panic!("on purpose")
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_stream_as_a_refusal_does_and_leaves_no_stream_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let clock = Arc::new(SystemClock::new());
        let broker = Broker::open(Arc::new(RealDisk), clock, store, BrokerConfig::default());
        let broker = broker.unwrap().0;
        let request = http::Request::builder().header("x-mq-client-id", "a").body(Panics).unwrap();
        let mut body = answer(&broker, &Outgoing::new(), None, request).into_body();
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        let trailers = frame.into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "13");
        let message = trailers["grpc-message"].to_str().unwrap();
        assert!(message.starts_with("50001"), "{message}");
        assert!(!broker.describe_client("a").is_ok_and(|client| client.streams > 0));
        broker.close().unwrap();
    }
}
