//! What a store answers, against the reference: reads, queries, readers who wait, and requests that make no sense.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use mainstem::format::batch::{BatchInfo, TagFilter, check};
use mainstem::message::{MessageId, PhysicalOffset, QueueId, QueueOffset, Timestamp};
use mainstem::store::{
    AppendError, Arrival, FindRequest, IncompleteReason, IndexKind, NewRecord, Order, ReadError,
    ReadOutcome, ReadRequest,
};
use mainstem::testing::now;

use super::Model;
use super::reference::{KEYS, Record, TAGS, same};

impl Model {
    pub(super) fn filter(&mut self) -> TagFilter {
        match self.dice.below(4) {
            0 => TagFilter::parse(self.dice.pick(&TAGS)).unwrap(),
            1 => TagFilter::parse("red || blue").unwrap(),
            _ => TagFilter::All,
        }
    }

    pub(super) fn read(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return };
        let Some((min, max)) = self.bounds(topic, queue) else { return };
        let from = match self.dice.one_in(3) {
            true => self.dice.below(max + 3),
            false => min + self.dice.below(max - min + 3),
        };
        let before = self.gone_before(topic);
        let filter = Arc::new(self.filter());
        let max_messages = self.dice.pick(&[1, 3, 10, 1_000]);
        let max_bytes = self.dice.pick(&[1, 2_000, 10_000, 1 << 20]);
        let request = ReadRequest {
            topic: self.rig().topic(topic).unwrap(),
            queue: QueueId::new(queue),
            from: QueueOffset::new(from),
            max_messages,
            max_bytes,
            filter: Arc::clone(&filter),
        };
        let outcome = now(self.rig().store.read(request)).unwrap().unwrap();
        self.seen.reads += 1;
        let expected: Vec<&Record> = self
            .of_queue(topic, queue)
            .filter(|record| record.end() > from && record.end() <= max)
            .filter(|record| !self.is_gone(record, before))
            .filter(|record| {
                let BatchInfo { tag_bits, has_untagged, .. } = record.info;
                let may = filter.may_match(tag_bits, record.messages.len() > 1, has_untagged);
                let does = record.messages.iter().any(|message| filter.matches(message.tag));
                assert!(may || !does, "a filter never leaves out what matches");
                may
            })
            .collect();
        match outcome {
            ReadOutcome::OutOfRange { range } => {
                assert!(from > max || from < min);
                self.seen.gone += u64::from(from < min);
                assert_eq!((range.min.get(), range.max.get()), (min, max));
            }
            ReadOutcome::Empty { next, range } => {
                assert_eq!((expected.len(), next.get(), range.max.get()), (0, max, max));
            }
            ReadOutcome::Records { records, next, range } => {
                assert_eq!((range.min.get(), range.max.get()), (min, max));
                let (mut messages, mut bytes) = (0, 0);
                assert!(records.len() <= expected.len(), "more than there is");
                for (found, expected) in records.iter().zip(&expected) {
                    same(found, expected);
                    messages += expected.messages.len();
                    bytes += expected.placed.end.since(expected.placed.offset) as usize;
                }
                let is_within = messages <= max_messages && bytes <= max_bytes;
                assert!(records.len() == 1 || is_within, "limits of more than one record");
                let last = records.len() - 1;
                assert!(next.get() >= expected[last].end());
                let resumes = expected.get(last + 1).map_or(max, |record| record.first);
                assert!(next.get() <= resumes, "nothing is passed over");
            }
            ReadOutcome::Rebuilding => {
                self.seen.rebuilding += 1;
                self.rig_mut().workers.settle();
            }
            damaged @ ReadOutcome::Damaged { .. } => panic!("{damaged:?}"),
        }
        let oldest = self.rig().store.watermarks().appended.get();
        let hot = oldest.saturating_sub(self.config.hot_bytes);
        let is_cold =
            self.of_queue(topic, queue).any(|r| r.first == from && r.placed.offset.get() < hot);
        self.seen.disk_reads += u64::from(is_cold);
    }

    pub(super) fn find(&mut self) {
        let Some((topic, _)) = self.any_topic() else { return };
        let (kind, text) = if self.dice.one_in(2) {
            (IndexKind::Key, self.dice.pick(&KEYS).to_owned())
        } else {
            (IndexKind::Id, format!("id-{}", self.dice.below(self.sent / 2 + 1)))
        };
        let (begin, end) = if self.dice.one_in(2) {
            (0, u64::MAX)
        } else {
            let times: Vec<u64> =
                self.records.iter().map(|record| record.placed.store_time.get()).collect();
            if times.is_empty() {
                return;
            }
            let (one, other) = (self.dice.pick(&times), self.dice.pick(&times));
            (one.min(other), one.max(other))
        };
        let order = self.dice.pick(&[Order::OldestFirst, Order::NewestFirst]);
        let limit = self.dice.pick(&[1, 2, 7, 1_000]);
        let readable = self.readable_end(topic);
        let before = self.gone_before(topic);
        let mut expected: Vec<(PhysicalOffset, u16)> = Vec::new();
        for record in self.records.iter().filter(|record| record.topic == topic) {
            let time = record.placed.store_time.get();
            let is_gone = self.is_gone(record, before);
            if record.placed.end > readable || time < begin || time > end || is_gone {
                continue;
            }
            for (index, message) in (0..).zip(&record.messages) {
                let matches = match kind {
                    IndexKind::Key => message.keys.contains(&&*text),
                    IndexKind::Id => message.id.as_deref() == Some(&text),
                };
                let purged = self.topics[&topic].purged[record.queue as usize];
                if matches && record.first + u64::from(index) >= purged {
                    expected.push((record.placed.offset, index));
                }
            }
        }
        if order == Order::NewestFirst {
            expected.reverse();
        }
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let request = FindRequest {
                topic: self.rig().topic(topic).unwrap(),
                kind,
                bytes: Bytes::from(text.clone()),
                begin: Timestamp::new(begin),
                end: Timestamp::new(end),
                order,
                limit,
                after,
            };
            let page = now(self.rig().store.find(request)).unwrap().unwrap();
            if !page.complete {
                assert_eq!(page.reason, Some(IncompleteReason::Rebuilding));
                self.seen.rebuilding += 1;
                self.rig_mut().workers.settle();
                return;
            }
            self.seen.pages += 1;
            assert!(page.messages.len() <= limit);
            found.extend(page.messages.iter().map(|found| (found.record.offset, found.index)));
            after = page.next;
            if after.is_none() {
                break;
            }
            // What comes between two pages does not shift them.
            if self.dice.one_in(4) {
                self.append();
                self.work();
            }
        }
        assert_eq!(
            found, expected,
            "{kind:?} {text} of topic {topic}, {order:?}, pages of {limit}"
        );
    }

    pub(super) fn by_id(&mut self) {
        if self.records.is_empty() {
            return;
        }
        let index = self.dice.below(self.records.len() as u64) as usize;
        let record = &self.records[index];
        let place = index as u64 % record.messages.len() as u64;
        let id = MessageId {
            epoch: record.placed.epoch,
            offset: record.placed.offset,
            index: place as u16,
        };
        let found = self.rig().by_id(id);
        let is_readable = self.topics.contains_key(&record.topic)
            && record.placed.end <= self.readable_end(record.topic)
            && !self.is_gone(record, self.gone_before(record.topic))
            && record.first + place >= self.topics[&record.topic].purged[record.queue as usize];
        assert_eq!(found.is_some(), is_readable, "{id}");
        if let Some(found) = found {
            same(&found, record);
        }
        let wrong = MessageId { index: record.messages.len() as u16, ..id };
        assert!(self.rig().by_id(wrong).is_none());
        let inside = MessageId { offset: id.offset.plus(8), ..id };
        assert!(self.rig().by_id(inside).is_none());
    }

    /// Parks a reader behind what it can read.
    pub(super) fn park(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return };
        let from = self.max_offset(topic, queue);
        let handle = self.rig().topic(topic).unwrap();
        let arrival =
            self.rig().store.arrival(&handle, QueueId::new(queue), QueueOffset::new(from));
        self.parked.push((topic, queue, from, Box::pin(arrival)));
    }

    /// Whoever can read something has been woken.
    pub(super) fn wake(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for (topic, queue, from, mut arrival) in std::mem::take(&mut self.parked) {
            match arrival.as_mut().poll(&mut context) {
                Poll::Ready(Arrival::Readable) => self.seen.woken += 1,
                Poll::Ready(Arrival::Gone) => assert!(!self.topics.contains_key(&topic)),
                Poll::Ready(Arrival::Closed) => panic!("nobody closed the store"),
                Poll::Pending => {
                    assert!(self.topics.contains_key(&topic), "readers of a deleted topic go");
                    let max = self.max_offset(topic, queue);
                    assert!(max <= from, "a reader at {from} sleeps and could read up to {max}");
                    self.parked.push((topic, queue, from, arrival));
                }
            }
        }
    }

    /// The first offset stored then or later, for times of records, between them, before and behind all.
    pub(super) fn by_time(&mut self) {
        let Some((topic, queue)) = self.any_topic() else { return };
        let Some((min, max)) = self.bounds(topic, queue) else { return };
        let times: Vec<u64> =
            self.records.iter().map(|record| record.placed.store_time.get()).collect();
        let some = if times.is_empty() { 0 } else { self.dice.pick(&times) };
        let time = self.dice.pick(&[0, some, some + 1, some.saturating_sub(1), u64::MAX]);
        let handle = self.rig().topic(topic).unwrap();
        let asked = self.rig().store.offset_at(&handle, QueueId::new(queue), Timestamp::new(time));
        let found = match now(asked).unwrap() {
            Ok(found) => found.get(),
            Err(ReadError::Rebuilding) => return self.rig_mut().workers.settle(),
            Err(error) => panic!("{error}"),
        };
        let late = self.of_queue(topic, queue).find(|record| {
            record.placed.store_time.get() >= time && record.end() > min && record.end() <= max
        });
        let expected = late.map_or(max, |record| record.first.max(min));
        assert_eq!(found, expected, "time {time} in queue {queue} of {topic}, {min} to {max}");
        self.seen.by_time += 1;
    }

    pub(super) fn ask_for_nonsense(&mut self) {
        let Some((topic, _)) = self.any_topic() else { return };
        let handle = self.rig().topic(topic).unwrap();
        let batch = crate::rig::batch(0, 1, 10);
        let info = check(&batch).unwrap();
        let record = |topic, queue| NewRecord::message(topic, queue, batch.clone(), &info);
        let queue = QueueId::new(handle.queues());
        match self.rig().store.append_one(record(&handle, queue)) {
            Err(AppendError::NoSuchQueue { queues }) => assert_eq!(queues, handle.queues()),
            other => panic!("{other:?}"),
        }
        if let Some(dead) = self.dead.last() {
            match self.rig().store.append_one(record(dead, QueueId::ZERO)) {
                Err(AppendError::Deleted) => {}
                other => panic!("{other:?}"),
            }
        }
        let max = self.rig().store.max_append_set();
        let big = crate::rig::batch(0, 1, max as usize);
        let info = check(&big).unwrap();
        match self.rig().store.append_one(NewRecord::message(&handle, QueueId::ZERO, big, &info)) {
            Err(AppendError::TooLarge { max: found, .. }) => assert_eq!(found, max),
            other => panic!("{other:?}"),
        }
    }

    /// An acknowledgement comes when what it is for is visible.
    pub(super) fn acknowledge(&mut self) {
        let Some(last) = self.records.last().cloned() else { return };
        let Some(handle) = self.rig().topic(last.topic) else { return };
        let answer = now(self.rig().store.acknowledged(&handle, last.placed.end));
        let is_visible = last.placed.end <= self.visible_end(last.topic);
        assert_eq!(answer, is_visible.then_some(Ok(())));
        if now(self.rig().store.caught_up(&handle)).is_some() {
            let marks = self.rig().store.watermarks();
            assert!(marks.dispatched >= self.visible_end(last.topic));
        }
    }

    /// Everything, when everything is done.
    pub(super) fn compare(&mut self) {
        self.rig_mut().workers.settle();
        let marks = self.rig().store.watermarks();
        assert_eq!((marks.flushed, marks.dispatched), (marks.appended, marks.appended));
        for (id, topic) in &self.topics {
            let handle = self.rig().topic(*id).unwrap();
            for queue in 0..topic.next.len() as u32 {
                let found = self.rig().read_all(&handle, queue);
                let before = self.gone_before(*id);
                let expected: Vec<_> = self
                    .of_queue(*id, queue)
                    .filter(|record| !self.is_gone(record, before))
                    .collect();
                assert_eq!(found.len(), expected.len());
                found.iter().zip(expected).for_each(|(found, expected)| same(found, expected));
            }
        }
        assert!(self.rig().store.status().unsealed <= 3);
        self.seen.segments = self.seen.segments.max(self.rig().store.status().segments);
    }
}
