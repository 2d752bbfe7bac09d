//! The codec of unary calls: prost's, which looks first how many fields a message has.
//!
//! An entry of a list may take two bytes here and hundreds in memory: without that, 32 MiB of empty messages would
//! become gigabytes before anybody could count them.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Fields that a message has at most, counted on its first level: twice the queues that a topic may have.
pub(crate) const MAX_FIELDS: usize = 1 << 17;

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

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if has_too_many(buf.chunk()) {
            let fault = format!("a message has more than {MAX_FIELDS} fields");
            return Err(Status::invalid_argument(fault));
        }
        self.0.decode(buf)
    }
}

/// Whether a message has more fields than it may. One that is none is left to its decoder.
fn has_too_many(mut message: &[u8]) -> bool {
    // A field has two bytes at least. That spares the usual message the look.
    if message.len() <= 2 * MAX_FIELDS {
        return false;
    }
    let mut count = 0;
    while !message.is_empty() {
        count += 1;
        if count > MAX_FIELDS {
            return true;
        }
        let Ok((_, kind)) = decode_key(&mut message) else { return false };
        let len = match kind {
            WireType::Varint => match decode_varint(&mut message) {
                Ok(_) => Some(0),
                Err(_) => None,
            },
            WireType::LengthDelimited => {
                decode_varint(&mut message).ok().and_then(|len| usize::try_from(len).ok())
            }
            WireType::ThirtyTwoBit => Some(4),
            WireType::SixtyFourBit => Some(8),
            WireType::StartGroup | WireType::EndGroup => None,
        };
        let Some(rest) = len.and_then(|len| message.get(len..)) else { return false };
        message = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rocketmq as v2;

    #[test]
    fn fields_are_counted_on_the_first_level_alone() {
        let message = v2::Message { body: vec![10; 1 << 20].into(), ..v2::Message::default() };
        let one = v2::SendMessageRequest { messages: vec![message] };
        assert!(!has_too_many(&one.encode_to_vec()), "what a body holds is no field");
        let of = |count| v2::SendMessageRequest { messages: vec![v2::Message::default(); count] };
        assert!(!has_too_many(&of(MAX_FIELDS).encode_to_vec()));
        assert!(has_too_many(&of(MAX_FIELDS + 1).encode_to_vec()));
    }

    #[test]
    fn what_is_no_message_is_left_to_its_decoder() {
        for byte in 0..=255 {
            let _ = has_too_many(&vec![byte; 2 * MAX_FIELDS + 1]);
        }
        // A length beyond the end, in the middle.
        let mut bytes = [0x08, 0x01].repeat(MAX_FIELDS - 1);
        bytes.extend([0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        assert!(!has_too_many(&bytes));
    }
}
