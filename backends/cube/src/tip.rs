//! Token importance prediction: sketch rows against all query heads that share them, each row read once.
//!
//! The queries are folded where they are used, at the start of every cube: it costs less than a launch. Scores of the integer
//! formats are sums of products of bytes, exact, as on the CPU.

pub(crate) mod fold;
pub(crate) mod kernel;

use crate::device::{Gpu, buffer};
use crate::error::{Error, Result, ensure};
use crate::length::Length;
use crate::spans::{Spans, UNITS};
use cubecl::prelude::*;
use cubecl::server::Handle;
use fasa_core::sketch::Precision;
use kernel::tip_kernel;

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
pub(crate) struct Config {
    pub precision: Codes,
    pub chunks: usize,
    pub words: usize,
    pub group: usize,
    pub spans: Spans,
    pub units: u32,
    pub plane: u32,
    pub native_half: bool,
    /// Whether the number of rows is read from the device.
    pub device_len: bool,
}

impl Config {
    pub const fn half_scores(&self) -> bool {
        are_halves(self.group)
    }

    /// Words of a token's scores.
    pub const fn score_words(&self) -> usize {
        score_words(self.group)
    }

    /// Query heads that units fold together, how many units do, and the channels of each of them.
    const fn fold_heads(&self) -> usize {
        if self.plane > 0 { 1 } else { self.group }
    }

    const fn fold_team(&self) -> usize {
        if self.plane > 0 { self.plane as usize } else { self.units as usize }
    }

    const fn fold_numbers(&self) -> usize {
        (self.fold_heads() * 2 * self.chunks).div_ceil(self.fold_team())
    }

    /// Whether scores are sums of integers.
    pub const fn integer(&self) -> bool {
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

/// Whether `group` query heads have halves as scores: what is written and read again is half as much, and scores only rank.
pub const fn are_halves(group: usize) -> bool {
    group.is_multiple_of(2)
}

pub(crate) const fn score_words(group: usize) -> usize {
    if are_halves(group) { group / 2 } else { group }
}

/// TIP scores, `[sketches, stride, query heads of a sketch]`, times 1 / √d, f16 or f32 as [`are_halves`] says, and per cube
/// the largest score and the sum of powers of e relative to it, `[query heads, blocks, 2]`.
#[derive(Debug, Clone)]
pub struct Scores {
    /// Scores.
    pub scores: Handle,
    /// Tokens that a sketch's scores have room for.
    pub stride: usize,
    /// Query heads of a sketch.
    pub group: usize,
    /// Query heads.
    pub heads: usize,
    /// Tokens.
    pub len: Length,
    pub(crate) spans: Spans,
    pub(crate) blocks: Handle,
    pub(crate) block_count: usize,
}

/// How `group` query heads are scored against a sketch, a cube having `units` units of `rows` rows; and the words of a row
/// that are read at once.
pub(crate) fn plan(gpu: &Gpu, sketch: &Sketch, group: usize, units: u32, rows: usize) -> Result<(Config, usize)> {
    let words = sketch.words();
    let config = Config {
        precision: Codes::new(sketch.precision)?,
        chunks: sketch.chunks,
        words,
        group,
        spans: Spans { rows, lanes: 1 },
        units,
        plane: gpu.traits.plane,
        native_half: gpu.traits.native_half,
        device_len: false,
    };
    Ok((config, [4, 2, 1].into_iter().find(|v| words.is_multiple_of(*v)).unwrap_or(1)))
}

impl Scores {
    /// Memory for the scores of `heads` sketches, for [`score_into`]; `len` may shrink afterwards.
    pub fn empty(gpu: &Gpu, heads: usize, group: usize, len: Length) -> Self {
        let (tokens, stride) = (len.most(), score_stride(len.most()));
        let spans = Spans::new(tokens, heads, gpu.traits.processors as usize);
        let wanted = (gpu.traits.cubes * gpu.traits.processors) as usize;
        // No more cubes than run at the same time: a second wave would have the device to itself for little.
        let chunks = tokens.div_ceil(spans.chunk());
        let turns = chunks.div_ceil((wanted / heads.max(1)).max(1));
        let block_count = chunks.div_ceil(turns);
        let query_heads = heads * group;
        Self {
            scores: gpu.words(heads * stride * score_words(group)),
            blocks: gpu.words(query_heads * block_count * 2),
            heads: query_heads,
            stride,
            group,
            len,
            spans,
            block_count,
        }
    }

    pub(crate) fn sketches(&self) -> usize {
        self.heads / self.group
    }
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
    len: impl Into<Length>,
) -> Result<Scores> {
    let out = Scores::empty(gpu, sketch.heads, group, len.into());
    score_into(gpu, queries, dim, sketch, channels, &out)?;
    Ok(out)
}

/// As [`score`], into memory that is there.
///
/// # Errors
/// As [`score`], and if the memory was made for another number of sketches.
pub fn score_into(
    gpu: &Gpu,
    queries: &Handle,
    dim: usize,
    sketch: &Sketch,
    channels: &Channels,
    out: &Scores,
) -> Result<()> {
    let (len, group) = (out.len.most(), out.group);
    ensure(len > 0 && len <= sketch.capacity, "len", "the sketch has fewer rows")?;
    ensure(group > 0 && group <= 16, "group", "1 to 16 query heads can share a sketch")?;
    ensure(out.sketches() == sketch.heads, "scores", "their memory is for another number of sketches")?;
    let words = sketch.words();
    let widest = |count: usize| [4, 2, 1].into_iter().find(|v| count.is_multiple_of(*v)).unwrap_or(1);
    let token_words = score_words(group);
    let (vector, score_vector) = (widest(words), widest(token_words));
    let config = Config {
        precision: Codes::new(sketch.precision)?,
        chunks: sketch.chunks,
        words,
        group,
        spans: out.spans,
        units: UNITS,
        plane: gpu.traits.plane,
        native_half: gpu.traits.native_half,
        device_len: out.len.is_on_device(),
    };
    let heads = out.heads;
    let table = 2 * sketch.chunks * sketch.heads;
    // SAFETY: the lengths are those of `Scores::empty` and of `Sketch` and `Channels`; the kernel checks the number of rows,
    // which is at most `len`, before it writes a score, and reads rows below it only.
    unsafe {
        tip_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(out.block_count as u32, sketch.heads as u32, 1),
            CubeDim::new_1d(UNITS),
            vector,
            score_vector,
            buffer(queries, heads * dim),
            buffer(&channels.channels, table),
            buffer(&channels.scale, table),
            buffer(&sketch.codes, sketch.heads * sketch.capacity * words / vector),
            buffer(&sketch.scales, sketch.heads * sketch.capacity / 2),
            buffer(out.len.handle().unwrap_or(queries), 1),
            buffer(&out.scores, sketch.heads * out.stride * token_words / score_vector),
            buffer(&out.blocks, heads * out.block_count * 2),
            len as u32,
            sketch.capacity as u32,
            out.stride as u32,
            dim as u32,
            1.0 / (dim as f32).sqrt(),
            config,
        );
    }
    Ok(())
}
