//! From the operator's choice of a device to the device.

use candle_core::Device;

use super::EngineError;
use crate::node::DeviceChoice;

/// The device a pass runs on. `Auto` takes the first GPU if this build can use one and one is there, else the CPU.
///
/// # Errors
/// A GPU was asked for by number and this build or this machine has none.
pub fn open_device(choice: DeviceChoice) -> Result<Device, EngineError> {
    let gpu = |index: usize| {
        Device::new_cuda(index).map_err(|source| EngineError::NoDevice { wanted: format!("cuda:{index}"), source })
    };
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(index) => gpu(index),
        DeviceChoice::Auto if candle_core::utils::cuda_is_available() => Ok(gpu(0).unwrap_or(Device::Cpu)),
        DeviceChoice::Auto => Ok(Device::Cpu),
    }
}

/// `cpu` or `cuda:<index>`: how plans and results name a device.
pub fn device_name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_and_auto_is_not() {
        assert_eq!(device_name(&open_device(DeviceChoice::Cpu).unwrap()), "cpu");
        assert!(open_device(DeviceChoice::Auto).is_ok());
        let error = open_device(DeviceChoice::Cuda(4242)).unwrap_err();
        assert!(crate::fault::Fault::from(error).message.contains("cuda:4242"));
    }
}
