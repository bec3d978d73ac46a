//! The machine as the checks see it: every place that says something of it can be another one in a test.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use crate::node::gpu_driver;

/// What the NVIDIA driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuAnswer {
    Gpus {
        count: usize,
        driver: String,
    },
    /// It does not answer, and why.
    None(String),
}

pub struct Machine {
    pub proc: PathBuf,
    pub sys: PathBuf,
    pub run: PathBuf,
    pub now: DateTime<Utc>,
    pub gpu: GpuAnswer,
    /// This build can use a GPU.
    pub cuda: bool,
}

impl Machine {
    /// The one we run on.
    pub fn this() -> Machine {
        let gpu = match gpu_driver() {
            Ok((count, driver)) => GpuAnswer::Gpus { count, driver },
            Err(reason) => GpuAnswer::None(reason),
        };
        let [proc, sys, run] = ["/proc", "/sys", "/run"].map(PathBuf::from);
        Machine { proc, sys, run, now: Utc::now(), gpu, cuda: cfg!(feature = "cuda") }
    }

    /// A number in a file that holds nothing else.
    pub fn number(&self, file: &str) -> Option<u64> {
        text(&self.proc.join(file))?.trim().parse().ok()
    }

    /// Bytes of a line of `meminfo`.
    pub fn memory(&self, key: &str) -> Option<u64> {
        let info = text(&self.proc.join("meminfo"))?;
        let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    }
}

pub fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
