//! The pass-through proof: what a stage was not asked to change, it did not change.
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
    /// All but some attention heads.
    Heads(HeadCut),
}

/// Attention heads lie side by side along an axis of a tensor; some of them are gone.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadCut {
    /// 0: rows (of a matrix or a vector), 1: columns.
    pub axis: usize,
    /// Heads along the axis, gone ones included.
    pub count: usize,
    /// Ascending.
    pub gone: Vec<usize>,
    /// The gone ones are not in the output; otherwise they are +0.0 there.
    pub cut_out: bool,
}

impl Lineage {
    /// A tensor that stays as it is, under its name.
    pub fn unchanged(name: &str) -> Self {
        Lineage { output: name.to_owned(), source: name.to_owned(), part: Part::Whole }
    }
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
        .with("tensors_without_heads", count(|l| matches!(l.part, Part::Heads(_))))
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
        let mut first = |rows: usize| shape.iter_mut().take(1).for_each(|first| *first = rows);
        match self {
            Part::Whole => {}
            Part::Rows(rows) => first(rows.len()),
            Part::Recomputed(rows) => first(*rows),
            Part::Heads(cut) if cut.cut_out => {
                let kept = cut.count - cut.gone.len();
                shape.iter_mut().skip(cut.axis).take(1).for_each(|along| *along = *along / cut.count * kept);
            }
            Part::Heads(_) => {}
        }
        shape
    }
}

fn original_bytes<'a>(
    source: &'a dyn TensorSource,
    meta: &TensorMeta,
    line: &Lineage,
) -> Result<Cow<'a, [u8]>, GateError> {
    let bytes = source.bytes(&line.source)?;
    let rows = match &line.part {
        Part::Whole | Part::Recomputed(_) => return Ok(bytes),
        Part::Heads(cut) => return Ok(Cow::Owned(cut.without(&bytes, &meta.shape))),
        Part::Rows(rows) => rows,
    };
    let row = bytes.len() / meta.shape.first().copied().unwrap_or(1).max(1);
    let mut kept = Vec::with_capacity(rows.len() * row);
    for &r in rows {
        let part = bytes.get(r * row..(r + 1) * row);
        kept.extend_from_slice(part.ok_or_else(|| GateError::changed(&line.source, &line.output, "row out of range"))?);
    }
    Ok(Cow::Owned(kept))
}

impl HeadCut {
    /// The bytes of a tensor after the cut, found element by element from their places: slow and simple on purpose, it
    /// shares nothing with the writer it is held against.
    fn without(&self, bytes: &[u8], shape: &[usize]) -> Vec<u8> {
        let elements: usize = shape.iter().product();
        let (size, along) = (bytes.len() / elements.max(1), shape.get(self.axis).copied().unwrap_or(1));
        let below: usize = shape.iter().skip(self.axis + 1).product();
        let mut gone = vec![false; self.count];
        self.gone.iter().for_each(|&head| gone[head] = true);
        let is_gone = |element: usize| gone[element / below % along * self.count / along];
        let mut out = Vec::with_capacity(bytes.len());
        for (element, value) in bytes.chunks_exact(size.max(1)).enumerate() {
            match (is_gone(element), self.cut_out) {
                (false, _) => out.extend_from_slice(value),
                (true, false) => out.extend(std::iter::repeat_n(0, size)),
                (true, true) => {}
            }
        }
        out
    }
}
