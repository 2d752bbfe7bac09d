//! A group's first positions in a topic, and in which queues it looks for messages first.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use crate::broker::error::BrokerError;
use crate::broker::offsets::Position;
use crate::broker::state::groups::GroupEntry;
use crate::broker::state::leases::{ANY_TAG, MAX_OPEN_IN_QUEUE, Ready};
use crate::broker::state::offsets::leased::Consumer;
use crate::broker::state::offsets::{By, Caller, Expected, NewOffset, TopicCommit};
use crate::broker::state::topics::TopicEntry;
use crate::broker::{Broker, before};
use crate::format::state_record::OffsetCause;
use crate::message::{GroupId, InitialPosition, QueueId, QueueOffset, TopicId};

/// Queues that are looked at when a group gets messages of a topic for the first time, before others get their turn.
const BEGIN_STEP: usize = 1_024;

impl Broker {
    /// Where a group looks for messages of a topic: bound to it, with all queues listed that have something.
    pub(super) async fn begun(
        &self,
        consumer: Consumer<'_>,
        deadline: Instant,
    ) -> Result<Arc<Ready>, BrokerError> {
        let offsets = &self.state.offsets;
        let Consumer { group, topic, .. } = consumer;
        let ready = match offsets.ready.get(consumer.key()) {
            Some(ready) => ready,
            None => offsets.ready.make(consumer.key()),
        };
        ready.asked();
        let queues = topic.handle().queues();
        let begun = ready.begun();
        if begun >= queues {
            return Ok(ready);
        }
        while let Some(unbound) = offsets.unbound(consumer) {
            self.bind(group, topic, unbound, deadline).await?;
        }
        self.store.watch(topic.handle());
        self.list(consumer, &ready, begun..queues, MAX_OPEN_IN_QUEUE).await;
        ready.begin(queues);
        if group.is_dead() || topic.handle().is_dead() {
            // Made anew after it was forgotten.
            offsets.ready.forget(consumer.key());
        }
        Ok(ready)
    }

    /// Gives a group its positions in a topic if it has none yet, where it wants to begin: a consumer has said that it
    /// will ask for messages, and what is sent from then on is for it. Nothing of a group that is not there, which
    /// would begin with the first message there is.
    ///
    /// # Errors
    /// There is no such topic, or nobody may read it, or the positions cannot be stored: the first receive does it.
    pub async fn bind_group(
        &self,
        group: &str,
        topic: &str,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let Some(group) = self.state.groups.get(group) else { return Ok(()) };
        let topic = self.topic(topic, deadline).await?;
        self.check_readable(&topic)?;
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let queues = topic.handle().queues();
        let ready = self.state.offsets.ready.get(consumer.key());
        if ready.is_some_and(|ready| ready.begun() >= queues) {
            return Ok(());
        }
        while let Some(unbound) = self.state.offsets.unbound(consumer) {
            self.bind(&group, &topic, unbound, deadline).await?;
        }
        Ok(())
    }

    /// Lists the queues, of some, that have something for a group, and fewer than `max_open` that are open.
    pub(super) async fn list(
        &self,
        consumer: Consumer<'_>,
        ready: &Ready,
        queues: std::ops::Range<u32>,
        max_open: usize,
    ) {
        let (topic, queues) = (consumer.topic.handle(), queues.collect::<Vec<_>>());
        for some in queues.chunks(BEGIN_STEP) {
            let cursors = self.state.offsets.cursors(consumer, some);
            for (queue, (cursor, open)) in some.iter().zip(cursors) {
                let (id, cursor) = (QueueId::new(*queue), QueueOffset::new(cursor));
                if self.store.queue_max(topic, id) <= cursor {
                    self.store.tell_behind(topic, id, cursor);
                } else if open < max_open {
                    ready.arrived(*queue, ANY_TAG);
                }
            }
            if queues.len() > BEGIN_STEP {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Where a group begins in a topic in which it has no position. One that may have had some, in a record that is
    /// damaged, gets all that there is: it misses nothing.
    pub(in crate::broker) fn begin_of(
        &self,
        group: &GroupEntry,
        topic: &TopicEntry,
    ) -> InitialPosition {
        let was_there = |(next_group, next_topic): (GroupId, TopicId)| {
            group.id() < next_group && topic.id() < next_topic
        };
        match self.positions_missing.is_some_and(was_there) {
            true => InitialPosition::Earliest,
            false => group.settings().initial_position,
        }
    }

    /// Gives a group a position in queues of a topic that is new to it: all of them with one record.
    async fn bind(
        &self,
        group: &GroupEntry,
        topic: &Arc<TopicEntry>,
        unbound: Vec<QueueId>,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let queues = topic.handle().queues();
        let begin = self.begin_of(group, topic);
        let is_new = unbound.len() == queues as usize;
        let (mut offsets, mut known_queues) = (Vec::new(), queues);
        if begin == InitialPosition::Earliest && is_new {
            // Queues without an offset that come after the first begin at 0: no row is needed until something moves.
            offsets.push((QueueId::ZERO, QueueOffset::ZERO));
            known_queues = 1;
        } else {
            if begin != InitialPosition::Earliest {
                let caught_up = self.store.caught_up(topic.handle());
                let _ = timeout_at(before(deadline), caught_up).await;
            }
            for queue in unbound {
                let offset = match begin {
                    InitialPosition::Earliest => QueueOffset::ZERO,
                    begin => {
                        let range = self.bounds(topic, queue, deadline).await?;
                        self.offset_of(topic, queue, range, Position::from(begin), deadline).await?
                    }
                };
                offsets.push((queue, offset));
            }
        }
        let expected = Expected::Nothing;
        let offsets = offsets.into_iter();
        let offsets = offsets.map(|(queue, offset)| NewOffset { queue, offset, expected });
        let (topic, offsets) = (Arc::clone(topic), offsets.collect());
        let commit = TopicCommit { topic, known_queues, offsets };
        let by = By { cause: OffsetCause::Commit, caller: Caller::default() };
        match self.try_commit(group, &[commit], by, deadline).await {
            // Another one was faster: what is missing now is looked at anew.
            Ok(_) | Err(BrokerError::OffsetConflict { .. } | BrokerError::OpenMessages { .. }) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
