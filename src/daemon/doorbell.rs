//! What wakes the supervisor: changes in intake, ended workers, signals.
//!
//! A ring says "look", never "what": the scan is the truth, and a ring that is lost delays a part until the next one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::build::Ending;
use super::options::StopHandle;
use crate::fault::{Fault, Outcome};
use crate::line::{Layout, Station, disk};

/// A reason to look.
#[derive(Debug)]
pub enum Ring {
    /// Something may have changed in intake.
    Intake,
    /// A part left its slot, of this number.
    Done(usize, Ending),
    /// Somebody asks us to stop.
    Stop,
}

/// How intake is watched.
pub enum Watch {
    Inotify(#[expect(dead_code, reason = "watches until it is dropped")] RecommendedWatcher, Arc<AtomicBool>),
    /// By looking every so often, and why.
    Polling(String),
}

impl Watch {
    /// Watches intake, by polling where a filesystem does not tell of changes.
    pub fn start(layout: &Layout, bell: Sender<Ring>) -> Watch {
        let intake = layout.station(Station::Intake);
        if let Some(kind) = disk::network_filesystem(&intake) {
            return Watch::Polling(format!("{} is on {kind}, which does not tell of changes", intake.display()));
        }
        let rung = Arc::new(AtomicBool::new(false));
        match watch(&[&intake, &layout.control()], bell, Arc::clone(&rung)) {
            Ok(watcher) => Watch::Inotify(watcher, rung),
            Err(e) => Watch::Polling(format!("{} cannot be watched: {e}", intake.display())),
        }
    }

    /// Says that a look follows now: changes from here on ring again.
    pub fn answered(&self) {
        if let Watch::Inotify(_, rung) = self {
            rung.store(false, Ordering::SeqCst);
        }
    }
}

fn watch(folders: &[&Path], bell: Sender<Ring>, rung: Arc<AtomicBool>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let worth_a_look = match &event {
            Ok(event) => event.need_rescan() || brings_a_file(event.kind),
            // An overflow or a broken watch: look.
            Err(_) => true,
        };
        // One ring is enough until it is answered.
        if worth_a_look && !rung.swap(true, Ordering::SeqCst) {
            let _ = bell.send(Ring::Intake);
        }
    })?;
    for folder in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

fn brings_a_file(kind: EventKind) -> bool {
    match kind {
        // Something that goes is a pause that ends; in intake it costs a look.
        EventKind::Create(_) | EventKind::Remove(_) | EventKind::Any | EventKind::Other => true,
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Modify(ModifyKind::Name(mode)) => !matches!(mode, RenameMode::From),
        _ => false,
    }
}

/// The thread that turns signals into stops; ends when dropped.
pub struct SignalWatch {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl SignalWatch {
    pub fn start(stop: StopHandle) -> Outcome<SignalWatch> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
            .map_err(|e| Fault::infra("cannot listen for signals").caused_by(e))?;
        let handle = signals.handle();
        let listen = move || signals.forever().for_each(|_| stop.request());
        let thread = std::thread::Builder::new().name("signals".into()).spawn(listen).ok();
        Ok(SignalWatch { handle, thread })
    }
}

impl Drop for SignalWatch {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
