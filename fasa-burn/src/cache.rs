//! The KV cache: keys, values and sketches of every layer, appended in place.

mod stored;

use crate::config::ModelConfig;
use crate::device::is_gpu;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::{self, SketchStep, Status};
use crate::rope::Angles;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorCreationOptions};
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
    dtype: Dtype,
    sketched: Option<Sketched>,
    /// The longest context that was announced or read.
    expected: usize,
}

/// Keys and values of one layer.
type Layer = Slot<(Tensor<3>, Tensor<3>)>;

/// Tensors that are taken out while they are written, so that their buffers have one owner and the write happens in place.
#[derive(Debug)]
struct Slot<T>(Option<T>);

impl<T: Clone> Slot<T> {
    fn new(tensors: T) -> Self {
        Self(Some(tensors))
    }

    /// Replaces the tensors by what `change` makes of them, as their only owner.
    fn update<R>(&mut self, change: impl FnOnce(T) -> (T, R)) -> R {
        match self.0.take() {
            Some(tensors) => {
                let (tensors, result) = change(tensors);
                self.0 = Some(tensors);
                result
            }
            None => taken(),
        }
    }

    /// Other handles to the tensors.
    fn get(&self) -> T {
        self.0.clone().unwrap_or_else(|| taken())
    }
}

/// Only a panic inside `update` can leave a slot empty, and it unwinds through the owner of the cache.
fn taken() -> ! {
    unreachable!("a cache slot is empty only while it is being written")
}

/// Sketches of all sparse layers for one plan.
#[derive(Debug)]
struct Sketched {
    plan: Arc<OwnedPlan>,
    layers: Vec<Option<SketchLayer>>,
}

/// The sketch of one layer and how many rows of it are written.
#[derive(Debug)]
struct SketchLayer {
    tensors: Slot<SketchTensors>,
    len: usize,
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
    /// An empty cache with room for `capacity` tokens. [`Decoder::new_cache`](crate::model::Decoder::new_cache) makes one
    /// in the model's own number format.
    ///
    /// # Errors
    /// [`crate::Error::Request`] if the device does not compute with `dtype`.
    pub fn new(config: &ModelConfig, capacity: usize, dtype: Dtype, device: &Device) -> Result<Self> {
        dtype.check(device)?;
        Ok(Self::empty(config, capacity, dtype, device))
    }

    /// [`new`](Self::new) where the device is known to compute with `dtype`.
    pub(crate) fn empty(config: &ModelConfig, capacity: usize, dtype: Dtype, device: &Device) -> Self {
        let capacity = whole(capacity.max(1));
        let rows = || zeros([config.num_key_value_heads, capacity, config.head_dim], dtype, device);
        let layers = (0..config.num_hidden_layers).map(|_| Slot::new((rows(), rows()))).collect();
        Self { layers, len: 0, capacity, dtype, sketched: None, expected: 0 }
    }

    /// The number format of keys and values.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of keys and values, those of rows not yet used included.
    pub fn bytes(&self) -> u64 {
        let rows = |layer: &Layer| {
            let [heads, capacity, dim] = layer.get().0.dims();
            2 * heads * capacity * dim * self.dtype.bytes()
        };
        self.layers.iter().map(|layer| rows(layer) as u64).sum()
    }

    /// Tokens that fit without growing.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens from position `len` on. Costs nothing; their rows are overwritten by later ones.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if self.len == 0 {
            self.expected = 0;
        }
        for layer in self.sketched.iter_mut().flat_map(|s| s.layers.iter_mut().flatten()) {
            layer.len = layer.len.min(self.len);
        }
    }

    /// Announces that the context will hold `tokens`. Some models' rotary frequencies follow the length of the context: what
    /// is read in pieces is then turned as if it were read at once.
    pub fn expect(&mut self, tokens: usize) {
        self.expected = self.expected.max(tokens);
    }

    /// The longest context that was announced or read.
    pub fn expected(&self) -> usize {
        self.expected
    }

    /// Makes room for `additional` more tokens, doubling the buffers where they must grow.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self.len + additional;
        if needed <= self.capacity {
            return;
        }
        let capacity = whole(needed.max(2 * self.capacity));
        let (kept, dtype) = (self.len, self.dtype);
        let grown = |old: Tensor<3>| {
            let [heads, _, dim] = old.dims();
            let new = zeros([heads, capacity, dim], dtype, &old.device());
            match kept {
                0 => new, // there is no empty slice
                _ => new.slice_assign([0..heads, 0..kept, 0..dim], old.narrow(1, 0, kept)),
            }
        };
        for layer in &mut self.layers {
            layer.update(|(keys, values)| ((grown(keys), grown(values)), ()));
        }
        self.capacity = capacity;
        // Sketches follow from the keys; they are made again in one pass when they are next read.
        self.sketched = None;
    }

    /// Writes keys and values of new tokens into `layer`, behind the `len` tokens held, and returns their queries,
    /// `[new, query_heads, head_dim]`; keys and queries are turned by `angles`. `qkv` is `[new, (query heads + 2 kv heads) *
    /// head_dim]`. The tokens count as held once [`advance`](Self::advance) is called, after the last layer.
    pub(crate) fn append(&mut self, layer: usize, qkv: Tensor<2>, angles: &Angles) -> Tensor<3> {
        let position = self.len;
        self.layers[layer].update(|(keys, values)| {
            let (queries, keys, values) = ops::append(qkv, angles, keys, values, position);
            ((keys, values), queries)
        })
    }

    /// Writes rows of `layer` behind the `len` tokens held: `[kv_heads, new, head_dim]` each.
    fn write(&mut self, layer: usize, new_keys: Tensor<3>, new_values: Tensor<3>) {
        let [heads, new, dim] = new_keys.dims();
        let at = [0..heads, self.len..self.len + new, 0..dim];
        self.layers[layer].update(|(keys, values)| {
            ((keys.slice_assign(at.clone(), new_keys), values.slice_assign(at, new_values)), ())
        });
    }

    /// Appends `new` rows of zeros to every layer: a context of any length for measurements, without reading a text.
    pub fn append_zeros(&mut self, new: usize) {
        self.reserve(new);
        for layer in 0..self.layers.len() {
            let (keys, values) = self.layer(layer);
            let [heads, _, dim] = keys.dims();
            let rows = zeros([heads, new, dim], self.dtype, &keys.device());
            drop((keys, values)); // a second handle would make the write copy the cache
            self.write(layer, rows.clone(), rows);
        }
        self.advance(new);
    }

    /// Appends `new` rows of normally distributed noise to every layer: a context of any length for measurements, without
    /// reading a text. All rows differ, as those of a text do.
    pub fn append_noise(&mut self, new: usize) {
        self.reserve(new);
        for layer in 0..self.layers.len() {
            let (keys, _) = self.layer(layer);
            let ([heads, _, dim], device) = (keys.dims(), keys.device());
            drop(keys); // a second handle would make the write copy the cache
            // In pieces: numbers are drawn in single precision, which for the whole context might not fit.
            let start = self.len;
            for from in (0..new).step_by(4096) {
                let rows = 4096.min(new - from);
                let noise = || {
                    let numbers: Tensor<3> =
                        Tensor::random([heads, rows, dim], Distribution::Normal(0.0, 1.0), &device);
                    numbers.cast(self.dtype.float())
                };
                let (keys, values) = (noise(), noise());
                self.len = start + from;
                self.write(layer, keys, values);
            }
            self.len = start;
        }
        self.advance(new);
    }

    /// Counts `new` more tokens as held.
    pub(crate) fn advance(&mut self, new: usize) {
        self.len += new;
        self.expected = self.expected.max(self.len);
    }

    /// Keys and values of `layer`, `[kv_heads, capacity, head_dim]` each.
    pub(crate) fn layer(&self, layer: usize) -> (Tensor<3>, Tensor<3>) {
        self.layers[layer].get()
    }

    /// Rotated keys and values of the tokens held, `[kv_heads, len, head_dim]` each, in the cache's number format.
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
        let (keys, _) = self.layers[layer].get();
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
    fn new(plan: &OwnedPlan, capacity: usize, device: &Device) -> Self {
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
fn whole(capacity: usize) -> usize {
    capacity.next_multiple_of(2)
}

fn zeros(shape: [usize; 3], dtype: Dtype, device: &Device) -> Tensor<3> {
    Tensor::zeros(shape, TensorCreationOptions::new(device.clone()).with_dtype(dtype.float().into()))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    fn config() -> ModelConfig {
        let json = include_bytes!("../../fixtures/nano/config.json");
        ModelConfig::from_json(json, std::path::Path::new("config.json")).expect("valid")
    }

    fn cache(capacity: usize) -> KvCache {
        KvCache::new(&config(), capacity, Dtype::F32, &Device::flex()).expect("f32 runs everywhere")
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
        let mut whole = cache(40);
        append(&mut whole, 0..37);
        let mut pieces = cache(1);
        for piece in [0..1, 1..2, 2..9, 9..10, 10..37] {
            append(&mut pieces, piece);
        }
        for layer in [0, 5] {
            assert_eq!(rows(&whole, layer), rows(&pieces, layer));
        }
    }

    #[test]
    fn truncated_rows_are_overwritten() {
        let mut cache = cache(8);
        append(&mut cache, 0..6);
        let before = rows(&cache, 3);
        cache.truncate(2);
        assert_eq!(cache.len(), 2);
        append(&mut cache, 2..6);
        assert_eq!(rows(&cache, 3), before);
    }
}
