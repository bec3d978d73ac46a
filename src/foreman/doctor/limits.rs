//! Limits of the kernel: inotify, open files.

use super::machine::text;
use super::{Check, Finding, Patient};
use crate::line::{Station, shelf};

pub struct LimitsCheck;

impl Check for LimitsCheck {
    fn name(&self) -> &'static str {
        "limits"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let mut found = Vec::new();
        let waiting = shelf::list(&patient.layout, Station::Intake).map_or(0, |parts| parts.len() as u64);
        let polled = "changes in intake may go unseen; the daemon then looks every forge.rescan_seconds";
        for (key, least) in [("max_user_watches", 64), ("max_user_instances", 16), ("max_queued_events", 2 * waiting)] {
            let Some(value) = patient.machine.number(&format!("sys/fs/inotify/{key}")) else { continue };
            if value < least {
                let what = format!("fs.inotify.{key} is {value}, at least {least} are advised here");
                let fix = format!("sysctl fs.inotify.{key}={}", least.max(1024));
                found.push(Finding::warning(what).why(polled).fix(fix));
            }
        }
        if let Some(files) = open_files(patient).filter(|&files| files < 1024) {
            let what = format!("at most {files} files may be open");
            let why = "a model of many files, its copies and logs need more";
            let fix = "ulimit -n 65536, or LimitNOFILE=65536 in the service";
            let finding = if files < 256 { Finding::error(what) } else { Finding::warning(what) };
            found.push(finding.why(why).fix(fix));
        }
        if found.is_empty() {
            found.push(Finding::ok("inotify and open files: enough"));
        }
        found
    }
}

/// The soft limit of this process; `None` when it is unlimited or unknown.
fn open_files(patient: &Patient) -> Option<u64> {
    let limits = text(&patient.machine.proc.join("self/limits"))?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}
