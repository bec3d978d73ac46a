//! kill -9 of the worker and of the supervisor, at many moments of a small part, with the real `factoryd`: first with
//! a worker made of shell, then with the real one on a committed tiny model, in each of its stages.
//!
//! After any of it the part stands somewhere whole, and the next `factoryd --drain` brings it to finished, built by
//! one worker at a time, with the same artifact as without a crash.

use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use factoryline::line::{Station, heartbeat, shelf};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::factory::{Factory, recipe, until};
use crate::worker::fixture;

pub const NODE: &str = "[forge]\nretry_backoff_seconds = 0.02\nrescan_seconds = 0.2\nstop_grace_seconds = 1\n\n\
                    [grid]\nheartbeat_interval_seconds = 0.2\n";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Worker,
    Supervisor,
    Both,
}

/// A supervisor process of its own. Killed with its worker when a test fails early.
pub struct Supervisor {
    child: Child,
}

impl Supervisor {
    /// With the worker made of shell.
    fn start(factory: &Factory, mode: &[&str]) -> Supervisor {
        let words = factory.worker_words().map(|word| format!("--worker={word}"));
        let words: Vec<&str> = mode.iter().copied().chain(words.iter().map(String::as_str)).collect();
        Self::start_real(factory, &words, None)
    }

    /// With real workers, which die at a named point.
    pub fn start_real(factory: &Factory, words: &[&str], crash_at: Option<&str>) -> Supervisor {
        let mut command = Command::new(env!("CARGO_BIN_EXE_factoryd"));
        match crash_at {
            Some(point) => command.env("FACTORYLINE_CRASH_AT", point),
            None => command.env_remove("FACTORYLINE_CRASH_AT"),
        };
        let log = fs::File::create(factory.layout.root().join("factoryd.log")).unwrap();
        let command = command.arg("--root").arg(factory.layout.root()).args(words);
        Supervisor { child: command.stdin(Stdio::null()).stderr(log).spawn().unwrap() }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; a supervisor that does not end is killed and reported.
    pub fn end(mut self, factory: &Factory) -> ExitStatus {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        self.kill();
        let log = fs::read_to_string(factory.layout.root().join("factoryd.log")).unwrap_or_default();
        panic!("the supervisor does not end:\n{log}");
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Ended already unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn factory() -> Factory {
    let factory = Factory::new();
    fs::write(factory.layout.node_file(), NODE).unwrap();
    factory
}

fn drain(factory: &Factory) {
    let status = Supervisor::start(factory, &["--drain"]).end(factory);
    assert!(status.success(), "{status}");
}

/// Kills the worker of the part in assembly, if one is known.
fn kill_worker(factory: &Factory) {
    let beat = heartbeat::read(&factory.layout).ok().flatten();
    if let Some(pid) = beat.and_then(|b| b.worker_pid).and_then(|pid| Pid::from_raw(pid as i32)) {
        // Gone already is as good.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Wherever the cut fell: the recipe is somewhere, whole, and never under two names that are two files.
fn is_somewhere(factory: &Factory, text: &str) {
    let mut found = 0;
    for station in Station::ALL {
        for part in shelf::list(&factory.layout, station).unwrap() {
            assert_eq!(fs::read_to_string(&part.path).unwrap(), text);
            found += 1;
        }
    }
    assert!((1..=2).contains(&found), "the part stands in {found} places");
}

/// From the workers' own trace: once a worker began, no earlier one wrote anything.
fn one_worker_at_a_time(factory: &Factory) {
    let trace = fs::read_to_string(factory.layout.work_root().join("x/trace")).unwrap();
    let mut begun = Vec::new();
    for line in trace.lines() {
        let (what, token) = line.split_once(' ').unwrap();
        match what {
            "begin" => begun.push(token.to_owned()),
            _ => assert_eq!(begun.last().map(String::as_str), Some(token), "an older worker lived on:\n{trace}"),
        }
    }
}

#[test]
fn a_part_survives_the_death_of_anybody_at_any_moment() {
    let text = recipe("steps", 0);
    for round in 0..21u64 {
        let victim = [Victim::Supervisor, Victim::Worker, Victim::Both][round as usize % 3];
        let factory = factory();
        factory.drop_recipe("x.alloy.json", "steps", 0);
        fs::write(factory.layout.station(Station::Intake).join("x.notes.txt"), "mine").unwrap();
        let mut supervisor = Supervisor::start(&factory, &["--drain"]);
        std::thread::sleep(Duration::from_millis(5 + 11 * round));
        if victim != Victim::Supervisor {
            kill_worker(&factory);
        }
        if victim != Victim::Worker {
            supervisor.kill();
        }
        is_somewhere(&factory, &text);
        if victim == Victim::Worker {
            assert!(supervisor.end(&factory).success());
        }
        drain(&factory);
        let stands = factory.check(&["x"]);
        assert_eq!(stands["x"], Station::Finished, "round {round}, {victim:?}");
        assert!(factory.files(Station::Finished).contains(&"x.notes.txt".to_owned()));
        one_worker_at_a_time(&factory);
    }
}

#[test]
fn a_worker_that_outlives_its_supervisor_is_left_alone_and_its_result_is_shipped() {
    let factory = factory();
    factory.drop_recipe("x.alloy.json", "slow", 0);
    let mut supervisor = Supervisor::start(&factory, &[]);
    let log = factory.layout.work_root().join("x/worker.log");
    until("the worker works", || fs::read_to_string(&log).is_ok_and(|text| !text.is_empty()));
    supervisor.kill();
    drain(&factory);
    assert_eq!(factory.check(&["x"])["x"], Station::Finished);
    assert_eq!(factory.json(Station::Finished, "x.result.json")["attempt"], 1, "nobody built it a second time");
    assert_eq!(fs::read_to_string(&log).unwrap(), "working on slow\n");
}

#[test]
fn a_part_that_loses_its_supervisor_again_and_again_ends_in_rework() {
    let factory = factory();
    factory.drop_recipe("x.alloy.json", "hang", 0);
    for _ in 0..4 {
        let mut supervisor = Supervisor::start(&factory, &[]);
        until("the worker works", || {
            let beat = heartbeat::read(&factory.layout).ok().flatten();
            beat.is_some_and(|b| b.stage.is_some() && b.process.pid == supervisor.child.id())
        });
        supervisor.kill();
        kill_group(&factory);
    }
    drain(&factory);
    assert_eq!(factory.files(Station::Rework), ["x.retry3.alloy.json", "x.retry3.error.json"]);
    let error = factory.json(Station::Rework, "x.retry3.error.json");
    assert_eq!((&error["class"], &error["retries"]), (&"infra".into(), &3.into()));
}

/// Kills the worker and everything it started.
fn kill_group(factory: &Factory) {
    let beat = heartbeat::read(&factory.layout).unwrap().unwrap();
    let group = Pid::from_raw(beat.worker_pid.unwrap() as i32).unwrap();
    rustix::process::kill_process_group(group, Signal::KILL).unwrap();
}

#[test]
fn sigterm_gives_the_part_back_and_a_second_supervisor_is_refused_with_8() {
    let factory = factory();
    factory.drop_recipe("x.alloy.json", "hang", 0);
    let supervisor = Supervisor::start(&factory, &[]);
    until("the part is in assembly", || !factory.files(Station::Assembly).is_empty());
    let second = Supervisor::start(&factory, &["--once"]).end(&factory);
    assert_eq!(second.code(), Some(8));
    supervisor.signal(Signal::TERM);
    assert!(supervisor.end(&factory).success());
    assert_eq!(factory.files(Station::Intake), ["x.alloy.json", "x.retry.json"]);
    assert_eq!(factory.json(Station::Intake, "x.retry.json")["retries"], 0);
}

/// A line whose one part is a whole chain on the tiny model that reads text.
fn real_factory() -> Factory {
    let factory = factory();
    let words = "The mill stood by the river, and the river turned the mill, and nobody asked why. ";
    let line = json!({"text": words.repeat(3)});
    fs::write(factory.layout.calibration().join("calib.jsonl"), format!("{line}\n{line}\n")).unwrap();
    fs::write(factory.layout.calibration().join("held.txt"), words.repeat(12)).unwrap();
    let recipe = json!({
        "name": "tiny", "version": "1.0.0",
        "source": {"baseModel": fixture("qwen3_moe-text"), "architecture": "qwen3_moe", "isMoE": true},
        "stages": [
            {"type": "expert-activation-profile", "calibrationCorpus": "calib.jsonl", "maxLength": 128},
            {"type": "expert-prune", "keepExpertsPerLayer": 3},
            {"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]},
            {"type": "eval", "benchmarks": [
                {"name": "perplexity", "data": "held.txt", "context": 32, "convention": "windowed"}]},
            {"type": "package", "format": "gguf"},
        ],
    });
    let intake = factory.layout.station(Station::Intake);
    fs::write(intake.join("x.alloy.json"), recipe.to_string()).unwrap();
    fs::write(intake.join("x.notes.txt"), "mine").unwrap();
    factory
}

/// Brings the part to its end and gives the hash of what was made.
pub fn finish(factory: &Factory, story: &str) -> String {
    let status = Supervisor::start_real(factory, &["--drain"], None).end(factory);
    let log = fs::read_to_string(factory.layout.root().join("factoryd.log")).unwrap();
    assert!(status.success(), "{story}: {log}");
    assert_eq!(factory.check(&["x"])["x"], Station::Finished, "{story}: {log}");
    assert!(factory.files(Station::Finished).contains(&"x.notes.txt".to_owned()), "{story}");
    let part = &shelf::list(&factory.layout, Station::Finished).unwrap()[0];
    let result = factory.json(Station::Finished, &part.name.sidecar("result"));
    let hash = result["modelHash"].as_str().unwrap();
    assert!(hash.starts_with("sha256:"), "{hash}");
    hash.to_owned()
}

/// The worker dies at each named point of each stage; the next attempt ends with the same bytes.
#[test]
fn a_real_part_survives_the_death_of_its_worker_in_each_stage() {
    let whole = finish(&real_factory(), "uninterrupted");
    let stages = ["expert-activation-profile", "expert-prune", "quant", "eval", "package"];
    let of_stages =
        stages.iter().flat_map(|stage| ["started", "written", "checkpointed"].map(|p| format!("{stage}:{p}")));
    let points = of_stages.chain(["plan:written", "result:before", "result:written"].map(String::from));
    for point in points {
        let factory = real_factory();
        // The lost part waits long enough to be looked at.
        fs::write(factory.layout.node_file(), NODE.replace("0.02", "300")).unwrap();
        let mut supervisor = Supervisor::start_real(&factory, &[], Some(&point));
        let stands = |station: Station, name: &str| factory.layout.station(station).join(name).exists();
        until("the worker died", || {
            stands(Station::Intake, "x.retry1.alloy.json") || stands(Station::Finished, "x.alloy.json")
        });
        supervisor.kill();
        let died = stands(Station::Intake, "x.retry1.alloy.json");
        assert_eq!(died, point != "result:written", "a whole result counts however the worker ended ({point})");
        if died {
            let retry = factory.json(Station::Intake, "x.retry.json");
            assert_eq!(retry["reason"], "the worker was killed by signal 9", "{point}");
            fs::remove_file(factory.layout.station(Station::Intake).join("x.retry.json")).unwrap();
        }
        fs::write(factory.layout.node_file(), NODE).unwrap();
        assert_eq!(finish(&factory, &point), whole, "{point}");
    }
}

/// The supervisor dies at moments spread over a build; the worker may live on, and its work is not lost.
#[test]
fn a_real_part_survives_the_death_of_its_supervisor() {
    let factory = real_factory();
    let began = Instant::now();
    let whole = finish(&factory, "uninterrupted");
    let length = began.elapsed();
    for moment in 1..6 {
        let factory = real_factory();
        let mut supervisor = Supervisor::start_real(&factory, &["--drain"], None);
        std::thread::sleep(length * moment / 6);
        supervisor.kill();
        assert_eq!(finish(&factory, &format!("moment {moment} of 6")), whole);
    }
}

/// The script that does it a hundred times, once or twice.
#[test]
fn the_crash_test_that_operators_run_holds() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/crash_test.sh");
    let binaries = std::path::Path::new(env!("CARGO_BIN_EXE_factoryd")).parent().unwrap();
    let run = Command::new("bash").args([script, "2", "11"]).env("BIN", binaries).env("KILLS", "2").output();
    let Ok(run) = run else {
        println!("left out: there is no bash here");
        return;
    };
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{out}\n{err}");
    assert!(out.contains("2 of 2 rounds gave the same bytes"), "{out}");
}
