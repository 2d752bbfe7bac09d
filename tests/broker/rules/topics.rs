//! Topics: made, changed, deleted, purged.

use super::*;

impl Model {
    pub(super) fn create_topic(&mut self, name: &'static str, wish: &TopicWish) {
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

    pub(super) fn update_topic(&mut self, name: &'static str, wish: &TopicWish, force: bool) {
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

    pub(super) fn planned_update(
        &self,
        name: &'static str,
        changes: &TopicChanges,
        force: bool,
    ) -> Plan {
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

    pub(super) fn delete_topic(&mut self, name: &'static str) {
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

    pub(super) fn purge(&mut self, name: &'static str, queue: Option<u32>, up_to: Option<Share>) {
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
}
