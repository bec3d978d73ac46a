//! Scales for the columns of linear layers, chosen block by block on what the layers are given.
//!
//! For all readers of an input the scales are `rms(x)^a` over the root of the largest times the smallest, `a` out of twenty
//! between 0 and 1; that `a` is taken which loses least output, `Σ tr(E H Eᵀ)` over the readers rounded in their grids. What
//! makes the input takes the inverses. A norm's gain counts as it will be stored: the scales are the old gain over the
//! new, so that rounding it costs nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::CompressError;
use super::calibrated::Targets;
use super::fold::scaling::{Origin, ScaleGroup, groups};
use super::fold::{Folds, Step};
use super::solve::{Matrix, Moments, loss_when_scaled};
use crate::codec::{Dtype, codec_for};
use crate::family::{BlockSpec, LinearSpec, NormKind, NormSpec};
use crate::model::TensorSource;

/// Exponents that are tried: n of so many.
const STEPS: usize = 20;
/// Rows of a matrix on which exponents are compared; the best is then held against none on all rows.
const SAMPLE_ROWS: usize = 256;
/// Inputs below this share of the largest count as this much.
const LEAST_SHARE: f64 = 1e-4;

/// The types in which tensors that are not solved are stored.
#[derive(Clone, Debug)]
pub struct StoredAs {
    pub usual: Dtype,
    pub others: HashMap<String, Dtype>,
}

impl StoredAs {
    /// One type for all.
    pub fn all(usual: Dtype) -> Self {
        StoredAs { usual, others: HashMap::new() }
    }

    /// Values of a tensor as they read back.
    fn round(&self, tensor: &str, values: &mut [f32]) {
        let dtype = self.others.get(tensor).copied().unwrap_or(self.usual);
        let Some(codec) = codec_for(dtype).filter(|_| dtype != Dtype::F32 && dtype.block_elems() == 1) else { return };
        let mut bytes = vec![0u8; dtype.bytes_for(values.len())];
        codec.encode(values, &mut bytes);
        codec.decode(&bytes, values);
    }
}

/// The sums of one input, its drift beside it.
pub(super) type InputMoments = (Vec<String>, Moments, Option<Vec<f32>>);

/// The scales of a model under way.
pub(super) struct Scaling<'a> {
    targets: &'a Targets,
    stored_as: &'a StoredAs,
    source: &'a dyn TensorSource,
    pub folds: Folds,
    /// By weight: the exponent of its inputs' scales.
    pub exponents: HashMap<String, f64>,
    /// Targets of earlier rounds.
    solved: HashSet<String>,
    /// Why inputs were not scaled, and in how many blocks.
    skipped: BTreeMap<Cow<'static, str>, HashSet<usize>>,
}

/// A matrix, or some rows of it, whose columns are to be scaled.
struct Reader<'a> {
    layer: &'a LinearSpec,
    moments: &'a Moments,
    rows: Vec<f32>,
}

/// Scales that are better than none.
struct Choice {
    exponent: f64,
    scales: Vec<f32>,
    /// Of a norm: its gain over the scales, as stored.
    gain: Option<Vec<f32>>,
}

impl<'a> Scaling<'a> {
    pub fn new(targets: &'a Targets, stored_as: &'a StoredAs, source: &'a dyn TensorSource) -> Self {
        Scaling {
            targets,
            stored_as,
            source,
            folds: Folds::default(),
            exponents: HashMap::new(),
            solved: HashSet::new(),
            skipped: BTreeMap::new(),
        }
    }

    /// What has been decided so far, put down.
    pub fn save(&self) -> Option<Value> {
        let folds = self.folds.save()?;
        serde_json::to_value((folds, &self.exponents, &self.solved, &self.skipped)).ok()
    }

    /// Takes back what [`Scaling::save`] gave; false, and unchanged, when it cannot be read.
    pub fn restore(&mut self, saved: Value) -> bool {
        let Ok((folds, exponents, solved, skipped)) = serde_json::from_value(saved) else { return false };
        let Some(folds) = Folds::restore(folds) else { return false };
        (self.folds, self.exponents, self.solved, self.skipped) = (folds, exponents, solved, skipped);
        true
    }

    /// Why some inputs were not scaled, one line each.
    pub fn notes(&self) -> Vec<String> {
        self.skipped
            .iter()
            .map(|(why, blocks)| format!("awq: inputs not scaled in {} blocks: {why}", blocks.len()))
            .collect()
    }

    fn skip(&mut self, block: &BlockSpec, why: &'static str) {
        self.skipped.entry(why.into()).or_default().insert(block.index);
    }

    /// Chooses the scales of the inputs whose readers this round solves, and changes their moments to those of the scaled
    /// inputs. Returns the new values of tensors that this round does not solve.
    pub fn choose(
        &mut self,
        block: &BlockSpec,
        round: &[String],
        moments: &mut [InputMoments],
    ) -> Result<Vec<(String, Vec<f32>)>, CompressError> {
        let (groups, not) = groups(block);
        not.into_iter().for_each(|why| self.skip(block, why));
        let mut touched: Vec<String> = Vec::new();
        for group in &groups {
            let solved = |layer: &&&LinearSpec| self.targets.contains_key(&layer.weight);
            let targets: Vec<&LinearSpec> = group.layers.iter().filter(solved).copied().collect();
            let here = targets.iter().filter(|layer| round.contains(&layer.weight)).count();
            if here == 0 {
                continue;
            }
            if here < targets.len() {
                self.skip(block, "the sums of all that reads them exceed the memory for sums");
                continue;
            }
            if let Origin::Rows { layer, .. } = &group.origin
                && self.solved.contains(&layer.weight)
            {
                self.skip(block, "what makes them was stored before");
                continue;
            }
            if let Some(Choice { exponent, scales, gain }) = self.search(group, &targets, moments)? {
                self.exponents.extend(targets.iter().map(|layer| (layer.weight.clone(), exponent)));
                self.fold(group, &scales, gain, &mut touched)?;
                let columns: Vec<f32> = group.columns.iter().map(|k| scales[*k]).collect();
                let fed = |input: &&mut InputMoments| targets.iter().any(|layer| input.0.contains(&layer.weight));
                moments.iter_mut().filter(fed).for_each(|(_, moments, drift)| {
                    divide(&mut moments.sum, &columns);
                    drift.iter_mut().for_each(|drift| divide(drift, &columns));
                });
            }
        }
        self.solved.extend(round.iter().cloned());
        touched.sort_unstable();
        touched.dedup();
        touched.retain(|name| !round.contains(name));
        let change = |name: String| {
            let values = self.changed(&name)?;
            Ok((name, values))
        };
        touched.into_iter().map(change).collect()
    }

    /// A tensor as it will read back if nothing solves it.
    fn changed(&self, name: &str) -> Result<Vec<f32>, CompressError> {
        let mut values = self.read(name)?;
        self.apply(name, &mut values)?;
        if !self.targets.contains_key(name) {
            self.stored_as.round(name, &mut values);
        }
        Ok(values)
    }

    /// Does to a tensor's values what has been decided so far.
    pub fn apply(&self, name: &str, values: &mut [f32]) -> Result<(), CompressError> {
        let cols = self.source.require(name)?.row_elems();
        self.folds.apply(name, values, cols, 0);
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, CompressError> {
        let mut values = Vec::new();
        self.source.read_f32(name, &mut values)?;
        self.source.release(name);
        Ok(values)
    }

    /// The best exponent and its scales, with the gain of a norm that takes their inverses; `None` where none is better.
    fn search(
        &self,
        group: &ScaleGroup<'_>,
        targets: &[&LinearSpec],
        moments: &[InputMoments],
    ) -> Result<Option<Choice>, CompressError> {
        let Some(sizes) = sizes(group, targets, moments) else { return Ok(None) };
        let gain = match &group.origin {
            Origin::Norm(norm) => Some((*norm, self.read(&norm.weight)?)),
            Origin::Rows { .. } => None,
        };
        let mut readers = Vec::new();
        for layer in targets {
            let Some((_, moments, _)) = moments.iter().find(|(names, ..)| names.contains(&layer.weight)) else {
                continue;
            };
            let rows = sampled(&self.read(&layer.weight)?, layer);
            readers.push(Reader { layer, moments, rows });
        }
        let scales_of = |exponent: f64| {
            let wanted = scales(&sizes, exponent);
            match &gain {
                Some((norm, gain)) => {
                    let (scales, gain) = self.as_stored(norm, gain, &wanted);
                    (scales, Some(gain))
                }
                None => (wanted, None),
            }
        };
        let mut best = (0, f64::INFINITY);
        for step in 0..STEPS {
            let (scales, _) = scales_of(step as f64 / STEPS as f64);
            let lost = self.loss(group, &readers, &scales)?;
            if lost < best.1 {
                best = (step, lost);
            }
        }
        if best.0 == 0 {
            return Ok(None);
        }
        let exponent = best.0 as f64 / STEPS as f64;
        let (scales, gain) = scales_of(exponent);
        for reader in &mut readers {
            if reader.rows.len() < reader.layer.rows * reader.layer.cols {
                reader.rows = self.read(&reader.layer.weight)?;
            }
        }
        let ones = vec![1.0; group.scales];
        let is_better = self.loss(group, &readers, &scales)? < self.loss(group, &readers, &ones)?;
        Ok(is_better.then_some(Choice { exponent, scales, gain }))
    }

    fn loss(&self, group: &ScaleGroup<'_>, readers: &[Reader<'_>], scales: &[f32]) -> Result<f64, CompressError> {
        let columns: Vec<f32> = group.columns.iter().map(|k| scales[*k]).collect();
        let mut lost = 0.0;
        for Reader { layer, moments, rows } in readers {
            let grid = self.targets[&layer.weight].grid.get();
            let (name, cols) = (layer.weight.as_str(), layer.cols);
            let matrix = Matrix { name, values: rows, rows: rows.len() / cols, cols, grid, moments: Some(moments) };
            lost += loss_when_scaled(&matrix, &columns)?;
        }
        Ok(lost)
    }

    /// The gain of a norm over these scales as it is stored, and the scales that this comes to.
    fn as_stored(&self, norm: &NormSpec, stored: &[f32], wanted: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let offset = if norm.kind == NormKind::RmsOffset { 1.0 } else { 0.0 };
        let mut new: Vec<f32> = stored.iter().zip(wanted).map(|(gain, s)| (gain + offset) / s - offset).collect();
        self.stored_as.round(&norm.weight, &mut new);
        let mut scales = Vec::with_capacity(new.len());
        for (new, stored) in new.iter_mut().zip(stored) {
            let scale = (stored + offset) / (*new + offset);
            let usable = scale.is_finite() && scale > 0.0;
            if !usable {
                *new = *stored;
            }
            scales.push(if usable { scale } else { 1.0 });
        }
        (scales, new)
    }

    /// Notes what a group's scales do to which tensor.
    fn fold(
        &mut self,
        group: &ScaleGroup<'_>,
        scales: &[f32],
        gain: Option<Vec<f32>>,
        touched: &mut Vec<String>,
    ) -> Result<(), CompressError> {
        let mut note = |folds: &mut Folds, name: &str, step: Step| {
            folds.add(name, step);
            touched.push(name.to_owned());
        };
        match &group.origin {
            Origin::Norm(norm) => {
                let bias =
                    norm.bias.as_ref().map(|name| Ok::<_, CompressError>((name, self.read(name)?))).transpose()?;
                note(&mut self.folds, &norm.weight, Step::Become(gain.unwrap_or_default().into()));
                if let Some((name, mut bias)) = bias {
                    bias.iter_mut().zip(scales).for_each(|(bias, scale)| *bias /= scale);
                    self.stored_as.round(name, &mut bias);
                    note(&mut self.folds, name, Step::Become(bias.into()));
                }
            }
            Origin::Rows { layer, rows } => {
                let mut factors = vec![1f32; layer.rows];
                rows.iter().zip(scales).for_each(|(row, scale)| factors[*row] = 1.0 / scale);
                let factors: Arc<[f32]> = factors.into();
                note(&mut self.folds, &layer.weight, Step::Rows(factors.clone()));
                if let Some(bias) = &layer.bias {
                    note(&mut self.folds, bias, Step::Rows(factors));
                }
            }
        }
        let columns: Arc<[f32]> = group.columns.iter().map(|k| scales[*k]).collect();
        group.layers.iter().for_each(|layer| note(&mut self.folds, &layer.weight, Step::Columns(columns.clone())));
        Ok(())
    }
}

/// Root mean square of what each scale's columns are given; `None` when they were given nothing.
fn sizes(group: &ScaleGroup<'_>, targets: &[&LinearSpec], moments: &[InputMoments]) -> Option<Vec<f64>> {
    let mut sums = vec![0f64; group.scales];
    let fed = moments.iter().filter(|(names, ..)| targets.iter().any(|layer| names.contains(&layer.weight)));
    for (_, moments, _) in fed {
        let size = moments.size;
        group.columns.iter().enumerate().for_each(|(c, k)| sums[*k] += f64::from(moments.sum[c * size + c]));
    }
    let largest = sums.iter().copied().fold(0.0, f64::max).sqrt();
    (largest > 0.0).then(|| sums.iter().map(|sum| (sum.sqrt() / largest).max(LEAST_SHARE)).collect())
}

/// `size^exponent`, the largest times the smallest being 1.
fn scales(sizes: &[f64], exponent: f64) -> Vec<f32> {
    let (least, most) = sizes.iter().fold((f64::INFINITY, 0f64), |(least, most), v| (least.min(*v), most.max(*v)));
    let middle = (least * most).sqrt();
    sizes.iter().map(|size| (size / middle).powf(exponent) as f32).collect()
}

/// Rows of a matrix at equal distances.
fn sampled(values: &[f32], layer: &LinearSpec) -> Vec<f32> {
    let step = layer.rows.div_ceil(SAMPLE_ROWS).max(1);
    values.chunks_exact(layer.cols).step_by(step).flatten().copied().collect()
}

/// Element (i, j) over `scales[i] · scales[j]`.
fn divide(sum: &mut [f32], scales: &[f32]) {
    for (row, across) in sum.chunks_exact_mut(scales.len()).zip(scales) {
        row.iter_mut().zip(scales).for_each(|(v, down)| *v /= across * down);
    }
}
