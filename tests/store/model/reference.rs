//! What was appended, and what follows from it for readers: which records there are, up to where they are visible, and
//! which of them are gone.

use bytes::Bytes;
use mainstem::format::batch::{Batch, BatchInfo};
use mainstem::message::{FlushMode, PhysicalOffset, QueueId, TopicSettings};
use mainstem::store::{Placed, ReadError, StoredRecord};
use mainstem::testing::now;

use super::Model;

pub(super) const KEYS: [&str; 6] = ["alpha", "beta", "gamma", "delta", "a", "b"];
pub(super) const TAGS: [&str; 4] = ["red", "green", "blue", "red2"];

#[derive(Clone)]
pub(super) struct Message {
    pub(super) keys: Vec<&'static str>,
    pub(super) id: Option<String>,
    pub(super) tag: Option<&'static str>,
}

#[derive(Clone)]
pub(super) struct Record {
    pub(super) topic: u64,
    pub(super) queue: u32,
    pub(super) first: u64,
    pub(super) messages: Vec<Message>,
    pub(super) batch: Bytes,
    pub(super) info: BatchInfo,
    pub(super) placed: Placed,
}

impl Record {
    pub(super) fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }
}

pub(super) struct Topic {
    pub(super) settings: TopicSettings,
    /// What was visible when the mode last went from async to sync.
    pub(super) floor: PhysicalOffset,
    pub(super) next: Vec<u64>,
    /// Purged: whole, below this place; queue by queue, below these offsets.
    pub(super) below: PhysicalOffset,
    pub(super) purged: Vec<u64>,
    /// Where queues were seen to begin.
    pub(super) min: Vec<u64>,
}

impl Model {
    pub(super) fn any_topic(&mut self) -> Option<(u64, u32)> {
        let ids: Vec<u64> = self.topics.keys().copied().collect();
        if ids.is_empty() {
            return None;
        }
        let id = self.dice.pick(&ids);
        let queues = self.topics[&id].next.len() as u64;
        Some((id, self.dice.below(queues) as u32))
    }

    pub(super) fn visible_end(&self, topic: u64) -> PhysicalOffset {
        let marks = self.rig().store.watermarks();
        match self.topics[&topic].settings.flush {
            FlushMode::Sync => marks.flushed.max(self.topics[&topic].floor),
            FlushMode::Async => marks.appended,
        }
    }

    pub(super) fn readable_end(&self, topic: u64) -> PhysicalOffset {
        self.visible_end(topic).min(self.rig().store.watermarks().dispatched)
    }

    /// One behind the last offset that a reader may have.
    pub(super) fn max_offset(&self, topic: u64, queue: u32) -> u64 {
        let end = self.readable_end(topic);
        self.of_queue(topic, queue)
            .take_while(|record| record.placed.end <= end)
            .last()
            .map_or(0, Record::end)
    }

    pub(super) fn of_queue(&self, topic: u64, queue: u32) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.topic == topic && record.queue == queue)
    }

    /// Before which store time messages of a topic are gone, as the store says; checked against what the clocks were.
    pub(super) fn gone_before(&self, topic: u64) -> u64 {
        let handle = self.rig().topic(topic).unwrap();
        let (below, before) = self.rig().store.expired_now(&handle);
        assert_eq!(below, self.topics[&topic].below);
        let retention = self.topics[&topic].settings.retention.time_ms;
        let oldest = |now: u64| match retention {
            Some(ms) => (now - now % 1_000).saturating_sub(ms),
            None => 0,
        };
        let (_, floor, _) = handle.expired();
        let before = before.get();
        assert!(before >= oldest(self.last_time.max(self.wall)).max(floor.get()), "{before}");
        assert!(before <= oldest(self.highest_wall).max(floor.get()), "{before}");
        before
    }

    pub(super) fn is_gone(&self, record: &Record, before: u64) -> bool {
        let topic = &self.topics[&record.topic];
        record.placed.offset < topic.below
            || record.placed.store_time.get() < before
            || record.end() <= topic.purged[record.queue as usize]
    }

    /// Where a queue begins.
    pub(super) fn min_offset(&self, topic: u64, queue: u32) -> u64 {
        let before = self.gone_before(topic);
        let purged = self.topics[&topic].purged[queue as usize];
        let first = self.of_queue(topic, queue).find(|record| !self.is_gone(record, before));
        let next = self.topics[&topic].next[queue as usize];
        first.map_or(next, |record| record.first.max(purged)).min(self.max_offset(topic, queue))
    }

    /// The readable offsets, by the store and by the model; `None` while a file is being rebuilt.
    pub(super) fn bounds(&mut self, topic: u64, queue: u32) -> Option<(u64, u64)> {
        let handle = self.rig().topic(topic).unwrap();
        let bounds = match now(self.rig().store.queue_bounds(&handle, QueueId::new(queue))).unwrap()
        {
            Ok(bounds) => (bounds.min.get(), bounds.max.get()),
            Err(ReadError::Rebuilding) => {
                self.seen.rebuilding += 1;
                self.rig_mut().workers.settle();
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let expected = (self.min_offset(topic, queue), self.max_offset(topic, queue));
        assert_eq!(bounds, expected, "queue {queue} of {topic}");
        Some(bounds)
    }
}

pub(super) fn same(found: &StoredRecord, expected: &Record) {
    assert_eq!(found.batch, expected.batch);
    assert_eq!(
        (
            found.offset,
            found.first_queue_offset.get(),
            found.message_count,
            found.store_time,
            found.epoch,
            found.queue.get(),
            found.topic.get()
        ),
        (
            expected.placed.offset,
            expected.first,
            expected.info.message_count,
            expected.placed.store_time,
            expected.placed.epoch,
            expected.queue,
            expected.topic
        )
    );
    assert_eq!(Batch::parse(&found.batch).unwrap().message_count(), found.message_count);
}
