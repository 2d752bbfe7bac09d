//! A producer session: batches with numbers, so that one whose outcome is unknown can be sent again and is stored once.
//!
//! | after | the batch | what the handle does |
//! | --- | --- | --- |
//! | OK, also of a repetition | is stored once | takes the next number |
//! | a definite refusal of its only attempt | is not stored | keeps the number for the next batch |
//! | no answer, or *unknown* | may be stored | repeats it with the same number, for [`PATIENCE`] |
//! | [`ClientError::Unsettled`] | may be stored | repeats it first, whenever it is asked for anything |
//!
//! One batch is under way at a time. A handle that was dropped, or a process that died, loses nothing: the next
//! [`Client::open_session`] of the name says which batches are stored.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{CALL_TIMEOUT, Client, ClientError, Reason, Receipt, Retry, Stored, receipt, within};
use crate::message::{QueueId, SessionId};
use crate::proto;

/// How long a batch is sent again and again, unless [`Session::set_patience`] says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The pause before a repetition where the broker names none.
const PAUSE: Duration = Duration::from_millis(100);

/// A producer's name, as long as nobody else opens it.
#[derive(Debug)]
pub struct Session {
    client: Client,
    name: String,
    id: SessionId,
    epoch: u64,
    /// Of the batch that is not settled, else of the next.
    sequence: u64,
    patience: Duration,
    unsettled: Option<Unsettled>,
}

/// A batch on its way.
#[derive(Debug)]
struct Unsettled {
    topic: String,
    queue: Option<QueueId>,
    batch: Bytes,
    /// Whether an attempt has ended without saying that nothing was stored, or is under way.
    may_be_stored: bool,
}

/// A producer session as the broker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerSession {
    /// Its name.
    pub name: String,
    /// Never given twice.
    pub id: SessionId,
    /// Which of its openings may send.
    pub epoch: u64,
    /// Of its last stored batch; 0 without one.
    pub last_sequence: u64,
    /// Since it was last opened or stored a batch.
    pub idle: Duration,
}

impl Client {
    /// Takes a name for one producer; whoever has it is refused with `Fenced` from now on. The numbers go on where the
    /// name's last owner ended: [`Session::next_sequence`] says which of its batches are stored.
    ///
    /// # Errors
    /// Refusals: `BadName`, `SessionLimit`. Without an answer it may be opened all the same; open it again.
    pub async fn open_session(&self, name: &str) -> Result<Session, ClientError> {
        let request = proto::OpenSessionRequest { name: name.to_owned() };
        let answer = self.broker.clone().open_session(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        Ok(Session {
            client: self.clone(),
            name: name.to_owned(),
            id: SessionId::new(answer.id),
            epoch: answer.epoch,
            sequence: answer.next_sequence,
            patience: PATIENCE,
            unsettled: None,
        })
    }

    /// Forgets the producer session of a name, whoever has it.
    ///
    /// # Errors
    /// Refusal: `UnknownSession`.
    pub async fn close_session(&self, name: &str) -> Result<(), ClientError> {
        self.close_session_of(name, None).await
    }

    pub(super) async fn close_session_of(
        &self,
        name: &str,
        holder: Option<(SessionId, u64)>,
    ) -> Result<(), ClientError> {
        let request = proto::CloseSessionRequest {
            name: name.to_owned(),
            id: holder.map(|(id, _)| id.get()),
            epoch: holder.map(|(_, epoch)| epoch),
        };
        let answer = self.broker.clone().close_session(within(request, CALL_TIMEOUT)).await;
        self.answer(answer).map(|_| ())
    }

    /// One page of producer sessions in the order of their names, and whether there are more after the last of them.
    ///
    /// # Errors
    /// As every call.
    pub async fn sessions(&self, after: &str) -> Result<(Vec<ProducerSession>, bool), ClientError> {
        let request = proto::ListSessionsRequest { after: after.to_owned(), limit: 0 };
        let answer = self.admin.clone().list_sessions(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        Ok((answer.sessions.into_iter().map(ProducerSession::from).collect(), answer.more))
    }

    /// The producer session of a name.
    ///
    /// # Errors
    /// Refusal: `UnknownSession`.
    pub async fn describe_session(&self, name: &str) -> Result<ProducerSession, ClientError> {
        let request = proto::DescribeSessionRequest { name: name.to_owned() };
        let answer = self.admin.clone().describe_session(within(request, CALL_TIMEOUT)).await;
        let session = self.answer(answer)?.session;
        session
            .map(ProducerSession::from)
            .ok_or_else(|| self.bad_answer(super::AnswerError::Missing { field: "session" }))
    }
}

impl From<proto::ProducerSession> for ProducerSession {
    fn from(session: proto::ProducerSession) -> Self {
        Self {
            name: session.name,
            id: SessionId::new(session.id),
            epoch: session.epoch,
            last_sequence: session.last_sequence,
            idle: Duration::from_millis(session.idle_ms),
        }
    }
}

impl Session {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names the session for as long as the broker remembers it.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Which of the name's openings this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The number of the next batch, or of the one that is not settled. Right after the opening: all below are stored,
    /// and no batch that an earlier owner sent under this or a higher number ever will be.
    pub fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// How long a batch is sent again and again from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Goes on over another connection, as to a broker that came back at another address.
    pub fn reconnect(&mut self, client: Client) {
        self.client = client;
    }

    /// Stores `batch` once, as [`Client::send`] does; repeats it, under the same number, while its outcome is unknown
    /// or the broker refuses for a reason that passes by itself.
    ///
    /// A batch that is not settled goes first. If this call is given up on (its future is dropped), its batch is not
    /// settled.
    ///
    /// # Errors
    /// `Unsettled`: a batch may be stored or not, this one or an earlier one. Do not send it anew, call
    /// [`Session::settle`]; or open the session again, whose next sequence tells. All others: nothing was stored.
    /// `Fenced`: another producer has the name now. `SequenceGap`: a power cut took acknowledged batches of async
    /// topics; open the session again and send anew what is missing from its next sequence on.
    pub async fn send(
        &mut self,
        topic: &str,
        queue: Option<QueueId>,
        batch: Bytes,
    ) -> Result<Receipt, ClientError> {
        self.settle().await?;
        let topic = topic.to_owned();
        let unsettled = Unsettled { topic, queue, batch, may_be_stored: false };
        self.repeat(unsettled).await
    }

    /// Sends the batch that is not settled again until its outcome is known. `None`: there is no such batch.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub async fn settle(&mut self) -> Result<Option<Receipt>, ClientError> {
        match self.unsettled.take() {
            Some(unsettled) => self.repeat(unsettled).await.map(Some),
            None => Ok(None),
        }
    }

    /// Forgets the session, if it still is this one.
    ///
    /// # Errors
    /// Refusals: `UnknownSession`, `Fenced`.
    pub async fn close(self) -> Result<(), ClientError> {
        self.client.close_session_of(&self.name, Some((self.id, self.epoch))).await
    }

    async fn repeat(&mut self, unsettled: Unsettled) -> Result<Receipt, ClientError> {
        let started = Instant::now();
        let mut may_be_stored = unsettled.may_be_stored;
        loop {
            let request = self.request(&unsettled);
            // Kept here while the answer is awaited: who drops this future leaves the batch unsettled.
            self.unsettled = Some(Unsettled {
                may_be_stored: true,
                topic: unsettled.topic.clone(),
                queue: unsettled.queue,
                batch: unsettled.batch.clone(),
            });
            let answer = self.client.broker.clone().send(within(request, CALL_TIMEOUT)).await;
            let error = match self.client.answer(answer) {
                Ok(answer) => {
                    self.unsettled = None;
                    self.sequence += 1;
                    return Ok(receipt(&answer));
                }
                Err(error) => error,
            };
            may_be_stored |= error.stored() == Stored::Unknown;
            let is_gap = error.reason() == Some(Reason::SequenceGap);
            let pause = match error.retry() {
                // The batches before have answers, so that no gap closes by itself.
                _ if is_gap => None,
                Retry::After(pause) => Some(pause),
                Retry::Unsafe => Some(PAUSE),
                Retry::Never => None,
            };
            if let Some(pause) = pause
                && started.elapsed() + pause < self.patience
            {
                tokio::time::sleep(pause).await;
                continue;
            }
            if may_be_stored && !is_gap {
                return Err(ClientError::Unsettled {
                    sequence: self.sequence,
                    source: Box::new(error),
                });
            }
            self.unsettled = None;
            return Err(error);
        }
    }

    fn request(&self, unsettled: &Unsettled) -> proto::SendRequest {
        proto::SendRequest {
            topic: unsettled.topic.clone(),
            queue: unsettled.queue.map(QueueId::get),
            batch: unsettled.batch.clone(),
            session: Some(proto::SessionMark {
                id: self.id.get(),
                epoch: self.epoch,
                sequence: self.sequence,
            }),
        }
    }
}
