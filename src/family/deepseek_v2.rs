//! DeepSeek-V2 (and V2-Lite, Coder-V2): latent attention, routed and shared experts, dense first blocks.

use super::decoder::{self, ExpertNames, Experts, Shared, linear, mlp, norm};
use super::keys::Keys;
use super::rope::{Pairing, RopeScaling, RopeSpec, yarn_temperature};
use super::spec::{BlockSpec, Factors, FfnSpec, LatentAttentionSpec, LatentQuery, MixerSpec, NormKind, RoutingRule};
use super::{Family, FamilyError, ModelSpec};
use crate::model::Config;

pub struct DeepseekV2;

impl Family for DeepseekV2 {
    fn name(&self) -> &'static str {
        "deepseek_v2"
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["deepseek_v2"]
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let keys = Keys(config);
        keys.refuse_activation()?;
        let layers = keys.required_count("num_hidden_layers")?;
        let max_positions = keys.count("max_position_embeddings")?.unwrap_or(2048);
        let rope_dim = keys.required_count("qk_rope_head_dim")?;
        let rope = RopeSpec {
            pairing: Pairing::Adjacent,
            ..RopeSpec::from_config(config, rope_dim, max_positions, 10_000.0)?
        };
        let geometry = Geometry::read(config, &rope)?;
        let tied = keys.flag("tie_word_embeddings", false)?;
        let embed = "model.embed_tokens.weight".to_owned();
        Ok(ModelSpec {
            family: self.name(),
            hidden: geometry.hidden,
            vocab: keys.required_count("vocab_size")?,
            blocks: (0..layers).map(|index| geometry.block(index)).collect(),
            head: if tied { embed.clone() } else { "lm_head.weight".to_owned() },
            embed,
            final_norm: norm("model.norm", geometry.hidden, NormKind::Rms),
            head_bias: None,
            tied,
            rope,
            norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
            max_positions,
            factors: Factors::default(),
            carried: Vec::new(),
        })
    }
}

struct Geometry {
    hidden: usize,
    heads: usize,
    nope_dim: usize,
    rope_dim: usize,
    value_dim: usize,
    kv_rank: usize,
    q_rank: Option<usize>,
    bias: bool,
    mlp_bias: bool,
    scale: f64,
    /// Blocks before this one are dense, and this wide.
    first_sparse: usize,
    dense_inner: usize,
    experts: Experts,
}

impl Geometry {
    fn read(config: &Config, rope: &RopeSpec) -> Result<Self, FamilyError> {
        let keys = Keys(config);
        refuse_other_routing(&keys)?;
        let mut experts = decoder::experts(&keys, "moe_intermediate_size")?;
        experts.rule = rule(&keys, experts.count, experts.top_k)?;
        experts.scale = keys.positive("routed_scaling_factor")?.unwrap_or(1.0);
        let shared = config.opt_usize("n_shared_experts")?.filter(|&count| count > 0);
        experts.shared = shared.map(|count| Shared {
            name: "shared_experts",
            intermediate: count * experts.intermediate,
            gate: None,
        });
        let mlp_bias = keys.flag("mlp_bias", false)?;
        if mlp_bias && shared.is_some() {
            return unsupported("mlp_bias = true beside shared experts", "false");
        }
        let nope_dim = keys.required_count("qk_nope_head_dim")?;
        Ok(Geometry {
            hidden: keys.required_count("hidden_size")?,
            heads: keys.required_count("num_attention_heads")?,
            nope_dim,
            rope_dim: rope.dims,
            value_dim: keys.required_count("v_head_dim")?,
            kv_rank: keys.required_count("kv_lora_rank")?,
            q_rank: keys.count("q_lora_rank")?,
            bias: keys.flag("attention_bias", false)?,
            mlp_bias,
            scale: score_scale(config, rope, nope_dim + rope.dims)?,
            first_sparse: config.opt_usize("first_k_dense_replace")?.unwrap_or(0),
            dense_inner: keys.required_count("intermediate_size")?,
            experts,
        })
    }

    fn block(&self, index: usize) -> BlockSpec {
        let prefix = format!("model.layers.{index}");
        BlockSpec {
            index,
            attn_norm: norm(&format!("{prefix}.input_layernorm"), self.hidden, NormKind::Rms),
            mixer: MixerSpec::Latent(self.attention(&format!("{prefix}.self_attn"))),
            ffn_norm: norm(&format!("{prefix}.post_attention_layernorm"), self.hidden, NormKind::Rms),
            ffn: if index < self.first_sparse {
                let parts = ExpertNames::MLP.parts;
                FfnSpec::Dense(mlp(&format!("{prefix}.mlp"), parts, self.hidden, self.dense_inner, self.mlp_bias))
            } else {
                FfnSpec::Moe(self.experts.mixture(&prefix, self.hidden))
            },
        }
    }

    fn attention(&self, prefix: &str) -> LatentAttentionSpec {
        let (hidden, heads) = (self.hidden, self.heads);
        let queries = heads * (self.nope_dim + self.rope_dim);
        let at = |name: &str| format!("{prefix}.{name}");
        LatentAttentionSpec {
            q: match self.q_rank {
                None => LatentQuery::Direct(linear(&at("q_proj"), queries, hidden, false)),
                Some(rank) => LatentQuery::LowRank {
                    a: linear(&at("q_a_proj"), rank, hidden, self.bias),
                    norm: norm(&at("q_a_layernorm"), rank, NormKind::Rms),
                    b: linear(&at("q_b_proj"), queries, rank, false),
                },
            },
            kv_a: linear(&at("kv_a_proj_with_mqa"), self.kv_rank + self.rope_dim, hidden, self.bias),
            kv_a_norm: norm(&at("kv_a_layernorm"), self.kv_rank, NormKind::Rms),
            kv_b: linear(&at("kv_b_proj"), heads * (self.nope_dim + self.value_dim), self.kv_rank, false),
            o: linear(&at("o_proj"), hidden, heads * self.value_dim, self.bias),
            heads,
            nope_dim: self.nope_dim,
            rope_dim: self.rope_dim,
            value_dim: self.value_dim,
            scale: self.scale,
        }
    }
}

/// 1 / √width, times the square of YaRN's temperature for `mscale_all_dim`.
fn score_scale(config: &Config, rope: &RopeSpec, width: usize) -> Result<f64, FamilyError> {
    let plain = 1.0 / (width as f64).sqrt();
    Ok(match (&rope.scaling, config.rope()?.mscale_all_dim) {
        (RopeScaling::Yarn { factor, .. }, Some(weight)) if weight != 0.0 => {
            plain * yarn_temperature(*factor, weight).powi(2)
        }
        _ => plain,
    })
}

fn rule(keys: &Keys<'_>, experts: usize, top_k: usize) -> Result<RoutingRule, FamilyError> {
    match keys.text("topk_method")? {
        None | Some("greedy") => Ok(RoutingRule::SoftmaxTopK { renormalise: false }),
        Some("group_limited_greedy") => {
            let (groups, kept_groups) = (keys.required_count("n_group")?, keys.required_count("topk_group")?);
            let bad = |key: &str, found: usize, wanted: String| {
                Err(FamilyError::BadKey { key: key.to_owned(), found: found.to_string(), wanted })
            };
            if !experts.is_multiple_of(groups) {
                return bad("n_group", groups, format!("a divisor of the number of experts, {experts}"));
            }
            if kept_groups > groups || kept_groups * (experts / groups) < top_k {
                return bad("topk_group", kept_groups, format!("at most {groups}, with room for {top_k} experts"));
            }
            Ok(RoutingRule::GroupLimited { groups, kept_groups, renormalise: false })
        }
        Some(other) => unsupported(&format!("topk_method = {other:?}"), "greedy, group_limited_greedy"),
    }
}

/// Settings of the published code that no published model of the family uses, or that implementations disagree on.
fn refuse_other_routing(keys: &Keys<'_>) -> Result<(), FamilyError> {
    if keys.flag("norm_topk_prob", false)? {
        return unsupported("norm_topk_prob = true", "false (as in every published model)");
    }
    match keys.text("scoring_func")? {
        None | Some("softmax") => {}
        Some(other) => return unsupported(&format!("scoring_func = {other:?}"), "softmax"),
    }
    match keys.count("moe_layer_freq")? {
        None | Some(1) => Ok(()),
        Some(other) => unsupported(&format!("moe_layer_freq = {other}"), "1"),
    }
}

fn unsupported<T>(what: &str, supported: &str) -> Result<T, FamilyError> {
    Err(FamilyError::Unsupported { what: format!("config key {what}"), supported: supported.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn spec(changes: &[(&str, Value)]) -> Result<ModelSpec, FamilyError> {
        let mut value = json!({
            "model_type": "deepseek_v2", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 512, "kv_lora_rank": 32,
            "q_lora_rank": null, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24,
            "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 2,
            "first_k_dense_replace": 1,
        });
        for (key, change) in changes {
            value[key] = change.clone();
        }
        DeepseekV2.spec(&Config::from_value(Path::new("config.json"), value).unwrap())
    }

    fn latent(spec: &ModelSpec) -> &LatentAttentionSpec {
        let MixerSpec::Latent(latent) = &spec.blocks[0].mixer else { panic!("{:?}", spec.blocks[0].mixer) };
        latent
    }

    #[test]
    fn first_blocks_are_dense_and_shared_experts_as_wide_as_all_of_them() {
        let spec = spec(&[]).unwrap();
        let moes: Vec<_> = spec.blocks.iter().map(BlockSpec::moe).collect();
        assert!(moes[0].is_none() && moes[1].is_some() && moes[2].is_some());
        let shared = moes[1].unwrap().shared.as_ref().unwrap();
        assert_eq!((shared.mlp.gate.rows, shared.gate.is_none()), (96, true));
        assert_eq!(latent(&spec).kv_b.rows, 4 * (16 + 24));
        assert_eq!(latent(&spec).o.cols, 4 * 24);
        assert_eq!((spec.rope.dims, spec.rope.pairing), (8, Pairing::Adjacent));
    }

    #[test]
    fn yarn_sharpens_the_scores_by_the_square_of_its_temperature() {
        let plain = latent(&spec(&[]).unwrap()).scale;
        assert!((plain - 1.0 / 24f64.sqrt()).abs() < 1e-12);
        let yarn = json!({
            "type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 128,
        });
        let stretched = spec(&[("rope_scaling", yarn)]).unwrap();
        let temperature = 0.0707 * 40f64.ln() + 1.0;
        assert!((latent(&stretched).scale - plain * temperature * temperature).abs() < 1e-12);
        assert!((stretched.rope.attention_factor() - 1.0).abs() < 1e-12, "both temperatures are the same");
    }

    #[test]
    fn groups_must_divide_the_experts_and_leave_enough_to_choose_from() {
        let grouped = |groups: usize, kept: usize| {
            let method = ("topk_method", json!("group_limited_greedy"));
            spec(&[method, ("n_group", json!(groups)), ("topk_group", json!(kept))])
        };
        let rule = grouped(4, 1).unwrap().blocks[1].moe().unwrap().rule;
        assert_eq!(rule, RoutingRule::GroupLimited { groups: 4, kept_groups: 1, renormalise: false });
        assert!(grouped(3, 1).unwrap_err().to_string().contains("n_group"));
        assert!(grouped(8, 1).unwrap_err().to_string().contains("topk_group"));
        for (key, value) in
            [("norm_topk_prob", json!(true)), ("scoring_func", json!("sigmoid")), ("topk_method", json!("noaux_tc"))]
        {
            let error = spec(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
