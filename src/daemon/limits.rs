//! What a worker may use of this machine: its place in the queue for processors and disks, and its memory.
//!
//! Memory is limited where it can be: by a control group of its own (version 2, when this process may make one), which
//! the kernel keeps; else by a watch that ends the worker before the kernel has to end somebody. The watch runs in both
//! cases and also looks at what the machine has left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getpriority_process, prlimit, setpriority_process};

use crate::node::{IoPriority, memory_field, memory_of};
use crate::units::Bytes;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What a worker can take between two looks, at least.
const BACKSTOP: u64 = 4_000_000_000;
/// The machine is out of memory when less than this share of it is free.
const LEAST_FREE: u64 = 50;

/// Limits of every worker of a supervisor; none by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Niceness, where the supervisor's own is not higher.
    pub nice: u8,
    pub io_priority: IoPriority,
    /// Memory that is not files: what a worker allocates.
    pub memory: Option<Bytes>,
    pub control_groups: ControlGroups,
}

/// Where control groups are looked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlGroups {
    /// The mounted hierarchy.
    pub root: PathBuf,
    /// The file that names the group of this process in it.
    pub of_process: PathBuf,
}

impl Default for ControlGroups {
    fn default() -> Self {
        ControlGroups { root: "/sys/fs/cgroup".into(), of_process: "/proc/self/cgroup".into() }
    }
}

/// A worker that is kept within its limits, until dropped.
pub struct Kept {
    memory: Option<Bytes>,
    pid: Pid,
    group: Option<PathBuf>,
    last_look: Instant,
}

/// Puts limits on a worker that has just started.
pub fn keep(limits: &Limits, pid: Pid) -> Kept {
    // Of a process that has ended already nothing has to be limited.
    let own = getpriority_process(None).unwrap_or(0);
    let _ = setpriority_process(Some(pid), own.max(i32::from(limits.nice)));
    limits.io_priority.give_to(pid);
    let group = limits.memory.and_then(|memory| limits.control_groups.limited(pid, memory));
    // A GPU's driver reserves far more addresses than it uses.
    if let (None, Some(memory), false) = (&group, limits.memory, cfg!(feature = "cuda")) {
        // A backstop beyond what the watch can miss: whoever asks for this much at once is told no by the kernel.
        let most = Some(memory.0.saturating_add(memory.0.max(BACKSTOP)));
        let _ = prlimit(Some(pid), Resource::Data, Rlimit { current: most, maximum: most });
    }
    Kept { memory: limits.memory, pid, group, last_look: Instant::now() }
}

impl Kept {
    /// Why the worker has to end, when it has taken too much; looked at a few times a second.
    pub fn too_much(&mut self) -> Option<String> {
        if self.last_look.elapsed() < LOOK {
            return None;
        }
        self.last_look = Instant::now();
        // Pages of mapped files are not counted: the kernel takes them back when it needs them.
        let used = memory_of(Some(self.pid), "RssAnon")?;
        if let Some(most) = self.memory.filter(|most| used > *most) {
            return Some(format!("the worker has allocated {used} of memory, its limit is {most}"));
        }
        let (available, total) = machine()?;
        // Somebody else's hunger is no fault of a small worker.
        let is_the_reason = used.0 > total.0 / 4;
        (is_the_reason && available.0 < total.0 / LEAST_FREE)
            .then(|| format!("the machine has {available} of memory left and the worker has allocated {used}"))
    }

    /// True when its control group had to kill it.
    pub fn was_killed_for_memory(&self) -> bool {
        let events = self.group.as_ref().and_then(|group| fs::read_to_string(group.join("memory.events")).ok());
        let kills =
            |text: String| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        events.and_then(kills).is_some_and(|kills| kills > 0)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            // Fails while something still lives in it; an empty group costs nothing.
            let _ = fs::remove_dir(group);
        }
    }
}

impl ControlGroups {
    /// The folder of this process's group; `None` without version 2 of control groups.
    fn own(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(&self.of_process).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        let folder = self.root.join(path.trim().trim_start_matches('/'));
        folder.join("cgroup.procs").is_file().then_some(folder)
    }

    /// Moves a process into a new group of at most this memory; `None` when that cannot be had here.
    fn limited(&self, pid: Pid, memory: Bytes) -> Option<PathBuf> {
        let own = self.own()?;
        let controls = |file: &str| fs::read_to_string(own.join(file)).unwrap_or_default();
        if !controls("cgroup.subtree_control").split_whitespace().any(|c| c == "memory") {
            if !controls("cgroup.controllers").split_whitespace().any(|c| c == "memory") {
                return None;
            }
            // A group with members cannot have limited groups below it: its members, this process, move aside.
            let aside = own.join("supervisor");
            let _ = fs::create_dir(&aside);
            fs::write(aside.join("cgroup.procs"), std::process::id().to_string()).ok()?;
            fs::write(own.join("cgroup.subtree_control"), "+memory").ok()?;
        }
        let group = own.join(format!("worker-{}", pid.as_raw_nonzero()));
        let _ = fs::create_dir(&group);
        let limit = |file: &str, value: &str| fs::write(group.join(file), value);
        let done = limit("memory.max", &memory.0.to_string())
            .and_then(|()| limit("cgroup.procs", &pid.as_raw_nonzero().to_string()));
        // Swap would only make it slow; a kernel without swap accounting has no such file.
        let _ = limit("memory.swap.max", "0");
        if done.is_err() {
            let _ = fs::remove_dir(&group);
            return None;
        }
        Some(group)
    }
}

/// What is left for new work, and all there is.
fn machine() -> Option<(Bytes, Bytes)> {
    let path = Path::new("/proc/meminfo");
    Some((memory_field(path, "MemAvailable")?, memory_field(path, "MemTotal")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Pid {
        rustix::process::getpid()
    }

    #[test]
    fn a_worker_beyond_its_limit_is_told_from_one_within() {
        let kept = |memory| Kept { memory, pid: here(), group: None, last_look: Instant::now() - LOOK };
        let why = kept(Some(Bytes(1))).too_much().unwrap();
        assert!(why.starts_with("the worker has allocated ") && why.ends_with(" of memory, its limit is 1 B"), "{why}");
        assert_eq!(kept(Some(Bytes(u64::MAX))).too_much(), None);
        assert_eq!(kept(None).too_much(), None);
        let mut again = kept(Some(Bytes(1)));
        assert!(again.too_much().is_some());
        assert_eq!(again.too_much(), None, "not looked at again at once");
    }

    /// A tree of files as the kernel shows it.
    fn groups(dir: &Path, controllers: &str) -> ControlGroups {
        let own = dir.join("line.service");
        fs::create_dir_all(&own).unwrap();
        for (name, text) in [("cgroup.procs", ""), ("cgroup.controllers", controllers), ("cgroup.subtree_control", "")]
        {
            fs::write(own.join(name), text).unwrap();
        }
        fs::write(dir.join("self"), "5:cpu:/\n0::/line.service\n").unwrap();
        ControlGroups { root: dir.to_owned(), of_process: dir.join("self") }
    }

    #[test]
    fn a_control_group_is_used_where_one_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("line.service");
        let group = groups(dir.path(), "cpu memory").limited(here(), Bytes(5_000)).unwrap();
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&group.join("memory.max")), "5000");
        assert_eq!(read(&group.join("cgroup.procs")), here().as_raw_nonzero().to_string());
        assert_eq!(read(&own.join("cgroup.subtree_control")), "+memory");
        assert_eq!(read(&own.join("supervisor/cgroup.procs")), std::process::id().to_string());
        fs::write(group.join("memory.events"), "low 0\noom 3\noom_kill 1\n").unwrap();
        let kept = Kept { memory: None, pid: here(), group: Some(group), last_look: Instant::now() };
        assert!(kept.was_killed_for_memory());
        let other = tempfile::tempdir().unwrap();
        assert_eq!(groups(other.path(), "cpu").limited(here(), Bytes(5_000)), None);
        fs::write(other.path().join("self"), "5:memory:/\n").unwrap();
        assert_eq!(groups(other.path(), "memory").of_process, other.path().join("self"));
    }
}
