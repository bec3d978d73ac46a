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

use super::moves::Mover;
use super::shelf::{self, PartEntry};
use super::{Layout, LineError, PartName, ProcessIdentity, Station, identity, lock, order, record, stamp};

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
    pub fn begin(mover: Mover, part: &PartName, arrived_at: String) -> Result<Attempt, LineError> {
        let work = mover.layout.work(part);
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
        mover.publish_over(&work.join("attempt.json"), &record::to_json(&attempt))?;
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

/// A part in assembly that is ours to build.
#[derive(Debug)]
pub struct Claimed {
    pub part: PartEntry,
    pub attempt: Attempt,
    pub lock: ClaimLock,
}

impl Claimed {
    /// intake → assembly: claim lock, new token on disk, then the move. There it is spelled `.alloy.json`; when its base
    /// name is taken elsewhere on the line it gets the first free `<base>~<n>`. `None` when somebody else was faster or
    /// a worker of this name still lives. The caller holds the moves lock.
    pub fn take(mover: Mover, part: &PartEntry) -> Result<Option<Claimed>, LineError> {
        let layout = mover.layout;
        let name = free_name(layout, &part.name.as_alloy());
        let Some(lock) = ClaimLock::acquire(layout, &name)? else { return Ok(None) };
        let waited = record::retry(layout, &part.name).ok().flatten();
        let arrived_at = waited.and_then(|r| r.arrived_at).unwrap_or_else(|| stamp::millis(part.arrived));
        let attempt = Attempt::begin(mover, &name, arrived_at)?;
        match mover.move_part(part, Station::Assembly, &name) {
            Ok(_) => {}
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error),
        }
        // What was said of its waiting ends with it.
        for said in [format!("{}.retry.json", name.base()), order::file_of(&name)] {
            mover.remove(&layout.station(Station::Assembly).join(said))?;
        }
        let part = shelf::list(layout, Station::Assembly)?.into_iter().find(|p| p.name == name);
        Ok(part.map(|part| Claimed { part, attempt, lock }))
    }
}

/// The name itself, or numbered when a part of this base name stands in another station than intake.
fn free_name(layout: &Layout, name: &PartName) -> PartName {
    if !is_taken(layout, name) {
        return name.clone();
    }
    (2..).map(|n| name.numbered(n)).find(|name| !is_taken(layout, name)).unwrap_or_else(|| name.clone())
}

/// Looks for the names a part of this base could have, without listing stations that may be large.
fn is_taken(layout: &Layout, name: &PartName) -> bool {
    const COUNTERS: u32 = 16;
    [Station::Assembly, Station::Finished, Station::Rework, Station::Deferred].iter().any(|station| {
        let dir = layout.station(*station);
        (0..=COUNTERS.max(name.retries())).any(|n| dir.join(name.with_retries(n).file_name()).exists())
    })
}
