//! Scaled inputs: the folded model is the model it was, no input of the first block loses more than by rounding alone, and
//! what the stage writes is what the pass ran on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use factoryline::codec::{Dtype, IntGrid, ScaleType};
use factoryline::compress::{
    Calibrated, CalibratedRows, Folded, GridRef, SolveOptions, Step, StoredAs, Target, Targets, TuneOptions,
    solver_named,
};
use factoryline::engine::matmul::Kernel;
use factoryline::engine::{EngineError, InputSum, PassOptions, Rewriter, Scoring, run_pass, run_rewriting};
use factoryline::family::{self, BlockSpec, MixerSpec, OpenModel};
use factoryline::units::Bytes;
use serde_json::{Value, json};

use super::oracle::{Collect, fixture, fixtures, worst};
use super::worker::Bench;

fn portable() -> PassOptions {
    PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() }
}

fn sequences(vocab: usize) -> Vec<Vec<u32>> {
    let sequence = |n: usize, step: usize| (0..n).map(|i| ((i * step + i / 5 + 3) % vocab) as u32).collect();
    vec![sequence(64, 7), sequence(64, 11), sequence(47, 13)]
}

fn targets(model: &OpenModel, bits: usize) -> Targets {
    let target =
        || Target { grid: GridRef::Shared(Arc::new(IntGrid::symmetric(bits, 32, ScaleType::F16, true))), dtype: None };
    let layers = model.spec.blocks.iter().flat_map(BlockSpec::inputs).flat_map(|input| input.layers);
    layers.map(|layer| (layer.weight.clone(), target())).collect()
}

fn solved(model: &OpenModel, solver: &str, targets: &Targets, stored: Dtype, sums: u64) -> CalibratedRows {
    let stored_as = StoredAs::all(stored);
    let how = Calibrated {
        targets,
        solver: solver_named(solver).unwrap(),
        options: SolveOptions::default(),
        by_depth: false,
        tuning: TuneOptions::default(),
        embedding: None,
        drift: 0.0,
        sums: Bytes(sums),
        stored_as: &stored_as,
    };
    let dir = tempfile::tempdir().unwrap();
    how.run(model, &sequences(model.spec.vocab), &portable(), &dir.path().join("rows"), &|_| ()).unwrap()
}

fn logits_of(model: &OpenModel) -> Vec<f32> {
    let mut collect = Collect { vocab: model.spec.vocab, rows: Vec::new() };
    let sequences = sequences(model.spec.vocab);
    run_pass(model, &sequences, Scoring::All, &portable(), &mut [&mut collect], &|_| ()).unwrap();
    collect.rows
}

#[test]
fn folding_alone_changes_nothing() {
    let (mut scaled, mut all) = (0, 0);
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // The same blocks lie in other files.
        if ["-fused", "-saved", "-sharded", "-transformers5", "-mxfp4"].iter().any(|kind| name.ends_with(kind)) {
            continue;
        }
        let model = family::open(&path).unwrap();
        let rows = solved(&model, "awq", &targets(&model, 3), Dtype::F32, u64::MAX);
        scaled += rows.matrices.iter().filter(|m| m.exponent.is_some()).count();
        all += rows.matrices.len();
        let clamped = match name.as_str() {
            "gpt_oss" => vec!["awq: inputs not scaled in 2 blocks: the inner projections of MLPs are clamped"],
            "olmoe" => vec!["awq: inputs not scaled in 2 blocks: values are clamped before the output projection"],
            _ => Vec::new(),
        };
        assert_eq!(rows.notes, clamped, "{name}");
        let folded = model.presenting(rows.folded(&model.tensors).unwrap());
        let (before, after) = (logits_of(&model), logits_of(&folded));
        let largest = before.iter().fold(0f32, |most, v| most.max(v.abs()));
        let off = worst(&before, &after) / largest;
        // Delta nets magnify what products lose.
        let is_delta = |block: &BlockSpec| matches!(block.mixer, MixerSpec::DeltaNet(_));
        let allowed = if model.spec.blocks.iter().any(is_delta) { 1e-4 } else { 1e-5 };
        assert!(off < allowed, "{name}: logits differ by {off:e} of the largest");
        if let Some(tensor) = rows.folds.tensors().first() {
            let mut without = rows.folds.clone();
            without.forget(tensor);
            let broken = model.presenting(Arc::new(Folded::new(model.tensors.clone(), without).unwrap()));
            assert!(worst(&before, &logits_of(&broken)) > 1e-4 * largest, "{name} without {tensor}");
        }
    }
    assert!(4 * scaled > all, "{scaled} of {all} matrices were scaled");
}

/// Keeps the sums of the first block as it is.
#[derive(Default)]
struct FirstSums(Vec<InputSum>);

impl Rewriter for FirstSums {
    type Error = EngineError;

    fn rounds(&self, block: &BlockSpec) -> Vec<Vec<String>> {
        let all = block.inputs().into_iter().flat_map(|input| input.layers).map(|layer| layer.weight.clone()).collect();
        if block.index == 0 { vec![all] } else { Vec::new() }
    }

    fn rewrite(
        &mut self,
        _block: &BlockSpec,
        _round: &[String],
        inputs: Vec<InputSum>,
    ) -> Result<Vec<(String, Vec<f32>)>, EngineError> {
        self.0 = inputs;
        Ok(Vec::new())
    }
}

/// A solved weight as the model it was folded from would have it.
fn unfolded(rows: &CalibratedRows, targets: &Targets, weight: &str, cols: usize) -> Vec<f32> {
    let grid = targets[weight].grid.get();
    let bytes = rows.rows.rows(weight).unwrap();
    let mut values = Vec::new();
    for row in bytes.chunks_exact(grid.row_bytes(cols).unwrap()) {
        let mut row_values = vec![0f32; cols];
        grid.unpack(row, &mut row_values);
        values.extend(row_values);
    }
    for step in rows.folds.of(weight) {
        for (at, value) in values.iter_mut().enumerate() {
            match step {
                Step::Rows(factors) => *value /= factors[at / cols],
                Step::Columns(factors) => *value /= factors[at % cols],
                _ => panic!("{weight}: {step:?}"),
            }
        }
    }
    values
}

#[test]
fn no_input_loses_more_than_by_rounding() {
    for (name, stored) in
        [("llama", Dtype::F32), ("llama", Dtype::BF16), ("qwen3_moe", Dtype::BF16), ("deepseek_v2", Dtype::F16)]
    {
        let model = family::open(&fixture(name)).unwrap();
        let targets = targets(&model, 3);
        let mut sums = FirstSums::default();
        run_rewriting(&model, &sequences(model.spec.vocab), &portable(), &mut sums, &|_| ()).unwrap();
        let awq = solved(&model, "awq", &targets, stored, u64::MAX);
        let rtn = solved(&model, "rtn", &targets, stored, u64::MAX);
        let block = &model.spec.blocks[0];
        // All experts read one norm: they are one group.
        let mut lost: HashMap<(usize, bool), [f64; 2]> = HashMap::new();
        for input in block.inputs() {
            for layer in &input.layers {
                let Some(sum) = sums.0.iter().find(|sum| sum.tensors.contains(&layer.weight)) else { continue };
                let mut original = Vec::new();
                model.tensors.read_f32(&layer.weight, &mut original).unwrap();
                for (which, rows) in [&awq, &rtn].into_iter().enumerate() {
                    let found = unfolded(rows, &targets, &layer.weight, layer.cols);
                    let off: Vec<f64> = original.iter().zip(&found).map(|(a, b)| f64::from(a - b)).collect();
                    let error: f64 = off
                        .chunks_exact(layer.cols)
                        .map(|e| {
                            let row = |i: usize| &sum.sum[i * layer.cols..(i + 1) * layer.cols];
                            let seen = |i: usize| row(i).iter().zip(e).map(|(h, e)| f64::from(*h) * e).sum::<f64>();
                            (0..layer.cols).map(|i| e[i] * seen(i)).sum::<f64>()
                        })
                        .sum();
                    lost.entry((input.depth, layer.weight.contains("down_proj"))).or_default()[which] += error;
                }
            }
        }
        assert!(lost.len() >= 4, "{lost:?}");
        for (input, [awq, rtn]) in &lost {
            assert!(*awq <= rtn * 1.001, "{name} {stored}: input {input:?} loses {awq}, rounded {rtn}");
        }
        let [awq, rtn] = lost.values().fold([0.0; 2], |all, each| [all[0] + each[0], all[1] + each[1]]);
        assert!(awq < 0.99 * rtn, "{name} {stored}: {awq} of {rtn}");
    }
}

#[test]
fn little_memory_for_sums_scales_what_it_can() {
    let model = family::open(&fixture("llama")).unwrap();
    let targets = targets(&model, 3);
    let (all, one) =
        (solved(&model, "awq", &targets, Dtype::F32, u64::MAX), solved(&model, "awq", &targets, Dtype::F32, 1));
    // One input a round: every group of a dense block fits, and the folded model is the model still.
    let scaled = |rows: &CalibratedRows| rows.matrices.iter().filter(|m| m.exponent.is_some()).count();
    assert!(scaled(&one) > 0 && scaled(&all) > 0);
    let folded = model.presenting(one.folded(&model.tensors).unwrap());
    let (before, after) = (logits_of(&model), logits_of(&folded));
    let largest = before.iter().fold(0f32, |most, v| most.max(v.abs()));
    assert!(worst(&before, &after) < 1e-5 * largest);
    let mixture = family::open(&fixture("qwen3_moe")).unwrap();
    let rows = solved(&mixture, "awq", &self::targets(&mixture, 3), Dtype::F32, 1);
    assert!(rows.notes.iter().any(|note| note.contains("exceed the memory for sums")), "{:?}", rows.notes);
    let folded = mixture.presenting(rows.folded(&mixture.tensors).unwrap());
    let (before, after) = (logits_of(&mixture), logits_of(&folded));
    let largest = before.iter().fold(0f32, |most, v| most.max(v.abs()));
    assert!(worst(&before, &after) < 1e-5 * largest);
}

fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/demo/model")
}

/// Mean negative log-likelihood in nats on text that nobody has calibrated on.
fn nll(model: &OpenModel) -> f64 {
    let text = std::fs::read_to_string(demo_model().parent().unwrap().join("heldout.txt")).unwrap();
    let ids = family::open(&demo_model()).unwrap().open_tokenizer().unwrap().unwrap().encode(&text).unwrap();
    let windows: Vec<Vec<u32>> = ids.chunks_exact(128).take(24).map(<[u32]>::to_vec).collect();
    run_pass(model, &windows, Scoring::All, &PassOptions::default(), &mut [], &|_| ()).unwrap().mean_nll()
}

fn built(keys: &Value) -> Bench {
    let corpus = demo_model().parent().unwrap().join("calibration.jsonl");
    let mut stage = json!({
        "type": "quant", "format": "gguf", "quantTypes": ["Q4_0"],
        "calibrationCorpus": corpus, "calibrationTokens": 6000, "calibrationLength": 128,
    });
    stage.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let bench = Bench::new(&demo_model(), "qwen3_moe", json!([stage]));
    bench.run();
    bench
}

fn artifact(bench: &Bench) -> PathBuf {
    bench.args.work.join("artifact").join(bench.json("result.json")["artifacts"][0]["path"].as_str().unwrap())
}

#[test]
fn through_the_stage_in_any_format() {
    let source = family::open(&demo_model()).unwrap();
    let norm = &source.spec.blocks[1].ffn_norm.weight;
    let mut before = Vec::new();
    source.tensors.read_f32(norm, &mut before).unwrap();
    // Loss allowed of that by rounding; a fold that one side misses costs many times as much.
    for (format, allowed) in
        [(json!({}), 1.0), (json!({ "format": "safetensors", "quantTypes": ["W3A16"], "groupSize": 32 }), 1.25)]
    {
        let with = |algorithm: &str| {
            let mut keys = format.clone();
            keys["algorithm"] = algorithm.into();
            built(&keys)
        };
        let nll_of = |bench: &Bench| nll(&family::open(&artifact(bench)).unwrap()) - nll(&source);
        let (rtn, awq) = (with("rtn"), with("awq"));
        let result = awq.json("result.json");
        let layers = result["stages"][0]["details"]["layers"].as_object().unwrap().values().next().unwrap().clone();
        let exponents = layers.as_array().unwrap().iter().map(|l| l["exponents"].as_object().map_or(0, |e| e.len()));
        assert!(exponents.sum::<usize>() > 8, "{layers}");
        let (plain, scaled) = (nll_of(&rtn), nll_of(&awq));
        assert!(scaled < allowed * plain, "{format}: rounded loses {plain} nats, scaled {scaled}");
        // The norms that took the scales are what is written.
        let mut after = Vec::new();
        family::open(&artifact(&awq)).unwrap().tensors.read_f32(norm, &mut after).unwrap();
        assert_ne!(before, after, "{format}");
    }
}

#[test]
fn awq_is_the_same_with_any_number_of_threads_and_not_sequential() {
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| std::fs::read(artifact(&built(&json!({ "algorithm": "awq-gptq" })))).unwrap())
    };
    assert!(with_threads(1) == with_threads(2));
    let fault = built(&json!({ "algorithm": "awq", "trueSequential": true })).fault();
    insta::assert_snapshot!(fault, @"recipe: stages[0].trueSequential: awq changes what makes an input after its readers are solved");
}
