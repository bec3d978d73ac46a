//! Going on after a crash: inside a pass, between the outputs of one stage, and not where what was done is of no use.
//! Every story ends with the bytes of a part that was never interrupted.

use std::fs;
use std::os::unix::fs::MetadataExt;

use factoryline::engine::PassOptions;
use factoryline::line::follow::{self, Since};
use factoryline::line::wire::WorkerMessage;
use factoryline::line::{AttemptToken, Event, Station};
use factoryline::recipe::Plan;
use factoryline::stage::{Listener, Progress, StageContext, run_stages};
use serde_json::{Value, json};

use crate::crash::{NODE, Supervisor};
use crate::factory::{Factory, until};
use crate::worker::{Bench, fixture};

/// A line with one part, every block worth a savepoint, and no hurry to try again.
fn line(stages: &Value) -> Factory {
    let factory = Factory::new();
    configure(&factory, 300.0);
    let words = "The mill stood by the river, and the river turned the mill, and nobody asked why. ";
    let text = json!({"text": words.repeat(3)});
    fs::write(factory.layout.calibration().join("calib.jsonl"), format!("{text}\n{text}\n{text}\n")).unwrap();
    fs::write(factory.layout.calibration().join("held.txt"), words.repeat(12)).unwrap();
    let intake = factory.layout.station(Station::Intake);
    fs::write(intake.join("x.alloy.json"), recipe(stages)).unwrap();
    fs::write(intake.join("x.notes.txt"), "mine").unwrap();
    factory
}

fn configure(factory: &Factory, backoff: f64) {
    let text = NODE.replace("retry_backoff_seconds = 0.02", &format!("retry_backoff_seconds = {backoff}"));
    let text = text.replace("[forge]", "[forge]\nsavepoint_seconds = 0");
    fs::write(factory.layout.node_file(), text).unwrap();
}

fn recipe(stages: &Value) -> String {
    let source = json!({"baseModel": fixture("qwen3_moe-text"), "architecture": "qwen3_moe", "isMoE": true});
    json!({"name": "tiny", "version": "1.0.0", "source": source, "stages": stages}).to_string()
}

fn quant(algorithm: &str, types: &[&str]) -> Value {
    json!({"type": "quant", "format": "gguf", "quantTypes": types, "algorithm": algorithm, "tuneSteps": 4,
        "calibrationCorpus": "calib.jsonl", "calibrationTokens": 256, "calibrationLength": 64})
}

/// Lets the worker die at a named point; the part is back in intake then.
fn die_at(factory: &Factory, point: &str) {
    let mut supervisor = Supervisor::start_real(factory, &[], Some(point));
    let intake = factory.layout.station(Station::Intake);
    until("the worker died", || {
        let is_back = |name: &str| name.contains(".retry") && name.ends_with(".alloy.json");
        let back = fs::read_dir(&intake).unwrap().flatten().any(|e| is_back(&e.file_name().to_string_lossy()));
        let failed = !factory.files(Station::Rework).is_empty();
        assert!(!failed, "{point}: {:?}", factory.files(Station::Rework));
        back
    });
    supervisor.kill();
    let retry = factory.json(Station::Intake, "x.retry.json");
    assert_eq!(retry["reason"], "the worker was killed by signal 9", "{point}");
    fs::remove_file(intake.join("x.retry.json")).unwrap();
}

/// Brings the part to its end; the hash of what was made, and the warnings told on the way.
fn finish(factory: &Factory) -> (String, Vec<String>) {
    let before = warnings(factory).len();
    configure(factory, 0.02);
    let hash = crate::crash::finish(factory, "after the crash");
    (hash, warnings(factory).split_off(before))
}

fn warnings(factory: &Factory) -> Vec<String> {
    let events = follow::read(&factory.layout, &Since::Start).unwrap();
    let of = |event: Event| Some(event.fields.get("message")?.as_str()?.to_owned());
    events.into_iter().filter(|event| event.kind == "forge/warning").filter_map(of).collect()
}

#[test]
fn a_pass_goes_on_behind_the_last_block_that_was_done() {
    let profile = json!({"type": "expert-activation-profile", "calibrationCorpus": "calib.jsonl", "maxLength": 128});
    let prune = json!({"type": "expert-prune", "keepExpertsPerLayer": 3, "routerKd": true, "heldOut": "held.txt"});
    let heads = json!({"type": "prune", "strategy": "entropy", "level": 0.25,
        "minHeadsPerLayer": 1, "minKvHeadsPerLayer": 1, "calibrationCorpus": "calib.jsonl"});
    let stories = [
        ("profile", json!([profile, {"type": "expert-prune", "keepExpertsPerLayer": 3}])),
        ("router-kd", json!([profile, prune])),
        ("heads", json!([heads])),
        ("gptq", json!([quant("gptq", &["Q4_0"])])),
        ("awq", json!([quant("awq", &["Q4_0"])])),
        ("block-tune", json!([quant("block-tune", &["Q2_0"])])),
    ];
    for (story, stages) in stories {
        let whole = finish(&line(&stages)).0;
        for done in [1, 2] {
            let factory = line(&stages);
            if story == "router-kd" {
                // Its first pass is the profile's.
                die_at(&factory, "expert-activation-profile:checkpointed");
                fs::rename(
                    factory.layout.station(Station::Intake).join("x.retry1.alloy.json"),
                    factory.layout.station(Station::Intake).join("x.alloy.json"),
                )
                .unwrap();
            }
            die_at(&factory, &format!("savepoint:{done}"));
            let (hash, told) = finish(&factory);
            assert_eq!(hash, whole, "{story}, {done} blocks done");
            let wanted = format!("went on from a savepoint: {done} of 2 blocks were done");
            assert!(told.contains(&wanted), "{story}: {told:?}");
            let left = factory.layout.work_root().join("x/.savepoints");
            let left: Vec<_> = fs::read_dir(left).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{story}: savepoints of a finished stage lie about: {left:?}");
        }
    }
}

#[test]
fn a_damaged_savepoint_is_not_used_and_costs_only_time() {
    let stages = json!([quant("gptq", &["Q4_0"])]);
    let whole = finish(&line(&stages)).0;
    for (file, why) in [("hidden.0", "is not as it was written"), ("savepoint.json", "EOF while parsing")] {
        let factory = line(&stages);
        die_at(&factory, "savepoint:1");
        let found = find(&factory.layout.work_root().join("x/.savepoints"), file).unwrap();
        fs::write(found, b"{\"torn").unwrap();
        let (hash, told) = finish(&factory);
        assert_eq!(hash, whole, "{file}");
        assert!(told.iter().any(|t| t.starts_with("a savepoint is not used: ") && t.contains(why)), "{told:?}");
    }
    // Solved rows that were cut short do not fit what was gathered.
    let factory = line(&stages);
    die_at(&factory, "savepoint:1");
    let rows = find(&factory.layout.work_root().join("x"), "tiny-Q4_0.gguf.rows").unwrap();
    fs::write(rows, b"short").unwrap();
    let (hash, told) = finish(&factory);
    assert_eq!(hash, whole);
    assert!(told.contains(&"a savepoint is not used: what had been gathered cannot be read".to_owned()), "{told:?}");
}

/// A file of this name below a folder.
fn find(folder: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| match entry.path() {
        path if path.is_dir() => find(&path, name),
        path => (entry.file_name() == name).then_some(path),
    })
}

#[test]
fn outputs_of_a_stage_that_are_done_are_not_made_again() {
    let stages = json!([quant("gptq", &["Q4_0", "Q8_0"])]);
    let whole = finish(&line(&stages)).0;
    let factory = line(&stages);
    die_at(&factory, "quant:output:gguf/tiny-Q8_0.gguf");
    let work = factory.layout.work_root().join("x");
    let inode = |name: &str| fs::metadata(work.join("gguf").join(name)).unwrap().ino();
    let (done, undone) = (inode("tiny-Q4_0.gguf"), inode("tiny-Q8_0.gguf"));
    assert_eq!(finish(&factory).0, whole);
    assert_eq!(inode("tiny-Q4_0.gguf"), done);
    assert_ne!(inode("tiny-Q8_0.gguf"), undone, "it had not been inspected");
    let text = fs::read_to_string(work.join(".stage-checkpoints.json")).unwrap();
    assert!(!text.contains("00-quant/gguf"), "the stage's checkpoint speaks for its parts");
}

/// A worker that lost its claim (a lock that a network file system forgot) says nothing that counts.
#[test]
fn a_late_worker_of_an_older_attempt_writes_no_checkpoint() {
    let stages = json!([{"type": "quant", "format": "gguf", "quantTypes": ["Q8_0"]}]);
    let bench = Bench::new(&fixture("qwen3_moe-text"), "qwen3_moe", stages);
    bench.run();
    let work = &bench.args.work;
    let plan: Plan = serde_json::from_slice(&fs::read(work.join("plan.json")).unwrap()).unwrap();
    let checkpoints = work.join(".stage-checkpoints.json");
    fs::remove_file(&checkpoints).unwrap();
    let listener = Silent;
    let progress = Progress::new(&listener);
    let mut late = StageContext::new(&plan, work, &progress, PassOptions::default());
    late.attempt = Some(AttemptToken::random().unwrap());
    let fault = run_stages(&mut late).unwrap_err();
    assert!(fault.message.contains("no longer owns"), "{fault}");
    assert!(!checkpoints.exists());
    let mut ours = StageContext::new(&plan, work, &progress, PassOptions::default());
    ours.attempt = Some(bench.args.attempt.clone());
    run_stages(&mut ours).unwrap();
    assert!(checkpoints.exists());
}

struct Silent;

impl Listener for Silent {
    fn hear(&self, _: &WorkerMessage) {}
}

#[test]
fn a_changed_recipe_keeps_what_it_does_not_touch_and_says_what_is_done_again() {
    let profile = json!({"type": "expert-activation-profile", "calibrationCorpus": "calib.jsonl", "maxLength": 128});
    let stages = |bits: &str| json!([profile, {"type": "quant", "format": "gguf", "quantTypes": [bits]}]);
    let factory = line(&stages("Q8_0"));
    die_at(&factory, "quant:checkpointed");
    let part = factory.layout.station(Station::Intake).join("x.retry1.alloy.json");
    fs::write(part, recipe(&stages("Q4_0"))).unwrap();
    let (hash, told) = finish(&factory);
    let again: Vec<&String> = told.iter().filter(|text| text.contains(" is done again: ")).collect();
    assert_eq!(again, ["01-quant is done again: the stage's settings differ from those it was made with"]);
    assert_eq!(hash, finish(&line(&stages("Q4_0"))).0);
    let skipped: Vec<bool> = follow::read(&factory.layout, &Since::Start)
        .unwrap()
        .into_iter()
        .filter(|event| event.kind == "forge/stage/completed")
        .map(|event| event.fields["skipped"] == true)
        .collect();
    // Profile and quant before the crash (the second was not told any more), then both again and the implied package.
    assert_eq!(skipped, [false, true, false, false]);
}
