//! The engine against transformers: logits of tiny random models of every family and variant, from committed fixtures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use factoryline::engine::{LogitChunk, Observer, PassOptions, Scoring, run_pass};
use factoryline::family;

/// Largest difference allowed between a logit of ours and one of transformers', both in f32 arithmetic.
const TOLERANCE: f32 = 1e-4;
/// The same for the CPU backend, whose products may be made of bf16 halves (relative error about 2⁻¹⁸ per factor).
const SPLIT_TOLERANCE: f32 = 3e-4;

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("reference.safetensors").is_file())
        .collect();
    found.sort();
    assert!(found.len() >= 4, "one fixture per family at least, found {found:?}");
    found
}

/// Puts the chunks of the logit matrix together.
struct Collect {
    vocab: usize,
    rows: Vec<f32>,
}

impl Observer for Collect {
    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, chunk: &LogitChunk<'_>) {
        let end = (chunk.first_position + chunk.rows) * self.vocab;
        self.rows.resize(self.rows.len().max(end), f32::NAN);
        for (row, values) in chunk.values.chunks_exact(chunk.vocab.len()).enumerate() {
            let start = (chunk.first_position + row) * self.vocab + chunk.vocab.start;
            self.rows[start..start + values.len()].copy_from_slice(values);
        }
    }
}

/// Logits of every position: a token is appended to each sequence so that its last one is scored too.
fn logits(path: &Path, ids: &[Vec<u32>], options: &PassOptions) -> Vec<f32> {
    let model = family::open(path).unwrap();
    let sequences: Vec<Vec<u32>> = ids.iter().map(|row| row.iter().copied().chain([0]).collect()).collect();
    let mut collect = Collect { vocab: model.spec.vocab, rows: Vec::new() };
    run_pass(&model, &sequences, Scoring::All, options, &mut [&mut collect], &|_| ()).unwrap();
    collect.rows
}

fn reference(path: &Path) -> (Vec<Vec<u32>>, Vec<f32>) {
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(path.join("reference.safetensors"), &Device::Cpu).unwrap();
    let ids = tensors["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
    let logits = tensors["logits"].to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (ids, logits)
}

fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { d } else { m.max(d) })
}

#[test]
fn logits_equal_transformers_on_the_cpu_backend_and_in_candle() {
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (ids, wanted) = reference(&path);
        for candle_on_cpu in [false, true] {
            let options = PassOptions { candle_on_cpu, ..PassOptions::default() };
            let difference = worst(&logits(&path, &ids, &options), &wanted);
            let allowed = if candle_on_cpu { TOLERANCE } else { SPLIT_TOLERANCE };
            println!("{name} candle {candle_on_cpu}: {difference:e}");
            assert!(difference <= allowed, "{name} (candle: {candle_on_cpu}): logits differ by {difference}");
        }
    }
}
