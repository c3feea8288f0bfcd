//! Where keys and values lie.

use crate::device::is_gpu;
use crate::error::{Error, Result};
use burn::tensor::Device;
use std::path::PathBuf;

/// Where a cache keeps keys and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Placement {
    /// In the memory of the device.
    #[default]
    Device,
    /// In a file without a name in this folder. The tokens are the same; memory holds the sketch and recently chosen rows.
    Tiered(PathBuf),
    /// In the memory of the device while they fit, else in such a file.
    Auto(PathBuf),
}

impl Placement {
    /// This placement on `device`; GPUs keep everything in their memory.
    ///
    /// # Errors
    /// [`Error::Request`] for a second tier where there is none, or whose folder is not there.
    pub(crate) fn on(self, device: &Device) -> Result<Self> {
        match self {
            Self::Tiered(_) if is_gpu(device) => Err(Error::request(
                "cache",
                "is tiered, which caches of the processor can be, but not yet those of GPUs",
                "use `--cache device`, or `--device cpu`",
            )),
            Self::Auto(_) if is_gpu(device) => Ok(Self::Device),
            Self::Tiered(folder) if !folder.is_dir() => Err(Error::request(
                "cache-dir",
                format!("`{}` is no folder", folder.display()),
                "name one on a disk with room for the cache",
            )),
            placement => Ok(placement),
        }
    }

    /// Whether what the second tier writes stays in memory, so that it saves none.
    pub fn is_in_memory(&self) -> bool {
        match self {
            Self::Device => true,
            Self::Tiered(folder) | Self::Auto(folder) => fasa_cpu::tier::is_in_memory(folder),
        }
    }

    /// The folder of the second tier, if `more` bytes of keys and values are to go there.
    pub(super) fn second_tier(&self, more: u64) -> Option<&PathBuf> {
        match self {
            Self::Device => None,
            Self::Tiered(folder) => Some(folder),
            // A sketch comes on top, and what the model computes with.
            Self::Auto(folder) => {
                let fits = fasa_cpu::machine::available_memory().is_none_or(|room| more + more / 8 + SPARE <= room);
                (!fits && !self.is_in_memory()).then_some(folder)
            }
        }
    }
}

/// Memory that a cache leaves to everything else.
const SPARE: u64 = 64 << 20;
