//! Qwen3-MoE: Qwen3 attention, blocks of routed experts, optionally some dense blocks.

use super::decoder::{self, Experts, QkNorm, Traits};
use super::keys::Keys;
use super::spec::MoeSpec;
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

    fn packs_layers(&self) -> bool {
        true
    }

    fn loads_in_mlx(&self) -> bool {
        true
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits { qk_norm: QkNorm::Heads, experts: Some(experts), ..Traits::of(self.name()) };
        decoder::spec(&traits, config)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules { warnings: renormalised, ..GgufRules::of("qwen3moe") })
    }
}

/// llama.cpp knows one way to weigh the experts of this architecture.
fn renormalised(spec: &ModelSpec) -> Vec<String> {
    if spec.blocks.iter().filter_map(|b| b.moe()).all(MoeSpec::renormalises) {
        return Vec::new();
    }
    vec![
        "llama.cpp renormalises the weights of the chosen experts, this model does not: its scores will differ"
            .to_owned(),
    ]
}

/// What Qwen3's mixtures share; the models with a vision tower too.
pub(super) fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    decoder::experts(keys, "moe_intermediate_size")
}
