//! Qwen3 (dense): a norm over each query and key head, head width independent of the hidden size.

use super::decoder::{self, QkNorm, Traits};
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

    fn packs_layers(&self) -> bool {
        true
    }

    fn loads_in_mlx(&self) -> bool {
        true
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits { qk_norm: QkNorm::Heads, ..Traits::of(self.name()) };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules::of("qwen3"))
    }
}
