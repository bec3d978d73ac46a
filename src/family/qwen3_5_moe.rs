//! Qwen3.5-MoE: the blocks of Qwen3.5 with routed experts and a shared one that has a gate of its own.

use super::{Family, FamilyError, GgufRules, ModelSpec, qwen3_5, qwen3_5_gguf};
use crate::model::Config;

pub struct Qwen35Moe;

impl Family for Qwen35Moe {
    fn name(&self) -> &'static str {
        "qwen3_5_moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_5_moe", "qwen3_5_moe_text"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        qwen3_5::spec(self.name(), config, true)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(qwen3_5_gguf::rules("qwen35moe"))
    }
}
