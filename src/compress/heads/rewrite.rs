//! Taking heads out of the files: every tensor goes once from source to output, in source order; those of pruned
//! layers are cut or zeroed on the way, one at a time.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::{Axis, Defrag, HeadEdit, HeadPlan, LayerHeads, prunable};
use crate::compress::{ByteProgress, CompressError};
use crate::family::{AttentionSpec, Holding, LinearSpec, MixerSpec, ModelSpec, NormSpec, OpenModel, Role};
use crate::model::{Config, DeclaredTensor, SafetensorsWriter, TensorSource, WrittenModel};

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadReport {
    /// Bytes of tensor data.
    pub bytes_out: u64,
    pub written: WrittenModel,
    pub kept_unchanged: usize,
    pub edited: usize,
}

impl HeadPlan {
    /// Stored tensor name → what happens to it; tensors that are not named stay as they are.
    ///
    /// # Errors
    /// A tensor of a pruned head is not in the files as one tensor.
    pub fn edits(&self, model: &OpenModel) -> Result<BTreeMap<String, HeadEdit>, CompressError> {
        let mut edits = BTreeMap::new();
        for (index, attention) in prunable(&model.spec) {
            if let Some(layer) = self.layers.get(&index).filter(|layer| !layer.gone.is_empty()) {
                self.of_layer(attention, layer, &mut edits);
            }
        }
        let roles: HashMap<Role, String> = model.spec.tensors().into_iter().map(|t| (t.role, t.name)).collect();
        let mut stored = BTreeMap::new();
        for tensor in model.storage().tensors() {
            let Holding::Tensor(role) = tensor.holding else { continue };
            if let Some(edit) = roles.get(&role).and_then(|name| edits.remove(name)) {
                stored.insert(tensor.name.clone(), edit);
            }
        }
        match edits.pop_first() {
            None => Ok(stored),
            Some((tensor, _)) => {
                let reason = "the files do not hold it as one tensor, its heads cannot be cut out".to_owned();
                Err(CompressError::Tensor { tensor, reason })
            }
        }
    }

    fn of_layer(&self, attention: &AttentionSpec, layer: &LayerHeads, edits: &mut BTreeMap<String, HeadEdit>) {
        let slice = self.defrag == Defrag::Slice;
        let mut rows = |names: Vec<&String>, count: usize, width: usize, gone: &[usize]| {
            for name in names.into_iter().filter(|_| !gone.is_empty()) {
                edits.insert(name.clone(), HeadEdit { axis: Axis::Rows, width, count, gone: gone.to_vec(), slice });
            }
        };
        let groups = layer.gone_groups();
        // A norm over a token's whole row would change for every head if some of it became zero: such queries and keys
        // stay as they are, nobody reads what they bring about.
        if !spans_heads(&attention.q_norm, attention) {
            rows(tensors(&attention.q), layer.heads, attention.q.rows / layer.heads, &layer.gone);
        }
        if !spans_heads(&attention.k_norm, attention) {
            rows(tensors(&attention.k), layer.kv_heads, attention.k.rows / layer.kv_heads, &groups);
        }
        rows(tensors(&attention.v), layer.kv_heads, attention.v.rows / layer.kv_heads, &groups);
        if let (Some(sinks), true) = (&attention.sinks, slice) {
            rows(vec![sinks], layer.heads, 1, &layer.gone);
        }
        let width = attention.o.cols / layer.heads;
        let gone = layer.gone.clone();
        let columns = HeadEdit { axis: Axis::Columns, width, count: layer.heads, gone, slice };
        edits.insert(attention.o.weight.clone(), columns);
    }
}

fn tensors(linear: &LinearSpec) -> Vec<&String> {
    std::iter::once(&linear.weight).chain(&linear.bias).collect()
}

/// The norm is taken over all heads of a token together.
pub(super) fn spans_heads(norm: &Option<NormSpec>, attention: &AttentionSpec) -> bool {
    norm.as_ref().is_some_and(|norm| norm.size != attention.head_dim)
}

/// The model's description after a prune: unchanged in pad mode, fewer heads everywhere in slice mode.
pub fn with_heads(mut spec: ModelSpec, plan: &HeadPlan) -> ModelSpec {
    if plan.defrag == Defrag::Pad {
        return spec;
    }
    for block in &mut spec.blocks {
        let Some(layer) = plan.layers.get(&block.index) else { continue };
        let MixerSpec::Attention(attention) = &mut block.mixer else { continue };
        let groups = layer.gone_groups().len();
        let fewer = |linear: &mut LinearSpec, count: usize, gone: usize| linear.rows -= linear.rows / count * gone;
        fewer(&mut attention.q, layer.heads, layer.gone.len());
        fewer(&mut attention.k, layer.kv_heads, groups);
        fewer(&mut attention.v, layer.kv_heads, groups);
        attention.o.cols -= attention.o.cols / layer.heads * layer.gone.len();
        attention.heads -= layer.gone.len();
        attention.kv_heads -= groups;
    }
    spec
}

/// The config of the model after a prune. In slice mode the numbers of heads change, and the head width no longer
/// follows from them.
pub fn config_with_heads(config: &Config, spec: &ModelSpec, plan: &HeadPlan) -> Config {
    let mut config = config.clone();
    let after = with_heads(spec.clone(), plan);
    if let (Defrag::Slice, Some((_, attention))) = (plan.defrag, prunable(&after).first()) {
        for (key, value) in [
            ("head_dim", attention.head_dim),
            ("num_key_value_heads", attention.kv_heads),
            ("num_attention_heads", attention.heads),
        ] {
            config.set_beside("num_attention_heads", key, value.into());
        }
    }
    config
}

/// Writes the model without the heads of `plan` to the directory `out` (which must exist), in shards of at most
/// `max_shard_bytes`. `source` is the directory's own tensors, under the names of its files. `done` hears the bytes
/// handed to the writer. The caller carries config and side files.
///
/// # Errors
/// A tensor to edit is missing or has another shape or type than the edit is for; reading or writing fails.
pub fn rewrite_heads(
    source: &dyn TensorSource,
    edits: &BTreeMap<String, HeadEdit>,
    out: &Path,
    max_shard_bytes: u64,
    done: ByteProgress<'_>,
) -> Result<HeadReport, CompressError> {
    for name in edits.keys() {
        source.require(name)?;
    }
    let mut declared = Vec::with_capacity(source.metas().len());
    for meta in source.metas() {
        let mut target = DeclaredTensor::from(meta);
        if let Some(edit) = edits.get(&meta.name) {
            target.shape = edit.shape(meta)?;
        }
        declared.push(target);
    }
    let sizes: Vec<u64> = declared.iter().map(|t| t.dtype.checked_bytes(&t.shape).unwrap_or(0)).collect();
    let mut writer = SafetensorsWriter::create(out, declared, max_shard_bytes)?;
    let mut bytes_out = 0;
    for (i, meta) in source.metas().iter().enumerate() {
        if let Some(next) = source.metas().get(i + 1) {
            source.prefetch(&next.name);
        }
        match edits.get(&meta.name) {
            Some(edit) => {
                writer.tensor(&meta.name, &edit.apply(meta, &source.bytes(&meta.name)?))?;
                source.release(&meta.name);
            }
            None => writer.copy(&meta.name, source, &meta.name)?,
        }
        bytes_out += sizes[i];
        done(bytes_out);
    }
    let kept_unchanged = source.metas().len() - edits.len();
    Ok(HeadReport { bytes_out, written: writer.finish()?, kept_unchanged, edited: edits.len() })
}
