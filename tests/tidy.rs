//! The doors of the house, held over the source as it stands.
//!
//! A test is one rule; its failure names file and line and says what to do. Comments, texts and tests are looked at
//! only where a rule says so: code in `mod tests`, in `tests.rs` and below `tests/` may open any door.
//!
//! The tables below are the house. Who adds a room, a door or a crate, adds it here and says why in the commit.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A room, what it may name of the crate, and which outside crates it may name. `thiserror` is for everybody; `a::b`
/// lets only `b` of `a` in.
struct Room {
    name: &'static str,
    knows: &'static [&'static str],
    crates: &'static [&'static str],
}

/// From the ground to the roof.
const ROOMS: &[Room] = &[
    Room { name: "message", knows: &[], crates: &[] },
    Room { name: "clock", knows: &["message"], crates: &[] },
    Room { name: "sync", knows: &[], crates: &["shuttle"] },
    Room {
        name: "format",
        knows: &["message"],
        crates: &["bytes", "crc_fast", "lz4_flex", "xxhash_rust", "zstd"],
    },
    Room {
        name: "file",
        knows: &["format", "message", "sync"],
        crates: &["bytes", "getrandom", "memmap2", "rustix"],
    },
    // Of `format` the view of a message, and the tags of a consumer.
    Room { name: "filter", knows: &["format::batch"], crates: &[] },
    Room {
        name: "log",
        knows: &["file", "format", "message", "sync"],
        // `tracing` for one line: what the disk said, where it becomes a damaged record and is lost to the rooms above.
        crates: &["arc_swap", "bytes", "foldhash", "tracing"],
    },
    Room {
        name: "store",
        knows: &["clock", "file", "format", "log", "message", "sync"],
        // Of tokio only what needs no runtime: see the rule of its own.
        crates: &[
            "arc_swap",
            "bytes",
            "crossbeam_channel",
            "dashmap",
            "foldhash",
            "tokio",
            "tracing",
        ],
    },
    Room {
        name: "broker",
        // Of `file` the door to the operating system alone: whoever opens a broker chooses the disk.
        knows: &["clock", "file::disk", "filter", "format", "message", "store", "sync"],
        // `base64` and `ring`: handles of leases are signed text.
        crates: &[
            "base64",
            "bytes",
            "dashmap",
            "foldhash",
            "ring",
            "tokio",
            "tracing",
            "xxhash_rust",
        ],
    },
    Room { name: "wire", knows: &[], crates: &["bytes", "prost"] },
    Room {
        name: "grpc",
        // Of filters whether an expression can be read: what clients tell of their subscriptions is looked at.
        knows: &["broker", "filter", "message", "proto", "sync", "wire"],
        crates: &[
            "bytes",
            // Digests of bodies: see the fence.
            "crc_fast",
            // Many futures in one task.
            "futures_util",
            "hyper",
            "hyper_util",
            "md5",
            "prost",
            // Times of the protocol of RocketMQ.
            "prost_types",
            // A digest of the certificate, for people to compare.
            "ring",
            "sha1",
            "tokio",
            "tokio_rustls",
            // The stream of an answer that comes in parts.
            "tokio_stream",
            "tonic",
            "tonic_health",
            "tonic_prost",
            "tonic_reflection",
            "tower",
            "tracing",
            // Whom a certificate names, and until when.
            "x509_cert",
        ],
    },
    Room {
        name: "http",
        knows: &["broker", "message"],
        crates: &["axum", "hyper", "hyper_util", "prometheus_client", "tokio", "tracing"],
    },
    Room {
        name: "client",
        knows: &["format::batch", "message", "proto", "wire"],
        // Of hyper the trait of a body: streams bring their own.
        // `getrandom` for the names of producers without one.
        crates: &["bytes", "getrandom", "hyper", "prost", "tokio", "tonic"],
    },
    Room {
        name: "config",
        knows: &["broker", "message", "store"],
        crates: &["bytesize", "humantime_serde", "serde", "toml"],
    },
    Room {
        name: "server",
        // Of `file` and `format` what it takes to keep a certificate in the data directory.
        knows: &[
            "broker",
            "clock",
            "config",
            "file::FileError",
            "file::disk",
            "format::names",
            "grpc",
            "http",
            "store",
        ],
        crates: &["rcgen", "tokio", "tracing"],
    },
    Room { name: "offline", knows: &["broker", "clock", "file::disk", "store"], crates: &[] },
    Room { name: "telemetry", knows: &[], crates: &["tracing", "tracing_subscriber"] },
    Room { name: "child", knows: &[], crates: &["getrandom", "serde", "serde_json", "tokio"] },
    Room {
        name: "bench",
        // Generated types in one file of it: the control is a server of the same API. Of `grpc` the settings of the
        // port and what runs its calls, which the control shares.
        knows: &[
            "child",
            "client",
            "format::batch",
            "grpc::calls",
            "grpc::listen",
            "message",
            "proto",
            "sync",
            "wire",
        ],
        crates: &[
            "bytes",
            "hdrhistogram",
            "humantime_serde",
            "hyper",
            "hyper_util",
            // Of it the timer alone.
            "rustix",
            "serde",
            "serde_json",
            "tokio",
            "tokio_stream",
            "tonic",
            "tower",
        ],
    },
    Room {
        name: "cli",
        // Of `file` and `store` the errors of a start alone, to say what helps.
        knows: &[
            "bench",
            "child",
            "client",
            "config",
            "file::FileError",
            "format::batch",
            "http::probe",
            // A dump shows headers as they stand in the log.
            "format::record",
            "message",
            "offline",
            "server",
            "store::CloseError",
            "store::OpenError",
            "telemetry",
        ],
        crates: &[
            "anyhow",
            "base64",
            "bytes",
            "bytesize",
            "clap",
            "comfy_table",
            "hdrhistogram",
            "indicatif",
            "jiff",
            "serde",
            "serde_json",
            "tokio",
            "toml",
            "tonic",
        ],
    },
    // The test door: opens what lies below `store`, and is named by tests alone.
    Room {
        name: "testing",
        knows: &["clock", "file", "format", "message", "store", "sync"],
        crates: &[],
    },
    Room { name: "lib", knows: &[], crates: &["tonic"] },
    Room { name: "main", knows: &[], crates: &["mimalloc"] },
];

/// Crates that are let into some files of their rooms only.
const FENCES: &[(&str, &[&str])] = &[
    ("memmap2", &["file/mapping.rs"]),
    ("rustix", &["bench/pace.rs", "file/"]),
    ("futures_util", &["grpc/calls.rs"]),
    ("getrandom", &["child.rs", "file/disk.rs", "client/producer/"]),
    ("lz4_flex", &["format/batch/codec.rs"]),
    ("rcgen", &["server/certificate.rs"]),
    ("ring", &["broker/handle.rs", "grpc/tls.rs"]),
    ("tokio_rustls", &["grpc/opening.rs", "grpc/tls.rs"]),
    ("x509_cert", &["grpc/tls.rs"]),
    ("md5", &["grpc/rocketmq/digest.rs"]),
    ("sha1", &["grpc/rocketmq/digest.rs"]),
    ("crc_fast", &["format/", "grpc/rocketmq/digest.rs"]),
    ("prometheus_client", &["http/metrics.rs"]),
    ("shuttle", &["sync.rs"]),
    ("tonic", &["bench/no_op.rs", "grpc/", "client/", "cli/error.rs", "lib.rs"]),
    ("prost", &["grpc/", "client/", "wire.rs"]),
    ("hyper", &["bench/no_op.rs", "grpc/", "http/", "client/"]),
    ("hyper_util", &["bench/no_op.rs", "grpc/", "http/"]),
    ("tower", &["bench/no_op.rs", "grpc/"]),
    ("zstd", &["format/batch/codec.rs"]),
];

/// Which files of `log` a file of it may name; the store introduces the others to each other.
const LOG: &[(&str, &[&str])] = &[
    ("commit_log", &["parts", "walk", "window"]),
    ("consume_queue", &["paged", "parts"]),
    ("index", &["paged", "parts"]),
    ("paged", &[]),
    ("parts", &[]),
    ("walk", &["commit_log"]),
    ("window", &[]),
];

/// The same of `format`: a layout knows the pieces it is made of, and no other layout.
const FORMAT: &[(&str, &[&str])] = &[
    // Attributes are the payload of internal records too.
    ("attributes", &["record"]),
    ("batch", &[]),
    // A page of zeros is told by the same walk as a record of zeros.
    ("checkpoint", &["envelope", "record"]),
    ("consume_queue", &["pages"]),
    ("envelope", &[]),
    ("epoch", &["fields"]),
    // Fields are the payload of internal records and keep their limit.
    ("fields", &["record"]),
    ("identity", &["envelope"]),
    ("index", &["pages"]),
    ("names", &[]),
    // One header for both kinds of file; the version of each stands at its layout.
    ("pages", &["consume_queue", "index"]),
    ("record", &[]),
    ("segment_header", &["envelope", "record"]),
    ("snapshot", &["envelope"]),
    ("state_record", &["fields"]),
];

const MAX_COLUMNS: usize = 120;

/// One file under `src`.
struct Source {
    /// From `src` on.
    path: String,
    text: String,
    /// The text without tests; comments, strings and characters are blanks.
    code: String,
}

impl Source {
    /// The first part of its path.
    fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Its path as a module: `log/consume_queue/part.rs` is `[log, consume_queue, part]`.
    fn module(&self) -> Vec<&str> {
        let path = self.path.strip_suffix(".rs").unwrap();
        path.split('/').filter(|part| !["mod", "lib", "main"].contains(part)).collect()
    }

    /// Whether it is a file of tests.
    fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Whether it is compiled into tests only.
    fn is_for_tests(&self) -> bool {
        self.is_tests() || self.room() == "testing" || self.path.contains("/sim/")
    }

    fn at(&self, position: usize) -> String {
        let line = self.code[..position].matches('\n').count() + 1;
        format!("src/{}:{line}", self.path)
    }

    /// Where a word stands in the code, not as a part of another one.
    fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        self.code.match_indices(word).map(|(at, _)| at).filter(move |at| {
            !self.code[..*at].ends_with(is_part)
                && !self.code[at + word.len()..].starts_with(is_part)
        })
    }

    /// All that is named below `root`, such as `crate`: position, and the path behind it.
    fn paths<'a>(&'a self, root: &'a str) -> impl Iterator<Item = (usize, String)> + 'a {
        self.words(root)
            // `x::root` is another one's; `root` alone names nothing below it.
            .filter(|at| !self.code[..*at].trim_end().ends_with("::"))
            .filter_map(move |at| {
                let rest = self.code[at + root.len()..].trim_start();
                let mut paths = Vec::new();
                expand(rest.strip_prefix("::")?, "", &mut paths);
                Some(paths.into_iter().map(move |path| (at, path)))
            })
            .flatten()
    }
}

/// Reads a path, or a group of paths, at the start of `text`; returns what is behind it.
fn expand<'a>(text: &'a str, before: &str, paths: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, before, paths).trim_start();
            // `as other` names nothing.
            if let Some(renamed) = rest.strip_prefix("as ") {
                rest = renamed
                    .trim_start()
                    .trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
                rest = rest.trim_start();
            }
            let Some(next) = rest.strip_prefix(',') else { break };
            rest = next.trim_start();
            if rest.starts_with('}') {
                break;
            }
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = match (before, name) {
        (before, "self" | "") => before.to_owned(),
        ("", name) => name.to_owned(),
        (before, name) => format!("{before}::{name}"),
    };
    match rest.strip_prefix("::") {
        Some(below) if !below.starts_with('<') => expand(below, &path, paths),
        _ => {
            paths.push(path);
            rest.strip_prefix('*').unwrap_or(rest)
        }
    }
}

/// Blanks comments, strings and characters, so that what is left is code on the same lines.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            '"' => string_len(rest),
            'r' if !code.ends_with(|c: char| c.is_alphanumeric() || c == '_') => raw_len(rest),
            '\'' => character_len(rest),
            _ => 0,
        };
        if len == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            // As many bytes as before: positions of the code are positions of the text.
            code.extend(rest[..len].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
            rest = &rest[len..];
        }
    }
    code
}

fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Of a raw string, or 0: an `r` that begins none.
fn raw_len(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|b| *b == b'#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    text[body..].find(&end).map_or(text.len(), |at| body + at + end.len())
}

/// Of a character, or 0: a lifetime.
fn character_len(text: &str) -> usize {
    let mut rest = text.char_indices().skip(1);
    match rest.next() {
        Some((_, '\\')) => text[2..]
            .find('\'')
            .map_or(0, |at| if text[2..].starts_with('\'') { 4 } else { 2 + at + 1 }),
        Some(_) => match rest.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources: Vec<Source> = files(&root)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let mut code = code_of(&text);
            assert_eq!(code.len(), text.len(), "{}", path.display());
            // Tests stand last; their lines stay.
            if let Some(tests) = code.find("#[cfg(test)]\nmod tests {") {
                let blank = code[tests..].replace(|c: char| c != '\n', " ");
                code.replace_range(tests.., &blank);
            }
            let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            Source { path, text, code }
        })
        .collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 50, "the source is not where it was");
    sources
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn room(name: &str) -> &'static Room {
    let room = ROOMS.iter().find(|room| room.name == name);
    room.unwrap_or_else(|| panic!("src/{name} is no room of tests/tidy.rs: what may it name?"))
}

/// Fails with one line for each breach.
fn assert_none(breaches: &[String]) {
    let mut told = String::new();
    for breach in breaches {
        let _ = writeln!(told, "{breach}");
    }
    assert!(breaches.is_empty(), "{} breaches:\n{told}", breaches.len());
}

/// Whether `path` is one of `doors` or below it.
fn is_let_in(path: &str, doors: &[&str]) -> bool {
    doors.iter().any(|door| {
        path.strip_prefix(door).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

#[test]
fn a_room_names_only_the_rooms_it_may_know() {
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|source| !source.is_tests()) {
        let room = room(source.room());
        for (at, path) in source.paths("crate") {
            let own = path.split("::").next() == Some(room.name);
            if !own && !is_let_in(&path, room.knows) {
                breaches.push(format!("{}: {} may not know {path}", source.at(at), room.name));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn no_room_is_left_through_super() {
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|source| !source.is_tests()) {
        let depth = source.module().len();
        for (at, path) in source.paths("super") {
            let ups = 1 + path.split("::").take_while(|part| *part == "super").count();
            if ups >= depth {
                breaches.push(format!("{}: say crate::, not super::{path}", source.at(at)));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn rooms_point_down_only() {
    let floor = |name: &str| ROOMS.iter().position(|room| room.name == name);
    let mut breaches = Vec::new();
    for (at, room) in ROOMS.iter().enumerate() {
        for door in room.knows {
            let below = door.split("::").next().unwrap();
            if below != "proto" && floor(below).is_none_or(|below| below >= at) {
                breaches.push(format!("{} is not above {below}", room.name));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn every_room_of_the_table_is_there() {
    let sources = sources();
    let is_there = |room: &&Room| !sources.iter().any(|source| source.room() == room.name);
    let missing: Vec<_> = ROOMS.iter().filter(is_there).map(|room| room.name.to_owned()).collect();
    assert_none(&missing);
}

#[test]
fn a_room_names_only_the_outside_crates_it_may() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
    let crates: Vec<String> = manifest["dependencies"]
        .as_table()
        .unwrap()
        .keys()
        .map(|name| name.replace('-', "_"))
        .filter(|name| name != "thiserror")
        .collect();
    assert!(crates.len() > 30, "{crates:?}");
    let mut breaches = Vec::new();
    for source in sources() {
        if source.is_tests() {
            continue;
        }
        let room = room(source.room());
        for name in &crates {
            // A module of ours with a crate's name is reached by a path and found by the rule above.
            let Some((at, _)) = source.paths(name).next() else { continue };
            if !room.crates.contains(&name.as_str()) {
                breaches.push(format!("{}: {} may not name {name}", source.at(at), room.name));
            }
            let fence = FENCES.iter().find(|(fenced, _)| fenced == name);
            let inside = |files: &&[&str]| files.iter().any(|file| source.path.starts_with(file));
            if let Some((_, files)) = fence.filter(|(_, files)| !inside(files)) {
                breaches.push(format!("{}: {name} is for {files:?} alone", source.at(at)));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn the_store_takes_of_tokio_only_what_needs_no_runtime() {
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|source| source.room() == "store") {
        if source.is_for_tests() {
            continue;
        }
        for (at, path) in source.paths("tokio") {
            if !is_let_in(&path, &["sync", "pin"]) {
                breaches.push(format!("{}: the store knows no tokio::{path}", source.at(at)));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn generated_types_are_named_by_grpc_client_and_the_control_of_the_bench_alone() {
    // `knows` says so too; this also holds for tests, which may open every other door.
    let mut breaches = Vec::new();
    for source in sources() {
        let is_control = source.path == "bench/no_op.rs";
        if is_control || ["grpc", "client", "lib"].contains(&source.room()) {
            continue;
        }
        for (number, line) in (1..).zip(code_of(&source.text).lines()) {
            if line.contains("proto::") {
                breaches.push(format!("src/{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn the_test_door_is_named_by_tests_alone() {
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|source| !source.is_for_tests()) {
        for (at, path) in source.paths("crate") {
            if is_let_in(&path, &["testing"]) {
                breaches.push(format!("{}: {path} is for tests", source.at(at)));
            }
        }
    }
    assert_none(&breaches);
}

/// Breaches of a table of neighbours in `room`.
fn nosy(room: &str, neighbours: &[(&str, &[&str])]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources() {
        let module = source.module();
        let [first, own, inner @ ..] = module.as_slice() else { continue };
        if *first != room || source.is_for_tests() {
            continue;
        }
        let Some((_, known)) = neighbours.iter().find(|(name, _)| name == own) else {
            breaches.push(format!("src/{}: what may it know of {room}?", source.path));
            continue;
        };
        let ups = "super::".repeat(inner.len());
        let by_super = source
            .paths("super")
            .filter_map(|(at, path)| Some((at, path.strip_prefix(&ups)?.to_owned())));
        let by_crate = source.paths("crate").filter_map(|(at, path)| {
            Some((at, path.strip_prefix(room)?.strip_prefix("::")?.to_owned()))
        });
        for (at, path) in by_super.chain(by_crate) {
            let neighbour = path.split("::").next().unwrap();
            let is_file = neighbours.iter().any(|(name, _)| *name == neighbour);
            if is_file && neighbour != *own && !known.contains(&neighbour) {
                breaches.push(format!("{}: {own} may not know {neighbour}", source.at(at)));
            }
        }
    }
    breaches
}

#[test]
fn neighbours_in_log_do_not_know_each_other() {
    assert_none(&nosy("log", LOG));
}

#[test]
fn neighbours_in_format_do_not_know_each_other() {
    assert_none(&nosy("format", FORMAT));
}

#[test]
fn unsafe_stands_in_the_mapping_alone() {
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|source| source.path != "file/mapping.rs") {
        for (number, line) in (1..).zip(code_of(&source.text).lines()) {
            let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            if words.any(|word| word == "unsafe" || word == "unsafe_code") {
                breaches.push(format!("src/{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn every_file_says_first_what_it_is() {
    let breaches: Vec<_> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| format!("src/{}:1: begin with `//! ` and what it owns", source.path))
        .collect();
    assert_none(&breaches);
}

#[test]
fn nothing_is_left_to_do() {
    let mut breaches = Vec::new();
    for source in sources() {
        for (number, line) in (1..).zip(source.text.lines()) {
            let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            let mark = words.any(|word| ["TODO", "FIXME", "XXX"].contains(&word));
            if mark || line.contains("todo!") || line.contains("unimplemented!") {
                breaches.push(format!("src/{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn no_room_is_named_after_nothing() {
    let mut breaches = Vec::new();
    for source in sources() {
        for part in source.module() {
            let mut words = part.split('_').map(|word| word.trim_end_matches('s'));
            let nothing = ["common", "util", "helper", "manager", "impl", "misc"];
            if words.any(|word| nothing.contains(&word)) {
                breaches.push(format!("src/{}: `{part}` says nothing", source.path));
            }
        }
        for (at, path) in source.words("mod").map(|at| (at, &source.code[at + 3..])) {
            let name = path.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ' '));
            let name = name.map(str::trim).next().unwrap_or_default();
            if ["common", "util", "utils", "helper", "helpers", "manager", "impls"].contains(&name)
            {
                breaches.push(format!("{}: `mod {name}` says nothing", source.at(at)));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn lines_end_before_column_120() {
    let mut breaches = Vec::new();
    for source in sources() {
        for (number, line) in (1..).zip(source.text.lines()) {
            let columns = line.chars().count();
            // A row of a table cannot be broken, and neither can a line of golden output.
            let line = line.trim_start();
            let is_row = line.trim_start_matches(['/', '!']).trim_start().starts_with('|');
            if columns > MAX_COLUMNS && !is_row && !line.starts_with("r#") {
                breaches.push(format!("src/{}:{number}: {columns} columns", source.path));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn the_readme_names_every_room() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let mut breaches = Vec::new();
    // `testing` is in no program that anybody runs.
    for Room { name, .. } in ROOMS.iter().filter(|room| room.name != "testing") {
        let names = [format!("{name}/"), format!("{name}.rs"), format!("`{name}`")];
        if !names.iter().any(|name| readme.contains(name)) {
            breaches.push(format!("README.md: the map does not name {name}"));
        }
    }
    assert_none(&breaches);
}

#[test]
fn the_reader_of_this_file_sees_code_and_nothing_else() {
    let text = "use crate::{a::{b, c as d}, e::*, f}; // crate::g\n\
                let x = \"crate::h \\\" crate::i\"; let y = '\"'; crate::j::K::new(); r#\"crate::l\"#;\n\
                fn m<'a>(n: &'a str) { self::crate::o; super::super::p::q() }\n";
    let code = code_of(text);
    assert_eq!(code.len(), text.len());
    let source = Source { path: "store/x.rs".to_owned(), text: text.to_owned(), code };
    let paths: Vec<_> = source.paths("crate").map(|(_, path)| path).collect();
    assert_eq!(paths, ["a::b", "a::c", "e", "f", "j::K::new"]);
    let supers: Vec<_> = source.paths("super").map(|(_, path)| path).collect();
    assert_eq!(supers, ["super::p::q"]);
    assert_eq!(source.at(text.find("super").unwrap()), "src/store/x.rs:3");
    assert!(is_let_in("file::disk::Disk", &["file::disk"]));
    assert!(!is_let_in("file::disks", &["file::disk"]));
}
