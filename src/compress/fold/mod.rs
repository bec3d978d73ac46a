//! Changes of a model's weights that leave its function as it is, in exact arithmetic: rotations and scales that cancel
//! between a tensor and those that read what it makes.
//!
//! Enters: the block plan of a model. Leaves: [`Folds`], what is to be done to which tensor, and [`Folded`], the model's
//! tensors with that done as they are read: no copy of the model exists, and every solver and every format follows. What
//! does not commute with a change is found in the plan (`rotation`, `scaling`), never by the name of a family.

mod readers;
mod rotation;
pub(super) mod scaling;
mod source;
mod turn;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use rotation::{RotationKind, RotationPlan};
pub use source::Folded;
pub use turn::Turn;

/// One change of a tensor `[rows, cols]`; a vector has one column.
#[derive(Clone, Debug)]
pub enum Step {
    /// Row r times the r-th of these.
    Rows(Arc<[f32]>),
    /// Column c times the c-th of these.
    Columns(Arc<[f32]>),
    /// `Rᵀ · W`
    TurnRows(Arc<Turn>),
    /// `W · R`
    TurnColumns(Arc<Turn>),
    /// These values instead.
    Become(Arc<[f32]>),
}

/// A change as it is put down.
#[derive(Serialize, Deserialize)]
enum Saved {
    Rows(Vec<f32>),
    Columns(Vec<f32>),
    Become(Vec<f32>),
}

/// What is done to which tensors, in order.
#[derive(Clone, Debug, Default)]
pub struct Folds {
    steps: HashMap<String, Vec<Step>>,
}

impl Folds {
    /// Adds a change to those of a tensor.
    pub fn add(&mut self, tensor: &str, step: Step) {
        self.steps.entry(tensor.to_owned()).or_default().push(step);
    }

    /// The changes of a tensor.
    pub fn of(&self, tensor: &str) -> &[Step] {
        self.steps.get(tensor).map_or(&[], Vec::as_slice)
    }

    /// Leaves a tensor as it is.
    pub fn forget(&mut self, tensor: &str) {
        self.steps.remove(tensor);
    }

    /// Every tensor that is changed, in the order of their names.
    pub fn tensors(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.steps.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// As text; `None` with turns among them.
    pub(super) fn save(&self) -> Option<Value> {
        let saved = |step: &Step| match step {
            Step::Rows(factors) => Some(Saved::Rows(factors.to_vec())),
            Step::Columns(factors) => Some(Saved::Columns(factors.to_vec())),
            Step::Become(values) => Some(Saved::Become(values.to_vec())),
            Step::TurnRows(_) | Step::TurnColumns(_) => None,
        };
        let tensor = |(name, steps): (&String, &Vec<Step>)| {
            Some((name.clone(), steps.iter().map(saved).collect::<Option<Vec<_>>>()?))
        };
        let all: Option<BTreeMap<String, Vec<Saved>>> = self.steps.iter().map(tensor).collect();
        serde_json::to_value(all?).ok()
    }

    /// What [`Folds::save`] gave.
    pub(super) fn restore(saved: Value) -> Option<Self> {
        let all: BTreeMap<String, Vec<Saved>> = serde_json::from_value(saved).ok()?;
        let step = |saved| match saved {
            Saved::Rows(factors) => Step::Rows(factors.into()),
            Saved::Columns(factors) => Step::Columns(factors.into()),
            Saved::Become(values) => Step::Become(values.into()),
        };
        let tensor = |(name, steps): (String, Vec<Saved>)| (name, steps.into_iter().map(step).collect());
        Some(Folds { steps: all.into_iter().map(tensor).collect() })
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Does to whole rows of `cols`, the first being row `first` of the tensor, what is to be done to it. Blocks of turned
    /// rows must not be cut.
    pub(super) fn apply(&self, tensor: &str, values: &mut [f32], cols: usize, first: usize) {
        let width = cols.max(1);
        for step in self.of(tensor) {
            match step {
                Step::Rows(factors) => {
                    let rows = values.chunks_exact_mut(width).zip(&factors[first..]);
                    rows.for_each(|(row, factor)| row.iter_mut().for_each(|v| *v *= factor));
                }
                Step::Columns(factors) => values
                    .chunks_exact_mut(width)
                    .for_each(|row| row.iter_mut().zip(factors.iter()).for_each(|(v, factor)| *v *= factor)),
                Step::TurnRows(turn) => turn.rows(values, width, first),
                Step::TurnColumns(turn) => turn.columns(values, width),
                Step::Become(others) => {
                    let from = first * width;
                    values.copy_from_slice(&others[from..from + values.len()]);
                }
            }
        }
    }
}
