//! Qwen2.5-VL: the language model of Qwen2.5 beside a vision tower, which goes along.

use super::decoder::{self, AttentionBias, Traits};
use super::keys::Keys;
use super::{Alias, Family, FamilyError, GgufRules, ModelSpec, gguf_keys};
use crate::model::Config;

pub struct Qwen25Vl;

impl Family for Qwen25Vl {
    fn name(&self) -> &'static str {
        "qwen2_5_vl"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen2_5_vl"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits { attention_bias: AttentionBias::Qkv, ..Traits::of(self.name()) };
        let mut spec = decoder::spec(&traits, config)?;
        // Older files say it of the text model only; transformers ties the head if either place says so.
        let inner = config.get("text_config").and_then(|text| text.get("tie_word_embeddings"));
        if inner.and_then(serde_json::Value::as_bool) == Some(true) {
            decoder::tie(&mut spec);
        }
        spec.carried.push(decoder::carried(&Keys(config), "vision tower", "visual.", "vision_config"));
        Ok(spec)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules { keys: gguf_keys::write_sections, ..GgufRules::of("qwen2vl") })
    }

    /// transformers divides the hidden size by the number of heads, whatever the config says.
    fn says_head_width(&self) -> bool {
        false
    }

    fn aliases(&self) -> &'static [Alias] {
        &[Alias::Prefix("model.language_model.", "model."), Alias::Prefix("model.visual.", "visual.")]
    }
}
