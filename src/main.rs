//! The `mainstem` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    mainstem::cli::main()
}
