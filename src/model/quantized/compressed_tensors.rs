//! compressed-tensors, format `pack-quantized`: a linear layer X is `X.weight_packed` (codes counted from the lowest
//! level), `X.weight_scale`, `X.weight_shape` and, where the levels are not symmetric, `X.weight_zero_point`.
//!
//! Which of a configuration's groups of layers X belongs to follows from the shapes of its parts: patterns of names are
//! for frameworks that must know before they see the tensors.

use serde_json::Value;

use super::decoded::{Origin, Packed, shape_of};
use super::unsupported;
use crate::codec::{Dtype, packed_bytes};
use crate::model::{Config, ModelError, SafetensorsModel, TensorMeta, TensorSource};

/// How the layers of one group are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weights {
    bits: usize,
    /// `None`: whole rows.
    group: Option<usize>,
    symmetric: bool,
}

/// The name that ends every packed tensor, and the one that means the matrix.
const CODES: &str = ".weight_packed";
const WEIGHT: &str = ".weight";

/// The groups of a `quantization_config`; `None` when it says that nothing is packed.
pub(super) fn weights(config: &Config, found: &Value) -> Result<Option<Vec<Weights>>, ModelError> {
    let refuse = |what: String| Err(unsupported(config, &format!("compressed-tensors {what}")));
    let format = found.get("format").and_then(Value::as_str).unwrap_or("dense");
    if format == "dense" {
        return Ok(None);
    }
    for key in ["sparsity_config", "transform_config"] {
        let is_empty = |value: &Value| value.as_object().is_none_or(serde_json::Map::is_empty);
        if found.get(key).is_some_and(|value| !is_empty(value)) {
            return refuse(format!("with a {key}"));
        }
    }
    let groups = found.get("config_groups").and_then(Value::as_object);
    let groups = groups.ok_or_else(|| config.error("quantization_config", "has no config_groups".to_owned()))?;
    let mut all = Vec::new();
    for (name, group) in groups {
        let format = group.get("format").and_then(Value::as_str).unwrap_or(format);
        if format != "pack-quantized" {
            return refuse(format!("format {format:?}"));
        }
        if ["input_activations", "output_activations"].iter().any(|key| group.get(*key).is_some_and(|v| !v.is_null())) {
            return refuse("with quantized activations".to_owned());
        }
        let Some(weights) = group.get("weights").filter(|weights| !weights.is_null()) else { continue };
        let text = |key: &str| weights.get(key).and_then(Value::as_str);
        let number = |key: &str| weights.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        if text("type").is_some_and(|kind| kind != "int") {
            return refuse(format!("weights of type {:?}", text("type").unwrap_or_default()));
        }
        if let Some(order @ ("group" | "dynamic")) = text("actorder") {
            return refuse(format!("actorder {order:?}, which shuffles columns"));
        }
        let wrong = |cause: String| config.error(&format!("quantization_config.config_groups.{name}.weights"), cause);
        let bits = number("num_bits").filter(|bits| (2..=8).contains(bits));
        let bits = bits.ok_or_else(|| wrong("num_bits must be 2 to 8".to_owned()))?;
        let group = match text("strategy") {
            Some("channel") => None,
            Some("group") | None => {
                let size = number("group_size").filter(|size| *size > 0);
                Some(size.ok_or_else(|| wrong("group_size must be a positive number".to_owned()))?)
            }
            Some(other) => return refuse(format!("strategy {other:?}")),
        };
        let symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
        all.push(Weights { bits, group, symmetric });
    }
    all.dedup();
    Ok(Some(all))
}

/// The groups in a line.
pub(super) fn summary(weights: &[Weights]) -> String {
    let one = |w: &Weights| {
        let group = w.group.map_or_else(|| "channel".to_owned(), |group| format!("group {group}"));
        format!("W{} {group} {}", w.bits, if w.symmetric { "symmetric" } else { "asymmetric" })
    };
    format!("compressed-tensors {}", weights.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Every packed matrix of the files.
pub(super) fn find(weights: &[Weights], tensors: &SafetensorsModel) -> Result<Vec<Packed>, ModelError> {
    let packed = tensors.metas().iter().filter(|meta| meta.name.ends_with(CODES));
    packed.map(|codes| matrix(weights, tensors, codes)).collect()
}

fn matrix(weights: &[Weights], tensors: &SafetensorsModel, codes: &TensorMeta) -> Result<Packed, ModelError> {
    let layer = codes.name.strip_suffix(CODES).unwrap_or(&codes.name);
    let path = &tensors.files()[codes.file];
    let broken = |cause: String| {
        ModelError::broken_tensor(path, &codes.name, cause).with_hint("the parts of the matrix do not fit each other")
    };
    if tensors.meta(&format!("{layer}.weight_g_idx")).is_some() {
        let cause = format!("{layer} has a weight_g_idx: its columns are shuffled (actorder group)");
        let hint = "quantize it with actorder weight or none, or start from the original model";
        return Err(ModelError::unsupported(path, cause, hint));
    }
    let beside = |part: &str| tensors.meta(&format!("{layer}.{part}"));
    let (rows, cols) = shape(tensors, &shape_of(&codes.name)).map_err(&broken)?;
    let scales = beside("weight_scale").ok_or_else(|| broken("has no weight_scale beside it".to_owned()))?;
    if !matches!(scales.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
        return Err(broken(format!("its weight_scale is {}, wanted BF16, F16 or F32", scales.dtype)));
    }
    if codes.dtype != Dtype::I32 {
        return Err(broken(format!("is {}, wanted I32", codes.dtype)));
    }
    let zeros = beside("weight_zero_point").filter(|_| weights.iter().any(|weights| !weights.symmetric));
    let fits = |w: &&Weights| {
        let groups = w.group.map_or(1, |group| cols.div_ceil(group));
        let zeros_fit =
            |zeros: &TensorMeta| zeros.dtype == Dtype::I32 && zeros.shape == [packed_bytes(rows, w.bits) / 4, groups];
        codes.shape == [rows, packed_bytes(cols, w.bits) / 4]
            && scales.shape == [rows, groups]
            && w.symmetric == zeros.is_none()
            && zeros.is_none_or(zeros_fit)
    };
    let mut fitting = weights.iter().filter(fits);
    let Some(first) = fitting.next() else {
        let zeros = zeros.map_or_else(|| "no zero points".to_owned(), |zeros| format!("zero points {:?}", zeros.shape));
        let (found, scales) = (&codes.shape, &scales.shape);
        return Err(broken(format!(
            "codes {found:?}, scales {scales:?} and {zeros} are no matrix [{rows}, {cols}] of {}",
            summary(weights)
        )));
    };
    let size = |w: &Weights| w.group.unwrap_or(cols).clamp(1, cols.max(1));
    if let Some(other) = fitting.find(|other| other.bits != first.bits || size(other) != size(first)) {
        return Err(broken(format!("may be of W{} or of W{}: its shapes fit both", first.bits, other.bits)));
    }
    Ok(Packed {
        name: format!("{layer}{WEIGHT}"),
        rows,
        cols,
        first_row: 0,
        bits: first.bits,
        group: size(first),
        codes: codes.name.clone(),
        scales: scales.name.clone(),
        origin: zeros.map_or(Origin::Middle, |zeros| Origin::ZeroPoints(zeros.name.clone())),
        dtype: scales.dtype,
    })
}

/// Two whole numbers stored as a tensor.
fn shape(tensors: &SafetensorsModel, name: &str) -> Result<(usize, usize), String> {
    let meta = tensors.meta(name).ok_or_else(|| "has no weight_shape beside it".to_owned())?;
    let bytes = tensors.bytes(name).map_err(|e| e.to_string())?;
    let width = meta.dtype.block_bytes();
    let numbers: Vec<Option<usize>> = match meta.dtype {
        Dtype::I64 | Dtype::I32 => bytes.chunks_exact(width).map(whole).collect(),
        _ => Vec::new(),
    };
    match numbers[..] {
        [Some(rows), Some(cols)] if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => Err(format!("its weight_shape ({} {:?}) is no pair of sizes", meta.dtype, meta.shape)),
    }
}

/// A little-endian number that is positive and no size beyond reason.
fn whole(bytes: &[u8]) -> Option<usize> {
    let number = bytes.iter().rev().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
    usize::try_from(number).ok().filter(|number| *number < 1 << 31)
}
