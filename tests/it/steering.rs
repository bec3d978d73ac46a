//! Steering a line that is worked: pause and resume, the order of the queue, figures, the watchdog, bounded logs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use factoryline::daemon::{self, Mode, NoObserver, Notifier, Summary};
use factoryline::line::{Station, heartbeat, order, pause, shelf};
use factoryline::units::Bytes;

use crate::factory::{Factory, Watcher, until};

#[test]
fn a_paused_line_starts_nothing_and_goes_on_when_resumed() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "ok", 0);
    pause::pause(&factory.layout, "disk swap", false).unwrap();
    let options = factory.options(Mode::Drain);
    let watcher = Watcher::default();
    let summary = std::thread::scope(|scope| {
        let line = scope.spawn(|| daemon::run(&options, &watcher).unwrap());
        let beat = || heartbeat::read(&factory.layout).ok().flatten();
        until("the heartbeat says paused", || beat().is_some_and(|b| b.paused.as_deref() == Some("disk swap")));
        // Longer than a rescan, in which an unpaused line would have started it.
        std::thread::sleep(Duration::from_millis(700));
        assert!(watcher.claimed.lock().unwrap().is_empty());
        pause::resume(&factory.layout, false).unwrap();
        line.join().unwrap()
    });
    assert_eq!(summary, Summary { finished: 1, ..Summary::default() });
    assert_eq!(heartbeat::read(&factory.layout).unwrap().unwrap().paused, None);
    factory.check(&["x"]);
}

#[test]
fn a_stop_ends_a_paused_line_and_a_part_being_built_goes_on() {
    let factory = Factory::new();
    factory.drop_recipe("a.alloy.json", "slow", 1);
    factory.drop_recipe("b.alloy.json", "ok", 0);
    let options = factory.options(Mode::Drain);
    let stop = options.stop.clone();
    let watcher = Watcher::default();
    let summary = std::thread::scope(|scope| {
        let line = scope.spawn(|| daemon::run(&options, &watcher).unwrap());
        until("the first is claimed", || !watcher.claimed.lock().unwrap().is_empty());
        pause::pause(&factory.layout, "", false).unwrap();
        until("the first is finished", || factory.files(Station::Finished).contains(&"a.alloy.json".into()));
        until("the heart is idle", || {
            heartbeat::read(&factory.layout).ok().flatten().is_some_and(|b| b.state == heartbeat::State::Idle)
        });
        stop.request();
        line.join().unwrap()
    });
    assert_eq!(summary, Summary { finished: 1, ..Summary::default() });
    assert_eq!(factory.files(Station::Intake), ["b.alloy.json"]);
}

#[test]
fn parts_are_built_in_the_order_an_operator_gave() {
    let factory = Factory::new();
    for (name, priority) in [("a", 9), ("b", 0), ("c", 0)] {
        factory.drop_recipe(&format!("{name}.alloy.json"), "ok", priority);
        // Times of arrival have the resolution of the kernel's clock tick.
        std::thread::sleep(Duration::from_millis(15));
    }
    let queue = || {
        let parts = shelf::list(&factory.layout, Station::Intake).unwrap();
        let priority = |base: &str| if base == "a" { 9 } else { 0 };
        let turn =
            |p: shelf::PartEntry| (p.clone(), order::Turn::of(&factory.layout, &p, priority(p.name.base()), p.arrived));
        parts.into_iter().map(turn).collect::<Vec<_>>()
    };
    order::reorder(&factory.layout, queue(), "c", &order::Wish::First, false).unwrap();
    order::reorder(&factory.layout, queue(), "a", &order::Wish::Last, false).unwrap();
    let watcher = Watcher::default();
    daemon::run(&factory.options(Mode::Drain), &watcher).unwrap();
    assert_eq!(*watcher.claimed.lock().unwrap(), ["c.alloy.json", "b.alloy.json", "a.alloy.json"]);
    // The order was an order for the queue: it did not follow the part.
    assert!(factory.files(Station::Finished).iter().all(|name| !name.ends_with("order.json")));
    factory.check(&["a", "b", "c"]);
}

/// Reads a page of metrics and refuses what a strict collector would.
fn metrics(text: &str) -> BTreeMap<String, f64> {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (mut samples, mut kinds, mut helped) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    assert!(text.ends_with('\n'), "the last line ends");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(is_name(name) && !help.trim().is_empty() && !helped.contains(&name), "{line}");
            helped.push(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert_eq!(helped.last(), Some(&name), "TYPE follows HELP: {line}");
            assert!(matches!(kind, "gauge" | "counter"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(kinds.insert(name, kind).is_none(), "{line}");
        } else {
            let (key, value) = line.rsplit_once(' ').expect(line);
            let (name, labels) = key.split_once('{').unwrap_or((key, "}"));
            assert_eq!(helped.last(), Some(&name), "samples stand below their head: {line}");
            let mut rest = labels.strip_suffix('}').expect(line);
            while !rest.is_empty() {
                let (label, tail) = rest.split_once("=\"").expect(line);
                assert!(is_name(label), "{line}");
                let end = tail.match_indices('"').find(|(at, _)| !tail[..*at].ends_with('\\')).expect(line).0;
                rest = tail[end + 1..].trim_start_matches(',');
            }
            let value: f64 = value.parse().expect(line);
            assert!(samples.insert(key.to_owned(), value).is_none(), "told twice: {line}");
        }
    }
    assert_eq!(helped.len(), kinds.len());
    samples
}

#[test]
fn the_figures_of_a_line_are_true_and_hold_to_the_format() {
    let factory = Factory::new();
    factory.drop_recipe("good.alloy.json", "ok", 3);
    factory.drop_recipe("bad.alloy.json", "source", 2);
    factory.drop_recipe("flaky.alloy.json", "flaky", 1);
    fs::write(factory.layout.station(Station::Deferred).join("parked.alloy.json"), "{}").unwrap();
    daemon::run(&factory.options(Mode::Drain), &NoObserver).unwrap();
    let read = || fs::read_to_string(factory.layout.metrics()).unwrap_or_default();
    let ended = metrics(&read());
    let expected = [
        ("factoryline_up", 0.0),
        ("factoryline_state{state=\"offline\"}", 1.0),
        ("factoryline_state{state=\"building\"}", 0.0),
        ("factoryline_parts{station=\"finished\"}", 2.0),
        ("factoryline_parts{station=\"rework\"}", 1.0),
        ("factoryline_parts{station=\"deferred\"}", 1.0),
        ("factoryline_parts{station=\"intake\"}", 0.0),
        ("factoryline_parts_finished_total", 2.0),
        ("factoryline_parts_rework_total", 1.0),
        ("factoryline_parts_retried_total", 1.0),
        ("factoryline_queue_length", 0.0),
        ("factoryline_paused", 0.0),
    ];
    for (name, value) in expected {
        assert_eq!(ended.get(name), Some(&value), "{name} in {ended:#?}");
    }
    let any = |start: &str| ended.iter().any(|(name, value)| name.starts_with(start) && *value > 0.0);
    assert!(any("factoryline_storage_free_bytes{tier=\"hot\",") && any("factoryline_build_info{version="));
    assert!(any("factoryline_heartbeat_timestamp_seconds") && any("factoryline_supervisor_resident_memory_bytes"));
    let left = crate::factory::names(&factory.layout.line());
    assert!(left.iter().all(|name| !name.starts_with(".metrics")), "{left:?}");

    // While a part is built, its progress is there.
    factory.drop_recipe("hung.alloy.json", "hang", 0);
    let options = factory.options(Mode::Forever);
    let stop = options.stop.clone();
    std::thread::scope(|scope| {
        let line = scope.spawn(|| daemon::run(&options, &NoObserver).unwrap());
        let sample = "factoryline_part_progress_ratio{part=\"hung.alloy.json\",stage=\"quant\"} 0.5\n";
        until("the page tells of the part", || read().contains(sample));
        assert_eq!(metrics(&read())["factoryline_up"], 1.0);
        stop.request();
        line.join().unwrap();
    });
}

#[test]
fn the_service_manager_hears_that_the_loop_turns() {
    let factory = Factory::new();
    let path = factory.layout.root().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut options = factory.options(Mode::Forever);
    // A rescan is far: only the watchdog makes the loop turn.
    options.config.rescan = Duration::from_secs(3600);
    options.notify = Notifier::to(path.as_os_str(), Some(Duration::from_millis(100))).unwrap();
    let stop = options.stop.clone();
    let hear = || {
        let mut buffer = [0; 512];
        let n = manager.recv(&mut buffer).expect("a message within ten seconds");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let mut heard = Vec::new();
    std::thread::scope(|scope| {
        let line = scope.spawn(|| daemon::run(&options, &NoObserver).unwrap());
        while heard.iter().filter(|message| *message == "WATCHDOG=1").count() < 5 {
            heard.push(hear());
        }
        stop.request();
        while heard.last().is_none_or(|message| message != "STOPPING=1") {
            heard.push(hear());
        }
        line.join().unwrap();
    });
    assert_eq!(heard[..3], ["READY=1", "WATCHDOG=1", "STATUS=idle, 0 waiting"]);
    assert_eq!(heard.iter().filter(|message| message.starts_with("STATUS=")).count(), 1);
}

#[test]
fn a_worker_that_shouts_does_not_fill_the_disk() {
    let factory = Factory::new();
    factory.drop_recipe("loud.alloy.json", "shout", 0);
    let mut options = factory.options(Mode::Drain);
    options.config.worker_log = Bytes::from_mb(1);
    assert_eq!(daemon::run(&options, &NoObserver).unwrap().finished, 1);
    let log = factory.layout.work_root().join("loud/worker.log");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.len() < 1_000_000 && text.starts_with("--- the supervisor removed "), "{} bytes", text.len());
    assert!(text.ends_with("the last word\n"));
}

#[test]
fn the_daemon_reports_into_a_file_with_times() {
    let factory = Factory::new();
    factory.drop_recipe("x.alloy.json", "ok", 0);
    let log = factory.layout.root().join("factoryd.log");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_factoryd"));
    command.arg("--root").arg(factory.layout.root()).arg("--drain").arg("--log").arg(&log);
    for word in factory.worker_words() {
        command.args(["--worker", &word]);
    }
    let output = command.env_remove("NOTIFY_SOCKET").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<(&str, &str)> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert!(lines.iter().all(|(at, _)| factoryline::line::stamp::parse(at).is_some()), "{text}");
    assert_eq!(lines[0].1, "line open, 1 waiting");
    assert!(lines.last().unwrap().1.starts_with("stopped: 1 finished"), "{text}");
    // What ends it at once is in the file too.
    fs::write(factory.layout.node_file(), "[forge]\nmax_retry = 1\n").unwrap();
    assert_eq!(command.output().unwrap().status.code(), Some(69));
    assert!(fs::read_to_string(&log).unwrap().contains("error: "), "the fault is in the log");
}
