//! Filesystems: which kind a path lies on, whether that kind may carry weights or a line, and how much room is left.

use std::path::{Path, PathBuf};

use rustix::fs::{statfs, statvfs};
use serde::Serialize;

use super::mounts::Mounts;
use crate::fault::Fault;
use crate::units::Bytes;

/// The kind of filesystem, told by its `statfs` magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FilesystemKind {
    Ext,
    Xfs,
    Btrfs,
    Zfs,
    F2fs,
    Overlay,
    Tmpfs,
    Nfs,
    Smb,
    /// Plan 9, which is also how Windows drives appear in WSL2 (drvfs).
    NineP,
    Fuse,
    Ntfs,
    Other,
}

/// What to think of a filesystem as a home for weights or a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    None,
    /// Works, but slow or without the locks and renames the line relies on across machines.
    Discouraged(&'static str),
    /// Known to hang or to break the promises of rename and flock.
    Unfit(&'static str),
}

impl FilesystemKind {
    /// The numbers are those of statfs(2).
    pub fn from_magic(magic: u32) -> Self {
        match magic {
            0xEF53 => FilesystemKind::Ext,
            0x5846_5342 => FilesystemKind::Xfs,
            0x9123_683E => FilesystemKind::Btrfs,
            0x2FC1_2FC1 => FilesystemKind::Zfs,
            0xF2F5_2010 => FilesystemKind::F2fs,
            0x794C_7630 => FilesystemKind::Overlay,
            0x0102_1994 | 0x8584_58F6 => FilesystemKind::Tmpfs,
            0x6969 => FilesystemKind::Nfs,
            0x517B | 0xFF53_4D42 | 0xFE53_4D42 => FilesystemKind::Smb,
            0x0102_1997 | 0x5346_4846 => FilesystemKind::NineP,
            0x6573_5546 => FilesystemKind::Fuse,
            0x5346_544E | 0x7366_746E => FilesystemKind::Ntfs,
            _ => FilesystemKind::Other,
        }
    }

    /// The kind of filesystem that holds `path` (which must exist; links are followed).
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let kind = Self::from_magic(statfs(path)?.f_type as u32);
        // Programs that serve NTFS and other Windows disks share one number with every other FUSE filesystem.
        Ok(match kind {
            FilesystemKind::Fuse if is_fuse_of_a_disk(path) => FilesystemKind::Ntfs,
            kind => kind,
        })
    }

    /// The kind for a directory of weights: that of the directory, or of a file in it that lies elsewhere (the files of
    /// a hub cache are links) when that is the worse one.
    pub fn of_weights(path: &Path) -> std::io::Result<Self> {
        let own = Self::of(path)?;
        if matches!(own.concern(), Concern::Unfit(_)) {
            return Ok(own);
        }
        let Ok(entries) = std::fs::read_dir(path) else { return Ok(own) };
        let kinds = entries.flatten().filter_map(|entry| Self::of(&entry.path()).ok());
        let rank = |kind: &FilesystemKind| match kind.concern() {
            Concern::None => 0,
            Concern::Discouraged(_) => 1,
            Concern::Unfit(_) => 2,
        };
        // max_by_key keeps the last of equals: the directory's own kind.
        Ok(kinds.chain([own]).max_by_key(rank).unwrap_or(own))
    }

    /// The kind an operator means; the names are those of `as_str` and of what mounts it.
    pub fn named(name: &str) -> Option<Self> {
        const ALL: [FilesystemKind; 13] = [
            FilesystemKind::Ext,
            FilesystemKind::Xfs,
            FilesystemKind::Btrfs,
            FilesystemKind::Zfs,
            FilesystemKind::F2fs,
            FilesystemKind::Overlay,
            FilesystemKind::Tmpfs,
            FilesystemKind::Nfs,
            FilesystemKind::Smb,
            FilesystemKind::NineP,
            FilesystemKind::Fuse,
            FilesystemKind::Ntfs,
            FilesystemKind::Other,
        ];
        match name {
            "ext2" | "ext3" => Some(FilesystemKind::Ext),
            "drvfs" => Some(FilesystemKind::NineP),
            "cifs" | "smb3" => Some(FilesystemKind::Smb),
            "ntfs-3g" | "ntfs3" | "fuseblk" => Some(FilesystemKind::Ntfs),
            "nfs4" => Some(FilesystemKind::Nfs),
            _ => ALL.into_iter().find(|kind| kind.as_str() == name),
        }
    }

    /// A resource fault when weights may not be read from this kind; `allowed` are the kinds the operator answers for.
    pub fn refusal(self, path: &Path, allowed: &[FilesystemKind]) -> Option<Fault> {
        let Concern::Unfit(why) = self.concern() else { return None };
        if allowed.contains(&self) {
            return None;
        }
        let (path, kind) = (path.display(), self.as_str());
        Some(Fault::resource(format!("{path} lies on {kind}: {why}")).hint(format!(
            "copy the model to a native Linux filesystem (xfs, ext4, btrfs), or put {kind:?} into \
             storage.allow_unfit_filesystems in factory_node.toml and bear the risk"
        )))
    }

    pub fn concern(self) -> Concern {
        match self {
            FilesystemKind::NineP => Concern::Unfit("reads over 9p (WSL2's Windows drives) can hang for ever"),
            FilesystemKind::Smb => Concern::Unfit("SMB shares do not keep the promises of rename and flock"),
            FilesystemKind::Ntfs => Concern::Unfit("NTFS drivers hang and corrupt under large sequential reads"),
            FilesystemKind::Fuse => Concern::Discouraged("a FUSE filesystem is as reliable as the program behind it"),
            FilesystemKind::Nfs => {
                Concern::Discouraged("NFS notices files late and may not keep flock between machines")
            }
            _ => Concern::None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            FilesystemKind::Ext => "ext4",
            FilesystemKind::Xfs => "xfs",
            FilesystemKind::Btrfs => "btrfs",
            FilesystemKind::Zfs => "zfs",
            FilesystemKind::F2fs => "f2fs",
            FilesystemKind::Overlay => "overlay",
            FilesystemKind::Tmpfs => "tmpfs",
            FilesystemKind::Nfs => "nfs",
            FilesystemKind::Smb => "smb",
            FilesystemKind::NineP => "9p",
            FilesystemKind::Fuse => "fuse",
            FilesystemKind::Ntfs => "ntfs",
            FilesystemKind::Other => "other",
        }
    }
}

/// A FUSE filesystem over a block device (`fuseblk`), which in practice is ntfs-3g.
fn is_fuse_of_a_disk(path: &Path) -> bool {
    let (Ok(mounts), Ok(path)) = (Mounts::read(), path.canonicalize()) else { return false };
    mounts.holding(&path).is_some_and(|mount| mount.fs_type == "fuseblk")
}

/// Bytes of the filesystem where `path` lies or would lie.
pub fn total_bytes(path: &Path) -> std::io::Result<Bytes> {
    let stat = statvfs(nearest_existing(path))?;
    Ok(Bytes(stat.f_blocks.saturating_mul(stat.f_frsize)))
}

/// Bytes an unprivileged process can still write where `path` lies or would lie.
pub fn free_bytes(path: &Path) -> std::io::Result<Bytes> {
    let stat = statvfs(nearest_existing(path))?;
    Ok(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// `path` itself or the first of its ancestors that exists.
fn nearest_existing(path: &Path) -> PathBuf {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.filter(|found| !found.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}
