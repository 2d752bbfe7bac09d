//! A producer: messages in, batches out, over one stream at a time.
//!
//! | stage | runs in | does |
//! | --- | --- | --- |
//! | 1, `accepted` | every task that sends | puts its message into the open batch of its place, under a short lock |
//! | 2, `sender` | one task of the producer | takes full and lingered batches, keeps them in order, sends, repeats |
//!
//! | what happens | what becomes of the messages |
//! | --- | --- |
//! | the connection breaks, the broker stops or restarts, is full or too busy | sent again in order, under the same numbers of the producer's session: stored once |
//! | the broker refuses a batch for good | those of the batch fail with [`ProducerError::NotStored`]; what came behind it is sent again |
//! | a batch has no answer within [`ProducerConfig::patience`] | those of the batch fail, with [`ProducerError::Unsettled`] if it may be stored |
//! | another producer opens the session | all fail, and so does every later [`Producer::send`] |
//!
//! Batches of one place (a queue, a message group, or "any queue") are stored in the order in which their messages were
//! taken. A batch that fails leaves a hole; what was behind it is stored all the same.
//!
//! A producer without a name takes a session of its own with a name that nobody has: within its life nothing is stored
//! twice. With [`ProducerConfig::session`] the name outlives it: who opens it next fences the producer before, so that
//! none of its batches can come late. What a producer had accepted and not had receipts for when its process died is
//! not sent by anybody.

mod accepted;
mod sender;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SetOnce, watch};
use tokio::time::{Instant, sleep};

use self::accepted::{Accepted, Limits, Place, cost};
use self::sender::Sender;
use super::send_stream::SendStream;
use super::{CALL_TIMEOUT, Client, ClientError, PATIENCE, Receipt, Refusal, Retry, Stored, within};
use crate::format::batch::{
    BatchBuilder, BatchError, Codec, Compressor, NewMeta, check, group_hash, limits,
};
use crate::message::{MessageId, QueueId, QueueOffset, Timestamp};
use crate::proto;

/// How a producer gathers, sends and repeats.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Bytes of a batch, at most 8 MiB: one that is as large is closed. Default 128 KiB: the cost of a batch is small
    /// beside its bytes from there on.
    pub batch_bytes: usize,
    /// Messages of a batch, at most 10 000: one that has as many is closed. Default 1 000.
    pub batch_messages: usize,
    /// How long an open batch waits for more messages, at most a day. Default 5 ms: fuller batches for a wait that few
    /// notice. With 0 a message waits only while all of `in_flight` are under way. While somebody waits for memory no
    /// batch waits for messages.
    pub linger: Duration,
    /// Batches without an answer, 1 to 64. Default 64: as many as a session remembers.
    pub in_flight: usize,
    /// Bytes of messages that are accepted and have no outcome, 1 MiB to less than 4 GiB; who sends more waits.
    /// Default 32 MiB.
    /// What an open batch takes beside its messages, up to 1 KB, is not counted: with a tiny message for each of very
    /// many groups it is ten times as much.
    pub memory: usize,
    /// How the bodies of a batch are compressed where that makes them smaller, by the producer's task. Default
    /// [`Codec::None`]: what it saves in network and disk it costs in time.
    pub compression: Codec,
    /// The pause before the first repetition where the broker names none; it doubles up to 2 s. 1 ms to a
    /// day, default 100 ms.
    pub back_off: Duration,
    /// From when a batch is closed until its messages fail for want of an answer, repetitions included; 1 ms to a day.
    /// Default 30 s.
    pub patience: Duration,
    /// Which queue takes a message without a message group. Default [`Partition::RoundRobin`].
    pub partition: Partition,
    /// The name of the producer session. Default none: the producer takes one of its own, and gives it back when it is
    /// closed or its last clone is dropped. Where it cannot, as in a process that ends without [`Producer::close`], the
    /// broker keeps the session for 7 days, and it has room for 16 384: a program that is started again and again
    /// closes its producer, or names the session.
    pub session: Option<String>,
    /// Who hears of batches that failed. Default nobody.
    pub on_failure: Option<OnFailure>,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            batch_bytes: 128 << 10,
            batch_messages: 1_000,
            linger: Duration::from_millis(5),
            in_flight: SendStream::IN_FLIGHT,
            memory: 32 << 20,
            compression: Codec::None,
            back_off: Duration::from_millis(100),
            patience: PATIENCE,
            partition: Partition::default(),
            session: None,
            on_failure: None,
        }
    }
}

/// Which queue takes a message. One with a message group goes where the broker sends its group, whatever is said here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partition {
    /// The broker's choice, batch by batch.
    #[default]
    RoundRobin,
    /// The first key of a message names its queue: the low 32 bits of the key's XXH3, modulo the queues that the topic
    /// had when this producer first sent to it by key. Messages of one key are in one queue, in order. A message
    /// without keys goes round robin. The topic must be there.
    ByKey,
}

/// Called with every batch that failed, by the producer's task: it should be short, and must not block. One that panics
/// is not called again; the producer goes on.
#[derive(Clone)]
pub struct OnFailure(Arc<dyn Fn(&Failure<'_>) + Send + Sync>);

impl OnFailure {
    /// Calls `call`.
    pub fn new(call: impl Fn(&Failure<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(call))
    }
}

impl fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFailure")
    }
}

/// A batch whose messages failed.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// Where it was to go.
    pub topic: &'a str,
    /// How many messages.
    pub messages: usize,
    /// Why.
    pub error: &'a ProducerError,
}

/// Why messages are not known to be stored. The error of a batch is shared by its messages.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProducerError {
    /// A number of the configuration is out of its range, or its codec is not built in. There is no producer.
    #[error("the option `{option}` of a producer is out of its range or not built in")]
    BadConfig {
        /// Which one.
        option: &'static str,
    },
    /// The message breaks a rule of messages. It was not accepted.
    #[error("the message cannot be sent")]
    BadMessage(#[from] BatchError),
    /// The producer was closed, or its task has ended. The message was not stored.
    #[error("the producer is closed")]
    Closed,
    /// The broker said no, or could not be asked. Nothing was stored.
    #[error("not stored")]
    NotStored(#[source] Arc<ClientError>),
    /// There was no time to send it. Nothing was stored.
    #[error("not sent within {}", humane(*patience))]
    Expired {
        /// [`ProducerConfig::patience`].
        patience: Duration,
        /// What the last attempt to send anything ended with, if nothing was stored since.
        #[source]
        source: Option<Arc<ClientError>>,
    },
    /// It was sent, and what became of it is not known.
    #[error("it may or may not be stored")]
    Unsettled {
        /// What its last attempt ended with, if nothing was stored since.
        #[source]
        source: Option<Arc<ClientError>>,
    },
}

fn humane(time: Duration) -> String {
    format!("{time:?}")
}

impl ProducerError {
    /// Whether the message may be stored.
    pub fn stored(&self) -> Stored {
        match self {
            Self::Unsettled { .. } => Stored::Unknown,
            _ => Stored::No,
        }
    }

    /// Whether sending the message again can help. [`Retry::Unsafe`]: it may then be there twice.
    pub fn retry(&self) -> Retry {
        match self {
            Self::BadConfig { .. } | Self::BadMessage(_) | Self::Closed => Retry::Never,
            Self::NotStored(error) => match error.retry() {
                // What was asked has no answer, and nothing was sent.
                Retry::Unsafe => Retry::After(Refusal::RETRY_AFTER),
                retry => retry,
            },
            Self::Expired { .. } => Retry::After(Duration::ZERO),
            Self::Unsettled { .. } => Retry::Unsafe,
        }
    }
}

/// What was lost since the flush before.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{messages} messages failed")]
pub struct FlushError {
    /// How many messages failed.
    pub messages: u64,
    /// Why the first of them did.
    #[source]
    pub first: ProducerError,
}

/// Where a message was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendReceipt {
    /// Names it for ever.
    pub id: MessageId,
    /// The queue that took it.
    pub queue: QueueId,
    /// Its ordinal in that queue.
    pub queue_offset: QueueOffset,
    /// On the store clock.
    pub store_time: Timestamp,
}

/// A message that was accepted. Whoever does not ask what became of it can drop this.
#[derive(Clone, Debug)]
pub struct Accept {
    batch: Arc<Outcome>,
    index: u16,
}

/// What became of a batch: one for all of its messages.
type Outcome = SetOnce<Result<Receipt, ProducerError>>;

impl Accept {
    /// Waits until the message is stored, durable by the topic's flush mode, or has failed.
    ///
    /// # Errors
    /// See [`ProducerError`].
    pub async fn stored(&self) -> Result<SendReceipt, ProducerError> {
        match self.batch.wait().await {
            Ok(receipt) => Ok(SendReceipt {
                id: MessageId { index: self.index, ..receipt.first_id },
                queue: receipt.queue,
                queue_offset: receipt.first_queue_offset.plus(self.index.into()),
                store_time: receipt.store_time,
            }),
            Err(error) => Err(error.clone()),
        }
    }
}

/// Sends messages of many tasks. Cheap to clone; clones are one producer.
///
/// When the last clone is dropped, what was accepted is still sent, by a task that nobody waits for: a runtime that
/// ends before drops it. [`Producer::close`] waits.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let data = format!("server.data={}", dir.path().join("data").display());
/// # let sets = ["server.listen=127.0.0.1:0", "server.http=127.0.0.1:0", "store.segment_size=64MiB", &data];
/// # let config = mainstem::config::Config::load(None, &sets.map(str::to_owned))?;
/// # let server = mainstem::server::spawn(config).await?;
/// # let server_address = server.listening().grpc.to_string();
/// use mainstem::client::{Client, Partition, ProducerConfig, TopicSettings};
/// use mainstem::format::batch::NewMeta;
///
/// let client = Client::connect(&server_address).await?;
/// client.create_topic("orders", TopicSettings::default()).await?;
/// let config = ProducerConfig { partition: Partition::ByKey, ..ProducerConfig::default() };
/// let producer = client.producer(config).await?;
///
/// // Accepted: it is on its way. Stored: it is in the log.
/// let meta = NewMeta { keys: vec!["customer-7"], tag: Some("paid"), ..NewMeta::default() };
/// let accepted = producer.send("orders", &meta, b"one book").await?;
/// let receipt = accepted.stored().await?;
/// println!("{} is message {} of queue {}", receipt.id, receipt.queue_offset, receipt.queue);
///
/// // Many, without asking for each: what failed is told by the flush.
/// for n in 0..10_000 {
///     producer.send("orders", &meta, format!("pen {n}").as_bytes()).await?;
/// }
/// producer.flush().await?;
/// producer.close().await?;
/// # server.stop().await?;
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Producer {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
}

/// Tells the producer's task that nobody can send any more.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close(ProducerError::Closed);
    }
}

/// Between those who send and the task.
#[derive(Debug)]
struct Shared {
    client: Client,
    partition: Partition,
    memory: u32,
    back_off: Duration,
    patience: Duration,
    /// Guards what was accepted; never held over an await, nor over anything but memory.
    accepted: Mutex<Accepted>,
    /// Queues of topics that messages were sent to by key; at most [`TOPICS`]. Short lock.
    queues: Mutex<HashMap<Box<str>, u32>>,
    /// Bytes that may still be accepted; closed with the producer.
    room: Semaphore,
    /// Tells the task of a batch to send, or of the first that lingers.
    news: Notify,
    /// Batches that have an outcome: follows [`Accepted::closed_count`], in its order.
    settled: watch::Receiver<u64>,
}

/// What a configuration may say of a time.
const MOST_TIME: Duration = Duration::from_secs(24 * 3_600);
/// The longest pause before a repetition, where the broker names none.
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// Topics whose number of queues is remembered.
const TOPICS: usize = 1 << 16;

impl Client {
    /// Makes a producer, and opens its session.
    ///
    /// # Errors
    /// `BadConfig`; `NotStored` as of [`Client::open_session`].
    pub async fn producer(&self, config: ProducerConfig) -> Result<Producer, ProducerError> {
        let memory = check_config(&config)?;
        let Ok(compressor) = Compressor::new(config.compression) else {
            return Err(ProducerError::BadConfig { option: "compression" });
        };
        let name = match &config.session {
            Some(name) => name.clone(),
            None => own_name()?,
        };
        let session = self.open_session(&name).await.map_err(not_stored)?;
        let limits = Limits {
            bytes: config.batch_bytes,
            messages: config.batch_messages,
            linger: config.linger,
        };
        let (settle, settled) = watch::channel(0);
        let shared = Arc::new(Shared {
            client: self.clone(),
            partition: config.partition,
            memory,
            back_off: config.back_off,
            patience: config.patience,
            accepted: Mutex::new(Accepted::new(limits)),
            queues: Mutex::default(),
            room: Semaphore::new(config.memory),
            news: Notify::new(),
            settled,
        });
        let sender = Sender::new(Arc::clone(&shared), config, compressor, &session, settle);
        tokio::spawn(sender.run());
        let handle = Arc::new(Handle(Arc::clone(&shared)));
        Ok(Producer { shared, handle })
    }
}

fn check_config(config: &ProducerConfig) -> Result<u32, ProducerError> {
    let bad = |option| Err(ProducerError::BadConfig { option });
    if !(1..=limits::BATCH_LEN).contains(&config.batch_bytes) {
        return bad("batch_bytes");
    }
    if !(1..=usize::from(limits::MESSAGES)).contains(&config.batch_messages) {
        return bad("batch_messages");
    }
    if !(1..=SendStream::IN_FLIGHT).contains(&config.in_flight) {
        return bad("in_flight");
    }
    for (option, time) in [("back_off", config.back_off), ("patience", config.patience)] {
        if !(Duration::from_millis(1)..=MOST_TIME).contains(&time) {
            return bad(option);
        }
    }
    if config.linger > MOST_TIME {
        return bad("linger");
    }
    match u32::try_from(config.memory) {
        Ok(memory) if memory >= 1 << 20 => Ok(memory),
        _ => bad("memory"),
    }
}

/// A session's name that nobody has.
fn own_name() -> Result<String, ProducerError> {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return Err(ProducerError::BadConfig { option: "session" });
    }
    Ok(format!("producer-{:032x}", u128::from_le_bytes(random)))
}

/// The pause after this one.
fn longer(pause: Duration) -> Duration {
    (pause * 2).min(LAST_PAUSE.max(pause))
}

fn not_stored(error: ClientError) -> ProducerError {
    ProducerError::NotStored(Arc::new(error))
}

impl Producer {
    /// Accepts a message: it is in a batch that will be sent. Waits while the memory of the producer is full. A future
    /// that is dropped before it is done has accepted nothing.
    ///
    /// # Errors
    /// The message was not accepted: `BadMessage`, `Closed`, and what ended the producer. By key also `NotStored`, when
    /// the topic is not there, or the broker cannot be asked about it within [`ProducerConfig::patience`].
    pub async fn send(
        &self,
        topic: &str,
        meta: &NewMeta<'_>,
        body: &[u8],
    ) -> Result<Accept, ProducerError> {
        check_message(meta, body)?;
        let shared = &self.shared;
        let place = match (meta.message_group, shared.partition, meta.keys.first()) {
            (Some(group), _, _) if !group.is_empty() => Place::Group(group),
            (_, Partition::ByKey, Some(key)) => {
                Place::Queue(group_hash(key) % shared.queues_of(topic).await?.max(1))
            }
            _ => Place::Any,
        };
        let cost = cost(topic, meta, body);
        // A message that is larger than all of the memory takes all of it.
        let permits = u32::try_from(cost).unwrap_or(u32::MAX).min(shared.memory);
        let room = match shared.room.try_acquire_many(permits) {
            Ok(room) => room,
            Err(_) => {
                let _waiting = Waiting::begin(shared);
                let Ok(room) = shared.room.acquire_many(permits).await else {
                    return Err(shared.accepted().why_ended());
                };
                room
            }
        };
        let now = Instant::now();
        let (batch, index, is_news) =
            shared.accepted().add(topic, place, meta, body, permits, now)?;
        room.forget();
        if is_news {
            shared.news.notify_one();
        }
        Ok(Accept { batch, index })
    }

    /// Sends what was accepted so far without lingering, and waits until all of it has an outcome.
    ///
    /// # Errors
    /// What failed since the last flush of this producer: each failure is told by one flush.
    pub async fn flush(&self) -> Result<(), FlushError> {
        let target = self.shared.accepted().close_all(Instant::now());
        self.shared.news.notify_one();
        // The task ends when everything has an outcome.
        let _ = self.shared.settled.clone().wait_for(|settled| *settled >= target).await;
        match self.shared.accepted().take_failures() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Accepts nothing more, of any clone; waits until all that was accepted has an outcome, and the session is given
    /// back if the producer made its name.
    ///
    /// # Errors
    /// As of [`Producer::flush`].
    pub async fn close(self) -> Result<(), FlushError> {
        self.handle.0.close(ProducerError::Closed);
        let mut settled = self.shared.settled.clone();
        while settled.changed().await.is_ok() {}
        match self.shared.accepted().take_failures() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// A sender that waits for memory, until it is dropped.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.accepted().begin_waiting();
        // All of the memory may be in batches that linger.
        shared.news.notify_one();
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.accepted().end_waiting();
    }
}

impl Shared {
    fn accepted(&self) -> MutexGuard<'_, Accepted> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is accepted, because of `why`; what was accepted goes on.
    fn close(&self, why: ProducerError) {
        self.accepted().end(why);
        self.room.close();
        self.news.notify_one();
    }

    async fn queues_of(&self, topic: &str) -> Result<u32, ProducerError> {
        let known = || self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queues) = known().get(topic) {
            return Ok(*queues);
        }
        let due = Instant::now() + self.patience;
        let mut pause = self.back_off;
        let queues = loop {
            match self.ask_queues_of(topic).await {
                Ok(queues) => break queues,
                // It may be asked as often as one likes.
                Err(error) if error.retry() != Retry::Never && Instant::now() + pause < due => {
                    sleep(pause).await;
                    pause = longer(pause);
                }
                Err(error) => return Err(not_stored(error)),
            }
        };
        let mut known = known();
        if known.len() >= TOPICS {
            known.clear();
        }
        known.insert(topic.into(), queues);
        Ok(queues)
    }

    async fn ask_queues_of(&self, topic: &str) -> Result<u32, ClientError> {
        let request =
            proto::DescribeTopicRequest { name: topic.to_owned(), first_queue: 0, limit: 1 };
        let answer = self.client.admin.clone().describe_topic(within(request, CALL_TIMEOUT)).await;
        let answer = self.client.answer(answer)?;
        Ok(self.client.topic(answer.topic)?.queues)
    }

    /// The topic has other queues than it had.
    fn forget_queues_of(&self, topic: &str) {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }
}

/// Looks at a message alone, so that no other one of its batch is refused with it.
fn check_message(meta: &NewMeta<'_>, body: &[u8]) -> Result<(), BatchError> {
    if body.len() > limits::BODY_LEN {
        return Err(BatchError::BodyTooLarge {
            index: 0,
            limit: limits::BODY_LEN as u64,
            found: body.len() as u64,
        });
    }
    let has_text = !meta.keys.is_empty()
        || !meta.properties.is_empty()
        || meta.tag.is_some()
        || meta.message_group.is_some()
        || meta.id.is_some()
        || meta.trace_context.is_some()
        || meta.born_host.is_some();
    if has_text {
        let mut alone = BatchBuilder::new();
        alone.push(meta, b"");
        let alone = alone.finish();
        check(&alone)?;
        // What the fields of the bodies add is less than this.
        let found = alone.len() + body.len() + 32;
        if found > limits::BATCH_LEN {
            let limit = limits::BATCH_LEN as u64;
            return Err(BatchError::BatchTooLarge { limit, found: found as u64 });
        }
    }
    Ok(())
}
