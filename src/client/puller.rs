//! A reader of queues that goes on over broken connections and restarts of the broker.
//!
//! | what happens | what the puller does |
//! | --- | --- |
//! | the connection breaks, the broker stops, is too busy or makes a file again | begins a stream where it is, after a pause that grows, for [`PullerConfig::patience`] |
//! | a queue begins behind where it is: messages went by retention or purge | as [`OnGone`] says |
//! | messages it read were lost by a power cut (`Truncated`), or are damaged | fails, and stays where it is: [`Puller::seek`] |
//! | any other refusal | fails, and stays where it is |
//! | the topic is deleted and made again while it has no connection | goes on at its offset in the new topic: what lies before it there is passed over, and an offset beyond the end fails |
//!
//! It has a connection of its own, and its stream's flow control window is the prefetch: so much comes ahead of the
//! reader, and no more. No task of its own but the connection's.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::pull_stream::{Part, PullStream, PullStreamOptions};
use super::{Client, ClientError, Reason, Retry};
use crate::format::batch::TagFilter;
use crate::message::{Epoch, QueueId, QueueOffset};

/// The first pause before a stream is begun again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause.
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// The least that may come ahead: less, HTTP/2 does not know.
const LEAST_PREFETCH: u32 = 65_535;
/// The most that may come ahead.
const MOST_PREFETCH: u32 = 1 << 30;

/// What a puller does where the messages that it would read next are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnGone {
    /// Fails with `OffsetOutOfRange`, and stays where it is.
    #[default]
    Fail,
    /// Goes on at the first message that is there.
    Earliest,
    /// Goes on at the end.
    Latest,
}

/// How a puller reads.
#[derive(Clone, Debug)]
pub struct PullerConfig {
    /// The tags that are let through: `*`, or tags joined by `||`. By default all.
    pub tags: String,
    /// The consumer group in whose name it is. By default none.
    pub group: Option<String>,
    /// Bytes that come ahead of the reader: 64 KiB to 1 GiB, other numbers are taken as the nearer of them. By default
    /// 8 MiB: as much as a fast network brings while a reader works on what it has.
    pub prefetch_bytes: u32,
    /// Bytes of one part, but at least one whole record: up to 8 MiB. By default 1 MiB.
    pub max_bytes: u32,
    /// How long it tries again before it fails, counted from the end of the last stream that brought something or stood
    /// for longer than 2 s. By default 60 s: a restart of the broker.
    pub patience: Duration,
    /// What it does where messages are gone. By default it fails.
    pub on_gone: OnGone,
}

impl Default for PullerConfig {
    fn default() -> Self {
        Self {
            tags: "*".to_owned(),
            group: None,
            prefetch_bytes: 8 << 20,
            max_bytes: 1 << 20,
            patience: Duration::from_secs(60),
            on_gone: OnGone::default(),
        }
    }
}

/// Reads queues of a topic in turn, as they grow. Made by [`Client::puller`].
#[derive(Debug)]
pub struct Puller {
    client: Client,
    topic: String,
    filter: TagFilter,
    config: PullerConfig,
    /// Where to go on in each queue.
    places: BTreeMap<QueueId, QueueOffset>,
    /// Of the newest answer.
    epoch: Option<Epoch>,
    stream: Option<PullStream>,
    /// Since when nothing came that was asked for.
    failing_since: Option<Instant>,
    /// When the stream was begun.
    begun: Instant,
    pause: Duration,
}

impl Client {
    /// A puller of queues of `topic`, each from its offset on: 1 to 256, each once. It makes a connection of its own.
    ///
    /// # Errors
    /// No connection can be made, or the tags are no tag expression.
    ///
    /// # Examples
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let data = format!("server.data={}", dir.path().join("data").display());
    /// # let sets = ["server.listen=127.0.0.1:0", "server.http=127.0.0.1:0", "store.segment_size=64MiB", &data];
    /// # let config = mainstem::config::Config::load(None, &sets.map(str::to_owned))?;
    /// # let server = mainstem::server::spawn(config).await?;
    /// # let server_address = server.listening().grpc.to_string();
    /// use mainstem::client::{Client, PullerConfig};
    /// use mainstem::format::batch::{BatchBuilder, NewMeta};
    /// use mainstem::message::{QueueId, QueueOffset};
    ///
    /// let client = Client::connect(&server_address).await?;
    /// let mut batch = BatchBuilder::new();
    /// batch.push(&NewMeta::default(), b"one book");
    /// client.send("orders", Some(QueueId::new(0)), batch.finish()).await?;
    ///
    /// let begin = [(QueueId::new(0), QueueOffset::ZERO)];
    /// let mut puller = client.puller("orders", &begin, PullerConfig::default()).await?;
    /// let mut bodies = Vec::new();
    /// while bodies.is_empty() {
    ///     let part = puller.next().await?;
    ///     part.for_each(|message| bodies.push(message.body.to_vec()))?;
    /// }
    /// assert_eq!(bodies, [b"one book"]);
    /// # drop(puller);
    /// # server.stop().await?;
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
    /// ```
    pub async fn puller(
        &self,
        topic: &str,
        queues: &[(QueueId, QueueOffset)],
        config: PullerConfig,
    ) -> Result<Puller, ClientError> {
        let filter = TagFilter::parse(&config.tags);
        let filter = filter.map_err(|source| ClientError::BadTags { source })?;
        let window = config.prefetch_bytes.clamp(LEAST_PREFETCH, MOST_PREFETCH);
        Ok(Puller {
            client: Self::connect_with(&self.server, self.trust.clone(), window).await?,
            topic: topic.to_owned(),
            filter,
            config,
            places: queues.iter().copied().collect(),
            epoch: None,
            stream: None,
            failing_since: None,
            begun: Instant::now(),
            pause: FIRST_PAUSE,
        })
    }
}

impl Puller {
    /// The next part, of whatever queue has something; waits until one has. May be dropped and called again: then
    /// nothing is skipped.
    ///
    /// # Errors
    /// What it does not pass over by itself, see the table at the top. It stays where it is: called again it tries
    /// again.
    pub async fn next(&mut self) -> Result<Part, ClientError> {
        loop {
            match self.try_next().await {
                Ok(part) => {
                    self.fares_well();
                    self.places.insert(part.queue, part.next_offset);
                    self.epoch = Some(part.epoch);
                    return Ok(part);
                }
                Err(error) => {
                    // One that stood was well, though there was nothing to bring: what ends it begins a new trouble.
                    if self.stream.take().is_some() && self.begun.elapsed() > LAST_PAUSE {
                        self.fares_well();
                    }
                    self.recover(error).await?;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<Part, ClientError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let queues: Vec<_> = self.places.iter().map(|(queue, at)| (*queue, *at)).collect();
                let options = PullStreamOptions {
                    topic: &self.topic,
                    queues: &queues,
                    max_bytes: Some(self.config.max_bytes),
                    tags: &self.config.tags,
                    filter: &self.filter,
                    group: self.config.group.as_deref(),
                    epoch: self.epoch,
                };
                let stream = self.client.pull_stream(&options).await?;
                self.begun = Instant::now();
                none.insert(stream)
            }
        };
        stream.next().await
    }

    /// Whatever fails from now on is something new.
    fn fares_well(&mut self) {
        self.failing_since = None;
        self.pause = FIRST_PAUSE;
    }

    /// Makes the next attempt worth while, or gives the error back.
    async fn recover(&mut self, error: ClientError) -> Result<(), ClientError> {
        if let Some((queue, at)) = self.begin_again(&error) {
            self.places.insert(queue, at);
            return Ok(());
        }
        let passes = match error.retry() {
            Retry::After(pause) => Some(pause),
            // Nothing is sent here that could be there twice.
            Retry::Unsafe => Some(Duration::ZERO),
            Retry::Never => None,
        };
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        match passes {
            Some(least) if since.elapsed() < self.config.patience => {
                sleep(self.pause.max(least)).await;
                self.pause = (self.pause * 2).min(LAST_PAUSE);
                Ok(())
            }
            _ => {
                self.fares_well();
                Err(error)
            }
        }
    }

    /// Where to go on in a queue that begins behind where the puller is, if it is to.
    fn begin_again(&self, error: &ClientError) -> Option<(QueueId, QueueOffset)> {
        let ClientError::Refused(refusal) = error else { return None };
        let (queue, range) = (refusal.queue?, refusal.range?);
        let is_gone = refusal.reason == Reason::OffsetOutOfRange
            && self.places.get(&queue).is_some_and(|at| *at < range.min);
        match self.config.on_gone {
            OnGone::Earliest if is_gone => Some((queue, range.min)),
            OnGone::Latest if is_gone => Some((queue, range.max)),
            _ => None,
        }
    }

    /// Where it goes on in a queue; `None`: it does not read that queue. What was given out by [`Puller::next`] lies
    /// before it.
    pub fn position(&self, queue: QueueId) -> Option<QueueOffset> {
        self.places.get(&queue).copied()
    }

    /// Goes on elsewhere in a queue, from the next part on; a queue that was not read is read too from now on.
    pub fn seek(&mut self, queue: QueueId, offset: QueueOffset) {
        self.places.insert(queue, offset);
        // What came ahead is of the old place.
        self.stream = None;
    }
}
