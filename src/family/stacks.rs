//! Checkpoints that keep all experts of a layer in one tensor, presented expert by expert.
//!
//! Such a stack is called `experts.gate_up_proj` or `experts.down_proj` (with or without `.weight`) after a family's
//! aliases were applied. The name does not say how an expert lies in it: published models of one family and what
//! transformers saves of them differ. So the layout is read from the shapes, under the rule that both stacks of a layer
//! are laid out alike. With I the inner width and H the hidden size, `[2I, H]` beside `[H, I]` and `[H, 2I]` beside
//! `[I, H]` cannot both fit: the first pair needs 2I = H to be read either way, the second H = I.

use super::FamilyError;
use super::error::Misfit;
use super::role::Part;
use super::spec::{LinearSpec, MoeSpec};
use super::view::{Entry, Take, scales_of};
use crate::codec::{MXFP4_BLOCK, MXFP4_BYTES};
use crate::model::TensorMeta;

/// How an expert's matrices lie in its slice of a stack. Axis 0 is the expert in every layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackLayout {
    /// `[E, 2I, H]`, the gate's rows first, and `[E, H, I]`: as linear layers are stored.
    OutIn,
    /// `[E, H, 2I]`, the gate's columns first, and `[E, I, H]`.
    InOut,
    /// As [`StackLayout::InOut`], but gate and up take turns column by column. No shape tells it from `InOut`: only a
    /// family that publishes it accepts it.
    InOutInterleaved,
    /// In MXFP4, two tensors per stack: `…_blocks` `[E, 2I, H/32, 16]` and `[E, H, I/32, 16]`, gate and up taking turns
    /// row by row, and `…_scales` with the same first three dimensions.
    Mxfp4Interleaved,
}

impl StackLayout {
    /// Shapes of one expert's slices: gate and up, down.
    fn shapes(self, inner: usize, hidden: usize) -> [Vec<usize>; 2] {
        match self {
            StackLayout::OutIn => [vec![2 * inner, hidden], vec![hidden, inner]],
            StackLayout::InOut | StackLayout::InOutInterleaved => [vec![hidden, 2 * inner], vec![inner, hidden]],
            StackLayout::Mxfp4Interleaved => {
                let blocks = |rows, columns: usize| vec![rows, columns.div_ceil(MXFP4_BLOCK), MXFP4_BYTES];
                [blocks(2 * inner, hidden), blocks(hidden, inner)]
            }
        }
    }

    /// Where the matrix `part` of expert `expert` lies in its stack.
    fn matrix(self, part: Part, expert: usize, inner: usize, hidden: usize) -> Take {
        let slice = expert * inner * hidden;
        let second = usize::from(part == Part::Up);
        match (self, part) {
            (StackLayout::OutIn, Part::Down) => Take::Run { first: slice },
            (StackLayout::OutIn, Part::Gate | Part::Up) => Take::Run { first: 2 * slice + second * inner * hidden },
            (StackLayout::Mxfp4Interleaved, Part::Down) => Take::Mxfp4 { first: expert * hidden, step: 1 },
            (StackLayout::Mxfp4Interleaved, _) => Take::Mxfp4 { first: expert * 2 * inner + second, step: 2 },
            (_, Part::Down) => Take::Strided { first: slice, row: 1, col: hidden },
            (StackLayout::InOut, _) => Take::Strided { first: 2 * slice + second * inner, row: 1, col: 2 * inner },
            (StackLayout::InOutInterleaved, _) => Take::Strided { first: 2 * slice + second, row: 2, col: 2 * inner },
        }
    }

    /// The same for a bias in a stack `[E, 2I]` or `[E, H]`.
    fn bias(self, part: Part, expert: usize, inner: usize, hidden: usize) -> Take {
        let second = usize::from(part == Part::Up);
        match (self, part) {
            (_, Part::Down) => Take::Run { first: expert * hidden },
            (StackLayout::InOutInterleaved | StackLayout::Mxfp4Interleaved, _) => {
                Take::Strided { first: expert * 2 * inner + second, row: 2, col: 1 }
            }
            (_, Part::Gate | Part::Up) => Take::Run { first: (expert * 2 + second) * inner },
        }
    }
}

/// The parts each stack holds, and the ends of its name.
const STACKS: [(&[Part], &str); 2] = [(&[Part::Gate, Part::Up], "gate_up_proj"), (&[Part::Down], "down_proj")];

/// The stacks of one mixture.
pub(super) struct Stacks {
    pub layout: StackLayout,
    /// Stored name, what it holds, and whether these are biases.
    pub stored: Vec<(String, &'static [Part], bool)>,
    /// Every tensor of every expert.
    pub entries: Vec<Entry>,
}

/// `…mlp.experts` for experts named `…mlp.experts.0.gate_proj.weight`.
pub(super) fn prefix(moe: &MoeSpec) -> Option<&str> {
    Some(moe.experts.first()?.gate.weight.rsplit_once(".0.")?.0)
}

/// The stacks of a mixture, or `None` when its experts are stored one by one. `lookup` finds a stored tensor by the
/// name the specification's conventions give it; `accepted` are the layouts the family knows.
///
/// # Errors
/// One stack without the other; shapes that no accepted layout explains.
pub(super) fn find<'m>(
    moe: &MoeSpec,
    lookup: &dyn Fn(&str) -> Option<&'m TensorMeta>,
    accepted: &[StackLayout],
) -> Result<Option<Stacks>, FamilyError> {
    let (Some(prefix), Some(first)) = (prefix(moe), moe.experts.first()) else { return Ok(None) };
    let stack = |ends: [String; 3]| ends.iter().find_map(|end| lookup(&format!("{prefix}.{end}")));
    let weight = |name: &str| stack([name.to_owned(), format!("{name}.weight"), format!("{name}_blocks")]);
    let bias =
        |name: &str| lookup(&format!("{prefix}.{name}_bias")).or_else(|| lookup(&format!("{prefix}.{name}.bias")));
    let [gate_up, down] = STACKS.map(|(_, name)| weight(name));
    let (gate_up, down) = match (gate_up, down) {
        (None, None) => return Ok(None),
        (Some(gate_up), Some(down)) => (gate_up, down),
        (found, _) => {
            let lacking = if found.is_none() { STACKS[0].1 } else { STACKS[1].1 };
            let wanted = vec![moe.experts.len(), first.down.rows, first.down.cols];
            return Err(FamilyError::MissingTensor { name: format!("{prefix}.{lacking}"), wanted, more: 0 });
        }
    };
    let (inner, hidden) = (first.gate.rows, first.gate.cols);
    let layout = layout(moe.experts.len(), (inner, hidden), gate_up, down, accepted)?;
    let mut found = Stacks { layout, stored: Vec::new(), entries: Vec::new() };
    for ((parts, name), meta) in STACKS.into_iter().zip([gate_up, down]) {
        found.stored.push((meta.name.clone(), parts, false));
        if layout == StackLayout::Mxfp4Interleaved {
            found.stored.push((scales(prefix, name, meta, lookup)?, parts, false));
        }
        found.take(moe, parts, meta, |linear| Some(&linear.weight), |part, e| layout.matrix(part, e, inner, hidden));
        if let Some(meta) = bias(name).filter(|_| first.part(parts[0]).bias.is_some()) {
            let wanted = vec![moe.experts.len(), if parts.len() == 2 { 2 * inner } else { hidden }];
            if meta.shape != wanted {
                return Err(FamilyError::WrongShape {
                    name: meta.name.clone(),
                    found: meta.shape.clone(),
                    wanted,
                    more: 0,
                });
            }
            found.stored.push((meta.name.clone(), parts, true));
            let place = |part, e| layout.bias(part, e, inner, hidden);
            found.take(moe, parts, meta, |linear| linear.bias.as_ref(), place);
        }
    }
    Ok(Some(found))
}

impl Stacks {
    fn take(
        &mut self,
        moe: &MoeSpec,
        parts: &[Part],
        stack: &TensorMeta,
        name: impl Fn(&LinearSpec) -> Option<&String>,
        place: impl Fn(Part, usize) -> Take,
    ) {
        for (number, expert) in moe.experts.iter().enumerate() {
            for &part in parts {
                let linear = expert.part(part);
                let Some(name) = name(linear) else { continue };
                let shape = if *name == linear.weight { vec![linear.rows, linear.cols] } else { vec![linear.rows] };
                let (source, take) = (stack.name.clone(), place(part, number));
                self.entries.push(Entry { name: name.clone(), shape, source, take });
            }
        }
    }
}

/// The stored name of the scales of a stack of MXFP4 blocks.
fn scales<'m>(
    prefix: &str,
    stack: &str,
    blocks: &TensorMeta,
    lookup: &dyn Fn(&str) -> Option<&'m TensorMeta>,
) -> Result<String, FamilyError> {
    let name = scales_of(&format!("{prefix}.{stack}_blocks"));
    let wanted = blocks.shape[..3].to_vec();
    match lookup(&name) {
        None => Err(FamilyError::MissingTensor { name, wanted, more: 0 }),
        Some(found) if found.shape != wanted => {
            Err(FamilyError::WrongShape { name, found: found.shape.clone(), wanted, more: 0 })
        }
        Some(found) => Ok(found.name.clone()),
    }
}

/// The one accepted layout that explains both shapes.
fn layout(
    experts: usize,
    (inner, hidden): (usize, usize),
    gate_up: &TensorMeta,
    down: &TensorMeta,
    accepted: &[StackLayout],
) -> Result<StackLayout, FamilyError> {
    let of = |slice: Vec<usize>| [vec![experts], slice].concat();
    let fits = |layout: &&StackLayout| {
        let [first, second] = layout.shapes(inner, hidden).map(of);
        gate_up.shape == first && down.shape == second
    };
    accepted.iter().find(fits).copied().ok_or_else(|| {
        let shapes = |layout: &StackLayout| {
            let [first, second] = layout.shapes(inner, hidden).map(of);
            format!("{first:?} and {second:?}")
        };
        FamilyError::Stacks(Box::new(Misfit {
            names: [gate_up.name.clone(), down.name.clone()],
            found: [gate_up.shape.clone(), down.shape.clone()],
            wanted: accepted.iter().map(shapes).collect::<Vec<_>>().join(", or "),
        }))
    })
}
