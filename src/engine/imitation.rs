//! What the survivors of a mixture would do in place of all its experts, shown to an observer that asks for it.

use super::EngineError;
use super::backend::Backend;
use super::block::Setting;
use super::moe::Mixture;
use super::observer::Observer;
use super::variant::Change;
use crate::family::MoeSpec;

/// Rows looked at together: each takes the outputs of all its experts at once.
const ROWS: usize = 256;

/// Some rows of one mixture block: what goes in, what comes out, and what the survivors would have to make it of.
pub struct Imitation<'a> {
    pub layer: usize,
    pub rows: usize,
    pub hidden: usize,
    pub top_k: usize,
    /// `[rows, hidden]`: what the router and the experts read.
    pub inputs: &'a [f32],
    /// `[rows, hidden]`: the routed output of the whole mixture.
    pub target: &'a [f32],
    /// `[rows · top_k]`: the survivors the router would choose, by their numbers among all experts.
    pub chosen: &'a [u32],
    /// `[rows · top_k]`: their weights.
    pub weights: &'a [f32],
    /// `[rows · top_k, hidden]`: their outputs, before the weights.
    pub outputs: &'a [f32],
}

/// Shows every observer that names survivors for this block what they would do for the rows of x; `out` is what the
/// whole mixture routed them to.
pub fn show<B: Backend>(
    mixture: &Mixture<B>,
    cx: &Setting<'_, B>,
    spec: &MoeSpec,
    x: &B::Rows,
    out: &B::Rows,
    observers: &mut [&mut dyn Observer],
) -> Result<(), EngineError> {
    let (backend, hidden) = (cx.backend, spec.router.cols);
    for observer in observers.iter_mut() {
        let Some(kept) = observer.survivors(cx.spec.index).map(<[u32]>::to_vec) else { continue };
        let change = Change { kept: &kept, router: None };
        let cx = Setting { change: Some(&change), ..*cx };
        for first in (0..cx.batch.rows()).step_by(ROWS) {
            let rows: Vec<u32> = (first..(first + ROWS).min(cx.batch.rows())).map(|row| row as u32).collect();
            let inputs = backend.take_rows(x, &rows)?;
            let target = backend.download(&backend.take_rows(out, &rows)?)?;
            let choices = mixture.route(&cx, spec, &inputs)?;
            let mut outputs = vec![0f32; choices.chosen.len() * hidden];
            for (expert, slots) in slots_by_expert(&choices.chosen, spec.experts.len()).iter().enumerate() {
                let tokens: Vec<u32> = slots.iter().map(|slot| (slot / spec.top_k) as u32).collect();
                if tokens.is_empty() {
                    continue;
                }
                let y = backend.download(&mixture.expert(expert).apply(backend, &inputs, Some(&tokens))?)?;
                for (&slot, y) in slots.iter().zip(y.chunks_exact(hidden)) {
                    outputs[slot * hidden..(slot + 1) * hidden].copy_from_slice(y);
                }
            }
            observer.imitation(&Imitation {
                layer: cx.spec.index,
                rows: rows.len(),
                hidden,
                top_k: spec.top_k,
                inputs: &backend.download(&inputs)?,
                target: &target,
                chosen: &choices.chosen,
                weights: &choices.weights,
                outputs: &outputs,
            });
        }
    }
    Ok(())
}

/// For every expert, which of the choices are its own.
fn slots_by_expert(chosen: &[u32], experts: usize) -> Vec<Vec<usize>> {
    let mut slots = vec![Vec::new(); experts];
    for (slot, &expert) in chosen.iter().enumerate() {
        slots[expert as usize].push(slot);
    }
    slots
}
