//! Making room on the hot disk: which work folders leave and in which order, and why the others stay.
//!
//! Order: what nobody needs, the longest unchanged first, until the disk is below the threshold again. A folder goes
//! to the first cold tier that takes it. Where no tier does, only what can be made again is deleted: weight files that
//! a stage of a finished part left on its way (they are listed in its checkpoints) and that are not its artifact.
//! Reports, logs, samples, and everything of a failed part are evidence and stay.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::archive::{self, Archive};
use super::copy::{self, Links, Steps};
use super::lock::{self, StorageLock};
use super::sources::{self, Cache, CachedModel};
use super::tier::{self, TierState};
use super::uses::{Reason, Uses};
use super::{StorageError, rest};
use crate::line::lock::MovesLock;
use crate::line::{Layout, PartName, shelf};
use crate::node::{ColdPurpose, ColdTier, Mounts, Node};
use crate::units::Bytes;

/// Nothing that changed within this time is moved: somebody may be at it.
pub const SETTLED: TimeDelta = TimeDelta::hours(24);

/// How room is made.
pub struct GcOptions<'a> {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Move everything nobody needs, whatever is free.
    pub force: bool,
    /// Per cent of the disk in use from which room is made.
    pub threshold_pct: f64,
    /// Room is made until at least this much is free.
    pub wanted_free: Bytes,
    pub now: DateTime<Utc>,
    pub steps: &'a dyn Steps,
}

/// What was done, or would be.
#[derive(Clone, Debug, Serialize)]
pub struct GcReport {
    pub dry_run: bool,
    pub root: PathBuf,
    pub before: Pressure,
    pub after: Pressure,
    pub threshold_pct: f64,
    /// Why no work folder was looked at for moving; `None` when room was to be made.
    pub skipped: Option<String>,
    pub freed_bytes: Bytes,
    pub evicted: Vec<Evicted>,
    pub kept: Vec<Kept>,
    /// Files whose references are unknown: what they could own is kept.
    pub unknown: Vec<super::uses::Unknown>,
    pub notes: Vec<String>,
}

impl GcReport {
    /// True when something that should have gone could not: the move failed, or no place took it.
    pub fn failed(&self) -> bool {
        self.evicted.iter().any(|evicted| evicted.problem.is_some())
    }
}

/// How full a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pressure {
    pub free_bytes: Bytes,
    pub total_bytes: Bytes,
    /// Of what unprivileged processes may use.
    pub used_pct: f64,
}

impl Pressure {
    pub fn of(path: &Path) -> Result<Pressure, StorageError> {
        let stat = rustix::fs::statvfs(path).map_err(|e| StorageError::io("ask for the space of", path)(e.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let (used, free) = (bytes(stat.f_blocks.saturating_sub(stat.f_bfree)), bytes(stat.f_bavail));
        Ok(Pressure { free_bytes: Bytes(free), total_bytes: Bytes(bytes(stat.f_blocks)), used_pct: pct(used, free) })
    }

    /// The same disk with this much more free.
    fn relieved(self, bytes: Bytes) -> Pressure {
        let usable = self.used_bytes() + self.free_bytes.0;
        let free = (self.free_bytes.0 + bytes.0).min(usable);
        Pressure { free_bytes: Bytes(free), used_pct: pct(usable - free, free), ..self }
    }

    fn used_bytes(self) -> u64 {
        let share = (self.used_pct / 100.0).clamp(0.0, 0.999_999);
        (self.free_bytes.0 as f64 * share / (1.0 - share)) as u64
    }
}

fn pct(used: u64, free: u64) -> f64 {
    100.0 * used as f64 / (used + free).max(1) as f64
}

/// One thing that left the hot disk, or a cache.
#[derive(Clone, Debug, Serialize)]
pub struct Evicted {
    pub path: PathBuf,
    pub bytes: Bytes,
    /// As in the audit log: `moved_to_cold:<target>` or `deleted`.
    pub action: String,
    /// Why it may go.
    pub because: String,
    /// Why it is still there after all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One thing that stays.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    pub path: PathBuf,
    pub bytes: Bytes,
    pub because: Vec<String>,
}

/// Makes room, or says how.
pub fn run(layout: &Layout, node: &Node, options: &GcOptions<'_>) -> Result<GcReport, StorageError> {
    let root = layout.root().canonicalize().map_err(StorageError::io("resolve", layout.root()))?;
    let layout = Layout::at(root);
    let _lock = if options.dry_run { None } else { Some(StorageLock::acquire(&layout)?) };
    let mounts = Mounts::read().map_err(StorageError::io("read", Path::new("/proc/self/mountinfo")))?;
    let before = Pressure::of(layout.root())?;
    let report = GcReport {
        dry_run: options.dry_run,
        root: layout.root().to_owned(),
        before,
        after: before,
        threshold_pct: options.threshold_pct,
        skipped: None,
        freed_bytes: Bytes(0),
        evicted: Vec::new(),
        kept: Vec::new(),
        unknown: Vec::new(),
        notes: Vec::new(),
    };
    let archive = Archive { layout: &layout, host: &node.name, steps: options.steps, now: options.now };
    let mut gc = Gc { layout: &layout, node, options, mounts, archive, report };
    gc.sweep();
    let uses = Uses::gather(&layout, node, options.now)?;
    gc.report.unknown = uses.unknown.clone();
    gc.work_folders(&uses)?;
    gc.sources(&uses);
    if !options.dry_run {
        gc.report.after = Pressure::of(layout.root())?;
    }
    Ok(gc.report)
}

struct Gc<'a> {
    layout: &'a Layout,
    node: &'a Node,
    options: &'a GcOptions<'a>,
    mounts: Mounts,
    archive: Archive<'a>,
    report: GcReport,
}

/// A work folder as it lies there.
struct Folder {
    path: PathBuf,
    name: PartName,
    bytes: Bytes,
    changed: DateTime<Utc>,
}

impl Gc<'_> {
    /// Removes what interrupted moves left.
    fn sweep(&mut self) {
        if self.options.dry_run {
            return;
        }
        // Where things are set aside: beside what they were, which is at most one folder down.
        let work = self.layout.work_root();
        let caches: Vec<PathBuf> = sources::places(self.layout, self.node).into_iter().map(|(_, path)| path).collect();
        let with_folders = |dir: &PathBuf| [vec![dir.clone()], folders_in(dir).unwrap_or_default()].concat();
        let caches: Vec<PathBuf> = caches.iter().flat_map(with_folders).collect();
        let mut notes: Vec<String> =
            with_folders(&work).iter().chain(&caches).flat_map(|dir| archive::sweep_aside(dir)).collect();
        let areas = self
            .node
            .cold
            .iter()
            .flat_map(|tier| ["work", "artifacts"].map(|what| tier::area(&tier.path, self.node, what)));
        notes.extend(areas.chain(caches.iter().cloned()).flat_map(|area| archive::sweep(&area)));
        self.report.notes.extend(notes);
    }

    fn states(&self, tiers: impl Iterator<Item = impl std::borrow::Borrow<ColdTier>>) -> Vec<TierState> {
        let look = if self.options.dry_run { tier::look } else { tier::verify };
        tiers.map(|tier| look(tier.borrow(), self.layout, &self.mounts)).collect()
    }

    fn is_due(&self) -> bool {
        let now = self.report.after;
        self.options.force || now.used_pct >= self.options.threshold_pct || now.free_bytes < self.options.wanted_free
    }

    fn enough(&self) -> String {
        let (used, threshold) = (self.report.after.used_pct, self.options.threshold_pct);
        format!("{used:.0} % of the disk are in use, room is made from {threshold:.0} % on")
    }

    fn work_folders(&mut self, uses: &Uses) -> Result<(), StorageError> {
        if !self.is_due() {
            self.report.skipped = Some(self.enough());
        }
        let mut states = self.states(tier::serving(self.node, ColdPurpose::WorkArchive));
        if !self.options.force {
            // A copy on the same disk would even take room first.
            states = states.into_iter().map(tier::must_free).collect();
        }
        let mut folders = Vec::new();
        for path in folders_in(&self.layout.work_root())? {
            match self.look_at(&path) {
                Ok(folder) => folders.push(folder),
                Err(reason) => self.keep(&path, Bytes(0), vec![reason]),
            }
        }
        folders.sort_by(|a, b| (a.changed, &a.path).cmp(&(b.changed, &b.path)));
        for folder in folders {
            self.one_folder(&folder, uses, &states);
        }
        Ok(())
    }

    /// What is known of a folder; an error is a reason to keep it.
    fn look_at(&self, path: &Path) -> Result<Folder, String> {
        let text = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = PartName::new(&text).map_err(|_| "it is not named like a work folder".to_owned())?;
        let entries = copy::list(path, Links::Keep).map_err(StorageError::one_line)?;
        // Asking for the claim makes its file in the folder; that is no change of the work.
        let inside = entries.iter().filter(|entry| !entry.path.as_os_str().is_empty());
        let newest = inside.map(|entry| entry.modified).max().or_else(|| entries.first().map(|e| e.modified));
        let changed = newest.and_then(|(s, ns)| DateTime::from_timestamp(s, ns as u32)).unwrap_or(self.options.now);
        Ok(Folder { path: path.to_owned(), name, bytes: copy::bytes_of(&entries), changed })
    }

    fn keep(&mut self, path: &Path, bytes: Bytes, because: Vec<String>) {
        self.report.kept.push(Kept { path: path.to_owned(), bytes, because });
    }

    fn one_folder(&mut self, folder: &Folder, uses: &Uses, states: &[TierState]) {
        let used = uses.of(&folder.path);
        let mut reasons: Vec<String> = used.iter().map(|used| used.because.clone()).collect();
        for doubt in uses.doubts(&folder.path) {
            reasons.push(format!("{} cannot be read ({}): it could own this", doubt.file.display(), doubt.problem));
        }
        if let Some(young) = self.young(folder.changed) {
            reasons.push(young);
        }
        let retired = uses.retired.get(folder.name.base());
        // A finished part's own artifact keeps its folder, but not what the stages left on the way.
        let only_artifact =
            reasons.len() == 1 && used.iter().all(|used| used.reason == Reason::Artifact) && retired.is_some();
        if !reasons.is_empty() && !only_artifact {
            return self.keep(&folder.path, folder.bytes, reasons);
        }
        if !self.is_due() {
            reasons.push(self.enough());
            return self.keep(&folder.path, folder.bytes, reasons);
        }
        let mut passed = Vec::new();
        let chosen = tier::choose(states, folder.bytes, &mut passed);
        for note in passed {
            if !self.report.notes.contains(&note) {
                self.report.notes.push(note);
            }
        }
        if let Some(tier) = chosen {
            if only_artifact {
                reasons.push(format!("`foreman demote {}` moves it to cold", folder.name.base()));
                return self.keep(&folder.path, folder.bytes, reasons);
            }
            return self.move_folder(folder, tier, uses);
        }
        let again = retired.map(|retired| rest::of(&folder.path, &retired.artifact)).unwrap_or_default();
        if again.bytes > Bytes(0) {
            return self.delete_rest(folder, &again);
        }
        reasons.push("no cold tier takes it, and nothing in it is known to be made again".into());
        self.keep(&folder.path, folder.bytes, reasons);
    }

    fn young(&self, changed: DateTime<Utc>) -> Option<String> {
        let age = self.options.now - changed;
        (age < SETTLED).then(|| format!("changed {} hours ago: nothing younger than 24 leaves", age.num_hours().max(0)))
    }

    fn move_folder(&mut self, folder: &Folder, tier: &TierState, uses: &Uses) {
        let area = tier::area(&tier.path, self.node, "work");
        let planned = area.join(folder.name.base());
        let because = match uses.retired.contains_key(folder.name.base()) {
            true => "finished longer ago than it is kept, and its artifact lies elsewhere",
            false => "no part on the line needs it",
        };
        let action = format!("moved_to_cold:{}", planned.display());
        if self.options.dry_run {
            return self.done(folder.path.clone(), folder.bytes, action, because, Ok(()));
        }
        let moved = self.really_move(folder, &area);
        let action = match &moved {
            Ok(to) => format!("moved_to_cold:{}", to.display()),
            Err(_) => action,
        };
        if moved.is_err() {
            // What the failed copy left would only fill the cold disk.
            let swept = archive::sweep(&area);
            self.report.notes.extend(swept);
        }
        self.done(folder.path.clone(), folder.bytes, action, because, moved.map(|_| ()));
    }

    fn really_move(&self, folder: &Folder, area: &Path) -> Result<PathBuf, StorageError> {
        // Held until the folder is gone: no attempt can begin in it.
        let Some(_claim) = lock::claim(self.layout, &folder.name)? else {
            return Err(changed_hands(folder, "a worker has claimed it meanwhile"));
        };
        let uses = self.uses_now()?;
        let held = |used: &&super::uses::Use| used.reason != Reason::Claim;
        if uses.of(&folder.path).into_iter().any(|used| held(&used)) || !uses.doubts(&folder.path).is_empty() {
            return Err(changed_hands(folder, "it came into use meanwhile"));
        }
        let receipt = self.archive.place(&folder.path, area, folder.name.base(), "work")?;
        let kept = self.archive.keep_receipt(&receipt);
        self.archive.remove(&folder.path)?;
        if !kept {
            self.archive.keep_receipt(&receipt);
        }
        self.archive.tell(&folder.path, folder.bytes, &format!("moved_to_cold:{}", receipt.to.display()))?;
        Ok(receipt.to)
    }

    /// What is in use at this moment: no part is on its way between two stations while it is read.
    fn uses_now(&self) -> Result<Uses, StorageError> {
        let _moves = MovesLock::acquire(self.layout)?;
        Uses::gather(self.layout, self.node, self.options.now)
    }

    fn delete_rest(&mut self, folder: &Folder, again: &rest::Rest) {
        let because = "weights its stages made on the way: they can be made again, and no cold tier takes them";
        let delete = || -> Result<(), StorageError> {
            let Some(_claim) = lock::claim(self.layout, &folder.name)? else {
                return Err(changed_hands(folder, "a worker has claimed it meanwhile"));
            };
            if shelf::find(self.layout, folder.name.base())?.len() != 1 {
                return Err(changed_hands(folder, "another part of this name came meanwhile"));
            }
            for file in &again.files {
                fs::remove_file(file).map_err(StorageError::io("remove", file))?;
            }
            self.archive.tell(&folder.path, again.bytes, "deleted")
        };
        let done = if self.options.dry_run { Ok(()) } else { delete() };
        self.done(folder.path.clone(), again.bytes, "deleted".into(), because, done);
    }

    fn done(
        &mut self,
        path: PathBuf,
        bytes: Bytes,
        action: String,
        because: impl Into<String>,
        result: Result<(), StorageError>,
    ) {
        let problem = result.err().map(StorageError::one_line);
        if problem.is_none() {
            self.report.freed_bytes = self.report.freed_bytes + bytes;
            let planned = self.report.before.relieved(self.report.freed_bytes);
            let measured = || Pressure::of(self.layout.root()).unwrap_or(planned);
            self.report.after = if self.options.dry_run { planned } else { measured() };
        }
        self.report.evicted.push(Evicted { path, bytes, action, because: because.into(), problem });
    }

    /// Caches over their budget: the least recently used models that nobody needs.
    fn sources(&mut self, uses: &Uses) {
        let Some(budget) = self.node.storage.source_cache else { return };
        let caches = sources::read(self.layout, self.node, uses);
        for cache in &caches {
            let mut bytes = cache.bytes;
            for model in &cache.models {
                if bytes <= budget {
                    break;
                }
                let doubts = uses.model_doubts().map(|doubt| format!("{} could name it", doubt.file.display()));
                let mut reasons: Vec<String> = model.used_by.iter().cloned().chain(doubts).collect();
                reasons.extend(self.young(model.last_used));
                if !reasons.is_empty() {
                    self.keep(&model.path, model.bytes, reasons);
                } else if self.one_model(cache, model, budget, &caches) {
                    bytes = bytes.saturating_sub(model.bytes);
                }
            }
        }
    }

    /// True when the model left its cache, or would.
    fn one_model(&mut self, cache: &Cache, model: &CachedModel, budget: Bytes, caches: &[Cache]) -> bool {
        let because = format!("least recently used in {:?}, which holds {} of {budget}", cache.name, cache.bytes);
        let dry = self.options.dry_run;
        if let Some(peer) = sources::peer_with(model, self.node, !dry, self.options.steps) {
            let remove = || {
                self.still_idle(model)?;
                self.archive.remove(&model.path)?;
                self.archive.tell(&model.path, model.bytes, "deleted")
            };
            let done = if dry { Ok(()) } else { remove() };
            let because = format!("{because}; peer {peer:?} has it");
            return self.left(model, "deleted".into(), because, done, cache);
        }
        let others = self.node.cold.iter().filter(|tier| {
            let other = caches.iter().find(|other| other.name == tier.name);
            tier.purpose.contains(&ColdPurpose::SourceCache)
                && tier.name != cache.name
                && other.is_some_and(|other| other.bytes + model.bytes <= budget)
        });
        let states = self.states(others);
        let mut passed = Vec::new();
        let Some(tier) = tier::choose(&states, model.bytes, &mut passed) else {
            self.report.notes.extend(passed);
            let reason = "no peer has it and no other source cache takes it: nothing else would bring it back";
            self.keep(&model.path, model.bytes, vec![reason.into()]);
            return false;
        };
        let to = tier.path.join(&model.name);
        let action = format!("moved_to_cold:{}", to.display());
        let remove = || {
            let (area, name) = (to.parent().unwrap_or(&tier.path), to.file_name().unwrap_or_default());
            let receipt = self.archive.place(&model.path, area, &name.to_string_lossy(), "source")?;
            self.archive.keep_receipt(&receipt);
            self.still_idle(model)?;
            self.archive.remove(&model.path)?;
            self.archive.tell(&model.path, model.bytes, &format!("moved_to_cold:{}", receipt.to.display()))
        };
        let done = if dry { Ok(()) } else { remove() };
        self.left(model, action, because, done, cache)
    }

    /// Copies and hashes take their time: a part may have come that needs the model.
    fn still_idle(&self, model: &CachedModel) -> Result<(), StorageError> {
        let uses = self.uses_now()?;
        if uses.of(&model.path).is_empty() && uses.model_doubts().next().is_none() {
            return Ok(());
        }
        let what = model.path.display().to_string();
        Err(StorageError::Refused { what, reason: "it came into use meanwhile".into() })
    }

    /// A cache on another disk frees nothing on the hot one.
    fn left(
        &mut self,
        model: &CachedModel,
        action: String,
        because: String,
        done: Result<(), StorageError>,
        cache: &Cache,
    ) -> bool {
        let problem = done.err().map(StorageError::one_line);
        let left = problem.is_none();
        if left && cache.name == "line" {
            self.report.freed_bytes = self.report.freed_bytes + model.bytes;
        }
        self.report.evicted.push(Evicted { path: model.path.clone(), bytes: model.bytes, action, because, problem });
        left
    }
}

fn changed_hands(folder: &Folder, reason: &str) -> StorageError {
    StorageError::Refused { what: folder.path.display().to_string(), reason: reason.into() }
}

/// Folders directly in `dir`; links are none. Names with a dot in front are the line's own.
fn folders_in(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).map_err(StorageError::io("list", dir))? {
        let entry = entry.map_err(StorageError::io("list", dir))?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && !entry.file_name().to_string_lossy().starts_with('.') {
            out.push(entry.path());
        }
    }
    out.sort();
    Ok(out)
}
