//! Where everything lies under the root of a line.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::LineError;

/// A directory in which parts stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Station {
    /// Waiting to be built.
    Intake,
    /// Being built.
    Assembly,
    /// Built, measured and inspected.
    Finished,
    /// Failed; needs a person.
    Rework,
    /// Parked by a person; never picked up.
    Deferred,
}

impl Station {
    pub const ALL: [Station; 5] =
        [Station::Intake, Station::Assembly, Station::Finished, Station::Rework, Station::Deferred];

    pub fn as_str(self) -> &'static str {
        match self {
            Station::Intake => "intake",
            Station::Assembly => "assembly",
            Station::Finished => "finished",
            Station::Rework => "rework",
            Station::Deferred => "deferred",
        }
    }
}

impl fmt::Display for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Station {
    type Err = LineError;
    fn from_str(text: &str) -> Result<Self, LineError> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| LineError::Refused {
            what: format!("unknown station {text:?}"),
            reason: format!("the stations are {}", Self::ALL.map(Station::as_str).join(", ")),
        })
    }
}

/// The root of a line and every path the protocol knows below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Names the paths under `root`; touches nothing.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Layout { root: root.into() }
    }

    /// Makes the directories of a line under `root` where they are missing. Idempotent.
    pub fn init(root: impl Into<PathBuf>) -> Result<Self, LineError> {
        let layout = Self::at(root);
        for dir in layout.directories() {
            fs::create_dir_all(&dir).map_err(LineError::io("create directory", &dir))?;
        }
        Ok(layout)
    }

    /// A line that exists; an error that says how to make one otherwise.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LineError> {
        let layout = Self::at(root);
        if !layout.station(Station::Intake).is_dir() {
            return Err(LineError::Refused {
                what: format!("{} is not a line", layout.root.display()),
                reason: "it has no line/intake folder; `foreman init --root DIR` makes one".into(),
            });
        }
        Ok(layout)
    }

    /// Every directory of a line.
    pub fn directories(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = Station::ALL.iter().map(|s| self.station(*s)).collect();
        dirs.extend([self.quarantine(), self.control(), self.scratch(), self.work_root(), self.calibration()]);
        dirs
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
    /// `factory_node.toml`: what this node is.
    pub fn node_file(&self) -> PathBuf {
        self.root.join("factory_node.toml")
    }
    pub fn line(&self) -> PathBuf {
        self.root.join("line")
    }
    pub fn station(&self, station: Station) -> PathBuf {
        self.line().join(station.as_str())
    }
    /// Files that fit no row of the recovery table, each with a reason file.
    pub fn quarantine(&self) -> PathBuf {
        self.line().join("quarantine")
    }
    /// Requests of operators to a running supervisor.
    pub fn control(&self) -> PathBuf {
        self.line().join(".control")
    }
    /// Where files are written before they are published by rename; the same filesystem as the stations.
    pub fn scratch(&self) -> PathBuf {
        self.line().join(".tmp")
    }
    pub fn heartbeat(&self) -> PathBuf {
        self.line().join(".heartbeat.json")
    }
    pub fn worker_pid(&self) -> PathBuf {
        self.line().join(".worker.pid")
    }
    /// The lock that serialises moves of several files; held for milliseconds.
    pub fn moves_lock(&self) -> PathBuf {
        self.line().join(".moves.lock")
    }
    pub fn throughput(&self) -> PathBuf {
        self.line().join("throughput.jsonl")
    }
    /// What the line tells a collector of metrics.
    pub fn metrics(&self) -> PathBuf {
        self.line().join("metrics.prom")
    }
    pub fn events(&self) -> PathBuf {
        self.line().join(".events.jsonl")
    }
    pub fn calibration(&self) -> PathBuf {
        self.root.join("calibration")
    }
    pub fn work_root(&self) -> PathBuf {
        self.root.join("work")
    }
    /// The work folder of a part, shared by all attempts: the retry counter is not in its name.
    pub fn work(&self, part: &super::PartName) -> PathBuf {
        self.work_root().join(part.base())
    }
    /// While this file is there nothing is started.
    pub fn pause_request(&self) -> PathBuf {
        self.control().join("pause.json")
    }
    /// The request file that asks for `base` to be cancelled.
    pub fn cancel_request(&self, base: &str) -> PathBuf {
        self.control().join(format!("cancel-{base}.json"))
    }
}
