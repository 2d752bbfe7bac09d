//! What an expression sees of a message.

use std::borrow::Cow;

use crate::format::batch::MetaView;

/// A message, as an expression sees it.
pub trait Subject {
    /// Its tag.
    fn tag(&self) -> Option<&str>;

    /// The text of a property, also of one that the protocol gives a name: `TAGS` is the tag.
    fn property(&self, name: &str) -> Option<Cow<'_, str>>;
}

/// A message as it is stored. Nothing is copied, but the keys of one that has several.
///
/// | name | is |
/// | --- | --- |
/// | `TAGS` | the tag |
/// | `KEYS` | the keys, with a space between them |
/// | `UNIQ_KEY` | the producer's id |
/// | `__SHARDINGKEY` | the message group |
/// | `TRACE_CONTEXT` | the trace context |
/// | `BORN_TIMESTAMP` | when the message was made, ms since 1970 UTC |
/// | `__BORNHOST` | where it was made |
///
/// All other names are the producer's own properties. Of two with the same name the later one counts, as in a map of
/// protobuf.
impl Subject for MetaView<'_> {
    fn tag(&self) -> Option<&str> {
        MetaView::tag(self)
    }

    fn property(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            "TAGS" => MetaView::tag(self).map(Cow::Borrowed),
            "KEYS" => joined(self.keys()),
            "UNIQ_KEY" => self.id().map(Cow::Borrowed),
            "__SHARDINGKEY" => self.message_group().map(Cow::Borrowed),
            "TRACE_CONTEXT" => self.trace_context().map(Cow::Borrowed),
            "BORN_TIMESTAMP" => {
                let born_ms = self.born_ms();
                (born_ms != 0).then(|| Cow::Owned(born_ms.to_string()))
            }
            "__BORNHOST" => self.born_host().map(Cow::Borrowed),
            name => {
                let of_name = self.properties().filter(|(key, _)| *key == name);
                of_name.last().map(|(_, value)| Cow::Borrowed(value))
            }
        }
    }
}

fn joined<'a>(mut keys: impl Iterator<Item = &'a str>) -> Option<Cow<'a, str>> {
    let mut all = Cow::Borrowed(keys.next()?);
    for key in keys {
        let all = all.to_mut();
        all.push(' ');
        all.push_str(key);
    }
    Some(all)
}
