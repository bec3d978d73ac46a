//! Locks: who holds the line, and claims of parts that are not being built.

use std::collections::BTreeSet;
use std::fs;

use super::{Check, Finding, Patient};
use crate::line::{ClaimLock, LineLock, PartName, Station, lock, shelf};

pub struct LocksCheck;

impl Check for LocksCheck {
    fn name(&self) -> &'static str {
        "locks"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let layout = &patient.layout;
        let (held, holder) = (LineLock::is_held(layout), lock::holder(layout));
        let mut found = vec![match (held, holder) {
            (true, Some(who)) => Finding::ok(format!("process {} on {} works the line", who.process.pid, who.host)),
            (true, None) => Finding::ok("somebody works the line"),
            (false, None) => Finding::ok("nobody works the line"),
            (false, Some(who)) => {
                let what = format!("line/.worker.pid names process {}, which holds the line no more", who.process.pid);
                Finding::note(what).why("it ended without a word; the text is harmless, only the lock counts")
            }
        }];
        let building: BTreeSet<String> = shelf::list(layout, Station::Assembly)
            .unwrap_or_default()
            .into_iter()
            .map(|part| part.name.base().to_owned())
            .collect();
        for entry in fs::read_dir(layout.work_root()).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().and_then(|name| PartName::new(name).ok()) else { continue };
            if building.contains(name.base()) || !ClaimLock::is_held(layout, &name).unwrap_or(false) {
                continue;
            }
            let what = format!("work/{0}/.claim.lock is held, but {0} is not in assembly", name.base());
            let why = "a worker that should have ended still lives, and the part cannot be built again";
            let fix = format!("fuser -v work/{}/.claim.lock names it; end it", name.base());
            found.push(Finding::warning(what).why(why).fix(fix));
        }
        found
    }
}
