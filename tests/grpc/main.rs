//! The native API as a client sees it: a real server on free ports, a real client, one test per behaviour.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod client_stream;
mod compressed;
mod consume;
mod consumer;
mod cut;
mod groups;
mod offsets;
mod producer;
mod proxy;
mod pull;
mod pull_stream;
mod puller;
mod query;
mod receive;
mod send;
mod send_stream;
mod server;
mod sessions;
mod support;
mod tls;
mod topics;
mod verify;
