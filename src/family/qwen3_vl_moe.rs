//! Qwen3-VL with routed experts. Published files stack and transpose them; what transformers 5 saves is not transposed.

use super::decoder::{self, Experts, QkNorm, Traits};
use super::keys::Keys;
use super::spec::RoutingRule;
use super::{Family, FamilyError, GgufRules, ModelSpec, gguf_keys};
use crate::model::Config;

pub struct Qwen3VlMoe;

impl Family for Qwen3VlMoe {
    fn name(&self) -> &'static str {
        "qwen3_vl_moe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_vl_moe"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits {
            root: "model.language_model",
            qk_norm: QkNorm::Heads,
            experts: Some(experts),
            ..Traits::of(self.name())
        };
        let mut spec = decoder::spec(&traits, config)?;
        spec.carried.push(decoder::carried(&Keys(config), "vision tower", "model.visual.", "vision_config"));
        Ok(spec)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules { keys: gguf_keys::write_sections, ..GgufRules::of("qwen3vlmoe") })
    }
}

/// Weights are renormalised whatever `norm_topk_prob` says.
fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    let rule = RoutingRule::SoftmaxTopK { renormalise: true };
    Ok(Experts { rule, ..decoder::experts(keys, "moe_intermediate_size")? })
}
