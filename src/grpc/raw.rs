//! Calls without a codec in between, for streams and whatever carries many bytes: messages out of the frames that they
//! came in, frames of bytes out.
//!
//! | way | copies |
//! | --- | --- |
//! | a batch that lies in one DATA frame | none: it is a slice of what was received |
//! | a batch in several frames | one, into a buffer of its length; of frames below 64 KiB one more if the rest is waited for |
//! | out | none: each piece becomes a DATA frame |
//!
//! A call is one future, run by whoever asks the answer's body for its next frame: no task, no channel. While a piece
//! waits for a client that does not read, nobody asks, so nothing is done and nothing more is received; the first piece
//! is asked for before anybody knows whether he reads. What is received and not yet
//! taken is counted in the broker's budget; where that is full the stream waits, with one frame, which is counted too.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::{HeaderMap, HeaderValue, Response, header};
use tonic::{Code, Status};

use super::native::status;
use super::outgoing::{Handing, Outgoing, Pieces};
use super::pace::{Begun, WHOLE};
use crate::broker::{Broker, BrokerError, Permit, RequestFault};
use crate::sync::{Mutex, lock};
use crate::wire::{Frames, WireError, is_part};

/// The messages of a request, in their order.
pub(super) struct Messages<B> {
    body: B,
    broker: Arc<Broker>,
    /// Received, counted, and not taken yet.
    frames: Frames,
    /// For all that the frames hold, but for what was received beyond the budget.
    counted: Option<Permit>,
    /// While the rest of a message is received beyond the budget: how much of it is still to come. Kept until that
    /// message is done with.
    beyond: Option<(OwnedSemaphorePermit, usize)>,
    /// Received, and waiting to be counted.
    uncounted: Bytes,
    /// For `uncounted` while it waits for room.
    waits: Option<Permit>,
    /// While a message has begun and is not whole.
    begun: Option<Begun>,
    max: usize,
}

impl<B> Messages<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    /// The messages of `body`, none longer than `max`.
    pub(super) fn new(body: B, broker: Arc<Broker>, max: usize) -> Self {
        let (frames, uncounted) = (Frames::default(), Bytes::new());
        let (counted, beyond, waits, begun) = (None, None, None, None);
        Self { body, broker, frames, counted, beyond, uncounted, waits, begun, max }
    }

    /// The next message if all of it was received already. What it counts for stays counted until it is [`Self::done`]
    /// with, or the next call.
    pub(super) fn ready<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        self.done();
        let message = self.frames.message(self.max).map_err(|error| match error {
            WireError::Compressed => self.refuse(RequestFault::Compressed),
            WireError::Malformed => self.refuse(RequestFault::Undecodable),
            WireError::TooLong { len, max } => {
                let error = BrokerError::TooLarge {
                    what: "request",
                    found: u64::try_from(len).unwrap_or(u64::MAX),
                    limit: u64::try_from(max).unwrap_or(u64::MAX),
                };
                refusal(&self.broker, &error)
            }
        })?;
        if message.is_some() || self.frames.is_empty() {
            self.begun = None;
        }
        Ok(message)
    }

    /// The last message is done with: what it counted for is free, before the next one is asked for.
    pub(super) fn done(&mut self) {
        self.frames.done();
        recount(&self.frames, &mut self.counted);
        // What was received beyond the budget ends with its message: nothing is held once that is done with.
        let is_held = self.frames.held() > 0;
        self.beyond.take_if(|(_, left)| *left == 0 && !is_held);
    }

    /// The next message; `None` at the end of the request. May be dropped and called again.
    ///
    /// # Errors
    /// The request breaks off within a message, or breaks a rule.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = self.ready()? {
                return Ok(Some(message));
            }
            if !self.frames.is_empty() {
                let now = Instant::now();
                self.begun.get_or_insert_with(|| Begun::at(now)).resume(now);
            }
            if !self.receive().await? {
                if self.frames.is_empty() {
                    return Ok(None);
                }
                return Err(self.refuse(RequestFault::BrokenOff));
            }
        }
    }

    /// As [`Messages::next`], of the first one, which is there within [`WHOLE`]: what waits for it has a place.
    ///
    /// # Errors
    /// As there; and it is not there in time.
    pub(super) async fn first<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        self.begins().await?;
        self.next().await
    }

    /// Resolves once something of the first message is there, or the request is at its end. May be dropped and called
    /// again: its time begins again.
    ///
    /// # Errors
    /// Nothing is there for [`WHOLE`].
    pub(super) async fn begins(&mut self) -> Result<(), Status> {
        if !self.frames.is_empty() {
            return Ok(());
        }
        // What is there and waits for room has begun: that the broker has none is not the sender's fault.
        match timeout(WHOLE, self.frame()).await {
            Ok(received) => received.map(drop),
            Err(_) => Err(self.refuse(RequestFault::Unfinished { limit: WHOLE })),
        }
    }

    /// Nobody asks for the next message until he does so again: the time of one that has begun stands still.
    pub(super) fn pause(&mut self) {
        if let Some(begun) = &mut self.begun {
            begun.pause(Instant::now());
        }
    }

    /// The one message of a request. Nothing of what was received is kept.
    ///
    /// # Errors
    /// There is none, also not for [`WHOLE`], or it breaks a rule; or the broker drains before it is there.
    pub(super) async fn only<M: Message + Default>(mut self) -> Result<M, Status> {
        let broker = Arc::clone(&self.broker);
        let received = tokio::select! {
            biased;
            received = self.first() => received?,
            () = broker.drained() => return Err(refusal(&broker, &BrokerError::Draining)),
        };
        received.ok_or_else(|| self.refuse(RequestFault::BrokenOff))
    }

    /// Receives a frame of data, and counts it; `false` at the end.
    async fn receive(&mut self) -> Result<bool, Status> {
        if !self.frame().await? {
            return Ok(false);
        }
        let len = self.room().await?;
        let counted = self.uncounted.split_to(len);
        self.frames.push(counted);
        let waits = self.waits.take();
        if !self.uncounted.is_empty() {
            // What is behind a message that went beyond the room still waits.
            self.wait(waits)?;
        }
        Ok(true)
    }

    /// Receives a frame of data, if none is there that is not counted; `false` at the end. May be dropped.
    async fn frame(&mut self) -> Result<bool, Status> {
        while self.uncounted.is_empty() {
            let Self { body, frames, counted, .. } = self;
            let frame = poll_fn(|cx| {
                let frame = Pin::new(&mut *body).poll_frame(cx);
                if frame.is_pending() {
                    // The rest may be long in coming.
                    frames.settle();
                    recount(frames, counted);
                }
                frame.map(|frame| {
                    frame.transpose().map_err(|error| Status::from_error(error.into()))
                })
            });
            let frame = match &mut self.begun {
                None => frame.await,
                Some(begun) => match timeout_at(begun.next_look(), frame).await {
                    Ok(frame) => frame,
                    Err(_) => match begun.look(Instant::now(), || self.broker.is_pressed()) {
                        Some(error) => return Err(refusal(&self.broker, &error)),
                        None => continue,
                    },
                },
            };
            let Some(frame) = frame? else { return Ok(false) };
            // Trailers say nothing here.
            if let Ok(data) = frame.into_data() {
                // Kept where a dropped call finds it: what was received is not lost.
                self.uncounted = data;
                if let Some(begun) = &mut self.begun {
                    begun.receives(self.uncounted.len());
                    if let Some(error) = begun.look(Instant::now(), || self.broker.is_pressed()) {
                        return Err(refusal(&self.broker, &error));
                    }
                }
            }
        }
        Ok(true)
    }

    /// Counts what was received, or as much of it as may be taken.
    async fn room(&mut self) -> Result<usize, Status> {
        let len = self.uncounted.len();
        if let Some((_, left)) = &mut self.beyond {
            // What is behind the message is counted for itself.
            let len = len.min(*left);
            *left -= len;
            return Ok(len);
        }
        if self.takes(len) {
            return Ok(len);
        }
        self.pause();
        // What that saves may be enough; else nobody is to wait for it.
        self.frames.settle();
        if self.takes(len) {
            return Ok(len);
        }
        recount(&self.frames, &mut self.counted);
        if self.waits.is_none() {
            self.wait(None)?;
        }
        let more = self.missing(len);
        let until = self.begun.map_or_else(|| Instant::now() + WHOLE, |begun| begun.due());
        // Those who hold the begin of a message may all wait for each other's room.
        let missing = self.frames.missing(self.max).filter(|_| !self.frames.is_empty());
        tokio::select! {
            biased;
            permit = self.broker.receive_later(more, until) => {
                let permit = permit.map_err(|error| refusal(&self.broker, &error))?;
                Permit::add(&mut self.counted, permit);
                Ok(len)
            }
            beyond = self.broker.receive_beyond(), if missing.is_some() => {
                let missing = missing.unwrap_or(0);
                let len = len.min(missing);
                self.beyond = Some((beyond, missing - len));
                Ok(len)
            }
        }
    }

    /// Counts what was received and has no room yet, with what was counted for it `before`.
    fn wait(&mut self, before: Option<Permit>) -> Result<(), Status> {
        let len = u64::try_from(self.uncounted.len()).unwrap_or(u64::MAX);
        let waits = match before {
            Some(waits) => waits.shrunk_to(len),
            None => {
                let waits = self.broker.wait_for_room(len);
                waits.map_err(|error| refusal(&self.broker, &error))?
            }
        };
        self.waits = Some(waits);
        if is_part(&self.uncounted) {
            self.uncounted = Bytes::copy_from_slice(&self.uncounted);
        }
        Ok(())
    }

    /// Whether there is room for `len` bytes more now; then they are counted.
    fn takes(&mut self, len: usize) -> bool {
        let more = self.missing(len);
        if more == 0 {
            return true;
        }
        let permit = self.broker.receive(more).ok();
        permit.map(|permit| Permit::add(&mut self.counted, permit)).is_some()
    }

    /// How much more is to be counted before `len` bytes are taken.
    fn missing(&self, len: usize) -> u64 {
        let held = u64::try_from(self.frames.held() + len).unwrap_or(u64::MAX);
        Permit::missing(self.counted.as_ref(), held)
    }

    fn refuse(&self, fault: RequestFault) -> Status {
        refusal(&self.broker, &BrokerError::BadRequest { fault })
    }
}

/// Gives back what is counted for more than the frames hold.
fn recount(frames: &Frames, counted: &mut Option<Permit>) {
    let held = u64::try_from(frames.held()).unwrap_or(u64::MAX);
    *counted = counted.take().filter(|_| held > 0).map(|all| all.shrunk_to(held));
}

/// Counts a refusal and words it for the wire.
pub(super) fn refusal(broker: &Broker, error: &BrokerError) -> Status {
    broker.counters().refused(error.reason());
    tracing::debug!(reason = error.reason().as_str(), %error, "refused");
    status::of(error)
}

/// Where a call puts its answers.
#[derive(Clone, Default)]
pub(super) struct Out(Arc<Mutex<Pieces>>);

impl Out {
    /// Hands the pieces of one or more whole messages over, in their order, and waits until they are taken. What they
    /// count for is `held` until they have left.
    pub(super) async fn put(&self, pieces: impl IntoIterator<Item = Bytes>, held: Option<Permit>) {
        lock(&self.0).add(pieces, held.map(Into::into));
        // Whoever takes them asks again: nobody needs to be woken.
        poll_fn(|_| if lock(&self.0).is_empty() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// What a call that panicked says last, and what it ends with.
pub(super) struct Last {
    /// A whole message, or nothing.
    pub(super) message: Bytes,
    /// How the call ends.
    pub(super) ended: Result<(), Status>,
}

/// The body of an answer, which runs its call.
struct Running<F, P> {
    /// `None`: it has ended.
    call: Option<Pin<Box<F>>>,
    panicked: P,
    out: Out,
    handing: Handing,
    trailers: Option<HeaderMap>,
}

impl<F, P> Running<F, P> {
    fn piece(&mut self) -> Option<Frame<Bytes>> {
        self.handing.next(&mut lock(&self.out.0)).map(Frame::data)
    }
}

impl<F, P> HttpBody for Running<F, P>
where
    F: Future<Output = Result<(), Status>>,
    P: Fn() -> Last + Unpin,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.piece() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            let Some(call) = &mut this.call else { return Poll::Ready(None) };
            // As for other calls: what is half changed is behind locks that end the process when they are poisoned.
            let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
            let ended = match polled {
                Ok(Poll::Pending) => match this.piece() {
                    Some(piece) => return Poll::Ready(Some(Ok(piece))),
                    None => return Poll::Pending,
                },
                Ok(Poll::Ready(ended)) => ended,
                Err(_panic) => {
                    tracing::error!(
                        "a stream panicked; it ends with what its protocol says of a defect"
                    );
                    let Last { message, ended } = (this.panicked)();
                    if !message.is_empty() {
                        lock(&this.out.0).add([message], None);
                    }
                    ended
                }
            };
            this.call = None;
            this.trailers = Some(trailers(ended));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.call.is_none() && self.trailers.is_none() && lock(&self.out.0).is_empty()
    }
}

/// How a call ends.
pub(super) fn trailers(ended: Result<(), Status>) -> HeaderMap {
    let status = ended.err().unwrap_or_else(|| Status::new(Code::Ok, ""));
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Its text cannot stand in a header.
        trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
    }
    trailers
}

/// The answer that `call` makes. It ends with what the call ends with, and with INTERNAL if it panics.
pub(super) fn answer<F>(outgoing: Outgoing, call: impl FnOnce(Out) -> F) -> Response<Body>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let panicked = || Last { message: Bytes::new(), ended: Err(status::of_panic()) };
    answer_or(outgoing, panicked, call)
}

/// The same of a protocol with words of its own for a call that panicked.
pub(super) fn answer_or<F>(
    outgoing: Outgoing,
    panicked: impl Fn() -> Last + Send + Unpin + 'static,
    call: impl FnOnce(Out) -> F,
) -> Response<Body>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let out = Out::default();
    let call = Some(Box::pin(call(out.clone())));
    let body = Running { call, panicked, out, handing: Handing::to(outgoing), trailers: None };
    let mut response = Response::new(Body::new(body));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;
    use std::time::Duration;

    use super::*;
    use crate::broker::BrokerConfig;
    use crate::clock::SystemClock;
    use crate::file::disk::RealDisk;
    use crate::grpc::pace::LOOK;
    use crate::proto::SendStreamRequest;
    use crate::store::StoreConfig;
    use crate::wire::framed;

    const BUDGET: u64 = 1 << 20;
    /// What may be arriving of it.
    const ARRIVALS: u64 = BUDGET / 4 * 3;

    fn broker() -> (Arc<Broker>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let config = BrokerConfig { inflight_send_bytes: BUDGET, ..BrokerConfig::default() };
        let clock = Arc::new(SystemClock::new());
        (Broker::open(Arc::new(RealDisk), clock, store, config).unwrap().0, dir)
    }

    /// Frames that are all there; then the end, or nothing more for ever.
    struct Parts(VecDeque<Bytes>, bool);

    impl HttpBody for Parts {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                None if self.1 => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    fn messages(broker: &Arc<Broker>, frames: &[&[u8]], ends: bool) -> Messages<Parts> {
        let frames = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
        Messages::new(Parts(frames, ends), Arc::clone(broker), 64 << 10)
    }

    fn request(batch: &[u8]) -> SendStreamRequest {
        SendStreamRequest { batch: Bytes::copy_from_slice(batch), ..Default::default() }
    }

    async fn next(messages: &mut Messages<Parts>) -> Result<Option<SendStreamRequest>, Status> {
        messages.next().await
    }

    #[tokio::test]
    async fn messages_come_one_by_one_and_nothing_is_counted_behind_the_last() {
        let (broker, _dir) = broker();
        let sent = [request(b"one"), SendStreamRequest::default(), request(&[7; 300])];
        let bytes: Vec<u8> = sent.iter().flat_map(|message| framed(message).to_vec()).collect();
        for cut in 0..=bytes.len() {
            let mut messages = messages(&broker, &[&bytes[..cut], &bytes[cut..]], true);
            for sent in &sent {
                assert_eq!(next(&mut messages).await.unwrap().as_ref(), Some(sent), "cut at {cut}");
            }
            assert_eq!(next(&mut messages).await.unwrap(), None);
            assert!(broker.receive(ARRIVALS).is_ok(), "nothing is counted at the end");
        }
        broker.close().unwrap();
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused_by_its_reason() {
        let (broker, _dir) = broker();
        let whole = framed(&request(b"whole"));
        for (bytes, message) in [
            (
                &b"\x01\0\0\0\x01x"[..],
                "a request is compressed by gRPC; the codec of its batch does that here",
            ),
            (b"\0\0\x01\0\x01", "request of 65537 exceeds the limit of 65536"),
            (b"\0\0\0", "the stream breaks off within a request"),
            (b"\0\0\0\0\x02x", "the stream breaks off within a request"),
            (b"\0\0\0\0\x02\xff\xff", "the request cannot be decoded"),
        ] {
            let mut messages = messages(&broker, &[&whole, bytes], true);
            assert_eq!(next(&mut messages).await.unwrap(), Some(request(b"whole")));
            let refused = next(&mut messages).await.unwrap_err();
            assert_eq!(refused.message(), message);
        }
        broker.close().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_become_whole_is_refused_and_silence_between_messages_is_not() {
        let (broker, _dir) = broker();
        let mut half = messages(&broker, &[&framed(&request(b"half"))[..6]], false);
        let begun = Instant::now();
        let refused = next(&mut half).await.unwrap_err();
        assert_eq!(refused.message(), "the request did not arrive whole within 30s");
        assert_eq!(begun.elapsed().as_secs(), WHOLE.as_secs());

        let mut nothing = messages(&broker, &[], false);
        let begun = Instant::now();
        let refused = nothing.first::<SendStreamRequest>().await.unwrap_err();
        assert_eq!(refused.message(), "the request did not arrive whole within 30s");
        assert_eq!(begun.elapsed().as_secs(), WHOLE.as_secs());

        let begun = Instant::now();
        assert!(messages(&broker, &[], true).begins().await.is_ok(), "there is none");
        let refused = messages(&broker, &[], false).begins().await.unwrap_err();
        assert_eq!(refused.message(), "the request did not arrive whole within 30s");
        assert_eq!(begun.elapsed().as_secs(), WHOLE.as_secs());

        let mut silent = messages(&broker, &[&framed(&request(b"whole"))], false);
        silent.begins().await.unwrap();
        silent.begins().await.unwrap();
        assert!(next(&mut silent).await.unwrap().is_some());
        let hour = Duration::from_secs(3_600);
        assert!(tokio::time::timeout(hour, next(&mut silent)).await.is_err(), "it waits");
        broker.close().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_brings_hardly_anything_loses_his_room_when_others_need_it() {
        let (broker, _dir) = broker();
        let bytes = framed(&request(&[7; 60 << 10]));
        let mut idle = messages(&broker, &[&bytes[..50 << 10]], false);
        {
            let mut whole = std::pin::pin!(next(&mut idle));
            let twice = LOOK * 2 + Duration::from_secs(1);
            assert!(tokio::time::timeout(twice, whole.as_mut()).await.is_err(), "there is room");
            let _others = broker.receive(ARRIVALS - (60 << 10)).unwrap();
            let refused = whole.await.unwrap_err();
            assert_eq!(refused.message(), "too many requests that arrive slowly at once");
            assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "later there may be room");
        }
        drop(idle);
        assert!(broker.receive(ARRIVALS).is_ok());
        broker.close().unwrap();
    }

    /// What lay in the broker's own buffers used to be missing from the account of who had sent it.
    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_the_broker_receives_nothing_is_not_the_senders() {
        let (broker, _dir) = broker();
        let sent = request(&[7; 60 << 10]);
        let bytes = framed(&sent);
        let parts: Vec<_> = bytes.chunks(16 << 10).collect();
        let mut messages = messages(&broker, &parts, true);
        let others = broker.receive(ARRIVALS - (16 << 10)).unwrap();
        let _beyond = broker.receive_beyond().await;
        // It waits for room after its first frame, and is left alone after that.
        let waits = Duration::from_secs(10);
        assert!(tokio::time::timeout(waits, next(&mut messages)).await.is_err());
        messages.pause();
        tokio::time::sleep(waits).await;
        let others = others.shrunk_to(ARRIVALS - (64 << 10));
        let begun = Instant::now();
        assert_eq!(next(&mut messages).await.unwrap(), Some(sent));
        assert!(broker.is_pressed());
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop((others, messages));

        // Also who waits does so no longer than for the whole.
        let _others = broker.receive(ARRIVALS - (16 << 10)).unwrap();
        let begun = Instant::now();
        let mut messages = self::messages(&broker, &parts, true);
        let refused = next(&mut messages).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(begun.elapsed(), WHOLE);
        drop(messages);
        broker.close().unwrap();
    }

    #[tokio::test]
    async fn a_stream_waits_where_too_much_is_in_work_and_goes_on_when_it_is_not() {
        let (broker, _dir) = broker();
        let all = broker.receive(ARRIVALS).unwrap();
        let (first, second) = (request(&[1; 40 << 10]), request(&[2; 40 << 10]));
        let bytes = [framed(&first), framed(&second)].concat();
        let mut messages = messages(&broker, &[&bytes], true);
        for _ in 0..3 {
            let mut dropped = std::pin::pin!(next(&mut messages));
            let polled = dropped.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
        }
        drop(all);
        assert_eq!(next(&mut messages).await.unwrap(), Some(first));
        assert!(broker.receive(ARRIVALS).is_err(), "what was received is counted");
        assert_eq!(next(&mut messages).await.unwrap(), Some(second));
        assert_eq!(next(&mut messages).await.unwrap(), None);
        assert!(broker.receive(ARRIVALS).is_ok());
        broker.close().unwrap();
    }

    /// It was counted nowhere: a client could let a frame of each of its streams wait.
    #[tokio::test]
    async fn what_waits_for_room_is_counted_and_has_an_end_of_its_own() {
        let (broker, _dir) = broker();
        let all = broker.receive(ARRIVALS).unwrap();
        let bytes = framed(&request(&[1; 40 << 10]));
        let mut messages = messages(&broker, &[&bytes], true);
        for _ in 0..2 {
            assert!(poll_once(next(&mut messages)).is_pending());
            assert_eq!(broker.in_work().awaiting_room, 41 << 10);
        }
        let others = broker.wait_for_room((256 << 20) - (41 << 10)).unwrap();
        let mut another = self::messages(&broker, &[&bytes], true);
        let refused = next(&mut another).await.unwrap_err();
        assert_eq!(refused.message(), "too many bytes that wait for room at once");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        drop((all, others));
        assert!(next(&mut messages).await.unwrap().is_some());
        assert_eq!((broker.in_work().awaiting_room, broker.in_work().arriving), (0, 41 << 10));
        drop(messages);
        broker.close().unwrap();
    }

    /// What lay behind the end of a message that went beyond the room was counted nowhere any more.
    #[tokio::test]
    async fn what_is_behind_a_message_that_went_beyond_the_room_still_waits() {
        let (broker, _dir) = broker();
        let (first, second) = (request(&[1; 60 << 10]), request(&[2; 50 << 10]));
        let bytes = framed(&first);
        let (begin, rest) = bytes.split_at(40 << 10);
        // Its end comes in the frame that waits, or in one after that.
        for cut in [0, 10 << 10] {
            let end = Bytes::from([&rest[cut..], &framed(&second)].concat());
            let middle = Bytes::copy_from_slice(&rest[..cut]);
            let mut messages = messages(&broker, &[begin], false);
            assert!(poll_once(next(&mut messages)).is_pending());
            let parts = [middle, end.clone()].into_iter().filter(|part| !part.is_empty());
            messages.body = Parts(parts.collect(), true);
            let all_else = broker.receive(ARRIVALS - (40 << 10)).unwrap();
            assert_eq!(next(&mut messages).await.unwrap().as_ref(), Some(&first));
            let waits = framed(&second).len() as u64;
            assert_eq!(broker.in_work().awaiting_room, waits.div_ceil(1 << 10) << 10);
            messages.done();
            assert!(end.is_unique(), "what waits does not keep what it came with");
            drop(all_else);
            assert_eq!(next(&mut messages).await.unwrap().as_ref(), Some(&second));
            assert_eq!(broker.in_work().awaiting_room, 0);
        }
        broker.close().unwrap();
    }

    /// The begin of a message counted for all of the frame that it came in, as long as its rest was waited for.
    #[tokio::test]
    async fn the_begin_of_a_message_counts_for_itself_and_not_for_the_message_before_it() {
        let (broker, _dir) = broker();
        let whole = framed(&request(&[1; 60 << 10]));
        let (begin, rest) = whole.split_at(10);
        let mut messages = messages(&broker, &[&[&whole[..], begin].concat()], false);
        assert!(next(&mut messages).await.unwrap().is_some());
        assert_eq!(broker.in_work().arriving, 61 << 10);
        assert!(poll_once(next(&mut messages)).is_pending());
        assert_eq!(broker.in_work().arriving, 1 << 10);
        messages.body = Parts([Bytes::copy_from_slice(rest)].into(), true);
        let all_else = broker.receive(ARRIVALS - (61 << 10)).unwrap();
        assert!(next(&mut messages).await.unwrap().is_some());
        drop((messages, all_else));

        // The same where the rest is there at once, and all room is taken.
        let mut messages = self::messages(&broker, &[&[&whole[..], begin].concat(), rest], true);
        assert!(next(&mut messages).await.unwrap().is_some());
        let _all_else = broker.receive(ARRIVALS - (61 << 10)).unwrap();
        assert!(matches!(poll_once(next(&mut messages)), Poll::Ready(Ok(Some(_)))));
        drop(messages);
        broker.close().unwrap();
    }

    /// Each frame used to take a unit of the budget, however short it was.
    #[tokio::test]
    async fn a_message_in_frames_of_a_byte_counts_for_its_bytes() {
        let (broker, _dir) = broker();
        let bytes = framed(&request(&[7; 5_000]));
        let bytes = [&bytes[..], &bytes[..3_000]].concat();
        let tiny: Vec<_> = bytes.chunks(1).collect();
        let mut messages = messages(&broker, &tiny, false);
        assert_eq!(next(&mut messages).await.unwrap(), Some(request(&[7; 5_000])));
        assert_eq!(broker.in_work().arriving, 5 << 10);
        messages.done();
        assert_eq!(broker.in_work().arriving, 0);
        {
            let mut half = std::pin::pin!(next(&mut messages));
            let polled = half.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
        }
        assert_eq!(broker.in_work().arriving, 3 << 10);
        drop(messages);
        assert_eq!(broker.in_work().arriving, 0);
        broker.close().unwrap();
    }

    /// A parked pull used to keep its request's room, and all that came behind it, as long as it lived.
    #[tokio::test]
    async fn of_a_request_of_one_message_nothing_is_counted_once_it_is_there() {
        let (broker, _dir) = broker();
        let sent = request(b"the only one");
        let bytes = [&framed(&sent)[..], &[0; 30 << 10]].concat();
        for frames in [&[&bytes[..]][..], &[&bytes[..7], &bytes[7..]]] {
            let messages = messages(&broker, frames, false);
            assert_eq!(messages.only::<SendStreamRequest>().await.unwrap(), sent);
            assert_eq!(broker.in_work().arriving, 0);
        }
        broker.close().unwrap();
    }

    /// Such a call used to last for ever, and held up the end of the broker.
    #[tokio::test(start_paused = true)]
    async fn a_request_of_one_message_is_not_waited_for_long_and_not_while_the_broker_drains() {
        let (broker, _dir) = broker();
        let begun = Instant::now();
        let silent = messages(&broker, &[], false).only::<SendStreamRequest>();
        let refused = silent.await.unwrap_err();
        assert_eq!(refused.message(), "the request did not arrive whole within 30s");
        assert_eq!(begun.elapsed(), WHOLE);

        let silent = messages(&broker, &[], false).only::<SendStreamRequest>();
        let drains = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            broker.drain();
        };
        let (refused, ()) = tokio::join!(silent, drains);
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
        assert_eq!(begun.elapsed(), WHOLE + Duration::from_secs(1));
        broker.close().unwrap();
    }

    /// All had received half of a message, and each waited for the room of the others.
    #[tokio::test]
    async fn of_those_who_hold_half_a_message_and_find_no_room_one_after_the_other_goes_on() {
        let (broker, _dir) = broker();
        let sent: Vec<_> = (0..15_u8).map(|n| request(&[n; 60 << 10])).collect();
        let behind = framed(&request(b"behind it"));
        let mut streams = Vec::new();
        for request in &sent {
            let bytes = framed(request);
            let mut stream = messages(&broker, &[&bytes[..40 << 10]], false);
            assert!(poll_once(next(&mut stream)).is_pending());
            let rest = [&bytes[40 << 10..], &behind[..]].concat();
            stream.body = Parts([rest.into()].into(), true);
            streams.push(stream);
        }
        let all_else = broker.receive(ARRIVALS - 15 * (40 << 10)).unwrap();
        assert!(broker.receive(1).is_err());
        let mut tasks = tokio::task::JoinSet::new();
        for (mut stream, sent) in streams.into_iter().zip(sent) {
            tasks.spawn(async move {
                assert_eq!(next(&mut stream).await.unwrap(), Some(sent));
                assert_eq!(next(&mut stream).await.unwrap(), Some(request(b"behind it")));
                assert_eq!(next(&mut stream).await.unwrap(), None);
            });
        }
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                ended.unwrap()
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("nobody goes on");
        drop(all_else);
        assert!(broker.receive(ARRIVALS).is_ok());
        broker.close().unwrap();
    }

    /// The place was free again before the message was even taken: what was received beyond the budget had no bound.
    #[tokio::test]
    async fn who_was_let_beyond_the_room_keeps_the_others_back_until_his_message_is_done_with() {
        let (broker, _dir) = broker();
        let mut streams = Vec::new();
        for n in 0..2 {
            let bytes = framed(&request(&[n; 60 << 10]));
            let mut stream = messages(&broker, &[&bytes[..40 << 10]], false);
            assert!(poll_once(next(&mut stream)).is_pending());
            stream.body = Parts([bytes.slice(40 << 10..)].into(), true);
            streams.push(stream);
        }
        let all_else = broker.receive(ARRIVALS - 2 * (40 << 10)).unwrap();
        let [first, second] = streams.as_mut_slice() else { panic!("two") };
        let message = next(first).await.unwrap();
        assert!(message.is_some());
        assert!(poll_once(next(second)).is_pending());
        drop(message);
        first.done();
        assert_eq!(next(second).await.unwrap(), Some(request(&[1; 60 << 10])));
        drop((streams, all_else));
        assert!(broker.receive(ARRIVALS).is_ok());
        broker.close().unwrap();
    }

    fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
        std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn an_answer_runs_its_call_frame_by_frame_and_ends_with_what_the_call_ends_with() {
        let outgoing = Outgoing::new();
        let answer = answer(outgoing, |out| async move {
            out.put([Bytes::from_static(b"a"), Bytes::from_static(b"b")], None).await;
            out.put([Bytes::from_static(b"c")], None).await;
            Err(Status::not_found("gone"))
        });
        let mut body = answer.into_body();
        let mut seen = Vec::new();
        let trailers = loop {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            match frame.into_data() {
                Ok(data) => seen.push(data),
                Err(frame) => break frame.into_trailers().unwrap(),
            }
        };
        assert_eq!(seen, [&b"a"[..], b"b", b"c"]);
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"5".parse().unwrap(), &"gone".parse().unwrap())
        );
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn a_panic_in_a_stream_ends_it_with_internal() {
        let answer = answer(Outgoing::new(), |_| async { panic!("on purpose") });
        let mut body = answer.into_body();
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        assert_eq!(frame.into_trailers().unwrap()["grpc-status"], "13");
    }
}
