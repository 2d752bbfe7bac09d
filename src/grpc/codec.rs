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

/// Fields of its first level and entries of the lists in those that a message has at most: twice the queues that a
/// topic may have.
pub(crate) const MAX_FIELDS: usize = 1 << 17;

/// A field that is looked into.
struct Inner {
    field: u32,
    holds: Holds,
}

/// What is in it.
enum Holds {
    /// A message, of which these fields count and are looked into; all others are there once, however often they come.
    Message(&'static [Inner]),
    /// An entry of a list, in which there is no other.
    Entry,
    /// Numbers, one behind the other: each of its bytes may be one.
    Numbers,
}

const fn message(field: u32, inside: &'static [Inner]) -> Inner {
    Inner { field, holds: Holds::Message(inside) }
}

const fn entry(field: u32) -> Inner {
    Inner { field, holds: Holds::Entry }
}

const fn numbers(field: u32) -> Inner {
    Inner { field, holds: Holds::Numbers }
}

/// Messages, with their properties and their system's, which have keys.
const SEND: &[Inner] = &[message(1, &[entry(2), message(3, &[entry(2)])])];

/// The endpoints, with their addresses.
const QUERY_ROUTE: &[Inner] = &[message(2, &[entry(2)])];
const QUERY_ASSIGNMENT: &[Inner] = &[message(3, &[entry(2)])];

/// A queue: its broker with its endpoints, and the types that it takes.
const QUEUE: &[Inner] = &[message(4, &[message(3, &[entry(2)])]), numbers(5)];
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
        check::<U>(buf.chunk()).map_err(|fault| Status::invalid_argument(fault.to_string()))?;
        self.0.decode(buf)
    }
}

/// Looks how many fields a message has.
///
/// # Errors
/// It has more than it may, or cannot be decoded: its decoder would make all of it that comes before the fault. Groups
/// are such a fault, which a decoder skips over; no message of ours has one.
pub(super) fn check<U: 'static>(message: &[u8]) -> Result<(), Fault> {
    // A field has two bytes at least, a number one. That spares the usual message the look.
    match message.len() {
        0..=MAX_FIELDS => Ok(()),
        _ => left(message, inside::<U>(), true, MAX_FIELDS).map(drop),
    }
}

/// Why fields are not counted to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("a message has more than {MAX_FIELDS} fields")]
    TooMany,
    #[error("the request cannot be decoded")]
    Malformed,
}

/// How many fields more there may be behind those of a message, of which `all` count or those that are looked into.
fn left(mut message: &[u8], inside: &[Inner], all: bool, mut left: usize) -> Result<usize, Fault> {
    while !message.is_empty() {
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
        if all || inner.is_some() {
            left = left.checked_sub(1).ok_or(Fault::TooMany)?;
        }
        match inner.map(|inner| &inner.holds) {
            None | Some(Holds::Entry) => {}
            Some(Holds::Message(inside)) => left = self::left(content, inside, false, left)?,
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
        let checked = check::<U>(&request.encode_to_vec());
        assert_ne!(checked, Err(Fault::Malformed));
        checked.is_err()
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
        // Of what is there once nothing counts.
        let full = |properties: usize| {
            let system = v2::SystemProperties {
                tag: Some("tag".to_owned()),
                keys: vec!["key".to_owned()],
                message_id: "id".to_owned(),
                message_type: 1,
                queue_id: 1,
                born_host: "host".to_owned(),
                ..v2::SystemProperties::default()
            };
            v2::Message {
                user_properties: (0..properties).map(|n| (n.to_string(), "x".into())).collect(),
                system_properties: Some(system),
                body: vec![7; 9].into(),
                ..v2::Message::default()
            }
        };
        assert!(!refuses(&sends(vec![full(10); 10_000])));
        assert!(!refuses(&sends(vec![full(128); 1_000])));
        assert!(refuses(&sends(vec![full(11); 10_000])));

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
        (path, is_first): (&str, bool),
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
                Some(Holds::Entry) => assert!(is_list && is_text, "{path}"),
                Some(Holds::Message(_)) => assert_eq!(field.r#type(), Type::Message, "{path}"),
                // All fields of the first level count.
                None if is_list && !(is_first && is_text) => missing.push(path.clone()),
                None => {}
            }
            if field.r#type() == Type::Message {
                let inside = match inner.map(|inner| &inner.holds) {
                    Some(Holds::Message(inside)) => Some(*inside),
                    _ => None,
                };
                missed(field.type_name(), all, inside, (&path, false), missing);
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
                // A receive is decoded without its lists, streams take little at once or bound each.
                let has_its_own_way =
                    ["ReceiveMessage", "Telemetry", "SendStream", "Pull", "PullStream", "Consume"];
                if has_its_own_way.contains(&method.name()) {
                    continue;
                }
                requests += 1;
                let of = method.input_type();
                let table = tables.get(of).copied().unwrap_or_default();
                missed(of, &all, Some(table), (of, true), &mut missing);
            }
        }
        assert_eq!(missing, Vec::<String>::new());
        assert!(requests > 40, "{requests}");
    }

    #[test]
    fn what_cannot_be_decoded_or_has_groups_is_refused_before_the_decoder_makes_all_that_comes_first()
     {
        let refused = |bytes: &[u8]| check::<v2::SendMessageRequest>(bytes);
        // A group of a field that is not known, which a decoder skips; then very many messages.
        let group = [0xa3, 0x06, 0xa4, 0x06];
        let many = [0x0a, 0x00].repeat(MAX_FIELDS + 1);
        let with_group = [&group[..], &many].concat();
        assert_eq!(refused(&with_group), Err(Fault::Malformed));
        let len = |len: usize| {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(len as u64, &mut bytes);
            bytes
        };
        let keys = [0x12, 0x00].repeat(MAX_FIELDS + 1);
        let system = [&group[..], &keys].concat();
        let message = [&[0x1a][..], &len(system.len()), &system].concat();
        let whole = [&[0x0a][..], &len(message.len()), &message].concat();
        assert_eq!(refused(&whole), Err(Fault::Malformed));
        // A length beyond the message that it is in.
        let whole = [&[0x0a, 0x05, 0x1a][..], &len(keys.len()), &keys].concat();
        assert_eq!(refused(&whole), Err(Fault::Malformed));
        // A length beyond the end.
        let mut bytes = [0x08, 0x01].repeat(MAX_FIELDS - 1);
        bytes.extend([0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        assert_eq!(refused(&bytes), Err(Fault::Malformed));
        for byte in 0..=255 {
            let bytes = vec![byte; MAX_FIELDS + 1];
            if refused(&bytes).is_ok() {
                let decoded = v2::SendMessageRequest::decode(&bytes[..]);
                assert!(
                    decoded.is_ok_and(|request| request.messages.len() <= MAX_FIELDS),
                    "{byte}"
                );
            }
        }
    }
}
