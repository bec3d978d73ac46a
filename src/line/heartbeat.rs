//! The heartbeat: `.heartbeat.json`, written by a thread of its own that stops last.
//!
//! A reader judges it by the identity of the process and by the time since boot, never by comparing wall clocks.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::identity::Liveness;
use super::{Layout, LineError, ProcessIdentity, record, stamp};

/// What the supervisor does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Starting,
    Recovering,
    Idle,
    Building,
    #[default]
    Offline,
}

/// The content of `.heartbeat.json`. `pid`, `state`, `current_part`, `last_beat_at` and `host` are the forerunner's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    #[serde(flatten)]
    pub process: ProcessIdentity,
    pub state: State,
    /// File name of the part in assembly, or null.
    pub current_part: Option<String>,
    pub last_beat_at: String,
    /// Name of the node.
    pub host: String,
    /// Grows with every beat: an observer elsewhere sees life in its change.
    pub seq: u64,
    /// Seconds since boot at this beat: its age on the same machine needs no wall clock.
    pub beat_at_uptime_s: f64,
    /// Seconds between beats when nothing changes.
    pub interval_s: f64,
    /// Why the line is paused; absent when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Of the stage, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_pid: Option<u32>,
}

/// What a reader may conclude from a heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// `offline` when the process is gone, whatever the file says.
    pub state: State,
    /// The file claims more than is true, or has not changed for three intervals.
    pub stale: bool,
    /// Seconds since the beat; `None` when it was written on another machine or boot.
    pub age_s: Option<f64>,
}

impl Heartbeat {
    /// Forgets everything about the part that was built.
    pub fn clear_part(&mut self) {
        *self = Heartbeat {
            process: self.process.clone(),
            state: self.state,
            host: std::mem::take(&mut self.host),
            seq: self.seq,
            interval_s: self.interval_s,
            paused: self.paused.take(),
            ..Heartbeat::default()
        };
    }

    pub fn judge(&self) -> Verdict {
        if self.state == State::Offline {
            return Verdict { state: State::Offline, stale: false, age_s: None };
        }
        match self.process.liveness() {
            Liveness::Dead => Verdict { state: State::Offline, stale: true, age_s: self.age() },
            Liveness::Elsewhere => Verdict { state: self.state, stale: true, age_s: None },
            Liveness::Alive => {
                let age = self.age();
                let silent = age.is_some_and(|age| age > 3.0 * self.interval_s.max(1.0));
                Verdict { state: self.state, stale: silent, age_s: age }
            }
        }
    }

    fn age(&self) -> Option<f64> {
        (self.beat_at_uptime_s > 0.0).then(|| (stamp::since_boot() - self.beat_at_uptime_s).max(0.0))
    }
}

/// Reads the heartbeat; `None` when no supervisor ever ran here.
pub fn read(layout: &Layout) -> Result<Option<Heartbeat>, LineError> {
    let path = layout.heartbeat();
    match fs::exists(&path) {
        Ok(false) => Ok(None),
        _ => record::read_json(&path).map(Some),
    }
}

/// Beats until it is stopped or dropped; then says `offline` and ends.
pub struct HeartbeatWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    pulse: Mutex<Pulse>,
    changed: Condvar,
    path: PathBuf,
}

struct Pulse {
    beat: Heartbeat,
    dirty: bool,
    stop: bool,
}

/// Shortest time between two beats: progress may come faster than anybody can read.
const BREATH: Duration = Duration::from_millis(100);

impl HeartbeatWriter {
    /// Starts the thread; the first beat says `starting`.
    pub fn start(layout: &Layout, host: &str, interval: Duration) -> Self {
        Self::telling(layout, host, interval, |_| {})
    }

    /// As [`HeartbeatWriter::start`]; `tell` is called with every beat that was written and must return at once.
    pub fn telling(
        layout: &Layout,
        host: &str,
        interval: Duration,
        tell: impl Fn(&Heartbeat) + Send + 'static,
    ) -> Self {
        let beat = Heartbeat {
            process: ProcessIdentity::current(),
            state: State::Starting,
            host: host.to_owned(),
            interval_s: interval.as_secs_f64(),
            ..Heartbeat::default()
        };
        let pulse = Mutex::new(Pulse { beat, dirty: true, stop: false });
        let shared = Arc::new(Shared { pulse, changed: Condvar::new(), path: layout.heartbeat() });
        let theirs = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("heartbeat".into()).spawn(move || theirs.run(interval, &tell)).ok();
        HeartbeatWriter { shared, thread }
    }

    /// Changes what the next beat says; it follows at once.
    pub fn update(&self, change: impl FnOnce(&mut Heartbeat)) {
        let mut pulse = self.shared.lock();
        change(&mut pulse.beat);
        pulse.dirty = true;
        self.shared.changed.notify_one();
    }
}

impl Drop for HeartbeatWriter {
    fn drop(&mut self) {
        self.update(|beat| {
            beat.state = State::Offline;
            beat.clear_part();
        });
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn run(&self, interval: Duration, tell: &dyn Fn(&Heartbeat)) {
        loop {
            let mut pulse = self.lock();
            if !pulse.dirty && !pulse.stop {
                let waited = self.changed.wait_timeout_while(pulse, interval, |p| !p.dirty && !p.stop);
                pulse = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            }
            pulse.dirty = false;
            pulse.beat.seq += 1;
            pulse.beat.last_beat_at = stamp::seconds(Utc::now());
            pulse.beat.beat_at_uptime_s = stamp::since_boot();
            let (beat, stop) = (pulse.beat.clone(), pulse.stop);
            drop(pulse);
            // A heartbeat that cannot be written is missing, which is what it then should be.
            let _ = self.write(&beat);
            tell(&beat);
            if stop {
                return;
            }
            let pulse = self.lock();
            drop(self.changed.wait_timeout_while(pulse, BREATH, |p| !p.stop));
        }
    }

    /// Temp and rename, without fsync: only the living read it.
    fn write(&self, beat: &Heartbeat) -> std::io::Result<()> {
        let temp = self.path.with_file_name(format!(".heartbeat.json.{}.tmp", beat.process.pid));
        fs::write(&temp, record::to_json(beat))?;
        fs::rename(&temp, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_beats_tells_the_part_and_ends_offline() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        let writer = HeartbeatWriter::start(&layout, "here", Duration::from_millis(20));
        writer.update(|b| {
            b.state = State::Building;
            b.current_part = Some("x.alloy.json".into());
        });
        let building = (0..200).find_map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            read(&layout).ok().flatten().filter(|b| b.state == State::Building)
        });
        let building = building.expect("a beat that says building");
        assert_eq!(building.current_part.as_deref(), Some("x.alloy.json"));
        let verdict = building.judge();
        assert_eq!((verdict.state, verdict.stale), (State::Building, false));
        drop(writer);
        let last = read(&layout).unwrap().unwrap();
        assert_eq!((last.state, last.current_part), (State::Offline, None));
        assert!(last.seq > building.seq);
    }

    #[test]
    fn a_dead_process_is_offline_whatever_the_file_says() {
        let mut beat =
            Heartbeat { state: State::Building, process: ProcessIdentity::current(), ..Heartbeat::default() };
        beat.process.start_ticks += 1;
        assert_eq!(beat.judge(), Verdict { state: State::Offline, stale: true, age_s: None });
    }
}
