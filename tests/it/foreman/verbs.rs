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
