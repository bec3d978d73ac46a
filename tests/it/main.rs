//! x
mod recipe;
mod model_files;
