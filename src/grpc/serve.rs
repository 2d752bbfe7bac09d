//! What surrounds every call.
//!
//! | concern | how |
//! | --- | --- |
//! | a panic in a handler | fails that call with INTERNAL; the connection and its other calls go on |
//! | the bytes of a request | what is beyond [`UNCOUNTED`] is counted as it arrives, and refused when too much is in work; a request that is not whole after [`REQUEST_TIMEOUT`] is refused |
//! | the bytes of an answer | a handler leaves a [`Permit`] with its answer, which is kept until the body has left or is dropped; a caller who reads nothing for [`ANSWER_TIMEOUT`], or [`PRESSED_TIMEOUT`] while there is hardly any room, loses the connection |
//! | who calls, and where | [`peer`] and [`local`] say it to a handler, without a place in every request |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};
use tower::Service;

use super::native::{RawCall, status};
use super::rocketmq::{self, telemetry};
use crate::broker::{Broker, BrokerError, Permit, RequestFault};
use crate::sync::{Mutex, lock};

/// Bytes of a request that nobody counts: small requests are served however much is in work.
const UNCOUNTED: u64 = 4 << 10;
/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may hold answers of which none leaves.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The same while there is hardly any room for answers.
const PRESSED_TIMEOUT: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// The connection, while a call of its is polled.
    static ENDS: Ends;
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// Who calls.
    pub(super) peer: SocketAddr,
    /// Where the call arrived.
    pub(super) local: SocketAddr,
}

impl Ends {
    /// As people write them, also where one socket takes both families.
    fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        Self { peer: canonical(peer), local: canonical(local) }
    }
}

/// Where the call that is being served came from; for handlers. `None` if it came over no connection.
pub(super) fn peer() -> Option<SocketAddr> {
    ENDS.try_with(|ends| ends.peer).ok()
}

/// Where the call that is being served arrived; for handlers. `None` if it came over no connection.
pub(super) fn local() -> Option<SocketAddr> {
    ENDS.try_with(|ends| ends.local).ok()
}

/// Keeps the bytes of an answer counted while it is on its way; put into the answer's extensions by a handler.
#[derive(Clone, Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "held for its drop")] Arc<Permit>);

impl Held {
    /// Holds `permit`.
    pub(super) fn new(permit: Permit) -> Self {
        Self(Arc::new(permit))
    }
}

/// The answers of one connection that have not left yet.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing(Arc<Mutex<Leaving>>);

/// Short lock, taken once when an answer comes and once when it has left.
#[derive(Debug)]
struct Leaving {
    answers: usize,
    /// When the last one left or, with none before it, the first one came.
    moved: Instant,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Leaving { answers: 0, moved: Instant::now() })))
    }

    pub(super) fn comes(&self, now: Instant) {
        let mut leaving = lock(&self.0);
        if leaving.answers == 0 {
            leaving.moved = now;
        }
        leaving.answers += 1;
    }

    pub(super) fn leaves(&self, now: Instant) {
        let mut leaving = lock(&self.0);
        leaving.answers = leaving.answers.saturating_sub(1);
        leaving.moved = now;
    }

    /// Since when the caller has read nothing that waits for him.
    fn stalls_since(&self) -> Option<Instant> {
        let leaving = lock(&self.0);
        (leaving.answers > 0).then_some(leaving.moved)
    }

    /// Ends when the caller has read nothing for too long; sooner while `is_pressed` says that others need his room.
    pub(crate) async fn stalled(&self, is_pressed: impl Fn() -> bool) {
        loop {
            let Some(since) = self.stalls_since() else {
                sleep(ANSWER_TIMEOUT / 4).await;
                continue;
            };
            let stalls = Instant::now().saturating_duration_since(since);
            if stalls >= ANSWER_TIMEOUT || stalls >= PRESSED_TIMEOUT && is_pressed() {
                return;
            }
            sleep(PRESSED_TIMEOUT / 2).await;
        }
    }
}

/// A service whose panics stay within the call, and whose requests and answers are counted.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    broker: Arc<Broker>,
    outgoing: Outgoing,
    ends: Option<Ends>,
}

impl<S: Clone> Guarded<S> {
    /// Guards `inner`.
    pub(crate) fn new(inner: S, broker: Arc<Broker>) -> Self {
        Self { inner, broker, outgoing: Outgoing::new(), ends: None }
    }

    /// The broker behind it.
    pub(crate) fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// The service of one connection, and the answers that it holds.
    pub(crate) fn of_connection(&self, peer: SocketAddr, local: SocketAddr) -> (Self, Outgoing) {
        let outgoing = Outgoing::new();
        let ends = Some(Ends::new(peer, local));
        (Self { outgoing: outgoing.clone(), ends, ..self.clone() }, outgoing)
    }
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<Received<B>>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = GuardedCall<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if let Some(call) = RawCall::of(request.uri().path()) {
            return GuardedCall::Raw(Some(call.answer(&self.broker, &self.outgoing, request)));
        }
        if telemetry::is_path(request.uri().path()) {
            let answer = telemetry::answer(&self.broker, &self.outgoing, self.ends, request);
            return GuardedCall::Raw(Some(answer));
        }
        let refusals = match request.uri().path().starts_with(rocketmq::PATH) {
            true => Refusals::InAnswers,
            false => Refusals::AreErrors,
        };
        let request = request.map(|body| Received::new(body, Arc::clone(&self.broker)));
        let (call, outgoing) = (Box::pin(self.inner.call(request)), self.outgoing.clone());
        GuardedCall::Call { call, outgoing, ends: self.ends, refusals }
    }
}

/// How a protocol words what a call is refused with before or behind its handler.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refusals {
    /// As gRPC errors with details.
    AreErrors,
    /// In the status of an answer.
    InAnswers,
}

impl Refusals {
    fn complete(self, answer: Response<Body>, outgoing: &Outgoing) -> Response<Body> {
        match self {
            Self::AreErrors => status::completed(answer),
            Self::InAnswers => rocketmq::status::completed(answer, outgoing),
        }
    }

    fn of_panic(self, outgoing: &Outgoing) -> Response<Body> {
        match self {
            Self::AreErrors => status::of_panic().into_http(),
            Self::InAnswers => rocketmq::status::of_panic(outgoing),
        }
    }
}

/// The body of a request, counted as it arrives until it is dropped.
pub(crate) struct Received<B> {
    body: B,
    broker: Arc<Broker>,
    len: u64,
    permit: Option<Permit>,
    /// Made when the request is first waited for.
    timeout: Option<Pin<Box<Sleep>>>,
}

impl<B> Received<B> {
    fn new(body: B, broker: Arc<Broker>) -> Self {
        Self { body, broker, len: 0, permit: None, timeout: None }
    }

    fn count(&mut self, len: usize) -> Result<(), BrokerError> {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        self.len = self.len.saturating_add(len);
        if self.len > UNCOUNTED && len > 0 {
            let more = self.broker.receive(len)?;
            self.permit = Some(match self.permit.take() {
                Some(permit) => permit.and(more),
                None => more,
            });
        }
        Ok(())
    }

    fn refuse(&self, error: &BrokerError) -> StdError {
        self.broker.counters().refused(error.reason());
        status::of(error).into()
    }
}

impl<B> HttpBody for Received<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            let timeout = self.timeout.get_or_insert_with(|| Box::pin(sleep(REQUEST_TIMEOUT)));
            ready!(timeout.as_mut().poll(cx));
            let fault = RequestFault::Unfinished { limit: REQUEST_TIMEOUT };
            return Poll::Ready(Some(Err(self.refuse(&BrokerError::BadRequest { fault }))));
        };
        let Some(frame) = frame else { return Poll::Ready(None) };
        let counted = frame.map_err(Into::into).and_then(|frame| {
            let len = frame.data_ref().map_or(0, bytes::Buf::remaining);
            self.count(len).map_err(|error| self.refuse(&error)).map(|()| frame)
        });
        Poll::Ready(Some(counted))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A call whose panic becomes its answer.
pub(crate) enum GuardedCall<F> {
    Call {
        call: Pin<Box<F>>,
        outgoing: Outgoing,
        ends: Option<Ends>,
        refusals: Refusals,
    },
    /// Its body does the work.
    Raw(Option<Response<Body>>),
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for GuardedCall<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (call, outgoing, ends, refusals) = match &mut *self {
            Self::Call { call, outgoing, ends, refusals } => (call, outgoing, *ends, *refusals),
            Self::Raw(answer) => {
                return answer.take().map_or(Poll::Pending, |answer| Poll::Ready(Ok(answer)));
            }
        };
        // What a handler shares is behind locks that end the process when they are poisoned, so nothing half changed
        // is seen after a panic.
        let mut poll = || call.as_mut().poll(cx);
        let polled = catch_unwind(AssertUnwindSafe(|| match ends {
            Some(ends) => ENDS.sync_scope(ends, poll),
            None => poll(),
        }));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(answer))) => {
                let mut answer = refusals.complete(answer, outgoing);
                let held = answer.extensions_mut().remove::<Held>();
                Poll::Ready(Ok(match held {
                    Some(held) => {
                        let outgoing = outgoing.clone();
                        outgoing.comes(Instant::now());
                        answer.map(|body| Body::new(HeldBody { body, _held: held, outgoing }))
                    }
                    None => answer,
                }))
            }
            Ok(Poll::Ready(Err(never))) => match never {},
            Err(_panic) => {
                tracing::error!("a handler panicked; its call is answered with INTERNAL");
                Poll::Ready(Ok(refusals.of_panic(outgoing)))
            }
        }
    }
}

/// A body that keeps the bytes of its answer counted until it is dropped.
struct HeldBody {
    body: Body,
    _held: Held,
    outgoing: Outgoing,
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.outgoing.leaves(Instant::now());
    }
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
    use std::collections::VecDeque;

    use super::*;
    use crate::broker::BrokerConfig;
    use crate::clock::SystemClock;
    use crate::file::disk::RealDisk;
    use crate::store::StoreConfig;

    fn broker(inflight_send_bytes: u64) -> (Arc<Broker>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let config = BrokerConfig { inflight_send_bytes, ..BrokerConfig::default() };
        let clock = Arc::new(SystemClock::new());
        (Broker::open(Arc::new(RealDisk), clock, store, config).unwrap().0, dir)
    }

    /// A body of frames that are all there, and of nothing more for ever.
    struct Frames(VecDeque<Bytes>);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                None => Poll::Pending,
            }
        }
    }

    fn frames(lens: &[usize]) -> Frames {
        Frames(lens.iter().map(|len| Bytes::from(vec![0; *len])).collect())
    }

    fn poll<B>(body: &mut Received<B>) -> Poll<Option<Result<Frame<Bytes>, StdError>>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<StdError>,
    {
        Pin::new(body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_is_its_calls_answer() {
        #[derive(Clone)]
        struct Panics;
        impl<B> Service<Request<B>> for Panics {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, _: Request<B>) -> Self::Future {
                Box::pin(async { panic!("on purpose") })
            }
        }
        let (broker, _dir) = broker(1 << 20);
        let answer =
            Guarded::new(Panics, Arc::clone(&broker)).call(Request::new(Body::empty())).await;
        let answer = answer.unwrap_or_else(|never| match never {});
        assert_eq!(answer.headers()["grpc-status"], "13");
        broker.close().unwrap();
    }

    /// Requests that were begun and never ended used to be held without a bound: 200 MiB and more a connection.
    #[tokio::test]
    async fn requests_are_counted_as_they_arrive_and_refused_when_too_much_is_in_work() {
        let (broker, _dir) = broker(88 << 10);
        let mut first = Received::new(frames(&[4 << 10, 32 << 10, 16 << 10]), Arc::clone(&broker));
        for _ in 0..3 {
            assert!(matches!(poll(&mut first), Poll::Ready(Some(Ok(_)))));
        }
        let mut small = Received::new(frames(&[4 << 10]), Arc::clone(&broker));
        assert!(matches!(poll(&mut small), Poll::Ready(Some(Ok(_)))));

        let mut second = Received::new(frames(&[32 << 10]), Arc::clone(&broker));
        let Poll::Ready(Some(Err(refused))) = poll(&mut second) else { panic!("was not refused") };
        let refused = *refused.downcast::<tonic::Status>().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);

        drop(first);
        let mut third = Received::new(frames(&[32 << 10]), Arc::clone(&broker));
        assert!(matches!(poll(&mut third), Poll::Ready(Some(Ok(_)))));
        broker.close().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stalls_when_it_holds_answers_of_which_none_leaves_sooner_where_room_is_short()
     {
        for (is_pressed, limit) in [(false, ANSWER_TIMEOUT), (true, PRESSED_TIMEOUT)] {
            let outgoing = Outgoing::new();
            let long = ANSWER_TIMEOUT * 10;
            let stalled = || tokio::time::timeout(long, outgoing.stalled(move || is_pressed));
            assert!(stalled().await.is_err(), "it holds none");
            let start = Instant::now();
            outgoing.comes(start);
            outgoing.comes(start + limit / 2);
            assert!(stalled().await.is_ok());
            let first = start.elapsed();
            assert!((limit..=limit + ANSWER_TIMEOUT / 4).contains(&first), "{first:?}");
            let left = Instant::now();
            outgoing.leaves(left);
            assert!(stalled().await.is_ok());
            let second = left.elapsed();
            assert!((limit..=limit + ANSWER_TIMEOUT / 4).contains(&second), "{second:?}");
            outgoing.leaves(Instant::now());
            assert!(stalled().await.is_err(), "all have left");
        }
    }
}
