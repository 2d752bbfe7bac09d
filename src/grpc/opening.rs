//! How a connection begins: its first bytes say whether it speaks TLS, and that it speaks HTTP/2.
//!
//! | first bytes | what becomes of it |
//! | --- | --- |
//! | 0x16, a TLS record of a handshake | the handshake, then the preface of HTTP/2 is awaited inside |
//! | the preface of HTTP/2 | served, unless the configuration forbids it without TLS |
//! | a method of HTTP/1 | told in its own words that it is wrong here, closed |
//! | anything else | closed |
//!
//! All of it must be over by [`OPENING_TIMEOUT`]. Until then a connection holds its socket, its place, and what a
//! handshake takes; nothing of HTTP/2 is there yet.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::broker::Unserved;

/// How long a connection may take to say that it speaks HTTP/2, the handshake of TLS included.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// The first byte of a TLS connection: a record that belongs to a handshake (RFC 8446, section 5.1). No preface of
/// HTTP/2 and no method of HTTP/1 begins with it.
const HANDSHAKE: u8 = 0x16;

/// The first bytes of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client of HTTP/1 hears.
const NOT_HTTP_1: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\n\
    content-length: 83\r\n\
    connection: close\r\n\
    \r\n\
    This port speaks gRPC over HTTP/2. Health and metrics are on the port of HTTP/1.1.\n";

/// How connections are secured.
#[derive(Clone, Debug)]
pub(crate) struct Security {
    /// How handshakes are answered: the newest value counts for new connections.
    pub(crate) tls: watch::Receiver<Arc<ServerConfig>>,
    /// Whether connections without TLS are served too.
    pub(crate) plain: bool,
}

/// Brings a connection to where HTTP/2 begins.
///
/// # Errors
/// It is not served, and was closed.
pub(super) async fn open(
    stream: TcpStream,
    peer: SocketAddr,
    security: &Security,
) -> Result<Opened, Unserved> {
    let deadline = Instant::now() + OPENING_TIMEOUT;
    let opening = async {
        let mut first = [0];
        // Seen and left where it is: a handshake is read by whoever speaks TLS.
        if stream.peek(&mut first).await.map_err(|_| Unserved::Silent)? == 0 {
            return Err(Unserved::Silent);
        }
        if first == [HANDSHAKE] {
            let config = Arc::clone(&security.tls.borrow());
            let handshake = TlsAcceptor::from(config).accept(stream).await;
            let stream = handshake.map_err(|error| {
                tracing::debug!(%peer, %error, "the handshake of TLS failed");
                Unserved::Tls
            })?;
            Opened::read(Stream::Tls(Box::new(stream)), deadline).await
        } else {
            let opened = Opened::read(Stream::Plain(stream), deadline).await?;
            if security.plain { Ok(opened) } else { Err(Unserved::Plain) }
        }
    };
    timeout_at(deadline, opening).await.unwrap_or(Err(Unserved::Silent))
}

/// A connection with or without TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection whose preface was read and is read again by whoever takes it over.
pub(super) struct Opened {
    stream: Stream,
    /// Bytes of the preface that were given out again.
    given: usize,
}

impl Opened {
    async fn read(mut stream: Stream, deadline: Instant) -> Result<Self, Unserved> {
        let mut found = [0; PREFACE.len()];
        let mut len = 0;
        while let Some(rest @ [_, ..]) = found.get_mut(len..) {
            let read = stream.read(rest).await.map_err(|_| Unserved::Silent)?;
            if read == 0 {
                return Err(Unserved::Silent);
            }
            len += read;
            let heard = found.get(..len).unwrap_or_default();
            // A client that speaks something else is not kept until the deadline.
            if !PREFACE.starts_with(heard) {
                if begins_http_1(heard) {
                    turn_away(stream, deadline).await;
                }
                return Err(Unserved::Foreign);
            }
        }
        Ok(Self { stream, given: 0 })
    }
}

/// Whether `heard` can be the begin of a request of HTTP/1: a method, and a blank behind it if there is more.
fn begins_http_1(heard: &[u8]) -> bool {
    let method = heard.split(|byte| *byte == b' ').next().unwrap_or_default();
    !method.is_empty() && method.iter().all(u8::is_ascii_uppercase)
}

/// Answers in HTTP/1, and reads what the client still says: closed with unread bytes, the connection would be reset and
/// the answer lost. Ends with the client's end, or at `deadline`.
async fn turn_away(mut stream: Stream, deadline: Instant) {
    let answered = async {
        stream.write_all(NOT_HTTP_1).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    // If it did not hear that it is wrong here, or does not go, it is closed all the same.
    let _ = timeout_at(deadline, answered).await;
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Opened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest @ [_, ..]) = PREFACE.get(self.given..) {
            let len = rest.len().min(buffer.remaining());
            buffer.put_slice(rest.get(..len).unwrap_or_default());
            self.given += len;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Opened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::tls::Pair;
    use super::*;

    fn security() -> Security {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let pair = Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        Security { tls: watch::channel(pair.config).1, plain: true }
    }

    /// How long the opening of a connection takes whose client says `talk` and no more, and why it is not served.
    async fn opened(security: &Security, talk: &[u8]) -> (Duration, Option<Unserved>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(talk).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let start = Instant::now();
        let why = open(stream, peer, security).await.err();
        (start.elapsed(), why)
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_say_what_he_speaks_is_kept_for_ten_seconds_and_no_longer() {
        let security = security();
        let half_a_hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
        for (talk, why) in [
            (&b""[..], Unserved::Silent),
            (&PREFACE[..23], Unserved::Silent),
            (&half_a_hello[..1], Unserved::Silent),
            (half_a_hello, Unserved::Silent),
            // It is answered, and then it does not go.
            (b"GET / HTTP/1.1\r\n\r\n", Unserved::Foreign),
        ] {
            let (took, found) = opened(&security, talk).await;
            assert_eq!(found, Some(why), "{talk:?}");
            let within = OPENING_TIMEOUT..OPENING_TIMEOUT + Duration::from_secs(1);
            assert!(within.contains(&took), "{talk:?}: {took:?}");
        }
        assert_eq!(opened(&security, PREFACE).await, (Duration::ZERO, None));
        assert_eq!(opened(&security, b"\0").await, (Duration::ZERO, Some(Unserved::Foreign)));
    }

    #[test]
    fn a_request_of_http_1_is_told_from_garbage_by_its_method() {
        for heard in [&b"GET / HTTP/1.1\r\n"[..], b"G", b"POST /x", b"PR", b"OPTIONS * HTTP/1.1"] {
            assert!(begins_http_1(heard), "{heard:?}");
        }
        for heard in [&b""[..], b" GET", b"get /", b"\0", b"GET\r\n", b"\x80GET /"] {
            assert!(!begins_http_1(heard), "{heard:?}");
        }
    }

    #[test]
    fn the_answer_to_http_1_is_as_long_as_it_says() {
        let text = std::str::from_utf8(NOT_HTTP_1).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
}
