//! Mixed precision by a budget: which type every tensor of a file takes, so that a whole file has so many bytes, or loses
//! so little, and nothing better was in reach.
//!
//! Enters: a model, the types to choose from, a text, and how much the model diverges when a group of tensors is rounded
//! ([`Probe`]; measuring that is the caller's). Leaves: offers of bytes and expected loss for every tensor, and picks.
//!
//! What a tensor loses of its own output ([`ErrorTable`]) compares its types with each other, not with another tensor's:
//! a lost hundredth of the keys is not a lost hundredth of what an MLP adds. So tensors of one role in neighbouring
//! blocks are rounded together, beside the model on the same text, and their divergence from it (nats per token) per
//! share lost is the group's sensitivity. Divergences are small, so they are taken to be proportional to the shares, and
//! to add up. The choice is then [`least_loss`]'s.

mod candidates;
mod errors;
mod groups;
mod lagrange;
mod probes;
mod rounded;

pub use candidates::{Candidate, Candidates};
pub use errors::ErrorTable;
pub use groups::{Group, MOST_GROUPS};
pub use lagrange::{Offer, Picks, least_bytes, least_loss, reach};
pub use probes::Probe;
pub use rounded::Rounded;
