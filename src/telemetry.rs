//! What the process says about itself while it runs: lines on stderr. Numbers are at `/metrics`.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one that `RUST_LOG` takes.
    #[error("the log filter {filter:?} cannot be read")]
    Filter {
        /// As it was given.
        filter: String,
        /// Why not.
        #[source]
        source: ParseError,
    },
    /// Somebody else in this process has set up logging.
    #[error("logging is set up already")]
    Twice,
}

/// Logs to stderr from now on: what `filter` says (`--log`), else `RUST_LOG`, else everything from `info` up.
///
/// # Errors
/// The filter cannot be read, or logging was set up before.
pub fn init(filter: Option<&str>) -> Result<(), TelemetryError> {
    let from_environment = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    let text = filter.unwrap_or(&from_environment);
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(text)
        .map_err(|source| TelemetryError::Filter { filter: text.to_owned(), source })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init()
        .map_err(|_| TelemetryError::Twice)
}
