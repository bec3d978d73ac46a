//! This machine: what its operator says about it (`factory_node.toml`), what it says about itself, where inputs lie.
//!
//! Enters: the line's root. Leaves: a [`Node`] with every value in its type, and a [`Resolver`] that turns the names a
//! recipe uses into files. Never: tensors, candle, the network.

mod config;
mod detect;
mod error;
mod filesystem;
mod mounts;
mod peer;
mod process;
mod reach;
mod reader;
mod resolve;
mod room;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub use config::{
    ColdPurpose, ColdTier, DeviceChoice, Forge, Grid, HotTier, IoPriority, NetworkKind, NetworkTier, RetryBudget, Role,
    StorageRules,
};
pub use detect::{Gpu, gpu_driver};
pub use error::{NodeError, Place};
pub use filesystem::{Concern, FilesystemKind, free_bytes, total_bytes};
pub use mounts::{Mount, Mounts, device_of, is_device};
pub use peer::{LINE_CACHE, NOT_ASKED};
pub use process::{memory_field, memory_of};
pub use reader::nearest;
pub use resolve::{Found, FoundBy, HubCache, MOST_TEXT, Resolver};
pub use room::Room;

use crate::fault::{Fault, FaultClass, Outcome};
use crate::units::{Bytes, read_at_most};

/// File name of the description of a node, under the line's root.
pub const NODE_FILE: &str = "factory_node.toml";

const MOST_NODE_FILE: Bytes = Bytes::from_mb(1);

/// This machine, as the line uses it.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// Display name, in heartbeats and events.
    pub name: String,
    pub hostname: String,
    pub roles: Vec<Role>,
    pub gpus: Vec<Gpu>,
    pub ram: Bytes,
    pub hot: HotTier,
    pub cold: Vec<ColdTier>,
    pub network: Vec<NetworkTier>,
    /// What is kept, and for how long.
    pub storage: StorageRules,
    pub forge: Forge,
    /// What is tried again, by class of fault; a class that is not here has its defaults.
    pub retry: BTreeMap<FaultClass, RetryBudget>,
    pub grid: Grid,
    /// Protocol version the file was written for; `None` when it says nothing.
    pub protocol: Option<String>,
    /// Models by name.
    pub sources: BTreeMap<String, PathBuf>,
    /// Folders that recipes may name paths in, besides the line's root and the places named above; `None`: any path.
    pub safety_roots: Option<Vec<PathBuf>>,
    /// The file that was read; `None` when everything was detected.
    pub file: Option<PathBuf>,
    /// What was read and accepted but does not match this machine or has no effect in this version.
    pub notes: Vec<String>,
}

impl Node {
    /// Reads `<root>/factory_node.toml`; where it is missing or silent, asks the machine.
    ///
    /// Errors: a resource fault that names file, line, column and key.
    pub fn load(root: &Path) -> Outcome<Node> {
        Ok(Self::read(root)?)
    }

    /// As [`Node::load`], with the room's own error.
    pub fn read(root: &Path) -> Result<Node, NodeError> {
        let path = root.join(NODE_FILE);
        let not_text = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        match read_at_most(&path, MOST_NODE_FILE).and_then(|bytes| String::from_utf8(bytes).map_err(not_text)) {
            Ok(text) => Self::described(config::NodeFile::parse(&path, &text)?, Some(path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Self::described(config::NodeFile::default(), None)
            }
            Err(source) => Err(NodeError::Read { path, source }),
        }
    }

    /// What the machine says of itself, whatever stands in a file.
    pub fn detected() -> Result<Node, NodeError> {
        Self::described(config::NodeFile::default(), None)
    }

    /// Names and paths of the disks that the file describes; `hot` is the one the line works on.
    pub fn tiers(&self) -> Vec<(String, PathBuf)> {
        let hot = self.hot.path.as_ref().map(|path| ("hot".to_owned(), path.clone()));
        hot.into_iter().chain(self.cold.iter().map(|tier| (tier.name.clone(), tier.path.clone()))).collect()
    }

    /// Whether `text` can stand in a node's description at `path`. Asks this machine only whether named folders exist.
    pub fn check_text(path: &Path, text: &str) -> Result<(), NodeError> {
        config::NodeFile::parse(path, text).map(drop)
    }

    fn described(said: config::NodeFile, file: Option<PathBuf>) -> Result<Node, NodeError> {
        let mut notes = Vec::new();
        let ram = match (detect::memory(), said.memory_budget) {
            (Ok(ram), _) => ram,
            (Err(_), Some(budget)) => budget,
            (Err(message), None) => return Err(NodeError::Detection { message }),
        };
        let hostname = said.hostname.unwrap_or_else(detect::hostname);
        let gpus = declared_or_detected(said.gpu_count, said.gpu_vram, detect::gpus(), &mut notes);
        for tier in &said.cold {
            note_cold_tier(tier, &mut notes);
        }
        notes.extend(said.network.iter().filter_map(peer::note));
        if let Some(coordinator) = &said.coordinator {
            notes.push(format!("grid.coordinator {coordinator:?}: this version works alone"));
        }
        if let Some(budget) = said.memory_budget.filter(|&budget| budget > ram) {
            notes.push(format!("forge.memory_budget_gb is {budget}, more than the {ram} this machine has"));
        }
        let mut node = Node {
            name: said.name.unwrap_or_else(|| hostname.clone()),
            hostname,
            roles: if said.roles.is_empty() { vec![Role::Forge] } else { said.roles },
            gpus,
            ram,
            hot: HotTier { path: said.hot_path, min_free: said.min_free.unwrap_or_default() },
            cold: said.cold,
            network: said.network,
            storage: said.rules,
            forge: Forge {
                max_retries: said.max_retries.unwrap_or(3) as u32,
                stall: said.stall.unwrap_or(Duration::from_secs(600)),
                retry_backoff: said.retry_backoff.unwrap_or(Duration::from_secs(10)),
                rescan: said.rescan.unwrap_or(Duration::from_secs(5)),
                stop_grace: said.stop_grace.unwrap_or(Duration::from_secs(20)),
                savepoint: said.savepoint.unwrap_or(Duration::from_secs(10)),
                patience: said.patience.unwrap_or(Duration::from_secs(3600)),
                memory_budget: said.memory_budget.unwrap_or(Bytes(ram.0 / 10 * 6)),
                worker_memory: said.worker_memory.unwrap_or(Bytes(ram.0 / 100 * 95)),
                nice: said.nice.unwrap_or(5) as u8,
                io_priority: said.io_priority.unwrap_or_default(),
                device: said.device,
                threads: said.threads.map_or_else(detect::threads, |threads| threads as usize),
                slots: 0,
                worker_log: said.worker_log.unwrap_or(Bytes::from_mb(64)),
            },
            retry: said.retry,
            grid: Grid {
                coordinator: said.coordinator,
                heartbeat_interval: said.heartbeat_interval.unwrap_or(Duration::from_secs(30)),
            },
            protocol: said.protocol,
            sources: said.sources,
            safety_roots: said.safety_roots,
            file,
            notes,
        };
        // One part for each device, unless somebody wants more.
        node.forge.slots = said.slots.map_or_else(|| node.devices().len(), |slots| slots as usize);
        Ok(node)
    }

    /// The devices that slots are given in turn: every GPU when any will do and this build can use them, else the one that is
    /// named.
    pub fn devices(&self) -> Vec<DeviceChoice> {
        match self.forge.device {
            DeviceChoice::Auto if cfg!(feature = "cuda") && self.gpus.iter().any(|gpu| gpu.detected) => {
                self.gpus.iter().map(|gpu| DeviceChoice::Cuda(gpu.index)).collect()
            }
            named => vec![named],
        }
    }

    /// True when this node builds parts (roles `forge` or `both`).
    pub fn forges(&self) -> bool {
        self.roles.iter().any(|role| matches!(role, Role::Forge | Role::Both))
    }

    /// Whether `needed` bytes fit above the reserve where `path` lies, now or ever.
    ///
    /// # Errors
    /// A resource fault when the whole filesystem is too small.
    pub fn space_for(&self, path: &Path, needed: Bytes) -> Outcome<Space> {
        let asked = |error: std::io::Error| Fault::io(format!("ask for the free space of {}", path.display()), error);
        let free = free_bytes(path).map_err(asked)?.saturating_sub(self.hot.min_free);
        if needed <= free {
            return Ok(Space::Free);
        }
        let all = filesystem::total_bytes(path).map_err(asked)?.saturating_sub(self.hot.min_free);
        if needed > all {
            let place = path.display();
            return Err(Fault::resource(format!("{needed} are needed at {place}, the whole filesystem holds {all}"))
                .hint("build on a larger disk, or lower storage.hot.min_free_gb in factory_node.toml"));
        }
        Ok(Space::Later { free })
    }
}

/// Room on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Free,
    /// It would fit if others made room.
    Later {
        free: Bytes,
    },
}

fn declared_or_detected(count: Option<u64>, vram: Option<Bytes>, found: Vec<Gpu>, notes: &mut Vec<String>) -> Vec<Gpu> {
    let Some(count) = count else { return found };
    if found.is_empty() {
        let declared =
            |index| Gpu { index, name: "declared GPU".into(), memory: vram.unwrap_or_default(), detected: false };
        if count > 0 {
            notes.push(format!("node.gpu_count is {count}, but no NVIDIA driver answers here"));
        }
        return (0..count as usize).map(declared).collect();
    }
    if found.len() != count as usize {
        notes.push(format!("node.gpu_count is {count}, the driver reports {}", found.len()));
    }
    found.into_iter().take(count as usize).collect()
}

fn note_cold_tier(tier: &ColdTier, notes: &mut Vec<String>) {
    let name = &tier.name;
    if !tier.path.is_dir() {
        notes.push(format!("storage.cold {name:?}: {} is not there (not mounted?)", tier.path.display()));
        return;
    }
    let Ok(kind) = FilesystemKind::of(&tier.path) else { return };
    if let Some(said) = tier.fs_type.as_deref().filter(|&said| said != kind.as_str() && said != "unknown") {
        let agrees = matches!((said, kind), ("ext3" | "ext2", FilesystemKind::Ext) | ("drvfs", FilesystemKind::NineP));
        if !agrees {
            notes.push(format!("storage.cold {name:?}: fs_type says {said}, the kernel says {}", kind.as_str()));
        }
    }
    if let Concern::Unfit(why) | Concern::Discouraged(why) = kind.concern() {
        notes.push(format!("storage.cold {name:?}: {why}"));
    }
}
