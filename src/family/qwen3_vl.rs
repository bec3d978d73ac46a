//! Qwen3-VL (dense): the language model of Qwen3 beside a vision tower, which goes along.

use super::decoder::{self, QkNorm, Traits};
use super::keys::Keys;
use super::{Family, FamilyError, GgufRules, ModelSpec, gguf_keys};
use crate::model::Config;

pub struct Qwen3Vl;

impl Family for Qwen3Vl {
    fn name(&self) -> &'static str {
        "qwen3_vl"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_vl"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits { root: "model.language_model", qk_norm: QkNorm::Heads, ..Traits::of(self.name()) };
        let mut spec = decoder::spec(&traits, config)?;
        spec.carried.push(decoder::carried(&Keys(config), "vision tower", "model.visual.", "vision_config"));
        Ok(spec)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules { keys: gguf_keys::write_sections, ..GgufRules::of("qwen3vl") })
    }
}
