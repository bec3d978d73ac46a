//! What operators read and what scripts rely on: words, JSON documents, exit codes, with the daemon down and up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use factoryline::line::heartbeat::State;
use factoryline::line::{HeartbeatWriter, Layout, LineLock, Station};
use serde_json::{Value, json};

/// A line in a temporary folder, and the command.
struct Bench {
    dir: tempfile::TempDir,
    layout: Layout,
}

/// How a command ended.
struct Said {
    out: String,
    err: String,
    code: i32,
}

impl Said {
    /// Everything an operator sees.
    fn all(&self) -> String {
        format!("exit {}\n--- stdout\n{}--- stderr\n{}", self.code, self.out, self.err)
    }

    /// The one document on stdout.
    fn json(&self) -> Value {
        let mut documents = serde_json::Deserializer::from_str(&self.out).into_iter::<Value>();
        let document = documents.next().expect("a document").unwrap();
        assert!(documents.next().is_none(), "more than one document: {}", self.out);
        assert_eq!(document["schema_version"], 1);
        document
    }
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::init(dir.path().canonicalize().unwrap().join("line-root")).unwrap();
        Bench { dir, layout }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
        command.current_dir(self.dir.path()).env_clear().env("HOME", self.dir.path());
        command.args(words).arg("--root").arg(self.layout.root()).stdin(Stdio::null());
        command
    }

    fn foreman(&self, words: &[&str]) -> Said {
        said(self.command(words).output().unwrap())
    }

    fn place(&self, station: Station, name: &str, contents: &str) {
        fs::write(self.layout.station(station).join(name), contents).unwrap();
    }

    fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// A part in finished with its result.
    fn finished(&self, name: &str) {
        let result = json!({
            "completed_at": "2026-01-31T09:30:00Z", "forged_dir": self.layout.work_root().join(name).join("artifact"),
            "modelHash": format!("sha256:{}", "ab".repeat(32)), "attempt": 1, "elapsed_s": 61.5,
            "fileHashes": [{"filename": "m.gguf", "sha256": "cd".repeat(32), "size": 1_300_000}],
        });
        self.place(Station::Finished, &format!("{name}.result.json"), &result.to_string());
        self.place(Station::Finished, &format!("{name}.alloy.json"), &recipe(name, 0));
    }

    /// A part in rework with its error.
    fn failed(&self, name: &str) {
        let error = json!({
            "failed_at": "2026-01-31T09:31:00Z", "class": "source", "stage": "quant", "attempt": 1, "exit_status": 66,
            "error": "model \"org/m\" is not here", "hint": "name it under [sources]", "log_tail": ["opening", "gone"],
        });
        self.place(Station::Rework, &format!("{name}.error.json"), &error.to_string());
        self.place(Station::Rework, &format!("{name}.alloy.json"), &recipe(name, 0));
    }
}

fn said(output: Output) -> Said {
    Said {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code().unwrap_or(-1),
    }
}

fn recipe(name: &str, priority: i64) -> String {
    json!({
        "name": name, "version": "1.0.0", "priority": priority,
        "source": {"baseModel": "org/m", "architecture": "a-family"},
        "stages": [{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}],
    })
    .to_string()
}

/// Snapshots without paths, times, ages, processes.
macro_rules! reads {
    ($bench:expr, $text:expr, @$snapshot:literal) => {
        let root = regex_escaped($bench.layout.root());
        insta::with_settings!({filters => vec![
            (root.as_str(), "ROOT"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
            (r"pid \d+, [^,]+, beat [0-9.]+ s ago", "pid PID, HOST, beat AGE ago"),
            (r"\d\.\d s ", "AGE  "),
        ]}, { insta::assert_snapshot!($text, @$snapshot) });
    };
}

fn regex_escaped(path: &Path) -> String {
    path.display().to_string().replace('.', r"\.")
}

#[test]
fn an_empty_line_and_a_waiting_one() {
    let bench = Bench::new();
    reads!(bench, bench.foreman(&[]).all(), @"");
    bench.place(Station::Intake, "late.alloy.json", &recipe("late", 0));
    bench.place(Station::Intake, "urgent.recipe.json", &recipe("urgent", 5));
    bench.place(Station::Intake, "torn.json", "{\"name\": \"torn\",");
    bench.place(Station::Intake, "again.retry1.alloy.json", &recipe("again", 0));
    let retry =
        json!({"not_before": "2999-01-01T00:00:00Z", "reason": "killed by signal 9", "class": "infra", "retries": 1});
    bench.place(Station::Intake, "again.retry.json", &retry.to_string());
    reads!(bench, bench.foreman(&["status"]).all(), @"");
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
    reads!(bench, stranded.all(), @"");

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
    reads!(bench, bench.foreman(&["status"]).all(), @"");
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
    reads!(bench, bench.foreman(&["status"]).all(), @"");
    reads!(bench, bench.foreman(&["list", "rework"]).all(), @"");
    reads!(bench, bench.foreman(&["show", "good"]).all(), @"");
    reads!(bench, bench.foreman(&["explain", "bad.alloy.json"]).all(), @"");
    assert_eq!(bench.foreman(&["wait", "good"]).code, 0);
    assert_eq!(bench.foreman(&["wait", "good", "bad"]).code, 5);
    assert_eq!(bench.foreman(&["wait", "bad", "--json"]).json()["parts"][0]["error"], "model \"org/m\" is not here");
    // The artifact the result promises is not there.
    assert_eq!(bench.foreman(&["verify", "good"]).code, 5);
}

#[test]
fn changing_verbs_say_what_they_move() {
    let bench = Bench::new();
    let file = bench.file("my.alloy.json", &recipe("my", 0));
    let file = file.to_str().unwrap();
    let dry = bench.foreman(&["enqueue", file, "--dry-run"]);
    assert_eq!(fs::read_dir(bench.layout.station(Station::Intake)).unwrap().count(), 0);
    reads!(bench, dry.all(), @"");
    reads!(bench, bench.foreman(&["enqueue", file]).all(), @"");
    let again = bench.foreman(&["enqueue", file]);
    reads!(bench, again.all(), @"");
    assert_eq!(
        bench.foreman(&["enqueue", file, "--number", "--json"]).json()["moves"][0]["to"],
        "intake/my~2.alloy.json"
    );
    reads!(bench, bench.foreman(&["defer", "my"]).all(), @"");
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
    reads!(bench, bench.foreman(&["show", "my-prat"]).all(), @"");
    reads!(bench, bench.foreman(&["show", "my-prat", "--json"]).all(), @"");
    fs::write(bench.layout.node_file(), "[forge]\nmax_retry = 2\n").unwrap();
    reads!(bench, bench.foreman(&["status"]).all(), @"");
}

#[test]
fn a_folder_that_is_no_line() {
    let bench = Bench::new();
    let elsewhere = bench.dir.path().join("empty");
    fs::create_dir(&elsewhere).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
    let said = said(command.current_dir(&elsewhere).env_clear().output().unwrap());
    reads!(bench, said.all(), @"");
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
fn every_reading_command_writes_one_document() {
    let bench = Bench::new();
    bench.finished("good");
    bench.failed("bad");
    let work = bench.layout.work_root().join("good");
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("worker.log"), "one\ntwo\n").unwrap();
    let commands: &[&[&str]] = &[
        &["status"],
        &["list"],
        &["list", "finished"],
        &["show", "bad"],
        &["explain", "good"],
        &["verify", "good"],
        &["wait", "bad"],
        &["logs", "good"],
        &["recover", "--dry-run"],
        &["stages"],
        &["families"],
        &["runners"],
        &["run", "--drain"],
    ];
    for words in commands {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let said = bench.foreman(&words);
        assert!(said.json().as_object().unwrap().len() > 1, "{words:?}");
        assert_eq!(said.err, "", "{words:?}");
    }
    assert_eq!(bench.foreman(&["logs", "good", "--json"]).json()["lines"], json!(["one", "two"]));
    assert_eq!(bench.foreman(&["logs", "good", "-n", "1"]).out, "two\n");
}

#[test]
fn colour_is_a_choice_and_a_closed_pipe_no_error() {
    let bench = Bench::new();
    bench.failed("bad");
    assert!(!bench.foreman(&["status"]).out.contains('\x1b'));
    assert!(bench.foreman(&["status", "--color", "always"]).out.contains('\x1b'));
    let quiet = said(bench.command(&["status"]).env("NO_COLOR", "1").output().unwrap());
    assert!(!quiet.out.contains('\x1b'));
    let log = factoryline::line::EventLog::new(&bench.layout, "here");
    for i in 0..3000 {
        log.append("line/test", None, json!({"i": i, "padding": "x".repeat(60)})).unwrap();
    }
    let mut child = bench.command(&["events"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap()), (Some(0), String::new()));
}

#[test]
fn logs_follow_a_part_through_attempts_to_its_end() {
    let bench = Bench::new();
    bench.place(Station::Assembly, "now.alloy.json", &recipe("now", 0));
    let work = bench.layout.work_root().join("now");
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("worker.log"), "first attempt\n").unwrap();
    let child = bench.command(&["logs", "-f"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    fs::rename(work.join("worker.log"), work.join("worker.1.log")).unwrap();
    fs::write(work.join("worker.log"), "second attempt\n").unwrap();
    let (from, to) = (Station::Assembly, Station::Finished);
    let at = |station: Station| bench.layout.station(station).join("now.alloy.json");
    fs::rename(at(from), at(to)).unwrap();
    let ended = said(child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.out.as_str()), (0, "first attempt\nsecond attempt\n"));
}

#[test]
fn the_top_level_help() {
    let bench = Bench::new();
    let said = bench.foreman(&["-h"]);
    reads!(bench, said.all(), @"");
    let page = bench.foreman(&["man"]).out;
    assert!(page.contains(".TH foreman") && page.contains("enqueue"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(bench.foreman(&["completions", shell]).out.contains("enqueue"), "{shell}");
    }
}

#[test]
fn the_demo_builds_measures_and_verifies() {
    let bench = Bench::new();
    let demo = bench.foreman(&["demo", "--json"]);
    assert_eq!(demo.code, 0, "{}", demo.all());
    let document = demo.json();
    let base = document["base"]["perplexity"].as_f64().unwrap();
    let results = document["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for row in results {
        let perplexity = row["perplexity"].as_f64().unwrap();
        assert!(perplexity > base && perplexity < 2.0 * base, "{row} against {base}");
        assert!(row["parameters"].as_u64() < document["base"]["parameters"].as_u64());
        assert!(row["bits_per_weight"].as_f64().unwrap() < 10.0);
    }
    assert_eq!(bench.foreman(&["verify", "demo"]).code, 0);
    let artifact = PathBuf::from(document["artifact"].as_str().unwrap());
    let file = fs::read_dir(&artifact)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "gguf"));
    let file = file.unwrap();

    let inspected = bench.foreman(&["inspect", file.to_str().unwrap(), "--json"]).json();
    assert_eq!((&inspected["format"], &inspected["experts"]["per_layer"]), (&json!("gguf"), &json!(6)));
    let ids = bench.file("ids.json", "[[1, 2, 3, 4, 5], [6, 7, 8]]");
    let measured =
        bench.foreman(&["assay", file.to_str().unwrap(), "--token-ids", ids.to_str().unwrap(), "--json"]).json();
    assert_eq!(
        (&measured["tokens"], &measured["scored"], &measured["convention"]),
        (&json!(8), &json!(6), &json!("token-ids"))
    );
    let keys = [
        "runner",
        "context",
        "nll",
        "nll_stderr",
        "perplexity",
        "seconds",
        "peak_rss_bytes",
        "data_sha256",
        "model_hash",
    ];
    for key in keys {
        assert!(!measured[key].is_null(), "{key} in {measured}");
    }
    let text = ["assay", "sources/factoryline-demo-moe", "--data", "heldout.txt", "--max-tokens", "2048", "--json"];
    assert_eq!(bench.foreman(&text).json()["tokens"], 2048);

    // One byte more is found out.
    let mut bytes = fs::read(&file).unwrap();
    bytes.push(0);
    fs::write(&file, bytes).unwrap();
    let wrong = bench.foreman(&["verify", "demo", "--json"]);
    assert_eq!((wrong.code, &wrong.json()["ok"]), (5, &json!(false)));
}
