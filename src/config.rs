//! The configuration file: addresses, and the options of the store and of the broker.
//!
//! TOML with four tables. Unknown keys and values out of range stop the start; nothing is repaired silently. A value
//! on the command line (`--set table.key=value`) wins over the file, the file over the default. `deploy/mainstem.toml`
//! shows every key with its default.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer};

use crate::broker::{BrokerConfig, RETENTION_BYTES, RETENTION_MS};
use crate::message::{FlushMode, Retention};
use crate::store::StoreConfig;

/// Everything a server can be told.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where it listens and where its data is.
    pub server: ServerSection,
    /// How gRPC connections are secured.
    pub tls: TlsSection,
    /// How messages are stored.
    pub store: StoreSection,
    /// How clients are treated.
    pub broker: BrokerSection,
}

/// The table `[server]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSection {
    /// Where gRPC is served. Port 0: a free one.
    pub listen: SocketAddr,
    /// The address, with its port, that clients of RocketMQ are told. `None`, in the file an empty text: the one that
    /// each of them used.
    #[serde(deserialize_with = "text_or_none")]
    pub advertise: Option<String>,
    /// Where `/healthz`, `/readyz` and `/metrics` are served. Port 0: a free one.
    pub http: SocketAddr,
    /// The data directory. A missing one is made, if its parent exists.
    pub data: PathBuf,
    /// gRPC connections at once.
    pub max_connections: u32,
    /// How long running requests may take to finish when the server stops.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

/// The table `[tls]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// A file with the certificate in PEM, followed by those between it and a root. `None`, in the file an empty text:
    /// one that the broker makes for itself and keeps in the data directory.
    #[serde(deserialize_with = "path_or_none")]
    pub certificate: Option<PathBuf>,
    /// A file with its private key in PEM. There if `certificate` is.
    #[serde(deserialize_with = "path_or_none")]
    pub key: Option<PathBuf>,
    /// Whether connections without TLS are served too.
    pub plain: bool,
}

fn text_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Some(String::deserialize(from)?).filter(|text| !text.is_empty()))
}

fn path_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(from)?;
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
}

/// The table `[store]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Bytes of a segment of the CommitLog.
    pub segment_size: ByteSize,
    /// Memory for what is known of a segment before it is sealed.
    pub unsealed_memory: ByteSize,
    /// What acknowledgements wait for unless the topic says otherwise.
    pub flush: Flush,
    /// The longest that appended bytes stay unflushed while nobody waits for them.
    #[serde(with = "humantime_serde")]
    pub flush_interval: Duration,
    /// The most appended bytes that stay unflushed while nobody waits for them.
    pub flush_bytes: ByteSize,
    /// Unflushed bytes above which sends wait.
    pub max_unflushed: ByteSize,
    /// Newest bytes of the log that are read in place.
    pub hot_bytes: ByteSize,
    /// Free bytes on the file system below which sends are refused.
    pub disk_reserve: ByteSize,
    /// Bytes of segments that stay beyond retention for messages that were delivered and are not finished.
    pub keep_unfinished: ByteSize,
    /// Bytes a second that are read to look for damage. 0: none.
    pub scrub_rate: ByteSize,
}

/// The table `[broker]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerSection {
    /// Whether a send to an unknown valid name makes the topic.
    pub auto_create_topics: bool,
    /// Whether a receive of a RocketMQ client in the name of an unknown valid group makes it.
    pub auto_create_groups: bool,
    /// How many topics, and how many groups, may be made that way while the process runs.
    pub auto_create_limit: u32,
    /// Bytes of batches in work at once.
    pub inflight_sends: ByteSize,
    /// Bytes of answers to pulls and queries on their way at once.
    pub inflight_replies: ByteSize,
    /// Pulls parked at the end of a queue at once.
    pub max_waiters: u32,
    /// How long a topic keeps messages that is made without its own word for it.
    pub retention: RetentionTime,
    /// How many bytes of messages such a topic keeps.
    pub retention_bytes: RetentionBytes,
}

/// A time that messages are kept, as it is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum RetentionTime {
    /// So long.
    For(Duration),
    /// Without an end.
    Forever,
}

/// Bytes that are kept, as they are written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Size")]
pub enum RetentionBytes {
    /// At least so many of the newest.
    UpTo(ByteSize),
    /// All.
    Unlimited,
}

/// A number in TOML: a plain one, or a text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

impl TryFrom<String> for RetentionTime {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let time = humantime_serde::re::humantime::parse_duration(&text);
        time.map(Self::For).map_err(|_| "give a time like \"72h\" or \"30days\", or \"forever\"")
    }
}

impl TryFrom<Size> for RetentionBytes {
    type Error = &'static str;

    fn try_from(size: Size) -> Result<Self, &'static str> {
        match size {
            Size::Number(bytes) => Ok(Self::UpTo(ByteSize(bytes))),
            Size::Text(text) if text == "unlimited" => Ok(Self::Unlimited),
            Size::Text(text) => text
                .parse()
                .map(Self::UpTo)
                .map_err(|_| "give a size like \"10 GiB\", or \"unlimited\""),
        }
    }
}

impl BrokerSection {
    fn retention(&self) -> Retention {
        Retention {
            time_ms: match self.retention {
                // Beyond what can be written it is beyond the range too.
                RetentionTime::For(time) => {
                    Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
                }
                RetentionTime::Forever => None,
            },
            bytes: match self.retention_bytes {
                RetentionBytes::UpTo(size) => Some(size.0),
                RetentionBytes::Unlimited => None,
            },
        }
    }
}

/// A flush mode as it is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// OK means: on stable media.
    Sync,
    /// OK means: in the page cache.
    Async,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8081).into(),
            advertise: None,
            http: (Ipv4Addr::LOCALHOST, 8082).into(),
            data: PathBuf::from("./data"),
            max_connections: 4_096,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for TlsSection {
    fn default() -> Self {
        Self { certificate: None, key: None, plain: true }
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        let store = StoreConfig::new(PathBuf::new());
        Self {
            segment_size: ByteSize(store.segment_size),
            unsealed_memory: ByteSize(store.unsealed_memory),
            flush: match store.flush {
                FlushMode::Sync => Flush::Sync,
                FlushMode::Async => Flush::Async,
            },
            flush_interval: store.flush_interval,
            flush_bytes: ByteSize(store.flush_bytes),
            max_unflushed: ByteSize(store.max_unflushed),
            hot_bytes: ByteSize(store.hot_bytes),
            disk_reserve: ByteSize(store.disk_reserve),
            keep_unfinished: ByteSize(store.keep_unfinished),
            scrub_rate: ByteSize(store.scrub_rate),
        }
    }
}

impl Default for BrokerSection {
    fn default() -> Self {
        let broker = BrokerConfig::default();
        Self {
            auto_create_topics: broker.auto_create_topics,
            auto_create_groups: broker.auto_create_groups,
            auto_create_limit: broker.auto_create_limit,
            inflight_sends: ByteSize(broker.inflight_send_bytes),
            inflight_replies: ByteSize(broker.inflight_reply_bytes),
            max_waiters: broker.max_waiters,
            retention: broker
                .retention
                .time_ms
                .map_or(RetentionTime::Forever, |ms| RetentionTime::For(Duration::from_millis(ms))),
            retention_bytes: broker
                .retention
                .bytes
                .map_or(RetentionBytes::Unlimited, |bytes| RetentionBytes::UpTo(ByteSize(bytes))),
        }
    }
}

/// Why there is no configuration. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a configuration: the source says where and why.
    #[error("the configuration file {} is wrong", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A setting is not `table.key=value`.
    #[error("--set {setting}: write it as table.key=value")]
    Setting {
        /// As it was given.
        setting: String,
    },
    /// A setting names an unknown key, or its value is of the wrong kind.
    #[error("--set {setting} is wrong: {}", reason.message())]
    Value {
        /// As it was given.
        setting: String,
        /// Why. No source: its text has lines about a place that is no text of the user's.
        reason: Box<toml::de::Error>,
    },
    /// One of two values that go together.
    #[error("{given} is set and {missing} is not: they go together")]
    Pair {
        /// The one that is there.
        given: &'static str,
        /// The other one.
        missing: &'static str,
    },
    /// A value is outside its range.
    #[error("{key} = {value} is outside {range}")]
    Range {
        /// Of the value.
        key: &'static str,
        /// As it was understood.
        value: String,
        /// What is allowed.
        range: String,
    },
}

impl Config {
    /// The defaults, changed by the file at `path`, changed by `sets` (`table.key=value`, the last one wins), and
    /// checked.
    ///
    /// # Errors
    /// The first thing that is wrong, by key, value and range.
    pub fn load(path: Option<&Path>, sets: &[String]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut table = toml::Table::new();
        if let Some(path) = path {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            // Read into the structure from the text: only so do the messages show the line.
            let wrong =
                |source| ConfigError::File { path: path.to_owned(), source: Box::new(source) };
            config = toml::from_str(&text).map_err(wrong)?;
            table = text.parse().map_err(wrong)?;
        }
        for setting in sets {
            set(&mut table, setting)?;
            config = Self::from_table(&table).map_err(|reason| ConfigError::Value {
                setting: setting.clone(),
                reason: Box::new(reason),
            })?;
        }
        config.check()?;
        Ok(config)
    }

    fn from_table(table: &toml::Table) -> Result<Self, toml::de::Error> {
        table.clone().try_into()
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// The first value outside.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (server, store, broker) = (&self.server, &self.store, &self.broker);
        let seconds = Duration::from_secs;
        let millis = Duration::from_millis;
        if let Some(address) = &server.advertise {
            check_address("server.advertise", address)?;
        }
        within_count("server.max_connections", server.max_connections, 1, 65_536)?;
        within_time("server.drain_timeout", server.drain_timeout, millis(0), seconds(300))?;

        let (certificate, key) = ("tls.certificate", "tls.key");
        match (&self.tls.certificate, &self.tls.key) {
            (Some(_), None) => {
                return Err(ConfigError::Pair { given: certificate, missing: key });
            }
            (None, Some(_)) => {
                return Err(ConfigError::Pair { given: key, missing: certificate });
            }
            (Some(_), Some(_)) | (None, None) => {}
        }

        let (mib, gib) = (ByteSize::mib, ByteSize::gib);
        within("store.segment_size", store.segment_size, mib(64), gib(1))?;
        // Positions in a segment are counted in units of 8 bytes, and files in pages.
        if !store.segment_size.0.is_multiple_of(4096) {
            return Err(ConfigError::Range {
                key: "store.segment_size",
                value: store.segment_size.0.to_string(),
                range: "whole pages of 4096 bytes".to_owned(),
            });
        }
        within("store.unsealed_memory", store.unsealed_memory, mib(1), gib(1))?;
        within_time("store.flush_interval", store.flush_interval, millis(1), seconds(60))?;
        within("store.flush_bytes", store.flush_bytes, mib(1), gib(1))?;
        within("store.max_unflushed", store.max_unflushed, mib(16), gib(4))?;
        within("store.hot_bytes", store.hot_bytes, mib(0), gib(64))?;
        within("store.disk_reserve", store.disk_reserve, mib(0), gib(64))?;
        within("store.keep_unfinished", store.keep_unfinished, mib(0), gib(16 << 10))?;
        within("store.scrub_rate", store.scrub_rate, mib(0), gib(16))?;

        within_count("broker.auto_create_limit", broker.auto_create_limit, 0, 1_000_000)?;
        within("broker.inflight_sends", broker.inflight_sends, mib(16), gib(64))?;
        within("broker.inflight_replies", broker.inflight_replies, mib(16), gib(64))?;
        within_count("broker.max_waiters", broker.max_waiters, 0, 1_000_000)?;
        let retention = broker.retention();
        if let Some(ms) = retention.time_ms.filter(|ms| !RETENTION_MS.contains(ms)) {
            let value = format!("{:?}", Duration::from_millis(ms));
            let range = "1 s to 100 years, or forever".to_owned();
            return Err(ConfigError::Range { key: "broker.retention", value, range });
        }
        if let Some(bytes) = retention.bytes.filter(|bytes| !RETENTION_BYTES.contains(bytes)) {
            let value = ByteSize(bytes).to_string();
            let range = "1.0 MiB to 1.0 EiB, or unlimited".to_owned();
            return Err(ConfigError::Range { key: "broker.retention_bytes", value, range });
        }
        Ok(())
    }

    /// The store's part.
    pub fn store(&self) -> StoreConfig {
        StoreConfig {
            segment_size: self.store.segment_size.0,
            unsealed_memory: self.store.unsealed_memory.0,
            flush: match self.store.flush {
                Flush::Sync => FlushMode::Sync,
                Flush::Async => FlushMode::Async,
            },
            flush_interval: self.store.flush_interval,
            flush_bytes: self.store.flush_bytes.0,
            max_unflushed: self.store.max_unflushed.0,
            hot_bytes: self.store.hot_bytes.0,
            disk_reserve: self.store.disk_reserve.0,
            keep_unfinished: self.store.keep_unfinished.0,
            scrub_rate: self.store.scrub_rate.0,
            ..StoreConfig::new(self.server.data.clone())
        }
    }

    /// The broker's part.
    pub fn broker(&self) -> BrokerConfig {
        BrokerConfig {
            auto_create_topics: self.broker.auto_create_topics,
            auto_create_groups: self.broker.auto_create_groups,
            auto_create_limit: self.broker.auto_create_limit,
            inflight_send_bytes: self.broker.inflight_sends.0,
            inflight_reply_bytes: self.broker.inflight_replies.0,
            max_waiters: self.broker.max_waiters,
            retention: self.broker.retention(),
        }
    }
}

/// Puts `table.key=value` into a table. A value that is no TOML is a text: sizes, times and addresses need no quotes.
fn set(table: &mut toml::Table, setting: &str) -> Result<(), ConfigError> {
    let bad = || ConfigError::Setting { setting: setting.to_owned() };
    let (path, value) = setting.split_once('=').ok_or_else(bad)?;
    let (section, key) = path.trim().split_once('.').ok_or_else(bad)?;
    if section.is_empty() || key.is_empty() || key.contains('.') {
        return Err(bad());
    }
    let value = value.trim();
    let parsed = format!("value = {value}").parse::<toml::Table>().ok();
    // More than one key: the text had line breaks of its own.
    let parsed = parsed.filter(|table| table.len() == 1).and_then(|mut t| t.remove("value"));
    let value = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let section = table
        .entry(section)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()))
        .as_table_mut()
        .ok_or_else(bad)?;
    section.insert(key.to_owned(), value);
    Ok(())
}

fn within<T: PartialOrd + fmt::Display>(
    key: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), ConfigError> {
    if value < least || value > most {
        let range = format!("{least} to {most}");
        return Err(ConfigError::Range { key, value: value.to_string(), range });
    }
    Ok(())
}

/// Whether `address` is a host and a port that somebody else can dial.
fn check_address(key: &'static str, address: &str) -> Result<(), ConfigError> {
    let is_dialable = address.rsplit_once(':').is_some_and(|(host, port)| {
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match literal {
            Some(literal) => literal.parse::<Ipv6Addr>().is_ok(),
            None => {
                let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
                (1..=255).contains(&host.len()) && host.bytes().all(is_part)
            }
        };
        is_host && port.parse().is_ok_and(|port: u16| port > 0)
    });
    if is_dialable {
        return Ok(());
    }
    let range = "host:port, with a port from 1 to 65535".to_owned();
    Err(ConfigError::Range { key, value: address.to_owned(), range })
}

fn within_count(key: &'static str, value: u32, least: u32, most: u32) -> Result<(), ConfigError> {
    within(key, value, least, most)
}

fn within_time(
    key: &'static str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), ConfigError> {
    if value < least || value > most {
        let range = format!("{least:?} to {most:?}");
        return Err(ConfigError::Range { key, value: format!("{value:?}"), range });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = include_str!("../deploy/mainstem.toml");

    /// The shown file with every `# key = value` made a real one.
    fn uncommented() -> String {
        let line = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") && !rest.ends_with('.') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        };
        SHOWN.lines().map(line).collect()
    }

    fn load(text: &str, sets: &[&str]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mainstem.toml");
        std::fs::write(&path, text).unwrap();
        let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
        Config::load(Some(&path), &sets)
    }

    fn message(result: Result<Config, ConfigError>) -> String {
        let error = result.unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    }

    #[test]
    fn the_shown_file_changes_nothing_and_shows_every_key_with_its_default() {
        assert_eq!(load(SHOWN, &[]).unwrap(), Config::default());
        assert_eq!(load(&uncommented(), &[]).unwrap(), Config::default());
        let shown: toml::Table = uncommented().parse().unwrap();
        let keys: usize = shown.values().map(|v| v.as_table().unwrap().len()).sum();
        assert_eq!(keys, 27, "a key is missing in deploy/mainstem.toml, or this number is old");
    }

    #[test]
    fn the_defaults_are_within_their_ranges() {
        Config::default().check().unwrap();
    }

    #[test]
    fn settings_win_over_the_file_and_the_file_over_the_defaults() {
        let text = "[store]\nsegment_size = \"64 MiB\"\nflush = \"async\"\n";
        let config = load(
            text,
            &[
                "store.segment_size=128MiB",
                "store.flush_interval = 250ms",
                "broker.auto_create_topics=false",
                "server.listen=[::1]:0",
                "broker.max_waiters=5",
            ],
        )
        .unwrap();
        assert_eq!(config.store.segment_size, ByteSize::mib(128));
        assert_eq!(config.store.flush, Flush::Async);
        assert_eq!(config.store.flush_interval, Duration::from_millis(250));
        assert!(!config.broker.auto_create_topics);
        assert_eq!(config.server.listen, "[::1]:0".parse().unwrap());
        assert_eq!(config.broker().max_waiters, 5);
        assert_eq!(config.store().flush, FlushMode::Async);
    }

    #[test]
    fn errors_name_key_value_and_range() {
        let found = message(load("[store]\nsegment_size = \"32 MiB\"\n", &[]));
        assert!(
            found.starts_with("store.segment_size = 32.0 MiB is outside 64.0 MiB to 1.0 GiB"),
            "{found}"
        );
        for address in
            ["broker", "broker:", "broker:0", "broker:65536", ":8081", "::1:8081", "a b:1"]
        {
            let found = message(load("", &[&format!("server.advertise={address}")]));
            let expected = format!("server.advertise = {address} is outside host:port");
            assert!(found.starts_with(&expected), "{found}");
        }
        for address in ["broker.example:8081", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            let config = load("", &[&format!("server.advertise={address}")]).unwrap();
            assert_eq!(config.server.advertise.as_deref(), Some(address));
        }
        let found = message(load("", &["server.drain_timeout=1h"]));
        assert!(
            found.starts_with("server.drain_timeout = 3600s is outside 0ns to 300s"),
            "{found}"
        );
        let found = message(load("[store]\nsegment = 1\n", &[]));
        assert!(found.contains("unknown field `segment`"), "{found}");
        let found = message(load("", &["store.segment=1"]));
        assert!(found.starts_with("--set store.segment=1 is wrong"), "{found}");
        assert!(found.contains("unknown field `segment`"), "{found}");
        let found = message(load("", &["store.flush=never"]));
        assert!(found.contains("unknown variant `never`"), "{found}");
        for bad in ["segment_size=1", "store.", "store.segment_size", ".x=1", "a.b.c=1"] {
            let found = message(load("", &[bad]));
            assert!(found.starts_with(&format!("--set {bad}: write it as")), "{found}");
        }
    }

    #[test]
    fn a_certificate_and_its_key_go_together_and_empty_texts_are_none() {
        let tls = |sets: &[&str]| load("", sets).map(|config| config.tls);
        let pair = tls(&["tls.certificate=/c.pem", "tls.key=k.pem", "tls.plain=false"]).unwrap();
        let path = |path: &str| Some(PathBuf::from(path));
        let (certificate, key) = (path("/c.pem"), path("k.pem"));
        assert_eq!(pair, TlsSection { certificate, key, plain: false });
        assert_eq!(tls(&["tls.certificate=", "tls.key=\"\""]).unwrap(), TlsSection::default());
        let found = message(load("", &["tls.certificate=/c.pem"]));
        assert!(found.starts_with("tls.certificate is set and tls.key is not"), "{found}");
        let found = message(load("", &["tls.key=/k.pem"]));
        assert!(found.starts_with("tls.key is set and tls.certificate is not"), "{found}");
    }

    #[test]
    fn messages_are_kept_for_a_time_and_a_size_or_without_an_end() {
        let retention = |sets: &[&str]| load("", sets).unwrap().broker().retention;
        let hours = |n: u64| Some(n * 60 * 60 * 1_000);
        assert_eq!(retention(&[]), Retention { time_ms: hours(72), bytes: None });
        assert_eq!(
            retention(&["broker.retention=30days", "broker.retention_bytes=10 GiB"]),
            Retention { time_ms: hours(30 * 24), bytes: Some(10 << 30) }
        );
        assert_eq!(
            retention(&["broker.retention=forever", "broker.retention_bytes=1048576"]),
            Retention { time_ms: None, bytes: Some(1 << 20) }
        );
        for (set, said) in [
            ("broker.retention=999ms", "is outside 1 s to 100 years, or forever"),
            ("broker.retention=101years", "is outside 1 s to 100 years, or forever"),
            ("broker.retention=3", "invalid type: integer `3`, expected a string"),
            ("broker.retention=-3h", "give a time like \"72h\" or \"30days\", or \"forever\""),
            ("broker.retention_bytes=0", "= 0 B is outside 1.0 MiB to 1.0 EiB, or unlimited"),
            ("broker.retention_bytes=2 EiB", "is outside 1.0 MiB to 1.0 EiB, or unlimited"),
            ("broker.retention_bytes=many", "give a size like \"10 GiB\", or \"unlimited\""),
        ] {
            let found = message(load("", &[set]));
            assert!(found.contains(said), "{set}: {found}");
        }
    }

    #[test]
    fn a_segment_is_made_of_whole_pages() {
        let found = message(load("", &["store.segment_size=100000001"]));
        assert!(found.contains("whole pages of 4096 bytes"), "{found}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let found = message(Config::load(Some(Path::new("/nowhere/mainstem.toml")), &[]));
        assert!(found.starts_with("the configuration file /nowhere/mainstem.toml cannot be read"));
    }
}
