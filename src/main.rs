//! The `pushpull` command. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pushpull::cli::main()
}
