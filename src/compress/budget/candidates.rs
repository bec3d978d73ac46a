//! The types every tensor of a GGUF file may take.

use std::collections::HashMap;

use super::groups::{Group, label, spread};
use crate::codec::Dtype;
use crate::compress::quant_mix::{Kind, fitting_rows};
use crate::compress::{CompressError, Fallback, QuantPlan, plan_assigned};
use crate::family::{GgufTensor, ModelSpec, gguf_tensors};

/// A model's tensors, each with the types it may take.
#[derive(Clone, Debug)]
pub struct Candidates {
    pub tensors: Vec<Candidate>,
    /// Groups of tensors that are taken to be equally sensitive; [`Candidate::group`] counts in it.
    pub groups: Vec<Group>,
    /// Candidates that rows of a tensor do not fit, with what stands in for them.
    pub fallbacks: Vec<Fallback>,
}

/// One tensor of the file to come.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub tensor: GgufTensor,
    /// Different types that its rows fit, the smallest first; just one where there is no choice (vectors, routers).
    pub types: Vec<Dtype>,
    /// Where it counts; `None` for what stays exact.
    pub group: Option<usize>,
}

impl Candidates {
    /// The tensors of a model's file. Those that the mixes quantize may take any of `types`; where a type's block does
    /// not divide the rows, the replacement that the mixes take.
    ///
    /// # Errors
    /// The model cannot be written to GGUF.
    pub fn of(spec: &ModelSpec, types: &[Dtype]) -> Result<Self, CompressError> {
        let (mut all, mut duties, mut fallbacks) = (Vec::new(), Vec::new(), Vec::new());
        for tensor in gguf_tensors(spec)? {
            let is_exact = Kind::of(tensor.role, tensor.shape.len(), spec.tied) == Kind::Exact;
            let mut own = if is_exact { vec![Dtype::F32] } else { Vec::new() };
            for &wanted in types.iter().filter(|_| !is_exact) {
                let given = fitting_rows(wanted, tensor.shape.last().copied().unwrap_or(1));
                if given != wanted {
                    fallbacks.push(Fallback { tensor: tensor.name.clone(), wanted, given });
                }
                own.push(given);
            }
            own.sort_by_key(|dtype| (dtype.checked_bytes(&tensor.shape), *dtype));
            own.dedup();
            duties.push(tensor.role.filter(|_| !is_exact).map(|role| (label(role), role.layer()).into()));
            all.push(Candidate { tensor, types: own, group: None });
        }
        let (groups, numbers) = spread(duties, spec.blocks.len());
        all.iter_mut().zip(numbers).for_each(|(candidate, group)| candidate.group = group);
        Ok(Candidates { tensors: all, groups, fallbacks })
    }

    /// The plan of a file with these types, by tensor the number among [`Candidate::types`]. `name` is for people.
    pub fn plan(&self, name: &str, picks: &[usize]) -> Result<QuantPlan, CompressError> {
        let picked = self.tensors.iter().zip(picks);
        plan_assigned(name, picked.map(|(candidate, &pick)| (candidate.tensor.clone(), candidate.types[pick])))
    }

    /// The plan whose tensors all have the first of their types, or the last.
    pub fn extreme(&self, name: &str, last: bool) -> Result<QuantPlan, CompressError> {
        let pick = |c: &Candidate| if last { c.types.len() - 1 } else { 0 };
        self.plan(name, &self.tensors.iter().map(pick).collect::<Vec<_>>())
    }

    /// Which tensor of the file holds a tensor of the model: the first, where several do.
    pub(super) fn places(&self) -> HashMap<&str, usize> {
        let mut places = HashMap::new();
        for (place, candidate) in self.tensors.iter().enumerate() {
            for source in candidate.tensor.sources() {
                places.entry(source).or_insert(place);
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family;

    #[test]
    fn types_are_those_that_rows_fit_by_bytes_and_a_plan_takes_what_was_picked() {
        let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
        let spec = family::open(&fixture).unwrap().spec;
        // Rows of 64 and 96: 256 divides neither, 64 not both.
        let types = [Dtype::Q8_0, Dtype::Q6K, Dtype::Q2_0, Dtype::Q4_0];
        let candidates = Candidates::of(&spec, &types).unwrap();
        let of = |name: &str| candidates.tensors.iter().find(|c| c.tensor.name == name).unwrap();
        assert_eq!(of("blk.0.attn_q.weight").types, [Dtype::Q2_0, Dtype::Q4_0, Dtype::Q8_0]);
        assert_eq!(of("blk.0.ffn_down.weight").types, [Dtype::Q4_0, Dtype::Q8_0]);
        assert_eq!(
            (of("output_norm.weight").types.as_slice(), of("output_norm.weight").group),
            (&[Dtype::F32][..], None)
        );
        assert_eq!(candidates.groups[of("output.weight").group.unwrap()], Group { role: "head", blocks: None });
        let turned = |f: &&Fallback| f.tensor == "blk.1.ffn_down.weight";
        let given: Vec<Dtype> = candidates.fallbacks.iter().filter(turned).map(|f| f.given).collect();
        assert_eq!(given, [Dtype::Q8_0, Dtype::Q4_0]);

        let (least, most) = (candidates.extreme("least", false).unwrap(), candidates.extreme("most", true).unwrap());
        assert!(least.data_bytes < most.data_bytes);
        let path = std::path::Path::new("x.gguf");
        let header = least.header_bytes(&[], path).unwrap();
        assert_eq!(header, most.header_bytes(&[], path).unwrap(), "a header does not depend on the types");
        // Q8_0's, and that of the mix whose matrices these are.
        assert_eq!((most.file_type, most.name.as_str()), (7, "most"));
        let picks: Vec<usize> = candidates.tensors.iter().map(|c| usize::from(c.types.len() == 3)).collect();
        assert_eq!(candidates.plan("4.50bpw", &picks).unwrap().file_type, 2);
    }
}
