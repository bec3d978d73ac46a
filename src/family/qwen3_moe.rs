//! Qwen3-MoE: Qwen3 attention, blocks of routed experts, optionally some dense blocks.

use super::decoder::{self, Experts, QkNorm, Traits};
use super::keys::Keys;
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
        let traits = Traits { qk_norm: QkNorm::Heads, experts: Some(experts), ..Traits::of(self.name()) };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules { arch: "qwen3moe", permutes_qk: false })
    }
}

/// What Qwen3's mixtures share; the models with a vision tower too.
pub(super) fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    decoder::experts(keys, "moe_intermediate_size")
}
