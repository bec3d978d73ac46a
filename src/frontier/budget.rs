//! The size rule of the direct contracts, in f64 and in the order their benchmark computes it.

use serde::Serialize;

use super::contract::Terms;

/// What an artifact may weigh. All figures are bits unless named otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// Bits a parameter may take: `(1 - f) · native + f · rescue`.
    pub bits_per_parameter: f64,
    /// `ceil(reference parameters · bits_per_parameter)`: whatever the model, an artifact may not be larger.
    pub max_reference_bits: u64,
    /// Parameters a model may have.
    pub max_parameters: u64,
}

impl Budget {
    pub fn of(terms: &Terms<'_>) -> Budget {
        let contract = terms.contract;
        let (f, native, rescue) = (contract.max_rescue_fraction, contract.native_bits, terms.rescue.effective_bits());
        let bits_per_parameter = (1.0 - f) * native + f * rescue;
        Budget {
            bits_per_parameter,
            max_reference_bits: bits(contract.reference_parameters, bits_per_parameter),
            max_parameters: contract.max_parameter_multiplier.saturating_mul(contract.reference_parameters),
        }
    }

    /// `ceil(parameters · bits_per_parameter)`: what an artifact of a model of so many parameters may weigh.
    pub fn max_model_bits(&self, parameters: u64) -> u64 {
        bits(parameters, self.bits_per_parameter)
    }
}

fn bits(parameters: u64, per: f64) -> u64 {
    (parameters as f64 * per).ceil() as u64
}

/// Bits of an artifact of so many bytes.
pub fn artifact_bits(bytes: u64) -> u64 {
    bytes.saturating_mul(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontier::Contracts;

    #[test]
    fn budgets_round_up_in_f64() {
        let contracts = Contracts::builtin().unwrap();
        let budget = |id: &str| Budget::of(&contracts.terms(id).unwrap());
        let ternary = budget("qwen3-27b-ternary-frontier");
        assert_eq!(ternary.bits_per_parameter, 2.2125);
        assert_eq!(ternary.max_reference_bits, 59_737_500_000);
        assert_eq!(ternary.max_parameters, 432_000_000_000);
        assert_eq!([1, 2, 3, 80, 149_312].map(|p| ternary.max_model_bits(p)), [3, 5, 7, 177, 330_353]);
        assert_eq!(budget("qwen3-27b-binary-frontier").max_reference_bits, 35_437_500_000);
        // 3.4 is not a double: the sum is a hair larger, and the ceiling shows it.
        assert_eq!(budget("qwen3-06b-ternary-frontier").max_reference_bits, 5_848_000_001);
    }
}
