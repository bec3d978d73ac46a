//! Where the columns of linear layers can be scaled so that the model stays what it is: whatever makes their input takes
//! the scales' inverses (activation-aware quantization, Lin et al., arXiv 2306.00978).

use super::readers::{mlps, of_residual};
use crate::family::{Activation, BlockSpec, LatentQuery, LinearSpec, MixerSpec, NormSpec};

/// What makes an input and takes the inverses.
#[derive(Clone, Debug)]
pub(in crate::compress) enum Origin<'a> {
    /// A norm: its gain, and its bias if it has one.
    Norm(&'a NormSpec),
    /// A linear layer: scale k goes into row `rows[k]` of its weight and its bias.
    Rows { layer: &'a LinearSpec, rows: Vec<usize> },
}

/// Layers whose columns are scaled together.
#[derive(Clone, Debug)]
pub(in crate::compress) struct ScaleGroup<'a> {
    pub origin: Origin<'a>,
    /// The scale of each column: heads that share values share their scales, too.
    pub columns: Vec<usize>,
    /// How many scales there are.
    pub scales: usize,
    /// Every layer that reads the input.
    pub layers: Vec<&'a LinearSpec>,
}

impl<'a> ScaleGroup<'a> {
    fn plain(origin: Origin<'a>, scales: usize, layers: Vec<&'a LinearSpec>) -> Self {
        ScaleGroup { origin, columns: (0..scales).collect(), scales, layers }
    }

    fn norm(norm: &'a NormSpec, layers: Vec<&'a LinearSpec>) -> Self {
        ScaleGroup::plain(Origin::Norm(norm), norm.size, layers)
    }
}

/// The groups of a block in the order a forward pass meets them, and why what is not among them cannot be scaled.
pub(in crate::compress) fn groups(block: &BlockSpec) -> (Vec<ScaleGroup<'_>>, Vec<&'static str>) {
    let (mut groups, mut not) = (Vec::new(), Vec::new());
    let [mixer, ffn] = of_residual(block);
    groups.push(ScaleGroup::norm(mixer.norm, mixer.layers));
    match &block.mixer {
        MixerSpec::Attention(a) if a.clip.is_some() => not.push("values are clamped before the output projection"),
        MixerSpec::Attention(a) => {
            let (width, sharing) = (a.head_dim, a.heads / a.kv_heads.max(1));
            let columns = (0..a.o.cols).map(|c| c / width / sharing.max(1) * width + c % width).collect();
            let scales = a.kv_heads * width;
            let origin = Origin::Rows { layer: &a.v, rows: (0..scales).collect() };
            groups.push(ScaleGroup { origin, columns, scales, layers: vec![&a.o] });
        }
        MixerSpec::Latent(l) => {
            if let LatentQuery::LowRank { norm, b, .. } = &l.q {
                groups.push(ScaleGroup::norm(norm, vec![b]));
            }
            groups.push(ScaleGroup::norm(&l.kv_a_norm, vec![&l.kv_b]));
            let (nope, value) = (l.nope_dim, l.value_dim);
            let rows = (0..l.heads * value).map(|k| k / value * (nope + value) + nope + k % value).collect();
            groups.push(ScaleGroup::plain(Origin::Rows { layer: &l.kv_b, rows }, l.heads * value, vec![&l.o]));
        }
        MixerSpec::DeltaNet(d) => {
            // One norm for all heads.
            let columns = (0..d.out.cols).map(|c| c % d.value_dim).collect();
            let origin = Origin::Norm(&d.norm);
            groups.push(ScaleGroup { origin, columns, scales: d.value_dim, layers: vec![&d.out] });
        }
    }
    groups.push(ScaleGroup::norm(ffn.norm, ffn.layers));
    for mlp in mlps(block) {
        match mlp.activation {
            Activation::Silu => {
                let origin = Origin::Rows { layer: &mlp.up, rows: (0..mlp.up.rows).collect() };
                groups.push(ScaleGroup::plain(origin, mlp.up.rows, vec![&mlp.down]));
            }
            Activation::ClampedSwiglu { .. } => not.push("the inner projections of MLPs are clamped"),
        }
    }
    (groups, not)
}
