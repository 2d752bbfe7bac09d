//! Who is connected through a protocol whose clients say who they are: kind, language, group, subscriptions.
//!
//! Nothing of it is state: it is gone with the process, and clients are served whether they are known here or not. A
//! client is known from what it says of itself until it says goodbye, or is silent for [`CLIENT_EXPIRY`] without a
//! stream for commands.
//!
//! | bound | value | when it is reached |
//! | --- | --- | --- |
//! | clients | [`MAX_CLIENTS`] | the silent ones go; without any the new one is served and not listed |
//! | bytes of names and expressions | those of all streams' names together | the same |
//! | streams of a client that get commands | [`MAX_STREAMS`] | the oldest one gets none any more |
//!
//! What is leased to a client for as long as it lives ends when it is silent for [`SILENCE`], when its last stream is
//! closed and nothing is heard of it for [`RETURN`], or when it says goodbye. After a start each has [`SILENCE`] to
//! make itself known again. What is leased to a stream of messages ends with the stream; those of before a start do not
//! come back, but their consumers may, and finish what they have within the same time.
//!
//! One mutex, held for a look-up or a walk; nobody waits under it. Who holds a stream is told of changes by a wake-up
//! that is never lost and never counted: many changes before he looks are one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::budget::Permit;
use super::error::BrokerError;
use super::topics::{MAX_PAGE, within};
use super::{Broker, Budget};
use crate::sync::{Mutex, lock};

/// The most clients that are known at once.
pub const MAX_CLIENTS: usize = 100_000;

/// How long a client may be silent, without a stream, before it is forgotten.
pub const CLIENT_EXPIRY: Duration = Duration::from_secs(120);

/// How long a client may be silent before what is leased to it for as long as it lives is over.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a client may be silent behind the end of its last stream before the same.
const RETURN: Duration = Duration::from_secs(15);

/// The most streams of a client that can get commands.
const MAX_STREAMS: usize = 16;

/// About what a client costs beside its texts.
const ENTRY_COST: usize = 512;

/// What a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// Sends.
    Producer,
    /// Receives and hands messages to a listener.
    PushConsumer,
    /// Receives when its program says so.
    SimpleConsumer,
    /// Reads queues by offsets.
    PullConsumer,
    /// As a push consumer, of lite topics.
    LitePushConsumer,
    /// As a simple consumer, of lite topics.
    LiteSimpleConsumer,
}

/// The language of a subscription's expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FilterKind {
    /// Tags, joined by `||`.
    Tags,
    /// A condition in SQL92.
    Sql,
}

/// A topic that a consumer wants messages of, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The topic's name.
    pub topic: String,
    /// The language of the expression.
    pub kind: FilterKind,
    /// As the client wrote it.
    pub expression: String,
}

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// What it is for.
    pub kind: ClientKind,
    /// The language that it is written in, as it calls it.
    pub language: String,
    /// Of its library.
    pub version: String,
    /// The machine that it runs on, as it calls it.
    pub hostname: String,
    /// The consumer group; producers have none.
    pub group: Option<String>,
    /// The topics that a producer has named.
    pub topics: Vec<String>,
    /// The topics that a consumer has named.
    pub subscriptions: Vec<Subscription>,
}

impl Introduction {
    fn bytes(&self) -> u64 {
        let texts = [&self.language, &self.version, &self.hostname];
        let texts: usize = texts.iter().map(|text| text.len()).sum();
        let group = self.group.as_ref().map_or(0, String::len);
        let topics: usize = self.topics.iter().map(|topic| topic.len() + 24).sum();
        let subscribed = |one: &Subscription| one.topic.len() + one.expression.len() + 56;
        let subscriptions: usize = self.subscriptions.iter().map(subscribed).sum();
        let bytes = ENTRY_COST + texts + group + topics + subscriptions;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    fn names_topic(&self, topic: &str) -> bool {
        self.topics.iter().any(|named| named == topic)
            || self.subscriptions.iter().any(|one| one.topic == topic)
    }
}

/// A client at one moment.
#[derive(Clone, Debug)]
pub struct Client {
    /// How it calls itself.
    pub id: Arc<str>,
    /// What it said of itself last.
    pub introduction: Arc<Introduction>,
    /// Where its last call came from.
    pub address: Option<SocketAddr>,
    /// Since it was first heard of.
    pub age: Duration,
    /// Since it was last heard of.
    pub idle: Duration,
    /// How many streams it has over which it gets commands.
    pub streams: usize,
}

/// Clients in byte order of their ids.
#[derive(Debug)]
pub struct ClientPage {
    /// At most as many as were asked for.
    pub clients: Vec<Client>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// A stream of a client, from its opening until it is dropped. What is sent over it is its holder's matter.
#[derive(Debug)]
pub struct ClientStream {
    clients: Arc<Clients>,
    id: Arc<str>,
    waker: Arc<Notify>,
}

impl ClientStream {
    /// Resolves when the group or a topic that the client has named changed, if this is the stream over which the
    /// client last introduced itself. May be dropped and called again.
    pub async fn changed(&self) {
        self.waker.notified().await;
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.clients.closed(&self.id, &self.waker);
    }
}

/// A stream that messages are leased to for as long as it lasts. Dropped, what it has and did not finish is over soon.
#[derive(Debug)]
pub(super) struct LastingStream {
    clients: Arc<Clients>,
    id: String,
}

impl LastingStream {
    /// What leases know it by, in the place of a client's id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for LastingStream {
    fn drop(&mut self) {
        let hash = hash_of(&self.id);
        let mut known = lock(&self.clients.known);
        known.lasting.remove(&hash);
        self.clients.leaves(&mut known, hash);
    }
}

/// All clients.
#[derive(Debug)]
pub(crate) struct Clients {
    known: Mutex<Known>,
    since: Instant,
}

impl Default for Clients {
    fn default() -> Self {
        Self { known: Mutex::default(), since: Instant::now() }
    }
}

/// What a client is known by in leases, never 0.
pub(crate) fn hash_of(id: &str) -> u64 {
    xxh3_64(id.as_bytes()).max(1)
}

#[derive(Debug, Default)]
struct Known {
    /// In order, for pages.
    by_id: BTreeMap<Arc<str>, Entry>,
    /// Of two with one hash the later one.
    by_hash: HashMap<u64, Arc<str>, foldhash::fast::RandomState>,
    /// Hashes of those that said goodbye while others may still return from before the start.
    left: HashSet<u64, foldhash::fast::RandomState>,
    /// Hashes of streams that messages are leased to. Bounded by who opens them.
    lasting: HashSet<u64, foldhash::fast::RandomState>,
    /// When silent ones were last looked for.
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    introduction: Arc<Introduction>,
    address: Option<SocketAddr>,
    since: Instant,
    seen: Instant,
    /// Nothing was heard of it since its last stream ended.
    is_cut_off: bool,
    /// The one over which it introduced itself last is the last.
    streams: Vec<Arc<Notify>>,
    _bytes: Permit,
}

impl Entry {
    fn is_gone(&self, now: Instant) -> bool {
        self.streams.is_empty() && now.saturating_duration_since(self.seen) > CLIENT_EXPIRY
    }

    fn lives(&self, now: Instant) -> bool {
        let silence = if self.is_cut_off { RETURN } else { SILENCE };
        now.saturating_duration_since(self.seen) <= silence
    }
}

impl Known {
    fn sweep(&mut self, now: Instant) {
        self.swept = Some(now);
        let by_hash = &mut self.by_hash;
        self.by_id.retain(|id, entry| {
            if entry.is_gone(now) {
                by_hash.remove(&hash_of(id));
            }
            !entry.is_gone(now)
        });
    }

    fn is_due(&self, now: Instant) -> bool {
        self.swept.is_none_or(|swept| now.saturating_duration_since(swept) > CLIENT_EXPIRY)
    }
}

impl Clients {
    fn introduce(
        &self,
        id: &str,
        introduction: Introduction,
        address: Option<SocketAddr>,
        stream: Option<&Arc<Notify>>,
        names: &Budget,
    ) -> bool {
        let now = Instant::now();
        let mut known = lock(&self.known);
        if known.is_due(now) {
            known.sweep(now);
        }
        let bytes = introduction.bytes() + u64::try_from(id.len()).unwrap_or(u64::MAX);
        let permit = |known: &Known| {
            let has_room = known.by_id.len() < MAX_CLIENTS || known.by_id.contains_key(id);
            names.try_take(bytes).filter(|_| has_room)
        };
        let permit = permit(&known).or_else(|| {
            known.sweep(now);
            permit(&known)
        });
        let Some(permit) = permit else { return false };
        let (since, mut streams) = match known.by_id.remove(id) {
            Some(old) => (old.since, old.streams),
            None => (now, Vec::new()),
        };
        if let Some(stream) = stream {
            streams.retain(|other| !Arc::ptr_eq(other, stream));
            if streams.len() >= MAX_STREAMS {
                streams.remove(0);
            }
            streams.push(Arc::clone(stream));
        }
        let introduction = Arc::new(introduction);
        let (seen, is_cut_off) = (now, false);
        let entry =
            Entry { introduction, address, since, seen, is_cut_off, streams, _bytes: permit };
        let id: Arc<str> = id.into();
        known.left.remove(&hash_of(&id));
        known.by_hash.insert(hash_of(&id), Arc::clone(&id));
        known.by_id.insert(id, entry);
        true
    }

    /// How many are known; of those silent for too long some may still count for as long again.
    fn count(&self) -> usize {
        let now = Instant::now();
        let mut known = lock(&self.known);
        if known.is_due(now) {
            known.sweep(now);
        }
        known.by_id.len()
    }

    fn seen(&self, id: &str) -> Option<Arc<Introduction>> {
        let now = Instant::now();
        let mut known = lock(&self.known);
        let entry = known.by_id.get_mut(id).filter(|entry| !entry.is_gone(now))?;
        (entry.seen, entry.is_cut_off) = (now, false);
        Some(Arc::clone(&entry.introduction))
    }

    /// Whether the client of a hash lives, as far as leases go.
    pub(super) fn lives(&self, hash: u64) -> bool {
        let now = Instant::now();
        let known = lock(&self.known);
        if known.lasting.contains(&hash) {
            return true;
        }
        let entry = known.by_hash.get(&hash).and_then(|id| known.by_id.get(id));
        match entry {
            Some(entry) => entry.lives(now),
            None => self.may_return(now) && !known.left.contains(&hash),
        }
    }

    /// Whether clients of before the start have not had the time to come back.
    fn may_return(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) <= SILENCE
    }

    fn forget(&self, id: &str) -> bool {
        let hash = hash_of(id);
        let mut known = lock(&self.known);
        known.by_hash.remove(&hash);
        self.leaves(&mut known, hash);
        known.by_id.remove(id).is_some()
    }

    /// Who has this hash does not come back.
    fn leaves(&self, known: &mut Known, hash: u64) {
        if !self.may_return(Instant::now()) {
            known.left = HashSet::default();
        } else if known.left.len() < MAX_CLIENTS {
            known.left.insert(hash);
        }
    }

    /// A stream that messages can be leased to. Its id is no other stream's and no client's, also after a start.
    pub(super) fn lasting(self: &Arc<Self>, id: String) -> LastingStream {
        lock(&self.known).lasting.insert(hash_of(&id));
        LastingStream { clients: Arc::clone(self), id }
    }

    fn closed(&self, id: &str, waker: &Arc<Notify>) {
        let now = Instant::now();
        if let Some(entry) = lock(&self.known).by_id.get_mut(id) {
            let before = entry.streams.len();
            entry.streams.retain(|other| !Arc::ptr_eq(other, waker));
            if entry.streams.len() < before {
                entry.seen = now;
                entry.is_cut_off = entry.streams.is_empty();
            }
        }
    }

    fn tell(&self, is_meant: impl Fn(&Introduction) -> bool) {
        let known = lock(&self.known);
        for entry in known.by_id.values().filter(|entry| is_meant(&entry.introduction)) {
            if let Some(newest) = entry.streams.last() {
                newest.notify_one();
            }
        }
    }

    /// Tells the clients of a group that it changed.
    pub(super) fn group_changed(&self, group: &str) {
        self.tell(|client| client.group.as_deref() == Some(group));
    }

    /// Tells the clients that have named a topic that it changed.
    pub(super) fn topic_changed(&self, topic: &str) {
        self.tell(|client| client.names_topic(topic));
    }
}

impl Broker {
    /// A stream over which the client of this id is to get commands, once it has introduced itself over it.
    pub fn open_client_stream(&self, id: &str) -> ClientStream {
        let (clients, waker) = (Arc::clone(&self.clients), Arc::default());
        ClientStream { clients, id: id.into(), waker }
    }

    /// Notes what a client says of itself, in the place of what it said before; with the stream that it said it over.
    /// Returns whether it is known now: it is not if there are too many.
    pub fn introduce_client(
        &self,
        id: &str,
        introduction: Introduction,
        address: Option<SocketAddr>,
        stream: Option<&ClientStream>,
    ) -> bool {
        let stream = stream.map(|stream| &stream.waker);
        self.clients.introduce(id, introduction, address, stream, &self.names)
    }

    /// Notes a sign of life of a client. Returns what it said of itself, if it is known.
    pub fn client_lives(&self, id: &str) -> Option<Arc<Introduction>> {
        self.clients.seen(id)
    }

    /// Forgets a client that says goodbye; what is leased to it for as long as it lives is over soon. Returns whether
    /// it was known.
    pub fn forget_client(&self, id: &str) -> bool {
        self.clients.forget(id)
    }

    /// How many clients are known. One that is silent for longer than [`CLIENT_EXPIRY`] counts for twice that at most.
    pub fn clients(&self) -> usize {
        self.clients.count()
    }

    /// Up to `limit` clients with ids after `after`, in byte order; `limit` is at most 10 000.
    ///
    /// # Errors
    /// `limit` is too large.
    pub fn list_clients(&self, after: &str, limit: u32) -> Result<ClientPage, BrokerError> {
        within("clients in an answer", limit, MAX_PAGE)?;
        let now = Instant::now();
        let known = lock(&self.clients.known);
        let behind = known.by_id.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let mut living = behind.filter(|(_, entry)| !entry.is_gone(now));
        let clients =
            living.by_ref().take(limit as usize).map(|(id, entry)| client(id, entry, now));
        Ok(ClientPage { clients: clients.collect(), more: living.next().is_some() })
    }

    /// The client of an id.
    ///
    /// # Errors
    /// It is not known, or no more.
    pub fn describe_client(&self, id: &str) -> Result<Client, BrokerError> {
        let now = Instant::now();
        let known = lock(&self.clients.known);
        let entry = known.by_id.get_key_value(id).filter(|(_, entry)| !entry.is_gone(now));
        entry.map(|(id, entry)| client(id, entry, now)).ok_or(BrokerError::UnknownClient)
    }
}

fn client(id: &Arc<str>, entry: &Entry, now: Instant) -> Client {
    Client {
        id: Arc::clone(id),
        introduction: Arc::clone(&entry.introduction),
        address: entry.address,
        age: now.saturating_duration_since(entry.since),
        idle: now.saturating_duration_since(entry.seen),
        streams: entry.streams.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduction(group: &str, topics: usize) -> Introduction {
        Introduction {
            kind: ClientKind::PushConsumer,
            language: "JAVA".to_owned(),
            version: String::new(),
            hostname: String::new(),
            group: Some(group.to_owned()),
            topics: vec!["x".repeat(100); topics],
            subscriptions: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leases_end_with_a_goodbye_also_right_after_a_start() {
        let (clients, names) = (Clients::default(), Budget::new(1 << 20));
        assert!(clients.introduce("a", introduction("g", 0), None, None, &names));
        assert!(clients.forget("a") && !clients.forget("of before"));
        for gone in ["a", "of before"] {
            assert!(!clients.lives(hash_of(gone)), "{gone}");
        }
        assert!(clients.lives(hash_of("another")));
        assert!(clients.introduce("a", introduction("g", 0), None, None, &names));
        assert!(clients.lives(hash_of("a")));
        tokio::time::advance(SILENCE + Duration::from_secs(1)).await;
        assert!(clients.forget("a"));
        assert_eq!(lock(&clients.known).left.len(), 0, "nothing is kept for longer");
    }

    #[tokio::test(start_paused = true)]
    async fn leases_end_with_silence_sooner_behind_a_stream_and_not_for_a_minute_after_a_start() {
        let (clients, names) = (Arc::new(Clients::default()), Budget::new(1 << 20));
        let second = Duration::from_secs(1);
        assert!(clients.lives(hash_of("of before")));
        let waker: Arc<Notify> = Arc::default();
        let stream = ClientStream { clients: Arc::clone(&clients), id: "a".into(), waker };
        assert!(clients.introduce("a", introduction("g", 0), None, Some(&stream.waker), &names));
        tokio::time::advance(SILENCE).await;
        assert!(clients.lives(hash_of("a")) && clients.lives(hash_of("of before")));
        tokio::time::advance(second).await;
        assert!(!clients.lives(hash_of("a")) && !clients.lives(hash_of("of before")));
        assert!(clients.seen("a").is_some());
        assert!(clients.lives(hash_of("a")));
        drop(stream);
        tokio::time::advance(RETURN).await;
        assert!(clients.lives(hash_of("a")));
        tokio::time::advance(second).await;
        assert!(!clients.lives(hash_of("a")));
        assert!(clients.seen("a").is_some());
        tokio::time::advance(SILENCE).await;
        assert!(clients.lives(hash_of("a")), "it was heard of without a stream");
        assert!(clients.forget("a"));
        assert!(!clients.lives(hash_of("a")));
    }

    #[tokio::test(start_paused = true)]
    async fn leases_of_a_stream_end_with_it_also_right_after_a_start() {
        let clients = Arc::new(Clients::default());
        let (one, two) = (clients.lasting("one".to_owned()), clients.lasting("two".to_owned()));
        let lives = |id| clients.lives(hash_of(id));
        assert!(lives("one") && lives("two") && lives("of before"));
        drop(one);
        assert!(!lives("one") && lives("two") && lives("of before"));
        tokio::time::advance(SILENCE + Duration::from_secs(1)).await;
        assert!(!lives("one") && lives("two") && !lives("of before"));
        drop(two);
        assert!(!lives("two"));
        let known = lock(&clients.known);
        assert_eq!((known.left.len(), known.lasting.len()), (0, 0));
    }

    fn ids(clients: &Clients) -> Vec<String> {
        let now = Instant::now();
        let known = lock(&clients.known);
        let living = known.by_id.iter().filter(|(_, entry)| !entry.is_gone(now));
        living.map(|(id, _)| id.as_ref().to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_forgotten_after_120_s_of_silence_unless_it_has_a_stream() {
        let (clients, names) = (Arc::new(Clients::default()), Budget::new(1 << 20));
        let waker: Arc<Notify> = Arc::default();
        let stream = ClientStream { clients: Arc::clone(&clients), id: "streams".into(), waker };
        let open = Some(&stream.waker);
        assert!(clients.introduce("streams", introduction("g", 0), None, open, &names));
        assert!(clients.introduce("beats", introduction("g", 0), None, None, &names));
        assert!(clients.introduce("silent", introduction("g", 0), None, None, &names));
        tokio::time::advance(CLIENT_EXPIRY).await;
        assert!(clients.seen("beats").is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ids(&clients), ["beats", "streams"]);
        assert!(clients.seen("silent").is_none());
        drop(stream);
        tokio::time::advance(CLIENT_EXPIRY).await;
        assert_eq!(ids(&clients), ["streams"], "from the end of its stream on");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ids(&clients), [""; 0]);
        assert_eq!(clients.count(), 0, "they take no room any more");
        assert!(clients.introduce("new", introduction("g", 0), None, None, &names));
        assert_eq!(clients.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn where_names_have_no_room_silent_clients_make_it_and_else_a_new_one_is_not_known() {
        let (clients, names) = (Clients::default(), Budget::new(4 << 10));
        assert!(clients.introduce("a", introduction("g", 10), None, None, &names));
        assert!(clients.introduce("b", introduction("g", 10), None, None, &names));
        assert!(!clients.introduce("c", introduction("g", 10), None, None, &names));
        assert_eq!(ids(&clients), ["a", "b"]);
        tokio::time::advance(CLIENT_EXPIRY / 2).await;
        assert!(clients.seen("b").is_some());
        tokio::time::advance(CLIENT_EXPIRY / 2 + Duration::from_secs(1)).await;
        assert!(clients.introduce("c", introduction("g", 10), None, None, &names));
        assert_eq!(ids(&clients), ["b", "c"]);
    }

    #[tokio::test]
    async fn of_many_streams_the_one_of_the_last_introduction_is_told_and_16_are_kept() {
        let (clients, names) = (Clients::default(), Budget::new(1 << 20));
        let wakers: Vec<Arc<Notify>> = (0..20).map(|_| Arc::default()).collect();
        for waker in &wakers {
            assert!(clients.introduce("a", introduction("g", 1), None, Some(waker), &names));
        }
        assert!(clients.introduce("a", introduction("g", 1), None, Some(&wakers[7]), &names));
        assert_eq!(lock(&clients.known).by_id["a"].streams.len(), MAX_STREAMS);
        clients.group_changed("g");
        clients.group_changed("g");
        clients.group_changed("another");
        let told = |waker: &Arc<Notify>| {
            let mut told = std::pin::pin!(waker.notified());
            let polled =
                told.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            polled.is_ready()
        };
        let all: Vec<_> = wakers.iter().map(told).collect();
        assert_eq!(all.iter().filter(|told| **told).count(), 1);
        assert!(all[7]);
        assert!(!told(&wakers[7]), "told once of both changes");
        clients.topic_changed(&"x".repeat(100));
        assert!(told(&wakers[7]));
    }
}
