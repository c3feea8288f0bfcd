//! Contexts of any length for measurements, without reading a text.

#[cfg(feature = "cube")]
use super::Rows;
use super::{KvCache, Layout, zeros};
use crate::error::Result;
use burn::tensor::{Device, Distribution, Tensor};

impl KvCache {
    /// Appends `new` rows of zeros to every layer: a context of any length for measurements, without reading a text.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn append_zeros(&mut self, new: usize) -> Result<()> {
        let Layout { kv_heads, dim, dtype, .. } = self.layout;
        self.append_rows(new, |rows, device| zeros([kv_heads, rows, dim], dtype, device))
    }

    /// Appends `new` rows of normally distributed noise to every layer: a context of any length for measurements, without
    /// reading a text. All rows differ, as those of a text do.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn append_noise(&mut self, new: usize) -> Result<()> {
        let Layout { kv_heads, dim, dtype, .. } = self.layout;
        self.append_rows(new, |rows, device| {
            let numbers: Tensor<3> = Tensor::random([kv_heads, rows, dim], Distribution::Normal(0.0, 1.0), device);
            numbers.cast(dtype.float())
        })
    }

    /// Tokens whose rows are their own, where others share them: see [`HostOptions::shared_beyond`](super::HostOptions::shared_beyond).
    pub fn own_rows(&self) -> usize {
        match &self.rows {
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => hosted.own_rows(),
            _ => usize::MAX,
        }
    }

    fn append_rows(&mut self, new: usize, rows: impl Fn(usize, &Device) -> Tensor<3>) -> Result<()> {
        self.reserve(new)?;
        let (start, device) = (self.len, self.layout.device.clone());
        let own = self.own_rows().saturating_sub(start).min(new);
        for layer in 0..self.layout.layers {
            // In pieces: numbers are drawn in single precision, which for the whole context might not fit.
            for from in (0..own).step_by(4096) {
                let count = 4096.min(own - from);
                self.len = start + from;
                let written = self.write(layer, rows(count, &device), rows(count, &device));
                self.len = start;
                written?;
            }
        }
        self.advance(new);
        Ok(())
    }
}
