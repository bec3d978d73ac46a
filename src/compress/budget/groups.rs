//! Which tensors are probed together: those of one role in neighbouring blocks.

use crate::family::{Delta, Latent, Part, Role};

/// Groups at most, so that probing takes about as long whatever the model's depth.
pub const MOST_GROUPS: usize = 64;

/// Tensors of one role in a run of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they do: `value`, `expert down`, `embedding` …
    pub role: &'static str,
    /// Their blocks, first and last; `None` for a tensor of no block.
    pub blocks: Option<(usize, usize)>,
}

/// What a tensor does and the block it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Duty {
    role: &'static str,
    block: Option<usize>,
}

impl From<(&'static str, Option<usize>)> for Duty {
    fn from((role, block): (&'static str, Option<usize>)) -> Self {
        Duty { role, block }
    }
}

/// The word for a role, blocks left out.
pub(super) fn label(role: Role) -> &'static str {
    match role {
        Role::Embed => "embedding",
        Role::Head => "head",
        Role::Q(_) => "query",
        Role::K(_) => "key",
        Role::V(_) => "value",
        Role::O(_) => "attention output",
        Role::Mlp { part, .. } => ["gate", "up", "down"][place(part)],
        Role::Expert { part, .. } => ["expert gate", "expert up", "expert down"][place(part)],
        Role::Shared { part, .. } => ["shared gate", "shared up", "shared down"][place(part)],
        Role::Latent { tensor, .. } => match tensor {
            Latent::QA => "latent query a",
            Latent::QB => "latent query b",
            Latent::KvA => "latent key and value a",
            _ => "latent key and value b",
        },
        Role::Delta { tensor, .. } => match tensor {
            Delta::Qkv => "delta query, key and value",
            Delta::Z => "delta gate",
            Delta::Out => "delta output",
            _ => "delta decay and strength",
        },
        _ => "other",
    }
}

fn place(part: Part) -> usize {
    match part {
        Part::Gate => 0,
        Part::Up => 1,
        Part::Down => 2,
    }
}

/// Cuts the blocks of every role into runs, so that there are at most [`MOST_GROUPS`] groups (or one a role); returns
/// the groups and the group of every duty. The first and the last block stand alone where runs are few enough: they
/// often are the most sensitive.
pub(super) fn spread(duties: Vec<Option<Duty>>, blocks: usize) -> (Vec<Group>, Vec<Option<usize>>) {
    let mut roles: Vec<(&'static str, bool)> = Vec::new();
    for duty in duties.iter().flatten() {
        let role = (duty.role, duty.block.is_some());
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    let inside = roles.iter().filter(|(_, in_blocks)| *in_blocks).count();
    let runs = MOST_GROUPS.saturating_sub(roles.len() - inside) / inside.max(1);
    let runs = runs.clamp(1, blocks.max(1));
    let mut groups: Vec<(Duty, Group)> = Vec::new();
    let mut number = |duty: Duty| {
        let run = Duty { role: duty.role, block: duty.block.map(|block| run_of(block, blocks, runs)) };
        let at = groups.iter().position(|(known, _)| *known == run).unwrap_or_else(|| {
            let of_block = duty.block.map(|block| (block, block));
            groups.push((run, Group { role: duty.role, blocks: of_block }));
            groups.len() - 1
        });
        if let (Some((_, last)), Some(block)) = (&mut groups[at].1.blocks, duty.block) {
            *last = block.max(*last);
        }
        at
    };
    let numbers = duties.into_iter().map(|duty| duty.map(&mut number)).collect();
    (groups.into_iter().map(|(_, group)| group).collect(), numbers)
}

/// The run of a block, of `runs`.
fn run_of(block: usize, blocks: usize, runs: usize) -> usize {
    if runs < 4 || runs >= blocks {
        return block * runs / blocks.max(1);
    }
    match block {
        0 => 0,
        last if last + 1 == blocks => runs - 1,
        inner => 1 + (inner - 1) * (runs - 2) / (blocks - 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duties(blocks: usize) -> Vec<Option<Duty>> {
        let of_block = |block| ["query", "key", "value", "attention output", "gate", "up", "down"].map(|r| (r, block));
        let inner = (0..blocks).flat_map(|block| of_block(Some(block)));
        let all = std::iter::once(("embedding", None)).chain(inner);
        all.map(|duty| Some(duty.into())).chain([None]).collect()
    }

    #[test]
    fn deep_models_have_no_more_groups_and_ends_of_their_own() {
        for blocks in [1, 3, 9, 30, 80] {
            let (groups, numbers) = spread(duties(blocks), blocks);
            assert!(groups.len() <= MOST_GROUPS && groups.len() >= 8, "{blocks} blocks: {}", groups.len());
            assert_eq!((numbers[0], *numbers.last().unwrap()), (Some(0), None));
            let down: Vec<&Group> = groups.iter().filter(|g| g.role == "down").collect();
            assert_eq!(down[0].blocks, Some((0, 0)), "{blocks} blocks");
            assert_eq!(down.last().unwrap().blocks, Some((blocks - 1, blocks - 1)));
            let covered = down.iter().filter_map(|g| g.blocks).map(|(first, last)| last + 1 - first).sum::<usize>();
            assert_eq!(covered, blocks);
        }
    }

    #[test]
    fn many_roles_get_a_group_each_at_least() {
        let roles: [&'static str; 70] = std::array::from_fn(|n| &*Box::leak(format!("role {n}").into_boxed_str()));
        let duties = (0..4).flat_map(|block| roles.map(|role| Some((role, Some(block)).into()))).collect();
        assert_eq!(spread(duties, 4).0.len(), 70);
    }
}
