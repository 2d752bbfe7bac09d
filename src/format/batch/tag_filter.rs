//! Which tags a consumer wants.

use super::{limits, tag_hash, tag_mask_bit};

/// Which messages a consumer wants, by tag.
///
/// Tried twice: on the tag bits of a record, which tells what cannot match without reading it, and on the tag itself
/// before a message is handed out, since different tags may have equal bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagFilter {
    /// Every message, those without a tag too.
    All,
    /// Messages with one of these tags.
    AnyOf(Tags),
}

/// At least one tag, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Sorted.
    names: Vec<Box<str>>,
    /// Of the names, sorted.
    hashes: Vec<u64>,
    /// The names' mask bits.
    mask: u64,
}

/// Why an expression is no tag filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagFilterError {
    /// The expression is too long.
    #[error("tag expression of {found} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Bytes at most.
        limit: usize,
        /// Bytes.
        found: usize,
    },
    /// Too many different tags.
    #[error("{found} tags exceed the limit of {limit}")]
    TooManyTags {
        /// Tags at most.
        limit: usize,
        /// Different tags.
        found: usize,
    },
    /// Bars, but no tag between them.
    #[error("tag expression names no tag")]
    NoTag,
}

impl TagFilter {
    /// The filter that an expression means: nothing or `*` for all, else tags joined by `||`.
    ///
    /// White space around tags, empty places between bars and tags named twice are harmless. A `*` beside other tags
    /// is a tag like any other.
    ///
    /// # Errors
    /// The expression is too long, or names too many tags or none.
    pub fn parse(expression: &str) -> Result<Self, TagFilterError> {
        if expression.len() > limits::TAG_FILTER_LEN {
            let (limit, found) = (limits::TAG_FILTER_LEN, expression.len());
            return Err(TagFilterError::TooLong { limit, found });
        }
        if matches!(expression.trim(), "" | "*") {
            return Ok(Self::All);
        }
        let tags = expression.split("||").map(str::trim).filter(|tag| !tag.is_empty());
        let mut names: Vec<Box<str>> = tags.map(Box::from).collect();
        names.sort_unstable();
        names.dedup();
        let (limit, found) = (limits::TAG_FILTER_TAGS, names.len());
        match found {
            0 => Err(TagFilterError::NoTag),
            _ if found > limit => Err(TagFilterError::TooManyTags { limit, found }),
            _ => Ok(Self::AnyOf(Tags::of(names))),
        }
    }

    /// Whether a record with these tag bits may hold a message that matches. `false` is certain.
    ///
    /// `is_mask` says that the bits are a mask over several messages, `has_untagged` that at least one has no tag.
    pub fn may_match(&self, tag_bits: u64, is_mask: bool, has_untagged: bool) -> bool {
        match self {
            Self::All => true,
            Self::AnyOf(tags) if is_mask => tags.mask & tag_bits != 0,
            // A single message without a tag has no bits; a tag whose hash is 0 has none either, and is told by the
            // flag.
            Self::AnyOf(_) if has_untagged => false,
            Self::AnyOf(tags) => tags.hashes.binary_search(&tag_bits).is_ok(),
        }
    }

    /// The mask bits of the tags that are wanted; `None`: all messages are, whatever tags they have. What has none of
    /// these bits cannot match.
    pub fn mask(&self) -> Option<u64> {
        match self {
            Self::All => None,
            Self::AnyOf(tags) => Some(tags.mask),
        }
    }

    /// Whether a message with this tag matches.
    pub fn matches(&self, tag: Option<&str>) -> bool {
        match (self, tag) {
            (Self::All, _) => true,
            (Self::AnyOf(_), None) => false,
            (Self::AnyOf(tags), Some(tag)) => tags.contains(tag),
        }
    }
}

impl Tags {
    fn of(names: Vec<Box<str>>) -> Self {
        let mut hashes: Vec<u64> = names.iter().map(|name| tag_hash(name)).collect();
        hashes.sort_unstable();
        let mask = hashes.iter().fold(0, |mask, hash| mask | tag_mask_bit(*hash));
        Self { names, hashes, mask }
    }

    fn contains(&self, tag: &str) -> bool {
        self.names.binary_search_by(|name| name.as_ref().cmp(tag)).is_ok()
    }

    /// The tags, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(expression: &str) -> Vec<String> {
        match TagFilter::parse(expression).unwrap() {
            TagFilter::All => vec!["all".to_owned()],
            TagFilter::AnyOf(tags) => tags.names().map(str::to_owned).collect(),
        }
    }

    /// Two tags with the same mask bit and different hashes.
    fn colliding_tags() -> (String, String) {
        let bit = |tag: &str| tag_mask_bit(tag_hash(tag));
        let other = (0..).map(|n| format!("t{n}")).find(|tag| bit(tag) == bit("a")).unwrap();
        ("a".to_owned(), other)
    }

    #[test]
    fn nothing_and_a_star_mean_all() {
        for expression in ["", "*", " ", " * "] {
            assert_eq!(TagFilter::parse(expression), Ok(TagFilter::All), "{expression:?}");
        }
    }

    #[test]
    fn tags_are_trimmed_and_named_once() {
        assert_eq!(names("b"), ["b"]);
        assert_eq!(names(" b || a||b||  ||"), ["a", "b"]);
        assert_eq!(names("a||*"), ["*", "a"]);
        assert_eq!(names("a b|c"), ["a b|c"]);
        assert_eq!(TagFilter::parse(" || "), Err(TagFilterError::NoTag));
    }

    #[test]
    fn expression_has_limits() {
        let tags = |count| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join("||");
        assert_eq!(names(&tags(1024)).len(), 1024);
        assert_eq!(
            TagFilter::parse(&tags(1025)),
            Err(TagFilterError::TooManyTags { limit: 1024, found: 1025 })
        );
        assert_eq!(names(&"a||".repeat(10_922)), ["a"]);
        let long = "a".repeat(32 * 1024);
        assert_eq!(names(&long).concat(), long);
        assert_eq!(
            TagFilter::parse(&(long + "a")),
            Err(TagFilterError::TooLong { limit: 32_768, found: 32_769 })
        );
    }

    #[test]
    fn untagged_message_matches_only_all() {
        let some = TagFilter::parse("a").unwrap();
        assert!(TagFilter::All.matches(None) && TagFilter::All.may_match(0, false, true));
        assert!(!some.matches(None) && !some.matches(Some("")));
        assert!(!some.may_match(0, false, true), "alone");
        assert!(!some.may_match(0, true, true), "several");
    }

    #[test]
    fn single_message_is_told_by_its_hash() {
        let some = TagFilter::parse("a||b").unwrap();
        assert!(some.may_match(tag_hash("a"), false, false) && some.matches(Some("a")));
        assert!(!some.may_match(tag_hash("c"), false, false) && !some.matches(Some("c")));
    }

    #[test]
    fn tags_with_the_same_mask_bit_are_told_apart_by_name() {
        let (wanted, other) = colliding_tags();
        let filter = TagFilter::parse(&wanted).unwrap();
        let mask = tag_mask_bit(tag_hash(&other));
        assert!(filter.may_match(mask, true, false), "the mask cannot tell");
        assert!(!filter.matches(Some(&other)));
        assert!(!filter.may_match(tag_hash(&other), false, false), "the hash can");
    }

    #[test]
    fn mask_without_a_wanted_bit_cannot_match() {
        let filter = TagFilter::parse("a").unwrap();
        let bit = tag_mask_bit(tag_hash("a"));
        assert!(filter.may_match(bit | 1, true, true));
        assert!(!filter.may_match(!bit, true, true));
    }

    #[test]
    fn tag_whose_hash_is_zero_is_like_any_other() {
        let filter = TagFilter::AnyOf(Tags {
            names: vec!["x".into()],
            hashes: vec![0],
            mask: tag_mask_bit(0),
        });
        assert!(filter.may_match(0, false, false));
        assert!(!filter.may_match(0, false, true));
    }
}
