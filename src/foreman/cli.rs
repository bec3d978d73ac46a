//! From words to a verb, and from its end to an exit code.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser};

use super::commands::{Command, status};
use super::desk::{Desk, Verb};
use super::exit::{ExitKind, Problem};
use super::printer::{ColorWish, Printer};
use crate::worker::{self, WorkerArgs};

/// Run a model-compression line: put recipes in, watch them being built, get measured models out
#[derive(Parser)]
#[command(
    name = "foreman",
    version,
    after_help = "Without a command: status.\n\nExample:\n  foreman demo\n  foreman enqueue my.alloy.json && foreman run --drain\n\nExit codes: 0 ok, 1 unexpected, 2 usage, 3 not found, 4 nothing matched, 5 part failed,\n6 timed out, 7 node not running, 8 lock held, 9 refused,\n10 and 11 what doctor found. See docs/OPERATOR.md."
)]
struct Cli {
    /// Folder of the line [default: the current folder if it is a line, else .factory]
    #[arg(long, global = true, value_name = "DIR", env = "FACTORY_ROOT", hide_env_values = true)]
    root: Option<PathBuf>,

    /// Write one JSON document to stdout (streams: one object per line)
    #[arg(long, global = true)]
    json: bool,

    /// When to colour the output
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = false)]
    color: ColorWish,

    #[command(subcommand)]
    command: Option<Word>,
}

#[derive(clap::Subcommand)]
enum Word {
    #[command(flatten)]
    Verb(Command),
    /// Build one part; started by the supervisor
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// The command line as clap sees it: help, completions and man pages come from it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs one command line and says how it ended.
pub fn run(words: Vec<OsString>) -> ExitCode {
    let wish = early_color(&words);
    let matches = command().color(clap_color(wish)).try_get_matches_from(&words);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return refuse(&words, wish, &error).into(),
    };
    let command = match cli.command {
        Some(Word::Worker(args)) => return worker::main(&args),
        Some(Word::Verb(command)) => command,
        None => Command::Status(status::Args::default()),
    };
    let mut desk = Desk::new(cli.root, Printer::new(cli.json, cli.color));
    let answer = command.run(&mut desk).and_then(|kind| desk.printer.flush().map(|()| kind));
    let kind = answer.unwrap_or_else(|problem| {
        desk.printer.problem(&problem);
        problem.kind()
    });
    kind.into()
}

/// Help and version go to stdout and are no error; everything else clap says is a usage error.
fn refuse(words: &[OsString], wish: ColorWish, error: &clap::Error) -> ExitKind {
    use clap::error::ErrorKind;
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let wants_json = words.iter().any(|word| word == "--json");
    if asked || !wants_json {
        // A closed pipe is not an error.
        let _ = error.print();
        return if asked { ExitKind::Ok } else { ExitKind::Usage };
    }
    let text = error.render().to_string();
    let message = text.trim().trim_start_matches("error: ").lines().next().unwrap_or("wrong usage").to_owned();
    Printer::new(true, wish).problem(&Problem::usage(message).hinted("foreman --help, or foreman COMMAND --help"));
    ExitKind::Usage
}

/// `--color` before the command line is parsed, so that usage errors obey it too.
fn early_color(words: &[OsString]) -> ColorWish {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let spaced = words.windows(2).find(|pair| pair[0] == "--color").map(|pair| pair[1]);
    let joined = words.iter().find_map(|word| word.strip_prefix("--color="));
    match spaced.or(joined) {
        Some("always") => ColorWish::Always,
        Some("never") => ColorWish::Never,
        _ => ColorWish::Auto,
    }
}

fn clap_color(wish: ColorWish) -> ColorChoice {
    match wish {
        ColorWish::Auto => ColorChoice::Auto,
        ColorWish::Always => ColorChoice::Always,
        ColorWish::Never => ColorChoice::Never,
    }
}
