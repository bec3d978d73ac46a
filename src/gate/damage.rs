//! The damage gate: whether what a prune would cost, measured before it writes, is within what the recipe allows.

use super::{Evidence, GateError};

/// What was measured on held-out text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DamageFigures {
    pub positions: usize,
    /// Mean KL divergence from the base, nats per token, and its standard error.
    pub kld: f64,
    pub kld_stderr: f64,
    pub base_perplexity: f64,
    pub perplexity: f64,
}

/// What a recipe allows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DamageLimit {
    /// Highest mean KL divergence, nats per token.
    pub max_kld: Option<f64>,
    /// Refuse when perplexity rises by more than [`HALT_RATIO`] and by more than [`HALT_RISE`].
    pub quality_halt: bool,
}

/// Of perplexities, pruned over base.
pub const HALT_RATIO: f64 = 1.10;
/// Perplexity, absolute.
pub const HALT_RISE: f64 = 1.0;

/// Holds figures against their limits. Figures that are not numbers pass nothing.
pub fn judge_damage(subject: &str, figures: DamageFigures, limit: DamageLimit) -> Result<Evidence, GateError> {
    let DamageFigures { positions, kld, kld_stderr, base_perplexity, perplexity } = figures;
    let refuse = |why: String| Err(GateError::Damage { subject: subject.to_owned(), why });
    let measured = format!(
        "KL divergence {kld:.4} ± {kld_stderr:.4} nats per token and perplexity {base_perplexity:.3} → {perplexity:.3} \
         on {positions} held-out positions"
    );
    if !kld.is_finite() || !perplexity.is_finite() {
        return refuse(format!("{measured}: not a number"));
    }
    if let Some(most) = limit.max_kld.filter(|&most| kld > most) {
        return refuse(format!("{measured}: above maxKld {most}"));
    }
    let rise = perplexity - base_perplexity;
    if limit.quality_halt && perplexity > HALT_RATIO * base_perplexity && rise > HALT_RISE {
        return refuse(format!(
            "{measured}: more than {HALT_RATIO} times and {HALT_RISE} above the base (qualityHalt)"
        ));
    }
    let mut evidence = Evidence::passed("damage", subject)
        .with("positions", positions)
        .with("kld", kld)
        .with("kld_stderr", kld_stderr)
        .with("base_perplexity", base_perplexity)
        .with("perplexity", perplexity)
        .with("quality_halt", limit.quality_halt);
    if let Some(most) = limit.max_kld {
        evidence = evidence.with("max_kld", most);
    }
    Ok(evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(kld: f64, perplexity: f64, limit: DamageLimit) -> Result<Evidence, String> {
        let figures = DamageFigures { positions: 100, kld, kld_stderr: 0.01, base_perplexity: 8.0, perplexity };
        judge_damage("pruned", figures, limit).map_err(|e| e.to_string())
    }

    #[test]
    fn the_limits_of_the_recipe_decide() {
        let none = DamageLimit::default();
        assert!(judge(5.0, 99.0, none).unwrap().passed);
        let both = DamageLimit { max_kld: Some(0.5), quality_halt: true };
        assert!(judge(0.5, 8.9, both).is_ok());
        insta::assert_snapshot!(judge(0.51, 8.1, both).unwrap_err(), @"pruned: KL divergence 0.5100 ± 0.0100 nats per token and perplexity 8.000 → 8.100 on 100 held-out positions: above maxKld 0.5");
        insta::assert_snapshot!(judge(0.1, 9.1, both).unwrap_err(), @"pruned: KL divergence 0.1000 ± 0.0100 nats per token and perplexity 8.000 → 9.100 on 100 held-out positions: more than 1.1 times and 1 above the base (qualityHalt)");
        assert!(judge(f64::NAN, 8.0, none).is_err());
    }

    #[test]
    fn a_small_rise_of_a_small_perplexity_is_no_halt() {
        let halt = DamageLimit { max_kld: None, quality_halt: true };
        let figures = DamageFigures { positions: 9, kld: 0.1, kld_stderr: 0.0, base_perplexity: 2.0, perplexity: 2.9 };
        assert!(judge_damage("p", figures, halt).is_ok());
    }
}
