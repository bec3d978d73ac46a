//! x
mod recipe;
