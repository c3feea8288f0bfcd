//! A device as the kernels see it.

use crate::error::{Error, Result};
use cubecl::features::Plane;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// What of a device decides which variant of a kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Traits {
    /// Units of a plane whose exchange and synchronisation the kernels may use; 0 where they must not.
    pub plane: u32,
    /// Whether numbers of half precision are a type of the device.
    pub native_half: bool,
    /// Most units of a cube, a power of two.
    pub max_units: u32,
    /// Processors that cubes are spread over; a guess where the device does not say.
    pub processors: u32,
    /// Cubes of a processor where cubes go through long rows.
    pub cubes: u32,
    /// Cubes of 512 units that surely run at the same time and see what others write, so that they may wait for each other; 0
    /// where that is not certain.
    pub together: u32,
    /// Cubes of a list that wait for each other at least: where there are fewer for each, several launches are faster.
    pub meeting: u32,
    /// Most bytes of shared memory of a cube.
    pub shared_memory: usize,
}

/// A client with what the kernels must know of its device.
#[derive(Clone)]
pub struct Gpu {
    /// Where launches go.
    pub client: Client,
    /// The device.
    pub traits: Traits,
}

impl Gpu {
    /// Looks at the device behind `client`.
    ///
    /// # Errors
    /// [`Error::Device`] if it has too little shared memory or too few units a cube.
    pub fn new(client: Client) -> Result<Self> {
        let (hardware, features) = (&client.properties().hardware, client.features());
        let planes = features.plane.contains(Plane::Ops)
            && features.plane.contains(Plane::Sync)
            && (hardware.plane_size_min, hardware.plane_size_max) == (32, 32);
        let max_units = hardware.max_units_per_cube.min(1024);
        if max_units < 256 {
            return Err(Error::Device("runs fewer than 256 units in a cube"));
        }
        if hardware.max_shared_memory_size < 32 * 1024 {
            return Err(Error::Device("has less than 32 KiB of shared memory for a cube"));
        }
        let traits = Traits {
            plane: if planes { 32 } else { 0 },
            native_half: client.name() == "cuda",
            max_units: 1 << max_units.ilog2(),
            processors: hardware.num_streaming_multiprocessors.unwrap_or(32),
            cubes: 2,
            meeting: 16,
            // One on each processor, which CUDA guarantees room for. Other devices may run cubes one after another.
            together: if client.name() == "cuda" && features.device_memory_scope && planes {
                hardware.num_streaming_multiprocessors.unwrap_or(0)
            } else {
                0
            },
            shared_memory: hardware.max_shared_memory_size,
        };
        Ok(Self { client, traits })
    }

    /// Memory for `words` numbers of 32 bits, not initialised.
    pub fn words(&self, words: usize) -> Handle {
        self.client.empty(words.max(1) * 4)
    }
}

/// A buffer of `len` elements as a launch argument.
///
/// # Safety
/// The buffer must hold at least `len` elements of the kernel's parameter.
pub(crate) unsafe fn buffer(handle: &Handle, len: usize) -> BufferArg {
    // SAFETY: the caller's promise.
    unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
}
