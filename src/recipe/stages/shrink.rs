//! Stages that take heads or neurons away: `prune`, `compact`.

use super::stage_type;
use crate::recipe::choices::choices;

choices! {
    /// What decides which heads go.
    PruneStrategy {
        Entropy = "entropy",
        Magnitude = "magnitude",
        Gradient = "gradient",
        Random = "random",
        ActivationMagnitude = "activation-magnitude",
        CalibrationAwareActivationCount = "calibration-aware-activation-count",
        PerLayerNormalizedRouterImportance = "per-layer-normalized-router-importance",
    }
}

stage_type! {
    /// Removes attention heads.
    Prune {
        required {
            /// What decides which heads go.
            strategy: PruneStrategy,
            /// Share of the heads to remove, 0 to 0.9.
            #[schemars(range(min = 0.0, max = 0.9))]
            level: f64,
        }
        optional {
            /// Query heads every layer keeps at least.
            #[schemars(range(min = 1))]
            min_heads_per_layer: u32 = 4,
            /// Key/value heads every layer keeps at least.
            #[schemars(range(min = 1))]
            min_kv_heads_per_layer: u32 = 2,
            /// Sequences of the corpus looked at to rank the heads.
            analysis_steps: u32 = 200,
            /// Text to rank the heads on: a name, a path, or the id of one of the recipe's calibrationCorpora. When not
            /// said, the first of these.
            calibration_corpus: String,
            /// File of that text, if it has another name.
            calibration_corpus_file: String,
            /// Where the strategy `random` starts.
            seed: u64 = 0,
            /// Rank within each layer instead of over the whole model.
            per_layer_normalized: bool,
            /// How the removed heads leave the tensors: `pad` (zeros, shapes stay) or `slice` (cut out, in whole groups).
            defrag_mode: String = "pad".to_owned(),
            /// Remarks for people.
            notes: String,
        }
    }
}

stage_type! {
    /// Sorts weights by how much they are used and stores the idle ones small.
    Compact {
        required {}
        optional {
            /// Use below this is dead.
            #[schemars(range(min = 0.0, max = 1.0))]
            dead_threshold: f64 = 0.1,
            /// Use below this is dormant.
            #[schemars(range(min = 0.0, max = 1.0))]
            dormant_threshold: f64 = 0.2,
            /// Use below this is low.
            #[schemars(range(min = 0.0, max = 1.0))]
            low_threshold: f64 = 0.3,
            /// Use below this is medium.
            #[schemars(range(min = 0.0, max = 1.0))]
            medium_threshold: f64 = 0.5,
            /// Use from this on is high.
            #[schemars(range(min = 0.0, max = 1.0))]
            high_threshold: f64 = 0.7,
            /// Size to reach, in GB (10^9 bytes).
            #[schemars(range(min = 0.0))]
            target_size_gb: f64,
            /// Store less used weights in fewer bits.
            enable_quantization: bool = true,
        }
    }
}
