//! The pre-norm decoder that most open families share: names and shapes of its tensors from a config and a few traits.
//!
//! A family states how it differs ([`Traits`], [`Experts`]); everything else is read here, once, from the config keys
//! that mean the same in all of them.

use super::FamilyError;
use super::keys::Keys;
use super::rope::RopeSpec;
use super::spec::{
    Activation, AttentionSpec, BlockSpec, Factors, FfnSpec, LinearSpec, MixerSpec, MlpSpec, ModelSpec, MoeSpec,
    NormKind, NormSpec, RoutingRule,
};
use crate::model::Config;

/// How a family's head width is found when the config does not say.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum HeadDim {
    HiddenPerHead,
    Fixed(usize),
}

/// Which of a layer's projections carry a bias.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum AttentionBias {
    /// All four, when the config key `attention_bias` says so.
    FromConfig,
    /// q, k and v always, o never.
    Qkv,
}

/// What distinguishes a family of the shared decoder.
pub(super) struct Traits {
    pub family: &'static str,
    pub head_dim: HeadDim,
    pub attention_bias: AttentionBias,
    /// The config key `mlp_bias` is honoured.
    pub mlp_bias: bool,
    /// Norms over each query and key head.
    pub qk_norm: bool,
    /// Blocks can be mixtures of experts.
    pub experts: Option<ReadExperts>,
}

/// Reads what a family's config says about experts.
pub(super) type ReadExperts = fn(&Keys<'_>) -> Result<Experts, FamilyError>;

/// Which blocks are mixtures, and of what.
pub(super) struct Experts {
    pub count: usize,
    pub top_k: usize,
    pub intermediate: usize,
    pub norm_topk: bool,
    pub dense_layers: Vec<usize>,
    pub sparse_step: usize,
}

impl Experts {
    fn is_sparse(&self, layer: usize) -> bool {
        !self.dense_layers.contains(&layer) && (layer + 1).is_multiple_of(self.sparse_step)
    }
}

struct Geometry {
    hidden: usize,
    intermediate: Option<usize>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool,
    qk_norm: bool,
}

/// Builds the specification of a model of the shared decoder kind.
///
/// # Errors
/// A key that is missing or has a wrong value; an activation, rope rule or sliding window this build does not compute.
pub(super) fn spec(traits: &Traits, config: &Config) -> Result<ModelSpec, FamilyError> {
    let keys = Keys(config);
    refuse_unknown_arithmetic(&keys)?;
    let layers = keys.required_count("num_hidden_layers")?;
    refuse_sliding_window(&keys, layers)?;
    let geometry = Geometry::read(traits, &keys)?;
    let experts = traits.experts.map(|read| read(&keys)).transpose()?;
    let max_positions = keys.count("max_position_embeddings")?.unwrap_or(2048);
    let blocks = (0..layers).map(|index| geometry.block(index, experts.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let tied = keys.flag("tie_word_embeddings", false)?;
    let embed = "model.embed_tokens.weight".to_owned();
    Ok(ModelSpec {
        family: traits.family,
        hidden: geometry.hidden,
        vocab: keys.required_count("vocab_size")?,
        blocks,
        head: if tied { embed.clone() } else { "lm_head.weight".to_owned() },
        embed,
        final_norm: norm("model.norm", geometry.hidden),
        head_bias: None,
        tied,
        rope: RopeSpec::from_config(config, geometry.head_dim, max_positions)?,
        norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
        max_positions,
        factors: Factors::default(),
        carried: Vec::new(),
    })
}

/// Reads the expert keys with the names the unfused layout uses.
pub(super) fn experts(keys: &Keys<'_>) -> Result<Experts, FamilyError> {
    let count = keys.count_of(&["num_experts", "num_local_experts"])?;
    let top_k = keys.required_count("num_experts_per_tok")?;
    if top_k > count {
        return Err(FamilyError::BadKey {
            key: "num_experts_per_tok".to_owned(),
            found: top_k.to_string(),
            wanted: format!("at most the number of experts, {count}"),
        });
    }
    Ok(Experts {
        count,
        top_k,
        intermediate: keys.required_count("moe_intermediate_size")?,
        norm_topk: keys.flag("norm_topk_prob", false)?,
        dense_layers: keys.indices("mlp_only_layers")?,
        sparse_step: keys.count("decoder_sparse_step")?.unwrap_or(1),
    })
}

fn refuse_unknown_arithmetic(keys: &Keys<'_>) -> Result<(), FamilyError> {
    match keys.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(FamilyError::Unsupported {
            what: format!("config key hidden_act = {other:?}"),
            supported: "silu".to_owned(),
        }),
    }
}

/// A window that never cuts anything off is ordinary attention; one that does would silently change every figure.
fn refuse_sliding_window(keys: &Keys<'_>, layers: usize) -> Result<(), FamilyError> {
    let Some(window) = keys.count("sliding_window")? else { return Ok(()) };
    if !keys.flag("use_sliding_window", false)? {
        return Ok(());
    }
    let sliding = match keys.texts("layer_types")? {
        Some(kinds) => kinds.contains(&"sliding_attention"),
        None => keys.0.opt_usize("max_window_layers")?.is_none_or(|first| first < layers),
    };
    let cuts = keys.count("max_position_embeddings")?.is_none_or(|positions| window < positions);
    if sliding && cuts {
        return Err(FamilyError::Unsupported {
            what: format!("sliding-window attention (sliding_window = {window})"),
            supported: "full causal attention (use_sliding_window = false)".to_owned(),
        });
    }
    Ok(())
}

impl Geometry {
    fn read(traits: &Traits, keys: &Keys<'_>) -> Result<Self, FamilyError> {
        let hidden = keys.required_count("hidden_size")?;
        let heads = keys.required_count("num_attention_heads")?;
        let kv_heads = keys.count("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(FamilyError::BadKey {
                key: "num_key_value_heads".to_owned(),
                found: kv_heads.to_string(),
                wanted: format!("a divisor of num_attention_heads = {heads}"),
            });
        }
        let head_dim = match (keys.count("head_dim")?, traits.head_dim) {
            (Some(given), _) => given,
            (None, HeadDim::HiddenPerHead) => hidden / heads,
            (None, HeadDim::Fixed(width)) => width,
        };
        let (qkv_bias, o_bias) = match traits.attention_bias {
            AttentionBias::Qkv => (true, false),
            AttentionBias::FromConfig => {
                let all = keys.flag("attention_bias", false)?;
                (all, all)
            }
        };
        let mlp_bias = traits.mlp_bias && keys.flag("mlp_bias", false)?;
        let intermediate = keys.count("intermediate_size")?;
        let qk_norm = traits.qk_norm;
        Ok(Geometry { hidden, intermediate, heads, kv_heads, head_dim, qkv_bias, o_bias, mlp_bias, qk_norm })
    }

    fn block(&self, index: usize, experts: Option<&Experts>) -> Result<BlockSpec, FamilyError> {
        let prefix = format!("model.layers.{index}");
        let ffn = match experts.filter(|e| e.is_sparse(index)) {
            Some(experts) => FfnSpec::Moe(self.moe(&prefix, experts)),
            None => {
                let missing = || FamilyError::MissingKey { key: "intermediate_size".to_owned() };
                let width = self.intermediate.ok_or_else(missing)?;
                FfnSpec::Dense(mlp(&format!("{prefix}.mlp"), self.hidden, width, self.mlp_bias))
            }
        };
        Ok(BlockSpec {
            index,
            attn_norm: norm(&format!("{prefix}.input_layernorm"), self.hidden),
            mixer: MixerSpec::Attention(self.attention(&format!("{prefix}.self_attn"))),
            ffn_norm: norm(&format!("{prefix}.post_attention_layernorm"), self.hidden),
            ffn,
        })
    }

    fn attention(&self, prefix: &str) -> AttentionSpec {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let head_norm = |name: &str| self.qk_norm.then(|| norm(&format!("{prefix}.{name}"), self.head_dim));
        AttentionSpec {
            q: linear(&format!("{prefix}.q_proj"), queries, self.hidden, self.qkv_bias),
            k: linear(&format!("{prefix}.k_proj"), keys, self.hidden, self.qkv_bias),
            v: linear(&format!("{prefix}.v_proj"), keys, self.hidden, self.qkv_bias),
            o: linear(&format!("{prefix}.o_proj"), self.hidden, queries, self.o_bias),
            q_norm: head_norm("q_norm"),
            k_norm: head_norm("k_norm"),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            clip: None,
            output_gate: false,
            window: None,
            sinks: None,
        }
    }

    fn moe(&self, prefix: &str, experts: &Experts) -> MoeSpec {
        let expert = |e| mlp(&format!("{prefix}.mlp.experts.{e}"), self.hidden, experts.intermediate, false);
        MoeSpec {
            router: linear(&format!("{prefix}.mlp.gate"), experts.count, self.hidden, false),
            experts: (0..experts.count).map(expert).collect(),
            top_k: experts.top_k,
            rule: RoutingRule::SoftmaxTopK { renormalise: experts.norm_topk },
            correction: None,
            scale: 1.0,
            shared: None,
        }
    }
}

fn norm(prefix: &str, size: usize) -> NormSpec {
    NormSpec { weight: format!("{prefix}.weight"), bias: None, size, kind: NormKind::Rms }
}

fn linear(prefix: &str, rows: usize, cols: usize, bias: bool) -> LinearSpec {
    LinearSpec { weight: format!("{prefix}.weight"), bias: bias.then(|| format!("{prefix}.bias")), rows, cols }
}

fn mlp(prefix: &str, hidden: usize, intermediate: usize, bias: bool) -> MlpSpec {
    MlpSpec {
        gate: linear(&format!("{prefix}.gate_proj"), intermediate, hidden, bias),
        up: linear(&format!("{prefix}.up_proj"), intermediate, hidden, bias),
        down: linear(&format!("{prefix}.down_proj"), hidden, intermediate, bias),
        activation: Activation::Silu,
    }
}
