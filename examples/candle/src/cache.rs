//! Keys and values as tensors, and beside them the sketch.

use crate::fasa::Sketch;
use crate::load::Config;
use candle_core::{DType, Device, Error, Layout, Result, Storage, Tensor};
use fasa_core::Rows;

/// The cache of one sequence.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// One per layer and KV head.
    sketches: Vec<Vec<Sketch>>,
    len: usize,
}

/// Rotated keys and values of one layer, `[kv_heads, capacity, head_dim]` each.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub keys: Tensor,
    pub values: Tensor,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens.
    ///
    /// # Errors
    /// If the device has no room for it.
    pub fn new(config: &Config, capacity: usize, device: &Device) -> Result<Self> {
        let empty = || Tensor::zeros((config.num_key_value_heads, capacity, config.head_dim), DType::F32, device);
        let layer = |_| Ok(LayerCache { keys: empty()?, values: empty()? });
        let sketches = || (0..config.num_key_value_heads).map(|_| Sketch::default()).collect();
        Ok(Self {
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            sketches: (0..config.num_hidden_layers).map(|_| sketches()).collect(),
            len: 0,
        })
    }

    /// Tokens held.
    #[allow(clippy::len_without_is_empty)] // nobody asks
    pub fn len(&self) -> usize {
        self.len
    }

    /// Writes the new rows of a layer behind the tokens held, `[kv_heads, new, head_dim]` each.
    pub(crate) fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        let cache = &self.layers[layer];
        cache.keys.slice_set(keys, 1, self.len)?;
        cache.values.slice_set(values, 1, self.len)
    }

    /// Counts `new` more tokens as held, after the last layer.
    pub(crate) fn advance(&mut self, new: usize) {
        self.len += new;
    }

    pub(crate) fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    pub(crate) fn layer_and_sketch(&mut self, layer: usize, kv_head: usize) -> (&LayerCache, &mut Sketch) {
        (&self.layers[layer], &mut self.sketches[layer][kv_head])
    }
}

/// The first `seen` rows of one head of a `[kv_heads, capacity, dim]` tensor, where they lie in memory.
pub(crate) fn rows<'a>(storage: &'a Storage, layout: &Layout, kv_head: usize, seen: usize) -> Result<Rows<'a>> {
    let Storage::Cpu(storage) = storage else {
        candle_core::bail!("this example reads keys from the processor's memory")
    };
    let (_, capacity, dim) = layout.shape().dims3()?;
    let start = layout.start_offset() + kv_head * capacity * dim;
    Rows::strided(&storage.as_slice::<f32>()?[start..], seen, dim, dim).map_err(Error::wrap)
}
