//! The senses of a model beside text: checked, fingerprinted, and proved untouched whatever a stage does.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use factoryline::family;
use factoryline::gate;
use factoryline::model::{HfDir, TensorSource};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::worker::{Bench, fixture};

/// A fixture with its tensors and its config edited, in a directory of its own.
fn edited(
    name: &str,
    tensors: impl FnOnce(&mut HashMap<String, Tensor>),
    config: impl FnOnce(&mut Value),
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut all = candle_core::safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu).unwrap();
    tensors(&mut all);
    candle_core::safetensors::save(&all, dir.path().join("model.safetensors")).unwrap();
    let mut value: Value = serde_json::from_slice(&fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
    config(&mut value);
    fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
    dir
}

fn zero(tensor: &mut Tensor) {
    *tensor = tensor.zeros_like().unwrap();
}

/// The message, without where the model lies.
fn text(dir: &tempfile::TempDir, error: impl std::fmt::Display) -> String {
    error.to_string().replace(&dir.path().display().to_string(), "MODEL")
}

/// The definition, from the files alone.
fn by_definition(name: &str, prefix: &str) -> (usize, String) {
    let stored = HfDir::open(&fixture(name)).unwrap().tensors;
    let mut names: Vec<&str> =
        stored.metas().iter().map(|m| m.name.as_str()).filter(|n| n.starts_with(prefix)).collect();
    names.sort_unstable();
    let mut hasher = Sha256::new();
    for name in &names {
        hasher.update(name.as_bytes());
        hasher.update([0]);
        hasher.update(stored.bytes(name).unwrap());
    }
    (names.len(), factoryline::units::Sha(hasher.finalize().into()).hex())
}

#[test]
fn every_tower_has_a_fingerprint_of_its_own() {
    for (name, towers) in [
        ("qwen3_vl", vec![("vision tower", "model.visual.")]),
        ("qwen2_5_vl", vec![("vision tower", "visual."), ("vision tower merger", "visual.merger.")]),
        ("qwen3_5", vec![("vision tower", "model.visual.")]),
        (
            "qwen2_5_omni",
            vec![
                ("vision tower", "thinker.visual."),
                ("vision tower merger", "thinker.visual.merger."),
                ("audio tower", "thinker.audio_tower."),
            ],
        ),
    ] {
        let model = family::open(&fixture(name)).unwrap();
        let found = gate::check_senses(&model).unwrap();
        for (tower, prefix) in towers {
            let fingerprint = found.iter().find(|f| f.name == tower).unwrap_or_else(|| panic!("{name}: {found:?}"));
            let (tensors, sha) = by_definition(name, prefix);
            assert!(tensors > 0);
            assert_eq!((fingerprint.tensors, fingerprint.sha256.hex()), (tensors, sha), "{name}: {tower}");
        }
    }
    // The merger lists of deeper layers count as merger too.
    let model = family::open(&fixture("qwen3_vl")).unwrap();
    let merger = gate::fingerprints(&model).unwrap().into_iter().find(|f| f.name == "vision tower merger").unwrap();
    assert_eq!(merger.tensors, 18);
    assert!(!gate::has_towers(&family::open(&fixture("llama")).unwrap().spec));
}

#[test]
fn what_the_config_declares_must_be_there() {
    let refused = |tensors: fn(&mut HashMap<String, Tensor>), config: fn(&mut Value)| {
        let dir = edited("qwen3_vl", tensors, config);
        text(&dir, gate::check_senses(&family::open(dir.path()).unwrap()).unwrap_err())
    };
    let same = |_: &mut HashMap<String, Tensor>| ();
    insta::assert_snapshot!(refused(same, |c| { c.as_object_mut().unwrap().remove("video_token_id"); }), @"MODEL: config key video_token_id or video_token_index is missing");
    insta::assert_snapshot!(refused(same, |c| c["vision_end_token_id"] = json!("373")), @r#"MODEL: config key vision_end_token_id is "373", no id below the vocabulary's 160"#);
    insta::assert_snapshot!(refused(same, |c| c["image_token_id"] = json!(100_000)), @"MODEL: config key image_token_id is 100000, no id below the vocabulary's 160");
    insta::assert_snapshot!(refused(same, |c| c["vision_config"]["deepstack_visual_indexes"] = json!([0, 99])), @"MODEL: config key vision_config.deepstack_visual_indexes is [0,99], no list of its layers");
    insta::assert_snapshot!(refused(|t| t.iter_mut().filter(|(n, _)| n.contains("visual")).for_each(|(_, t)| zero(t)), |_| ()), @"MODEL: zeroed tower: every value of the vision tower is zero");
    insta::assert_snapshot!(refused(|t| t.retain(|n, _| !n.contains("merger")), |_| ()), @"MODEL: the vision tower has no merger");
    // A tower without a tensor does not even open.
    let dir = edited("qwen3_vl", |t| t.retain(|n, _| !n.contains("visual")), |_| ());
    let error = family::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("vision tower"), "{error}");
    // Where a config has no such list, or an empty one, nothing is missing.
    for list in [json!([]), Value::Null] {
        let dir = edited("qwen3_vl", |_| (), |c| c["vision_config"]["deepstack_visual_indexes"] = list);
        gate::check_senses(&family::open(dir.path()).unwrap()).unwrap();
    }
}

/// What the gate says to an output that was damaged in one way.
fn caught(name: &str, tensors: fn(&mut HashMap<String, Tensor>), config: fn(&mut Value)) -> String {
    let dir = edited(name, tensors, config);
    let (source, output) = (family::open(&fixture(name)).unwrap(), family::open(dir.path()).unwrap());
    gate::senses_unchanged(&source, &output, "out").unwrap_err().to_string()
}

#[test]
fn damage_to_a_tower_is_caught_by_name() {
    let intact = edited("qwen3_vl", |_| (), |_| ());
    let (source, output) = (family::open(&fixture("qwen3_vl")).unwrap(), family::open(intact.path()).unwrap());
    let evidence = gate::senses_unchanged(&source, &output, "out").unwrap().unwrap();
    assert_eq!(evidence.gate, "modality");
    assert!(evidence.figures["vocabulary_rows"].as_u64().unwrap() >= 4);

    let zeroed =
        |t: &mut HashMap<String, Tensor>| t.iter_mut().filter(|(n, _)| n.contains("visual")).for_each(|(_, t)| zero(t));
    insta::assert_snapshot!(caught("qwen3_vl", zeroed, |_| ()), @"out: zeroed tower: every value of the vision tower is zero, the source's is not");
    let one = |t: &mut HashMap<String, Tensor>| zero(t.get_mut("model.visual.merger.norm.weight").unwrap());
    insta::assert_snapshot!(caught("qwen3_vl", one, |_| ()), @"out: tensor model.visual.merger.norm.weight of the vision tower is zeroed in the output");
    let audio = |t: &mut HashMap<String, Tensor>| {
        t.iter_mut().filter(|(n, _)| n.contains("audio_tower")).for_each(|(_, t)| zero(t))
    };
    insta::assert_snapshot!(caught("qwen2_5_omni", audio, |_| ()), @"out: zeroed tower: every value of the audio tower is zero, the source's is not");
    let lost = |t: &mut HashMap<String, Tensor>| {
        t.remove("model.visual.pos_embed.weight").unwrap();
    };
    insta::assert_snapshot!(caught("qwen3_vl", lost, |_| ()), @"out: tensor model.visual.pos_embed.weight of the vision tower is missing in the output");
}

#[test]
fn damage_to_ids_and_rows_is_caught_by_name() {
    let config: Value = serde_json::from_slice(&fs::read(fixture("qwen2_5_vl").join("config.json")).unwrap()).unwrap();
    let id = config["image_token_id"].as_u64().unwrap();
    assert!(id > 0);
    let embed = |t: &mut HashMap<String, Tensor>| zero(t.get_mut("model.embed_tokens.weight").unwrap());
    let row = caught("qwen2_5_vl", embed, |_| ());
    assert!(row.contains("model.embed_tokens.weight has another row for image_token_id"), "{row}");
    let keys = |change: fn(&mut Value)| caught("qwen2_5_vl", |_| (), change);
    insta::assert_snapshot!(keys(|c| c["rope_theta"] = json!(5.0)), @"out: config key rope_theta is 5.0, the source has 10000.0");
    insta::assert_snapshot!(keys(|c| c["rope_scaling"]["mrope_section"] = json!([2, 1, 1])), @"out: config key rope_scaling.mrope_section is [2,1,1], the source has [1,1,2]");
    insta::assert_snapshot!(keys(|c| c["video_token_id"] = json!(3)), @"out: config key video_token_id is 3, the source has 151");
}

fn gates(result: &Value) -> Vec<&str> {
    result["evidence"].as_array().unwrap().iter().map(|e| e["gate"].as_str().unwrap()).collect()
}

#[test]
fn stages_leave_towers_alone_and_say_so() {
    let check = json!({ "type": "modality", "modality": "vision", "encoderModel": "own" });
    let heads = json!({ "type": "prune", "strategy": "magnitude", "level": 0.5, "minHeadsPerLayer": 1, "minKvHeadsPerLayer": 1 });
    let bench = Bench::new(&fixture("qwen3_vl"), "qwen3_vl", json!([check, heads]));
    bench.run();
    let result = bench.json("result.json");
    assert_eq!(gates(&result), ["reload", "pass-through", "score", "modality"]);
    let details = &result["stages"][0]["details"];
    assert_eq!(details["towers"][0]["name"], "vision tower");
    assert_eq!(result["evidence"][3]["figures"]["vision tower"].as_str().unwrap().len(), 71);
    assert_eq!(details["token_ids"].as_object().unwrap().len(), 4);

    let experts = json!({ "type": "expert-prune", "keepExpertsPerLayer": 3, "metric": "router_l2" });
    let bench = Bench::new(&fixture("qwen3_vl_moe"), "qwen3_vl_moe", json!([experts]));
    bench.run();
    assert!(gates(&bench.json("result.json")).contains(&"modality"));

    let longer = json!({ "type": "context-extend", "targetLength": 4096, "method": "yarn" });
    let bench = Bench::new(&fixture("qwen2_5_omni"), "qwen2_5_omni", json!([longer]));
    bench.run();
    assert!(gates(&bench.json("result.json")).contains(&"modality"));
}

fn refusal(model: &str, stage: Value) -> String {
    let bench = Bench::new(Path::new(&fixture(model)), model, json!([stage]));
    bench.run();
    bench.fault()
}

#[test]
fn a_sense_the_model_lacks_is_refused() {
    let own = |modality: &str| json!({ "type": "modality", "modality": modality, "encoderModel": "own" });
    insta::assert_snapshot!(refusal("qwen3_vl", own("audio")), @"recipe: stages[0].modality: the model's config.json has no audio_config");
    insta::assert_snapshot!(refusal("llama", own("multimodal")), @"recipe: stages[0].modality: the model's config.json has no vision_config and no audio_config");
    let other =
        json!({ "type": "modality", "modality": "vision", "encoderModel": "google/siglip", "trainingSteps": 9 });
    insta::assert_snapshot!(refusal("qwen3_vl", other), @"recipe: 2 errors: stages[0].encoderModel: this build adds no encoder: google/siglip cannot be joined to the model; stages[0].trainingSteps: this build trains no projection");
    let ntk = json!({ "type": "context-extend", "targetLength": 4096, "method": "ntk" });
    insta::assert_snapshot!(refusal("qwen3_vl", ntk), @"recipe: stages[0].method: ntk changes rope_theta, which stays as it is in a model with towers");
}
