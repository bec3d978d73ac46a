//! Linear attention by the gated delta rule (arXiv 2412.06464): products, a short convolution, the rule, a gated norm.

use super::EngineError;
use super::backend::{Backend, DecayInput, DeltaShape};
use super::block::{Linear, Setting};
use crate::family::{Activation, DeltaNetSpec};
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// A delta-rule mixer, loaded.
pub struct DeltaNet<B: Backend> {
    shape: DeltaShape,
    qkv: Linear<B>,
    z: Linear<B>,
    a: Linear<B>,
    b: Linear<B>,
    out: Linear<B>,
    conv: B::Vector,
    a_log: B::Vector,
    dt_bias: B::Vector,
    norm: B::Vector,
}

impl<B: Backend> DeltaNet<B> {
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &DeltaNetSpec) -> Result<Self> {
        let &DeltaNetSpec { key_heads, value_heads, key_dim, value_dim, .. } = spec;
        let vector = |name: &str| backend.load_vector(source, name);
        Ok(DeltaNet {
            shape: DeltaShape { key_heads, value_heads, key_dim, value_dim },
            qkv: Linear::load(backend, source, &spec.qkv)?,
            z: Linear::load(backend, source, &spec.z)?,
            a: Linear::load(backend, source, &spec.a)?,
            b: Linear::load(backend, source, &spec.b)?,
            out: Linear::load(backend, source, &spec.out)?,
            conv: vector(&spec.conv)?,
            a_log: vector(&spec.a_log)?,
            dt_bias: vector(&spec.dt_bias)?,
            norm: vector(&spec.norm.weight)?,
        })
    }

    /// See [`Mixer::forward`](super::mixer::Mixer::forward).
    pub fn forward(&self, cx: &Setting<'_, B>, normed: &B::Rows) -> Result<B::Rows> {
        let backend = cx.backend;
        let layers = [self.qkv.layer(), self.z.layer(), self.a.layer(), self.b.layer()];
        let [qkv, z, a, b] = backend.linears(normed, None, layers)?;
        let qkv = backend.causal_conv(qkv, &self.conv, cx.batch)?;
        let decay = DecayInput { a: &a, a_log: &self.a_log, dt_bias: &self.dt_bias };
        let mixed = backend.delta_rule(&qkv, decay, &b, &self.shape, cx.batch)?;
        drop(qkv);
        let mixed = backend.norm(&mixed, &self.norm, cx.eps)?;
        let mixed = backend.activate(z, mixed, Activation::Silu)?;
        self.out.apply(backend, &mixed)
    }
}
