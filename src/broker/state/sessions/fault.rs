//! Why a producer session, or a batch that names one, is refused; and which names a session may have.

/// The longest name of a session, in bytes.
const MAX_NAME_LEN: usize = 255;

/// Why a session, or a batch that names one, is refused. Nothing was stored for the request; the session is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionFault {
    /// A name has at least one byte.
    #[error("a producer session's name cannot be empty")]
    NameEmpty,
    /// The name is too long.
    #[error("a producer session's name of {len} bytes exceeds the limit of {limit}")]
    NameTooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest there may be.
        limit: usize,
    },
    /// The name has a control character.
    #[error("a producer session's name has no control characters; {found:?} is one")]
    NameCharacter {
        /// The first such character.
        found: char,
    },
    /// There are too many sessions, and none of them is idle.
    #[error("there are {limit} producer sessions, none of them idle for 7 days; close one first")]
    Limit {
        /// How many there may be.
        limit: usize,
    },
    /// There is no such session, or no more.
    #[error("there is no such producer session; open it by its name")]
    Unknown,
    /// The name was opened again since.
    #[error("another producer has opened the session since, as its epoch {current}")]
    Fenced {
        /// The epoch that may send.
        current: u64,
    },
    /// The epoch was never given out, or a power cut took its opening.
    #[error("the producer session is at epoch {current} only; open it again by its name")]
    Ahead {
        /// The epoch that may send.
        current: u64,
    },
    /// Sequences count from 1.
    #[error("sequences of a producer session count from 1")]
    NoSequence,
    /// The batch before this one is not stored.
    #[error("the producer session goes on with sequence {expected}, not with {found}")]
    Gap {
        /// The next to be stored.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// The batch was stored once, and its place is forgotten.
    #[error("the batch of sequence {found} was stored, but places are known from {oldest} on only")]
    TooOld {
        /// The first that is remembered.
        oldest: u64,
        /// The one that came.
        found: u64,
    },
    /// Another batch was stored under this sequence.
    #[error("sequence {sequence} was stored as a batch of {stored} messages, not of {found}")]
    Reused {
        /// The one that came.
        sequence: u64,
        /// Messages of the batch that was stored.
        stored: u32,
        /// Messages of the one that came.
        found: u32,
    },
}

/// Whether a session can have this name: 1 to 255 bytes of text without control characters.
///
/// # Errors
/// The first rule that the name breaks.
pub(crate) fn check_name(name: &str) -> Result<(), SessionFault> {
    if name.is_empty() {
        return Err(SessionFault::NameEmpty);
    }
    if name.len() > MAX_NAME_LEN {
        return Err(SessionFault::NameTooLong { len: name.len(), limit: MAX_NAME_LEN });
    }
    match name.chars().find(|c| c.is_control()) {
        Some(found) => Err(SessionFault::NameCharacter { found }),
        None => Ok(()),
    }
}
