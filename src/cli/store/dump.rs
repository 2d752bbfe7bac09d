//! `mainstem store dump`: the records of a stopped store, one a line.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Data, explain};
use crate::cli::output::{Output, Row};
use crate::cli::time;
use crate::format::batch::Codec;
use crate::format::record::{RecordFlags, RecordHeader, RecordKind};
use crate::message::PhysicalOffset;
use crate::offline::{self, Content, Dump, Dumped, DumpedMessage};

/// What to show.
#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    data: Data,
    /// Records that begin at this physical offset or behind it
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// Records that begin before this physical offset [default: the end of the log]
    #[arg(long, value_name = "OFFSET")]
    to: Option<u64>,
    /// Only records of this kind, and gaps
    #[arg(long, value_name = "message|state|epoch", hide_possible_values = true)]
    kind: Option<KindArg>,
    /// Stop after so many lines
    #[arg(short, value_name = "N")]
    n: Option<u64>,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  mainstem store dump --data ./data -n 20
  mainstem store dump --data ./data --from 5376 --to 9000 -o jsonl
  mainstem store dump --data ./data --kind state

Physical offsets are bytes of the log since it began, as in `mainstem status` and, in hex, in a
message id between the dashes. One in the middle of a record is followed by the next record.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArg {
    Message,
    State,
    Epoch,
}

impl KindArg {
    fn lets_in(self, kind: RecordKind) -> bool {
        matches!(
            (self, kind),
            (Self::Message, RecordKind::Message)
                | (Self::State, RecordKind::State)
                | (Self::Epoch, RecordKind::Epoch)
        )
    }
}

/// Runs the command. Blocks.
pub(super) fn run(args: &DumpArgs, output: &mut Output) -> anyhow::Result<()> {
    let store = offline::open(&args.data.data).map_err(|error| explain(&error, None))?;
    let from = PhysicalOffset::new(args.from);
    let to = args.to.map_or(store.extent().end, PhysicalOffset::new);
    let mut many = output.many(HEADER);
    for dumped in Dump::of(store, from..to) {
        if args.n.is_some_and(|n| many.count() >= n) {
            break;
        }
        match dumped? {
            Dumped::Record { header, content } => {
                if args.kind.is_none_or(|kind| kind.lets_in(header.kind)) {
                    many.push(&Shown::record(&header, content.map_err(|e| e.to_string())))?;
                }
            }
            Dumped::Gap { range, reason } => many.push(&Shown::gap(&range, reason))?,
        }
    }
    many.finish()?;
    Ok(())
}

const HEADER: &[&str] = &[
    "OFFSET", "LENGTH", "KIND", "EPOCH", "STORED", "TOPIC", "QUEUE", "FIRST", "COUNT", "SET",
    "FLAGS", "CHECK", "CONTENT",
];

#[derive(Serialize)]
struct Shown {
    offset: u64,
    length: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    set_index: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    set_count: Option<u16>,
    flags: Vec<&'static str>,
    /// `ok`, or what is wrong.
    check: String,
    /// How the bodies are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    codec: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<ShownMessage>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<String>,
}

#[derive(Serialize)]
struct ShownMessage {
    id: Option<String>,
    keys: Vec<String>,
    tag: Option<String>,
    message_group: Option<String>,
    body_len: u32,
}

impl From<DumpedMessage> for ShownMessage {
    fn from(message: DumpedMessage) -> Self {
        let DumpedMessage { id, keys, tag, message_group, body_len } = message;
        Self { id, keys, tag, message_group, body_len }
    }
}

impl Shown {
    fn gap(range: &std::ops::Range<PhysicalOffset>, reason: String) -> Self {
        Self {
            offset: range.start.get(),
            length: range.end.since(range.start),
            kind: "gap",
            epoch: None,
            store_time: None,
            topic_id: None,
            queue: None,
            queue_offset: None,
            count: None,
            set_index: None,
            set_count: None,
            flags: Vec::new(),
            check: reason,
            codec: None,
            messages: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn record(header: &RecordHeader, content: Result<Content, String>) -> Self {
        let is_message = header.kind == RecordKind::Message;
        let has_offset = is_message && !header.flags.contains(RecordFlags::NO_QUEUE_OFFSET);
        let named = [
            (RecordFlags::NO_QUEUE_OFFSET, "no_queue_offset"),
            (RecordFlags::HAS_UNTAGGED, "has_untagged"),
            (RecordFlags::HAS_MESSAGE_GROUP, "has_message_group"),
        ];
        let mut shown = Self {
            offset: header.physical_offset.get(),
            length: u64::from(header.total_len),
            kind: match header.kind {
                RecordKind::Message => "message",
                RecordKind::State => "state",
                RecordKind::Epoch => "epoch",
                RecordKind::Filler => "filler",
            },
            epoch: Some(header.epoch.get()),
            store_time: Some(time::render(header.store_time)),
            topic_id: is_message.then(|| header.topic.get()),
            queue: is_message.then(|| header.queue.get()),
            queue_offset: has_offset.then(|| header.queue_offset.get()),
            count: is_message.then_some(header.message_count),
            set_index: Some(header.set_index),
            set_count: Some(header.set_count),
            flags: named
                .into_iter()
                .filter_map(|(flag, name)| header.flags.contains(flag).then_some(name))
                .collect(),
            check: "ok".to_owned(),
            codec: None,
            messages: Vec::new(),
            changes: Vec::new(),
        };
        match content {
            Ok(Content::Messages { codec, messages }) => {
                shown.codec = (codec != 0).then(|| codec_name(codec));
                shown.messages = messages.into_iter().map(ShownMessage::from).collect();
            }
            Ok(Content::State(changes)) => shown.changes = changes,
            Ok(Content::Epoch(words)) => shown.changes = vec![words],
            Err(reason) => shown.check = reason,
        }
        shown
    }

    /// What it holds, on one line.
    fn content(&self) -> String {
        let message = |message: &ShownMessage| {
            let mut words = Vec::new();
            words.extend(message.id.as_ref().map(|id| format!("id {id}")));
            if !message.keys.is_empty() {
                words.push(format!("keys {}", message.keys.join(",")));
            }
            words.extend(message.tag.as_ref().map(|tag| format!("tag {tag}")));
            words.extend(message.message_group.as_ref().map(|group| format!("group {group}")));
            words.push(format!("body {} B", message.body_len));
            words.join(" ")
        };
        let content = match self.messages.as_slice() {
            [] => self.changes.join("; "),
            [one] => message(one),
            [first, rest @ ..] => format!("{}; {} more", message(first), rest.len()),
        };
        match &self.codec {
            Some(codec) => format!("{codec}: {content}"),
            None => content,
        }
    }
}

/// The name of a codec, or its number if it has none.
fn codec_name(number: u32) -> String {
    Codec::from_number(number).map_or_else(|| number.to_string(), |codec| codec.to_string())
}

impl Row for Shown {
    fn cells(&self) -> Vec<String> {
        fn text(value: Option<impl ToString>) -> String {
            value.map_or_else(String::new, |value| value.to_string())
        }
        let set = self.set_index.zip(self.set_count).filter(|(_, count)| *count > 1);
        vec![
            self.offset.to_string(),
            self.length.to_string(),
            self.kind.to_owned(),
            text(self.epoch),
            text(self.store_time.as_ref()),
            text(self.topic_id),
            text(self.queue),
            text(self.queue_offset),
            text(self.count),
            text(set.map(|(index, count)| format!("{}/{count}", index + 1))),
            self.flags.join(","),
            self.check.clone(),
            self.content(),
        ]
    }
}
