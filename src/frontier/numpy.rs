//! numpy's default random generator, as far as the choice of documents needs it: `SeedSequence`, PCG64 (XSL-RR 128/64)
//! and `Generator.permutation`, to the bit.
//!
//! Sources: M. E. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number
//! Generation" (2014) and "Developing a seed_seq Alternative" (2015).

/// `numpy.random.default_rng(seed)`.
pub struct Generator {
    state: u128,
    increment: u128,
    /// The upper half of a 64-bit output of which the lower half was used.
    spare: Option<u32>,
}

const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

impl Generator {
    pub fn new(seed: u64) -> Generator {
        let [state_high, state_low, sequence_high, sequence_low] = seed_words(seed);
        let join = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let mut generator = Generator { state: 0, increment: join(sequence_high, sequence_low) << 1 | 1, spare: None };
        generator.step();
        generator.state = generator.state.wrapping_add(join(state_high, state_low));
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// Halves of 64-bit outputs, the lower one first.
    fn next_u32(&mut self) -> u32 {
        if let Some(upper) = self.spare.take() {
            return upper;
        }
        let both = self.next_u64();
        self.spare = Some((both >> 32) as u32);
        both as u32
    }

    /// Uniform in `0..=most`: the low bits of a draw, drawn again while they are too many.
    fn at_most(&mut self, most: u32) -> u32 {
        let mask = u32::MAX.checked_shr(most.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next_u32() & mask;
            if value <= most {
                return value;
            }
        }
    }

    /// `Generator.permutation(count)`: the numbers from 0 on, shuffled from the end. Counts stay below 2³².
    pub fn permutation(&mut self, count: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count as usize).collect();
        for i in (1..count).rev() {
            let j = self.at_most(i);
            order.swap(i as usize, j as usize);
        }
        order
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_words(seed: u64) -> [u64; 4] {
    const INIT_A: u32 = 0x43b0_d7e5;
    const MULT_A: u32 = 0x931e_8875;
    const INIT_B: u32 = 0x8b51_f9dd;
    const MULT_B: u32 = 0x58f3_8ded;
    const MIX_LEFT: u32 = 0xca01_f9dd;
    const MIX_RIGHT: u32 = 0x4973_f715;
    let mut constant = INIT_A;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(MULT_A);
        let value = value.wrapping_mul(constant);
        value ^ value >> 16
    };
    let mix = |x: u32, y: u32| {
        let value = MIX_LEFT.wrapping_mul(x).wrapping_sub(MIX_RIGHT.wrapping_mul(y));
        value ^ value >> 16
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hash);
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                pool[to] = mix(pool[to], hash(pool[from]));
            }
        }
    }
    let mut constant = INIT_B;
    let mut words = [0u32; 8];
    for (i, word) in words.iter_mut().enumerate() {
        let value = pool[i % 4] ^ constant;
        constant = constant.wrapping_mul(MULT_B);
        let value = value.wrapping_mul(constant);
        *word = value ^ value >> 16;
    }
    std::array::from_fn(|i| u64::from(words[2 * i]) | u64::from(words[2 * i + 1]) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_numpys() {
        // numpy.random.default_rng(5133336336658459743).permutation(60)[:16]
        let order = Generator::new(5_133_336_336_658_459_743).permutation(60);
        assert_eq!(order[..16], [55, 12, 19, 35, 14, 17, 34, 46, 49, 22, 10, 57, 9, 54, 31, 44]);
        assert_eq!(Generator::new(0).permutation(10), [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]);
        assert_eq!(Generator::new(1).permutation(7), [5, 0, 1, 4, 2, 6, 3]);
        assert_eq!(Generator::new((1 << 63) + 5).permutation(9), [1, 3, 2, 7, 8, 5, 0, 4, 6]);
        assert_eq!(Generator::new(7).permutation(100_000)[..4], [45070, 71435, 99538, 45453]);
        assert_eq!(Generator::new(0).permutation(1), [0]);
        assert!(Generator::new(0).permutation(0).is_empty());
    }
}
