//! The native client: batches in, messages out, over one HTTP/2 connection.
//!
//! | call | what it does |
//! | --- | --- |
//! | [`Client::send`] | stores one batch as one record |
//! | [`Client::send_stream`] | a [`SendStream`]: batch after batch, acknowledged in order |
//! | [`Client::producer`] | a [`Producer`]: messages of many tasks, in batches, stored once |
//! | [`Client::pull`] | messages of one queue from an offset on, waiting for the first if asked to |
//! | [`Client::pull_stream`], [`Puller`] | queues of a topic, in turn, as they grow |
//! | [`Client::consumer`] | a [`Consumer`]: messages of a group one by one, and what becomes of them |
//! | [`Client::receive`], [`Client::ack`], [`Client::extend`] | the same, call by call |
//! | [`Client::query_all`] | a [`QueryStream`]: messages by key, id or place, page after page |
//! | [`Client::query`] | one page of messages by key, id or place |
//! | [`Client::create_topic`], [`Client::delete_topic`], [`Client::topics`], [`Client::describe_topic`] | topics |
//! | [`Client::update_topic`], [`Client::purge_topic`] | topics in use |
//! | [`Client::create_group`], [`Client::update_group`], [`Client::delete_group`], [`Client::groups`], [`Client::describe_group`] | consumer groups |
//! | [`Client::redrive`] | sends dead letters back to where they come from |
//! | [`Client::commit`], [`Client::committed`], [`Client::progress`], [`Client::reset`], [`Client::offsets_at`] | their offsets |
//! | [`Client::commit_by`], [`Client::offset_history`] | who moved a group |
//! | [`Client::status`] | what the broker says about itself |
//! | [`Client::clients`], [`Client::describe_client`] | who is connected over the protocol of RocketMQ |
//! | [`Client::open_session`], [`Client::sessions`], [`Client::describe_session`], [`Client::close_session`] | producer sessions |
//! | [`Client::verify_store`] | whether the broker's store is sound |
//!
//! [`Client::connect`] takes `HOST:PORT`, and `https://HOST:PORT` for TLS; [`Client::connect_trusting`] is for brokers
//! whose certificate nobody vouches for, such as one that a broker made for itself.
//!
//! A [`Client`] is a handle: clones share the connection, calls run side by side. When the connection breaks, the next
//! call makes a new one. Nothing is repeated here: [`ClientError::retry`] tells the caller whether a repetition can
//! help and whether it is safe. The exceptions are a [`Session`] and a [`Producer`], which send a batch again until
//! its outcome is known, a [`Puller`], and a [`Consumer`]. No task of its own but the connection's, and one for each
//! producer and each consumer.
//!
//! The broker sends whole records; messages below the wanted offset and messages whose tag does not match are dropped
//! here, one by one.

mod clients;
mod consumer;
mod error;
mod groups;
mod message;
mod offsets;
mod producer;
mod pull_stream;
mod puller;
mod query_stream;
mod raw;
mod receive;
mod send_stream;
mod session;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::Request;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

pub use self::clients::{ClientKind, ConnectedClient, FilterKind, Subscription};
pub use self::consumer::{Consumer, ConsumerConfig, Settler, Settling};
pub use self::error::{AnswerError, ClientError, OffsetRange, Reason, Refusal, Retry, Stored};
pub use self::groups::{
    Audience, DeadReason, Group, GroupDescription, GroupSettings, GroupTopic, Redrive, RedrivePage,
    Redriven, SettledMessage, WaitingAction, WaitingMessage, WaitingPage,
};
pub use self::message::{DeadLetter, Message, MessageRef};
use self::message::{Place, Taken, Unpacker};
pub use self::offsets::{
    ChangeKind, Expected, NewCommit, OffsetChange, Position, QueueProgress, Reset, ResetQueue, Run,
};
pub use self::producer::{
    Accept, Failure, FlushError, OnFailure, Partition, Producer, ProducerConfig, ProducerError,
    SendReceipt,
};
pub use self::pull_stream::{Part, PullStream, PullStreamOptions};
pub use self::puller::{OnGone, Puller, PullerConfig};
pub use self::query_stream::QueryStream;
pub use self::receive::{Filter, Hold, HoldFault, Leased, Receive};
pub use self::send_stream::SendStream;
pub use self::session::{PATIENCE, ProducerSession, Session};
pub use self::verify::{Finding, Verification, VerifyEvent, VerifySummary};
use crate::format::batch::TagFilter;
use crate::message::{
    Access, Epoch, FlushMode, Force, Keep, MessageId, PhysicalOffset, QueueId, QueueOffset,
    Retention, Timestamp, TopicId, TopicType,
};
use crate::proto;
use crate::proto::admin_client::AdminClient;
use crate::proto::broker_client::BrokerClient;
use crate::proto::query_messages_request as wire_query;

/// Bytes that may be under way on one stream: several of the largest answers.
const STREAM_WINDOW: u32 = 8 << 20;
/// How many times a stream's window the connection's is. A stream that nobody reads leaves room for the answers of
/// seven others. And HTTP/2 (h2) ends a connection on which frames below 256 bytes lie unread, as those of a queue of
/// single small messages, once what they lack of 256 bytes comes to half of the connection's window: with eight times,
/// frames of 52 bytes fill the stream's window first.
const WINDOWS: u32 = 8;
/// The largest window of HTTP/2.
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// Bytes of a frame that the broker may send: most batches lie whole in one, and need not be put together.
const MAX_FRAME: u32 = 256 << 10;
/// Silence after which the broker is asked whether it still lives, while a call is under way: a stream has no
/// deadline.
const PING_AFTER: Duration = Duration::from_secs(20);
/// How long it may take to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer: 8 MiB of batches, one whole record over it, and what surrounds them.
const MAX_ANSWER: usize = 17 << 20;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take, beside the time a pull was asked to wait.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How a certificate in PEM begins.
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// The longest a broker lets a pull wait.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A connection to one broker. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    server: Arc<str>,
    trust: Trust,
    channel: Channel,
    broker: BrokerClient<Channel>,
    admin: AdminClient<Channel>,
}

/// Whose word for it that the broker is the broker is taken.
#[derive(Clone, Debug)]
enum Trust {
    /// The address says it: nobody's without TLS, and with it that of those whom this machine trusts.
    Default,
    /// That of these certificates alone, in PEM: with TLS.
    Only(Arc<[u8]>),
}

/// Where a batch was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The queue that took it.
    pub queue: QueueId,
    /// Of the first message; the others follow without holes.
    pub first_queue_offset: QueueOffset,
    /// The id of the first message; the others count its index up.
    pub first_id: MessageId,
    /// On the store clock.
    pub store_time: Timestamp,
    /// Messages stored.
    pub count: u32,
    /// Whether an earlier send of the batch's producer session stored it.
    pub is_duplicate: bool,
}

/// What to pull.
#[derive(Clone, Debug)]
pub struct Pull<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// One of its queues.
    pub queue: QueueId,
    /// The first message wanted.
    pub offset: QueueOffset,
    /// At most so many messages, but at least one whole record. `None`: the broker's choice.
    pub max_messages: Option<u32>,
    /// At most so many bytes of batches, but at least one whole record. `None`: the broker's choice.
    pub max_bytes: Option<u32>,
    /// At the end of the queue, wait so long for a message; at most 30 s.
    pub wait: Duration,
    /// The tags that are let through, as a text for the broker: `*`, or tags joined by `||`.
    pub tags: &'a str,
    /// The same, parsed.
    pub filter: &'a TagFilter,
    /// The consumer group in whose name it is.
    pub group: Option<&'a str>,
    /// The epoch of the newest answer from the broker, if there was one: a pull then learns that a power cut took what
    /// was read of an async topic. See [`Reason::Truncated`].
    pub epoch: Option<Epoch>,
}

/// What a pull brought.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// In queue order. More than `max_messages` if one record holds more. Of compressed batches no more than come to
    /// 32 MiB together, or one.
    pub messages: Vec<Message>,
    /// Where to go on; moves past what was filtered out.
    pub next_offset: QueueOffset,
    /// What can be pulled from this queue now.
    pub range: OffsetRange,
    /// The broker's epoch.
    pub epoch: Epoch,
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub enum Selector<'a> {
    /// Messages of a topic that carry a key.
    Key {
        /// The topic's name.
        topic: &'a str,
        /// The whole key.
        key: &'a str,
    },
    /// Messages of a topic with an id that the producer gave.
    ProducerId {
        /// The topic's name.
        topic: &'a str,
        /// The whole id.
        id: &'a str,
    },
    /// The message with this id.
    MessageId(MessageId),
    /// The message at this place.
    Offset {
        /// The topic's name.
        topic: &'a str,
        /// One of its queues.
        queue: QueueId,
        /// The ordinal in it.
        offset: QueueOffset,
    },
}

/// In which order a query answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By descending place in the log.
    #[default]
    NewestFirst,
    /// By ascending place in the log.
    OldestFirst,
}

/// One page of a query.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// What to look for.
    pub selector: Selector<'a>,
    /// The earliest store time; inclusive.
    pub begin: Option<Timestamp>,
    /// The latest store time; inclusive.
    pub end: Option<Timestamp>,
    /// Which come first.
    pub order: Order,
    /// Messages in this page, at most 1 000.
    pub limit: u32,
    /// [`Found::next_page`] of the page before.
    pub page: String,
}

/// A page of an answer.
#[derive(Clone, Debug)]
pub struct Found {
    /// In the order asked for.
    pub messages: Vec<Message>,
    /// What to ask for to get the next page, if there may be one.
    pub next_page: Option<String>,
    /// Why messages may be missing, if they may.
    pub incomplete: Option<String>,
}

/// What is wanted of a topic. `None` in an update: as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct TopicSettings {
    /// 1 to 65 536. `None`: 4.
    pub queues: Option<u32>,
    /// `None`: the broker's default.
    pub flush: Option<FlushMode>,
    /// `None`: mixed.
    pub topic_type: Option<TopicType>,
    /// `None`: everything.
    pub access: Option<Access>,
    /// Milliseconds that messages are kept, 1 000 to 3 155 760 000 000. `None`: the broker's default.
    pub retention_time: Option<Keep>,
    /// Bytes that are kept, 1 MiB to 1 EiB. `None`: the broker's default.
    pub retention_bytes: Option<Keep>,
}

/// What to purge of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Everything that is stored by now.
    Topic,
    /// Of one queue.
    Queue {
        /// Which one.
        queue: QueueId,
        /// The messages below this offset; `None`: all that can be read by now.
        up_to: Option<QueueOffset>,
    },
}

/// On the wire: no limit of the retention.
const KEEP_ALL: u64 = u64::MAX;

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its incarnation: another one after a delete.
    pub id: TopicId,
    /// Its queues are numbered from 0 to this, exclusive.
    pub queues: u32,
    /// What an acknowledgement waits for.
    pub flush: FlushMode,
    /// What it takes.
    pub topic_type: TopicType,
    /// What clients may do with it.
    pub access: Access,
    /// How long its messages are kept.
    pub retention: Retention,
}

/// A topic and what its queues hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// The topic.
    pub topic: Topic,
    /// Its queues in order, each with what can be pulled from it.
    pub queues: Vec<(QueueId, OffsetRange)>,
}

/// What a broker says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Of the broker's program.
    pub version: String,
    /// Names the data directory's content for ever.
    pub store_id: String,
    /// Raised at every start.
    pub epoch: Epoch,
    /// The first byte that the store still has.
    pub min: PhysicalOffset,
    /// The end of what is written.
    pub appended: PhysicalOffset,
    /// The end of what queues and index know.
    pub dispatched: PhysicalOffset,
    /// The end of what is durable.
    pub flushed: PhysicalOffset,
    /// Topics.
    pub topics: u64,
    /// Queues of all topics.
    pub queues: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Those whose queue and index files are not written yet.
    pub unsealed_segments: u64,
    /// Bytes free in the file system.
    pub disk_free: u64,
    /// The flush mode of topics that do not say otherwise.
    pub flush_default: String,
    /// What the last start found and did.
    pub start_report: Vec<String>,
    /// Byte ranges of the log that cannot be read.
    pub damaged: Vec<std::ops::Range<PhysicalOffset>>,
    /// Free bytes below which sends are refused.
    pub disk_reserve: u64,
    /// Less is free now.
    pub disk_is_short: bool,
    /// Segments deleted since the start.
    pub deleted_segments: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Where the newest durable state image begins.
    pub newest_image: Option<PhysicalOffset>,
    /// State images taken since the start.
    pub images: u64,
    /// Their bytes.
    pub image_bytes: u64,
    /// Which topics keep sealed segments, most segments first.
    pub held: Vec<HeldBy>,
    /// Segments that work under way keeps from being deleted.
    pub pinned_segments: u64,
    /// When the last complete pass of the scrub since the start ended.
    pub scrubbed_at: Option<Timestamp>,
    /// How far the broker's machine's clock is behind its store clock: it was turned back, and times stand still.
    pub clock_behind: Duration,
}

/// How much of the log a topic keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBy {
    /// Its name; empty if the broker does not know it.
    pub topic: String,
    /// Its incarnation.
    pub id: TopicId,
    /// Sealed segments that stay for it.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Client {
    /// Connects to the broker at `server`: `HOST:PORT`, or `https://HOST:PORT` for TLS with the certificates that this
    /// machine trusts.
    ///
    /// # Errors
    /// `BadAddress` or `Unreachable`.
    pub async fn connect(server: &str) -> Result<Self, ClientError> {
        Self::connect_with(server, Trust::Default, STREAM_WINDOW).await
    }

    /// Connects over TLS to the broker at `server`, `HOST:PORT` or `https://HOST:PORT`, and trusts the certificates in
    /// `authorities` alone, in PEM: those of authorities, or the broker's own.
    ///
    /// # Errors
    /// `BadAddress`, also for `http://`; `NoCertificate`; `Unreachable`.
    pub async fn connect_trusting(server: &str, authorities: &[u8]) -> Result<Self, ClientError> {
        if !authorities.windows(PEM_CERTIFICATE.len()).any(|part| part == PEM_CERTIFICATE) {
            return Err(ClientError::NoCertificate);
        }
        let trust = Trust::Only(authorities.into());
        Self::connect_with(server, trust, STREAM_WINDOW).await
    }

    /// The same with another bound for the bytes that may be under way to this side on a stream.
    async fn connect_with(
        server: &str,
        trust: Trust,
        stream_window: u32,
    ) -> Result<Self, ClientError> {
        let bad = || ClientError::BadAddress { server: server.to_owned() };
        let unreachable = |source| ClientError::Unreachable {
            server: server.to_owned(),
            source: Box::new(source),
        };
        let (host, is_secure) = match (server.split_once("://"), &trust) {
            (None, Trust::Default) => (server, false),
            (Some(("http", host)), Trust::Default) => (host, false),
            (None, Trust::Only(_)) => (server, true),
            (Some(("https", host)), _) => (host, true),
            (Some(_), _) => return Err(bad()),
        };
        if !has_port(host) {
            return Err(bad());
        }
        let scheme = if is_secure { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}"))
            .map_err(|_| bad())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(stream_window.saturating_mul(WINDOWS).min(MAX_WINDOW))
            .max_frame_size(MAX_FRAME)
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT);
        if is_secure {
            let tls = ClientTlsConfig::new().timeout(CONNECT_TIMEOUT);
            let tls = match &trust {
                Trust::Default => tls.with_native_roots(),
                Trust::Only(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
            };
            endpoint = endpoint.tls_config(tls).map_err(unreachable)?;
        }
        let channel = endpoint.connect().await.map_err(unreachable)?;
        Ok(Self {
            server: server.into(),
            trust,
            channel: channel.clone(),
            broker: BrokerClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER)
                .max_encoding_message_size(MAX_ANSWER),
            admin: AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER),
        })
    }

    /// The address this client was connected to.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Stores `batch`, one encoded `Batch` of `format::batch`, as one record.
    ///
    /// OK means durable by the topic's flush mode. An unknown topic is created. Without a queue the message group
    /// decides, else the broker takes the next.
    ///
    /// # Errors
    /// [`ClientError::stored`] says whether the batch may be stored all the same.
    pub async fn send(
        &self,
        topic: &str,
        queue: Option<QueueId>,
        batch: Bytes,
    ) -> Result<Receipt, ClientError> {
        let request = proto::SendRequest {
            topic: topic.to_owned(),
            queue: queue.map(QueueId::get),
            batch,
            session: None,
        };
        let answer = self.broker.clone().send(within(request, CALL_TIMEOUT)).await;
        Ok(receipt(&self.answer(answer)?))
    }

    /// Reads messages of one queue.
    ///
    /// # Errors
    /// Refusals: `OffsetOutOfRange` with the range, `Damaged` with the next readable offset, `Truncated` with the
    /// first offset whose message is gone and the epoch, `UnknownTopic`, `BadQueue`, `Rebuilding`; in the name of a
    /// group
    /// `UnknownGroup` and `GroupDisabled`. [`ClientError::BadAnswer`] with [`AnswerError::Decompression`]: the batch at
    /// the offset asked for does not decompress to what its producer says.
    pub async fn pull(&self, pull: &Pull<'_>) -> Result<Pulled, ClientError> {
        let request = proto::PullRequest {
            topic: pull.topic.to_owned(),
            queue: pull.queue.get(),
            offset: pull.offset.get(),
            max_messages: pull.max_messages.unwrap_or(0),
            max_bytes: pull.max_bytes.unwrap_or(0),
            wait_ms: u32::try_from(pull.wait.as_millis()).unwrap_or(u32::MAX),
            tags: pull.tags.to_owned(),
            group: pull.group.unwrap_or_default().to_owned(),
            epoch: pull.epoch.map_or(0, Epoch::get),
        };
        let deadline = CALL_TIMEOUT + pull.wait.min(MAX_WAIT);
        let answer = self.broker.clone().pull(within(request, deadline)).await;
        let answer = self.answer(answer)?;
        let mut next_offset = QueueOffset::new(answer.next_offset);
        let mut unpacker = Unpacker::new(pull.offset, pull.filter);
        for (index, record) in answer.records.iter().enumerate() {
            let place = Place {
                topic: pull.topic,
                queue: pull.queue,
                epoch: Epoch::new(record.epoch),
                physical_offset: PhysicalOffset::new(record.physical_offset),
                first_queue_offset: QueueOffset::new(record.first_queue_offset),
                store_time: Timestamp::new(record.store_time_ms),
                dead_letter: record.dead_letter.as_ref(),
            };
            match unpacker.take(&place, &record.batch) {
                Ok(Taken::Yes) => {}
                // The next pull begins with it, and says so if it is not readable.
                Ok(Taken::No) | Err(_) if index > 0 => {
                    next_offset = place.first_queue_offset;
                    break;
                }
                Ok(Taken::No) => {}
                Err(source) => return Err(self.bad_answer(source)),
            }
        }
        Ok(Pulled {
            messages: unpacker.messages,
            next_offset,
            range: answer.range.map(OffsetRange::from).unwrap_or_default(),
            epoch: Epoch::new(answer.epoch),
        })
    }

    /// Finds one page of messages.
    ///
    /// # Errors
    /// Refusals: `UnknownTopic`, `MessageNotFound`, `BadToken`, `BadRequest`.
    pub async fn query(&self, query: &Query<'_>) -> Result<Found, ClientError> {
        let request = proto::QueryMessagesRequest {
            selector: Some(selector(query.selector)),
            begin_ms: query.begin.map(Timestamp::get),
            end_ms: query.end.map(Timestamp::get),
            order: match query.order {
                Order::NewestFirst => wire_query::Order::NewestFirst,
                Order::OldestFirst => wire_query::Order::OldestFirst,
            }
            .into(),
            limit: query.limit,
            page_token: query.page.clone(),
        };
        let answer = self.broker.clone().query_messages(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        let messages = answer
            .messages
            .into_iter()
            .map(message::found)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| self.bad_answer(source))?;
        Ok(Found {
            messages,
            next_page: Some(answer.next_page_token).filter(|token| !token.is_empty()),
            incomplete: (!answer.complete).then_some(answer.incomplete_reason),
        })
    }

    /// Creates a topic; it is there already with the same settings: OK too.
    ///
    /// # Errors
    /// Refusals: `TopicExists` with other settings, `BadName`, `BadRequest`, `TopicLimit`.
    pub async fn create_topic(
        &self,
        name: &str,
        settings: TopicSettings,
    ) -> Result<Topic, ClientError> {
        let config = config_to_wire(&settings);
        let request = proto::CreateTopicRequest { name: name.to_owned(), config: Some(config) };
        let answer = self.admin.clone().create_topic(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        self.topic(answer.topic)
    }

    /// Changes a topic, in force at once and durable. Without a change it answers what the topic is.
    ///
    /// # Errors
    /// Refusals: `UnknownTopic`, `BadRequest` (also for fewer queues), `TooLarge`, `TopicLimit`; without
    /// [`Force::Yes`]
    /// `NeedsForce` for what breaks the order of a FIFO topic.
    pub async fn update_topic(
        &self,
        name: &str,
        settings: TopicSettings,
        force: Force,
    ) -> Result<Topic, ClientError> {
        let (name, config) = (name.to_owned(), Some(config_to_wire(&settings)));
        let request = proto::UpdateTopicRequest { name, config, force: force == Force::Yes };
        let answer = self.admin.clone().update_topic(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        self.topic(answer.topic)
    }

    /// Makes messages of a topic unreadable, at once and for good. How many; `None`: they were too many to count.
    ///
    /// # Errors
    /// Refusals: `UnknownTopic`, `BadQueue`, `OffsetOutOfRange` with the range, beyond the end of the queue.
    pub async fn purge_topic(&self, name: &str, what: Purge) -> Result<Option<u64>, ClientError> {
        let (queue, up_to) = match what {
            Purge::Topic => (None, None),
            Purge::Queue { queue, up_to } => (Some(queue.get()), up_to.map(QueueOffset::get)),
        };
        let request = proto::PurgeTopicRequest { name: name.to_owned(), queue, up_to };
        let answer = self.admin.clone().purge_topic(within(request, CALL_TIMEOUT)).await;
        Ok(self.answer(answer)?.messages)
    }

    /// Deletes a topic, at once for sends, pulls and queries.
    ///
    /// # Errors
    /// Refusal: `UnknownTopic`.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let request = proto::DeleteTopicRequest { name: name.to_owned() };
        let answer = self.admin.clone().delete_topic(within(request, CALL_TIMEOUT)).await;
        self.answer(answer).map(|_| ())
    }

    /// One page of topics in the order of their names, and whether there are more after the last of them.
    ///
    /// # Errors
    /// As every call.
    pub async fn topics(&self, after: &str) -> Result<(Vec<Topic>, bool), ClientError> {
        let request = proto::ListTopicsRequest { after: after.to_owned(), limit: 0 };
        let answer = self.admin.clone().list_topics(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        let more = answer.more;
        let topics = answer
            .topics
            .into_iter()
            .map(|topic| self.topic(Some(topic)))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((topics, more))
    }

    /// A topic with all its queues.
    ///
    /// # Errors
    /// Refusal: `UnknownTopic`.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, ClientError> {
        let mut queues = Vec::new();
        loop {
            let request = proto::DescribeTopicRequest {
                name: name.to_owned(),
                first_queue: u32::try_from(queues.len()).unwrap_or(u32::MAX),
                limit: 0,
            };
            let answer = self.admin.clone().describe_topic(within(request, CALL_TIMEOUT)).await;
            let answer = self.answer(answer)?;
            let topic = self.topic(answer.topic)?;
            let page = answer.queues.len();
            queues.extend(answer.queues.into_iter().map(|queue| {
                let range = queue.range.map(OffsetRange::from).unwrap_or_default();
                (QueueId::new(queue.queue), range)
            }));
            if page == 0 || queues.len() as u64 >= u64::from(topic.queues) {
                return Ok(TopicDescription { topic, queues });
            }
        }
    }

    /// What the broker says about itself.
    ///
    /// # Errors
    /// As every call.
    pub async fn status(&self) -> Result<Status, ClientError> {
        let answer = self.admin.clone().status(within(proto::StatusRequest {}, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        let marks = answer.watermarks.unwrap_or_default();
        Ok(Status {
            version: answer.version,
            store_id: answer.store_id,
            epoch: Epoch::new(answer.epoch),
            min: PhysicalOffset::new(marks.min),
            appended: PhysicalOffset::new(marks.appended),
            dispatched: PhysicalOffset::new(marks.dispatched),
            flushed: PhysicalOffset::new(marks.flushed),
            topics: answer.topics,
            queues: answer.queues,
            segments: answer.segments,
            unsealed_segments: answer.unsealed_segments,
            disk_free: answer.disk_free,
            flush_default: answer.flush_default,
            start_report: answer.start_report,
            damaged: answer
                .damaged
                .iter()
                .map(|range| PhysicalOffset::new(range.begin)..PhysicalOffset::new(range.end))
                .collect(),
            disk_reserve: answer.disk_reserve,
            disk_is_short: answer.disk_is_short,
            deleted_segments: answer.deleted_segments,
            deleted_bytes: answer.deleted_bytes,
            newest_image: answer.newest_image.map(PhysicalOffset::new),
            images: answer.images,
            image_bytes: answer.image_bytes,
            held: answer
                .held
                .into_iter()
                .map(|by| HeldBy {
                    topic: by.topic,
                    id: TopicId::new(by.topic_id),
                    segments: by.segments,
                    bytes: by.bytes,
                })
                .collect(),
            pinned_segments: answer.pinned_segments,
            scrubbed_at: answer.scrub.and_then(|scrub| scrub.last_pass_ms).map(Timestamp::new),
            clock_behind: Duration::from_millis(answer.clock_behind_ms),
        })
    }

    fn answer<T>(
        &self,
        answer: Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, ClientError> {
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.ended(status)),
        }
    }

    fn ended(&self, status: tonic::Status) -> ClientError {
        ClientError::from_status(&self.server, status)
    }

    fn bad_answer(&self, source: AnswerError) -> ClientError {
        ClientError::BadAnswer { server: self.server.to_string(), source }
    }

    fn topic(&self, topic: Option<proto::Topic>) -> Result<Topic, ClientError> {
        let missing = |field| self.bad_answer(AnswerError::Missing { field });
        let topic = topic.ok_or_else(|| missing("topic"))?;
        let config = topic.config.ok_or_else(|| missing("config"))?;
        Ok(Topic {
            flush: match config.flush() {
                proto::FlushMode::Sync => FlushMode::Sync,
                proto::FlushMode::Async => FlushMode::Async,
                proto::FlushMode::Unspecified => return Err(missing("flush")),
            },
            topic_type: match config.r#type() {
                proto::TopicType::Normal => TopicType::Normal,
                proto::TopicType::Fifo => TopicType::Fifo,
                proto::TopicType::Delay => TopicType::Delay,
                proto::TopicType::Transaction => TopicType::Transaction,
                proto::TopicType::Mixed => TopicType::Mixed,
                proto::TopicType::Unspecified => return Err(missing("type")),
            },
            access: match config.access() {
                proto::Access::ReadWrite => Access { read: true, write: true },
                proto::Access::ReadOnly => Access { read: true, write: false },
                proto::Access::WriteOnly => Access { read: false, write: true },
                proto::Access::NoAccess => Access { read: false, write: false },
                proto::Access::Unspecified => return Err(missing("access")),
            },
            retention: Retention {
                time_ms: config.retention_ms.filter(|ms| *ms != KEEP_ALL),
                bytes: config.retention_bytes.filter(|bytes| *bytes != KEEP_ALL),
            },
            name: topic.name,
            id: TopicId::new(topic.id),
            queues: config.queues,
        })
    }
}

fn receipt(answer: &proto::SendResponse) -> Receipt {
    Receipt {
        queue: QueueId::new(answer.queue),
        first_queue_offset: QueueOffset::new(answer.first_queue_offset),
        first_id: MessageId {
            epoch: Epoch::new(answer.epoch),
            offset: PhysicalOffset::new(answer.physical_offset),
            index: 0,
        },
        store_time: Timestamp::new(answer.store_time_ms),
        count: answer.count,
        is_duplicate: answer.duplicate,
    }
}

/// A request with its deadline, which travels with it.
fn within<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn has_port(server: &str) -> bool {
    server
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn selector(selector: Selector<'_>) -> wire_query::Selector {
    match selector {
        Selector::Key { topic, key } => wire_query::Selector::Key(wire_query::ByKey {
            topic: topic.to_owned(),
            key: key.to_owned(),
        }),
        Selector::ProducerId { topic, id } => {
            wire_query::Selector::ProducerId(wire_query::ByProducerId {
                topic: topic.to_owned(),
                id: id.to_owned(),
            })
        }
        Selector::MessageId(id) => wire_query::Selector::MessageId(id.to_string()),
        Selector::Offset { topic, queue, offset } => {
            wire_query::Selector::Offset(wire_query::ByOffset {
                topic: topic.to_owned(),
                queue: queue.get(),
                offset: offset.get(),
            })
        }
    }
}

fn config_to_wire(settings: &TopicSettings) -> proto::TopicConfig {
    let keep = |keep: Keep| keep.limit().unwrap_or(KEEP_ALL);
    proto::TopicConfig {
        queues: settings.queues.unwrap_or(0),
        flush: settings.flush.map_or(proto::FlushMode::Unspecified, flush_to_wire).into(),
        r#type: settings.topic_type.map_or(proto::TopicType::Unspecified, type_to_wire).into(),
        access: settings.access.map_or(proto::Access::Unspecified, access_to_wire).into(),
        retention_ms: settings.retention_time.map(keep),
        retention_bytes: settings.retention_bytes.map(keep),
    }
}

fn access_to_wire(access: Access) -> proto::Access {
    match access {
        Access { read: true, write: true } => proto::Access::ReadWrite,
        Access { read: true, write: false } => proto::Access::ReadOnly,
        Access { read: false, write: true } => proto::Access::WriteOnly,
        Access { read: false, write: false } => proto::Access::NoAccess,
    }
}

fn flush_to_wire(flush: FlushMode) -> proto::FlushMode {
    match flush {
        FlushMode::Sync => proto::FlushMode::Sync,
        FlushMode::Async => proto::FlushMode::Async,
    }
}

fn type_to_wire(topic_type: TopicType) -> proto::TopicType {
    match topic_type {
        TopicType::Normal => proto::TopicType::Normal,
        TopicType::Fifo => proto::TopicType::Fifo,
        TopicType::Delay => proto::TopicType::Delay,
        TopicType::Transaction => proto::TopicType::Transaction,
        TopicType::Mixed => proto::TopicType::Mixed,
    }
}
