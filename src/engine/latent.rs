//! Latent attention (DeepSeek-V2, arXiv 2405.04434) as a prompt is computed: the small vector per token is widened to
//! full keys and values, which then meet as in any attention.

use super::EngineError;
use super::backend::{AttentionShape, Backend, Rotation};
use super::block::{Linear, Setting};
use crate::family::{LatentAttentionSpec, LatentQuery};
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// Epsilon of the norms over the low-rank vectors: the published implementation has it fixed, whatever the config says
/// of the blocks' norms.
const RANK_EPS: f64 = 1e-6;

enum Query<B: Backend> {
    Direct(Linear<B>),
    LowRank { a: Linear<B>, norm: B::Vector, b: Linear<B> },
}

/// Latent attention, loaded.
pub struct LatentAttention<B: Backend> {
    spec: LatentAttentionSpec,
    q: Query<B>,
    kv_a: Linear<B>,
    kv_a_norm: B::Vector,
    kv_b: Linear<B>,
    o: Linear<B>,
}

impl<B: Backend> LatentAttention<B> {
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &LatentAttentionSpec) -> Result<Self> {
        let q = match &spec.q {
            LatentQuery::Direct(q) => Query::Direct(Linear::load(backend, source, q)?),
            LatentQuery::LowRank { a, norm, b } => Query::LowRank {
                a: Linear::load(backend, source, a)?,
                norm: backend.load_vector(source, &norm.weight)?,
                b: Linear::load(backend, source, b)?,
            },
        };
        Ok(LatentAttention {
            q,
            kv_a: Linear::load(backend, source, &spec.kv_a)?,
            kv_a_norm: backend.load_vector(source, &spec.kv_a_norm.weight)?,
            kv_b: Linear::load(backend, source, &spec.kv_b)?,
            o: Linear::load(backend, source, &spec.o)?,
            spec: spec.clone(),
        })
    }

    /// See [`Mixer::forward`](super::mixer::Mixer::forward).
    pub fn forward(&self, cx: &Setting<'_, B>, normed: &B::Rows) -> Result<B::Rows> {
        let (backend, s) = (cx.backend, &self.spec);
        let (q, kv) = match &self.q {
            Query::Direct(q) => {
                let [q, kv] = backend.linears(normed, None, [q.layer(), self.kv_a.layer()])?;
                (q, kv)
            }
            Query::LowRank { a, norm, b } => {
                let [a, kv] = backend.linears(normed, None, [a.layer(), self.kv_a.layer()])?;
                (b.apply(backend, &backend.norm(&a, norm, RANK_EPS)?)?, kv)
            }
        };
        let turn = |x, heads, first| {
            backend.rotate(x, &Rotation { heads, first, head_norm: None, rope: cx.rope, batch: cx.batch })
        };
        let q = turn(q, s.heads, s.nope_dim)?;
        let [latent, shared_key] = backend.split(&kv, 1, [s.kv_b.cols, s.rope_dim])?;
        drop(kv);
        let shared_key = turn(shared_key, 1, 0)?;
        let wide = self.kv_b.apply(backend, &backend.norm(&latent, &self.kv_a_norm, RANK_EPS)?)?;
        let [own_keys, v] = backend.split(&wide, s.heads, [s.nope_dim, s.value_dim])?;
        drop(wide);
        let k = backend.join(&own_keys, &shared_key, s.heads)?;
        drop(own_keys);
        let shape = AttentionShape {
            heads: s.heads,
            kv_heads: s.heads,
            key_dim: s.nope_dim + s.rope_dim,
            value_dim: s.value_dim,
            scale: s.scale as f32,
            window: None,
        };
        let mixed = backend.attention([&q, &k, &v], None, &shape, cx.batch)?;
        self.o.apply(backend, &mixed)
    }
}
