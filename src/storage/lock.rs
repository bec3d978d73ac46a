//! One at a time: who moves things between tiers of a line holds `line/.storage.lock`.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use fs2::FileExt;

use super::StorageError;
use crate::line::{ClaimLock, Layout, LineError, PartName};

/// Held while storage is changed; dies with its holder.
#[derive(Debug)]
pub struct StorageLock {
    _file: File,
}

impl StorageLock {
    /// Takes it, or says that somebody else moves things now.
    pub fn acquire(layout: &Layout) -> Result<StorageLock, StorageError> {
        let path = layout.line().join(".storage.lock");
        match held_soon(&path)? {
            Some(file) => Ok(StorageLock { _file: file }),
            None => Err(LineError::Locked { path, holder: "another gc, demote or fetch".into() }.into()),
        }
    }
}

/// The lock of one file, made where it is missing; `None` when somebody else has it. On a filesystem that knows no locks
/// it is had for the asking: the line's own lock still holds.
pub(super) fn held(path: &Path) -> Result<Option<File>, StorageError> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = open.map_err(StorageError::io("open lock", path))?;
    match file.try_lock_exclusive() {
        Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(None),
        _ => Ok(Some(file)),
    }
}

/// The right to put things into a folder of a cold tier, which lines may share.
pub(super) fn area(area: &Path) -> Result<File, StorageError> {
    let path = area.join(".lock");
    held_soon(&path)?.ok_or_else(|| LineError::Locked { path, holder: "another line".into() }.into())
}

/// As [`held`], for somebody who would rather wait a moment: a process that is just being started holds for an instant
/// what its parent holds.
fn held_soon(path: &Path) -> Result<Option<File>, StorageError> {
    soon(|| held(path))
}

/// The claim of a part, with the same patience.
pub(super) fn claim(layout: &Layout, part: &PartName) -> Result<Option<ClaimLock>, StorageError> {
    soon(|| Ok(ClaimLock::acquire(layout, part)?))
}

fn soon<T>(ask: impl Fn() -> Result<Option<T>, StorageError>) -> Result<Option<T>, StorageError> {
    for _ in 0..20 {
        if let Some(had) = ask()? {
            return Ok(Some(had));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    ask()
}
