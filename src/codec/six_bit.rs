//! The twelve bytes that hold eight 6-bit scales and eight 6-bit offsets in Q4_K and Q5_K.
//!
//! Bytes 0–3 and 4–7: scales and offsets 0–3 in the low six bits, and the top two bits of scales and offsets 4–7. Bytes
//! 8–11: the low four bits of scales 4–7 in the low and of offsets 4–7 in the high nibble.

#[inline(always)]
pub(super) fn pack(scales: &[u8; 8], offsets: &[u8; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        out[j] = scales[j] | (scales[j + 4] >> 4 << 6);
        out[j + 4] = offsets[j] | (offsets[j + 4] >> 4 << 6);
        out[j + 8] = (scales[j + 4] & 15) | (offsets[j + 4] << 4);
    }
    out
}

#[inline(always)]
pub(super) fn unpack(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut offsets) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        offsets[j] = packed[j + 4] & 63;
        scales[j + 4] = (packed[j + 8] & 15) | (packed[j] >> 6 << 4);
        offsets[j + 4] = (packed[j + 8] >> 4) | (packed[j + 4] >> 6 << 4);
    }
    (scales, offsets)
}
