//! Everything that a broker shows to its clients, at one moment, and whether a world explains it.

use std::collections::BTreeMap;

use bytes::Bytes;
use mainstem::broker::{BrokerError, PullRequest, SendRequest};
use mainstem::message::{
    GroupSettings, QueueId, QueueOffset, SessionId, SessionMark, TopicSettings,
};
use mainstem::store::StoredRecord;

use crate::model::{Model, Place};
use crate::rig::late;
use crate::rules::{Verdict, verdict};
use crate::world::{Record, Topic, WINDOW, World};

/// A record as a reader has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenRecord {
    first: u64,
    count: u64,
    time: u64,
    epoch: u64,
    batch: Bytes,
}

#[derive(Debug)]
pub(crate) struct SeenTopic {
    id: u64,
    settings: TopicSettings,
    /// Begin and end of each queue, and what is between; `None`: not for clients.
    queues: Vec<(u64, u64, Option<Vec<SeenRecord>>)>,
}

#[derive(Debug)]
pub(crate) struct SeenGroup {
    id: u64,
    settings: GroupSettings,
    /// By topic: what is committed in each queue, and where the group goes on.
    progress: BTreeMap<String, Vec<(Option<u64>, u64)>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SeenSession {
    id: u64,
    epoch: u64,
    last: u64,
    idle: u64,
    /// What the broker says to batches that are sent again, the last and then those before it.
    window: Vec<SeenBatch>,
}

/// A batch that is there, where it was first stored; or why it is not stored again.
#[derive(Debug, PartialEq, Eq)]
enum SeenBatch {
    At { queue: u32, first: u64, epoch: u64, time: u64 },
    Refused(String),
}

/// How many there are of what, as the broker counts.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    topics: u64,
    queues: u64,
    groups: u64,
    offsets: u64,
    sessions: usize,
}

#[derive(Debug)]
pub(crate) struct Seen {
    counts: Counts,
    topics: BTreeMap<String, SeenTopic>,
    groups: BTreeMap<String, SeenGroup>,
    sessions: BTreeMap<String, SeenSession>,
}

impl From<&Record> for SeenRecord {
    fn from(record: &Record) -> Self {
        Self {
            first: record.first,
            count: record.batch.count(),
            time: record.time,
            epoch: record.epoch,
            batch: record.batch.bytes.clone(),
        }
    }
}

impl From<&StoredRecord> for SeenRecord {
    fn from(record: &StoredRecord) -> Self {
        Self {
            first: record.first_queue_offset.get(),
            count: record.message_count.into(),
            time: record.store_time.get(),
            epoch: record.epoch.get(),
            batch: record.batch.clone(),
        }
    }
}

impl Model {
    /// A look at everything; `None`: the power went.
    pub(crate) fn seen(&mut self) -> Option<Seen> {
        let listed = self.ask(|broker| async move { broker.list_topics("", 100, late()).await })?;
        let mut topics = BTreeMap::new();
        for topic in listed.unwrap().topics {
            let seen = self.seen_topic(topic.name(), topic.id().get(), topic.settings())?;
            topics.insert(topic.name().to_owned(), seen);
        }
        let listed = self.ask(|broker| async move { broker.list_groups("", 100, late()).await })?;
        let mut groups = BTreeMap::new();
        for group in listed.unwrap().groups {
            let mut progress = BTreeMap::new();
            for topic in topics.keys() {
                let names = (group.name.to_string(), topic.clone());
                let rows = self.ask(move |broker| {
                    let (group, topic) = names.clone();
                    async move { broker.progress(&group, &topic, 0, 100, late()).await }
                })?;
                let rows = rows.unwrap();
                let row = |row: &mainstem::broker::QueueProgress| {
                    (row.committed.map(QueueOffset::get), row.next.get())
                };
                progress.insert(topic.clone(), rows.iter().map(row).collect());
            }
            let settings = GroupSettings::clone(&group.settings);
            let seen = SeenGroup { id: group.id.get(), settings, progress };
            groups.insert(group.name.to_string(), seen);
        }
        let sessions =
            self.ask(|broker| async move { broker.list_sessions("", 100, late()).await })?;
        let mut seen = BTreeMap::new();
        for description in sessions.unwrap().sessions {
            let session = &description.session;
            let (id, epoch, last) = (session.id.get(), session.epoch, session.last_sequence);
            let window = self.seen_window(id, epoch, last)?;
            let idle = description.idle.as_millis() as u64;
            seen.insert(session.name.to_string(), SeenSession { id, epoch, last, idle, window });
        }
        let broker = &self.rig().broker;
        let (status, (groups_counted, offsets, _)) = (broker.status(), broker.group_counts());
        let counts = Counts {
            topics: status.topics,
            queues: status.queues,
            groups: groups_counted,
            offsets,
            sessions: broker.sessions(),
        };
        Some(Seen { counts, topics, groups, sessions: seen })
    }

    fn seen_topic(&mut self, name: &str, id: u64, settings: TopicSettings) -> Option<SeenTopic> {
        let mut queues = Vec::new();
        for (queue, (min, max)) in (0..).zip(self.ranges(name)?) {
            let records = match settings.access.read {
                true => Some(self.seen_records(name, id, queue, min, max)?),
                false => None,
            };
            queues.push((min, max, records));
        }
        Some(SeenTopic { id, settings, queues })
    }

    /// Begin and end of each queue.
    pub(crate) fn ranges(&mut self, name: &str) -> Option<Vec<(u64, u64)>> {
        let name = name.to_owned();
        let described = self.ask(move |broker| {
            let name = name.clone();
            async move { broker.describe_topic(&name, 0, 100, late()).await }
        })?;
        let queues = described.unwrap().queues;
        Some(queues.iter().map(|queue| (queue.range.min.get(), queue.range.max.get())).collect())
    }

    fn seen_records(
        &mut self,
        name: &str,
        id: u64,
        queue: u32,
        min: u64,
        max: u64,
    ) -> Option<Vec<SeenRecord>> {
        let (mut from, mut found) = (min, Vec::new());
        while from < max {
            let name = name.to_owned();
            let pulled = self.ask(move |broker| {
                let name = name.clone();
                async move {
                    let request = PullRequest {
                        epoch: None,
                        topic: &name,
                        queue: QueueId::new(queue),
                        offset: QueueOffset::new(from),
                        max_messages: 1_000,
                        max_bytes: 8 << 20,
                        wait: std::time::Duration::ZERO,
                        tags: "",
                        group: None,
                        deadline: late(),
                    };
                    broker.pull(request).await
                }
            })?;
            let pulled = pulled.unwrap();
            assert!(pulled.next.get() > from, "nothing at {from} of queue {queue} up to {max}");
            for record in &pulled.records {
                self.ledger.saw(Place::of(id, record), record.offset.get(), &record.batch);
                found.push(record.into());
            }
            from = pulled.next.get();
        }
        Some(found)
    }

    /// Sends batches of a session again, which stores nothing, and two that it does not take.
    fn seen_window(&mut self, id: u64, epoch: u64, last: u64) -> Option<Vec<SeenBatch>> {
        let mut window = Vec::new();
        let oldest = last.saturating_sub(WINDOW as u64);
        for sequence in (oldest..=last).rev().chain([last + 2]) {
            let count = self.count_of(id, sequence);
            let batch = crate::model::filler(count);
            let sent = self.ask(move |broker| {
                let batch = batch.clone();
                async move {
                    let mark = SessionMark { session: SessionId::new(id), epoch, sequence };
                    let request = SendRequest {
                        topic: "nowhere",
                        queue: None,
                        batch,
                        session: Some(mark),
                        deadline: late(),
                    };
                    broker.send(request).await
                }
            })?;
            window.push(match sent {
                Ok(receipt) => {
                    assert!(receipt.is_duplicate, "stored again: {receipt:?}");
                    SeenBatch::At {
                        queue: receipt.queue.get(),
                        first: receipt.first_queue_offset.get(),
                        epoch: receipt.epoch.get(),
                        time: receipt.store_time.get(),
                    }
                }
                Err(error) => SeenBatch::Refused(error.to_string()),
            });
        }
        Some(window)
    }

    /// Messages of a batch of a session, as far as anybody knows.
    fn count_of(&self, id: u64, sequence: u64) -> u64 {
        self.counts.get(&(id, sequence)).copied().unwrap_or(1)
    }

    /// Why this is not what a world must show, if it is not.
    pub(crate) fn differs(&self, seen: &Seen, world: &World) -> Result<(), String> {
        let same = |what: &str, seen: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
            let (seen, wanted) = (format!("{seen:?}"), format!("{wanted:?}"));
            match seen == wanted {
                true => Ok(()),
                false => Err(format!("{what}: seen {seen}, but it must be {wanted}")),
            }
        };
        same("topics", &names(&seen.topics), &names(&world.topics))?;
        for (name, topic) in &world.topics {
            let found = &seen.topics[*name];
            same(name, &(found.id, found.settings), &(topic.id, topic.settings))?;
            for (queue, (min, max, records)) in (0..).zip(&found.queues) {
                let at = format!("{name}/{queue}");
                same(&at, max, &topic.queues[queue as usize].next())?;
                self.check_min(topic, queue, (*min, *max)).map_err(|why| format!("{at}: {why}"))?;
                let wanted = topic.queues[queue as usize].records.iter();
                let wanted: Vec<_> =
                    wanted.filter(|record| record.end() > *min).map(SeenRecord::from).collect();
                if let Some(records) = records
                    && *records != wanted
                {
                    return Err(format!("{at}: other records are there"));
                }
            }
        }
        same("groups", &names(&seen.groups), &names(&world.groups))?;
        for (name, group) in &world.groups {
            let found = &seen.groups[*name];
            same(name, &(found.id, &found.settings), &(group.id, &group.settings))?;
            for (topic, rows) in &found.progress {
                let queues = &seen.topics[topic].queues;
                for (queue, ((min, max, _), row)) in (0..).zip(queues.iter().zip(rows)) {
                    let committed =
                        group.committed.get(topic.as_str()).and_then(|known| known.get(queue));
                    let next =
                        committed.unwrap_or_else(|| world.begin(group, topic, queue, (*min, *max)));
                    same(&format!("{name} in {topic}/{queue}"), row, &(committed, next))?;
                }
            }
        }
        same("sessions", &names(&seen.sessions), &names(&world.sessions))?;
        for (name, session) in &world.sessions {
            let (last, oldest) = (session.last(), session.last().saturating_sub(WINDOW as u64));
            let mut window = Vec::new();
            for sequence in (oldest..=last).rev().chain([last + 2]) {
                let batch = match verdict(session, session.epoch, sequence, None) {
                    Verdict::Next => {
                        return Err("a batch beyond the next is taken".into());
                    }
                    Verdict::Stored(stored) => SeenBatch::At {
                        queue: stored.queue,
                        first: stored.record.first,
                        epoch: stored.record.epoch,
                        time: stored.record.time,
                    },
                    Verdict::Refused(fault) => {
                        SeenBatch::Refused(BrokerError::from(fault).to_string())
                    }
                };
                window.push(batch);
            }
            let idle = self.wall.saturating_sub(session.used);
            let (id, epoch) = (session.id, session.epoch);
            let wanted = SeenSession { id, epoch, last, idle, window };
            same(name, &seen.sessions[*name], &wanted)?;
        }
        same("counts", &seen.counts, &Counts::of(world))
    }

    /// Whether a queue may begin there: where the rules say, or further on by the retention in bytes.
    pub(crate) fn check_min(
        &self,
        topic: &Topic,
        queue: u32,
        (min, max): (u64, u64),
    ) -> Result<(), String> {
        let exact = topic.min(queue, self.wall);
        let known = self.floors.get(&(topic.id, queue)).copied().unwrap_or(0).max(exact).min(max);
        if min == known {
            return Ok(());
        }
        let Some(bytes) = topic.least_bytes.filter(|_| min > known) else {
            return Err(format!("it begins at {min}, but it must be {known}"));
        };
        let records = &topic.queues[queue as usize].records;
        let last_gone = records.iter().rev().find(|record| record.end() <= min);
        let order = last_gone.map_or(0, |record| record.order);
        let of_topic = topic.queues.iter().flat_map(|queue| &queue.records);
        let kept: u64 = of_topic
            .filter(|record| record.order > order)
            // A header, a mark, and zeros behind it.
            .map(|record| record.batch.bytes.len() as u64 + 256)
            .sum();
        match kept >= bytes {
            true => Ok(()),
            false => Err(format!("{kept} bytes are kept behind {min}, of {bytes} that must be")),
        }
    }
}

impl Counts {
    fn of(world: &World) -> Self {
        let queues = world.topics.values().map(|topic| topic.queues.len() as u64);
        let committed = world.groups.values().flat_map(|group| group.committed.values());
        Self {
            topics: world.topics.len() as u64,
            queues: queues.sum(),
            groups: world.groups.len() as u64,
            offsets: committed.map(|committed| committed.rows.len() as u64).sum(),
            sessions: world.sessions.len(),
        }
    }
}

fn names<K: ToString, V>(map: &BTreeMap<K, V>) -> Vec<String> {
    map.keys().map(ToString::to_string).collect()
}
