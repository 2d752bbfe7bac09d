//! The other end of `/readyz`: asks a broker whether it serves, as a health check does.
//!
//! One connection, one question, and at most [`PATIENCE`] for all of it: a broker that accepts and does not answer is
//! not ready either.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the answer may take. Less than what those who run health checks wait before they end them.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest page that is read: a line for each damaged range.
const MAX_PAGE_LEN: usize = 1 << 20;

/// Why a broker is not known to serve. Asking changes nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// Nobody listens, or the address cannot be reached.
    #[error("nobody answers at {address}")]
    Unreachable {
        /// Who was asked.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Somebody listens and did not answer in time.
    #[error("{address} did not answer within {PATIENCE:?}")]
    Late {
        /// Who was asked.
        address: SocketAddr,
    },
    /// What came is no answer over HTTP.
    #[error("{address} does not speak HTTP")]
    Answer {
        /// Who was asked.
        address: SocketAddr,
        /// What is wrong with it.
        #[source]
        source: hyper::Error,
    },
    /// The page broke off, or is longer than any broker's.
    #[error("the page of {address} cannot be read")]
    Page {
        /// Who was asked.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: axum::Error,
    },
    /// It answered that it does not serve.
    #[error("{address} is not ready: {says} ({status})")]
    NotReady {
        /// Who was asked.
        address: SocketAddr,
        /// The status of the answer.
        status: StatusCode,
        /// Its first line.
        says: String,
    },
}

/// Asks the broker whose HTTP address this is. Returns its page, which begins with `ready`; damaged ranges follow, a
/// line each.
///
/// # Errors
/// It does not serve, or is not known to.
pub(crate) async fn ready(address: SocketAddr) -> Result<String, ProbeError> {
    let asked = timeout(PATIENCE, ask(address)).await;
    let (status, page) = asked.map_err(|_late| ProbeError::Late { address })??;
    if status == StatusCode::OK {
        return Ok(page);
    }
    let says = page.lines().next().unwrap_or_default().to_owned();
    Err(ProbeError::NotReady { address, status, says })
}

async fn ask(address: SocketAddr) -> Result<(StatusCode, String), ProbeError> {
    let broken = |source| ProbeError::Answer { address, source };
    let unreachable = |source| ProbeError::Unreachable { address, source };
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The connection does the work; it ends when the question, moved in here, is over.
    let question = async move {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = axum::http::Uri::from_static("/readyz");
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("mainstem"));
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let page = to_bytes(Body::new(answer.into_body()), MAX_PAGE_LEN).await;
        let page = page.map_err(|source| ProbeError::Page { address, source })?;
        Ok((status, String::from_utf8_lossy(&page).into_owned()))
    };
    // What ends the connection ends the question too, and with a better reason.
    let (answer, _) = tokio::join!(question, connection);
    answer
}
