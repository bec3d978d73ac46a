//! A cold tier is looked at before a byte is written to it: it is there, it is the disk it is said to be, it can be
//! written, and it has room. A path whose disk is not mounted lies on the root disk, and would fill it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::StorageError;
use crate::line::Layout;
use crate::node::{
    ColdPurpose, ColdTier, Concern, FilesystemKind, Mount, Mounts, Node, device_of, free_bytes, is_device, total_bytes,
};
use crate::units::Bytes;

/// A tier as it was found.
#[derive(Clone, Debug, Serialize)]
pub struct TierState {
    pub name: String,
    pub path: PathBuf,
    pub purpose: Vec<ColdPurpose>,
    /// Why nothing is written there; `None` when it can be used.
    pub refused: Option<String>,
    pub filesystem: Option<FilesystemKind>,
    /// What is mounted there.
    pub mount: Option<Mount>,
    pub free: Bytes,
    pub total: Bytes,
    pub min_free: Bytes,
    /// It lies on the line's own disk: what is moved there frees nothing.
    pub same_disk: bool,
    /// What to mind about it.
    pub concern: Option<&'static str>,
}

/// Why a tier on the line's own disk is no place to make room.
const FREES_NOTHING: &str = "it lies on the line's own disk: what is moved there frees nothing";

impl TierState {
    /// Bytes it can still take above its reserve.
    pub fn room(&self) -> Bytes {
        self.free.saturating_sub(self.min_free)
    }
}

/// Looks at a tier without writing to it.
pub fn look(tier: &ColdTier, layout: &Layout, mounts: &Mounts) -> TierState {
    with_room(described(tier, layout, mounts))
}

/// What can be said of a tier but for its room.
fn described(tier: &ColdTier, layout: &Layout, mounts: &Mounts) -> TierState {
    let kind = FilesystemKind::of(&tier.path).ok();
    let mut state = TierState {
        name: tier.name.clone(),
        path: tier.path.clone(),
        purpose: tier.purpose.clone(),
        refused: None,
        filesystem: kind,
        mount: tier.path.canonicalize().ok().and_then(|path| mounts.holding(&path).cloned()),
        free: Bytes(0),
        total: Bytes(0),
        min_free: tier.min_free,
        same_disk: false,
        concern: kind.and_then(|kind| match kind.concern() {
            Concern::None => None,
            Concern::Discouraged(why) | Concern::Unfit(why) => Some(why),
        }),
    };
    if !tier.path.is_dir() {
        state.refused = Some(format!("{} is not there, or no folder (not mounted?)", tier.path.display()));
        return state;
    }
    state.same_disk = match (device_of(&tier.path), device_of(layout.root())) {
        (Ok(here), Ok(line)) => here == line,
        _ => false,
    };
    if state.same_disk {
        state.concern = state.concern.or(Some(FREES_NOTHING));
    }
    let holds_line = layout.root().canonicalize().ok().and_then(|root| mounts.holding(&root).cloned());
    state.refused = not_mounted(tier, state.mount.as_ref(), holds_line.as_ref(), kind, on_root_disk(&tier.path));
    state.free = free_bytes(&tier.path).unwrap_or_default();
    state.total = total_bytes(&tier.path).unwrap_or_default();
    if state.refused.is_none() && rustix::fs::access(&tier.path, rustix::fs::Access::WRITE_OK).is_err() {
        state.refused = Some(format!("{} cannot be written", tier.path.display()));
    }
    state
}

/// Looks at a tier and writes a probe: only such a tier takes anything.
pub fn verify(tier: &ColdTier, layout: &Layout, mounts: &Mounts) -> TierState {
    let mut state = described(tier, layout, mounts);
    if state.refused.is_none()
        && let Err(error) = probe(&tier.path)
    {
        state.refused = Some(format!("{} cannot be written: {error}", tier.path.display()));
    }
    with_room(state)
}

fn with_room(mut state: TierState) -> TierState {
    if state.refused.is_none() && state.room() == Bytes(0) {
        state.refused = Some(format!("full: {} free, {} stay free", state.free, state.min_free));
    }
    state
}

/// Refuses a tier that is no use when room is to be made.
pub fn must_free(mut state: TierState) -> TierState {
    if state.same_disk && state.refused.is_none() {
        state.refused = Some(FREES_NOTHING.to_owned());
    }
    state
}

/// The tiers of a node that serve a purpose, in order. One that names no purpose serves all.
pub fn serving(node: &Node, purpose: ColdPurpose) -> impl Iterator<Item = &ColdTier> {
    node.cold.iter().filter(move |tier| tier.purpose.is_empty() || tier.purpose.contains(&purpose))
}

/// Where things of this node lie on a tier: `<tier>/<node>/<what>`.
pub fn area(tier: &Path, node: &Node, what: &str) -> PathBuf {
    let plain = |c: char| if c == '/' || c.is_control() { '_' } else { c };
    let name: String = node.name.trim_start_matches('.').chars().map(plain).collect();
    tier.join(if name.is_empty() { "node" } else { &name }).join(what)
}

/// The first tier that takes `bytes` more, and a note for each that was passed over.
pub fn choose<'s>(states: &'s [TierState], bytes: Bytes, notes: &mut Vec<String>) -> Option<&'s TierState> {
    for state in states {
        let passed = match &state.refused {
            Some(reason) => reason.clone(),
            None if state.room() < bytes => {
                format!("{bytes} do not fit: {} free, {} stay free", state.free, state.min_free)
            }
            None => return Some(state),
        };
        let note = format!("cold tier {:?} passed over: {passed}", state.name);
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    None
}

/// The error for one tier that cannot be used.
pub fn refusal(state: &TierState) -> Option<StorageError> {
    let reason = state.refused.clone()?;
    Some(StorageError::Tier { tier: state.name.clone(), reason })
}

fn on_root_disk(path: &Path) -> bool {
    matches!((device_of(path), device_of(Path::new("/"))), (Ok(a), Ok(b)) if a == b)
}

/// Says why the disk that should be there is not: from what the operator promised and what the kernel shows.
fn not_mounted(
    tier: &ColdTier,
    mount: Option<&Mount>,
    holds_line: Option<&Mount>,
    kind: Option<FilesystemKind>,
    on_root_disk: bool,
) -> Option<String> {
    let is_root = mount.is_none_or(|mount| mount.point == Path::new("/")) || on_root_disk;
    if tier.mount && (is_root || mount == holds_line) {
        let point = mount.map_or_else(|| "/".to_owned(), |mount| mount.point.display().to_string());
        let disk = if is_root { "the root disk" } else { "the disk of the line" };
        return Some(format!("not mounted: it lies on {point} and would fill {disk}"));
    }
    if let Some(device) = &tier.device
        && !mount.is_some_and(|mount| is_device(device, mount))
    {
        let found = mount.map_or("nothing", |mount| mount.source.as_str());
        return Some(format!("not mounted: {device} should be there, {found} is; it would fill the wrong disk"));
    }
    let said = tier.fs_type.as_deref().and_then(FilesystemKind::named);
    match (said, kind) {
        (Some(said), Some(found)) if is_root && said != found => Some(format!(
            "not mounted: fs_type says {}, it lies on the root disk ({}) and would fill it",
            said.as_str(),
            found.as_str()
        )),
        _ => None,
    }
}

/// Writes, syncs and removes a small file.
fn probe(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!(".factoryline-probe-{}-{:?}", std::process::id(), std::thread::current().id()));
    let _ = fs::remove_file(&path);
    let written = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(&[0x5a; 4096])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier() -> ColdTier {
        ColdTier {
            name: "spinner".into(),
            path: "/mnt/cold".into(),
            fs_type: None,
            mount: false,
            device: None,
            min_free: Bytes(0),
            write_mb_per_sec: None,
            read_mb_per_sec: None,
            purpose: Vec::new(),
        }
    }

    fn mount(point: &str, source: &str) -> Mount {
        Mount { point: point.into(), source: source.into(), fs_type: "ext4".into(), device: "8:1".into() }
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_not_written_to() {
        let (root, own) = (mount("/", "/dev/sda1"), mount("/mnt/cold", "/dev/sdb1"));
        let ext = Some(FilesystemKind::Ext);
        let mounted = ColdTier { mount: true, ..tier() };
        let says = |tier: &ColdTier, at: &Mount, on_root| not_mounted(tier, Some(at), Some(&root), ext, on_root);
        assert_eq!(says(&mounted, &root, true).unwrap(), "not mounted: it lies on / and would fill the root disk");
        assert_eq!(says(&mounted, &own, false), None);
        let named = ColdTier { device: Some("/dev/sdb1".into()), ..tier() };
        assert_eq!(
            says(&named, &root, true).unwrap(),
            "not mounted: /dev/sdb1 should be there, /dev/sda1 is; it would fill the wrong disk"
        );
        assert_eq!(says(&named, &own, false), None);
        let typed = ColdTier { fs_type: Some("xfs".into()), ..tier() };
        assert_eq!(
            says(&typed, &root, true).unwrap(),
            "not mounted: fs_type says xfs, it lies on the root disk (ext4) and would fill it"
        );
        // A folder that promises nothing is a folder.
        assert_eq!(says(&tier(), &root, true), None);
        // The line's own disk is no other disk.
        let data = mount("/data", "/dev/sdc1");
        let beside = not_mounted(&mounted, Some(&data), Some(&data), ext, false);
        assert_eq!(beside.unwrap(), "not mounted: it lies on /data and would fill the disk of the line");
    }
}
