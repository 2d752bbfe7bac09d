//! What surrounds every call.
//!
//! | concern | how |
//! | --- | --- |
//! | a panic in a handler | fails that call with INTERNAL; the connection and its other calls go on |
//! | the bytes of an answer | a handler leaves a [`Permit`] with its answer, which is kept until the body has left or is dropped, however slowly the caller reads |

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::Service;

use super::native::status;
use crate::broker::Permit;

/// Keeps the bytes of an answer counted while it is on its way; put into the answer's extensions by a handler.
#[derive(Clone, Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "held for its drop")] Arc<Permit>);

impl Held {
    /// Holds `permit`.
    pub(super) fn new(permit: Permit) -> Self {
        Self(Arc::new(permit))
    }
}

/// A service whose panics stay within the call.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S>(S);

impl<S> Guarded<S> {
    /// Guards `inner`.
    pub(crate) fn new(inner: S) -> Self {
        Self(inner)
    }
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = GuardedCall<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        GuardedCall(Box::pin(self.0.call(request)))
    }
}

/// A call whose panic becomes its answer.
pub(crate) struct GuardedCall<F>(Pin<Box<F>>);

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for GuardedCall<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // What a handler shares is behind locks that end the process when they are poisoned, so nothing half changed is
        // seen after a panic.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(mut answer))) => {
                let held = answer.extensions_mut().remove::<Held>();
                Poll::Ready(Ok(match held {
                    Some(held) => answer.map(|body| Body::new(HeldBody { body, _held: held })),
                    None => answer,
                }))
            }
            Ok(Poll::Ready(Err(never))) => match never {},
            Err(_panic) => {
                tracing::error!("a handler panicked; its call is answered with INTERNAL");
                Poll::Ready(Ok(status::of_panic().into_http()))
            }
        }
    }
}

/// A body that keeps the bytes of its answer counted until it is dropped.
struct HeldBody {
    body: Body,
    _held: Held,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_handler_is_its_calls_answer() {
        #[derive(Clone)]
        struct Panics;
        impl Service<Request<()>> for Panics {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, _: Request<()>) -> Self::Future {
                Box::pin(async { panic!("on purpose") })
            }
        }
        let answer = Guarded::new(Panics).call(Request::new(())).await;
        let answer = answer.unwrap_or_else(|never| match never {});
        assert_eq!(answer.headers()["grpc-status"], "13");
    }
}
