//! Producer sessions as a service: opened, closed, listed, described. What they are for is in [`state::sessions`];
//! their batches go the way of every send.
//!
//! [`state::sessions`]: super::state::sessions

use std::time::Duration;

use tokio::time::Instant;

use super::Broker;
use super::error::BrokerError;
use super::state::sessions::{
    Closing, MAX_SESSIONS, Opening, Reach, SessionFault, SessionState, check_name,
};
use super::topics::{MAX_PAGE, within};
use crate::message::SessionId;
use crate::store::AppendError;

/// Sessions in byte order of their names.
#[derive(Debug)]
pub struct SessionPage {
    /// At most as many as were asked for.
    pub sessions: Vec<SessionDescription>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// A session, and how long it has been idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDescription {
    /// The session.
    pub session: SessionState,
    /// Since it was last opened or stored a batch, by the store clock.
    pub idle: Duration,
}

impl Broker {
    /// Opens the producer session of a name: a new one, or the next epoch of the one there is, whose sends are refused
    /// from now on. The sequence to go on with is the last one of the answer plus 1. Idle sessions are closed for it.
    ///
    /// The opening is durable before the answer, whatever the modes say: an epoch or an id that a power cut took back
    /// would be given to a second producer, whose batches would be taken for those of the first.
    ///
    /// # Errors
    /// The session may be at the next epoch all the same if [`BrokerError::stored`] says so; open it again.
    pub async fn open_session(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<SessionState, BrokerError> {
        check_name(name)?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        loop {
            match self.state.sessions.open(&self.store, name) {
                Ok(Opening::Done { session, end, closed }) => {
                    for idle in &closed {
                        tracing::info!(name = %idle, "closed a producer session, idle for 7 days");
                    }
                    self.counters.idle_sessions.add(u64::try_from(closed.len()).unwrap_or(0));
                    self.durable(end, deadline).await?;
                    return Ok(session);
                }
                Ok(Opening::Full) => return Err(SessionFault::Limit { limit: MAX_SESSIONS }.into()),
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Forgets the producer session of a name. With `holder` only if that is still its id and epoch.
    ///
    /// # Errors
    /// The session lives on, unless [`BrokerError::stored`] says otherwise.
    pub async fn close_session(
        &self,
        name: &str,
        holder: Option<(SessionId, u64)>,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        check_name(name)?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let (closed, applied) = loop {
            match self.state.sessions.close(&self.store, name, holder) {
                Ok(done) => break done,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        self.settled(applied, deadline).await?;
        match closed {
            Closing::Done => Ok(()),
            Closing::Refused(fault) => Err(fault.into()),
        }
    }

    /// Up to `limit` producer sessions with names after `after`, in byte order; `limit` is at most 10 000.
    ///
    /// # Errors
    /// `limit` is too large, or what is told is not durable in time.
    pub async fn list_sessions(
        &self,
        after: &str,
        limit: u32,
        deadline: Instant,
    ) -> Result<SessionPage, BrokerError> {
        within("producer sessions in an answer", limit, MAX_PAGE)?;
        let (sessions, more, reach) = self.state.sessions.list(after, limit as usize);
        self.reached(reach, deadline).await?;
        let sessions = sessions.into_iter().map(|session| self.described(session)).collect();
        Ok(SessionPage { sessions, more })
    }

    /// The producer session of a name.
    ///
    /// # Errors
    /// There is none, or what is told is not durable in time.
    pub async fn describe_session(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<SessionDescription, BrokerError> {
        check_name(name)?;
        let (session, reach) = self.state.sessions.get(name);
        self.reached(reach, deadline).await?;
        let session = session.ok_or(SessionFault::Unknown)?;
        Ok(self.described(session))
    }

    /// How many producer sessions there are.
    pub fn sessions(&self) -> usize {
        self.state.sessions.count()
    }

    fn described(&self, session: SessionState) -> SessionDescription {
        let idle = self.store.now().get().saturating_sub(session.used.get());
        SessionDescription { session, idle: Duration::from_millis(idle) }
    }

    /// Waits until what is told of sessions is durable: by the broker's mode, and by those of their batches' topics.
    async fn reached(&self, reach: Reach, deadline: Instant) -> Result<(), BrokerError> {
        self.settled(reach.applied, deadline).await?;
        self.durable(reach.sync_end, deadline).await
    }
}
