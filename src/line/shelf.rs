//! What stands in a station, read without a lock and with the daemon down.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::name::{Entry, NameError, PartName};
use super::{Layout, LineError, Station};

/// A part in a station.
#[derive(Clone, Debug, PartialEq)]
pub struct PartEntry {
    pub station: Station,
    pub name: PartName,
    pub path: PathBuf,
    /// Bytes of the recipe.
    pub size: u64,
    /// When the file came to stand here: the inode's change time, which a rename sets and no copy carries over.
    pub arrived: DateTime<Utc>,
    pub retries: u32,
    /// File names in the same station that belong to this part, sorted.
    pub sidecars: Vec<String>,
    pub(crate) inode: (u64, u64),
}

/// Everything in one station.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shelf {
    /// In order of arrival, then by name.
    pub parts: Vec<PartEntry>,
    /// Sidecars whose part does not stand here.
    pub loose: Vec<String>,
    /// Files somebody is still writing.
    pub temporary: Vec<String>,
    /// Files that will never be taken for parts, and why.
    pub ignored: Vec<NameError>,
}

/// Reads a station. A directory entry that cannot be read fails the scan: a short list must not look like an empty one.
pub fn read(layout: &Layout, station: Station) -> Result<Shelf, LineError> {
    let dir = layout.station(station);
    let mut shelf = Shelf::default();
    let mut sidecars = Vec::new();
    for entry in fs::read_dir(&dir).map_err(LineError::io("list", &dir))? {
        let entry = entry.map_err(LineError::io("list", &dir))?;
        match Entry::classify(&entry.file_name(), station) {
            Entry::Part(name) => match fs::symlink_metadata(entry.path()) {
                Ok(meta) if meta.is_file() => shelf.parts.push(part_entry(station, name, entry.path(), &meta)),
                Ok(_) => shelf.ignored.push(NameError { name: name.file_name(), reason: "it is not a regular file" }),
                // Moved on between the listing and the look: no longer here.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(LineError::io("look at", &entry.path())(e)),
            },
            Entry::Sidecar(name) => sidecars.push(name),
            Entry::Temporary(name) => shelf.temporary.push(name),
            Entry::Ignored(error) => shelf.ignored.push(error),
        }
    }
    shelf.parts.sort_by(|a, b| (a.arrived, &a.name).cmp(&(b.arrived, &b.name)));
    hand_out(&mut shelf, sidecars);
    Ok(shelf)
}

/// The parts of one station, in order of arrival.
pub fn list(layout: &Layout, station: Station) -> Result<Vec<PartEntry>, LineError> {
    read(layout, station).map(|shelf| shelf.parts)
}

/// Every part on the line that answers to `name`: a base name, a stem with its retry counter, or a file name.
pub fn find(layout: &Layout, name: &str) -> Result<Vec<PartEntry>, LineError> {
    let mut found = Vec::new();
    for station in Station::ALL {
        let parts = list(layout, station)?;
        found.extend(
            parts.into_iter().filter(|p| p.name.base() == name || p.name.stem() == name || p.name.file_name() == name),
        );
    }
    Ok(found)
}

/// One part, looked at again; `None` when it is gone or no part.
pub(crate) fn entry(path: &Path, station: Station) -> Option<PartEntry> {
    let name = PartName::parse(path.file_name()?.to_str()?).ok()?;
    let meta = fs::symlink_metadata(path).ok()?;
    Some(part_entry(station, name, path.to_owned(), &meta))
}

/// The base name a sidecar belongs to: the longest one in `bases` that it starts with, followed by a dot.
pub(crate) fn owner<'b>(sidecar: &str, bases: &'b BTreeSet<String>) -> Option<&'b String> {
    sidecar.rmatch_indices('.').find_map(|(dot, _)| bases.get(&sidecar[..dot]))
}

fn part_entry(station: Station, name: PartName, path: PathBuf, meta: &fs::Metadata) -> PartEntry {
    let arrived = DateTime::from_timestamp(meta.ctime(), meta.ctime_nsec() as u32).unwrap_or_default();
    let inode = (meta.dev(), meta.ino());
    PartEntry { station, retries: name.retries(), name, path, size: meta.len(), arrived, sidecars: Vec::new(), inode }
}

/// Gives every sidecar to the part with the longest matching base name; of two parts with one base, to the first.
fn hand_out(shelf: &mut Shelf, mut sidecars: Vec<String>) {
    sidecars.sort();
    let bases: BTreeSet<String> = shelf.parts.iter().map(|p| p.name.base().to_owned()).collect();
    for sidecar in sidecars {
        let part = owner(&sidecar, &bases).and_then(|b| shelf.parts.iter_mut().find(|p| p.name.base() == b));
        match part {
            Some(part) => part.sidecars.push(sidecar),
            None => shelf.loose.push(sidecar),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_go_to_the_longest_base_name() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        let dir = layout.station(Station::Rework);
        for name in ["q.alloy.json", "q.5-7b.alloy.json", "q.5-7b.error.json", "q.error.json", "stray.log", ".x.tmp"] {
            fs::write(dir.join(name), "{}").unwrap();
        }
        let shelf = read(&layout, Station::Rework).unwrap();
        let sidecars = |base: &str| shelf.parts.iter().find(|p| p.name.base() == base).unwrap().sidecars.clone();
        assert_eq!(sidecars("q"), ["q.error.json"]);
        assert_eq!(sidecars("q.5-7b"), ["q.5-7b.error.json"]);
        assert_eq!((shelf.loose, shelf.temporary), (vec!["stray.log".to_owned()], vec![".x.tmp".to_owned()]));
        assert_eq!(find(&layout, "q").unwrap().len(), 1);
    }
}
