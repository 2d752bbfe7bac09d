//! One port: accept loop, HTTP/2 settings, caps, drain.
//!
//! | bound | value | when it is reached |
//! | --- | --- | --- |
//! | connections in all | from the configuration | the new one is closed |
//! | connections of one address | [`MAX_PER_ADDRESS`] | the new one is closed |
//! | time until the HTTP/2 preface is there, under TLS if it is | [`super::opening`]'s | closed |
//! | streams of a connection | [`MAX_STREAMS`] | the client waits |
//! | bytes that a stream, a connection may have under way | [`STREAM_WINDOW`], [`CONNECTION_WINDOW`] | the client waits |
//! | the same of all connections | [`ALL_WINDOWS`], and [`LEAST_WINDOW`] for each | a new connection gets less |
//! | a frame, a header list | [`MAX_FRAME`], [`MAX_HEADERS`] | the stream is refused |
//! | calls that are taken back before they were looked at | [`MAX_TAKEN_BACK`] | closed |
//! | calls that are ended for faults of the client, and not forgotten yet | [`MAX_FAULTS`] | closed |
//! | time in which answers wait to leave | [`super::outgoing`]'s | closed |
//! | silence | a ping after [`PING_AFTER`], and [`PING_TIMEOUT`] for its answer | closed |
//!
//! A connection has no age. There is one server, so nobody would come back elsewhere; who is gone is found by pings,
//! who does not read by his answers, and how many there are is bounded. RocketMQ's clients hold a stream open that
//! must not end, for some of them never open it again; those of the native protocol hold streams over which they send
//! and consume for as long as they live. An age would break these for nothing.
//!
//! The loop and each connection, with its calls, are tasks; all end with [`Drain`]: the loop stops accepting,
//! connections tell their clients to go away and finish what they have begun, and what has not ended in time is
//! dropped.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::service::Routes;

use super::Guarded;
use super::calls::{Calls, NewCalls};
use super::opening::{self, Security};
use crate::broker::{Connected, Unserved};
use crate::sync::{Mutex, lock};

/// Bytes that a stream may have under way to us.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes that a connection may have under way to us.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes that all connections together may have under way to us: what is received and not taken yet, as by a stream
/// whose client does not read its answers.
const ALL_WINDOWS: u64 = 1 << 30;
/// What a connection may have under way in any case: less, HTTP/2 does not know.
const LEAST_WINDOW: u32 = 65_535;
/// Bytes of a frame.
const MAX_FRAME: u32 = 256 << 10;
/// Calls of a connection at once.
const MAX_STREAMS: u32 = 256;
/// Bytes of a call's headers.
const MAX_HEADERS: u32 = 16 << 10;
/// Calls of a connection that its client has taken back before they were looked at. More is a flood: each costs the
/// server more than its client.
const MAX_TAKEN_BACK: usize = 20;
/// Calls of a connection that were ended because its client broke the rules of HTTP/2, and are still remembered.
const MAX_FAULTS: usize = 1_024;
/// Bytes that a stream may have waiting for its client.
const SEND_BUFFER: usize = 1 << 20;
/// Silence after which a connection is asked whether it still lives.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long it may take to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections of one address.
const MAX_PER_ADDRESS: usize = 1_024;
/// A pause after a failed accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Tells a listener to stop; cloned receivers see it at once.
pub(crate) type Drain = watch::Receiver<bool>;

/// How the port is served.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// With TLS, without, or both.
    pub(crate) security: Security,
    /// Connections in all.
    pub(crate) max_connections: usize,
    /// How long connections may take to finish what they have begun.
    pub(crate) drain_timeout: Duration,
}

/// Who is connected.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// What `present` comes to, for the metrics.
    told: Arc<Connected>,
    /// Short lock.
    present: Mutex<Present>,
}

#[derive(Debug, Default)]
struct Present {
    count: usize,
    /// Without entries for nobody.
    by_address: HashMap<IpAddr, usize>,
    /// Of all, in bytes.
    windows: u64,
}

impl Present {
    /// What a new connection may have under way: an eighth of what is left, so that the next ones find something too.
    fn window(&self) -> u32 {
        let share = ALL_WINDOWS.saturating_sub(self.windows) / 8;
        u32::try_from(share).unwrap_or(u32::MAX).clamp(LEAST_WINDOW, CONNECTION_WINDOW)
    }
}

/// A place among the connections, until it is dropped.
struct Place {
    connections: Arc<Connections>,
    address: IpAddr,
    /// Bytes that it may have under way to us.
    window: u32,
}

impl Connections {
    /// Nobody yet. `told` follows who there is.
    pub(crate) fn told_to(told: Arc<Connected>) -> Self {
        Self { told, present: Mutex::default() }
    }

    fn admit(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<Place> {
        let mut present = lock(&self.present);
        let of_address = present.by_address.get(&address).copied().unwrap_or_default();
        if present.count >= max || of_address >= MAX_PER_ADDRESS {
            return None;
        }
        present.count += 1;
        present.by_address.insert(address, of_address + 1);
        let window = present.window();
        present.windows += u64::from(window);
        self.told.set(present.count, present.windows);
        Some(Place { connections: Arc::clone(self), address, window })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut present = lock(&self.connections.present);
        present.count = present.count.saturating_sub(1);
        present.windows = present.windows.saturating_sub(self.window.into());
        self.connections.told.set(present.count, present.windows);
        match present.by_address.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                present.by_address.remove(&self.address);
            }
        }
    }
}

/// Serves `service` until `drain` turns true, then lets connections finish for `drain_timeout`.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Guarded<Routes>,
    connections: Arc<Connections>,
    terms: Terms,
    mut drain: Drain,
) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut drain) => break,
            Some(ended) = tasks.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("a connection panicked; it is closed");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = connections.admit(peer.ip(), terms.max_connections) else {
            connections.told.unserved(Unserved::Limit);
            tracing::warn!(%peer, "too many connections, closed");
            continue;
        };
        let (service, security, drain) = (service.clone(), terms.security.clone(), drain.clone());
        tasks.spawn(async move {
            connection(stream, peer, &place, service, security, drain).await;
        });
    }
    drop(listener);
    let finish = async { while tasks.join_next().await.is_some() {} };
    if timeout(terms.drain_timeout, finish).await.is_err() {
        tracing::warn!(
            connections = connections.told.count(),
            "connections did not finish in time"
        );
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    place: &Place,
    service: Guarded<Routes>,
    security: Security,
    mut drain: Drain,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY refused");
    }
    // The socket of a connection knows its own end; else it is broken already.
    let Ok(local) = stream.local_addr() else { return };
    let opened = tokio::select! {
        opened = opening::open(stream, peer, &security) => opened,
        () = stopped(&mut drain) => return,
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(why) => {
            place.connections.told.unserved(why);
            tracing::debug!(%peer, reason = why.as_str(), "closed before it was served");
            return;
        }
    };
    let broker = Arc::clone(service.broker());
    let (service, outgoing) = service.of_connection(peer, local);
    let mut calls = Calls::default();
    let served = settings(place.window, calls.taken_by())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = calls.run_with(served.as_mut()) => ended,
        () = outgoing.stalled(|| broker.is_pressed_by_answers() || broker.is_pressed()) => {
            tracing::warn!(%peer, "the client does not read its answers, closed");
            return;
        }
        () = stopped(&mut drain) => {
            served.as_mut().graceful_shutdown();
            calls.run_with(served.as_mut()).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Ends when it is time to stop, or when nobody is left who could say so.
async fn stopped(drain: &mut Drain) {
    let _ = drain.wait_for(|stop| *stop).await;
}

/// How HTTP/2 is spoken, and who takes the calls: also by whoever is compared with this server.
pub(crate) fn settings(window: u32, calls: NewCalls) -> http2::Builder<NewCalls> {
    let mut builder = http2::Builder::new(calls);
    builder
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .initial_stream_window_size(STREAM_WINDOW.min(window))
        .initial_connection_window_size(window)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(MAX_TAKEN_BACK)
        .max_local_error_reset_streams(MAX_FAULTS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_hold_in_all_and_by_address_and_places_come_back() {
        let connections = Arc::new(Connections::default());
        let here: IpAddr = [127, 0, 0, 1].into();
        let there: IpAddr = [127, 0, 0, 2].into();
        let mut places: Vec<_> =
            (0..MAX_PER_ADDRESS).map(|_| connections.admit(here, usize::MAX)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(connections.admit(here, usize::MAX).is_none());
        let other = connections.admit(there, MAX_PER_ADDRESS + 1);
        assert!(other.is_some());
        assert!(connections.admit(there, MAX_PER_ADDRESS + 1).is_none());
        places.pop();
        assert!(connections.admit(here, usize::MAX).is_some());
        drop(places);
        drop(other);
        assert_eq!((connections.told.count(), connections.told.windows()), (0, 0));
        assert!(lock(&connections.present).by_address.is_empty());
        assert_eq!(lock(&connections.present).windows, 0);
    }

    #[test]
    fn what_all_connections_may_have_under_way_is_bounded_and_comes_back() {
        let connections = Arc::new(Connections::default());
        let address = |n: usize| IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
        let admit = |n: usize| connections.admit(address(n), usize::MAX).unwrap();
        let mut places: Vec<_> = (0..10_000).map(admit).collect();
        let windows: Vec<_> = places.iter().map(|place| u64::from(place.window)).collect();
        assert!(windows[..50].iter().all(|window| *window == u64::from(CONNECTION_WINDOW)));
        assert!(windows.is_sorted_by(|a, b| a >= b), "who comes later gets no more");
        let least = u64::from(LEAST_WINDOW);
        assert_eq!(windows[9_999], least);
        assert!(windows.iter().sum::<u64>() <= ALL_WINDOWS + 10_000 * least);
        places.clear();
        assert_eq!(admit(0).window, CONNECTION_WINDOW);
    }
}
