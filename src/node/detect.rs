//! What the machine says about itself: memory, processors, name, GPUs. Reads only.

use serde::Serialize;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::units::Bytes;

/// One GPU as declared or as the driver reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// The driver's index, as in `cuda:0`.
    pub index: usize,
    /// Display name; never an identifier.
    pub name: String,
    pub memory: Bytes,
    /// False when only `factory_node.toml` says so.
    pub detected: bool,
}

/// Bytes of memory this process can hope for: the machine's, or less where a control group says so.
pub(super) fn memory() -> Result<Bytes, String> {
    let wanted = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(wanted).map_err(|error| error.to_string())?;
    let whole = system.total_memory();
    let limit = system.cgroup_limits().map(|limits| limits.total_memory).filter(|&limit| limit > 0);
    match limit.map_or(whole, |limit| limit.min(whole)) {
        0 => Err("the system reports 0 bytes".into()),
        bytes => Ok(Bytes(bytes)),
    }
}

/// Bytes that new work can have without anybody being swapped out.
pub(super) fn free_memory() -> Option<Bytes> {
    let wanted = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(wanted).ok()?;
    let free = system.available_memory();
    let in_group = system.cgroup_limits().map(|limits| limits.free_memory).filter(|&limit| limit > 0);
    let free = in_group.map_or(free, |limit| limit.min(free));
    (free > 0).then_some(Bytes(free))
}

/// The most free memory of one GPU, by NVML; `None` without the driver.
pub(super) fn free_gpu_memory() -> Option<Bytes> {
    let nvml = nvml_wrapper::Nvml::init().ok()?;
    let free = |index: u32| nvml.device_by_index(index).ok()?.memory_info().ok().map(|memory| Bytes(memory.free));
    (0..nvml.device_count().ok()?).filter_map(free).max()
}

pub(super) fn hostname() -> String {
    System::host_name().unwrap_or_else(|_| "localhost".into())
}

pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |threads| threads.get())
}

/// How many GPUs the NVIDIA driver has, and its version; why it does not answer otherwise.
pub fn gpu_driver() -> Result<(usize, String), String> {
    let nvml = nvml_wrapper::Nvml::init().map_err(|error| error.to_string())?;
    let count = nvml.device_count().map_err(|error| error.to_string())?;
    Ok((count as usize, nvml.sys_driver_version().unwrap_or_else(|_| "unknown".into())))
}

/// GPUs by NVML. A machine without the driver simply has none.
pub(super) fn gpus() -> Vec<Gpu> {
    let Ok(nvml) = nvml_wrapper::Nvml::init() else { return Vec::new() };
    let count = nvml.device_count().unwrap_or(0);
    let read = |index: u32| {
        let device = nvml.device_by_index(index).ok()?;
        let memory = Bytes(device.memory_info().ok()?.total);
        let name = device.name().unwrap_or_else(|_| "NVIDIA GPU".into());
        Some(Gpu { index: index as usize, name, memory, detected: true })
    };
    (0..count).filter_map(read).collect()
}
