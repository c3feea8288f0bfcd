//! The KV cache: keys, values and sketches of every layer, appended in place.

mod attend;
mod fill;
#[cfg(feature = "cube")]
mod hosted;
mod layout;
mod placement;
mod sketch;
mod stored;
mod tiered;

pub use fasa_cpu::tier::Traffic;
pub use placement::{HostOptions, Placement, TierPlace, TierUse};
pub use sketch::SketchTensors;

use crate::config::ModelConfig;
use crate::device::{failure, is_gpu};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops;
use crate::rope::Angles;
use burn::tensor::{Device, Int, Tensor, TensorCreationOptions};
#[cfg(feature = "cube")]
use fasa_core::policy::OwnedPlan;
#[cfg(feature = "cube")]
use hosted::Hosted;
use layout::Layout;
use sketch::{SketchLayer, Sketched, whole};
use std::path::Path;
use tiered::Tiered;

/// The cache of one sequence.
///
/// Per layer, keys and values are `[kv_heads, capacity, head_dim]`. Appending writes rows into these buffers and copies
/// nothing else; the buffers double when they are full. With a [`Placement`] in a second tier they lie in a file instead, those of a
/// GPU in the host's memory, and the device's memory holds the sketch and the rows that steps choose again and again.
#[derive(Debug)]
pub struct KvCache {
    layout: Layout,
    rows: Rows,
    placement: Placement,
    len: usize,
    capacity: usize,
    sketched: Option<Sketched>,
    /// The longest context that was announced or read.
    expected: usize,
    /// How keys and values lie in the host's memory, if they do.
    #[cfg_attr(not(feature = "cube"), allow(dead_code))]
    host: HostOptions,
    /// Steps over these buffers that a GPU can run again.
    #[cfg(feature = "cube")]
    pub(crate) recorded: Vec<crate::model::Recorded>,
}

/// Whether a GPU had the memory for `last`, which it was asked for last: what it lacks it says only when it is read.
fn check_given(last: &Layer) -> Result<()> {
    let (_, values) = last.get();
    let number = values.slice([0..1, 0..1, 0..1]).try_into_data();
    number.map(drop).map_err(|error| failure(&error.to_string()))
}

/// Where keys and values are.
#[derive(Debug)]
enum Rows {
    /// Nowhere yet: how many are wanted will decide.
    Undecided {
        /// Rows that were asked for.
        wanted: usize,
    },
    Device(Vec<Layer>),
    Tiered(Box<Tiered>),
    #[cfg(feature = "cube")]
    Hosted(Box<Hosted>),
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

impl KvCache {
    /// An empty cache on the device with room for `capacity` tokens. [`Decoder::new_cache`](crate::model::Decoder::new_cache)
    /// makes one in the model's own number format, where its [`Placement`] says.
    ///
    /// # Errors
    /// [`crate::Error::Request`] if the device does not compute with `dtype`.
    pub fn new(config: &ModelConfig, capacity: usize, dtype: Dtype, device: &Device) -> Result<Self> {
        dtype.check(device)?;
        Ok(Self::empty(config, capacity, dtype, device, Placement::Device))
    }

    /// [`new`](Self::new) where the device is known to compute with `dtype`, and to have such a placement. Room is made
    /// by [`reserve`](Self::reserve).
    pub(crate) fn empty(
        config: &ModelConfig,
        capacity: usize,
        dtype: Dtype,
        device: &Device,
        placement: Placement,
    ) -> Self {
        let (layers, kv_heads, dim) = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim);
        let weights = crate::measure::weight_bytes(config, dtype);
        let layout = Layout { layers, kv_heads, dim, dtype, device: device.clone(), weights };
        let rows = Rows::Undecided { wanted: capacity.max(1) };
        Self {
            layout,
            rows,
            placement,
            len: 0,
            capacity: 0,
            sketched: None,
            expected: 0,
            host: HostOptions::default(),
            #[cfg(feature = "cube")]
            recorded: Vec::new(),
        }
    }

    /// The number format of keys and values.
    pub fn dtype(&self) -> Dtype {
        self.layout.dtype
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of keys and values, those of rows not yet used included, wherever they lie.
    pub fn bytes(&self) -> u64 {
        match &self.rows {
            Rows::Undecided { .. } => 0,
            Rows::Device(_) => self.layout.bytes(self.capacity),
            Rows::Tiered(tiered) => tiered.file_bytes(),
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => hosted.host_bytes(),
        }
    }

    /// How keys and values lie in the host's memory once they do. What rows share has to be said before there is any.
    pub fn set_host(&mut self, options: HostOptions) {
        self.host = options;
        #[cfg(feature = "cube")]
        if let Rows::Hosted(hosted) = &mut self.rows {
            hosted.set(options);
            self.recorded.clear();
        }
    }

    /// Bytes of the device's memory that the cache takes, sketches included and rows not yet used as well.
    pub fn device_bytes(&self) -> u64 {
        let table = |table: Tensor<3, Int>| (table.dims().iter().product::<usize>() * table.dtype().size()) as u64;
        let of = |sketch: &SketchLayer| {
            let SketchTensors { codes, scales } = sketch.tensors.get();
            table(codes) + table(scales)
        };
        let sketches: u64 = self.sketched.iter().flat_map(|s| s.layers.iter().flatten()).map(of).sum();
        sketches
            + match &self.rows {
                Rows::Tiered(tiered) => tiered.memory_bytes(),
                #[cfg(feature = "cube")]
                Rows::Hosted(hosted) => hosted.device_bytes(),
                _ => self.bytes(),
            }
    }

    /// What the second tier takes, if keys and values lie there.
    pub fn tier(&self) -> Option<TierUse<'_>> {
        match &self.rows {
            Rows::Tiered(tiered) => Some(tiered.used()),
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => Some(hosted.used()),
            _ => None,
        }
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
        match &mut self.rows {
            Rows::Tiered(tiered) => tiered.truncate(self.len),
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => hosted.truncate(self.len),
            _ => {}
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

    /// Makes room for `additional` more tokens, doubling the buffers where they must grow. Decides where the rows lie, if
    /// that is open: a cache that no longer fits into memory moves to the second tier.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the processor's memory cannot hold them, [`crate::Error::Tier`] if the second tier has no room, or its
    /// file fails.
    pub fn reserve(&mut self, additional: usize) -> Result<()> {
        let needed = match self.rows {
            Rows::Undecided { wanted } => wanted.max(additional),
            _ => self.len + additional,
        };
        if needed <= self.capacity {
            return Ok(());
        }
        match &mut self.rows {
            Rows::Tiered(tiered) => {
                self.capacity = tiered.reserve(needed)?;
                return Ok(());
            }
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => {
                self.capacity = hosted.reserve(needed)?;
                self.forget_recorded();
                return Ok(());
            }
            _ => {}
        }
        let capacity = whole(needed.max(2 * self.capacity));
        let more = self.layout.bytes(capacity) - self.layout.bytes(self.capacity);
        if let Some(folder) = self.placement.second_tier(more).cloned() {
            return self.move_to(&folder, needed);
        }
        #[cfg(feature = "cube")]
        if self.placement.in_host(self.layout.weights + self.layout.bytes(capacity), &self.layout.device) {
            return self.move_to_host(needed);
        }
        self.layout.check_memory(capacity, more)?;
        let Layout { layers, kv_heads, dim, dtype, ref device, .. } = self.layout;
        let rows = || zeros([kv_heads, capacity, dim], dtype, device);
        match &mut self.rows {
            Rows::Device(layers) => {
                let kept = self.len;
                let grown = |old: Tensor<3>| match kept {
                    0 => rows(), // there is no empty slice
                    _ => rows().slice_assign([0..kv_heads, 0..kept, 0..dim], old.narrow(1, 0, kept)),
                };
                for layer in layers {
                    layer.update(|(keys, values)| ((grown(keys), grown(values)), ()));
                }
            }
            other => *other = Rows::Device((0..layers).map(|_| Slot::new((rows(), rows()))).collect()),
        }
        if let (true, Rows::Device(layers)) = (is_gpu(&self.layout.device), &self.rows) {
            layers.last().map_or(Ok(()), check_given)?;
        }
        self.capacity = capacity;
        // Sketches follow from the keys; they are made again in one pass when they are next read.
        self.sketched = None;
        self.forget_recorded();
        Ok(())
    }

    /// Moves to a second tier in `folder`, with room for `capacity` tokens.
    fn move_to(&mut self, folder: &Path, capacity: usize) -> Result<()> {
        let mut tiered = Tiered::create(folder, &self.layout)?;
        let capacity = tiered.reserve(capacity)?;
        if let Rows::Device(layers) = &self.rows {
            layers.iter().enumerate().try_for_each(|(i, layer)| tiered.take_in(i, layer.get(), self.len))?;
        }
        (self.rows, self.capacity, self.sketched) = (Rows::Tiered(Box::new(tiered)), capacity, None);
        Ok(())
    }

    /// Moves to the host's memory, with room for `capacity` tokens.
    #[cfg(feature = "cube")]
    fn move_to_host(&mut self, capacity: usize) -> Result<()> {
        let mut hosted = Hosted::new(&self.layout, self.host)?;
        let capacity = hosted.reserve(capacity)?;
        if let Rows::Device(layers) = &self.rows {
            layers.iter().enumerate().try_for_each(|(i, layer)| hosted.take_in(i, layer.get(), self.len))?;
        }
        (self.rows, self.capacity, self.sketched) = (Rows::Hosted(Box::new(hosted)), capacity, None);
        self.forget_recorded();
        Ok(())
    }

    /// Whether a step by `plan`, or a dense one, can be recorded: none can that goes to the host and back.
    #[cfg(feature = "cube")]
    pub(crate) fn stays_on_device(&self, plan: Option<&OwnedPlan>) -> bool {
        match &self.rows {
            Rows::Device(_) => true,
            Rows::Hosted(hosted) => plan.is_some_and(|plan| hosted.stays_on_device(plan)),
            _ => false,
        }
    }

    /// Writes keys and values of new tokens into `layer`, behind the `len` tokens held, and returns their queries,
    /// `[new, query_heads, head_dim]`; keys and queries are turned by `angles`. `qkv` is `[new, (query heads + 2 kv heads) *
    /// head_dim]`. The tokens count as held once [`advance`](Self::advance) is called, after the last layer.
    ///
    /// # Errors
    /// [`Error::Tier`] if the second tier fails.
    pub(crate) fn append(&mut self, layer: usize, qkv: Tensor<2>, angles: &Angles) -> Result<Tensor<3>> {
        let position = self.len;
        match &mut self.rows {
            Rows::Tiered(tiered) => tiered.append(layer, position, qkv, angles),
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => Ok(hosted.append(layer, position, qkv, angles)),
            rows => Ok(rows.on_device(layer).update(|(keys, values)| {
                let (queries, keys, values) = ops::append(qkv, angles, keys, values, position);
                ((keys, values), queries)
            })),
        }
    }

    /// Writes rows of `layer` behind the `len` tokens held: `[kv_heads, new, head_dim]` each.
    fn write(&mut self, layer: usize, new_keys: Tensor<3>, new_values: Tensor<3>) -> Result<()> {
        self.forget_recorded();
        let [heads, new, dim] = new_keys.dims();
        let at = [0..heads, self.len..self.len + new, 0..dim];
        match &mut self.rows {
            Rows::Tiered(tiered) => tiered.write(layer, self.len, new_keys, new_values)?,
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => hosted.write(layer, self.len, new_keys, new_values)?,
            rows => rows.on_device(layer).update(|(keys, values)| {
                ((keys.slice_assign(at.clone(), new_keys), values.slice_assign(at, new_values)), ())
            }),
        }
        Ok(())
    }

    /// Buffers are going to lie elsewhere.
    fn forget_recorded(&mut self) {
        #[cfg(feature = "cube")]
        self.recorded.clear();
    }

    /// Counts `new` more tokens as held.
    pub(crate) fn advance(&mut self, new: usize) {
        self.len += new;
        self.expected = self.expected.max(self.len);
    }

    /// Rotated keys and values of the tokens held, `[kv_heads, len, head_dim]` each, in the cache's number format. Of a cache
    /// in the second tier, a copy.
    ///
    /// # Errors
    /// [`crate::Error::Tier`] if the second tier fails.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn rows(&self, layer: usize) -> Result<(Tensor<3>, Tensor<3>)> {
        match &self.rows {
            Rows::Tiered(tiered) => tiered.rows(layer, self.len),
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => hosted.rows(layer, self.len),
            rows => {
                let (keys, values) = rows.layer(layer);
                Ok((keys.narrow(1, 0, self.len), values.narrow(1, 0, self.len)))
            }
        }
    }
}

impl Rows {
    /// Keys and values of a layer, `[kv_heads, capacity, head_dim]` each.
    fn layer(&self, layer: usize) -> (Tensor<3>, Tensor<3>) {
        match self {
            Rows::Device(layers) => layers[layer].get(),
            _ => elsewhere(),
        }
    }

    fn on_device(&mut self, layer: usize) -> &mut Layer {
        match self {
            Rows::Device(layers) => &mut layers[layer],
            _ => elsewhere(),
        }
    }
}

/// Every use of the rows asks for the second tier first, and comes after [`KvCache::reserve`].
fn elsewhere() -> ! {
    unreachable!("rows are on the device once room was made for them, unless they are in the second tier")
}

fn zeros(shape: [usize; 3], dtype: Dtype, device: &Device) -> Tensor<3> {
    Tensor::zeros(shape, TensorCreationOptions::new(device.clone()).with_dtype(dtype.float().into()))
}

#[cfg(all(test, feature = "flex"))]
mod tests;
