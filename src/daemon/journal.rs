//! The daemon's own report: one line per thing that happened, for a terminal or a service manager's log.

use std::io::Write;
use std::sync::Mutex;

use chrono::Utc;
use serde_json::{Value, json};

use super::{DaemonEvent, DaemonObserver, Summary};
use crate::line::stamp;
use crate::line::wire::WorkerMessage;

/// Writes what it sees: plain lines, or JSON Lines.
pub struct Journal<W: Write + Send> {
    out: Mutex<W>,
    json: bool,
    dated: bool,
}

impl<W: Write + Send> Journal<W> {
    pub fn new(out: W, json: bool) -> Self {
        Journal { out: Mutex::new(out), json, dated: false }
    }

    /// Every line says when: for files, whose reader has no service manager's clock beside it.
    pub fn dated(self) -> Self {
        Journal { dated: true, ..self }
    }

    /// The last line: what was done.
    pub fn end(&self, summary: &Summary) {
        let text = format!(
            "stopped: {} finished, {} to rework, {} retried, {} recovered, {} returned",
            summary.finished, summary.rework, summary.retried, summary.recovered, summary.returned
        );
        self.line("stopped", &text, json!(summary));
    }

    /// A closed standard error must not stop the line.
    fn line(&self, kind: &str, text: &str, fields: Value) {
        let at = if self.dated { stamp::millis(Utc::now()) } else { String::new() };
        let line = match (self.json, self.dated) {
            (true, true) => json!({"at": at, "kind": kind, "message": text, "fields": fields}).to_string(),
            (true, false) => json!({"kind": kind, "message": text, "fields": fields}).to_string(),
            (false, true) => format!("{at} {text}"),
            (false, false) => text.to_owned(),
        };
        let mut out = self.out.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // One write: a line is never torn by rotation.
        let _ = out.write_all((line + "\n").as_bytes());
    }
}

impl<W: Write + Send> DaemonObserver for Journal<W> {
    fn see(&self, event: &DaemonEvent) {
        match event {
            DaemonEvent::Ready { waiting } => {
                self.line("ready", &format!("line open, {waiting} waiting"), json!({"waiting": waiting}));
            }
            DaemonEvent::Recovered(r) => {
                let text = format!("{}: recovered ({})", r.base, r.row);
                self.line("recovered", &text, json!({"part": r.base, "row": r.row, "moves": r.moves}));
            }
            DaemonEvent::Ignored { file, reason } => {
                self.line("ignored", &format!("intake/{file}: left alone, {reason}"), json!({"file": file}));
            }
            DaemonEvent::Claimed { part, attempt, work } => {
                let text = format!("{part}: attempt {} in {}", attempt.attempt, work.display());
                self.line("claimed", &text, json!({"part": part.file_name(), "attempt": attempt.attempt}));
            }
            DaemonEvent::Message { part, message } => self.message(&part.file_name(), message),
            DaemonEvent::Finished { part, result } => {
                let text = format!("{part}: finished in {:.1} s, {}", result.elapsed_s, result.model_hash);
                self.line("finished", &text, json!({"part": part.file_name(), "modelHash": result.model_hash}));
            }
            DaemonEvent::Rework { part, error } => {
                let hint = error.hint.as_ref().map_or(String::new(), |h| format!(" (hint: {h})"));
                let text = format!("{part}: to rework [{}]: {}{hint}", error.class, error.error);
                self.line("rework", &text, json!({"part": part.file_name(), "class": error.class}));
            }
            DaemonEvent::Retried { part, reason, delay_s } => {
                let text = format!("{part}: again in {delay_s:.1} s: {reason}");
                self.line("retried", &text, json!({"part": part.file_name(), "delay_s": delay_s}));
            }
            DaemonEvent::Waits { part, reason } => {
                self.line(
                    "waits",
                    &format!("{part}: waits, {reason}"),
                    json!({"part": part.file_name(), "reason": reason}),
                );
            }
            DaemonEvent::Returned { part } => {
                self.line("returned", &format!("{part}: back to intake"), json!({"part": part.file_name()}));
            }
            DaemonEvent::Paused { reason: Some(reason) } => {
                self.line("paused", &format!("paused, nothing is started: {reason}"), json!({"reason": reason}));
            }
            DaemonEvent::Paused { reason: None } => self.line("resumed", "resumed", json!({})),
            DaemonEvent::Trouble(fault) => self.line("trouble", &format!("trouble: {fault}"), json!({})),
            DaemonEvent::Idle => {}
        }
    }
}

impl<W: Write + Send> Journal<W> {
    /// Stages and warnings; progress would drown the rest.
    fn message(&self, part: &str, message: &WorkerMessage) {
        match message {
            WorkerMessage::StageCompleted { stage, elapsed_s, summary, skipped } => {
                let note = summary.as_ref().map_or(String::new(), |s| format!(": {s}"));
                let how = if *skipped { "skipped" } else { "done" };
                self.line("stage", &format!("{part}: {stage} {how} in {elapsed_s:.1} s{note}"), json!(message));
            }
            WorkerMessage::Warning { message: text } => {
                self.line("warning", &format!("{part}: warning: {text}"), json!(message));
            }
            _ => {}
        }
    }
}
