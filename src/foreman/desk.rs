//! What every command has before it: the line it was asked about and the printer.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::exit::{Answer, ExitKind, Problem};
use super::printer::Printer;
use super::wording::shell_path;
use crate::line::{Layout, Station};

/// One command's surroundings.
pub struct Desk {
    root: PathBuf,
    /// The words after `foreman` that name this line again: empty for the default root.
    root_words: String,
    pub printer: Printer,
}

/// A command: arguments that know how to run.
pub trait Verb {
    fn run(&self, desk: &mut Desk) -> Answer;
}

impl Desk {
    /// `root` as given by `--root` or `FACTORY_ROOT`; else the current folder if it is a line, else `.factory`.
    pub fn new(root: Option<PathBuf>, printer: Printer) -> Self {
        let root_words = root.as_deref().map(|root| format!(" --root {}", shell_path(root))).unwrap_or_default();
        let here = || if Layout::at(".").station(Station::Intake).is_dir() { "." } else { ".factory" };
        Desk { root: root.unwrap_or_else(|| PathBuf::from(here())), root_words, printer }
    }

    /// The root that was asked for, if any was.
    pub fn given_root(&self) -> Option<&Path> {
        Some(self.root.as_path()).filter(|_| !self.root_words.is_empty())
    }

    /// The line where it should be, whether it is there or not.
    pub fn layout(&self) -> Layout {
        Layout::at(&self.root)
    }

    /// The line, which must be there.
    pub fn line(&self) -> Result<Layout, Problem> {
        let layout = self.layout();
        if layout.station(Station::Intake).is_dir() {
            return Ok(layout);
        }
        let root = self.root.display();
        Err(Problem::not_found(format!("{root} is not a line: it has no line/intake folder"))
            .hinted(format!("{} makes one; --root DIR names another", self.command("init"))))
    }

    /// A command line the reader can copy, for this line.
    pub fn command(&self, verb: &str) -> String {
        format!("foreman {verb}{}", self.root_words)
    }

    /// Ends a command: the document in JSON mode, else the words that `human` finds for it.
    pub fn answer<T: Serialize>(
        &mut self,
        document: &T,
        human: impl FnOnce(&T, &mut Printer) -> Result<(), Problem>,
    ) -> Answer {
        match self.printer.is_json() {
            true => self.printer.document(document)?,
            false => human(document, &mut self.printer)?,
        }
        Ok(ExitKind::Ok)
    }

    /// Refuses `--json` where a command has no document.
    pub fn refuse_json(&self, verb: &str) -> Result<(), Problem> {
        match self.printer.is_json() {
            true => Err(Problem::usage(format!("`foreman {verb}` writes no JSON")).hinted("leave --json out")),
            false => Ok(()),
        }
    }
}
