#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use hostile::drive;
use libfuzzer_sys::fuzz_target;

static DIR: LazyLock<PathBuf> = LazyLock::new(hostile::folder);

fuzz_target!(
    init: hostile::write_seeds_if_asked("safetensors"),
    |bytes: &[u8]| drive::safetensors(bytes, &DIR)
);
