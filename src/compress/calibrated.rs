//! Quantization that knows what every layer is given: block by block on the prefix already compressed, each matrix
//! solved on the moments of its inputs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::encoded::{EncodedMark, EncodedRows, EncodedWriter};
use super::fold::{Folded, Folds};
use super::scaling::{Scaling, StoredAs};
use super::solve::{Matrix, Moments, SolveOptions, Solver, make_up_for_drift};
use super::tuning::{Tunable, TuneOptions, tune};
use super::{CompressError, QuantPlan};
use crate::codec::{Grid, grid_for};
use crate::engine::{
    InputSum, PassOptions, PassProgress, RewritePlan, RewriteReport, Rewriter, STEP_TOKENS, Tune, predict_rewriting,
    run_rewriting,
};
use crate::family::{BlockSpec, LinearSpec, OpenModel};
use crate::model::{Dtype, TensorSource};
use crate::units::Bytes;

/// How a weight is to be stored.
#[derive(Clone)]
pub struct Target {
    pub grid: GridRef,
    /// The grid's format, where models are stored in it.
    pub dtype: Option<Dtype>,
}

/// A grid that lives as long as the program, or as long as it is used.
#[derive(Clone)]
pub enum GridRef {
    Static(&'static dyn Grid),
    Shared(Arc<dyn Grid>),
}

impl GridRef {
    pub fn get(&self) -> &dyn Grid {
        match self {
            GridRef::Static(grid) => *grid,
            GridRef::Shared(grid) => grid.as_ref(),
        }
    }
}

/// The weights to solve, by name.
pub type Targets = HashMap<String, Target>;

/// How a calibrated quantization goes about it.
#[derive(Clone, Copy)]
pub struct Calibrated<'a> {
    pub targets: &'a Targets,
    pub solver: &'static dyn Solver,
    pub options: SolveOptions,
    /// A layer sees the effect of the layers before it in its own block, too; costs a run of the block for every depth.
    pub by_depth: bool,
    /// How much of what the inputs have drifted from those of the model as it was each layer makes up for: 0 (it keeps its
    /// own function) to 1 (it aims at the output it had). Not together with `by_depth`.
    pub drift: f32,
    /// How blocks are tuned, by solvers that do.
    pub tuning: TuneOptions,
    /// The embedding as it will be, `[vocabulary, hidden]`, where the blocks are to be solved on what it makes of tokens.
    pub embedding: Option<&'a [f32]>,
    /// Memory for the sums of one round, at most (one input's sum is taken in any case).
    pub sums: Bytes,
    /// The types of what is not solved, where a solver scales inputs: norms take the scales' inverses.
    pub stored_as: &'a StoredAs,
}

/// How one matrix came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatrixReport {
    pub weight: String,
    pub grid: String,
    /// Inputs it was solved on.
    pub tokens: u64,
    /// Share of the output's energy that is lost on these inputs.
    pub error: f64,
    /// The solver, and what else it has to say.
    pub method: String,
    /// Its columns were scaled by this power of what they are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exponent: Option<f64>,
}

/// Solved matrices, and how they came out, in the order they were solved.
pub struct CalibratedRows {
    pub rows: EncodedRows,
    pub matrices: Vec<MatrixReport>,
    pub pass: RewriteReport,
    /// What the rest of the model must take over: the solved rows are those of the folded model.
    pub folds: Folds,
    /// What was left out, one line each.
    pub notes: Vec<String>,
}

impl CalibratedRows {
    /// The tensors that the rows belong to: those of `base`, folded.
    pub fn folded(&self, base: &Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>, CompressError> {
        if self.folds.is_empty() {
            return Ok(base.clone());
        }
        Ok(Arc::new(Folded::new(base.clone(), self.folds.clone())?))
    }
}

impl Calibrated<'_> {
    /// The weights of a block that are solved, by rounds that keep within the memory for sums.
    fn rounds(&self, block: &BlockSpec) -> Vec<Vec<String>> {
        rounds(block, &|name| self.targets.contains_key(name), self.sums, self.order())
    }

    /// How [`Calibrated::run`] would lie in memory; nothing is read but headers.
    pub fn predict(&self, model: &OpenModel, tokens: usize, longest: usize, options: &PassOptions) -> RewritePlan {
        let (rounds, work) = (|block: &BlockSpec| self.rounds(block), |block: &BlockSpec| self.work(block));
        predict_rewriting(model, tokens, longest, options, &rounds, &work, self.follows_original())
    }

    fn order(&self) -> Rounds {
        match self.solver.scales_inputs() {
            true => Rounds::Backward,
            false if self.by_depth => Rounds::ByDepth,
            false => Rounds::Forward,
        }
    }

    fn follows_original(&self) -> bool {
        self.drift > 0.0 || self.solver.tunes_blocks()
    }

    /// Bytes a solver takes for the largest matrix of a block: its metric in f64 with the matrix and its factor in f32, and
    /// the weights as they were, as solved and as moved by drift. Tuning keeps all matrices of the block at once, with
    /// places and averages, values and gradients, and what a step's tokens leave behind for its gradients.
    fn work(&self, block: &BlockSpec) -> u64 {
        let inputs = block.inputs();
        let layers = inputs.iter().flat_map(|input| &input.layers).filter(|l| self.targets.contains_key(&l.weight));
        let one = |l: &&LinearSpec| (16 * l.cols * l.cols + 12 * l.cols * l.rows) as u64;
        let tuned = |l: &&LinearSpec| (32 * l.cols * l.rows + 4 * 4 * STEP_TOKENS * (l.cols + l.rows)) as u64;
        match self.solver.tunes_blocks() {
            true => layers.map(tuned).sum(),
            false => layers.map(one).max().unwrap_or(0),
        }
    }

    /// Solves every target on the inputs it meets when `sequences` run through the model as compressed so far. The rows
    /// lie in a file at `path` until the result is dropped.
    ///
    /// # Errors
    /// As the pass and the solver; a full disk.
    pub fn run(
        &self,
        model: &OpenModel,
        sequences: &[Vec<u32>],
        options: &PassOptions,
        path: &Path,
        progress: &dyn Fn(PassProgress),
    ) -> Result<CalibratedRows, CompressError> {
        let source = model.tensors.as_ref();
        let scaling = self.solver.scales_inputs().then(|| Scaling::new(self.targets, self.stored_as, source));
        let mut solving =
            Solving { how: self, source, path, writer: None, matrices: Vec::new(), solved: Vec::new(), scaling };
        let pass = run_rewriting(model, sequences, options, &mut solving, progress)?;
        let (folds, notes) = match solving.scaling {
            Some(scaling) => {
                let notes = scaling.notes();
                (scaling.folds, notes)
            }
            None => Default::default(),
        };
        let writer = match solving.writer {
            Some(writer) => writer,
            None => EncodedWriter::create(path)?,
        };
        Ok(CalibratedRows { rows: writer.finish()?, matrices: solving.matrices, pass, folds, notes })
    }
}

/// In which order the inputs of a block are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounds {
    /// As a forward pass meets them.
    Forward,
    /// The same, inputs of one depth in each round.
    ByDepth,
    /// Readers before what makes their input, which can still take their scales then.
    Backward,
}

/// The wanted weights of a block by rounds whose sums keep within `sums`.
pub(super) fn rounds(block: &BlockSpec, wanted: &dyn Fn(&str) -> bool, sums: Bytes, order: Rounds) -> Vec<Vec<String>> {
    let mut rounds: Vec<Vec<String>> = Vec::new();
    let (mut depth, mut bytes) = (usize::MAX, 0u64);
    let mut inputs = block.inputs();
    if order == Rounds::Backward {
        inputs.reverse();
    }
    for input in inputs {
        let names = input.layers.iter().map(|layer| &layer.weight).filter(|name| wanted(name));
        let names: Vec<String> = names.cloned().collect();
        if names.is_empty() {
            continue;
        }
        let more = 4 * (input.columns() as u64).pow(2);
        let full = bytes + more > sums.0 || (order == Rounds::ByDepth && input.depth != depth);
        match rounds.last_mut().filter(|_| !full) {
            Some(round) => {
                bytes += more;
                round.extend(names);
            }
            None => {
                bytes = more;
                rounds.push(names);
            }
        }
        depth = input.depth;
    }
    rounds
}

struct Solving<'a> {
    how: &'a Calibrated<'a>,
    source: &'a dyn TensorSource,
    path: &'a Path,
    /// Made when the first rows come, or taken up where an interrupted pass left it.
    writer: Option<EncodedWriter>,
    matrices: Vec<MatrixReport>,
    /// Matrices of the block under way that are still to be tuned, and their stored rows.
    solved: Vec<(Tunable, Vec<u8>)>,
    scaling: Option<Scaling<'a>>,
}

/// What is put down between two blocks.
#[derive(Serialize, Deserialize)]
struct Saved {
    rows: EncodedMark,
    matrices: Vec<MatrixReport>,
    scaling: Option<Value>,
}

impl Solving<'_> {
    fn writer(&mut self) -> Result<&mut EncodedWriter, CompressError> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            empty => Ok(empty.insert(EncodedWriter::create(self.path)?)),
        }
    }

    fn solve(
        &mut self,
        layer: &LinearSpec,
        moments: Option<&Moments>,
        drift: Option<&[f32]>,
    ) -> Result<Vec<f32>, CompressError> {
        let target = &self.how.targets[&layer.weight];
        let mut values = Vec::new();
        self.source.read_f32(&layer.weight, &mut values)?;
        self.source.release(&layer.weight);
        if let Some(scaling) = &self.scaling {
            scaling.apply(&layer.weight, &mut values)?;
        }
        if let (Some(moments), Some(drift)) = (moments, drift) {
            make_up_for_drift(&mut values, moments, drift, self.how.drift, self.how.options.damping);
        }
        let (name, grid) = (layer.weight.as_str(), target.grid.get());
        // A weight that met no token, an expert nobody chose, still has moments: of nothing.
        let none = Moments::new(layer.cols);
        let moments = moments.or(self.how.solver.needs_moments().then_some(&none));
        let matrix = Matrix { name, values: &values, rows: layer.rows, cols: layer.cols, grid, moments };
        let options = SolveOptions { keep_codes: self.how.solver.tunes_blocks(), ..self.how.options };
        let solved = self.how.solver.solve(&matrix, &options)?;
        self.matrices.push(MatrixReport {
            weight: name.to_owned(),
            grid: grid.name(),
            tokens: moments.map_or(0, |moments| moments.tokens),
            error: solved.error,
            method: solved.method.to_string(),
            exponent: self.scaling.as_ref().and_then(|scaling| scaling.exponents.get(name).copied()),
        });
        match solved.coded {
            None => self.writer()?.put(&layer.weight, target.dtype, &solved.bytes)?,
            Some(coded) => {
                let (weight, grid, cols) = (layer.weight.clone(), target.grid.clone(), layer.cols);
                self.solved.push((Tunable { weight, grid, wanted: values, cols, coded }, solved.bytes));
            }
        }
        Ok(solved.values)
    }
}

impl Rewriter for Solving<'_> {
    type Error = CompressError;

    fn rounds(&self, block: &BlockSpec) -> Vec<Vec<String>> {
        self.how.rounds(block)
    }

    fn embedding(&mut self) -> Option<Vec<f32>> {
        self.how.embedding.map(<[f32]>::to_vec)
    }

    fn follows_original(&self) -> bool {
        self.how.follows_original()
    }

    fn tuned(&self, _block: &BlockSpec) -> Vec<String> {
        self.solved.iter().map(|(matrix, _)| matrix.weight.clone()).collect()
    }

    fn tune(&mut self, _block: &BlockSpec, tuning: &mut dyn Tune) -> Result<Vec<(String, Vec<f32>)>, CompressError> {
        let mut stored: HashMap<String, Vec<u8>> = HashMap::new();
        let mut matrices = Vec::new();
        for (matrix, bytes) in self.solved.drain(..) {
            stored.insert(matrix.weight.clone(), bytes);
            matrices.push(matrix);
        }
        let names: Vec<String> = matrices.iter().map(|matrix| matrix.weight.clone()).collect();
        let tuned = tune(matrices, self.how.tuning, tuning)?;
        let note = match tuned.matrices.is_empty() {
            true => format!("; block error {:.5}, tuning gave {:.5} and was left", tuned.before, tuned.after),
            false => format!("; block error {:.5} tuned to {:.5}", tuned.before, tuned.after),
        };
        let mut values = Vec::new();
        let mut moved = tuned.matrices;
        for name in names {
            let (bytes, moved) = match moved.remove(&name) {
                Some((bytes, values)) => (bytes, Some(values)),
                None => (stored.remove(&name).unwrap_or_default(), None),
            };
            let dtype = self.how.targets[&name].dtype;
            self.writer()?.put(&name, dtype, &bytes)?;
            if let Some(report) = self.matrices.iter_mut().rfind(|report| report.weight == name) {
                report.method.push_str(&note);
            }
            values.extend(moved.map(|moved| (name, moved)));
        }
        Ok(values)
    }

    fn work(&self, block: &BlockSpec) -> u64 {
        self.how.work(block)
    }

    fn save(&mut self) -> Result<Option<Vec<u8>>, CompressError> {
        let scaling = match &self.scaling {
            Some(scaling) => match scaling.save() {
                Some(saved) => Some(saved),
                None => return Ok(None),
            },
            None => None,
        };
        let rows = self.writer()?.mark()?;
        let saved = Saved { rows, matrices: self.matrices.clone(), scaling };
        Ok(serde_json::to_vec(&saved).ok())
    }

    fn restore(&mut self, saved: &[u8]) -> bool {
        let Ok(saved) = serde_json::from_slice::<Saved>(saved) else { return false };
        let Ok(Some(writer)) = EncodedWriter::at(self.path, saved.rows) else { return false };
        let is_scaled = match (&mut self.scaling, saved.scaling) {
            (Some(scaling), Some(saved)) => scaling.restore(saved),
            (None, None) => true,
            _ => false,
        };
        if is_scaled {
            (self.writer, self.matrices) = (Some(writer), saved.matrices);
        }
        is_scaled
    }

    fn rewrite(
        &mut self,
        block: &BlockSpec,
        round: &[String],
        inputs: Vec<InputSum>,
    ) -> Result<Vec<(String, Vec<f32>)>, CompressError> {
        let mut moments: Vec<(Vec<String>, Moments, Option<Vec<f32>>)> = inputs
            .into_iter()
            .map(|input| {
                let moments = Moments { size: input.columns, sum: input.sum, tokens: input.rows };
                (input.tensors, moments, input.drift)
            })
            .collect();
        let mut changed = match &mut self.scaling {
            Some(scaling) => scaling.choose(block, round, &mut moments)?,
            None => Vec::new(),
        };
        let inputs = block.inputs();
        let layers = inputs.iter().flat_map(|input| &input.layers).filter(|layer| round.contains(&layer.weight));
        let solve = |layer: &&LinearSpec| {
            let found = moments.iter().find(|(tensors, ..)| tensors.contains(&layer.weight));
            let drift = found.and_then(|(.., drift)| drift.as_deref());
            Ok((layer.weight.clone(), self.solve(layer, found.map(|(_, moments, _)| moments), drift)?))
        };
        let solved: Vec<(String, Vec<f32>)> = layers.map(solve).collect::<Result<_, CompressError>>()?;
        changed.extend(solved);
        Ok(changed)
    }
}

/// The weights of a GGUF file that can be solved: matrices of blocks whose rows the file holds as they are, in one format
/// with a grid. The others are encoded as usual.
pub fn gguf_targets(model: &OpenModel, plan: &QuantPlan) -> Targets {
    let mut formats: HashMap<&str, Option<Dtype>> = HashMap::new();
    for planned in &plan.tensors {
        let format = planned.is_made_of_rows().then_some(planned.dtype);
        for source in planned.tensor.sources() {
            formats.entry(source).and_modify(|known| *known = known.filter(|k| Some(*k) == format)).or_insert(format);
        }
    }
    let inputs = model.spec.blocks.iter().flat_map(BlockSpec::inputs);
    let target = |layer: &LinearSpec| {
        let dtype = (*formats.get(layer.weight.as_str())?)?;
        let target = Target { grid: GridRef::Static(grid_for(dtype)?), dtype: Some(dtype) };
        Some((layer.weight.clone(), target))
    };
    inputs.flat_map(|input| input.layers).filter_map(target).collect()
}
