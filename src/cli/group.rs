//! `mainstem group`: make, list, show, change and delete consumer groups, and send their dead letters back.

use std::collections::HashSet;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::error::{Exit, Failure};
use super::message::one_line;
use super::offset::{PROGRESS, progress_cells};
use super::output::{Output, Progress, Row, fields, say, table};
use super::{Connection, patiently, time};
use crate::client::{
    Audience, Client, DeadReason, Group, GroupDescription, GroupSettings, QueueProgress, Redrive,
    Redriven, Run, SettledMessage, WaitingAction, WaitingMessage, WaitingPage,
};
use crate::message::{InitialPosition, MessageId, OtherFilters, Timestamp};

/// Make, list, show, change and delete consumer groups
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Make a consumer group
    ///
    /// If it is there already with the same settings, nothing happens; with other settings it is an error.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List all consumer groups by name
    List,
    /// Show a consumer group and where it is
    Show(NameArgs),
    /// Change a consumer group
    ///
    /// What is not named stays as it is.
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(UpdateArgs),
    /// Send dead letters of a group back to the topics that they come from
    ///
    /// The group alone gets them again, or all that receive from the topic. Each is in one of the two topics, whatever
    /// happens.
    #[command(after_help = REDRIVE_EXAMPLES)]
    Redrive(RedriveArgs),
    /// Show what waits of a topic for another delivery to a group
    ///
    /// That is what was delivered, is not finished, and nobody has.
    Waiting(WaitingArgs),
    /// Let messages that wait be delivered now
    #[command(after_help = RETRY_EXAMPLES)]
    Retry(SettleArgs),
    /// Make dead letters of messages that wait
    Bury(SettleArgs),
    /// Delete a consumer group with its committed offsets
    ///
    /// Pulls that wait in its name end at once. A group made later under the same name is another one.
    Delete(NameArgs),
}

const CREATE_EXAMPLES: &str = "\
Examples:
  mainstem group create billing
  mainstem group create audit --initial latest
  mainstem group create steps --fifo --max-attempts 5 --retry-delays 1s,10s,1m";

const UPDATE_EXAMPLES: &str = "\
Examples:
  mainstem group update billing --disable
  mainstem group update billing --enable --max-attempts unlimited";

const REDRIVE_EXAMPLES: &str = "\
Examples:
  mainstem pull -t %DLQ%billing                 what there is, with its ids
  mainstem group redrive billing --dry-run      what would go, and where to
  mainstem group redrive billing --id 1-1a30-0  this one
  mainstem group redrive billing --all --reason attempts --since 2h --rate 50";

/// Which dead letters go back.
#[derive(Debug, Args)]
pub(crate) struct RedriveArgs {
    /// The group
    name: String,
    /// Only the one with this id among the dead letters; may be given again
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<MessageId>,
    /// Only those that died for this reason: attempts, given_up, undecodable or operator
    #[arg(long, value_name = "REASON", value_enum, hide_possible_values = true)]
    reason: Option<Reason>,
    /// Only those with this key
    #[arg(long)]
    key: Option<String>,
    /// Only those that became dead letters at this time or later: 2026-07-01T12:00:00Z, or 10m or 2h ago
    #[arg(long, value_name = "TIME", value_parser = time::moment_from_now)]
    since: Option<Timestamp>,
    /// Only those that became dead letters at this time or earlier
    #[arg(long, value_name = "TIME", value_parser = time::moment_from_now)]
    until: Option<Timestamp>,
    /// At most so many
    #[arg(short = 'n', value_name = "N", default_value_t = 100, conflicts_with = "all",
          value_parser = clap::value_parser!(u64).range(1..))]
    max: u64,
    /// All of them
    #[arg(long)]
    all: bool,
    /// At most so many in a second [default: as fast as they go]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// All groups that receive from the topic get them again, not this one alone
    #[arg(long)]
    all_groups: bool,
    /// Say what would go and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Why messages are dead letters.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Reason {
    Attempts,
    GivenUp,
    Undecodable,
    Operator,
}

impl From<Reason> for DeadReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Attempts => Self::Attempts,
            Reason::GivenUp => Self::GivenUp,
            Reason::Undecodable => Self::Undecodable,
            Reason::Operator => Self::Operator,
        }
    }
}

const RETRY_EXAMPLES: &str = "\
Examples:
  mainstem group waiting billing orders             what waits, with its ids
  mainstem group retry billing orders --all         all of it, up to 1 024 at once
  mainstem group bury billing orders --id 1-1a30-0  a dead letter, whatever is left of its deliveries";

/// Of what is to be shown what waits.
#[derive(Debug, Args)]
pub(crate) struct WaitingArgs {
    /// The group
    name: String,
    /// The topic
    topic: String,
    /// At most so many messages
    #[arg(short = 'n', value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=1_024))]
    max: u32,
}

/// Which messages that wait are to become something else.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(crate) struct SettleArgs {
    /// The group
    name: String,
    /// The topic
    topic: String,
    /// The one with this id; may be given again
    #[arg(long = "id", value_name = "ID", group = "which")]
    ids: Vec<MessageId>,
    /// Whichever come first
    #[arg(long, group = "which")]
    all: bool,
    /// At most so many
    #[arg(short = 'n', value_name = "N", default_value_t = 1_024,
          value_parser = clap::value_parser!(u32).range(1..=1_024))]
    max: u32,
}

/// What a group is made with.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// 1 to 120 letters, digits, '_' and '-'
    name: String,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What of a group becomes another.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// The group
    name: String,
    /// Let its consumers get messages again
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Let its consumers get no messages until it is enabled again
    #[arg(long)]
    disable: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What both take.
#[derive(Debug, Args)]
struct SettingsArgs {
    /// Deliver messages of one message group one after the other [default: false]
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    fifo: Option<bool>,
    /// What becomes of a member that comes with another filter than the others: served, refused, or the next version
    /// [default: warn]
    #[arg(long, value_name = "warn|refuse|roll", value_enum, hide_possible_values = true)]
    other_filters: Option<Filters>,
    /// How often a message is delivered at most: a number, or unlimited [default: 17]
    #[arg(long, value_name = "N", value_parser = attempts)]
    max_attempts: Option<Attempts>,
    /// The pauses between deliveries, the last one goes on [default: 1s,5s,10s,30s,1m,2m … 2h]
    #[arg(
        long,
        value_name = "TIME,…",
        value_delimiter = ',',
        value_parser = time::duration
    )]
    retry_delays: Option<Vec<Duration>>,
    /// By how much of itself a pause may be longer, in percent [default: 0]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    retry_jitter: Option<u32>,
    /// Where it begins on a topic that is new to it: earliest, latest, or a time [default: earliest]
    #[arg(long, value_name = "PLACE", value_parser = initial)]
    initial: Option<InitialPosition>,
}

/// What becomes of a member with another filter.
#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Filters {
    Warn,
    Refuse,
    Roll,
}

impl From<Filters> for OtherFilters {
    fn from(filters: Filters) -> Self {
        match filters {
            Filters::Warn => Self::Warn,
            Filters::Refuse => Self::Refuse,
            Filters::Roll => Self::Roll,
        }
    }
}

impl From<OtherFilters> for Filters {
    fn from(filters: OtherFilters) -> Self {
        match filters {
            OtherFilters::Warn => Self::Warn,
            OtherFilters::Refuse => Self::Refuse,
            OtherFilters::Roll => Self::Roll,
        }
    }
}

/// A group by its name.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The group
    name: String,
}

/// How often a message is delivered; `None`: without a limit.
#[derive(Clone, Copy, Debug)]
struct Attempts(Option<u32>);

fn attempts(text: &str) -> Result<Attempts, &'static str> {
    match text {
        "unlimited" => Ok(Attempts(None)),
        number => number
            .parse()
            .ok()
            .filter(|count| *count > 0)
            .map(|count| Attempts(Some(count)))
            .ok_or("give a number from 1 on, or unlimited"),
    }
}

fn initial(text: &str) -> Result<InitialPosition, time::BadTime> {
    match text {
        "earliest" => Ok(InitialPosition::Earliest),
        "latest" => Ok(InitialPosition::Latest),
        time => time::moment_from_now(time).map(InitialPosition::Time),
    }
}

impl SettingsArgs {
    fn settings(&self, enabled: Option<bool>) -> GroupSettings {
        let ms = |delay: &Duration| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        GroupSettings {
            enabled,
            ordered: self.fifo,
            other_filters: self.other_filters.map(OtherFilters::from),
            max_attempts: self.max_attempts.map(|attempts| attempts.0),
            retry_delays_ms: self.retry_delays.as_ref().map(|all| all.iter().map(ms).collect()),
            retry_jitter: self.retry_jitter,
            initial_position: self.initial,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(
    command: GroupCommand,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let client = connection.open().await?;
    match command {
        GroupCommand::Create(args) => {
            let settings = args.settings.settings(None);
            let group = patiently(|| client.create_group(&args.name, &settings)).await?;
            let shown = Shown::from(&group);
            output.one(&shown, || table(HEADER, vec![shown.cells()]))?;
        }
        GroupCommand::Update(args) => {
            let enabled = (args.enable || args.disable).then_some(args.enable);
            let settings = args.settings.settings(enabled);
            if settings == GroupSettings::default() {
                let what = format!("nothing to change in {}", args.name);
                return Err(Failure::usage(what).cure("see --help for what can be changed").into());
            }
            let group = patiently(|| client.update_group(&args.name, &settings)).await?;
            let shown = Shown::from(&group);
            output.one(&shown, || table(HEADER, vec![shown.cells()]))?;
        }
        GroupCommand::List => {
            let mut many = output.many(HEADER);
            let mut after = String::new();
            loop {
                let (groups, more) = patiently(|| client.groups(&after)).await?;
                for group in &groups {
                    many.push(&Shown::from(group))?;
                }
                match groups.last() {
                    Some(last) if more => after.clone_from(&last.name),
                    _ => break,
                }
            }
            let none = many.count() == 0;
            many.finish()?;
            if none {
                say("no consumer groups yet: `mainstem group create NAME` makes one");
            }
        }
        GroupCommand::Show(args) => {
            let description = patiently(|| client.describe_group(&args.name)).await?;
            let shown = ShownDescription::from(&description);
            output.one(&shown, || shown.table())?;
        }
        GroupCommand::Redrive(args) => redrive(&client, &args, output).await?,
        GroupCommand::Waiting(args) => {
            let page =
                patiently(|| client.waiting(&args.name, &args.topic, None, args.max)).await?;
            let shown = ShownPage::from((&args, &page));
            output.one(&shown, || shown.table())?;
        }
        GroupCommand::Retry(args) => settle(&client, &args, WaitingAction::Retry, output).await?,
        GroupCommand::Bury(args) => {
            settle(&client, &args, WaitingAction::DeadLetter, output).await?;
        }
        GroupCommand::Delete(args) => {
            patiently(|| client.delete_group(&args.name)).await?;
            let deleted = Deleted { deleted: &args.name };
            output.one(&deleted, || format!("deleted {}", args.name))?;
        }
    }
    Ok(())
}

/// Dead letters of one call.
const CALL: u64 = 1_024;

async fn redrive(client: &Client, args: &RedriveArgs, output: &mut Output) -> anyhow::Result<()> {
    let run = if args.dry_run { Run::Dry } else { Run::Real };
    let wanted = if args.all { u64::MAX } else { args.max };
    let (mut went, mut stay) = (0, HashSet::new());
    let progress = Progress::beside_results("dead letters sent back");
    let mut many = output.many(REDRIVEN);
    let more = loop {
        let redrive = Redrive {
            ids: &args.ids,
            reason: args.reason.map(DeadReason::from),
            key: args.key.as_deref(),
            since: args.since,
            until: args.until,
            max: u32::try_from((wanted - went).min(CALL)).unwrap_or(u32::MAX),
            per_second: args.rate,
            audience: if args.all_groups { Audience::All } else { Audience::OneGroup },
            run,
        };
        // Not repeated: what went before an error is told by the next call.
        let page = match client.redrive(&args.name, &redrive).await {
            Ok(page) => page,
            Err(error) => {
                many.finish()?;
                return Err(error.into());
            }
        };
        let before = went;
        for one in &page.dead_letters {
            // Those that stay are told with each call.
            if one.fault.is_none() || stay.insert(one.id) {
                many.push(&ShownRedriven::from(one))?;
            }
            went += u64::from(one.fault.is_none());
        }
        progress.add(went - before);
        // The next dry run would tell the same.
        if !page.more || went == before || went >= wanted || args.dry_run {
            break page.more && went < wanted;
        }
    };
    drop(progress);
    many.finish()?;
    let all = went + stay.len() as u64;
    match (all, args.dry_run) {
        (0, _) => say("no dead letters that nobody has"),
        (_, true) => say("a dry run: nothing is changed"),
        _ => {}
    }
    if more {
        say(
            "there may be more: of more than 100 000 dead letters the oldest are looked at, and those that stay again",
        );
    }
    if !stay.is_empty() {
        let what = format!("{} of {all} stay where they are", stay.len());
        return Err(Failure::new(Exit::Failed, what).into());
    }
    Ok(())
}

async fn settle(
    client: &Client,
    args: &SettleArgs,
    action: WaitingAction,
    output: &mut Output,
) -> anyhow::Result<()> {
    // Not repeated: what was done before an error is told by the next call.
    let settled =
        client.settle_waiting(&args.name, &args.topic, &args.ids, args.max, action).await?;
    let mut many = output.many(SETTLED);
    for one in &settled {
        many.push(&ShownSettled::from(one))?;
    }
    many.finish()?;
    if settled.is_empty() {
        say("nothing waits");
    }
    let stayed = settled.iter().filter(|one| one.fault.is_some()).count();
    if stayed > 0 {
        let what = format!("{stayed} of {} stay as they are", settled.len());
        return Err(Failure::new(Exit::Failed, what).into());
    }
    Ok(())
}

const WAITING: &[&str] = &["ID", "QUEUE", "OFFSET", "DELIVERIES", "DUE IN", "FIRST", "LAST CLIENT"];

#[derive(Serialize)]
struct ShownPage<'a> {
    group: &'a str,
    topic: &'a str,
    due: u64,
    waiting: u64,
    oldest_ms: Option<u64>,
    next_due_in_ms: Option<u64>,
    message: Vec<ShownWaiting<'a>>,
    more: bool,
}

#[derive(Serialize)]
struct ShownWaiting<'a> {
    id: Option<String>,
    queue: u32,
    offset: u64,
    deliveries: u32,
    due_in_ms: u64,
    first_delivered: Option<String>,
    last_delivered: Option<String>,
    last_client: &'a str,
}

impl<'a> From<&'a WaitingMessage> for ShownWaiting<'a> {
    fn from(one: &'a WaitingMessage) -> Self {
        Self {
            id: one.id.map(|id| id.to_string()),
            queue: one.queue.get(),
            offset: one.queue_offset.get(),
            deliveries: one.deliveries,
            due_in_ms: one.due_in_ms,
            first_delivered: one.first_delivered.map(time::render),
            last_delivered: one.last_delivered.map(time::render),
            last_client: &one.last_client,
        }
    }
}

impl<'a> From<(&'a WaitingArgs, &'a WaitingPage)> for ShownPage<'a> {
    fn from((args, page): (&'a WaitingArgs, &'a WaitingPage)) -> Self {
        Self {
            group: &args.name,
            topic: &args.topic,
            due: page.due,
            waiting: page.waiting,
            oldest_ms: page.oldest_ms,
            next_due_in_ms: page.next_due_in_ms,
            message: page.messages.iter().map(ShownWaiting::from).collect(),
            more: page.more,
        }
    }
}

impl ShownPage<'_> {
    fn table(&self) -> String {
        let length = |ms: Option<u64>| ms.map_or_else(String::new, time::render_length);
        let about = fields(vec![
            ("due", self.due.to_string()),
            ("waiting", self.waiting.to_string()),
            ("oldest", length(self.oldest_ms)),
            ("next due in", length(self.next_due_in_ms)),
        ]);
        if self.message.is_empty() {
            return about;
        }
        let rows = self.message.iter().map(|one| {
            vec![
                one.id.clone().unwrap_or_default(),
                one.queue.to_string(),
                one.offset.to_string(),
                one.deliveries.to_string(),
                time::render_length(one.due_in_ms),
                one.first_delivered.clone().unwrap_or_default(),
                one.last_client.to_owned(),
            ]
        });
        let more = if self.more { "\n\nthere are more: -n shows up to 1 024" } else { "" };
        format!("{about}\n\n{}{more}", table(WAITING, rows.collect()))
    }
}

const SETTLED: &[&str] = &["ID", "QUEUE", "OFFSET", "STAYS"];

#[derive(Serialize)]
struct ShownSettled<'a> {
    id: Option<String>,
    queue: Option<u32>,
    offset: Option<u64>,
    fault: Option<&'a str>,
}

impl<'a> From<&'a SettledMessage> for ShownSettled<'a> {
    fn from(one: &'a SettledMessage) -> Self {
        Self {
            id: one.id.map(|id| id.to_string()),
            queue: one.place.map(|(queue, _)| queue.get()),
            offset: one.place.map(|(_, offset)| offset.get()),
            fault: one.fault.as_deref(),
        }
    }
}

impl Row for ShownSettled<'_> {
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone().unwrap_or_default(),
            self.queue.map_or_else(String::new, |queue| queue.to_string()),
            self.offset.map_or_else(String::new, |offset| offset.to_string()),
            self.fault.map_or(String::new(), str::to_owned),
        ]
    }
}

const REDRIVEN: &[&str] = &["DEAD LETTER", "TOPIC", "STAYS"];

#[derive(Serialize)]
struct ShownRedriven<'a> {
    id: String,
    topic: &'a str,
    fault: Option<&'a str>,
}

impl<'a> From<&'a Redriven> for ShownRedriven<'a> {
    fn from(one: &'a Redriven) -> Self {
        Self { id: one.id.to_string(), topic: &one.topic, fault: one.fault.as_deref() }
    }
}

impl Row for ShownRedriven<'_> {
    fn cells(&self) -> Vec<String> {
        let stays = self.fault.map_or(String::new(), str::to_owned);
        vec![self.id.clone(), self.topic.to_owned(), stays]
    }
}

const HEADER: &[&str] = &["NAME", "ENABLED", "ORDERED", "ATTEMPTS", "INITIAL", "ID"];

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    id: u64,
    enabled: bool,
    ordered: bool,
    other_filters: Filters,
    max_attempts: Option<u32>,
    retry_delays_ms: &'a [u64],
    retry_jitter: u32,
    initial: String,
}

impl<'a> From<&'a Group> for Shown<'a> {
    fn from(group: &'a Group) -> Self {
        let settings = &group.settings;
        Self {
            name: &group.name,
            id: group.id.get(),
            enabled: settings.enabled,
            ordered: settings.ordered,
            other_filters: settings.other_filters.into(),
            max_attempts: settings.max_attempts,
            retry_delays_ms: &settings.retry_delays_ms,
            retry_jitter: settings.retry_jitter,
            initial: match settings.initial_position {
                InitialPosition::Earliest => "earliest".to_owned(),
                InitialPosition::Latest => "latest".to_owned(),
                InitialPosition::Time(at) => time::render(at),
            },
        }
    }
}

impl Shown<'_> {
    fn attempts(&self) -> String {
        self.max_attempts.map_or_else(|| "unlimited".to_owned(), |most| most.to_string())
    }
}

impl Row for Shown<'_> {
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_owned(),
            yes_or_no(self.enabled),
            yes_or_no(self.ordered),
            self.attempts(),
            self.initial.clone(),
            self.id.to_string(),
        ]
    }
}

fn filters_text(filters: Filters) -> String {
    match filters {
        Filters::Warn => "served, with a warning",
        Filters::Refuse => "refused",
        Filters::Roll => "the next version",
    }
    .to_owned()
}

fn yes_or_no(it_is: bool) -> String {
    if it_is { "yes" } else { "no" }.to_owned()
}

#[derive(Serialize)]
struct ShownDescription<'a> {
    #[serde(flatten)]
    group: Shown<'a>,
    lag: u64,
    lag_seconds: u64,
    ready: u64,
    leased: u64,
    waiting: u64,
    topic: Vec<ShownTopic<'a>>,
}

#[derive(Serialize)]
struct ShownTopic<'a> {
    topic: &'a str,
    /// Those that members use now.
    filters: &'a [String],
    filter_mismatches: u64,
    filter_steps: u64,
    filter_faults: u64,
    last_filter_fault: Option<&'a str>,
    queue: Vec<ShownQueue>,
}

impl ShownTopic<'_> {
    /// What a filter could not compare.
    fn fault(&self) -> Option<String> {
        let (faults, topic) = (self.filter_faults, self.topic);
        let property = self.last_filter_fault?;
        Some(format!(
            "filters of {topic} compare numbers and met text, last in {property}; messages: {faults}"
        ))
    }

    /// That its filters differ.
    fn alarm(&self) -> Option<String> {
        let topic = self.topic;
        let filters: Vec<_> = self.filters.iter().map(|filter| one_line(filter)).collect();
        let came = "receives with another one than the group's:";
        match (filters.len() > 1, self.filter_mismatches) {
            (false, 0) => None,
            (true, count) => {
                let filters = filters.join("; ");
                Some(format!("members use different filters of {topic}: {filters}; {came} {count}"))
            }
            (false, count) => {
                Some(format!("members came with different filters of {topic}; {came} {count}"))
            }
        }
    }
}

#[derive(Serialize)]
struct ShownQueue {
    queue: u32,
    min: u64,
    max: u64,
    committed: Option<u64>,
    lag: u64,
    lag_seconds: u64,
    ready: u64,
    leased: u64,
    waiting: u64,
    #[serde(skip)]
    cells: Vec<String>,
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
}

impl From<&QueueProgress> for ShownQueue {
    fn from(progress: &QueueProgress) -> Self {
        Self {
            queue: progress.queue.get(),
            min: progress.range.min.get(),
            max: progress.range.max.get(),
            committed: progress.committed.map(|offset| offset.get()),
            lag: progress.lag,
            lag_seconds: progress.lag_ms.unwrap_or(0) / 1_000,
            ready: progress.ready,
            leased: progress.leased,
            waiting: progress.waiting,
            cells: progress_cells(progress),
        }
    }
}

impl<'a> From<&'a GroupDescription> for ShownDescription<'a> {
    fn from(description: &'a GroupDescription) -> Self {
        let topics = description.topics.iter();
        let topic: Vec<_> = topics
            .map(|topic| ShownTopic {
                topic: &topic.topic,
                filters: &topic.filters,
                filter_mismatches: topic.filter_mismatches,
                filter_steps: topic.filter_steps,
                filter_faults: topic.filter_faults,
                last_filter_fault: topic.last_filter_fault.as_deref(),
                queue: topic.queues.iter().map(ShownQueue::from).collect(),
            })
            .collect();
        let sum = |of: fn(&ShownQueue) -> u64| {
            topic.iter().flat_map(|topic| &topic.queue).map(of).sum::<u64>()
        };
        Self {
            group: Shown::from(&description.group),
            lag: sum(|queue| queue.lag),
            lag_seconds: topic
                .iter()
                .flat_map(|topic| &topic.queue)
                .map(|queue| queue.lag_seconds)
                .max()
                .unwrap_or(0),
            ready: sum(|queue| queue.ready),
            leased: sum(|queue| queue.leased),
            waiting: sum(|queue| queue.waiting),
            topic,
        }
    }
}

impl ShownDescription<'_> {
    fn table(&self) -> String {
        let delays: Vec<_> =
            self.group.retry_delays_ms.iter().map(|ms| time::render_length(*ms)).collect();
        let about = fields(vec![
            ("name", self.group.name.to_owned()),
            ("id", self.group.id.to_string()),
            ("enabled", yes_or_no(self.group.enabled)),
            ("ordered", yes_or_no(self.group.ordered)),
            ("other filters", filters_text(self.group.other_filters)),
            ("attempts", self.group.attempts()),
            ("retry delays", delays.join(", ")),
            ("retry jitter", format!("{} %", self.group.retry_jitter)),
            ("initial", self.group.initial.clone()),
            ("lag", self.lag.to_string()),
            ("lag in time", time::render_length(self.lag_seconds * 1_000)),
            ("ready", self.ready.to_string()),
            ("leased", self.leased.to_string()),
            ("waiting", self.waiting.to_string()),
        ]);
        if self.topic.is_empty() {
            return format!("{about}\n\nnothing is committed yet");
        }
        let rows = self.topic.iter().flat_map(|topic| {
            topic
                .queue
                .iter()
                .map(|queue| [vec![topic.topic.to_owned()], queue.cells.clone()].concat())
        });
        let header = [&["TOPIC"], PROGRESS].concat();
        let mut text = format!("{about}\n\n{}", table(&header, rows.collect()));
        let alarms = self.topic.iter().flat_map(|topic| [topic.alarm(), topic.fault()]);
        for (at, alarm) in alarms.flatten().enumerate() {
            let before = if at == 0 { "\n\n" } else { "\n" };
            text.extend([before, &alarm]);
        }
        text
    }
}
