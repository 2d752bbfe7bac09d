//! What a run is asked to do. Part of the run's JSON, so that a run says what it measured.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::SendStream;
use crate::format::batch::Codec;

/// Queues of a topic end here.
const MAX_QUEUES: u32 = 1 << 16;
/// Queues of all topics of a run.
pub(super) const MAX_TARGETS: u64 = 1 << 20;
/// Bytes that a run may store before it reads.
const MAX_FILL: u64 = 64 << 30;
/// What a batch takes in a store beside its messages, and what a message takes beside its body and its keys, about.
const BATCH_COST: u64 = 200;
const MESSAGE_COST: u64 = 30;
/// What a key takes, in the batch and in the index, about.
const KEY_COST: u64 = 50;
/// What it takes in the batch alone, at most.
const KEY_BYTES: u64 = 26;
/// A search has turns of so many times the time that its answers have: in shorter ones no queue grows.
const SEARCH_TURN: u32 = 10;
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
    /// Of that broker: talk TLS, and trust these certificates alone, in PEM.
    #[serde(skip)]
    pub(crate) authorities: Option<Arc<[u8]>>,
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
    /// Bytes that are stored before pulls and queries, about.
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
    /// Each queue gets a batch, and there are too many for the disk.
    #[error(
        "a batch for each of {queues} queues takes {bytes} bytes, and a run may store {MAX_FILL}: give fewer \
         --queues or --topics, or a smaller --batch or --payload"
    )]
    Fill {
        /// Of all topics.
        queues: u64,
        /// In all.
        bytes: u64,
    },
    /// A rate is out of its range, or no number.
    #[error("--rate is {found}; it can be 1 to 1000000000 messages a second")]
    Rate {
        /// What it says.
        found: String,
    },
    /// Readers have no rate: they read what is there.
    #[error("pull has no --rate and no --find-rate: it reads as fast as it can")]
    PullRate,
    /// It has a rate, given or looked for.
    #[error("e2e runs at a rate: give --rate or --find-rate")]
    E2eRate,
}

impl Config {
    /// Topics times queues.
    pub(super) fn targets(&self) -> u64 {
        u64::from(self.topics) * u64::from(self.queues)
    }

    /// Bytes of the bodies of a batch.
    pub(super) fn batch_bytes(&self) -> u64 {
        (self.payload as u64).saturating_mul(self.batch.into())
    }

    /// Bytes of a batch whose messages have keys of `key` bytes, about.
    fn batch_bytes_with(&self, key: u64) -> u64 {
        let message = MESSAGE_COST + u64::from(self.keys) * key;
        let messages = u64::from(self.batch).saturating_mul(message);
        self.batch_bytes().saturating_add(messages).saturating_add(BATCH_COST)
    }

    /// Bytes that a batch takes in a store, about; less if it is compressed.
    fn stored_bytes(&self) -> u64 {
        self.batch_bytes_with(KEY_COST)
    }

    /// Batches that are stored before pulls and queries: each queue gets one at least, and what is spread unevenly is
    /// as much again at least.
    pub(super) fn filled_batches(&self) -> u64 {
        let least = match self.distribution {
            Distribution::Uniform => self.targets(),
            Distribution::Zipf => 2 * self.targets(),
        };
        (self.fill / self.stored_bytes()).max(least)
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
            ("--payload times --batch", self.batch_bytes(), least, 7 << 20),
            ("--in-flight", self.in_flight.into(), 1, SendStream::IN_FLIGHT as u64),
            ("--topics", self.topics.into(), 1, SendStream::TOPICS as u64),
            ("--queues", self.queues.into(), 1, MAX_QUEUES.into()),
            ("--topics times --queues", self.targets(), 1, MAX_TARGETS),
            ("--producers", self.producers.into(), 1, 512),
            ("--keys", self.keys.into(), u64::from(self.what == What::Query), 32),
            ("a batch with its --keys, in bytes,", self.batch_bytes_with(KEY_BYTES), 1, 8 << 20),
            ("--fill", self.fill, 1, MAX_FILL),
            ("--duration in ms", ms(self.duration), 100, hour),
            ("--warm-up in ms", ms(self.warm_up), 0, hour),
            ("--rounds", self.rounds.into(), 1, 1_000),
        ] {
            if found < min || found > max {
                return Err(ConfigError::Range { option, found, min, max });
            }
        }
        let bytes = self.filled_batches() * self.stored_bytes();
        if matches!(self.what, What::Pull | What::Query) && bytes > MAX_FILL {
            return Err(ConfigError::Fill { queues: self.targets(), bytes });
        }
        match (self.what, self.rate) {
            (What::Pull, Rate::Fixed(_) | Rate::Find { .. }) => Err(ConfigError::PullRate),
            (What::E2e, Rate::Highest) => Err(ConfigError::E2eRate),
            (_, Rate::Fixed(rate)) if !(1.0..=1e9).contains(&rate) => {
                Err(ConfigError::Rate { found: rate.to_string() })
            }
            (_, Rate::Find { p99 }) => {
                let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                let (option, found) = ("--p99 in us, beside this --duration,", us(p99));
                let max = us(self.duration / SEARCH_TURN);
                let in_range = (1..=max).contains(&found);
                in_range.then_some(()).ok_or(ConfigError::Range { option, found, min: 1, max })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pulls of 100 x 1 KiB from one queue.
    fn pull() -> Config {
        Config {
            what: What::Pull,
            server: None,
            authorities: None,
            payload: 1 << 10,
            batch: 100,
            in_flight: 1,
            topics: 1,
            queues: 1,
            distribution: Distribution::Uniform,
            producers: 1,
            keys: 0,
            flush: Flush::Async,
            compression: Compression::None,
            rate: Rate::Highest,
            fill: 128 << 20,
            duration: Duration::from_secs(1),
            warm_up: Duration::ZERO,
            rounds: 1,
            control: true,
        }
    }

    #[test]
    fn what_is_stored_before_a_run_counts_with_all_that_stands_beside_the_bodies() {
        assert_eq!(pull().filled_batches(), 1_271);
        assert_eq!(Config { payload: 0, ..pull() }.filled_batches(), 41_943);
        assert_eq!(Config { payload: 1, batch: 1, ..pull() }.filled_batches(), 581_029);
        assert_eq!(Config { queues: 5_000, ..pull() }.filled_batches(), 5_000);
        let uneven = Config { queues: 5_000, distribution: Distribution::Zipf, ..pull() };
        assert_eq!(uneven.filled_batches(), 10_000, "one for each queue, and as many spread");
    }

    #[test]
    fn a_number_that_is_out_of_its_range_is_named_whatever_it_is() {
        let said = |config: Config| config.check().unwrap_err().to_string();
        let huge = Config { payload: usize::MAX, ..pull() };
        assert_eq!(said(huge), "--payload is 18446744073709551615; it can be 0 to 4194304");
        let most = Config { batch: u32::MAX, keys: u32::MAX, ..pull() };
        assert_eq!(said(most), "--batch is 4294967295; it can be 1 to 10000");
        let keyed = Config { payload: 700, batch: 10_000, keys: 32, ..pull() };
        let text = "a batch with its --keys, in bytes, is 15620200; it can be 1 to 8388608";
        assert_eq!(said(keyed.clone()), text);
        assert_eq!(Config { keys: 2, ..keyed }.check(), Ok(()));
        let send = Config { what: What::Send, ..pull() };
        for (rate, found) in [(-5.0, "-5"), (0.5, "0.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")]
        {
            let text = format!("--rate is {found}; it can be 1 to 1000000000 messages a second");
            assert_eq!(said(Config { rate: Rate::Fixed(rate), ..send.clone() }), text);
        }
        let find = |p99| Config { rate: Rate::Find { p99 }, ..send.clone() };
        let text = "--p99 in us, beside this --duration, is 100001; it can be 1 to 100000";
        assert_eq!(said(find(Duration::from_micros(100_001))), text);
        assert_eq!(find(Duration::from_millis(100)).check(), Ok(()));
        assert!(find(Duration::ZERO).check().is_err());
    }

    #[test]
    fn a_million_queues_are_filled_as_far_as_the_disk_is_meant_to_go() {
        let million = Config { topics: 16, queues: 1 << 16, ..pull() };
        let bytes = (1 << 20) * (102_400 + 200 + 3_000);
        assert_eq!(million.check(), Err(ConfigError::Fill { queues: 1 << 20, bytes }));
        let single = Config { batch: 1, payload: 100, ..million };
        assert_eq!((single.check(), single.filled_batches()), (Ok(()), 1 << 20));
        let beyond = Config { topics: 17, ..single };
        let (found, max) = (17 << 16, 1 << 20);
        let option = "--topics times --queues";
        assert_eq!(beyond.check(), Err(ConfigError::Range { option, found, min: 1, max }));
    }
}
