//! A message as the command line shows it.
//!
//! | field | content |
//! | --- | --- |
//! | `id` | `<epoch>-<physical offset>-<index>`, the broker's |
//! | `producer_id` | the producer's own id, or null |
//! | `topic`, `queue`, `offset` | where it lies |
//! | `store_time`, `born_time` | RFC 3339 with milliseconds in UTC; `born_time` may be null |
//! | `keys`, `tag`, `properties` | a list, a text or null, an object |
//! | `message_group`, `encoding` | only where set; `encoding` is `gzip` |
//! | `body` or `body_base64` | the first if the body is text, else the second |
//! | `dead_letter` | only of one, or of what was one: why, where it comes from, its deliveries |

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::output::Row;
use super::time;
use crate::client::{DeadLetter, Message};

/// The columns of a table of messages.
pub(crate) const HEADER: &[&str] =
    &["ID", "TOPIC", "QUEUE", "OFFSET", "STORED", "KEYS", "TAG", "BODY"];
/// Characters of a body or of the keys that a table shows.
const SHOWN: usize = 64;

/// A message on its way to stdout.
pub(crate) struct Shown<'a>(pub(crate) &'a Message);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &message.id.to_string())?;
        map.serialize_entry("producer_id", &message.producer_id)?;
        map.serialize_entry("topic", &message.topic)?;
        map.serialize_entry("queue", &message.queue.get())?;
        map.serialize_entry("offset", &message.queue_offset.get())?;
        map.serialize_entry("store_time", &time::render(message.store_time))?;
        map.serialize_entry("born_time", &message.born_time.map(time::render))?;
        map.serialize_entry("keys", &message.keys)?;
        map.serialize_entry("tag", &message.tag)?;
        map.serialize_entry("properties", &Properties(&message.properties))?;
        if let Some(group) = &message.message_group {
            map.serialize_entry("message_group", group)?;
        }
        if message.encoding == 1 {
            map.serialize_entry("encoding", "gzip")?;
        }
        match std::str::from_utf8(&message.body) {
            Ok(text) => map.serialize_entry("body", text)?,
            Err(_) => map.serialize_entry("body_base64", &STANDARD.encode(&message.body))?,
        }
        if let Some(letter) = &message.dead_letter {
            map.serialize_entry("dead_letter", &ShownLetter::from(&**letter))?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct ShownLetter<'a> {
    reason: &'a str,
    topic: &'a str,
    queue: u32,
    offset: u64,
    id: Option<String>,
    store_time: Option<String>,
    deliveries: u32,
    first_delivered: Option<String>,
    last_delivered: Option<String>,
    last_client: &'a str,
    messages: u32,
    redriven: u32,
    back: bool,
    told_tries: Option<u32>,
}

impl<'a> From<&'a DeadLetter> for ShownLetter<'a> {
    fn from(letter: &'a DeadLetter) -> Self {
        Self {
            reason: &letter.reason,
            topic: &letter.topic,
            queue: letter.queue.get(),
            offset: letter.queue_offset.get(),
            id: letter.message_id.map(|id| id.to_string()),
            store_time: letter.store_time.map(time::render),
            deliveries: letter.deliveries,
            first_delivered: letter.first_delivered.map(time::render),
            last_delivered: letter.last_delivered.map(time::render),
            last_client: &letter.last_client,
            messages: letter.messages,
            redriven: letter.redriven,
            back: letter.is_back,
            told_tries: letter.told_tries,
        }
    }
}

struct Properties<'a>(&'a [(String, String)]);

impl Serialize for Properties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl Row for Shown<'_> {
    fn cells(&self) -> Vec<String> {
        let message = self.0;
        vec![
            message.id.to_string(),
            message.topic.clone(),
            message.queue.to_string(),
            message.queue_offset.to_string(),
            time::render(message.store_time),
            one_line(&message.keys.join(",")),
            message.tag.clone().unwrap_or_default(),
            match std::str::from_utf8(&message.body) {
                Ok(text) => one_line(text),
                Err(_) => format!("({} bytes, not text)", message.body.len()),
            },
        ]
    }
}

/// The beginning of a text, on one line, with nothing in it that a terminal would obey.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == SHOWN {
            line.push('…');
            break;
        }
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{QueueId, QueueOffset, Timestamp};

    fn message(body: &'static [u8]) -> Message {
        Message {
            id: "3-1000-1".parse().expect("legal"),
            topic: "orders".to_owned(),
            queue: QueueId::new(2),
            queue_offset: QueueOffset::new(10),
            store_time: Timestamp::new(1_782_907_200_007),
            born_time: None,
            producer_id: None,
            keys: vec!["k1".to_owned(), "k2".to_owned()],
            tag: Some("paid".to_owned()),
            properties: vec![("colour".to_owned(), "blue".to_owned())],
            message_group: None,
            encoding: 0,
            trace_context: None,
            born_host: None,
            body: Bytes::from_static(body),
            dead_letter: None,
        }
    }

    #[test]
    fn a_message_has_the_documented_fields_in_their_order() {
        assert_eq!(
            serde_json::to_string(&Shown(&message(b"hello"))).expect("legal"),
            r#"{"id":"3-1000-1","producer_id":null,"topic":"orders","queue":2,"offset":10,"store_time":"2026-07-01T12:00:00.007Z","born_time":null,"keys":["k1","k2"],"tag":"paid","properties":{"colour":"blue"},"body":"hello"}"#
        );
    }

    #[test]
    fn a_dead_letter_says_why_it_is_one_and_where_it_comes_from() {
        let letter = DeadLetter {
            reason: "attempts".to_owned(),
            topic: "orders".to_owned(),
            queue: QueueId::new(1),
            queue_offset: QueueOffset::new(5),
            message_id: "3-1000-1".parse().ok(),
            store_time: None,
            deliveries: 2,
            first_delivered: Some(Timestamp::new(1_782_907_200_007)),
            last_delivered: None,
            last_client: "me".to_owned(),
            messages: 1,
            redriven: 3,
            is_back: false,
            told_tries: Some(17),
        };
        let message = Message { dead_letter: Some(Box::new(letter)), ..message(b"") };
        let json = serde_json::to_string(&Shown(&message)).expect("legal");
        let expected = concat!(
            r#""body":"","dead_letter":{"reason":"attempts","topic":"orders","queue":1,"offset":5,"#,
            r#""id":"3-1000-1","store_time":null,"deliveries":2,"#,
            r#""first_delivered":"2026-07-01T12:00:00.007Z","last_delivered":null,"#,
            r#""last_client":"me","messages":1,"redriven":3,"back":false,"told_tries":17}}"#
        );
        assert!(json.ends_with(expected), "{json}");
    }

    #[test]
    fn a_body_that_is_not_text_comes_as_base64() {
        let json = serde_json::to_string(&Shown(&message(b"\xff\x00"))).expect("legal");
        assert!(json.ends_with(r#""body_base64":"/wA="}"#), "{json}");
        let cells = Shown(&message(b"\xff\x00")).cells();
        assert_eq!(cells.last().map(String::as_str), Some("(2 bytes, not text)"));
    }

    #[test]
    fn a_body_cannot_steer_the_terminal_or_break_the_table() {
        assert_eq!(one_line("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(one_line(&"x".repeat(100)).chars().count(), SHOWN + 1);
    }
}
