#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use hostile::drive;
use libfuzzer_sys::fuzz_target;

const PLAIN: &[u8] = include_bytes!("../../tests/fixtures/models/llama/model.safetensors");
const PACKED: &[u8] = include_bytes!("../../tests/fixtures/packed/llama-mlx/model.safetensors");

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = hostile::folder();
    drive::models(PLAIN, PACKED, &dir).expect("two models");
    dir
});

fuzz_target!(
    init: hostile::write_seeds_if_asked("config"),
    |bytes: &[u8]| drive::config(bytes, &DIR)
);
