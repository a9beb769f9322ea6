//! Arguments, progress, printing: the only place that prints, and the one that turns an error into
//! an exit code.

mod activations;
mod align;
mod align_inputs;
mod apply;
mod args;
mod device;
mod flags;
mod interpolate;
mod job;
mod matcher;
mod merge;
mod mergekit;
mod models;
mod plan;
mod progress;
mod quantised;
mod reference;
mod stages;
mod symmetries;
mod typed;
mod verify;

use std::io::Write;
use std::sync::Arc;

use clap::Parser;
use signal_hook::flag;

use crate::budget::{keep_little, raise_open_files};
use crate::checkpoint::guard_maps;
use crate::door::Door;
use crate::error::{Error, Kind, Result, shown, shown_json};
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
    raise_open_files();
    keep_little();
    let outcome = guard_maps()
        .and_then(|()| outlive_file_limits())
        .and_then(|()| match cli.command {
            Command::Merge(mut args) => flags::complete_flags(&mut args.job).and_then(|()| {
                merge::run(&args).map_err(|error| error.through(job::door(&args.job)))
            }),
            Command::Plan(mut args) => flags::complete_flags(&mut args.job).and_then(|()| {
                plan::run(&args).map_err(|error| error.through(job::door(&args.job)))
            }),
            // Arguments after --against are flags or a recipe, so `verify` chooses the words
            // itself.
            Command::Verify(args) => verify::run(&args),
            Command::Reference(args) => reference::run(&args),
            Command::Symmetries(args) => symmetries::run(&args).map_err(of_command),
            Command::Apply(args) => apply::run(&args).map_err(of_command),
            Command::Align(args) => align::run(&args).map_err(of_command),
            Command::Activations(args) => activations::run(&args).map_err(of_command),
            Command::Interpolate(args) => interpolate::run(&args).map_err(of_command),
        });
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            report(&error);
            error.exit_code()
        }
    }
}

/// Makes a write beyond the file size limit (`ulimit -f`) fail like any other write: without a
/// handler, its signal ends the process silently.
fn outlive_file_limits() -> Result<()> {
    flag::register(libc::SIGXFSZ, Arc::default())
        .map(drop)
        .map_err(|error| Error::new(Kind::Io, "cannot watch signals", "SIGXFSZ", error))
}

/// Rewords the error for a command that has no recipe.
fn of_command(error: Error) -> Error {
    error.through(Door::Command)
}

/// The most failures that are printed at once.
const MOST_TOLD: usize = 20;

/// Prints one line for each failure and one for its hint.
fn report(error: &Error) {
    let mut stderr = std::io::stderr().lock();
    // If standard error is closed, there is nowhere to report that.
    for error in [error].into_iter().chain(error.others()).take(MOST_TOLD) {
        let _ = writeln!(stderr, "thalweg: {error}");
        if let Some(hint) = error.hint() {
            let _ = writeln!(stderr, "  {}", shown(hint));
        }
    }
    if let Some(more) = (error.others().len() + 1)
        .checked_sub(MOST_TOLD)
        .filter(|more| *more > 0)
    {
        let _ = writeln!(stderr, "  and {more} more of the kind");
    }
}

/// Writes `text` to standard output, each line as [`shown`] escapes and cuts it, JSON escaped and
/// uncut; a closed pipe is not an error.
fn print(text: &str) -> Result<()> {
    let text = text.trim_end();
    let safe = if text.starts_with(['{', '[']) {
        shown_json(text).into_owned()
    } else {
        text.lines().map(shown).collect::<Vec<_>>().join("\n")
    };
    match writeln!(std::io::stdout().lock(), "{safe}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io(
            "cannot print",
            std::path::Path::new("standard output"),
            error,
        )),
        _ => Ok(()),
    }
}

/// Renders a table without trailing blanks.
fn trimmed(table: &comfy_table::Table) -> String {
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}
