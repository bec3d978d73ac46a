//! `factoryd`: the daemon of a line, and the workers it starts.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use factoryline::daemon::{ServeArgs, serve};
use factoryline::worker::{self, WorkerArgs};

/// Works a line: builds every recipe that is put into DIR/line/intake
///
/// Exit codes: 0 done or stopped, 2 usage, 8 another supervisor holds the line, 65 to 75 a fault (its class).
#[derive(Parser)]
#[command(name = "factoryd", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "Example:\n  factoryd --root factory --drain")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Build one part; started by the daemon
    #[command(hide = true)]
    Worker(WorkerArgs),
}

fn main() -> ExitCode {
    match Cli::parse() {
        Cli { command: Some(Command::Worker(args)), .. } => worker::main(&args),
        Cli { serve: args, .. } => serve(&args),
    }
}
