//! `mainstem query`: find messages by key or id.
//!
//! `--id` takes both kinds: a text of the form `<epoch>-<physical offset>-<index>` is a message id and needs no topic;
//! anything else is a producer's id. If a topic is named and no message has that message id, it is looked for as a
//! producer's id too.

use clap::{ArgGroup, Args};

use super::error::{Exit, Failure};
use super::message::{HEADER, Shown};
use super::output::{Many, Output, say};
use super::{Connection, patiently, time};
use crate::client::{Client, Order, Query, Reason, Selector};
use crate::message::{MessageId, Timestamp};

/// Messages in one answer of the broker.
const PAGE: u64 = 1_000;

/// What to find.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true), after_help = EXAMPLES)]
pub(crate) struct QueryArgs {
    /// The topic; not needed for a message id
    #[arg(short, long)]
    topic: Option<String>,
    /// Messages that carry this key
    #[arg(long, group = "what", requires = "topic")]
    key: Option<String>,
    /// The message with this id: the broker's (like 1-2f80-0), or the one its producer gave it
    #[arg(long, group = "what")]
    id: Option<String>,
    /// Stored at this time or later: 2026-07-01T12:00:00Z, or 10m or 2h ago for so long before now
    #[arg(long, value_name = "TIME", value_parser = time::moment_from_now)]
    since: Option<Timestamp>,
    /// Stored at this time or earlier
    #[arg(long, value_name = "TIME", value_parser = time::moment_from_now)]
    until: Option<Timestamp>,
    /// At most so many messages
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// The oldest first instead of the newest
    #[arg(long)]
    oldest_first: bool,
}

const EXAMPLES: &str = "\
Examples:
  mainstem query -t orders --key order-4711
  mainstem query -t orders --key customer-7 --since '2h ago' --limit 1000
  mainstem query --id 1-2f80-0
  mainstem query -t orders --id 9e107d9d-372b-4dc3

A search by key that finds nothing ends with 0, one for an id with 3.";

/// Runs the command.
pub(crate) async fn run(
    args: QueryArgs,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let topic = args.topic.as_deref();
    let message_id = args.id.as_deref().and_then(|id| id.parse::<MessageId>().ok());
    if let (None, None, Some(id)) = (topic, message_id, &args.id) {
        let what = format!("`{id}` is no message id, so it is one that a producer gave");
        return Err(Failure::usage(what).cure("name its topic with -t").into());
    }
    if let (Some(since), Some(until)) = (args.since, args.until)
        && since > until
    {
        return Err(Failure::usage("--since is later than --until").into());
    }

    let client = connection.open().await?;
    let mut many = output.many(HEADER);
    let mut search = Search { client: &client, args: &args, incomplete: None, left: args.limit };
    if let Some(id) = message_id {
        search.run(Selector::MessageId(id), &mut many).await?;
    }
    if let (0, Some(topic)) = (many.count(), topic) {
        if let Some(id) = &args.id {
            search.run(Selector::ProducerId { topic, id }, &mut many).await?;
        } else if let Some(key) = &args.key {
            search.run(Selector::Key { topic, key }, &mut many).await?;
        }
    }
    let incomplete = search.incomplete;
    let found = many.count();
    many.finish()?;

    if let Some(reason) = &incomplete {
        say(format_args!("incomplete: messages may be missing ({reason})"));
    }
    match (&args.id, &args.key) {
        (Some(id), _) if found == 0 => {
            Err(Failure::new(Exit::NotFound, format!("no message has the id {id}")).into())
        }
        (_, Some(key)) if found == 0 => {
            say(format_args!("no message has the key {key}"));
            Ok(())
        }
        _ => Ok(()),
    }
}

struct Search<'a> {
    client: &'a Client,
    args: &'a QueryArgs,
    /// Why messages may be missing, if they may.
    incomplete: Option<String>,
    /// Messages still wanted.
    left: u64,
}

impl Search<'_> {
    /// Asks page by page until there is no more or enough.
    async fn run(&mut self, selector: Selector<'_>, many: &mut Many<'_>) -> anyhow::Result<()> {
        let by_message_id = matches!(selector, Selector::MessageId(_));
        let mut query = Query {
            selector,
            begin: self.args.since.filter(|_| !by_message_id),
            end: self.args.until.filter(|_| !by_message_id),
            order: if self.args.oldest_first { Order::OldestFirst } else { Order::NewestFirst },
            limit: 0,
            page: String::new(),
        };
        while self.left > 0 {
            query.limit = u32::try_from(self.left.min(PAGE)).unwrap_or(1);
            let found = match patiently(|| self.client.query(&query)).await {
                Ok(found) => found,
                // For an id this is an answer; the caller says it in its own words.
                Err(error) if error.reason() == Some(Reason::MessageNotFound) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            for message in
                found.messages.iter().take(usize::try_from(self.left).unwrap_or(usize::MAX))
            {
                many.push(&Shown(message))?;
                self.left -= 1;
            }
            if found.incomplete.is_some() {
                self.incomplete = found.incomplete;
            }
            match found.next_page {
                Some(page) => query.page = page,
                None => break,
            }
        }
        Ok(())
    }
}
