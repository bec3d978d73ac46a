//! Descent on the exact quadratic error of every row: one code at a time, then one part's step and offset at a time.
//!
//! For a row with error `e = w − ŵ` and `pull = e H`, changing ŵ by δ changes the error `e H eᵀ` by `δ H δᵀ − 2 pull·δ`:
//! nothing is accepted that does not lower it.

use super::panel::Coded;
use super::product::{add_product, dot};
use crate::codec::{Grid, Levels};
use crate::engine::vector::add_scaled;

/// A panel of rows on its way down.
pub(super) struct Descent<'a> {
    grid: &'a dyn Grid,
    /// H, `[cols, cols]`.
    metric: &'a [f32],
    cols: usize,
    coded: Coded,
    /// What the codes stand for.
    values: Vec<f32>,
    /// `(w − ŵ) H`.
    pull: Vec<f32>,
}

impl<'a> Descent<'a> {
    pub fn new(grid: &'a dyn Grid, wanted: &'a [f32], metric: &'a [f32], cols: usize, coded: Coded) -> Self {
        let group = grid.group().min(cols);
        let mut values = Vec::with_capacity(wanted.len());
        for (levels, codes) in coded.levels.iter().zip(coded.codes.chunks(cols)) {
            for (levels, codes) in levels.iter().zip(codes.chunks(group)) {
                for (part, codes) in codes.chunks(levels.width).enumerate() {
                    let rungs = levels.rungs(part);
                    values.extend(codes.iter().map(|code| rungs.value(*code)));
                }
            }
        }
        let errors: Vec<f32> = wanted.iter().zip(&values).map(|(w, v)| w - v).collect();
        let mut pull = vec![0f32; wanted.len()];
        add_product((errors.len() / cols, cols, cols), (&errors, cols), (metric, cols), (&mut pull, cols), false);
        Descent { grid, metric, cols, coded, values, pull }
    }

    pub fn finish(self) -> Coded {
        self.coded
    }

    /// Columns of every part of the grid's groups: group, part, first column, end.
    fn parts(&self) -> Vec<(usize, usize, usize, usize)> {
        let group = self.grid.group().min(self.cols);
        let mut out = Vec::new();
        for (g, levels) in self.coded.levels.first().into_iter().flatten().enumerate() {
            let end = (g * group + group).min(self.cols);
            for part in 0..levels.parts {
                let first = g * group + part * levels.width;
                out.push((g, part, first, (first + levels.width).min(end)));
            }
        }
        out
    }

    /// Every column once: each code becomes the best one while all others stay. Gives the number of codes changed.
    pub fn sweep_codes(&mut self) -> usize {
        let cols = self.cols;
        let mut changed = 0;
        for (g, part, first, end) in self.parts() {
            let rungs: Vec<_> = self.coded.levels.iter().map(|levels| levels[g].rungs(part)).collect();
            for j in first..end {
                let h = &self.metric[j * cols..(j + 1) * cols];
                for (r, rungs) in rungs.iter().enumerate() {
                    let at = r * cols + j;
                    let (code, value) = rungs.nearest(self.values[at] + self.pull[at] / h[j]);
                    if code != self.coded.codes[at] {
                        let step = value - self.values[at];
                        self.coded.codes[at] = code;
                        self.values[at] = value;
                        let pull = &mut self.pull[r * cols..(r + 1) * cols];
                        add_scaled(pull, -step, h);
                        changed += 1;
                    }
                }
            }
        }
        changed
    }

    /// Every group's common steps, then every part's own, once: the best while all codes and all other steps stay.
    pub fn refit(&mut self) {
        let parts = self.parts();
        let mut group = usize::MAX;
        for (g, part, first, end) in parts.iter().copied() {
            if g != group {
                group = g;
                let last = parts.iter().filter(|p| p.0 == g).map(|p| p.3).max().unwrap_or(end);
                if last > end {
                    self.move_levels(g, None, first, last);
                }
            }
            self.move_levels(g, Some(part), first, end);
        }
    }

    /// Moves the steps and offsets of one part, or of a whole group at once, of all rows.
    fn move_levels(&mut self, g: usize, part: Option<usize>, first: usize, end: usize) {
        let (cols, width, rows) = (self.cols, end - first, self.coded.levels.len());
        // What a step and what an offset multiply.
        let (mut steps, mut offsets) = (vec![0f32; rows * width], vec![0f32; rows * width]);
        for (r, levels) in self.coded.levels.iter().enumerate() {
            let levels = &levels[g];
            for c in 0..width {
                let own = part.unwrap_or(c / levels.width);
                let rungs = levels.rungs(own);
                let level = rungs.level(self.coded.codes[r * cols + first + c]);
                let (step, offset) = if part.is_some() { (1.0, 1.0) } else { (rungs.step, rungs.offset) };
                (steps[r * width + c], offsets[r * width + c]) = (step * level, offset);
            }
        }
        let has_offsets = self.grid.has_offsets();
        let here = &self.metric[first * cols + first..];
        let weighed = |basis: &[f32]| {
            let mut out = vec![0f32; rows * width];
            add_product((rows, width, width), (basis, width), (here, cols), (&mut out, width), false);
            out
        };
        let by_step = weighed(&steps);
        let by_offset = if has_offsets { weighed(&offsets) } else { Vec::new() };
        let mut moves = vec![0f32; rows * width];
        let mut moved = false;
        for r in 0..rows {
            let span = r * width..(r + 1) * width;
            let (s, o) = (&steps[span.clone()], &offsets[span.clone()]);
            let pull = &self.pull[r * cols + first..r * cols + end];
            let form = Form {
                ss: dot(s, &by_step[span.clone()]),
                so: if has_offsets { dot(o, &by_step[span.clone()]) } else { 0.0 },
                oo: if has_offsets { dot(o, &by_offset[span.clone()]) } else { 0.0 },
                s: dot(s, pull),
                o: if has_offsets { dot(o, pull) } else { 0.0 },
            };
            let levels = &self.coded.levels[r][g];
            let Some(better) = form.best(levels, part, has_offsets) else { continue };
            moved = true;
            for c in 0..width {
                let at = r * cols + first + c;
                let rungs = better.rungs(part.unwrap_or(c / better.width));
                let value = rungs.value(self.coded.codes[at]);
                moves[r * width + c] = self.values[at] - value;
                self.values[at] = value;
            }
            self.coded.levels[r][g] = better;
        }
        if moved {
            let h = &self.metric[first * cols..];
            add_product((rows, width, cols), (&moves, width), (h, cols), (&mut self.pull, cols), true);
        }
    }
}

/// The error of a row as a function of how far a step (s) and an offset (o) move:
/// `ss·s² + 2·so·s·o + oo·o² − 2·(s·S + o·O)`.
struct Form {
    ss: f64,
    so: f64,
    oo: f64,
    s: f64,
    o: f64,
}

impl Form {
    fn change(&self, s: f64, o: f64) -> f64 {
        self.ss * s * s + 2.0 * self.so * s * o + self.oo * o * o - 2.0 * (self.s * s + self.o * o)
    }

    /// The storable levels that lower the error most, of a few near the optimum; `None` when none lowers it.
    fn best(&self, levels: &Levels, part: Option<usize>, has_offsets: bool) -> Option<Levels> {
        // How far a candidate is from the present levels, in the units of this form.
        let distance = |to: &Levels| match part {
            Some(p) => (f64::from(to.steps[p] - levels.steps[p]), f64::from(to.offsets[p] - levels.offsets[p])),
            None => {
                let p = (0..levels.parts).find(|p| levels.steps[*p] != 0.0).unwrap_or(0);
                let q = (0..levels.parts).find(|q| levels.offsets[*q] != 0.0).unwrap_or(0);
                let ratio = |to: f32, from: f32| if from == 0.0 { 0.0 } else { f64::from(to) / f64::from(from) - 1.0 };
                (ratio(to.steps[p], levels.steps[p]), ratio(to.offsets[q], levels.offsets[q]))
            }
        };
        let at = |s: f64, o: f64| match part {
            Some(p) => levels.with_part(p, levels.steps[p] + s as f32, levels.offsets[p] + o as f32),
            None => levels.rescaled(1.0 + s as f32, 1.0 + o as f32),
        };
        let mut best: Option<(f64, Levels)> = None;
        let mut consider = |s: f64, o: f64| {
            if !(s.is_finite() && o.is_finite()) {
                return (0.0, 0.0);
            }
            let candidate = at(s, o);
            let (s, o) = distance(&candidate);
            let change = self.change(s, o);
            if change < best.as_ref().map_or(0.0, |(least, _)| *least) {
                best = Some((change, candidate));
            }
            (s, o)
        };
        let alone = self.s / self.ss;
        consider(alone, 0.0);
        if has_offsets {
            let determinant = self.ss * self.oo - self.so * self.so;
            if determinant > 1e-9 * self.ss * self.oo {
                let s = (self.s * self.oo - self.o * self.so) / determinant;
                let o = (self.o * self.ss - self.s * self.so) / determinant;
                // The stored step is a little off: the best offset beside it.
                let (s, _) = consider(s, o);
                consider(s, (self.o - s * self.so) / self.oo);
            }
            // Both together, which keeps a zero point.
            let (step, offset) = part.map_or((1.0, 1.0), |p| (levels.steps[p].into(), levels.offsets[p].into()));
            let along = (self.s * step + self.o * offset)
                / (self.ss * step * step + 2.0 * self.so * step * offset + self.oo * offset * offset);
            consider(along * step, along * offset);
        }
        best.map(|(_, levels)| levels)
    }
}
