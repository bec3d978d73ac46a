//! Quantization through the stage: every type written, read back and sized; replacements said; importance matrices.

use std::fs;
use std::path::Path;

use factoryline::compress::QUANT_TYPES;
use factoryline::family::open;
use factoryline::model::safetensors::SafetensorsWriter;
use factoryline::model::{DeclaredTensor, Dtype};
use serde_json::{Value, json};

use crate::worker::{Bench, fixture};

const HIDDEN: usize = 256;

/// A two-layer model whose rows are whole super-blocks, with bell-shaped weights.
fn wide_model(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(fixture("llama").join("config.json")).unwrap()).unwrap();
    config["hidden_size"] = json!(HIDDEN);
    config["intermediate_size"] = json!(HIDDEN);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap() as usize;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, HIDDEN])];
    for layer in 0..2 {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
        tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|norm| (name(norm), vec![HIDDEN])));
        for (rest, rows) in [("q", HIDDEN), ("k", HIDDEN / 2), ("v", HIDDEN / 2), ("o", HIDDEN)] {
            tensors.push((name(&format!("self_attn.{rest}_proj")), vec![rows, HIDDEN]));
        }
        tensors.extend(["gate", "up", "down"].map(|part| (name(&format!("mlp.{part}_proj")), vec![HIDDEN, HIDDEN])));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors.push(("lm_head.weight".to_owned(), vec![vocab, HIDDEN]));
    let declared = tensors.iter().map(|(name, shape)| DeclaredTensor::new(name, Dtype::F32, shape.clone()));
    let mut writer = SafetensorsWriter::create(dir, declared.collect(), u64::MAX).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for (name, shape) in &tensors {
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| if shape.len() == 1 { 1.0 } else { bell(&mut state) * 0.05 })
            .collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.tensor(name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// A number of unit variance, about.
fn bell(state: &mut u64) -> f32 {
    let mut sum = 0.0;
    for _ in 0..6 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        sum += (*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    }
    sum * 2f32.sqrt()
}

fn quantized(model: &Path, stage: Value) -> Bench {
    Bench::new(model, "llama", json!([stage]))
}

#[test]
fn every_type_is_written_to_the_predicted_byte_and_reads_back_near() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("wide");
    wide_model(&model);
    let bench = quantized(&model, json!({ "type": "quant", "format": "gguf", "quantTypes": QUANT_TYPES }));
    bench.run();
    let (plan, result) = (bench.json("plan.json"), bench.json("result.json"));
    let artifacts = result["artifacts"].as_array().unwrap();
    assert_eq!(artifacts.len(), QUANT_TYPES.len());
    let written: u64 = artifacts.iter().map(|a| a["bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["stages"][0]["predicted"]["disk"].as_u64().unwrap(), written, "predicted and written");

    let source = open(&model).unwrap();
    let mut last_error = 0.0;
    for (artifact, mix) in artifacts.iter().zip(QUANT_TYPES) {
        assert_eq!(artifact["type"], *mix);
        assert_eq!(artifact["fallbacks"], json!([]), "{mix}");
        let file = open(&bench.args.work.join("artifact").join(artifact["path"].as_str().unwrap())).unwrap();
        let (mut off, mut all) = (0.0, 0.0);
        for tensor in source.spec.tensors() {
            let (mut was, mut is) = (Vec::new(), Vec::new());
            source.tensors.read_f32(&tensor.name, &mut was).unwrap();
            file.tensors.read_f32(&tensor.name, &mut is).unwrap();
            off += was.iter().zip(&is).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            all += was.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
        }
        let error = off / all;
        let limit = match artifact["bits_per_weight"].as_f64().unwrap() {
            bits if bits > 15.0 => 1e-5,
            bits if bits > 8.0 => 5e-5,
            bits if bits > 6.0 => 1e-3,
            bits if bits > 5.0 => 8e-3,
            bits if bits > 4.2 => 2e-2,
            bits if bits > 3.0 => 8e-2,
            _ => 0.25,
        };
        assert!(error < limit, "{mix}: relative squared error {error}, limit {limit}");
        last_error = error;
    }
    assert!(last_error > 0.1, "{last_error}: ternary weights cannot be that near");
}

#[test]
fn rows_that_blocks_do_not_divide_are_named_one_by_one() {
    let bench =
        quantized(&fixture("llama"), json!({ "type": "quant", "format": "gguf", "quantTypes": ["Q4_K_M", "Q2_0"] }));
    bench.run();
    let result = bench.json("result.json");
    let artifact = &result["artifacts"][0];
    let given = |tensor: &str| {
        let list = artifact["fallbacks"].as_array().unwrap();
        let found =
            list.iter().find(|f| f["tensor"] == tensor).unwrap_or_else(|| panic!("{tensor} is not in {list:?}"));
        format!("{} for {}", found["given"].as_str().unwrap(), found["wanted"].as_str().unwrap())
    };
    assert_eq!(given("blk.0.attn_q.weight"), "Q5_0 for Q4_K");
    assert_eq!(given("blk.1.ffn_down.weight"), "Q8_0 for Q6_K");
    assert_eq!(given("output.weight"), "Q8_0 for Q6_K");
    let counted: u64 =
        artifact["tensor_types"].as_array().unwrap().iter().map(|t| t["tensors"].as_u64().unwrap()).sum();
    assert_eq!(counted, 21);
    assert!(artifact["bits_per_weight"].as_f64().unwrap() > 5.5, "the real bits, not the name's");
    let warnings: Vec<String> =
        result["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect();
    let says = |text: &str| assert!(warnings.iter().any(|w| w.contains(text)), "{text}: {warnings:?}");
    says(
        "Q4_K_M: token_embd.weight and 12 more take Q5_0 (5.5 bits) instead of Q4_K (4.5): their rows are no multiple of 256",
    );
    // Rows of 64 are whole blocks of Q2_0, rows of 96 are not.
    says("take Q4_0 (4.5 bits) instead of Q2_0 (2.25): their rows are no multiple of 64");
    let plan = bench.json("plan.json");
    let written: u64 = result["artifacts"].as_array().unwrap().iter().map(|a| a["bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["stages"][0]["predicted"]["disk"].as_u64().unwrap(), written);
    assert!(plan["findings"].to_string().contains("instead of Q4_K"), "the plan says it before anything runs");
}

/// The older form of an importance matrix.
fn matrix(path: &Path, entries: &[(&str, Vec<f32>)]) {
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, numbers) in entries {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.bytes());
        out.extend([1i32, numbers.len() as i32].iter().flat_map(|n| n.to_le_bytes()));
        out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    }
    fs::write(path, out).unwrap();
}

#[test]
fn an_importance_matrix_moves_the_error_to_columns_that_matter_less() {
    let dir = tempfile::tempdir().unwrap();
    let (model, path) = (dir.path().join("wide"), dir.path().join("imatrix.dat"));
    wide_model(&model);
    let name = "blk.1.ffn_up.weight";
    matrix(&path, &[(name, (0..HIDDEN).map(|i| if i % 16 == 0 { 400.0 } else { 1.0 }).collect())]);
    let error_of_the_important = |stage: Value| {
        let bench = quantized(&model, stage);
        bench.run();
        let result = bench.json("result.json");
        let file = open(&bench.args.work.join("artifact/tiny-Q4_K_M.gguf")).unwrap();
        let source = open(&model).unwrap();
        let (mut was, mut is) = (Vec::new(), Vec::new());
        source.tensors.read_f32("model.layers.1.mlp.up_proj.weight", &mut was).unwrap();
        file.tensors.read_f32("model.layers.1.mlp.up_proj.weight", &mut is).unwrap();
        let off = was.iter().zip(&is).enumerate().filter(|(i, _)| i % 16 == 0);
        (off.map(|(_, (a, b))| f64::from(a - b).powi(2)).sum::<f64>(), result["warnings"].to_string())
    };
    let stage = json!({ "type": "quant", "format": "gguf", "quantTypes": ["Q4_K_M"] });
    let (blind, _) = error_of_the_important(stage.clone());
    let mut informed = stage;
    informed["importanceMatrix"] = json!(path);
    let (steered, warnings) = error_of_the_important(informed);
    assert!(steered < 0.7 * blind, "{steered} with the matrix, {blind} without");
    assert!(warnings.contains("the matrix says nothing about 15 of 16 matrices"), "{warnings}");
}

#[test]
fn a_matrix_of_another_model_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.dat");
    for (entries, says) in [
        (vec![("blk.0.attn_q.weight", vec![1.0f32; 96])], "has 96 numbers, this model's tensor has 64 columns"),
        (vec![("blk.7.attn_q.weight", vec![1.0f32; 64])], "no tensor of this model is among its entries"),
    ] {
        matrix(&path, &entries);
        let stage = json!({
            "type": "quant", "format": "gguf", "quantTypes": ["Q4_0"], "importanceMatrix": path
        });
        let bench = quantized(&fixture("llama"), stage);
        bench.run();
        let fault = bench.fault();
        assert!(fault.starts_with("source: ") && fault.contains(says), "{fault}");
        assert!(!bench.args.work.join("gguf").exists());
    }
}
