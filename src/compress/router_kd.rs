//! Router recalibration after a prune: the kept rows of each router are moved so that the survivors imitate the whole
//! mixture, layer by layer (the aim of router-only distillation, arXiv 2603.02217, by least squares).
//!
//! For every calibration token the survivors the router would choose are known, with their outputs f and weights g. What
//! they make, ŷ = Σ g f, moves with the logit of survivor i by Jᵢ = gᵢ (fᵢ − ŷ/s) (softmax, s the model's factor on the
//! weights). The change ΔW of the router that brings ŷ nearest to the mixture's output y, to first order, minimises
//! Σ ‖y − ŷ − Σᵢ Jᵢ (ΔWᵢ · x)‖² + λ ‖ΔW‖² (one Gauss-Newton step). Of each token only JᵀJ, Jᵀ(y − ŷ) and x are kept, and
//! conjugate gradients solve the rest. Whether it helps the model is for held-out text to say.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{CompressError, Kept, survivors};
use crate::codec::Dtype;
use crate::engine::{
    Imitation, Observer, PassOptions, PassProgress, Scoring, Subject, Survivors, Variant, run_subject,
};
use crate::family::{MixtureId, MoeSpec, OpenModel};

/// Tokens used at most: beyond a few thousand, more of them move the solution little.
pub const KD_TOKENS: usize = 8192;
/// λ over the mean of the diagonal of the quadratic form.
const RIDGE: f64 = 0.01;
/// Steps of conjugate gradients; stopping early damps like a ridge.
const STEPS: usize = 24;

/// By how much the kept rows of every router should move.
#[derive(Clone, Debug, PartialEq)]
pub struct Recalibration {
    /// Layer → `[kept, hidden]`.
    pub changes: BTreeMap<usize, Vec<f32>>,
    /// Σ‖y − Fᵀg‖² over Σ‖y‖² of every layer, before the change: how far the survivors are from the mixture.
    pub residuals: BTreeMap<usize, f64>,
    kept: BTreeMap<usize, Vec<usize>>,
}

/// Finds the change on at most [`KD_TOKENS`] tokens of `sequences`.
///
/// # Errors
/// A failing pass; a layer that no token of the text went through.
pub fn recalibrate(
    model: &OpenModel,
    kept: &Kept,
    sequences: &[Vec<u32>],
    options: &PassOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<Recalibration, CompressError> {
    let kept = survivors(kept);
    let numbers = kept.iter().map(|(&layer, kept)| (layer, kept.iter().map(|&e| e as u32).collect())).collect();
    let mut teacher =
        Teacher { model, kept: numbers, layer: None, changes: BTreeMap::new(), residuals: BTreeMap::new() };
    let mut left = KD_TOKENS;
    let used: Vec<Vec<u32>> = sequences
        .iter()
        .map_while(|sequence| {
            let take = sequence.len().min(left);
            left -= take;
            (take > 0).then(|| sequence[..take].to_vec())
        })
        .collect();
    run_subject(&Subject::of(model), &used, Scoring::None, options, &mut [&mut teacher], progress)?;
    teacher.solve();
    if let Some(layer) = kept.keys().find(|layer| !teacher.changes.contains_key(layer)) {
        return Err(CompressError::Refused {
            what: "router-kd",
            reason: format!("layer {layer}: the calibration text has no token for it"),
            hint: "use a longer calibration text, or leave routerKd out",
        });
    }
    Ok(Recalibration { changes: teacher.changes, residuals: teacher.residuals, kept })
}

impl Recalibration {
    /// The kept rows of every router after this share of the change, rounded as the model stores them: layer →
    /// `[kept, hidden]`.
    ///
    /// # Errors
    /// A router that cannot be read.
    pub fn routers(&self, model: &OpenModel, share: f32) -> Result<BTreeMap<usize, Vec<f32>>, CompressError> {
        let router = |(&layer, change): (&usize, &Vec<f32>)| {
            let Some(moe) = moe(model, layer) else { return Ok((layer, Vec::new())) };
            let (weight, dtype) = router_weight(model, moe)?;
            let rows = self.kept[&layer].iter().flat_map(|&e| &weight[e * moe.router.cols..][..moe.router.cols]);
            let moved = rows.zip(change).map(|(w, d)| rounded(dtype, w + share * d)).collect();
            Ok((layer, moved))
        };
        self.changes.iter().map(router).collect()
    }

    /// The variant of the model with the survivors and such routers.
    ///
    /// # Errors
    /// A router that cannot be read.
    pub fn variant(&self, model: &OpenModel, routers: &BTreeMap<usize, Vec<f32>>) -> Result<Variant, CompressError> {
        let mut variant = Variant::keeping(&self.kept);
        for (layer, rows) in routers {
            let (Some(moe), Some(survivors)) = (moe(model, *layer), variant.layers.get_mut(layer)) else { continue };
            let (mut weight, _) = router_weight(model, moe)?;
            let width = moe.router.cols;
            for (row, &expert) in rows.chunks_exact(width).zip(&self.kept[layer]) {
                weight[expert * width..][..width].copy_from_slice(row);
            }
            *survivors = Survivors { router: Some(weight), ..survivors.clone() };
        }
        Ok(variant)
    }
}

fn moe(model: &OpenModel, layer: usize) -> Option<&MoeSpec> {
    model.spec.mixture(MixtureId::Layer(layer))
}

fn router_weight(model: &OpenModel, moe: &MoeSpec) -> Result<(Vec<f32>, Dtype), CompressError> {
    let mut weight = Vec::new();
    model.tensors.read_f32(&moe.router.weight, &mut weight)?;
    Ok((weight, model.tensors.require(&moe.router.weight)?.dtype))
}

/// The value a tensor of this type keeps.
fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::BF16 => half::bf16::from_f32(value).to_f32(),
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// The observer: the tokens of one layer at a time.
struct Teacher<'a> {
    model: &'a OpenModel,
    kept: BTreeMap<usize, Vec<u32>>,
    layer: Option<Lesson>,
    changes: BTreeMap<usize, Vec<f32>>,
    residuals: BTreeMap<usize, f64>,
}

/// What the tokens of one layer ask of its router.
#[derive(Default)]
struct Lesson {
    layer: usize,
    hidden: usize,
    top_k: usize,
    /// Experts that stay: rows of the change.
    rows: usize,
    /// `[tokens, hidden]`
    inputs: Vec<f32>,
    /// `[tokens · top_k]`: rows of the chosen survivors.
    chosen: Vec<u32>,
    /// JᵀJ `[tokens, top_k, top_k]`.
    forms: Vec<f64>,
    /// Jᵀ(y − ŷ) `[tokens, top_k]`.
    pulls: Vec<f64>,
    residual: f64,
    target: f64,
}

impl Observer for Teacher<'_> {
    fn survivors(&self, layer: usize) -> Option<&[u32]> {
        self.kept.get(&layer).map(Vec::as_slice)
    }

    fn save(&mut self) -> Option<Vec<u8>> {
        self.solve();
        serde_json::to_vec(&(&self.changes, &self.residuals)).ok()
    }

    fn restore(&mut self, saved: &[u8]) -> bool {
        serde_json::from_slice(saved).map(|saved| (self.changes, self.residuals) = saved).is_ok()
    }

    fn imitation(&mut self, seen: &Imitation<'_>) {
        if self.layer.as_ref().is_some_and(|lesson| lesson.layer != seen.layer) {
            self.solve();
        }
        let Some(kept) = self.kept.get(&seen.layer) else { return };
        let (layer, hidden, top_k, rows) = (seen.layer, seen.hidden, seen.top_k, kept.len());
        let lesson = self.layer.get_or_insert_with(|| Lesson { layer, hidden, top_k, rows, ..Lesson::default() });
        lesson.take(seen, kept, moe(self.model, layer).map_or(1.0, |moe| moe.scale));
    }
}

impl Teacher<'_> {
    /// Turns the lesson at hand into the change of its layer.
    fn solve(&mut self) {
        let Some(lesson) = self.layer.take() else { return };
        self.changes.insert(lesson.layer, lesson.solve().into_iter().map(|v| v as f32).collect());
        self.residuals.insert(lesson.layer, lesson.residual / lesson.target.max(f64::MIN_POSITIVE));
    }
}

impl Lesson {
    fn take(&mut self, seen: &Imitation<'_>, kept: &[u32], scale: f64) {
        let (k, hidden) = (seen.top_k, seen.hidden);
        let ask = |row: usize| {
            let outputs = &seen.outputs[row * k * hidden..(row + 1) * k * hidden];
            ask(outputs, &seen.target[row * hidden..][..hidden], &seen.weights[row * k..][..k], scale)
        };
        let asked: Vec<Ask> = (0..seen.rows).into_par_iter().map(ask).collect();
        for ask in asked {
            self.forms.extend(ask.form);
            self.pulls.extend(ask.pull);
            self.residual += ask.residual;
            self.target += ask.target;
        }
        self.inputs.extend_from_slice(seen.inputs);
        self.chosen.extend(seen.chosen.iter().map(|expert| kept.binary_search(expert).unwrap_or(0) as u32));
    }

    /// The minimiser of the quadratic form, by conjugate gradients from zero: `[rows, hidden]`.
    fn solve(&self) -> Vec<f64> {
        let size = self.rows * self.hidden;
        let tokens = self.inputs.chunks_exact(self.hidden).zip(self.forms.chunks_exact(self.top_k * self.top_k));
        let trace: f64 = tokens
            .map(|(x, form)| {
                let squares: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
                squares * (0..self.top_k).map(|i| form[i * self.top_k + i]).sum::<f64>()
            })
            .sum();
        let ridge = RIDGE * trace / size as f64;
        let mut change = vec![0.0; size];
        let mut residual = self.spread(&self.pulls);
        let mut direction = residual.clone();
        let mut norm = dot(&residual, &residual);
        let enough = norm * 1e-12;
        for _ in 0..STEPS {
            if norm <= enough {
                break;
            }
            let mut curved = self.curvature(&direction);
            curved.iter_mut().zip(&direction).for_each(|(c, d)| *c += ridge * d);
            let step = norm / dot(&direction, &curved);
            change.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
            residual.iter_mut().zip(&curved).for_each(|(r, c)| *r -= step * c);
            let next = dot(&residual, &residual);
            let turn = next / norm;
            direction.iter_mut().zip(&residual).for_each(|(d, r)| *d = r + turn * *d);
            norm = next;
        }
        change
    }

    /// The quadratic form applied to a change of the router.
    fn curvature(&self, change: &[f64]) -> Vec<f64> {
        let (k, hidden) = (self.top_k, self.hidden);
        let token = |token: usize| {
            let x = &self.inputs[token * hidden..][..hidden];
            let moved: Vec<f64> = self.chosen[token * k..][..k]
                .iter()
                .map(|&row| {
                    let row = &change[row as usize * hidden..][..hidden];
                    row.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum()
                })
                .collect();
            let form = &self.forms[token * k * k..][..k * k];
            form.chunks_exact(k).map(|row| dot(row, &moved)).collect::<Vec<f64>>()
        };
        let asked: Vec<Vec<f64>> = (0..self.chosen.len() / k).into_par_iter().map(token).collect();
        self.spread(&asked.concat())
    }

    /// Σ over tokens: what each chosen survivor asks, times the token's input, on the survivor's row. Rows are summed in
    /// parallel, each in the order of the tokens.
    fn spread(&self, asked: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.rows * self.hidden];
        let mut of_row = vec![Vec::new(); self.rows];
        self.chosen.iter().enumerate().for_each(|(slot, &row)| of_row[row as usize].push(slot));
        out.par_chunks_mut(self.hidden).zip(&of_row).for_each(|(out, slots)| {
            for &slot in slots {
                let x = &self.inputs[slot / self.top_k * self.hidden..][..self.hidden];
                out.iter_mut().zip(x).for_each(|(sum, &x)| *sum += asked[slot] * f64::from(x));
            }
        });
        out
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What one token asks for.
struct Ask {
    /// JᵀJ `[k, k]`.
    form: Vec<f64>,
    /// Jᵀ(y − ŷ) `[k]`.
    pull: Vec<f64>,
    /// ‖y − ŷ‖² and ‖y‖².
    residual: f64,
    target: f64,
}

/// `outputs` `[k, hidden]`, `target` `[hidden]`, `weights` `[k]`; `scale` is the model's factor on the weights.
fn ask(outputs: &[f32], target: &[f32], weights: &[f32], scale: f64) -> Ask {
    let (k, hidden) = (weights.len(), target.len());
    let mut made = vec![0.0; hidden];
    for (output, &weight) in outputs.chunks_exact(hidden).zip(weights) {
        made.iter_mut().zip(output).for_each(|(y, &f)| *y += f64::from(weight) * f64::from(f));
    }
    let missing: Vec<f64> = target.iter().zip(&made).map(|(&y, made)| f64::from(y) - made).collect();
    let slopes: Vec<Vec<f64>> = outputs
        .chunks_exact(hidden)
        .zip(weights)
        .map(|(f, &g)| f.iter().zip(&made).map(|(&f, made)| f64::from(g) * (f64::from(f) - made / scale)).collect())
        .collect();
    Ask {
        form: (0..k * k).map(|i| dot(&slopes[i / k], &slopes[i % k])).collect(),
        pull: slopes.iter().map(|slope| dot(slope, &missing)).collect(),
        residual: dot(&missing, &missing),
        target: target.iter().map(|&y| f64::from(y).powi(2)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two survivors with fixed orthogonal outputs, a router `[2, 2]`, and a mixture whose weights follow another router.
    #[test]
    fn a_step_brings_the_survivors_nearer_to_a_mixture_with_another_router() {
        let inputs: Vec<[f32; 2]> = (0..64).map(|i| [(i as f32 * 0.7).sin(), (i as f32 * 1.3).cos()]).collect();
        let outputs = [1.0f32, 0.0, 0.0, 1.0];
        let weights = |router: &[f32], x: &[f32; 2]| {
            let z = [router[0] * x[0] + router[1] * x[1], router[2] * x[0] + router[3] * x[1]];
            let share = 1.0 / (1.0 + (z[1] - z[0]).exp());
            [share, 1.0 - share]
        };
        let (wanted, start) = ([0.6f32, -0.3, -0.2, 0.5], [0.0f32; 4]);
        let distance = |router: &[f32]| -> f32 {
            inputs.iter().map(|x| (weights(router, x)[0] - weights(&wanted, x)[0]).powi(2)).sum()
        };
        let mut lesson = Lesson { layer: 0, hidden: 2, top_k: 2, rows: 2, ..Lesson::default() };
        for x in &inputs {
            lesson.take(
                &Imitation {
                    layer: 0,
                    rows: 1,
                    hidden: 2,
                    top_k: 2,
                    inputs: x,
                    target: &weights(&wanted, x),
                    chosen: &[0, 1],
                    weights: &weights(&start, x),
                    outputs: &outputs,
                },
                &[0, 1],
                1.0,
            );
        }
        let change = lesson.solve();
        let moved: Vec<f32> = start.iter().zip(&change).map(|(w, d)| w + *d as f32).collect();
        assert!(distance(&moved) < 0.02 * distance(&start), "{} {}", distance(&moved), distance(&start));
    }

    #[test]
    fn what_is_rebuilt_already_asks_for_nothing() {
        let ask = ask(&[1.0, 0.0, 0.0, 1.0], &[0.5, 0.5], &[0.5, 0.5], 1.0);
        assert!(ask.pull.iter().all(|pull| pull.abs() < 1e-12) && ask.residual < 1e-12);
    }
}
