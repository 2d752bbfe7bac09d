//! The store against plain vectors: whatever is appended, in whatever order the workers step, reads and queries give
//! what the model gives, and nothing before its time.
//!
//! Seeded; `SEED` runs one case again, `FAULT_MINUTES` adds so many minutes of random ones.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod model;
#[path = "../crash/rig.rs"]
#[allow(dead_code, reason = "shared with the crash tests, which use more of it")]
mod rig;
mod stories;
