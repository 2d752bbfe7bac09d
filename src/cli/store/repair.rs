//! `mainstem store repair`: damaged bytes are given up, records without a topic get one again.

use std::ops::Range;
use std::str::FromStr;

use clap::{ArgGroup, Args};
use serde::Serialize;

use super::{Data, explain};
use crate::cli::chain;
use crate::cli::error::{Exit, Failure};
use crate::cli::output::{Output, Progress, fields};
use crate::message::{PhysicalOffset, TopicId};
use crate::offline::{
    self, Adoption, Lose, RepairError, RepairMode, RepairOrder, RepairStep, Repaired,
};

/// What to repair.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").args(["lose", "adopt"]).required(true).multiple(true)))]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    data: Data,
    /// Give up these damaged bytes of the log, or `all` that are damaged; may be repeated
    #[arg(long, value_name = "BEGIN..END|all")]
    lose: Vec<LoseArg>,
    /// Make a topic of this name for records of this topic id that have none; may be repeated
    #[arg(long, value_name = "ID=NAME")]
    adopt: Vec<AdoptArg>,
    /// Change nothing, say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  mainstem store repair --data ./data --lose all --dry-run
  mainstem store repair --data ./data --lose 4608..4768
  mainstem store repair --data ./data --adopt 7=orders --lose all

Only bytes without a sound record can be lost; `mainstem store verify --data` names them. What is
lost is not reported any more, pulls pass over it in silence, queries are complete without it, and
retention may delete its segment. An adopted topic has as many queues as its records name, sync,
mixed, kept for ever; what was purged of it before is there again.";

#[derive(Clone, Debug)]
enum LoseArg {
    All,
    Range(Range<PhysicalOffset>),
}

impl FromStr for LoseArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self::All);
        }
        let (begin, end) = text.split_once("..").ok_or("give BEGIN..END in bytes, or all")?;
        let number = |text: &str| text.parse().map_err(|_| "BEGIN and END are bytes of the log");
        let (begin, end) = (number(begin)?, number(end)?);
        if begin >= end {
            return Err("END is the first byte behind the range, so it is greater than BEGIN");
        }
        Ok(Self::Range(PhysicalOffset::new(begin)..PhysicalOffset::new(end)))
    }
}

#[derive(Clone, Debug)]
struct AdoptArg(Adoption);

impl FromStr for AdoptArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, name) = text.split_once('=').ok_or("give ID=NAME")?;
        let id: u64 = id.parse().map_err(|_| "ID is the number of a topic, as in `store dump`")?;
        if id == 0 || id == u64::MAX {
            return Err("no topic has this id".to_owned());
        }
        offline::check_topic_name(name).map_err(|fault| fault.to_string())?;
        Ok(Self(Adoption { id: TopicId::new(id), name: name.to_owned() }))
    }
}

#[derive(Serialize)]
struct Bytes {
    begin: u64,
    end: u64,
}

#[derive(Serialize)]
struct Topic {
    id: u64,
    name: String,
    queues: u32,
    next_offsets: Vec<Queue>,
}

#[derive(Serialize)]
struct Queue {
    queue: u32,
    next_offset: u64,
}

#[derive(Serialize)]
struct Shown {
    dry_run: bool,
    lost: Vec<Bytes>,
    adopted: Vec<Topic>,
    still_damaged: Vec<Bytes>,
    refused: Vec<Bytes>,
    unknown_topics: Vec<u64>,
    rebuilt_segments: u64,
    epoch: Option<u64>,
}

impl Shown {
    fn of(repaired: &Repaired, dry_run: bool) -> Self {
        let bytes = |ranges: &[Range<PhysicalOffset>]| {
            let bytes = |range: &Range<PhysicalOffset>| Bytes {
                begin: range.start.get(),
                end: range.end.get(),
            };
            ranges.iter().map(bytes).collect()
        };
        let topic = |adopted: &offline::Adopted| Topic {
            id: adopted.id.get(),
            name: adopted.name.clone(),
            queues: adopted.queues,
            next_offsets: adopted
                .next
                .iter()
                .map(|(key, next)| Queue { queue: key.queue.get(), next_offset: next.get() })
                .collect(),
        };
        Self {
            dry_run,
            lost: bytes(&repaired.lost),
            adopted: repaired.adopted.iter().map(topic).collect(),
            still_damaged: bytes(&repaired.damaged),
            refused: bytes(&repaired.refused),
            unknown_topics: repaired.unknown.iter().map(|id| id.get()).collect(),
            rebuilt_segments: repaired.segments,
            epoch: repaired.epoch.map(crate::message::Epoch::get),
        }
    }

    fn table(&self) -> String {
        let mut pairs = Vec::new();
        let bytes = |bytes: &Bytes| format!("bytes {}..{}", bytes.begin, bytes.end);
        let (lost, adopted) = match self.dry_run {
            true => ("would be lost", "would be adopted"),
            false => ("lost", "adopted"),
        };
        pairs.extend(self.lost.iter().map(|range| (lost, bytes(range))));
        for topic in &self.adopted {
            let Topic { id, name, queues, .. } = topic;
            pairs.push((adopted, format!("topic {id} as {name}, queues: {queues}")));
        }
        if pairs.is_empty() {
            pairs
                .push(("nothing to do", "all that was named is lost already, or sound".to_owned()));
        }
        pairs.extend(self.still_damaged.iter().map(|range| ("still damaged", bytes(range))));
        pairs.extend(self.refused.iter().map(|range| ("not given by the disk", bytes(range))));
        for id in &self.unknown_topics {
            pairs.push(("without a topic", format!("records of topic {id}")));
        }
        if let Some(epoch) = self.epoch {
            let made = self.rebuilt_segments.to_string();
            pairs.push(("segments whose files were made again", made));
            pairs.push(("epoch begun", epoch.to_string()));
        }
        fields(pairs)
    }
}

/// Runs the command. Blocks.
pub(super) fn run(args: &RepairArgs, output: &mut Output) -> anyhow::Result<()> {
    let mut lose = Lose::default();
    for arg in &args.lose {
        match arg {
            LoseArg::All => lose.all_damaged = true,
            LoseArg::Range(range) => lose.ranges.push(range.clone()),
        }
    }
    let adopt = args.adopt.iter().map(|arg| arg.0.clone()).collect();
    let mode = if args.dry_run { RepairMode::Plan } else { RepairMode::Do };
    let mut bar = Bar::default();
    let order = RepairOrder { lose, adopt, mode };
    let repaired = offline::repair(&args.data.data, &order, |step| bar.show(step));
    drop(bar);
    let repaired = repaired.map_err(|error| failure(&error))?;
    let shown = Shown::of(&repaired, args.dry_run);
    output.one(&shown, || shown.table())?;
    Ok(())
}

fn failure(error: &RepairError) -> Failure {
    let cure = match error {
        RepairError::Offline(error) => return explain(error, None),
        RepairError::Sound { .. }
        | RepairError::NotDamaged { .. }
        | RepairError::Outside { .. } => "`mainstem store verify --data` names what is damaged",
        RepairError::NameTaken { .. } => "give another name",
        RepairError::IdTaken { .. } | RepairError::NoRecords { .. } => {
            "`mainstem store dump --data` shows of which topic a record is"
        }
        RepairError::Deleted { .. } => "make a new topic once the broker runs",
        RepairError::Append(_) | RepairError::Unmade { .. } => {
            "look at the disk, then give the same order again"
        }
        RepairError::Walk(_)
        | RepairError::TooManyQueues { .. }
        | RepairError::Open(_)
        | RepairError::Close(_) => return Failure::new(Exit::Failed, chain(error)),
    };
    Failure::new(Exit::Failed, chain(error)).cure(cure)
}

/// The bar of the present step.
#[derive(Default)]
struct Bar {
    at: Option<(&'static str, Progress, u64)>,
}

impl Bar {
    fn show(&mut self, step: RepairStep) {
        let (what, done, total) = match step {
            RepairStep::Checking { done, total } => {
                ("looking for damage, bytes of the log", done, Some(total))
            }
            RepairStep::Replaying => ("replaying the log", 0, None),
            RepairStep::Making { done, total } => ("making files, segments", done, Some(total)),
        };
        if self.at.as_ref().is_none_or(|(shown, _, _)| *shown != what) {
            self.at = Some((what, Progress::start(what, total), 0));
        }
        if let Some((_, bar, shown)) = &mut self.at {
            bar.add(done.saturating_sub(*shown));
            *shown = done;
        }
    }
}
