//! Filesystems: fit for a line and for weights, one for all of `line/`, and with the promises the protocol rests on.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs2::FileExt;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Check, Finding, Patient};
use crate::line::{Station, disk};
use crate::node::{Concern, FilesystemKind};

pub struct FilesystemCheck;

impl Check for FilesystemCheck {
    fn name(&self) -> &'static str {
        "filesystem"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let mut found = kinds(patient);
        found.extend(stations_apart(patient));
        found.extend(probe(patient));
        if found.is_empty() {
            let kind = FilesystemKind::of(&patient.layout.line()).map_or("unknown", FilesystemKind::as_str);
            let what = format!("{kind} under the line; renames, locks and syncs hold");
            found.push(Finding::ok(what));
        }
        found
    }
}

/// What lies where it should not.
fn kinds(patient: &Patient) -> Vec<Finding> {
    let layout = &patient.layout;
    let mut places = vec![("the line", layout.line()), ("work", layout.work_root())];
    if let Some(node) = &patient.node {
        places.extend(node.hot.path.iter().map(|path| ("storage.hot", path.clone())));
        places.extend(node.sources.values().map(|path| ("a source", path.clone())));
    }
    let mut found = Vec::new();
    for (what, path) in places {
        let Ok(kind) = FilesystemKind::of(&path) else { continue };
        let said = format!("{what} lies on {} ({})", kind.as_str(), patient.short(&path));
        let fix = match kind {
            FilesystemKind::NineP => "move it below the Linux home or /var/lib: not under /mnt/c",
            _ => "move it to a local disk (ext4, xfs, btrfs)",
        };
        match kind.concern() {
            Concern::Unfit(why) => found.push(Finding::error(said).why(why).fix(fix)),
            Concern::Discouraged(why) => found.push(Finding::warning(said).why(why).fix(fix)),
            Concern::None => {}
        }
    }
    found.dedup();
    found
}

/// Folders of the line on another filesystem than the line.
fn stations_apart(patient: &Patient) -> Vec<Finding> {
    let layout = &patient.layout;
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    let Ok(home) = device(&layout.line()) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = Station::ALL.iter().map(|station| layout.station(*station)).collect();
    folders.extend([layout.quarantine(), layout.control(), layout.scratch()]);
    let apart = folders.into_iter().filter(|folder| device(folder).is_ok_and(|device| device != home));
    apart
        .map(|folder| {
            Finding::error(format!("{} is another filesystem than line", patient.short(&folder)))
                .why("parts move by rename, which stays on one filesystem")
                .fix("unmount it, or move all of line/ to one filesystem")
        })
        .collect()
}

/// Tries in a folder whether a promise is kept.
type Promise = fn(&Path) -> io::Result<bool>;

/// Tries the promises in `line/.tmp`.
fn probe(patient: &Patient) -> Vec<Finding> {
    let scratch = patient.layout.scratch();
    let place = scratch.join(format!("doctor-{}", std::process::id()));
    if fs::create_dir(&place).is_err() {
        // The check of permissions says why.
        return Vec::new();
    }
    let mut found = Vec::new();
    let promises: [(&str, Promise); 3] = [
        ("a rename that replaces nothing", keeps_what_is_there),
        ("a lock that only one may hold (flock)", locks),
        ("the sync of a directory", |dir| File::open(dir)?.sync_all().map(|()| true)),
    ];
    for (promise, holds) in promises {
        let reason = match holds(&place) {
            Ok(true) => continue,
            Ok(false) => "it is not kept".to_owned(),
            Err(error) => error.to_string(),
        };
        let what = format!("{}: {promise} does not work here: {reason}", patient.short(&scratch));
        let fix = "move the line to a local disk (ext4, xfs, btrfs)";
        found.push(Finding::error(what).why("parts could be lost or built twice").fix(fix));
    }
    if let Ok(false) = renames_at_once(&place) {
        let what = "this filesystem has no rename without replacing: a link and an unlink take its place";
        found.push(Finding::note(what).why("slower, and known to recovery"));
    }
    let _ = fs::remove_dir_all(&place);
    found
}

fn two_files(dir: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::write(&from, "new")?;
    fs::write(&to, "old")?;
    Ok((from, to))
}

fn keeps_what_is_there(dir: &Path) -> io::Result<bool> {
    use disk::Disk;
    let (from, to) = two_files(dir)?;
    let refused = disk::RealDisk.rename_new(&from, &to).is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists);
    let kept = refused && fs::read(&to)? == b"old";
    fs::remove_file(&to)?;
    disk::RealDisk.rename_new(&from, &to)?;
    Ok(kept && !from.exists() && fs::read(&to)? == b"new")
}

fn renames_at_once(dir: &Path) -> io::Result<bool> {
    let (from, to) = two_files(dir)?;
    let answer = renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE);
    Ok(!matches!(answer, Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)))
}

fn locks(dir: &Path) -> io::Result<bool> {
    let path = dir.join("lock");
    let (one, other) = (File::create(&path)?, File::create(&path)?);
    one.try_lock_exclusive()?;
    let excluded = other.try_lock_exclusive().is_err();
    FileExt::unlock(&one)?;
    Ok(excluded && other.try_lock_exclusive().is_ok())
}
