//! A folder (or a file) copied so that the copy can be trusted: written, synced, then read again from the disk and
//! compared with what was read from the source.
//!
//! Links inside are copied as links and never followed; names that share an inode share one in the copy too. What is
//! neither file, folder nor link is refused, because a copy of it would not be one.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::StorageError;
use super::receipt::FileReceipt;
use crate::units::{Bytes, Sha};

/// A point in a move at which a test may stop the world, spoil a file, or a supervisor may call it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Some more bytes were written.
    Chunk,
    /// This file of the copy is written and synced; it was not read again yet.
    Written(&'a Path),
    /// The whole copy was read again and compared.
    Checked,
    /// The receipt lies beside where the copy will be.
    Receipted,
    /// The copy has its final name.
    Placed,
    /// Whatever names the source names the copy now.
    Repointed,
    /// The source has a name under which nobody looks for it.
    SetAside,
    /// The source is gone.
    Removed,
}

/// Hears every step; an error ends the move there, as a crash would.
pub trait Steps: Sync {
    fn at(&self, step: Step<'_>) -> io::Result<()>;
}

/// Lets every step pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSteps;

impl Steps for NoSteps {
    fn at(&self, _: Step<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// What to do with links to files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Copied as links.
    Keep,
    /// Their target's bytes are copied: a model is whole without the place it came from.
    Follow,
}

/// One entry of a folder, by its path relative to the folder (empty: the thing itself).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    pub kind: Kind,
    pub size: u64,
    pub modified: (i64, i64),
    inode: (u64, u64),
    mode: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    File,
    Link(PathBuf),
}

/// The lock of a work folder: it says who is at it, and is no part of the work.
const CLAIM: &str = ".claim.lock";

/// Everything in `root`, folders before what is in them. Nothing outside is looked at.
pub fn list(root: &Path, links: Links) -> Result<Vec<Entry>, StorageError> {
    let mut out = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let full = below(root, &path);
        let entry = entry(&full, path, links)?;
        if entry.kind == Kind::Folder {
            for child in fs::read_dir(&full).map_err(StorageError::io("list", &full))? {
                let child = child.map_err(StorageError::io("list", &full))?;
                let path = entry.path.join(child.file_name());
                if path != Path::new(CLAIM) {
                    open.push(path);
                }
            }
        }
        out.push(entry);
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

fn entry(full: &Path, path: PathBuf, links: Links) -> Result<Entry, StorageError> {
    let mut meta = fs::symlink_metadata(full).map_err(StorageError::io("look at", full))?;
    if meta.is_symlink() && links == Links::Follow {
        meta = fs::metadata(full).map_err(StorageError::io("follow the link", full))?;
        // A link to a folder may lead back to where it stands.
        if !meta.is_file() {
            return Err(StorageError::Special { path: full.to_owned() });
        }
    }
    let kind = if meta.is_dir() {
        Kind::Folder
    } else if meta.is_file() {
        Kind::File
    } else if meta.is_symlink() {
        Kind::Link(fs::read_link(full).map_err(StorageError::io("read the link", full))?)
    } else {
        return Err(StorageError::Special { path: full.to_owned() });
    };
    let size = if kind == Kind::File { meta.len() } else { 0 };
    let (modified, inode) = ((meta.mtime(), meta.mtime_nsec()), (meta.dev(), meta.ino()));
    Ok(Entry { path, kind, size, modified, inode, mode: meta.mode() })
}

/// `path` below `root`; `root` itself for the empty path.
fn below(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

/// Bytes of all files, one that has two names counted once.
pub fn bytes_of(entries: &[Entry]) -> Bytes {
    let unique: HashMap<(u64, u64), u64> = entries.iter().map(|entry| (entry.inode, entry.size)).collect();
    Bytes(unique.values().sum())
}

/// Copies `from` to `to`, which must not exist, and proves the copy. On an error a part of the copy may be left; the
/// source is never touched.
pub fn copy(from: &Path, to: &Path, links: Links, steps: &dyn Steps) -> Result<Vec<FileReceipt>, StorageError> {
    let entries = list(from, links)?;
    let mut receipts = Vec::new();
    let mut seen: HashMap<(u64, u64), (PathBuf, Sha)> = HashMap::new();
    for entry in &entries {
        let (source, target) = (below(from, &entry.path), below(to, &entry.path));
        let mut receipt = FileReceipt { path: entry.path.clone(), size: entry.size, sha256: None, link: None };
        match &entry.kind {
            Kind::Folder => {
                fs::create_dir(&target).map_err(StorageError::io("create", &target))?;
                continue;
            }
            Kind::Link(leads_to) => {
                symlink(leads_to, &target).map_err(StorageError::io("link", &target))?;
                receipt.link = Some(leads_to.clone());
            }
            Kind::File => {
                let known = seen.get(&entry.inode).filter(|(first, _)| fs::hard_link(first, &target).is_ok());
                let sha = match known {
                    Some((_, sha)) => *sha,
                    None => copy_file(&source, &target, entry, steps)?,
                };
                seen.entry(entry.inode).or_insert((target.clone(), sha));
                receipt.sha256 = Some(sha);
                steps.at(Step::Written(&target)).map_err(StorageError::io("copy to", &target))?;
            }
        }
        receipts.push(receipt);
    }
    for folder in entries.iter().rev().filter(|entry| entry.kind == Kind::Folder) {
        let target = below(to, &folder.path);
        // Never so tight that its owner could not move or remove it.
        let _ = fs::set_permissions(&target, fs::Permissions::from_mode(folder.mode & 0o7777 | 0o700));
        super::pins::sync(&target)?;
    }
    check(to, &receipts, steps)?;
    if list(from, links)? != entries {
        return Err(StorageError::Changed { path: from.to_owned() });
    }
    steps.at(Step::Checked).map_err(StorageError::io("copy to", to))?;
    Ok(receipts)
}

/// Reads every file of a copy again and compares it with its receipt.
pub fn check(copy: &Path, receipts: &[FileReceipt], steps: &dyn Steps) -> Result<(), StorageError> {
    for receipt in receipts {
        let path = below(copy, &receipt.path);
        if let Some(leads_to) = &receipt.link {
            let found = fs::read_link(&path).map_err(StorageError::io("read the link", &path))?;
            if found != *leads_to {
                return Err(StorageError::Changed { path });
            }
        }
        let Some(expected) = receipt.sha256 else { continue };
        let file = File::open(&path).map_err(StorageError::io("read", &path))?;
        // What was just written is asked of the disk, not of memory.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let found = hash(file, None, steps).map_err(StorageError::io("read", &path))?;
        if found != expected {
            return Err(StorageError::Mismatch { path, source_sha: expected.hex(), copy: found.hex() });
        }
    }
    Ok(())
}

/// The receipts of a folder as it lies now, nothing copied.
pub fn fingerprint(root: &Path, links: Links, steps: &dyn Steps) -> Result<Vec<FileReceipt>, StorageError> {
    let mut out = Vec::new();
    for entry in list(root, links)? {
        let path = below(root, &entry.path);
        let mut receipt = FileReceipt { path: entry.path, size: entry.size, sha256: None, link: None };
        match entry.kind {
            Kind::Folder => continue,
            Kind::Link(leads_to) => receipt.link = Some(leads_to),
            Kind::File => {
                let file = File::open(&path).map_err(StorageError::io("read", &path))?;
                receipt.sha256 = Some(hash(file, None, steps).map_err(StorageError::io("read", &path))?);
            }
        }
        out.push(receipt);
    }
    Ok(out)
}

fn copy_file(source: &Path, target: &Path, entry: &Entry, steps: &dyn Steps) -> Result<Sha, StorageError> {
    let reading = File::open(source).map_err(StorageError::io("read", source))?;
    let written = OpenOptions::new().write(true).create_new(true).open(target);
    let mut writing = written.map_err(StorageError::io("create", target))?;
    let failed = || StorageError::io("copy to", target);
    let sha = hash(reading, Some(&mut writing), steps).map_err(failed())?;
    // Age and permissions are part of what is kept.
    let (seconds, nanos) = entry.modified;
    let since = std::time::Duration::new(seconds.max(0) as u64, nanos.clamp(0, 999_999_999) as u32);
    let _ = writing.set_modified(SystemTime::UNIX_EPOCH + since);
    let _ = writing.set_permissions(fs::Permissions::from_mode(entry.mode & 0o7777));
    writing.sync_all().map_err(failed())?;
    Ok(sha)
}

/// Hashes a file from its beginning, writing what is read to `copy`.
pub(super) fn hash(mut file: File, mut copy: Option<&mut File>, steps: &dyn Steps) -> io::Result<Sha> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok(Sha(sha.finalize().into())),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        sha.update(&buffer[..read]);
        if let Some(copy) = copy.as_deref_mut() {
            copy.write_all(&buffer[..read])?;
        }
        steps.at(Step::Chunk)?;
    }
}
