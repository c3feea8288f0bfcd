//! Devices by name: which ones this build knows, which ones this machine has, and why one cannot be used.

#[cfg(feature = "cube")]
mod gpu;

use crate::error::{Error, Result};
use burn::tensor::Device;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A device as it is named on a command line: `cpu`, `cuda`, `cuda:1`, `wgpu`, `vulkan`, `metal`.
///
/// The number counts the devices of that kind, from 0, which is also what a name without a number means. GPUs come before
/// software that plays one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU through some interface.
    Gpu(Interface, usize),
}

/// Ways to a GPU, each a cargo feature of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// CUDA.
    Cuda,
    /// Whatever the machine offers, in WebGPU's shader language.
    Wgpu,
    /// Vulkan, in SPIR-V.
    Vulkan,
    /// Metal.
    Metal,
}

impl Interface {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cuda, Self::Wgpu, Self::Vulkan, Self::Metal];

    /// Its name, that of the device and of the cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Interface::Cuda => "cuda",
            Interface::Wgpu => "wgpu",
            Interface::Vulkan => "vulkan",
            Interface::Metal => "metal",
        }
    }

    /// Whether this build has it.
    pub fn is_built(self) -> bool {
        match self {
            Interface::Cuda => cfg!(feature = "cuda"),
            Interface::Wgpu => cfg!(feature = "wgpu"),
            Interface::Vulkan => cfg!(feature = "vulkan"),
            Interface::Metal => cfg!(feature = "metal"),
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Gpu(interface, 0) => f.write_str(interface.name()),
            DeviceName::Gpu(interface, index) => write!(f, "{}:{index}", interface.name()),
        }
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    /// # Errors
    /// [`Error::Request`] for anything but the names above.
    fn from_str(text: &str) -> Result<Self> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, index.parse().ok()),
            None => (text, Some(0)),
        };
        match (name, index, Interface::ALL.into_iter().find(|i| i.name() == name)) {
            ("cpu", _, _) if name == text => Ok(DeviceName::Cpu),
            (_, Some(index), Some(interface)) => Ok(DeviceName::Gpu(interface, index)),
            _ => Err(Error::request(
                "device",
                format!("`{text}` is unknown"),
                "use cpu, cuda, wgpu, vulkan or metal; a number counts several of a kind: `cuda:1`",
            )),
        }
    }
}

/// A device that this machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What to call it.
    pub name: DeviceName,
    /// What it calls itself, or why it cannot be used.
    pub description: std::result::Result<String, String>,
    /// Bytes of its memory, where it says.
    pub memory: Option<u64>,
}

/// The devices of this machine that this build can reach. Opens each, which takes a while.
pub fn found() -> Vec<Found> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpu = Found {
        name: DeviceName::Cpu,
        description: Ok(format!("the processor, {threads} threads, {} kernels", fasa_cpu::isa::detect().name())),
        memory: None,
    };
    #[allow(unused_mut)]
    let mut all = vec![cpu];
    #[cfg(feature = "cube")]
    all.extend(gpu::found());
    all
}

impl DeviceName {
    /// Makes the device ready to use.
    ///
    /// # Errors
    /// [`Error::Request`] if this build does not have it, this machine does not have it, or something is missing that it
    /// needs.
    pub fn open(self) -> Result<Device> {
        match self {
            #[cfg(feature = "flex")]
            DeviceName::Cpu => Ok(Device::flex()),
            #[cfg(all(feature = "ndarray", not(feature = "flex")))]
            #[allow(deprecated)] // upstream deprecates it; it stays selectable as a reference
            DeviceName::Cpu => Ok(Device::ndarray()),
            #[cfg(not(any(feature = "flex", feature = "ndarray")))]
            DeviceName::Cpu => Err(not_built(self, "flex")),
            DeviceName::Gpu(interface, _) if !interface.is_built() => Err(not_built(self, interface.name())),
            #[cfg(feature = "cube")]
            DeviceName::Gpu(interface, index) => {
                IN_USE.store(true, Ordering::Relaxed);
                gpu::open(interface, index)
            }
            #[cfg(not(feature = "cube"))]
            DeviceName::Gpu(interface, _) => Err(not_built(self, interface.name())),
        }
    }
}

fn not_built(name: DeviceName, feature: &str) -> Error {
    Error::request(
        "device",
        format!("`{name}` is not in this build"),
        format!(
            "build it in: `cargo build --release -p fasa-cli --features {feature}`; `fasa devices` lists what is there"
        ),
    )
}

/// Whether `device` is a GPU, or plays one: its memory is not the host's.
pub fn is_gpu(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        burn::backend::DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)]
        _ => false,
    }
}

/// Bytes of `device`'s memory that weights and caches may take; `None` for the processor, and where it does not say.
pub fn memory(device: &Device) -> Option<u64> {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        burn::backend::DispatchDevice::Cube(device) => {
            let limit = Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit < u64::MAX);
            [device.client().properties().memory.max_memory(), limit].into_iter().flatten().min()
        }
        #[allow(unreachable_patterns)]
        _ => None,
    }
}

/// From now on GPUs' memory counts as so many bytes, if it is more: what weights and caches take beyond is refused, or goes to
/// the second tier. `None` lets them have all of it.
pub fn limit_memory(bytes: Option<u64>) {
    LIMIT.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
}

static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Whether this process has opened a GPU. What runs on one fails where nobody can return an error, as a panic.
pub fn gpu_in_use() -> bool {
    IN_USE.load(Ordering::Relaxed)
}

static IN_USE: AtomicBool = AtomicBool::new(false);

/// What a failure of a device means to a person. `said` is what it said.
pub fn failure(said: &str) -> Error {
    let first = said.lines().next().unwrap_or(said).trim();
    let lower = said.to_lowercase();
    let memory = ["out of device memory", "outofmemory", "out of memory", "can't allocate buffer", "out_of_memory"];
    match memory.iter().any(|part| lower.contains(part)) {
        true => Error::Device {
            problem: format!("has too little memory ({first})"),
            mend: "use a shorter context, `--dtype f16`, a smaller model or another `--device`, or end what else runs on it"
                .into(),
        },
        false => Error::Device {
            problem: format!("failed: {first}"),
            mend: "try again, or use another `--device`; `fasa devices` lists them".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, want) in [
            ("cpu", DeviceName::Cpu),
            ("cuda", DeviceName::Gpu(Interface::Cuda, 0)),
            ("cuda:3", DeviceName::Gpu(Interface::Cuda, 3)),
            ("vulkan:1", DeviceName::Gpu(Interface::Vulkan, 1)),
            ("wgpu", DeviceName::Gpu(Interface::Wgpu, 0)),
            ("metal", DeviceName::Gpu(Interface::Metal, 0)),
        ] {
            let name: DeviceName = text.parse().expect("known");
            assert_eq!((name, name.to_string().as_str()), (want, text));
        }
        assert_eq!("cuda:0".parse::<DeviceName>().expect("known").to_string(), "cuda");
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "cpu:", "CUDA", "cuda:1:2", ":1"] {
            let error = bad.parse::<DeviceName>().expect_err(bad).to_string();
            assert!(error.contains(&format!("`{bad}`")) && error.contains("use cpu, cuda"), "{error}");
        }
    }

    #[test]
    fn failures_are_told_apart() {
        let error = failure("Io(out of device memory allocating 4096 bytes\n  at ...)").to_string();
        assert!(error.contains("4096") && error.contains("shorter context") && !error.contains("at ..."), "{error}");
        let error = failure("the channel is closed").to_string();
        assert!(error.contains("the channel is closed") && error.contains("fasa devices"), "{error}");
    }

    #[test]
    fn the_processor_is_there_and_other_builds_are_named() {
        assert_eq!(found()[0].name, DeviceName::Cpu);
        for interface in Interface::ALL.into_iter().filter(|i| !i.is_built()) {
            let error = DeviceName::Gpu(interface, 0).open().expect_err("not built").to_string();
            let feature = format!("--features {}", interface.name());
            assert!(error.contains("not in this build") && error.contains(&feature), "{error}");
        }
    }
}
