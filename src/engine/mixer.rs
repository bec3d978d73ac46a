//! What mixes the tokens of a block: its weights in compute form, and its forward pass over a micro-batch.

use super::EngineError;
use super::backend::{Backend, HeadShape};
use super::block::{Linear, Setting};
use super::observer::{HeadViews, Observer};
use crate::family::{AttentionSpec, MixerSpec, NormSpec};
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// A loaded mixer.
pub enum Mixer<B: Backend> {
    Attention(Attention<B>),
}

/// Grouped-query attention, loaded.
pub struct Attention<B: Backend> {
    spec: AttentionSpec,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    o: Linear<B>,
    q_norm: Option<B::Vector>,
    k_norm: Option<B::Vector>,
}

impl<B: Backend> Mixer<B> {
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &MixerSpec) -> Result<Self> {
        match spec {
            MixerSpec::Attention(spec) => Attention::load(backend, source, spec).map(Mixer::Attention),
            MixerSpec::Latent(_) | MixerSpec::DeltaNet(_) => {
                Err(EngineError::Unsupported { what: "this kind of attention".to_owned() })
            }
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
        }
    }
}

impl<B: Backend> Attention<B> {
    fn load(backend: &B, source: &dyn TensorSource, spec: &AttentionSpec) -> Result<Self> {
        let vector = |norm: &NormSpec| backend.load_vector(source, &norm.weight);
        Ok(Attention {
            q: Linear::load(backend, source, &spec.q)?,
            k: Linear::load(backend, source, &spec.k)?,
            v: Linear::load(backend, source, &spec.v)?,
            o: Linear::load(backend, source, &spec.o)?,
            q_norm: spec.q_norm.as_ref().map(vector).transpose()?,
            k_norm: spec.k_norm.as_ref().map(vector).transpose()?,
            spec: spec.clone(),
        })
    }

    fn forward(&self, cx: &Setting<'_, B>, normed: &B::Rows, observers: &mut [&mut dyn Observer]) -> Result<B::Rows> {
        let (backend, a) = (cx.backend, &self.spec);
        let shape = HeadShape { heads: a.heads, kv_heads: a.kv_heads, head_dim: a.head_dim };
        let [q, k, v] = backend.linears(normed, None, [self.q.layer(), self.k.layer(), self.v.layer()])?;
        let q = backend.rotate(q, a.heads, self.q_norm.as_ref(), cx.eps, cx.rope, cx.batch)?;
        let k = backend.rotate(k, a.kv_heads, self.k_norm.as_ref(), cx.eps, cx.rope, cx.batch)?;
        let mixed = backend.attention(&q, &k, &v, shape, cx.batch)?;
        show_heads(cx, a, [&q, &k, &mixed], observers)?;
        self.o.apply(backend, &mixed)
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
