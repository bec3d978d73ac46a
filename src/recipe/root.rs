//! The root of a recipe and its source, target, hardware, search and provenance blocks, as read.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::choices::choices;
use super::criteria::AcceptanceCriteria;
use super::results::AlloyResults;
use super::stages::StageSpec;

/// Unknown keys of an object, kept as they stand.
pub type Extra = Map<String, Value>;

/// Declares an object of the format: `required` keys are plain fields, `optional` ones are `Option` (null and absent
/// read the same), and unknown keys are kept in `extra`.
macro_rules! object {
    (
        $(#[$attr:meta])* $name:ident {
            required { $($(#[$required_attr:meta])* $required:ident : $required_type:ty,)* }
            optional { $($(#[$optional_attr:meta])* $optional:ident : $optional_type:ty,)* }
        }
    ) => {
        $(#[$attr])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            $($(#[$required_attr])* pub $required: $required_type,)*
            $(
                $(#[$optional_attr])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $optional: Option<$optional_type>,
            )*
            /// Keys this object does not know, kept as they stand.
            #[serde(flatten)]
            pub extra: $crate::recipe::root::Extra,
        }
    };
}
pub(crate) use object;

object! {
    /// A recipe ("alloy"): what a part shall become, and, once it is built, what became of it.
    Recipe {
        required {
            /// Name of the result; also names its artifact directory.
            #[schemars(length(min = 1))]
            name: String,
            /// Version of the recipe, `MAJOR.MINOR.PATCH`.
            #[schemars(regex(pattern = r"^\d+\.\d+\.\d+$"))]
            version: String,
            /// The model to start from.
            source: AlloySource,
            /// What is done to it, in order.
            #[serde(default, deserialize_with = "null_is_empty")]
            #[schemars(length(min = 1))]
            stages: Vec<StageSpec>,
        }
        optional {
            /// What the recipe does, for people.
            description: String,
            /// A longer text for the model card.
            user_summary: String,
            /// Who wrote it.
            author: String,
            /// Words to find it by.
            tags: Vec<String>,
            /// Licence of the result (default `apache-2.0`).
            license: String,
            /// Pick-up order on a line: higher first (default 0).
            priority: i64,
            /// What the result is meant to be, when the recipe is a change to a model and not a list of stages.
            target: AlloyTarget,
            /// How often the transforms are repeated (default 1).
            #[schemars(range(min = 1))]
            cycles: u32,
            /// What the result needs to run.
            hardware: AlloyHardware,
            /// What comes out.
            outputs: AlloyOutputs,
            /// How settings are searched for.
            search: SearchStrategy,
            /// What was measured. Filled in by whoever executes the recipe.
            results: AlloyResults,
            /// Where and when the result was published.
            receipt: AlloyReceipt,
            /// Identity of the recipe this one was made from.
            source_alloy_id: String,
            /// Models made with it.
            forged_model_ids: Vec<String>,
            /// What the result is not good at.
            limitations: Vec<String>,
            /// Where the method is described.
            methodology_paper_url: String,
            /// Calibration texts, with their hashes.
            calibration_corpora: Vec<CalibrationCorpusRef>,
            /// Earlier attempts with another metric, kept for comparison.
            prior_metric_baselines: Vec<PriorMetricBaseline>,
            /// What the result must reach.
            acceptance_criteria: AcceptanceCriteria,
            /// The published model this one is a rendering of.
            derived_from: DerivedFrom,
            /// Domain extensions the recipe uses (default `["llm-forge"]`).
            domains: Vec<String>,
        }
    }
}

impl Recipe {
    /// Pick-up order on a line: higher first.
    pub fn priority(&self) -> i64 {
        self.priority.unwrap_or(0)
    }
    /// How often the transforms are repeated.
    pub fn cycles(&self) -> u32 {
        self.cycles.unwrap_or(1)
    }
    /// Licence of the result.
    pub fn license(&self) -> &str {
        self.license.as_deref().unwrap_or("apache-2.0")
    }
}

object! {
    /// The model to start from.
    AlloySource {
        required {
            /// A path (absolute, or relative to the recipe or the line), a name from `[sources]` of the node, or a hub id.
            #[schemars(length(min = 1))]
            base_model: String,
            /// Model type, as the `model_type` of its `config.json` says.
            #[schemars(length(min = 1))]
            architecture: String,
        }
        optional {
            /// Commit or branch of the hub repository.
            revision: String,
            /// A mixture-of-experts model (default false).
            #[serde(rename = "isMoE")]
            is_moe: bool,
            /// Experts, over all layers or per layer as the author counts.
            total_experts: u64,
            /// Parameters, in 10^9.
            #[schemars(range(min = 0.0))]
            total_params_b: f64,
            /// Parameters one token uses, in 10^9.
            #[schemars(range(min = 0.0))]
            active_params_b: f64,
            /// Decoder layers.
            #[schemars(range(min = 1))]
            num_layers: u32,
            /// Routed experts of each layer.
            #[schemars(range(min = 1))]
            num_experts_per_layer: u32,
            /// Experts every token uses beside the routed ones.
            num_shared_experts: u32,
            /// Routed experts one token uses (top-k).
            #[schemars(range(min = 1))]
            num_activated_experts: u32,
            /// Layers at the start that have no experts.
            first_k_dense_replace: u32,
            /// Width of the residual stream.
            #[schemars(range(min = 1))]
            hidden_size: u64,
            /// Inner width of a dense feed-forward block.
            #[schemars(range(min = 1))]
            intermediate_size: u64,
            /// Inner width of one expert.
            #[schemars(range(min = 1))]
            moe_intermediate_size: u64,
            /// Context length in tokens.
            #[schemars(range(min = 1))]
            context_length: u64,
            /// Licence of the source.
            license: String,
        }
    }
}

object! {
    /// What the result is meant to be.
    AlloyTarget {
        required {}
        optional {
            /// Context length in tokens.
            context_length: u64,
            /// What goes in.
            modalities: Vec<String>,
            /// Field it is meant for.
            domain: String,
            /// Share of heads to remove.
            #[schemars(range(min = 0.0, max = 1.0))]
            prune_ratio: f64,
            /// Experts per layer to keep.
            experts: u32,
            /// File formats.
            output_formats: Vec<String>,
            /// Number formats.
            quant_types: Vec<String>,
            /// Devices it is meant for.
            target_devices: Vec<String>,
            /// Where to start it.
            deploy_to: Value,
            /// What to measure.
            benchmarks: Vec<Value>,
            /// Where to publish it.
            publish: Value,
        }
    }
}

object! {
    /// What the result needs to run.
    AlloyHardware {
        required {}
        optional {
            /// Device memory it runs in, in GB.
            #[schemars(range(min = 0.0))]
            min_vram_gb: f64,
            /// Device memory it runs well in, in GB.
            #[schemars(range(min = 0.0))]
            recommended_vram_gb: f64,
            /// How long the recipe takes, in minutes.
            #[schemars(range(min = 0.0))]
            estimated_duration_minutes: f64,
            /// Runs without a GPU (default false).
            #[serde(rename = "supportsCPU")]
            supports_cpu: bool,
            /// Devices it was tried on.
            tested_on: Vec<String>,
            /// Devices it is meant for.
            device_targets: Vec<String>,
        }
    }
}

object! {
    /// What comes out.
    AlloyOutputs {
        required {}
        optional {
            /// The files or documents.
            produces: Vec<OutputArtifact>,
        }
    }
}

object! {
    /// One thing that comes out.
    OutputArtifact {
        required {}
        optional {
            /// Kind: `safetensors`, `gguf`, `model-card`, …
            #[serde(rename = "type")]
            kind: String,
            /// For people.
            description: String,
        }
    }
}

choices! {
    /// How settings are searched for.
    SearchMethod {
        Manual = "manual",
        Binary = "binary",
        Ransac = "ransac",
        Bayesian = "bayesian",
        Exhaustive = "exhaustive",
        Adaptive = "adaptive",
    }
}

object! {
    /// How settings are searched for. Defaults: manual, 10 chunks, 5 candidates, 0.95, no LoRA, 500 steps, 0.85.
    SearchStrategy {
        required {}
        optional {
            /// The method.
            method: SearchMethod,
            /// Chunks of text of a quick look.
            #[schemars(range(min = 1, max = 50))]
            quick_eval_chunks: u32,
            /// Candidates to build.
            #[schemars(range(min = 1, max = 20))]
            max_candidates: u32,
            /// Confidence at which the search ends.
            #[schemars(range(min = 0.5, max = 0.999))]
            confidence_threshold: f64,
            /// Also try training adapters.
            try_compensation_lora: bool,
            /// Optimizer steps of that.
            #[schemars(range(min = 100, max = 5000))]
            lora_steps_if_needed: u32,
            /// Share of the experts a profile must have seen.
            #[schemars(range(min = 0.5, max = 0.99))]
            coverage_threshold: f64,
        }
    }
}

object! {
    /// Where and when the result was published. May be empty: published recipes with `"receipt": {}` exist.
    AlloyReceipt {
        required {}
        optional {
            /// Where it was published.
            publications: Vec<Publication>,
            /// Where to check it.
            verify_url: String,
            /// SHA-256 of the recipe's text without this block.
            alloy_hash: String,
            /// SHA-256 of the model card.
            card_hash: String,
            /// When, RFC 3339.
            issued_at: String,
        }
    }
}

object! {
    /// One place the result was published at.
    Publication {
        required {}
        optional {
            /// Kind of place, e.g. `huggingface`.
            target: String,
            /// Address.
            url: String,
            /// When, RFC 3339.
            published_at: String,
            /// How often it was fetched.
            downloads: u64,
        }
    }
}

object! {
    /// A calibration text.
    CalibrationCorpusRef {
        required {
            /// Name used by the stages.
            id: String,
            /// File.
            path: String,
        }
        optional {
            /// Name for people.
            name: String,
            /// SHA-256 of the file.
            sha256: String,
            /// Examples in it.
            examples: u64,
            /// Tokens in it.
            tokens: u64,
            /// What it is made of.
            distribution_summary: Value,
        }
    }
}

object! {
    /// An earlier attempt with another metric.
    PriorMetricBaseline {
        required {}
        optional {
            /// Name of the attempt.
            id: String,
            /// Name for people.
            name: String,
            /// The metric: its name, or an object that describes it.
            metric: Value,
            /// How it was measured.
            evaluation: Value,
            /// How it was pruned.
            prune: Value,
            /// What was measured.
            results: Value,
            /// Where the answers are.
            samples_path: String,
            /// `shipped`, `negative_baseline` or `superseded`.
            outcome: String,
            /// The attempt that replaced it.
            superseded_by: String,
            /// Where the method is described.
            methodology_anchor: String,
            /// Remarks for people.
            notes: String,
        }
    }
}

object! {
    /// The published model this one is a rendering of.
    DerivedFrom {
        required {}
        optional {
            /// Its repository.
            repo: String,
            /// Hash of its recipe.
            alloy_hash: String,
            /// `defragged`, `gguf`, `mlx-4bit`, …
            kind: String,
        }
    }
}

/// A number that some writers put in double quotes (`"2e-4"`, `"3.8B"`), as written.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum NumberOrText {
    Number(f64),
    Text(String),
}

impl NumberOrText {
    /// The number it stands for, if its text is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            NumberOrText::Number(x) => Some(*x),
            NumberOrText::Text(text) => text.trim().parse().ok().filter(|x: &f64| x.is_finite()),
        }
    }
}

impl<'de> Deserialize<'de> for NumberOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = NumberOrText;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a number, or a text with a number in it")
            }
            fn visit_u64<E>(self, n: u64) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Number(n as f64))
            }
            fn visit_i64<E>(self, n: i64) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Number(n as f64))
            }
            fn visit_f64<E>(self, x: f64) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Number(x))
            }
            fn visit_str<E>(self, text: &str) -> Result<NumberOrText, E> {
                Ok(NumberOrText::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `"stages": null` reads as no stages.
fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<StageSpec>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
