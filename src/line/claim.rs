//! Who builds a part: the attempt token and the lock that a worker inherits.
//!
//! The claim lock is a `flock` on `work/<base>/.claim.lock`. The supervisor takes it before it moves the part into
//! assembly and hands the open file to the worker as its standard input (it reads as empty). The lock lives as long
//! as any process of the attempt: whoever died, a part whose worker still lives cannot be claimed twice.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;

use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::moves::Mover;
use super::{Layout, LineError, PartName, ProcessIdentity, identity, lock, record, stamp};

/// Names one attempt at one part: 128 random bits in hex.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptToken(String);

impl AttemptToken {
    pub fn random() -> Result<Self, LineError> {
        random_hex().map(AttemptToken).map_err(LineError::io("read", Path::new("/dev/urandom")))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AttemptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AttemptToken {
    type Err = LineError;
    fn from_str(text: &str) -> Result<Self, LineError> {
        match text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(AttemptToken(text.to_owned())),
            false => Err(LineError::Refused {
                what: format!("{text:?} is not an attempt token"),
                reason: "a token is 32 hex digits, given by the supervisor".into(),
            }),
        }
    }
}

pub(crate) fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// `work/<base>/attempt.json`: the attempt that may write there now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub token: AttemptToken,
    /// From 1, counting every attempt at this part, stops by an operator included.
    pub attempt: u32,
    /// File name in assembly.
    pub part: String,
    pub retries: u32,
    pub since: String,
    /// When the part first arrived in intake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrived_at: Option<String>,
    pub host: String,
    /// The supervisor that gave the token.
    #[serde(flatten)]
    pub process: ProcessIdentity,
}

impl Attempt {
    /// Reads the current attempt of a work folder; `None` before the first.
    pub fn read(work: &Path) -> Result<Option<Attempt>, LineError> {
        let path = work.join("attempt.json");
        if path.is_file() { record::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// Starts the next attempt: a new token on disk, so that every older one is void; its leftovers are kept aside.
    pub fn begin(disk: &dyn Disk, layout: &Layout, part: &PartName, arrived_at: String) -> Result<Attempt, LineError> {
        let work = layout.work(part);
        // An unreadable record (torn by a full disk) is replaced: its token is void either way.
        let last = Attempt::read(&work).ok().flatten().map_or(0, |a| a.attempt);
        set_aside(&work, last)?;
        let attempt = Attempt {
            token: AttemptToken::random()?,
            attempt: last + 1,
            part: part.file_name(),
            retries: part.retries(),
            since: stamp::seconds(Utc::now()),
            arrived_at: Some(arrived_at),
            host: identity::host_name(),
            process: ProcessIdentity::current(),
        };
        Mover::new(disk, layout).publish_over(&work.join("attempt.json"), &record::to_json(&attempt))?;
        Ok(attempt)
    }
}

/// Refuses when the token on disk is not `token`: another attempt owns this work folder now. A worker asks before
/// every write that cannot be taken back.
pub fn check_token(work: &Path, token: &AttemptToken) -> Result<(), LineError> {
    match Attempt::read(work)? {
        Some(attempt) if attempt.token == *token => Ok(()),
        _ => Err(LineError::Refused {
            what: format!("attempt {token} no longer owns {}", work.display()),
            reason: "a newer attempt was started; this one must not write its result".into(),
        }),
    }
}

/// Results and faults of earlier attempts are evidence: `fault.json` becomes `fault.<attempt>.json`.
fn set_aside(work: &Path, attempt: u32) -> Result<(), LineError> {
    for (name, kind) in [("result.json", "result"), ("fault.json", "fault"), ("worker.log", "worker")] {
        let from = work.join(name);
        let extension = name.rsplit('.').next().unwrap_or_default();
        let to = work.join(format!("{kind}.{attempt}.{extension}"));
        match fs::rename(&from, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(LineError::io("set aside", &from)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// The right to build one part, for as long as any process holds the file.
#[derive(Debug)]
pub struct ClaimLock {
    file: File,
    path: PathBuf,
}

impl ClaimLock {
    /// Takes the claim, making the work folder; `None` when a process of another attempt still holds it.
    pub fn acquire(layout: &Layout, part: &PartName) -> Result<Option<ClaimLock>, LineError> {
        let work = layout.work(part);
        let path = work.join(".claim.lock");
        for _ in 0..8 {
            fs::create_dir_all(&work).map_err(LineError::io("create directory", &work))?;
            let file = lock::open_lock_file(&path)?;
            if !lock::try_lock(&file, &path)? {
                return Ok(None);
            }
            // Somebody may have removed the work folder between open and lock: such a lock protects nothing.
            let held = file.metadata().map_err(LineError::io("look at", &path))?;
            if fs::metadata(&path).is_ok_and(|m| m.ino() == held.ino() && m.dev() == held.dev()) {
                return Ok(Some(ClaimLock { file, path }));
            }
        }
        Err(LineError::Refused {
            what: format!("cannot lock {}", path.display()),
            reason: "the work folder is being removed again and again".into(),
        })
    }

    /// True when some process holds the claim of this part.
    pub fn is_held(layout: &Layout, part: &PartName) -> Result<bool, LineError> {
        let path = layout.work(part).join(".claim.lock");
        if !path.exists() {
            return Ok(false);
        }
        let file = lock::open_lock_file(&path)?;
        lock::try_lock(&file, &path).map(|free| !free)
    }

    /// The lock as a worker's standard input: the child shares the open file and with it the lock.
    pub fn as_stdin(&self) -> Result<Stdio, LineError> {
        let shared = self.file.try_clone().map_err(LineError::io("share lock", &self.path))?;
        Ok(Stdio::from(shared))
    }
}
