//! From the last block's output to log-likelihoods: final norm, then the vocabulary in chunks, joined by an online
//! log-sum-exp. Only the rows of scored positions are kept, and no full row of logits ever exists.

use std::ops::Range;

use super::backend::{Backend, ChunkScore};
use super::batch::Batch;
use super::block::Linear;
use super::hidden::HiddenStore;
use super::norm::Norm;
use super::observer::{LogitChunk, Observer};
use super::prefetch::one_ahead;
use super::variant::Run;
use super::{EngineError, Scoring};
use crate::family::ModelSpec;
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// The scored positions of one run of a micro-batch: rows, and the token each should predict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// Of the pass; see [`LogitChunk::variant`].
    pub variant: usize,
    /// Scored positions of the same variant before these.
    pub first_position: usize,
    pub rows: Vec<u32>,
    pub targets: Vec<u32>,
}

/// Which rows of a batch are scored.
fn scored(batch: &Batch, sequences: &[Vec<u32>], scoring: Scoring) -> Scored {
    let mut out = Scored::default();
    for (span, tokens) in batch.spans.iter().zip(&sequences[batch.sequences.clone()]) {
        for position in scoring.positions(tokens.len()) {
            out.rows.push((span.start + position) as u32);
            out.targets.push(tokens[position + 1]);
        }
    }
    out
}

/// Which rows of every run are scored.
pub fn scored_runs(runs: &[Run], sequences: &[Vec<u32>], scoring: Scoring) -> Vec<Scored> {
    let mut seen = vec![0; runs.iter().map(|run| run.variant + 1).max().unwrap_or(0)];
    let mut of = |run: &Run| {
        let first_position = seen[run.variant];
        let scored = Scored { variant: run.variant, first_position, ..scored(&run.batch, sequences, scoring) };
        seen[run.variant] += scored.rows.len();
        scored
    };
    runs.iter().map(&mut of).collect()
}

/// A log-sum-exp over the chunks seen so far, and the target's logit.
#[derive(Clone, Copy)]
struct Running {
    max: f64,
    sum: f64,
    target: f64,
}

impl Running {
    const START: Running = Running { max: f64::NEG_INFINITY, sum: 0.0, target: f64::NAN };

    fn join(&mut self, score: &ChunkScore) {
        let max = self.max.max(f64::from(score.max));
        self.sum = self.sum * (self.max - max).exp() + f64::from(score.exp_sum) * (f64::from(score.max) - max).exp();
        self.max = max;
        if let Some(target) = score.target {
            self.target = f64::from(target);
        }
    }

    /// Negative log-likelihood of the target in nats.
    fn nll(&self) -> f64 {
        self.max + self.sum.ln() - self.target
    }
}

/// The output head of one model.
pub struct Head<'a, B: Backend> {
    pub backend: &'a B,
    pub spec: &'a ModelSpec,
    pub source: &'a dyn TensorSource,
}

/// What a model keeps of its sequences for the head, by run.
pub struct Kept<B: Backend> {
    /// Hidden states of the scored positions, normed.
    hidden: HiddenStore<B>,
    scored: Vec<Scored>,
}

/// The negative log-likelihoods in nats of every scored position, by variant, from heads of one vocabulary.
///
/// The vocabulary is taken in chunks of `vocab_chunk` tokens; for each chunk, run by run, observers see the rectangles of
/// all heads, one after the other. `progress` is told the share done.
///
/// # Errors
/// A head cannot be read; a logit is not finite.
pub fn score<B: Backend>(
    heads: &[Head<'_, B>],
    kept: &mut [Kept<B>],
    vocab_chunk: usize,
    observers: &mut [&mut dyn Observer],
    mut progress: impl FnMut(f64),
) -> Result<Vec<Vec<f64>>> {
    let start = |kept: &Kept<B>| -> Vec<Vec<Running>> {
        kept.scored.iter().map(|scored| vec![Running::START; scored.rows.len()]).collect()
    };
    let mut running: Vec<Vec<Vec<Running>>> = kept.iter().map(start).collect();
    let vocab = heads.iter().map(|head| head.spec.vocab).min().unwrap_or(0);
    let chunks: Vec<Range<usize>> =
        (0..vocab).step_by(vocab_chunk).map(|start| start..(start + vocab_chunk).min(vocab)).collect();
    let load = |chunk: usize| heads.iter().map(|head| head.load(&chunks[chunk])).collect::<Result<Vec<_>>>();
    one_ahead(chunks.len(), load, |chunk, layers| {
        let runs = kept.iter().map(|kept| kept.scored.len()).max().unwrap_or(0);
        for run in 0..runs {
            for (side, (head, layer)) in heads.iter().zip(&layers).enumerate() {
                let (kept, running) = (&mut kept[side], &mut running[side]);
                if kept.scored.get(run).is_some_and(|scored| !scored.rows.is_empty()) {
                    head.chunk(layer, &chunks[chunk], run, kept, &mut running[run], observers)?;
                }
            }
        }
        progress((chunk + 1) as f64 / chunks.len() as f64);
        Ok(())
    })?;
    let mut nll: Vec<Vec<f64>> = Vec::new();
    for ((head, kept), running) in heads.iter().zip(kept.iter()).zip(&running) {
        for (scored, running) in kept.scored.iter().zip(running) {
            let found: Vec<f64> = running.iter().map(Running::nll).collect();
            if !found.iter().all(|value| value.is_finite()) {
                return Err(head.not_finite());
            }
            nll.resize_with(nll.len().max(scored.variant + 1), Vec::new);
            nll[scored.variant].extend(found);
        }
    }
    Ok(nll)
}

impl<B: Backend> Head<'_, B> {
    /// Of the hidden states of every run, the scored rows, normed.
    ///
    /// # Errors
    /// The norm cannot be read; spilled hidden states cannot be read or written.
    pub fn keep(&self, mut hidden: HiddenStore<B>, scored: Vec<Scored>) -> Result<Kept<B>> {
        let norm = Norm::load(self.backend, self.source, &self.spec.final_norm)?;
        for (index, scored) in scored.iter().enumerate() {
            let rows = hidden.take(self.backend, index)?;
            let rows = self.backend.take_rows(&rows, &scored.rows)?;
            hidden.put(self.backend, index, norm.apply(self.backend, &rows, self.spec.norm_eps)?)?;
        }
        Ok(Kept { hidden, scored })
    }

    /// Some rows of the head: `[vocab.len(), hidden]`.
    fn load(&self, vocab: &Range<usize>) -> Result<Linear<B>> {
        let (name, columns) = (&self.spec.head, self.spec.hidden);
        let weight = self.backend.load_weight_rows(self.source, name, vocab.clone(), columns)?;
        self.source.release(name);
        let bias = self.spec.head_bias.as_ref().map(|name| {
            let mut values = Vec::new();
            self.source.read_rows_f32(name, vocab.clone(), &mut values)?;
            self.backend.make_vector(values)
        });
        Ok(Linear { weight, bias: bias.transpose()? })
    }

    /// One rectangle: a chunk of the vocabulary for the scored positions of one run.
    fn chunk(
        &self,
        layer: &Linear<B>,
        vocab: &Range<usize>,
        run: usize,
        kept: &mut Kept<B>,
        running: &mut [Running],
        observers: &mut [&mut dyn Observer],
    ) -> Result<()> {
        let Kept { hidden, scored } = kept;
        let scored = &scored[run];
        let rows = hidden.take(self.backend, run)?;
        let mut logits = layer.apply(self.backend, &rows)?;
        if self.spec.factors.logits != 1.0 {
            logits = self.backend.scale(logits, self.spec.factors.logits)?;
        }
        hidden.put(self.backend, run, rows)?;
        let inside = |&t: &u32| (t as usize).checked_sub(vocab.start).filter(|&t| t < vocab.len()).map(|t| t as u32);
        let targets: Vec<Option<u32>> = scored.targets.iter().map(inside).collect();
        for (state, score) in running.iter_mut().zip(self.backend.chunk_scores(&logits, &targets)?) {
            state.join(&score);
        }
        if observers.iter().any(|o| o.wants_logits()) {
            let values = self.backend.download(&logits)?;
            let (variant, first_position) = (scored.variant, scored.first_position);
            let chunk =
                LogitChunk { variant, first_position, rows: targets.len(), vocab: vocab.clone(), values: &values };
            for observer in observers.iter_mut().filter(|o| o.wants_logits()) {
                observer.logits(&chunk);
            }
        }
        Ok(())
    }

    fn not_finite(&self) -> EngineError {
        let ModelSpec { final_norm, head, head_bias, .. } = self.spec;
        let tensors = [&final_norm.weight, head].into_iter().chain(&final_norm.bias).chain(head_bias);
        super::pass::not_finite("the output head".to_owned(), self.source, tensors.map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_join_to_the_log_sum_exp_of_the_whole_row() {
        let row = [3.0f32, -1.0, 700.0, 699.0, 2.0];
        let mut state = Running::START;
        for (start, part) in [(0, &row[..2]), (2, &row[2..])] {
            let max = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp_sum = part.iter().map(|v| (v - max).exp()).sum();
            state.join(&ChunkScore { max, exp_sum, target: (start == 2).then_some(699.0) });
        }
        let exact = (1.0 + (-1f64).exp()).ln() + 1.0;
        assert!((state.nll() - exact).abs() < 1e-6, "{}", state.nll());
    }

    #[test]
    fn scored_positions_follow_each_sequence() {
        let sequences = vec![vec![1, 2, 3, 4], vec![5], vec![6, 7]];
        let batch = Batch { sequences: 0..3, spans: vec![0..4, 4..5, 5..7] };
        let all = scored(&batch, &sequences, Scoring::All);
        assert_eq!(all, Scored { rows: vec![0, 1, 2, 5], targets: vec![2, 3, 4, 7], ..Scored::default() });
        let half = scored(&batch, &sequences, Scoring::SecondHalf);
        assert_eq!(half, Scored { rows: vec![2], targets: vec![4], ..Scored::default() });
        assert_eq!(scored(&batch, &sequences, Scoring::None), Scored::default());
    }
}
