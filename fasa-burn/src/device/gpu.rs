//! GPUs of this machine.

use super::{DeviceName, Found, Interface, failure};
use crate::error::{Error, Result};
use burn::tensor::Device;
use cubecl::Device as CubeDevice;
use cubecl::device::{WgpuBackend, WgpuDevice, WgpuDeviceKind};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The devices behind an interface, software last. Opens none.
fn devices(interface: Interface) -> Vec<CubeDevice> {
    let backend = match interface {
        Interface::Cuda => return (0..).map_while(|index| CubeDevice::cuda(index).ok()).collect(),
        Interface::Wgpu => WgpuBackend::Auto,
        Interface::Vulkan => WgpuBackend::Vulkan,
        Interface::Metal => WgpuBackend::Metal,
    };
    let kinds = [
        WgpuDeviceKind::DiscreteGpu(0),
        WgpuDeviceKind::IntegratedGpu(0),
        WgpuDeviceKind::VirtualGpu(0),
        WgpuDeviceKind::Other(0),
        WgpuDeviceKind::Cpu,
    ];
    let of_kind = |kind| CubeDevice::enumerate(CubeDevice::Wgpu(WgpuDevice::new(kind).on(backend)).to_id());
    kinds.into_iter().flat_map(of_kind).map(CubeDevice::from_id).collect()
}

pub(super) fn found() -> Vec<Found> {
    let interfaces = Interface::ALL.into_iter().filter(|i| i.is_built());
    let all = interfaces.flat_map(|i| devices(i).into_iter().enumerate().map(move |(n, device)| (i, n, device)));
    all.map(|(interface, index, device)| {
        let name = DeviceName::Gpu(interface, index);
        match needs(interface).and_then(|()| client(&device)) {
            Err(error) => Found { name, description: Err(error.to_string()), memory: None },
            Ok(client) => {
                let properties = client.properties();
                let software = matches!(&device, CubeDevice::Wgpu(d) if d.kind == WgpuDeviceKind::Cpu);
                let note = if software { " (software)" } else { "" };
                let description = match fasa_cube::Gpu::new(client.clone()) {
                    Ok(_) => Ok(format!("{}{note}", properties.identity.name)),
                    Err(error) => Err(format!("{}: {error}", properties.identity.name)),
                };
                Found { name, description, memory: properties.memory.max_memory() }
            }
        }
    })
    .collect()
}

pub(super) fn open(interface: Interface, index: usize) -> Result<Device> {
    let name = DeviceName::Gpu(interface, index);
    needs(interface)?;
    let all = devices(interface);
    let Some(device) = all.get(index) else {
        let problem = match all.len() {
            0 => format!("`{name}`: this machine has no device behind {}", interface.name()),
            1 => format!("`{name}`: this machine has one device behind {}, number 0", interface.name()),
            n => format!("`{name}`: this machine has {n} devices behind {}, from number 0", interface.name()),
        };
        let mend = match interface {
            Interface::Cuda => "check that the driver sees the GPU (`nvidia-smi`), or use another device",
            _ => "install the GPU's Vulkan driver (software: mesa-vulkan-drivers), or use another device",
        };
        return Err(Error::request("device", problem, format!("{mend}; `fasa devices` lists them")));
    };
    let gpu = fasa_cube::Gpu::new(client(device)?);
    gpu.map_err(|error| Error::request("device", format!("`{name}`: {error}"), "use another device"))?;
    Ok(Device::new(device.clone()))
}

/// The device's client. A device that cannot be opened panics on the way.
fn client(device: &CubeDevice) -> Result<cubecl::client::Client> {
    catch_unwind(AssertUnwindSafe(|| device.client())).map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        failure(said.unwrap_or("it cannot be opened"))
    })
}

/// What an interface needs from the machine and would panic without.
#[cfg(feature = "cuda")]
fn needs(interface: Interface) -> Result<()> {
    use fasa_cube::driver::{Missing, missing};
    let missing = if interface == Interface::Cuda { missing() } else { None };
    let (problem, mend) = match missing {
        None => return Ok(()),
        Some(Missing::Driver) => {
            ("`cuda` finds no driver (libcuda)", "install NVIDIA's driver, or use `--device cpu` or `--device vulkan`")
        }
        Some(Missing::Compiler) => (
            "`cuda` finds no NVRTC (libnvrtc), which compiles its kernels",
            "install the CUDA toolkit or its nvrtc package, and name the folder of the library in LD_LIBRARY_PATH",
        ),
        Some(Missing::Headers) => (
            "`cuda` finds no CUDA headers (cuda_fp16.h), which NVRTC needs",
            "set CUDA_PATH to a folder whose `include` holds them: that of the toolkit, or of the package cuda-cudart-dev",
        ),
    };
    Err(Error::request("device", problem, mend))
}

#[cfg(not(feature = "cuda"))]
fn needs(_interface: Interface) -> Result<()> {
    Ok(())
}
