//! Quantization to directories as mlx_lm writes them: every matrix, embedding and output head too, as whole numbers with a
//! scale and an offset per group.
//!
//! Enters: an open model, a number of bits, the columns of a group. Leaves: an [`MlxPlan`], and from the rows a solver has
//! chosen a directory: `X.weight` holds the codes in 32-bit words, `X.scales` and `X.biases` what makes values of them
//! (`scale · code + bias`), the experts of a mixture lie one behind the other as `switch_mlp`, and `config.json` says
//! `quantization`. Source of the layout: `mlx.core.quantize` and `mlx_lm.utils` (mode `affine`). Routers, norms and biases
//! stay.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::calibrated::{GridRef, Target, Targets};
use super::encoded::EncodedRows;
use super::packed::{Unseen, copy_dense};
use super::{ByteProgress, CompressError};
use crate::codec::{Dtype, Grid, IntGrid, ScaleType, packed_bytes};
use crate::family::{BlockSpec, ModelSpec, OpenModel, Role};
use crate::model::{Config, DeclaredTensor, ModelError, SafetensorsWriter, WrittenModel};

/// A type as recipes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlxType {
    pub name: &'static str,
    pub bits: usize,
}

/// Every width MLX has kernels for.
pub const MLX_TYPES: [MlxType; 6] = [
    MlxType { name: "MLX2", bits: 2 },
    MlxType { name: "MLX3", bits: 3 },
    MlxType { name: "MLX4", bits: 4 },
    MlxType { name: "MLX5", bits: 5 },
    MlxType { name: "MLX6", bits: 6 },
    MlxType { name: "MLX8", bits: 8 },
];

/// Columns of a group, as MLX has kernels for them; the first is mlx_lm's own choice.
pub const MLX_GROUPS: [usize; 3] = [64, 128, 32];

/// The type of this name, in any case.
pub fn mlx_type(name: &str) -> Option<&'static MlxType> {
    MLX_TYPES.iter().find(|known| known.name.eq_ignore_ascii_case(name))
}

/// A layer to pack: one matrix, or those of all experts of a mixture.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    /// As the files call it.
    name: String,
    /// As the specification calls them.
    weights: Vec<String>,
    rows: usize,
    cols: usize,
    group: usize,
    grid: IntGrid,
    /// A linear layer of a block, whose inputs a calibration knows.
    in_block: bool,
}

/// What the directory will hold.
#[derive(Clone, Debug)]
pub struct MlxPlan {
    pub kind: &'static MlxType,
    /// The group asked for.
    pub wanted: usize,
    layers: Vec<Layer>,
    /// Tensors that stay, under the specification's names.
    dense: Vec<DeclaredTensor>,
    /// Matrices among them that no group divides.
    unpacked: Vec<String>,
    /// Type of scales and of what stays.
    half: Dtype,
}

/// Plans a directory. `wanted`: columns of a group, one of [`MLX_GROUPS`]; rows it does not divide take the next narrower
/// one, and rows that 32 does not divide stay as they are, as in mlx_lm.
///
/// # Errors
/// A family whose directories mlx_lm was not seen to load.
pub fn plan_mlx(
    spec: &ModelSpec,
    half: Dtype,
    (kind, wanted): (&'static MlxType, usize),
) -> Result<MlxPlan, CompressError> {
    let loads = crate::family::by_name(spec.family).is_some_and(|family| family.loads_in_mlx());
    if !loads || !spec.carried.is_empty() {
        let reason = format!("{}: models of the family {} were not seen to load in mlx_lm", kind.name, spec.family);
        return Err(CompressError::Refused { what: "quant", reason, hint: HINT });
    }
    if let Some(what) = beyond(spec) {
        let reason = format!("{}: mlx_lm does not compute {what}", kind.name);
        return Err(CompressError::Refused { what: "quant", reason, hint: HINT });
    }
    let mut plan = MlxPlan { kind, wanted, layers: Vec::new(), dense: Vec::new(), unpacked: Vec::new(), half };
    let scale = if half == Dtype::F16 { ScaleType::F16 } else { ScaleType::BF16 };
    for tensor in spec.tensors() {
        let is_matrix = tensor.role.is_linear() || matches!(tensor.role, Role::Embed | Role::Head);
        let group = match tensor.shape[..] {
            [_, cols] if is_matrix => group_of(cols, wanted),
            _ => None,
        };
        let (Some(group), [rows, cols], Some(layer)) =
            (group, &tensor.shape[..], tensor.name.strip_suffix(".weight").map(stacked))
        else {
            if is_matrix && tensor.shape.len() == 2 {
                plan.unpacked.push(tensor.name.clone());
            }
            plan.dense.push(DeclaredTensor::new(tensor.name, half, tensor.shape));
            continue;
        };
        match plan.layers.iter_mut().find(|known| known.name == layer) {
            Some(known) => known.weights.push(tensor.name),
            None => plan.layers.push(Layer {
                name: layer,
                weights: vec![tensor.name],
                rows: *rows,
                cols: *cols,
                group,
                grid: IntGrid::affine(kind.bits, group, scale),
                in_block: tensor.role.is_linear(),
            }),
        }
    }
    Ok(plan)
}

const HINT: &str = "use format gguf or safetensors";

/// What mlx_lm leaves out where this engine computes it (seen in its 0.32: the logits are another model's).
fn beyond(spec: &ModelSpec) -> Option<&'static str> {
    let attention = || spec.blocks.iter().filter_map(BlockSpec::attention);
    if attention().any(|a| a.clip.is_some()) {
        return Some("clipped queries, keys and values (clip_qkv)");
    }
    attention().any(|a| a.window.is_some()).then_some("sliding windows of attention in this family")
}

/// The widest group that divides the row and is no wider than asked for.
fn group_of(cols: usize, wanted: usize) -> Option<usize> {
    let mut groups = MLX_GROUPS;
    groups.sort_by_key(|group| std::cmp::Reverse(*group));
    groups.into_iter().find(|group| *group <= wanted && cols.is_multiple_of(*group))
}

/// `mlp.experts.7.up_proj` is a part of `mlp.switch_mlp.up_proj`; other layers keep their names.
fn stacked(layer: &str) -> String {
    const MIDDLE: &str = ".experts.";
    let parts = layer.split_once(MIDDLE).and_then(|(front, rest)| Some((front, rest.split_once('.')?)));
    match parts {
        Some((front, (number, part))) if number.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{front}.switch_mlp.{part}")
        }
        _ => layer.to_owned(),
    }
}

/// What a tensor of a packed layer holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Codes,
    Scales,
    Biases,
}

impl Layer {
    fn tensors(&self, half: Dtype) -> [(Part, DeclaredTensor); 3] {
        let shape = |last: usize| match self.name.contains(".switch_mlp.") {
            true => vec![self.weights.len(), self.rows, last],
            false => vec![self.rows, last],
        };
        let words = packed_bytes(self.cols, self.grid.bits()) / 4;
        let tensor = |part: &str, dtype, last| DeclaredTensor::new(format!("{}.{part}", self.name), dtype, shape(last));
        [
            (Part::Codes, tensor("weight", Dtype::U32, words)),
            (Part::Scales, tensor("scales", half, self.cols / self.group)),
            (Part::Biases, tensor("biases", half, self.cols / self.group)),
        ]
    }
}

impl MlxPlan {
    /// What every tensor of the directory is made of, in order: the widest types first.
    fn pieces(&self) -> Vec<(Option<(&Layer, Part)>, DeclaredTensor)> {
        let of_layer = |layer| Layer::tensors(layer, self.half).map(|(part, tensor)| (Some((layer, part)), tensor));
        let packed = self.layers.iter().flat_map(of_layer);
        let mut pieces: Vec<_> = packed.chain(self.dense.iter().map(|tensor| (None, tensor.clone()))).collect();
        pieces.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.block_bytes()));
        pieces
    }

    /// What a calibration is asked to solve.
    pub fn targets(&self) -> Targets {
        let layers = self.layers.iter().filter(|layer| layer.in_block);
        let target = |layer: &Layer| Target { grid: GridRef::Shared(Arc::new(layer.grid)), dtype: None };
        layers.flat_map(|l| l.weights.iter().map(move |weight| (weight.clone(), target(l)))).collect()
    }

    /// What is solved on its weights alone: everything, or with a calibration what stands outside the blocks.
    pub fn unseen(&self, is_calibrated: bool) -> Vec<Unseen<'_>> {
        let layers = self.layers.iter().filter(|layer| !(is_calibrated && layer.in_block));
        let mut all = Vec::new();
        for Layer { weights, rows, cols, grid, .. } in layers {
            all.extend(weights.iter().map(|weight| Unseen { weight, rows: *rows, cols: *cols, grid }));
        }
        all
    }

    /// Bytes of tensor data.
    pub fn data_bytes(&self) -> u64 {
        self.pieces().iter().filter_map(|(_, tensor)| tensor.dtype.checked_bytes(&tensor.shape)).sum()
    }

    /// Types of the tensors: how many matrices there are and their bytes, the most bytes first.
    pub fn types(&self) -> Vec<(String, usize, u64)> {
        let mut types: Vec<(String, usize, u64)> = Vec::new();
        let mut add = |name: String, count: usize, bytes: u64| match types.iter_mut().find(|(n, ..)| *n == name) {
            Some((_, known, sum)) => (*known, *sum) = (*known + count, *sum + bytes),
            None => types.push((name, count, bytes)),
        };
        for layer in &self.layers {
            let tensors = layer.tensors(self.half);
            let bytes = tensors.iter().filter_map(|(_, t)| t.dtype.checked_bytes(&t.shape)).sum();
            add(layer.grid.name(), layer.weights.len(), bytes);
        }
        for tensor in &self.dense {
            add(tensor.dtype.to_string(), 1, tensor.dtype.checked_bytes(&tensor.shape).unwrap_or(0));
        }
        types.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
        types
    }

    /// Matrices that took another group than was asked for, each with what it took.
    pub fn narrowed(&self) -> Vec<(String, String)> {
        let layers = self.layers.iter().filter(|layer| layer.group != self.wanted);
        let packed = layers.map(|layer| (layer.name.clone(), format!("g{}", layer.group)));
        packed.chain(self.unpacked.iter().map(|name| (name.clone(), self.half.to_string()))).collect()
    }

    /// What [`MlxPlan::narrowed`] comes to, a line for each kind.
    pub fn fallback_lines(&self) -> Vec<String> {
        let mut kinds: Vec<(String, String, usize)> = Vec::new();
        for (name, given) in self.narrowed() {
            match kinds.iter_mut().find(|(_, known, _)| *known == given) {
                Some((.., count)) => *count += 1,
                None => kinds.push((name, given, 1)),
            }
        }
        let (kind, wanted) = (self.kind.name, self.wanted);
        let line = |(first, given, count): &(String, String, usize)| {
            let more = if *count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            format!("{kind}: {first}{more}: {given}, since {wanted} does not divide the row")
        };
        kinds.iter().map(line).collect()
    }
}

/// The configuration of a directory of `plan`, from that of the model it is made from. Keys that newer configurations keep
/// elsewhere are said once more where mlx_lm looks for them.
pub fn mlx_config(config: &Config, spec: &ModelSpec, plan: &MlxPlan) -> Config {
    let mut config = config.clone();
    let rope = config.get("rope_parameters").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(theta) = rope.get("rope_theta").filter(|_| config.get("rope_theta").is_none()) {
        config.set("rope_theta", theta.clone());
    }
    let is_scaled = rope.get("rope_type").and_then(Value::as_str).is_some_and(|kind| kind != "default");
    if is_scaled && config.get("rope_scaling").is_none() {
        config.set("rope_scaling", Value::Object(rope));
    }
    if let Some((experts, _)) = spec.experts().filter(|_| config.get("num_experts").is_none()) {
        config.set("num_experts", experts.into());
    }
    for key in ["quantization_config", "quantization"] {
        config.remove(key);
    }
    let key = if config.get("torch_dtype").is_some() { "torch_dtype" } else { "dtype" };
    let half = if plan.half == Dtype::F16 { "float16" } else { "bfloat16" };
    config.set(key, half.into());
    let bits = plan.kind.bits;
    let mut said = Map::new();
    said.insert("group_size".into(), plan.wanted.into());
    said.insert("bits".into(), bits.into());
    said.insert("mode".into(), "affine".into());
    for layer in plan.layers.iter().filter(|layer| layer.group != plan.wanted) {
        said.insert(layer.name.clone(), json!({ "group_size": layer.group, "bits": bits, "mode": "affine" }));
    }
    // mlx_lm reads the first, the hub the second.
    for key in ["quantization", "quantization_config"] {
        config.set(key, Value::Object(said.clone()));
    }
    config
}

/// Writes the weights of `plan` into `out`, an existing directory; each of `rows` holds some of the solved matrices. `done`
/// hears the bytes written.
///
/// # Errors
/// A matrix that `rows` lack, values that do not fit the type of what stays, a full disk.
pub fn write_mlx(
    model: &OpenModel,
    plan: &MlxPlan,
    rows: &[&EncodedRows],
    (out, max_shard_bytes): (&Path, u64),
    done: ByteProgress<'_>,
) -> Result<WrittenModel, CompressError> {
    let pieces = plan.pieces();
    let declared = pieces.iter().map(|(_, tensor)| tensor.clone()).collect();
    let mut writer = SafetensorsWriter::create(out, declared, max_shard_bytes)?;
    let mut written = 0u64;
    for (piece, tensor) in pieces {
        match piece {
            None => copy_dense((model.tensors.as_ref(), &tensor.name), &tensor, &mut writer)?,
            Some((layer, part)) => {
                writer.begin(&tensor.name)?;
                for weight in &layer.weights {
                    let solved = rows.iter().find_map(|rows| rows.rows(weight)).ok_or_else(|| ModelError::Misuse {
                        path: out.to_owned(),
                        cause: format!("{weight} was not solved"),
                    })?;
                    write_part(layer, part, solved, &mut writer)?;
                }
                writer.end()?;
            }
        }
        written += tensor.dtype.checked_bytes(&tensor.shape).unwrap_or(0);
        done(written);
    }
    Ok(writer.finish()?)
}

/// One part of a solved matrix.
fn write_part(layer: &Layer, part: Part, solved: &[u8], writer: &mut SafetensorsWriter) -> Result<(), ModelError> {
    /// Bytes handed to the writer at once, about.
    const PIECE: usize = 4 << 20;
    let row_bytes = layer.grid.row_bytes(layer.cols).unwrap_or(1);
    for solved in solved.chunks((PIECE / row_bytes).max(1) * row_bytes) {
        let mut piece = writer.buffer();
        for row in solved.chunks_exact(row_bytes) {
            let row = layer.grid.split_row(layer.cols, row);
            piece.extend_from_slice(match part {
                Part::Codes => row.codes,
                Part::Scales => row.scales,
                Part::Biases => row.offsets,
            });
        }
        writer.write_owned(piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_become_parts_of_one_stack() {
        assert_eq!(stacked("model.layers.3.mlp.experts.12.up_proj"), "model.layers.3.mlp.switch_mlp.up_proj");
        assert_eq!(stacked("model.layers.3.mlp.up_proj"), "model.layers.3.mlp.up_proj");
        assert_eq!(stacked("model.layers.3.mlp.experts.gate_up_proj"), "model.layers.3.mlp.experts.gate_up_proj");
    }

    #[test]
    fn a_row_takes_the_widest_group_that_divides_it() {
        assert_eq!(group_of(576, 128), Some(64));
        assert_eq!(group_of(96, 64), Some(32));
        assert_eq!(group_of(256, 64), Some(64));
        assert_eq!(group_of(256, 32), Some(32));
        assert_eq!(group_of(100, 64), None);
    }
}
