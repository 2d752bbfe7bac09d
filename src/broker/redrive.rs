//! Redrive: dead letters go back to the topics that they come from.
//!
//! A group reads its own dead letters by leases, as it reads any topic. Each that goes back does so with one append
//! set, which holds the copy and the end of the dead letter: the message is in one of the two places, whatever
//! happens, and never in both. In its topic it is a message like others, with another place, id and time, and with what
//! there was to know of it as a dead letter. The group gets it, and its deliveries are counted from 1. Other groups
//! that receive pass over it, for they have had it, unless it is sent back for all. Who reads by offset sees it.
//!
//! Which go can be said by id, key, reason and time, and how many in a second. One request ends long before its leases
//! and its caller's patience do; then there is more, and the same request goes on. It looks at what it does not choose
//! each time, and gives that back; of more than [`MAX_LOOKED`] it sees the oldest.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::dead_letter::name_of;
use super::error::BrokerError;
use super::receive::{By, MAX_RECEIVE, ReceiveRequest, Received, ReceivedMessage};
use super::route::queue_of_group;
use super::send::check_type;
use super::settle::GiveBack;
use super::state::offsets::leased::{Consumer, FinishedBy};
use super::state::topics::TopicEntry;
use super::topics::within;
use super::{Broker, Run};
use crate::filter::Expression;
use crate::format::attributes::{self, DeadLetter, DeadReason};
use crate::format::batch::{self, Batch, TagFilter};
use crate::message::{MessageId, PhysicalOffset, QueueId, Timestamp};
use crate::store::{AppendError, NewRecord};

/// How long dead letters that are looked at are kept from others.
const LEASE: Duration = Duration::from_secs(60);

/// Bytes of dead letters that are looked at at once.
const MAX_BYTES: u32 = 4 << 20;

/// So many dead letters are looked at: each of them is open until it went, and stays open when it is given back.
const MAX_LOOKED: usize = 100_000;

/// How long one request sends back at most: others get back what it looked at and did not choose.
const LONGEST: Duration = Duration::from_secs(30);

/// What a request keeps of its caller's time for the disk.
const FOR_THE_DISK: Duration = Duration::from_secs(3);

/// Which dead letters are to go back.
#[derive(Clone, Copy, Debug)]
pub struct RedriveRequest<'a> {
    /// The group's name.
    pub group: &'a str,
    /// Their ids as dead letters, at most 1 024; none: whichever come first.
    pub ids: &'a [MessageId],
    /// Of these alone such.
    pub only: OnlySuch<'a>,
    /// At most so many, 1 to 1 024.
    pub max: u32,
    /// At most so many in a second; `None`: as fast as they go.
    pub per_second: Option<NonZeroU32>,
    /// All groups that read the topic get it again, not this one alone.
    pub for_all: bool,
    /// A dry run tells the same and changes nothing.
    pub run: Run,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// What dead letters are like that are to go back; by default like any.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnlySuch<'a> {
    /// They died for this reason.
    pub reason: Option<DeadReason>,
    /// They have this key.
    pub key: Option<&'a str>,
    /// They became dead letters then or later, on the store clock.
    pub since: Option<Timestamp>,
    /// They became dead letters then or earlier.
    pub until: Option<Timestamp>,
}

impl OnlySuch<'_> {
    /// Whether a dead letter is one of them.
    ///
    /// # Errors
    /// It is damaged.
    fn has(&self, message: &ReceivedMessage) -> Result<bool, BrokerError> {
        let is_in_time = self.since.is_none_or(|since| message.store_time >= since)
            && self.until.is_none_or(|until| message.store_time <= until);
        let is_of_reason = self.reason.is_none_or(|reason| {
            let letter = attributes::dead_letter(&message.attributes).ok().flatten();
            letter.is_some_and(|letter| letter.reason == reason)
        });
        if !is_in_time || !is_of_reason {
            return Ok(false);
        }
        let Some(key) = self.key else { return Ok(true) };
        let batch = Batch::parse(&message.batch)?;
        let meta = batch.metas().next().transpose()?;
        Ok(meta.is_some_and(|meta| meta.keys().any(|one| one == key)))
    }

    fn is_all(&self) -> bool {
        let Self { reason, key, since, until } = self;
        reason.is_none() && key.is_none() && since.is_none() && until.is_none()
    }
}

/// What a redrive came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedrivePage {
    /// Of each dead letter that was chosen what became of it: as many went as were asked for, or fewer.
    pub dead_letters: Vec<Redriven>,
    /// It ended before it had seen all: there may be more. Those that stay come again.
    pub more: bool,
}

/// What became of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redriven {
    /// Its id as a dead letter.
    pub id: MessageId,
    /// The name of the topic that it comes from; empty if it does not say.
    pub topic: Box<str>,
    /// Why it stays where it is; `None`: it is back in its topic.
    pub fault: Option<RedriveFault>,
}

/// Why a dead letter stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedriveFault {
    /// It does not say where it comes from.
    #[error("it does not say where it comes from")]
    NoOrigin,
    /// Its body could not be decoded: there is nothing to send.
    #[error("its body could not be decoded")]
    NoBody,
    /// Its topic is gone.
    #[error("its topic is gone")]
    NoTopic,
    /// Its topic takes no messages.
    #[error("its topic takes no messages")]
    Forbidden,
    /// Its topic does not take messages of its kind any more.
    #[error("its topic does not take messages of its kind any more")]
    Type,
    /// Somebody else has it.
    #[error("somebody else has it")]
    Taken,
}

/// When the next one may go.
struct Pace {
    /// Between two of them; each waits for it, also the first, so that the request after this one keeps the pace too.
    step: Option<Duration>,
    next: Instant,
    /// None goes from then on.
    end: Instant,
}

impl Pace {
    fn new(request: &RedriveRequest<'_>) -> Self {
        let now = Instant::now();
        let step = request.per_second.filter(|_| request.run == Run::Real);
        let step = step.map(|count| Duration::from_secs(1) / count.get());
        let in_time = request.deadline.checked_sub(FOR_THE_DISK).unwrap_or(now);
        Self { step, next: now + step.unwrap_or_default(), end: in_time.min(now + LONGEST) }
    }

    /// Waits until the next one may go; `false`: not in this request.
    async fn may_go(&self) -> bool {
        if self.step.is_none() {
            return true;
        }
        if self.next > self.end {
            return false;
        }
        sleep_until(self.next).await;
        true
    }

    fn went(&mut self) {
        // What held the request up is not made up for at once.
        self.next = self.next.max(Instant::now()) + self.step.unwrap_or_default();
    }

    /// Whether there is time for another look.
    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }
}

impl Broker {
    /// Sends dead letters of a group back to where they come from. Each that was looked at and did not go stays as it
    /// was. Answers when all that went is durable in both topics.
    ///
    /// # Errors
    /// What went before the error is back in its topic. The same request again is fine: nothing goes twice.
    pub async fn redrive(&self, request: &RedriveRequest<'_>) -> Result<RedrivePage, BrokerError> {
        within("dead letters", request.max, MAX_RECEIVE)?;
        let ids = u32::try_from(request.ids.len()).unwrap_or(u32::MAX);
        within("ids", ids, MAX_RECEIVE)?;
        let group = self.group(request.group, request.deadline).await?;
        let name = name_of(group.name());
        let Some(dead) = self.state.topics.get(&name) else {
            return Ok(RedrivePage::default());
        };
        let consumer = Consumer { store: &self.store, group: &group, topic: &dead };
        // Those that were looked at and did not go; the receipts of those that went are worth nothing any more.
        let mut looked = GiveBack::new(self, group.name(), &name);
        let mut ends = Vec::new();
        let results = self.redrive_each(consumer, request, &mut looked, &mut ends).await;
        drop(looked);
        for (topic, end) in ends {
            self.acknowledged(&topic, end, request.deadline).await?;
            self.acknowledged(&dead, end, request.deadline).await?;
        }
        results
    }

    async fn redrive_each(
        &self,
        consumer: Consumer<'_>,
        request: &RedriveRequest<'_>,
        looked: &mut GiveBack<'_>,
        ends: &mut Vec<(Arc<TopicEntry>, PhysicalOffset)>,
    ) -> Result<RedrivePage, BrokerError> {
        let wanted: HashSet<MessageId> = request.ids.iter().copied().collect();
        let is_choosy = !wanted.is_empty() || !request.only.is_all();
        let filter = Expression::Tags(TagFilter::All);
        let by = By::Broker { max_open: MAX_LOOKED };
        let mut pace = Pace::new(request);
        let mut page = RedrivePage::default();
        let (mut went, mut stay) = (0, 0);
        loop {
            let room =
                if is_choosy { MAX_RECEIVE } else { request.max.saturating_sub(went).max(1) };
            let receive = ReceiveRequest {
                group: request.group,
                topic: consumer.topic.name(),
                filter: &filter,
                max_messages: room,
                max_bytes: MAX_BYTES,
                invisible: LEASE,
                client: None,
                holder: "",
                wait: Duration::ZERO,
                attempt: "",
                deadline: request.deadline,
            };
            // Their bytes are counted until the next ones are looked at.
            let received = self.receive_as(receive, by).await?.or_why()?;
            let Received { messages, permit: _permit, is_held_up, .. } = received;
            if messages.is_empty() {
                page.more = looked.left.len() >= MAX_LOOKED || is_held_up;
                return Ok(page);
            }
            looked.left.extend(messages.iter().map(|message| message.handle.clone()));
            for message in messages {
                let is_wanted = wanted.is_empty() || wanted.contains(&message.id);
                if !is_wanted || !request.only.has(&message)? {
                    continue;
                }
                if went >= request.max || stay >= MAX_RECEIVE || !pace.may_go().await {
                    page.more = true;
                    return Ok(page);
                }
                let one = self.redrive_one(consumer, request, &message, ends).await?;
                match &one.fault {
                    Some(_) => stay += 1,
                    None => {
                        went += 1;
                        pace.went();
                    }
                }
                page.dead_letters.push(one);
            }
            if !wanted.is_empty() && page.dead_letters.len() >= wanted.len() {
                return Ok(page);
            }
            if went >= request.max || self.is_draining() || !pace.goes_on() {
                page.more = true;
                return Ok(page);
            }
        }
    }

    async fn redrive_one(
        &self,
        consumer: Consumer<'_>,
        request: &RedriveRequest<'_>,
        message: &ReceivedMessage,
        ends: &mut Vec<(Arc<TopicEntry>, PhysicalOffset)>,
    ) -> Result<Redriven, BrokerError> {
        let letter = attributes::dead_letter(&message.attributes).ok().flatten();
        let name = letter.as_ref().map_or("", |letter| letter.topic_name);
        let stays = |fault| Redriven { id: message.id, topic: name.into(), fault: Some(fault) };
        let Some(letter) = &letter else { return Ok(stays(RedriveFault::NoOrigin)) };
        if letter.reason == DeadReason::Undecodable {
            return Ok(stays(RedriveFault::NoBody));
        }
        loop {
            // Another one of its name never had the message.
            let topic = self.state.topics.get(name).filter(|topic| topic.id() == letter.topic);
            let Some(topic) = topic else { return Ok(stays(RedriveFault::NoTopic)) };
            let settings = topic.settings();
            if !settings.access.write {
                return Ok(stays(RedriveFault::Forbidden));
            }
            let info = batch::check(&message.batch)?;
            if check_type(settings.topic_type, info.has_message_group).is_err() {
                return Ok(stays(RedriveFault::Type));
            }
            let back = Redriven { id: message.id, topic: name.into(), fault: None };
            if request.run == Run::Dry {
                return Ok(back);
            }
            let batch = Batch::parse(&message.batch)?;
            let meta = batch.metas().next().transpose()?;
            let queue = match meta.and_then(|meta| meta.message_group()) {
                Some(of) => queue_of_group(of, settings.queues),
                None => letter.queue.get() % settings.queues.max(1),
            };
            let claim = self.signer.handle(&message.handle).map(|handle| handle.claim());
            let Some(due) = claim.and_then(|claim| self.state.offsets.held(consumer, claim)) else {
                return Ok(stays(RedriveFault::Taken));
            };
            let (queue, batch) = (QueueId::new(queue), message.batch.clone());
            let history = DeadLetter {
                redriven: letter.redriven.saturating_add(1),
                is_back: true,
                ..*letter
            };
            let mut history = attributes::of_dead_letter(&history);
            if !request.for_all {
                attributes::put_one_group(&mut history, consumer.group.id());
            }
            let (to, history) = (topic.handle(), history.into());
            let copy = NewRecord::message_with(to, queue, batch, &info, history);
            match self.state.offsets.bury(consumer, due, FinishedBy::Holder, vec![copy]) {
                Ok(Some(end)) => {
                    ends.retain(|(of, _)| !Arc::ptr_eq(of, &topic));
                    ends.push((topic, end));
                    self.counters.redriven.add(1);
                    return Ok(back);
                }
                Ok(None) => return Ok(stays(RedriveFault::Taken)),
                Err(AppendError::NotReady) => self.space_for_messages(request.deadline).await?,
                Err(AppendError::Deleted) if !consumer.topic.handle().is_dead() => {
                    tokio::task::yield_now().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
