//! GPUs: does the driver answer, are there as many as declared, can this build use them.

use super::{Check, Finding, GpuAnswer, Patient, counted};
use crate::node::DeviceChoice;

pub struct DeviceCheck;

impl Check for DeviceCheck {
    fn name(&self) -> &'static str {
        "device"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let Some(node) = &patient.node else { return vec![Finding::note("not looked at: no node")] };
        let (machine, device) = (&patient.machine, node.forge.device);
        let mut found = Vec::new();
        let there = match &machine.gpu {
            GpuAnswer::Gpus { count, .. } => *count,
            GpuAnswer::None(_) => 0,
        };
        if let DeviceChoice::Cuda(index) = device {
            if !machine.cuda {
                let what = format!("forge.device is {device}, but this build computes on the CPU only");
                let fix = "build with `--features cuda` (docs/GPU.md), or set forge.device = \"auto\"";
                found.push(Finding::error(what).why("every part fails").fix(fix));
            }
            if index >= there {
                let what = format!("forge.device is {device}, the driver shows {}", counted(there, "GPU"));
                found.push(Finding::error(what).fix("nvidia-smi -L lists them; set forge.device in factory_node.toml"));
            }
        }
        // The notes of the node say where its file and the driver disagree.
        let notes = node.notes.iter().filter(|note| note.starts_with("node.gpu_count"));
        found.extend(
            notes.map(|note| Finding::warning(note).fix("mend node.gpu_count in factory_node.toml, or the driver")),
        );
        match &machine.gpu {
            GpuAnswer::Gpus { count, driver } if *count > 0 && !machine.cuda && found.is_empty() => {
                let what = format!(
                    "{} (driver {driver}), but this build computes on the CPU only",
                    counted(*count, "NVIDIA GPU")
                );
                found.push(Finding::note(what).fix("build with `--features cuda` (docs/GPU.md)"));
            }
            GpuAnswer::Gpus { count, driver } if found.is_empty() => {
                found.push(Finding::ok(format!("{}, driver {driver}", counted(*count, "NVIDIA GPU"))));
            }
            GpuAnswer::None(reason) if machine.cuda && found.is_empty() => {
                let what = format!("this build can use a GPU, but no NVIDIA driver answers ({reason})");
                found.push(Finding::warning(what).why("parts are built on the CPU").fix("nvidia-smi says more"));
            }
            GpuAnswer::None(_) if found.is_empty() => {
                found.push(Finding::ok("no NVIDIA driver answers; parts are built on the CPU"));
            }
            _ => {}
        }
        found
    }
}
