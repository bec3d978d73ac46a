//! The artifact of a finished part moved to a cold tier. Its result names the copy before the original goes, so that
//! `foreman verify` holds at every moment.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};

use super::archive::Archive;
use super::copy::{self, Links, Step, Steps};
use super::lock::{self, StorageLock};
use super::receipt::{Receipt, beside};
use super::tier::{self, TierState};
use super::{StorageError, archive};
use crate::line::lock::MovesLock;
use crate::line::moves::Mover;
use crate::line::{Layout, PartEntry, ResultRecord, Station, record};
use crate::node::{ColdPurpose, Mounts, Node};
use crate::units::Bytes;

/// How it is done.
pub struct DemoteOptions<'a> {
    pub dry_run: bool,
    pub now: DateTime<Utc>,
    pub steps: &'a dyn Steps,
}

/// What was moved, or would be.
#[derive(Clone, Debug, Serialize)]
pub struct Demoted {
    pub dry_run: bool,
    pub part: String,
    pub from: PathBuf,
    pub to: PathBuf,
    /// The cold tier.
    pub tier: String,
    pub bytes: Bytes,
    /// Tiers that were passed over, and why.
    pub notes: Vec<String>,
}

/// Moves the artifact of `part`.
///
/// # Errors
/// The part is not finished, its artifact is not on this disk or not what its result says, its claim is held, or no
/// cold tier takes it. Nothing was removed then.
pub fn demote(
    layout: &Layout,
    node: &Node,
    part: &PartEntry,
    options: &DemoteOptions<'_>,
) -> Result<Demoted, StorageError> {
    let root = layout.root().canonicalize().map_err(StorageError::io("resolve", layout.root()))?;
    let layout = &Layout::at(root);
    let refused = |reason: String| StorageError::Refused { what: format!("demote {}", part.name), reason };
    if part.station != Station::Finished {
        return Err(refused(format!("it stands in {}, only finished parts are demoted", part.station)));
    }
    let Some(result) = record::result(layout, Station::Finished, &part.name)? else {
        return Err(refused("it has no result sidecar, so nobody knows its artifact".into()));
    };
    let from = artifact_of(layout, part, &result);
    if let Some(tier) = node.cold.iter().find(|tier| is_below(&from, &tier.path)) {
        return Err(refused(format!("its artifact lies on cold tier {:?} already: {}", tier.name, from.display())));
    }
    if !from.is_dir() || from.is_symlink() {
        return Err(refused(format!("its artifact {} is not a folder", from.display())));
    }
    let _lock = if options.dry_run { None } else { Some(StorageLock::acquire(layout)?) };
    let bytes = copy::bytes_of(&copy::list(&from, Links::Keep)?);
    let mut notes = Vec::new();
    let states = states(layout, node, options.dry_run)?;
    let Some(state) = tier::choose(&states, bytes, &mut notes) else {
        let reason = match notes.is_empty() {
            true => "no cold tier has the purpose published-backup or work-archive".to_owned(),
            false => notes.join("; "),
        };
        return Err(refused(reason));
    };
    let area = tier::area(&state.path, node, "artifacts");
    let planned = area.join(part.name.base());
    let mut demoted = Demoted {
        dry_run: options.dry_run,
        part: part.name.file_name(),
        from: from.clone(),
        to: planned,
        tier: state.name.clone(),
        bytes,
        notes,
    };
    if options.dry_run {
        return Ok(demoted);
    }
    let Some(_claim) = lock::claim(layout, &part.name)? else {
        return Err(refused("a living worker holds its claim".into()));
    };
    let archive = Archive { layout, host: &node.name, steps: options.steps, now: options.now };
    let swept = archive::sweep(&area);
    demoted.notes.extend(swept);
    // What a failed copy left would only fill the cold disk.
    let placed = archive.place(&from, &area, part.name.base(), "artifact");
    let receipt = placed.inspect_err(|_| drop(archive::sweep(&area)))?;
    demoted.to.clone_from(&receipt.to);
    if let Some(wrong) = differs(&receipt, &result) {
        archive.remove(&receipt.to)?;
        let _ = std::fs::remove_file(beside(&receipt.to));
        return Err(refused(format!("its artifact is not what its result says: {wrong}; nothing was moved")));
    }
    let kept = archive.keep_receipt(&receipt);
    repoint(layout, part, &result, &from, &receipt.to)?;
    archive.step(Step::Repointed, &receipt.to)?;
    archive.remove(&from)?;
    if !kept {
        archive.keep_receipt(&receipt);
    }
    archive.tell(&from, bytes, &format!("moved_to_cold:{}", receipt.to.display()))?;
    Ok(demoted)
}

/// Backups of what was published come first, then archives of work.
fn states(layout: &Layout, node: &Node, dry_run: bool) -> Result<Vec<TierState>, StorageError> {
    let mounts = Mounts::read().map_err(StorageError::io("read", Path::new("/proc/self/mountinfo")))?;
    let look = if dry_run { tier::look } else { tier::verify };
    let mut states: Vec<TierState> = Vec::new();
    for purpose in [ColdPurpose::PublishedBackup, ColdPurpose::WorkArchive] {
        for tier in tier::serving(node, purpose) {
            if states.iter().all(|state| state.name != tier.name) {
                states.push(look(tier, layout, &mounts));
            }
        }
    }
    Ok(states)
}

fn artifact_of(layout: &Layout, part: &PartEntry, result: &ResultRecord) -> PathBuf {
    let work = layout.work(&part.name);
    let named = match result.forged_dir.as_os_str().is_empty() {
        true => work.join("artifact"),
        false => work.join(&result.forged_dir),
    };
    named.canonicalize().unwrap_or(named)
}

fn is_below(path: &Path, dir: &Path) -> bool {
    dir.canonicalize().is_ok_and(|dir| path.starts_with(dir))
}

/// The first file of a result that the copy has not, or has otherwise.
fn differs(receipt: &Receipt, result: &ResultRecord) -> Option<String> {
    result.file_hashes.iter().find_map(|promised| {
        let found = receipt.files.iter().find(|file| file.path == Path::new(&promised.filename));
        let hash = found.and_then(|file| file.sha256);
        match hash {
            None => Some(format!("{} is missing", promised.filename)),
            Some(sha) if promised.sha256.parse().ok() != Some(sha) => {
                Some(format!("{} has the hash {sha}", promised.filename))
            }
            Some(_) => None,
        }
    })
}

/// Writes the new place into the result sidecar, durably; every other field stays as it is.
fn repoint(layout: &Layout, part: &PartEntry, seen: &ResultRecord, from: &Path, to: &Path) -> Result<(), StorageError> {
    let _moves = MovesLock::acquire(layout)?;
    let moved = || StorageError::Changed { path: part.path.clone() };
    let path = record::find(layout, Station::Finished, &part.name, "result").ok_or_else(moved)?;
    let now = record::result(layout, Station::Finished, &part.name)?;
    if now.as_ref() != Some(seen) || !layout.station(Station::Finished).join(part.name.file_name()).is_file() {
        return Err(moved());
    }
    let mut fields: Map<String, Value> = record::read_json(&path)?;
    let text = |path: &Path| Value::from(path.to_string_lossy().into_owned());
    fields.insert("forged_dir".into(), text(to));
    fields.insert("demoted_from".into(), text(from));
    Ok(Mover::real(layout).publish_over(&path, &record::to_json(&fields))?)
}
