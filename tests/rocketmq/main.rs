//! The RocketMQ service as a client of it sees it: a real server on free ports, calls by hand, one test per behaviour.
//! `tests/RULES.md` says which rule each of them holds.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod clients;
mod common;
mod consumer;
mod fifo;
mod filters;
mod fuzz;
mod quirks;
mod receive;
mod renew;
mod route;
mod rules;
mod send;
mod settle;
mod support;
mod telemetry;
