//! Whole numbers of 1 to 8 bits packed without gaps: number i lies at bits `i · bits` of a little-endian run of bytes, as
//! compressed-tensors and MLX keep theirs in 32-bit words.

/// Bytes of the whole 32-bit words that hold `count` numbers.
pub fn packed_bytes(count: usize, bits: usize) -> usize {
    (count * bits).div_ceil(32) * 4
}

/// Reads `numbers.len()` numbers.
///
/// # Panics
/// When `packed` is shorter than they are, or `bits` is not within 1 … 8.
pub fn unpack_ints(packed: &[u8], bits: usize, numbers: &mut [u8]) {
    assert!((1..=8).contains(&bits) && packed.len() * 8 >= numbers.len() * bits, "numbers lie within the bytes");
    if bits == 4 {
        for (pair, byte) in numbers.chunks_mut(2).zip(packed) {
            pair.iter_mut().zip([byte & 15, byte >> 4]).for_each(|(number, half)| *number = half);
        }
        return;
    }
    let mask = ((1u16 << bits) - 1) as u8;
    for (i, number) in numbers.iter_mut().enumerate() {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let next = packed.get(byte + 1).copied().unwrap_or(0);
        *number = (u16::from_le_bytes([packed[byte], next]) >> shift) as u8 & mask;
    }
}

/// Writes `numbers`, each below `2^bits`; what is left of `packed` becomes zero.
///
/// # Panics
/// When `packed` has no room for them, or `bits` is not within 1 … 8.
pub fn pack_ints(numbers: &[u8], bits: usize, packed: &mut [u8]) {
    assert!((1..=8).contains(&bits) && packed.len() * 8 >= numbers.len() * bits, "numbers lie within the bytes");
    packed.fill(0);
    for (i, number) in numbers.iter().enumerate() {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let [low, high] = (u16::from(*number) << shift).to_le_bytes();
        packed[byte] |= low;
        if high != 0 {
            packed[byte + 1] |= high;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(bits in 1usize..=8, seed in prop::collection::vec(any::<u8>(), 0..100)) {
            let numbers: Vec<u8> = seed.iter().map(|n| (u16::from(*n) & ((1 << bits) - 1)) as u8).collect();
            let mut packed = vec![0xff; packed_bytes(numbers.len(), bits)];
            pack_ints(&numbers, bits, &mut packed);
            let mut read = vec![0xff; numbers.len()];
            unpack_ints(&packed, bits, &mut read);
            prop_assert_eq!(read, numbers);
        }
    }
}
