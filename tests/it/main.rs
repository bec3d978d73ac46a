//! Behaviour through the public doors, one binary.
mod daemon;
mod factory;
mod house_rules;
mod model_files;
mod oracle;
mod recipe;
mod stages;
mod worker;
mod tokenizers;
