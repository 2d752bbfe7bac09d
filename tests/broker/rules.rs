//! What a request must come to, by the rules, as things are; and the request itself.

use std::collections::BTreeMap;
use std::rc::Rc;

use mainstem::broker::{
    BrokerError, Caller, CommitOffset, Expected, GroupChange, Position, Purge, QueueRange, Receipt,
    RequestFault, ResetQueue, ResetRequest, Run, SendRequest, SessionFault, TopicChanges,
    TypeFault,
};
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{
    Access, Epoch, FlushMode, Force, GroupSettings, InitialPosition, Keep, QueueId, QueueOffset,
    Retention, SessionId, SessionMark, Timestamp, TopicSettings, TopicType,
};

use crate::model::{Answer, Model, Plan, Wait};
use crate::rig::{Dice, late};
use crate::script::{
    Batch, GROUPS, GroupWish, KEYS, Mark, Op, Row, SESSIONS, Share, TAGS, TOPICS, TopicWish,
    Wanted, Where,
};
use crate::world::{self, Effect, Message, Sent, Session, Stored, WINDOW, World, is_met};

/// What a session says of a batch.
pub(crate) enum Verdict {
    /// It is the next, and is stored.
    Next,
    /// It was stored before, here.
    Stored(Stored),
    Refused(SessionFault),
}

/// What a batch in a session is planned as.
struct InSession {
    name: Option<&'static str>,
    mark: SessionMark,
    verdict: Verdict,
}

/// Queues of a topic that a send makes.
const DEFAULT_QUEUES: u32 = 4;

impl Plan {
    fn new(effects: Vec<Effect>, answer: Result<Answer, BrokerError>, wait: Wait) -> Self {
        Self { effects, answer, wait, batch: None, sent: None }
    }

    fn refused(error: BrokerError) -> Self {
        Self::new(Vec::new(), Err(error), Wait::Nothing)
    }
}

/// The place that a share of a queue stands for.
pub(crate) fn place(share: Share, (min, max): (u64, u64)) -> u64 {
    // A little before and a little behind, too.
    let (low, high) = (min.saturating_sub(1), max + 2);
    low + u64::from(share) * (high - low) / 65_536
}

fn queue_range((min, max): (u64, u64)) -> QueueRange {
    QueueRange { min: QueueOffset::new(min), max: QueueOffset::new(max) }
}

fn settings(wish: &TopicWish) -> TopicSettings {
    TopicSettings {
        // Which queue a message group goes to is known here only if there is one.
        queues: if wish.kind == 2 { 1 } else { wish.queues },
        flush: wish.flush,
        topic_type: [TopicType::Mixed, TopicType::Normal, TopicType::Fifo][usize::from(wish.kind)],
        access: Access { read: wish.access != 38, write: wish.access != 39 },
        retention: Retention { time_ms: wish.keep_ms, bytes: wish.keep_bytes },
    }
}

/// What a session says of a batch of so many messages; `None`: of as many as were stored.
pub(crate) fn verdict(
    session: &Session,
    epoch: u64,
    sequence: u64,
    messages: Option<u64>,
) -> Verdict {
    let (current, expected) = (session.epoch, session.last() + 1);
    let oldest = expected.saturating_sub(WINDOW as u64).max(1);
    let fault = if epoch < current {
        SessionFault::Fenced { current }
    } else if epoch > current {
        SessionFault::Ahead { current }
    } else if sequence == 0 {
        SessionFault::NoSequence
    } else if sequence > expected {
        SessionFault::Gap { expected, found: sequence }
    } else if sequence == expected {
        return Verdict::Next;
    } else if sequence < oldest {
        SessionFault::TooOld { oldest, found: sequence }
    } else {
        let stored = &session.stored[sequence as usize - 1];
        let (count, found) = (stored.record.batch.count(), messages);
        match found {
            Some(found) if found != count => {
                SessionFault::Reused { sequence, stored: count as u32, found: found as u32 }
            }
            _ => return Verdict::Stored(stored.clone()),
        }
    };
    Verdict::Refused(fault)
}

impl Model {
    /// Makes a request of a client or an operator.
    pub(crate) fn request(&mut self, op: &Op) {
        match op {
            Op::CreateTopic(topic, wish) => self.create_topic(TOPICS[*topic], wish),
            Op::UpdateTopic { topic, wish, force } => {
                self.update_topic(TOPICS[*topic], wish, *force);
            }
            Op::DeleteTopic(topic) => self.delete_topic(TOPICS[*topic]),
            Op::Purge { topic, queue, up_to } => self.purge(TOPICS[*topic], *queue, *up_to),
            Op::Send { topic, queue, batch, mark, leave } => {
                self.send(TOPICS[*topic], *queue, batch, mark.as_ref(), *leave);
            }
            Op::Flood { topic, kib } => {
                let len = self.setup.segment_size as usize / 4 - 700;
                for seed in 0..(kib << 10) / len as u64 {
                    let batch = Batch { messages: 1, len, seed, grouped: false };
                    self.send(TOPICS[*topic], seed as u32 % 3, &batch, None, false);
                    if self.rig().disk.is_off() {
                        return;
                    }
                }
            }
            Op::Burst { topic, session, batches } => {
                let is_open = self.world.sessions.contains_key(SESSIONS[*session]);
                let batches = if is_open { *batches } else { 1 };
                for seed in 0..u64::from(batches) {
                    let batch = Batch { messages: 1, len: 10, seed, grouped: false };
                    let mark =
                        Mark { session: *session, epochs_back: 0, ahead: 0, same_count: true };
                    self.send(TOPICS[*topic], seed as u32 % 3, &batch, Some(&mark), false);
                    if self.rig().disk.is_off() {
                        return;
                    }
                }
            }
            Op::CreateGroup(group, wish) => self.create_group(GROUPS[*group], wish),
            Op::UpdateGroup(group, wish) => self.update_group(GROUPS[*group], wish),
            Op::DeleteGroup(group) => self.delete_group(GROUPS[*group]),
            Op::Commit { group, rows, leave } => self.commit(GROUPS[*group], rows, *leave),
            Op::Reset { group, topic, queue, to, dry } => {
                self.reset(GROUPS[*group], TOPICS[*topic], *queue, *to, *dry);
            }
            Op::OpenSession(session) => self.open_session(SESSIONS[*session]),
            Op::CloseSession { session, holder } => {
                self.close_session(SESSIONS[*session], *holder);
            }
            look => self.look(look),
        }
    }

    /// The queue that a step means: mostly one that is there.
    pub(crate) fn picked(&self, topic: &str, queue: u32) -> u32 {
        let queues = self.world.topics.get(topic).map_or(0, |topic| topic.settings.queues);
        if queue < 3 && queues > 0 { queue % queues } else { queue }
    }

    /// What broker-wide state waits for before its answer.
    fn settled(&self, wait: Wait) -> Wait {
        if self.is_sync() { wait } else { Wait::Nothing }
    }

    /// What answers a request that names no topic: told once the deletion is durable.
    fn unknown_topic(&self, name: &str) -> Plan {
        let error = BrokerError::NoTopic { name: name.into() };
        Plan::new(Vec::new(), Err(error), self.settled(Wait::Topics))
    }

    // ---- topics

    fn create_topic(&mut self, name: &'static str, wish: &TopicWish) {
        let settings = settings(wish);
        let wait = self.settled(Wait::Topics);
        let plan = match self.world.topics.get(name) {
            None => {
                let id = self.world.next_ids().0;
                let effect = Effect::TopicCreated { name, settings };
                Plan::new(vec![effect], Ok(Answer::Topic(id, settings)), wait)
            }
            Some(topic) if topic.settings == settings => {
                Plan::new(Vec::new(), Ok(Answer::Topic(topic.id, settings)), wait)
            }
            Some(_) => Plan::new(Vec::new(), Err(BrokerError::TopicExists), wait),
        };
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    let topic = broker.create_topic(name, settings, late()).await?;
                    Ok((Answer::Topic(topic.id().get(), topic.settings()), None))
                })
            },
            false,
        );
    }

    fn update_topic(&mut self, name: &'static str, wish: &TopicWish, force: bool) {
        let wanted = settings(wish);
        let keep = |limit: Option<u64>| limit.map_or(Keep::All, Keep::UpTo);
        // Some of it only, so that the rest is kept.
        let changes = TopicChanges {
            queues: wish.access.is_multiple_of(2).then_some(wanted.queues),
            flush: Some(wanted.flush),
            topic_type: wish.access.is_multiple_of(3).then_some(wanted.topic_type),
            access: Some(wanted.access),
            retention_time: Some(keep(wanted.retention.time_ms)),
            retention_bytes: Some(keep(wanted.retention.bytes)),
        };
        let plan = self.planned_update(name, &changes, force);
        if let [Effect::TopicUpdated { settings, .. }] = plan.effects[..]
            && self.world.topics[name].settings.flush != settings.flush
        {
            self.tally.note("flush modes changed", 1);
        }
        let force = if force { Force::Yes } else { Force::No };
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    let topic = broker.update_topic(name, &changes, force, late()).await?;
                    Ok((Answer::Topic(topic.id().get(), topic.settings()), None))
                })
            },
            false,
        );
    }

    fn planned_update(&self, name: &'static str, changes: &TopicChanges, force: bool) -> Plan {
        let Some(topic) = self.world.topics.get(name) else {
            return self.unknown_topic(name);
        };
        let (old, new) = (topic.settings, changes.on(topic.settings));
        if new.queues < old.queues {
            let fault = RequestFault::FewerQueues { queues: old.queues };
            return Plan::refused(BrokerError::BadRequest { fault });
        }
        let breaks_order = new.queues > old.queues || new.topic_type != old.topic_type;
        if old.topic_type == TopicType::Fifo && breaks_order && !force {
            return Plan::refused(BrokerError::NeedsForce);
        }
        let answer = Ok(Answer::Topic(topic.id, new));
        if old == new {
            return Plan::new(Vec::new(), answer, Wait::Topics);
        }
        // What is gone stays gone, whatever is kept from now on.
        let gone_before = topic.before(self.wall);
        let effect = Effect::TopicUpdated { name, settings: new, gone_before };
        Plan::new(vec![effect], answer, Wait::Topics)
    }

    fn delete_topic(&mut self, name: &'static str) {
        let wait = self.settled(Wait::Topics);
        let plan = match self.world.topics.contains_key(name) {
            true => Plan::new(vec![Effect::TopicDeleted { name }], Ok(Answer::Done), wait),
            false => Plan::new(Vec::new(), Err(BrokerError::NoTopic { name: name.into() }), wait),
        };
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    broker.delete_topic(name, late()).await?;
                    Ok((Answer::Done, None))
                })
            },
            false,
        );
    }

    fn purge(&mut self, name: &'static str, queue: Option<u32>, up_to: Option<Share>) {
        self.land();
        let queue = queue.map(|queue| self.picked(name, queue));
        let queues = self.world.topics.get(name).map_or(0, |topic| topic.queues.len() as u32);
        let range = |queue| match queue < queues {
            true => self.range(name, queue),
            false => (0, 0),
        };
        let what = match queue {
            None => Purge::Topic,
            Some(queue) => Purge::Queue {
                queue: QueueId::new(queue),
                up_to: up_to.map(|share| QueueOffset::new(place(share, range(queue)))),
            },
        };
        let plan = match what {
            _ if queues == 0 => self.unknown_topic(name),
            Purge::Topic => {
                let taken = (0..queues).map(range).map(|(min, max)| max - min).sum();
                let effect = Effect::Purged { name, queue: None };
                Plan::new(vec![effect], Ok(Answer::Purged(Some(taken))), Wait::Topics)
            }
            Purge::Queue { queue, .. } if queue.get() >= queues => {
                Plan::refused(BrokerError::BadQueue { topic: name.into(), queue, queues })
            }
            Purge::Queue { queue, up_to } => {
                let (min, max) = range(queue.get());
                let up_to = up_to.map_or(max, QueueOffset::get);
                let (offset, range) = (QueueOffset::new(up_to), queue_range((min, max)));
                if up_to > max {
                    let epoch = Epoch::new(self.epoch);
                    Plan::refused(BrokerError::OffsetOutOfRange { offset, range, epoch })
                } else if up_to <= min {
                    Plan::new(Vec::new(), Ok(Answer::Purged(Some(0))), Wait::Topics)
                } else {
                    let effect = Effect::Purged { name, queue: Some((queue.get(), up_to)) };
                    let answer = Ok(Answer::Purged(Some(up_to - min)));
                    Plan::new(vec![effect], answer, Wait::Topics)
                }
            }
        };
        self.tally.note("purges", plan.effects.len() as u64);
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    let purged = broker.purge_topic(name, what, late()).await?;
                    Ok((Answer::Purged(purged), None))
                })
            },
            false,
        );
    }

    // ---- batches

    fn batch(&mut self, batch: &Batch, count: u64, is_grouped: bool) -> world::Batch {
        let (mut builder, mut messages) = (BatchBuilder::new(), Vec::new());
        let mut dice = Dice(batch.seed);
        for index in 0..count {
            self.sent += 1;
            let message = Message {
                key: KEYS[dice.below(KEYS.len() as u64) as usize],
                id: format!("i{}", self.sent),
                tag: TAGS.get(dice.below(TAGS.len() as u64 + 1) as usize).copied(),
            };
            let meta = NewMeta {
                keys: vec![message.key],
                id: Some(&message.id),
                tag: message.tag,
                message_group: is_grouped.then_some("a group"),
                ..NewMeta::default()
            };
            let len = if index == 0 { batch.len } else { 10 };
            builder.push(&meta, format!("{:0len$}", self.sent).as_bytes());
            messages.push(message);
        }
        world::Batch { bytes: builder.finish(), messages }
    }

    fn in_session(&self, mark: &Mark, count: u64) -> (InSession, u64) {
        let name = SESSIONS[mark.session];
        let Some(session) = self.world.sessions.get(name) else {
            // One that was never given, or given and closed.
            let used = |id: &u64| self.world.sessions.values().any(|known| known.id == *id);
            let closed = (1..self.world.next_ids().2).find(|id| !used(id));
            let session = SessionId::new(closed.unwrap_or(1_000));
            let mark = SessionMark { session, epoch: 1, sequence: 1 };
            let verdict = Verdict::Refused(SessionFault::Unknown);
            return (InSession { name: None, mark, verdict }, count);
        };
        let epoch = session.epoch.checked_sub(mark.epochs_back).unwrap_or(session.epoch + 1);
        let next = session.last() as i64 + 1;
        let sequence = next.saturating_add(mark.ahead).max(0) as u64;
        let stored = (sequence as usize).checked_sub(1).and_then(|at| session.stored.get(at));
        let count = match stored {
            Some(stored) if mark.same_count => stored.record.batch.count(),
            _ => count,
        };
        let verdict = verdict(session, epoch, sequence, Some(count));
        let mark = SessionMark { session: SessionId::new(session.id), epoch, sequence };
        (InSession { name: Some(name), mark, verdict }, count)
    }

    fn send(
        &mut self,
        name: &'static str,
        queue: u32,
        wish: &Batch,
        mark: Option<&Mark>,
        leave: bool,
    ) {
        let topic = self.world.topics.get(name);
        let queues = topic.map_or(DEFAULT_QUEUES, |topic| topic.settings.queues);
        // The queue of a group is known without its hash only if there is one.
        let is_grouped = queues == 1
            && (wish.grouped || topic.is_some_and(|t| t.settings.topic_type == TopicType::Fifo));
        let in_session = mark.map(|mark| self.in_session(mark, wish.messages.into()));
        let count = in_session.as_ref().map_or(wish.messages.into(), |(_, count)| *count);
        let in_session = in_session.map(|(in_session, _)| in_session);
        let batch = Rc::new(self.batch(wish, count, is_grouped));
        let limit = self.setup.segment_size / 4;
        let len = batch.bytes.len() as u64;
        if (limit.saturating_sub(300)..=limit).contains(&len) {
            // Whether it fits is the business of the record's format.
            return;
        }
        let chosen = match is_grouped {
            true => None,
            // With one queue the round robin has no choice either.
            false if queues == 1 && wish.seed.is_multiple_of(4) => None,
            false => Some(self.picked(name, queue)),
        };
        let session_mark = in_session.as_ref().map(|in_session| in_session.mark);
        let plan = self.planned_send(name, chosen, &batch, is_grouped, in_session, len > limit);
        let bytes = batch.bytes.clone();
        self.execute(
            plan,
            |broker| {
                let batch = bytes.clone();
                Box::pin(async move {
                    let request = SendRequest {
                        topic: name,
                        queue: chosen.map(QueueId::new),
                        batch,
                        session: session_mark,
                        deadline: late(),
                    };
                    Ok(stored(&broker.send(request).await?))
                })
            },
            leave,
        );
    }

    fn planned_send(
        &mut self,
        name: &'static str,
        queue: Option<u32>,
        batch: &Rc<world::Batch>,
        is_grouped: bool,
        in_session: Option<InSession>,
        is_too_large: bool,
    ) -> Plan {
        let mut of_session = None;
        match in_session {
            None => {}
            Some(InSession { verdict: Verdict::Refused(fault), .. }) => {
                return Plan::refused(fault.into());
            }
            Some(InSession { verdict: Verdict::Stored(stored), .. }) => {
                return self.planned_retry(&stored);
            }
            Some(InSession { verdict: Verdict::Next, name, mark }) => {
                of_session = name.map(|name| (name, mark));
            }
        }
        let made = self.made_by_send();
        let known = self.world.topics.get(name);
        let settings = match known {
            Some(topic) => topic.settings,
            None if !self.setup.auto_create => return self.unknown_topic(name),
            None => made,
        };
        if let Some(refusal) = refusal(name, &settings, queue, is_grouped) {
            return Plan::refused(refusal);
        }
        if is_too_large {
            let (found, limit) = (batch.bytes.len() as u64, self.setup.segment_size / 4);
            return Plan::refused(BrokerError::TooLarge { what: "append set", found, limit });
        }
        let queue = queue.unwrap_or(0);
        let first = known.map_or(0, |topic| topic.queues[queue as usize].next());
        let topic_id = known.map_or(self.world.next_ids().0, |topic| topic.id);
        let (time, epoch, count) = (self.wall, self.epoch, batch.count());
        let mut effects = Vec::new();
        if known.is_none() {
            effects.push(Effect::TopicCreated { name, settings });
            self.tally.note("topics made by sends", 1);
        }
        let batch = Rc::clone(batch);
        let session = of_session.map(|(name, _)| name);
        let bytes = batch.bytes.clone();
        effects.push(Effect::Sent(Sent { topic: name, queue, batch, session, time, epoch }));
        let answer = Answer::Stored { queue, first, count, time, epoch, is_duplicate: false };
        let wait = match settings.flush {
            FlushMode::Sync => Wait::Own,
            FlushMode::Async => Wait::Nothing,
        };
        Plan {
            batch: of_session.map(|(_, mark)| (mark.session.get(), mark.sequence, count)),
            sent: Some((topic_id, bytes)),
            ..Plan::new(effects, Ok(answer), wait)
        }
    }

    fn made_by_send(&self) -> TopicSettings {
        TopicSettings::open(DEFAULT_QUEUES, self.setup.flush, TopicType::Mixed)
    }

    /// A batch that was stored before.
    fn planned_retry(&mut self, stored: &Stored) -> Plan {
        let record = &stored.record;
        let answer = Answer::Stored {
            queue: stored.queue,
            first: record.first,
            count: record.batch.count(),
            time: record.time,
            epoch: record.epoch,
            is_duplicate: true,
        };
        let end = record.within.1;
        let topic = self.world.topics.get(stored.topic).filter(|topic| topic.id == stored.topic_id);
        let waits = topic.is_none_or(|topic| topic.waits(end));
        self.tally.note("batches sent again", 1);
        let wait = if waits { Wait::At(end) } else { Wait::Nothing };
        Plan {
            sent: Some((stored.topic_id, record.batch.bytes.clone())),
            ..Plan::new(Vec::new(), Ok(answer), wait)
        }
    }

    // ---- sessions

    fn open_session(&mut self, name: &'static str) {
        let closed = self.world.idle(name, self.wall);
        let known = self.world.sessions.get(name);
        let next = self.world.next_ids().2;
        let (id, epoch, last) =
            known.map_or((next, 1, 0), |session| (session.id, session.epoch + 1, session.last()));
        self.tally.note("idle sessions closed", closed.len() as u64);
        let effect = Effect::SessionOpened { name, closed, at: self.wall };
        let answer = Ok(Answer::Session { id, epoch, last });
        self.execute(
            Plan::new(vec![effect], answer, Wait::Own),
            |broker| {
                Box::pin(async move {
                    let session = broker.open_session(name, late()).await?;
                    let (id, epoch) = (session.id.get(), session.epoch);
                    Ok((Answer::Session { id, epoch, last: session.last_sequence }, None))
                })
            },
            false,
        );
    }

    fn close_session(&mut self, name: &'static str, holder: Option<u64>) {
        let wait = self.settled(Wait::Own);
        let known = self.world.sessions.get(name);
        let holder = holder.map(|back| match known {
            Some(session) => (SessionId::new(session.id), session.epoch.saturating_sub(back)),
            None => (SessionId::new(1), 1),
        });
        let plan = match (known, holder) {
            (None, _) => Plan::refused(SessionFault::Unknown.into()),
            (Some(session), Some((_, epoch))) if epoch < session.epoch => {
                Plan::refused(SessionFault::Fenced { current: session.epoch }.into())
            }
            (Some(_), _) => Plan::new(vec![Effect::SessionClosed { name }], Ok(Answer::Done), wait),
        };
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    broker.close_session(name, holder, late()).await?;
                    Ok((Answer::Done, None))
                })
            },
            false,
        );
    }

    // ---- groups

    fn begin_of(&self, place: Where) -> InitialPosition {
        match place {
            Where::Earliest | Where::Offset(_) => InitialPosition::Earliest,
            Where::Latest => InitialPosition::Latest,
            Where::Time(share, by) => InitialPosition::Time(Timestamp::new(self.time(share, by))),
        }
    }

    /// The time of some message, so many ms earlier or later.
    fn time(&self, share: Share, by: i64) -> u64 {
        let topics = self.world.topics.values();
        let queues = topics.flat_map(|topic| &topic.queues);
        let times: Vec<u64> =
            queues.flat_map(|queue| queue.records.iter().map(|record| record.time)).collect();
        let index = usize::from(share) * times.len() / 65_536;
        times.get(index).copied().unwrap_or(self.wall).saturating_add_signed(by)
    }

    fn create_group(&mut self, name: &'static str, wish: &GroupWish) {
        let settings = GroupSettings {
            enabled: wish.enabled,
            max_attempts: Some(wish.attempts),
            initial_position: self.begin_of(wish.begin),
            ..GroupSettings::default()
        };
        let wait = self.settled(Wait::Groups);
        let plan = match self.world.groups.get(name) {
            None => {
                let id = self.world.next_ids().1;
                let answer = Ok(Answer::Group(id, settings.clone()));
                let effect = Effect::GroupCreated { name, settings: settings.clone() };
                Plan::new(vec![effect], answer, wait)
            }
            Some(group) if group.settings == settings => {
                Plan::new(Vec::new(), Ok(Answer::Group(group.id, settings.clone())), wait)
            }
            Some(_) => Plan::new(Vec::new(), Err(BrokerError::GroupExists), wait),
        };
        self.execute(
            plan,
            |broker| {
                let settings = settings.clone();
                Box::pin(async move {
                    let group = broker.create_group(name, &settings, late()).await?;
                    Ok((Answer::Group(group.id.get(), GroupSettings::clone(&group.settings)), None))
                })
            },
            false,
        );
    }

    fn update_group(&mut self, name: &'static str, wish: &GroupWish) {
        let change = GroupChange {
            enabled: Some(wish.enabled),
            max_attempts: Some(Some(wish.attempts)),
            initial_position: Some(self.begin_of(wish.begin)),
            ..GroupChange::default()
        };
        let wait = self.settled(Wait::Groups);
        let plan = match self.world.groups.get(name) {
            None => Plan::new(Vec::new(), Err(unknown_group(name)), wait),
            Some(group) => {
                let settings = change.applied_to(&group.settings);
                let answer = Ok(Answer::Group(group.id, settings.clone()));
                let effect = Effect::GroupUpdated { name, settings: settings.clone() };
                let effects = if settings == group.settings { vec![] } else { vec![effect] };
                Plan::new(effects, answer, wait)
            }
        };
        self.execute(
            plan,
            |broker| {
                let change = change.clone();
                Box::pin(async move {
                    let group = broker.update_group(name, &change, late()).await?;
                    Ok((Answer::Group(group.id.get(), GroupSettings::clone(&group.settings)), None))
                })
            },
            false,
        );
    }

    fn delete_group(&mut self, name: &'static str) {
        let wait = self.settled(Wait::Groups);
        let plan = match self.world.groups.contains_key(name) {
            true => Plan::new(vec![Effect::GroupDeleted { name }], Ok(Answer::Done), wait),
            false => Plan::new(Vec::new(), Err(unknown_group(name)), wait),
        };
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    broker.delete_group(name, late()).await?;
                    Ok((Answer::Done, None))
                })
            },
            false,
        );
    }

    // ---- offsets

    fn commit(&mut self, group: &'static str, rows: &[Row], leave: bool) {
        self.land();
        // A message that is over before it is dispatched is not missed by the range that a commit looks at.
        let topics = rows.iter().filter_map(|row| self.world.topics.get(TOPICS[row.topic]));
        if topics.map(|topic| topic.before(self.wall)).any(|before| before > 0) {
            self.rig_mut().dispatch();
        }
        let offsets: Vec<_> = rows.iter().map(|row| self.offset_of(group, row)).collect();
        let plan = self.planned_commit(group, &offsets);
        self.tally.note("commits", plan.effects.len() as u64);
        self.execute(
            plan,
            |broker| {
                let offsets = offsets.clone();
                Box::pin(async move {
                    broker.commit_offsets(group, &offsets, Caller::default(), late()).await?;
                    Ok((Answer::Done, None))
                })
            },
            leave,
        );
    }

    fn offset_of(&self, group: &str, row: &Row) -> CommitOffset<'static> {
        let topic = TOPICS[row.topic];
        let queue = self.picked(topic, row.queue);
        let queues = self.world.topics.get(topic).map_or(0, |topic| topic.queues.len());
        let range = if (queue as usize) < queues { self.range(topic, queue) } else { (0, 0) };
        let committed = self.world.groups.get(group).and_then(|group| group.committed.get(topic));
        let current = committed.and_then(|committed| committed.get(queue));
        let expected = match row.wanted {
            Wanted::Any => Expected::Any,
            Wanted::Nothing => Expected::Nothing,
            Wanted::Current => {
                current.map_or(Expected::Nothing, |at| Expected::Offset(QueueOffset::new(at)))
            }
            Wanted::Else(share) => Expected::Offset(QueueOffset::new(place(share, range))),
        };
        let offset = QueueOffset::new(place(row.to, range));
        CommitOffset { topic, queue: QueueId::new(queue), offset, expected, known_queues: None }
    }

    fn planned_commit(&mut self, group: &'static str, offsets: &[CommitOffset<'static>]) -> Plan {
        let Some(known) = self.world.groups.get(group) else {
            return Plan::new(Vec::new(), Err(unknown_group(group)), self.settled(Wait::Groups));
        };
        let mut by_topic = BTreeMap::<&'static str, Vec<CommitOffset<'static>>>::new();
        for offset in offsets {
            by_topic.entry(offset.topic).or_default().push(*offset);
        }
        for (name, offsets) in &mut by_topic {
            offsets.sort_by_key(|offset| offset.queue);
            match self.refused_offsets(name, offsets) {
                None => {}
                Some(BrokerError::NoTopic { .. }) => return self.unknown_topic(name),
                Some(refusal) => return Plan::refused(refusal),
            }
        }
        let mut by_id: Vec<_> = by_topic.into_iter().collect();
        by_id.sort_by_key(|(name, _)| self.world.topics[name].id);
        let nothing = world::Committed::default();
        let (mut rows, mut changes, mut applied) = (Vec::new(), false, 0);
        for (name, offsets) in &by_id {
            let committed = known.committed.get(name).unwrap_or(&nothing);
            applied = applied.max(committed.applied);
            for offset in offsets {
                let (queue, to) = (offset.queue, offset.offset.get());
                let current = committed.get(queue.get());
                if !is_met(offset.expected, current) {
                    self.tally.note("commits that met something else", 1);
                    let waits = self.world.topics[name].waits(committed.applied);
                    let current = current.map(QueueOffset::new);
                    let topic = (*name).into();
                    let error = BrokerError::OffsetConflict { topic, queue, current };
                    let wait = if waits { Wait::At(committed.applied) } else { Wait::Nothing };
                    return Plan::new(Vec::new(), Err(error), wait);
                }
                changes |= committed.rows.get(&queue.get()) != Some(&to);
                rows.push((*name, queue.get(), to));
            }
        }
        let topics = || by_id.iter().map(|(name, _)| &self.world.topics[name]);
        if !changes {
            let waits = topics().any(|topic| topic.waits(applied));
            let wait = if waits { Wait::At(applied) } else { Wait::Nothing };
            return Plan::new(Vec::new(), Ok(Answer::Done), wait);
        }
        let is_sync = topics().any(|topic| topic.settings.flush == FlushMode::Sync);
        let wait = if is_sync { Wait::Own } else { Wait::Nothing };
        Plan::new(vec![Effect::Committed { group, rows }], Ok(Answer::Done), wait)
    }

    /// Why these offsets of a topic, by rising queue, cannot be committed.
    fn refused_offsets(
        &self,
        name: &'static str,
        offsets: &[CommitOffset<'_>],
    ) -> Option<BrokerError> {
        let Some(topic) = self.world.topics.get(name) else {
            return Some(BrokerError::NoTopic { name: name.into() });
        };
        if let Some(twice) = offsets.windows(2).find(|pair| pair[0].queue == pair[1].queue) {
            let fault = RequestFault::QueueTwice { queue: twice[0].queue };
            return Some(BrokerError::BadRequest { fault });
        }
        let queues = topic.settings.queues;
        offsets.iter().find_map(|offset| {
            let queue = offset.queue;
            if queue.get() >= queues {
                return Some(BrokerError::BadQueue { topic: name.into(), queue, queues });
            }
            let (_, max) = self.range(name, queue.get());
            (offset.offset.get() > max).then(|| self.out_of_range(name, queue, offset.offset))
        })
    }

    fn out_of_range(&self, name: &'static str, queue: QueueId, offset: QueueOffset) -> BrokerError {
        let range = queue_range(self.range(name, queue.get()));
        let (topic, epoch) = (name.into(), Epoch::new(self.epoch));
        BrokerError::CommitOutOfRange { topic, queue, offset, range, epoch }
    }

    fn reset(
        &mut self,
        group: &'static str,
        topic: &'static str,
        queue: Option<u32>,
        to: Where,
        is_dry: bool,
    ) {
        self.land();
        let queue = queue.map(|queue| self.picked(topic, queue));
        // An offset is of one queue.
        let queue = if matches!(to, Where::Offset(_)) { queue.or(Some(0)) } else { queue };
        let queues = self.world.topics.get(topic).map_or(0, |topic| topic.settings.queues);
        let first = queue.unwrap_or(0);
        let range = if first < queues { self.range(topic, first) } else { (0, 0) };
        let to = match to {
            Where::Earliest => Position::Earliest,
            Where::Latest => Position::Latest,
            Where::Time(share, by) => Position::Time(Timestamp::new(self.time(share, by))),
            Where::Offset(share) => Position::Offset(QueueOffset::new(place(share, range))),
        };
        let run = if is_dry { Run::Dry } else { Run::Real };
        let plan = self.planned_reset(group, topic, queue, to, run);
        self.tally.note("resets", plan.effects.len() as u64);
        self.execute(
            plan,
            |broker| {
                Box::pin(async move {
                    let queue = queue.map(QueueId::new);
                    let request =
                        ResetRequest { group, topic, queue, to, run, caller: Caller::default() };
                    let rows = broker.reset_offsets(request, late()).await?;
                    Ok((Answer::Reset(rows), None))
                })
            },
            false,
        );
    }

    fn planned_reset(
        &self,
        group: &'static str,
        name: &'static str,
        queue: Option<u32>,
        to: Position,
        run: Run,
    ) -> Plan {
        let world: &World = &self.world;
        let Some(known) = world.groups.get(group) else {
            return Plan::new(Vec::new(), Err(unknown_group(group)), self.settled(Wait::Groups));
        };
        let Some(topic) = world.topics.get(name) else {
            return self.unknown_topic(name);
        };
        let queues = topic.settings.queues;
        let asked = match queue {
            Some(queue) => queue..queue + 1,
            None => 0..queues,
        };
        if asked.start >= queues {
            let queue = QueueId::new(asked.start);
            return Plan::refused(BrokerError::BadQueue { topic: name.into(), queue, queues });
        }
        let (mut answer, mut rows, mut changes) = (Vec::new(), Vec::new(), false);
        for queue in asked {
            let range = self.range(name, queue);
            let new = match to {
                Position::Earliest => range.0,
                Position::Latest => range.1,
                Position::Time(time) => world.offset_at(name, queue, range, time.get()),
                Position::Offset(offset) => offset.get(),
            };
            let (id, to) = (QueueId::new(queue), QueueOffset::new(new));
            if !(range.0..=range.1).contains(&new) {
                return Plan::refused(self.out_of_range(name, id, to));
            }
            let committed = known.committed.get(name);
            let old = committed.and_then(|committed| committed.get(queue));
            let from = old.unwrap_or_else(|| world.begin(known, name, queue, range));
            changes |= committed.and_then(|committed| committed.rows.get(&queue)) != Some(&new);
            rows.push((name, queue, new));
            answer.push(ResetQueue {
                queue: id,
                range: queue_range(range),
                old: old.map(QueueOffset::new),
                from: QueueOffset::new(from),
                new: to,
            });
        }
        let answer = Ok(Answer::Reset(answer));
        if run == Run::Dry || !changes {
            return Plan::new(Vec::new(), answer, Wait::Nothing);
        }
        let wait = match topic.settings.flush {
            FlushMode::Sync => Wait::Own,
            FlushMode::Async => Wait::Nothing,
        };
        Plan::new(vec![Effect::Committed { group, rows }], answer, wait)
    }
}

/// Why a topic of these settings does not take a batch.
fn refusal(
    name: &str,
    settings: &TopicSettings,
    queue: Option<u32>,
    is_grouped: bool,
) -> Option<BrokerError> {
    if !settings.access.write {
        return Some(BrokerError::Forbidden { what: "send" });
    }
    let fault = match (settings.topic_type, is_grouped) {
        (TopicType::Normal, true) => Some(TypeFault::GroupOnNormal),
        (TopicType::Fifo, false) => Some(TypeFault::NoGroupOnFifo),
        _ => None,
    };
    if let Some(fault) = fault {
        return Some(BrokerError::TypeConflict { fault });
    }
    let (queue, queues) = (QueueId::new(queue?), settings.queues);
    (queue.get() >= queues).then(|| BrokerError::BadQueue { topic: name.into(), queue, queues })
}

fn unknown_group(name: &str) -> BrokerError {
    BrokerError::UnknownGroup { name: name.into() }
}

fn stored(receipt: &Receipt) -> (Answer, Option<u64>) {
    let answer = Answer::Stored {
        queue: receipt.queue.get(),
        first: receipt.first_queue_offset.get(),
        count: receipt.message_count.into(),
        time: receipt.store_time.get(),
        epoch: receipt.epoch.get(),
        is_duplicate: receipt.is_duplicate,
    };
    (answer, Some(receipt.offset.get()))
}
