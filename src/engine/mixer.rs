//! What mixes the tokens of a block: its weights in compute form, and its forward pass over a micro-batch.

use super::EngineError;
use super::backend::{AttentionShape, Backend, Rotation};
use super::block::{Linear, Setting};
use super::delta_net::DeltaNet;
use super::latent::LatentAttention;
use super::norm::Norm;
use super::observer::{HeadViews, Observer};
use crate::family::{AttentionSpec, MixerSpec, NormSpec};
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// A loaded mixer.
pub enum Mixer<B: Backend> {
    Attention(Attention<B>),
    Latent(LatentAttention<B>),
    DeltaNet(DeltaNet<B>),
}

/// Grouped-query attention, loaded.
pub struct Attention<B: Backend> {
    spec: AttentionSpec,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    o: Linear<B>,
    q_norm: Option<Norm<B>>,
    k_norm: Option<Norm<B>>,
    sinks: Option<B::Vector>,
}

impl<B: Backend> Mixer<B> {
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &MixerSpec) -> Result<Self> {
        match spec {
            MixerSpec::Attention(spec) => Attention::load(backend, source, spec).map(Mixer::Attention),
            MixerSpec::Latent(spec) => LatentAttention::load(backend, source, spec).map(Mixer::Latent),
            MixerSpec::DeltaNet(spec) => DeltaNet::load(backend, source, spec).map(Mixer::DeltaNet),
        }
    }

    /// The mixed values for normed hidden states `[rows, hidden]`.
    ///
    /// # Errors
    /// The device fails.
    pub fn forward(
        &self,
        cx: &Setting<'_, B>,
        normed: &B::Rows,
        observers: &mut [&mut dyn Observer],
    ) -> Result<B::Rows> {
        match self {
            Mixer::Attention(attention) => attention.forward(cx, normed, observers),
            Mixer::Latent(latent) => latent.forward(cx, normed),
            Mixer::DeltaNet(delta_net) => delta_net.forward(cx, normed),
        }
    }
}

impl<B: Backend> Attention<B> {
    fn load(backend: &B, source: &dyn TensorSource, spec: &AttentionSpec) -> Result<Self> {
        let norm = |spec: &NormSpec| Norm::load(backend, source, spec);
        Ok(Attention {
            q: Linear::load(backend, source, &spec.q)?,
            k: Linear::load(backend, source, &spec.k)?,
            v: Linear::load(backend, source, &spec.v)?,
            o: Linear::load(backend, source, &spec.o)?,
            q_norm: spec.q_norm.as_ref().map(norm).transpose()?,
            k_norm: spec.k_norm.as_ref().map(norm).transpose()?,
            sinks: spec.sinks.as_ref().map(|name| backend.load_vector(source, name)).transpose()?,
            spec: spec.clone(),
        })
    }

    fn forward(&self, cx: &Setting<'_, B>, normed: &B::Rows, observers: &mut [&mut dyn Observer]) -> Result<B::Rows> {
        let (backend, a) = (cx.backend, &self.spec);
        let shape = AttentionShape {
            heads: a.heads,
            kv_heads: a.kv_heads,
            key_dim: a.head_dim,
            value_dim: a.head_dim,
            scale: a.scale as f32,
            window: a.window,
        };
        let [mut q, k, mut v] = backend.linears(normed, None, [self.q.layer(), self.k.layer(), self.v.layer()])?;
        if let Some(limit) = a.clip {
            v = backend.clamp(v, limit)?;
        }
        let mut gate = None;
        if a.output_gate {
            let [queries, gates] = backend.split(&q, a.heads, [a.head_dim, a.head_dim])?;
            (q, gate) = (queries, Some(gates));
        }
        let q = self.turn(cx, q, a.heads, self.q_norm.as_ref().zip(a.q_norm.as_ref()))?;
        let k = self.turn(cx, k, a.kv_heads, self.k_norm.as_ref().zip(a.k_norm.as_ref()))?;
        let mut mixed = backend.attention([&q, &k, &v], self.sinks.as_ref(), &shape, cx.batch)?;
        if let Some(gate) = gate {
            mixed = backend.gate(mixed, &gate)?;
        }
        show_heads(cx, a, [&q, &k, &mixed], observers)?;
        self.o.apply(backend, &mixed)
    }

    /// Norms heads or whole rows and clamps if the family does, and turns the heads.
    fn turn(
        &self,
        cx: &Setting<'_, B>,
        mut x: B::Rows,
        heads: usize,
        norm: Option<(&Norm<B>, &NormSpec)>,
    ) -> Result<B::Rows> {
        let mut head_norm = None;
        match norm {
            Some((norm, spec)) if spec.size == self.spec.head_dim => head_norm = Some((norm.gain(), cx.eps)),
            Some((norm, _)) => x = norm.apply(cx.backend, &x, cx.eps)?,
            None => {}
        }
        if let Some(limit) = self.spec.clip {
            if let Some((gain, eps)) = head_norm.take() {
                x = cx.backend.norm(&x, gain, eps)?;
            }
            x = cx.backend.clamp(x, limit)?;
        }
        cx.backend.rotate(x, &Rotation { heads, first: 0, head_norm, rope: cx.rope, batch: cx.batch })
    }
}

/// Hands queries, keys and head outputs to the observers that ask for them.
fn show_heads<B: Backend>(
    cx: &Setting<'_, B>,
    spec: &AttentionSpec,
    [q, k, mixed]: [&B::Rows; 3],
    observers: &mut [&mut dyn Observer],
) -> Result<()> {
    let layer = cx.spec.index;
    if !observers.iter().any(|o| o.wants_heads(layer)) {
        return Ok(());
    }
    let [q, k, mixed] = [cx.backend.download(q)?, cx.backend.download(k)?, cx.backend.download(mixed)?];
    let views = HeadViews { layer, spec, q: &q, k: &k, mixed: &mixed, batch: cx.batch };
    for observer in observers.iter_mut().filter(|o| o.wants_heads(layer)) {
        observer.heads(&views);
    }
    Ok(())
}
