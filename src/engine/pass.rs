//! The layer-major pass: embedding, then one block at a time for all sequences, then the head. What is here is one
//! model's way through its blocks; `beside` puts whole passes together.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Device;

use super::EngineError;
use super::backend::{Backend, RopeTable};
use super::batch::Batch;
use super::beside::run_beside;
use super::block::{Block, Setting};
use super::device::OnDevice;
use super::hidden::HiddenStore;
use super::host::Host;
use super::matmul::{self, Kernel};
use super::memory::MemoryPlan;
use super::observer::Observer;
use super::prefetch::one_ahead;
use super::savepoint::{Keeper, Point, Savepoints, Shape};
use super::turn::Turn;
use super::variant::{Change, Run, Variant};
use crate::family::{BlockSpec, ModelSpec, OpenModel, RopeSpec};
use crate::model::TensorSource;
use crate::units::Bytes;

type Result<T> = std::result::Result<T, EngineError>;

/// How a pass runs.
#[derive(Clone, Debug)]
pub struct PassOptions {
    pub device: Device,
    /// Memory for weights, activations and hidden states. `None`: as much as weights and activations need, and hidden
    /// states in memory up to about 200 MB, the rest in a file.
    pub memory_budget: Option<Bytes>,
    /// Where hidden states go that do not fit; the system's temporary directory if `None`.
    pub spill_directory: Option<PathBuf>,
    /// How products are computed on the CPU: the fastest way this processor has, unless named.
    pub kernel: Option<Kernel>,
    /// Use candle's operations on the CPU too, instead of the CPU backend.
    pub candle_on_cpu: bool,
    /// Where the pass keeps what it needs to go on after an interruption; it keeps nothing if `None`. Passes over several
    /// models side by side keep nothing.
    pub savepoints: Option<Savepoints>,
    /// A lock that whoever passes over this device holds meanwhile; nobody waits for anybody if `None`.
    pub turn: Option<PathBuf>,
}

impl Default for PassOptions {
    fn default() -> Self {
        PassOptions {
            device: Device::Cpu,
            memory_budget: None,
            spill_directory: None,
            kernel: None,
            candle_on_cpu: false,
            savepoints: None,
            turn: None,
        }
    }
}

/// Which positions of a sequence are scored; a position is scored by the probability it gives the next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Every position that has a next token.
    All,
    /// Positions from the middle of the sequence on, as llama.cpp counts perplexity.
    SecondHalf,
    /// None: the head is not computed, observers see the blocks.
    None,
}

impl Scoring {
    /// The scored positions of a sequence of `length` tokens.
    pub fn positions(self, length: usize) -> std::ops::Range<usize> {
        let end = length.saturating_sub(1);
        match self {
            Scoring::All => 0..end,
            Scoring::SecondHalf => (length / 2).min(end)..end,
            Scoring::None => 0..0,
        }
    }
}

/// How far a pass is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PassProgress {
    /// Blocks finished, of all models.
    pub blocks: usize,
    pub of_blocks: usize,
    /// Share of the whole pass, 0 to 1.
    pub fraction: f64,
    /// Tokens per second, averaged over the pass as if it ended at this speed.
    pub tokens_per_s: f64,
}

/// What a pass found and what it took.
#[derive(Clone, Debug)]
pub struct PassReport {
    /// Negative log-likelihood in nats of each scored position, in order of sequences and positions.
    pub nll: Vec<f64>,
    /// The same of each variant, and of each other model.
    pub variant_nll: Vec<Vec<f64>>,
    /// Multiply-adds of routed experts, counted as they were done, all variants and models together.
    pub expert_multiplications: u64,
    /// Tokens that went through each model.
    pub tokens: usize,
    pub seconds: f64,
    /// Resident memory predicted before the pass, the process's own share at its start included.
    pub predicted_peak: Bytes,
    /// The most resident memory the process has held so far; `None` where the system does not say.
    pub peak: Option<Bytes>,
    pub plan: MemoryPlan,
}

impl PassReport {
    /// Mean negative log-likelihood in nats; NaN when nothing was scored.
    pub fn mean_nll(&self) -> f64 {
        self.nll.iter().sum::<f64>() / self.nll.len() as f64
    }

    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

/// Runs every sequence through the model, one block at a time.
///
/// # Errors
/// Ids outside the vocabulary, tensors that cannot be read, a value that is not finite (with the first place it
/// appeared), no room for spilled hidden states, a failing device.
pub fn run_pass(
    model: &OpenModel,
    sequences: &[Vec<u32>],
    scoring: Scoring,
    options: &PassOptions,
    observers: &mut [&mut dyn Observer],
    progress: &dyn Fn(PassProgress),
) -> Result<PassReport> {
    run_subject(&Subject::of(model), sequences, scoring, options, observers, progress)
}

/// What a pass runs.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub spec: &'a ModelSpec,
    /// The tensors that `spec` names.
    pub tensors: &'a dyn TensorSource,
    /// Run beside the model; a block is read once for all.
    pub variants: &'a [Variant],
}

impl<'a> Subject<'a> {
    /// A model, without variants.
    pub fn of(model: &'a OpenModel) -> Self {
        Subject { spec: &model.spec, tensors: model.tensors.as_ref(), variants: &[] }
    }
}

/// [`run_pass`] for a model whose tensors are read another way, or that runs beside variants of itself.
///
/// # Errors
/// As [`run_pass`].
pub fn run_subject(
    subject: &Subject<'_>,
    sequences: &[Vec<u32>],
    scoring: Scoring,
    options: &PassOptions,
    observers: &mut [&mut dyn Observer],
    progress: &dyn Fn(PassProgress),
) -> Result<PassReport> {
    run_beside(subject, &[], sequences, scoring, options, observers, progress)
}

/// How a pass of `tokens` tokens in sequences of at most `longest` would lie in memory; nothing is read but headers.
pub fn predict(model: &OpenModel, tokens: usize, longest: usize, options: &PassOptions) -> MemoryPlan {
    let (spec, source, budget) = (&model.spec, model.tensors.as_ref(), options.memory_budget);
    let on_device = !options.device.is_cpu();
    if on_device || options.candle_on_cpu {
        let backend = OnDevice::new(&options.device);
        MemoryPlan::new(&backend, spec, source, tokens, longest, on_device, budget)
    } else {
        MemoryPlan::new(&Host::of(options), spec, source, tokens, longest, on_device, budget)
    }
}

pub(super) fn check_sequences(sequences: &[Vec<u32>], vocab: usize) -> Result<()> {
    for (sequence, tokens) in sequences.iter().enumerate() {
        if tokens.is_empty() {
            return Err(EngineError::EmptySequence { sequence });
        }
        if let Some(position) = tokens.iter().position(|&t| t as usize >= vocab) {
            return Err(EngineError::TokenOutOfRange { token: tokens[position], sequence, position, vocab });
        }
    }
    Ok(())
}

impl PassOptions {
    /// Waits for the device.
    pub(super) fn take_turn(&self, waiting: &dyn Fn(PassProgress)) -> Result<Option<Turn>> {
        self.turn.as_deref().map(|path| Turn::take(path, waiting)).transpose()
    }
}

impl Host {
    pub(super) fn of(options: &PassOptions) -> Self {
        Host { kernel: options.kernel.unwrap_or_else(matmul::kernel) }
    }
}

pub(super) struct Pass<'a, B: Backend> {
    pub backend: &'a B,
    pub spec: &'a ModelSpec,
    pub source: &'a dyn TensorSource,
    pub variants: &'a [Variant],
    pub sequences: &'a [Vec<u32>],
    pub options: &'a PassOptions,
    pub progress: &'a dyn Fn(PassProgress),
}

impl<B: Backend> Pass<'_, B> {
    /// How this model's part of a pass would lie in memory; `kept` tokens' hidden states, of all models, are kept.
    pub fn plan(&self, kept: usize, longest: usize) -> MemoryPlan {
        let (on_device, budget) = (!self.options.device.is_cpu(), self.options.memory_budget);
        MemoryPlan::new(self.backend, self.spec, self.source, kept, longest, on_device, budget)
    }

    /// A place for the hidden states of all runs.
    pub fn store(&self, runs: &[Run], plan: &MemoryPlan) -> Result<HiddenStore<B>> {
        let temporary = std::env::temp_dir();
        let directory = self.options.spill_directory.as_deref().unwrap_or(&temporary);
        let rows: Vec<usize> = runs.iter().map(|run| run.batch.rows()).collect();
        HiddenStore::new(&rows, self.spec.hidden, plan.spill.then_some(directory))
    }

    /// What a savepoint of this pass is cut up like; `streams` sets of hidden states.
    pub fn shape(&self, runs: &[Run], streams: usize) -> Shape {
        let rows = runs.iter().map(|run| run.batch.rows()).collect();
        Shape { blocks: self.spec.blocks.len(), columns: self.spec.hidden, rows, streams }
    }

    /// Takes up what observers had gathered at a savepoint; `None` when there is none to go on from.
    pub fn take_up(
        &self,
        keeper: &mut Keeper<'_>,
        hidden: &mut HiddenStore<B>,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Option<Point>> {
        let Some(point) = keeper.resume(self.backend, &mut [hidden])? else { return Ok(None) };
        let is_taken_back = match observers {
            [] => true,
            [one] => one.restore(&point.state),
            _ => false,
        };
        if !is_taken_back {
            keeper.refused();
            return Ok(None);
        }
        keeper.resumed(&point);
        Ok(Some(point))
    }

    /// Fills the store with the embedding of every token.
    pub fn embed(&self, runs: &[Run], hidden: &mut HiddenStore<B>) -> Result<()> {
        let mut row = Vec::new();
        for (index, Run { batch, .. }) in runs.iter().enumerate() {
            let mut values = Vec::with_capacity(batch.rows() * self.spec.hidden);
            for &token in self.sequences[batch.sequences.clone()].iter().flatten() {
                let token = token as usize;
                self.source.read_rows_f32(&self.spec.embed, token..token + 1, &mut row)?;
                values.extend_from_slice(&row);
            }
            if self.spec.factors.embedding != 1.0 {
                super::vector::scale(&mut values, self.spec.factors.embedding as f32);
            }
            self.source.release(&self.spec.embed);
            hidden.put(self.backend, index, self.backend.upload(&values, self.spec.hidden)?)?;
        }
        Ok(())
    }

    /// Every run through every block from `first` on. `done` is told after each run of a block, with the block and the
    /// share of its runs. Savepoints are kept where all observers can be put down.
    pub fn blocks(
        &self,
        (runs, first): (&[Run], usize),
        hidden: &mut HiddenStore<B>,
        observers: &mut [&mut dyn Observer],
        expert_work: &AtomicU64,
        keeper: &mut Keeper<'_>,
        done: impl Fn(usize, f64),
    ) -> Result<()> {
        let ropes = self.ropes(runs)?;
        let count = self.spec.blocks.len();
        let load = |number: usize| Block::load(self.backend, self.source, &self.spec.blocks[first + number]);
        one_ahead(count - first, load, |number, block| {
            let index = first + number;
            let spec = &self.spec.blocks[index];
            let changes = Change::in_block(self.backend, self.variants, spec)?;
            for (number, Run { batch, variant }) in runs.iter().enumerate() {
                let x = hidden.take(self.backend, number)?;
                let observers: &mut [&mut dyn Observer] = if *variant == 0 { observers } else { &mut [] };
                self.show_input(index, batch, &x, observers)?;
                let (backend, eps, change) = (self.backend, self.spec.norm_eps, changes[*variant].as_ref());
                let residual = self.spec.factors.residual;
                let rope = &ropes[&self.spec.rope.length_class(batch.longest())];
                let cx = Setting { backend, spec, eps, residual, rope, batch, change, expert_work };
                let x = block.forward(&cx, x, observers)?;
                if !self.backend.is_finite(&x)? {
                    return Err(self.not_finite(spec));
                }
                hidden.put(self.backend, number, x)?;
                done(index, (number + 1) as f64 / runs.len() as f64);
            }
            let gathered = match observers {
                [] => Some(Vec::new()),
                [one] if keeper.is_due(index + 1) => one.save(),
                _ => None,
            };
            match gathered.filter(|_| keeper.is_due(index + 1)) {
                Some(gathered) => {
                    keeper.save(self.backend, &[hidden], (index + 1, expert_work.load(Ordering::Relaxed), &gathered))
                }
                None => Ok(()),
            }
        })
    }

    /// The rotary table of every class of sequence lengths.
    pub fn ropes(&self, runs: &[Run]) -> Result<HashMap<usize, B::Rope>> {
        let rope = &self.spec.rope;
        let mut longest: HashMap<usize, usize> = HashMap::new();
        for length in runs.iter().map(|run| run.batch.longest()) {
            let most = longest.entry(rope.length_class(length)).or_default();
            *most = length.max(*most);
        }
        let table = |(class, length)| Ok((class, self.backend.rope(rope_table(&rope.at_length(length), length))?));
        longest.into_iter().map(table).collect()
    }

    fn show_input(&self, layer: usize, batch: &Batch, x: &B::Rows, observers: &mut [&mut dyn Observer]) -> Result<()> {
        if observers.iter().any(|o| o.wants_block_inputs()) {
            let values = self.backend.download(x)?;
            for observer in observers.iter_mut().filter(|o| o.wants_block_inputs()) {
                observer.block_input(layer, batch, &values);
            }
        }
        Ok(())
    }

    /// The embedding is read only at the ids in use, so it is looked at here, when the first block finds a bad value.
    pub fn not_finite(&self, block: &BlockSpec) -> EngineError {
        let tensors = block.tensors();
        let embed = (block.index == 0).then_some(self.spec.embed.as_str());
        let names = embed.into_iter().chain(tensors.iter().map(|t| t.name.as_str()));
        not_finite(format!("block {}", block.index), self.source, names)
    }
}

/// The error for a value that is not finite at `place`, naming the first of its tensors that holds one itself.
pub(super) fn not_finite<'n>(
    place: String,
    source: &dyn TensorSource,
    names: impl Iterator<Item = &'n str>,
) -> EngineError {
    let mut values = Vec::new();
    let mut bad = |name: &&str| source.read_f32(name, &mut values).is_err() || !super::vector::is_finite(&values);
    let tensor = names.into_iter().find(|name| bad(name));
    let tensor = tensor.map_or("none (the arithmetic overflows)".to_owned(), str::to_owned);
    EngineError::NotFinite { place, tensor }
}

/// Cosines and sines of every position up to `positions`, the attention factor included.
pub(super) fn rope_table(rope: &RopeSpec, positions: usize) -> RopeTable {
    let (frequencies, factor) = (rope.inverse_frequencies(), rope.attention_factor());
    let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
    let (cos, sin) = angles.map(|angle| ((angle.cos() * factor) as f32, (angle.sin() * factor) as f32)).unzip();
    RopeTable { half: rope.dims / 2, pairing: rope.pairing, cos, sin }
}
