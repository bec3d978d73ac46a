use super::*;

/// Deterministic values with both signs and a wide range of magnitudes.
fn sample(n: usize) -> Vec<f32> {
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
    let values = sample(32 * 50);
    for codec in CODECS {
        let mut bytes = vec![0; codec.dtype().bytes_for(values.len())];
        codec.encode(&values, &mut bytes);
        let mut back = vec![0f32; values.len()];
        codec.decode(&bytes, &mut back);
        for (block, got) in values.chunks(32).zip(back.chunks(32)) {
            let amax = block.iter().fold(0f32, |m, v| m.max(v.abs()));
            let step = match codec.dtype() {
                Dtype::F32 => 0.0,
                Dtype::F16 => amax / 2048.0 + 6e-8,
                Dtype::BF16 => amax / 256.0,
                Dtype::Q8_0 => amax / 127.0 * 0.52,
                _ => amax / 8.0 * 1.01,
            };
            for (a, b) in block.iter().zip(got) {
                assert!((a - b).abs() <= step, "{}: {a} came back as {b}", codec.name());
            }
        }
    }
}

#[test]
fn bf16_input_gives_the_same_bytes_as_f32_input() {
    let mut raw = vec![0; 2 * 32 * 100];
    narrow_to_bf16(&sample(32 * 100), &mut raw);
    let mut wide = vec![0f32; 32 * 100];
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
    assert!(codec_for(Dtype::Q4K).is_none());
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

#[test]
fn every_codec_writes_the_bytes_ggml_writes() {
    let values = floats(&vector("values.f32"));
    for codec in CODECS.iter().filter(|codec| codec.dtype() != Dtype::F32) {
        let expected = vector(&format!("values.{}", codec.name().to_lowercase()));
        let mut bytes = vec![0; expected.len()];
        codec.encode(&values, &mut bytes);
        let block = codec.dtype().block_bytes();
        for (i, (ours, theirs)) in bytes.chunks(block).zip(expected.chunks(block)).enumerate() {
            assert_eq!(ours, theirs, "{}: block {i}", codec.name());
        }
        if codec.dtype().block_elems() > 1 {
            let back = floats(&vector(&format!("values.{}.back.f32", codec.name().to_lowercase())));
            let mut ours = vec![0f32; values.len()];
            codec.decode(&bytes, &mut ours);
            assert_eq!(ours, back, "{}", codec.name());
        }
    }
}
