#![no_main]

use hostile::drive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: hostile::write_seeds_if_asked("recipe"),
    |bytes: &[u8]| drive::recipe(bytes)
);
