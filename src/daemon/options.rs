//! What a supervisor is told, and what it tells at the end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;

use super::doorbell::Ring;
use super::limits::{ControlGroups, Limits};
use super::notify::Notifier;
use crate::fault::{Fault, FaultClass, Outcome};
use crate::node::{DeviceChoice, Node, RetryBudget};
use crate::units::Bytes;

/// How long a supervisor works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Until it is stopped.
    Forever,
    /// One part, its retries included; none when intake is empty.
    Once,
    /// Until intake and assembly are empty; waits for back-offs.
    Drain,
    /// Until this many parts reached finished or rework.
    MaxParts(u32),
}

/// Settings of a supervisor; [`DaemonConfig::from_node`] takes them from `factory_node.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct DaemonConfig {
    /// Name of the node in events and heartbeat.
    pub host: String,
    /// Further attempts at a stage after faults of the machine, and attempts after crashes nobody wrote down.
    pub max_retries: u32,
    /// Other budgets, by class of fault.
    pub retry: BTreeMap<FaultClass, RetryBudget>,
    /// A worker that says nothing for this long is taken for hung.
    pub stall: Duration,
    /// Wait before the first retry; doubled for each further one, at most an hour.
    pub backoff: Duration,
    /// A full look at intake at least this often.
    pub rescan: Duration,
    pub heartbeat: Duration,
    /// Between asking a worker to end and killing it.
    pub grace: Duration,
    /// Parts built at the same time.
    pub slots: usize,
    /// What slots compute on, in turn; one device is the worker's own affair.
    pub devices: Vec<DeviceChoice>,
    /// Nothing is started while less than this is free under the root: moves and logs need room.
    pub min_free: Bytes,
    pub limits: Limits,
    /// A part that does not fit at the moment lets others pass for this long.
    pub patience: Duration,
    /// A worker's log that is longer is cut down to its end.
    pub worker_log: Bytes,
    /// Names and paths of the disks whose free space the metrics tell.
    pub tiers: Vec<(String, PathBuf)>,
}

/// How often, and how soon, a part is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Budget {
    pub most: u32,
    backoff: Duration,
    longest: Duration,
}

impl Budget {
    /// Wait before the next attempt when `spent` have failed, a quarter more or less: parts that failed together do not
    /// come back together.
    pub fn delay(&self, spent: u32) -> Duration {
        let longest = self.longest.max(self.backoff);
        let plain = self.backoff.saturating_mul(1 << spent.saturating_sub(1).min(16)).min(longest);
        plain.mul_f64(0.75 + 0.5 * random_share())
    }
}

/// Between 0 and 1; the middle where the system has no random numbers.
fn random_share() -> f64 {
    let mut bytes = [0u8; 4];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_or(0.5, |()| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

impl DaemonConfig {
    pub fn from_node(node: &Node) -> Self {
        DaemonConfig {
            host: node.name.clone(),
            max_retries: node.forge.max_retries,
            stall: node.forge.stall,
            backoff: node.forge.retry_backoff,
            rescan: node.forge.rescan,
            heartbeat: node.grid.heartbeat_interval,
            grace: node.forge.stop_grace,
            slots: node.forge.slots,
            devices: node.devices(),
            min_free: node.hot.min_free,
            retry: node.retry.clone(),
            patience: node.forge.patience,
            limits: Limits {
                nice: node.forge.nice,
                io_priority: node.forge.io_priority,
                memory: Some(node.forge.worker_memory),
                control_groups: ControlGroups::default(),
            },
            worker_log: node.forge.worker_log,
            tiers: node.tiers(),
        }
    }

    /// Longest time a part can be told to wait, of all classes.
    pub(crate) fn longest_wait(&self) -> Duration {
        let classes = FaultClass::ALL.iter().map(|class| self.budget(class.as_str()));
        let longest = classes.map(|budget| budget.longest.max(budget.backoff)).max().unwrap_or_default();
        longest.mul_f64(1.3).max(self.rescan.mul_f64(2.0))
    }

    /// What is done about faults of this class: without a word about it, only those of the machine are tried again.
    pub(crate) fn budget(&self, class: &str) -> Budget {
        const LONGEST: Duration = Duration::from_secs(3600);
        let class = FaultClass::ALL.into_iter().find(|known| known.as_str() == class);
        let said = class.and_then(|class| self.retry.get(&class)).copied().unwrap_or_default();
        let usual = if class.is_some_and(FaultClass::is_retryable) { self.max_retries } else { 0 };
        Budget {
            most: said.most.unwrap_or(usual),
            backoff: said.backoff.unwrap_or(self.backoff),
            longest: said.longest.unwrap_or(LONGEST),
        }
    }
}

/// Everything a supervisor needs to know.
#[derive(Clone)]
pub struct DaemonOptions {
    pub root: PathBuf,
    pub mode: Mode,
    pub config: DaemonConfig,
    pub worker: WorkerCommand,
    /// Stops the supervisor from another thread; give a clone.
    pub stop: StopHandle,
    /// Turn SIGTERM, SIGINT and SIGHUP into a stop; a second one kills the worker at once.
    pub signals: bool,
    /// Whom to tell that the line is open and that the loop turns.
    pub notify: Notifier,
}

impl DaemonOptions {
    /// The usual ones: settings of the node, workers of this very executable, signals heeded.
    pub fn new(root: impl Into<PathBuf>, mode: Mode, node: &Node) -> Outcome<Self> {
        Ok(DaemonOptions {
            root: root.into(),
            mode,
            config: DaemonConfig::from_node(node),
            worker: WorkerCommand::this_executable()?,
            stop: StopHandle::default(),
            signals: true,
            notify: Notifier::default(),
        })
    }
}

/// The program that builds a part; `--root R --part P --work W --attempt T` are appended.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    program: PathBuf,
    pub args: Vec<String>,
    /// The executable as it was at start: an upgrade while we run must not pair this supervisor with another worker.
    opened: Arc<File>,
}

impl WorkerCommand {
    /// `<this executable> worker`, resolved and opened now.
    pub fn this_executable() -> Outcome<Self> {
        let program = std::env::current_exe()
            .map_err(|e| Fault::infra("cannot find the path of this executable").caused_by(e))?;
        Self::new(program, vec!["worker".into()])
    }

    pub fn new(program: impl Into<PathBuf>, args: Vec<String>) -> Outcome<Self> {
        let program = program.into();
        let opened = File::open(&program).map_err(|e| {
            Fault::infra(format!("cannot open the worker executable {}", program.display())).caused_by(e)
        })?;
        Ok(WorkerCommand { program, args, opened: Arc::new(opened) })
    }

    /// The path to execute: the one found at start, or the open file when something else stands there now.
    pub(crate) fn path(&self) -> PathBuf {
        let is_same = match (fs::metadata(&self.program), self.opened.metadata()) {
            (Ok(now), Ok(then)) => now.ino() == then.ino() && now.dev() == then.dev(),
            _ => false,
        };
        if is_same {
            self.program.clone()
        } else {
            Path::new("/proc/self/fd").join(self.opened.as_raw_fd().to_string())
        }
    }
}

/// Asks a supervisor to stop: once for a graceful stop, twice to kill the worker at once.
#[derive(Clone, Default)]
pub struct StopHandle {
    level: Arc<AtomicU8>,
    bell: Arc<Mutex<Option<Sender<Ring>>>>,
}

impl StopHandle {
    pub fn request(&self) {
        self.level.fetch_add(1, Ordering::SeqCst);
        if let Some(bell) = self.bell.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).as_ref() {
            let _ = bell.send(Ring::Stop);
        }
    }
    pub fn is_requested(&self) -> bool {
        self.level.load(Ordering::SeqCst) > 0
    }
    pub fn is_urgent(&self) -> bool {
        self.level.load(Ordering::SeqCst) > 1
    }
    pub(crate) fn connect(&self, bell: Sender<Ring>) {
        *self.bell.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(bell);
    }
}

/// What a supervisor did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub finished: u32,
    pub rework: u32,
    /// Attempts that ended in a retry.
    pub retried: u32,
    /// Parts brought to order at start or found abandoned.
    pub recovered: u32,
    /// Parts that went back to intake because of a stop.
    pub returned: u32,
}

impl Summary {
    /// Parts that reached the end of the line.
    pub fn ended(&self) -> u32 {
        self.finished + self.rework
    }
}
