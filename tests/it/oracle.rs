//! The engine against transformers: logits of tiny random models of every family and variant, from committed fixtures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use factoryline::assay::{self, Data, Request};
use factoryline::compress;
use factoryline::engine::matmul::Kernel;
use factoryline::engine::{LogitChunk, Observer, PassOptions, Routing, Scoring, run_pass};
use factoryline::family::{self, MixerSpec, OpenModel};
use factoryline::units::Bytes;

/// Largest difference allowed between a logit of ours and one of transformers', both in f32 arithmetic.
pub const TOLERANCE: f32 = 1e-4;
/// The same for the CPU backend, whose products may be made of bf16 halves (relative error about 2⁻¹⁸ per factor).
pub const SPLIT_TOLERANCE: f32 = 3e-4;
/// The same for delta nets, which norm what they read from their state however short it is: where the terms of a read
/// cancel, what the products lost grows with the result, a few times over in each such block. In f32 it stays within
/// [`TOLERANCE`].
const SPLIT_DELTA_TOLERANCE: f32 = 2e-3;

/// Files committed for tests may not grow past this.
const MOST_FIXTURE_BYTES: u64 = 12_000_000;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

/// Every fixture with reference logits.
pub fn fixtures() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(fixture(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("reference.safetensors").is_file())
        .collect();
    found.sort();
    assert!(found.len() >= 40, "fixtures are gone, found {found:?}");
    found
}

#[test]
fn every_model_type_of_every_family_has_a_fixture() {
    let model_type = |path: &PathBuf| {
        let config = std::fs::read(path.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        config["model_type"].as_str().unwrap().to_owned()
    };
    let shown: Vec<String> = fixtures().iter().map(model_type).collect();
    for name in family::FAMILIES.iter().flat_map(|f| f.model_types()) {
        assert!(shown.iter().any(|kind| kind == name), "no fixture is a {name}");
    }
}

fn bytes_below(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| if e.path().is_dir() { bytes_below(&e.path()) } else { e.metadata().unwrap().len() }).sum()
}

#[test]
fn the_committed_fixtures_are_small() {
    let bytes = bytes_below(fixture("").parent().unwrap());
    assert!(bytes < MOST_FIXTURE_BYTES, "tests/fixtures holds {bytes} bytes");
}

/// Puts the chunks of the logit matrix together.
pub struct Collect {
    pub vocab: usize,
    pub rows: Vec<f32>,
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
pub fn logits(path: &Path, ids: &[Vec<u32>], options: &PassOptions) -> Vec<f32> {
    let model = family::open(path).unwrap();
    let sequences: Vec<Vec<u32>> = ids.iter().map(|row| row.iter().copied().chain([0]).collect()).collect();
    let mut collect = Collect { vocab: model.spec.vocab, rows: Vec::new() };
    run_pass(&model, &sequences, Scoring::All, options, &mut [&mut collect], &|_| ()).unwrap();
    collect.rows
}

/// Token ids and the logits transformers gave for them.
pub struct Reference {
    pub length: usize,
    pub ids: Vec<Vec<u32>>,
    pub logits: Vec<f32>,
}

/// Every length a fixture has: `input_ids` and `logits`, `input_ids.N` and `logits.N`.
pub fn references(path: &Path) -> Vec<Reference> {
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(path.join("reference.safetensors"), &Device::Cpu).unwrap();
    let mut found: Vec<Reference> = tensors
        .iter()
        .filter_map(|(name, ids)| Some((name.strip_prefix("input_ids")?, ids)))
        .map(|(suffix, ids)| Reference {
            length: ids.dims2().unwrap().1,
            ids: ids.to_dtype(DType::U32).unwrap().to_vec2().unwrap(),
            logits: tensors[&format!("logits{suffix}")].flatten_all().unwrap().to_vec1().unwrap(),
        })
        .collect();
    found.sort_by_key(|reference| reference.length);
    found
}

/// The token ids and logits of the batch of 24 tokens.
pub fn reference(path: &Path) -> (Vec<Vec<u32>>, Vec<f32>) {
    let batch = references(path).into_iter().find(|reference| reference.ids.len() == 2).unwrap();
    (batch.ids, batch.logits)
}

pub fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { d } else { m.max(d) })
}

#[test]
fn logits_equal_transformers_however_they_are_computed() {
    let mut failed = Vec::new();
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let references = references(&path);
        let blocks = family::open(&path).unwrap().spec.blocks;
        let split = if blocks.iter().any(|block| matches!(block.mixer, MixerSpec::DeltaNet(_))) {
            SPLIT_DELTA_TOLERANCE
        } else {
            SPLIT_TOLERANCE
        };
        let lengths: Vec<usize> = references.iter().map(|reference| reference.length).collect();
        assert!(lengths.starts_with(&[1, 7, 24]), "{name} has references of {lengths:?} tokens");
        for (way, allowed, options) in [
            ("f32 products", TOLERANCE, PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() }),
            ("candle", TOLERANCE, PassOptions { candle_on_cpu: true, ..PassOptions::default() }),
            ("fastest kernel", split, PassOptions::default()),
        ] {
            for Reference { length, ids, logits: wanted } in &references {
                let difference = worst(&logits(&path, ids, &options), wanted);
                if difference.is_nan() || difference > allowed {
                    failed.push(format!("{name}, {length} tokens, {way}: logits differ by {difference:e}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Writes a model as an F32 GGUF file.
pub fn write_gguf(model: &OpenModel, path: &Path) {
    let plan = compress::plan_quant(&model.spec, compress::quant_mix("F32").unwrap(), false).unwrap();
    let header = compress::gguf_metadata(model, &plan, None, "tiny").unwrap();
    compress::write_gguf(model.tensors.as_ref(), &plan, &header.fields, None, path, &|_| ()).unwrap();
}

#[test]
fn perplexity_of_token_ids_is_the_softmax_loss_of_the_reference_logits() {
    let path = fixture("llama");
    let (ids, logits) = reference(&path);
    let vocab = family::open(&path).unwrap().spec.vocab;
    let mut losses = Vec::new();
    for (sequence, tokens) in ids.iter().enumerate() {
        for position in 0..tokens.len() - 1 {
            let row = &logits[(sequence * tokens.len() + position) * vocab..][..vocab];
            let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            losses.push(total.ln() - f64::from(row[tokens[position + 1] as usize]));
        }
    }
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;

    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("ids.json");
    std::fs::write(&data, serde_json::to_vec(&ids).unwrap()).unwrap();
    let model = family::open(&path).unwrap();
    let measure = |options: PassOptions| {
        let data = Data::TokenIds { path: data.clone() };
        let request = Request { data, against: None, limit: None, options };
        assay::runner("perplexity").unwrap().run(&model, &request, &|_| ()).unwrap()
    };
    let got = measure(PassOptions::default());
    assert_eq!((got.convention.as_str(), got.scored), ("token-ids", losses.len()));
    assert!((got.nll - mean).abs() < 1e-4, "{} and {mean}", got.nll);
    assert!((got.perplexity - got.nll.exp()).abs() < 1e-9);

    // A budget too small for the hidden states sends them through a file; nothing else changes.
    let spill_directory = Some(dir.path().to_owned());
    let tight = PassOptions { memory_budget: Some(Bytes(1)), spill_directory, ..PassOptions::default() };
    assert!((measure(tight).nll - got.nll).abs() < 1e-5);
}

#[test]
fn damage_is_named() {
    let path = fixture("llama");
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    std::fs::copy(path.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&config).unwrap();
    value["vocab_size"] = 7.into();
    std::fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
    let error = family::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("has shape") && error.contains("[7, "), "{error}");
    value["num_hidden_layers"] = 50.into();
    std::fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
    let error = family::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("is missing") && error.contains("others also missing"), "{error}");
    let error = family::open(&dir.path().join("nothing")).err().unwrap();
    assert_eq!(factoryline::fault::Fault::from(error).class, factoryline::fault::FaultClass::Source);
}

/// bf16 arithmetic: single logits of a tiny model may be far off (a router may choose differently), their mean may not.
#[test]
#[ignore = "needs an NVIDIA GPU and the cuda feature: scripts/gpu_check.sh runs it"]
fn on_the_gpu_logits_are_near_those_of_transformers() {
    let device = Device::new_cuda(0).unwrap();
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (ids, wanted) = reference(&path);
        let options = PassOptions { device: device.clone(), ..PassOptions::default() };
        let ours = logits(&path, &ids, &options);
        assert_eq!(ours.len(), wanted.len());
        let mean = ours.iter().zip(&wanted).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / ours.len() as f64;
        println!("{name}: mean difference {mean:.4}, largest {:.4}", worst(&ours, &wanted));
        assert!(mean < 0.08, "{name}: logits differ by {mean} in the mean");
    }
}

/// The fixture's tensors, edited, beside its config in a directory of their own.
pub fn rewritten(path: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = HashMap::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            tensors.extend(candle_core::safetensors::load(&file, &Device::Cpu).unwrap());
        }
    }
    edit(&mut tensors);
    std::fs::copy(path.join("config.json"), dir.path().join("config.json")).unwrap();
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    dir
}

/// A fixture with experts in every block.
pub fn mixture() -> PathBuf {
    fixture("qwen3_moe")
}

#[test]
fn a_bad_value_is_traced_to_its_tensor() {
    let path = mixture();
    let name = family::open(&path).unwrap().spec.blocks[0].moe().unwrap().experts[1].up.weight.clone();
    let damaged = rewritten(&path, |tensors| {
        let tensor = tensors.get_mut(&name).unwrap();
        let shape = tensor.shape().clone();
        let bad = Tensor::full(f32::NAN, shape, &Device::Cpu).unwrap();
        *tensor = bad.to_dtype(DType::BF16).unwrap();
    });
    let model = family::open(damaged.path()).unwrap();
    let (ids, _) = reference(&path);
    let error = run_pass(&model, &ids, Scoring::All, &PassOptions::default(), &mut [], &|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("block 0") && text.contains(&name), "{text}");
}

/// Counts how often each expert is chosen.
struct Count(Vec<Vec<u64>>);

impl Observer for Count {
    fn router(&mut self, routing: &Routing<'_>) {
        let counts = &mut self.0[routing.layer];
        counts.resize(routing.experts, 0);
        routing.chosen.iter().for_each(|&expert| counts[expert as usize] += 1);
    }
}

#[test]
fn observers_see_every_choice_of_every_router() {
    let path = mixture();
    let model = family::open(&path).unwrap();
    let (ids, _) = reference(&path);
    let mut count = Count(vec![Vec::new(); model.spec.blocks.len()]);
    let report = run_pass(&model, &ids, Scoring::None, &PassOptions::default(), &mut [&mut count], &|_| ()).unwrap();
    assert!(report.nll.is_empty());
    for (block, counts) in model.spec.blocks.iter().zip(&count.0) {
        let moe = block.moe().unwrap();
        assert_eq!(counts.len(), moe.experts.len());
        assert_eq!(counts.iter().sum::<u64>(), (report.tokens * moe.top_k) as u64);
    }
}
