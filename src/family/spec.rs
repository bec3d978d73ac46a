//! What a model is made of: blocks, linear layers, norms, and the tensor each of them is read from.
//!
//! A [`ModelSpec`] is built by a family from `config.json` alone. The engine runs it, the compressors and writers ask
//! it which tensor plays which [`Role`](super::Role); nobody else looks at tensor names. Which tensors that makes is
//! listed in `tensors.rs`.

use super::role::Part;
use super::rope::RopeSpec;

/// A linear layer `y = x Wᵀ + b`; `weight` is stored `[rows, cols]` = (out, in).
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    pub weight: String,
    pub bias: Option<String>,
    pub rows: usize,
    pub cols: usize,
}

/// How a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) · w
    Rms,
    /// x / rms(x) · (1 + w)
    RmsOffset,
    /// (x − mean(x)) / std(x) · w + b
    Layer,
}

/// A norm with a learned gain of `size` elements.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    pub weight: String,
    /// Only of [`NormKind::Layer`].
    pub bias: Option<String>,
    pub size: usize,
    pub kind: NormKind,
}

/// Causal grouped-query attention: `heads` query heads share `kv_heads` key/value heads of `head_dim` elements.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// `[heads · head_dim, hidden]`; with `output_gate` twice the rows: each head's query, then its gate.
    pub q: LinearSpec,
    pub k: LinearSpec,
    pub v: LinearSpec,
    pub o: LinearSpec,
    /// Norm of the queries before rope: of each head (`size` = `head_dim`), or of a token's whole row
    /// (`size` = `heads · head_dim`).
    pub q_norm: Option<NormSpec>,
    /// The same for the keys.
    pub k_norm: Option<NormSpec>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on the scores before the softmax; usually 1 / √head_dim.
    pub scale: f64,
    /// q, k and v are clamped to ± this after their products and norms, before rope.
    pub clip: Option<f64>,
    /// The mixed heads are multiplied by the sigmoid of a gate that comes out of `q`.
    pub output_gate: bool,
    /// Each query sees only the last `window` positions, its own included.
    pub window: Option<usize>,
    /// `[heads]`: a logit per head that takes part in the softmax and adds no value.
    pub sinks: Option<String>,
}

/// How queries of latent attention are made.
#[derive(Clone, Debug, PartialEq)]
pub enum LatentQuery {
    Direct(LinearSpec),
    /// b(norm(a(x)))
    LowRank {
        a: LinearSpec,
        norm: NormSpec,
        b: LinearSpec,
    },
}

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values come from one small vector per token.
///
/// `kv_a` gives `[kv_rank + rope_dim]`: the latent vector, and the part of the key that is rotated and shared by all
/// heads. `kv_b` turns the normed latent vector into `heads · (nope_dim + value_dim)`: each head's other key part, then
/// its value. A query head is `nope_dim` elements, then `rope_dim` that are rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentAttentionSpec {
    pub q: LatentQuery,
    pub kv_a: LinearSpec,
    pub kv_a_norm: NormSpec,
    pub kv_b: LinearSpec,
    pub o: LinearSpec,
    pub heads: usize,
    pub nope_dim: usize,
    pub rope_dim: usize,
    pub value_dim: usize,
    /// Factor on the scores before the softmax.
    pub scale: f64,
}

/// Gated delta-rule linear attention (arXiv 2412.06464) with a short causal convolution before it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaNetSpec {
    /// `[2 · key_heads · key_dim + value_heads · value_dim, hidden]`: queries, keys, values.
    pub qkv: LinearSpec,
    /// Output gate `[value_heads · value_dim, hidden]`.
    pub z: LinearSpec,
    /// Decay input `[value_heads, hidden]`.
    pub a: LinearSpec,
    /// Write strength `[value_heads, hidden]`.
    pub b: LinearSpec,
    /// `[rows of qkv, 1, kernel]`.
    pub conv: String,
    /// `[value_heads]`
    pub a_log: String,
    /// `[value_heads]`
    pub dt_bias: String,
    /// Over `value_dim`, before the gate.
    pub norm: NormSpec,
    pub out: LinearSpec,
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Positions the convolution sees.
    pub kernel: usize,
}

/// What mixes tokens in a block.
#[derive(Clone, Debug, PartialEq)]
pub enum MixerSpec {
    Attention(AttentionSpec),
    Latent(LatentAttentionSpec),
    DeltaNet(DeltaNetSpec),
}

/// How a gated MLP joins its two inner projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// silu(gate) · up
    Silu,
    /// gate' · sigmoid(alpha · gate') · (up' + 1), gate' = min(gate, limit), up' = clamp(up, ± limit)
    ClampedSwiglu { alpha: f64, limit: f64 },
}

/// A gated MLP: `down(activation(gate(x), up(x)))`.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    pub gate: LinearSpec,
    pub up: LinearSpec,
    pub down: LinearSpec,
    pub activation: Activation,
}

/// One routed expert.
pub type ExpertSpec = MlpSpec;

/// How a router turns logits into experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RoutingRule {
    /// Softmax over all logits, the `top_k` largest; divided by their sum if `renormalise`.
    SoftmaxTopK { renormalise: bool },
    /// The `top_k` largest logits, softmax over these.
    TopKSoftmax,
    /// The two-expert rule of Phi-3.5-MoE (SparseMixer-v2 at inference): each choice's weight is its softmax among the
    /// logits within `2 · jitter` of the largest, relatively; the second is chosen with the first taken out.
    SparseMixer { jitter: f64 },
    /// As `SoftmaxTopK` within the `kept_groups` of `groups` equal groups whose best expert is most probable.
    GroupLimited { groups: usize, kept_groups: usize, renormalise: bool },
}

/// An expert that every token passes.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedExpertSpec {
    pub mlp: MlpSpec,
    /// `[1, hidden]`: the output is multiplied by the sigmoid of this product.
    pub gate: Option<LinearSpec>,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    pub router: LinearSpec,
    /// `[experts]`: added to the probabilities for choosing, not for weighing.
    pub correction: Option<String>,
    pub experts: Vec<ExpertSpec>,
    pub top_k: usize,
    pub rule: RoutingRule,
    /// Factor on the weights of the chosen experts.
    pub scale: f64,
    pub shared: Option<SharedExpertSpec>,
}

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one per block")]
pub enum FfnSpec {
    Dense(MlpSpec),
    Moe(MoeSpec),
}

/// One decoder block: `x += mixer(norm(x)); x += ffn(norm(x))`, both additions times the model's residual factor.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    pub index: usize,
    pub attn_norm: NormSpec,
    pub mixer: MixerSpec,
    pub ffn_norm: NormSpec,
    pub ffn: FfnSpec,
}

/// A part of the checkpoint that is not the language model and goes along byte for byte: a vision tower, a talker, a
/// draft head.
#[derive(Clone, Debug, PartialEq)]
pub struct Carried {
    /// For people: `vision tower`, `multi-token prediction head`.
    pub name: &'static str,
    /// Every tensor whose name begins with one of these belongs to it.
    pub prefixes: Vec<String>,
    /// The config declares it, so tensors of it must be there.
    pub required: bool,
    /// Mixtures in it that must keep as many experts as the model.
    pub mixtures: Vec<MoeSpec>,
}

/// A whole decoder-only language model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Name of the family in the registry.
    pub family: &'static str,
    pub hidden: usize,
    pub vocab: usize,
    pub blocks: Vec<BlockSpec>,
    /// Name of the token embedding `[vocab, hidden]`.
    pub embed: String,
    pub final_norm: NormSpec,
    /// Name of the output projection `[vocab, hidden]`; the embedding's own name when `tied`.
    pub head: String,
    /// `[vocab]`
    pub head_bias: Option<String>,
    pub tied: bool,
    pub rope: RopeSpec,
    pub norm_eps: f64,
    pub max_positions: usize,
    pub factors: Factors,
    pub carried: Vec<Carried>,
}

/// Constant factors of a model; all 1 for most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// On the embedding.
    pub embedding: f64,
    /// On what each half of a block adds.
    pub residual: f64,
    /// On the logits.
    pub logits: f64,
}

impl Carried {
    /// True for a tensor of this part.
    pub fn holds(&self, name: &str) -> bool {
        self.prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }

    /// True when any of the names is of this part.
    pub fn present(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.holds(name))
    }
}

impl Default for Factors {
    fn default() -> Self {
        Factors { embedding: 1.0, residual: 1.0, logits: 1.0 }
    }
}

impl MlpSpec {
    pub fn part(&self, part: Part) -> &LinearSpec {
        match part {
            Part::Gate => &self.gate,
            Part::Up => &self.up,
            Part::Down => &self.down,
        }
    }

    /// Elements of the three matrices.
    pub fn elements(&self) -> u64 {
        Part::ALL.iter().map(|&p| self.part(p).rows as u64 * self.part(p).cols as u64).sum()
    }
}

impl MoeSpec {
    /// The weights of the chosen experts sum to one (before `scale`).
    pub fn renormalises(&self) -> bool {
        match self.rule {
            RoutingRule::SoftmaxTopK { renormalise } | RoutingRule::GroupLimited { renormalise, .. } => renormalise,
            RoutingRule::TopKSoftmax => true,
            RoutingRule::SparseMixer { .. } => false,
        }
    }
}

impl BlockSpec {
    /// The mixture of experts of this block, if it has one.
    pub fn moe(&self) -> Option<&MoeSpec> {
        match &self.ffn {
            FfnSpec::Moe(moe) => Some(moe),
            FfnSpec::Dense(_) => None,
        }
    }

    /// The softmax attention over full keys of this block, if that is its mixer.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            MixerSpec::Attention(attention) => Some(attention),
            MixerSpec::Latent(_) | MixerSpec::DeltaNet(_) => None,
        }
    }
}

impl ModelSpec {
    /// Largest number of experts in a block and the number used per token; `None` for a dense model.
    pub fn experts(&self) -> Option<(usize, usize)> {
        self.blocks.iter().filter_map(BlockSpec::moe).map(|m| (m.experts.len(), m.top_k)).max()
    }
}
