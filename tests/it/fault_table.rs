//! What the machine can do to a line, one fault after the other, and what becomes of the parts. The whole table, with the
//! faults that scripts inject, is in docs/VERIFICATION.md.
//!
//! Some faults need a disk that can be filled or closed: those tests mount a small one in memory, and say that they were
//! left out where this user may not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use factoryline::daemon::{Mode, NoObserver, Summary, run};
use factoryline::line::{Station, stamp};
use serde_json::json;

use crate::crash::{NODE, Supervisor};
use crate::factory::{Factory, until};
use crate::worker::fixture;

/// A disk in memory, unmounted when dropped.
struct Disk {
    at: PathBuf,
    _made: Option<tempfile::TempDir>,
}

impl Disk {
    fn mount(at: &Path, how: &str) -> bool {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", how, "none"]).arg(at).output();
        let mounted = done.is_ok_and(|done| done.status.success());
        if !mounted {
            println!("left out: this user may not mount a disk in memory");
        }
        mounted
    }

    fn of(megabytes: u32) -> Option<Disk> {
        let made = tempfile::tempdir().unwrap();
        let at = made.path().to_owned();
        Disk::mount(&at, &format!("size={megabytes}m")).then_some(Disk { at, _made: Some(made) })
    }

    /// One that cannot be written to, in place of a folder.
    fn over(folder: &Path) -> Option<Disk> {
        Disk::mount(folder, "ro,size=1m").then(|| Disk { at: folder.to_owned(), _made: None })
    }

    fn folder(&self) -> tempfile::TempDir {
        tempfile::tempdir_in(&self.at).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[test]
fn a_worker_that_is_stopped_is_taken_for_hung_and_tried_again() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "stopped", 0);
    let mut options = factory.options(Mode::Drain);
    options.config.stall = Duration::from_secs(2);
    assert_eq!(run(&options, &NoObserver).unwrap(), Summary { finished: 1, retried: 1, ..Summary::default() });
}

#[test]
fn a_mapped_file_that_is_cut_short_is_told_and_the_next_attempt_names_it() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "bus", 0);
    assert_eq!(run(&factory.options(Mode::Drain), &NoObserver).unwrap().retried, 1);
    let attempts = fs::read_to_string(factory.layout.work_root().join("x/attempts.json")).unwrap();
    assert!(attempts.contains("a file it was reading was cut short, or its disk failed"), "{attempts}");

    // The real thing: the shard is cut between two attempts.
    let factory = Factory::new();
    fs::write(factory.layout.node_file(), NODE).unwrap();
    let model = factory.layout.root().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(fixture("qwen3_moe-text")).unwrap().flatten() {
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let recipe = json!({
        "name": "tiny", "version": "1.0.0",
        "source": {"baseModel": "model", "architecture": "qwen3_moe", "isMoE": true},
        "stages": [{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}],
    });
    fs::write(factory.layout.station(Station::Intake).join("x.alloy.json"), recipe.to_string()).unwrap();
    let mut supervisor = Supervisor::start_real(&factory, &[], Some("quant:started"));
    until("the worker died", || factory.layout.work_root().join("x/attempts.json").exists());
    supervisor.kill();
    let shard = model.join("model.safetensors");
    let whole = fs::metadata(&shard).unwrap().len();
    fs::File::options().write(true).open(&shard).unwrap().set_len(whole / 2).unwrap();
    assert!(Supervisor::start_real(&factory, &["--drain"], None).end(&factory).success());
    let name = factory.files(Station::Rework).into_iter().find(|name| name.ends_with(".error.json")).unwrap();
    let error = factory.json(Station::Rework, &name);
    assert_eq!(error["class"], "source");
    assert!(error["error"].as_str().unwrap().contains("model.safetensors"), "{error}");
}

#[test]
fn a_full_disk_sends_the_part_back_and_the_line_lives() {
    let Some(disk) = Disk::of(8) else { return };
    let factory = Factory::in_folder(disk.folder());
    factory.drop_recipe("x.alloy.json", "brim", 1);
    // The worker fills the disk to the brim, and cannot even say so.
    assert_eq!(run(&factory.options(Mode::MaxParts(1)), &NoObserver).unwrap().rework, 1);
    let error = factory.json(Station::Rework, "x.error.json");
    assert_eq!(error["class"], "resource", "{error}");
    assert!(factory.events().iter().any(|(kind, _)| kind == "line/trouble"), "the full disk is told");
    // Nothing else was touched, and the line goes on when there is room.
    factory.check(&["x"]);
    fs::remove_file(factory.layout.root().join("ballast")).unwrap();
    factory.drop_recipe("y.alloy.json", "ok", 0);
    assert_eq!(run(&factory.options(Mode::Drain), &NoObserver).unwrap().finished, 1);
    assert_eq!(factory.check(&["x", "y"])["y"], Station::Finished);
}

#[test]
fn a_station_that_takes_nothing_loses_nothing_and_the_part_goes_on_when_it_does() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "slow", 0);
    let mut options = factory.options(Mode::Forever);
    options.config.rescan = Duration::from_millis(100);
    let (stop, layout) = (options.stop.clone(), factory.layout.clone());
    let daemon = std::thread::spawn(move || run(&options, &NoObserver));
    until("it is being built", || layout.station(Station::Assembly).join("x.alloy.json").exists());
    // Over the station now lies a disk that nobody may write to.
    let finished = layout.station(Station::Finished);
    if let Some(disk) = Disk::over(&finished) {
        until("it is told", || factory.events().iter().any(|(kind, _)| kind == "line/trouble"));
        assert_eq!(factory.files(Station::Assembly), ["x.alloy.json"]);
        drop(disk);
    }
    until("it is finished", || finished.join("x.alloy.json").exists());
    stop.request();
    daemon.join().unwrap().unwrap();
    assert_eq!(factory.check(&["x"])["x"], Station::Finished);
    assert_eq!(factory.json(Station::Finished, "x.result.json")["attempt"], 1, "its work was not done again");
}

#[test]
fn a_clock_that_was_set_back_holds_no_part_for_years() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "ok", 0);
    let years = stamp::millis(Utc::now() + TimeDelta::days(900));
    let retry = json!({"not_before": years, "reason": "r", "class": "infra", "retries": 0, "arrived_at": years});
    fs::write(factory.layout.station(Station::Intake).join("x.retry.json"), retry.to_string()).unwrap();
    assert_eq!(run(&factory.options(Mode::Drain), &NoObserver).unwrap().finished, 1);
}

#[test]
fn a_process_id_that_is_in_use_again_blocks_nothing() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "ok", 0);
    // As a supervisor leaves it that was killed, its number given to somebody who lives.
    let card = json!({"pid": std::process::id(), "start_ticks": 1, "boot_id": "another", "host": "here"});
    fs::write(factory.layout.worker_pid(), card.to_string()).unwrap();
    let beat = json!({"pid": std::process::id(), "state": "building", "current_part": "x.alloy.json"});
    fs::write(factory.layout.heartbeat(), beat.to_string()).unwrap();
    assert_eq!(run(&factory.options(Mode::Drain), &NoObserver).unwrap().finished, 1);
}

#[test]
fn torn_sidecars_cost_what_they_said_and_nothing_else() {
    let factory = Factory::new();
    let torn = |path: &Path| fs::write(path, b"{\"not_before\": \"20").unwrap();
    factory.drop_recipe("x.alloy.json", "ok", 0);
    torn(&factory.layout.station(Station::Intake).join("x.retry.json"));
    fs::create_dir_all(factory.layout.work_root().join("x")).unwrap();
    for name in ["attempt.json", "attempts.json", "result.json", "wait.json", ".stage-checkpoints.json"] {
        torn(&factory.layout.work_root().join("x").join(name));
    }
    torn(&factory.layout.station(Station::Rework).join("ghost.error.json"));
    torn(&factory.layout.heartbeat());
    torn(&factory.layout.cancel_request("nobody"));
    let summary = run(&factory.options(Mode::Drain), &NoObserver).unwrap();
    assert_eq!((summary.finished, summary.rework), (1, 0));
    // And one in assembly, whose last attempt cannot be read.
    let factory = Factory::new();
    fs::write(factory.layout.station(Station::Assembly).join("y.alloy.json"), crate::factory::recipe("ok", 0)).unwrap();
    fs::create_dir_all(factory.layout.work_root().join("y")).unwrap();
    torn(&factory.layout.work_root().join("y/attempt.json"));
    let summary = run(&factory.options(Mode::Drain), &NoObserver).unwrap();
    assert_eq!((summary.finished, summary.recovered), (1, 1));
}
