//! The arithmetic of a budget: one offer of every item, so that the losses add up to least within so many bytes.
//!
//! The losses are a plain sum, so Lagrange's relaxation falls apart into one choice per item, `min loss + λ · bytes`
//! (Everett 1963; Shoham and Gersho 1988 for bits). Lowering λ from infinity raises the items one step at a time along
//! the lower convex hulls of their offers, the step that saves most loss per byte first. What the first step too large
//! leaves of the budget is filled with smaller ones, off the hulls too, and with exchanges between two items.
//! Every order is fixed: the same offers give the same picks.

/// One way to store an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    pub bytes: u64,
    /// What it costs in quality; not negative, finite.
    pub loss: f64,
}

/// One offer for every item.
#[derive(Clone, Debug, PartialEq)]
pub struct Picks {
    /// The number of the offer taken, by item.
    pub offers: Vec<usize>,
    pub bytes: u64,
    pub loss: f64,
}

/// Exchanges after the greedy choice, at most: each lowers the loss, and a few dozen are what it takes.
const MOST_MOVES: usize = 64;

/// The picks of least loss within `most` bytes; `None` when the smallest offers together take more. Items have at least
/// one offer.
pub fn least_loss(items: &[Vec<Offer>], most: u64) -> Option<Picks> {
    let mut picks = smallest(items);
    if picks.bytes > most {
        return None;
    }
    let mut passed_over = vec![false; items.len()];
    for step in steps(items) {
        if passed_over[step.item] || picks.bytes + step.bytes > most {
            // Later steps of the item start where this one would have ended.
            passed_over[step.item] = true;
        } else {
            picks.take(items, step.item, step.to);
        }
    }
    let tiny = 1e-12 * (1.0 + picks.loss);
    picks.improve(items, |bytes, loss| if bytes > most as i64 { None } else { Some(-loss) }, tiny);
    Some(picks)
}

/// The picks of fewest bytes whose losses add up to `most` or less; `None` when no picks do.
pub fn least_bytes(items: &[Vec<Offer>], most: f64) -> Option<Picks> {
    let mut picks = smallest(items);
    for step in steps(items) {
        if picks.loss <= most {
            break;
        }
        picks.take(items, step.item, step.to);
    }
    if picks.loss > most {
        return None;
    }
    picks.improve(items, |bytes, loss| if loss > most { None } else { Some(-bytes as f64) }, 0.5);
    Some(picks)
}

/// The fewest bytes that offers of these items can take together, and the most.
pub fn reach(items: &[Vec<Offer>]) -> (u64, u64) {
    let sum = |pick: &dyn Fn(&[Offer]) -> Option<u64>| items.iter().filter_map(|offers| pick(offers)).sum();
    (sum(&|offers| offers.iter().map(|o| o.bytes).min()), sum(&|offers| offers.iter().map(|o| o.bytes).max()))
}

/// The smallest offer of every item, the better one of equals.
fn smallest(items: &[Vec<Offer>]) -> Picks {
    let first = |offers: &Vec<Offer>| {
        let order = |&a: &usize, &b: &usize| {
            offers[a].bytes.cmp(&offers[b].bytes).then(offers[a].loss.total_cmp(&offers[b].loss))
        };
        (0..offers.len()).min_by(order).unwrap_or(0)
    };
    let mut picks = Picks { offers: items.iter().map(first).collect(), bytes: 0, loss: 0.0 };
    picks.count(items);
    picks
}

/// A step up along the hull of an item.
struct Step {
    item: usize,
    to: usize,
    bytes: u64,
    /// Loss saved for each byte.
    slope: f64,
}

/// The steps of all hulls, the steepest first; those of one item in their order.
fn steps(items: &[Vec<Offer>]) -> Vec<Step> {
    let mut all = Vec::new();
    for (item, offers) in items.iter().enumerate() {
        let mut at = smallest(std::slice::from_ref(offers)).offers[0];
        while let Some(step) = next_step(item, offers, at) {
            at = step.to;
            all.push(step);
        }
    }
    all.sort_by(|a, b| b.slope.total_cmp(&a.slope));
    all
}

/// From an offer the one that saves most per byte, the largest of equals.
fn next_step(item: usize, offers: &[Offer], at: usize) -> Option<Step> {
    let mut best: Option<Step> = None;
    for (to, offer) in offers.iter().enumerate() {
        let (Some(bytes), saved) = (offer.bytes.checked_sub(offers[at].bytes), offers[at].loss - offer.loss) else {
            continue;
        };
        let slope = saved / bytes as f64;
        let better = |b: &Step| slope > b.slope || (slope == b.slope && bytes > b.bytes);
        if bytes > 0 && saved > 0.0 && best.as_ref().is_none_or(better) {
            best = Some(Step { item, to, bytes, slope });
        }
    }
    best
}

impl Picks {
    /// Adds up bytes and losses, in the order of the items.
    fn count(&mut self, items: &[Vec<Offer>]) {
        let taken = || items.iter().zip(&self.offers).map(|(offers, &pick)| offers[pick]);
        (self.bytes, self.loss) = (taken().map(|o| o.bytes).sum(), taken().map(|o| o.loss).sum());
    }

    fn take(&mut self, items: &[Vec<Offer>], item: usize, offer: usize) {
        self.offers[item] = offer;
        self.count(items);
    }

    /// Changes the pick of one item, or of two at a time, as long as that raises `worth(bytes, loss)` by `least`;
    /// `None` is not allowed.
    fn improve(&mut self, items: &[Vec<Offer>], worth: impl Fn(i64, f64) -> Option<f64>, least: f64) {
        for _ in 0..MOST_MOVES {
            let (bytes, loss) = (self.bytes as i64, self.loss);
            let Some(now) = worth(bytes, loss) else { return };
            let mut best = (now + least, None);
            let changes = self.changes(items);
            for (nth, one) in changes.iter().enumerate() {
                let (bytes, loss) = (bytes + one.bytes, loss + one.loss);
                if let Some(worth) = worth(bytes, loss).filter(|worth| *worth > best.0) {
                    best = (worth, Some((nth, None)));
                }
                for (other, two) in changes.iter().enumerate().skip(nth + 1) {
                    // Two changes that go the same way are found one after the other.
                    if two.item == one.item || (two.bytes < 0) == (one.bytes < 0) {
                        continue;
                    }
                    let worth = worth(bytes + two.bytes, loss + two.loss);
                    if let Some(worth) = worth.filter(|worth| *worth > best.0) {
                        best = (worth, Some((nth, Some(other))));
                    }
                }
            }
            let Some((one, two)) = best.1 else { return };
            for change in std::iter::once(one).chain(two).map(|nth| &changes[nth]) {
                self.offers[change.item] = change.to;
            }
            self.count(items);
        }
    }

    /// Every other offer of every item, as what it would change.
    fn changes(&self, items: &[Vec<Offer>]) -> Vec<Change> {
        let mut all = Vec::new();
        for (item, (offers, &pick)) in items.iter().zip(&self.offers).enumerate() {
            for (to, offer) in offers.iter().enumerate().filter(|(to, _)| *to != pick) {
                let (bytes, loss) = (offer.bytes as i64 - offers[pick].bytes as i64, offer.loss - offers[pick].loss);
                all.push(Change { item, to, bytes, loss });
            }
        }
        all
    }
}

struct Change {
    item: usize,
    to: usize,
    bytes: i64,
    loss: f64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tensors of some thousand weights in types of 2 to 8 bits; a bit more quarters the loss.
    fn model(tensors: &[(u64, f64)]) -> Vec<Vec<Offer>> {
        let offers = |&(weights, scale): &(u64, f64)| {
            let offer = |bits: u64| Offer { bytes: weights * bits / 8, loss: scale * 0.25f64.powi(bits as i32) };
            [2, 3, 4, 5, 6, 8].map(offer).to_vec()
        };
        tensors.iter().map(offers).collect()
    }

    fn tensors() -> impl Strategy<Value = Vec<(u64, f64)>> {
        prop::collection::vec((4_000u64..400_000, 0.01f64..100.0), 60..90)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_budget_is_kept_and_used(tensors in tensors(), share in 0.01f64..0.95) {
            let items = model(&tensors);
            let (least, most) = reach(&items);
            let budget = least + ((most - least) as f64 * share) as u64;
            let picks = least_loss(&items, budget).unwrap();
            prop_assert!(picks.bytes <= budget);
            prop_assert!(picks.bytes as f64 >= 0.995 * budget as f64, "{} of {budget}", picks.bytes);
            let mut counted = picks.clone();
            counted.count(&items);
            prop_assert_eq!(&counted, &picks);
            prop_assert_eq!(least_loss(&items, budget).unwrap(), picks);
        }

        #[test]
        fn it_loses_less_than_one_type_for_all(tensors in tensors(), bits in 1usize..5) {
            let items = model(&tensors);
            let uniform = |of: &dyn Fn(Offer) -> f64| items.iter().map(|offers| of(offers[bits])).sum::<f64>();
            let (bytes, loss) = (uniform(&|o| o.bytes as f64), uniform(&|o| o.loss));
            let picks = least_loss(&items, bytes as u64).unwrap();
            prop_assert!(picks.loss < loss, "{} beside {loss}", picks.loss);
            // The other way round: the same loss in fewer bytes.
            let small = least_bytes(&items, loss).unwrap();
            prop_assert!(small.loss <= loss && (small.bytes as f64) < bytes, "{} beside {bytes}", small.bytes);
        }

        #[test]
        fn few_items_come_near_the_best_of_all_combinations(
            tensors in prop::collection::vec((1_000u64..9_000, 0.1f64..10.0), 4..5), share in 0.05f64..0.95
        ) {
            let items = model(&tensors);
            let (least, most) = reach(&items);
            let budget = least + ((most - least) as f64 * share) as u64;
            let mut best = f64::INFINITY;
            for code in 0..6usize.pow(4) {
                let picked: Vec<Offer> = (0..4).map(|item| items[item][code / 6usize.pow(item as u32) % 6]).collect();
                if picked.iter().map(|o| o.bytes).sum::<u64>() <= budget {
                    best = best.min(picked.iter().map(|o| o.loss).sum());
                }
            }
            let found = least_loss(&items, budget).unwrap();
            prop_assert!(found.loss >= best - 1e-12 && found.loss <= 2.0 * best, "{} beside {best}", found.loss);
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        let items = model(&[(8_000, 1.0), (800, 2.0)]);
        assert_eq!(reach(&items), (2_200, 8_800));
        assert_eq!(least_loss(&items, 2_199), None);
        assert_eq!(least_loss(&items, 2_200).unwrap().offers, [0, 0]);
        assert_eq!(least_loss(&items, u64::MAX).unwrap().offers, [5, 5]);
        assert_eq!(least_bytes(&items, 0.0), None);
        assert_eq!(least_bytes(&items, 1e9).unwrap().bytes, 2_200);
    }

    #[test]
    fn of_equal_sizes_the_better_one_is_taken() {
        let offer = |bytes, loss| Offer { bytes, loss };
        let items = vec![vec![offer(10, 2.0), offer(10, 1.0), offer(20, 1.5)], vec![offer(7, 0.0)]];
        assert_eq!(least_loss(&items, 17).unwrap(), Picks { offers: vec![1, 0], bytes: 17, loss: 1.0 });
        // More bytes that lose more are no step.
        assert_eq!(least_loss(&items, 27).unwrap().bytes, 17);
    }
}
