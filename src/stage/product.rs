//! What a stage hands on: files in the work folder, and what they are. Kept in the checkpoint, so that a stage that is
//! skipped after a crash leaves the context as if it had run.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::assay::Divergence;
use crate::gate::Evidence;
use crate::units::Sha;

/// The key of a stage's details, and of an executed recipe's results, under which pruned layers are summed up.
pub const LAYER_IMPORTANCE: &str = "layerImportance";

/// One file or directory that ships.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// Relative to the work folder: a GGUF file or a model directory.
    pub path: PathBuf,
    /// `gguf`, `safetensors` or `frontier`.
    pub format: String,
    /// The type asked for, e.g. `Q8_0` or `W4A16 g128`; the source's own type for a pruned directory.
    #[serde(rename = "type")]
    pub dtype: String,
    /// Bytes of all weight files, headers included.
    pub bytes: u64,
    /// Parameters stored; a tied head counts once.
    pub parameters: u64,
    /// Parameters one token meets.
    pub active_parameters: u64,
    /// Whole file: 8 × bytes ÷ parameters.
    pub bits_per_weight: f64,
    /// The directory packed for a contract, relative to the work folder; it ships beside it, and `bytes` are its.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<PathBuf>,
    /// Made by a quant stage: it ships beside others of its kind, and before directories of other stages.
    #[serde(default)]
    pub quantized: bool,
    /// Types of the tensors of a quantized file, the most bytes first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<TypeShare>,
    /// Tensors that could not take the type the mix has for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<TensorFallback>,
}

/// How much of a file is of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeShare {
    #[serde(rename = "type")]
    pub dtype: String,
    pub tensors: usize,
    pub bytes: u64,
}

/// A tensor whose rows are no whole number of blocks of the type asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorFallback {
    pub tensor: String,
    pub wanted: String,
    pub given: String,
}

/// One scored text on one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub benchmark: String,
    /// The artifact measured, relative to the work folder; `None`: the source model.
    pub artifact: Option<PathBuf>,
    pub convention: String,
    pub context: usize,
    /// Tokens scored.
    pub tokens: u64,
    /// Mean negative log-likelihood per scored token, nats.
    pub nll: f64,
    pub nll_stderr: f64,
    pub perplexity: f64,
    /// Of the pass; models measured beside each other share one.
    pub seconds: f64,
    pub data_sha256: String,
    /// The model it was compared with: the source, as the recipe names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// What the artifact loses against that model, which was measured beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
}

/// The outcome of one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Product {
    /// Every file written, relative to the work folder; hashed into the checkpoint.
    pub files: Vec<PathBuf>,
    /// Hashes of files that their writer made while writing; the others are read again.
    #[serde(skip)]
    pub known_hashes: HashMap<PathBuf, Sha>,
    /// The importance table, for a later prune.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance: Option<PathBuf>,
    /// A model directory that replaces the current model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Artifacts added.
    pub artifacts: Vec<Artifact>,
    pub measurements: Vec<Measurement>,
    pub evidence: Vec<Evidence>,
    /// Seconds of the stage that went into its gates: reading back, proving, scoring.
    pub gate_s: f64,
    /// The artifact folder, once laid out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packaged: Option<PathBuf>,
    pub warnings: Vec<String>,
    /// What the stage decided and found, for its record in the result.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub details: serde_json::Map<String, serde_json::Value>,
    /// One line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}
