//! How much each attention head matters, by one of four measures. Higher is more important.
//!
//! Two need a look at the model at work and share one layer-major pass over a calibration corpus; two need none.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::prunable;
use crate::compress::CompressError;
use crate::engine::{Batch, HeadViews, Observer, PassOptions, PassProgress, Scoring, run_pass};
use crate::family::{AttentionSpec, LinearSpec, OpenModel};
use crate::model::TensorSource;

/// Tokens of a calibration sequence at most: attention spreads over as many keys, so longer ones say little more.
pub const SAMPLE_LENGTH: usize = 512;

/// What a head's score is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadMetric {
    /// Focus: 1 − H / ln n, where H is the entropy in nats of the attention over the n keys a position sees, averaged
    /// over all positions that see at least two. A sliding window limits the keys; a sink is
    /// no key: what it takes of the softmax is left out. A head that attends everywhere alike scores 0.
    Entropy,
    /// Mean over positions of the Euclidean norm of what the head hands to the output projection.
    ActivationMagnitude,
    /// Euclidean norm of the head's weights: its rows of q, its columns of o, and its share of its group's k and v.
    Magnitude,
    /// A number drawn from the seed: a baseline to compare with.
    Random,
}

impl HeadMetric {
    /// The words of the recipe key `strategy`.
    pub fn as_str(self) -> &'static str {
        match self {
            HeadMetric::Entropy => "entropy",
            HeadMetric::ActivationMagnitude => "activation-magnitude",
            HeadMetric::Magnitude => "magnitude",
            HeadMetric::Random => "random",
        }
    }

    /// The metric a recipe names; `None` for one that is not computed.
    pub fn parse(name: &str) -> Option<Self> {
        let all = [Self::Entropy, Self::ActivationMagnitude, Self::Magnitude, Self::Random];
        all.into_iter().find(|metric| metric.as_str() == name)
    }

    /// True when the model has to be watched at work on a corpus.
    pub fn needs_corpus(self) -> bool {
        matches!(self, HeadMetric::Entropy | HeadMetric::ActivationMagnitude)
    }
}

/// The score of every head of every prunable layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeadScores {
    pub metric: HeadMetric,
    /// Layer → score of each query head.
    pub layers: BTreeMap<usize, Vec<f64>>,
    /// Calibration tokens looked at; 0 for a metric that needs none.
    pub tokens: u64,
}

impl HeadScores {
    /// The layer has a finite score for each of its heads.
    pub(super) fn check(&self, layer: usize, heads: usize) -> Result<(), CompressError> {
        let refuse = |reason: String| {
            let hint = "score the heads of this model; a score that is not finite means a damaged weight";
            CompressError::Refused { what: "head prune", reason, hint }
        };
        let Some(scores) = self.layers.get(&layer) else {
            return Err(refuse(format!("layer {layer} has no head scores")));
        };
        if scores.len() != heads {
            return Err(refuse(format!("layer {layer} has {heads} heads and {} scores", scores.len())));
        }
        match scores.iter().position(|score| !score.is_finite()) {
            Some(head) => Err(refuse(format!("layer {layer}, head {head}: the score is {}", scores[head]))),
            None => Ok(()),
        }
    }
}

/// Scores every head of `model`. `sequences` are the calibration tokens of a metric that
/// [needs them](HeadMetric::needs_corpus); `seed` is for [`HeadMetric::Random`].
///
/// # Errors
/// A weight that cannot be read; a pass that fails; no position with two keys to attend to.
pub fn score_heads(
    model: &OpenModel,
    metric: HeadMetric,
    sequences: &[Vec<u32>],
    seed: u64,
    options: &PassOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<HeadScores, CompressError> {
    let layers = prunable(&model.spec);
    let mut tokens = 0;
    let layers = match metric {
        HeadMetric::Magnitude => {
            let norms = |&(index, attention): &(usize, &AttentionSpec)| {
                Ok::<_, CompressError>((index, weight_norms(&*model.tensors, attention)?))
            };
            layers.iter().map(norms).collect::<Result<_, _>>()?
        }
        HeadMetric::Random => {
            let mut state = seed;
            layers.iter().map(|(index, a)| (*index, (0..a.heads).map(|_| uniform(&mut state)).collect())).collect()
        }
        HeadMetric::Entropy | HeadMetric::ActivationMagnitude => {
            let mut watch = Watch { metric, layers: layers.iter().map(|(i, _)| (*i, Sums::default())).collect() };
            tokens = sequences.iter().map(|s| s.len() as u64).sum();
            run_pass(model, sequences, Scoring::None, options, &mut [&mut watch], progress)?;
            watch.means()?
        }
    };
    Ok(HeadScores { metric, layers, tokens })
}

/// SplitMix64 (Steele, Lea, Flood 2014): the next number, as a share of 1.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn weight_norms(source: &dyn TensorSource, attention: &AttentionSpec) -> Result<Vec<f64>, CompressError> {
    let (heads, kv_heads) = (attention.heads, attention.kv_heads);
    let squares = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let mut values = Vec::new();
    let mut of_rows = |linear: &LinearSpec, count: usize| -> Result<Vec<f64>, CompressError> {
        source.read_f32(&linear.weight, &mut values)?;
        source.release(&linear.weight);
        Ok(values.chunks(values.len() / count).map(squares).collect())
    };
    let (q, k, v) = (of_rows(&attention.q, heads)?, of_rows(&attention.k, kv_heads)?, of_rows(&attention.v, kv_heads)?);
    let mut o = vec![0.0; heads];
    source.read_f32(&attention.o.weight, &mut values)?;
    source.release(&attention.o.weight);
    for row in values.chunks_exact(attention.o.cols) {
        for (sum, part) in o.iter_mut().zip(row.chunks_exact(attention.o.cols / heads)) {
            *sum += squares(part);
        }
    }
    let group = heads / kv_heads;
    let total = |h: usize| q[h] + o[h] + (k[h / group] + v[h / group]) / group as f64;
    Ok((0..heads).map(|h| total(h).sqrt()).collect())
}

/// What was added up over the positions of one layer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Sums {
    by_head: Vec<f64>,
    positions: u64,
}

/// The observer of a scoring pass.
struct Watch {
    metric: HeadMetric,
    layers: BTreeMap<usize, Sums>,
}

impl Observer for Watch {
    fn wants_heads(&self, layer: usize) -> bool {
        self.layers.contains_key(&layer)
    }

    fn save(&mut self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.layers).ok()
    }

    fn restore(&mut self, saved: &[u8]) -> bool {
        serde_json::from_slice(saved).map(|saved| self.layers = saved).is_ok()
    }

    fn heads(&mut self, views: &HeadViews<'_>) {
        let Some(sums) = self.layers.get_mut(&views.layer) else { return };
        let (added, positions) = match self.metric {
            HeadMetric::Entropy => focus(views.q, views.k, views.spec, views.batch),
            _ => (norms(views.mixed, views.spec.heads, views.spec.o.cols), views.batch.rows() as u64),
        };
        sums.by_head.resize(added.len(), 0.0);
        sums.by_head.iter_mut().zip(&added).for_each(|(sum, more)| *sum += more);
        sums.positions += positions;
    }
}

impl Watch {
    fn means(self) -> Result<BTreeMap<usize, Vec<f64>>, CompressError> {
        let mean = |(layer, sums): (usize, Sums)| {
            if sums.positions == 0 {
                let reason = "the calibration corpus has no position that sees two tokens".to_owned();
                return Err(CompressError::Coverage { layer, reason });
            }
            Ok((layer, sums.by_head.iter().map(|sum| sum / sums.positions as f64).collect()))
        };
        self.layers.into_iter().map(mean).collect()
    }
}

/// Sum over rows of the norm of each head's part of `mixed`.
fn norms(mixed: &[f32], heads: usize, columns: usize) -> Vec<f64> {
    let width = columns / heads;
    let norm = |part: &[f32]| part.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let of_head = |head: usize| mixed.chunks_exact(columns).map(|row| norm(&row[head * width..][..width])).sum();
    (0..heads).into_par_iter().map(of_head).collect()
}

/// Sum over positions of 1 − H / ln n per head, and the number of positions (those that see n ≥ 2 keys).
fn focus(q: &[f32], k: &[f32], spec: &AttentionSpec, batch: &Batch) -> (Vec<f64>, u64) {
    let (heads, width) = (spec.heads, spec.head_dim);
    let (wide, narrow) = (heads * width, spec.kv_heads * width);
    let window = spec.window.unwrap_or(usize::MAX);
    let of_head = |head: usize| {
        let shared = head / (heads / spec.kv_heads) * width;
        let mut scores = Vec::new();
        let mut sum = 0.0;
        for span in &batch.spans {
            for t in span.start + 1..span.end {
                let first = span.start.max((t + 1).saturating_sub(window));
                let query = &q[t * wide + head * width..][..width];
                scores.clear();
                let score = |s: usize| dot(query, &k[s * narrow + shared..][..width]) * spec.scale as f32;
                scores.extend((first..=t).map(score));
                if scores.len() > 1 {
                    sum += 1.0 - entropy(&scores) / (scores.len() as f64).ln();
                }
            }
        }
        sum
    };
    let positions = batch.spans.iter().map(|span| span.len().saturating_sub(1) as u64).sum();
    ((0..heads).into_par_iter().map(of_head).collect(), positions)
}

/// Entropy in nats of softmax(scores): ln Z − Σ p·(s − max), Z = Σ exp(s − max).
fn entropy(scores: &[f32]) -> f64 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut total, mut weighted) = (0f64, 0f64);
    for &score in scores {
        let below = score - max;
        let p = f64::from(below.exp());
        total += p;
        weighted += p * f64::from(below);
    }
    total.ln() - weighted / total
}

/// Eight partial sums, so that the compiler can use wide registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a_tail, b_tail) = (a.chunks_exact(8).remainder(), b.chunks_exact(8).remainder());
    for (x, y) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + a_tail.iter().zip(b_tail).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_the_softmax() {
        assert!((entropy(&[0.5; 7]) - 7f64.ln()).abs() < 1e-6);
        assert!(entropy(&[90.0, 0.0, 0.0]) < 1e-6);
        // p = (1/4, 3/4).
        let wanted = -(0.25 * 0.25f64.ln() + 0.75 * 0.75f64.ln());
        assert!((entropy(&[0.0, 3f32.ln()]) - wanted).abs() < 1e-6);
    }

    #[test]
    fn a_sharp_head_scores_above_a_flat_one() {
        let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
        let model = crate::family::open(&fixture).unwrap();
        // Two heads over one key head: the first asks for nothing, the second for the first key only.
        let shape =
            AttentionSpec { heads: 2, kv_heads: 1, head_dim: 2, scale: 1.0, ..prunable(&model.spec)[0].1.clone() };
        let batch = Batch { sequences: 0..2, spans: vec![0..3, 3..4] };
        let q = [[0.0, 0.0, 40.0, 0.0]; 4].concat();
        let k = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]].concat();
        let (sums, positions) = focus(&q, &k, &shape, &batch);
        assert_eq!(positions, 2, "a position that sees itself only says nothing");
        assert!(sums[0].abs() < 1e-6, "{sums:?}");
        assert!((sums[1] - 2.0).abs() < 1e-6, "{sums:?}");
        // A window of two: the third position no longer sees the first key, its two keys look alike.
        let narrow = AttentionSpec { window: Some(2), ..shape };
        assert!((focus(&q, &k, &narrow, &batch).0[1] - 1.0).abs() < 1e-6);
        let mixed = [[3.0, 4.0, 0.0, 1.0]; 2].concat();
        assert_eq!(norms(&mixed, 2, 4), [10.0, 2.0]);
    }

    #[test]
    fn a_seed_draws_the_same_numbers_again() {
        let draw = |seed: u64| {
            let mut state = seed;
            [(); 3].map(|()| uniform(&mut state))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        // The first output of SplitMix64 for seed 0 is e220a8397b1dcdaf.
        assert_eq!(draw(0)[0], (0xe220_a839_7b1d_cdaf_u64 >> 11) as f64 / (1u64 << 53) as f64);
    }
}
