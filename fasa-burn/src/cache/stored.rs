//! A cache from and to bytes: what a saved session holds.

use super::{KvCache, Rows, SketchLayer, SketchTensors, Sketched, Slot};
use crate::config::ModelConfig;
use crate::device::{failure, is_gpu};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::method::Method;
use burn::tensor::{DType, Tensor, TensorCreationOptions, TensorData};
use fasa_core::policy::OwnedPlan;
use half::{bf16, f16};
use std::sync::Arc;

impl KvCache {
    /// Keys and values of `layer`, `[kv_heads, len, head_dim]` each, in the cache's number format.
    pub(crate) fn layer_data(&self, layer: usize) -> Result<[TensorData; 2]> {
        let (keys, values) = self.rows(layer)?;
        let data = |tensor: Tensor<3>| tensor.try_into_data().map_err(|e| failure(&e.to_string()));
        Ok([data(keys)?, data(values)?])
    }

    /// Makes the sketch rows that `method` will want of the tokens held.
    pub(crate) fn complete_sketch(&mut self, method: &Method, config: &ModelConfig) -> Result<()> {
        if let Method::Fasa { plan, .. } = method {
            for layer in (0..self.layout.layers).filter(|layer| method.is_sparse(*layer, config.window(*layer))) {
                match &mut self.rows {
                    Rows::Tiered(tiered) => tiered.complete(layer, self.len, plan)?,
                    #[cfg(feature = "cube")]
                    Rows::Hosted(hosted) => hosted.complete(layer, self.len, plan)?,
                    _ => drop(self.sketch(layer, self.len, plan)?),
                }
            }
        }
        Ok(())
    }

    /// The plan of the sketch, and the layers that have a row for every token. `None` without such a layer, and for
    /// one on a GPU, whose rows lie otherwise: it is made again from the keys.
    pub(crate) fn sketched(&self) -> Option<(&OwnedPlan, Vec<usize>)> {
        if is_gpu(&self.layout.device) {
            return None;
        }
        if let Rows::Tiered(tiered) = &self.rows {
            return tiered.sketched(self.len);
        }
        let sketched = self.sketched.as_ref()?;
        let complete = |layer: &Option<SketchLayer>| layer.as_ref().is_some_and(|layer| layer.len == self.len);
        let layers: Vec<usize> = (0..sketched.layers.len()).filter(|i| complete(&sketched.layers[*i])).collect();
        (!layers.is_empty()).then_some((&sketched.plan, layers))
    }

    /// Codes and row scales of the sketch of `layer`, `[sketch_heads, len, bytes]` each; the float formats have no scales.
    pub(crate) fn sketch_data(&self, layer: usize) -> Result<Vec<TensorData>> {
        if let Rows::Tiered(tiered) = &self.rows {
            return Ok(tiered.sketch_data(layer, self.len));
        }
        let slot = self.sketched.as_ref().and_then(|sketched| sketched.layers[layer].as_ref());
        let Some(slot) = slot else { return Ok(Vec::new()) };
        let SketchTensors { codes, scales } = slot.tensors.get();
        let mut tables = vec![codes];
        // A table of one entry stands for none.
        tables.extend((scales.dims() != [1, 1, 1]).then_some(scales));
        let data = |table: Tensor<3, burn::tensor::Int>| {
            table.narrow(1, 0, self.len).try_into_data().map_err(|e| failure(&e.to_string()))
        };
        tables.into_iter().map(data).collect()
    }

    /// Writes keys and values of `len` tokens into `layer` of an empty cache with room for them. `fill` fills the bytes of
    /// the keys, then those of the values. The tokens count as held once [`advance`](Self::advance) is called.
    pub(crate) fn restore_layer(
        &mut self,
        layer: usize,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let (heads, dim, dtype) = (self.layout.kv_heads, self.layout.dim, self.layout.dtype);
        let device = self.layout.device.clone();
        let mut tensor = || -> Result<Tensor<3>> {
            let (count, shape) = (heads * len * dim, [heads, len, dim]);
            let data = match dtype {
                Dtype::F32 => TensorData::new(filled::<f32>(count, fill)?, shape),
                Dtype::F16 => TensorData::new(filled::<f16>(count, fill)?, shape),
                Dtype::Bf16 => TensorData::new(filled::<bf16>(count, fill)?, shape),
            };
            let options = TensorCreationOptions::new(device.clone()).with_dtype(dtype.float().into());
            Ok(Tensor::from_data(data, options))
        };
        let (keys, values) = (tensor()?, tensor()?);
        self.write(layer, keys, values)
    }

    /// Puts a stored sketch in place: for each of `layers`, `fill` fills the codes, then the row scales, of the tokens
    /// held, `[sketch_heads, len, bytes]` each.
    pub(crate) fn restore_sketch(
        &mut self,
        plan: &Arc<OwnedPlan>,
        layers: &[usize],
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        if let Rows::Tiered(tiered) = &mut self.rows {
            return tiered.restore_sketch(plan, layers, self.len, fill);
        }
        let device = self.layout.device.clone();
        let (view, capacity, len) = (plan.view(), self.capacity, self.len);
        let (heads, precision) = (view.rows(), view.config().precision);
        if is_gpu(&device) {
            // Read past; it is made again from the keys.
            for _ in layers {
                for bytes in [precision.row_bytes(view.chunks()), precision.scale_bytes()] {
                    fill(&mut vec![0; heads * len * bytes])?;
                }
            }
            return Ok(());
        }
        let mut table = |bytes: usize| -> Result<Tensor<3, burn::tensor::Int>> {
            let rows = filled::<u8>(heads * len * bytes, fill)?;
            let mut all = vec![0; heads * capacity * bytes];
            for (head, rows) in rows.chunks(len * bytes).enumerate() {
                all[head * capacity * bytes..][..rows.len()].copy_from_slice(rows);
            }
            let data = TensorData::new(all, [heads, capacity, bytes]);
            Ok(Tensor::from_data(data, TensorCreationOptions::new(device.clone()).with_dtype(DType::U8)))
        };
        let mut all: Vec<Option<SketchLayer>> = (0..self.layout.layers).map(|_| None).collect();
        for layer in layers {
            let mut fresh = SketchLayer::new(plan, capacity, &device);
            let codes = table(precision.row_bytes(view.chunks()))?;
            let scales = match precision.scale_bytes() {
                0 => fresh.tensors.get().scales,
                bytes => table(bytes)?,
            };
            fresh.tensors = Slot::new(SketchTensors { codes, scales });
            fresh.len = len;
            all[*layer] = Some(fresh);
        }
        self.sketched = Some(Sketched { plan: plan.clone(), layers: all });
        Ok(())
    }
}

/// `count` numbers whose bytes `fill` gives.
fn filled<T: bytemuck::Pod>(count: usize, fill: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<Vec<T>> {
    let mut numbers = vec![T::zeroed(); count];
    fill(bytemuck::cast_slice_mut(&mut numbers))?;
    Ok(numbers)
}
