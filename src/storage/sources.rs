//! Caches of source models: what they hold, when each was last used, and what leaves one that is over its budget.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::copy::{self, Links, Steps};
use super::uses::Uses;
use crate::line::Layout;
use crate::node::{ColdPurpose, LINE_CACHE, Node};
use crate::units::Bytes;

/// Its time of change says when a cached model was last used.
pub const STAMP: &str = ".last-used";

/// A directory of source models that this line manages.
#[derive(Clone, Debug, Serialize)]
pub struct Cache {
    /// Name of the cold tier; `line` for `<root>/cache/sources`.
    pub name: String,
    pub path: PathBuf,
    pub bytes: Bytes,
    /// The least recently used first.
    pub models: Vec<CachedModel>,
}

/// A model in a cache.
#[derive(Clone, Debug, Serialize)]
pub struct CachedModel {
    /// As recipes name it: `org/name`.
    pub name: String,
    pub path: PathBuf,
    pub bytes: Bytes,
    pub last_used: DateTime<Utc>,
    /// Who needs it.
    pub used_by: Vec<String>,
}

/// Remembers that a cached model was used now. Callers may ignore an error: the times of its files are then used.
pub fn touch_source(path: &Path) -> io::Result<()> {
    fs::write(stamp_of(path), format!("{}\n", crate::line::stamp::seconds(Utc::now())))
}

fn stamp_of(model: &Path) -> PathBuf {
    if model.is_dir() {
        return model.join(STAMP);
    }
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    model.with_file_name(format!(".{name}{STAMP}"))
}

/// Where caches lie: cold tiers that say so, and the line's own.
pub fn places(layout: &Layout, node: &Node) -> Vec<(String, PathBuf)> {
    let tiers = node.cold.iter().filter(|tier| tier.purpose.contains(&ColdPurpose::SourceCache));
    let tiers = tiers.map(|tier| (tier.name.clone(), tier.path.clone()));
    tiers.chain([("line".to_owned(), layout.root().join(LINE_CACHE))]).filter(|(_, path)| path.is_dir()).collect()
}

/// Reads every cache. What cannot be read is left out: it is not managed.
pub fn read(layout: &Layout, node: &Node, uses: &Uses) -> Vec<Cache> {
    let cache = |(name, path): (String, PathBuf)| {
        let path = path.canonicalize().unwrap_or(path);
        let mut models: Vec<CachedModel> =
            candidates(&path).into_iter().filter_map(|model| describe(&path, model, uses)).collect();
        models.sort_by(|a, b| (a.last_used, &a.name).cmp(&(b.last_used, &b.name)));
        Cache { name, path, bytes: models.iter().map(|model| model.bytes).sum(), models }
    };
    places(layout, node).into_iter().map(cache).collect()
}

/// Models at `name` and `org/name`: folders that hold weights, and GGUF files. Links are not followed.
fn candidates(cache: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in children(cache) {
        if is_model(&path) {
            found.push(path);
        } else if is_folder(&path) {
            found.extend(children(&path).into_iter().filter(|path| is_model(path)));
        }
    }
    found
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
    paths.sort();
    paths
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn is_model(path: &Path) -> bool {
    let weights = |path: &Path| path.extension().is_some_and(|e| e == "gguf" || e == "safetensors");
    if is_folder(path) {
        return path.join("config.json").is_file() || children(path).iter().any(|child| weights(child));
    }
    path.extension().is_some_and(|e| e == "gguf") && fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

fn describe(cache: &Path, path: PathBuf, uses: &Uses) -> Option<CachedModel> {
    let entries = copy::list(&path, Links::Keep).ok()?;
    let stamped = fs::metadata(stamp_of(&path)).and_then(|meta| meta.modified()).ok().map(DateTime::from);
    let read_or_written = || {
        let times = entries.iter().filter_map(|entry| fs::symlink_metadata(path.join(&entry.path)).ok());
        times.map(|meta| meta.atime().max(meta.mtime())).max().and_then(|at| DateTime::from_timestamp(at, 0))
    };
    let last_used = stamped.or_else(read_or_written)?;
    let used_by = uses.of(&path).into_iter().map(|used| used.because.clone()).collect();
    let name = path.strip_prefix(cache).ok()?.to_string_lossy().into_owned();
    Some(CachedModel { name, path, bytes: copy::bytes_of(&entries), last_used, used_by })
}

/// The peer that has this very model, so that it can be fetched again. With `by_hash` every byte is compared, else
/// names and sizes.
pub fn peer_with(model: &CachedModel, node: &Node, by_hash: bool, steps: &dyn Steps) -> Option<String> {
    let is_there = |there: &Path| {
        let of = |path: &Path| {
            let entries = copy::list(path, Links::Follow).ok()?;
            let files = entries.into_iter().filter(|entry| entry.kind == copy::Kind::File && !is_stamp(&entry.path));
            Some(files.map(|entry| (entry.path, entry.size)).collect::<Vec<_>>())
        };
        if of(there).is_none() || of(there) != of(&model.path) {
            return false;
        }
        let hashes = |path: &Path| {
            let mut files = copy::fingerprint(path, Links::Follow, steps).ok()?;
            files.retain(|file| !is_stamp(&file.path));
            Some(files)
        };
        !by_hash || hashes(there).is_some_and(|files| Some(files) == hashes(&model.path))
    };
    let peers = node.network.iter().filter_map(|tier| Some((tier, tier.directory()?)));
    peers
        .map(|(tier, dir)| (tier, dir.join(&model.name)))
        .find(|(_, there)| is_there(there))
        .map(|(t, _)| t.name.clone())
}

fn is_stamp(path: &Path) -> bool {
    path == Path::new(STAMP)
}
