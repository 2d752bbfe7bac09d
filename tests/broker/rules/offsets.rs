//! Offsets: committed and reset.

use super::*;

impl Model {
    pub(super) fn commit(&mut self, group: &'static str, rows: &[Row], leave: bool) {
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

    pub(super) fn offset_of(&self, group: &str, row: &Row) -> CommitOffset<'static> {
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

    pub(super) fn planned_commit(
        &mut self,
        group: &'static str,
        offsets: &[CommitOffset<'static>],
    ) -> Plan {
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
    pub(super) fn refused_offsets(
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

    pub(super) fn out_of_range(
        &self,
        name: &'static str,
        queue: QueueId,
        offset: QueueOffset,
    ) -> BrokerError {
        let range = queue_range(self.range(name, queue.get()));
        let (topic, epoch) = (name.into(), Epoch::new(self.epoch));
        BrokerError::CommitOutOfRange { topic, queue, offset, range, epoch }
    }

    pub(super) fn reset(
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

    pub(super) fn planned_reset(
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
