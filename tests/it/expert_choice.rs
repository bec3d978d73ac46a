//! How a prune chooses: rankings by name, the best of several, damage held against the recipe's limits before anything
//! is written, recalibrated routers.

use factoryline::compress::{
    Calibration, FateCounts, Metric, ProfileOrigin, PrunePlan, choose_experts, profile_experts, recalibrate, rewrite,
    survivors,
};
use factoryline::engine::{PassOptions, Scoring, Subject, Variant, run_pass, run_subject};
use factoryline::family::{self, MixtureId, Storage, open};
use factoryline::model::{Config, HfDir};
use serde_json::{Value, json};

use crate::worker::{Bench, fixture};

const TEXT: &str = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of \
                    foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light. ";

fn bench(prune: Value) -> Bench {
    let mut stage = json!({ "type": "expert-prune", "keepExpertsPerLayer": 3 });
    stage.as_object_mut().unwrap().extend(prune.as_object().unwrap().clone());
    let recipe = json!({
        "name": "tiny", "version": "1.0.0",
        "source": { "baseModel": fixture("qwen3_moe-text"), "architecture": "qwen3_moe", "isMoE": true },
        "stages": [{ "type": "expert-activation-profile", "calibrationCorpus": "calib.txt", "maxLength": 128 }, stage]
    });
    let bench = Bench::with_recipe(&recipe);
    bench.text("calib.txt", &TEXT.repeat(8));
    bench.text("held.txt", &TEXT.to_uppercase());
    bench
}

fn evidence(bench: &Bench, gate: &str) -> Value {
    let result = bench.json("result.json");
    let all = result["evidence"].as_array().unwrap();
    all.iter().find(|e| e["gate"] == gate).unwrap_or_else(|| panic!("no {gate} in {all:?}"))["figures"].clone()
}

#[test]
fn the_damage_is_estimated_on_the_end_of_the_calibration_text() {
    let bench = bench(json!({ "metric": "reap" }));
    bench.run();
    let damage = evidence(&bench, "damage");
    assert_eq!(damage["metric"], "reap");
    assert!(damage["kld"].as_f64().unwrap() > 0.0 && damage["same_top"].as_f64().unwrap() < 1.0, "{damage}");
    let table = bench.json("importance.json");
    let held_out = table["held_out_tokens"].as_u64().unwrap();
    // The last token of a sequence predicts none; the end may reach over two of them.
    assert!((held_out - 2..held_out).contains(&damage["positions"].as_u64().unwrap()), "{damage}");
    let origin = format!("{held_out} tokens at the end of calib.txt, which the profile did not see");
    assert_eq!(damage["held_out"], origin);
    let metadata = bench.json("pruned/expert_prune.metadata.v1.json");
    assert_eq!(metadata["damage"]["kld"], damage["kld"]);
    assert_eq!(metadata["selection"]["importance_json"]["metric_version"], "v2.scores");
    // The survivors are those of the score named.
    let scores: Vec<f64> = serde_json::from_value(table["scores"]["reap"]["1"].clone()).unwrap();
    let kept: Vec<usize> =
        serde_json::from_value(metadata["selection"]["per_layer_kept_indices"]["1"].clone()).unwrap();
    let dropped = (0..scores.len()).find(|e| !kept.contains(e)).unwrap();
    assert!(kept.iter().all(|&e| scores[e] >= scores[dropped]), "{scores:?} {kept:?}");
    // The corpus is named with its hash, experts that saw little with their numbers.
    let hash = factoryline::model::hash_file(&bench.root().join("calibration/calib.txt")).unwrap().0;
    assert_eq!(table["calibration_sha256"], json!(hash));
    assert_eq!(evidence(&bench, "coverage")["fewer_than"], 32);
}

#[test]
fn the_best_of_the_family_is_the_one_that_strays_least() {
    let keys =
        json!({ "strategy": "best-of-family", "candidates": ["reap", "frequency", "aimer"], "heldOut": "held.txt" });
    let bench = bench(keys);
    bench.run();
    let damage = evidence(&bench, "damage");
    let table = damage["candidates"].as_array().unwrap();
    let names: Vec<&str> = table.iter().map(|row| row["metric"].as_str().unwrap()).collect();
    assert_eq!(names, ["reap", "activation_count", "aimer"]);
    let kld = |row: &Value| row["kld"].as_f64().unwrap();
    let best = table.iter().min_by(|a, b| kld(a).total_cmp(&kld(b))).unwrap();
    assert_eq!((&damage["metric"], kld(best)), (&best["metric"], damage["kld"].as_f64().unwrap()));
    assert!(table.iter().any(|row| kld(row) > kld(best)), "{table:?}");
    assert_eq!(damage["held_out"], "held.txt");
    let metadata = bench.json("pruned/expert_prune.metadata.v1.json");
    assert_eq!(metadata["selection"]["candidates"], damage["candidates"]);
}

#[test]
fn past_the_recipes_limit_nothing_is_written() {
    let limited = bench(json!({ "metric": "reap", "maxKld": 1e-9 }));
    limited.run();
    let fault = limited.fault();
    assert!(fault.starts_with("quality: pruned: KL divergence "), "{fault}");
    assert!(fault.ends_with("above maxKld 0.000000001"), "{fault}");
    assert!(!limited.args.work.join("pruned").exists());
    let generous = bench(json!({ "metric": "reap", "maxKld": 50.0 }));
    generous.run();
    assert_eq!(evidence(&generous, "damage")["max_kld"], 50.0);
}

#[test]
fn what_needs_held_out_text_says_so_at_admission() {
    let recipe = json!({
        "name": "tiny", "version": "1.0.0",
        "source": { "baseModel": fixture("qwen3_moe-text"), "architecture": "qwen3_moe" },
        "stages": [{ "type": "expert-prune", "keepExpertsPerLayer": 3, "metric": "aimer", "maxKld": 0.1 }]
    });
    let bench = Bench::with_recipe(&recipe);
    bench.run();
    assert!(bench.fault().contains("stages[0].heldOut"), "{}", bench.fault());
    // Without a limit the prune goes on, and the result says that nothing was estimated.
    let mut free = recipe.clone();
    free["stages"][0].as_object_mut().unwrap().remove("maxKld");
    let bench = Bench::with_recipe(&free);
    bench.run();
    let warnings = bench.json("result.json")["warnings"].to_string();
    assert!(warnings.contains("not estimated"), "{warnings}");
}

#[test]
fn recalibrated_routers_are_kept_only_if_they_help() {
    let bench = bench(json!({ "metric": "activation_count", "routerKd": true }));
    bench.run();
    let damage = evidence(&bench, "damage");
    let healing = &damage["router_kd"];
    let (before, after) = (healing["kld_before"].as_f64().unwrap(), healing["kld_after"].as_f64().unwrap());
    assert_eq!(healing["kept"], after < before, "{healing}");
    assert_eq!(damage["kld"].as_f64().unwrap(), before.min(after), "{healing}");
    let proof = evidence(&bench, "pass-through");
    let routers = if healing["kept"] == true { 2 } else { 0 };
    assert_eq!((&proof["tensors_recomputed"], &proof["tensors_sliced"]), (&json!(routers), &json!(2 - routers)));
    assert_eq!(bench.json("pruned/expert_prune.metadata.v1.json")["router_kd"], *healing);
}

#[test]
fn the_written_model_has_the_recalibrated_routers() {
    let model = open(&fixture("qwen3_moe-text")).unwrap();
    let ids: Vec<u32> = (0..2400u32).map(|i| (i * i / 7 + i * 13) % model.spec.vocab as u32).collect();
    let sequences: Vec<Vec<u32>> = ids.chunks(100).map(<[u32]>::to_vec).collect();
    let options = PassOptions::default();
    let table = profile_experts(&model, &ProfileOrigin::default(), &sequences, &options, &|_| ()).unwrap().importance;
    let kept = choose_experts(&model, Metric::Reap, Some(&table), 3).unwrap();
    let found = recalibrate(&model, &kept, &sequences, &options, &|_| ()).unwrap();
    assert_eq!(found.changes.len(), 2);
    assert!(found.residuals.values().all(|&r| r > 1e-4 && r < 1.0), "{:?}", found.residuals);
    // The model that is written with these routers scores as the variant did that was tried.
    let routers = found.routers(&model, 0.5).unwrap();
    let variants = [found.variant(&model, &routers).unwrap(), Variant::keeping(&survivors(&kept))];
    let subject = Subject { variants: &variants, ..Subject::of(&model) };
    let tried = run_subject(&subject, &sequences, Scoring::All, &options, &mut [], &|_| ()).unwrap();
    let mut plan = PrunePlan::new(model.storage(), model.spec.experts().unwrap().0, kept.clone());
    let routers = routers.into_iter().map(|(layer, rows)| (MixtureId::Layer(layer), rows)).collect();
    plan.recompute_routers(&model, &routers).unwrap();
    let dir = tempfile::tempdir().unwrap();
    rewrite(&model, &plan, dir.path(), 1 << 30, &|_| ()).unwrap().1.wait().unwrap();
    let mut config = HfDir::open(&model.path).unwrap().config;
    config.set_experts(3);
    std::fs::write(dir.path().join("config.json"), config.to_json()).unwrap();
    let small = open(dir.path()).unwrap();
    let written = run_pass(&small, &sequences, Scoring::All, &options, &mut [], &|_| ()).unwrap();
    let worst = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst(&tried.variant_nll[0], &written.nll) < 1e-4, "{}", worst(&tried.variant_nll[0], &written.nll));
    assert!(worst(&tried.variant_nll[1], &written.nll) > 1e-2, "the routers moved");
}

#[test]
fn the_split_of_a_profile_is_that_of_its_prune() {
    let sequences: Vec<Vec<u32>> = (0..30).map(|i| vec![i; 50]).collect();
    let split = Calibration::split(sequences.clone());
    assert_eq!(split.held_out.iter().map(Vec::len).sum::<usize>(), 93);
    assert_eq!(split, Calibration::split(sequences));
}

/// What becomes of the tensors of a model that is known by its config alone, when each mixture keeps its first experts.
fn fates(config: Value, keep: usize) -> FateCounts {
    let config = Config::from_value(std::path::Path::new("config.json"), config).unwrap();
    let spec = family::of_config(&config).unwrap().spec(&config).unwrap();
    let storage = Storage::of_spec(&spec);
    let kept = spec.mixtures().map(|(id, _)| (id, (0..keep).collect())).collect();
    PrunePlan::new(&storage, spec.experts().unwrap().0, kept).counts(&storage)
}

#[test]
fn published_models_lose_rename_and_slice_as_many_tensors_as_their_arithmetic_says() {
    let qwen = json!({
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936,
        "num_hidden_layers": 48, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "rms_norm_eps": 1e-6, "rope_theta": 1e7, "max_position_embeddings": 262144, "tie_word_embeddings": false,
        "hidden_act": "silu"
    });
    let counts = fates(qwen, 80);
    assert_eq!((counts.dropped, counts.kept_renamed, counts.routers_sliced), (6912, 11520, 48));
    // Embedding, head, final norm; per layer two norms, q, k, v, o and the norms of q and k.
    assert_eq!(counts.kept_unchanged, 3 + 48 * 8);
    let olmoe = json!({
        "model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "vocab_size": 50304, "num_hidden_layers": 16,
        "hidden_size": 2048, "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": false, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 4096, "tie_word_embeddings": false, "hidden_act": "silu",
        "clip_qkv": null
    });
    let counts = fates(olmoe, 48);
    assert_eq!((counts.dropped, counts.kept_renamed, counts.routers_sliced), (768, 2304, 16));
    let mixtral = json!({
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 32000,
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": false, "hidden_act": "silu",
        "sliding_window": null
    });
    let counts = fates(mixtral, 6);
    assert_eq!((counts.dropped, counts.kept_renamed, counts.routers_sliced), (192, 576, 32));
}
