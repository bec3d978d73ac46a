//! Pins: what a person wants kept where it is. One small JSON file each, under `line/.control/pins/`.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::StorageError;
use crate::line::moves::Mover;
use crate::line::{Layout, LineError, record, stamp};
use crate::units::Sha;

/// `line/.control/pins/<name>.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pin {
    /// A part's base name, a path, or the name of a model.
    pub subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub at: String,
}

/// A file in the folder of pins, and what it says.
pub type PinFile = (PathBuf, Result<Pin, LineError>);

impl Pin {
    pub fn new(subject: &str, reason: Option<String>, at: DateTime<Utc>) -> Pin {
        Pin { subject: subject.to_owned(), reason, at: stamp::seconds(at) }
    }
}

/// Where pins lie.
pub fn folder(layout: &Layout) -> PathBuf {
    layout.control().join("pins")
}

/// The file of a subject: its readable part, and a hash that keeps two subjects apart.
pub fn file_of(layout: &Layout, subject: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let readable: String = subject.trim_start_matches('.').chars().map(plain).take(80).collect();
    let hash = Sha::of(subject.as_bytes()).hex();
    folder(layout).join(format!("{readable}-{}.json", &hash[..8]))
}

/// Writes a pin, durably; a second pin of the same subject replaces the first.
pub fn pin(layout: &Layout, pin: &Pin) -> Result<PathBuf, StorageError> {
    let dir = folder(layout);
    std::fs::create_dir_all(&dir).map_err(StorageError::io("create", &dir))?;
    let path = file_of(layout, &pin.subject);
    Mover::real(layout).publish_over(&path, &record::to_json(pin))?;
    Ok(path)
}

/// Removes the pin of a subject; `None` when there is none.
pub fn unpin(layout: &Layout, subject: &str) -> Result<Option<PathBuf>, StorageError> {
    let own = read(layout)?.into_iter().find_map(|(path, pin)| (pin.ok()?.subject == subject).then_some(path));
    let Some(path) = own else { return Ok(None) };
    std::fs::remove_file(&path).map_err(StorageError::io("remove", &path))?;
    sync(&folder(layout))?;
    Ok(Some(path))
}

/// Every file in the folder of pins: the pin, or why it cannot be read. Sorted by name.
pub fn read(layout: &Layout) -> Result<Vec<PinFile>, StorageError> {
    let dir = folder(layout);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StorageError::io("list", &dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(StorageError::io("list", &dir))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let pin = record::read_json(&path);
            found.push((path, pin));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

pub(super) fn sync(dir: &Path) -> Result<(), StorageError> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(StorageError::io("sync", dir))
}
