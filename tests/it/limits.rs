//! What a part may take and how often it is tried: memory, room on the machine, budgets of retries, priority.

use std::fs;
use std::time::Duration;

use factoryline::daemon::{Limits, Mode, NoObserver, Summary, run};
use factoryline::fault::FaultClass;
use factoryline::line::Station;
use factoryline::node::{DeviceChoice, RetryBudget};
use factoryline::units::Bytes;

use crate::factory::{Factory, Watcher, until};

#[test]
fn a_worker_that_takes_too_much_memory_is_ended_before_the_kernel_has_to() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "hog", 0);
    let mut options = factory.options(Mode::Drain);
    options.config.limits = Limits { memory: Some(Bytes::from_mb(50)), ..Limits::default() };
    assert_eq!(run(&options, &NoObserver).unwrap(), Summary { rework: 1, ..Summary::default() });
    let error = factory.json(Station::Rework, "x.error.json");
    assert_eq!(error["class"], "resource");
    let said = error["error"].as_str().unwrap();
    assert!(said.contains("its limit is 50.0 MB: it was ended before the kernel"), "{said}");
}

#[test]
fn a_part_that_does_not_fit_lets_others_pass() {
    let factory = Factory::new();
    factory.drop_recipe("big.alloy.json", "wait", 5);
    factory.drop_recipe("small.alloy.json", "ok", 0);
    let watcher = Watcher::default();
    let mut options = factory.options(Mode::MaxParts(1));
    options.config.patience = Duration::MAX;
    let summary = run(&options, &watcher).unwrap();
    assert_eq!(summary, Summary { finished: 1, returned: 1, ..Summary::default() });
    assert_eq!(*watcher.claimed.lock().unwrap(), ["big.alloy.json", "small.alloy.json"]);
    let retry = factory.json(Station::Intake, "big.retry.json");
    assert_eq!(retry["needs"]["ram"], 1_000_000_000_000_000u64);
    assert_eq!((&retry["class"], &retry["retries"]), (&"waiting".into(), &0.into()));
    assert_eq!(retry["waiting_since"], "2026-01-01T00:00:00Z");
    assert_eq!(factory.check(&["big", "small"])["big"], Station::Intake);
}

#[test]
fn a_part_that_has_waited_long_enough_is_waited_for() {
    let factory = Factory::new();
    factory.drop_recipe("big.alloy.json", "wait", 5);
    let mut options = factory.options(Mode::Forever);
    options.config.patience = Duration::from_secs(60);
    options.config.rescan = Duration::from_millis(50);
    let stop = options.stop.clone();
    let daemon = std::thread::spawn(move || run(&options, &NoObserver).unwrap());
    until("it is back", || factory.files(Station::Intake).contains(&"big.retry.json".to_owned()));
    factory.drop_recipe("small.alloy.json", "ok", 0);
    // Many looks at intake later nothing behind it has been touched.
    std::thread::sleep(Duration::from_millis(600));
    stop.request();
    let summary = daemon.join().unwrap();
    assert_eq!((summary.finished, summary.rework), (0, 0));
    assert_eq!(factory.check(&["big", "small"])["small"], Station::Intake);
}

#[test]
fn budgets_are_of_a_stage_and_of_a_class() {
    let factory = Factory::new();
    // Two faults of the machine in one stage, two in the next: each within its budget of two.
    factory.drop_recipe("x.alloy.json", "twice", 0);
    let summary = run(&factory.options(Mode::Drain), &NoObserver).unwrap();
    assert_eq!(summary, Summary { finished: 1, retried: 4, ..Summary::default() });
    assert!(factory.files(Station::Finished).contains(&"x.retry4.alloy.json".to_owned()));
    // A full disk goes to rework at once, unless somebody says otherwise.
    factory.drop_recipe("y.alloy.json", "full", 0);
    assert_eq!(run(&factory.options(Mode::Drain), &NoObserver).unwrap().rework, 1);
    factory.drop_recipe("z.alloy.json", "full", 0);
    let mut options = factory.options(Mode::Drain);
    options.config.retry.insert(FaultClass::Resource, RetryBudget { most: Some(1), ..RetryBudget::default() });
    assert_eq!(run(&options, &NoObserver).unwrap(), Summary { finished: 1, retried: 1, ..Summary::default() });
}

#[test]
fn what_failed_before_is_told_in_the_error() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "kill", 0);
    assert_eq!(run(&factory.options(Mode::Drain), &NoObserver).unwrap().rework, 1);
    let error = factory.json(Station::Rework, "x.retry2.error.json");
    let earlier = error["earlier_attempts"].as_array().unwrap();
    assert_eq!(earlier.len(), 2);
    assert!(earlier.iter().all(|a| a["class"] == "infra" && a["stage"] == "quant"), "{error}");
    assert_eq!((&earlier[1]["attempt"], &earlier[1]["retries"]), (&2.into(), &1.into()));
}

#[test]
fn a_worker_has_the_niceness_it_is_given() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "nice", 0);
    let mut options = factory.options(Mode::Drain);
    options.config.limits.nice = 19;
    assert_eq!(run(&options, &NoObserver).unwrap().finished, 1);
    assert_eq!(fs::read_to_string(factory.layout.work_root().join("x/nice")).unwrap().trim(), "19");
}

#[test]
fn several_devices_are_several_slots_each_with_its_own() {
    let factory = Factory::new();
    for part in ["a", "b", "c"] {
        factory.drop_recipe(&format!("{part}.alloy.json"), "slot", 0);
    }
    let mut options = factory.options(Mode::Drain);
    options.config.slots = 2;
    options.config.devices = vec![DeviceChoice::Cuda(0), DeviceChoice::Cuda(1)];
    assert_eq!(run(&options, &NoObserver).unwrap().finished, 3);
    let device = |part: &str| fs::read_to_string(factory.layout.work_root().join(part).join("device")).unwrap();
    let (a, b) = (device("a"), device("b"));
    assert_eq!([a.trim(), b.trim()], ["--device=cuda:0", "--device=cuda:1"], "two at a time");
    // The third has the slot that became free.
    assert!([a, b].contains(&device("c")));
}
