//! The task of a producer: batches in their order onto a stream, again and again until each has an outcome.
//!
//! Batches under way have consecutive numbers of the session, from `first` on. What a stream's end says of them:
//!
//! | end of the stream | of what was sent and not acknowledged |
//! | --- | --- |
//! | a refusal that stored nothing | nothing is stored: a batch that is given up leaves its number to the next |
//! | anything else | *uncertain*: each keeps its number, and the broker stores it once |
//!
//! A batch that is uncertain and given up may have used its number. Then, and after a gap (a power cut took
//! acknowledged batches of async topics), the session is opened again: its next sequence says up to where batches are
//! stored, and nothing that was sent before will be.

use std::collections::VecDeque;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::Code;

use super::accepted::Batch;
use super::{Failure, Outcome, ProducerConfig, ProducerError, Shared, longer};
use crate::client::{ClientError, Reason, Receipt, Refusal, Retry, SendStream, Session, Stored};
use crate::format::batch::Compressor;
use crate::message::{QueueId, SessionId, SessionMark};

/// A batch that the task has taken.
struct Underway {
    topic: Arc<str>,
    queue: Option<QueueId>,
    batch: Bytes,
    messages: usize,
    outcome: Arc<Outcome>,
    permits: usize,
    /// When it fails for want of an answer.
    due: Instant,
    /// A stream that it was sent on ended without saying what became of it.
    is_uncertain: bool,
}

/// The task.
pub(super) struct Sender {
    shared: Arc<Shared>,
    config: ProducerConfig,
    /// The session's.
    name: String,
    /// `None`: the session is to be opened before anything is sent.
    mark: Option<(SessionId, u64)>,
    /// The last mark there was.
    last_mark: (SessionId, u64),
    /// Openings since then of which no answer came.
    unanswered: u64,
    /// The number of the first batch under way, or of the next.
    first: u64,
    /// At most `in_flight`.
    underway: VecDeque<Underway>,
    stream: Option<SendStream>,
    /// So many of them are on the stream.
    sent: usize,
    compressor: Compressor,
    /// Kept for its room.
    receipts: Vec<Receipt>,
    pause: Duration,
    timer: Pin<Box<Sleep>>,
    /// Since the last receipt.
    last_error: Option<Arc<ClientError>>,
    /// Batches that have an outcome.
    settle: watch::Sender<u64>,
}

impl Sender {
    pub(super) fn new(
        shared: Arc<Shared>,
        config: ProducerConfig,
        compressor: Compressor,
        session: &Session,
        settle: watch::Sender<u64>,
    ) -> Self {
        let mark = (session.id(), session.epoch());
        Self {
            shared,
            name: session.name().to_owned(),
            mark: Some(mark),
            last_mark: mark,
            unanswered: 0,
            first: session.next_sequence(),
            underway: VecDeque::with_capacity(config.in_flight),
            stream: None,
            sent: 0,
            compressor,
            receipts: Vec::new(),
            pause: config.back_off,
            timer: Box::pin(sleep_until(Instant::now())),
            last_error: None,
            settle,
            config,
        }
    }

    /// Runs until the producer is closed and everything has an outcome.
    pub(super) async fn run(mut self) {
        loop {
            self.take();
            while self.expire() {
                self.take();
            }
            if self.underway.is_empty() {
                if self.shared.accepted().is_done() {
                    break;
                }
                self.idle().await;
            } else if self.stream.is_none() {
                self.open().await;
            } else {
                let ended = match self.put() {
                    Ok(()) => self.wait().await,
                    Err(error) => Err(error),
                };
                self.settle_receipts();
                if let Err(error) = ended {
                    self.ended(error).await;
                }
            }
        }
        if self.config.session.is_none() {
            // Else the broker forgets it when it has been idle for long enough.
            let _ = self.shared.client.close_session_of(&self.name, self.mark).await;
        }
    }

    /// Takes batches as long as there is room under way.
    fn take(&mut self) {
        while self.underway.len() < self.config.in_flight {
            let Some(taken) = self.shared.accepted().take(Instant::now()) else { return };
            let Batch { topic, queue, messages, outcome, permits, since, .. } = taken;
            let count = messages.message_count();
            let batch = messages.finish_compressed(&mut self.compressor);
            self.underway.push_back(Underway {
                topic,
                queue,
                messages: count,
                batch,
                outcome,
                permits,
                due: since + self.config.patience,
                is_uncertain: false,
            });
        }
    }

    /// Gives up the batches whose time is over; whether there were any.
    fn expire(&mut self) -> bool {
        let (now, patience) = (Instant::now(), self.config.patience);
        let mut has_any = false;
        while self.underway.front().is_some_and(|front| front.due <= now) {
            // An answer that comes later is not waited for.
            self.cut();
            let source = self.last_error.clone();
            self.give_up(ProducerError::Expired { patience, source });
            has_any = true;
        }
        has_any
    }

    /// Ends the stream without knowing what became of what was sent on it.
    fn cut(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        self.underway.iter_mut().take(sent).for_each(|batch| batch.is_uncertain = true);
        self.stream = None;
    }

    /// Nothing is to send: waits for something, or for the end of a stream.
    async fn idle(&mut self) {
        let due = self.shared.accepted().next_due();
        let lingered = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        let is_over = tokio::select! {
            () = self.shared.news.notified() => false,
            () = lingered => false,
            _ended = acknowledged(&mut self.stream, &mut self.receipts) => true,
        };
        if is_over {
            // There was nothing on it.
            self.stream = None;
        }
    }

    /// Opens a stream, and the session first if that has to be.
    async fn open(&mut self) {
        let due = self.underway.front().map_or_else(Instant::now, |front| front.due);
        // When the time is over, so is that of the first batch.
        let Ok(opened) = timeout_at(due, self.try_open()).await else { return };
        match opened {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => {
                let is_refused = matches!(error, ClientError::Refused(_));
                if is_refused && error.retry() == Retry::Never && !is_of_session(&error) {
                    let error = self.keep(error);
                    while !self.underway.is_empty() {
                        self.give_up(ProducerError::NotStored(Arc::clone(&error)));
                    }
                } else {
                    self.ended(error).await;
                }
            }
        }
    }

    async fn try_open(&mut self) -> Result<SendStream, ClientError> {
        let client = self.shared.client.clone();
        let (session, epoch) = match self.mark {
            Some(mark) => mark,
            None => {
                let seen = self.check_owner().await?;
                // Until an answer says otherwise: this future may be dropped.
                self.unanswered += 1;
                let opened = client.open_session(&self.name).await;
                let opened = opened.inspect_err(|error| {
                    if error.stored() == Stored::No {
                        self.unanswered -= 1;
                    }
                })?;
                let mark = (opened.id(), opened.epoch());
                let is_another = mark.0 != self.last_mark.0;
                let next = opened.next_sequence();
                // It was closed meanwhile, and has forgotten what it stored; or it was opened between the look and this
                // opening, and what is stored under these numbers may be another producer's.
                if is_another || was_opened_between(seen, mark.1) && next > self.first {
                    self.give_up_uncertain();
                }
                self.unanswered = 0;
                (self.mark, self.last_mark) = (Some(mark), mark);
                // None of the batches under way is stored: they take the numbers that come next. Else some are, under
                // the numbers that they have.
                self.first = if self.has_uncertain() { self.first.min(next) } else { next };
                mark
            }
        };
        client.send_stream(Some(SessionMark { session, epoch, sequence: self.first })).await
    }

    /// Whether batches under way may be stored. They are the first.
    fn has_uncertain(&self) -> bool {
        self.underway.front().is_some_and(|front| front.is_uncertain)
    }

    /// A session that another producer has opened since is not taken back. Returns the epoch it has; `None`: it is
    /// closed, or of a name that nobody else has.
    async fn check_owner(&mut self) -> Result<Option<u64>, ClientError> {
        if self.config.session.is_none() {
            return Ok(None);
        }
        let (id, epoch) = self.last_mark;
        match self.shared.client.describe_session(&self.name).await {
            Ok(found) if found.id != id || found.epoch > epoch + self.unanswered => {
                let message = format!("the session `{}` was opened by another producer", self.name);
                let refusal = Refusal::new(Code::FailedPrecondition, Reason::Fenced, message);
                Err(ClientError::Refused(Box::new(refusal)))
            }
            Ok(found) => {
                // An opening that had no answer, or somebody else's: what is stored may not be what was sent here.
                if found.epoch > epoch && found.last_sequence >= self.first {
                    self.give_up_uncertain();
                }
                Ok(Some(found.epoch))
            }
            // It was closed: it begins anew.
            Err(error) if error.reason() == Some(Reason::UnknownSession) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts what is not on the stream yet onto it.
    fn put(&mut self) -> Result<(), ClientError> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while let Some(batch) = self.underway.get(self.sent) {
            if !stream.takes(&batch.topic) {
                // A stream has only so many topics: another one, when this one has acknowledged everything.
                if self.sent == 0 {
                    self.stream = None;
                }
                return Ok(());
            }
            stream.put(&batch.topic, batch.queue, batch.batch.clone())?;
            self.sent += 1;
        }
        Ok(())
    }

    /// Waits for receipts, for a batch to take, or for the time of one to be over.
    async fn wait(&mut self) -> Result<(), ClientError> {
        if self.stream.is_none() {
            return Ok(());
        }
        let has_room = self.underway.len() < self.config.in_flight;
        let lingered = if has_room { self.shared.accepted().next_due() } else { None };
        let front = self.underway.front().map(|front| front.due);
        if let Some(due) = [lingered, front].into_iter().flatten().min()
            // Early is well: a timer that was set before is set anew when it has fired.
            && (self.timer.is_elapsed() || self.timer.deadline() > due)
        {
            self.timer.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            ended = acknowledged(&mut self.stream, &mut self.receipts) => ended,
            () = self.shared.news.notified(), if has_room => Ok(()),
            () = &mut self.timer => Ok(()),
        }
    }

    fn settle_receipts(&mut self) {
        if self.receipts.is_empty() {
            return;
        }
        self.pause = self.config.back_off;
        self.last_error = None;
        let mut permits = 0;
        let mut batches = 0;
        for receipt in self.receipts.drain(..) {
            // A stream acknowledges no more than was put on it.
            let Some(batch) = self.underway.pop_front() else { break };
            self.first += 1;
            self.sent = self.sent.saturating_sub(1);
            permits += batch.permits;
            batches += 1;
            let _ = batch.outcome.set(Ok(receipt));
        }
        self.shared.room.add_permits(permits);
        self.settle.send_modify(|settled| *settled += batches);
    }

    /// A stream has ended, or could not be opened.
    async fn ended(&mut self, error: ClientError) {
        if error.stored() == Stored::Unknown {
            self.cut();
        }
        self.stream = None;
        self.sent = 0;
        let error = self.keep(error);
        let sequence = error.refusal().and_then(|refusal| refusal.sequence);
        match error.reason() {
            Some(Reason::Fenced) if self.config.session.is_some() => return self.die(error),
            // Nobody else has the name: an opening of its own that came late.
            Some(Reason::Fenced) => self.mark = None,
            Some(Reason::SequenceGap) => self.mark = None,
            // The numbers of this session are not where they were thought to be: nothing of these batches is stored.
            // BAD_REQUEST: its epoch is above the broker's, which came back as it was before the session was opened.
            Some(Reason::SequenceReused | Reason::SequenceTooOld | Reason::BadRequest)
                if !self.has_uncertain() =>
            {
                self.mark = None;
            }
            Some(Reason::UnknownSession) => {
                self.mark = None;
                self.give_up_uncertain();
            }
            _ if sequence == Some(self.first) && error.retry() == Retry::Never => {
                if let Some(front) = self.underway.front()
                    && error.reason() == Some(Reason::BadQueue)
                {
                    self.shared.forget_queues_of(&front.topic);
                }
                return self.give_up(ProducerError::NotStored(error));
            }
            _ => {}
        }
        let named = error.refusal().and_then(|refusal| refusal.retry_after);
        let pause = named.unwrap_or(self.pause);
        self.pause = longer(self.pause);
        let until = Instant::now() + pause;
        sleep_until(self.underway.front().map_or(until, |front| front.due.min(until))).await;
    }

    fn keep(&mut self, error: ClientError) -> Arc<ClientError> {
        let error = Arc::new(error);
        self.last_error = Some(Arc::clone(&error));
        error
    }

    /// The first batch fails: with `error`, unless it may be stored. No stream is there.
    fn give_up(&mut self, error: ProducerError) {
        let Some(batch) = self.underway.pop_front() else { return };
        let error = if batch.is_uncertain {
            self.first += 1;
            self.mark = None;
            ProducerError::Unsettled { source: self.last_error.clone() }
        } else {
            error
        };
        self.fail(&batch.topic, batch.messages, batch.permits, &batch.outcome, error);
    }

    /// The batches that may be stored fail.
    fn give_up_uncertain(&mut self) {
        while self.has_uncertain() {
            self.give_up(ProducerError::Closed);
        }
    }

    fn fail(
        &mut self,
        topic: &str,
        messages: usize,
        permits: usize,
        outcome: &Outcome,
        error: ProducerError,
    ) {
        self.shared.accepted().failed(messages, &error);
        if let Some(listener) = &self.config.on_failure {
            let failure = Failure { topic, messages, error: &error };
            // A listener that panics hears of nothing more: the outcomes of all others do not hang on it.
            if catch_unwind(AssertUnwindSafe(|| (listener.0)(&failure))).is_err() {
                self.config.on_failure = None;
            }
        }
        let _ = outcome.set(Err(error));
        self.shared.room.add_permits(permits);
        self.settle.send_modify(|settled| *settled += 1);
    }

    /// Another producer has the session.
    fn die(&mut self, error: Arc<ClientError>) {
        self.fail_all(&ProducerError::NotStored(error));
    }

    /// Everything fails, and nothing more is accepted.
    fn fail_all(&mut self, error: &ProducerError) {
        self.shared.close(error.clone());
        self.cut();
        while !self.underway.is_empty() {
            self.give_up(error.clone());
        }
        loop {
            // Not in the head of a loop: the lock would be held in its body.
            let taken = self.shared.accepted().take(Instant::now());
            let Some(Batch { topic, messages, outcome, permits, .. }) = taken else { break };
            self.fail(&topic, messages.message_count(), permits, &outcome, error.clone());
        }
    }
}

impl Drop for Sender {
    /// At the end there is nothing left; a runtime that ends before tells those who wait.
    fn drop(&mut self) {
        self.fail_all(&ProducerError::Closed);
    }
}

/// Whether a refusal is about who has the session, and not about what is sent.
fn is_of_session(error: &ClientError) -> bool {
    matches!(error.reason(), Some(Reason::Fenced | Reason::UnknownSession))
}

/// Whether somebody opened a session after it was `seen` with an epoch and before it was `opened` with another: each
/// opening is the next epoch.
fn was_opened_between(seen: Option<u64>, opened: u64) -> bool {
    seen.is_some_and(|seen| opened > seen.saturating_add(1))
}

/// Waits for receipts of a stream, if there is one.
async fn acknowledged(
    stream: &mut Option<SendStream>,
    receipts: &mut Vec<Receipt>,
) -> Result<(), ClientError> {
    match stream {
        Some(stream) => stream.acknowledged(receipts).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_the_next_after_the_look_unless_somebody_came_between() {
        assert!(!was_opened_between(None, 9), "nobody else has the name");
        assert!(!was_opened_between(Some(4), 5));
        assert!(was_opened_between(Some(4), 6));
        assert!(!was_opened_between(Some(4), 1), "it was closed, and begins anew");
    }
}
