//! Norms: a loaded gain (and bias), and which arithmetic they belong to.

use super::EngineError;
use super::backend::Backend;
use crate::family::{NormKind, NormSpec};
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// A norm ready to run.
pub struct Norm<B: Backend> {
    /// What a row over its root mean square (or standard deviation) is multiplied by; an offset is in it already.
    gain: B::Vector,
    /// Only of layer norms.
    bias: Option<B::Vector>,
}

impl<B: Backend> Norm<B> {
    /// # Errors
    /// A tensor that cannot be read.
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &NormSpec) -> Result<Self> {
        let mut gain = Vec::new();
        source.read_f32(&spec.weight, &mut gain)?;
        if spec.kind == NormKind::RmsOffset {
            gain.iter_mut().for_each(|value| *value += 1.0);
        }
        let bias = spec.bias.as_ref().map(|name| backend.load_vector(source, name)).transpose()?;
        Ok(Norm { gain: backend.make_vector(gain)?, bias })
    }

    /// The rows of x, normed; of a root-mean-square norm each run of as many columns as it has gains.
    ///
    /// # Errors
    /// The device fails.
    pub fn apply(&self, backend: &B, x: &B::Rows, eps: f64) -> Result<B::Rows> {
        match &self.bias {
            Some(bias) => backend.layer_norm(x, &self.gain, bias, eps),
            None => backend.norm(x, &self.gain, eps),
        }
    }

    /// The gain of a root-mean-square norm, for operations that norm on the way.
    pub fn gain(&self) -> &B::Vector {
        &self.gain
    }
}
