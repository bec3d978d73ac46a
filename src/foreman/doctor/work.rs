//! Work folders: those whose part is nowhere on the line take space that nobody accounts for.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Check, Finding, Patient, counted};
use crate::line::{Station, shelf};
use crate::units::Bytes;

pub struct WorkCheck;

impl Check for WorkCheck {
    fn name(&self) -> &'static str {
        "work"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let mut known = BTreeSet::new();
        for station in Station::ALL {
            match shelf::list(&patient.layout, station) {
                Ok(parts) => known.extend(parts.into_iter().map(|part| part.name.base().to_owned())),
                // A station that cannot be read may hold the part of any folder.
                Err(_) => return vec![Finding::note("not looked at: a station cannot be read")],
            }
        }
        let mut folders: Vec<String> = fs::read_dir(patient.layout.work_root())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        folders.sort();
        let total = folders.len();
        let orphans = folders.into_iter().filter(|name| !known.contains(name));
        let found: Vec<Finding> = orphans
            .map(|name| {
                let size = size_of(&patient.layout.work_root().join(&name));
                Finding::warning(format!("work/{name}: {size}, and no part of this name on the line"))
                    .why("nothing removes it; it may hold the artifact of a part that was taken away")
                    .fix(format!("keep what you need, then rm -r {}/{name}", patient.layout.work_root().display()))
            })
            .collect();
        match found.is_empty() {
            true => vec![Finding::ok(format!("{}, each with its part", counted(total, "work folder")))],
            false => found,
        }
    }
}

/// Bytes on disk, links not followed.
fn size_of(dir: &Path) -> Bytes {
    let mut size = 0;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            size += meta.blocks() * 512;
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Bytes(size)
}
