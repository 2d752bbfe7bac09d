//! Who waits at the end of a queue, and what wakes him: a message, the end of his time, a shutdown, the topic's
//! deletion, the end of the consumer group in whose name he waits or its disabling.
//!
//! The store keeps the waiters; here is how many there may be and what a wake-up means. Whoever was woken asks once
//! more.

use tokio::time::{Instant, timeout_at};

use super::Broker;
use super::error::BrokerError;
use super::state::groups::GroupEntry;
use super::state::topics::TopicEntry;
use crate::message::{QueueId, QueueOffset};
use crate::store::Arrival;

/// Why a parked pull was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// There may be something to read, or to refuse.
    Look,
    /// Nothing came in time, or the broker stops: answer with what there is.
    Over,
}

impl Broker {
    /// Parks until `queue` can be read beyond `from`, at most until `until`.
    ///
    /// # Errors
    /// Too many are parked already.
    pub(super) async fn park(
        &self,
        topic: &TopicEntry,
        group: Option<&GroupEntry>,
        queue: QueueId,
        from: QueueOffset,
        until: Instant,
    ) -> Result<Woken, BrokerError> {
        let mut draining = self.draining.subscribe();
        if *draining.borrow_and_update() || until <= Instant::now() {
            return Ok(Woken::Over);
        }
        let Ok(_place) = self.waiters.try_acquire() else {
            return Err(BrokerError::Overloaded { what: "parked pulls" });
        };
        self.counters.parked.add(1);
        let arrival = self.store.arrival(topic.handle(), queue, from);
        let woken = timeout_at(until, async {
            tokio::select! {
                arrival = arrival => match arrival {
                    // A deletion is told by who looks, once it is durable.
                    Arrival::Readable | Arrival::Gone => Woken::Look,
                    Arrival::Closed => Woken::Over,
                },
                _ = draining.changed() => Woken::Over,
                () = self.refuses(group) => Woken::Look,
            }
        })
        .await;
        Ok(woken.unwrap_or(Woken::Over))
    }

    /// Resolves when the group gets no messages any more; never without a group.
    pub(super) async fn refuses(&self, group: Option<&GroupEntry>) {
        let Some(group) = group else { return std::future::pending().await };
        loop {
            let changed = group.changed().notified();
            tokio::pin!(changed);
            // Registered before the look: a change in between is not missed.
            changed.as_mut().enable();
            if self.admitted(group).is_err() {
                return;
            }
            changed.await;
        }
    }
}
