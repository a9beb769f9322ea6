//! The `thalweg` program: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(thalweg::cli::main())
}
