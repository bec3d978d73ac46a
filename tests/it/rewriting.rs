//! The pass that changes a model block by block: what it sums, and that every block sees what the blocks before it, as
//! changed, put out.

use std::collections::BTreeMap;

use factoryline::engine::matmul::Kernel;
use factoryline::engine::{EngineError, InputSum, PassOptions, Rewriter, run_rewriting};
use factoryline::family::{self, BlockSpec, OpenModel};

use super::oracle::fixture;

/// Keeps every sum, and replaces the weights that add to the hidden states by zeros if it is told to.
#[derive(Default)]
struct Recorder {
    follow: bool,
    silence: bool,
    by_depth: bool,
    sums: BTreeMap<String, InputSum>,
}

impl Rewriter for Recorder {
    type Error = EngineError;

    fn rounds(&self, block: &BlockSpec) -> Vec<Vec<String>> {
        let mut rounds: Vec<Vec<String>> = Vec::new();
        for input in block.inputs() {
            let round = if self.by_depth { input.depth } else { 0 };
            rounds.resize(rounds.len().max(round + 1), Vec::new());
            rounds[round].extend(input.layers.iter().map(|layer| layer.weight.clone()));
        }
        rounds
    }

    fn follows_original(&self) -> bool {
        self.follow
    }

    fn rewrite(
        &mut self,
        block: &BlockSpec,
        round: &[String],
        inputs: Vec<InputSum>,
    ) -> Result<Vec<(String, Vec<f32>)>, EngineError> {
        for input in inputs {
            assert!(input.tensors.iter().all(|name| round.contains(name)), "{:?}", input.tensors);
            for name in &input.tensors {
                self.sums.insert(name.clone(), input.clone());
            }
        }
        let inputs = block.inputs();
        let layers = inputs.iter().flat_map(|input| input.layers.iter());
        let adds = |name: &str| name.contains("o_proj") || name.contains("down_proj");
        let silenced = layers.filter(|l| self.silence && adds(&l.weight) && round.contains(&l.weight));
        Ok(silenced.map(|l| (l.weight.clone(), vec![0.0; l.rows * l.cols])).collect())
    }
}

fn record(model: &OpenModel, sequences: &[Vec<u32>], silence: bool, by_depth: bool, options: &PassOptions) -> Recorder {
    let mut recorder = Recorder { silence, by_depth, ..Recorder::default() };
    let report = run_rewriting(model, sequences, options, &mut recorder, &|_| ()).unwrap();
    assert_eq!(report.tokens, sequences.iter().map(Vec::len).sum::<usize>());
    recorder
}

fn sequences(vocab: usize) -> Vec<Vec<u32>> {
    let sequence = |n: usize, step: usize| (0..n).map(|i| ((i * step + 3) % vocab) as u32).collect();
    vec![sequence(40, 7), sequence(23, 11), sequence(1, 1)]
}

/// Σ x·xᵀ of the normed embedding, in f64 from the stored tensors.
fn expected(model: &OpenModel, sequences: &[Vec<u32>], gain: &str, attended: bool) -> Vec<f64> {
    let read = |name: &str| {
        let mut values = Vec::new();
        model.tensors.read_f32(name, &mut values).unwrap();
        values
    };
    let (embed, gain, hidden) = (read(&model.spec.embed), read(gain), model.spec.hidden);
    let mut sum = vec![0f64; hidden * hidden];
    // The first token of a sequence, where attention rests, counts for a quarter of the sequence more.
    let weigh = |s: &Vec<u32>, at: usize| if at == 0 && attended { 1.0 + s.len() as f64 / 4.0 } else { 1.0 };
    let weighed = sequences.iter().flat_map(|s| s.iter().enumerate().map(move |(at, token)| (*token, weigh(s, at))));
    for (token, weight) in weighed {
        let x = &embed[token as usize * hidden..][..hidden];
        let mean: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / hidden as f64;
        let scale = 1.0 / (mean + model.spec.norm_eps).sqrt();
        let normed: Vec<f64> = x.iter().zip(&gain).map(|(x, g)| f64::from(*x) * scale * f64::from(*g)).collect();
        for (i, a) in normed.iter().enumerate() {
            normed.iter().zip(&mut sum[i * hidden..]).for_each(|(b, s)| *s += weight * a * b);
        }
    }
    sum
}

/// Special kernels sum the products of values rounded to bf16: two roundings to nine bits.
const ROUNDED: f64 = 1.0 / 256.0;

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    for (f, e) in found.iter().zip(expected) {
        assert!((f64::from(*f) - e).abs() < tolerance * largest, "{f} is not {e} (largest {largest})");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn the_sums_are_those_of_what_the_layers_read() {
    let model = family::open(&fixture("llama")).unwrap();
    let sequences = sequences(model.spec.vocab);
    let first = &model.spec.blocks[0];
    let expected = expected(&model, &sequences, &first.attn_norm.weight, true);
    let portable = PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() };
    let candle = PassOptions { candle_on_cpu: true, ..PassOptions::default() };
    for (options, tolerance) in [(PassOptions::default(), ROUNDED), (portable, 1e-5), (candle, 1e-5)] {
        let recorder = record(&model, &sequences, false, false, &options);
        let q = &first.attention().unwrap().q.weight;
        assert_eq!(recorder.sums[q].rows, 64);
        assert_close(&recorder.sums[q].sum, &expected, tolerance);
        assert_eq!(recorder.sums[q].tensors.len(), 3, "queries, keys and values share one sum");
    }
}

#[test]
fn a_block_sees_what_the_changed_blocks_before_it_put_out() {
    let model = family::open(&fixture("llama")).unwrap();
    let sequences = sequences(model.spec.vocab);
    let last = model.spec.blocks.last().unwrap();
    let q = &last.attention().unwrap().q.weight;
    let expected = expected(&model, &sequences, &last.attn_norm.weight, true);
    for by_depth in [false, true] {
        // With nothing added to the hidden states the last block reads the embedding.
        let silenced = record(&model, &sequences, true, by_depth, &PassOptions::default());
        assert_close(&silenced.sums[q].sum, &expected, ROUNDED);
        let changed = record(&model, &sequences, false, by_depth, &PassOptions::default());
        assert_ne!(silenced.sums[q].sum, changed.sums[q].sum);
    }
}

#[test]
fn a_round_sees_what_earlier_rounds_of_its_block_changed() {
    let model = family::open(&fixture("llama")).unwrap();
    let sequences = sequences(model.spec.vocab);
    let first = &model.spec.blocks[0];
    let family::FfnSpec::Dense(mlp) = &first.ffn else { panic!("a dense fixture") };
    let at_once = record(&model, &sequences, true, false, &PassOptions::default());
    let in_rounds = record(&model, &sequences, true, true, &PassOptions::default());
    // The output projection is silent by the time the second half of the block is watched in rounds, not before.
    assert_ne!(at_once.sums[&mlp.gate.weight].sum, in_rounds.sums[&mlp.gate.weight].sum);
    assert_close(
        &in_rounds.sums[&mlp.gate.weight].sum,
        &expected(&model, &sequences, &first.ffn_norm.weight, false),
        ROUNDED,
    );
}

#[test]
fn experts_are_given_the_tokens_routed_to_them() {
    let model = family::open(&fixture("qwen3_moe")).unwrap();
    let sequences = sequences(model.spec.vocab);
    let recorder = record(&model, &sequences, false, false, &PassOptions::default());
    for block in &model.spec.blocks {
        let moe = block.moe().unwrap();
        let seen = |name: &String| recorder.sums.get(name).map_or(0, |sum| sum.rows);
        let gates: u64 = moe.experts.iter().map(|e| seen(&e.gate.weight)).sum();
        let downs: u64 = moe.experts.iter().map(|e| seen(&e.down.weight)).sum();
        assert_eq!((gates, downs), (64 * moe.top_k as u64, 64 * moe.top_k as u64));
        assert!(!recorder.sums.contains_key(&moe.router.weight));
    }
}

#[test]
fn a_pass_that_follows_the_model_as_it_was_tells_how_far_inputs_have_drifted() {
    for name in ["llama", "olmoe"] {
        let model = family::open(&fixture(name)).unwrap();
        let sequences = sequences(model.spec.vocab);
        let portable = PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() };
        let plain = record(&model, &sequences, false, false, &portable);
        let follow = |silence: bool, options: &PassOptions| {
            let mut recorder = Recorder { follow: true, silence, ..Recorder::default() };
            run_rewriting(&model, &sequences, options, &mut recorder, &|_| ()).unwrap();
            recorder.sums
        };
        // Nothing is changed: the same sums, experts' inner ones included, and no drift at all.
        for (weight, sum) in follow(false, &portable) {
            assert_eq!(sum.rows, plain.sums[&weight].rows, "{name} {weight}");
            let expected: Vec<f64> = plain.sums[&weight].sum.iter().map(|v| f64::from(*v)).collect();
            assert_close(&sum.sum, &expected, 1e-4);
            assert!(sum.drift.unwrap().iter().all(|v| *v == 0.0), "{name} {weight}");
        }
        // With nothing added any more, a later block is given something else than it was.
        let last = &model.spec.blocks.last().unwrap().attention().unwrap().q.weight;
        for options in [portable.clone(), PassOptions { candle_on_cpu: true, ..PassOptions::default() }] {
            let drift = follow(true, &options).remove(last).unwrap().drift.unwrap();
            let largest = drift.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest > 1e-4, "{name}: {largest}");
        }
    }
}
