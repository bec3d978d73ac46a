//! Llama and the models that share its layout (SmolLM2, TinyLlama, Llama 3.x).

use super::decoder::{self, Traits};
use super::{Family, FamilyError, GgufRules, ModelSpec};
use crate::model::Config;

pub struct Llama;

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["llama"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits { mlp_bias: true, ..Traits::of(self.name()) };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules { arch: "llama", permutes_qk: true })
    }
}
