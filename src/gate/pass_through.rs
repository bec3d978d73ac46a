//! The pass-through proof: what a prune was not asked to change, it did not change.
//!
//! Enters: the source and the re-opened output, and for every output tensor where it must come from. Leaves: evidence
//! with the number of tensors and bytes compared and one digest over all of them, or the first tensor that differs.

use std::borrow::Cow;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::diagnosis::Change;
use super::{Evidence, GateError, first_non_finite};
use crate::model::{TensorMeta, TensorSource};
use crate::units::Sha;

/// Where one tensor of the output comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Lineage {
    /// Name in the output.
    pub output: String,
    /// Name in the source.
    pub source: String,
    pub part: Part,
}

/// What of the source's tensor is in the output's.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    Whole,
    /// These rows of dimension 0, ascending.
    Rows(Vec<usize>),
    /// As many rows, computed anew: only type, shape and that every value is finite can be proved.
    Recomputed(usize),
}

/// Checks that `output` holds exactly the tensors of `lineage`, each with the bytes its source says, by SHA-256 of
/// both sides, and that every value is finite. `done` is called with the bytes of every tensor that was compared.
pub fn pass_through(
    source: &dyn TensorSource,
    output: &dyn TensorSource,
    lineage: &[Lineage],
    subject: &str,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Evidence, GateError> {
    let mut expected: Vec<&str> = lineage.iter().map(|l| l.output.as_str()).collect();
    expected.sort_unstable();
    let mut found: Vec<&str> = output.metas().iter().map(|m| m.name.as_str()).collect();
    found.sort_unstable();
    if let Some(extra) = found.iter().find(|name| expected.binary_search(name).is_err()) {
        return Err(GateError::changed(subject, extra, "is in the output, but the plan does not name it"));
    }
    let mut digests: Vec<(&str, Sha, u64)> = lineage
        .par_iter()
        .map(|line| {
            let (sha, bytes) = compare(source, output, line, lineage, subject)?;
            done(bytes);
            Ok((line.output.as_str(), sha, bytes))
        })
        .collect::<Result<_, GateError>>()?;
    digests.sort_unstable_by_key(|(name, ..)| *name);
    let mut all = Sha256::new();
    for (name, sha, _) in &digests {
        all.update(name.as_bytes());
        all.update([0]);
        all.update(sha.0);
    }
    let count = |wanted: fn(&Lineage) -> bool| lineage.iter().filter(|l| wanted(l)).count();
    Ok(Evidence::passed("pass-through", subject)
        .with("tensors_unchanged", count(|l| l.part == Part::Whole && l.source == l.output))
        .with("tensors_renamed", count(|l| l.part == Part::Whole && l.source != l.output))
        .with("tensors_sliced", count(|l| matches!(l.part, Part::Rows(_))))
        .with("tensors_recomputed", count(|l| matches!(l.part, Part::Recomputed(_))))
        .with("bytes_compared", digests.iter().map(|(.., bytes)| bytes).sum::<u64>())
        .with("digest", Sha(all.finalize().into()).tagged()))
}

fn compare(
    source: &dyn TensorSource,
    output: &dyn TensorSource,
    line: &Lineage,
    lineage: &[Lineage],
    subject: &str,
) -> Result<(Sha, u64), GateError> {
    let changed = |why: &str| GateError::changed(subject, &line.output, why);
    let from = source.meta(&line.source).ok_or_else(|| changed("comes from a tensor the source does not have"))?;
    let to = output.meta(&line.output).ok_or_else(|| changed("is missing in the output"))?;
    let shape = line.part.shape(&from.shape);
    if to.dtype != from.dtype || to.shape != shape {
        let why = format!("is {:?} {:?} in the output, {:?} {shape:?} expected", to.dtype, to.shape, from.dtype);
        return Err(changed(&why));
    }
    let written = output.bytes(&line.output)?;
    if let Some(at) = first_non_finite(to.dtype, &written) {
        return Err(GateError::NonFinite { subject: subject.into(), tensor: line.source.clone(), element: at });
    }
    if let Part::Recomputed(_) = line.part {
        return Ok((Sha::of(&written), 0));
    }
    let original = original_bytes(source, from, line)?;
    let (sha, want) = (Sha::of(&written), Sha::of(&original));
    if sha != want {
        let seen = Change { source, from, line, lineage, original: &original, written: &written };
        return Err(changed(&format!("{} (SHA-256 {sha}, the source has {want})", seen.describe())));
    }
    let bytes = written.len() as u64;
    drop((written, original));
    output.release(&line.output);
    source.release(&line.source);
    Ok((sha, bytes))
}

impl Part {
    /// The output's shape for a source of this shape.
    fn shape(&self, source: &[usize]) -> Vec<usize> {
        let mut shape = source.to_vec();
        let rows = match self {
            Part::Whole => return shape,
            Part::Rows(rows) => rows.len(),
            Part::Recomputed(rows) => *rows,
        };
        shape.iter_mut().take(1).for_each(|first| *first = rows);
        shape
    }
}

fn original_bytes<'a>(
    source: &'a dyn TensorSource,
    meta: &TensorMeta,
    line: &Lineage,
) -> Result<Cow<'a, [u8]>, GateError> {
    let bytes = source.bytes(&line.source)?;
    let Part::Rows(rows) = &line.part else { return Ok(bytes) };
    let row = bytes.len() / meta.shape.first().copied().unwrap_or(1).max(1);
    let mut kept = Vec::with_capacity(rows.len() * row);
    for &r in rows {
        let part = bytes.get(r * row..(r + 1) * row);
        kept.extend_from_slice(part.ok_or_else(|| GateError::changed(&line.source, &line.output, "row out of range"))?);
    }
    Ok(Cow::Owned(kept))
}
