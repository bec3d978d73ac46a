//! The line at a glance: status, list, show, explain and wait, for every state a part can be in.

use std::time::Duration;

use factoryline::line::heartbeat::State;
use factoryline::line::{HeartbeatWriter, LineLock, Station};
use serde_json::{Value, json};

use super::{Bench, reads, recipe};

#[test]
fn an_empty_line_and_a_waiting_one() {
    let bench = Bench::new();
    reads!(bench, bench.foreman(&[]).all(), @r#"
    exit 0
    --- stdout
    line      ROOT
    daemon    not running
    stations  intake 0 · assembly 0 · finished 0 · rework 0 · deferred 0
    --- stderr
    "#);
    bench.place(Station::Intake, "late.alloy.json", &recipe("late", 0));
    bench.place(Station::Intake, "urgent.recipe.json", &recipe("urgent", 5));
    bench.place(Station::Intake, "torn.json", "{\"name\": \"torn\",");
    bench.place(Station::Intake, "again.retry1.alloy.json", &recipe("again", 0));
    let retry =
        json!({"not_before": "2999-01-01T00:00:00Z", "reason": "killed by signal 9", "class": "infra", "retries": 1});
    bench.place(Station::Intake, "again.retry.json", &retry.to_string());
    // All at one moment: parts that arrive together are in order of their names.
    for entry in std::fs::read_dir(bench.layout.station(Station::Intake)).unwrap() {
        let file = std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
    }
    reads!(bench, bench.foreman(&["status"]).all(), @r#"
    exit 0
    --- stdout
    line      ROOT
    daemon    not running
    stations  intake 4 · assembly 0 · finished 0 · rework 0 · deferred 0

    Waiting
      #  PART                     MODEL  WHY IT WAITS
      1  urgent.recipe.json       org/m  no daemon is running
      -  again.retry1.alloy.json  org/m  no daemon is running
      2  late.alloy.json          org/m  no daemon is running
      3  torn.json                       not a recipe, goes to rework: recipe ROOT/line/intake/torn.json, line 1, column 17: the file ends where a key in double quotes should follow
    --- stderr
    hint: nobody works this line; start it with `foreman run --root ROOT`
    "#);
    let _held = LineLock::acquire(&bench.layout).unwrap();
    let why = |document: &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let waiting = document["waiting"].as_array().unwrap();
        waiting.iter().map(|part| (text(&part["part"]), text(&part["reason"]["code"]))).collect()
    };
    let document = bench.foreman(&["status", "--json"]).json();
    assert_eq!(why(&document)[0], ("urgent.recipe.json".into(), "next".into()));
    let others: Vec<String> = why(&document)[1..].iter().map(|(part, code)| format!("{part} {code}")).collect();
    let expected = ["again.retry1.alloy.json back_off", "late.alloy.json behind", "torn.json not_a_recipe"];
    for row in expected {
        assert!(others.iter().any(|other| other == row), "{row} in {others:?}");
    }
}

#[test]
fn a_part_being_built() {
    let bench = Bench::new();
    bench.place(Station::Assembly, "now.alloy.json", &recipe("now", 0));
    bench.place(Station::Intake, "next.alloy.json", &recipe("next", 0));
    let stranded = bench.foreman(&["explain", "now"]);
    reads!(bench, stranded.all(), @r#"
    exit 0
    --- stdout
    now.alloy.json stands in assembly
      it was being built when its supervisor ended; the next start takes it back
      see ROOT/line/assembly/now.alloy.json
      next: foreman run --root ROOT
    --- stderr
    "#);

    let _held = LineLock::acquire(&bench.layout).unwrap();
    let heart = HeartbeatWriter::start(&bench.layout, "bench", Duration::from_secs(30));
    heart.update(|beat| {
        beat.state = State::Building;
        beat.current_part = Some("now.alloy.json".into());
        (beat.stage, beat.stage_index, beat.stage_count) = (Some("eval".into()), Some(3), Some(5));
        (beat.percent, beat.eta_s, beat.tokens_per_s) = (Some(42.0), Some(75.0), Some(830.2));
        (beat.rss_bytes, beat.attempt) = (Some(210_000_000), Some(2));
    });
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(5));
        if factoryline::line::heartbeat::read(&bench.layout).ok().flatten().is_some_and(|b| b.state == State::Building)
        {
            break;
        }
    }
    reads!(bench, bench.foreman(&["status"]).all(), @r#"
    exit 0
    --- stdout
    line      ROOT
    daemon    building (pid PID, HOST, beat AGE ago)
    stations  intake 1 · assembly 1 · finished 0 · rework 0 · deferred 0

    Being built
      PART            STAGE       DONE  ETA     ATTEMPT  BEAT   TOKENS/S  RSS
      now.alloy.json  eval (4/5)  42 %  1m 15s  2/4      AGE   830       210.0 MB

    Waiting
      #  PART             MODEL  WHY IT WAITS
      1  next.alloy.json  org/m  now.alloy.json is being built
    --- stderr
    "#);
    let running = &bench.foreman(&["status", "--json"]).json()["running"][0];
    assert_eq!(
        (&running["stage"], &running["percent"], &running["attempts_allowed"]),
        (&json!("eval"), &json!(42.0), &json!(4))
    );
    // Nobody but the holder may run the line, and waiting for it ends in time.
    assert_eq!(bench.foreman(&["run", "--drain"]).code, 8);
    assert_eq!(bench.foreman(&["wait", "next", "--timeout", "0.2"]).code, 6);
}

#[test]
fn finished_and_rework() {
    let bench = Bench::new();
    bench.finished("good");
    bench.failed("bad");
    reads!(bench, bench.foreman(&["status"]).all(), @r#"
    exit 0
    --- stdout
    line      ROOT
    daemon    not running
    stations  intake 0 · assembly 0 · finished 1 · rework 1 · deferred 0

    In rework
      PART            OWNER   WHAT WENT WRONG
      bad.alloy.json  source  model "org/m" is not here

    Finished, newest first
      PART             WHEN                  TOOK    MODEL HASH
      good.alloy.json  TIME  1m 02s  abababababab…
    --- stderr
    "#);
    reads!(bench, bench.foreman(&["list", "rework"]).all(), @r#"
    exit 0
    --- stdout
    #  PART            MODEL  ARCHITECTURE  NOTE
    1  bad.alloy.json  org/m  a-family      model "org/m" is not here
    --- stderr
    "#);
    reads!(bench, bench.foreman(&["show", "good"]).all(), @r#"
    exit 0
    --- stdout
    part        good.alloy.json
    station     finished, since TIME
    file        ROOT/line/finished/good.alloy.json
    recipe      good
    model       org/m (a-family)
    stages      quant
    finished    TIME, took 1m 02s
    artifact    ROOT/work/good/artifact
    model hash  sha256:abababababababababababababababababababababababababababababababab
                m.gguf  1.3 MB
    sidecar     ROOT/line/finished/good.result.json
    --- stderr
    "#);
    reads!(bench, bench.foreman(&["explain", "bad.alloy.json"]).all(), @r#"
    exit 0
    --- stdout
    bad.alloy.json stands in rework
      it failed in stage quant: model "org/m" is not here
      owner source: the model or a text is broken or missing
      its worker ended with exit status 66
      hint: name it under [sources]
      last line of the log: gone
      see ROOT/line/rework/bad.alloy.json
      see ROOT/line/rework/bad.error.json
      next: foreman retry bad --root ROOT
    --- stderr
    "#);
    assert_eq!(bench.foreman(&["wait", "good"]).code, 0);
    assert_eq!(bench.foreman(&["wait", "good", "bad"]).code, 5);
    assert_eq!(bench.foreman(&["wait", "bad", "--json"]).json()["parts"][0]["error"], "model \"org/m\" is not here");
    // The artifact the result promises is not there.
    assert_eq!(bench.foreman(&["verify", "good"]).code, 5);
}
