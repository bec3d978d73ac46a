//! Who reads a norm of a block, and who writes to its residual stream: routers and gates of shared experts included,
//! which quantizers leave alone.

use crate::family::{BlockSpec, FfnSpec, LatentQuery, LinearSpec, MixerSpec, MlpSpec, NormSpec};

/// A norm of a block and every linear layer that reads what it puts out.
pub(super) struct NormReaders<'a> {
    pub norm: &'a NormSpec,
    pub layers: Vec<&'a LinearSpec>,
}

/// The MLPs of a block, routed experts first.
pub(super) fn mlps(block: &BlockSpec) -> Vec<&MlpSpec> {
    match &block.ffn {
        FfnSpec::Dense(mlp) => vec![mlp],
        FfnSpec::Moe(moe) => moe.experts.iter().chain(moe.shared.iter().map(|shared| &shared.mlp)).collect(),
    }
}

/// The norms that read the residual stream, with their readers.
pub(super) fn of_residual(block: &BlockSpec) -> [NormReaders<'_>; 2] {
    let mixer = match &block.mixer {
        MixerSpec::Attention(a) => vec![&a.q, &a.k, &a.v],
        MixerSpec::Latent(l) => {
            let q = match &l.q {
                LatentQuery::Direct(q) => q,
                LatentQuery::LowRank { a, .. } => a,
            };
            vec![q, &l.kv_a]
        }
        MixerSpec::DeltaNet(d) => vec![&d.qkv, &d.z, &d.a, &d.b],
    };
    let mut ffn: Vec<&LinearSpec> = mlps(block).into_iter().flat_map(|mlp| [&mlp.gate, &mlp.up]).collect();
    if let Some(moe) = block.moe() {
        ffn.push(&moe.router);
        ffn.extend(moe.shared.iter().filter_map(|shared| shared.gate.as_ref()));
    }
    [NormReaders { norm: &block.attn_norm, layers: mixer }, NormReaders { norm: &block.ffn_norm, layers: ffn }]
}

/// The layers whose outputs are added to the residual stream.
pub(super) fn writers(block: &BlockSpec) -> Vec<&LinearSpec> {
    let mixer = match &block.mixer {
        MixerSpec::Attention(a) => &a.o,
        MixerSpec::Latent(l) => &l.o,
        MixerSpec::DeltaNet(d) => &d.out,
    };
    std::iter::once(mixer).chain(mlps(block).into_iter().map(|mlp| &mlp.down)).collect()
}
