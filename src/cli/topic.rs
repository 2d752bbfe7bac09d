//! `mainstem topic`: make, change, list, show, purge and delete topics.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::error::{Exit, Failure};
use super::output::{Output, Row, fields, say, table};
use super::{Connection, patiently, time};
use crate::client::{Client, ClientError, Purge, Reason, Topic, TopicDescription, TopicSettings};
use crate::message::{Access, FlushMode, Force, Keep, QueueId, QueueOffset, TopicType};

/// Make, change, list, show, purge and delete topics
#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Make a topic
    ///
    /// If it is there already with the same settings, nothing happens; with other settings it is an error.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// Change a topic in use
    ///
    /// What is not named stays as it is. In force at once, and durable.
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(UpdateArgs),
    /// List all topics by name
    List,
    /// Show a topic and what its queues hold
    Show(NameArgs),
    /// Make messages of a topic unreadable, at once and for good
    ///
    /// Asks nothing. Without --queue everything that is stored by now. The space on disk comes back when a segment of
    /// the log holds nothing alive.
    #[command(after_help = PURGE_EXAMPLES)]
    Purge(PurgeArgs),
    /// Delete a topic with all its messages
    ///
    /// Sends, pulls and queries of it end at once. A topic made later under the same name is another one.
    Delete(NameArgs),
}

const CREATE_EXAMPLES: &str = "\
What is not named: 4 queues, type mixed, access rw; flush and retention as the broker's configuration
says, which is sync and 3d unless it was changed.

Examples:
  mainstem topic create orders
  mainstem topic create clicks --queues 16 --flush async
  mainstem topic create audit --retention forever
  mainstem topic create traces --retention 6h --retention-bytes 10GiB";

const UPDATE_EXAMPLES: &str = "\
Queues can be added, not taken away. They begin empty; message groups go to other queues from then
on. A topic of type fifo promises their order, so there it takes --force, as another type does.
What is gone stays gone when messages are kept longer.

Examples:
  mainstem topic update clicks --queues 32 --retention 12h
  mainstem topic update orders --access r            no sends any more
  mainstem topic update orders --retention forever --retention-bytes unlimited";

const PURGE_EXAMPLES: &str = "\
Examples:
  mainstem topic purge clicks                         all there is
  mainstem topic purge orders --queue 2               all of one queue
  mainstem topic purge orders --queue 2 --up-to 4711  its messages before offset 4711";

/// What a topic is made with.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// 1 to 127 letters, digits, '_' and '-'
    name: String,
    #[command(flatten)]
    settings: SettingArgs,
}

/// What of a topic changes.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// The topic
    name: String,
    #[command(flatten)]
    settings: SettingArgs,
    /// Do it although it breaks the order of the message groups of a fifo topic
    #[arg(long)]
    force: bool,
}

/// What of a topic is purged.
#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// The topic
    name: String,
    /// Only this queue
    #[arg(long, value_name = "N")]
    queue: Option<u32>,
    /// Only messages before this offset of the queue [default: all that can be read by now]
    #[arg(long, value_name = "OFFSET", requires = "queue")]
    up_to: Option<u64>,
}

/// The settings of a topic. What is left out has a default in a new one, and stays in one that there is.
#[derive(Debug, Args)]
struct SettingArgs {
    /// How many queues it has, 1 to 65536
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    queues: Option<u32>,
    /// What an OK for a message promises
    #[arg(long, value_name = "MODE")]
    flush: Option<FlushArg>,
    /// What kind of messages it takes
    #[arg(long = "type", value_name = "TYPE")]
    topic_type: Option<TypeArg>,
    /// What clients may do with it
    #[arg(long, value_name = "ACCESS")]
    access: Option<AccessArg>,
    /// How long it keeps messages, like 12h or 3d, or forever
    #[arg(long, value_name = "TIME", value_parser = retention_time, allow_hyphen_values = true)]
    retention: Option<Keep>,
    /// How many bytes of the newest messages it keeps at least, like 10GiB, or unlimited
    #[arg(long, value_name = "SIZE", value_parser = retention_bytes, allow_hyphen_values = true)]
    retention_bytes: Option<Keep>,
}

impl SettingArgs {
    fn is_empty(&self) -> bool {
        self.queues.is_none()
            && self.flush.is_none()
            && self.topic_type.is_none()
            && self.access.is_none()
            && self.retention.is_none()
            && self.retention_bytes.is_none()
    }
}

impl From<&SettingArgs> for TopicSettings {
    fn from(args: &SettingArgs) -> Self {
        Self {
            queues: args.queues,
            flush: args.flush.map(FlushMode::from),
            topic_type: args.topic_type.map(TopicType::from),
            access: args.access.map(Access::from),
            retention_time: args.retention,
            retention_bytes: args.retention_bytes,
        }
    }
}

fn retention_time(text: &str) -> Result<Keep, &'static str> {
    if text == "forever" {
        return Ok(Keep::All);
    }
    let time = time::duration(text).map_err(|_| "give a time like 12h or 3d, or forever")?;
    // What does not fit is refused by the broker, as all that is too long.
    Ok(Keep::UpTo(u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)))
}

fn retention_bytes(text: &str) -> Result<Keep, &'static str> {
    if text == "unlimited" {
        return Ok(Keep::All);
    }
    let size = text.parse::<bytesize::ByteSize>();
    let size = size.map_err(|_| "give a size like 500MiB or 10GiB, or unlimited")?;
    Ok(Keep::UpTo(size.as_u64().min(u64::MAX - 1)))
}

/// A topic by its name.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The topic
    name: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FlushArg {
    /// It survives a power cut
    Sync,
    /// It survives the death of the broker's process
    Async,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AccessArg {
    /// Everything
    Rw,
    /// Pulls and queries, no sends
    R,
    /// Sends, neither pulls nor queries
    W,
    /// Nothing
    None,
}

impl From<AccessArg> for Access {
    fn from(access: AccessArg) -> Self {
        match access {
            AccessArg::Rw => Self { read: true, write: true },
            AccessArg::R => Self { read: true, write: false },
            AccessArg::W => Self { read: false, write: true },
            AccessArg::None => Self { read: false, write: false },
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TypeArg {
    /// Unordered, delivered at once
    Normal,
    /// Ordered by message group
    Fifo,
    /// For messages delivered at a time; plain sends are refused
    Delay,
    /// For two-phase messages; plain sends are refused
    Transaction,
    /// Ordered by message group where a message has one
    Mixed,
}

impl From<FlushArg> for FlushMode {
    fn from(flush: FlushArg) -> Self {
        match flush {
            FlushArg::Sync => Self::Sync,
            FlushArg::Async => Self::Async,
        }
    }
}

impl From<TypeArg> for TopicType {
    fn from(topic_type: TypeArg) -> Self {
        match topic_type {
            TypeArg::Normal => Self::Normal,
            TypeArg::Fifo => Self::Fifo,
            TypeArg::Delay => Self::Delay,
            TypeArg::Transaction => Self::Transaction,
            TypeArg::Mixed => Self::Mixed,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(
    command: TopicCommand,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let client = connection.open().await?;
    match command {
        TopicCommand::Create(args) => {
            let settings = TopicSettings::from(&args.settings);
            let topic = patiently(|| client.create_topic(&args.name, settings)).await?;
            let shown = ShownTopic::from(&topic);
            output.one(&shown, || table(HEADER, vec![shown.cells()]))?;
        }
        TopicCommand::Update(args) => {
            if args.settings.is_empty() {
                let nothing = Failure::usage("nothing is to change");
                return Err(nothing.cure("name what, as with --retention 3d").into());
            }
            let settings = TopicSettings::from(&args.settings);
            let force = if args.force { Force::Yes } else { Force::No };
            let topic = patiently(|| client.update_topic(&args.name, settings, force)).await?;
            let shown = ShownTopic::from(&topic);
            output.one(&shown, || table(HEADER, vec![shown.cells()]))?;
        }
        TopicCommand::Purge(args) => purge(&client, &args, output).await?,
        TopicCommand::List => {
            let mut many = output.many(HEADER);
            let mut after = String::new();
            loop {
                let (topics, more) = patiently(|| client.topics(&after)).await?;
                for topic in &topics {
                    many.push(&ShownTopic::from(topic))?;
                }
                match topics.last() {
                    Some(last) if more => after.clone_from(&last.name),
                    _ => break,
                }
            }
            let none = many.count() == 0;
            many.finish()?;
            if none {
                say("no topics yet: `mainstem topic create NAME` makes one, so does sending to it");
            }
        }
        TopicCommand::Show(args) => {
            let topic = patiently(|| client.describe_topic(&args.name)).await?;
            let shown = ShownDescription::from(&topic);
            output.one(&shown, || shown.table())?;
        }
        TopicCommand::Delete(args) => {
            patiently(|| client.delete_topic(&args.name)).await?;
            let deleted = Deleted { deleted: &args.name };
            output.one(&deleted, || format!("deleted {}", args.name))?;
        }
    }
    Ok(())
}

async fn purge(client: &Client, args: &PurgeArgs, output: &mut Output) -> anyhow::Result<()> {
    let what = args.queue.map_or(Purge::Topic, |queue| Purge::Queue {
        queue: QueueId::new(queue),
        up_to: args.up_to.map(QueueOffset::new),
    });
    let purged = patiently(|| client.purge_topic(&args.name, what)).await;
    let messages = purged.map_err(|error| match beyond_the_end(&error) {
        Some(failure) => failure.into(),
        None => anyhow::Error::new(error),
    })?;
    let purged = Purged { purged: &args.name, queue: args.queue, messages };
    output.one(&purged, || purged.sentence())?;
    Ok(())
}

/// The broker's words for an offset that cannot be pulled do not help who purges.
fn beyond_the_end(error: &ClientError) -> Option<Failure> {
    let refusal = error.refusal().filter(|refusal| refusal.reason == Reason::OffsetOutOfRange)?;
    let end = refusal.range?.max;
    let failure = Failure::new(Exit::Failed, format!("the queue ends at offset {end}"));
    Some(failure.cure("leave --up-to out to purge all of it"))
}

const HEADER: &[&str] = &["NAME", "QUEUES", "FLUSH", "TYPE", "ACCESS", "RETENTION", "ID"];

#[derive(Serialize)]
struct ShownTopic<'a> {
    name: &'a str,
    id: u64,
    queues: u32,
    flush: &'static str,
    #[serde(rename = "type")]
    topic_type: &'static str,
    access: &'static str,
    /// `null`: for ever.
    retention_ms: Option<u64>,
    /// `null`: without a limit.
    retention_bytes: Option<u64>,
}

impl<'a> From<&'a Topic> for ShownTopic<'a> {
    fn from(topic: &'a Topic) -> Self {
        Self {
            name: &topic.name,
            id: topic.id.get(),
            queues: topic.queues,
            flush: match topic.flush {
                FlushMode::Sync => "sync",
                FlushMode::Async => "async",
            },
            topic_type: match topic.topic_type {
                TopicType::Normal => "normal",
                TopicType::Fifo => "fifo",
                TopicType::Delay => "delay",
                TopicType::Transaction => "transaction",
                TopicType::Mixed => "mixed",
            },
            access: match topic.access {
                Access { read: true, write: true } => "rw",
                Access { read: true, write: false } => "r",
                Access { read: false, write: true } => "w",
                Access { read: false, write: false } => "none",
            },
            retention_ms: topic.retention.time_ms,
            retention_bytes: topic.retention.bytes,
        }
    }
}

impl ShownTopic<'_> {
    fn retention(&self) -> String {
        let time = self.retention_ms.map_or("forever".to_owned(), time::render_length);
        match self.retention_bytes {
            Some(bytes) => format!("{time}, {}", bytesize::ByteSize(bytes)),
            None => time,
        }
    }
}

impl Row for ShownTopic<'_> {
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_owned(),
            self.queues.to_string(),
            self.flush.to_owned(),
            self.topic_type.to_owned(),
            self.access.to_owned(),
            self.retention(),
            self.id.to_string(),
        ]
    }
}

#[derive(Serialize)]
struct ShownDescription<'a> {
    #[serde(flatten)]
    topic: ShownTopic<'a>,
    messages: u64,
    queue: Vec<ShownQueue>,
}

#[derive(Serialize)]
struct ShownQueue {
    queue: u32,
    min: u64,
    max: u64,
    messages: u64,
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
}

#[derive(Serialize)]
struct Purged<'a> {
    purged: &'a str,
    /// `null`: all of them.
    queue: Option<u32>,
    /// `null`: not counted.
    messages: Option<u64>,
}

impl Purged<'_> {
    fn sentence(&self) -> String {
        let place = match self.queue {
            Some(queue) => format!("queue {queue} of {}", self.purged),
            None => self.purged.to_owned(),
        };
        match self.messages {
            Some(1) => format!("purged {place}: 1 message is gone"),
            Some(messages) => format!("purged {place}: {messages} messages are gone"),
            None => format!("purged {place}; too much to count its messages"),
        }
    }
}

impl<'a> From<&'a TopicDescription> for ShownDescription<'a> {
    fn from(description: &'a TopicDescription) -> Self {
        let queue: Vec<_> = description
            .queues
            .iter()
            .map(|(queue, range)| ShownQueue {
                queue: queue.get(),
                min: range.min.get(),
                max: range.max.get(),
                messages: range.messages(),
            })
            .collect();
        Self {
            topic: ShownTopic::from(&description.topic),
            messages: queue.iter().map(|queue| queue.messages).sum(),
            queue,
        }
    }
}

impl ShownDescription<'_> {
    fn table(&self) -> String {
        let about = fields(vec![
            ("name", self.topic.name.to_owned()),
            ("id", self.topic.id.to_string()),
            ("type", self.topic.topic_type.to_owned()),
            ("flush", self.topic.flush.to_owned()),
            ("access", self.topic.access.to_owned()),
            ("retention", self.topic.retention()),
            ("messages", self.messages.to_string()),
        ]);
        let rows = self.queue.iter().map(|queue| {
            vec![
                queue.queue.to_string(),
                queue.min.to_string(),
                queue.max.to_string(),
                queue.messages.to_string(),
            ]
        });
        let queues = table(&["QUEUE", "MIN", "MAX", "MESSAGES"], rows.collect());
        format!("{about}\n\n{queues}")
    }
}
