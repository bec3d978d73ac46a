//! Grids against codecs: what is packed reads back to the bit, and fits are no worse than the codecs' own.

use proptest::prelude::*;

use crate::codec::*;

/// Grids that are not a codec's, at odd sizes too.
fn own_grids() -> Vec<IntGrid> {
    let mut grids = vec![IntGrid::ternary(100), IntGrid::ternary(usize::MAX), IntGrid::binary(64), IntGrid::rescue()];
    for bits in 2..=8 {
        for group in [32, 100, 128, usize::MAX] {
            grids.push(IntGrid::symmetric(bits, group, ScaleType::BF16, false));
            grids.push(IntGrid::symmetric(bits, group, ScaleType::F16, true));
            grids.push(IntGrid::asymmetric(bits, group, ScaleType::BF16));
            grids.push(IntGrid::affine(bits, group, ScaleType::BF16));
            grids.push(IntGrid::affine(bits, group, ScaleType::F16));
            grids.push(IntGrid::asymmetric(bits, group, ScaleType::F16).without_search());
        }
    }
    grids
}

fn all_grids() -> Vec<Box<dyn Grid>> {
    let blocks = CODECS.iter().filter_map(|codec| grid_for(codec.dtype())).map(|grid| Box::new(Borrowed(grid)) as _);
    own_grids().into_iter().map(|grid| Box::new(grid) as _).chain(blocks).collect()
}

struct Borrowed(&'static dyn Grid);

impl Grid for Borrowed {
    fn name(&self) -> String {
        self.0.name()
    }
    fn group(&self) -> usize {
        self.0.group()
    }
    fn row_bytes(&self, cols: usize) -> Option<usize> {
        self.0.row_bytes(cols)
    }
    fn has_offsets(&self) -> bool {
        self.0.has_offsets()
    }
    fn fit(&self, values: &[f32], weights: &[f32], size: usize) -> Vec<Levels> {
        self.0.fit(values, weights, size)
    }
    fn pack(&self, levels: &[Levels], codes: &[u8], row: &mut [u8]) {
        self.0.pack(levels, codes, row);
    }
    fn unpack(&self, row: &[u8], values: &mut [f32]) {
        self.0.unpack(row, values);
    }
}

/// The levels of a row's groups, the last of which may be shorter.
fn fit_row(grid: &dyn Grid, row: &[f32], weights: &[f32]) -> Vec<Levels> {
    let group = grid.group().min(row.len());
    let pieces = row.chunks(group).zip(weights.chunks(group));
    pieces.flat_map(|(x, w)| grid.fit(x, w, x.len())).collect()
}

/// What levels and codes stand for.
fn read(grid: &dyn Grid, levels: &[Levels], codes: &[u8]) -> Vec<f32> {
    let group = grid.group().min(codes.len());
    (0..codes.len()).map(|c| levels[c / group].value(c % group, codes[c])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn packed_codes_read_back_to_the_bit(
        values in proptest::collection::vec(-3f32..3.0, 512),
        picks in proptest::collection::vec(any::<u8>(), 512),
        magnitude in -9i32..6,
        nudge in (0.5f32..2.0, -1f32..1.0),
    ) {
        let values: Vec<f32> = values.iter().map(|v| v * 2f32.powi(magnitude)).collect();
        for grid in all_grids() {
            // 256 divides what block formats store; the others have a ragged last group.
            let cols = if grid.row_bytes(450).is_some() { 450 } else { 512 };
            let mut levels = fit_row(&*grid, &values[..cols], &vec![1.0; cols]);
            for levels in &mut levels {
                *levels = levels.rescaled(nudge.0, nudge.0);
                let last = levels.parts - 1;
                *levels = levels.with_part(last, levels.steps[last] * 1.1, levels.offsets[last] + nudge.1 * levels.steps[0]);
            }
            let group = grid.group().min(cols);
            let codes: Vec<u8> = (0..cols)
                .map(|c| (usize::from(picks[c]) % levels[c / group].table.count()) as u8)
                .collect();
            let mut row = vec![0xa5; grid.row_bytes(cols).unwrap()];
            grid.pack(&levels, &codes, &mut row);
            let mut back = vec![0f32; cols];
            grid.unpack(&row, &mut back);
            let expected = read(&*grid, &levels, &codes);
            for (c, (a, b)) in back.iter().zip(&expected).enumerate() {
                prop_assert_eq!(a.to_bits(), b.to_bits(), "{}: column {}: {} and {}", grid.name(), c, a, b);
            }
        }
    }
}

/// Σ w (x − x')².
fn off(values: &[f32], back: &[f32], weights: &[f32]) -> f64 {
    let term = |((x, y), w): ((&f32, &f32), &f32)| f64::from(*w) * f64::from(x - y).powi(2);
    values.iter().zip(back).zip(weights).map(term).sum()
}

fn nearest_codes(grid: &dyn Grid, levels: &[Levels], row: &[f32]) -> Vec<u8> {
    let group = grid.group().min(row.len());
    row.iter().enumerate().map(|(c, v)| levels[c / group].nearest(c % group, *v).0).collect()
}

#[test]
fn fits_leave_no_more_weighted_error_than_the_codecs_own_searches() {
    let values = tests::sample(256 * 40);
    let importance: Vec<f32> = tests::sample(256 * 40).iter().map(|v| 0.01 + v * v).collect();
    for codec in CODECS.iter().filter(|codec| codec.dtype().block_elems() > 1) {
        let grid = grid_for(codec.dtype()).unwrap();
        let (mut ours, mut theirs) = (0.0, 0.0);
        let rows = values.chunks(256).zip(importance.chunks(256));
        for (row, importance) in rows {
            let weights = error_weights(row, Some(importance));
            let levels = fit_row(grid, row, &weights);
            let mut stored = vec![0; grid.row_bytes(256).unwrap()];
            grid.pack(&levels, &nearest_codes(grid, &levels, row), &mut stored);
            let mut back = vec![0f32; 256];
            codec.decode(&stored, &mut back);
            ours += off(row, &back, &weights);
            codec.encode_weighted(row, importance, &mut stored);
            codec.decode(&stored, &mut back);
            theirs += off(row, &back, &weights);
        }
        // A search starts from the same candidates; rounding a scale to f16 may cost a little here and there.
        assert!(ours <= theirs * 1.001, "{}: {ours}, the codec {theirs}", codec.name());
    }
}

#[test]
fn a_searched_scale_beats_one_from_the_extremes_and_a_free_sign_beats_a_fixed_one() {
    let values: Vec<f32> = tests::sample(128 * 30).iter().map(|v| v.abs().sqrt().copysign(*v)).collect();
    let weights = vec![1f32; values.len()];
    let error = |grid: IntGrid| {
        let levels = fit_row(&grid, &values, &weights);
        off(&values, &read(&grid, &levels, &nearest_codes(&grid, &levels, &values)), &weights)
    };
    for bits in 2..=6 {
        let plain = IntGrid::symmetric(bits, 128, ScaleType::F16, false);
        let signed = IntGrid::symmetric(bits, 128, ScaleType::F16, true);
        let zero = IntGrid::asymmetric(bits, 128, ScaleType::F16);
        assert!(error(plain) < error(plain.without_search()), "W{bits}");
        assert!(error(signed) < error(plain), "W{bits} signed");
        assert!(error(zero) < error(zero.without_search()), "W{bits} asymmetric");
    }
}

#[test]
fn ternary_and_binary_scales_are_the_best_there_are() {
    let (values, weights) = (tests::sample(40), tests::sample(80)[40..].iter().map(|v| v.abs()).collect::<Vec<f32>>());
    for grid in [IntGrid::ternary(40), IntGrid::binary(40)] {
        let levels = fit_row(&grid, &values, &weights);
        let fitted = off(&values, &read(&grid, &levels, &nearest_codes(&grid, &levels, &values)), &weights);
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        for k in 1..1000 {
            let other = vec![levels[0].with_part(0, largest * k as f32 / 1000.0, 0.0)];
            let tried = off(&values, &read(&grid, &other, &nearest_codes(&grid, &other, &values)), &weights);
            assert!(fitted <= tried * 1.000_1, "{}: {fitted}, and {tried} at {k}", grid.name());
        }
    }
}

#[test]
fn rescue_groups_follow_the_contract() {
    let grid = IntGrid::rescue();
    let mut values = vec![0f32; 130];
    values[..4].copy_from_slice(&[1.4, -0.7, 0.3, 0.1]);
    let levels = fit_row(&grid, &values, &[1.0; 130]);
    assert_eq!(levels[0].steps[0], half::f16::from_f32(0.2).to_f32());
    assert_eq!(levels[1].steps[0], 1.0, "zeros: the scale is 1");
    let codes = nearest_codes(&grid, &levels, &values);
    assert_eq!(
        codes[..4].iter().map(|c| i16::from(*c) - 7).collect::<Vec<_>>(),
        [7, -4, 2, 1],
        "0.1 is just over half of the f16 nearest to 0.2"
    );
    let mut row = vec![0; grid.row_bytes(130).unwrap()];
    grid.pack(&levels, &codes, &mut row);
    assert_eq!(grid.codes(130, &row), codes);
    assert_eq!(grid.split_row(130, &row).scales.len(), 4);
}

#[test]
fn a_stored_row_comes_apart_as_compressed_tensors_keeps_it() {
    let grid = IntGrid::asymmetric(3, 4, ScaleType::BF16);
    let values = [0.0, 1.0, 2.0, 7.0, -1.0, 0.0, 1.0, 0.5, 3.0, -4.0, 0.0];
    let levels = fit_row(&grid, &values, &[1.0; 11]);
    let codes = nearest_codes(&grid, &levels, &values);
    let mut row = vec![0; grid.row_bytes(11).unwrap()];
    grid.pack(&levels, &codes, &mut row);
    let parts = grid.split_row(11, &row);
    assert_eq!((parts.codes.len(), parts.scales.len(), parts.zero_points.len()), (8, 6, 3));
    let bits = u64::from_le_bytes(parts.codes.try_into().unwrap());
    assert_eq!((0..11).map(|i| (bits >> (3 * i) & 7) as u8).collect::<Vec<_>>(), codes);
    assert_eq!(parts.zero_points[0], 0, "the first group has nothing below zero");
    assert_eq!(grid.name(), "W3 g4 asymmetric");
}
