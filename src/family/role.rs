//! What a tensor does in a model.

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

/// A tensor of a delta-rule mixer: see [`DeltaNetSpec`](super::DeltaNetSpec).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Delta {
    Qkv,
    Z,
    A,
    B,
    Conv,
    ALog,
    DtBias,
    Norm,
    Out,
}

/// A tensor of latent attention: see [`LatentAttentionSpec`](super::LatentAttentionSpec).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Latent {
    QA,
    QANorm,
    QB,
    KvA,
    KvANorm,
    KvB,
}

/// What a tensor does. The number is the block's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Embed,
    AttnNorm(usize),
    AttnNormBias(usize),
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
    Sinks(usize),
    Latent { layer: usize, tensor: Latent },
    LatentBias { layer: usize, tensor: Latent },
    Delta { layer: usize, tensor: Delta },
    FfnNorm(usize),
    FfnNormBias(usize),
    Mlp { layer: usize, part: Part },
    MlpBias { layer: usize, part: Part },
    Router(usize),
    RouterBias(usize),
    RouterCorrection(usize),
    Expert { layer: usize, expert: usize, part: Part },
    ExpertBias { layer: usize, expert: usize, part: Part },
    Shared { layer: usize, part: Part },
    SharedBias { layer: usize, part: Part },
    SharedGate(usize),
    FinalNorm,
    FinalNormBias,
    Head,
    HeadBias,
}

impl Role {
    /// The block the tensor belongs to.
    pub fn layer(self) -> Option<usize> {
        match self {
            Role::Embed | Role::FinalNorm | Role::FinalNormBias | Role::Head | Role::HeadBias => None,
            Role::AttnNorm(l)
            | Role::AttnNormBias(l)
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
            | Role::Sinks(l)
            | Role::FfnNorm(l)
            | Role::FfnNormBias(l)
            | Role::Router(l)
            | Role::RouterBias(l)
            | Role::RouterCorrection(l)
            | Role::SharedGate(l) => Some(l),
            Role::Latent { layer, .. }
            | Role::LatentBias { layer, .. }
            | Role::Delta { layer, .. }
            | Role::Mlp { layer, .. }
            | Role::MlpBias { layer, .. }
            | Role::Expert { layer, .. }
            | Role::ExpertBias { layer, .. }
            | Role::Shared { layer, .. }
            | Role::SharedBias { layer, .. } => Some(layer),
        }
    }

    /// True for the weight of a linear layer inside a block, routers and gates of one row excluded: what a quantizer of
    /// linear layers takes.
    pub fn is_linear(self) -> bool {
        match self {
            Role::Q(_) | Role::K(_) | Role::V(_) | Role::O(_) => true,
            Role::Mlp { .. } | Role::Expert { .. } | Role::Shared { .. } => true,
            Role::Latent { tensor, .. } => !matches!(tensor, Latent::QANorm | Latent::KvANorm),
            Role::Delta { tensor, .. } => matches!(tensor, Delta::Qkv | Delta::Z | Delta::A | Delta::B | Delta::Out),
            _ => false,
        }
    }

    /// True for a norm gain, a bias or another array of one dimension.
    pub fn is_vector(self) -> bool {
        match self {
            Role::Embed | Role::Head | Role::Router(_) | Role::SharedGate(_) => false,
            Role::Delta { tensor: Delta::Conv, .. } => false,
            other => !other.is_linear(),
        }
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
