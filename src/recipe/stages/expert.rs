//! Stages of mixture-of-experts models: `expert-activation-profile`, `expert-prune`.

use super::stage_type;
use crate::recipe::choices::choices;

choices! {
    /// What experts are ranked by. X are the tokens routed to an expert, f(x) its output, g(x) its weight in the mixture.
    ExpertMetric {
        /// How many tokens the router sends to it.
        ActivationCount = "activation_count",
        /// Sum of g(x) over X.
        WeightedCount = "weighted_count",
        /// Sum of the norms of f(x) over X.
        EanSum = "ean_sum",
        /// Mean norm of f(x) over X.
        EanMean = "ean_mean",
        /// Mean squared norm of f(x) over X.
        Msan = "msan",
        /// Sum of g(x) times the norm of f(x) over X.
        WeightedEanSum = "weighted_ean_sum",
        /// Mean of g(x) times the norm of f(x) over X.
        Reap = "reap",
        /// Largest absolute element of any f(x).
        MaxActivation = "max_activation",
        /// The L2 norm of its row in the router; needs no calibration text.
        RouterL2 = "router_l2",
        /// Mean absolute weight over root mean square, the highest removed; needs no calibration text.
        Aimer = "aimer",
        /// Older name of `ean_mean`.
        ActivationMagnitude = "activation_magnitude",
    }
}

/// Names that published recipes and papers give to the rankings of [`ExpertMetric`]; hyphens count as underscores.
const ALIASES: &[(&str, ExpertMetric)] = &[
    ("calibration_aware_activation_count", ExpertMetric::ActivationCount),
    ("frequency", ExpertMetric::ActivationCount),
    ("weighted_frequency", ExpertMetric::WeightedCount),
    ("weighted_frequency_sum", ExpertMetric::WeightedCount),
    ("ean", ExpertMetric::EanSum),
    ("man", ExpertMetric::EanMean),
    ("activation_magnitude", ExpertMetric::EanMean),
    ("max_activations", ExpertMetric::MaxActivation),
    ("per_layer_normalized_router_importance", ExpertMetric::RouterL2),
    ("router_norm", ExpertMetric::RouterL2),
];

/// The strategy that compares several rankings and takes the best.
pub const BEST_OF_FAMILY: &str = "best-of-family";

/// The rankings that `best-of-family` compares when the recipe does not say.
const FAMILY: &[&str] =
    &["reap", "ean_mean", "msan", "ean_sum", "weighted_ean_sum", "activation_count", "router_l2", "aimer"];

impl ExpertMetric {
    /// The ranking of this name or alias; [`ExpertMetric::Other`] for any other word.
    pub fn named(word: &str) -> Self {
        let plain = word.trim().to_ascii_lowercase().replace('-', "_");
        let alias = ALIASES.iter().find(|(alias, _)| *alias == plain).map(|(_, metric)| metric.clone());
        alias.unwrap_or_else(|| match Self::from(plain.as_str()) {
            Self::Other(_) => Self::Other(word.to_owned()),
            known => known,
        })
    }

    /// The weights alone give the ranking.
    pub fn is_weight_only(&self) -> bool {
        matches!(self, Self::RouterL2 | Self::Aimer)
    }
}

/// How a prune ranks experts.
#[derive(Clone, Debug, PartialEq)]
pub enum Ranking {
    One(ExpertMetric),
    /// Each of these; the one whose survivors stay nearest to the whole model is taken.
    BestOf(Vec<ExpertMetric>),
}

impl Ranking {
    /// The rankings to look at.
    pub fn metrics(&self) -> &[ExpertMetric] {
        match self {
            Ranking::One(metric) => std::slice::from_ref(metric),
            Ranking::BestOf(metrics) => metrics,
        }
    }
}

stage_type! {
    /// Runs a calibration text through the model and gathers, per layer, what the router does with each expert and how
    /// large its outputs are. The last sixteenth of the text (32 to 4096 tokens) is left for judging what rests on it.
    ExpertActivationProfile {
        required {
            /// Name of the calibration text; also looked for as a file under `calibration/` of the line.
            calibration_corpus: String,
        }
        optional {
            /// What a later prune ranks by when it does not say; the profile gathers every score whatever this is.
            metric: ExpertMetric = ExpertMetric::ActivationCount,
            /// Experts that see fewer tokens than this are named in a warning and in the result.
            min_observations: u64 = 32,
            /// Longest sequence, in tokens.
            #[schemars(range(min = 128))]
            max_length: u32 = 2048,
            /// Device to run on, instead of the node's choice.
            device: String,
            /// File name for the scores, beside the artifact.
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
            /// How experts are ranked: a ranking's name, or `best-of-family`, which compares `candidates`.
            strategy: String,
            /// Older way to say `strategy`.
            selection_strategy: String,
            /// What experts are ranked by; else what `strategy` says; else the profile's metric.
            metric: String,
            /// The rankings that `best-of-family` compares on held-out text.
            candidates: Vec<String>,
            /// Text the damage is estimated on before anything is written; the end of the profile's text, which the
            /// profile does not see, when not said.
            held_out: String,
            /// Tokens of held-out text used at most.
            #[schemars(range(min = 2))]
            held_out_tokens: u64 = 4096,
            /// Mean KL divergence from the unpruned model, in nats per token, above which nothing is written.
            #[schemars(range(min = 0.0))]
            max_kld: f64,
            /// Stop before writing when perplexity rises by more than a tenth and by more than 1.
            quality_halt: bool = false,
            /// Fit the kept router rows to what the whole mixture does; kept only if held-out divergence falls.
            router_kd: bool = false,
            /// Where the ranking comes from, in words.
            metric_source: String,
            /// Older way to name the profile's data set.
            profile_dataset: String,
            /// Older way to limit the profile.
            profile_steps: u32 = 100,
            /// File with ready scores or counts; replaces a profile stage.
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

    /// How experts are ranked, as far as the stage itself says: `metric`, else `strategy`, else `selectionStrategy` (of
    /// the latter two only words that name a ranking). `None`: by the metric of the profile before it.
    pub fn ranking(&self) -> Option<Ranking> {
        let words = [&self.metric, &self.strategy, &self.selection_strategy];
        let is_best = |word: &str| word.trim().to_ascii_lowercase().replace('_', "-") == BEST_OF_FAMILY;
        if words.into_iter().flatten().any(|word| is_best(word)) {
            let named = |words: &mut dyn Iterator<Item = &str>| words.map(ExpertMetric::named).collect();
            return Some(Ranking::BestOf(match &self.candidates {
                Some(words) => named(&mut words.iter().map(String::as_str)),
                None => named(&mut FAMILY.iter().copied()),
            }));
        }
        let of_strategy = words[1..].iter().filter_map(|word| word.as_deref()).map(ExpertMetric::named);
        let metric = self.metric.as_deref().map(ExpertMetric::named);
        metric.or_else(|| of_strategy.into_iter().find(ExpertMetric::is_known)).map(Ranking::One)
    }

    /// True when the ranking comes from a profile stage before this one: neither a file nor the weights alone.
    pub fn needs_profile(&self) -> bool {
        let weight_only = |ranking: Ranking| ranking.metrics().iter().all(ExpertMetric::is_weight_only);
        self.importance_json.is_none() && !self.ranking().is_some_and(weight_only)
    }

    /// True when the stage asks for something that rests on held-out text.
    pub fn needs_held_out(&self) -> bool {
        matches!(self.ranking(), Some(Ranking::BestOf(_)))
            || self.max_kld.is_some()
            || self.quality_halt()
            || self.router_kd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(keys: serde_json::Value) -> Option<Ranking> {
        serde_json::from_value::<ExpertPrune>(keys).unwrap().ranking()
    }

    #[test]
    fn published_words_name_a_ranking() {
        use serde_json::json;
        let one = |metric| Some(Ranking::One(metric));
        let published = json!({ "strategy": "calibration-aware-activation-count" });
        assert_eq!(ranking(published), one(ExpertMetric::ActivationCount));
        assert_eq!(ranking(json!({ "selectionStrategy": "MAN" })), one(ExpertMetric::EanMean));
        assert_eq!(
            ranking(json!({ "strategy": "top-k", "metric": "max-activations" })),
            one(ExpertMetric::MaxActivation)
        );
        assert_eq!(ranking(json!({ "strategy": "in words" })), None);
        assert_eq!(ranking(json!({ "metric": "reab" })), one(ExpertMetric::Other("reab".into())));
        let best = ranking(json!({ "strategy": "best-of-family", "candidates": ["reap", "frequency"] }));
        assert_eq!(best, Some(Ranking::BestOf(vec![ExpertMetric::Reap, ExpertMetric::ActivationCount])));
        let family = ranking(json!({ "strategy": "best-of-family" })).unwrap();
        assert!(family.metrics().iter().all(ExpertMetric::is_known));
    }
}
