//! What the broker counts about itself. Every number only grows, except the gauges at the end; reading them is not a
//! consistent cut.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

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
    closed: [Counter; Unserved::ALL.len()],
}

/// Why a connection was closed before it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// There were too many, in all or of its address.
    Limit,
    /// It had not said in time what it speaks, or went away before.
    Silent,
    /// It speaks something else than HTTP/2.
    Foreign,
    /// It and the server did not come to terms about TLS.
    Tls,
    /// It came without TLS, and the configuration forbids that.
    Plain,
}

impl Unserved {
    /// All reasons.
    pub const ALL: [Self; 5] = [Self::Limit, Self::Silent, Self::Foreign, Self::Tls, Self::Plain];

    /// The name of the reason in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Silent => "silent",
            Self::Foreign => "foreign",
            Self::Tls => "tls",
            Self::Plain => "plain",
        }
    }
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

    /// Counts a connection that was closed before it was served.
    pub(crate) fn unserved(&self, why: Unserved) {
        if let Some(counter) = self.closed.get(why as usize) {
            counter.add(1);
        }
    }

    /// Connections closed before they were served, by reason, in the order of [`Unserved::ALL`].
    pub fn closed(&self) -> impl Iterator<Item = (Unserved, u64)> + '_ {
        Unserved::ALL.into_iter().zip(self.closed.iter().map(Counter::get))
    }
}

/// What there is to tell of the certificate that new connections get, as its keeper knows. Relaxed, as above.
#[derive(Debug, Default)]
pub struct Certified {
    expires: AtomicU64,
    is_stale: AtomicBool,
}

impl Certified {
    /// Notes a certificate that is served from now on, and when it expires, in seconds since 1970.
    pub(crate) fn serves(&self, expires: u64) {
        self.expires.store(expires, Ordering::Relaxed);
        self.is_stale.store(false, Ordering::Relaxed);
    }

    /// Notes that the files hold something else, which cannot be served.
    pub(crate) fn stays_behind(&self) {
        self.is_stale.store(true, Ordering::Relaxed);
    }

    /// When it expires, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.expires.load(Ordering::Relaxed)
    }

    /// Whether the files hold something else by now, which was refused.
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
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
    /// Pulls that were parked at the end of a queue, and receives that found nothing for them.
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
    /// Receives answered with messages.
    pub receives: Counter,
    /// Messages leased by them.
    pub received_messages: Counter,
    /// Messages finished by their consumers.
    pub acks: Counter,
    /// Receives with another filter than other members of their group use.
    pub filter_mismatches: Counter,
    /// Conditions in SQL that had to be understood: those of receives that were not asked with lately.
    pub conditions: Counter,
    /// Messages with a property that the filter of a receive compares with a number, and that is none.
    pub filter_faults: Counter,
    /// Messages finished because the filter of a receive did not want them.
    pub filtered: Counter,
    /// Messages finished for a group because they are gone, or because a dead letter stands for them and others.
    pub gone: Counter,
    /// Dead letters that went back to their topics.
    pub redriven: Counter,
    /// Messages that became dead letters.
    pub dead_letters: Counter,
    /// Records decompressed to give single messages of them.
    pub unpacked: Counter,
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
            receives: Counter::default(),
            received_messages: Counter::default(),
            acks: Counter::default(),
            filter_mismatches: Counter::default(),
            conditions: Counter::default(),
            filter_faults: Counter::default(),
            filtered: Counter::default(),
            gone: Counter::default(),
            redriven: Counter::default(),
            dead_letters: Counter::default(),
            unpacked: Counter::default(),
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
