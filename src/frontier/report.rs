//! What a check found: for people, for scripts, and as the result file the benchmarks write.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use super::budget::{Budget, artifact_bits};
use super::container::Container;
use super::contract::{Evidence, Terms};
use super::documents::Handle;
use super::plan::PlanFigures;
use super::scoring::Score;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything was checked and holds.
    Accepted,
    /// Everything holds that was checked; there is no score.
    Unscored,
    /// It misses a limit of the contract.
    Rejected,
    /// It cannot be judged.
    Error,
}

/// The limit that was missed, by the code the benchmarks print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Larger than any model of the contract may be.
    ArtifactSize,
    /// Too many parameters.
    ParameterCount,
    /// Larger than a model of so many parameters may be.
    QuantizedSize,
    /// The perplexity is not a positive number.
    HeldoutPpl,
    /// Too many weights outside the native levels.
    HighPrecisionFraction,
    /// The plan's bits, scaled to the reference, are too many.
    CompressedSize,
}

/// Sizes and limits of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sizes {
    pub bytes: u64,
    /// `bytes` was said, not measured.
    pub overridden: bool,
    pub bits: u64,
    /// Of a file.
    pub sha256: Option<String>,
    pub parameters: Option<u64>,
    pub bits_per_parameter: Option<f64>,
    /// What a model of so many parameters may weigh.
    pub max_model_bits: Option<u64>,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub artifact: PathBuf,
    pub contract: String,
    pub verdict: Verdict,
    /// Of a rejection.
    pub reason: Option<Reason>,
    /// What is wrong, in words.
    pub message: Option<String>,
    pub hint: Option<String>,
    pub container: Option<Container>,
    pub size: Sizes,
    pub budget: Budget,
    pub score: Option<Score>,
    /// Scorer and where it had its tokens from.
    pub scorer: String,
    pub tokenizer: Option<String>,
    pub documents: Option<Handle>,
    /// Figures of a plan.
    pub plan: Option<PlanFigures>,
    /// How sure it is that the live contract scores so.
    pub scorer_evidence: Evidence,
    pub acceptance_evidence: Evidence,
    /// What the contract asks for and this check cannot see.
    pub unchecked: Vec<String>,
    pub warnings: Vec<String>,
}

impl Report {
    pub(super) fn new(artifact: PathBuf, terms: &Terms<'_>) -> Report {
        Report {
            artifact,
            contract: terms.contract.id.clone(),
            verdict: Verdict::Unscored,
            reason: None,
            message: None,
            hint: None,
            container: None,
            size: Sizes {
                bytes: 0,
                overridden: false,
                bits: 0,
                sha256: None,
                parameters: None,
                bits_per_parameter: None,
                max_model_bits: None,
            },
            budget: Budget::of(terms),
            score: None,
            scorer: terms.scorer.name.clone(),
            tokenizer: None,
            documents: None,
            plan: None,
            scorer_evidence: terms.contract.scorer_evidence,
            acceptance_evidence: terms.contract.acceptance_evidence,
            unchecked: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn set_bytes(&mut self, bytes: u64, overridden: bool) {
        (self.size.bytes, self.size.bits, self.size.overridden) = (bytes, artifact_bits(bytes), overridden);
    }

    pub(super) fn reject(&mut self, reason: Reason, message: String) {
        (self.verdict, self.reason, self.message) = (Verdict::Rejected, Some(reason), Some(message));
    }

    /// The result file of the direct benchmarks: keys sorted, two spaces; what was not measured is null.
    pub fn last_run(&self, terms: &Terms<'_>) -> String {
        let (contract, rescue, size) = (terms.contract, terms.rescue, &self.size);
        let score = self.score.as_ref();
        let number = |value: Option<f64>| value.filter(|value| value.is_finite()).map_or(Value::Null, |v| json!(v));
        let count = |value: Option<u64>| number(value.map(|value| value as f64));
        let reference_bytes = contract.reference_parameters as f64 * contract.reference_bits as f64 / 8.0;
        let handle = self.documents.as_ref().map_or(Value::Null, |handle| json!(handle));
        let fields = json!({
            "pack_name": contract.pack,
            "model_id": self.artifact.file_name().map(|name| name.to_string_lossy()),
            "reference_model_id": contract.reference_model,
            "metric_name": contract.metric,
            "metric_value": number(score.map(|s| s.perplexity)),
            "metrics": {
                "heldout_ppl": number(score.map(|s| s.perplexity)),
                "heldout_cross_entropy_nats": number(score.map(|s| s.cross_entropy_nats)),
                "parameter_count": count(size.parameters),
                "compressed_bits": size.bits as f64,
                "compressed_size_bytes": size.bytes as f64,
                "artifact_bits_per_parameter": number(size.bits_per_parameter),
                "max_artifact_bits_per_parameter": self.budget.bits_per_parameter,
                "baseline_parameter_count": contract.reference_parameters as f64,
                "baseline_size_bytes": reference_bytes,
                "submission_artifact_bytes": size.bytes as f64,
                "scored_docs": count(score.map(|s| s.documents as u64)),
                "token_count": count(score.map(|s| s.tokens)),
            },
            "secondary_metric_name": contract.secondary_metric,
            "secondary_metric_value": null,
            "parameter_count": size.parameters,
            "compressed_bits": size.bits,
            "compressed_size_bytes": size.bytes,
            "native_bits_per_parameter": contract.native_bits,
            "max_non_native_fraction": contract.max_rescue_fraction,
            "rescue_bits_per_parameter": rescue.code_bits,
            "rescue_quantization": rescue.name,
            "rescue_scale_bits": rescue.scale_bits,
            "rescue_scale_group_size": rescue.scale_group,
            "effective_rescue_bits_per_parameter": rescue.effective_bits(),
            "artifact_bits_per_parameter": number(size.bits_per_parameter),
            "max_artifact_bits_per_parameter": self.budget.bits_per_parameter,
            "max_reference_artifact_bits": self.budget.max_reference_bits,
            "max_model_artifact_bits": size.max_model_bits,
            "dataset_handle": handle,
            "runtime": {
                "device": "cpu",
                "dtype": "float32",
                "max_tokens_per_doc": contract.max_tokens,
                "batch_size": terms.scorer.batch.unwrap_or(1),
                "tokenizer_id": self.tokenizer,
            },
        });
        let text = serde_json::to_string_pretty(&sorted(&fields)).unwrap_or_default();
        text + "\n"
    }
}

/// The same value with the keys of every object in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<&String, Value> = fields.iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(fields.into_iter().map(|(key, value)| (key.clone(), value)).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}
