//! Calls without a codec in between, for streams: pieces of bytes out, messages out of the frames that they came in.
//!
//! What is sent is a body that hands its pieces out as they are, each a DATA frame; what comes back is cut by
//! [`crate::wire`]: a batch that lies in one frame is a slice of it. No task of its own: the connection's receives
//! ahead as far as the stream's flow control window lets it, and nothing is received beyond that while nobody asks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::body::Body;
use tonic::codegen::http::{self, HeaderMap, HeaderValue, header};
use tonic::codegen::{Service as _, StdError};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::wire::{Frames, WireError, framed};

/// The messages of an answer.
#[derive(Debug)]
pub(super) struct Answers {
    body: Body,
    frames: Frames,
    max: usize,
    /// Nothing comes any more.
    has_ended: bool,
}

/// Begins a call. The answer's messages are at most `max` bytes long each.
pub(super) async fn call<B>(
    mut channel: Channel,
    path: &'static str,
    body: B,
    max: usize,
) -> Result<Answers, Status>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    let mut request = http::Request::new(Body::new(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let broken = |error: tonic::transport::Error| Status::from_error(error.into());
    poll_fn(|cx| channel.poll_ready(cx)).await.map_err(broken)?;
    let answer = channel.call(request).await.map_err(broken)?;
    if answer.status() != http::StatusCode::OK {
        return Err(Status::unknown(format!("HTTP {} instead of a stream", answer.status())));
    }
    if let Some(status) = ended(answer.headers()) {
        // Without messages: headers alone.
        status?;
    }
    let (frames, has_ended) = (Frames::default(), false);
    Ok(Answers { body: answer.into_body(), frames, max, has_ended })
}

/// What headers or trailers say of the end of a call, if they do.
fn ended(headers: &HeaderMap) -> Option<Result<(), Status>> {
    let status = Status::from_header_map(headers)?;
    Some(if status.code() == Code::Ok { Ok(()) } else { Err(status) })
}

impl Answers {
    /// The next message; `None` at the end of a call that went well. May be dropped and called again.
    ///
    /// # Errors
    /// What ended the call; or the answer breaks the protocol.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same, polled.
    pub(super) fn poll_next<M: Message + Default>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<M>, Status>> {
        loop {
            match self.frames.message(self.max) {
                Ok(Some(message)) => return Poll::Ready(Ok(Some(message))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.broken(&error))),
            }
            if self.has_ended {
                return Poll::Ready(Ok(None));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.frames.push(data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.has_ended = true;
                        if let Some(Err(status)) = ended(&trailers) {
                            return Poll::Ready(Err(status));
                        }
                    }
                },
                Some(Err(status)) => {
                    self.has_ended = true;
                    return Poll::Ready(Err(status));
                }
                None => {
                    self.has_ended = true;
                    return Poll::Ready(Err(Status::unavailable("the stream broke off")));
                }
            }
        }
    }

    fn broken(&mut self, error: &WireError) -> Status {
        self.has_ended = true;
        self.frames = Frames::default();
        Status::internal(error.to_string())
    }
}

/// The body of a request of one message.
#[derive(Debug)]
pub(super) struct Once(Option<Bytes>);

impl Once {
    pub(super) fn new(message: &impl Message) -> Self {
        Self(Some(framed(message)))
    }
}

impl HttpBody for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// The requests of a stream, as they are made. Dropped, it ends the stream at once, unless that was finished.
#[derive(Debug, Default)]
pub(super) struct Requests(Arc<Mutex<Outgoing>>);

/// What the connection takes from.
#[derive(Debug, Default)]
struct Outgoing {
    frames: VecDeque<Bytes>,
    /// Whom to tell of more.
    waker: Option<Waker>,
    end: End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// Behind the frames that are there.
    Finished,
    /// Now.
    Cancelled,
}

impl Requests {
    /// The body of the call, for one.
    pub(super) fn body(&self) -> RequestsBody {
        RequestsBody(Arc::clone(&self.0))
    }

    /// Hands frames over, in their order. How many there may be is the caller's to bound.
    pub(super) fn put(&self, frames: impl IntoIterator<Item = Bytes>) {
        let waker = {
            let mut outgoing = lock(&self.0);
            outgoing.frames.extend(frames);
            outgoing.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// No request follows.
    pub(super) fn finish(&self) {
        self.end(End::Finished);
    }

    /// Ends the stream now.
    pub(super) fn cancel(&self) {
        self.end(End::Cancelled);
    }

    fn end(&self, end: End) {
        let waker = {
            let mut outgoing = lock(&self.0);
            // Of a request that has been sent to its end nothing is left to be cancelled.
            if outgoing.end != End::Finished || !outgoing.frames.is_empty() {
                outgoing.end = end;
            }
            if end == End::Cancelled {
                outgoing.frames.clear();
            }
            outgoing.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The body of such a call.
pub(super) struct RequestsBody(Arc<Mutex<Outgoing>>);

impl HttpBody for RequestsBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut outgoing = lock(&self.0);
        if let Some(frame) = outgoing.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        match outgoing.end {
            End::Finished => Poll::Ready(None),
            // The broker must not take it for an end that was meant.
            End::Cancelled => Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into()))),
            End::Open => {
                outgoing.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Nothing panics under the lock, so that it is never poisoned.
fn lock(outgoing: &Mutex<Outgoing>) -> MutexGuard<'_, Outgoing> {
    outgoing.lock().unwrap_or_else(PoisonError::into_inner)
}
