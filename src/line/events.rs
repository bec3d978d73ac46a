//! The event stream: `.events.jsonl`, one JSON object per line, format v0.2 with additions.
//!
//! Events tell, they never decide: writing one is best effort for the caller ([`EventLog::tell`]), and no state is
//! read back from them. Each line is one `write`; a torn last line is cut off by the next writer and skipped by
//! readers; `seq` grows by one per line, also across rotation and across processes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use chrono::Utc;
use fs2::FileExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Layout, LineError, jsonl, lock, stamp};

/// Size at which the stream is rotated to `.events.jsonl.1` (the newest), `.2`, …
const ROTATE_AT: u64 = 16_000_000;
/// Rotated files kept.
pub(crate) const KEEP: u32 = 8;

/// One event. `fields` holds the payload of its kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// UTC with milliseconds.
    pub timestamp: String,
    pub host: String,
    pub kind: String,
    /// File name of the part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloy: Option<String>,
    pub seq: u64,
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// Appends to the stream; shared by threads and by processes (a short lock is taken per line).
pub struct EventLog {
    path: PathBuf,
    host: String,
    rotate_at: u64,
    tail: Mutex<Option<Tail>>,
}

/// Where the stream ended when this process last wrote.
struct Tail {
    file: File,
    inode: u64,
    len: u64,
    seq: u64,
}

impl EventLog {
    pub fn new(layout: &Layout, host: impl Into<String>) -> Self {
        EventLog { path: layout.events(), host: host.into(), rotate_at: ROTATE_AT, tail: Mutex::new(None) }
    }

    #[cfg(test)]
    pub(crate) fn rotating_at(mut self, bytes: u64) -> Self {
        self.rotate_at = bytes;
        self
    }

    /// Appends one event. `payload` must be a JSON object (`json!({…})`); anything else is ignored.
    pub fn append(&self, kind: &str, alloy: Option<&str>, payload: Value) -> Result<Event, LineError> {
        let mut tail = self.tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let gate = lock::open_lock_file(&self.path.with_file_name(".events.lock"))?;
        gate.lock_exclusive().map_err(LineError::io("lock", &self.path))?;
        if tail.as_ref().is_none_or(|t| !t.is_current(&self.path)) {
            *tail = Some(Tail::open(&self.path).map_err(LineError::io("open", &self.path))?);
        }
        if tail.as_ref().is_some_and(|t| t.len >= self.rotate_at) {
            rotate(&self.path).map_err(LineError::io("rotate", &self.path))?;
            *tail = Some(Tail::open(&self.path).map_err(LineError::io("open", &self.path))?);
        }
        let Some(tail) = tail.as_mut() else { unreachable!("opened above") };
        let event = Event {
            timestamp: stamp::millis(Utc::now()),
            host: self.host.clone(),
            kind: kind.to_owned(),
            alloy: alloy.map(str::to_owned),
            // A sequence that somebody wrote to its end stays there.
            seq: tail.seq.saturating_add(1),
            fields: match payload {
                Value::Object(map) => map,
                _ => Map::new(),
            },
        };
        tail.append(&event).map_err(LineError::io("write", &self.path))?;
        Ok(event)
    }

    /// Appends one event if that is possible; the work never waits for nor fails with the stream.
    pub fn tell(&self, kind: &str, alloy: Option<&str>, payload: Value) {
        let _ = self.append(kind, alloy, payload);
    }
}

impl Tail {
    /// Opens the stream for appending: cuts a torn last line off and finds the last sequence number.
    fn open(path: &Path) -> io::Result<Tail> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let len = jsonl::whole_length(&mut file)?;
        if len < file.metadata()?.len() {
            file.set_len(len)?;
        }
        let mut seq = jsonl::last(&mut file, parse)?.map(|event| event.seq);
        // A fresh file goes on where the newest rotated one ended that holds an event.
        for n in 1..=KEEP {
            if seq.is_none()
                && let Ok(mut older) = File::open(rotated(path, n))
            {
                seq = jsonl::last(&mut older, parse)?.map(|event| event.seq);
            }
        }
        Ok(Tail { inode: file.metadata()?.ino(), file, len, seq: seq.unwrap_or(0) })
    }

    fn is_current(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|m| m.ino() == self.inode && m.len() == self.len)
    }

    fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let written = self.file.write(&line)?;
        self.len += written as u64;
        if written < line.len() {
            // A full disk: take the torn line back, so that the next reader sees whole lines only.
            self.len -= written as u64;
            self.file.set_len(self.len)?;
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.seq = event.seq;
        Ok(())
    }
}

/// The newest event of the stream as it stands; `None` when there is none, or none can be read.
pub fn last(layout: &Layout) -> Option<Event> {
    let mut file = File::open(layout.events()).ok()?;
    jsonl::last(&mut file, parse).ok().flatten()
}

/// Reads one line of the stream; `None` for a malformed or torn one.
pub fn parse(line: &[u8]) -> Option<Event> {
    serde_json::from_slice::<Event>(jsonl::trimmed(line)).ok().filter(|event| !event.kind.is_empty())
}

pub(crate) fn rotated(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

/// `.events.jsonl` becomes `.1`, `.1` becomes `.2`, …; the oldest goes.
fn rotate(path: &Path) -> io::Result<()> {
    for n in (1..KEEP).rev() {
        match fs::rename(rotated(path, n), rotated(path, n + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    fs::rename(path, rotated(path, 1))
}
