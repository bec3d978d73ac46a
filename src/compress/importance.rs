//! The importance table that an expert profile leaves and an expert prune reads (`importance.json`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CompressError, Metric};
use crate::node::MOST_TEXT;
use crate::units::{Sha, read_at_most};

/// File name of the table inside a part's work directory.
pub const IMPORTANCE_FILE: &str = "importance.json";
/// The version written: every score of [`Metric`].
pub const METRIC_VERSION: &str = "v2.scores";
/// The older version, still read: counts only.
pub const COUNTS_VERSION: &str = "v1.activation_count";

/// A number per expert, by layer. Dense layers are absent.
pub type PerLayer<T> = BTreeMap<usize, Vec<T>>;

/// What a profile found out about every routed expert; key names of the counts as other tools of the trade write them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Importance {
    pub model: String,
    pub calibration_corpus: String,
    /// Of the file the corpus was read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_sha256: Option<Sha>,
    /// Texts that contributed at least one token.
    pub calibration_examples: u64,
    /// Tokens routed, after truncation and without those held out.
    pub calibration_tokens: u64,
    /// Tokens at the end of the corpus that the profile did not see.
    #[serde(default)]
    pub held_out_tokens: u64,
    pub num_hidden_layers: usize,
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    /// How often the router chose each expert.
    pub activation_counts: PerLayer<u64>,
    /// Every other score; see [`Metric`] for what they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<Metric, PerLayer<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_observed: Option<UnderObserved>,
    pub metric_version: String,
    pub tool: String,
}

/// Experts whose scores rest on few tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnderObserved {
    /// Experts that saw fewer tokens than this are listed.
    pub fewer_than: u64,
    /// Layer → experts.
    pub experts: PerLayer<usize>,
}

impl UnderObserved {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.experts.values().map(Vec::len).sum()
    }
}

impl Importance {
    /// Reads a table of either version. A missing key, a list of the wrong length, a score that is not finite, and a
    /// table that saw no tokens are errors.
    pub fn read(path: &Path) -> Result<Self, CompressError> {
        let bytes = read_at_most(path, MOST_TEXT).map_err(CompressError::io("read", path))?;
        let bad = |reason: String| CompressError::Importance { path: path.to_owned(), reason };
        let table: Importance = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        table.check().map_err(bad)?;
        Ok(table)
    }

    fn check(&self) -> Result<(), String> {
        if ![METRIC_VERSION, COUNTS_VERSION].contains(&self.metric_version.as_str()) {
            let found = &self.metric_version;
            return Err(format!("metric_version {found:?} is neither {METRIC_VERSION:?} nor {COUNTS_VERSION:?}"));
        }
        let length = |layer: &usize, what: &str, found: usize| match found == self.num_experts {
            true => Ok(()),
            false => Err(format!("layer {layer} has {found} {what} for {} experts", self.num_experts)),
        };
        for (layer, counts) in &self.activation_counts {
            length(layer, "counts", counts.len())?;
            if counts.iter().all(|&count| count == 0) {
                return Err(format!("every count of layer {layer} is zero: the profile saw no tokens there"));
            }
        }
        for (metric, layers) in &self.scores {
            for (layer, scores) in layers {
                length(layer, metric.as_str(), scores.len())?;
                if let Some(expert) = scores.iter().position(|score| !score.is_finite()) {
                    return Err(format!("layer {layer}, expert {expert}: {} is not finite", metric.as_str()));
                }
            }
        }
        Ok(())
    }

    /// Writes the table (2-space JSON, final newline); the bytes depend only on its contents.
    pub fn write(&self, path: &Path) -> Result<(), CompressError> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| CompressError::Importance { path: path.to_owned(), reason: e.to_string() })?;
        text.push(b'\n');
        std::fs::write(path, text).map_err(CompressError::io("write", path))
    }

    /// The scores of a layer's experts; `None` when the table has none of this kind or of this layer.
    pub fn scores(&self, metric: Metric, layer: usize) -> Option<Vec<f64>> {
        match metric {
            Metric::ActivationCount => Some(self.activation_counts.get(&layer)?.iter().map(|&n| n as f64).collect()),
            other => self.scores.get(&other)?.get(&layer).cloned(),
        }
    }

    /// Asserts that the table covers exactly the layers in `moe_layers` and that every layer's counts sum to
    /// tokens × top-k. A hook that silently saw nothing is what this catches.
    pub fn assert_complete(&self, moe_layers: &[usize]) -> Result<(), CompressError> {
        let expected = self.calibration_tokens * self.num_experts_per_tok as u64;
        if expected == 0 {
            let layer = moe_layers.first().copied().unwrap_or(0);
            return Err(CompressError::Coverage { layer, reason: "the profile saw no tokens".into() });
        }
        for &layer in moe_layers {
            let Some(counts) = self.activation_counts.get(&layer) else {
                return Err(CompressError::Coverage { layer, reason: "no router choice was seen".into() });
            };
            let sum: u64 = counts.iter().sum();
            if sum != expected {
                let (tokens, top_k) = (self.calibration_tokens, self.num_experts_per_tok);
                return Err(CompressError::Coverage {
                    layer,
                    reason: format!("{sum} choices counted, {tokens} tokens × top-{top_k} = {expected} expected"),
                });
            }
        }
        match self.activation_counts.keys().find(|layer| !moe_layers.contains(layer)) {
            Some(&layer) => Err(CompressError::Coverage { layer, reason: "counted, but it is no MoE layer".into() }),
            None => Ok(()),
        }
    }

    /// Notes the experts that saw fewer than `fewer_than` tokens.
    pub fn note_under_observed(&mut self, fewer_than: u64) {
        let few = |counts: &Vec<u64>| -> Vec<usize> { (0..counts.len()).filter(|&e| counts[e] < fewer_than).collect() };
        let experts = self.activation_counts.iter().map(|(&layer, counts)| (layer, few(counts)));
        let experts = experts.filter(|(_, few)| !few.is_empty()).collect();
        self.under_observed = Some(UnderObserved { fewer_than, experts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Importance {
        Importance {
            model: "m".into(),
            calibration_corpus: "c".into(),
            calibration_examples: 1,
            calibration_tokens: 5,
            num_hidden_layers: 11,
            num_experts: 4,
            num_experts_per_tok: 2,
            activation_counts: BTreeMap::from([(2, vec![5, 5, 0, 0]), (10, vec![1, 2, 3, 4])]),
            scores: BTreeMap::from([(Metric::Reap, BTreeMap::from([(2, vec![0.1, 1.0 / 3.0, 0.0, 0.0])]))]),
            metric_version: METRIC_VERSION.into(),
            tool: "t".into(),
            ..Importance::default()
        }
    }

    fn read_back(table: &Importance) -> Result<Importance, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.json");
        table.write(&path).unwrap();
        Importance::read(&path).map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    #[test]
    fn layers_are_written_in_numeric_order_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IMPORTANCE_FILE);
        table().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.find("\"2\"").unwrap() < text.find("\"10\"").unwrap());
        assert_eq!(Importance::read(&path).unwrap(), table());
        assert_eq!(table().scores(Metric::Reap, 2).unwrap()[1], 1.0 / 3.0);
        assert_eq!(table().scores(Metric::ActivationCount, 10).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(table().scores(Metric::Reap, 10), None);
    }

    #[test]
    fn the_older_table_of_counts_is_read() {
        let text = r#"{"model":"m","calibration_corpus":"c","calibration_examples":1,"calibration_tokens":2,
            "num_hidden_layers":1,"num_experts":2,"num_experts_per_tok":1,"activation_counts":{"0":[1,1]},
            "metric_version":"v1.activation_count","tool":"another"}"#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("importance.activation_count.json");
        std::fs::write(&path, text).unwrap();
        let table = Importance::read(&path).unwrap();
        assert_eq!(table.scores(Metric::ActivationCount, 0).unwrap(), [1.0, 1.0]);
        assert_eq!(table.scores(Metric::Reap, 0), None);
    }

    #[test]
    fn a_short_sum_an_unseen_and_an_unknown_layer_are_named() {
        assert!(table().assert_complete(&[2, 10]).is_ok());
        let mut short = table();
        short.activation_counts.insert(10, vec![1, 2, 3, 3]);
        insta::assert_snapshot!(short.assert_complete(&[2, 10]).unwrap_err(), @"expert profile: layer 10: 9 choices counted, 5 tokens × top-2 = 10 expected");
        insta::assert_snapshot!(table().assert_complete(&[2, 3, 10]).unwrap_err(), @"expert profile: layer 3: no router choice was seen");
        insta::assert_snapshot!(table().assert_complete(&[2]).unwrap_err(), @"expert profile: layer 10: counted, but it is no MoE layer");
        let nothing = Importance { calibration_tokens: 0, ..table() };
        insta::assert_snapshot!(nothing.assert_complete(&[2, 10]).unwrap_err(), @"expert profile: layer 2: the profile saw no tokens");
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        let error = |edit: fn(&mut Importance)| {
            let mut table = table();
            edit(&mut table);
            read_back(&table).unwrap_err()
        };
        insta::assert_snapshot!(error(|t| t.metric_version = "v0".into()), @r#"importance table i.json: metric_version "v0" is neither "v2.scores" nor "v1.activation_count""#);
        insta::assert_snapshot!(error(|t| drop(t.activation_counts.insert(3, vec![1]))), @"importance table i.json: layer 3 has 1 counts for 4 experts");
        insta::assert_snapshot!(error(|t| drop(t.activation_counts.insert(3, vec![0; 4]))), @"importance table i.json: every count of layer 3 is zero: the profile saw no tokens there");
    }

    #[test]
    fn experts_that_saw_little_are_listed() {
        let mut table = table();
        table.note_under_observed(3);
        let few = table.under_observed.unwrap();
        assert_eq!(few.count(), 4);
        assert_eq!(few.experts, BTreeMap::from([(2, vec![2, 3]), (10, vec![0, 1])]));
    }
}
