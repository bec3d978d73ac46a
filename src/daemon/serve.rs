//! What `factoryd` does once its arguments are read.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Args;

use super::log_file::LogFile;
use super::{DaemonOptions, Journal, Mode, Notifier, WorkerCommand, run};
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
    /// Report into this file instead of standard error; it is rotated at 16 MB, four older ones are kept
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Another program to build parts with, word by word; it gets the arguments of the hidden `worker` command
    #[arg(long, value_name = "WORD", hide = true)]
    worker: Vec<String>,
}

/// Works the line as asked and maps the end to an exit code: 0 done or stopped, 8 another supervisor holds the line,
/// else the exit status of the fault's class.
pub fn serve(args: &ServeArgs) -> ExitCode {
    let mut out = match args.log.as_deref().map(|path| (path, LogFile::open(path))) {
        None => Out::Stderr,
        Some((_, Ok(file))) => Out::File(Arc::new(Mutex::new(file))),
        Some((path, Err(error))) => {
            let fault = Fault::resource(format!("cannot write the log {}", path.display())).caused_by(error);
            return report(&mut Out::Stderr, &args.root, &fault);
        }
    };
    match supervise(args, out.clone()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => report(&mut out, &args.root, &fault),
    }
}

/// Where the daemon reports to.
#[derive(Clone)]
enum Out {
    Stderr,
    File(Arc<Mutex<LogFile>>),
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Out::Stderr => std::io::stderr().write(bytes),
            Out::File(file) => file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).write(bytes),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn supervise(args: &ServeArgs, out: Out) -> Outcome<()> {
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
    options.notify = Notifier::from_env();
    let journal = match out {
        Out::Stderr => Journal::new(out, args.json),
        Out::File(_) => Journal::new(out, args.json).dated(),
    };
    journal.end(&run(&options, &journal)?);
    Ok(())
}

fn report(out: &mut Out, root: &Path, fault: &Fault) -> ExitCode {
    let hint = fault.hint.as_ref().map_or(String::new(), |hint| format!("\n\nhint: {hint}"));
    // Nobody listening is no reason to end otherwise.
    let _ = out.write_all(format!("error: {fault}{hint}\n").as_bytes());
    match LineLock::is_held(&Layout::at(root)) {
        true => ExitCode::from(8),
        false => ExitCode::from(fault.class.exit_status()),
    }
}
