//! One layer's cache as it lies in memory.

use crate::source::Source;
use fasa_core::sketch::{Precision, SketchRows};
use fasa_core::{Error, Result};
use half::f16;
use std::borrow::Cow;

/// Numbers of a cache, in the format it keeps them in.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Numbers<'a> {
    /// IEEE single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl Numbers<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::F16(numbers) => numbers.len(),
        }
    }

    /// How much memory they take.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Numbers::F32(numbers) => size_of_val(*numbers),
            Numbers::F16(numbers) => size_of_val(*numbers),
        }
    }
}

impl<'a> From<&'a [f32]> for Numbers<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Numbers::F32(numbers)
    }
}

impl<'a> From<&'a [f16]> for Numbers<'a> {
    fn from(numbers: &'a [f16]) -> Self {
        Numbers::F16(numbers)
    }
}

/// Keys and values of one layer: `[kv_heads, capacity, dim]` each, of which the first `len` rows of every head are in use.
#[derive(Debug, Clone, Copy)]
pub struct LayerCache<'a> {
    arrays: Head<'a>,
    kv_heads: usize,
    capacity: usize,
    dim: usize,
    len: usize,
    window: usize,
    softcap: f32,
}

/// Keys and values of one head, `[len, dim]` each.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Head<'a> {
    F32 { keys: &'a [f32], values: &'a [f32] },
    F16 { keys: &'a [f16], values: &'a [f16] },
}

impl<'a> LayerCache<'a> {
    /// A view of both arrays, which have one format.
    ///
    /// # Errors
    /// [`Error::Range`] for no head, no row, `len > capacity` or two formats; [`Error::Length`] if an array has another size.
    pub fn new(
        keys: impl Into<Numbers<'a>>,
        values: impl Into<Numbers<'a>>,
        kv_heads: usize,
        capacity: usize,
        dim: usize,
        len: usize,
    ) -> Result<Self> {
        let (keys, values) = (keys.into(), values.into());
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
        let arrays = match (keys, values) {
            (Numbers::F32(keys), Numbers::F32(values)) => Head::F32 { keys, values },
            (Numbers::F16(keys), Numbers::F16(values)) => Head::F16 { keys, values },
            _ => return Err(Error::Range { what: "cache", problem: "keys and values have one number format" }),
        };
        Ok(Self { arrays, kv_heads, capacity, dim, len, window: usize::MAX, softcap: 0.0 })
    }

    /// The same cache in a layer with a sliding window: a token attends to the last `tokens` rows up to its own.
    #[must_use]
    pub fn within(self, tokens: usize) -> Self {
        Self { window: tokens.max(1), ..self }
    }

    /// The same cache in a layer that caps its scores: `cap * tanh(score / cap)` after the division by `√dim`. Zero, or a
    /// number below, caps nothing.
    #[must_use]
    pub fn capped(self, cap: f32) -> Self {
        Self { softcap: cap.max(0.0), ..self }
    }

    /// Rows that a token attends to at most.
    pub fn window(&self) -> usize {
        self.window
    }

    /// What scores are capped at; 0 for not at all.
    pub fn softcap(&self) -> f32 {
        self.softcap
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

    /// The rows of one head that are in use.
    pub(crate) fn head(&self, kv_head: usize) -> Head<'a> {
        let start = kv_head * self.capacity * self.dim;
        let range = start..start + self.len * self.dim;
        match self.arrays {
            Head::F32 { keys, values } => Head::F32 { keys: &keys[range.clone()], values: &values[range] },
            Head::F16 { keys, values } => Head::F16 { keys: &keys[range.clone()], values: &values[range] },
        }
    }

    /// Query heads per KV head for `queries` numbers of queries.
    pub(crate) fn group(&self, queries: &[f32], out: &[f32]) -> Result<usize> {
        self.shape().group(queries, out)
    }
}

impl Head<'_> {
    /// The keys in single precision.
    pub(crate) fn keys_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Head::F32 { keys, .. } => Cow::Borrowed(keys),
            Head::F16 { keys, .. } => Cow::Owned(keys.iter().map(|k| k.to_f32()).collect()),
        }
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
