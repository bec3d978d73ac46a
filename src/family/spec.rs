//! What a model is made of: blocks, linear layers, norms, and the tensor each of them is read from.
//!
//! A [`ModelSpec`] is built by a family from `config.json` alone. The engine runs it, the compressors and writers ask
//! it which tensor plays which [`Role`]; nobody else looks at tensor names.

use super::rope::RopeSpec;

/// A linear layer `y = x Wᵀ + b`; `weight` is stored `[rows, cols]` = (out, in).
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    pub weight: String,
    pub bias: Option<String>,
    pub rows: usize,
    pub cols: usize,
}

/// A root-mean-square norm with a learned gain of `size` elements.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    pub weight: String,
    pub size: usize,
}

/// Causal grouped-query attention: `heads` query heads share `kv_heads` key/value heads of `head_dim` elements.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    pub q: LinearSpec,
    pub k: LinearSpec,
    pub v: LinearSpec,
    pub o: LinearSpec,
    /// Norm over `head_dim` applied to each query head before rope.
    pub q_norm: Option<NormSpec>,
    /// Norm over `head_dim` applied to each key head before rope.
    pub k_norm: Option<NormSpec>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// A gated MLP: `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    pub gate: LinearSpec,
    pub up: LinearSpec,
    pub down: LinearSpec,
}

/// One routed expert.
pub type ExpertSpec = MlpSpec;

/// A mixture of experts: softmax over all router logits, the `top_k` largest are used, renormalised if `norm_topk`.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    pub router: LinearSpec,
    pub experts: Vec<ExpertSpec>,
    pub top_k: usize,
    pub norm_topk: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FfnSpec {
    Dense(MlpSpec),
    Moe(MoeSpec),
}

/// One decoder block: `x += attention(norm(x)); x += ffn(norm(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    pub index: usize,
    pub attn_norm: NormSpec,
    pub attention: AttentionSpec,
    pub ffn_norm: NormSpec,
    pub ffn: FfnSpec,
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
    pub tied: bool,
    pub rope: RopeSpec,
    pub norm_eps: f64,
    pub max_positions: usize,
}

/// Which of the three matrices of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    Gate,
    Up,
    Down,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Gate, Part::Up, Part::Down];
}

/// What a tensor does. The number is the block's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Embed,
    AttnNorm(usize),
    Q(usize),
    QBias(usize),
    K(usize),
    KBias(usize),
    V(usize),
    VBias(usize),
    O(usize),
    OBias(usize),
    QNorm(usize),
    KNorm(usize),
    FfnNorm(usize),
    Mlp { layer: usize, part: Part },
    MlpBias { layer: usize, part: Part },
    Router(usize),
    Expert { layer: usize, expert: usize, part: Part },
    FinalNorm,
    Head,
}

impl Role {
    /// The block the tensor belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Role::Embed | Role::FinalNorm | Role::Head => None,
            Role::AttnNorm(l)
            | Role::Q(l)
            | Role::QBias(l)
            | Role::K(l)
            | Role::KBias(l)
            | Role::V(l)
            | Role::VBias(l)
            | Role::O(l)
            | Role::OBias(l)
            | Role::QNorm(l)
            | Role::KNorm(l)
            | Role::FfnNorm(l)
            | Role::Router(l) => Some(l),
            Role::Mlp { layer, .. } | Role::MlpBias { layer, .. } | Role::Expert { layer, .. } => Some(layer),
        }
    }

    /// True for the weight of a linear layer inside a block, router excluded: what a quantizer of linear layers takes.
    pub fn is_linear(self) -> bool {
        matches!(self, Role::Q(_) | Role::K(_) | Role::V(_) | Role::O(_) | Role::Mlp { .. } | Role::Expert { .. })
    }

    /// True for a norm gain or a bias (one dimension).
    pub fn is_vector(self) -> bool {
        matches!(
            self,
            Role::AttnNorm(_)
                | Role::QBias(_)
                | Role::KBias(_)
                | Role::VBias(_)
                | Role::OBias(_)
                | Role::QNorm(_)
                | Role::KNorm(_)
                | Role::FfnNorm(_)
                | Role::MlpBias { .. }
                | Role::FinalNorm
        )
    }
}

/// A tensor the model must have.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub role: Role,
}

impl ExpectedTensor {
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
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
}

impl BlockSpec {
    /// The mixture of experts of this block, if it has one.
    pub fn moe(&self) -> Option<&MoeSpec> {
        match &self.ffn {
            FfnSpec::Moe(moe) => Some(moe),
            FfnSpec::Dense(_) => None,
        }
    }

    /// Every tensor of the block, in the order a forward pass meets them.
    pub fn tensors(&self) -> Vec<ExpectedTensor> {
        let l = self.index;
        let a = &self.attention;
        let mut out = TensorList::default();
        out.norm(&self.attn_norm, Role::AttnNorm(l));
        out.linear(&a.q, Role::Q(l), Role::QBias(l));
        out.linear(&a.k, Role::K(l), Role::KBias(l));
        out.linear(&a.v, Role::V(l), Role::VBias(l));
        for (norm, role) in [(&a.q_norm, Role::QNorm(l)), (&a.k_norm, Role::KNorm(l))] {
            if let Some(norm) = norm {
                out.norm(norm, role);
            }
        }
        out.linear(&a.o, Role::O(l), Role::OBias(l));
        out.norm(&self.ffn_norm, Role::FfnNorm(l));
        match &self.ffn {
            FfnSpec::Dense(mlp) => {
                for part in Part::ALL {
                    out.linear(mlp.part(part), Role::Mlp { layer: l, part }, Role::MlpBias { layer: l, part });
                }
            }
            FfnSpec::Moe(moe) => {
                out.linear(&moe.router, Role::Router(l), Role::Router(l));
                for (expert, mlp) in moe.experts.iter().enumerate() {
                    for part in Part::ALL {
                        let role = Role::Expert { layer: l, expert, part };
                        out.linear(mlp.part(part), role, role);
                    }
                }
            }
        }
        out.0
    }

    /// Parameters of the block, all experts counted.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(ExpectedTensor::elements).sum()
    }

    /// Parameters one token meets in this block: routed experts count `top_k` times.
    pub fn active_parameters(&self) -> u64 {
        let unused = self.moe().map_or(0, |moe| {
            let one = moe.experts.first().map_or(0, |e| Part::ALL.iter().map(|&p| linear_elements(e.part(p))).sum());
            one * moe.experts.len().saturating_sub(moe.top_k) as u64
        });
        self.parameters() - unused
    }
}

impl ModelSpec {
    /// Every tensor the model must have, in the order a forward pass meets them. A tied head is not listed twice.
    pub fn tensors(&self) -> Vec<ExpectedTensor> {
        let mut out = TensorList::default();
        let matrix =
            |name: &str, role| ExpectedTensor { name: name.to_owned(), shape: vec![self.vocab, self.hidden], role };
        out.0.push(matrix(&self.embed, Role::Embed));
        for block in &self.blocks {
            out.0.extend(block.tensors());
        }
        out.norm(&self.final_norm, Role::FinalNorm);
        if !self.tied {
            out.0.push(matrix(&self.head, Role::Head));
        }
        out.0
    }

    /// All parameters; a tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(ExpectedTensor::elements).sum()
    }

    /// Parameters that one token meets: only `top_k` experts of each mixture count.
    pub fn active_parameters(&self) -> u64 {
        let blocks: u64 = self.blocks.iter().map(|b| b.parameters() - b.active_parameters()).sum();
        self.parameters() - blocks
    }

    /// Largest number of experts in a block and the number used per token; `None` for a dense model.
    pub fn experts(&self) -> Option<(usize, usize)> {
        self.blocks.iter().filter_map(BlockSpec::moe).map(|m| (m.experts.len(), m.top_k)).max()
    }
}

fn linear_elements(linear: &LinearSpec) -> u64 {
    linear.rows as u64 * linear.cols as u64
}

#[derive(Default)]
struct TensorList(Vec<ExpectedTensor>);

impl TensorList {
    fn norm(&mut self, norm: &NormSpec, role: Role) {
        self.0.push(ExpectedTensor { name: norm.weight.clone(), shape: vec![norm.size], role });
    }

    fn linear(&mut self, linear: &LinearSpec, role: Role, bias_role: Role) {
        self.0.push(ExpectedTensor { name: linear.weight.clone(), shape: vec![linear.rows, linear.cols], role });
        if let Some(bias) = &linear.bias {
            self.0.push(ExpectedTensor { name: bias.clone(), shape: vec![linear.rows], role: bias_role });
        }
    }
}
