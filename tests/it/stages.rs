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

const TEXT: &str = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of \
                    foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light. ";

fn whole_chain() -> Value {
    json!({
        "name": "tiny", "version": "1.0.0",
        "source": { "baseModel": fixture("qwen3_moe-text"), "architecture": "qwen3_moe", "isMoE": true },
        "stages": [
            { "type": "source-config", "contextLength": 64 },
            { "type": "expert-activation-profile", "calibrationCorpus": "calib.jsonl", "maxLength": 128 },
            { "type": "expert-prune", "keepExpertsPerLayer": 3 },
            { "type": "quant", "format": "gguf", "quantTypes": ["F32", "BF16", "Q8_0", "Q4_0"] },
            { "type": "eval", "benchmarks": [
                { "name": "perplexity", "data": "held.txt", "context": 64, "convention": "llama.cpp" },
                { "name": "divergence", "data": "held.txt", "context": 32, "convention": "windowed", "maxTokens": 100 }
            ] },
            { "type": "package", "format": "gguf" }
        ],
        "acceptanceCriteria": {
            "perplexity": { "max": 1e6 }, "divergence": { "maxKld": 5.0, "minSameTop1": 0.01 }, "size": { "maxGb": 0.01 }, "integrity": { "modelHashRequired": true }
        }
    })
}

fn chain_bench(recipe: &Value) -> Bench {
    let bench = Bench::with_recipe(recipe);
    bench.text("calib.jsonl", &format!("{}\n{}\n", json!({ "text": TEXT }), json!({ "content": TEXT.repeat(2) })));
    bench.text("held.txt", &TEXT.repeat(12));
    bench
}

#[test]
fn a_whole_recipe_comes_out_measured_and_certified() {
    let bench = chain_bench(&whole_chain());
    bench.run();
    let result = bench.json("result.json");
    let table = bench.json("importance.json");
    let (tokens, top_k) =
        (table["calibration_tokens"].as_u64().unwrap(), table["num_experts_per_tok"].as_u64().unwrap());
    assert_eq!(table["calibration_examples"], 2);
    for counts in table["activation_counts"].as_object().unwrap().values() {
        assert_eq!(counts.as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).sum::<u64>(), tokens * top_k);
    }
    // The three kept experts are the three most chosen.
    let metadata = bench.json("pruned/expert_prune.metadata.v1.json");
    let counts: Vec<u64> = serde_json::from_value(table["activation_counts"]["0"].clone()).unwrap();
    let kept: Vec<usize> =
        serde_json::from_value(metadata["selection"]["per_layer_kept_indices"]["0"].clone()).unwrap();
    let dropped = (0..counts.len()).find(|e| !kept.contains(e)).unwrap();
    assert!(kept.iter().all(|&e| counts[e] >= counts[dropped]), "{counts:?} {kept:?}");

    let artifacts = result["artifacts"].as_array().unwrap();
    let types: Vec<&str> = artifacts.iter().map(|a| a["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["F32", "BF16", "Q8_0", "Q4_0"]);
    let perplexity = |i: usize| artifacts[i]["perplexity"].as_f64().unwrap();
    // BF16 loses nothing on a bf16 model; Q8_0 nearly nothing.
    assert_eq!(perplexity(0), perplexity(1));
    assert!((perplexity(2) / perplexity(0) - 1.0).abs() < 0.01, "{} {}", perplexity(2), perplexity(0));
    assert!(result["metrics"]["baselinePerplexity"].as_f64().unwrap().is_finite());
    for artifact in artifacts {
        let measured = artifact["measurements"].as_array().unwrap();
        let names: Vec<&Value> = measured.iter().map(|m| &m["against"]).collect();
        assert_eq!(names, [&result["source"]["baseModel"]; 2]);
        // Both benchmarks compare with the source, which has one expert more.
        for divergence in measured.iter().map(|m| &m["divergence"]) {
            let figure = |key: &str| divergence[key].as_f64().unwrap();
            assert!(figure("kld") > 0.0 && figure("kld") <= figure("kld_max"), "{divergence}");
            assert!(figure("same_top") > 0.1 && figure("same_top") < 1.0, "{divergence}");
            assert_eq!(
                figure("positions"),
                measured.iter().find(|m| &m["divergence"] == divergence).unwrap()["tokens"]
            );
        }
        assert_eq!(artifact["kld"], measured[0]["divergence"]["kld"]);
    }
    assert_eq!(artifacts[0]["kld"], artifacts[1]["kld"]);
    let executed = bench.json("artifact/p.alloy.json");
    let scores = executed["results"]["benchmarks"].as_array().unwrap();
    let of = |metric: &str| scores.iter().filter(|score| score["metric"] == metric).count();
    assert_eq!((of("perplexity"), of("kld")), (4, 4));
    for artifact in artifacts {
        let path = bench.args.work.join("artifact").join(artifact["path"].as_str().unwrap());
        assert_eq!(fs::metadata(path).unwrap().len(), artifact["bytes"].as_u64().unwrap());
    }
    let gates: Vec<&str> = result["evidence"].as_array().unwrap().iter().map(|e| e["gate"].as_str().unwrap()).collect();
    let per_file = ["reload", "tokenizer", "score"];
    let expected: Vec<&str> = ["coverage", "damage", "reload", "pass-through", "score"]
        .into_iter()
        .chain(per_file.into_iter().cycle().take(12))
        .chain(["acceptance"; 17])
        .collect();
    assert_eq!(gates, expected);
    let card = fs::read_to_string(bench.args.work.join("artifact/README.md")).unwrap();
    assert!(card.contains("| perplexity | KLD | same top-1 |"), "{card}");
    assert!(card.contains("tiny-Q4_0.gguf") && card.contains(&result["modelHash"].as_str().unwrap()[7..]), "{card}");
    factoryline::model::Manifest::read(&bench.args.work.join("artifact"))
        .unwrap()
        .verify(&bench.args.work.join("artifact"))
        .unwrap();
}

#[test]
fn without_the_base_perplexity_stands_alone_and_divergence_still_compares() {
    let mut recipe = whole_chain();
    recipe["stages"][4]["compareToBase"] = json!(false);
    recipe["stages"][3]["quantTypes"] = json!(["Q8_0", "Q4_0"]);
    let bench = chain_bench(&recipe);
    bench.run();
    let result = bench.json("result.json");
    for artifact in result["artifacts"].as_array().unwrap() {
        let compared: Vec<bool> =
            artifact["measurements"].as_array().unwrap().iter().map(|m| m["divergence"].is_object()).collect();
        assert_eq!(compared, [false, true]);
    }
    let base = result["metrics"]["base"].as_array().unwrap();
    assert_eq!(base.len(), 1);
    recipe["stages"][4]["benchmarks"].as_array_mut().unwrap().pop();
    let bench = chain_bench(&recipe);
    bench.run();
    let fault = bench.fault();
    assert!(fault.contains("acceptanceCriteria.divergence: no `eval` stage compares with the base"), "{fault}");
}

#[test]
fn a_result_that_strays_too_far_is_refused_with_the_figures() {
    let mut recipe = whole_chain();
    recipe["stages"][3]["quantTypes"] = json!(["Q8_0"]);
    recipe["acceptanceCriteria"]["divergence"] = json!({ "maxKld": 1e-9 });
    let bench = chain_bench(&recipe);
    bench.run();
    let fault = bench.fault();
    assert!(fault.starts_with("quality: acceptance criteria missed: tiny-Q8_0.gguf: KL divergence "), "{fault}");
    assert!(fault.ends_with("from the base is above 0.000000001"), "{fault}");
}

#[test]
fn a_result_that_misses_its_floor_is_refused_with_the_figures() {
    let mut recipe = whole_chain();
    recipe["acceptanceCriteria"]["perplexity"]["max"] = json!(2.0);
    let bench = chain_bench(&recipe);
    bench.run();
    let fault = bench.fault();
    assert!(fault.starts_with("quality: acceptance criteria missed: tiny-F32.gguf: perplexity "), "{fault}");
    assert!(fault.ends_with("is above 2"), "{fault}");
    assert!(!bench.args.work.join("result.json").exists());
}

#[test]
fn a_missing_corpus_lists_where_it_was_looked_for() {
    let bench = Bench::with_recipe(&whole_chain());
    bench.run();
    let fault = bench.fault();
    assert!(fault.starts_with("source: "), "{fault}");
    for part in ["\"calib.jsonl\" is not here", "\"held.txt\" is not here", "ROOT/calibration/calib.jsonl"] {
        assert!(fault.contains(part), "{part} is not in {fault}");
    }
}

#[test]
fn a_worker_that_dies_at_every_point_ends_with_the_same_bytes() {
    let calm = chain_bench(&whole_chain());
    calm.run();
    let mut bench = chain_bench(&whole_chain());
    let stages = ["source-config", "expert-activation-profile", "expert-prune", "quant", "eval", "package"];
    let inside = stages.iter().flat_map(|s| ["started", "written", "checkpointed"].map(|at| format!("{s}:{at}")));
    let points = std::iter::once("plan:written".to_owned()).chain(inside).chain(["result:before".to_owned()]);
    for point in points {
        let status = bench.run_process(Some(&point));
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point}: {status}");
        assert!(!bench.args.work.join("result.json").exists(), "{point}");
        bench.again();
    }
    assert!(bench.run_process(None).success());
    assert_eq!(weights(&bench.args.work.join("artifact")), weights(&calm.args.work.join("artifact")));
    assert_eq!(bench.json("result.json")["modelHash"], calm.json("result.json")["modelHash"]);
}
