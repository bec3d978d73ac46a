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
#[derive(Debug, Default, PartialEq)]
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

/// What the head needs of the pass.
pub struct Head<'a, B: Backend> {
    pub backend: &'a B,
    pub spec: &'a ModelSpec,
    pub source: &'a dyn TensorSource,
    pub vocab_chunk: usize,
}

impl<B: Backend> Head<'_, B> {
    /// Keeps the scored rows of every batch, normed.
    fn keep_scored(&self, hidden: &mut HiddenStore<B>, scored: &[Scored]) -> Result<()> {
        let norm = Norm::load(self.backend, self.source, &self.spec.final_norm)?;
        for (index, scored) in scored.iter().enumerate() {
            let rows = hidden.take(self.backend, index)?;
            let rows = self.backend.take_rows(&rows, &scored.rows)?;
            hidden.put(self.backend, index, norm.apply(self.backend, &rows, self.spec.norm_eps)?)?;
        }
        Ok(())
    }

    /// The negative log-likelihoods in nats of the scored positions of every run. `progress` is told the share done.
    ///
    /// # Errors
    /// The head cannot be read; a logit is not finite.
    pub fn score(
        &self,
        hidden: &mut HiddenStore<B>,
        scored: &[Scored],
        observers: &mut [&mut dyn Observer],
        mut progress: impl FnMut(f64),
    ) -> Result<Vec<Vec<f64>>> {
        self.keep_scored(hidden, scored)?;
        let mut running: Vec<Vec<Running>> = scored.iter().map(|s| vec![Running::START; s.rows.len()]).collect();
        let chunks: Vec<Range<usize>> = (0..self.spec.vocab)
            .step_by(self.vocab_chunk)
            .map(|start| start..(start + self.vocab_chunk).min(self.spec.vocab))
            .collect();
        let load = |chunk: usize| {
            let rows = chunks[chunk].clone();
            let weight = self.backend.load_weight_rows(self.source, &self.spec.head, rows.clone(), self.spec.hidden)?;
            self.source.release(&self.spec.head);
            let bias = self.spec.head_bias.as_ref().map(|name| {
                let mut values = Vec::new();
                self.source.read_rows_f32(name, rows, &mut values)?;
                self.backend.make_vector(values)
            });
            Ok::<_, EngineError>(Linear { weight, bias: bias.transpose()? })
        };
        one_ahead(chunks.len(), load, |chunk, layer| {
            for (index, scored) in scored.iter().enumerate().filter(|(_, s)| !s.rows.is_empty()) {
                self.chunk(&layer, &chunks[chunk], index, scored, hidden, &mut running[index], observers)?;
            }
            progress((chunk + 1) as f64 / chunks.len() as f64);
            Ok(())
        })?;
        let nll: Vec<Vec<f64>> = running.iter().map(|part| part.iter().map(Running::nll).collect()).collect();
        if nll.iter().flatten().all(|v| v.is_finite()) { Ok(nll) } else { Err(self.not_finite()) }
    }

    #[expect(clippy::too_many_arguments, reason = "the body of a loop, split off for reading")]
    fn chunk(
        &self,
        layer: &Linear<B>,
        vocab: &Range<usize>,
        run: usize,
        scored: &Scored,
        hidden: &mut HiddenStore<B>,
        running: &mut [Running],
        observers: &mut [&mut dyn Observer],
    ) -> Result<()> {
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
