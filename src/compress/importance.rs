//! The importance table that an expert profile leaves and an expert prune reads (`importance.activation_count.json`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CompressError;

/// File name of the table inside a part's work directory.
pub const IMPORTANCE_FILE: &str = "importance.activation_count.json";
/// The only version written, and the only one read.
pub const METRIC_VERSION: &str = "v1.activation_count";

/// How often each routed expert was chosen, per layer; key names as other tools of the trade write them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Importance {
    pub model: String,
    pub calibration_corpus: String,
    /// Texts that contributed at least one token.
    pub calibration_examples: u64,
    /// Tokens routed, after truncation.
    pub calibration_tokens: u64,
    pub num_hidden_layers: usize,
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    /// Layer index → one count per expert. Dense layers are absent.
    pub activation_counts: BTreeMap<usize, Vec<u64>>,
    pub metric_version: String,
    pub tool: String,
}

impl Importance {
    /// Reads a table; a missing key, another metric version or a count list of the wrong length is an error.
    pub fn read(path: &Path) -> Result<Self, CompressError> {
        let bytes = std::fs::read(path).map_err(CompressError::io("read", path))?;
        let bad = |reason: String| CompressError::Importance { path: path.to_owned(), reason };
        let table: Importance = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if table.metric_version != METRIC_VERSION {
            return Err(bad(format!("metric_version {:?} is not {METRIC_VERSION:?}", table.metric_version)));
        }
        for (layer, counts) in &table.activation_counts {
            if counts.len() != table.num_experts {
                let (found, want) = (counts.len(), table.num_experts);
                return Err(bad(format!("layer {layer} has {found} counts for {want} experts")));
            }
        }
        Ok(table)
    }

    /// Writes the table (2-space JSON, final newline); the bytes depend only on the counts.
    pub fn write(&self, path: &Path) -> Result<(), CompressError> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| CompressError::Importance { path: path.to_owned(), reason: e.to_string() })?;
        text.push(b'\n');
        std::fs::write(path, text).map_err(CompressError::io("write", path))
    }

    /// Asserts that the table covers exactly the layers in `moe_layers` and that every layer's counts sum to
    /// tokens × top-k. A hook that silently saw nothing is what this catches.
    pub fn assert_complete(&self, moe_layers: &[usize]) -> Result<(), CompressError> {
        let expected = self.calibration_tokens * self.num_experts_per_tok as u64;
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
            metric_version: METRIC_VERSION.into(),
            tool: "t".into(),
        }
    }

    #[test]
    fn layers_are_written_in_numeric_order_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IMPORTANCE_FILE);
        table().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.find("\"2\"").unwrap() < text.find("\"10\"").unwrap());
        assert_eq!(Importance::read(&path).unwrap(), table());
    }

    #[test]
    fn a_short_sum_an_unseen_and_an_unknown_layer_are_named() {
        assert!(table().assert_complete(&[2, 10]).is_ok());
        let mut short = table();
        short.activation_counts.insert(10, vec![1, 2, 3, 3]);
        insta::assert_snapshot!(short.assert_complete(&[2, 10]).unwrap_err(), @"expert profile: layer 10: 9 choices counted, 5 tokens × top-2 = 10 expected");
        insta::assert_snapshot!(table().assert_complete(&[2, 3, 10]).unwrap_err(), @"expert profile: layer 3: no router choice was seen");
        insta::assert_snapshot!(table().assert_complete(&[2]).unwrap_err(), @"expert profile: layer 10: counted, but it is no MoE layer");
    }

    #[test]
    fn another_version_or_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.json");
        let mut other = table();
        other.metric_version = "v0".into();
        other.write(&path).unwrap();
        assert!(Importance::read(&path).unwrap_err().to_string().contains("metric_version \"v0\""));
        let mut ragged = table();
        ragged.activation_counts.insert(3, vec![1]);
        ragged.write(&path).unwrap();
        assert!(Importance::read(&path).unwrap_err().to_string().contains("layer 3 has 1 counts for 4 experts"));
    }
}
