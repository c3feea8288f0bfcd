//! Sketches on the device, beside the keys that they follow from.

use super::{KvCache, Slot};
use crate::device::is_gpu;
use crate::error::Result;
use crate::ops::{self, SketchStep, Status};
use burn::tensor::{DType, Device, Int, Tensor, TensorCreationOptions};
use fasa_core::policy::OwnedPlan;
use std::sync::Arc;

/// Sketches of all sparse layers for one plan.
#[derive(Debug)]
pub(super) struct Sketched {
    pub(super) plan: Arc<OwnedPlan>,
    pub(super) layers: Vec<Option<SketchLayer>>,
}

/// The sketch of one layer and how many rows of it are written.
#[derive(Debug)]
pub(super) struct SketchLayer {
    pub(super) tensors: Slot<SketchTensors>,
    pub(super) len: usize,
}

/// Handles to one layer's sketch.
#[derive(Debug, Clone)]
pub struct SketchTensors {
    /// Codes, `[sketch_heads, capacity, row_bytes]` u8; on a GPU as many words as hold a row, `[.., row_words]` i32.
    pub codes: Tensor<3, Int>,
    /// Row scales, `[sketch_heads, capacity, 2]` u8; `[1, 1, 1]` for the float formats, which have none. On a GPU
    /// `[sketch_heads, capacity / 2, 1]` i32.
    pub scales: Tensor<3, Int>,
}

impl KvCache {
    /// The sketch of `layer` under `plan`, with a row for each of the first `seen` tokens. Rows that are missing are made
    /// now: one per decode step, or all of them when FASA is turned on for a cache that has none.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if the plan does not fit the model.
    pub(super) fn sketch(&mut self, layer: usize, seen: usize, plan: &Arc<OwnedPlan>) -> Result<SketchTensors> {
        if self.sketched.as_ref().is_none_or(|s| !Arc::ptr_eq(&s.plan, plan)) {
            let layers = (0..self.layout.layers).map(|_| None).collect();
            self.sketched = Some(Sketched { plan: plan.clone(), layers });
            self.forget_recorded();
        }
        let (keys, _) = self.rows.layer(layer);
        let capacity = self.capacity;
        let sketched = self.sketched.as_mut().map(|s| &mut s.layers[layer]);
        let Some(slot) = sketched else { unreachable!("set above") };
        let sketch = slot.get_or_insert_with(|| SketchLayer::new(plan, capacity, &keys.device()));
        if sketch.len < seen {
            let step = SketchStep { layer, rows: sketch.len..seen, plan: plan.clone(), status: Status::default() };
            sketch.tensors.update(|tensors| ops::write_sketch(keys, tensors, step))?;
            sketch.len = seen;
        }
        Ok(sketch.tensors.get())
    }
}

impl SketchLayer {
    pub(super) fn new(plan: &OwnedPlan, capacity: usize, device: &Device) -> Self {
        let plan = plan.view();
        let precision = plan.config().precision;
        let bytes = precision.row_bytes(plan.chunks());
        // GPUs read and write words; two row scales share one.
        let (dtype, row, scales) = match (is_gpu(device), precision.scale_bytes()) {
            (true, _) => (DType::I32, bytes.div_ceil(4), [plan.rows(), capacity / 2, 1]),
            (false, 0) => (DType::U8, bytes, [1, 1, 1]),
            (false, scale_bytes) => (DType::U8, bytes, [plan.rows(), capacity, scale_bytes]),
        };
        let table =
            |shape: [usize; 3]| Tensor::zeros(shape, TensorCreationOptions::new(device.clone()).with_dtype(dtype));
        let codes = table([plan.rows(), capacity, row]);
        Self { tensors: Slot::new(SketchTensors { codes, scales: table(scales) }), len: 0 }
    }
}

/// An even number of rows: see [`SketchLayer::new`].
pub(super) fn whole(capacity: usize) -> usize {
    capacity.next_multiple_of(2)
}

/// For steps that are recorded.
#[cfg(feature = "cube")]
impl KvCache {
    /// Tokens that have a sketch row under `plan` in every layer that has a sketch.
    pub(crate) fn sketched_tokens(&self, plan: &Arc<OwnedPlan>) -> Option<usize> {
        let sketched = self.sketched.as_ref().filter(|sketched| Arc::ptr_eq(&sketched.plan, plan))?;
        sketched.layers.iter().flatten().map(|layer| layer.len).min()
    }

    /// A recorded step has written the sketch rows of the first `tokens`.
    pub(crate) fn note_sketched(&mut self, tokens: usize) {
        for layer in self.sketched.iter_mut().flat_map(|s| s.layers.iter_mut().flatten()) {
            layer.len = tokens;
        }
    }
}
