//! What a result must reach: `acceptanceCriteria`.
//!
//! Two traps of the format are kept and checked for: `min` is a fraction (0 to 1) while published scores are percent,
//! and `anchorDelta` is in percentage points.

use std::collections::BTreeMap;

use super::root::object;

object! {
    /// What the result must reach to be finished. All parts must hold.
    AcceptanceCriteria {
        required {}
        optional {
            /// Lowest scores, by benchmark.
            benchmarks: BTreeMap<String, BenchmarkCriterion>,
            /// What it must run in.
            hardware: HardwareCriterion,
            /// What must be proven.
            integrity: IntegrityCriterion,
            /// How far it may stray from the base.
            divergence: DivergenceCriterion,
            /// Highest perplexity.
            perplexity: PerplexityCriterion,
            /// Largest file.
            size: SizeCriterion,
            /// Remarks for people.
            notes: String,
        }
    }
}

object! {
    /// The floor of one benchmark.
    BenchmarkCriterion {
        required {
            /// Lowest score, as a fraction from 0 to 1.
            min: f64,
        }
        optional {
            /// How far the score may lie from the base's, in percentage points; negative allows a loss.
            #[schemars(range(min = -100.0, max = 100.0))]
            anchor_delta: f64,
            /// Benchmark of the base to compare with; this one when not said.
            anchor_benchmark: String,
            /// Remarks for people.
            notes: String,
        }
    }
}

object! {
    /// What the result must run in.
    HardwareCriterion {
        required {}
        optional {
            /// Device memory, in GB.
            #[schemars(range(min = 0.0))]
            max_vram_gb: f64,
            /// Name of the device class.
            device_tier: String,
        }
    }
}

object! {
    /// What must be proven.
    IntegrityCriterion {
        required {}
        optional {
            /// The result must carry a model hash (default false).
            model_hash_required: bool,
            /// Every score must name the answers it was computed from (default false).
            samples_path_required: bool,
        }
    }
}

object! {
    /// How far the result may stray from the base, on held-out text.
    DivergenceCriterion {
        required {}
        optional {
            /// Highest mean KL divergence from the base, in nats per token.
            #[schemars(range(min = 0.0))]
            max_kld: f64,
            /// Lowest share of tokens for which base and result think the same next token best, from 0 to 1.
            #[schemars(range(min = 0.0, max = 1.0))]
            min_same_top1: f64,
        }
    }
}

object! {
    /// The ceiling on perplexity.
    PerplexityCriterion {
        required {}
        optional {
            /// Highest perplexity of the result.
            #[schemars(range(min = 1.0))]
            max: f64,
        }
    }
}

object! {
    /// The ceiling on size.
    SizeCriterion {
        required {}
        optional {
            /// Largest file of the result, in GB (10^9 bytes).
            #[schemars(range(min = 0.0))]
            max_gb: f64,
        }
    }
}
