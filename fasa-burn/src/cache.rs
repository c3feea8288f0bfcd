//! The KV cache: keys, values and sketches of every layer, appended in place.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::ops;
use burn::tensor::{DType, Device, Int, Tensor, TensorCreationOptions};
use fasa_core::policy::OwnedPlan;
use std::sync::Arc;

/// The cache of one sequence.
///
/// Per layer, keys and values are `[kv_heads, capacity, head_dim]`. Appending writes rows into these buffers and copies
/// nothing else; the buffers double when they are full.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Layer>,
    len: usize,
    capacity: usize,
    sketched: Option<Sketched>,
}

/// Keys and values of one layer. The tensors are taken out while they are written, so that their buffer has one owner and
/// the write happens in place.
#[derive(Debug)]
struct Layer {
    keys: Slot<Tensor<3>>,
    values: Slot<Tensor<3>>,
}

/// A tensor that can be taken out and put back.
#[derive(Debug)]
struct Slot<T>(Option<T>);

impl<T: Clone> Slot<T> {
    fn new(tensor: T) -> Self {
        Self(Some(tensor))
    }

    /// Replaces the tensor by what `change` makes of it, as its only owner.
    fn update(&mut self, change: impl FnOnce(T) -> T) {
        self.0 = self.0.take().map(change);
    }

    /// Another handle to the tensor.
    fn get(&self) -> T {
        match &self.0 {
            Some(tensor) => tensor.clone(),
            // Only a panic inside `update` can leave a slot empty, and it unwinds through the owner of the cache.
            None => unreachable!("a cache slot is empty only while it is being written"),
        }
    }
}

/// Sketches of all sparse layers for one plan.
#[derive(Debug)]
struct Sketched {
    plan: Arc<OwnedPlan>,
    layers: Vec<Option<SketchLayer>>,
}

/// The sketch of one layer, `[sketch_heads, capacity, bytes]`, and how many rows of it are written.
#[derive(Debug)]
struct SketchLayer {
    codes: Slot<Tensor<3, Int>>,
    scales: Slot<Tensor<3, Int>>,
    /// Whether rows have scales; the float formats have none.
    scaled: bool,
    len: usize,
}

/// Handles to one layer's sketch.
#[derive(Debug, Clone)]
pub struct SketchTensors {
    /// Codes, `[sketch_heads, capacity, row_bytes]` u8.
    pub codes: Tensor<3, Int>,
    /// Row scales, `[sketch_heads, capacity, 2]` u8; `[1, 1, 1]` for the float formats, which have none.
    pub scales: Tensor<3, Int>,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens.
    pub fn new(config: &ModelConfig, capacity: usize, device: &Device) -> Self {
        let capacity = capacity.max(1);
        let empty = || Slot::new(Tensor::zeros([config.num_key_value_heads, capacity, config.head_dim], device));
        let layers = (0..config.num_hidden_layers).map(|_| Layer { keys: empty(), values: empty() }).collect();
        Self { layers, len: 0, capacity, sketched: None }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit without growing.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens from position `len` on. Costs nothing; their rows are overwritten by later ones.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for layer in self.sketched.iter_mut().flat_map(|s| s.layers.iter_mut().flatten()) {
            layer.len = layer.len.min(self.len);
        }
    }

    /// Makes room for `additional` more tokens, doubling the buffers where they must grow.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self.len + additional;
        if needed <= self.capacity {
            return;
        }
        let capacity = needed.max(2 * self.capacity);
        let kept = self.len;
        for layer in &mut self.layers {
            for slot in [&mut layer.keys, &mut layer.values] {
                slot.update(|old| {
                    let [heads, _, dim] = old.dims();
                    let new = Tensor::zeros([heads, capacity, dim], &old.device());
                    if kept == 0 {
                        return new; // there is no empty slice
                    }
                    new.slice_assign([0..heads, 0..kept, 0..dim], old.narrow(1, 0, kept))
                });
            }
        }
        self.capacity = capacity;
        // Sketches follow from the keys; they are made again in one pass when they are next read.
        self.sketched = None;
    }

    /// Writes the new rows of `layer` behind the `len` tokens held: `[kv_heads, new, head_dim]` each. The tokens count as
    /// held once [`advance`](Self::advance) is called, after the last layer.
    pub(crate) fn write(&mut self, layer: usize, keys: Tensor<3>, values: Tensor<3>) {
        let [heads, new, dim] = keys.dims();
        let at = [0..heads, self.len..self.len + new, 0..dim];
        self.layers[layer].keys.update(|cache| cache.slice_assign(at.clone(), keys));
        self.layers[layer].values.update(|cache| cache.slice_assign(at, values));
    }

    /// Appends `new` rows of zeros to every layer: a context of any length for measurements, without reading a text.
    pub fn append_zeros(&mut self, new: usize) {
        self.reserve(new);
        for layer in 0..self.layers.len() {
            let (keys, _) = self.layer(layer);
            let [heads, _, dim] = keys.dims();
            let rows = Tensor::zeros([heads, new, dim], &keys.device());
            drop(keys); // a second handle would make the write copy the cache
            self.write(layer, rows.clone(), rows);
        }
        self.advance(new);
    }

    /// Counts `new` more tokens as held.
    pub(crate) fn advance(&mut self, new: usize) {
        self.len += new;
    }

    /// Keys and values of `layer`, `[kv_heads, capacity, head_dim]` each.
    pub(crate) fn layer(&self, layer: usize) -> (Tensor<3>, Tensor<3>) {
        (self.layers[layer].keys.get(), self.layers[layer].values.get())
    }

    /// Rotated keys and values of the tokens held, `[kv_heads, len, head_dim]` each.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn rows(&self, layer: usize) -> (Tensor<3>, Tensor<3>) {
        let (keys, values) = self.layer(layer);
        (keys.narrow(1, 0, self.len), values.narrow(1, 0, self.len))
    }

    /// The sketch of `layer` under `plan`, with a row for each of the first `seen` tokens. Rows that are missing are made
    /// now: one per decode step, or all of them when FASA is turned on for a cache that has none.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if the plan does not fit the model.
    pub(crate) fn sketch(&mut self, layer: usize, seen: usize, plan: &Arc<OwnedPlan>) -> Result<SketchTensors> {
        if self.sketched.as_ref().is_none_or(|s| !Arc::ptr_eq(&s.plan, plan)) {
            let layers = self.layers.iter().map(|_| None).collect();
            self.sketched = Some(Sketched { plan: plan.clone(), layers });
        }
        let keys = self.layers[layer].keys.get();
        let capacity = self.capacity;
        let sketched = self.sketched.as_mut().map(|s| &mut s.layers[layer]);
        let Some(slot) = sketched else { unreachable!("set above") };
        let sketch = slot.get_or_insert_with(|| SketchLayer::new(plan, capacity, &keys.device()));
        if sketch.len < seen {
            let rows = ops::sketch_rows(keys, layer, sketch.len..seen, plan)?;
            sketch.write(rows, seen);
        }
        Ok(SketchTensors { codes: sketch.codes.get(), scales: sketch.scales.get() })
    }
}

impl SketchLayer {
    fn new(plan: &OwnedPlan, capacity: usize, device: &Device) -> Self {
        let plan = plan.view();
        let precision = plan.config().precision;
        let table = |shape: [usize; 3]| {
            let options = TensorCreationOptions::new(device.clone()).with_dtype(DType::U8);
            Slot::new(Tensor::zeros(shape, options))
        };
        let scales = match precision.scale_bytes() {
            0 => [1, 1, 1],
            bytes => [plan.rows(), capacity, bytes],
        };
        Self {
            codes: table([plan.rows(), capacity, precision.row_bytes(plan.chunks())]),
            scales: table(scales),
            scaled: precision.scale_bytes() > 0,
            len: 0,
        }
    }

    fn write(&mut self, rows: SketchTensors, seen: usize) {
        let [heads, new, bytes] = rows.codes.dims();
        self.codes.update(|codes| codes.slice_assign([0..heads, seen - new..seen, 0..bytes], rows.codes));
        if self.scaled {
            let scale_bytes = rows.scales.dims()[2];
            let at = [0..heads, seen - new..seen, 0..scale_bytes];
            self.scales.update(|scales| scales.slice_assign(at, rows.scales));
        }
        self.len = seen;
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    fn config() -> ModelConfig {
        let json = include_bytes!("../../fixtures/nano/config.json");
        ModelConfig::from_json(json, std::path::Path::new("config.json")).expect("valid")
    }

    fn append(cache: &mut KvCache, rows: std::ops::Range<usize>) {
        let device = Device::flex();
        let (config, new) = (config(), rows.len());
        let shape = [config.num_key_value_heads, new, config.head_dim];
        let number = |head: usize, row: usize, d: usize| (head * 1000 + row * 10 + d) as f32;
        for layer in 0..config.num_hidden_layers {
            let numbers = (0..shape[0]).flat_map(|h| {
                rows.clone().flat_map(move |r| (0..shape[2]).map(move |d| number(h, r, d) + layer as f32))
            });
            let keys = Tensor::from_data(TensorData::new(numbers.collect::<Vec<f32>>(), shape), &device);
            cache.reserve(new);
            cache.write(layer, keys.clone(), keys.neg());
        }
        cache.advance(new);
    }

    fn rows(cache: &KvCache, layer: usize) -> (Vec<f32>, Vec<f32>) {
        let (keys, values) = cache.rows(layer);
        (keys.into_data().try_to_vec().expect("f32"), values.into_data().try_to_vec().expect("f32"))
    }

    #[test]
    fn appends_in_pieces_and_growing_equal_one_append() {
        let mut whole = KvCache::new(&config(), 40, &Device::flex());
        append(&mut whole, 0..37);
        let mut pieces = KvCache::new(&config(), 1, &Device::flex());
        for piece in [0..1, 1..2, 2..9, 9..10, 10..37] {
            append(&mut pieces, piece);
        }
        for layer in [0, 5] {
            assert_eq!(rows(&whole, layer), rows(&pieces, layer));
        }
    }

    #[test]
    fn truncated_rows_are_overwritten() {
        let mut cache = KvCache::new(&config(), 8, &Device::flex());
        append(&mut cache, 0..6);
        let before = rows(&cache, 3);
        cache.truncate(2);
        assert_eq!(cache.len(), 2);
        append(&mut cache, 2..6);
        assert_eq!(rows(&cache, 3), before);
    }
}
