//! What the fuzz targets share: the readers they drive, a memory cap on each request, and seeds.

pub mod drive;
pub mod seeds;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};

/// The root of the repository.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// No reader asks for more than this at once: the 512 MB that `-malloc_limit_mb` would allow if the runner saw requests.
const MOST: usize = 512 << 20;

/// The system's allocator; a request above [`MOST`] ends the process, which the runner reports with its input.
struct Capped;

// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Capped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        refuse(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        refuse(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        refuse(size);
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
}

fn refuse(size: usize) {
    if size > MOST {
        eprintln!("one request for {size} bytes of memory");
        std::process::abort();
    }
}

#[global_allocator]
static CAPPED: Capped = Capped;

/// Where the inputs are laid: `FUZZ_FOLDER`, best in memory.
pub fn folder() -> PathBuf {
    let base = std::env::var_os("FUZZ_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("factoryline-fuzz-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for the inputs");
    dir
}

/// Writes the seeds of a target and ends the process, when `FUZZ_SEEDS` names a folder for them.
pub fn write_seeds_if_asked(target: &str) {
    let Some(out) = std::env::var_os("FUZZ_SEEDS").map(PathBuf::from) else { return };
    fs::create_dir_all(&out).expect("the seeds' folder");
    for (number, seed) in seeds::of(target, Path::new(&folder())).iter().enumerate() {
        fs::write(out.join(format!("{number:03}")), seed).expect("write a seed");
    }
    std::process::exit(0);
}
