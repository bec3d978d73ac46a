//! Durable publishes and moves.
//!
//! Publish: write a temp file, sync it, rename it without replacing, sync the directory. Move: bring the sidecars
//! over first and make them durable, rename the part without replacing, sync the destination, then the source. After
//! a crash a part may stand in two places (one inode, two names), never in none.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::claim::random_hex;
use super::disk::{Disk, RealDisk, same_inode};
use super::shelf::PartEntry;
use super::{Layout, LineError, PartName, Station};

/// One file that moved or would move; what `--dry-run` shows as `from -> to`. Paths are relative to `line/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Move {
    pub from: PathBuf,
    pub to: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Moves files of one line on one disk.
#[derive(Clone, Copy)]
pub struct Mover<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) layout: &'a Layout,
}

impl<'a> Mover<'a> {
    pub fn new(disk: &'a dyn Disk, layout: &'a Layout) -> Self {
        Mover { disk, layout }
    }

    pub fn real(layout: &'a Layout) -> Self {
        Mover { disk: &RealDisk, layout }
    }

    /// Makes a new file appear whole and durable. Never overwrites.
    pub fn publish(&self, dest: &Path, bytes: &[u8]) -> Result<(), LineError> {
        self.write(dest, bytes, |temp| self.disk.rename_new(temp, dest))
    }

    /// The same for a file of ours that may be there from an earlier try.
    pub fn publish_over(&self, dest: &Path, bytes: &[u8]) -> Result<(), LineError> {
        self.write(dest, bytes, |temp| self.disk.rename_over(temp, dest))
    }

    fn write(
        &self,
        dest: &Path,
        bytes: &[u8],
        place: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<(), LineError> {
        let scratch = self.layout.scratch();
        let name = random_hex().map_err(LineError::io("name a temp file in", &scratch))?;
        let temp = scratch.join(name + ".tmp");
        let written = self.disk.write_new(&temp, bytes).map_err(LineError::io("write", &temp));
        let placed = written.and_then(|()| place(&temp).map_err(LineError::io("publish", dest)));
        if let Err(error) = placed {
            let _ = self.disk.remove(&temp);
            return Err(error);
        }
        self.sync(dest.parent().unwrap_or(&scratch))
    }

    /// Moves a part and its sidecars from where it stands to `to`, there called `name`. Fails with
    /// [`LineError::Exists`] and leaves the part where it was when that name is taken by another file.
    pub fn move_part(&self, part: &PartEntry, to: Station, name: &PartName) -> Result<Vec<Move>, LineError> {
        let (from_dir, to_dir) = (self.layout.station(part.station), self.layout.station(to));
        let dest = to_dir.join(name.file_name());
        if dest.exists() && !same_inode(&part.path, &dest) {
            return Err(LineError::Exists { path: dest });
        }
        let mut moves = self.move_sidecars(part, to, name)?;
        if !moves.is_empty() {
            self.sync(&to_dir)?;
        }
        self.rename(&part.path, &dest)?;
        self.sync(&to_dir)?;
        if from_dir != to_dir {
            self.sync(&from_dir)?;
        }
        moves.insert(0, self.described(&part.path, &dest));
        Ok(moves)
    }

    /// Brings the sidecars of a part to `to`. One that is there already under this name is kept; the newcomer gets a
    /// number.
    fn move_sidecars(&self, part: &PartEntry, to: Station, name: &PartName) -> Result<Vec<Move>, LineError> {
        let (from_dir, to_dir) = (self.layout.station(part.station), self.layout.station(to));
        let mut moves = Vec::new();
        for sidecar in &part.sidecars {
            let from = from_dir.join(sidecar);
            let dest = free_name(&to_dir, &renamed(part, sidecar, to, name), &from);
            if from == dest {
                continue;
            }
            match self.rename(&from, &dest) {
                // Gone meanwhile: a sidecar is not ours alone.
                Err(error) if error.is_missing() => continue,
                other => other?,
            }
            moves.push(self.described(&from, &dest));
        }
        Ok(moves)
    }

    /// No-replace rename that takes a second name of the same file for done work.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), LineError> {
        match self.disk.rename_new(from, to) {
            Ok(()) => Ok(()),
            Err(_) if same_inode(from, to) => self.disk.remove(from).map_err(LineError::io("remove", from)),
            // A rename over the network that reports failure may have happened.
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists && !from.exists() && to.exists() => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(LineError::Exists { path: to.to_owned() }),
            Err(e) => Err(LineError::io("move", from)(e)),
        }
    }

    pub(crate) fn remove(&self, path: &Path) -> Result<(), LineError> {
        match self.disk.remove(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(LineError::io("remove", path)(e)),
            _ => Ok(()),
        }
    }

    pub(crate) fn sync(&self, dir: &Path) -> Result<(), LineError> {
        self.disk.sync_dir(dir).map_err(LineError::io("sync", dir))
    }

    pub(crate) fn described(&self, from: &Path, to: &Path) -> Move {
        let line = self.layout.line();
        let short = |path: &Path| path.strip_prefix(&line).unwrap_or(path).to_owned();
        Move { from: short(from), to: short(to), reason: None }
    }
}

/// The moves a part and its sidecars would make; nothing is touched.
pub fn planned(layout: &Layout, part: &PartEntry, to: Station, name: &PartName) -> Vec<Move> {
    let mover = Mover::real(layout);
    let to_dir = layout.station(to);
    let mut moves = vec![mover.described(&part.path, &to_dir.join(name.file_name()))];
    for sidecar in &part.sidecars {
        let from = layout.station(part.station).join(sidecar);
        moves.push(mover.described(&from, &free_name(&to_dir, &renamed(part, sidecar, to, name), &from)));
    }
    moves
}

/// What a sidecar is called at its destination: after the part. An error that leaves rework is history: it gets a
/// number, so that a part elsewhere carries no current error.
fn renamed(part: &PartEntry, sidecar: &str, to: Station, name: &PartName) -> String {
    let rest = sidecar.strip_prefix(part.name.base()).unwrap_or(sidecar);
    match rest.strip_suffix(".error.json") {
        Some(_) if part.station == Station::Rework && to != Station::Rework => format!("{}.error.1.json", name.base()),
        _ => format!("{}{rest}", name.base()),
    }
}

/// `name` in `dir`, or, when another file has it, the same with the first free number before its extension.
pub(crate) fn free_name(dir: &Path, name: &str, from: &Path) -> PathBuf {
    let wanted = dir.join(name);
    let is_free = |path: &Path| fs::symlink_metadata(path).is_err() || same_inode(path, from);
    if is_free(&wanted) {
        return wanted;
    }
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, "old"));
    let (stem, first) = match stem.rsplit_once('.').map(|(front, n)| (front, n.parse::<u32>())) {
        Some((front, Ok(n))) => (front, n + 1),
        _ => (stem, 1),
    };
    (first..u32::MAX).map(|n| dir.join(format!("{stem}.{n}.{extension}"))).find(|path| is_free(path)).unwrap_or(wanted)
}
