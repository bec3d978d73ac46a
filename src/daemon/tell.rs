//! What a worker says, told on: to the event stream, the heartbeat and the observer.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::Floor;
use super::observer::DaemonEvent;
use crate::line::claim::Claimed;
use crate::line::heartbeat::State;
use crate::line::wire::WorkerMessage;

/// Tells of one attempt.
pub struct Teller<'a> {
    floor: &'a Floor<'a>,
    claimed: &'a Claimed,
    stages: Vec<String>,
    stage: Option<String>,
    last_progress: Option<WorkerMessage>,
    /// When progress was last written to the event stream.
    last_written: Option<Instant>,
}

/// Events carry progress at most this often; heartbeat and observer see all of it.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

impl<'a> Teller<'a> {
    pub fn new(floor: &'a Floor<'a>, claimed: &'a Claimed) -> Self {
        Teller { floor, claimed, stages: Vec::new(), stage: None, last_progress: None, last_written: None }
    }

    pub fn stage(&self) -> Option<&str> {
        self.stage.as_deref()
    }

    pub fn last_progress(&self) -> Option<Value> {
        self.last_progress.as_ref().and_then(|m| serde_json::to_value(m).ok())
    }

    /// The worker runs.
    pub fn started(&self, pid: u32) {
        let (part, attempt) = (self.claimed.part.name.file_name(), self.claimed.attempt.attempt);
        self.floor.heart.update(|beat| {
            beat.clear_part();
            beat.state = State::Building;
            beat.current_part = Some(part);
            beat.attempt = Some(attempt);
            beat.worker_pid = Some(pid);
        });
    }

    pub fn hear(&mut self, message: &WorkerMessage) {
        self.keep(message);
        self.beat(message);
        self.write(message);
        self.floor.observer.see(&DaemonEvent::Message { part: &self.claimed.part.name, message });
    }

    fn keep(&mut self, message: &WorkerMessage) {
        match message {
            WorkerMessage::Planned { stages, .. } => self.stages = stages.clone(),
            WorkerMessage::StageStarted { stage, .. } => {
                self.stage = Some(stage.clone());
                self.last_written = None;
            }
            WorkerMessage::Progress { .. } => self.last_progress = Some(message.clone()),
            _ => {}
        }
    }

    fn beat(&self, message: &WorkerMessage) {
        let message = message.clone();
        self.floor.heart.update(|beat| match message {
            WorkerMessage::StageStarted { stage, index, of } => {
                beat.stage = Some(stage);
                beat.stage_index = Some(index);
                beat.stage_count = Some(of);
                beat.percent = Some(0.0);
                (beat.detail, beat.eta_s, beat.tokens_per_s) = (None, None, None);
            }
            WorkerMessage::Progress { stage, fraction, detail, tokens_per_s, eta_s, rss_bytes } => {
                beat.stage = Some(stage);
                beat.percent = Some(100.0 * fraction.clamp(0.0, 1.0));
                (beat.detail, beat.eta_s, beat.tokens_per_s) = (detail, eta_s, tokens_per_s);
                beat.rss_bytes = rss_bytes.or(beat.rss_bytes);
            }
            WorkerMessage::StageCompleted { .. } => beat.percent = Some(100.0),
            _ => {}
        });
    }

    fn write(&mut self, message: &WorkerMessage) {
        match message {
            WorkerMessage::Planned { stages, predicted_s, predicted_peak_bytes, alloy_name, source_model } => {
                let payload = json!({
                    "stages": stages, "predicted_s": predicted_s, "predicted_peak_bytes": predicted_peak_bytes,
                    "alloy_name": alloy_name, "source_model": source_model,
                });
                self.tell("forge/planned", payload);
            }
            WorkerMessage::StageStarted { stage, index, of } => {
                self.tell(
                    "forge/stage/started",
                    json!({"stage": stage, "stages": self.stages, "index": index, "of": of}),
                );
            }
            WorkerMessage::Progress { stage, fraction, detail, tokens_per_s, eta_s, rss_bytes } => {
                if self.last_written.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
                    return;
                }
                self.last_written = Some(Instant::now());
                let payload = json!({
                    "stage": stage, "progress": fraction.clamp(0.0, 1.0), "substage": detail,
                    "tokens_per_s": tokens_per_s, "eta_s": eta_s, "rss_bytes": rss_bytes,
                });
                self.tell("forge/stage/progress", payload);
            }
            WorkerMessage::StageCompleted { stage, elapsed_s, summary, skipped } => {
                let payload = json!({"stage": stage, "elapsed_s": elapsed_s, "summary": summary, "skipped": skipped});
                self.tell("forge/stage/completed", payload);
            }
            WorkerMessage::Warning { message } => self.tell("forge/warning", json!({"message": message})),
            WorkerMessage::Finished {} | WorkerMessage::Fault { .. } => {}
        }
    }

    /// Absent values are left out: readers of older lines know no null.
    fn tell(&self, kind: &str, payload: Value) {
        let fields: Map<String, Value> = match payload {
            Value::Object(map) => map.into_iter().filter(|(_, v)| !v.is_null()).collect(),
            _ => Map::new(),
        };
        self.floor.events.tell(kind, Some(&self.claimed.part.name.file_name()), Value::Object(fields));
    }
}
