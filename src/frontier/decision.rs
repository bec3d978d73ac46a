//! Whether an artifact that was accepted replaces the best so far.
//!
//! Only prose tells of this rule, so this is a reading of it, not a fact: with d the difference of cross-entropies
//! (ln of perplexities) in nats, new minus best,
//! 1. d below minus the resolution: a new best;
//! 2. else, d within the resolution and fewer bytes: the smaller artifact may replace the best;
//! 3. else: no.
//!
//! Not known: what happens at exactly the resolution (here: inside), whether the band is anchored to the present best or
//! to the best ever, and which size is compared (here: the artifact's bytes).

use serde::Serialize;

use super::contract::Contract;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Standing {
    pub perplexity: f64,
    pub bytes: u64,
}

/// How a comparison ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Better by more than the resolution, or the first.
    NewBest,
    /// As good, and smaller.
    MayReplace,
    No,
}

/// Compares by the reading above.
pub fn decide(contract: &Contract, best: Option<Standing>, new: Standing) -> Decision {
    let Some(best) = best else { return Decision::NewBest };
    let d = new.perplexity.ln() - best.perplexity.ln();
    if d < -contract.resolution_nats {
        Decision::NewBest
    } else if d <= contract.resolution_nats && new.bytes < best.bytes && contract.smaller_inside_band_wins {
        Decision::MayReplace
    } else {
        Decision::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontier::Contracts;

    #[test]
    fn case_21_the_band_decides_and_size_breaks_ties() {
        let contracts = Contracts::builtin().unwrap();
        let contract = contracts.terms("qwen3-27b-ternary-frontier").unwrap().contract;
        let best = Standing { perplexity: 240.0, bytes: 1000 };
        let at = |d: f64, bytes| decide(contract, Some(best), Standing { perplexity: (240f64.ln() + d).exp(), bytes });
        assert_eq!(at(-0.03, 2000), Decision::NewBest);
        assert_eq!(at(0.01, 999), Decision::MayReplace);
        assert_eq!(at(-0.01, 1000), Decision::No);
        assert_eq!(at(-0.01, 999), Decision::MayReplace);
        assert_eq!(at(0.01, 1001), Decision::No);
        assert_eq!(at(0.03, 1), Decision::No);
        assert_eq!(at(f64::NAN, 1), Decision::No);
        assert_eq!(decide(contract, None, best), Decision::NewBest);
        // The kernel contract does not promise that smaller wins.
        let kernel = contracts.terms("qwen3-06b-binary-kernel").unwrap().contract;
        assert_eq!(decide(kernel, Some(best), Standing { perplexity: 240.0, bytes: 1 }), Decision::No);
    }
}
