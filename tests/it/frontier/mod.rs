//! Frontier contracts through the public doors: artifacts, archives, plans, the command. Numbers of tests are those of
//! the contract's list of conformance cases.

use std::fs;
use std::path::{Path, PathBuf};

use factoryline::frontier::{
    CheckOptions, Choice, Container, Contracts, Document, Exam, Packing, Pool, Report, Terms, check, pack,
};
use factoryline::model::safetensors::SafetensorsWriter;
use factoryline::model::{DeclaredTensor, Dtype};
use half::f16;
use serde_json::json;

mod archives;
mod artifacts;
mod conformance;
mod line;
mod plans;
mod words;

pub const TERNARY: &str = "qwen3-27b-ternary-frontier";

/// A byte-level model of two layers.
#[derive(Clone)]
pub struct Shape {
    pub vocab: usize,
    pub tied: bool,
    pub dtype: Dtype,
    pub zeros: f64,
    /// A head that is zero gives every byte the same probability.
    pub blind: bool,
    pub hidden: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { vocab: 257, tied: false, dtype: Dtype::F32, zeros: 0.7, blind: true, hidden: 64 }
    }
}

/// Names and shapes of the model's tensors.
pub fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (shape.hidden, 2 * shape.hidden);
    let mut out = vec![("model.embed_tokens.weight".to_owned(), vec![shape.vocab, hidden])];
    for layer in 0..2 {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
        out.extend(["input_layernorm", "post_attention_layernorm"].map(|norm| (name(norm), vec![hidden])));
        out.extend(["q", "k", "v", "o"].map(|p| (name(&format!("self_attn.{p}_proj")), vec![hidden, hidden])));
        out.extend(["gate", "up"].map(|p| (name(&format!("mlp.{p}_proj")), vec![inner, hidden])));
        out.push((name("mlp.down_proj"), vec![hidden, inner]));
    }
    out.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !shape.tied {
        out.push(("lm_head.weight".to_owned(), vec![shape.vocab, hidden]));
    }
    out
}

pub fn parameters(shape: &Shape) -> u64 {
    tensors(shape).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
}

/// Numbers between 0 and 1 that are the same each time.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The baseline recipe: every weight 0 or ± 0.02.
pub fn drawn(shape: &Shape) -> impl FnMut(&str, usize) -> Vec<f32> {
    let (zeros, blind, tied) = (shape.zeros, shape.blind, shape.tied);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    move |name, count| {
        if blind && (name.starts_with("lm_head") || tied && name.contains("embed")) {
            return vec![0.0; count];
        }
        let mut one = || {
            if noise.next() < zeros {
                0.0
            } else if noise.next() < 0.5 {
                0.02
            } else {
                -0.02
            }
        };
        (0..count).map(|_| one()).collect()
    }
}

/// Writes the model; `values` gives the numbers of a tensor by its name and count.
pub fn write_model(dir: &Path, shape: &Shape, mut values: impl FnMut(&str, usize) -> Vec<f32>) {
    fs::create_dir_all(dir).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden, "intermediate_size": 2 * shape.hidden,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": shape.vocab,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": shape.tied, "torch_dtype": "float32",
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = tensors(shape);
    let declared = tensors.iter().map(|(name, size)| DeclaredTensor::new(name, shape.dtype, size.clone())).collect();
    let mut writer = SafetensorsWriter::create(dir, declared, u64::MAX).unwrap();
    for (name, size) in &tensors {
        let values = values(name, size.iter().product());
        let bytes: Vec<u8> = match shape.dtype {
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        writer.tensor(name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// A folder for a test, and the contracts.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub contracts: Contracts,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap(), contracts: Contracts::builtin().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The baseline model in the folder `m`.
    pub fn model(&self, shape: &Shape) -> PathBuf {
        let dir = self.path("m");
        write_model(&dir, shape, drawn(shape));
        dir
    }

    pub fn packed(&self, dir: &Path, container: Container) -> PathBuf {
        let target = self.path(&format!("artifact.{}", container.as_str()));
        pack(dir, &target, Packing { container, width: 4 }).unwrap();
        target
    }

    pub fn terms(&self) -> Terms<'_> {
        self.contracts.terms(TERNARY).unwrap()
    }

    /// Checks with these texts, each once.
    pub fn check(&self, artifact: &Path, texts: &[&str]) -> Report {
        self.check_with(artifact, &self.terms(), texts, CheckOptions::default())
    }

    pub fn check_with(&self, artifact: &Path, terms: &Terms<'_>, texts: &[&str], options: CheckOptions) -> Report {
        let choice = Choice::of(terms.choice, texts.len());
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        let exam = Exam::of(terms, texts, &choice, None).unwrap();
        check(artifact, terms, Some(&exam), &options, &|_| ()).unwrap()
    }
}

pub fn pool(texts: &[&str]) -> Pool {
    let document = |text: &&str| Document { text: (*text).to_owned(), categories: Vec::new() };
    Pool { path: "pool".into(), documents: texts.iter().map(document).collect() }
}

/// `verdict (reason)`.
pub fn outcome(report: &Report) -> String {
    let word = |value: serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    format!("{} ({})", word(json!(report.verdict)), word(json!(report.reason)))
}
