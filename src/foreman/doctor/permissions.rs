//! Every folder of the line: there, and may we really make and remove a file in it.

use std::fs::{self, OpenOptions};

use super::{Check, Finding, Patient, counted};

pub struct PermissionsCheck;

impl Check for PermissionsCheck {
    fn name(&self) -> &'static str {
        "permissions"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let folders = patient.layout.directories();
        let mut found = Vec::new();
        for folder in &folders {
            let short = patient.short(folder);
            if !folder.is_dir() {
                let what = format!("{short} is missing or no folder");
                found.push(Finding::error(what).why("parts cannot be moved there").fix("foreman init"));
                continue;
            }
            // Its name says that somebody is still writing it: a daemon leaves it alone.
            let probe = folder.join(format!(".doctor-{}.tmp", std::process::id()));
            let tried = OpenOptions::new().write(true).create_new(true).open(&probe).map(drop);
            if let Err(error) = tried.and_then(|()| fs::remove_file(&probe)) {
                let what = format!("{short}: a file cannot be made and removed here: {error}");
                let fix = format!("chown -R USER {} (the daemon's user), or mount it for writing", folder.display());
                found.push(Finding::error(what).why("parts cannot be moved there").fix(fix));
            }
        }
        if found.is_empty() {
            found.push(Finding::ok(format!("{} can be written", counted(folders.len(), "folder"))));
        }
        found
    }
}
