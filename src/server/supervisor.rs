//! Word to the service manager that started the process: systemd, or whoever else speaks its protocol.
//!
//! The manager gives the process `NOTIFY_SOCKET`, a unix datagram socket, and `WATCHDOG_USEC`, the longest silence that
//! it takes for life. One datagram is one word, `KEY=value` a line. Without the socket nothing here does anything.
//!
//! | when | what is said |
//! | --- | --- |
//! | the store is being opened | `STATUS`, and `EXTEND_TIMEOUT_USEC` again and again until it is open |
//! | everything is served | `READY=1` |
//! | at half of the watchdog's time, while the broker is well | `WATCHDOG=1` |
//! | a stop begins, or a sync failed | `STOPPING=1` |
//!
//! **Well** means: the runtime runs this task, the broker answers for its status, and the dispatcher and the flush
//! worker come along ([`Pulse`]). Who is not well falls silent, and the manager ends the process; the next start
//! recovers. A failed sync needs no silence: the process ends by itself.
//!
//! Recovery is extended without a bound, for as long as the runtime lives: it reads the disk, ends by itself, and
//! begins anew if it is cut off, so a broker with much to read would never come up.
//!
//! Not seen here: a hang of the seal and allocate workers (sends wait, and `/metrics` shows it) and of reads.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::broker::Broker;
use crate::store::Watermarks;

/// How often the manager is asked for more time while the store is opened.
const EXTEND_EVERY: Duration = Duration::from_secs(10);
/// How much more it is asked for: room for a machine so busy that some words are late.
const EXTEND_BY: Duration = Duration::from_secs(60);

/// How long a mark may stand still below the end of the log. The longest `store.flush_interval` is a minute, and a disk
/// under load may take another for one sync.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// The service manager. Clones speak to the same one.
#[derive(Clone, Debug)]
pub(super) struct Supervisor {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one that the environment names, or none. One that cannot be reached is warned of and taken for none: it
    /// will end the process, and the log says why.
    pub(super) fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self { socket: None, watchdog: None };
        };
        let socket = connect(name.as_bytes())
            .inspect_err(|error| {
                tracing::warn!(%error, ?name, "the service manager of NOTIFY_SOCKET cannot be reached");
            })
            .ok();
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_for_us =
            number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| is_for_us && *usec > 0);
        Self { socket: socket.map(Arc::new), watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Says `words`, one a line. Does not block: if the manager has not read for so long that its queue is full, the
    /// word is lost, and the log says so.
    pub(super) fn tell(&self, words: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(words.as_bytes())
        {
            tracing::warn!(%error, words, "the service manager was not told");
        }
    }

    /// Runs `opening`, and asks for more time until it is through.
    pub(super) async fn wait_for_recovery<T>(&self, opening: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let mut again = interval(EXTEND_EVERY);
        tokio::pin!(opening);
        loop {
            tokio::select! {
                biased;
                opened = &mut opening => return opened,
                _ = again.tick() => self.tell(&format!(
                    "EXTEND_TIMEOUT_USEC={}\nSTATUS=opening the store, for {} s",
                    EXTEND_BY.as_micros(),
                    started.elapsed().as_secs()
                )),
            }
        }
    }

    /// Says that the process lives, as often as the manager wants to hear it and for as long as that is true. Ends when
    /// the returned set is dropped. Without a watchdog the set is empty.
    pub(super) fn watch(&self, broker: &Arc<Broker>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if let (Some(watchdog), Some(_)) = (self.watchdog, &self.socket) {
            tasks.spawn(self.clone().ping(watchdog / 2, Arc::clone(broker)));
        }
        tasks
    }

    async fn ping(self, every: Duration, broker: Arc<Broker>) {
        let mut again = interval(every.max(Duration::from_millis(1)));
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pulse = Pulse::new(broker.status().watermarks, Instant::now());
        let mut was_stuck = false;
        loop {
            again.tick().await;
            let asked = Arc::clone(&broker);
            // On a thread that may block: an answer that never comes must not take a thread of the runtime with it.
            let Ok(status) = spawn_blocking(move || asked.status()).await else { continue };
            let stuck = pulse.stuck(status.watermarks, Instant::now());
            match stuck {
                None => self.tell("WATCHDOG=1"),
                Some(worker) if !was_stuck => {
                    let marks = status.watermarks;
                    tracing::error!(?marks, "{worker} is stuck; the watchdog is not told of life");
                    self.tell(&format!("STATUS={worker} is stuck"));
                }
                Some(_) => {}
            }
            was_stuck = stuck.is_some();
        }
    }
}

/// `name` is a path, or with `@` in front an abstract name.
fn connect(name: &[u8]) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether the storage threads come along: a mark that is below the end of the log must move.
#[derive(Debug)]
struct Pulse {
    dispatched: Seen,
    flushed: Seen,
}

/// A mark, and since when it is known to stand there with work to do.
#[derive(Debug)]
struct Seen {
    at: u64,
    since: Instant,
}

impl Pulse {
    fn new(marks: Watermarks, now: Instant) -> Self {
        let seen = |at| Seen { at, since: now };
        Self { dispatched: seen(marks.dispatched.get()), flushed: seen(marks.flushed.get()) }
    }

    /// The worker whose mark did not move for [`STUCK_AFTER`] although it had work.
    fn stuck(&mut self, marks: Watermarks, now: Instant) -> Option<&'static str> {
        let end = marks.appended.get();
        let dispatched = self.dispatched.stands_for(marks.dispatched.get(), end, now);
        let flushed = self.flushed.stands_for(marks.flushed.get(), end, now);
        if dispatched >= STUCK_AFTER {
            return Some("the dispatcher");
        }
        (flushed >= STUCK_AFTER).then_some("the flush worker")
    }
}

impl Seen {
    fn stands_for(&mut self, at: u64, end: u64, now: Instant) -> Duration {
        if at != self.at || at >= end {
            *self = Self { at, since: now };
        }
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::PhysicalOffset;

    fn marks(appended: u64, dispatched: u64, flushed: u64) -> Watermarks {
        Watermarks {
            min: PhysicalOffset::new(0),
            appended: PhysicalOffset::new(appended),
            dispatched: PhysicalOffset::new(dispatched),
            flushed: PhysicalOffset::new(flushed),
        }
    }

    #[test]
    fn a_mark_that_stands_still_below_the_end_is_stuck_after_two_minutes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(marks(10, 10, 10), start);
        assert_eq!(pulse.stuck(marks(10, 10, 10), at(600)), None, "nothing to do");
        assert_eq!(pulse.stuck(marks(20, 10, 20), at(601)), None);
        assert_eq!(pulse.stuck(marks(90, 10, 90), at(719)), None);
        assert_eq!(pulse.stuck(marks(90, 10, 90), at(720)), Some("the dispatcher"));
        assert_eq!(pulse.stuck(marks(90, 11, 90), at(730)), None, "it moved");
        assert_eq!(pulse.stuck(marks(95, 95, 90), at(740)), None);
        assert_eq!(pulse.stuck(marks(99, 99, 90), at(850)), Some("the flush worker"));
        assert_eq!(pulse.stuck(marks(99, 99, 99), at(990)), None, "it came back");
    }

    #[test]
    fn an_abstract_name_is_reached_as_a_path_is() {
        let name = format!("mainstem-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        let socket = connect(format!("@{name}").as_bytes()).unwrap();
        let supervisor = Supervisor { socket: Some(Arc::new(socket)), watchdog: None };
        supervisor.tell("READY=1");
        let mut words = [0; 64];
        let len = listener.recv(&mut words).unwrap();
        assert_eq!(&words[..len], b"READY=1");
    }

    #[test]
    fn a_manager_that_does_not_read_does_not_hold_the_broker_up() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let supervisor = Supervisor { socket: Some(Arc::new(ours)), watchdog: None };
        for _ in 0..10_000 {
            supervisor.tell("WATCHDOG=1");
        }
        let mut words = [0; 64];
        let len = theirs.recv(&mut words).unwrap();
        assert_eq!(&words[..len], b"WATCHDOG=1");
    }
}
