//! Quantization to GGUF in one pass: header first, then every tensor once, encoded on all cores while the writer
//! writes what is ready. No intermediate copy of the model exists, in memory or on disk.
//!
//! The type mix follows llama.cpp's for the two block formats this build writes: vectors and the router stay `F32`,
//! the embedding and the output head of `Q4_0` are kept at `Q8_0`. Rows that are no whole number of blocks fall back
//! to `F16`; the plan names them, and they count in the file's real bits per weight.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use rayon::prelude::*;

use super::gguf_jobs::{Job, jobs_of};
use super::{ByteProgress, CompressError};
use crate::codec::{Codec, codec_named};
use crate::family::{GgufContent, GgufTensor, ModelSpec, OpenModel, Role, gguf_tensors};
use crate::model::gguf::{GgufValue, GgufWriter};
use crate::model::{DeclaredTensor, Dtype, FileHash, ModelError, TensorSource};

/// The quantization types this build writes, as recipes name them.
pub const QUANT_TYPES: [&str; 5] = ["F32", "F16", "BF16", "Q8_0", "Q4_0"];

/// One tensor of the file to come.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    pub tensor: GgufTensor,
    pub dtype: Dtype,
}

/// What the file will hold, from the model's spec alone.
#[derive(Clone, Debug)]
pub struct QuantPlan {
    pub target: Dtype,
    pub tensors: Vec<PlannedTensor>,
    /// Tensors that could not take the asked-for type because their rows are no whole number of blocks.
    pub fallbacks: Vec<String>,
    /// Bytes of tensor data; the header comes on top (tokenizers make it a few megabytes).
    pub data_bytes: u64,
}

/// The format a recipe names, if this build writes it.
pub fn quant_type(name: &str) -> Option<Dtype> {
    QUANT_TYPES.iter().any(|known| known.eq_ignore_ascii_case(name)).then(|| codec_named(name))?.map(Codec::dtype)
}

/// Decides the type of every tensor.
pub fn plan_quant(spec: &ModelSpec, target: Dtype) -> Result<QuantPlan, CompressError> {
    let mut plan = QuantPlan { target, tensors: Vec::new(), fallbacks: Vec::new(), data_bytes: 0 };
    for tensor in gguf_tensors(spec)? {
        let wanted = wanted_type(&tensor, target);
        let row = tensor.shape.last().copied().unwrap_or(1);
        let dtype = if row.is_multiple_of(wanted.block_elems()) { wanted } else { Dtype::F16 };
        if dtype != wanted {
            plan.fallbacks.push(tensor.name.clone());
        }
        plan.data_bytes += dtype.checked_bytes(&tensor.shape).ok_or_else(|| CompressError::Tensor {
            tensor: tensor.name.clone(),
            reason: format!("shape {:?} is too large", tensor.shape),
        })?;
        plan.tensors.push(PlannedTensor { tensor, dtype });
    }
    Ok(plan)
}

fn wanted_type(tensor: &GgufTensor, target: Dtype) -> Dtype {
    match tensor.role {
        _ if tensor.shape.len() < 2 => Dtype::F32,
        Some(Role::Router(_)) => Dtype::F32,
        Some(Role::Embed | Role::Head) if target == Dtype::Q4_0 => Dtype::Q8_0,
        _ => target,
    }
}

/// Writes the file. `metadata` comes first in the header; the file appears under its name only when it is complete.
/// `done` hears the bytes of tensor data encoded so far.
pub fn write_gguf(
    model: &OpenModel,
    plan: &QuantPlan,
    metadata: &[(String, GgufValue)],
    path: &Path,
    done: ByteProgress<'_>,
) -> Result<FileHash, CompressError> {
    /// Jobs encoded together: about 16 MB of bf16.
    const WINDOW: usize = 16;
    let declared = plan.tensors.iter().map(|t| DeclaredTensor::new(&t.tensor.name, t.dtype, t.tensor.shape.clone()));
    let writer = GgufWriter::create(path, metadata, declared.collect())?;
    let jobs: Vec<(usize, Job<'_>)> =
        plan.tensors.iter().enumerate().flat_map(|(i, t)| jobs_of(t).into_iter().map(move |job| (i, job))).collect();
    let source = &*model.tensors;
    std::thread::scope(|scope| {
        // Encoding must not wait for the disk, nor the disk for encoding: two windows may lie between them.
        let (send, receive) = sync_channel(2);
        let feeder = scope.spawn(|| feed(writer, plan, receive));
        let mut encoded_bytes = 0;
        let mut encode = || {
            for window in jobs.chunks(WINDOW) {
                let run = |(i, job): &(usize, Job<'_>)| Ok((*i, job.run(source)?));
                let encoded = window.par_iter().map(run).collect::<Result<Vec<_>, CompressError>>()?;
                encoded_bytes += encoded.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
                release_before(source, plan, window);
                if send.send(encoded).is_err() {
                    // The feeder has stopped; its error is the one to tell.
                    break;
                }
                done(encoded_bytes);
            }
            Ok::<(), CompressError>(())
        };
        let encoded = encode();
        drop(send);
        let written = feeder.join().unwrap_or_else(|_| Err(ModelError::misuse(path, "the feeding thread panicked")));
        encoded?;
        Ok(written?)
    })
}

type Encoded = Vec<(usize, Vec<u8>)>;

/// Hands encoded pieces to the writer, tensor by tensor.
fn feed(mut writer: GgufWriter, plan: &QuantPlan, receive: Receiver<Encoded>) -> Result<FileHash, ModelError> {
    let mut open: Option<usize> = None;
    for (i, bytes) in receive.into_iter().flatten() {
        if open != Some(i) {
            if open.is_some() {
                writer.end()?;
            }
            writer.begin(&plan.tensors[i].tensor.name)?;
            open = Some(i);
        }
        writer.write_owned(bytes)?;
    }
    if open.is_some() {
        writer.end()?;
    }
    writer.finish()
}

/// Gives back the pages of tensors whose last job lies in this window.
fn release_before(source: &dyn TensorSource, plan: &QuantPlan, window: &[(usize, Job<'_>)]) {
    let last = window.last().map_or(0, |(i, _)| *i);
    let first = window.first().map_or(0, |(i, _)| *i);
    for planned in &plan.tensors[first..last] {
        match &planned.tensor.content {
            GgufContent::Copy(name) | GgufContent::Permute { source: name, .. } => source.release(name),
            GgufContent::Stack(names) => names.iter().for_each(|name| source.release(name)),
            GgufContent::Values(_) => {}
        }
    }
}
