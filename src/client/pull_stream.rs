//! A stream of pulls: queues of a topic in turn, as they grow.
//!
//! The broker sends ahead of the reader as far as the flow control window of the stream lets it: that is the prefetch,
//! and its bound. Bodies are slices of the frames that they came in.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::message::{MessageRef, Place, Unpacker};
use super::raw::{Answers, Once, call};
use super::{AnswerError, Client, ClientError, MAX_ANSWER, Message, OffsetRange};
use crate::format::batch::TagFilter;
use crate::message::{Epoch, PhysicalOffset, QueueId, QueueOffset, Timestamp};
use crate::proto;

const PATH: &str = "/mainstem.v1.Broker/PullStream";

/// What a stream is to bring.
#[derive(Clone, Copy, Debug)]
pub struct PullStreamOptions<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// Of which queues, each with the first message wanted: 1 to 256, each once.
    pub queues: &'a [(QueueId, QueueOffset)],
    /// At most so many bytes of batches in a part, but at least one whole record; at most 8 MiB. `None`: the broker's
    /// choice, 1 MiB.
    pub max_bytes: Option<u32>,
    /// The tags that are let through, as a text for the broker: `*`, or tags joined by `||`.
    pub tags: &'a str,
    /// The same, parsed.
    pub filter: &'a TagFilter,
    /// The consumer group in whose name it is.
    pub group: Option<&'a str>,
    /// As in [`super::Pull`].
    pub epoch: Option<Epoch>,
}

/// A stream that was begun. Dropping it ends it at the broker too.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let data = format!("server.data={}", dir.path().join("data").display());
/// # let sets = ["server.listen=127.0.0.1:0", "server.http=127.0.0.1:0", "store.segment_size=64MiB", &data];
/// # let config = mainstem::config::Config::load(None, &sets.map(str::to_owned))?;
/// # let server = mainstem::server::spawn(config).await?;
/// # let server_address = server.listening().grpc.to_string();
/// use mainstem::client::{Client, PullStreamOptions};
/// use mainstem::format::batch::{BatchBuilder, NewMeta, TagFilter};
/// use mainstem::message::{QueueId, QueueOffset};
///
/// let client = Client::connect(&server_address).await?;
/// let mut batch = BatchBuilder::new();
/// batch.push(&NewMeta::default(), b"one book");
/// batch.push(&NewMeta::default(), b"two pens");
/// client.send("orders", Some(QueueId::ZERO), batch.finish()).await?;
///
/// let options = PullStreamOptions {
///     topic: "orders",
///     queues: &[(QueueId::ZERO, QueueOffset::ZERO)],
///     max_bytes: None,
///     tags: "*",
///     filter: &TagFilter::All,
///     group: None,
///     epoch: None,
/// };
/// let mut stream = client.pull_stream(&options).await?;
/// let part = stream.next().await?;
/// let mut bodies = Vec::new();
/// part.for_each(|message| bodies.push(message.body.to_vec()))?;
/// assert_eq!(bodies, [b"one book", b"two pens"]);
/// // Where a stream that begins anew has to go on.
/// assert_eq!(part.next_offset, QueueOffset::new(2));
/// # drop(stream);
/// # server.stop().await?;
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Debug)]
pub struct PullStream {
    client: Client,
    topic: Arc<str>,
    filter: Arc<TagFilter>,
    /// The first wanted of each queue of which nothing has come yet.
    wanted: HashMap<QueueId, QueueOffset>,
    answers: Answers,
}

/// What came of one queue.
#[derive(Debug)]
pub struct Part {
    /// Which queue.
    pub queue: QueueId,
    /// Where to go on; moves past what was filtered out.
    pub next_offset: QueueOffset,
    /// What can be pulled from this queue now.
    pub range: OffsetRange,
    /// The broker's epoch.
    pub epoch: Epoch,
    server: Arc<str>,
    topic: Arc<str>,
    filter: Arc<TagFilter>,
    /// Messages below it were not asked for.
    wanted: QueueOffset,
    records: Vec<proto::Record>,
}

impl Client {
    /// Begins to read queues of a topic, without end. Up to 8 MiB come ahead of the reader.
    ///
    /// The stream shares the connection of this client: eight streams that have something and that nobody reads fill
    /// it, and then no answer to any other call of the client and its clones arrives. Who keeps many streams waiting
    /// gives them a client of their own, or takes a [`super::Puller`], which has one.
    ///
    /// # Errors
    /// No connection. Refusals come with the first part.
    pub async fn pull_stream(
        &self,
        options: &PullStreamOptions<'_>,
    ) -> Result<PullStream, ClientError> {
        let start = |(queue, offset): &(QueueId, QueueOffset)| proto::pull_stream_request::Start {
            queue: queue.get(),
            offset: offset.get(),
        };
        let request = proto::PullStreamRequest {
            topic: options.topic.to_owned(),
            queues: options.queues.iter().map(start).collect(),
            tags: options.tags.to_owned(),
            group: options.group.unwrap_or_default().to_owned(),
            epoch: options.epoch.map_or(0, Epoch::get),
            max_bytes: options.max_bytes.unwrap_or(0),
        };
        let called = call(self.channel.clone(), PATH, Once::new(&request), MAX_ANSWER).await;
        Ok(PullStream {
            client: self.clone(),
            topic: options.topic.into(),
            filter: Arc::new(options.filter.clone()),
            wanted: options.queues.iter().copied().collect(),
            answers: called.map_err(|status| self.ended(status))?,
        })
    }
}

impl PullStream {
    /// The next part, of whatever queue has something; waits until one has. May be dropped and called again.
    ///
    /// # Errors
    /// The stream is at its end. Refusals: as [`Client::pull`], with [`super::Refusal::queue`] if one of the queues
    /// cannot be read on.
    pub async fn next(&mut self) -> Result<Part, ClientError> {
        let part = self.answers.next::<proto::PullStreamResponse>().await;
        let ended = || tonic::Status::unavailable("the stream was ended");
        let part = part.and_then(|part| part.ok_or_else(ended));
        let part = part.map_err(|status| self.client.ended(status))?;
        let queue = QueueId::new(part.queue);
        let wanted = if self.wanted.is_empty() { None } else { self.wanted.remove(&queue) };
        Ok(Part {
            queue,
            next_offset: QueueOffset::new(part.next_offset),
            range: part.range.map(OffsetRange::from).unwrap_or_default(),
            epoch: Epoch::new(part.epoch),
            server: Arc::clone(&self.client.server),
            topic: Arc::clone(&self.topic),
            filter: Arc::clone(&self.filter),
            wanted: wanted.unwrap_or(QueueOffset::ZERO),
            records: part.records,
        })
    }
}

impl Part {
    /// Its messages that were asked for, in queue order, without an allocation for any of them. Of compressed batches
    /// one at a time is decompressed: at most 16 MiB.
    ///
    /// # Errors
    /// A batch cannot be read; those before it were visited, those behind it were not. Who goes on with the next part
    /// passes over them: [`Part::batches`] has them, or a [`super::Puller`] goes back with `seek`, to behind the batch
    /// that [`AnswerError::Decompression`] names.
    pub fn for_each(&self, mut visit: impl FnMut(MessageRef<'_>)) -> Result<(), ClientError> {
        let mut unpacker = Unpacker::unbounded(self.wanted, &self.filter);
        for record in &self.records {
            let taken = unpacker.visit(&self.place(record), &record.batch, &mut visit);
            taken.map_err(|source| self.bad_answer(source))?;
        }
        Ok(())
    }

    /// The same messages, each for itself. Of compressed batches all are decompressed at once: where these may come to
    /// much, [`Part::for_each`] takes less memory.
    ///
    /// # Errors
    /// A batch cannot be read.
    pub fn messages(&self) -> Result<Vec<Message>, ClientError> {
        let mut unpacker = Unpacker::unbounded(self.wanted, &self.filter);
        for record in &self.records {
            let taken = unpacker.take(&self.place(record), &record.batch);
            taken.map_err(|source| self.bad_answer(source))?;
        }
        Ok(unpacker.messages)
    }

    /// Its batches as they were stored, each with the offset of its first message: also those messages that were not
    /// asked for.
    pub fn batches(&self) -> impl Iterator<Item = (QueueOffset, &Bytes)> {
        self.records
            .iter()
            .map(|record| (QueueOffset::new(record.first_queue_offset), &record.batch))
    }

    fn bad_answer(&self, source: AnswerError) -> ClientError {
        ClientError::BadAnswer { server: self.server.to_string(), source }
    }

    fn place<'a>(&'a self, record: &'a proto::Record) -> Place<'a> {
        Place {
            topic: &self.topic,
            queue: self.queue,
            epoch: Epoch::new(record.epoch),
            physical_offset: PhysicalOffset::new(record.physical_offset),
            first_queue_offset: QueueOffset::new(record.first_queue_offset),
            store_time: Timestamp::new(record.store_time_ms),
            dead_letter: record.dead_letter.as_ref(),
        }
    }
}
