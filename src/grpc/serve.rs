//! What surrounds every call.
//!
//! | concern | how |
//! | --- | --- |
//! | a panic in a handler | fails that call with INTERNAL, or outside of a handler with a reset: [`super::calls`]; the connection and its other calls go on |
//! | the bytes of a request | what is beyond [`UNCOUNTED`] is counted as it arrives, and refused when too much is in work; one that comes too slowly is refused: [`super::pace`] |
//! | the bytes of an answer | a handler leaves a [`Permit`] with its answer, else what is beyond [`UNCOUNTED`] is counted here; it goes out as [`super::outgoing`] says |
//! | who calls, and where | [`peer`] and [`local`] say it to a handler, without a place in every request |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};
use tower::Service;

use super::native::{RawCall, status};
use super::outgoing::{Handing, Held, Outgoing, Pieces};
use super::pace::Begun;
use super::raw;
use super::rocketmq;
use crate::broker::{Broker, BrokerError, Permit};

/// Bytes of a request, and of an answer, that nobody counts: small calls are served however much is in work.
const UNCOUNTED: u64 = 4 << 10;

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
            let answer = call.answer(&self.broker, &self.outgoing, self.ends, request);
            return GuardedCall::Raw(Some(answer));
        }
        if let Some(call) = rocketmq::RawCall::of(request.uri().path()) {
            let answer = call.answer(&self.broker, &self.outgoing, self.ends, request);
            return GuardedCall::Raw(Some(answer));
        }
        let refusals = match request.uri().path().starts_with(rocketmq::PATH) {
            true => Refusals::InAnswers,
            false => Refusals::AreErrors,
        };
        let request = request.map(|body| Received::new(body, Arc::clone(&self.broker)));
        let (call, outgoing) = (Box::pin(self.inner.call(request)), self.outgoing.clone());
        let broker = Arc::clone(&self.broker);
        GuardedCall::Call { call, broker, outgoing, ends: self.ends, refusals }
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
    begun: Option<(Begun, Pin<Box<Sleep>>)>,
}

impl<B> Received<B> {
    fn new(body: B, broker: Arc<Broker>) -> Self {
        Self { body, broker, len: 0, permit: None, begun: None }
    }

    fn count(&mut self, len: usize) -> Result<(), BrokerError> {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        self.len = self.len.saturating_add(len);
        if self.len > UNCOUNTED {
            let missing = Permit::missing(self.permit.as_ref(), self.len);
            if missing > 0 {
                Permit::add(&mut self.permit, self.broker.receive(missing)?);
            }
        }
        Ok(())
    }

    /// Waits until the request is too slow, while it must be waited for.
    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<StdError> {
        let (begun, timer) = self.begun.get_or_insert_with(|| {
            let begun = Begun::at(Instant::now());
            (begun, Box::pin(sleep_until(begun.next_look())))
        });
        // A small one takes no room, so it does not matter how slow it is.
        let takes_room = || self.permit.is_some() && self.broker.is_pressed();
        loop {
            ready!(timer.as_mut().poll(cx));
            if let Some(error) = begun.look(Instant::now(), takes_room) {
                return Poll::Ready(self.refuse(&error));
            }
            timer.as_mut().reset(begun.next_look());
        }
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
            return self.poll_slow(cx).map(|refused| Some(Err(refused)));
        };
        let Some(frame) = frame else { return Poll::Ready(None) };
        let counted = frame.map_err(Into::into).and_then(|frame| {
            let len = frame.data_ref().map_or(0, Bytes::len);
            if let Some((begun, _)) = &mut self.begun {
                begun.receives(len);
            }
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
        broker: Arc<Broker>,
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
        let (call, broker, outgoing, ends, refusals) = match &mut *self {
            Self::Call { call, broker, outgoing, ends, refusals } => {
                (call, broker, outgoing, *ends, *refusals)
            }
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
                let (broker, handing) = (Arc::clone(broker), Handing::to(outgoing.clone()));
                Poll::Ready(Ok(answer.map(|body| {
                    let pieces = Pieces::default();
                    let body = Some(body);
                    Body::new(Answer { body, broker, held, waiting: None, pieces, handing })
                })))
            }
            Ok(Poll::Ready(Err(never))) => match never {},
            Err(_panic) => {
                tracing::error!("a handler panicked; its call is answered with INTERNAL");
                Poll::Ready(Ok(refusals.of_panic(outgoing)))
            }
        }
    }
}

/// The body of an answer, in pieces.
struct Answer {
    /// `None`: it has ended.
    body: Option<Body>,
    broker: Arc<Broker>,
    /// What the handler has counted.
    held: Option<Held>,
    /// A part that waits until it may be counted.
    waiting: Option<(Bytes, Room)>,
    pieces: Pieces,
    handing: Handing,
}

/// Resolves when there is room for an answer, or when it has waited for too long.
type Room = Pin<Box<dyn Future<Output = Result<Permit, BrokerError>> + Send>>;

impl Answer {
    /// Takes a part that the handler gave, or leaves it to wait: the call has done its work, and is not to be told that
    /// it was refused.
    fn take(&mut self, data: Bytes) {
        let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let held = self.held.take();
        if held.is_none() && len > UNCOUNTED {
            let broker = Arc::clone(&self.broker);
            self.waiting = Some((data, Box::pin(async move { broker.reply(len).await })));
        } else {
            self.pieces.add([data], held.map(Into::into));
        }
    }

    /// Takes the part that waits, once it is counted.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokerError>> {
        let Some((_, room)) = &mut self.waiting else { return Poll::Ready(Ok(())) };
        let permit = ready!(room.as_mut().poll(cx));
        let Some((data, _)) = self.waiting.take() else { return Poll::Ready(Ok(())) };
        Poll::Ready(permit.map(|permit| self.pieces.add([data], Some(permit.into()))))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.handing.next(&mut this.pieces) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if let Err(error) = ready!(this.poll_waiting(cx)) {
                // It ends with that.
                this.body = None;
                let trailers = raw::trailers(Err(raw::refusal(&this.broker, &error)));
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if !this.pieces.is_empty() {
                continue;
            }
            let Some(body) = &mut this.body else { return Poll::Ready(None) };
            let Some(frame) = ready!(Pin::new(body).poll_frame(cx)?) else {
                this.body = None;
                continue;
            };
            match frame.into_data() {
                Ok(data) => this.take(data),
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.body.as_ref().is_none_or(HttpBody::is_end_stream)
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
        // Clients of RocketMQ take an error of the call for a broken network: it is in the answer's status.
        for call in [
            "QueryRoute",
            "Heartbeat",
            "SendMessage",
            "QueryAssignment",
            "AckMessage",
            "ForwardMessageToDeadLetterQueue",
            "PullMessage",
            "UpdateOffset",
            "GetOffset",
            "QueryOffset",
            "EndTransaction",
            "NotifyClientTermination",
            "ChangeInvisibleDuration",
            "RecallMessage",
            "SyncLiteSubscription",
        ] {
            let request = Request::builder().uri(format!("{}{call}", rocketmq::PATH));
            let request = request.body(Body::empty()).unwrap();
            let answer = Guarded::new(Panics, Arc::clone(&broker)).call(request).await;
            let answer = answer.unwrap_or_else(|never| match never {});
            assert_eq!(answer.headers().get("grpc-status"), None, "{call}");
            let (mut body, mut frames) = (answer.into_body(), crate::wire::Frames::default());
            let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            frames.push(next.await.unwrap().unwrap().into_data().unwrap());
            let refused: crate::proto::rocketmq::HeartbeatResponse =
                frames.message(1 << 10).unwrap().unwrap();
            let status = refused.status.unwrap();
            assert_eq!(status.code, 50_001, "{call}: {status:?}");
            let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let trailers = next.await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "0", "{call}");
        }
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

    /// Each frame used to take a unit of the budget, however short it was.
    #[tokio::test]
    async fn a_request_in_frames_of_a_byte_counts_for_its_bytes() {
        let (broker, _dir) = broker(64 << 10);
        let lens = [&[4 << 10][..], &[1; 3_000]].concat();
        let mut tiny = Received::new(frames(&lens), Arc::clone(&broker));
        for _ in &lens {
            assert!(matches!(poll(&mut tiny), Poll::Ready(Some(Ok(_)))));
        }
        assert_eq!(broker.in_work().arriving, 7 << 10);
        drop(tiny);
        assert_eq!(broker.in_work().arriving, 0);
        broker.close().unwrap();
    }

    /// Who began a request and fell silent used to keep his room for 30 s, however much the others needed it.
    #[tokio::test(start_paused = true)]
    async fn a_request_that_brings_hardly_anything_loses_its_room_when_others_need_it() {
        let (broker, _dir) = broker(1 << 20);
        let refused = async |mut body: Received<Frames>| {
            let begun = Instant::now();
            loop {
                match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap() {
                    Ok(_) => {}
                    Err(error) => {
                        let status = *error.downcast::<tonic::Status>().unwrap();
                        break (status.message().to_owned(), begun.elapsed().as_secs());
                    }
                }
            }
        };
        let slow = || Received::new(frames(&[4 << 10, 100 << 10]), Arc::clone(&broker));
        let unfinished = ("the request did not arrive whole within 30s".to_owned(), 30);
        assert_eq!(refused(slow()).await, unfinished, "there is room");
        let others = broker.receive(600 << 10).unwrap();
        let overloaded = ("too many requests that arrive slowly at once".to_owned(), 2);
        assert_eq!(refused(slow()).await, overloaded);
        let small = Received::new(frames(&[4 << 10]), Arc::clone(&broker));
        assert_eq!(refused(small).await, unfinished, "it takes no room");
        drop(others);
        assert_eq!(broker.in_work().arriving, 0);
        broker.close().unwrap();
    }
}
