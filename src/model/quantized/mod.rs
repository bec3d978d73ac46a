//! Directories whose matrices are stored as packed whole numbers, presented as if they held plain ones.
//!
//! Enters: a configuration that says how the weights were quantized, and the files' tensors. Leaves: [`Decoded`], a
//! tensor source in which the parts of a matrix (`X.weight_packed`, `X.weight_scale` … of compressed-tensors;
//! `X.weight`, `X.scales`, `X.biases` of MLX) are one tensor `X.weight`, decoded when it is read. Any other way of
//! quantizing is refused by name.

mod compressed_tensors;
mod decoded;
mod mlx;

#[cfg(test)]
mod tests;

use serde_json::Value;

pub use decoded::Decoded;

use super::{Config, ModelError, SafetensorsModel};

/// What is read, for messages.
const SUPPORTED: &str =
    "compressed-tensors pack-quantized (W2 to W8), MLX affine, MXFP4 experts, or unquantized weights";

/// How a directory's weights are packed.
enum Scheme {
    CompressedTensors(Vec<compressed_tensors::Weights>),
    Mlx(mlx::Settings),
}

/// The tensors of a directory, decoded where its configuration says that they are packed.
pub enum Opened {
    /// As they lie.
    Plain(SafetensorsModel),
    Packed(Decoded),
}

/// Looks into `config` for how the weights were quantized.
///
/// # Errors
/// A way of quantizing that this build does not read; parts of a matrix that are missing or do not fit each other.
pub fn open(config: &Config, tensors: SafetensorsModel) -> Result<Opened, ModelError> {
    let scheme = match config.get("quantization_config") {
        Some(found) => match found.get("quant_method").and_then(Value::as_str) {
            Some("compressed-tensors") => compressed_tensors::weights(config, found)?.map(Scheme::CompressedTensors),
            // Published stacks of experts, whose family reads them as they lie.
            Some("mxfp4") => None,
            Some(other) => return Err(unsupported(config, &format!("quant_method {other:?}"))),
            None => mlx::settings(config)?.map(Scheme::Mlx),
        },
        None => mlx::settings(config)?.map(Scheme::Mlx),
    };
    Ok(match scheme {
        None => Opened::Plain(tensors),
        Some(Scheme::CompressedTensors(weights)) => {
            let found = compressed_tensors::find(&weights, &tensors)?;
            Opened::Packed(Decoded::new(tensors, found, compressed_tensors::summary(&weights)))
        }
        Some(Scheme::Mlx(settings)) => {
            let found = mlx::find(&settings, &tensors)?;
            Opened::Packed(Decoded::new(tensors, found, settings.summary()))
        }
    })
}

/// A way of quantizing that is not read.
fn unsupported(config: &Config, what: &str) -> ModelError {
    let cause = format!("its weights are quantized by {what}, which this build does not read");
    ModelError::unsupported(config.path(), cause, format!("supported: {SUPPORTED}; or start from the original model"))
}
