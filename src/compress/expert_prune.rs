//! Expert pruning as a streaming rewrite: drop experts, renumber the kept ones, cut the router's rows, copy the rest.
//!
//! The model is never loaded: every tensor that stays goes from the source's pages to the output in one write, as it
//! lies in the files, whatever layout its experts have there. What a stored tensor has to do with experts is asked of
//! the model's [`Storage`].

use std::collections::HashMap;
use std::path::Path;

use super::{ByteProgress, CompressError, Kept};
use crate::codec::Dtype;
use crate::family::{ExpertAxis, MixtureId, OpenModel, Role, Storage};
use crate::model::{DeclaredTensor, SafetensorsWriter, SettlingModel, TensorMeta, TensorSource};

/// What becomes of one tensor of the source.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorFate {
    /// Bytes and name stay.
    Kept,
    /// Bytes stay, the expert's number changes (possibly to itself).
    Renamed(String),
    /// A router or a stack of experts: only the kept experts' rows stay.
    Sliced(Vec<usize>),
    /// A router whose kept rows were computed anew: its shape is that of a slice, its bytes are these.
    Recomputed { rows: Vec<usize>, bytes: Vec<u8> },
    /// Belongs to an expert that is dropped.
    Dropped,
}

/// The decision, before a byte is written.
#[derive(Clone, Debug)]
pub struct PrunePlan {
    /// Experts that stay in every mixture.
    pub keep: usize,
    pub experts: usize,
    pub kept: Kept,
    fates: HashMap<String, TensorFate>,
}

/// How many tensors met which fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FateCounts {
    pub kept_unchanged: usize,
    /// Tensors of kept experts, those that kept their number included.
    pub kept_renamed: usize,
    /// Weights, biases and corrections of routers.
    pub routers_sliced: usize,
    /// Tensors that hold all experts of a layer.
    pub stacks_sliced: usize,
    pub routers_recomputed: usize,
    pub dropped: usize,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct PruneReport {
    /// Bytes of tensor data.
    pub bytes_out: u64,
    pub counts: FateCounts,
}

impl PrunePlan {
    /// What becomes of the tensors of `storage` when these experts stay.
    pub fn new(storage: &Storage, experts: usize, kept: Kept) -> Self {
        let fate = |name: &str, axis: ExpertAxis| match axis {
            ExpertAxis::Apart => TensorFate::Kept,
            ExpertAxis::One { mixture, expert } => {
                let new = kept.get(&mixture).map(|kept| kept.binary_search(&expert));
                match new {
                    None => TensorFate::Kept,
                    Some(Err(_)) => TensorFate::Dropped,
                    Some(Ok(new)) => storage
                        .renumbered(name, new)
                        .map_or(TensorFate::Kept, |name| TensorFate::Renamed(name.to_owned())),
                }
            }
            ExpertAxis::Rows { mixture } => {
                kept.get(&mixture).map_or(TensorFate::Kept, |kept| TensorFate::Sliced(kept.clone()))
            }
        };
        let fates = storage.tensors().iter().map(|t| (t.name.clone(), fate(&t.name, t.experts))).collect();
        let keep = kept.values().map(Vec::len).max().unwrap_or(0);
        PrunePlan { keep, experts, kept, fates }
    }

    /// What becomes of the stored tensor `name`.
    pub fn fate(&self, name: &str) -> &TensorFate {
        self.fates.get(name).unwrap_or(&TensorFate::Kept)
    }

    /// Replaces the kept rows of the routers' weights: mixture → `[kept, hidden]`, stored as the source stores them.
    ///
    /// # Errors
    /// A router that is stored in a type this cannot write, or as a part of another tensor.
    pub fn recompute_routers(
        &mut self,
        model: &OpenModel,
        routers: &HashMap<MixtureId, Vec<f32>>,
    ) -> Result<(), CompressError> {
        for tensor in model.storage().tensors() {
            let (ExpertAxis::Rows { mixture }, crate::family::Holding::Tensor(Role::Router(_))) =
                (tensor.experts, &tensor.holding)
            else {
                continue;
            };
            let (Some(values), TensorFate::Sliced(rows)) = (routers.get(&mixture), self.fate(&tensor.name)) else {
                continue;
            };
            let dtype = model.stored.require(&tensor.name)?.dtype;
            let bytes = encode(dtype, values).ok_or_else(|| CompressError::Refused {
                what: "router-kd",
                reason: format!("{} is stored as {dtype}, which this build does not write for a router", tensor.name),
                hint: "leave routerKd out for this model",
            })?;
            let fate = TensorFate::Recomputed { rows: rows.clone(), bytes };
            self.fates.insert(tensor.name.clone(), fate);
        }
        Ok(())
    }

    /// Bytes of tensor data in the output.
    pub fn bytes_out(&self, metas: &[TensorMeta]) -> u64 {
        let kept = |meta: &TensorMeta| match self.fate(&meta.name) {
            TensorFate::Dropped => 0,
            TensorFate::Sliced(rows) => meta.bytes / meta.rows().max(1) as u64 * rows.len() as u64,
            TensorFate::Recomputed { bytes, .. } => bytes.len() as u64,
            TensorFate::Kept | TensorFate::Renamed(_) => meta.bytes,
        };
        metas.iter().map(kept).sum()
    }

    /// How many tensors of `storage` meet which fate.
    pub fn counts(&self, storage: &Storage) -> FateCounts {
        let mut counts = FateCounts::default();
        for tensor in storage.tensors() {
            let is_router = matches!(
                tensor.holding,
                crate::family::Holding::Tensor(Role::Router(_) | Role::RouterBias(_) | Role::RouterCorrection(_))
            );
            *match self.fate(&tensor.name) {
                TensorFate::Kept => &mut counts.kept_unchanged,
                TensorFate::Renamed(_) => &mut counts.kept_renamed,
                TensorFate::Sliced(_) if is_router => &mut counts.routers_sliced,
                TensorFate::Sliced(_) => &mut counts.stacks_sliced,
                TensorFate::Recomputed { .. } => &mut counts.routers_recomputed,
                TensorFate::Dropped => &mut counts.dropped,
            } += 1;
        }
        counts
    }

    /// Every tensor that stays, with what it becomes, in source order.
    fn outgoing<'m>(&self, metas: &'m [TensorMeta]) -> Result<Vec<(&'m TensorMeta, DeclaredTensor)>, CompressError> {
        let mut out = Vec::with_capacity(metas.len());
        for meta in metas {
            let mut target = DeclaredTensor::from(meta);
            match self.fate(&meta.name) {
                TensorFate::Dropped => continue,
                TensorFate::Kept => {}
                TensorFate::Renamed(name) => target.name = name.clone(),
                TensorFate::Sliced(rows) | TensorFate::Recomputed { rows, .. } => match target.shape.first_mut() {
                    Some(first) if *first == self.experts => *first = rows.len(),
                    _ => {
                        let reason = format!("shape {:?} does not begin with {} experts", meta.shape, self.experts);
                        return Err(CompressError::Tensor { tensor: meta.name.clone(), reason });
                    }
                },
            }
            out.push((meta, target));
        }
        Ok(out)
    }
}

/// Little-endian values of a type a router is stored in.
fn encode(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    match dtype {
        Dtype::F32 => Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Dtype::BF16 => Some(values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()),
        Dtype::F16 => Some(values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()),
        _ => None,
    }
}

/// Writes the pruned tensors to the directory `out` (which must exist), in shards of at most `max_shard_bytes`, in the
/// source's order. The files can be read at once; they are durable and hashed when waited for. `done` hears the bytes
/// handed to the writer. The caller carries config and side files.
pub fn rewrite(
    model: &OpenModel,
    plan: &PrunePlan,
    out: &Path,
    max_shard_bytes: u64,
    done: ByteProgress<'_>,
) -> Result<(PruneReport, SettlingModel), CompressError> {
    let source = &*model.stored;
    let outgoing = plan.outgoing(source.metas())?;
    let mut writer =
        SafetensorsWriter::create(out, outgoing.iter().map(|(_, target)| target.clone()).collect(), max_shard_bytes)?;
    let mut bytes_out = 0;
    for (i, (meta, target)) in outgoing.iter().enumerate() {
        if let Some((next, _)) = outgoing.get(i + 1) {
            source.prefetch(&next.name);
        }
        match plan.fate(&meta.name) {
            TensorFate::Sliced(rows) => writer.tensor(&target.name, &sliced(source, meta, rows)?)?,
            TensorFate::Recomputed { bytes, .. } => writer.tensor(&target.name, bytes)?,
            _ => writer.copy(&target.name, source, &meta.name)?,
        }
        bytes_out += target.dtype.checked_bytes(&target.shape).unwrap_or(0);
        done(bytes_out);
    }
    Ok((PruneReport { bytes_out, counts: plan.counts(model.storage()) }, writer.publish()?))
}

fn sliced(source: &dyn TensorSource, meta: &TensorMeta, rows: &[usize]) -> Result<Vec<u8>, CompressError> {
    let bytes = source.bytes(&meta.name)?;
    let row = bytes.len() / meta.rows().max(1);
    let mut kept = Vec::with_capacity(rows.len() * row);
    for &r in rows {
        kept.extend_from_slice(&bytes[r * row..(r + 1) * row]);
    }
    drop(bytes);
    source.release(&meta.name);
    Ok(kept)
}
