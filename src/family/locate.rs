//! Finds the tensors of a specification in the files: under a family's other names, inside stacks of experts, or as
//! they are; and says of everything else what it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::role::{Part, Role};
use super::spec::{ModelSpec, MoeSpec};
use super::stacks::{self, StackLayout};
use super::storage::{ExpertAxis, ExpertTensor, Holding, MixtureId, Storage, StoredTensor, axis_of};
use super::view::{Entry, View};
use super::{Alias, FamilyError};
use crate::model::{TensorMeta, TensorSource};

/// A model's tensors under the names of its specification, and the map of its files.
pub(super) struct Located {
    pub tensors: Arc<dyn TensorSource>,
    pub storage: Storage,
}

/// What a family says about the files of its models.
pub(super) struct Conventions<'a> {
    pub aliases: &'a [Alias],
    pub layouts: &'a [StackLayout],
    /// The key of the config that counts experts, for messages.
    pub expert_key: &'a str,
}

/// What is known of one stored tensor.
struct Finding {
    holding: Holding,
    experts: ExpertAxis,
    kind: Option<ExpertTensor>,
}

/// # Errors
/// Two stored tensors that mean the same, stacks of a layout the family does not know, another number of experts than
/// the config says, a carried part that the config declares and the files lack. Missing tensors are not looked for here.
pub(super) fn locate(
    stored: &Arc<dyn TensorSource>,
    spec: &ModelSpec,
    conventions: &Conventions<'_>,
) -> Result<Located, FamilyError> {
    let metas = stored.metas();
    let names: Vec<String> = metas.iter().map(|meta| conventions.canonical(&meta.name)).collect();
    let mut by_name: HashMap<&str, usize> = HashMap::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        if let Some(other) = by_name.insert(name, at) {
            let (first, second) = (metas[other].name.clone(), metas[at].name.clone());
            return Err(FamilyError::Twice { first, second, meaning: name.clone() });
        }
    }
    let mut search = Search { metas, names: &names, by_name, found: HashMap::new(), entries: Vec::new() };
    for (id, moe) in spec.mixtures() {
        search.mixture(spec, id, moe, conventions)?;
    }
    for tensor in spec.tensors() {
        let (experts, kind) = axis_of(tensor.role);
        search.whole(&tensor.name, || Finding { holding: Holding::Tensor(tensor.role), experts, kind });
    }
    search.carried(spec)?;
    search.refuse_more_experts(spec, conventions)?;
    let Search { mut found, entries, .. } = search;
    let renamed = metas.iter().zip(&names).any(|(meta, name)| meta.name != *name);
    let tensors = if renamed || !entries.is_empty() {
        Arc::new(View::new(stored.clone(), complete(entries, metas, &names))?)
    } else {
        stored.clone()
    };
    let mut storage = Storage::default();
    for (at, meta) in metas.iter().enumerate() {
        let unknown = Finding { holding: Holding::Unknown, experts: ExpertAxis::Apart, kind: None };
        let Finding { holding, experts, kind } = found.remove(&at).unwrap_or(unknown);
        storage.push(StoredTensor { name: meta.name.clone(), holding, experts }, kind);
    }
    Ok(Located { tensors, storage })
}

/// The entries cut out of stacks, and every tensor that is no stack under the specification's name for it.
fn complete(mut entries: Vec<Entry>, metas: &[TensorMeta], names: &[String]) -> Vec<Entry> {
    let stacks: HashSet<String> = entries.iter().map(|entry| entry.source.clone()).collect();
    let others = metas.iter().zip(names).filter(|(meta, _)| !stacks.contains(&meta.name));
    entries.extend(others.map(|(meta, name)| Entry::whole(name.clone(), meta)));
    entries
}

impl Conventions<'_> {
    /// The specification's name for a stored tensor: every alias applied once, in order.
    fn canonical(&self, stored: &str) -> String {
        self.aliases.iter().fold(stored.to_owned(), |name, alias| match *alias {
            Alias::Prefix(from, to) => match name.strip_prefix(from) {
                Some(rest) => format!("{to}{rest}"),
                None => name,
            },
            Alias::Part(from, to) => name.replacen(from, to, 1),
        })
    }

    fn wrong_count(&self, wanted: usize, tensor: &TensorMeta, found: usize) -> FamilyError {
        let key = self.expert_key.to_owned();
        FamilyError::ExpertCount { key, wanted, tensor: tensor.name.clone(), found }
    }
}

struct Search<'a> {
    metas: &'a [TensorMeta],
    /// The specification's name of each.
    names: &'a [String],
    by_name: HashMap<&'a str, usize>,
    found: HashMap<usize, Finding>,
    /// Tensors that are parts of stored ones.
    entries: Vec<Entry>,
}

impl<'a> Search<'a> {
    fn meta(&self, name: &str) -> Option<&'a TensorMeta> {
        self.by_name.get(name).map(|&at| &self.metas[at])
    }

    /// Notes a stored tensor that is exactly one of the specification.
    fn whole(&mut self, name: &str, finding: impl FnOnce() -> Finding) {
        if let Some(&at) = self.by_name.get(name) {
            self.found.entry(at).or_insert_with(finding);
        }
    }

    /// The stacks of a mixture; of a carried one also its router and single experts, which no role names.
    fn mixture(
        &mut self,
        spec: &ModelSpec,
        id: MixtureId,
        moe: &MoeSpec,
        conventions: &Conventions<'_>,
    ) -> Result<(), FamilyError> {
        let experts = moe.experts.len();
        if let Some(router) = self.meta(&moe.router.weight)
            && let [rows, cols] = router.shape[..]
            && cols == moe.router.cols
            && rows != experts
        {
            return Err(conventions.wrong_count(experts, router, rows));
        }
        let found = stacks::find(moe, &|name| self.meta(name), conventions.layouts).map_err(|error| match error {
            FamilyError::Stacks(misfit) if misfit.found.iter().all(|shape| shape[0] != experts) => {
                FamilyError::ExpertCount {
                    key: conventions.expert_key.to_owned(),
                    wanted: experts,
                    tensor: misfit.names[0].clone(),
                    found: misfit.found[0][0],
                }
            }
            other => other,
        })?;
        if let Some(found) = found {
            for (name, parts, bias) in found.stored {
                let layout = found.layout;
                let holding = match id {
                    MixtureId::Layer(layer) => Holding::Stack { layer, parts, bias, layout },
                    MixtureId::Carried { part, .. } => Holding::Carried { part },
                };
                let finding = Finding { holding, experts: ExpertAxis::Rows { mixture: id }, kind: None };
                if let Some(at) = self.metas.iter().position(|meta| meta.name == name) {
                    self.found.insert(at, finding);
                }
            }
            self.entries.extend(found.entries);
        }
        if let MixtureId::Carried { part, .. } = id
            && spec.carried[part].present(self.names)
        {
            self.carried_mixture(id, part, moe)?;
        }
        Ok(())
    }

    fn carried_mixture(&mut self, mixture: MixtureId, part: usize, moe: &MoeSpec) -> Result<(), FamilyError> {
        let stacked: HashSet<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
        let expected = tensors_of(mixture, moe);
        let lacks = |tensor: &&Expected| self.meta(&tensor.name).is_none() && !stacked.contains(tensor.name.as_str());
        if let Some(first) = expected.iter().find(lacks) {
            let (name, wanted) = (first.name.clone(), first.shape.clone());
            return Err(FamilyError::MissingTensor { name, wanted, more: 0 });
        }
        for tensor in expected {
            if let Some(meta) = self.meta(&tensor.name)
                && meta.shape != tensor.shape
            {
                let (name, found) = (meta.name.clone(), meta.shape.clone());
                return Err(FamilyError::WrongShape { name, found, wanted: tensor.shape, more: 0 });
            }
            let holding = Holding::Carried { part };
            self.whole(&tensor.name, || Finding { holding, experts: tensor.experts, kind: tensor.kind });
        }
        Ok(())
    }

    /// Notes the tensors of carried parts; a part that the config declares must have some.
    fn carried(&mut self, spec: &ModelSpec) -> Result<(), FamilyError> {
        for (part, carried) in spec.carried.iter().enumerate() {
            let mut any = false;
            for (at, name) in self.names.iter().enumerate().filter(|(_, name)| carried.holds(name)) {
                any = true;
                // Whoever cuts experts out of the model would leave these as they are, and the result inconsistent.
                if spec.experts().is_some() && name.contains(".experts.") && !self.found.contains_key(&at) {
                    return Err(FamilyError::Unsupported {
                        what: format!(
                            "tensor {}: experts of the {} that its config does not declare",
                            name, carried.name
                        ),
                        supported: "carried parts with as many mixtures as the config says".to_owned(),
                    });
                }
                let finding = Finding { holding: Holding::Carried { part }, experts: ExpertAxis::Apart, kind: None };
                self.found.entry(at).or_insert(finding);
            }
            if carried.required && !any {
                return Err(FamilyError::MissingPart { name: carried.name, prefixes: carried.prefixes.join(", ") });
            }
        }
        Ok(())
    }

    /// Experts beyond the number the config says are no strange tensors to be passed over: the config is wrong.
    fn refuse_more_experts(&self, spec: &ModelSpec, conventions: &Conventions<'_>) -> Result<(), FamilyError> {
        let counts: HashMap<&str, usize> =
            spec.mixtures().filter_map(|(_, moe)| Some((stacks::prefix(moe)?, moe.experts.len()))).collect();
        for (at, name) in self.names.iter().enumerate().filter(|(at, _)| !self.found.contains_key(at)) {
            let Some((front, rest)) = name.rsplit_once(".experts.") else { continue };
            let number = rest.split('.').next().and_then(|text| text.parse::<usize>().ok());
            if let (Some(&wanted), Some(number)) = (counts.get(format!("{front}.experts").as_str()), number)
                && number >= wanted
            {
                return Err(conventions.wrong_count(wanted, &self.metas[at], number + 1));
            }
        }
        Ok(())
    }
}

/// A tensor of a carried mixture.
struct Expected {
    name: String,
    shape: Vec<usize>,
    experts: ExpertAxis,
    kind: Option<ExpertTensor>,
}

fn tensors_of(mixture: MixtureId, moe: &MoeSpec) -> Vec<Expected> {
    let rows = |name: &String, shape: Vec<usize>| Expected {
        name: name.clone(),
        shape,
        experts: ExpertAxis::Rows { mixture },
        kind: None,
    };
    let mut out = vec![rows(&moe.router.weight, vec![moe.router.rows, moe.router.cols])];
    out.extend(moe.router.bias.iter().map(|name| rows(name, vec![moe.router.rows])));
    out.extend(moe.correction.iter().map(|name| rows(name, vec![moe.experts.len()])));
    for (number, expert) in moe.experts.iter().enumerate() {
        for part in Part::ALL {
            let linear = expert.part(part);
            let one = |name: &String, shape: Vec<usize>, bias: bool| Expected {
                name: name.clone(),
                shape,
                experts: ExpertAxis::One { mixture, expert: number },
                kind: Some(ExpertTensor { mixture, part, bias }),
            };
            out.push(one(&linear.weight, vec![linear.rows, linear.cols], false));
            out.extend(linear.bias.iter().map(|name| one(name, vec![linear.rows], true)));
        }
    }
    out
}

/// The map of a file whose tensors are known by role (of a stack: the role of its first expert's part).
pub(super) fn by_roles(metas: &[TensorMeta], roles: &HashMap<String, Role>) -> Storage {
    let mut storage = Storage::default();
    for meta in metas {
        let name = meta.name.clone();
        let tensor = match roles.get(&name) {
            None => StoredTensor { name, holding: Holding::Unknown, experts: ExpertAxis::Apart },
            Some(&role) => match role {
                Role::Expert { layer, part, .. } | Role::ExpertBias { layer, part, .. } => {
                    let bias = matches!(role, Role::ExpertBias { .. });
                    let parts: &'static [Part] = match part {
                        Part::Gate => &[Part::Gate],
                        Part::Up => &[Part::Up],
                        Part::Down => &[Part::Down],
                    };
                    let holding = Holding::Stack { layer, parts, bias, layout: StackLayout::OutIn };
                    StoredTensor { name, holding, experts: ExpertAxis::Rows { mixture: MixtureId::Layer(layer) } }
                }
                role => StoredTensor { name, holding: Holding::Tensor(role), experts: axis_of(role).0 },
            },
        };
        storage.push(tensor, None);
    }
    storage
}

#[cfg(test)]
mod tests;
