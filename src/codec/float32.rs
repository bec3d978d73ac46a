//! F32: stored as it is.

use super::{Codec, Dtype, widen_plain};

pub struct F32;

impl Codec for F32 {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn summary(&self) -> &'static str {
        "32-bit float, lossless"
    }
    fn max_magnitude(&self) -> f32 {
        f32::MAX
    }
    fn encode(&self, values: &[f32], bytes: &mut [u8]) {
        assert_eq!(bytes.len(), 4 * values.len(), "four bytes per F32 value");
        for (value, raw) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
            *raw = value.to_le_bytes();
        }
    }
    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        widen_plain(Dtype::F32, bytes, values);
    }
}
