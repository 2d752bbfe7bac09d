//! What a run is asked to do. Part of the run's JSON, so that a run says what it measured.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::SendStream;
use crate::format::batch::Codec;

/// Queues of a topic end here.
const MAX_QUEUES: u32 = 1 << 16;
/// Queues that pullers of one run may keep a place in.
pub(super) const MAX_PULLED: u64 = 1 << 20;
/// The bytes at the begin of a body that say when it was to be sent.
pub(super) const STAMP: usize = 8;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    /// Batches in, over streams.
    Send,
    /// What is stored, read from the begin to the end again and again.
    Pull,
    /// Messages by their keys.
    Query,
    /// From the moment a message was to be sent until a reader has it.
    E2e,
}

/// How fast the load is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rate {
    /// As fast as answers come: closed loop.
    Highest,
    /// So many messages a second, whatever the answers do: open loop.
    Fixed(f64),
    /// The highest fixed rate at which 99 % of the answers come in time.
    Find {
        /// In this time.
        #[serde(with = "humantime_serde")]
        p99: Duration,
    },
}

/// Which queue is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Distribution {
    /// Each as often as any other.
    Uniform,
    /// The second half as often as the first, the third a third as often, and so on.
    Zipf,
}

/// What an OK waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flush {
    /// Stable media.
    Sync,
    /// The page cache.
    Async,
}

/// How the bodies of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compression {
    /// Not at all: random bytes.
    None,
    /// LZ4: text.
    Lz4,
    /// Zstandard: text.
    Zstd,
}

impl Compression {
    /// As the format names it.
    pub(super) fn codec(self) -> Codec {
        match self {
            Self::None => Codec::None,
            Self::Lz4 => Codec::Lz4,
            Self::Zstd => Codec::Zstd,
        }
    }

    /// As the command line names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// What a run is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// What is measured.
    pub(crate) what: What,
    /// The broker to measure; `None`: one of its own.
    pub(crate) server: Option<String>,
    /// Bytes of a message's body.
    pub(crate) payload: usize,
    /// Messages of a batch.
    pub(crate) batch: u32,
    /// Batches of a connection, or queries, without an answer.
    pub(crate) in_flight: u32,
    /// How many topics there are.
    pub(crate) topics: u32,
    /// Queues of each topic.
    pub(crate) queues: u32,
    /// Which queue is next.
    pub(crate) distribution: Distribution,
    /// Connections.
    pub(crate) producers: u32,
    /// Keys of a message.
    pub(crate) keys: u32,
    /// What an OK waits for.
    pub(crate) flush: Flush,
    /// How the bodies of a batch are compressed.
    pub(crate) compression: Compression,
    /// How fast the load is.
    pub(crate) rate: Rate,
    /// Bytes of bodies that are stored before pulls and queries.
    pub(crate) fill: u64,
    /// Of each turn of the subject or the control.
    #[serde(with = "humantime_serde")]
    pub(crate) duration: Duration,
    /// Before the first round.
    #[serde(with = "humantime_serde")]
    pub(crate) warm_up: Duration,
    /// Valid rounds wanted.
    pub(crate) rounds: u32,
    /// Whether a control runs beside.
    pub(crate) control: bool,
}

/// Why a run cannot be done as asked. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A number is out of its range.
    #[error("{option} is {found}; it can be {min} to {max}")]
    Range {
        /// The flag.
        option: &'static str,
        /// What it says.
        found: u64,
        /// The least it can be.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Readers have no rate: they read what is there.
    #[error("pull has no --rate and no --find-rate: it reads as fast as it can")]
    PullRate,
    /// It has a rate, and is not searched.
    #[error("e2e runs at a fixed rate: give --rate")]
    E2eRate,
}

impl Config {
    /// Topics times queues.
    pub(super) fn targets(&self) -> u64 {
        u64::from(self.topics) * u64::from(self.queues)
    }

    /// Bytes of the bodies of a batch.
    pub(super) fn batch_bytes(&self) -> u64 {
        self.payload as u64 * u64::from(self.batch)
    }

    /// Whether the load can be made.
    ///
    /// # Errors
    /// The first option that does not fit.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let least = if self.what == What::E2e { STAMP as u64 } else { 0 };
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let hour = 3_600_000;
        for (option, found, min, max) in [
            ("--payload", self.payload as u64, least, 4 << 20),
            ("--batch", self.batch.into(), 1, 10_000),
            // Less than the limit of a batch: keys and lengths stand beside the bodies.
            ("--payload times --batch", self.batch_bytes(), least, 7 << 20),
            ("--in-flight", self.in_flight.into(), 1, SendStream::IN_FLIGHT as u64),
            ("--topics", self.topics.into(), 1, SendStream::TOPICS as u64),
            ("--queues", self.queues.into(), 1, MAX_QUEUES.into()),
            ("--producers", self.producers.into(), 1, 512),
            ("--keys", self.keys.into(), u64::from(self.what == What::Query), 32),
            ("--fill", self.fill, 1, 64 << 30),
            ("--duration in ms", ms(self.duration), 100, hour),
            ("--warm-up in ms", ms(self.warm_up), 0, hour),
            ("--rounds", self.rounds.into(), 1, 1_000),
        ] {
            if found < min || found > max {
                return Err(ConfigError::Range { option, found, min, max });
            }
        }
        if matches!(self.what, What::Pull | What::E2e) && self.targets() > MAX_PULLED {
            let (option, found) = ("--topics times --queues", self.targets());
            return Err(ConfigError::Range { option, found, min: 1, max: MAX_PULLED });
        }
        match (self.what, self.rate) {
            (_, Rate::Fixed(rate)) if !(1.0..=1e9).contains(&rate) => Err(ConfigError::Range {
                option: "--rate",
                found: rate as u64,
                min: 1,
                max: 1_000_000_000,
            }),
            (What::Pull, Rate::Fixed(_) | Rate::Find { .. }) => Err(ConfigError::PullRate),
            (What::E2e, Rate::Highest | Rate::Find { .. }) => Err(ConfigError::E2eRate),
            _ => Ok(()),
        }
    }
}
