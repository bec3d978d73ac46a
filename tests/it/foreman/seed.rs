//! `foreman seed`: what is enqueued, what is not, and why.

use std::fs;
use std::path::Path;

use factoryline::line::Station;
use serde_json::json;

use super::{Bench, reads};

/// A folder with a recipe of every fate: one that can be built, one without its model, one nobody can execute.
fn folder(bench: &Bench) -> String {
    let folder = bench.dir.path().join("recipes");
    fs::create_dir_all(&folder).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/qwen3_moe-text");
    let quant = json!({ "type": "quant", "format": "gguf", "quantTypes": ["Q8_0"] });
    for (name, model, architecture, stages) in [
        ("here", model.to_str().unwrap(), "qwen3_moe", json!([quant])),
        ("elsewhere", "org/absent", "llama", json!([quant])),
        ("unheard-of", "org/absent", "llama", json!([{ "type": "train" }])),
    ] {
        let source = json!({ "baseModel": model, "architecture": architecture });
        let recipe = json!({ "name": name, "version": "1.0.0", "source": source, "stages": stages });
        fs::write(folder.join(format!("{name}.alloy.json")), recipe.to_string()).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[test]
fn what_can_be_built_is_enqueued_and_the_others_are_told_why_not() {
    let bench = Bench::new();
    let folder = folder(&bench);
    let dry = bench.foreman(&["seed", "--from", &folder, "--dry-run"]);
    assert_eq!(fs::read_dir(bench.layout.station(Station::Intake)).unwrap().count(), 0);
    reads!(bench, dry.all(), @r#"
    exit 0
    --- stdout
    PART        ARCHITECTURE  FATE      BECAUSE
    elsewhere   llama         lacking   model "org/absent" is not here
    here        qwen3_moe     enqueued
    unheard-of  llama         refused   this build cannot execute `train` stages
    --- stderr
    1 of 3 would be enqueued; nothing was changed (--dry-run)
    "#);
    reads!(bench, bench.foreman(&["seed", "--from", &folder]).all(), @r#"
    exit 0
    --- stdout
    PART        ARCHITECTURE  FATE      BECAUSE
    elsewhere   llama         lacking   model "org/absent" is not here
    here        qwen3_moe     enqueued
    unheard-of  llama         refused   this build cannot execute `train` stages
    --- stderr
    1 of 3 enqueued; next: foreman run --drain --root ROOT
    "#);
    assert!(bench.layout.station(Station::Intake).join("here.alloy.json").is_file());
    let again = bench.foreman(&["seed", "--from", &folder, "--json"]);
    let document = again.json();
    assert_eq!((again.code, &document["enqueued"]), (4, &json!(0)));
    assert_eq!(document["recipes"][1]["fate"], "on_the_line");
    assert_eq!(document["recipes"][1]["because"], json!(["in intake"]));
    let other = bench.foreman(&["seed", "--family", "lama", "--from", &folder]);
    reads!(bench, other.all(), @r#"
    exit 4
    --- stdout
    --- stderr
    error: no recipe is for the family "lama"

    hint: did you mean `llama`? known: llama, qwen3_moe
    "#);
}

#[test]
fn the_catalogue_is_in_the_program() {
    let bench = Bench::new();
    let all = bench.foreman(&["seed", "--dry-run", "--json"]).json();
    assert_eq!(all["recipes"].as_array().unwrap().len(), 17);
    // Nothing but the models and texts is missing here.
    for row in all["recipes"].as_array().unwrap() {
        assert_eq!(row["fate"], "lacking", "{row}");
    }
    let some = bench.foreman(&["seed", "--dry-run", "--family", "mixtral"]);
    reads!(bench, some.all(), @r#"
    exit 4
    --- stdout
    PART                                  ARCHITECTURE  FATE     BECAUSE
    mixtral-8x22b-instruct-compacted-73b  mixtral       lacking  model "mistralai/Mixtral-8x22B-Instruct-v0.1" is not here; text "calibration/heldout_code300.jsonl" is not here; text "heldout-code.txt" is not here
    mixtral-8x7b-instruct-compacted-24b   mixtral       lacking  model "mistralai/Mixtral-8x7B-Instruct-v0.1" is not here; text "calibration/heldout_code300.jsonl" is not here; text "heldout-code.txt" is not here
    --- stderr
    0 of 2 would be enqueued; nothing was changed (--dry-run)
    "#);
}
