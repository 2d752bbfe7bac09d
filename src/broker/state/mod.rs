//! The broker's state as a function of its state records.
//!
//! | unit | file | guards |
//! | --- | --- | --- |
//! | the topic table | [`topics`] | names, ids, configurations and the counter of ids |
//!
//! A unit has one short mutex. A change happens under it in this order: decide, append the state record, apply. So the
//! order in the log is the order of decisions. Replay after a start runs the same transition function.

pub mod topics;
