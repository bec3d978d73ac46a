//! Directories of packed matrices as models: logits of tiny models that the formats' own packages packed, against
//! transformers; and what may be done with them.

use std::path::{Path, PathBuf};

use factoryline::engine::PassOptions;
use factoryline::engine::matmul::Kernel;
use factoryline::family;
use serde_json::{Value, json};

use crate::oracle::{Reference, SPLIT_TOLERANCE, TOLERANCE, logits, references, worst};
use crate::worker::{Bench, fixture};

fn packed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/packed").join(name)
}

#[test]
fn logits_of_packed_models_equal_transformers() {
    for (name, summary) in [
        ("llama-w4-w3", "compressed-tensors W3 group 32 asymmetric, W4 group 32 symmetric"),
        ("qwen3_moe-w4", "compressed-tensors W4 group 32 symmetric"),
        ("llama-mlx", "MLX 4 bits, group 32"),
    ] {
        let path = packed(name);
        let model = family::open(&path).unwrap();
        assert_eq!(model.packing(), Some(summary));
        assert!(model.warnings.is_empty(), "{name}: {:?}", model.warnings);
        for (allowed, options) in [
            (TOLERANCE, PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() }),
            (TOLERANCE, PassOptions { candle_on_cpu: true, ..PassOptions::default() }),
            (SPLIT_TOLERANCE, PassOptions::default()),
        ] {
            for Reference { ids, logits: wanted, .. } in references(&path) {
                let difference = worst(&logits(&path, &ids, &options), &wanted);
                assert!(difference <= allowed, "{name}: logits differ by {difference:e}");
            }
        }
    }
}

fn quantized(model: &Path, architecture: &str, stage: Value) -> Bench {
    let mut stage = stage;
    stage["type"] = json!("quant");
    let bench = Bench::new(model, architecture, json!([stage]));
    bench.run();
    bench
}

/// Relative squared error of all tensors but those that stay.
fn error(source: &Path, written: &Path) -> f64 {
    let (source, written) = (family::open(source).unwrap(), family::open(written).unwrap());
    let (mut off, mut all) = (0.0, 0.0);
    for tensor in source.spec.tensors() {
        let (mut was, mut is) = (Vec::new(), Vec::new());
        source.tensors.read_f32(&tensor.name, &mut was).unwrap();
        written.tensors.read_f32(&tensor.name, &mut is).unwrap();
        let squares: f64 = was.iter().zip(&is).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        if squares > 0.0 {
            off += squares;
            all += was.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
        }
    }
    off / f64::max(all, f64::MIN_POSITIVE)
}

#[test]
fn a_mixture_is_packed_reopened_and_scored() {
    let source = fixture("qwen3_moe");
    let bench =
        quantized(&source, "qwen3_moe", json!({ "format": "safetensors", "quantTypes": ["W4A16"], "groupSize": 32 }));
    let result = bench.json("result.json");
    let artifact = &result["artifacts"][0];
    assert_eq!(artifact["type"], "W4A16 g32");
    assert_eq!(artifact["path"], ".");
    let directory = bench.args.work.join("artifact");
    let model = family::open(&directory).unwrap();
    assert_eq!(model.packing(), Some("compressed-tensors W4 group 32 symmetric"));
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    let bytes = std::fs::metadata(directory.join("model.safetensors")).unwrap().len();
    assert_eq!(artifact["bytes"].as_u64().unwrap(), bytes);
    let lost = error(&source, &directory);
    assert!((0.001..0.02).contains(&lost), "four bits lose {lost}");
    let gates = result["evidence"].to_string();
    assert!(gates.contains("reload") && gates.contains("score"), "{gates}");
}

#[test]
fn several_types_lie_beside_each_other_and_more_bits_lose_less() {
    let source = fixture("llama");
    let types = ["W8A16_ASYM", "W6A16", "W4A16_ASYM", "W3A16", "W2A16_ASYM", "F16"];
    let bench = quantized(&source, "llama", json!({ "format": "safetensors", "quantTypes": types, "groupSize": 32 }));
    let result = bench.json("result.json");
    let mut last = 0.0;
    for (artifact, name) in result["artifacts"].as_array().unwrap().iter().zip(types) {
        let folder = format!("tiny-{name}");
        assert_eq!(artifact["path"], folder.as_str());
        let lost = error(&source, &bench.args.work.join("artifact").join(&folder));
        if name == "F16" {
            assert!(lost < 1e-6, "{lost}");
        } else {
            assert!(lost > last && lost < 0.2, "{name} loses {lost}, more bits {last}");
            last = lost;
        }
    }
}

#[test]
fn a_calibrated_directory_is_as_small_and_names_its_text() {
    let source = fixture("qwen3_moe-text");
    let stage = |corpus: Option<&str>| {
        let mut stage = json!({ "format": "safetensors", "quantTypes": ["W3A16"], "groupSize": 32 });
        if let Some(corpus) = corpus {
            stage["calibrationCorpus"] = json!(corpus);
            stage["calibrationTokens"] = json!(2048);
        }
        stage
    };
    let blind = quantized(&source, "qwen3_moe", stage(None)).json("result.json");
    let seen = quantized(&source, "qwen3_moe", stage(Some("default"))).json("result.json");
    assert_eq!(blind["artifacts"][0]["bytes"], seen["artifacts"][0]["bytes"]);
    assert!(seen.to_string().contains("factoryline-mix-1"), "the text is stated");
    assert_ne!(blind["modelHash"], seen["modelHash"]);
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let refused = |model: &str, architecture: &str, stage: Value| {
        let bench = quantized(&fixture(model), architecture, stage);
        bench.fault()
    };
    let stage = |format: &str, kind: &str| json!({ "format": format, "quantTypes": [kind] });
    insta::assert_snapshot!(refused("llama", "llama", stage("onnx", "INT8")), @"recipe: stages[0].format: this build does not write ONNX, which holds a graph of operators and not just weights");
    insta::assert_snapshot!(refused("qwen3_moe", "qwen3_moe", stage("safetensors", "W4A16_ASYM")), @"recipe: stages[0].quantTypes[0]: quant: W4A16_ASYM: readers of packed experts know no zero points");
    insta::assert_snapshot!(refused("qwen3_vl", "qwen3_vl", stage("safetensors", "W4A16")), @"recipe: stages[0].quantTypes[0]: quant: W4A16: packed layers of the family qwen3_vl were not seen to load");
    insta::assert_snapshot!(refused("gpt_oss-mxfp4", "gpt_oss", stage("safetensors", "BF16")), @"recipe: stages[0].quantTypes[0]: the source holds its experts in MXFP4, which are not repacked");
    let mut odd = stage("safetensors", "W4A16");
    odd["groupSize"] = json!(48);
    insta::assert_snapshot!(refused("llama", "llama", odd), @"recipe: stages[0].groupSize: 48: readers have kernels for groups of 32, 64 and 128, and for whole rows");
    let prune = json!([{ "type": "prune", "strategy": "magnitude", "level": 0.5 }]);
    let bench = Bench::new(&packed("llama-w4-w3"), "llama", prune);
    bench.run();
    let fault = bench.fault();
    assert!(fault.contains("a quantized directory cannot be pruned in this build"), "{fault}");
}

#[test]
fn a_packed_directory_is_a_source_like_any_other() {
    let bench = quantized(&packed("llama-mlx"), "llama", json!({ "format": "gguf", "quantTypes": ["Q8_0"] }));
    let lost = error(&packed("llama-mlx"), &bench.args.work.join("artifact/tiny-Q8_0.gguf"));
    assert!(lost < 1e-4, "{lost}");
    let bench = quantized(&packed("llama-w4-w3"), "llama", json!({ "format": "safetensors", "quantTypes": ["BF16"] }));
    let directory = bench.args.work.join("artifact");
    assert_eq!(error(&packed("llama-w4-w3"), &directory), 0.0);
    assert_eq!(family::open(&directory).unwrap().packing(), None);
}
