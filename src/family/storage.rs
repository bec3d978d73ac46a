//! What each tensor of the files holds: the way back from stored names to roles and experts.
//!
//! [`OpenModel::tensors`](super::OpenModel::tensors) presents a model under the names of its specification, experts one
//! by one. Whoever rewrites the files themselves (cuts experts out, copies what stays, proves what did not change)
//! needs the other view: [`OpenModel::stored`](super::OpenModel::stored) has every tensor as it lies on disk, under its
//! own name, and [`Storage`] says of each of them what it is.
//!
//! The contract, for a rewriter that keeps some of the experts of every mixture, renumbered from 0:
//!
//! * [`ExpertAxis::Apart`]: the tensor does not depend on experts. Copy it.
//! * [`ExpertAxis::One`]: it belongs to one expert alone. Drop it with the expert; else copy its bytes under the name
//!   [`Storage::renumbered`] gives for the expert's new number.
//! * [`ExpertAxis::Rows`]: row `e` of dimension 0 belongs to expert `e` of the mixture (a router's weight or bias, a
//!   stack of experts in whatever layout). Keep the rows of the experts that stay, in order; name and the other
//!   dimensions stay.
//!
//! Every tensor of the files is listed exactly once, in the order of `stored.metas()`. Mixtures inside carried parts (a
//! draft head with experts) are listed like those of the blocks; [`ModelSpec::mixture`] finds the specification of
//! either.

use std::collections::HashMap;

use super::role::{Part, Role};
use super::spec::{BlockSpec, ModelSpec, MoeSpec};
use super::stacks::StackLayout;

/// A mixture of experts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MixtureId {
    /// That of the block with this index.
    Layer(usize),
    /// `spec.carried[part].mixtures[number]`
    Carried { part: usize, number: usize },
}

/// What a stored tensor is.
#[derive(Clone, Debug, PartialEq)]
pub enum Holding {
    /// One tensor of the language model, whole, in the specification's shape (in a GGUF file: rows may be permuted).
    Tensor(Role),
    /// All experts of a block's mixture along dimension 0; `parts` of each in `layout`. `bias`: their biases.
    Stack { layer: usize, parts: &'static [Part], bias: bool, layout: StackLayout },
    /// Of `spec.carried[part]`.
    Carried { part: usize },
    /// Nothing this build knows.
    Unknown,
}

/// How a stored tensor depends on the experts of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertAxis {
    Apart,
    One { mixture: MixtureId, expert: usize },
    Rows { mixture: MixtureId },
}

/// One tensor of the files.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// As in the files.
    pub name: String,
    pub holding: Holding,
    pub experts: ExpertAxis,
}

/// Which of an expert's tensors: the same for all experts of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ExpertTensor {
    pub mixture: MixtureId,
    pub part: Part,
    pub bias: bool,
}

/// The tensors of a model's files, in the order of the files.
#[derive(Clone, Debug, Default)]
pub struct Storage {
    tensors: Vec<StoredTensor>,
    by_name: HashMap<String, usize>,
    /// Of tensors that belong to one expert: which they are, and where those of each expert stand.
    kinds: HashMap<usize, ExpertTensor>,
    of_experts: HashMap<(ExpertTensor, usize), usize>,
}

impl Storage {
    /// The tensors a specification asks for, as if they lay in files one by one, under the specification's own names.
    pub fn of_spec(spec: &ModelSpec) -> Self {
        let mut storage = Storage::default();
        for tensor in spec.tensors() {
            let (experts, kind) = axis_of(tensor.role);
            storage.push(StoredTensor { name: tensor.name, holding: Holding::Tensor(tensor.role), experts }, kind);
        }
        storage
    }

    /// Every tensor of the files once.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// What the stored tensor `name` is.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// The stored name of the tensor that is to expert `expert` what `name` is to its own; `None` when `name` does not
    /// belong to one expert alone, or there is no such expert.
    pub fn renumbered(&self, name: &str, expert: usize) -> Option<&str> {
        let kind = self.kinds.get(self.by_name.get(name)?)?;
        let at = self.of_experts.get(&(*kind, expert))?;
        Some(&self.tensors[*at].name)
    }

    /// The stored tensors of one carried part.
    pub fn carried(&self, part: usize) -> impl Iterator<Item = &StoredTensor> {
        self.tensors.iter().filter(move |tensor| tensor.holding == Holding::Carried { part })
    }

    pub(super) fn push(&mut self, tensor: StoredTensor, kind: Option<ExpertTensor>) {
        let at = self.tensors.len();
        if let (Some(kind), ExpertAxis::One { expert, .. }) = (kind, tensor.experts) {
            self.kinds.insert(at, kind);
            self.of_experts.insert((kind, expert), at);
        }
        self.by_name.insert(tensor.name.clone(), at);
        self.tensors.push(tensor);
    }
}

/// How the tensor of a role depends on experts.
pub(super) fn axis_of(role: Role) -> (ExpertAxis, Option<ExpertTensor>) {
    let of_expert = |layer, expert, part, bias| {
        let mixture = MixtureId::Layer(layer);
        (ExpertAxis::One { mixture, expert }, Some(ExpertTensor { mixture, part, bias }))
    };
    match role {
        Role::Router(layer) | Role::RouterBias(layer) | Role::RouterCorrection(layer) => {
            (ExpertAxis::Rows { mixture: MixtureId::Layer(layer) }, None)
        }
        Role::Expert { layer, expert, part } => of_expert(layer, expert, part, false),
        Role::ExpertBias { layer, expert, part } => of_expert(layer, expert, part, true),
        _ => (ExpertAxis::Apart, None),
    }
}

impl ModelSpec {
    /// Every mixture of experts: those of the blocks, then those of carried parts.
    pub fn mixtures(&self) -> impl Iterator<Item = (MixtureId, &MoeSpec)> {
        let blocks = self.blocks.iter().filter_map(|block| Some((MixtureId::Layer(block.index), block.moe()?)));
        let carried = self.carried.iter().enumerate().flat_map(|(part, carried)| {
            let id = move |number| MixtureId::Carried { part, number };
            carried.mixtures.iter().enumerate().map(move |(number, moe)| (id(number), moe))
        });
        blocks.chain(carried)
    }

    /// The mixture of that name.
    pub fn mixture(&self, id: MixtureId) -> Option<&MoeSpec> {
        match id {
            MixtureId::Layer(layer) => self.blocks.get(layer).and_then(BlockSpec::moe),
            MixtureId::Carried { part, number } => self.carried.get(part)?.mixtures.get(number),
        }
    }
}
