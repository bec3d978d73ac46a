//! What a solver is given and what it gives back.

use std::fmt;

use serde::Serialize;

use super::super::CompressError;
use super::panel::Coded;
use crate::codec::{Grid, first_non_finite};

/// Σ x xᵀ of a linear layer's inputs.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// Columns of the layer.
    pub size: usize,
    /// `[size, size]`, symmetric.
    pub sum: Vec<f32>,
    /// How many inputs were summed.
    pub tokens: u64,
}

impl Moments {
    /// No inputs yet.
    pub fn new(size: usize) -> Self {
        Moments { size, sum: vec![0.0; size * size], tokens: 0 }
    }

    /// Mean square of every column's inputs, as an importance matrix holds them.
    pub fn importance(&self) -> Vec<f32> {
        let tokens = self.tokens.max(1) as f32;
        (0..self.size).map(|i| self.sum[i * self.size + i] / tokens).collect()
    }
}

/// A matrix to be stored in a grid.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// The tensor, for errors and notes.
    pub name: &'a str,
    /// `[rows, cols]`, row-major: one row per output.
    pub values: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub grid: &'a dyn Grid,
    /// Of the inputs its columns meet.
    pub moments: Option<&'a Moments>,
}

impl Matrix<'_> {
    /// Bytes of a stored row, after everything that would make a solution meaningless is ruled out.
    pub(super) fn checked(&self) -> Result<usize, CompressError> {
        let bad = |reason: String| CompressError::Tensor { tensor: self.name.to_owned(), reason };
        if self.values.len() != self.rows * self.cols || self.cols == 0 {
            let (rows, cols, found) = (self.rows, self.cols, self.values.len());
            return Err(bad(format!("{found} values are no {rows} rows of {cols}")));
        }
        if let Some(at) = first_non_finite(self.values) {
            let (value, row, column) = (self.values[at], at / self.cols, at % self.cols);
            return Err(bad(format!("row {row}, column {column} is {value}")));
        }
        if let Some(moments) = self.moments {
            if moments.size != self.cols || moments.sum.len() != self.cols * self.cols {
                return Err(bad(format!("moments of {} inputs for {} columns", moments.size, self.cols)));
            }
            if let Some(at) = first_non_finite(&moments.sum) {
                let (a, b) = (at / self.cols, at % self.cols);
                return Err(bad(format!("the moment of its inputs {a} and {b} is {}", moments.sum[at])));
            }
        }
        self.grid.row_bytes(self.cols).ok_or_else(|| CompressError::Refused {
            what: "solve",
            reason: format!("{}: rows of {} columns cannot be stored as {}", self.name, self.cols, self.grid.name()),
            hint: "choose a format whose groups divide the row",
        })
    }
}

/// In which order columns are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they lie; levels are fitted to a group when it is reached, to the values that earlier errors have left.
    Natural,
    /// Largest mean square of the inputs first; levels are fitted beforehand.
    Activation,
}

/// How hard a solver tries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SolveOptions {
    /// Added to the diagonal of the moments, as a share of its mean.
    pub damping: f64,
    /// Rounds of coordinate descent over codes and steps after the first choice.
    pub sweeps: usize,
    pub order: Order,
    /// Give levels and codes back with the bytes, for those who go on from them.
    pub keep_codes: bool,
}

impl Default for SolveOptions {
    fn default() -> Self {
        SolveOptions { damping: 0.01, sweeps: 3, order: Order::Natural, keep_codes: false }
    }
}

/// What was done to a matrix, for reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Method {
    /// The solver that chose the codes in the end.
    pub solver: &'static str,
    /// What else a reader should know: a raised damping, a fall-back and its reason.
    pub notes: Vec<String>,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.solver)?;
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

/// A solved matrix.
#[derive(Clone, Debug)]
pub struct Solved {
    /// Rows as the grid stores them.
    pub bytes: Vec<u8>,
    /// What the bytes read back as, `[rows, cols]`.
    pub values: Vec<f32>,
    /// `tr(E M Eᵀ) / tr(W M Wᵀ)` with `E = W − Ŵ`: the share of the output's energy that is lost on the inputs of the
    /// moments; without moments that of the weights' own.
    pub error: f64,
    pub method: Method,
    /// Levels and codes behind the bytes, where they are wanted ([`SolveOptions::keep_codes`]).
    pub coded: Option<Coded>,
}
