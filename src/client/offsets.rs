//! Offsets of consumer groups and what moved them, and of topics by edge and by time.

use super::{CALL_TIMEOUT, Client, ClientError, OffsetRange, within};
use crate::message::{PhysicalOffset, QueueId, QueueOffset, Timestamp};
use crate::proto;
use crate::proto::commit_offset::Condition;
use crate::proto::offset_change::Kind;
use crate::proto::position::{At, Edge};

/// Queues asked for at once.
const PAGE: u32 = 10_000;

/// What a committed offset must be for a commit to take place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is.
    #[default]
    Any,
    /// Nothing is committed.
    Nothing,
    /// This one.
    Offset(QueueOffset),
}

/// An offset to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewCommit<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// One of its queues.
    pub queue: QueueId,
    /// The next offset to consume.
    pub offset: QueueOffset,
    /// What must be committed now.
    pub expected: Expected,
    /// How many queues the topic had when the caller looked where the group begins; at the group's first commit to the
    /// topic those that came since begin at 0. `None`: those that it has at the commit.
    pub known_queues: Option<u32>,
}

/// How far a group is in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueProgress {
    /// The queue.
    pub queue: QueueId,
    /// What can be pulled from it.
    pub range: OffsetRange,
    /// The next offset to consume, if one is committed.
    pub committed: Option<QueueOffset>,
    /// Where the group goes on: the committed offset, else its initial position as of now.
    pub next: QueueOffset,
    /// Messages from the committed offset to the end; without a committed one, from the first that is there.
    pub lag: u64,
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

/// What a reset does to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetQueue {
    /// The queue.
    pub queue: QueueId,
    /// What can be pulled from it.
    pub range: OffsetRange,
    /// What was committed before.
    pub old: Option<QueueOffset>,
    /// Where the group would have gone on without the reset.
    pub from: QueueOffset,
    /// Where it goes on.
    pub new: QueueOffset,
}

/// What a reset does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// In order.
    pub queues: Vec<ResetQueue>,
    /// Messages that the group gets again.
    pub again: u64,
    /// Messages that the group does not get.
    pub skipped: u64,
}

/// Whether a reset is done or only worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Nothing is changed.
    Dry,
    /// It is done.
    Real,
}

/// How a group came to go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A commit, forward or the first one, of somebody who said who he is.
    Commit,
    /// A commit of a lower offset than before.
    Rewind,
    /// A reset, to wherever.
    Reset,
}

/// A change of a queue's committed offset, as the broker remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetChange {
    /// The queue.
    pub queue: QueueId,
    /// When, on the store clock.
    pub time: Timestamp,
    /// How.
    pub kind: ChangeKind,
    /// What was committed before: how far the commits since the change before had gone.
    pub old: Option<QueueOffset>,
    /// What was from then on.
    pub new: QueueOffset,
    /// The address and port that the request came from; a proxy's, if there was one between.
    pub address: Option<String>,
    /// Who did it, as he said himself.
    pub by: Option<String>,
    /// Where the record ends that says it; one for all that was done in one step.
    pub position: PhysicalOffset,
}

impl Client {
    /// Commits offsets of a group, all of them or none; OK means durable by the flush mode of the topics. A commit
    /// whose outcome is unknown can be repeated.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `UnknownTopic`, `BadQueue`, `OffsetOutOfRange` with range and epoch, `Conflict` with
    /// the current value, `OffsetLimit`.
    pub async fn commit(&self, group: &str, offsets: &[NewCommit<'_>]) -> Result<(), ClientError> {
        self.commit_by(group, offsets, "").await
    }

    /// The same of somebody who says who he is, in at most 128 bytes without control characters: it is remembered, for
    /// [`Client::offset_history`]. Not for what commits all the time: 100 changes of a queue are kept.
    ///
    /// # Errors
    /// As [`Client::commit`]; also `BadRequest` and `TooLarge` for such a name.
    pub async fn commit_by(
        &self,
        group: &str,
        offsets: &[NewCommit<'_>],
        by: &str,
    ) -> Result<(), ClientError> {
        let offset = |new: &NewCommit<'_>| proto::CommitOffset {
            topic: new.topic.to_owned(),
            queue: new.queue.get(),
            offset: new.offset.get(),
            known_queues: new.known_queues,
            condition: match new.expected {
                Expected::Any => None,
                Expected::Nothing => Some(Condition::ExpectNone(true)),
                Expected::Offset(offset) => Some(Condition::Expected(offset.get())),
            },
        };
        let request = proto::CommitOffsetsRequest {
            group: group.to_owned(),
            offsets: offsets.iter().map(offset).collect(),
            by: by.to_owned(),
        };
        let answer = self.broker.clone().commit_offsets(within(request, CALL_TIMEOUT)).await;
        self.answer(answer).map(|_| ())
    }

    /// The committed offset of a group in a queue; `None`: nothing is committed.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `UnknownTopic`, `BadQueue`.
    pub async fn committed(
        &self,
        group: &str,
        topic: &str,
        queue: QueueId,
    ) -> Result<Option<QueueOffset>, ClientError> {
        let request = proto::CommittedOffsetsRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            queue: Some(queue.get()),
            first_queue: 0,
            limit: 0,
        };
        let answer = self.broker.clone().committed_offsets(within(request, CALL_TIMEOUT)).await;
        match self.answer(answer) {
            Ok(answer) => {
                Ok(answer.queues.first().and_then(|row| row.committed).map(QueueOffset::new))
            }
            Err(error) if error.reason() == Some(super::Reason::OffsetNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How far a group is in all queues of a topic.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `UnknownTopic`.
    pub async fn progress(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<QueueProgress>, ClientError> {
        let mut queues = Vec::new();
        loop {
            let request = proto::CommittedOffsetsRequest {
                group: group.to_owned(),
                topic: topic.to_owned(),
                queue: None,
                first_queue: u32::try_from(queues.len()).unwrap_or(u32::MAX),
                limit: PAGE,
            };
            let answer = self.broker.clone().committed_offsets(within(request, CALL_TIMEOUT)).await;
            let page = self.answer(answer)?.queues;
            let is_last = page.len() < PAGE as usize;
            queues.extend(page.into_iter().map(progress));
            if is_last {
                return Ok(queues);
            }
        }
    }

    /// A position in all queues of a topic, as offsets. The position is an edge or a time.
    ///
    /// # Errors
    /// Refusals: `UnknownTopic`, `BadRequest` for an offset.
    pub async fn offsets_at(
        &self,
        topic: &str,
        at: Position,
    ) -> Result<Vec<(QueueId, QueueOffset)>, ClientError> {
        let mut queues = Vec::new();
        loop {
            let request = proto::QueryOffsetsRequest {
                topic: topic.to_owned(),
                first_queue: u32::try_from(queues.len()).unwrap_or(u32::MAX),
                limit: PAGE,
                at: Some(position(at)),
            };
            let answer = self.broker.clone().query_offsets(within(request, CALL_TIMEOUT)).await;
            let answer = match self.answer(answer) {
                // As many queues as there are in the pages before.
                Err(error)
                    if error.reason() == Some(super::Reason::BadQueue) && !queues.is_empty() =>
                {
                    return Ok(queues);
                }
                answer => answer?,
            };
            let is_last = answer.queues.len() < PAGE as usize;
            let row =
                |row: proto::QueueOffset| (QueueId::new(row.queue), QueueOffset::new(row.offset));
            queues.extend(answer.queues.into_iter().map(row));
            if is_last {
                return Ok(queues);
            }
        }
    }

    /// Moves a group to another place in one queue or all queues of a topic, all of them or none; [`Run::Dry`] only
    /// says what would be done. It is remembered under `by`, which may be empty. A reset whose outcome is unknown can
    /// be repeated.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `UnknownTopic`, `BadQueue`, `OffsetOutOfRange` with range and epoch, `OffsetLimit`,
    /// `BadRequest` and `TooLarge` for a `by` of more than 128 bytes or with a control character.
    pub async fn reset(
        &self,
        group: &str,
        topic: &str,
        queue: Option<QueueId>,
        to: Position,
        run: Run,
        by: &str,
    ) -> Result<Reset, ClientError> {
        let request = proto::ResetOffsetsRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            queue: queue.map(QueueId::get),
            to: Some(position(to)),
            dry_run: run == Run::Dry,
            by: by.to_owned(),
        };
        let answer = self.admin.clone().reset_offsets(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        let row = |row: proto::ResetQueue| ResetQueue {
            queue: QueueId::new(row.queue),
            range: row.range.map(OffsetRange::from).unwrap_or_default(),
            old: row.old.map(QueueOffset::new),
            from: QueueOffset::new(row.from),
            new: QueueOffset::new(row.new),
        };
        Ok(Reset {
            queues: answer.queues.into_iter().map(row).collect(),
            again: answer.again,
            skipped: answer.skipped,
        })
    }

    /// One page of what moved a group in one queue or all queues of a topic, newest first, and whether there is more
    /// behind the last one of it, `after` which the next page begins: resets, commits that went back, and commits of
    /// somebody who said who he is. Of each queue the last 100, none older than 7 days.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `UnknownTopic`, `BadQueue`.
    pub async fn offset_history(
        &self,
        group: &str,
        topic: &str,
        queue: Option<QueueId>,
        after: Option<&OffsetChange>,
    ) -> Result<(Vec<OffsetChange>, bool), ClientError> {
        let request = proto::ListOffsetHistoryRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            queue: queue.map(QueueId::get),
            after: after.map(|last| proto::OffsetChangePlace {
                position: last.position.get(),
                queue: last.queue.get(),
            }),
            limit: 0,
        };
        let answer = self.admin.clone().list_offset_history(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        Ok((answer.changes.into_iter().map(change).collect(), answer.more))
    }
}

fn change(row: proto::OffsetChange) -> OffsetChange {
    let said = |text: String| (!text.is_empty()).then_some(text);
    OffsetChange {
        queue: QueueId::new(row.queue),
        time: Timestamp::new(row.time_ms),
        kind: match row.kind() {
            Kind::Commit => ChangeKind::Commit,
            Kind::Rewind => ChangeKind::Rewind,
            Kind::Reset => ChangeKind::Reset,
        },
        old: row.old.map(QueueOffset::new),
        new: QueueOffset::new(row.new),
        position: PhysicalOffset::new(row.position),
        address: said(row.address),
        by: said(row.by),
    }
}

fn position(at: Position) -> proto::Position {
    let at = match at {
        Position::Earliest => At::Edge(Edge::Earliest.into()),
        Position::Latest => At::Edge(Edge::Latest.into()),
        Position::Time(time) => At::TimeMs(time.get()),
        Position::Offset(offset) => At::Offset(offset.get()),
    };
    proto::Position { at: Some(at) }
}

pub(super) fn progress(row: proto::QueueProgress) -> QueueProgress {
    QueueProgress {
        queue: QueueId::new(row.queue),
        range: row.range.map(OffsetRange::from).unwrap_or_default(),
        committed: row.committed.map(QueueOffset::new),
        next: QueueOffset::new(row.next),
        lag: row.lag,
        ready: row.ready,
        leased: row.leased,
        waiting: row.waiting,
        lag_ms: row.lag_ms,
    }
}
