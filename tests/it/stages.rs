//! Stages, end to end on the committed tiny models: what they change, what they must not, and how they resume.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use factoryline::family::open;
use serde_json::{Value, json};

use crate::worker::{Bench, fixture};

fn prune(keep: usize) -> Value {
    json!([{ "type": "expert-prune", "keepExpertsPerLayer": keep, "metric": "router_l2" }])
}

/// Name → bytes of every weight file below a folder.
fn weights(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let wanted = entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors" || e == "gguf"));
    wanted.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap())).collect()
}

#[test]
fn a_prune_drops_renames_and_cuts_what_its_arithmetic_says() {
    // Two layers of five experts, keep three: 2·2·3 tensors go, 2·3·3 get a new name, 2 routers lose rows.
    let bench = Bench::new(&fixture("qwen3_moe-sharded"), "qwen3_moe", prune(3));
    bench.run();
    let result = bench.json("result.json");
    let metadata = bench.json("pruned/expert_prune.metadata.v1.json");
    assert_eq!(metadata["tensors"]["dropped_expert"], 12);
    assert_eq!(metadata["tensors"]["kept_renamed"], 18);
    assert_eq!(metadata["tensors"]["router_gate_sliced"], 2);
    assert_eq!(metadata["selection"]["metric"], "router_l2");
    assert_eq!(metadata["source"]["shards"].as_array().unwrap().len(), 2);
    assert_eq!(metadata["selection"]["per_layer_kept_count"], json!({ "0": 3, "1": 3 }));

    let pruned = open(&bench.args.work.join("artifact")).unwrap();
    assert_eq!(pruned.spec.experts(), Some((3, 2)));
    let config: Value = bench.json("artifact/config.json");
    assert_eq!(config["num_experts"], 3);
    // The first kept expert of layer 1 is byte for byte what it was under its old number.
    let source = open(&fixture("qwen3_moe-sharded")).unwrap();
    let first = metadata["selection"]["per_layer_kept_indices"]["1"][0].as_u64().unwrap() as usize;
    let (old, new) =
        (&source.spec.blocks[1].moe().unwrap().experts[first], &pruned.spec.blocks[1].moe().unwrap().experts[0]);
    assert_eq!(source.tensors.bytes(&old.down.weight).unwrap(), pruned.tensors.bytes(&new.down.weight).unwrap());

    assert_eq!(result["artifacts"][0]["format"], "safetensors");
    assert_eq!(result["fileHashes"].as_array().unwrap().len(), 1);
    let gates: Vec<&str> = result["evidence"].as_array().unwrap().iter().map(|e| e["gate"].as_str().unwrap()).collect();
    assert_eq!(gates, ["reload", "pass-through", "score"]);
    let manifest = bench.json("artifact/manifest.json");
    assert_eq!(manifest["modelHash"], result["modelHash"]);
    let executed = bench.json("artifact/p.alloy.json");
    assert_eq!(executed["results"]["integrity"]["modelHash"], result["modelHash"]);
    assert!(bench.args.work.join("artifact/README.md").exists());
}

#[test]
fn two_builds_of_one_recipe_are_byte_identical() {
    let [a, b] = [(); 2].map(|()| {
        let bench = Bench::new(&fixture("qwen3_moe"), "qwen3_moe", prune(2));
        bench.run();
        bench
    });
    assert_eq!(a.json("result.json")["modelHash"], b.json("result.json")["modelHash"]);
    assert_eq!(weights(&a.args.work.join("artifact")), weights(&b.args.work.join("artifact")));
}

#[test]
fn a_second_attempt_skips_what_is_verified_and_redoes_what_is_not() {
    use factoryline::line::wire::WorkerMessage;
    let mut bench = Bench::new(&fixture("qwen3_moe"), "qwen3_moe", prune(2));
    bench.run();
    let first = weights(&bench.args.work.join("artifact"));
    let skipped = |heard: Vec<WorkerMessage>| -> Vec<bool> {
        heard
            .iter()
            .filter_map(|m| if let WorkerMessage::StageCompleted { skipped, .. } = m { Some(*skipped) } else { None })
            .collect()
    };
    bench.again();
    assert_eq!(skipped(bench.run()), [true, true]);
    // A damaged output is noticed and made again.
    fs::write(bench.args.work.join("pruned/config.json"), "{}").unwrap();
    bench.again();
    assert_eq!(skipped(bench.run()), [false, false]);
    assert_eq!(weights(&bench.args.work.join("artifact")), first);
}

#[test]
fn a_weight_that_is_not_a_number_is_the_sources_fault() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("broken");
    Bench::copy_of("qwen3_moe", &model);
    let file = model.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let bench = Bench::new(&model, "qwen3_moe", prune(2));
    bench.run();
    let fault = bench.fault();
    assert!(fault.starts_with("source: "), "{fault}");
    assert!(fault.contains("not finite"), "{fault}");
}

#[test]
fn a_missing_shard_is_named_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("torn");
    Bench::copy_of("qwen3_moe-sharded", &model);
    fs::remove_file(model.join("model-00002-of-00002.safetensors")).unwrap();
    let bench = Bench::new(&model, "qwen3_moe", prune(3));
    bench.run();
    let fault = bench.fault();
    assert!(fault.starts_with("source: "), "{fault}");
    assert!(fault.contains("model-00002-of-00002.safetensors"), "{fault}");
}
