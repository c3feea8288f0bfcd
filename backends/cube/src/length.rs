//! How many tokens there are.

use crate::device::Gpu;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// A number of tokens: known to the host, or kept on the device, so that launches which were recorded once serve a growing
/// context.
#[derive(Debug, Clone)]
pub struct Length {
    most: usize,
    device: Option<Handle>,
}

impl Length {
    /// As many tokens as the first word of `handle` says when the launch runs: at least 1, at most `most`.
    pub const fn on_device(handle: Handle, most: usize) -> Self {
        Self { most, device: Some(handle) }
    }

    /// A word on the device that holds `len`.
    pub fn upload(gpu: &Gpu, len: usize) -> Handle {
        gpu.client.create_from_slice(&(len as u32).to_le_bytes())
    }

    /// The most tokens that there can be.
    pub const fn most(&self) -> usize {
        self.most
    }

    pub(crate) const fn handle(&self) -> Option<&Handle> {
        self.device.as_ref()
    }

    /// Whether the device keeps it.
    pub const fn is_on_device(&self) -> bool {
        self.device.is_some()
    }
}

impl From<usize> for Length {
    fn from(len: usize) -> Self {
        Self { most: len, device: None }
    }
}

/// The number, as a kernel sees it.
#[cube]
pub(crate) fn tokens(length: &[u32], most: u32, #[comptime] on_device: bool) -> u32 {
    if comptime!(on_device) { max(min(length[0usize], most), 1u32) } else { most }
}
