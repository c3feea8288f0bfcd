//! From scores to the importance that selection ranks: the mean of a group's softmaxes, or the scores themselves.

use crate::device::{Gpu, buffer};
use crate::error::{Result, ensure};
use crate::team::{Reduce, cube_reduce, scratch_len};
use crate::tip::{SCORE_ALIGN, Scores, score_stride};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units of a cube; each looks at four tokens.
const UNITS: u32 = 256;

/// More than any importance: guaranteed tokens.
pub(crate) const FORCED: f32 = 3.0e38;

/// Less than any: places past the context's end.
pub(crate) const NOTHING: f32 = -3.4e38;

/// Importances with the largest of every `span` tokens.
#[derive(Debug, Clone)]
pub struct Importance {
    /// `[rows, stride]`.
    pub values: Handle,
    /// Numbers between two rows.
    pub stride: usize,
    /// `[rows, stride / span]`.
    pub largest: Handle,
    /// Tokens that an entry of `largest` stands for, a power of two.
    pub span: usize,
    /// Lists of tokens to choose.
    pub rows: usize,
    /// Tokens.
    pub len: usize,
}

/// Tokens per entry of the largest ones: a few times as many entries as tokens are wanted.
fn span(len: usize, budget: usize) -> usize {
    (1usize << (len / (4 * budget.max(1))).max(1).ilog2()).clamp(4, 128)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    group: usize,
    mean: bool,
    span: usize,
    units: u32,
    plane: u32,
}

/// The importance of every token for `group` query heads that choose together: the mean of their softmaxes. With a group of
/// one, each query head's own scores: softmax does not change an order.
///
/// The first `sinks` tokens and those from `recent_from` on come out above all others. One launch.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the group does not divide the heads.
pub fn combine(
    gpu: &Gpu,
    scores: &Scores,
    group: usize,
    len: usize,
    budget: usize,
    [sinks, recent_from]: [usize; 2],
) -> Result<Importance> {
    ensure(group > 0 && scores.heads.is_multiple_of(group), "group", "it does not divide the query heads")?;
    ensure(group <= 16, "group", "1 to 16 query heads can choose together")?;
    let rows = scores.heads / group;
    launch(gpu, &scores.scores, Some(scores), group, rows, len, budget, [sinks, recent_from])
}

/// As [`combine`] for importances that are there: `values` is `[rows, score_stride(len)]`. Guaranteed tokens are overwritten.
///
/// # Errors
/// None at present; the signature is that of [`combine`].
pub fn rank(
    gpu: &Gpu,
    values: &Handle,
    rows: usize,
    len: usize,
    budget: usize,
    forced: [usize; 2],
) -> Result<Importance> {
    launch(gpu, values, None, 1, rows, len, budget, forced)
}

#[allow(clippy::too_many_arguments)]
fn launch(
    gpu: &Gpu,
    values: &Handle,
    scores: Option<&Scores>,
    group: usize,
    rows: usize,
    len: usize,
    budget: usize,
    [sinks, recent_from]: [usize; 2],
) -> Result<Importance> {
    ensure(len > 0 && budget > 0, "len", "nothing to choose from")?;
    let stride = score_stride(len);
    let span = span(len, budget);
    let config = Config { group, mean: group > 1, span, units: UNITS, plane: gpu.traits.plane };
    let (blocks, block_count) = match scores {
        Some(scores) => (scores.blocks.clone(), scores.block_count),
        None => (values.clone(), 1),
    };
    let out = Importance {
        values: gpu.words(rows * stride),
        stride,
        largest: gpu.words(rows * stride / span),
        span,
        rows,
        len,
    };
    // SAFETY: rows of scores and importances are `stride` long, a multiple of what a cube handles, and the blocks are those of
    // the scores; without a mean no block is read.
    unsafe {
        combine_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static((stride / SCORE_ALIGN) as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS),
            buffer(values, rows * group * stride / 4),
            buffer(&blocks, rows * group * block_count * 2),
            buffer(&out.values, rows * stride / 4),
            buffer(&out.largest, rows * stride / span),
            len as u32,
            (stride / 4) as u32,
            block_count as u32,
            sinks as u32,
            recent_from as u32,
            config,
        );
    }
    Ok(out)
}

#[cube(launch_unchecked)]
fn combine_kernel(
    scores: &[Vector<f32, Const<4>>],
    blocks: &[f32],
    importance: &mut [Vector<f32, Const<4>>],
    largest: &mut [f32],
    len: u32,
    stride: u32,
    block_count: u32,
    sinks: u32,
    recent_from: u32,
    #[comptime] config: Config,
) {
    let row = CUBE_POS_Y as usize;
    let group = comptime!(config.group);
    let place = CUBE_POS_X as usize * comptime!(config.units as usize) + UNIT_POS as usize;
    let mut four = Array::<Vector<f32, Const<4>>>::new(group);
    #[unroll]
    for g in 0..group {
        four[g] = scores[(row * group + g) * stride as usize + place];
    }
    let mut out = Array::<f32>::new(4usize);
    if comptime!(config.mean) {
        // Every cube finds its row's softmax by the blocks: a few numbers per thousand tokens.
        let mut scratch = Shared::<[f32]>::new_slice(comptime!(scratch_len(group, config.units, config.plane)));
        let mut most = Array::<f32>::new(group);
        let mut total = Array::<f32>::new(group);
        #[unroll]
        for g in 0..group {
            most[g] = f32::new(NOTHING);
            let from = (row * group + g) * block_count as usize;
            let mut i = UNIT_POS;
            while i < block_count {
                most[g] = max(most[g], blocks[(from + i as usize) * 2]);
                i += comptime!(config.units);
            }
        }
        cube_reduce(&mut most, &mut scratch, Reduce::Max, group, config.units, config.plane);
        #[unroll]
        for g in 0..group {
            total[g] = 0.0f32;
            let from = (row * group + g) * block_count as usize;
            let mut i = UNIT_POS;
            while i < block_count {
                let at = (from + i as usize) * 2;
                total[g] += blocks[at + 1] * (blocks[at] - most[g]).exp();
                i += comptime!(config.units);
            }
        }
        cube_reduce(&mut total, &mut scratch, Reduce::Sum, group, config.units, config.plane);
        #[unroll]
        for i in 0..4usize {
            out[i] = 0.0f32;
        }
        #[unroll]
        for g in 0..group {
            let share = 1.0f32 / (total[g] * comptime!(group as f32));
            #[unroll]
            for i in 0..4usize {
                out[i] += (four[g].extract(i) - most[g]).exp() * share;
            }
        }
    } else {
        #[unroll]
        for i in 0..4usize {
            out[i] = four[0].extract(i);
        }
    }
    let mut result = Vector::<f32, Const<4>>::empty();
    let mut best = f32::new(NOTHING);
    #[unroll]
    for i in 0..4usize {
        let t = (place * 4 + i) as u32;
        let value = out[i];
        // What is no number loses against every number.
        let ranked = select(value == value, value, NOTHING);
        let forced = t < sinks || t >= recent_from;
        let kept = select(t < len, select(forced, FORCED, ranked), NOTHING);
        result.insert(i, kept);
        best = max(best, kept);
    }
    importance[row * stride as usize + place] = result;
    let mut bests = Shared::<[f32]>::new_slice(comptime!(config.units as usize));
    bests[UNIT_POS as usize] = best;
    sync_cube();
    let fours = comptime!(config.span / 4);
    let spans = comptime!(config.units as usize / fours);
    if (UNIT_POS as usize) < spans {
        let mut most = f32::new(NOTHING);
        #[unroll]
        for i in 0..fours {
            most = max(most, bests[UNIT_POS as usize * fours + i]);
        }
        largest[(row * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * spans + UNIT_POS as usize] = most;
    }
}
