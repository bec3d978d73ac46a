//! A recipe as meant: every default filled in, every input found, hashed and sized. Written to `<work>/plan.json`
//! before anything runs; below admission only the plan is looked at.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::finding::Finding;
use crate::units::{Bytes, Sha};

/// Version of the layout of `plan.json`. Readers refuse a plan of a version they do not know.
pub const PLAN_VERSION: u32 = 1;

/// What will be done to a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub plan_version: u32,
    /// Name of the part, without retry counter.
    pub part: String,
    /// Name of the result, from the recipe.
    pub name: String,
    /// Identity of the recipe: SHA-256 of its bytes.
    pub alloy_hash: Sha,
    /// How often the transforms are repeated.
    pub cycles: u32,
    pub source: ResolvedSource,
    /// Calibration and evaluation texts.
    pub texts: Vec<ResolvedText>,
    /// Device the engine computes on, e.g. `cpu` or `cuda:0`.
    pub device: String,
    /// What the engine may hold at a time.
    pub memory_budget: Bytes,
    pub predicted: Predicted,
    pub stages: Vec<PlannedStage>,
    /// Warnings and notes that admission had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// The model a part starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedSource {
    /// `source.baseModel` as written.
    pub base_model: String,
    /// Where it was found.
    pub path: PathBuf,
    pub found: Found,
    /// Commit of a hub snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Model family that reads it.
    pub family: String,
    /// Every file of the model, sorted by name.
    pub files: Vec<InputFile>,
    pub total: Bytes,
    /// Hash over the weight files, as published.
    pub model_hash: Sha,
}

/// How an input was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// The recipe gave an absolute path.
    AbsolutePath,
    /// Relative to the recipe's folder.
    BesideRecipe,
    /// Relative to the root of the line.
    UnderLine,
    /// A name under `calibration/` of the line.
    CalibrationFolder,
    /// A name from `[sources]` of `factory_node.toml`.
    NodeSource,
    /// A snapshot in the local Hugging Face cache.
    HubCache,
}

/// One file, hashed and sized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Name relative to the directory of the input.
    pub name: String,
    pub size: Bytes,
    pub sha256: Sha,
}

/// A text that a stage reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedText {
    /// As written in the recipe.
    pub named: String,
    /// Key path of the mention, e.g. `stages[3].benchmarks[0].data`.
    pub key: String,
    pub path: PathBuf,
    pub found: Found,
    pub size: Bytes,
    pub sha256: Sha,
}

/// What something is expected to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Highest resident memory.
    pub peak_ram: Bytes,
    /// Bytes written to disk.
    pub disk: Bytes,
    pub seconds: f64,
}

impl Predicted {
    /// One after the other: the higher peak, the sums of disk and time.
    pub fn then(self, next: Predicted) -> Predicted {
        Predicted {
            peak_ram: self.peak_ram.max(next.peak_ram),
            disk: self.disk + next.disk,
            seconds: self.seconds + next.seconds,
        }
    }
}

/// One stage, ready to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// Place in the recipe's `stages`, from 0.
    pub index: usize,
    /// The stage type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// One line for people, e.g. `quant gguf Q8_0, Q4_0`.
    pub title: String,
    /// The stage's keys with every default filled in (see [`StageSpec::resolved`](super::StageSpec::resolved)).
    pub resolved: Value,
    /// What it reads: names of texts or of earlier stages' outputs.
    pub inputs: Vec<String>,
    /// What it writes, relative to the work directory.
    pub outputs: Vec<String>,
    pub predicted: Predicted,
}

impl Plan {
    /// The text of `plan.json`, ending in a newline.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}
