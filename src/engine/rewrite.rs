//! A pass that changes the model as it goes: each block first sees, on inputs that come through the blocks already
//! changed, what its linear layers are given; then its weights are replaced; then it runs with them, and makes the
//! inputs of the next block. Two blocks' weights, the sums of one round and the hidden states are in memory.

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::EngineError;
use super::backend::Backend;
use super::batch::batches;
use super::block::{Block, Setting};
use super::device::OnDevice;
use super::host::Host;
use super::memory::{self, MemoryPlan};
use super::overlay::Overlay;
use super::pass::{Pass, PassOptions, PassProgress, check_sequences};
use super::savepoint::Keeper;
use super::tune::{Tune, Tuning};
use super::variant::{Run, runs};
use super::watch::{InputSum, Watch};
use crate::family::{BlockSpec, OpenModel};
use crate::model::TensorSource;
use crate::units::Bytes;

/// Who changes the blocks.
pub trait Rewriter {
    type Error: From<EngineError>;

    /// The weights of a block whose inputs are to be summed, by rounds. All sequences run through the block once for
    /// each round, with the weights that earlier rounds have changed.
    fn rounds(&self, block: &BlockSpec) -> Vec<Vec<String>>;

    /// Whether the pass follows the model as it was, too, and tells how far what a layer is given has drifted from that
    /// ([`InputSum::drift`]). Then every round runs the block as it was; hidden states are kept twice.
    fn follows_original(&self) -> bool {
        false
    }

    /// Bytes its own work on a block takes beside the sums, at most.
    fn work(&self, _block: &BlockSpec) -> u64 {
        0
    }

    /// New values of tensors of the block, by name: weights, and others that change with them. `inputs` are the sums of
    /// this round; a weight that met no token has none.
    ///
    /// # Errors
    /// As the rewriter likes; the pass ends with it.
    fn rewrite(
        &mut self,
        block: &BlockSpec,
        round: &[String],
        inputs: Vec<InputSum>,
    ) -> Result<Vec<(String, Vec<f32>)>, Self::Error>;

    /// The embedding as changed, where it is: what goes into the first block then is made of these values.
    fn embedding(&mut self) -> Option<Vec<f32>> {
        None
    }

    /// Weights of the block that [`Rewriter::tune`] moves once all rounds are done; where there are none it is not asked.
    /// Only for a pass that follows the original, whose outputs are what a block is tuned to.
    fn tuned(&self, _block: &BlockSpec) -> Vec<String> {
        Vec::new()
    }

    /// New values of those weights.
    ///
    /// # Errors
    /// As [`Rewriter::rewrite`].
    fn tune(&mut self, _block: &BlockSpec, _tuning: &mut dyn Tune) -> Result<Vec<(String, Vec<f32>)>, Self::Error> {
        Ok(Vec::new())
    }

    /// What has been made of the blocks so far, put down between two of them so that an interrupted pass can go on. `None`:
    /// it cannot be put down, and the pass keeps no savepoints.
    ///
    /// # Errors
    /// What lies in files of its own cannot be made durable.
    fn save(&mut self) -> Result<Option<Vec<u8>>, Self::Error> {
        Ok(None)
    }

    /// Takes back what [`Rewriter::save`] gave; false, and unchanged, when it cannot be used.
    fn restore(&mut self, _saved: &[u8]) -> bool {
        false
    }
}

/// What a rewriting pass took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RewriteReport {
    pub tokens: usize,
    pub seconds: f64,
    /// Resident memory predicted before the pass, the process's own share at its start included.
    pub predicted_peak: Bytes,
    /// The most resident memory the process has held so far; `None` where the system does not say.
    pub peak: Option<Bytes>,
}

/// How a rewriting pass would lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RewritePlan {
    pub pass: MemoryPlan,
    /// The largest round's sums.
    pub sums: Bytes,
    /// The largest block's weights as values.
    pub values: Bytes,
    /// What the rewriter needs beside them.
    pub work: Bytes,
}

impl RewritePlan {
    /// What the pass takes beyond what the process holds already. While a rewriter works no activations are held.
    pub fn total(&self) -> Bytes {
        let passing = self.pass.total().saturating_sub(self.pass.hidden);
        self.pass.hidden + self.sums + self.values + passing.max(self.work)
    }
}

/// How [`run_rewriting`] would lie in memory with these rounds; nothing is read but headers.
pub fn predict_rewriting(
    model: &OpenModel,
    tokens: usize,
    longest: usize,
    options: &PassOptions,
    rounds: &dyn Fn(&BlockSpec) -> Vec<Vec<String>>,
    work: &dyn Fn(&BlockSpec) -> u64,
    follows_original: bool,
) -> RewritePlan {
    let streams = 1 + usize::from(follows_original);
    let pass = super::pass::predict(model, streams * tokens, longest, options);
    let sums = |block: &BlockSpec| {
        let inputs = block.inputs();
        let bytes = |round: &Vec<String>| {
            // Weights that read the same input share a sum.
            let shared = inputs.iter().filter(|input| round.iter().any(|name| input.feeds(name)));
            shared.map(|input| 4 * streams as u64 * (input.columns() as u64).pow(2)).sum::<u64>()
        };
        rounds(block).iter().map(bytes).max().unwrap_or(0)
    };
    let blocks = &model.spec.blocks;
    RewritePlan {
        pass,
        sums: Bytes(blocks.iter().map(sums).max().unwrap_or(0)),
        values: Bytes(blocks.iter().map(|block| 4 * block.parameters()).max().unwrap_or(0)),
        work: Bytes(blocks.iter().map(work).max().unwrap_or(0)),
    }
}

/// Runs every sequence through the model and changes each block on the way. The head is not computed.
///
/// # Errors
/// As [`run_pass`](super::run_pass), and those of the rewriter.
pub fn run_rewriting<R: Rewriter>(
    model: &OpenModel,
    sequences: &[Vec<u32>],
    options: &PassOptions,
    rewriter: &mut R,
    progress: &dyn Fn(PassProgress),
) -> Result<RewriteReport, R::Error> {
    let (spec, source) = (&model.spec, model.tensors.as_ref());
    check_sequences(sequences, spec.vocab)?;
    let _turn = options.take_turn(progress)?;
    if options.device.is_cpu() && !options.candle_on_cpu {
        let backend = &Host::of(options);
        run(&Pass { backend, spec, source, variants: &[], sequences, options, progress }, model, rewriter)
    } else {
        let backend = &OnDevice::new(&options.device);
        run(&Pass { backend, spec, source, variants: &[], sequences, options, progress }, model, rewriter)
    }
}

fn run<B: Backend, R: Rewriter>(
    pass: &Pass<'_, B>,
    model: &OpenModel,
    rewriter: &mut R,
) -> Result<RewriteReport, R::Error> {
    let start = Instant::now();
    let lengths: Vec<usize> = pass.sequences.iter().map(Vec::len).collect();
    let (tokens, longest) = (lengths.iter().sum(), lengths.iter().copied().max().unwrap_or(0));
    let follows = rewriter.follows_original();
    let (rounds, work) = (|block: &BlockSpec| rewriter.rounds(block), |block: &BlockSpec| rewriter.work(block));
    let plan = predict_rewriting(model, tokens, longest, pass.options, &rounds, &work, follows);
    let predicted_peak = memory::resident().unwrap_or_default() + plan.total();
    let class = |length| pass.spec.rope.length_class(length);
    let batch_rows = plan.pass.batch_rows / (1 + usize::from(follows));
    let runs = runs(batches(&lengths, batch_rows.max(1), class), 0);
    let ropes = pass.ropes(&runs)?;
    let mut overlay = Overlay::new(pass.source);
    let mut hidden = pass.store(&runs, &plan.pass)?;
    let mut original = if follows { Some(pass.store(&runs, &plan.pass)?) } else { None };
    let streams = 1 + usize::from(follows);
    let mut keeper = Keeper::new(pass.options.savepoints.as_ref(), pass.shape(&runs, streams), false);
    let mut stores: Vec<_> = std::iter::once(&mut hidden).chain(original.as_mut()).collect();
    let point = keeper.resume(pass.backend, &mut stores)?;
    let point = point.filter(|point| {
        let is_taken_back = rewriter.restore(&point.state);
        if is_taken_back {
            keeper.resumed(point)
        } else {
            keeper.refused()
        }
        is_taken_back
    });
    if point.is_none() {
        if let Some(values) = rewriter.embedding() {
            overlay.replace(&pass.spec.embed, values).map_err(EngineError::from)?;
        }
        Pass { source: &overlay, ..*pass }.embed(&runs, &mut hidden)?;
        overlay.clear();
        if let Some(original) = &mut original {
            pass.embed(&runs, original)?;
        }
    }
    let expert_work = AtomicU64::new(0);
    let of_blocks = pass.spec.blocks.len();
    for block in &pass.spec.blocks[point.map_or(0, |point| point.block)..] {
        let mut rounds = rewriter.rounds(block);
        if rounds.is_empty() && follows {
            // The model as it was goes through every block.
            rounds.push(Vec::new());
        }
        let steps = (rounds.len() + 1) as f64;
        let report = |step: usize, share: f64| {
            let fraction = (block.index as f64 + (step as f64 + share) / steps) / of_blocks as f64;
            let tokens_per_s = tokens as f64 * fraction / start.elapsed().as_secs_f64().max(1e-9);
            (pass.progress)(PassProgress { blocks: block.index, of_blocks, fraction, tokens_per_s });
        };
        for (step, round) in rounds.iter().enumerate() {
            let inputs = block.inputs();
            let attended = inputs.iter().filter(|input| input.is_attended).flat_map(|input| &input.layers);
            let watch = Watch::new(pass.backend, round, attended.map(|layer| layer.weight.clone()));
            let weights: &dyn TensorSource = if follows { pass.source } else { &overlay };
            let loaded = Block::load(&watch, weights, block)?;
            for (number, Run { batch, .. }) in runs.iter().enumerate() {
                let rope = &ropes[&class(batch.longest())];
                let (eps, residual) = (pass.spec.norm_eps, pass.spec.factors.residual);
                let (backend, spec, expert_work) = (&watch, block, &expert_work);
                watch.begin(batch);
                let mut x = hidden.copy(pass.backend, number)?;
                let mut paired = batch.clone();
                if let Some(original) = &original {
                    x = pass.backend.stack(x, &original.copy(pass.backend, number)?)?;
                    paired = batch.twice();
                    watch.pair(batch.rows());
                }
                let batch = &paired;
                let cx = Setting { backend, spec, eps, residual, rope, batch, change: None, expert_work };
                let out = loaded.forward(&cx, x, &mut [])?;
                if let Some(original) = original.as_mut().filter(|_| step + 1 == rounds.len()) {
                    let half = (batch.rows() / 2) as u32;
                    let as_it_was = pass.backend.take_rows(&out, &(half..2 * half).collect::<Vec<_>>())?;
                    original.put(pass.backend, number, as_it_was)?;
                }
                report(step, (number + 1) as f64 / runs.len() as f64);
            }
            drop(loaded);
            super::pool::drain();
            for (name, values) in rewriter.rewrite(block, round, watch.into_sums())? {
                overlay.replace(&name, values).map_err(EngineError::from)?;
            }
        }
        let tuned = rewriter.tuned(block);
        if let Some(original) = original.as_ref().filter(|_| !tuned.is_empty()) {
            let device = (pass.backend, &pass.options.device);
            let learning = (block, &overlay as &dyn TensorSource, tuned);
            let mut tuning = Tuning::new(device, pass.spec, learning, &runs, (&hidden, original))?;
            for (name, values) in rewriter.tune(block, &mut tuning)? {
                overlay.replace(&name, values).map_err(EngineError::from)?;
            }
        }
        let loaded = Block::load(pass.backend, &overlay, block)?;
        overlay.clear();
        for (number, Run { batch, .. }) in runs.iter().enumerate() {
            let rope = &ropes[&class(batch.longest())];
            let (eps, residual) = (pass.spec.norm_eps, pass.spec.factors.residual);
            let (backend, spec, expert_work) = (pass.backend, block, &expert_work);
            let cx = Setting { backend, spec, eps, residual, rope, batch, change: None, expert_work };
            let x = loaded.forward(&cx, hidden.take(backend, number)?, &mut [])?;
            if !backend.is_finite(&x)? {
                return Err(pass.not_finite(block).into());
            }
            hidden.put(backend, number, x)?;
            report(rounds.len(), (number + 1) as f64 / runs.len() as f64);
        }
        let next = block.index + 1;
        if keeper.is_due(next)
            && let Some(made) = rewriter.save()?
        {
            let stores: Vec<_> = std::iter::once(&hidden).chain(&original).collect();
            keeper.save(pass.backend, &stores, (next, 0, &made))?;
        }
    }
    super::pool::drain();
    let seconds = start.elapsed().as_secs_f64();
    Ok(RewriteReport { tokens, seconds, predicted_peak, peak: memory::peak_resident() })
}
