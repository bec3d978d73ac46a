//! x
mod oracle;
mod recipe;
mod model_files;
