//! Llama and the models that share its layout (SmolLM2, TinyLlama, Llama 3.x).

use super::decoder::{self, Traits};
use super::{Family, FamilyError, GgufReader, GgufRules, ModelSpec};
use crate::model::Config;

pub struct Llama;

impl Family for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["llama"]
    }

    fn packs_layers(&self) -> bool {
        true
    }

    fn loads_in_mlx(&self) -> bool {
        true
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits { mlp_bias: true, ..Traits::of(self.name()) };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> Option<GgufRules> {
        let claims = |file: &GgufReader<'_>| Ok(file.count("expert_count")?.is_none());
        Some(GgufRules { permutes_qk: true, reads: |_| true, claims, ..GgufRules::of("llama") })
    }
}
