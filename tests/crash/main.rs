//! What a power cut, a failing disk and decay leave of a store, on the simulated disk.
//!
//! | file        | what                                                                                     |
//! | ----------- | ---------------------------------------------------------------------------------------- |
//! | `rig`       | a store stepped by hand, and what a client does with it                                  |
//! | `script`    | a fixed list of steps, and the ledger of what they appended, acknowledged and gave out   |
//! | `oracle`    | the log as its bytes say it is, read without the store; what a store must show for it    |
//! | `power_cut` | the power goes at every operation of every script                                        |
//! | `faults`    | one call fails, for every call                                                           |
//! | `decay`     | bytes and files change while nobody looks                                                |
//! | `scrub`     | bytes change while the store runs                                                        |
//! | `verify`    | what a verification says of what lies there                                              |
//! | `rebuild`   | what is derived is thrown away and made again; the log is shown                          |
//! | `repair`    | damaged bytes are given up, records without a topic get one again                        |
//! | `retention` | what is given back, and what must not be, while something else is wrong                  |
//! | `reused`    | what the file of a deleted segment holds when it is another segment                      |
//! | `snapshots` | snapshots beside what goes on                                                            |
//! | `gaps`      | what it costs to look for the next record                                                |
//!
//! `FAULT_MINUTES` (default 0) adds so many minutes of random scripts; `SEED` fixes their seed, which is printed.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod decay;
mod faults;
mod gaps;
mod oracle;
mod power_cut;
mod rebuild;
mod repair;
mod retention;
mod reused;
mod rig;
mod script;
mod scrub;
mod snapshots;
mod verify;
