//! Llama and the models that share its layout (SmolLM2, TinyLlama, Llama 3.x).

use super::decoder::{self, AttentionBias, HeadDim, Traits};
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
        let traits = Traits {
            family: self.name(),
            head_dim: HeadDim::HiddenPerHead,
            attention_bias: AttentionBias::FromConfig,
            mlp_bias: true,
            qk_norm: false,
            experts: None,
        };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> GgufRules {
        GgufRules { arch: "llama", permutes_qk: true }
    }
}
