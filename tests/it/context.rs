//! A longer context by every method: logits against transformers below and above the original context, and the stage.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use factoryline::compress::{ContextMethod, extend_context};
use factoryline::engine::matmul::Kernel;
use factoryline::engine::{PassOptions, Scoring, run_pass};
use factoryline::family::{self, RopeScaling};
use factoryline::model::Config;
use serde_json::{Value, json};

use crate::oracle::{Collect, SPLIT_TOLERANCE, TOLERANCE, worst};
use crate::worker::{Bench, fixture};

const METHODS: [ContextMethod; 4] =
    [ContextMethod::Yarn, ContextMethod::Ntk, ContextMethod::Linear, ContextMethod::DynamicNtk];

fn reference(method: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rope").join(method)
}

/// The llama fixture with another config beside its weights.
fn with_config(config: &Config) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("llama").join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), config.to_json()).unwrap();
    dir
}

#[test]
fn logits_equal_transformers_below_and_above_the_original_context() {
    let model = family::open(&fixture("llama")).unwrap();
    for method in METHODS {
        let dir = with_config(&extend_context(&model.config, &model.spec, 1024, method).unwrap());
        let extended = family::open(dir.path()).unwrap();
        assert_eq!(extended.spec.max_positions, 1024, "{method:?}");
        let tensors: HashMap<String, Tensor> =
            candle_core::safetensors::load(reference(method.as_str()).join("reference.safetensors"), &Device::Cpu)
                .unwrap();
        let ids = |kind: &str| -> Vec<u32> {
            tensors[&format!("{kind}_ids")].to_dtype(DType::U32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        // Both lengths in one pass: a dynamic rule is each sequence's own.
        let sequences = vec![ids("short"), ids("long"), ids("short")];
        for (way, allowed, options) in [
            ("f32 products", TOLERANCE, PassOptions { kernel: Some(Kernel::Portable), ..PassOptions::default() }),
            ("candle", TOLERANCE, PassOptions { candle_on_cpu: true, ..PassOptions::default() }),
            ("fastest kernel", SPLIT_TOLERANCE, PassOptions::default()),
        ] {
            let mut collect = Collect { vocab: extended.spec.vocab, rows: Vec::new() };
            run_pass(&extended, &sequences, Scoring::All, &options, &mut [&mut collect], &|_| ()).unwrap();
            let mut first = 0;
            for (kind, sequence) in ["short", "long", "short"].into_iter().zip(&sequences) {
                let wanted: Vec<f32> = tensors[&format!("{kind}_logits")].flatten_all().unwrap().to_vec1().unwrap();
                // The reference has the last positions; the very last of a sequence predicts nothing and is not scored.
                let count = wanted.len() / extended.spec.vocab - 1;
                let end = first + sequence.len() - 1;
                let ours = &collect.rows[(end - count) * extended.spec.vocab..end * extended.spec.vocab];
                let difference = worst(ours, &wanted[..count * extended.spec.vocab]);
                assert!(difference <= allowed, "{method:?}, {kind}, {way}: logits differ by {difference:e}");
                first = end;
            }
        }
    }
}

fn stage(method: &str) -> Value {
    json!({ "type": "context-extend", "targetLength": 1024, "method": method })
}

fn bench(stages: Value) -> Bench {
    let bench = Bench::new(&fixture("llama"), "llama", stages);
    bench.run();
    bench
}

#[test]
fn the_stage_changes_the_config_and_nothing_else() {
    for method in METHODS {
        let bench = bench(json!([{ "type": "source-config", "contextLength": 1024 }, stage(method.as_str())]));
        let result = bench.json("result.json");
        let gates: Vec<&str> =
            result["evidence"].as_array().unwrap().iter().map(|e| e["gate"].as_str().unwrap()).collect();
        assert_eq!(gates, ["reload", "positions", "pass-through", "score"]);
        let details = &result["stages"][1]["details"];
        assert_eq!((&details["positions"], &details["factor"]), (&json!(1024), &json!(8.0)));
        let written: Value = bench.json("artifact/config.json");
        let wanted = Config::open(&reference(method.as_str())).unwrap();
        assert_eq!(written["rope_scaling"], wanted.root()["rope_scaling"], "{method:?}");
        assert_eq!(written["max_position_embeddings"], wanted.root()["max_position_embeddings"], "{method:?}");
        let same = fs::read(bench.args.work.join("artifact/model.safetensors")).unwrap();
        assert!(same == fs::read(fixture("llama").join("model.safetensors")).unwrap());
        assert!(bench.args.work.join("artifact/context_extend.metadata.v1.json").is_file());
    }
}

#[test]
fn a_longer_context_goes_on_into_gguf() {
    let quant = json!({ "type": "quant", "format": "gguf", "quantTypes": ["BF16"] });
    let prune = json!({ "type": "prune", "strategy": "magnitude", "level": 0.5, "defragMode": "slice",
        "minHeadsPerLayer": 1, "minKvHeadsPerLayer": 1 });
    let bench = bench(json!([stage("yarn"), prune, quant]));
    bench.json("result.json");
    let gguf = family::open(&bench.args.work.join("gguf/tiny-BF16.gguf")).unwrap();
    assert_eq!(gguf.spec.max_positions, 1024);
    assert!(matches!(gguf.spec.rope.scaling, RopeScaling::Yarn { original_context: 128, .. }), "{:?}", gguf.spec.rope);
    assert_eq!(gguf.spec.blocks[0].attention().map(|a| a.kv_heads), Some(1));
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let refusal = |stages: Value| bench(stages).fault();
    let quant = json!({ "type": "quant", "format": "gguf", "quantTypes": ["F16"] });
    insta::assert_snapshot!(refusal(json!([stage("dynamic-ntk"), quant])), @"source: stages[1].quantTypes[0]: a GGUF file of a model whose positions are scaled by the length of the text (dynamic NTK) is not supported");
    insta::assert_snapshot!(refusal(json!([quant, stage("yarn")])), @"recipe: stages[1].type: comes after quant: the files already written would not have the longer context");
    insta::assert_snapshot!(refusal(json!([stage("yarn"), stage("linear")])), @"recipe: stages[1].type: stages[0] has extended the context already");
    let mut trained = stage("yarn");
    trained["trainingSteps"] = json!(100);
    insta::assert_snapshot!(refusal(json!([trained])), @"recipe: stages[0].trainingSteps: this build extends a context without training");
    let scaled = Bench::new(&fixture("llama-linear-rope"), "llama", json!([stage("yarn")]));
    scaled.run();
    insta::assert_snapshot!(scaled.fault(), @"recipe: stages[0].method: context extension: the model's positions are scaled already (see rope_scaling or rope_parameters in its config.json)");
}
