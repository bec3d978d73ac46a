//! `factory_node.toml`: what the operator says about this machine. Each key is read into its type or refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use toml::de::DeTable;

use super::error::NodeError;
use super::filesystem::FilesystemKind;
use super::reader::{Document, Section};
use crate::fault::FaultClass;
use crate::units::Bytes;

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Forge,
    Ship,
    Both,
}

/// The disk the line works on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HotTier {
    pub path: Option<PathBuf>,
    /// No part starts when fewer bytes than this are free.
    pub min_free: Bytes,
}

/// A slow, large disk. Listed in order of preference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColdTier {
    pub name: String,
    pub path: PathBuf,
    pub fs_type: Option<String>,
    /// True: nothing is written unless a filesystem of its own is mounted there.
    pub mount: bool,
    /// What must be mounted there: `UUID=…`, `LABEL=…`, `/dev/…`, or a source as `server:/export`.
    pub device: Option<String>,
    /// Left free on this disk.
    pub min_free: Bytes,
    pub write_mb_per_sec: Option<u64>,
    pub read_mb_per_sec: Option<u64>,
    pub purpose: Vec<ColdPurpose>,
}

/// What is kept, for how long, and what may lie where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StorageRules {
    /// Days the work folder of a part in rework is kept; `None`: for ever.
    pub rework_keep_days: Option<u64>,
    /// Days the work folder of a finished part is kept; `None`: for ever.
    pub finished_keep_days: Option<u64>,
    /// What one source cache may hold; `None`: as much as there is.
    pub source_cache: Option<Bytes>,
    /// Per cent of the hot disk in use above which the line makes room.
    pub gc_threshold_pct: f64,
    /// Unfit filesystems the operator answers for.
    pub allow_unfit_filesystems: Vec<FilesystemKind>,
}

impl Default for StorageRules {
    fn default() -> Self {
        StorageRules {
            rework_keep_days: Some(30),
            finished_keep_days: Some(7),
            source_cache: None,
            gc_threshold_pct: 85.0,
            allow_unfit_filesystems: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColdPurpose {
    WorkArchive,
    PublishedBackup,
    SourceCache,
}

/// Another machine or a hub that holds models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkTier {
    pub name: String,
    pub kind: NetworkKind,
    pub endpoint: Option<String>,
    pub read_mb_per_sec: Option<u64>,
    pub purpose: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKind {
    Hf,
    Peer,
}

/// Which device the passes run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU when this build can use one and one is there, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl FromStr for DeviceChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| "one of auto, cpu, cuda:0, cuda:1, …".to_owned()),
        }
    }
}

/// How a worker's reads and writes stand against those of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoPriority {
    /// As the daemon's own.
    #[default]
    None,
    /// The lowest of the ordinary ones.
    BestEffort,
    /// Only when nobody else wants the disk.
    Idle,
}

impl IoPriority {
    fn named(name: &str) -> Option<Self> {
        match name {
            "none" => Some(IoPriority::None),
            "best-effort" => Some(IoPriority::BestEffort),
            "idle" => Some(IoPriority::Idle),
            _ => None,
        }
    }

    /// Gives it to a process; a kernel that knows no such priorities leaves everything as it is.
    pub fn give_to(self, pid: rustix::process::Pid) {
        const PROCESS: libc::c_int = 1;
        const CLASS_SHIFT: libc::c_int = 13;
        let priority: libc::c_int = match self {
            IoPriority::None => return,
            IoPriority::BestEffort => (2 << CLASS_SHIFT) | 7,
            IoPriority::Idle => 3 << CLASS_SHIFT,
        };
        // SAFETY: the call takes three numbers and touches no memory of this process.
        unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, pid.as_raw_nonzero().get(), priority) };
    }
}

/// What is done about faults of one class; what is not said has a default of its class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RetryBudget {
    /// Further attempts at one stage.
    pub most: Option<u32>,
    /// Wait before the first; doubled for each further one.
    pub backoff: Option<Duration>,
    /// No wait is longer.
    pub longest: Option<Duration>,
}

/// How parts are built here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forge {
    /// Attempts after the first before a part goes to rework.
    pub max_retries: u32,
    /// A worker that reports nothing for this long is taken for hung.
    #[serde(serialize_with = "as_seconds", rename = "stall_seconds")]
    pub stall: Duration,
    /// Wait before the first retry; doubled for each further one.
    #[serde(serialize_with = "as_seconds", rename = "retry_backoff_seconds")]
    pub retry_backoff: Duration,
    /// A full look at intake at least this often, whatever inotify says.
    #[serde(serialize_with = "as_seconds", rename = "rescan_seconds")]
    pub rescan: Duration,
    /// Between asking a worker to end and killing it.
    #[serde(serialize_with = "as_seconds", rename = "stop_grace_seconds")]
    pub stop_grace: Duration,
    /// A part that does not fit at the moment lets others pass for this long; then the line waits for it.
    #[serde(serialize_with = "as_seconds", rename = "patience_seconds")]
    pub patience: Duration,
    /// A long stage can go on from where it was at most this much work ago, or one block, whichever is more.
    #[serde(serialize_with = "as_seconds", rename = "savepoint_seconds")]
    pub savepoint: Duration,
    /// What one pass may use of this machine's memory.
    pub memory_budget: Bytes,
    /// What a worker may allocate before it is ended.
    pub worker_memory: Bytes,
    /// Niceness of workers, 0 to 19, where the daemon's own is not higher.
    pub nice: u8,
    pub io_priority: IoPriority,
    pub device: DeviceChoice,
    pub threads: usize,
    /// Parts built at the same time.
    pub slots: usize,
    /// Longest log of one attempt: a longer one is cut down to its end.
    pub worker_log: Bytes,
}

fn as_seconds<S: serde::Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(duration.as_secs_f64())
}

/// The nodes together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grid {
    pub coordinator: Option<String>,
    #[serde(serialize_with = "as_seconds", rename = "heartbeat_interval_seconds")]
    pub heartbeat_interval: Duration,
}

/// The file as read: what it does not say is `None` and is filled from the machine.
#[derive(Debug, Default)]
pub(super) struct NodeFile {
    pub name: Option<String>,
    pub hostname: Option<String>,
    pub roles: Vec<Role>,
    pub gpu_count: Option<u64>,
    pub gpu_vram: Option<Bytes>,
    pub hot_path: Option<PathBuf>,
    pub min_free: Option<Bytes>,
    pub cold: Vec<ColdTier>,
    pub network: Vec<NetworkTier>,
    pub rules: StorageRules,
    pub max_retries: Option<u64>,
    pub stall: Option<Duration>,
    pub retry_backoff: Option<Duration>,
    pub rescan: Option<Duration>,
    pub stop_grace: Option<Duration>,
    pub patience: Option<Duration>,
    pub savepoint: Option<Duration>,
    pub memory_budget: Option<Bytes>,
    pub worker_memory: Option<Bytes>,
    pub nice: Option<u64>,
    pub io_priority: Option<IoPriority>,
    pub retry: BTreeMap<FaultClass, RetryBudget>,
    pub device: DeviceChoice,
    pub threads: Option<u64>,
    pub slots: Option<u64>,
    pub worker_log: Option<Bytes>,
    pub coordinator: Option<String>,
    pub heartbeat_interval: Option<Duration>,
    pub protocol: Option<String>,
    pub sources: BTreeMap<String, PathBuf>,
    pub safety_roots: Option<Vec<PathBuf>>,
}

impl NodeFile {
    /// Parses the text of `file`; nothing is looked up on this machine except that the hot directory exists.
    pub fn parse(file: &Path, text: &str) -> Result<NodeFile, NodeError> {
        let doc = Document { file, text };
        let table = DeTable::parse(text).map_err(|error| NodeError::Syntax {
            at: doc.place(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let mut out = NodeFile::default();
        let mut root = Section::root(&doc, table.get_ref());
        out.read_node(root.section("node")?)?;
        out.read_storage(root.section("storage")?)?;
        out.read_forge(root.section("forge")?)?;
        out.read_retry(root.section("retry")?)?;
        out.read_grid(root.section("grid")?)?;
        out.read_protocol(root.section("protocol")?)?;
        out.sources = root.section("sources")?.paths()?.into_iter().collect();
        let mut safety = root.section("safety")?;
        out.safety_roots = safety.path_list("roots")?;
        safety.finish()?;
        root.finish()?;
        Ok(out)
    }

    fn read_node(&mut self, mut node: Section<'_>) -> Result<(), NodeError> {
        self.name = node.text("name")?;
        self.hostname = node.text("hostname")?;
        for role in node.texts("roles")? {
            self.roles.push(match role.as_str() {
                "forge" => Role::Forge,
                "ship" => Role::Ship,
                "both" => Role::Both,
                _ => return node.out_of_range("roles", format!("{role:?}"), "forge, ship or both"),
            });
        }
        self.gpu_count = node.whole("gpu_count", 0..=64)?;
        self.gpu_vram = node.gigabytes("gpu_vram_gb", 0.0, 4096.0)?;
        node.finish()
    }

    fn read_storage(&mut self, mut storage: Section<'_>) -> Result<(), NodeError> {
        let mut hot = storage.section("hot")?;
        self.hot_path = hot.path("path")?;
        self.min_free = hot.gigabytes("min_free_gb", 0.0, 1_000_000.0)?;
        if let Some(path) = self.hot_path.as_ref().filter(|path| !path.is_dir()) {
            let (at, path) = (hot.place_of("path"), path.clone());
            return Err(NodeError::NoDirectory { at, key: "storage.hot.path".into(), path });
        }
        hot.finish()?;
        self.read_rules(&mut storage)?;
        for (at, mut cold) in storage.sections("cold")? {
            let missing =
                |key: &str| NodeError::MissingKey { at: at.clone(), table: "storage.cold".into(), key: key.to_owned() };
            let tier = ColdTier {
                name: cold.text("name")?.ok_or_else(|| missing("name"))?,
                path: cold.path("path")?.ok_or_else(|| missing("path"))?,
                fs_type: cold.text("fs_type")?,
                mount: cold.flag("mount")?.unwrap_or(false),
                device: cold.text("device")?,
                min_free: cold.gigabytes("min_free_gb", 0.0, 1_000_000.0)?.unwrap_or_default(),
                write_mb_per_sec: cold.whole("write_mb_per_sec", 1..=1_000_000)?,
                read_mb_per_sec: cold.whole("read_mb_per_sec", 1..=1_000_000)?,
                purpose: cold_purposes(&mut cold)?,
            };
            cold.finish()?;
            self.cold.push(tier);
        }
        for (at, mut network) in storage.sections("network")? {
            let missing = |key: &str| NodeError::MissingKey {
                at: at.clone(),
                table: "storage.network".into(),
                key: key.to_owned(),
            };
            let name = network.text("name")?.ok_or_else(|| missing("name"))?;
            let kind = match network.text("kind")?.ok_or_else(|| missing("kind"))?.as_str() {
                "hf" => NetworkKind::Hf,
                "peer" => NetworkKind::Peer,
                other => return network.out_of_range("kind", format!("{other:?}"), "hf or peer"),
            };
            let tier = NetworkTier {
                name,
                kind,
                endpoint: network.text("endpoint")?,
                read_mb_per_sec: network.whole("read_mb_per_sec", 1..=1_000_000)?,
                purpose: network.texts("purpose")?,
            };
            if tier.kind == NetworkKind::Peer && tier.endpoint.is_none() {
                return Err(missing("endpoint"));
            }
            network.finish()?;
            self.network.push(tier);
        }
        storage.finish()
    }

    fn read_rules(&mut self, storage: &mut Section<'_>) -> Result<(), NodeError> {
        // 0 days is "for ever": nobody means "at once" by it without losing something.
        let kept = |days: Option<u64>, default| days.map_or(default, |days| Some(days).filter(|&days| days > 0));
        let usual = StorageRules::default();
        let rework = storage.whole("rework_keep_days", 0..=100_000)?;
        let finished = storage.whole("finished_keep_days", 0..=100_000)?;
        self.rules = StorageRules {
            rework_keep_days: kept(rework, usual.rework_keep_days),
            finished_keep_days: kept(finished, usual.finished_keep_days),
            source_cache: storage.gigabytes("source_cache_gb", 0.0, 1_000_000.0)?,
            gc_threshold_pct: storage.number("gc_threshold_pct", 0.0, 100.0)?.unwrap_or(usual.gc_threshold_pct),
            allow_unfit_filesystems: Vec::new(),
        };
        for name in storage.texts("allow_unfit_filesystems")? {
            match FilesystemKind::named(&name) {
                Some(kind) => self.rules.allow_unfit_filesystems.push(kind),
                None => {
                    let wanted = "9p (drvfs), smb (cifs) or ntfs (ntfs-3g)";
                    return storage.out_of_range("allow_unfit_filesystems", format!("{name:?}"), wanted);
                }
            }
        }
        Ok(())
    }

    fn read_forge(&mut self, mut forge: Section<'_>) -> Result<(), NodeError> {
        const DAY: f64 = 86_400.0;
        self.max_retries = forge.whole("max_retries", 0..=100)?;
        self.stall = forge.seconds("stall_seconds", 1.0, 7.0 * DAY)?;
        self.retry_backoff = forge.seconds("retry_backoff_seconds", 0.0, DAY)?;
        self.rescan = forge.seconds("rescan_seconds", 0.05, DAY)?;
        self.stop_grace = forge.seconds("stop_grace_seconds", 0.0, DAY)?;
        self.savepoint = forge.seconds("savepoint_seconds", 0.0, DAY)?;
        self.patience = forge.seconds("patience_seconds", 0.0, 30.0 * DAY)?;
        self.memory_budget = forge.gigabytes("memory_budget_gb", 0.05, 100_000.0)?;
        self.worker_memory = forge.gigabytes("worker_memory_gb", 0.05, 100_000.0)?;
        self.nice = forge.whole("nice", 0..=19)?;
        if let Some(text) = forge.text("io_priority")? {
            match IoPriority::named(&text) {
                Some(priority) => self.io_priority = Some(priority),
                None => return forge.out_of_range("io_priority", format!("{text:?}"), "none, best-effort or idle"),
            }
        }
        if let Some(text) = forge.text("device")? {
            match text.parse() {
                Ok(device) => self.device = device,
                Err(wanted) => return forge.out_of_range("device", format!("{text:?}"), wanted),
            }
        }
        self.slots = forge.whole("slots", 1..=64)?;
        self.threads = forge.whole("threads", 0..=4096)?.filter(|&threads| threads > 0);
        self.worker_log = forge.whole("worker_log_mb", 1..=1_000_000)?.map(Bytes::from_mb);
        forge.finish()
    }

    /// `[retry.infra]` and the like: what of a class is tried again, and how soon.
    fn read_retry(&mut self, mut retry: Section<'_>) -> Result<(), NodeError> {
        const DAY: f64 = 86_400.0;
        for class in FaultClass::ALL {
            let mut section = retry.section(class.as_str())?;
            let budget = RetryBudget {
                most: section.whole("max_retries", 0..=100)?.map(|most| most as u32),
                backoff: section.seconds("backoff_seconds", 0.0, DAY)?,
                longest: section.seconds("longest_seconds", 0.0, 7.0 * DAY)?,
            };
            section.finish()?;
            self.retry.insert(class, budget);
        }
        retry.finish()
    }

    fn read_grid(&mut self, mut grid: Section<'_>) -> Result<(), NodeError> {
        self.coordinator = grid.text("coordinator")?;
        self.heartbeat_interval = grid.seconds("heartbeat_interval_seconds", 0.1, 3600.0)?;
        grid.finish()
    }

    fn read_protocol(&mut self, mut protocol: Section<'_>) -> Result<(), NodeError> {
        if let Some(version) = protocol.text("version")? {
            let parts: Vec<Option<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
            match parts.as_slice() {
                [Some(0 | 1)] | [Some(0 | 1), Some(_)] => self.protocol = Some(version),
                _ => {
                    return protocol.out_of_range(
                        "version",
                        format!("{version:?}"),
                        "0.x or 1.x (this build speaks 1)",
                    );
                }
            }
        }
        protocol.finish()
    }
}

fn cold_purposes(cold: &mut Section<'_>) -> Result<Vec<ColdPurpose>, NodeError> {
    let mut out = Vec::new();
    for purpose in cold.texts("purpose")? {
        out.push(match purpose.as_str() {
            "work-archive" => ColdPurpose::WorkArchive,
            "published-backup" => ColdPurpose::PublishedBackup,
            "source-cache" => ColdPurpose::SourceCache,
            _ => {
                let wanted = "work-archive, published-backup or source-cache";
                return cold.out_of_range("purpose", format!("{purpose:?}"), wanted);
            }
        });
    }
    Ok(out)
}
