//! The tensors a specification asks for: names, shapes and roles, in the order a forward pass meets them.

use super::role::{Delta, ExpectedTensor, Latent, Part, Role};
use super::spec::{
    AttentionSpec, BlockSpec, DeltaNetSpec, FfnSpec, LatentAttentionSpec, LatentQuery, LinearSpec, MixerSpec, MlpSpec,
    ModelSpec, MoeSpec, NormSpec,
};

impl BlockSpec {
    /// Every tensor of the block.
    pub fn tensors(&self) -> Vec<ExpectedTensor> {
        let l = self.index;
        let mut out = TensorList::default();
        out.norm(&self.attn_norm, Role::AttnNorm(l), Role::AttnNormBias(l));
        match &self.mixer {
            MixerSpec::Attention(attention) => out.attention(l, attention),
            MixerSpec::Latent(latent) => out.latent(l, latent),
            MixerSpec::DeltaNet(delta) => out.delta_net(l, delta),
        }
        out.norm(&self.ffn_norm, Role::FfnNorm(l), Role::FfnNormBias(l));
        match &self.ffn {
            FfnSpec::Dense(mlp) => {
                out.mlp(mlp, |part| Role::Mlp { layer: l, part }, |part| Role::MlpBias { layer: l, part });
            }
            FfnSpec::Moe(moe) => out.mixture(l, moe),
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
            let one = moe.experts.first().map_or(0, MlpSpec::elements);
            one * moe.experts.len().saturating_sub(moe.top_k) as u64
        });
        self.parameters() - unused
    }
}

impl ModelSpec {
    /// Every tensor the model must have, carried parts excepted. A tied head is not listed twice.
    pub fn tensors(&self) -> Vec<ExpectedTensor> {
        let mut out = TensorList::default();
        out.push(&self.embed, vec![self.vocab, self.hidden], Role::Embed);
        for block in &self.blocks {
            out.0.extend(block.tensors());
        }
        out.norm(&self.final_norm, Role::FinalNorm, Role::FinalNormBias);
        if !self.tied {
            out.push(&self.head, vec![self.vocab, self.hidden], Role::Head);
        }
        if let Some(bias) = &self.head_bias {
            out.push(bias, vec![self.vocab], Role::HeadBias);
        }
        out.0
    }

    /// All parameters of the language model; a tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(ExpectedTensor::elements).sum()
    }

    /// Parameters that one token meets: only `top_k` experts of each mixture count.
    pub fn active_parameters(&self) -> u64 {
        let unused: u64 = self.blocks.iter().map(|b| b.parameters() - b.active_parameters()).sum();
        self.parameters() - unused
    }
}

#[derive(Default)]
struct TensorList(Vec<ExpectedTensor>);

impl TensorList {
    fn push(&mut self, name: &str, shape: Vec<usize>, role: Role) {
        self.0.push(ExpectedTensor { name: name.to_owned(), shape, role });
    }

    fn norm(&mut self, norm: &NormSpec, role: Role, bias: Role) {
        self.push(&norm.weight, vec![norm.size], role);
        if let Some(name) = &norm.bias {
            self.push(name, vec![norm.size], bias);
        }
    }

    fn linear(&mut self, linear: &LinearSpec, role: Role, bias_role: Role) {
        self.push(&linear.weight, vec![linear.rows, linear.cols], role);
        if let Some(bias) = &linear.bias {
            self.push(bias, vec![linear.rows], bias_role);
        }
    }

    fn mlp(&mut self, mlp: &MlpSpec, role: impl Fn(Part) -> Role, bias: impl Fn(Part) -> Role) {
        for part in Part::ALL {
            self.linear(mlp.part(part), role(part), bias(part));
        }
    }

    fn attention(&mut self, l: usize, a: &AttentionSpec) {
        self.linear(&a.q, Role::Q(l), Role::QBias(l));
        self.linear(&a.k, Role::K(l), Role::KBias(l));
        self.linear(&a.v, Role::V(l), Role::VBias(l));
        for (norm, role) in [(&a.q_norm, Role::QNorm(l)), (&a.k_norm, Role::KNorm(l))] {
            if let Some(norm) = norm {
                self.norm(norm, role, role);
            }
        }
        if let Some(sinks) = &a.sinks {
            self.push(sinks, vec![a.heads], Role::Sinks(l));
        }
        self.linear(&a.o, Role::O(l), Role::OBias(l));
    }

    fn latent(&mut self, layer: usize, a: &LatentAttentionSpec) {
        let role = |tensor| Role::Latent { layer, tensor };
        let bias = |tensor| Role::LatentBias { layer, tensor };
        match &a.q {
            LatentQuery::Direct(q) => self.linear(q, Role::Q(layer), Role::QBias(layer)),
            LatentQuery::LowRank { a, norm, b } => {
                self.linear(a, role(Latent::QA), bias(Latent::QA));
                self.norm(norm, role(Latent::QANorm), bias(Latent::QANorm));
                self.linear(b, role(Latent::QB), bias(Latent::QB));
            }
        }
        self.linear(&a.kv_a, role(Latent::KvA), bias(Latent::KvA));
        self.norm(&a.kv_a_norm, role(Latent::KvANorm), bias(Latent::KvANorm));
        self.linear(&a.kv_b, role(Latent::KvB), bias(Latent::KvB));
        self.linear(&a.o, Role::O(layer), Role::OBias(layer));
    }

    fn delta_net(&mut self, layer: usize, d: &DeltaNetSpec) {
        let role = |tensor| Role::Delta { layer, tensor };
        for (linear, tensor) in [(&d.qkv, Delta::Qkv), (&d.z, Delta::Z), (&d.a, Delta::A), (&d.b, Delta::B)] {
            self.linear(linear, role(tensor), role(tensor));
        }
        self.push(&d.conv, vec![d.qkv.rows, 1, d.kernel], role(Delta::Conv));
        self.push(&d.a_log, vec![d.value_heads], role(Delta::ALog));
        self.push(&d.dt_bias, vec![d.value_heads], role(Delta::DtBias));
        self.norm(&d.norm, role(Delta::Norm), role(Delta::Norm));
        self.linear(&d.out, role(Delta::Out), role(Delta::Out));
    }

    fn mixture(&mut self, layer: usize, moe: &MoeSpec) {
        self.linear(&moe.router, Role::Router(layer), Role::RouterBias(layer));
        if let Some(correction) = &moe.correction {
            self.push(correction, vec![moe.experts.len()], Role::RouterCorrection(layer));
        }
        for (expert, mlp) in moe.experts.iter().enumerate() {
            let role = |part| Role::Expert { layer, expert, part };
            self.mlp(mlp, role, |part| Role::ExpertBias { layer, expert, part });
        }
        if let Some(shared) = &moe.shared {
            let role = |part| Role::Shared { layer, part };
            self.mlp(&shared.mlp, role, |part| Role::SharedBias { layer, part });
            if let Some(gate) = &shared.gate {
                self.linear(gate, Role::SharedGate(layer), Role::SharedGate(layer));
            }
        }
    }
}
