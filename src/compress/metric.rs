//! The scores experts are ranked by. One profile pass gathers all of them; two need no calibration text.

use serde::{Deserialize, Serialize};

/// What an expert's score is made of. Of an expert j, X are the tokens routed to it, f(x) its output before the gate and
/// g(x) its weight in the mixture, as the model uses it (renormalised where the model does).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// |X|: how often the router chose the expert.
    ActivationCount,
    /// Σ g(x).
    WeightedCount,
    /// Σ ‖f(x)‖₂ ("EAN sum").
    EanSum,
    /// mean ‖f(x)‖₂ over X ("MAN", arXiv 2606.15716).
    EanMean,
    /// mean ‖f(x)‖₂² over X ("MSAN").
    Msan,
    /// Σ g(x) ‖f(x)‖₂.
    WeightedEanSum,
    /// mean g(x) ‖f(x)‖₂ over X (arXiv 2510.13999).
    Reap,
    /// Largest absolute element of any f(x).
    MaxActivation,
    /// Euclidean norm of the expert's row in the router's weight.
    RouterL2,
    /// mean |w| ÷ root mean square of w over the expert's three matrices (arXiv 2603.18492). The highest are pruned.
    Aimer,
}

impl Metric {
    pub const ALL: [Metric; 10] = [
        Metric::ActivationCount,
        Metric::WeightedCount,
        Metric::EanSum,
        Metric::EanMean,
        Metric::Msan,
        Metric::WeightedEanSum,
        Metric::Reap,
        Metric::MaxActivation,
        Metric::RouterL2,
        Metric::Aimer,
    ];

    /// The name recipes and sidecars use.
    pub fn as_str(self) -> &'static str {
        match self {
            Metric::ActivationCount => "activation_count",
            Metric::WeightedCount => "weighted_count",
            Metric::EanSum => "ean_sum",
            Metric::EanMean => "ean_mean",
            Metric::Msan => "msan",
            Metric::WeightedEanSum => "weighted_ean_sum",
            Metric::Reap => "reap",
            Metric::MaxActivation => "max_activation",
            Metric::RouterL2 => "router_l2",
            Metric::Aimer => "aimer",
        }
    }

    /// The metric a recipe names; `None` for one this build does not know.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.as_str() == name)
    }

    /// The weights alone give the score; no calibration text is needed.
    pub fn is_weight_only(self) -> bool {
        matches!(self, Metric::RouterL2 | Metric::Aimer)
    }

    /// Scores turned so that the experts to keep have the highest.
    pub fn as_rank(self, scores: Vec<f64>) -> Vec<f64> {
        match self {
            Metric::Aimer => scores.into_iter().map(|score| -score).collect(),
            _ => scores,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_serialised_ones_and_come_back() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.as_str());
            assert_eq!(Metric::parse(metric.as_str()), Some(metric));
        }
    }
}
