//! The stage that measures: `eval`, and what its runners read.

use serde_json::{Map, Value};

use super::stage_type;
use crate::recipe::choices::choices;

stage_type! {
    /// Scores the result (and the base) on benchmarks.
    Eval {
        required {
            /// What to run.
            #[schemars(length(min = 1))]
            benchmarks: Vec<BenchmarkDef>,
        }
        optional {
            /// Lowest score that passes, in percent (0 to 100).
            #[schemars(range(min = 0.0, max = 100.0))]
            passing_threshold: f64,
            /// Score the base in the same run.
            compare_to_base: bool = true,
            /// A published figure to calibrate the measurement against.
            calibration_anchor: Value,
            /// Remarks for people.
            notes: String,
        }
    }
}

choices! {
    /// Which tokens of a text are scored, and with how much context.
    PerplexityConvention {
        /// Non-overlapping windows; every token but each window's first is scored.
        Windowed = "windowed",
        /// Non-overlapping windows; the second half of each is scored, as llama.cpp's perplexity tool does.
        LlamaCpp = "llama.cpp",
    }
}

stage_type! {
    /// One benchmark of an `eval` stage.
    BenchmarkDef {
        required {
            /// Name of the runner: `perplexity` or `divergence`.
            name: String,
        }
        optional {
            /// Part of the benchmark to run.
            subset: String,
            /// Worked examples before each question.
            n_shot: u32,
            /// Send the score to a leaderboard.
            submit_to_leaderboard: bool = false,
            /// Where the answers of the result are written.
            samples_path: String,
            /// Where the answers of the base are written.
            base_samples_path: String,
            /// A published figure to calibrate the measurement against.
            calibration_anchor: Value,
            /// Remarks for people.
            notes: String,
            /// The text to score, a path or a name under `calibration/` of the line.
            data: String,
            /// Window length in tokens.
            #[schemars(range(min = 2))]
            context: u32 = 512,
            /// Which tokens are scored.
            convention: PerplexityConvention = PerplexityConvention::LlamaCpp,
            /// Use only this many tokens from the start of the text.
            #[schemars(range(min = 2))]
            max_tokens: u64,
        }
    }
}

/// The benchmark that scores a text.
pub const PERPLEXITY: &str = "perplexity";
/// The benchmark that scores a text and compares with the base, whatever [`Eval::compare_to_base`] says.
pub const DIVERGENCE: &str = "divergence";

/// What the runners that score a text need, defaults filled in.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TextSpec {
    /// The text to score: a path, or a name under `calibration/` of the line.
    pub data: String,
    /// Window length in tokens.
    pub context: u32,
    pub convention: PerplexityConvention,
    /// Use only this many tokens from the start of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
}

impl Eval {
    /// True when the base is measured beside the result on this benchmark, and the result's divergence from it.
    pub fn compares(&self, benchmark: &BenchmarkDef) -> bool {
        match benchmark.name.as_str() {
            DIVERGENCE => true,
            PERPLEXITY => self.compare_to_base(),
            _ => false,
        }
    }
}

impl BenchmarkDef {
    /// True for the benchmarks that score a text.
    pub fn reads_text(&self) -> bool {
        [PERPLEXITY, DIVERGENCE].contains(&self.name.as_str())
    }

    /// What to do when this scores a text and says which, else `None`.
    pub fn on_text(&self) -> Option<TextSpec> {
        if !self.reads_text() {
            return None;
        }
        Some(TextSpec {
            data: self.data.clone()?,
            context: self.context(),
            convention: self.convention(),
            max_tokens: self.max_tokens,
        })
    }

    /// The keys of this benchmark with defaults filled in, without the runner keys that do not concern it.
    pub fn resolved(&self) -> Map<String, Value> {
        let mut map = super::spec::fill_defaults(self);
        if !self.reads_text() {
            map.retain(|key, _| !["context", "convention"].contains(&key.as_str()) || self.states(key));
        }
        map
    }

    fn states(&self, key: &str) -> bool {
        match key {
            "context" => self.context.is_some(),
            "convention" => self.convention.is_some(),
            _ => false,
        }
    }
}
