//! Real `mainstem` processes: killed, stopped, started where they cannot run, cut off from their disk, talked to badly.
//!
//! | file | what is asked |
//! | --- | --- |
//! | `kill.rs` | SIGKILL again and again under load: what was acknowledged is there, nothing else, and nothing changes; what goes had to go |
//! | `load.rs` | who sends, reads and purges meanwhile |
//! | `history.rs`, `gone.rs` | the checker of what they saw, and its own tests; what may be gone |
//! | `sessions.rs` | the same under producers with sessions: what is sent again is stored once |
//! | `produced.rs` | the same under producers of the client library, which find the broker again by themselves |
//! | `offsets.rs` | SIGKILL while groups commit |
//! | `leases.rs` | SIGKILL while consumers of a group receive and acknowledge |
//! | `stop.rs` | SIGTERM under load, health while it drains |
//! | `start.rs` | starts that cannot be: one clear line, an exit code |
//! | `truncated.rs` | readers after a power cut that took what they read |
//! | `disk.rs` | a full disk, one below its reserve, a failing sync |
//! | `abuse.rs` | clients that take and give nothing back: what they cost, and whether others are served |
//! | `flood.rs` | very many clients, and frames of HTTP/2 by hand: what they cost, and whether others are served |
//! | `ports.rs` | garbage on the gRPC port, the pages of the HTTP port |
//! | `bench.rs` | a bench of servers of its own |
//! | `supervised.rs` | what a service manager hears of the start, of life and of the stop |
//! | `verify.rs` | a store that is verified, running and stopped |
//! | `support.rs` | a process and its home |
//!
//! What needs root or a tool that is not there prints a line that begins with SKIP and asks nothing.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod abuse;
mod bench;
mod disk;
mod flood;
mod gone;
mod history;
mod kill;
mod leases;
mod load;
mod offsets;
mod ports;
mod produced;
mod sessions;
mod start;
mod stop;
mod supervised;
mod support;
mod truncated;
mod verify;
