//! `mainstem store rebuild`: what is derived is made again from the log.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Data, explain};
use crate::cli::chain;
use crate::cli::error::{Exit, Failure};
use crate::cli::output::{Output, Progress, fields};
use crate::offline::{self, Derived, RebuildError, RebuildStep};

/// What to make again.
#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    #[command(flatten)]
    data: Data,
    /// Only these [default: all three]
    #[arg(long, value_name = "queues|index|snapshots", hide_possible_values = true)]
    only: Option<OnlyArg>,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  mainstem store rebuild --data ./data
  mainstem store rebuild --data ./data --only index";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnlyArg {
    Queues,
    Index,
    Snapshots,
}

impl From<OnlyArg> for Derived {
    fn from(only: OnlyArg) -> Self {
        match only {
            OnlyArg::Queues => Self::Queues,
            OnlyArg::Index => Self::Index,
            OnlyArg::Snapshots => Self::Snapshots,
        }
    }
}

#[derive(Serialize)]
struct Shown {
    removed_files: u64,
    rebuilt_segments: u64,
    replayed_records: u64,
    epoch: u64,
}

/// Runs the command. Blocks.
pub(super) fn run(args: &RebuildArgs, output: &mut Output) -> anyhow::Result<()> {
    let only = args.only.map(|only| [Derived::from(only)]);
    let what = only.as_ref().map_or(&Derived::ALL[..], |only| &only[..]);
    let mut bar = Bar::default();
    let rebuilt = offline::rebuild(&args.data.data, what, |step| bar.show(step));
    drop(bar);
    let rebuilt = rebuilt.map_err(|error| failure(&error))?;
    let shown = Shown {
        removed_files: rebuilt.removed,
        rebuilt_segments: rebuilt.segments,
        replayed_records: rebuilt.replayed_records,
        epoch: rebuilt.epoch.get(),
    };
    output.one(&shown, || {
        fields(vec![
            ("files removed", shown.removed_files.to_string()),
            ("segments whose files were made again", shown.rebuilt_segments.to_string()),
            ("records replayed", shown.replayed_records.to_string()),
            ("epoch begun", shown.epoch.to_string()),
        ])
    })?;
    Ok(())
}

fn failure(error: &RebuildError) -> Failure {
    match error {
        RebuildError::Offline(error) => explain(error, None),
        RebuildError::Damaged { .. } => Failure::new(Exit::Failed, chain(error)).cure(
            "make the others again with --only queues and --only index; `mainstem store verify` \
             says what is damaged",
        ),
        RebuildError::Unmade { .. } => Failure::new(Exit::Failed, chain(error))
            .cure("look at the disk, then do it again: a broker can start all the same"),
        RebuildError::Remove(_) | RebuildError::Open(_) | RebuildError::Close(_) => {
            Failure::new(Exit::Failed, chain(error))
        }
    }
}

/// The bar of the present step.
#[derive(Default)]
struct Bar {
    at: Option<(&'static str, Progress, u64)>,
}

impl Bar {
    fn show(&mut self, step: RebuildStep) {
        let (what, done, total) = match step {
            RebuildStep::Checking { done, total } => {
                ("looking for damage, bytes of the log", done, Some(total))
            }
            RebuildStep::Replaying => ("replaying the log", 0, None),
            RebuildStep::Making { done, total } => ("making files, segments", done, Some(total)),
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
