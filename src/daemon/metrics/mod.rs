//! `line/metrics.prom`: the line in figures, for a collector that reads files.
//!
//! A thread of its own writes the page after a heartbeat or a change, at most once a second; the stations are listed
//! every few seconds at most. Nothing waits for it: a disk that hangs costs the page and nothing else.

mod page;
mod reading;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::Utc;

pub(super) use reading::Counts;
use reading::Look;

use crate::line::{Heartbeat, Layout};

/// Shortest time between two pages.
const BREATH: Duration = Duration::from_secs(1);
/// Shortest time between two looks at the disks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the end waits for the last page: a disk that hangs must not hold the supervisor.
const FAREWELL: Duration = Duration::from_secs(2);

/// Writes pages until it is dropped; the last one says that the supervisor ended.
pub(super) struct Metrics {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// What the writer knows.
pub(super) struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    beat: Heartbeat,
    counts: Counts,
    is_new: bool,
    stop: bool,
    is_over: bool,
}

impl Metrics {
    /// `tiers`: names and paths of the disks whose free space is told; the hot one is the root's if it is not named.
    pub fn start(layout: &Layout, mut tiers: Vec<(String, PathBuf)>) -> Metrics {
        if !tiers.iter().any(|(name, _)| name == "hot") {
            tiers.insert(0, ("hot".into(), layout.root().to_owned()));
        }
        let desk = Arc::new(Desk { state: Mutex::default(), changed: Condvar::new() });
        let writer = Writer { desk: Arc::clone(&desk), layout: layout.clone(), tiers };
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || writer.run()).ok();
        Metrics { desk, thread }
    }

    /// Where heartbeats are told.
    pub fn desk(&self) -> Arc<Desk> {
        Arc::clone(&self.desk)
    }

    /// The supervisor's own counts; a page follows when they are other than before.
    pub fn count(&self, counts: Counts) {
        let mut state = self.desk.lock();
        if state.counts != counts {
            state.counts = counts;
            state.is_new = true;
            self.desk.changed.notify_all();
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.desk.lock().stop = true;
        self.desk.changed.notify_all();
        let Some(thread) = self.thread.take() else { return };
        let state = self.desk.lock();
        let waited = self.desk.changed.wait_timeout_while(state, FAREWELL, |state| !state.is_over);
        if waited.is_ok_and(|(state, _)| state.is_over) {
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A heartbeat was written.
    pub fn beat(&self, beat: &Heartbeat) {
        let mut state = self.lock();
        state.beat = beat.clone();
        state.is_new = true;
        self.changed.notify_all();
    }
}

struct Writer {
    desk: Arc<Desk>,
    layout: Layout,
    tiers: Vec<(String, PathBuf)>,
}

impl Writer {
    fn run(&self) {
        let (mut look, mut looked, mut counted) = (Look::default(), None::<Instant>, Counts::default());
        loop {
            let state = self.desk.lock();
            let waited = self.desk.changed.wait_while(state, |state| !state.is_new && !state.stop);
            let mut state = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
            state.is_new = false;
            let (beat, counts, stop) = (state.beat.clone(), state.counts.clone(), state.stop);
            drop(state);
            // The last page is exact; the ones before it may be some seconds behind in what stands where.
            if stop || looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                looked = Some(Instant::now());
                look.at_disks(&self.layout, &self.tiers);
                counted = counts.clone();
            }
            look.at_processes(beat.worker_pid);
            // A page that cannot be written is missing; the work goes on.
            let _ = self.write(&reading::page(&beat, &counts, &look, Utc::now()));
            let mut state = self.desk.lock();
            if stop {
                state.is_over = true;
                self.desk.changed.notify_all();
                return;
            }
            // Parts have moved since the disks were looked at: a page with the new places follows by itself.
            state.is_new |= counts != counted;
            drop(self.desk.changed.wait_timeout_while(state, BREATH, |state| !state.stop));
        }
    }

    /// Temp and rename, without fsync: only the living are measured.
    fn write(&self, text: &str) -> std::io::Result<()> {
        let path = self.layout.metrics();
        let temp = path.with_file_name(format!(".metrics.prom.{}.tmp", std::process::id()));
        fs::write(&temp, text)?;
        fs::rename(&temp, &path)
    }
}
