//! Who a process is, beyond its reusable PID.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process: the same one only if PID, start time and boot all agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessIdentity {
    pub pid: u32,
    /// Start of the process in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`: names the machine and this boot of it.
    pub boot_id: String,
}

/// What can be said about another process from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    Alive,
    Dead,
    /// It belongs to another machine or boot, or nothing was recorded to tell by.
    Elsewhere,
}

impl ProcessIdentity {
    pub fn current() -> Self {
        let pid = std::process::id();
        ProcessIdentity { pid, start_ticks: start_ticks(pid).unwrap_or(0), boot_id: boot_id() }
    }

    /// The identity of a process on this machine; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        Some(ProcessIdentity { pid, start_ticks: start_ticks(pid)?, boot_id: boot_id() })
    }

    /// Judged by identity: a recycled PID is a dead process, another boot of this machine cannot be told from
    /// another machine and is reported as such.
    pub fn liveness(&self) -> Liveness {
        if self.pid == 0 || self.boot_id.is_empty() || self.boot_id != boot_id() {
            return Liveness::Elsewhere;
        }
        match start_ticks(self.pid) {
            Some(ticks) if ticks == self.start_ticks => Liveness::Alive,
            _ => Liveness::Dead,
        }
    }
}

/// Name of this machine, for people.
pub fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map(|h| h.trim().to_owned()).unwrap_or_else(|_| "unknown".into())
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|b| b.trim().to_owned()).unwrap_or_default()
}

/// Zombies count as gone: they hold no lock and write no file.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses: fields are counted after the last one.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    if fields.first().is_some_and(|state| *state == "Z" || *state == "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_pid_is_not_alive() {
        let me = ProcessIdentity::current();
        assert_eq!(me.liveness(), Liveness::Alive);
        assert_eq!(ProcessIdentity { start_ticks: me.start_ticks + 1, ..me.clone() }.liveness(), Liveness::Dead);
        assert_eq!(ProcessIdentity { boot_id: "another".into(), ..me }.liveness(), Liveness::Elsewhere);
        assert_eq!(ProcessIdentity::default().liveness(), Liveness::Elsewhere);
    }
}
