//! Granite 3 MoE: constant factors on embedding, scores, halves of blocks and logits; always stacked experts.

use super::decoder::{self, ExpertNames, Experts, Traits};
use super::keys::Keys;
use super::spec::{Factors, MixerSpec, RoutingRule};
use super::{Alias, Family, FamilyError, ModelSpec};
use crate::model::Config;

pub struct GraniteMoe;

impl Family for GraniteMoe {
    fn name(&self) -> &'static str {
        "granitemoe"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["granitemoe"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let traits = Traits { experts: Some(experts), ..Traits::of(self.name()) };
        let mut spec = decoder::spec(&traits, config)?;
        let factor = |key: &str| Ok::<f64, FamilyError>(Keys(config).positive(key)?.unwrap_or(1.0));
        spec.factors = Factors {
            embedding: factor("embedding_multiplier")?,
            residual: factor("residual_multiplier")?,
            logits: 1.0 / factor("logits_scaling")?,
        };
        let scale = factor("attention_multiplier")?;
        for block in &mut spec.blocks {
            if let MixerSpec::Attention(attention) = &mut block.mixer {
                attention.scale = scale;
            }
        }
        Ok(spec)
    }

    fn aliases(&self) -> &'static [Alias] {
        &[
            Alias::Part(".block_sparse_moe.input_linear.", ".block_sparse_moe.experts.gate_up_proj."),
            Alias::Part(".block_sparse_moe.output_linear.", ".block_sparse_moe.experts.down_proj."),
            Alias::Part(".block_sparse_moe.router.weight", ".block_sparse_moe.router.layer.weight"),
        ]
    }
}

/// The names of single experts are those the stacks are presented under; no published file has them.
fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    let names = ExpertNames { block: "block_sparse_moe", router: "router.layer", ..ExpertNames::MLP };
    Ok(Experts { rule: RoutingRule::TopKSoftmax, names, ..decoder::experts(keys, "intermediate_size")? })
}
