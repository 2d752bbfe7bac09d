//! The `mainstem` command.

use std::process::ExitCode;

/// A batch of 64 KiB and more is a large piece to an allocator: the C library's gives it back to the kernel as soon as
/// it is free, and each batch pays for fresh pages.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mainstem::cli::main()
}
