//! The daemon's hand on storage: makes room at its start, and whenever no part could start for lack of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::Utc;

use super::StorageError;
use super::copy::{Step, Steps};
use super::gc::{self, GcOptions, Pressure};
use crate::line::{EventLog, Layout, LineError};
use crate::node::Node;
use crate::units::Bytes;

/// Between two tries to make room: what did not help a moment ago does not help now.
const PAUSE: Duration = Duration::from_secs(60);
/// How often it is looked whether somebody else has made room.
const PATIENCE: Duration = Duration::from_millis(200);

/// Makes room while it lives. Dropping it calls off what it does; a move cut short loses nothing.
pub struct Caretaker {
    layout: Layout,
    stop: Arc<AtomicBool>,
    tried: Mutex<Option<Instant>>,
}

impl Caretaker {
    /// Makes room in the background when the disk is fuller than the node wants, or caches have a budget.
    pub fn start(layout: &Layout) -> Caretaker {
        let caretaker =
            Caretaker { layout: layout.clone(), stop: Arc::new(AtomicBool::new(false)), tried: Mutex::new(None) };
        let (layout, stop) = (layout.clone(), caretaker.stop.clone());
        let Ok(node) = Node::load(layout.root()) else { return caretaker };
        let is_full = Pressure::of(layout.root()).is_ok_and(|now| now.used_pct >= node.storage.gc_threshold_pct);
        if is_full || node.storage.source_cache.is_some() {
            std::thread::spawn(move || tidy(&layout, &node, Bytes(0), &|| stop.load(Ordering::Relaxed)));
        }
        caretaker
    }

    /// Makes room until `wanted` bytes are free, or until nothing more can go; returns at once when it was tried a
    /// moment ago. `is_over` calls it off.
    pub fn relieve(&self, wanted: Bytes, is_over: &(dyn Fn() -> bool + Sync)) {
        let mut tried = self.tried.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if tried.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        if let Ok(node) = Node::load(self.layout.root()) {
            tidy(&self.layout, &node, wanted, is_over);
        }
        *tried = Some(Instant::now());
    }
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Ends a move when it is called off.
struct Until<'a>(&'a (dyn Fn() -> bool + Sync));

impl Steps for Until<'_> {
    fn at(&self, _: Step<'_>) -> io::Result<()> {
        if (self.0)() { Err(io::Error::other("called off")) } else { Ok(()) }
    }
}

/// Waits for whoever moves things now, then makes room. What goes wrong is told; the line goes on.
fn tidy(layout: &Layout, node: &Node, wanted: Bytes, is_over: &(dyn Fn() -> bool + Sync)) {
    let steps = Until(is_over);
    let events = EventLog::new(layout, &*node.name);
    let trouble = |error: String| {
        events.tell("line/trouble", None, serde_json::json!({"class": "resource", "error": error}));
    };
    loop {
        let options = GcOptions {
            dry_run: false,
            force: false,
            threshold_pct: node.storage.gc_threshold_pct,
            wanted_free: wanted,
            now: Utc::now(),
            steps: &steps,
        };
        match gc::run(layout, node, &options) {
            Ok(report) => {
                report.evicted.into_iter().filter_map(|evicted| evicted.problem).for_each(trouble);
                return;
            }
            Err(StorageError::Line(LineError::Locked { .. })) if !is_over() => std::thread::sleep(PATIENCE),
            Err(_) if is_over() => return,
            Err(error) => return trouble(error.one_line()),
        }
    }
}
