//! Token importance prediction: sketch rows against all query heads that share them, each row read once.
//!
//! The queries are folded where they are used, at the start of every cube: it costs less than a launch. Scores of the integer
//! formats are sums of products of bytes, exact, as on the CPU.

mod kernel;

use crate::device::{Gpu, buffer};
use crate::error::{Error, Result, ensure};
use cubecl::prelude::*;
use cubecl::server::Handle;
use fasa_core::sketch::Precision;
use kernel::tip_kernel;

/// Units of a cube.
const UNITS: u32 = 256;

/// Scores of a row start at multiples of this many.
pub const SCORE_ALIGN: usize = 1024;

/// Numbers between the scores of two query heads for contexts of up to `len` tokens.
pub const fn score_stride(len: usize) -> usize {
    len.next_multiple_of(SCORE_ALIGN)
}

/// The sketches of a layer on the device: `heads` times `capacity` rows of codes, `words` 32-bit words each, and as many row
/// scales, halves, two in a word.
#[derive(Debug, Clone)]
pub struct Sketch {
    /// Number format.
    pub precision: Precision,
    /// Chunks of a row.
    pub chunks: usize,
    /// Sketches.
    pub heads: usize,
    /// Rows of a sketch, an even number.
    pub capacity: usize,
    /// Codes.
    pub codes: Handle,
    /// Row scales; of the integer formats only.
    pub scales: Handle,
}

impl Sketch {
    /// Words of a row: its bytes, filled up.
    pub const fn row_words(precision: Precision, chunks: usize) -> usize {
        precision.row_bytes(chunks).div_ceil(4)
    }

    /// Room for `heads` sketches of `capacity` rows.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the capacity is odd.
    pub fn empty(gpu: &Gpu, precision: Precision, chunks: usize, heads: usize, capacity: usize) -> Result<Self> {
        let codes = gpu.words(heads * capacity * Self::row_words(precision, chunks));
        let scales = gpu.words(heads * capacity / 2);
        Self::new(precision, chunks, heads, capacity, codes, scales)
    }

    /// Takes buffers that hold sketches, or will.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the capacity is odd or a size is 0.
    pub fn new(
        precision: Precision,
        chunks: usize,
        heads: usize,
        capacity: usize,
        codes: Handle,
        scales: Handle,
    ) -> Result<Self> {
        ensure(capacity.is_multiple_of(2), "capacity", "two row scales share a word: it must be even")?;
        ensure(chunks > 0 && heads > 0, "sketch", "it has no rows")?;
        Ok(Self { precision, chunks, heads, capacity, codes, scales })
    }

    pub(crate) fn words(&self) -> usize {
        Self::row_words(self.precision, self.chunks)
    }
}

/// The channels of a layer's sketches on the device.
#[derive(Debug, Clone)]
pub struct Channels {
    /// Channel numbers in sketch order, `[heads, 2F]`.
    pub channels: Handle,
    /// Static scales, `[heads, 2F]`.
    pub scale: Handle,
    /// Static centres, `[heads, 2F]`.
    pub centre: Handle,
}

/// [`Precision`], as kernels are told apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Codes {
    Int4,
    Int8,
    F16,
    F32,
}

impl Codes {
    pub(crate) fn new(precision: Precision) -> Result<Self> {
        match precision {
            Precision::Int4 => Ok(Codes::Int4),
            Precision::Int8 => Ok(Codes::Int8),
            Precision::F16 => Ok(Codes::F16),
            Precision::F32 => Ok(Codes::F32),
            _ => Err(Error::Shape { what: "precision", problem: "no kernel reads this sketch" }),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    precision: Codes,
    chunks: usize,
    words: usize,
    group: usize,
    /// Rows that a unit scores.
    rows: usize,
    units: u32,
    plane: u32,
    native_half: bool,
}

impl Config {
    /// Whether scores are sums of integers.
    const fn integer(&self) -> bool {
        matches!(self.precision, Codes::Int4 | Codes::Int8)
    }

    /// Numbers of the query that belong to a word of codes.
    const fn per_word(&self) -> usize {
        match self.precision {
            Codes::Int4 | Codes::F16 => 2,
            Codes::Int8 | Codes::F32 => 1,
        }
    }
}

/// TIP scores of all rows for `group` query heads per sketch: `scores` `[query heads, score_stride]`, in the unit of powers of e
/// that [`crate::combine`] wants (times 1 / √d), and per block of rows the largest score and the sum of powers
/// relative to it: `[query heads, blocks, 2]`.
#[derive(Debug, Clone)]
pub struct Scores {
    /// Scores.
    pub scores: Handle,
    /// Numbers between two rows of scores.
    pub stride: usize,
    /// Largest scores and sums.
    pub blocks: Handle,
    /// Blocks of a row.
    pub block_count: usize,
    /// Query heads.
    pub heads: usize,
}

/// Scores the first `len` rows of every sketch. `queries` is `[sketch.heads * group, dim]`, f32.
///
/// Time: the bytes of the rows, once. One launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the sketch has fewer rows, or a size is 0.
pub fn score(
    gpu: &Gpu,
    queries: &Handle,
    dim: usize,
    group: usize,
    sketch: &Sketch,
    channels: &Channels,
    len: usize,
) -> Result<Scores> {
    ensure(len > 0 && len <= sketch.capacity, "len", "the sketch has fewer rows")?;
    ensure(group > 0 && group <= 16, "group", "1 to 16 query heads can share a sketch")?;
    let words = sketch.words();
    let vector = [4, 2, 1].into_iter().find(|v| words.is_multiple_of(*v)).unwrap_or(1);
    // Short contexts are spread over more units.
    let enough = 2 * gpu.traits.processors as usize * UNITS as usize;
    let rows = [4, 2].into_iter().find(|r| len * sketch.heads >= r * enough).unwrap_or(1);
    let config = Config {
        precision: Codes::new(sketch.precision)?,
        chunks: sketch.chunks,
        words,
        group,
        rows,
        units: UNITS,
        plane: gpu.traits.plane,
        native_half: gpu.traits.native_half,
    };
    let block_count = len.div_ceil(rows * UNITS as usize);
    let (heads, stride) = (sketch.heads * group, score_stride(len));
    let out = Scores {
        scores: gpu.words(heads * stride),
        stride,
        blocks: gpu.words(heads * block_count * 2),
        block_count,
        heads,
    };
    let table = 2 * sketch.chunks * sketch.heads;
    // SAFETY: the lengths are those of the allocations above and of `Sketch` and `Channels`; the kernel checks `len` before it
    // writes a score, and reads rows below `len` only.
    unsafe {
        tip_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(block_count as u32, sketch.heads as u32, 1),
            CubeDim::new_1d(UNITS),
            vector,
            buffer(queries, heads * dim),
            buffer(&channels.channels, table),
            buffer(&channels.scale, table),
            buffer(&sketch.codes, sketch.heads * sketch.capacity * words / vector),
            buffer(&sketch.scales, sketch.heads * sketch.capacity / 2),
            buffer(&out.scores, heads * stride),
            buffer(&out.blocks, heads * block_count * 2),
            len as u32,
            sketch.capacity as u32,
            stride as u32,
            dim as u32,
            1.0 / (dim as f32).sqrt(),
            config,
        );
    }
    Ok(out)
}
