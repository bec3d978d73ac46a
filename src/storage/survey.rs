//! What an operator is shown: every tier as it is now, caches, pins, and the biggest work folders.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::copy::{self, Links};
use super::gc::Pressure;
use super::sources::{self, Cache};
use super::tier::{self, TierState};
use super::uses::{Unknown, Uses};
use super::{StorageError, pins};
use crate::line::Layout;
use crate::node::{Concern, FilesystemKind, Mount, Mounts, NOT_ASKED, NetworkKind, Node, StorageRules};
use crate::units::Bytes;

/// Everything about where things lie.
#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    pub root: PathBuf,
    pub hot: HotState,
    pub cold: Vec<TierState>,
    pub network: Vec<NetworkState>,
    pub caches: Vec<Cache>,
    pub pins: Vec<PinState>,
    /// The biggest work folders, the biggest first.
    pub work: Vec<WorkState>,
    pub work_bytes: Bytes,
    pub work_folders: usize,
    /// Files whose references are unknown.
    pub unknown: Vec<Unknown>,
    pub rules: StorageRules,
}

/// The disk the line works on.
#[derive(Clone, Debug, Serialize)]
pub struct HotState {
    pub path: PathBuf,
    #[serde(flatten)]
    pub pressure: Pressure,
    pub filesystem: Option<FilesystemKind>,
    pub mount: Option<Mount>,
    pub min_free: Bytes,
    pub concern: Option<&'static str>,
}

/// Another place that holds models.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkState {
    pub name: String,
    pub kind: NetworkKind,
    pub endpoint: Option<String>,
    /// A peer that is a directory, and is there: models are copied from it.
    pub usable: bool,
    pub note: String,
}

/// A pin, or a file in the folder of pins that is none.
#[derive(Clone, Debug, Serialize)]
pub struct PinState {
    pub file: PathBuf,
    pub subject: Option<String>,
    pub reason: Option<String>,
    pub at: Option<String>,
    pub problem: Option<String>,
}

/// A work folder.
#[derive(Clone, Debug, Serialize)]
pub struct WorkState {
    pub name: String,
    pub bytes: Bytes,
    /// Empty: nobody needs it.
    pub because: Vec<String>,
}

/// Looks at everything; writes nothing. `most`: how many work folders are shown.
pub fn survey(layout: &Layout, node: &Node, now: DateTime<Utc>, most: usize) -> Result<Survey, StorageError> {
    let root = layout.root().canonicalize().map_err(StorageError::io("resolve", layout.root()))?;
    let layout = Layout::at(root);
    let mounts = Mounts::read().map_err(StorageError::io("read", Path::new("/proc/self/mountinfo")))?;
    let uses = Uses::gather(&layout, node, now)?;
    let mut work = work_folders(&layout, &uses)?;
    let (work_bytes, work_folders) = (work.iter().map(|folder| folder.bytes).sum(), work.len());
    work.truncate(most);
    Ok(Survey {
        root: layout.root().to_owned(),
        hot: hot(node.hot.path.as_deref().unwrap_or(layout.root()), node, &mounts)?,
        cold: node.cold.iter().map(|tier| tier::look(tier, &layout, &mounts)).collect(),
        network: node.network.iter().map(network).collect(),
        caches: sources::read(&layout, node, &uses),
        pins: pins::read(&layout)?.into_iter().map(pin).collect(),
        work,
        work_bytes,
        work_folders,
        unknown: uses.unknown,
        rules: node.storage.clone(),
    })
}

fn hot(path: &Path, node: &Node, mounts: &Mounts) -> Result<HotState, StorageError> {
    let filesystem = FilesystemKind::of(path).ok();
    Ok(HotState {
        path: path.to_owned(),
        pressure: Pressure::of(path)?,
        filesystem,
        mount: path.canonicalize().ok().and_then(|path| mounts.holding(&path).cloned()),
        min_free: node.hot.min_free,
        concern: filesystem.and_then(|kind| match kind.concern() {
            Concern::None => None,
            Concern::Discouraged(why) | Concern::Unfit(why) => Some(why),
        }),
    })
}

fn network(tier: &crate::node::NetworkTier) -> NetworkState {
    let (usable, note) = match (tier.directory(), tier.address()) {
        (Some(path), _) if path.is_dir() => (true, "models are copied from it before they are used".to_owned()),
        (Some(path), _) => (false, format!("{} is not there (not mounted?)", path.display())),
        (None, Some(address)) => (true, format!("{address} is asked for models that are nowhere here")),
        (None, None) => (false, NOT_ASKED.to_owned()),
    };
    NetworkState { name: tier.name.clone(), kind: tier.kind, endpoint: tier.endpoint.clone(), usable, note }
}

fn pin((file, pin): pins::PinFile) -> PinState {
    match pin {
        Ok(pin) => PinState { file, subject: Some(pin.subject), reason: pin.reason, at: Some(pin.at), problem: None },
        Err(error) => PinState { file, subject: None, reason: None, at: None, problem: Some(error.to_string()) },
    }
}

fn work_folders(layout: &Layout, uses: &Uses) -> Result<Vec<WorkState>, StorageError> {
    let dir = layout.work_root();
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(StorageError::io("list", &dir))? {
        let path = entry.map_err(StorageError::io("list", &dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || !path.is_dir() || path.is_symlink() {
            continue;
        }
        let entries = copy::list(&path, Links::Keep).unwrap_or_default();
        let mut because: Vec<String> = uses.of(&path).iter().map(|used| used.because.clone()).collect();
        because.extend(uses.doubts(&path).iter().map(|doubt| format!("{} cannot be read", doubt.file.display())));
        found.push(WorkState { name, bytes: copy::bytes_of(&entries), because });
    }
    found.sort_by(|a, b| (b.bytes, &a.name).cmp(&(a.bytes, &b.name)));
    Ok(found)
}
