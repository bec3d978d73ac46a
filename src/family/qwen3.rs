//! Qwen3 (dense): a norm over each query and key head, head width independent of the hidden size.

use super::decoder::{self, AttentionBias, HeadDim, Traits};
use super::{Family, FamilyError, GgufRules, ModelSpec};
use crate::model::Config;

pub struct Qwen3;

impl Family for Qwen3 {
    fn name(&self) -> &'static str {
        "qwen3"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits {
            family: self.name(),
            head_dim: HeadDim::Fixed(128),
            attention_bias: AttentionBias::FromConfig,
            mlp_bias: false,
            qk_norm: true,
            experts: None,
        };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> GgufRules {
        GgufRules { arch: "qwen3", permutes_qk: false }
    }
}
