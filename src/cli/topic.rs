//! `mainstem topic`: make, list, show and delete topics.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::output::{Output, Row, fields, say, table};
use super::{Connection, patiently};
use crate::client::{Topic, TopicDescription, TopicSettings};
use crate::message::{FlushMode, TopicType};

/// Make, list, show and delete topics
#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Make a topic
    ///
    /// If it is there already with the same settings, nothing happens; with other settings it is an error.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List all topics by name
    List,
    /// Show a topic and what its queues hold
    Show(NameArgs),
    /// Delete a topic with all its messages
    ///
    /// Sends, pulls and queries of it end at once. A topic made later under the same name is another one.
    Delete(NameArgs),
}

const CREATE_EXAMPLES: &str = "\
Examples:
  mainstem topic create orders
  mainstem topic create clicks --queues 16 --flush async";

/// What a topic is made with.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// 1 to 127 letters, digits, '_' and '-'
    name: String,
    /// How many queues it has, 1 to 65536 [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    queues: Option<u32>,
    /// What an OK for a message promises [default: the broker's]
    #[arg(long, value_name = "MODE")]
    flush: Option<FlushArg>,
    /// What kind of messages it takes [default: mixed]
    #[arg(long = "type", value_name = "TYPE")]
    topic_type: Option<TypeArg>,
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
            let settings = TopicSettings {
                queues: args.queues,
                flush: args.flush.map(FlushMode::from),
                topic_type: args.topic_type.map(TopicType::from),
            };
            let topic = patiently(|| client.create_topic(&args.name, settings)).await?;
            let shown = ShownTopic::from(&topic);
            output.one(&shown, || table(HEADER, vec![shown.cells()]))?;
        }
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

const HEADER: &[&str] = &["NAME", "QUEUES", "FLUSH", "TYPE", "ID"];

#[derive(Serialize)]
struct ShownTopic<'a> {
    name: &'a str,
    id: u64,
    queues: u32,
    flush: &'static str,
    #[serde(rename = "type")]
    topic_type: &'static str,
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
