//! The one task that looks after leases: it wakes who waits when a message is due again, and makes dead letters of
//! what was delivered as often as it may be.
//!
//! It sleeps until the first (group, topic) has something due, looks at that one, and at no other. Nothing is due in
//! one without open messages, so those cost nothing. Leases need it for nothing else: that one is over is found by who
//! looks.
//!
//! While anything is leased to clients for as long as they live it looks each second whether they do. Each minute it
//! forgets who did not ask for messages since the last one.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Broker;
use super::error::BrokerError;
use super::state::leases::{Kind, Line};
use super::state::offsets::leased::Consumer;
use crate::format::attributes::DeadReason;
use crate::message::{GroupId, TopicId};

/// Messages that become dead letters before others get their turn.
const STEP: usize = 32;

/// How long it rests after something failed.
const REST: Duration = Duration::from_secs(1);

/// How often it looks whether clients live.
const LOOK: Duration = Duration::from_secs(1);

/// How often it forgets who does not ask for messages.
const IDLE: Duration = Duration::from_secs(60);

/// Clients of one record.
const MAX_LOST: usize = 1_000;

/// How long a dead letter may take.
const DEADLINE: Duration = Duration::from_secs(2);

impl Broker {
    /// Looks after leases until the broker drains. For one task; another one beside it does no harm.
    pub async fn tend_leases(&self) {
        let mut draining = self.draining.subscribe();
        tokio::select! {
            () = self.tend_for_ever() => {}
            () = self.tend_idle_for_ever() => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    }

    async fn tend_for_ever(&self) {
        loop {
            let timer_set = self.state.offsets.timer_set.notified();
            tokio::pin!(timer_set);
            // Registered before the look: a timer that is set in between is not missed.
            timer_set.as_mut().enable();
            if !(self.tend_clients() & self.tend_due().await) {
                sleep(REST).await;
            }
            let until =
                |due: u64| Duration::from_millis(due.saturating_sub(self.store.lease_time().get()));
            let look = (!self.state.offsets.with_clients().is_empty()).then_some(LOOK);
            let timer = self.state.offsets.next_timer().map(until);
            match look.into_iter().chain(timer).min() {
                Some(left) => {
                    // Over, or told that another one is first: looked at either way.
                    let _ = timeout(left, timer_set).await;
                }
                None => timer_set.await,
            }
        }
    }

    async fn tend_idle_for_ever(&self) {
        loop {
            sleep(IDLE).await;
            self.tend_idle();
        }
    }

    /// Forgets who did not ask for messages since the last call and does not wait for some: whoever asks again is
    /// looked at anew. Topics of which nobody asks are not watched any more.
    pub fn tend_idle(&self) {
        self.state.offsets.ready.let_idle_go(|topic| {
            if let Some(topic) = self.state.topics.by_id(topic) {
                topic.handle().unwatch();
            }
        });
    }

    /// Ends what is leased to clients that are gone. `false`: not all of it.
    pub fn tend_clients(&self) -> bool {
        let mut is_well = true;
        for key in self.state.offsets.with_clients() {
            let clients = self.state.offsets.clients_of(key);
            let lost: Vec<_> =
                clients.into_iter().filter(|client| !self.clients.lives(*client)).collect();
            let (Some(group), Some(topic)) =
                (self.state.groups.by_id(key.0), self.state.topics.by_id(key.1))
            else {
                continue;
            };
            let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
            for lost in lost.chunks(MAX_LOST) {
                if let Err(error) = self.state.offsets.lose_clients(consumer, lost) {
                    let (group, topic) = (group.name(), topic.name());
                    tracing::warn!(%error, group, topic, "leases of lost clients cannot be ended");
                    is_well = false;
                }
            }
            if !lost.is_empty() {
                self.wake_for_due(consumer);
            }
        }
        is_well
    }

    fn wake_for_due(&self, consumer: Consumer<'_>) {
        let offsets = &self.state.offsets;
        if offsets.looked(consumer, self.store.lease_time().get())
            && let Some(ready) = offsets.ready.get(consumer.key())
        {
            ready.wake();
        }
    }

    /// One look at all that is due by now. `false`: a dead letter could not be made.
    pub async fn tend_due(&self) -> bool {
        let mut is_well = true;
        for key in self.state.offsets.fired(self.store.lease_time().get()) {
            is_well &= self.tend(key).await;
        }
        is_well
    }

    async fn tend(&self, (group, topic): (GroupId, TopicId)) -> bool {
        let (Some(group), Some(topic)) =
            (self.state.groups.by_id(group), self.state.topics.by_id(topic))
        else {
            return true;
        };
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let offsets = &self.state.offsets;
        let mut is_well = true;
        loop {
            let now = self.store.lease_time().get();
            let taken = offsets.take_due(consumer, (Kind::Exhausted, Line::Any), now, STEP);
            if taken.due.is_empty() {
                offsets.put_back(consumer.key(), &taken, now);
                break;
            }
            for due in &taken.due {
                let deadline = Instant::now() + DEADLINE;
                let buried = self.bury(consumer, *due, DeadReason::Attempts.into(), deadline).await;
                let Err(error) = buried else { continue };
                let (group, topic) = (group.name(), topic.name());
                tracing::warn!(%error, group, topic, "a dead letter cannot be stored");
                // Without room for a moment it stays due: its message group waits for it.
                if !matches!(error, BrokerError::Overloaded { .. })
                    && let Err(error) = self.keep_for_later(consumer, *due)
                {
                    tracing::warn!(%error, group, topic, "nor can it be put off");
                }
                // Others wait behind it: the rest of these is for the next look.
                is_well = false;
                break;
            }
            offsets.put_back(consumer.key(), &taken, now);
            if !is_well {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.wake_for_due(consumer);
        is_well
    }
}
