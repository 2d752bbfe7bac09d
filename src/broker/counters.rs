//! What the broker counts about itself. Every number only grows, except the gauges at the end; reading them is not a
//! consistent cut.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::error::Reason;

/// A number that grows. Relaxed: nothing is ordered by it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// What was added so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who is connected, as the front knows that lets them in. Relaxed: changed under its lock, read without.
#[derive(Debug, Default)]
pub struct Connected {
    count: AtomicUsize,
    windows: AtomicU64,
}

impl Connected {
    /// Notes how many there are, and how many bytes they may have under way together.
    pub(crate) fn set(&self, count: usize, windows: u64) {
        self.count.store(count, Ordering::Relaxed);
        self.windows.store(windows, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Bytes that they may have under way to the broker, received and not taken.
    pub fn windows(&self) -> u64 {
        self.windows.load(Ordering::Relaxed)
    }
}

/// The broker's counters.
#[derive(Debug)]
pub struct Counters {
    /// Batches stored and acknowledged.
    pub sends: Counter,
    /// Messages in them.
    pub sent_messages: Counter,
    /// Bytes of them.
    pub sent_bytes: Counter,
    /// Pulls answered.
    pub pulls: Counter,
    /// Messages in those answers.
    pub pulled_messages: Counter,
    /// Bytes of them.
    pub pulled_bytes: Counter,
    /// Pulls that were parked at the end of a queue.
    pub parked: Counter,
    /// Queries answered.
    pub queries: Counter,
    /// Batches of producer sessions that were stored before, and answered with their first place.
    pub duplicates: Counter,
    /// Producer sessions closed because they were idle.
    pub idle_sessions: Counter,
    /// Commits of offsets acknowledged, resets included.
    pub commits: Counter,
    /// Queues that a commit or a reset moved back.
    pub rewinds: Counter,
    refusals: Vec<Counter>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            sends: Counter::default(),
            sent_messages: Counter::default(),
            sent_bytes: Counter::default(),
            pulls: Counter::default(),
            pulled_messages: Counter::default(),
            pulled_bytes: Counter::default(),
            parked: Counter::default(),
            queries: Counter::default(),
            duplicates: Counter::default(),
            idle_sessions: Counter::default(),
            commits: Counter::default(),
            rewinds: Counter::default(),
            refusals: Reason::ALL.iter().map(|_| Counter::default()).collect(),
        }
    }
}

impl Counters {
    /// Counts a refused request.
    pub(crate) fn refused(&self, reason: Reason) {
        if let Some(counter) = self.refusals.get(reason as usize) {
            counter.add(1);
        }
    }

    /// Refused requests by reason, in the order of [`Reason::ALL`].
    pub fn refusals(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.iter().copied().zip(self.refusals.iter().map(Counter::get))
    }
}
