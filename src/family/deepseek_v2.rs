//! DeepSeek-V2 (and V2-Lite, Coder-V2): latent attention, routed and shared experts, dense first blocks.

use serde_json::{Map, Value, json};

use super::decoder::{self, Body, ExpertNames, Experts, Shared, linear, mlp, norm};
use super::keys::Keys;
use super::rope::{Pairing, RopeScaling, RopeSpec, yarn_temperature};
use super::spec::{BlockSpec, FfnSpec, LatentAttentionSpec, LatentQuery, MixerSpec, NormKind, RoutingRule};
use super::{ExpectedTensor, GgufKeys, GgufReader, GgufRules, Latent, Limit, Piece, Placed, Role};
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

    fn packs_layers(&self) -> bool {
        true
    }

    fn spec(&self, config: &Config) -> Result<ModelSpec, FamilyError> {
        let keys = Keys(config);
        keys.refuse_activation()?;
        let layers = keys.layers()?;
        let max_positions = keys.count("max_position_embeddings")?.unwrap_or(2048);
        let rope_dim = keys.required_count("qk_rope_head_dim")?;
        let rope = RopeSpec {
            pairing: Pairing::Adjacent,
            ..RopeSpec::from_config(config, rope_dim, max_positions, 10_000.0)?
        };
        let geometry = Geometry::read(config, &rope)?;
        let blocks = (0..layers).map(|index| geometry.block(index)).collect();
        let final_norm = norm("model.norm", geometry.hidden, NormKind::Rms);
        decoder::assemble(&keys, self.name(), "model", Body { blocks, final_norm, rope, max_positions, norm_eps: 1e-6 })
    }

    fn gguf(&self) -> Option<GgufRules> {
        let plain = GgufRules::of("deepseek2");
        Some(GgufRules { leading_dense: true, reads, placing, keys: write_keys, config: read_keys, limit, ..plain })
    }
}

/// No bias at all.
fn reads(role: Role) -> bool {
    use Role::*;
    !matches!(role, LatentBias { .. } | QBias(_) | OBias(_) | MlpBias { .. } | SharedBias { .. } | ExpertBias { .. })
}

/// llama.cpp computes in the latent space: it has the key half of `kv_b` of each head transposed, the value half as it is.
fn placing(spec: &ModelSpec, tensor: &ExpectedTensor) -> Option<Vec<Placed>> {
    let Role::Latent { layer, tensor: Latent::KvB } = tensor.role else { return None };
    let MixerSpec::Latent(latent) = &spec.blocks[layer].mixer else { return None };
    let &LatentAttentionSpec { heads, nope_dim, value_dim, .. } = latent;
    let rank = latent.kv_b.cols;
    let head = (heads, (nope_dim + value_dim) * rank);
    let piece = |start, loops| vec![Piece { source: tensor.name.clone(), start, loops }];
    Some(vec![
        Placed {
            name: "attn_k_b.weight",
            shape: vec![heads, rank, nope_dim],
            pieces: piece(0, vec![head, (rank, 1), (nope_dim, rank)]),
        },
        Placed {
            name: "attn_v_b.weight",
            shape: vec![heads, value_dim, rank],
            pieces: piece(nope_dim * rank, vec![head, (value_dim * rank, 1)]),
        },
    ])
}

fn latent_of(spec: &ModelSpec) -> Option<&LatentAttentionSpec> {
    spec.blocks.iter().find_map(|block| match &block.mixer {
        MixerSpec::Latent(latent) => Some(latent),
        _ => None,
    })
}

/// What YaRN multiplies the scores with, less one, for each doubling of e: `0.1 · mscale_all_dim`.
fn yarn_log_multiplier(latent: &LatentAttentionSpec, factor: f64) -> f64 {
    let plain = 1.0 / ((latent.nope_dim + latent.rope_dim) as f64).sqrt();
    ((latent.scale / plain).sqrt() - 1.0) / factor.ln()
}

fn write_keys(spec: &ModelSpec, config: &Config, out: &mut GgufKeys) -> Result<(), FamilyError> {
    let Some(latent) = latent_of(spec) else { return Ok(()) };
    let rank = latent.kv_b.cols;
    out.count("attention.head_count", latent.heads);
    out.count("attention.head_count_kv", 1);
    out.count("attention.key_length", rank + latent.rope_dim);
    out.count("attention.value_length", rank);
    out.count("attention.key_length_mla", latent.nope_dim + latent.rope_dim);
    out.count("attention.value_length_mla", latent.value_dim);
    out.count("attention.kv_lora_rank", rank);
    if let LatentQuery::LowRank { a, .. } = &latent.q {
        out.count("attention.q_lora_rank", a.rows);
    }
    let dense = spec.blocks.iter().take_while(|block| block.moe().is_none()).count();
    out.count("leading_dense_block_count", dense);
    out.count("expert_shared_count", config.opt_usize("n_shared_experts")?.unwrap_or(0));
    out.put("expert_gating_func", GATING_SOFTMAX);
    if let Some(moe) = spec.blocks.iter().find_map(BlockSpec::moe) {
        out.put("expert_weights_scale", moe.scale as f32);
    }
    if let RopeScaling::Yarn { factor, .. } = spec.rope.scaling {
        // Readers of this architecture take mscale_all_dim out of the rotation themselves.
        out.put("rope.scaling.attn_factor", 1.0f32);
        out.put("rope.scaling.yarn_log_multiplier", yarn_log_multiplier(latent, factor) as f32);
    }
    Ok(())
}

/// `expert_gating_func` of a softmax over all experts.
const GATING_SOFTMAX: u32 = 1;

fn read_keys(file: &GgufReader<'_>, config: &mut Map<String, Value>) -> Result<(), FamilyError> {
    let rope_dim = file.required_count("rope.dimension_count")?;
    // Files from before llama.cpp computed in the latent space give the widths of a head elsewhere.
    let width = |name: &str| match file.count(&format!("attention.{name}_mla"))? {
        Some(width) => Ok(width),
        None => file.required_count(&format!("attention.{name}")),
    };
    let gating = file.count("expert_gating_func")?.unwrap_or(u64::from(GATING_SOFTMAX));
    for (key, value) in [
        ("qk_rope_head_dim", json!(rope_dim)),
        ("qk_nope_head_dim", json!(width("key_length")?.saturating_sub(rope_dim))),
        ("v_head_dim", json!(width("value_length")?)),
        ("kv_lora_rank", json!(file.required_count("attention.kv_lora_rank")?)),
        ("q_lora_rank", json!(file.count("attention.q_lora_rank")?)),
        ("first_k_dense_replace", json!(file.count("leading_dense_block_count")?.unwrap_or(0))),
        ("n_shared_experts", json!(file.count("expert_shared_count")?.unwrap_or(0))),
        ("routed_scaling_factor", json!(file.number("expert_weights_scale")?.unwrap_or(1.0))),
        ("norm_topk_prob", json!(file.flag("expert_weights_norm")?.unwrap_or(false))),
        ("scoring_func", json!(if gating == u64::from(GATING_SOFTMAX) { "softmax" } else { "another" })),
    ] {
        config.insert(key.to_owned(), value);
    }
    if let Some(rope) = config.get_mut("rope_parameters").and_then(Value::as_object_mut)
        && let Some(multiplier) = file.number("rope.scaling.yarn_log_multiplier")?
    {
        rope.remove("attention_factor");
        for key in ["mscale", "mscale_all_dim"] {
            rope.insert(key.to_owned(), json!(multiplier * 10.0));
        }
    }
    Ok(())
}

/// What llama.cpp does not compute in this architecture.
fn limit(spec: &ModelSpec) -> Option<Limit> {
    if spec.blocks.iter().filter_map(BlockSpec::moe).any(|moe| matches!(moe.rule, RoutingRule::GroupLimited { .. })) {
        return Limit::new(
            "that chooses experts within groups by the best of each (group_limited_greedy; llama.cpp has no such rule)",
            "topk_method: greedy",
        );
    }
    if spec.blocks.iter().filter_map(BlockSpec::moe).any(|moe| moe.shared.is_none()) {
        return Limit::new("without shared experts, which llama.cpp asks for", "n_shared_experts of at least 1");
    }
    let is_lite = matches!(spec.blocks.len(), 26 | 27);
    let is_direct = latent_of(spec).is_some_and(|latent| matches!(latent.q, LatentQuery::Direct(_)));
    if is_direct != is_lite {
        return Limit::new(
            "whose queries are not made as llama.cpp takes for granted by the number of blocks",
            "direct queries (no q_lora_rank) in models of 26 or 27 blocks, q_lora_rank in all others",
        );
    }
    if let RopeScaling::Yarn { attention_factor, .. } = spec.rope.scaling
        && (attention_factor - 1.0).abs() > 1e-6
    {
        return Limit::new("whose YaRN has an mscale other than its mscale_all_dim", "both the same");
    }
    None
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
        let shared = Some(keys.count_or_none("n_shared_experts")?).filter(|&count| count > 0);
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
