//! Qwen3.5: three blocks of gated-delta-net linear attention to one of full attention with an output gate.
//!
//! The published models are a language model beside a vision tower and a draft head, which are carried along; a
//! text-only model has the same blocks under shorter names.

use super::decoder::{self, Body, ExpertNames, Experts, Shared, linear, mlp, norm};
use super::keys::Keys;
use super::rope::RopeSpec;
use super::spec::{
    AttentionSpec, BlockSpec, Carried, DeltaNetSpec, FfnSpec, MixerSpec, NormKind, NormSpec, RoutingRule,
};
use super::{Family, FamilyError, GgufRules, ModelSpec, qwen3_5_gguf};
use crate::model::Config;

pub struct Qwen35;

impl Family for Qwen35 {
    fn name(&self) -> &'static str {
        "qwen3_5"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["qwen3_5", "qwen3_5_text"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        spec(self.name(), config, false)
    }

    fn gguf(&self) -> Option<GgufRules> {
        Some(qwen3_5_gguf::rules("qwen35"))
    }
}

/// The specification of a dense model, or of one with routed experts in every block.
pub(super) fn spec(family: &'static str, config: &Config, sparse: bool) -> Result<ModelSpec, FamilyError> {
    let keys = Keys(config);
    keys.refuse_activation()?;
    let layers = keys.layers()?;
    let interval = keys.count("full_attention_interval")?.unwrap_or(4);
    let kinds = keys.layer_kinds(layers, &["linear_attention", "full_attention"], |layer| {
        if (layer + 1).is_multiple_of(interval) { "full_attention" } else { "linear_attention" }
    })?;
    // A model with towers keeps its language model one level down.
    let nested = config.root().contains_key("text_config");
    let root = if nested { "model.language_model" } else { "model" };
    let geometry = Geometry::read(&keys, root, sparse)?;
    let max_positions = keys.count("max_position_embeddings")?.unwrap_or(32_768);
    let blocks = kinds.iter().enumerate().map(|(index, kind)| geometry.block(index, *kind == "linear_attention"));
    let body = Body {
        blocks: blocks.collect(),
        final_norm: offset_norm(&format!("{root}.norm"), geometry.hidden),
        rope: RopeSpec::of_part(config, geometry.head_dim, 0.25, max_positions, 10_000.0)?,
        max_positions,
        norm_eps: 1e-6,
    };
    let mut spec = decoder::assemble(&keys, family, root, body)?;
    spec.carried = geometry.carried(config)?;
    Ok(spec)
}

struct Geometry {
    /// What the names of blocks begin with.
    root: &'static str,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    bias: bool,
    delta: Delta,
    ffn: Ffn,
}

struct Delta {
    key_heads: usize,
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
    kernel: usize,
}

enum Ffn {
    Dense { inner: usize },
    Sparse(Experts),
}

impl Geometry {
    fn read(keys: &Keys<'_>, root: &'static str, sparse: bool) -> Result<Self, FamilyError> {
        let (heads, kv_heads) = keys.heads()?;
        let delta = Delta {
            key_heads: keys.required_count("linear_num_key_heads")?,
            value_heads: keys.required_count("linear_num_value_heads")?,
            key_dim: keys.required_count("linear_key_head_dim")?,
            value_dim: keys.required_count("linear_value_head_dim")?,
            kernel: keys.count("linear_conv_kernel_dim")?.unwrap_or(4),
        };
        if !delta.value_heads.is_multiple_of(delta.key_heads) {
            return Err(FamilyError::BadKey {
                key: "linear_num_key_heads".to_owned(),
                found: delta.key_heads.to_string(),
                wanted: format!("a divisor of linear_num_value_heads = {}", delta.value_heads),
            });
        }
        let ffn = if sparse {
            Ffn::Sparse(experts(keys)?)
        } else {
            Ffn::Dense { inner: keys.required_count("intermediate_size")? }
        };
        Ok(Geometry {
            root,
            hidden: keys.required_count("hidden_size")?,
            heads,
            kv_heads,
            head_dim: keys.count("head_dim")?.unwrap_or(256),
            bias: keys.flag("attention_bias", false)?,
            delta,
            ffn,
        })
    }

    fn block(&self, index: usize, linear_attention: bool) -> BlockSpec {
        let prefix = format!("{}.layers.{index}", self.root);
        BlockSpec {
            index,
            attn_norm: offset_norm(&format!("{prefix}.input_layernorm"), self.hidden),
            mixer: if linear_attention {
                MixerSpec::DeltaNet(self.delta_net(&format!("{prefix}.linear_attn")))
            } else {
                MixerSpec::Attention(self.attention(&format!("{prefix}.self_attn")))
            },
            ffn_norm: offset_norm(&format!("{prefix}.post_attention_layernorm"), self.hidden),
            ffn: match &self.ffn {
                Ffn::Dense { inner } => {
                    FfnSpec::Dense(mlp(&format!("{prefix}.mlp"), ExpertNames::MLP.parts, self.hidden, *inner, false))
                }
                Ffn::Sparse(experts) => FfnSpec::Moe(experts.mixture(&prefix, self.hidden)),
            },
        }
    }

    fn attention(&self, prefix: &str) -> AttentionSpec {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        AttentionSpec {
            q: linear(&format!("{prefix}.q_proj"), 2 * queries, self.hidden, self.bias),
            k: linear(&format!("{prefix}.k_proj"), keys, self.hidden, self.bias),
            v: linear(&format!("{prefix}.v_proj"), keys, self.hidden, self.bias),
            o: linear(&format!("{prefix}.o_proj"), self.hidden, queries, self.bias),
            q_norm: Some(offset_norm(&format!("{prefix}.q_norm"), self.head_dim)),
            k_norm: Some(offset_norm(&format!("{prefix}.k_norm"), self.head_dim)),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            clip: None,
            output_gate: true,
            window: None,
            sinks: None,
        }
    }

    fn delta_net(&self, prefix: &str) -> DeltaNetSpec {
        let &Delta { key_heads, value_heads, key_dim, value_dim, kernel } = &self.delta;
        let values = value_heads * value_dim;
        let project = |name: &str, rows: usize| linear(&format!("{prefix}.{name}"), rows, self.hidden, false);
        DeltaNetSpec {
            qkv: project("in_proj_qkv", 2 * key_heads * key_dim + values),
            z: project("in_proj_z", values),
            a: project("in_proj_a", value_heads),
            b: project("in_proj_b", value_heads),
            conv: format!("{prefix}.conv1d.weight"),
            a_log: format!("{prefix}.A_log"),
            dt_bias: format!("{prefix}.dt_bias"),
            norm: norm(&format!("{prefix}.norm"), value_dim, NormKind::Rms),
            out: linear(&format!("{prefix}.out_proj"), self.hidden, values, false),
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            kernel,
        }
    }

    /// The vision tower the config declares, and the draft head that published checkpoints bring.
    fn carried(&self, config: &Config) -> Result<Vec<Carried>, FamilyError> {
        let keys = Keys(config);
        let drafts = keys.count_or_none("mtp_num_hidden_layers")?;
        let drafts = keys.as_layers("mtp_num_hidden_layers", drafts)?;
        let mixtures = match &self.ffn {
            Ffn::Dense { .. } => Vec::new(),
            Ffn::Sparse(experts) => {
                (0..drafts).map(|layer| experts.mixture(&format!("mtp.layers.{layer}"), self.hidden)).collect()
            }
        };
        let vision = decoder::carried(&keys, "vision tower", "model.visual.", "vision_config");
        let draft = Carried {
            name: "multi-token prediction head",
            prefixes: vec!["mtp.".to_owned()],
            // transformers does not load it, so what it saves lacks it.
            required: false,
            mixtures,
        };
        Ok(vec![vision, draft])
    }
}

/// The routed experts, whose weights sum to one, and the shared one with its gate.
fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    let intermediate = keys.required_count("shared_expert_intermediate_size")?;
    let shared = Shared { name: "shared_expert", intermediate, gate: Some("shared_expert_gate") };
    let rule = RoutingRule::SoftmaxTopK { renormalise: true };
    Ok(Experts { rule, shared: Some(shared), ..decoder::experts(keys, "moe_intermediate_size")? })
}

/// A norm whose gain is stored less one.
fn offset_norm(prefix: &str, size: usize) -> NormSpec {
    norm(prefix, size, NormKind::RmsOffset)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::super::MixtureId;
    use super::*;

    fn text() -> Value {
        json!({
            "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 512,
            "full_attention_interval": 3, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 16, "linear_value_head_dim": 24, "num_experts": 8, "num_experts_per_tok": 2,
            "moe_intermediate_size": 48, "shared_expert_intermediate_size": 40, "mtp_num_hidden_layers": 1,
        })
    }

    fn of(value: Value, sparse: bool) -> Result<ModelSpec, FamilyError> {
        spec("qwen3_5", &Config::from_value(Path::new("config.json"), value).unwrap(), sparse)
    }

    #[test]
    fn full_attention_comes_at_intervals_and_turns_a_quarter_of_its_heads() {
        let spec = of(text(), false).unwrap();
        let full: Vec<usize> = spec.blocks.iter().filter(|b| b.attention().is_some()).map(|b| b.index).collect();
        assert_eq!(full, [2, 5]);
        assert_eq!(spec.rope.dims, 8);
        let attention = spec.blocks[2].attention().unwrap();
        assert_eq!((attention.q.rows, attention.o.cols, attention.output_gate), (2 * 4 * 32, 4 * 32, true));
        let MixerSpec::DeltaNet(delta) = &spec.blocks[0].mixer else { panic!("{:?}", spec.blocks[0].mixer) };
        assert_eq!((delta.qkv.rows, delta.z.rows, delta.kernel), (2 * 2 * 16 + 4 * 24, 4 * 24, 4));
        assert_eq!((spec.blocks[0].attn_norm.kind, delta.norm.kind), (NormKind::RmsOffset, NormKind::Rms));
        let mut uneven = text();
        uneven["linear_num_key_heads"] = json!(3);
        assert!(of(uneven, false).unwrap_err().to_string().contains("linear_num_key_heads"));
    }

    #[test]
    fn a_model_with_towers_has_longer_names_and_a_draft_head_with_experts_of_its_own() {
        let nested = of(json!({ "text_config": text(), "vision_config": {} }), true).unwrap();
        assert!(nested.blocks[0].attn_norm.weight.starts_with("model.language_model.layers.0."));
        let required: Vec<bool> = nested.carried.iter().map(|part| part.required).collect();
        assert_eq!(required, [true, false]);
        let drafts = nested.mixture(MixtureId::Carried { part: 1, number: 0 }).unwrap();
        assert_eq!(drafts.experts[7].up.weight, "mtp.layers.0.mlp.experts.7.up_proj.weight");
        let plain = of(text(), true).unwrap();
        assert!(plain.embed.starts_with("model.embed_tokens") && !plain.carried[0].required);
        let shared = plain.blocks[0].moe().unwrap().shared.as_ref().unwrap();
        assert_eq!((shared.mlp.gate.rows, shared.gate.as_ref().unwrap().rows), (40, 1));
    }
}
