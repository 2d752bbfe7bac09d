//! `mainstem send`: store messages.
//!
//! Records are sent one after the other, so that they lie in the order of the input. A refusal that passes by itself
//! (overload, no space) is waited for. A send whose outcome is unknown is repeated under a producer session only
//! (`--session`), where it is stored once; else it ends the command with its own exit code, and the message says how
//! much was stored before.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgGroup, Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::error::{Exit, Failure};
use super::output::{Format, Many, Output, Progress, Row, say, table};
use super::{Connection, patiently, time};
use crate::client::{Client, ClientError, Receipt, Session, Stored};
use crate::format::batch::{BatchBuilder, Codec, Compressor, NewMeta, limits};
use crate::message::{QueueId, Timestamp};

/// Bytes of a line of `--jsonl`: a body of 4 MiB in the longest escapes, and what belongs to it.
const JSON_LINE_MAX: usize = 32 << 20;

/// What to send.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true).args(["body", "lines", "jsonl"]),
    after_help = EXAMPLES
)]
pub(crate) struct SendArgs {
    /// The topic; made if it is not there
    #[arg(short, long)]
    topic: String,
    /// The body of one message
    body: Option<String>,
    /// A key by which queries find the message; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// The tag by which readers filter
    #[arg(long)]
    tag: Option<String>,
    /// A property; may be repeated
    #[arg(long = "prop", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
    /// Your own id of the message, for `query --id`
    #[arg(long, conflicts_with_all = ["lines", "jsonl"])]
    id: Option<String>,
    /// Store in this queue [default: that of the group, else one after the other]
    #[arg(long, value_name = "N", conflicts_with = "group")]
    queue: Option<u32>,
    /// The message group: its messages share a queue and stay in order
    #[arg(long)]
    group: Option<String>,
    /// One message per line of this file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// One message per line of this file of JSON objects, `-` for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keys", "tag", "properties", "group"])]
    jsonl: Option<PathBuf>,
    /// Pack so many messages of --lines or --jsonl into a record: faster, stored all or none
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "body",
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Compress each record with lz4 or zstd, if that makes it smaller
    #[arg(long, value_name = "CODEC", default_value = "none", hide_possible_values = true)]
    compression: CodecArg,
    /// Send as this producer: what has no answer is sent again and stored once; no other may have the name meanwhile
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CodecArg {
    None,
    Lz4,
    Zstd,
}

impl CodecArg {
    fn codec(self) -> Codec {
        match self {
            Self::None => Codec::None,
            Self::Lz4 => Codec::Lz4,
            Self::Zstd => Codec::Zstd,
        }
    }
}

/// How records go out.
struct Out {
    way: Way,
    compressor: Compressor,
}

/// Under whose name.
enum Way {
    Plain(Client),
    Session(Session),
}

const EXAMPLES: &str = "\
Fields of a line of --jsonl: key or keys, tag, properties, body or body_base64, and message_group,
producer_id, born_time, encoding. What `pull -o jsonl` writes can be sent again; its id, topic,
queue, offset and store_time are then passed over.

Records are stored in the order of the lines. Without --queue or --group they go to the queues in
turn; name a queue to read them back in one order.

Examples:
  mainstem send -t orders 'one book' --key order-4711 --key customer-7 --tag paid
  mainstem send -t orders 'one pen' --prop colour=blue --group customer-7
  seq 1000 | mainstem send -t numbers --queue 0 --lines - --batch 100
  mainstem pull -t orders -o jsonl | mainstem send -t copy --jsonl -
  mainstem send -t orders --jsonl orders.jsonl --session shop-1
  mainstem send -t orders --jsonl orders.jsonl --batch 100 --compression lz4";

fn property(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give NAME=VALUE"),
    }
}

/// Runs the command.
pub(crate) async fn run(
    args: SendArgs,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let input = match (&args.lines, &args.jsonl) {
        (Some(file), _) => Some((Input::open(file)?, Kind::Lines)),
        (_, Some(file)) => Some((Input::open(file)?, Kind::Jsonl)),
        _ => None,
    };
    let compressor = Compressor::new(args.compression.codec())?;
    let client = connection.open().await?;
    let way = match &args.session {
        Some(name) => Way::Session(patiently(|| client.open_session(name)).await?),
        None => Way::Plain(client),
    };
    let mut out = Out { way, compressor };
    match input {
        Some((input, kind)) => send_all(&args, input, kind, &mut out, output).await,
        None => send_one(&args, &mut out, output).await,
    }
}

async fn send_one(args: &SendArgs, out: &mut Out, output: &mut Output) -> anyhow::Result<()> {
    let mut message = Outgoing::template(args);
    message.body = args.body.clone().unwrap_or_default().into_bytes();
    let mut record = RecordBuilder::default();
    record.push(&message);
    let receipt = record.send(args, out).await?;
    let sent = Sent::new(&args.topic, &receipt);
    output.one(&sent, || table(SENT_HEADER, vec![sent.cells()]))?;
    Ok(())
}

/// Sends line by line. What was stored before a failure is said on stderr.
async fn send_all(
    args: &SendArgs,
    mut input: Input,
    kind: Kind,
    out: &mut Out,
    output: &mut Output,
) -> anyhow::Result<()> {
    let people = output.format() == Format::Table;
    let mut sender = Sender {
        args,
        out,
        record: RecordBuilder::default(),
        total: Total::default(),
        receipts: (!people).then(|| output.many(SENT_HEADER)),
        progress: Progress::beside_results("messages sent"),
    };
    let result = sender.send_lines(&mut input, kind).await;
    let Sender { receipts, total, .. } = sender;
    if let Some(receipts) = receipts {
        receipts.finish()?;
    } else if result.is_ok() {
        output.one(&(), || total.table(&args.topic))?;
    }
    if result.is_err() {
        say(format_args!("stored before the failure: {}", counted(total.messages, "message")));
    }
    result
}

/// The state of a send of many.
struct Sender<'a> {
    args: &'a SendArgs,
    out: &'a mut Out,
    /// What goes out next.
    record: RecordBuilder,
    total: Total,
    /// Where each receipt is written; people get the sum.
    receipts: Option<Many<'a>>,
    progress: Progress,
}

impl Sender<'_> {
    /// Sends every record as soon as it is full, so that a line that comes late holds up no other.
    async fn send_lines(&mut self, input: &mut Input, kind: Kind) -> anyhow::Result<()> {
        loop {
            let message = input.next(kind, self.args).with_context(|| input.place(input.line))?;
            let Some(message) = message else { return self.send_record(input).await };
            if !self.record.takes(&message, self.args.batch) {
                self.send_record(input).await?;
            }
            if self.record.is_empty() {
                self.record.first_line = input.line;
            }
            self.record.push(&message);
            if self.record.len() >= u64::from(self.args.batch) {
                self.send_record(input).await?;
            }
        }
    }

    async fn send_record(&mut self, input: &Input) -> anyhow::Result<()> {
        if self.record.is_empty() {
            return Ok(());
        }
        let record = std::mem::take(&mut self.record);
        let place = input.place(record.first_line);
        let receipt = record.send(self.args, self.out).await.context(place)?;
        self.progress.add(receipt.count.into());
        self.total.add(&receipt);
        if let Some(receipts) = &mut self.receipts {
            receipts.push(&Sent::new(&self.args.topic, &receipt))?;
            receipts.flush()?;
        }
        Ok(())
    }
}

/// One message on its way out.
#[derive(Debug, Default)]
struct Outgoing {
    keys: Vec<String>,
    tag: Option<String>,
    properties: Vec<(String, String)>,
    group: Option<String>,
    id: Option<String>,
    born: Option<Timestamp>,
    encoding: u32,
    body: Vec<u8>,
}

impl Outgoing {
    /// What the options say about every message.
    fn template(args: &SendArgs) -> Self {
        Self {
            keys: args.keys.clone(),
            tag: args.tag.clone(),
            properties: args.properties.clone(),
            group: args.group.clone(),
            id: args.id.clone(),
            ..Self::default()
        }
    }
}

/// The messages of one record.
#[derive(Default)]
struct RecordBuilder {
    batch: BatchBuilder,
    group: Option<String>,
    first_line: u64,
}

impl RecordBuilder {
    fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    fn len(&self) -> u64 {
        self.batch.message_count() as u64
    }

    /// Whether `message` can join: a record has one message group, and limits.
    fn takes(&self, message: &Outgoing, most: u32) -> bool {
        let text: usize = message.keys.iter().map(String::len).sum::<usize>()
            + message
                .properties
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>();
        // What is not counted here (tag, id, lengths) has room below the limit.
        let len = self.batch.len() + message.body.len() + text + (8 << 10);
        self.is_empty()
            || (self.len() < u64::from(most)
                && self.group == message.group
                && len <= limits::BATCH_LEN)
    }

    fn push(&mut self, message: &Outgoing) {
        let keys: Vec<&str> = message.keys.iter().map(String::as_str).collect();
        let properties: Vec<(&str, &str)> = message
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let meta = NewMeta {
            keys,
            tag: message.tag.as_deref(),
            properties,
            message_group: message.group.as_deref(),
            id: message.id.as_deref(),
            born_ms: message.born.unwrap_or_else(time::now).get(),
            encoding: message.encoding,
            trace_context: None,
            born_host: None,
        };
        self.batch.push(&meta, &message.body);
        self.group.clone_from(&message.group);
    }

    async fn send(self, args: &SendArgs, out: &mut Out) -> anyhow::Result<Receipt> {
        let batch = self.batch.finish_compressed(&mut out.compressor);
        let queue = args.queue.map(QueueId::new);
        let sent = match &mut out.way {
            Way::Plain(client) => {
                patiently(|| client.send(&args.topic, queue, batch.clone())).await
            }
            Way::Session(session) => session.send(&args.topic, queue, batch).await,
        };
        sent.map_err(|error| match (&error, error.stored()) {
            (ClientError::NoAnswer { .. }, Stored::Unknown) => {
                let what = format!("{error}: the message may or may not be stored");
                Failure::new(Exit::MayBeStored, what)
                    .cure("look with `mainstem query` or `mainstem pull` before sending it again")
                    .into()
            }
            _ => error.into(),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lines,
    Jsonl,
}

/// A file or standard input, read line by line.
struct Input {
    name: String,
    /// The number of the last line that was read, from 1.
    line: u64,
    reader: Box<dyn BufRead>,
}

impl Input {
    fn open(file: &PathBuf) -> anyhow::Result<Self> {
        if file.as_os_str() == "-" {
            let reader = Box::new(BufReader::new(std::io::stdin()));
            return Ok(Self { name: "standard input".to_owned(), line: 0, reader });
        }
        let name = file.display().to_string();
        let opened = File::open(file).with_context(|| format!("cannot open {name}"))?;
        Ok(Self { name, line: 0, reader: Box::new(BufReader::with_capacity(256 << 10, opened)) })
    }

    fn place(&self, line: u64) -> String {
        format!("{}, line {line}", self.name)
    }

    /// The message of the next line, if there is one.
    fn next(&mut self, kind: Kind, args: &SendArgs) -> anyhow::Result<Option<Outgoing>> {
        let most = if kind == Kind::Lines { limits::BODY_LEN } else { JSON_LINE_MAX };
        loop {
            let Some(line) = self.next_line(most)? else { return Ok(None) };
            match kind {
                Kind::Lines => {
                    return Ok(Some(Outgoing { body: line, ..Outgoing::template(args) }));
                }
                Kind::Jsonl if line.trim_ascii().is_empty() => {}
                Kind::Jsonl => return parse(&line).map(Some),
            }
        }
    }

    /// The bytes of the next line without its end. Never more than `most` in memory.
    fn next_line(&mut self, most: usize) -> anyhow::Result<Option<Vec<u8>>> {
        self.line += 1;
        let mut line = Vec::new();
        // Room for the line's end beside the longest line.
        let mut bounded = (&mut self.reader).take(most as u64 + 2);
        if bounded.read_until(b'\n', &mut line).context("cannot read")? == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        }
        if line.len() > most {
            let what = format!("the line is longer than {most} bytes");
            return Err(Failure::new(Exit::Failed, what).into());
        }
        Ok(Some(line))
    }
}

/// A line of `--jsonl`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonMessage {
    key: Option<String>,
    keys: Option<Vec<String>>,
    tag: Option<String>,
    #[serde(default)]
    properties: std::collections::BTreeMap<String, String>,
    message_group: Option<String>,
    producer_id: Option<String>,
    born_time: Option<String>,
    encoding: Option<JsonEncoding>,
    body: Option<String>,
    body_base64: Option<String>,
    /// What the broker decides anew.
    #[serde(rename = "id")]
    _id: Option<serde::de::IgnoredAny>,
    #[serde(rename = "topic")]
    _topic: Option<serde::de::IgnoredAny>,
    #[serde(rename = "queue")]
    _queue: Option<serde::de::IgnoredAny>,
    #[serde(rename = "offset")]
    _offset: Option<serde::de::IgnoredAny>,
    #[serde(rename = "store_time")]
    _store_time: Option<serde::de::IgnoredAny>,
    #[serde(rename = "dead_letter")]
    _dead_letter: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum JsonEncoding {
    Gzip,
}

fn parse(line: &[u8]) -> anyhow::Result<Outgoing> {
    let json: JsonMessage = serde_json::from_slice(line)?;
    let keys = match (json.key, json.keys) {
        (Some(_), Some(_)) => {
            return Err(Failure::new(Exit::Failed, "give key or keys, not both").into());
        }
        (Some(key), None) => vec![key],
        (None, keys) => keys.unwrap_or_default(),
    };
    let body = match (json.body, json.body_base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => STANDARD.decode(base64).context("body_base64")?,
        (None, None) => return Err(Failure::new(Exit::Failed, "give body or body_base64").into()),
        (Some(_), Some(_)) => {
            return Err(Failure::new(Exit::Failed, "give body or body_base64, not both").into());
        }
    };
    let born = json.born_time.map(|text| time::moment_from_now(&text)).transpose();
    Ok(Outgoing {
        keys,
        tag: json.tag,
        properties: json.properties.into_iter().collect(),
        group: json.message_group,
        id: json.producer_id,
        born: born.context("born_time")?,
        encoding: match json.encoding {
            None => 0,
            Some(JsonEncoding::Gzip) => 1,
        },
        body,
    })
}

const SENT_HEADER: &[&str] = &["ID", "TOPIC", "QUEUE", "OFFSET", "COUNT", "STORED"];

/// A stored record.
#[derive(Serialize)]
struct Sent<'a> {
    id: String,
    topic: &'a str,
    queue: u32,
    offset: u64,
    count: u32,
    store_time: String,
}

impl<'a> Sent<'a> {
    fn new(topic: &'a str, receipt: &Receipt) -> Self {
        Self {
            id: receipt.first_id.to_string(),
            topic,
            queue: receipt.queue.get(),
            offset: receipt.first_queue_offset.get(),
            count: receipt.count,
            store_time: time::render(receipt.store_time),
        }
    }
}

impl Row for Sent<'_> {
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.topic.to_owned(),
            self.queue.to_string(),
            self.offset.to_string(),
            self.count.to_string(),
            self.store_time.clone(),
        ]
    }
}

/// A number of things in words.
fn counted(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// What was stored, for people.
#[derive(Default)]
struct Total {
    messages: u64,
    records: u64,
    /// By queue: messages and the end of the last record.
    queues: std::collections::BTreeMap<u32, (u64, u64)>,
}

impl Total {
    fn add(&mut self, receipt: &Receipt) {
        self.messages += u64::from(receipt.count);
        self.records += 1;
        let queue = self.queues.entry(receipt.queue.get()).or_default();
        queue.0 += u64::from(receipt.count);
        queue.1 = receipt.first_queue_offset.get() + u64::from(receipt.count);
    }

    fn table(&self, topic: &str) -> String {
        let rows = self
            .queues
            .iter()
            .map(|(queue, (messages, end))| {
                vec![topic.to_owned(), queue.to_string(), messages.to_string(), end.to_string()]
            })
            .collect();
        let sum =
            format!("{} in {}", counted(self.messages, "message"), counted(self.records, "record"));
        if self.records == 0 {
            return sum;
        }
        format!("{}\n\n{sum}", table(&["TOPIC", "QUEUE", "MESSAGES", "NEXT OFFSET"], rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        format!("{:#}", parse(line.as_bytes()).expect_err("refused"))
    }

    #[test]
    fn a_line_of_json_carries_everything() {
        let line = r#"{"keys":["a","b"],"tag":"t","properties":{"p":"1"},"message_group":"g",
            "producer_id":"mine","born_time":"1970-01-01T00:00:01Z","body_base64":"/wA="}"#;
        let message = parse(line.as_bytes()).expect("legal");
        assert_eq!(message.keys, ["a", "b"]);
        assert_eq!(message.tag.as_deref(), Some("t"));
        assert_eq!(message.properties, [("p".to_owned(), "1".to_owned())]);
        assert_eq!(message.group.as_deref(), Some("g"));
        assert_eq!(message.id.as_deref(), Some("mine"));
        assert_eq!(message.born, Some(Timestamp::new(1_000)));
        assert_eq!(message.body, b"\xff\x00");
    }

    #[test]
    fn what_pull_writes_can_be_sent_again() {
        let line = r#"{"id":"1-0-0","producer_id":null,"topic":"x","queue":2,"offset":10,
            "store_time":"2026-07-01T12:00:00.007Z","born_time":null,"keys":["k"],"tag":null,
            "properties":{},"body":"hello"}"#;
        let message = parse(line.as_bytes()).expect("legal");
        assert_eq!((message.keys, message.body), (vec!["k".to_owned()], b"hello".to_vec()));
    }

    #[test]
    fn a_line_of_json_that_is_not_understood_says_why() {
        assert_eq!(refused(r#"{"key":"a","keys":["b"],"body":""}"#), "give key or keys, not both");
        assert_eq!(refused(r#"{"key":"a"}"#), "give body or body_base64");
        assert!(refused(r#"{"bdoy":"a"}"#).starts_with("unknown field `bdoy`"));
        assert!(refused(r#"{"body":"a""#).starts_with("EOF while parsing"));
    }

    #[test]
    fn lines_lose_their_end_and_nothing_else() {
        let mut input = Input {
            name: "here".to_owned(),
            line: 0,
            reader: Box::new(&b"one\n\n two \r\n\xff"[..]),
        };
        let mut lines = Vec::new();
        while let Some(line) = input.next_line(5).expect("short enough") {
            lines.push(line);
        }
        assert_eq!(lines, [&b"one"[..], b"", b" two ", b"\xff"]);
    }

    #[test]
    fn a_line_beyond_the_limit_is_refused_before_it_fills_the_memory() {
        let mut input = Input {
            name: "here".to_owned(),
            line: 0,
            reader: Box::new(BufReader::new(std::io::repeat(b'x'))),
        };
        let error = input.next_line(5).expect_err("too long");
        assert_eq!(error.to_string(), "the line is longer than 5 bytes");
    }
}
