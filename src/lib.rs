//! Mainstem: a message broker in one binary. Every topic appends into one CommitLog; queues and a key index are derived
//! from it; a native gRPC API sends, pulls and queries.
//!
//! The crate is a house of rooms on floors. A room knows rooms of lower floors and nobody above; news goes up through
//! something that was handed down when the lower room was made ([`store::Applier`], a watermark, a waker).
//!
//! | floor | room | is | knows |
//! | ----: | ---- | -- | ----- |
//! | 0 | [`message`] | the vocabulary: offsets, ids, times, modes as types that do not mix | – |
//! | 0 | [`clock`] | time, injected; the only reader of wall time; the store clock that never steps back | `message` |
//! | 0 | `sync` | locks and atomics: std's, or shuttle's when a test explores interleavings | – |
//! | 1 | [`mod@format`] | every byte on disk: pure functions over slices, and the one table of limits | `message` |
//! | 2 | [`mod@file`] | files: the one door to the operating system, the simulated disk, and the fence around `unsafe` | floors 0–1 |
//! | 2 | [`filter`] | which messages a consumer wants: tags, and conditions in a part of SQL92 | `format::batch` |
//! | 3 | `log` | CommitLog, ConsumeQueue, Index: passive structures without threads, channels or clocks | floors 0–2 |
//! | 4 | [`store`] | makes logs a store: append, read, query, recovery, watermarks; owns every storage thread | floors 0–3 |
//! | 5 | [`broker`] | what a broker means: topics, sends, pulls, queries, budgets; no protobuf | `store`, `format`, `file::disk`, floor 0 |
//! | 5 | `wire` | gRPC messages in the frames of an HTTP/2 body, for both ends | – |
//! | 6 | `grpc` | `mainstem.v1`, `apache.rocketmq.v2`, health and reflection on one port: check, ask the broker, convert | `broker`, [`filter`], `wire`, [`proto`], floor 0 |
//! | 6 | `http` | `/healthz`, `/readyz`, `/metrics`, and who asks for readiness | `broker`, floor 0 |
//! | 6 | [`client`] | the native client: batches in, messages out | `wire`, [`proto`], `format::batch`, floor 0 |
//! | 7 | [`config`] | the configuration file: the options of `store` and `broker`, and addresses | `store`, `broker`, floor 0 |
//! | 7 | [`server`] | one server from its start to its end: wire, serve, drain in order | `config`, floors 0–6 without `client` |
//! | 7 | [`offline`] | what is done to a store on which no broker runs: verify, dump, rebuild | `broker`, `store`, `file::disk`, floor 0 |
//! | 7 | [`telemetry`] | what the process logs to stderr | – |
//! | 7 | `child` | a process of this executable that serves, and its directory | – |
//! | 7 | `bench` | measures a broker beside a server that does nothing | `child`, `client`, `grpc::calls`, `grpc::listen`, `wire`, [`proto`], `format::batch`, floor 0 |
//! | 7 | [`cli`] | the command line: `serve` runs a [`server`], `store` works on a stopped one, every other command asks a [`client`] | `client`, `server`, `offline`, `child`, `bench`, `http::probe`, `config`, `telemetry`, errors of `store` and `file`, `format::batch`, `format::record`, floor 0 |
//!
//! Two doors beside the floors: [`proto`] holds the generated types of `proto/`, which `grpc`, `client` and the control
//! of `bench` alone name;
//! `testing` (feature `testing`, on in tests) opens private rooms to tests: the simulated disk, a clock moved by hand,
//! a store stepped by hand.
//!
//! Where to begin: [`store`] for how a message survives, [`mod@format`] for what is on the disk, [`broker`] for what a
//! request may do, and `README.md` for the way of a send, a pull, a query and a restart through these files.

#[cfg(not(target_os = "linux"))]
compile_error!("Mainstem runs on Linux only");

pub(crate) mod bench;
pub mod broker;
pub(crate) mod child;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod file;
pub mod filter;
pub mod format;
pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod log;
pub mod message;
pub mod offline;
pub mod server;
pub mod store;
pub(crate) mod sync;
#[cfg(any(test, feature = "testing"))]
#[expect(clippy::panic, reason = "a test that cannot go on ends")]
pub mod testing;

pub mod telemetry;
pub(crate) mod wire;

/// The generated types of `proto/`; only `grpc`, `client` and the control of `bench` name them.
#[expect(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[allow(rustdoc::invalid_html_tags, reason = "generated")]
pub mod proto {
    tonic::include_proto!("mainstem.v1");
    /// All descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/mainstem_descriptor.bin"));

    /// The protocol of RocketMQ 5, `apache.rocketmq.v2`.
    pub mod rocketmq {
        tonic::include_proto!("apache.rocketmq.v2");
        /// All descriptors, for reflection.
        pub const DESCRIPTORS: &[u8] =
            include_bytes!(concat!(env!("OUT_DIR"), "/rocketmq_descriptor.bin"));
    }
}
