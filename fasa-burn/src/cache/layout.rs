//! The shape of a cache, and whether there is memory for it.

use crate::device::{is_gpu, memory};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use burn::tensor::Device;

/// The shape of a cache.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub layers: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub dtype: Dtype,
    pub device: Device,
    /// Bytes of the model's weights.
    pub weights: u64,
}

impl Layout {
    /// Bytes of keys and values.
    pub fn bytes(&self, rows: usize) -> u64 {
        (2 * self.layers * self.kv_heads * self.dim * self.dtype.bytes()) as u64 * rows as u64
    }

    /// Whether the processor's memory gives `more` bytes for a cache of `rows` rows: where it does not, allocating them would
    /// end the process. What of its memory a GPU has left shows when it is used: see `check_given`.
    pub fn check_memory(&self, rows: usize, more: u64) -> Result<()> {
        let given = |bytes: u64| Vec::<u8>::new().try_reserve_exact(usize::try_from(bytes).ok()?).ok();
        let bytes = self.bytes(rows);
        if is_gpu(&self.device) {
            return match memory(&self.device) {
                Some(memory) if self.weights + bytes > memory => Err(Error::Device {
                    problem: format!(
                        "has too little memory: a cache of {rows} tokens takes {bytes} bytes beside the weights' {}, there are {memory}",
                        self.weights
                    ),
                    mend: "use `--cache tiered`, a shorter context, `--dtype f16`, or another `--device`".into(),
                }),
                _ => Ok(()),
            };
        }
        if given(more).is_some() {
            return Ok(());
        }
        Err(Error::Device {
            problem: format!("has too little memory for a cache of {rows} tokens, {bytes} bytes"),
            mend: "use `--cache tiered`, a shorter context, or `--dtype f16`".into(),
        })
    }
}
