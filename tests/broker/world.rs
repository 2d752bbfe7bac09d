//! The reference: what the changes of a broker's log come to, one after the other, and what follows from that. Plain
//! maps and vectors, searched from one end to the other.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use mainstem::broker::Expected;
use mainstem::message::{FlushMode, GroupSettings, InitialPosition, TopicSettings};

/// A session that was neither opened nor stored anything for so long is closed by the opening of another.
const IDLE_MS: u64 = 7 * 24 * 3_600 * 1_000;
/// Of so many batches a session knows the places.
pub(crate) const WINDOW: usize = 64;
/// Ages are looked at in such steps.
const AGE_STEP_MS: u64 = 1_000;

/// A message as far as anybody asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) key: &'static str,
    pub(crate) id: String,
    pub(crate) tag: Option<&'static str>,
}

/// A batch as it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    pub(crate) messages: Vec<Message>,
}

impl Batch {
    pub(crate) fn count(&self) -> u64 {
        self.messages.len() as u64
    }
}

/// A batch in a queue.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// In the log, of all records.
    pub(crate) order: u64,
    pub(crate) first: u64,
    pub(crate) batch: Rc<Batch>,
    pub(crate) time: u64,
    pub(crate) epoch: u64,
    /// Where in the log it lies: it begins at or behind the first, and ends with the second.
    pub(crate) within: (u64, u64),
}

impl Record {
    pub(crate) fn end(&self) -> u64 {
        self.first + self.batch.count()
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    pub(crate) records: Vec<Record>,
    purged: u64,
}

impl Queue {
    pub(crate) fn next(&self) -> u64 {
        self.records.last().map_or(0, Record::end)
    }

    /// The end of what lies below a place of the log.
    pub(crate) fn end_below(&self, place: u64) -> u64 {
        self.records.iter().rev().find(|record| record.within.1 <= place).map_or(0, Record::end)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) id: u64,
    pub(crate) settings: TopicSettings,
    pub(crate) queues: Vec<Queue>,
    /// Stored before: gone, whatever the retention is by now.
    gone_before: u64,
    /// What was visible when the mode last went from async to sync.
    pub(crate) floor: u64,
    /// The smallest retention in bytes that it ever had.
    pub(crate) least_bytes: Option<u64>,
}

impl Topic {
    /// Before which store time messages are gone.
    pub(crate) fn before(&self, now: u64) -> u64 {
        let oldest = match self.settings.retention.time_ms {
            Some(ms) => (now - now % AGE_STEP_MS).saturating_sub(ms),
            None => 0,
        };
        oldest.max(self.gone_before)
    }

    /// Where a queue begins, but for the retention in bytes.
    pub(crate) fn min(&self, queue: u32, now: u64) -> u64 {
        let (before, queue) = (self.before(now), &self.queues[queue as usize]);
        let is_gone = |record: &&Record| record.time < before || record.end() <= queue.purged;
        let first = queue.records.iter().find(|record| !is_gone(record));
        first.map_or(queue.next(), |record| record.first.max(queue.purged))
    }

    /// Whether an answer about what ends there waits for the disk.
    pub(crate) fn waits(&self, end: u64) -> bool {
        self.settings.flush == FlushMode::Sync && end > self.floor
    }

    /// The end of what can be read, with the log flushed up to there.
    pub(crate) fn visible_end(&self, appended: u64, flushed: u64) -> u64 {
        match self.settings.flush {
            FlushMode::Async => appended,
            FlushMode::Sync => flushed.max(self.floor),
        }
    }
}

/// What a group has committed to a topic.
#[derive(Clone, Debug, Default)]
pub(crate) struct Committed {
    pub(crate) rows: BTreeMap<u32, u64>,
    /// Queues that the topic had at the first commit: later ones begin at 0.
    bound: u32,
    /// The end of the last record about it.
    pub(crate) applied: u64,
}

impl Committed {
    pub(crate) fn get(&self, queue: u32) -> Option<u64> {
        let later = self.bound > 0 && queue >= self.bound;
        self.rows.get(&queue).copied().or(later.then_some(0))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) id: u64,
    pub(crate) settings: GroupSettings,
    /// By the topic's name.
    pub(crate) committed: BTreeMap<&'static str, Committed>,
}

/// Where a batch of a session went.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) topic: &'static str,
    pub(crate) topic_id: u64,
    pub(crate) queue: u32,
    pub(crate) record: Record,
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) epoch: u64,
    pub(crate) used: u64,
    /// By sequence from 1.
    pub(crate) stored: Vec<Stored>,
}

impl Session {
    pub(crate) fn last(&self) -> u64 {
        self.stored.len() as u64
    }
}

/// A change, as its record in the log says it.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    TopicCreated {
        name: &'static str,
        settings: TopicSettings,
    },
    TopicUpdated {
        name: &'static str,
        settings: TopicSettings,
        gone_before: u64,
    },
    TopicDeleted {
        name: &'static str,
    },
    /// Without a queue: everything.
    Purged {
        name: &'static str,
        queue: Option<(u32, u64)>,
    },
    GroupCreated {
        name: &'static str,
        settings: GroupSettings,
    },
    GroupUpdated {
        name: &'static str,
        settings: GroupSettings,
    },
    GroupDeleted {
        name: &'static str,
    },
    Committed {
        group: &'static str,
        rows: Vec<(&'static str, u32, u64)>,
    },
    SessionOpened {
        name: &'static str,
        closed: Vec<&'static str>,
        at: u64,
    },
    SessionClosed {
        name: &'static str,
    },
    Sent(Sent),
}

#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) topic: &'static str,
    pub(crate) queue: u32,
    pub(crate) batch: Rc<Batch>,
    pub(crate) session: Option<&'static str>,
    pub(crate) time: u64,
    pub(crate) epoch: u64,
}

/// A change at its place in the log.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Its record begins here or behind, and ends with the second.
    pub(crate) within: (u64, u64),
    pub(crate) effect: Effect,
}

/// The broker as it must be.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) topics: BTreeMap<&'static str, Topic>,
    pub(crate) groups: BTreeMap<&'static str, Group>,
    pub(crate) sessions: BTreeMap<&'static str, Session>,
    last_topic: u64,
    last_group: u64,
    last_session: u64,
    records: u64,
    /// The end of the last record about topics, and about groups.
    pub(crate) topics_applied: u64,
    pub(crate) groups_applied: u64,
}

impl World {
    /// The ids that are given next to a topic, a group, a session.
    pub(crate) fn next_ids(&self) -> (u64, u64, u64) {
        (self.last_topic + 1, self.last_group + 1, self.last_session + 1)
    }

    pub(crate) fn apply(&mut self, event: &Event) {
        let end = event.within.1;
        match &event.effect {
            Effect::TopicCreated { .. }
            | Effect::TopicUpdated { .. }
            | Effect::TopicDeleted { .. }
            | Effect::Purged { .. } => {
                self.topics_applied = end;
                self.apply_to_topic(&event.effect, end);
            }
            Effect::GroupCreated { name, settings } => {
                self.last_group += 1;
                let (id, settings) = (self.last_group, settings.clone());
                self.groups.insert(name, Group { id, settings, committed: BTreeMap::new() });
                self.groups_applied = end;
            }
            Effect::GroupUpdated { name, settings } => {
                self.groups.get_mut(name).unwrap().settings = settings.clone();
                self.groups_applied = end;
            }
            Effect::GroupDeleted { name } => {
                self.groups.remove(name);
                self.groups_applied = end;
            }
            Effect::Committed { group, rows } => {
                let group = self.groups.get_mut(group).unwrap();
                for (topic, queue, offset) in rows {
                    let queues = self.topics[topic].queues.len() as u32;
                    let committed = group.committed.entry(topic).or_default();
                    committed.rows.insert(*queue, *offset);
                    committed.applied = end;
                    if committed.bound == 0 {
                        committed.bound = queues;
                    }
                }
            }
            Effect::SessionOpened { name, closed, at } => {
                for name in closed {
                    self.sessions.remove(name);
                }
                let last = &mut self.last_session;
                let session = self.sessions.entry(name).or_insert_with(|| {
                    *last += 1;
                    Session { id: *last, epoch: 0, used: 0, stored: Vec::new() }
                });
                session.epoch += 1;
                session.used = *at;
            }
            Effect::SessionClosed { name } => {
                self.sessions.remove(name);
            }
            Effect::Sent(sent) => self.store(sent, event.within),
        }
    }

    fn apply_to_topic(&mut self, effect: &Effect, end: u64) {
        match effect {
            Effect::TopicCreated { name, settings } => {
                self.last_topic += 1;
                let topic = Topic {
                    id: self.last_topic,
                    settings: *settings,
                    queues: vec![Queue::default(); settings.queues as usize],
                    gone_before: 0,
                    floor: 0,
                    least_bytes: settings.retention.bytes,
                };
                self.topics.insert(name, topic);
            }
            Effect::TopicUpdated { name, settings, gone_before } => {
                let topic = self.topics.get_mut(name).unwrap();
                if topic.settings.flush == FlushMode::Async {
                    topic.floor = end;
                }
                topic.settings = *settings;
                topic.gone_before = *gone_before;
                topic.queues.resize(settings.queues as usize, Queue::default());
                let bytes = [topic.least_bytes, settings.retention.bytes];
                topic.least_bytes = bytes.into_iter().flatten().min();
            }
            Effect::TopicDeleted { name } => {
                self.topics.remove(name);
                for group in self.groups.values_mut() {
                    group.committed.remove(name);
                }
            }
            Effect::Purged { name, queue } => {
                let topic = self.topics.get_mut(name).unwrap();
                for (id, known) in (0..).zip(&mut topic.queues) {
                    let up_to = match queue {
                        None => known.next(),
                        Some((queue, up_to)) if *queue == id => *up_to,
                        Some(_) => 0,
                    };
                    known.purged = known.purged.max(up_to);
                }
            }
            _ => {}
        }
    }

    fn store(&mut self, sent: &Sent, within: (u64, u64)) {
        self.records += 1;
        let topic = self.topics.get_mut(sent.topic).unwrap();
        let queue = &mut topic.queues[sent.queue as usize];
        let record = Record {
            order: self.records,
            first: queue.next(),
            batch: Rc::clone(&sent.batch),
            time: sent.time,
            epoch: sent.epoch,
            within,
        };
        queue.records.push(record.clone());
        if let Some(name) = sent.session {
            let session = self.sessions.get_mut(name).unwrap();
            session.used = sent.time;
            session.stored.push(Stored {
                topic: sent.topic,
                topic_id: topic.id,
                queue: sent.queue,
                record,
            });
        }
    }

    /// All that a start has found is durable, and everything of it visible.
    pub(crate) fn started(&mut self) {
        (self.topics_applied, self.groups_applied) = (0, 0);
        for topic in self.topics.values_mut() {
            topic.floor = 0;
            for record in topic.queues.iter_mut().flat_map(|queue| &mut queue.records) {
                record.within = (record.within.0, 0);
            }
        }
        for group in self.groups.values_mut() {
            group.committed.values_mut().for_each(|committed| committed.applied = 0);
        }
        for stored in self.sessions.values_mut().flat_map(|session| &mut session.stored) {
            stored.record.within.1 = 0;
        }
    }

    /// The sessions that an opening of `name` closes.
    pub(crate) fn idle(&self, name: &str, now: u64) -> Vec<&'static str> {
        let is_idle = |session: &Session| now.saturating_sub(session.used) >= IDLE_MS;
        let others = self.sessions.iter().filter(|(other, _)| **other != name);
        others.filter(|(_, session)| is_idle(session)).map(|(name, _)| *name).collect()
    }

    /// The first offset of a queue within `min..max` whose message was stored at `time` or later.
    pub(crate) fn offset_at(&self, topic: &str, queue: u32, range: (u64, u64), time: u64) -> u64 {
        let records = &self.topics[topic].queues[queue as usize].records;
        let late = records.iter().find(|record| record.time >= time);
        late.map_or(range.1, |record| record.first).clamp(range.0, range.1)
    }

    /// Where a group begins in a queue.
    pub(crate) fn begin(&self, group: &Group, topic: &str, queue: u32, range: (u64, u64)) -> u64 {
        match group.settings.initial_position {
            InitialPosition::Earliest => range.0,
            InitialPosition::Latest => range.1,
            InitialPosition::Time(time) => self.offset_at(topic, queue, range, time.get()),
        }
    }
}

/// Whether what is committed is what a commit expects.
pub(crate) fn is_met(expected: Expected, current: Option<u64>) -> bool {
    match expected {
        Expected::Any => true,
        Expected::Nothing => current.is_none(),
        Expected::Offset(offset) => current == Some(offset.get()),
    }
}
