//! `mainstem health`: whether a broker serves, for whoever runs health checks.
//!
//! It asks `/readyz`, so containers need no other program for it. It ends with 0 or 1 and nothing else once the command
//! line is right: that is all that those who run such checks understand.

use std::net::SocketAddr;

use clap::Args;
use serde::Serialize;

use super::error::{Exit, Failure};
use super::output::Output;
use crate::http::probe::{self, ProbeError};

/// Which broker is asked.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct HealthArgs {
    /// The HTTP address of the broker, as `serve --http` got it
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8082")]
    http: SocketAddr,
}

const EXAMPLES: &str = "\
Examples:
  mainstem health
  mainstem health --http 127.0.0.1:9082

Ends with 0 if the broker serves sends, pulls and queries, and with 1 if it does not, drains, or
does not answer within 3 seconds.";

#[derive(Serialize)]
struct Shown<'a> {
    http: SocketAddr,
    says: Vec<&'a str>,
}

/// Runs the command.
pub(crate) async fn run(args: HealthArgs, output: &mut Output) -> anyhow::Result<()> {
    let page = probe::ready(args.http).await.map_err(explain)?;
    let shown = Shown { http: args.http, says: page.lines().collect() };
    output.one(&shown, || page.trim_end().to_owned())?;
    Ok(())
}

fn explain(error: ProbeError) -> anyhow::Error {
    match error {
        ProbeError::Unreachable { .. } => {
            Failure::new(Exit::Failed, format!("{:#}", anyhow::Error::new(error)))
                .cure("start a broker with `mainstem serve`, or name its HTTP address with --http")
                .into()
        }
        error => error.into(),
    }
}
