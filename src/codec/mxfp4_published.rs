//! MXFP4 as published checkpoints store it: 32 four-bit floats (E2M1) that share one power of two (E8M0), the sixteen
//! bytes of a block in one tensor and its scale in another (OCP Microscaling Formats specification 1.0, sections 5.2 to
//! 5.4). In each byte the lower half is the earlier value. GGUF's block type of that name is laid out otherwise.

/// Values of a block.
pub const MXFP4_BLOCK: usize = 32;
/// Bytes of a block, scale excluded.
pub const MXFP4_BYTES: usize = MXFP4_BLOCK / 2;

/// The magnitudes of E2M1; bit 3 of a code is the sign.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Writes the values of whole blocks as bf16, little-endian. Every value is exact in bf16 except those that overflow
/// to infinity; scale 255 (not a number) gives values that are not finite.
///
/// # Panics
/// When the lengths are not those of as many blocks as there are scales.
pub fn mxfp4_to_bf16(blocks: &[u8], scales: &[u8], out: &mut [u8]) {
    assert!(blocks.len() == scales.len() * MXFP4_BYTES && out.len() == scales.len() * MXFP4_BLOCK * 2);
    let (mut known, mut table) = (None, [[0u8; 2]; 16]);
    for ((block, &scale), out) in blocks.as_chunks::<MXFP4_BYTES>().0.iter().zip(scales).zip(out.chunks_exact_mut(64)) {
        if known != Some(scale) {
            (known, table) = (Some(scale), values(scale));
        }
        for (byte, pair) in block.iter().zip(out.as_chunks_mut::<4>().0) {
            let ([a, b], [c, d]) = (table[usize::from(byte & 15)], table[usize::from(byte >> 4)]);
            *pair = [a, b, c, d];
        }
    }
}

/// The sixteen values under a scale, as bf16.
fn values(scale: u8) -> [[u8; 2]; 16] {
    // 2^(scale - 127) in f32: a normal number, the one subnormal power, or infinity for "not a number".
    let power = f32::from_bits(if scale == 0 { 1 << 22 } else { u32::from(scale) << 23 });
    std::array::from_fn(|code| {
        let sign = if code >= 8 { -1.0 } else { 1.0 };
        // Two significant bits: the upper half of the f32 is the whole value.
        (((sign * MAGNITUDES[code % 8] * power).to_bits() >> 16) as u16).to_le_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Vec<f32> {
        let value = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        bytes.as_chunks::<2>().0.iter().map(value).collect()
    }

    #[test]
    fn every_code_under_every_scale_is_its_value() {
        let exact = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
        let block: [u8; 16] = std::array::from_fn(|i| (2 * (i % 8)) as u8 | ((2 * (i % 8) + 1) as u8) << 4);
        for scale in 0..=254u8 {
            let mut out = [0u8; 64];
            mxfp4_to_bf16(&block, &[scale], &mut out);
            for (got, value) in decoded(&out).iter().zip(exact.iter().cycle()) {
                let wanted = f64::from(*value) * (f64::from(scale) - 127.0).exp2();
                let wanted =
                    if wanted.abs() >= 2f64.powi(128) { f32::INFINITY.copysign(*value) } else { wanted as f32 };
                assert_eq!(got.to_bits(), wanted.to_bits(), "{value} under scale {scale}");
            }
        }
        let mut out = [0u8; 64];
        mxfp4_to_bf16(&block, &[255], &mut out);
        assert!(decoded(&out).iter().all(|v| !v.is_finite()));
    }

    #[test]
    fn each_block_has_its_own_scale_and_the_lower_half_comes_first() {
        let mut blocks = [0u8; 32];
        (blocks[0], blocks[31]) = (0x72, 0xf1);
        let mut out = [0u8; 128];
        mxfp4_to_bf16(&blocks, &[127, 130], &mut out);
        let values = decoded(&out);
        assert_eq!((values[0], values[1], values[62], values[63]), (1.0, 6.0, 4.0, -48.0));
        assert!(values[2..62].iter().all(|v| *v == 0.0));
    }
}
