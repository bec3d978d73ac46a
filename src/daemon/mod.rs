//! The supervisor of a line: admit, claim, build, inspect, ship or send back.
//!
//! Enters: a root folder and settings. Leaves: parts in finished and rework, and a [`Summary`]. It holds no model:
//! every part is built by a worker process, whose death costs an attempt and nothing else. Threads: this loop, one
//! per slot, the heartbeat (stops last), metrics, signals, a waiter per worker.

mod build;
mod doorbell;
mod intake;
mod journal;
mod limits;
mod log_file;
mod metrics;
mod notify;
mod observer;
mod options;
mod reserve;
mod serve;
mod settle;
mod steer;
mod tell;
mod worker_log;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Scope;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use serde_json::json;

use crate::fault::{Fault, FaultClass, Outcome};
use crate::line::claim::Claimed;
use crate::line::heartbeat::State;
use crate::line::lock::MovesLock;
use crate::line::moves::Mover;
use crate::line::pause::Pause;
use crate::line::recovery::{self, table};
use crate::line::{ErrorRecord, EventLog, HeartbeatWriter, Layout, LineLock, Needs, outcome};
use crate::node::{Room, free_bytes};
use crate::storage::Caretaker;
use build::Ending;
use doorbell::{Ring, SignalWatch, Watch};
use intake::{Admission, Intake, Picking, Waiting};
use metrics::Metrics;
use reserve::Reserve;

pub use journal::Journal;
pub use limits::{ControlGroups, Limits};
pub use notify::Notifier;
pub use observer::{DaemonEvent, DaemonObserver, NoObserver};
pub use options::{DaemonConfig, DaemonOptions, Mode, StopHandle, Summary, WorkerCommand};
pub use serve::{ServeArgs, serve};

/// Supervises a line until its mode or a stop ends it.
pub fn run(options: &DaemonOptions, observer: &dyn DaemonObserver) -> Outcome<Summary> {
    let layout = Layout::init(&options.root)?;
    // Absolute from here on: workers and sidecars name files by it.
    let root = layout.root().canonicalize().map_err(|e| Fault::infra("cannot resolve the root").caused_by(e))?;
    let layout = Layout::at(root);
    // Held to the end; the heartbeat is declared after it and so stops before the line is free again.
    let _lock = LineLock::acquire(&layout)?;
    let metrics = Metrics::start(&layout, options.config.tiers.clone());
    let desk = metrics.desk();
    let (host, interval) = (&*options.config.host, options.config.heartbeat);
    let heart = HeartbeatWriter::telling(&layout, host, interval, move |beat| desk.beat(beat));
    let events = EventLog::new(&layout, &*options.config.host);
    let caretaker = Caretaker::start(&layout);
    let reserve = Reserve::new(&layout);
    let floor = Floor { layout, options, observer, heart, events, metrics, caretaker, reserve };
    let (bell, rings) = mpsc::channel();
    options.stop.connect(bell.clone());
    let _signals = if options.signals { Some(SignalWatch::start(options.stop.clone())?) } else { None };
    let supervisor = Supervisor {
        floor: &floor,
        watch: Watch::start(&floor.layout, bell.clone()),
        bell,
        rings,
        intake: Intake::default(),
        running: 0,
        busy: BTreeSet::new(),
        only: None,
        is_stale: true,
        last_scan: Instant::now(),
        scan_took: Duration::ZERO,
        orphans: false,
        paused: None,
        summary: Summary::default(),
    };
    supervisor.supervise()
}

/// How long a part whose last worker still lives is let be.
const HOLD: TimeDelta = TimeDelta::milliseconds(500);

/// What every thread of the supervisor shares.
pub(crate) struct Floor<'a> {
    pub layout: Layout,
    pub options: &'a DaemonOptions,
    pub observer: &'a dyn DaemonObserver,
    pub heart: HeartbeatWriter,
    pub events: EventLog,
    /// Dropped after the heartbeat, whose last beat it tells.
    metrics: Metrics,
    /// Makes room on the disk.
    pub caretaker: Caretaker,
    /// A little room for the worst moment.
    reserve: Reserve,
}

/// The loop's own state.
struct Supervisor<'a> {
    floor: &'a Floor<'a>,
    watch: Watch,
    bell: Sender<Ring>,
    rings: Receiver<Ring>,
    intake: Intake,
    running: usize,
    /// Numbers of the slots that parts are built in.
    busy: BTreeSet<usize>,
    /// In `Once`: the base name of the one part.
    only: Option<String>,
    /// Intake has changed since it was scanned.
    is_stale: bool,
    last_scan: Instant,
    scan_took: Duration,
    /// Assembly holds parts that are not ours: another worker lives, or a settling failed.
    orphans: bool,
    /// An operator's wish that nothing is started.
    paused: Option<Pause>,
    summary: Summary,
}

impl<'a> Supervisor<'a> {
    fn supervise(mut self) -> Outcome<Summary> {
        self.open()?;
        let floor = self.floor;
        std::thread::scope(|scope| {
            let mut failures = 0;
            loop {
                match self.round(scope) {
                    Ok(()) => failures = 0,
                    Err(fault) => {
                        failures += 1;
                        // Told once, not once a second.
                        if failures == 1 {
                            floor.trouble(&fault);
                        }
                        // A line that cannot be read is worth waiting for, but only a daemon waits for ever.
                        if self.running == 0 && failures > 5 && floor.options.mode != Mode::Forever {
                            return Err(fault);
                        }
                    }
                }
                if self.running == 0 && self.is_over() {
                    return Ok(());
                }
                self.wait(failures);
            }
        })?;
        self.close();
        Ok(self.summary)
    }

    /// Brings the line to order, and says that it is open.
    fn open(&mut self) -> Outcome<()> {
        let floor = self.floor;
        floor.heart.update(|beat| beat.state = State::Recovering);
        floor.events.tell("line/started", None, json!({"version": env!("CARGO_PKG_VERSION")}));
        if let Watch::Polling(reason) = &self.watch {
            floor.events.tell("line/polling", None, json!({"reason": reason}));
        }
        self.recover()?;
        self.scan()?;
        floor.heart.update(|beat| beat.state = State::Idle);
        floor.observer.see(&DaemonEvent::Ready { waiting: self.intake.len() });
        floor.options.notify.ready();
        Ok(())
    }

    fn close(&self) {
        self.tell_state();
        self.floor.options.notify.stopping();
        self.floor.events.tell("line/stopped", None, json!(self.summary));
    }

    /// One look at everything: what is in disorder, what is new, what may start.
    fn round<'s>(&mut self, scope: &'s Scope<'s, '_>) -> Outcome<()>
    where
        'a: 's,
    {
        self.heed_pause();
        if self.orphans {
            self.recover()?;
        }
        if self.scan_in() == Some(Duration::ZERO) {
            self.scan()?;
        }
        if self.has_room() && !self.intake.is_empty() {
            self.floor.check_space()?;
            self.floor.reserve.keep();
        }
        while self.has_room() {
            let Some(waiting) = self.next() else { break };
            // Put right by the next scan if anything below fails.
            let was_stale = std::mem::replace(&mut self.is_stale, true);
            match &waiting.admission {
                Admission::Refused(error) => self.is_stale = was_stale | !self.refuse(&waiting, error)?,
                Admission::Good { .. } => {
                    if let Some(claimed) = self.claim(&waiting)? {
                        self.is_stale = was_stale;
                        self.build(scope, claimed);
                    }
                }
            }
        }
        Ok(())
    }

    /// The part whose turn it is, of those that fit.
    fn next(&mut self) -> Option<Waiting> {
        let config = &self.floor.options.config;
        let room = OnceCell::new();
        let fits = |needs: &Needs| {
            let room: &Room = room.get_or_init(|| Room::now(&self.floor.layout.work_root(), config.min_free));
            room.lacks(needs.ram, needs.vram, needs.disk).is_none()
        };
        let patience = TimeDelta::from_std(config.patience).unwrap_or(TimeDelta::MAX);
        let longest = TimeDelta::from_std(config.longest_wait()).unwrap_or(TimeDelta::MAX);
        self.intake.take(Utc::now(), &Picking { only: self.only.as_deref(), fits: &fits, patience, longest })
    }

    /// A recipe that cannot be built goes to rework at once; false when it is not there any more.
    fn refuse(&mut self, waiting: &Waiting, error: &ErrorRecord) -> Outcome<bool> {
        let floor = self.floor;
        let _moves = MovesLock::acquire(&floor.layout)?;
        if !waiting.is_current() {
            return Ok(false);
        }
        outcome::send_back(Mover::real(&floor.layout), &waiting.entry, error.clone())?;
        self.summary.rework += 1;
        floor.observer.see(&DaemonEvent::Rework { part: &waiting.entry.name, error });
        Ok(true)
    }

    /// Takes the part into assembly; `None` when somebody was faster or its last worker still lives.
    fn claim(&mut self, waiting: &Waiting) -> Outcome<Option<Claimed>> {
        let floor = self.floor;
        let claimed = {
            let _moves = MovesLock::acquire(&floor.layout)?;
            Claimed::take(Mover::real(&floor.layout), &waiting.entry)?
        };
        let Some(claimed) = claimed else {
            self.intake.hold(waiting, Utc::now() + HOLD);
            return Ok(None);
        };
        let (work, name) = (floor.layout.work(&claimed.part.name), &claimed.part.name);
        if floor.options.mode == Mode::Once {
            self.only = Some(name.base().to_owned());
        }
        if let Admission::Good { about, .. } = &waiting.admission {
            let payload = json!({
                "forged_dir": work, "alloy_name": about.name, "source_model": about.source, "stages": about.stages,
                "attempt": claimed.attempt.attempt, "retries": claimed.part.retries,
            });
            floor.events.tell("forge/started", Some(&name.file_name()), payload);
        }
        floor.observer.see(&DaemonEvent::Claimed { part: name, attempt: &claimed.attempt, work: &work });
        Ok(Some(claimed))
    }

    /// Builds, inspects, ships or sends back, in a slot of its own; the bell rings when the slot is free.
    fn build<'s>(&mut self, scope: &'s Scope<'s, '_>, claimed: Claimed)
    where
        'a: 's,
    {
        self.running += 1;
        let slot = (0..).find(|slot| !self.busy.contains(slot)).unwrap_or(0);
        self.busy.insert(slot);
        let (floor, bell) = (self.floor, self.bell.clone());
        scope.spawn(move || {
            let work = AssertUnwindSafe(|| {
                let attempted = build::build(floor, &claimed, slot);
                match settle::settle(floor, &claimed, &attempted) {
                    // No room for a sidecar: that is what the reserve is for.
                    Err(fault) if fault.class == FaultClass::Resource && floor.reserve.give_up() => {
                        floor.trouble(&fault);
                        settle::settle(floor, &claimed, &attempted)
                    }
                    settled => settled,
                }
            });
            let ending = match catch_unwind(work) {
                Ok(Ok(ending)) => ending,
                Ok(Err(fault)) => {
                    floor.trouble(&fault);
                    Ending::Unsettled
                }
                Err(_) => Ending::Unsettled,
            };
            drop(claimed);
            let _ = bell.send(Ring::Done(slot, ending));
        });
    }

    fn recover(&mut self) -> Outcome<()> {
        let floor = self.floor;
        let seen = recovery::run(Mover::real(&floor.layout), floor.options.config.max_retries, false)?;
        // Parts in our own slots hold their claims and look like orphans: only a surplus is one.
        let living = seen.iter().filter(|r| r.action == table::Action::Leave).count();
        self.orphans = living > self.running;
        for recovered in seen.iter().filter(|r| r.action != table::Action::Leave) {
            self.summary.recovered += 1;
            self.is_stale = true;
            floor.observer.see(&DaemonEvent::Recovered(recovered));
        }
        Ok(())
    }

    fn scan(&mut self) -> Outcome<()> {
        self.watch.answered();
        self.is_stale = false;
        let (floor, began) = (self.floor, Instant::now());
        let scanned = self.intake.scan(&floor.layout, Utc::now());
        self.last_scan = Instant::now();
        self.scan_took = self.last_scan - began;
        let ignored = scanned.inspect_err(|_| self.is_stale = true)?;
        for ignored in ignored {
            floor.events.tell("line/ignored", None, json!({"file": ignored.file, "reason": ignored.reason}));
            floor.observer.see(&DaemonEvent::Ignored { file: &ignored.file, reason: &ignored.reason });
        }
        Ok(())
    }

    /// How long until intake is to be looked at; `None` while it is as the last look found it. While parts are ready and
    /// more keep coming, looks take a quarter of the time at most: a long queue is not read again for every part.
    fn scan_in(&self) -> Option<Duration> {
        if !self.is_stale && !self.intake.is_unsettled() {
            return None;
        }
        let rest = if self.intake.is_empty() { Duration::ZERO } else { 3 * self.scan_took };
        Some(rest.saturating_sub(self.last_scan.elapsed()))
    }

    fn has_room(&self) -> bool {
        let begun = self.summary.ended() + self.running as u32;
        let wanted = match self.floor.options.mode {
            Mode::Forever | Mode::Drain => true,
            Mode::Once => begun == 0,
            Mode::MaxParts(n) => begun < n,
        };
        wanted
            && self.paused.is_none()
            && self.running < self.floor.options.config.slots.max(1)
            && !self.floor.options.stop.is_requested()
    }

    /// Asked only while no slot is busy.
    fn is_over(&self) -> bool {
        if self.floor.options.stop.is_requested() {
            return true;
        }
        let is_empty = self.intake.is_empty() && !self.is_stale;
        match self.floor.options.mode {
            Mode::Forever => false,
            Mode::Once => match &self.only {
                Some(base) => self.summary.ended() > 0 || (!self.is_stale && !self.intake.holds(base)),
                None => self.summary.ended() > 0 || is_empty,
            },
            Mode::Drain => is_empty && !self.orphans,
            Mode::MaxParts(n) => self.summary.ended() >= n,
        }
    }

    /// Until the bell rings, something is due, or it is time for a look anyway.
    fn wait(&mut self, failures: u32) {
        self.tell_state();
        let watchdog = self.floor.options.notify.patience().unwrap_or(Duration::MAX);
        let patience = self.patience(failures).min(watchdog);
        if self.running == 0 && patience > Duration::from_millis(20) {
            self.floor.observer.see(&DaemonEvent::Idle);
        }
        // Never disconnected: the supervisor holds a sender itself.
        if let Ok(ring) = self.rings.recv_timeout(patience) {
            self.answer(ring);
        }
        while let Ok(ring) = self.rings.try_recv() {
            self.answer(ring);
        }
        self.is_stale |= self.last_scan.elapsed() >= self.floor.options.config.rescan;
    }

    fn patience(&self, failures: u32) -> Duration {
        let rescan = self.floor.options.config.rescan.saturating_sub(self.last_scan.elapsed());
        if failures > 0 {
            return Duration::from_secs(1);
        }
        let scan = if self.is_stale && self.has_room() { self.scan_in() } else { None };
        let due = if self.has_room() { self.intake.due_in(Utc::now()) } else { None };
        let orphans = self.orphans.then_some(Duration::from_millis(500));
        // A moment late rather than a moment early: a look just before the time finds nothing.
        [due.map(|d| d + Duration::from_millis(2)), orphans, scan].into_iter().flatten().fold(rescan, Duration::min)
    }

    fn answer(&mut self, ring: Ring) {
        match ring {
            Ring::Intake => self.is_stale = true,
            Ring::Stop => {}
            Ring::Done(slot, ending) => {
                self.running -= 1;
                self.busy.remove(&slot);
                // These stand in intake again, or nobody knows where.
                self.is_stale |= !matches!(ending, Ending::Finished | Ending::Rework);
                match ending {
                    Ending::Finished => self.summary.finished += 1,
                    Ending::Rework => self.summary.rework += 1,
                    Ending::Retried => self.summary.retried += 1,
                    Ending::Returned => self.summary.returned += 1,
                    Ending::Unsettled => self.orphans = true,
                }
                if self.running == 0 {
                    self.floor.heart.update(|beat| {
                        beat.clear_part();
                        beat.state = State::Idle;
                    });
                }
            }
        }
    }
}

impl Floor<'_> {
    /// A part that fills the disk takes the line with it: nothing starts below the reserve.
    fn check_space(&self) -> Outcome<()> {
        let (root, reserve) = (self.layout.root(), self.options.config.min_free);
        // An unanswered question is no reason to stand still.
        let free = || free_bytes(root).unwrap_or(reserve);
        if free() < reserve {
            self.caretaker.relieve(reserve, &|| self.options.stop.is_requested());
        }
        if free() < reserve {
            return Err(Fault::resource(format!("less than {reserve} free at {}: nothing is started", root.display()))
                .hint("free some space, or lower storage.hot.min_free_gb in factory_node.toml"));
        }
        Ok(())
    }

    fn trouble(&self, fault: &Fault) {
        self.events.tell("line/trouble", None, json!({"class": fault.class.as_str(), "error": fault.one_line()}));
        self.observer.see(&DaemonEvent::Trouble(fault));
    }
}
