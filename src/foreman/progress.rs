//! Progress for people: a moving bar on a terminal, plain lines otherwise, nothing in JSON mode. Always on stderr.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::printer::{Notes, Printer};
use super::wording::{brief, duration, percent};
use crate::daemon::{DaemonEvent, DaemonObserver};
use crate::engine::PassProgress;
use crate::line::PartName;
use crate::line::wire::WorkerMessage;
use crate::units::Bytes;

/// How often a plain line is written for one stage, at most.
const PLAIN_PAUSE: Duration = Duration::from_secs(5);

fn bar(animates: bool) -> Option<ProgressBar> {
    if !animates {
        return None;
    }
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(10));
    Some(bar)
}

/// With a bar while something runs, without one while nothing does.
fn style(working: bool) -> ProgressStyle {
    let template = if working { "{prefix} {bar:24} {msg}" } else { "{msg}" };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━╸─")
}

/// Progress of one pass through a model.
pub struct PassBar {
    bar: Option<ProgressBar>,
    start: Instant,
}

impl PassBar {
    pub fn new(printer: &Printer, what: &str) -> Self {
        let bar = bar(printer.animates());
        if let Some(bar) = &bar {
            bar.set_style(style(true));
            bar.set_prefix(what.to_owned());
        }
        PassBar { bar, start: Instant::now() }
    }

    pub fn show(&self, progress: &PassProgress) {
        let Some(bar) = &self.bar else { return };
        let spent = self.start.elapsed().as_secs_f64();
        let left = spent / progress.fraction.max(1e-6) * (1.0 - progress.fraction);
        bar.set_position((progress.fraction * 1000.0) as u64);
        let (done, rate) = (percent(progress.fraction), progress.tokens_per_s);
        bar.set_message(format!("{done}  ETA {}  {rate:.0} tok/s", duration(left)));
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress of a line: what its supervisor does, as it happens.
pub struct LineProgress {
    notes: Notes,
    bar: Option<ProgressBar>,
    now: Mutex<Now>,
}

/// The stage that runs.
struct Now {
    label: String,
    told: Instant,
}

impl LineProgress {
    pub fn new(printer: &Printer) -> Self {
        let now = Mutex::new(Now { label: String::new(), told: Instant::now() });
        let bar = bar(printer.animates());
        if let Some(bar) = &bar {
            bar.set_style(style(false));
        }
        LineProgress { notes: printer.notes(), bar, now }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// A line that stays: above the bar when there is one.
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.notes.note(text)),
            None => self.notes.note(text),
        }
    }

    fn message(&self, part: &PartName, message: &WorkerMessage) {
        match message {
            WorkerMessage::Planned { stages, predicted_s, predicted_peak_bytes, .. } => {
                let time = predicted_s.map(|s| format!(", about {}", duration(s))).unwrap_or_default();
                let peak = predicted_peak_bytes.map(|b| format!(", peak {}", Bytes(b))).unwrap_or_default();
                self.say(&format!("{part}  plan: {}{time}{peak}", stages.join(" → ")));
            }
            WorkerMessage::StageStarted { stage, index, of } => self.stage(format!("[{}/{of}] {stage}", index + 1)),
            WorkerMessage::Progress { stage, fraction, detail, tokens_per_s, eta_s, rss_bytes, .. } => {
                // Inputs are hashed before the first stage starts.
                if self.label().is_none() {
                    self.stage(stage.clone());
                }
                let mut words = vec![percent(*fraction)];
                words.extend(eta_s.map(|eta| format!("ETA {}", duration(eta))));
                words.extend(tokens_per_s.map(|rate| format!("{rate:.0} tok/s")));
                words.extend(rss_bytes.map(|rss| format!("RSS {}", Bytes(rss))));
                words.extend(detail.as_deref().map(|detail| brief(detail, 40)));
                self.progress(*fraction, &words.join("  "));
            }
            WorkerMessage::StageCompleted { stage, elapsed_s, summary, skipped } => {
                let how = if *skipped { "kept from an earlier attempt".into() } else { duration(*elapsed_s) };
                let summary = summary.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
                let label = self.label().unwrap_or_else(|| stage.clone());
                self.say(&format!("  {label}  {how}{summary}"));
            }
            WorkerMessage::Warning { message } => self.say(&format!("  warning: {message}")),
            // The supervisor's own event says it with the outcome.
            WorkerMessage::Finished {} | WorkerMessage::Fault { .. } => {}
        }
    }

    fn label(&self) -> Option<String> {
        let now = self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Some(now.label.clone()).filter(|label| !label.is_empty())
    }

    fn stage(&self, label: String) {
        if let Some(bar) = &self.bar {
            bar.set_style(style(!label.is_empty()));
            bar.set_prefix(label.clone());
            bar.set_position(0);
            bar.set_message("");
        }
        let mut now = self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *now = Now { label, told: Instant::now() };
    }

    fn progress(&self, fraction: f64, words: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position((fraction.clamp(0.0, 1.0) * 1000.0) as u64);
            bar.set_message(words.to_owned());
            return;
        }
        let mut now = self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if now.told.elapsed() >= PLAIN_PAUSE {
            now.told = Instant::now();
            self.notes.note(format!("  {}  {words}", now.label));
        }
    }
}

impl DaemonObserver for LineProgress {
    fn see(&self, event: &DaemonEvent) {
        match event {
            DaemonEvent::Ready { waiting: 0 } => self.say("the line is open; nothing waits"),
            DaemonEvent::Ready { waiting } => self.say(&format!("the line is open; {waiting} waiting")),
            DaemonEvent::Recovered(done) => self.say(&format!("recovered {} ({})", done.base, done.row)),
            DaemonEvent::Ignored { file, reason } => self.say(&format!("left alone: {file}: {reason}")),
            DaemonEvent::Claimed { part, attempt, .. } => {
                self.say(&format!("{part}  attempt {}", attempt.attempt));
            }
            DaemonEvent::Message { part, message } => self.message(part, message),
            DaemonEvent::Finished { part, result } => {
                self.stage(String::new());
                let artifact = result.forged_dir.display();
                self.say(&format!("{part}  finished in {}: {artifact}", duration(result.elapsed_s)));
            }
            DaemonEvent::Rework { part, error } => {
                self.stage(String::new());
                self.say(&format!("{part}  to rework ({}): {}", error.class, error.error));
                if let Some(hint) = &error.hint {
                    self.say(&format!("  hint: {hint}"));
                }
            }
            DaemonEvent::Retried { part, reason, delay_s } => {
                self.say(&format!("{part}  tried again in {}: {reason}", duration(*delay_s)));
            }
            DaemonEvent::Waits { part, reason } => self.say(&format!("{part}  waits: {reason}")),
            DaemonEvent::Returned { part } => self.say(&format!("{part}  back to intake")),
            DaemonEvent::Paused { reason: Some(reason) } => self.say(&format!("paused, nothing is started: {reason}")),
            DaemonEvent::Paused { reason: None } => self.say("resumed"),
            DaemonEvent::Trouble(fault) => self.say(&format!("trouble: {}", fault.one_line())),
            DaemonEvent::Idle => {}
        }
    }
}
