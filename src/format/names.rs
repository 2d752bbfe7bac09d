//! Directories and file names of a store, both directions.
//!
//! | path                             | what                                                             | derived |
//! | -------------------------------- | ---------------------------------------------------------------- | ------- |
//! | `commitlog/<base>.log`           | a segment of the CommitLog                                       | no      |
//! | `consumequeue/<base>.cq`         | the ConsumeQueue entries of one sealed segment                   | yes     |
//! | `index/<base>.idx`               | the Index of one sealed segment                                  | yes     |
//! | `state/<offset>.snap`            | a snapshot; all that it holds lies before that offset            | yes     |
//! | `quarantine/<offset>-<epoch>.torn` | a torn tail, copied aside before the start of that epoch cut it | yes     |
//! | `checkpoint`                     | what is known to be durable                                      | yes     |
//! | `identity`, `identity.copy`      | who the store is, and its secrets                                | no      |
//! | `tls/certificate.pem`, `tls/key.pem` | the pair that the broker made for itself                    | no      |
//! | `lock`                           | held while a process owns the directory                          | yes     |
//! | `<name>.tmp`                     | a file on its way, or a deleted segment's that may become another; may be removed after a crash | yes |
//!
//! Offsets are physical and have 20 digits, so that names sort as they do; an epoch has as many digits as it needs.

use crate::message::{Epoch, PhysicalOffset};

/// Torn tails that were cut.
pub const QUARANTINE_DIR: &str = "quarantine";
/// The checkpoint's file.
pub const CHECKPOINT: &str = "checkpoint";
/// The identity's file.
pub const IDENTITY: &str = "identity";
/// Its equal twin.
pub const IDENTITY_COPY: &str = "identity.copy";
/// The pair that a broker made for itself.
pub const TLS_DIR: &str = "tls";
/// Its certificate's file.
pub const TLS_CERTIFICATE: &str = "certificate.pem";
/// Its key's file.
pub const TLS_KEY: &str = "key.pem";
/// The lock's file.
pub const LOCK: &str = "lock";

const TEMPORARY_SUFFIX: &str = ".tmp";
const TORN_SUFFIX: &str = ".torn";
const DIGITS: usize = 20;

/// Files that are named by a physical offset, each kind in a directory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A segment of the CommitLog, by its base.
    Segment,
    /// The ConsumeQueue entries of a segment, by its base.
    ConsumeQueue,
    /// The Index of a segment, by its base.
    Index,
    /// A state snapshot, by the end of the last record that it holds.
    Snapshot,
}

impl FileKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Segment, Self::ConsumeQueue, Self::Index, Self::Snapshot];

    /// The directory of this kind, within the data directory.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Segment => "commitlog",
            Self::ConsumeQueue => "consumequeue",
            Self::Index => "index",
            Self::Snapshot => "state",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Segment => ".log",
            Self::ConsumeQueue => ".cq",
            Self::Index => ".idx",
            Self::Snapshot => ".snap",
        }
    }

    /// The name, without its directory, of the file of this kind at `offset`.
    pub fn name(self, offset: PhysicalOffset) -> String {
        format!("{:0DIGITS$}{}", offset.get(), self.suffix())
    }

    /// The offset in a name that [`name`](Self::name) made; `None` for every other.
    pub fn parse(self, name: &str) -> Option<PhysicalOffset> {
        parse_offset(name.strip_suffix(self.suffix())?)
    }
}

/// The name, within the quarantine, of what the start of `epoch` cut off at `offset`.
pub fn torn(offset: PhysicalOffset, epoch: Epoch) -> String {
    format!("{:0DIGITS$}-{}{TORN_SUFFIX}", offset.get(), epoch)
}

/// Offset and epoch in a name that [`torn`] made; `None` for every other.
pub fn parse_torn(name: &str) -> Option<(PhysicalOffset, Epoch)> {
    let (offset, epoch) = name.strip_suffix(TORN_SUFFIX)?.split_once('-')?;
    let number = epoch.parse().ok()?;
    let canonical = u64::to_string(&number) == epoch;
    Some((parse_offset(offset)?, Epoch::new(canonical.then_some(number)?)))
}

/// The name under which `name` is written until it is whole.
pub fn temporary(name: &str) -> String {
    format!("{name}{TEMPORARY_SUFFIX}")
}

/// The name that a [`temporary`] one is on its way to.
pub fn parse_temporary(name: &str) -> Option<&str> {
    name.strip_suffix(TEMPORARY_SUFFIX)
}

fn parse_offset(digits: &str) -> Option<PhysicalOffset> {
    let plain = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten().map(PhysicalOffset::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_always_were() {
        let at = PhysicalOffset::new(268_435_456);
        let paths = FileKind::ALL.map(|kind| format!("{}/{}", kind.directory(), kind.name(at)));
        assert_eq!(
            paths,
            [
                "commitlog/00000000000268435456.log",
                "consumequeue/00000000000268435456.cq",
                "index/00000000000268435456.idx",
                "state/00000000000268435456.snap",
            ]
        );
        assert_eq!(torn(at, Epoch::new(3)), "00000000000268435456-3.torn");
        assert_eq!(temporary(CHECKPOINT), "checkpoint.tmp");
    }

    #[test]
    fn names_parse_back() {
        for at in [0, 1, 1 << 28, u64::MAX].map(PhysicalOffset::new) {
            for kind in FileKind::ALL {
                assert_eq!(kind.parse(&kind.name(at)), Some(at));
                assert_eq!(kind.parse(&temporary(&kind.name(at))), None);
            }
            let epoch = Epoch::new(at.get());
            assert_eq!(parse_torn(&torn(at, epoch)), Some((at, epoch)));
        }
        assert_eq!(parse_temporary("identity.tmp"), Some("identity"));
        assert_eq!(parse_temporary("identity"), None);
    }

    #[test]
    fn other_names_are_of_nothing() {
        for name in [
            "",
            ".log",
            "0.log",
            "00000000000268435456",
            "00000000000268435456.cq",
            "000000000002684354560.log",
            "+0000000000268435456.log",
            "99999999999999999999.log",
            "0000000000026843545\u{0661}.log",
        ] {
            assert_eq!(FileKind::Segment.parse(name), None, "{name}");
        }
        for name in ["00000000000268435456-03.torn", "00000000000268435456.torn", "1-1.torn"] {
            assert_eq!(parse_torn(name), None, "{name}");
        }
    }
}
