//! What a request must come to, by the rules, as things are; and the request itself.

mod batches;
mod groups;
mod offsets;
mod sessions;
mod topics;

use std::collections::BTreeMap;
use std::rc::Rc;

use mainstem::broker::{
    BrokerError, Caller, CommitOffset, Expected, GroupChange, Position, Purge, QueueRange, Receipt,
    RequestFault, ResetQueue, ResetRequest, Run, SendRequest, SessionFault, TopicChanges,
    TypeFault,
};
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{
    Access, Epoch, FlushMode, Force, GroupSettings, InitialPosition, Keep, QueueId, QueueOffset,
    Retention, SessionId, SessionMark, Timestamp, TopicSettings, TopicType,
};

use crate::model::{Answer, Model, Plan, Wait};
use crate::rig::{Dice, late};
use crate::script::{
    Batch, GROUPS, GroupWish, KEYS, Mark, Op, Row, SESSIONS, Share, TAGS, TOPICS, TopicWish,
    Wanted, Where,
};
use crate::world::{self, Effect, Message, Sent, Session, Stored, WINDOW, World, is_met};

/// What a session says of a batch.
pub(crate) enum Verdict {
    /// It is the next, and is stored.
    Next,
    /// It was stored before, here.
    Stored(Stored),
    Refused(SessionFault),
}

/// What a batch in a session is planned as.
struct InSession {
    name: Option<&'static str>,
    mark: SessionMark,
    verdict: Verdict,
}

/// Queues of a topic that a send makes.
const DEFAULT_QUEUES: u32 = 4;

impl Plan {
    fn new(effects: Vec<Effect>, answer: Result<Answer, BrokerError>, wait: Wait) -> Self {
        Self { effects, answer, wait, batch: None, sent: None }
    }

    fn refused(error: BrokerError) -> Self {
        Self::new(Vec::new(), Err(error), Wait::Nothing)
    }
}

/// The place that a share of a queue stands for.
pub(crate) fn place(share: Share, (min, max): (u64, u64)) -> u64 {
    // A little before and a little behind, too.
    let (low, high) = (min.saturating_sub(1), max + 2);
    low + u64::from(share) * (high - low) / 65_536
}

fn queue_range((min, max): (u64, u64)) -> QueueRange {
    QueueRange { min: QueueOffset::new(min), max: QueueOffset::new(max) }
}

fn settings(wish: &TopicWish) -> TopicSettings {
    TopicSettings {
        // Which queue a message group goes to is known here only if there is one.
        queues: if wish.kind == 2 { 1 } else { wish.queues },
        flush: wish.flush,
        topic_type: [TopicType::Mixed, TopicType::Normal, TopicType::Fifo][usize::from(wish.kind)],
        access: Access { read: wish.access != 38, write: wish.access != 39 },
        retention: Retention { time_ms: wish.keep_ms, bytes: wish.keep_bytes },
    }
}

/// What a session says of a batch of so many messages; `None`: of as many as were stored.
pub(crate) fn verdict(
    session: &Session,
    epoch: u64,
    sequence: u64,
    messages: Option<u64>,
) -> Verdict {
    let (current, expected) = (session.epoch, session.last() + 1);
    let oldest = expected.saturating_sub(WINDOW as u64).max(1);
    let fault = if epoch < current {
        SessionFault::Fenced { current }
    } else if epoch > current {
        SessionFault::Ahead { current }
    } else if sequence == 0 {
        SessionFault::NoSequence
    } else if sequence > expected {
        SessionFault::Gap { expected, found: sequence }
    } else if sequence == expected {
        return Verdict::Next;
    } else if sequence < oldest {
        SessionFault::TooOld { oldest, found: sequence }
    } else {
        let stored = &session.stored[sequence as usize - 1];
        let (count, found) = (stored.record.batch.count(), messages);
        match found {
            Some(found) if found != count => {
                SessionFault::Reused { sequence, stored: count as u32, found: found as u32 }
            }
            _ => return Verdict::Stored(stored.clone()),
        }
    };
    Verdict::Refused(fault)
}

impl Model {
    /// Makes a request of a client or an operator.
    pub(crate) fn request(&mut self, op: &Op) {
        match op {
            Op::CreateTopic(topic, wish) => self.create_topic(TOPICS[*topic], wish),
            Op::UpdateTopic { topic, wish, force } => {
                self.update_topic(TOPICS[*topic], wish, *force);
            }
            Op::DeleteTopic(topic) => self.delete_topic(TOPICS[*topic]),
            Op::Purge { topic, queue, up_to } => self.purge(TOPICS[*topic], *queue, *up_to),
            Op::Send { topic, queue, batch, mark, leave } => {
                self.send(TOPICS[*topic], *queue, batch, mark.as_ref(), *leave);
            }
            Op::Flood { topic, kib } => {
                let len = self.setup.segment_size as usize / 4 - 700;
                for seed in 0..(kib << 10) / len as u64 {
                    let batch = Batch { messages: 1, len, seed, grouped: false };
                    self.send(TOPICS[*topic], seed as u32 % 3, &batch, None, false);
                    if self.rig().disk.is_off() {
                        return;
                    }
                }
            }
            Op::Burst { topic, session, batches } => {
                let is_open = self.world.sessions.contains_key(SESSIONS[*session]);
                let batches = if is_open { *batches } else { 1 };
                for seed in 0..u64::from(batches) {
                    let batch = Batch { messages: 1, len: 10, seed, grouped: false };
                    let mark =
                        Mark { session: *session, epochs_back: 0, ahead: 0, same_count: true };
                    self.send(TOPICS[*topic], seed as u32 % 3, &batch, Some(&mark), false);
                    if self.rig().disk.is_off() {
                        return;
                    }
                }
            }
            Op::CreateGroup(group, wish) => self.create_group(GROUPS[*group], wish),
            Op::UpdateGroup(group, wish) => self.update_group(GROUPS[*group], wish),
            Op::DeleteGroup(group) => self.delete_group(GROUPS[*group]),
            Op::Commit { group, rows, leave } => self.commit(GROUPS[*group], rows, *leave),
            Op::Reset { group, topic, queue, to, dry } => {
                self.reset(GROUPS[*group], TOPICS[*topic], *queue, *to, *dry);
            }
            Op::OpenSession(session) => self.open_session(SESSIONS[*session]),
            Op::CloseSession { session, holder } => {
                self.close_session(SESSIONS[*session], *holder);
            }
            look => self.look(look),
        }
    }

    /// The queue that a step means: mostly one that is there.
    pub(crate) fn picked(&self, topic: &str, queue: u32) -> u32 {
        let queues = self.world.topics.get(topic).map_or(0, |topic| topic.settings.queues);
        if queue < 3 && queues > 0 { queue % queues } else { queue }
    }

    /// What broker-wide state waits for before its answer.
    fn settled(&self, wait: Wait) -> Wait {
        if self.is_sync() { wait } else { Wait::Nothing }
    }

    /// What answers a request that names no topic: told once the deletion is durable.
    fn unknown_topic(&self, name: &str) -> Plan {
        let error = BrokerError::NoTopic { name: name.into() };
        Plan::new(Vec::new(), Err(error), self.settled(Wait::Topics))
    }
}

/// Why a topic of these settings does not take a batch.
fn refusal(
    name: &str,
    settings: &TopicSettings,
    queue: Option<u32>,
    is_grouped: bool,
) -> Option<BrokerError> {
    if !settings.access.write {
        return Some(BrokerError::Forbidden { what: "send" });
    }
    let fault = match (settings.topic_type, is_grouped) {
        (TopicType::Normal, true) => Some(TypeFault::GroupOnNormal),
        (TopicType::Fifo, false) => Some(TypeFault::NoGroupOnFifo),
        _ => None,
    };
    if let Some(fault) = fault {
        return Some(BrokerError::TypeConflict { fault });
    }
    let (queue, queues) = (QueueId::new(queue?), settings.queues);
    (queue.get() >= queues).then(|| BrokerError::BadQueue { topic: name.into(), queue, queues })
}

fn unknown_group(name: &str) -> BrokerError {
    BrokerError::UnknownGroup { name: name.into() }
}

fn stored(receipt: &Receipt) -> (Answer, Option<u64>) {
    let answer = Answer::Stored {
        queue: receipt.queue.get(),
        first: receipt.first_queue_offset.get(),
        count: receipt.message_count.into(),
        time: receipt.store_time.get(),
        epoch: receipt.epoch.get(),
        is_duplicate: receipt.is_duplicate,
    };
    (answer, Some(receipt.offset.get()))
}
