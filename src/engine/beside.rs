//! A whole pass: one model, or several side by side, over the same sequences.
//!
//! The models go through their blocks one after the other, so that no more than two blocks of weights are in memory;
//! of each, the last hidden states of the scored positions are kept. Then the heads are computed together, one rectangle
//! of the logit matrix at a time for all models, so that they can be compared without any of their logits being stored.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::EngineError;
use super::backend::Backend;
use super::batch::batches;
use super::device::OnDevice;
use super::head::{self, Head, Scored};
use super::host::Host;
use super::memory::{self, MemoryPlan};
use super::observer::Observer;
use super::pass::{Pass, PassOptions, PassProgress, PassReport, Scoring, Subject, check_sequences};
use super::savepoint::Keeper;
use super::variant::{Run, runs};
use crate::family::BlockSpec;

type Result<T> = std::result::Result<T, EngineError>;

/// [`run_subject`](super::run_subject) for several models: `others` run beside `first`, on the same micro-batches. Their
/// log-likelihoods and rectangles are numbered after those of `first` and its variants.
///
/// # Errors
/// As [`run_pass`](super::run_pass), and vocabularies of different sizes.
pub fn run_beside(
    first: &Subject<'_>,
    others: &[Subject<'_>],
    sequences: &[Vec<u32>],
    scoring: Scoring,
    options: &PassOptions,
    observers: &mut [&mut dyn Observer],
    progress: &dyn Fn(PassProgress),
) -> Result<PassReport> {
    let vocab = first.spec.vocab;
    if let Some(other) = others.iter().map(|other| other.spec.vocab).find(|&other| other != vocab) {
        return Err(EngineError::Vocabularies { first: vocab, other });
    }
    check_sequences(sequences, vocab)?;
    let _turn = options.take_turn(progress)?;
    let shared = Shared { sequences, scoring, options, progress };
    if options.device.is_cpu() && !options.candle_on_cpu {
        shared.run(&Host::of(options), first, others, observers)
    } else {
        shared.run(&OnDevice::new(&options.device), first, others, observers)
    }
}

/// What all models of a pass have in common.
struct Shared<'a> {
    sequences: &'a [Vec<u32>],
    scoring: Scoring,
    options: &'a PassOptions,
    progress: &'a dyn Fn(PassProgress),
}

/// One model of a pass.
struct Lane<'a, B: Backend> {
    pass: Pass<'a, B>,
    runs: Vec<Run>,
    scored: Vec<Scored>,
}

impl<B: Backend> Lane<'_, B> {
    /// Multiplications of the blocks.
    fn block_work(&self) -> f64 {
        let rows: usize = self.runs.iter().map(|run| run.batch.rows()).sum();
        let block: u64 = self.pass.spec.blocks.iter().map(BlockSpec::active_parameters).sum();
        rows as f64 * block as f64
    }

    /// Multiplications of the head.
    fn head_work(&self) -> f64 {
        let scored: usize = self.scored.iter().map(|s| s.rows.len()).sum();
        scored as f64 * (self.pass.spec.vocab * self.pass.spec.hidden) as f64
    }
}

impl<'a> Shared<'a> {
    fn run<B: Backend>(
        &self,
        backend: &B,
        first: &Subject<'_>,
        others: &[Subject<'_>],
        observers: &mut [&mut dyn Observer],
    ) -> Result<PassReport> {
        let start = Instant::now();
        let tokens = self.sequences.iter().map(Vec::len).sum();
        let first = self.pass(backend, first);
        let others: Vec<Pass<'_, B>> = others.iter().map(|other| self.pass(backend, other)).collect();
        let plan = self.plan(&first, &others, tokens);
        let predicted_peak = memory::resident().unwrap_or_default() + plan.total();
        let lanes = self.lanes(std::iter::once(first).chain(others).collect(), plan.batch_rows);
        let clock = Clock {
            start,
            tokens,
            of_blocks: lanes.iter().map(|lane| lane.pass.spec.blocks.len()).sum(),
            work: lanes.iter().map(|lane| lane.block_work() + lane.head_work()).sum(),
            progress: self.progress,
        };

        let expert_work = AtomicU64::new(0);
        let (mut heads, mut kept) = (Vec::new(), Vec::new());
        let (mut blocks_before, mut work_before) = (0, 0.0);
        for (number, Lane { pass, runs, scored }) in lanes.iter().enumerate() {
            let mut hidden = pass.store(runs, &plan)?;
            let is_alone = lanes.len() == 1;
            let has_head = scored.iter().any(|scored| !scored.rows.is_empty());
            let savepoints = self.options.savepoints.as_ref().filter(|_| is_alone);
            let mut keeper = Keeper::new(savepoints, pass.shape(runs, 1), has_head);
            let (blocks, work) = (pass.spec.blocks.len(), lanes[number].block_work());
            let observers: &mut [&mut dyn Observer] = if number == 0 { observers } else { &mut [] };
            let first = match pass.take_up(&mut keeper, &mut hidden, observers)? {
                Some(point) => {
                    expert_work.store(point.expert_work, Ordering::Relaxed);
                    point.block
                }
                None => {
                    pass.embed(runs, &mut hidden)?;
                    0
                }
            };
            pass.blocks((runs, first), &mut hidden, observers, &expert_work, &mut keeper, |block, share| {
                let done = work_before + (block as f64 + share) / blocks as f64 * work;
                clock.report(blocks_before + block + usize::from(share == 1.0), done);
            })?;
            (blocks_before, work_before) = (blocks_before + blocks, work_before + work);
            // The next model's arrays, and the head's, have other sizes.
            super::pool::drain();
            if has_head {
                let head = Head { backend, spec: pass.spec, source: pass.source };
                kept.push(head.keep(hidden, scored.clone())?);
                heads.push(head);
            }
        }
        let of_heads = clock.work - work_before;
        let report = |share: f64| clock.report(clock.of_blocks, work_before + share * of_heads);
        let mut nll = head::score(&heads, &mut kept, plan.vocab_chunk, observers, report)?.into_iter();
        super::pool::drain();
        let count = lanes.iter().map(|lane| 1 + lane.pass.variants.len()).sum::<usize>();
        Ok(PassReport {
            nll: nll.next().unwrap_or_default(),
            variant_nll: (1..count).map(|_| nll.next().unwrap_or_default()).collect(),
            expert_multiplications: expert_work.into_inner(),
            tokens,
            seconds: start.elapsed().as_secs_f64(),
            predicted_peak,
            peak: memory::peak_resident(),
            plan,
        })
    }

    fn pass<'b, B: Backend>(&self, backend: &'b B, subject: &Subject<'b>) -> Pass<'b, B>
    where
        'a: 'b,
    {
        let Subject { spec, tensors: source, variants } = *subject;
        let Shared { sequences, options, progress, .. } = *self;
        Pass { backend, spec, source, variants, sequences, options, progress }
    }

    /// Every variant of every model has hidden states of its own.
    fn plan<B: Backend>(&self, first: &Pass<'_, B>, others: &[Pass<'_, B>], tokens: usize) -> MemoryPlan {
        let kept = tokens * std::iter::once(first).chain(others).map(|pass| 1 + pass.variants.len()).sum::<usize>();
        let longest = self.sequences.iter().map(Vec::len).max().unwrap_or(0);
        let others: Vec<MemoryPlan> = others.iter().map(|pass| pass.plan(kept, longest)).collect();
        first.plan(kept, longest).beside(&others)
    }

    /// The same micro-batches for all models.
    fn lanes<'b, B: Backend>(&self, passes: Vec<Pass<'b, B>>, batch_rows: usize) -> Vec<Lane<'b, B>> {
        let lengths: Vec<usize> = self.sequences.iter().map(Vec::len).collect();
        let classes = |length| -> Vec<usize> { passes.iter().map(|p| p.spec.rope.length_class(length)).collect() };
        let batches = batches(&lengths, batch_rows, classes);
        let mut first_variant = 0;
        let lane = |pass: Pass<'b, B>| {
            let runs = runs(batches.clone(), pass.variants.len());
            let mut scored = head::scored_runs(&runs, self.sequences, self.scoring);
            scored.iter_mut().for_each(|scored| scored.variant += first_variant);
            first_variant += 1 + pass.variants.len();
            Lane { pass, runs, scored }
        };
        passes.into_iter().map(lane).collect()
    }
}

/// Turns work done into progress reports.
struct Clock<'a> {
    start: Instant,
    tokens: usize,
    /// Blocks of all models.
    of_blocks: usize,
    /// Multiplications of the whole pass.
    work: f64,
    progress: &'a dyn Fn(PassProgress),
}

impl Clock<'_> {
    fn report(&self, blocks: usize, done: f64) {
        let fraction = done / self.work.max(1.0);
        let tokens_per_s = self.tokens as f64 * fraction / self.start.elapsed().as_secs_f64().max(1e-9);
        (self.progress)(PassProgress { blocks, of_blocks: self.of_blocks, fraction, tokens_per_s });
    }
}
