//! gpt-oss: attention with sinks, every other block sliding; routed experts with biases and a clamped activation.
//!
//! Published with experts in MXFP4 and saved by transformers in bf16, both as stacks of all experts of a layer.

use super::decoder::{self, Body, Experts, linear, norm};
use super::keys::Keys;
use super::rope::RopeSpec;
use super::spec::{Activation, AttentionSpec, BlockSpec, FfnSpec, MixerSpec, MlpSpec, MoeSpec, NormKind, RoutingRule};
use super::{Family, FamilyError, ModelSpec, StackLayout};
use crate::model::Config;

pub struct GptOss;

impl Family for GptOss {
    fn name(&self) -> &'static str {
        "gpt_oss"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["gpt_oss"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let keys = Keys(config);
        keys.refuse_activation()?;
        let layers = keys.layers()?;
        let geometry = Geometry::read(&keys)?;
        let kinds = keys.layer_kinds(layers, &["sliding_attention", "full_attention"], |layer| {
            if layer.is_multiple_of(2) { "sliding_attention" } else { "full_attention" }
        })?;
        let block = |(index, kind): (usize, &&str)| geometry.block(index, *kind == "sliding_attention");
        let max_positions = keys.count("max_position_embeddings")?.unwrap_or(131_072);
        if config.get("rope_parameters").is_none() && config.get("rope_scaling").is_none() {
            return Err(FamilyError::MissingKey { key: "rope_scaling (or rope_parameters)".to_owned() });
        }
        let blocks = kinds.iter().enumerate().map(block).collect();
        let rope = RopeSpec::from_config(config, geometry.head_dim, max_positions, 150_000.0)?;
        let final_norm = norm("model.norm", geometry.hidden, NormKind::Rms);
        decoder::assemble(&keys, self.name(), "model", Body { blocks, final_norm, rope, max_positions, norm_eps: 1e-5 })
    }

    fn layouts(&self) -> &'static [StackLayout] {
        &[StackLayout::InOutInterleaved, StackLayout::Mxfp4Interleaved]
    }
}

struct Geometry {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    bias: bool,
    window: Option<usize>,
    experts: usize,
    top_k: usize,
    inner: usize,
    activation: Activation,
}

impl Geometry {
    fn read(keys: &Keys<'_>) -> Result<Self, FamilyError> {
        let hidden = keys.required_count("hidden_size")?;
        let (heads, kv_heads) = keys.heads()?;
        let Experts { count, top_k, intermediate, .. } = decoder::experts(keys, "intermediate_size")?;
        Ok(Geometry {
            hidden,
            heads,
            kv_heads,
            head_dim: keys.count("head_dim")?.unwrap_or(64),
            bias: keys.flag("attention_bias", true)?,
            window: keys.count("sliding_window")?,
            experts: count,
            top_k,
            inner: intermediate,
            activation: Activation::ClampedSwiglu {
                alpha: keys.positive("swiglu_alpha")?.unwrap_or(1.702),
                limit: keys.positive("swiglu_limit")?.unwrap_or(7.0),
            },
        })
    }

    fn block(&self, index: usize, sliding: bool) -> BlockSpec {
        let prefix = format!("model.layers.{index}");
        BlockSpec {
            index,
            attn_norm: norm(&format!("{prefix}.input_layernorm"), self.hidden, NormKind::Rms),
            mixer: MixerSpec::Attention(self.attention(&format!("{prefix}.self_attn"), sliding)),
            ffn_norm: norm(&format!("{prefix}.post_attention_layernorm"), self.hidden, NormKind::Rms),
            ffn: FfnSpec::Moe(MoeSpec {
                router: linear(&format!("{prefix}.mlp.router"), self.experts, self.hidden, true),
                correction: None,
                experts: (0..self.experts).map(|e| self.expert(&format!("{prefix}.mlp.experts.{e}"))).collect(),
                top_k: self.top_k,
                rule: RoutingRule::TopKSoftmax,
                scale: 1.0,
                shared: None,
            }),
        }
    }

    fn attention(&self, prefix: &str, sliding: bool) -> AttentionSpec {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        AttentionSpec {
            q: linear(&format!("{prefix}.q_proj"), queries, self.hidden, self.bias),
            k: linear(&format!("{prefix}.k_proj"), keys, self.hidden, self.bias),
            v: linear(&format!("{prefix}.v_proj"), keys, self.hidden, self.bias),
            o: linear(&format!("{prefix}.o_proj"), self.hidden, queries, self.bias),
            q_norm: None,
            k_norm: None,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            clip: None,
            output_gate: false,
            window: self.window.filter(|_| sliding),
            sinks: Some(format!("{prefix}.sinks")),
        }
    }

    fn expert(&self, prefix: &str) -> MlpSpec {
        MlpSpec {
            gate: linear(&format!("{prefix}.gate_proj"), self.inner, self.hidden, true),
            up: linear(&format!("{prefix}.up_proj"), self.inner, self.hidden, true),
            down: linear(&format!("{prefix}.down_proj"), self.hidden, self.inner, true),
            activation: self.activation,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::super::{Role, gguf_tensors};
    use super::*;

    fn spec(changes: &[(&str, Value)]) -> Result<ModelSpec, FamilyError> {
        let mut value = json!({
            "model_type": "gpt_oss", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 100,
            "max_position_embeddings": 512, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 32, "truncate": false, "original_max_position_embeddings": 16,
            },
        });
        for (key, change) in changes {
            value[key] = change.clone();
        }
        GptOss.spec(&Config::from_value(Path::new("config.json"), value).unwrap())
    }

    fn windows(spec: &ModelSpec) -> Vec<Option<usize>> {
        spec.blocks.iter().map(|b| b.attention().unwrap().window).collect()
    }

    #[test]
    fn every_other_block_slides_unless_the_config_says_which() {
        assert_eq!(windows(&spec(&[]).unwrap()), [Some(8), None, Some(8)]);
        let kinds = json!(["full_attention", "full_attention", "sliding_attention"]);
        assert_eq!(windows(&spec(&[("layer_types", kinds)]).unwrap()), [None, None, Some(8)]);
        let short = spec(&[("layer_types", json!(["full_attention"]))]).unwrap_err().to_string();
        assert!(short.contains("layer_types") && short.contains("3 layers"), "{short}");
        let other = json!(["full_attention", "chunked_attention", "full_attention"]);
        let other = spec(&[("layer_types", other)]).unwrap_err().to_string();
        assert!(other.contains("chunked_attention"), "{other}");
    }

    #[test]
    fn everything_has_a_bias_and_the_router_weighs_only_the_chosen() {
        let spec = spec(&[]).unwrap();
        let moe = spec.blocks[0].moe().unwrap();
        assert_eq!(moe.rule, RoutingRule::TopKSoftmax);
        assert_eq!(moe.experts[3].activation, Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 });
        let roles: Vec<Role> = spec.blocks[0].tensors().iter().map(|t| t.role).collect();
        let biases = roles.iter().filter(|role| matches!(role, Role::ExpertBias { .. })).count();
        assert_eq!(biases, 3 * 4);
        assert!([Role::Sinks(0), Role::RouterBias(0), Role::OBias(0)].iter().all(|role| roles.contains(role)));
        assert!(gguf_tensors(&spec).unwrap_err().to_string().contains("gpt_oss"));
        assert_eq!(spec.rope.theta, 150_000.0);
    }

    #[test]
    fn rotary_settings_must_be_there() {
        assert!(spec(&[("rope_scaling", Value::Null)]).unwrap_err().to_string().contains("rope_scaling"));
    }
}
