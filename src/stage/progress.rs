//! Progress that is honest and cheap: many small updates in, at most two messages a second out.
//!
//! A stage reports through a [`Span`], a part of its own 0 to 1. A ticker repeats the newest state while work goes on
//! that cannot report (a long call into a library), but only as long as the process really uses the processor or the
//! disk: a worker that hangs falls silent, and that is how the supervisor sees it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::line::wire::WorkerMessage;
use crate::node::memory_of;

/// Messages of one kind are not sent more often than this.
const THROTTLE: Duration = Duration::from_millis(500);
/// Without a real update the ticker keeps a stage alive at most this long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Whoever wants to hear; the worker's wire, or a test.
pub trait Listener: Sync {
    fn hear(&self, message: &WorkerMessage);
}

/// The newest state of the running stage.
struct State {
    stage: String,
    started: Instant,
    fraction: f64,
    detail: Option<String>,
    tokens_per_s: Option<f64>,
    /// The last real update.
    updated: Instant,
    sent: Option<Instant>,
    /// Processor and disk use when the ticker last looked.
    activity: u64,
}

/// Collects progress and passes it on.
pub struct Progress<'a> {
    listener: &'a dyn Listener,
    state: Mutex<State>,
}

/// A part of a stage, from `from` to `to` of its whole.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    progress: &'a Progress<'a>,
    from: f64,
    to: f64,
}

impl<'a> Progress<'a> {
    pub fn new(listener: &'a dyn Listener) -> Self {
        let now = Instant::now();
        let state = State {
            stage: "plan".into(),
            started: now,
            fraction: 0.0,
            detail: None,
            tokens_per_s: None,
            updated: now,
            sent: None,
            activity: 0,
        };
        Progress { listener, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn send(&self, message: &WorkerMessage) {
        self.listener.hear(message);
    }

    pub fn warn(&self, message: impl Into<String>) {
        self.send(&WorkerMessage::Warning { message: message.into() });
    }

    /// Begins a stage; what follows is reported under its name.
    pub fn begin(&self, stage: &str) {
        let mut state = self.state();
        let now = Instant::now();
        *state = State {
            stage: stage.to_owned(),
            started: now,
            updated: now,
            sent: None,
            fraction: 0.0,
            detail: None,
            tokens_per_s: None,
            activity: state.activity,
        };
    }

    /// The name of the running stage.
    pub fn stage(&self) -> String {
        self.state().stage.clone()
    }

    /// A part of the running stage.
    pub fn span(&'a self, from: f64, to: f64) -> Span<'a> {
        Span { progress: self, from, to }
    }

    fn update(&self, fraction: f64, detail: Option<&str>, tokens_per_s: Option<f64>) {
        let mut state = self.state();
        state.fraction = fraction.clamp(state.fraction, 1.0);
        if let Some(detail) = detail
            && state.detail.as_deref() != Some(detail)
        {
            state.detail = Some(detail.to_owned());
        }
        state.tokens_per_s = tokens_per_s.filter(|t| t.is_finite());
        state.updated = Instant::now();
        if state.sent.is_none_or(|sent| sent.elapsed() >= THROTTLE) {
            self.emit(&mut state);
        }
    }

    fn emit(&self, state: &mut State) {
        let elapsed = state.started.elapsed().as_secs_f64();
        let eta_s = (state.fraction > 0.02 && elapsed > 0.5)
            .then(|| elapsed * (1.0 - state.fraction) / state.fraction)
            .map(|eta| (eta * 10.0).round() / 10.0);
        state.sent = Some(Instant::now());
        self.send(&WorkerMessage::Progress {
            stage: state.stage.clone(),
            fraction: (state.fraction * 1e4).round() / 1e4,
            detail: state.detail.clone(),
            tokens_per_s: state.tokens_per_s.map(|t| t.round()),
            eta_s,
            rss_bytes: rss_bytes(),
        });
    }

    /// Called about once a second by the ticker: sends the newest state when there is something to tell.
    pub fn tick(&self) {
        let activity = activity();
        let mut state = self.state();
        let working = activity > state.activity;
        state.activity = activity;
        let fresh = state.sent.is_none_or(|sent| state.updated > sent);
        let alive = working && state.updated.elapsed() < PATIENCE;
        if (fresh || alive) && state.sent.is_none_or(|sent| sent.elapsed() >= THROTTLE) {
            self.emit(&mut state);
        }
    }
}

impl<'a> Span<'a> {
    /// A part of this part.
    pub fn part(self, from: f64, to: f64) -> Span<'a> {
        let width = self.to - self.from;
        Span { progress: self.progress, from: self.from + width * from, to: self.from + width * to }
    }

    /// `fraction` of this span is done.
    pub fn at(&self, fraction: f64, detail: &str) {
        self.at_rate(fraction, detail, None);
    }

    /// As [`Span::at`], with a speed.
    pub fn at_rate(&self, fraction: f64, detail: &str, tokens_per_s: Option<f64>) {
        let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
        self.progress.update(self.from + (self.to - self.from) * fraction, Some(detail), tokens_per_s);
    }

    /// `done` of `total` units (bytes, tokens) are done.
    pub fn of(&self, done: u64, total: u64, detail: &str) {
        self.at(if total == 0 { 1.0 } else { done as f64 / total as f64 }, detail);
    }
}

/// Resident memory of this process, bytes.
pub fn rss_bytes() -> Option<u64> {
    memory_of(None, "VmRSS").map(|bytes| bytes.0)
}

/// The largest resident memory this process ever had, bytes.
pub fn peak_rss_bytes() -> Option<u64> {
    memory_of(None, "VmHWM").map(|bytes| bytes.0)
}

/// A number that grows while this process computes or moves data: clock ticks of all threads plus megabytes read and
/// written.
fn activity() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let moved: u64 = io
        .lines()
        .filter_map(|line| line.strip_prefix("read_bytes: ").or_else(|| line.strip_prefix("write_bytes: ")))
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    // One tick per second is the ticker's own: five hundredths of a second of work count as work.
    (ticks(11) + ticks(12)) / 5 + moved / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Ear(Mutex<Vec<WorkerMessage>>);
    impl Listener for Ear {
        fn hear(&self, message: &WorkerMessage) {
            self.0.lock().unwrap().push(message.clone());
        }
    }

    fn fractions(ear: &Ear) -> Vec<f64> {
        let heard = ear.0.lock().unwrap();
        heard
            .iter()
            .filter_map(|m| if let WorkerMessage::Progress { fraction, .. } = m { Some(*fraction) } else { None })
            .collect()
    }

    #[test]
    fn a_flood_of_updates_becomes_one_message_and_the_ticker_does_not_repeat_too_soon() {
        let ear = Ear::default();
        let progress = Progress::new(&ear);
        progress.begin("quant");
        let span = progress.span(0.5, 1.0);
        for i in 0..1000 {
            span.of(i, 1000, "encode");
        }
        assert_eq!(fractions(&ear), [0.5]);
        progress.tick();
        assert_eq!(fractions(&ear).len(), 1, "throttled");
    }

    #[test]
    fn progress_never_goes_back_inside_a_stage() {
        let ear = Ear::default();
        let progress = Progress::new(&ear);
        progress.begin("eval");
        progress.span(0.0, 1.0).at(0.8, "a");
        progress.span(0.0, 0.5).part(0.5, 1.0).at(0.0, "b");
        assert_eq!(progress.state().fraction, 0.8);
        progress.begin("package");
        assert_eq!(progress.state().fraction, 0.0);
    }
}
