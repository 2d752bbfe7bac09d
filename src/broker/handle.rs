//! What a consumer gets with a message and brings back to finish it: opaque text that names one lease, signed.
//!
//! | at | len | field |
//! | -: | --: | --- |
//! |  0 |   1 | version, 1 |
//! |  1 |   1 | flags: 1 the message's first lease |
//! |  2 |   4 | queue |
//! |  6 |   8 | queue offset |
//! | 14 |   8 | group's incarnation |
//! | 22 |   8 | topic's incarnation |
//! | 30 |   8 | epoch of the record |
//! | 38 |   8 | physical offset of the record |
//! | 46 |   8 | epoch of the lease |
//! | 54 |   8 | number of the lease |
//! | 62 |   4 | which delivery |
//! | 66 |   8 | when that delivery was, ms |
//! | 74 |   8 | when the lease ends, ms: for people, nothing depends on it |
//! | 82 |  16 | the first half of HMAC-SHA256 of all before, with the store's own key |
//!
//! Little-endian, as text in base64 for URLs without padding: 131 characters. The record is named beside its place in
//! the queue, because another one may be there after a power cut.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::message::{
    Epoch, GroupId, LeaseId, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId,
};

const VERSION: u8 = 1;
const FIRST: u8 = 1;

const CONTENT_LEN: usize = 82;
const MAC_LEN: usize = 16;
const LEN: usize = CONTENT_LEN + MAC_LEN;
/// Characters of the text.
const TEXT_LEN: usize = (LEN * 4).div_ceil(3);
const _: () = assert!(TEXT_LEN == 131, "what clients may have to keep is bounded");

/// What a handle says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) group: GroupId,
    pub(super) topic: TopicId,
    pub(super) queue: QueueId,
    pub(super) offset: QueueOffset,
    /// Of the message's record.
    pub(super) record_epoch: Epoch,
    pub(super) record: PhysicalOffset,
    pub(super) lease: LeaseId,
    pub(super) is_first: bool,
    pub(super) delivery: u32,
    /// By the clock of leases.
    pub(super) delivered: Timestamp,
    pub(super) due: Timestamp,
}

/// Signs handles, and knows its own again.
pub(super) struct Signer(hmac::Key);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// One with the key of a store.
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The text of a handle.
    pub(super) fn text(&self, handle: &Handle) -> String {
        let mut bytes = [0; LEN];
        let (content, mac) = bytes.split_at_mut(CONTENT_LEN);
        content.copy_from_slice(&handle.content());
        mac.copy_from_slice(&self.mac(content));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The handle of a text; `None`: it is none that this store gave out.
    pub(super) fn handle(&self, text: &str) -> Option<Handle> {
        if text.len() != TEXT_LEN {
            return None;
        }
        let bytes: [u8; LEN] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (content, mac) = bytes.split_at(CONTENT_LEN);
        // In the same time wherever they differ.
        let differs = self.mac(content).iter().zip(mac).fold(0, |all, (a, b)| all | (a ^ b));
        if differs != 0 {
            return None;
        }
        Handle::of(content)
    }

    fn mac(&self, content: &[u8]) -> [u8; MAC_LEN] {
        let mut mac = [0; MAC_LEN];
        let tag = hmac::sign(&self.0, content);
        mac.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        mac
    }
}

impl Handle {
    fn content(&self) -> [u8; CONTENT_LEN] {
        let mut out = [0; CONTENT_LEN];
        let mut rest = &mut out[..];
        let mut put = |bytes: &[u8]| {
            let (to, behind) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            to.copy_from_slice(bytes);
            rest = behind;
        };
        put(&[VERSION, if self.is_first { FIRST } else { 0 }]);
        put(&self.queue.get().to_le_bytes());
        for number in [
            self.offset.get(),
            self.group.get(),
            self.topic.get(),
            self.record_epoch.get(),
            self.record.get(),
            self.lease.epoch.get(),
            self.lease.number,
        ] {
            put(&number.to_le_bytes());
        }
        put(&self.delivery.to_le_bytes());
        put(&self.delivered.get().to_le_bytes());
        put(&self.due.get().to_le_bytes());
        out
    }

    fn of(content: &[u8]) -> Option<Self> {
        let long = |at: usize| {
            let bytes = content.get(at..at + size_of::<u64>())?;
            bytes.try_into().ok().map(u64::from_le_bytes)
        };
        let word = |at: usize| {
            let bytes = content.get(at..at + size_of::<u32>())?;
            bytes.try_into().ok().map(u32::from_le_bytes)
        };
        if *content.first()? != VERSION {
            return None;
        }
        Some(Self {
            is_first: content.get(1)? & FIRST != 0,
            queue: QueueId::new(word(2)?),
            offset: QueueOffset::new(long(6)?),
            group: GroupId::new(long(14)?),
            topic: TopicId::new(long(22)?),
            record_epoch: Epoch::new(long(30)?),
            record: PhysicalOffset::new(long(38)?),
            lease: LeaseId { epoch: Epoch::new(long(46)?), number: long(54)? },
            delivery: word(62)?,
            delivered: Timestamp::new(long(66)?),
            due: Timestamp::new(long(74)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLE: Handle = Handle {
        group: GroupId::new(1),
        topic: TopicId::new(2),
        queue: QueueId::new(3),
        offset: QueueOffset::new(4),
        record_epoch: Epoch::new(5),
        record: PhysicalOffset::new(6),
        lease: LeaseId { epoch: Epoch::new(7), number: 8 },
        is_first: true,
        delivery: 9,
        delivered: Timestamp::new(10),
        due: Timestamp::new(11),
    };

    #[test]
    fn a_handle_leads_back_to_its_lease() {
        let signer = Signer::new(&[7; 32]);
        let text = signer.text(&HANDLE);
        assert_eq!(text.len(), TEXT_LEN);
        assert!(text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_')));
        assert_eq!(signer.handle(&text), Some(HANDLE));
        let later = Handle { is_first: false, ..HANDLE };
        assert_eq!(signer.handle(&signer.text(&later)), Some(later));
    }

    #[test]
    fn the_bytes_of_a_handle_stay_as_they_are() {
        let text = Signer::new(&[7; 32]).text(&HANDLE);
        let content = URL_SAFE_NO_PAD.decode(text).unwrap();
        let mut wanted = vec![1, 1, 3, 0, 0, 0];
        for number in [4_u64, 1, 2, 5, 6, 7, 8] {
            wanted.extend_from_slice(&number.to_le_bytes());
        }
        wanted.extend_from_slice(&9_u32.to_le_bytes());
        wanted.extend_from_slice(&10_u64.to_le_bytes());
        wanted.extend_from_slice(&11_u64.to_le_bytes());
        assert_eq!(content[..CONTENT_LEN], wanted);
    }

    #[test]
    fn no_text_but_one_that_was_given_out_is_taken() {
        let signer = Signer::new(&[7; 32]);
        let text = signer.text(&HANDLE);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(signer.handle(str::from_utf8(&bytes).unwrap()), None, "at {at}");
        }
        assert_eq!(Signer::new(&[8; 32]).handle(&text), None, "of another store");
        let others = [String::new(), format!("{text}A"), text[1..].to_owned(), "ü".repeat(65)];
        for other in others {
            assert_eq!(signer.handle(&other), None, "{other}");
        }
    }
}
