//! Qwen3-MoE: Qwen3 attention, blocks of routed experts, optionally some dense blocks.

use super::decoder::{self, AttentionBias, HeadDim, Traits};
use super::{Family, FamilyError, GgufRules, ModelSpec};
use crate::model::Config;

pub struct Qwen3Moe;

impl Family for Qwen3Moe {
    fn name(&self) -> &'static str {
        "qwen3_moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_moe"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits {
            family: self.name(),
            head_dim: HeadDim::HiddenPerHead,
            attention_bias: AttentionBias::FromConfig,
            mlp_bias: false,
            qk_norm: true,
            experts: Some(decoder::experts),
        };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> GgufRules {
        GgufRules { arch: "qwen3moe", permutes_qk: false }
    }
}
