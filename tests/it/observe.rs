//! What a pass shows of experts, and what rests on it: scores against a dense reference, variants against models that
//! were really pruned, divergence against whole rows of logits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use factoryline::assay::divergence;
use factoryline::compress::{
    Importance, Kept, Metric, ProfileOrigin, PrunePlan, Top, choose_experts, groups, keep_top, profile_experts,
    rewrite, survivors,
};
use factoryline::engine::matmul::Kernel;
use factoryline::engine::{LogitChunk, Observer, PassOptions, Scoring, Subject, Variant, run_pass, run_subject};
use factoryline::family::{MixtureId, MoeSpec, OpenModel, open};
use factoryline::model::{DeclaredTensor, Dtype, HfDir, SafetensorsModel, SafetensorsWriter, TensorSource};
use serde_json::{Value, json};

use crate::worker::fixture;

fn exact() -> PassOptions {
    PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() }
}

fn ids(model: &OpenModel) -> Vec<Vec<u32>> {
    let tensors = candle_core::safetensors::load(model.path.join("reference.safetensors"), &candle_core::Device::Cpu);
    tensors.unwrap()["input_ids"].to_dtype(candle_core::DType::U32).unwrap().to_vec2().unwrap()
}

fn profile(model: &OpenModel, sequences: &[Vec<u32>]) -> Importance {
    let origin = ProfileOrigin { min_observations: 4, ..ProfileOrigin::default() };
    profile_experts(model, &origin, sequences, &exact(), &|_| ()).unwrap().importance
}

/// The fixtures a dense reference scored (scripts/make_score_reference.py).
fn references() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/scores");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: &PathBuf| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let name = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), read(path))).collect()
}

#[test]
fn scores_and_retained_sets_are_those_of_an_observer_that_computes_everything() {
    let references = references();
    assert!(references.len() >= 4);
    for (name, reference) in references {
        let model = open(&fixture(&name)).unwrap();
        let ours = profile(&model, &ids(&model));
        assert_eq!(ours.calibration_tokens, reference["tokens"].as_u64().unwrap(), "{name}");
        for (layer, theirs) in reference["layers"].as_object().unwrap() {
            let layer: usize = layer.parse().unwrap();
            let moe = model.spec.blocks[layer].moe().unwrap();
            for metric in Metric::ALL {
                let place = format!("{name}, layer {layer}, {}", metric.as_str());
                let scores = ours.scores(metric, layer).unwrap();
                let wanted: Vec<f64> = serde_json::from_value(theirs["scores"][metric.as_str()].clone()).unwrap();
                assert_eq!(scores.len(), wanted.len(), "{place}");
                for (expert, (a, b)) in scores.iter().zip(&wanted).enumerate() {
                    assert!((a - b).abs() <= 1e-4 * b.abs(), "{place}, expert {expert}: {a} and {b}");
                }
                for (keep, experts) in theirs["kept"][metric.as_str()].as_object().unwrap() {
                    let top = Top { layer, keep: keep.parse().unwrap(), top_k: moe.top_k, groups: groups(moe) };
                    // A router with groups keeps equally many in each, which the reference does not.
                    if top.groups.count > 1 {
                        continue;
                    }
                    let kept = keep_top(top, &metric.as_rank(scores.clone())).unwrap();
                    assert_eq!(json!(kept), *experts, "{place}, keep {keep}");
                }
            }
        }
    }
}

#[test]
fn a_profile_is_the_same_to_the_byte_on_any_number_of_threads() {
    let model = open(&fixture("qwen3_moe-sharded")).unwrap();
    let sequences: Vec<Vec<u32>> = (0..40).map(|i| (0..61).map(|j| (i * 31 + j * 7) % 96).collect()).collect();
    let bytes = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let origin = ProfileOrigin::default();
        let found = pool.install(|| profile_experts(&model, &origin, &sequences, &PassOptions::default(), &|_| ()));
        let dir = tempfile::tempdir().unwrap();
        found.unwrap().importance.write(&dir.path().join("i.json")).unwrap();
        std::fs::read(dir.path().join("i.json")).unwrap()
    };
    let one = bytes(1);
    assert_eq!(one, bytes(4));
    assert!(one.len() > 1000);
}

#[test]
fn a_profile_of_no_tokens_is_refused() {
    let model = open(&fixture("qwen3_moe")).unwrap();
    let error = profile_experts(&model, &ProfileOrigin::default(), &[], &exact(), &|_| ()).err().unwrap();
    assert_eq!(error.to_string(), "expert profile: layer 0: the profile saw no tokens");
}

/// A mixture of 128 experts, 8 per token, of random weights.
fn wide_mixture(dir: &Path) -> OpenModel {
    let config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 64, "num_hidden_layers": 2,
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 16, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 128, "tie_word_embeddings": false, "hidden_act": "silu"
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let parsed = factoryline::model::Config::open(&dir.join("config.json")).unwrap();
    let spec = factoryline::family::of_config(&parsed).unwrap().spec(&parsed).unwrap();
    let declared = spec.tensors().iter().map(|t| DeclaredTensor::new(&t.name, Dtype::F32, t.shape.clone())).collect();
    let mut writer = SafetensorsWriter::create(dir, declared, 1 << 30).unwrap();
    let mut state = 1u64;
    for tensor in spec.tensors() {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.5
        };
        let bytes: Vec<u8> = (0..tensor.elements()).flat_map(|_| next().to_le_bytes()).collect();
        writer.tensor(&tensor.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    open(dir).unwrap()
}

#[test]
fn a_profile_does_a_sixteenth_of_the_expert_work_of_an_observer_that_computes_everything() {
    let dir = tempfile::tempdir().unwrap();
    let model = wide_mixture(dir.path());
    let sequences: Vec<Vec<u32>> = (0..8).map(|i| (0..50).map(|j| (i * 17 + j * 5) % 64).collect()).collect();
    let found = profile_experts(&model, &ProfileOrigin::default(), &sequences, &exact(), &|_| ()).unwrap();
    let of_all: u64 = model
        .spec
        .blocks
        .iter()
        .filter_map(|block| block.moe())
        .map(|moe| moe.experts.iter().map(|expert| expert.elements()).sum::<u64>() * found.report.tokens as u64)
        .sum();
    assert_eq!(found.report.expert_multiplications * 16, of_all);
}

/// The model with only these experts, really written.
fn pruned(model: &OpenModel, kept: &Kept, dir: &Path) -> OpenModel {
    let (experts, _) = model.spec.experts().unwrap();
    let plan = PrunePlan::new(model.storage(), experts, kept.clone());
    let (_, settling) = rewrite(model, &plan, dir, 1 << 30, &|_| ()).unwrap();
    settling.wait().unwrap();
    let mut config = HfDir::open(&model.path).unwrap().config;
    assert_eq!(config.set_experts(plan.keep), 1);
    std::fs::write(dir.join("config.json"), config.to_json()).unwrap();
    open(dir).unwrap()
}

fn mixtures() -> Vec<OpenModel> {
    let models = std::fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<PathBuf> = models.filter(|path| path.join("reference.safetensors").exists()).collect();
    models.sort();
    let open = models.iter().map(|path| open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    open.filter(|model| model.spec.experts().is_some()).collect()
}

/// The largest count below all that every router can choose from.
fn most_that_can_be_kept(model: &OpenModel) -> Option<usize> {
    let (experts, _) = model.spec.experts()?;
    let scores: Vec<f64> = (1..=experts).map(|score| score as f64).collect();
    let fits = |keep: &usize| {
        let top = |moe: &MoeSpec| Top { layer: 0, keep: *keep, top_k: moe.top_k, groups: groups(moe) };
        model.spec.mixtures().all(|(_, moe)| keep_top(top(moe), &scores).is_ok())
    };
    (1..experts).rev().find(fits)
}

#[test]
fn a_variant_scores_as_the_pruned_model_does() {
    for model in mixtures() {
        let Some(keep) = most_that_can_be_kept(&model) else { continue };
        let sequences = ids(&model);
        let table = profile(&model, &sequences);
        let kept = choose_experts(&model, Metric::Reap, Some(&table), keep).unwrap();
        let variants = [Variant::keeping(&survivors(&kept))];
        let subject = Subject { variants: &variants, ..Subject::of(&model) };
        let beside = run_subject(&subject, &sequences, Scoring::All, &exact(), &mut [], &|_| ()).unwrap();
        let alone = run_pass(&model, &sequences, Scoring::All, &exact(), &mut [], &|_| ()).unwrap();
        assert_eq!(beside.nll, alone.nll, "{}", model.path.display());
        let dir = tempfile::tempdir().unwrap();
        let small = pruned(&model, &kept, dir.path());
        let really = run_pass(&small, &sequences, Scoring::All, &exact(), &mut [], &|_| ()).unwrap();
        let worst = beside.variant_nll[0].iter().zip(&really.nll).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{}: {worst}", model.path.display());
        assert_ne!(beside.variant_nll[0], alone.nll, "{}", model.path.display());
    }
}

/// Logits of the model and of its variants, whole rows.
struct Rows {
    vocab: usize,
    of: BTreeMap<usize, Vec<f32>>,
}

impl Observer for Rows {
    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, chunk: &LogitChunk<'_>) {
        let rows = self.of.entry(chunk.variant).or_default();
        rows.resize(rows.len().max((chunk.first_position + chunk.rows) * self.vocab), f32::NAN);
        for (row, values) in chunk.values.chunks_exact(chunk.vocab.len()).enumerate() {
            let start = (chunk.first_position + row) * self.vocab + chunk.vocab.start;
            rows[start..start + values.len()].copy_from_slice(values);
        }
    }
}

#[test]
fn divergence_is_that_of_whole_rows_of_logits() {
    let model = open(&fixture("qwen3_moe-text")).unwrap();
    let sequences = ids(&model);
    let (experts, top_k) = model.spec.experts().unwrap();
    let layers: Vec<usize> = model.spec.blocks.iter().filter(|b| b.moe().is_some()).map(|b| b.index).collect();
    let keeping = |kept: Vec<usize>| Variant::keeping(&layers.iter().map(|&l| (l, kept.clone())).collect());
    let variants =
        [keeping((0..top_k).collect()), keeping((experts - top_k..experts).collect()), keeping((0..experts).collect())];
    let mut rows = Rows { vocab: model.spec.vocab, of: BTreeMap::new() };
    let subject = Subject { variants: &variants, ..Subject::of(&model) };
    // A budget that cuts the sequences into several micro-batches.
    let options = PassOptions { memory_budget: Some(factoryline::units::Bytes(1)), ..exact() };
    run_subject(&subject, &sequences, Scoring::All, &options, &mut [&mut rows], &|_| ()).unwrap();
    let found = divergence(&model, &variants, &sequences, &options, &|_| ()).unwrap();

    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        row.iter().map(|&v| f64::from(v) - total.ln()).collect()
    };
    let top = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap();
    for (i, found) in found.iter().enumerate() {
        let pairs = rows.of[&0].chunks(rows.vocab).zip(rows.of[&(i + 1)].chunks(rows.vocab));
        let (mut klds, mut same) = (Vec::new(), 0);
        for (a, b) in pairs {
            let (p, q) = (log_softmax(a), log_softmax(b));
            klds.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            same += usize::from(top(&p) == top(&q));
        }
        let mean = klds.iter().sum::<f64>() / klds.len() as f64;
        assert_eq!(found.positions, klds.len());
        assert!((found.kld - mean).abs() < 1e-9 * (1.0 + mean), "{} and {mean}", found.kld);
        assert!((found.same_top - same as f64 / klds.len() as f64).abs() < 1e-12);
        let deviation = klds.iter().map(|k| (k - mean).powi(2)).sum::<f64>() / (klds.len() - 1) as f64;
        assert!((found.kld_stderr - (deviation / klds.len() as f64).sqrt()).abs() < 1e-9);
    }
    assert!(found[0].kld > 1e-3 && found[0].same_top < 1.0, "{found:?}");
    // Keeping everything changes nothing.
    assert!(found[2].kld < 1e-12 && found[2].same_top == 1.0);
    assert!((found[2].perplexity / found[2].base_perplexity - 1.0).abs() < 1e-9);
}

#[test]
fn a_router_of_a_variant_takes_the_place_of_the_models() {
    let model = open(&fixture("qwen3_moe-text")).unwrap();
    let sequences = ids(&model);
    let mut variant = Variant::default();
    for block in &model.spec.blocks {
        let Some(moe) = block.moe() else { continue };
        let mut router = Vec::new();
        model.tensors.read_f32(&moe.router.weight, &mut router).unwrap();
        let kept = (0..moe.experts.len() as u32).collect();
        let survivors = factoryline::engine::Survivors { kept, router: Some(router) };
        variant.layers.insert(block.index, survivors);
    }
    let mut other = variant.clone();
    for survivors in other.layers.values_mut() {
        survivors.router.iter_mut().flatten().for_each(|w| *w = -*w);
    }
    let found = divergence(&model, &[variant, other], &sequences, &exact(), &|_| ()).unwrap();
    assert!(found[0].kld < 1e-12, "{found:?}");
    assert!(found[1].kld > 1e-3, "{found:?}");
}

#[test]
fn every_tensor_of_a_pruned_mixture_is_a_part_of_the_source() {
    for model in mixtures() {
        let Some(keep) = most_that_can_be_kept(&model) else { continue };
        let (_, top_k) = model.spec.experts().unwrap();
        let kept = choose_experts(&model, Metric::Aimer, None, keep).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let small = pruned(&model, &kept, dir.path());
        assert_eq!(small.spec.experts(), Some((keep, top_k)));
        for (id, moe) in small.spec.mixtures() {
            let before = model.spec.mixture(id).unwrap();
            let MixtureId::Layer(_) = id else { continue };
            for (new, &old) in kept[&id].iter().enumerate() {
                for part in factoryline::family::Part::ALL {
                    let (a, b) = (&moe.experts[new].part(part).weight, &before.experts[old].part(part).weight);
                    assert_eq!(small.tensors.bytes(a).unwrap(), model.tensors.bytes(b).unwrap(), "{a} of {b}");
                }
            }
        }
        let stored = SafetensorsModel::open(dir.path()).unwrap();
        assert!(stored.metas().iter().all(|meta| model.stored.meta(&meta.name).is_some()));
    }
}
