//! The operator's command: `foreman VERB`.
//!
//! Enters: a command line. Leaves: data on stdout (words, or one JSON document), messages on stderr, and an exit code
//! that means something ([`exit::ExitKind`]). Every reading verb works with the daemon down, because it reads the same
//! files as everybody else; files are moved only through the `line` room. One file per verb under `commands/`.

pub mod board;
mod catalog;
mod cli;
mod commands;
mod desk;
mod doctor;
pub mod exit;
mod printer;
mod progress;
mod subject;
mod wording;

use std::ffi::OsString;
use std::process::ExitCode;

pub use cli::command;
pub use commands::VERBS;
pub use printer::SCHEMA_VERSION;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    cli::run(words)
}
