//! Granite 3 MoE: constant factors on embedding, scores, halves of blocks and logits; always stacked experts.

use serde_json::{Map, Value, json};

use super::decoder::{self, ExpertNames, Experts, Traits};
use super::keys::Keys;
use super::spec::{Factors, MixerSpec, RoutingRule};
use super::{Alias, Family, FamilyError, GgufKeys, GgufReader, GgufRules, ModelSpec};
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

    fn gguf(&self) -> Option<GgufRules> {
        Some(GgufRules {
            permutes_qk: true,
            reads: |_| true,
            keys: write_factors,
            config: read_factors,
            ..GgufRules::of("granitemoe")
        })
    }

    fn aliases(&self) -> &'static [Alias] {
        &[
            Alias::Part(".block_sparse_moe.input_linear.", ".block_sparse_moe.experts.gate_up_proj."),
            Alias::Part(".block_sparse_moe.output_linear.", ".block_sparse_moe.experts.down_proj."),
            Alias::Part(".block_sparse_moe.router.weight", ".block_sparse_moe.router.layer.weight"),
        ]
    }
}

/// Config keys of the factors and what GGUF calls them.
const FACTORS: [(&str, &str); 4] = [
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("attention_multiplier", "attention.scale"),
    ("logits_scaling", "logit_scale"),
];

fn write_factors(_: &ModelSpec, config: &Config, out: &mut GgufKeys) -> Result<(), FamilyError> {
    for (key, name) in FACTORS {
        out.put(name, Keys(config).positive(key)?.unwrap_or(1.0) as f32);
    }
    Ok(())
}

fn read_factors(file: &GgufReader<'_>, config: &mut Map<String, Value>) -> Result<(), FamilyError> {
    for (key, name) in FACTORS {
        // Zero stands for none.
        if let Some(factor) = file.number(name)?.filter(|&factor| factor != 0.0) {
            config.insert(key.to_owned(), json!(factor));
        }
    }
    Ok(())
}

/// The names of single experts are those the stacks are presented under; no published file has them.
fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    let names = ExpertNames { block: "block_sparse_moe", router: "router.layer", ..ExpertNames::MLP };
    Ok(Experts { rule: RoutingRule::TopKSoftmax, names, ..decoder::experts(keys, "intermediate_size")? })
}
