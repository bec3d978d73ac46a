//! Attention heads pruned, in the arithmetic and through the line: a pruned model is the base with those heads masked.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use factoryline::compress::{
    Defrag, HeadMetric, HeadPlan, LayerHeads, config_with_heads, prunable, rewrite_heads, score_heads, with_heads,
};
use factoryline::engine::PassOptions;
use factoryline::engine::matmul::Kernel;
use factoryline::family::{self, OpenModel};
use factoryline::gate;
use serde_json::{Value, json};

use crate::oracle::{TOLERANCE, logits, worst};
use crate::worker::{Bench, fixture};

/// What transformers computed with heads masked (scripts/make_head_fixtures.py).
struct Masked {
    ids: Vec<Vec<u32>>,
    /// Layer → masked heads.
    gone: Vec<Vec<usize>>,
    logits: Vec<f32>,
}

fn references() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heads");
    let names =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names.len(), 4, "{names:?}");
    names
}

fn masked(name: &str, kind: &str) -> Masked {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/heads/{name}.safetensors"));
    let tensors: HashMap<String, Tensor> = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let mask: Vec<Vec<u32>> = tensors[&format!("{kind}_mask")].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
    let gone = |row: &Vec<u32>| row.iter().enumerate().filter(|(_, m)| **m == 1).map(|(head, _)| head).collect();
    Masked {
        ids: tensors["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap(),
        gone: mask.iter().map(gone).collect(),
        logits: tensors[&format!("{kind}_logits")].flatten_all().unwrap().to_vec1().unwrap(),
    }
}

fn plan(model: &OpenModel, gone: &[Vec<usize>], defrag: Defrag) -> HeadPlan {
    let layer = |((index, a), gone): ((usize, &family::AttentionSpec), &Vec<usize>)| {
        (index, LayerHeads { heads: a.heads, kv_heads: a.kv_heads, gone: gone.clone() })
    };
    HeadPlan { defrag, layers: prunable(&model.spec).into_iter().zip(gone).map(layer).collect() }
}

/// Writes `model` without the heads of `plan`.
fn written(model: &OpenModel, plan: &HeadPlan) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let edits = plan.edits(model).unwrap();
    rewrite_heads(&*model.stored, &edits, dir.path(), 1 << 30, &|_| ()).unwrap();
    let config = config_with_heads(&model.config, &model.spec, plan);
    fs::write(dir.path().join("config.json"), config.to_json()).unwrap();
    gate::reopen(dir.path(), "pruned", &with_heads(model.spec.clone(), plan)).unwrap();
    dir
}

#[test]
fn logits_are_those_of_the_base_with_the_heads_masked() {
    let options = PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() };
    for name in references() {
        let model = family::open(&fixture(&name)).unwrap();
        for (kind, defrag) in [("head", Defrag::Pad), ("group", Defrag::Pad), ("group", Defrag::Slice)] {
            let reference = masked(&name, kind);
            let dir = written(&model, &plan(&model, &reference.gone, defrag));
            let difference = worst(&logits(dir.path(), &reference.ids, &options), &reference.logits);
            assert!(difference <= TOLERANCE, "{name}, {kind} by {defrag:?}: logits differ by {difference:e}");
        }
    }
}

#[test]
fn padding_and_slicing_give_the_same_logits() {
    for name in references() {
        let model = family::open(&fixture(&name)).unwrap();
        let reference = masked(&name, "group");
        let [pad, slice] =
            [Defrag::Pad, Defrag::Slice].map(|mode| written(&model, &plan(&model, &reference.gone, mode)));
        let options = PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() };
        let of = |dir: &tempfile::TempDir| logits(dir.path(), &reference.ids, &options);
        assert!(worst(&of(&pad), &of(&slice)) < 1e-5, "{name}");
        let size = |dir: &tempfile::TempDir| fs::metadata(dir.path().join("model.safetensors")).unwrap().len();
        assert!(size(&slice) < size(&pad), "{name}");
    }
}

/// The scores of a pass, against what follows from weights and logits alone.
#[test]
fn scores_tell_a_head_that_does_nothing() {
    let model = family::open(&fixture("llama")).unwrap();
    // A padded model's zeroed head puts nothing out and attends to all alike.
    let gone = [vec![1], vec![2]];
    let dir = written(&model, &plan(&model, &gone, Defrag::Pad));
    let padded = family::open(dir.path()).unwrap();
    let ids: Vec<Vec<u32>> = vec![(3..40).collect(), vec![5, 9, 11], vec![7]];
    let score = |metric| score_heads(&padded, metric, &ids, 0, &PassOptions::default(), &|_| ()).unwrap();
    let focus = score(HeadMetric::Entropy);
    assert_eq!(focus.tokens, 41);
    for (layer, gone) in gone.iter().enumerate() {
        for (head, value) in focus.layers[&layer].iter().enumerate() {
            let is_flat = value.abs() < 1e-6;
            assert_eq!(is_flat, gone.contains(&head), "layer {layer}, head {head}: focus {value}");
        }
    }
    // Half a group is gone: its value head still works, so only the weights of q and o are missing.
    let (before, after) = (
        score_heads(&model, HeadMetric::Magnitude, &[], 0, &PassOptions::default(), &|_| ()).unwrap(),
        score(HeadMetric::Magnitude),
    );
    assert!(after.layers[&0][1] < 0.7 * before.layers[&0][1]);
    assert_eq!(after.layers[&0][0], before.layers[&0][0]);
    let out = score(HeadMetric::ActivationMagnitude);
    assert!(out.layers.values().flatten().all(|v| *v > 0.0));
}

const TEXT: &str = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of \
                    foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light. ";

fn bench(stages: Value) -> Bench {
    let bench = Bench::new(&fixture("qwen3_moe-text"), "qwen3_moe", stages);
    bench.text("calib.jsonl", &format!("{}\n{}\n", json!({ "text": TEXT }), json!({ "content": TEXT.repeat(2) })));
    bench
}

fn stage(more: Value) -> Value {
    let mut stage = json!({ "type": "prune", "strategy": "entropy", "level": 0.25, "calibrationCorpus": "calib.jsonl",
        "minHeadsPerLayer": 1, "minKvHeadsPerLayer": 1 });
    for (key, value) in more.as_object().unwrap() {
        stage[key] = value.clone();
    }
    stage
}

fn gates(result: &Value) -> Vec<&str> {
    result["evidence"].as_array().unwrap().iter().map(|e| e["gate"].as_str().unwrap()).collect()
}

#[test]
fn a_prune_by_entropy_ships_what_it_decided() {
    let bench = bench(json!([stage(json!({ "perLayerNormalized": true })),
        { "type": "quant", "format": "gguf", "quantTypes": ["BF16"] }]));
    bench.run();
    let result = bench.json("result.json");
    assert_eq!(&gates(&result)[..3], ["reload", "pass-through", "score"]);
    let proof = &result["evidence"][1]["figures"];
    // Of two layers with four heads one each: q and o, and no key/value head.
    assert_eq!((&proof["tensors_without_heads"], &proof["tensors_sliced"]), (&json!(4), &json!(0)));
    let metadata = bench.json("heads.0/head_prune.metadata.v1.json");
    assert_eq!(metadata["selection"]["strategy"], "entropy");
    assert!(metadata["selection"]["calibration_tokens"].as_u64().unwrap() > 100);
    for layer in metadata["layers"].as_object().unwrap().values() {
        let scores: Vec<f64> = serde_json::from_value(layer["scores"].clone()).unwrap();
        let dropped = layer["dropped"][0].as_u64().unwrap() as usize;
        assert!(scores.iter().all(|score| *score >= scores[dropped]), "{scores:?} {dropped}");
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
    }
    assert_eq!(result["stages"][0]["details"]["layers"], metadata["layers"]);
    assert!(bench.args.work.join("artifact/head_prune.metadata.v1.json").is_file(), "it travels with the GGUF file");
    let config = bench.json("heads.0/config.json");
    assert_eq!(config["num_attention_heads"], 4);
    // Zeroed in the file: half the heads' worth of the first layer's output projection.
    let (source, pruned) =
        (family::open(&fixture("qwen3_moe-text")).unwrap(), family::open(&bench.args.work.join("heads.0")).unwrap());
    let name = "model.layers.0.self_attn.o_proj.weight";
    let zeros = |model: &OpenModel| model.stored.bytes(name).unwrap().chunks(2).filter(|b| *b == [0, 0]).count();
    assert!(zeros(&source) < 8);
    assert!(zeros(&pruned) >= source.stored.meta(name).unwrap().elems() / 4);
}

#[test]
fn a_slice_changes_the_config_and_the_bytes() {
    let slice = stage(json!({ "strategy": "magnitude", "defragMode": "slice", "level": 0.5 }));
    let bench = bench(json!([slice, { "type": "package", "format": "safetensors" }]));
    bench.run();
    let result = bench.json("result.json");
    assert_eq!(gates(&result), ["reload", "pass-through", "score"]);
    let config = bench.json("artifact/config.json");
    let of = |key: &str| config[key].as_u64().unwrap();
    assert_eq!((of("num_attention_heads"), of("num_key_value_heads"), of("head_dim")), (2, 1, 16));
    assert_eq!(result["stages"][0]["details"]["selection"]["calibration_tokens"], 0);
    let model = family::open(&bench.args.work.join("artifact")).unwrap();
    assert_eq!(model.spec.blocks[1].attention().map(|a| (a.heads, a.kv_heads)), Some((2, 1)));
}

#[test]
fn random_heads_are_drawn_again_from_their_seed() {
    let dropped = |seed: u64| {
        let bench = bench(json!([stage(json!({ "strategy": "random", "seed": seed, "level": 0.5 }))]));
        bench.run();
        let details = bench.json("result.json")["stages"][0]["details"].clone();
        assert_eq!(details["selection"]["seed"], seed);
        let layers = details["layers"].as_object().unwrap().clone();
        layers.into_iter().map(|(layer, d)| (layer, d["dropped"].to_string())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(dropped(3), dropped(3));
    assert_ne!(dropped(3), dropped(4));
}

fn refusal(more: Value) -> String {
    let bench = bench(json!([stage(more)]));
    bench.run();
    bench.fault()
}

#[test]
fn what_cannot_be_pruned_is_refused_before_anything_runs() {
    insta::assert_snapshot!(refusal(json!({ "strategy": "gradient" })), @"recipe: stages[0].strategy: gradient needs a backward pass, which this build does not have");
    insta::assert_snapshot!(refusal(json!({ "strategy": "per-layer-normalized-router-importance" })), @"recipe: stages[0].strategy: per-layer-normalized-router-importance ranks experts, this stage removes attention heads");
    insta::assert_snapshot!(refusal(json!({ "calibrationCorpus": null })), @"recipe: stages[0].calibrationCorpus: entropy looks at the model at work, and the recipe names no text for that");
    insta::assert_snapshot!(refusal(json!({ "defragMode": "fold" })), @r#"recipe: stages[0].defragMode: "fold" is no way to remove a head"#);
    insta::assert_snapshot!(refusal(json!({ "defragMode": "slice", "perLayerNormalized": false, "level": 0.5 })), @"recipe: stages[0].defragMode: slice takes the same number of every layer, perLayerNormalized false does not");
    insta::assert_snapshot!(refusal(json!({ "minHeadsPerLayer": 4 })), @"recipe: stages[0].level: minHeadsPerLayer 4 and minKvHeadsPerLayer 1 leave nothing of 8 to remove");
    insta::assert_snapshot!(refusal(json!({ "level": 0.1, "perLayerNormalized": true })), @"recipe: stages[0].level: 0.1 of 8 heads is less than one of the heads to remove");
}

#[test]
fn heads_cannot_be_pruned_after_the_files_were_written() {
    let quant = json!({ "type": "quant", "format": "gguf", "quantTypes": ["F16"] });
    let bench = bench(json!([quant, stage(json!({}))]));
    bench.run();
    insta::assert_snapshot!(bench.fault(), @"recipe: stages[1].type: comes after quant: the files already written would not be pruned");
}

/// A damaged output is caught by the proof: this is the gate the stage runs.
#[test]
fn a_head_that_was_not_to_go_is_noticed() {
    use factoryline::gate::{HeadCut, Lineage, Part};
    let model = family::open(&fixture("llama")).unwrap();
    let decided = plan(&model, &[vec![1], vec![2]], Defrag::Pad);
    let dir = written(&model, &plan(&model, &[vec![1], vec![3]], Defrag::Pad));
    let pruned = family::open(dir.path()).unwrap();
    let edits = decided.edits(&model).unwrap();
    let lineage: Vec<Lineage> = model
        .stored
        .metas()
        .iter()
        .map(|meta| {
            let part = edits.get(&meta.name).map_or(Part::Whole, |edit| {
                let axis = usize::from(edit.axis == factoryline::compress::Axis::Columns);
                Part::Heads(HeadCut { axis, count: edit.count, gone: edit.gone.clone(), cut_out: edit.slice })
            });
            Lineage { part, ..Lineage::unchanged(&meta.name) }
        })
        .collect();
    let error = gate::pass_through(&*model.stored, &*pruned.stored, &lineage, "heads", &|_| ()).unwrap_err();
    assert!(error.to_string().contains("model.layers.1.self_attn."), "{error}");
    let honest = written(&model, &decided);
    let honest = family::open(honest.path()).unwrap();
    gate::pass_through(&*model.stored, &*honest.stored, &lineage, "heads", &|_| ()).unwrap();
}

/// Where the tensors of a model lie does not matter: shards are rewritten in their order.
#[test]
fn shards_keep_their_order() {
    let bench =
        Bench::new(&fixture("qwen3_moe-sharded"), "qwen3_moe", json!([stage(json!({ "strategy": "magnitude" }))]));
    bench.run();
    bench.json("result.json");
    let names = |dir: PathBuf| -> Vec<String> {
        family::open(&dir).unwrap().stored.metas().iter().map(|m| m.name.clone()).collect()
    };
    assert_eq!(names(bench.args.work.join("heads.0")), names(fixture("qwen3_moe-sharded")));
}
