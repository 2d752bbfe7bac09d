//! `mainstem store`: whether a store is sound, what is in it, and what can be made again.
//!
//! | command | on | changes |
//! | --- | --- | --- |
//! | `verify` | a stopped store with `--data`, else that of a running broker | nothing on the disk; a broker makes again what is wrong and derived |
//! | `dump` | a stopped store | nothing |
//! | `rebuild` | a stopped store | what is derived |
//! | `repair` | a stopped store | what state says of the log: a record more |

mod dump;
mod rebuild;
mod repair;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::error::{Exit, Failure};
use super::output::Output;
use super::{Connection, chain};
use crate::offline::OfflineError;

/// Verify a store, show what is in it, make again what is derived, repair it
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Read everything and say what is wrong
    ///
    /// Without --data the broker verifies its own store while it serves. Ends with 0 if the store is sound, with 1 if
    /// anything is wrong.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::VerifyArgs),
    /// Show the records of a stopped store, one a line
    #[command(after_help = dump::EXAMPLES)]
    Dump(dump::DumpArgs),
    /// Make queue files, index files and snapshots of a stopped store again from its log
    ///
    /// May be killed at any time: what is missing then is made by the next start. Snapshots of a damaged log are kept,
    /// since they may know what is lost there. The checkpoint, which alone knows how far the log was durable, is
    /// written anew and never missing.
    #[command(after_help = rebuild::EXAMPLES)]
    Rebuild(rebuild::RebuildArgs),
    /// Give up damaged bytes of a stopped store, give records without a topic one again
    ///
    /// Reads the whole log first and refuses the order as a whole if a part of it cannot be. Then one record is
    /// appended; what is answered is durable. May be killed at any time, and given again. Adopt before the last damage
    /// is lost, or at once with it: records without a topic may be deleted once nothing is damaged.
    #[command(after_help = repair::EXAMPLES)]
    Repair(repair::RepairArgs),
}

/// A stopped store.
#[derive(Debug, Args)]
struct Data {
    /// The data directory of a broker that is stopped
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

/// Runs the command.
pub(crate) async fn run(
    command: StoreCommand,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    match command {
        StoreCommand::Verify(args) => verify::run(args, connection, output).await,
        StoreCommand::Dump(args) => dump::run(&args, output),
        StoreCommand::Rebuild(args) => rebuild::run(&args, output),
        StoreCommand::Repair(args) => repair::run(&args, output),
    }
}

/// Why a stopped store cannot be worked on, and what helps; `instead`: what can be done while a broker runs.
fn explain(error: &OfflineError, instead: Option<&str>) -> Failure {
    let failure = Failure::new(Exit::Failed, chain(error));
    match (error, instead) {
        (OfflineError::Running { .. }, Some(instead)) => failure.cure(instead),
        (OfflineError::NoStore { .. }, _) => {
            failure.cure("name the directory that `mainstem serve --data` was given")
        }
        (
            OfflineError::Running { .. } | OfflineError::Identity { .. } | OfflineError::File(_),
            _,
        ) => failure,
    }
}
