//! Solvers: which code every weight of a matrix gets.
//!
//! Enters: a [`Matrix`] (values, the grid its codes come from, the moments of its inputs). Leaves: [`Solved`] (the stored
//! bytes, what they read back as, the error). Rows do not depend on each other, so panels of rows run in parallel, and
//! every sum has one order: the bytes are the same with any number of threads. A new solver is one file and one line in
//! [`SOLVERS`].

mod descent;
mod drift;
mod factor;
mod feedback;
mod matrix;
mod panel;
mod product;

pub use awq::loss_when_scaled;
pub use block_tune::{Latents, Rates};
pub use drift::make_up_for_drift;
pub use matrix::{Matrix, Method, Moments, Order, SolveOptions, Solved};
pub use panel::Coded;
pub(super) use panel::{PANEL, energy};

use super::CompressError;

/// A way to choose codes.
pub trait Solver: Sync {
    /// As recipes name it.
    fn name(&self) -> &'static str;

    /// One sentence for listings.
    fn summary(&self) -> &'static str;

    /// Whether it cannot work without [`Matrix::moments`].
    fn needs_moments(&self) -> bool;

    /// Whether the matrices of a block are tuned together once they are solved.
    fn tunes_blocks(&self) -> bool {
        false
    }

    /// Whether columns are scaled beforehand, the scales' inverses folded into what makes their inputs.
    fn scales_inputs(&self) -> bool {
        false
    }

    /// Chooses the codes of a matrix.
    ///
    /// # Errors
    /// Values or moments that are not finite, and a grid that cannot store rows of this length.
    fn solve(&self, matrix: &Matrix, options: &SolveOptions) -> Result<Solved, CompressError>;
}

crate::registry! {
    /// Every solver this build has.
    pub SOLVERS: dyn Solver {
        rtn => Rtn,
        gptq => Gptq,
        hqq => Hqq,
        block_tune => BlockTune,
        awq => Awq,
        awq_gptq => AwqGptq,
    }
}

/// The solver of this name.
pub fn solver_named(name: &str) -> Option<&'static dyn Solver> {
    SOLVERS.iter().copied().find(|solver| solver.name() == name)
}

#[cfg(test)]
mod tests;
