//! The smallest file whose measured divergence keeps within a limit: written, measured, and chosen anew on a scale
//! corrected by what was found.

use super::mixed::{File, Mixed, Round};
use crate::compress::Picks;
use crate::fault::{Fault, Outcome};
use crate::recipe::stages::QuantAim;
use crate::stage::Span;
use crate::stage::quant::Written;

/// Files written at most, as long as one keeps within the limit.
pub(super) const ROUNDS: usize = 5;
/// Files written at most when none has kept within it yet; the last is the best that there is.
const LAST_ROUND: usize = 8;
/// A file that uses this much of the limit is good enough.
const NEAR: f64 = 0.95;

/// Expected losses that were tried: the largest that kept within the limit, the smallest that did not.
struct Bracket {
    kept: f64,
    missed: f64,
}

impl Bracket {
    /// What to try after a file that was expected to lose `expected` and lost `measured`: the limit on the same scale,
    /// a little to the safe side, between what is known.
    fn next(&mut self, expected: f64, measured: f64, most: f64) -> f64 {
        let safe = if measured <= most {
            self.kept = self.kept.max(expected);
            0.99
        } else {
            self.missed = self.missed.min(expected);
            0.97
        };
        let next = expected * most / measured.max(1e-12) * safe;
        match (next <= self.kept, next >= self.missed) {
            (false, false) => next,
            _ if self.kept > 0.0 && self.missed.is_finite() => (self.kept * self.missed).sqrt(),
            (true, _) => self.kept * 1.1,
            _ => self.missed * 0.8,
        }
    }

    fn is_closed(&self) -> bool {
        self.missed < 1.02 * self.kept
    }
}

/// The smallest file that loses at most `most` nats per token.
pub(super) fn smallest(mixed: &Mixed<'_>, aim: QuantAim, most: f64, span: Span<'_>) -> Outcome<Written> {
    let out = mixed.cx.work.join(mixed.writing.out);
    let kept = mixed.cx.work.join(format!("{}.kept", mixed.writing.out));
    let moved = |from: &std::path::Path, to: &std::path::Path| {
        let failed = |e| Fault::infra(format!("rename {} to {}", from.display(), to.display())).caused_by(e);
        std::fs::rename(from, to).map_err(failed)
    };
    let finest = mixed.within(u64::MAX)?;
    let (mut tried, mut rounds): (Vec<Picks>, Vec<Round>) = (Vec::new(), Vec::new());
    let mut best: Option<(Picks, File)> = None;
    let mut bracket = Bracket { kept: 0.0, missed: f64::INFINITY };
    // Rounding alone, which costs no file, tells the scale of the first.
    let first = mixed.expected(most)?;
    let scale = mixed.rounded(&first, span.part(0.0, 0.05))? / first.loss.max(1e-12);
    let mut aimed = most / scale.max(1e-12);
    for nth in 0..LAST_ROUND {
        let is_last = nth + 1 == LAST_ROUND;
        let picks = if is_last && best.is_none() { finest.clone() } else { mixed.expected(aimed)? };
        if tried.contains(&picks) || (best.is_some() && nth >= ROUNDS) {
            break;
        }
        let share = |nth: usize| 0.05 + 0.95 * (nth as f64 / ROUNDS as f64).min(1.0);
        let file = mixed.write(aim, &picks, span.part(share(nth), share(nth + 1)))?;
        let measured = file.loss.kld;
        rounds.push(Round { bytes: file.written.bytes, expected: picks.loss, measured });
        aimed = bracket.next(picks.loss, measured, most);
        if measured > most && picks == finest {
            break;
        }
        tried.push(picks.clone());
        if measured <= most && best.as_ref().is_none_or(|(_, known)| file.written.bytes < known.written.bytes) {
            moved(&out, &kept)?;
            best = Some((picks, file));
        }
        if best.is_some() && (bracket.is_closed() || (NEAR * most..=most).contains(&measured)) {
            break;
        }
    }
    let Some((picks, file)) = best else {
        let least = rounds.iter().min_by(|a, b| a.measured.total_cmp(&b.measured));
        let (kld, bytes) = least.map_or((f64::NAN, 0), |round| (round.measured, round.bytes));
        let message = format!(
            "no file of these types keeps within {most} nats per token: the best loses {kld:.6}, in {bytes} bytes"
        );
        return Err(Fault::quality(message).hint("raise maxKld, or add larger types to quantTypes"));
    };
    moved(&kept, &out)?;
    let details = mixed.details(aim, &picks, &file, &rounds);
    Ok(Written { details, ..file.written })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_corrected_and_what_is_known_is_kept() {
        let mut bracket = Bracket { kept: 0.0, missed: f64::INFINITY };
        // Twice as bad as expected.
        assert!((bracket.next(0.1, 0.2, 0.1) - 0.05 * 0.97).abs() < 1e-12);
        // Good enough: more may be lost, but not what was too much.
        let next = bracket.next(0.05, 0.06, 0.1);
        assert!(next > 0.05 && next < 0.1, "{next}");
        let next = bracket.next(0.08, 0.02, 0.1);
        assert!((next - (0.08f64 * 0.1).sqrt()).abs() < 1e-12, "{next}");
        assert!(!bracket.is_closed());
        bracket.next(0.0995, 0.09, 0.1);
        assert!(bracket.is_closed());
    }
}
