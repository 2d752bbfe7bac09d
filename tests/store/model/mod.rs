//! The model: a store and the reference side by side, the steps that are made on both, and the runs.

mod checks;
mod operations;
mod reference;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstem::file::disk::{Disk, RealDisk};
use mainstem::format::state_record::Transition;
use mainstem::message::{PhysicalOffset, QueueId};
use mainstem::store::{Arrival, StoreConfig, TopicHandle};
use mainstem::testing::{CrashChoice, SimDisk};

use crate::rig::{DATA, Dice, Rig};
use reference::{Record, Topic};

type Parked = Pin<Box<dyn Future<Output = Arrival>>>;

/// A store and what it must show.
struct Model {
    dice: Dice,
    disk: Where,
    config: StoreConfig,
    rig: Option<Rig>,
    /// In log order.
    records: Vec<Record>,
    topics: BTreeMap<u64, Topic>,
    next_topic: u64,
    dead: Vec<Arc<TopicHandle>>,
    parked: Vec<(u64, u32, u64, Parked)>,
    sent: u64,
    wall: u64,
    highest_wall: u64,
    last_time: u64,
    epoch: u64,
    seen: Seen,
}

/// Proof that the interesting things happened.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    appended: u64,
    not_ready: u64,
    reads: u64,
    disk_reads: u64,
    pages: u64,
    rebuilding: u64,
    woken: u64,
    starts: u64,
    deleted: u64,
    segments: usize,
    /// Segments that went because nothing in them was alive.
    freed: u64,
    images: u64,
    /// Starts whose state came from an image alone.
    from_image: u64,
    /// Looks for an offset by time.
    by_time: u64,
    /// Offsets that were asked for and were gone.
    gone: u64,
}

enum Where {
    Simulated(SimDisk),
    Real(tempfile::TempDir),
}

impl Where {
    fn disk(&self) -> Arc<dyn Disk> {
        match self {
            Self::Simulated(disk) => Arc::new(disk.clone()),
            Self::Real(_) => Arc::new(RealDisk),
        }
    }

    fn dir(&self) -> PathBuf {
        match self {
            Self::Simulated(_) => DATA.into(),
            Self::Real(dir) => dir.path().join("store"),
        }
    }

    fn delete_derived(&self) {
        for dir in ["consumequeue", "index", "state"] {
            let path = self.dir().join(dir);
            for entry in self.disk().list(&path).unwrap() {
                self.disk().unlink(&path.join(entry.name)).unwrap();
            }
        }
        // There may be none yet.
        let _missing = self.disk().unlink(&self.dir().join("checkpoint"));
    }
}

impl Model {
    fn new(seed: u64, disk: Where) -> Self {
        let mut dice = Dice(seed);
        let config = StoreConfig {
            segment_size: dice.pick(&[16 << 10, 32 << 10, 64 << 10]),
            unsealed_memory: dice.pick(&[700, 3_000, 64 << 20]),
            hot_bytes: dice.pick(&[4 << 10, 24 << 10, 1 << 20]),
            ..StoreConfig::new(disk.dir())
        };
        let mut model = Self {
            dice,
            disk,
            config,
            rig: None,
            records: Vec::new(),
            topics: BTreeMap::new(),
            next_topic: 1,
            dead: Vec::new(),
            parked: Vec::new(),
            sent: 0,
            wall: 1_700_000_000_000,
            highest_wall: 1_700_000_000_000,
            last_time: 0,
            epoch: 0,
            seen: Seen::default(),
        };
        model.open();
        model
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    fn rig_mut(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap()
    }

    fn open(&mut self) {
        let rig = Rig::try_open(self.disk.disk(), &self.config, self.wall).unwrap();
        // The record of the start has a time too.
        self.last_time = self.last_time.max(self.wall);
        assert!(rig.store.status().damaged.is_empty());
        let report = rig.store.start_report();
        assert_eq!((report.damaged.len(), &report.cut), (0, &None), "{report}");
        self.epoch += 1;
        assert_eq!(rig.store.epoch().get(), self.epoch);
        let live: Vec<_> = rig
            .applier
            .live()
            .iter()
            .map(|transition| match transition {
                Transition::TopicCreated { id, settings, .. } => (id.get(), *settings),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected: Vec<_> =
            self.topics.iter().map(|(id, topic)| (*id, topic.settings)).collect();
        assert_eq!(live, expected);
        let from_image = report.remarks.iter().any(|remark| remark.contains("image"));
        self.seen.from_image += u64::from(from_image);
        for topic in self.topics.values_mut() {
            topic.floor = PhysicalOffset::ZERO;
        }
        self.seen.starts += 1;
        self.rig = Some(rig);
    }

    fn step(&mut self) {
        match self.dice.below(104) {
            0..=34 => self.append(),
            35..=54 => self.work(),
            55..=69 => self.read(),
            70..=79 => self.find(),
            80..=82 => self.by_id(),
            83..=86 => self.park(),
            87 | 88 => self.turn_the_clock(),
            89..=91 => self.create(),
            92 => self.delete(),
            93 | 94 => self.ask_for_nonsense(),
            95 => self.restart(),
            96 => self.update(),
            97 => self.purge(),
            98 => self.clean(),
            99 => self.by_time(),
            _ => self.acknowledge(),
        }
        self.rig().marks_are_in_order();
        if let Some((topic, queue)) = self.any_topic() {
            let handle = self.rig().topic(topic).unwrap();
            let max = self.rig().store.queue_max(&handle, QueueId::new(queue));
            assert_eq!(max.get(), self.max_offset(topic, queue), "queue {queue} of {topic}");
            if let Some((min, _)) = self.bounds(topic, queue) {
                let seen = &mut self.topics.get_mut(&topic).unwrap().min[queue as usize];
                assert!(min >= *seen, "queue {queue} of {topic} began at {seen}, now at {min}");
                *seen = min;
            }
        }
        self.wake();
    }

    fn restart(&mut self) {
        self.parked.clear();
        self.dead.clear();
        let rig = self.rig.take().unwrap();
        let status = rig.store.status();
        self.seen.segments = self.seen.segments.max(status.segments);
        self.seen.freed += status.deleted_segments;
        self.seen.images += status.images;
        let is_clean = self.dice.one_in(2);
        if is_clean {
            rig.close();
        } else {
            rig.kill();
            if let Where::Simulated(disk) = &self.disk
                && self.dice.one_in(2)
            {
                self.disk = Where::Simulated(disk.crash_image(&CrashChoice::EVERYTHING));
            }
        }
        let is_bare = self.dice.one_in(4);
        if is_bare {
            self.disk.delete_derived();
        }
        self.open();
        assert_eq!(self.rig().store.start_report().clean, is_clean && !is_bare);
        let marks = self.rig().store.watermarks();
        assert!(marks.flushed == marks.appended || marks.dispatched < marks.appended);
        self.rig_mut().workers.dispatch.step();
    }

    fn run(mut self, steps: usize) -> Seen {
        for _ in 0..steps {
            self.step();
        }
        self.compare();
        self.restart();
        self.compare();
        if let Where::Simulated(disk) = &self.disk {
            assert_eq!(disk.rewritten_under_readers(), 0, "what was published never changes");
        }
        self.seen
    }
}

fn given_seed() -> Option<u64> {
    std::env::var("SEED").ok().map(|text| text.parse().unwrap())
}

fn simulated() -> Where {
    Where::Simulated(SimDisk::new())
}

#[test]
fn a_store_on_the_simulated_disk_shows_what_the_model_shows() {
    let mut total = Seen::default();
    let seeds = given_seed().map_or(0..150, |seed| seed..seed + 1);
    for seed in seeds {
        println!("SEED={seed}");
        let seen = Model::new(seed, simulated()).run(600);
        total.not_ready += seen.not_ready;
        total.rebuilding += seen.rebuilding;
        total.woken += seen.woken;
        total.disk_reads += seen.disk_reads;
        total.deleted += seen.deleted;
        total.starts += seen.starts;
        total.pages += seen.pages;
        total.appended += seen.appended;
        total.segments = total.segments.max(seen.segments);
        total.freed += seen.freed;
        total.images += seen.images;
        total.from_image += seen.from_image;
        total.by_time += seen.by_time;
        total.gone += seen.gone;
    }
    println!("{total:?}");
    if given_seed().is_none() {
        let Seen { not_ready, rebuilding, woken, disk_reads, deleted, starts, segments, .. } =
            total;
        let Seen { freed, images, from_image, by_time, gone, .. } = total;
        for (what, count) in [
            ("appends without room", not_ready),
            ("answers while rebuilding", rebuilding),
            ("readers woken", woken),
            ("reads of cold records", disk_reads),
            ("topics deleted", deleted),
            ("starts", starts),
            ("segments", segments as u64),
            ("segments deleted", freed),
            ("images taken", images),
            ("starts from an image", from_image),
            ("offsets by time", by_time),
            ("reads of what is gone", gone),
        ] {
            assert!(count > 10, "{what}: {count}");
        }
    }
}

#[test]
fn a_store_on_the_real_disk_shows_what_the_model_shows() {
    for seed in given_seed().map_or(1_000..1_008, |seed| seed..seed + 1) {
        println!("SEED={seed}");
        Model::new(seed, Where::Real(tempfile::tempdir().unwrap())).run(400);
    }
}

#[test]
fn random_cases_for_as_long_as_asked() {
    let minutes: f64 =
        std::env::var("FAULT_MINUTES").ok().map_or(0.0, |text| text.parse().unwrap());
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    let mut seed = u64::from_le_bytes(bytes) >> 1;
    while Instant::now() < until {
        println!("SEED={seed}");
        Model::new(seed, simulated()).run(600);
        seed += 1;
    }
}
