//! All rows of a layer at once: from a cache that lay on the device, and back to tensors.

use super::super::Layout;
use super::Hosted;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::cube::{hosted, refused};
use burn::tensor::{Tensor, TensorCreationOptions, TensorData};
use fasa_cube::tier::BLOCK;
use half::{bf16, f16};

impl Hosted {
    /// Writes the first `len` rows of a cache that lay on the device.
    pub(in crate::cache) fn take_in(
        &mut self,
        layer: usize,
        (keys, values): (Tensor<3>, Tensor<3>),
        len: usize,
    ) -> Result<()> {
        for from in (0..len).step_by(4 * BLOCK) {
            let count = (4 * BLOCK).min(len - from);
            self.write(layer, from, keys.clone().narrow(1, from, count), values.clone().narrow(1, from, count))?;
        }
        Ok(())
    }

    /// Copies of the first `len` rows, `[kv_heads, len, dim]` each.
    pub(in crate::cache) fn rows(&self, layer: usize, len: usize) -> Result<(Tensor<3>, Tensor<3>)> {
        // The device may still be writing some.
        hosted::wait(&self.gpu)?;
        let Layout { kv_heads, dim, dtype, ref device, .. } = self.layout;
        let tensor = |bytes: Vec<u8>| {
            let shape = [kv_heads, len, dim];
            let data = match dtype {
                Dtype::F32 => TensorData::new(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes), shape),
                Dtype::F16 => TensorData::new(bytemuck::pod_collect_to_vec::<u8, f16>(&bytes), shape),
                Dtype::Bf16 => TensorData::new(bytemuck::pod_collect_to_vec::<u8, bf16>(&bytes), shape),
            };
            Tensor::from_data(data, TensorCreationOptions::new(device.clone()).with_dtype(dtype.float().into()))
        };
        let [keys, values] = self.rows.read(layer, len).map_err(refused)?.map(tensor);
        Ok((keys, values))
    }
}
