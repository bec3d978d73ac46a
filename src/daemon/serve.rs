//! What `factoryd` does once its arguments are read.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{DaemonOptions, Journal, Mode, WorkerCommand, run};
use crate::fault::{Fault, Outcome};
use crate::line::{Layout, LineLock};
use crate::node::Node;

/// Arguments of the daemon.
#[derive(Args)]
pub struct ServeArgs {
    /// Root of the line; made where it is missing
    #[arg(long, value_name = "DIR", default_value = ".factory", env = "FACTORY_ROOT")]
    root: PathBuf,
    /// Build one part, then end
    #[arg(long, group = "mode")]
    once: bool,
    /// Build until nothing waits, then end
    #[arg(long, group = "mode")]
    drain: bool,
    /// End after N parts reached finished or rework
    #[arg(long, value_name = "N", group = "mode", alias = "max-iters")]
    max_parts: Option<u32>,
    /// Report as JSON Lines
    #[arg(long)]
    json: bool,
    /// Another program to build parts with, word by word; it gets the arguments of the hidden `worker` command
    #[arg(long, value_name = "WORD", hide = true)]
    worker: Vec<String>,
}

/// Works the line as asked and maps the end to an exit code: 0 done or stopped, 8 another supervisor holds the line,
/// else the exit status of the fault's class.
pub fn serve(args: &ServeArgs) -> ExitCode {
    match supervise(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => report(&args.root, &fault),
    }
}

fn supervise(args: &ServeArgs) -> Outcome<()> {
    let mode = match args {
        ServeArgs { once: true, .. } => Mode::Once,
        ServeArgs { drain: true, .. } => Mode::Drain,
        ServeArgs { max_parts: Some(n), .. } => Mode::MaxParts(*n),
        _ => Mode::Forever,
    };
    let node = Node::load(&args.root)?;
    if !node.forges() {
        return Err(Fault::resource("this node does not build parts: node.roles in factory_node.toml lacks \"forge\"")
            .hint("add \"forge\" to node.roles, or work the line on another node"));
    }
    let mut options = DaemonOptions::new(&args.root, mode, &node)?;
    if let [program, rest @ ..] = &args.worker[..] {
        options.worker = WorkerCommand::new(program, rest.to_vec())?;
    }
    let journal = Journal::new(std::io::stderr(), args.json);
    journal.end(&run(&options, &journal)?);
    Ok(())
}

fn report(root: &Path, fault: &Fault) -> ExitCode {
    let mut err = std::io::stderr().lock();
    let hint = fault.hint.as_ref().map_or(String::new(), |hint| format!("\n\nhint: {hint}"));
    // Nobody listening is no reason to end otherwise.
    let _ = writeln!(err, "error: {fault}{hint}");
    match LineLock::is_held(&Layout::at(root)) {
        true => ExitCode::from(8),
        false => ExitCode::from(fault.class.exit_status()),
    }
}
