//! What tests of kernels share.

// Not every test needs everything.
#![allow(dead_code)]

use cubecl::Device;
use cubecl::server::Handle;
use fasa_cube::{Format, Gpu};

/// The device, or `None` with a loud word where there is none. `FASA_TEST_DEVICE=cuda` chooses another.
pub fn gpu() -> Option<Gpu> {
    let device = match std::env::var("FASA_TEST_DEVICE").as_deref() {
        #[cfg(feature = "cuda")]
        Ok("cuda") => Device::cuda(0),
        #[cfg(feature = "wgpu")]
        Err(_) => Device::wgpu(Default::default()),
        other => {
            eprintln!("!! SKIPPED: FASA_TEST_DEVICE is {other:?}, and the tests were built without that device");
            return None;
        }
    };
    match device {
        Ok(device) => Some(Gpu::new(device.client()).expect("a device that can run the kernels")),
        Err(error) => {
            eprintln!("!! SKIPPED: no GPU and no software Vulkan (mesa-vulkan-drivers): {error}");
            None
        }
    }
}

/// Numbers from -1 to 1.
pub fn noise(seed: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + 1) * 7919 + seed * 104_729) * 31 % 20_011) as f32 / 10_005.0 - 1.0).collect()
}

pub fn upload<T: bytemuck::Pod>(gpu: &Gpu, data: &[T]) -> Handle {
    gpu.client.create_from_slice(bytemuck::cast_slice(data))
}

pub fn download<T: bytemuck::Pod>(gpu: &Gpu, handle: &Handle) -> Vec<T> {
    let bytes = gpu.client.read_one(handle.clone()).expect("the device answers");
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// Numbers in a format on the device, and what became of them by rounding.
pub fn store(gpu: &Gpu, format: Format, x: &[f32]) -> (Handle, Vec<f32>) {
    match format {
        Format::F32 => (upload(gpu, x), x.to_vec()),
        Format::F16 => {
            let bits: Vec<u16> = x.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
            (upload(gpu, &bits), bits.iter().map(|b| half::f16::from_bits(*b).to_f32()).collect())
        }
        Format::Bf16 => {
            let bits: Vec<u16> = x.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
            (upload(gpu, &bits), bits.iter().map(|b| half::bf16::from_bits(*b).to_f32()).collect())
        }
    }
}
