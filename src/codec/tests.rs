use super::*;

mod grids;

/// Deterministic values with both signs and a wide range of magnitudes.
pub(super) fn sample(n: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let unit = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            unit * 2f32.powi((state & 15) as i32 - 12)
        })
        .collect()
}

#[test]
fn every_codec_round_trips_within_its_step() {
    let values = sample(256 * 50);
    for codec in CODECS {
        let (size, back) = there_and_back(*codec, &values);
        assert_eq!(size, codec.dtype().bytes_for(values.len()));
        let block = codec.dtype().block_elems().max(32);
        for (block, got) in values.chunks(block).zip(back.chunks(block)) {
            let amax = block.iter().fold(0f32, |m, v| m.max(v.abs()));
            let step = amax * of_the_largest(codec.dtype()) + if codec.dtype() == Dtype::F16 { 6e-8 } else { 0.0 };
            for (a, b) in block.iter().zip(got) {
                assert!((a - b).abs() <= step, "{}: {a} came back as {b}, largest {amax}", codec.name());
            }
        }
    }
}

/// The largest error over the largest magnitude of a block. Searches may sacrifice one value for the others.
fn of_the_largest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => 0.0,
        Dtype::F16 => 1.0 / 2048.0,
        Dtype::BF16 => 1.0 / 256.0,
        Dtype::Q8_0 => 0.54 / 127.0,
        Dtype::Q4_0 | Dtype::Q4_1 => 1.01 / 8.0,
        Dtype::Q5_0 | Dtype::Q5_1 => 1.01 / 16.0,
        Dtype::Q6K => 0.05,
        Dtype::Q5K => 0.08,
        Dtype::Q4K | Dtype::Iq4Nl | Dtype::Iq4Xs => 0.17,
        Dtype::Q3K | Dtype::Mxfp4 => 0.34,
        Dtype::Q2K => 0.5,
        _ => 1.0,
    }
}

/// Bytes and values after encoding and decoding.
fn there_and_back(codec: &dyn Codec, values: &[f32]) -> (usize, Vec<f32>) {
    let mut bytes = vec![0; codec.dtype().bytes_for(values.len())];
    codec.encode(values, &mut bytes);
    let mut back = vec![0f32; values.len()];
    codec.decode(&bytes, &mut back);
    (bytes.len(), back)
}

#[test]
fn zeros_stay_zero_and_one_huge_value_stays_finite() {
    for codec in CODECS {
        let (_, back) = there_and_back(*codec, &[0.0; 512]);
        assert!(back.iter().all(|&v| v == 0.0), "{}", codec.name());
        for sign in [1.0, -1.0] {
            let mut values = [0f32; 512];
            values[300] = sign * codec.max_magnitude();
            let (_, back) = there_and_back(*codec, &values);
            let off = (back[300] / values[300] - 1.0).abs();
            assert!(off < 0.26, "{}: {} came back as {}", codec.name(), values[300], back[300]);
            assert!(back[..256].iter().all(|&v| v == 0.0), "{}: the other block", codec.name());
            let importance = [1f32; 512];
            let mut bytes = vec![0; codec.dtype().bytes_for(512)];
            codec.encode_weighted(&values, &importance, &mut bytes);
            let mut weighted = [0f32; 512];
            codec.decode(&bytes, &mut weighted);
            assert!(weighted.iter().all(|v| v.is_finite()), "{}: with importance", codec.name());
        }
    }
}

/// Holds what runs on this machine against the same body compiled for any.
pub(super) fn same_everywhere(
    codec: &dyn Codec,
    encode: fn(&[f32], Option<&[f32]>, &mut [u8]),
    decode: fn(&[u8], &mut [f32]),
) {
    let values = sample(256 * 20);
    let importance: Vec<f32> = sample(256 * 20).iter().map(|v| v * v).collect();
    let size = codec.dtype().bytes_for(values.len());
    for importance in [None, Some(&importance[..])] {
        let (mut here, mut anywhere) = (vec![0; size], vec![1; size]);
        match importance {
            None => codec.encode(&values, &mut here),
            Some(importance) => codec.encode_weighted(&values, importance, &mut here),
        }
        encode(&values, importance, &mut anywhere);
        assert_eq!(here, anywhere, "{}", codec.name());
        let (mut back, mut back_anywhere) = (vec![0f32; values.len()], vec![1f32; values.len()]);
        codec.decode(&here, &mut back);
        decode(&here, &mut back_anywhere);
        assert_eq!(back, back_anywhere, "{}", codec.name());
    }
}

#[test]
fn bf16_input_gives_the_same_bytes_as_f32_input() {
    let mut raw = vec![0; 2 * 256 * 12];
    narrow_to_bf16(&sample(256 * 12), &mut raw);
    let mut wide = vec![0f32; 256 * 12];
    widen_bf16(&raw, &mut wide);
    for codec in CODECS {
        let size = codec.dtype().bytes_for(wide.len());
        let (mut direct, mut via) = (vec![0; size], vec![1; size]);
        codec.encode_bf16(&raw, &mut direct);
        codec.encode(&wide, &mut via);
        assert_eq!(direct, via, "{}", codec.name());
    }
}

#[test]
fn names_sizes_and_lookup_agree() {
    for codec in CODECS {
        assert_eq!(Dtype::named(codec.name()), Some(codec.dtype()));
        assert!(codec_named(&codec.name().to_lowercase()).is_some());
        assert!(!codec.summary().is_empty());
    }
    assert_eq!(Dtype::Q8_0.bits(), 8.5);
    assert_eq!(Dtype::Q4_0.bytes_for(64), 36);
    assert_eq!(Dtype::Q4_0.checked_bytes(&[3, 48]), None);
    assert_eq!(Dtype::F32.checked_bytes(&[usize::MAX, 3]), None);
    assert_eq!(Dtype::BF16.checked_bytes(&[]), Some(2));
    assert!(codec_for(Dtype::Iq2Xxs).is_none());
}

#[test]
fn the_first_bad_value_is_found() {
    let mut values = vec![1f32; 1000];
    assert_eq!(first_non_finite(&values), None);
    values[700] = f32::NAN;
    values[701] = f32::INFINITY;
    assert_eq!(first_non_finite(&values), Some(700));
    values[3] = -70000.0;
    assert_eq!(first_beyond(&values, 65504.0), Some(3));
}

#[test]
fn bf16_rounds_to_nearest_even_like_half() {
    let values: Vec<f32> = (0..4096u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x1357)).collect();
    let mut raw = vec![0; 2 * values.len()];
    narrow_to_bf16(&values, &mut raw);
    for (value, pair) in values.iter().zip(raw.as_chunks::<2>().0) {
        assert_eq!(half::bf16::from_f32(*value).to_le_bytes(), *pair);
    }
}

#[test]
fn half_away_rounding_and_ties_of_magnitude() {
    // 127 fixes the scale at 1, so the others are the quotients themselves.
    let mut block = [0f32; 32];
    block[..6].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, -2.5, 0.499_999_97]);
    let mut bytes = [0u8; 34];
    quantize_q8_0(&block, &mut bytes);
    assert_eq!(bytes[2..8].iter().map(|b| *b as i8).collect::<Vec<_>>(), [127, 1, -1, 2, -3, 0]);

    let mut block = [0f32; 32];
    (block[4], block[9]) = (-8.0, 8.0);
    let mut bytes = [0u8; 18];
    quantize_q4_0(&block, &mut bytes);
    assert_eq!(half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(), 1.0);
    (block[4], block[9]) = (8.0, -8.0);
    quantize_q4_0(&block, &mut bytes);
    assert_eq!(half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(), -1.0);
}

/// One file of the vectors that `scripts/make_codec_vectors.py` writes with gguf's own quantizers.
fn vector(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/codec").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(raw: &[u8]) -> Vec<f32> {
    raw.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect()
}

/// Names of formats whose scales are prescribed.
const EXACT: [&str; 8] = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"];

#[test]
fn prescribed_formats_write_the_bytes_ggml_writes() {
    for name in EXACT {
        assert_same_bytes(name, "values");
    }
    for name in ["TQ1_0", "TQ2_0", "Q2_0"] {
        assert_same_bytes(name, "ternary");
    }
}

fn assert_same_bytes(name: &str, stem: &str) {
    let codec = codec_named(name).unwrap();
    let values = floats(&vector(&format!("{stem}.f32")));
    let expected = vector(&format!("{stem}.{}", name.to_lowercase()));
    let mut bytes = vec![0; expected.len()];
    codec.encode(&values, &mut bytes);
    let block = codec.dtype().block_bytes();
    for (i, (ours, theirs)) in bytes.chunks(block).zip(expected.chunks(block)).enumerate() {
        assert_eq!(ours, theirs, "{name}: block {i}");
    }
}

#[test]
fn every_block_format_reads_as_ggml_does_to_the_bit() {
    for codec in CODECS.iter().filter(|codec| codec.dtype().block_elems() > 1) {
        let stem = format!("blocks.{}", codec.name().to_lowercase());
        let (raw, expected) = (vector(&stem), floats(&vector(&format!("{stem}.f32"))));
        let mut ours = vec![0f32; expected.len()];
        codec.decode(&raw, &mut ours);
        for (i, (ours, theirs)) in ours.iter().zip(&expected).enumerate() {
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{}: element {i}: {ours}, not {theirs}", codec.name());
        }
    }
}

#[test]
fn searches_leave_no_more_error_than_ggmls() {
    let (rows, importance) = (floats(&vector("rows.f32")), floats(&vector("importance.f32")));
    let theirs: serde_json::Value = serde_json::from_slice(&vector("errors.json")).unwrap();
    let mut seen = 0;
    for (name, kinds) in theirs.as_object().unwrap() {
        let codec = codec_named(name).unwrap();
        for (kind, list) in kinds.as_object().unwrap() {
            let importance = (kind == "importance").then_some(&importance[..]);
            let theirs: Vec<f64> = list.as_array().unwrap().iter().map(|e| e.as_f64().unwrap()).collect();
            let ours: Vec<f64> = rows.chunks(256).map(|row| relative_error(codec, row, importance)).collect();
            assert_eq!(ours.len(), theirs.len());
            let (sum, limit) = (ours.iter().sum::<f64>(), theirs.iter().sum::<f64>());
            assert!(sum <= limit, "{name}, {kind}: {sum} over all blocks, ggml leaves {limit}");
            let better = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours <= theirs).count();
            assert!(2 * better > ours.len(), "{name}, {kind}: {better} of {} blocks are no worse", ours.len());
            seen += 1;
        }
    }
    assert_eq!(seen, 24, "ten formats both ways, four with an importance only");
}

/// Σ w (x − x')² / Σ w x².
fn relative_error(codec: &dyn Codec, row: &[f32], importance: Option<&[f32]>) -> f64 {
    let mut bytes = vec![0; codec.dtype().bytes_for(row.len())];
    match importance {
        None => codec.encode(row, &mut bytes),
        Some(importance) => codec.encode_weighted(row, importance, &mut bytes),
    }
    let mut back = vec![0f32; row.len()];
    codec.decode(&bytes, &mut back);
    let (mut off, mut all) = (0.0, 0.0);
    for (i, (x, y)) in row.iter().zip(&back).enumerate() {
        let weight = importance.map_or(1.0, |w| f64::from(w[i]));
        off += weight * f64::from(x - y).powi(2);
        all += weight * f64::from(*x).powi(2);
    }
    off / all
}

#[test]
fn an_importance_moves_error_away_from_the_columns_that_matter() {
    let rows = floats(&vector("rows.f32"));
    let importance: Vec<f32> = (0..256).map(|i| if i % 8 == 0 { 100.0 } else { 1.0 }).collect();
    for name in ["Q4_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "TQ2_0", "Q2_0"] {
        let codec = codec_named(name).unwrap();
        let weighted: f64 = rows.chunks(256).map(|row| relative_error(codec, row, Some(&importance))).sum();
        let blind: f64 = rows
            .chunks(256)
            .map(|row| {
                let (_, back) = there_and_back(codec, row);
                let sum = |f: &dyn Fn(usize) -> f64| (0..256).map(|i| f64::from(importance[i]) * f(i)).sum::<f64>();
                sum(&|i| f64::from(row[i] - back[i]).powi(2)) / sum(&|i| f64::from(row[i]).powi(2))
            })
            .sum();
        assert!(weighted < blind, "{name}: {weighted} with the importance, {blind} without");
    }
}
