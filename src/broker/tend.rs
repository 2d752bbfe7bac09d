//! The one task that looks after leases: it wakes who waits when a message is due again, and makes dead letters of
//! what was delivered as often as it may be.
//!
//! It sleeps until the first (group, topic) has something due, looks at that one, and at no other. Nothing is due in
//! one without open messages, so those cost nothing. Leases need it for nothing else: that one is over is found by who
//! looks.
//!
//! A dead letter may have to wait for room in memory. One look waits for two seconds in all: what finds none then stays
//! due, what needs none goes on, and the next look comes a second later.
//!
//! While anything is leased to clients for as long as they live it looks each second whether they do. Each minute it
//! forgets who did not ask for messages since the last one.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Broker;
use super::error::BrokerError;
use super::state::leases::{Due, Kind, Line, Taken};
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

/// How long the dead letters of one look wait for room, all of them together.
const PATIENCE: Duration = Duration::from_secs(2);

/// After so many of a group that find no room in memory its others are for the next look.
const MAX_LACKING: usize = 8;

/// One look at all that is due.
struct Round {
    /// What is left of [`PATIENCE`]. Without any they are made all the same, if nothing has to be waited for.
    patience: Duration,
    /// The disk has room for dead letters, for all that is known.
    has_space: bool,
    is_well: bool,
}

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
        let mut round = Round { patience: PATIENCE, has_space: true, is_well: true };
        for key in self.state.offsets.fired(self.store.lease_time().get()) {
            self.tend(key, &mut round).await;
        }
        round.is_well
    }

    async fn tend(&self, (group, topic): (GroupId, TopicId), round: &mut Round) {
        let (Some(group), Some(topic)) =
            (self.state.groups.by_id(group), self.state.topics.by_id(topic))
        else {
            return;
        };
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let offsets = &self.state.offsets;
        let now = self.store.lease_time().get();
        // What finds no room is in the hand to the end: it would be found again, before what lies behind it.
        let (mut stay, mut lacking, mut goes_on) = (Taken::default(), 0, round.has_space);
        while goes_on {
            let taken = offsets.take_due(consumer, (Kind::Exhausted, Line::Any), now, STEP);
            if taken.due.is_empty() {
                stay.append(taken);
                break;
            }
            let before = lacking;
            goes_on = self.bury_some(consumer, &taken.due, round, &mut lacking).await;
            match lacking > before {
                true => stay.append(taken),
                false => offsets.put_back(consumer.key(), &taken, now),
            }
            tokio::task::yield_now().await;
        }
        offsets.put_back(consumer.key(), &stay, now);
        if lacking > 0 {
            let (group, topic) = (group.name(), topic.name());
            tracing::warn!(lacking, group, topic, "dead letters find no room in memory");
        }
        self.wake_for_due(consumer);
    }

    /// Makes dead letters. `false`: the others of the group are for the next look.
    async fn bury_some(
        &self,
        consumer: Consumer<'_>,
        due: &[Due],
        round: &mut Round,
        lacking: &mut usize,
    ) -> bool {
        let (group, topic) = (consumer.group.name(), consumer.topic.name());
        let is_ordered = consumer.group.settings().ordered;
        let mut stay = HashSet::new();
        for due in due {
            if is_ordered && stay.contains(&due.lock()) {
                continue;
            }
            let start = Instant::now();
            let (death, deadline) = (DeadReason::Attempts.into(), start + round.patience);
            let buried = self.bury(consumer, *due, death, deadline).await;
            round.patience = round.patience.saturating_sub(start.elapsed());
            let Err(error) = buried else { continue };
            round.is_well = false;
            match error {
                // Without room for a moment it stays due: its message group waits for it.
                BrokerError::Overloaded { .. } => {
                    *lacking += 1;
                    stay.insert(due.lock());
                    if *lacking >= MAX_LACKING {
                        return false;
                    }
                }
                // So it is for all of them.
                BrokerError::NoSpace => {
                    tracing::warn!(%error, group, topic, "dead letters wait");
                    round.has_space = false;
                    return false;
                }
                error => {
                    tracing::warn!(%error, group, topic, "a dead letter cannot be stored");
                    if let Err(error) = self.keep_for_later(consumer, *due) {
                        tracing::warn!(%error, group, topic, "nor can it be put off");
                    }
                    return false;
                }
            }
        }
        true
    }
}
