//! A consumer of a group: messages come ahead, one by one, and what becomes of them goes back in the background.
//!
//! | what happens | what the consumer does |
//! | --- | --- |
//! | messages are taken | gives credits for as many, in parts of half of what may come ahead |
//! | a message lies here for three quarters of its lease | gives it back: that does not count as a delivery, and it comes again here or to somebody else of the group |
//! | messages are acknowledged, kept on, given back | sends what there is as one request, at most 16 without an answer |
//! | the connection breaks, the broker stops or is too busy | begins a stream after a pause that grows, for [`ConsumerConfig::patience`]; what came ahead and was not taken is given back first; what has no answer is sent again |
//! | one settlement is refused | that one fails, and it begins a stream |
//! | any other refusal | ends |
//!
//! One task for each consumer, which ends with it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use super::raw::{self, Answers, Requests};
use super::receive::{Filter, Hold, HoldFault, Leased, entry, held, leased, ms};
use super::{AnswerError, Client, ClientError, MAX_ANSWER, Refusal, Retry};
use crate::proto::consume_request::{Open, open::Filter as WireFilter};
use crate::proto::consume_response::Settled;
use crate::proto::{self, ConsumeRequest, ConsumeResponse};
use crate::wire::framed;

const PATH: &str = "/mainstem.v1.Broker/Consume";
/// Receipts of a kind in one request: as many as the broker takes.
const MAX_RECEIPTS: usize = 1_024;
/// Requests without an answer: while they are under way others gather.
const IN_FLIGHT: usize = 16;
/// What is to be settled and was not taken by the task; who settles more waits.
const WAITING: usize = 1_024;
/// The most that may come ahead, which is what a broker lets a stream have.
const MOST_MESSAGES: u32 = 10_000;
const MOST_BYTES: u32 = 64 << 20;
/// The longest lease that a broker gives.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);
/// The first pause before a stream is begun again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause.
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// What a consumer wants, and how much of it ahead.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerConfig<'a> {
    /// Which messages the group wants; the others are finished for it. By default all.
    pub filter: Filter<'a>,
    /// How long nobody else gets a message, from when it comes here: up to 12 hours. By default, and below 1 ms,
    /// 30 s.
    pub invisible: Duration,
    /// Messages that come ahead: 1 to 10 000, other numbers are taken as the nearer of them. By default 256.
    pub prefetch_messages: u32,
    /// Bytes of messages that come ahead, and one message more: 1 to 64 MiB. By default 8 MiB.
    pub prefetch_bytes: u32,
    /// How long it tries again before it ends, counted from the end of the last stream that brought something or stood
    /// for longer than 2 s. By default 60 s: a restart of the broker.
    pub patience: Duration,
}

impl Default for ConsumerConfig<'_> {
    fn default() -> Self {
        Self {
            filter: Filter::All,
            invisible: Duration::from_secs(30),
            prefetch_messages: 256,
            prefetch_bytes: 8 << 20,
            patience: Duration::from_secs(60),
        }
    }
}

/// Gets messages of a topic for a group. Made by [`Client::consumer`].
///
/// Dropped, it ends at once: what was settled and has no answer may be settled or not, and about a second later others
/// of the group get what is not. [`Consumer::close`] waits, and gives back what nobody took.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    settler: Settler,
    invisible: Duration,
}

/// Says what becomes of messages of a consumer, from other tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settler {
    server: Arc<str>,
    commands: mpsc::Sender<Command>,
}

/// What was handed over to be settled. Dropped, it is settled all the same.
#[derive(Debug)]
pub struct Settling<T> {
    server: Arc<str>,
    answer: oneshot::Receiver<Result<T, ClientError>>,
}

impl<T> Settling<T> {
    /// Waits for the broker's answer: it is durable by the flush mode of the topic.
    ///
    /// # Errors
    /// It was refused, or the consumer ended before there was an answer: then it may be settled or not.
    pub async fn done(self) -> Result<T, ClientError> {
        self.answer.await.unwrap_or_else(|_| Err(over(&self.server)))
    }
}

type Answer<T> = oneshot::Sender<Result<T, ClientError>>;
/// The new handle.
type Held = Result<String, HoldFault>;

#[derive(Debug)]
enum Command {
    Ack {
        handle: String,
        answer: Answer<bool>,
    },
    /// `None`: nobody waits for the answer.
    Hold {
        handle: String,
        hold: Hold,
        answer: Option<Answer<Result<String, HoldFault>>>,
    },
    /// Settle all and end.
    Close {
        answer: Answer<()>,
    },
}

/// A message that came ahead.
#[derive(Debug)]
struct Given {
    leased: Leased,
    /// As the broker counts it.
    bytes: u32,
    came: Instant,
}

/// What the consumer and its task share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// For the consumer: something came, or it is over.
    came: Notify,
    /// For the task: credits are due.
    taken: Notify,
    /// For the task: the consumer was dropped.
    dropped: Notify,
}

#[derive(Debug)]
struct State {
    /// Bounded by the credits.
    ahead: VecDeque<Given>,
    /// Taken out of it since the last credits.
    messages: u32,
    bytes: u32,
    /// From so many on of one of them credits are due.
    due: (u32, u32),
    /// Why it is over, to be told once.
    failed: Option<ClientError>,
    is_over: bool,
}

impl Shared {
    /// Nothing panics under the lock, so that it is never poisoned.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn credits_are_due(&self) -> bool {
        self.messages >= self.due.0 || self.bytes >= self.due.1
    }
}

impl Client {
    /// A consumer of `topic` for the group. Must be called on a runtime of tokio. Whether there is a broker, a topic
    /// and a group is told by [`Consumer::next`].
    ///
    /// # Examples
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let data = format!("server.data={}", dir.path().join("data").display());
    /// # let sets = ["server.listen=127.0.0.1:0", "server.http=127.0.0.1:0", "store.segment_size=64MiB", &data];
    /// # let config = mainstem::config::Config::load(None, &sets.map(str::to_owned))?;
    /// # let server = mainstem::server::spawn(config).await?;
    /// # let server_address = server.listening().grpc.to_string();
    /// use std::time::Duration;
    ///
    /// use mainstem::client::{Client, ConsumerConfig, GroupSettings};
    /// use mainstem::format::batch::{BatchBuilder, NewMeta};
    ///
    /// let client = Client::connect(&server_address).await?;
    /// let mut batch = BatchBuilder::new();
    /// batch.push(&NewMeta::default(), b"one book");
    /// batch.push(&NewMeta::default(), b"two pens");
    /// client.send("orders", None, batch.finish()).await?;
    /// client.create_group("billing", &GroupSettings::default()).await?;
    ///
    /// let mut consumer = client.consumer("billing", "orders", ConsumerConfig::default());
    /// let first = consumer.next().await?;
    /// assert_eq!(first.message.body, "one book");
    /// let settling = consumer.ack(&first.handle).await?;
    /// // Until the answer is needed there is no need to wait for it.
    /// let second = consumer.next().await?;
    /// assert_eq!((second.message.body.as_ref(), second.delivery), (&b"two pens"[..], 1));
    /// let longer = consumer.extend(&second.handle, Duration::from_secs(300)).await?.done().await??;
    /// assert!(settling.done().await? && consumer.ack(&longer).await?.done().await?);
    /// consumer.close().await?;
    /// # server.stop().await?;
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
    /// ```
    pub fn consumer(&self, group: &str, topic: &str, config: ConsumerConfig<'_>) -> Consumer {
        let messages = config.prefetch_messages.clamp(1, MOST_MESSAGES);
        let bytes = config.prefetch_bytes.clamp(1, MOST_BYTES);
        // None on the wire is the broker's own.
        let invisible = match config.invisible {
            none if none < Duration::from_millis(1) => ConsumerConfig::default().invisible,
            invisible => invisible,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ahead: VecDeque::new(),
                messages: 0,
                bytes: 0,
                due: (messages.div_ceil(2), bytes.div_ceil(2)),
                failed: None,
                is_over: false,
            }),
            came: Notify::new(),
            taken: Notify::new(),
            dropped: Notify::new(),
        });
        let (sender, commands) = mpsc::channel(WAITING);
        let filter = match config.filter {
            Filter::All => None,
            Filter::Tags(tags) => Some(WireFilter::Tags(tags.to_owned())),
            Filter::Sql(sql) => Some(WireFilter::Sql(sql.to_owned())),
        };
        let task = Task {
            client: self.clone(),
            open: Open {
                group: group.to_owned(),
                topic: topic.to_owned(),
                filter,
                invisible_ms: ms(invisible),
            },
            credits: (messages, bytes),
            patience: config.patience,
            fresh: invisible * 3 / 4,
            shared: Arc::clone(&shared),
            commands,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            number: 0,
            closing: None,
            has_credits: false,
            failing_since: None,
            pause: FIRST_PAUSE,
        };
        tokio::spawn(task.run());
        let settler = Settler { server: Arc::clone(&self.server), commands: sender };
        Consumer { shared, settler, invisible }
    }
}

impl Consumer {
    /// The next message; waits until there is one. May be dropped and called again.
    ///
    /// # Errors
    /// Why the consumer is over: the table at the top. Refusals: `UnknownTopic`, `UnknownGroup`, `GroupDisabled`,
    /// `FilterMismatch`, `BadRequest`, `TooLarge`.
    pub async fn next(&mut self) -> Result<Leased, ClientError> {
        loop {
            let (next, is_due) = {
                let mut state = self.shared.lock();
                let next = self.take(&mut state);
                (next, state.credits_are_due())
            };
            if is_due {
                self.shared.taken.notify_one();
            }
            match next {
                Some(next) => return next,
                None => self.shared.came.notified().await,
            }
        }
    }

    fn take(&self, state: &mut State) -> Option<Result<Leased, ClientError>> {
        while let Some(given) = state.ahead.pop_front() {
            state.messages = state.messages.saturating_add(1);
            state.bytes = state.bytes.saturating_add(given.bytes);
            if given.came.elapsed() < self.invisible {
                return Some(Ok(given.leased));
            }
        }
        if !state.is_over {
            return None;
        }
        Some(Err(state.failed.take().unwrap_or_else(|| over(&self.settler.server))))
    }

    /// Finishes a message for the group. Waits while 1 024 settlements have not left; the answer says whether it is
    /// finished by this handle.
    ///
    /// # Errors
    /// The consumer is over; nothing was handed over.
    pub async fn ack(&self, handle: &str) -> Result<Settling<bool>, ClientError> {
        self.settler.ack(handle).await
    }

    /// Keeps a message for so long from now on. The answer is the new handle; the old one is worth nothing any more.
    /// What is kept on does not end with the consumer. If it had to be sent again, as the first answer was lost, it is
    /// a bad receipt, and the message comes again after that time.
    ///
    /// # Errors
    /// As of [`Consumer::ack`].
    pub async fn extend(
        &self,
        handle: &str,
        time: Duration,
    ) -> Result<Settling<Result<String, HoldFault>>, ClientError> {
        self.settler.hold(handle, Hold::For(time)).await
    }

    /// Gives a message back: it comes again at once, and this delivery does not count.
    ///
    /// # Errors
    /// As of [`Consumer::ack`].
    pub async fn release(
        &self,
        handle: &str,
    ) -> Result<Settling<Result<String, HoldFault>>, ClientError> {
        self.settler.hold(handle, Hold::Undo).await
    }

    /// Settles messages from other tasks.
    pub fn settler(&self) -> Settler {
        self.settler.clone()
    }

    /// Gives back what came ahead and was not taken, waits until all is settled, and ends.
    ///
    /// # Errors
    /// Why not all is settled.
    pub async fn close(self) -> Result<(), ClientError> {
        let (answer, closed) = oneshot::channel();
        let sent = self.settler.commands.send(Command::Close { answer }).await;
        let ended = || Err(over(&self.settler.server));
        match sent {
            Ok(()) => closed.await.unwrap_or_else(|_| ended()),
            Err(_) => {
                let failed = self.shared.lock().failed.take();
                failed.map_or_else(ended, Err)
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.dropped.notify_one();
    }
}

impl Settler {
    /// As [`Consumer::ack`].
    ///
    /// # Errors
    /// The consumer is over; nothing was handed over.
    pub async fn ack(&self, handle: &str) -> Result<Settling<bool>, ClientError> {
        let (answer, settling) = self.settling();
        self.send(Command::Ack { handle: handle.to_owned(), answer }).await?;
        Ok(settling)
    }

    /// Keeps a message on, or gives it back in any of the ways that there are.
    ///
    /// # Errors
    /// The consumer is over; nothing was handed over.
    pub async fn hold(
        &self,
        handle: &str,
        hold: Hold,
    ) -> Result<Settling<Result<String, HoldFault>>, ClientError> {
        let (answer, settling) = self.settling();
        // What the broker would refuse with all that is in the same request.
        if let Hold::For(time) | Hold::RetryAfter(time) = hold
            && time > LONGEST
        {
            // Its receiver is here.
            let _ = answer.send(Ok(Err(HoldFault::TooLong)));
            return Ok(settling);
        }
        let handle = handle.to_owned();
        self.send(Command::Hold { handle, hold, answer: Some(answer) }).await?;
        Ok(settling)
    }

    fn settling<T>(&self) -> (Answer<T>, Settling<T>) {
        let (send, answer) = oneshot::channel();
        (send, Settling { server: Arc::clone(&self.server), answer })
    }

    async fn send(&self, command: Command) -> Result<(), ClientError> {
        self.commands.send(command).await.map_err(|_| over(&self.server))
    }
}

fn over(server: &str) -> ClientError {
    let source = Box::new(Status::cancelled("the consumer is over"));
    ClientError::NoAnswer { server: server.to_owned(), source }
}

/// A request without an answer.
#[derive(Debug, Default)]
struct InFlight {
    number: u64,
    /// Nothing is to come behind its answer.
    no_more: bool,
    acks: Vec<(String, Answer<bool>)>,
    holds: Vec<(String, Hold, Option<Answer<Held>>)>,
}

impl InFlight {
    fn request(&self) -> ConsumeRequest {
        ConsumeRequest {
            number: self.number,
            no_more: self.no_more,
            acks: self.acks.iter().map(|(handle, _)| handle.clone()).collect(),
            extensions: self
                .holds
                .iter()
                .map(|(handle, hold, _)| entry(handle.clone(), *hold))
                .collect(),
            ..ConsumeRequest::default()
        }
    }

    /// What it was made of, in an order that makes it again.
    fn commands(self) -> impl Iterator<Item = Command> {
        let acks = self.acks.into_iter().map(|(handle, answer)| Command::Ack { handle, answer });
        let holds = self.holds.into_iter();
        acks.chain(holds.map(|(handle, hold, answer)| Command::Hold { handle, hold, answer }))
    }

    fn settled(self, settled: Settled) -> Result<(), AnswerError> {
        let is_whole = self.number == settled.number
            && self.acks.len() == settled.finished.len()
            && self.holds.len() == settled.results.len();
        if !is_whole {
            return Err(AnswerError::Stream { what: "an answer is of another request" });
        }
        // Whoever does not wait for an answer any more does not get it.
        for ((_, answer), finished) in self.acks.into_iter().zip(settled.finished) {
            let _ = answer.send(Ok(finished));
        }
        for ((.., answer), result) in self.holds.into_iter().zip(settled.results) {
            let held = held(result)?;
            if let Some(answer) = answer {
                let _ = answer.send(Ok(held));
            }
        }
        Ok(())
    }

    fn refused(self, refusal: &Refusal) {
        let error = || ClientError::Refused(Box::new(refusal.clone()));
        for (_, answer) in self.acks {
            let _ = answer.send(Err(error()));
        }
        for answer in self.holds.into_iter().filter_map(|(.., answer)| answer) {
            let _ = answer.send(Err(error()));
        }
    }
}

/// What keeps a consumer's stream.
struct Task {
    client: Client,
    open: Open,
    credits: (u32, u32),
    patience: Duration,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    /// Not sent, or to be sent again: at most [`WAITING`], what is in flight, and what came ahead.
    waiting: VecDeque<Command>,
    in_flight: VecDeque<InFlight>,
    /// Of the last request.
    number: u64,
    /// What came ahead longer ago is given back, as its lease may be over before somebody takes it.
    fresh: Duration,
    /// Who is to be told that all is settled.
    closing: Option<Answer<()>>,
    /// The stream may bring messages: its broker has credits, or an answer that says so is on its way.
    has_credits: bool,
    failing_since: Option<Instant>,
    pause: Duration,
}

impl Task {
    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let failed = tokio::select! {
            failed = self.play_on() => failed,
            () = shared.dropped.notified() => None,
        };
        let closing = self.closing.take();
        // Nothing is handed over from here on, and who waits for an answer gets none.
        drop(self);
        {
            let mut state = shared.lock();
            state.is_over = true;
            match (failed, closing) {
                (None, Some(closing)) => {
                    let _ = closing.send(Ok(()));
                }
                (Some(error), Some(closing)) => {
                    let _ = closing.send(Err(error));
                }
                (failed, None) => state.failed = failed,
            }
        }
        shared.came.notify_one();
    }

    /// Stream after stream. `None`: all is settled, as was asked for.
    async fn play_on(&mut self) -> Option<ClientError> {
        loop {
            let begun = Instant::now();
            let error = match self.play().await {
                Ok(()) => return None,
                Err(error) => error,
            };
            // One that stood was well, though there was nothing to bring: what ends it begins a new trouble.
            if begun.elapsed() > LAST_PAUSE {
                self.fares_well();
            }
            self.forget_stream(&error);
            if let Err(error) = self.recover(error).await {
                return Some(error);
            }
        }
    }

    /// Whatever fails from now on is something new.
    fn fares_well(&mut self) {
        self.failing_since = None;
        self.pause = FIRST_PAUSE;
    }

    /// What came ahead is to be given back over the next stream, so that it does not count as a delivery; what has no
    /// answer is to be sent again, but for what was refused.
    fn forget_stream(&mut self, error: &ClientError) {
        let refusal = error.refusal();
        let number = refusal.filter(|_| error.retry() == Retry::Never).and_then(|why| why.sequence);
        let mut again = VecDeque::new();
        for request in std::mem::take(&mut self.in_flight) {
            match refusal {
                Some(refusal) if number == Some(request.number) => request.refused(refusal),
                _ => again.extend(request.commands()),
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
        let mut state = self.shared.lock();
        // Where streams break again and again before anything is settled, the rest comes again by itself.
        let room = (WAITING + MOST_MESSAGES as usize).saturating_sub(self.waiting.len());
        let ahead = std::mem::take(&mut state.ahead);
        self.waiting.extend(ahead.into_iter().take(room).map(|given| given_back(given.leased)));
        (state.messages, state.bytes) = (0, 0);
    }

    /// Makes the next stream worth while, or gives the error back.
    async fn recover(&mut self, error: ClientError) -> Result<(), ClientError> {
        let of_request = error.refusal().is_some_and(|refusal| refusal.sequence.is_some());
        let least = match error.retry() {
            Retry::After(pause) => pause,
            // A receipt that is sent again does no harm.
            Retry::Unsafe => Duration::ZERO,
            Retry::Never if of_request => Duration::ZERO,
            Retry::Never => return Err(error),
        };
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.patience {
            return Err(error);
        }
        sleep(self.pause.max(least)).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        Ok(())
    }

    /// One stream, to its end.
    async fn play(&mut self) -> Result<(), ClientError> {
        let requests = Requests::default();
        self.has_credits = self.closing.is_none();
        let (messages, bytes) = if self.has_credits { self.credits } else { (0, 0) };
        let open = Some(self.open.clone());
        let first = ConsumeRequest { open, messages, bytes, ..ConsumeRequest::default() };
        requests.put([framed(&first)]);
        let called = raw::call(self.client.channel.clone(), PATH, requests.body(), MAX_ANSWER);
        let mut answers = called.await.map_err(|status| self.client.ended(status))?;
        let (shared, mut taken) = (Arc::clone(&self.shared), Vec::new());
        loop {
            self.give_back_stale();
            self.send(&requests);
            let is_settled = self.waiting.is_empty() && self.in_flight.is_empty();
            if self.closing.is_some() && !self.has_credits && is_settled {
                requests.finish();
                read_to_end(&mut answers).await;
                return Ok(());
            }
            let oldest = self.shared.lock().ahead.front().map(|given| given.came + self.fresh);
            let room = WAITING.saturating_sub(self.waiting.len());
            tokio::select! {
                answer = answers.next::<ConsumeResponse>() => match answer {
                    Ok(Some(answer)) => self.take(answer)?,
                    Ok(None) => {
                        return Err(self.client.ended(Status::unavailable("the stream was ended")));
                    }
                    Err(status) => return Err(self.client.ended(status)),
                },
                count = self.commands.recv_many(&mut taken, room), if room > 0 => {
                    if count == 0 {
                        // Nobody is left who could take anything.
                        std::future::pending::<()>().await;
                    }
                    taken.drain(..).for_each(|command| self.note(command));
                }
                () = shared.taken.notified() => {}
                () = until(oldest) => {}
            }
        }
    }

    /// Gives back what has lain ahead for so long that others should have it. It may come again.
    fn give_back_stale(&mut self) {
        let mut state = self.shared.lock();
        while state.ahead.front().is_some_and(|given| given.came.elapsed() >= self.fresh)
            && let Some(given) = state.ahead.pop_front()
        {
            state.messages = state.messages.saturating_add(1);
            state.bytes = state.bytes.saturating_add(given.bytes);
            self.waiting.push_back(given_back(given.leased));
        }
    }

    fn note(&mut self, command: Command) {
        let Command::Close { answer } = command else {
            self.waiting.push_back(command);
            return;
        };
        self.closing = Some(answer);
        let ahead = std::mem::take(&mut self.shared.lock().ahead);
        self.waiting.extend(ahead.into_iter().map(|given| given_back(given.leased)));
    }

    /// Sends the credits that are due, and what is to be settled.
    fn send(&mut self, requests: &Requests) {
        if self.closing.is_none() {
            let (messages, bytes) = {
                let mut state = self.shared.lock();
                match state.credits_are_due() {
                    true => (std::mem::take(&mut state.messages), std::mem::take(&mut state.bytes)),
                    false => (0, 0),
                }
            };
            if messages > 0 {
                let credits = ConsumeRequest { messages, bytes, ..ConsumeRequest::default() };
                requests.put([framed(&credits)]);
            }
        }
        let is_to_end = |task: &Self| task.closing.is_some() && task.has_credits;
        while self.in_flight.len() < IN_FLIGHT && (!self.waiting.is_empty() || is_to_end(self)) {
            let mut request = self.gather();
            // What it settles must not come again over this stream.
            request.no_more = is_to_end(self);
            self.has_credits &= !request.no_more;
            requests.put([framed(&request.request())]);
            self.in_flight.push_back(request);
        }
    }

    /// As much of what waits as goes into one request: the broker does its acks first, so those behind something else
    /// are for the next.
    fn gather(&mut self) -> InFlight {
        self.number += 1;
        let mut request = InFlight { number: self.number, ..InFlight::default() };
        while let Some(command) = self.waiting.pop_front() {
            match command {
                Command::Ack { handle, answer }
                    if request.holds.is_empty() && request.acks.len() < MAX_RECEIPTS =>
                {
                    request.acks.push((handle, answer));
                }
                Command::Hold { handle, hold, answer } if request.holds.len() < MAX_RECEIPTS => {
                    request.holds.push((handle, hold, answer));
                }
                later => {
                    self.waiting.push_front(later);
                    break;
                }
            }
        }
        request
    }

    fn take(&mut self, answer: ConsumeResponse) -> Result<(), ClientError> {
        self.fares_well();
        for settled in answer.settled {
            let bad = |source| self.client.bad_answer(source);
            let none = AnswerError::Stream { what: "an answer is of no request" };
            let request = self.in_flight.pop_front().ok_or_else(|| bad(none))?;
            request.settled(settled).map_err(bad)?;
        }
        let came = Instant::now();
        let given = |message: proto::ReceivedMessage| {
            let bytes = u32::try_from(message.batch.len()).unwrap_or(u32::MAX);
            let leased = leased(&self.open.topic, message);
            leased.map(|leased| Given { leased, bytes, came })
        };
        let given: Result<Vec<_>, _> = answer.messages.into_iter().map(given).collect();
        let given = given.map_err(|source| self.client.bad_answer(source))?;
        if given.is_empty() {
            return Ok(());
        }
        if self.closing.is_some() {
            self.waiting.extend(given.into_iter().map(|given| given_back(given.leased)));
            return Ok(());
        }
        self.shared.lock().ahead.extend(given);
        self.shared.came.notify_one();
        Ok(())
    }
}

/// Waits for a time, or for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// All is settled, however it ends.
async fn read_to_end(answers: &mut Answers) {
    while let Ok(Some(_)) = answers.next::<ConsumeResponse>().await {}
}

/// Nobody took it.
fn given_back(leased: Leased) -> Command {
    Command::Hold { handle: leased.handle, hold: Hold::Undo, answer: None }
}
