//! `mainstem client`: list and show who is connected over the protocol of RocketMQ.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{Output, Row, fields, say};
use super::time::rough;
use super::{Connection, patiently};
use crate::client::{ClientKind, ConnectedClient, FilterKind};

/// List and show the clients that are connected over the protocol of RocketMQ
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// List all clients by id
    List,
    /// Show a client, with its topics or subscriptions
    Show(IdArgs),
}

/// A client by its id.
#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// The client, as it calls itself
    id: String,
}

/// Runs the command.
pub(crate) async fn run(
    command: ClientCommand,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let client = connection.open().await?;
    match command {
        ClientCommand::List => {
            let mut many = output.many(HEADER);
            let mut after = String::new();
            loop {
                let (clients, more) = patiently(|| client.clients(&after)).await?;
                for one in &clients {
                    many.push(&Shown::from(one))?;
                }
                match clients.last() {
                    Some(last) if more => after.clone_from(&last.id),
                    _ => break,
                }
            }
            let none = many.count() == 0;
            many.finish()?;
            if none {
                say("no clients are connected over the protocol of RocketMQ");
            }
        }
        ClientCommand::Show(args) => {
            let found = patiently(|| client.describe_client(&args.id)).await?;
            let shown = Shown::from(&found);
            output.one(&shown, || shown.table())?;
        }
    }
    Ok(())
}

const HEADER: &[&str] = &["ID", "KIND", "LANGUAGE", "VERSION", "GROUP", "ADDRESS", "AGE", "IDLE"];

#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    kind: &'static str,
    language: &'a str,
    version: &'a str,
    hostname: &'a str,
    address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    topics: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions: Vec<Subscribed<'a>>,
    streams: u32,
    age_ms: u64,
    idle_ms: u64,
}

#[derive(Serialize)]
struct Subscribed<'a> {
    topic: &'a str,
    kind: &'static str,
    expression: &'a str,
}

impl<'a> From<&'a ConnectedClient> for Shown<'a> {
    fn from(client: &'a ConnectedClient) -> Self {
        let subscribed = client.subscriptions.iter().map(|one| Subscribed {
            topic: &one.topic,
            kind: match one.kind {
                FilterKind::Tags => "tags",
                FilterKind::Sql => "sql",
                FilterKind::Unrecognised => "unknown",
            },
            expression: &one.expression,
        });
        Self {
            id: &client.id,
            kind: match client.kind {
                ClientKind::Producer => "producer",
                ClientKind::PushConsumer => "push-consumer",
                ClientKind::SimpleConsumer => "simple-consumer",
                ClientKind::PullConsumer => "pull-consumer",
                ClientKind::LitePushConsumer => "lite-push-consumer",
                ClientKind::LiteSimpleConsumer => "lite-simple-consumer",
                ClientKind::Unrecognised => "unknown",
            },
            language: &client.language,
            version: &client.version,
            hostname: &client.hostname,
            address: &client.address,
            group: client.group.as_deref(),
            topics: client.topics.iter().map(String::as_str).collect(),
            subscriptions: subscribed.collect(),
            streams: client.streams,
            age_ms: u64::try_from(client.age.as_millis()).unwrap_or(u64::MAX),
            idle_ms: u64::try_from(client.idle.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Shown<'_> {
    fn table(&self) -> String {
        let mut rows = vec![
            ("id", self.id.to_owned()),
            ("kind", self.kind.to_owned()),
            ("language", self.language.to_owned()),
            ("version", self.version.to_owned()),
            ("hostname", self.hostname.to_owned()),
            ("address", self.address.to_owned()),
            ("group", self.group.unwrap_or_default().to_owned()),
            ("streams", self.streams.to_string()),
            ("age", rough(self.age_ms)),
            ("idle", rough(self.idle_ms)),
        ];
        rows.extend(self.topics.iter().map(|topic| ("topic", (*topic).to_owned())));
        let subscribed =
            |one: &Subscribed<'_>| format!("{} {} {}", one.topic, one.kind, one.expression);
        rows.extend(self.subscriptions.iter().map(|one| ("subscription", subscribed(one))));
        fields(rows)
    }
}

impl Row for Shown<'_> {
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_owned(),
            self.kind.to_owned(),
            self.language.to_owned(),
            self.version.to_owned(),
            self.group.unwrap_or_default().to_owned(),
            self.address.to_owned(),
            rough(self.age_ms),
            rough(self.idle_ms),
        ]
    }
}
