//! The waiting parts: what stands in intake, what may be picked up, and in which order.
//!
//! Order: priority (higher first), then arrival, then name, unless an operator said otherwise ([`crate::line::order`]). A
//! file is read once per change of it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, json};

use crate::fault::Fault;
use crate::line::order::Turn;
use crate::line::shelf::{self, PartEntry, Shelf};
use crate::line::{ErrorRecord, Layout, LineError, Needs, Station, record, stamp};
use crate::recipe::{self, Finding, RecipeFile};

/// A file that does not read as a recipe is given this long to be written to its end.
const SETTLE: TimeDelta = TimeDelta::milliseconds(1500);

/// A part that waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub entry: PartEntry,
    pub admission: Admission,
    arrived: DateTime<Utc>,
    turn: Turn,
    not_before: Option<DateTime<Utc>>,
    /// What was lacking when it was tried last.
    needs: Option<Needs>,
    /// Since when that is so.
    since: Option<DateTime<Utc>>,
}

/// How the next part is chosen.
pub struct Picking<'a> {
    /// No other base name.
    pub only: Option<&'a str>,
    /// Whether something that takes this much fits now.
    pub fits: &'a dyn Fn(&Needs) -> bool,
    pub patience: TimeDelta,
    /// No wait is longer: a clock that was set back does not hold a part for years.
    pub longest: TimeDelta,
}

/// What admission says of a recipe.
#[derive(Clone, Debug)]
pub enum Admission {
    Good {
        priority: i64,
        about: About,
    },
    /// Not a recipe, or one that cannot be built: it goes to rework with this.
    Refused(Box<ErrorRecord>),
}

/// What events say of a part that starts.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub name: String,
    pub source: String,
    pub stages: Vec<String>,
}

/// A file in intake that is not a recipe: told once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ignored {
    pub file: String,
    pub reason: String,
}

/// One state of one file: name, device and inode, change time.
type Version = (String, (u64, u64), DateTime<Utc>);

/// The queue as of the last scan.
#[derive(Default)]
pub struct Intake {
    waiting: Vec<Waiting>,
    /// What each file said when it was last read, by file, inode and change time.
    known: HashMap<Version, Admission>,
    told: HashSet<Ignored>,
    /// Parts that cannot be claimed yet, by base name.
    held: HashMap<String, DateTime<Utc>>,
    /// Earliest time at which something that is held back may be looked at again.
    again: Option<DateTime<Utc>>,
}

impl Intake {
    /// Looks at everything in intake; returns what is ignored and was not told yet.
    pub fn scan(&mut self, layout: &Layout, now: DateTime<Utc>) -> Result<Vec<Ignored>, LineError> {
        let shelf = shelf::read(layout, Station::Intake)?;
        let mut known = std::mem::take(&mut self.known);
        self.waiting.clear();
        self.again = None;
        self.held.retain(|_, until| *until > now);
        for entry in &shelf.parts {
            let key = (entry.name.file_name(), entry.inode, entry.arrived);
            let admission = known.remove(&key).unwrap_or_else(|| admit(entry));
            if matches!(admission, Admission::Refused(_)) && now - entry.arrived < SETTLE {
                self.look_again(entry.arrived + SETTLE);
                continue;
            }
            self.known.insert(key, admission.clone());
            let mut waiting = waiting(layout, entry, admission);
            waiting.not_before = waiting.not_before.max(self.held.get(entry.name.base()).copied());
            self.waiting.push(waiting);
        }
        self.waiting.sort_by(|a, b| a.turn.cmp(&b.turn));
        Ok(self.ignored(layout, shelf, now))
    }

    /// The next part that may be picked up now; it leaves the queue. One that is known not to fit lets others pass until
    /// its patience ends: then the line waits for it.
    pub fn take(&mut self, now: DateTime<Utc>, how: &Picking<'_>) -> Option<Waiting> {
        let mut at = None;
        for (place, waiting) in self.waiting.iter().enumerate() {
            let is_ours = how.only.is_none_or(|base| waiting.entry.name.base() == base);
            if !is_ours {
                continue;
            }
            let is_lacking = waiting.needs.is_some_and(|needs| !(how.fits)(&needs));
            if is_lacking && waiting.since.is_some_and(|since| now - since > how.patience) {
                break;
            }
            let is_due = |t: DateTime<Utc>| t <= now || t - now > how.longest;
            if !is_lacking && waiting.not_before.is_none_or(is_due) {
                at = Some(place);
                break;
            }
        }
        Some(self.waiting.remove(at?))
    }

    /// Does not offer this part again before a time.
    pub fn hold(&mut self, waiting: &Waiting, until: DateTime<Utc>) {
        self.held.insert(waiting.entry.name.base().to_owned(), until);
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when nothing waits, not even for its time or to be written to its end.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.again.is_none()
    }

    /// When the part that waits longest arrived.
    pub fn oldest(&self) -> Option<DateTime<Utc>> {
        self.waiting.iter().map(|w| w.arrived).min()
    }

    pub fn holds(&self, base: &str) -> bool {
        self.waiting.iter().any(|w| w.entry.name.base() == base)
    }

    /// How long until something that is held back is due.
    pub fn due_in(&self, now: DateTime<Utc>) -> Option<Duration> {
        let due = self.waiting.iter().filter_map(|w| w.not_before).chain(self.again).min()?;
        Some((due - now).to_std().unwrap_or_default())
    }

    /// True when a file was still being written at the last scan and may be whole now.
    pub fn is_unsettled(&self) -> bool {
        self.again.is_some()
    }

    fn look_again(&mut self, at: DateTime<Utc>) {
        self.again = Some(self.again.map_or(at, |other| other.min(at)));
    }

    /// Files that are left alone. A young one may be on its way to become a part: it is told a moment later.
    fn ignored(&mut self, layout: &Layout, shelf: Shelf, now: DateTime<Utc>) -> Vec<Ignored> {
        let temporary =
            shelf.temporary.into_iter().map(|file| (file, "a temporary file: somebody is still writing it"));
        let loose = shelf.loose.into_iter().map(|file| (file, "not a part name, and no part of this name waits here"));
        let refused = shelf.ignored.into_iter().map(|e| (e.name, e.reason));
        let mut news = Vec::new();
        for (file, reason) in temporary.chain(loose).chain(refused) {
            let ignored = Ignored { file, reason: reason.to_owned() };
            if self.told.contains(&ignored) {
                continue;
            }
            let path = layout.station(Station::Intake).join(&ignored.file);
            let written = std::fs::symlink_metadata(&path).and_then(|m| m.modified()).map(DateTime::<Utc>::from);
            match written {
                Ok(at) if now - at < SETTLE && at <= now => self.look_again(at + SETTLE),
                _ => {
                    self.told.insert(ignored.clone());
                    news.push(ignored);
                }
            }
        }
        news
    }
}

impl Waiting {
    /// False when the file went away or was replaced since it was read.
    pub fn is_current(&self) -> bool {
        shelf::entry(&self.entry.path, self.entry.station).is_some_and(|now| {
            (now.inode, now.arrived, now.size) == (self.entry.inode, self.entry.arrived, self.entry.size)
        })
    }
}

fn waiting(layout: &Layout, entry: &PartEntry, admission: Admission) -> Waiting {
    let retry = record::retry(layout, &entry.name).ok().flatten().unwrap_or_default();
    let arrived = retry.arrived_at.as_deref().and_then(stamp::parse).unwrap_or(entry.arrived);
    let priority = match &admission {
        Admission::Good { priority, .. } => *priority,
        // Out of the way first: it costs nothing.
        Admission::Refused(_) => i64::MAX,
    };
    Waiting {
        arrived,
        turn: Turn::of(layout, entry, priority, arrived),
        not_before: retry.not_before.as_deref().and_then(stamp::parse),
        needs: retry.needs,
        since: retry.waiting_since.as_deref().and_then(stamp::parse),
        entry: entry.clone(),
        admission,
    }
}

/// Reads a recipe and checks what needs no hardware and no model.
fn admit(entry: &PartEntry) -> Admission {
    let file = match RecipeFile::read(&entry.path) {
        Ok(file) => file,
        Err(error) => {
            let mut more = Map::new();
            if let Some(at) = error.position() {
                more.insert("line".into(), json!(at.line));
                more.insert("column".into(), json!(at.column));
            }
            if let Some(key) = error.key() {
                more.insert("key".into(), json!(key));
            }
            return Admission::Refused(Box::new(ErrorRecord { more, ..refusal(&Fault::from(error)) }));
        }
    };
    let recipe = file.recipe();
    let findings = recipe::check(recipe);
    match Finding::refusal(&findings) {
        Some(fault) => {
            let mut error = refusal(&fault);
            error.more.insert("findings".into(), json!(findings));
            if let Some(finding) = findings.iter().find(|f| f.is_error()) {
                error.more.insert("key".into(), json!(finding.key));
                if let Some(at) = file.locate(&finding.key) {
                    error.more.insert("line".into(), json!(at.line));
                    error.more.insert("column".into(), json!(at.column));
                }
            }
            Admission::Refused(Box::new(error))
        }
        None => Admission::Good {
            priority: recipe.priority(),
            about: About {
                name: recipe.name.clone(),
                source: recipe.source.base_model.clone(),
                stages: recipe.stages.iter().map(|s| s.type_name().to_owned()).collect(),
            },
        },
    }
}

fn refusal(fault: &Fault) -> ErrorRecord {
    ErrorRecord {
        error: fault.one_line(),
        class: fault.class.as_str().into(),
        hint: fault.hint.clone(),
        stage: Some("admission".into()),
        traceback: fault.causes().join("\n"),
        ..ErrorRecord::default()
    }
}
