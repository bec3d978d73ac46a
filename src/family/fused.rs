//! Checkpoints that store all experts of a layer as one tensor: `experts.gate_up_proj` `[E, 2I, H]` (gate rows first)
//! and `experts.down_proj` `[E, H, I]`. They are presented expert by expert.

use std::collections::HashSet;
use std::sync::Arc;

use super::role::Part;
use super::spec::MoeSpec;
use super::view::{Entry, View};
use super::{FamilyError, ModelSpec};
use crate::model::TensorSource;

/// The source itself, or a view of it with fused experts taken apart.
///
/// # Errors
/// A fused tensor of a layout this build does not know.
pub(super) fn split(source: Arc<dyn TensorSource>, spec: &ModelSpec) -> Result<Arc<dyn TensorSource>, FamilyError> {
    let mut entries = Vec::new();
    let mut taken = HashSet::new();
    for moe in spec.blocks.iter().filter_map(|b| b.moe()) {
        let Some(prefix) = fused_prefix(moe) else { continue };
        let names = [format!("{prefix}.gate_up_proj"), format!("{prefix}.down_proj")];
        if source.meta(&names[0]).is_some() {
            entries.extend(layer(source.as_ref(), moe, &names)?);
            taken.extend(names);
        }
    }
    if entries.is_empty() {
        return Ok(source);
    }
    let others = source.metas().iter().filter(|m| !taken.contains(&m.name));
    entries.extend(others.map(|m| Entry::whole(m.name.clone(), m)));
    Ok(Arc::new(View::new(source, entries)?))
}

/// `…mlp.experts` for experts named `…mlp.experts.0.gate_proj.weight`.
fn fused_prefix(moe: &MoeSpec) -> Option<&str> {
    moe.experts.first()?.gate.weight.strip_suffix(".0.gate_proj.weight")
}

fn layer(source: &dyn TensorSource, moe: &MoeSpec, names: &[String; 2]) -> Result<Vec<Entry>, FamilyError> {
    let Some(first) = moe.experts.first() else { return Ok(Vec::new()) };
    let (inner, hidden) = (first.gate.rows, first.gate.cols);
    let shapes = [vec![moe.experts.len(), 2 * inner, hidden], vec![moe.experts.len(), hidden, inner]];
    for (name, wanted) in names.iter().zip(&shapes) {
        let found = &source.require(name)?.shape;
        if found != wanted {
            return Err(FamilyError::Unsupported {
                what: format!("fused experts {name} of shape {found:?}"),
                supported: format!("{wanted:?} (expert, out, in), or one tensor per expert and matrix"),
            });
        }
    }
    let mut entries = Vec::new();
    for (number, expert) in moe.experts.iter().enumerate() {
        for part in Part::ALL {
            let (source, first) = match part {
                Part::Gate => (&names[0], number * 2 * inner * hidden),
                Part::Up => (&names[0], (number * 2 + 1) * inner * hidden),
                Part::Down => (&names[1], number * inner * hidden),
            };
            let linear = expert.part(part);
            let (name, shape) = (linear.weight.clone(), vec![linear.rows, linear.cols]);
            entries.push(Entry { name, shape, source: source.clone(), first, unpermute: None });
        }
    }
    Ok(entries)
}
