//! `block-tune`: codes and scales of a whole block moved together, down the gradient of the block's error.
//!
//! A matrix is first solved as `gptq` does. Then every weight has a place `u` among the levels of its group,
//! `ŵ = step · level(nearest to u) + offset`, and every step and offset a value that need not be storable. A step of
//! descent moves them along the gradient of the block's error with regard to ŵ, which is taken for that with regard to u
//! (straight through the rounding). As in SignRound (Cheng et al., arXiv 2309.05516) a step is about as long for every
//! weight and the rate falls to nothing, but directions are averages over steps (Adam: Kingma and Ba, arXiv 1412.6980);
//! that scales move as well is in EfficientQAT (Chen et al., arXiv 2407.11062).

use rayon::prelude::*;

use super::gptq::Gptq;
use super::panel::Coded;
use super::{Matrix, SolveOptions, Solved, Solver};
use crate::codec::{Grid, Levels};
use crate::compress::CompressError;

/// GPTQ, then tuning by blocks.
pub struct BlockTune;

impl Solver for BlockTune {
    fn name(&self) -> &'static str {
        "block-tune"
    }
    fn summary(&self) -> &'static str {
        "gptq, then all codes and scales of a block moved down the gradient of the block's error"
    }
    fn needs_moments(&self) -> bool {
        true
    }
    fn tunes_blocks(&self) -> bool {
        true
    }
    fn solve(&self, matrix: &Matrix, options: &SolveOptions) -> Result<Solved, CompressError> {
        Gptq.solve(matrix, options)
    }
}

/// How the moving average of gradients, and of their squares, forgets.
const FORGET: (f32, f32) = (0.9, 0.95);

/// How far one step of descent goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of a weight's place, in levels.
    pub place: f32,
    /// Of a step, as a share of it; of an offset, as a share of the step.
    pub step: f32,
    /// How many steps came before, from 0.
    pub at: i32,
}

/// A matrix that learns.
pub struct Latents {
    rows: Vec<Row>,
    cols: usize,
    has_offsets: bool,
}

struct Row {
    /// Places among the levels of each column's group.
    places: Vec<f32>,
    averages: Vec<[f32; 2]>,
    levels: Vec<Levels>,
    /// Of every part of every group.
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Default)]
struct Part {
    group: usize,
    part: usize,
    first: usize,
    end: usize,
    step: f32,
    offset: f32,
    step_averages: [f32; 2],
    offset_averages: [f32; 2],
}

impl Latents {
    /// From a solution: every place gives the code that was chosen, as near to `wanted` (row-major) as that allows.
    pub fn new(grid: &dyn Grid, wanted: &[f32], cols: usize, coded: Coded) -> Self {
        let group = grid.group().min(cols);
        let rows = coded.levels.into_par_iter().zip(coded.codes.par_chunks(cols)).zip(wanted.par_chunks(cols));
        let rows = rows.map(|((levels, codes), wanted)| Row::new(levels, codes, wanted, group)).collect();
        Latents { rows, cols, has_offsets: grid.has_offsets() }
    }

    /// What the matrix would read back as, row-major.
    pub fn values(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.rows.len() * self.cols];
        self.rows.par_iter().zip(out.par_chunks_mut(self.cols)).for_each(|(row, out)| row.values(out));
        out
    }

    /// One step against the gradient with regard to the values.
    pub fn descend(&mut self, gradient: &[f32], rates: Rates) {
        let has_offsets = self.has_offsets;
        let rows = self.rows.par_iter_mut().zip(gradient.par_chunks(self.cols));
        rows.for_each(|(row, gradient)| row.descend(gradient, rates, has_offsets));
    }

    /// The storable levels and codes.
    pub fn coded(&self) -> Coded {
        let levels = self.rows.iter().map(|row| row.levels.clone()).collect();
        let mut codes = vec![0u8; self.rows.len() * self.cols];
        self.rows.par_iter().zip(codes.par_chunks_mut(self.cols)).for_each(|(row, codes)| row.codes(codes));
        Coded { levels, codes }
    }
}

impl Row {
    fn new(levels: Vec<Levels>, codes: &[u8], wanted: &[f32], group: usize) -> Self {
        let cols = codes.len();
        let mut parts = Vec::new();
        for (g, levels) in levels.iter().enumerate() {
            for part in 0..levels.parts {
                let first = g * group + part * levels.width;
                let end = (first + levels.width).min((g + 1) * group).min(cols);
                let (step, offset) = (levels.steps[part], levels.offsets[part]);
                parts.push(Part { group: g, part, first, end, step, offset, ..Part::default() });
            }
        }
        let mut places = vec![0f32; cols];
        for part in &parts {
            let rungs = levels[part.group].rungs(part.part);
            for c in part.first..part.end {
                places[c] = rungs.place_within(codes[c], wanted[c]);
            }
        }
        Row { places, averages: vec![[0.0; 2]; cols], levels, parts }
    }

    fn values(&self, out: &mut [f32]) {
        for part in &self.parts {
            let rungs = self.levels[part.group].rungs(part.part);
            for (value, place) in out[part.first..part.end].iter_mut().zip(&self.places[part.first..part.end]) {
                *value = rungs.value(rungs.nearest_place(*place));
            }
        }
    }

    fn codes(&self, out: &mut [u8]) {
        for part in &self.parts {
            let rungs = self.levels[part.group].rungs(part.part);
            for (code, place) in out[part.first..part.end].iter_mut().zip(&self.places[part.first..part.end]) {
                *code = rungs.nearest_place(*place);
            }
        }
    }

    fn descend(&mut self, gradient: &[f32], rates: Rates, has_offsets: bool) {
        for part in &mut self.parts {
            let rungs = self.levels[part.group].rungs(part.part);
            if rungs.step == 0.0 {
                continue;
            }
            let (low, high) = rungs.reach();
            let (mut by_step, mut by_offset) = (0f32, 0f32);
            let columns = part.first..part.end;
            let places = self.places[columns.clone()].iter_mut().zip(&mut self.averages[columns.clone()]);
            for ((place, averages), gradient) in places.zip(&gradient[columns]) {
                let g = gradient * rungs.step;
                by_step += g * rungs.level(rungs.nearest_place(*place));
                by_offset += g;
                *place = (*place - rates.place * direction(averages, g, rates.at)).clamp(low, high);
            }
            part.step *= 1.0 - rates.step * direction(&mut part.step_averages, by_step, rates.at);
            if has_offsets {
                part.offset -= rates.step * part.step.abs() * direction(&mut part.offset_averages, by_offset, rates.at);
            }
            self.levels[part.group] = self.levels[part.group].with_part(part.part, part.step, part.offset);
        }
    }
}

/// Where to go, about one long: the average gradient over the root of the average square.
fn direction(averages: &mut [f32; 2], gradient: f32, at: i32) -> f32 {
    averages[0] += (1.0 - FORGET.0) * (gradient - averages[0]);
    averages[1] += (1.0 - FORGET.1) * (gradient * gradient - averages[1]);
    // Only the squares are made up for starting at zero: the first steps are short.
    let second = averages[1] / (1.0 - FORGET.1.powi(at + 1));
    if second > 0.0 { averages[0] / second.sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{correlated, noise};
    use super::*;
    use crate::codec::{Dtype, IntGrid, ScaleType, grid_for};
    use crate::compress::solve::Moments;

    #[test]
    fn tuning_starts_at_the_solution_goes_downhill_and_ends_at_what_can_be_stored() {
        let (rows, cols) = (6, 256);
        let wanted = noise(rows * cols, 9);
        let moments = correlated(cols, 600, 5);
        let three = IntGrid::asymmetric(3, 64, ScaleType::BF16);
        let ternary = IntGrid::ternary(usize::MAX);
        // Every kind of levels: one scale, scale and offset, multiples, an uneven table, a zero point, whole rows.
        let blocks = [Dtype::Q4_0, Dtype::Q4_1, Dtype::Q2K, Dtype::Iq4Nl, Dtype::Q2_0].map(|d| grid_for(d).unwrap());
        for grid in blocks.into_iter().chain([&three as &dyn Grid, &ternary]) {
            downhill(grid, &wanted, (rows, cols), &moments);
        }
    }

    fn downhill(grid: &dyn Grid, wanted: &[f32], (rows, cols): (usize, usize), moments: &Moments) {
        let name = grid.name();
        let options = SolveOptions { sweeps: 0, keep_codes: true, ..SolveOptions::default() };
        let matrix = Matrix { name: "w", values: wanted, rows, cols, grid, moments: Some(moments) };
        let solved = super::super::rtn::Rtn.solve(&matrix, &options).unwrap();
        let mut latents = Latents::new(grid, wanted, cols, solved.coded.unwrap());
        assert_eq!(latents.values(), solved.values, "{name}");
        // (ŵ − w) H (ŵ − w)ᵀ and its gradient.
        let judge = |values: &[f32]| {
            let off: Vec<f32> = values.iter().zip(wanted).map(|(v, w)| v - w).collect();
            let pull = |row: &[f32], j: usize| -> f32 { (0..cols).map(|k| row[k] * moments.sum[k * cols + j]).sum() };
            let gradient: Vec<f32> = off.chunks(cols).flat_map(|row| (0..cols).map(|j| pull(row, j))).collect();
            (off.iter().zip(&gradient).map(|(o, g)| f64::from(o * g)).sum::<f64>(), gradient)
        };
        let (before, _) = judge(&latents.values());
        const STEPS: i32 = 60;
        for at in 0..STEPS {
            let (_, gradient) = judge(&latents.values());
            let share = (STEPS - at) as f32 / STEPS as f32;
            latents.descend(&gradient, Rates { place: 0.01 * share, step: 0.002 * share, at });
        }
        let (after, _) = judge(&latents.values());
        assert!(after < 0.9 * before, "{name}: {before} to {after}");
        let coded = latents.coded();
        let mut row = vec![0u8; grid.row_bytes(cols).unwrap()];
        let mut back = vec![0f32; cols];
        for ((levels, codes), values) in
            coded.levels.iter().zip(coded.codes.chunks(cols)).zip(latents.values().chunks(cols))
        {
            grid.pack(levels, codes, &mut row);
            grid.unpack(&row, &mut back);
            assert_eq!(back, values, "{name}");
        }
    }
}
