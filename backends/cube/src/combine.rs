//! From scores to the importances that selection ranks: the mean of a group's softmaxes, or the scores themselves.

mod kernel;

use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::length::Length;
use crate::numbers::Format;
use crate::spans::{Spans, UNITS};
use crate::tip::{Scores, are_halves, score_stride, score_words};
use cubecl::prelude::*;
use cubecl::server::Handle;
use kernel::{combine_kernel, rank_kernel};

/// Less than any importance: places past the context's end.
pub(crate) const NOTHING: f32 = -3.4e38;

/// Cubes that a processor runs at once.
const CUBES: usize = 4;

/// Importances, with the largest of every span of tokens.
#[derive(Debug, Clone)]
pub struct Importance {
    /// `[rows, stride]`.
    pub values: Handle,
    /// Numbers between two rows.
    pub stride: usize,
    /// Lists of tokens to choose.
    pub rows: usize,
    /// Tokens.
    pub len: Length,
    pub(crate) maxima: Handle,
    pub(crate) spans: Spans,
    pub(crate) sinks: usize,
    pub(crate) recent: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    /// Query heads that choose together, and those of a sketch.
    group: usize,
    sketch_group: usize,
    spans: Spans,
    plane: u32,
    device_len: bool,
    native_half: bool,
    /// Whether the scores are halves.
    half: bool,
}

impl Config {
    const fn mean(&self) -> bool {
        self.group > 1
    }

    /// Query heads of a list whose scores lie next to each other.
    const fn together(&self) -> usize {
        if self.group < self.sketch_group { self.group } else { self.sketch_group }
    }

    const fn format(&self) -> Format {
        if self.half { Format::F16 } else { Format::F32 }
    }

    /// Scores of a word.
    const fn per_word(&self) -> usize {
        if self.half { 2 } else { 1 }
    }

    /// Vectors of `width` words that a token's scores are read in; where those of the list are no whole words, a word each.
    const fn reads(&self, width: usize) -> usize {
        if self.whole_words() { self.group / self.per_word() / width } else { self.group }
    }

    /// Whether a list's scores are whole words.
    const fn whole_words(&self) -> bool {
        self.together().is_multiple_of(self.per_word())
    }

    /// Words that are read together.
    fn width(&self) -> usize {
        if !self.whole_words() {
            return 1;
        }
        let words = self.together() / self.per_word();
        [4, 2, 1].into_iter().find(|width| words.is_multiple_of(*width)).unwrap_or(1)
    }
}

impl Importance {
    /// Memory for the importances of `rows` lists made of `scores`, for [`combine_into`].
    pub fn empty(gpu: &Gpu, scores: &Scores, rows: usize) -> Self {
        Self {
            values: gpu.words(rows * scores.stride),
            stride: scores.stride,
            rows,
            len: scores.len.clone(),
            maxima: gpu.words(rows * scores.spans.count(scores.len.most())),
            spans: scores.spans,
            sinks: 0,
            recent: 0,
        }
    }

    /// The first `sinks` tokens and the last `recent` ones are chosen before all others.
    #[must_use]
    pub fn guarantee(self, sinks: usize, recent: usize) -> Self {
        Self { sinks, recent, ..self }
    }
}

/// The importance of every token for `group` query heads that choose together: the mean of their softmaxes. With a group of
/// one, each query head's own scores: softmax does not change an order.
///
/// The first `sinks` tokens and those from `recent_from` on are chosen before all others. One launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the group is not made of whole sketches, nor a sketch of whole groups, or the scores
/// are of another number of tokens.
pub fn combine(
    gpu: &Gpu,
    scores: &Scores,
    group: usize,
    len: usize,
    [sinks, recent_from]: [usize; 2],
) -> Result<Importance> {
    ensure(len == scores.len.most(), "len", "the scores are of another number of tokens")?;
    ensure(sinks <= recent_from && recent_from <= len, "recent_from", "it lies after the sinks and not after the end")?;
    ensure(group > 0 && scores.heads.is_multiple_of(group), "group", "it does not divide the query heads")?;
    let out = Importance::empty(gpu, scores, scores.heads / group);
    combine_into(gpu, scores, &out)?;
    Ok(out.guarantee(sinks, len - recent_from))
}

/// As [`combine`], into memory that is there.
///
/// # Errors
/// As [`combine`].
pub fn combine_into(gpu: &Gpu, scores: &Scores, out: &Importance) -> Result<()> {
    ensure(out.rows > 0 && scores.heads.is_multiple_of(out.rows), "rows", "query heads share them equally")?;
    let (group, len) = (scores.heads / out.rows, scores.len.most());
    ensure(group <= 16, "group", "1 to 16 query heads can choose together")?;
    ensure(
        scores.group.is_multiple_of(group) || group.is_multiple_of(scores.group),
        "group",
        "it does not divide the query heads of a sketch, nor is it divided by them",
    )?;
    let config = Config {
        group,
        sketch_group: scores.group,
        spans: out.spans,
        plane: gpu.traits.plane,
        device_len: scores.len.is_on_device(),
        native_half: gpu.traits.native_half,
        half: are_halves(scores.group),
    };
    let vector = config.width();
    let score_words = scores.sketches() * scores.stride * score_words(scores.group);
    let count = out.spans.count(len);
    let chunks = count / out.spans.of_chunk();
    // No more cubes than run at the same time.
    let turns = (chunks * out.rows).div_ceil(CUBES * gpu.traits.processors as usize);
    // SAFETY: the lengths are those of `Scores::empty` and `Importance::empty`; a cube writes its chunks' numbers below the
    // stride, and their spans.
    unsafe {
        combine_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(chunks.div_ceil(turns) as u32, out.rows as u32, 1),
            CubeDim::new_1d(UNITS),
            vector,
            buffer(&scores.scores, score_words / vector),
            buffer(&scores.blocks, scores.heads * scores.block_count * 2),
            buffer(scores.len.handle().unwrap_or(&scores.blocks), 1),
            buffer(&out.values, out.rows * out.stride),
            buffer(&out.maxima, out.rows * count),
            len as u32,
            out.stride as u32,
            scores.block_count as u32,
            chunks as u32,
            config,
        );
    }
    Ok(())
}

/// As [`combine`] for importances that are there: `values` is `[rows, score_stride(len)]`. One launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if there is no token.
pub fn rank(
    gpu: &Gpu,
    values: &Handle,
    rows: usize,
    len: usize,
    [sinks, recent_from]: [usize; 2],
) -> Result<Importance> {
    ensure(len > 0 && rows > 0, "len", "nothing to choose from")?;
    ensure(sinks <= recent_from && recent_from <= len, "recent_from", "it lies after the sinks and not after the end")?;
    let (stride, spans) = (score_stride(len), Spans::new(len, rows, gpu.traits.processors as usize));
    let count = spans.count(len);
    let maxima = gpu.words(rows * count);
    let config = Config {
        group: 1,
        sketch_group: 1,
        spans,
        plane: gpu.traits.plane,
        device_len: false,
        native_half: gpu.traits.native_half,
        half: false,
    };
    // SAFETY: a cube writes the spans of its chunk, and reads numbers below the length only.
    unsafe {
        rank_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static((count / spans.of_chunk()) as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS),
            buffer(values, rows * stride),
            buffer(&maxima, rows * count),
            len as u32,
            stride as u32,
            config,
        );
    }
    let (values, recent) = (values.clone(), len - recent_from);
    Ok(Importance { values, stride, rows, len: len.into(), maxima, spans, sinks, recent })
}
