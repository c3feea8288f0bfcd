//! Number formats of weights and cache.

use crate::device::is_gpu;
use crate::error::{Error, Result};
use burn::tensor::{DType, Device, FloatDType};
use serde::Serialize;

/// How weights, keys and values are kept. Activations and norms are single precision whatever this is, and products are
/// summed in it.
///
/// A decode step is bound by the bytes it reads, so half precision is about twice as fast.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE single precision, 4 bytes.
    #[default]
    F32,
    /// IEEE half precision, 2 bytes.
    F16,
    /// The upper half of single precision, 2 bytes. On GPUs only.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Its name: `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Whether `device` computes with it.
    pub fn runs_on(self, device: &Device) -> bool {
        // The processor's libraries would convert whole weights at every use.
        (self != Dtype::Bf16 || is_gpu(device)) && device.supports_dtype(DType::from(self.float()))
    }

    /// # Errors
    /// [`Error::Request`] if `device` does not compute with it.
    pub(crate) fn check(self, device: &Device) -> Result<()> {
        if self.runs_on(device) {
            return Ok(());
        }
        let problem = format!("{} does not run on this device, {device:?}", self.name());
        let mend = match self {
            Dtype::Bf16 => "use `--dtype f16` or `--dtype f32`, or `--device cuda`",
            _ => "use `--dtype f32`, or `--device cpu`",
        };
        Err(Error::request("dtype", problem, mend))
    }

    /// Burn's name for it.
    pub(crate) fn float(self) -> FloatDType {
        match self {
            Dtype::F32 => FloatDType::F32,
            Dtype::F16 => FloatDType::F16,
            Dtype::Bf16 => FloatDType::BF16,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
