//! Everything the disk knows about one part.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Board, Card, Running, Waiting, sidecar_paths, work_folder};
use crate::foreman::exit::Problem;
use crate::line::{Attempt, ErrorRecord, Layout, PartEntry, ResultRecord, Station, record, stamp};
use crate::node::Node;

/// One part, wherever it stands.
#[derive(Clone, Debug, Serialize)]
pub struct Dossier {
    pub part: String,
    pub station: Station,
    pub path: PathBuf,
    pub arrived_at: String,
    pub retries: u32,
    pub attempts: Option<u32>,
    /// What the recipe says; null when it cannot be read, with the reason in `recipe_problem`.
    pub recipe: Option<Card>,
    pub recipe_problem: Option<String>,
    pub running: Option<Running>,
    pub waiting: Option<Waiting>,
    pub error: Option<ErrorRecord>,
    pub result: Option<ResultRecord>,
    pub work: Option<PathBuf>,
    pub sidecars: Vec<PathBuf>,
    pub logs: Vec<LogFile>,
}

/// A worker's log of one attempt.
#[derive(Clone, Debug, Serialize)]
pub struct LogFile {
    /// Null for the current or last attempt.
    pub attempt: Option<u32>,
    pub path: PathBuf,
}

impl Dossier {
    pub fn read(layout: &Layout, node: &Node, part: &PartEntry) -> Result<Dossier, Problem> {
        let file = part.name.file_name();
        let board = Board::read(layout, node, 0)?;
        let (recipe, recipe_problem) = match Card::read(&part.path) {
            Ok(card) => (Some(card), None),
            Err(problem) => (None, Some(problem)),
        };
        let work = work_folder(layout, &part.name);
        let attempt = work.as_deref().and_then(|work| Attempt::read(work).ok().flatten());
        Ok(Dossier {
            station: part.station,
            path: part.path.clone(),
            arrived_at: stamp::seconds(part.arrived),
            retries: part.retries,
            attempts: attempt.map(|attempt| attempt.attempt),
            recipe,
            recipe_problem,
            running: board.running.into_iter().find(|running| running.part == file),
            waiting: board.waiting.into_iter().find(|waiting| waiting.part == file),
            error: record::error(layout, part.station, &part.name)?,
            result: record::result(layout, part.station, &part.name)?,
            logs: work.as_deref().map(logs_of).unwrap_or_default(),
            work,
            sidecars: sidecar_paths(layout, part),
            part: file,
        })
    }
}

/// `worker.log` and the logs of earlier attempts, `worker.<n>.log`, oldest first.
pub fn logs_of(work: &Path) -> Vec<LogFile> {
    let mut logs: Vec<LogFile> = std::fs::read_dir(work)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let attempt = match name.strip_prefix("worker.")? {
                "log" => None,
                rest => Some(rest.strip_suffix(".log")?.parse().ok()?),
            };
            Some(LogFile { attempt, path: entry.path() })
        })
        .collect();
    logs.sort_by_key(|log| log.attempt.unwrap_or(u32::MAX));
    logs
}
