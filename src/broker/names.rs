//! Which names topics and consumer groups may have.
//!
//! | rule | names |
//! | --- | --- |
//! | can be made | 1 to 127 ASCII letters, digits, `_` and `-`, and not reserved |
//! | can be asked for | the same up to 255 bytes, and `%` and `|`, which stand in names that the broker makes itself |
//! | can be sent to by clients of RocketMQ | 1 to 127 of all these characters, and not reserved |
//! | a group's | 1 to 120 ASCII letters, digits, `_` and `-`, and not reserved |
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
    check_not_reserved(name)
}

/// Whether a client of RocketMQ may send to, or ask for, a topic of this name, if it is there: those that the broker
/// makes itself belong to them, up to the length of all others.
///
/// # Errors
/// The first rule that the name breaks.
pub(super) fn check_addressed(name: &str) -> Result<(), NameFault> {
    check(name, MAX_LEN, is_legal)?;
    check_not_reserved(name)
}

fn check_not_reserved(name: &str) -> Result<(), NameFault> {
    let reserved = RESERVED.contains(&name)
        || name.ends_with(RESERVED_SUFFIX)
        || name
            .get(..RESERVED_PREFIX.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX));
    if reserved { Err(NameFault::Reserved) } else { Ok(()) }
}

/// Characters of any topic's name.
fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%' | '|')
}

/// Whether a topic of this name could exist at all.
///
/// # Errors
/// The first rule that the name breaks.
pub(super) fn check_known(name: &str) -> Result<(), NameFault> {
    check(name, MAX_SYSTEM_LEN, is_legal)
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

/// The longest name of a consumer group, in bytes.
const MAX_GROUP_LEN: usize = 120;

/// RocketMQ's own consumer groups (its `MixAll`): of its tools, its filter server, its monitor and its own tests.
const RESERVED_GROUPS: &[&str] = &[
    "DEFAULT_CONSUMER",
    "TOOLS_CONSUMER",
    "SCHEDULE_CONSUMER",
    "FILTERSRV_CONSUMER",
    "__MONITOR_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_ONSAPI_PULL",
];

/// In upper case; names are compared without regard to case.
const RESERVED_GROUP_PREFIX: &str = "CID_RMQ_SYS_";

/// Why a name cannot be a consumer group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupNameFault {
    /// It is empty.
    #[error("a consumer group's name cannot be empty")]
    Empty,
    /// It is too long.
    #[error("a consumer group's name of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest there may be.
        limit: usize,
    },
    /// It has a character that names do not have.
    #[error(
        "a consumer group's name is made of letters, digits, '_' and '-'; {found:?} is none of them"
    )]
    Character {
        /// The first such character.
        found: char,
    },
    /// It is kept for the system.
    #[error("the consumer group's name is reserved")]
    Reserved,
}

/// Whether a consumer group of this name can be made.
///
/// # Errors
/// The first rule that the name breaks.
pub(super) fn check_group(name: &str) -> Result<(), GroupNameFault> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    check(name, MAX_GROUP_LEN, legal).map_err(|fault| match fault {
        NameFault::Empty => GroupNameFault::Empty,
        NameFault::TooLong { len, limit } => GroupNameFault::TooLong { len, limit },
        NameFault::Character { found } => GroupNameFault::Character { found },
        NameFault::Reserved => GroupNameFault::Reserved,
    })?;
    let reserved = RESERVED_GROUPS.contains(&name)
        || name
            .get(..RESERVED_GROUP_PREFIX.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_GROUP_PREFIX));
    if reserved { Err(GroupNameFault::Reserved) } else { Ok(()) }
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
    fn a_group_has_a_name_of_its_own_kind() {
        assert_eq!(check_group("billing-2_B"), Ok(()));
        assert_eq!(check_group(&"x".repeat(120)), Ok(()));
        let too_long = GroupNameFault::TooLong { len: 121, limit: 120 };
        assert_eq!(check_group(&"x".repeat(121)), Err(too_long));
        assert_eq!(check_group(""), Err(GroupNameFault::Empty));
        assert_eq!(check_group("a%b"), Err(GroupNameFault::Character { found: '%' }));
        for name in ["CID_RMQ_SYS_TRANS", "cid_rmq_sys_x", "TOOLS_CONSUMER", "SELF_TEST_C_GROUP"] {
            assert_eq!(check_group(name), Err(GroupNameFault::Reserved), "{name}");
        }
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
