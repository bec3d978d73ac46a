#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use factoryline::line::Layout;
use factoryline::node::Node;
use hostile::drive;
use libfuzzer_sys::fuzz_target;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/qwen3_moe-text");

static LINE: LazyLock<(PathBuf, Node)> = LazyLock::new(|| {
    let root = hostile::folder();
    Layout::init(&root).expect("a line");
    let node = Node::load(&root).expect("this machine");
    (root, node)
});

fuzz_target!(
    init: hostile::write_seeds_if_asked("plan"),
    |bytes: &[u8]| drive::plan(bytes, &LINE.0, &LINE.1, Path::new(MODEL))
);
