//! Error feedback: columns are decided one after another, each making up for the errors of those before it.

use super::factor::Metric;
use super::panel::Coded;
use super::product::add_product;
use super::rtn::fit_row;
use crate::codec::{Grid, Levels, Rungs};
use crate::engine::vector::add_scaled;

/// Columns whose errors reach the columns behind them at once.
const LAZY: usize = 128;

/// Decides a panel's codes column by column as the columns lie. The levels of a group are fitted when it is reached, to
/// the values that the errors so far have left, weighted by what an error costs that later columns can make up for.
pub(super) fn in_natural_order(grid: &dyn Grid, wanted: &[f32], metric: &Metric) -> Coded {
    let (cols, v) = (metric.size, &metric.upper);
    let rows = wanted.len() / cols;
    let group = grid.group().min(cols);
    let block = if group == cols { LAZY } else { group * (LAZY / group).max(1) };
    let mut coded = Coded { levels: vec![Vec::new(); rows], codes: vec![0; wanted.len()] };
    let mut errors = vec![0f32; wanted.len()];
    let weights: Vec<f32> = (0..cols).map(|j| v[j * cols + j] * v[j * cols + j]).collect();
    if group == cols {
        fit_group(grid, wanted, &weights, cols, &mut coded.levels);
    }
    let mut pull = vec![0f32; rows * block];
    for start in (0..cols).step_by(block) {
        let width = block.min(cols - start);
        let pull = &mut pull[..rows * width];
        add_product((rows, start, width), (&errors, cols), (&v[start..], cols), (pull, width), false);
        for first in (start..start + width).step_by(group.min(width)) {
            let last = (first + group).min(start + width);
            if group < cols {
                let left = left_over(wanted, pull, metric, (start, width), (first, last));
                fit_group(grid, &left, &weights[first..last], last - first, &mut coded.levels);
            }
            let mut rungs: Vec<Rungs> = Vec::with_capacity(rows);
            for j in first..last {
                let within = if group == cols { j } else { j - first };
                let current = coded.levels.iter().filter_map(|levels| levels.last());
                renew(&mut rungs, current, within, j == first);
                let (diagonal, row) = (v[j * cols + j], &v[j * cols + j + 1..j * cols + start + width]);
                for (r, rungs) in rungs.iter().enumerate() {
                    let at = r * width + j - start;
                    let w = wanted[r * cols + j];
                    let (code, value) = rungs.nearest(w + pull[at] / diagonal);
                    coded.codes[r * cols + j] = code;
                    let error = w - value;
                    errors[r * cols + j] = error;
                    add_scaled(&mut pull[at + 1..(r + 1) * width], error, row);
                }
            }
        }
    }
    coded
}

/// The rungs of every row at a column of its group, made anew where a part begins.
fn renew<'a>(rungs: &mut Vec<Rungs>, levels: impl Iterator<Item = &'a Levels>, column: usize, first: bool) {
    let mut levels = levels.peekable();
    if first || levels.peek().is_some_and(|levels| column.is_multiple_of(levels.width)) {
        rungs.clear();
        rungs.extend(levels.map(|levels| levels.rungs(levels.part(column))));
    }
}

/// Fits one group for every row of a panel and appends the levels to each row's.
fn fit_group(grid: &dyn Grid, values: &[f32], weights: &[f32], size: usize, levels: &mut [Vec<Levels>]) {
    let weights = weights.repeat(levels.len());
    for (levels, fitted) in levels.iter_mut().zip(grid.fit(values, &weights, size)) {
        levels.push(fitted);
    }
}

/// What the columns of a group would best be, given the errors before it and if nothing behind were rounded:
/// `w + pull · V⁻¹` over the group.
fn left_over(
    wanted: &[f32],
    pull: &[f32],
    metric: &Metric,
    (start, width): (usize, usize),
    (first, last): (usize, usize),
) -> Vec<f32> {
    let (cols, v) = (metric.size, &metric.upper);
    let size = last - first;
    let mut left = Vec::with_capacity(wanted.len() / cols * size);
    for (wanted, pull) in wanted.chunks(cols).zip(pull.chunks(width)) {
        let mut x = pull[first - start..last - start].to_vec();
        for j in 0..size {
            let row = &v[(first + j) * cols + first..(first + j) * cols + last];
            x[j] /= row[j];
            let done = x[j];
            x[j + 1..].iter_mut().zip(&row[j + 1..]).for_each(|(x, v)| *x -= done * v);
        }
        left.extend(x.iter().zip(&wanted[first..last]).map(|(x, w)| x + w));
    }
    left
}

/// Decides a panel's codes in the metric's own order of columns, with levels fitted beforehand under
/// these weights (one per value).
pub(super) fn in_given_order(
    grid: &dyn Grid,
    wanted: &[f32],
    metric: &Metric,
    order: &[usize],
    weights: &[f32],
) -> Coded {
    let (cols, v) = (metric.size, &metric.upper);
    let rows = wanted.len() / cols;
    let group = grid.group().min(cols);
    let levels =
        wanted.chunks(cols).zip(weights.chunks(cols)).map(|(row, weights)| fit_row(grid, row, weights)).collect();
    let mut coded = Coded { levels, codes: vec![0; wanted.len()] };
    let mut errors = vec![0f32; wanted.len()];
    let mut pull = vec![0f32; rows * LAZY];
    for start in (0..cols).step_by(LAZY) {
        let width = LAZY.min(cols - start);
        let pull = &mut pull[..rows * width];
        add_product((rows, start, width), (&errors, cols), (&v[start..], cols), (pull, width), false);
        for j in start..start + width {
            let column = order[j];
            let (diagonal, row) = (v[j * cols + j], &v[j * cols + j + 1..j * cols + start + width]);
            for r in 0..rows {
                let at = r * width + j - start;
                let w = wanted[r * cols + column];
                let (code, value) = coded.levels[r][column / group].nearest(column % group, w + pull[at] / diagonal);
                coded.codes[r * cols + column] = code;
                let error = w - value;
                errors[r * cols + j] = error;
                add_scaled(&mut pull[at + 1..(r + 1) * width], error, row);
            }
        }
    }
    coded
}
