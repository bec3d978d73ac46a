//! Checks on machines that are made up.

use std::fs;

use super::*;
use crate::line::stamp;

/// A line and a machine in a temporary folder.
struct Ward {
    dir: tempfile::TempDir,
    layout: Layout,
}

impl Ward {
    fn new(config: &str) -> Ward {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::init(dir.path().join("root")).unwrap();
        fs::write(layout.node_file(), config).unwrap();
        let ward = Ward { dir, layout };
        ward.says("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 0 kB\n");
        ward.says("proc/self/cgroup", "0::/factory.slice/one\n");
        ward.says("proc/self/limits", "Limit Soft Hard Units\nMax open files            1024  4096  files\n");
        ward.says("sys/fs/cgroup/cgroup.controllers", "memory\n");
        ward.says("sys/fs/cgroup/factory.slice/one/memory.max", "max\n");
        for (key, value) in [("max_user_watches", 8192), ("max_user_instances", 128), ("max_queued_events", 16384)] {
            ward.says(&format!("proc/sys/fs/inotify/{key}"), &format!("{value}\n"));
        }
        ward.says("run/systemd/timesync/synchronized", "");
        ward
    }

    fn says(&self, file: &str, text: &str) {
        let path = self.dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn machine(&self) -> Machine {
        let place = |name: &str| self.dir.path().join(name);
        let gpu = GpuAnswer::None("no library".into());
        Machine { proc: place("proc"), sys: place("sys"), run: place("run"), now: chrono::Utc::now(), gpu, cuda: false }
    }

    /// Level, words, reason and fix of what the named checks find, a line each.
    fn found(&self, machine: Machine, checks: &[&str]) -> String {
        let names: Vec<String> = checks.iter().map(|&name| name.to_owned()).collect();
        let patient = Patient::new(self.layout.clone(), machine);
        let row = |finding: Finding| {
            let tail = [finding.why, finding.fix].map(|text| text.map(|text| format!(" | {text}")).unwrap_or_default());
            format!("{} {}: {}{}", finding.level.as_str(), finding.check, finding.what, tail.concat())
        };
        let rows: Vec<String> = examine(&patient, &names).into_iter().map(row).collect();
        rows.join("\n").replace(&self.dir.path().display().to_string(), "DIR")
    }
}

const MACHINE: [&str; 4] = ["device", "memory", "cgroup", "limits"];

#[test]
fn a_good_machine() {
    let ward = Ward::new("[forge]\nmemory_budget_gb = 4\n");
    insta::assert_snapshot!(ward.found(ward.machine(), &MACHINE), @r"
    ok device: no NVIDIA driver answers; parts are built on the CPU
    ok memory: one pass may use 4.00 GB of 8.19 GB, 6.14 GB available, 0 B swap
    ok cgroup: the control group sets no limit on memory; workers can be given limits of their own
    ok limits: inotify and open files: enough
    ");
}

#[test]
fn a_poor_machine() {
    let ward = Ward::new("[forge]\nmemory_budget_gb = 7\ndevice = \"cuda:1\"\n");
    ward.says("sys/fs/cgroup/factory.slice/memory.max", "2000000000\n");
    ward.says("proc/self/limits", "Max open files            200  4096  files\n");
    ward.says("proc/sys/fs/inotify/max_user_instances", "2\n");
    let gpu = GpuAnswer::Gpus { count: 1, driver: "550.1".into() };
    insta::assert_snapshot!(ward.found(Machine { gpu, ..ward.machine() }, &MACHINE), @r#"
    error device: forge.device is cuda:1, but this build computes on the CPU only | every part fails | build with `--features cuda` (docs/GPU.md), or set forge.device = "auto"
    error device: forge.device is cuda:1, the driver shows 1 GPU | nvidia-smi -L lists them; set forge.device in factory_node.toml
    warning memory: one pass may use 7.00 GB, only 6.14 GB are available now | other processes hold the rest; a large part may be killed for memory | end what is not needed, or lower forge.memory_budget_gb in factory_node.toml
    error cgroup: DIR/sys/fs/cgroup/factory.slice/memory.max is 2.00 GB | one pass may use 7.00 GB: the kernel kills the worker before it gets there | lower forge.memory_budget_gb in factory_node.toml, or raise MemoryMax= of the service
    warning limits: fs.inotify.max_user_instances is 2, at least 16 are advised here | changes in intake may go unseen; the daemon then looks every forge.rescan_seconds | sysctl fs.inotify.max_user_instances=1024
    error limits: at most 200 files may be open | a model of many files, its copies and logs need more | ulimit -n 65536, or LimitNOFILE=65536 in the service
    "#);
}

#[test]
fn gpus_and_builds_that_do_not_match() {
    let ward = Ward::new("");
    let gpu = || GpuAnswer::Gpus { count: 2, driver: "550.1".into() };
    let device = |machine| ward.found(machine, &["device"]);
    let rows = [
        device(Machine { gpu: gpu(), cuda: true, ..ward.machine() }),
        device(Machine { gpu: gpu(), ..ward.machine() }),
        device(Machine { cuda: true, ..ward.machine() }),
    ];
    insta::assert_snapshot!(rows.join("\n"), @r"
    ok device: 2 NVIDIA GPUs, driver 550.1
    note device: 2 NVIDIA GPUs (driver 550.1), but this build computes on the CPU only | build with `--features cuda` (docs/GPU.md)
    warning device: this build can use a GPU, but no NVIDIA driver answers (no library) | parts are built on the CPU | nvidia-smi says more
    ");
}

#[test]
fn clocks_that_cannot_be_right() {
    let ward = Ward::new("");
    let clock = |now: &str| ward.found(Machine { now: stamp::parse(now).unwrap(), ..ward.machine() }, &["clock"]);
    insta::assert_snapshot!(clock("1970-01-01T00:05:00Z"), @"error clock: the clock says 1970-01-01T00:05:00Z | order of arrival and back-offs follow the clock | set the clock (timedatectl set-ntp true), then go on");
    let event = "{\"timestamp\":\"2031-05-05T12:00:00.000Z\",\"kind\":\"line/test\",\"seq\":1}\n";
    fs::write(ward.layout.events(), event).unwrap();
    assert_eq!(clock("2031-05-05T11:59:30Z"), "ok clock: 2031-05-05T11:59:30Z, kept in step");
    insta::assert_snapshot!(clock("2031-05-05T11:58:00Z"), @"error clock: the clock says 2031-05-05T11:58:00Z, but the newest event is of 2031-05-05T12:00:00Z | it was set back, or ahead before: order of arrival and back-offs follow the clock | set the clock (timedatectl set-ntp true), then go on");
    fs::remove_file(ward.layout.events()).unwrap();
    let finished = ward.layout.station(crate::line::Station::Finished);
    fs::write(finished.join("x.alloy.json"), "{}").unwrap();
    let sidecar = fs::File::create(finished.join("x.result.json")).unwrap();
    sidecar.set_modified(std::time::SystemTime::from(stamp::parse("2090-05-05T12:00:00Z").unwrap())).unwrap();
    let told = clock("2090-05-05T11:58:00Z");
    assert!(told.contains("but finished/x.result.json is of 2090-05-05T12:00:00Z"), "{told}");
    fs::remove_file(ward.dir.path().join("run/systemd/timesync/synchronized")).unwrap();
    insta::assert_snapshot!(clock("2090-05-05T12:00:00Z"), @"note clock: 2090-05-05T12:00:00Z; nothing shows that the clock is kept in step | timedatectl set-ntp true");
}

#[test]
fn every_check_answers_and_has_a_name_of_its_own() {
    let ward = Ward::new("[grid\n");
    let patient = Patient::new(ward.layout.clone(), ward.machine());
    let names: std::collections::BTreeSet<&str> = CHECKS.iter().map(|check| check.name()).collect();
    assert_eq!(names.len(), CHECKS.len());
    for check in CHECKS {
        assert!(!check.look(&patient).is_empty(), "{}", check.name());
    }
}

#[test]
fn a_line_that_is_gone_is_told_of_by_every_check_without_panic() {
    let ward = Ward::new("");
    fs::remove_dir_all(ward.layout.root()).unwrap();
    let found = ward.found(ward.machine(), &["permissions", "ownership", "parts"]);
    assert!(found.lines().all(|line| line.starts_with("error")), "{found}");
}
