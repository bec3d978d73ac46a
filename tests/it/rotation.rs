//! Rotations folded into weights: every family gives the logits it gave, every turned tensor is needed, and what does not
//! commute is refused by name.

use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use factoryline::compress::{Folded, Folds, RotationKind, RotationPlan};
use factoryline::engine::matmul::Kernel;
use factoryline::engine::{PassOptions, Scoring, run_pass};
use factoryline::family::{self, OpenModel};
use factoryline::model::TensorSource;
use serde_json::{Value, json};

use super::oracle::{Collect, fixture, fixtures, logits, reference, rewritten, worst};
use super::worker::Bench;

/// Largest difference allowed, as a share of the largest logit.
const TOLERANCE: f32 = 1e-4;

fn portable() -> PassOptions {
    PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() }
}

fn plan(model: &OpenModel, kind: RotationKind) -> Result<RotationPlan, String> {
    let names: Vec<String> = model.tensors.metas().iter().map(|meta| meta.name.clone()).collect();
    RotationPlan::new(&model.spec, kind, &names, model.tensors.as_ref()).map_err(|error| error.to_string())
}

fn logits_of(model: &OpenModel, ids: &[Vec<u32>]) -> Vec<f32> {
    let sequences: Vec<Vec<u32>> = ids.iter().map(|row| row.iter().copied().chain([0]).collect()).collect();
    let mut collect = Collect { vocab: model.spec.vocab, rows: Vec::new() };
    run_pass(model, &sequences, Scoring::All, &portable(), &mut [&mut collect], &|_| ()).unwrap();
    collect.rows
}

fn folded(model: &OpenModel, folds: Folds) -> OpenModel {
    model.presenting(Arc::new(Folded::new(model.tensors.clone(), folds).unwrap()))
}

/// How far the folded model is from what transformers gave for the fixture.
fn off(path: &Path, model: &OpenModel) -> f32 {
    let (ids, wanted) = reference(path);
    let largest = wanted.iter().fold(0f32, |most, v| most.max(v.abs()));
    worst(&logits_of(model, &ids), &wanted) / largest
}

#[test]
fn a_turned_model_is_the_model_it_was() {
    // What was said, and of which models.
    let mut said: Vec<(String, Vec<String>)> = Vec::new();
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let model = family::open(&path).unwrap();
        let mut say = |what: String| match said.iter_mut().find(|(known, _)| *known == what) {
            Some((_, names)) if names.last() == Some(&name) => {}
            Some((_, names)) => names.push(name.clone()),
            None => said.push((what, vec![name.clone()])),
        };
        for kind in [RotationKind::ResidualAndValues, RotationKind::Values] {
            let plan = match plan(&model, kind) {
                Ok(plan) => plan,
                Err(why) => {
                    say(why);
                    continue;
                }
            };
            let folds = plan.folds(&model.spec, model.tensors.as_ref()).unwrap();
            let off = off(&path, &folded(&model, folds));
            assert!(off < TOLERANCE, "{name}, {kind:?}: logits differ by {off:e} of the largest");
            if kind == RotationKind::ResidualAndValues {
                let (turned, all) = (plan.blocks.len(), model.spec.blocks.len());
                let residual = if plan.residual { "residual stream and " } else { "" };
                say(format!("{residual}values of {turned} of {all} blocks"));
            }
            plan.warnings.into_iter().for_each(&mut say);
        }
    }
    let lines = said.iter().map(|(what, names)| format!("{what}:\n  {}", names.join(", ")));
    let said = lines.collect::<Vec<String>>().join("\n");
    insta::assert_snapshot!(said, @r#"
    residual stream and values of 2 of 2 blocks:
      deepseek_v2, deepseek_v2-fused, deepseek_v2-grouped, gpt_oss, gpt_oss-mxfp4, llama, llama-biases, mixtral, mixtral-fused, qwen3_moe-fused, qwen3_moe-sharded
    values of 2 of 2 blocks:
      granitemoe, granitemoe-fused, llama-tied-llama3-rope, qwen3_moe-text
    the residual stream is not turned: model.norm.weight scales columns of the output head, which is the embedding too and would have to be stored a second time:
      granitemoe, granitemoe-fused, llama-tied-llama3-rope, qwen2-tied, qwen3_moe-mixed-tied, qwen3_moe-text
    residual stream and values of 1 of 1 blocks:
      llama-linear-rope, qwen3, qwen3-yarn, qwen3_moe, qwen3_moe-transformers5
    residual stream and values of 0 of 2 blocks:
      olmoe, olmoe-fused
    heads' values are not turned in 2 of 2 blocks: values are clamped:
      olmoe, olmoe-fused
    rotation: no block's values can be turned: values are clamped:
      olmoe, olmoe-fused
    rotation: the residual stream cannot be turned: model.layers.0.input_layernorm.weight takes the mean out of it, which depends on the directions:
      phimoe, phimoe-fused, phimoe-longrope
    values of 1 of 1 blocks:
      qwen2-tied
    rotation: the residual stream cannot be turned: the vision tower shares it and goes along as it is:
      qwen2_5_omni, qwen2_5_omni-thinker, qwen2_5_vl, qwen2_5_vl-saved, qwen3_5, qwen3_5-saved, qwen3_5_moe, qwen3_5_moe-saved, qwen3_vl, qwen3_vl-saved, qwen3_vl_moe, qwen3_vl_moe-saved
    rotation: no block's values can be turned: a convolution, a norm and a gate stand between values and output:
      qwen3_5, qwen3_5-saved, qwen3_5-text, qwen3_5_moe, qwen3_5_moe-saved, qwen3_5_moe-text
    residual stream and values of 0 of 4 blocks:
      qwen3_5-text
    heads' values are not turned in 3 of 4 blocks: a convolution, a norm and a gate stand between values and output:
      qwen3_5-text
    heads' values are not turned in 1 of 4 blocks: a gate stands between values and output projection:
      qwen3_5-text
    residual stream and values of 0 of 3 blocks:
      qwen3_5_moe-text
    heads' values are not turned in 2 of 3 blocks: a convolution, a norm and a gate stand between values and output:
      qwen3_5_moe-text
    heads' values are not turned in 1 of 3 blocks: a gate stands between values and output projection:
      qwen3_5_moe-text
    values of 4 of 4 blocks:
      qwen3_moe-mixed-tied
    "#);
}

#[test]
fn a_gain_that_is_the_same_everywhere_lets_a_tied_embedding_be_turned() {
    let path = fixture("llama-tied-llama3-rope");
    let dir = rewritten(&path, |tensors| {
        let gain = tensors.get_mut("model.norm.weight").unwrap();
        *gain = Tensor::full(0.75f32, gain.shape(), gain.device()).unwrap().to_dtype(gain.dtype()).unwrap();
    });
    let model = family::open(dir.path()).unwrap();
    let plan = plan(&model, RotationKind::ResidualAndValues).unwrap();
    assert!(plan.residual && plan.warnings.is_empty(), "{plan:?}");
    let (ids, _) = reference(&path);
    let before = logits(dir.path(), &ids, &portable());
    let after = logits_of(&folded(&model, plan.folds(&model.spec, model.tensors.as_ref()).unwrap()), &ids);
    let largest = before.iter().fold(0f32, |most, v| most.max(v.abs()));
    assert!(worst(&before, &after) < TOLERANCE * largest);
}

#[test]
fn no_turned_tensor_can_be_left_out() {
    for name in ["llama-biases", "deepseek_v2"] {
        let path = fixture(name);
        let model = family::open(&path).unwrap();
        let plan = plan(&model, RotationKind::ResidualAndValues).unwrap();
        let folds = plan.folds(&model.spec, model.tensors.as_ref()).unwrap();
        // Experts that no token of the reference meets may be anything.
        let tensors = folds.tensors().into_iter().filter(|tensor| !tensor.contains(".experts."));
        for tensor in tensors {
            let mut without = folds.clone();
            without.forget(tensor);
            let off = off(&path, &folded(&model, without));
            assert!(off > 10.0 * TOLERANCE, "{name}: without {tensor} logits differ by {off:e} of the largest");
        }
    }
}

#[test]
fn some_rows_of_a_turned_tensor_are_those_of_the_whole() {
    let model = family::open(&fixture("llama-biases")).unwrap();
    let plan = plan(&model, RotationKind::ResidualAndValues).unwrap();
    let folds = plan.folds(&model.spec, model.tensors.as_ref()).unwrap();
    let names: Vec<String> = folds.tensors().into_iter().map(str::to_owned).collect();
    let source = Folded::new(model.tensors.clone(), folds).unwrap();
    let (mut whole, mut part) = (Vec::new(), Vec::new());
    for name in names {
        let meta = source.require(&name).unwrap().clone();
        source.read_f32(&name, &mut whole).unwrap();
        let bytes: Vec<u8> = whole.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!((source.bytes(&name).unwrap().as_ref(), meta.bytes), (bytes.as_slice(), bytes.len() as u64));
        let width = meta.row_elems();
        for rows in [0..1, meta.rows() / 2..meta.rows() / 2 + 1, 1..meta.rows(), 0..0] {
            source.read_rows_f32(&name, rows.clone(), &mut part).unwrap();
            assert_eq!(part, whole[rows.start * width..rows.end * width], "{name} {rows:?}");
            if meta.shape.len() == 2 {
                let cut = &bytes[4 * rows.start * width..4 * rows.end * width];
                assert_eq!(source.rows_bytes(&name, rows).unwrap().as_ref(), cut, "{name}");
            }
        }
        assert!(source.read_rows_f32(&name, 0..meta.rows() + 1, &mut part).is_err());
    }
}

fn quantized(model: &str, architecture: &str, keys: Value) -> Bench {
    let mut stage = json!({ "type": "quant", "format": "gguf", "quantTypes": ["F32"], "rotation": "hadamard" });
    stage.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let bench = Bench::new(&fixture(model), architecture, json!([stage]));
    bench.run();
    bench
}

#[test]
fn what_is_written_is_the_turned_model() {
    for (model, architecture, keys) in [
        ("llama-biases", "llama", json!({})),
        ("mixtral", "mixtral", json!({})),
        ("llama", "llama", json!({ "format": "safetensors", "quantTypes": ["BF16"] })),
        ("qwen3_moe", "qwen3_moe", json!({ "format": "safetensors", "quantTypes": ["W8A16"], "groupSize": 32 })),
    ] {
        let bench = quantized(model, architecture, keys);
        let result = bench.json("result.json");
        let rotation = &result["stages"][0]["details"]["rotation"];
        assert_eq!(rotation["residual"], true, "{model}: {rotation}");
        let artifact = bench.args.work.join("artifact").join(result["artifacts"][0]["path"].as_str().unwrap());
        let (ids, wanted) = reference(&fixture(model));
        let found = logits(&artifact, &ids, &portable());
        let largest = wanted.iter().fold(0f32, |most, v| most.max(v.abs()));
        let exact = artifact.is_file();
        let allowed = if exact { TOLERANCE } else { 0.1 };
        let off = worst(&found, &wanted) / largest;
        assert!(off < allowed, "{model}: logits differ by {off:e} of the largest");
        // It is not the source that was written.
        let (before, after) = (family::open(&fixture(model)).unwrap(), family::open(&artifact).unwrap());
        let (mut source, mut written) = (Vec::new(), Vec::new());
        before.tensors.read_f32(&before.spec.embed, &mut source).unwrap();
        after.tensors.read_f32(&after.spec.embed, &mut written).unwrap();
        assert!(worst(&source, &written) > 0.01, "{model}");
        after.tensors.read_f32(&after.spec.final_norm.weight, &mut written).unwrap();
        assert!(written.iter().all(|gain| *gain == 1.0), "{model}: {written:?}");
    }
}

#[test]
fn what_does_not_commute_is_refused_by_name() {
    let mut said = String::new();
    for (model, architecture, keys) in [
        ("phimoe", "phimoe", json!({})),
        ("qwen2_5_vl", "qwen2_5_vl", json!({})),
        (
            "qwen3_5-text",
            "qwen3_5",
            json!({ "rotation": "hadamard-values", "format": "safetensors", "quantTypes": ["BF16"] }),
        ),
        ("qwen3_moe-fused", "qwen3_moe", json!({ "format": "safetensors", "quantTypes": ["BF16"] })),
        ("llama", "llama", json!({ "rotation": "hadamart" })),
    ] {
        let fault = quantized(model, architecture, keys).fault();
        said += &format!("{model}: {fault}\n");
    }
    insta::assert_snapshot!(said, @r#"
    phimoe: recipe: stages[0].rotation: rotation: the residual stream cannot be turned: model.layers.0.input_layernorm.weight takes the mean out of it, which depends on the directions
    qwen2_5_vl: recipe: stages[0].rotation: rotation: the residual stream cannot be turned: the vision tower shares it and goes along as it is
    qwen3_5-text: recipe: stages[0].rotation: rotation: no block's values can be turned: a convolution, a norm and a gate stand between values and output
    qwen3_moe-fused: recipe: stages[0].rotation: model.layers.0.mlp.experts.down_proj holds all experts of a block, and a directory would keep it unturned
    llama: recipe: stages[0].rotation: `hadamart` is not in the list
    "#);
}
