//! Stages of mixture-of-experts models: `expert-activation-profile`, `expert-prune`.

use super::stage_type;
use crate::recipe::choices::choices;

choices! {
    /// What is counted for each expert.
    ExpertMetric {
        /// How many tokens the router sends to it.
        ActivationCount = "activation_count",
        /// The L2 norm of its row in the router; needs no calibration text.
        RouterL2 = "router_l2",
        /// How large its outputs are on the calibration text.
        ActivationMagnitude = "activation_magnitude",
    }
}

stage_type! {
    /// Runs a calibration text through the model and counts, per layer, what the router does with each expert.
    ExpertActivationProfile {
        required {
            /// Name of the calibration text; also looked for as a file under `calibration/` of the line.
            calibration_corpus: String,
        }
        optional {
            /// What is counted.
            metric: ExpertMetric = ExpertMetric::ActivationCount,
            /// Longest sequence, in tokens.
            #[schemars(range(min = 128))]
            max_length: u32 = 2048,
            /// Device to run on, instead of the node's choice.
            device: String,
            /// File name for the counts, beside the artifact.
            importance_output: String,
            /// File of the calibration text, instead of looking for its name.
            calibration_corpus_file: String,
            /// Examples (lines, documents) to use; all when not said.
            #[schemars(range(min = 1))]
            calibration_examples: u64,
            /// Tokens to use; all when not said.
            #[schemars(range(min = 1))]
            calibration_tokens: u64,
            /// Version of the metric's definition.
            metric_version: String,
            /// What made the counts, in the words of whoever did.
            implementation: String,
            /// Remarks for people.
            notes: String,
        }
    }
}

choices! {
    /// How a checkpoint stores its experts.
    ExpertTensorLayout {
        /// Read it off the model.
        Auto = "auto",
        /// `mlp.experts.N.{gate,up,down}_proj`, one tensor each.
        MlpExpertsUnfused = "mlp-experts-unfused",
        /// `block_sparse_moe.experts.N.{w1,w2,w3}`, one tensor each.
        BlockSparseMoeUnfused = "block_sparse_moe-unfused",
        /// All experts of a layer in one tensor.
        GraniteMoeFused = "granite-moe-fused",
        /// Routed experts beside shared ones that stay.
        DeepseekRoutedShared = "deepseek-routed-shared",
    }
}

stage_type! {
    /// Keeps the most important experts of each layer and removes the others.
    ExpertPrune {
        required {}
        optional {
            /// Older name of `keepExpertsPerLayer`.
            #[schemars(range(min = 1))]
            keep_experts: u32,
            /// Experts each layer keeps.
            #[schemars(range(min = 1))]
            keep_experts_per_layer: u32,
            /// Experts each layer has before; checked against the model.
            #[schemars(range(min = 1))]
            original_experts_per_layer: u32,
            /// How experts are ranked, in words.
            strategy: String,
            /// How survivors are chosen from the ranking.
            selection_strategy: String,
            /// What experts are ranked by; the profile's metric when not said.
            metric: String,
            /// Where the ranking comes from, in words.
            metric_source: String,
            /// Older way to name the profile's data set.
            profile_dataset: String,
            /// Older way to limit the profile.
            profile_steps: u32 = 100,
            /// File with ready counts; replaces a profile stage.
            importance_json: String,
            /// How the checkpoint stores its experts.
            expert_tensor_layout: ExpertTensorLayout = ExpertTensorLayout::Auto,
            /// Name of the calibration text the ranking rests on.
            calibration_corpus: String,
            /// Rank within each layer (always so here).
            per_layer_normalized: bool,
            /// Share of the experts removed, in percent (0 to 100).
            #[schemars(range(min = 0.0, max = 100.0))]
            prune_pct: f64,
            /// Experts removed, over all layers.
            experts_dropped: u64,
            /// Experts that got a new number, over all layers.
            experts_renamed: u64,
            /// Layers whose router lost rows.
            router_sliced_layers: u64,
            /// What did it, in the words of whoever did.
            implementation: String,
            /// Why, for people.
            rationale: String,
            /// Remarks for people.
            notes: String,
        }
    }
}

impl ExpertPrune {
    /// Experts each layer keeps: `keepExpertsPerLayer`, else `keepExperts`.
    pub fn keep(&self) -> Option<u32> {
        self.keep_experts_per_layer.or(self.keep_experts)
    }

    /// The key that [`keep`](Self::keep) was read from.
    pub fn keep_key(&self) -> &'static str {
        if self.keep_experts_per_layer.is_none() && self.keep_experts.is_some() {
            "keepExperts"
        } else {
            "keepExpertsPerLayer"
        }
    }

    /// What experts are ranked by, as far as the stage itself says: `metric`, else what `strategy` implies.
    /// `None`: whatever the profile before it counted.
    pub fn ranking(&self) -> Option<ExpertMetric> {
        if let Some(metric) = &self.metric {
            return Some(ExpertMetric::from(metric.as_str()));
        }
        match self.strategy.as_deref()? {
            "calibration-aware-activation-count" => Some(ExpertMetric::ActivationCount),
            "activation-magnitude" => Some(ExpertMetric::ActivationMagnitude),
            "per-layer-normalized-router-importance" => Some(ExpertMetric::RouterL2),
            _ => None,
        }
    }

    /// True when the ranking comes from a profile stage before this one: neither a file nor the router's weights.
    pub fn needs_profile(&self) -> bool {
        self.importance_json.is_none() && self.ranking() != Some(ExpertMetric::RouterL2)
    }
}
