//! (placeholder)
pub mod matmul;
