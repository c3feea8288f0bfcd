//! Where keys and values lie.

use crate::device::is_gpu;
use crate::error::{Error, Result};
use burn::tensor::Device;
use fasa_cpu::tier::Traffic;
use std::path::{Path, PathBuf};

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
    /// Of a GPU: in the memory of the host. The tokens are the same; the GPU's memory holds the sketch and recently chosen rows.
    Host,
    /// Of a GPU: in its memory while they fit, else in that of the host.
    AutoHost,
}

impl Placement {
    /// This placement on `device`: the second tier of a GPU is the host's memory.
    ///
    /// # Errors
    /// [`Error::Request`] for a second tier whose folder is not there, or for that of a GPU on the processor.
    pub(crate) fn on(self, device: &Device) -> Result<Self> {
        match self {
            Self::Tiered(_) if is_gpu(device) => Ok(Self::Host),
            Self::Auto(_) if is_gpu(device) => Ok(Self::AutoHost),
            Self::Host | Self::AutoHost if !is_gpu(device) => Err(Error::request(
                "cache",
                "is to lie in the host's memory, where the processor's lies anyway",
                "name a folder for its file, or use `--cache device`",
            )),
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
            Self::Device | Self::Host | Self::AutoHost => true,
            Self::Tiered(folder) | Self::Auto(folder) => fasa_cpu::tier::is_in_memory(folder),
        }
    }

    /// The folder of the second tier, if `more` bytes of keys and values are to go there.
    pub(super) fn second_tier(&self, more: u64) -> Option<&PathBuf> {
        match self {
            Self::Device | Self::Host | Self::AutoHost => None,
            Self::Tiered(folder) => Some(folder),
            // A sketch comes on top, and what the model computes with.
            Self::Auto(folder) => {
                let fits = fasa_cpu::machine::available_memory().is_none_or(|room| more + more / 8 + SPARE <= room);
                (!fits && !self.is_in_memory()).then_some(folder)
            }
        }
    }

    /// Whether keys and values go to the host's memory where, with the weights, they take `bytes` of a GPU's.
    #[cfg(feature = "cube")]
    pub(super) fn in_host(&self, bytes: u64, device: &Device) -> bool {
        match self {
            Self::Host => true,
            // As on the processor.
            Self::AutoHost => crate::device::memory(device).is_some_and(|memory| bytes + bytes / 8 + SPARE > memory),
            _ => false,
        }
    }
}

/// Memory that a cache leaves to everything else.
const SPARE: u64 = 64 << 20;

/// How much of the host's and of the device's memory a cache takes; what measurements change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostOptions {
    /// Rows of a head that stay on the device, per chosen row; with 0 a step brings all that it chose.
    pub kept_per_chosen: usize,
    /// Bytes of the host's memory that a cache takes at most: rows beyond share them, and what is written to shared ones is lost.
    /// For measurements; `None` keeps every row.
    pub shared_beyond: Option<u64>,
    /// The host gathers the rows that a step chose, also where the device could read them by itself.
    pub host_gathers: bool,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { kept_per_chosen: 4, shared_beyond: None, host_gathers: false }
    }
}

/// What a cache in a second tier takes, and what went between the tiers.
#[derive(Debug, Clone, Copy)]
pub struct TierUse<'a> {
    /// Where it is.
    pub place: TierPlace<'a>,
    /// Its bytes.
    pub bytes: u64,
    /// So far.
    pub traffic: Traffic,
}

/// Where a second tier is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TierPlace<'a> {
    /// In a file without a name in this folder.
    File(&'a Path),
    /// In the host's memory.
    Host {
        /// Whether the device copies from it by itself.
        pinned: bool,
    },
}
