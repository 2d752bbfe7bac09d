//! `mainstem session`: list, show and close producer sessions.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{Output, Row, fields, say};
use super::time::rough;
use super::{Connection, patiently};
use crate::client::ProducerSession;

/// List, show and close producer sessions
#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List all producer sessions by name
    List,
    /// Show a producer session
    Show(NameArgs),
    /// Forget a producer session
    ///
    /// Its producer is refused from now on, and what it has no answer for must not be sent again: nothing knows any
    /// more whether it is stored.
    Close(NameArgs),
}

/// A session by its name.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The producer session
    name: String,
}

/// Runs the command.
pub(crate) async fn run(
    command: SessionCommand,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let client = connection.open().await?;
    match command {
        SessionCommand::List => {
            let mut many = output.many(HEADER);
            let mut after = String::new();
            loop {
                let (sessions, more) = patiently(|| client.sessions(&after)).await?;
                for session in &sessions {
                    many.push(&Shown::from(session))?;
                }
                match sessions.last() {
                    Some(last) if more => after.clone_from(&last.name),
                    _ => break,
                }
            }
            let none = many.count() == 0;
            many.finish()?;
            if none {
                say("no producer sessions: `mainstem send --session NAME` opens one");
            }
        }
        SessionCommand::Show(args) => {
            let session = patiently(|| client.describe_session(&args.name)).await?;
            let shown = Shown::from(&session);
            output.one(&shown, || shown.table())?;
        }
        SessionCommand::Close(args) => {
            patiently(|| client.close_session(&args.name)).await?;
            let closed = Closed { closed: &args.name };
            output.one(&closed, || format!("closed {}", args.name))?;
        }
    }
    Ok(())
}

const HEADER: &[&str] = &["NAME", "ID", "EPOCH", "LAST", "IDLE"];

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    id: u64,
    epoch: u64,
    last_sequence: u64,
    idle_ms: u64,
}

#[derive(Serialize)]
struct Closed<'a> {
    closed: &'a str,
}

impl<'a> From<&'a ProducerSession> for Shown<'a> {
    fn from(session: &'a ProducerSession) -> Self {
        Self {
            name: &session.name,
            id: session.id.get(),
            epoch: session.epoch,
            last_sequence: session.last_sequence,
            idle_ms: u64::try_from(session.idle.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Shown<'_> {
    fn idle(&self) -> String {
        rough(self.idle_ms)
    }

    fn table(&self) -> String {
        fields(vec![
            ("name", self.name.to_owned()),
            ("id", self.id.to_string()),
            ("epoch", self.epoch.to_string()),
            ("last", self.last_sequence.to_string()),
            ("idle", self.idle()),
        ])
    }
}

impl Row for Shown<'_> {
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_owned(),
            self.id.to_string(),
            self.epoch.to_string(),
            self.last_sequence.to_string(),
            self.idle(),
        ]
    }
}
