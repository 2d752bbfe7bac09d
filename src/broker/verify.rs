//! A verification of the whole store while it serves: one at a time, at a rate.
//!
//! It runs on a thread of its own that may wait for the disk, and hands on what it finds through a bounded channel. It
//! ends when it is through, when nobody listens any more, or when the broker stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Broker, BrokerError};
use crate::store::{Finding, VerifySummary};

/// Events that wait for a listener; the verification waits with them.
const EVENTS: usize = 64;
/// How often a verification that has nothing to tell says so, and looks whether anybody listens.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What a verification tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyEvent {
    /// How far it is.
    Progress {
        /// Bytes of the log read.
        done: u64,
        /// Bytes of the log to be read.
        total: u64,
    },
    /// Something was found.
    Found(Finding),
    /// All is read: the last event.
    Done(VerifySummary),
}

impl Broker {
    /// Begins a verification of all that is flushed now, which reads at most `bytes_per_second` if that is not 0.
    ///
    /// What it finds damaged joins the known damage; a derived file that is wrong is made again.
    ///
    /// # Errors
    /// `Overloaded`: one is under way. `Draining`, also later, as the last event.
    pub fn verify(
        self: &Arc<Self>,
        bytes_per_second: u64,
    ) -> Result<mpsc::Receiver<Result<VerifyEvent, BrokerError>>, BrokerError> {
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let one = Arc::clone(&self.verifications).try_acquire_owned();
        let one = one.map_err(|_| BrokerError::Overloaded { what: "verifications" })?;
        let (events, listener) = mpsc::channel(EVENTS);
        let broker = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _one = one;
            broker.run_verification(bytes_per_second, &events);
        });
        Ok(listener)
    }

    fn run_verification(
        &self,
        bytes_per_second: u64,
        events: &mpsc::Sender<Result<VerifyEvent, BrokerError>>,
    ) {
        let mut verifier = self.store.verifier();
        let total = verifier.log_len();
        // Nobody listens any more.
        let tell = |event| events.blocking_send(event).is_ok();
        let mut told = Instant::now();
        let mut due = Instant::now();
        loop {
            if self.is_draining() {
                tell(Err(BrokerError::Draining));
                return;
            }
            if due > Instant::now() {
                std::thread::sleep(due.saturating_duration_since(Instant::now()).min(TELL_EVERY));
            } else {
                let verified = verifier.step();
                due = due.max(Instant::now()) + time_for(verified.bytes, bytes_per_second);
                for finding in verified.findings {
                    if !tell(Ok(VerifyEvent::Found(finding))) {
                        return;
                    }
                }
                if verified.is_over {
                    tell(Ok(VerifyEvent::Done(verifier.summary().clone())));
                    return;
                }
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                let done = verifier.summary().log_bytes;
                if !tell(Ok(VerifyEvent::Progress { done, total })) {
                    return;
                }
            }
        }
    }
}

/// How long `bytes` take at a rate; 0 is no rate.
fn time_for(bytes: u64, bytes_per_second: u64) -> Duration {
    if bytes_per_second == 0 {
        return Duration::ZERO;
    }
    Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_at_a_rate_and_none_without_one() {
        assert_eq!(time_for(1 << 20, 1 << 22), Duration::from_millis(250));
        assert_eq!(time_for(1 << 20, 0), Duration::ZERO);
        assert_eq!(time_for(1 << 40, 1), Duration::from_secs(1 << 40));
    }
}
