//! One layer's cache as it lies in memory.

use fasa_core::sketch::{Precision, SketchRows};
use fasa_core::{Error, Result, Rows};

/// Keys and values of one layer: `[kv_heads, capacity, dim]` each, of which the first `len` rows of every head are in use.
#[derive(Debug, Clone, Copy)]
pub struct LayerCache<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    kv_heads: usize,
    capacity: usize,
    dim: usize,
    len: usize,
}

impl<'a> LayerCache<'a> {
    /// A view of both arrays.
    ///
    /// # Errors
    /// [`Error::Range`] for no head, no row or `len > capacity`; [`Error::Length`] if an array has another size.
    pub fn new(
        keys: &'a [f32],
        values: &'a [f32],
        kv_heads: usize,
        capacity: usize,
        dim: usize,
        len: usize,
    ) -> Result<Self> {
        if kv_heads == 0 || dim == 0 || len == 0 || len > capacity {
            return Err(Error::Range { what: "cache", problem: "it holds 1 to `capacity` rows of at least one head" });
        }
        let size = kv_heads.checked_mul(capacity).and_then(|x| x.checked_mul(dim));
        let want = size.ok_or(Error::Range { what: "cache", problem: "it exceeds the address space" })?;
        for (what, got) in [("keys", keys.len()), ("values", values.len())] {
            if got != want {
                return Err(Error::Length { what, want, got });
            }
        }
        Ok(Self { keys, values, kv_heads, capacity, dim, len })
    }

    /// KV heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Numbers per row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows in use.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.len
    }

    /// Keys of one head, `[len * dim]`.
    pub fn keys(&self, kv_head: usize) -> &'a [f32] {
        &self.keys[kv_head * self.capacity * self.dim..][..self.len * self.dim]
    }

    /// Values of one head, `[len * dim]`.
    pub fn values(&self, kv_head: usize) -> &'a [f32] {
        &self.values[kv_head * self.capacity * self.dim..][..self.len * self.dim]
    }

    /// Query heads per KV head for `queries` numbers of queries.
    pub(crate) fn group(&self, queries: &[f32], out: &[f32]) -> Result<usize> {
        let per_group = self.kv_heads * self.dim;
        if queries.is_empty() || !queries.len().is_multiple_of(per_group) {
            let want = queries.len().div_ceil(per_group).max(1) * per_group;
            return Err(Error::Length { what: "queries", want, got: queries.len() });
        }
        if out.len() != queries.len() {
            return Err(Error::Length { what: "out", want: queries.len(), got: out.len() });
        }
        Ok(queries.len() / per_group)
    }

    /// Keys of one head as rows.
    pub(crate) fn key_rows(&self, kv_head: usize) -> Result<Rows<'a>> {
        Rows::contiguous(self.keys(kv_head), self.dim)
    }
}

/// The sketches of one layer: codes `[heads, capacity, row_bytes]` and row scales `[heads, capacity, scale_bytes]`, one
/// head per KV head or per query head.
#[derive(Debug, Clone, Copy)]
pub struct LayerSketch<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    precision: Precision,
    chunks: usize,
    heads: usize,
    capacity: usize,
}

impl<'a> LayerSketch<'a> {
    /// A view of both arrays.
    ///
    /// # Errors
    /// [`Error::Length`] if an array has another size, [`Error::Range`] if that size exceeds the address space.
    pub fn new(
        codes: &'a [u8],
        scales: &'a [u8],
        precision: Precision,
        chunks: usize,
        heads: usize,
        capacity: usize,
    ) -> Result<Self> {
        let rows = heads.checked_mul(capacity);
        for (what, got, bytes) in
            [("codes", codes.len(), precision.row_bytes(chunks)), ("scales", scales.len(), precision.scale_bytes())]
        {
            let size = rows.and_then(|r| r.checked_mul(bytes));
            let want = size.ok_or(Error::Range { what: "sketch", problem: "it exceeds the address space" })?;
            if got != want {
                return Err(Error::Length { what, want, got });
            }
        }
        Ok(Self { codes, scales, precision, chunks, heads, capacity })
    }

    /// Sketches in this layer.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// The first `len` rows of one head.
    ///
    /// # Errors
    /// [`Error::Range`] if there is no such head or `len` exceeds the capacity.
    pub fn rows(&self, head: usize, len: usize) -> Result<SketchRows<'a>> {
        if head >= self.heads || len > self.capacity {
            return Err(Error::Range { what: "sketch", problem: "it has fewer heads or rows than are read" });
        }
        let (codes, scales) = (self.precision.row_bytes(self.chunks), self.precision.scale_bytes());
        SketchRows::new(
            self.precision,
            self.chunks,
            len,
            &self.codes[head * self.capacity * codes..][..len * codes],
            &self.scales[head * self.capacity * scales..][..len * scales],
        )
    }
}
