//! What the demo sends: the packages that this program is built from, and messages that can be told apart.

use std::sync::LazyLock;

use anyhow::Context as _;
use serde::Deserialize;

/// The lock file this program was built with.
const LOCK: &str = include_str!("../../../Cargo.lock");
/// Bytes of a generated body.
const BODY_LEN: usize = 1024;
/// Where bodies are cut from. A prime, so that neighbours differ.
const NOISE_LEN: u64 = 16_381;

/// A package of `Cargo.lock`.
#[derive(Debug)]
pub(super) struct Package {
    /// The crate's name: the key. Not unique, there may be several versions.
    pub(super) name: String,
    /// `registry` or `path`: the tag.
    pub(super) tag: &'static str,
    /// The entry as it stands in the file: the body.
    pub(super) entry: String,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    source: Option<String>,
}

/// The packages in the order of the file.
pub(super) fn packages() -> anyhow::Result<Vec<Package>> {
    const HEAD: &str = "[[package]]";
    let entries = LOCK.match_indices(HEAD).map(|(start, _)| {
        let rest = LOCK.get(start..).unwrap_or_default();
        let end = rest.get(HEAD.len()..).and_then(|tail| tail.find("\n["));
        rest.get(..end.map_or(rest.len(), |end| HEAD.len() + end)).unwrap_or_default().trim_end()
    });
    entries
        .map(|entry| {
            let lock: Lock = toml::from_str(entry).context("the own Cargo.lock does not parse")?;
            let parsed = lock.package.into_iter().next().context("an entry without a package")?;
            Ok(Package {
                name: parsed.name,
                tag: if parsed.source.is_some() { "registry" } else { "path" },
                entry: entry.to_owned(),
            })
        })
        .collect()
}

/// Names a generated message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Stamp {
    /// Who sent it.
    pub(super) producer: u32,
    /// The how manieth of that producer, from 0.
    pub(super) sequence: u64,
}

impl Stamp {
    /// The key by which queries find it.
    pub(super) fn key(self) -> String {
        format!("{}-{}", self.producer, self.sequence)
    }

    /// Its body: the stamp in words, then noise that depends on it.
    pub(super) fn body(self) -> Vec<u8> {
        let mut body = self.head().into_bytes();
        body.extend_from_slice(self.tail(body.len()));
        body
    }

    /// Whether `body` is the body of this message.
    pub(super) fn is_body_of(self, body: &[u8]) -> bool {
        let head = self.head();
        body.strip_prefix(head.as_bytes()).is_some_and(|tail| tail == self.tail(head.len()))
    }

    /// Whose body this is, if it is one.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let mut words = text.split(' ');
        let (producer, sequence) =
            match (words.next()?, words.next()?, words.next()?, words.next()?) {
                ("producer", producer, "sequence", sequence) => {
                    (producer.parse().ok()?, sequence.parse().ok()?)
                }
                _ => return None,
            };
        Some(Self { producer, sequence }).filter(|stamp| stamp.is_body_of(body))
    }

    fn head(self) -> String {
        format!("producer {} sequence {} ", self.producer, self.sequence)
    }

    fn tail(self, head: usize) -> &'static [u8] {
        let mixed = self
            .sequence
            .wrapping_mul(2_654_435_761)
            .wrapping_add(u64::from(self.producer) * 4_093);
        let start = usize::try_from(mixed % NOISE_LEN).unwrap_or(0);
        let len = BODY_LEN.saturating_sub(head);
        NOISE.get(start..start + len).unwrap_or_default()
    }
}

/// Letters and digits without a pattern that a compressor or an eye would find.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        LETTERS[(state >> 58) as usize]
    })
    .take(NOISE_LEN as usize + BODY_LEN)
    .collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_is_taken_apart_without_a_loss() {
        let packages = packages().expect("parses");
        let own: Vec<_> = packages.iter().filter(|package| package.name == "mainstem").collect();
        assert_eq!(own.iter().map(|package| package.tag).collect::<Vec<_>>(), ["path"]);
        let lock: Lock = toml::from_str(LOCK).expect("parses");
        assert!(
            packages.iter().map(|package| &package.name).eq(lock.package.iter().map(|p| &p.name))
        );
        let joined: Vec<_> = packages.iter().map(|package| package.entry.as_str()).collect();
        assert!(LOCK.trim_end().ends_with(&joined.join("\n\n")));
    }

    #[test]
    fn a_body_names_its_message_and_no_other() {
        let stamp = Stamp { producer: 3, sequence: 4_711 };
        let body = stamp.body();
        assert_eq!(body.len(), BODY_LEN);
        assert_eq!(Stamp::read(&body), Some(stamp));
        let mut flipped = body.clone();
        flipped[900] ^= 1;
        assert_eq!(Stamp::read(&flipped), None);
        assert_eq!(Stamp::read(b"producer 3 sequence"), None);
        assert_eq!(Stamp::read(b"\xff"), None);
    }
}
