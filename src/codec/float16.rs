//! F16: IEEE 754 half precision, rounded to nearest even.

use half::slice::HalfFloatSliceExt;

use super::{Codec, Dtype, widen_f16};

pub struct F16;

impl Codec for F16 {
    fn dtype(&self) -> Dtype {
        Dtype::F16
    }
    fn summary(&self) -> &'static str {
        "16-bit IEEE float; small bf16 weights lose bits, values above 65504 do not fit"
    }
    fn max_magnitude(&self) -> f32 {
        65504.0
    }
    fn encode(&self, values: &[f32], bytes: &mut [u8]) {
        assert_eq!(bytes.len(), 2 * values.len(), "two bytes per F16 value");
        const CHUNK: usize = 1024;
        let mut halves = [half::f16::ZERO; CHUNK];
        for (values, bytes) in values.chunks(CHUNK).zip(bytes.chunks_mut(2 * CHUNK)) {
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            for (half, raw) in halves.iter().zip(bytes.as_chunks_mut::<2>().0) {
                *raw = half.to_le_bytes();
            }
        }
    }
    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        widen_f16(bytes, values);
    }
}
