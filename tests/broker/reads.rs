//! Pulls and queries: what they show against what there is.
//!
//! While requests are under way, what can be seen lies between two worlds: what could be read when the pull came, and
//! what could be read when it was answered.

use std::time::Duration;

use mainstem::broker::{BrokerError, Page, PullRequest, Pulled, QueryRequest, Reason, Selector};
use mainstem::format::batch;
use mainstem::message::{Epoch, MessageId, PhysicalOffset, QueueId, QueueOffset};
use mainstem::store::Order;

use crate::model::{Model, Place};
use crate::rig::late;
use crate::rules::place;
use crate::script::{KEYS, Op, TAGS, TOPICS};
use crate::world::{Message, Record, Topic};

const GROUP_OF: [Option<&str>; 6] = [None, None, None, Some("ga"), Some("ga"), Some("gb")];

/// Queue and offset of each message that was found, and whether nothing may be missing.
type Hits = (Vec<(u32, u64)>, bool);

/// A pull of the script.
#[derive(Clone, Copy)]
struct Wish {
    topic: &'static str,
    queue: u32,
    from: u64,
    messages: u32,
    bytes: u32,
    tag: Option<&'static str>,
    group: Option<&'static str>,
}

impl Model {
    /// A request that changes nothing.
    pub(crate) fn look(&mut self, op: &Op) {
        match *op {
            Op::Pull { topic, queue, from, messages, bytes, tag, group } => {
                let topic = TOPICS[topic];
                let queue = self.picked(topic, queue);
                let queues = self.world.topics.get(topic).map_or(0, |topic| topic.queues.len());
                let range =
                    if (queue as usize) < queues { self.range(topic, queue) } else { (0, 0) };
                self.pull(Wish {
                    topic,
                    queue,
                    from: place(from, range),
                    messages,
                    bytes,
                    tag: TAGS.get(usize::from(tag)).copied(),
                    group: GROUP_OF[usize::from(group)],
                });
            }
            Op::Query { topic, key, newest_first, limit } => {
                let order = if newest_first { Order::NewestFirst } else { Order::OldestFirst };
                self.query(TOPICS[topic], KEYS[key], order, limit);
            }
            Op::ById { topic, queue, at } => self.by_id(TOPICS[topic], queue, at),
            _ => unreachable!("{op:?} is made elsewhere"),
        }
    }

    fn visible_end(&self, topic: &Topic) -> u64 {
        topic.visible_end(self.rig().appended(), self.rig().flushed())
    }

    fn pull(&mut self, wish: Wish) {
        let known = self.world.topics.get(wish.topic).cloned();
        let visible_before = known.as_ref().map(|topic| self.visible_end(topic));
        let pulled = self.ask(move |broker| async move {
            let request = PullRequest {
                epoch: None,
                topic: wish.topic,
                queue: QueueId::new(wish.queue),
                offset: QueueOffset::new(wish.from),
                max_messages: wish.messages,
                max_bytes: wish.bytes,
                wait: Duration::ZERO,
                tags: wish.tag.unwrap_or_default(),
                group: wish.group,
                deadline: late(),
            };
            broker.pull(request).await
        });
        let Some(pulled) = pulled else { return };
        if let Some(refused) = self.refused_pull(&wish, known.as_ref()) {
            let found = pulled.map(|_| ()).unwrap_err();
            assert_eq!(found.reason(), refused, "{found}");
            let told = match refused {
                Reason::UnknownTopic => self.world.topics_applied,
                Reason::UnknownGroup => self.world.groups_applied,
                _ => 0,
            };
            let flushed = self.rig().flushed();
            assert!(!self.is_sync() || flushed >= told, "{found} is told before it is durable");
            return;
        }
        let topic = known.unwrap();
        let queue = &topic.queues[wish.queue as usize];
        let low = queue.end_below(visible_before.unwrap_or_default());
        let high = queue.end_below(self.visible_end(&topic));
        let min = self.min(topic.id, topic.min(wish.queue, self.wall), wish.queue);
        self.tally.note("pulls", 1);
        match pulled {
            Err(BrokerError::OffsetOutOfRange { offset, range, epoch }) => {
                assert_eq!((offset.get(), epoch.get()), (wish.from, self.epoch));
                let max = range.max.get();
                assert!((low..=high).contains(&max), "{low} {max} {high}");
                assert_eq!(range.min.get(), min.min(max));
                assert!(wish.from < range.min.get() || wish.from > max, "{range:?}");
                self.tally.note("pulls of what is gone", (wish.from < range.min.get()).into());
            }
            Err(error) => panic!("{error}"),
            Ok(pulled) => {
                let max = pulled.range.max.get();
                assert!(max <= high, "{max} can be read, but {high} must be the end");
                assert_eq!(pulled.range.min.get(), min.min(max));
                assert!((min.min(max)..=max).contains(&wish.from));
                if pulled.records.is_empty() {
                    assert_eq!(pulled.next.get(), max);
                    assert!(max >= low, "{low} was there before the pull, {max} is the end now");
                }
                self.same_records(&wish, &topic, &pulled);
            }
        }
    }

    fn refused_pull(&self, wish: &Wish, topic: Option<&Topic>) -> Option<Reason> {
        let Some(topic) = topic else { return Some(Reason::UnknownTopic) };
        if wish.queue >= topic.settings.queues {
            return Some(Reason::BadQueue);
        }
        let group = wish.group.map(|name| self.world.groups.get(name));
        match group {
            Some(None) => return Some(Reason::UnknownGroup),
            Some(Some(group)) if !group.settings.enabled => return Some(Reason::GroupDisabled),
            _ => {}
        }
        (!topic.settings.access.read).then_some(Reason::Forbidden)
    }

    /// What was pulled is what is there, in order, with nothing passed over that was wanted.
    fn same_records(&mut self, wish: &Wish, topic: &Topic, pulled: &Pulled) {
        let is_wanted = |message: &Message| wish.tag.is_none() || message.tag == wish.tag;
        let next = pulled.next.get();
        let mut found = pulled.records.iter();
        let (mut messages, mut bytes) = (0, 0);
        let mut at = found.next();
        let records = &topic.queues[wish.queue as usize].records;
        for record in
            records.iter().filter(|record| record.end() > wish.from && record.first < next)
        {
            match at {
                Some(seen) if seen.first_queue_offset.get() == record.first => {
                    let epoch = seen.epoch.get();
                    assert!(seen.batch == record.batch.bytes, "another batch");
                    assert_eq!(
                        (seen.message_count.into(), seen.store_time.get(), epoch),
                        (record.batch.count(), record.time, record.epoch)
                    );
                    self.ledger.saw(Place::of(topic.id, seen), seen.offset.get(), &seen.batch);
                    messages += u32::from(seen.message_count);
                    bytes += seen.batch.len();
                    at = found.next();
                }
                _ => assert!(
                    !record.batch.messages.iter().any(is_wanted),
                    "offset {} was passed over",
                    record.first
                ),
            }
        }
        assert!(at.is_none(), "there is no such record: {at:?}");
        let is_within = messages <= wish.messages && bytes <= wish.bytes as usize;
        assert!(pulled.records.len() <= 1 || is_within, "more than was asked for");
        self.tally.note("records pulled", pulled.records.len() as u64);
    }

    // ---- queries

    fn query(&mut self, name: &'static str, key: &'static str, order: Order, limit: u32) {
        let known = self.world.topics.get(name).cloned();
        let visible_before = known.as_ref().map_or(0, |topic| self.visible_end(topic));
        for _ in 0..5 {
            let Some(found) = self.pages(name, key, order, limit) else { return };
            let (found, is_complete) = match (&known, found) {
                (Some(topic), Ok(found)) if topic.settings.access.read => found,
                (None, Err(error)) => {
                    return assert_eq!(error.reason(), Reason::UnknownTopic, "{error}");
                }
                (Some(_), Err(error)) => {
                    return assert_eq!(error.reason(), Reason::Forbidden, "{error}");
                }
                (_, Ok(_)) => panic!("a query was answered that must be refused"),
            };
            if !is_complete {
                self.tally.note("answers while a file is made again", 1);
                self.rig_mut().settle();
                continue;
            }
            let topic = known.unwrap();
            let mut certain = self.with_key(&topic, key, visible_before);
            let mut possible = self.with_key(&topic, key, self.visible_end(&topic));
            if order == Order::NewestFirst {
                certain.reverse();
                possible.reverse();
            }
            self.tally.note("messages found by key", found.len() as u64);
            assert!(
                found == possible || found == certain || {
                    let is_missing = |place: &&(u32, u64)| !found.contains(place);
                    let is_strange = |place: &&(u32, u64)| !possible.contains(place);
                    certain.iter().find(is_missing).is_none()
                        && found.iter().find(is_strange).is_none()
                },
                "{found:?} found, {certain:?} to {possible:?} must be"
            );
            return;
        }
        panic!("the index is never made again");
    }

    /// All pages of a query.
    fn pages(
        &mut self,
        name: &'static str,
        key: &'static str,
        order: Order,
        limit: u32,
    ) -> Option<Result<Hits, BrokerError>> {
        let (mut token, mut found, mut is_complete) = (String::new(), Vec::new(), true);
        loop {
            let page_token = token.clone();
            let page = self.ask(move |broker| {
                let page_token = page_token.clone();
                async move {
                    let request = QueryRequest {
                        selector: Selector::Key { topic: name, key },
                        begin: None,
                        end: None,
                        order,
                        limit,
                        page_token: &page_token,
                        deadline: late(),
                    };
                    broker.query(request).await
                }
            })?;
            let Page { messages, next_page_token, incomplete, .. } = match page {
                Ok(page) => page,
                Err(error) => return Some(Err(error)),
            };
            assert!(messages.len() <= limit as usize);
            for message in &messages {
                let batch = batch::Batch::parse(&message.batch).unwrap();
                let meta = batch.metas().next().unwrap().unwrap();
                assert!(meta.keys().any(|found| found == key), "a message with another key");
                found.push((message.queue.get(), message.queue_offset.get()));
            }
            is_complete &= incomplete.is_none();
            match next_page_token {
                Some(next) => token = next,
                None => return Some(Ok((found, is_complete))),
            }
        }
    }

    /// The messages with a key that are not gone and lie below a place of the log, in its order.
    fn with_key(&self, topic: &Topic, key: &str, below: u64) -> Vec<(u32, u64)> {
        let mut found = Vec::new();
        for (queue, records) in (0..).zip(&topic.queues) {
            let min = self.min(topic.id, topic.min(queue, self.wall), queue);
            let records = records.records.iter();
            for record in records.filter(|record| record.end() > min && record.within.1 <= below) {
                let messages = (record.first..).zip(&record.batch.messages);
                // A purge may end within a batch.
                let with_key =
                    messages.filter(|(offset, message)| *offset >= min && message.key == key);
                found.extend(with_key.map(|(offset, _)| (record.order, queue, offset)));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, queue, offset)| (queue, offset)).collect()
    }

    /// A message by its place, and by its id.
    fn by_id(&mut self, name: &'static str, queue: u32, at: u16) {
        self.land();
        self.rig_mut().settle();
        self.refresh();
        let queue = self.picked(name, queue);
        let Some(topic) = self.world.topics.get(name).cloned() else { return };
        if queue >= topic.settings.queues || self.rig().disk.is_off() {
            return;
        }
        let (min, max) = self.range(name, queue);
        let offset = place(at, (min, max));
        let queue_id = QueueId::new(queue);
        let selector =
            Selector::Place { topic: name, queue: queue_id, offset: QueueOffset::new(offset) };
        let Some(found) = self.one(selector) else { return };
        let is_there = (min..max).contains(&offset);
        let found = match found {
            Ok(page) if is_there && topic.settings.access.read => page,
            Ok(page) => panic!("{page:?}"),
            Err(error) if !topic.settings.access.read => {
                return assert_eq!(error.reason(), Reason::Forbidden, "{error}");
            }
            Err(error) if !is_there => {
                return assert_eq!(error.reason(), Reason::OffsetOutOfRange, "{error}");
            }
            Err(error) => panic!("{error}"),
        };
        let records = &topic.queues[queue as usize].records;
        let record = records.iter().find(|record| record.end() > offset).unwrap();
        let message = &found.messages[0];
        self.is_message(message.id, record, offset, &topic, queue);
        let Some(again) = self.one(Selector::MessageId(message.id)) else { return };
        assert_eq!(again.unwrap().messages[0].batch, message.batch);
        let id = MessageId { epoch: Epoch::new(message.id.epoch.get() + 1), ..message.id };
        let Some(other) = self.one(Selector::MessageId(id)) else { return };
        assert_eq!(other.unwrap_err().reason(), Reason::MessageNotFound);
        self.tally.note("messages found by id", 1);
    }

    fn is_message(&self, id: MessageId, record: &Record, offset: u64, topic: &Topic, queue: u32) {
        let place = Place { topic: topic.id, queue, first: record.first, epoch: id.epoch.get() };
        let index = (offset - record.first) as u16;
        assert_eq!((id.epoch.get(), id.index), (record.epoch, index));
        if let Some(known) = self.ledger.offset(&place) {
            assert_eq!(id.offset, PhysicalOffset::new(known));
        }
    }

    fn one(&mut self, selector: Selector<'static>) -> Option<Result<Page, BrokerError>> {
        self.ask(move |broker| async move {
            let request = QueryRequest {
                selector,
                begin: None,
                end: None,
                order: Order::OldestFirst,
                limit: 1,
                page_token: "",
                deadline: late(),
            };
            broker.query(request).await
        })
    }
}
