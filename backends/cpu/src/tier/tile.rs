//! A few hundred rows of one head, read in one stretch.

use super::{Result, Tier, TierShape, Words};
use crate::attention::BLOCK;
use crate::layer::LayerCache;
use std::sync::atomic::Ordering;

/// Bytes per stretch: they stay in the second cache, and a call to the system costs little beside reading them.
const BYTES: usize = 64 << 10;

/// Rows per stretch: whole blocks of the kernels, whose results then do not depend on it.
pub(super) fn rows(shape: &TierShape) -> usize {
    (BYTES / shape.row()).next_multiple_of(BLOCK).max(BLOCK)
}

/// Rows of one head, keys apart from values.
#[derive(Debug, Default)]
pub(super) struct Tile {
    pairs: Vec<u8>,
    keys: Words,
    values: Words,
    from: usize,
    count: usize,
}

impl Tile {
    /// Reads up to `most` rows from `from` on; returns how many.
    pub(super) fn load(&mut self, tier: &Tier, layer: usize, head: usize, from: usize, most: usize) -> Result<usize> {
        let shape = &tier.shape;
        let (count, half) = (rows(shape).min(most), shape.half_row());
        // Never more than what is asked for is zeroed: a short context has few rows.
        self.count = 0;
        self.pairs.resize(count * 2 * half, 0);
        self.keys.resize(count * half);
        self.values.resize(count * half);
        tier.file.read(layer, head, from, &mut self.pairs)?;
        tier.counters.read.fetch_add(self.pairs.len() as u64, Ordering::Relaxed);
        let keys = self.keys.bytes_mut().chunks_exact_mut(half);
        let rows = keys.zip(self.values.bytes_mut().chunks_exact_mut(half));
        for ((key, value), row) in rows.zip(self.pairs.chunks_exact(2 * half)) {
            key.copy_from_slice(&row[..half]);
            value.copy_from_slice(&row[half..]);
        }
        (self.from, self.count) = (from, count);
        Ok(count)
    }

    /// Whether it holds these rows.
    pub(super) fn holds(&self, from: usize, count: usize) -> bool {
        self.from <= from && from + count <= self.from + self.count
    }

    /// Keys and values of rows that it holds, `[count, dim]` each.
    pub(super) fn rows<E: bytemuck::Pod>(&self, shape: &TierShape, from: usize, count: usize) -> (&[E], &[E]) {
        let (start, end) = ((from - self.from) * shape.dim, (from - self.from + count) * shape.dim);
        (&self.keys.of(end)[start..], &self.values.of(end)[start..])
    }

    /// Keys and values of all its rows.
    pub(super) fn bytes(&self, shape: &TierShape) -> (&[u8], &[u8]) {
        let bytes = self.count * shape.half_row();
        (&self.keys.bytes()[..bytes], &self.values.bytes()[..bytes])
    }

    /// All its rows, as the cache of one head.
    pub(super) fn cache(&self, shape: &TierShape) -> fasa_core::Result<LayerCache<'_>> {
        let numbers = self.count * shape.dim;
        let (keys, values) = (self.keys.numbers(shape.format, numbers), self.values.numbers(shape.format, numbers));
        LayerCache::new(keys, values, 1, self.count, shape.dim, self.count)
    }
}
