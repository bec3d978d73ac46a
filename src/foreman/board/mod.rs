//! What stands on a line, read from the disk alone: the same picture with the daemon up or down.
//!
//! Enters: a [`Layout`]. Leaves: a [`Board`] and, for one part, a [`Dossier`]; both are what `--json` prints. Never
//! writes and never decides anything: the reason a part waits is told from the same files the daemon acts on.

mod dossier;
mod waiting;

use std::collections::BTreeMap;

use serde::Serialize;

pub use dossier::{Dossier, LogFile, logs_of};
pub use waiting::{Card, Reason, Waiting, turns, waiting_parts};

use super::exit::Problem;
use crate::line::heartbeat::State;
use crate::line::pause::{self, Pause};
use crate::line::{Attempt, Heartbeat, Layout, LineLock, PartEntry, PartName, Station, heartbeat, record, shelf};
use crate::node::Node;

/// The supervisor, as far as the disk tells.
#[derive(Clone, Debug, Serialize)]
pub struct Supervisor {
    /// True when somebody holds the line's lock.
    pub running: bool,
    pub state: State,
    pub pid: Option<u32>,
    pub host: Option<String>,
    pub since: Option<String>,
    /// Seconds since the last beat; null when that cannot be told from this machine.
    pub beat_age_s: Option<f64>,
    /// The heartbeat says more than is true, or is silent for too long.
    pub stale_heartbeat: bool,
}

/// A part in assembly.
#[derive(Clone, Debug, Serialize)]
pub struct Running {
    pub part: String,
    pub base_model: Option<String>,
    /// False when no supervisor watches it: the next start takes it back.
    pub supervised: bool,
    pub stage: Option<String>,
    /// From 1.
    pub stage_number: Option<usize>,
    pub stage_count: Option<usize>,
    /// Of the stage, 0 to 100.
    pub percent: Option<f64>,
    pub eta_s: Option<f64>,
    pub detail: Option<String>,
    pub tokens_per_s: Option<f64>,
    pub rss_bytes: Option<u64>,
    pub attempt: Option<u32>,
    /// Attempts it may have before it goes to rework.
    pub attempts_allowed: u32,
    pub heartbeat_age_s: Option<f64>,
    pub elapsed_s: Option<f64>,
    pub worker_pid: Option<u32>,
}

/// A part in rework.
#[derive(Clone, Debug, Serialize)]
pub struct Failed {
    pub part: String,
    pub class: Option<String>,
    pub error: Option<String>,
    pub hint: Option<String>,
    pub stage: Option<String>,
    pub failed_at: Option<String>,
}

/// A part in finished.
#[derive(Clone, Debug, Serialize)]
pub struct Shipped {
    pub part: String,
    pub completed_at: Option<String>,
    pub artifact: Option<String>,
    #[serde(rename = "modelHash")]
    pub model_hash: Option<String>,
    pub elapsed_s: Option<f64>,
    /// When the part came to stand here; RFC 3339.
    pub arrived_at: String,
}

/// The line at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct Board {
    pub root: String,
    pub node: String,
    pub supervisor: Supervisor,
    /// Set while nothing is started.
    pub paused: Option<Pause>,
    /// Parts per station.
    pub stations: BTreeMap<String, usize>,
    /// Files that fit no rule and were put aside.
    pub quarantined: usize,
    pub running: Vec<Running>,
    pub waiting: Vec<Waiting>,
    pub rework: Vec<Failed>,
    /// Newest first.
    pub finished: Vec<Shipped>,
    pub deferred: Vec<String>,
    /// Files in intake that will never be taken for parts, and why.
    pub ignored: Vec<String>,
}

impl Board {
    /// Reads everything; at most `newest` finished parts.
    pub fn read(layout: &Layout, node: &Node, newest: usize) -> Result<Board, Problem> {
        let beat = heartbeat::read(layout).unwrap_or(None);
        let supervisor = supervisor(layout, beat.as_ref());
        let mut stations = BTreeMap::new();
        let mut shelves = BTreeMap::new();
        for station in Station::ALL {
            let shelf = shelf::read(layout, station)?;
            stations.insert(station.to_string(), shelf.parts.len());
            shelves.insert(station, shelf);
        }
        let parts = |station: Station| shelves[&station].parts.as_slice();
        let running: Vec<Running> = parts(Station::Assembly)
            .iter()
            .map(|part| running(layout, node, part, &supervisor, beat.as_ref()))
            .collect();
        let building = running.iter().find(|part| part.supervised).map(|part| part.part.clone());
        let mut finished: Vec<&PartEntry> = parts(Station::Finished).iter().collect();
        finished.sort_by_key(|part| std::cmp::Reverse(part.arrived));
        let mut ignored: Vec<String> = shelves[&Station::Intake].ignored.iter().map(ToString::to_string).collect();
        ignored.extend(shelves[&Station::Intake].loose.iter().map(|name| format!("{name:?} belongs to no part here")));
        Ok(Board {
            root: layout.root().display().to_string(),
            node: node.name.clone(),
            waiting: waiting_parts(layout, parts(Station::Intake), &supervisor, building.as_deref())?,
            supervisor,
            paused: pause::read(layout),
            stations,
            quarantined: std::fs::read_dir(layout.quarantine()).map_or(0, |dir| dir.count()),
            running,
            rework: parts(Station::Rework).iter().map(|part| failed(layout, part)).collect(),
            finished: finished.into_iter().take(newest).map(|part| shipped(layout, part)).collect(),
            deferred: parts(Station::Deferred).iter().map(|part| part.name.file_name()).collect(),
            ignored,
        })
    }
}

/// Who works this line.
pub fn supervisor(layout: &Layout, beat: Option<&Heartbeat>) -> Supervisor {
    let running = LineLock::is_held(layout);
    let holder = if running { crate::line::lock::holder(layout) } else { None };
    let verdict = beat.map(Heartbeat::judge);
    let state = match &verdict {
        Some(verdict) if running => verdict.state,
        None if running => State::Starting,
        _ => State::Offline,
    };
    let claims_life = beat.is_some_and(|beat| beat.state != State::Offline);
    Supervisor {
        running,
        state,
        pid: holder.as_ref().map(|holder| holder.process.pid),
        host: holder.as_ref().map(|holder| holder.host.clone()),
        since: holder.map(|holder| holder.since),
        beat_age_s: verdict.as_ref().filter(|_| running).and_then(|verdict| verdict.age_s),
        stale_heartbeat: if running { verdict.is_some_and(|verdict| verdict.stale) } else { claims_life },
    }
}

fn running(layout: &Layout, node: &Node, part: &PartEntry, boss: &Supervisor, beat: Option<&Heartbeat>) -> Running {
    let file = part.name.file_name();
    let told = beat.filter(|beat| boss.running && beat.current_part.as_deref() == Some(file.as_str()));
    let attempt = Attempt::read(&layout.work(&part.name)).ok().flatten();
    let since = attempt.as_ref().and_then(|attempt| crate::line::stamp::parse(&attempt.since));
    Running {
        base_model: Card::read(&part.path).ok().map(|card| card.base_model),
        supervised: boss.running,
        stage: told.and_then(|beat| beat.stage.clone()),
        stage_number: told.and_then(|beat| beat.stage_index).map(|index| index + 1),
        stage_count: told.and_then(|beat| beat.stage_count),
        percent: told.and_then(|beat| beat.percent),
        eta_s: told.and_then(|beat| beat.eta_s),
        detail: told.and_then(|beat| beat.detail.clone()),
        tokens_per_s: told.and_then(|beat| beat.tokens_per_s),
        rss_bytes: told.and_then(|beat| beat.rss_bytes),
        attempt: told.and_then(|beat| beat.attempt).or(attempt.map(|attempt| attempt.attempt)),
        attempts_allowed: node.forge.max_retries + 1,
        heartbeat_age_s: boss.beat_age_s,
        elapsed_s: since.map(super::wording::seconds_since),
        worker_pid: told.and_then(|beat| beat.worker_pid),
        part: file,
    }
}

fn failed(layout: &Layout, part: &PartEntry) -> Failed {
    let error = record::error(layout, part.station, &part.name).ok().flatten();
    let text = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
    Failed {
        part: part.name.file_name(),
        class: error.as_ref().and_then(|error| text(&error.class)),
        error: error.as_ref().and_then(|error| text(&error.error)),
        hint: error.as_ref().and_then(|error| error.hint.clone()),
        stage: error.as_ref().and_then(|error| error.stage.clone()),
        failed_at: error.as_ref().and_then(|error| text(&error.failed_at)),
    }
}

fn shipped(layout: &Layout, part: &PartEntry) -> Shipped {
    let result = record::result(layout, part.station, &part.name).ok().flatten();
    let text = |value: String| Some(value).filter(|value| !value.is_empty());
    Shipped {
        part: part.name.file_name(),
        completed_at: result.as_ref().and_then(|result| text(result.completed_at.clone())),
        artifact: result.as_ref().and_then(|result| text(result.forged_dir.display().to_string())),
        model_hash: result.as_ref().and_then(|result| text(result.model_hash.clone())),
        elapsed_s: result.as_ref().map(|result| result.elapsed_s),
        arrived_at: crate::line::stamp::seconds(part.arrived),
    }
}

/// The one part of this name; the most telling station first when several hold one.
pub fn one_part(layout: &Layout, name: &str) -> Result<PartEntry, Problem> {
    const TELLING: [Station; 5] =
        [Station::Assembly, Station::Intake, Station::Rework, Station::Finished, Station::Deferred];
    let found = shelf::find(layout, bare(name))?;
    let first = TELLING.iter().find_map(|station| found.iter().find(|part| part.station == *station));
    first.cloned().ok_or_else(|| no_such_part(layout, name))
}

/// "Not found", with the nearest name that is there.
pub fn no_such_part(layout: &Layout, name: &str) -> Problem {
    let problem = Problem::not_found(format!("no part {name:?} on this line"));
    let names: Vec<String> = Station::ALL
        .iter()
        .filter_map(|station| shelf::list(layout, *station).ok())
        .flatten()
        .map(|part| part.name.base().to_owned())
        .collect();
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    match crate::node::nearest(bare(name), &known) {
        Some(near) => problem.hinted(format!("did you mean {near:?}?")),
        None if known.is_empty() => {
            problem.hinted("the line is empty; `foreman enqueue FILE` puts a recipe into intake")
        }
        None => problem.hinted("`foreman list` shows what waits, `foreman list finished` what is done"),
    }
}

/// Operators paste paths: only the file name counts.
fn bare(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Files that belong to a part, as full paths.
pub fn sidecar_paths(layout: &Layout, part: &PartEntry) -> Vec<std::path::PathBuf> {
    part.sidecars.iter().map(|name| layout.station(part.station).join(name)).collect()
}

/// The work folder of a part when it is there.
pub fn work_folder(layout: &Layout, name: &PartName) -> Option<std::path::PathBuf> {
    Some(layout.work(name)).filter(|work| work.is_dir())
}
