//! What a broker means: topics, sends, pulls, queries, consumer groups and their offsets over the store.
//!
//! | file | holds |
//! | --- | --- |
//! | [`state`] | the units of state and their one transition function |
//! | `send.rs`, `pull.rs`, `query.rs`, `topics.rs`, `sessions.rs` | the services |
//! | `send_messages.rs` | sends of single messages, and topics for clients that ask for them |
//! | `redrive.rs` | dead letters on their way back |
//! | `clients.rs` | who is connected, and who is told what |
//! | `groups.rs`, `offsets.rs` | consumer groups and their committed offsets as services |
//! | `receive.rs`, `settle.rs` | messages leased to consumers, and what they do with them |
//! | `filters.rs` | conditions that were understood before |
//! | `consume.rs` | both on one stream, with credits |
//! | `tend.rs`, `dead_letter.rs` | what is due again; what was delivered too often |
//! | `waiting.rs` | what waits for another delivery, for operators |
//! | `cut.rs`, `handle.rs` | single messages out of records; signed receipts of leases |
//! | `long_poll.rs` | who is parked at the end of a queue, and what wakes him |
//! | `verify.rs` | a look at the whole store while it serves |
//! | `route.rs`, `names.rs`, `token.rs` | which queue, which names, which page |
//! | `budget.rs`, [`counters`] | bytes in work; what is counted |
//!
//! One task is the broker's own, and its owner runs it: [`Broker::tend_leases`]. Everything else runs on the task of
//! the request, and the store's threads wake it. Calls into the store that block do so for one write of the log at
//! most. Every request has a deadline, and what it may wait for ends [`REPLY_RESERVE`] before it at most, so that the
//! answer still arrives.

mod budget;
mod clients;
mod config;
mod consume;
pub mod counters;
mod cut;
mod dead_letter;
mod error;
mod filters;
mod groups;
mod handle;
mod long_poll;
mod names;
mod offsets;
mod pull;
mod pull_stream;
mod query;
mod receive;
mod redrive;
mod route;
mod send;
mod send_messages;
mod sessions;
mod settle;
pub mod state;
mod tend;
#[cfg(test)]
mod tests;
mod token;
mod topics;
mod unpacked;
mod verify;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use crate::clock::Clock;
use crate::file::disk::Disk;
use crate::message::{Epoch, FlushMode, GroupId, PhysicalOffset, Timestamp, TopicId};
use crate::store::{
    Applier, CloseError, OpenError, ReportLine, StartReport, Store, StoreConfig, StoreStatus,
    Watermarks,
};

// What answers are made of, and filters: the rooms above know the rooms below through the broker only.
pub use crate::filter::{Expression, Language};
pub use crate::format::attributes::{DeadLetter, DeadReason};
pub use crate::format::batch::{BatchError, MetaView, NewMeta, TextField, limits};
pub use crate::store::{Finding, HeldBy, Order, QueueRange, StoredRecord, VerifySummary};

pub use crate::message::TopicSettings;
pub use budget::Permit;
pub use clients::{
    CLIENT_EXPIRY, Client, ClientKind, ClientPage, ClientStream, FilterKind, Introduction,
    MAX_CLIENTS, Subscription,
};
pub use config::BrokerConfig;
pub use consume::{
    ConsumeError, ConsumeRequest, ConsumeStream, Consumed, MAX_CREDIT_BYTES, MAX_CREDIT_MESSAGES,
    OnTheirWay, Settlement,
};
pub use counters::{Certified, Connected, Unserved};
pub use dead_letter::dead_letter;
pub use error::{BrokerError, Reason, RequestFault, Stored, TypeFault};
pub use groups::{FiltersInUse, GroupDescription, GroupPage, GroupTopic, OtherFilter};
pub use names::{GroupNameFault, NameFault};
pub use offsets::{
    CommitOffset, HistoryPage, HistoryRequest, Position, QueuePosition, QueueProgress, ResetQueue,
    ResetRequest, Run,
};
pub use pull::{PullRequest, Pulled, SPLICED};
pub use pull_stream::{Parts, PullStart, PullStream, PullStreamError, PullStreamRequest};
pub use query::{Page, QueriedMessage, QueryRequest, Selector};
pub use receive::{MAX_INVISIBLE, MAX_RECEIVE, ReceiveRequest, Received, ReceivedMessage};
pub use redrive::{OnlySuch, RedriveFault, RedrivePage, RedriveRequest, Redriven};
pub use send::{Receipt, SendRequest, StoredBatch};
pub use send_messages::{NewMessage, SendMessages};
pub use sessions::{SessionDescription, SessionPage};
pub use settle::{ExtendEntry, ExtendFault, Hold};
pub use state::groups::{Group, GroupChange};
pub use state::offsets::{Caller, ChangeKind, Expected, OffsetChange};
pub use state::sessions::{SessionFault, SessionState};
pub use state::topics::{TopicChanges, TopicEntry};
#[cfg(test)]
pub(crate) use tests::stopped_clock::stop_clock;
pub use topics::{
    Purge, QueueDescription, RETENTION_BYTES, RETENTION_MS, TopicDescription, TopicPage,
};
pub use verify::VerifyEvent;
pub use waiting::{
    SettleFault, SettleRequest, SettledMessage, WaitingAction, WaitingMessage, WaitingPage,
    WaitingRequest,
};

/// The longest that an acknowledgement waits for the disk.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer waits until it may go out: longer than those hold their room who do not read.
const REPLY_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of frames that were received and wait for room among what is arriving: one of each call.
const AWAITING_ROOM: u64 = 256 << 20;

/// Streams of batches at once: each keeps some KiB as long as it is open.
const SEND_STREAMS: usize = 16_384;

/// Streams of messages to consumers at once.
const CONSUME_STREAMS: usize = 16_384;

/// Bytes of names that all streams and all known clients together may keep.
const NAMES: u64 = 128 << 20;

/// What is kept of a request's time for its answer; of a short time a quarter, so that something is left to work in.
pub const REPLY_RESERVE: Duration = Duration::from_millis(100);

use budget::Budget;
use clients::Clients;
use counters::Counters;
use filters::Filters;
use handle::Signer;
use state::State;
use unpacked::UnpackedBodies;

/// A running broker. Dropping it does not close the store: call [`Broker::close`].
pub struct Broker {
    store: Store,
    state: Arc<State>,
    /// Set if positions of groups may be missing that damage took: of groups and topics with lower ids than these.
    positions_missing: Option<(GroupId, TopicId)>,
    config: BrokerConfig,
    /// The store's default, which broker-wide state is acknowledged by.
    default_flush: FlushMode,
    draining: watch::Sender<bool>,
    /// Requests that are arriving, and what streams have received and not stored.
    arrivals: Budget,
    /// Received, and not yet counted there for want of room.
    awaiting_room: Budget,
    /// Batches of requests that have arrived.
    sends: Budget,
    /// For one at a time who goes on beyond `arrivals`.
    beyond: Arc<Semaphore>,
    /// Streams of batches.
    send_streams: Arc<Semaphore>,
    consume_streams: Arc<Semaphore>,
    /// Streams of messages since the start. Relaxed: it makes each another one, and orders nothing.
    consume_count: AtomicU64,
    /// Bytes of names that streams and clients keep.
    names: Budget,
    replies: Budget,
    waiters: Arc<Semaphore>,
    queries: Semaphore,
    /// One at a time.
    verifications: Arc<Semaphore>,
    clients: Arc<Clients>,
    /// Bodies of records that were decompressed lately.
    unpacked: UnpackedBodies,
    /// Of the receipts of leases.
    signer: Signer,
    filters: Filters,
    counters: Counters,
    started: Vec<ReportLine>,
    /// When that was, on the clock of leases.
    opened: Timestamp,
}

/// Bytes in work, each kind with a bound of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InWork {
    /// Of requests that are arriving, and of what streams have received and not stored: at most three quarters of
    /// [`BrokerConfig::inflight_send_bytes`]. One message at a time, which is not in this number, may go beyond that.
    pub arriving: u64,
    /// Of frames that were received and wait for room among these, one of each call: at most 256 MiB.
    pub awaiting_room: u64,
    /// Of batches that have arrived otherwise: at most the other quarter.
    pub sends: u64,
    /// Of answers until they have left, with 256 bytes for each record or acknowledgement, but for small ones of calls
    /// that read no messages and for what goes out as it lies in the log's mapping; and of what is decompressed, as
    /// long as it is needed: at most [`BrokerConfig::inflight_reply_bytes`].
    pub replies: u64,
    /// Of what was decompressed lately and is kept for who takes more of it: at most 32 MiB.
    pub unpacked: u64,
    /// Of names of topics that streams keep, beyond the first 2 KiB of each, and of what clients say of themselves: at
    /// most 128 MiB.
    pub names: u64,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What the broker says about itself.
#[derive(Clone, Debug)]
pub struct BrokerStatus {
    /// The store's own account.
    pub store: StoreStatus,
    /// How far the log has come.
    pub watermarks: Watermarks,
    /// The current epoch.
    pub epoch: Epoch,
    /// How many topics there are.
    pub topics: u64,
    /// How many queues they have together.
    pub queues: u64,
    /// What acknowledgements wait for unless the topic says otherwise.
    pub flush_default: FlushMode,
    /// Free bytes below which sends are refused.
    pub disk_reserve: u64,
    /// Which topics keep sealed segments, by name; empty for one that is not known.
    pub held: Vec<(String, HeldBy)>,
}

impl Broker {
    /// Opens the store and brings the state up to its log. Blocks until recovery is through.
    ///
    /// # Errors
    /// The store's.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        store: StoreConfig,
        config: BrokerConfig,
    ) -> Result<(Arc<Self>, StartReport), OpenError> {
        let default_flush = store.flush;
        let state = Arc::new(State::new(clock.now().get()));
        let applier: Arc<State> = Arc::clone(&state);
        let (store, report) = Store::open(disk, clock, store, applier)?;
        Ok((Arc::new(Self::over(store, state, config, default_flush)), report))
    }

    /// Opens a broker whose store has no threads: its workers are stepped by the caller, reads run on the caller.
    ///
    /// # Errors
    /// The store's.
    #[cfg(any(test, feature = "testing"))]
    pub fn open_stepped(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        store: StoreConfig,
        config: BrokerConfig,
    ) -> Result<(Arc<Self>, crate::store::Workers), OpenError> {
        let default_flush = store.flush;
        let state = Arc::new(State::new(clock.now().get()));
        let applier: Arc<State> = Arc::clone(&state);
        let (store, workers) = Store::open_stepped(disk, clock, store, applier)?;
        Ok((Arc::new(Self::over(store, state, config, default_flush)), workers))
    }

    fn over(
        store: Store,
        state: Arc<State>,
        config: BrokerConfig,
        default_flush: FlushMode,
    ) -> Self {
        // Apart, so that what arrives slowly keeps nobody out whose request is there.
        let arrivals = config.inflight_send_bytes / 4 * 3;
        let topics = &state.topics;
        let name = |id| topics.by_id(id).map(|topic| topic.name().to_owned());
        let started = store.start_report().lines(name);
        let may_be_missing = store.state_may_be_missing();
        let positions_missing =
            may_be_missing.then(|| (state.groups.next_id(), state.topics.next_id()));
        Self {
            positions_missing,
            state,
            default_flush,
            draining: watch::Sender::new(false),
            arrivals: Budget::new(arrivals),
            awaiting_room: Budget::new(AWAITING_ROOM),
            sends: Budget::new(config.inflight_send_bytes - arrivals),
            beyond: Arc::new(Semaphore::new(1)),
            send_streams: Arc::new(Semaphore::new(SEND_STREAMS)),
            consume_streams: Arc::new(Semaphore::new(CONSUME_STREAMS)),
            consume_count: AtomicU64::new(0),
            names: Budget::new(NAMES),
            replies: Budget::new(config.inflight_reply_bytes),
            waiters: Arc::new(Semaphore::new(config.max_waiters as usize)),
            queries: Semaphore::new(query::MAX_AT_ONCE),
            verifications: Arc::new(Semaphore::new(1)),
            clients: Arc::default(),
            unpacked: UnpackedBodies::default(),
            signer: Signer::new(store.handle_key()),
            filters: Filters::default(),
            counters: Counters::default(),
            started,
            opened: store.lease_time(),
            store,
            config,
        }
    }

    /// Refuses sends from now on and answers parked pulls at once. Other requests go on being served.
    pub fn drain(&self) {
        self.draining.send_replace(true);
        self.store.wake_all();
    }

    /// Whether [`Broker::drain`] was called.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ends the store: flushed, with a snapshot and a clean mark. Blocks. Call [`Broker::drain`] before, and let
    /// running requests finish.
    ///
    /// # Errors
    /// The store's; the log is as it was.
    pub fn close(&self) -> Result<(), CloseError> {
        self.drain();
        self.store.close()
    }

    /// Ends the store of a broker whose workers are stepped by the caller, as [`Broker::close`] does.
    ///
    /// # Errors
    /// The store's; the log is as it was.
    #[cfg(any(test, feature = "testing"))]
    pub fn close_stepped(&self, workers: crate::store::Workers) -> Result<(), CloseError> {
        self.drain();
        self.store.close_stepped(workers)
    }

    /// Waits until the store is poisoned by a failed sync, after which the process has to end.
    pub async fn failed(&self) {
        self.store.failed().await;
    }

    /// Counts `bytes` of a request that is arriving, together with those of batches in work.
    ///
    /// # Errors
    /// So many are in work already that the request is refused.
    pub(crate) fn receive(&self, bytes: u64) -> Result<Permit, BrokerError> {
        self.arrivals.try_take(bytes).ok_or(BrokerError::Overloaded { what: "bytes to store" })
    }

    /// Counts `bytes` of an answer that is there, as soon as there is room for them.
    ///
    /// # Errors
    /// For 30 s so many were on their way already that it does not go out.
    pub(crate) async fn reply(&self, bytes: u64) -> Result<Permit, BrokerError> {
        let permit = self.replies.take(bytes, Instant::now() + REPLY_PATIENCE).await;
        permit.ok_or(BrokerError::Overloaded { what: "bytes to answer with" })
    }

    /// Counts `bytes` of an answer if there is room for them now.
    pub(crate) fn try_reply(&self, bytes: u64) -> Option<Permit> {
        self.replies.try_take(bytes)
    }

    /// Whether there is hardly any room left for what arrives: then who is slow loses his.
    pub(crate) fn is_pressed(&self) -> bool {
        self.arrivals.is_short()
    }

    /// Whether there is hardly any room left for answers: then who does not take his loses his connection soon.
    pub(crate) fn is_pressed_by_answers(&self) -> bool {
        self.replies.is_short()
    }

    /// Bytes in work now.
    pub fn in_work(&self) -> InWork {
        InWork {
            arriving: self.arrivals.taken(),
            awaiting_room: self.awaiting_room.taken(),
            sends: self.sends.taken(),
            replies: self.replies.taken(),
            unpacked: self.unpacked.bytes(),
            names: self.names.taken(),
        }
    }

    /// The same for one who waits until that many are free, and receives nothing more meanwhile.
    pub(crate) async fn receive_later(
        &self,
        bytes: u64,
        until: Instant,
    ) -> Result<Permit, BrokerError> {
        let permit = self.arrivals.take(bytes, until).await;
        permit.ok_or(BrokerError::Overloaded { what: "bytes to store" })
    }

    /// Counts `bytes` that were received and are not [counted as arriving](Self::receive) yet.
    ///
    /// # Errors
    /// So many wait for room already that the request is refused.
    pub(crate) fn wait_for_room(&self, bytes: u64) -> Result<Permit, BrokerError> {
        let permit = self.awaiting_room.try_take(bytes);
        permit.ok_or(BrokerError::Overloaded { what: "bytes that wait for room" })
    }

    /// Lets its holder receive the rest of a request beyond the budget. There is one, so that of those who all hold
    /// the begin of a request, and wait for the others' room, one can go on.
    pub(crate) async fn receive_beyond(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.beyond).acquire_owned().await {
            Ok(permit) => permit,
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }

    /// A place among the streams of batches, until it is dropped.
    ///
    /// # Errors
    /// So many are open already that no more are.
    pub(crate) fn begin_send_stream(&self) -> Result<OwnedSemaphorePermit, BrokerError> {
        let place = Arc::clone(&self.send_streams).try_acquire_owned();
        place.map_err(|_| BrokerError::Overloaded { what: "streams of batches" })
    }

    /// Counts bytes that a stream keeps as long as it lives, beside what it keeps of batches.
    ///
    /// # Errors
    /// All streams together keep so many already that no more are taken.
    pub(crate) fn keep_names(&self, bytes: u64) -> Result<Permit, BrokerError> {
        let overloaded = BrokerError::Overloaded { what: "names of topics on streams" };
        self.names.try_take(bytes).ok_or(overloaded)
    }

    /// Resolves when [`Broker::drain`] is called.
    pub(crate) async fn drained(&self) {
        let mut draining = self.draining.subscribe();
        // An error: there is nobody left who could drain it.
        let _ = draining.wait_for(|draining| *draining).await;
    }

    /// What time it is on the store clock.
    pub fn now(&self) -> Timestamp {
        self.store.now()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many pulls are parked.
    pub fn waiting(&self) -> usize {
        (self.config.max_waiters as usize).saturating_sub(self.waiters.available_permits())
    }

    /// How many streams of batches are open.
    pub fn send_streams(&self) -> usize {
        SEND_STREAMS.saturating_sub(self.send_streams.available_permits())
    }

    /// What the start found and did, a line each.
    pub fn start_report(&self) -> &[ReportLine] {
        &self.started
    }

    /// How the broker is. Does no I/O beyond asking for free space.
    pub fn status(&self) -> BrokerStatus {
        let (topics, queues) = self.state.topics.counts();
        let store = self.store.status();
        let name = |by: &HeldBy| {
            let topic = self.state.topics.by_id(by.topic);
            topic.map_or_else(String::new, |topic| topic.name().to_owned())
        };
        BrokerStatus {
            held: store.held.iter().map(|by| (name(by), *by)).collect(),
            disk_reserve: self.store.disk_reserve(),
            store,
            watermarks: self.store.watermarks(),
            epoch: self.store.epoch(),
            topics,
            queues,
            flush_default: self.default_flush,
        }
    }

    /// The topic of a name. That there is none is told once the deletion is durable.
    ///
    /// # Errors
    /// There is none.
    async fn topic(&self, name: &str, deadline: Instant) -> Result<Arc<TopicEntry>, BrokerError> {
        if let Some(topic) = self.state.topics.get(name) {
            return Ok(topic);
        }
        names::check_known(name)?;
        // Looked at behind the table: what took the name out is in it.
        self.settled(self.state.topics.applied(), deadline).await?;
        Err(BrokerError::NoTopic { name: name.into() })
    }

    /// Waits until the log has room again for a record of state, at most until the deadline.
    async fn space(&self, deadline: Instant) -> Result<(), BrokerError> {
        match timeout_at(before(deadline), self.store.space_for_state()).await {
            Ok(room) => Ok(room?),
            Err(_) => Err(BrokerError::NoSpace),
        }
    }

    /// The same for messages, which are refused below the reserve of the disk.
    async fn space_for_messages(&self, deadline: Instant) -> Result<(), BrokerError> {
        match timeout_at(before(deadline), self.store.space()).await {
            Ok(room) => Ok(room?),
            Err(_) => Err(BrokerError::NoSpace),
        }
    }

    /// Waits until broker-wide state up to `end` may be revealed: durable, if that is the broker's default.
    async fn settled(&self, end: PhysicalOffset, deadline: Instant) -> Result<(), BrokerError> {
        match self.default_flush {
            FlushMode::Async => Ok(()),
            FlushMode::Sync => self.durable(end, deadline).await,
        }
    }

    /// Refuses to read from a topic that clients may not read, by the settings of now and not of the entry.
    fn check_readable(&self, topic: &TopicEntry) -> Result<(), BrokerError> {
        match self.state.topics.by_id(topic.id()) {
            Some(now) if !now.settings().access.read => {
                Err(BrokerError::Forbidden { what: "read" })
            }
            // One that is gone is told by who reads from it.
            _ => Ok(()),
        }
    }

    /// Waits until the log is on stable media up to `end`, whatever the modes are.
    async fn durable(&self, end: PhysicalOffset, deadline: Instant) -> Result<(), BrokerError> {
        match timeout_at(flush_deadline(deadline), self.store.durable(end)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_poisoned)) => Err(BrokerError::Poisoned),
            Err(_) => Err(BrokerError::FlushTimeout),
        }
    }
}

/// The broker's state before the log is replayed into it, for tools that open a store without a broker.
pub fn empty_state(now: Timestamp) -> Arc<dyn Applier> {
    Arc::new(State::new(now.get()))
}

/// Whether a topic may be made with this name.
///
/// # Errors
/// The first rule that the name breaks.
pub fn check_topic_name(name: &str) -> Result<(), NameFault> {
    names::check_new(name)
}

/// Whether a client of RocketMQ may send to, or ask for, a topic of this name, if it is there.
///
/// # Errors
/// The first rule that the name breaks.
pub fn check_addressed_topic_name(name: &str) -> Result<(), NameFault> {
    names::check_addressed(name)
}

/// Whether a consumer group may be made with this name.
///
/// # Errors
/// The first rule that the name breaks.
pub fn check_group_name(name: &str) -> Result<(), GroupNameFault> {
    names::check_group(name)
}

/// When a request must stop waiting, so that its answer arrives before its deadline.
fn before(deadline: Instant) -> Instant {
    let left = deadline.saturating_duration_since(Instant::now());
    deadline.checked_sub(REPLY_RESERVE.min(left / 4)).unwrap_or(deadline)
}

/// When to stop waiting for the disk.
fn flush_deadline(deadline: Instant) -> Instant {
    before(deadline).min(Instant::now() + FLUSH_TIMEOUT)
}
