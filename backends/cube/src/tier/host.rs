//! Every key and value, in the host's memory.

use crate::error::{Error, Result, ensure};
use crate::numbers::Format;
use cubecl::bytes::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};
use cubecl::client::Client;
use cubecl::server::Handle;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

/// Rows of a block. Blocks of a layer go to the device as they are.
pub const BLOCK: usize = 1024;

/// What host memory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostShape {
    /// Layers.
    pub layers: usize,
    /// KV heads.
    pub heads: usize,
    /// Numbers of a key, and of a value.
    pub dim: usize,
    /// Their format.
    pub format: Format,
}

impl HostShape {
    /// Bytes of a key, or of a value.
    pub fn row(&self) -> usize {
        4 * self.dim / self.format.per_word()
    }

    /// Bytes of a layer's rows in a block: the keys of all heads, then the values.
    pub fn block(&self) -> usize {
        2 * self.heads * BLOCK * self.row()
    }

    /// Bytes that `rows` tokens take, in whole blocks.
    pub fn bytes(&self, rows: usize) -> u64 {
        (self.layers * self.block()) as u64 * rows.div_ceil(BLOCK) as u64
    }
}

/// Keys and values of all layers in the host's memory, a block of [`BLOCK`] tokens after the other.
///
/// What was written is what the device gets. Rows are written after their numbers were read from the device, in the order of
/// the thread's launches, so whatever copies were asked for before are over by then.
#[derive(Debug)]
pub struct HostRows {
    shape: HostShape,
    /// Per layer.
    blocks: Vec<Vec<Arc<Block>>>,
    /// Tokens that there is room for.
    capacity: usize,
    /// Blocks of a layer that are really there, where rows share them.
    most: usize,
}

/// `[2, heads, BLOCK, dim]` in memory that stays where it is.
#[derive(Debug)]
pub(super) struct Block {
    start: *mut u8,
    len: usize,
    pinned: bool,
    /// Owns what `start` points to; touched by nobody else.
    _memory: Bytes,
}

// SAFETY: a block is memory that it owns. It is written through `&mut HostRows` alone; the copies that the device makes meanwhile
// are of other rows: see `HostRows`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    pub(super) fn new(client: &Client, len: usize) -> Result<Self> {
        let mut numbers: Vec<u8> = Vec::new();
        numbers.try_reserve_exact(len).map_err(|_| Error::Device("has a host without memory for the rows"))?;
        numbers.resize(len, 0);
        let mut memory = Bytes::from_bytes_vec(numbers);
        // Pinned where the runtime has such memory; else it stays what it is.
        client.staging(std::iter::once(&mut memory), false);
        let pinned = matches!(memory.property(), AllocationProperty::Pinned);
        Ok(Self { start: memory.as_mut_ptr(), len, pinned, _memory: memory })
    }

    /// Copies its first `len` bytes to the device. One transfer.
    pub(super) fn upload(block: &Arc<Self>, client: &Client, len: usize) -> Handle {
        let len = len.min(block.len);
        // SAFETY: a block is at least as long as that, and initialised.
        client.create(unsafe { Bytes::from_controller(Box::new(Lent(block.clone(), len)), len) })
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len, "a row lies in its block");
        // SAFETY: the range is inside the allocation, which was initialised when it was made, and nobody writes it while
        // `HostRows` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len, "a row lies in its block");
        // SAFETY: inside the allocation; the caller has `&mut HostRows`, so no slice of it is alive, and `bytes` lies elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) }
    }
}

/// The first bytes of a block on their way to the device: they are read where they lie.
struct Lent(Arc<Block>, usize);

impl AllocationController for Lent {
    fn alloc_align(&self) -> usize {
        1
    }

    fn property(&self) -> AllocationProperty {
        if self.0.pinned { AllocationProperty::Pinned } else { AllocationProperty::Native }
    }

    unsafe fn memory_mut(&mut self, _policy: AccessPolicy) -> std::result::Result<&mut [MaybeUninit<u8>], AccessError> {
        Err(AccessError::WouldCopy)
    }

    fn memory(&self, _policy: AccessPolicy) -> std::result::Result<&[MaybeUninit<u8>], AccessError> {
        let bytes = self.0.bytes(0..self.1);
        // SAFETY: initialised bytes are bytes that may be uninitialised.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) })
    }
}

impl HostRows {
    /// No row yet.
    pub fn new(shape: HostShape) -> Self {
        let mut blocks = Vec::new();
        blocks.resize_with(shape.layers, Vec::new);
        Self { shape, blocks, capacity: 0, most: usize::MAX }
    }

    /// What it holds.
    pub fn shape(&self) -> HostShape {
        self.shape
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory taken.
    pub fn bytes(&self) -> u64 {
        let blocks: usize = self.blocks.iter().map(Vec::len).sum();
        (blocks * self.shape.block()) as u64
    }

    /// Whether all of it is pinned, so that the device copies without a stop; `None` before there is any.
    pub fn is_pinned(&self) -> Option<bool> {
        let mut blocks = self.blocks.iter().flatten().peekable();
        blocks.peek()?;
        Some(blocks.all(|block| block.pinned))
    }

    /// For measurements: takes `bytes` at most, and lets rows of a longer context share them, each with those a multiple of
    /// some thousands of tokens before it. What is written to a shared row is lost.
    pub fn share_beyond(&mut self, bytes: u64) {
        let of_layers = (self.shape.layers * self.shape.block()) as u64;
        self.most = usize::try_from(bytes / of_layers).unwrap_or(usize::MAX).max(1);
    }

    /// Tokens whose rows are their own.
    pub fn own(&self) -> usize {
        self.most.saturating_mul(BLOCK)
    }

    /// Makes room for `rows` tokens, in whole blocks.
    ///
    /// # Errors
    /// [`Error::Device`] where the system gives no memory.
    pub fn reserve(&mut self, client: &Client, rows: usize) -> Result<()> {
        let count = rows.div_ceil(BLOCK);
        for layer in &mut self.blocks {
            while layer.len() < count.min(self.most) {
                layer.push(Arc::new(Block::new(client, self.shape.block())?));
            }
        }
        self.capacity = self.capacity.max(count * BLOCK);
        Ok(())
    }

    /// Writes rows of a layer from `position` on, `[heads, new, dim]` each.
    ///
    /// # Errors
    /// [`Error::Shape`] if an array has another size, or rows were not reserved.
    pub fn write(&mut self, layer: usize, position: usize, keys: &[u8], values: &[u8]) -> Result<()> {
        let HostShape { heads, .. } = self.shape;
        let row = self.shape.row();
        let new = keys.len() / (heads * row);
        let fits = keys.len() == heads * new * row && keys.len() == values.len() && new > 0;
        ensure(fits, "rows", "not as many bytes as rows have")?;
        ensure(layer < self.blocks.len() && position + new <= self.capacity, "rows", "they were not reserved")?;
        for (side, numbers) in [keys, values].into_iter().enumerate() {
            for (head, rows) in numbers.chunks_exact(new * row).enumerate() {
                let mut from = position;
                while from < position + new {
                    let count = (BLOCK - from % BLOCK).min(position + new - from);
                    let at = ((side * heads + head) * BLOCK + from % BLOCK) * row;
                    let bytes = &rows[(from - position) * row..][..count * row];
                    self.block(layer, from / BLOCK).write(at, bytes);
                    from += count;
                }
            }
        }
        Ok(())
    }

    /// Key and value of one row, as bytes.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, layer: usize, head: usize, position: usize) -> [&[u8]; 2] {
        let row = self.shape.row();
        let block = self.block(layer, position / BLOCK);
        [0, self.shape.heads].map(|side| {
            let at = ((side + head) * BLOCK + position % BLOCK) * row;
            block.bytes(at..at + row)
        })
    }

    /// Keys and values of the first `len` rows of a layer, `[heads, len, dim]` each, as bytes.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows that were not reserved.
    pub fn read(&self, layer: usize, len: usize) -> Result<[Vec<u8>; 2]> {
        ensure(layer < self.blocks.len() && len <= self.capacity, "rows", "they were not reserved")?;
        let (heads, row) = (self.shape.heads, self.shape.row());
        Ok([0, heads].map(|side| {
            let mut all = Vec::with_capacity(heads * len * row);
            for head in 0..heads {
                for from in (0..len).step_by(BLOCK) {
                    let at = (side + head) * BLOCK * row;
                    all.extend_from_slice(self.block(layer, from / BLOCK).bytes(at..at + BLOCK.min(len - from) * row));
                }
            }
            all
        }))
    }

    /// Copies block `index` of a layer to the device: keys and values, `[heads, BLOCK, dim]` each. One transfer.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows that were not reserved.
    pub fn upload(&self, client: &Client, layer: usize, index: usize) -> Result<[Handle; 2]> {
        ensure(layer < self.blocks.len() && index * BLOCK < self.capacity, "rows", "they were not reserved")?;
        let both = Block::upload(self.block(layer, index), client, self.shape.block());
        let half = self.shape.block() as u64 / 2;
        Ok([both.clone().offset_end(half), both.offset_start(half)])
    }

    /// As [`upload`](Self::upload), the keys alone.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn upload_keys(&self, client: &Client, layer: usize, index: usize) -> Result<Handle> {
        ensure(layer < self.blocks.len() && index * BLOCK < self.capacity, "rows", "they were not reserved")?;
        Ok(Block::upload(self.block(layer, index), client, self.shape.block() / 2))
    }

    /// Where each block of a layer begins, shared ones as often as they are.
    pub(super) fn addresses(&self, layer: usize) -> Vec<u64> {
        (0..self.capacity / BLOCK).map(|index| self.block(layer, index).start as u64).collect()
    }

    fn block(&self, layer: usize, index: usize) -> &Arc<Block> {
        &self.blocks[layer][index % self.most]
    }
}
