//! Batches: sent by whom and to where, for the first time or again.

use super::*;

impl Model {
    pub(super) fn batch(&mut self, batch: &Batch, count: u64, is_grouped: bool) -> world::Batch {
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

    pub(super) fn in_session(&self, mark: &Mark, count: u64) -> (InSession, u64) {
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

    pub(super) fn send(
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

    pub(super) fn planned_send(
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

    pub(super) fn made_by_send(&self) -> TopicSettings {
        TopicSettings::open(DEFAULT_QUEUES, self.setup.flush, TopicType::Mixed)
    }

    /// A batch that was stored before.
    pub(super) fn planned_retry(&mut self, stored: &Stored) -> Plan {
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
}
