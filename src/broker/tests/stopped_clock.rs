//! For tests with a paused clock over a store that has threads.

use std::sync::mpsc;
use std::time::Duration;

/// A paused clock of tokio that stands while this lives, ten seconds at most. By itself it goes on to the next timer as
/// soon as all tasks wait, be it for a thread of the store that is about to answer.
#[derive(Debug)]
pub(crate) struct StoppedClock {
    _stops: mpsc::Sender<()>,
}

/// Stops the paused clock of the runtime that this is called in.
///
/// # Panics
/// Outside of a runtime.
pub(crate) fn stop_clock() -> StoppedClock {
    let (stops, goes_on) = mpsc::channel();
    // The clock does not go on by itself while such a task runs.
    tokio::task::spawn_blocking(move || goes_on.recv_timeout(Duration::from_secs(10)));
    StoppedClock { _stops: stops }
}
