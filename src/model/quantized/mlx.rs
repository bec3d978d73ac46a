//! MLX, mode `affine`: a layer X is `X.weight` (32-bit words of codes), `X.scales` and `X.biases`; a value is
//! `scale · code + bias`. Embeddings are packed too. Experts of a mixture are one tensor `[experts, …]` called
//! `switch_mlp`; they are presented one by one under the names transformers gives them.

use serde_json::{Map, Value};

use super::decoded::{Origin, Packed};
use super::unsupported;
use crate::codec::{Dtype, packed_bytes};
use crate::model::{Config, ModelError, SafetensorsModel, TensorMeta, TensorSource};

/// Bits and group of one layer, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Affine {
    bits: usize,
    group: usize,
}

/// What a configuration says about packed layers.
pub(super) struct Settings {
    all: Affine,
    /// Layers with settings of their own.
    each: Vec<(String, Affine)>,
}

/// The `quantization` of a configuration; `None` when it has none.
pub(super) fn settings(config: &Config) -> Result<Option<Settings>, ModelError> {
    let found = config.get("quantization").or_else(|| config.get("quantization_config"));
    let Some(found) = found.and_then(Value::as_object) else { return Ok(None) };
    let all = affine(config, found, "quantization")?;
    let own = found.iter().filter_map(|(name, value)| Some((name, value.as_object()?)));
    let each = own.map(|(name, value)| Ok((name.clone(), affine(config, value, name)?)));
    Ok(Some(Settings { all, each: each.collect::<Result<_, ModelError>>()? }))
}

fn affine(config: &Config, found: &Map<String, Value>, key: &str) -> Result<Affine, ModelError> {
    if let Some(mode) = found.get("mode").and_then(Value::as_str).filter(|mode| *mode != "affine") {
        return Err(unsupported(config, &format!("MLX mode {mode:?}")));
    }
    let number = |key: &str| found.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    match (number("bits"), number("group_size")) {
        (Some(bits @ 2..=8), Some(group @ 1..)) => Ok(Affine { bits, group }),
        _ => Err(config.error(key, "wants bits (2 to 8) and a group_size".to_owned())),
    }
}

impl Settings {
    pub fn summary(&self) -> String {
        format!("MLX {} bits, group {}", self.all.bits, self.all.group)
    }

    fn of(&self, layer: &str) -> Affine {
        self.each.iter().find(|(name, _)| name == layer).map_or(self.all, |(_, own)| *own)
    }
}

/// Every packed matrix of the files.
pub(super) fn find(settings: &Settings, tensors: &SafetensorsModel) -> Result<Vec<Packed>, ModelError> {
    let mut found = Vec::new();
    for meta in tensors.metas() {
        let Some(layer) = meta.name.strip_suffix(".weight") else { continue };
        if let Some(scales) = tensors.meta(&format!("{layer}.scales")) {
            matrices(settings.of(layer), tensors, (layer, meta, scales), &mut found)?;
        } else if meta.dtype == Dtype::U32 {
            let path = &tensors.files()[meta.file];
            return Err(ModelError::broken_tensor(path, &meta.name, "is packed but has no scales beside it"));
        }
    }
    Ok(found)
}

fn matrices(
    affine: Affine,
    tensors: &SafetensorsModel,
    (layer, codes, scales): (&str, &TensorMeta, &TensorMeta),
    found: &mut Vec<Packed>,
) -> Result<(), ModelError> {
    let path = &tensors.files()[codes.file];
    let broken = |cause: String| {
        ModelError::broken_tensor(path, &codes.name, cause).with_hint("the parts of the matrix do not fit each other")
    };
    let biases = tensors.meta(&format!("{layer}.biases"));
    let biases = biases.ok_or_else(|| broken("has no biases beside it".to_owned()))?;
    let plain = |meta: &TensorMeta| matches!(meta.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
    let Some((&groups, outer)) = scales.shape.split_last() else { return Err(broken("has a scale alone".to_owned())) };
    let cols = groups * affine.group;
    let wanted = [outer, &[packed_bytes(cols, affine.bits) / 4]].concat();
    let is_whole = (cols * affine.bits).is_multiple_of(32);
    let fits = codes.dtype == Dtype::U32 && plain(scales) && plain(biases) && is_whole;
    if !fits || codes.shape != wanted || biases.shape != scales.shape {
        let (shape, sides) = (&codes.shape, (&scales.shape, &biases.shape));
        return Err(broken(format!(
            "codes {shape:?} {}, scales {:?} {} and biases {:?} are no matrix of {} bits in groups of {}",
            codes.dtype, sides.0, scales.dtype, sides.1, affine.bits, affine.group
        )));
    }
    let one = |name: String, rows: usize, first_row: usize| Packed {
        name,
        rows,
        cols,
        first_row,
        bits: affine.bits,
        group: affine.group,
        codes: codes.name.clone(),
        scales: scales.name.clone(),
        origin: Origin::Biases(biases.name.clone()),
        // A sum of a product and a bias does not fit the type of either.
        dtype: Dtype::F32,
    };
    match *outer {
        [rows] => found.push(one(codes.name.clone(), rows, 0)),
        [experts, rows] => {
            let expert = |e: usize| codes.name.replacen(".switch_mlp.", &format!(".experts.{e}."), 1);
            if expert(0) == codes.name {
                return Err(broken("is a stack of matrices, but not of a switch_mlp".to_owned()));
            }
            found.extend((0..experts).map(|e| one(expert(e), rows, e * rows)));
        }
        _ => return Err(broken(format!("has shape {:?}", codes.shape))),
    }
    Ok(())
}
