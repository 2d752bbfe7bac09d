//! A broker whose storage threads are stepped by hand, over the simulated disk. No time passes but by the script:
//! timers of the runtime never fire, as nobody drives it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mainstem::broker::{Broker, BrokerConfig};
use mainstem::message::{Retention, Timestamp};
use mainstem::store::{OpenError, Progress, StoreConfig, Workers};
use mainstem::testing::{ManualClock, SimDisk, now};
use tokio::time::Instant;

use crate::script::Setup;

const DATA: &str = "/data";

/// A request under way.
pub(crate) type Request<T> = Pin<Box<dyn Future<Output = T>>>;

/// Splitmix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }
}

/// Far enough away that no request notices its end.
pub(crate) fn late() -> Instant {
    Instant::now() + Duration::from_secs(24 * 3_600)
}

/// A running broker.
pub(crate) struct Rig {
    pub(crate) disk: SimDisk,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) broker: Arc<Broker>,
    workers: Workers,
}

impl Rig {
    pub(crate) fn open(disk: &SimDisk, setup: &Setup, wall: u64) -> Result<Self, OpenError> {
        let clock = Arc::new(ManualClock::new(Timestamp::new(wall)));
        let store = StoreConfig {
            segment_size: setup.segment_size,
            hot_bytes: 2 * setup.segment_size,
            flush: setup.flush,
            ..StoreConfig::new(DATA)
        };
        let config = BrokerConfig {
            auto_create_topics: setup.auto_create,
            retention: Retention::default(),
            ..BrokerConfig::default()
        };
        let (broker, workers) =
            Broker::open_stepped(Arc::new(disk.clone()), clock.clone(), store, config)?;
        Ok(Self { disk: disk.clone(), clock, broker, workers })
    }

    /// Where the log ends.
    pub(crate) fn appended(&self) -> u64 {
        self.broker.status().watermarks.appended.get()
    }

    /// Where it is on stable media.
    pub(crate) fn flushed(&self) -> u64 {
        self.broker.status().watermarks.flushed.get()
    }

    /// Ends it cleanly, and leaves its disk.
    pub(crate) fn stop(self) -> SimDisk {
        let Self { disk, broker, workers, .. } = self;
        broker.close_stepped(workers).unwrap();
        disk
    }

    /// Ends it as `kill -9` does: nothing is written any more.
    pub(crate) fn kill(self) -> SimDisk {
        self.disk
    }

    /// A step of one of the storage threads.
    pub(crate) fn step(&mut self, dice: &mut Dice) {
        let workers = &mut self.workers;
        match dice.below(12) {
            0..=3 => workers.dispatch.step(),
            4 | 5 => workers.flush.step(),
            6 | 7 => workers.seal.step(),
            8 => workers.allocate.step(),
            _ => workers.clean.step(),
        };
    }

    /// All that the storage threads have to do.
    pub(crate) fn settle(&mut self) {
        self.workers.settle();
    }

    /// All that is appended can be found.
    pub(crate) fn dispatch(&mut self) {
        while self.workers.dispatch.step() == Progress::Worked {}
    }

    /// What somebody who waits needs of the storage threads, by and by. Not the cleaning: nobody waits for it, and
    /// nothing is gone by it in the middle of a request.
    fn help(&mut self, round: u32) {
        let workers = &mut self.workers;
        let steps = [
            workers.dispatch.step(),
            workers.flush.step(),
            workers.allocate.step(),
            workers.seal.step(),
        ];
        // They are at rest, and it is not enough: nobody waits for the flush itself, but a segment for its end.
        if round > 2 && steps.iter().all(|step| *step != Progress::Worked) {
            workers.flush.flush_all();
        }
        assert!(round < 1_000, "a request waits for ever");
    }

    /// One look at a request, and whether it appended something.
    pub(crate) fn look_at<T>(&self, request: &mut Request<T>) -> (Option<T>, bool) {
        let before = self.appended();
        let answer = now(request.as_mut());
        (answer, self.appended() != before)
    }

    /// Helps a request, unless the power is off.
    pub(crate) fn helped(&mut self, round: u32) -> bool {
        if self.disk.is_off() {
            return false;
        }
        self.help(round);
        true
    }

    /// The answer of any request, helped as far as it needs it; `None`: the power went.
    pub(crate) fn carry<T>(&mut self, request: impl Future<Output = T> + 'static) -> Option<T> {
        let mut request: Request<T> = Box::pin(request);
        for round in 0.. {
            let answer = now(request.as_mut());
            if answer.is_some() {
                return answer;
            }
            if !self.helped(round) {
                return None;
            }
        }
        None
    }

    /// The answer of a request that changes nothing; `None`: the power went.
    pub(crate) fn answer<T>(&mut self, request: impl Future<Output = T> + 'static) -> Option<T> {
        let mut request: Request<T> = Box::pin(request);
        for round in 0.. {
            let (answer, appended) = self.look_at(&mut request);
            assert!(!appended, "a look appended something");
            if answer.is_some() {
                return answer;
            }
            if !self.helped(round) {
                return None;
            }
        }
        None
    }
}

/// Removes what is derived from the log.
pub(crate) fn bare(disk: &SimDisk) {
    for path in disk.paths() {
        let text = path.to_string_lossy().into_owned();
        let derived = ["consumequeue/", "index/", "state/", "checkpoint"];
        if derived.iter().any(|part| text.contains(part)) {
            disk.remove(&path).unwrap();
        }
    }
}
