//! Verbs that move parts, and what every kind of failure looks like.

use std::fs;
use std::process::Command;

use factoryline::line::Station;
use serde_json::{Value, json};

use super::{Bench, reads, recipe, said};

#[test]
fn changing_verbs_say_what_they_move() {
    let bench = Bench::new();
    let file = bench.file("my.alloy.json", &recipe("my", 0));
    let file = file.to_str().unwrap();
    let dry = bench.foreman(&["enqueue", file, "--dry-run"]);
    assert_eq!(fs::read_dir(bench.layout.station(Station::Intake)).unwrap().count(), 0);
    reads!(bench, dry.all(), @r#"
    exit 0
    --- stdout
    - -> intake/my.alloy.json
    --- stderr
    nothing was changed (--dry-run)
    "#);
    reads!(bench, bench.foreman(&["enqueue", file]).all(), @r#"
    exit 0
    --- stdout
    - -> intake/my.alloy.json
    --- stderr
    next: foreman wait my --root ROOT
    "#);
    let again = bench.foreman(&["enqueue", file]);
    reads!(bench, again.all(), @r#"
    exit 9
    --- stdout
    --- stderr
    error: "my" is on the line already, in intake

    hint: choose another name, or let the line choose one
    "#);
    assert_eq!(
        bench.foreman(&["enqueue", file, "--number", "--json"]).json()["moves"][0]["to"],
        "intake/my~2.alloy.json"
    );
    reads!(bench, bench.foreman(&["defer", "my"]).all(), @r#"
    exit 0
    --- stdout
    intake/my.alloy.json -> deferred/my.alloy.json
    --- stderr
    next: foreman list deferred --root ROOT
    "#);
    assert_eq!(bench.foreman(&["retry", "my"]).out, "deferred/my.alloy.json -> intake/my.alloy.json\n");
    let cancelled = bench.foreman(&["cancel", "my", "--reason", "wrong base"]);
    assert_eq!((cancelled.code, cancelled.out.as_str()), (0, "intake/my.alloy.json -> rework/my.alloy.json\n"));
    let why = bench.foreman(&["explain", "my"]).out;
    assert!(why.contains("cancelled: wrong base") && why.contains("an operator took it off the line"), "{why}");
    assert_eq!(bench.foreman(&["retry", "--all"]).code, 0);
    assert_eq!(bench.foreman(&["retry", "--all"]).code, 4);
    let kinds: Vec<Value> =
        bench.foreman(&["events", "--json"]).out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let kinds: Vec<&str> = kinds.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        ["line/enqueued", "line/enqueued", "line/deferred", "line/undeferred", "forge/rework", "line/promoted"]
    );
    assert_eq!(bench.foreman(&["events", "--since", "5", "--json"]).out.lines().count(), 1);
    assert!(bench.foreman(&["tail"]).out.contains("promoted_from_rework"));
}

#[test]
fn errors_have_a_code_a_cause_and_a_next_step() {
    let bench = Bench::new();
    bench.place(Station::Intake, "my-part.alloy.json", &recipe("my-part", 0));
    let broken = bench.file("broken.alloy.json", "{\"name\": 3}");
    let broken = broken.to_str().unwrap();
    let cases: &[(&[&str], i32)] = &[
        (&["frobnicate"], 2),
        (&["show", "my-prat"], 3),
        (&["enqueue", "/no/such/file"], 3),
        (&["inspect", "/no/such/model"], 3),
        (&["wait", "--all", "--timeout", "x"], 2),
        (&["enqueue", broken], 9),
        (&["check", broken], 9),
        (&["retry", "my-part"], 3),
        (&["wait", "my-part"], 7),
        (&["logs", "my-part"], 3),
        (&["completions", "bash", "--json"], 2),
    ];
    for (words, code) in cases {
        let human = bench.foreman(words);
        assert_eq!(human.code, *code, "{words:?}: {}", human.all());
        let mut words = words.to_vec();
        words.push("--json");
        if words.iter().filter(|word| **word == "--json").count() > 1 {
            continue;
        }
        let machine = bench.foreman(&words);
        assert_eq!(machine.code, *code, "{words:?} as JSON: {}", machine.all());
        let document = machine.json();
        // A command that found something to say says it in its own document, an error in the error's.
        if let Some(error) = document.get("error") {
            assert_eq!((&error["exit_code"], machine.err.as_str()), (&json!(code), ""), "{words:?}");
            assert!(!error["message"].as_str().unwrap().is_empty());
        }
    }
    reads!(bench, bench.foreman(&["show", "my-prat"]).all(), @r#"
    exit 3
    --- stdout
    --- stderr
    error: no part "my-prat" on this line

    hint: did you mean "my-part"?
    "#);
    reads!(bench, bench.foreman(&["show", "my-prat", "--json"]).all(), @r#"
    exit 3
    --- stdout
    {
      "schema_version": 1,
      "error": {
        "kind": "not_found",
        "exit_code": 3,
        "message": "no part \"my-prat\" on this line",
        "hint": "did you mean \"my-part\"?"
      }
    }
    --- stderr
    "#);
    fs::write(bench.layout.node_file(), "[forge]\nmax_retry = 2\n").unwrap();
    reads!(bench, bench.foreman(&["status"]).all(), @r#"
    exit 2
    --- stdout
    --- stderr
    error: config error: ROOT/factory_node.toml:2:1: unknown key `forge.max_retry`

    hint: did you mean `forge.max_retries`?
    "#);
}

#[test]
fn a_folder_that_is_no_line() {
    let bench = Bench::new();
    let elsewhere = bench.dir.path().join("empty");
    fs::create_dir(&elsewhere).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
    let said = said(command.current_dir(&elsewhere).env_clear().output().unwrap());
    reads!(bench, said.all(), @r#"
    exit 3
    --- stdout
    --- stderr
    error: .factory is not a line: it has no line/intake folder

    hint: foreman init makes one; --root DIR names another
    "#);
    let root = elsewhere.join(".factory");
    let init = |dry: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
        command.current_dir(&elsewhere).env_clear().arg("init").args(dry).status().unwrap()
    };
    assert!(init(&["--dry-run"]).success() && !root.exists());
    assert!(init(&[]).success() && root.join("factory_node.toml").is_file());
    let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
    assert!(command.current_dir(&elsewhere).env_clear().status().unwrap().success());
}

#[test]
fn a_pause_and_an_order_read_as_they_act() {
    let bench = Bench::new();
    for name in ["one", "two", "three"] {
        bench.place(Station::Intake, &format!("{name}.alloy.json"), &recipe(name, 0));
        // Times of arrival have the resolution of the kernel's clock tick.
        std::thread::sleep(std::time::Duration::from_millis(15));
    }
    let dry = bench.foreman(&["reorder", "three", "--first", "--dry-run"]);
    assert_eq!((dry.code, dry.out.as_str()), (0, "- -> intake/three.order.json\n"));
    reads!(bench, bench.foreman(&["reorder", "three", "--first"]).all(), @r"
    exit 0
    --- stdout
    - -> intake/three.order.json
    --- stderr
    next: foreman list --root ROOT
    ");
    bench.foreman(&["reorder", "one", "--after", "two.alloy.json"]);
    let order = |bench: &Bench| -> Vec<(String, i64)> {
        let document = bench.foreman(&["status", "--json"]).json();
        let rows = document["waiting"].as_array().unwrap().clone();
        rows.iter()
            .map(|row| (row["part"].as_str().unwrap().replace(".alloy.json", ""), row["priority"].as_i64().unwrap()))
            .collect()
    };
    assert_eq!(order(&bench), [("three".into(), 0), ("two".into(), 0), ("one".into(), 0)]);
    assert_eq!(bench.foreman(&["reorder", "one", "--priority", "-3"]).code, 0);
    assert_eq!(order(&bench)[2], ("one".into(), -3));
    // It goes with its part where the part waits.
    bench.foreman(&["defer", "one"]);
    assert!(bench.layout.station(Station::Deferred).join("one.order.json").is_file());
    reads!(bench, bench.foreman(&["reorder", "one", "--first"]).all(), @r"
    exit 9
    --- stdout
    --- stderr
    error: one.alloy.json does not wait: it stands in deferred

    hint: only parts in intake have an order
    ");
    assert_eq!(bench.foreman(&["reorder", "two", "--before", "two"]).code, 9);
    assert_eq!(bench.foreman(&["reorder", "two"]).code, 2);
    assert_eq!(bench.foreman(&["reorder", "two", "--first", "--last"]).code, 2);
    assert_eq!(bench.foreman(&["reorder", "tow", "--first"]).code, 3);

    assert_eq!(bench.foreman(&["resume"]).code, 4);
    reads!(bench, bench.foreman(&["pause", "--reason", "disk swap"]).all(), @r"
    exit 0
    --- stdout
    - -> .control/pause.json
    --- stderr
    next: foreman resume --root ROOT
    ");
    let _held = factoryline::line::LineLock::acquire(&bench.layout).unwrap();
    let status = bench.foreman(&["status"]).out;
    let status: Vec<&str> = status.lines().filter(|line| !line.starts_with("daemon")).collect();
    reads!(bench, status.join("\n"), @r"
    line      ROOT
    paused    since TIME: disk swap
    stations  intake 2 · assembly 0 · finished 0 · rework 0 · deferred 1

    Waiting
      #  PART              MODEL  WHY IT WAITS
      1  three.alloy.json  org/m  the line is paused: disk swap
      2  two.alloy.json    org/m  the line is paused: disk swap
    ");
    let document = bench.foreman(&["status", "--json"]).json();
    assert_eq!(
        (&document["paused"]["reason"], &document["waiting"][0]["reason"]["code"]),
        (&json!("disk swap"), &json!("paused"))
    );
    reads!(bench, bench.foreman(&["explain", "two"]).all(), @r"
    exit 0
    --- stdout
    two.alloy.json stands in intake
      the line is paused, nothing is started: disk swap
      it is number 2 in the queue
      see ROOT/line/intake/two.alloy.json
      next: foreman resume --root ROOT
    --- stderr
    ");
    assert_eq!(bench.foreman(&["resume"]).out, ".control/pause.json -> -\n");
    assert_eq!(bench.foreman(&["status", "--json"]).json()["paused"], Value::Null);
}
