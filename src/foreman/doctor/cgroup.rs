//! The control group this process lives in: a limit below the budget kills workers.

use std::path::PathBuf;

use rustix::fs::{Access, access};

use super::machine::text;
use super::{Check, Finding, Patient};
use crate::units::Bytes;

pub struct CgroupCheck;

impl Check for CgroupCheck {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let Some(folder) = own_folder(patient) else {
            return vec![Finding::ok("no control group of version 2 here")];
        };
        // A limit higher up holds as well.
        let top = patient.machine.sys.join("fs/cgroup");
        let limits = folder.ancestors().take_while(|dir| dir.starts_with(&top)).filter_map(|dir| {
            let path = dir.join("memory.max");
            Some((text(&path)?.trim().parse::<u64>().ok()?, path))
        });
        let own = match access(&folder, Access::WRITE_OK) {
            Ok(()) => "workers can be given limits of their own",
            Err(_) => "it cannot be written: workers share its limits",
        };
        let Some((limit, path)) = limits.min() else {
            return vec![Finding::ok(format!("the control group sets no limit on memory; {own}"))];
        };
        let budget = patient.node.as_ref().map_or(Bytes(0), |node| node.forge.memory_budget);
        let what = format!("{} is {}", path.display(), Bytes(limit));
        if budget.0 > limit {
            let why = format!("one pass may use {budget}: the kernel kills the worker before it gets there");
            let fix = "lower forge.memory_budget_gb in factory_node.toml, or raise MemoryMax= of the service";
            return vec![Finding::error(what).why(why).fix(fix)];
        }
        vec![Finding::ok(format!("{what}, one pass may use {budget}; {own}"))]
    }
}

/// The folder of our own group in a unified hierarchy.
fn own_folder(patient: &Patient) -> Option<PathBuf> {
    let groups = text(&patient.machine.proc.join("self/cgroup"))?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let top = patient.machine.sys.join("fs/cgroup");
    top.join("cgroup.controllers").exists().then(|| top.join(path.trim_start_matches('/')))
}
