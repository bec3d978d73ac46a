//! The sidecars that explain an outcome: `<part>.result.json`, `<part>.error.json`, `<part>.retry.json`.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Layout, LineError, PartName, Station};
use crate::units::{Bytes, read_at_most};

/// Largest sidecar that is read.
const MOST_SIDECAR: Bytes = Bytes::from_mb(64);

/// `finished/<part>.result.json`. Hashes, metrics and whatever else a worker or publisher writes stay in `more`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResultRecord {
    pub completed_at: String,
    /// The artifact folder.
    pub forged_dir: PathBuf,
    /// Where the part stands when the move is done.
    pub alloy_path: PathBuf,
    pub published: bool,
    #[serde(rename = "modelHash")]
    pub model_hash: String,
    #[serde(rename = "fileHashes")]
    pub file_hashes: Vec<FileEntry>,
    /// Token of the attempt that made it; see [`super::claim`].
    pub attempt_token: String,
    pub attempt: u32,
    pub retries: u32,
    pub elapsed_s: f64,
    pub host: String,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One file of an artifact: path relative to `forged_dir`, 64 hex digits, bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    pub filename: String,
    pub sha256: String,
    pub size: u64,
}

/// `rework/<part>.error.json`: what went wrong, whose job it is, what to do next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorRecord {
    pub failed_at: String,
    pub error: String,
    /// A fault class (`recipe`, `source`, `quality`, `resource`, `infra`, `internal`) or `cancelled`.
    pub class: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    pub attempt: u32,
    pub retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt_token: Option<String>,
    /// The last progress message of the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_progress: Option<Value>,
    pub log_tail: Vec<String>,
    /// The causes, outermost first, one a line. Always present (readers of older lines expect it).
    pub traceback: String,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// `intake/<base>.retry.json`: why a part waits, and until when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryRecord {
    /// Not to be picked up before this time; absent: at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    pub reason: String,
    pub class: String,
    pub retries: u32,
    /// When the part first arrived, so that it keeps its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrived_at: Option<String>,
    /// What it needs that this machine has, but had not free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs: Option<Needs>,
    /// Since when it waits for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<String>,
}

/// What a part takes of a machine, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    pub ram: Bytes,
    /// Of one GPU.
    pub vram: Bytes,
    pub disk: Bytes,
}

/// `work/<base>/wait.json`: a worker found that its part does not fit at this moment, and ended without a fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitRecord {
    pub attempt_token: String,
    pub needs: Needs,
    /// What is lacking, in words.
    pub reason: String,
    /// When it was found first, over all attempts since the part last ran.
    pub since: String,
}

/// Name of the [`WaitRecord`] in a work folder.
pub const WAIT_FILE: &str = "wait.json";

/// The file of a `result` or `error` sidecar that exists for this part, in the spellings a reader must accept:
/// `<stem>.<kind>.json`, the forerunner's `<stem>.alloy.<kind>.json`, and both with the base name.
pub fn find(layout: &Layout, station: Station, part: &PartName, kind: &str) -> Option<PathBuf> {
    let dir = layout.station(station);
    [part.stem(), part.base().to_owned()]
        .iter()
        .flat_map(|stem| [format!("{stem}.{kind}.json"), format!("{stem}.alloy.{kind}.json")])
        .map(|name| dir.join(name))
        .find(|path| path.is_file())
}

/// Reads the result sidecar of a part that stands in `station`; `None` when it has none.
pub fn result(layout: &Layout, station: Station, part: &PartName) -> Result<Option<ResultRecord>, LineError> {
    find(layout, station, part, "result").map(|path| read_json(&path)).transpose()
}

/// Reads the error sidecar of a part that stands in `station`; `None` when it has none.
pub fn error(layout: &Layout, station: Station, part: &PartName) -> Result<Option<ErrorRecord>, LineError> {
    find(layout, station, part, "error").map(|path| read_json(&path)).transpose()
}

/// Reads why a part in intake waits; `None` when nothing holds it back.
pub fn retry(layout: &Layout, part: &PartName) -> Result<Option<RetryRecord>, LineError> {
    let path = layout.station(Station::Intake).join(format!("{}.retry.json", part.base()));
    if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
}

/// Reads a JSON file; the error names the file, line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LineError> {
    let bytes = read_at_most(path, MOST_SIDECAR).map_err(LineError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| LineError::Malformed { path: path.to_owned(), problem: e.to_string() })
}

/// JSON as the line writes it: indented, with a final newline.
pub fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
