use super::*;
use crate::codec::{CODECS, Codec, Dtype, Grid, IntGrid, ScaleType, codec_for, grid_for};

/// Reproducible numbers that look like weights.
pub(super) fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut unit = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| unit() + unit() + unit() + unit()).collect()
}

/// Moments of inputs that hang together: a few directions carry most.
pub(super) fn correlated(size: usize, tokens: usize, seed: u64) -> Moments {
    let mixing = noise(size * size, seed + 1);
    let mut moments = Moments::new(size);
    let fresh = noise(tokens * size, seed + 2);
    for fresh in fresh.chunks(size) {
        let mut x = fresh.to_vec();
        for (k, source) in fresh.iter().take(size / 8).enumerate() {
            x.iter_mut().zip(&mixing[k * size..]).for_each(|(x, m)| *x += 2.0 * source * m);
        }
        for (a, row) in x.iter().zip(moments.sum.chunks_mut(size)) {
            row.iter_mut().zip(&x).for_each(|(sum, b)| *sum += a * b);
        }
    }
    moments.tokens = tokens as u64;
    moments
}

#[test]
fn rtn_in_every_block_format_reads_back_and_beats_or_meets_the_codec() {
    let (rows, cols) = (5, 512);
    let values = noise(rows * cols, 3);
    for codec in CODECS.iter().filter(|codec| codec.dtype().block_elems() > 1) {
        let grid = grid_for(codec.dtype()).unwrap();
        let matrix = Matrix { name: "w", values: &values, rows, cols, grid, moments: None };
        let solved = rtn::Rtn.solve(&matrix, &SolveOptions::default()).unwrap();
        assert_eq!(solved.bytes.len(), codec.dtype().bytes_for(values.len()));
        let mut back = vec![0f32; values.len()];
        codec.decode(&solved.bytes, &mut back);
        assert_eq!(back, solved.values, "{}", codec.name());
        let plain = encode_error(*codec, &values);
        assert!(solved.error < 1.1 * plain, "{}: {} and the codec {plain}", codec.name(), solved.error);
    }
}

fn encode_error(codec: &dyn Codec, values: &[f32]) -> f64 {
    let mut bytes = vec![0u8; codec.dtype().bytes_for(values.len())];
    codec.encode(values, &mut bytes);
    let mut back = vec![0f32; values.len()];
    codec.decode(&bytes, &mut back);
    let off: f64 = values.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    off / values.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>()
}

#[test]
fn what_cannot_be_solved_is_named() {
    let values = noise(2 * 48, 1);
    let grid = grid_for(Dtype::Q4_0).unwrap();
    let matrix = Matrix { name: "blk.0.attn_q", values: &values, rows: 2, cols: 48, grid, moments: None };
    let error = rtn::Rtn.solve(&matrix, &SolveOptions::default()).unwrap_err();
    insta::assert_snapshot!(error, @"solve: blk.0.attn_q: rows of 48 columns cannot be stored as Q4_0");

    let mut values = noise(64, 1);
    values[40] = f32::NAN;
    let bad = Matrix { name: "w", values: &values, rows: 2, cols: 32, grid, moments: None };
    let error = rtn::Rtn.solve(&bad, &SolveOptions::default()).unwrap_err();
    insta::assert_snapshot!(error, @"tensor w: row 1, column 8 is NaN");

    let values = noise(64, 1);
    let mut moments = correlated(32, 50, 1);
    moments.sum[33] = f32::INFINITY;
    let bad = Matrix { name: "w", values: &values, rows: 2, cols: 32, grid, moments: Some(&moments) };
    let error = rtn::Rtn.solve(&bad, &SolveOptions::default()).unwrap_err();
    insta::assert_snapshot!(error, @"tensor w: the moment of its inputs 1 and 1 is inf");
    assert!(codec_for(Dtype::F16).unwrap().grid().is_none());
}

fn named(name: &str) -> &'static dyn Solver {
    solver_named(name).unwrap()
}

fn solve(name: &str, matrix: &Matrix, sweeps: usize, order: Order) -> Solved {
    named(name).solve(matrix, &SolveOptions { sweeps, order, ..SolveOptions::default() }).unwrap()
}

#[test]
fn plain_gptq_gives_the_codes_of_the_published_algorithm() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/solve/gptq.json");
    let fixture: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let numbers = |key: &str| -> Vec<f32> {
        fixture[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let (rows, cols) = (fixture["rows"].as_u64().unwrap() as usize, fixture["cols"].as_u64().unwrap() as usize);
    let values = numbers("weights");
    // So many inputs that nothing is taken for noise.
    let moments = Moments { size: cols, sum: numbers("moments"), tokens: 1 << 50 };
    let grid = IntGrid::symmetric(4, 32, ScaleType::F16, false).without_search();
    let matrix = Matrix { name: "w", values: &values, rows, cols, grid: &grid, moments: Some(&moments) };
    let solved = solve("gptq", &matrix, 0, Order::Natural);
    let row_bytes = grid.row_bytes(cols).unwrap();
    let codes: Vec<f32> = solved.bytes.chunks(row_bytes).flat_map(|row| grid.codes(cols, row)).map(f32::from).collect();
    assert_eq!(codes, numbers("codes"));
    let scales: Vec<f32> = solved
        .bytes
        .chunks(row_bytes)
        .flat_map(|row| grid.split_row(cols, row).scales.as_chunks::<2>().0.to_vec())
        .map(|raw| half::f16::from_le_bytes(raw).to_f32())
        .collect();
    assert_eq!(scales, numbers("scales"));
}

#[test]
fn feedback_beats_rounding_and_descent_beats_feedback_in_every_grid() {
    let (rows, cols) = (6, 256);
    let (values, moments) = (noise(rows * cols, 5), correlated(cols, 1024, 6));
    let own: [Box<dyn Grid>; 7] = [
        Box::new(IntGrid::symmetric(4, 64, ScaleType::BF16, false)),
        Box::new(IntGrid::symmetric(3, 100, ScaleType::F16, true)),
        Box::new(IntGrid::asymmetric(2, 32, ScaleType::BF16)),
        Box::new(IntGrid::symmetric(8, usize::MAX, ScaleType::BF16, false)),
        Box::new(IntGrid::ternary(usize::MAX)),
        Box::new(IntGrid::binary(128)),
        Box::new(IntGrid::rescue()),
    ];
    let blocks = CODECS.iter().filter_map(|codec| codec.grid());
    for grid in own.iter().map(|grid| &**grid).chain(blocks) {
        let matrix = Matrix { name: "w", values: &values, rows, cols, grid, moments: Some(&moments) };
        let rtn = solve("rtn", &matrix, 0, Order::Natural).error;
        for order in [Order::Natural, Order::Activation] {
            let gptq = solve("gptq", &matrix, 0, order).error;
            let descent = solve("gptq", &matrix, 3, order).error;
            assert!(gptq < rtn, "{} {order:?}: {gptq} and rounded {rtn}", grid.name());
            assert!(descent < gptq, "{} {order:?}: {descent} and feedback alone {gptq}", grid.name());
        }
    }
}

#[test]
fn descent_is_never_below_the_optimum_and_seldom_far_above_it() {
    let cols = 6;
    let mut ratios = Vec::new();
    for seed in 1..40 {
        let (values, mut moments) = (noise(cols, seed), correlated(cols, 40, seed));
        moments.tokens = 1 << 50;
        let grid = IntGrid::symmetric(2, 6, ScaleType::F16, true);
        let matrix = Matrix { name: "w", values: &values, rows: 1, cols, grid: &grid, moments: Some(&moments) };
        let solved = solve("gptq", &matrix, 6, Order::Natural);
        let plain = solve("gptq", &matrix, 0, Order::Natural);
        // All codes under the scale that descent ended with.
        let step = half::f16::from_le_bytes([grid.split_row(cols, &solved.bytes).scales[0], solved.bytes[5]]).to_f32();
        let least = (0..4usize.pow(6))
            .map(|n| {
                let row: Vec<f32> = (0..6).map(|j| values[j] - step * ((n >> (2 * j) & 3) as f32 - 2.0)).collect();
                quadratic(&row, &moments)
            })
            .fold(f64::INFINITY, f64::min)
            / quadratic(&values, &moments);
        assert!(solved.error >= least * 0.999, "{} is below the optimum {least}", solved.error);
        assert!(solved.error <= plain.error * 1.02, "{} is worse than without descent: {}", solved.error, plain.error);
        ratios.push(solved.error / least);
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[ratios.len() / 2] < 1.5, "the middle ratio to the optimum is {}", ratios[ratios.len() / 2]);
}

fn quadratic(row: &[f32], moments: &Moments) -> f64 {
    let n = row.len();
    let at = |i: usize, j: usize| f64::from(row[i]) * f64::from(moments.sum[i * n + j]) * f64::from(row[j]);
    (0..n * n).map(|k| at(k / n, k % n)).sum()
}

#[test]
fn one_thread_and_two_write_the_same_bytes() {
    let (rows, cols) = (75, 192);
    let (values, moments) = (noise(rows * cols, 8), correlated(cols, 700, 9));
    let grid = IntGrid::symmetric(4, 64, ScaleType::BF16, true);
    let matrix = Matrix { name: "w", values: &values, rows, cols, grid: &grid, moments: Some(&moments) };
    for solver in SOLVERS {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| solver.solve(&matrix, &SolveOptions::default())).unwrap()
        };
        let (one, two) = (with(1), with(2));
        assert_eq!(one.bytes, two.bytes, "{}", solver.name());
        assert_eq!(one.error.to_bits(), two.error.to_bits(), "{}", solver.name());
    }
}

#[test]
fn little_seen_unseen_and_indefinite_inputs_are_told() {
    let (rows, cols) = (4, 64);
    let values = noise(rows * cols, 2);
    let grid = grid_for(Dtype::Q4_0).unwrap();
    let method = |moments: &Moments| {
        let matrix = Matrix { name: "w", values: &values, rows, cols, grid, moments: Some(moments) };
        solve("gptq", &matrix, 2, Order::Natural).method.to_string()
    };
    insta::assert_snapshot!(method(&correlated(cols, 20, 1)), @"rtn; 20 inputs seen: rounded to nearest");
    insta::assert_snapshot!(method(&correlated(cols, 40, 1)), @"gptq; 40 inputs for 64 columns: correlations at 0.38");
    insta::assert_snapshot!(method(&correlated(cols, 640, 1)), @"gptq");
    let unseen = Moments { tokens: 900, ..Moments::new(cols) };
    insta::assert_snapshot!(method(&unseen), @"rtn; inputs all zero: rounded to nearest");
    let mut indefinite = correlated(cols, 6400, 1);
    let strange = indefinite.sum[0] * 1.5;
    (indefinite.sum[1], indefinite.sum[cols]) = (strange, strange);
    insta::assert_snapshot!(method(&indefinite), @"gptq; damping raised to 2e0");

    let blind = Matrix { name: "w", values: &values, rows, cols, grid, moments: None };
    let error = named("gptq").solve(&blind, &SolveOptions::default()).unwrap_err();
    insta::assert_snapshot!(error, @"gptq: w: no moments of its inputs were summed");
}

#[test]
fn a_column_without_inputs_is_rounded_and_disturbs_nothing() {
    let (rows, cols) = (3, 64);
    let values = noise(rows * cols, 4);
    let mut moments = correlated(cols, 640, 3);
    for i in 0..cols {
        (moments.sum[i * cols + 7], moments.sum[7 * cols + i]) = (0.0, 0.0);
    }
    let grid = grid_for(Dtype::Q4_0).unwrap();
    let matrix = Matrix { name: "w", values: &values, rows, cols, grid, moments: Some(&moments) };
    let solved = solve("gptq", &matrix, 3, Order::Natural);
    assert!(solved.error.is_finite() && solved.values.iter().all(|v| v.is_finite()));
    for r in 0..rows {
        assert!((solved.values[r * cols + 7] - values[r * cols + 7]).abs() < 0.15, "row {r}");
    }
}

#[test]
fn hqq_lowers_its_own_loss_on_weights_with_outliers() {
    let (rows, cols) = (8, 256);
    let mut values = noise(rows * cols, 11);
    values.iter_mut().step_by(37).for_each(|v| *v *= 4.0);
    let loss = |solved: &Solved| -> f64 {
        values.iter().zip(&solved.values).map(|(a, b)| f64::from((a - b).abs()).powf(0.7)).sum()
    };
    let own = [IntGrid::symmetric(4, 64, ScaleType::BF16, false), IntGrid::asymmetric(3, 128, ScaleType::F16)];
    let blocks = [Dtype::Q4K, Dtype::Q4_1, Dtype::Q5_0].map(|dtype| grid_for(dtype).unwrap());
    for grid in own.iter().map(|grid| grid as &dyn Grid).chain(blocks) {
        let matrix = Matrix { name: "w", values: &values, rows, cols, grid, moments: None };
        let (hqq, rtn) = (solve("hqq", &matrix, 0, Order::Natural), solve("rtn", &matrix, 0, Order::Natural));
        assert!(loss(&hqq) < loss(&rtn), "{}: {} and rounded {}", grid.name(), loss(&hqq), loss(&rtn));
    }
}
