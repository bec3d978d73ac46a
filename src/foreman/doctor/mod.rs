//! What may be wrong with a line and its machine, found before a part finds it.
//!
//! Enters: a line that may be broken in any way. Leaves: [`Finding`]s, each with its reason and the next step. A check
//! looks and probes; it mends nothing. One file and one line of the list each.

mod machine;

use serde::Serialize;

pub use machine::{GpuAnswer, Machine};

use crate::line::Layout;
use crate::node::{Node, NodeError};
use crate::registry;

registry! { pub CHECKS: dyn Check {
    config => ConfigCheck,
    device => DeviceCheck,
    memory => MemoryCheck,
    cgroup => CgroupCheck,
    limits => LimitsCheck,
    clock => ClockCheck,
    filesystem => FilesystemCheck,
    space => SpaceCheck,
    tiers => TiersCheck,
    permissions => PermissionsCheck,
    ownership => OwnershipCheck,
    locks => LocksCheck,
    heartbeat => HeartbeatCheck,
    parts => PartsCheck,
    quarantine => QuarantineCheck,
    work => WorkCheck,
    logs => LogsCheck,
} }

/// How bad a finding is. The worst one decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// It works, but not well, or not for long.
    Warning,
    /// Parts will fail, or the line cannot be worked.
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    pub level: Level,
    pub what: String,
    /// Why it matters.
    pub why: Option<String>,
    /// A command or a key that mends it.
    pub fix: Option<String>,
}

impl Finding {
    fn new(level: Level, what: impl Into<String>) -> Finding {
        Finding { check: "", level, what: what.into(), why: None, fix: None }
    }
    fn ok(what: impl Into<String>) -> Finding {
        Self::new(Level::Ok, what)
    }
    fn note(what: impl Into<String>) -> Finding {
        Self::new(Level::Note, what)
    }
    fn warning(what: impl Into<String>) -> Finding {
        Self::new(Level::Warning, what)
    }
    fn error(what: impl Into<String>) -> Finding {
        Self::new(Level::Error, what)
    }
    fn why(self, why: impl Into<String>) -> Finding {
        Finding { why: Some(why.into()), ..self }
    }
    fn fix(self, fix: impl Into<String>) -> Finding {
        Finding { fix: Some(fix.into()), ..self }
    }
}

/// Looks at one side of a line.
pub trait Check: Sync {
    fn name(&self) -> &'static str;
    /// What it found; at least one finding.
    fn look(&self, patient: &Patient) -> Vec<Finding>;
}

/// What is looked at.
pub struct Patient {
    pub layout: Layout,
    /// What the file says, or, where it cannot be read, what is detected; `None` when neither can be had.
    pub node: Option<Node>,
    /// Why the file cannot be used.
    pub refused: Option<NodeError>,
    pub machine: Machine,
}

impl Patient {
    pub fn new(layout: Layout, machine: Machine) -> Patient {
        let (node, refused) = match Node::read(layout.root()) {
            Ok(node) => (Some(node), None),
            Err(error) => (Node::detected().ok(), Some(error)),
        };
        Patient { layout, node, refused, machine }
    }

    /// A path as an operator types it: relative to the root where it lies below.
    fn short(&self, path: &std::path::Path) -> String {
        path.strip_prefix(self.layout.root()).unwrap_or(path).display().to_string()
    }
}

/// Runs the checks of these names, or all, in the order of the list.
pub fn examine(patient: &Patient, only: &[String]) -> Vec<Finding> {
    let wanted = |check: &&&dyn Check| only.is_empty() || only.iter().any(|name| name == check.name());
    let look = |check: &&dyn Check| {
        let mut found = check.look(patient);
        found.iter_mut().for_each(|finding| finding.check = check.name());
        found
    };
    CHECKS.iter().filter(wanted).flat_map(look).collect()
}

/// The first few of many names.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `1 file`, `3 files`.
fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests;
