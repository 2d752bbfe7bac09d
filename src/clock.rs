//! Time, injected. The only reader of wall time in the crate is [`SystemClock`].
//!
//! | clock | steps back | used for |
//! | --- | --- | --- |
//! | [`Clock::now`] | yes, when an operator or NTP turns it | fed into the store clock, nothing else |
//! | [`StoreClock`] | never; stands still until wall time has caught up | every store time |
//! | [`SteadyClock`] | never; does not jump either | the ends of leases |
//! | [`Clock::elapsed`] | never | intervals and deadlines |

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::message::Timestamp;

/// Where time comes from: the system, or a test's hand.
pub trait Clock: Send + Sync + 'static {
    /// Wall time. A system clock before 1970 reads as 0.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment of this process; never steps back.
    fn elapsed(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose `elapsed` counts from now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one reader of wall time")]
    fn now(&self) -> Timestamp {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::new(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The clock of the records and of what is gone by its age: `max(last stamp, wall time)`.
#[derive(Debug)]
pub struct StoreClock {
    /// Relaxed: a number that only grows. Records are stamped under the append lock, in the order of the log.
    last: AtomicU64,
}

impl StoreClock {
    /// A clock that never reads earlier than `last`, the newest store time found in the log.
    pub fn starting_at(last: Timestamp) -> Self {
        Self { last: AtomicU64::new(last.get()) }
    }

    /// The stamp for what is appended or looked at now, given wall time. No later stamp is lower.
    pub fn stamp(&self, wall: Timestamp) -> Timestamp {
        // SeqCst: who changes a limit of age reads the clock between two marks, and who looks beside him looks at
        // those.
        let before = self.last.fetch_max(wall.get(), Ordering::SeqCst);
        Timestamp::new(before.max(wall.get()))
    }

    /// How far wall time is behind the newest stamp; nothing if it is not.
    pub fn ahead_of(&self, wall: Timestamp) -> Duration {
        Duration::from_millis(self.last().get().saturating_sub(wall.get()))
    }

    /// The newest stamp given.
    pub fn last(&self) -> Timestamp {
        Timestamp::new(self.last.load(Ordering::Relaxed))
    }
}

/// The clock of what ends after a while: the store clock as it was at the start, or what this clock read when it was
/// last written down if that is more, and what went by since. Turning the machine's clock neither ends everything at
/// once nor keeps it for ever.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    began: Timestamp,
    /// What [`Clock::elapsed`] read then.
    at: Duration,
}

impl SteadyClock {
    /// A clock that reads `began` when [`Clock::elapsed`] reads `at`.
    pub const fn starting_at(began: Timestamp, at: Duration) -> Self {
        Self { began, at }
    }

    /// What it reads when [`Clock::elapsed`] reads `elapsed`.
    pub fn at(&self, elapsed: Duration) -> Timestamp {
        let since = elapsed.saturating_sub(self.at).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        Timestamp::new(self.began.get().saturating_add(since))
    }
}

/// A clock that moves only when told to.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub struct ManualClock {
    wall_ms: AtomicU64,
    elapsed_ms: AtomicU64,
}

#[cfg(any(test, feature = "testing"))]
impl ManualClock {
    /// A clock that reads `wall` until it is moved.
    pub fn new(wall: Timestamp) -> Self {
        Self { wall_ms: wall.get().into(), elapsed_ms: 0.into() }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.wall_ms.fetch_add(ms, Ordering::Relaxed);
        self.elapsed_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Sets wall time, also backwards; `elapsed` does not notice.
    pub fn set_wall(&self, wall: Timestamp) {
        self.wall_ms.store(wall.get(), Ordering::Relaxed);
    }
}

#[cfg(any(test, feature = "testing"))]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::new(self.wall_ms.load(Ordering::Relaxed))
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_clock_stands_still_until_wall_time_has_caught_up() {
        let clock = StoreClock::starting_at(Timestamp::new(1_000));
        assert_eq!(clock.stamp(Timestamp::new(1_500)).get(), 1_500);
        assert_eq!(clock.stamp(Timestamp::new(200)).get(), 1_500);
        assert_eq!(clock.stamp(Timestamp::new(1_501)).get(), 1_501);
    }

    #[test]
    fn the_steady_clock_does_not_see_that_the_wall_clock_is_turned() {
        let clock = ManualClock::new(Timestamp::new(5_000));
        clock.advance(Duration::from_secs(7));
        let steady = SteadyClock::starting_at(clock.now(), clock.elapsed());
        assert_eq!(steady.at(clock.elapsed()).get(), 12_000);
        clock.set_wall(Timestamp::new(3));
        clock.advance(Duration::from_millis(30));
        assert_eq!(steady.at(clock.elapsed()).get(), 12_030);
    }
}
