//! Arguments, progress, printing: the only place that prints, and the one that turns an error into an exit code.

mod activations;
mod align;
mod align_by;
mod apply;
mod args;
mod device;
mod interpolate;
mod job;
mod merge;
mod plan;
mod progress;
mod reference;
mod stages;
mod symmetries;
mod verify;

use std::io::Write;

use clap::Parser;

use crate::checkpoint::guard_maps;
use crate::error::{Error, Result};
use args::{Cli, Command};

/// Runs the program on the process's arguments and returns its exit code.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    let outcome = guard_maps().and_then(|()| match cli.command {
        Command::Merge(args) => merge::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Reference(args) => reference::run(&args),
        Command::Symmetries(args) => symmetries::run(&args),
        Command::Apply(args) => apply::run(&args),
        Command::Align(args) => align::run(&args),
        Command::Activations(args) => activations::run(&args),
        Command::Interpolate(args) => interpolate::run(&args),
    });
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            report(&error);
            error.exit_code()
        }
    }
}

/// One line for the failure, one for what to do about it.
fn report(error: &Error) {
    let mut stderr = std::io::stderr().lock();
    // There is nowhere left to say that standard error is closed.
    let _ = writeln!(stderr, "thalweg: {error}");
    if let Some(hint) = error.hint() {
        let _ = writeln!(stderr, "  {hint}");
    }
}

/// Writes `text` to standard output; a reader that has gone away is no failure.
fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{}", text.trim_end()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("cannot print", std::path::Path::new("standard output"), error))
        }
        _ => Ok(()),
    }
}

/// A table without the blanks that fill up its lines.
fn trimmed(table: &comfy_table::Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
