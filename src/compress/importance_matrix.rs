//! Importance matrices as llama.cpp writes them: for every matrix of a model, the mean square of the inputs each of its
//! columns meets.
//!
//! Two forms are read. The GGUF form holds sums and counts (`<tensor>.in_sum2`, `<tensor>.counts`), one row per expert. The
//! older form (usually `.dat`) is a list of entries: `i32` length of the name, the name, `i32` calls, `i32` numbers, the
//! numbers as `f32`, which are sums over the calls. Names are those of the GGUF tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{CompressError, QuantPlan};
use crate::family::GgufContent;
use crate::model::TensorSource;
use crate::model::gguf::GgufFile;
use crate::node::MOST_TEXT;
use crate::units::read_at_most;

/// An importance matrix, checked number by number: finite, not negative.
#[derive(Clone, Debug)]
pub struct ImportanceMatrix {
    path: PathBuf,
    /// Tensor → one number per column, expert after expert.
    entries: BTreeMap<String, Vec<f32>>,
}

/// How much of a plan an importance matrix covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Block-format matrices it has numbers for.
    pub used: usize,
    /// Block-format matrices it says nothing about: they are encoded without.
    pub missing: Vec<String>,
    /// Entries about no tensor of the file.
    pub unknown: usize,
}

impl ImportanceMatrix {
    /// Reads either form.
    pub fn read(path: &Path) -> Result<Self, CompressError> {
        let bytes = read_at_most(path, MOST_TEXT).map_err(CompressError::io("read", path))?;
        let entries = if bytes.starts_with(b"GGUF") { from_gguf(path)? } else { from_list(path, &bytes)? };
        for (tensor, numbers) in &entries {
            if let Some(at) = numbers.iter().position(|n| !n.is_finite() || *n < 0.0) {
                return Err(damaged(path, format!("number {at} of {tensor} is {}", numbers[at])));
            }
        }
        if entries.is_empty() {
            return Err(damaged(path, "it holds no entry".into()));
        }
        Ok(ImportanceMatrix { path: path.to_owned(), entries })
    }

    /// The file's name without its folder.
    pub fn file_name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or("imatrix")
    }

    /// How many tensors it is about.
    pub fn entries(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The importance of the columns of a tensor: of part `nth` of `of` stacked ones.
    pub fn columns(&self, tensor: &str, nth: usize, of: usize) -> Option<&[f32]> {
        let numbers = self.entries.get(tensor)?;
        let each = numbers.len() / of.max(1);
        numbers.get(nth * each..(nth + 1) * each)
    }

    /// Holds every entry against the tensors of a plan.
    ///
    /// # Errors
    /// An entry of other than the tensor's columns (times its experts), or none that fits any tensor: it is another
    /// model's.
    pub fn check(&self, plan: &QuantPlan) -> Result<Coverage, CompressError> {
        let mut coverage = Coverage::default();
        let mut known = 0;
        for planned in &plan.tensors {
            let tensor = &planned.tensor;
            let is_matrix = tensor.shape.len() > 1;
            let Some(numbers) = self.entries.get(&tensor.name).filter(|_| is_matrix) else {
                if is_matrix && planned.dtype.block_elems() > 1 {
                    coverage.missing.push(tensor.name.clone());
                }
                continue;
            };
            let stacked = match &tensor.content {
                GgufContent::Stack(sources) => sources.len(),
                _ => 1,
            };
            let columns = tensor.shape.last().copied().unwrap_or(1);
            if numbers.len() != columns * stacked {
                let reason = format!(
                    "{} has {} numbers, this model's tensor has {columns} columns in {stacked} matrices",
                    tensor.name,
                    numbers.len()
                );
                return Err(self.foreign(reason));
            }
            known += 1;
            coverage.used += usize::from(planned.dtype.block_elems() > 1);
        }
        if known == 0 {
            let first = self.entries.keys().next().map_or("", String::as_str);
            return Err(self.foreign(format!("no tensor of this model is among its entries ({first} …)")));
        }
        coverage.unknown = self.entries.len() - known;
        Ok(coverage)
    }

    fn foreign(&self, reason: String) -> CompressError {
        let hint = "make it with this model: pruning changes experts and heads, so prune first";
        CompressError::Matrix { path: self.path.clone(), reason, hint }
    }
}

fn damaged(path: &Path, reason: String) -> CompressError {
    let hint = "name a file that llama.cpp's imatrix tool wrote (.gguf or .dat), or leave importanceMatrix out";
    CompressError::Matrix { path: path.to_owned(), reason, hint }
}

fn from_gguf(path: &Path) -> Result<BTreeMap<String, Vec<f32>>, CompressError> {
    const SUMS: &str = ".in_sum2";
    let file = GgufFile::open(path)?;
    if let Some(kind) = file.opt_str("general.type")?.filter(|kind| *kind != "imatrix") {
        return Err(damaged(path, format!("it is a GGUF file of type {kind:?}")));
    }
    let mut entries = BTreeMap::new();
    for meta in file.metas() {
        let Some(tensor) = meta.name.strip_suffix(SUMS) else { continue };
        let (mut numbers, mut counts) = (Vec::new(), Vec::new());
        file.read_f32(&meta.name, &mut numbers)?;
        file.read_f32(&format!("{tensor}.counts"), &mut counts)?;
        let rows = meta.elems() / meta.shape.last().copied().unwrap_or(1).max(1);
        if rows != counts.len() {
            return Err(damaged(path, format!("{tensor}: sums of {rows} matrices, counts of {}", counts.len())));
        }
        let columns = numbers.len() / rows.max(1);
        for (row, count) in numbers.chunks_mut(columns.max(1)).zip(counts) {
            // A matrix that met no token has no importance: zeros, which leave its columns equal.
            let scale = if count > 0.0 { 1.0 / count } else { 0.0 };
            row.iter_mut().for_each(|n| *n *= scale);
        }
        entries.insert(tensor.to_owned(), numbers);
    }
    Ok(entries)
}

fn from_list(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Vec<f32>>, CompressError> {
    let mut rest = bytes;
    let torn = |what: &str| damaged(path, format!("it ends within {what}"));
    let count = take_count(&mut rest).ok_or_else(|| damaged(path, "it does not begin with a count".into()))?;
    let mut entries = BTreeMap::new();
    for nth in 0..count {
        let name = take_count(&mut rest).and_then(|length| rest.split_off(..length));
        let name = name.ok_or_else(|| torn(&format!("the name of entry {nth}")))?;
        let name =
            std::str::from_utf8(name).map_err(|_| damaged(path, format!("the name of entry {nth} is no text")))?;
        let calls = take_count(&mut rest).ok_or_else(|| torn(name))?;
        let length = take_count(&mut rest).and_then(|n| n.checked_mul(4)).ok_or_else(|| torn(name))?;
        let raw = rest.split_off(..length).ok_or_else(|| torn(name))?;
        let scale = 1.0 / calls.max(1) as f32;
        let numbers = raw.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw) * scale).collect();
        if entries.insert(name.to_owned(), numbers).is_some() {
            return Err(damaged(path, format!("{name} stands there twice")));
        }
    }
    // What follows (the last chunk and the name of the data set) is of no use here.
    Ok(entries)
}

/// A number of things, as a 32-bit integer.
fn take_count(rest: &mut &[u8]) -> Option<usize> {
    let raw = rest.split_off(..4)?;
    i32::from_le_bytes(raw.try_into().ok()?).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeclaredTensor;
    use crate::model::Dtype;
    use crate::model::gguf::GgufWriter;

    fn list(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
        let mut out = (entries.len() as i32).to_le_bytes().to_vec();
        for (name, calls, numbers) in entries {
            out.extend((name.len() as i32).to_le_bytes());
            out.extend(name.bytes());
            out.extend(calls.to_le_bytes());
            out.extend((numbers.len() as i32).to_le_bytes());
            out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        }
        out.extend(7i32.to_le_bytes());
        out
    }

    fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.dat");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn the_older_form_holds_sums_over_calls() {
        let (_dir, path) = written(&list(&[("blk.0.attn_q.weight", 4, &[4.0, 8.0]), ("b", 1, &[1.0, 2.0, 3.0, 4.0])]));
        let matrix = ImportanceMatrix::read(&path).unwrap();
        assert_eq!(matrix.columns("blk.0.attn_q.weight", 0, 1), Some(&[1.0f32, 2.0][..]));
        assert_eq!(matrix.columns("b", 1, 2), Some(&[3.0f32, 4.0][..]));
        assert_eq!((matrix.columns("c", 0, 1), matrix.entries()), (None, 2));
    }

    #[test]
    fn a_torn_or_negative_list_is_refused_with_its_place() {
        let whole = list(&[("a", 1, &[1.0, 2.0])]);
        for (bytes, says) in [
            (&whole[..16], "ends within a"),
            (&whole[..6], "ends within the name of entry 0"),
            (&list(&[("a", 1, &[1.0, -2.0])]), "number 1 of a is -2"),
            (&list(&[("a", 1, &[f32::NAN])]), "number 0 of a is NaN"),
            (&list(&[]), "holds no entry"),
        ] {
            let (_dir, path) = written(bytes);
            let error = ImportanceMatrix::read(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_gguf_form_holds_sums_and_counts_per_expert() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        let declared = vec![
            DeclaredTensor::new("blk.0.ffn_up_exps.weight.in_sum2", Dtype::F32, vec![2, 3]),
            DeclaredTensor::new("blk.0.ffn_up_exps.weight.counts", Dtype::F32, vec![2, 1]),
        ];
        let mut writer = GgufWriter::create(&path, &[("general.type".into(), "imatrix".into())], declared).unwrap();
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        writer.tensor("blk.0.ffn_up_exps.weight.in_sum2", &bytes(&[2.0, 4.0, 6.0, 0.0, 0.0, 0.0])).unwrap();
        writer.tensor("blk.0.ffn_up_exps.weight.counts", &bytes(&[2.0, 0.0])).unwrap();
        writer.finish().unwrap();
        let matrix = ImportanceMatrix::read(&path).unwrap();
        assert_eq!(matrix.columns("blk.0.ffn_up_exps.weight", 0, 2), Some(&[1.0f32, 2.0, 3.0][..]));
        assert_eq!(matrix.columns("blk.0.ffn_up_exps.weight", 1, 2), Some(&[0.0f32, 0.0, 0.0][..]));
    }
}
