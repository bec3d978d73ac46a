//! The supervisor with a worker made of shell: what goes in, and where it ends.

use std::fs;
use std::time::Duration;

use factoryline::daemon::{self, Mode, NoObserver, Summary};
use factoryline::line::{LineLock, Station, heartbeat, throughput, verbs};
use factoryline::units::Bytes;

use crate::factory::{Factory, Watcher, until};

fn drain(factory: &Factory) -> Summary {
    daemon::run(&factory.options(Mode::Drain), &NoObserver).unwrap()
}

/// Runs a daemon beside `act`, stops it, and gives its summary.
fn beside(factory: &Factory, act: impl FnOnce()) -> Summary {
    let options = factory.options(Mode::Forever);
    let stop = options.stop.clone();
    std::thread::scope(|scope| {
        let daemon = scope.spawn(move || daemon::run(&options, &NoObserver).unwrap());
        act();
        stop.request();
        daemon.join().unwrap()
    })
}

#[test]
fn parts_are_built_by_priority_and_leave_with_all_that_is_theirs() {
    let factory = Factory::new();
    factory.drop_recipe("first.json", "ok", 0);
    factory.drop_recipe("second.recipe.json", "chatty", 0);
    factory.drop_recipe("urgent.alloy.json", "lock", 9);
    fs::write(factory.layout.station(Station::Intake).join("first.notes.txt"), "mine").unwrap();
    let watcher = Watcher::default();
    let summary = daemon::run(&factory.options(Mode::Drain), &watcher).unwrap();
    assert_eq!(summary, Summary { finished: 3, ..Summary::default() });
    let order = ["urgent.alloy.json", "first.alloy.json", "second.alloy.json"];
    assert_eq!(*watcher.claimed.lock().unwrap(), order);
    assert_eq!(
        factory.files(Station::Finished),
        [
            "first.alloy.json",
            "first.notes.txt",
            "first.result.json",
            "second.alloy.json",
            "second.result.json",
            "urgent.alloy.json",
            "urgent.result.json"
        ]
    );
    let result = factory.json(Station::Finished, "first.result.json");
    let root = factory.layout.root().canonicalize().unwrap();
    assert_eq!(result["alloy_path"], root.join("line/finished/first.alloy.json").to_str().unwrap());
    assert_eq!(result["forged_dir"], root.join("work/first/artifact").to_str().unwrap());
    assert_eq!((&result["metrics"]["perplexity"], &result["attempt"]), (&7.5.into(), &1.into()));
    let kinds: Vec<String> = factory.events().into_iter().map(|(kind, _)| kind).collect();
    let one = ["forge/started", "forge/planned", "forge/stage/started", "forge/stage/progress"];
    let rest = ["forge/stage/completed", "forge/completed"];
    let expected = [&["line/started"][..], &one, &rest, &one, &rest, &one, &rest, &["line/stopped"]].concat();
    assert_eq!(kinds, expected);
    let outcomes = throughput::tail(&factory.layout, 9).unwrap();
    assert!(outcomes.iter().all(|l| l["outcome"] == "finished") && outcomes.len() == 3);
    let log = fs::read_to_string(factory.layout.work_root().join("second/worker.log")).unwrap();
    assert_eq!(log, "working on chatty\nloading weights ...\n");
    factory.check(&["first", "second", "urgent"]);
}

#[test]
fn a_recipe_that_is_none_goes_to_rework_with_its_place_and_other_files_stay() {
    let factory = Factory::new();
    let intake = factory.layout.station(Station::Intake);
    fs::write(intake.join("bad.alloy.json"), "{\n  \"name\": \"x\",\n  \"stages\": [oops]\n}").unwrap();
    fs::write(intake.join(".half.tmp"), "{").unwrap();
    fs::write(intake.join("readme.txt"), "").unwrap();
    let summary = drain(&factory);
    assert_eq!(summary.rework, 1);
    let error = factory.json(Station::Rework, "bad.error.json");
    assert_eq!((&error["class"], &error["line"], &error["stage"]), (&"recipe".into(), &3.into(), &"admission".into()));
    assert!(error["column"].as_u64().is_some() && error["key"].as_str().is_some(), "{error}");
    assert_eq!(factory.files(Station::Intake), [".half.tmp", "readme.txt"]);
    let ignored = factory.events().into_iter().filter(|(kind, _)| kind == "line/ignored").count();
    assert_eq!(ignored, 2);
}

#[test]
fn a_fault_of_the_source_is_not_retried_and_is_explained() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "source", 0);
    assert_eq!(drain(&factory), Summary { rework: 1, ..Summary::default() });
    let mut error = factory.json(Station::Rework, "x.error.json");
    let error = error.as_object_mut().unwrap();
    for volatile in ["failed_at", "attempt_token", "elapsed_s", "part_inode"] {
        assert!(error.shift_remove(volatile).is_some(), "{volatile}");
    }
    insta::assert_snapshot!(serde_json::to_string_pretty(error).unwrap(), @r#"
    {
      "error": "model is missing: no such file",
      "class": "source",
      "hint": "fetch it",
      "stage": "quant",
      "exit_status": 66,
      "attempt": 1,
      "retries": 0,
      "last_progress": {
        "type": "progress",
        "stage": "quant",
        "fraction": 0.5,
        "detail": "half"
      },
      "log_tail": [
        "working on source"
      ],
      "traceback": "no such file"
    }
    "#);
    let kinds = factory.events();
    assert!(kinds.contains(&("forge/rework".into(), Some("x.alloy.json".into()))));
}

#[test]
fn infrastructure_faults_are_retried_with_the_counter_in_the_name() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "flaky", 0);
    assert_eq!(drain(&factory), Summary { finished: 1, retried: 1, ..Summary::default() });
    assert_eq!(factory.files(Station::Finished), ["x.retry1.alloy.json", "x.retry1.result.json"]);
    let result = factory.json(Station::Finished, "x.retry1.result.json");
    assert_eq!((&result["retries"], &result["attempt"]), (&1.into(), &2.into()));
    assert!(factory.layout.work_root().join("x/worker.1.log").exists(), "the first attempt's log is kept");
}

#[test]
fn a_killed_worker_ends_in_rework_after_the_last_retry() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "kill", 0);
    assert_eq!(drain(&factory), Summary { rework: 1, retried: 2, ..Summary::default() });
    let error = factory.json(Station::Rework, "x.retry2.error.json");
    assert_eq!((&error["class"], &error["signal"], &error["retries"]), (&"infra".into(), &9.into(), &2.into()));
    assert_eq!(error["last_progress"]["detail"], "half");
    assert_eq!(error["log_tail"][0], "working on kill");
}

#[test]
fn a_silent_worker_is_killed_with_its_whole_group() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "deaf", 0);
    let mut options = factory.options(Mode::Once);
    options.config.stall = Duration::from_millis(150);
    options.config.max_retries = 0;
    assert_eq!(daemon::run(&options, &NoObserver).unwrap().rework, 1);
    let error = factory.json(Station::Rework, "x.error.json");
    assert_eq!(error["class"], "infra");
    assert!(error["error"].as_str().unwrap().starts_with("the worker said nothing for"), "{error}");
}

#[test]
fn results_that_do_not_hold_are_not_shipped() {
    let factory = Factory::new();
    factory.drop_recipe("stale.alloy.json", "stale", 0);
    factory.drop_recipe("short.alloy.json", "short", 0);
    factory.drop_recipe("panic.alloy.json", "panic", 0);
    assert_eq!(drain(&factory).rework, 3);
    let error = |name: &str| factory.json(Station::Rework, name)["error"].as_str().unwrap().to_owned();
    assert!(error("stale.error.json").ends_with("result.json is of another attempt"));
    assert!(error("short.error.json").ends_with("has 1 bytes, the result says 2"));
    assert!(error("panic.error.json").contains("status 101"));
}

#[test]
fn a_stop_gives_the_part_back_without_a_retry() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "hang", 0);
    let summary = beside(&factory, || {
        until("the part is built", || {
            heartbeat::read(&factory.layout).ok().flatten().is_some_and(|b| b.stage.as_deref() == Some("quant"))
        });
    });
    assert_eq!(summary, Summary { returned: 1, ..Summary::default() });
    assert_eq!(factory.files(Station::Intake), ["x.alloy.json", "x.retry.json"]);
    let beat = heartbeat::read(&factory.layout).unwrap().unwrap();
    assert_eq!((beat.state, beat.current_part), (heartbeat::State::Offline, None));
    // The next daemon starts it at once and knows it as the second attempt.
    fs::write(factory.layout.work_root().join("x/seen"), "").unwrap();
    let part = fs::read_to_string(factory.layout.station(Station::Intake).join("x.alloy.json")).unwrap();
    fs::write(factory.layout.station(Station::Intake).join("x.alloy.json"), part.replace("hang", "ok")).unwrap();
    assert_eq!(drain(&factory).finished, 1);
    assert_eq!(factory.json(Station::Finished, "x.result.json")["attempt"], 2);
}

#[test]
fn a_cancel_stops_a_running_part_and_says_why() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "hang", 0);
    let summary = beside(&factory, || {
        until("the part is in assembly", || !factory.files(Station::Assembly).is_empty());
        verbs::cancel(&factory.layout, "x", "the wrong model", false).unwrap();
        until("the part is in rework", || factory.files(Station::Rework).len() == 2);
    });
    assert_eq!(summary.rework, 1);
    let error = factory.json(Station::Rework, "x.error.json");
    assert_eq!((&error["class"], &error["error"]), (&"cancelled".into(), &"cancelled: the wrong model".into()));
    assert!(!factory.layout.cancel_request("x").exists());
}

#[test]
fn a_part_dropped_while_the_daemon_waits_is_picked_up_by_the_door_bell() {
    let factory = Factory::new();
    let mut options = factory.options(Mode::MaxParts(1));
    // Only the bell can bring it in time.
    options.config.rescan = Duration::from_secs(3600);
    std::thread::scope(|scope| {
        let daemon = scope.spawn(|| daemon::run(&options, &NoObserver).unwrap());
        until("the daemon is idle", || {
            heartbeat::read(&factory.layout).ok().flatten().is_some_and(|b| b.state == heartbeat::State::Idle)
        });
        factory.drop_recipe("x.alloy.json", "ok", 0);
        assert_eq!(daemon.join().unwrap().finished, 1);
    });
}

#[test]
fn one_supervisor_per_line() {
    let factory = Factory::new();
    let lock = LineLock::acquire(&factory.layout).unwrap();
    assert!(LineLock::is_held(&factory.layout));
    let refused = daemon::run(&factory.options(Mode::Drain), &NoObserver).unwrap_err();
    assert!(refused.message.contains("is held by process"), "{refused}");
    drop(lock);
    assert!(!LineLock::is_held(&factory.layout));
    drain(&factory);
}

#[test]
fn a_name_that_is_taken_is_numbered_and_both_are_kept() {
    let factory = Factory::new();
    for file in ["x.alloy.json", "x.json"] {
        factory.drop_recipe(file, "ok", 0);
    }
    assert_eq!(drain(&factory).finished, 2);
    factory.drop_recipe("x.alloy.json", "source", 0);
    assert_eq!(drain(&factory).rework, 1);
    let stands = factory.check(&["x", "x~2", "x~3"]);
    assert_eq!(stands["x~3"], Station::Rework);
}

#[test]
fn once_builds_one_part_and_its_retries_only() {
    let factory = Factory::new();
    factory.drop_recipe("a.alloy.json", "flaky", 5);
    factory.drop_recipe("b.alloy.json", "ok", 0);
    let summary = daemon::run(&factory.options(Mode::Once), &NoObserver).unwrap();
    assert_eq!(summary, Summary { finished: 1, retried: 1, ..Summary::default() });
    assert_eq!(factory.files(Station::Intake), ["b.alloy.json"]);
    assert_eq!(daemon::run(&factory.options(Mode::Once), &NoObserver).unwrap().finished, 1);
    assert_eq!(daemon::run(&factory.options(Mode::Once), &NoObserver).unwrap(), Summary::default());
}

#[test]
fn two_slots_build_side_by_side() {
    let factory = Factory::new();
    for name in ["a", "b", "c", "d"] {
        factory.drop_recipe(&format!("{name}.alloy.json"), "slow", 0);
    }
    let mut options = factory.options(Mode::Drain);
    options.config.slots = 2;
    assert_eq!(daemon::run(&options, &NoObserver).unwrap().finished, 4);
    factory.check(&["a", "b", "c", "d"]);
}

#[test]
fn nothing_starts_below_the_reserve_of_free_space() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "ok", 0);
    let mut options = factory.options(Mode::Forever);
    options.config.min_free = Bytes(u64::MAX);
    let stop = options.stop.clone();
    std::thread::scope(|scope| {
        let daemon = scope.spawn(|| daemon::run(&options, &NoObserver).unwrap());
        until("the trouble is told", || factory.events().iter().any(|(kind, _)| kind == "line/trouble"));
        stop.request();
        assert_eq!(daemon.join().unwrap(), Summary::default());
    });
    assert_eq!(factory.files(Station::Intake), ["x.alloy.json"]);
}
