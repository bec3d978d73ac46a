//! The pre-norm decoder that most open families share: names and shapes of its tensors from a config and a few traits.
//!
//! A family states how it differs ([`Traits`], [`Experts`]); everything else is read here, once, from the config keys
//! that mean the same in all of them. What is a number and not a name (factors, a clip) a family sets in the finished
//! specification.

use super::FamilyError;
use super::keys::Keys;
use super::rope::RopeSpec;
use super::spec::{
    Activation, AttentionSpec, BlockSpec, Carried, Factors, FfnSpec, LinearSpec, MixerSpec, MlpSpec, ModelSpec,
    MoeSpec, NormKind, NormSpec, RoutingRule, SharedExpertSpec,
};
use crate::model::Config;

/// Which of a layer's projections carry a bias.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum AttentionBias {
    /// All four, when the config key `attention_bias` says so.
    FromConfig,
    /// q, k and v always, o never.
    Qkv,
}

/// What the norms of queries and keys run over.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum QkNorm {
    None,
    /// Each head.
    Heads,
    /// A token's whole row of queries or keys.
    Rows,
}

/// When the config key `sliding_window` counts.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Window {
    /// When `use_sliding_window` is true.
    OnRequest,
    /// Whenever it is there.
    Always,
}

/// What distinguishes a family of the shared decoder.
#[derive(Clone, Copy)]
pub(super) struct Traits {
    pub family: &'static str,
    /// What the names of all tensors but the head's begin with.
    pub root: &'static str,
    pub attention_bias: AttentionBias,
    /// The config key `mlp_bias` is honoured.
    pub mlp_bias: bool,
    pub qk_norm: QkNorm,
    /// Of the norms between the halves of blocks and of the last one.
    pub norm: NormKind,
    pub window: Window,
    /// Base of the rotary frequencies when the config does not say.
    pub theta: f64,
    /// Blocks can be mixtures of experts.
    pub experts: Option<ReadExperts>,
}

impl Traits {
    /// A family that differs in nothing.
    pub const fn of(family: &'static str) -> Self {
        Traits {
            family,
            root: "model",
            attention_bias: AttentionBias::FromConfig,
            mlp_bias: false,
            qk_norm: QkNorm::None,
            norm: NormKind::Rms,
            window: Window::OnRequest,
            theta: 10_000.0,
            experts: None,
        }
    }
}

/// Reads what a family's config says about experts.
pub(super) type ReadExperts = fn(&Keys<'_>) -> Result<Experts, FamilyError>;

/// What a mixture's tensors are called, below the block.
#[derive(Clone, Copy)]
pub(super) struct ExpertNames {
    /// `mlp`; experts stand in `<block>.experts.<number>`.
    pub block: &'static str,
    /// The router, below `block`.
    pub router: &'static str,
    /// Gate, up and down of an expert.
    pub parts: [&'static str; 3],
}

impl ExpertNames {
    pub const MLP: ExpertNames =
        ExpertNames { block: "mlp", router: "gate", parts: ["gate_proj", "up_proj", "down_proj"] };
    pub const BLOCK_SPARSE: ExpertNames =
        ExpertNames { block: "block_sparse_moe", router: "gate", parts: ["w1", "w3", "w2"] };
}

/// An expert that every token passes.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    /// Below the mixture's block.
    pub name: &'static str,
    pub intermediate: usize,
    /// Name of the projection whose sigmoid weighs it, below the mixture's block.
    pub gate: Option<&'static str>,
}

/// Which blocks are mixtures, and of what.
pub(super) struct Experts {
    pub count: usize,
    pub top_k: usize,
    pub intermediate: usize,
    pub rule: RoutingRule,
    /// Factor on the weights of the chosen.
    pub scale: f64,
    pub shared: Option<Shared>,
    pub names: ExpertNames,
    pub dense_layers: Vec<usize>,
    pub sparse_step: usize,
}

impl Experts {
    fn is_sparse(&self, layer: usize) -> bool {
        !self.dense_layers.contains(&layer) && (layer + 1).is_multiple_of(self.sparse_step)
    }

    /// The mixture of the block whose tensors begin with `prefix`.
    pub fn mixture(&self, prefix: &str, hidden: usize) -> MoeSpec {
        let block = format!("{prefix}.{}", self.names.block);
        let expert = |e| mlp(&format!("{block}.experts.{e}"), self.names.parts, hidden, self.intermediate, false);
        let shared = |shared: Shared| SharedExpertSpec {
            mlp: mlp(&format!("{block}.{}", shared.name), ExpertNames::MLP.parts, hidden, shared.intermediate, false),
            gate: shared.gate.map(|gate| linear(&format!("{block}.{gate}"), 1, hidden, false)),
        };
        MoeSpec {
            router: linear(&format!("{block}.{}", self.names.router), self.count, hidden, false),
            correction: None,
            experts: (0..self.count).map(expert).collect(),
            top_k: self.top_k,
            rule: self.rule,
            scale: self.scale,
            shared: self.shared.map(shared),
        }
    }
}

struct Geometry<'a> {
    traits: &'a Traits,
    hidden: usize,
    intermediate: Option<usize>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool,
    /// Of each layer.
    windows: Vec<Option<usize>>,
}

/// Builds the specification of a model of the shared decoder kind.
///
/// # Errors
/// A key that is missing or has a wrong value; an activation or rope rule this build does not compute.
pub(super) fn spec(traits: &Traits, config: &Config) -> Result<ModelSpec, FamilyError> {
    let keys = Keys(config);
    keys.refuse_activation()?;
    let layers = keys.layers()?;
    let geometry = Geometry::read(traits, &keys, layers)?;
    let experts = traits.experts.map(|read| read(&keys)).transpose()?;
    let max_positions = keys.count("max_position_embeddings")?.unwrap_or(2048);
    let blocks = (0..layers).map(|index| geometry.block(index, experts.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let rope = RopeSpec::from_config(config, geometry.head_dim, max_positions, traits.theta)?;
    let final_norm = norm(&format!("{}.norm", traits.root), geometry.hidden, traits.norm);
    assemble(&keys, traits.family, traits.root, Body { blocks, final_norm, rope, max_positions, norm_eps: 1e-6 })
}

/// What a family says of its model beside names that are the same in all of them.
pub(super) struct Body {
    pub blocks: Vec<BlockSpec>,
    pub final_norm: NormSpec,
    pub rope: RopeSpec,
    pub max_positions: usize,
    /// When the config does not say.
    pub norm_eps: f64,
}

/// The specification of a model whose embedding stands under `root` and whose output projection is `lm_head`, or the
/// embedding where the config ties them.
///
/// # Errors
/// A key that is missing or has a wrong value.
pub(super) fn assemble(
    keys: &Keys<'_>,
    family: &'static str,
    root: &str,
    body: Body,
) -> Result<ModelSpec, FamilyError> {
    let mut spec = ModelSpec {
        family,
        hidden: body.final_norm.size,
        vocab: keys.required_count("vocab_size")?,
        blocks: body.blocks,
        head: "lm_head.weight".to_owned(),
        embed: format!("{root}.embed_tokens.weight"),
        final_norm: body.final_norm,
        head_bias: None,
        tied: false,
        rope: body.rope,
        norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(body.norm_eps),
        max_positions: body.max_positions,
        factors: Factors::default(),
        carried: Vec::new(),
    };
    if keys.flag("tie_word_embeddings", false)? {
        tie(&mut spec);
    }
    Ok(spec)
}

/// Makes the embedding the output projection.
pub(super) fn tie(spec: &mut ModelSpec) {
    spec.head.clone_from(&spec.embed);
    spec.tied = true;
}

/// A part that goes along, whose tensors begin with `prefix`; they must be there when the config has a `key`.
pub(super) fn carried(keys: &Keys<'_>, name: &'static str, prefix: &str, key: &str) -> Carried {
    let required = keys.0.get(key).is_some();
    Carried { name, prefixes: vec![prefix.to_owned()], required, mixtures: Vec::new() }
}

/// Reads the expert keys that mean the same in all families; `width` is the key of an expert's inner width.
///
/// # Errors
/// A key that is missing or has a wrong value, two counts of experts that differ.
pub(super) fn experts(keys: &Keys<'_>, width: &str) -> Result<Experts, FamilyError> {
    keys.0.num_experts()?;
    let count = keys.as_experts(keys.count_of(&["num_experts", "num_local_experts", "n_routed_experts"])?)?;
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
        intermediate: keys.required_count(width)?,
        rule: RoutingRule::SoftmaxTopK { renormalise: keys.flag("norm_topk_prob", false)? },
        scale: 1.0,
        shared: None,
        names: ExpertNames::MLP,
        dense_layers: keys.indices("mlp_only_layers")?,
        sparse_step: keys.count("decoder_sparse_step")?.unwrap_or(1),
    })
}

/// Each layer's window, where it cuts anything off within the positions the model is made for.
fn windows(traits: &Traits, keys: &Keys<'_>, layers: usize) -> Result<Vec<Option<usize>>, FamilyError> {
    let whole = vec![None; layers];
    let Some(window) = keys.count("sliding_window")? else { return Ok(whole) };
    let on = traits.window == Window::Always || keys.flag("use_sliding_window", false)?;
    let cuts = keys.count("max_position_embeddings")?.is_none_or(|positions| window < positions);
    if !on || !cuts {
        return Ok(whole);
    }
    let slides: Vec<bool> = match keys.texts("layer_types")? {
        Some(kinds) if kinds.len() == layers => kinds.iter().map(|&kind| kind == "sliding_attention").collect(),
        Some(kinds) => {
            return Err(FamilyError::BadKey {
                key: "layer_types".to_owned(),
                found: format!("a list of {}", kinds.len()),
                wanted: format!("one kind for each of the {layers} layers"),
            });
        }
        None => {
            let first = keys.0.opt_usize("max_window_layers")?.unwrap_or(0);
            (0..layers).map(|layer| layer >= first).collect()
        }
    };
    Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
}

impl<'a> Geometry<'a> {
    fn read(traits: &'a Traits, keys: &Keys<'_>, layers: usize) -> Result<Self, FamilyError> {
        let hidden = keys.required_count("hidden_size")?;
        let (heads, kv_heads) = keys.heads()?;
        let head_dim = keys.count("head_dim")?.unwrap_or(hidden / heads);
        let (qkv_bias, o_bias) = match traits.attention_bias {
            AttentionBias::Qkv => (true, false),
            AttentionBias::FromConfig => {
                let all = keys.flag("attention_bias", false)?;
                (all, all)
            }
        };
        let mlp_bias = traits.mlp_bias && keys.flag("mlp_bias", false)?;
        let intermediate = keys.count("intermediate_size")?;
        let windows = windows(traits, keys, layers)?;
        Ok(Geometry { traits, hidden, intermediate, heads, kv_heads, head_dim, qkv_bias, o_bias, mlp_bias, windows })
    }

    fn block(&self, index: usize, experts: Option<&Experts>) -> Result<BlockSpec, FamilyError> {
        let prefix = format!("{}.layers.{index}", self.traits.root);
        let ffn = match experts.filter(|e| e.is_sparse(index)) {
            Some(experts) => FfnSpec::Moe(experts.mixture(&prefix, self.hidden)),
            None => {
                let missing = || FamilyError::MissingKey { key: "intermediate_size".to_owned() };
                let width = self.intermediate.ok_or_else(missing)?;
                let prefix = format!("{prefix}.mlp");
                FfnSpec::Dense(mlp(&prefix, ExpertNames::MLP.parts, self.hidden, width, self.mlp_bias))
            }
        };
        let between = |name: &str| norm(&format!("{prefix}.{name}"), self.hidden, self.traits.norm);
        Ok(BlockSpec {
            index,
            attn_norm: between("input_layernorm"),
            mixer: MixerSpec::Attention(self.attention(&format!("{prefix}.self_attn"), self.windows[index])),
            ffn_norm: between("post_attention_layernorm"),
            ffn,
        })
    }

    fn attention(&self, prefix: &str, window: Option<usize>) -> AttentionSpec {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let qk_norm = |name: &str, row: usize| {
            let norm = |size| Some(norm(&format!("{prefix}.{name}"), size, NormKind::Rms));
            match self.traits.qk_norm {
                QkNorm::None => None,
                QkNorm::Heads => norm(self.head_dim),
                QkNorm::Rows => norm(row),
            }
        };
        AttentionSpec {
            q: linear(&format!("{prefix}.q_proj"), queries, self.hidden, self.qkv_bias),
            k: linear(&format!("{prefix}.k_proj"), keys, self.hidden, self.qkv_bias),
            v: linear(&format!("{prefix}.v_proj"), keys, self.hidden, self.qkv_bias),
            o: linear(&format!("{prefix}.o_proj"), self.hidden, queries, self.o_bias),
            q_norm: qk_norm("q_norm", queries),
            k_norm: qk_norm("k_norm", keys),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            clip: None,
            output_gate: false,
            window,
            sinks: None,
        }
    }
}

pub(super) fn norm(prefix: &str, size: usize, kind: NormKind) -> NormSpec {
    let bias = (kind == NormKind::Layer).then(|| format!("{prefix}.bias"));
    NormSpec { weight: format!("{prefix}.weight"), bias, size, kind }
}

pub(super) fn linear(prefix: &str, rows: usize, cols: usize, bias: bool) -> LinearSpec {
    LinearSpec { weight: format!("{prefix}.weight"), bias: bias.then(|| format!("{prefix}.bias")), rows, cols }
}

/// A gated MLP; `parts` are the names of gate, up and down.
pub(super) fn mlp(prefix: &str, parts: [&str; 3], hidden: usize, intermediate: usize, bias: bool) -> MlpSpec {
    let [gate, up, down] = parts.map(|part| format!("{prefix}.{part}"));
    MlpSpec {
        gate: linear(&gate, intermediate, hidden, bias),
        up: linear(&up, intermediate, hidden, bias),
        down: linear(&down, hidden, intermediate, bias),
        activation: Activation::Silu,
    }
}
