//! Tuning of a block: how far its output is from the wanted one, and which way every weight should go.
//!
//! The block runs as candle operations with gradients, whatever the pass around it runs on. Enters: a block as changed so
//! far, hidden states that come through the blocks before it as changed, and what the model as it was made of its own.
//! Leaves: errors and gradients; who moves the weights is the caller's matter.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use candle_core::{Device, Tensor};

use super::EngineError;
use super::backend::Backend;
use super::batch::Batch;
use super::block::{Block, Setting};
use super::device::{DeviceRope, OnDevice};
use super::hidden::HiddenStore;
use super::pass::rope_table;
use super::variant::Run;
use crate::family::{BlockSpec, ModelSpec};
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// Tokens of a step, about: a step takes whole sequences.
pub const STEP_TOKENS: usize = 2048;
/// Share of a sequence's length that its first token counts for: many later tokens attend to it.
const FIRST_SHARE: f32 = 1.0 / 64.0;
/// One of so many steps' worth of sequences is kept for judging.
const HELD_OUT: usize = 8;

/// A block that can be told new weights and asked how good they are.
pub trait Tune {
    /// Steps that see every sequence once; those for judging are not among them.
    fn steps(&self) -> usize;

    /// New values of a weight, `[rows, cols]`.
    ///
    /// # Errors
    /// The device fails.
    fn set(&mut self, weight: &str, values: &[f32]) -> Result<()>;

    /// The error on the sequences of a step, and for every weight the direction in which it grows (a weight that none of
    /// the tokens met has none).
    ///
    /// The error is the mean over tokens of ‖y − y₀‖² / ‖y₀‖², y being the block's output and y₀ that of the model as it
    /// was; every layer behind reads a normed y, so that is what matters of it. First tokens count more.
    ///
    /// # Errors
    /// The device fails.
    fn gradients(&mut self, step: usize) -> Result<(f64, HashMap<String, Vec<f32>>)>;

    /// The error on the sequences kept for judging.
    ///
    /// # Errors
    /// The device fails.
    fn judge(&mut self) -> Result<f64>;
}

/// A sequence by the run it is in and its number there.
type Place = (usize, usize);

/// What is tuned and on what.
pub(super) struct Tuning<'a, B: Backend> {
    backend: &'a B,
    spec: &'a ModelSpec,
    block_spec: &'a BlockSpec,
    runs: &'a [Run],
    /// What comes in.
    hidden: &'a HiddenStore<B>,
    /// What the model as it was puts out.
    wanted: &'a HiddenStore<B>,
    weights: Vec<String>,
    device: OnDevice,
    block: Block<OnDevice>,
    ropes: HashMap<usize, DeviceRope>,
    steps: Vec<Vec<Place>>,
    judged: Vec<Vec<Place>>,
}

impl<'a, B: Backend> Tuning<'a, B> {
    pub fn new(
        (backend, device): (&'a B, &Device),
        spec: &'a ModelSpec,
        (block_spec, source, weights): (&'a BlockSpec, &dyn TensorSource, Vec<String>),
        runs: &'a [Run],
        (hidden, wanted): (&'a HiddenStore<B>, &'a HiddenStore<B>),
    ) -> Result<Self> {
        let device = OnDevice::learning(device, weights.iter().cloned());
        let block = Block::load(&device, source, block_spec)?;
        let mut longest: HashMap<usize, usize> = HashMap::new();
        for length in runs.iter().flat_map(|run| &run.batch.spans).map(|span| span.len()) {
            let most = longest.entry(spec.rope.length_class(length)).or_default();
            *most = length.max(*most);
        }
        let rope = |(class, length)| Ok((class, device.rope(rope_table(&spec.rope.at_length(length), length))?));
        let ropes = longest.into_iter().map(rope).collect::<Result<_>>()?;
        let (steps, judged) = deal(spec, runs);
        Ok(Tuning { backend, spec, block_spec, runs, hidden, wanted, weights, device, block, ropes, steps, judged })
    }

    /// Inputs and wanted outputs of some sequences, end to end.
    fn rows(&self, places: &[Place]) -> Result<(Batch, Vec<f32>, Vec<f32>)> {
        let (mut spans, mut x, mut y) = (Vec::new(), Vec::new(), Vec::new());
        let width = self.spec.hidden;
        for (run, sequence) in places {
            let span = self.runs[*run].batch.spans[*sequence].clone();
            let rows: Vec<u32> = (span.start as u32..span.end as u32).collect();
            for (store, out) in [(self.hidden, &mut x), (self.wanted, &mut y)] {
                let all = store.copy(self.backend, *run)?;
                out.extend(self.backend.download(&self.backend.take_rows(&all, &rows)?)?);
            }
            let start = x.len() / width - span.len();
            spans.push(start..x.len() / width);
        }
        Ok((Batch { sequences: 0..spans.len(), spans }, x, y))
    }

    /// The error of some sequences as a tensor.
    fn error(&self, places: &[Place]) -> Result<Tensor> {
        let width = self.spec.hidden;
        let (batch, x, y) = self.rows(places)?;
        let mut weights: Vec<f32> = y.chunks(width).map(|row| row.iter().map(|v| v * v).sum::<f32>()).collect();
        weights.iter_mut().for_each(|energy| *energy = if *energy > 0.0 { 1.0 / *energy } else { 0.0 });
        for span in batch.spans.iter().filter(|span| !span.is_empty()) {
            weights[span.start] *= 1.0 + FIRST_SHARE * span.len() as f32;
        }
        let total = batch.rows() as f64;
        let (x, y) = (self.device.upload(&x, width)?, self.device.upload(&y, width)?);
        let weights = self.device.upload(&weights, 1)?;
        let (eps, residual) = (self.spec.norm_eps, self.spec.factors.residual);
        let rope = &self.ropes[&self.spec.rope.length_class(batch.longest())];
        let cx = Setting {
            backend: &self.device,
            spec: self.block_spec,
            eps,
            residual,
            rope,
            batch: &batch,
            change: None,
            expert_work: &AtomicU64::new(0),
        };
        let out = self.block.forward(&cx, x, &mut [])?;
        self.device.run(|| (out.sub(&y)?.sqr()?.sum_keepdim(1)? * weights)?.sum_all()? / total)
    }

    fn scalar(&self, error: &Tensor) -> Result<f64> {
        let value = self.device.run(|| error.to_scalar::<f32>())?;
        Ok(f64::from(value))
    }
}

impl<B: Backend> Tune for Tuning<'_, B> {
    fn steps(&self) -> usize {
        self.steps.len()
    }

    fn set(&mut self, weight: &str, values: &[f32]) -> Result<()> {
        let learned = self.device.learned();
        self.device.run(|| learned.map_or(Ok(()), |learned| learned.set(weight, values.to_vec())))
    }

    fn gradients(&mut self, step: usize) -> Result<(f64, HashMap<String, Vec<f32>>)> {
        let error = self.error(&self.steps[step % self.steps.len()])?;
        let value = self.scalar(&error)?;

        let found = self.device.run(|| {
            let gradients = error.backward()?;
            let mut found = HashMap::new();
            for (learned, name) in self.device.learned().iter().flat_map(|l| self.weights.iter().map(move |n| (l, n))) {
                if let Some(gradient) = learned.gradient(name, &gradients)? {
                    found.insert(name.clone(), gradient);
                }
            }
            Ok(found)
        })?;
        Ok((value, found))
    }

    fn judge(&mut self) -> Result<f64> {
        let mut sum = 0.0;
        for places in &self.judged {
            sum += self.scalar(&self.error(places)?)?;
        }
        Ok(sum / self.judged.len().max(1) as f64)
    }
}

/// Deals the sequences out to steps and to what judges; each holds sequences of one rope class.
fn deal(spec: &ModelSpec, runs: &[Run]) -> (Vec<Vec<Place>>, Vec<Vec<Place>>) {
    let mut hands: Vec<(usize, usize, Vec<Place>)> = Vec::new();
    for (run, Run { batch, .. }) in runs.iter().enumerate() {
        for (sequence, span) in batch.spans.iter().enumerate().filter(|(_, span)| !span.is_empty()) {
            let class = spec.rope.length_class(span.len());
            match hands.iter_mut().rfind(|hand| hand.0 == class && hand.1 + span.len() <= STEP_TOKENS) {
                Some(hand) => {
                    hand.1 += span.len();
                    hand.2.push((run, sequence));
                }
                None => hands.push((class, span.len(), vec![(run, sequence)])),
            }
        }
    }
    let count = hands.len();
    let places = hands.into_iter().map(|hand| hand.2).enumerate();
    // With one hand alone there is nothing to judge by but that.
    let is_judge = |at: usize| at % HELD_OUT == HELD_OUT / 2 || (count <= HELD_OUT / 2 && at + 1 == count);
    let (judged, steps): (Vec<_>, Vec<_>) = places.partition(|(at, _)| is_judge(*at));
    let (judged, mut steps): (Vec<_>, Vec<_>) =
        (judged.into_iter().map(|(_, p)| p).collect(), steps.into_iter().map(|(_, p)| p).collect::<Vec<_>>());
    if steps.is_empty() {
        steps.clone_from(&judged);
    }
    (steps, judged)
}
