//! A TCP proxy that breaks connections when it is told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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
    /// Raised to break what there is.
    broken: watch::Sender<u64>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, left) = (Mutex::new(Some(to)), AtomicU64::new(u64::MAX));
        let shared = Arc::new(Shared { to, left, broken: watch::Sender::new(0) });
        let accepting = Arc::clone(&shared);
        let accepts = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let to = *accepting.to.lock().unwrap();
                if let Some(to) = to {
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

    /// How often connections were broken.
    pub(crate) fn cuts(&self) -> u64 {
        *self.shared.broken.borrow()
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
        self.broken.send_modify(|cuts| *cuts += 1);
    }

    /// How many of these bytes pass; fewer than all: then it breaks.
    fn passes(&self, len: usize) -> usize {
        let len = len as u64;
        let take = |left: u64| Some(if left == u64::MAX { left } else { left.saturating_sub(len) });
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap();
        left.min(len) as usize
    }
}

async fn pass(client: TcpStream, to: SocketAddr, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    let mut broken = shared.broken.subscribe();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = match from_server.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(len) => len,
            };
            let passes = shared.passes(len);
            if to_client.write_all(&buffer[..passes]).await.is_err() {
                return;
            }
            if passes < len {
                shared.cut();
                return;
            }
        }
    };
    tokio::select! {
        _ = up => {}
        () = down => {}
        _ = broken.changed() => {}
    }
}
