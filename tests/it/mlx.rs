//! Directories in MLX's layout: written by the stage, opened again, and what their files hold.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use factoryline::family;
use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::worker::{Bench, fixture};

fn quantized(model: &str, architecture: &str, keys: Value) -> Bench {
    let mut stage = json!({ "type": "quant", "format": "mlx", "quantTypes": ["MLX4"] });
    stage.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let bench = Bench::new(&fixture(model), architecture, json!([stage]));
    bench.run();
    bench
}

fn artifact(bench: &Bench) -> PathBuf {
    bench.args.work.join("artifact")
}

fn halves(raw: &[u8]) -> Vec<f32> {
    raw.chunks_exact(2).map(|raw| bf16::from_le_bytes([raw[0], raw[1]]).to_f32()).collect()
}

/// A packed layer of the file by MLX's rule: code i of a row lies at bit `i · bits`, and stands for `scale · code + bias`.
fn by_the_rule(file: &SafeTensors<'_>, layer: &str, bits: usize) -> (Vec<usize>, Vec<f32>) {
    let part = |name: &str| file.tensor(&format!("{layer}.{name}")).unwrap();
    let (codes, scales, biases) = (part("weight"), part("scales"), part("biases"));
    assert_eq!((codes.dtype(), scales.dtype(), biases.dtype()), (Dtype::U32, Dtype::BF16, Dtype::BF16), "{layer}");
    let (words, groups) = (*codes.shape().last().unwrap(), *scales.shape().last().unwrap());
    let (cols, rows) = (32 * words / bits, codes.shape().iter().product::<usize>() / words);
    let (scales, biases) = (halves(scales.data()), halves(biases.data()));
    let bit = |row: usize, at: usize| u32::from(codes.data()[4 * words * row + at / 8] >> (at % 8) & 1);
    let mut values = Vec::new();
    for row in 0..rows {
        for col in 0..cols {
            let code: u32 = (0..bits).map(|b| bit(row, col * bits + b) << b).sum();
            let group = row * groups + col / (cols / groups);
            values.push(scales[group] * code as f32 + biases[group]);
        }
    }
    ([&codes.shape()[..codes.shape().len() - 1], &[cols]].concat(), values)
}

fn read(path: &Path, name: &str) -> Vec<f32> {
    let mut values = Vec::new();
    family::open(path).unwrap().tensors.read_f32(name, &mut values).unwrap();
    values
}

/// Relative squared error of every matrix.
fn error(source: &Path, written: &Path) -> f64 {
    let (mut off, mut all) = (0.0, 0.0);
    for tensor in family::open(source).unwrap().spec.tensors().iter().filter(|tensor| tensor.shape.len() > 1) {
        let (was, is) = (read(source, &tensor.name), read(written, &tensor.name));
        off += was.iter().zip(&is).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        all += was.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
    }
    off / all
}

#[test]
fn every_matrix_is_packed_and_reads_back_to_the_bit() {
    for (kind, bits) in [("MLX3", 3), ("MLX4", 4), ("MLX6", 6)] {
        let bench = quantized("llama", "llama", json!({ "quantTypes": [kind], "groupSize": 32 }));
        let directory = artifact(&bench);
        let model = family::open(&directory).unwrap();
        assert_eq!(model.packing().unwrap(), format!("MLX {bits} bits, group 32"));
        assert!(model.warnings.is_empty(), "{:?}", model.warnings);
        let raw = std::fs::read(directory.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&raw).unwrap();
        let mut packed = 0;
        for tensor in model.spec.tensors().iter().filter(|tensor| tensor.shape.len() > 1) {
            let layer = tensor.name.strip_suffix(".weight").unwrap();
            let (shape, values) = by_the_rule(&file, layer, bits);
            assert_eq!(shape, tensor.shape, "{layer}");
            let read = read(&directory, &tensor.name);
            assert!(values.iter().zip(&read).all(|(a, b)| a.to_bits() == b.to_bits()), "{layer}");
            packed += 1;
        }
        assert_eq!(packed, 2 + 7 * model.spec.blocks.len(), "embedding and head too");
        let config: Value = serde_json::from_slice(&std::fs::read(directory.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["quantization"], json!({ "group_size": 32, "bits": bits, "mode": "affine" }));
        assert_eq!(config["quantization_config"], config["quantization"]);
    }
}

#[test]
fn experts_are_stacked_and_their_router_stays() {
    let source = fixture("qwen3_moe");
    let bench = quantized("qwen3_moe", "qwen3_moe", json!({ "groupSize": 32 }));
    let raw = std::fs::read(artifact(&bench).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&raw).unwrap();
    let (shape, values) = by_the_rule(&file, "model.layers.0.mlp.switch_mlp.up_proj", 4);
    assert_eq!(shape, [4, 96, 64]);
    let third = read(&artifact(&bench), "model.layers.0.mlp.experts.3.up_proj.weight");
    assert_eq!(third, values[3 * 96 * 64..4 * 96 * 64]);
    assert_eq!(file.tensor("model.layers.0.mlp.gate.weight").unwrap().dtype(), Dtype::BF16);
    let lost = error(&source, &artifact(&bench));
    assert!((0.001..0.02).contains(&lost), "four bits lose {lost}");
    let result = bench.json("result.json");
    assert_eq!(result["artifacts"][0]["type"], "MLX4 g32");
    assert_eq!(result["artifacts"][0]["format"], "mlx");
}

#[test]
fn more_bits_lose_less_and_narrow_rows_take_narrow_groups() {
    let mut last = f64::MAX;
    for kind in ["MLX2", "MLX3", "MLX4", "MLX5", "MLX6", "MLX8"] {
        let bench = quantized("qwen3_moe", "qwen3_moe", json!({ "quantTypes": [kind] }));
        let lost = error(&fixture("qwen3_moe"), &artifact(&bench));
        assert!(lost < 0.5 * last, "{kind} loses {lost}, one bit less {last}");
        last = lost;
        // Down projections of experts have rows of 96.
        let config: Value =
            serde_json::from_slice(&std::fs::read(artifact(&bench).join("config.json")).unwrap()).unwrap();
        let own = &config["quantization"]["model.layers.0.mlp.switch_mlp.down_proj"];
        assert_eq!(own["group_size"], 32, "{config}");
        assert_eq!(config["quantization"]["group_size"], 64);
        let fallbacks = bench.json("result.json")["artifacts"][0]["fallbacks"].to_string();
        assert!(fallbacks.contains("switch_mlp.down_proj"), "{fallbacks}");
    }
    assert!(last < 1e-4, "eight bits lose {last}");
}

#[test]
fn every_solver_works_in_it() {
    let errors: HashMap<&str, f64> = ["rtn", "hqq", "gptq"]
        .into_iter()
        .map(|algorithm| {
            let keys =
                json!({ "algorithm": algorithm, "groupSize": 32, "calibrationTokens": 1024, "calibrationLength": 64 });
            let bench = quantized("qwen3_moe-text", "qwen3_moe", keys);
            if algorithm == "gptq" {
                let details = &bench.json("result.json")["stages"][0]["details"];
                assert_eq!(details["layers"]["MLX4 g32"].as_array().unwrap().len(), 2, "{details}");
            }
            (algorithm, error(&fixture("qwen3_moe-text"), &artifact(&bench)))
        })
        .collect();
    assert!(errors.values().all(|lost| (0.001..0.05).contains(lost)), "{errors:?}");
    assert!(errors["rtn"] != errors["hqq"] && errors["rtn"] != errors["gptq"], "{errors:?}");
}

#[test]
fn what_mlx_does_not_load_is_refused_before_anything_runs() {
    let refused = |model: &str, architecture: &str, keys: Value| quantized(model, architecture, keys).fault();
    insta::assert_snapshot!(refused("llama", "llama", json!({ "groupSize": -1 })), @"recipe: stages[0].groupSize: -1: MLX has kernels for groups of 32, 64 and 128");
    insta::assert_snapshot!(refused("olmoe", "olmoe", json!({})), @"recipe: stages[0].quantTypes[0]: quant: MLX4: mlx_lm does not compute clipped queries, keys and values (clip_qkv)");
    let unknown = refused("llama", "llama", json!({ "quantTypes": ["W4A16"] }));
    assert!(unknown.starts_with("recipe: ") && unknown.contains("W4A16"), "{unknown}");
    let family = refused("gpt_oss", "gpt_oss", json!({}));
    assert!(family.starts_with("recipe: ") && family.contains("gpt_oss"), "{family}");
}
