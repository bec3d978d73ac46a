//! factoryline: a model-compression factory whose API is a folder.
pub mod crash;
pub mod fault;
pub mod registry;
pub mod units;

pub mod line;
pub mod node;
pub mod recipe;

pub mod codec;
pub mod engine;
pub mod family;
pub mod model;
pub mod storage;

pub mod assay;
pub mod compress;
pub mod frontier;
pub mod gate;

pub mod stage;
pub mod worker;

pub mod daemon;
pub mod foreman;
