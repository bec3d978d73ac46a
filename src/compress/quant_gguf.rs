//! Quantization to GGUF in one pass: header first, then every tensor once, encoded on all cores while the writer
//! writes what is ready. No intermediate copy of the model exists, in memory or on disk.
//!
//! Which tensor gets which type is `quant_mix`'s to say. Rows that are no whole number of a type's blocks take another
//! type; the plan names them, and they count in the file's real bits per weight.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use rayon::prelude::*;

use super::gguf_jobs::{Job, jobs_of};
use super::quant_mix::{Facts, Kind, fitting, wanted};
use super::{ByteProgress, CompressError, ImportanceMatrix, QUANT_MIXES, QuantMix};
use crate::family::{GgufTensor, ModelSpec, gguf_tensors};
use crate::model::gguf::{self, GgufValue, GgufWriter};
use crate::model::{DeclaredTensor, Dtype, FileHash, ModelError, TensorSource};

/// One tensor of the file to come.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    pub tensor: GgufTensor,
    pub dtype: Dtype,
}

/// A tensor that could not take the type its mix has for it: its rows are no whole number of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    pub tensor: String,
    pub wanted: Dtype,
    pub given: Dtype,
}

/// What the file will hold, from the model's spec alone.
#[derive(Clone, Debug)]
pub struct QuantPlan {
    /// The mix, or what else decided the types.
    pub name: String,
    /// `general.file_type` of the header.
    pub file_type: u32,
    pub tensors: Vec<PlannedTensor>,
    pub fallbacks: Vec<Fallback>,
    /// Bytes of tensor data; the header comes on top (tokenizers make it a few megabytes).
    pub data_bytes: u64,
}

/// Decides the type of every tensor. With an importance matrix (`informed`) some rules differ.
pub fn plan_quant(spec: &ModelSpec, mix: &'static QuantMix, informed: bool) -> Result<QuantPlan, CompressError> {
    let tensors = gguf_tensors(spec)?;
    let mut plan = QuantPlan::empty(mix.name, mix.file_type);
    let kind_of = |tensor: &GgufTensor| Kind::of(tensor.role, tensor.shape.len(), spec.tied);
    let facts = Facts {
        layers: spec.blocks.len(),
        values: tensors.iter().filter(|tensor| kind_of(tensor) == Kind::Value).count(),
        sharing: spec.blocks.iter().find_map(|b| b.attention()).map_or(1, |a| a.heads / a.kv_heads.max(1)),
        experts: spec.experts().map_or(0, |(experts, _)| experts),
        informed,
    };
    let mut values = 0;
    for tensor in tensors {
        let kind = kind_of(&tensor);
        let nth = if kind == Kind::Value { values } else { block_of(&tensor.name) };
        values += usize::from(kind == Kind::Value);
        let wanted = wanted(mix, kind, nth, &facts);
        let given = fitting(wanted, kind, mix, tensor.shape.last().copied().unwrap_or(1));
        if given != wanted {
            plan.fallbacks.push(Fallback { tensor: tensor.name.clone(), wanted, given });
        }
        plan.add(tensor, given)?;
    }
    Ok(plan)
}

/// A plan whose types somebody else has chosen, one for each tensor. `name` is for people.
pub fn plan_assigned(
    name: &str,
    tensors: impl IntoIterator<Item = (GgufTensor, Dtype)>,
) -> Result<QuantPlan, CompressError> {
    let mut plan = QuantPlan::empty(name, 0);
    for (tensor, dtype) in tensors {
        plan.add(tensor, dtype)?;
    }
    // The type of most bytes stands for the file; headers know mixes only.
    let of_type = |dtype: Dtype| QUANT_MIXES.iter().filter(move |mix| mix.base == dtype);
    let most = plan
        .types()
        .into_iter()
        .find_map(|(dtype, ..)| of_type(dtype).find(|mix| mix.name.ends_with("_M")).or_else(|| of_type(dtype).next()));
    plan.file_type = most.map_or(0, |mix| mix.file_type);
    Ok(plan)
}

/// The block of a tensor named `blk.N.…`; 0 for those of none.
fn block_of(name: &str) -> usize {
    name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(0)
}

impl QuantPlan {
    fn empty(name: &str, file_type: u32) -> Self {
        QuantPlan { name: name.to_owned(), file_type, tensors: Vec::new(), fallbacks: Vec::new(), data_bytes: 0 }
    }

    fn add(&mut self, tensor: GgufTensor, dtype: Dtype) -> Result<(), CompressError> {
        self.data_bytes += dtype.checked_bytes(&tensor.shape).ok_or_else(|| CompressError::Tensor {
            tensor: tensor.name.clone(),
            reason: format!("shape {:?} is no size of {dtype}", tensor.shape),
        })?;
        self.tensors.push(PlannedTensor { tensor, dtype });
        Ok(())
    }

    /// Bytes of the file with these header fields, exactly.
    pub fn file_bytes(&self, metadata: &[(String, GgufValue)], path: &Path) -> Result<u64, CompressError> {
        Ok(gguf::file_bytes(path, metadata, self.declared())?)
    }

    /// Bytes of such a file that no tensor takes: the same whatever types its tensors have.
    pub fn header_bytes(&self, metadata: &[(String, GgufValue)], path: &Path) -> Result<u64, CompressError> {
        let padded =
            |t: &DeclaredTensor| t.dtype.checked_bytes(&t.shape).unwrap_or(0).next_multiple_of(gguf::ALIGNMENT);
        let data: u64 = self.declared().iter().map(padded).sum();
        Ok(self.file_bytes(metadata, path)?.saturating_sub(data))
    }

    fn declared(&self) -> Vec<DeclaredTensor> {
        self.tensors.iter().map(|t| DeclaredTensor::new(&t.tensor.name, t.dtype, t.tensor.shape.clone())).collect()
    }

    /// Types of the file's tensors: how many there are and their bytes, the most bytes first.
    pub fn types(&self) -> Vec<(Dtype, usize, u64)> {
        let mut types: Vec<(Dtype, usize, u64)> = Vec::new();
        for planned in &self.tensors {
            let bytes = planned.dtype.checked_bytes(&planned.tensor.shape).unwrap_or(0);
            match types.iter_mut().find(|(dtype, ..)| *dtype == planned.dtype) {
                Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + bytes),
                None => types.push((planned.dtype, 1, bytes)),
            }
        }
        types.sort_by_key(|(dtype, _, bytes)| (std::cmp::Reverse(*bytes), *dtype));
        types
    }

    /// What the replacements come to, one line for each pair of types: `166 tensors take Q5_0 instead of Q4_K …`.
    pub fn fallback_lines(&self) -> Vec<String> {
        let mut groups: Vec<(Dtype, Dtype, Vec<&str>)> = Vec::new();
        for Fallback { tensor, wanted, given } in &self.fallbacks {
            match groups.iter_mut().find(|(from, to, _)| from == wanted && to == given) {
                Some((.., names)) => names.push(tensor),
                None => groups.push((*wanted, *given, vec![tensor])),
            }
        }
        let line = |(wanted, given, names): &(Dtype, Dtype, Vec<&str>)| {
            let (count, first) = (names.len(), names[0]);
            let who = if count == 1 { first.to_owned() } else { format!("{first} and {} more", count - 1) };
            let verb = if count == 1 { "takes" } else { "take" };
            let block = wanted.block_elems();
            format!(
                "{}: {who} {verb} {given} ({} bits) instead of {wanted} ({}): their rows are no multiple of {block}",
                self.name,
                given.bits(),
                wanted.bits()
            )
        };
        groups.iter().map(line).collect()
    }
}

/// Writes the file. Tensors of `source` that have the planned type already are copied. `importance` steers the formats
/// that search for scales. `metadata` comes first in the header; the file appears under its name only when it is
/// complete. `done` hears the bytes of tensor data encoded so far.
pub fn write_gguf(
    source: &dyn TensorSource,
    plan: &QuantPlan,
    metadata: &[(String, GgufValue)],
    importance: Option<&ImportanceMatrix>,
    path: &Path,
    done: ByteProgress<'_>,
) -> Result<FileHash, CompressError> {
    /// Jobs encoded together: about 16 MB of bf16.
    const WINDOW: usize = 16;
    let writer = GgufWriter::create(path, metadata, plan.declared())?;
    let all = plan.tensors.iter().enumerate();
    let jobs: Vec<(usize, Job<'_>)> =
        all.flat_map(|(i, t)| jobs_of(t, importance).into_iter().map(move |job| (i, job))).collect();
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
        planned.tensor.sources().into_iter().for_each(|name| source.release(name));
    }
}
