//! How fast a request must arrive once it has begun.
//!
//! | when | it must |
//! | --- | --- |
//! | always | be whole within [`WHOLE`] |
//! | there is hardly any room for what arrives | bring [`LEAST`] bytes in each [`LOOK`], so that who brings hardly anything does not keep the room of the others |
//!
//! Time in which the broker itself receives nothing of it is no reason to blame who sends: no [`LOOK`] is taken, and
//! who is not through at the end is told of the overload. So is who is too slow for a broker without room: where there
//! is some he would have been in time.

use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{BrokerError, RequestFault};

/// How long a request may take to arrive.
pub(super) const WHOLE: Duration = Duration::from_secs(30);
/// While there is hardly any room, each request that has begun must bring [`LEAST`] bytes in each such time.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// 64 KiB a second.
const LEAST: usize = 128 << 10;

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// When it must be whole.
    due: Instant,
    /// Since when `received` counts.
    since: Instant,
    /// Bytes.
    received: usize,
    /// Since when nobody asks for more of it.
    paused: Option<Instant>,
    /// How long that was so before.
    waited: Duration,
}

impl Begun {
    pub(super) fn at(now: Instant) -> Self {
        Self { due: now + WHOLE, since: now, received: 0, paused: None, waited: Duration::ZERO }
    }

    /// When it must be whole.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// From now on it is not received, for no fault of who sends it: how much he brings is not looked at.
    pub(super) fn pause(&mut self, now: Instant) {
        self.paused.get_or_insert(now);
    }

    /// It is received again.
    pub(super) fn resume(&mut self, now: Instant) {
        if let Some(paused) = self.paused.take() {
            let paused = now.saturating_duration_since(paused);
            self.since += paused;
            self.waited += paused;
        }
    }

    /// So many bytes of it came.
    pub(super) fn receives(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes);
    }

    /// When to [`Self::look`] again if nothing comes.
    pub(super) fn next_look(&self) -> Instant {
        self.due.min(self.since + LOOK)
    }

    /// Whether it is too slow: then why it is refused.
    pub(super) fn look(
        &mut self,
        now: Instant,
        is_pressed: impl Fn() -> bool,
    ) -> Option<BrokerError> {
        if now >= self.due {
            // Who was made to wait for long may not be the one to blame, and may try again.
            let overloaded = BrokerError::Overloaded { what: "bytes to store" };
            let fault = RequestFault::Unfinished { limit: WHOLE };
            let unfinished = BrokerError::BadRequest { fault };
            return Some(if self.waited >= LOOK { overloaded } else { unfinished });
        }
        if now < self.since + LOOK {
            return None;
        }
        let is_slow = self.received < LEAST;
        (self.since, self.received) = (now, 0);
        let overloaded = BrokerError::Overloaded { what: "requests that arrive slowly" };
        (is_slow && is_pressed()).then_some(overloaded)
    }
}
