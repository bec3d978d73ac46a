//! Which linear layers of a block read the same input, in the order a forward pass meets them. Routers and the gates of
//! shared experts are not among them: they are small, and what compresses a model leaves them as they are.

use super::spec::{BlockSpec, FfnSpec, LatentQuery, LinearSpec, MixerSpec, MlpSpec};

/// Linear layers of a block that read the same input.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerInput<'a> {
    pub layers: Vec<&'a LinearSpec>,
    /// How many inputs lie before it on the way through the block: inputs of one depth do not depend on each other.
    pub depth: usize,
    /// Other tokens attend to what is made of it: keys and values.
    pub is_attended: bool,
}

impl LayerInput<'_> {
    /// Elements of the input.
    pub fn columns(&self) -> usize {
        self.layers[0].cols
    }

    /// True when one of the layers has this weight.
    pub fn feeds(&self, weight: &str) -> bool {
        self.layers.iter().any(|layer| layer.weight == weight)
    }
}

impl BlockSpec {
    /// The inputs of the block's linear layers, by depth.
    pub fn inputs(&self) -> Vec<LayerInput<'_>> {
        let mixer: Vec<(Vec<&LinearSpec>, bool)> = match &self.mixer {
            MixerSpec::Attention(a) => vec![(vec![&a.q, &a.k, &a.v], true), (vec![&a.o], false)],
            MixerSpec::Latent(l) => {
                let (mut first, mut inputs) = (Vec::new(), Vec::new());
                match &l.q {
                    LatentQuery::Direct(q) => first.push(q),
                    LatentQuery::LowRank { a, b, .. } => {
                        first.push(a);
                        inputs.push((vec![b], false));
                    }
                }
                first.push(&l.kv_a);
                inputs.insert(0, (first, true));
                inputs.extend([(vec![&l.kv_b], true), (vec![&l.o], false)]);
                inputs
            }
            MixerSpec::DeltaNet(d) => vec![(vec![&d.qkv, &d.z, &d.a, &d.b], false), (vec![&d.out], false)],
        };
        let mlps: Vec<&MlpSpec> = match &self.ffn {
            FfnSpec::Dense(dense) => vec![dense],
            FfnSpec::Moe(moe) => moe.experts.iter().chain(moe.shared.iter().map(|shared| &shared.mlp)).collect(),
        };
        let depth = mixer.len();
        let mixer = mixer.into_iter().enumerate().map(|(depth, (layers, is_attended))| LayerInput {
            layers,
            depth,
            is_attended,
        });
        let inner = mlps.iter().map(|mlp| LayerInput { layers: vec![&mlp.gate, &mlp.up], depth, is_attended: false });
        let outer = mlps.iter().map(|mlp| LayerInput { layers: vec![&mlp.down], depth: depth + 1, is_attended: false });
        mixer.chain(inner).chain(outer).collect()
    }
}
