//! What a worker says: one JSON object per line on its standard output.
//!
//! The supervisor turns these lines into events, the heartbeat and the progress an operator sees. They only tell: the
//! outcome of an attempt is what lies in the work folder (`result.json`, `fault.json`) and the exit status.

use std::io::Write;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::fault::FaultClass;

/// Exit status of a worker whose part does not fit at this moment: `wait.json` lies in the work folder.
pub const WAITS: u8 = 79;

/// One line of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WorkerMessage {
    /// The plan is resolved and written; these stages will run.
    Planned {
        stages: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predicted_s: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predicted_peak_bytes: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alloy_name: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_model: Option<String>,
    },
    StageStarted {
        stage: String,
        /// From 0.
        index: usize,
        of: usize,
    },
    Progress {
        stage: String,
        /// Of this stage, 0 to 1.
        fraction: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokens_per_s: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eta_s: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rss_bytes: Option<u64>,
    },
    StageCompleted {
        stage: String,
        elapsed_s: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        summary: Option<String>,
        /// True when an earlier attempt's checkpoint was verified and used.
        #[serde(default)]
        skipped: bool,
    },
    Warning {
        message: String,
    },
    /// `result.json` lies in the work folder.
    Finished {},
    /// `fault.json` lies in the work folder.
    Fault {
        class: FaultClass,
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<String>,
    },
}

/// The worker's side of the wire. Sending never fails: a supervisor that died must not stop the work.
pub struct Wire<W: Write> {
    out: Mutex<W>,
}

impl Wire<std::io::Stdout> {
    pub fn stdout() -> Self {
        Wire::to(std::io::stdout())
    }
}

impl<W: Write> Wire<W> {
    pub fn to(out: W) -> Self {
        Wire { out: Mutex::new(out) }
    }

    /// Writes the message as one line and flushes it.
    pub fn send(&self, message: &WorkerMessage) {
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        let mut out = self.out.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

/// Reads a line of a worker; `None` for anything that is not a message (a library's chatter).
pub fn parse(line: &str) -> Option<WorkerMessage> {
    serde_json::from_str(line.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_and_chatter_does_not() {
        let message = WorkerMessage::StageStarted { stage: "quant".into(), index: 1, of: 3 };
        let mut out = Vec::new();
        Wire::to(&mut out).send(&message);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "{\"type\":\"stage_started\",\"stage\":\"quant\",\"index\":1,\"of\":3}\n");
        assert_eq!(parse(&text), Some(message));
        assert_eq!(parse("loading …"), None);
        let sparse = parse(r#"{"type":"progress","stage":"eval","fraction":0.5,"new_field":1}"#);
        assert!(matches!(sparse, Some(WorkerMessage::Progress { detail: None, .. })));
    }
}
