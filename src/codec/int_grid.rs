//! Whole numbers times a scale per group, as compressed-tensors, MLX and the frontier contracts keep them: groups of any
//! length or whole rows, symmetric, with a zero point or with an offset, ternary and binary among them.
//!
//! A stored row is an internal form that a file's writer takes apart with [`IntGrid::split_row`]: the codes, element i at
//! bits `i · bits` of little-endian 32-bit words; then a scale per group, two bytes each; then, where there are zero
//! points, a byte per group, or where there are offsets two.

use super::fit_affine::{Offsets, fit_affine};
use super::fit_linear::{Sign, Span, fit_linear};
use super::grid::Grid;
use super::lanes::{LANES, Lanes, bounds, inverse, round, within};
use super::levels::{Levels, ScaleType, Store, Table};
use super::multiversion;
use super::ternary::best_ternary_scale;

/// How scales are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// Clip and, where the sign is free, sign of least weighted error.
    Search,
    /// From the extremes of the group alone.
    Extremes,
    /// Ternary and binary: the optimum, by sorting.
    Exact,
}

/// Whole numbers times a scale per group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntGrid {
    bits: usize,
    /// `usize::MAX`: the whole row.
    group: usize,
    table: Table,
    store: Store,
    fit: Fit,
    called: &'static str,
}

/// The parts of a stored row.
pub struct IntRow<'a> {
    /// `ceil(cols · bits / 32)` little-endian words: the codes counted from the lowest level, element i at bit `i · bits`.
    pub codes: &'a [u8],
    /// One little-endian scale of two bytes per group.
    pub scales: &'a [u8],
    /// The code that stands for zero, per group; empty for grids without zero points.
    pub zero_points: &'a [u8],
    /// One little-endian offset of two bytes per group; empty for grids without offsets.
    pub offsets: &'a [u8],
}

static BINARY: [f32; 2] = [-1.0, 1.0];

impl IntGrid {
    /// `scale · q` with q from −2^(bits−1) to 2^(bits−1) − 1, for 2 to 8 bits. Where `signed` the scale may be negative,
    /// which puts the lowest level, that has no counterpart, on the side that needs it: worth most at few bits.
    ///
    /// # Panics
    /// When `bits` is not within 2 … 8 or `group` is 0.
    pub fn symmetric(bits: usize, group: usize, scale: ScaleType, signed: bool) -> Self {
        assert!((2..=8).contains(&bits) && group > 0, "2 to 8 bits in groups of at least one");
        let half = (1 << (bits - 1)) as f32;
        let store = Store::Scale { kind: scale, signed };
        IntGrid { bits, group, table: Table::Whole(-half, half - 1.0), store, fit: Fit::Search, called: "symmetric" }
    }

    /// `scale · (q − zero)` with q and zero from 0 to 2^bits − 1, for 2 to 8 bits.
    ///
    /// # Panics
    /// As [`IntGrid::symmetric`].
    pub fn asymmetric(bits: usize, group: usize, scale: ScaleType) -> Self {
        assert!((2..=8).contains(&bits) && group > 0, "2 to 8 bits in groups of at least one");
        let top = ((1 << bits) - 1) as f32;
        let store = Store::ScaleZero { kind: scale, most: top };
        IntGrid { bits, group, table: Table::Whole(0.0, top), store, fit: Fit::Search, called: "asymmetric" }
    }

    /// `scale · q + offset` with q from 0 to 2^bits − 1, for 2 to 8 bits, the offset as wide as the scale: MLX's `affine`.
    ///
    /// # Panics
    /// As [`IntGrid::symmetric`].
    pub fn affine(bits: usize, group: usize, scale: ScaleType) -> Self {
        assert!((2..=8).contains(&bits) && group > 0, "2 to 8 bits in groups of at least one");
        let top = ((1 << bits) - 1) as f32;
        let store = Store::ScaleOffset { kind: scale };
        IntGrid { bits, group, table: Table::Whole(0.0, top), store, fit: Fit::Search, called: "affine" }
    }

    /// −1, 0, +1 times an f16 scale, in two bits.
    pub fn ternary(group: usize) -> Self {
        let store = Store::Scale { kind: ScaleType::F16, signed: false };
        IntGrid { bits: 2, group, table: Table::Whole(-1.0, 1.0), store, fit: Fit::Exact, called: "ternary" }
    }

    /// ± an f16 scale, in one bit.
    pub fn binary(group: usize) -> Self {
        let store = Store::Scale { kind: ScaleType::F16, signed: false };
        IntGrid { bits: 1, group, table: Table::Uneven(&BINARY), store, fit: Fit::Exact, called: "binary" }
    }

    /// The rescue format of the frontier contracts: −7 … 7 times an f16 scale per 128 values, `scale = max / 7`.
    pub fn rescue() -> Self {
        let store = Store::Scale { kind: ScaleType::F16, signed: false };
        IntGrid { bits: 4, group: 128, table: Table::Whole(-7.0, 7.0), store, fit: Fit::Extremes, called: "rescue" }
    }

    /// The same with scales taken from the extremes of a group instead of searched: `absmax / (2^bits − 1) · 2`, or the
    /// range (zero included) over `2^bits − 1`. Ternary and binary grids stay as they are.
    pub fn without_search(mut self) -> Self {
        if self.fit == Fit::Search {
            self.fit = Fit::Extremes;
        }
        self
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// How many groups a row of so many columns has.
    pub fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group.min(cols.max(1)))
    }

    fn has_zero_points(&self) -> bool {
        matches!(self.store, Store::ScaleZero { .. })
    }

    fn stores_offsets(&self) -> bool {
        matches!(self.store, Store::ScaleOffset { .. })
    }

    fn kind(&self) -> ScaleType {
        match self.store {
            Store::Scale { kind, .. } | Store::ScaleZero { kind, .. } | Store::ScaleOffset { kind } => kind,
            _ => ScaleType::F16,
        }
    }

    /// Bytes of the codes, of the scales and of the zero points or offsets of a row.
    fn parts(&self, cols: usize) -> [usize; 3] {
        let groups = self.groups(cols);
        let third = match self.store {
            Store::ScaleZero { .. } => groups,
            Store::ScaleOffset { .. } => 2 * groups,
            _ => 0,
        };
        [(cols * self.bits).div_ceil(32) * 4, 2 * groups, third]
    }

    /// The parts of a stored row of `cols` columns.
    ///
    /// # Panics
    /// When `row` has another length than [`Grid::row_bytes`] says.
    pub fn split_row<'a>(&self, cols: usize, row: &'a [u8]) -> IntRow<'a> {
        let [codes, scales, zeros] = self.parts(cols);
        assert_eq!(row.len(), codes + scales + zeros, "one stored row of {cols} columns");
        let (codes, rest) = row.split_at(codes);
        let (scales, third) = rest.split_at(scales);
        let (zero_points, offsets) = if self.stores_offsets() { third.split_at(0) } else { third.split_at(zeros) };
        IntRow { codes, scales, zero_points, offsets }
    }

    /// The code of every column of a stored row, counted from the lowest level.
    pub fn codes(&self, cols: usize, row: &[u8]) -> Vec<u8> {
        let packed = self.split_row(cols, row).codes;
        let mask = (1u16 << self.bits) - 1;
        let code = |i: usize| {
            let (byte, shift) = (i * self.bits / 8, i * self.bits % 8);
            let pair = u16::from(packed[byte]) | (u16::from(packed.get(byte + 1).copied().unwrap_or(0)) << 8);
            ((pair >> shift) & mask) as u8
        };
        (0..cols).map(code).collect()
    }

    fn levels(&self, size: usize, step: f32, offset: f32) -> Levels {
        Levels::single(size, self.table, self.store, step, offset)
    }

    fn by_extremes(&self, values: &[f32]) -> Levels {
        let (low, high) = bounds(values);
        let span = self.table.count() as f32 - 1.0;
        if self.stores_offsets() {
            return self.levels(values.len(), (high - low) / span, low);
        }
        if self.has_zero_points() {
            let (low, high) = (low.min(0.0), high.max(0.0));
            return self.levels(values.len(), (high - low) / span, low);
        }
        let scale = high.max(-low) / (span / 2.0);
        // The contracts' rule for groups of zeros.
        self.levels(values.len(), if scale > 0.0 { scale } else { 1.0 }, 0.0)
    }

    fn exact(&self, values: &[f32], weights: &[f32]) -> Levels {
        let scale = match self.table {
            Table::Whole(..) => best_ternary_scale(values, weights),
            Table::Uneven(_) => {
                let mass: f64 = weights.iter().map(|w| f64::from(*w)).sum();
                let sum: f64 = values.iter().zip(weights).map(|(x, w)| f64::from(x.abs()) * f64::from(*w)).sum();
                if mass > 0.0 { (sum / mass) as f32 } else { 0.0 }
            }
        };
        self.levels(values.len(), scale, 0.0)
    }
}

impl Grid for IntGrid {
    fn name(&self) -> String {
        let group = if self.group == usize::MAX { "channel".to_owned() } else { format!("g{}", self.group) };
        format!("W{} {group} {}", self.bits, self.called)
    }

    fn group(&self) -> usize {
        self.group
    }

    fn row_bytes(&self, cols: usize) -> Option<usize> {
        (cols > 0).then(|| self.parts(cols).iter().sum())
    }

    fn has_offsets(&self) -> bool {
        self.has_zero_points() || self.stores_offsets()
    }

    fn fit(&self, values: &[f32], weights: &[f32], size: usize) -> Vec<Levels> {
        assert!(size > 0 && size <= self.group && values.len().is_multiple_of(size) && values.len() == weights.len());
        let mut levels = Vec::with_capacity(values.len() / size);
        let groups = values.chunks(size).zip(weights.chunks(size));
        match self.fit {
            Fit::Extremes => levels.extend(groups.map(|(x, _)| self.by_extremes(x))),
            Fit::Exact => levels.extend(groups.map(|(x, w)| self.exact(x, w))),
            Fit::Search => search(self, values, weights, size, &mut levels),
        }
        levels
    }

    fn pack(&self, levels: &[Levels], codes: &[u8], row: &mut [u8]) {
        let cols = codes.len();
        let [words, scales, zeros] = self.parts(cols);
        assert!(row.len() == words + scales + zeros && levels.len() == self.groups(cols), "one row");
        let (packed, rest) = row.split_at_mut(words);
        packed.fill(0);
        for (i, code) in codes.iter().enumerate() {
            let (byte, shift) = (i * self.bits / 8, i * self.bits % 8);
            let [low, high] = (u16::from(*code) << shift).to_le_bytes();
            packed[byte] |= low;
            if high != 0 {
                packed[byte + 1] |= high;
            }
        }
        let (scales, zeros) = rest.split_at_mut(scales);
        for (levels, out) in levels.iter().zip(scales.as_chunks_mut::<2>().0) {
            *out = self.kind().bytes(levels.head[0]);
        }
        if self.stores_offsets() {
            for (levels, out) in levels.iter().zip(zeros.as_chunks_mut::<2>().0) {
                *out = self.kind().bytes(levels.head[1]);
            }
            return;
        }
        for (levels, out) in levels.iter().zip(zeros) {
            *out = levels.head[1] as u8;
        }
    }

    fn unpack(&self, row: &[u8], values: &mut [f32]) {
        let cols = values.len();
        let parts = self.split_row(cols, row);
        let codes = self.codes(cols, row);
        let group = self.group.min(cols);
        for (g, (values, codes)) in values.chunks_mut(group).zip(codes.chunks(group)).enumerate() {
            let step = self.kind().read([parts.scales[2 * g], parts.scales[2 * g + 1]]);
            let zero = parts.zero_points.get(g).copied();
            let stored = parts.offsets.as_chunks::<2>().0.get(g).map(|raw| self.kind().read(*raw));
            let offset = stored.or(zero.map(|zero| -(step * f32::from(zero)))).unwrap_or(-0.0);
            let rungs = Levels::stored(group, self.table, self.store, step, offset).rungs(0);
            values.iter_mut().zip(codes).for_each(|(v, code)| *v = rungs.value(*code));
        }
    }
}

multiversion! {
    fn search(grid: &IntGrid, values: &[f32], weights: &[f32], size: usize, out: &mut Vec<Levels>) = search_body
}

/// Inverse scales that are tried, as shares of the one at which the largest magnitude just fits.
const SHARES: [f32; 17] =
    [0.82, 0.88, 0.92, 0.95, 0.975, 1.0, 1.02, 1.045, 1.08, 1.12, 1.17, 1.24, 1.33, 1.45, 1.6, 1.8, 2.1];

/// Added to the largest code before the division by the range.
const TRIALS: [f32; 14] = [-1.0, -0.7, -0.4, -0.2, 0.0, 0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.2, 4.5, 6.5];

#[inline(always)]
fn search_body(grid: &IntGrid, values: &[f32], weights: &[f32], size: usize, out: &mut Vec<Levels>) {
    let (mut x, mut w) = (vec![[0f32; LANES]; size], vec![[0f32; LANES]; size]);
    for (values, weights) in values.chunks(LANES * size).zip(weights.chunks(LANES * size)) {
        gather(values, size, &mut x);
        gather(weights, size, &mut w);
        let count = values.len() / size;
        match (grid.table, grid.store) {
            (Table::Whole(low, high), Store::Scale { signed, .. }) => {
                let factors: Vec<f32> = SHARES
                    .iter()
                    // At eight bits a share of 2 % is three levels: shares shrink with the distance between levels.
                    .map(|share| 1.0 + (share - 1.0) * (16.0 / -low).min(1.0))
                    .flat_map(|share| if signed { vec![low * share, high * share] } else { vec![high * share] })
                    .collect();
                let sign = if signed { Sign::Any } else { Sign::Positive };
                let fit = fit_linear(Span { low, high }, &x, &w, &factors, sign);
                out.extend(fit.scale.iter().take(count).map(|&scale| grid.levels(size, scale, 0.0)));
            }
            (Table::Whole(_, top), Store::ScaleOffset { kind }) => {
                let fit = fit_affine(&x, &w, top, &TRIALS, Offsets::Any);
                let fits = fit.scale.iter().zip(&fit.offset);
                let groups = values.chunks(size).zip(weights.chunks(size));
                out.extend(groups.zip(fits).map(|((x, w), (s, o))| with_offset(grid, x, w, (*s, *o), kind)));
            }
            (Table::Whole(_, top), _) => {
                let fit = fit_affine(&x, &w, top, &TRIALS, Offsets::Any);
                let fits = fit.scale.iter().zip(&fit.offset);
                let groups = values.chunks(size).zip(weights.chunks(size));
                out.extend(groups.zip(fits).map(|((x, w), (s, o))| with_zero_point(grid, x, w, (*s, *o), top)));
            }
            (Table::Uneven(_), _) => out.extend(values.chunks(size).map(|x| grid.by_extremes(x))),
        }
    }
}

/// Up to eight neighbouring groups side by side; lanes without a group hold zeros.
#[inline(always)]
fn gather(numbers: &[f32], size: usize, lanes: &mut [Lanes]) {
    lanes.fill([0.0; LANES]);
    for (lane, numbers) in numbers.chunks(size).enumerate() {
        lanes.iter_mut().zip(numbers).for_each(|(lanes, number)| lanes[lane] = *number);
    }
}

/// The best levels with a whole zero point near a fitted scale and offset; the group's extremes are tried as well.
#[inline(always)]
fn with_zero_point(grid: &IntGrid, x: &[f32], w: &[f32], (scale, offset): (f32, f32), top: f32) -> Levels {
    let mut best = grid.by_extremes(x);
    let mut least = error(&best, x, w);
    let real = -offset * inverse(scale);
    for zero in [real.floor(), real.ceil()] {
        let zero = within(zero, 0.0, top);
        let mut step = scale;
        for _ in 0..3 {
            let levels = grid.levels(x.len(), step, -(step * zero));
            let off = error(&levels, x, w);
            if off < least {
                (best, least) = (levels, off);
            }
            let unit = inverse(step);
            let (mut gain, mut product) = (0f32, 0f32);
            for (x, w) in x.iter().zip(w) {
                let level = round(within(x * unit + zero, 0.0, top)) - zero;
                gain += w * level * level;
                product += w * level * x;
            }
            step = product * inverse(gain);
        }
    }
    best
}

/// The best levels whose scale is the storable one at or beside a fitted scale, with the offset that suits it: at many
/// codes the rounding of a scale moves the farthest of them by a good part of a step. The group's extremes are tried too.
#[inline(always)]
fn with_offset(grid: &IntGrid, x: &[f32], w: &[f32], (scale, offset): (f32, f32), kind: ScaleType) -> Levels {
    let mut best = grid.by_extremes(x);
    let mut least = error(&best, x, w);
    let mass: f32 = w.iter().sum();
    // A step of the stored type, relatively.
    let grain = if kind == ScaleType::BF16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
    for share in [1.0, 1.0 - grain, 1.0 + grain] {
        let mut levels = grid.levels(x.len(), scale * share, offset);
        for _ in 0..2 {
            let off = error(&levels, x, w);
            if off < least {
                (best, least) = (levels.clone(), off);
            }
            let rungs = levels.rungs(0);
            let gap: f32 = x.iter().zip(w).map(|(x, w)| w * (x - rungs.nearest(*x).1)).sum();
            levels = grid.levels(x.len(), levels.steps[0], levels.offsets[0] + gap * inverse(mass));
        }
        let off = error(&levels, x, w);
        if off < least {
            (best, least) = (levels, off);
        }
    }
    best
}

#[inline(always)]
fn error(levels: &Levels, x: &[f32], w: &[f32]) -> f32 {
    let rungs = levels.rungs(0);
    x.iter().zip(w).map(|(x, w)| w * (rungs.nearest(*x).1 - x).powi(2)).sum()
}
