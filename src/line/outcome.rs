//! How an attempt ends on disk: shipped to finished, sent back to rework, or returned to intake.
//!
//! Each is sidecar first (durable), then the part, then the audit log and the event. Callers hold the moves lock.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use serde_json::{Map, Value, json};

use super::moves::{Move, Mover};
use super::record::{self, ErrorRecord, FileEntry, Needs, ResultRecord, RetryRecord, WaitRecord};
use super::shelf::PartEntry;
use super::{Attempt, EventLog, LineError, Station, identity, stamp, throughput};
use crate::fault::FaultClass;

/// What a worker left in its work folder, checked against the attempt that owns it.
#[derive(Clone, Debug, PartialEq)]
pub enum Left {
    /// `result.json` with the attempt's token, every listed file there with its size.
    Result(Box<ResultRecord>),
    /// Nothing that counts, and why.
    Nothing(String),
}

/// Reads and inspects `result.json`. A result of an older attempt is evidence, not an outcome.
pub fn inspect(work: &Path, attempt: &Attempt) -> Left {
    let path = work.join("result.json");
    if !path.is_file() {
        return Left::Nothing("no result.json".into());
    }
    let mut result: ResultRecord = match record::read_json(&path) {
        Ok(result) => result,
        Err(error) => return Left::Nothing(error.to_string()),
    };
    if result.attempt_token != attempt.token.as_str() {
        return Left::Nothing("result.json is of another attempt".into());
    }
    if result.forged_dir.as_os_str().is_empty() {
        result.forged_dir = work.join("artifact");
    } else if result.forged_dir.is_relative() {
        result.forged_dir = work.join(&result.forged_dir);
    }
    match result.file_hashes.iter().find_map(|file| missing(&result.forged_dir, file)) {
        Some(problem) => Left::Nothing(problem),
        None => Left::Result(Box::new(result)),
    }
}

fn missing(dir: &Path, file: &FileEntry) -> Option<String> {
    if !Path::new(&file.filename).components().all(|part| matches!(part, Component::Normal(_))) {
        return Some(format!("the result names {:?}, which leaves its folder", file.filename));
    }
    let path = dir.join(&file.filename);
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() && meta.len() == file.size => None,
        Ok(meta) => Some(format!("{} has {} bytes, the result says {}", path.display(), meta.len(), file.size)),
        Err(e) => Some(format!("the result names {}: {e}", path.display())),
    }
}

/// assembly → finished.
pub fn ship(mover: Mover, part: &PartEntry, attempt: &Attempt, result: &ResultRecord) -> Result<Vec<Move>, LineError> {
    let layout = mover.layout;
    let finished = layout.station(Station::Finished);
    let record = ResultRecord {
        completed_at: stamp::seconds(Utc::now()),
        alloy_path: finished.join(part.name.file_name()),
        attempt: attempt.attempt,
        retries: part.retries,
        host: identity::host_name(),
        ..result.clone()
    };
    mover.publish_over(&finished.join(part.name.sidecar("result")), &record::to_json(&record))?;
    let moves = mover.move_part(&discard_retry(mover, part)?, Station::Finished, &part.name)?;
    record_shipped(mover, part, &record)?;
    Ok(moves)
}

fn record_shipped(mover: Mover, part: &PartEntry, record: &ResultRecord) -> Result<(), LineError> {
    let alloy = part.name.file_name();
    let mut line = json!({
        "alloy": alloy, "forged_dir": record.forged_dir, "attempt_token": record.attempt_token,
        "elapsed_s": record.elapsed_s, "retries": part.retries,
    });
    if let (Some(url), Some(line)) = (record.more.get("hf_repo_url"), line.as_object_mut()) {
        line.insert("hf_repo_url".into(), url.clone());
    }
    throughput::append(mover.layout, "finished", line)?;
    let baselines = record.more.get("priorMetricBaselines").and_then(Value::as_array).map_or(0, Vec::len);
    let payload = json!({
        "forged_dir": record.forged_dir, "modelHash": record.model_hash, "published": record.published,
        "elapsed_s": record.elapsed_s, "priorMetricBaselines_count": baselines, "attempt": record.attempt,
    });
    log(mover).tell("forge/completed", Some(&alloy), payload);
    Ok(())
}

/// Any station → rework, with the error that explains it.
pub fn send_back(mover: Mover, part: &PartEntry, mut error: ErrorRecord) -> Result<Vec<Move>, LineError> {
    let layout = mover.layout;
    error.failed_at = stamp::seconds(Utc::now());
    error.retries = part.retries;
    // Tells recovery which file this error was written for, should the move be cut short.
    error.more.insert("part_inode".into(), part.inode.1.into());
    let rework = layout.station(Station::Rework);
    let name = free_part_name(mover, part)?;
    mover.publish_over(&rework.join(name.sidecar("error")), &record::to_json(&error))?;
    let moves = mover.move_part(&discard_retry(mover, part)?, Station::Rework, &name)?;
    mover.remove(&layout.cancel_request(part.name.base()))?;
    let alloy = name.file_name();
    let line = json!({"alloy": alloy, "error": short(&error.error), "retries": part.retries, "class": error.class});
    throughput::append(layout, "rework", line)?;
    let elapsed = error.more.get("elapsed_s").cloned().unwrap_or(json!(0.0));
    let payload = json!({
        "stage": error.stage.as_deref().unwrap_or("none"), "error": short(&error.error), "elapsed_s": elapsed,
        "class": error.class, "attempt": error.attempt,
    });
    log(mover).tell("forge/rework", Some(&alloy), payload);
    Ok(moves)
}

/// The part's own name, or a numbered one when another part of this name failed before.
fn free_part_name(mover: Mover, part: &PartEntry) -> Result<super::PartName, LineError> {
    let name = part.name.as_alloy();
    let failed = super::shelf::list(mover.layout, Station::Rework)?;
    let is_free = |name: &super::PartName| {
        failed.iter().all(|other| other.name.base() != name.base() || other.inode == part.inode)
    };
    if is_free(&name) {
        return Ok(name);
    }
    Ok((2..).map(|n| name.numbered(n)).find(is_free).unwrap_or(name))
}

/// How a part goes back to wait in intake.
#[derive(Clone, Debug, PartialEq)]
pub struct Return {
    /// Raise the retry counter (false after an operator's stop).
    pub charged: bool,
    pub delay: Duration,
    pub class: String,
    pub reason: String,
    pub arrived_at: Option<String>,
    /// What it waits for, and since when.
    pub room: Option<(Needs, String)>,
}

/// assembly → intake, with a sidecar that says why it waits and until when. Returns the name it has there.
pub fn take_back(mover: Mover, part: &PartEntry, wish: &Return) -> Result<super::PartName, LineError> {
    let layout = mover.layout;
    let name = part.name.with_retries(part.retries + u32::from(wish.charged));
    let not_before =
        TimeDelta::from_std(wish.delay).ok().filter(|d| !d.is_zero()).map(|d| stamp::millis(Utc::now() + d));
    let record = RetryRecord {
        not_before,
        reason: wish.reason.clone(),
        class: wish.class.clone(),
        retries: name.retries(),
        arrived_at: wish.arrived_at.clone(),
        needs: wish.room.as_ref().map(|(needs, _)| *needs),
        waiting_since: wish.room.as_ref().map(|(_, since)| since.clone()),
    };
    let sidecar = layout.station(Station::Intake).join(format!("{}.retry.json", name.base()));
    mover.publish_over(&sidecar, &record::to_json(&record))?;
    mover.move_part(&discard_retry(mover, part)?, Station::Intake, &name)?;
    let mut payload = Map::new();
    payload.insert("from".into(), part.name.file_name().into());
    payload.insert("retries".into(), name.retries().into());
    payload.insert("reason".into(), short(&wish.reason).into());
    if wish.charged {
        let line = json!({"alloy": name.file_name(), "retries": name.retries(), "reason": short(&wish.reason)});
        throughput::append(layout, "recovered", line)?;
    }
    log(mover).tell("line/recovered", Some(&name.file_name()), Value::Object(payload));
    Ok(name)
}

/// `fault.json` of a worker as an error record; `None` when there is none or it cannot be read.
pub fn worker_fault(work: &Path) -> Option<ErrorRecord> {
    #[derive(serde::Deserialize)]
    struct WorkerFault {
        class: FaultClass,
        message: String,
        hint: Option<String>,
        stage: Option<String>,
        #[serde(default)]
        causes: Vec<String>,
    }
    let fault: WorkerFault = record::read_json(&work.join("fault.json")).ok()?;
    let mut error = fault.message;
    for cause in fault.causes.iter().filter(|c| !c.is_empty()) {
        if !error.contains(cause.as_str()) {
            error = format!("{error}: {cause}");
        }
    }
    let class = fault.class.as_str().to_owned();
    let traceback = fault.causes.join("\n");
    Some(ErrorRecord { error, class, hint: fault.hint, stage: fault.stage, traceback, ..ErrorRecord::default() })
}

/// What the worker of this attempt waits for; `None` when it wrote nothing of the kind.
pub fn waits(work: &Path, attempt: &Attempt) -> Option<WaitRecord> {
    let wait: WaitRecord = record::read_json(&work.join(record::WAIT_FILE)).ok()?;
    (wait.attempt_token == attempt.token.as_str()).then_some(wait)
}

/// The last lines of `worker.log`.
pub fn log_tail(work: &Path) -> Vec<String> {
    const LINES: usize = 40;
    let Ok(mut file) = File::open(work.join("worker.log")) else { return Vec::new() };
    let len = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(len.saturating_sub(16_384))).and_then(|_| file.read_to_end(&mut bytes)).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|l| (*l).to_owned()).collect()
}

/// The retry record has done its work once its part is claimed: it does not travel on.
fn discard_retry(mover: Mover, part: &PartEntry) -> Result<PartEntry, LineError> {
    let name = format!("{}.retry.json", part.name.base());
    let mut part = part.clone();
    if let Some(at) = part.sidecars.iter().position(|s| *s == name) {
        mover.remove(&mover.layout.station(part.station).join(&name))?;
        part.sidecars.remove(at);
    }
    Ok(part)
}

/// At most 500 characters, as events promise.
fn short(text: &str) -> String {
    text.chars().take(500).collect()
}

fn log(mover: Mover) -> EventLog {
    EventLog::new(mover.layout, identity::host_name())
}
