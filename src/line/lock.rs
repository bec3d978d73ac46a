//! Locks that die with their holder: held `flock`s, never a PID in a file.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs2::FileExt;
use serde::{Deserialize, Serialize};

use super::{Layout, LineError, ProcessIdentity, identity, stamp};

/// What the supervisor writes into `.worker.pid`, for people; the lock is what counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holder {
    #[serde(flatten)]
    pub process: ProcessIdentity,
    pub host: String,
    pub version: String,
    pub since: String,
}

/// The right to supervise a line, for as long as this value lives.
#[derive(Debug)]
pub struct LineLock {
    file: File,
}

impl LineLock {
    /// Takes the line, or says who holds it. The file is never removed: removing a lock file in use loses the lock.
    pub fn acquire(layout: &Layout) -> Result<Self, LineError> {
        let path = layout.worker_pid();
        let mut file = open_lock_file(&path)?;
        // Somebody who only asks whether it is held holds it for an instant.
        let is_ours = (0..20).try_fold(false, |taken, _| match taken || try_lock(&file, &path)? {
            false => {
                std::thread::sleep(std::time::Duration::from_millis(5));
                Ok::<bool, LineError>(false)
            }
            true => Ok(true),
        })?;
        if !is_ours {
            return Err(LineError::Locked { path, holder: describe_holder(layout) });
        }
        let holder = Holder {
            process: ProcessIdentity::current(),
            host: identity::host_name(),
            version: env!("CARGO_PKG_VERSION").into(),
            since: stamp::seconds(chrono::Utc::now()),
        };
        let text = serde_json::to_string(&holder).unwrap_or_default() + "\n";
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(text.as_bytes()))
            .map_err(LineError::io("write", &path))?;
        Ok(LineLock { file })
    }

    /// True when some supervisor holds the line now. Does not disturb it.
    pub fn is_held(layout: &Layout) -> bool {
        let Ok(file) = OpenOptions::new().read(true).write(true).open(layout.worker_pid()) else { return false };
        match file.try_lock_exclusive() {
            Ok(()) => {
                let _ = FileExt::unlock(&file);
                false
            }
            Err(_) => true,
        }
    }
}

impl Drop for LineLock {
    fn drop(&mut self) {
        // An empty file says that nobody holds it; readers that only look at text are told the truth.
        let _ = self.file.set_len(0);
        let _ = FileExt::unlock(&self.file);
    }
}

/// What `.worker.pid` says; `None` when no supervisor left its card.
pub fn holder(layout: &Layout) -> Option<Holder> {
    serde_json::from_str(&fs::read_to_string(layout.worker_pid()).ok()?).ok()
}

fn describe_holder(layout: &Layout) -> String {
    match holder(layout) {
        Some(h) => format!("process {} on {} since {}", h.process.pid, h.host, h.since),
        None => "another supervisor".into(),
    }
}

/// Serialises operations that move several files (claim, finish, retry, recover). Held for milliseconds.
#[derive(Debug)]
pub struct MovesLock {
    _file: File,
}

impl MovesLock {
    pub fn acquire(layout: &Layout) -> Result<Self, LineError> {
        let path = layout.moves_lock();
        let file = open_lock_file(&path)?;
        file.lock_exclusive().map_err(LineError::io("lock", &path))?;
        Ok(MovesLock { _file: file })
    }
}

/// Opens for reading and writing (flock over NFS needs it), creating it where missing.
pub(crate) fn open_lock_file(path: &Path) -> Result<File, LineError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(LineError::io("open lock", path))
}

/// `Ok(false)` when somebody else holds it; an error when this filesystem cannot lock at all.
pub(crate) fn try_lock(file: &File, path: &Path) -> Result<bool, LineError> {
    match file.try_lock_exclusive() {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(false),
        Err(source) => Err(LineError::Io { action: "lock", path: PathBuf::from(path), source }),
    }
}
