//! Qwen2 and Qwen2.5 (dense): biases on q, k and v.

use super::decoder::{self, AttentionBias, Traits};
use super::{Family, FamilyError, GgufRules, ModelSpec};
use crate::model::Config;

pub struct Qwen2;

impl Family for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2"]
    }

    fn packs_layers(&self) -> bool {
        true
    }

    fn loads_in_mlx(&self) -> bool {
        true
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits { attention_bias: AttentionBias::Qkv, ..Traits::of(self.name()) };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules::of("qwen2"))
    }
}
