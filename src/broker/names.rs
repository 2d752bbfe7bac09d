//! Which names a topic may have.
//!
//! | rule | names |
//! | --- | --- |
//! | can be made | 1 to 127 ASCII letters, digits, `_` and `-`, and not reserved |
//! | can be asked for | the same up to 255 bytes, and `%` and `|`, which stand in names that the broker makes itself |
//! | reserved | what Apache RocketMQ keeps for itself, so that stores and tools do not mean two things by one name |

/// The longest name that can be made, in bytes.
pub(super) const MAX_LEN: usize = 127;

/// The longest name that can be asked for, in bytes.
const MAX_SYSTEM_LEN: usize = 255;

/// RocketMQ's own topics and names (its `TopicValidator`), which no client may make or send to.
const RESERVED: &[&str] = &[
    "TBW102",
    "BenchmarkTest",
    "SCHEDULE_TOPIC_XXXX",
    "SELF_TEST_TOPIC",
    "TRANS_CHECK_MAX_TIME_TOPIC",
    "OFFSET_MOVED_EVENT",
    "CHECKPOINT_TOPIC",
    "DefaultCluster",
];

/// In lower case; names are compared without regard to case.
const RESERVED_PREFIX: &str = "rmq_sys_";
const RESERVED_SUFFIX: &str = "_REPLY_TOPIC";

/// Why a name cannot be a topic's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// It is empty.
    #[error("a topic's name cannot be empty")]
    Empty,
    /// It is too long.
    #[error("a topic's name of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest there may be.
        limit: usize,
    },
    /// It has a character that names do not have.
    #[error("a topic's name is made of letters, digits, '_' and '-'; {found:?} is none of them")]
    Character {
        /// The first such character.
        found: char,
    },
    /// It is kept for the system.
    #[error("the name is reserved")]
    Reserved,
}

/// Whether a client may make a topic of this name and send to it.
///
/// # Errors
/// The first rule that the name breaks.
pub(super) fn check_new(name: &str) -> Result<(), NameFault> {
    check(name, MAX_LEN, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))?;
    let reserved = RESERVED.contains(&name)
        || name.ends_with(RESERVED_SUFFIX)
        || name
            .get(..RESERVED_PREFIX.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX));
    if reserved { Err(NameFault::Reserved) } else { Ok(()) }
}

/// Whether a topic of this name could exist at all.
///
/// # Errors
/// The first rule that the name breaks.
pub(super) fn check_known(name: &str) -> Result<(), NameFault> {
    check(name, MAX_SYSTEM_LEN, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%' | '|'))
}

fn check(name: &str, limit: usize, legal: impl Fn(char) -> bool) -> Result<(), NameFault> {
    if name.is_empty() {
        return Err(NameFault::Empty);
    }
    if name.len() > limit {
        return Err(NameFault::TooLong { len: name.len(), limit });
    }
    match name.chars().find(|c| !legal(*c)) {
        Some(found) => Err(NameFault::Character { found }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_digits_underscore_and_dash_up_to_127_bytes_make_a_name() {
        assert_eq!(check_new("orders-2_B"), Ok(()));
        assert_eq!(check_new(&"x".repeat(127)), Ok(()));
        assert_eq!(check_new(&"x".repeat(128)), Err(NameFault::TooLong { len: 128, limit: 127 }));
        assert_eq!(check_new(""), Err(NameFault::Empty));
        assert_eq!(check_new("a b"), Err(NameFault::Character { found: ' ' }));
        assert_eq!(check_new("größe"), Err(NameFault::Character { found: 'ö' }));
    }

    #[test]
    fn names_of_the_system_cannot_be_made() {
        for name in ["TBW102", "BenchmarkTest", "rmq_sys_x", "RMQ_SYS_TRACE_TOPIC", "c_REPLY_TOPIC"]
        {
            assert_eq!(check_new(name), Err(NameFault::Reserved), "{name}");
        }
        for name in ["%RETRY%g", "%DLQ%g", "%LMQ%g", "a|b"] {
            assert!(matches!(check_new(name), Err(NameFault::Character { .. })), "{name}");
            assert_eq!(check_known(name), Ok(()), "{name}");
        }
    }
}
