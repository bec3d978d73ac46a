//! Which heads go: the least important ones, within floors per layer, by a rule that leaves nothing to chance.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::rewrite::spans_heads;
use super::{HeadScores, prunable};
use crate::compress::CompressError;
use crate::family::{AttentionSpec, ModelSpec, by_name};

/// How a removed head leaves the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defrag {
    /// Shapes stay; what belongs to the head becomes zeros.
    Pad,
    /// Whole key/value groups are taken out, the same number in every layer.
    Slice,
}

impl Defrag {
    /// The words of the recipe key `defragMode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Defrag::Pad => "pad",
            Defrag::Slice => "slice",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        [Defrag::Pad, Defrag::Slice].into_iter().find(|mode| mode.as_str() == word)
    }
}

/// How much goes, and what must stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadOptions {
    pub defrag: Defrag,
    /// Share of the units to remove, 0 to 1: query heads in pad mode, key/value groups in slice mode.
    pub level: f64,
    /// The share is taken of every layer, instead of the whole model. Slice mode does so always.
    pub per_layer: bool,
    /// Query heads a layer keeps at least.
    pub min_heads: usize,
    /// Key/value heads a layer keeps at least (a key/value head lives while one of its query heads does).
    pub min_kv_heads: usize,
}

/// What goes in one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerHeads {
    pub heads: usize,
    pub kv_heads: usize,
    /// Query heads that go, ascending.
    pub gone: Vec<usize>,
}

impl LayerHeads {
    fn of(attention: &AttentionSpec) -> Self {
        LayerHeads { heads: attention.heads, kv_heads: attention.kv_heads, gone: Vec::new() }
    }

    /// Query heads that share one key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Key/value heads none of whose query heads stays, ascending.
    pub fn gone_groups(&self) -> Vec<usize> {
        let group = self.group();
        (0..self.kv_heads).filter(|kv| (kv * group..(kv + 1) * group).all(|h| self.gone.contains(&h))).collect()
    }

    /// Query heads that stay, ascending.
    pub fn kept(&self) -> Vec<usize> {
        (0..self.heads).filter(|head| !self.gone.contains(head)).collect()
    }
}

/// The decision, before a byte is written.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadPlan {
    pub defrag: Defrag,
    /// Every prunable layer, also those that lose nothing.
    pub layers: BTreeMap<usize, LayerHeads>,
}

impl HeadPlan {
    /// Query heads that go, in all layers.
    pub fn gone(&self) -> usize {
        self.layers.values().map(|layer| layer.gone.len()).sum()
    }

    /// Query heads of all prunable layers.
    pub fn heads(&self) -> usize {
        self.layers.values().map(|layer| layer.heads).sum()
    }
}

/// Query heads that can go under `options` in all, and the number the level asks for: what admission needs to know
/// before any head is ranked.
pub fn removable(spec: &ModelSpec, options: &HeadOptions) -> (usize, usize) {
    let layers: Vec<LayerHeads> = prunable(spec).iter().map(|(_, attention)| LayerHeads::of(attention)).collect();
    let most = layers.iter().map(|layer| Budget::of(layer, options).heads).sum();
    let asked = match (options.defrag, options.per_layer) {
        (Defrag::Slice, _) => layers.iter().map(|l| share(options.level, l.kv_heads) * l.group()).sum(),
        (Defrag::Pad, true) => layers.iter().map(|l| share(options.level, l.heads)).sum(),
        (Defrag::Pad, false) => share(options.level, layers.iter().map(|l| l.heads).sum()),
    };
    (most, asked)
}

/// `level` of `count`, rounded down; an error of representation does not cost a unit (0.3 of 10 is 3).
fn share(level: f64, count: usize) -> usize {
    (level * count as f64 + 1e-9).floor() as usize
}

/// What a layer may lose yet.
struct Budget {
    heads: usize,
    groups: usize,
}

impl Budget {
    /// A floor above what the layer has keeps everything.
    fn of(layer: &LayerHeads, options: &HeadOptions) -> Self {
        let groups = layer.kv_heads.saturating_sub(options.min_kv_heads.max(1));
        let heads = layer.heads.saturating_sub(options.min_heads.max(1));
        match options.defrag {
            // A group goes as a whole, so both floors bind the number of groups.
            Defrag::Slice => {
                let groups = groups.min(heads / layer.group());
                Budget { heads: groups * layer.group(), groups }
            }
            // Every living group keeps one head at least.
            Defrag::Pad => Budget { heads: heads.min(layer.heads - (layer.kv_heads - groups)), groups },
        }
    }
}

/// Decides which heads of the model go. Of equal scores the lower number stays.
///
/// # Errors
/// No layer whose heads can be pruned, scores that are not those of this model, nothing to remove within the floors,
/// slice mode on layers that differ.
pub fn plan_heads(spec: &ModelSpec, scores: &HeadScores, options: &HeadOptions) -> Result<HeadPlan, CompressError> {
    let mut layers: BTreeMap<usize, LayerHeads> = BTreeMap::new();
    for (index, attention) in prunable(spec) {
        let layer = LayerHeads::of(attention);
        scores.check(index, layer.heads)?;
        layers.insert(index, layer);
    }
    match options.defrag {
        Defrag::Pad => single_heads(&mut layers, scores, options),
        Defrag::Slice => {
            sliceable(spec)?;
            whole_groups(&mut layers, scores, options);
        }
    }
    let plan = HeadPlan { defrag: options.defrag, layers };
    if plan.gone() == 0 {
        return Err(refused(
            format!("level {} removes nothing of {} heads", options.level, plan.heads()),
            "raise the level, or lower minHeadsPerLayer and minKvHeadsPerLayer",
        ));
    }
    Ok(plan)
}

fn refused(reason: String, hint: &'static str) -> CompressError {
    CompressError::Refused { what: "head prune", reason, hint }
}

/// A head, and how much it matters.
#[derive(Clone, Copy)]
struct Candidate {
    layer: usize,
    head: usize,
    score: f64,
}

/// Least important first; of equals, the highest layer and head.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    a.score.total_cmp(&b.score).then(b.layer.cmp(&a.layer)).then(b.head.cmp(&a.head))
}

fn single_heads(layers: &mut BTreeMap<usize, LayerHeads>, scores: &HeadScores, options: &HeadOptions) {
    let all = |(&index, layer): (&usize, &LayerHeads)| {
        let one = |head| Candidate { layer: index, head, score: scores.layers[&index][head] };
        (0..layer.heads).map(one).collect::<Vec<_>>()
    };
    if options.per_layer {
        let candidates: Vec<Vec<Candidate>> = layers.iter().map(all).collect();
        for of_layer in candidates {
            let wanted = share(options.level, of_layer.len());
            take(layers, of_layer, wanted, options);
        }
    } else {
        let candidates: Vec<Candidate> = layers.iter().flat_map(all).collect();
        let wanted = share(options.level, candidates.len());
        take(layers, candidates, wanted, options);
    }
}

/// Removes the `wanted` least important candidates whose layer may lose one more.
fn take(
    layers: &mut BTreeMap<usize, LayerHeads>,
    mut candidates: Vec<Candidate>,
    wanted: usize,
    options: &HeadOptions,
) {
    candidates.sort_by(order);
    let mut left = wanted;
    for candidate in candidates {
        let Some(layer) = layers.get_mut(&candidate.layer).filter(|_| left > 0) else { continue };
        let budget = Budget::of(layer, options);
        if layer.gone.len() >= budget.heads {
            continue;
        }
        let before = layer.gone.clone();
        layer.gone.push(candidate.head);
        layer.gone.sort_unstable();
        if layer.gone_groups().len() > budget.groups {
            layer.gone = before;
        } else {
            left -= 1;
        }
    }
}

/// Whether heads can be sliced out of the model at all.
///
/// # Errors
/// Layers differ or have another mixer (the config has one number of heads for all), a norm spans all heads, or readers of
/// the family's config derive the head width from the number of heads.
pub fn sliceable(spec: &ModelSpec) -> Result<(), CompressError> {
    let layers = prunable(spec);
    let shape = |a: &AttentionSpec| (a.heads, a.kv_heads, a.head_dim);
    if layers.len() != spec.blocks.len() || layers.windows(2).any(|pair| shape(pair[0].1) != shape(pair[1].1)) {
        let reason = "defragMode slice needs the same attention in every layer: the config has one number of heads";
        return Err(refused(reason.to_owned(), "use defragMode pad"));
    }
    if layers.iter().any(|(_, a)| spans_heads(&a.q_norm, a) || spans_heads(&a.k_norm, a)) {
        let reason = "defragMode slice would change the norm that this model takes over all heads together";
        return Err(refused(reason.to_owned(), "use defragMode pad"));
    }
    if by_name(spec.family).is_some_and(|family| !family.says_head_width()) {
        let family = spec.family;
        let reason =
            format!("defragMode slice: readers of {family} take hidden_size ÷ num_attention_heads for head_dim");
        return Err(refused(reason, "use defragMode pad"));
    }
    Ok(())
}

fn whole_groups(layers: &mut BTreeMap<usize, LayerHeads>, scores: &HeadScores, options: &HeadOptions) {
    for (index, layer) in layers.iter_mut() {
        let group = layer.group();
        let score = |kv: usize| scores.layers[index][kv * group..(kv + 1) * group].iter().sum::<f64>();
        let mut groups: Vec<Candidate> =
            (0..layer.kv_heads).map(|kv| Candidate { layer: *index, head: kv, score: score(kv) }).collect();
        groups.sort_by(order);
        let count = share(options.level, layer.kv_heads).min(Budget::of(layer, options).groups);
        layer.gone = groups[..count].iter().flat_map(|g| g.head * group..(g.head + 1) * group).collect();
        layer.gone.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::super::HeadMetric;
    use super::*;
    use crate::family::open;
    use std::path::Path;

    fn spec(fixture: &str) -> ModelSpec {
        open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(fixture)).unwrap().spec
    }

    fn scores(layers: &[&[f64]]) -> HeadScores {
        let layers = layers.iter().enumerate().map(|(i, s)| (i, s.to_vec())).collect();
        HeadScores { metric: HeadMetric::Magnitude, layers, tokens: 0 }
    }

    const OPTIONS: HeadOptions =
        HeadOptions { defrag: Defrag::Pad, level: 0.5, per_layer: true, min_heads: 1, min_kv_heads: 1 };

    fn gone(scores: &HeadScores, options: HeadOptions) -> Vec<Vec<usize>> {
        // Two layers of four query heads over two key/value heads.
        let plan = plan_heads(&spec("llama"), scores, &options).unwrap();
        plan.layers.into_values().map(|layer| layer.gone).collect()
    }

    #[test]
    fn the_least_important_heads_go_within_the_floors() {
        let flat = scores(&[&[4.0, 1.0, 2.0, 3.0], &[40.0, 10.0, 10.0, 30.0]]);
        assert_eq!(gone(&flat, OPTIONS), [vec![1, 2], vec![1, 2]]);
        // Over the whole model the first layer loses more; one head stays.
        assert_eq!(gone(&flat, HeadOptions { per_layer: false, ..OPTIONS }), [vec![1, 2, 3], vec![2]]);
        // Both key/value heads must live: of each group one head stays.
        let options = HeadOptions { per_layer: false, min_kv_heads: 2, ..OPTIONS };
        assert_eq!(gone(&flat, options), [vec![1, 2], vec![1, 2]]);
        let options = HeadOptions { min_heads: 3, ..OPTIONS };
        assert_eq!(gone(&flat, options), [vec![1], vec![2]]);
        // Of equal scores the lower number stays.
        let same = scores(&[&[1.0; 4], &[1.0; 4]]);
        assert_eq!(gone(&same, HeadOptions { level: 0.25, ..OPTIONS }), [vec![3], vec![3]]);
    }

    #[test]
    fn slices_take_whole_groups_and_the_same_number_everywhere() {
        let flat = scores(&[&[4.0, 1.0, 2.0, 2.0], &[1.0, 1.0, 10.0, 30.0]]);
        let slice = HeadOptions { defrag: Defrag::Slice, ..OPTIONS };
        assert_eq!(gone(&flat, slice), [vec![2, 3], vec![0, 1]]);
        let refused = |options| plan_heads(&spec("llama"), &flat, &options).unwrap_err().to_string();
        insta::assert_snapshot!(refused(HeadOptions { level: 0.4, ..slice }), @"head prune: level 0.4 removes nothing of 8 heads");
        insta::assert_snapshot!(refused(HeadOptions { min_kv_heads: 2, ..slice }), @"head prune: level 0.5 removes nothing of 8 heads");
        insta::assert_snapshot!(refused(HeadOptions { min_heads: 4, ..OPTIONS }), @"head prune: level 0.5 removes nothing of 8 heads");
    }

    #[test]
    fn models_whose_config_cannot_say_it_are_not_sliced() {
        let refused = |fixture: &str| sliceable(&spec(fixture)).unwrap_err().to_string();
        insta::assert_snapshot!(refused("qwen2_5_vl"), @"head prune: defragMode slice: readers of qwen2_5_vl take hidden_size ÷ num_attention_heads for head_dim");
        insta::assert_snapshot!(refused("olmoe"), @"head prune: defragMode slice would change the norm that this model takes over all heads together");
        insta::assert_snapshot!(refused("qwen3_5"), @"head prune: defragMode slice needs the same attention in every layer: the config has one number of heads");
        insta::assert_snapshot!(refused("deepseek_v2"), @"head prune: defragMode slice needs the same attention in every layer: the config has one number of heads");
        sliceable(&spec("qwen3_vl")).unwrap();
    }

    #[test]
    fn admission_knows_what_can_go() {
        let spec = spec("llama");
        assert_eq!(removable(&spec, &OPTIONS), (6, 4));
        assert_eq!(removable(&spec, &HeadOptions { min_heads: 4, ..OPTIONS }), (0, 4));
        assert_eq!(removable(&spec, &HeadOptions { min_kv_heads: 2, ..OPTIONS }), (4, 4));
        assert_eq!(removable(&spec, &HeadOptions { defrag: Defrag::Slice, level: 0.9, ..OPTIONS }), (4, 4));
    }

    #[test]
    fn scores_must_be_those_of_the_model() {
        let refused = |scores: &HeadScores| plan_heads(&spec("llama"), scores, &OPTIONS).unwrap_err().to_string();
        insta::assert_snapshot!(refused(&scores(&[&[1.0; 4]])), @"head prune: layer 1 has no head scores");
        insta::assert_snapshot!(refused(&scores(&[&[1.0; 4], &[1.0; 3]])), @"head prune: layer 1 has 4 heads and 3 scores");
        insta::assert_snapshot!(refused(&scores(&[&[1.0; 4], &[1.0, f64::NAN, 1.0, 1.0]])), @"head prune: layer 1, head 1: the score is NaN");
    }
}
