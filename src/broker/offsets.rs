//! Offsets as a service: committed, asked for, reset; and the offsets of a topic by edge and by time.
//!
//! | rule | is kept |
//! | --- | --- |
//! | a commit of several offsets is one record: all of it or nothing | in `state/offsets.rs` |
//! | a committed offset is the next to consume, at most the end; below the first that is there it is behind, not wrong | before the commit, here |
//! | a lower one than before is accepted, and counted | here |
//! | an OK, and an answer that tells an offset, wait for the flush mode of its topic; of several, for the strictest | here |
//! | nothing committed is told as that, never as 0 | by types |
//! | who moved a group, and from where, can be asked for | in `state/offsets/history.rs` |
//!
//! The end of a queue is looked at before the unit is locked: it only grows. Its begin is not looked at: retention may
//! overtake a reader at any time, and what he has read he may commit. Only a reset is told that there is nothing.

use std::collections::BTreeMap;

use tokio::time::{Instant, timeout_at};

use super::cut::Stored;
use super::error::{BrokerError, RequestFault};
use super::state::groups::GroupEntry;
use super::state::leases::OpenCount;
use super::state::offsets::{
    Asked, By, Caller, Commit, Expected, KEPT_MS, NewOffset, OffsetChange, Offsets, TopicCommit,
};
use super::state::topics::TopicEntry;
use super::topics::within;
use super::{Broker, before};
use crate::format::state_record::OffsetCause;
use crate::message::{InitialPosition, PhysicalOffset, QueueId, QueueOffset, Timestamp};
use crate::store::{AppendError, QueueRange};

/// The most offsets in one commit.
const MAX_COMMIT: u32 = 10_000;

/// The most queues, or changes, in an answer to a list.
const MAX_PAGE: u32 = 10_000;

/// Open messages that a list counts before others get their turn.
const COUNT_STEP: u64 = 10_000;

/// The longest name of a caller, in bytes.
const MAX_CALLER: u32 = 128;

/// An offset to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitOffset<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The queue.
    pub queue: QueueId,
    /// The next offset to consume.
    pub offset: QueueOffset,
    /// What must be committed now.
    pub expected: Expected,
    /// How many queues the topic had when the caller looked where the group begins: those that it got since begin at
    /// 0, if this is the group's first commit to it. Of several offsets of a topic the lowest counts. `None`: those
    /// that it has at the commit.
    pub known_queues: Option<u32>,
}

/// How far a group is in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueProgress {
    /// The queue.
    pub queue: QueueId,
    /// What can be pulled from it.
    pub range: QueueRange,
    /// The next offset to consume, if one is committed.
    pub committed: Option<QueueOffset>,
    /// Where the group goes on: the committed offset, else its initial position as of now.
    pub next: QueueOffset,
    /// Messages that a receive would get now.
    pub ready: u64,
    /// Messages that somebody has.
    pub leased: u64,
    /// Messages that wait: for the end of a pause, or for those before them in their message group.
    pub waiting: u64,
    /// For how long the first message that is not finished has been there, in ms. `None`: there is none, or it cannot
    /// be read now.
    pub lag_ms: Option<u64>,
}

impl QueueProgress {
    /// Messages that are there from the committed offset to the end of the queue; without a committed one, from its
    /// begin.
    pub fn lag(&self) -> u64 {
        let from = self.committed.unwrap_or_default().max(self.range.min);
        self.range.max.get().saturating_sub(from.get())
    }
}

/// A place in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The first message that is there.
    Earliest,
    /// The end.
    Latest,
    /// The first message that was stored then or later; the end if there is none.
    Time(Timestamp),
    /// This offset.
    Offset(QueueOffset),
}

impl From<InitialPosition> for Position {
    fn from(position: InitialPosition) -> Self {
        match position {
            InitialPosition::Earliest => Self::Earliest,
            InitialPosition::Latest => Self::Latest,
            InitialPosition::Time(time) => Self::Time(time),
        }
    }
}

/// A position of a queue as an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePosition {
    /// The queue.
    pub queue: QueueId,
    /// What can be pulled from it.
    pub range: QueueRange,
    /// The position.
    pub offset: QueueOffset,
}

/// Whether something is done or only worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Nothing is changed.
    Dry,
    /// It is done.
    Real,
}

/// What to reset, and to what.
#[derive(Clone, Copy, Debug)]
pub struct ResetRequest<'a> {
    /// The group's name.
    pub group: &'a str,
    /// The topic's name.
    pub topic: &'a str,
    /// Of which queue; `None`: of all.
    pub queue: Option<QueueId>,
    /// Where the group is to go on.
    pub to: Position,
    /// Who wants it.
    pub caller: Caller<'a>,
    /// Whether to do it.
    pub run: Run,
}

/// What a reset does to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetQueue {
    /// The queue.
    pub queue: QueueId,
    /// What can be pulled from it.
    pub range: QueueRange,
    /// What was committed before.
    pub old: Option<QueueOffset>,
    /// Where the group would have gone on without the reset.
    pub from: QueueOffset,
    /// Where it goes on.
    pub new: QueueOffset,
}

impl ResetQueue {
    /// Messages that the group gets again.
    pub fn again(&self) -> u64 {
        self.first().saturating_sub(self.new.get())
    }

    /// Messages that are there and that the group does not get.
    pub fn skipped(&self) -> u64 {
        self.new.get().saturating_sub(self.first())
    }

    /// What the group would have got next.
    fn first(&self) -> u64 {
        self.from.max(self.range.min).get()
    }
}

/// Which changes of a group's offsets of a topic are asked for.
#[derive(Clone, Copy, Debug)]
pub struct HistoryRequest<'a> {
    /// The group's name.
    pub group: &'a str,
    /// The topic's name.
    pub topic: &'a str,
    /// Of which queue; `None`: of all.
    pub queue: Option<QueueId>,
    /// Those behind this one, by its position and its queue; `None`: from the newest on.
    pub after: Option<(PhysicalOffset, QueueId)>,
    /// At most so many; at most 10 000.
    pub limit: u32,
}

/// Changes of a group's offsets, newest first, those of one step by rising queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// At most as many as were asked for.
    pub changes: Vec<OffsetChange>,
    /// Whether there are more behind the last.
    pub more: bool,
}

impl Broker {
    /// Commits offsets of a group: all of them or none. What goes back is remembered with its caller, and all of it if
    /// the caller has a name.
    ///
    /// # Errors
    /// Nothing was committed, unless [`BrokerError::stored`] says otherwise; then the same commit can be repeated.
    pub async fn commit_offsets(
        &self,
        group: &str,
        offsets: &[CommitOffset<'_>],
        caller: Caller<'_>,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        check_caller(caller)?;
        if offsets.is_empty() {
            return Err(BrokerError::BadRequest { fault: RequestFault::NoOffsets });
        }
        let count = u32::try_from(offsets.len()).unwrap_or(u32::MAX);
        within("offsets of a commit", count, MAX_COMMIT)?;
        loop {
            let group = self.group(group, deadline).await?;
            let commits = self.checked(offsets, deadline).await?;
            let by = By { cause: OffsetCause::Commit, caller };
            if self.try_commit(&group, &commits, by, deadline).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// How far a group is in one queue of a topic.
    ///
    /// # Errors
    /// Nothing is committed ([`BrokerError::OffsetNotFound`]), or there is no such group, topic or queue.
    pub async fn committed_offset(
        &self,
        group: &str,
        topic: &str,
        queue: QueueId,
        deadline: Instant,
    ) -> Result<QueueProgress, BrokerError> {
        let group = self.group(group, deadline).await?;
        let topic = self.topic(topic, deadline).await?;
        check_queue(&topic, queue)?;
        let (committed, applied) = self.state.offsets.committed_of(group.id(), topic.id(), queue);
        self.acknowledged(&topic, applied, deadline).await?;
        let Some(next) = committed else {
            // That the group or the topic was made again is told by it too.
            let applied = self.state.groups.applied().max(self.state.topics.applied());
            self.settled(applied, deadline).await?;
            return Err(BrokerError::OffsetNotFound { queue });
        };
        self.caught_up(&topic, deadline).await;
        let range = self.bounds(&topic, queue, deadline).await?;
        self.still_there(&topic, deadline).await?;
        Ok(self.split(&group, &topic, queue, range, (committed, next)).await.0)
    }

    /// How far a group is in up to `limit` queues of a topic from `first_queue` on; `limit` is at most 10 000.
    ///
    /// # Errors
    /// There is no such group or topic, `limit` is too large, or what is to be told is not durable in time.
    pub async fn progress(
        &self,
        group: &str,
        topic: &str,
        first_queue: u32,
        limit: u32,
        deadline: Instant,
    ) -> Result<Vec<QueueProgress>, BrokerError> {
        within("queues in an answer", limit, MAX_PAGE)?;
        let group = self.group(group, deadline).await?;
        let topic = self.topic(topic, deadline).await?;
        self.progress_in(&group, &topic, first_queue, limit, deadline).await
    }

    /// The same of a group and a topic that are known.
    pub(super) async fn progress_in(
        &self,
        group: &GroupEntry,
        topic: &TopicEntry,
        first_queue: u32,
        limit: u32,
        deadline: Instant,
    ) -> Result<Vec<QueueProgress>, BrokerError> {
        let committed = self.state.offsets.committed(group.id(), topic.id());
        self.acknowledged(topic, committed.applied, deadline).await?;
        // After the offsets were looked at: what is committed is at or below the end that is told with it.
        self.caught_up(topic, deadline).await;
        let begin = Position::from(self.begin_of(group, topic));
        let end = topic.handle().queues().min(first_queue.saturating_add(limit));
        let (mut queues, mut counted) = (Vec::new(), 0);
        for queue in (first_queue..end).map(QueueId::new) {
            if counted >= COUNT_STEP {
                counted = 0;
                tokio::task::yield_now().await;
            }
            let range = self.bounds(topic, queue, deadline).await?;
            let committed = committed.get(queue);
            let next = match committed {
                Some(offset) => offset,
                None => self.offset_of(topic, queue, range, begin, deadline).await?,
            };
            let split = self.split(group, topic, queue, range, (committed, next));
            let (progress, open) = split.await;
            queues.push(progress);
            counted += open;
        }
        self.still_there(topic, deadline).await?;
        Ok(queues)
    }

    /// How far a group is in a queue, with what of it is ready, leased and waiting at this moment; and how many
    /// messages were counted for that.
    async fn split(
        &self,
        group: &GroupEntry,
        topic: &TopicEntry,
        queue: QueueId,
        range: QueueRange,
        (committed, next): (Option<QueueOffset>, QueueOffset),
    ) -> (QueueProgress, u64) {
        let (ordered, now) = (group.settings().ordered, self.store.lease_time().get());
        let key = (group.id(), topic.id());
        let (open, cursor) = self.state.offsets.open_in(key, queue, (ordered, now));
        let fresh = cursor.unwrap_or(next).max(range.min);
        let fresh = range.max.get().saturating_sub(fresh.get());
        let OpenCount { due, leased, waiting } = open;
        let ready = fresh + due;
        let lag_ms = self.lag_ms((group, topic), queue, range, next).await;
        let progress =
            QueueProgress { queue, range, committed, next, ready, leased, waiting, lag_ms };
        (progress, due + leased + waiting)
    }

    /// For how long the message at an offset, or the first one behind it, has been there. One that was delivered is
    /// there beyond its time.
    async fn lag_ms(
        &self,
        (group, topic): (&GroupEntry, &TopicEntry),
        queue: QueueId,
        range: QueueRange,
        next: QueueOffset,
    ) -> Option<u64> {
        let place = (queue.get(), next.get());
        let kept = match self.state.offsets.open_at((group.id(), topic.id()), place) {
            Some(due) if next < range.min => self.record_of(topic, &due).await.ok(),
            _ => None,
        };
        let record = match kept {
            Some(Stored::Record(record)) => record,
            _ => {
                let first = next.max(range.min);
                if first >= range.max {
                    return None;
                }
                match self.record_at(topic, queue, first).await {
                    Ok(Stored::Record(record)) => record,
                    _ => return None,
                }
            }
        };
        Some(self.store.now().get().saturating_sub(record.store_time.get()))
    }

    /// A position in up to `limit` queues of a topic from `first_queue` on, as offsets; `limit` is at most 10 000. The
    /// ranges hold everything that was acknowledged before.
    ///
    /// # Errors
    /// There is no such topic or queue, the position is an offset, or `limit` is too large.
    pub async fn offsets_at(
        &self,
        topic: &str,
        first_queue: QueueId,
        limit: u32,
        position: Position,
        deadline: Instant,
    ) -> Result<Vec<QueuePosition>, BrokerError> {
        within("queues in an answer", limit, MAX_PAGE)?;
        if matches!(position, Position::Offset(_)) {
            let fault = RequestFault::OffsetPosition { field: "at" };
            return Err(BrokerError::BadRequest { fault });
        }
        let topic = self.topic(topic, deadline).await?;
        check_queue(&topic, first_queue)?;
        self.caught_up(&topic, deadline).await;
        let first = first_queue.get();
        let end = topic.handle().queues().min(first.saturating_add(limit));
        let mut queues = Vec::new();
        for queue in (first..end).map(QueueId::new) {
            let range = self.bounds(&topic, queue, deadline).await?;
            let offset = self.offset_of(&topic, queue, range, position, deadline).await?;
            queues.push(QueuePosition { queue, range, offset });
        }
        self.still_there(&topic, deadline).await?;
        Ok(queues)
    }

    /// Moves a group to another place in one queue or all queues of a topic, all of them with one record, whether it
    /// has offsets there or not. A dry run answers the same and changes nothing.
    ///
    /// # Errors
    /// Nothing was changed, unless [`BrokerError::stored`] says otherwise; then the same reset can be repeated.
    pub async fn reset_offsets(
        &self,
        request: ResetRequest<'_>,
        deadline: Instant,
    ) -> Result<Vec<ResetQueue>, BrokerError> {
        check_caller(request.caller)?;
        loop {
            let group = self.group(request.group, deadline).await?;
            let topic = self.topic(request.topic, deadline).await?;
            // Before the look: a queue that comes behind it begins at 0 for the group.
            let known_queues = topic.handle().queues();
            let mut queues = self.planned(&group, &topic, &request, deadline).await?;
            if request.run == Run::Dry {
                return Ok(queues);
            }
            let offsets = queues.iter().map(|row| NewOffset {
                queue: row.queue,
                offset: row.new,
                expected: Expected::Any,
            });
            let commit = TopicCommit { topic, known_queues, offsets: offsets.collect() };
            let by = By { cause: OffsetCause::Reset, caller: request.caller };
            if let Some(old) = self.try_commit(&group, &[commit], by, deadline).await? {
                for (row, old) in queues.iter_mut().zip(old) {
                    (row.old, row.from) = (old, old.unwrap_or(row.from));
                }
                return Ok(queues);
            }
        }
    }

    /// What is remembered of the moves of a group in a topic: resets, commits that went back, and those whose caller
    /// gave a name. The last 100 of each queue at most, none of them older than 7 days.
    ///
    /// # Errors
    /// There is no such group, topic or queue, `limit` is too large, or what is to be told is not durable in time.
    pub async fn offset_history(
        &self,
        request: HistoryRequest<'_>,
        deadline: Instant,
    ) -> Result<HistoryPage, BrokerError> {
        let HistoryRequest { group, topic, queue, after, limit } = request;
        within("changes in an answer", limit, MAX_PAGE)?;
        let group = self.group(group, deadline).await?;
        let topic = self.topic(topic, deadline).await?;
        check_queue(&topic, queue.unwrap_or_default())?;
        let since = Timestamp::new(self.store.now().get().saturating_sub(KEPT_MS));
        let asked = Asked { queue, after, limit: limit as usize };
        let (changes, more) = self.state.offsets.history(group.id(), topic.id(), asked, since);
        if let Some(newest) = changes.first() {
            self.acknowledged(&topic, newest.position, deadline).await?;
        }
        self.still_there(&topic, deadline).await?;
        Ok(HistoryPage { changes, more })
    }

    /// How many changes of offsets are remembered, those included that are too old by now.
    pub fn offset_changes(&self) -> u64 {
        self.state.offsets.remembered()
    }

    /// What a reset would do now.
    async fn planned(
        &self,
        group: &GroupEntry,
        topic: &TopicEntry,
        request: &ResetRequest<'_>,
        deadline: Instant,
    ) -> Result<Vec<ResetQueue>, BrokerError> {
        let (first, count) = match request.queue {
            Some(queue) => (queue.get(), 1),
            None => (0, u32::MAX),
        };
        check_queue(topic, QueueId::new(first))?;
        let mut rows = Vec::new();
        for now in self.progress_in(group, topic, first, count, deadline).await? {
            let QueueProgress { queue, range, committed, next, .. } = now;
            let new = self.offset_of(topic, queue, range, request.to, deadline).await?;
            if !(range.min..=range.max).contains(&new) {
                return Err(self.commit_out_of_range(topic, queue, new, range, deadline).await);
            }
            rows.push(ResetQueue { queue, range, old: committed, from: next, new });
        }
        Ok(rows)
    }

    /// Commits, and waits until that may be said: what was committed before. `None`: a deletion was under way and came
    /// to nothing, so the caller looks everything up again.
    pub(super) async fn try_commit(
        &self,
        group: &GroupEntry,
        commits: &[TopicCommit],
        by: By<'_>,
        deadline: Instant,
    ) -> Result<Option<Vec<Option<QueueOffset>>>, BrokerError> {
        let committed = loop {
            if self.is_draining() {
                return Err(BrokerError::Draining);
            }
            match self.state.offsets.commit(&self.store, group, commits, by) {
                Ok(committed) => break committed,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        match committed {
            Commit::Done { end, old } => {
                for commit in commits {
                    self.acknowledged(&commit.topic, end, deadline).await?;
                }
                let new = commits.iter().flat_map(|commit| &commit.offsets);
                let is_back = |(old, new): (&Option<QueueOffset>, &NewOffset)| {
                    u64::from(old.is_some_and(|old| new.offset < old))
                };
                self.counters.rewinds.add(old.iter().zip(new).map(is_back).sum());
                self.counters.commits.add(1);
                Ok(Some(old))
            }
            Commit::Conflict { topic: id, queue, current, applied } => {
                let Some(commit) = commits.iter().find(|commit| commit.topic.id() == id) else {
                    return Ok(None);
                };
                self.acknowledged(&commit.topic, applied, deadline).await?;
                let topic = commit.topic.name().into();
                Err(BrokerError::OffsetConflict { topic, queue, current })
            }
            Commit::Open { topic: id, queue } => {
                let commit = commits.iter().find(|commit| commit.topic.id() == id);
                let topic = commit.map_or("", |commit| commit.topic.name()).into();
                Err(BrokerError::OpenMessages { topic, queue })
            }
            Commit::Limit => Err(BrokerError::OffsetLimit { limit: Offsets::MAX_ROWS }),
            Commit::Deleted => {
                if !self.state.groups.has(group) {
                    self.settled(self.state.groups.applied(), deadline).await?;
                    return Err(BrokerError::UnknownGroup { name: group.name().into() });
                }
                for commit in commits {
                    self.still_there(&commit.topic, deadline).await?;
                }
                Ok(None)
            }
        }
    }

    /// The offsets by topic, none of them behind the end of its queue.
    async fn checked(
        &self,
        offsets: &[CommitOffset<'_>],
        deadline: Instant,
    ) -> Result<Vec<TopicCommit>, BrokerError> {
        let mut by_topic = BTreeMap::<_, (u32, Vec<NewOffset>)>::new();
        for &CommitOffset { topic, queue, offset, expected, known_queues } in offsets {
            let (known, of_topic) = by_topic.entry(topic).or_insert((u32::MAX, Vec::new()));
            *known = (*known).min(known_queues.unwrap_or(u32::MAX));
            of_topic.push(NewOffset { queue, offset, expected });
        }
        let mut commits = Vec::new();
        for (name, (known, mut offsets)) in by_topic {
            let topic = self.topic(name, deadline).await?;
            offsets.sort_unstable_by_key(|new| new.queue);
            let twice = offsets.windows(2).find_map(|pair| match pair {
                [a, b] if a.queue == b.queue => Some(a.queue),
                _ => None,
            });
            if let Some(queue) = twice {
                return Err(BrokerError::BadRequest { fault: RequestFault::QueueTwice { queue } });
            }
            let mut has_caught_up = false;
            for new in &offsets {
                check_queue(&topic, new.queue)?;
                if new.offset <= self.store.queue_max(topic.handle(), new.queue) {
                    continue;
                }
                if !has_caught_up {
                    // What was acknowledged before this request came counts, dispatched or not; a refusal tells it
                    // too.
                    self.caught_up(&topic, deadline).await;
                    has_caught_up = true;
                }
                let range = self.bounds(&topic, new.queue, deadline).await?;
                if new.offset > range.max {
                    let (queue, offset) = (new.queue, new.offset);
                    return Err(self
                        .commit_out_of_range(&topic, queue, offset, range, deadline)
                        .await);
                }
            }
            // A topic has a queue at least, and nobody knows more than there are.
            let known_queues = known.clamp(1, topic.handle().queues().max(1));
            commits.push(TopicCommit { topic, known_queues, offsets });
        }
        commits.sort_unstable_by_key(|commit| commit.topic.id());
        Ok(commits)
    }

    /// The refusal of an offset, or of a topic that was deleted meanwhile.
    async fn commit_out_of_range(
        &self,
        topic: &TopicEntry,
        queue: QueueId,
        offset: QueueOffset,
        range: QueueRange,
        deadline: Instant,
    ) -> BrokerError {
        if let Err(gone) = self.still_there(topic, deadline).await {
            return gone;
        }
        let (topic, epoch) = (topic.name().into(), self.store.epoch());
        BrokerError::CommitOutOfRange { topic, queue, offset, range, epoch }
    }

    /// A position of a queue that holds `range`, as an offset.
    pub(super) async fn offset_of(
        &self,
        topic: &TopicEntry,
        queue: QueueId,
        range: QueueRange,
        position: Position,
        deadline: Instant,
    ) -> Result<QueueOffset, BrokerError> {
        match position {
            Position::Earliest => Ok(range.min),
            Position::Latest => Ok(range.max),
            Position::Offset(offset) => Ok(offset),
            Position::Time(time) => {
                let found = self.store.offset_at(topic.handle(), queue, time);
                let found =
                    timeout_at(before(deadline), found).await.map_err(|_| BrokerError::Slow)??;
                // The queue went on since the range was looked at; the answer is about that moment.
                Ok(found.clamp(range.min, range.max))
            }
        }
    }

    /// What a queue holds, exactly.
    pub(super) async fn bounds(
        &self,
        topic: &TopicEntry,
        queue: QueueId,
        deadline: Instant,
    ) -> Result<QueueRange, BrokerError> {
        let bounds = self.store.queue_bounds(topic.handle(), queue);
        Ok(timeout_at(before(deadline), bounds).await.map_err(|_| BrokerError::Slow)??)
    }

    /// Waits until all that was acknowledged for a topic can be seen. What lags a little is still true, so a deadline
    /// that ends the wait is no error.
    pub(super) async fn caught_up(&self, topic: &TopicEntry, deadline: Instant) {
        let _ = timeout_at(before(deadline), self.store.caught_up(topic.handle())).await;
    }

    /// Refuses a topic that was deleted meanwhile, once that is durable; waits for the end of a deletion that is half
    /// done.
    pub(super) async fn still_there(
        &self,
        topic: &TopicEntry,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        if topic.handle().is_dead() && !self.state.topics.has(topic) {
            self.settled(self.state.topics.applied(), deadline).await?;
            return Err(BrokerError::NoTopic { name: topic.name().into() });
        }
        Ok(())
    }
}

/// Whether the topic has the queue.
pub(super) fn check_queue(topic: &TopicEntry, queue: QueueId) -> Result<(), BrokerError> {
    let queues = topic.handle().queues();
    if queue.get() >= queues {
        return Err(BrokerError::BadQueue { topic: topic.name().into(), queue, queues });
    }
    Ok(())
}

fn check_caller(caller: Caller<'_>) -> Result<(), BrokerError> {
    let len = u32::try_from(caller.name.len()).unwrap_or(u32::MAX);
    within("bytes in the name of a caller", len, MAX_CALLER)?;
    match caller.name.chars().find(|c| c.is_control()) {
        Some(found) => {
            Err(BrokerError::BadRequest { fault: RequestFault::CallerCharacter { found } })
        }
        None => Ok(()),
    }
}
