//! A thing moved to a cold tier: copied under a temporary name, proved, receipted, put in place, and only then removed
//! where it was. Whatever cuts it short leaves the source whole, or the copy whole with its receipt.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::copy::{self, Links, Step, Steps};
use super::pins::sync;
use super::receipt::{RECEIPT_VERSION, Receipt, beside};
use super::{StorageError, lock};
use crate::line::disk::{Disk, RealDisk};
use crate::line::moves::Mover;
use crate::line::{AttemptToken, EventLog, Layout, record, stamp, throughput};
use crate::units::Bytes;

/// Names under which nobody looks for anything.
const INCOMING: &str = ".incoming";
const EVICTED: &str = ".evicted-";

/// Who moves, and what hears of it.
pub struct Archive<'a> {
    pub layout: &'a Layout,
    /// Name of the node, for receipts and events.
    pub host: &'a str,
    pub steps: &'a dyn Steps,
    pub now: DateTime<Utc>,
}

impl Archive<'_> {
    /// Copies `from` into the folder `area` under `name` (numbered when that is taken), proved and with a receipt. A
    /// copy that an earlier, interrupted move left there is proved again and taken. The source is left.
    pub fn place(&self, from: &Path, area: &Path, name: &str, what: &str) -> Result<Receipt, StorageError> {
        self.place_as(from, area, name, what, Links::Keep)
    }

    /// As [`Archive::place`], with a choice about links.
    pub fn place_as(
        &self,
        from: &Path,
        area: &Path,
        name: &str,
        what: &str,
        links: Links,
    ) -> Result<Receipt, StorageError> {
        fs::create_dir_all(area).map_err(StorageError::io("create", area))?;
        let _area = lock::area(area)?;
        if let Some(found) = self.copied_before(from, area, name, links)? {
            return Ok(found);
        }
        let random = AttemptToken::random()?;
        let room = area.join(format!(".{name}.{random}{INCOMING}"));
        fs::create_dir(&room).map_err(StorageError::io("create", &room))?;
        let content = room.join("content");
        let files = copy::copy(from, &content, links, self.steps)?;
        let mut receipt = Receipt {
            receipt_version: RECEIPT_VERSION,
            what: what.to_owned(),
            from: from.to_owned(),
            to: PathBuf::new(),
            at: stamp::seconds(self.now),
            host: self.host.to_owned(),
            bytes: Bytes(files.iter().map(|file| file.size).sum()),
            files,
            ..Receipt::default()
        };
        self.settle(&mut receipt, &room, &content, area, name)?;
        Ok(receipt)
    }

    /// Gives what was fetched into `room` its name in `area`. It is whole, synced and proved already.
    pub(super) fn settle_fetched(
        &self,
        receipt: &mut Receipt,
        room: &Path,
        content: &Path,
        area: &Path,
        name: &str,
    ) -> Result<(), StorageError> {
        let _area = lock::area(area)?;
        self.settle(receipt, room, content, area, name)
    }

    fn settle(
        &self,
        receipt: &mut Receipt,
        room: &Path,
        content: &Path,
        area: &Path,
        name: &str,
    ) -> Result<(), StorageError> {
        self.name_it(receipt, room, content, area, name)?;
        let _ = drop_all(room);
        sync(area)?;
        self.step(Step::Placed, &receipt.to)
    }

    /// Gives the copy the first free name, its receipt first.
    fn name_it(
        &self,
        receipt: &mut Receipt,
        room: &Path,
        content: &Path,
        area: &Path,
        name: &str,
    ) -> Result<(), StorageError> {
        for n in 1..10_000 {
            let to = area.join(if n == 1 { name.to_owned() } else { format!("{name}~{n}") });
            let note = beside(&to);
            if fs::symlink_metadata(&to).is_ok() || fs::symlink_metadata(&note).is_ok() {
                continue;
            }
            receipt.to = to.clone();
            let draft = room.join("receipt.json");
            let _ = fs::remove_file(&draft);
            RealDisk.write_new(&draft, &record::to_json(receipt)).map_err(StorageError::io("write", &draft))?;
            match RealDisk.rename_new(&draft, &note) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.map_err(StorageError::io("write", &note))?,
            }
            sync(area)?;
            self.step(Step::Receipted, &note)?;
            match rename_new(content, &to) {
                Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists) => {
                    let _ = fs::remove_file(&note);
                }
                other => return other.map_err(StorageError::io("move into place", &to)),
            }
        }
        Err(StorageError::Refused { what: area.display().to_string(), reason: format!("too many named {name}") })
    }

    /// A whole copy of what `from` is now, left by a move that was cut short before the source was removed.
    fn copied_before(
        &self,
        from: &Path,
        area: &Path,
        name: &str,
        links: Links,
    ) -> Result<Option<Receipt>, StorageError> {
        let mut now = None;
        for n in 1..100 {
            let to = area.join(if n == 1 { name.to_owned() } else { format!("{name}~{n}") });
            if fs::symlink_metadata(&to).is_err() {
                break;
            }
            let Ok(receipt) = record::read_json::<Receipt>(&beside(&to)) else { continue };
            if receipt.from != from || receipt.to != to {
                continue;
            }
            let files = match &now {
                Some(files) => files,
                None => now.insert(copy::fingerprint(from, links, self.steps)?),
            };
            if receipt.files == *files && copy::check(&to, files, self.steps).is_ok() {
                return Ok(Some(receipt));
            }
        }
        Ok(None)
    }

    /// Removes what was moved: first out of the way by one rename, then file by file. Links are removed, not followed.
    pub fn remove(&self, from: &Path) -> Result<(), StorageError> {
        let parent = from.parent().unwrap_or(Path::new("/"));
        let name = from.file_name().unwrap_or_default().to_string_lossy();
        let aside = parent.join(format!("{EVICTED}{}-{name}", AttemptToken::random()?));
        rename_new(from, &aside).map_err(StorageError::io("set aside", from))?;
        sync(parent)?;
        self.step(Step::SetAside, &aside)?;
        drop_all(&aside)?;
        sync(parent)?;
        self.step(Step::Removed, from)
    }

    /// The line's own copy of a receipt. A full hot disk is no reason to stop making room on it: told by `false`.
    pub fn keep_receipt(&self, receipt: &Receipt) -> bool {
        let dir = self.layout.line().join("receipts");
        let name = receipt.to.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stamp = self.now.format("%Y%m%dT%H%M%SZ");
        if fs::create_dir_all(&dir).is_err() {
            return false;
        }
        (1..100).any(|n| {
            let number = if n == 1 { String::new() } else { format!(".{n}") };
            let path = dir.join(format!("{name}-{stamp}{number}.receipt.json"));
            !path.exists() && Mover::real(self.layout).publish(&path, &record::to_json(receipt)).is_ok()
        })
    }

    /// Says in the audit log and the event stream that something left the hot disk.
    pub fn tell(&self, path: &Path, bytes: Bytes, action: &str) -> Result<(), StorageError> {
        let payload = serde_json::json!({"path": path, "bytes": bytes, "action": action});
        EventLog::new(self.layout, self.host).tell("line/evicted", None, payload.clone());
        Ok(throughput::append(self.layout, "evicted", payload)?)
    }

    pub(super) fn step(&self, step: Step<'_>, path: &Path) -> Result<(), StorageError> {
        self.steps.at(step).map_err(StorageError::io("move", path))
    }
}

/// Removes what interrupted moves left in `area`: temporary copies that nobody fills, and receipts of copies that never
/// got their name (their source is still there).
pub fn sweep(area: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    // Nothing to do: then nothing is written either, not even a lock.
    if !entries(area).iter().any(|path| is_incoming(path) || is_receipt(path)) {
        return notes;
    }
    let Ok(_area) = lock::area(area) else { return notes };
    for path in entries(area) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_incoming(&path) {
            let done = if drop_all(&path).is_ok() { "removed" } else { "could not remove" };
            notes.push(format!("{done} {}, left by an interrupted copy", path.display()));
        } else if let Some(copy) = name.strip_suffix(".receipt.json") {
            let Ok(receipt) = record::read_json::<Receipt>(&path) else { continue };
            if receipt.to == area.join(copy) && !receipt.to.exists() && receipt.from.exists() {
                let _ = fs::remove_file(&path);
            }
        }
    }
    notes
}

/// Removes what was set aside below `work` and not removed: its copy was whole before it got this name.
pub fn sweep_aside(work: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    for path in entries(work) {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(EVICTED)) {
            let done = if drop_all(&path).is_ok() { "removed" } else { "could not remove" };
            notes.push(format!("{done} {}, whose copy is whole", path.display()));
        }
    }
    notes
}

fn is_incoming(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') && name.ends_with(INCOMING)
}

fn is_receipt(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".receipt.json"))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// A folder with all in it, or a file. `remove_dir_all` does not follow links.
pub(super) fn drop_all(path: &Path) -> Result<(), StorageError> {
    let is_folder = fs::symlink_metadata(path).map_err(StorageError::io("look at", path))?.is_dir();
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(StorageError::io("remove", path))
}

/// Renames and never replaces. Filesystems without such a rename are asked first; a folder never nests in another.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return RealDisk.rename_new(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::symlink_metadata(to) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        other => Ok(other?),
    }
}
