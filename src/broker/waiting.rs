//! What waits for another delivery, for operators: how much, since when, which, and what is to become of it now.
//!
//! Nothing is copied anywhere to wait: what is shown are the open messages of a group and a topic that were delivered
//! and that nobody has. Their ids come from their records, so a page costs a read for each of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::Broker;
use super::cut::{Stored, index_in};
use super::dead_letter::Buried;
use super::error::BrokerError;
use super::receive::MAX_RECEIVE;
use super::state::leases::{Claim, Due, Place, WaitingCount};
use super::state::offsets::leased::{Change, Consumer};
use super::topics::within;
use crate::format::attributes::DeadReason;
use crate::format::state_record::OpenState;
use crate::message::{MessageId, QueueId, QueueOffset, Timestamp};

/// The most messages in one answer.
const MAX_PAGE: u32 = MAX_RECEIVE;

/// Which of what waits is to be shown.
#[derive(Clone, Copy, Debug)]
pub struct WaitingRequest<'a> {
    /// The group's name.
    pub group: &'a str,
    /// The topic's name.
    pub topic: &'a str,
    /// Behind this message, by queue and offset; `None`: from the first on.
    pub after: Option<(QueueId, QueueOffset)>,
    /// At most so many, 1 to 1 024.
    pub limit: u32,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// A message that waits for another delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingMessage {
    /// Its id; `None`: its record cannot be read.
    pub id: Option<MessageId>,
    /// Its queue.
    pub queue: QueueId,
    /// Its place there.
    pub queue_offset: QueueOffset,
    /// How often it was delivered.
    pub deliveries: u32,
    /// In how many ms it can be delivered again; 0: now.
    pub due_in_ms: u64,
    /// When it was delivered first, on the clock of leases.
    pub first_delivered: Timestamp,
    /// When it was delivered last.
    pub last_delivered: Timestamp,
    /// Who got it last; empty if that is not known.
    pub last_client: Arc<str>,
}

/// What waits, and some of it. How much there is and since when is told with the first page alone, which walks all of
/// it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingPage {
    /// So many can be delivered again now.
    pub due: u64,
    /// So many wait for their time.
    pub waiting: u64,
    /// How long ago the first delivery was of the one that has been at it for longest, in ms.
    pub oldest_ms: Option<u64>,
    /// In how many ms the next of those that wait for their time can be delivered.
    pub next_due_in_ms: Option<u64>,
    /// By queue and offset.
    pub messages: Vec<WaitingMessage>,
    /// There are more behind the last one.
    pub more: bool,
}

/// What is to become of messages that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingAction {
    /// They can be delivered now.
    Retry,
    /// They become dead letters.
    DeadLetter,
}

/// Which messages that wait are to become something else.
#[derive(Clone, Copy, Debug)]
pub struct SettleRequest<'a> {
    /// The group's name.
    pub group: &'a str,
    /// The topic's name.
    pub topic: &'a str,
    /// Their ids, at most 1 024; none: whichever come first.
    pub ids: &'a [MessageId],
    /// Without ids at most so many, 1 to 1 024.
    pub max: u32,
    /// What is to become of them.
    pub action: WaitingAction,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// What became of a message that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettledMessage {
    /// Its id; `None`: its record cannot be read.
    pub id: Option<MessageId>,
    /// Where it lies, if that is known.
    pub place: Option<(QueueId, QueueOffset)>,
    /// Why it is as it was; `None`: it is done.
    pub fault: Option<SettleFault>,
}

/// Why a message is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettleFault {
    /// It is finished, or was never delivered, or somebody has it.
    #[error("it does not wait")]
    NotWaiting,
    /// Its record cannot be read now.
    #[error("its record cannot be read")]
    Unreadable,
    /// It is a dead letter of this group already.
    #[error("it is a dead letter already")]
    IsDeadLetter,
}

impl Broker {
    /// What waits of a topic for another delivery to a group.
    ///
    /// # Errors
    /// There is no such group or topic, or `limit` is too large.
    pub async fn list_waiting(
        &self,
        request: &WaitingRequest<'_>,
    ) -> Result<WaitingPage, BrokerError> {
        within("messages", request.limit, MAX_PAGE)?;
        let group = self.group(request.group, request.deadline).await?;
        let topic = self.topic(request.topic, request.deadline).await?;
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        let after = request.after.map(|(queue, offset)| (queue.get(), offset.get()));
        let now = self.store.lease_time().get();
        let limit = request.limit as usize;
        let offsets = &self.state.offsets;
        let mut open = offsets.waiting(consumer.key(), after, (true, now), limit + 1);
        let more = open.len() > limit;
        open.truncate(limit);
        let count = match after {
            Some(_) => WaitingCount::default(),
            None => offsets.count_waiting(consumer.key(), now),
        };
        let mut messages = Vec::with_capacity(open.len());
        for due in open {
            let name = self.state.offsets.holder(consumer.key(), &due.open);
            messages.push(WaitingMessage {
                id: self.id_of(consumer, &due).await?,
                queue: QueueId::new(due.place.0),
                queue_offset: QueueOffset::new(due.place.1),
                deliveries: due.open.deliveries,
                due_in_ms: due.open.due.saturating_sub(now),
                first_delivered: Timestamp::new(due.open.first_delivered),
                last_delivered: Timestamp::new(due.open.last_delivered),
                last_client: name.unwrap_or_default(),
            });
        }
        let WaitingCount { due, waiting, oldest, next_due } = count;
        Ok(WaitingPage {
            due,
            waiting,
            oldest_ms: oldest.map(|oldest| now.saturating_sub(oldest)),
            next_due_in_ms: next_due.map(|due| due.saturating_sub(now)),
            messages,
            more,
        })
    }

    /// Makes something else of messages that wait, and says of each what became of it: chosen ones in their order, or
    /// the first that there are. Those that can be delivered already are not among the latter if that is what is asked
    /// for. Answers when all of it is durable.
    ///
    /// # Errors
    /// What was done before the error stays so. The same request again is fine.
    pub async fn settle_waiting(
        &self,
        request: &SettleRequest<'_>,
    ) -> Result<Vec<SettledMessage>, BrokerError> {
        within("messages", request.max, MAX_PAGE)?;
        within("ids", u32::try_from(request.ids.len()).unwrap_or(u32::MAX), MAX_PAGE)?;
        let (group, deadline) =
            (self.group(request.group, request.deadline).await?, request.deadline);
        let topic = self.topic(request.topic, deadline).await?;
        let consumer = Consumer { store: &self.store, group: &group, topic: &topic };
        // One for each that is asked for, in that order; those that are chosen get theirs below.
        let mut results = Vec::new();
        let mut chosen = Vec::new();
        let mut places = Vec::new();
        if request.ids.is_empty() {
            let (all, now) = (request.action == WaitingAction::DeadLetter, self.store.lease_time());
            let most = request.max as usize;
            let of = (all, now.get());
            for due in self.state.offsets.waiting(consumer.key(), None, of, most) {
                chosen.push((self.id_of(consumer, &due).await?, due));
                places.push(results.len());
                results.push(None);
            }
        } else {
            let mut seen = BTreeSet::new();
            for id in request.ids.iter().filter(|id| seen.insert(**id)) {
                let place = self.place_of(consumer, *id).await;
                let (place, fault) = match place {
                    Ok(place) => (place, SettleFault::NotWaiting),
                    Err(fault) => (None, fault),
                };
                let now = self.store.lease_time().get();
                let due =
                    place.and_then(|at| self.state.offsets.waiting_at(consumer.key(), at, now));
                match due {
                    Some(due) => {
                        chosen.push((Some(*id), due));
                        places.push(results.len());
                        results.push(None);
                    }
                    None => results.push(Some(SettledMessage {
                        id: Some(*id),
                        place: place.map(|(queue, at)| (QueueId::new(queue), QueueOffset::new(at))),
                        fault: Some(fault),
                    })),
                }
            }
        }
        let faults = match request.action {
            WaitingAction::Retry => self.retry_now(consumer, &chosen, deadline).await?,
            WaitingAction::DeadLetter => self.bury_now(consumer, &chosen, deadline).await?,
        };
        for ((at, (id, due)), fault) in places.into_iter().zip(&chosen).zip(faults) {
            let place = Some((QueueId::new(due.place.0), QueueOffset::new(due.place.1)));
            if let Some(result) = results.get_mut(at) {
                *result = Some(SettledMessage { id: *id, place, fault });
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// All of it with one record.
    async fn retry_now(
        &self,
        consumer: Consumer<'_>,
        chosen: &[(Option<MessageId>, Due)],
        deadline: Instant,
    ) -> Result<Vec<Option<SettleFault>>, BrokerError> {
        let now = self.store.lease_time().get();
        let change = |due: &Due| Change {
            claim: Claim { place: due.place, lease: due.open.lease, is_first: false },
            due: now,
            state: OpenState::Waiting,
            same_delivery: due.open.same_delivery,
        };
        // What can be delivered already stays as it is: whoever had it last may still finish it.
        let changes: Vec<_> = chosen
            .iter()
            .map(|(_, due)| due)
            .filter(|due| due.open.due > now)
            .map(change)
            .collect();
        if changes.is_empty() {
            return Ok(vec![None; chosen.len()]);
        }
        let change = || self.state.offsets.change(consumer, &changes);
        let mut changed =
            self.settled_claims(consumer, deadline, change).await?.results.into_iter();
        let fault = |(_, due): &(Option<MessageId>, Due)| match due.open.due > now {
            true if changed.next().flatten().is_none() => Some(SettleFault::NotWaiting),
            _ => None,
        };
        Ok(chosen.iter().map(fault).collect())
    }

    async fn bury_now(
        &self,
        consumer: Consumer<'_>,
        chosen: &[(Option<MessageId>, Due)],
        deadline: Instant,
    ) -> Result<Vec<Option<SettleFault>>, BrokerError> {
        if consumer.is_of_dead_letters() {
            return Ok(vec![Some(SettleFault::IsDeadLetter); chosen.len()]);
        }
        let (mut faults, mut last) = (Vec::with_capacity(chosen.len()), None);
        for (_, due) in chosen {
            match self.bury(consumer, *due, DeadReason::Operator.into(), deadline).await? {
                Buried::Done { end } => {
                    last = Some(end);
                    faults.push(None);
                }
                Buried::Stale => faults.push(Some(SettleFault::NotWaiting)),
            }
        }
        if let Some(end) = last {
            self.durable_dead_letter(consumer, end, deadline).await?;
        }
        Ok(faults)
    }

    /// The id of an open message, if its record can be read: one that is damaged keeps nobody from seeing the others.
    async fn id_of(
        &self,
        consumer: Consumer<'_>,
        due: &Due,
    ) -> Result<Option<MessageId>, BrokerError> {
        let offset = QueueOffset::new(due.place.1);
        match self.record_of(consumer.topic, due).await {
            Ok(Stored::Record(record) | Stored::Undecodable(record)) => {
                let (epoch, at) = (record.epoch, record.offset);
                let index = index_in(&record, offset);
                Ok(index.map(|index| MessageId { epoch, offset: at, index }))
            }
            Ok(Stored::Damaged | Stored::Gone) | Err(BrokerError::DamagedRecord { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where a message of a topic lies, if it is there.
    async fn place_of(
        &self,
        consumer: Consumer<'_>,
        id: MessageId,
    ) -> Result<Option<Place>, SettleFault> {
        let record = match self.store.by_id_kept(id).await {
            Ok(record) => record.filter(|found| found.topic == consumer.topic.id()),
            Err(error) => {
                tracing::warn!(%error, %id, "a message that is to be settled cannot be found");
                return Err(SettleFault::Unreadable);
            }
        };
        Ok(record
            .map(|found| (found.queue.get(), found.first_queue_offset.plus(id.index.into()).get())))
    }
}
