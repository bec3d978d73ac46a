//! What is mounted where, as the kernel tells it in `/proc/self/mountinfo`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// One mounted filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mount {
    pub point: PathBuf,
    /// What was mounted there: `/dev/sdb1`, `server:/export`, `tmpfs`, …
    pub source: String,
    /// The kernel's name of the filesystem: `xfs`, `fuseblk`, …
    pub fs_type: String,
    /// `major:minor` of the device.
    pub device: String,
}

/// All mounts of this process, in the order they were made: a later one at the same point covers an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    pub fn read() -> std::io::Result<Mounts> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Reads the text of a `mountinfo` file (proc_pid_mountinfo(5)). Lines that are none are skipped.
    pub fn parse(text: &str) -> Mounts {
        let line = |line: &str| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ');
            let (device, point) = (left.nth(2)?.to_owned(), unescaped(left.nth(1)?));
            let mut right = right.split(' ');
            let fs_type = right.next()?.to_owned();
            Some(Mount { point: PathBuf::from(point), source: unescaped(right.next()?), fs_type, device })
        };
        Mounts(text.lines().filter_map(line).collect())
    }

    /// The mount that holds `path`, which must be absolute and without links: the deepest point above it.
    pub fn holding(&self, path: &Path) -> Option<&Mount> {
        let depth = |mount: &Mount| mount.point.components().count();
        self.0.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| depth(mount))
    }
}

/// Mount points write blank, tab, line feed and backslash as `\040` and so on.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match digits {
            Some(digits) if first == b'\\' => {
                out.push(digits.iter().fold(0u32, |sum, d| sum * 8 + u32::from(d - b'0')) as u8);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The device a path lies on, as `stat` tells it; links are followed.
pub fn device_of(path: &Path) -> std::io::Result<u64> {
    std::fs::metadata(path).map(|meta| meta.dev())
}

/// True when what the operator calls a device (`UUID=…`, `LABEL=…`, a bare UUID, `/dev/…`, `major:minor`, or what was
/// mounted, as `server:/export`) is what is mounted there.
pub fn is_device(said: &str, mount: &Mount) -> bool {
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    let by = |folder: &str, name: &str| same(&Path::new("/dev/disk").join(folder).join(name), Path::new(&mount.source));
    if said == mount.source || said == mount.device {
        return true;
    }
    if let Some(uuid) = said.strip_prefix("UUID=") {
        return by("by-uuid", uuid);
    }
    if let Some(label) = said.strip_prefix("LABEL=") {
        return by("by-label", label);
    }
    if said.starts_with('/') {
        return same(Path::new(said), Path::new(&mount.source));
    }
    !said.contains('/') && by("by-uuid", said)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        40 22 8:17 / /mnt/big\\040disk rw,noatime shared:2 - xfs /dev/sdb1 rw\n\
        41 22 0:50 /sub /mnt/win rw - fuseblk /dev/sdc1 rw\n\
        nonsense\n";

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let mounts = Mounts::parse(INFO);
        let at = |path: &str| mounts.holding(Path::new(path)).map(|mount| mount.source.clone()).unwrap_or_default();
        assert_eq!(at("/mnt/big disk/cold"), "/dev/sdb1");
        assert_eq!(at("/mnt/big"), "/dev/sda1");
        assert_eq!(at("/mnt/win"), "/dev/sdc1");
        let mount = mounts.holding(Path::new("/mnt/big disk")).unwrap();
        assert_eq!((mount.fs_type.as_str(), mount.device.as_str()), ("xfs", "8:17"));
        assert!(is_device("/dev/sdb1", mount) && is_device("8:17", mount));
        assert!(!is_device("/dev/sda1", mount) && !is_device("UUID=no-such-disk", mount));
    }
}
