//! Sketches on the device, beside the keys that they follow from.

#[cfg(feature = "cube")]
use super::Rows;
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
        if let Rows::Hosted(hosted) = &self.rows {
            return hosted.sketched_tokens(plan);
        }
        let sketched = self.sketched.as_ref().filter(|sketched| Arc::ptr_eq(&sketched.plan, plan))?;
        sketched.layers.iter().flatten().map(|layer| layer.len).min()
    }

    /// A recorded step has written the sketch rows of the first `tokens`.
    pub(crate) fn note_sketched(&mut self, tokens: usize) {
        if let Rows::Hosted(hosted) = &mut self.rows {
            return hosted.note_step(tokens);
        }
        for layer in self.sketched.iter_mut().flat_map(|s| s.layers.iter_mut().flatten()) {
            layer.len = tokens;
        }
    }
}

/// For sketches that outlive the keys on the device.
#[cfg(feature = "cube")]
impl SketchLayer {
    fn tables(&self) -> [Tensor<3, Int>; 2] {
        let SketchTensors { codes, scales } = self.tensors.get();
        [codes, scales]
    }

    /// Bytes of codes and scales.
    pub(super) fn bytes(&self) -> u64 {
        let of = |table: Tensor<3, Int>| (table.dims().iter().product::<usize>() * table.dtype().size()) as u64;
        self.tables().map(of).iter().sum()
    }

    /// Rows that there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.tables()[0].dims()[1]
    }

    /// Room for `capacity` rows, an even number of them, with those that are there.
    pub(super) fn grow(&mut self, plan: &OwnedPlan, capacity: usize, device: &Device) {
        let fresh = Self::new(plan, whole(capacity), device);
        let pairs = self.len.div_ceil(2);
        if self.len > 0 {
            let copied = |to: Tensor<3, Int>, from: Tensor<3, Int>, rows: usize| {
                let [heads, _, width] = from.dims();
                to.slice_assign([0..heads, 0..rows, 0..width], from.narrow(1, 0, rows))
            };
            let ([codes, scales], [old_codes, old_scales]) = (fresh.tables(), self.tables());
            let (codes, scales) = (copied(codes, old_codes, self.len), copied(scales, old_scales, pairs));
            self.tensors = Slot::new(SketchTensors { codes, scales });
        } else {
            self.tensors = fresh.tensors;
        }
    }
}
