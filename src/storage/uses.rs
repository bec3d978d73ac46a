//! What is in use, and by whom: the one answer that eviction, the survey and people rely on.
//!
//! In use are: work folders of parts in intake, assembly and deferred; of parts in rework and finished for as long as
//! the node keeps them; every work folder whose claim is held, whatever stands where; the artifact that a finished
//! part's result names; the model and the texts that a part in any station names; and what is pinned. A recipe or
//! sidecar that cannot be read hides what it names: nothing it could own is evicted, and the reader is told.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::{StorageError, pins};
use crate::line::{ClaimLock, ErrorRecord, Layout, PartEntry, PartName, ResultRecord, Station, record, shelf, stamp};
use crate::node::{Node, Resolver};
use crate::recipe::json::Node as Json;
use crate::recipe::{RecipeFile, json};

/// Why something is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The work folder of a part that stands on the line.
    Part,
    /// A living worker holds its claim.
    Claim,
    /// The artifact of a finished part.
    Artifact,
    /// The model a part starts from.
    Model,
    /// A text a part reads.
    Text,
    Pin,
}

/// One thing in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Use {
    pub path: PathBuf,
    pub reason: Reason,
    /// In words: "x.alloy.json waits in intake".
    pub because: String,
}

/// A file whose references are unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unknown {
    pub file: PathBuf,
    pub problem: String,
    /// What it could own: nothing at or below is evicted.
    pub owns: Vec<PathBuf>,
    /// It could name any model.
    pub any_model: bool,
}

/// A finished part that is no longer kept whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    pub part: PartName,
    pub artifact: PathBuf,
}

/// Everything in use on a line.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Uses {
    pub uses: Vec<Use>,
    pub unknown: Vec<Unknown>,
    /// Finished parts past their time, by base name.
    #[serde(skip)]
    pub retired: BTreeMap<String, Retired>,
}

impl Uses {
    /// Reads the line. Nothing is changed; paths are absolute and without links.
    pub fn gather(layout: &Layout, node: &Node, now: DateTime<Utc>) -> Result<Uses, StorageError> {
        let root = layout.root().canonicalize().map_err(StorageError::io("resolve", layout.root()))?;
        let layout = Layout::at(root);
        let mut gathering = Gathering { layout: &layout, node, now, uses: Uses::default() };
        let mut found = BTreeMap::new();
        for station in Station::ALL {
            for part in shelf::list(&layout, station)? {
                let artifact = gathering.part(&part);
                found.insert(part.name.base().to_owned(), artifact);
            }
        }
        gathering.claims()?;
        gathering.pins(&found)?;
        Ok(gathering.uses)
    }

    /// What is at, below or above this path and in use.
    pub fn of(&self, path: &Path) -> Vec<&Use> {
        self.uses.iter().filter(|used| used.path.starts_with(path) || path.starts_with(&used.path)).collect()
    }

    /// Files whose references are unknown and that could own this path.
    pub fn doubts(&self, path: &Path) -> Vec<&Unknown> {
        let owns = |unknown: &&Unknown| unknown.owns.iter().any(|own| own.starts_with(path) || path.starts_with(own));
        self.unknown.iter().filter(owns).collect()
    }

    /// Files whose references are unknown and that could name any model.
    pub fn model_doubts(&self) -> impl Iterator<Item = &Unknown> {
        self.unknown.iter().filter(|unknown| unknown.any_model)
    }
}

struct Gathering<'a> {
    layout: &'a Layout,
    node: &'a Node,
    now: DateTime<Utc>,
    uses: Uses,
}

impl Gathering<'_> {
    fn add(&mut self, path: &Path, reason: Reason, because: impl Into<String>) {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.uses.uses.push(Use { path, reason, because: because.into() });
    }

    fn doubt(&mut self, file: &Path, problem: String, owns: Vec<PathBuf>, any_model: bool) {
        self.uses.unknown.push(Unknown { file: file.to_owned(), problem, owns, any_model });
    }

    /// What one part holds on to; returns its artifact when it is finished.
    fn part(&mut self, part: &PartEntry) -> Option<PathBuf> {
        let work = self.layout.work(&part.name);
        self.inputs(part, &work);
        let (name, station) = (part.name.file_name(), part.station);
        match station {
            Station::Intake | Station::Assembly | Station::Deferred => {
                self.add(&work, Reason::Part, format!("{name} stands in {station}"));
                None
            }
            Station::Rework => {
                self.rework(part, &work);
                None
            }
            Station::Finished => self.finished(part, &work),
        }
    }

    fn rework(&mut self, part: &PartEntry, work: &Path) {
        let error: Option<ErrorRecord> = match record::error(self.layout, Station::Rework, &part.name) {
            Ok(error) => error,
            Err(problem) => {
                let file = record::find(self.layout, Station::Rework, &part.name, "error");
                return self.doubt(&file.unwrap_or_default(), problem.to_string(), vec![work.to_owned()], false);
            }
        };
        let since = error.and_then(|error| stamp::parse(&error.failed_at)).unwrap_or(part.arrived);
        let days = self.node.storage.rework_keep_days;
        if let Some(kept) = self.kept(since, days, "storage.rework_keep_days") {
            self.add(work, Reason::Part, format!("{} failed {kept}", part.name));
        }
    }

    fn finished(&mut self, part: &PartEntry, work: &Path) -> Option<PathBuf> {
        let result: ResultRecord = match record::result(self.layout, Station::Finished, &part.name) {
            Ok(Some(result)) => result,
            Ok(None) => {
                self.doubt(&part.path, "it has no result sidecar".into(), vec![work.to_owned()], false);
                return None;
            }
            Err(problem) => {
                let file = record::find(self.layout, Station::Finished, &part.name, "result");
                self.doubt(&file.unwrap_or_default(), problem.to_string(), vec![work.to_owned()], false);
                return None;
            }
        };
        let since = stamp::parse(&result.completed_at).unwrap_or(part.arrived);
        let artifact = match result.forged_dir.as_os_str().is_empty() {
            true => work.join("artifact"),
            false => work.join(&result.forged_dir),
        };
        self.add(&artifact, Reason::Artifact, format!("the result of {} names it", part.name));
        let days = self.node.storage.finished_keep_days;
        match self.kept(since, days, "storage.finished_keep_days") {
            Some(kept) => self.add(work, Reason::Part, format!("{} was finished {kept}", part.name)),
            None => {
                let retired = Retired { part: part.name.clone(), artifact: artifact.clone() };
                self.uses.retired.insert(part.name.base().to_owned(), retired);
            }
        }
        Some(artifact)
    }

    /// "3 days ago, kept for 7 (key)" while it is kept. A time in the future is a wrong clock: kept.
    fn kept(&self, since: DateTime<Utc>, days: Option<u64>, key: &str) -> Option<String> {
        let age = self.now - since;
        let shown = age.num_days().max(0);
        match days {
            None => Some(format!("{shown} days ago, kept for ever ({key})")),
            Some(days) if age < TimeDelta::days(days as i64) => {
                Some(format!("{shown} days ago, kept for {days} ({key})"))
            }
            Some(_) => None,
        }
    }

    /// The model and the texts that a recipe names.
    fn inputs(&mut self, part: &PartEntry, work: &Path) {
        let file = match RecipeFile::read(&part.path) {
            Ok(file) => file,
            // It moved on while we read: where it stands now, it is read again or was read already.
            Err(_) if !part.path.exists() => return self.add(work, Reason::Part, format!("{} is moving", part.name)),
            Err(problem) => return self.doubt(&part.path, problem.to_string(), vec![work.to_owned()], true),
        };
        let resolver = Resolver::new(self.node, self.layout.root()).for_recipe(&part.path);
        let (name, source) = (part.name.file_name(), &file.recipe().source);
        if let Ok(found) = resolver.model(&source.base_model, source.revision.as_deref()) {
            self.add(&found.path, Reason::Model, format!("{name} in {} starts from it", part.station));
        }
        let mut texts = Vec::new();
        if let Some(stages) = file.tree().get("stages") {
            collect_texts(stages, &mut texts);
        }
        for text in texts {
            if let Ok(found) = resolver.text(text)
                && found.path.is_file()
            {
                self.add(&found.path, Reason::Text, format!("{name} in {} reads it", part.station));
            }
        }
    }

    fn claims(&mut self) -> Result<(), StorageError> {
        let work = self.layout.work_root();
        let entries = match fs::read_dir(&work) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StorageError::io("list", &work)(error)),
        };
        for entry in entries {
            let path = entry.map_err(StorageError::io("list", &work))?.path();
            let name = path.file_name().and_then(|name| PartName::new(name.to_str()?).ok());
            let Some(name) = name.filter(|_| path.is_dir()) else { continue };
            match ClaimLock::is_held(self.layout, &name) {
                Ok(false) => {}
                Ok(true) => self.add(&path, Reason::Claim, "a living worker holds its claim"),
                Err(problem) => self.doubt(&path, problem.to_string(), vec![path.clone()], false),
            }
        }
        Ok(())
    }

    fn pins(&mut self, parts: &BTreeMap<String, Option<PathBuf>>) -> Result<(), StorageError> {
        for (file, pin) in pins::read(self.layout)? {
            let pin = match pin {
                Ok(pin) if !pin.subject.trim().is_empty() => pin,
                Ok(_) => {
                    self.doubt(&file, "it names nothing".into(), vec![self.layout.root().to_owned()], true);
                    continue;
                }
                Err(problem) => {
                    self.doubt(&file, problem.to_string(), vec![self.layout.root().to_owned()], true);
                    continue;
                }
            };
            let because = match &pin.reason {
                Some(reason) => format!("pinned since {}: {reason}", pin.at),
                None => format!("pinned since {}", pin.at),
            };
            let subject = pin.subject.as_str();
            if Path::new(subject).is_absolute() {
                self.add(Path::new(subject), Reason::Pin, &because);
            }
            if let Ok(name) = PartName::new(subject) {
                self.add(&self.layout.work(&name), Reason::Pin, &because);
                if let Some(Some(artifact)) = parts.get(subject) {
                    self.add(artifact, Reason::Pin, &because);
                }
            }
            if let Ok(found) = Resolver::new(self.node, self.layout.root()).model(subject, None) {
                self.add(&found.path, Reason::Pin, &because);
            }
        }
        Ok(())
    }
}

/// Every text value below a node: any of them may name a file.
fn collect_texts<'n>(node: &'n Json, out: &mut Vec<&'n str>) {
    match &node.kind {
        json::Kind::Text(text) => out.push(text),
        json::Kind::List(items) => items.iter().for_each(|item| collect_texts(item, out)),
        json::Kind::Object(members) => members.iter().for_each(|member| collect_texts(&member.value, out)),
        _ => {}
    }
}
