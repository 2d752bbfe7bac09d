//! Consume: credits and receipts in, messages and what became of receipts out.
//!
//! What is settled is in the log before the next request is looked at, and is told as soon as that may be; messages go
//! out meanwhile. Of requests whose settlements are not told at most [`IN_FLIGHT`] are taken, the next ones stay with
//! their sender.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use hyper::body::Body as HttpBody;
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, skip_field};
use tonic::Status;
use tonic::codegen::StdError;

use super::receive::{entry, invisible, message, result};
use super::status::{self, Part};
use crate::broker::{
    Broker, BrokerError, ConsumeError, ConsumeStream, Consumed, Expression, Language, MAX_RECEIVE,
    Permit, RequestFault, Settlement,
};
use crate::grpc::raw::{Messages, Out, refusal};
use crate::grpc::serve::Ends;
use crate::proto::consume_request::{Open, open::Filter};
use crate::proto::consume_response::Settled;
use crate::proto::{ConsumeRequest, ConsumeResponse};
use crate::wire::framed;

/// Requests of a stream whose settlements are not told.
const IN_FLIGHT: usize = 64;
/// The fields of a request that are lists, in the proto.
const LISTS: [u32; 2] = [5, 6];
/// What a request costs until its answer has left, beside its new receipts; and what each of these does.
const REQUEST_COST: usize = 128;
const RECEIPT_COST: usize = 64;

/// A request as it is decoded: with at most one receipt of a kind more than it may have, which is refused. An empty one
/// is two bytes long and many times that in memory.
#[derive(Debug, Default)]
struct Bounded(ConsumeRequest);

impl prost::Message for Bounded {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.0.encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let most = self.0.acks.len().max(self.0.extensions.len());
        if LISTS.contains(&tag) && most > MAX_RECEIVE as usize {
            return skip_field(wire_type, tag, buf, ctx);
        }
        self.0.merge_field(tag, wire_type, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// What a stream waits for.
enum Event {
    Received(Result<Option<ConsumeRequest>, Status>),
    Consumed(Result<Consumed, ConsumeError>),
    Draining,
}

/// Runs a stream to its end.
///
/// # Errors
/// Of the first request that was refused, of what could not be settled, or of messages that cannot be had.
pub(super) async fn run<B>(
    broker: Arc<Broker>,
    ends: Option<Ends>,
    mut messages: Messages<B>,
    out: Out,
) -> Result<(), Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let place = broker.consume_place().map_err(|error| refusal(&broker, &error))?;
    let mut drained = pin!(broker.drained());
    let first = tokio::select! {
        biased;
        received = messages.first() => received?,
        () = drained.as_mut() => return Err(refusal(&broker, &BrokerError::Draining)),
    };
    let Some(Bounded(mut first)) = first else { return Ok(()) };
    let opened = match first.open.take() {
        Some(open) => match asked(open, ends) {
            Ok(asked) => broker.consume(place, asked).await,
            Err(error) => Err(error),
        },
        None => Err(bad(RequestFault::NotOpen)),
    };
    let mut stream = opened.map_err(|error| refusal(&broker, &error))?;
    let mut ended = take(&mut stream, first).await.map_err(|error| refused(&broker, &error));
    messages.done();
    while ended.is_ok() {
        let may_receive = stream.unsaid() < IN_FLIGHT;
        let event = tokio::select! {
            biased;
            received = messages.next(), if may_receive => {
                Event::Received(received.map(|request| request.map(|Bounded(request)| request)))
            }
            consumed = stream.next() => Event::Consumed(consumed),
            () = drained.as_mut() => Event::Draining,
        };
        messages.pause();
        ended = match event {
            Event::Received(Ok(None)) => break,
            Event::Received(Err(status)) => Err(status),
            Event::Received(Ok(Some(request))) => {
                let taken = take(&mut stream, request).await;
                messages.done();
                taken.map_err(|error| refused(&broker, &error))
            }
            Event::Consumed(Ok(Consumed::Settled(all))) => {
                let mut telling = pin!(tell(&out, all));
                tokio::select! {
                    biased;
                    () = &mut telling => {}
                    // The consumer does not take it yet.
                    () = ready(()) => {
                        stream.rest();
                        telling.await;
                    }
                }
                Ok(())
            }
            Event::Consumed(Ok(Consumed::Messages(received))) => {
                let messages = received.messages.into_iter().map(message).collect();
                let answer = ConsumeResponse { messages, settled: Vec::new() };
                let frame = framed(&answer);
                let handles = answer.messages.into_iter().map(|message| message.handle);
                let on_their_way = stream.on_their_way(handles.collect());
                out.put([frame], received.permit).await;
                on_their_way.arrived();
                Ok(())
            }
            // Behind it nothing is told, as it would be taken for the answer of that one.
            Event::Consumed(Err(error)) if error.number.is_some() => {
                return Err(refused(&broker, &error));
            }
            Event::Consumed(Err(error)) => Err(refused(&broker, &error)),
            Event::Draining => Err(refusal(&broker, &BrokerError::Draining)),
        };
    }
    // Nothing more is leased, and what was settled is told.
    stream.end_credits();
    while stream.unsaid() > 0 {
        let settled = stream.next_settled().await.map_err(|error| refused(&broker, &error))?;
        tell(&out, settled).await;
    }
    ended
}

/// What a stream is opened for, and by whom.
fn asked(open: Open, ends: Option<Ends>) -> Result<crate::broker::ConsumeRequest, BrokerError> {
    let (language, text) = match &open.filter {
        None => (Language::Tags, ""),
        Some(Filter::Tags(tags)) => (Language::Tags, tags.as_str()),
        Some(Filter::Sql(sql)) => (Language::Sql, sql.as_str()),
    };
    Ok(crate::broker::ConsumeRequest {
        filter: Expression::parse(language, text)?,
        filter_len: text.len(),
        invisible: invisible(open.invisible_ms),
        holder: ends.map(|ends| ends.peer.to_string()).unwrap_or_default(),
        group: open.group,
        topic: open.topic,
    })
}

/// Takes a request, all of it or nothing; of one that settles both ways perhaps the acks alone.
async fn take(stream: &mut ConsumeStream, request: ConsumeRequest) -> Result<(), ConsumeError> {
    let number = Some(request.number);
    let of_request = |error| ConsumeError { number, error };
    if request.open.is_some() {
        return Err(of_request(bad(RequestFault::OpenTwice)));
    }
    stream.add_credits(request.messages, request.bytes).map_err(of_request)?;
    if request.no_more {
        stream.end_credits();
    }
    let receipts = request.acks.len() + request.extensions.len();
    if receipts == 0 && !request.no_more {
        return Ok(());
    }
    let bytes = |handle: &String| handle.len() + RECEIPT_COST;
    let extended = request.extensions.iter().map(|entry| bytes(&entry.handle));
    let cost = REQUEST_COST + request.acks.len() + extended.sum::<usize>();
    let handles: Vec<&str> = request.acks.iter().map(String::as_str).collect();
    let entries: Result<Vec<_>, BrokerError> = request.extensions.iter().map(entry).collect();
    let entries = entries.map_err(of_request)?;
    let cost = u64::try_from(cost).unwrap_or(u64::MAX);
    stream.settle(request.number, &handles, &entries, cost).await.map_err(of_request)
}

/// Tells what was settled.
async fn tell(out: &Out, all: Vec<Settlement>) {
    let mut held = None;
    let settled = |settlement: Settlement| {
        if let Some(permit) = settlement.permit {
            Permit::add(&mut held, permit);
        }
        Settled {
            number: settlement.number,
            finished: settlement.finished,
            results: settlement.extended.into_iter().map(result).collect(),
        }
    };
    let settled = all.into_iter().map(settled).collect();
    let answer = ConsumeResponse { messages: Vec::new(), settled };
    let frame = framed(&answer);
    // Not twice for as long as the client takes.
    drop(answer);
    out.put([frame], held).await;
}

/// Counts a refusal and words it for the wire.
fn refused(broker: &Broker, ConsumeError { number, error }: &ConsumeError) -> Status {
    broker.counters().refused(error.reason());
    status::of_part(error, Part { sequence: *number, queue: None })
}

fn bad(fault: RequestFault) -> BrokerError {
    BrokerError::BadRequest { fault }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::ExtendEntry;

    #[test]
    fn a_request_has_at_most_one_receipt_of_a_kind_more_than_it_may() {
        let most = MAX_RECEIVE as usize;
        for (acks, extensions, left) in
            [(100_000, 0, (most + 1, 0)), (0, 100_000, (0, most + 1)), (most, 3, (most, 3))]
        {
            let sent = ConsumeRequest {
                number: 7,
                acks: vec![String::new(); acks],
                extensions: vec![ExtendEntry::default(); extensions],
                ..ConsumeRequest::default()
            };
            let Bounded(received) = Bounded::decode(&sent.encode_to_vec()[..]).unwrap();
            let lens = (received.acks.len(), received.extensions.len());
            assert_eq!((lens, received.number), (left, 7));
        }
    }
}
