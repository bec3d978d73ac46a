//! `foreman init`: makes a folder into a line.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::line::Layout;
use crate::node::NODE_FILE;

/// The commented description of a node, as shipped.
const NODE_EXAMPLE: &str = include_str!("../../../factory_node.toml.example");

/// Make a folder into a line: its stations and a commented factory_node.toml
///
/// What is there already is kept: doing it twice changes nothing.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman init --root /srv/line\n  foreman init --dry-run")]
pub struct Args {
    /// Only show what would be made
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Made {
    dry_run: bool,
    root: PathBuf,
    made: Vec<PathBuf>,
    next: String,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.layout();
        let mut wanted = layout.directories();
        wanted.push(layout.root().join(NODE_FILE));
        let made: Vec<PathBuf> = wanted.into_iter().filter(|path| !path.exists()).collect();
        if !self.dry_run {
            Layout::init(layout.root())?;
            write_example(&layout.root().join(NODE_FILE))?;
        }
        let next = desk.command("enqueue FILE.alloy.json");
        let document = Made { dry_run: self.dry_run, root: layout.root().to_owned(), made, next };
        desk.answer(&document, |made, printer| {
            for path in &made.made {
                printer.line(format!("- -> {}", path.display()))?;
            }
            if made.made.is_empty() {
                printer.note(format!("{} is a line already", made.root.display()));
            }
            match made.dry_run {
                true => printer.note("nothing was changed (--dry-run)"),
                false => printer.note(format!("next: {}", made.next)),
            }
            Ok(())
        })
    }
}

/// Never overwrites: the file is the operator's.
fn write_example(path: &Path) -> Result<(), Problem> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    match opened {
        Ok(mut file) => std::io::Write::write_all(&mut file, NODE_EXAMPLE.as_bytes())
            .map_err(|error| Problem::io(format!("write {}", path.display()), &error)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Problem::io(format!("write {}", path.display()), &error)),
    }
}
