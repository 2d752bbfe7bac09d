//! The codec of unary calls: prost's, which looks first how many fields a message has.
//!
//! An entry of a list may take two bytes here and hundreds in memory: without that, 32 MiB of empty messages would
//! become gigabytes before anybody could count them. Lists that lie deeper in a request are looked into by a table of
//! what holds them; nothing else tells them from a body that looks like one. One walk over the bytes counts all.

use std::any::TypeId;
use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::proto::{self, rocketmq as v2};

/// Fields that a message has at most, those of the messages in it included that hold lists: twice the queues that a
/// topic may have.
pub(crate) const MAX_FIELDS: usize = 1 << 17;

/// A field that is looked into.
struct Inner {
    field: u32,
    holds: Holds,
}

/// What is in it.
enum Holds {
    /// A message, of which all fields count, and of which these are looked into.
    Message(&'static [Inner]),
    /// Numbers, one behind the other: each of its bytes may be one.
    Numbers,
}

const fn message(field: u32, inside: &'static [Inner]) -> Inner {
    Inner { field, holds: Holds::Message(inside) }
}

const fn numbers(field: u32) -> Inner {
    Inner { field, holds: Holds::Numbers }
}

/// Messages, with their properties and their system's, which have keys.
const SEND: &[Inner] = &[message(1, &[message(3, &[])])];

/// The endpoints, with their addresses.
const QUERY_ROUTE: &[Inner] = &[message(2, &[])];
const QUERY_ASSIGNMENT: &[Inner] = &[message(3, &[])];

/// A queue: its broker with its endpoints, and the types that it takes.
const QUEUE: &[Inner] = &[message(4, &[message(3, &[])]), numbers(5)];
const QUEUE_FIRST: &[Inner] = &[message(1, QUEUE)];
const QUEUE_SECOND: &[Inner] = &[message(2, QUEUE)];

/// The settings of a group, with their pauses.
const GROUP: &[Inner] = &[message(2, &[message(4, &[numbers(1)])])];

/// What is looked into of a request: everything that holds a list, which does not lie on its first level.
fn inside<U: 'static>() -> &'static [Inner] {
    let is = |of: TypeId| of == TypeId::of::<U>();
    match () {
        () if is(TypeId::of::<v2::SendMessageRequest>()) => SEND,
        () if is(TypeId::of::<v2::QueryRouteRequest>()) => QUERY_ROUTE,
        () if is(TypeId::of::<v2::QueryAssignmentRequest>()) => QUERY_ASSIGNMENT,
        () if is(TypeId::of::<v2::PullMessageRequest>()) => QUEUE_SECOND,
        () if is(TypeId::of::<v2::UpdateOffsetRequest>()) => QUEUE_SECOND,
        () if is(TypeId::of::<v2::GetOffsetRequest>()) => QUEUE_SECOND,
        () if is(TypeId::of::<v2::QueryOffsetRequest>()) => QUEUE_FIRST,
        () if is(TypeId::of::<proto::CreateGroupRequest>()) => GROUP,
        () if is(TypeId::of::<proto::UpdateGroupRequest>()) => GROUP,
        () => &[],
    }
}

/// tonic's codec of prost, for messages of at most [`MAX_FIELDS`] fields.
#[derive(Debug)]
pub(crate) struct Bounded<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Bounded<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Bounded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstDecoder::default())
    }
}

/// The half of [`Bounded`] that decodes.
#[derive(Debug)]
pub(crate) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if has_too_many(buf.chunk(), inside::<U>()) {
            let fault = format!("a message has more than {MAX_FIELDS} fields");
            return Err(Status::invalid_argument(fault));
        }
        self.0.decode(buf)
    }
}

/// Whether a message has more fields than it may. One that is none is left to its decoder.
fn has_too_many(message: &[u8], inside: &[Inner]) -> bool {
    // A field has two bytes at least, a number one. That spares the usual message the look.
    message.len() > MAX_FIELDS && matches!(left(message, inside, MAX_FIELDS), Err(Fault::TooMany))
}

/// Why fields are not counted to the end.
enum Fault {
    TooMany,
    Malformed,
}

/// How many fields more there may be behind those of a message.
fn left(mut message: &[u8], inside: &[Inner], mut left: usize) -> Result<usize, Fault> {
    while !message.is_empty() {
        left = left.checked_sub(1).ok_or(Fault::TooMany)?;
        let (field, kind) = decode_key(&mut message).map_err(|_| Fault::Malformed)?;
        let len = match kind {
            WireType::Varint => {
                decode_varint(&mut message).map_err(|_| Fault::Malformed)?;
                Some(0)
            }
            WireType::LengthDelimited => {
                decode_varint(&mut message).ok().and_then(|len| usize::try_from(len).ok())
            }
            WireType::ThirtyTwoBit => Some(4),
            WireType::SixtyFourBit => Some(8),
            WireType::StartGroup | WireType::EndGroup => None,
        };
        let (content, rest) =
            len.and_then(|len| message.split_at_checked(len)).ok_or(Fault::Malformed)?;
        message = rest;
        let inner = inside.iter().find(|inner| inner.field == field);
        match inner.map(|inner| &inner.holds) {
            None => {}
            Some(Holds::Message(inside)) => left = self::left(content, inside, left)?,
            Some(Holds::Numbers) => {
                left = left.checked_sub(content.len()).ok_or(Fault::TooMany)?;
            }
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost_types::field_descriptor_proto::{Label, Type};
    use prost_types::{DescriptorProto, FileDescriptorSet};

    use super::*;

    fn refuses<U: Message + 'static>(request: &U) -> bool {
        has_too_many(&request.encode_to_vec(), inside::<U>())
    }

    fn sends(messages: Vec<v2::Message>) -> v2::SendMessageRequest {
        v2::SendMessageRequest { messages }
    }

    #[test]
    fn what_a_body_holds_is_no_field() {
        let body = vec![10; 1 << 20].into();
        assert!(!refuses(&sends(vec![v2::Message { body, ..v2::Message::default() }])));
        assert!(!refuses(&sends(vec![v2::Message::default(); MAX_FIELDS])));
        assert!(refuses(&sends(vec![v2::Message::default(); MAX_FIELDS + 1])));
    }

    #[test]
    fn lists_that_lie_deeper_count_as_well_each_by_itself_and_all_together() {
        let with_keys = |count| {
            let keys = vec![String::new(); count];
            let system = v2::SystemProperties { keys, ..v2::SystemProperties::default() };
            v2::Message { system_properties: Some(system), ..v2::Message::default() }
        };
        // Beside the keys the message counts, and what they are in.
        assert!(!refuses(&sends(vec![with_keys(MAX_FIELDS - 2)])));
        assert!(refuses(&sends(vec![with_keys(MAX_FIELDS - 1)])));
        assert!(refuses(&sends(vec![with_keys(1 << 20)])));
        let many = 1 << 10;
        assert!(!refuses(&sends(vec![with_keys(MAX_FIELDS / many - 2); many])));
        assert!(refuses(&sends(vec![with_keys(MAX_FIELDS / many - 1); many])));

        let user_properties = (0..MAX_FIELDS).map(|n| (n.to_string(), String::new())).collect();
        let properties = v2::Message { user_properties, ..v2::Message::default() };
        assert!(refuses(&sends(vec![properties])));

        let addresses = vec![v2::Address::default(); MAX_FIELDS];
        let endpoints = Some(v2::Endpoints { addresses, ..v2::Endpoints::default() });
        let route = v2::QueryRouteRequest { endpoints, ..v2::QueryRouteRequest::default() };
        assert!(refuses(&route));
        let endpoints = route.endpoints;
        let request = v2::QueryAssignmentRequest { endpoints, ..Default::default() };
        assert!(refuses(&request));

        let delays = |count| proto::CreateGroupRequest {
            config: Some(proto::GroupConfig {
                retry_delays: Some(proto::RetryDelays { ms: vec![0; count] }),
                ..proto::GroupConfig::default()
            }),
            ..proto::CreateGroupRequest::default()
        };
        assert!(!refuses(&delays(MAX_FIELDS - 3)));
        assert!(refuses(&delays(MAX_FIELDS)));
    }

    /// Whether lists that lie below the first level of a message, or of what is looked into, are looked into.
    fn missed(
        of: &str,
        all: &BTreeMap<String, DescriptorProto>,
        looked: Option<&[Inner]>,
        path: &str,
        missing: &mut Vec<String>,
    ) {
        for field in all.get(of).map_or(&[][..], |of| &of.field) {
            let path = format!("{path}.{}", field.name());
            let is_list = field.label() == Label::Repeated;
            let inner = looked.and_then(|looked| {
                looked.iter().find(|inner| i64::from(inner.field) == i64::from(field.number()))
            });
            let is_text = matches!(field.r#type(), Type::Message | Type::String | Type::Bytes);
            match inner.map(|inner| &inner.holds) {
                Some(Holds::Numbers) => assert!(is_list && !is_text, "{path}"),
                _ if is_list && (looked.is_none() || !is_text) => missing.push(path.clone()),
                _ => {}
            }
            if field.r#type() == Type::Message {
                let inside = match inner.map(|inner| &inner.holds) {
                    Some(Holds::Message(inside)) => Some(*inside),
                    _ => None,
                };
                missed(field.type_name(), all, inside, &path, missing);
            }
        }
    }

    #[test]
    fn whatever_holds_a_list_in_a_request_with_a_codec_is_looked_into() {
        let tables = BTreeMap::from([
            (".apache.rocketmq.v2.SendMessageRequest", inside::<v2::SendMessageRequest>()),
            (".apache.rocketmq.v2.QueryRouteRequest", inside::<v2::QueryRouteRequest>()),
            (".apache.rocketmq.v2.QueryAssignmentRequest", inside::<v2::QueryAssignmentRequest>()),
            (".apache.rocketmq.v2.PullMessageRequest", inside::<v2::PullMessageRequest>()),
            (".apache.rocketmq.v2.UpdateOffsetRequest", inside::<v2::UpdateOffsetRequest>()),
            (".apache.rocketmq.v2.GetOffsetRequest", inside::<v2::GetOffsetRequest>()),
            (".apache.rocketmq.v2.QueryOffsetRequest", inside::<v2::QueryOffsetRequest>()),
            (".mainstem.v1.CreateGroupRequest", inside::<proto::CreateGroupRequest>()),
            (".mainstem.v1.UpdateGroupRequest", inside::<proto::UpdateGroupRequest>()),
        ]);
        let (mut missing, mut requests) = (Vec::new(), 0);
        for set in [proto::DESCRIPTORS, v2::DESCRIPTORS] {
            let set = FileDescriptorSet::decode(set).unwrap();
            let mut all = BTreeMap::new();
            for file in &set.file {
                for of in &file.message_type {
                    let name = format!(".{}.{}", file.package(), of.name());
                    for inner in &of.nested_type {
                        all.insert(format!("{name}.{}", inner.name()), inner.clone());
                    }
                    all.insert(name, of.clone());
                }
            }
            let methods = set.file.iter().flat_map(|file| &file.service).flat_map(|of| &of.method);
            for method in methods {
                let has_its_own_way =
                    ["ReceiveMessage", "Telemetry", "SendStream", "Pull", "PullStream", "Consume"];
                if has_its_own_way.contains(&method.name()) {
                    continue;
                }
                requests += 1;
                let of = method.input_type();
                let table = tables.get(of).copied().unwrap_or_default();
                missed(of, &all, Some(table), of, &mut missing);
            }
        }
        assert_eq!(missing, Vec::<String>::new());
        assert!(requests > 40, "{requests}");
    }

    #[test]
    fn what_is_no_message_is_left_to_its_decoder() {
        for byte in 0..=255 {
            let _ = has_too_many(&vec![byte; 2 * MAX_FIELDS + 1], SEND);
        }
        // A length beyond the end, in the middle.
        let mut bytes = [0x08, 0x01].repeat(MAX_FIELDS - 1);
        bytes.extend([0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        assert!(!has_too_many(&bytes, SEND));
    }
}
