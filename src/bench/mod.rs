//! Measures a broker: a load, a control that does nothing, and what both come to.
//!
//! | file | holds |
//! | --- | --- |
//! | `config.rs` | what a run is asked to do |
//! | `load/` | what is done to a server in one turn |
//! | `no_op.rs`, `relay.rs` | the control: a server of the same API that does nothing; what it hands to readers |
//! | `pace.rs`, `recorder.rs` | when things are due; how long they took |
//! | `rounds.rs`, `search.rs` | turns of both sides and their ratio; the highest rate that holds |
//! | `spread.rs` | random numbers from a seed, and the queues they choose |
//! | `facts.rs` | what the kernel says of the machine and of a process |
//! | `report/` | a run as a page |
//!
//! A run starts both servers as processes of their own ([`crate::child`]), in a temporary directory, and takes them
//! away on every way out. With a broker that is named it makes topics of its own there and deletes them again. The load
//! runs on the caller's runtime; tasks are owned by the turn that started them.

mod config;
mod facts;
mod load;
mod no_op;
mod pace;
mod recorder;
mod relay;
mod report;
mod rounds;
mod search;
mod spread;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::sleep;

pub(crate) use self::config::{Compression, Config, ConfigError, Distribution, Flush, Rate, What};
pub(crate) use self::facts::Machine;
use self::load::Load;
pub(crate) use self::no_op::{NoOp, serve as serve_no_op};
pub(crate) use self::report::html;
pub(crate) use self::rounds::{RatioOf, Round, Summary};
use self::rounds::{Rounds, Side, Turn};
use crate::child::{self, ChildError, Directory, Life, Server};
use crate::client::{Client, ClientError, Reason, TopicSettings};
use crate::format::batch::BatchError;
use crate::message::{FlushMode, Keep};

/// What topics that are only sent to keep together: a run must not fill the disk.
const KEPT: u64 = 1 << 30;
/// The least that a topic can be told to keep.
const LEAST_KEPT: u64 = 1 << 20;
/// And for how long, with so many topics that each cannot have a part of that: milliseconds.
const KEPT_FOR: u64 = 10_000;
/// Topics made, or deleted, at once.
const TOPICS_AT_ONCE: usize = 32;
/// How long a process that lets go of its connections may take to be gone.
const GOING: Duration = Duration::from_millis(200);

/// Why there are no figures. The servers of the run and its directory are gone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The run cannot be done as asked.
    #[error("the run cannot be done so")]
    Config(#[from] ConfigError),
    /// A server of its own, or its directory.
    #[error("there is nothing to measure")]
    Child(#[from] ChildError),
    /// A call of the client.
    #[error("the load cannot go on")]
    Client(#[from] ClientError),
    /// A control was asked for where there is none: a defect.
    #[error("the run has no control")]
    NoControl,
    /// No answers any more.
    #[error("the server does not answer the load")]
    Silent,
    /// Something else came back than was stored.
    #[error("the server does not give back what was stored")]
    NotFound,
    /// What came back cannot be read, or a batch cannot be compressed.
    #[error("the load cannot make, or read, a batch")]
    Batch(#[from] BatchError),
    /// A defect of the load.
    #[error("a task of the load broke")]
    Lost,
    /// Whoever asked for the run does not want it any more.
    #[error("interrupted; what the run started is gone")]
    Interrupted,
    /// They did not want to wait for its end either.
    #[error("interrupted at its end; topics are left whose names begin with {prefix}")]
    Left {
        /// What their names begin with.
        prefix: String,
    },
    /// No rate that was tried holds.
    #[error("at no rate that was tried 99 % of the answers come within {p99:?}")]
    NoRate {
        /// The time they had.
        p99: Duration,
    },
    /// One of the run's own servers is gone.
    #[error("the {server} has ended; its last words: {words}")]
    Ended {
        /// Which.
        server: &'static str,
        /// The last line of its log.
        words: String,
        #[source]
        source: Box<Self>,
    },
}

/// A run that is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The median of the rounds; `None` without a control.
    pub(crate) ratio: Option<f64>,
    /// What it is of.
    pub(crate) ratio_of: RatioOf,
    /// No round was valid: the figures are of a machine that had other things to do.
    pub(crate) void: bool,
    /// Of this program.
    pub(crate) version: String,
    /// What was asked for.
    pub(crate) config: Config,
    /// The broker.
    pub(crate) subject: Summary,
    /// The server that does nothing.
    pub(crate) control: Option<Summary>,
    /// In their order.
    pub(crate) rounds: Vec<Round>,
    /// Where it took place.
    pub(crate) machine: Machine,
}

impl Run {
    /// By how much the broker's rate differs from that of `other`, in percent; `None`: that one had no answer.
    pub(crate) fn change_from(&self, other: &Self) -> Option<f64> {
        let (now, before) = (&self.subject, &other.subject);
        let change = 100.0 * (now.messages_per_second / before.messages_per_second - 1.0);
        change.is_finite().then_some(change)
    }

    /// What else was measured, or elsewhere, than in `other`: the names of the fields of configuration and machine.
    pub(crate) fn differs_from(&self, other: &Self) -> Vec<String> {
        let fields = |run: &Self| {
            let both = (serde_json::to_value(&run.config), serde_json::to_value(&run.machine));
            let values = [both.0, both.1].into_iter().flatten();
            let maps = values.filter_map(|value| value.as_object().cloned()).flatten();
            maps.collect::<BTreeMap<_, _>>()
        };
        let (mine, others) = (fields(self), fields(other));
        // How long and how often says how sure the figures are, not what of.
        let is_what =
            |name: &&String| !["duration", "warm_up", "rounds", "control"].contains(&name.as_str());
        mine.keys()
            .filter(is_what)
            .filter(|name| mine.get(*name) != others.get(*name))
            .cloned()
            .collect()
    }
}

/// News of a run for whoever watches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum News<'a> {
    /// What is done now.
    Phase(&'a str),
    /// So many messages more were answered for.
    Messages(u64),
}

/// Who is told.
pub(crate) type Watcher = Arc<dyn Fn(News<'_>) + Send + Sync>;

/// Does what `config` says. `watcher` is told how it goes; when `stop` resolves, the run is given up, and when it does
/// so again, also the topics that it made on a broker of somebody else.
///
/// # Errors
/// Whatever goes wrong ends the run.
pub(crate) async fn run(
    config: Config,
    watcher: Watcher,
    stop: impl AsyncFn(),
) -> Result<Run, BenchError> {
    config.check()?;
    // Dropped in reverse order: first the servers, then their directory.
    let directory = Directory::create("bench")?;
    let mut stopped = pin!(stop());
    let mut bench = tokio::select! {
        // First, so that it listens before anything is there to be left behind.
        biased;
        () = stopped.as_mut() => return Err(BenchError::Interrupted),
        started = Bench::start(config, directory.path(), watcher) => started?,
    };
    let measured = tokio::select! {
        biased;
        () = stopped => Err(BenchError::Interrupted),
        measured = bench.measure() => measured,
    };
    let gone = match &measured {
        Ok(_) | Err(BenchError::Interrupted) => None,
        Err(_) => bench.who_ended().await,
    };
    let ended = tokio::select! {
        biased;
        // Another broker may take long to delete, or not answer.
        () = stop() => Err(BenchError::Left { prefix: bench.unique.clone() }),
        ended = bench.end() => ended,
    };
    match (measured, ended) {
        (_, Err(error @ BenchError::Left { .. })) => Err(error),
        (Ok(rounds), Ok(())) => Ok(bench.run(rounds, Machine::here(directory.path()))),
        (Err(error), _) | (_, Err(error)) => Err(match gone {
            Some((server, words)) => BenchError::Ended { server, words, source: Box::new(error) },
            None => error,
        }),
    }
}

/// A run under way.
struct Bench {
    config: Arc<Config>,
    watcher: Watcher,
    load: Load,
    /// What the names of its topics begin with: nobody else has such.
    unique: String,
    subject: Place,
    control: Option<Place>,
}

/// Where a server is, and whom to trust there.
#[derive(Clone, Debug)]
struct Address {
    server: String,
    /// `None`: without TLS, or with it those whom this machine trusts.
    authorities: Option<Arc<[u8]>>,
}

impl Address {
    /// A connection of its own.
    async fn connect(&self) -> Result<Client, ClientError> {
        match &self.authorities {
            Some(authorities) => Client::connect_trusting(&self.server, authorities).await,
            None => Client::connect(&self.server).await,
        }
    }
}

/// A server that is measured.
struct Place {
    address: Address,
    /// Of its own.
    name: &'static str,
    log: PathBuf,
    /// `None`: it is somebody else's.
    process: Option<Server>,
}

impl Place {
    async fn start(name: &'static str, command: &[&str], log: PathBuf) -> Result<Self, BenchError> {
        match Server::start(command, &log, Life::Owned).await {
            Ok(process) => {
                let server = process.addresses().grpc.clone();
                let address = Address { server, authorities: None };
                Ok(Self { address, name, log, process: Some(process) })
            }
            Err(error @ ChildError::Ended) => {
                let (server, words) = (name, last_words(&log));
                Err(BenchError::Ended { server, words, source: Box::new(error.into()) })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Server::pid)
    }
}

impl Bench {
    async fn start(config: Config, dir: &Path, watcher: Watcher) -> Result<Self, BenchError> {
        watcher(News::Phase("starting"));
        let config = Arc::new(config);
        let told = {
            let watcher = Arc::clone(&watcher);
            Arc::new(move |messages| watcher(News::Messages(messages)))
        };
        // Nobody else has topics of this name, also on a broker that is used by others.
        let unique = dir.file_name().and_then(|name| name.to_str()).unwrap_or("bench").to_owned();
        // Before any server: a codec that is not built in should not cost their start.
        let load = Load::new(Arc::clone(&config), &unique, told)?;
        let subject = match &config.server {
            Some(server) => {
                let (server, authorities) = (server.clone(), config.authorities.clone());
                let address = Address { server, authorities };
                Place { address, name: "broker", log: PathBuf::new(), process: None }
            }
            None => {
                let data = dir.join("data").display().to_string();
                // Topics are made by the thousand, which is not what is measured. It gives its room back, and stops
                // before it takes the last.
                let command = ["serve", "--data", &data, "--listen", "127.0.0.1:0"];
                let rest = ["--http", "127.0.0.1:0", "--print-addresses"];
                let set = ["--set", "store.flush=async", "--set", "store.disk_reserve=256MiB"];
                let command = [&command[..], &rest, &set].concat();
                Place::start("broker", &command, dir.join("broker.log")).await?
            }
        };
        let control = match config.control {
            false => None,
            true => {
                let (payload, batch) = (config.payload.to_string(), config.batch.to_string());
                let (queues, compression) = (config.queues.to_string(), config.compression.name());
                let shape = ["bench", "no-op-server", "--payload", &payload, "--batch", &batch];
                let shape =
                    [&shape[..], &["--queues", &queues, "--compression", compression]].concat();
                let filled = (config.filled_batches() / config.targets()).to_string();
                let shape = [&shape[..], &["--filled", &filled]].concat();
                let relay: &[&str] = if config.what == What::E2e { &["--relay"] } else { &[] };
                let command = [&shape[..], relay].concat();
                Some(Place::start("control", &command, dir.join("no-op.log")).await?)
            }
        };
        Ok(Self { config, watcher, load, unique, subject, control })
    }

    async fn measure(&mut self) -> Result<Rounds, BenchError> {
        self.make_topics().await?;
        if matches!(self.config.what, What::Pull | What::Query) {
            (self.watcher)(News::Phase("storing what is to be read"));
            self.load.fill(&self.subject.address).await?;
        }
        if !self.config.warm_up.is_zero() {
            let rate = self.fixed_rate();
            for side in [Side::Subject, Side::Control] {
                if let Some(place) = self.place(side) {
                    (self.watcher)(News::Phase("warming up"));
                    self.load.turn(&place.address, rate, self.config.warm_up).await?;
                }
            }
        }
        let (rounds, with_control) = (self.config.rounds, self.control.is_some());
        Rounds::run(rounds, with_control, self.ratio_of(), async |side| self.turn(side).await).await
    }

    fn fixed_rate(&self) -> Option<f64> {
        match self.config.rate {
            Rate::Fixed(rate) => Some(rate),
            Rate::Highest | Rate::Find { .. } => None,
        }
    }

    fn ratio_of(&self) -> RatioOf {
        match self.config.rate {
            Rate::Fixed(_) => RatioOf::MedianLatency,
            Rate::Highest | Rate::Find { .. } => RatioOf::Rate,
        }
    }

    fn place(&self, side: Side) -> Option<&Place> {
        match side {
            Side::Subject => Some(&self.subject),
            Side::Control => self.control.as_ref(),
        }
    }

    /// A turn of one of the sides, or a search for its rate.
    async fn turn(&self, side: Side) -> Result<Turn, BenchError> {
        let place = self.place(side).ok_or(BenchError::NoControl)?;
        (self.watcher)(News::Phase(match side {
            Side::Subject => "the broker",
            Side::Control => "the control",
        }));
        let Rate::Find { p99 } = self.config.rate else {
            return self.turn_at(place, self.fixed_rate()).await;
        };
        let ceiling = self.turn_at(place, None).await?.rate;
        let found = search::highest(ceiling, async |rate| {
            let turn = self.turn_at(place, Some(rate)).await?;
            Ok::<_, BenchError>(search::holds(&turn.recorded, rate, p99).then_some(turn))
        });
        let (rate, turn) = found.await?.ok_or(BenchError::NoRate { p99 })?;
        Ok(Turn { rate, ..turn })
    }

    async fn turn_at(&self, place: &Place, rate: Option<f64>) -> Result<Turn, BenchError> {
        let cpu = || place.pid().and_then(facts::cpu_of);
        let before = cpu();
        let recorded = self.load.turn(&place.address, rate, self.config.duration).await?;
        if let Some(pid) = place.pid() {
            facts::settle(pid).await;
        }
        let used = before.zip(cpu()).map(|(before, after)| after.saturating_sub(before));
        let rate = recorded.messages as f64 / recorded.length.as_secs_f64();
        let memory = place.pid().and_then(facts::memory_of);
        Ok(Turn { recorded, rate, cpu: used, memory })
    }

    async fn make_topics(&self) -> Result<(), BenchError> {
        (self.watcher)(News::Phase("making topics"));
        let each = KEPT / u64::from(self.config.topics);
        let (retention_time, retention_bytes) = match self.config.what {
            // Readers find all of it.
            What::Pull | What::Query => (Some(Keep::All), Some(Keep::All)),
            What::Send | What::E2e if each >= LEAST_KEPT => (None, Some(Keep::UpTo(each))),
            What::Send | What::E2e => (Some(Keep::UpTo(KEPT_FOR)), None),
        };
        let settings = TopicSettings {
            queues: Some(self.config.queues),
            flush: Some(match self.config.flush {
                Flush::Sync => FlushMode::Sync,
                Flush::Async => FlushMode::Async,
            }),
            retention_time,
            retention_bytes,
            ..TopicSettings::default()
        };
        let client = self.subject.address.connect().await?;
        self.each_topic(|topic| {
            let client = client.clone();
            async move { client.create_topic(&topic, settings).await.map(|_| ()) }
        })
        .await
    }

    /// Does the same to every topic, some at once.
    async fn each_topic<F>(&self, action: impl Fn(String) -> F) -> Result<(), BenchError>
    where
        F: Future<Output = Result<(), ClientError>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for topic in self.load.topics.iter() {
            if tasks.len() >= TOPICS_AT_ONCE
                && let Some(done) = tasks.join_next().await
            {
                done.map_err(|_| BenchError::Lost)??;
            }
            tasks.spawn(action(topic.clone()));
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|_| BenchError::Lost)??;
        }
        Ok(())
    }

    /// The server of the run's own that is gone, and its last words.
    async fn who_ended(&mut self) -> Option<(&'static str, String)> {
        // The end of its connections is seen before its own.
        sleep(GOING).await;
        let places = std::iter::once(&mut self.subject).chain(&mut self.control);
        for place in places {
            if place.process.as_mut().is_some_and(Server::has_ended) {
                return Some((place.name, last_words(&place.log)));
            }
        }
        None
    }

    /// Stops what is the run's own, and takes its topics away where the broker is not.
    async fn end(&mut self) -> Result<(), BenchError> {
        (self.watcher)(News::Phase("stopping"));
        if let Some(control) = self.control.take().and_then(|place| place.process) {
            control.stop().await;
        }
        if let Some(mut subject) = self.subject.process.take() {
            // Its data go with it: nothing is worth a flush.
            subject.kill();
            return Ok(());
        }
        let client = self.subject.address.connect().await?;
        self.each_topic(|topic| {
            let client = client.clone();
            async move {
                match client.delete_topic(&topic).await {
                    // The run ended before it was made.
                    Err(error) if error.reason() == Some(Reason::UnknownTopic) => Ok(()),
                    deleted => deleted,
                }
            }
        })
        .await
    }

    fn run(&self, rounds: Rounds, machine: Machine) -> Run {
        let payload = self.config.payload;
        Run {
            ratio: rounds.ratio(),
            ratio_of: self.ratio_of(),
            void: rounds.void,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: Config::clone(&self.config),
            subject: Summary::of(&rounds.subject, payload),
            control: (!rounds.control.is_empty()).then(|| Summary::of(&rounds.control, payload)),
            rounds: rounds.shown,
            machine,
        }
    }
}

fn last_words(log: &Path) -> String {
    child::last_words(log).unwrap_or_else(|| "none".to_owned())
}
