//! Phi-3.5-MoE: layer norms, biases, two experts per token chosen by SparseMixer, rope in two lengths.

use super::decoder::{self, ExpertNames, Experts, Traits, Window};
use super::keys::Keys;
use super::spec::{NormKind, RoutingRule};
use super::{Alias, Family, FamilyError, ModelSpec};
use crate::model::Config;

pub struct PhiMoe;

impl Family for PhiMoe {
    fn name(&self) -> &'static str {
        "phimoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["phimoe"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits {
            norm: NormKind::Layer,
            window: Window::Always,
            theta: 1e6,
            experts: Some(experts),
            ..Traits::of(self.name())
        };
        let mut spec = decoder::spec(&traits, config)?;
        spec.head_bias = Keys(config).flag("lm_head_bias", false)?.then(|| "lm_head.bias".to_owned());
        Ok(spec)
    }

    fn aliases(&self) -> &'static [Alias] {
        &[Alias::Part(".mlp.router.", ".mlp.gate."), Alias::Part(".mlp.", ".block_sparse_moe.")]
    }
}

fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    let read = decoder::experts(keys, "intermediate_size")?;
    if read.top_k != 2 {
        return Err(FamilyError::Unsupported {
            what: format!("config key num_experts_per_tok = {}", read.top_k),
            supported: "2 (SparseMixer chooses two experts)".to_owned(),
        });
    }
    let rule = RoutingRule::SparseMixer { jitter: keys.not_negative("router_jitter_noise")?.unwrap_or(0.01) };
    Ok(Experts { rule, names: ExpertNames::BLOCK_SPARSE, ..read })
}
