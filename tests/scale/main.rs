//! A thousand topics of a thousand queues: made, written, read, stopped, killed, and there again.
//!
//! Each life of the broker is a process of its own, so that its memory is its own: this program again, with the one
//! test of `life.rs`. A life says what it met in a line of JSON, and is told to go on, or killed.
//!
//! | life | opens | does | ends |
//! | --- | --- | --- | --- |
//! | first | an empty directory | makes all topics, writes two messages into each queue, reads some | closes |
//! | second | after a clean stop | writes another message into some queues, counts all, reads some | SIGKILL |
//! | third | after the kill | counts all, reads some, deletes topics | closes |
//!
//! It needs 6 GB in `TMPDIR` and most of a minute; the figures are printed. `SCALE_TOPICS=100` where there is no room.
//! And the bounds of the state (`bounds.rs`), for which it needs 2 GB of memory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod bounds;
mod life;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use life::{MARK, QUEUES, topics};

/// What a broker with a million queues may hold of anonymous memory once it has sealed what is finished.
const MEMORY: u64 = 300 << 20;
/// Descriptors and mappings of the process itself: binary, libraries, stacks, heaps, standard streams.
const OWN_DESCRIPTORS: u64 = 32;
const OWN_MAPPINGS: u64 = 256;

/// One life of the broker. Dropping it kills it.
struct Life {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Life {
    fn start(name: &str, dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "life::a_broker_lives", "--ignored", "--nocapture"])
            .env(life::NAME, name)
            .env(life::DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// The next line that it says, once it does.
    fn says(&mut self) -> Value {
        let mut all = String::new();
        loop {
            let from = all.len();
            let len = self.said.read_line(&mut all).unwrap();
            assert!(len > 0, "it ended:\n{all}");
            if let Some((_, facts)) = all[from..].split_once(MARK) {
                return serde_json::from_str(facts).unwrap();
            }
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it close its store, and waits until it has ended.
    fn close(mut self) -> Value {
        drop(self.child.stdin.take());
        let closed = self.says();
        assert!(self.child.wait().unwrap().success());
        closed
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // It has ended, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_million_queues_cost_little_and_survive_a_stop_and_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let queues = u64::from(topics()) * u64::from(QUEUES);

    let mut life = Life::start("first", &dir);
    let first = life.says();
    check("first", &first);
    show("first", &life.close());

    let mut life = Life::start("second", &dir);
    let second = life.says();
    assert_eq!(second["clean"], true);
    let more = number(&second, "more");
    assert_eq!(more, u64::from(topics().div_ceil(100)) * u64::from(QUEUES));
    assert_eq!(number(&second, "messages"), 2 * queues + more);
    check("second", &second);
    life.kill();

    let mut life = Life::start("third", &dir);
    let third = life.says();
    assert_eq!(third["clean"], false);
    assert_eq!(number(&third, "messages"), 2 * queues + more);
    check("third", &third);
    show("third", &life.close());
}

/// Holds what is true of every life against what one has said.
fn check(name: &str, facts: &Value) {
    show(name, facts);
    let of = |what| number(facts, what);
    assert_eq!(of("topics"), u64::from(topics()));
    assert!(of("memory") < MEMORY, "{} bytes of anonymous memory at rest", of("memory"));
    // One each for a segment of the log, and for a file of each kind that was read from, 256 of a kind at most.
    let files = of("segments") + 2 * of("segments").min(256);
    assert!(of("descriptors") <= OWN_DESCRIPTORS + files, "{} descriptors", of("descriptors"));
    assert!(of("mappings") <= OWN_MAPPINGS + of("segments"), "{} mappings", of("mappings"));
}

fn number(facts: &Value, what: &str) -> u64 {
    facts[what].as_u64().unwrap_or_else(|| panic!("{what} in {facts}"))
}

/// Not captured, so that the figures are seen when the test passes.
fn show(life: &str, facts: &Value) {
    let mut out = std::io::stderr().lock();
    writeln!(out, "scale: {life} life: {facts}").unwrap();
}
