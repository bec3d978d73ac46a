//! Mixtral: Llama attention, every block a mixture whose chosen weights are renormalised.

use super::decoder::{self, ExpertNames, Experts, Traits, Window};
use super::keys::Keys;
use super::spec::RoutingRule;
use super::{Alias, Family, FamilyError, GgufReader, GgufRules, ModelSpec};
use crate::model::Config;

pub struct Mixtral;

impl Family for Mixtral {
    fn name(&self) -> &'static str {
        "mixtral"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["mixtral"]
    }

    fn packs_layers(&self) -> bool {
        true
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let window = Window::Always;
        let traits = Traits { window, theta: 1e6, experts: Some(experts), ..Traits::of(self.name()) };
        decoder::spec(&traits, config)
    }

    /// llama.cpp's llama with experts.
    fn gguf(&self) -> Option<GgufRules> {
        let claims = |file: &GgufReader<'_>| Ok(file.count("expert_count")?.is_some());
        Some(GgufRules { permutes_qk: true, reads: |_| true, claims, ..GgufRules::of("llama") })
    }

    fn aliases(&self) -> &'static [Alias] {
        &[Alias::Part(".mlp.", ".block_sparse_moe.")]
    }
}

fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    let rule = RoutingRule::SoftmaxTopK { renormalise: true };
    Ok(Experts { rule, names: ExpertNames::BLOCK_SPARSE, ..decoder::experts(keys, "intermediate_size")? })
}
