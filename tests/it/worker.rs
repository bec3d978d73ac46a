//! A worker builds one part: through its public door, on the committed tiny models.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;

use factoryline::line::moves::Mover;
use factoryline::line::wire::WorkerMessage;
use factoryline::line::{Attempt, AttemptToken, Layout, PartName, Station};
use factoryline::stage::Listener;
use factoryline::worker::{WorkerArgs, run};
use serde_json::{Value, json};

/// A line with one part in assembly and an attempt begun.
pub struct Bench {
    dir: tempfile::TempDir,
    layout: Layout,
    part: PartName,
    pub args: WorkerArgs,
}

#[derive(Default)]
struct Ear(Mutex<Vec<WorkerMessage>>);

impl Listener for Ear {
    fn hear(&self, message: &WorkerMessage) {
        self.0.lock().unwrap().push(message.clone());
    }
}

pub fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model)
}

fn begin(layout: &Layout, part: &PartName) -> Attempt {
    Attempt::begin(Mover::real(layout), part, "2026-01-01T00:00:00Z".into()).unwrap()
}

impl Bench {
    /// A part `p` with these stages, starting from `source`.
    pub fn new(source: &Path, architecture: &str, stages: Value) -> Bench {
        let recipe = json!({
            "name": "tiny", "version": "1.0.0",
            "source": { "baseModel": source, "architecture": architecture },
            "stages": stages,
        });
        Bench::with_recipe(&recipe)
    }

    pub fn with_recipe(recipe: &Value) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::init(dir.path()).unwrap();
        let part = PartName::parse("p.alloy.json").unwrap();
        let text = serde_json::to_vec_pretty(recipe).unwrap();
        fs::write(layout.station(Station::Assembly).join(part.file_name()), text).unwrap();
        let work = layout.work(&part);
        fs::create_dir_all(&work).unwrap();
        let attempt = begin(&layout, &part);
        let args = WorkerArgs {
            root: dir.path().to_owned(),
            part: PathBuf::from("assembly/p.alloy.json"),
            work,
            attempt: attempt.token,
            device: None,
        };
        Bench { dir, layout, part, args }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Puts a text under `calibration/`.
    pub fn text(&self, name: &str, content: &str) {
        fs::write(self.layout.calibration().join(name), content).unwrap();
    }

    /// A new attempt at the same part, as after a crash.
    pub fn again(&mut self) {
        let attempt = begin(&self.layout, &self.part);
        self.args.attempt = attempt.token;
    }

    /// Runs the worker in this process and returns what it said.
    pub fn run(&self) -> Vec<WorkerMessage> {
        let ear = Ear::default();
        run(&self.args, &ear);
        ear.0.into_inner().unwrap()
    }

    /// Runs the worker in a process of its own, which dies at `crash_at`.
    pub fn run_process(&self, crash_at: Option<&str>) -> ExitStatus {
        let mut command = Command::new(env!("CARGO_BIN_EXE_factoryd"));
        command.arg("worker").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.arg("--root").arg(&self.args.root).arg("--part").arg(&self.args.part);
        command.arg("--work").arg(&self.args.work).arg("--attempt").arg(self.args.attempt.as_str());
        match crash_at {
            Some(point) => command.env("FACTORYLINE_CRASH_AT", point),
            None => command.env_remove("FACTORYLINE_CRASH_AT"),
        };
        command.status().unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        let path = self.args.work.join(name);
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; {}", path.display(), self.fault_text()));
        serde_json::from_slice(&bytes).unwrap()
    }

    fn fault_text(&self) -> String {
        fs::read_to_string(self.args.work.join("fault.json")).unwrap_or_default()
    }

    /// Class and message of the fault, with the temporary folder cut out.
    pub fn fault(&self) -> String {
        let fault = self.json("fault.json");
        let text = format!("{}: {}", fault["class"].as_str().unwrap(), fault["message"].as_str().unwrap());
        text.replace(&self.root().canonicalize().unwrap().display().to_string(), "ROOT")
            .replace(&self.root().display().to_string(), "ROOT")
    }

    /// A copy of a fixture below the line, which a test may damage.
    pub fn copy_of(model: &str, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(fixture(model)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "reference.safetensors" {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
}

#[test]
fn a_part_that_only_checks_its_source_leaves_a_plan_and_a_result() {
    let bench = Bench::new(&fixture("llama"), "llama", json!([{ "type": "source-config" }]));
    let heard = bench.run();
    let plan = bench.json("plan.json");
    assert_eq!(plan["stages"][0]["type"], "source-config");
    assert_eq!(plan["source"]["files"].as_array().unwrap().len(), 2);
    let result = bench.json("result.json");
    assert_eq!(result["attempt_token"], bench.args.attempt.as_str());
    assert_eq!(result["fileHashes"], json!([]));
    assert_eq!(result["artifacts"], json!([]));
    assert!(matches!(heard.last(), Some(WorkerMessage::Finished {})), "{heard:?}");
    let stages: Vec<&WorkerMessage> = heard
        .iter()
        .filter(|m| matches!(m, WorkerMessage::StageStarted { .. } | WorkerMessage::StageCompleted { .. }))
        .collect();
    assert_eq!(stages.len(), 2);
}

#[test]
fn baselines_measured_before_stand_in_the_result() {
    let before = json!([{ "name": "v1", "metric": "humaneval", "value": 61.0, "samplesPath": "v1.jsonl.gz" }]);
    let bench = Bench::with_recipe(&json!({
        "name": "tiny", "version": "1.0.0", "source": { "baseModel": fixture("llama"), "architecture": "llama" },
        "stages": [{ "type": "source-config" }], "priorMetricBaselines": before,
    }));
    bench.run();
    assert_eq!(bench.json("result.json")["priorMetricBaselines"], before);
}

#[test]
fn an_attempt_that_was_replaced_writes_nothing() {
    let mut bench = Bench::new(&fixture("llama"), "llama", json!([{ "type": "source-config" }]));
    bench.again();
    bench.args.attempt = "0123456789abcdef0123456789abcdef".parse::<AttemptToken>().unwrap();
    let heard = bench.run();
    assert!(matches!(heard.last(), Some(WorkerMessage::Fault { .. })));
    for name in ["plan.json", "result.json", "fault.json"] {
        assert!(!bench.args.work.join(name).exists(), "{name}");
    }
}

#[test]
fn everything_wrong_with_a_recipe_is_said_at_once() {
    let stages = json!([
        { "type": "expert-prune", "keepExpertsPerLayer": 1, "metric": "router_l2" },
        { "type": "package", "format": "onnx" },
        { "type": "deploy", "target": "x" },
    ]);
    let bench = Bench::new(&fixture("qwen3_moe"), "qwen3_moe", stages);
    bench.run();
    let fault = bench.fault();
    for part in
        ["stages[0].keepExpertsPerLayer", "this build packages gguf, safetensors and mlx", "cannot execute `deploy`"]
    {
        assert!(fault.contains(part), "{part} is not in {fault}");
    }
    assert!(fault.starts_with("recipe: "), "{fault}");
    assert!(!bench.args.work.join("plan.json").exists());
}

#[test]
fn a_missing_source_is_a_source_fault_that_lists_where_it_was_looked_for() {
    let bench = Bench::new(Path::new("models/nowhere"), "llama", json!([{ "type": "source-config" }]));
    bench.run();
    let fault = bench.fault();
    assert!(fault.starts_with("source: source.baseModel"), "{fault}");
    assert!(fault.contains("ROOT/models/nowhere"), "{fault}");
}
