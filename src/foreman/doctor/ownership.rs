//! Who owns the line: one user, and the one who works it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{Check, Finding, Patient, counted, some_of};

pub struct OwnershipCheck;

impl Check for OwnershipCheck {
    fn name(&self) -> &'static str {
        "ownership"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let Ok(owner) = fs::metadata(patient.layout.line()).map(|meta| meta.uid()) else {
            return vec![Finding::error("line cannot be looked at").fix("foreman init")];
        };
        let me = rustix::process::geteuid().as_raw();
        let mut found = Vec::new();
        if me != owner {
            let what = format!("the line belongs to user {owner}, this is user {me}");
            found.push(Finding::note(what).why("what is found here may differ for the daemon"));
        }
        let others = owned_by_others(patient, owner);
        if !others.is_empty() {
            let what = format!("{} of another owner than line: {}", counted(others.len(), "file"), some_of(&others));
            let fix = format!("chown -R {owner} {}", patient.layout.line().display());
            found.push(Finding::warning(what).why("the daemon may not be able to move or read them").fix(fix));
        }
        if found.is_empty() {
            found.push(Finding::ok("everything on the line has one owner"));
        }
        found
    }
}

fn owned_by_others(patient: &Patient, owner: u32) -> Vec<String> {
    let layout = &patient.layout;
    let mut paths: Vec<PathBuf> = layout.directories();
    for folder in layout.directories().iter().filter(|folder| **folder != layout.calibration()) {
        paths.extend(fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    let mut others: Vec<String> = paths
        .iter()
        .filter(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() != owner))
        .map(|path| patient.short(path))
        .collect();
    others.sort();
    others
}
