//! One decoder block: its weights in compute form, and its forward pass over a micro-batch.

use std::sync::atomic::AtomicU64;

use super::EngineError;
use super::backend::Backend;
use super::batch::Batch;
use super::mixer::Mixer;
use super::moe::Mixture;
use super::norm::Norm;
use super::observer::Observer;
use super::variant::Change;
use crate::family::{Activation, BlockSpec, FfnSpec, LinearSpec, MlpSpec};
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// A linear layer ready to multiply.
pub struct Linear<B: Backend> {
    pub weight: B::Weight,
    pub bias: Option<B::Vector>,
}

/// A gated MLP ready to run.
pub struct Mlp<B: Backend> {
    pub gate: Linear<B>,
    pub up: Linear<B>,
    pub down: Linear<B>,
    activation: Activation,
}

enum Ffn<B: Backend> {
    Dense(Mlp<B>),
    Moe(Mixture<B>),
}

/// A block's weights, loaded.
pub struct Block<B: Backend> {
    attn_norm: Norm<B>,
    mixer: Mixer<B>,
    ffn_norm: Norm<B>,
    ffn: Ffn<B>,
}

/// What a forward pass of a block needs beside its weights.
pub struct Setting<'a, B: Backend> {
    pub backend: &'a B,
    pub spec: &'a BlockSpec,
    pub eps: f64,
    /// Factor on what each half of the block adds.
    pub residual: f64,
    pub rope: &'a B::Rope,
    pub batch: &'a Batch,
    /// What the variant under way changes in this block.
    pub change: Option<&'a Change<'a, B>>,
    /// Multiply-adds of experts, counted as they are done.
    pub expert_work: &'a AtomicU64,
}

impl<B: Backend> Setting<'_, B> {
    /// Adds what half a block put out to the hidden states.
    fn join(&self, hidden: B::Rows, out: B::Rows) -> Result<B::Rows> {
        let out = if self.residual == 1.0 { out } else { self.backend.scale(out, self.residual)? };
        self.backend.add(hidden, out)
    }
}

impl<B: Backend> Linear<B> {
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &LinearSpec) -> Result<Self> {
        let weight = backend.load_weight(source, spec)?;
        source.release(&spec.weight);
        let bias = spec.bias.as_ref().map(|name| backend.load_vector(source, name)).transpose()?;
        Ok(Linear { weight, bias })
    }

    pub fn layer(&self) -> (&B::Weight, Option<&B::Vector>) {
        (&self.weight, self.bias.as_ref())
    }

    /// The product with the whole of x.
    pub fn apply(&self, backend: &B, x: &B::Rows) -> Result<B::Rows> {
        let [y] = backend.linears(x, None, [self.layer()])?;
        Ok(y)
    }
}

impl<B: Backend> Mlp<B> {
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &MlpSpec) -> Result<Self> {
        Ok(Mlp {
            gate: Linear::load(backend, source, &spec.gate)?,
            up: Linear::load(backend, source, &spec.up)?,
            down: Linear::load(backend, source, &spec.down)?,
            activation: spec.activation,
        })
    }

    /// down(activation(gate(x), up(x))) of all rows of x, or of those named.
    pub fn apply(&self, backend: &B, x: &B::Rows, rows: Option<&[u32]>) -> Result<B::Rows> {
        let [gate, up] = backend.linears(x, rows, [self.gate.layer(), self.up.layer()])?;
        self.down.apply(backend, &backend.activate(gate, up, self.activation)?)
    }
}

impl<B: Backend> Block<B> {
    /// Reads and converts every tensor of the block, and lets go of the file's pages.
    ///
    /// # Errors
    /// A tensor that is missing or cannot be decoded; the error names it and the block.
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &BlockSpec) -> Result<Self> {
        for tensor in spec.tensors() {
            source.prefetch(&tensor.name);
        }
        let loaded = Self::load_tensors(backend, source, spec);
        loaded.map_err(|error| match error {
            EngineError::Model(source) => EngineError::Load { layer: spec.index, source },
            other => other,
        })
    }

    fn load_tensors(backend: &B, source: &dyn TensorSource, spec: &BlockSpec) -> Result<Self> {
        let ffn = match &spec.ffn {
            FfnSpec::Dense(mlp) => Ffn::Dense(Mlp::load(backend, source, mlp)?),
            FfnSpec::Moe(moe) => Ffn::Moe(Mixture::load(backend, source, moe)?),
        };
        Ok(Block {
            attn_norm: Norm::load(backend, source, &spec.attn_norm)?,
            mixer: Mixer::load(backend, source, &spec.mixer)?,
            ffn_norm: Norm::load(backend, source, &spec.ffn_norm)?,
            ffn,
        })
    }

    /// Runs one micro-batch through the block: hidden states in, hidden states out.
    ///
    /// # Errors
    /// The device fails.
    pub fn forward(
        &self,
        cx: &Setting<'_, B>,
        hidden: B::Rows,
        observers: &mut [&mut dyn Observer],
    ) -> Result<B::Rows> {
        let normed = self.attn_norm.apply(cx.backend, &hidden, cx.eps)?;
        let mixed = self.mixer.forward(cx, &normed, observers)?;
        drop(normed);
        let hidden = cx.join(hidden, mixed)?;
        let normed = self.ffn_norm.apply(cx.backend, &hidden, cx.eps)?;
        let out = match (&self.ffn, cx.spec.moe()) {
            (Ffn::Moe(mixture), Some(moe)) => mixture.forward(cx, moe, &normed, observers)?,
            (Ffn::Dense(mlp), _) => mlp.apply(cx.backend, &normed, None)?,
            (Ffn::Moe(_), None) => unreachable!("the block was loaded from the same specification"),
        };
        cx.join(hidden, out)
    }
}
