//! What changes a store: appends, topics made, changed, purged and deleted, time, and the steps of the workers.

use std::time::Duration;

use mainstem::format::batch::{BatchBuilder, NewMeta, check};
use mainstem::format::state_record::Transition;
use mainstem::message::{
    FlushMode, PhysicalOffset, QueueId, QueueOffset, Retention, Timestamp, TopicId, TopicSettings,
    TopicType,
};
use mainstem::store::{AppendError, NewRecord, Placed};
use mainstem::testing::now;

use super::Model;
use super::reference::{KEYS, Message, Record, TAGS, Topic};
use crate::rig::created;

impl Model {
    pub(super) fn message(&mut self) -> Message {
        let keys = (0..self.dice.below(3)).map(|_| self.dice.pick(&KEYS)).collect();
        self.sent += 1;
        let id = (!self.dice.one_in(3)).then(|| format!("id-{}", self.sent / 2));
        let tag = (!self.dice.one_in(3)).then(|| self.dice.pick(&TAGS));
        Message { keys, id, tag }
    }

    pub(super) fn new_record(&mut self, topic: u64, queue: u32, most: u64) -> (Record, NewRecord) {
        let count = if self.dice.one_in(3) { 1 + self.dice.below(5) } else { 1 };
        let mut builder = BatchBuilder::new();
        let mut messages = Vec::new();
        for _ in 0..count {
            let message = self.message();
            let len = self.dice.below(most / count) as usize;
            let meta = NewMeta {
                keys: message.keys.clone(),
                id: message.id.as_deref(),
                tag: message.tag,
                ..NewMeta::default()
            };
            builder.push(&meta, format!("{:0len$}", self.sent).as_bytes());
            messages.push(message);
        }
        let batch = builder.finish();
        let info = check(&batch).unwrap();
        let handle = self.rig().topic(topic).unwrap();
        let new = NewRecord::message(&handle, QueueId::new(queue), batch.clone(), &info);
        let placed = Placed {
            offset: PhysicalOffset::ZERO,
            end: PhysicalOffset::ZERO,
            queue_offset: QueueOffset::ZERO,
            store_time: Timestamp::ZERO,
            epoch: self.rig().store.epoch(),
        };
        (Record { topic, queue, first: 0, messages, batch, info, placed }, new)
    }

    pub(super) fn append(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return self.create() };
        if self.dice.one_in(4) {
            let count = 1 + self.dice.below(4);
            let set: Vec<_> = (0..count)
                .map(|_| {
                    let (topic, queue) = self.any_topic().unwrap_or((topic, queue));
                    self.new_record(topic, queue, 600)
                })
                .collect();
            let (records, new): (Vec<_>, Vec<_>) = set.into_iter().unzip();
            let outcome = self.rig().store.append(new);
            self.appended(records, outcome);
        } else {
            let (record, new) = self.new_record(topic, queue, 3_000);
            let outcome = self.rig().store.append_one(new).map(|placed| vec![placed]);
            self.appended(vec![record], outcome);
        }
    }

    pub(super) fn appended(
        &mut self,
        records: Vec<Record>,
        outcome: Result<Vec<Placed>, AppendError>,
    ) {
        let placed = match outcome {
            Ok(placed) => placed,
            Err(AppendError::NotReady) => return self.make_room(),
            Err(error) => panic!("{error}: {:?}", now(self.rig().store.failed())),
        };
        assert_eq!(placed.len(), records.len());
        for (mut record, placed) in records.into_iter().zip(placed) {
            self.stamped(placed);
            let next = &mut self.topics.get_mut(&record.topic).unwrap().next[record.queue as usize];
            assert_eq!(placed.queue_offset.get(), *next, "offsets without holes");
            assert_eq!(placed.epoch.get(), self.epoch);
            assert!(self.records.last().is_none_or(|last| last.placed.end <= placed.offset));
            record.first = *next;
            *next = record.end().max(*next + record.messages.len() as u64);
            record.placed = placed;
            self.records.push(record);
            self.seen.appended += 1;
        }
    }

    /// The store clock follows the wall and never steps back. A refused append may have moved it, too.
    pub(super) fn stamped(&mut self, placed: Placed) {
        let time = placed.store_time.get();
        assert!(time >= self.last_time.max(self.wall), "{time}");
        assert!(time <= self.highest_wall, "{time}");
        self.last_time = time;
    }

    /// No room: the workers have something to do, and then there is.
    pub(super) fn make_room(&mut self) {
        self.seen.not_ready += 1;
        if self.dice.one_in(3) {
            return;
        }
        self.rig_mut().workers.settle();
        assert_eq!(now(self.rig().store.space()), Some(Ok(())));
    }

    pub(super) fn work(&mut self) {
        let which = self.dice.below(12);
        let workers = &mut self.rig_mut().workers;
        match which {
            0..=3 => {
                workers.dispatch.step();
            }
            4 | 5 => {
                workers.flush.step();
            }
            6 | 7 => workers.flush.flush_all(),
            8 | 9 => {
                workers.seal.step();
            }
            10 => {
                workers.allocate.step();
            }
            _ => workers.settle(),
        }
    }

    pub(super) fn turn_the_clock(&mut self) {
        match self.dice.below(4) {
            0 => self.wall = self.wall.saturating_sub(3_600_000),
            1 => self.wall += 31 * 24 * 3_600_000,
            _ => self.wall += self.dice.below(5_000),
        }
        let (wall, by) = (self.wall, self.dice.below(300));
        self.highest_wall = self.highest_wall.max(wall);
        self.rig().clock.advance(Duration::from_millis(by));
        self.rig().clock.set_wall(Timestamp::new(wall));
    }

    pub(super) fn transition(&mut self, transition: &Transition) -> bool {
        match self.rig().state(transition) {
            Ok((placed, _)) => {
                self.stamped(placed);
                true
            }
            Err(AppendError::NotReady) => {
                self.make_room();
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn create(&mut self) {
        if self.topics.len() >= 4 {
            return;
        }
        let (id, queues) = (self.next_topic, 1 + self.dice.below(3) as u32);
        let flush = self.dice.pick(&[FlushMode::Sync, FlushMode::Async]);
        self.next_topic += 1;
        if self.transition(&created(id, queues, flush)) {
            let none = vec![0; queues as usize];
            self.topics.insert(
                id,
                Topic {
                    settings: TopicSettings::open(queues, flush, TopicType::Mixed),
                    floor: PhysicalOffset::ZERO,
                    next: none.clone(),
                    below: PhysicalOffset::ZERO,
                    purged: none.clone(),
                    min: none,
                },
            );
        }
    }

    /// More queues, another mode, another retention. What is gone by the old one stays gone.
    pub(super) fn update(&mut self) {
        let Some((topic, _)) = self.any_topic() else { return };
        let settings = self.topics[&topic].settings;
        let time_ms = self.dice.pick(&[None, Some(1_000), Some(8_000), Some(40 * 24 * 3_600_000)]);
        let settings = TopicSettings {
            queues: settings.queues + u32::from(settings.queues < 5 && self.dice.one_in(2)),
            flush: self.dice.pick(&[FlushMode::Sync, FlushMode::Async]),
            retention: Retention { time_ms, bytes: None },
            ..settings
        };
        let before = Timestamp::new(self.gone_before(topic));
        let (id, below, purged) = (TopicId::new(topic), PhysicalOffset::ZERO, PhysicalOffset::ZERO);
        let gone = Transition::TopicExpired { id, below, before, queues: vec![], purged };
        if !self.transition(&gone) {
            return;
        }
        let handle = self.rig().topic(topic).unwrap();
        let was_async = handle.flush() == FlushMode::Async;
        if self.transition(&Transition::TopicUpdated { id, settings }) {
            self.rig().store.wake_readers(&handle);
            let appended = self.rig().store.watermarks().appended;
            let known = self.topics.get_mut(&topic).unwrap();
            if was_async {
                known.floor = appended;
            }
            known.settings = settings;
            for list in [&mut known.next, &mut known.purged, &mut known.min] {
                list.resize(settings.queues as usize, 0);
            }
        }
    }

    pub(super) fn purge(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return };
        let (id, mut queues) = (TopicId::new(topic), Vec::new());
        let mut below = PhysicalOffset::ZERO;
        if self.dice.one_in(3) {
            below = self.rig().store.watermarks().appended;
        } else {
            let upto = self.dice.below(self.max_offset(topic, queue) + 1);
            queues.push((QueueId::new(queue), QueueOffset::new(upto)));
        }
        let transition = Transition::TopicExpired {
            id,
            below,
            before: Timestamp::ZERO,
            queues: queues.clone(),
            purged: below,
        };
        if self.transition(&transition) {
            let known = self.topics.get_mut(&topic).unwrap();
            known.below = known.below.max(below);
            for (queue, upto) in queues {
                let purged = &mut known.purged[queue.get() as usize];
                *purged = (*purged).max(upto.get());
            }
        }
    }

    pub(super) fn clean(&mut self) {
        self.rig().store.clean_soon();
        for _ in 0..self.dice.below(12) {
            self.rig_mut().workers.clean.step();
            if self.dice.one_in(4) {
                self.work();
            }
        }
    }

    pub(super) fn delete(&mut self) {
        let Some((topic, _)) = self.any_topic() else { return };
        let handle = self.rig().topic(topic).unwrap();
        handle.kill();
        if !self.transition(&Transition::TopicDeleted { id: TopicId::new(topic) }) {
            handle.unkill();
            return;
        }
        self.rig().store.end_arrivals(&handle);
        self.topics.remove(&topic);
        self.dead.push(handle);
        self.seen.deleted += 1;
    }
}
