//! Mainstem: a message broker in one binary.
//!
//! stub map

pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod file;
pub mod format;
pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod log;
pub mod message;
pub mod server;
pub mod store;
pub(crate) mod sync;
#[cfg(any(test, feature = "testing"))]
#[expect(clippy::panic, reason = "a test that cannot go on ends")]
pub mod testing;

pub mod telemetry;

/// The generated types of `proto/`; only `grpc` and `client` name them.
#[expect(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[allow(rustdoc::invalid_html_tags, reason = "generated")]
pub mod proto {
    tonic::include_proto!("mainstem.v1");
    /// All descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/mainstem_descriptor.bin"));
}
