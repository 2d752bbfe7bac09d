//! A TCP proxy that breaks connections when it is told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Runs until it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepts: JoinHandle<()>,
}

struct Shared {
    /// Where connections lead; `None`: they are refused.
    to: Mutex<Option<SocketAddr>>,
    /// Bytes from the server that still pass before all connections break.
    left: AtomicU64,
    /// The same of bytes to the server.
    left_to_server: AtomicU64,
    /// What the client hears before its connection breaks at a byte of the server.
    last_words: Mutex<&'static [u8]>,
    /// Whether what the server says is held back.
    is_held: watch::Sender<bool>,
    /// Connections that lead anywhere, ever.
    connections: AtomicU64,
    /// Raised to break what there is.
    broken: watch::Sender<u64>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            to: Mutex::new(Some(to)),
            left: AtomicU64::new(u64::MAX),
            left_to_server: AtomicU64::new(u64::MAX),
            last_words: Mutex::new(&[]),
            is_held: watch::Sender::new(false),
            connections: AtomicU64::new(0),
            broken: watch::Sender::new(0),
        });
        let accepting = Arc::clone(&shared);
        let accepts = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let to = *accepting.to.lock().unwrap();
                if let Some(to) = to {
                    accepting.connections.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(pass(stream, to, Arc::clone(&accepting)));
                }
            }
        });
        Self { address, shared, accepts }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks all connections once so many more bytes of the server have passed.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.shared.left.store(bytes, Ordering::SeqCst);
    }

    /// Breaks all connections.
    pub(crate) fn cut(&self) {
        self.shared.cut();
    }

    /// Swallows what the server says next, and ends the connection that it said it on as HTTP/2 ends one of a peer that
    /// it takes for an attacker: GOAWAY with ENHANCE_YOUR_CALM.
    pub(crate) fn calm_down(&self) {
        *self.shared.last_words.lock().unwrap() = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";
        self.cut_after(0);
    }

    /// Breaks all connections once so many more bytes have passed to the server.
    pub(crate) fn cut_after_sent(&self, bytes: u64) {
        self.shared.left_to_server.store(bytes, Ordering::SeqCst);
    }

    /// How often connections were broken.
    pub(crate) fn cuts(&self) -> u64 {
        *self.shared.broken.borrow()
    }

    /// Swallows what the server says next, breaks all connections, and takes no new ones.
    pub(crate) fn swallow(&self) {
        *self.shared.to.lock().unwrap() = None;
        self.cut_after(0);
    }

    /// Holds back what the server says from now on, or passes it on again.
    pub(crate) fn hold(&self, is_held: bool) {
        self.shared.is_held.send_replace(is_held);
    }

    /// How many connections were ever made.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Breaks all connections, and takes no new ones.
    pub(crate) fn refuse(&self) {
        *self.shared.to.lock().unwrap() = None;
        self.shared.cut();
    }

    /// New connections lead there.
    pub(crate) fn lead_to(&self, to: SocketAddr) {
        *self.shared.to.lock().unwrap() = Some(to);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepts.abort();
        self.shared.cut();
    }
}

impl Shared {
    fn cut(&self) {
        self.left.store(u64::MAX, Ordering::SeqCst);
        self.left_to_server.store(u64::MAX, Ordering::SeqCst);
        self.broken.send_modify(|cuts| *cuts += 1);
    }

    /// Passes bytes on until they end, or enough have passed for a break.
    async fn pass(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        left: &AtomicU64,
        last_words: &Mutex<&'static [u8]>,
        is_held: Option<&watch::Sender<bool>>,
    ) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(len) => len,
            };
            if let Some(is_held) = is_held {
                let _ = is_held.subscribe().wait_for(|is_held| !is_held).await;
            }
            let take = |left: u64| {
                Some(if left == u64::MAX { left } else { left.saturating_sub(len as u64) })
            };
            let left = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap();
            let passes = left.min(len as u64) as usize;
            if to.write_all(&buffer[..passes]).await.is_err() {
                return;
            }
            if passes < len {
                let last_words = std::mem::take(&mut *last_words.lock().unwrap());
                let _ = to.write_all(last_words).await;
                self.cut();
                return;
            }
        }
    }
}

async fn pass(client: TcpStream, to: SocketAddr, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    let mut broken = shared.broken.subscribe();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let no_words = Mutex::default();
    tokio::select! {
        () = shared.pass(from_client, to_server, &shared.left_to_server, &no_words, None) => {}
        () = shared.pass(
            from_server,
            to_client,
            &shared.left,
            &shared.last_words,
            Some(&shared.is_held),
        ) => {}
        _ = broken.changed() => {}
    }
}
