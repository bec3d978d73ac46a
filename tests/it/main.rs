//! Behaviour through the public doors, one binary.
mod crash;
mod daemon;
mod demo_model;
mod factory;
mod foreman;
mod house_rules;
mod layouts;
mod line;
mod model_files;
mod node;
mod observe;
mod oracle;
mod recipe;
mod stages;
mod tokenizers;
mod worker;
